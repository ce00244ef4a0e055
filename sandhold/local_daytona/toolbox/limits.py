"""What the sandbox may use of the machine, watched from inside.

Without cgroup controllers nobody else counts for us, so a thread looks at `/proc` ten times a second while
anything runs. Memory above the limit costs the largest process its life, as it would under a cgroup; a
full disk costs the processes that are writing to it theirs. Between two looks a fast process can
overshoot: these limits keep honest mistakes from hurting the machine, and say so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time

from .failures import Failure

TYPE_CHECKING = False  # importing typing would cost every sandbox 4 ms and 1 MB
if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOK_S = 0.1
#: At most this share of one core goes into looking.
_DUTY = 0.1
#: A disk is measured anew after this time even when the file system's free space says nothing grew.
_RESCAN_S = 5.0
#: Above the limit by this factor every process is killed, not only those that are seen writing.
_RUNAWAY = 1.25
#: How long a killed process may take to give its memory back before another one is chosen.
_DYING_S = 2.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_BLOCK_BYTES = 512
_MEMORY_FILE_SYSTEMS = ("/tmp", "/dev/shm")  # noqa: S108 - these two are mounted for each sandbox


def processes() -> Iterator[int]:
    """Every process of the sandbox but the toolbox itself."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Memory:
    """The sandbox's memory: its processes and its file systems in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._dying: tuple[int, float] | None = None

    def look(self) -> None:
        """Kill the largest process when the sandbox uses more than its limit."""
        if self._still_dying():
            return
        fixed = sum(_used_bytes(path) for path in _MEMORY_FILE_SYSTEMS)
        # Resident size counts shared pages once per process: too much, but cheap. Only above the limit the
        # proportional sizes are read, which costs the kernel a walk through the page tables.
        resident = {pid: _resident_bytes(pid) for pid in processes()}
        if fixed + sum(resident.values()) <= self._limit_bytes:
            return
        exact = {pid: _proportional_bytes(pid, size) for pid, size in resident.items()}
        private = sum(own for own, _ in exact.values())
        # A file in memory that is mapped counts on both sides; it exists once.
        shared = max(fixed, sum(share for _, share in exact.values()))
        if not exact or private + shared <= self._limit_bytes:
            return
        largest = max(exact, key=lambda pid: sum(exact[pid]))
        _kill(largest)
        self._dying = (largest, time.monotonic() + _DYING_S)

    def _still_dying(self) -> bool:
        if self._dying is None:
            return False
        pid, patience_ends = self._dying
        if time.monotonic() < patience_ends and _resident_bytes(pid) > 0:
            return True
        self._dying = None
        return False


def _used_bytes(path: str) -> int:
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0  # gone meanwhile


def _proportional_bytes(pid: int, resident: int) -> tuple[int, int]:
    """The process's share of private memory, swapped or not, and of memory that others may hold as well."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in file.readlines()[1:]}
    except OSError:
        return resident, 0  # a process that forbids being looked at is counted in full
    return sizes[b"Pss_Anon:"] + sizes[b"SwapPss:"], sizes[b"Pss_Shmem:"]


class _OpenFile:
    def __init__(self, pid: int, found: os.stat_result, writable: bool) -> None:
        self.pid = pid
        self.found = found
        self.writable = writable


def _open_files(device: int) -> Iterator[_OpenFile]:
    """The regular files on `device` that processes of the sandbox hold open."""
    for pid in processes():
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                found = os.stat(f"/proc/{pid}/fd/{descriptor}")
                if found.st_dev != device or not stat.S_ISREG(found.st_mode):
                    continue
                with open(f"/proc/{pid}/fdinfo/{descriptor}", "rb") as file:
                    flags = next(line for line in file if line.startswith(b"flags:"))
            except (OSError, StopIteration):
                continue
            yield _OpenFile(pid, found, int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY)


class Disk:
    """The sandbox's home directory on the host's file system."""

    def __init__(self, home: str, limit_bytes: int) -> None:
        self._home = home
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._uploaded_bytes = 0
        self._free_then_bytes = 0
        self._measured_at = float("-inf")
        self._measure_again_at = 0.0

    def admit(self, size: int) -> None:
        """Count `size` bytes that an upload is about to write. Raises Failure when the disk is full."""
        if not self._limit_bytes:
            return
        with self._lock:
            self._uploaded_bytes += size
            if self._measured_at >= 0 and self._used_bytes + self._uploaded_bytes <= self._limit_bytes:
                return
            self._measure()
            full = self._used_bytes + size > self._limit_bytes
            self._uploaded_bytes = size
        if full:
            reason = f"no space left on device: the sandbox's disk is limited to {self._limit_bytes} bytes"
            raise Failure(500, "INTERNAL_SERVER_ERROR", reason)

    def look(self) -> None:
        """Kill the processes that write while the disk is above its limit."""
        with self._lock:
            now = time.monotonic()
            grown = max(0, self._free_then_bytes - _free_bytes(self._home))
            may_be_full = self._used_bytes + grown > self._limit_bytes
            if now >= self._measure_again_at and (may_be_full or now - self._measured_at > _RESCAN_S):
                self._measure()
            used = self._used_bytes
        if used <= self._limit_bytes:
            return
        if used > self._limit_bytes * _RUNAWAY:
            doomed = set(processes())
        else:
            doomed = {file.pid for file in _open_files(os.stat(self._home).st_dev) if file.writable}
        for pid in doomed:
            _kill(pid)
        self._measure_again_at = 0.0

    def _measure(self) -> None:
        began = time.monotonic()
        self._free_then_bytes = _free_bytes(self._home)
        self._used_bytes = tree_bytes(self._home)
        self._uploaded_bytes = 0
        self._measured_at = time.monotonic()
        self._measure_again_at = self._measured_at + (self._measured_at - began) / _DUTY


def _free_bytes(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize


def tree_bytes(home: str) -> int:
    """Disk space below `home`, each file once, with the deleted files that a process still holds open.

    Directories that their owner has made unreadable, or that lie deeper than a path can say, are not counted.
    """
    device = os.stat(home).st_dev
    seen: set[int] = set()
    total = 0
    pending = [home]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                    if found.st_ino in seen:
                        continue
                    seen.add(found.st_ino)
                total += found.st_blocks * _BLOCK_BYTES
                if stat.S_ISDIR(found.st_mode):
                    pending.append(entry.path)
    for file in _open_files(device):
        if file.found.st_nlink == 0 and file.found.st_ino not in seen:
            seen.add(file.found.st_ino)
            total += file.found.st_blocks * _BLOCK_BYTES
    return total


class Watch:
    """Looks at memory and disk while anything runs; a limit of 0 is none."""

    def __init__(self, something_runs: threading.Event, home: str, memory_bytes: int, disk_bytes: int) -> None:
        self._something_runs = something_runs
        self._memory = Memory(memory_bytes) if memory_bytes else None
        self.disk = Disk(home, disk_bytes)
        self._disk = self.disk if disk_bytes else None
        self.needed = bool(memory_bytes or disk_bytes)

    def for_ever(self) -> None:
        """Look for as long as the sandbox lives; costs nothing while only the toolbox runs."""
        while True:
            self._something_runs.wait()
            began = time.monotonic()
            # A look that fails, for example for want of descriptors, is repeated: this thread is the limit.
            with contextlib.suppress(OSError):
                if self._memory is not None:
                    self._memory.look()
                if self._disk is not None:
                    self._disk.look()
            time.sleep(max(_LOOK_S, (time.monotonic() - began) / _DUTY))
            # Cleared before the check: a command that starts in between sets it again.
            self._something_runs.clear()
            if any(processes()):
                self._something_runs.set()
