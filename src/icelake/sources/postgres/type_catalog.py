"""pg_type read into trees: what each type of the described columns is made of, in one query for all tables.

Promises: a tree is enough to read a value's text, and differs whenever that text is put together differently (an attribute added,
dropped or renamed, another element type, an enum's label renamed). A type of an extension is known by its name and its extension,
whatever its OID; what is not known is text.
Source: PostgreSQL documentation, chapter 53 (pg_type, pg_attribute, pg_range, pg_enum, pg_depend).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from icelake.sources.postgres.session import Connection, run
from icelake.sources.postgres.types import (
    BY_EXTENSION,
    BY_OID,
    ArrayOf,
    Composite,
    Leaf,
    MultirangeOf,
    PgType,
    RangeOf,
    dump,
    iceberg_type,
    leaf,
)

_TYPES = """
with recursive wanted (oid) as (
    select pg_catalog.unnest(%s::oid[])
    union
    select part.oid from wanted w
    join pg_catalog.pg_type t on t.oid = w.oid
    cross join lateral (
        select t.typelem where t.typelem <> 0 and t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc
        union all select t.typbasetype where t.typtype = 'd'
        union all select a.atttypid from pg_catalog.pg_attribute a
                  where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        union all select r.rngsubtype from pg_catalog.pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
    ) part (oid)
)
select t.oid, t.typname, t.typtype::text, t.typdelim::text, t.typbasetype, t.typtypmod,
       case when t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc then t.typelem else 0 end, r.rngsubtype,
       case when t.typtype = 'c' then
           (select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(a.attnum, a.attname, a.atttypid::int8, a.atttypmod) order by a.attnum)
            from pg_catalog.pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) end,
       case when t.typtype = 'e' then
           (select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(l.oid::int8, l.enumlabel) order by l.oid)
            from pg_catalog.pg_enum l where l.enumtypid = t.oid) end,
       e.extname
from wanted w
join pg_catalog.pg_type t on t.oid = w.oid
left join pg_catalog.pg_range r on t.oid in (r.rngtypid, r.rngmultitypid)
left join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_type'::regclass and d.objid = t.oid and d.objsubid = 0
     and d.refclassid = 'pg_catalog.pg_extension'::regclass and d.deptype = 'e'
left join pg_catalog.pg_extension e on e.oid = d.refobjid
"""

_DEEPEST: Final = 32
"""Types nested deeper are text: PostgreSQL has no limit of its own, but forbids a type within itself."""


@dataclass(frozen=True, slots=True)
class _Row:
    oid: int
    name: str
    kind: str
    delimiter: str
    base: int
    typmod: int
    element: int
    bound: int | None
    attributes: list[tuple[int, str, int, int]] | None
    labels: list[tuple[int, str]] | None
    extension: str | None


class TypeCatalog:
    """The types of these OIDs and all they are made of, as they are now."""

    def __init__(self, connection: Connection, oids: Collection[int]) -> None:
        unknown = sorted(oid for oid in oids if oid not in BY_OID)
        self._rows = {row[0]: _Row(*row) for row in run(connection, _TYPES, [unknown])} if unknown else {}
        self._found: dict[tuple[int, int], tuple[str, str]] = {}

    def of(self, oid: int, typmod: int) -> tuple[str, str]:
        """What a column of this type is: ``Column.source`` and, by the contract, ``Column.iceberg``."""
        found = self._found.get((oid, typmod))
        if found is None:
            tree = self._tree(oid, typmod)
            found = "" if oid in BY_OID else dump(tree), str(iceberg_type(tree))
            self._found[oid, typmod] = found
        return found

    def _tree(self, oid: int, typmod: int, depth: int = 0) -> PgType:
        if oid in BY_OID:
            return leaf(oid, typmod)
        row = self._rows.get(oid)
        if row is None or depth > _DEEPEST:
            return Leaf("other")
        match row.kind:
            case "d":
                return self._tree(row.base, row.typmod, depth + 1)
            case "e":
                return Leaf("enum", labels=tuple((label_oid, label) for label_oid, label in row.labels or ()))
            case "c" if row.attributes:
                return Composite(tuple((attnum, name, self._tree(kind, mod, depth + 1)) for attnum, name, kind, mod in row.attributes))
            case "r" if row.bound:
                return RangeOf(self._tree(row.bound, -1, depth + 1))
            case "m" if row.bound:
                return MultirangeOf(self._tree(row.bound, -1, depth + 1))
        if row.element:
            element = self._rows.get(row.element)
            delimiter = element.delimiter if element is not None else ","
            return ArrayOf(self._tree(row.element, typmod, depth + 1), delimiter)
        return Leaf(BY_EXTENSION.get((row.extension or "", row.name), "other"))
