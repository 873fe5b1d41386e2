"""Every rule the validator knows, broken one at a time in a commit that is otherwise right."""

import dataclasses
import io
import struct
from collections.abc import Callable
from typing import Any

import fastavro
import numpy as np
import orjson
import pytest

from icelake.errors import Corrupt
from icelake.model.layout import Layout, PartitionField, SortField
from icelake.tables import deletion_vectors, position_deletes, table
from icelake.tables.manifests import ADDED, DELETED, EXISTING, Record, decode_manifest, decode_manifest_list
from icelake.tables.schema import fields_of
from icelake.tables.validate import Proposal, _value, validate
from tests.unit.tables.mirror import Mirror, relation

SHAPE = relation(("id", "long"), ("f", "double"), ("text", "string"), ("span", "struct<lower: int, tags: list<uuid>>"))
"""Field ids: the columns 1 to 4, ``span.lower`` 5, ``span.tags`` 6 and its elements 7."""


class Draft:
    """A proposal taken apart: lists of dicts to change, put together again by ``proposal``."""

    def __init__(self, proposal: Proposal) -> None:
        self.source = proposal
        self.snapshot: Record = {**proposal.snapshot, "summary": dict(proposal.snapshot["summary"])}
        self.blobs = dict(proposal.blobs)
        self.list_location = proposal.snapshot["manifest-list"]
        self.list_header, self.listed = decode_manifest_list(self.blobs[self.list_location], "list")
        self.manifests: dict[str, tuple[dict[str, bytes], list[Record]]] = {
            record["manifest_path"]: decode_manifest(self.blobs[record["manifest_path"]], "manifest")
            for record in self.listed
            if record["manifest_path"] in self.blobs
        }
        self.recount = True
        self.other: dict[str, Any] = {}

    def new(self, content: int) -> tuple[Record, list[Record]]:
        """(its entry in the list, its entries) of the first new manifest of that content."""
        for record in self.listed:
            if record["manifest_path"] in self.manifests and record["content"] == content:
                return record, self.manifests[record["manifest_path"]][1]
        raise AssertionError("no such manifest")

    def entry(self, content: int, status: int) -> Record:
        return next(entry for entry in self.new(content)[1] if entry["status"] == status)

    def proposal(self) -> Proposal:
        for path, (header, entries) in self.manifests.items():
            before = self.source.blobs[path]
            out = io.BytesIO()
            schema: Any = orjson.loads(fastavro.reader(io.BytesIO(before)).metadata["avro.schema"])
            metadata = {key: value.decode() for key, value in header.items()}
            fastavro.writer(out, schema, entries, metadata=metadata)
            self.blobs[path] = out.getvalue()
            for record in self.listed:
                if record["manifest_path"] == path and self.recount:
                    record["manifest_length"] = len(self.blobs[path])
        out = io.BytesIO()
        schema = orjson.loads(fastavro.reader(io.BytesIO(self.source.blobs[self.list_location])).metadata["avro.schema"])
        fastavro.writer(out, schema, self.listed, metadata={key: value.decode() for key, value in self.list_header.items()})
        self.blobs[self.list_location] = out.getvalue()
        return dataclasses.replace(self.source, snapshot=self.snapshot, blobs=self.blobs, **self.other)


@pytest.fixture
def proposal(monkeypatch: pytest.MonkeyPatch) -> Proposal:
    """A commit that adds, updates and deletes: new and replaced vectors, a file that leaves, merged manifests."""
    seen: list[Proposal] = []

    def remember(proposal: Proposal) -> None:
        seen.append(dataclasses.replace(proposal, files=dict(proposal.files), manifests=list(proposal.manifests)))
        validate(proposal)

    monkeypatch.setattr(table, "validate", remember)
    mirror = Mirror(SHAPE)
    for step in range(8):
        mirror.commit([(10 * step + n, float(n), "t" * (n + 12), {"lower": n, "tags": []}) for n in range(6)])
    mirror.commit([(0, 1.0, "x", None), (10, 1.0, "x", None), (20, 1.0, "x", None)])
    mirror.commit(
        [
            (1, 2.0, "y", {"lower": 7, "tags": [bytes(16), None]}),
            (30, float("nan"), "z" * 40, None),
            (31, 0.0, None, {"lower": None, "tags": None}),
            (99, -0.0, "new", {"lower": 3, "tags": []}),
        ],
        delete=[11, *range(50, 56), *(21, 22, 23, 24, 25)],
    )
    return seen[-1]


def test_an_untouched_draft_passes(proposal: Proposal) -> None:
    validate(Draft(proposal).proposal())
    draft = Draft(proposal)
    statuses = {(content, entry["status"]) for content in (0, 1) for entry in draft.new(content)[1]}
    assert statuses == {(content, status) for content in (0, 1) for status in (EXISTING, ADDED, DELETED)} - {(1, EXISTING)}


Break = Callable[[Draft], None]
BREAKS: dict[str, Break] = {}


def breaks(rule: str) -> Callable[[Break], Break]:
    def register(function: Break) -> Break:
        BREAKS[f"{len(BREAKS)} {rule}"] = function
        return function

    return register


def change(place: Callable[[Draft], Record], **values: Any) -> Break:
    def apply(draft: Draft) -> None:
        place(draft).update(values)

    return apply


def add(place: Callable[[Draft], Record], key: str, amount: int) -> Break:
    def apply(draft: Draft) -> None:
        place(draft)[key] += amount

    return apply


def snapshot(draft: Draft) -> Record:
    return draft.snapshot


def data_list(draft: Draft) -> Record:
    return draft.new(0)[0]


def delete_list(draft: Draft) -> Record:
    return draft.new(1)[0]


def entry(content: int, status: int) -> Callable[[Draft], Record]:
    return lambda draft: draft.entry(content, status)


def file(content: int, status: int) -> Callable[[Draft], Record]:
    def find(draft: Draft) -> Record:
        found: Record = draft.entry(content, status)["data_file"]
        return found

    return find


def old_list(draft: Draft) -> Record:
    return next(record for record in draft.listed if record["manifest_path"] not in draft.manifests)


for rule, how in [
    ("sequence-number is the last one", add(snapshot, "sequence-number", -1)),
    ("sequence-number is the last one", add(snapshot, "sequence-number", 7)),
    ("first-row-id is", add(snapshot, "first-row-id", -1)),
    ("timestamp-ms never", change(snapshot, **{"timestamp-ms": 5})),
    ("schema-id is the current", change(snapshot, **{"schema-id": 3})),
    ("the parent is what", change(snapshot, **{"parent-snapshot-id": 3})),
    ("the snapshot id is positive", change(snapshot, **{"snapshot-id": -5})),
    ("added-rows is exactly", add(snapshot, "added-rows", -1)),
    ("added-rows is exactly", add(snapshot, "added-rows", 1)),
    ("a summary holds strings", lambda draft: draft.snapshot["summary"].update(x=1)),
    ("the summary names an operation", lambda draft: draft.snapshot["summary"].update(operation="upsert")),
    ("form of the spec", lambda draft: draft.snapshot["summary"].pop("operation")),
    ("an append deletes nothing", lambda draft: draft.snapshot["summary"].update(operation="append")),
    ("a delete adds nothing", lambda draft: draft.snapshot["summary"].update(operation="delete")),
    ("a rewrite changes no row", lambda draft: draft.snapshot["summary"].update(operation="replace")),
    ("manifest list's header", lambda draft: draft.list_header.update({"sequence-number": b"1"})),
    ("a manifest is listed once", lambda draft: draft.listed.append(draft.listed[0])),
    ("every live file stays", lambda draft: draft.listed.remove(old_list(draft))),
    ("every new manifest is written, and listed", lambda draft: draft.listed.remove(delete_list(draft))),
    ("a kept manifest is listed as it was", add(old_list, "existing_rows_count", 1)),
    ("added_files_count is right", add(data_list, "added_files_count", 1)),
    ("existing_rows_count is right", add(data_list, "existing_rows_count", 1)),
    ("deleted_files_count is right", add(delete_list, "deleted_files_count", 1)),
    ("row id ranges", add(data_list, "first_row_id", -1)),
    ("row id ranges", change(data_list, first_row_id=None)),
    ("a delete manifest has no first_row_id", change(delete_list, first_row_id=5)),
    ("min_sequence_number", add(data_list, "min_sequence_number", 1)),
    ("a new manifest has the snapshot's sequence", add(data_list, "sequence_number", -1)),
    ("added by this snapshot", add(data_list, "added_snapshot_id", 1)),
    ("the partition spec fits", change(delete_list, partition_spec_id=1)),
    ("the header names the content", change(data_list, content=1)),
    ("a new entry has the snapshot's id", change(entry(0, ADDED), snapshot_id=5)),
    ("a new entry inherits", change(entry(1, ADDED), sequence_number=0)),
    ("a new data file inherits its row ids", change(file(0, ADDED), first_row_id=0)),
    ("a new data file was written", change(file(0, ADDED), file_path="/elsewhere")),
    ("file_size_in_bytes is the file", add(file(0, ADDED), "file_size_in_bytes", 1)),
    ("a data file is Parquet", change(file(0, ADDED), file_format="ORC")),
    ("deletes are deletion vectors", change(file(1, ADDED), content=2)),
    ("an entry has its manifest's content", change(file(1, ADDED), content=0)),
    ("an entry keeps its sequence numbers", add(entry(0, EXISTING), "sequence_number", 1)),
    ("an entry keeps its file", change(file(0, EXISTING), first_row_id=None)),
    ("an entry keeps its file", add(file(0, EXISTING), "file_size_in_bytes", 1)),
    ("an existing entry keeps its snapshot id", change(entry(0, EXISTING), snapshot_id=5)),
    ("a deleted entry has the snapshot's id", change(entry(0, DELETED), snapshot_id=5)),
    ("names its data file", change(file(1, ADDED), referenced_data_file=None)),
    ("a vector", change(file(1, ADDED), referenced_data_file="/elsewhere")),
    ("length is wrong", add(file(1, ADDED), "content_offset", 1)),
    ("length is wrong", add(file(1, ADDED), "content_size_in_bytes", -1)),
    ("file_size_in_bytes is the Puffin", change(file(1, ADDED), file_size_in_bytes=1)),
    ("manifest_length", lambda draft: setattr(draft, "recount", False)),
]:  # fmt: skip
    breaks(rule)(how)


@breaks("the header says the table's format-version")
def _(draft: Draft) -> None:
    draft.manifests[data_list(draft)["manifest_path"]][0]["format-version"] = b"2"


@breaks("the header names the current schema")
def _(draft: Draft) -> None:
    draft.manifests[data_list(draft)["manifest_path"]][0]["schema-id"] = b"7"


@breaks("record_count is the Parquet footer's")
def _(draft: Draft) -> None:
    file(0, ADDED)(draft)["record_count"] -= 1
    data_list(draft)["added_rows_count"] -= 1
    draft.snapshot["added-rows"] -= 1


@breaks("its manifest entry says")
def _(draft: Draft) -> None:
    file(1, ADDED)(draft)["record_count"] += 1
    delete_list(draft)["added_rows_count"] += 1


@breaks("every live file stays")
def _(draft: Draft) -> None:
    record, entries = draft.new(0)
    lost = [entry for entry in entries if entry["status"] == EXISTING][-1]
    entries.remove(lost)
    record["existing_files_count"] -= 1
    record["existing_rows_count"] -= lost["data_file"]["record_count"]


@breaks("comes once")
def _(draft: Draft) -> None:
    _, entries = draft.new(0)
    twice = draft.entry(0, EXISTING)
    entries.append(twice)


@breaks("a data file is in a snapshot once")
def _(draft: Draft) -> None:
    _, entries = draft.new(0)
    entries.append(draft.entry(0, ADDED))


@breaks("a data file has one deletion vector")
def _(draft: Draft) -> None:
    added = [entry for entry in draft.new(1)[1] if entry["status"] == ADDED]
    added[1]["data_file"]["referenced_data_file"] = added[0]["data_file"]["referenced_data_file"]


@breaks("a vector goes only with its file")
def _(draft: Draft) -> None:
    """The old vector is dropped and no new one comes: its rows would come back."""
    record, entries = draft.new(1)
    gone = {entry["data_file"]["referenced_data_file"] for entry in entries if entry["status"] == DELETED}
    new = next(entry for entry in entries if entry["status"] == ADDED and entry["data_file"]["referenced_data_file"] in gone)
    entries.remove(new)
    record["added_files_count"] -= 1
    record["added_rows_count"] -= new["data_file"]["record_count"]


@breaks("a new vector replaces the old one")
def _(draft: Draft) -> None:
    """Old and new vector both live: the table would be unreadable."""
    record, entries = draft.new(1)
    new = {entry["data_file"]["referenced_data_file"] for entry in entries if entry["status"] == ADDED}
    old = next(entry for entry in entries if entry["status"] == DELETED and entry["data_file"]["referenced_data_file"] in new)
    revive(draft, record, old)


@breaks("no vector is left of a removed file")
def _(draft: Draft) -> None:
    record, entries = draft.new(1)
    new = {entry["data_file"]["referenced_data_file"] for entry in entries if entry["status"] == ADDED}
    old = next(entry for entry in entries if entry["status"] == DELETED and entry["data_file"]["referenced_data_file"] not in new)
    revive(draft, record, old)


def revive(draft: Draft, record: Record, old: Record) -> None:
    count = old["data_file"]["record_count"]
    (before,) = [e for m in draft.source.manifests for e in m.entries if old["data_file"]["file_path"].encode() in e.data_file]
    old.update(status=EXISTING, snapshot_id=before.snapshot_id)
    record["deleted_files_count"] -= 1
    record["deleted_rows_count"] -= count
    record["existing_files_count"] += 1
    record["existing_rows_count"] += count
    record["min_sequence_number"] = before.sequence_number


def vector(draft: Draft, wanted: Callable[[Any], bool]) -> tuple[Record, Any]:
    """(entry's file, data file before) of a new vector about a file that had one (or not)."""
    for candidate in draft.new(1)[1]:
        found = candidate["data_file"]
        base = draft.source.files.get(found["referenced_data_file"])
        if candidate["status"] == ADDED and base is not None and wanted(base):
            return found, base
    raise AssertionError("no such vector")


def replace_vector(draft: Draft, found: Record, positions: list[int], about: str | None = None) -> None:
    bitmap = deletion_vectors.bitmap_of(np.array(positions, np.int64))
    blob = deletion_vectors.encode(bitmap)
    data = deletion_vectors.puffin(blob, about or found["referenced_data_file"], len(bitmap))
    draft.blobs[found["file_path"]] = data
    record, _ = draft.new(1)
    record["added_rows_count"] += len(bitmap) - found["record_count"]
    found.update(record_count=len(bitmap), content_size_in_bytes=len(blob), file_size_in_bytes=len(data))


@breaks("no deleted row comes back")
def _(draft: Draft) -> None:
    found, base = vector(draft, lambda base: base.deletes is not None)
    missing = base.deletes.min()
    kept = [position for position in range(base.record_count) if position != missing]
    replace_vector(draft, found, kept[: found["record_count"]])


@breaks("positions are in its file")
def _(draft: Draft) -> None:
    found, base = vector(draft, lambda base: base.deletes is None)
    replace_vector(draft, found, [base.record_count])


@breaks("whose rows are all deleted is removed")
def _(draft: Draft) -> None:
    found, base = vector(draft, lambda base: base.deletes is None)
    replace_vector(draft, found, list(range(base.record_count)))


@breaks("agree what the vector is about")
def _(draft: Draft) -> None:
    found, _base = vector(draft, lambda base: base.deletes is None)
    replace_vector(draft, found, [0], about="/elsewhere")


@breaks("every Puffin holds one vector")
def _(draft: Draft) -> None:
    draft.blobs["/lake/extra.puffin"] = b"PFA1"


@breaks("checksum")
def _(draft: Draft) -> None:
    found, _base = vector(draft, lambda base: True)
    data = bytearray(draft.blobs[found["file_path"]])
    data[15] ^= 1
    draft.blobs[found["file_path"]] = bytes(data)


def bound(draft: Draft, which: str, field: int, value: bytes) -> None:
    for pair in file(0, ADDED)(draft)[which]:
        if pair["key"] == field:
            pair["value"] = value


@breaks("a lower bound is not above")
def _(draft: Draft) -> None:
    bound(draft, "lower_bounds", 1, struct.pack("<q", 2))


@breaks("an upper bound is not below")
def _(draft: Draft) -> None:
    bound(draft, "upper_bounds", 3, b"zzzzzzzzzzzzzzzz")


@breaks("a column with NaN has no bounds")
def _(draft: Draft) -> None:
    file(0, ADDED)(draft)["upper_bounds"].append({"key": 2, "value": struct.pack("<d", 60.0)})


@breaks("null_value_counts")
def _(draft: Draft) -> None:
    file(0, ADDED)(draft)["null_value_counts"][2]["value"] = 0


@breaks("value_counts")
def _(draft: Draft) -> None:
    file(0, ADDED)(draft)["value_counts"].pop()


@breaks("a lower bound is not above")
def _(draft: Draft) -> None:
    bound(draft, "lower_bounds", 5, struct.pack("<i", 4))


@breaks("null_value_counts")
def _(draft: Draft) -> None:
    """A field's nulls are those of its struct too."""
    next(pair for pair in file(0, ADDED)(draft)["null_value_counts"] if pair["key"] == 5)["value"] -= 1


@breaks("lower_bounds are of columns and struct fields")
def _(draft: Draft) -> None:
    file(0, ADDED)(draft)["lower_bounds"].append({"key": 7, "value": bytes(16)})


@breaks("value_counts are of columns and struct fields")
def _(draft: Draft) -> None:
    file(0, ADDED)(draft)["value_counts"].append({"key": 7, "value": 4})


@breaks("column_sizes are the footer's")
def _(draft: Draft) -> None:
    next(pair for pair in file(0, ADDED)(draft)["column_sizes"] if pair["key"] == 7)["value"] += 1


for span in (
    "struct<lower: int, tags: list<binary>>",
    "struct<lower: long, tags: list<uuid>>",
    "struct<lower: int, tag: list<uuid>>",
    "struct<lower: int, tags: list<uuid>, more: int>",
    "struct<tags: list<uuid>, lower: int>",
    "list<uuid>",
):

    def _fields(draft: Draft, span: str = span) -> None:
        draft.other["fields"] = Mirror(relation(("id", "long"), ("f", "double"), ("text", "string"), ("span", span))).table.fields

    breaks("field ids of a data file")(_fields)


@breaks("field ids of a data file")
def _(draft: Draft) -> None:
    """Two nested ids the other way round: only ids tell."""
    metadata = Mirror(SHAPE).table.metadata
    schema = orjson.loads(orjson.dumps(metadata["schemas"][0]))
    tags = schema["fields"][3]["type"]["fields"][1]
    tags["id"], tags["type"]["element-id"] = tags["type"]["element-id"], tags["id"]
    draft.other["fields"] = fields_of({**metadata, "schemas": [schema]})


@breaks("field ids of a data file")
def _(draft: Draft) -> None:
    draft.other["fields"] = Mirror(relation(("id", "long"), ("f", "double"), ("other", "string"), ("span", "int"))).table.fields


@pytest.mark.parametrize("name", list(BREAKS))
def test_a_broken_rule_is_named(proposal: Proposal, name: str) -> None:
    draft = Draft(proposal)
    BREAKS[name](draft)
    broken = draft.proposal()
    with pytest.raises(Corrupt) as caught:
        validate(broken)
    assert caught.value.code == "COMMIT_INVALID"
    assert name.partition(" ")[2] in caught.value.why


def test_a_commit_that_would_break_the_table_writes_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in the writer is stopped by what it wrote, before anything reaches the catalog."""
    mirror = Mirror(SHAPE)
    mirror.commit([(1, 1.0, "x", None), (2, 1.0, "x", None)])
    monkeypatch.setattr(deletion_vectors, "BLOB_OFFSET", 5)
    before = set(mirror.storage.files)
    with pytest.raises(Corrupt, match="COMMIT_INVALID"):
        mirror.commit(delete=[1])
    assert set(mirror.storage.files) == before


# --------------------------------------------------------------------------------------------- partitions and version 2

PLAIN = relation(("id", "long"), ("f", "double"), ("text", "string"))
LAID_OUT = Layout((PartitionField("text", "truncate", 1), PartitionField("id", "bucket", 4)), (SortField("id"),))


def laid_out(monkeypatch: pytest.MonkeyPatch, format_version: int) -> Proposal:
    """A commit to a partitioned table: new files in three partitions, deletes in an old file that had some before."""
    seen: list[Proposal] = []

    def remember(proposal: Proposal) -> None:
        seen.append(dataclasses.replace(proposal, files=dict(proposal.files), manifests=list(proposal.manifests)))
        validate(proposal)

    monkeypatch.setattr(table, "validate", remember)
    mirror = Mirror(PLAIN, layout=dataclasses.replace(LAID_OUT, format_version=format_version))
    mirror.commit([(key, 0.0, "a") for key in range(40)])
    mirror.commit(delete=[0, 1, 2, 3])
    mirror.commit([(100, 0.0, "b"), (101, 0.0, None)], delete=list(range(4, 12)))
    mirror.check()
    return seen[-1]


def partition_of(content: int, **values: Any) -> Break:
    """Another partition for a new file, of which the summary knows."""

    def apply(draft: Draft) -> None:
        found = file(content, ADDED)(draft)["partition"]
        found.update({name: value(found[name]) if callable(value) else value for name, value in values.items()})
        record, entries = draft.new(content)
        record["partitions"] = draft.source.layout.summaries([tuple(entry["data_file"]["partition"].values()) for entry in entries])

    return apply


def summary_of(content: int, field: int, **values: Any) -> Break:
    def apply(draft: Draft) -> None:
        draft.new(content)[0]["partitions"][field].update(values)

    return apply


def bound_of(which: str, field: int, value: bytes) -> Break:
    def apply(draft: Draft) -> None:
        for pair in file(1, ADDED)(draft)[which]:
            if pair["key"] == field:
                pair["value"] = value

    return apply


def other_spec(draft: Draft) -> None:
    draft.manifests[data_list(draft)["manifest_path"]][0]["partition-spec"] = b"[]"


def other_positions(positions: list[int], about: str | None = None) -> Break:
    def apply(draft: Draft) -> None:
        found, _ = vector(draft, lambda base: base.deletes is not None)
        bitmap = deletion_vectors.bitmap_of(np.array(positions, np.int64))
        path = about or found["referenced_data_file"]
        data = position_deletes.encode(bitmap, path)
        lower, upper = position_deletes.bounds(bitmap, path)
        draft.blobs[found["file_path"]] = data
        draft.new(1)[0]["added_rows_count"] += len(bitmap) - found["record_count"]
        found.update(
            record_count=len(bitmap),
            file_size_in_bytes=len(data),
            lower_bounds=[{"key": key, "value": value} for key, value in lower.items()],
            upper_bounds=[{"key": key, "value": value} for key, value in upper.items()],
        )

    return apply


def gone_before(draft: Draft) -> list[int]:
    return [int(position) for position in vector(draft, lambda base: base.deletes is not None)[1].deletes]


PARTITIONED: list[tuple[str, Break]] = [
    ("a file's rows are in its partition", partition_of(0, text_trunc="z")),
    ("nulls are in a partition of their own", partition_of(0, text_trunc=None)),
    ("rows are in its partition", partition_of(0, id_bucket=lambda bucket: (bucket + 1) % 4)),
    ("deletes are in the partition of their data file", partition_of(1, text_trunc="z")),
    ("deletes are in the partition of their data file", partition_of(1, text_trunc=None)),
    ("contains_null is right", summary_of(0, 0, contains_null=False)),
    ("no partition is NaN", summary_of(0, 0, contains_nan=True)),
    ("lower bound is the smallest", summary_of(1, 0, lower_bound=b"b")),
    ("upper bound is the largest", summary_of(0, 1, upper_bound=struct.pack("<i", -1))),
    ("has bounds unless all is null", summary_of(0, 1, lower_bound=None, upper_bound=None)),
    ("sums up each partition field", lambda draft: draft.new(0)[0]["partitions"].pop()),
    ("the header holds the partition spec", other_spec),
    ("a data file has the table's sort order", change(file(0, ADDED), sort_order_id=None)),
    ("deletes have no sort order", change(file(1, ADDED), sort_order_id=1)),
]
VERSION_TWO: list[tuple[str, Break]] = [
    ("version 2 has no row lineage", change(snapshot, **{"first-row-id": 0, "added-rows": 0})),
    ("names its data file", change(file(1, ADDED), referenced_data_file=None)),
    ("deletes are deletion vectors", change(file(1, ADDED), file_format="PUFFIN")),
    ("bounds of the path say one data file", bound_of("lower_bounds", position_deletes.PATH_FIELD, b"/lake")),
    ("bounds of the path say one data file", bound_of("upper_bounds", position_deletes.PATH_FIELD, b"/lakf")),
    ("bounds of the positions", bound_of("upper_bounds", position_deletes.POSITION_FIELD, struct.pack("<q", 0))),
    ("it is about other files", other_positions([0, 1], "/elsewhere")),
    ("positions are in its file", lambda draft: other_positions([*gone_before(draft), 5_000])(draft)),
    ("no deleted row comes back", lambda draft: other_positions([max(gone_before(draft)) + 1])(draft)),
]


@pytest.mark.parametrize(
    ("format_version", "rule", "how"),
    [(3, *one) for one in PARTITIONED] + [(2, *one) for one in (*PARTITIONED, *VERSION_TWO)],
)
def test_a_broken_rule_of_the_layout_is_named(monkeypatch: pytest.MonkeyPatch, format_version: int, rule: str, how: Break) -> None:
    draft = Draft(laid_out(monkeypatch, format_version))
    validate(draft.proposal())
    how(draft)
    with pytest.raises(Corrupt) as caught:
        validate(draft.proposal())
    assert caught.value.code == "COMMIT_INVALID"
    assert rule in caught.value.why


@pytest.mark.parametrize(("kind", "form"), [("float", "<f"), ("double", "<d")])
def test_nan_is_no_bound(kind: str, form: str) -> None:
    with pytest.raises(Corrupt, match="NaN is no bound"):
        _value(struct.pack(form, float("nan")), kind)
