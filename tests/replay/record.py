"""Records the histories of the main scenarios: `make histories NAME=<release>`.

They are added beside those that are there, and stay for ever: what has run anywhere must replay. Payloads are decoded
to plain JSON, in which no secret may be; what could tell of the machine (identities, stack traces) is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from temporalio.client import Client

from sandhold.security.key_document import KeyDocument
from tests.local_daytona_server import running_local_daytona
from tests.replay.fingerprints import write_fingerprints
from tests.replay.plain_text import check_nothing_secret, in_plain_text
from tests.replay.scenarios import SCENARIOS
from tests.stack import CONVERTER, KEY_RING, histories, running_stack, running_temporal

FOLDER = Path(__file__).parent / "histories"
_IDENTITY = re.compile(r'"identity": "[^"]*"')
_STACK_TRACE = re.compile(r'"stackTrace": "(?:[^"\\]|\\.)*"')
_STICKY = re.compile(r'("name": ")[^"]*:[0-9a-f]{32}"')


async def record(release: str, scenarios: Sequence[str]) -> None:
    """Run each of the scenarios once and write the history of each of its runs."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running_temporal() as temporal,
            running_local_daytona(Path(folder) / "daytona") as daytona,
            running_stack(temporal.client, daytona, Path(folder) / "data", task_queue="sandhold") as stack,
        ):
            for name in scenarios:
                session = await SCENARIOS[name](stack)
                await daytona.faults.clear()
                await _write(temporal.client, release, name, session.session_id, _secrets(daytona.api_key))


def _secrets(api_key: str) -> list[str]:
    """What whoever records knows, and no history may hold."""
    keys = KeyDocument.parse(KEY_RING, "the tests").keys
    return [api_key, *(key.material.get_secret_value() for key in keys if key.material)]


async def _write(client: Client, release: str, scenario: str, session_id: str, secrets: list[str]) -> None:
    number = 0
    async for encrypted in histories(client, f"SandholdSession = '{session_id}'"):
        number += 1
        history = await in_plain_text(encrypted, CONVERTER, client.namespace)
        text = json.dumps(json.loads(history.to_json()), indent=1, sort_keys=True)
        text = _IDENTITY.sub('"identity": "recorded"', text)
        text = _STACK_TRACE.sub('"stackTrace": ""', text)
        text = _STICKY.sub(r'\1recorded"', text)
        check_nothing_secret(text, secrets)
        kind = history.workflow_id.partition("/")[0]
        path = FOLDER / f"{release}-{scenario.replace('_', '-')}-{number:02}-{kind}.json"
        document = {"workflow_id": history.workflow_id, "history": json.loads(text)}
        path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        print(path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release", help="prefix of the files' names, for example v1")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="not all scenarios")
    given = parser.parse_args()
    if any(list(FOLDER.glob(f"{given.release}-{name.replace('_', '-')}-*.json")) for name in given.only):
        parser.error(f"histories of {given.release} are recorded already; they stay as they are: choose another name")
    asyncio.run(record(given.release, given.only))
    write_fingerprints()


if __name__ == "__main__":
    main()
