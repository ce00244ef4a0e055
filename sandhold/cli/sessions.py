"""`sandhold session`: start, list, show and end agent sessions."""

from __future__ import annotations

import json
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sandhold.cli.identifiers import SessionArgument, valid_id
from sandhold.cli.output import EXIT_OK, JsonFlag, output, run

if TYPE_CHECKING:
    from rich.table import Table

    from sandhold.client import Capability, SessionRow, ShownSession
    from sandhold.contracts.sessions import SessionOutcome
    from sandhold.contracts.transfers import SavedWorkspace

app = typer.Typer(help="Start, list, show and end agent sessions.", no_args_is_help=True, add_completion=False)


@app.command()
def start(
    session: Annotated[
        str | None, typer.Option("--session", callback=valid_id, help="Id of the session (default: a new one).")
    ] = None,
    owner: Annotated[str, typer.Option(help="The tenant or user that it belongs to.")] = "default",
    policy: Annotated[str | None, typer.Option(help="Policy as JSON, `-` for stdin or @file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start a session, or attach to the open one of this id."""
    chosen = _policy(policy)

    async def work() -> int:
        from sandhold.cli.connecting import connected

        sandhold = await connected()
        opened = await sandhold.open_session(session, owner, chosen)
        row = await sandhold.find_session(opened.session_id)
        answer = row.model_dump(mode="json", include={"session_id", "workflow_id", "owner", "state"})
        output.show_data(answer, lambda: f"session {row.session_id} of {row.owner} is {row.state}")
        return EXIT_OK

    run(work)


@app.command("list")
def list_(
    owner: Annotated[str | None, typer.Option(help="Only sessions of this owner.")] = None,
    state: Annotated[
        Literal["open", "ending", "ended"] | None, typer.Option(help="Only sessions in this state.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List sessions, newest first."""

    async def work() -> int:
        from sandhold.cli.connecting import connected

        rows = await (await connected()).list_sessions(owner=owner, state=state, limit=limit)
        output.show_data({"sessions": [row.model_dump(mode="json") for row in rows]}, lambda: _table_of_sessions(rows))
        return EXIT_OK

    run(work)


@app.command()
def show(session: SessionArgument, as_json: JsonFlag = False) -> None:
    """Show a session: its policy, what it can use, and its sandboxes, live."""

    async def work() -> int:
        from sandhold.cli.connecting import connected

        shown = await (await connected()).session(session).show()
        shown = shown.model_copy(update={"capabilities": await _capabilities(shown)})
        output.show(shown, lambda: _table_of_session(shown))
        return EXIT_OK

    run(work)


@app.command()
def end(
    session: SessionArgument,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "ended",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return when the end has begun.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """End a session; returns when every sandbox is confirmed deleted. Harmless to repeat."""

    async def work() -> int:
        from sandhold.cli.connecting import connected

        asked = (await connected()).session(session)
        if no_wait:
            answer = await asked.end(reason, wait=False)
            output.show(answer, lambda: f"session {answer.session_id} is {answer.state}")
        else:
            outcome = await asked.end(reason)
            output.show(outcome, lambda: _told(outcome))
        return EXIT_OK

    run(work)


async def _capabilities(shown: ShownSession) -> list[Capability]:
    """What the session can use; that the vault cannot be read hides nothing else of a session."""
    if find_spec("sqlalchemy") is None:
        return _unknown("the vault is read on the server side")
    from sandhold.cli.vaults import opened_vault
    from sandhold.connections.capabilities import capabilities_of
    from sandhold.security import SecurityError
    from sandhold.settings import Settings
    from sandhold.vault import VaultError
    from sandhold.vault.database import open_database

    settings = Settings.load()
    try:
        if not open_database(settings).is_there():
            return _unknown("there is no vault where the settings of this machine say")
        async with opened_vault(settings) as vault:
            return await capabilities_of(settings, vault, shown.owner, shown.sandboxes)
    except (VaultError, SecurityError) as error:
        return _unknown(str(error))


def _unknown(why: str) -> list[Capability]:
    from sandhold.client import Capability

    return [Capability(name=name, reason=f"not known here: {why}") for name in ("sandboxes", "git")]


def _policy(given: str | None) -> dict[str, Any] | None:
    if given is None:
        return None
    from sandhold.cli.connecting import text_argument

    try:
        policy = json.loads(text_argument(given))
    except ValueError as error:
        raise typer.BadParameter(f"--policy is not JSON: {error}") from error
    if not isinstance(policy, dict):
        raise typer.BadParameter("--policy must be a JSON object")
    return policy


_IS = {True: "has", False: "has no", None: "may have"}


def _moment(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "-"


def _table_of_sessions(rows: list[SessionRow]) -> Table:
    from rich.table import Table

    table = Table("session", "owner", "state", "started (UTC)", "ended (UTC)", box=None)
    for row in rows:
        table.add_row(row.session_id, row.owner, row.state, _moment(row.started_at), _moment(row.ended_at))
    return table


def _table_of_session(shown: ShownSession) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = f"session {shown.session_id} of {shown.owner}: {shown.state}, ends at {_moment(shown.ends_at)} UTC"
    table = Table(
        "sandbox", "state", "calls", "used (UTC)", "stops (UTC)", "provider id", "error", title=title, box=None
    )
    kept = [f"sandbox {row.sandbox_id} {_kept(row.saved)}" for row in shown.sandboxes if row.saved is not None]
    uses = [f"{_IS[each.available]} {each.name}: {each.reason}" for each in shown.capabilities]
    if kept or uses:
        table.caption, table.caption_justify = Text("\n".join([*uses, *kept])), "left"
    for row in shown.sandboxes:
        table.add_row(
            row.sandbox_id,
            row.state,
            str(row.running_calls),
            _moment(row.last_used_at),
            _moment(row.stops_at),
            row.provider_id or "-",
            row.error.message if row.error else "-",
        )
    return table


def _told(outcome: SessionOutcome) -> str:
    lines = [f"session {outcome.session_id} has ended ({outcome.reason})"]
    for sandbox in outcome.sandboxes:
        saved = "" if sandbox.saved is None else f", {_kept(sandbox.saved)}"
        lines.append(f"  sandbox {sandbox.sandbox_id}: {sandbox.outcome}{saved}")
    return "\n".join(lines)


def _kept(saved: SavedWorkspace) -> str:
    if saved.error is not None:
        return f"not saved: {saved.error.message}"
    lacks = "" if saved.report_path is None else f"; {saved.report_path} says what it lacks"
    return f"saved to {saved.session_path} ({saved.files} files, {saved.archive_bytes} bytes{lacks})"
