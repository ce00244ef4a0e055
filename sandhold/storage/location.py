"""Where session storage is: a local folder, or a bucket of an S3-compatible server."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from obstore.store import LocalStore, ObjectStore, S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_CLIENT: ClientConfig = {"connect_timeout": "5s", "timeout": "120s"}
_RETRIES: RetryConfig = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}


def local_folder(url: str) -> Path | None:
    """The folder that a `file:` URL names; None for any other."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def open_store(url: str) -> ObjectStore:
    """The store at `url`, `file:///folder` or `s3://bucket/prefix`. A missing folder is made.

    An S3 store takes credentials, region and endpoint from the environment, by the names that AWS's own tools read. An
    endpoint without encryption is used when it is named as `http://`. Raises ValueError for any other URL.
    """
    folder = local_folder(url)
    if folder is not None:
        # Emptied folders are removed, so that a file may take the name of a folder that was deleted.
        return LocalStore(folder, automatic_cleanup=True, mkdir=True)
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError("session storage is at file:///folder or s3://bucket/prefix")
    plain = any(os.environ.get(name, "").startswith("http://") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    client: ClientConfig = {**_CLIENT, "allow_http": True} if plain else _CLIENT
    return S3Store.from_url(url, client_options=client, retry_config=_RETRIES)
