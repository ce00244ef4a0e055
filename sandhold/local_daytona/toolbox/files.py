"""File operations but for the transfer of contents, as the provider's daemon answers them.

They run inside the sandbox as its user, so the kernel decides what a path may reach. Listings are
generators: what they answer is sent while it is found, and a tree of any size needs no memory.
"""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import stat
import time

from .failures import Failure, bad_request, from_os_error, invalid_path
from .wire import Connection

TYPE_CHECKING = False  # importing typing would cost every sandbox 4 ms and 1 MB
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_BATCH_BYTES = 64 * 1024
#: A longer line is cut in the answer of a search.
_LINE_BYTES = 64 * 1024
#: A file whose beginning holds a NUL byte is binary and is not searched.
_PROBE_BYTES = 8 * 1024
# The names in the sandbox's passwd and group, which are read-only; looking one up reads the whole file.
_owners: dict[int, str] = {}
_groups: dict[int, str] = {}
_REPLACE_LIMIT_BYTES = 64 * 1024 * 1024


def resolve(home: str, path: object) -> str:
    """The absolute form of a path from a request; relative ones start at the work directory."""
    if not isinstance(path, str) or not path:
        raise invalid_path("a path must be a string that is not empty")
    if "\0" in path:
        raise invalid_path("a path cannot hold a NUL byte")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise invalid_path(f"a path cannot be encoded: {error.reason}") from error
    return os.path.join(home, path)


def open_regular(path: str, flags: int, mode: int = 0o644) -> int:
    """Open a regular file. Devices and pipes, which would block or do things, are refused."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, mode)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads, or a socket
            raise invalid_path(f"{path}: not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise invalid_path(f"{path}: not a regular file")
    return descriptor


def readable(name: str) -> str:
    """A file name as valid text; bytes that are not UTF-8 become the replacement character."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def stream(connection: Connection, listing: Iterator[str]) -> None:
    """Send the pieces of a JSON text as they come. An error before the first piece is a clean failure."""
    batch: list[str] = [next(listing)]
    connection.send({"result": {}})
    size = 0
    for piece in listing:
        batch.append(piece)
        size += len(piece)
        if size >= _BATCH_BYTES:
            connection.send_data("".join(batch).encode())
            batch, size = [], 0
    connection.send_data("".join(batch).encode())
    connection.send_end()


def _array(opening: str, items: Iterator[Any], closing: str) -> Iterator[str]:
    first = next(items, None)  # raises here, before anything is sent
    yield opening
    if first is not None:
        yield json.dumps(first)
        for item in items:
            yield ","
            yield json.dumps(item)
    yield closing


def info_of(path: str, found: os.stat_result) -> dict[str, Any]:
    """One file as the provider describes it. Its `modTime` has the layout of Go's `time.String`."""
    seconds, nanoseconds = divmod(found.st_mtime_ns, 1_000_000_000)
    modified = time.gmtime(seconds)
    return {
        "name": readable(os.path.basename(path.rstrip("/")) or "/"),
        "path": readable(path),
        "isDir": stat.S_ISDIR(found.st_mode),
        "size": found.st_size,
        "mode": stat.filemode(found.st_mode),
        "permissions": f"{stat.S_IMODE(found.st_mode):04o}",
        "owner": _owner(found.st_uid),
        "group": _group(found.st_gid),
        "modTime": time.strftime(f"%Y-%m-%d %H:%M:%S.{nanoseconds:09d} +0000 UTC", modified),
        "modifiedAt": time.strftime(f"%Y-%m-%dT%H:%M:%S.{nanoseconds:09d}Z", modified),
    }


def _owner(uid: int) -> str:
    if uid not in _owners:
        try:
            _owners[uid] = pwd.getpwuid(uid).pw_name
        except KeyError:
            _owners[uid] = str(uid)
    return _owners[uid]


def _group(gid: int) -> str:
    if gid not in _groups:
        try:
            _groups[gid] = grp.getgrgid(gid).gr_name
        except KeyError:
            _groups[gid] = str(gid)
    return _groups[gid]


def _list(home: str, request: dict[str, Any]) -> Iterator[str]:
    path = resolve(home, request.get("path") or home)
    return _array("[", _entries(path, request.get("depth") or 1), "]")


def _entries(path: str, depth: int) -> Iterator[dict[str, Any]]:
    """Entries in the order of their names, a folder's own right after it. Not recursive: trees can be deep."""
    open_folders = [(path, iter(sorted(os.listdir(path))))]
    while open_folders:
        folder, names = open_folders[-1]
        name = next(names, None)
        if name is None:
            open_folders.pop()
            continue
        child = os.path.join(folder, name)
        try:
            found = os.lstat(child)
            yield info_of(child, found)
            if len(open_folders) < depth and stat.S_ISDIR(found.st_mode):
                open_folders.append((child, iter(sorted(os.listdir(child)))))
        except OSError:
            continue  # gone since its folder was read, or not to be looked into


def _walk(path: str) -> Iterator[os.DirEntry[str]]:
    """Every entry below a directory; what cannot be read is passed over, the top must be readable."""
    pending = [path]
    while pending:
        folder = pending.pop()
        try:
            entries = os.scandir(folder)
        except OSError:
            if folder is path:
                raise
            continue
        with entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def _search(home: str, request: dict[str, Any]) -> Iterator[str]:
    import fnmatch

    path, pattern = resolve(home, request["path"]), request["pattern"]
    matching = (readable(entry.path) for entry in _walk(path) if fnmatch.fnmatchcase(entry.name, pattern))
    return _array('{"files":[', matching, "]}")


def _find(home: str, request: dict[str, Any]) -> Iterator[str]:
    path, pattern = resolve(home, request["path"]), request["pattern"].encode("utf-8", "surrogateescape")
    return _array("[", _matches(path, pattern), "]")


def _matches(path: str, pattern: bytes) -> Iterator[dict[str, Any]]:
    if not stat.S_ISDIR(os.stat(path).st_mode):
        yield from _matches_in(path, pattern)
        return
    for entry in _walk(path):
        if entry.is_file(follow_symlinks=False):
            try:
                yield from _matches_in(entry.path, pattern)
            except (OSError, Failure):
                continue  # unreadable, or gone meanwhile: the rest of the tree still counts


def _matches_in(path: str, pattern: bytes) -> Iterator[dict[str, Any]]:
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        if b"\0" in file.peek(_PROBE_BYTES)[:_PROBE_BYTES]:
            return
        number = 0
        begins_line = True
        while line := file.readline(_LINE_BYTES):
            number += begins_line
            begins_line = line.endswith(b"\n")
            if pattern in line:
                text = line.rstrip(b"\r\n").decode("utf-8", "replace")
                yield {"file": readable(path), "line": number, "content": text}


def _info(home: str, request: dict[str, Any]) -> dict[str, Any]:
    path = resolve(home, request["path"])
    return info_of(path, os.stat(path))


def _make_folder(home: str, request: dict[str, Any]) -> dict[str, Any]:
    path, mode = resolve(home, request["path"]), _mode(request.get("mode") or "0755")
    os.makedirs(path, exist_ok=True)
    os.chmod(path, mode)
    return {}


def _delete(home: str, request: dict[str, Any]) -> dict[str, Any]:
    path = resolve(home, request["path"])
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
    elif request.get("recursive"):
        import shutil  # imported where it is used: most sandboxes never need it

        shutil.rmtree(path)
    else:
        raise bad_request("cannot delete a directory without the recursive flag")
    return {}


def _move(home: str, request: dict[str, Any]) -> dict[str, Any]:
    source, destination = resolve(home, request["source"]), resolve(home, request["destination"])
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_across(source, destination)
    return {}


def _move_across(source: str, destination: str) -> None:
    """Move between file systems: complete under another name first, so that the rename stays atomic."""
    import shutil

    parent, name = os.path.split(destination.rstrip("/"))
    arriving = os.path.join(parent, f".{name[:100]}.moving-{os.getpid()}-{os.urandom(4).hex()}")
    is_directory = stat.S_ISDIR(os.lstat(source).st_mode)
    try:
        if is_directory:
            shutil.copytree(source, arriving, symlinks=True)
        else:
            shutil.copy2(source, arriving, follow_symlinks=False)
        os.rename(arriving, destination)
    except BaseException:
        if is_directory:
            shutil.rmtree(arriving, ignore_errors=True)
        elif os.path.lexists(arriving):
            os.unlink(arriving)
        raise
    _delete("/", {"path": source, "recursive": True})


def _set_permissions(home: str, request: dict[str, Any]) -> dict[str, Any]:
    path = resolve(home, request["path"])
    os.stat(path)  # a missing file is reported before a bad mode
    if request.get("mode"):
        os.chmod(path, _mode(request["mode"]))
    owner, group = request.get("owner"), request.get("group")
    if owner or group:
        try:
            uid = -1 if not owner else int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid
            gid = -1 if not group else int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError as error:
            raise bad_request(f"unknown owner or group: {error.args[0]}") from error
        _change_owner(path, uid, gid)
    return {}


def _change_owner(path: str, uid: int, gid: int) -> None:
    try:
        os.chown(path, uid, gid)
    except OSError as error:
        if error.errno == errno.EINVAL:  # an id that this sandbox's user namespace does not have
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path) from error
        raise


def _mode(text: object) -> int:
    try:
        mode = int(str(text), 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise bad_request(f"invalid mode {text!r}: an octal number such as 0755 is expected")
    return mode


def _replace(home: str, request: dict[str, Any]) -> dict[str, Any]:
    pattern = request["pattern"].encode("utf-8", "surrogateescape")
    new = request["new_value"].encode("utf-8", "surrogateescape")
    if not pattern:
        raise bad_request("the pattern must not be empty")
    results: list[dict[str, Any]] = []
    for name in request["files"]:
        try:
            _replace_in(resolve(home, name), pattern, new)
            results.append({"file": readable(name), "success": True})
        except OSError as error:
            results.append({"file": readable(name), "success": False, "error": from_os_error(error).message})
        except Failure as failure:
            results.append({"file": readable(name), "success": False, "error": failure.message})
    return {"results": results}


def _replace_in(path: str, pattern: bytes, new: bytes) -> None:
    with open(open_regular(path, os.O_RDWR), "r+b") as file:
        if os.fstat(file.fileno()).st_size > _REPLACE_LIMIT_BYTES:
            raise bad_request(f"{path}: larger than {_REPLACE_LIMIT_BYTES} bytes")
        before = file.read()
        after = before.replace(pattern, new)
        if after != before:
            file.seek(0)
            file.write(after)
            file.truncate()


LISTINGS: dict[str, Callable[[str, dict[str, Any]], Iterator[str]]] = {
    "list": _list,
    "find": _find,
    "search": _search,
}
CHANGES: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    "info": _info,
    "folder": _make_folder,
    "delete": _delete,
    "move": _move,
    "permissions": _set_permissions,
    "replace": _replace,
}
