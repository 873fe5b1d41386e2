"""Commits of a kind somebody else could make: those that are right pass, and each that breaks the table is refused by its rule."""

import copy
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icelake.errors import Refused, Unreachable
from icelake.model.layout import Layout
from icelake.ports import Json
from icelake.storage.local import LocalStorage
from icelake.tables import added_files
from icelake.tables.guard import Guard
from icelake.tables.manifests import ADDED, DATA, DELETED, DELETES, EXISTING, Record
from tests.unit.tables.commits import SPECS, Draft, Made, Written, damaged_crc
from tests.unit.tables.mirror import Mirror
from tests.unit.tables.test_layout import LAYOUTS, SHAPE, layout, row

CASES = 520
"""Seeds of the generator. Each is a valid commit, and the same with one thing wrong."""
PARTS = 2
KINDS = ("append", "several", "delta", "overwrite", "delete", "rewrite", "manifests")


class Watched(LocalStorage):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.fails = False

    def read(self, location: str, offset: int = 0, length: int | None = None) -> bytes:
        self._note(location)
        return super().read(location, offset, length)

    def open(self, location: str) -> Any:
        self._note(location)
        return super().open(location)

    def _note(self, location: str) -> None:
        self.reads.append(location)
        if self.fails:
            raise Unreachable("STORAGE_UNREACHABLE", f"cannot read {location}")


@pytest.fixture
def storage() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


@pytest.fixture
def guard(storage: Watched) -> Iterator[Guard]:
    made = Guard(storage)
    yield made
    made.close()


def passes(guard: Guard, draft: Draft) -> tuple[Json, Json]:
    base, new = draft.seal().publish()
    guard.check(base if base["snapshots"] else None, new)
    draft.settle()
    return base, new


def refused(guard: Guard, base: Json | None, new: Json, rule: str) -> Refused:
    with pytest.raises(Refused, match="COMMIT_BREAKS_TABLE") as caught:
        guard.check(base, new)
    assert caught.value.what == f"the commit would break the table: {rule}", caught.value
    assert caught.value.why
    return caught.value


# ------------------------------------------------------------------------------------------------------------- one wrong


@dataclass(frozen=True)
class Wrong:
    """A class of faults. ``sealed`` is called on a draft that is sealed, ``opened`` before; False: the draft has nothing to break so."""

    name: str
    rule: str
    opened: Callable[[Draft], object] = lambda draft: None
    sealed: Callable[[Draft], object] = lambda draft: None
    published: Callable[[Draft, Json], object] = lambda draft, new: None


WRONG: dict[str, Wrong] = {}


def wrong(name: str, rule: str, state: str = "sealed") -> Callable[[Callable[..., object]], Callable[..., object]]:
    def register(function: Callable[..., object]) -> Callable[..., object]:
        assert name not in WRONG
        ways: dict[str, Any] = {state: function}
        WRONG[name] = Wrong(name, rule, **ways)
        return function

    return register


def entries(draft: Draft, status: int, content: int) -> list[tuple[Written, Record]]:
    return [
        (written, entry)
        for written in draft.written
        if written.content == content
        for entry in written.entries
        if entry["status"] == status
    ]


def pick(draft: Draft, status: int = ADDED, content: int = DATA, *, vector: bool = False) -> tuple[Written, Record] | None:
    there = entries(draft, status, content)
    if vector:
        there = [one for one in there if one[1]["data_file"]["file_format"] == "PUFFIN"]
    return draft.made.chance.choice(there) if there else None


def in_file(
    name: str, rule: str, change: Callable[[Draft, Record], object], status: int = ADDED, content: int = DATA, vector: bool = False
) -> None:
    """A fault of an entry's data_file, its manifest being otherwise right."""

    def opened(draft: Draft) -> object:
        found = pick(draft, status, content, vector=vector)
        return change(draft, found[1]["data_file"]) if found else False

    WRONG[name] = Wrong(name, rule, opened=opened)


def in_vector(name: str, rule: str, change: Callable[[Draft, Record], object]) -> None:
    in_file(name, rule, change, content=DELETES, vector=True)


def setting(**values: Any) -> Callable[[Draft, Record], object]:
    def change(draft: Draft, file: Record) -> None:
        file.update(values)

    return change


def listed(name: str, rule: str, change: Callable[[Draft, Record], object], content: int | None = DATA) -> None:
    """A fault of a new manifest's record in the list."""

    def sealed(draft: Draft) -> object:
        there = [written.record for written in draft.written if content is None or written.content == content]
        return change(draft, draft.made.chance.choice(there)) if there else False

    WRONG[name] = Wrong(name, rule, sealed=sealed)


def of_version(least: int, change: Callable[..., object]) -> Callable[..., object]:
    return lambda draft, *more: change(draft, *more) if draft.made.version >= least else False


def on_snapshot(name: str, rule: str, values: dict[str, Any], least: int = 1) -> None:
    def sealed(draft: Draft) -> object:
        for key, value in values.items():
            if callable(value):
                value = value(draft)
            if value is None:
                draft.snapshot.pop(key, None)
            else:
                draft.snapshot[key] = value
        return None

    WRONG[name] = Wrong(name, rule, sealed=of_version(least, sealed))


def rewritten(path: str, change: Callable[[bytes], bytes]) -> None:
    Path(path).write_bytes(change(Path(path).read_bytes()))


# The faults of the table in the notes on writing version 3, by what engines make of them.
FAULTS = {
    "a vector's checksum is wrong": "unreadable",
    "a vector's record_count is not its cardinality": "unreadable in some",
    "a vector deletes rows beyond its file's": "unreadable in some",
    "a vector's content_offset is off by one": "unreadable",
    "a vector names no data file": "unreadable",
    "two vectors for one data file": "unreadable",
    "a vector is older than its data file": "deleted rows come back",
    "a vector's partition is another": "deleted rows come back",
    "a vector's partition is null": "deleted rows come back",
    "a data file is removed, its vector is left": "nothing, and the vector is never removed",
    "an existing entry without first_row_id": "row ids change",
    "a data manifest without first_row_id": "no row ids",
    "a snapshot without first-row-id": "refused by catalogs",
    "first-row-id is behind next-row-id": "refused by catalogs",
    "first-row-id is beyond next-row-id": "a gap",
    "a snapshot without added-rows": "an error of catalogs",
    "added-rows is too large": "a gap",
    "added-rows is too small": "row ids twice",
    "sequence-number is the last one": "refused by catalogs",
    "sequence-number skips some": "accepted",
    "timestamp-ms is older than the log": "refused by catalogs",
    "a snapshot without summary": "unreadable",
    "manifest_length is wrong": "unreadable",
    "a vector's file size is wrong": "unreadable",
}


def another_partition(draft: Draft, file: Record) -> object:
    if not file["partition"]:
        return False
    name, value = next(iter(file["partition"].items()))
    file["partition"][name] = {"str": "other", "int": 3 - (value or 0) if "bucket" in name else 99, "NoneType": None}[type(value).__name__]
    if value is None:
        file["partition"][name] = 3 if "bucket" in name else 99 if "day" in name else "other"
    return None


def null_partition(draft: Draft, file: Record) -> object:
    if not any(value is not None for value in file["partition"].values()):
        return False
    file["partition"] = dict.fromkeys(file["partition"])
    return None


def again(draft: Draft, file: Record) -> object:
    """Another vector for the same data file."""
    live = draft.made.data[file["referenced_data_file"]]
    draft.add(draft.made.vector(live, [0, 1]), content=DELETES)
    return None


def beyond(draft: Draft, file: Record) -> object:
    live = draft.made.data[file["referenced_data_file"]]
    file.update(draft.made.vector(live, [0, live.file["record_count"]]))
    return None


in_vector("a vector's checksum is wrong", "a deletion vector decodes", lambda draft, file: rewritten(file["file_path"], damaged_crc))
in_vector(
    "a vector's record_count is not its cardinality",
    "record_count is the vector's cardinality",
    lambda draft, file: file.update(record_count=file["record_count"] + draft.made.chance.choice([1, -1])),
)
in_vector("a vector deletes rows beyond its file's", "a vector's positions are in its data file", beyond)
in_vector(
    "a vector's content_offset is off by one",
    "a deletion vector decodes",
    lambda draft, file: file.update(content_offset=file["content_offset"] + 1),
)
in_vector("a vector names no data file", "a deletion vector names its data file", setting(referenced_data_file=None))
in_vector("two vectors for one data file", "two deletion vectors for one data file", again)
in_vector("a vector's partition is another", "a deletion vector has the partition of its data file", another_partition)
in_vector("a vector's partition is null", "a deletion vector has the partition of its data file", null_partition)
in_vector(
    "a vector's file size is wrong",
    "a file is as long as its entry says",
    lambda draft, file: file.update(file_size_in_bytes=file["file_size_in_bytes"] + 7),
)
in_vector(
    "a vector's file ends earlier",
    "a file is as long as its entry says",
    lambda draft, file: file.update(file_size_in_bytes=file["file_size_in_bytes"] - 1),
)
in_vector("a vector's file is not there", "a file that it names is not there", lambda draft, file: Path(file["file_path"]).unlink())
in_vector(
    "a vector is about a file that is not there",
    "a deletion vector is about a live data file",
    setting(referenced_data_file="/nowhere.parquet"),
)
in_vector("a vector has no place", "a deletion vector is inside its Puffin file", setting(content_offset=None))
in_vector(
    "a vector is outside its file",
    "a deletion vector is inside its Puffin file",
    lambda draft, file: file.update(content_size_in_bytes=file["file_size_in_bytes"]),
)
in_vector(
    "a Puffin's footer is about another file",
    "the Puffin's footer describes the vector",
    lambda draft, file: rewritten(file["file_path"], lambda data: data.replace(b'"referenced-data-file":"/', b'"referenced-data-file":"x')),
)


@wrong("a vector is older than its data file", "a deletion vector is not older than its data file", "opened")
def _(draft: Draft) -> object:
    found = pick(draft, content=DELETES, vector=True)
    if not found:
        return False
    found[1]["sequence_number"] = 0
    return None


@wrong("a data file is removed, its vector is left", "a removed data file leaves no deletion vector", "opened")
def _(draft: Draft) -> object:
    made = draft.made
    about = [made.data[live.file["referenced_data_file"]] for live in made.deletes.values() if live.file.get("referenced_data_file")]
    new = {entry["data_file"].get("referenced_data_file") for _, entry in entries(draft, ADDED, DELETES)}
    about = [live for live in about if live.manifest in draft.kept and live.path not in new]
    if not about:
        return False
    draft._gone(made.chance.choice(about))
    return None


@wrong("an old vector is left beside the new one", "two deletion vectors for one data file", "opened")
def _(draft: Draft) -> object:
    made = draft.made
    kept = [live for live in made.deletes.values() if live.file.get("referenced_data_file") and live.manifest in draft.kept]
    kept = [live for live in kept if made.data[live.file["referenced_data_file"]].manifest in draft.kept]
    if not kept:
        return False
    draft.add(made.vector(made.data[made.chance.choice(kept).file["referenced_data_file"]], [0]), content=DELETES)
    return None


@wrong("new position deletes of version 3 that are no vector", "new position deletes of version 3 are deletion vectors", "opened")
def _(draft: Draft) -> object:
    kept = [live for live in draft.made.data.values() if live.manifest in draft.kept]
    if draft.made.version < 3 or not kept:
        return False
    draft.add(draft.made.position_deletes(kept[0], [0]), content=DELETES)
    return None


@wrong("a vector before version 3", "there are no deletion vectors before version 3", "opened")
def _(draft: Draft) -> object:
    kept = [live for live in draft.made.data.values() if live.manifest in draft.kept]
    if draft.made.version != 2 or not kept:
        return False
    draft.add(draft.made.vector(kept[0], [0]), content=DELETES)
    return None


@wrong("equality deletes about no column", "equality deletes are about columns of the table", "opened")
def _(draft: Draft) -> object:
    kept = list(draft.made.data.values())
    if draft.made.version < 2 or not kept:
        return False
    draft.add({**draft.made.position_deletes(kept[0], [0], 2), "equality_ids": draft.made.chance.choice([[], [99], None])}, content=DELETES)
    return None


@wrong("a file of deletes is not there", "a file that it names is not there", "opened")
def _(draft: Draft) -> object:
    kept = list(draft.made.data.values())
    if draft.made.version != 2 or not kept:
        return False
    file = draft.made.position_deletes(kept[0], [0], draft.made.chance.choice([1, 2]))
    Path(file["file_path"]).unlink()
    draft.add(file, content=DELETES)
    return None


# Entries.


@wrong("an existing entry without first_row_id", "an existing entry keeps its first_row_id", "opened")
def _(draft: Draft) -> object:
    there = [entry for _, entry in entries(draft, EXISTING, DATA) if entry["data_file"].get("first_row_id") is not None]
    if not there:
        return False
    draft.made.chance.choice(there)["data_file"]["first_row_id"] = None
    return None


@wrong("an existing entry with another sequence number", "an existing entry keeps its sequence numbers", "opened")
def _(draft: Draft) -> object:
    found = pick(draft, EXISTING, draft.made.chance.choice([DATA, DELETES]))
    if not found or draft.made.version < 2 or found[1]["sequence_number"] < 1:
        return False
    found[1][draft.made.chance.choice(["sequence_number", "file_sequence_number"])] -= 1
    return None


@wrong("an existing entry inherits its number", "an entry that is not new carries its sequence numbers", "opened")
def _(draft: Draft) -> object:
    found = pick(draft, EXISTING) or pick(draft, DELETED)
    if not found or draft.made.version < 2:
        return False
    found[1][draft.made.chance.choice(["sequence_number", "file_sequence_number"])] = None
    return None


@wrong("an existing entry that was not there", "an entry that is not new was live in a manifest that is replaced", "opened")
def _(draft: Draft) -> object:
    file = draft.made.data_file()
    entry = {**draft.entry(draft.made.chance.choice([EXISTING, DELETED]), file), "sequence_number": 0, "file_sequence_number": 0}
    draft.add().entries.append(entry)
    return None


@wrong("a deleted entry of a kept manifest", "an entry that is not new was live in a manifest that is replaced", "opened")
def _(draft: Draft) -> object:
    kept = [live for live in draft.made.data.values() if live.manifest in draft.kept]
    if not kept:
        return False
    draft.add().entries.append({**copy.deepcopy(kept[0].entry), "status": DELETED, "snapshot_id": draft.ident})
    return None


@wrong("an existing entry twice", "a file lives in a snapshot once", "opened")
def _(draft: Draft) -> object:
    found = pick(draft, EXISTING)
    if not found:
        return False
    found[0].entries.append(copy.deepcopy(found[1]))
    return None


@wrong("a new file twice", "a file lives in a snapshot once", "opened")
def _(draft: Draft) -> object:
    found = pick(draft)
    if not found:
        return False
    draft.add(copy.deepcopy(found[1]["data_file"]))
    return None


@wrong("a new file that lives already", "a new file was not live before", "opened")
def _(draft: Draft) -> object:
    kept = [live for live in draft.made.data.values() if live.manifest in draft.kept]
    if not kept:
        return False
    draft.add({**copy.deepcopy(draft.made.chance.choice(kept).file), "first_row_id": None})
    return None


@wrong("a new file instead of the existing one", "a new file was not live before", "opened")
def _(draft: Draft) -> object:
    found = pick(draft, EXISTING)
    if not found:
        return False
    found[1].update(status=ADDED, snapshot_id=draft.ident, sequence_number=None, file_sequence_number=None)
    found[1]["data_file"]["first_row_id"] = None
    return None


@wrong("an existing entry moves to another partition", "an existing entry keeps its partition", "opened")
def _(draft: Draft) -> object:
    found = pick(draft, EXISTING)
    return another_partition(draft, found[1]["data_file"]) if found else False


@wrong("an existing entry with another record_count", "an existing entry keeps its record_count", "opened")
def _(draft: Draft) -> object:
    found = pick(draft, EXISTING)
    if not found:
        return False
    found[1]["data_file"]["record_count"] += 1
    return None


@wrong("a new entry of another snapshot", "a new entry has the snapshot's id", "opened")
def _(draft: Draft) -> object:
    found = pick(draft) or pick(draft, content=DELETES)
    if not found:
        return False
    found[1]["snapshot_id"] = 12345
    return None


@wrong("a new entry of the future", "no sequence number is of the future", "opened")
def _(draft: Draft) -> object:
    found = pick(draft)
    if not found or draft.made.version < 2:
        return False
    found[1]["sequence_number"] = draft.sequence + 1
    return None


@wrong("a status that is none", "an entry's status is one of the spec's", "opened")
def _(draft: Draft) -> object:
    found = pick(draft)
    if not found:
        return False
    found[1]["status"] = 3
    return None


@wrong("data among deletes", "an entry has its manifest's content", "opened")
def _(draft: Draft) -> object:
    if draft.made.version < 2:
        return False
    draft.add(draft.made.data_file(), content=DELETES)
    return None


# Data files.

in_file("a data file is not there", "a file that it names is not there", lambda draft, file: Path(file["file_path"]).unlink())
in_file(
    "a data file is longer than said",
    "a file is as long as its entry says",
    lambda draft, file: rewritten(file["file_path"], lambda data: data + b"x"),
)
in_file(
    "a data file is shorter than said",
    "a file is as long as its entry says",
    lambda draft, file: rewritten(file["file_path"], lambda data: data[:-9]),
)
in_file(
    "record_count is not the file's", "record_count is the file's", lambda draft, file: file.update(record_count=file["record_count"] + 1)
)
in_file(
    "a footer does not decode",
    "a file is readable",
    lambda draft, file: rewritten(file["file_path"], lambda data: data[:-60] + bytes(52) + data[-8:]),
)
in_file("a file of no known format", "a file's format is one of the spec's", setting(file_format="CSV"))


@wrong("a data file is elsewhere", "a file is below the table's location", "opened")
def _(draft: Draft) -> object:
    found = pick(draft)
    if not found:
        return False
    file, folder = found[1]["data_file"], str(draft.made.folder)
    file["file_path"] = draft.made.chance.choice([f"{folder}x/a.parquet", f"{folder}/../a.parquet", "/etc/passwd", f"{folder}//a.parquet"])
    return None


@wrong("a new data file with a first_row_id", "a new data file inherits its row ids, unless it holds rows of before", "opened")
def _(draft: Draft) -> object:
    found = pick(draft)
    if not found or draft.made.version < 3:
        return False
    found[1]["data_file"]["first_row_id"] = draft.made.metadata["next-row-id"]
    return None


def misplaced(draft: Draft, file: Record) -> object:
    """Bounds that say that the rows are of another partition."""
    if not file["partition"] or "id_bucket" in file["partition"] or any(value is None for value in file["partition"].values()):
        return False
    return another_partition(draft, file)


in_file("a data file is in the wrong partition", "a partition agrees with the column's bounds", misplaced)


@wrong("a partition's value is of another type", "a partition value has the type of its field", "opened")
def _(draft: Draft) -> object:
    if not entries(draft, ADDED, DATA) or not any(name == "at_day" for name, *_ in draft.made.fields):
        return False
    draft.types["at_day"] = "string"
    for written in draft.written:
        for entry in written.entries:
            entry["data_file"]["partition"]["at_day"] = "1970-01-02"
    return None


in_file(
    "a bucket that is none",
    "a bucket is one of those there are",
    lambda draft, file: (
        file["partition"].update(id_bucket=draft.made.chance.choice([4, -1])) if "id_bucket" in file["partition"] else False
    ),
)

# Manifests.

listed(
    "manifest_length is wrong",
    "manifest_length is the size of the manifest",
    lambda draft, one: one.update(manifest_length=one["manifest_length"] + 1),
    None,
)
listed("a manifest is not there", "a file that it names is not there", lambda draft, one: Path(one["manifest_path"]).unlink(), None)
listed(
    "a manifest does not decode",
    "a file does not decode",
    lambda draft, one: rewritten(one["manifest_path"], lambda data: data[:-20] + bytes(20)),
    None,
)
listed(
    "a manifest is no Avro file",
    "a file does not decode",
    lambda draft, one: rewritten(one["manifest_path"], lambda data: b"x" * len(data)),
    None,
)
listed(
    "a manifest is elsewhere",
    "a file is below the table's location",
    lambda draft, one: one.update(manifest_path="/elsewhere/m.avro"),
    None,
)
listed(
    "a manifest of a spec that is not there",
    "a manifest's partition spec is the table's",
    lambda draft, one: one.update(partition_spec_id=7),
    None,
)
listed("a manifest of other content", "a manifest holds data or deletes", of_version(2, lambda draft, one: one.update(content=2)), None)
listed(
    "a manifest of another snapshot",
    "a new manifest is of this snapshot",
    of_version(2, lambda draft, one: one.update(added_snapshot_id=77)),
    None,
)
listed(
    "a manifest of another number",
    "a new manifest is of this snapshot",
    of_version(2, lambda draft, one: one.update(sequence_number=one["sequence_number"] - 1)),
    None,
)
listed(
    "min_sequence_number is too large",
    "min_sequence_number is not above an entry's",
    of_version(
        2,
        lambda draft, one: (
            one.update(min_sequence_number=one["min_sequence_number"] + 1)
            if one["added_files_count"] + one["existing_files_count"]
            else False
        ),
    ),
    None,
)
listed(
    "a count of files is wrong",
    "a manifest list counts right",
    lambda draft, one: one.update(
        {
            key: one[key] + 1
            for key in [
                draft.made.chance.choice(["added_files_count", "existing_files_count", "deleted_files_count", "deleted_rows_count"])
            ]
        }
    ),
    None,
)
listed(
    "a data manifest without first_row_id",
    "a manifest of data has a first_row_id",
    of_version(3, lambda draft, one: one.update(first_row_id=None)),
)


def ids_taken(draft: Draft, one: Record) -> object:
    if draft.made.version < 3 or draft.snapshot["first-row-id"] < 1 or not one["added_rows_count"] + one["existing_rows_count"]:
        return False
    one["first_row_id"] = draft.snapshot["first-row-id"] - 1
    return None


listed("row ids that are taken", "no row id is given twice", ids_taken)


def narrower(draft: Draft, one: Record) -> object:
    written = next(written for written in draft.written if written.record is one)
    live = [entry["data_file"]["partition"] for entry in written.entries if entry["status"] != DELETED]
    for name, summary in zip([name for name, *_ in draft.made.fields], one["partitions"], strict=True):
        values = [partition[name] for partition in live]
        if any(value is not None for value in values):
            value = draft.made.chance.choice([value for value in values if value is not None])
            far = b"\xf4zz" if isinstance(value, str) else b"\xff\xff\xff\x7f"
            change = draft.made.chance.choice([{"lower_bound": far, "upper_bound": far}, {"lower_bound": None, "upper_bound": None}])
            summary.update(change)
            return None
        if values:
            summary["contains_null"] = False
            return None
    return False


listed("a summary is narrower", "a summary of partitions is not narrower than its entries", narrower, None)


@wrong("a summary for another field", "a manifest list sums up each partition field")
def _(draft: Draft) -> object:
    if not draft.written or not draft.made.fields:
        return False
    draft.written[0].record["partitions"] *= 2
    return None


@wrong("a manifest's header is of another content", "a manifest's header agrees with the manifest list")
def _(draft: Draft) -> object:
    if not draft.written:
        return False
    draft.written[0].header |= draft.made.chance.choice(
        [{"content": "deletes" if draft.written[0].content == DATA else "data"}, {"partition-spec-id": "9"}]
    )
    draft.reseal(draft.written[0])
    return None


@wrong("a manifest of a later version", "a manifest is of the table's format version")
def _(draft: Draft) -> object:
    if not draft.written:
        return False
    draft.written[0].header["format-version"] = str(draft.made.version + 1)
    draft.reseal(draft.written[0])
    return None


@wrong("deletes in version 1", "there are no deletes before version 2", "opened")
def _(draft: Draft) -> object:
    kept = list(draft.made.data.values())
    if draft.made.version != 1 or not kept:
        return False
    draft.made.version = 2
    draft.add(draft.made.position_deletes(kept[0], [0]), content=DELETES)
    draft.written.insert(0, draft.written.pop())
    return None


# Manifest lists.


@wrong("a manifest twice", "a manifest is listed once")
def _(draft: Draft) -> object:
    if not draft.listed:
        return False
    draft.listed.append(copy.deepcopy(draft.made.chance.choice(draft.listed)))
    return None


@wrong("a kept manifest is listed otherwise", "a kept manifest is listed as it was")
def _(draft: Draft) -> object:
    if not draft.kept:
        return False
    record = draft.made.chance.choice(list(draft.kept.values()))
    key = draft.made.chance.choice(
        ["manifest_length", "added_rows_count", "existing_files_count", *(["min_sequence_number"] if draft.made.version > 1 else [])]
    )
    record[key] += 1
    return None


@wrong("a kept manifest gets other row ids", "a kept manifest is listed as it was")
def _(draft: Draft) -> object:
    before = {record["manifest_path"]: record["first_row_id"] for record in draft.made.listed}
    there = [record for path, record in draft.kept.items() if before[path] is not None]
    if not there:
        return False
    there[0]["first_row_id"] += 1
    return None


@wrong("the manifest list is of another snapshot", "the manifest list's header agrees with its snapshot")
def _(draft: Draft) -> object:
    keys = ["snapshot-id", "parent-snapshot-id", *(["sequence-number"] if draft.made.version > 1 else [])]
    draft.header[draft.made.chance.choice(keys)] = "4711"
    return None


@wrong("the manifest list does not decode", "a file does not decode", "published")
def _(draft: Draft, new: Json) -> object:
    rewritten(draft.snapshot["manifest-list"], lambda data: data[:-3])
    return None


@wrong("the manifest list is not there", "a file that it names is not there", "published")
def _(draft: Draft, new: Json) -> object:
    Path(draft.snapshot["manifest-list"]).unlink()
    return None


on_snapshot("the manifest list is elsewhere", "a file is below the table's location", {"manifest-list": "/elsewhere/list.avro"})

# Snapshots.

on_snapshot("a snapshot without first-row-id", "a snapshot has first-row-id and added-rows", {"first-row-id": None}, 3)
on_snapshot("a snapshot without added-rows", "a snapshot has first-row-id and added-rows", {"added-rows": None}, 3)
on_snapshot(
    "first-row-id is beyond next-row-id",
    "first-row-id is the table's next-row-id",
    {"first-row-id": lambda draft: draft.snapshot["first-row-id"] + 1},
    3,
)
on_snapshot(
    "added-rows is too large",
    "added-rows is how many row ids are given",
    {"added-rows": lambda draft: draft.snapshot["added-rows"] + 1},
    3,
)
on_snapshot(
    "sequence-number is the last one", "sequence-number is the last one + 1", {"sequence-number": lambda draft: draft.sequence - 1}, 2
)
on_snapshot(
    "timestamp-ms is older than the log",
    "timestamp-ms does not go back",
    {"timestamp-ms": lambda draft: draft.snapshot["timestamp-ms"] - 62_000},
)
on_snapshot("a snapshot without summary", "a snapshot has a summary", {"summary": None}, 2)
on_snapshot("a summary without operation", "the summary names an operation", {"summary": {"added-records": "1"}})
on_snapshot("a summary of an unknown operation", "the summary names an operation", {"summary": {"operation": "upsert"}})
on_snapshot("a summary holds a number", "a summary holds texts only", {"summary": {"operation": "append", "n": 1}})
on_snapshot("a schema that is not there", "schema-id is known", {"schema-id": 5})
on_snapshot("a parent that is not there", "the parent is known", {"parent-snapshot-id": 99})


@wrong("a total is wrong", "total-data-files is how many there are")
def _(draft: Draft) -> object:
    summary = draft.snapshot["summary"]
    summary["total-data-files"] = str(int(summary["total-data-files"]) + 1)
    return None


@wrong("sequence-number skips some", "sequence-number is the last one + 1")
def _(draft: Draft) -> object:
    if draft.made.version < 2:
        return False
    # The table counts it as one.
    draft.snapshot["sequence-number"] += 7
    return None


@wrong("first-row-id is behind next-row-id", "first-row-id is the table's next-row-id")
def _(draft: Draft) -> object:
    if draft.made.version < 3 or not draft.snapshot["first-row-id"]:
        return False
    draft.snapshot["first-row-id"] -= 1
    return None


@wrong("added-rows is too small", "row ids are given out of the snapshot's own")
def _(draft: Draft) -> object:
    if draft.made.version < 3 or not draft.snapshot["added-rows"]:
        return False
    draft.snapshot["added-rows"] -= 1
    return None


# ------------------------------------------------------------------------------------------------------------- the tests


def story(folder: Path, guard: Guard, chance: random.Random, version: int, spec: str, commits: int) -> Made:
    """A table with some commits that all pass."""
    made = Made(folder, version, spec, chance)
    for number in range(commits):
        passes(guard, made.draft(some_kind(made) if number else "append"))
    return made


def some_kind(made: Made) -> str:
    # There is most to go wrong with deletes.
    kinds = [*KINDS, "delta", "delta"] if made.version > 1 else [kind for kind in KINDS if kind != "delta"]
    return made.chance.choice(kinds) if made.data else "append"


def begun(made: Made) -> Json | None:
    """Metadata before a commit, in which there is a snapshot already in a third of the cases."""
    base: Json | None = dict(made.metadata) if made.metadata["snapshots"] else None
    if made.chance.random() < 0.33:
        first = made.draft(some_kind(made)).seal()
        first.publish()
        first.settle()
    return base


def broken(guard: Guard, made: Made, kind: str, name: str) -> bool:
    """Whether a commit of the kind can have this fault; it is refused then."""
    one = WRONG[name]
    made = made.copy()
    base = begun(made)
    draft = made.draft(kind if made.data else "append")
    if one.opened(draft) is False:
        return False
    draft.seal()
    if one.sealed(draft) is False:
        return False
    _, new = draft.publish()
    if one.published(draft, new) is False:
        return False
    refused(guard, base, new, one.rule)
    return True


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_that_engines_were_tried_with(fault: str, tmp_path: Path, guard: Guard) -> None:
    """Each in a delta of a version 3 table with vectors that is right otherwise."""
    made = Made(tmp_path, 3, "identity", random.Random(fault))
    for _ in range(2):
        passes(guard, made.draft("several"))
    passes(guard, made.draft("delta"))
    for kind in ("delta", "manifests", "rewrite", "append") * 4:
        if broken(guard, made, kind, fault):
            break
    else:
        pytest.fail("nothing could be broken so")
    passes(guard, made.draft("delta"))


@pytest.mark.parametrize("part", range(PARTS))
def test_every_class_of_faults_is_met_and_refused(part: int, tmp_path: Path, guard: Guard) -> None:
    """Histories of all versions and layouts; the last commit is right, and once more with one thing wrong."""
    met: dict[str, int] = dict.fromkeys(WRONG, 0)
    valid = 0
    for seed in range(part, CASES, PARTS):
        chance = random.Random(seed)
        version, spec = chance.choice([1, 2, 3, 3]), chance.choice(list(SPECS))
        made = story(tmp_path / str(seed), guard, chance, version, spec, chance.randrange(1, 4))
        valid += len(made.metadata["snapshots"])
        kind = some_kind(made)
        # What was met least comes first.
        names = sorted(WRONG, key=lambda name: (met[name], chance.random()))
        found = next(name for name in names if broken(guard, made, kind, name))
        met[found] += 1
        base = begun(made)
        _, new = made.draft(some_kind(made)).seal().publish()
        guard.check(base, new)
        valid += len(new["snapshots"]) - len(base["snapshots"] if base else ())
    assert min(met.values()) >= 1, [name for name, count in met.items() if not count]
    assert sum(met.values()) == CASES // PARTS
    assert valid > 2 * CASES // PARTS


def test_upgrades_between_commits(tmp_path: Path, guard: Guard) -> None:
    """Kept manifests of older versions get their row ids in the first commit of version 3, whatever that is."""
    for seed, kind in enumerate(("append", "delta", "overwrite", "delete", "rewrite", "manifests")):
        made = Made(tmp_path / kind, 1, "both", random.Random(seed))
        for _ in range(3):
            passes(guard, made.draft("append"))
        for version in (2, 3):
            made.upgrade(version)
            passes(guard, made.draft(kind))
            passes(guard, made.draft("delta" if made.data else "append"))
        assert all(live.file["first_row_id"] is not None for live in made.data.values())


def test_ids_of_an_upgrade_count(tmp_path: Path, guard: Guard) -> None:
    made = Made(tmp_path, 2, "none", random.Random(0))
    passes(guard, made.draft("append"))
    made.upgrade(3)
    draft = made.draft("append").seal()
    draft.listed[-1]["first_row_id"] = None
    refused(guard, *draft.publish(), "a manifest of data has a first_row_id")


def test_a_table_with_a_past(tmp_path: Path, guard: Guard) -> None:
    """Registered: what it lists is looked at, also where the snapshots before have expired."""
    made = Made(tmp_path, 2, "identity", random.Random(1))
    for kind in ("append", "append", "delta", "manifests", "append", "overwrite"):
        passes(guard, made.draft(kind))
    whole = made.metadata
    guard.check(None, whole)
    expired = {**whole, "snapshots": whole["snapshots"][3:]}
    guard.check(None, expired)
    path = next(iter(made.data))
    Path(path).unlink()
    assert path in refused(guard, None, expired, "a file that it names is not there").why


def test_a_snapshot_that_came_and_went_in_one_commit(tmp_path: Path, guard: Guard) -> None:
    made = Made(tmp_path, 3, "identity", random.Random(2))
    passes(guard, made.draft("append"))
    base = dict(made.metadata)
    for _ in range(3):
        draft = made.draft("append").seal()
        _, new = draft.publish()
        draft.settle()
    guard.check(base, {**new, "snapshots": [new["snapshots"][0], *new["snapshots"][2:]]})


def test_a_table_that_is_replaced(tmp_path: Path, guard: Guard) -> None:
    made = Made(tmp_path, 3, "identity", random.Random(3))
    passes(guard, made.draft("append"))
    made.listed, made.data, made.deletes = [], {}, {}
    main = made.metadata["refs"].pop("main")
    draft = made.draft("append")
    assert "parent-snapshot-id" not in draft.snapshot
    passes(guard, draft)
    assert made.metadata["refs"]["main"] != main


def test_next_row_id_of_the_table(tmp_path: Path, guard: Guard) -> None:
    made = Made(tmp_path, 3, "none", random.Random(3))
    base, new = made.draft("append").seal().publish()
    new["next-row-id"] -= 1
    refused(guard, base, new, "next-row-id is behind all row ids")


def test_metadata_that_is_none_is_refused(tmp_path: Path, guard: Guard) -> None:
    made = Made(tmp_path, 3, "none", random.Random(3))
    base, new = made.draft("append").seal().publish()
    refused(guard, base, {**new, "snapshots": [{**new["snapshots"][0], "timestamp-ms": "now"}]}, "the metadata has the form of the spec")
    refused(guard, base, {**new, "snapshots": [{"snapshot-id": -5}]}, "a snapshot id is a positive number")
    guard.check(new, new)


def test_a_storage_that_does_not_answer_is_no_refusal(tmp_path: Path, guard: Guard, storage: Watched) -> None:
    made = Made(tmp_path, 3, "none", random.Random(3))
    base, new = made.draft("append").seal().publish()
    storage.fails = True
    with pytest.raises(Unreachable):
        guard.check(base, new)
    storage.fails = False
    guard.check(base, new)


def test_other_formats_and_long_footers(tmp_path: Path, guard: Guard) -> None:
    made = Made(tmp_path, 2, "none", random.Random(4))
    for kind, ending in (("ORC", b"..ORC\x05"), ("AVRO", b"Obj\x01....")):
        file = made.data_file()
        made.put(file["file_path"], bytes(100) + ending)
        draft = made.draft("append")
        draft.add({**file, "file_format": kind, "file_size_in_bytes": 100 + len(ending)})
        passes(guard, draft)
        draft = made.copy().draft("append")
        draft.add({**file, "file_path": file["file_path"], "file_format": kind, "file_size_in_bytes": 100})
        refused(guard, *draft.seal().publish(), "a new file was not live before")
        again = made.data_file()
        draft = made.copy().draft("append")
        draft.add({**again, "file_format": kind, "file_size_in_bytes": 7})
        refused(guard, *draft.seal().publish(), "a file is as long as its entry says")
    file = made.data_file()
    out = pa.BufferOutputStream()
    wide = pa.table({f"a column whose name is quite long {number}": [1, 2, 3] for number in range(2_000)})
    pq.write_table(wide, out)
    data = out.getvalue().to_pybytes()
    assert int.from_bytes(data[-8:-4], "little") > added_files.TAIL
    Path(file["file_path"]).write_bytes(data)
    draft = made.draft("append")
    draft.add({**file, "record_count": 3, "file_size_in_bytes": len(data)})
    passes(guard, draft)


def test_a_budget_too_small_forgets_and_checks_all_the_same(tmp_path: Path, storage: Watched) -> None:
    guard = Guard(storage, 3_000)
    made = story(tmp_path, guard, random.Random(5), 3, "identity", 12)
    assert guard._index._bytes <= 3_000
    broken(guard, made, "delta", "two vectors for one data file")
    guard.close()


def test_many_at_once(tmp_path: Path, guard: Guard) -> None:
    def one(number: int) -> int:
        made = story(tmp_path / str(number), guard, random.Random(number), 3, "both", 6)
        return len(made.metadata["snapshots"])

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(one, range(6))) == 36


@pytest.mark.parametrize("version", [2, 3])
def test_what_the_lake_writes(version: int) -> None:
    """Its own commits of every kind, in every layout."""
    seen = 0
    for number, one in enumerate([*LAYOUTS, layout("truncate(2, country);hour(at)"), layout("month(at);bucket(2, country)")]):
        chance = random.Random(number)
        mirror = Mirror(SHAPE, layout=Layout(one.partition, one.sort, version))
        guard = Guard(mirror.storage)
        commit = mirror.catalog.commit

        def checked(changes: Any, commit: Any = commit, guard: Guard = guard, mirror: Mirror = mirror) -> Any:
            base = mirror.loaded().metadata
            done = commit(changes)
            guard.check(base, done[0].metadata)
            return done

        mirror.catalog.commit = checked  # type: ignore[method-assign]
        for step in range(12):
            put = [row(chance.randrange(60), chance) for _ in range(chance.randrange(1, 20))]
            put = list({values[0]: values for values in put}.values())
            gone = [key for key in mirror.model if chance.random() < 0.2 and key not in {values[0] for values in put}]
            mirror.commit(put, [] if step == 9 else gone, truncate=step == 9)
            if step % 4 == 3:
                mirror.compact()
            if step == 6:
                mirror.expire([snapshot["snapshot-id"] for snapshot in mirror.loaded().metadata["snapshots"][:3]])
        mirror.check()
        guard.check(None, mirror.loaded().metadata)
        seen += mirror.loaded().metadata["last-sequence-number"]
        guard.close()
    assert seen > 80


def test_manifests_in_the_snapshot_itself(tmp_path: Path, guard: Guard) -> None:
    """Version 1 could do without a manifest list."""
    made = Made(tmp_path, 1, "identity", random.Random(6))
    for _ in range(2):
        passes(guard, made.draft("append"))
    (snapshot,) = made.metadata["snapshots"][1:]
    inline = {key: value for key, value in snapshot.items() if key != "manifest-list"}
    inline["manifests"] = [record["manifest_path"] for record in made.listed]
    made.metadata["snapshots"] = [inline]
    for kind in ("append", "overwrite", "manifests"):
        assert not broken(guard, made.copy(), kind, "an existing entry moves to another partition") or kind != "append"
        draft = made.draft(kind).seal()
        base, new = draft.publish()
        guard.check(base, new)
        draft.settle()


def test_damaged_files_are_refused_or_read(tmp_path: Path, guard: Guard) -> None:
    """Never another error; what a flipped bit inside a value says cannot always be seen."""
    made = story(tmp_path, guard, random.Random(8), 3, "both", 5)
    chance = random.Random(9)
    draft = made.draft("delta").seal()
    base, new = draft.publish()
    places = [draft.snapshot["manifest-list"], *(written.path for written in draft.written)]
    places += [entry["data_file"]["file_path"] for written in draft.written for entry in written.entries if entry["status"] == ADDED]
    codes: list[str] = []
    for number in range(600):
        path = Path(places[number % len(places)])
        whole = path.read_bytes()
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged if number % 7 else damaged[: chance.randrange(len(damaged))])
        try:
            guard.check(base, new)
        except Refused as error:
            codes.append(error.code)
        path.write_bytes(whole)
    assert set(codes) == {"COMMIT_BREAKS_TABLE"}
    assert len(codes) > 300
    guard.check(base, new)
