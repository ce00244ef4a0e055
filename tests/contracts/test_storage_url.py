"""Where session storage may be: a URL that would be read otherwise than it was meant is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sandhold.contracts.storage_url import local_folder
from sandhold.settings import Settings
from sandhold.storage import SessionStorage
from tests.stack import RING


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://bucket/a/prefix", "file:///data/a%23b"])
def test_a_folder_or_a_place_in_a_bucket_is_taken(url: str) -> None:
    assert Settings(storage_url=url).storage_location == url


def test_a_folder_is_read_as_it_was_written() -> None:
    assert local_folder("file:///data/a%23b%20c") == Path("/data/a#b c")
    assert local_folder(Path("/data/a#b c?%").as_uri()) == Path("/data/a#b c?%")
    assert local_folder("s3://bucket/a") is None


@pytest.mark.parametrize(
    "url",
    [
        "file://data/storage",
        "file://data",
        "file:storage",
        "file:///",
        "file:////",
        "file:///a/..",
        "file:///a#b",
        "file:///a?b",
        "file:///a%00b",
        "s3:///prefix",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "s3://bucket/a#b",
        "s3://key:secret@bucket/a",
        "/data/storage",
        "gs://bucket/a",
    ],
)
def test_what_would_be_read_otherwise_is_refused(url: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings(storage_url=url)
    assert "must " in str(refusal.value)
    with pytest.raises(ValueError, match="must "):
        SessionStorage.open(url, RING)
