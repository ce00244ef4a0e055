"""Limits by cgroup v2, where this process may divide its own cgroup.

That is so in a unit or scope with delegation (`systemd-run --user --scope -p Delegate=yes`) and in some containers.
Elsewhere there is no such limit, and the sandboxes watch themselves.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

#: Processes may live only in the leaves of a divided cgroup, so the server moves into one of its own.
_SERVER = "sandhold-server"
_CPU_PERIOD_US = 100_000
#: How long a cgroup may count as busy after its last process has ended.
_REMOVE_WITHIN_S = 1.0


class Cgroup:
    """The cgroup of one sandbox."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self) -> None:
        """Remove the cgroup of a sandbox that has ended."""
        deadline = time.monotonic() + _REMOVE_WITHIN_S
        while True:
            try:
                self._folder.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    log.warning("cgroup %s was not removed: %s", self._folder, error)
                    return
                time.sleep(0.01)
            else:
                return


class Cgroups:
    """This process's own cgroup, divided; made by `open`."""

    def __init__(self, folder: Path, controllers: frozenset[str]) -> None:
        self._folder = folder
        self.controllers = controllers

    @classmethod
    def open(cls, proc: Path = Path("/proc/self")) -> Cgroups | None:
        """Divide our cgroup and move this process into a leaf of it.

        None, with nothing changed, where that cannot be done.
        """
        folder = _own_folder(proc)
        if folder is None or not os.access(folder / "cgroup.subtree_control", os.W_OK):
            return None
        try:
            offered = set((folder / "cgroup.controllers").read_text().split()) & {"memory", "pids", "cpu"}
            if "memory" not in offered:
                return None
            leaf = folder / _SERVER
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            log.debug("the cgroup %s cannot be divided: %s", folder, error)
            return None
        try:
            (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(offered)))
        except OSError as error:
            # Other processes share our cgroup, so it may not hand controllers down.
            log.debug("the cgroup %s cannot hand controllers down: %s", folder, error)
            with contextlib.suppress(OSError):
                (folder / "cgroup.procs").write_text(str(os.getpid()))
                leaf.rmdir()
            return None
        return cls(folder, frozenset(offered))

    def admit(self, name: str, pids: list[int], *, memory_bytes: int, processes: int, cpus: int) -> Cgroup:
        """Put the processes of a sandbox under limits; 0 means none. Raises OSError."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        settings: dict[str, str] = {}
        if memory_bytes:
            settings["memory.max"] = str(memory_bytes)
            settings["memory.swap.max"] = "0"
        if processes and "pids" in self.controllers:
            settings["pids.max"] = str(processes)
        if cpus and "cpu" in self.controllers:
            settings["cpu.max"] = f"{cpus * _CPU_PERIOD_US} {_CPU_PERIOD_US}"
        for setting, value in settings.items():
            # Without swap accounting the second file is missing, and there is nothing to limit.
            if setting != "memory.swap.max" or (folder / setting).exists():
                (folder / setting).write_text(value)
        for pid in pids:
            (folder / "cgroup.procs").write_text(str(pid))
        return Cgroup(folder)


def _own_folder(proc: Path) -> Path | None:
    """Our folder in the cgroup v2 file system."""
    try:
        memberships = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::/") for line in memberships if line.startswith("0::/")), None)
    mount = next((line.split()[4] for line in mounts if " - cgroup2 " in line), None)
    return None if own is None or mount is None else Path(mount, own)
