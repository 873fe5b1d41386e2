"""What a file must be that a commit adds: there, as long as the commit says, with the rows it says, in the partition it says.

Promises one read a file: the tail of a data file (its footer), the whole of a Puffin file, however many vectors it holds. Fails with
Refused COMMIT_BREAKS_TABLE, which names the rule and the file; Unreachable passes through.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from icelake.errors import Corrupt, ProjectError, Refused, ValueOutOfContract
from icelake.ports import Storage
from icelake.tables import deletion_vectors, transforms
from icelake.tables.layout import Partition, bound_value, raw_values, source_array
from icelake.tables.manifest_index import NAN, Spec, SpecField, end_of, plain
from icelake.tables.manifests import Record

TAIL: Final = 64 << 10
"""Bytes read of the end of a data file; more only if its footer is longer."""
MAX_FOOTER: Final = 256 << 20
MAX_PUFFIN: Final = 256 << 20
"""Bytes of the largest Puffin file with deletion vectors."""

_WHOLE = {"int": 32, "date": 32, "long": 64, "time": 64, "timestamp": 64, "timestamptz": 64, "timestamp_ns": 64, "timestamptz_ns": 64}
_MONOTONE = frozenset({"identity", "truncate", "year", "month", "day", "hour"})
"""Transforms that keep the order, so that the bounds of a column bound its partitions."""
_TRUNCATED = frozenset({"int", "long", "string", "binary"})
_FORMATS = frozenset({"PARQUET", "ORC", "AVRO"})


def broken(rule: str, where: str, detail: object = "") -> Refused:
    """A commit that breaks a rule. ``where``: the file it is about, or the snapshot."""
    return Refused(
        "COMMIT_BREAKS_TABLE",
        f"the commit would break the table: {rule}",
        f"{where}: {detail}" if detail != "" else where,
        "nothing was committed, the table is as it was; the writer that sent this has a defect: write with another version of it",
    )


def require(holds: bool, rule: str, where: str, detail: object = "") -> None:
    if not holds:
        raise broken(rule, where, detail)


@contextmanager
def readable(where: str) -> Iterator[None]:
    """What is not there, or does not decode, is the commit's fault."""
    try:
        yield
    except Corrupt as error:
        rule = {"FILE_MISSING": "a file that it names is not there", "FILE_SHORT": "a file is not as long as it says"}
        raise broken(rule.get(error.code, "a file does not decode"), where, f"{error.what} ({error.why})") from error
    except ProjectError as error:
        raise broken("a file is not below the table's location", where, error.why) from error


@dataclass(frozen=True, slots=True)
class Added:
    """A new file, as its entry describes it. ``sequence``: its data sequence number, inherited or not."""

    key: int
    path: str
    content: int
    file_format: str
    rows: int
    size: int
    spec_id: int
    partition: Partition
    sequence: int
    about: str | None
    """The data file that a deletion vector is about."""
    offset: int | None
    length: int | None


def check_tail(storage: Storage, file: Added) -> None:
    """That a data file, or one of deletes, is there and has the size and (Parquet) the rows its entry says."""
    path, size = file.path, file.size
    require(file.file_format in _FORMATS, "a file's format is one of the spec's", path, file.file_format)
    with readable(path):
        tail, found = end_of(storage, path, TAIL)
    require(found == size, "a file is as long as its entry says", path, f"it has {found} bytes, not {size}")
    if file.file_format != "PARQUET":
        return
    magic, length = tail[-4:], int.from_bytes(tail[-8:-4], "little")
    require(magic in (b"PAR1", b"PARE") and length + 12 <= size, "a file is readable", path, "no Parquet file ends so")
    require(length <= MAX_FOOTER, "a file is readable", path, f"its footer has {length} bytes; at most {MAX_FOOTER} are read")
    if magic == b"PARE":
        return  # An encrypted footer is for who has the key.
    with readable(path):
        footer = tail[-8 - length : -8] if length + 8 <= len(tail) else storage.read(path, size - 8 - length, length)
    try:
        rows = pq.read_metadata(pa.BufferReader(b"".join((b"PAR1", footer, tail[-8:])))).num_rows
    except (pa.ArrowException, OSError) as error:
        raise broken("a file is readable", path, error) from error
    require(rows == file.rows, "record_count is the file's", path, f"it has {rows} rows, its entry says {file.rows}")


def check_puffin(storage: Storage, vectors: Sequence[Added], rows: Sequence[int]) -> None:
    """That the vectors, all of one Puffin file, are there and are what their entries say; ``rows``: of the data file of each."""
    path, size = vectors[0].path, vectors[0].size
    require(all(one.size == size for one in vectors), "a file is as long as its entry says", path, "two entries differ")
    with readable(path):
        data, found = end_of(storage, path, MAX_PUFFIN)
        require(found == size, "a file is as long as its entry says", path, f"it has {found} bytes, not {size}")
        require(size <= MAX_PUFFIN, "a file is readable", path, f"it has {size} bytes; of deletion vectors at most {MAX_PUFFIN} are read")
        magic = deletion_vectors.PUFFIN_MAGIC
        require(data[:4] == magic == data[-4:], "a file is readable", path, "no Puffin file ends so")
        compressed = data[-8:-4] != bytes(4)
        blobs = {} if compressed else {blob.get("offset"): blob for blob in deletion_vectors.puffin_blobs(data, path)}
    for one, count in zip(vectors, rows, strict=True):
        start, length = one.offset, one.length
        if start is None or length is None or not 4 <= start <= start + length <= size:
            raise broken("a deletion vector is inside its Puffin file", path, f"{length} bytes at {start} of {size}")
        try:
            bitmap = deletion_vectors.decode(data[start : start + length], one.rows, path)
        except Corrupt as error:
            counted = error.why.startswith("it holds") and "entry says" in error.why
            rule = "record_count is the vector's cardinality" if counted else "a deletion vector decodes"
            raise broken(rule, path, f"{error.why}, about {one.about}") from error
        require(bitmap.max() < count, "a vector's positions are in its data file", path, f"{bitmap.max()}; {one.about} has {count} rows")
        if not compressed:
            # PyIceberg finds vectors by the footer alone.
            blob = blobs.get(start, {})
            there = (blob.get("length"), (blob.get("properties") or {}).get("referenced-data-file"))
            require(there == (length, one.about), "the Puffin's footer describes the vector", path, f"at {start} it has {there}")


# --------------------------------------------------------------------------------------------------------------- partitions


def check_partition(spec: Spec, file: Record, where: str) -> Partition:
    """The partition of a file. It has the spec's fields and nothing else, with values of their types."""
    found = file["partition"]
    names = [str(one.field_id) if str(one.field_id) in found else one.name for one in spec.fields]
    require(found.keys() == set(names), "a partition has the fields of its spec", where, f"{sorted(found)} instead of {sorted(names)}")
    for name, one in zip(names, spec.fields, strict=True):
        value = found[name]
        if value is not None and one.kind is not None:
            require(
                _fits(value, one.kind), "a partition value has the type of its field", where, f"{one.name} is {value!r}, not {one.kind}"
            )
            if one.transform == "bucket":
                require(0 <= value < (one.width or 0), "a bucket is one of those there are", where, f"{one.name} is {value}")
    return spec.partition(file)


def _fits(value: Any, kind: str | None) -> bool:
    if kind is None:
        return isinstance(value, bool | int | float | str | bytes)
    if kind in _WHOLE:
        return type(value) is int and -(1 << _WHOLE[kind] - 1) <= value < 1 << _WHOLE[kind] - 1
    match kind:
        case "boolean":
            return isinstance(value, bool)
        case "float" | "double":
            return isinstance(value, float)
        case "string":
            return isinstance(value, str)
        case "uuid":
            return isinstance(value, bytes) and len(value) == 16
    return isinstance(value, bytes)


class Bounds:
    """The bounds of the partitioned columns of a manifest's new data files, held against their partitions all at once."""

    def __init__(self, spec: Spec) -> None:
        self._fields = [(at, one) for at, one in enumerate(spec.fields) if _decidable(one)]
        self._seen: dict[int, list[tuple[str, Any, Any, Any]]] = {at: [] for at, _ in self._fields}

    def add(self, file: Record, partition: Partition) -> None:
        if not self._fields:
            return
        lowers, uppers = ({pair["key"]: pair["value"] for pair in file.get(name) or ()} for name in ("lower_bounds", "upper_bounds"))
        for at, one in self._fields:
            assert one.source is not None
            lower, upper = lowers.get(one.source_id), uppers.get(one.source_id)
            if lower is None or upper is None:
                continue
            try:
                low, high = bound_value(lower, one.source), bound_value(upper, one.source)
            except struct.error:
                continue  # of before the column's type was changed
            path, value = file["file_path"], partition[at]
            require(value is not None, "a partition agrees with the column's bounds", path, f"{one.name} is null, and it has values")
            if value != NAN:
                self._seen[at].append((path, value, low, high))

    def check(self) -> None:
        for at, one in self._fields:
            if self._seen[at]:
                paths, values, lows, highs = zip(*self._seen[at], strict=True)
                try:
                    between = zip(paths, values, _transformed(one, lows), _transformed(one, highs), strict=True)
                except (ValueOutOfContract, UnicodeDecodeError):
                    continue  # bounds that are cut in a character, or have no partition
                for path, value, low, high in between:
                    told = f"{one.name} is {value!r}, its rows are from {low!r} to {high!r}"
                    require(low <= value <= high, "a partition agrees with the column's bounds", path, told)


def _decidable(field: SpecField) -> bool:
    known = field.transform in _MONOTONE and field.source is not None and not field.source.startswith("fixed")
    return known and (field.transform != "truncate" or field.source in _TRUNCATED) and not str(field.source).endswith("_ns")


def _transformed(field: SpecField, values: Sequence[Any]) -> Sequence[Any]:
    assert field.source is not None
    assert field.kind is not None
    if field.transform == "identity":
        return values
    found = transforms.apply(field.transform, field.width, source_array(values, field.source))
    return [plain(value, field.kind) for value in raw_values(found, field.kind)]
