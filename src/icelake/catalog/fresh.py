"""Ids for the schema, partition spec and sort order of a table that is being made.

Promises: ids are given as the specification's reference implementation gives them, whatever ids a client sent, because clients
compare: field ids count from 1, all fields of a level before those inside them; partition fields count from 1000; a sort order with
fields has the id 1. Fails with ``ProjectError`` where a spec or an order refers to a field that is not there.
Source: Iceberg spec, Schemas and Partitioning; REST specification, CreateTableRequest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from icelake.catalog.metadata import deep
from icelake.errors import ProjectError
from icelake.ports import Json

_FIRST_PARTITION_ID = 1000


@dataclass(frozen=True, slots=True)
class Fresh:
    schema: Json
    spec: Json
    order: Json


def fresh(schema: Json, spec: Json | None, order: Json | None) -> Fresh:
    """The three with new ids, those of a table's first schema, spec and order."""
    deep(schema.get("fields"), "schema")
    ids = _Ids()
    try:
        fields = ids.struct(schema["fields"])
        identifiers = [ids.new[ident] for ident in schema.get("identifier-field-ids") or ()]
        partition = [
            {**_moved(field, ids), "field-id": _FIRST_PARTITION_ID + at} for at, field in enumerate((spec or {}).get("fields") or ())
        ]
        sort = [_moved(field, ids) for field in (order or {}).get("fields") or ()]
    except (KeyError, TypeError, AttributeError) as error:
        raise ProjectError(
            "CATALOG_BAD_REQUEST",
            f"create: the schema, partition spec or sort order names what is not there: {error}",
            "the request does not have the form the Iceberg REST specification gives it",
            "this is an error of the writer that sent it",
        ) from error
    made = {**{key: value for key, value in schema.items() if key != "identifier-field-ids"}, "schema-id": 0, "fields": fields}
    if identifiers:
        made["identifier-field-ids"] = identifiers
    return Fresh(made, {"spec-id": 0, "fields": partition}, {"order-id": 1 if sort else 0, "fields": sort})


class _Ids:
    def __init__(self) -> None:
        self.new: dict[int, int] = {}
        """The id a client sent -> the id it is now."""
        self._next = self._count()

    @staticmethod
    def _count() -> Iterator[int]:
        ident = 0
        while True:
            ident += 1
            yield ident

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
