"""Types x operations x identities x layouts x DDL x restarts, drawn by hypothesis, against real servers: the lake equals its source.

The short form plays the same examples each time; the full form (ICELAKE_FULL, ``make test-machine``) plays 400 new ones on each version
and prints its seed: ICELAKE_SEED plays them again, ICELAKE_EXAMPLES another number of them. What a failure shows is the whole play, as SQL.
"""

import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import duckdb
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from icelake.engines.duckdb import connect
from icelake.stack.binaries import Binaries
from icelake.stack.postgres import Postgres
from tests.conftest import every_version
from tests.machine.kinds import BY_NAME, COLLATION, EXTENSIONS, SCHEMA
from tests.machine.lake import Knobs, Lake
from tests.machine.source import Column, Part, Source, Table, quoted

NUMBERED = ("int4", "int8", "numeric", "text", "varchar(9)", 'text collate "C"', "numeric(38,0)")
"""Types of columns that a big transaction fills with different values."""
FULL = bool(os.environ.get("ICELAKE_FULL"))
DATA = st.data()


class Stage:
    """What all examples on one server share."""

    def __init__(self, server: Postgres, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.session = psycopg.connect(server.dsn, autocommit=True)
        self.session.execute("set timezone = 'UTC'")
        if server.binaries.major >= 16:
            # Of some hundred sessions an example most of the time would go into proving that one knows the password.
            self.session.execute("set scram_iterations = 1")
            self.session.execute(f"alter role postgres password '{server.password}'")
        self.has = frozenset(self._installed())
        self.engine: duckdb.DuckDBPyConnection = connect([folder], memory_limit="1GB", threads=1)
        self.number = itertools.count(1)

    def _installed(self) -> Iterator[str]:
        for name in EXTENSIONS:
            if self.session.execute("select from pg_available_extensions where name = %s", [name]).rowcount:
                self.session.execute(f"create extension {name} schema public")
                yield name
        for name, statement in (("xml", "select '<a/>'::xml"), ("icu", COLLATION)):
            try:
                self.session.execute(statement)
            except psycopg.Error:
                continue
            yield name

    def close(self) -> None:
        self.session.close()
        self.engine.close()


@pytest.fixture(scope="module")
def stage(binaries: Binaries) -> Iterator[Stage]:
    quick = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
    # Nothing here has to outlive the machine: in memory, where there is a folder for that, to flush costs nothing.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with Postgres(version=binaries, settings=quick) as server, tempfile.TemporaryDirectory(prefix="icelake-machine-", dir=memory) as folder:
        stage = Stage(server, Path(folder))
        yield stage
        stage.close()


class Machine(RuleBasedStateMachine):
    """One example: a schema, its tables, and their lake."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.broken = True
        number = next(self.stage.number)
        self.folder = Path(tempfile.mkdtemp(prefix="example-", dir=self.stage.folder))
        name = (f"m{number}", f'M {number} "ü"', f"select{number}")[number % 3]
        self.source = Source(self.stage.server.dsn_socket, self.stage.session, name, self.stage.has)
        self.lake: Lake | None = None
        self.labels = itertools.count()

    @contextmanager
    def playing(self) -> Iterator[Lake]:
        """A rule that fails, or is not played to its end, leaves nothing to be judged."""
        self.broken = True
        assert self.lake is not None
        yield self.lake
        self.broken = False

    @initialize(data=DATA)
    def begin(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.sampled_from([1, 1, 2, 3]))):
            table = self.source.make(data.draw)
            for _ in range(data.draw(st.integers(0, 3))):
                self.source.attempt(self.source.insert(data.draw, table))
        knobs = Knobs(
            range_rows=data.draw(st.sampled_from([500_000, 2, 20])),
            chunk_bytes=data.draw(st.sampled_from([1 << 25, 1, 2000])),
            upkeep_commits=data.draw(st.sampled_from([32, 1, 4])),
            thin=data.draw(st.booleans()),
            fanout=data.draw(st.sampled_from([8, 2, 3])),
            smallest=data.draw(st.sampled_from([64 << 10, 1])),
        )
        self.lake = Lake(self.folder, self.source, knobs, self.stage.engine)
        self.lake.steps(data.draw(st.sampled_from([9, 0, 1, 2, 3])))
        self.broken = False

    def table(self, data: st.DataObject, *, changeable: bool = False) -> Table | None:
        tables = self.source.alive(changeable)
        return data.draw(st.sampled_from(tables)) if tables else None

    # ---------------------------------------------------------------------------------------------------- changes

    @rule(data=DATA)
    def change(self, data: st.DataObject) -> None:
        with self.playing():
            if (table := self.table(data)) is not None:
                self.source.attempt(self.source.change(data.draw, table))

    @rule(data=DATA)
    def insert(self, data: st.DataObject) -> None:
        with self.playing():
            if (table := self.table(data)) is not None:
                self.source.attempt(self.source.insert(data.draw, table))

    @rule(data=DATA, key=st.booleans())
    def update(self, data: st.DataObject, key: bool) -> None:
        with self.playing():
            if (table := self.table(data, changeable=True)) is not None:
                self.source.attempt(self.source.update(data.draw, table, key=key))

    @rule(data=DATA)
    def truncate(self, data: st.DataObject) -> None:
        with self.playing():
            tables = self.source.alive()
            if tables:
                chosen = data.draw(st.lists(st.sampled_from(range(len(tables))), min_size=1, max_size=3, unique=True))
                self.source.attempt(self.source.truncate(data.draw, [tables[at] for at in chosen]))

    @rule(data=DATA, commit=st.sampled_from([True, True, True, False]))
    def transaction(self, data: st.DataObject, commit: bool) -> None:
        """Several changes of several tables, TRUNCATE among them."""

        def statements() -> Iterator[str]:
            for _ in range(data.draw(st.integers(2, 7))):
                table = self.table(data)
                if table is None:
                    return
                match data.draw(st.integers(0, 11)):
                    case 0:
                        yield self.source.truncate(data.draw, [table])
                    case _:
                        yield self.source.change(data.draw, table)

        with self.playing():
            self.source.transaction(data.draw, statements(), commit=commit)

    @rule(data=DATA, rows=st.sampled_from([30, 150]))
    def big_transaction(self, data: st.DataObject, rows: int) -> None:
        """Many rows of few values, then changes of all of them, in one transaction."""
        with self.playing():
            table = self.table(data)
            if table is None:
                return
            values = []
            for column in table.columns:
                number = column.kind.sql in NUMBERED
                values.append(f"g::text::{column.kind.sql}" if number else self.source.value(data.draw, table, column))
            names = ", ".join(column.q for column in table.columns)
            fill = f"insert into {table.q} ({names}) select {', '.join(values)} from generate_series(1, {rows}) g on conflict do nothing"
            after = [self.source.change(data.draw, table) for _ in range(data.draw(st.integers(0, 3)))]
            if table.changeable and data.draw(st.booleans()):
                after.append(f"delete from {table.q} where ctid in (select ctid from {table.q} order by ctid offset 5)")
            self.source.transaction(data.draw, [fill, *after])

    @rule(data=DATA, within=st.booleans())
    def partition(self, data: st.DataObject, within: bool) -> None:
        """A leaf is emptied, comes, goes, or is another one, perhaps among changes of its table."""
        with self.playing():
            tables = [table for table in self.source.alive() if table.by]
            if not tables:
                return
            table = data.draw(st.sampled_from(tables))
            part = data.draw(st.sampled_from(table.parts))
            with self.source.session.transaction() if within else nullcontext():
                if data.draw(st.booleans()):
                    self.source.attempt(self.source.change(data.draw, table))
                self.leaf(data, table, part)
                if data.draw(st.booleans()):
                    self.source.attempt(self.source.change(data.draw, table))

    def leaf(self, data: st.DataObject, table: Table, part: Part) -> None:
        source, leaf = self.source, self.source.leaf(part)
        if part.attached:
            # Without a key its leaves say that rows are named by all they have; without a leaf nothing does (test_partitions.py).
            last = not table.key and sum(one.attached for one in table.parts) == 1
            how = data.draw(st.sampled_from(["truncate", "round"] if last else ["truncate", "detach", "drop", "round"]))
        elif part.there and part.alike:
            how = data.draw(st.sampled_from(["attach", "attach", "drop", "fill"]))
        else:
            how = "drop" if part.there else "new"
        detach, attach = f"alter table {table.q} detach partition {leaf}", f"alter table {table.q} attach partition {leaf} {part.bound}"
        if how not in ("truncate", "fill"):
            # Kept changes can be replayed into other leaves if each row says which it is.
            table.must_reload |= not table.key
        match how:
            case "truncate":
                table.excuse(storage=True)
                source.run(f"truncate {leaf}")
            case "round":
                source.run(detach)
                if data.draw(st.booleans()):
                    source.run(f"delete from {leaf} where {source.some(data.draw, leaf)}")
                source.run(attach)
            case "detach":
                source.run(detach)
                part.attached = False
            case "attach":
                part.attached = source.attempt(attach)
            case "fill":
                source.attempt(source.insert(data.draw, table, into=leaf))
            case "drop":
                source.run(f"drop table {leaf}")
                part.attached = part.there = False
            case "new":
                # The default leaf may hold rows by now that would be its.
                part.attached = part.there = part.alike = source.attempt(*source.new_leaf(table, part))

    # -------------------------------------------------------------------------------------------------------- DDL

    @rule(data=DATA)
    def add_column(self, data: st.DataObject) -> None:
        """It is followed, with a constant default or without."""
        with self.playing():
            table = self.table(data)
            if table is None:
                return
            kind = data.draw(self.source._kinds())
            column = Column(self.source.fresh(table), kind)
            constant = data.draw(kind.values) if data.draw(st.booleans()) else None
            statement = f"alter table {table.q} add column {column.q} {kind.sql}"
            if constant is not None:
                table.constants = True
                # In parentheses: a COLLATE of its own would be taken for a second one of the column.
                statement += f" default ({constant})"
                if data.draw(st.booleans()):
                    statement += " not null"
                # Iceberg has no form for some constants, and no defaults at all before version 3: then it must be loud.
                table.excuse("COLUMN_DEFAULT", "SCHEMA_CHANGE")
                table.must_reload = True
            # A domain with a constraint has the table rewritten (PostgreSQL documentation, ALTER TABLE, Notes).
            table.excuse(columns=True, storage=kind.sql == f"{SCHEMA}.amount")
            with self.source.session.transaction() if data.draw(st.booleans()) else nullcontext():
                if data.draw(st.booleans()):
                    self.source.attempt(self.source.change(data.draw, table))
                if self.source.attempt(statement):
                    table.columns.append(column)
                    table.reshape()
                if data.draw(st.booleans()):
                    self.source.attempt(self.source.change(data.draw, table))

    @rule(data=DATA)
    def reshape(self, data: st.DataObject) -> None:
        """What nobody follows without being told."""
        with self.playing():
            table = self.table(data)
            if table is None:
                return
            free = table.free()
            how = data.draw(st.sampled_from(["rename", "drop", "type", "swap", "again", "replace"]))
            if how == "replace":
                self.replace(data, table)
                return
            if len(free) < 2 or (how == "drop" and len(table.columns) < 3):
                return
            column, other = data.draw(st.permutations(free))[:2]
            table.excuse("TABLE_CHANGED", columns=True)
            table.reshape()
            match how:
                case "rename":
                    name = self.source.fresh(table)
                    self.source.run(f"alter table {table.q} rename {column.q} to {quoted(name)}")
                    column.name = name
                case "swap":
                    a, b = column.q, other.q
                    self.source.run(
                        f"alter table {table.q} rename {a} to swapping",
                        f"alter table {table.q} rename {b} to {a}",
                        f"alter table {table.q} rename swapping to {b}",
                    )
                    column.name, other.name = other.name, column.name
                    table.must_reload = True
                case "drop":
                    self.source.run(f"alter table {table.q} drop column {column.q}")
                    table.columns.remove(column)
                case "again":
                    self.source.run(
                        f"alter table {table.q} drop column {column.q}", f"alter table {table.q} add column {column.q} {column.kind.sql}"
                    )
                    table.columns.remove(column)
                    table.columns.append(Column(column.name, column.kind))
                    table.must_reload = True
                case "type":
                    wider = {"int4": "int8", "varchar(9)": "text", "numeric(9,2)": "numeric(38,10)", "float4": "float8"}
                    to = wider.get(column.kind.sql, "text")
                    self.source.run(f"alter table {table.q} alter {column.q} type {to} using {column.q}::text::{to}")
                    column.kind = BY_NAME[to]
                    table.excuse("TABLE_REWRITTEN")
                    table.must_reload = True

    def replace(self, data: st.DataObject, table: Table) -> None:
        """Another table under its name; or none for a while."""
        table.excuse("TABLE_REPLACED", "TABLE_GONE", "PUBLICATION_CHANGED", "TABLE_CHANGED", columns=True, storage=True)
        table.must_reload = True
        self.source.run(f"drop table {table.q}")
        # Without any table at all a source is refused.
        if len(self.source.alive()) > 1 and data.draw(st.booleans()):
            table.gone = True
            return
        self.source.create(table)
        self.source.attempt(self.source.insert(data.draw, table))

    @rule(data=DATA)
    def make_again(self, data: st.DataObject) -> None:
        with self.playing():
            for table in self.source.tables:
                if table.gone:
                    table.gone = False
                    self.source.create(table)
                    self.source.attempt(self.source.insert(data.draw, table))

    @rule(data=DATA, name=st.sampled_from(["new", "neu 'ü'", "so so"]))
    def relabel(self, data: st.DataObject, name: str) -> None:
        """An enum gets a label, which is followed, or another name for one, which changes rows nobody touched."""
        with self.playing():
            mood = f"{SCHEMA}.mood"
            label = name.replace("'", "''")
            if name != "so so":
                self.source.run(f"alter type {mood} add value if not exists '{label}' before 'ok'")
                return
            self.source.run(f"alter type {mood} rename value '{label}' to 'so {next(self.labels)}'")
            self.source.run(f"alter type {mood} add value '{label}'")
            for table in self.source.tables:
                if any(".mood" in column.kind.sample or ".mood" in column.kind.sql for column in table.columns):
                    table.excuse("TABLE_CHANGED")
                    table.must_reload = True

    @rule(data=DATA, count=st.integers(0, 4))
    def poison(self, data: st.DataObject, count: int) -> None:
        """A value that the lake cannot hold, of a table that must then stop; it is gone before long."""
        with self.playing() as lake:
            table = self.table(data, changeable=True)
            columns = [column for column in table.free() if column.kind.beyond] if table is not None and table.policy == "error" else []
            if table is None or not columns:
                return
            column = data.draw(st.sampled_from(columns))
            table.excuse("VALUE_OUT_OF_CONTRACT")
            table.must_reload = True
            value = data.draw(st.sampled_from(column.kind.beyond))
            self.source.attempt(f"update {table.q} set {column.q} = {value} where {self.source.some(data.draw, table.q)}")
            lake.steps(count)
            self.source.run(f"update {table.q} set {column.q} = {column.kind.sample}")

    @rule(data=DATA)
    def late_table(self, data: st.DataObject) -> None:
        """A table that is there before the project says how it is to be mirrored is met by the next process."""
        with self.playing() as lake:
            if len(self.source.tables) < 4:
                table = self.source.make(data.draw)
                self.source.attempt(self.source.insert(data.draw, table))
                lake.restart()

    @rule(data=DATA)
    def noise(self, data: st.DataObject) -> None:
        """What changes no row."""
        with self.playing():
            table = self.table(data)
            if table is None:
                return
            column = data.draw(st.sampled_from(table.columns))
            how = data.draw(st.sampled_from(["vacuum full", "vacuum", "analyze", "identity", "statistics", "null", "index", "message"]))
            match how:
                case "vacuum full":
                    table.excuse(storage=True)
                    # Constants of columns that were added are written into the rows, and forgotten.
                    table.excuse(columns=table.constants)
                    self.source.run(f"vacuum full {table.q}")
                case "vacuum" | "analyze":
                    self.source.run(f"{how} {table.q}")
                case "statistics":
                    table.excuse(columns=True)
                    self.source.run(f"alter table {table.q} alter {column.q} set statistics 100")
                case "null" if column.nullable:
                    table.excuse(columns=True)
                    if self.source.attempt(f"alter table {table.q} alter {column.q} set not null"):
                        self.source.run(f"alter table {table.q} alter {column.q} drop not null")
                case "identity" if table.identity in ("key", "full key") and not table.generated and not table.by:
                    table.identity = "key" if table.identity == "full key" else "full key"
                    self.source.run(f"alter table {table.q} replica identity {'full' if table.identity == 'full key' else 'default'}")
                case "index":
                    self.source.run(f"reindex table {table.q}", f"comment on table {table.q} is 'it''s'")
                case "message":
                    self.source.run("select pg_logical_emit_message(true, 'ü', 'noise'), pg_switch_wal()")

    # ------------------------------------------------------------------------------------------------------- lake

    @rule(data=DATA)
    def switch_history(self, data: st.DataObject) -> None:
        """The next process keeps one, or keeps it no more."""
        with self.playing() as lake:
            table = data.draw(st.sampled_from(self.source.tables))
            table.history = not table.history
            lake.restart()

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        with self.playing() as lake:
            lake.steps(count)

    @rule()
    def restart(self) -> None:
        with self.playing() as lake:
            lake.restart()

    @rule(calls=st.integers(1, 80))
    def kill(self, calls: int) -> None:
        with self.playing() as lake:
            lake.kill(calls)

    @rule(reload=st.booleans())
    def verify(self, reload: bool) -> None:
        with self.playing() as lake:
            self.settle(lake, reload=reload, engines=False)

    @rule(engines=st.booleans())
    def look(self, engines: bool) -> None:
        """Tables that are parked stay so, and what happens to them is kept."""
        with self.playing() as lake:
            lake.notice()
            lake.judge(engines=engines)

    def settle(self, lake: Lake, *, reload: bool, engines: bool) -> None:
        lake.settle(reload=reload)
        lake.judge(engines=engines)
        for table in self.source.alive():
            table.settled()

    def teardown(self) -> None:
        try:
            if not self.broken:
                self.broken = True
                assert self.lake is not None
                self.settle(self.lake, reload=False, engines=True)
        finally:
            if self.lake is not None:
                self.lake.close()
            session = self.stage.session
            session.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active")
            for (name,) in session.execute("select pubname from pg_publication").fetchall():
                session.execute(f"drop publication {quoted(name)}")
            self.source.drop()
            shutil.rmtree(self.folder)


@every_version
@pytest.mark.timeout(0 if FULL else 1200)
def test_the_lake_is_its_source(stage: Stage, postgres_version: int) -> None:
    class Play(Machine):
        pass

    Play.stage = stage
    examples = int(os.environ.get("ICELAKE_EXAMPLES") or (400 if FULL else 48 if postgres_version == 18 else 4))
    form = settings(
        max_examples=examples,
        stateful_step_count=25 if FULL else 12,
        deadline=None,
        database=None,
        derandomize=not FULL,
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if FULL else [])],
        suppress_health_check=list(HealthCheck),
    )
    if FULL:
        number = int(os.environ.get("ICELAKE_SEED") or secrets.randbits(32))
        print(f"ICELAKE_SEED={number}")
        seed(number)(Play)
    run_state_machine_as_test(Play, settings=form)
