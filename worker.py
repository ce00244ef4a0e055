"""The process that hosts workflows and activities. Wiring only: what is done is in `workflows/` and `activities/`.

It prints one line on stdout, `ready <URL of its health endpoint>`, once it polls; logs go to stderr.
Exit codes: 0 stopped as asked, 1 a worker failed, 2 a setting, the key ring or the namespace is wrong, 4 Temporal
cannot be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import structlog
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.converter import DataConverter
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import Interceptor, Worker, WorkerDeploymentConfig
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

# Imported before polling starts: the provider's client takes 1.6 s to import, which the first calls would wait for.
from activities.clients import ProviderPool
from activities.command_io import CommandIoActivities
from activities.commands import CommandActivities
from activities.connection_marks import ConnectionMarks
from activities.files import FileActivities
from activities.filling import FillingActivities
from activities.following import FollowingActivities
from activities.git_clones import GitCloneActivities
from activities.git_credentials import GitCredentialsActivities
from activities.git_tokens import CloneTokens
from activities.github_faults import GitHubFaults
from activities.interruptions import InterruptionActivities
from activities.keeping import KeepingActivities
from activities.lifecycle import LifecycleActivities
from activities.minted_tokens import MintedTokens
from activities.outages import Outages
from activities.provider import ProviderAccess
from activities.redacted_errors import RedactedErrors
from activities.redaction import RedactedFailures
from activities.redactors import Redactors
from activities.retention import RetentionActivities
from activities.session_owners import SessionOwners
from activities.session_secrets import SessionSecrets
from activities.statuses import StatusActivities
from activities.storage_faults import StorageFaults
from activities.workspace import WorkspaceActivities
from sandhold.contracts.names import WORKER_DEPLOYMENT, follow_queue
from sandhold.github import GitHub
from sandhold.health import PolledQueue, WorkerProbe, health_endpoint
from sandhold.logs import configure_logging, core_logging, register_settings
from sandhold.replay_order import ReplayableRunner
from sandhold.schedules import ScheduleUnusable, ensure_schedules
from sandhold.search_attributes import SearchAttributesUnusable, register_search_attributes
from sandhold.security import KeyRing, SecurityError, open_key_ring
from sandhold.settings import Settings, SettingsError
from sandhold.stop_signals import block_stop_signals, on_stop_signal
from sandhold.storage import SessionStorage
from sandhold.temporal import (
    NamespaceMissing,
    TemporalUnreachable,
    connect,
    data_converter,
    deployment_id,
    session_if_known,
)
from sandhold.vault import Vault, VaultError, VaultUnavailable, open_vault
from workflows.clean_storage import CleanStorage
from workflows.intake import MessageIntake
from workflows.sandbox import Sandbox
from workflows.session import AgentSession

log = structlog.get_logger("worker")
T = TypeVar("T")

GRACEFUL_SHUTDOWN = timedelta(seconds=15)
"""Activities may finish for this long after SIGTERM: longer than the heartbeat timeouts, and than any activity
but a follower's, so that a shutdown costs nobody a retry."""

# Modules that hold no state of a workflow: loading them once instead of once per workflow keeps a cached
# session at a fifth of the memory, and a cold replay quick.
PASSED_THROUGH = ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "sandhold")


@dataclass(frozen=True)
class Activities:
    """What the two workers run."""

    of_calls: Sequence[Callable[..., Any]]
    of_followers: Sequence[Callable[..., Any]]
    around: Sequence[Interceptor] = ()
    """What stands around each of them, on both workers, and outside of all that looks at failures."""
    within: Sequence[Interceptor] = ()
    """What stands around each of them, and inside of what decides about the next attempt."""


def activities_of(
    client: Client, settings: Settings, access: ProviderAccess, vault: Vault, ring: KeyRing, github: GitHub
) -> Activities:
    """Every activity, with what it needs."""
    all_storage = SessionStorage.open(settings.storage_location, ring)
    storage = all_storage.guarded(partial(session_if_known, client))
    secrets = SessionSecrets(settings, access.pool.connections, partial(session_if_known, client))
    lifecycle = LifecycleActivities(access, settings, secrets)
    files = FileActivities(access, storage)
    redactors = Redactors(secrets)
    commands = CommandActivities(access, storage, redactors, secrets)
    tokens = CloneTokens(github, MintedTokens("clone", github, vault, secrets.run_of))
    clones = GitCloneActivities(access, storage, commands, redactors, github, tokens)
    credentials = GitCredentialsActivities(access, github, MintedTokens("helper", github, vault, secrets.run_of))
    command_io = CommandIoActivities(access, storage, redactors)
    following = FollowingActivities(access, storage, redactors)
    interruptions = InterruptionActivities(storage, redactors)
    statuses = StatusActivities(client)
    workspaces = WorkspaceActivities(access, storage)
    keeping = KeepingActivities(access, storage)
    filling = FillingActivities(access, storage, SessionOwners(client, all_storage, access.deployment))
    retention = RetentionActivities(client, all_storage, access.deployment, vault, github=github)
    return Activities(
        of_calls=[
            lifecycle.create_sandbox,
            lifecycle.start_sandbox,
            lifecycle.stop_sandbox,
            lifecycle.archive_sandbox,
            lifecycle.delete_sandbox,
            files.read_file,
            files.write_file,
            commands.run_command,
            commands.stop_commands,
            clones.clone_repository,
            clones.finish_clone,
            credentials.install_git_credentials,
            credentials.remove_git_credentials,
            credentials.revoke_git_tokens,
            command_io.read_output,
            command_io.write_input,
            command_io.signal_command,
            command_io.clean_commands,
            interruptions.tell_interrupted,
            statuses.sandbox_statuses,
            retention.clean_storage,
        ],
        of_followers=[
            following.follow_commands,
            workspaces.download_workspace,
            keeping.save_workspace,
            filling.fill_sandbox,
            filling.push_files,
        ],
        around=[RedactedFailures(redactors), RedactedErrors(redactors)],
        within=[ConnectionMarks(access.pool), GitHubFaults()],
    )


def build_workers(
    client: Client,
    task_queue: str,
    *,
    activities: Activities,
    build_id: str | None = None,
    identity: str | None = None,
) -> tuple[Worker, Worker]:
    """The two workers of a deployment: calls on `task_queue`, followers of long commands on a queue beside it.

    Followers have slots of their own, so that a hundred long commands delay no short one. At a shutdown they
    are cancelled at once: another worker goes on following from the offsets in workflow state.
    """
    deployment = _deployment(build_id)
    restrictions = SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH)
    calls = Worker(
        client,
        task_queue=task_queue,
        workflows=[AgentSession, Sandbox, CleanStorage],
        activities=activities.of_calls,
        interceptors=[MessageIntake(), *activities.around, *activities.within, StorageFaults()],
        workflow_runner=ReplayableRunner(SandboxedWorkflowRunner(restrictions=restrictions)),
        identity=identity,
        max_concurrent_workflow_tasks=40,
        max_concurrent_activities=100,
        max_cached_workflows=1000,
        graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
        # After a SIGKILL the next call waits this long for the dead worker's sticky queue (default: 10 s).
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        # Cancellation reaches an activity with a heartbeat that was not held back, and progress is not lost.
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
        deployment_config=deployment,
    )
    followers = Worker(
        client,
        task_queue=follow_queue(task_queue),
        activities=activities.of_followers,
        interceptors=[*activities.around, Outages(), *activities.within, StorageFaults()],
        identity=identity,
        max_concurrent_activities=400,
        graceful_shutdown_timeout=timedelta(0),
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
        deployment_config=deployment,
    )
    return calls, followers


def _deployment(build_id: str | None) -> WorkerDeploymentConfig:
    if build_id is None:
        # Without any version the SDK makes one up by hashing the byte code of every loaded module, which delays
        # each start by 2.6 s of computing (temporalio 1.35).
        unversioned = WorkerDeploymentVersion(deployment_name=WORKER_DEPLOYMENT, build_id="unversioned")
        return WorkerDeploymentConfig(version=unversioned, use_worker_versioning=False)
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name=WORKER_DEPLOYMENT, build_id=build_id),
        use_worker_versioning=True,
        # Sessions live for days: pinned to the build they began on, they would be stranded by its retirement.
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )


class Stopped(Exception):
    """Asked to stop before anything was served."""


async def connect_when_up(
    settings: Settings, converter: DataConverter, identity: str, runtime: Runtime, stop: asyncio.Event
) -> Client:
    """Connect, waiting for a server that is still starting.

    Raises TemporalUnreachable after `reconnect_s`, and Stopped.
    """
    attempt = partial(connect, settings, converter=converter, identity=identity, runtime=runtime)
    return await _when_up("Temporal", attempt, TemporalUnreachable, settings, stop)


async def vault_when_up(settings: Settings, ring: KeyRing, stop: asyncio.Event) -> Vault:
    """Open the vault, waiting for its database as for Temporal. Raises VaultError and Stopped."""
    return await _when_up("the vault", partial(open_vault, settings, ring), VaultUnavailable, settings, stop)


async def _when_up(
    what: str,
    attempt: Callable[[], Awaitable[T]],
    away: type[Exception],
    settings: Settings,
    stop: asyncio.Event,
) -> T:
    deadline = time.monotonic() + settings.reconnect_s
    pause_s = 0.1
    while True:
        try:
            return await attempt()
        except away as error:
            if time.monotonic() + pause_s > deadline:
                raise
            log.warning(f"waiting for {what}", reason=str(error), again_in_s=pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_s)
            if stop.is_set():
                raise Stopped from error
            pause_s = min(pause_s * 2, 5.0)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then let running activities finish. Raises when a worker fails."""
    stop = asyncio.Event()
    on_stop_signal(asyncio.get_running_loop(), stop.set)
    ring = open_key_ring(settings)
    identity = f"worker-{os.getpid()}@{socket.gethostname()}"
    metrics = PrometheusConfig(bind_address=settings.metrics_address) if settings.metrics_address else None
    runtime = Runtime(telemetry=TelemetryConfig(logging=core_logging(), metrics=metrics))
    converter = data_converter(ring, plain_too=settings.read_plain_histories)
    client = await connect_when_up(settings, converter, identity, runtime, stop)
    deployment = await deployment_id(client)
    registered = await register_search_attributes(client)
    log.info("connected", deployment=deployment, namespace=client.namespace, registered=registered)

    async with AsyncExitStack() as resources:
        vault = await vault_when_up(settings, ring, stop)
        resources.push_async_callback(vault.close)
        pool = ProviderPool(settings, vault)
        resources.push_async_callback(pool.close)
        access = ProviderAccess(pool, settings, deployment)
        github = GitHub(settings, vault)
        resources.push_async_callback(github.close)
        calls, followers = build_workers(
            client,
            settings.task_queue,
            activities=activities_of(client, settings, access, vault, ring, github),
            build_id=settings.build_id,
            identity=identity,
        )
        probe = WorkerProbe(
            client,
            identity,
            [
                PolledQueue(calls.task_queue, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW),
                PolledQueue(calls.task_queue, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
                PolledQueue(followers.task_queue, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY),
            ],
            settings.build_id,
        )
        try:
            await ensure_schedules(client, settings.task_queue)
        except ScheduleUnusable as error:
            # Sessions can be served without; `sandhold setup` says the same to whoever asks.
            log.error("storage is not cleaned up", reason=str(error))
        url = await resources.enter_async_context(health_endpoint(settings.health_address, probe))
        await run_until(stop, probe, url, calls, followers)


async def run_until(stop: asyncio.Event, probe: WorkerProbe, url: str, *workers: Worker) -> None:
    """Run the workers, and say `ready` once, until `stop` is set; running activities have finished then.

    Raises what ended a worker, or the probe, that nobody asked to end; the workers are stopped then as well.
    """
    running = [asyncio.create_task(worker.run()) for worker in workers]
    ready = asyncio.create_task(_announce(probe, url))
    stopping = asyncio.create_task(stop.wait())
    ended, _ = await asyncio.wait([*running, ready, stopping], return_when=asyncio.FIRST_COMPLETED)
    if ended == {ready} and ready.exception() is None:
        await asyncio.wait([*running, stopping], return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping", asked=stop.is_set())
    probe.stopping = True
    ready.cancel()
    stopping.cancel()
    await asyncio.gather(*(worker.shutdown() for worker in workers))
    await asyncio.gather(*running)
    await asyncio.wait([ready])
    if not ready.cancelled():
        ready.result()


async def _announce(probe: WorkerProbe, url: str) -> None:
    """Say `ready` once Temporal sees every queue polled."""
    while not (health := await probe()).ok:  # noqa: ASYNC110 - Temporal tells no event of ours
        await asyncio.sleep(0.05)
    if health.status == "ok":
        log.info("ready", health=url)
    else:
        log.warning("ready", health=url, reason=health.reason)
    print(f"ready {url}", flush=True)  # noqa: T201 - the one line that a supervisor waits for


def main() -> int:
    """Run the worker; the exit code."""
    block_stop_signals()
    configure_logging()
    try:
        settings = Settings.load()
        register_settings(settings)
        configure_logging(settings.log_level, settings.log_format)
        asyncio.run(serve(settings))
    except Stopped:
        pass
    except (SettingsError, SecurityError, NamespaceMissing, SearchAttributesUnusable) as error:
        log.error("cannot start", reason=str(error))
        return 2
    except VaultError as error:
        log.error("cannot start", reason=str(error), hint=error.hint)
        return 1 if error.retryable else 2
    except TemporalUnreachable as error:
        log.error("cannot start", reason=str(error))
        return 4
    except Exception:
        log.exception("failed")
        return 1
    log.info("stopped")
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter sometimes aborts at exit once Temporal's client ran (4 of 30 on Python 3.11).
    os._exit(code)
