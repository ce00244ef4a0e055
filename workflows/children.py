"""The sandboxes' workflows as their session sees them: started, cancelled, and never left without an owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from temporalio import workflow
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import ChildWorkflowError, FailureError, WorkflowAlreadyStartedError
from temporalio.workflow import ChildWorkflowHandle, ParentClosePolicy

from workflows.waiting import until

with workflow.unsafe.imports_passed_through():
    from sandhold.contracts.names import (
        OWNER_ATTRIBUTE,
        SANDBOX_ATTRIBUTE,
        SANDBOX_WORKFLOW,
        SESSION_ATTRIBUTE,
        STATE_ATTRIBUTE,
        sandbox_workflow_id,
    )
    from sandhold.contracts.sandboxes import SandboxOutcome, SandboxStart, SandboxState

OWNER_KEY = SearchAttributeKey.for_keyword(OWNER_ATTRIBUTE)
SESSION_KEY = SearchAttributeKey.for_keyword(SESSION_ATTRIBUTE)
SANDBOX_KEY = SearchAttributeKey.for_keyword(SANDBOX_ATTRIBUTE)
STATE_KEY = SearchAttributeKey.for_keyword(STATE_ATTRIBUTE)

_RESTART_S = 5.0

Child = ChildWorkflowHandle[object, SandboxOutcome]


class Children:
    """The open sandbox workflows of one session, by sandbox id.

    Their parent-close policy makes the server itself cancel them when the session is terminated or times out.
    """

    def __init__(self, session_id: str, ended: Callable[[SandboxStart, SandboxOutcome], None]) -> None:
        """`ended` hears of every sandbox whose absence is confirmed."""
        self._session_id = session_id
        self._ended = ended
        self._open: dict[str, Child] = {}
        self._cancelled = False

    def __bool__(self) -> bool:
        return bool(self._open)

    def get(self, sandbox_id: str) -> Child | None:
        return self._open.get(sandbox_id)

    async def start(self, start: SandboxStart) -> None:
        """Give a sandbox its owner. Raises WorkflowAlreadyStartedError when another workflow has its id."""
        state = SandboxState.DELETING if start.delete_only else SandboxState.CREATING
        child = await workflow.start_child_workflow(
            SANDBOX_WORKFLOW,
            start,
            id=self._workflow_id(start.sandbox_id),
            result_type=SandboxOutcome,
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(OWNER_KEY, start.owner),
                    SearchAttributePair(SESSION_KEY, start.session_id),
                    SearchAttributePair(SANDBOX_KEY, start.sandbox_id),
                    SearchAttributePair(STATE_KEY, state.value),
                ]
            ),
            static_summary=f"sandbox {start.sandbox_id} of session {start.session_id} for {start.owner}",
        )
        self._open[start.sandbox_id] = child
        asyncio.create_task(self._watch(start, child))  # noqa: RUF006 - the event loop of a workflow keeps its tasks
        if self._cancelled:
            self._cancel(start.sandbox_id)

    def cancel_all(self) -> None:
        """Have every sandbox deleted, also those that are started later."""
        self._cancelled = True
        for sandbox_id in self._open:
            self._cancel(sandbox_id)

    def _cancel(self, sandbox_id: str) -> None:
        asyncio.create_task(self._request_cancel(sandbox_id))  # noqa: RUF006 - the event loop of a workflow keeps its tasks

    async def _request_cancel(self, sandbox_id: str) -> None:
        """Ask the sandbox's workflow to delete and complete.

        By its id alone: the child's own handle cancels the run that was started, and the server grants that
        without effect once the child has continued as new (server 1.32.0, measured).
        """
        try:
            await workflow.get_external_workflow_handle(self._workflow_id(sandbox_id)).cancel()
        except FailureError as failure:
            # It has just closed: then the watch on it decides.
            workflow.logger.info("sandbox workflow took no cancellation", extra={"error": str(failure)})

    async def _watch(self, start: SandboxStart, child: Child) -> None:
        """Tell how the sandbox ended. One that closed without a confirmed deletion gets a new owner to delete it."""
        try:
            outcome = await child
        except ChildWorkflowError:
            del self._open[start.sandbox_id]
            await self._delete_in_its_place(
                start.model_copy(update={"delete_only": True, "carried": None, "git_tokens": True})
            )
            return
        del self._open[start.sandbox_id]
        self._ended(start, outcome)

    async def _delete_in_its_place(self, start: SandboxStart) -> None:
        while True:
            try:
                await self.start(start)
            except WorkflowAlreadyStartedError:
                # Somebody else's workflow has the id: the provider's sandbox is still ours to delete.
                await until(lambda: False, timeout_s=_RESTART_S)
            else:
                return

    def _workflow_id(self, sandbox_id: str) -> str:
        return sandbox_workflow_id(self._session_id, sandbox_id)
