"""Secrets that a command prints: in no answer, from no offset, and in nothing that is stored, whoever followed when."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities import following as following_module
from activities.launcher import CallReport, Captured
from activities.output import exec_result
from activities.redactors import Redactors, as_text, redacted, window_of
from sandhold.contracts.steps import (
    CommandPlace,
    FollowCommandsResult,
    FollowCommandsStep,
    SandboxRef,
    TellInterruptedStep,
)
from sandhold.security.redaction import Piece, Redactor
from sandhold.storage import segments as segments_module
from sandhold.storage.segments import SEGMENT_BYTES
from tests.activities.commands_under_test import Commands, SecretsUnderTest, new_call_id
from tests.activities.provider_under_test import ProviderUnderTest

SECRET = "correct+horse/baccarat"
LABEL = "[redacted:PHRASE]"
BASE64 = base64.b64encode(SECRET.encode()).decode()


@pytest.fixture
def commands(provider: ProviderUnderTest, shared_sandbox: SandboxRef) -> Commands:
    commands = Commands(provider, shared_sandbox)
    commands.secrets.known = {"PHRASE": SECRET}
    return commands


def shows_no_part(text: str | bytes) -> bool:
    """Whether no four characters of the secret stand anywhere."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return not any(SECRET[at : at + 4] in text.replace(LABEL, "|") for at in range(len(SECRET) - 3))


def following(
    commands: Commands, place: CommandPlace, environment: ActivityEnvironment | None = None
) -> asyncio.Task[FollowCommandsResult]:
    step = FollowCommandsStep(ref=commands.ref, commands=[place])
    return asyncio.create_task(commands.provider.run(commands.following.follow_commands, step, environment=environment))


async def objects_of(commands: Commands, call_id: str) -> dict[str, bytes]:
    storage, session_id, folder = commands.provider.storage, commands.ref.session_id, f"calls/{call_id}"
    names = [name async for name, _ in storage.list(session_id, folder)]
    return {name: await storage.get_bytes(session_id, f"{folder}/{name}") or b"" for name in names}


@pytest.mark.storage("folder", "s3")
async def test_a_short_command_that_prints_a_secret_tells_its_name_and_is_stored_so(commands: Commands) -> None:
    urlsafe, percent = BASE64.replace("+", "-").replace("/", "_"), "correct%2Bhorse%2Fbaccarat"
    result = await commands.run(f"echo a {SECRET} b; echo {SECRET} {BASE64} {urlsafe} {percent} >&2; exit 1")
    assert (result.stdout, result.stderr) == (f"a {LABEL} b\n", f"{LABEL} {LABEL} {LABEL} {LABEL}\n")
    assert (result.stdout_bytes, result.redactions, result.truncated) == (len(SECRET) + 5, 5, False)
    assert result.output_files is not None, "its offsets are known there"
    assert await commands.stored(result.call_id) == result.stdout.encode()
    assert await commands.stored(result.call_id, "stderr") == result.stderr.encode()
    for offset in range(len(SECRET) + 6):
        told = await commands.read(result.call_id, offset, 0, status="completed")
        assert shows_no_part(told.stdout)
        assert told.stdout_offset == told.stdout_bytes == result.stdout_bytes
        assert told.redactions == 4 + (offset <= 2)


async def test_a_short_command_without_secrets_is_stored_nowhere(commands: Commands) -> None:
    result = await commands.run("echo correct horse")
    assert (result.stdout, result.redactions, result.output_files) == ("correct horse\n", 0, None)


@pytest.mark.storage("folder", "s3")
async def test_a_secret_that_comes_byte_by_byte_is_read_by_nobody(commands: Commands) -> None:
    script = (
        f"printf 'begin '; for c in $(echo '{SECRET}' | sed 's/./& /g'); do printf %s \"$c\"; sleep 0.15; done; "
        "echo ' end'; sleep 0.2"
    )
    place = await commands.leave(script, background=True)
    follower = following(commands, place)
    came, at = "", 0
    while True:
        assert shows_no_part(await commands.stored(place.call_id))
        told = await commands.read(place.call_id, at, wait_s=0.3)
        assert shows_no_part(told.stdout)
        came, at = came + told.stdout, told.stdout_offset
        if told.status != "running" and at == told.stdout_bytes:
            break
    assert came == f"begin {LABEL} end\n"
    (progress,) = (await follower).ended
    result = await commands.result(progress)
    assert (result.stdout, result.redactions) == (came, 1)
    assert result.stdout_bytes == at == len(SECRET) + 11
    assert await commands.stored(place.call_id) == came.encode()


async def test_what_may_be_the_beginning_of_a_secret_comes_once_the_command_is_over(commands: Commands) -> None:
    place = await commands.leave(
        f"printf 'so {SECRET[:9]}'; until [ -e $0-go ]; do sleep 0.1; done".replace("$0", call_id := new_call_id()),
        call_id=call_id,
        background=True,
    )
    told = await commands.read(call_id, wait_s=5.0)
    assert (told.stdout, told.stdout_offset, told.stdout_bytes) == ("so ", 3, 12)
    told = await commands.read(call_id, 3, wait_s=0.5)
    assert (told.status, told.stdout, told.stdout_offset) == ("running", "", 3)
    await commands.sh(f"touch {call_id}-go")
    result = await commands.follow_to_the_end(place)
    assert (result.stdout, result.redactions) == (f"so {SECRET[:9]}", 0)
    told = await commands.read(call_id, 3, status="completed")
    assert (told.stdout, told.stdout_offset) == (SECRET[:9], 12)


async def test_reads_of_a_running_command_show_no_part_of_a_secret_from_any_offset(commands: Commands) -> None:
    filling = 40_000
    call_id = new_call_id()
    script = f"head -c {filling} /dev/zero | tr '\\0' o; printf '{SECRET} and all'; sleep 60"
    place = await commands.leave(script, call_id=call_id, background=True)
    size = filling + len(SECRET) + 8
    await commands.sh(f"until [ $(wc -c <.sandhold/calls/{call_id}/stdout) = {size} ]; do sleep 0.05; done")
    for offset in range(filling - 2, filling + len(SECRET) + 2):
        told = await commands.read(call_id, offset)
        inside = filling < offset < filling + len(SECRET)
        shown = "oo"[: max(0, filling - offset)] + (LABEL if offset <= filling else "")
        shown += " and all" if offset <= filling + len(SECRET) or inside else " and all"[offset - size :]
        assert (told.stdout, told.stdout_offset) == (shown, size)
        assert told.redactions == (offset <= filling)
    # A window that would end in the midst of it has it as a whole.
    for offset in range(filling - 16 * 1024 - 2, filling - 16 * 1024 + len(SECRET), 5):
        told = await commands.read(call_id, offset)
        assert shows_no_part(told.stdout)
        again = await commands.read(call_id, told.stdout_offset)
        assert told.stdout + again.stdout == "o" * (filling - offset) + LABEL + " and all"
    await commands.stop(place.call_id, grace_s=0)


@pytest.mark.storage("folder", "s3")
@pytest.mark.parametrize("before", [1, 9, len(SECRET)])
async def test_a_secret_across_the_border_of_segments_is_stored_the_same_by_whoever_follows(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr(segments_module, "REWRITE_S", 0.0)
    written: dict[str, set[bytes]] = {}
    put = commands.provider.storage.put_bytes

    async def noted(session_id: str, path: str, data: bytes) -> None:
        assert shows_no_part(data)
        if not path.endswith(".part"):
            written.setdefault(path, set()).add(data)
        await put(session_id, path, data)

    monkeypatch.setattr(commands.provider.storage, "put_bytes", noted)
    call_id = new_call_id()
    filling = SEGMENT_BYTES - before
    script = (
        f"n=0; while [ $n -lt 4 ]; do n=$((n + 1)); printf '{SECRET[:7]}'; sleep 0.4; printf '{SECRET[7:]}'; "
        f"head -c {SEGMENT_BYTES - len(SECRET)} /dev/zero | tr '\\0' o; sleep 0.4; done; echo {SECRET} >&2"
    )
    place = await commands.leave(
        f"head -c {filling} /dev/zero | tr '\\0' o; {script}", call_id=call_id, background=True
    )
    details: list[Any] = []
    follower = other = None
    for pause_s in (0.7, 0.9, 0.6):
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(environment.info, heartbeat_details=details)
        environment.on_heartbeat = lambda *told: details.__setitem__(slice(None), told)
        follower, other = following(commands, place, environment), following(commands, place)
        await asyncio.sleep(pause_s)
        for each in (follower, other):
            each.cancel()
        await asyncio.wait([follower, other])
    result = await commands.follow_to_the_end(place)
    expected = "o" * filling + (LABEL + "o" * (SEGMENT_BYTES - len(SECRET))) * 4
    assert await commands.stored(call_id) == expected.encode()
    assert await commands.stored(call_id, "stderr") == f"{LABEL}\n".encode()
    assert (result.stdout_bytes, result.redactions) == (filling + 4 * SEGMENT_BYTES, 5)
    assert {len(found) for found in written.values()} == {1}, "whoever writes a segment writes the same"
    for data in (await objects_of(commands, call_id)).values():
        assert shows_no_part(data)


@pytest.mark.storage("folder", "s3")
async def test_no_half_of_a_secret_is_told_beside_what_was_left_out(commands: Commands) -> None:
    """Of much output the beginning and the end are told; here each is cut in the middle of a secret."""
    head, tail = 64 * 1024 // 5, 64 * 1024 - 64 * 1024 // 5
    for cut in (3, 4, 10, len(SECRET) - 4):
        script = (
            # What colours take is not shown, so that what is beside the gap is.
            "o() { yes \"$(printf '\\033[0m')\" | head -c $(($1 / 5 * 5)); yes o | head -c $(($1 % 5)); }; "
            f"o {head - cut}; printf '{SECRET}'; o 100000; "
            f"printf '{SECRET}'; o {tail - cut}; sleep 0.3"
        )
        result = await commands.follow_to_the_end(await commands.leave(script, background=True, output="full"))
        assert (result.truncated, result.redactions) == (True, 2)
        assert shows_no_part(result.stdout)
        assert "bytes left out" in result.stdout
        assert result.stdout_bytes == head + tail + 100_000 - 2 * cut + 2 * len(SECRET)


async def test_a_secret_that_becomes_known_while_the_command_runs_is_redacted_from_then_on(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "FOLLOW_WAIT_S", 0.5)
    call_id = new_call_id()
    script = f"echo fresh-secret; until [ -e {call_id}-go ]; do sleep 0.1; done; echo fresh-secret"
    place = await commands.leave(script, call_id=call_id, background=True)
    follower = following(commands, place)
    while await commands.stored(call_id) != b"fresh-secret\n":
        await asyncio.sleep(0.05)
    commands.secrets.known = {"PHRASE": SECRET, "FRESH": "fresh-secret"}
    await asyncio.sleep(1.0)
    await commands.sh(f"touch {call_id}-go")
    (progress,) = (await follower).ended
    assert await commands.stored(call_id) == b"fresh-secret\n[redacted:FRESH]\n"
    assert (await commands.result(progress)).stdout == "[redacted:FRESH]\n[redacted:FRESH]\n"


@pytest.mark.parametrize("cap", [100_000, 100_007, 100_020])
async def test_output_that_is_cut_at_its_cap_does_not_end_in_half_of_a_secret(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, cap: int
) -> None:
    monkeypatch.setattr(following_module, "BEYOND_CAP_BYTES", 0)
    script = f"head -c 99990 /dev/zero | tr '\\0' o; printf '{SECRET}'; head -c 200000 /dev/zero | tr '\\0' o; sleep 60"
    place = await commands.leave(script, output_cap_bytes=cap, background=True)
    result = await commands.follow_to_the_end(place)
    stored = await commands.stored(place.call_id)
    assert stored.startswith(b"o" * 99_990)
    assert shows_no_part(stored)
    assert f"first {cap} bytes" in (result.hint or "")


async def test_what_is_told_of_an_interrupted_command_is_what_was_stored_of_it(commands: Commands) -> None:
    place = await commands.leave(f"echo {SECRET}; echo {SECRET} >&2; printf '{SECRET[:8]}'; sleep 60", background=True)
    follower = following(commands, place)
    while not await commands.stored(place.call_id):
        await asyncio.sleep(0.05)
    follower.cancel()
    await asyncio.wait([follower])
    step = TellInterruptedStep(ref=commands.ref, commands=[place])
    (progress,) = (await commands.provider.run(commands.interruptions.tell_interrupted, step)).ended
    result = await commands.result(progress)
    assert (result.stdout, result.stderr, result.redactions) == (f"{LABEL}\n", f"{LABEL}\n", 2)
    assert (result.stdout_bytes, result.stderr_bytes) == (len(SECRET) + 1, len(SECRET) + 1)
    await commands.stop(place.call_id, grace_s=0)


async def test_a_secret_that_colours_keep_apart_is_told_by_no_answer(commands: Commands) -> None:
    coloured = f"{SECRET[:7]}\\033[1m{SECRET[7:]}\\033[0m"
    result = await commands.run(f"printf '{coloured}\\n'")
    assert result.stdout == f"{LABEL}\n"
    told = await commands.read(result.call_id, status="completed")
    assert told.stdout == f"{LABEL}\n"


async def test_nothing_is_run_while_nobody_knows_what_must_not_be_shown(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(session_id: str, owner: str, *, fresh: bool = False) -> dict[str, str]:
        raise ConnectionError("the vault is away")

    call_id = new_call_id()
    monkeypatch.setattr(commands.secrets, "of", unknown)
    with pytest.raises(ConnectionError):
        await commands.begin(f"touch {call_id}-ran")
    assert await commands.sh(f"ls {call_id}-ran 2>/dev/null || echo none") == "none\n"


async def test_a_redactor_is_made_once_for_the_same_secrets() -> None:
    secrets = SecretsUnderTest()
    redactors = Redactors(secrets)
    one = SandboxRef(session_id="a", sandbox_id="box", owner="me", generation=1)
    other = SandboxRef(session_id="b", sandbox_id="box", owner="you", generation=1)
    secrets.known = {"A": "hunter2hunter2"}
    first = await redactors.of(one)
    secrets.known = {"A": "hunter2hunter2"}
    assert await redactors.of(other) is first
    secrets.known = {"A": "hunter3hunter3"}
    assert await redactors.of(one) is not first


async def test_redactors_are_kept_by_the_weight_of_what_they_search_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.redactors.KEPT_BYTES", 250_000)
    secrets = SecretsUnderTest()
    redactors = Redactors(secrets)
    ref = SandboxRef(session_id="a", sandbox_id="box", owner="me", generation=1)
    made = []
    for number in range(4):
        secrets.known = {"A": f"{number:04}" * 2500}
        made.append(await redactors.of(ref))
    weight = made[0].pattern_bytes
    assert 80_000 < weight < 125_000, "so that two are kept"
    for number, kept in ((3, True), (2, True), (1, False), (0, False)):
        secrets.known = {"A": f"{number:04}" * 2500}
        assert (await redactors.of(ref) is made[number]) is kept
    secrets.known = {f"S{number}": f"{number:04}" * 2500 for number in range(4)}
    large = await redactors.of(ref)
    assert large.pattern_bytes > 250_000
    assert await redactors.of(ref) is large, "the latest is kept whatever it weighs"


def test_what_was_replaced_counts_neither_as_left_out_nor_as_more_output() -> None:
    redactor = Redactor({"PHRASE": SECRET})
    raw = Captured(1000, f"begin {SECRET} ".encode(), f"{SECRET} end\n".encode())
    report = redacted(CallReport("c", "ended", exit_code=0, stdout=raw), redactor)
    assert report.stdout.unseen == raw.unseen
    result = exec_result("c", report, "full")
    assert result.redactions == 2
    assert result.stdout == f"begin {LABEL} \n[... {raw.unseen} bytes left out ...]\n{LABEL} end\n"


@pytest.mark.parametrize("cut", range(1, len(SECRET)))
def test_at_most_three_bytes_of_a_secret_stand_beside_a_gap(cut: int) -> None:
    raw = Captured(1000, f"begin {SECRET[:cut]}".encode(), f"{SECRET[-cut:]} end\n".encode())
    report = redacted(CallReport("c", "ended", exit_code=0, stdout=raw), Redactor({"PHRASE": SECRET}))
    assert report.stdout.unseen == raw.unseen
    assert shows_no_part(exec_result("c", report, "full").stdout)


def test_a_window_of_pieces_begins_and_ends_outside_of_secrets() -> None:
    pieces = [Piece(b"abc", 3, None), Piece(b"[x]", 10, "x"), Piece(b"def", 3, None)]
    windows = {offset: window_of(pieces, 100, offset, 100) for offset in range(100, 118)}
    assert (windows[100].end, windows[100].data, windows[100].redactions) == (116, b"abc[x]def", 1)
    assert (windows[103].offset, windows[103].data) == (103, b"[x]def")
    for offset in range(104, 113):
        assert (windows[offset].offset, windows[offset].data, windows[offset].redactions) == (113, b"def", 0)
    assert (windows[116].offset, windows[116].size, windows[117].offset) == (116, 0, 117)
    assert window_of(pieces, 100, 101, 3).data == b"bc[x]"
    assert window_of(pieces, 100, 101, 3).end == 113
    assert window_of(pieces, 100, 101, 2).end == 103


def test_text_without_colours_is_searched_once() -> None:
    redactor = Redactor({"PHRASE": SECRET})
    assert as_text(f"{LABEL} \x1b[1mcorrect\x1b[0m+horse/baccarat".encode(), redactor) == f"{LABEL} {LABEL}"
    assert as_text(b"Authorization: Bearer [redacted:TOKEN]\n", redactor) == "Authorization: Bearer [redacted:TOKEN]\n"
