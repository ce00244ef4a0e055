"""The guard: a process beside the stack that outlives it by a moment, and takes its children with it.

A child cannot be trusted to notice its parent's death: the kernel's parent-death signal is cleared when a
process changes its user, as the local Daytona server does when it is started as root. The guard notices by
end-of-file on its standard input, whose only writer is the stack. Whatever killed the stack, every process
group on the guard's list is killed then, and the stack's file is removed.

Run as `python -I -S guard_program.py STACK_FILE`; reads lines `+ PID` and `- PID`. Standard library only.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Keep the list until end-of-file; afterwards nothing on it is alive."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    leaders: set[int] = set()
    for line in sys.stdin:
        sign, pid = line.split()
        if sign == "+":
            leaders.add(int(pid))
        else:
            leaders.discard(int(pid))
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(sys.argv[1])  # noqa: PTH108 - pathlib would double the start-up time


if __name__ == "__main__":
    main()
