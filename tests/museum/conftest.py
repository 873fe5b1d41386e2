"""A server for the museum, and a database of its own for each exhibit."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from icelake.stack.postgres import Postgres
from tests.museum.exhibit import Exhibit


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off", "autovacuum": "off"}) as server:
        yield server


@pytest.fixture
def exhibit(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Exhibit]:
    name = f"museum_{abs(hash(request.node.name)):x}"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"create database {name}")
        with psycopg.connect(server.dsn_of(name), autocommit=True) as session:
            session.execute("set timezone = 'UTC'")
            one = Exhibit(tmp_path, server.dsn_of(name), session)
            one.project()
            yield one
        admin.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s and active_pid is null", [name]
        )
        admin.execute(f"drop database {name} with (force)")
