"""`sandhold setup`: what a Temporal namespace needs before sessions can run in it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sandhold.cli.output import EXIT_FAILED, EXIT_OK, JsonFlag, output, run

if TYPE_CHECKING:
    from temporalio.client import Client


def setup(as_json: JsonFlag = False) -> None:
    """Register missing search attributes, schedule the clean-up of storage; with SANDHOLD_BUILD_ID make it current.

    Safe to repeat. Workers of the build must be running: a build nobody runs cannot become current.
    """

    async def work() -> int:
        from sandhold.cli.connecting import connected
        from sandhold.schedules import ensure_schedules
        from sandhold.search_attributes import register_search_attributes
        from sandhold.settings import Settings

        settings = Settings.load()
        client = (await connected(settings)).client
        registered = await register_search_attributes(client)
        scheduled = await ensure_schedules(client, settings.task_queue)
        answer: dict[str, Any] = {
            "namespace": client.namespace,
            "registered": registered,
            "scheduled": scheduled,
            "current_build": None,
        }
        if settings.build_id is not None:
            refusal = await make_current(client, settings.build_id)
            if refusal is not None:
                output.fail(f"build {settings.build_id} was not made current: {refusal}", "build_not_current")
                return EXIT_FAILED
            answer["current_build"] = settings.build_id
        output.show_data(answer, lambda: _told(answer))
        return EXIT_OK

    run(work)


async def make_current(client: Client, build_id: str) -> str | None:
    """Send new workflow tasks to the workers of this build; None, or why the server refused."""
    from temporalio.api.workflowservice.v1 import SetWorkerDeploymentCurrentVersionRequest
    from temporalio.service import RPCError

    from sandhold.contracts.names import WORKER_DEPLOYMENT

    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace, deployment_name=WORKER_DEPLOYMENT, build_id=build_id, identity=client.identity
    )
    try:
        await client.workflow_service.set_worker_deployment_current_version(
            request, retry=True, timeout=timedelta(seconds=30)
        )
    except RPCError as error:
        return error.message
    return None


def _told(answer: dict[str, Any]) -> str:
    done = ", ".join(answer["registered"]) or "nothing was missing"
    lines = [f"search attributes registered in namespace {answer['namespace']}: {done}"]
    lines += [f"scheduled: {schedule}" for schedule in answer["scheduled"]]
    if answer["current_build"]:
        lines.append(f"current build: {answer['current_build']}")
    return "\n".join(lines)
