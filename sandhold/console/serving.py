"""The console as a process: `sandhold console`.

Standard output holds exactly one line, `ready http://HOST:PORT`, written once it serves; logs go to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import structlog
import uvicorn

from sandhold.console.access import console_token
from sandhold.console.codec_server import codec_server
from sandhold.security import KeyRingMissing, KeyRingUnusable, open_key_ring
from sandhold.security.process_secrets import register_secret
from sandhold.settings import Settings, SettingsError, read_stack
from sandhold.stop_signals import block_stop_signals, on_stop_signal

log = structlog.get_logger("console")

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
_ENDS_WITHIN_S = 5


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit code, with what went wrong in the log."""
    block_stop_signals()
    try:
        asyncio.run(serve(settings))
    except (SettingsError, KeyRingMissing, KeyRingUnusable) as error:
        log.error("cannot start", reason=str(error))
        return EXIT_USAGE
    except OSError as error:
        log.error("cannot start", reason=f"{settings.console_address} cannot be listened on: {error.strerror}")
        return EXIT_FAILED
    log.info("stopped")
    return EXIT_OK


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises TokenUnusable, KeyRingMissing, KeyRingUnusable, and OSError without a port.

    Needs `block_stop_signals` before.
    """
    ring, token = open_key_ring(settings), console_token(settings)
    register_secret("SANDHOLD_CONSOLE_TOKEN", token)
    app = codec_server(ring, token, lambda: ui_origins(settings), settings.temporal_namespace)
    with _listening(settings.console_address) as (listener, url):
        # Neither requests nor what they hold are logged: a path may hold the token.
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_ENDS_WITHIN_S,
        )
        server = _AnnouncedServer(config, url)

        def stop() -> None:
            server.should_exit = True

        on_stop_signal(asyncio.get_running_loop(), stop)
        await server.serve(sockets=[listener])


def ui_origins(settings: Settings) -> Sequence[str]:
    """Where Temporal's Web UI is: what the settings say, else that of the stack that runs now, if any."""
    if settings.console_ui_origins is not None:
        return [origin.strip().rstrip("/") for origin in settings.console_ui_origins.split(",") if origin.strip()]
    try:
        found = read_stack(settings.data_dir).get("ui_url")
    except SettingsError as error:
        log.warning("no Web UI is known", reason=str(error))
        return []
    return [found] if found else []


class _AnnouncedServer(uvicorn.Server):
    """Says where it serves, once it does."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("ready", url=self._url)
            print(f"ready {self._url}", flush=True)  # noqa: T201 - the one line that a supervisor waits for


@contextlib.contextmanager
def _listening(address: str) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket at host:port, and its URL. Raises OSError."""
    host, _, port = address.rpartition(":")
    family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        bound_host, bound_port = listener.getsockname()[:2]
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        yield listener, f"http://{shown}:{bound_port}"
