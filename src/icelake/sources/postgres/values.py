"""PostgreSQL's text of values -> Arrow columns of the type contract, and back.

Promises: the value in the Arrow column is exactly the value in PostgreSQL. Never rounds, clips, guesses or turns a value into a
null. Fails with ValueOutOfContract when PostgreSQL can hold the value and the column's Iceberg type cannot (infinity, NaN in a
decimal, 24:00:00), and with Corrupt when PostgreSQL would never print such a text for the type under ``types.SESSION``.
Values are read from where they lie: ``Fields`` point into the received bytes, whole columns at a time.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.errors import Corrupt, ValueOutOfContract
from icelake.model.relation import Column
from icelake.ports import arrow_type
from icelake.sources.postgres import kernels, types
from icelake.sources.postgres.calendar import print_date, print_time, print_timestamp

_INT_RANGE: Final[dict[int, tuple[int, int]]] = {
    types.INT2: (-(2**15), 2**15 - 1),
    types.INT4: (-(2**31), 2**31 - 1),
    types.INT8: (-(2**63), 2**63 - 1),
    types.OID: (0, 2**32 - 1),
}
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Fields:
    """The text of one column's values: where each lies in ``buffer`` (read-only uint8). A length below zero is a null."""

    buffer: npt.NDArray[np.uint8]
    start: npt.NDArray[np.int32]
    length: npt.NDArray[np.int32]

    def text(self, at: int) -> bytes:
        """The bytes of one value that is not null."""
        start = int(self.start[at])
        return self.buffer[start : start + int(self.length[at])].tobytes()


Reader = Callable[[Fields], "pa.Array[Any]"]


def to_arrow(text: pa.StringArray | pa.BinaryArray, column: Column) -> "pa.Array[Any]":
    """PostgreSQL's output text of one column, with nulls -> ``arrow_type(column.iceberg)``, exactly or not at all."""
    if text.type not in (pa.string(), pa.binary()):
        raise TypeError(f"text must be string or binary, not {text.type}")
    count = len(text)
    if count == 0:
        return pa.array([], arrow_type(column.iceberg))
    _, offsets, data = text.buffers()
    assert offsets is not None
    ends = np.frombuffer(memoryview(offsets), np.int32)[text.offset : text.offset + count + 1]
    length = np.diff(ends)
    if text.null_count:
        length[np.asarray(text.is_null())] = kernels.NULL
    buffer = read_only(data if data is not None else b"")
    return reader(column)(Fields(buffer, ends[:-1].copy(), length))


def read_only(data: Any) -> npt.NDArray[np.uint8]:
    """Bytes of any kind as the read-only array kernels take."""
    buffer = np.frombuffer(data, np.uint8)
    buffer.flags.writeable = False
    return buffer


def reader(column: Column, table: str = "") -> Reader:
    """How to read fields of this column; made once and used for every batch. ``table`` is only named in errors."""
    iceberg = column.iceberg
    if iceberg == "string":
        return lambda fields: _strings(fields, column, table)
    if iceberg == "binary":
        return lambda fields: _binary(fields, column, table)
    if iceberg == "boolean":
        return lambda fields: _booleans(fields, column, table)
    if iceberg in ("float", "double"):
        return lambda fields: _floats(fields, column, table)
    kind = arrow_type(iceberg)
    wide = 1
    arguments: tuple[int, ...] = ()
    dtype: type[np.generic]
    if iceberg in ("int", "long"):
        low, high = _INT_RANGE[column.type_oid]
        parse, arguments, dtype = kernels.parse_int, (low, high), np.int32 if iceberg == "int" else np.int64
    elif iceberg == "date":
        parse, dtype = kernels.parse_date, np.int32
    elif iceberg == "time":
        parse, dtype = kernels.parse_time, np.int64
    elif iceberg in ("timestamp", "timestamptz"):
        parse, arguments, dtype = kernels.parse_timestamp, (iceberg == "timestamptz",), np.int64
    elif iceberg == "uuid":
        parse, dtype, wide = kernels.parse_uuid, np.uint8, 16
    else:
        assert isinstance(kind, pa.Decimal128Type)
        parse, arguments, dtype, wide = kernels.parse_decimal, (kind.precision, kind.scale), np.uint64, 2

    def read(fields: Fields) -> "pa.Array[Any]":
        count = len(fields.length)
        out = np.empty(count * wide, dtype)
        at = parse(fields.buffer, fields.start, fields.length, *arguments, out)
        if at < count:
            raise _unreadable(fields, at, column, table)
        validity, nulls = _validity(fields)
        return pa.Array.from_buffers(kind, count, [validity, _buffer(out)], nulls)

    return read


def _buffer(array: Any) -> pa.Buffer:
    return pa.py_buffer(array)


def _validity(fields: Fields) -> tuple[pa.Buffer | None, int]:
    bitmap = np.zeros((len(fields.length) + 7) >> 3, np.uint8)
    nulls = kernels.nulls(fields.length, bitmap)
    return _buffer(bitmap) if nulls else None, nulls


def _booleans(fields: Fields, column: Column, table: str) -> "pa.Array[Any]":
    count = len(fields.length)
    out = np.zeros((count + 7) >> 3, np.uint8)
    at = kernels.parse_bool(fields.buffer, fields.start, fields.length, out)
    if at < count:
        raise _unreadable(fields, at, column, table)
    validity, nulls = _validity(fields)
    return pa.Array.from_buffers(pa.bool_(), count, [validity, _buffer(out)], nulls)


def _lay_out(
    length: npt.NDArray[np.int32], column: Column, table: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], pa.Buffer | None, int]:
    """Offsets, room for the bytes, validity and null count of an Arrow string or binary column."""
    count = len(length)
    offsets = np.empty(count + 1, np.int32)
    bitmap = np.zeros((count + 7) >> 3, np.uint8)
    total, nulls = kernels.lay_out(length, offsets, bitmap)
    if total < 0:
        # Fields of one buffer below 2 GiB cannot overlap, so their sum fits: these do overlap.
        raise Corrupt("VALUE_CORRUPT", f"{_named(column, table)} has more than 2 GiB of text in one batch", "its values overlap")
    return offsets, np.empty(total, np.uint8), _buffer(bitmap) if nulls else None, nulls


def _gathered(fields: Fields, column: Column, table: str) -> "tuple[pa.Array[Any], bool]":
    """The fields as a binary column, and whether all of it is ASCII without NUL."""
    offsets, out, validity, nulls = _lay_out(fields.length, column, table)
    plain = kernels.gather(fields.buffer, fields.start, fields.length, offsets, out)
    count = len(fields.length)
    return pa.Array.from_buffers(pa.binary(), count, [validity, _buffer(offsets), _buffer(out)], nulls), plain


def _strings(fields: Fields, column: Column, table: str) -> "pa.Array[Any]":
    raw, plain = _gathered(fields, column, table)
    text = raw.view(pa.string())
    if not plain:
        try:
            text.validate(full=True)
        except pa.ArrowInvalid:
            raise _unreadable(fields, _first(fields, _not_utf8), column, table) from None
        characters = read_only(raw.buffers()[2])
        if np.count_nonzero(characters) != len(characters):
            raise _unreadable(fields, _first(fields, lambda value: b"\0" in value), column, table)
    return text


def _not_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8", "strict")
    except UnicodeDecodeError:
        return True
    return False


def _first(fields: Fields, wrong: Callable[[bytes], bool]) -> int:
    for at in range(len(fields.length)):
        if fields.length[at] >= 0 and wrong(fields.text(at)):
            return at
    raise AssertionError("Arrow and Python disagree about UTF-8")


def _binary(fields: Fields, column: Column, table: str) -> "pa.Array[Any]":
    count = len(fields.length)
    sizes = np.empty(count, np.int32)
    at = kernels.hex_lengths(fields.buffer, fields.start, fields.length, sizes)
    if at < count:
        raise _unreadable(fields, at, column, table)
    offsets, out, validity, nulls = _lay_out(sizes, column, table)
    at = kernels.parse_hex(fields.buffer, fields.start, fields.length, offsets, out)
    if at < count:
        raise _unreadable(fields, at, column, table)
    return pa.Array.from_buffers(pa.binary(), count, [validity, _buffer(offsets), _buffer(out)], nulls)


def _floats(fields: Fields, column: Column, table: str) -> "pa.Array[Any]":
    # Arrow's reader (fast_float) rounds correctly, but also takes text PostgreSQL never prints: the grammar is checked before,
    # overflow and underflow after.
    count = len(fields.length)
    at = kernels.check_floats(fields.buffer, fields.start, fields.length)
    if at < count:
        raise _unreadable(fields, at, column, table)
    raw, _ = _gathered(fields, column, table)
    numbers = raw.view(pa.string()).cast(arrow_type(column.iceberg))
    if count:
        data = numbers.buffers()[1]
        assert data is not None
        values = np.frombuffer(memoryview(data), np.float32 if column.iceberg == "float" else np.float64)[:count]
        at = kernels.check_float_results(fields.buffer, fields.start, fields.length, values)
        if at < count:
            raise _unreadable(fields, at, column, table)
    return numbers


# ---------------------------------------------------------------------------------------------------------------- errors


def _named(column: Column, table: str) -> str:
    return f"column {table}.{column.name} ({column.pg_type})" if table else f"column {column.name} ({column.pg_type})"


def _unreadable(fields: Fields, at: int, column: Column, table: str) -> ValueOutOfContract | Corrupt:
    value = fields.text(at)
    shown = repr(value.decode("utf-8", "backslashreplace"))
    if len(value) > _SHOWN:
        shown = f"{value[:_SHOWN].decode('utf-8', 'backslashreplace')!r}... ({len(value)} bytes)"
    why = _beyond(value, column)
    if why:
        return ValueOutOfContract(
            "VALUE_OUT_OF_CONTRACT",
            f"{_named(column, table)} holds {shown}, which Iceberg's {column.iceberg} cannot hold",
            why,
            "change the value in PostgreSQL, then start again",
        )
    return Corrupt(
        "VALUE_CORRUPT",
        f"{_named(column, table)} came as {shown}, which PostgreSQL does not print for that type",
        "the bytes are damaged, or something between the server and here changed the session's settings",
        "check that nothing (a pooler, ALTER ROLE ... SET) overrides DateStyle, bytea_output or client_encoding; then start again",
    )


def _beyond(value: bytes, column: Column) -> str:
    """Why a value PostgreSQL may hold does not fit, or empty: not a value of its type."""
    iceberg = column.iceberg
    special = value in (b"infinity", b"-infinity", b"Infinity", b"-Infinity", b"NaN")
    if iceberg in ("date", "timestamp", "timestamptz"):
        if special and value != b"NaN":
            return "Iceberg has no infinite dates and times"
        year = value.split(b"-")[0]
        if iceberg != "date" and len(year) == 6 and year.isdigit() and int(year) >= 294247:
            return "microseconds since 1970 end with the year 294247 in 64 bits"
    elif iceberg == "time":
        if value == b"24:00:00":
            return "Iceberg's time ends before midnight"
    elif iceberg.startswith("decimal"):
        if special:
            return "Iceberg's decimals are finite"
        digits = value.removeprefix(b"-")
        if digits.replace(b".", b"", 1).isdigit() and digits[:1] != b"." and digits[-1:] != b".":
            return "it has more digits than the column's declared precision and scale"
    return ""


# ----------------------------------------------------------------------------------------------------------- and back


def to_text(values: "pa.Array[Any]", column: Column) -> list[str | None]:
    """The inverse of ``to_arrow``: what PostgreSQL prints for each value under ``types.SESSION``; floats in Python's spelling."""
    return [None if value is None else _print(value, column) for value in _plain(values, column)]


def _plain(values: "pa.Array[Any]", column: Column) -> list[Any]:
    if column.iceberg == "date":
        return values.cast(pa.int32()).to_pylist()
    if column.iceberg in ("time", "timestamp", "timestamptz"):
        return values.cast(pa.int64()).to_pylist()
    return values.to_pylist()


def _print(value: Any, column: Column) -> str:
    match column.iceberg:
        case "boolean":
            return "t" if value else "f"
        case "date":
            return print_date(value)
        case "time":
            return print_time(value)
        case "timestamp":
            return print_timestamp(value)
        case "timestamptz":
            return print_timestamp(value, "+00")
        case "uuid":
            return str(uuid.UUID(bytes=value))
        case "binary":
            return f"\\x{value.hex()}"
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value)
