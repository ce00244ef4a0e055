"""`sandhold doctor`: is everything there that this deployment needs?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandhold.cli.output import EXIT_FAILED, EXIT_OK, JsonFlag, output, run

if TYPE_CHECKING:
    from rich.table import Table

    from sandhold.cli.checks import Check


def doctor(as_json: JsonFlag = False) -> None:
    """Check the key ring, Temporal, the worker, the provider, storage, vault and the isolation of local sandboxes.

    Exits with 1 when something is wrong.
    """

    async def work() -> int:
        from sandhold.cli.checks import examine
        from sandhold.settings import Settings

        checks = await examine(Settings.load())
        healthy = all(check.ok is not False for check in checks)
        answer = {"ok": healthy, "checks": [check.model_dump(mode="json") for check in checks]}
        output.show_data(answer, lambda: _table(checks))
        return EXIT_OK if healthy else EXIT_FAILED

    run(work)


def _table(checks: list[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    marks = {True: ("ok", "green"), False: ("wrong", "bold red"), None: ("skipped", "dim")}
    table = Table(box=None, show_header=False)
    for check in checks:
        mark, style = marks[check.ok]
        told = check.detail if check.hint is None else f"{check.detail}\n{check.hint}"
        table.add_row(Text(mark, style=style), check.name, Text(told))
    return table
