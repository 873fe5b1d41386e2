"""What a source's tables are now, by the catalog: which can be mirrored, which cannot and why.

Promises: a table it returns as a ``Relation`` has every column, key and privilege the mirror needs; anything else is a ``Refusal``
that names the table, the reason and the statement that mends it. Never guesses from a name: a column is its attnum. Raises
psycopg's errors as they come (``session.explain`` words them). Source: PostgreSQL documentation, chapter 53 (System Catalogs).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from icelake.errors import UnsupportedTable
from icelake.model.ident import CONTROL_NAMESPACE
from icelake.model.relation import Column, Refusal, Relation
from icelake.sources.postgres.session import Connection, run
from icelake.sources.postgres.type_catalog import TypeCatalog
from icelake.sources.postgres.types import key_is_ordered, no_key, same, type_of

_TABLES = """
select c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       c.relispartition, exists (select from pg_catalog.pg_inherits h where c.oid in (h.inhrelid, h.inhparent)),
       pg_catalog.row_security_active(c.oid),
       pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
       k.columns, k.immediate, current_user::text
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join lateral (
    select i.indimmediate as immediate,
           array(select a.attname::text
                 from pg_catalog.unnest(i.indkey::int2[]) with ordinality as part(attnum, place)
                 join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = part.attnum
                 where part.place <= i.indnkeyatts order by part.place) as columns
    from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary
) k on true
where (n.nspname::text, c.relname::text) in (select * from unnest(%(schemas)s::text[], %(names)s::text[]))
   or (n.nspname = any(%(whole)s::text[]) and c.relkind in ('r', 'p', 'f'))
   or c.oid = any(%(oids)s::oid[])
order by n.nspname, c.relname
"""

_COLUMNS = """
select a.attrelid, a.attname, a.attnum, a.atttypid, a.atttypmod, pg_catalog.format_type(a.atttypid, a.atttypmod),
       not a.attnotnull, a.attgenerated <> '', pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT'),
       coalesce(o.collisdeterministic, true),
       pg_catalog.getdatabaseencoding() = 'UTF8' and coalesce(e.provider = 'b' or e.provider = 'c' and e.locale in ('C', 'POSIX'), false)
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
    "p": "a partitioned table",
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


@dataclass(frozen=True, slots=True)
class _Found:
    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    identity: str
    is_partition: bool
    inherits: bool
    rows_hidden: bool
    schema_usable: bool
    key: list[str] | None
    key_immediate: bool | None
    role: str

    @property
    def quoted(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"


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
    deterministic: bool
    bytewise: bool


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def describe(connection: Connection, patterns: Sequence[str]) -> list[Relation | Refusal]:
    """The tables of ``schema.name`` and ``schema.*`` as they are now, each once, by schema and name.

    Names are spelled as in the catalog (no quotes, case matters). A pattern that names nothing is a Refusal TABLE_NOT_FOUND.
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
    described = _judge_all(connection, found)
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


def describe_oid(connection: Connection, oid: int) -> Relation | Refusal | None:
    """The one table of that oid, None if it is gone."""
    described = _judge_all(connection, _tables(connection, oids=[oid]))
    return described[0] if described else None


def may_publish(connection: Connection, oid: int) -> bool:
    """Whether this role owns the table, or is a member of the role that does."""
    statement = "select pg_catalog.pg_has_role(c.relowner, 'USAGE') from pg_catalog.pg_class c where c.oid = %s"
    return any(row[0] for row in run(connection, statement, [oid]))


def differences(held: Relation, now: Relation | Refusal | None) -> list[str]:
    """How the source's table differs from the relation the lake holds, in words; empty if it does not.

    Compared by attnum: names and types of the columns, what the types are made of, the key, the table's own name.
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
    key_then = [names.get(column.attnum) for column in held.key_columns]
    if not out and list(now.key) != key_then:
        out.append(f"the primary key is now ({', '.join(now.key)}), it was ({', '.join(held.key)})")
    return out


def altered_types(held: Relation, now: Relation) -> list[str]:
    """Which columns are of the type they were, but the type was altered: ALTER TYPE announces nothing in the stream.

    A column that is kept as text minds only labels of an enum that were renamed: PostgreSQL prints them anew in rows nobody touched.
    """
    before = {column.attnum: column for column in held.columns}
    return [
        f"the type {new.pg_type} of column {new.name} was altered from {old.source} to {new.source}"
        for new in now.columns
        if (old := before.get(new.attnum)) is not None
        and (old.iceberg != "string" or '"enum"' in old.source)
        and (old.type_oid, old.typmod) == (new.type_oid, new.typmod)
        and not same(type_of(old), type_of(new))
    ]


def must_be(held: Relation, now: Relation | Refusal | None, doing: str) -> None:
    """Raises UnsupportedTable TABLE_CHANGED, naming every difference, unless the table still is what the lake holds."""
    raise_if_changed(held, differences(held, now), doing)


def raise_if_changed(held: Relation, found: Sequence[str], doing: str) -> None:
    if found:
        raise UnsupportedTable(
            "TABLE_CHANGED",
            f"{held.id} {doing}",
            f"it is not the table the lake holds: {'; '.join(found)}",
            "changes of shape are not followed yet: undo it if no row was written since, or load the tables again into a new lake",
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


def _judge_all(connection: Connection, found: Sequence[_Found]) -> list[Relation | Refusal]:
    columns: dict[int, list[_FoundColumn]] = {table.oid: [] for table in found}
    if found:
        for row in run(connection, _COLUMNS, [list(columns)]):
            columns[row[0]].append(_FoundColumn(*row))
    types = TypeCatalog(connection, {column.type_oid for several in columns.values() for column in several})
    return [_judge(table, columns[table.oid], types) for table in found]


def _judge(table: _Found, columns: Sequence[_FoundColumn], types: TypeCatalog) -> Relation | Refusal:
    mirrored = [column for column in columns if not column.generated]
    reason = _refuse_table(table) or _refuse_key(table, columns, types) or _refuse_columns(table, mirrored)
    if reason is not None:
        code, why, fix = reason
        return Refusal(table.schema, table.name, code, why, fix)
    key = tuple(table.key or ())
    out = tuple(_column(column, types) for column in mirrored)
    by_name = {column.name: column for column in out}
    bytewise = [column.name for column in mirrored if column.bytewise]
    ordered = key_is_ordered([by_name[name] for name in key], bytewise)
    return Relation(table.oid, table.schema, table.name, out, key, ordered)


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
    )


Reason = tuple[str, str, str]


def _refuse_table(table: _Found) -> Reason | None:
    if table.schema in {"pg_catalog", "information_schema", "pg_toast"}:
        return "SYSTEM_TABLE", "it belongs to PostgreSQL itself and cannot be published", "leave it out"
    if table.schema == CONTROL_NAMESPACE:
        return (
            "RESERVED_SCHEMA",
            f"the lake keeps its control tables in the namespace {CONTROL_NAMESPACE}",
            "rename the schema, or leave it out",
        )
    if table.kind in _KINDS:
        return (
            "NOT_A_PLAIN_TABLE",
            f"it is {_KINDS[table.kind]}: only plain, permanent tables are mirrored so far",
            "leave it out, or mirror the tables under it",
        )
    if table.persistence != "p":
        kind = "unlogged" if table.persistence == "u" else "temporary"
        return (
            "NOT_A_PLAIN_TABLE",
            f"it is {kind}: its changes are not in the log",
            f"ALTER TABLE {table.quoted} SET LOGGED;" if kind == "unlogged" else "leave it out",
        )
    if table.is_partition or table.inherits:
        kind = "a partition" if table.is_partition else "part of an inheritance tree"
        return "NOT_A_PLAIN_TABLE", f"it is {kind}, which is not mirrored so far", "leave it out"
    if table.rows_hidden:
        return (
            "ROW_SECURITY",
            "row-level security hides rows of it from this role, but the stream would carry them all",
            f"ALTER ROLE {quoted(table.role)} BYPASSRLS;",
        )
    return None


def _refuse_key(table: _Found, columns: Sequence[_FoundColumn], types: TypeCatalog) -> Reason | None:
    if not table.key:
        return (
            "NO_PRIMARY_KEY",
            "it has no primary key, so a change cannot be told from another row's",
            f"ALTER TABLE {table.quoted} ADD PRIMARY KEY (…);",
        )
    if not table.key_immediate:
        return (
            "DEFERRABLE_PRIMARY_KEY",
            "its primary key is deferrable, and PostgreSQL would refuse updates and deletes of it once published",
            f"make the primary key of {table.quoted} NOT DEFERRABLE",
        )
    if table.identity not in {"d", "f"}:
        kind = "NOTHING" if table.identity == "n" else "USING INDEX"
        return (
            "REPLICA_IDENTITY",
            f"its replica identity is {kind}, so changes do not name the row by its primary key",
            f"ALTER TABLE {table.quoted} REPLICA IDENTITY DEFAULT;",
        )
    by_name = {column.name: column for column in columns}
    for name in table.key:
        column = by_name[name]
        if column.generated:
            return (
                "GENERATED_KEY",
                f"key column {name} is generated, and generated columns are not published",
                f"make {name} an ordinary column of {table.quoted}",
            )
        why = no_key(_column(column, types), column.deterministic)
        if why:
            return (
                "UNSUPPORTED_KEY",
                f"key column {name} ({column.pg_type}) cannot be a key here: {why}",
                "give the table a key of numbers, text, dates, timestamps or uuid",
            )
    return None


def _refuse_columns(table: _Found, columns: Sequence[_FoundColumn]) -> Reason | None:
    reserved = [c.name for c in columns if c.name in _RESERVED_COLUMNS]
    if reserved:
        return (
            "RESERVED_COLUMN_NAME",
            f"Iceberg keeps these column names for itself: {', '.join(reserved)}",
            f"ALTER TABLE {table.quoted} RENAME COLUMN {quoted(reserved[0])} TO …;",
        )
    hidden = [c.name for c in columns if not c.readable]
    if hidden or not table.schema_usable:
        role = quoted(table.role)
        return (
            "NO_SELECT_PRIVILEGE",
            f"this role may not read {', '.join(hidden) if hidden else 'the schema'}",
            f"GRANT USAGE ON SCHEMA {quoted(table.schema)} TO {role}; GRANT SELECT ON {table.quoted} TO {role};",
        )
    return None
