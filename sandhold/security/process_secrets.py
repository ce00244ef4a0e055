"""The secrets that this process has in its hands: nothing that it logs may show one.

Whoever gets hold of a secret registers it: settings when they are read, for as long as the process lives; connections
and session secrets whenever they are resolved. Of these the latest are known, and what is in use is registered again.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from sandhold.security.known_values import JoinedValues, KnownValues
from sandhold.security.redaction import Redactor
from sandhold.security.secret_forms import is_searchable

_MOST_BATCHES = 16
_MOST_BYTES = 384 * 1024
"""Of all values that are in use, as many as one session may have: what searches for them takes some three hundred times
as much memory."""
_BATCH_SECRETS = 32
_BATCH_BYTES = 8 * 1024
"""A batch is made ready anew whenever a secret is added to it: that takes some milliseconds, 0.1 s at the worst."""
_OF_THE_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD")
# Pydantic's errors quote what was wrong: on one line, as Python writes it.
_INPUT = re.compile(r"input_value=.*, input_type=(\w+)")

_Secret = tuple[str, str]
"""Name and value."""


@dataclass(eq=False)
class _Batch:
    """Some secrets that are made ready together, when they are first needed."""

    labels: dict[_Secret, str] = field(default_factory=dict)
    size: int = 0
    """Bytes of all values, as far as they are ASCII."""
    _values: KnownValues | None = None

    def add(self, secret: _Secret, label: str) -> None:
        self.labels[secret] = label
        self.size += len(secret[1])
        self._values = None

    def values(self) -> KnownValues:
        if self._values is None:
            self._values = KnownValues({label: value for (_, value), label in self.labels.items()})
        return self._values


class SecretRegistry:
    """Secrets by name and value, and a redactor of them all. For any thread.

    A new secret costs the making of its batch, at the next line that is logged; the others stay as they are. At most
    512 of the secrets in use are known, and the batch goes first of which none was used for longest.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lasting = _Batch()
        self._filling = _Batch()
        self._in_use = OrderedDict({id(self._filling): self._filling})
        """By identity, the one that was used last at the end."""
        self._batch_of: dict[_Secret, _Batch] = {}
        self._redactor: Redactor | None = None

    def register(self, name: str, value: str) -> None:
        """Have the value redacted for good. Safe to repeat; one too short to be told from other text is left."""
        secret = name, value
        with self._lock:
            if secret not in self._lasting.labels and is_searchable(value):
                self._lasting.add(secret, self._label(name))
                self._redactor = None

    def register_in_use(self, name: str, value: str) -> None:
        """Have the value redacted from now on, while others that come later leave room for it. As `register`."""
        secret = name, value
        with self._lock:
            batch = self._batch_of.get(secret)
            if batch is None and is_searchable(value):
                batch = self._batch_of[secret] = self._with_room(len(value))
                batch.add(secret, self._label(name))
                self._redactor = None
            if batch is not None:
                self._in_use[id(batch)] = batch
                self._in_use.move_to_end(id(batch))
                self._forget_the_oldest()

    def redact(self, text: str) -> str:
        """The text as it may be logged: without secrets, tokens of known shapes, and what pydantic quotes as wrong."""
        with self._lock:
            if self._redactor is None:
                batches = [batch for batch in (self._lasting, *self._in_use.values()) if batch.labels]
                self._redactor = Redactor(JoinedValues([batch.values() for batch in batches]))
            redactor = self._redactor
        return redactor.redact_excerpt(without_input(text))

    def _with_room(self, size: int) -> _Batch:
        """The batch for a new secret."""
        filling = self._filling
        if filling.labels and (len(filling.labels) >= _BATCH_SECRETS or filling.size + size > _BATCH_BYTES):
            self._filling = _Batch()
        return self._filling

    def _forget_the_oldest(self) -> None:
        size = sum(batch.size for batch in self._in_use.values())
        while len(self._in_use) > 1 and (len(self._in_use) > _MOST_BATCHES or size > _MOST_BYTES):
            _, oldest = self._in_use.popitem(last=False)
            size -= oldest.size
            self._redactor = None
            for secret in oldest.labels:
                del self._batch_of[secret]
            if oldest is self._filling:
                self._filling = _Batch()

    def _label(self, name: str) -> str:
        """The name, or the first with a number that no other secret is shown by."""
        taken = {label for batch in (self._lasting, *self._in_use.values()) for label in batch.labels.values()}
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        return free


_registry = SecretRegistry()
register_secret = _registry.register
register_secret_in_use = _registry.register_in_use
redact_for_log = _registry.redact


def register_environment() -> None:
    """Register the credentials that libraries read from the environment by themselves."""
    for name in _OF_THE_ENVIRONMENT:
        register_secret(name, os.environ.get(name, ""))


def without_input(text: str) -> str:
    """A text of pydantic's validation errors without the values that were wrong."""
    return _INPUT.sub(r"input_type=\1", text) if "input_value=" in text else text
