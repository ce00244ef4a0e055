"""The fault plan: which requests go wrong, how, and how often.

A plan is a list of rules. A request passes them in order; each rule that matches counts it, lets the
first `skip` pass, and then applies its effect `times` times (or always). An effect that answers or cuts the
request short (`status`, `reset_before`) ends the walk, so that a later rule does not count a request that
never got that far.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sandhold.local_daytona.errors import timestamp
from sandhold.local_daytona.transitions import Interference, StartRefused

REQUEST_LOG_SIZE = 10_000

#: The ways a request can go wrong:
#: `answer_lost`   the work is done, then the connection is reset instead of an answer;
#: `reset_before`  the connection is reset before any work;
#: `reset_during`  the work is done, and the connection is reset in the middle of the answer;
#: `status`        `status`, `headers` and `body` are answered before any work;
#: `delay`         `seconds` pass before the work, or after it with `when: after`;
#: `start_error`   the start or create that this request asks for ends in `error` with `reason`;
#: `start_delay`   the start or create takes `seconds` longer;
#: `delete_hangs`  the delete stays in `destroying` for `seconds`, or until the rule is removed.
Effect = Literal[
    "answer_lost",
    "reset_before",
    "reset_during",
    "status",
    "delay",
    "start_error",
    "start_delay",
    "delete_hangs",
]


class Rule(BaseModel):
    """One rule. Every condition that is given must hold.

    `route` is a route as the request log shows it; the names of its parameters do not matter. `path` is a
    regular expression that must match the whole path. `sandbox` is a name or an id, `labels` are some labels
    of the sandbox; of a create they are taken from its body.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    effect: Effect
    method: str | None = None
    route: str | None = None
    path: str | None = None
    sandbox: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    skip: int = Field(default=0, ge=0)
    times: int | None = Field(default=None, ge=1)
    status: int | None = Field(default=None, ge=200, le=599)
    headers: dict[str, str] = Field(default_factory=dict)
    body: object = None
    seconds: float | None = Field(default=None, ge=0)
    when: Literal["before", "after"] = "before"
    reason: str = "The fault plan asked for an error"
    recoverable: bool = False

    @field_validator("path")
    @classmethod
    def _is_a_pattern(cls, path: str | None) -> str | None:
        try:
            re.compile(path or "")
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        return path

    @model_validator(mode="after")
    def _has_what_its_effect_needs(self) -> Self:
        if self.effect == "status" and self.status is None:
            raise ValueError("the effect status needs a status")
        if self.effect in ("delay", "start_delay") and self.seconds is None:
            raise ValueError(f"the effect {self.effect} needs seconds")
        return self

    def matches(self, asked: Asked) -> bool:
        return (
            (self.method is None or self.method.upper() == asked.method)
            and (self.route is None or _unnamed(self.route) == _unnamed(asked.route))
            and (self.path is None or re.fullmatch(self.path, asked.path) is not None)
            and (self.sandbox is None or self.sandbox in asked.sandbox)
            and self.labels.items() <= asked.labels.items()
        )


@dataclass(frozen=True)
class Asked:
    """A request, as far as rules look at it; `sandbox` holds the names and ids that its sandbox goes by."""

    method: str
    route: str
    path: str
    sandbox: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class PlannedRule:
    """A rule in the plan: how often it was seen and applied, and whether it has been taken out."""

    id: int
    rule: Rule
    seen: int = 0
    hits: int = 0
    removed: asyncio.Event = field(default_factory=asyncio.Event)

    def applies_to(self, asked: Asked) -> bool:
        """Whether the rule's effect is due for this request, which is counted."""
        rule = self.rule
        if not rule.matches(asked):
            return False
        self.seen += 1
        if self.seen <= rule.skip or (rule.times is not None and self.hits >= rule.times):
            return False
        self.hits += 1
        return True

    def shown(self) -> dict[str, object]:
        return {"id": self.id, "seen": self.seen, "hits": self.hits} | self.rule.model_dump()


@dataclass(eq=False)
class LoggedRequest:
    """One request in the log; `status` stays None while it is not answered, or if it never is."""

    number: int
    at: str
    method: str
    route: str
    path: str
    #: The names and ids that the sandbox goes by, as far as they are known when the request comes in.
    sandbox: list[str]
    status: int | None = None
    faults: list[str] = field(default_factory=list)


class FaultPlan:
    """The rules and the request log of one server."""

    def __init__(self) -> None:
        self._rules: list[PlannedRule] = []
        self._count = 0
        self._requests: deque[LoggedRequest] = deque(maxlen=REQUEST_LOG_SIZE)
        self._requests_seen = 0

    def add(self, rule: Rule) -> PlannedRule:
        self._count += 1
        planned = PlannedRule(self._count, rule)
        self._rules.append(planned)
        return planned

    def remove(self, rule_id: int) -> bool:
        """Whether there was such a rule; what it held back goes on."""
        for planned in self._rules:
            if planned.id == rule_id:
                self._rules.remove(planned)
                planned.removed.set()
                return True
        return False

    def clear(self) -> None:
        """No rule is left; what the rules held back goes on."""
        for planned in list(self._rules):
            self.remove(planned.id)

    def shown(self) -> list[dict[str, object]]:
        return [planned.shown() for planned in self._rules]

    def effects_for(self, asked: Asked) -> list[PlannedRule]:
        """The rules to apply to this request, in order, each of them counted."""
        due: list[PlannedRule] = []
        for planned in self._rules:
            if planned.applies_to(asked):
                due.append(planned)
                if planned.rule.effect in ("status", "reset_before"):
                    break
        return due

    def log_request(self, asked: Asked) -> LoggedRequest:
        self._requests_seen += 1
        entry = LoggedRequest(
            number=self._requests_seen,
            at=timestamp(datetime.now(UTC)),
            method=asked.method,
            route=asked.route,
            path=asked.path,
            sandbox=sorted(asked.sandbox),
        )
        self._requests.append(entry)
        return entry

    def requests(
        self, method: str | None = None, route: str | None = None, sandbox: str | None = None
    ) -> list[dict[str, object]]:
        """The logged requests that match, oldest first."""
        return [
            asdict(entry)
            for entry in self._requests
            if method in (None, entry.method)
            and (route is None or _unnamed(route) == _unnamed(entry.route))
            and (sandbox is None or sandbox in entry.sandbox)
        ]

    def forget_requests(self) -> None:
        self._requests.clear()


class PlannedInterference(Interference):
    """What the rules that apply to a request do to the change of state it asks for."""

    def __init__(self, rules: Iterable[PlannedRule]) -> None:
        self._rules = list(rules)

    async def before_start(self) -> None:
        for planned in self._rules:
            rule = planned.rule
            if rule.effect == "start_delay":
                await asyncio.sleep(rule.seconds or 0)
            elif rule.effect == "start_error":
                raise StartRefused(rule.reason, recoverable=rule.recoverable)

    async def before_destroy(self) -> None:
        for planned in self._rules:
            if planned.rule.effect == "delete_hangs":
                try:
                    await asyncio.wait_for(planned.removed.wait(), planned.rule.seconds)
                except TimeoutError:
                    continue


def _unnamed(route: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", route)
