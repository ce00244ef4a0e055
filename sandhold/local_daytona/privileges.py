"""Giving root away before anything else happens.

A server started as root becomes an ordinary user that owns nothing but the data folder; from then on root and
ordinary users take the same way. What that user needs may lie behind folders that only root may enter (a
checkout below /root, an interpreter in root's home). Those folders are covered, in a mount namespace of this
process alone, by an empty file system that holds the needed parts at their own paths and nothing else. The
mounts end with the process; the machine's own are never touched.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sandhold.local_daytona.interface import IsolationUnavailable

#: The user that a server started as root becomes. It lies in a range that distributions leave unused (above
#: systemd's, below its dynamic users) and within the 65,536 ids of a container.
SERVER_ID = 60_999

#: By these a data folder is known.
_DATA_FOLDER_HOLDS = {"records", "sandboxes"}

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 1, 2, 4, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PR_SET_NO_NEW_PRIVS = 38
_MAX_LINKS = 40


def give_up_root(data_dir: Path, keep: Iterable[Path] = ()) -> None:
    """Become an ordinary user for good when started as root; nothing happens otherwise.

    Afterwards no thread of this process can become root again, `data_dir` exists and belongs to the new
    user, and this interpreter, its packages, `data_dir` and `keep` can be reached at their own paths even
    where only root could. The data folder is the working directory.

    To be called before any thread is started and before anything is opened that should not survive, with a
    folder that is new, empty or an earlier server's. Raises IsolationUnavailable when it is another, or when
    the needed parts cannot be made reachable.
    """
    if os.geteuid() != 0:
        return
    if threading.active_count() != 1:
        raise RuntimeError("root must be given up before threads are started: only one thread would lose it")
    data_dir = Path(os.path.abspath(data_dir))
    # Folders that are made on the way must be open to the new user whatever the caller's mask was.
    os.umask(0o022)
    _hand_over(data_dir)
    needed = [Path(os.path.abspath(path)) for path in (data_dir, *_interpreter_paths(), *keep)]
    _make_reachable(needed)
    os.chdir(data_dir)
    _drop()
    unreadable = [str(path) for path in needed if not os.access(path, os.R_OK)]
    if unreadable:
        raise IsolationUnavailable(
            f"root was given up, but other users may not read {', '.join(unreadable)}: `chmod -R o+rX` helps"
        )
    os.environ.update(HOME=str(data_dir), USER=str(SERVER_ID), LOGNAME=str(SERVER_ID))


def _interpreter_paths() -> list[Path]:
    """What Python needs to go on importing: the interpreter, the environment, this package, other import paths."""
    package = Path(__file__).parent.parent
    paths = [Path(sys.base_prefix), Path(sys.prefix), Path(sys.executable), package]
    # An editable install puts the whole checkout on the import path; only the package itself is needed of it.
    paths += [Path(entry) for entry in sys.path if entry and Path(entry).resolve() != package.parent.resolve()]
    return [path for path in paths if path.exists()]


def _hand_over(data_dir: Path) -> None:
    """Make the data folder and give it to the new user, if it is not theirs already."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if data_dir.stat().st_uid == SERVER_ID:
        return
    names = set(os.listdir(data_dir))
    if names and not names >= _DATA_FOLDER_HOLDS:
        # A mistyped --data-dir must not cost somebody a folder full of files.
        raise IsolationUnavailable(
            f"{data_dir} would be given to the user {SERVER_ID}, but it is not empty and no data folder of the local"
            " Daytona: name another"
        )
    for _, folders, files, descriptor in os.fwalk(data_dir, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, SERVER_ID, SERVER_ID, dir_fd=descriptor, follow_symlinks=False)
    # Last, so that a hand-over that was interrupted is done again.
    os.chown(data_dir, SERVER_ID, SERVER_ID)


@dataclass(frozen=True)
class _Place:
    """A needed path and the symbolic links on the way to it."""

    real: str
    links: tuple[tuple[str, str], ...]


def _make_reachable(needed: list[Path]) -> None:
    places = [_follow(path) for name in needed for path in _parts_of(str(name))]
    on_the_way = [path for place in places for path in (place.real, *(link for link, _ in place.links))]
    closed = next((folder for path in on_the_way if (folder := _first_closed(path)) is not None), None)
    if closed is None:
        return
    libc = _Libc()
    try:
        libc.unshare(_CLONE_NEWNS)
        libc.mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    except OSError as error:
        raise IsolationUnavailable(
            f"the local Daytona was started as root and must give root up, but {closed} is closed to other users and"
            " this container may not mount: start it as an ordinary user, or from a folder that all users may enter"
        ) from error
    # Every needed path is held open before anything is covered.
    held = {place.real: os.open(place.real, os.O_PATH | os.O_CLOEXEC) for place in places}
    try:
        _cover_closed_folders(libc, places, held)
    finally:
        for descriptor in held.values():
            os.close(descriptor)


def _cover_closed_folders(libc: _Libc, places: list[_Place], held: dict[str, int]) -> None:
    links = {link: target for place in places for link, target in place.links}
    covered: list[str] = []
    # Shallow paths first: covering a folder again shows everything needed below it, also what lies deeper.
    wanted = sorted([*held, *links], key=lambda path: path.count("/"))
    for path in wanted:
        while (closed := _first_closed(path)) is not None:
            if closed in covered:
                raise IsolationUnavailable(f"{closed} stays closed to other users although it was covered")
            libc.mount("tmpfs", closed, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
            covered.append(closed)
            for hidden in wanted:
                # What lies within an earlier, shallower part has come back with it.
                if _below(hidden, closed) and not os.path.lexists(hidden):
                    os.makedirs(os.path.dirname(hidden), mode=0o755, exist_ok=True)
                    if hidden in links:
                        os.symlink(links[hidden], hidden)
                    else:
                        _bind(libc, held[hidden], hidden)
    for closed in covered:
        libc.mount(None, closed, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _parts_of(path: str) -> list[str]:
    """The path, and where it is a folder that the new user may not enter, its entries: they will be shown instead."""
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid == SERVER_ID or found.st_mode & stat.S_IXOTH:
        return [path]
    return [path, *(os.path.join(path, name) for name in os.listdir(path))]


def _bind(libc: _Libc, descriptor: int, path: str) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.mkdir(path, mode=0o755)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o644))
    libc.mount(f"/proc/self/fd/{descriptor}", path, None, _MS_BIND | _MS_REC)


def _follow(path: str) -> _Place:
    """Resolve a path step by step, remembering each link and the folder it stands in."""
    links: list[tuple[str, str]] = []
    pending = path.split("/")[::-1]
    real = "/"
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            real = os.path.dirname(real)
            continue
        candidate = os.path.join(real, name)
        if not os.path.islink(candidate):
            real = candidate
            continue
        target = os.readlink(candidate)
        links.append((candidate, target))
        if len(links) > _MAX_LINKS:
            raise IsolationUnavailable(f"{path} goes through too many symbolic links")
        pending += target.split("/")[::-1]
        if target.startswith("/"):
            real = "/"
    return _Place(real, tuple(links))


def _first_closed(path: str) -> str | None:
    """The topmost folder on the way to `path` that the new user may not enter."""
    folder = ""
    for name in path.split("/")[1:-1]:
        folder += f"/{name}"
        found = os.stat(folder)
        bits = stat.S_IXUSR if found.st_uid == SERVER_ID else stat.S_IXOTH
        if not found.st_mode & bits:
            return folder
    return None


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder + "/")


def _drop() -> None:
    libc = _Libc()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.setgroups([])
    os.setresgid(SERVER_ID, SERVER_ID, SERVER_ID)
    os.setresuid(SERVER_ID, SERVER_ID, SERVER_ID)
    os.umask(0o077)
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise IsolationUnavailable("root could not be given up on this machine")


class _Libc:
    """The system calls that Python has no functions for."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)

    def unshare(self, flags: int) -> None:
        self._check(self._library.unshare, flags)

    def mount(self, source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        encoded = [text if text is None else os.fsencode(text) for text in (source, target, kind, options)]
        self._check(self._library.mount, *encoded[:3], ctypes.c_ulong(flags), encoded[3])

    def prctl(self, option: int, value: int) -> None:
        self._check(self._library.prctl, option, *(ctypes.c_ulong(number) for number in (value, 0, 0, 0)))

    @staticmethod
    def _check(function: Callable[..., int], *arguments: object) -> None:
        if function(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
