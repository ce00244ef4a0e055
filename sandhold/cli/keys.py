"""`sandhold keys`: the keys under which everything is encrypted, from their first day to their last."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandhold.cli.output import EXIT_FAILED, EXIT_OK, JsonFlag, output, run

if TYPE_CHECKING:
    from rich.table import Table

    from sandhold.security import KeyRing
    from sandhold.security.key_rings import FileKeyRing

app = typer.Typer(help="Keep the keys under which everything is encrypted.", no_args_is_help=True, add_completion=False)
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The id of a key.")]


@app.command()
def create(as_json: JsonFlag = False) -> None:
    """Make the file of the key ring, with one key, where SANDHOLD_KEYRING says. One that is there stays as it is."""

    async def work() -> int:
        ring = _changeable("create")
        made = ring.create()
        answer = {"ring": str(ring.path), "created": made, "primary": ring.document().primary.id}
        output.show_data(answer, lambda: f"{'made' if made else 'there is'} the key ring {ring.path}")
        return EXIT_OK

    run(work)


@app.command("list")
def list_(
    used: Annotated[bool, typer.Option("--used", help="Also tell what may need each key; asks Temporal.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the keys, also those that were removed.

    Of a service's keys (SANDHOLD_KEYRING_PROVIDER): the primary one, and with --used those that values are under.
    """

    async def work() -> int:
        rows = await _rows(used=used)
        output.show_data({"keys": rows}, lambda: _table(rows))
        return EXIT_OK

    run(work)


@app.command()
def verify(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read every stored object to its end: takes as long as reading it all.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Open every value of the vault, the key of every session's storage, and the beginning of every stored object.

    Exits with 1 when one does not open, a key is missing or an object is not encrypted, and names where it lies.
    Without --deep what is damaged beyond an object's first bytes is not seen.
    """

    async def work() -> int:
        from sandhold.cli.key_work import verify_all

        answer = await verify_all(_ring(), deep=deep)
        output.show_data(answer.document(), answer.text)
        return EXIT_OK if answer.ok else EXIT_FAILED

    run(work)


@app.command()
def add(as_json: JsonFlag = False) -> None:
    """Add a key that only decrypts, for now: to hand it out before it is made the primary one."""

    async def work() -> int:
        from sandhold.security.key_document import RingKey

        key = RingKey.new("decrypt_only")
        _changeable("add").change(lambda document: document.added(key))
        output.show_data({"id": key.id, "state": key.state}, lambda: f"added {key.id}, which only decrypts for now")
        return EXIT_OK

    run(work)


@app.command()
def promote(key: KeyArgument, as_json: JsonFlag = False) -> None:
    """Make a key the primary one: everything is encrypted under it from now on. The others go on decrypting."""

    async def work() -> int:
        document = _changeable("promote").change(lambda document: document.promoted(key))
        answer = {"primary": document.primary.id}
        output.show_data(
            answer, lambda: f"{key} is the primary key; `sandhold keys rotate --rewrap-only` brings values"
        )
        return EXIT_OK

    run(work)


@app.command()
def rotate(
    rewrap_only: Annotated[
        bool, typer.Option("--rewrap-only", help="Add no key: only bring what there is under the primary one.")
    ] = False,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Add a key even though values are still under an older one.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Add a primary key and bring vault and storage under it. What was cut off is gone on with by doing it again.

    Where the keys are a service's (SANDHOLD_KEYRING_PROVIDER) none is added: it turns them itself.

    Open sandboxes are asked to continue as new, and storage is cleaned once, unless that is paused. What else histories
    hold stays under the keys of their time.
    """
    if rewrap_only and new_key:
        raise typer.BadParameter("--rewrap-only adds no key")

    async def work() -> int:
        from sandhold.cli.key_work import rotate_all

        ring = _ring() if rewrap_only or (_is_of_a_service() and not new_key) else _changeable("rotate")
        answer = await rotate_all(ring, rewrap_only=rewrap_only, new_key=new_key)
        output.show_data(answer.document(), answer.text)
        return EXIT_OK if answer.ok else EXIT_FAILED

    run(work)


@app.command()
def remove(
    key: KeyArgument,
    used_until: Annotated[
        datetime | None,
        typer.Option(
            "--used-until",
            formats=["%Y-%m-%dT%H:%M:%S%z"],
            help="When the last process stopped to encrypt under it, where the ring was handed out to processes.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove a key for ever, once nothing can need it. Else exits with 1 and tells what may."""

    async def work() -> int:
        from dataclasses import asdict

        from sandhold.cli.key_work import remove_key
        from sandhold.security.removal import KeyNeeded

        try:
            await remove_key(_changeable("remove"), key, used_until)
        except KeyNeeded as needed:
            reasons = [asdict(reason) for reason in needed.reasons]
            output.fail(f"the key {key} stays, it may be needed", "key_needed", None, reasons=reasons)
            for reason in needed.reasons:
                output.note(f"- {reason.text}")
            return EXIT_FAILED
        output.show_data({"id": key, "state": "removed"}, lambda: f"removed {key}")
        return EXIT_OK

    run(work)


async def _rows(*, used: bool) -> list[dict[str, Any]]:
    """What is known of each key."""
    from sandhold.security.key_rings import EnvironmentKeyRing, FileKeyRing

    ring = _ring()
    if isinstance(ring, FileKeyRing | EnvironmentKeyRing):
        document = ring.document()
        uses = {}
        if used:
            from sandhold.cli.key_work import uses_of_keys

            uses = await uses_of_keys(ring, document)
        return [
            {
                "id": key.id,
                "state": key.state,
                "created_at": _moment(key.created_at),
                "retired_at": _moment(key.retired_at),
                **({"used": uses[key.id]} if used else {}),
            }
            for key in document.keys
        ]
    primary = await ring.primary()
    counts: dict[str, dict[str, int]] = {primary: {}}
    if used:
        from sandhold.cli.key_work import values_by_key

        counts = await values_by_key(ring)
    return [
        {
            "id": key_id,
            "state": "primary" if key_id == primary else None,
            "created_at": None,
            "retired_at": None,
            **({"used": counts[key_id]} if used else {}),
        }
        for key_id in counts
    ]


def _is_of_a_service() -> bool:
    from sandhold.settings import Settings

    return Settings.load().keyring_provider is not None


def _ring() -> KeyRing:
    from sandhold.security.key_rings import open_key_ring
    from sandhold.settings import Settings

    return open_key_ring(Settings.load())


def _changeable(what: str) -> FileKeyRing:
    """The ring, when it is in a file. Raises KeyRingFixed, which says what to do instead."""
    from sandhold.security import KeyRingFixed
    from sandhold.security.key_rings import FileKeyRing
    from sandhold.settings import Settings

    settings = Settings.load()
    if settings.keyring_provider is not None:
        raise KeyRingFixed(
            f"`keys {what}` cannot change this key ring: its keys are those of the service behind "
            "SANDHOLD_KEYRING_PROVIDER. Make, turn and disable them there; `sandhold keys rotate` then brings values "
            "under its primary key. Histories stay under the keys of their time: keep each until Temporal has "
            "forgotten everything that began before another one was primary."
        )
    if settings.key_ring_document is not None:
        raise KeyRingFixed(
            f"`keys {what}` cannot change this key ring: it is in SANDHOLD_KEYRING itself.\n" + _BY_HAND.get(what, _HOW)
        )
    return FileKeyRing(settings.key_ring_file)


_HOW = (
    "Keep the same document in a file of mode 600, do this there (SANDHOLD_KEYRING=FILE), and then hand its text out "
    "to every process: workers, console, and whatever uses the client library."
)
_BY_HAND = {
    "rotate": _HOW.replace("do this there", "work on it there")
    + """
1. `SANDHOLD_KEYRING=FILE sandhold keys add`; hand the text out and start every process again.
2. Only when all of them have it: `SANDHOLD_KEYRING=FILE sandhold keys promote KEY`; hand out, start again.
3. Only when all of them have that: `sandhold keys rotate --rewrap-only`, with the new text.
4. Later: `SANDHOLD_KEYRING=FILE sandhold keys remove OLD --used-until TIME`, the time at which step 2 was complete;
   hand out, start again.""",
}


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Column, Table

    uses = list(rows[0].get("used", {}))
    # An id is to be copied: however narrow the terminal is, it is shown whole.
    widest = max(len(row["id"]) for row in rows)
    table = Table(Column("key", min_width=widest), "state", "created", "retired", *uses, box=None)
    for row in rows:
        counts = [str(row["used"][name]) for name in uses]
        table.add_row(row["id"], *(row[name] or "-" for name in ("state", "created_at", "retired_at")), *counts)
    return table
