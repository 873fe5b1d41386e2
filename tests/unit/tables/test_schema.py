import copy
import dataclasses
import string
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.catalog.metadata import apply, new_table
from icelake.errors import Corrupt, UnsupportedTable
from icelake.model.relation import Column, Relation
from icelake.model.types import ListType, MapType, StructType, parse
from icelake.ports import Json, arrow_type
from icelake.tables.schema import LAST_UPDATED, RELATION, ROW_ID, evolve, field_id, fields_of, iceberg_schema, relation_of, table_properties
from tests.unit.tables.mirror import relation
from tests.unit.tables.nested import TYPES


def metadata(shape: Relation) -> Json:
    return {"current-schema-id": 0, "schemas": [iceberg_schema(shape)], "properties": table_properties(shape)}


FEW = settings(max_examples=30, deadline=None)
"""Relations of any types are slow to draw."""

NAMES = st.text(min_size=1, max_size=8).filter(lambda name: "." not in name and name.lower() not in (ROW_ID, LAST_UPDATED))


@st.composite
def columns(draw: Any, names: list[str], attnums: list[int]) -> tuple[Column, ...]:
    return tuple(
        Column(
            name,
            attnum=attnum,
            type_oid=draw(st.integers(1, 2**31)),
            typmod=draw(st.integers(-1, 2**31 - 1)),
            pg_type=draw(st.text(string.printable, max_size=10)),
            iceberg=str(draw(TYPES.filter(plain_names))),
            nullable=draw(st.booleans()),
            out_of_range=draw(st.sampled_from(["error", "null"])),
        )
        for name, attnum in zip(names, attnums, strict=True)
    )


def plain_names(kind: Any) -> bool:
    """Whether no name in a type has a dot: two such may mean one path."""
    match kind:
        case ListType(element):
            return plain_names(element)
        case MapType(key, value):
            return plain_names(key) and plain_names(value)
        case StructType(fields):
            return all("." not in name and plain_names(part) for name, part in fields)
    return True


@st.composite
def relations(draw: Any) -> Relation:
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique_by=str.lower))
    attnums = draw(st.lists(st.integers(1, 1600), min_size=len(names), max_size=len(names), unique=True).map(sorted))
    identity = draw(st.sampled_from(["key", "key", "full", "none"]))
    key = draw(st.lists(st.sampled_from(names), min_size=1, unique=True)) if identity == "key" else []
    return Relation(
        draw(st.integers(1, 2**32)),
        draw(st.text(min_size=1)),
        draw(st.text(min_size=1)),
        draw(columns(names, attnums)),
        tuple(key),
        draw(st.booleans()),
        identity,
    )


@FEW
@given(relations())
def test_a_relation_comes_back_as_it_was(shape: Relation) -> None:
    assert relation_of(metadata(shape)) == shape


@FEW
@given(relations())
def test_identifier_fields_are_required_and_no_floats(shape: Relation) -> None:
    schema = iceberg_schema(shape)
    by_id = {field["id"]: field for field in schema["fields"]}
    identifiers = schema.get("identifier-field-ids", [])
    assert all(by_id[number]["required"] and by_id[number]["type"] not in ("float", "double") for number in identifiers)
    assert not identifiers or {by_id[number]["name"] for number in identifiers} == set(shape.key)


def ids_in(kind: Any) -> list[int]:
    """Nested field ids of a type in JSON, one level after the other as they must be given."""
    match kind:
        case {"type": "list", "element-id": element, "element": below}:
            return [element, *ids_in(below)]
        case {"type": "map", "key-id": key_id, "value-id": value_id, "key": key, "value": value}:
            return [key_id, value_id, *ids_in(key), *ids_in(value)]
        case {"type": "struct", "fields": fields}:
            return [field["id"] for field in fields] + [ident for field in fields for ident in ids_in(field["type"])]
    return []


@FEW
@given(relations())
def test_nested_ids_follow_those_of_all_columns(shape: Relation) -> None:
    fields = iceberg_schema(shape)["fields"]
    given_out = [field["id"] for field in fields] + [ident for field in fields for ident in ids_in(field["type"])]
    assert given_out == list(range(1, len(given_out) + 1))


@FEW
@given(relations())
def test_the_arrow_schemas_have_every_field_id(shape: Relation) -> None:
    document = metadata(shape)
    fields = fields_of(document)

    def ids_of(field: Any) -> Any:
        kind = field.type
        if pa.types.is_list(kind):
            return field_id(field), ids_of(kind.value_field)
        if pa.types.is_map(kind):
            assert not kind.key_field.nullable
            return field_id(field), ids_of(kind.key_field), ids_of(kind.item_field)
        if pa.types.is_struct(kind):
            return field_id(field), *(ids_of(kind.field(place)) for place in range(kind.num_fields))
        return (field_id(field),)

    def flat(found: Any) -> Any:
        return [found] if isinstance(found, int) else [one for part in found for one in flat(part)]

    last = max(ident for field in document["schemas"][0]["fields"] for ident in (field["id"], *ids_in(field["type"])))
    assert sorted(flat([ids_of(field) for field in fields.plain])) == list(range(1, last + 1))
    assert {leaf.field_id for leaf in fields.leaves} <= set(range(1, last + 1))
    for column, field in zip(shape.columns, fields.plain, strict=True):
        # What a mirror is fed fits, but that uuid is a type of its own in a file.
        assert pa.array([None], arrow_type(column.iceberg)).cast(field.type).type == field.type


def test_a_nested_schema_in_full() -> None:
    shape = relation(("id", "long"), ("spans", "list<struct<lower: uuid, bounds: string>>"), ("tags", "map<string, list<int>>"))
    assert iceberg_schema(shape)["fields"][1:] == [
        {
            "id": 2,
            "name": "spans",
            "required": False,
            "doc": "type of spans",
            "type": {
                "type": "list",
                "element-id": 4,
                "element-required": False,
                "element": {
                    "type": "struct",
                    "fields": [
                        {"id": 5, "name": "lower", "required": False, "type": "uuid"},
                        {"id": 6, "name": "bounds", "required": False, "type": "string"},
                    ],
                },
            },
        },
        {
            "id": 3,
            "name": "tags",
            "required": False,
            "doc": "type of tags",
            "type": {
                "type": "map",
                "key-id": 7,
                "key": "string",
                "value-id": 8,
                "value-required": False,
                "value": {"type": "list", "element-id": 9, "element-required": False, "element": "int"},
            },
        },
    ]
    leaves = fields_of(metadata(shape)).leaves
    assert [(leaf.field_id, leaf.path, leaf.type, leaf.repeated) for leaf in leaves] == [
        (1, "id", "long", False),
        (5, "spans.element.lower", "uuid", True),
        (6, "spans.element.bounds", "string", True),
        (7, "tags.key", "string", True),
        (9, "tags.value.element", "int", True),
    ]


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


@pytest.mark.parametrize(
    "others",
    [
        [("a", "struct<b: int, B: int>")],
        [("a", "list<struct<b: int, B: int>>")],
        [("a", "struct<b: int>"), ("a.b", "int")],
        [("a", "list<int>"), ("A.element", "int")],
        [("a", 'struct<"b.c": int, b: struct<c: int>>')],
    ],
)
def test_nested_names_engines_cannot_tell_apart_are_refused(others: list[tuple[str, str]]) -> None:
    with pytest.raises(UnsupportedTable) as caught:
        iceberg_schema(relation(("id", "long"), *others))
    assert caught.value.code == "TABLE_COLUMN_NAMES"
    # Row lineage's names are only taken at the top.
    iceberg_schema(relation(("id", "long"), ("a", "struct<_row_id: int, id: long>")))


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


def _required_element(document: Json) -> None:
    document["schemas"][0]["fields"][2]["type"]["element-required"] = True


def _unreadable_default(document: Json) -> None:
    document["schemas"][0]["fields"][1]["initial-default"] = "seven"


def _key_of_keyless(document: Json) -> None:
    described = orjson.loads(document["properties"][RELATION])
    document["properties"][RELATION] = orjson.dumps({**described, "identity": "full"}).decode()


@pytest.mark.parametrize(
    "damage",
    [
        _drop_property,
        _not_json,
        _other_type,
        _one_more_field,
        _one_field_less,
        _no_key,
        _no_schema,
        _required_element,
        _unreadable_default,
        _key_of_keyless,
    ],
)
def test_a_schema_that_is_not_ours_is_corrupt(damage: Any) -> None:
    document = metadata(relation(("id", "long"), ("a", "int"), ("l", "list<int>")))
    relation_of(document)
    damage(document)
    with pytest.raises(Corrupt, match="TABLE_METADATA_CORRUPT"):
        relation_of(document)


# ------------------------------------------------------------------------------------------------------------- evolution


def made(shape: Relation) -> Json:
    return new_table("u", "/lake/t", iceberg_schema(shape), table_properties(shape), 0)


def evolved(document: Json, shape: Relation) -> Json:
    return apply(document, evolve(document, shape), 1)


def with_columns(shape: Relation, *named: Column) -> Relation:
    return replace(shape, columns=named)


SHAPE = relation(("id", "long"), ("n", "int"), ("f", "float"), ("d", "decimal(9,2)"), ("l", "list<struct<a: int, b: float>>"))
ID, N, F, D, L = SHAPE.columns
ADDED = Column("added", 6, 0, -1, "integer", "int", default="7")


@FEW
@given(relations())
def test_nothing_new_is_no_update(shape: Relation) -> None:
    assert evolve(made(shape), shape) == []


@FEW
@given(st.data())
def test_columns_come_go_and_are_renamed(data: Any) -> None:
    """Whatever happened: the relation comes back, a column's field id is its attnum's for ever, and no id is used again."""
    shape = data.draw(relations())
    document = made(shape)
    ids = {column.attnum: fields_of(document).ids[column.name] for column in shape.columns}
    every = {column.attnum for column in shape.columns}
    for _ in range(data.draw(st.integers(1, 3))):
        kept = [column for column in shape.columns if column.name in shape.key or data.draw(st.booleans())]
        fresh = data.draw(st.integers(0 if kept else 1, 3))
        names = data.draw(st.lists(NAMES, min_size=len(kept) + fresh, max_size=len(kept) + fresh, unique_by=str.lower))
        attnums = list(range(max(every) + 1, max(every) + 1 + fresh))
        every.update(attnums)
        renamed = tuple(replace(column, name=name) for column, name in zip(kept, names, strict=False))
        news = {column.name: column.attnum for column in shape.columns}
        key = tuple(next(column.name for column in renamed if column.attnum == news[name]) for name in shape.key)
        shape = replace(shape, columns=renamed + data.draw(columns(names[len(kept) :], attnums)), key=key)
        before = document
        document = evolved(copy.deepcopy(document), shape)
        assert relation_of(document) == shape
        now = fields_of(document)
        for column in shape.columns:
            ident = now.ids[column.name]
            if column.attnum in ids:
                assert ids[column.attnum] == ident
            else:
                assert ident > before["last-column-id"]
                ids[column.attnum] = ident
        used = [ident for field in document["schemas"][-1]["fields"] for ident in (field["id"], *ids_in(field["type"]))]
        assert len(set(used)) == len(used)
        assert max([document["last-column-id"], *used]) == document["last-column-id"] >= before["last-column-id"]


def test_an_added_column_has_new_ids_and_its_default() -> None:
    nested = Column("spans", 7, 0, -1, "int4multirange", "list<struct<lower: int>>")
    shape = with_columns(SHAPE, *SHAPE.columns, ADDED, nested)
    updates = evolve(made(SHAPE), shape)
    assert [update["action"] for update in updates] == ["add-schema", "set-current-schema", "set-properties"]
    assert updates[1]["schema-id"] == -1
    # SHAPE has the ids 1 to 8, three of them inside its list.
    assert updates[0]["schema"]["fields"][5:] == [
        {"id": 9, "name": "added", "required": False, "type": "int", "doc": "integer", "initial-default": 7, "write-default": 7},
        {
            "id": 10,
            "name": "spans",
            "required": False,
            "type": {
                "type": "list",
                "element-id": 11,
                "element-required": False,
                "element": {"type": "struct", "fields": [{"id": 12, "name": "lower", "required": False, "type": "int"}]},
            },
            "doc": "int4multirange",
        },
    ]
    document = apply(made(SHAPE), updates, 1)
    assert document["last-column-id"] == 12
    assert fields_of(document).defaults == {"added": pa.scalar(7, pa.int32())}


def test_a_name_used_again_is_another_column() -> None:
    document = evolved(made(SHAPE), with_columns(SHAPE, ID, F, D, L))
    again = evolved(document, with_columns(SHAPE, ID, F, D, L, replace(N, attnum=6)))
    assert fields_of(again).ids["n"] == 9
    assert fields_of(made(SHAPE)).ids["n"] == 2
    swapped = with_columns(SHAPE, ID, replace(N, name="d", iceberg="int"), F, replace(D, name="n"), L)
    assert fields_of(evolved(made(SHAPE), swapped)).ids == {"id": 1, "d": 2, "f": 3, "n": 4, "l": 5}


def test_types_grow_where_iceberg_lets_them() -> None:
    wider = with_columns(
        SHAPE,
        ID,
        replace(N, iceberg="long"),
        replace(F, iceberg="double"),
        replace(D, iceberg="decimal(12,2)"),
        replace(L, iceberg="list<struct<a: long, b: double>>"),
    )
    document = evolved(made(SHAPE), wider)
    assert relation_of(document) == wider
    assert fields_of(document).ids == fields_of(made(SHAPE)).ids
    before, after = (ids_in(doc["schemas"][-1]["fields"][4]["type"]) for doc in (made(SHAPE), document))
    assert before == after


def test_a_default_stays_what_it_was_when_the_column_came() -> None:
    """PostgreSQL forgets the missing value when it rewrites a table; the files without the column are still there."""
    document = evolved(made(SHAPE), with_columns(SHAPE, *SHAPE.columns, ADDED))
    wider = replace(ADDED, name="renamed", iceberg="long", default=None)
    document = evolved(document, with_columns(SHAPE, *SHAPE.columns, wider))
    assert fields_of(document).defaults == {"renamed": pa.scalar(7, pa.int64())}
    assert relation_of(document).columns[-1] == replace(wider, default="7")


def test_a_float_default_is_the_same_double_after_a_promotion() -> None:
    column = Column("x", 6, 0, -1, "real", "float", default="0.1")
    document = evolved(made(SHAPE), with_columns(SHAPE, *SHAPE.columns, column))
    small = fields_of(document).defaults["x"].as_py()
    document = evolved(document, with_columns(SHAPE, *SHAPE.columns, replace(column, iceberg="double")))
    assert fields_of(document).defaults["x"].as_py() == small == 0.10000000149011612


def test_a_key_column_that_may_be_null_is_required_no_more() -> None:
    document = evolved(made(SHAPE), with_columns(SHAPE, replace(ID, nullable=True), N, F, D, L))
    (current,) = [schema for schema in document["schemas"] if schema["schema-id"] == document["current-schema-id"]]
    assert not current["fields"][0]["required"]
    assert "identifier-field-ids" not in current
    back = evolved(document, SHAPE)
    # Optional to required is not allowed (spec, Schema Evolution).
    assert fields_of(back).plain.field("id").nullable


OTHERWISE: dict[str, Relation] = {
    "narrower": with_columns(SHAPE, replace(ID, iceberg="int"), N, F, D, L),
    "int to double": with_columns(SHAPE, ID, replace(N, iceberg="double"), F, D, L),
    "int to string": with_columns(SHAPE, ID, replace(N, iceberg="string"), F, D, L),
    "int to list": with_columns(SHAPE, ID, replace(N, iceberg="list<int>"), F, D, L),
    "scale": with_columns(SHAPE, ID, N, F, replace(D, iceberg="decimal(12,3)"), L),
    "fewer digits": with_columns(SHAPE, ID, N, F, replace(D, iceberg="decimal(8,2)"), L),
    "another attribute": with_columns(SHAPE, ID, N, F, D, replace(L, iceberg="list<struct<a: int, b: float, c: int>>")),
    "an attribute's name": with_columns(SHAPE, ID, N, F, D, replace(L, iceberg="list<struct<a: int, c: float>>")),
    "list to int": with_columns(SHAPE, ID, N, F, D, replace(L, iceberg="int")),
    "the key": replace(SHAPE, key=("n",)),
    "a longer key": replace(SHAPE, key=("id", "n")),
    "the key's column": with_columns(SHAPE, replace(ID, attnum=9), N, F, D, L),
    "the identity": replace(SHAPE, key=(), identity="full"),
    "the table's name": replace(SHAPE, name="other"),
    "the table": replace(SHAPE, oid=1),
    "the key's order": replace(SHAPE, key_is_ordered=False),
}


@pytest.mark.parametrize("what", list(OTHERWISE))
def test_any_other_change_is_refused(what: str) -> None:
    with pytest.raises(UnsupportedTable) as caught:
        evolve(made(SHAPE), OTHERWISE[what])
    assert caught.value.code == "SCHEMA_CHANGE"


def test_columns_a_table_is_laid_out_by_stay() -> None:
    spec: Json = {"fields": [{"source-id": 2, "transform": "bucket[4]", "name": "n_bucket"}]}
    partitioned = apply(made(SHAPE), [{"action": "add-spec", "spec": spec}, {"action": "set-default-spec", "spec-id": -1}], 1)
    order: Json = {"fields": [{"source-id": 3, "transform": "identity", "direction": "asc", "null-order": "nulls-first"}]}
    ordered = apply(made(SHAPE), [{"action": "add-sort-order", "sort-order": order}], 1)
    for document, shape in (
        (partitioned, with_columns(SHAPE, ID, F, D, L)),
        (partitioned, with_columns(SHAPE, ID, replace(N, iceberg="long"), F, D, L)),
        (ordered, with_columns(SHAPE, ID, N, D, L)),
    ):
        with pytest.raises(UnsupportedTable):
            evolve(document, shape)
    assert evolve(partitioned, with_columns(SHAPE, ID, replace(N, name="m"), F, D, L))


def test_another_table_of_the_name_keeps_what_the_mirror_is_partitioned_by() -> None:
    spec = {"fields": [{"name": "n", "transform": "identity", "source-id": 2}]}
    partitioned = apply(made(SHAPE), [{"action": "add-spec", "spec": spec}, {"action": "set-default-spec", "spec-id": -1}], 1)
    another = replace(with_columns(SHAPE, replace(F, attnum=1), replace(N, attnum=2), replace(ID, attnum=3)), oid=99)
    document = apply(partitioned, evolve(partitioned, another, replacing=True), 1)
    assert fields_of(document).ids["n"] == 2
    assert min(fields_of(document).ids[name] for name in ("f", "id")) > made(SHAPE)["last-column-id"]
    with pytest.raises(UnsupportedTable, match="SCHEMA_CHANGE"):
        evolve(partitioned, replace(another, columns=(another.columns[0], another.columns[2])), replacing=True)


# -------------------------------------------------------------------------------------------------------------- defaults

DEFAULTS: list[tuple[str, str, Any, Any]] = [
    # Iceberg type, PostgreSQL's text, JSON, Arrow value
    ("boolean", "t", True, True),
    ("boolean", "f", False, False),
    ("int", "-2147483648", -(2**31), -(2**31)),
    ("long", "9223372036854775807", 2**63 - 1, 2**63 - 1),
    ("float", "1.5", 1.5, 1.5),
    ("double", "-0", -0.0, -0.0),
    ("double", "5e-324", 5e-324, 5e-324),
    ("decimal(9,2)", "14.2", "14.20", Decimal("14.20")),
    ("decimal(9,2)", "0", "0.00", Decimal("0.00")),
    ("decimal(38,10)", "-" + "9" * 28 + "." + "9" * 10, "-" + "9" * 28 + "." + "9" * 10, Decimal("-" + "9" * 28 + "." + "9" * 10)),
    ("decimal(38,38)", "0." + "0" * 37 + "1", "0." + "0" * 37 + "1", Decimal("1e-38")),
    ("string", "", "", ""),
    ("string", 'it\'s\n"🦆"', 'it\'s\n"🦆"', 'it\'s\n"🦆"'),
    ("string", "NaN", "NaN", "NaN"),
    ("binary", "\\x00FF", "00ff", b"\x00\xff"),
    ("binary", "\\x", "", b""),
    ("binary", "0101FF", "0101ff", b"\x01\x01\xff"),  # PostGIS
    ("date", "2017-11-16", "2017-11-16", 17486),
    ("date", "0001-01-01", "0001-01-01", -719162),
    ("date", "9999-12-31", "9999-12-31", 2932896),
    ("time", "22:31:08.1", "22:31:08.100000", 81068100000),
    ("time", "00:00:00", "00:00:00", 0),
    ("timestamp", "2017-11-16 22:31:08.123456", "2017-11-16T22:31:08.123456", 1510871468123456),
    ("timestamp", "1969-12-31 23:59:59.999999", "1969-12-31T23:59:59.999999", -1),
    ("timestamptz", "2017-11-16 22:31:08+00", "2017-11-16T22:31:08+00:00", 1510871468000000),
    ("timestamptz", "9999-12-31 23:59:59.999999+00", "9999-12-31T23:59:59.999999+00:00", 253402300799999999),
    (
        "uuid",
        "f79c3e09-677c-4bbd-a479-3f349cb785e7",
        "f79c3e09-677c-4bbd-a479-3f349cb785e7",
        bytes.fromhex("f79c3e09677c4bbda4793f349cb785e7"),
    ),
]


@pytest.mark.parametrize(("kind", "text", "json", "value"), DEFAULTS)
def test_defaults_are_single_values(kind: str, text: str, json: Any, value: Any) -> None:
    shape = with_columns(SHAPE, *SHAPE.columns, replace(ADDED, iceberg=kind, default=text))
    updates = evolve(made(SHAPE), shape)
    field = updates[0]["schema"]["fields"][-1]
    assert (repr(field["initial-default"]), repr(field["write-default"])) == (repr(json), repr(json))
    document = orjson.loads(orjson.dumps(apply(made(SHAPE), updates, 1)))
    found = fields_of(document).defaults["added"]
    assert found.type == arrow_type(kind)
    assert repr(getattr(found, "value", found.as_py())) == repr(value) or found.as_py() == value
    assert relation_of(document) == shape


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("double", "NaN"),
        ("double", "Infinity"),
        ("float", "-Infinity"),
        ("date", "0044-03-15 BC"),
        ("date", "10000-01-01"),
        ("timestamp", "0001-12-31 00:00:00 BC"),
        ("timestamptz", "294276-12-31 23:59:59+00"),
        ("list<int>", "{}"),
        ("struct<a: int>", "(1)"),
        ("boolean", "yes"),
        ("binary", "abc"),
    ],
)
def test_defaults_iceberg_has_no_form_for_are_refused(kind: str, text: str) -> None:
    for policy in ("error", "null"):
        column = dataclasses.replace(ADDED, iceberg=kind, default=text, out_of_range=policy)
        with pytest.raises(UnsupportedTable) as caught:
            evolve(made(SHAPE), with_columns(SHAPE, *SHAPE.columns, column))
        assert caught.value.code == "COLUMN_DEFAULT"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("date", "infinity"),
        ("timestamp", "-infinity"),
        ("timestamptz", "infinity"),
        ("time", "24:00:00"),
        ("decimal(9,2)", "NaN"),
        ("decimal(9,2)", "Infinity"),
        ("decimal(9,2)", "10000000.00"),
        ("decimal(9,2)", "0.001"),
        ("decimal(38,2)", "1e300"),
    ],
)
def test_a_default_out_of_contract_follows_the_policy(kind: str, text: str) -> None:
    column = replace(ADDED, iceberg=kind, default=text)
    with pytest.raises(UnsupportedTable, match="cannot hold it"):
        evolve(made(SHAPE), with_columns(SHAPE, *SHAPE.columns, column))
    document = evolved(made(SHAPE), with_columns(SHAPE, *SHAPE.columns, replace(column, out_of_range="null")))
    assert fields_of(document).defaults == {}
    assert parse(relation_of(document).columns[-1].iceberg) == parse(kind)
