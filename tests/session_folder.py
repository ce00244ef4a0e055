"""A session's folder in storage that can be taken away."""

from __future__ import annotations

from pathlib import Path

from tests.stack import Stack


class SessionFolder:
    """While it is taken away nothing in it can be read, written or listed, as with an object store out of reach.

    Made before the session keeps anything there.
    """

    def __init__(self, stack: Stack, session_id: str) -> None:
        storage = stack.settings.data_dir / "storage"
        assert stack.settings.storage_location == storage.absolute().as_uri()
        self._place = storage / "sessions" / session_id
        self._kept = storage / "kept" / session_id
        self._kept.mkdir(parents=True)
        self._place.parent.mkdir(exist_ok=True)
        self.give_back()

    def take(self) -> None:
        """Each access fails, with an error that says nothing about what is there: also for root, and at once."""
        self._lead_to(self._place)

    def give_back(self) -> None:
        """Everything is as it was."""
        self._lead_to(self._kept)

    def _lead_to(self, target: Path) -> None:
        link = self._place.with_name(f"{self._place.name}.new")
        link.symlink_to(target)
        link.replace(self._place)
