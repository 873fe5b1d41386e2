"""One writer that appends to Iceberg tables through a REST catalog: ``python -m icelake.bench.append``, a process of its own.

Reads turns from stdin, a JSON line each, and answers each with a line. A turn: ``{"uri", "tables", "each"}``, the catalog, the paths of
tables below it (one after the other, round and round), and how many snapshots a table gets; every writer stops at a table that has them.

What it does for a commit is what any writer does (Iceberg spec, Snapshots; REST specification, updateTable): a data file and a manifest
with it, once; then, until it is done, a manifest list on top of the table's newest snapshot and one request. Status 409 means that
somebody was faster: the table is loaded again and a new list is written, at once. What a table is now is known from the answer of the
last commit. Manifests are not merged. All files are real, below the table's location, of format version 2; the data file's bytes are
always the same. Nothing is synced here: what a client does is not what is measured. Fails with RuntimeError on any other answer.
"""

import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pyarrow as pa

from icelake.model.location import canonical
from icelake.observe.clock import SystemChance
from icelake.ports import Json
from icelake.tables.data_files import Encoded, encode
from icelake.tables.layout import layout_of
from icelake.tables.manifests import ADDED, DATA, Manifest, codec_of, decode_manifest_list, entry_bytes, manifest_header

SCHEMA: Json = {
    "type": "struct",
    "schema-id": 0,
    "fields": [
        {"id": 1, "name": "id", "required": True, "type": "long"},
        {"id": 2, "name": "note", "required": False, "type": "string"},
        {"id": 3, "name": "amount", "required": False, "type": "double"},
    ],
}
"""Of the tables that are appended to."""
ROWS = 10
"""Of a data file."""


class Rest:
    """A REST catalog, on one connection that stays open."""

    def __init__(self, connection: HTTPConnection) -> None:
        self.connection = connection

    def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, bytes]:
        """The status and what came with it. ``path``: below ``/v1/``."""
        data = None if body is None else orjson.dumps(body)
        self.connection.request(method, f"/v1/{path}", data, {"content-type": "application/json"})
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def made(self, method: str, path: str, body: Json | None = None) -> Json:
        """What it answers. Raises RuntimeError if that is an error."""
        status, said = self.ask(method, path, body)
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {said[:1000].decode(errors='replace')}")
        found: Json = orjson.loads(said) if said else {}
        return found


@contextmanager
def rest(uri: str) -> Iterator[Rest]:
    """The catalog at ``uri`` (without v1)."""
    place = urlsplit(uri)
    assert place.hostname is not None
    with closing(HTTPConnection(place.hostname, place.port, timeout=120)) as connection:
        yield Rest(connection)


def data_file() -> Encoded:
    """The rows that each commit adds."""
    columns = [(pa.int64(), range(ROWS)), (pa.string(), [f"note {n}" for n in range(ROWS)]), (pa.float64(), [n / 7 for n in range(ROWS)])]
    fields = [
        pa.field(one["name"], kind, not one["required"], {"PARQUET:field_id": str(one["id"])})
        for one, (kind, _) in zip(SCHEMA["fields"], columns, strict=True)
    ]
    arrays = [pa.array(values, kind) for kind, values in columns]
    return encode(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), [one["type"] for one in SCHEMA["fields"]])


def summary(before: Json | None, size: int) -> dict[str, str]:
    """Of a snapshot that adds one data file of ``size`` bytes to ``before``, the summary of its parent (spec, Snapshot Summary)."""
    grown = {"total-data-files": 1, "total-records": ROWS, "total-files-size": size}
    same = dict.fromkeys(("total-delete-files", "total-position-deletes", "total-equality-deletes"), 0)
    return {
        "operation": "append",
        "added-data-files": "1",
        "added-records": str(ROWS),
        "added-files-size": str(size),
        "changed-partition-count": "1",
        **{name: str(int((before or {}).get(name, 0)) + more) for name, more in (grown | same).items()},
    }


@dataclass(frozen=True, slots=True)
class _Added:
    """What a commit adds, whatever it is put on top of."""

    snapshot_id: int
    record: Json
    """Its manifest_file record, without the sequence numbers."""
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table as the catalog's last answer had it."""

    metadata: Json
    manifests: list[Manifest]
    """Of its newest snapshot."""


@dataclass(slots=True)
class Writer:
    rest: Rest
    file: Encoded
    chance: SystemChance = field(default_factory=SystemChance)
    took: list[float] = field(default_factory=list)
    """ms from the request of each acknowledged commit to the end of its answer."""
    conflicts: int = 0
    last: float = 0.0
    """When the last commit was acknowledged, by the monotonic clock."""
    _known: dict[str, _Table] = field(default_factory=dict)
    """What its own commits made."""

    def append(self, path: str, each: int) -> bool:
        """Add a file to a table; False if the table has its snapshots without it."""
        table = self._known.pop(path, None) or self._load(path)
        added: _Added | None = None
        while len(table.metadata["snapshots"]) < each:
            added = added or self._added(table)
            snapshot, manifests = self._on_top(table, added)
            body = _commit(table.metadata, snapshot)
            began = time.monotonic()
            status, said = self.rest.ask("POST", path, body)
            now = time.monotonic()
            if status == 200:
                self.last = now
                self.took.append((now - began) * 1000)
                self._known[path] = _Table(orjson.loads(said)["metadata"], manifests)
                return True
            if status != 409:
                raise RuntimeError(f"POST {path}: {status} {said[:1000].decode(errors='replace')}")
            self.conflicts += 1
            Path(canonical(snapshot["manifest-list"])).unlink()
            table = self._load(path)
        for file in added.paths if added else ():
            file.unlink()
        return False

    def _load(self, path: str) -> _Table:
        metadata: Json = self.rest.made("GET", path)["metadata"]
        for folder in ("data", "metadata"):
            os.makedirs(f"{canonical(metadata['location'])}/{folder}", exist_ok=True)
        newest = _newest(metadata)
        if newest is None:
            return _Table(metadata, [])
        where, codec = newest["manifest-list"], codec_of(layout_of(metadata))
        _, records = decode_manifest_list(Path(canonical(where)).read_bytes(), where, newest["summary"])
        return _Table(metadata, [Manifest(record, codec.encode_manifest_file(record), ()) for record in records])

    def _added(self, table: _Table) -> _Added:
        """Write the data file and its manifest. The manifest's entry inherits its sequence numbers, so it fits any parent."""
        metadata, codec = table.metadata, codec_of(layout_of(table.metadata))
        location = metadata["location"].rstrip("/")
        path, manifest_path = f"{location}/data/{self.chance.uuid()}.parquet", f"{location}/metadata/{self.chance.uuid()}-m0.avro"
        paths = (Path(canonical(path)), Path(canonical(manifest_path)))
        paths[0].write_bytes(self.file.data)
        snapshot_id = self.chance.snapshot_id()
        entry = entry_bytes(ADDED, snapshot_id, None, codec.encode_data_file({**self.file.record, "file_path": path}))
        manifest = codec.encode_manifest(manifest_header(metadata, DATA), [entry])
        paths[1].write_bytes(manifest)
        record = {
            "manifest_path": manifest_path,
            "manifest_length": len(manifest),
            "partition_spec_id": metadata["default-spec-id"],
            "content": DATA,
            "added_snapshot_id": snapshot_id,
            "added_files_count": 1,
            "existing_files_count": 0,
            "deleted_files_count": 0,
            "added_rows_count": ROWS,
            "existing_rows_count": 0,
            "deleted_rows_count": 0,
            "partitions": [],
        }
        return _Added(snapshot_id, record, paths)

    def _on_top(self, table: _Table, added: _Added) -> tuple[Json, list[Manifest]]:
        """The snapshot that adds it to the table's newest one, its manifest list written; and what is in that."""
        metadata, parent, codec = table.metadata, _newest(table.metadata), codec_of(layout_of(table.metadata))
        sequence = metadata["last-sequence-number"] + 1
        record = {**added.record, "sequence_number": sequence, "min_sequence_number": sequence}
        manifests = [*table.manifests, Manifest(record, codec.encode_manifest_file(record), ())]
        manifest_list = f"{metadata['location'].rstrip('/')}/metadata/snap-{added.snapshot_id}-1-{self.chance.uuid()}.avro"
        snapshot: Json = {
            "snapshot-id": added.snapshot_id,
            "sequence-number": sequence,
            "timestamp-ms": max(int(time.time() * 1000), metadata["last-updated-ms"]),
            "manifest-list": manifest_list,
            "summary": summary(parent and parent["summary"], self.file.record["file_size_in_bytes"]),
            "schema-id": metadata["current-schema-id"],
        }
        if parent is not None:
            snapshot["parent-snapshot-id"] = parent["snapshot-id"]
        Path(canonical(manifest_list)).write_bytes(codec.encode_manifest_list(snapshot, manifests))
        return snapshot, manifests


def _newest(metadata: Json) -> Json | None:
    main = metadata["refs"].get("main")
    return next((one for one in metadata["snapshots"] if one["snapshot-id"] == main["snapshot-id"]), None) if main else None


def _commit(metadata: Json, snapshot: Json) -> Json:
    """The request: only if main is still where it was."""
    return {
        "requirements": [
            {"type": "assert-table-uuid", "uuid": metadata["table-uuid"]},
            {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": snapshot.get("parent-snapshot-id")},
        ],
        "updates": [
            {"action": "add-snapshot", "snapshot": snapshot},
            {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": snapshot["snapshot-id"]},
        ],
    }


def turn(uri: str, tables: list[str], each: int, file: Encoded) -> Json:
    """One turn; the commits that were acknowledged, by table, and what they took."""
    began = time.monotonic()
    acknowledged: Counter[str] = Counter()
    with rest(uri) as catalog:
        writer = Writer(catalog, file)
        waiting = deque(tables)
        while waiting:
            path = waiting.popleft()
            if writer.append(path, each):
                acknowledged[path] += 1
                waiting.append(path)
    return {"began": began, "ended": writer.last, "took": writer.took, "conflicts": writer.conflicts, "acknowledged": acknowledged}


def main() -> None:
    file = data_file()
    answer: Any = {"ready": True}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(turn(order["uri"], order["tables"], order["each"], file)), flush=True)


if __name__ == "__main__":
    main()
