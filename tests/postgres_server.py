"""A PostgreSQL server for tests, on loopback, of the programs that the machine has."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import asyncpg

USER = "sandhold"
PASSWORD = "pass/word of tests: %40@"
_READY_WITHIN_S = 60.0
_numbers = itertools.count(1)


@dataclass
class PostgresServer:
    """A server without any data but the tests'. It may be killed and started again."""

    folder: Path
    programs: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        """Of a database on it, as a setting."""
        return f"postgresql://{USER}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    async def new_database(self) -> str:
        """The URL of a new empty database."""
        name = f"vault_{next(_numbers)}"
        await self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    async def execute(self, statement: str, url: str | None = None) -> None:
        """Carry out a statement behind the vault's back."""
        connection = await asyncpg.connect(url or self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def start(self) -> None:
        """Serve; returns once it does."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self.programs / "postgres",
                    *("-D", self.folder / "data"),
                    *_options(
                        listen_addresses="127.0.0.1",
                        port=str(self.port),
                        unix_socket_directories="",
                        fsync="off",
                        full_page_writes="off",
                        synchronous_commit="off",
                        max_connections="60",
                        shared_buffers="16MB",
                    ),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **_unprivileged(),
            )
        deadline = time.monotonic() + _READY_WITHIN_S
        while subprocess.run(
            [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        ).returncode:
            log_text = (self.folder / "log").read_text()
            assert self._process.poll() is None, f"PostgreSQL did not start: {log_text}"
            assert time.monotonic() < deadline, f"PostgreSQL does not answer: {log_text}"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it at once, with all its connections: SIGQUIT is its immediate shutdown, as a crash would be."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A server on a free port; gone at the end, with all it stored."""
    programs = _programs()
    # Not below pytest's own folder: that is closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="sandhold-postgres-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, _unprivileged()["user"], -1)
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        made = subprocess.run(
            [
                programs / "initdb",
                *("-D", folder / "data", "-U", USER, "--pwfile", folder / "password"),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
            ],
            check=False,
            capture_output=True,
            text=True,
            **_unprivileged(),
        )
        assert made.returncode == 0, f"initdb failed: {made.stdout}{made.stderr}"
        server = PostgresServer(folder, programs, _free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """Where PostgreSQL's programs are: on the PATH, or where Debian puts them. Without them the tests fail."""
    found = [Path(name).parent for name in [shutil.which("postgres")] if name]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    for folder in found:
        if all((folder / name).exists() for name in ("postgres", "initdb", "pg_isready")):
            return folder
    raise AssertionError(
        "these tests need PostgreSQL's own programs (postgres, initdb, pg_isready): on Debian and Ubuntu "
        "`apt install postgresql`, elsewhere put their folder on the PATH"
    )


def _unprivileged() -> dict[str, int | list[int]]:
    """How to start it: the server refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _options(**settings: str) -> Sequence[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
