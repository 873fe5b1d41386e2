"""What a history is as a table: its schema follows its mirror's, field by field.

Promises that the schema is a function of the mirror's schema alone: the field of a mirror's column with id n has the id 2n + 9 inside
``row`` and 2n + 10 inside ``old_key`` (and so have the parts of its type), whatever the column is called. So what the mirror's old
rows read as after a change of its schema (renamed, wider, without a column, with a new one's default), the history's read as too. No I/O.
"""

from typing import Any

from icelake.model.history import COLUMNS, PARTITION
from icelake.model.relation import Column, Relation, TableId
from icelake.ports import Json
from icelake.tables.schema import RELATION, current_schema, relation_of, table_properties, unnumbered

_ROW, _OLD_KEY = 9, 10


def history_schema(mirror: Json) -> Json:
    """The schema (Iceberg spec, Appendix C) of the history of a mirror with this metadata."""
    relation, fields = relation_of(mirror), {field["name"]: field for field in current_schema(mirror)["fields"]}
    inside = {
        "old_key": [fields[column.name] for column in named(relation)],
        "row": list(fields.values()),
    }
    out: list[Json] = []
    for number, (name, kind, required, doc) in enumerate(COLUMNS, start=1):
        if name == PARTITION and not relation.partitioned:
            continue
        whole: Any = kind
        if name in inside:
            parts = [_renumbered(field, _ROW if name == "row" else _OLD_KEY) for field in inside[name]]
            if not parts:
                continue
            whole = {"type": "struct", "fields": parts}
        out.append({"id": number, "name": name, "required": required, "type": whole, "doc": doc})
    return {"type": "struct", "schema-id": 0, "fields": out}


def named(relation: Relation) -> tuple[Column, ...]:
    """The columns that name a row before its change; none of an append-only table."""
    return relation.columns if relation.identity == "full" else relation.key_columns


def history_properties(table: TableId, schema: Json) -> dict[str, str]:
    """The properties that say what the columns of ``schema`` are."""
    columns = tuple(
        Column(
            name=field["name"],
            attnum=field["id"],
            type_oid=0,
            typmod=-1,
            pg_type="",
            iceberg=str(unnumbered(field["type"])),
            nullable=not field["required"],
        )
        for field in schema["fields"]
    )
    relation = Relation(0, table.namespace, table.name, columns, (), False, "none")
    return table_properties(relation, [field["id"] for field in schema["fields"]])


def evolved(table: TableId, metadata: Json, mirror: Json) -> list[Json]:
    """The updates (REST specification, TableUpdate) after which a history has its mirror's shape; none if it has."""
    now = current_schema(metadata)
    schema = {**history_schema(mirror), "schema-id": now["schema-id"]}
    if schema == now:
        return []
    return [
        {"action": "add-schema", "schema": schema},
        {"action": "set-current-schema", "schema-id": -1},
        {"action": "set-properties", "updates": {RELATION: history_properties(table, schema)[RELATION]}},
    ]


def _renumbered(field: Json, base: int) -> Json:
    return {**field, "id": 2 * field["id"] + base, "required": False, "type": _type(field["type"], base)}


def _type(kind: Any, base: int) -> Any:
    if isinstance(kind, str):
        return kind
    ids = {key: 2 * kind[key] + base for key in ("element-id", "key-id", "value-id") if key in kind}
    parts = {key: _type(kind[key], base) for key in ("element", "key", "value") if key in kind}
    if "fields" in kind:
        parts["fields"] = [_renumbered(field, base) for field in kind["fields"]]
    return {**kind, **ids, **parts}
