import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelake.model.layout import SOURCES, Layout, PartitionField, SortField
from icelake.model.relation import Column, Relation

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("country", PartitionField("country")),
        ("day", PartitionField("day")),
        ("day(placed_at)", PartitionField("placed_at", "day")),
        (" bucket ( 16 ,customer_id ) ", PartitionField("customer_id", "bucket", 16)),
        ('truncate(8, "sku (new)")', PartitionField("sku (new)", "truncate", 8)),
        ('"day(x)"', PartitionField("day(x)")),
        ('"a ""b"""', PartitionField('a "b"')),
        ("größe", PartitionField("größe")),
        ("identity(x)", PartitionField("x")),
    ],
)
def test_partition_fields(text: str, field: PartitionField) -> None:
    assert PartitionField.parse(text) == field


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "none of: column"),
        ("a b", "none of: column"),
        ("day(a", "none of: column"),
        ("void(a)", "choose of: identity, year, month, day, hour, bucket, truncate"),
        ("days(a)", "no transform 'days'"),
        ("bucket(a)", r"write bucket\(16, column\)"),
        ("day(3, a)", r"write day\(column\)"),
        ("bucket(0, a)", "from 1 to"),
        ("bucket(2147483648, a)", "from 1 to 2147483647"),
        ("bucket(-1, a)", "none of"),
    ],
)
def test_what_is_no_partition_field(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PartitionField.parse(text)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("a", SortField("a", False, True)),
        ("a desc", SortField("a", True, False)),
        ("a DESC NULLS FIRST", SortField("a", True, True)),
        ("a asc nulls last", SortField("a", False, False)),
        ('"a desc" nulls last', SortField("a desc", False, False)),
        ("desc", SortField("desc", False, True)),
    ],
)
def test_sort_fields(text: str, field: SortField) -> None:
    assert SortField.parse(text) == field


@pytest.mark.parametrize("text", ["", "a down", "a desc nulls", "a b c", "day(a)", "a nulls first desc"])
def test_what_is_no_sort_field(text: str) -> None:
    with pytest.raises(ValueError, match="none of: column"):
        SortField.parse(text)


@given(NAMES, st.sampled_from([*SOURCES]), st.integers(1, 2**31 - 1), st.booleans(), st.booleans())
def test_a_field_s_text_is_the_field(name: str, transform: str, width: int, descending: bool, nulls_first: bool) -> None:
    partition = PartitionField(name, transform, width if transform in ("bucket", "truncate") else None)
    assert PartitionField.parse(str(partition)) == partition
    sort = SortField(name, descending, nulls_first)
    assert SortField.parse(str(sort)) == sort


KINDS = ("int", "double", "string", "timestamptz", "date", "decimal(9,2)", "uuid", "list<int>", "boolean")
RELATION = Relation(1, "public", "t", tuple(Column(f"c_{kind[:4]}", n, 0, -1, "", kind) for n, kind in enumerate(KINDS, 1)), ("c_int",))


@pytest.mark.parametrize(
    ("partition", "sort", "says"),
    [
        (
            ["c_int", "bucket(4, c_int)", "day(c_time)", "bucket(2, c_deci)", "c_bool", "year(c_date)"],
            ["c_doub", "c_int desc"],
            "",
        ),
        (["nope"], [], "there is no column 'nope'; the columns are: c_int, c_doub"),
        ([], ["nope"], "there is no column 'nope'"),
        (["bucket(4, c_list)"], [], "'c_list' is a list<int>, which has parts"),
        ([], ["c_list"], "which has parts"),
        (["c_doub"], [], "identity does not take 'c_doub', which is double; choose of: no transform"),
        (["day(c_int)"], [], "choose of: identity, bucket, truncate"),
        (["hour(c_date)"], [], "choose of: identity, year, month, day, bucket"),
        (["truncate(3, c_deci)"], [], "choose of: identity, bucket"),
        (["bucket(3, c_uuid)"], [], "choose of: no transform"),
        (["bucket(3, c_bool)"], [], "choose of: identity"),
        (["day(c_time)", "month(c_time)"], [], "twice in the same way; leave month(c_time) out"),
        (["bucket(3, c_int)", "bucket(4, c_int)"], [], "twice in the same way"),
        ([], ["c_int", "c_int desc"], "sorted by twice"),
    ],
)
def test_what_fits_a_relation(partition: list[str], sort: list[str], says: str) -> None:
    layout = Layout(tuple(map(PartitionField.parse, partition)), tuple(map(SortField.parse, sort)))
    misfit = layout.misfit(RELATION)
    assert (misfit is None) == (says == "")
    assert says in "; ".join(misfit or ())
