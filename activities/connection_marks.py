"""Keys that the provider does not take: told, marked on their connection, and tried again only when they were replaced.

Stands around every activity, as each of them makes requests, and any request may be the first that a key is refused in.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import structlog
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.clients import ConnectionUse, ProviderPool
from activities.connections import Connection, how_to_connect
from activities.vault_faults import VaultFailure
from sandhold.contracts.errors import ErrorCode, ToolError
from sandhold.security import SecurityError
from sandhold.vault import VaultError

log = structlog.get_logger("activities.connection_marks")

AT_ONCE = timedelta(milliseconds=50)
_BY_STATUS = {401: ErrorCode.CONNECTION_REQUIRED, 403: ErrorCode.PROVIDER_REJECTED}


class ConnectionMarks(Interceptor):
    """Keeps the marks of connections true to what the provider says about their keys.

    An attempt that fails by a refused key looks whether the key was replaced meanwhile: then it is to be repeated at
    once. Otherwise the connection is marked, and the error says what to do. The next success clears the mark.
    """

    def __init__(self, pool: ProviderPool) -> None:
        self._pool = pool

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Marking(super().intercept_activity(next), self._pool)


class _Marking(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, pool: ProviderPool) -> None:  # noqa: A002
        super().__init__(next)
        self._pool = pool

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        with self._pool.watched() as use:
            try:
                result = await super().execute_activity(input)
            except ApplicationError as error:
                if use.latest is None or use.refused is None:
                    raise
                raise await self._refused(use.latest, use.refused, error) from error
            except (VaultError, SecurityError) as error:
                raise VaultFailure(error) from error
            finally:
                await self._mark(use)
            return result

    async def _refused(self, connection: Connection, status: int, error: ApplicationError) -> ApplicationError:
        """The failure of an attempt whose key was refused. Raises nothing: the refusal is told in any case."""
        told = error.details[0] if error.details else None
        if not isinstance(told, ToolError):
            return error
        if await self._is_replaced(connection):
            again = ToolError(
                code=ErrorCode.PROVIDER_UNAVAILABLE,
                message="the Daytona key was replaced while it was used",
                retryable=True,
                ambiguous=told.ambiguous,
            )
            return ApplicationError(again.message, again, type=again.code, next_retry_delay=AT_ONCE)
        explained = told.model_copy(update={"hint": _what_to_do(connection, status)})
        return ApplicationError(
            error.message,
            explained,
            *error.details[1:],
            type=error.type,
            non_retryable=error.non_retryable,
            next_retry_delay=error.next_retry_delay,
        )

    async def _is_replaced(self, connection: Connection) -> bool:
        if connection.is_default:
            return False
        try:
            now = await self._pool.connections.own(connection.owner, fresh=True)
        except (VaultError, SecurityError) as error:
            log.warning("the vault does not tell whether a key was replaced", owner=connection.owner, reason=str(error))
            return False
        return now is not None and now.key != connection.key

    async def _mark(self, use: ConnectionUse) -> None:
        """Note use, failure or recovery at the vault. That it cannot be noted fails nothing: the next one will do."""
        connection, vault = use.latest, self._pool.connections.vault
        if connection is None or connection.is_default or vault is None:
            return
        version = (connection.owner, connection.id, connection.version)
        try:
            if use.refused is not None:
                code = _BY_STATUS.get(use.refused, ErrorCode.PROVIDER_REJECTED)
                await vault.note_failure(*version, code.value)
            elif use.served:
                if connection.has_failed:
                    await vault.clear_failure(*version)
                await vault.note_use(*version)
        except (VaultError, SecurityError) as error:
            log.warning("the use of a connection was not noted", owner=connection.owner, reason=str(error))


def _what_to_do(connection: Connection, status: int) -> str:
    what = "is wrong, revoked or has expired" if status == 401 else "does not allow this"
    if connection.is_default:
        return f"The Daytona key of this deployment {what}. Tell the operator to replace SANDHOLD_DAYTONA_API_KEY."
    return f"The Daytona key of {connection.owner!r} {what}. {how_to_connect(connection.owner)}"
