"""The secrets that this process has in its hands: nothing that it logs may show one.

Whoever gets hold of a secret registers it: settings when they are read, connections when they are resolved.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable

from sandhold.security.redaction import Redactor
from sandhold.security.secret_forms import is_searchable

_MOST = 256
"""The latest are kept: a process that serves many owners comes by new ones as long as it lives."""
_OF_THE_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD")
# Pydantic's errors quote what was wrong: on one line, as Python writes it.
_INPUT = re.compile(r"input_value=.*, input_type=(\w+)")


class SecretRegistry:
    """Secrets by name and value, at most 256 of them, and a redactor of them all. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._redactor: Redactor | None = None

    def register(self, name: str, value: str) -> None:
        """Have the value redacted from now on. Safe to repeat; one too short to be told from other text is left."""
        if not is_searchable(value):
            return
        with self._lock:
            if (name, value) not in self._secrets:
                self._redactor = None
            self._secrets[name, value] = None
            self._secrets.move_to_end((name, value))
            while len(self._secrets) > _MOST:
                self._secrets.popitem(last=False)

    def redact(self, text: str) -> str:
        """The text as it may be logged: without secrets, tokens of known shapes, and what pydantic quotes as wrong."""
        with self._lock:
            if self._redactor is None:
                self._redactor = Redactor(_by_name(self._secrets))
            redactor = self._redactor
        return redactor.redact_excerpt(without_input(text))


def _by_name(secrets: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The secrets by name, those of the same name told apart by a number."""
    known: dict[str, str] = {}
    for name, value in secrets:
        number, free = 1, name
        while free in known:
            number += 1
            free = f"{name}-{number}"
        known[free] = value
    return known


_registry = SecretRegistry()
register_secret = _registry.register
redact_for_log = _registry.redact


def register_environment() -> None:
    """Register the credentials that libraries read from the environment by themselves."""
    for name in _OF_THE_ENVIRONMENT:
        register_secret(name, os.environ.get(name, ""))


def without_input(text: str) -> str:
    """A text of pydantic's validation errors without the values that were wrong."""
    return _INPUT.sub(r"input_type=\1", text) if "input_value=" in text else text
