"""The checks of `sandhold doctor`: each looks at one thing and says what it found."""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from urllib.parse import urlsplit

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from sandhold.cli.connecting import quiet_runtime
from sandhold.cli.vaults import opened_vault
from sandhold.contracts.base import Message
from sandhold.contracts.names import follow_queue
from sandhold.search_attributes import SearchAttributesUnusable, missing_search_attributes
from sandhold.security import SecurityError, open_key_ring
from sandhold.settings import Settings, SettingsError
from sandhold.storage import SessionStorage, StorageError
from sandhold.temporal import PLAIN_CONVERTER, NamespaceMissing, TemporalUnreachable, connect, deployment_id

_REQUEST_TIMEOUT_S = 5.0
_PROBE_TIMEOUT_S = 60.0
# A worker asks for work at least once a minute; the server remembers one that is gone for five.
_POLLED_WITHIN = timedelta(seconds=90)


class Check(Message):
    """What one look found. `ok` is null for what does not apply here, or could not be looked at."""

    name: str
    ok: bool | None
    detail: str
    hint: str | None = None


async def examine(settings: Settings) -> list[Check]:
    """All checks, in the order in which things depend on each other."""
    checks, client = await _temporal(settings)
    checks.insert(0, await _key_ring(settings))
    if client is None:
        skipped = ("namespace", "search attributes", "worker")
        checks += [Check(name=name, ok=None, detail="needs Temporal") for name in skipped]
    else:
        checks.append(await _namespace(client))
        checks.append(await _search_attributes(client))
        checks.append(await _worker(client, settings))
    checks.append(await _provider(settings))
    checks.append(await _storage(settings))
    checks.append(await _vault(settings))
    checks.append(await _isolation(settings))
    return checks


async def _key_ring(settings: Settings) -> Check:
    """Whether payloads can be encrypted."""
    try:
        primary = await open_key_ring(settings).primary()
    except SecurityError as error:
        return Check(name="key ring", ok=False, detail=str(error))
    return Check(name="key ring", ok=True, detail=f"encrypts under {primary}")


async def _temporal(settings: Settings) -> tuple[list[Check], Client | None]:
    try:
        # No check sends a payload: what is wrong with the key ring hides nothing else.
        client = await connect(settings, converter=PLAIN_CONVERTER, runtime=quiet_runtime())
    except TemporalUnreachable as error:
        return [Check(name="temporal", ok=False, detail=str(error))], None
    return [Check(name="temporal", ok=True, detail=f"answers at {settings.temporal_address}")], client


async def _namespace(client: Client) -> Check:
    try:
        deployment = await deployment_id(client)
    except (NamespaceMissing, TemporalUnreachable) as error:
        return Check(name="namespace", ok=False, detail=str(error))
    return Check(name="namespace", ok=True, detail=f"{client.namespace}, deployment {deployment}")


async def _search_attributes(client: Client) -> Check:
    name = "search attributes"
    try:
        missing = await missing_search_attributes(client)
    except SearchAttributesUnusable as error:
        return Check(name=name, ok=False, detail=str(error))
    if missing:
        return Check(name=name, ok=False, detail=f"missing: {', '.join(missing)}", hint="Run `sandhold setup`.")
    return Check(name=name, ok=True, detail="registered")


async def _worker(client: Client, settings: Settings) -> Check:
    """Whether somebody polls every queue that calls go through."""
    queues = (
        (settings.task_queue, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW),
        (settings.task_queue, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
        (follow_queue(settings.task_queue), TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
    )
    try:
        pollers = [await _pollers(client, *queue) for queue in queues]
    except RPCError as error:
        return Check(name="worker", ok=False, detail=f"Temporal does not tell who polls: {error.message}")
    silent = sorted({queue for (queue, _), found in zip(queues, pollers, strict=True) if not found})
    if silent:
        return Check(
            name="worker",
            ok=False,
            detail=f"no worker polls task queue {', '.join(silent)}",
            hint="Start one with `sandhold worker`, or look at its logs.",
        )
    return Check(name="worker", ok=True, detail=", ".join(sorted(set.union(*pollers))))


async def _pollers(client: Client, queue: str, kind: TaskQueueType.ValueType) -> set[str]:
    request = DescribeTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind
    )
    answer = await client.workflow_service.describe_task_queue(request, timeout=timedelta(seconds=_REQUEST_TIMEOUT_S))
    now = datetime.now(UTC)
    return {
        poller.identity
        for poller in answer.pollers
        if now - poller.last_access_time.ToDatetime(tzinfo=UTC) < _POLLED_WITHIN
    }


async def _provider(settings: Settings) -> Check:
    """Whether the provider answers, and takes the key where there is one."""
    if settings.daytona_api_key is None and settings.daytona_api_url is None:
        return Check(
            name="provider",
            ok=False,
            detail="no provider is named",
            hint="Set DAYTONA_API_KEY, or run `sandhold dev`, which brings a local one.",
        )
    url = settings.daytona_api_url or "https://app.daytona.io/api"
    key = settings.daytona_api_key.get_secret_value() if settings.daytona_api_key else None
    try:
        status = await asyncio.to_thread(_get, f"{url.rstrip('/')}/{'sandbox?limit=1' if key else 'config'}", key)
    except (OSError, ValueError) as error:
        return Check(name="provider", ok=False, detail=f"{url} does not answer: {error}")
    if status in {401, 403}:
        return Check(name="provider", ok=False, detail=f"{url} does not take the API key ({status})")
    if status != 200:
        return Check(name="provider", ok=False, detail=f"{url} answers {status}")
    return Check(name="provider", ok=True, detail=f"{url} answers" + (" and takes the key" if key else ""))


def _get(url: str, key: str | None) -> int:
    """The status of the answer. Raises OSError when there is none, ValueError when `url` is not one."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError("not an http address")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    on_loopback = urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if on_loopback else []))
    try:
        with opener.open(request, timeout=_REQUEST_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def _storage(settings: Settings) -> Check:
    """Whether a document can be written, read again and removed, under the key ring."""
    url, probe = settings.storage_location, f"doctor-{secrets.token_hex(8)}"
    try:
        storage = SessionStorage.open(url, open_key_ring(settings))
        ref = await storage.put_json(probe, "probe.json", {"written": datetime.now(UTC).isoformat()})
        await storage.get_json(probe, ref)
        await storage.delete(probe, ref.path)
        await storage.objects.remove_key(probe)
    except StorageError as error:
        return Check(name="storage", ok=False, detail=f"{url} cannot be used: {error}. {error.hint or ''}".rstrip())
    except (ValueError, SecurityError) as error:
        return Check(name="storage", ok=False, detail=f"{url} cannot be used: {error}")
    return Check(name="storage", ok=True, detail=f"{url} is writable")


async def _vault(settings: Settings) -> Check:
    """Whether the vault can be opened, which brings its database to this build's version."""
    name = "vault"
    if find_spec("sqlalchemy") is None:
        return Check(name=name, ok=None, detail="not needed: only the server side opens it")
    from sandhold.vault import VaultError

    try:
        async with opened_vault(settings) as vault:
            connections = len(await vault.connection_rows())
    except (SettingsError, SecurityError, VaultError) as error:
        return Check(name=name, ok=False, detail=str(error), hint=getattr(error, "hint", None))
    return Check(name=name, ok=True, detail=f"{vault.shown} ({vault.kind}), {connections} connections")


async def _isolation(settings: Settings) -> Check:
    """Whether sandboxes can be isolated on this machine; in a process of its own, which gives root away first."""
    if settings.daytona_api_key is not None and settings.daytona_api_url is None:
        return Check(name="bubblewrap", ok=None, detail="not needed: sandboxes run at the provider")
    with _open_folder() as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sandhold.cli.isolation_probe",
            folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                told, complained = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return Check(name="bubblewrap", ok=False, detail=f"did not answer within {_PROBE_TIMEOUT_S:g} s")
    if process.returncode == 0:
        return Check(name="bubblewrap", ok=True, detail="sandboxes can be isolated on this machine")
    reason = (told or complained).decode(errors="replace").strip().splitlines()
    return Check(name="bubblewrap", ok=False, detail=reason[-1] if reason else "could not be tried")


@contextmanager
def _open_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="sandhold-doctor-", ignore_cleanup_errors=True) as folder:
        yield folder
