"""Redacting a stream on its way into storage, by the secrets that are known at each moment."""

from __future__ import annotations

from sandhold.security.redaction import Piece, Redactor


class StreamRedaction:
    """Redacts a stream from any place in it on that is not in the middle of a secret."""

    def __init__(self, redactor: Redactor) -> None:
        self.redactor = redactor
        self._stream = redactor.stream()
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Piece]:
        """What becomes of the bytes that were held back and of these, as far as that is certain."""
        self._held += data
        return self._let_go(self._stream.feed(data))

    def end(self, *, cut: bool = False) -> list[Piece]:
        """What becomes of the bytes that were held back, as nothing follows them.

        With `cut` more did follow, and is lost: what may be the beginning of a secret is not shown then.
        """
        held = bytes(self._held)
        ended = self.redactor.pieces(held, ends=False) if cut else self._stream.end()
        self._stream = self.redactor.stream()
        return self._let_go(ended)

    def use(self, redactor: Redactor) -> list[Piece]:
        """Go on with what this one knows; what becomes of bytes that it does not hold back."""
        held = bytes(self._held)
        self.redactor, self._stream = redactor, redactor.stream()
        self._held.clear()
        return self.feed(held)

    def _let_go(self, pieces: list[Piece]) -> list[Piece]:
        del self._held[: sum(piece.size for piece in pieces)]
        return pieces
