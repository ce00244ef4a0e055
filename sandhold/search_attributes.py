"""The search attributes that Sandhold's workflows carry, and their registration in a namespace.

A workflow that is started with an attribute the namespace does not know is refused by the server, so every worker
and `sandhold setup` register what is missing.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from sandhold.contracts.names import (
    OWNER_ATTRIBUTE,
    PROVIDER_ID_ATTRIBUTE,
    SANDBOX_ATTRIBUTE,
    SEARCH_ATTRIBUTES,
    SESSION_ATTRIBUTE,
    STATE_ATTRIBUTE,
)

OWNER = SearchAttributeKey.for_keyword(OWNER_ATTRIBUTE)
SESSION = SearchAttributeKey.for_keyword(SESSION_ATTRIBUTE)
SANDBOX = SearchAttributeKey.for_keyword(SANDBOX_ATTRIBUTE)
STATE = SearchAttributeKey.for_keyword(STATE_ATTRIBUTE)
PROVIDER_ID = SearchAttributeKey.for_keyword(PROVIDER_ID_ATTRIBUTE)

_KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
_REQUEST_TIMEOUT = timedelta(seconds=10)
_VISIBLE_WITHIN_S = 60.0
"""A server may keep its list of attributes in a cache for this long."""


class SearchAttributesUnusable(RuntimeError):
    """The namespace's search attributes cannot be read, or one of them cannot be registered. The message says why."""


async def missing_search_attributes(client: Client) -> list[str]:
    """The names that the namespace lacks. Raises SearchAttributesUnusable when one has another type than Keyword."""
    try:
        answer = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace), retry=True, timeout=_REQUEST_TIMEOUT
        )
    except RPCError as error:
        raise SearchAttributesUnusable(f"Temporal did not list its search attributes: {error.message}") from error
    known = answer.custom_attributes
    wrong = [name for name in SEARCH_ATTRIBUTES if name in known and known[name] != _KEYWORD]
    if wrong:
        raise SearchAttributesUnusable(
            f"search attributes {', '.join(wrong)} of namespace {client.namespace!r} have another type than Keyword"
        )
    return [name for name in SEARCH_ATTRIBUTES if name not in known]


async def register_search_attributes(client: Client) -> list[str]:
    """Register what is missing and return the names; workflows can be started with all of them afterwards.

    Safe to repeat and with several processes at once. Raises SearchAttributesUnusable.
    """
    missing = await missing_search_attributes(client)
    if not missing:
        return []
    request = AddSearchAttributesRequest(namespace=client.namespace, search_attributes=dict.fromkeys(missing, _KEYWORD))
    try:
        await client.operator_service.add_search_attributes(request, retry=True, timeout=_REQUEST_TIMEOUT)
    except RPCError as error:
        if error.status is not RPCStatusCode.ALREADY_EXISTS:
            raise SearchAttributesUnusable(
                f"search attributes {', '.join(missing)} are missing in namespace {client.namespace!r} "
                f"and could not be registered: {error.message}"
            ) from error
    try:
        async with asyncio.timeout(_VISIBLE_WITHIN_S):
            while await missing_search_attributes(client):  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise SearchAttributesUnusable(
            f"search attributes {', '.join(missing)} were registered but did not appear within {_VISIBLE_WITHIN_S:g} s"
        ) from error
    return missing
