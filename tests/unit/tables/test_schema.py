import string
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelake.errors import Corrupt, UnsupportedTable
from icelake.model.relation import Column, Relation
from icelake.ports import Json
from icelake.tables.schema import RELATION, field_id, fields_of, iceberg_schema, relation_of, table_properties
from tests.unit.tables.mirror import relation

TYPES = [
    "boolean",
    "int",
    "long",
    "float",
    "double",
    "decimal(12,2)",
    "string",
    "binary",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "uuid",
]


def metadata(shape: Relation) -> Json:
    return {"current-schema-id": 0, "schemas": [iceberg_schema(shape)], "properties": table_properties(shape)}


@st.composite
def relations(draw: Any) -> Relation:
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique_by=str.lower))
    columns = tuple(
        Column(
            name,
            attnum=draw(st.integers(1, 1600)),
            type_oid=draw(st.integers(1, 2**31)),
            typmod=draw(st.integers(-1, 2**31 - 1)),
            pg_type=draw(st.text(string.printable, max_size=10)),
            iceberg=draw(st.sampled_from(TYPES)),
            nullable=draw(st.booleans()),
        )
        for name in names
    )
    key = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    return Relation(
        draw(st.integers(1, 2**32)), draw(st.text(min_size=1)), draw(st.text(min_size=1)), columns, tuple(key), draw(st.booleans())
    )


@given(relations())
def test_a_relation_comes_back_as_it_was(shape: Relation) -> None:
    assert relation_of(metadata(shape)) == shape


@given(relations())
def test_identifier_fields_are_required_and_no_floats(shape: Relation) -> None:
    schema = iceberg_schema(shape)
    by_id = {field["id"]: field for field in schema["fields"]}
    identifiers = schema.get("identifier-field-ids", [])
    assert all(by_id[number]["required"] and by_id[number]["type"] not in ("float", "double") for number in identifiers)
    assert not identifiers or {by_id[number]["name"] for number in identifiers} == set(shape.key)


def test_field_ids_follow_column_order_and_reach_parquet() -> None:
    shape = relation(("id", "long"), ("u", "uuid"), ("t", "string"))
    fields = fields_of(metadata(shape))
    assert fields.ids == {"id": 1, "u": 2, "t": 3}
    assert [field_id(field) for field in fields.lineage] == [1, 2, 3, 2147483540, 2147483539]
    assert [field.nullable for field in fields.plain] == [False, True, True]
    assert fields.plain.field("u").type == pa.uuid()


@pytest.mark.parametrize("other", ["ID", "_row_id", "_Last_Updated_Sequence_Number"])
def test_names_engines_cannot_tell_apart_are_refused(other: str) -> None:
    with pytest.raises(UnsupportedTable, match=other):
        iceberg_schema(relation(("id", "long"), (other, "int")))


def _drop_property(document: Json) -> None:
    del document["properties"][RELATION]


def _not_json(document: Json) -> None:
    document["properties"][RELATION] = "{"


def _other_type(document: Json) -> None:
    document["schemas"][0]["fields"][1]["type"] = "long"


def _one_more_field(document: Json) -> None:
    document["schemas"][0]["fields"].append({"id": 9, "name": "x", "required": False, "type": "int"})


def _one_field_less(document: Json) -> None:
    document["schemas"][0]["fields"].pop()


def _no_key(document: Json) -> None:
    described = orjson.loads(document["properties"][RELATION])
    document["properties"][RELATION] = orjson.dumps({**described, "key": []}).decode()


def _no_schema(document: Json) -> None:
    document["current-schema-id"] = 5


@pytest.mark.parametrize("damage", [_drop_property, _not_json, _other_type, _one_more_field, _one_field_less, _no_key, _no_schema])
def test_a_schema_that_is_not_ours_is_corrupt(damage: Any) -> None:
    document = metadata(relation(("id", "long"), ("a", "int")))
    damage(document)
    with pytest.raises(Corrupt):
        relation_of(document)
