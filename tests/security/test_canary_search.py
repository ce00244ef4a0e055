"""The search for canaries finds them, in whatever way they are written down."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.security.canaries import Canaries


@pytest.mark.parametrize("before", ["", "a", "bc", "def"])
def test_a_canary_is_found_in_every_encoding(tmp_path: Path, before: str) -> None:
    canaries = Canaries()
    value = canaries.new("entrance")
    text = f"{before}{value} and more"
    search = canaries.search()
    for encoded in (
        text.encode(),
        base64.b64encode(text.encode()),
        base64.urlsafe_b64encode(text.encode()),
        text.encode().hex().encode(),
        quote(text, safe="").encode(),
        json.dumps(text).encode(),
        text.encode("utf-16-le"),
    ):
        (tmp_path / "log").write_bytes(b"\0" * 4_194_300 + encoded)
        assert search.in_folder(tmp_path).keys() == {"log"}


def test_what_is_no_canary_is_not_found(tmp_path: Path) -> None:
    canaries = Canaries()
    canaries.new("entrance")
    (tmp_path / "log").write_bytes(b"cnry-" + b"x" * 1000)
    assert not canaries.search().in_folder(tmp_path)
