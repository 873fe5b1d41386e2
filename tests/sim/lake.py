"""Read an Iceberg v3 table out of a dict of files, sharing no code with what wrote it: the simulator's judge.

Reads strictly: a file that is missing, torn, of another length than its manifest says, or a deletion vector that does not fit
its data file raises ``Broken``. Files are immutable, so what was parsed once is kept by location.
"""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from tests.sim.postgres import Row
from tests.sim.world import Broken, Machine

Json = dict[str, Any]
_SCHEMAS: dict[bytes, Any] = {}
_LONG: Any = fastavro.parse_schema({"type": "long"})
_MAP: Any = fastavro.parse_schema({"type": "map", "values": "bytes"})


def avro_records(data: bytes, where: str) -> Iterator[Json]:
    """The records of an Avro object container file (Avro specification, Object Container Files); parsed schemas are kept."""
    stream = io.BytesIO(data)
    if stream.read(4) != b"Obj\x01":
        raise Broken(f"{where} is not an Avro file")
    header: Any = fastavro.schemaless_reader(stream, _MAP, None)
    sync = stream.read(16)
    raw = header["avro.schema"]
    if raw not in _SCHEMAS:
        _SCHEMAS[raw] = fastavro.parse_schema(json.loads(raw))
    schema = _SCHEMAS[raw]
    while stream.tell() < len(data):
        count: Any = fastavro.schemaless_reader(stream, _LONG, None)
        size: Any = fastavro.schemaless_reader(stream, _LONG, None)
        block = stream.read(size)
        if header.get("avro.codec", b"null") == b"deflate":
            block = zlib.decompress(block, -15)
        if len(block) < 1 or stream.read(16) != sync:
            raise Broken(f"{where} is torn")
        inside = io.BytesIO(block)
        for _ in range(count):
            record: Any = fastavro.schemaless_reader(inside, schema, None)
            yield record


@dataclass(frozen=True, slots=True)
class DataFile:
    rows: list[Row]
    row_ids: list[int | None]
    updated: list[int | None]
    """The sequence number that last changed each row; None: the file's."""


@dataclass(frozen=True, slots=True)
class Contents:
    """A table at a snapshot: its rows with their row ids, and every location it needs."""

    rows: list[tuple[Row, int]]
    updated: list[int]
    """The sequence number that last changed each row."""
    locations: frozenset[str]


class Lake:
    """All tables of one world's disk."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._avro: dict[str, list[Json]] = {}
        self._data: dict[str, DataFile] = {}
        self._vectors: dict[str, BitMap] = {}
        self._contents: dict[int, Contents] = {}

    def _bytes(self, location: str, length: int | None = None) -> bytes:
        data = self._machine.files.get(location)
        if data is None:
            there = "not synced" if location in self._machine.dirty else "missing"
            raise Broken(f"a referenced file is {there}: {location}")
        if length is not None and len(data) != length:
            raise Broken(f"{location} has {len(data)} bytes, {length} were promised")
        return data

    def _records(self, location: str, length: int | None = None) -> list[Json]:
        data = self._bytes(location, length)
        if location not in self._avro:
            self._avro[location] = list(avro_records(data, location))
        return self._avro[location]

    def there(self, snapshot_id: int) -> Contents:
        """A snapshot that was read before: all its files are still there."""
        known = self._contents[snapshot_id]
        for location in known.locations:
            self._bytes(location)
        return known

    def locations(self, manifest_list: str) -> set[str]:
        """Every file a snapshot references, by its manifest list."""
        found = {manifest_list}
        for manifest in self._records(manifest_list):
            found.add(manifest["manifest_path"])
            entries = self._records(manifest["manifest_path"], manifest["manifest_length"])
            found.update(entry["data_file"]["file_path"] for entry in entries if entry["status"] != 2)
        return found

    def contents(self, metadata: Json, snapshot_id: int, columns: list[str]) -> Contents:
        """The table at that snapshot. Every file is looked for again, even when its content is known."""
        if snapshot_id in self._contents:
            return self.there(snapshot_id)
        snapshot = next((s for s in metadata.get("snapshots", ()) if s["snapshot-id"] == snapshot_id), None)
        if snapshot is None:
            raise Broken(f"{metadata['location']}: snapshot {snapshot_id} is gone")
        locations = {snapshot["manifest-list"]}
        data_files: list[tuple[Json, int]] = []
        vectors: dict[str, Json] = {}
        for manifest in self._records(snapshot["manifest-list"]):
            location = manifest["manifest_path"]
            locations.add(location)
            running = manifest["first_row_id"]
            for entry in self._records(location, manifest["manifest_length"]):
                if entry["status"] == 2:
                    continue
                file = entry["data_file"]
                locations.add(file["file_path"])
                sequence = entry["sequence_number"] if entry["sequence_number"] is not None else manifest["sequence_number"]
                if sequence > snapshot["sequence-number"]:
                    raise Broken(f"{file['file_path']} is newer than its snapshot")
                if file["content"] == 1:
                    target = file["referenced_data_file"]
                    if target in vectors:
                        raise Broken(f"two deletion vectors for {target}")
                    vectors[target] = {**file, "sequence": sequence}
                else:
                    first = file["first_row_id"]
                    if first is None:
                        first = running
                        running += file["record_count"]
                    data_files.append(({**file, "sequence": sequence}, first))
        rows: list[tuple[Row, int]] = []
        updated: list[int] = []
        for file, first in data_files:
            read = self._rows(file, columns)
            vector = vectors.pop(file["file_path"], None)
            gone: BitMap | None = None
            if vector is not None:
                if vector["sequence"] < file["sequence"]:
                    raise Broken(f"the deletion vector of {file['file_path']} is older than the file")
                gone = self._vector(vector, file)
            for at, (row, row_id, since) in enumerate(zip(read.rows, read.row_ids, read.updated, strict=True)):
                if gone is None or at not in gone:
                    rows.append((row, first + at if row_id is None else row_id))
                    updated.append(file["sequence"] if since is None else since)
        if vectors:
            raise Broken(f"deletion vectors of files that are not in the table: {', '.join(vectors)}")
        result = Contents(rows, updated, frozenset(locations))
        self._contents[snapshot_id] = result
        return result

    def _rows(self, file: Json, columns: list[str]) -> DataFile:
        location = file["file_path"]
        data = self._bytes(location, file["file_size_in_bytes"])
        if location not in self._data:
            try:
                table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
            except (pa.ArrowInvalid, OSError) as error:
                raise Broken(f"{location} cannot be read: {error}") from error
            if table.num_rows != file["record_count"]:
                raise Broken(f"{location} has {table.num_rows} rows, not {file['record_count']}")
            values = [table.column(name).to_pylist() for name in columns]
            lineage: list[list[Any]] = [
                table.column(name).to_pylist() if name in table.column_names else [None] * table.num_rows
                for name in ("_row_id", "_last_updated_sequence_number")
            ]
            self._data[location] = DataFile(list(zip(*values, strict=True)), *lineage)
        return self._data[location]

    def _vector(self, entry: Json, file: Json) -> BitMap:
        location = entry["file_path"]
        data = self._bytes(location, entry["file_size_in_bytes"])
        if location not in self._vectors:
            start = entry["content_offset"]
            blob = data[start : start + entry["content_size_in_bytes"]]
            body = blob[4:-4]
            if struct.unpack(">I", blob[:4])[0] != len(body) or struct.unpack(">I", blob[-4:])[0] != zlib.crc32(body):
                raise Broken(f"{location}: the blob is torn")
            count = struct.unpack("<Q", body[4:12])[0]
            bitmap = BitMap()
            if count == 1:
                if struct.unpack("<I", body[12:16])[0] != 0:
                    raise Broken(f"{location}: a position beyond 2^32")
                bitmap = BitMap.deserialize(body[16:])
            elif count:
                raise Broken(f"{location}: {count} keys in a small bitmap")
            if len(bitmap) != entry["record_count"] or (len(bitmap) and bitmap.max() >= file["record_count"]):
                raise Broken(f"{location}: a vector of {len(bitmap)} positions does not fit")
            self._vectors[location] = bitmap
        return self._vectors[location]
