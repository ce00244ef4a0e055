"""Starting commands and collecting every process that ends.

The toolbox is PID 1, so orphans of the whole sandbox become its children. One thread waits for all of
them; a second waiter (such as the one in the `subprocess` module) would steal exit codes from it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import threading

TYPE_CHECKING = False  # importing typing would cost every sandbox 4 ms and 1 MB
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Exit code of a command that a signal ended: the shell's convention, 128 + signal.
_SIGNALLED = 128
_DESCRIPTORS = 65_536
_CATCHABLE = [s for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)]


class Child:
    """A command that was started; `exited` is set once its exit code is known."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exited = threading.Event()
        self.exit_code = -1


class ChildLimits:
    """What the kernel enforces on every process of the sandbox; 0 means no limit."""

    def __init__(self, processes: int, file_bytes: int) -> None:
        self._processes = processes
        self._file_bytes = file_bytes

    def apply(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # The server has raised its own limit; programs that loop over all descriptors would feel that.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _DESCRIPTORS), most))
        if self._processes:
            resource.setrlimit(resource.RLIMIT_NPROC, (self._processes, self._processes))
        if self._file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._file_bytes, self._file_bytes))


class Processes:
    """The children of the toolbox."""

    def __init__(self, limits: ChildLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._children: dict[int, Child] = {}
        #: Set when there may be processes besides PID 1; watchers wait for it while the sandbox is quiet.
        self.something_runs = threading.Event()
        self._to_collect = threading.Event()

    def start(self, argv: list[str], cwd: str, env: dict[str, str], output: int) -> Child:
        """Start `argv` in a session and process group of its own, with stdout and stderr on `output`.

        Raises OSError with the reason when it cannot be started, ValueError when an argument, the folder or a
        variable cannot be passed to a program at all; nothing is left behind then.
        """
        program = _passable(argv)
        variables = dict(zip(_passable(env), _passable(env.values()), strict=True))
        _passable([cwd])
        told, tell = os.pipe2(os.O_CLOEXEC)
        try:
            # The lock keeps the collector from missing a child that ends before it is registered.
            with self._lock:
                pid = os.fork()
                if pid == 0:
                    self._become(program, cwd, variables, output, tell)
                child = Child(pid)
                self._children[pid] = child
            self._to_collect.set()
            self.something_runs.set()
            os.close(tell)
            tell = -1
            failure = os.read(told, 16)
        finally:
            os.close(told)
            if tell >= 0:
                os.close(tell)
        if failure:
            child.exited.wait()
            stage, number = failure[:1], int(failure[1:])
            raise OSError(number, os.strerror(number), cwd if stage == b"c" else argv[0])
        return child

    def _become(self, argv: list[bytes], cwd: str, env: dict[bytes, bytes], output: int, tell: int) -> None:
        """Turn the forked copy into the command. Never returns."""
        stage = b"x"
        try:
            os.setsid()
            quiet = os.open("/dev/null", os.O_RDONLY)
            os.dup2(quiet, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            self._limits.apply()
            stage = b"c"
            os.chdir(cwd)
            stage = b"x"
            for number in _CATCHABLE:
                # The C library keeps two real-time signals to itself and refuses to touch them.
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(argv[0], argv, env)  # noqa: S606 - a shell would be one process more
        except OSError as error:
            os.write(tell, stage + str(error.errno or errno.EIO).encode())
        finally:
            os._exit(127)

    def kill_group(self, child: Child) -> None:
        """Kill the process group that `child` leads; done when the group is gone already."""
        with self._lock:
            owner = self._children.get(child.pid)
            if owner is not None and owner is not child:
                return  # the number belongs to a newer command: the old group no longer exists
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def collect_for_ever(self) -> None:
        """Wait for every process that ends; runs in a thread of its own."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                self._to_collect.wait()
                self._to_collect.clear()
                continue
            with self._lock:
                child = self._children.pop(pid, None)
            if child is not None:
                code = os.waitstatus_to_exitcode(status)
                child.exit_code = code if code >= 0 else _SIGNALLED - code
                child.exited.set()


def _passable(texts: Iterable[str]) -> list[bytes]:
    """The texts as the kernel takes them."""
    encoded = [os.fsencode(text) for text in texts]
    if any(b"\0" in text for text in encoded):
        raise ValueError("embedded null byte")
    return encoded
