"""The lake side: which snapshots a cut names, what columns they have, and SQL that reads them.

Promises: tables are read through the catalog's read port and DuckDB only, at the snapshots of one cut, and columns are taken by
place, never by a name DuckDB might fold or pair otherwise. Never decides what is newest. Fails with Refused when the cut is gone
and Corrupt when lake and catalog contradict each other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from icelake.engines.duckdb import TableAt, iceberg_scan
from icelake.errors import Corrupt, Refused
from icelake.model.history import HISTORY_OF, owner_of
from icelake.model.ident import CONTROL_NAMESPACE
from icelake.model.marker import CUT, SOURCE, Cut, Marker
from icelake.model.parking import SPOOL_OF
from icelake.model.relation import TableId
from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType
from icelake.ports import CatalogReader, Json

RELATION = "icelake.relation"
"""Table property of a mirror: its source relation as JSON. Read are the OID, identity and key, and each column's field id, name,
attnum and policy; what type a column has, the schema says."""


@dataclass(frozen=True, slots=True)
class CutTables:
    """A cut and the mirrors of its source. ``loading``: those that are not in the cut."""

    cut: Cut
    marker: Marker | None
    snapshots: dict[TableId, int]
    loading: tuple[TableId, ...]


@dataclass(frozen=True, slots=True)
class LakeColumn:
    name: str
    type: IcebergType
    attnum: int | None = None
    """The source's column it mirrors; None: the table does not say."""
    nulls: bool = False
    """Whether values its type cannot hold are NULL in it, by policy."""


@dataclass(frozen=True, slots=True)
class LakeTable:
    """One mirror at one snapshot, with what it says about itself. ``columns``: in the schema's order."""

    id: TableId
    snapshot: int
    columns: tuple[LakeColumn, ...]
    key: tuple[str, ...] | None
    """The columns that name a row, in order; None: the mirror claims no key, its rows are a multiset."""
    oid: int = 0
    """pg_class.oid of the table it mirrors."""
    problems: tuple[str, ...] = ()


def mirrors(catalog: CatalogReader) -> dict[TableId, str | None]:
    """Every table that mirrors a source table, with the id of its source if it has one yet."""
    found: dict[TableId, str | None] = {}
    for table in catalog.tables():
        if table.namespace != CONTROL_NAMESPACE:
            properties = catalog.load(table).metadata.get("properties", {})
            if RELATION in properties and properties.keys().isdisjoint((SPOOL_OF, HISTORY_OF)):
                found[table] = properties.get(SOURCE)
    return found


def histories(catalog: CatalogReader, mirrored: Mapping[TableId, str | None]) -> dict[TableId, TableId]:
    """Of these mirrors (with the ids of their sources) that have a history: which."""
    owners = {(source, str(mirror)): mirror for mirror, source in mirrored.items()}
    kept = ((table, owner_of(catalog.load(table).metadata.get("properties", {}))) for table in catalog.tables())
    return {owners[owner]: table for table, owner in kept if owner in owners}


def read_cut(catalog: CatalogReader, cut_id: int) -> CutTables:
    """The cut of that id, from the control table that holds it. Raises Refused if none does."""
    for table in catalog.tables():
        if table.namespace != CONTROL_NAMESPACE:
            continue
        metadata = catalog.load(table).metadata
        for snapshot in metadata.get("snapshots", ()):
            if snapshot["snapshot-id"] == cut_id and CUT in snapshot["summary"]:
                cut = Cut.read(snapshot)
                source = metadata.get("properties", {}).get(SOURCE)
                ours = [mirror for mirror, of in mirrors(catalog).items() if of is None or of == source]
                snapshots = {mirror: cut.tables[str(mirror)] for mirror in ours if str(mirror) in cut.tables}
                return CutTables(
                    cut, Marker.read(snapshot["summary"]), snapshots, tuple(mirror for mirror in ours if mirror not in snapshots)
                )
    raise Refused("VERIFY_CUT_GONE", f"no control table holds cut {cut_id}", "it was expired before it could be read", "run verify again")


def describe(catalog: CatalogReader, table: TableId, snapshot: int) -> LakeTable:
    """The columns the table has at the snapshot, and what contradicts itself about them."""
    metadata = catalog.load(table).metadata
    held = next((one for one in metadata["snapshots"] if one["snapshot-id"] == snapshot), None)
    if held is None:
        raise Refused(
            "VERIFY_CUT_GONE", f"{table} has no snapshot {snapshot}", "it was expired before it could be read", "run verify again"
        )
    schema_id = held.get("schema-id", metadata["current-schema-id"])
    fields: list[Json] = next(schema["fields"] for schema in metadata["schemas"] if schema["schema-id"] == schema_id)
    try:
        relation = json.loads(metadata["properties"][RELATION])
        listed: dict[int, Json] = {column["field-id"]: column for column in relation["columns"]}
        columns = []
        for field in fields:
            entry = listed.get(field["id"], {})
            columns.append(LakeColumn(field["name"], _type(field["type"]), entry.get("attnum"), entry.get("out-of-range") == "null"))
        claimed = tuple(relation["key"]) if relation["identity"] == "key" else None
        oid = int(relation["oid"])
        names = {column["name"] for column in relation["columns"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(
            "VERIFY_RELATION_CORRUPT",
            f"{table} does not say which columns it mirrors",
            f"its property {RELATION} cannot be read ({type(error).__name__}: {error})",
            "find out who changed the table; then load the tables again into a new lake",
        ) from error
    problems = []
    # The property describes the newest schema only.
    if schema_id == metadata["current-schema-id"]:
        there = {column.name for column in columns}
        problems += [f"column {name} stands in {RELATION} but not in the schema" for name in sorted(names - there)]
        problems += [f"column {name} stands in the schema but not in {RELATION}" for name in sorted(there - names)]
    return LakeTable(table, snapshot, tuple(columns), claimed, oid, tuple(problems))


def _type(written: str | Json) -> IcebergType:
    """A type as a schema writes it (Iceberg spec, Appendix C)."""
    if isinstance(written, str):
        return Primitive(written.replace(" ", ""))
    match written["type"]:
        case "list":
            return ListType(_type(written["element"]))
        case "map":
            return MapType(_type(written["key"]), _type(written["value"]))
        case "struct":
            return StructType(tuple((field["name"], _type(field["type"])) for field in written["fields"]))
        case other:
            raise ValueError(f"no type is called {other!r}")


def scan(catalog: CatalogReader, table: LakeTable) -> str:
    """A FROM item that reads the table at its snapshot. Made anew for every reading: metadata files do not live long."""
    at: TableAt = (catalog.load(table.id).metadata_location, table.snapshot)
    return iceberg_scan(at)


def locations(catalog: CatalogReader, tables: Sequence[TableId]) -> list[str]:
    """The folders the tables' files are in."""
    return [catalog.load(table).metadata["location"] for table in tables]


def check_columns(table: LakeTable, read: Sequence[str]) -> None:
    """DuckDB must show the columns the schema names, in its order. Raises Corrupt."""
    names = [column.name for column in table.columns]
    if [name.casefold() for name in read] != [name.casefold() for name in names]:
        raise Corrupt(
            "VERIFY_LAKE_UNREADABLE",
            f"{table.id} reads with other columns than its schema has",
            f"DuckDB shows {', '.join(read)}; the schema says {', '.join(names)}",
            "look at the table's metadata",
        )
