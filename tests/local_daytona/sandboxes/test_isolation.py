"""The walls of a sandbox, tried from inside and looked at from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import sysconfig
import time
import uuid
from pathlib import Path

import pytest

from sandhold.local_daytona import isolation
from sandhold.local_daytona.interface import IsolationUnavailable
from sandhold.local_daytona.isolation import Isolation
from tests.local_daytona.sandboxes.boxes import Box, Boxes, all_gone, processes_named, running_boxes, started

CANARY = "canary-5d41402abc4b"


async def test_the_machines_loopback_cannot_be_reached(box: Box) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    attempt = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
    async with server:
        assert "Connection refused" in (await box.process.exec(f'python3 -c "{attempt}"')).result


async def test_the_machines_abstract_sockets_cannot_be_reached(box: Box) -> None:
    name = f"sandhold-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        attempt = f"import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}')"
        assert "Connection refused" in (await box.process.exec(f'python3 -c "{attempt}"')).result


async def test_the_network_has_no_interface_but_its_own_loopback(box: Box) -> None:
    assert await box.run("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '") == "lo\n"


async def test_nothing_of_the_machines_environment_is_visible(tmp_path: Path) -> None:
    async with running_boxes(tmp_path / "data", env={"SECRET": CANARY}) as boxes:
        box = await boxes.start("box")
        assert CANARY not in await box.run(
            "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
        )
        assert (await box.process.exec("cat /proc/1/environ")).exit_code != 0


async def test_homes_data_folder_and_other_sandboxes_are_not_visible(box: Box, boxes: Boxes) -> None:
    other = await boxes.start("other")
    await other.run(f"touch {CANARY}")
    assert (box.folder.parent / "other" / "home" / CANARY).exists()
    assert await box.run(f"find / -name {CANARY} 2>/dev/null; true") == ""
    for hidden in (boxes.data_dir, box.folder, Path.home() / ".ssh", Path("/etc/shadow"), Path("/sys"), Path("/mnt")):
        assert (await box.process.exec(f"ls -d {hidden}")).exit_code != 0
    assert await box.run("ls /home") == "daytona\n"
    await other.kill()


async def test_nobody_is_root_inside_or_outside(box: Box, boxes: Boxes) -> None:
    assert await box.run("id -u; id -g; id -G") == "1000\n1000\n1000\n"
    marker = str(time.time_ns())
    await box.run(f"setsid sleep {marker} </dev/null >/dev/null 2>&1 &")
    outside = await started(f"sleep\0{marker}", 1)
    assert boxes.server.pid is not None
    for pid in (*outside, boxes.server.pid):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert "0" not in status["Uid"].split() + status["Gid"].split() + status["Groups"].split()
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert "NoNewPrivs:\t1" in Path(f"/proc/{outside[0]}/status").read_text()


async def test_no_capability_and_no_new_user_namespace_can_be_had(box: Box) -> None:
    assert await box.run("grep -E 'Cap(Eff|Prm|Bnd|Inh|Amb)' /proc/self/status | cut -f2 | sort -u") == f"{'0' * 16}\n"
    assert (await box.process.exec("unshare --user true")).exit_code != 0
    assert (await box.process.exec("mount -t tmpfs none /tmp")).exit_code != 0


async def test_commands_cannot_touch_the_toolbox(box: Box) -> None:
    send_all = "import os, signal\nfor number in signal.valid_signals(): os.kill(1, number)"
    await box.run(f"python3 -c '{send_all}'")
    await asyncio.sleep(0.1)
    for path in ("environ", "mem", "maps", "fd", "root", "cwd/"):
        assert (await box.process.exec(f"ls -l /proc/1/{path} >/dev/null && cat /proc/1/{path}")).exit_code != 0
    attach = "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0)"
    await box.run(f'python3 -c "{attach}"')


async def test_the_system_is_read_only(box: Box) -> None:
    for folder in (
        "/",
        "/usr",
        "/etc",
        "/dev",
        "/home",
        "/opt",
        "/opt/daytona/toolbox",
        "/run",
        "/var",
        os.path.realpath(sys.base_prefix),
    ):
        assert (await box.process.exec(f"touch {folder}/written")).exit_code != 0, folder
    for setting in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/etc/passwd", "/usr/bin/env"):
        assert (await box.process.exec(f"echo x >> {setting}")).exit_code != 0, setting
    await box.run("touch ~/written /tmp/written /var/tmp/written /dev/shm/written")


async def test_other_namespaces_are_its_own(box: Box) -> None:
    assert await box.run("hostname; cat /etc/hostname") == "sandbox\nsandbox\n"
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    inside = await box.run("readlink " + " ".join(f"/proc/self/ns/{kind}" for kind in kinds))
    assert not set(inside.split()) & {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}


async def test_the_tools_of_the_machine_work_inside(box: Box) -> None:
    await box.run("python3 -c 'import sys, ssl, sqlite3; assert sys.version_info >= (3, 11)'")
    await box.run("git init -q repo && cd repo && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x")
    await box.run("echo x > x && tar czf x.tgz x && tar tzf x.tgz && sh -c true && bash -c 'echo <(true)'")
    await box.run("python3 -c 'import multiprocessing as m; m.Lock(); import pty; pty.spawn([\"true\"])'")
    assert await box.run("getent hosts localhost; echo ok") != ""


async def test_a_virtual_environment_can_be_made_with_the_servers_interpreter(box: Box) -> None:
    interpreter = os.path.realpath(sys.executable)
    await box.run(f"{interpreter} -m venv --without-pip env && env/bin/python -c 'import sys; print(sys.prefix)'")


async def test_without_a_new_enough_system_python_the_servers_interpreter_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_OLDEST_PYTHON", (99, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    bubblewrap = tmp_path / "bwrap"
    bubblewrap.write_text("#!/bin/sh\nexit 0\n")
    bubblewrap.chmod(0o755)
    monkeypatch.setattr(isolation, "_find_bubblewrap", lambda: str(bubblewrap))
    found = Isolation.probe(tmp_path / "isolation")
    folder = found.path.split(":")[1]
    arguments = found.arguments(tmp_path, isolation.MemorySizes(1, 1), {})
    link = arguments.index(f"{folder}/python3")
    assert arguments[link - 2 : link] == ["--symlink", os.path.realpath(sys.executable)]


async def test_killing_a_sandbox_ends_everything_in_it_at_once_and_keeps_its_disk(boxes: Boxes) -> None:
    box = await boxes.start("killed")
    marker = str(time.time_ns())
    await box.run(f"touch kept; for i in 1 2 3; do setsid sleep {marker} </dev/null >/dev/null 2>&1 & done")
    assert await started(f"sleep\0{marker}", 3)
    assert await box.kill() == "killed"
    assert not processes_named(f"sleep\0{marker}")
    assert await box.kill() == "killed"
    status, answer = await box.ask("POST", "/process/execute", json={"command": "true"})
    assert (status, answer["statusCode"]) == (502, 502)
    again = await boxes.start("killed")
    assert await again.run("ls") == "kept\n"
    await again.kill()


async def test_a_home_without_any_rights_is_no_way_to_lock_oneself_out(boxes: Boxes) -> None:
    box = await boxes.start("locked")
    await box.run("touch kept; chmod 000 ~")
    await box.kill()
    again = await boxes.start("locked")
    assert await again.run("ls") == "kept\n"
    await again.kill()


async def test_a_sandbox_that_cannot_start_says_why_and_leaves_nothing(boxes: Boxes) -> None:
    (boxes.data_dir / "sandboxes").mkdir(exist_ok=True)
    (boxes.data_dir / "sandboxes" / "blocked").write_text("a file where its folder belongs")
    for _ in range(2):
        async with boxes.http.post(f"{boxes.url}/start/blocked", json={}) as answer:
            assert answer.status == 500
            assert "File exists" in (await answer.json())["error"] or "Not a directory" in await answer.text()


async def test_a_start_that_is_cancelled_leaves_no_sandbox(boxes: Boxes) -> None:
    for delay_s in (0.0, 0.01, 0.02, 0.03, 0.05):
        async with boxes.http.post(f"{boxes.url}/start-and-cancel/cancelled", json={"after_s": delay_s}) as answer:
            assert answer.status == 200, await answer.text()


async def test_a_sandbox_that_dies_by_itself_is_noticed(boxes: Boxes) -> None:
    box = await boxes.start("dies")
    toolbox = processes_named("from toolbox.main")
    mine = [pid for pid in toolbox if str(box.folder / "home") in Path(f"/proc/{pid}/mountinfo").read_text()]
    running = asyncio.create_task(box.ask("POST", "/process/execute", json={"command": "sleep 1000"}))
    await asyncio.sleep(0.2)
    assert len(mine) == 1
    os.kill(mine[0], signal.SIGKILL)
    assert (await box.ended()).startswith("the sandbox ended by itself")
    assert (await running)[0] == 502


async def test_a_killed_server_takes_every_sandbox_with_it(tmp_path: Path) -> None:
    marker = str(time.time_ns())
    async with running_boxes(tmp_path / "data") as boxes:
        for number in range(3):
            box = await boxes.start(f"box-{number}")
            await box.run(f"setsid sleep {marker} </dev/null >/dev/null 2>&1 &")
        assert await started(f"sleep\0{marker}", 3)
        boxes.server.kill()
        await boxes.server.wait()
        assert await all_gone(f"sleep\0{marker}")


async def test_a_deep_data_folder_and_a_long_id_are_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-rather-long-name-for-a-folder"] * 20)
    async with running_boxes(deep) as boxes:
        box = await boxes.start("x" * 200)
        assert await box.run("echo hello") == "hello\n"


async def test_no_mount_is_left_on_the_machine(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    async with running_boxes(tmp_path / "data") as boxes:
        await (await boxes.start("box")).run("true")
        assert Path("/proc/self/mountinfo").read_text() == before
    assert Path("/proc/self/mountinfo").read_text() == before


async def test_a_data_folder_is_used_again(tmp_path: Path) -> None:
    for content in ("", "kept\n"):
        async with running_boxes(tmp_path / "data") as boxes:
            box = await boxes.start("box")
            assert await box.run("cat file 2>/dev/null; echo kept > file") == content


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user gives nothing away")
async def test_root_does_not_give_away_a_folder_that_is_no_data_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    give_up = "import sys, pathlib; from sandhold.local_daytona.privileges import give_up_root"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"{give_up}; give_up_root(pathlib.Path(sys.argv[1]))", str(tmp_path), stderr=-1
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"not empty" in said
    assert (tmp_path / "thesis.tex").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own the folders that are closed to the server")
async def test_root_gives_itself_away_wherever_checkout_interpreter_and_data_lie(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    checkout = closed / "inner" / "checkout"
    checkout.mkdir(parents=True)
    (checkout / "secret").write_text(CANARY)
    (closed / "link").symlink_to("inner")
    for folder in (closed, closed / "inner"):
        folder.chmod(0o700)
    package = Path(isolation.__file__).parents[1]
    await _copy(package, checkout / "sandhold")
    await _copy(Path(__file__).with_name("server.py"), checkout / "server.py")
    # An environment made here, whose interpreter is another closed place's where this one runs from such a place.
    environment = closed / "link" / "environment"
    await _call(sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(environment))
    packages = sysconfig.get_path("purelib")
    site = next((environment / "lib").glob("python*")) / "site-packages"
    (site / "others.pth").write_text(f"{packages}\n")
    data = closed / "link" / "checkout" / "data"
    python = str(environment / "bin" / "python")
    script = closed / "link" / "checkout" / "server.py"
    async with running_boxes(data, env={"PYTHONPATH": str(checkout)}, python=python, script=script) as boxes:
        box = await boxes.start("box")
        assert await box.run("echo hello") == "hello\n"
        assert boxes.server.pid is not None
        seen = Path(f"/proc/{boxes.server.pid}/root{checkout}")
        assert (seen / "sandhold" / "__init__.py").exists()
        assert not (seen / "secret").exists()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert (checkout / "secret").read_text() == CANARY


async def _copy(source: Path, target: Path) -> None:
    await _call("cp", "-r", str(source), str(target))


async def _call(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("bwrap: No permissions to creating new namespace, likely because the kernel does not allow", "seccomp"),
        ("bwrap: Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded", "sysctl"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "systempaths=unconfined"),
        ("bwrap: setting up uid map: Permission denied", "apparmor_restrict_unprivileged_userns"),
        ("bwrap: something new", "something new"),
    ],
)
def test_a_machine_that_cannot_isolate_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, advice: str
) -> None:
    bubblewrap = tmp_path / "bwrap"
    bubblewrap.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    bubblewrap.chmod(0o755)
    monkeypatch.setattr(isolation, "_find_bubblewrap", lambda: str(bubblewrap))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(IsolationUnavailable, match=advice):
        Isolation.probe(tmp_path / "isolation")


def test_a_system_that_is_not_linux_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(IsolationUnavailable, match="Linux"):
        Isolation.probe(tmp_path)


def test_sandboxes_are_never_started_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(IsolationUnavailable, match="never started as root"):
        Isolation.probe(tmp_path)
