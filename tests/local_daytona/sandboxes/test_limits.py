"""What one sandbox may use of the machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from daytona import DaytonaError

from sandhold.local_daytona.cgroups import Cgroups
from tests.local_daytona.sandboxes.boxes import Box, Boxes

GIB = 1024**3


async def test_the_server_says_which_limits_hold(boxes: Boxes) -> None:
    limits = await boxes.limits()
    assert {"processes", "memory", "disk"} <= set(limits)
    assert all(limits.values())


async def test_a_fork_bomb_stays_in_its_sandbox_and_the_toolbox_goes_on(box: Box, boxes: Boxes) -> None:
    bomb = (
        "import os, time\n"
        "count = 0\n"
        "while True:\n"
        "    try:\n"
        "        if os.fork() == 0: time.sleep(1000)\n"
        "    except BlockingIOError:\n"
        "        print(count, flush=True); time.sleep(1000)\n"
        "    count += 1\n"
    )
    await box.fs.upload_file(bomb.encode(), "bomb.py")
    await box.run("setsid python3 bomb.py > forked 2>&1 </dev/null &")
    await box.run("for i in $(sh -c 'seq 100'); do [ -s forked ] && exit 0; sleep 0.1; done; exit 1")
    assert int((await box.fs.download_file("forked")).decode()) < 1024
    # Full to the limit: the toolbox still serves, and a command that needs no process of its own still runs.
    assert (await box.process.exec("kill -9 -1")).exit_code == 0
    # The dead may still be counted for a moment, of which the shell complains.
    assert (await box.run("echo usable again | cat")).endswith("usable again\n")
    other = await boxes.start("beside-a-bomb")
    assert await other.run("echo fine | cat") == "fine\n"
    await other.kill()


async def test_a_process_above_the_memory_limit_is_killed_as_by_an_oom_kill(box: Box) -> None:
    hog = "x = []\nwhile True: x.append(b'x' * 10_000_000)"
    beside = asyncio.create_task(box.process.exec("sleep 3; echo untouched"))
    assert (await box.process.exec(f'python3 -c "{hog}"', timeout=30)).exit_code == 137
    assert (await beside).result == "untouched\n"


async def test_memory_shared_by_many_processes_counts_once(box: Box) -> None:
    share = (
        "import mmap, os, time\n"
        "shared = mmap.mmap(-1, 300_000_000)\n"
        "for at in range(0, 300_000_000, 4096): shared[at] = 1\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        sum(shared[at] for at in range(0, 300_000_000, 4096)); time.sleep(1); os._exit(0)\n"
        "print([os.wait()[1] for _ in range(8)])\n"
    )
    await box.fs.upload_file(share.encode(), "share.py")
    assert await box.run("python3 share.py", timeout=60) == f"{[0] * 8}\n"


async def test_file_systems_in_memory_have_a_size(box: Box) -> None:
    for folder, size in (("/tmp", GIB // 2), ("/dev/shm", GIB // 4)):
        assert int(await box.run(f"df -B1 --output=size {folder} | tail -1")) == size
    assert "No space left" in (await box.process.exec("head -c 600M /dev/zero > /tmp/full")).result
    await box.run("rm /tmp/full")


async def test_a_process_that_fills_the_disk_is_killed_and_what_it_wrote_can_be_deleted(boxes: Boxes) -> None:
    box = await boxes.start("disk-hog", disk_gib=1)
    fill = "i=0; while :; do i=$((i+1)); head -c 100000000 /dev/zero > fill$i || exit 9; done"
    assert (await box.process.exec(fill, timeout=60)).exit_code in (9, 137)
    assert _tree_bytes(box.folder) < 1.5 * GIB
    with pytest.raises(DaytonaError, match="no space left on device"):
        await box.fs.upload_file(bytes(1_000_000), "one more")
    await box.run("rm fill*")
    await box.fs.upload_file(b"fits", "one more")
    assert await box.run("sleep 0.3; cat 'one more'; echo x > another; sleep 0.3; cat another") == "fitsx\n"
    await box.kill()


async def test_a_deleted_file_that_is_still_written_counts(boxes: Boxes) -> None:
    box = await boxes.start("hidden-hog", disk_gib=1)
    hidden = "exec 3>hidden 4>hidden2; rm hidden hidden2; head -c 700000000 /dev/zero >&3; cat /dev/zero >&4"
    done = await box.process.exec(f"bash -c '{hidden}'", timeout=60)
    assert done.exit_code in (137, 153)
    await box.kill()


async def test_one_file_cannot_exceed_the_disk(boxes: Boxes) -> None:
    box = await boxes.start("one-large-file", disk_gib=1)
    assert (await box.process.exec("truncate -s 2G sparse")).exit_code != 0
    assert await box.run("truncate -s 1G sparse && stat -c %s sparse") == f"{GIB}\n"
    await box.kill()


async def test_a_limit_of_zero_is_none(boxes: Boxes) -> None:
    box = await boxes.start("unlimited", memory_gib=0, disk_gib=0)
    assert await box.run("truncate -s 20G sparse && stat -c %s sparse") == f"{20 * GIB}\n"
    await box.run("python3 -c \"x = b'x' * 1_300_000_000; import time; time.sleep(0.5)\"")
    await box.kill()


def test_a_cgroup_that_is_ours_is_divided(tmp_path: Path) -> None:
    own = _cgroup_file_system(tmp_path, "memory pids cpu io")
    cgroups = Cgroups.open(tmp_path / "proc")
    assert cgroups is not None
    assert (own / "sandhold-server" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    cgroups.admit("sandbox-7", [7], memory_bytes=GIB, processes=100, cpus=2)
    settings = {file.name: file.read_text() for file in (own / "sandbox-7").iterdir()}
    assert settings == {"memory.max": str(GIB), "pids.max": "100", "cpu.max": "200000 100000", "cgroup.procs": "7"}


def test_a_cgroup_without_a_memory_controller_is_left_alone(tmp_path: Path) -> None:
    own = _cgroup_file_system(tmp_path, "cpu")
    assert Cgroups.open(tmp_path / "proc") is None
    assert not (own / "sandhold-server").exists()


def test_a_cgroup_that_may_not_hand_controllers_down_is_left_as_it_was(tmp_path: Path) -> None:
    own = _cgroup_file_system(tmp_path, "memory")
    (own / "cgroup.subtree_control").unlink()
    (own / "cgroup.subtree_control").mkdir()  # writing to it fails, as it does while others share the cgroup
    assert Cgroups.open(tmp_path / "proc") is None
    assert (own / "cgroup.procs").read_text() == str(os.getpid())


def _cgroup_file_system(tmp_path: Path, controllers: str) -> Path:
    """Folders that look like ours in a cgroup v2 file system with these controllers."""
    own = tmp_path / "cgroup" / "user.slice" / "mine.scope"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text(controllers)
    (own / "cgroup.subtree_control").write_text("")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cgroup").write_text("1:name=systemd:/x\n0::/user.slice/mine.scope\n")
    mount = f"30 24 0:26 / {tmp_path / 'cgroup'} rw,nosuid - cgroup2 cgroup2 rw"
    (tmp_path / "proc" / "mountinfo").write_text(f"24 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mount}\n")
    return own


def _tree_bytes(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
