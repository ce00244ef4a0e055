"""Secrets that are put into every entrance and looked for at every place where something rests or passes."""

from __future__ import annotations

import base64
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import ahocorasick_rs

_PIECE_BYTES = 4 * 1024 * 1024


class Canaries:
    """Unique values by the entrance that each is put into."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def new(self, entrance: str) -> str:
        """A value that is nowhere yet. It has what encodings change: a quote, a slash, a plus, an umlaut."""
        value = f"cnry-{secrets.token_urlsafe(18)}/+'ü"
        self._values[entrance] = value
        return value

    def plain(self, entrance: str) -> str:
        """As `new`, of letters and digits: for where nothing else may be."""
        value = f"cnry{secrets.token_hex(16)}"
        self._values[entrance] = value
        return value

    def search(self) -> Search:
        return Search(self._values)


class Search:
    """Finds canaries, and what encodings make of them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._names: list[str] = []
        forms: list[bytes] = []
        for name, value in values.items():
            for how, form in _forms(value.encode()):
                self._names.append(f"{name} ({how})")
                forms.append(form)
        self._automaton = ahocorasick_rs.BytesAhoCorasick(forms)
        self._longest = max(map(len, forms))

    def in_bytes(self, data: bytes) -> set[str]:
        """Which canaries, by their entrance and encoding."""
        return {self._names[number] for number, _, _ in self._automaton.find_matches_as_indexes(data, overlapping=True)}

    def in_file(self, path: Path) -> set[str]:
        found: set[str] = set()
        before = b""
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                found |= self.in_bytes(before + piece)
                before = (before + piece)[-self._longest :]
        return found

    def in_folder(self, folder: Path, leave_out: Iterable[Path] = ()) -> dict[str, set[str]]:
        """What is found in which file, names of files included; below `leave_out` nobody looks."""
        found: dict[str, set[str]] = {}
        for path in _files(folder, set(leave_out)):
            try:
                here = self.in_file(path) | self.in_bytes(os.fsencode(path.relative_to(folder)))
            except FileNotFoundError:
                continue
            if here:
                found[str(path.relative_to(folder))] = here
        return found


class ProcessWatch(threading.Thread):
    """Looks at the command lines of all processes, again and again."""

    def __init__(self, search: Search) -> None:
        super().__init__(daemon=True)
        self._search = search
        self._ended = threading.Event()
        self.found: dict[str, set[str]] = {}
        self.looks = 0

    def run(self) -> None:
        while not self._ended.is_set():
            for entry in os.scandir("/proc"):
                if entry.name.isdigit() and (here := self._search.in_bytes(_command_line(entry.name))):
                    self.found[entry.name] = here
            self.looks += 1
            self._ended.wait(0.05)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _files(folder: Path, leave_out: set[Path]) -> Iterator[Path]:
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(at, name) not in leave_out]
        yield from (
            path
            for name in names
            if (path := Path(at, name)) not in leave_out and path.is_file() and not path.is_symlink()
        )


def _forms(value: bytes) -> Iterator[tuple[str, bytes]]:
    yield "as it is", value
    yield "hex", value.hex().encode()
    yield "percent-encoded", quote(value, safe="").encode()
    yield "percent-encoded, slashes kept", quote(value).encode()
    yield "escaped", value.decode().encode("unicode_escape")
    yield "UTF-16", value.decode().encode("utf-16-le")
    core = re.match(rb"[A-Za-z0-9_-]+", value)
    assert core is not None
    yield "its letters alone", core[0]
    for shift in range(3):
        # Of a longer text in base64 only what lies wholly in the value looks the same.
        for how, encode in (("base64", base64.b64encode), ("base64 for URLs", base64.urlsafe_b64encode)):
            encoded = encode(b"\0" * shift + value)
            yield f"{how}, shifted by {shift}", encoded[4 if shift else 0 : (len(value) + shift) // 3 * 4]
