"""How every process of ours reaches Temporal: one data converter, one way to connect, one error when it cannot."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, timedelta

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter, WorkflowSerializationContext
from temporalio.runtime import Runtime
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from sandhold.contracts.names import session_workflow_id
from sandhold.contracts.sessions import SessionRecord, SessionStart
from sandhold.security import KeyRing, open_key_ring
from sandhold.security.codec import EncryptingCodec
from sandhold.security.failures import SealedFailures
from sandhold.settings import DEFAULT_TEMPORAL_ADDRESS, Settings

PLAIN_CONVERTER = pydantic_data_converter
"""What `data_converter` encrypts the payloads of; by itself for what never gets to a server, or says nothing."""

CONNECT_TIMEOUT_S = 10.0
_REQUEST_TIMEOUT = timedelta(seconds=10)


class TemporalUnreachable(ConnectionError):
    """Temporal does not answer at its address. The message says where and what to do."""


class NamespaceMissing(LookupError):
    """Temporal answers but has no such namespace."""


def data_converter(ring: KeyRing, *, plain_too: bool = False) -> DataConverter:
    """The only converter: client, worker, command line and tests must read each other's payloads, and nobody else.

    With `plain_too` it reads what is not encrypted as well.
    """
    return dataclasses.replace(
        PLAIN_CONVERTER,
        payload_codec=EncryptingCodec.under(ring, plain_too=plain_too),
        failure_converter_class=SealedFailures,
    )


def encrypting(client: Client, settings: Settings) -> Client:
    """The client itself if it encrypts what it sends, else one on the same connection that does.

    Raises KeyRingMissing and KeyRingUnusable.
    """
    if isinstance(client.data_converter.payload_codec, EncryptingCodec):
        return client
    config = client.config()
    config["data_converter"] = data_converter(open_key_ring(settings), plain_too=settings.read_plain_histories)
    return Client(**config)


async def connect(
    settings: Settings,
    *,
    converter: DataConverter | None = None,
    identity: str | None = None,
    runtime: Runtime | None = None,
    retries: RetryConfig | None = None,
) -> Client:
    """A client that has talked to the server once. It encrypts under the settings' key ring if no converter is given.

    Raises KeyRingMissing and KeyRingUnusable, and TemporalUnreachable when the server does not answer within 10 s. One
    attempt: callers that start beside the server repeat it.
    """
    if converter is None:
        converter = data_converter(open_key_ring(settings), plain_too=settings.read_plain_histories)
    address = settings.temporal_address or DEFAULT_TEMPORAL_ADDRESS
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await Client.connect(
                address,
                namespace=settings.temporal_namespace,
                data_converter=converter,
                identity=identity,
                runtime=runtime,
                retry_config=retries,
            )
    # The client has no type of its own for a failed connection: it raises RuntimeError (temporalio 1.35).
    except (RuntimeError, OSError, RPCError) as error:
        raise TemporalUnreachable(
            f"Temporal does not answer at {address}; start it with `sandhold dev`, "
            "or set SANDHOLD_TEMPORAL_ADDRESS to where it runs"
        ) from error


class SessionUnreadable(ValueError):
    """Temporal knows the session, but what it was started with is nothing that we write."""


async def session_record(client: Client, session_id: str, *, timeout: timedelta = _REQUEST_TIMEOUT) -> SessionRecord:
    """What Temporal has on record of the session, also after its end. Needs no worker.

    Raises RPCError: NOT_FOUND when Temporal knows no such session, or not any more; and SessionUnreadable.
    """
    handle = client.get_workflow_handle(session_workflow_id(session_id))
    # The first event of whichever run is the latest: each run is started with the policy.
    first = await anext(handle.fetch_history_events(page_size=1, rpc_timeout=timeout))
    attributes = first.workflow_execution_started_event_attributes
    context = WorkflowSerializationContext(namespace=client.namespace, workflow_id=handle.id)
    try:
        [start] = await client.data_converter.with_context(context).decode(attributes.input.payloads, [SessionStart])
    except (ValueError, RuntimeError) as error:
        raise SessionUnreadable(f"nobody can read what session {session_id!r} was started with") from error
    assert isinstance(start, SessionStart)
    return SessionRecord(
        start=start,
        run_id=attributes.first_execution_run_id,
        created_at=start.carried.created_at if start.carried else first.event_time.ToDatetime(UTC),
    )


async def session_start(client: Client, session_id: str, *, timeout: timedelta = _REQUEST_TIMEOUT) -> SessionStart:
    """What the session was started with. As `session_record`."""
    return (await session_record(client, session_id, timeout=timeout)).start


async def session_if_known(client: Client, session_id: str) -> SessionRecord | None:
    """The record of a session; None when Temporal knows none of this id (any more). As `session_record`."""
    try:
        return await session_record(client, session_id)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def deployment_id(client: Client) -> str:
    """The namespace's UUID, which tells this deployment's provider sandboxes from every other's.

    Raises NamespaceMissing, or TemporalUnreachable when the server does not answer.
    """
    request = DescribeNamespaceRequest(namespace=client.namespace)
    try:
        answer = await client.workflow_service.describe_namespace(request, retry=True, timeout=_REQUEST_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NamespaceMissing(
                f"Temporal has no namespace {client.namespace!r}; create it "
                f"(`temporal operator namespace create --namespace {client.namespace}`) "
                "or set SANDHOLD_TEMPORAL_NAMESPACE"
            ) from error
        raise TemporalUnreachable(f"Temporal did not describe its namespace: {error.message}") from error
    return answer.namespace_info.id
