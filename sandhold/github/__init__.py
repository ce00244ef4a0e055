"""GitHub: what addresses mean, and credentials for git that end. Needs the extra `server`."""

from sandhold.github.access import READ, USERNAME, WRITE, Access, GitHub, how_to_connect
from sandhold.github.addresses import AddressRefused, CredentialInAddress, RepositoryAddress, repository_of
from sandhold.github.connection import GitHubConnection, is_installation
from sandhold.github.errors import GitHubFault, GitHubRefused, GitHubUnavailable, RateLimited, RepositoryNotGranted

__all__ = [
    "READ",
    "USERNAME",
    "WRITE",
    "Access",
    "AddressRefused",
    "CredentialInAddress",
    "GitHub",
    "GitHubConnection",
    "GitHubFault",
    "GitHubRefused",
    "GitHubUnavailable",
    "RateLimited",
    "RepositoryAddress",
    "RepositoryNotGranted",
    "how_to_connect",
    "is_installation",
    "repository_of",
]
