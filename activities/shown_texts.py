"""How texts of others may be shown: those that errors quote of a provider, a sandbox, a storage or an exception.

What is known as secret is asked for only when there is such a text. While it cannot be known no text is shown; what an
error is, and what to do about it, is told by its other fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel

from activities.redactors import Redactors, sandbox_of
from sandhold.contracts.errors import ToolError
from sandhold.contracts.steps import SandboxRef
from sandhold.security.process_secrets import redact_for_log
from sandhold.security.redaction import Redactor

log = structlog.get_logger("activities.shown_texts")

Shown = Callable[[str], str]
"""Makes of a text one that may be shown."""
T = TypeVar("T")

UNTOLD = "what failed is not told: nobody knows now what of it is secret"
_SHAPES = Redactor({})


class ShownTexts:
    """How texts of an attempt for this sandbox may be shown; for none, tokens are known by their shape alone."""

    def __init__(self, redactors: Redactors, ref: SandboxRef | None) -> None:
        self._redactors = redactors
        self._ref = ref

    async def shown(self) -> Shown:
        """Never raises: while nobody knows what is secret, texts become UNTOLD."""
        redactor = _SHAPES
        if self._ref is not None:
            try:
                redactor = await self._redactors.of(self._ref)
            except Exception as error:
                session, reason = self._ref.session_id, type(error).__name__
                log.warning("errors are told without their text", session=session, reason=reason)
                return _untold
        return lambda text: redactor.redact_excerpt(redact_for_log(text))


def _untold(text: str) -> str:
    return UNTOLD if text else text


_here: ContextVar[ShownTexts | None] = ContextVar("shown_texts", default=None)


@contextmanager
def showing(redactors: Redactors, arguments: Iterable[object]) -> Iterator[ShownTexts]:
    """While the block runs `as_shown` knows for whom; `arguments` are those of its activity."""
    texts = ShownTexts(redactors, sandbox_of(arguments))
    token = _here.set(texts)
    try:
        yield texts
    finally:
        _here.reset(token)


async def as_shown(value: T) -> T:
    """The same with errors that may be shown, wherever in models, lists and dicts they are.

    For whatever leaves an activity by another way than its result: storage, heartbeats.
    """
    texts = _here.get()
    if texts is None or not any(_foreign(value)):
        return value
    return with_shown_errors(value, await texts.shown())


async def shown_here(error: BaseException) -> str:
    """What the error says, for the log."""
    texts = _here.get()
    return str(error) if texts is None else (await texts.shown())(str(error))


def shown_error(error: ToolError, shown: Shown) -> ToolError:
    """The error with texts that may be shown. Code, provider and flags stay, and ids also where no text is told."""

    def named(id_: str) -> str:
        return id_ if shown(id_) == UNTOLD else shown(id_)

    hint = None if error.hint is None else shown(error.hint)
    changed: dict[str, object] = {"message": shown(error.message), "hint": None if hint == UNTOLD else hint}
    if error.sandbox_ids is not None:
        changed["sandbox_ids"] = [named(each) for each in error.sandbox_ids]
    if error.workflow_id is not None:
        changed["workflow_id"] = named(error.workflow_id)
    return error.model_copy(update=changed)


def texts_of(error: ToolError) -> Iterator[str]:
    """What of the error may quote somebody."""
    yield error.message
    yield error.hint or ""
    yield from error.sandbox_ids or ()
    yield error.workflow_id or ""


def with_shown_errors(value: T, shown: Shown) -> T:
    """The same with errors that may be shown; the very same when nothing changes."""
    return value if all(shown(text) == text for text in _foreign(value)) else _with_shown(value, shown)


def _with_shown(value: Any, shown: Shown) -> Any:
    if isinstance(value, ToolError):
        return shown_error(value, shown)
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _with_shown(each, shown) for name, each in value})
    if isinstance(value, dict):
        return {name: _with_shown(each, shown) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_shown(each, shown) for each in value]
    return value


def _foreign(value: object) -> Iterator[str]:
    """The texts of all errors in there."""
    if isinstance(value, ToolError):
        yield from texts_of(value)
    elif isinstance(value, BaseModel):
        for _, each in value:
            yield from _foreign(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _foreign(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _foreign(each)
