"""The fault plan of a local Daytona, as tests set it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True)
class RequestSeen:
    """A request in the server's log; `status` is None if it was not answered."""

    number: int
    method: str
    route: str
    path: str
    sandbox: list[str]
    status: int | None
    faults: list[str]


class FaultPlan:
    """Says what goes wrong next at one server; `url` is the server's API address."""

    def __init__(self, client: aiohttp.ClientSession, url: str, key: str) -> None:
        self._client = client
        self._url = f"{url.removesuffix('/api')}/faults"
        self._headers = {"Authorization": f"Bearer {key}"}

    async def add(self, *, effect: str, **rule: Any) -> int:
        """Add a rule (fields of `sandhold.local_daytona.faults.Rule`); returns its id."""
        answer = await self._ask("POST", "", json={"effect": effect, **rule})
        return int(answer["id"])

    async def remove(self, rule_id: int) -> None:
        """Take out one rule; a delete that it holds goes on."""
        await self._ask("DELETE", f"/{rule_id}")

    async def clear(self) -> None:
        """Take out every rule."""
        await self._ask("DELETE", "")

    async def hits(self, rule_id: int) -> int:
        """How often a rule was applied."""
        rules = (await self._ask("GET", ""))["rules"]
        return next(int(rule["hits"]) for rule in rules if rule["id"] == rule_id)

    async def requests(
        self, *, method: str | None = None, route: str | None = None, sandbox: str | None = None
    ) -> list[RequestSeen]:
        """The requests so far that match, oldest first; `sandbox` is a name or an id."""
        query = {"method": method, "route": route, "sandbox": sandbox}
        given = {name: value for name, value in query.items() if value is not None}
        rows = (await self._ask("GET", "/requests", params=given))["requests"]
        for row in rows:
            del row["at"]
        return [RequestSeen(**row) for row in rows]

    async def forget_requests(self) -> None:
        """Empty the request log."""
        await self._ask("DELETE", "/requests")

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        async with self._client.request(method, f"{self._url}{path}", headers=self._headers, **options) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise AssertionError(f"the fault plan refused {method} {path}: {answer.status} {text}")
            return await answer.json() if text else None
