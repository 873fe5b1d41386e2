"""Tables of any format version, layout and history, written file by file so that any one thing can be wrong.

A ``Draft`` is a commit in three states: its entries can be changed before ``seal`` writes the manifests, its snapshot and the records
of its manifest list after it, and ``publish`` gives the table metadata before and after. Nothing is checked here.
"""

import copy
import io
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from struct import pack
from typing import Any

import fastavro
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap64

from icelake.ports import Json
from icelake.tables import deletion_vectors, transforms
from icelake.tables.layout import serialized
from icelake.tables.manifests import ADDED, DATA, DELETED, DELETES, EXISTING, POSITION_DELETES, Codec, Record

SCHEMA: Json = {
    "type": "struct",
    "schema-id": 0,
    "fields": [
        {"id": 1, "name": "id", "required": True, "type": "long"},
        {"id": 2, "name": "name", "required": False, "type": "string"},
        {"id": 3, "name": "at", "required": False, "type": "timestamptz"},
    ],
}
SPECS: dict[str, list[tuple[str, str, str, int]]] = {
    "none": [],
    "identity": [("name", "identity", "string", 2)],
    "bucket": [("id_bucket", "bucket[4]", "int", 1)],
    "truncate": [("name_trunc", "truncate[3]", "string", 2)],
    "day": [("at_day", "day", "date", 3)],
    "both": [("name", "identity", "string", 2), ("at_day", "day", "date", 3)],
}
"""(name, transform, Iceberg type of the values, source id)."""
_DAY = 86_400_000_000
_ARROW: dict[str, pa.DataType] = {"id": pa.int64(), "name": pa.string(), "at": pa.timestamp("us", "UTC")}
_SINCE_V2 = frozenset(
    {"sequence_number", "file_sequence_number", "min_sequence_number", "content", "equality_ids", "referenced_data_file", "content_offset"}
)


def bucket(value: int) -> int:
    return int(transforms.apply("bucket", 4, pa.array([value], pa.int64()))[0].as_py())


@dataclass
class Live:
    """A file that lives: its entry with everything resolved."""

    entry: Record
    manifest: str

    @property
    def path(self) -> str:
        return str(self.entry["data_file"]["file_path"])

    @property
    def file(self) -> Record:
        found: Record = self.entry["data_file"]
        return found


@dataclass
class Written:
    """A new manifest: what will be in it, and once it is sealed its record in the list."""

    content: int
    entries: list[Record]
    record: Record = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)
    path: str = ""


class Made:
    """A table. ``lives``: the files of its current snapshot by manifest path."""

    def __init__(self, folder: Path, version: int, spec: str, chance: random.Random) -> None:
        self.folder, self.version, self.chance = folder, version, chance
        self.fields = SPECS[spec]
        self.number = 0
        fields = [
            {"source-id": source, "field-id": 1000 + number, "name": name, "transform": transform}
            for number, (name, transform, _, source) in enumerate(self.fields)
        ]
        self.metadata: Json = {
            "format-version": version,
            "table-uuid": "6e2f1cf7-0000-4000-8000-000000000000",
            "location": str(folder),
            "last-updated-ms": 1_000,
            "last-column-id": 3,
            "current-schema-id": 0,
            "schemas": [SCHEMA],
            "default-spec-id": 0,
            "partition-specs": [{"spec-id": 0, "fields": fields}],
            "last-partition-id": 999 + len(fields),
            "default-sort-order-id": 0,
            "sort-orders": [{"order-id": 0, "fields": []}],
            "properties": {},
            "refs": {},
            "snapshots": [],
            "snapshot-log": [],
            "metadata-log": [],
            "last-sequence-number": 0,
        }
        if version >= 3:
            self.metadata["next-row-id"] = 0
        self.listed: list[Record] = []
        self.data: dict[str, Live] = {}
        self.deletes: dict[str, Live] = {}
        self.values: dict[str, tuple[Any, ...]] = {}
        """Of the rows of a data file, which are all equal."""

    def copy(self) -> "Made":
        made = copy.copy(self)
        made.metadata = dict(self.metadata)
        made.listed = [dict(record) for record in self.listed]
        for name in ("data", "deletes"):
            setattr(made, name, {path: Live(clone(live.entry), live.manifest) for path, live in getattr(self, name).items()})
        return made

    def upgrade(self, version: int) -> None:
        self.version = version
        self.metadata["format-version"] = version
        if version >= 3:
            self.metadata.setdefault("next-row-id", 0)

    def name(self, ending: str) -> str:
        self.number += 1
        return str(
            self.folder / ("metadata" if ending == ".avro" else "data") / f"{self.number:05d}-{self.chance.getrandbits(64):x}{ending}"
        )

    @staticmethod
    def put(path: str, data: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    # ------------------------------------------------------------------------------------------------------ files

    def partition(self, values: tuple[Any, ...]) -> Record:
        row = dict(zip((1, 2, 3), values, strict=True))
        found: Record = {}
        for name, transform, _, source in self.fields:
            value = row[source]
            if value is None or transform == "identity":
                found[name] = value
            elif transform == "bucket[4]":
                found[name] = bucket(value)
            else:
                found[name] = value[:3] if transform == "truncate[3]" else value // _DAY
        return found

    def some_values(self) -> tuple[Any, ...]:
        chance = self.chance
        return (
            chance.randrange(100),
            chance.choice(["alpha", "beta", "gamma delta", "ä", None]),
            chance.choice([None, chance.randrange(9) * _DAY + 5]),
        )

    def data_file(self, values: tuple[Any, ...] | None = None, rows: int | None = None) -> Record:
        values = self.some_values() if values is None else values
        rows = self.chance.randrange(3, 9) if rows is None else rows
        out = io.BytesIO()
        columns = {name: pa.array([value] * rows, kind) for value, (name, kind) in zip(values, _ARROW.items(), strict=True)}
        pq.write_table(pa.table(columns), out)
        path = self.name(".parquet")
        self.put(path, out.getvalue())
        self.values[path] = values
        bounds = [
            {"key": number, "value": serialized(value, kind)}
            for number, kind, value in zip((1, 2, 3), ("long", "string", "timestamptz"), values, strict=True)
            if value is not None
        ]
        return {
            "content": DATA,
            "file_path": path,
            "file_format": "PARQUET",
            "partition": self.partition(values),
            "record_count": rows,
            "file_size_in_bytes": len(out.getvalue()),
            "lower_bounds": bounds,
            "upper_bounds": bounds,
        }

    def vector(self, live: Live | Record, positions: Sequence[int], path: str | None = None) -> Record:
        """A deletion vector in a Puffin file of its own."""
        file = live if isinstance(live, dict) else live.file
        blob = deletion_vectors.encode(BitMap64(positions))
        path = self.name(".puffin") if path is None else path
        puffin = deletion_vectors.puffin(blob, file["file_path"], len(positions))
        self.put(path, puffin)
        return {
            "content": POSITION_DELETES,
            "file_path": path,
            "file_format": "PUFFIN",
            "partition": dict(file["partition"]),
            "record_count": len(positions),
            "file_size_in_bytes": len(puffin),
            "referenced_data_file": file["file_path"],
            "content_offset": deletion_vectors.BLOB_OFFSET,
            "content_size_in_bytes": len(blob),
        }

    def position_deletes(self, live: Live, positions: Sequence[int], content: int = POSITION_DELETES) -> Record:
        """A Parquet file of position or equality deletes."""
        out = io.BytesIO()
        columns = (
            {"file_path": [live.path] * len(positions), "pos": list(positions)} if content == POSITION_DELETES else {"id": list(positions)}
        )
        pq.write_table(pa.table(columns), out)
        path = self.name(".parquet")
        self.put(path, out.getvalue())
        return {
            "content": content,
            "file_path": path,
            "file_format": "PARQUET",
            "partition": dict(live.file["partition"]),
            "record_count": len(positions),
            "file_size_in_bytes": len(out.getvalue()),
            "equality_ids": None if content == POSITION_DELETES else [1],
        }

    # ---------------------------------------------------------------------------------------------------- commits

    def draft(self, kind: str) -> "Draft":
        """A commit of some kind that is right; ``kind``: append, several, delta, overwrite, delete, rewrite, manifests."""
        draft = Draft(self, {"several": "append", "delta": "overwrite", "rewrite": "replace", "manifests": "replace"}.get(kind, kind))
        chance = self.chance
        some = [self.data[path] for path in sorted(self.data)]
        match kind:
            case "append":
                draft.add(*(self.data_file() for _ in range(chance.randrange(1, 4))))
            case "several":
                draft.add(self.data_file())
                draft.add(self.data_file(), self.data_file())
            case "delta":
                for live in chance.sample(some, min(len(some), chance.randrange(1, 3))):
                    draft.delete_rows(live)
                draft.add(self.data_file())
            case "overwrite":
                draft.remove(*chance.sample(some, 1))
                draft.add(self.data_file())
            case "delete":
                draft.remove(*chance.sample(some, 1))
            case "rewrite":
                live = chance.choice(some)
                draft.remove(live)
                draft.add(self.data_file(self.values[live.path], live.file["record_count"]))
            case "manifests":
                draft.replace(*{live.manifest for live in chance.sample(some, min(len(some), 3))})
        return draft


class Draft:
    def __init__(self, made: Made, operation: str) -> None:
        self.made = made
        self.base = dict(made.metadata)
        self.ident = made.chance.getrandbits(62) + 1
        head = made.metadata["refs"].get("main")
        self.snapshot: Json = {
            "snapshot-id": self.ident,
            "timestamp-ms": made.metadata["last-updated-ms"] + 1_000,
            "summary": {"operation": operation},
            "schema-id": 0,
            "manifest-list": "",
        }
        if head is not None:
            self.snapshot["parent-snapshot-id"] = head["snapshot-id"]
        self.sequence = made.metadata["last-sequence-number"] + 1 if made.version > 1 else 0
        if made.version > 1:
            self.snapshot["sequence-number"] = self.sequence
        self.kept = {record["manifest_path"]: dict(record) for record in made.listed}
        self.written: list[Written] = []
        self.header: dict[str, str] = {}
        self.listed: list[Record] = []
        self.types: dict[str, str] = {}
        """Partition fields that are written with another type."""

    def entry(self, status: int, file: Record) -> Record:
        return {"status": status, "snapshot_id": self.ident, "sequence_number": None, "file_sequence_number": None, "data_file": file}

    def add(self, *files: Record, content: int = DATA) -> Written:
        written = Written(content, [self.entry(ADDED, file) for file in files])
        self.written.append(written)
        return written

    def _opened(self, live: Live) -> Written:
        """The new manifest in the place of that of the file, with everything in it EXISTING."""
        for written in self.written:
            if written.path == live.manifest:
                return written
        del self.kept[live.manifest]
        among = self.made.data if live.file["content"] == DATA else self.made.deletes
        entries = [{**clone(other.entry), "status": EXISTING} for other in among.values() if other.manifest == live.manifest]
        written = Written(live.file["content"] and DELETES, entries, path=live.manifest)
        self.written.append(written)
        return written

    def _gone(self, live: Live) -> None:
        for entry in self._opened(live).entries:
            if entry["data_file"]["file_path"] == live.path:
                entry["status"], entry["snapshot_id"] = DELETED, self.ident

    def remove(self, *lives: Live) -> None:
        for live in lives:
            self._gone(live)
            for other in list(self.made.deletes.values()):
                if other.file.get("referenced_data_file") == live.path:
                    self._gone(other)

    def delete_rows(self, live: Live) -> None:
        made = self.made
        positions = made.chance.sample(range(live.file["record_count"]), 2)
        if made.version < 3:
            self.add(made.position_deletes(live, positions, made.chance.choice([1, 2])), content=DELETES)
            return
        for other in list(made.deletes.values()):
            if other.file.get("referenced_data_file") == live.path:
                self._gone(other)
        self.add(made.vector(live, positions), content=DELETES)

    def replace(self, *manifests: str) -> None:
        """Rewrite manifests into one."""
        files = [self._opened(live) for live in list(self.made.data.values()) if live.manifest in manifests]
        into = Written(DATA, [])
        for written in files:
            if written in self.written:
                self.written.remove(written)
                into.entries += written.entries
        self.written.append(into)

    # ------------------------------------------------------------------------------------------------------ states

    def seal(self) -> "Draft":
        """Write the manifests, and say of them what is true."""
        made = self.made
        next_row_id = first = made.metadata.get("next-row-id", 0)
        self.listed = []
        for written in self.written:
            written.path = made.name(".avro")
            written.header = {
                "schema": orjson.dumps(SCHEMA).decode(),
                "schema-id": "0",
                "partition-spec": orjson.dumps(made.metadata["partition-specs"][0]["fields"]).decode(),
                "partition-spec-id": "0",
                "format-version": str(made.version),
                "content": "deletes" if written.content == DELETES else "data",
            }
            data = self.encoded(written)
            made.put(written.path, data)
            by = {
                status: [entry["data_file"]["record_count"] for entry in written.entries if entry["status"] == status]
                for status in (0, 1, 2)
            }
            live = [entry for entry in written.entries if entry["status"] != DELETED]
            numbers = [self.sequence if entry["sequence_number"] is None else entry["sequence_number"] for entry in live]
            written.record = {
                "manifest_path": written.path,
                "manifest_length": len(data),
                "partition_spec_id": 0,
                "content": written.content,
                "sequence_number": self.sequence,
                "min_sequence_number": min(numbers, default=self.sequence),
                "added_snapshot_id": self.ident,
                "added_files_count": len(by[ADDED]),
                "existing_files_count": len(by[EXISTING]),
                "deleted_files_count": len(by[DELETED]),
                "added_rows_count": sum(by[ADDED]),
                "existing_rows_count": sum(by[EXISTING]),
                "deleted_rows_count": sum(by[DELETED]),
                "partitions": self.summaries([entry["data_file"]["partition"] for entry in written.entries]),
                "first_row_id": None,
            }
            self.listed.append(written.record)
        self.listed += self.kept.values()
        there = [one["added_files_count"] + one["existing_files_count"] for one in self.listed if one["content"] == DATA]
        self.snapshot["summary"]["total-data-files"] = str(sum(there))
        if made.version >= 3:
            for record in self.listed:
                if record["content"] == DATA and record["first_row_id"] is None:
                    record["first_row_id"] = next_row_id
                    next_row_id += record["added_rows_count"] + record["existing_rows_count"]
            self.snapshot |= {"first-row-id": first, "added-rows": next_row_id - first}
        parent = self.snapshot.get("parent-snapshot-id")
        self.header = {"snapshot-id": str(self.ident), "parent-snapshot-id": "null" if parent is None else str(parent)}
        if made.version > 1:
            self.header |= {"sequence-number": str(self.sequence), "format-version": str(made.version)}
        return self

    def summaries(self, partitions: Sequence[Record]) -> list[Record]:
        found = []
        for name, _, kind, _ in self.made.fields:
            kind = self.types.get(name, kind)
            values = [partition.get(name) for partition in partitions]
            there = sorted({value for value in values if value is not None})
            found.append(
                {
                    "contains_null": None in values,
                    "contains_nan": False,
                    "lower_bound": serialized(there[0], kind) if there else None,
                    "upper_bound": serialized(there[-1], kind) if there else None,
                }
            )
        return found

    def schemas(self) -> tuple[Any, Any]:
        """Of entries and of records."""
        return _schemas(self.made.version, tuple((name, self.types.get(name, kind)) for name, _, kind, _ in self.made.fields))

    def encoded(self, written: Written) -> bytes:
        return avro(self.schemas()[0], written.entries, written.header)

    def reseal(self, written: Written) -> None:
        """Write a manifest again, in which something was changed that its record does not say."""
        data = self.encoded(written)
        self.made.put(written.path, data)
        written.record["manifest_length"] = len(data)

    def publish(self) -> tuple[Json, Json]:
        """(metadata before, after). The table goes on from there."""
        made = self.made
        place = made.name(".avro")
        made.put(place, avro(self.schemas()[1], self.listed, self.header))
        if self.snapshot["manifest-list"] == "":
            self.snapshot["manifest-list"] = place
        new = made.metadata
        new["snapshots"] = [*new["snapshots"], self.snapshot]
        new["last-updated-ms"] = max(new["last-updated-ms"], self.snapshot.get("timestamp-ms", 0))
        new["last-sequence-number"] = max(new["last-sequence-number"], self.sequence)
        if made.version >= 3:
            new["next-row-id"] += self.snapshot.get("added-rows", 0)
        new["snapshot-log"] = [*new["snapshot-log"], {"snapshot-id": self.ident, "timestamp-ms": self.snapshot.get("timestamp-ms", 0)}]
        new["refs"] = {"main": {"type": "branch", "snapshot-id": self.ident}}
        new["current-snapshot-id"] = self.ident
        return self.base, dict(new)

    def settle(self) -> None:
        """What lives after this commit."""
        made = self.made
        gone = set(made_listed(made.listed)) - {record["manifest_path"] for record in self.listed}
        for among in (made.data, made.deletes):
            for path in [path for path, live in among.items() if live.manifest in gone]:
                del among[path]
        for record in self.listed:
            first = record["first_row_id"]
            written = next((one for one in self.written if one.path == record["manifest_path"]), None)
            if written is None:
                # Ids that a kept manifest got now.
                entries = [live.entry for live in made.data.values() if live.manifest == record["manifest_path"]]
            else:
                entries = [entry for entry in written.entries if entry["status"] != DELETED]
            for entry in entries:
                file = entry["data_file"]
                if entry["sequence_number"] is None:
                    entry["sequence_number"] = entry["file_sequence_number"] = self.sequence
                if first is not None and record["content"] == DATA and file.get("first_row_id") is None:
                    file["first_row_id"] = first
                    first += file["record_count"]
                among = made.data if record["content"] == DATA else made.deletes
                among[file["file_path"]] = Live(entry, record["manifest_path"])
        made.listed = self.listed


def made_listed(records: Sequence[Record]) -> list[str]:
    return [record["manifest_path"] for record in records]


def clone(entry: Record) -> Record:
    """A copy in which all may be changed but bounds."""
    return {**entry, "data_file": {**entry["data_file"], "partition": dict(entry["data_file"]["partition"])}}


@lru_cache
def _schemas(version: int, fields: tuple[tuple[str, str], ...]) -> tuple[Any, Any]:
    codec = Codec(max(version, 2), tuple((name, kind, 1000 + at) for at, (name, kind) in enumerate(fields)))
    entry, listed = orjson.loads(codec._entry_text), orjson.loads(codec._listed_text)
    if version == 1:
        for schema in (entry, entry["fields"][-1]["type"], listed):
            schema["fields"] = [one for one in schema["fields"] if one["name"] not in _SINCE_V2]
    return fastavro.parse_schema(_plain(entry)), fastavro.parse_schema(_plain(listed))


def avro(schema: Any, records: Sequence[Record], header: dict[str, str], codec: str = "deflate") -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, schema, records, codec=codec, metadata=header)
    return out.getvalue()


def _plain(schema: Any) -> Any:
    """Without logical types: values are as Avro stores them."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if key != "logicalType"}
    return [_plain(part) for part in schema] if isinstance(schema, list) else schema


def damaged_crc(puffin: bytes) -> bytes:
    """A Puffin file with one vector, whose checksum is wrong."""
    at = deletion_vectors.BLOB_OFFSET
    (length,) = (int.from_bytes(puffin[at : at + 4], "big"),)
    end = at + 4 + length
    return puffin[:end] + pack(">I", zlib.crc32(puffin[at + 4 : end]) ^ 1) + puffin[end + 4 :]
