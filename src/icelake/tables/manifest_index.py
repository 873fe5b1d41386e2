"""What manifests hold, remembered: which files live in each, in which partition, under which numbers and row ids.

Promises that a manifest is read once as long as its memory is in the budget: manifests and manifest lists never change, so nothing
goes stale. Of a file that lives there are left 44 bytes (a delete has 12 more) and its partition, once a manifest; it is told by a
64-bit hash of its path, which is of this process alone. What is least recently asked for is forgotten first. Thread-safe.
Reads manifests of any writer and format version. Fails with Corrupt for what does not decode, and as the storage does.
"""

import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from icelake.errors import Unreachable
from icelake.ports import Json, Storage
from icelake.tables import transforms
from icelake.tables.layout import Partition, bound_value, comparable
from icelake.tables.manifests import DATA, DELETED, Record, corrupt, read_manifest, read_manifest_list

MAX_FILE: Final = 1 << 30
"""Bytes of the largest manifest or manifest list that is read. It may not inflate to more either."""
MAX_MANIFESTS: Final = 1_000_000
"""Manifests of one snapshot."""
AHEAD: Final = 16
"""Files read before they are wanted."""
NO_ROW_ID: Final = -1
_RECORD_BYTES = 1_500
"""About what a record of a manifest list takes in memory."""
_TRANSFORM = re.compile(r"([a-z]+)(?:\[(\d+)\])?")

Keys = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
_T = TypeVar("_T")
_R = TypeVar("_R")

_BLANK: Record = dict.fromkeys(
    (
        "added_snapshot_id",
        *(f"{status}_{what}_count" for what in ("files", "rows") for status in ("added", "existing", "deleted")),
        *("partitions", "key_metadata", "first_row_id"),
    )
) | {"content": DATA, "sequence_number": 0, "min_sequence_number": 0}


# --------------------------------------------------------------------------------------------------------------- partitions


@dataclass(frozen=True, slots=True)
class SpecField:
    """A field of a partition spec. ``kind``: the Iceberg type of its values, None if it can't be told; ``source``: of its column's."""

    field_id: int
    name: str
    source_id: int | None
    source: str | None
    transform: str
    width: int | None
    kind: str | None


@dataclass(frozen=True, slots=True)
class Spec:
    spec_id: int
    fields: tuple[SpecField, ...]

    def partition(self, file: Record) -> Partition:
        """Of a data_file record, as values that can be compared. Raises KeyError if it lacks a field of the spec."""
        found = file["partition"]
        return tuple(plain(found[str(one.field_id)] if str(one.field_id) in found else found[one.name], one.kind) for one in self.fields)

    def may_hold(self, listed: Record, partition: Partition) -> bool:
        """Whether a manifest of this spec may hold files of the partition, by what its list says of it (spec, ``field_summary``)."""
        summaries = listed["partitions"]
        if not summaries or len(summaries) != len(self.fields):
            return True
        return all(covers(one, summary, value) for one, summary, value in zip(self.fields, summaries, partition, strict=True))


def covers(field: SpecField, summary: Record, value: Any) -> bool:
    """Whether a summary of partitions leaves room for the value."""
    if value is None:
        return bool(summary["contains_null"])
    if value == NAN:
        return summary.get("contains_nan") is not False
    lower, upper = summary.get("lower_bound"), summary.get("upper_bound")
    if lower is None or upper is None:
        return False
    if field.kind is None:
        return True
    try:
        return bool(bound_value(lower, field.kind) <= value <= bound_value(upper, field.kind))
    except (struct.error, TypeError):
        # Written before the column's type was changed.
        return True


NAN: Final = "NaN"
"""What NaN is among partition values, so that it equals itself. Texts are bytes there."""


def plain(value: Any, kind: str | None) -> Any:
    """A partition value as Avro stores it, as something that can be compared."""
    if value is None or kind is None:
        return value
    if isinstance(value, float):
        return NAN if value != value else value
    return comparable(value, kind)


def specs_of(metadata: Json) -> dict[int, Spec]:
    """The partition specs of a table by their ids."""
    schemas = metadata.get("schemas") or [metadata["schema"]]
    # Where a column's type was widened, the current one counts.
    schemas = sorted(schemas, key=lambda one: bool(one.get("schema-id", 0) == metadata.get("current-schema-id", 0)))
    kinds = {ident: kind for schema in schemas for ident, kind in columns(schema)}
    return {spec["spec-id"]: _spec(spec, kinds) for spec in metadata["partition-specs"]}


def columns(kind: Any) -> Iterator[tuple[int, Any]]:
    """(id, type) of every field of a schema, nested ones too."""
    if not isinstance(kind, dict):
        return
    match kind.get("type"):
        case "struct":
            parts = [(field["id"], field["type"]) for field in kind["fields"]]
        case "list":
            parts = [(kind["element-id"], kind["element"])]
        case "map":
            parts = [(kind["key-id"], kind["key"]), (kind["value-id"], kind["value"])]
        case _:
            return
    for ident, part in parts:
        yield ident, part
        yield from columns(part)


def _spec(spec: Json, kinds: Mapping[int, Any]) -> Spec:
    fields = []
    for number, field in enumerate(spec["fields"]):
        match = _TRANSFORM.fullmatch(field["transform"])
        transform, width = (match[1], int(match[2]) if match[2] else None) if match else (field["transform"], None)
        source = kinds.get(field.get("source-id"))
        kind: str | None = source if isinstance(source, str) else None
        if transform not in ("identity", "truncate", "bucket", "year", "month", "day", "hour"):
            result = None
        else:
            result = kind and transforms.result_type(transform, kind)
        # Version 1 did not write the ids of partition fields.
        ident = field.get("field-id", 1000 + number)
        fields.append(SpecField(ident, field["name"], field.get("source-id"), kind, transform, width, result))
    return Spec(spec["spec-id"], tuple(fields))


# ------------------------------------------------------------------------------------------------------- what is remembered


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The files that live in a manifest, by ``keys``, which ascend; every array has one entry a file."""

    keys: Keys
    """``path_key``."""
    sequence: Numbers
    """Data sequence number; -1: the manifest's."""
    file_sequence: Numbers
    rows: Numbers
    row_id: Numbers
    """First row id; -1 - n: n after the manifest's (spec, First Row ID Inheritance)."""
    code: npt.NDArray[np.int32]
    """Place in ``partitions``."""
    partitions: tuple[Partition, ...]
    about: Keys
    """Ascending: of deletion vectors, the key of the data file each is about; of other files there is none."""
    about_at: npt.NDArray[np.int32]
    """The place of each of these vectors in the other arrays."""
    gone: Keys
    """Ascending: of the files whose entries say that they were deleted."""

    @property
    def nbytes(self) -> int:
        arrays = (self.keys, self.sequence, self.file_sequence, self.rows, self.row_id, self.code, self.about, self.about_at, self.gone)
        return sum(array.nbytes for array in arrays) + 200 * len(self.partitions) + 1_000

    def find(self, keys: Keys) -> Iterator[tuple[int, int]]:
        """(key, place) of those files that live here."""
        yield from _found(self.keys, keys)

    def vectors(self, keys: Keys) -> Iterator[tuple[int, int]]:
        """(key of a data file, place of a vector about it)."""
        if len(self.about):
            for key, at in _found(self.about, keys):
                yield key, int(self.about_at[at])

    def sequences(self, listed: Record) -> Numbers:
        return np.where(self.sequence < 0, listed["sequence_number"], self.sequence)

    def file_sequences(self, listed: Record) -> Numbers:
        return np.where(self.file_sequence < 0, listed["sequence_number"], self.file_sequence)

    def row_ids(self, listed: Record) -> Numbers:
        """NO_ROW_ID where there is none."""
        first = listed["first_row_id"]
        inherited = np.full(len(self.keys), NO_ROW_ID) if first is None else first - 1 - self.row_id
        return np.where(self.row_id < 0, inherited, self.row_id)


def _found(sorted_keys: Keys, keys: Keys) -> Iterator[tuple[int, int]]:
    if len(keys) <= _FEW:
        # Most commits add a file or two, and ask this of every manifest that is kept.
        for key in keys:
            one = int(sorted_keys.searchsorted(key))
            if one < len(sorted_keys) and sorted_keys[one] == key:
                yield int(key), one
        return
    at = np.searchsorted(sorted_keys, keys)
    at[at == len(sorted_keys)] = 0
    if len(sorted_keys):
        for number in np.flatnonzero(sorted_keys[at] == keys).tolist():
            yield int(keys[number]), int(at[number])


def path_key(path: str, offset: int | None = None) -> int:
    """The key of a file; ``offset``: of a vector in a Puffin file, which may hold several. Means nothing in another process."""
    return hash(path if offset is None else (path, offset)) & 0xFFFF_FFFF_FFFF_FFFF


def key_of(file: Record) -> int:
    """The key of a data_file record."""
    return path_key(file["file_path"], file.get("content_offset") if is_vector(file) else None)


def is_vector(file: Record) -> bool:
    return bool(file.get("content")) and file["file_format"].upper() == "PUFFIN"


_FEW = 8
"""Keys that are faster looked up one by one."""


class Holding:
    """Makes a ``Held`` of a manifest's entries, in their order."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int, int, int]] = []
        self._codes: dict[Partition, int] = {}
        self._gone: list[int] = []
        self._next = 0

    def add(self, entry: Record, partition: Partition) -> int:
        """The file's key."""
        file = entry["data_file"]
        key = key_of(file)
        if entry["status"] == DELETED:
            self._gone.append(key)
            return key
        rows, row_id = file["record_count"], file.get("first_row_id")
        about = 0
        if file.get("content"):
            row_id = NO_ROW_ID
            if is_vector(file) and file.get("referenced_data_file") is not None:
                about = path_key(file["referenced_data_file"])
        elif row_id is None:
            row_id = -1 - self._next
            self._next += rows
        sequence, file_sequence = entry.get("sequence_number"), entry.get("file_sequence_number")
        code = self._codes.setdefault(partition, len(self._codes))
        self._rows.append(
            (key, -1 if sequence is None else sequence, -1 if file_sequence is None else file_sequence, rows, row_id, code, about)
        )
        return key

    def done(self) -> Held:
        # Column by column, because keys do not fit into the type of the numbers.
        parts = list(zip(*self._rows, strict=True)) or [()] * 7
        keys = np.array(parts[0], np.uint64)
        order = np.argsort(keys, kind="stable")
        sequence, file_sequence, rows, row_id = (np.array(part, np.int64)[order] for part in parts[1:5])
        code = np.array(parts[5], np.int32)[order]
        about = np.array(parts[6], np.uint64)[order]
        there = np.flatnonzero(about)
        there = there[np.argsort(about[there], kind="stable")]
        gone = np.array(sorted(self._gone), np.uint64)
        at = there.astype(np.int32)
        return Held(keys[order], sequence, file_sequence, rows, row_id, code, tuple(self._codes), about[there], at, gone)


class Joined:
    """The files that live in some manifests together, by their keys, which ascend."""

    def __init__(self, held: Sequence[tuple[Record, Held]]) -> None:
        def joined(parts: Sequence[Any], kind: Any) -> Any:
            return np.concatenate(parts) if parts else np.empty(0, kind)

        keys = joined([one.keys for _, one in held], np.uint64)
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        self.sequence = joined([one.sequences(record) for record, one in held], np.int64)[order]
        self.file_sequence = joined([one.file_sequences(record) for record, one in held], np.int64)[order]
        self.rows = joined([one.rows for _, one in held], np.int64)[order]
        self.gone = joined([one.gone for _, one in held], np.uint64)
        self.row_id = joined([one.row_ids(record) for record, one in held], np.int64)[order]
        self._code = joined([one.code for _, one in held], np.int32)[order]
        self._which = np.repeat(np.arange(len(held)), [len(one.keys) for _, one in held])[order]
        self._held = held

    def partition(self, place: int) -> Partition:
        """(spec id, partition values ...)."""
        record, held = self._held[self._which[place]]
        return (record["partition_spec_id"], *held.partitions[self._code[place]])

    def places(self, keys: Keys) -> Any:
        """Where each of them is, -1 for those that are not there."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.searchsorted(self.keys, keys)
        at[at == len(self.keys)] = 0
        return np.where(self.keys[at] == keys, at, -1)


def end_of(storage: Storage, location: str, length: int) -> tuple[bytes, int]:
    """(the last ``length`` bytes of a file, or all if it has fewer; its size), in one request to S3 if it is not much."""
    with storage.open(location) as file:
        try:
            size = file.size()
            file.seek(max(0, size - length))
            return file.read(min(size, length)), size
        except OSError as error:
            raise Unreachable("STORAGE_UNREACHABLE", f"cannot read {location}", str(error), "it can be tried again") from error


class ManifestIndex:
    """What was read of manifests and manifest lists, within ``budget`` bytes. ``pool`` reads what is missing."""

    def __init__(self, storage: Storage, budget: int, pool: Executor) -> None:
        self._storage = storage
        self._budget = budget
        self._pool = pool
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    # ------------------------------------------------------------------------------------------------------ memory

    def _get(self, path: str) -> Any:
        with self._lock:
            found = self._kept.get(path)
            if found is None:
                return None
            self._kept.move_to_end(path)
            return found[0]

    def _keep(self, path: str, thing: Any, size: int) -> None:
        with self._lock:
            _, before = self._kept.pop(path, (None, 0))
            self._bytes += size - before
            self._kept[path] = thing, size
            while self._bytes > self._budget:
                _, (_, gone) = self._kept.popitem(last=False)
                self._bytes -= gone

    def keep(self, path: str, held: Held) -> None:
        """Remember a manifest."""
        self._keep(path, held, held.nbytes)

    def keep_list(self, location: str, records: Sequence[Record]) -> None:
        """Remember a manifest list."""
        self._keep(location, records, _RECORD_BYTES * len(records))

    # ----------------------------------------------------------------------------------------------------- reading

    def fetch(self, location: str) -> bytes:
        """A whole file, of ``MAX_FILE`` bytes at most."""
        data, size = end_of(self._storage, location, MAX_FILE)
        if size > MAX_FILE:
            raise corrupt(location, f"it has {size} bytes, more than the {MAX_FILE} that are read")
        return data

    def ahead(self, function: Callable[[_T], _R], things: Iterable[_T]) -> Iterator[tuple[_T, _R]]:
        """Each thing with the function of it, in order, some calls ahead at once."""
        waiting: list[Any] = []
        try:
            for thing in things:
                waiting.append((thing, self._pool.submit(function, thing)))
                if len(waiting) >= AHEAD:
                    first, future = waiting.pop(0)
                    yield first, future.result()
            while waiting:
                first, future = waiting.pop(0)
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

    def read_list(self, location: str) -> tuple[dict[str, bytes], list[Record]]:
        """(header, records) of a manifest list, as it is now; every field of the spec is there."""
        header, found = read_manifest_list(self.fetch(location), location)
        if len(found) > MAX_MANIFESTS:
            raise corrupt(location, f"it lists {len(found)} manifests, more than {MAX_MANIFESTS}")
        return header, [_BLANK | {name: value for name, value in record.items() if value is not None} for record in found]

    def listed(self, snapshot: Json) -> Sequence[Record]:
        """The records of a snapshot's manifest list. Version 1 may name the manifests in the snapshot instead."""
        location = snapshot.get("manifest-list")
        if location is None:
            return [record for _, record in self.ahead(self._inline, snapshot.get("manifests", ()))]
        known: Sequence[Record] | None = self._get(location)
        if known is None:
            _, known = self.read_list(location)
            self.keep_list(location, known)
        return known

    def _inline(self, path: str) -> Record:
        data = self.fetch(path)
        header, _ = read_manifest(data, path)
        return _BLANK | {"manifest_path": path, "manifest_length": len(data), "partition_spec_id": int(header["partition-spec-id"])}

    def held(self, records: Sequence[Record], specs: Mapping[int, Spec], unread: int | None = None) -> Iterator[tuple[Record, Held]]:
        """What the manifests hold: first those that are remembered, then the others, ``unread`` of them at most, the newest first."""
        missing = []
        for record in records:
            known: Held | None = self._get(record["manifest_path"])
            if known is not None:
                yield record, known
            else:
                missing.append(record)
        missing.sort(key=lambda record: -record["sequence_number"])

        for record, data in self.ahead(lambda record: self.fetch(record["manifest_path"]), missing[:unread]):
            path = record["manifest_path"]
            spec, holding = specs[record["partition_spec_id"]], Holding()
            for entry in read_manifest(data, path)[1]:
                try:
                    holding.add(entry, spec.partition(entry["data_file"]))
                except KeyError as error:
                    raise corrupt(path, f"{entry['data_file']['file_path']} has no partition field {error}") from error
            held = holding.done()
            self.keep(path, held)
            yield record, held


def holding_manifests(
    records: Iterable[Record], content: int, specs: Mapping[int, Spec], partitions: Iterable[tuple[int, Partition]]
) -> list[Record]:
    """Those of the manifests that may hold files of one of the partitions (spec id, partition)."""
    wanted: dict[int, set[Partition]] = {}
    for spec_id, partition in partitions:
        wanted.setdefault(spec_id, set()).add(partition)
    found = []
    for record in records:
        spec_id = record["partition_spec_id"]
        if record["content"] == content and any(specs[spec_id].may_hold(record, one) for one in wanted.get(spec_id, ())):
            found.append(record)
    return found
