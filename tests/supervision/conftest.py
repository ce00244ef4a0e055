"""One whole stack, as a process, for the tests that leave it running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dev_process import Dev, dev_process


@pytest.fixture(scope="package")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with dev_process(tmp_path_factory.mktemp("dev") / "data") as running:
        running.until_ready()
        yield running
