import pytest

from icelake.model.load import Interval, LoadState
from icelake.sources.postgres.types import iceberg_type, key_is_ordered, leaf, numeric_precision, order
from tests.unit.sources.postgres.wire import column, relation


def numeric(precision: int, scale: int) -> int:
    return (precision << 16 | scale & 0x7FF) + 4


@pytest.mark.parametrize(
    ("oid", "expected"),
    [
        (16, "boolean"), (21, "int"), (23, "int"), (20, "long"), (26, "long"), (700, "float"), (701, "double"), (25, "string"),
        (1043, "string"), (1042, "string"), (19, "string"), (18, "string"), (17, "binary"), (1082, "date"), (1083, "time"),
        (1266, "string"), (1114, "timestamp"), (1184, "timestamptz"), (2950, "uuid"), (114, "string"), (3802, "string"),
    ],
)  # fmt: skip
def test_scalar_types(oid: int, expected: str) -> None:
    assert str(iceberg_type(leaf(oid, -1))) == expected


@pytest.mark.parametrize(
    ("precision", "scale", "expected"),
    [(12, 2, "decimal(12,2)"), (38, 38, "decimal(38,38)"), (1, 0, "decimal(1,0)"), (39, 0, "string"), (3, -2, "string"), (2, 4, "string"),
     (1000, 1000, "string"), (1000, -1000, "string")],
)  # fmt: skip
def test_a_numeric_is_a_decimal_only_when_iceberg_has_it(precision: int, scale: int, expected: str) -> None:
    assert numeric_precision(numeric(precision, scale)) == (precision, scale)
    assert str(iceberg_type(leaf(1700, numeric(precision, scale)))) == expected


def test_an_unbounded_numeric_is_text() -> None:
    assert numeric_precision(-1) is None
    assert str(iceberg_type(leaf(1700, -1))) == "string"


def test_text_is_ordered_only_where_bytes_are_compared() -> None:
    name, number, padded = column("name", 1, 25), column("n", 2, 20), column("c", 3, 1042, 9)
    assert key_is_ordered([number])
    assert not key_is_ordered([number, name])
    assert key_is_ordered([number, name], {"name"})
    assert not key_is_ordered([padded], {"c"})
    assert not any(key_is_ordered([column("x", 1, oid)], {"x"}) for oid in (700, 701, 114, 1266, 1700, 1186))
    assert key_is_ordered([column("d", 1, 1700, numeric(10, 2))])


def test_order_finds_the_interval_of_a_key() -> None:
    table = relation(1, "t", [("d", 1082), ("n", 23)], ["d", "n"])
    by = order(table)
    assert by(("0044-03-15 BC", "10")) < by(("0001-01-01", "9")) < by(("0001-01-01", "10")) < by(("10000-01-01", "-5"))
    state = LoadState((Interval((("2024-01-01", "9"), 1), 5), Interval(None, None)))
    assert state.find(("2024-01-01", "9"), by) == 0
    assert state.find(("2024-01-01", "10"), by) == 1
    assert state.find(("0001-01-01 BC", "10"), by) == 0


@pytest.mark.parametrize(("oid", "text"), [(16, "true"), (23, "x"), (1082, "infinity"), (1083, "25:00:00"), (1114, "2024-01-01")])
def test_a_key_that_is_not_of_its_type_is_an_error(oid: int, text: str) -> None:
    with pytest.raises(ValueError, match=r"not a|invalid literal"):
        order(relation(1, "t", [("k", oid)], ["k"]))((text,))
