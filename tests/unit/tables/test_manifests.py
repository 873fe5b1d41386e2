import contextlib
import io
import random
import zlib
from typing import Any

import fastavro
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelake.errors import Corrupt, ForeignChange
from icelake.ports import Json
from icelake.tables import manifests
from icelake.tables.manifests import (
    ADDED,
    DELETED,
    EXISTING,
    Codec,
    Record,
    _long,
    decode_manifest,
    decode_manifest_list,
    entry_bytes,
    inherit,
    manifest_header,
    read_manifest,
)
from tests.unit.tables.mirror import SMALL, Mirror

RECORD: Record = {
    "content": 0,
    "file_path": "/lake/data/a.parquet",
    "file_format": "PARQUET",
    "partition": {},
    "record_count": 10,
    "file_size_in_bytes": 1234,
    "value_counts": [{"key": 1, "value": 10}],
    "lower_bounds": [{"key": 1, "value": b"\x00"}],
    "split_offsets": [4],
    "first_row_id": 7,
}
CODEC = Codec(3, ())
HEADER = {"schema": b"{}", "content": b"data"}


def test_a_data_file_comes_back_with_null_for_what_it_has_not() -> None:
    found = CODEC.decode_data_file(CODEC.encode_data_file(RECORD))
    assert {name: value for name, value in found.items() if value is not None} == RECORD
    assert found["referenced_data_file"] is None


@pytest.mark.parametrize("count", [0, 1, 500])
def test_fastavro_reads_our_container(count: int) -> None:
    """Both codecs: small manifests are written plain, large ones deflated."""
    body = CODEC.encode_data_file(RECORD)
    entries = [entry_bytes(EXISTING, 5, (number, number), body) for number in range(count)]
    file = CODEC.encode_manifest(HEADER, entries)
    reader = fastavro.reader(io.BytesIO(file))
    theirs = list(reader)
    header, ours = decode_manifest(file, "x")
    assert theirs == ours
    assert len(ours) == count
    assert [entry["sequence_number"] for entry in ours] == list(range(count))
    assert header["content"] == b"data"
    assert reader.metadata["content"] == "data"
    assert reader.metadata["avro.codec"] == ("deflate" if count > 100 else "null")


def test_every_field_of_the_written_schema_has_the_spec_s_id() -> None:
    reader = fastavro.reader(io.BytesIO(CODEC.encode_manifest(HEADER, [])))
    schema: Any = orjson.loads(reader.metadata["avro.schema"])
    ids: dict[str, int] = {}

    def walk(node: Json) -> None:
        for field in node["fields"]:
            ids[field["name"]] = field["field-id"]
            kind = field["type"]
            if isinstance(kind, list):
                assert kind[0] == "null"
                assert field["default"] is None
                kind = kind[1]
            if isinstance(kind, dict) and kind["type"] == "record":
                walk(kind)

    walk(schema)
    assert ids == {
        "status": 0, "snapshot_id": 1, "sequence_number": 3, "file_sequence_number": 4, "data_file": 2, "content": 134, "file_path": 100,
        "file_format": 101, "partition": 102, "record_count": 103, "file_size_in_bytes": 104, "column_sizes": 108, "value_counts": 109,
        "null_value_counts": 110, "nan_value_counts": 137, "lower_bounds": 125, "upper_bounds": 128, "key_metadata": 131,
        "split_offsets": 132, "equality_ids": 135, "sort_order_id": 140, "first_row_id": 142, "referenced_data_file": 143,
        "content_offset": 144, "content_size_in_bytes": 145,
    }  # fmt: skip


def test_headers_are_all_there() -> None:
    mirror = Mirror(SMALL)
    mirror.commit([(1, "a")])
    mirror.commit([(1, "b"), (2, "b")])
    head = mirror.head()
    header, records = decode_manifest_list(mirror.storage.files[head["manifest-list"]], "x")
    assert header == {
        "snapshot-id": str(head["snapshot-id"]).encode(),
        "parent-snapshot-id": str(head["parent-snapshot-id"]).encode(),
        "sequence-number": b"2",
        "first-row-id": b"1",
        "format-version": b"3",
    }
    for record in records:
        found, _ = decode_manifest(mirror.storage.files[record["manifest_path"]], "x")
        assert found.keys() == {"schema", "schema-id", "partition-spec", "partition-spec-id", "format-version", "content"}
        assert found == manifest_header(mirror.table.metadata, record["content"])


def test_a_manifest_written_by_another_library_is_read() -> None:
    schema = orjson.loads(fastavro.reader(io.BytesIO(CODEC.encode_manifest(HEADER, []))).metadata["avro.schema"])
    # Other writers leave out optional fields, and order the rest as they like.
    data_file = next(field for field in schema["fields"] if field["name"] == "data_file")["type"]
    data_file["fields"] = [field for field in reversed(data_file["fields"]) if field["name"] not in ("key_metadata", "split_offsets")]
    out = io.BytesIO()
    entry = {"status": 1, "snapshot_id": None, "sequence_number": None, "file_sequence_number": None, "data_file": RECORD}
    fastavro.writer(out, schema, [entry] * 3, codec="deflate")
    _, entries = decode_manifest(out.getvalue(), "x")
    assert len(entries) == 3
    assert entries[0]["data_file"]["record_count"] == 10
    assert CODEC.decode_data_file(CODEC.encode_data_file(entries[0]["data_file"]))["lower_bounds"] == RECORD["lower_bounds"]


def wrapped(file: bytes, codec: str, compress: Any) -> bytes:
    """A manifest whose one block is not compressed, with another codec."""
    reader = fastavro.reader(io.BytesIO(file))
    pairs = {"avro.schema": reader.metadata["avro.schema"].encode(), "avro.codec": codec.encode()}
    head = b"".join(_long(len(part)) + part for key, value in pairs.items() for part in (key.encode(), value))
    body, sync = b"".join(fastavro_blocks(file)), bytes(range(16))
    data = compress(body)
    return b"".join((b"Obj\x01", _long(2), head, b"\0", sync, _long(3), _long(len(data)), data, sync))


def fastavro_blocks(file: bytes) -> list[bytes]:
    blocks: Any = fastavro.block_reader(io.BytesIO(file))
    return [block.bytes_.read() for block in blocks]


def zstd(body: bytes) -> bytes:
    return pa.compress(body, "zstd", asbytes=True)


def snappy(body: bytes) -> bytes:
    return pa.compress(body, "snappy", asbytes=True) + zlib.crc32(body).to_bytes(4, "big")


@pytest.mark.parametrize(("codec", "compress"), [("null", bytes), ("zstandard", zstd), ("snappy", snappy)])
def test_manifests_compressed_otherwise(codec: str, compress: Any) -> None:
    entry = entry_bytes(EXISTING, 5, (1, 1), CODEC.encode_data_file(RECORD))
    file = wrapped(CODEC.encode_manifest(HEADER, [entry] * 3), codec, compress)
    _, entries = read_manifest(file, "x")
    assert [one["data_file"]["record_count"] for one in entries] == [10] * 3
    damaged = wrapped(CODEC.encode_manifest(HEADER, [entry] * 3), codec, lambda body: compress(body)[:-5])
    with pytest.raises(Corrupt, match="MANIFEST_CORRUPT"):
        list(read_manifest(damaged, "x")[1])


def test_an_unknown_codec_and_a_bomb_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_bytes(EXISTING, 5, (1, 1), CODEC.encode_data_file(RECORD))
    file = CODEC.encode_manifest(HEADER, [entry] * 3)
    with pytest.raises(Corrupt, match="its Avro codec is bzip2"):
        list(read_manifest(wrapped(file, "bzip2", bytes), "x")[1])
    monkeypatch.setattr(manifests, "_MAX_BODY", 50)
    for codec, compress in (("null", bytes), ("zstandard", zstd), ("snappy", snappy)):
        with pytest.raises(Corrupt, match="1 GiB"):
            list(read_manifest(wrapped(file, codec, compress), "x")[1])


def test_fields_are_told_by_their_ids() -> None:
    """Older writers called some otherwise, and whoever renames a partition field does not write its manifests again."""
    schema = orjson.loads(fastavro.reader(io.BytesIO(CODEC.encode_manifest(HEADER, []))).metadata["avro.schema"])
    data_file = next(field for field in schema["fields"] if field["name"] == "data_file")["type"]
    names = {103: "rows", 100: "path"}
    for field in data_file["fields"]:
        field["name"] = names.get(field["field-id"], field["name"])
    out = io.BytesIO()
    record = {**RECORD, "rows": RECORD["record_count"], "path": RECORD["file_path"]}
    data_file["fields"][3]["type"]["fields"] = [{"name": "renamed", "type": ["null", "int"], "default": None, "field-id": 1000}]
    assert data_file["fields"][3]["field-id"] == 102
    record["partition"] = {"renamed": 4}
    entry = {"status": 1, "snapshot_id": None, "sequence_number": None, "file_sequence_number": None, "data_file": record}
    fastavro.writer(out, schema, [entry])
    (found,) = read_manifest(out.getvalue(), "x")[1]
    assert (found["data_file"]["record_count"], found["data_file"]["file_path"]) == (RECORD["record_count"], RECORD["file_path"])
    assert found["data_file"]["partition"] == {"1000": 4}
    with pytest.raises(Corrupt, match="file_path"):
        decode_manifest(out.getvalue(), "x")


@given(st.data())
def test_damaged_manifests_are_never_half_read(data: st.DataObject) -> None:
    body = CODEC.encode_data_file(RECORD)
    count = data.draw(st.sampled_from([1, 60]))
    good = CODEC.encode_manifest(HEADER, [entry_bytes(EXISTING, 5, (1, 1), body)] * count)
    # One that ends with its header is a file without entries: its length is not what the list says.
    bare = len(CODEC.encode_manifest(HEADER, []))
    with pytest.raises(Corrupt, match="MANIFEST_CORRUPT"):
        decode_manifest(good[: data.draw(st.integers(0, len(good) - 1).filter(lambda length: length != bare))], "x")
    damaged = bytearray(good)
    chance = random.Random(data.draw(st.integers()))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[chance.randrange(len(damaged))] ^= chance.randrange(1, 256)
    # The only error there may be; a flipped bit inside a value cannot be seen here.
    with contextlib.suppress(Corrupt):
        decode_manifest(bytes(damaged), "x")


def test_a_body_that_inflates_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = CODEC.encode_data_file(RECORD)
    file = CODEC.encode_manifest(HEADER, [entry_bytes(EXISTING, 5, (1, 1), body)] * 500)
    monkeypatch.setattr(manifests, "_MAX_BODY", 1000)
    with pytest.raises(Corrupt, match="inflates"):
        decode_manifest(file, "x")


LISTED: Record = {"first_row_id": 100, "added_snapshot_id": 9, "sequence_number": 4}


def entry(status: int, **file: Any) -> Record:
    numbers = None if status == ADDED else 2
    return {
        "status": status,
        "snapshot_id": None if status == ADDED else 3,
        "sequence_number": numbers,
        "file_sequence_number": numbers,
        "data_file": {**RECORD, "first_row_id": None, **file},
    }


def test_new_entries_inherit_everything_from_their_manifest() -> None:
    found = list(inherit(LISTED, [entry(EXISTING, first_row_id=5), entry(ADDED), entry(DELETED), entry(ADDED)], "x", 3))
    assert [e["data_file"]["first_row_id"] for e in found] == [5, 100, None, 110]
    assert [e["sequence_number"] for e in found] == [2, 4, 2, 4]
    assert [e["file_sequence_number"] for e in found] == [2, 4, 2, 4]
    assert [e["snapshot_id"] for e in found] == [3, 9, 3, 9]


def test_old_entries_without_sequence_number_are_corrupt() -> None:
    with pytest.raises(Corrupt, match="sequence_number"):
        list(inherit(LISTED, [{**entry(EXISTING, first_row_id=1), "sequence_number": None}], "x", 3))


def test_a_manifest_without_row_ids_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="first row id"):
        list(inherit({**LISTED, "first_row_id": None}, [entry(ADDED)], "x", 3))


@pytest.mark.parametrize("file", [{"content": 2}, {"content": 1, "file_format": "PARQUET"}])
def test_other_kinds_of_deletes_are_foreign(file: Record) -> None:
    with pytest.raises(ForeignChange, match="FOREIGN_DELETES"):
        list(inherit(LISTED, [entry(ADDED, **file)], "x", 3))


def test_a_manifest_list_may_be_empty() -> None:
    snapshot = {"snapshot-id": 1, "sequence-number": 1, "first-row-id": 0}
    assert decode_manifest_list(CODEC.encode_manifest_list(snapshot, []), "x")[1] == []


def container(schema: Any, body: bytes, count: int = 1) -> bytes:
    return with_schema(orjson.dumps(schema), body, count)


def with_schema(text: bytes, body: bytes, count: int = 1) -> bytes:
    out = io.BytesIO()
    for part in (b"Obj\x01", number(1), number(11), b"avro.schema", number(len(text)), text, b"\0", b"s" * 16):
        out.write(part)
    for part in (number(count), number(len(body)), body, b"s" * 16):
        out.write(part)
    return out.getvalue()


def number(value: int) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, {"type": "long"}, value)
    return out.getvalue()


def record(name: str, **fields: Any) -> Json:
    return {"type": "record", "name": name, "fields": [{"name": field, "type": kind} for field, kind in fields.items()]}


@pytest.mark.parametrize(
    ("schema", "body", "count"),
    [
        # fastavro calls itself once for each byte, or without end: the process crashes when its stack is used up.
        (record("a", x=["null", "a"]), b"\x02" * 2_000_000 + b"\0", 1),
        (record("a", x=record("b", y="a")), b"", 1),
        (record("n.a", x=record("m.b", y="n.a")), b"", 1),
        # Values without number in no bytes: memory is used up.
        (record("a", x={"type": "array", "items": "null"}), number(1 << 40) + b"\0", 1),
        (record("a", x={"type": "array", "items": record("b", y="null")}), number(1 << 40) + b"\0", 1),
        (record("a", x={"type": "map", "values": {"type": "array", "items": {"type": "fixed", "name": "f", "size": 0}}}), b"\0", 1),
        (record("a"), b"", 1 << 40),
        # Not what they say they are.
        (record("a", x="long"), b"\0", 1),
        (record("a", x="nowhere"), b"\0", 1),
        (["null", "long"], b"\0", 1),
        ("null", b"", 1 << 40),
        (7, b"", 1),
    ],
)
def test_a_schema_that_would_be_read_without_end_is_corrupt(schema: Any, body: bytes, count: int) -> None:
    for decode in (decode_manifest, decode_manifest_list):
        with pytest.raises(Corrupt, match="MANIFEST_CORRUPT"):
            decode(container(schema, body, count), "x")


def test_a_schema_nested_without_end_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        decode_manifest(with_schema(b'{"type":"array","items":' * 900 + b'"int"' + b"}" * 900, b""), "x")


def test_a_number_that_no_length_can_be_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="64 bits"):
        decode_manifest(b"Obj\x01\x02" + b"\x80" * 9 + b"\x04", "x")


def test_a_manifest_list_is_no_manifest() -> None:
    snapshot = {"snapshot-id": 1, "sequence-number": 1, "first-row-id": 0}
    file = CODEC.encode_manifest_list(snapshot, [])
    with pytest.raises(Corrupt, match="no status"):
        decode_manifest(file, "x")


def test_a_field_that_is_not_of_its_type_is_corrupt() -> None:
    written = CODEC.encode_manifest_list({"snapshot-id": 1, "sequence-number": 1, "first-row-id": 0}, [])
    for good, bad in ((b'"name":"manifest_path","type":"string"', b'"name":"manifest_path","type":"double"'),):
        assert good in written
        with pytest.raises(Corrupt, match="manifest_path has type double"):
            decode_manifest_list(written.replace(good, bad), "x")
