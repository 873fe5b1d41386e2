"""Hashes: against a SipHash written from its paper, over every type, with nulls, slices and awkward column boundaries."""

import decimal
import random
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.errors import UnsupportedTable
from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType, parse
from icelake.ports import arrow_type
from icelake.tables.keys import hash_keys, hash_rows
from tests.twins.tables import siphash as twin_of_siphash
from tests.unit.tables.nested import TYPES, same
from tests.unit.tables.nested import values as any_value

SEED = (0x0706050403020100, 0x0F0E0D0C0B0A0908)


def siphash(data: bytes) -> tuple[int, int]:
    return twin_of_siphash(data, SEED)


def test_the_reference_is_the_published_siphash() -> None:
    # vectors_sip128[0] and [1] of the authors' test vectors: key 00..0f, input empty and 00.
    assert struct.pack("<QQ", *siphash(b"")).hex() == "a3817f04ba25a8e66df67214c7550293"
    assert struct.pack("<QQ", *siphash(b"\0")).hex() == "da87c1d86b99af44347659119b22fc45"


def encode(value: Any, kind: pa.DataType) -> bytes:
    """The canonical encoding, written from its description."""
    if value is None:
        return struct.pack("<Q", 0)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        data = value.encode() if isinstance(value, str) else value
        return struct.pack("<Q", 2 + len(data)) + data + bytes(-len(data) % 8)
    if pa.types.is_floating(kind):
        return struct.pack("<Qd", 1, value)
    if pa.types.is_decimal(kind):
        return struct.pack("<Q", 1) + int(value.scaleb(kind.scale, decimal.Context(prec=50))).to_bytes(16, "little", signed=True)
    if pa.types.is_fixed_size_binary(kind):
        return struct.pack("<Q", 1) + value
    return struct.pack("<Qq", 1, int(value))


VALUES: dict[str, list[Any]] = {
    "boolean": [True, False, None, True],
    "int": [0, -1, 2**31 - 1, None, -(2**31)],
    "long": [0, -1, 2**63 - 1, None, -(2**63)],
    "float": [0.5, -1.25, None, 3.0],
    "double": [0.1, -1.25e300, None, float("inf")],
    "string": ["", "a", None, "12345678", "123456789", "ünïcode " * 5],
    "binary": [b"", b"\0", b"\0\0", None, b"x" * 1000],
    "date": [0, -719162, None, 20000],
    "time": [0, 86_399_999_999, None],
    "timestamp": [0, -1, None, 2**60],
    "timestamptz": [0, -1, None, 2**60],
    "uuid": [bytes(range(16)), bytes(16), None, b"\xff" * 16],
    "decimal(10,2)": [decimal.Decimal("1.25"), decimal.Decimal("-99999999.99"), None, decimal.Decimal(0)],
    "decimal(38,0)": [decimal.Decimal(10**38 - 1), decimal.Decimal(-1), None],
}


def column(iceberg: str, values: list[Any]) -> pa.Array:
    kind = arrow_type(iceberg)
    storage = {"date": pa.int32(), "time": pa.int64(), "timestamp": pa.int64(), "timestamptz": pa.int64()}.get(iceberg)
    return pa.array(values, storage).cast(kind) if storage is not None else pa.array(values, kind)


def batch(**columns: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize("iceberg", VALUES)
def test_every_type_is_hashed_as_described(iceberg: str) -> None:
    values = VALUES[iceberg]
    kind = arrow_type(iceberg)
    both = batch(k=column(iceberg, values), again=column(iceberg, values[::-1]))
    expected = [siphash(encode(a, kind) + encode(b, kind)) for a, b in zip(values, values[::-1], strict=True)]
    assert [tuple(map(int, row)) for row in hash_keys(both, SEED)] == expected
    assert len({row.tobytes() for row in hash_keys(batch(k=column(iceberg, values)), SEED)}) == len(set(values))


@pytest.mark.parametrize("iceberg", VALUES)
def test_a_slice_hashes_as_the_whole(iceberg: str) -> None:
    values = [random.Random(7).choice(VALUES[iceberg]) for _ in range(40)] + VALUES[iceberg] * 5
    for keys in (batch(k=column(iceberg, values)), batch(a=column(iceberg, values), b=column(iceberg, values))):
        whole = hash_keys(keys, SEED)
        for start in (0, 1, 7, 8, 9, 15, 31):
            for length in (0, 1, 8, 13):
                assert (hash_keys(keys.slice(start, length), SEED) == whole[start : start + length]).all()


def test_a_single_integer_is_its_own_hash() -> None:
    values = [5, -5, 0, None]
    for kind in (pa.int32(), pa.int64()):
        hashes = hash_keys(batch(k=pa.array(values, kind)), SEED)
        assert hashes.view(np.int64).tolist() == [[5, 0], [-5, 0], [0, 0], [0, 1]]


def test_columns_do_not_run_into_one_another() -> None:
    rows = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc", ""),
        ("", "abc"),
        (None, "abc"),
        ("abc", None),
        (None, None),
        ("", ""),
        (None, ""),
        ("", None),
    ]
    hashes = hash_keys(batch(a=pa.array([a for a, _ in rows]), b=pa.array([b for _, b in rows])), SEED)
    assert len({row.tobytes() for row in hashes}) == len(rows)


def test_widened_columns_keep_their_hashes() -> None:
    other = pa.array(["x", "y"])
    for narrow, wide, values in ((pa.int32(), pa.int64(), [-3, 7]), (pa.float32(), pa.float64(), [0.5, -2.0])):
        before = hash_keys(batch(k=pa.array(values, narrow), o=other), SEED)
        after = hash_keys(batch(k=pa.array(values, wide), o=other), SEED)
        assert (before == after).all()


def test_zeros_and_nans_are_one_key_each() -> None:
    odd_nan = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_0001))[0]
    hashes = hash_keys(batch(k=pa.array([0.0, -0.0, float("nan"), odd_nan], pa.float64())), SEED)
    assert hashes[0].tolist() == hashes[1].tolist() != hashes[2].tolist() == hashes[3].tolist()


def test_the_seed_matters_and_other_processes_agree() -> None:
    keys = batch(k=pa.array(["a", "b"]))
    here = hash_keys(keys, SEED)
    assert (here != hash_keys(keys, (SEED[0] ^ 1, SEED[1]))).all()
    program = (
        "import pyarrow as pa; from icelake.tables.keys import hash_keys;"
        f"print(hash_keys(pa.RecordBatch.from_pydict({{'k': pa.array(['a', 'b'])}}), {SEED}).tolist())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here.tolist())


def test_what_is_no_key_is_refused() -> None:
    for keys in (batch(k=pa.array([[1]])), batch(k=pa.array([b"abc"], pa.binary(3)))):
        with pytest.raises(UnsupportedTable, match="KEY_TYPE"):
            hash_keys(keys, SEED)
    with pytest.raises(UnsupportedTable, match="KEY_MISSING"):
        hash_keys(pa.RecordBatch.from_pydict({}), SEED)


def test_strings_without_bytes() -> None:
    assert len(hash_keys(batch(k=pa.array([], pa.string())), SEED)) == 0
    assert (hash_keys(batch(k=pa.array(["", ""])), SEED) == np.array(siphash(encode("", pa.string())), np.uint64)).all()
    assert (hash_keys(batch(k=pa.nulls(2, pa.string())), SEED) == np.array(siphash(encode(None, pa.string())), np.uint64)).all()


# ------------------------------------------------------------------------------------------------------------ whole rows


def nested_encoding(value: Any, kind: IcebergType) -> bytes:
    """The canonical encoding of a value in a row, written from its description."""

    def hashed(data: bytes) -> bytes:
        return struct.pack("<QQ", *siphash(data))

    match kind:
        case Primitive(name):
            if value is not None and name in ("float", "double") and value != value:
                value = float("nan")
            return encode(value, arrow_type(name))
        case _ if value is None:
            return struct.pack("<Q", 0)
        case StructType(fields):
            return struct.pack("<Q", 1) + hashed(b"".join(nested_encoding(value[name], part) for name, part in fields))
        case ListType(element):
            parts = [hashed(nested_encoding(part, element)) for part in value]
        case MapType(key, item):
            # An entry is a struct of its own.
            entries = [hashed(nested_encoding(k, key) + nested_encoding(v, item)) for k, v in value]
            entries.sort(key=lambda entry: struct.unpack("<QQ", entry))
            parts = [hashed(struct.pack("<Q", 1) + entry) for entry in entries]
            parts.sort(key=lambda part: struct.unpack("<QQ", part))
    return struct.pack("<Q", 2 + len(parts)) + b"".join(parts)


def rows_of(kinds: list[IcebergType], rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    arrays = [pa.array([row[place] for row in rows], arrow_type(str(kind))) for place, kind in enumerate(kinds)]
    return pa.RecordBatch.from_arrays(arrays, [f"c{place}" for place in range(len(kinds))])


@st.composite
def tables(draw: Any) -> tuple[list[IcebergType], list[tuple[Any, ...]]]:
    """Column types and rows of them; some rows come again, with the entries of their maps in another order."""
    kinds = draw(st.lists(TYPES, min_size=1, max_size=3))
    rows = draw(st.lists(st.tuples(*(any_value(kind) for kind in kinds)), min_size=1, max_size=6))
    again = draw(st.lists(st.sampled_from(rows), max_size=3))
    return kinds, rows + [tuple(turned(value, kind) for value, kind in zip(row, kinds, strict=True)) for row in again]


def turned(value: Any, kind: IcebergType) -> Any:
    match kind:
        case _ if value is None:
            return None
        case ListType(element):
            return [turned(part, element) for part in value]
        case MapType(key, item):
            return [(turned(k, key), turned(v, item)) for k, v in value][::-1]
        case StructType(fields):
            return {name: turned(value[name], part) for name, part in fields}
    return value


@settings(max_examples=60, deadline=None)  # the first call compiles
@given(tables())
def test_rows_are_equal_just_if_their_hashes_are(table: tuple[list[IcebergType], list[tuple[Any, ...]]]) -> None:
    kinds, rows = table
    whole = rows_of(kinds, rows)
    hashes = [row.tobytes() for row in hash_rows(whole, SEED)]
    said = [repr([same(value, kind) for value, kind in zip(row, kinds, strict=True)]) for row in rows]
    for one, first in enumerate(said):
        for other, second in enumerate(said):
            assert (first == second) == (hashes[one] == hashes[other]), (rows[one], rows[other])
    # Not what lies beside a row in memory.
    for at in range(len(rows)):
        assert hash_rows(whole.slice(at, 1), SEED)[0].tobytes() == hashes[at]
        assert hash_rows(rows_of(kinds, rows[at : at + 1]), SEED)[0].tobytes() == hashes[at]


@settings(max_examples=60, deadline=None)  # the first call compiles
@given(tables())
def test_rows_are_hashed_as_described(table: tuple[list[IcebergType], list[tuple[Any, ...]]]) -> None:
    kinds, rows = table
    expected = [siphash(b"".join(nested_encoding(value, kind) for value, kind in zip(row, kinds, strict=True))) for row in rows]
    assert [tuple(map(int, row)) for row in hash_rows(rows_of(kinds, rows), SEED)] == expected


def test_rows_know_zeros_apart_and_one_nan() -> None:
    odd_nan = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_0001))[0]
    for kind in ("double", "list<double>", "struct<a: double>", "map<double, double>"):
        wrap = {"list": lambda v: [v], "stru": lambda v: {"a": v}, "map<": lambda v: [(v, v)]}.get(kind[:4], lambda v: v)
        rows = [(wrap(value),) for value in (0.0, -0.0, float("nan"), odd_nan)]
        zero, minus, nan, other = [row.tobytes() for row in hash_rows(rows_of([parse(kind)], rows), SEED)]
        assert zero != minus
        assert nan == other
        assert nan not in (zero, minus)


def test_nothing_hides_in_a_null() -> None:
    """What an array holds under a null is not part of it."""
    inner = pa.array([1, 2, 3, 4], pa.int32())
    nulls = pa.array([False, True])
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), inner, mask=nulls)
    structs = pa.StructArray.from_arrays([inner.slice(0, 2)], ["a"], mask=nulls)
    hashes = hash_rows(batch(l=lists, s=structs), SEED)
    clean = rows_of([parse("list<int>"), parse("struct<a: int>")], [([1, 2], {"a": 1}), (None, None)])
    assert (hashes == hash_rows(clean, SEED)).all()
    different: list[tuple[Any, ...]] = [(None,), ([],), ([None],), ([None, None],), ([[]],), ([[None]],)]
    assert len({row.tobytes() for row in hash_rows(rows_of([parse("list<list<int>>")], different), SEED)}) == len(different)


def test_rows_of_what_the_lake_has_not_are_refused() -> None:
    with pytest.raises(UnsupportedTable):
        hash_rows(batch(k=pa.array([[1]], pa.list_(pa.uint8()))), SEED)
