"""``to_arrow`` on literals and on noise. What a real server prints is in test_against_server."""

import math
import struct
from decimal import Decimal, localcontext
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.errors import Corrupt, ValueOutOfContract
from icelake.ports import arrow_type
from icelake.sources.postgres.values import to_arrow, to_text
from tests.unit.sources.postgres.wire import column

OIDS = [16, 17, 18, 19, 20, 21, 23, 25, 26, 114, 700, 701, 1042, 1082, 1083, 1114, 1184, 1266, 1700, 2950, 3802]


def numeric(precision: int, scale: int) -> int:
    return (precision << 16 | scale & 0x7FF) + 4


def read(values: list[Any], oid: int, typmod: int = -1) -> pa.Array:
    text: Any = pa.array(values, pa.binary() if any(isinstance(v, bytes) for v in values) else pa.string())
    found = to_arrow(text, column("c", 1, oid, typmod))
    found.validate(full=True)
    return found


@pytest.mark.parametrize("oid", OIDS)
def test_nothing_and_nulls(oid: int) -> None:
    typmod = numeric(9, 2) if oid == 1700 else -1
    for values in ([], [None], [None] * 17):
        found = read(values, oid, typmod)
        assert found.type == arrow_type(column("c", 1, oid, typmod).iceberg)
        assert found.to_pylist() == values


@pytest.mark.parametrize(
    ("oid", "texts"),
    [
        (16, ["t", "f", None, "t"]),
        (21, ["-32768", "32767", "0"]),
        (23, ["-2147483648", None, "2147483647"]),
        (20, ["-9223372036854775808", "9223372036854775807", "-1"]),
        (26, ["0", "4294967295"]),
        (25, ["", None, "ä\n漢字🧊", "x" * 100_000]),
        (17, ["\\x", "\\x00ff5c78", None]),
        (1082, ["4714-11-24 BC", "0001-12-31 BC", "0001-01-01", "2024-02-29", "10000-01-01", "5874897-12-31", None]),
        (1083, ["00:00:00", "23:59:59.999999", "12:30:00.5"]),
        (1114, ["4714-11-24 00:00:00 BC", "1969-12-31 23:59:59.999999", "294247-01-10 04:00:54.775807", None]),
        (1184, ["0044-03-15 12:00:00.000001+00 BC", "2024-01-02 03:04:05+00", "10000-01-01 00:00:00.1+00"]),
        (2950, ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None, "00000000-0000-0000-0000-000000000000"]),
    ],
)
def test_there_and_back(oid: int, texts: list[str | None]) -> None:
    assert to_text(read(texts, oid), column("c", 1, oid)) == texts
    # A slice of a larger array, as Arrow often hands them over.
    sliced = pa.array(["junk", *texts, "junk"], pa.string()).slice(1, len(texts))
    assert to_text(to_arrow(sliced, column("c", 1, oid)), column("c", 1, oid)) == texts


@settings(deadline=None)
@given(st.data())
def test_decimals_of_every_precision_and_scale(data: st.DataObject) -> None:
    precision = data.draw(st.integers(1, 38))
    scale = data.draw(st.integers(0, precision))
    unscaled = data.draw(st.lists(st.integers(-(10**precision) + 1, 10**precision - 1), max_size=5))
    with localcontext(prec=80):
        texts = [format(Decimal(n).scaleb(-scale), "f") for n in unscaled]
        found = read(texts, 1700, numeric(precision, scale))
        assert [int(v.scaleb(scale)) for v in found.to_pylist() if v is not None] == unscaled
    assert to_text(found, column("c", 1, 1700, numeric(precision, scale))) == texts
    if precision < 38 and unscaled:
        too_large = "1" + "0" * (precision - scale) + ("." + "0" * scale if scale else "")
        with pytest.raises(ValueOutOfContract, match="more digits"):
            read([*texts, too_large], 1700, numeric(precision, scale))


@settings(deadline=None)
@given(st.lists(st.floats(width=64)), st.lists(st.floats(width=32)))
def test_floats_bit_for_bit(doubles: list[float], singles: list[float]) -> None:
    for values, oid, code in ((doubles, 701, "d"), (singles, 700, "f")):
        spelled = ["NaN" if math.isnan(v) else "-Infinity" if v == -math.inf else "Infinity" if v == math.inf else repr(v) for v in values]
        found = read(spelled, oid).to_pylist()
        assert [struct.pack(code, v) for v in found if v == v] == [struct.pack(code, v) for v in values if v == v]
        assert [v != v for v in found] == [v != v for v in values]


@settings(deadline=None)
@given(st.lists(st.none() | st.binary()), st.lists(st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_bytes_and_text(blobs: list[bytes | None], texts: list[str | None]) -> None:
    assert read([None if b is None else "\\x" + b.hex() for b in blobs], 17).to_pylist() == blobs
    assert read(texts, 25).to_pylist() == texts


def test_zeros_beyond_the_scale_say_nothing() -> None:
    """A numeric without a scale prints 5 / 2 so; the project may have chosen a decimal for it."""
    texts = ["2.5000000000000000", "-0.0000", "1234567.00000000000000000000000000000000000000000000", "0.5", None]
    assert read(texts, 1700, numeric(9, 2)).to_pylist() == [Decimal("2.50"), Decimal(0), Decimal(1234567), Decimal("0.50"), None]
    assert read(["7.000"], 1700, numeric(9, 0)).to_pylist() == [Decimal(7)]
    with pytest.raises(ValueOutOfContract):
        read(["2.5000000000000001"], 1700, numeric(9, 2))


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (1082, "infinity"), (1082, "-infinity"), (1114, "infinity"), (1184, "-infinity"), (1083, "24:00:00"),
        (1114, "294247-01-10 04:00:54.775808"), (1184, "294276-12-31 23:59:59.999999+00"), (1700, "NaN"), (1700, "-Infinity"),
        (1700, "1.234"), (1700, "12345678.00"),
    ],
)  # fmt: skip
def test_values_that_iceberg_cannot_hold(oid: int, text: str) -> None:
    with pytest.raises(ValueOutOfContract) as caught:
        read([None, text], oid, numeric(9, 2) if oid == 1700 else -1)
    assert repr(text) in caught.value.what
    assert "column c" in caught.value.what
    assert caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (16, ""), (16, "true"), (16, "T"), (21, "32768"), (23, "-2147483649"), (23, "1 "), (23, "+1"), (23, "-"), (23, ""), (23, "1.0"),
        (20, "9223372036854775808"), (20, "-9223372036854775809"), (20, "99999999999999999999999"), (26, "-1"), (26, "4294967296"),
        (17, "abc"), (17, "\\x0"), (17, "\\x0g"), (17, "\\"), (17, ""), (17, "\\000"),
        (1082, "2023-02-29"), (1082, "2024-00-10"), (1082, "0000-01-01"), (1082, "2024/01/01"), (1082, "01-02-2024"), (1082, "20240101"),
        (1082, "2024-01-01 "), (1082, "20240-1-01"), (1083, "23:60:00"), (1083, "1:00:00"), (1083, "01:00:00."), (1083, "01:00:00.1234567"),
        (1083, "01:00:00+00"), (1114, "2024-01-01"), (1114, "2024-01-01T00:00:00"), (1114, "2024-01-01 24:00:00"),
        (1114, "2024-01-01 00:00:00+00"), (1184, "2024-01-01 00:00:00"), (1184, "2024-01-01 00:00:00Z"), (1184, "2024-01-01 00:00:00+0"),
        (1184, "2024-01-01 00:00:00+00:60"), (1184, "2024-01-01 00:00:00 UTC"), (1184, "+00"), (1184, "2024-01-01 00:00:00+00 AD"),
        (1700, ""), (1700, "-"), (1700, "."), (1700, "1."), (1700, ".5"), (1700, "1e5"), (1700, "+1"), (1700, " 1"), (1700, "1.2.3"),
        (2950, "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
        (2950, "{0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"), (2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g"),
        (701, "inf"), (701, "nan"), (701, "Infinite"), (700, "1e39"), (700, "1e-46"), (701, "1e5.5"),
        (701, "1e400"), (701, "-1e-400"), (701, "0x10"), (701, "+1"), (701, "1e"), (701, "1."), (701, ""), (701, "--1"),
        (25, b"\xff"), (25, b"\xed\xa0\x80"), (25, b"\xc0\x80"), (25, b"a\0b"),
    ],
)  # fmt: skip
def test_text_that_postgres_never_prints(oid: int, text: str | bytes) -> None:
    with pytest.raises(Corrupt, match="column c"):
        read([None, text], oid, numeric(9, 2) if oid == 1700 else -1)


@settings(deadline=None)
@given(st.lists(st.none() | st.binary(max_size=40) | st.text("0123456789-+:. BC\\xtfeNaInity", max_size=30).map(str.encode), max_size=6))
def test_noise_is_read_or_refused(values: list[bytes | None]) -> None:
    for oid in OIDS:
        try:
            found = to_arrow(pa.array(values, pa.binary()), column("c", 1, oid, numeric(20, 5) if oid == 1700 else -1))
        except (Corrupt, ValueOutOfContract):
            continue
        found.validate(full=True)
        assert [v is None for v in found.to_pylist()] == [v is None for v in values]
