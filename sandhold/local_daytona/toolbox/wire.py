"""The framed protocol between the server and the toolbox of one sandbox.

A frame is one byte of kind, four bytes of length and the payload. On every connection the server sends a
`MESSAGE` with the request, and for uploads `DATA` frames closed by `END`. The toolbox answers either with
one `MESSAGE`, or with a `MESSAGE`, `DATA` frames and `END`; an execution sends its `DATA` first and its
`MESSAGE` last, because the exit code is known only then. `{"error": {...}}` in place of any answer, also
in the middle of a stream, ends the exchange.

Connections are made by passing descriptors over the control socket, so there is no path to guess or to
overflow, and nothing but the server can open one.
"""

from __future__ import annotations

import json
import socket
import struct

TYPE_CHECKING = False  # importing typing would cost every sandbox 4 ms and 1 MB
if TYPE_CHECKING:
    from typing import Any

MESSAGE = b"M"
DATA = b"D"
END = b"E"

HEADER = struct.Struct(">cI")
_DESCRIPTOR = struct.Struct("i")
#: What one DATA frame carries at most; also the size of the buffers on both sides.
CHUNK_BYTES = 256 * 1024
#: A frame longer than this is a broken or hostile peer.
FRAME_LIMIT_BYTES = 8 * 1024 * 1024


class WireError(ConnectionError):
    """The other side ended the connection within an exchange, or broke the protocol."""


def receive_descriptor(stream: socket.socket) -> int | None:
    """The next descriptor passed over a Unix socket, None at the end of the stream.

    It is closed on exec from the first moment: another thread may be starting a command right now, and
    must not hand it on. (`socket.recv_fds` drops the flag that says so, up to Python 3.13 at least.)
    """
    size = _DESCRIPTOR.size
    _, passed, _, _ = stream.recvmsg(1, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in passed:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(content) >= size:
            return int(_DESCRIPTOR.unpack(content[:size])[0])
    return None


def pack(kind: bytes, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def encode(message: dict[str, Any]) -> bytes:
    # ASCII escapes carry file names that are not valid UTF-8 (lone surrogates) through unharmed.
    return json.dumps(message, separators=(",", ":")).encode("ascii")


class Connection:
    """The toolbox's blocking end of one exchange."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    def receive(self) -> tuple[bytes, bytes]:
        """The next frame's kind and payload. Raises WireError when there will be none."""
        kind, length = HEADER.unpack(self._exactly(HEADER.size))
        if length > FRAME_LIMIT_BYTES:
            raise WireError(f"a frame of {length} bytes is above the limit")
        return kind, self._exactly(length)

    def receive_message(self) -> dict[str, Any]:
        kind, payload = self.receive()
        if kind != MESSAGE:
            raise WireError(f"expected a message, got frame kind {kind!r}")
        message = json.loads(payload)
        if not isinstance(message, dict):
            raise WireError("a message must be a JSON object")
        return message

    def send(self, message: dict[str, Any]) -> None:
        self._stream.sendall(pack(MESSAGE, encode(message)))

    def send_data(self, payload: bytes) -> None:
        self._stream.sendall(HEADER.pack(DATA, len(payload)))
        self._stream.sendall(payload)

    def send_end(self) -> None:
        self._stream.sendall(pack(END))

    def _exactly(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            piece = self._stream.recv(min(length - len(received), CHUNK_BYTES))
            if not piece:
                raise WireError("the connection ended within a frame")
            received += piece
        return bytes(received)
