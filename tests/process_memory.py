"""How much memory a process holds, as the kernel counts it."""

from __future__ import annotations

import re
from pathlib import Path


def memory_now(pid: int) -> int:
    """Bytes."""
    return _status(pid, "VmRSS")


def memory_peak(pid: int) -> int:
    """The most it has held since the peak was forgotten, in bytes."""
    return _status(pid, "VmHWM")


def forget_memory_peak(pid: int) -> None:
    """Begin anew with what it holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024
