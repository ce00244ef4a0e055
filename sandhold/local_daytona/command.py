"""The process: `sandhold local-daytona`, or `python -m sandhold.local_daytona`.

Standard output holds exactly one line, `ready http://127.0.0.1:PORT/api`, written when the server serves;
everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandhold.local_daytona.interface import IsolationUnavailable
from sandhold.local_daytona.privileges import give_up_root
from sandhold.local_daytona.runtime import BubblewrapRuntime
from sandhold.local_daytona.server import LocalDaytona, NotLoopback, ServerOptions, check_loopback
from sandhold.local_daytona.store import DataFolder, DataFolderDamaged, DataFolderInUse
from sandhold.local_daytona.toolbox_routes import toolbox_routes

API_KEY_VARIABLE = "SANDHOLD_LOCAL_DAYTONA_API_KEY"
DEFAULT_DATA_DIR = Path(".sandhold/daytona")

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

_ROUTE = re.compile(r"([^\s:=/@]+):(\d{1,5})=([^\s:=/@]+|\[[0-9a-fA-F:]+\]):(\d{1,5})\Z")

log = logging.getLogger("sandhold.local_daytona")


def run(
    port: int = 0,
    data_dir: Path = DEFAULT_DATA_DIR,
    api_key: str | None = None,
    faults: bool = False,
    *,
    host: str = "127.0.0.1",
    minute_s: float = 60.0,
    check_period_s: float = 10.0,
    routes: Sequence[str] = (),
) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit code, with what went wrong on stderr.

    `routes` are texts `NAME:PORT=HOST:PORT`: where a target leads that sandboxes name.

    As root, the process first becomes an ordinary user that owns nothing but the data folder. `minute_s` and
    `check_period_s` shorten the provider's timers for tests and need `faults`.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if (minute_s, check_period_s) != (60.0, 10.0) and not faults:
        return _failed("Shorter timers are for tests: they need --faults", EXIT_USAGE)
    data_dir = data_dir.absolute()
    try:
        leading = routes_of(routes)
    except ValueError as error:
        return _failed(str(error), EXIT_USAGE)
    try:
        check_loopback(host)
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        give_up_root(data_dir)
        return asyncio.run(_serve(port, data_dir, api_key, faults, host, minute_s, check_period_s, leading))
    except NotLoopback as error:
        return _failed(str(error), EXIT_USAGE)
    except (IsolationUnavailable, DataFolderInUse, DataFolderDamaged) as error:
        return _failed(str(error), EXIT_FAILED)
    except OSError as error:
        return _failed(f"{error.strerror or error} ({host}:{port}, {data_dir})", EXIT_FAILED)


async def _serve(
    port: int,
    data_dir: Path,
    api_key: str | None,
    faults: bool,
    host: str,
    minute_s: float,
    check_period_s: float,
    routes: Mapping[str, tuple[str, int]],
) -> int:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    folder = DataFolder.open(data_dir)
    try:
        key = api_key or os.environ.get(API_KEY_VARIABLE) or folder.api_key()
        options = ServerOptions(key, host, port, faults, minute_s, check_period_s)
        runtime = await BubblewrapRuntime.open(data_dir, routes=routes)
        server = LocalDaytona(folder, runtime, toolbox_routes, options)
        try:
            await server.start()
            for what, how in runtime.limits.items():
                log.info("limit on %s: %s", what, how)
            if faults:
                log.warning("the fault plan is open under /faults: this server is for tests")
            print(f"ready {server.api_url}", flush=True)  # noqa: T201  (the one line that callers wait for)
            await ended.wait()
        finally:
            await server.close()
            await runtime.close()
    finally:
        folder.close()
    return EXIT_OK


def routes_of(texts: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Where targets lead, by texts `NAME:PORT=HOST:PORT`. Raises ValueError for any other text."""
    routes = {}
    for text in texts:
        found = _ROUTE.match(text)
        if found is None or not all(0 < int(port) <= 65535 for port in found.group(2, 4)):
            raise ValueError(f"--route takes NAME:PORT=HOST:PORT, not {text!r}")
        name, port, host, at = found.groups()
        routes[f"{name.lower()}:{int(port)}"] = host.strip("[]"), int(at)
    return routes


def _failed(message: str, code: int) -> int:
    log.error("%s", message)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `python -m sandhold.local_daytona`."""
    parser = argparse.ArgumentParser(
        prog="python -m sandhold.local_daytona",
        description="A Daytona-compatible server for this machine: development, tests, small use.",
    )
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 takes any free one")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address; any other is refused")
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where sandboxes are kept")
    parser.add_argument("--api-key", help=f"default: ${API_KEY_VARIABLE}, else one kept in the data folder")
    parser.add_argument("--faults", action="store_true", help="let clients break things, for tests")
    parser.add_argument(
        "--route",
        action="append",
        default=[],
        metavar="NAME:PORT=HOST:PORT",
        help="where a target that sandboxes name leads, also on this machine; can be given several times",
    )
    parser.add_argument("--minute-seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    parser.add_argument("--check-period", type=float, default=10.0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not 0 <= given.port <= 65535:
        parser.error("--port must be between 0 and 65535")
    return run(
        given.port,
        given.data_dir,
        given.api_key,
        given.faults,
        host=given.host,
        minute_s=given.minute_seconds,
        check_period_s=given.check_period,
        routes=given.route,
    )
