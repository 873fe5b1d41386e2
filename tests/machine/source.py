"""The source of an example: a schema of its own on a server that lasts, tables of drawn shapes, and what happens to them, as SQL.

A statement that PostgreSQL refuses to its user (a key that is there already, an index row too large) is part of the play: it fails, its
transaction goes on or back, and nothing of it may be in the lake.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from hypothesis import note
from hypothesis import strategies as st

from icelake.model.layout import SOURCES, Layout, PartitionField, SortField
from icelake.model.relation import Refusal, Relation
from icelake.model.types import Primitive, parse
from icelake.sources.postgres.choices import choose
from icelake.sources.postgres.server import PostgresSource
from tests.machine.kinds import BIG, BY_NAME, SCHEMA, TYPES, Kind, offered

Draw = Callable[..., Any]
"""``data.draw``."""

NAMES = (
    "id",
    "Id",
    "select",
    "user",
    'q"uote',
    "sp ace",
    " ",
    "ünï",
    "日本",
    "🦆",
    "a.b",
    "a,b(c)",
    "new\nline",
    "'",
    "n" * 63,
    "ü" * 31,
    "%s",
    "{}",
    "$1",
    "\\",
    "null",
    "element",
    "key",
    "l0",
    "_",
    "1",
    "../x",
    "#?&=",
)
"""Of columns and tables alike."""
REFUSED = (
    psycopg.errors.IntegrityError,
    psycopg.errors.DataError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.DependentObjectsStillExist,
)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@dataclass
class Column:
    name: str
    kind: Kind
    nullable: bool = True
    within: str = "{}"
    """What a value becomes (SQL, with the column's type) so that the table's partitions can take it."""

    @property
    def q(self) -> str:
        return quoted(self.name)

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(f"{self.q} {self.kind.sql}")


@dataclass
class Part:
    """A partition, which has rows itself. It is in a schema of its own: what is detached is no table of the source."""

    name: str
    bound: str
    there: bool = False
    attached: bool = False
    alike: bool = True
    """It has the columns of the table it is detached from."""

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(f"{self.name} {self.bound}")


@dataclass
class Table:
    schema: str
    name: str
    columns: list[Column]
    key: list[str]
    identity: str
    """``key``, ``index`` (USING INDEX), ``full`` (rows without a key), ``full key`` (FULL, with a primary key) or ``append``."""
    policy: str = "error"
    layout: Layout = field(default_factory=Layout)
    generated: bool = False
    excused: set[str] = field(default_factory=set)
    """Codes it may be parked with now, by what was done to it since it was last known to be followed."""
    columns_moved: bool = False
    """A column was altered since then: with new storage, that looks like rewritten rows."""
    storage_moved: bool = False
    reshaped: bool = False
    """A column came, went or is another: changes made before the next time can be told by the lake's columns or by those of now."""
    constants: bool = False
    """A column was added with a default."""
    gone: bool = False
    must_reload: bool = False
    history: bool = False
    by: str = ""
    """``hash``, ``range`` or ``list`` if it is partitioned: by its first column."""
    parts: list[Part] = field(default_factory=list)

    @property
    def id(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def q(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        of = [self.q, self.identity, f"out_of_range = {self.policy}", str(self.layout)]
        printer.text(", ".join([*of, *([f"by {self.by}"] if self.by else []), *(["history"] if self.history else [])]))

    @property
    def changeable(self) -> bool:
        """Whether updates and deletes reach the lake."""
        return self.identity != "append"

    def laid_out_by(self) -> set[str]:
        return {*(one.column for one in self.layout.partition), *(one.column for one in self.layout.sort)}

    def free(self) -> list[Column]:
        """Columns that may change their shape: no key, of no partition, and not named in the project."""
        fixed = {*self.key, *self.laid_out_by(), *([self.columns[0].name] if self.by else [])}
        return [column for column in self.columns if column.name not in fixed]

    def excuse(self, *codes: str, columns: bool = False, storage: bool = False) -> None:
        self.excused |= set(codes)
        self.columns_moved |= columns
        self.storage_moved |= storage
        if columns:
            for part in self.parts:
                part.alike &= part.attached
        if self.columns_moved and self.storage_moved:
            self.excused.add("TABLE_REWRITTEN")
            self.must_reload = True

    def reshape(self) -> None:
        """After a second time nobody can tell any more which columns changes between the two had."""
        self.must_reload |= self.reshaped
        self.reshaped = True

    @property
    def restless(self) -> bool:
        """Something was done to its shape that nobody may have noticed yet: its next change tells, or the next start."""
        return bool(self.excused) or self.columns_moved

    def settled(self) -> None:
        """It is followed, and everything that was done to it is in the lake."""
        self.excused.clear()
        self.columns_moved = self.storage_moved = self.must_reload = self.reshaped = False


class Source:
    """The schema, and a session in it that the examples share."""

    def __init__(self, dsn: str, session: "psycopg.Connection[Any]", schema: str, has: frozenset[str]) -> None:
        self.dsn = dsn
        self.session = session
        self.schema = schema
        self.version = session.info.server_version // 10000
        self.has = has
        self.tables: list[Table] = []
        self._number = itertools.count(1)
        self.leaves = f"{schema} leaves"
        self.session.execute(f"create schema {quoted(schema)}; create schema {quoted(self.leaves)}")
        self.run(*TYPES)

    def drop(self) -> None:
        self.session.execute(f"drop schema {quoted(self.schema)} cascade; drop schema {quoted(self.leaves)} cascade")

    # ------------------------------------------------------------------------------------------------ statements

    def sql(self, text: str) -> str:
        return text.replace(SCHEMA, quoted(self.schema))

    def run(self, *statements: str) -> None:
        """Each in a transaction of its own; none may fail."""
        for statement in statements:
            note(self.sql(statement))
            self.session.execute(self.sql(statement))

    def attempt(self, *statements: str) -> bool:
        """All of them or none: they may be refused; whether they were not."""
        try:
            with self.session.transaction():
                self.run(*statements)
        except REFUSED as error:
            note(f"-- {type(error).__name__}")
            return False
        return True

    def lsn(self) -> int:
        row = self.session.execute("select pg_current_wal_lsn() - '0/0'").fetchone()
        assert row is not None
        return int(row[0])

    def alive(self, changeable: bool = False) -> list[Table]:
        return [table for table in self.tables if not table.gone and (table.changeable or not changeable)]

    # ---------------------------------------------------------------------------------------------------- tables

    def make(self, draw: Draw) -> Table:
        """A table of a drawn shape, with everything the project says of it."""
        name = draw(st.sampled_from([one for one in NAMES if all(one != table.name for table in self.tables)]))
        identity = draw(st.sampled_from(["key", "key", "index", "full", "full key", "append"]))
        # Engines could not tell names apart that differ in case alone: such a table is refused.
        names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=7, unique_by=str.lower))
        width = draw(st.integers(1, 2)) if identity in ("key", "index", "full key") else 0
        columns = []
        for place, column in enumerate(names):
            of = draw(self._kinds(key=place < width))
            columns.append(Column(column, of, nullable=place >= width))
        table = Table(self.schema, name, columns, names[:width], identity)
        table.policy = draw(st.sampled_from(["error", "null", "text"]))
        table.generated = identity not in ("full", "full key") and draw(st.integers(0, 3)) == 0
        if identity != "index":
            table.by = draw(st.sampled_from(["", "", "", "hash", "range", "list"]))
        if table.by and not self._can_be_split(table):
            table.by = ""
        table.history = draw(st.booleans())
        self.create(table)
        self.tables.append(table)
        self._lay_out(draw, table)
        return table

    def _kinds(self, *, key: bool = False) -> st.SearchStrategy[Kind]:
        """Half of them plain: what is rare must meet what is common."""
        plain = [BY_NAME[name] for name in ("int4", "int8", "text", "varchar(9)", "numeric(9,2)", "timestamptz", "date")]
        big = [] if key else [BY_NAME["text"], BY_NAME["bytea"], BY_NAME["jsonb"], BY_NAME["numeric"]]
        return st.one_of(st.sampled_from([*plain, *big]), st.sampled_from(offered(self.version, self.has, key=key)))

    def _can_be_split(self, table: Table) -> bool:
        """Not every type can be hashed, nor has every one an order; of an array's elements that shows at the first row."""
        names, samples = (", ".join(texts) for texts in zip(*((c.q, c.kind.sample) for c in table.columns), strict=True))
        try:
            with self.session.transaction(force_rollback=True):
                self.create(table)
                self.run(f"insert into {table.q} ({names}) values ({samples})")
        except psycopg.Error as error:
            note(f"-- {type(error).__name__}")
            return False
        return True

    def create(self, table: Table) -> None:
        parts = [f"{column.q} {column.kind.sql}{'' if column.nullable else ' not null'}" for column in table.columns]
        key = ", ".join(map(quoted, table.key))
        if table.identity in ("key", "full key"):
            parts.append(f"primary key ({key})")
        if table.generated:
            parts.append("made int generated always as (40 + 2) stored")
        split = f" partition by {table.by} ({table.columns[0].q})" if table.by else ""
        self.run(f"create table {table.q} ({', '.join(parts)}){split}")
        if table.by:
            self._split(table)
            return
        if table.identity == "index":
            index = quoted(f"index {next(self._number)}")
            self.run(f"create unique index {index} on {table.q} ({key})", f"alter table {table.q} replica identity using index {index}")
        if table.identity in ("full", "full key"):
            self.run(f"alter table {table.q} replica identity full")
        for column in table.columns:
            if big(column) is not None:
                self.run(f"alter table {table.q} alter {column.q} set storage external")

    def _split(self, table: Table) -> None:
        for part in table.parts:
            self.run(f"drop table if exists {self.leaf(part)}")
        sample = table.columns[0].kind.sample
        bounds = {
            "hash": ("with (modulus 2, remainder 0)", "with (modulus 2, remainder 1)"),
            "range": (f"from (minvalue) to ({sample})", f"from ({sample}) to (maxvalue)"),
            "list": (f"in ({sample})", ""),
        }
        table.parts = [
            Part(f"p{next(self._number)}", f"for values {bound}" if bound else "default", True, True) for bound in bounds[table.by]
        ]
        for part in table.parts:
            self.run(*self.new_leaf(table, part))

    def leaf(self, part: Part) -> str:
        return f"{quoted(self.leaves)}.{part.name}"

    def new_leaf(self, table: Table, part: Part) -> list[str]:
        """Statements that belong into one transaction: before the second the leaf cannot be mirrored as its table is."""
        out = [f"create table {self.leaf(part)} partition of {table.q} {part.bound}"]
        if table.identity in ("full", "full key"):
            out.append(f"alter table {self.leaf(part)} replica identity full")
        out += [
            f"alter table {self.leaf(part)} alter {column.q} set storage external" for column in table.columns if big(column) is not None
        ]
        return out

    def _lay_out(self, draw: Draw, table: Table) -> None:
        relation = self.described(table)
        # A partitioned table has one more, which leaf a row is of.
        own = [column for column in relation.columns if column.name in {one.name for one in table.columns}]
        fields: list[PartitionField] = []
        for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
            pairs = [(column.name, transform) for column in own for transform in _transforms(column.iceberg)]
            if not pairs:
                break
            name, transform = draw(st.sampled_from(pairs))
            width = {"bucket": 3, "truncate": 2}.get(transform)
            candidate = Layout((*fields, PartitionField(name, transform, width)))
            if candidate.misfit(relation) is None:
                fields.append(candidate.partition[-1])
        flat = [column.name for column in own if isinstance(parse(column.iceberg), Primitive)]
        sort = draw(st.lists(st.sampled_from(flat), max_size=2, unique=True)) if flat else []
        order = tuple(SortField(name, draw(st.booleans()), draw(st.booleans())) for name in sort)
        table.layout = Layout(tuple(fields), order, draw(st.sampled_from([3, 3, 2])))
        for one in fields:
            column = next(column for column in table.columns if column.name == one.column)
            if column.kind.sql.startswith("timestamp"):
                column.within = _PARTITIONED.get(one.transform, column.within)

    def described(self, table: Table) -> Relation:
        """The table as the project wants it mirrored."""
        source = PostgresSource(self.dsn, append_only=[table.id] if table.identity == "append" else [])
        (relation,) = source.describe([table.id])
        assert not isinstance(relation, Refusal), relation
        chosen = choose(relation, table.policy, {})  # type: ignore[arg-type]
        assert not isinstance(chosen, Refusal), chosen
        return chosen

    # -------------------------------------------------------------------------------------------------- changes

    def value(self, draw: Draw, table: Table, column: Column) -> str:
        """What a column of a row is set to."""
        chance = draw(st.integers(0, 9))
        if chance == 0 and column.nullable:
            return "NULL"
        larger = big(column)
        if chance <= 2 and larger is not None and column.name not in table.key:
            return larger(next(self._number))
        beyond = column.kind.beyond if table.policy != "error" and column.name not in table.key else ()
        value: str = draw(st.sampled_from(beyond)) if chance == 9 and beyond else draw(column.kind.values)
        return column.within.format(value, column.kind.sql)

    def insert(self, draw: Draw, table: Table, into: str = "") -> str:
        """``into``: a partition of it."""
        rows = []
        for _ in range(draw(st.integers(1, 4))):
            values = [self.value(draw, table, column) for column in table.columns]
            rows += [f"({', '.join(values)})"] * draw(st.sampled_from([1, 1, 1, 2] if table.key else [1, 2, 3]))
        names = ", ".join(column.q for column in table.columns)
        return f"insert into {into or table.q} ({names}) values {', '.join(rows)} on conflict do nothing"

    def some(self, draw: Draw, table: str) -> str:
        """A condition that holds for some rows, whatever the table (quoted) holds."""
        if draw(st.integers(0, 9)) == 0:
            return "true"
        skip, count = draw(st.integers(0, 40)), draw(st.integers(1, 4))
        return (
            f"ctid = any(array(select ctid from {table} order by ctid "
            f"offset {skip} % (select greatest(count(*), 1) from {table}) limit {count}))"
        )

    def update(self, draw: Draw, table: Table, *, key: bool = False) -> str:
        among = [column for column in table.columns if (column.name in table.key) == (key and bool(table.key))]
        if not among:
            among = table.columns
        chosen = draw(st.lists(st.sampled_from(range(len(among))), min_size=1, max_size=3, unique=True))
        parts = []
        for at in chosen:
            column = among[at]
            parts.append(f"{column.q} = {column.q if draw(st.integers(0, 5)) == 0 else self.value(draw, table, column)}")
        return f"update {table.q} set {', '.join(parts)} where {self.some(draw, table.q)}"

    def delete(self, draw: Draw, table: Table) -> str:
        return f"delete from {table.q} where {self.some(draw, table.q)}"

    def truncate(self, draw: Draw, tables: Sequence[Table]) -> str:
        for table in tables:
            table.excuse(storage=True)
        restart = draw(st.sampled_from(["", " restart identity", " cascade"]))
        return f"truncate {', '.join(table.q for table in tables)}{restart}"

    def change(self, draw: Draw, table: Table) -> str:
        """Some change of a table's rows."""
        how = draw(st.sampled_from(["insert", "insert", "update", "key", "delete"])) if table.changeable else "insert"
        match how:
            case "update" | "key":
                return self.update(draw, table, key=how == "key")
            case "delete":
                return self.delete(draw, table)
        return self.insert(draw, table)

    def transaction(self, draw: Draw, statements: Iterable[str], *, commit: bool = True) -> None:
        """Statements in one transaction, each in a savepoint; some savepoints are rolled back."""
        note("begin")
        with self.session.transaction(force_rollback=not commit):
            for statement in statements:
                undone = draw(st.integers(0, 5)) == 0
                try:
                    with self.session.transaction(force_rollback=undone):
                        self.run(statement)
                except REFUSED as error:
                    note(f"-- {type(error).__name__}")
                if undone:
                    note("-- rolled back to its savepoint")
        note("commit" if commit else "rollback")

    def fresh(self, table: Table) -> str:
        """A name of a column that the table has not."""
        taken = {column.name.lower() for column in table.columns}
        return next(name for name in (*NAMES, *(f"c{number}" for number in range(99))) if name.lower() not in taken)


_PARTITIONED = {
    # PARTITION_BEFORE_1970, and PARTITION_VALUE: hours are counted in 32 bits.
    "day": "greatest({}, '1970-01-01'::{})",
    "month": "greatest({}, '1970-01-01'::{})",
    "hour": "least({}, '200000-01-01'::{})",
}


def big(column: Column) -> Callable[[int], str] | None:
    return BIG.get(column.kind.sql)


def _transforms(iceberg: str) -> list[str]:
    bare = iceberg.partition("(")[0]
    return [name for name, sources in SOURCES.items() if bare in sources]
