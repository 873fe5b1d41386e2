"""Data files: rows as Parquet with the column metrics Iceberg plans by, and rows back from them.

Promises field ids on every field, nested ones too, Parquet types as the spec maps them (Iceberg spec, Appendix A, Parquet), and
bounds that hold (Appendix D, single-value serialization): strings and binaries cut to 16 with the upper bound rounded up, NaN never
in a bound, zeros bounded by -0.0 and 0.0. Counts and bounds are those of columns and of struct fields; what is inside lists and maps
has none, as Iceberg's own writer does it, for a row has many such values. Columns are found by field id, so a rename does not
matter, and one that a file is too old for reads as its default. Reading raises Corrupt when a file is not the one its manifest entry
describes; writing raises Corrupt on a null where the schema has none.
"""

import decimal
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from icelake.errors import Corrupt
from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType, parse
from icelake.ports import Storage
from icelake.tables.manifests import DATA, Record
from icelake.tables.schema import field_id

TARGET_BYTES = 128 << 20
"""Arrow bytes of one data file, about."""
TARGET_ROWS = 4 << 20
_GROUP_BYTES = 16 << 20
"""Arrow bytes of one row group, about: small enough to fetch a few wide values without reading much else."""
_GROUP_ROWS = 1 << 17
_SAMPLE = 2048
_BOUND_LENGTH = 16
"""Characters of a string bound, bytes of a binary one."""
_STATISTICS_LENGTH = 1 << 20
"""Bytes of a value from which on its column has no statistics in the footer: the writer keeps many copies of it for them, and then
leaves them out anyway."""
_FOOTERS = 256
_ARROW_BYTES = "icelake.arrow-bytes"
"""Key in the footer: how large the rows are in memory. A file is as full as that, however well it is compressed."""

_I32, _I64, _F32, _F64 = Struct("<i"), Struct("<q"), Struct("<f"), Struct("<d")
_EXACT = decimal.Context(prec=80)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A data file that is not stored yet: its bytes, its manifest record without a path, its own footer."""

    data: pa.Buffer
    record: Record
    footer: pq.FileMetaData


def in_file(rows: pa.Table | pa.RecordBatch, schema: pa.Schema, extra: Sequence[Any] = ()) -> pa.Table:
    """``rows`` (columns in the order of ``schema``) and ``extra`` columns after them, in the types of a data file."""
    arrays: list[Any] = []
    for field, column in zip(schema, [*rows.columns, *extra], strict=True):
        if column.type != field.type:
            column = column.cast(field.type)
        if not field.nullable and column.null_count:
            raise Corrupt(
                "NULL_IN_REQUIRED",
                f"column {field.name!r} got {column.null_count} null values but is NOT NULL",
                "the source sent a row without a key, or the column's constraint changed",
                "nothing was committed; check the table's definition in PostgreSQL",
            )
        arrays.append(column)
    return pa.Table.from_arrays(arrays, schema=schema)


def encode(table: pa.Table, types: Sequence[str]) -> Encoded:
    """``table`` (in a file schema) as Parquet. ``types``: Iceberg types of its leading columns, those that get metrics."""
    kinds = [*map(parse, types), *([None] * (table.num_columns - len(types)))]
    leaves = [
        leaf
        for field, kind, column in zip(table.schema, kinds, table.columns, strict=True)
        for leaf in _leaves(field, field.name, kind, column if kind is not None else None)
    ]
    out = pa.BufferOutputStream()
    with pq.ParquetWriter(
        out,
        table.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=_repetitive(leaves, table.num_rows),
        write_statistics=[
            leaf.path for leaf in leaves if not leaf.repeated and leaf.ordered and _longest(leaf.values) < _STATISTICS_LENGTH
        ],
        store_decimal_as_integer=True,
        store_schema=False,
    ) as writer:
        writer.write_table(table, row_group_size=_group_rows(table))
        writer.add_key_value_metadata({_ARROW_BYTES: str(table.nbytes)})
    data = out.getvalue()
    footer = pq.ParquetFile(pa.BufferReader(data)).metadata
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    sizes = dict.fromkeys((leaf.field_id for leaf in leaves), 0)
    splits = []
    values, nulls, nans, lowers, uppers = [], [], [], [], []
    for place, leaf in enumerate(leaves):
        chunks = [group.column(place) for group in groups]
        sizes[leaf.field_id] += sum(chunk.total_compressed_size for chunk in chunks)
        if not place:
            splits = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
        if leaf.values is None:
            continue
        ident, kind, column = leaf.field_id, leaf.type, leaf.values
        values.append({"key": ident, "value": table.num_rows})
        nulls.append({"key": ident, "value": column.null_count})
        if kind in ("float", "double"):
            nans.append({"key": ident, "value": leaf.nans})
        lower, upper = bounds(column, kind, chunks) if leaf.ordered else (None, None)
        if lower is not None:
            lowers.append({"key": ident, "value": lower})
        if upper is not None:
            uppers.append({"key": ident, "value": upper})
    record = {
        "content": DATA,
        "file_format": "PARQUET",
        "partition": {},
        "record_count": table.num_rows,
        "file_size_in_bytes": data.size,
        "column_sizes": [{"key": ident, "value": size} for ident, size in sizes.items()],
        "value_counts": values,
        "null_value_counts": nulls,
        "nan_value_counts": nans,
        "lower_bounds": lowers,
        "upper_bounds": uppers,
        "split_offsets": splits,
    }
    return Encoded(data, record, footer)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A Parquet column: its field id and its path; where it gets metrics also its Iceberg type and its values, one a row."""

    field_id: int | None
    path: str
    repeated: bool = False
    type: str = ""
    values: Any = None
    nans: int = 0

    @property
    def ordered(self) -> bool:
        """Whether bounds say something of every value. Those of a column with NaN leave it out, as the formats have it, and DuckDB,
        to which NaN is the greatest number, then does not look for it where it is, and finds all below it where not all are."""
        return not self.nans


def _leaves(field: "pa.Field[Any]", path: str, kind: IcebergType | None, values: Any) -> Iterator[_Leaf]:
    """The leaves of a column in Parquet's order. ``kind`` is None for a column without metrics, ``values`` inside lists and maps."""
    inner: Any = field.type
    match kind:
        case ListType(element):
            yield from _leaves(inner.value_field, f"{path}.list.element", element, None)
        case MapType(key, value):
            yield from _leaves(inner.key_field, f"{path}.key_value.key", key, None)
            yield from _leaves(inner.item_field, f"{path}.key_value.value", value, None)
        case StructType(fields):
            for place, (name, part) in enumerate(fields):
                # Null where the struct is, as the footer counts it.
                below = None if values is None else pc.struct_field(values, [place])
                yield from _leaves(inner.field(place), f"{path}.{name}", part, below)
        case Primitive(name):
            nans = _nans(values) if values is not None and name in ("float", "double") else 0
            yield _Leaf(field_id(field), path, values is None, name, values, nans)
        case None:
            yield _Leaf(field_id(field), path)


def _group_rows(table: pa.Table) -> int:
    # Down to one row: a delta that needs one wide value must not read a file full of them.
    width = max(1, table.nbytes // max(1, table.num_rows))
    return int(min(_GROUP_ROWS, max(1, _GROUP_BYTES // width)))


def _repetitive(leaves: Sequence[_Leaf], rows: int) -> Any:
    # Dictionaries pay only where values repeat; in small files and on keys they cost time and space.
    if rows < _SAMPLE:
        return False
    found = [leaf for leaf in leaves if leaf.values is not None and leaf.type not in ("boolean", "uuid")]
    return [leaf.path for leaf in found if _distinct(leaf.values.slice(0, _SAMPLE)) <= _SAMPLE // 16] or False


def _longest(column: Any) -> int:
    if column is None or not (pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
        return 0
    return int(pc.max(pc.binary_length(column)).as_py() or 0)


def _nans(column: Any) -> int:
    count: Any = pc.sum(pc.is_nan(column).cast(pa.int64())).as_py()
    return count or 0


def _distinct(column: Any) -> int:
    return int(pc.count_distinct(column).as_py())


# --------------------------------------------------------------------------------------------------------------- bounds


def bounds(column: Any, kind: str, chunks: Sequence[Any] = ()) -> tuple[bytes | None, bytes | None]:
    """(lower, upper) of a column of Iceberg type ``kind``, serialized; None where there is none to give.

    ``chunks``: the column in a footer (``pq.ColumnChunkMetaData``), if it is written: the same extremes are then taken from there.
    uuid has none: engines disagree on the order of uuids (Java compares them signed), so a bound could hide rows.
    """
    if kind == "uuid" or column.null_count == len(column):
        return None, None
    if kind in ("float", "double", "boolean", "binary"):
        found = pc.min_max(column)
        low, high = found["min"].as_py(), found["max"].as_py()
        if kind == "boolean":
            return bytes([low]), bytes([high])
        if kind == "binary":
            return low[:_BOUND_LENGTH], _round_up_binary(high)
        pack = (_F32 if kind == "float" else _F64).pack
        # Arrow skips NaN unless there is nothing else.
        return (None, None) if low != low else (pack(low or -0.0), pack(high or 0.0))
    lowest, highest = _stored(chunks) or _found(column)
    if kind == "string":
        return _cut(lowest).encode(), _round_up(highest)
    if kind.startswith("decimal"):
        return _unscaled(lowest), _unscaled(highest)
    pack = (_I32 if kind in ("int", "date") else _I64).pack
    return pack(lowest), pack(highest)


def _found(column: Any) -> tuple[Any, Any]:
    """The extremes of a column that has some: strings, and the numbers that stand for everything else."""
    found = pc.min_max(column)
    return _plain(found["min"]), _plain(found["max"])


def _stored(chunks: Sequence[Any]) -> tuple[Any, Any] | None:
    """The same from a footer. None: it does not tell."""
    lows, highs = [], []
    for chunk in chunks:
        told = chunk.statistics
        if told is None or not (told.has_min_max or (told.has_null_count and told.null_count == chunk.num_values)):
            return None
        if told.has_min_max:
            kind = chunk.physical_type
            lows.append(_raw(told.min_raw, kind))
            highs.append(_raw(told.max_raw, kind))
    return (min(lows), max(highs)) if lows else None


def _raw(value: Any, physical: str) -> Any:
    if physical == "BYTE_ARRAY":
        return value.decode()
    return int.from_bytes(value, "big", signed=True) if physical == "FIXED_LEN_BYTE_ARRAY" else value


def _plain(scalar: Any) -> Any:
    if pa.types.is_decimal(scalar.type):
        return int(scalar.as_py().scaleb(scalar.type.scale, _EXACT))
    # .value, because as_py() refuses dates and timestamps outside the years of Python's datetime.
    return scalar.value if hasattr(scalar, "value") else scalar.as_py()


def _unscaled(number: int) -> bytes:
    length = (number if number >= 0 else ~number).bit_length() // 8 + 1
    return number.to_bytes(length, "big", signed=True)


def _cut(text: str) -> str:
    return text[:_BOUND_LENGTH]


def _round_up(text: str) -> bytes | None:
    if len(text) <= _BOUND_LENGTH:
        return text.encode()
    cut = _cut(text)
    while cut:
        after = ord(cut[-1]) + 1
        if after <= 0x10FFFF:
            # Surrogates are no characters: UTF-8 has no form for them.
            return (cut[:-1] + chr(0xE000 if after == 0xD800 else after)).encode()
        cut = cut[:-1]
    return None


def _round_up_binary(value: bytes) -> bytes | None:
    if len(value) <= _BOUND_LENGTH:
        return value
    cut = value[:_BOUND_LENGTH].rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else None


# -------------------------------------------------------------------------------------------------------------- reading


def indices(positions: npt.NDArray[np.int64]) -> pa.Int64Array:
    """Positions for ``take``."""
    return pa.array(positions, pa.int64())


@dataclass(frozen=True, slots=True)
class Wanted:
    """A column to read: which field, what to call it, and its type in the result."""

    field_id: int
    name: str
    type: pa.DataType
    default: "pa.Scalar[Any] | None" = None
    """What rows of a file without the field have (Iceberg spec, Default Values), of ``type``; None: null."""
    shape: "pa.Field[Any] | None" = None
    """With its own and its parts' field ids: the parts of a struct are then found by these too."""
    inner_defaults: Mapping[int, "pa.Scalar[Any]"] | None = None
    """By field id, what such parts have in files without them."""


class DataFiles:
    """Reads data files; remembers footers, because deltas ask for the same files again and again. Not thread-safe."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._arrow_bytes: dict[str, int] = {}

    def remember(self, path: str, footer: pq.FileMetaData) -> None:
        """The footer of a file that was just written."""
        self._footers[path] = footer
        if len(self._footers) > _FOOTERS:
            self._footers.popitem(last=False)

    def forget(self, path: str) -> None:
        self._footers.pop(path, None)
        self._arrow_bytes.pop(path, None)

    def arrow_bytes(self, path: str) -> int:
        """Of the rows of a file, as its footer tells; 0 if it does not."""
        if path not in self._arrow_bytes:
            footer = self._footers.get(path)
            if footer is None:
                with self._opened(path) as source:
                    footer = pq.ParquetFile(source).metadata
            told = (footer.metadata or {}).get(_ARROW_BYTES.encode(), b"")
            self._arrow_bytes[path] = int(told) if told.isdigit() else 0
        return self._arrow_bytes[path]

    @contextmanager
    def _opened(self, path: str) -> Iterator[pa.NativeFile]:
        source = self._storage.open(path)
        try:
            yield source
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(path, f"it cannot be read ({error})") from error
        finally:
            source.close()

    def read(self, path: str, rows: int, columns: Sequence[Wanted]) -> pa.Table:
        """All rows of a file of ``rows`` rows. A column the file has not is its default."""
        return self._read(path, rows, columns, lambda file, names: file.read(columns=names, use_threads=False))

    def take(self, path: str, rows: int, columns: Sequence[Wanted], positions: npt.NDArray[np.int64]) -> pa.Table:
        """The rows at these ascending positions of a file of ``rows`` rows, reading only the row groups they are in."""
        if len(positions) and not 0 <= int(positions[0]) <= int(positions[-1]) < rows:
            raise _corrupt(path, f"positions {positions[0]} to {positions[-1]} were asked for, it has {rows} rows")

        def some(file: pq.ParquetFile, names: list[str]) -> pa.Table:
            footer = file.metadata
            if footer.num_row_groups == 1:
                return file.read_row_group(0, columns=names, use_threads=False).take(indices(positions))
            lengths = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
            starts = np.concatenate(([0], np.cumsum(lengths)))
            cuts = np.searchsorted(positions, starts)
            parts = [
                file.read_row_group(number, columns=names, use_threads=False).take(
                    indices(positions[cuts[number] : cuts[number + 1]] - starts[number])
                )
                for number in range(len(lengths))
                if cuts[number] < cuts[number + 1]
            ]
            return pa.concat_tables(parts) if parts else file.read_row_group(0, columns=names, use_threads=False).slice(0, 0)

        return self._read(path, rows, columns, some)

    def _read(self, path: str, rows: int, columns: Sequence[Wanted], read: Callable[[pq.ParquetFile, list[str]], pa.Table]) -> pa.Table:
        known = self._footers.get(path)
        with self._opened(path) as source:
            file = pq.ParquetFile(source, metadata=known)
            if known is None:
                self.remember(path, file.metadata)
            else:
                self._footers.move_to_end(path)
            if file.metadata.num_rows != rows:
                raise _corrupt(path, f"it has {file.metadata.num_rows} rows, its manifest entry says {rows}")
            fields = {field_id(field): field for field in file.schema_arrow}
            names = {ident: field.name for ident, field in fields.items()}
            there = [names[column.field_id] for column in columns if column.field_id in names]
            # Without a column Parquet would tell no row count: ask for any.
            found = read(file, there or [next(iter(names.values()))])
        arrays: list[Any] = []
        for column in columns:
            if column.field_id not in names:
                missing: Any = pa.scalar(None, column.type) if column.default is None else column.default
                arrays.append(pa.repeat(missing, found.num_rows))
                continue
            values: Any = found.column(names[column.field_id])
            if column.shape is not None and pa.types.is_struct(values.type):
                values = _by_id(values.combine_chunks(), fields[column.field_id], column.shape, column.inner_defaults or {})
            arrays.append(values if values.type == column.type else values.cast(column.type))
        return pa.Table.from_arrays(arrays, schema=pa.schema([(column.name, column.type) for column in columns]))


def _by_id(values: Any, there: "pa.Field[Any]", wanted: "pa.Field[Any]", defaults: Mapping[int, Any]) -> Any:
    """A struct array of a file with the parts that are wanted now. Their types may differ; what is not a struct stays as it is."""
    inside: Any = there.type
    if inside.equals(wanted.type, check_metadata=True) or not pa.types.is_struct(wanted.type):
        return values
    places = {field_id(inside.field(place)): place for place in range(inside.num_fields)}
    parts: list[Any] = []
    kinds: Any = wanted.type
    for kind in (kinds.field(place) for place in range(kinds.num_fields)):
        ident = field_id(kind)
        place = places.get(ident)
        if place is not None:
            parts.append(_by_id(values.field(place), inside.field(place), kind, defaults))
        else:
            default: Any = defaults.get(ident) if ident is not None else None
            parts.append(pa.nulls(len(values), kind.type) if default is None else pa.repeat(default, len(values)))
    fields = [pa.field(kinds.field(at).name, part.type) for at, part in enumerate(parts)]
    return pa.StructArray.from_arrays(parts, fields=fields, mask=values.is_null())


def _corrupt(path: str, why: str) -> Corrupt:
    return Corrupt(
        "DATA_FILE_CORRUPT",
        f"{path} is not the data file its table describes",
        why,
        "restore the file from a copy, or load the tables again into a new lake",
    )
