"""A source relation as an Iceberg schema, and back.

Promises that ``relation_of(metadata of a table made from iceberg_schema and table_properties) == relation``, and that a column
is found by its field id, never by its name. Never changes a type silently. Fails with UnsupportedTable when the names cannot
be columns of one Iceberg table, and with Corrupt when a table's metadata is not what was written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from icelake.errors import Corrupt, UnsupportedTable
from icelake.model.relation import Column, Relation
from icelake.ports import Json, arrow_type

RELATION = "icelake.relation"
"""Table property: the relation as JSON, with the attnum and PostgreSQL type of every field id."""

ROW_ID = "_row_id"
LAST_UPDATED = "_last_updated_sequence_number"
ROW_ID_FIELD = 2147483540
LAST_UPDATED_FIELD = 2147483539
"""Reserved fields of row lineage (Iceberg spec, Reserved Field IDs)."""

_FIELD_ID = b"PARQUET:field_id"


def iceberg_schema(relation: Relation) -> Json:
    """The schema (Iceberg spec, Appendix C) a table of this relation is made with: field ids 1..n in column order.

    Key columns that are NOT NULL are required. They are the identifier fields only if all of the key may be (required, and no
    floating point: spec, Identifier Field IDs).
    """
    seen: dict[str, str] = {ROW_ID: ROW_ID, LAST_UPDATED: LAST_UPDATED}
    fields: list[Json] = []
    identifiers: list[int] = []
    for number, column in enumerate(relation.columns, start=1):
        other = seen.setdefault(column.name.lower(), column.name)
        if other != column.name or column.name in (ROW_ID, LAST_UPDATED):
            raise UnsupportedTable(
                "TABLE_COLUMN_NAMES",
                f"{relation.id} has a column {column.name!r} that engines cannot tell from {other!r}",
                "Spark, Trino and DuckDB ignore the case of column names, and Iceberg v3 reserves the names of row lineage",
                "rename the column in PostgreSQL, or leave the table out",
            )
        key = column.name in relation.key
        fields.append(
            {
                "id": number,
                "name": column.name,
                "required": key and not column.nullable,
                "type": column.iceberg,
                "doc": column.pg_type,
            }
        )
        if key:
            identifiers.append(number)
    schema: Json = {"type": "struct", "schema-id": 0, "fields": fields}
    key_fields = [fields[number - 1] for number in identifiers]
    if key_fields and all(field["required"] and field["type"] not in ("float", "double") for field in key_fields):
        schema["identifier-field-ids"] = identifiers
    return schema


def table_properties(relation: Relation) -> dict[str, str]:
    """The properties such a table is made with; they hold all of the relation that its schema does not."""
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
        }
        for number, column in enumerate(relation.columns, start=1)
    ]
    document = {
        "oid": relation.oid,
        "schema": relation.schema,
        "name": relation.name,
        "key": list(relation.key),
        "key-is-ordered": relation.key_is_ordered,
        "identity": relation.identity,
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
class Fields:
    """The current schema of a table, for writing and reading its Parquet files."""

    relation: Relation
    schema_id: int
    ids: Mapping[str, int]
    """Column name -> field id, in column order."""
    plain: pa.Schema
    """The Arrow schema data files are written with (field ids, uuid as its logical type)."""
    lineage: pa.Schema
    """``plain`` with the two columns of row lineage at the end."""
    read_back: tuple[pa.Schema, pa.Schema]
    """``plain`` and ``lineage`` as a footer's schema gives them, which knows uuid as 16 bytes only."""


def fields_of(metadata: Json) -> Fields:
    """What a table's data files look like now. Raises Corrupt if schema and ``icelake.relation`` do not belong together."""
    current = metadata["current-schema-id"]
    schema = next((s for s in metadata["schemas"] if s["schema-id"] == current), None)
    if schema is None:
        raise _corrupt(f"there is no schema {current}")
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
        )
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise _corrupt(f"{RELATION} does not describe the schema ({type(error).__name__}: {error})") from error
    names = {column.name for column in columns}
    if len(listed) != len(columns) or bool(relation.key) != (relation.identity == "key") or not names.issuperset(relation.key):
        raise _corrupt(f"{RELATION} and the schema name different columns")
    ids = {field["name"]: field["id"] for field in schema["fields"]}
    kinds = [file_type(field["type"]) for field in schema["fields"]]
    plain = [
        _arrow_field(field["name"], kind, not field["required"], field["id"]) for field, kind in zip(schema["fields"], kinds, strict=True)
    ]
    lineage = [
        _arrow_field(ROW_ID, pa.int64(), True, ROW_ID_FIELD),
        _arrow_field(LAST_UPDATED, pa.int64(), True, LAST_UPDATED_FIELD),
    ]
    bare = [field.with_type(pa.binary(16)) if kind == pa.uuid() else field for field, kind in zip(plain, kinds, strict=True)]
    return Fields(
        relation=relation,
        schema_id=current,
        ids=ids,
        plain=pa.schema(plain),
        lineage=pa.schema(plain + lineage),
        read_back=(pa.schema(bare), pa.schema(bare + lineage)),
    )


def relation_of(metadata: Json) -> Relation:
    """The relation a table mirrors: the inverse of ``iceberg_schema`` and ``table_properties``. Raises Corrupt."""
    return fields_of(metadata).relation


def file_type(iceberg: str) -> pa.DataType:
    """The Arrow type a column has inside a data file: that of the port, but uuid carries Parquet's UUID logical type."""
    return pa.uuid() if iceberg == "uuid" else arrow_type(iceberg)


def field_id(field: "pa.Field[Any]") -> int | None:
    """The field id a Parquet column was written with, None if it has none."""
    value = (field.metadata or {}).get(_FIELD_ID)
    return None if value is None else int(value)


def _column(field: Mapping[str, Any], listed: Mapping[int, Mapping[str, Any]]) -> Column:
    entry = listed[field["id"]]
    if entry["name"] != field["name"] or entry["iceberg"] != field["type"]:
        raise _corrupt(f"field {field['id']} is {field['name']} {field['type']}, {RELATION} says {entry['name']} {entry['iceberg']}")
    return Column(
        name=field["name"],
        attnum=entry["attnum"],
        type_oid=entry["type-oid"],
        typmod=entry["typmod"],
        pg_type=entry["pg-type"],
        iceberg=field["type"],
        nullable=entry["nullable"],
        out_of_range=entry["out-of-range"],
    )


def _arrow_field(name: str, kind: pa.DataType, nullable: bool, number: int) -> "pa.Field[Any]":
    return pa.field(name, kind, nullable=nullable, metadata={_FIELD_ID: str(number)})


def _corrupt(why: str) -> Corrupt:
    return Corrupt(
        "TABLE_METADATA_CORRUPT",
        "a mirror's metadata is not what IceLake wrote",
        why,
        "find out who changed the table; then load the tables again into a new lake",
    )
