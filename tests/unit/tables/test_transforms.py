"""Partition transforms, value for value those of PyIceberg, and beyond what its Python dates can hold."""

import datetime as dt
import struct
from decimal import Context, Decimal
from typing import Any

import mmh3
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyiceberg.transforms import parse_transform
from pyiceberg.types import NestedField, PrimitiveType
from pyiceberg.utils.decimal import decimal_to_bytes

from icelake.errors import ValueOutOfContract
from icelake.ports import arrow_type
from icelake.tables import transforms

WIDE = Context(prec=80)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "date": st.dates().map(lambda day: (day - dt.date(1970, 1, 1)).days),
    "time": st.integers(0, 86_399_999_999),
    "timestamp": st.datetimes().map(lambda moment: (moment - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)),
    "string": st.text(max_size=12),
    "binary": st.binary(max_size=12),
    "decimal(9,2)": st.decimals("-9999999.99", "9999999.99", places=2),
    "decimal(38,4)": st.integers(-(10**38) + 1, 10**38 - 1).map(lambda number: Decimal(number).scaleb(-4, WIDE)),
}
KINDS["timestamptz"] = KINDS["timestamp"]
WIDTHS = st.sampled_from([1, 2, 3, 7, 10, 16, 1000, 2**31 - 1])


def array(kind: str, values: list[Any]) -> Any:
    arrow = arrow_type(kind)
    if pa.types.is_temporal(arrow):
        return pa.array(values, pa.int32() if pa.types.is_date32(arrow) else pa.int64()).view(arrow)
    return pa.array(values, arrow)


def whole(column: Any) -> list[Any]:
    """Values as PyIceberg's transforms give them: days and such as numbers."""
    return column.view(pa.int32()).to_pylist() if pa.types.is_date32(column.type) else column.to_pylist()


def iceberg(kind: str) -> PrimitiveType:
    found = NestedField(1, "x", kind).field_type
    assert isinstance(found, PrimitiveType)
    return found


@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)), width=WIDTHS)
@settings(max_examples=100, deadline=None)
def test_buckets_are_pyiceberg_s(data: st.DataObject, kind: str, width: int) -> None:
    values = data.draw(st.lists(st.none() | KINDS[kind], max_size=6))
    reference = parse_transform(f"bucket[{width}]").transform(iceberg(kind))
    column = array(kind, values)
    expected = [None if value is None else reference(value) for value in values]
    assert transforms.apply("bucket", width, column).to_pylist() == expected
    # A slice, and one whose offset is not at a byte of the bitmap.
    assert transforms.apply("bucket", width, pa.concat_arrays([column] * 3)[len(values) :][: len(values)]).to_pylist() == expected


def test_hashes_of_the_spec() -> None:
    """Appendix B, 32-bit Hash Requirements: its examples."""
    examples: list[tuple[str, Any, int]] = [
        ("int", 34, 2017239379),
        ("long", 34, 2017239379),
        ("decimal(9,2)", Decimal("14.20"), -500754589),
        ("date", 17486, -653330422),
        ("time", 81_068_000_000, -662762989),
        ("timestamp", 1_510_871_468_000_000, -2047944441),
        ("timestamptz", 1_510_871_468_000_000, -2047944441),
        ("string", "iceberg", 1210000089),
        ("binary", b"\x00\x01\x02\x03", -188683207),
    ]
    for kind, value, expected in examples:
        assert transforms.hashes(array(kind, [value])).tolist() == [expected], kind


@given(st.integers(-(10**38) + 1, 10**38 - 1))
@example(0)
@example(-128)
@example(127)
@example(128)
@example(-(2**63))
@example(2**64)
def test_decimals_are_hashed_as_their_shortest_bytes(number: int) -> None:
    value = Decimal(number)
    assert transforms.hashes(array("decimal(38,0)", [value])).tolist() == [mmh3.hash(decimal_to_bytes(value))]


@given(data=st.data(), kind=st.sampled_from(["int", "long", "string", "binary"]), width=WIDTHS)
@settings(max_examples=100, deadline=None)
def test_truncated_values_are_pyiceberg_s(data: st.DataObject, kind: str, width: int) -> None:
    values = data.draw(st.lists(st.none() | KINDS[kind], max_size=6))
    reference = parse_transform(f"truncate[{width}]").transform(iceberg(kind))
    expected = [None if value is None else reference(value) for value in values]
    least = {"int": -(2**31), "long": -(2**63)}.get(kind)
    if least is not None and any(value is not None and value < least for value in expected):
        with pytest.raises(ValueOutOfContract):
            transforms.apply("truncate", width, array(kind, values))
        return
    found = transforms.apply("truncate", width, array(kind, values))
    assert found.type == arrow_type(kind)
    assert found.to_pylist() == expected


@given(data=st.data(), kind=st.sampled_from(["date", "timestamp", "timestamptz"]), unit=st.sampled_from(["year", "month", "day", "hour"]))
@settings(max_examples=100, deadline=None)
def test_times_are_pyiceberg_s(data: st.DataObject, kind: str, unit: str) -> None:
    if (kind, unit) == ("date", "hour"):
        return
    values = data.draw(st.lists(st.none() | KINDS[kind], max_size=6))
    reference = parse_transform(unit).transform(iceberg(kind))
    found = transforms.apply(unit, None, array(kind, values))
    assert whole(found) == [None if value is None else reference(value) for value in values]
    assert found.type == arrow_type(transforms.result_type(unit, kind))


CYCLE = 146_097
"""Days of 400 years, after which the calendar repeats."""


@given(st.integers(-719_162, 2_932_896), st.integers(-18, 14_000))
def test_the_calendar_goes_on_beyond_python_s_years(day: int, cycles: int) -> None:
    far = min(day + cycles * CYCLE, 2_145_031_948)
    cycles = (far - day) // CYCLE
    days = array("date", [day, day + cycles * CYCLE])
    years = whole(transforms.apply("year", None, days))
    months = whole(transforms.apply("month", None, days))
    assert years[1] - years[0] == 400 * cycles
    assert months[1] - months[0] == 4800 * cycles
    if abs(day + cycles * CYCLE) < 106_000_000:
        micros = [n * 86_400_000_000 + 5 for n in (day, day + cycles * CYCLE)]
        moments = array("timestamp", micros)
        assert whole(transforms.apply("year", None, moments)) == years
        assert whole(transforms.apply("day", None, moments)) == whole(days)


def test_what_has_no_partition_is_refused() -> None:
    """PostgreSQL's last timestamp is in the year 294276, and the hours since 1970 until then are more than an int holds."""
    last = array("timestamp", [9_223_371_331_199_999_999])
    assert whole(transforms.apply("day", None, last)) == [106_751_982]
    with pytest.raises(ValueOutOfContract, match="PARTITION_VALUE"):
        transforms.apply("hour", None, last)
    for kind, least in (("int", -(2**31)), ("long", -(2**63))):
        with pytest.raises(ValueOutOfContract, match="PARTITION_VALUE"):
            transforms.apply("truncate", 10, array(kind, [least]))


def test_nothing_comes_of_nothing() -> None:
    for kind in KINDS:
        for unit in ("bucket", "truncate", "day"):
            if kind in ("int", "long", "string", "binary", "timestamp") and (unit == "day") == (kind == "timestamp"):
                for values in ([], [None]):
                    assert transforms.apply(unit, 4, array(kind, values)).to_pylist() == values


def test_what_lies_under_a_null_does_not_matter() -> None:
    numbers = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(bytes([0b10])), pa.py_buffer(struct.pack("<qq", -(2**63), 25))])
    assert transforms.apply("truncate", 10, numbers).to_pylist() == [None, 20]
