"""`sandhold secrets` as a script and as a person meets it: a value is never an argument, and never shown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandhold.client import Session
from sandhold.temporal import session_record
from tests.cli.process import COMMAND, finished, sandhold, started
from tests.stack import Stack, environment_of

VALUE = "canary-of-a-secret-1234567890"


@pytest.fixture(scope="module")
def env(module_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return environment_of(module_stack, tmp_path_factory.mktemp("cli"))


@pytest.fixture
async def session(stack: Stack) -> Session:
    return await stack.open()


async def stored(stack: Stack, session: Session) -> dict[str, str]:
    run_id = (await session_record(stack.temporal, session.session_id)).run_id
    found = await stack.vault.secrets(session.session_id, run_id)
    return {name: value.get_secret_value() for name, value in found.items()}


async def test_secrets_are_set_listed_and_removed(stack: Stack, env: Mapping[str, str], session: Session) -> None:
    put = await sandhold("secrets", "set", session.session_id, "TOKEN", "--json", env=env, stdin=f"{VALUE}\n")
    assert (put.code, put.document["session_id"], put.document["name"]) == (0, session.session_id, "TOKEN")
    assert put.document["updated_at"].endswith("Z")
    assert set(put.document) == {"session_id", "name", "created_at", "updated_at"}
    assert "too short" not in put.err
    short = await sandhold("secrets", "set", session.session_id, "PIN", env=env, stdin="1234")
    assert (short.code, "too short" in short.err) == (0, True)
    assert (await sandhold("secrets", "rm", session.session_id, "PIN", env=env)).code == 0
    exact = "two lines\nand a newline\n\n"
    assert (await sandhold("secrets", "set", session.session_id, "b", "-", env=env, stdin=exact)).code == 0
    assert await stored(stack, session) == {"TOKEN": VALUE, "b": exact.removesuffix("\n")}
    listed = await sandhold("secrets", "list", session.session_id, "--json", env=env)
    assert {row["name"] for row in listed.document["secrets"]} == {"TOKEN", "b"}
    for_people = await sandhold("secrets", "list", session.session_id, env=env)
    assert "TOKEN" in for_people.out
    removed = await sandhold("secrets", "rm", session.session_id, "b", "--json", env=env)
    assert removed.document == {"session_id": session.session_id, "name": "b", "removed": True}
    left = await sandhold("secrets", "list", session.session_id, "--json", env=env)
    assert ([row["name"] for row in left.document["secrets"]], left.document["retired"]) == (["TOKEN"], 1)
    assert (listed.document["retired"], "1 earlier values" in left.err) == (0, True)
    again = await sandhold("secrets", "rm", session.session_id, "b", "--json", env=env)
    assert (again.code, again.document["error"]["code"]) == (1, "secret_missing")
    assert set(await stored(stack, session)) == {"TOKEN"}
    for each in (put, listed, for_people, removed):
        assert VALUE not in each.out + each.err


async def test_a_value_on_the_command_line_is_refused_and_not_repeated(
    stack: Stack, env: Mapping[str, str], session: Session
) -> None:
    for arguments in ([VALUE], [VALUE, "more"], ["-", VALUE], [f"--{VALUE}"], [f"-{VALUE}"]):
        refused = await sandhold(
            "secrets", "set", session.session_id, "TOKEN", *arguments, "--json", env=env, stdin="other"
        )
        assert (refused.code, refused.document["error"]["code"]) == (2, "usage"), arguments
        assert "canary" not in refused.out + refused.err
    assert await stored(stack, session) == {}


async def test_what_cannot_be_a_secret_is_a_usage_error(env: Mapping[str, str], session: Session) -> None:
    for name, value in (("PATH", "x"), ("1A", "x"), ("A", ""), ("A", "\n"), ("A", "a\0b"), ("A", "x" * 65537)):
        refused = await sandhold("secrets", "set", session.session_id, name, "--json", env=env, stdin=value)
        assert refused.code == 2, (name, value[:5])
        assert "error" in refused.document
    process = await started("secrets", "set", session.session_id, "A", "--json", env=env)
    assert process.stdin is not None
    process.stdin.write(b"\xff\xfe")
    process.stdin.write_eof()
    binary = await finished(process)
    assert (binary.code, binary.document["error"]["code"]) == (2, "usage")
    largest = await sandhold("secrets", "set", session.session_id, "A", env=env, stdin="x" * 65536 + "\n")
    assert largest.code == 0, largest.err


async def test_at_a_terminal_it_is_asked_for_without_an_echo(
    stack: Stack, env: Mapping[str, str], session: Session
) -> None:
    master, slave = pty.openpty()

    def at_a_terminal() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "secrets", "set", session.session_id, "TOKEN"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=dict(env),
        preexec_fn=at_a_terminal,
    )
    os.close(slave)
    seen = b""

    os.set_blocking(master, False)

    async def shown(what: bytes) -> None:
        nonlocal seen
        async with asyncio.timeout(60):
            while what not in seen:
                with contextlib.suppress(BlockingIOError):
                    seen += os.read(master, 1000)
                await asyncio.sleep(0.02)

    await shown(b"The value of TOKEN:")
    os.write(master, VALUE.encode() + b"\n")
    await shown(b"set TOKEN")
    assert await process.wait() == 0
    os.close(master)
    assert VALUE.encode() not in seen
    assert await stored(stack, session) == {"TOKEN": VALUE}


async def test_only_an_open_session_can_be_given_secrets(stack: Stack, env: Mapping[str, str]) -> None:
    session = await stack.open()
    await sandhold("secrets", "set", session.session_id, "TOKEN", env=env, stdin=VALUE)
    await session.end()
    late = await sandhold("secrets", "set", session.session_id, "B", "--json", env=env, stdin=VALUE)
    assert (late.code, late.document["error"]["code"]) == (3, "session_ended")
    listed = await sandhold("secrets", "list", session.session_id, "--json", env=env)
    assert [row["name"] for row in listed.document["secrets"]] == ["TOKEN"]
    for arguments in (["set", "never-was", "A"], ["list", "never-was"], ["rm", "never-was", "A"]):
        nobody = await sandhold("secrets", *arguments, "--json", env=env, stdin=VALUE)
        assert (nobody.code, nobody.document["error"]["code"]) == (3, "session_not_found")


async def test_a_vault_that_cannot_be_used_has_its_exit_code(
    env: Mapping[str, str], session: Session, tmp_path: Path
) -> None:
    command = ("secrets", "list", session.session_id, "--json")
    (tmp_path / "vault.db").touch(mode=0o600)
    (tmp_path / "vault.db").write_bytes(b"no database " * 1000)
    for changed, code, name in (
        ({"SANDHOLD_DATABASE_URL": "mysql://x"}, 2, "settings"),
        ({"SANDHOLD_KEYRING": str(tmp_path / "none")}, 2, "key_ring_missing"),
        ({"SANDHOLD_DATABASE_URL": f"sqlite:///{tmp_path}/vault.db"}, 1, "vault_damaged"),
        ({"SANDHOLD_DATABASE_URL": "postgresql://a:b@127.0.0.1:1/v"}, 1, "vault_unavailable"),
    ):
        ended = await sandhold(*command, env={**env, **changed})
        assert (ended.code, ended.document["error"]["code"]) == (code, name)
    doctor = await sandhold("doctor", "--json", env={**env, "SANDHOLD_DATABASE_URL": f"sqlite:///{tmp_path}/vault.db"})
    [check] = [each for each in doctor.document["checks"] if each["name"] == "vault"]
    assert (doctor.code, check["ok"], "backup" in check["hint"]) == (1, False, True)
