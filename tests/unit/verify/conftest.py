"""A real PostgreSQL, and a real lake that is filled by hand so that it can be wrong in known ways."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest

from icelake.catalog.store import SqlCatalog
from icelake.model.ident import control_table
from icelake.model.marker import SOURCE, Cut, Marker
from icelake.model.relation import Column, Relation, TableId
from icelake.observe.clock import SystemChance, SystemClock
from icelake.ports import arrow_schema
from icelake.sources.postgres.server import PostgresSource
from icelake.stack.postgres import Postgres
from icelake.storage.local import LocalStorage
from icelake.tables.schema import iceberg_schema, table_properties
from icelake.tables.table import Table
from icelake.verify.run import InProcess, verify


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off"}) as running:
        yield running


class Pair:
    """A database and the lake beside it. ``sql`` changes one, ``put`` fills the other."""

    def __init__(self, dsn: str, system_id: str, folder: Path) -> None:
        self.dsn = dsn
        self.system_id = system_id
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.storage = LocalStorage()
        self.clock = SystemClock()
        self.chance = SystemChance()
        self.catalog = SqlCatalog.sqlite(str(folder / "catalog.db"), str(folder / "warehouse"), self.storage, self.clock, self.chance)
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.source = PostgresSource(dsn, "shop")
        self.id = str(uuid.uuid4())
        self.snapshots: dict[str, int] = {}
        note = Column("note", 1, 25, -1, "text", "string", nullable=False)
        control = Relation(0, "icelake", "control_shop", (note,), ("note",))
        self.catalog.create(control_table("shop"), iceberg_schema(control), {**table_properties(control), SOURCE: self.id})

    def close(self) -> None:
        self.connection.close()
        self.catalog.close()
        self.storage.close()

    def sql(self, text: str) -> None:
        self.connection.execute(text)

    def relation(self, name: str) -> Relation:
        (found,) = self.source.describe([name])
        assert isinstance(found, Relation), found
        return found

    def rows(self, name: str) -> pa.Table:
        relation = self.relation(name)
        with self.source.read_range(relation, None, None, 1 << 30) as read:
            return pa.Table.from_batches(list(read.rows), arrow_schema(relation.columns))

    def put(self, name: str, rows: pa.Table, relation: Relation | None = None) -> None:
        """A new mirror of the table that holds these rows."""
        relation = relation or self.relation(name)
        loaded = self.catalog.create(relation.id, iceberg_schema(relation), {**table_properties(relation), SOURCE: self.id})
        self.change(relation.id, lambda table, delta: delta.append(rows, None) if rows.num_rows else None, loaded)

    def mirror(self, name: str) -> None:
        """A new mirror that is right."""
        self.put(name, self.rows(name))

    def change(self, table: TableId, change: Callable[[Table, Any], object], loaded: Any = None) -> None:
        opened = Table.open(loaded or self.catalog.load(table), self.storage, self.clock, self.chance)
        delta = opened.delta()
        change(opened, delta)
        prepared = delta.prepare({"icelake.note": "test"}, {})
        self.storage.flush()
        (after,) = self.catalog.commit([prepared])
        self.snapshots[str(table)] = after.metadata["current-snapshot-id"]

    def delete(self, table: TableId, position: int) -> None:
        self.change(table, lambda opened, delta: delta.delete(np.array([min(opened.files)]), np.array([position])))

    def cut(self, lsn: int) -> int:
        """A cut at ``lsn`` of every mirror as it is."""
        marker = Marker(self.id, self.system_id, 1, "slot", lsn, self.chance.uuid())
        cut = Cut(0, lsn, 0, 0, 1, self.snapshots)
        opened = Table.open(self.catalog.load(control_table("shop")), self.storage, self.clock, self.chance)
        prepared = opened.delta().prepare({**marker.summary(), **cut.summary()}, {})
        self.storage.flush()
        (after,) = self.catalog.commit([prepared])
        ident: int = after.metadata["current-snapshot-id"]
        return ident

    def verify(self, *tables: str, **options: Any) -> dict[str, Any]:
        handshake = options.pop("handshake", None) or InProcess(options.pop("bring", self.cut), self.catalog)
        return verify(self.dsn, self.catalog, tables, handshake, scratch=self.scratch, **options)


@pytest.fixture
def pair(server: Postgres, tmp_path: Path) -> Iterator[Pair]:
    """In a database of its own."""
    name = f"v{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        found = admin.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
        assert found is not None
        made = Pair(server.dsn_of(name), found[0], tmp_path)
        try:
            yield made
        finally:
            made.close()
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
