"""A server for the museum, and a database of its own for each exhibit."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from icelake.stack.postgres import Postgres
from tests.mirrored import mirrored
from tests.museum.exhibit import Exhibit


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off", "autovacuum": "off"}) as server:
        yield server


@pytest.fixture
def exhibit(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Exhibit]:
    with mirrored(Exhibit, server, tmp_path, request.node.name) as exhibit:
        yield exhibit
