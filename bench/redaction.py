"""`python -m bench.redaction`: how many MiB of output a second are redacted, one core, and what a redactor costs."""

from __future__ import annotations

import argparse
import base64
import random
import statistics
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from sandhold.security.redaction import Redactor

MIB = 1024 * 1024
CHUNK_BYTES = 256 * 1024
"""What a follower reads at a time."""
_rng = random.Random(20)

BUILD = b"""[ 12%] Building CXX object src/core/CMakeFiles/core.dir/scheduler.cpp.o
npm http fetch GET 200 https://registry.npmjs.org/left-pad/-/left-pad-1.3.0.tgz 45ms (cache hit)
tests/test_parser.py::test_an_empty_file_has_no_rows PASSED                      [ 41%]
  Downloading numpy-2.3.1-cp311-cp311-manylinux_2_27_x86_64.whl (16.9 MB)
\x1b[33mwarning\x1b[0m: unused variable: `index` --> src/main.rs:118:9
{"level":"info","time":"2026-11-23T10:15:02Z","msg":"request done","status":200,"ms":12.5}
"""


def texts(size: int) -> dict[str, tuple[Redactor, bytes]]:
    """What to redact by what, by the name of the row."""
    few, many = _redactor(5), _redactor(1000)
    secret = _rng.randbytes(20).hex()
    printing = Redactor({"S": secret})
    nasty = Redactor({"S": "a" * 16_000 + "b", "T": "aaaaaa"})
    noise = _rng.randbytes(size)
    return {
        "output of builds and tests, 5 secrets": (few, _repeated(BUILD, size)),
        "the same, 1,000 secrets": (many, _repeated(BUILD, size)),
        "noise, 5 secrets": (few, noise),
        "noise as base64, 5 secrets": (few, base64.b64encode(noise)[:size]),
        "a secret in each line of 80": (printing, _repeated(f"{secret} {'x' * 38}\n".encode(), size)),
        "one line of `-`": (few, _repeated(b"-", size)),
        "beginnings of tokens: `ghp_ghp_`": (few, _repeated(b"ghp_", size)),
        "`eyJeyJ`": (few, _repeated(b"eyJ", size)),
        "`://a:b`": (few, _repeated(b"://a:b", size)),
        "`aaaa` where secrets are made of it": (nasty, _repeated(b"a", size // 64)),
    }


def _redactor(count: int) -> Redactor:
    return Redactor({f"S{number}": _rng.randbytes(20).hex() for number in range(count)})


def _repeated(unit: bytes, size: int) -> bytes:
    return (unit * (size // len(unit) + 1))[:size]


def _through(redactor: Redactor, text: bytes) -> int:
    """Redact the text as a stream; the most that was held back."""
    stream = redactor.stream()
    held = 0
    for at in range(0, len(text), CHUNK_BYTES):
        stream.feed(text[at : at + CHUNK_BYTES])
        held = max(held, stream.held)
    stream.end()
    return held


def _seconds(work: Callable[[], object]) -> float:
    # Of computing: what else runs on the machine counts less so.
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.redaction", description="Measure redaction.")
    parser.add_argument("--mib", type=int, default=16, help="size of each text")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    table = Table("text", "MiB/s", "most held back, KiB")
    for name, (redactor, text) in texts(given.mib * MIB).items():
        held = _through(redactor, text[: 2 * CHUNK_BYTES])
        rates = [len(text) / MIB / _seconds(lambda: _through(redactor, text)) for _ in range(given.rounds)]  # noqa: B023
        table.add_row(name, f"{statistics.median(rates):.1f}", f"{held / 1024:.1f}")
    console = Console(width=110)
    console.print(table)
    for count in (5, 100, 1000):
        console.print(f"a redactor of {count} secrets is made in {1000 * _seconds(lambda: _redactor(count)):.1f} ms")  # noqa: B023


if __name__ == "__main__":
    main()
