"""What a repository's address means, and whether it is of a host that gets a credential. Pure: nothing is asked.

An address comes from an agent, and so from whatever it has read. It is parsed here once, strictly, and what others get
to see is written anew from the parts: no second parser reads the same text in another way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass

import idna

from sandhold.contracts.errors import ErrorCode, ToolFailure

GITHUB_HOST = "github.com"
LONGEST = 2000
"""Characters of an address."""
_DEFAULT_PORTS = {"https": 443, "http": 80, "ssh": 22}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_AUTHORITY = re.compile(r"(?:(?P<user>[^@]*)@)?(?P<host>[^@:\[\]%]+)(?::(?P<port>[0-9]{1,5}))?")
_SCP = re.compile(r"git@(?P<host>[^@:/\[\]%]+):(?P<path>[^:]+)")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# https://docs.github.com/en/admin/managing-iam/iam-configuration-reference/username-considerations-for-external-authentication
_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,99})")
_NAME = re.compile(r"(?!-)[A-Za-z0-9._-]{1,100}")
_SEGMENT = re.compile(r"(?!-)(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+")
_USER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})")
# Encoded: control characters, the slashes, and the dot, by which a path would leave its folder.
_ENCODED = re.compile(r"%(?:[01][0-9a-f]|7f|2f|5c|2e|25)", re.IGNORECASE)
_TOKEN = re.compile(r"gh[a-z]_|github_pat_|glpat-", re.IGNORECASE)


class AddressRefused(ToolFailure):
    """That is no address of a repository, or none that is cloned from. The message never repeats it."""

    def __init__(self, why: str, hint: str | None = None) -> None:
        told = "Give owner/repo, or an address such as https://github.com/owner/repo."
        super().__init__(ErrorCode.INVALID_ARGUMENTS, f"that is no address of a repository: {why}", hint=hint or told)


class CredentialInAddress(AddressRefused):
    """A password or a token is part of the address, where git would keep it."""

    def __init__(self) -> None:
        super().__init__(
            "it holds a password or a token",
            "Leave it out: ask the user to connect GitHub (`sandhold connect github`), and use the plain address.",
        )


@dataclass(frozen=True)
class RepositoryAddress:
    """Where a repository is."""

    url: str
    """Clean: http or https, no user, the host in its one form."""
    host: str
    """The host in lower case, in ASCII, and its port unless that is the scheme's own."""
    owner: str | None
    """None, like the name, where the path is not `owner/name`."""
    name: str | None
    """Without `.git`."""
    is_connected_host: bool
    """Whether it is reached by https at exactly one of the connected hosts; only then may a credential go there."""

    @property
    def full_name(self) -> str | None:
        """`owner/name`."""
        return None if self.owner is None else f"{self.owner}/{self.name}"


def repository_of(text: str, hosts: Collection[str], default_host: str = GITHUB_HOST) -> RepositoryAddress:
    """The repository that `text` names; `hosts` are those that are connected, each as `RepositoryAddress.host` is.

    `owner/repo` is one at the connected host, else at `default_host`. `git@HOST:owner/repo` and `ssh://git@HOST/…` are
    known for connected hosts alone, and are reached by https. Raises AddressRefused.
    """
    _check_characters(text)
    scheme = _SCHEME.match(text)
    if scheme is not None:
        return _of_url(scheme[1].lower(), text[scheme.end() :], hosts, default_host)
    scp = _SCP.fullmatch(text)
    if scp is not None:
        return _by_ssh(normal_host(scp["host"]), scp["path"], hosts)
    if text.count("/") == 1 and ":" not in text and "@" not in text:
        return _on_github(next(iter(hosts), default_host), text, hosts)
    raise AddressRefused("only owner/repo, https:// and http:// are known here")


def normal_host(text: str) -> str:
    """A host's one form: in ASCII, lower case, without a dot at its end. Raises AddressRefused for what is none."""
    try:
        host = text.lower() if text.isascii() else idna.encode(text, uts46=True, transitional=False).decode().lower()
        if "xn--" in host:
            idna.decode(host)
    except (idna.IDNAError, UnicodeError):
        raise AddressRefused("its host is no name of a host") from None
    host = host.removesuffix(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise AddressRefused("its host is no name of a host")
    return host


def _check_characters(text: str) -> None:
    if not text or len(text) > LONGEST:
        raise AddressRefused("it is empty, or too long")
    if any(character.isspace() or unicodedata.category(character)[0] in "CZ" for character in text):
        raise AddressRefused("it has blanks, line breaks or characters that are not seen")
    if "\\" in text:
        raise AddressRefused("it has a backslash")
    if text.startswith("-"):
        raise AddressRefused("it begins with a dash, as options do")


def _of_url(scheme: str, rest: str, hosts: Collection[str], default_host: str) -> RepositoryAddress:
    if scheme not in _DEFAULT_PORTS:
        raise AddressRefused("only https:// and http:// are known here")
    authority, _, path = rest.partition("/")
    if any(mark in authority for mark in "?#"):
        raise AddressRefused("it has no path")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        # Its last sign could be part of a password: it says which of the two is wrong, and no more.
        if "@" in authority and ":" in authority.rpartition("@")[0]:
            raise CredentialInAddress
        raise AddressRefused("its host is no name of a host")
    _check_user(scheme, parts["user"])
    host = normal_host(parts["host"])
    port = int(parts["port"] or _DEFAULT_PORTS[scheme])
    if not 0 < port < 65536:
        raise AddressRefused("its port is none")
    if any(mark in path for mark in "?#"):
        raise AddressRefused("it has a query or a fragment")
    if scheme == "ssh":
        if port != _DEFAULT_PORTS["ssh"]:
            raise AddressRefused("repositories are reached by https here, not by ssh")
        return _by_ssh(host, path, hosts)
    if port != _DEFAULT_PORTS[scheme]:
        host = f"{host}:{port}"
    if scheme == "https" and host in {*hosts, default_host}:
        return _on_github(host, path, hosts)
    return _elsewhere(scheme, host, path)


def _check_user(scheme: str, user: str | None) -> None:
    if user is None:
        if scheme == "ssh":
            raise AddressRefused("repositories are reached by https here, not by ssh")
        return
    if ":" in user or _TOKEN.match(user) or len(user) > 39:
        raise CredentialInAddress
    if _USER.fullmatch(user) is None or (scheme == "ssh" and user != "git"):
        raise AddressRefused("the user in it is none")


def _by_ssh(host: str, path: str, hosts: Collection[str]) -> RepositoryAddress:
    for connected in hosts:
        if connected.partition(":")[0] == host:
            return _on_github(connected, path, hosts)
    raise AddressRefused(
        "repositories are reached by https here, not by ssh",
        "Give the repository's https:// address. Addresses of ssh are known for the host of a GitHub connection alone.",
    )


def _on_github(host: str, path: str, hosts: Collection[str]) -> RepositoryAddress:
    owner, _, name = path.removesuffix("/").partition("/")
    name = name.removesuffix(".git")
    if "/" in name:
        raise AddressRefused("it names a page of a repository, or a folder in it", "Give owner/repo alone.")
    if not _OWNER.fullmatch(owner) or not _NAME.fullmatch(name) or name in {".", ".."}:
        raise AddressRefused("it does not end with owner/repo")
    return RepositoryAddress(f"https://{host}/{owner}/{name}.git", host, owner, name, host in hosts)


def _elsewhere(scheme: str, host: str, path: str) -> RepositoryAddress:
    segments = path.removesuffix("/").split("/")
    if not all(_SEGMENT.fullmatch(each) and each not in {".", ".."} for each in segments) or _ENCODED.search(path):
        raise AddressRefused("its path is none of a repository")
    url = f"{scheme}://{host}/{'/'.join(segments)}"
    owner, name = (segments[0], segments[1].removesuffix(".git")) if len(segments) == 2 else ("", "")
    if _OWNER.fullmatch(owner) and _NAME.fullmatch(name) and name not in {".", ".."}:
        return RepositoryAddress(url, host, owner, name, False)
    return RepositoryAddress(url, host, None, None, False)
