"""Ports on loopback: the usual one when it is free, exactly the one that was asked for, or any other."""

from __future__ import annotations

import socket

from sandhold.cli.stack.errors import PortTaken

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        # As servers do: a port whose old connections linger counts as free, one that is listened on does not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def any_port() -> int:
    """A port that is free now; whoever gets it must bear to find it taken."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def choose_port(what: str, *, asked: int | None, usual: int | None) -> int:
    """`asked` or an error; else `usual` when it is free; else any. Raises PortTaken."""
    if asked is not None:
        if not is_free(asked):
            raise PortTaken(f"port {asked}, asked for as the port of {what}, is in use; choose another or leave it out")
        return asked
    if usual is not None and is_free(usual):
        return usual
    return any_port()
