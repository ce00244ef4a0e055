"""The examples run, and the README shows the first of them."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.stack import Stack, environment_of

REPOSITORY = Path(__file__).parent.parent
FIRST_SESSION = REPOSITORY / "examples" / "first_session.py"


async def test_the_first_session_runs(stack: Stack, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(FIRST_SESSION),
        stdout=asyncio.subprocess.PIPE,
        env=dict(environment_of(stack, tmp_path)),
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert "0 hello from" in out.decode()
    assert "outcome='deleted'" in out.decode()


def test_the_readme_shows_the_first_session() -> None:
    [shown] = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert FIRST_SESSION.read_text().endswith(shown)
