"""An S3-compatible server for tests, in a process and an environment of its own."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(sys.prefix) / "s3-server" / "bin" / "moto_server"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "secret-of-tests", "AWS_REGION": "us-east-1"}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class S3Server:
    """A running server without any data but the tests'."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment must hold."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}

    def new_place(self) -> str:
        """The URL of a session storage in a new bucket, where it is not alone."""
        return f"s3://{self.new_bucket()}/some/prefix"

    def new_bucket(self) -> str:
        """The name of a new empty bucket."""
        name = f"bucket-{next(_numbers)}"
        self._ask(f"/{name}", method="PUT")
        return name

    def unfinished_uploads(self, bucket: str, below: str = "") -> int:
        """How many uploads in parts (below a folder) have begun and were neither completed nor given up."""
        keys = re.findall(r"<Key>(.*?)</Key>", self._ask(f"/{bucket}?uploads"))
        return sum(f"/{below}" in key for key in keys)

    def _ask(self, path: str, method: str = "GET") -> str:
        request = urllib.request.Request(self.endpoint + path, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())


@contextlib.contextmanager
def running_s3_server(log: Path) -> Iterator[S3Server]:
    """A server on a free port of loopback; gone at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen([PROGRAM, "-H", "127.0.0.1", "-p", "0"], stdout=out, stderr=out)
    try:
        yield S3Server(_endpoint(process, log))
    finally:
        process.terminate()
        process.wait(20)


def _endpoint(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the server says that it runs."""
    for _ in range(600):
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return found[0]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            break
    raise AssertionError(f"the S3 server did not start: {log.read_text()}")
