"""PostgreSQL's text of values -> Arrow columns of the type contract; and back, for keys.

Promises: the value in the Arrow column is exactly the value in PostgreSQL. Never rounds, clips, guesses or turns a value into a
null on its own. A value that PostgreSQL can hold and the lake's type cannot (infinity, NaN in a decimal, 24:00:00, an array of more
than one dimension) fails with ValueOutOfContract, or becomes null, the innermost of it that does not fit, where the column's policy
says so. Fails with Corrupt when PostgreSQL would never print such a text for the type under ``types.SESSION``, and with
UnsupportedTable when a composite type has other attributes than it was described with.
Values are read from where they lie: ``Fields`` point into the received bytes, whole columns at a time. A type with parts is read
by splitting every text of the column into the fields of its parts, which are read in the same way.
"""

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from icelake.errors import Corrupt, UnsupportedTable, ValueOutOfContract
from icelake.model.relation import Column
from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType, parse
from icelake.ports import arrow_type
from icelake.sources.postgres import kernels
from icelake.sources.postgres.calendar import print_date, print_time, print_timestamp
from icelake.sources.postgres.types import SCALARS, ArrayOf, Composite, Leaf, MultirangeOf, PgType, RangeOf, type_of

_INT_RANGE: Final[dict[str, tuple[int, int]]] = {
    "int2": (-(2**15), 2**15 - 1),
    "int4": (-(2**31), 2**31 - 1),
    "int8": (-(2**63), 2**63 - 1),
    "oid": (0, 2**32 - 1),
}
_LARGEST: Final = 2**31 - 1
_SHOWN: Final = 80
_STRING: Final = Primitive("string")


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
    return reader(column)(_fields_of(text))


def _fields_of(text: "pa.Array[Any]") -> Fields:
    count = len(text)
    if count == 0:
        return Fields(read_only(b""), np.empty(0, np.int32), np.empty(0, np.int32))
    _, offsets, data = text.buffers()
    assert offsets is not None
    ends = np.frombuffer(memoryview(offsets), np.int32)[text.offset : text.offset + count + 1]
    length = np.diff(ends)
    if text.null_count:
        length[np.asarray(text.is_null())] = kernels.NULL
    return Fields(read_only(data if data is not None else b""), ends[:-1].copy(), length)


def read_only(data: Any) -> npt.NDArray[np.uint8]:
    """Bytes of any kind as the read-only array kernels take."""
    buffer = np.frombuffer(data, np.uint8)
    buffer.flags.writeable = False
    return buffer


def reader(column: Column, table: str = "") -> Reader:
    """How to read fields of this column; made once and used for every batch. ``table`` is only named in errors.

    Raises ValueError if ``column.iceberg`` is not what the contract, or a choice it allows, makes of the column's type.
    """
    return _reader(type_of(column), parse(column.iceberg), _Place(column, table))


@dataclass(frozen=True, slots=True)
class _Place:
    """Whose values these are: of a column, or of the part of it that ``path`` leads to."""

    column: Column
    table: str
    path: str = ""

    def within(self, path: str) -> "_Place":
        return replace(self, path=self.path + path)

    def __str__(self) -> str:
        name = f"{self.table}.{self.column.name}" if self.table else self.column.name
        return f"column {name}{self.path} ({self.column.pg_type})"

    def refuse(self, fields: Fields, at: int, iceberg: IcebergType) -> None:
        """The value cannot be read as ``iceberg``: raises, unless it is out of contract and the policy is to make it null."""
        why = _beyond(fields.text(at), iceberg)
        if not why:
            raise self.corrupt(fields, at)
        if self.column.out_of_range == "error":
            raise ValueOutOfContract(
                "VALUE_OUT_OF_CONTRACT",
                f"{self} holds {_shown(fields.text(at))}, which Iceberg's {iceberg} cannot hold",
                why,
                "change the value in PostgreSQL, then start again; or choose out_of_range for the column before its table is made",
            )

    def corrupt(self, fields: Fields, at: int) -> Corrupt:
        """The value is none of its type."""
        return Corrupt(
            "VALUE_CORRUPT",
            f"{self} came as {_shown(fields.text(at))}, which PostgreSQL does not print for that type",
            "the bytes are damaged, or something between the server and here changed the session's settings",
            "check that nothing (a pooler, ALTER ROLE ... SET) overrides DateStyle, bytea_output or client_encoding; then start again",
        )


def _shown(value: bytes) -> str:
    shown = repr(value[:_SHOWN].decode("utf-8", "backslashreplace"))
    return shown if len(value) <= _SHOWN else f"{shown}... ({len(value)} bytes)"


def _reader(source: PgType, iceberg: IcebergType, place: _Place) -> Reader:
    if iceberg == _STRING:
        return lambda fields: _strings(fields, place)
    match source, iceberg:
        case ArrayOf(element, delimiter), ListType(to):
            return _list(kernels.ARRAY, delimiter, _reader(element, to, place.within("[]")), iceberg, place)
        case Composite(attributes), StructType(parts) if [name for _, name, _ in attributes] == [name for name, _ in parts]:
            readers = [_reader(kind, to, place.within(f".{name}")) for (_, name, kind), (_, to) in zip(attributes, parts, strict=True)]
            return _composite(readers, iceberg, place)
        case RangeOf(bound), StructType((("lower", lower), ("upper", upper), ("bounds", _))):
            return _range(_reader(bound, lower, place.within(".lower")), _reader(bound, upper, place.within(".upper")), iceberg, place)
        case MultirangeOf(bound), ListType(to):
            return _list(kernels.MULTIRANGE, ",", _reader(RangeOf(bound), to, place.within("[]")), iceberg, place)
        case Leaf("vector" | "halfvec"), ListType(to):
            return _list(kernels.VECTOR, ",", _reader(Leaf("float4"), to, place.within("[]")), iceberg, place)
        case Leaf("hstore"), MapType(Primitive("string"), Primitive("string")):
            return _hstore(iceberg, place)
        case Leaf("interval"), StructType():
            return lambda fields: _intervals(fields, iceberg, place)
        case Leaf(name), Primitive() if (found := _leaf(name, iceberg, place)) is not None:
            return found
    raise ValueError(f"{place} is not read as {iceberg}")


def _leaf(name: str, iceberg: Primitive, place: _Place) -> Reader | None:
    match name, iceberg.name:
        case "bytea", "binary":
            return lambda fields: _binary(fields, 2, place)
        case (("geometry" | "geography"), "binary"):
            return lambda fields: _binary(fields, 0, place)
        case "bool", "boolean":
            return lambda fields: _booleans(fields, place)
        case ("float4", "float") | ("float8", "double"):
            return lambda fields: _floats(fields, iceberg, place)
        case (("int2" | "int4"), "int") | (("int8" | "oid"), "long"):
            return _fixed(kernels.parse_int, _INT_RANGE[name], np.int32 if iceberg.name == "int" else np.int64, 1, iceberg, place)
        case "date", "date":
            return _fixed(kernels.parse_date, (), np.int32, 1, iceberg, place)
        case "time", "time":
            return _fixed(kernels.parse_time, (), np.int64, 1, iceberg, place)
        case ("timestamp", "timestamp") | ("timestamptz", "timestamptz"):
            return _fixed(kernels.parse_timestamp, (name == "timestamptz",), np.int64, 1, iceberg, place)
        case "uuid", "uuid":
            return _fixed(kernels.parse_uuid, (), np.uint8, 16, iceberg, place)
        case (("numeric" | "money"), _) if iceberg.decimal is not None:
            read = _fixed(kernels.parse_decimal, iceberg.decimal, np.uint64, 2, iceberg, place)
            return read if name == "numeric" else lambda fields: read(_money(fields, place))
    return None


# --------------------------------------------------------------------------------------------------------- single values


def _fixed(parse_: Any, arguments: Sequence[Any], dtype: Any, wide: int, iceberg: Primitive, place: _Place) -> Reader:
    """Values of a fixed width: ``wide`` numbers of ``dtype`` each."""
    kind = arrow_type(str(iceberg))

    def read(fields: Fields) -> "pa.Array[Any]":
        count = len(fields.length)
        out = np.empty(count * wide, dtype)
        length = fields.length
        at = 0
        while at < count:
            at += parse_(fields.buffer, fields.start[at:], length[at:], *arguments, out[at * wide :])
            if at < count:
                place.refuse(fields, at, iceberg)
                length = _nulled(length, fields, at)
                out[at * wide : (at + 1) * wide] = 0
                at += 1
        validity, nulls = _validity(length)
        return pa.Array.from_buffers(kind, count, [validity, _buffer(out)], nulls)

    return read


def _nulled(length: npt.NDArray[np.int32], fields: Fields, at: int) -> npt.NDArray[np.int32]:
    """The lengths with a null at ``at``; those of ``fields`` itself are left as they are."""
    own = length.copy() if length is fields.length else length
    own[at] = kernels.NULL
    return own


def _buffer(array: Any) -> pa.Buffer:
    return pa.py_buffer(array)


def _validity(length: npt.NDArray[np.int32]) -> tuple[pa.Buffer | None, int]:
    bitmap = np.zeros((len(length) + 7) >> 3, np.uint8)
    nulls = kernels.nulls(length, bitmap)
    return _buffer(bitmap) if nulls else None, nulls


def _booleans(fields: Fields, place: _Place) -> "pa.Array[Any]":
    count = len(fields.length)
    out = np.zeros((count + 7) >> 3, np.uint8)
    at = kernels.parse_bool(fields.buffer, fields.start, fields.length, out)
    if at < count:
        raise place.corrupt(fields, at)
    validity, nulls = _validity(fields.length)
    return pa.Array.from_buffers(pa.bool_(), count, [validity, _buffer(out)], nulls)


def _lay_out(length: npt.NDArray[np.int32], place: _Place) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], pa.Buffer | None, int]:
    """Offsets, room for the bytes, validity and null count of an Arrow string or binary column."""
    count = len(length)
    offsets = np.empty(count + 1, np.int32)
    bitmap = np.zeros((count + 7) >> 3, np.uint8)
    total, nulls = kernels.lay_out(length, offsets, bitmap)
    if total < 0:
        raise _overlap(place)
    return offsets, np.empty(total, np.uint8), _buffer(bitmap) if nulls else None, nulls


def _overlap(place: _Place) -> Corrupt:
    # Fields of one buffer below 2 GiB cannot overlap, so their sum fits: these do overlap.
    return Corrupt("VALUE_CORRUPT", f"{place} has more than 2 GiB of text in one batch", "its values overlap")


def _gathered(fields: Fields, place: _Place) -> "tuple[pa.Array[Any], bool]":
    """The fields as a binary column, and whether all of it is ASCII without NUL."""
    offsets, out, validity, nulls = _lay_out(fields.length, place)
    plain = kernels.gather(fields.buffer, fields.start, fields.length, offsets, out)
    count = len(fields.length)
    return pa.Array.from_buffers(pa.binary(), count, [validity, _buffer(offsets), _buffer(out)], nulls), plain


def _strings(fields: Fields, place: _Place) -> "pa.Array[Any]":
    raw, plain = _gathered(fields, place)
    text = raw.view(pa.string())
    if not plain:
        try:
            text.validate(full=True)
        except pa.ArrowInvalid:
            raise place.corrupt(fields, _first(fields, _not_utf8)) from None
        characters = read_only(raw.buffers()[2])
        if np.count_nonzero(characters) != len(characters):
            raise place.corrupt(fields, _first(fields, lambda value: b"\0" in value))
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
    raise AssertionError("Arrow and Python disagree about a value")


def _binary(fields: Fields, prefix: int, place: _Place) -> "pa.Array[Any]":
    count = len(fields.length)
    sizes = np.empty(count, np.int32)
    at = kernels.hex_lengths(fields.buffer, fields.start, fields.length, prefix, sizes)
    if at < count:
        raise place.corrupt(fields, at)
    offsets, out, validity, nulls = _lay_out(sizes, place)
    at = kernels.parse_hex(fields.buffer, fields.start, fields.length, prefix, offsets, out)
    if at < count:
        raise place.corrupt(fields, at)
    return pa.Array.from_buffers(pa.binary(), count, [validity, _buffer(offsets), _buffer(out)], nulls)


def _floats(fields: Fields, iceberg: Primitive, place: _Place) -> "pa.Array[Any]":
    # Arrow's reader (fast_float) rounds correctly, but also takes text PostgreSQL never prints: the grammar is checked before,
    # overflow and underflow after.
    count = len(fields.length)
    at = kernels.check_floats(fields.buffer, fields.start, fields.length)
    if at < count:
        raise place.corrupt(fields, at)
    raw, _ = _gathered(fields, place)
    numbers = raw.view(pa.string()).cast(arrow_type(iceberg.name))
    if count:
        data = numbers.buffers()[1]
        assert data is not None
        values = np.frombuffer(memoryview(data), np.float32 if iceberg.name == "float" else np.float64)[:count]
        at = kernels.check_float_results(fields.buffer, fields.start, fields.length, values)
        if at < count:
            raise place.corrupt(fields, at)
    return numbers


_MONEY: Final = r"-?\$\d{1,3}(,\d{3})*\.\d{2}"


def _money(fields: Fields, place: _Place) -> Fields:
    """The same numbers as plain decimals: money has but one form under ``lc_monetary = C``."""
    text = _strings(fields, place)
    if pc.any(pc.invert(pc.match_substring_regex(text, f"^(?:{_MONEY})$"))).as_py():
        raise place.corrupt(fields, _first(fields, lambda value: re.fullmatch(_MONEY.encode(), value) is None))
    return _fields_of(pc.replace_substring_regex(text, r"[$,]", ""))


_INTERVAL: Final = (
    r"(?:(?P<years>-?\d{1,9}) years?)?"
    r"(?: ?\+?(?P<mons>-?\d{1,2}) mons?)?"
    r"(?: ?\+?(?P<days>-?\d{1,10}) days?)?"
    r"(?: ?\+?(?P<minus>-?)(?P<hours>\d{2,10}):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)(?:\.(?P<fraction>\d{1,6}))?)?"
)
_INTERVAL_BYTES: Final = re.compile(rb"(?=[^ ])" + _INTERVAL.encode())
_INT4: Final = (-(2**31), 2**31 - 1)


def _intervals(fields: Fields, iceberg: StructType, place: _Place) -> "pa.Array[Any]":
    """Months, days and microseconds as PostgreSQL stores them. Its text tells years from months, and hours from days, exactly."""
    count = len(fields.length)
    text = _strings(fields, place)
    length = fields.length
    infinite = _where(pc.match_substring_regex(text, "^-?infinity$"))
    for at in np.flatnonzero(infinite):
        place.refuse(fields, int(at), iceberg)
        length = _nulled(length, fields, int(at))
    valid = length >= 0
    found = pc.extract_regex(text, f"^{_INTERVAL}$")
    # An empty text matches, and so would a leading blank.
    odd = _where(pc.is_null(found)) | _where(pc.match_substring_regex(text, "^( |$)"))
    if np.any(odd & valid):
        raise place.corrupt(fields, _first(fields, _no_interval))

    def number(part: Any) -> npt.NDArray[np.int64]:
        digits = pc.if_else(pc.equal(part, pa.scalar("")), pa.scalar("0"), part)
        return np.asarray(digits.cast(pa.int64()).fill_null(0))

    names = ("years", "mons", "days", "minus", "hours", "minutes", "seconds", "fraction")
    years, mons, days, minus, hours, minutes, seconds, fraction = (pc.struct_field(found, name) for name in names)
    months = number(years) * 12 + number(mons)
    whole_days = number(days)
    sign = np.where(_where(pc.equal(minus, pa.scalar("-"))), -1, 1)
    rest = number(minutes) * 60_000_000 + number(seconds) * 1_000_000 + number(pc.utf8_rpad(fraction, 6, "0"))
    long_hours = number(hours)
    # 2**63 microseconds are 2562047788 hours and 54.775808 seconds: only there can the sum pass them.
    limit = np.where(sign < 0, 54_775_808, 54_775_807)
    wrong = (long_hours > 2_562_047_788) | ((long_hours == 2_562_047_788) & (rest > limit))
    for numbers in (months, whole_days):
        wrong |= (numbers < _INT4[0]) | (numbers > _INT4[1])
    if np.any(wrong & valid):
        raise place.corrupt(fields, int(np.flatnonzero(wrong & valid)[0]))
    micros = sign * long_hours * 3_600_000_000 + sign * rest
    validity, nulls = _validity(length)
    parts = [pa.array(months.astype(np.int32)), pa.array(whole_days.astype(np.int32)), pa.array(micros)]
    return pa.Array.from_buffers(arrow_type(str(iceberg)), count, [validity], nulls, children=parts)


def _where(flags: Any) -> npt.NDArray[np.bool_]:
    """Where an Arrow boolean is true."""
    return np.asarray(flags.fill_null(False))


def _no_interval(value: bytes) -> bool:
    return _INTERVAL_BYTES.fullmatch(value) is None and value not in (b"infinity", b"-infinity")


# ------------------------------------------------------------------------------------------------------ values with parts


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a column's texts: where each text's begin (``offsets``, one more than texts), and which texts are null."""

    fields: Fields
    offsets: npt.NDArray[np.int32]
    length: npt.NDArray[np.int32]
    """Of the texts; below zero for nulls."""


def _split(fields: Fields, grammar: int, delimiter: str, width: int, iceberg: IcebergType, place: _Place) -> _Parts:
    """``kernels.split`` over a whole column; ``width``: how many parts each text has, or -1."""
    count = len(fields.length)
    length = fields.length
    total = int(np.maximum(length, 0).sum(dtype=np.int64))
    # A part is at least a byte and its delimiter. What is not used of the room costs nothing.
    room = count * width if width >= 0 else total // 2 + 1
    if max(total, room) > _LARGEST:
        raise _overlap(place)
    out = np.empty(total, np.uint8)
    start, size, offsets = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(count + 1, np.int32)
    state = np.zeros(3, np.int64)
    while True:
        kernels.split(fields.buffer, fields.start, length, grammar, ord(delimiter), width, out, start, size, offsets, state)
        at, filled, parts = state.tolist()
        if at == count:
            offsets[count] = parts
            return _Parts(Fields(read_only(out[:filled]), start[:parts], size[:parts]), offsets, length)
        place.refuse(fields, at, iceberg)
        length = _nulled(length, fields, at)


def _list(grammar: int, delimiter: str, element: Reader, iceberg: ListType, place: _Place) -> Reader:
    kind = arrow_type(str(iceberg))

    def read(fields: Fields) -> "pa.Array[Any]":
        parts = _split(fields, grammar, delimiter, -1, iceberg, place)
        validity, nulls = _validity(parts.length)
        return pa.Array.from_buffers(kind, len(parts.length), [validity, _buffer(parts.offsets)], nulls, children=[element(parts.fields)])

    return read


def _columns(parts: _Parts, width: int) -> list[Fields]:
    """Parts of texts that have ``width`` each, as that many columns with a row a text."""
    there = parts.length >= 0
    out = []
    for at in range(width):
        start, length = np.zeros(len(there), np.int32), np.full(len(there), kernels.NULL, np.int32)
        start[there] = parts.fields.start[at::width]
        length[there] = parts.fields.length[at::width]
        out.append(Fields(parts.fields.buffer, start, length))
    return out


def _composite(readers: Sequence[Reader], iceberg: StructType, place: _Place) -> Reader:
    kind = arrow_type(str(iceberg))
    width = len(readers)

    def read(fields: Fields) -> "pa.Array[Any]":
        try:
            parts = _split(fields, kernels.RECORD, ",", width, iceberg, place)
        except Corrupt:
            _altered(fields, width, place)
            raise
        validity, nulls = _validity(parts.length)
        children = [read_(column) for read_, column in zip(readers, _columns(parts, width), strict=True)]
        return pa.Array.from_buffers(kind, len(parts.length), [validity], nulls, children=children)

    return read


def _altered(fields: Fields, width: int, place: _Place) -> None:
    """Raises if the first text that has not ``width`` parts is a record all the same: its type has changed."""
    for at in np.flatnonzero(fields.length >= 0):
        value = fields.text(int(at))
        one = Fields(read_only(value), np.zeros(1, np.int32), np.array([len(value)], np.int32))
        room, offsets, state = np.empty((2, len(value) + 1), np.int32), np.empty(2, np.int32), np.zeros(3, np.int64)
        out = np.empty(len(value), np.uint8)
        kernels.split(one.buffer, one.start, one.length, kernels.RECORD, ord(","), -1, out, room[0], room[1], offsets, state)
        done, _, found = state.tolist()
        if not done:
            return
        if found != width:
            raise UnsupportedTable(
                "TABLE_CHANGED",
                f"{place} came with {found} attributes, and its composite type had {width} when the lake's table was made",
                "an attribute was added to the type, or dropped (ALTER TYPE, or ALTER TABLE where it is a table's)",
                "if the lake shall follow: `icelake resume` the table, with --reload where its changes cannot be replayed",
            )


_BOUNDS: Final = pa.array(["[)", "(]", "()", "[]", "empty"])
_EMPTY: Final = np.frombuffer(b"empty", np.uint8)


def _range(lower: Reader, upper: Reader, iceberg: StructType, place: _Place) -> Reader:
    kind = arrow_type(str(iceberg))

    def read(fields: Fields) -> "pa.Array[Any]":
        count = len(fields.length)
        there = fields.length >= 0
        empty = np.zeros(count, np.bool_)
        candidates = np.flatnonzero(fields.length == len(_EMPTY))
        letters = fields.buffer[fields.start[candidates][:, None] + np.arange(len(_EMPTY))]
        empty[candidates[(letters == _EMPTY).all(axis=1)]] = True
        bounded = Fields(fields.buffer, fields.start, np.where(empty, np.int32(kernels.NULL), fields.length))
        parts = _split(bounded, kernels.RANGE, ",", 2, iceberg, place)
        which = np.full(count, 4, np.int8)
        rows = np.flatnonzero(there & ~empty)
        first = fields.buffer[fields.start[rows]] == ord("[")
        last = fields.buffer[fields.start[rows] + fields.length[rows] - 1] == ord("]")
        which[rows] = np.where(first, np.where(last, 3, 0), np.where(last, 1, 2))
        below, above = _columns(parts, 2)
        validity, nulls = _validity(fields.length)
        children = [lower(below), upper(above), _BOUNDS.take(pa.array(which, pa.int8(), mask=~there))]
        return pa.Array.from_buffers(kind, count, [validity], nulls, children=children)

    return read


def _hstore(iceberg: MapType, place: _Place) -> Reader:
    kind = arrow_type(str(iceberg))
    assert isinstance(kind, pa.MapType)

    def read(fields: Fields) -> "pa.Array[Any]":
        parts = _split(fields, kernels.HSTORE, ",", -1, iceberg, place)
        halves = [Fields(parts.fields.buffer, parts.fields.start[at::2].copy(), parts.fields.length[at::2].copy()) for at in (0, 1)]
        entries = pa.StructArray.from_arrays([_strings(half, place) for half in halves], fields=[kind.key_field, kind.item_field])
        validity, nulls = _validity(parts.length)
        return pa.Array.from_buffers(kind, len(parts.length), [validity, _buffer(parts.offsets // 2)], nulls, children=[entries])

    return read


# ---------------------------------------------------------------------------------------------------------------- errors

_DIMENSIONS: Final = re.compile(rb"(?:\[-?\d+:-?\d+\])+=\{.*\}|\{\{.*\}\}", re.DOTALL)


def _beyond(value: bytes, iceberg: IcebergType) -> str:
    """Why a value PostgreSQL may hold does not fit, or empty: not a value of its type."""
    infinite = value in (b"infinity", b"-infinity")
    match iceberg:
        case ListType():
            if _DIMENSIONS.fullmatch(value):
                return "a list has one dimension, counted from 1"
        case StructType() if infinite and str(iceberg) == SCALARS["interval"].iceberg:
            return "a struct of months, days and microseconds is finite"
        case Primitive("date" | "timestamp" | "timestamptz" as name):
            if infinite:
                return "Iceberg has no infinite dates and times"
            year = value.split(b"-")[0]
            if name != "date" and len(year) == 6 and year.isdigit() and int(year) >= 294247:
                return "microseconds since 1970 end with the year 294247 in 64 bits"
        case Primitive("time") if value == b"24:00:00":
            return "Iceberg's time ends before midnight"
        case Primitive() if iceberg.decimal is not None:
            if value in (b"NaN", b"Infinity", b"-Infinity"):
                return "Iceberg's decimals are finite"
            digits = value.removeprefix(b"-")
            if digits.replace(b".", b"", 1).isdigit() and digits[:1] != b"." and digits[-1:] != b".":
                return f"it has more digits than {iceberg} has before or after the point"
    return ""


# ----------------------------------------------------------------------------------------------------------- and back


def to_text(values: "pa.Array[Any]", column: Column) -> list[str | None]:
    """The inverse of ``to_arrow`` for types of keys: what PostgreSQL prints for each value under ``types.SESSION``; floats as Python
    prints them, which PostgreSQL reads back as the same number."""
    print_ = _printer(column)
    return [None if value is None else print_(value) for value in _plain(values)]


def _plain(values: "pa.Array[Any]") -> list[Any]:
    if pa.types.is_date32(values.type):
        return values.cast(pa.int32()).to_pylist()
    if pa.types.is_time64(values.type) or pa.types.is_timestamp(values.type):
        return values.cast(pa.int64()).to_pylist()
    return values.to_pylist()


def _printer(column: Column) -> Callable[[Any], str]:
    source = type_of(column)
    name = source.name if isinstance(source, Leaf) else ""
    match column.iceberg:
        case "string" | "int" | "long" | "float" | "double":
            return str
        case "boolean":
            return lambda value: "t" if value else "f"
        case "date":
            return print_date
        case "time":
            return print_time
        case "timestamp":
            return print_timestamp
        case "timestamptz":
            return lambda value: print_timestamp(value, "+00")
        case "uuid":
            return lambda value: str(uuid.UUID(bytes=value))
        case "binary":
            return lambda value: f"\\x{value.hex()}"
        case "decimal(19,2)" if name == "money":
            return lambda value: f"{'-' if value < 0 else ''}${abs(value):,.2f}"
        case kind if kind.startswith("decimal"):
            return _print_decimal
    raise ValueError(f"column {column.name} ({column.pg_type}) is not of a key's type")


def _print_decimal(value: Decimal) -> str:
    return format(value, "f")
