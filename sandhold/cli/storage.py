"""`sandhold storage`: what an operator does about the storage of all sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sandhold.cli.output import EXIT_FAILED, EXIT_OK, JsonFlag, output, run

if TYPE_CHECKING:
    from sandhold.contracts.storage import StorageCleaned, StorageEncrypted

app = typer.Typer(help="Look after the storage of all sessions.", no_args_is_help=True, add_completion=False)


@app.callback()
def storage() -> None:
    pass


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove what ended sessions left and their policies (`keep_days`) keep no longer. It runs every hour by itself."""

    async def work() -> int:
        from sandhold.cli.connecting import connected

        cleaned = await (await connected()).clean_storage(dry_run=dry_run)
        output.show(cleaned, lambda: _told(cleaned))
        return EXIT_OK

    run(work)


@app.command()
def encrypt(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be encrypted.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Encrypt what versions before encryption have stored, in place. Stop workers and clients first; safe to repeat."""

    async def work() -> int:
        from sandhold.cli.encryption import encrypted

        done = await encrypted(dry_run=dry_run)
        output.show(done, lambda: _encrypted_told(done))
        return EXIT_FAILED if done.objects_failed else EXIT_OK

    run(work)


def _encrypted_told(done: StorageEncrypted) -> str:
    lines = [
        f"{'would encrypt' if done.dry_run else 'encrypted'}: {done.objects_encrypted} objects, "
        f"{done.bytes_encrypted} bytes, of {done.sessions} sessions",
        f"encrypted before: {done.objects_already} objects",
    ]
    if done.objects_failed:
        lines.append(f"left as they are: {done.objects_failed} objects")
        lines += [f"  {each.session_id} {each.path}: {each.reason}" for each in done.failed]
    return "\n".join(lines)


def _told(cleaned: StorageCleaned) -> str:
    lines = [
        f"{'would remove' if cleaned.dry_run else 'removed'}: {cleaned.sessions_removed} sessions with "
        f"{cleaned.objects_removed} objects, {cleaned.bytes_removed} bytes",
        *(f"  {session_id}" for session_id in cleaned.removed),
    ]
    if cleaned.sessions_removed > len(cleaned.removed):
        lines.append(f"  and {cleaned.sessions_removed - len(cleaned.removed)} more")
    if cleaned.secrets_removed:
        lines.append(f"  {cleaned.secrets_removed} secrets of ended sessions")
    if cleaned.git_tokens_ended:
        lines.append(f"  {cleaned.git_tokens_ended} tokens of git")
    kept = f"kept: {cleaned.kept_open} that run, {cleaned.kept_for_now} for now"
    if cleaned.kept_undecided:
        kept += f", {cleaned.kept_undecided} of which nobody here knows whether they have ended"
    if cleaned.kept_unreadable:
        kept += f", {cleaned.kept_unreadable} that could not be read or removed: {', '.join(cleaned.unreadable)}"
    return "\n".join([*lines, kept])
