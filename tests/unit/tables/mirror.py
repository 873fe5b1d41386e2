"""A tiny mirror for tests: a real Table in a real catalog beside a plain Python model of its rows."""

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from icelake.catalog.store import SqlCatalog
from icelake.errors import Corrupt
from icelake.model.layout import Layout
from icelake.model.relation import Column, Relation
from icelake.ports import Json, LoadedTable, Storage, StoredFile, TableChange, arrow_schema
from icelake.tables.expire import expire
from icelake.tables.layout import layout_properties, partition_spec, sort_order
from icelake.tables.rewrite import choose, rewrite
from icelake.tables.schema import evolve, iceberg_schema, table_properties
from icelake.tables.table import Delta, Table

Row = tuple[Any, ...]


class MemoryStorage:
    """Files in a dict; ``reads`` counts."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.reads: list[str] = []

    def write(self, location: str, data: bytes | pa.Buffer) -> None:
        self.files[location] = bytes(data)

    put = write

    def flush(self) -> None:
        pass

    def read(self, location: str, offset: int = 0, length: int | None = None) -> bytes:
        self.reads.append(location)
        if location not in self.files:
            raise Corrupt("FILE_MISSING", f"{location} is not there")
        data = self.files[location]
        return data[offset:] if length is None else data[offset : offset + length]

    def open(self, location: str) -> pa.NativeFile:
        self.reads.append(location)
        return pa.BufferReader(self.files[location])

    def delete(self, location: str) -> None:
        self.files.pop(location, None)

    def list(self, prefix: str) -> Iterator[StoredFile]:
        for location, data in list(self.files.items()):
            if location.startswith(prefix):
                yield StoredFile(location, len(data), 0.0)


class TestClock:
    __test__ = False

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        self.time += 1
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class SeededChance:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def snapshot_id(self) -> int:
        return self.random.getrandbits(62) + 1

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128)))


def relation(*columns: tuple[str, str], key: Sequence[str] = ("id",), name: str = "t") -> Relation:
    """A relation of (name, Iceberg type) columns; key columns are NOT NULL."""
    return Relation(
        oid=16_384,
        schema="public",
        name=name,
        columns=tuple(
            Column(column, number, 0, -1, f"type of {column}", kind, column not in key)
            for number, (column, kind) in enumerate(columns, start=1)
        ),
        key=tuple(key),
    )


def batch(shape: Relation, rows: Sequence[Row]) -> pa.RecordBatch:
    schema = arrow_schema(shape.columns)
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.RecordBatch.from_arrays([pa.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)], schema=schema)


class Mirror:
    """``model``: key (the first column) -> row; ``ids``: key -> row id; ``updated``: key -> sequence number of its last change."""

    def __init__(
        self,
        shape: Relation,
        storage: Storage | None = None,
        warehouse: str = "/lake",
        seed: int = 0,
        layout: Layout | None = None,
    ) -> None:
        self.shape = shape
        self.storage: Any = storage or MemoryStorage()
        self.clock = TestClock()
        self.chance = SeededChance(seed)
        self.catalog = SqlCatalog.sqlite(":memory:", warehouse, self.storage, self.clock, self.chance)
        layout, schema = layout or Layout(), iceberg_schema(shape)
        assert layout.misfit(shape) is None
        self.catalog.create(
            shape.id,
            schema,
            table_properties(shape) | layout_properties(layout),
            partition_spec=partition_spec(layout, schema),
            sort_order=sort_order(layout, schema),
            format_version=layout.format_version,
        )
        self.table = self.reopen()
        self.where: dict[Any, tuple[int, int]] = {}
        self.model: dict[Any, Row] = {}
        self.ids: dict[Any, int] = {}
        self.updated: dict[Any, int] = {}

    def loaded(self) -> LoadedTable:
        return self.catalog.load(self.shape.id)

    def reopen(self) -> Table:
        return Table.open(self.loaded(), self.storage, self.clock, self.chance)

    def head(self) -> Json:
        snapshot = self.table.snapshot(self.table.snapshot_id)
        assert snapshot is not None
        return snapshot

    def send(self, delta: Delta, summary: dict[str, str] | None = None) -> Json:
        change = delta.prepare({"test.commit": "1"} if summary is None else summary, {})
        (loaded,) = self.catalog.commit([change])
        self.table.adopt(loaded, delta)
        return self.head()

    def commit(self, put: Sequence[Row] = (), delete: Sequence[Any] = (), *, truncate: bool = False) -> Json:
        """Insert or update the rows ``put``, delete the keys ``delete``, after truncating if asked to. One commit."""
        delta = self.table.delta()
        if truncate:
            delta.truncate()
            self.model.clear()
            self.where.clear()
            self.ids.clear()
        gone = [key for key in (*delete, *(row[0] for row in put)) if key in self.where]
        delta.delete(np.array([self.where[key][0] for key in gone], np.int32), np.array([self.where[key][1] for key in gone], np.int64))
        for key in delete:
            del self.model[key], self.where[key], self.ids[key]
        kept = np.array([self.ids.get(row[0], -1) for row in put], np.int64)
        placed = delta.append(batch(self.shape, put), kept)
        for row, no, position in zip(put, placed.file_no.tolist(), placed.positions.tolist(), strict=True):
            self.model[row[0]] = row
            self.where[row[0]] = (no, position)
        head = self.send(delta)
        for row in put:
            no, position = self.where[row[0]]
            if not self.table.has_lineage:
                self.ids[row[0]] = self.updated[row[0]] = -1
                continue
            if row[0] not in self.ids:
                self.ids[row[0]] = delta.first_row_id(no) + position
            self.updated[row[0]] = head["sequence-number"]
        return head

    def compact(self, chosen: Sequence[int] | None = None) -> Json | None:
        chosen = choose(self.table) if chosen is None else chosen
        if not chosen:
            return None
        delta, moved = rewrite(self.table, chosen)
        head = self.send(delta)
        keys = moved.keys.column(0).to_pylist()
        for key, no, position, row_id in zip(keys, moved.file_no.tolist(), moved.positions.tolist(), moved.row_ids.tolist(), strict=True):
            assert self.ids[key] == row_id
            self.where[key] = (no, position)
        return head

    def evolve(self, shape: Relation, remodel: Callable[[Row], Row]) -> None:
        """Follow the source's new shape, in which the rows there are look like ``remodel`` makes them."""
        metadata = self.table.metadata
        same = {"type": "assert-current-schema-id", "current-schema-id": metadata["current-schema-id"]}
        last = {"type": "assert-last-assigned-field-id", "last-assigned-field-id": metadata["last-column-id"]}
        (loaded,) = self.catalog.commit([TableChange(shape.id, [same, last], evolve(metadata, shape))])
        self.table.adopt(loaded, None)
        self.shape = shape
        self.model = {key: remodel(row) for key, row in self.model.items()}

    def expire(self, drop: Sequence[int]) -> list[str]:
        """Drop snapshots and delete what is not needed any more."""
        change, files = expire(self.loaded(), drop, self.storage)
        (loaded,) = self.catalog.commit([change])
        self.table.adopt(loaded, None)
        for location in files:
            self.storage.delete(location)
        return files

    def rows(self, table: Table | None = None) -> dict[Any, tuple[Row, int, int]]:
        """Key -> (row, row id, last updated) as the table reads."""
        table = table or self.table
        names = [column.name for column in self.shape.columns]
        out: dict[Any, tuple[Row, int, int]] = {}
        for no in table.files:
            _, found = table.live_rows(no, names)
            for values in zip(*(column.to_pylist() for column in found.columns), strict=True):
                assert values[0] not in out, f"two live rows for {values[0]}"
                out[values[0]] = (values[:-2], values[-2], values[-1])
        return out

    def expected(self) -> dict[Any, tuple[Row, int, int]]:
        return {key: (row, self.ids[key], self.updated[key]) for key, row in self.model.items()}

    def check(self) -> None:
        """The table in memory, the table opened anew and the model are one."""
        again = self.reopen()
        assert self.rows() == self.expected()
        assert self.rows(again) == self.expected()
        assert {file.identity for file in again.files.values()} == {file.identity for file in self.table.files.values()}
        assert [manifest.record for manifest in again.manifests] == [manifest.record for manifest in self.table.manifests]
        assert len(set(self.ids.values())) == len(self.ids) or not self.table.has_lineage


SMALL = relation(("id", "long"), ("text", "string"))
