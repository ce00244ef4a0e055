"""Structured logs: one event a line on stderr, the same shape for our own and for every library's messages."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor
from temporalio.runtime import LogForwardingConfig, LoggingConfig, TelemetryFilter

# What these libraries say below a warning is about their own work, not ours.
_QUIET = ("aiohttp.access", "asyncio", "engineio", "httpx", "socketio", "urllib3")


def configure_logging(level: str = "info", style: str = "json") -> None:
    """Send everything that is logged in this process to stderr: as JSON, or coloured with the style `console`.

    Messages of the standard library's loggers, Temporal's among them, come out in the same shape, with their
    logger's name. Safe to repeat.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _without_sdk_objects,
    ]
    rendering: list[Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if style == "console"
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)


def core_logging() -> LoggingConfig:
    """Sends the warnings of Temporal's native core through our logs instead of to stdout."""
    return LoggingConfig(
        filter=TelemetryFilter(core_level="WARN", other_level="ERROR"),
        forwarding=LogForwardingConfig(logger=logging.getLogger("temporalio.core")),
    )


def _without_sdk_objects(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Drop the objects that Temporal's loggers attach to a record; their readable twins stay."""
    for name in ("temporal_log", "__temporal_error_identifier"):
        event.pop(name, None)
    return event
