"""The seam between the control plane and what runs a sandbox.

The control plane (records, states, timers, events) knows a `Runtime` that starts isolated sandboxes,
and the toolbox routes know a lookup that gives them a running sandbox or raises the HTTP error that
the provider would answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sandhold.local_daytona.toolbox_client import ToolboxClient


class IsolationUnavailable(RuntimeError):
    """Sandboxes cannot be isolated on this machine. The message says why and what to do about it."""


class SandboxStartFailed(RuntimeError):
    """One sandbox did not start. The message is fit for the provider's `errorReason`."""


@dataclass(frozen=True)
class SandboxSpec:
    """What the runtime needs to start one sandbox.

    `folder` is the sandbox's own folder below the data folder; its disk lives in `folder/"home"` and is
    made on the first start. `memory_gib` and `disk_gib` of 0 mean no limit.
    """

    sandbox_id: str
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cpu: int = 1
    memory_gib: int = 1
    disk_gib: int = 3
    network_block_all: bool = False


class RunningSandbox(Protocol):
    """A started sandbox: the namespaces and the toolbox process inside."""

    sandbox_id: str
    #: Speaks to the toolbox process inside; only the toolbox routes use it.
    toolbox: ToolboxClient
    #: Done when the sandbox has ended for whatever reason; the result says why ("stopped", "killed", ...).
    ended: asyncio.Future[str]

    async def kill(self) -> None:
        """End every process of the sandbox; its disk stays. Safe to repeat; returns when all are gone."""


class Runtime(Protocol):
    """Starts sandboxes on this machine."""

    #: What is limited here and how, for the start-up message: {"memory": "polled: ...", "processes": ...}.
    limits: Mapping[str, str]

    async def start(self, spec: SandboxSpec) -> RunningSandbox:
        """Start a sandbox whose toolbox answers when this returns. Raises SandboxStartFailed."""

    async def close(self) -> None:
        """End every sandbox of this runtime."""


#: Gives the toolbox routes the running sandbox for an id, noting activity, or raises the
#: `aiohttp.web.HTTPException` that the provider's proxy would answer (not found, not started).
SandboxLookup = Callable[[str], Awaitable[RunningSandbox]]
