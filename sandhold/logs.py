"""Structured logs: one event a line on stderr, the same shape for our own and for every library's messages.

Whatever a line is made of, secrets are taken out of it last: those that this process knows, and tokens of known shapes.
Tracebacks show no variables.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from enum import Enum
from typing import Any, TextIO

import structlog
from pydantic import SecretStr
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor
from temporalio.runtime import LogForwardingConfig, LoggingConfig, TelemetryFilter

from sandhold.security.key_document import KeyDocument
from sandhold.security.process_secrets import redact_for_log, register_environment, register_secret
from sandhold.security.shown_urls import password_of
from sandhold.settings import Settings

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
        # The renderer's own choice of a formatter shows the variables of every frame.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback), _redacted_line]
        if style == "console"
        else [
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            _redacted_event,
            structlog.processors.JSONRenderer(),
        ]
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
    handler = _Handler(sys.stderr)
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


def register_settings(settings: Settings) -> None:
    """Keep the secrets of these settings, and those of the environment that libraries read, out of all logs."""
    register_environment()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        # The path of a file is no secret, and a help to whoever reads the log.
        is_path = (name == "keyring" and settings.key_ring_document is None) or (
            name == "github_app_private_key" and not settings.github_app_key_is_inline
        )
        if isinstance(value, SecretStr) and not is_path:
            register_secret(f"SANDHOLD_{name.upper()}", value.get_secret_value())
    if settings.database_url is not None:
        register_secret("SANDHOLD_DATABASE_URL", password_of(settings.database_url.get_secret_value()) or "")
    if (ring := settings.key_ring_document) is not None:
        for key in KeyDocument.parse(ring, "SANDHOLD_KEYRING").keys:
            if key.material is not None:
                register_secret("SANDHOLD_KEYRING", key.material.get_secret_value())


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Say that a message was lost, without what was in it: the standard library would print its arguments."""
        kind = sys.exc_info()[0]
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(
                f"a message of {record.name} could not be logged: {kind.__name__ if kind else 'unknown'}\n"
            )


def _redacted_event(logger: object, method: str, event: EventDict) -> EventDict:
    return {_redacted_text(name): _redacted(value) for name, value in event.items()}


def _redacted_line(logger: object, method: str, line: Any) -> str:
    """The whole line, as the renderer before this made it."""
    assert isinstance(line, str)
    return redact_for_log(line)


def _redacted(value: object) -> object:
    """The value as JSON may show it; what JSON does not know as text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if redact_for_log(str(value)) == str(value) else redact_for_log(str(value))
    if isinstance(value, dict):
        return {_redacted_text(name): _redacted(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(each) for each in value]
    return _redacted_text(value.value if isinstance(value, Enum) else value)


def _redacted_text(value: object) -> str:
    return redact_for_log(value if isinstance(value, str) else str(value))


def _without_sdk_objects(logger: object, method: str, event: EventDict) -> EventDict:
    """Drop the objects that Temporal's loggers attach to a record; their readable twins stay."""
    for name in ("temporal_log", "__temporal_error_identifier"):
        event.pop(name, None)
    return event
