"""The last look before a commit: the metadata exactly as written, decoded again and held against every rule of the format.

Promises that a snapshot which breaks a rule is never sent to a catalog, for the catalog looks at no file and most engines read
broken tables without a word. Shares no step with the writer but the codecs; costs what the change costs, not what the table
holds. Fails with Corrupt ``COMMIT_INVALID``, which names the rule; nothing was committed then. No I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap64

from icelake.errors import Corrupt
from icelake.ports import Json
from icelake.tables import deletion_vectors, position_deletes, transforms
from icelake.tables.layout import BoundField, BoundLayout, Partition, bound_value, comparable, raw_values, source_array
from icelake.tables.manifests import (
    ADDED,
    DATA,
    DELETED,
    DELETES,
    EXISTING,
    POSITION_DELETES,
    Entry,
    Manifest,
    Record,
    codec_of,
    decode_manifest,
    decode_manifest_list,
)
from icelake.tables.schema import Fields, field_id


class BaseFile(Protocol):
    """A live data file before the commit."""

    @property
    def record_count(self) -> int: ...
    @property
    def deletes(self) -> BitMap64 | None: ...
    @property
    def dv_path(self) -> str | None: ...
    @property
    def live_count(self) -> int: ...
    @property
    def partition(self) -> Partition: ...


@dataclass(frozen=True, slots=True)
class Proposal:
    """A commit: the state it starts from and the bytes that would be written."""

    metadata: Json
    """Table metadata before it."""
    manifests: Sequence[Manifest]
    """Manifests of the current snapshot before it."""
    files: Mapping[str, BaseFile]
    """Live data files before it, by path."""
    fields: Fields
    layout: BoundLayout
    snapshot: Json
    """The new snapshot in its JSON form."""
    blobs: Mapping[str, bytes]
    """Location -> bytes of the new manifest list, manifests and files of deletes."""
    footers: Mapping[str, pq.FileMetaData]
    """Path -> footer of every new data file."""
    sizes: Mapping[str, int]
    """Path -> size in bytes of every new data file."""


def validate(proposal: Proposal) -> None:
    """Raises Corrupt if the commit breaks a rule of the spec or of ours."""
    try:
        _Check(proposal).run()
    except Corrupt as error:
        raise _broken(f"{error.what}: {error.why}") if error.code != "COMMIT_INVALID" else error from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(f"the metadata does not have the form of the spec ({type(error).__name__}: {error})") from error


def _broken(rule: str) -> Corrupt:
    return Corrupt(
        "COMMIT_INVALID",
        "a commit was not sent because it would have broken the table",
        rule,
        "nothing was committed; this is a defect of IceLake: please report it with this message",
    )


def _require(holds: bool, rule: str, what: object = "") -> None:
    if not holds:
        raise _broken(f"{rule} ({what})" if what != "" else rule)


class _Check:
    def __init__(self, proposal: Proposal) -> None:
        self.p = proposal
        self.snapshot_id: int = proposal.snapshot["snapshot-id"]
        self.sequence: int = proposal.snapshot["sequence-number"]
        self.version: int = proposal.metadata["format-version"]
        self.spec_id: int = proposal.metadata["default-spec-id"]
        self.sort_order_id: int = proposal.metadata["default-sort-order-id"]
        self.codec = codec_of(proposal.layout)
        # Entries that must come back in a new manifest, because the manifest they were in is gone.
        self.owed: dict[tuple[str, int | None], tuple[Entry, Record]] = {}
        self.added: dict[str, Record] = {}
        self.removed: set[str] = set()
        self.new_vectors: dict[str, Record] = {}
        self.old_vectors: set[str] = set()
        self.next_row_id: int = proposal.metadata["next-row-id"] if self.version >= 3 else 0

    def run(self) -> None:
        self._snapshot()
        records = self._manifest_list()
        for record in records:
            self._manifest(record)
        _require(not self.owed, "every live file stays in the manifests or is DELETED in them", next(iter(self.owed), ""))
        if self.version >= 3:
            rows = self.next_row_id - self.p.snapshot["first-row-id"]
            _require(self.p.snapshot["added-rows"] == rows, "added-rows is exactly the row ids given out", rows)
        self._vectors()
        for path, record in self.added.items():
            self._data_file(path, record)
        self._operation()

    def _snapshot(self) -> None:
        metadata, snapshot = self.p.metadata, self.p.snapshot
        _require(self.sequence == metadata["last-sequence-number"] + 1, "sequence-number is the last one + 1", self.sequence)
        _require(self.version in (2, 3), "the format version is 2 or 3", self.version)
        if self.version >= 3:
            _require(snapshot["first-row-id"] == metadata["next-row-id"], "first-row-id is the table's next-row-id")
        else:
            _require(snapshot.keys().isdisjoint({"first-row-id", "added-rows"}), "version 2 has no row lineage")
        _require(snapshot["timestamp-ms"] >= metadata["last-updated-ms"], "timestamp-ms never goes back")
        _require(snapshot["schema-id"] == metadata["current-schema-id"], "schema-id is the current one")
        main = metadata.get("refs", {}).get("main")
        parent = None if main is None else main["snapshot-id"]
        _require(snapshot.get("parent-snapshot-id") == parent, "the parent is what main points at", parent)
        known = {other["snapshot-id"] for other in metadata.get("snapshots", ())}
        _require(0 < self.snapshot_id < 1 << 63 and self.snapshot_id not in known, "the snapshot id is positive and new")
        summary = snapshot["summary"]
        _require(all(isinstance(value, str) for value in summary.values()), "a summary holds strings only")
        _require(summary["operation"] in ("append", "overwrite", "delete", "replace"), "the summary names an operation")

    def _manifest_list(self) -> list[Record]:
        location = self.p.snapshot["manifest-list"]
        header, records = decode_manifest_list(self.p.blobs[location], location)
        expected = {
            "snapshot-id": self.snapshot_id,
            "parent-snapshot-id": self.p.snapshot.get("parent-snapshot-id"),
            "sequence-number": self.sequence,
            "format-version": self.version,
        }
        if self.version >= 3:
            expected["first-row-id"] = self.p.snapshot["first-row-id"]
        for key, value in expected.items():
            text = "null" if value is None else str(value)
            _require(header[key].decode() == text, f"the manifest list's header says {key}={text}", header[key])
        before = {manifest.path: manifest for manifest in self.p.manifests}
        new: list[Record] = []
        seen: set[str] = set()
        for record in records:
            path = record["manifest_path"]
            _require(path not in seen, "a manifest is listed once", path)
            seen.add(path)
            kept = before.get(path)
            if kept is None:
                new.append(record)
                continue
            # Compared as values: one that is kept was checked when it was written.
            _require(record == kept.record, "a kept manifest is listed as it was", path)
            self._row_ids(record, record["content"], path)
        written = {path for path in self.p.blobs if path.endswith(".avro")} - {location}
        _require(written == {record["manifest_path"] for record in new}, "every new manifest is written, and listed")
        for manifest in self.p.manifests:
            if manifest.path in seen:
                continue
            for entry in manifest.entries:
                record = self.codec.decode_data_file(entry.data_file)
                self.owed[_identity(record)] = (entry, record)
        return new

    def _manifest(self, listed: Record) -> None:
        path = listed["manifest_path"]
        data = self.p.blobs[path]
        header, entries = decode_manifest(data, path)
        content = listed["content"]
        _require(content in (DATA, DELETES), "a manifest holds data or deletes", path)
        _require(listed["manifest_length"] == len(data), "manifest_length is the size of the manifest", path)
        _require(header["content"] == (b"deletes" if content == DELETES else b"data"), "the header names the content", path)
        _require(int(header["format-version"]) == self.version, "the header says the table's format-version", path)
        _require(listed["partition_spec_id"] == self.spec_id == int(header["partition-spec-id"]), "the partition spec fits", path)
        spec = next(spec for spec in self.p.metadata["partition-specs"] if spec["spec-id"] == self.spec_id)
        _require(orjson.loads(header["partition-spec"]) == spec["fields"], "the header holds the partition spec", path)
        _require(int(header["schema-id"]) == self.p.metadata["current-schema-id"], "the header names the current schema", path)
        _require(listed["added_snapshot_id"] == self.snapshot_id, "a new manifest is added by this snapshot", path)
        _require(listed["sequence_number"] == self.sequence, "a new manifest has the snapshot's sequence number", path)
        files = dict.fromkeys((EXISTING, ADDED, DELETED), 0)
        rows = dict.fromkeys((EXISTING, ADDED, DELETED), 0)
        lowest = None
        for entry in entries:
            status, record = entry["status"], entry["data_file"]
            files[status] += 1
            rows[status] += record["record_count"]
            _require((record["content"] == DATA) == (content == DATA), "an entry has its manifest's content", record["file_path"])
            if status == ADDED:
                self._added(entry, record)
                live = self.sequence
            else:
                self._carried(entry, record)
                live = entry["sequence_number"]
            if status != DELETED:
                lowest = live if lowest is None else min(lowest, live)
        _require(bool(entries), "a manifest is not empty", path)
        self._summaries(listed["partitions"], [self._partition(entry["data_file"]) for entry in entries], path)
        counts = ("existing", EXISTING), ("added", ADDED), ("deleted", DELETED)
        for name, status in counts:
            _require(listed[f"{name}_files_count"] == files[status], f"{name}_files_count is right", path)
            _require(listed[f"{name}_rows_count"] == rows[status], f"{name}_rows_count is right", path)
        expected = self.sequence if lowest is None else lowest
        _require(listed["min_sequence_number"] == expected, "min_sequence_number is the smallest of the live entries", path)
        if self.version < 3:
            _require("first_row_id" not in listed, "version 2 has no row lineage", path)
            return
        if content == DELETES:
            _require(listed["first_row_id"] is None, "a delete manifest has no first_row_id", path)
            return
        _require(listed["first_row_id"] == self.next_row_id, "row id ranges follow one another without overlap", path)
        self.next_row_id += rows[ADDED] + rows[EXISTING]

    def _row_ids(self, record: Record, content: int, path: str) -> None:
        if self.version >= 3:
            _require(content != DATA or record["first_row_id"] is not None, "what held data before has a first_row_id", path)
        else:
            _require("first_row_id" not in record, "version 2 has no row lineage", path)

    def _partition(self, record: Record) -> Partition:
        names = [one.name for one in self.p.layout.fields]
        _require(list(record["partition"]) == names, "a partition has a value for each field of the spec", record["file_path"])
        return tuple(record["partition"].values())

    def _summaries(self, listed: Sequence[Record], partitions: Sequence[Partition], path: str) -> None:
        """Engines leave out a manifest by these: too narrow, and rows are hidden."""
        fields = self.p.layout.fields
        _require(len(listed) == len(fields), "a manifest list sums up each partition field", path)
        for one, summary, values in zip(fields, listed, zip(*partitions, strict=True), strict=True):
            there = [comparable(value, one.kind) for value in values if value is not None]
            where = f"{path}, {one.name}"
            _require(summary["contains_null"] == (len(there) < len(values)), "contains_null is right", where)
            _require(summary["contains_nan"] is False, "no partition is NaN", where)
            lower, upper = summary["lower_bound"], summary["upper_bound"]
            _require((lower is None) == (upper is None) == (not there), "a summary has bounds unless all is null", where)
            if there:
                _require(_value(lower, one.kind) == min(there), "a summary's lower bound is the smallest partition", where)
                _require(_value(upper, one.kind) == max(there), "a summary's upper bound is the largest partition", where)

    def _added(self, entry: Record, record: Record) -> None:
        path = record["file_path"]
        _require(entry["snapshot_id"] == self.snapshot_id, "a new entry has the snapshot's id", path)
        _require(entry["sequence_number"] is None and entry["file_sequence_number"] is None, "a new entry inherits its numbers", path)
        _require(record["record_count"] > 0, "a file has rows", path)
        if record["content"] == DATA:
            _require(record.get("first_row_id") is None, "a new data file inherits its row ids", path)
            _require(path not in self.added and path not in self.p.files, "a data file is in a snapshot once", path)
            _require(record["file_format"] == "PARQUET", "a data file is Parquet", path)
            self.added[path] = record
            return
        expected = "PUFFIN" if self.version >= 3 else "PARQUET"
        _require(record["content"] == POSITION_DELETES and record["file_format"] == expected, "deletes are deletion vectors", path)
        _require(record["sort_order_id"] is None, "deletes have no sort order", path)
        about = record["referenced_data_file"]
        _require(about is not None, "a deletion vector names its data file", path)
        _require(about not in self.new_vectors, "a data file has one deletion vector", about)
        self.new_vectors[about] = record

    def _carried(self, entry: Record, record: Record) -> None:
        path = record["file_path"]
        owed = self.owed.pop(_identity(record), None)
        if owed is None:
            raise _broken(f"an entry that is not new was live before, in a manifest that is replaced, and comes once ({path})")
        known, before = owed
        numbers = entry["sequence_number"], entry["file_sequence_number"]
        _require(numbers == (known.sequence_number, known.file_sequence_number), "an entry keeps its sequence numbers", path)
        _require(record == before, "an entry keeps its file as it was described, with its first_row_id", path)
        self._row_ids(record, record["content"], path)
        if entry["status"] == EXISTING:
            _require(entry["snapshot_id"] == known.snapshot_id, "an existing entry keeps its snapshot id", path)
            return
        _require(entry["status"] == DELETED and entry["snapshot_id"] == self.snapshot_id, "a deleted entry has the snapshot's id", path)
        if record["content"] == DATA:
            self.removed.add(path)
        else:
            self.old_vectors.add(record["referenced_data_file"])

    def _vectors(self) -> None:
        for path in self.old_vectors:
            _require(path in self.new_vectors or path in self.removed, "a vector goes only with its file or for a new one", path)
        for path in self.removed:
            file = self.p.files[path]
            _require(file.dv_path is None or path in self.old_vectors, "no vector is left of a removed file", path)
        suffix = ".puffin" if self.version >= 3 else position_deletes.SUFFIX
        written = {path for path in self.p.blobs if path.endswith(suffix)}
        _require(written == {record["file_path"] for record in self.new_vectors.values()}, "every Puffin holds one vector, of one entry")
        for about, record in self.new_vectors.items():
            where = record["file_path"]
            base = self.p.files.get(about)
            _require(about not in self.removed and (base is not None or about in self.added), "a vector is about a live file", about)
            _require(base is None or base.dv_path is None or about in self.old_vectors, "a new vector replaces the old one", about)
            partition = base.partition if base is not None else self._partition(self.added[about])
            _require(self._partition(record) == partition, "deletes are in the partition of their data file", where)
            _require(record["file_size_in_bytes"] == len(self.p.blobs[where]), "file_size_in_bytes is the Puffin's size", where)
            bitmap = self._vector(about, record) if self.version >= 3 else self._positions(about, record)
            rows = base.record_count if base is not None else self.added[about]["record_count"]
            _require(bitmap.max() < rows, "a vector's positions are in its file", where)
            _require(len(bitmap) < rows, "a file whose rows are all deleted is removed", about)
            if base is not None and base.deletes is not None:
                _require(base.deletes.issubset(bitmap), "no deleted row comes back", about)

    def _vector(self, about: str, record: Record) -> BitMap64:
        where = record["file_path"]
        puffin = self.p.blobs[where]
        start, length = record["content_offset"], record["content_size_in_bytes"]
        bitmap = deletion_vectors.decode(puffin[start : start + length], record["record_count"], where)
        (blob,) = deletion_vectors.puffin_blobs(puffin, where)
        _require((blob["offset"], blob["length"]) == (start, length), "entry and Puffin footer agree where the vector is", where)
        expected = {"referenced-data-file": about, "cardinality": str(record["record_count"])}
        _require(blob["properties"] == expected, "entry and Puffin footer agree what the vector is about", where)
        return bitmap

    def _positions(self, about: str, record: Record) -> BitMap64:
        where = record["file_path"]
        bitmap = position_deletes.decode(self.p.blobs[where], about, record["record_count"], where)
        for which in ("lower_bounds", "upper_bounds"):
            found = {pair["key"]: pair["value"] for pair in record[which] or ()}
            _require(found.get(position_deletes.PATH_FIELD) == about.encode(), "bounds of the path say one data file", where)
            position = bitmap.min() if which == "lower_bounds" else bitmap.max()
            _require(_value(found[position_deletes.POSITION_FIELD], "long") == position, "bounds of the positions are right", where)
        return bitmap

    def _data_file(self, path: str, record: Record) -> None:
        footer = self.p.footers.get(path)
        if footer is None:
            raise _broken(f"a new data file was written by this commit ({path})")
        _require(record["record_count"] == footer.num_rows, "record_count is the Parquet footer's", path)
        _require(record["file_size_in_bytes"] == self.p.sizes[path], "file_size_in_bytes is the file's size", path)
        _require((record["sort_order_id"] or 0) == self.sort_order_id, "a data file has the table's sort order", path)
        for one, value in zip(self.p.layout.fields, self._partition(record), strict=True):
            _in_partition(one, value, footer, self.p.fields, path)
        fields = self.p.fields
        shape = [_shape(field) for field in footer.schema.to_arrow_schema()]
        _require(
            any(shape == [_shape(field) for field in schema] for schema in (fields.plain, fields.lineage)),
            "columns, types and field ids of a data file are the schema's",
            path,
        )
        metrics = {
            name: {pair["key"]: pair["value"] for pair in record[name] or ()}
            for name in ("value_counts", "null_value_counts", "nan_value_counts", "lower_bounds", "upper_bounds", "column_sizes")
        }
        measured = {leaf.field_id for leaf in fields.leaves if not leaf.repeated}
        for name, found in metrics.items():
            _require(name == "column_sizes" or found.keys() <= measured, f"{name} are of columns and struct fields", path)
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        for place, leaf in enumerate(fields.leaves):
            ident, where = leaf.field_id, f"{path}, {leaf.path}"
            size = sum(group.column(place).total_compressed_size for group in groups)
            _require(metrics["column_sizes"].get(ident) == size, "column_sizes are the footer's", where)
            if leaf.type == "uuid":
                _require(footer.schema.column(place).logical_type.type == "UUID", "a uuid is written as one", where)
            if leaf.repeated:
                continue
            _require(metrics["value_counts"].get(ident) == footer.num_rows, "value_counts are the footer's", where)
            nan = bool(metrics["nan_value_counts"].get(ident))
            bounded = metrics["lower_bounds"].keys() | metrics["upper_bounds"].keys()
            _require(not nan or ident not in bounded, "a column with NaN has no bounds", where)
            chunks: list[Any] = [group.column(place).statistics for group in groups]
            if any(chunk is None for chunk in chunks):
                _require(
                    leaf.type in ("string", "binary") or nan, "every column has statistics, but those with very long values or NaN", where
                )
                _require(0 <= metrics["null_value_counts"][ident] <= footer.num_rows, "null_value_counts are counts of rows", where)
                continue
            nulls = sum(chunk.null_count for chunk in chunks)
            _require(metrics["null_value_counts"].get(ident) == nulls, "null_value_counts are the footer's", where)
            lower, upper = metrics["lower_bounds"].get(ident), metrics["upper_bounds"].get(ident)
            ranges = [chunk for chunk in chunks if chunk.has_min_max]
            if lower is not None and ranges:
                smallest = min(_physical(chunk.min_raw, leaf.type) for chunk in ranges)
                _require(_value(lower, leaf.type) <= smallest, "a lower bound is not above the smallest value", where)
            if upper is not None and ranges:
                largest = max(_physical(chunk.max_raw, leaf.type) for chunk in ranges)
                _require(_value(upper, leaf.type) >= largest, "an upper bound is not below the largest value", where)

    def _operation(self) -> None:
        operation = self.p.snapshot["summary"]["operation"]
        deletes = bool(self.removed or self.new_vectors)
        if operation == "replace":
            before = sum(self.p.files[path].live_count for path in self.removed)
            after = sum(record["record_count"] for record in self.added.values())
            _require(before == after and not self.new_vectors, "a rewrite changes no row", f"{before} rows before, {after} after")
        elif operation == "append":
            _require(not deletes, "an append deletes nothing")
        elif operation == "delete":
            _require(deletes and not self.added, "a delete adds nothing")


def _in_partition(one: BoundField, value: Any, footer: pq.FileMetaData, fields: Fields, path: str) -> None:
    """Whether the smallest and the largest value of the source column are in the partition, and nulls in their own only."""
    ident = fields.ids[one.declared.column]
    place, kind = next((at, leaf.type) for at, leaf in enumerate(fields.leaves) if leaf.field_id == ident)
    chunks: list[Any] = [footer.row_group(group).column(place).statistics for group in range(footer.num_row_groups)]
    if any(chunk is None for chunk in chunks):
        return  # a column with very long values has none
    nulls = sum(chunk.null_count for chunk in chunks)
    where = f"{path}, {one.name}"
    _require(nulls == (footer.num_rows if value is None else 0), "nulls are in a partition of their own", where)
    # Very long values have no statistics.
    seen = [_physical(raw, kind) for chunk in chunks if chunk.has_min_max for raw in (chunk.min_raw, chunk.max_raw)]
    if value is None or not seen:
        return
    found = transforms.apply(one.declared.transform, one.declared.width, source_array([min(seen), max(seen)], kind))
    partitions = [comparable(stored, one.kind) for stored in raw_values(found, one.kind)]
    if one.declared.transform != "bucket" or min(seen) == max(seen):
        _require(partitions == [comparable(value, one.kind)] * 2, "a file's rows are in its partition", where)
    else:
        assert one.declared.width is not None
        _require(0 <= value < one.declared.width, "a bucket is one of those there are", where)


def _identity(record: Record) -> tuple[str, int | None]:
    # Others pack several vectors into one Puffin file.
    return record["file_path"], record.get("content_offset")


def _shape(field: "pa.Field[Any]") -> tuple[Any, ...]:
    """A field with all below it. Footers know uuid as 16 bytes only, and call a map's entries otherwise than we do."""
    kind: Any = field.type
    below: Any
    if pa.types.is_list(kind):
        below = "list", _shape(kind.value_field)
    elif pa.types.is_map(kind):
        below = "map", _shape(kind.key_field), _shape(kind.item_field)
    elif pa.types.is_struct(kind):
        below = "struct", *(_shape(kind.field(place)) for place in range(kind.num_fields))
    else:
        below = pa.binary(16) if kind == pa.uuid() else kind
    return field.name, field.nullable, field_id(field), below


def _value(bound: bytes, kind: str) -> Any:
    """A serialized bound (spec, Appendix D) as something that compares like the type. Raises Corrupt for NaN."""
    value = bound_value(bound, kind)
    _require(value == value, "NaN is no bound")
    return value


def _physical(value: Any, kind: str) -> Any:
    """A Parquet statistic in the same terms."""
    if kind.startswith("decimal") and isinstance(value, bytes):
        return int.from_bytes(value, "big", signed=True)
    return value.encode() if isinstance(value, str) else value
