"""Contents of files, in and out, through buffers of one chunk."""

from __future__ import annotations

import contextlib
import os

from .failures import Failure, bad_request, from_os_error
from .files import open_regular, resolve
from .wire import CHUNK_BYTES, DATA, END, Connection, WireError

TYPE_CHECKING = False  # importing typing would cost every sandbox 4 ms and 1 MB
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def upload(connection: Connection, home: str, path: str, admit: Callable[[int], None]) -> None:
    """Write the frames that follow to `path`, in place, as the provider does.

    Missing parent directories are made. `admit` is asked for each piece and raises Failure when the disk
    is full. The frames are always read to their end: closing early would lose the answer.
    """
    failure: Failure | None = None
    written = 0
    with contextlib.ExitStack() as opened:
        descriptor = -1
        try:
            path = resolve(home, path)
            os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
            if path.endswith("/") or os.path.isdir(path):
                raise bad_request(f"{path}: is a directory")
            descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            opened.callback(os.close, descriptor)
        except OSError as error:
            failure = from_os_error(error, path)
        except Failure as refused:
            failure = refused
        for piece in _pieces(connection):
            if failure is not None:
                continue
            try:
                admit(len(piece))
                _write(descriptor, piece)
                written += len(piece)
            except OSError as error:
                failure = from_os_error(error, path)
            except Failure as refused:
                failure = refused
    if failure is not None:
        raise failure
    connection.send({"result": {"bytes": written}})


def _pieces(connection: Connection) -> Iterator[bytes]:
    while True:
        kind, payload = connection.receive()
        if kind == END:
            return
        if kind != DATA:
            raise WireError(f"unexpected frame kind {kind!r} in an upload")
        yield payload


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def download(connection: Connection, path: str) -> None:
    """Send the file's size and contents. A size of null means that it is known only at the end."""
    if os.path.isdir(path):
        raise bad_request(f"{path}: is a directory")
    descriptor = open_regular(path, os.O_RDONLY)
    try:
        # Files below /proc say 0 and hold more.
        size = os.fstat(descriptor).st_size or None
        connection.send({"result": {"size": size}})
        sent = 0
        while size is None or sent < size:
            piece = os.read(descriptor, CHUNK_BYTES if size is None else min(CHUNK_BYTES, size - sent))
            if not piece:
                break
            connection.send_data(piece)
            sent += len(piece)
        if size is not None and sent < size:
            raise Failure(500, "FILE_READ_FAILED", f"{path}: the file became shorter while it was read")
        connection.send_end()
    finally:
        os.close(descriptor)
