"""A source relation as an Iceberg schema, and back; and how a table's schema follows its source.

Promises that ``relation_of(metadata of a table made from iceberg_schema and table_properties) == relation``, and that a column
is found by its field id, never by its name. Never changes a type silently, and never gives a field id out twice. Fails with
UnsupportedTable when the names cannot be columns of one Iceberg table or a change cannot be followed, and with Corrupt when a
table's metadata is not what was written here.
"""

import datetime as dt
import decimal
import itertools
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from icelake.errors import Corrupt, UnsupportedTable
from icelake.model.relation import Column, Relation
from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType, parse
from icelake.ports import Json, arrow_type

RELATION = "icelake.relation"
"""Table property: the relation as JSON, with the attnum and PostgreSQL type of every field id."""

ROW_ID = "_row_id"
LAST_UPDATED = "_last_updated_sequence_number"
ROW_ID_FIELD = 2147483540
LAST_UPDATED_FIELD = 2147483539
"""Reserved fields of row lineage (Iceberg spec, Reserved Field IDs)."""

_FIELD_ID = b"PARQUET:field_id"
_EXACT = decimal.Context(prec=80)


def iceberg_schema(relation: Relation) -> Json:
    """The schema (Iceberg spec, Appendix C) a table of this relation is made with.

    Columns have the field ids 1..n in their order; nested fields follow, column by column. Key columns that are NOT NULL are
    required, and so are the keys of maps; nothing else is. Raises UnsupportedTable.
    """
    ids = itertools.count(len(relation.columns) + 1)
    fields: list[Json] = [
        {
            "id": number,
            "name": column.name,
            "required": column.name in relation.key and not column.nullable,
            "type": _numbered(parse(column.iceberg), ids),
            "doc": column.pg_type,
        }
        for number, column in enumerate(relation.columns, start=1)
    ]
    return _schema(relation, fields)


def _schema(relation: Relation, fields: Sequence[Json]) -> Json:
    """The key columns are the identifier fields only if all of the key may be (required, and no floating point: spec, Identifier
    Field IDs)."""
    check_names(relation)
    schema: Json = {"type": "struct", "schema-id": 0, "fields": list(fields)}
    key_fields = [field for field in fields if field["name"] in relation.key]
    if key_fields and all(field["required"] and field["type"] not in ("float", "double") for field in key_fields):
        schema["identifier-field-ids"] = [field["id"] for field in key_fields]
    return schema


def check_names(relation: Relation) -> None:
    """Iceberg finds a field by its whole path (``address.street``, ``tags.element``), and engines ignore case. Raises UnsupportedTable."""
    seen: dict[str, str] = {ROW_ID: ROW_ID, LAST_UPDATED: LAST_UPDATED}
    for path in itertools.chain.from_iterable(_paths(column.name, parse(column.iceberg)) for column in relation.columns):
        other = seen.get(path.lower())
        if other is not None:
            raise UnsupportedTable(
                "TABLE_COLUMN_NAMES",
                f"{relation.id} has a column {path!r} that engines cannot tell from {other!r}",
                "Spark, Trino and DuckDB ignore the case of names, Iceberg joins the names of nested fields by dots, and v3 reserves the "
                "names of row lineage",
                "rename the column (or the attribute of its type) in PostgreSQL, or leave the table out",
            )
        seen[path.lower()] = path


def _paths(path: str, kind: IcebergType) -> Iterator[str]:
    yield path
    match kind:
        case ListType(element):
            yield from _paths(f"{path}.element", element)
        case MapType(key, value):
            yield from _paths(f"{path}.key", key)
            yield from _paths(f"{path}.value", value)
        case StructType(fields):
            for name, part in fields:
                yield from _paths(f"{path}.{name}", part)


def _numbered(kind: IcebergType, ids: Iterator[int]) -> Any:
    """A type in JSON (spec, Appendix C), with field ids: those of one level before those below it."""
    match kind:
        case Primitive(name):
            return name
        case ListType(element):
            return {"type": "list", "element-id": next(ids), "element-required": False, "element": _numbered(element, ids)}
        case MapType(key, value):
            key_id, value_id = next(ids), next(ids)
            return {
                "type": "map",
                "key-id": key_id,
                "key": _numbered(key, ids),
                "value-id": value_id,
                "value-required": False,
                "value": _numbered(value, ids),
            }
        case StructType(fields):
            numbers = [next(ids) for _ in fields]
            return {
                "type": "struct",
                "fields": [
                    {"id": number, "name": name, "required": False, "type": _numbered(part, ids)}
                    for number, (name, part) in zip(numbers, fields, strict=True)
                ],
            }


def unnumbered(kind: Any) -> IcebergType:
    """A type in JSON without its field ids: the inverse of ``_numbered``. Raises KeyError, TypeError or ValueError for anything else."""
    if isinstance(kind, str):
        return Primitive(kind)
    match kind["type"]:
        case "list" if not kind["element-required"]:
            return ListType(unnumbered(kind["element"]))
        case "map" if not kind["value-required"]:
            return MapType(unnumbered(kind["key"]), unnumbered(kind["value"]))
        case "struct" if not any(field["required"] for field in kind["fields"]):
            return StructType(tuple((field["name"], unnumbered(field["type"])) for field in kind["fields"]))
    raise ValueError(f"{kind['type']} is no nested type, or requires what is optional")


def table_properties(relation: Relation, ids: Sequence[int] = ()) -> dict[str, str]:
    """The properties such a table is made with; they hold all of the relation that its schema does not.

    ``ids``: the field ids of the columns, if they are not those of a new table.
    """
    columns = [
        {
            "field-id": number,
            "name": column.name,
            "attnum": column.attnum,
            "type-oid": column.type_oid,
            "typmod": column.typmod,
            "pg-type": column.pg_type,
            "iceberg": column.iceberg,
            "nullable": column.nullable,
            "out-of-range": column.out_of_range,
            "default": column.default,
            "source": column.source,
        }
        for number, column in zip(ids or range(1, len(relation.columns) + 1), relation.columns, strict=True)
    ]
    document = {
        "oid": relation.oid,
        "schema": relation.schema,
        "name": relation.name,
        "key": list(relation.key),
        "key-is-ordered": relation.key_is_ordered,
        "identity": relation.identity,
        "last-attnum": relation.last_attnum,
        "columns": columns,
    }
    return {
        RELATION: orjson.dumps(document).decode(),
        "write.format.default": "parquet",
        "write.parquet.compression-codec": "zstd",
        "write.delete.mode": "merge-on-read",
        "write.update.mode": "merge-on-read",
        "write.merge.mode": "merge-on-read",
    }


@dataclass(frozen=True, slots=True)
class Leaf:
    """A primitive somewhere in a schema: one column of a Parquet file, in the file's order."""

    field_id: int
    path: str
    """Names joined by dots, for messages."""
    type: str
    """The Iceberg type."""
    repeated: bool
    """Whether it is inside a list or map, so that a row has any number of values."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The current schema of a table, for writing and reading its Parquet files."""

    relation: Relation
    schema_id: int
    ids: Mapping[str, int]
    """Column name -> field id, in column order."""
    plain: pa.Schema
    """The Arrow schema data files are written with (field ids on every level, uuid as its logical type)."""
    lineage: pa.Schema
    """``plain`` with the two columns of row lineage at the end."""
    leaves: tuple[Leaf, ...]
    """Of ``plain``."""
    defaults: Mapping[str, "pa.Scalar[Any]"]
    """Column name -> what rows of files from before the column have, in the type of ``ports.arrow_type``; null if it is left out."""
    inner_defaults: Mapping[int, "pa.Scalar[Any]"]
    """The same of fields of structs, by field id."""


def fields_of(metadata: Json) -> Fields:
    """What a table's data files look like now. Raises Corrupt if schema and ``icelake.relation`` do not belong together."""
    schema = current_schema(metadata)
    text = metadata.get("properties", {}).get(RELATION)
    if text is None:
        raise _corrupt(f"the table has no property {RELATION}")
    try:
        document = orjson.loads(text)
        listed = {entry["field-id"]: entry for entry in document["columns"]}
        columns = tuple(_column(field, listed) for field in schema["fields"])
        relation = Relation(
            oid=document["oid"],
            schema=document["schema"],
            name=document["name"],
            columns=columns,
            key=tuple(document["key"]),
            key_is_ordered=document["key-is-ordered"],
            identity=document["identity"],
            last_attnum=document["last-attnum"],
        )
        leaves = tuple(leaf for field in schema["fields"] for leaf in _leaves(field["id"], field["name"], field["type"], False))
        plain = [_file_field(field["name"], field["type"], not field["required"], field["id"]) for field in schema["fields"]]
        defaults = {field["name"]: scalar for field, scalar in _defaults(schema["fields"])}
        inner = [below for field in schema["fields"] if isinstance(field["type"], dict) for below in field["type"].get("fields", ())]
        inner_defaults = {field["id"]: scalar for field, scalar in _defaults(inner)}
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, decimal.InvalidOperation) as error:
        raise _corrupt(f"{RELATION} does not describe the schema ({type(error).__name__}: {error})") from error
    names = {column.name for column in columns}
    if len(listed) != len(columns) or not names.issuperset(relation.key):
        raise _corrupt(f"{RELATION} and the schema name different columns")
    if bool(relation.key) != (relation.identity == "key"):
        raise _corrupt(f"{RELATION} names the key {relation.key} for rows that are told apart by {relation.identity!r}")
    lineage = [
        _arrow_field(ROW_ID, pa.int64(), True, ROW_ID_FIELD),
        _arrow_field(LAST_UPDATED, pa.int64(), True, LAST_UPDATED_FIELD),
    ]
    return Fields(
        relation=relation,
        schema_id=schema["schema-id"],
        ids={field["name"]: field["id"] for field in schema["fields"]},
        plain=pa.schema(plain),
        lineage=pa.schema(plain + lineage),
        leaves=leaves,
        defaults=defaults,
        inner_defaults=inner_defaults,
    )


def _defaults(fields: Sequence[Json]) -> Iterator[tuple[Json, "pa.Scalar[Any]"]]:
    for field in fields:
        if field.get("initial-default") is not None:
            yield field, _default_scalar(field["initial-default"], field["type"])


def current_schema(metadata: Json) -> Json:
    """The current schema in a table's metadata. Raises Corrupt."""
    current = metadata["current-schema-id"]
    for schema in metadata["schemas"]:
        if schema["schema-id"] == current:
            found: Json = schema
            return found
    raise _corrupt(f"there is no schema {current}")


def relation_of(metadata: Json) -> Relation:
    """The relation a table mirrors: the inverse of ``iceberg_schema`` and ``table_properties``. Raises Corrupt."""
    return fields_of(metadata).relation


def field_id(field: "pa.Field[Any]") -> int | None:
    """The field id a Parquet column was written with, None if it has none."""
    value = (field.metadata or {}).get(_FIELD_ID)
    return None if value is None else int(value)


def _column(field: Mapping[str, Any], listed: Mapping[int, Mapping[str, Any]]) -> Column:
    entry = listed[field["id"]]
    kind = str(unnumbered(field["type"]))
    if entry["name"] != field["name"] or entry["iceberg"] != kind:
        raise _corrupt(f"field {field['id']} is {field['name']} {kind}, {RELATION} says {entry['name']} {entry['iceberg']}")
    return Column(
        name=field["name"],
        attnum=entry["attnum"],
        type_oid=entry["type-oid"],
        typmod=entry["typmod"],
        pg_type=entry["pg-type"],
        iceberg=kind,
        nullable=entry["nullable"],
        out_of_range=entry["out-of-range"],
        default=entry["default"],
        source=entry["source"],
    )


def _leaves(ident: int, path: str, kind: Any, repeated: bool) -> Iterator[Leaf]:
    if isinstance(kind, str):
        yield Leaf(ident, path, kind, repeated)
    elif kind["type"] == "list":
        yield from _leaves(kind["element-id"], f"{path}.element", kind["element"], True)
    elif kind["type"] == "map":
        yield from _leaves(kind["key-id"], f"{path}.key", kind["key"], True)
        yield from _leaves(kind["value-id"], f"{path}.value", kind["value"], True)
    else:
        for field in kind["fields"]:
            yield from _leaves(field["id"], f"{path}.{field['name']}", field["type"], repeated)


def _file_field(name: str, kind: Any, nullable: bool, number: int) -> "pa.Field[Any]":
    return _arrow_field(name, _file_type(kind), nullable, number)


def _file_type(kind: Any) -> pa.DataType:
    """The Arrow type a field has inside a data file: that of the port with field ids, but uuid carries Parquet's UUID logical type."""
    if isinstance(kind, str):
        return pa.uuid() if kind == "uuid" else arrow_type(kind)
    if kind["type"] == "list":
        return pa.list_(_file_field("element", kind["element"], True, kind["element-id"]))
    if kind["type"] == "map":
        key: Any = _file_field("key", kind["key"], False, kind["key-id"])
        value: Any = _file_field("value", kind["value"], True, kind["value-id"])
        entries: pa.DataType = pa.map_(key, value)
        return entries
    return pa.struct([_file_field(field["name"], field["type"], True, field["id"]) for field in kind["fields"]])


def _arrow_field(name: str, kind: pa.DataType, nullable: bool, number: int) -> "pa.Field[Any]":
    return pa.field(name, kind, nullable=nullable, metadata={_FIELD_ID: str(number)})


def _corrupt(why: str) -> Corrupt:
    return Corrupt(
        "TABLE_METADATA_CORRUPT",
        "a mirror's metadata is not what IceLake wrote",
        why,
        "find out who changed the table; then load the tables again into a new lake",
    )


# ------------------------------------------------------------------------------------------------------------- evolution


def evolve(metadata: Json, relation: Relation, *, replacing: bool = False) -> list[Json]:
    """The updates (REST specification, TableUpdate) that make a table's schema that of its source now; none if it is already.

    Columns are the same if their attnums are. Followed are added columns (optional; files from before them read as their
    ``default``), renamed and dropped ones, and wider types (int to long, float to double, more digits of a decimal; also inside nested
    types). A column keeps the default it came with. Raises UnsupportedTable for anything else. The caller commits them with
    ``assert-current-schema-id`` and ``assert-last-assigned-field-id``; then ``fields_of`` the result is the relation.

    ``replacing``: no row of the table will be believed, so a column that cannot be followed becomes a new field, and so does every
    column of another table of the same name, except those the mirror is partitioned or sorted by: these are known by their names.
    """
    before = current_schema(metadata)
    old = relation_of(metadata)
    known = {column.attnum: (column, field) for column, field in zip(old.columns, before["fields"], strict=True)}
    said = [(thing.id, thing.oid, thing.identity, thing.key_is_ordered, _key_attnums(thing)) for thing in (old, relation)]
    bound = _bound_fields(metadata)
    if replacing and old.oid != relation.oid:
        # Only names say what the table is partitioned by now.
        by_name = {column.name: (column, field) for column, field in known.values() if field["id"] in bound}
        known = {column.attnum: by_name[column.name] for column in relation.columns if column.name in by_name}
    elif said[0] != said[1] and not replacing:
        raise _cannot_follow(relation, "its name, its key, or how its rows are told apart is another than in the lake")
    ids = itertools.count(metadata["last-column-id"] + 1)
    if replacing:
        kept = [column for column in relation.columns if column.attnum in known]
        known = {c.attnum: known[c.attnum] for c in kept if _wider(known[c.attnum][1]["type"], parse(c.iceberg)) is not None}
    fresh = {column.attnum: next(ids) for column in relation.columns if column.attnum not in known}
    if not replacing:
        if any(attnum <= old.ever for attnum in fresh):
            raise _cannot_follow(relation, "a column that was generated is an ordinary one now: what rows hold of it is not known")
        if any(attnum > old.ever for attnum in relation.dropped):
            raise _cannot_follow(relation, "a column was added and dropped meanwhile: whose values came with which change is not known")
        if set(fresh) & set(relation.uneven):
            raise _cannot_follow(relation, "a column was added whose default is not the same in all partitions")
    columns: list[Column] = []
    fields: list[Json] = []
    for column in relation.columns:
        field: Json
        if column.attnum in known:
            was, field = known[column.attnum]
            where = f"column {column.name!r} was {was.pg_type} and is {column.pg_type} now"
            if was.out_of_range == "null" != column.out_of_range and not replacing:
                raise _cannot_follow(relation, f"the policy of column {column.name!r} for values out of contract has changed")
            kind = _wider(field["type"], parse(column.iceberg))
            if not replacing and was.type_oid != column.type_oid and not {was.type_oid, column.type_oid} <= _TEXTS:
                kind = None  # the same bytes may print otherwise, as those of cidr and inet do
            if kind is None or (kind != field["type"] and field["id"] in bound):
                raise _cannot_follow(relation, where)
            required = field["required"] and column.name in relation.key and not column.nullable
            field = {**field, "name": column.name, "required": required, "type": kind, "doc": column.pg_type}
            # What its files lack does not change with what PostgreSQL remembers, which a rewrite of the table empties.
            column = replace(column, default=was.default)
        else:
            kind = _numbered(parse(column.iceberg), ids)
            field = {"id": fresh[column.attnum], "name": column.name, "required": False, "type": kind, "doc": column.pg_type}
            default = None if replacing else _default_json(relation, column)
            if default is not None and metadata["format-version"] < 3:
                raise _cannot_follow(relation, f"column {column.name!r} was added with a default, which Iceberg has from version 3 on")
            if default is not None:
                field |= {"initial-default": default, "write-default": default}
        columns.append(column)
        fields.append(field)
    if bound - {field["id"] for field in fields}:
        raise _cannot_follow(relation, "a column that the table is partitioned or sorted by was dropped")
    relation = replace(relation, columns=tuple(columns), dropped=(), uneven=())
    schema = {**_schema(relation, fields), "schema-id": before["schema-id"]}
    updates: list[Json] = []
    if schema != before:
        updates += ({"action": "add-schema", "schema": schema}, {"action": "set-current-schema", "schema-id": -1})
    if relation != old:
        text = table_properties(relation, [field["id"] for field in fields])[RELATION]
        updates.append({"action": "set-properties", "updates": {RELATION: text}})
    return updates


def _key_attnums(relation: Relation) -> tuple[int, ...]:
    return tuple(column.attnum for column in relation.key_columns)


def _bound_fields(metadata: Json) -> set[int]:
    """The fields that partition specs and sort orders are made of."""
    return {
        source
        for thing in (*metadata.get("partition-specs", ()), *metadata.get("sort-orders", ()))
        for field in thing["fields"]
        for source in field.get("source-ids", [field.get("source-id")])
    }


def _wider(kind: Any, now: IcebergType) -> Any:
    """A type in JSON as ``now`` with its field ids; None if a file of the one cannot be read as the other (spec, Schema Evolution)."""
    if isinstance(kind, str):
        if not isinstance(now, Primitive):
            return None
        before, after = Primitive(kind).decimal, now.decimal
        if before is not None and after is not None:
            return now.name if before[1] == after[1] and before[0] <= after[0] else None
        return now.name if (kind, now.name) in _PROMOTIONS or kind == now.name else None
    parts: list[Any]
    match kind["type"], now:
        case "list", ListType(element):
            parts = [_wider(kind["element"], element)]
            wider = {**kind, "element": parts[0]}
        case "map", MapType(key, value):
            parts = [_wider(kind["key"], key), _wider(kind["value"], value)]
            wider = {**kind, "key": parts[0], "value": parts[1]}
        case "struct", StructType(fields) if [field["name"] for field in kind["fields"]] == [name for name, _ in fields]:
            parts = [_wider(field["type"], part) for field, (_, part) in zip(kind["fields"], fields, strict=True)]
            wider = {**kind, "fields": [{**field, "type": part} for field, part in zip(kind["fields"], parts, strict=True)]}
        case _:
            return None
    return None if None in parts else wider


_PROMOTIONS = {("int", "long"), ("float", "double")}
_TEXTS = {25, 1043}
"""text and varchar: of all types of different OIDs these two alone print the same bytes alike, and change without a rewrite."""


def _cannot_follow(relation: Relation, why: str) -> UnsupportedTable:
    return UnsupportedTable(
        "SCHEMA_CHANGE",
        f"the definition of {relation.id} has changed in a way the lake cannot follow",
        why,
        f"`icelake resume {relation.id} --reload` compares the table with the source under its new shape",
    )


# -------------------------------------------------------------------------------------------------------------- defaults


def _default_json(relation: Relation, column: Column) -> Any:
    """``column.default`` as a JSON single value (spec, Appendix D); None for null. Raises UnsupportedTable for what has no such form.

    Floats are written with the digits of the double they equal, so that the text means the same after a promotion.
    """
    if column.default is None:
        return None
    kind = parse(column.iceberg)
    try:
        if isinstance(kind, Primitive):
            if not _in_contract(column.default, kind):
                if column.out_of_range == "null":
                    return None
                raise ValueError("the lake's type cannot hold it")
            return _single_value(column.default, kind)
        why = "a default of a nested type is not followed"
    except (ValueError, KeyError, decimal.InvalidOperation) as error:
        why = f"{type(error).__name__}: {error}"
    raise UnsupportedTable(
        "COLUMN_DEFAULT",
        f"column {column.name!r} was added to {relation.id} with a default that Iceberg has no form for",
        f"rows from before it have the value {column.default[:80]!r} of type {column.iceberg}: {why}",
        f"`icelake resume {relation.id} --reload` writes the column into the rows there are",
    )


def _in_contract(text: str, kind: Primitive) -> bool:
    """Whether the lake's type can hold a value PostgreSQL's can (README, type contract)."""
    if kind.decimal is not None:
        value = decimal.Decimal(text)
        precision, scale = kind.decimal
        limit = decimal.Decimal(1).scaleb(precision - scale)
        return value.is_finite() and value.copy_abs() < limit and value == _scaled(value, scale)
    if kind.name == "time":
        return not text.startswith("24:")
    return kind.name not in ("date", "timestamp", "timestamptz") or text not in ("infinity", "-infinity")


def _scaled(value: decimal.Decimal, scale: int) -> decimal.Decimal:
    return value.quantize(decimal.Decimal(1).scaleb(-scale), context=_EXACT)


def _single_value(text: str, kind: Primitive) -> Any:
    match kind.name:
        case "boolean":
            return {"t": True, "true": True, "f": False, "false": False}[text]
        case "int" | "long":
            return int(text)
        case "float" | "double":
            number = float(np.float32(text)) if kind.name == "float" else float(text)
            if not math.isfinite(number):
                raise ValueError("JSON has no NaN and no infinity")
            return number
        case "string":
            return text
        case "binary":
            # Hexadecimal digits: bytea's begin with this mark, those of PostGIS without.
            return bytes.fromhex(text.removeprefix("\\x")).hex()
        case "date":
            return dt.date.fromisoformat(text).isoformat()
        case "time":
            return dt.time.fromisoformat(text).isoformat()
        case "timestamp":
            return dt.datetime.fromisoformat(text).isoformat()
        case "timestamptz":
            return dt.datetime.fromisoformat(text).astimezone(dt.UTC).isoformat()
        case "uuid":
            return str(uuid.UUID(text))
    declared = kind.decimal
    assert declared is not None
    return f"{_scaled(decimal.Decimal(text), declared[1]):f}"


def _default_scalar(value: Any, kind: str) -> "pa.Scalar[Any]":
    """The inverse, as ``ports.arrow_type`` has it."""
    match kind:
        case "binary":
            value = bytes.fromhex(value)
        case "date":
            value = dt.date.fromisoformat(value)
        case "time":
            value = dt.time.fromisoformat(value)
        case "timestamp" | "timestamptz":
            value = dt.datetime.fromisoformat(value)
        case "uuid":
            value = uuid.UUID(value).bytes
        case _ if Primitive(kind).decimal is not None:
            value = decimal.Decimal(value)
    return pa.scalar(value, arrow_type(kind))
