"""What must not be shown of what a session's sandboxes print: who knows it, and how it is taken out."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from activities.launcher import CallReport, Captured
from activities.output import clean
from sandhold.contracts.steps import SandboxRef
from sandhold.security.redaction import Piece, Redactor
from sandhold.storage import OutputWindow

_KEPT = 64
"""Redactors that are kept: one takes some time to make, and commands come one after the other."""
KEPT_BYTES = 8 * 1024 * 1024
"""Of patterns, in all redactors that are kept but the latest: in memory they take some thirty times as much."""
_OVERWRITING = (b"\x1b", b"\r")


def sandbox_of(arguments: Iterable[object]) -> SandboxRef | None:
    """The sandbox that an activity with these arguments works for; None when for none."""
    refs = (getattr(argument, "ref", None) for argument in arguments)
    return next((ref for ref in refs if isinstance(ref, SandboxRef)), None)


class KnownSecrets(Protocol):
    """Knows the secrets that a session's commands may print."""

    async def of(self, session_id: str, owner: str, *, fresh: bool = False) -> Mapping[str, str]:
        """Their values by the names to show in their place. Raises when it cannot tell: then nothing may be shown.

        With `fresh` also what another process set a moment ago is known.
        """
        ...


class Redactors:
    """The redactors of sessions, made anew only where other secrets are known."""

    def __init__(self, secrets: KnownSecrets) -> None:
        self._secrets = secrets
        self._making = asyncio.Lock()
        self._made: OrderedDict[frozenset[tuple[str, str]], Redactor] = OrderedDict()

    async def of(self, ref: SandboxRef, *, fresh: bool = False) -> Redactor:
        """The redactor for what the sandboxes of this session print; the same one while the same secrets are known.

        `fresh` is for whoever first looks at what a command has printed: it may have got a secret that was set just
        before it was started, by another process.
        """
        known = frozenset((await self._secrets.of(ref.session_id, ref.owner, fresh=fresh)).items())
        if known not in self._made:
            async with self._making:
                if known not in self._made:
                    self._made[known] = await asyncio.to_thread(Redactor, dict(known))
        redactor = self._made[known]
        self._made.move_to_end(known)
        self._forget_the_oldest()
        return redactor

    def _forget_the_oldest(self) -> None:
        weight = sum(each.pattern_bytes for each in self._made.values())
        while len(self._made) > 1 and (len(self._made) > _KEPT or weight > KEPT_BYTES):
            _, forgotten = self._made.popitem(last=False)
            weight -= forgotten.pattern_bytes


def redacted(report: CallReport, redactor: Redactor) -> CallReport:
    """The report as it may be shown: what it carries of the streams' beginnings and ends is redacted.

    Where bytes between beginning and end are missing, no part of a secret is shown that may be cut there.
    """
    return replace(report, stdout=_captured(report.stdout, redactor), stderr=_captured(report.stderr, redactor))


def _captured(captured: Captured, redactor: Redactor) -> Captured:
    if captured.unseen:
        head, tail = redactor.pieces(captured.head, ends=False), redactor.pieces(captured.tail, begins=False)
    else:
        head, tail = redactor.pieces(captured.head + captured.tail), []
    return Captured(
        captured.size,
        _text(head, redactor),
        _text(tail, redactor),
        stands_for=len(captured.head) + len(captured.tail),
        redactions=sum(piece.name is not None for piece in [*head, *tail]),
    )


def _text(pieces: Iterable[Piece], redactor: Redactor) -> bytes:
    return as_text(b"".join(piece.data for piece in pieces), redactor).encode()


def as_text(shown: bytes, redactor: Redactor) -> str:
    """What is redacted as the caller reads it, without colours and the like: a secret that they kept apart comes
    together only then."""
    text = clean(shown)
    return redactor.redact_text(text) if any(mark in shown for mark in _OVERWRITING) else text


def window_of(pieces: Iterable[Piece], start: int, offset: int, limit: int) -> OutputWindow:
    """What may be shown of at most `limit` bytes from `offset` on; `pieces` begin at `start`.

    Begins behind a secret of which `offset` is in the middle; the last is in it as a whole, also beyond the limit.
    """
    data: list[bytes] = []
    begin = at = offset
    redactions = 0
    for piece in pieces:
        piece_end, end = start + piece.size, begin + limit
        if piece.name is not None and piece_end > offset and start < end:
            if start >= offset:
                data.append(piece.data)
                redactions += 1
            else:
                begin = piece_end
            at = piece_end
        elif piece.name is None and (part := piece.data[max(0, offset - start) : max(0, end - start)]):
            data.append(part)
            at = max(start, offset) + len(part)
        start = piece_end
    return OutputWindow(begin, at - begin, b"".join(data), redactions)
