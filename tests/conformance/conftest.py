"""A PostgreSQL server, databases of their own on it, and the source that reads them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql

from icelake.model.lsn import parse_lsn
from icelake.model.relation import Relation
from icelake.ports import Chunk, Stream
from icelake.sources.postgres.server import PostgresSource
from icelake.stack.binaries import Binaries
from icelake.stack.postgres import Postgres

SETTINGS = {"fsync": "off", "max_replication_slots": "8", "max_wal_senders": "8", "autovacuum": "off", "max_prepared_transactions": "2"}


@pytest.fixture(scope="module")
def server(binaries: Binaries) -> Iterator[Postgres]:
    with Postgres(version=binaries, settings=SETTINGS) as running:
        yield running


@dataclass
class Shop:
    """A database of its own, a session in it, and the source that reads it."""

    dsn: str
    sql: Callable[..., list[Any]]
    source: PostgresSource

    def relation(self, name: str) -> Relation:
        (found,) = self.source.describe([name])
        assert isinstance(found, Relation), found
        return found

    def now(self) -> int:
        return parse_lsn(self.sql("select pg_current_wal_lsn()")[0][0])

    def followed(self, *names: str) -> tuple[list[Relation], int]:
        """The tables published as ``p``, and slot ``s_<database>`` made."""
        relations = [self.relation(name) for name in names]
        self.source.publish("p", relations)
        return relations, self.source.create_slot(self.slot)

    @property
    def slot(self) -> str:
        return f"s_{self.source.name}"


@pytest.fixture
def shop(server: Postgres, request: pytest.FixtureRequest) -> Iterator[Shop]:
    name = f"d{abs(hash(request.node.name)) % 10**9}"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
        dsn = server.dsn_of(name)
        with psycopg.connect(dsn, autocommit=True) as session:

            def run(statement: str, arguments: Any = None) -> list[Any]:
                cursor = session.execute(sql.SQL(statement), arguments)
                return cursor.fetchall() if cursor.description else []

            yield Shop(dsn, run, PostgresSource(dsn, name, slot_seconds=20, busy_seconds=1))
        admin.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where database = %s and active_pid is not null", [name]
        )
        for _ in range(100):
            if not admin.execute("select 1 from pg_replication_slots where database = %s and active_pid is not null", [name]).fetchall():
                break
            time.sleep(0.02)
        admin.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s", [name])
        admin.execute(f'drop database "{name}" with (force)')


def caught_up(stream: Stream, to: int, **how: Any) -> list[Chunk]:
    """Take until every commit before ``to`` is taken."""
    chunks = []
    deadline = time.monotonic() + 30
    while True:
        while (chunk := stream.take(**how)) is not None:
            chunks.append(chunk)
        if stream.blocked(to):
            return chunks
        assert time.monotonic() < deadline, "the stream did not catch up"
        stream.ask()
        stream.wait(0.2)


def until(stream: Stream, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        stream.wait(0.1)


def operations(chunks: Sequence[Chunk], table: str | None = None) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    return [
        (int(op), new, old)
        for chunk in chunks
        for changes in chunk.changes
        if table in (None, changes.relation.name)
        for op, new, old in zip(changes.op, changes.new.to_pylist(), changes.old_key.to_pylist(), strict=True)
    ]
