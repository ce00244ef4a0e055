"""Where session storage is: a local folder, or a bucket of an S3-compatible server."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.store import LocalStore, ObjectStore, S3Store

from sandhold.contracts.storage_url import check_storage_url, local_folder
from sandhold.storage.errors import named_errors

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_CLIENT: ClientConfig = {"connect_timeout": "5s", "timeout": "120s"}
_RETRIES: RetryConfig = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}


def open_store(url: str) -> ObjectStore:
    """The store at `url`, `file:///folder` or `s3://bucket/prefix`. A missing folder is made.

    An S3 store takes credentials, region and endpoint from the environment, by the names that AWS's own tools read. An
    endpoint without encryption is used when it is named as `http://`. Raises ValueError for any other URL, and
    StorageError when a folder cannot be made.
    """
    check_storage_url(url)
    folder = local_folder(url)
    if folder is not None:
        with named_errors("its folder"):
            # Emptied folders are removed, so that a file may take the name of a folder that was deleted.
            return LocalStore(folder, automatic_cleanup=True, mkdir=True)
    plain = any(os.environ.get(name, "").startswith("http://") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    client: ClientConfig = {**_CLIENT, "allow_http": True} if plain else _CLIENT
    return S3Store.from_url(url, client_options=client, retry_config=_RETRIES)
