"""Ids for the schema, partition spec and sort order of a table that is being made.

Promises: ids are given as the specification's reference implementation gives them, whatever ids a client sent, because clients
compare: field ids count from 1, all fields of a level before those inside them; partition fields count from 1000; a sort order with
fields has the id 1. Fails with ``ProjectError`` where a spec or an order refers to a field that is not there.
Source: Iceberg spec, Schemas and Partitioning; REST specification, CreateTableRequest.
"""

from dataclasses import dataclass
from itertools import count
from typing import Any

from icelake.catalog.metadata import FIRST_PARTITION_ID, deep, understood
from icelake.ports import Json


@dataclass(frozen=True, slots=True)
class Fresh:
    schema: Json
    spec: Json
    order: Json


def fresh(schema: Json, spec: Json | None, order: Json | None) -> Fresh:
    """The three with new ids, those of a table's first schema, spec and order."""
    ids = _Ids()
    with understood():
        deep(schema["fields"], "schema")
        made = {**schema, "schema-id": 0, "fields": ids.struct(schema["fields"])}
        if identifiers := made.pop("identifier-field-ids", None):
            made["identifier-field-ids"] = [ids.new[ident] for ident in identifiers]
        partition = [
            {**_moved(field, ids), "field-id": FIRST_PARTITION_ID + at} for at, field in enumerate((spec or {}).get("fields") or ())
        ]
        sort = [_moved(field, ids) for field in (order or {}).get("fields") or ()]
    return Fresh(made, {"spec-id": 0, "fields": partition}, {"order-id": 1 if sort else 0, "fields": sort})


class _Ids:
    def __init__(self) -> None:
        self.new: dict[int, int] = {}
        """The id a client sent -> the id it is now."""
        self._next = count(1)

    def of(self, old: int) -> int:
        self.new[old] = next(self._next)
        return self.new[old]

    def struct(self, fields: list[Json]) -> list[Json]:
        numbered = [(self.of(field["id"]), field) for field in fields]
        return [{**field, "id": ident, "type": self.type(field["type"])} for ident, field in numbered]

    def type(self, kind: Any) -> Any:
        if not isinstance(kind, dict):
            return kind
        match kind["type"]:
            case "struct":
                return {**kind, "fields": self.struct(kind["fields"])}
            case "list":
                element = self.of(kind["element-id"])
                return {**kind, "element-id": element, "element": self.type(kind["element"])}
            case "map":
                key, value = self.of(kind["key-id"]), self.of(kind["value-id"])
                return {**kind, "key-id": key, "key": self.type(kind["key"]), "value-id": value, "value": self.type(kind["value"])}
        return kind


def _moved(field: Json, ids: _Ids) -> Json:
    """A field of a spec or an order, of the fields that bear other ids now."""
    sources = field.get("source-ids")
    if sources is not None and "source-id" not in field:
        return {**field, "source-ids": [ids.new[source] for source in sources]}
    return {**field, "source-id": ids.new[field["source-id"]]}
