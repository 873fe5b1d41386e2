"""What a source's tables are now, by the catalog: which can be mirrored, which cannot and why.

Promises: a table it returns as a ``Relation`` has every column, key and privilege the mirror needs; anything else is a ``Refusal``
that names the table, the reason and the statement that mends it. Never guesses from a name: a column is its attnum. Raises
psycopg's errors as they come (``session.explain`` words them). Source: PostgreSQL documentation, chapter 53 (System Catalogs).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from icelake.errors import UnsupportedTable
from icelake.model.ident import CONTROL_NAMESPACE
from icelake.model.parking import SUFFIX
from icelake.model.relation import TABLEOID, Column, Refusal, Relation
from icelake.model.types import Primitive, parse
from icelake.sources.postgres.session import Connection, run
from icelake.sources.postgres.type_catalog import TypeCatalog
from icelake.sources.postgres.types import altered, key_is_ordered

_TABLES = """
with named as not materialized (
    -- Indexes that may name rows. What PostgreSQL itself asks of a replica identity (RelationGetIndexList): unique, checked at once,
    -- whole, valid; of columns that are never null.
    select i.indrelid, i.indisprimary, i.indisreplident, part.columns,
           i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null and part.plain as usable
    from pg_catalog.pg_index i
    cross join lateral (
        select array_agg(a.attname::text order by part.place) as columns,
               -- From version 18 on a column may be NOT NULL for new rows only (NOT VALID).
               bool_and(a.attnotnull is true and not exists (
                   select from pg_catalog.pg_constraint n
                   where n.conrelid = i.indrelid and n.contype = 'n' and not n.convalidated and a.attnum = any(n.conkey))) as plain
        from pg_catalog.unnest(i.indkey::int2[]) with ordinality as part(attnum, place)
        left join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = part.attnum
        where part.place <= i.indnkeyatts
    ) part
    where i.indisprimary or i.indisreplident
)
select c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       c.relispartition, pg_catalog.row_security_active(c.oid),
       pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
       k.columns, k.usable, r.columns, r.usable, current_user::text, c.relnatts,
       array(select a.attnum from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and a.attisdropped order by 1)
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join lateral (
    select x.columns, x.usable from named x where x.indrelid = c.oid and x.indisprimary
) k on true
left join lateral (
    select x.columns, x.usable from named x where x.indrelid = c.oid and x.indisreplident
) r on true
where (n.nspname::text, c.relname::text) in (select * from unnest(%(schemas)s::text[], %(names)s::text[]))
   -- Partitions are their root's: a pattern means them only where it does not mean the root.
   or (n.nspname = any(%(whole)s::text[]) and c.relkind in ('r', 'p', 'f') and not (c.relispartition and exists (
       select from pg_catalog.pg_class t join pg_catalog.pg_namespace s on s.oid = t.relnamespace
       where t.oid = pg_catalog.pg_partition_root(c.oid) and s.nspname = any(%(whole)s::text[]))))
   or c.oid = any(%(oids)s::oid[])
order by n.nspname, c.relname
"""

LEAVES = """
with recursive tree (root, oid, joined) as (
    select c.oid, c.oid, '' from pg_catalog.pg_class c where {roots}
    union all
    select t.root, i.inhrelid, t.joined || '.' || i.xmin from tree t
    join pg_catalog.pg_inherits i on i.inhparent = t.oid where not i.inhdetachpending
), leaf as (
    select t.root, t.oid, t.joined, n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, c.relfilenode
    from tree t join pg_catalog.pg_class c on c.oid = t.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind <> 'p'
)
"""
"""The leaves of partitioned tables. One that is being detached (CONCURRENTLY) is none any more: queries leave its rows out already."""

_OF_ROOTS = LEAVES.format(roots="c.oid = any(%(roots)s::oid[]) and c.relkind = 'p'")

_LEAVES = f"""{_OF_ROOTS}
select l.root, l.oid, l.nspname, l.relname, l.relkind::text, l.relpersistence::text, l.relreplident::text,
       pg_catalog.row_security_active(l.oid),
       pg_catalog.has_table_privilege(l.oid, 'SELECT') and pg_catalog.has_schema_privilege(l.nspname::text, 'USAGE'),
       exists (select from pg_catalog.pg_attribute a where a.attrelid = l.oid and a.attnum > 0 and a.attgenerated <> ''),
       array(
           select a.attname::text from pg_catalog.pg_attribute a
           left join pg_catalog.pg_attribute b on b.attrelid = l.root and b.attname = a.attname and b.attnum > 0 and not b.attisdropped
               and (b.atttypid, b.atttypmod, b.attgenerated <> '') = (a.atttypid, a.atttypmod, a.attgenerated <> '')
           where a.attrelid = l.oid and a.attnum > 0 and not a.attisdropped and b.attnum is null)
from leaf l order by l.oid
"""

_MISSING = "case when a.atthasmissing then pg_catalog.array_to_string(a.attmissingval, '') end"
"""An array of one, whose only element's text this is."""

_LEAF_DEFAULTS = f"""{_OF_ROOTS}
select l.root, b.attnum, array_agg(distinct {_MISSING}), bool_and(a.atthasmissing)
from leaf l
join pg_catalog.pg_attribute a on a.attrelid = l.oid and a.attnum > 0 and not a.attisdropped
join pg_catalog.pg_attribute b on b.attrelid = l.root and b.attname = a.attname and not b.attisdropped
group by l.root, b.attnum having bool_or(a.atthasmissing)
"""

_COLUMNS = f"""
select a.attrelid, a.attname, a.attnum, a.atttypid, a.atttypmod, pg_catalog.format_type(a.atttypid, a.atttypmod),
       not a.attnotnull, a.attgenerated <> '', pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT'),
       pg_catalog.getdatabaseencoding() = 'UTF8' and coalesce(e.provider = 'b' or e.provider = 'c' and e.locale in ('C', 'POSIX'), false),
       {_MISSING}
from pg_catalog.pg_attribute a
left join pg_catalog.pg_collation o on o.oid = a.attcollation
cross join (select coalesce(pg_catalog.to_jsonb(b) ->> 'datlocprovider', 'c') as provider, b.datcollate::text as locale
            from pg_catalog.pg_database b where b.datname = pg_catalog.current_database()) d
left join lateral (select case o.collprovider when 'd' then d.provider else o.collprovider::text end as provider,
                          case o.collprovider when 'd' then d.locale else o.collcollate::text end as locale) e on true
where a.attrelid = any(%s::oid[]) and a.attnum > 0 and not a.attisdropped
order by a.attrelid, a.attnum
"""

_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "c": "a composite type",
    "i": "an index",
    "I": "an index",
    "t": "a TOAST table",
}
_RESERVED_COLUMNS = frozenset(
    {
        "_file",
        "_pos",
        "_deleted",
        "_spec_id",
        "_partition",
        "_row_id",
        "_last_updated_sequence_number",
        "_change_type",
        "_change_ordinal",
        "_commit_snapshot_id",
    }
)
"""Iceberg spec, Reserved Field IDs: names of metadata columns a table's own column cannot have."""

ALL = "*"
IS_PARTITION = "IS_PARTITION"
"""Code of a partition that is asked for by itself: its rows are in the mirror of its root."""
_OID: Final = 26
"""pg_type.oid of ``oid``."""


@dataclass(frozen=True, slots=True)
class _Found:
    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    identity: str
    is_partition: bool
    rows_hidden: bool
    schema_usable: bool
    key: list[str] | None
    """Columns of the primary key."""
    key_usable: bool | None
    index: list[str] | None
    """Columns of the index named by REPLICA IDENTITY USING INDEX."""
    index_usable: bool | None
    role: str
    last_attnum: int
    dropped: list[int]

    @property
    def quoted(self) -> str:
        return qualified(self.schema, self.name)

    @property
    def id(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class _FoundLeaf:
    root: int
    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    identity: str
    rows_hidden: bool
    readable: bool
    generated: bool
    """Whether it has generated columns."""
    strange: list[str]
    """Columns the root has not, or otherwise."""

    @property
    def quoted(self) -> str:
        return qualified(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class _FoundColumn:
    table: int
    name: str
    attnum: int
    type_oid: int
    typmod: int
    pg_type: str
    nullable: bool
    generated: bool
    readable: bool
    bytewise: bool
    missing: str | None
    """What rows from before the column have, if that is a constant of its own (PostgreSQL documentation, ALTER TABLE, Notes)."""


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """A table's name with its schema, as in an SQL statement."""
    return f"{quoted(schema)}.{quoted(name)}"


def describe(connection: Connection, patterns: Sequence[str], append_only: Collection[str] = ()) -> list[Relation | Refusal]:
    """The tables of ``schema.name`` and ``schema.*`` as they are now, each once, by schema and name.

    Names are spelled as in the catalog (no quotes, case matters). A pattern that names nothing is a Refusal TABLE_NOT_FOUND.
    ``append_only``: tables (``schema.name``) that are mirrored by their inserts and truncates alone, whatever names their rows.
    """
    wanted: list[tuple[str, str]] = []
    for pattern in patterns:
        schema, dot, name = pattern.partition(".")
        wanted.append((schema, name) if dot and name else ("", pattern))
    single = [(schema, name) for schema, name in wanted if name != ALL]
    found = _tables(
        connection,
        schemas=[schema for schema, _ in single],
        names=[name for _, name in single],
        whole=[schema for schema, name in wanted if name == ALL],
    )
    described = _judge_all(connection, found, append_only)
    seen = {(table.schema, table.name) for table in found}
    seen |= {(table.schema, ALL) for table in found}
    return [
        *described,
        *(
            Refusal(
                schema,
                name,
                "TABLE_NOT_FOUND",
                "there is no such table in this database" if name != ALL else "the schema does not exist or holds no table",
                "write schema.name as the catalog spells it (case matters), or schema.* for all tables of a schema",
            )
            for schema, name in dict.fromkeys(wanted)
            if (schema, name) not in seen
        ),
    ]


def describe_oid(connection: Connection, oid: int, append_only: bool = False) -> Relation | Refusal | None:
    """The one table of that oid, None if it is gone."""
    found = _tables(connection, oids=[oid])
    described = _judge_all(connection, found, [table.id for table in found] if append_only else ())
    return described[0] if described else None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A table that holds rows of a partitioned one, ``root``. ``storage``: its relfilenode."""

    root: int
    oid: int
    schema: str
    name: str
    storage: int


def leaves_of(connection: Connection, roots: Sequence[int]) -> list[Leaf]:
    """The leaves of these partitioned tables, by OID, as the connection's snapshot has them."""
    statement = f"{_OF_ROOTS} select l.root, l.oid, l.nspname::text, l.relname::text, l.relfilenode from leaf l order by l.oid"
    return [Leaf(*row) for row in run(connection, statement, {"roots": list(roots)})]


def dropped_since(connection: Connection, held: Relation) -> bool:
    """Whether columns were added and dropped since the lake's relation was looked up."""
    statement = "select from pg_catalog.pg_attribute a where a.attrelid = %s and a.attnum > %s and a.attisdropped limit 1"
    return bool(run(connection, statement, [held.oid, held.ever]))


def published_columns(connection: Connection, oid: int) -> list[tuple[int, str, int, int]]:
    """(attnum, name, type OID, typmod) of every column that is published now, in order; empty if the table is gone."""
    statement = """
        select a.attnum, a.attname::text, a.atttypid::bigint, a.atttypmod from pg_catalog.pg_attribute a
        where a.attrelid = %s and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' order by a.attnum"""
    return [(row[0], row[1], row[2], row[3]) for row in run(connection, statement, [oid])]


def may_publish(connection: Connection, oid: int) -> bool:
    """Whether this role owns the table, or is a member of the role that does."""
    statement = "select pg_catalog.pg_has_role(c.relowner, 'USAGE') from pg_catalog.pg_class c where c.oid = %s"
    return any(row[0] for row in run(connection, statement, [oid]))


def differences(held: Relation, now: Relation | Refusal | None) -> list[str]:
    """How the source's table differs from the relation the lake holds, in words; empty if it does not.

    Compared by attnum: names and types of the columns, what the types are made of, what names rows, the table's own name.
    """
    if now is None:
        return ["the table was dropped"]
    if isinstance(now, Refusal):
        return [now.why]
    out: list[str] = []
    if now.oid != held.oid:
        out.append("the table was dropped and made again")
    if (now.schema, now.name) != (held.schema, held.name):
        out.append(f"the table is now called {now.schema}.{now.name}")
    before = {column.attnum: column for column in held.columns}
    after = {column.attnum: column for column in now.columns}
    out += [f"column {before[n].name} was dropped" for n in sorted(before.keys() - after.keys())]
    out += [f"column {after[n].name} ({after[n].pg_type}) was added" for n in sorted(after.keys() - before.keys())]
    for attnum in sorted(before.keys() & after.keys()):
        old, new = before[attnum], after[attnum]
        if old.name != new.name:
            out.append(f"column {old.name} is now called {new.name}")
        if (old.type_oid, old.typmod) != (new.type_oid, new.typmod):
            out.append(f"column {new.name} changed its type from {old.pg_type} to {new.pg_type}")
    out += altered_types(held, now)
    names = {column.attnum: column.name for column in now.columns}
    key_then = tuple(names.get(column.attnum) for column in held.key_columns)
    if not out and (now.identity, now.key) != (held.identity, key_then):
        out.append(f"its changes now name rows by {now.named_by}, they did by {held.named_by}")
    return out


def only_grew(held: Relation, now: Relation | Refusal | None) -> bool:
    """Whether all that is new of a table is columns that were added."""
    if not isinstance(now, Relation):
        return False
    known = {column.attnum for column in held.columns}
    before = replace(now, columns=tuple(column for column in now.columns if column.attnum in known))
    added = [column.attnum for column in now.columns if column.attnum not in known]
    # A column that was generated and is ordinary now is not new, and of one that was added and dropped changes may be on their way.
    new = all(attnum > held.ever for attnum in added) and not any(attnum > held.ever for attnum in now.dropped)
    new = new and not set(added) & set(now.uneven)
    return bool(added) and new and not differences(held, before)


def altered_types(held: Relation, now: Relation) -> list[str]:
    """Which columns are of the type they were, but the type was altered: ALTER TYPE announces nothing in the stream."""
    before = {column.attnum: column for column in held.columns}
    return [
        f"the type {new.pg_type} of column {new.name} was altered from {old.source} to {new.source}"
        for new in now.columns
        if (old := before.get(new.attnum)) is not None and (old.type_oid, old.typmod) == (new.type_oid, new.typmod) and altered(old, new)
    ]


def must_be(held: Relation, now: Relation | Refusal | None, doing: str) -> None:
    """Raises UnsupportedTable naming every difference, unless the table still is what the lake holds: TABLE_GREW if it just has more
    columns, TABLE_REPLACED if it is another table or gone, TABLE_CHANGED if it has another shape."""
    if only_grew(held, now):
        grew = f"{held.id} has columns that its mirror has not"
        raise UnsupportedTable("TABLE_GREW", grew, "they were just added", "the mirror gets them, and goes on", table=str(held.id))
    if now is None or (isinstance(now, Relation) and now.oid != held.oid):
        raise UnsupportedTable(
            "TABLE_REPLACED",
            f"{held.id} {doing}",
            "; ".join(differences(held, now)),
            f"`icelake resume {held.id} --reload` compares the table of that name, if there is one, with the lake",
            table=str(held.id),
        )
    raise_if_changed(held, differences(held, now), doing)


def raise_if_changed(held: Relation, found: Sequence[str], doing: str) -> None:
    if found:
        raise UnsupportedTable(
            "TABLE_CHANGED",
            f"{held.id} {doing}",
            f"it is not the table the lake holds: {'; '.join(found)}",
            f"if the lake shall follow: `icelake resume {held.id}`; its changes are kept until then",
            table=str(held.id),
        )


def _tables(
    connection: Connection,
    *,
    schemas: Sequence[str] = (),
    names: Sequence[str] = (),
    whole: Sequence[str] = (),
    oids: Sequence[int] = (),
) -> list[_Found]:
    arguments = {"schemas": list(schemas), "names": list(names), "whole": list(whole), "oids": list(oids)}
    return [_Found(*row) for row in run(connection, _TABLES, arguments)]


def _judge_all(connection: Connection, found: Sequence[_Found], append_only: Collection[str]) -> list[Relation | Refusal]:
    columns: dict[int, list[_FoundColumn]] = {table.oid: [] for table in found}
    if found:
        for row in run(connection, _COLUMNS, [list(columns)]):
            columns[row[0]].append(_FoundColumn(*row))
    types = TypeCatalog(connection, {column.type_oid for several in columns.values() for column in several})
    version = connection.info.server_version
    partitions = _partitions(connection, [table.oid for table in found if table.kind == "p"])
    return [_judge(table, columns[table.oid], types, table.id in append_only, version, partitions.get(table.oid)) for table in found]


@dataclass(slots=True)
class _Partitions:
    """What there is to know of the leaves of one partitioned table."""

    leaves: list[_FoundLeaf]
    defaults: dict[int, str | None]
    """attnum in the root -> what rows from before a column have, where a leaf has such rows; PostgreSQL keeps that with the leaves."""
    uneven: list[int]
    """attnums in the root of which that is not the same in all leaves."""


def _partitions(connection: Connection, roots: Sequence[int]) -> dict[int, _Partitions]:
    out = {root: _Partitions([], {}, []) for root in roots}
    if not roots:
        return out
    arguments = {"roots": list(roots)}
    for row in run(connection, _LEAVES, arguments):
        out[row[0]].leaves.append(_FoundLeaf(*row))
    for root, attnum, values, everywhere in run(connection, _LEAF_DEFAULTS, arguments):
        if everywhere and len(values) == 1:
            out[root].defaults[attnum] = values[0]
        else:
            out[root].uneven.append(attnum)
    return out


def _judge(
    table: _Found,
    columns: Sequence[_FoundColumn],
    types: TypeCatalog,
    append_only: bool,
    version: int,
    partitions: _Partitions | None,
) -> Relation | Refusal:
    mirrored = [column for column in columns if not column.generated]
    if partitions is not None:
        # Changes come from the leaves, whose identities count. Without a key the way is FULL, for all of them.
        are_full = [leaf.identity == "f" for leaf in partitions.leaves]
        full = bool(are_full) and all(are_full) if table.key else any(are_full)
        table = replace(table, identity="f" if full else "d")
    key = () if append_only else _key(table, columns, types)
    reason = _refuse_table(table)
    for leaf in partitions.leaves if partitions is not None else ():
        reason = reason or _refuse_leaf(table, leaf)
    if not append_only:
        reason = reason or _refuse_identity(table, columns, version) or _refuse_key(table, columns, key, types)
        for leaf in partitions.leaves if partitions is not None else ():
            reason = reason or _refuse_leaf_identity(leaf, bool(key), version)
    reason = reason or _refuse_columns(table, mirrored)
    if reason is not None:
        code, why, fix = reason
        return Refusal(table.schema, table.name, code, why, fix)
    out = tuple(_column(column, types) for column in mirrored)
    if partitions is not None:
        out = (*(replace(column, default=partitions.defaults.get(column.attnum)) for column in out), _tableoid(types))
        key = (out[-1].name, *key) if key else ()
    by_name = {column.name: column for column in out}
    bytewise = [column.name for column in mirrored if column.bytewise]
    ordered = key_is_ordered([by_name[name] for name in key], bytewise)
    return Relation(
        table.oid,
        table.schema,
        table.name,
        out,
        key,
        # A table without a key is one range.
        key_is_ordered=bool(key) and ordered,
        last_attnum=table.last_attnum,
        dropped=tuple(table.dropped),
        uneven=tuple(partitions.uneven) if partitions is not None else (),
        identity="none" if append_only else "key" if key else "full",
    )


def _key(table: _Found, columns: Sequence[_FoundColumn], types: TypeCatalog) -> tuple[str, ...]:
    """The columns by which changes name rows; () if there are none, or if only whole rows can name rows here.

    Under FULL the old row comes whole, so the primary key can be read off it.
    """
    if table.identity == "i":
        return tuple(table.index or ()) if table.index_usable else ()
    key = tuple(table.key or ()) if table.key_usable and table.identity != "n" else ()
    return () if table.identity == "f" and _refuse_key(table, columns, key, types) else key


def _column(column: _FoundColumn, types: TypeCatalog) -> Column:
    source, iceberg = types.of(column.type_oid, column.typmod)
    return Column(
        name=column.name,
        attnum=column.attnum,
        type_oid=column.type_oid,
        typmod=column.typmod,
        pg_type=column.pg_type,
        iceberg=iceberg,
        nullable=column.nullable,
        source=source,
        default=column.missing,
    )


def _tableoid(types: TypeCatalog) -> Column:
    source, iceberg = types.of(_OID, -1)
    return Column("tableoid", TABLEOID, _OID, -1, "oid", iceberg, nullable=False, source=source)


class Reason(NamedTuple):
    """What stands against a table; with its name it is a Refusal."""

    code: str
    why: str
    fix: str


def _refuse_table(table: _Found) -> Reason | None:
    if table.schema in {"pg_catalog", "information_schema", "pg_toast"}:
        return Reason("SYSTEM_TABLE", "it belongs to PostgreSQL itself and cannot be published", "leave it out")
    if table.name.endswith(SUFFIX):
        return Reason("RESERVED_NAME", f"names that end in {SUFFIX} are those of spools of parked tables", "rename it, or leave it out")
    if table.schema == CONTROL_NAMESPACE:
        return Reason(
            "RESERVED_SCHEMA",
            f"the lake keeps its control tables in the namespace {CONTROL_NAMESPACE}",
            "rename the schema, or leave it out",
        )
    if table.kind in _KINDS:
        return Reason(
            "NOT_A_PLAIN_TABLE",
            f"it is {_KINDS[table.kind]}: only plain, permanent tables are mirrored so far",
            "leave it out, or mirror the tables under it",
        )
    if table.is_partition:
        return Reason(
            IS_PARTITION,
            "it is a partition of another table, in whose mirror its rows are",
            "name the table it is a partition of (the root, if that is one itself), or leave it out",
        )
    if table.persistence != "p" and table.kind != "p":
        kind = "unlogged" if table.persistence == "u" else "temporary"
        return Reason(
            "NOT_A_PLAIN_TABLE",
            f"it is {kind}: its changes are not in the log",
            f"ALTER TABLE {table.quoted} SET LOGGED;" if kind == "unlogged" else "leave it out",
        )
    if table.rows_hidden:
        return Reason(
            "ROW_SECURITY",
            "row-level security hides rows of it from this role, but the stream would carry them all",
            f"ALTER ROLE {quoted(table.role)} BYPASSRLS;",
        )
    return None


def _refuse_leaf(table: _Found, leaf: _FoundLeaf) -> Reason | None:
    """Why the rows of a leaf could not be mirrored, and so those of its root cannot."""
    its = f"its partition {leaf.schema}.{leaf.name}"
    role = quoted(table.role)
    if leaf.kind != "r":
        why = f"{its} is {_KINDS.get(leaf.kind, 'no table')}: its changes are not in the log"
        return Reason("NOT_A_PLAIN_TABLE", why, f"detach it, or leave {table.id} out")
    if leaf.persistence != "p":
        return Reason("NOT_A_PLAIN_TABLE", f"{its} is unlogged: its changes are not in the log", f"ALTER TABLE {leaf.quoted} SET LOGGED;")
    if leaf.strange:
        return Reason(
            "PARTITION_DIFFERS",
            f"{its} has columns of other types, or generated otherwise: {', '.join(leaf.strange)}",
            f"make the columns of {leaf.quoted} those of {table.quoted}",
        )
    if leaf.rows_hidden:
        why = f"row-level security hides rows of {its} from this role, but the stream would carry them all"
        return Reason("ROW_SECURITY", why, f"ALTER ROLE {role} BYPASSRLS;")
    if not leaf.readable:
        grants = f"GRANT USAGE ON SCHEMA {quoted(leaf.schema)} TO {role}; GRANT SELECT ON {leaf.quoted} TO {role};"
        to_come = "ALTER DEFAULT PRIVILEGES grants it on partitions to come"
        return Reason("NO_SELECT_PRIVILEGE", f"this role may not read {its}, which is read by itself", f"{grants}  {to_come}")
    return None


def _refuse_leaf_identity(leaf: _FoundLeaf, keyed: bool, version: int) -> Reason | None:
    """Why changes of a leaf would not name rows as those of its root do. ``keyed``: by the root's primary key, which all leaves have."""
    its = f"its partition {leaf.schema}.{leaf.name}"
    if leaf.identity == "f" and leaf.generated and version >= 180000:
        return Reason(
            "REPLICA_IDENTITY",
            f"the replica identity of {its} is FULL, but PostgreSQL 18 refuses updates and deletes if that holds a generated column",
            f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY DEFAULT;",
        )
    if leaf.identity == "f" or (keyed and leaf.identity == "d"):
        return None
    fix = f"ALTER TABLE {leaf.quoted} REPLICA IDENTITY {'DEFAULT' if keyed else 'FULL'};"
    return Reason("REPLICA_IDENTITY", f"changes of {its} do not name rows as those of the others do", fix)


def _refuse_identity(table: _Found, columns: Sequence[_FoundColumn], version: int) -> Reason | None:
    """Why PostgreSQL would refuse updates and deletes of the table once they are published (CheckCmdReplicaIdentity), if so."""
    append = f'append_only = true in [tables."{table.id}"], if no row of it is ever changed'
    full = f"ALTER TABLE {'(each partition)' if table.kind == 'p' else table.quoted} REPLICA IDENTITY FULL;"
    default = f"ALTER TABLE {table.quoted} REPLICA IDENTITY DEFAULT;"
    if table.identity == "f":
        if version >= 180000 and any(column.generated for column in columns):
            return Reason(
                "REPLICA_IDENTITY",
                "its replica identity is FULL, but PostgreSQL 18 refuses updates and deletes if that holds a generated column",
                f"{default}  with a primary key; or {append}",
            )
        return None
    if table.identity == "n" or (table.identity == "i" and not table.index_usable):
        how = "NOTHING" if table.identity == "n" else "USING INDEX, of an index that is gone, not valid or may hold nulls"
        return Reason(
            "REPLICA_IDENTITY",
            f"its replica identity is {how}: a change of it names no row, and PostgreSQL would refuse updates and deletes once published",
            f"{default}  with a primary key; or {full}  or {append}",
        )
    if table.identity == "d" and not table.key:
        return Reason(
            "NO_PRIMARY_KEY",
            "it has no primary key: a change of it names no row, and PostgreSQL would refuse updates and deletes once published",
            f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (…);  or {full}  or {append}",
        )
    if table.identity == "d" and not table.key_usable:
        return Reason(
            "DEFERRABLE_PRIMARY_KEY",
            "its primary key is deferrable, and PostgreSQL would refuse updates and deletes of it once published",
            f"make the primary key of {table.quoted} NOT DEFERRABLE;  or {full}  or {append}",
        )
    return None


def _refuse_key(table: _Found, columns: Sequence[_FoundColumn], key: Sequence[str], types: TypeCatalog) -> Reason | None:
    by_name = {column.name: column for column in columns}
    for name in key:
        column = by_name[name]
        if column.generated:
            return Reason(
                "GENERATED_KEY",
                f"key column {name} is generated, and generated columns are not published",
                f"make {name} an ordinary column of {table.quoted}",
            )
        if not isinstance(parse(types.of(column.type_oid, column.typmod)[1]), Primitive):
            return Reason(
                "UNSUPPORTED_KEY",
                f"key column {name} is {column.pg_type}, a value of several parts: rows are not looked up by such values",
                f"ALTER TABLE {table.quoted} REPLICA IDENTITY FULL;  or give the table a key of plain values",
            )
    return None


def _refuse_columns(table: _Found, columns: Sequence[_FoundColumn]) -> Reason | None:
    if not columns:
        return Reason("NO_COLUMNS", "it has no column that could be mirrored", "leave it out")
    reserved = [c.name for c in columns if c.name in _RESERVED_COLUMNS]
    if reserved:
        return Reason(
            "RESERVED_COLUMN_NAME",
            f"Iceberg keeps these column names for itself: {', '.join(reserved)}",
            f"ALTER TABLE {table.quoted} RENAME COLUMN {quoted(reserved[0])} TO …;",
        )
    hidden = [c.name for c in columns if not c.readable]
    if hidden or not table.schema_usable:
        role = quoted(table.role)
        return Reason(
            "NO_SELECT_PRIVILEGE",
            f"this role may not read {', '.join(hidden) if hidden else 'the schema'}",
            f"GRANT USAGE ON SCHEMA {quoted(table.schema)} TO {role}; GRANT SELECT ON {table.quoted} TO {role};",
        )
    return None
