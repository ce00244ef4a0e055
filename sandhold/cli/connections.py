"""`sandhold connect`, `connections` and `disconnect`: the providers that owners bring."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import SecretStr

from sandhold.cli.output import EXIT_OK, JsonFlag, output, run
from sandhold.cli.vaults import opened_vault, secret_input
from sandhold.contracts.names import DEFAULT_CONNECTION, is_owner
from sandhold.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table
    from temporalio.client import Client

    from sandhold.connections.changes import Connected, Disconnected
    from sandhold.connections.github_credential import GitHubConnected
    from sandhold.vault import ConnectionRow

app = typer.Typer(help="Connect an owner to a provider.", no_args_is_help=True, add_completion=False)


def _owner(given: str | None) -> str | None:
    if given is not None and not is_owner(given):
        raise typer.BadParameter(f"{given[:140]!r}: letters, digits and _ . : @ -, at most 128")
    return given


OwnerOption = Annotated[str, typer.Option("--owner", callback=_owner, help="The tenant or user that it belongs to.")]


@app.callback()
def connect() -> None:
    """Connect an owner to a provider."""


@app.command("daytona")
def connect_daytona(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-]", help="`-` reads the key from stdin, less one newline at its end."),
    ] = None,
    owner: OwnerOption = "default",
    api_url: Annotated[
        str | None, typer.Option("--api-url", help="Daytona's API (default: the hosted service).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Store a Daytona API key once it has proved itself: asked for without an echo, or from stdin, never an argument.

    Running sessions of the owner pick a replaced key up within ten seconds.
    """
    key = _one_word(secret_input(source, "The Daytona API key"))

    async def work() -> int:
        from sandhold.connections.changes import connect_daytona

        async with opened_vault(Settings.load()) as vault:
            connected = await connect_daytona(_temporal, vault, owner, key, api_url)
        answer = {**_row(connected.row), "replaced": connected.replaced, "sandboxes_seen": connected.sandboxes_seen}
        output.show_data(answer, lambda: _told(connected))
        return EXIT_OK

    run(work)


@app.command("github")
def connect_github(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-]", help="`-` reads the token from stdin, less one newline at its end."),
    ] = None,
    owner: OwnerOption = "default",
    installation: Annotated[
        int | None,
        typer.Option("--installation", min=1, help="Instead of a token: an installation of this deployment's app."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Store a GitHub token, or an installation of the deployment's GitHub App, once GitHub has taken it.

    A token is asked for without an echo, or comes from stdin, never as an argument.
    """
    if installation is not None and source:
        raise typer.BadParameter("give a token or --installation, not both")
    given = installation if installation is not None else _one_word(secret_input(source, "The GitHub token"))

    async def work() -> int:
        from sandhold.connections.github_credential import connect_github

        settings = Settings.load()
        async with opened_vault(settings) as vault:
            connected = await connect_github(settings, vault, owner, given)
        output.show_data({**_row(connected.row), "replaced": connected.replaced}, lambda: _told_of_github(connected))
        return EXIT_OK

    run(work)


def connections(
    owner: Annotated[str | None, typer.Option(callback=_owner, help="Only those that this owner has or uses.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the connections, with masked keys, last use and last failure.

    First the deployment's own, as far as the settings of this machine tell of it: the workers may have another.
    """

    async def work() -> int:
        settings = Settings.load()
        async with opened_vault(settings) as vault:
            rows = await vault.connection_rows(owner)
        shown = [*_deployments_own(settings), *(_row(row) for row in rows)]
        output.show_data({"connections": shown}, lambda: _table(shown))
        return EXIT_OK

    run(work)


def disconnect(
    provider: Annotated[Literal["daytona", "github"], typer.Argument(help="Which connection.")],
    owner: OwnerOption = "default",
    force: Annotated[
        bool, typer.Option("--force", help="Also when open sandboxes need it; they cannot be deleted then.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Forget an owner's connection; refused while open sandboxes are used under it."""

    async def work() -> int:
        from sandhold.connections.changes import disconnect

        async with opened_vault(Settings.load()) as vault:
            done = await disconnect(_temporal, vault, owner, provider, force=force)
        left = [each.model_dump(mode="json") for each in done.left_behind]
        output.show_data({"owner": owner, "provider": provider, "left_behind": left}, lambda: _said(done))
        return EXIT_OK

    run(work)


def _one_word(given: SecretStr) -> SecretStr:
    """A key without the blanks around it. Raises BadParameter for what no key can be."""
    key = given.get_secret_value().strip()
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        raise typer.BadParameter("that is no API key: it has blanks or signs within that no key has")
    return SecretStr(key)


async def _temporal() -> Client:
    from sandhold.cli.connecting import connected

    return (await connected()).client


def _row(row: ConnectionRow) -> dict[str, Any]:
    """A connection as everybody may see it."""
    shown = row.model_dump(mode="json", exclude={"hint", "details"})
    # An installation's number is no key.
    key = None if row.details.get("kind") == "app" else row.masked
    return {**shown, "key": key, "source": "owner", "details": row.details}


def _deployments_own(settings: Settings) -> list[dict[str, Any]]:
    """The connection of those who have none, as far as this process is told."""
    from sandhold.connections.address import deployment_address

    address = deployment_address(settings)
    if address is None:
        return []
    key = None if settings.daytona_api_key is None else "****"
    return [
        {
            "id": DEFAULT_CONNECTION,
            "owner": None,
            "provider": "daytona",
            "version": 1,
            "api_url": address,
            "organization": None,
            "key": key,
            "source": "deployment",
            "details": {},
            **dict.fromkeys(("created_at", "updated_at", "last_used_at", "last_failure_at", "last_failure")),
        }
    ]


def _told(connected: Connected) -> str:
    row, key = connected.row, connected.key
    permissions = "unknown" if key.permissions is None else ", ".join(key.permissions) or "none listed"
    lines = [
        f"{row.provider} is {'connected anew' if connected.replaced else 'connected'} for {row.owner}: key {row.masked}"
        + (f" ({key.name})" if key.name else ""),
        f"  organization  {row.organization or 'unknown'}",
        f"  permissions   {permissions}",
    ]
    if key.expires_at is not None:
        lines.append(f"  expires       {key.expires_at:%Y-%m-%d %H:%M} UTC")
    if connected.replaced:
        lines.append(f"  sees          {connected.sandboxes_seen} of the open sandboxes that were looked for")
    return "\n".join(lines)


def _told_of_github(connected: GitHubConnected) -> str:
    row, credential = connected.row, connected.credential
    what = f"token {row.masked} of" if credential.kind == "token" else "installation of the app at"
    permissions = "unknown" if credential.permissions is None else ", ".join(credential.permissions)
    lines = [
        f"github is {'connected anew' if connected.replaced else 'connected'} for {row.owner}: "
        f"{what} {credential.account}",
        f"  at            {row.api_url}",
        f"  permissions   {permissions}",
        f"  commits by    {credential.name} <{credential.email}>",
    ]
    if credential.expires_at is not None:
        lines.append(f"  expires       {credential.expires_at:%Y-%m-%d %H:%M} UTC")
    return "\n".join(lines)


def _said(done: Disconnected) -> str:
    text = f"{done.provider} is disconnected for {done.owner}"
    if done.left_behind:
        text += f"; {len(done.left_behind)} open sandboxes are left without it, until it is connected again"
    return text


def _table(shown: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("owner", "provider", "key", "used (UTC)", "last failure (UTC)", "account and address", box=None)
    for row in shown:
        failure = "-" if row["last_failure"] is None else f"{row['last_failure']} at {_moment(row['last_failure_at'])}"
        cells = [
            row["owner"] or "(set here)",
            row["provider"],
            row["key"] or "-",
            _moment(row["last_used_at"]),
            failure,
            " at ".join(each for each in (_account(row), row["api_url"] or "the hosted service") if each),
        ]
        table.add_row(*map(Text, cells))
    return table


def _account(row: dict[str, Any]) -> str | None:
    """Whose account at the provider a connection is for."""
    if row["provider"] == "github":
        account: str | None = row["details"].get("account")
        return account
    organization: str | None = row["organization"]
    return organization


def _moment(given: str | None) -> str:
    return "-" if given is None else f"{datetime.fromisoformat(given):%Y-%m-%d %H:%M}"
