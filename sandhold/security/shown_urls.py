"""URLs as messages may show them."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit


def without_password(url: str) -> str:
    """The URL with its password masked, and without query and fragment, which may hold one as well.

    What cannot be read as a URL is not shown at all.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(not a URL)"
    if not parts.scheme:
        return "(not a URL)"
    shown = f"[{host}]" if ":" in host else host
    if port is not None:
        shown += f":{port}"
    if parts.username is not None:
        shown = f"{parts.username}{':***' if parts.password is not None else ''}@{shown}"
    # Not by urlunsplit, which takes two of the four slashes of `sqlite:////file` away.
    return f"{parts.scheme}://{shown}{parts.path}"


def password_of(url: str) -> str | None:
    """The password in a URL, as it is meant; None when there is none."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return None
    return None if password is None else unquote(password)
