"""Iceberg types as text: the grammar, both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType, holds, parse

primitives = st.sampled_from(["boolean", "int", "long", "string", "timestamptz", "uuid", "decimal(38,38)", "decimal(1,0)"]).map(Primitive)


def _nested(inner: st.SearchStrategy[IcebergType]) -> st.SearchStrategy[IcebergType]:
    names = st.one_of(st.sampled_from(["a", "list", "lower", 'q"uote', "with space", "ä", "<", "", "decimal(1,0)"]), st.text(max_size=5))
    return st.one_of(
        inner.map(ListType),
        st.tuples(inner, inner).map(lambda pair: MapType(*pair)),
        st.lists(st.tuples(names, inner), min_size=1, max_size=3, unique_by=lambda field: field[0]).map(lambda f: StructType(tuple(f))),
    )


@given(st.recursive(primitives, _nested, max_leaves=6))
def test_text_and_type_are_inverse(kind: IcebergType) -> None:
    assert parse(str(kind)) == kind
    assert str(parse(str(kind))) == str(kind)


def test_spellings() -> None:
    assert (
        str(StructType((("lower", Primitive("int")), ("an x", ListType(Primitive("string"))))))
        == 'struct<lower: int, "an x": list<string>>'
    )
    assert parse("map<string,string>") == MapType(Primitive("string"), Primitive("string"))
    assert Primitive("decimal(12,2)").decimal == (12, 2)
    assert Primitive("long").decimal is None


def test_what_is_inside() -> None:
    for text in ("time", "list<time>", "map<time, int>", "map<int, list<time>>", "struct<a: int, b: struct<c: time>>"):
        assert holds(parse(text), "time")
    assert not holds(parse("struct<time: timestamp, b: map<string, list<timestamptz>>>"), "time")


@pytest.mark.parametrize(
    "text",
    ["", "lists<int>", "list<>", "list<int", "list<int>>", "struct<>", "struct<a int>", "struct<a: int, a: int>", "map<int>", "integer",
     "decimal(39,1)", "decimal(2,3)", "decimal(0,0)", 'struct<"\\x": int>', "int int", "list<int> ;"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an Iceberg type"):
        parse(text)
