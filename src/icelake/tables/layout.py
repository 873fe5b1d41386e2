"""A table's layout bound to its schema: which rows go into which file, in which order, and what the metadata says of it.

Promises that every row of a file has the file's partition values, by the transforms of the table's one partition spec, and that
rows of a file follow the table's sort order. Splitting costs a sort of the rows, however many partitions they are in. A partition
value is carried in the form Avro stores it (spec, Appendix A): whole numbers for dates and times, fixed bytes for decimals, so no
value is too old or too long for a Python date. No I/O. Raises ForeignChange for a layout that is not one of ours, ValueOutOfContract
for a value that has no partition.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from struct import pack, unpack
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from icelake.errors import ForeignChange, ValueOutOfContract
from icelake.model.layout import Layout, PartitionField, SortField
from icelake.model.types import Primitive
from icelake.ports import Json, arrow_type
from icelake.tables import transforms

FIRST_PARTITION_FIELD = 1000
"""Spec, Partition Specs: partition field ids start here."""
_TRANSFORM = re.compile(r"([a-z]+)(?:\[(\d+)\])?")

Partition = tuple[Any, ...]
"""A value for each field of the partition spec, as Avro stores it."""


@dataclass(frozen=True, slots=True)
class BoundField:
    """A field of the partition spec. ``kind``: the Iceberg type of its values."""

    field_id: int
    name: str
    declared: PartitionField
    kind: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rows ``start`` to ``end`` of those that were arranged, all of one partition."""

    start: int
    end: int
    partition: Partition


@dataclass(frozen=True, slots=True)
class BoundLayout:
    """The layout of a table that is there."""

    format_version: int
    spec_id: int
    fields: tuple[BoundField, ...]
    sort: tuple[SortField, ...]
    sort_order_id: int | None
    """None: rows are in no order."""

    @property
    def declared(self) -> Layout:
        """What the table was made with."""
        return Layout(tuple(one.declared for one in self.fields), self.sort, self.format_version)

    def arrange(self, rows: pa.Table | pa.RecordBatch) -> tuple[npt.NDArray[np.int64] | None, list[Group]]:
        """(the order to take the rows in, None if they are in it; the groups they then are in)."""
        n = rows.num_rows
        if not n:
            return None, []
        values = [_partitioned(one.declared, _column(rows, one.declared.column)) for one in self.fields]
        code, first = _factorize(values, n)
        keys: dict[str, Any] = {} if len(first) == 1 else {"partition": pa.array(code)}
        order_by: list[Any] = [("partition", "ascending", "at_end")] if keys else []
        for number, field in enumerate(self.sort):
            keys[str(number)] = _sortable(_column(rows, field.column))
            order_by.append((str(number), _DIRECTION[field.descending], "at_start" if field.nulls_first else "at_end"))
        if not keys:
            order = None
        else:
            # Rows that are equal stay as they came: the sort is stable.
            order = pc.sort_indices(pa.table(keys), sort_keys=order_by).to_numpy().astype(np.int64)
            code = code[order]
        edges = [0, *(np.flatnonzero(np.diff(code)) + 1).tolist(), n]
        named = [raw_values(column.take(pa.array(first, pa.int64())), one.kind) for column, one in zip(values, self.fields, strict=True)]
        partitions: list[Partition] = list(zip(*named, strict=True)) if named else [()]
        groups = [Group(start, end, partition) for start, end, partition in zip(edges, edges[1:], partitions, strict=False)]
        assert len(groups) == len(partitions)
        return (None if order is None or np.array_equal(order, np.arange(n)) else order), groups

    def record(self, partition: Partition) -> dict[str, Any]:
        """``data_file.partition``."""
        return {one.name: value for one, value in zip(self.fields, partition, strict=True)}

    def partition(self, record: dict[str, Any]) -> Partition:
        """The inverse of ``record``."""
        return tuple(record[one.name] for one in self.fields)

    def summaries(self, partitions: Iterable[Partition]) -> list[Json]:
        """What a manifest list says of the partitions in a manifest (spec, Manifest Lists, ``field_summary``)."""
        distinct = set(partitions)
        out: list[Json] = []
        for place, one in enumerate(self.fields):
            values = {partition[place] for partition in distinct}
            there = sorted((value for value in values if value is not None), key=lambda value: comparable(value, one.kind))
            out.append(
                {
                    "contains_null": None in values,
                    "contains_nan": False,
                    "lower_bound": serialized(there[0], one.kind) if there else None,
                    "upper_bound": serialized(there[-1], one.kind) if there else None,
                }
            )
        return out


_DIRECTION = {False: "ascending", True: "descending"}


# ----------------------------------------------------------------------------------------------------- JSON (Appendix C)


def partition_spec(layout: Layout, schema: Json) -> Json:
    """The partition spec a table of this schema is made with. The layout must fit (``Layout.misfit``)."""
    ids = {field["name"]: field["id"] for field in schema["fields"]}
    # Engines that ignore case must be able to tell the names of partition fields and columns.
    taken = {name.lower() for name in ids}
    fields = []
    for number, one in enumerate(layout.partition):
        plain = "".join(c if c.isascii() and (c.isalnum() or c == "_") else f"_x{ord(c):X}" for c in one.column)
        # Names are field names in Avro too, so they are of letters, digits and _ whatever the column is called.
        base = plain if not plain[0].isdigit() else f"_{plain}"
        identity = one.transform == "identity"
        wanted = base if identity else f"{base}_{'trunc' if one.transform == 'truncate' else one.transform}"
        name, again = wanted, 2
        while name.lower() in taken and not (identity and name == one.column):
            name, again = f"{wanted}_{again}", again + 1
        taken.add(name.lower())
        transform = one.transform if one.width is None else f"{one.transform}[{one.width}]"
        fields.append({"source-id": ids[one.column], "field-id": FIRST_PARTITION_FIELD + number, "name": name, "transform": transform})
    return {"spec-id": 0, "fields": fields}


def sort_order(layout: Layout, schema: Json) -> Json:
    """The sort order it is made with."""
    ids = {field["name"]: field["id"] for field in schema["fields"]}
    fields = [
        {
            "transform": "identity",
            "source-id": ids[one.column],
            "direction": "desc" if one.descending else "asc",
            "null-order": "nulls-first" if one.nulls_first else "nulls-last",
        }
        for one in layout.sort
    ]
    # Order 0 means unsorted, always.
    return {"order-id": 1 if fields else 0, "fields": fields}


def layout_properties(layout: Layout) -> dict[str, str]:
    """What other writers should know."""
    if layout.sort:
        return {"write.distribution-mode": "range"}
    return {"write.distribution-mode": "hash"} if layout.partition else {}


def layout_of(metadata: Json) -> BoundLayout:
    """The layout of a table. Raises ForeignChange if it has had more than one, or one we would not give it."""
    version, specs, orders = metadata["format-version"], metadata["partition-specs"], metadata["sort-orders"]
    try:
        if version not in (2, 3) or len(specs) != 1 or len(orders) != 1:
            raise _foreign(metadata, f"format version {version}, {len(specs)} partition specs, {len(orders)} sort orders")
        (spec,), (order,) = specs, orders
        schema = next(s for s in metadata["schemas"] if s["schema-id"] == metadata["current-schema-id"])
        columns = {field["id"]: field for field in schema["fields"]}
        fields = tuple(_bound(field, columns) for field in spec["fields"])
        sort = tuple(
            SortField(columns[one["source-id"]]["name"], one["direction"] == "desc", one["null-order"] == "nulls-first")
            for one in order["fields"]
            if one["transform"] == "identity"
        )
        if len(sort) != len(order["fields"]):
            raise _foreign(metadata, f"sort order {order}")
        return BoundLayout(version, spec["spec-id"], fields, sort, order["order-id"] if sort else None)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise _foreign(metadata, f"{type(error).__name__}: {error}") from error


def _bound(field: Json, columns: dict[int, Json]) -> BoundField:
    source = columns[field["source-id"]]
    match = _TRANSFORM.fullmatch(field["transform"])
    if match is None:
        raise KeyError(field["transform"])
    declared = PartitionField.parse(str(PartitionField("x", match[1], None if match[2] is None else int(match[2]))))
    kind = transforms.result_type(declared.transform, source["type"])
    return BoundField(field["field-id"], field["name"], PartitionField(source["name"], declared.transform, declared.width), kind)


def _foreign(metadata: Json, why: str) -> ForeignChange:
    return ForeignChange(
        "TABLE_SHAPE_CHANGED",
        f"{metadata['location']} is not laid out as IceLake lays tables out",
        f"{why}: someone else changed its format version, partition spec or sort order",
        "load the tables again into a new lake",
    )


# ------------------------------------------------------------------------------------------------------ partition values


def serialized(value: Any, kind: str) -> bytes:
    """A partition value as a bound (spec, Appendix D)."""
    match kind:
        case "boolean":
            return bytes([value])
        case "int" | "date":
            return pack("<i", value)
        case "long" | "time" | "timestamp" | "timestamptz":
            return pack("<q", value)
        case "string":
            return str(value).encode()
        case "binary":
            return bytes(value)
    number = int.from_bytes(value, "big", signed=True)
    return number.to_bytes((number if number >= 0 else ~number).bit_length() // 8 + 1, "big", signed=True)


def bound_value(bound: bytes, kind: str) -> Any:
    """The inverse of ``serialized``, as something that compares like the type (``comparable``). Raises struct.error for a wrong length.

    A value of before its column's type was widened has the length it had then.
    """
    match kind:
        case "int" | "long":
            return unpack("<i" if len(bound) == 4 else "<q", bound)[0]
        case "date":
            return unpack("<i", bound)[0]
        case "time" | "timestamp" | "timestamptz" | "timestamp_ns" | "timestamptz_ns":
            return unpack("<q", bound)[0]
        case "float" | "double":
            return unpack("<f" if len(bound) == 4 else "<d", bound)[0]
        case "boolean":
            return bound != b"\x00"
    return int.from_bytes(bound, "big", signed=True) if kind.startswith("decimal") else bound


def source_array(values: Sequence[Any], kind: str) -> "pa.Array[Any]":
    """Values as ``bound_value`` gives them, in the column's Arrow type."""
    arrow = arrow_type(kind)
    if pa.types.is_decimal128(arrow):
        with localcontext(prec=80):
            return pa.array([Decimal(value).scaleb(-arrow.scale) for value in values], arrow)
    if pa.types.is_string(arrow):
        return pa.array([value.decode() for value in values], arrow)
    if pa.types.is_temporal(arrow):
        return pa.array(values, pa.int32() if pa.types.is_date32(arrow) else pa.int64()).view(arrow)
    return pa.array(values, arrow)


def comparable(value: Any, kind: str) -> Any:
    """Something that sorts as the values of the type do."""
    if kind == "string":
        return value.encode()
    return int.from_bytes(value, "big", signed=True) if kind.startswith("decimal") else value


def decimal_bytes(precision: int) -> int:
    """How many bytes a fixed-size decimal has (spec, Appendix A)."""
    return int((10**precision - 1).bit_length() // 8 + 1)


def raw_values(column: "pa.Array[Any]", kind: str) -> Sequence[Any]:
    """Transformed values in the form Avro stores them in."""
    if kind in ("boolean", "string", "binary"):
        return column.to_pylist()
    declared = Primitive(kind).decimal
    if declared is not None:
        size = decimal_bytes(declared[0])
        data = column.buffers()[1]
        assert data is not None
        valid = column.is_valid().to_pylist()
        words = memoryview(data)[column.offset * 16 :]
        # Little-endian in Arrow; what is cut off only repeats the sign.
        return [bytes(words[16 * at : 16 * at + size])[::-1] if valid[at] else None for at in range(len(column))]
    stored = pa.int32() if pa.types.is_date32(column.type) or pa.types.is_int32(column.type) else pa.int64()
    return column.view(stored).to_pylist()


def _column(rows: pa.Table | pa.RecordBatch, name: str) -> Any:
    column: Any = rows.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _partitioned(field: PartitionField, column: Any) -> Any:
    values = transforms.apply(field.transform, field.width, column)
    if pa.types.is_timestamp(column.type) and field.transform in ("day", "month") and (transforms.whole_numbers(values) < 0).any():
        raise ValueOutOfContract(
            "PARTITION_BEFORE_1970",
            f"{field.column!r} holds a time before 1970, and the table is partitioned by its {field.transform}",
            "DuckDB 1.5.5 rounds such times the other way, and would hide the row from questions that ask for it",
            f"nothing was committed; partition by year({field.column}) or hour({field.column}) in a new lake, or correct the row",
        )
    return values


def _sortable(column: Any) -> Any:
    if not pa.types.is_floating(column.type):
        return column
    # The total order of IEEE 754, which is the spec's: -0.0 before 0.0, NaN last.
    bits = column.cast(pa.float64()).fill_null(0.0).to_numpy().copy().view(np.int64)
    bits ^= (bits >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF)
    return pa.array(bits, mask=column.is_null().to_numpy(zero_copy_only=False))


def _factorize(columns: Sequence[Any], n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(number of each row's combination of values; the first row of each number), numbers from 0."""
    code = np.zeros(n, np.int64)
    first = np.zeros(1, np.int64)
    for column in columns:
        encoded = column.dictionary_encode(null_encoding="encode")
        size = len(first) * len(encoded.dictionary)
        code = code * len(encoded.dictionary) + encoded.indices.to_numpy().astype(np.int64)
        # Numbered anew each time: the product of all the sizes may not fit into 64 bits.
        if size > 4 * n:
            _, first, code = np.unique(code, return_index=True, return_inverse=True)
            continue
        rows = np.full(size, n, np.int64)
        rows[code[::-1]] = np.arange(n - 1, -1, -1)
        there = rows < n
        code = (np.cumsum(there) - 1)[code]
        first = rows[there]
    return code, first
