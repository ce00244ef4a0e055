"""`sandhold secrets`: set, list and remove the secrets of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sandhold.cli.identifiers import SessionArgument
from sandhold.cli.output import EXIT_OK, JsonFlag, output, run
from sandhold.contracts.secrets import why_no_secret_variable

if TYPE_CHECKING:
    from rich.table import Table

    from sandhold.settings import Settings
    from sandhold.vault import SecretRow

app = typer.Typer(help="Set, list and remove the secrets of a session.", no_args_is_help=True, add_completion=False)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Its name, which is also the variable that a command finds it in.")
]


@app.callback()
def secrets() -> None:
    pass


@app.command("set", context_settings={"ignore_unknown_options": True})
def set_(
    session: SessionArgument,
    name: NameArgument,
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-]", help="`-` reads the value from stdin, less one newline at its end."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Set a secret of an open session, in place of one of this name.

    The value is asked for without an echo, or comes from stdin where that is no terminal; it is never an argument.
    """
    from sandhold.cli.vaults import secret_input
    from sandhold.security.secret_forms import is_searchable

    fault = why_no_secret_variable(name)
    if fault is not None:
        raise typer.BadParameter(fault)
    value = secret_input(source, f"The value of {name}")
    if not is_searchable(value.get_secret_value()):
        output.note("This value is too short to be told from other text: it is not redacted from what commands print.")

    async def work() -> int:
        from sandhold.cli.vaults import opened_vault
        from sandhold.settings import Settings

        settings = Settings.load()
        run_id = await _run_of(session, settings, open_only=True)
        async with opened_vault(settings) as vault:
            row = await vault.set_secret(session, run_id, name, value)
        answer = {"session_id": session, **_shown(row)}
        output.show_data(answer, lambda: f"set {name} for session {session}")
        return EXIT_OK

    run(work)


@app.command("list")
def list_(session: SessionArgument, as_json: JsonFlag = False) -> None:
    """List the names of a session's secrets. Nothing shows their values.

    `retired` counts values that were replaced or removed: no command gets them, and output that shows them is redacted.
    """

    async def work() -> int:
        from sandhold.cli.vaults import opened_vault
        from sandhold.settings import Settings

        settings = Settings.load()
        run_id = await _run_of(session, settings, open_only=False)
        async with opened_vault(settings) as vault:
            rows = await vault.secret_rows(session, run_id)
            retired = await vault.retired_count(session, run_id)
        answer = {"session_id": session, "secrets": [_shown(row) for row in rows], "retired": retired}
        output.show_data(answer, lambda: _table(rows))
        if retired:
            output.note(f"Kept until the session's clean-up, so that output is redacted: {retired} earlier values.")
        return EXIT_OK

    run(work)


@app.command("rm")
def rm(session: SessionArgument, name: NameArgument, as_json: JsonFlag = False) -> None:
    """Remove a secret of a session. Output that shows its value is redacted until the session's clean-up."""

    async def work() -> int:
        from sandhold.cli.vaults import opened_vault
        from sandhold.settings import Settings

        settings = Settings.load()
        run_id = await _run_of(session, settings, open_only=False)
        async with opened_vault(settings) as vault:
            await vault.delete_secret(session, run_id, name)
        output.show_data({"session_id": session, "name": name, "removed": True}, lambda: f"removed {name}")
        return EXIT_OK

    run(work)


async def _run_of(session_id: str, settings: Settings, *, open_only: bool) -> str:
    """The first run of the session. Raises SessionNotFound, SessionEnded where it must be open, TemporalRefused."""
    from temporalio.service import RPCError

    from sandhold.cli.connecting import connected
    from sandhold.client import SessionEnded, TemporalRefused
    from sandhold.temporal import session_record

    sandhold = await connected(settings)
    row = await sandhold.find_session(session_id)
    if open_only and row.state == "ended":
        raise SessionEnded(session_id)
    try:
        return (await session_record(sandhold.client, session_id)).run_id
    except RPCError as error:
        raise TemporalRefused(f"Temporal refused to tell of the session: {error.message}") from error


def _shown(row: SecretRow) -> dict[str, str]:
    shown: dict[str, str] = row.model_dump(mode="json", include={"name", "created_at", "updated_at"})
    return shown


def _table(rows: list[SecretRow]) -> Table:
    from rich.table import Table

    table = Table("name", "set (UTC)", box=None)
    for row in rows:
        table.add_row(row.name, f"{row.updated_at:%Y-%m-%d %H:%M:%S}")
    return table
