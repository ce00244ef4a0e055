"""Where session storage is, as a URL says it: judged here, and nowhere else."""

from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import unquote, urlsplit

_FORM = "must be file:///folder or s3://bucket/prefix"


def check_storage_url(url: str) -> None:
    """Return when `url` names a folder or a place in a bucket. Raises ValueError; the message does not repeat it."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise ValueError("must not carry credentials: they come from the AWS_* variables")
    if "#" in url or "?" in url:
        raise ValueError(f"{_FORM}; # and ? in a folder's name are written %23 and %3F")
    if parts.scheme == "file":
        if parts.netloc:
            raise ValueError(f"{_FORM}: three slashes, and the folder's absolute path")
        folder = unquote(parts.path)
        if not folder.startswith("/") or "\0" in folder or not posixpath.normpath(folder).strip("/"):
            raise ValueError(f"{_FORM}, a folder of its own")
    elif parts.scheme == "s3":
        prefix = parts.path.strip("/")
        if not parts.netloc or not all(part.strip(".") for part in prefix.split("/") if prefix):
            raise ValueError(_FORM)
    else:
        raise ValueError(_FORM)


def local_folder(url: str) -> Path | None:
    """The folder that a `file:` URL names; None for any other."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
