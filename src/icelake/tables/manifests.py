"""Manifests and manifest lists: the Avro files that say which data files and deletion vectors a snapshot has.

Promises the field ids and header keys of the spec (Iceberg spec, Manifests; Manifest Lists), v3 and v2. An entry is kept as the
bytes of its ``data_file`` record, so a manifest is merged by copying bytes, and a kept manifest costs a manifest list nothing to
encode. Never changes an entry's numbers: an existing entry always carries its sequence numbers and (v3) first row id. Values have
the form Avro stores them in, never that of their logical type: a date is its number of days. Reading raises Corrupt on anything that
does not decode or is not there. No I/O.
"""

import hashlib
import io
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fastavro
import orjson
import pyarrow as pa

from icelake.errors import Corrupt, ForeignChange
from icelake.model.types import Primitive
from icelake.ports import Json
from icelake.tables.layout import BoundLayout, Partition, decimal_bytes

EXISTING, ADDED, DELETED = 0, 1, 2
"""Entry status."""
DATA, POSITION_DELETES, EQUALITY_DELETES = 0, 1, 2
"""data_file.content. A manifest's own content is DATA or ``DELETES``."""
DELETES = 1

Record = dict[str, Any]


def _optional(name: str, kind: Any, number: int) -> Json:
    return {"name": name, "type": ["null", kind], "default": None, "field-id": number}


def _required(name: str, kind: Any, number: int) -> Json:
    return {"name": name, "type": kind, "field-id": number}


def _map(key: int, value: int, kind: str) -> Json:
    # Avro maps have string keys only; the spec writes int-keyed maps as arrays of pairs.
    pair = {"type": "record", "name": f"k{key}_v{value}", "fields": [_required("key", "int", key), _required("value", kind, value)]}
    return {"type": "array", "logicalType": "map", "items": pair}


_DATA_FILE_FIELDS = [
    _required("content", "int", 134),
    _required("file_path", "string", 100),
    _required("file_format", "string", 101),
    _required("partition", None, 102),
    _required("record_count", "long", 103),
    _required("file_size_in_bytes", "long", 104),
    _optional("column_sizes", _map(117, 118, "long"), 108),
    _optional("value_counts", _map(119, 120, "long"), 109),
    _optional("null_value_counts", _map(121, 122, "long"), 110),
    _optional("nan_value_counts", _map(138, 139, "long"), 137),
    _optional("lower_bounds", _map(126, 127, "bytes"), 125),
    _optional("upper_bounds", _map(129, 130, "bytes"), 128),
    _optional("key_metadata", "bytes", 131),
    _optional("split_offsets", {"type": "array", "items": "long", "element-id": 133}, 132),
    _optional("equality_ids", {"type": "array", "items": "int", "element-id": 136}, 135),
    _optional("sort_order_id", "int", 140),
    _optional("first_row_id", "long", 142),
    _optional("referenced_data_file", "string", 143),
    _optional("content_offset", "long", 144),
    _optional("content_size_in_bytes", "long", 145),
]
_STATUS_FIELDS = [
    _required("status", "int", 0),
    _optional("snapshot_id", "long", 1),
    _optional("sequence_number", "long", 3),
    _optional("file_sequence_number", "long", 4),
]
_PARTITION_SUMMARY: Json = {
    "type": "record",
    "name": "r508",
    "fields": [
        _required("contains_null", "boolean", 509),
        _optional("contains_nan", "boolean", 518),
        _optional("lower_bound", "bytes", 510),
        _optional("upper_bound", "bytes", 511),
    ],
}
_LIST_ENTRY: Json = {
    "type": "record",
    "name": "manifest_file",
    "fields": [
        _required("manifest_path", "string", 500),
        _required("manifest_length", "long", 501),
        _required("partition_spec_id", "int", 502),
        _required("content", "int", 517),
        _required("sequence_number", "long", 515),
        _required("min_sequence_number", "long", 516),
        _required("added_snapshot_id", "long", 503),
        _required("added_files_count", "int", 504),
        _required("existing_files_count", "int", 505),
        _required("deleted_files_count", "int", 506),
        _required("added_rows_count", "long", 512),
        _required("existing_rows_count", "long", 513),
        _required("deleted_rows_count", "long", 514),
        _optional("partitions", {"type": "array", "items": _PARTITION_SUMMARY, "element-id": 508}, 507),
        _optional("key_metadata", "bytes", 519),
        _optional("first_row_id", "long", 520),
    ],
}

_SINCE_V3 = frozenset({142, 144, 145, 520})
"""Ids of the fields that format version 2 does not have."""

# Avro encodes a record as its fields one after the other, so an entry is its status fields followed by its data_file.
_STATUS_SCHEMA = fastavro.parse_schema({"type": "record", "name": "manifest_entry_status", "fields": _STATUS_FIELDS})

_AVRO_MAGIC = b"Obj\x01"
_DEFLATE_FROM = 1 << 12
"""Bodies smaller than this are not compressed: the header, which never is, is larger."""
_MAX_BODY = 1 << 30
"""A manifest that inflates to more is refused, not read."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A live file of a manifest. ``no`` is the local number of the data file: for a deletion vector, of the one it is about."""

    no: int
    snapshot_id: int
    sequence_number: int
    file_sequence_number: int
    record_count: int
    size: int
    """Bytes it adds to the table: of the file, or of the vector inside its Puffin."""
    partition: Partition
    data_file: bytes
    """The Avro encoding of the data_file record, with its first row id resolved."""


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """A manifest of a snapshot, as its manifest list has it, and the entries in it that live."""

    record: Record
    """The manifest_file record (spec, Manifest Lists), by field name."""
    encoded: bytes
    """The same in Avro."""
    entries: tuple[Entry, ...]

    @property
    def path(self) -> str:
        return str(self.record["manifest_path"])

    @property
    def length(self) -> int:
        return int(self.record["manifest_length"])

    @property
    def content(self) -> int:
        return int(self.record["content"])


class Codec:
    """The Avro form of one table's manifests and manifest lists, which depends on its format version and its partition type."""

    def __init__(self, version: int, partition_type: tuple[tuple[str, str, int], ...]) -> None:
        """``partition_type``: (name, Iceberg type, field id) of each partition field. Use ``codec_of``."""
        self.version = version
        fields = [_optional(name, _avro_type(kind, ident), ident) for name, kind, ident in partition_type]
        partition = {"type": "record", "name": "r102", "fields": fields}
        data_file = {
            "type": "record",
            "name": "r2",
            "fields": [{**field, "type": partition} if field["field-id"] == 102 else field for field in self._known(_DATA_FILE_FIELDS)],
        }
        entry = {"type": "record", "name": "manifest_entry", "fields": [*_STATUS_FIELDS, _required("data_file", data_file, 2)]}
        listed = {**_LIST_ENTRY, "fields": self._known(_LIST_ENTRY["fields"])}
        self._entry_text, self._listed_text = orjson.dumps(entry), orjson.dumps(listed)
        self._data_file = fastavro.parse_schema(_physical(data_file))
        self._listed = fastavro.parse_schema(listed)
        _remember(_ENTRY, self._entry_text, fastavro.parse_schema(_physical(entry)))
        _remember(_LISTED, self._listed_text, self._listed)

    def _known(self, fields: Sequence[Json]) -> list[Json]:
        return [field for field in fields if self.version >= 3 or field["field-id"] not in _SINCE_V3]

    def encode_data_file(self, record: Record) -> bytes:
        """A data_file record in Avro. Fields that are left out become null."""
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._data_file, record)
        return out.getvalue()

    def decode_data_file(self, data_file: bytes) -> Record:
        """The inverse of ``encode_data_file``."""
        record = fastavro.schemaless_reader(io.BytesIO(data_file), self._data_file, None)
        assert isinstance(record, dict)
        return record

    def encode_manifest(self, header: Mapping[str, bytes], entries: Sequence[bytes]) -> bytes:
        """A manifest file of encoded entries."""
        return _encode_container(self._entry_text, header, entries)

    def encode_manifest_file(self, record: Record) -> bytes:
        """A manifest_file record (spec, Manifest Lists) in Avro."""
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._listed, record)
        return out.getvalue()

    def encode_manifest_list(self, snapshot: Json, manifests: Sequence[Manifest]) -> bytes:
        """The manifest list of a snapshot (its JSON form, spec Appendix C)."""
        parent = snapshot.get("parent-snapshot-id")
        header = {
            "snapshot-id": str(snapshot["snapshot-id"]).encode(),
            "parent-snapshot-id": b"null" if parent is None else str(parent).encode(),
            "sequence-number": str(snapshot["sequence-number"]).encode(),
            "format-version": str(self.version).encode(),
        }
        if self.version >= 3:
            header["first-row-id"] = str(snapshot["first-row-id"]).encode()
        return _encode_container(self._listed_text, header, [manifest.encoded for manifest in manifests])


def codec_of(layout: BoundLayout) -> Codec:
    """The codec of a table that is laid out so."""
    return _codec(layout.format_version, tuple((one.name, one.kind, one.field_id) for one in layout.fields))


@lru_cache(64)
def _codec(version: int, partition_type: tuple[tuple[str, str, int], ...]) -> Codec:
    return Codec(version, partition_type)


_AVRO_TYPES: Mapping[str, Any] = {
    "boolean": "boolean",
    "int": "int",
    "long": "long",
    "string": "string",
    "binary": "bytes",
    "date": {"type": "int", "logicalType": "date"},
    "time": {"type": "long", "logicalType": "time-micros"},
    "timestamp": {"type": "long", "logicalType": "timestamp-micros", "adjust-to-utc": False},
    "timestamptz": {"type": "long", "logicalType": "timestamp-micros", "adjust-to-utc": True},
}


def _avro_type(kind: str, ident: int) -> Any:
    """The Avro type of a partition field (spec, Appendix A, Avro). The names of fixed types must differ within a schema."""
    declared = Primitive(kind).decimal
    if declared is None:
        return _AVRO_TYPES[kind]
    precision, scale = declared
    name, size = f"decimal_{precision}_{scale}_{ident}", decimal_bytes(precision)
    return {"type": "fixed", "name": name, "size": size, "logicalType": "decimal", "precision": precision, "scale": scale}


def _physical(schema: Any) -> Any:
    """The schema without logical types: fastavro makes Python dates and decimals of them, which cannot be all that a table can hold."""
    if isinstance(schema, dict):
        return {key: _physical(value) for key, value in schema.items() if key != "logicalType"}
    return [_physical(part) for part in schema] if isinstance(schema, list) else schema


def entry_bytes(status: int, snapshot_id: int, numbers: tuple[int, int] | None, data_file: bytes) -> bytes:
    """An entry in Avro. ``numbers``: data and file sequence number, None to inherit them (only ADDED may)."""
    data, file = numbers if numbers is not None else (None, None)
    out = io.BytesIO()
    fastavro.schemaless_writer(
        out,
        _STATUS_SCHEMA,
        {"status": status, "snapshot_id": snapshot_id, "sequence_number": data, "file_sequence_number": file},
    )
    out.write(data_file)
    return out.getvalue()


def manifest_header(metadata: Json, content: int) -> dict[str, bytes]:
    """The key-value metadata of a manifest of a table in its current shape (spec, Manifests)."""
    schema = next(s for s in metadata["schemas"] if s["schema-id"] == metadata["current-schema-id"])
    spec = next(s for s in metadata["partition-specs"] if s["spec-id"] == metadata["default-spec-id"])
    return {
        "schema": orjson.dumps(schema),
        "schema-id": str(metadata["current-schema-id"]).encode(),
        "partition-spec": orjson.dumps(spec["fields"]),
        "partition-spec-id": str(metadata["default-spec-id"]).encode(),
        "format-version": str(metadata["format-version"]).encode(),
        "content": b"deletes" if content == DELETES else b"data",
    }


def decode_manifest(file: bytes, where: str) -> tuple[dict[str, bytes], list[Record]]:
    """(header, entries as written) of a manifest. What the spec requires is in them, of the type it says."""
    return _decode_container(file, _ENTRY, where)


def decode_manifest_list(file: bytes, where: str, summary: Mapping[str, str] | None = None) -> tuple[dict[str, bytes], list[Record]]:
    """(header, manifest_file records) of a manifest list. What the spec requires is in them, of the type it says.

    ``summary``: that of its snapshot, with which its counts must agree.
    Nothing says how long a list is, and one that was cut off between two blocks is a list all the same.
    """
    header, records = _decode_container(file, _LISTED, where)
    for content, total in ((DATA, "total-data-files"), (DELETES, "total-delete-files")):
        listed = sum(record["added_files_count"] + record["existing_files_count"] for record in records if record["content"] == content)
        counted = (summary or {}).get(total)
        if counted is not None and counted != str(listed):
            raise corrupt(where, f"it lists {listed} files, and {total} of its snapshot is {counted}")
    return header, records


def read_manifest(file: bytes, where: str) -> tuple[dict[str, bytes], Iterator[Record]]:
    """(header, entries as written) of a manifest of any writer and format version; the entries are decoded one after the other.

    Fields are told by their ids, as the spec demands, and have the spec's names here; those of ``data_file.partition`` have their ids
    (``"1000"``). Only what every version requires is always there.
    """
    return _open_container(file, _ANY_ENTRY, where)


def read_manifest_list(file: bytes, where: str) -> tuple[dict[str, bytes], list[Record]]:
    """(header, manifest_file records) of a manifest list of any writer and format version, likewise."""
    header, records = _open_container(file, _ANY_LISTED, where)
    return header, list(records)


def inherit(manifest: Record, entries: Iterable[Record], where: str, version: int) -> Iterator[Record]:
    """Entries with everything resolved that they inherit from their manifest (spec, Sequence Number and First Row ID
    Inheritance). DELETED ones are passed on too, without a resolved first row id. Format version 2 has no row ids."""
    next_row_id = manifest.get("first_row_id")
    deletes = "PUFFIN" if version >= 3 else "PARQUET"
    for entry in entries:
        status, file = entry["status"], entry["data_file"]
        if entry["snapshot_id"] is None:
            entry["snapshot_id"] = manifest["added_snapshot_id"]
        for name in ("sequence_number", "file_sequence_number"):
            if entry[name] is None:
                if status != ADDED:
                    raise corrupt(where, f"{file['file_path']} is not new and has no {name}")
                entry[name] = manifest["sequence_number"]
        ours = file["file_format"].upper() == deletes and file["referenced_data_file"] is not None
        if file["content"] == EQUALITY_DELETES or (file["content"] == POSITION_DELETES and not ours):
            raise ForeignChange(
                "FOREIGN_DELETES",
                f"{where} holds deletes that are not about one data file's positions",
                f"{file['file_path']} was written by another engine; a mirror has only one writer",
                "load the tables again into a new lake",
            )
        if version >= 3 and file["content"] == DATA and status != DELETED and file.get("first_row_id") is None:
            if next_row_id is None:
                raise corrupt(where, f"{file['file_path']} has no first row id")
            file["first_row_id"] = next_row_id
            next_row_id += file["record_count"]
        yield entry


def corrupt(where: str, why: str) -> Corrupt:
    return Corrupt(
        "MANIFEST_CORRUPT",
        f"{where} is not a manifest or manifest list that can be trusted",
        why,
        "restore the file from a copy, or load the tables again into a new lake",
    )


# --------------------------------------------------------------------------------- Avro object container files (spec 1.12)
# Our own framing, because fastavro's parses the schema anew for every file, which costs more than all the rest of a commit.

_ENTRY, _LISTED = "manifest_entry", "manifest_file"
"""What the records of a container are."""
_ANY_ENTRY, _ANY_LISTED = "any manifest_entry", "any manifest_file"
"""The same of any writer and format version."""
_SINCE_V1 = frozenset({0, 2, 100, 101, 102, 103, 104, 500, 501, 502})
"""Ids of the fields that every format version requires."""


def _of_any(fields: Sequence[Json]) -> list[Json]:
    return [
        field if field["field-id"] in _SINCE_V1 or isinstance(field["type"], list) else {**field, "type": ["null", field["type"]]}
        for field in fields
    ]


def _entry(status: list[Json], data_file: list[Json]) -> Json:
    return {"type": "record", "fields": [*status, _required("data_file", {"type": "record", "fields": data_file}, 2)]}


_EXPECTED: Mapping[str, Json] = {
    _ENTRY: _entry(_STATUS_FIELDS, _DATA_FILE_FIELDS),
    _LISTED: _LIST_ENTRY,
    _ANY_ENTRY: _entry(_of_any(_STATUS_FIELDS), _of_any(_DATA_FILE_FIELDS)),
    _ANY_LISTED: {**_LIST_ENTRY, "fields": _of_any(_LIST_ENTRY["fields"])},
}
_ALWAYS_THERE = frozenset({"snapshot_id", "sequence_number", "file_sequence_number", "referenced_data_file"})
"""Fields that may be null and may not be missing in what we read as our own."""
_NAMES: Mapping[int, str] = {
    field["field-id"]: field["name"]
    for field in (
        *_STATUS_FIELDS,
        *_DATA_FILE_FIELDS,
        *_LIST_ENTRY["fields"],
        *_PARTITION_SUMMARY["fields"],
        _required("data_file", None, 2),
    )
}
_parsed: dict[tuple[str, bytes], Any] = {}
_MAX_PARSED = 256
_parsing = threading.Lock()


def _remember(what: str, text: bytes, schema: Any) -> None:
    with _parsing:
        if len(_parsed) >= _MAX_PARSED:
            _parsed.pop(next(iter(_parsed)))
        _parsed[what, text] = schema


def _believed(what: str, text: bytes) -> Any:
    """The schema a file says it was written with. Raises ValueError if its records are not what they should be."""
    schema = _physical(orjson.loads(text))
    _least_bytes(schema, {})
    anyone = what in (_ANY_ENTRY, _ANY_LISTED)
    if anyone:
        schema = _named(schema, _NAMES)
    _check_fits(schema, _physical(_EXPECTED[what]), what, frozenset() if anyone else _ALWAYS_THERE)
    return fastavro.parse_schema(schema)


def _named(kind: Any, names: Mapping[int, str] | None) -> Any:
    """The type with its fields called as their ids say; without ``names`` they are called their ids."""
    if isinstance(kind, list):
        return [_named(part, names) for part in kind]
    if not isinstance(kind, dict):
        return kind
    out = {key: _named(value, names) if key in ("type", "items") else value for key, value in kind.items()}
    if kind["type"] == "record":
        out["fields"] = [_named_field(field, names) for field in kind["fields"]]
    return out


def _named_field(field: Json, names: Mapping[int, str] | None) -> Json:
    ident = field.get("field-id")
    known = None if ident is None else str(ident) if names is None else names.get(ident)
    inside = _named(field["type"], None if ident == 102 else names)
    return {"name": field["name"] if known is None else known, "type": inside}


_LEAST_BYTES = {"null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1, "string": 1}


def _least_bytes(kind: Any, named: dict[str, int]) -> int:
    """How few bytes a value of an Avro type takes. ``named``: of the types that were declared.

    Raises ValueError for types of which a few bytes could be values without number or without depth: they would be read until memory
    or stack is used up.
    """
    if isinstance(kind, str):
        # By the last part of its name alone: no two types have the same.
        least = _LEAST_BYTES.get(kind, named.get(kind.rpartition(".")[2]))
        if least is None:
            raise ValueError(f"type {kind!r} is not declared, or within itself")
        return least
    if isinstance(kind, list):
        for part in kind:
            _least_bytes(part, named)
        return 1
    match kind["type"]:
        case "array":
            if not _least_bytes(kind["items"], named):
                raise ValueError("an array of nothing")
            return 1
        case "map":
            _least_bytes(kind["values"], named)
            return 1
        case "record":
            return _declare(kind, sum(_least_bytes(field["type"], named) for field in kind["fields"]), named)
        case "fixed":
            return _declare(kind, max(int(kind["size"]), 0), named)
        case "enum":
            return _declare(kind, 1, named)
    return _least_bytes(kind["type"], named)


def _declare(kind: Json, least: int, named: dict[str, int]) -> int:
    name = str(kind["name"]).rpartition(".")[2]
    if name in named or name in _LEAST_BYTES:
        raise ValueError(f"two types are called {name!r}")
    named[name] = least
    return least


def _check_fits(found: Any, expected: Any, what: str, always: frozenset[str]) -> None:
    """Raises ValueError unless values of the type ``found`` are such as ``expected`` has (None: a record of whatever there is)."""
    if isinstance(expected, list):
        options = found if isinstance(found, list) else [found]
        there = [option for option in options if option != "null"]
        if len(there) != 1:
            raise ValueError(f"{what} has type {found}")
        _check_fits(there[0], expected[1], what, always)
        return
    shape: Json = found if isinstance(found, dict) else {"type": found}
    wanted: Json = expected if isinstance(expected, dict) else {"type": expected or "record"}
    if shape["type"] != wanted["type"] and {shape["type"], wanted["type"]} != {"int", "long"}:
        raise ValueError(f"{what} has type {shape['type']}")
    if wanted["type"] == "array":
        _check_fits(shape["items"], wanted["items"], what, always)
    elif wanted["type"] == "record" and expected is not None:
        types = {field["name"]: field["type"] for field in shape["fields"]}
        for field in wanted["fields"]:
            if field["name"] in types:
                _check_fits(types[field["name"]], field["type"], field["name"], always)
            elif not isinstance(field["type"], list) or field["name"] in always:
                raise ValueError(f"{what} has no {field['name']}")


def _encode_container(schema: bytes, header: Mapping[str, bytes], records: Sequence[bytes]) -> bytes:
    body = b"".join(records)
    codec = b"null"
    if len(body) >= _DEFLATE_FROM:
        codec = b"deflate"
        compress = zlib.compressobj(level=1, wbits=-15)
        body = compress.compress(body) + compress.flush()
    pairs = {**header, "avro.schema": schema, "avro.codec": codec}
    out = [_AVRO_MAGIC, _long(len(pairs))]
    for key, value in pairs.items():
        name = key.encode()
        out += (_long(len(name)), name, _long(len(value)), value)
    # Any 16 bytes will do that are not likely to be in the body; a digest of the file keeps it reproducible.
    sync = hashlib.md5(body, usedforsecurity=False).digest()
    out += (b"\x00", sync)
    if records:
        out += (_long(len(records)), _long(len(body)), body, sync)
    return b"".join(out)


def _decode_container(file: bytes, what: str, where: str) -> tuple[dict[str, bytes], list[Record]]:
    header, records = _open_container(file, what, where)
    return header, list(records)


def _open_container(file: bytes, what: str, where: str) -> tuple[dict[str, bytes], Iterator[Record]]:
    stream = io.BytesIO(file)
    with _decoding(where):
        if stream.read(4) != _AVRO_MAGIC:
            raise corrupt(where, "not an Avro file")
        header: dict[str, bytes] = {}
        while count := _read_long(stream):
            if count < 0:
                _read_long(stream)
            for _ in range(abs(count)):
                key = _read_bytes(stream).decode()
                header[key] = _read_bytes(stream)
        sync = stream.read(16)
        text = header.pop("avro.schema")
        codec = header.pop("avro.codec", b"null").decode()
        schema = _parsed.get((what, text))
        if schema is None:
            schema = _believed(what, text)
            _remember(what, text, schema)
    return header, _records(stream, len(file), schema, codec, sync, where)


def _records(stream: io.BytesIO, end: int, schema: Any, codec: str, sync: bytes, where: str) -> Iterator[Record]:
    left = _MAX_BODY
    with _decoding(where):
        while stream.tell() < end:
            count = _read_long(stream)
            body = _read_bytes(stream)
            if stream.read(16) != sync:
                raise corrupt(where, "an Avro block is torn")
            body = _inflated(body, codec, left, where)
            left -= len(body)
            block = io.BytesIO(body)
            for _ in range(count):
                record = fastavro.schemaless_reader(block, schema, None)
                if not isinstance(record, dict):
                    raise corrupt(where, "its Avro records are no records")
                yield record
            if block.tell() != len(body):
                raise corrupt(where, "an Avro block is longer than its records")


def _inflated(body: bytes, codec: str, limit: int, where: str) -> bytes:
    """The block's content, of ``limit`` bytes at most (Avro spec, Required Codecs and Optional Codecs)."""
    match codec:
        case "null":
            data, whole = body, len(body) <= limit
        case "deflate":
            inflate = zlib.decompressobj(wbits=-15)
            data = inflate.decompress(body, max(limit, 1))
            whole = inflate.eof
        case "zstandard":
            with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as stream:
                data = stream.read(limit + 1)
            whole = len(data) <= limit
        case "snappy":
            # Snappy begins with its length, and Avro puts a checksum of the content behind it.
            size = _read_varint(io.BytesIO(body))
            if whole := size <= limit:
                data = pa.decompress(body[:-4], size, "snappy", asbytes=True)
                if zlib.crc32(data).to_bytes(4, "big") != body[-4:]:
                    raise corrupt(where, "the checksum of an Avro block does not fit")
        case _:
            raise corrupt(where, f"its Avro codec is {codec}")
    if not whole:
        raise corrupt(where, "an Avro block is torn, or the file inflates to more than 1 GiB")
    return data


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, LookupError, ValueError, TypeError, AttributeError, RecursionError, OSError, zlib.error, *_FROM_FASTAVRO) as error:
        raise corrupt(where, f"it does not decode ({type(error).__name__}: {error})") from error


_FROM_FASTAVRO = (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType)


def _long(value: int) -> bytes:
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _read_long(stream: io.BytesIO) -> int:
    result = _read_varint(stream)
    return (result >> 1) ^ -(result & 1)


def _read_varint(stream: io.BytesIO) -> int:
    shift = result = 0
    while True:
        (byte,) = stream.read(1) or (None,)
        if byte is None:
            raise EOFError("an Avro number is torn")
        result |= (byte & 0x7F) << shift
        if result >> 64:
            raise ValueError("an Avro number has more than 64 bits")
        if byte < 0x80:
            return result
        shift += 7


def _read_bytes(stream: io.BytesIO) -> bytes:
    length = _read_long(stream)
    data = stream.read(length) if length >= 0 else b""
    if len(data) != length:
        raise EOFError("an Avro file is torn")
    return data
