"""What a server finds after its predecessor ended or was killed, and how the process behaves."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from daytona import AsyncDaytona, CreateSandboxFromSnapshotParams
from daytona.common.errors import DaytonaConflictError, DaytonaNotFoundError

from sandhold.local_daytona import command
from sandhold.local_daytona.command import main
from sandhold.local_daytona.interface import IsolationUnavailable
from sandhold.local_daytona.runtime import BubblewrapRuntime
from sandhold.local_daytona.store import DataFolder, DataFolderDamaged
from tests.local_daytona.conftest import Api, StartTrivial
from tests.local_daytona_server import (
    LocalDaytona,
    ServerDidNotStart,
    running_local_daytona,
)


def named(name: str) -> CreateSandboxFromSnapshotParams:
    return CreateSandboxFromSnapshotParams(name=name)


async def reached(daytona: AsyncDaytona, name: str, state: str) -> None:
    """Returns when there is a sandbox of this name in this state."""
    async with asyncio.timeout(30):
        while not await exists(daytona, name) or (await daytona.get(name)).state != state:
            await asyncio.sleep(0.02)


async def test_a_killed_server_is_followed_by_one_that_knows_its_sandboxes(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with AsyncExitStack() as servers:
        first = await servers.enter_async_context(running_local_daytona(data_dir))
        daytona = await servers.enter_async_context(first.client())
        for name in ("ran", "stopped", "archived"):
            sandbox = await daytona.create(named(name))
            await sandbox.fs.upload_file(name.encode(), "/home/daytona/note")
            if name != "ran":
                await sandbox.stop()
            if name == "archived":
                await sandbox.archive()
        before = {row.name: row.id async for row in daytona.list()}
        organization = sandbox.organization_id
        await first.kill()

        # At the same address, so that the same client goes on.
        port = int(first.origin.rsplit(":", 1)[1])
        await servers.enter_async_context(running_local_daytona(data_dir, port=port))
        after = {row.name: (row.id, row.state) async for row in daytona.list()}
        assert after == {
            "ran": (before["ran"], "stopped"),
            "stopped": (before["stopped"], "stopped"),
            "archived": (before["archived"], "archived"),
        }
        with pytest.raises(DaytonaConflictError, match="already exists"):
            await daytona.create(named("ran"))
        for name in before:
            sandbox = await daytona.get(name)
            await sandbox.start()
            assert await sandbox.fs.download_file("/home/daytona/note") == name.encode()
            assert sandbox.organization_id == organization


async def test_a_change_that_was_under_way_is_finished(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with running_local_daytona(data_dir) as first, first.client() as daytona:
        starting = await daytona.create(named("starting"))
        await starting.stop()
        doomed = await daytona.create(named("doomed"))
        ephemeral = await daytona.create(CreateSandboxFromSnapshotParams(name="ephemeral", ephemeral=True))
        await first.faults.add(effect="start_delay", seconds=600)
        await first.faults.add(effect="delete_hangs")
        await doomed.delete()
        api = Api(first.http, first.origin)
        await api.ask("POST", "/api/sandbox/starting/start")
        create = asyncio.create_task(api.ask("POST", "/api/sandbox", json={"name": "creating"}))
        await reached(daytona, "creating", "creating")
        await first.kill()
        await asyncio.gather(create, return_exceptions=True)

    async with running_local_daytona(data_dir) as second, second.client() as daytona:
        await reached(daytona, "creating", "started")
        await reached(daytona, "starting", "started")
        for sandbox_id in (doomed.id, ephemeral.id):
            async with asyncio.timeout(20):
                while await exists(daytona, sandbox_id):
                    await asyncio.sleep(0.02)
        assert {row.name async for row in daytona.list()} == {"creating", "starting"}
        assert (await (await daytona.get("creating")).process.exec("echo hi")).result == "hi\n"


async def exists(daytona: AsyncDaytona, key: str) -> bool:
    try:
        await daytona.get(key)
    except DaytonaNotFoundError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_asked_to_end_ends_cleanly_with_its_sandboxes(tmp_path: Path, number: signal.Signals) -> None:
    data_dir = tmp_path / "data"
    async with running_local_daytona(data_dir) as server, server.client() as daytona:
        sandbox = await daytona.create(named("busy"))
        marker = f"{sandbox.id[:8]}77777"
        command = asyncio.create_task(sandbox.process.exec(f"exec -a {marker} sleep 600 || sleep 600"))
        while not _processes_of(sandbox.id):
            await asyncio.sleep(0.02)
        server.process.send_signal(number)

        assert await asyncio.wait_for(server.process.wait(), 20) == 0
        await asyncio.gather(command, return_exceptions=True)
        assert server.process.stdout is not None
        assert await server.process.stdout.read() == b""
    assert _processes_of(sandbox.id) == []
    assert (data_dir / "sandboxes" / sandbox.id / "home").is_dir()
    said = (tmp_path / "data.log").read_text()
    for what in ("memory", "processes", "disk"):
        assert f"limit on {what}: " in said


async def test_a_second_server_on_one_data_folder_is_refused(local_daytona: LocalDaytona) -> None:
    with pytest.raises(ServerDidNotStart, match="in use by another local Daytona") as caught:
        async with running_local_daytona(local_daytona.data_dir):
            pass
    assert caught.value.code == 1
    assert f"process {local_daytona.process.pid}" in caught.value.said


async def test_a_port_in_use_is_refused_and_touches_no_sandbox(tmp_path: Path, local_daytona: LocalDaytona) -> None:
    port = int(local_daytona.origin.rsplit(":", 1)[1])
    with pytest.raises(ServerDidNotStart, match="in use") as caught:
        async with running_local_daytona(tmp_path / "data", port=port):
            pass
    assert caught.value.code == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_an_address_beyond_loopback_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str) -> None:
    assert main(["--data-dir", str(tmp_path / "data"), "--host", host]) == 2
    assert "loopback" in caplog.text
    assert not (tmp_path / "data").exists()


def test_short_minutes_are_for_tests_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--data-dir", str(tmp_path / "data"), "--minute-seconds", "1"]) == 2
    assert "--faults" in caplog.text


@pytest.mark.parametrize("options", [["--port", "70000"], ["--port", "x"], ["--unisolated"]])
def test_a_wrong_option_is_a_usage_error(options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2


def test_without_isolation_nothing_is_served_and_the_reason_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def unavailable(data_dir: Path, **options: object) -> BubblewrapRuntime:
        raise IsolationUnavailable("user namespaces are switched off; switch them on")

    monkeypatch.setattr(BubblewrapRuntime, "open", unavailable)
    monkeypatch.setattr(command, "give_up_root", lambda data_dir: None)

    assert main(["--data-dir", str(tmp_path / "data")]) == 1
    assert "user namespaces are switched off; switch them on" in caplog.text
    assert capsys.readouterr().out == ""


async def test_a_damaged_record_is_named_and_left_alone(tmp_path: Path, start_trivial: StartTrivial) -> None:
    damaged = tmp_path / "data" / "records" / "x.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text('{"id": "x"')

    with pytest.raises(DataFolderDamaged, match=r"x\.json is not a sandbox's record"):
        async with start_trivial(tmp_path / "data"):
            pass

    assert damaged.read_text() == '{"id": "x"'


async def test_a_record_cut_off_by_a_crash_never_counts(tmp_path: Path, start_trivial: StartTrivial) -> None:
    async with start_trivial(tmp_path / "data") as server:
        sandbox = await server.daytona.create(named("whole"))
    (tmp_path / "data" / "records" / f".{sandbox.id}.json.new").write_text('{"id": "')

    async with start_trivial(tmp_path / "data") as server:
        assert [row.name async for row in server.daytona.list()] == ["whole"]


async def test_without_a_key_one_is_made_and_kept_for_its_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with running_local_daytona(data_dir, api_key="") as server:
        path = data_dir / "api-key"
        key = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        status, _ = await Api(server.http, server.origin, key).ask("GET", "/api/sandbox")
        assert status == 200

    assert key not in data_dir.with_name("data.log").read_text()
    folder = DataFolder.open(data_dir)
    assert folder.api_key() == key
    folder.close()


def _processes_of(sandbox_id: str) -> list[int]:
    """The processes of this machine that have the sandbox's id in their environment or command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if sandbox_id.encode() in text or sandbox_id[:8].encode() + b"77777" in text:
            found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]
