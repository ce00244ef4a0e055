"""What GitHub does not do, as errors that an agent can read, and that say whether another attempt is of use."""

from __future__ import annotations

from datetime import timedelta

from sandhold.contracts.errors import ErrorCode, ToolFailure


class GitHubFault(ToolFailure):
    """GitHub did not do what it was asked for."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        hint: str | None = None,
        retryable: bool = False,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(code, message, hint=hint, retryable=retryable, provider="github")
        self.retry_after = retry_after
        """How long to wait before the next attempt; None where nobody says."""


class GitHubRefused(GitHubFault):
    """It says no, and will say so again."""

    def __init__(self, code: ErrorCode, message: str, hint: str | None = None) -> None:
        super().__init__(code, message, hint=hint)


class RepositoryNotGranted(GitHubRefused):
    """The connection does not reach the repository: it is not there, or not among those that the installation has."""


class GitHubUnavailable(GitHubFault):
    """It does not answer, or not as itself. That may pass."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.PROVIDER_UNAVAILABLE, message, hint="Try again in some minutes.", retryable=True)


class RateLimited(GitHubFault):
    """It has answered as many requests as it does for now, and says when it will answer again."""

    def __init__(self, message: str, retry_after: timedelta, *, retryable: bool = True) -> None:
        seconds = round(retry_after.total_seconds())
        super().__init__(
            ErrorCode.PROVIDER_UNAVAILABLE,
            f"{message}; it answers again in {seconds} s",
            hint="Wait that long, and try again.",
            retryable=retryable,
            retry_after=retry_after,
        )
