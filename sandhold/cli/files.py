"""`sandhold files SESSION`: list, get, put and remove the files of a session in storage, or push them to a sandbox."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandhold.cli.identifiers import SandboxArgument, SessionArgument
from sandhold.cli.output import EXIT_FAILED, EXIT_OK, JsonFlag, output, run

if TYPE_CHECKING:
    from rich.table import Table

    from sandhold.cli.transfers import Transferred
    from sandhold.client import Session, SessionFiles
    from sandhold.contracts.storage import StoredFile

_EXIT_NOBODY_READS = 141

app = typer.Typer(
    help="List, get, put and remove the files of a session in storage, and push them into its sandboxes.",
    no_args_is_help=True,
    add_completion=False,
)
_session = ""

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="A folder, with all that lies in it.")]
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Path in the session's storage, like notes/plan.md.")]


@app.callback()
def files(session: SessionArgument) -> None:
    global _session  # noqa: PLW0603 - the group's argument, for the one command that this process runs
    _session = session


@app.command()
def ls(
    folder: Annotated[str, typer.Argument(metavar="[PATH]", help="A folder or a file (default: everything).")] = "",
    after: Annotated[str, typer.Option(help="Only what comes after this path.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, in the order of their paths.")] = 1000,
    as_json: JsonFlag = False,
) -> None:
    """List files in a folder and below, with size and time. Works after the session's end as long as they are kept."""
    session = _session

    async def work(stored: SessionFiles) -> int:
        if folder and not await stored.is_folder(folder):
            found = [await stored.find(folder)]
        else:
            found = [each async for each in stored.list(folder, after=after, limit=limit + 1)]
        following = found[limit - 1].path if len(found) > limit else None
        found = found[:limit]
        rows = [each.model_dump(mode="json") for each in found]
        output.show_data({"session_id": session, "files": rows, "next": following}, lambda: _table(found, following))
        return EXIT_OK

    _run(session, work)


@app.command()
def get(
    path: PathArgument,
    local: Annotated[
        str | None, typer.Argument(metavar="[LOCAL]", help="Where to (default: the name, here); `-` is stdout.")
    ] = None,
    recursive: Recursive = False,
    as_json: JsonFlag = False,
) -> None:
    """Copy a file from storage, or with --recursive the files of a folder, in place of local ones of the same name.

    A device or pipe is written to.
    """
    if local == "-" and (recursive or output.as_json):
        raise typer.BadParameter("stdout takes one file, and nothing beside it")
    session = _session

    async def work(stored: SessionFiles) -> int:
        from sandhold.cli import transfers

        if local == "-":
            try:
                await transfers.to_stdout(stored, path)
            except BrokenPipeError:
                return _EXIT_NOBODY_READS
            return EXIT_OK
        target = Path(local if local is not None else path.strip("/").rpartition("/")[2] or session)
        copied = await (transfers.get_folder if recursive else transfers.get_file)(stored, path, target)
        return _copied(session, copied)

    _run(session, work)


@app.command()
def put(
    local: Annotated[str, typer.Argument(metavar="LOCAL", help="A file or folder; `-` is stdin.")],
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="Path in storage (default: the local name).")
    ] = None,
    recursive: Recursive = False,
    as_json: JsonFlag = False,
) -> None:
    """Copy a file into storage, or with --recursive the files of a folder, in place of those of the same name."""
    if local == "-" and (path is None or path.endswith("/") or recursive):
        raise typer.BadParameter("stdin is one file, and needs a PATH")
    session = _session
    source = Path(local)
    name = posixpath.basename(posixpath.abspath(local))  # a link's own, not that of what it leads to
    target = name if path is None else path
    if target.endswith("/") and not recursive:
        target += name

    async def work(stored: SessionFiles) -> int:
        from sandhold.cli import transfers

        if local == "-":
            copied = await transfers.put_stdin(stored, target)
        else:
            copied = await (transfers.put_folder if recursive else transfers.put_file)(stored, source, target)
        return _copied(session, copied)

    _run(session, work)


@app.command()
def rm(
    path: PathArgument,
    recursive: Recursive = False,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, all files of the session: for --recursive and /.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove a file, or with --recursive a folder and all that lies in it."""
    if not path:
        # What a variable that is not set leaves of a path. Everything is written / here.
        raise typer.BadParameter("PATH is empty")
    if recursive and path == "/" and not yes:
        raise typer.BadParameter("this removes all files of the session; with --yes it does")
    session = _session

    async def work(stored: SessionFiles) -> int:
        removed = 1
        if recursive and await stored.is_folder(path):
            removed = await stored.delete_folder(path)
        else:
            await stored.delete(path)
        output.show_data({"session_id": session, "removed": removed}, lambda: f"removed {removed} files")
        return EXIT_OK

    _run(session, work)


@app.command()
def push(
    sandbox: SandboxArgument,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH... SANDBOX_PATH",
            help="Files and folders in storage, and where they go in the sandbox: the file's name or the directory for "
            "a folder's files. With several, or a slash at its end, the directory that they keep their names in.",
        ),
    ],
    from_local: Annotated[
        bool, typer.Option("--from-local", help="PATH... are files here; they go into storage as pushed/NAME first.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Copy files and folders from storage into a sandbox, each whole or not at all. Starts a stopped sandbox."""
    if len(paths) < 2:
        raise typer.BadParameter("needs at least one PATH, and a SANDBOX_PATH")
    session = _session
    *sources, target = paths

    async def work(asked: Session) -> int:
        from sandhold.cli import pushes

        stored = await pushes.stored_first(asked, sources) if from_local else sources
        pushed = await pushes.push(asked, sandbox, stored, target)
        for failed in pushed.files_failed:
            output.note(f"not pushed: {failed.session_path}: {failed.error.message}")
        answer = {"session_id": session, "sandbox_id": sandbox, **pushed.model_dump(mode="json")}
        output.show_data(answer, lambda: f"pushed {pushed.files_uploaded} files, {pushed.bytes} bytes")
        return EXIT_FAILED if pushed.files_failed else EXIT_OK

    _run_in(session, work)


def _run(session: str, work: Callable[[SessionFiles], Awaitable[int]]) -> None:
    _run_in(session, lambda asked: work(asked.files))


def _run_in(session: str, work: Callable[[Session], Awaitable[int]]) -> None:
    async def connected_work() -> int:
        from sandhold.cli.connecting import connected

        return await work((await connected()).session(session))

    run(connected_work)


def _copied(session: str, copied: Transferred) -> int:
    """Tell what was copied; what was left out is a failure."""
    for each in copied.skipped:
        output.note(f"left out: {each.path}: {each.reason}")
    answer = {
        "session_id": session,
        "files": copied.files,
        "bytes": copied.bytes,
        "skipped": [{"path": each.path, "reason": each.reason} for each in copied.skipped],
    }
    output.show_data(answer, lambda: f"copied {copied.files} files, {copied.bytes} bytes")
    return EXIT_FAILED if copied.skipped else EXIT_OK


def _table(found: list[StoredFile], following: str | None) -> Table:
    from rich.table import Table
    from rich.text import Text

    caption = Text(f"there are more: --after {following!r}") if following else None
    table = Table("bytes", "modified (UTC)", "path", box=None, caption=caption, caption_justify="left")
    table.columns[0].justify = "right"
    for each in found:
        # A path is somebody's text: it must not be read as markup.
        table.add_row(str(each.size), f"{each.modified_at:%Y-%m-%d %H:%M:%S}", Text(each.path))
    return table
