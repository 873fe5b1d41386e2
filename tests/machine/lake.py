"""The lake of an example: a project folder, an applier in this process that can be killed at any call of a port, and the judgement.

``judge`` is ``verify`` with its handshake, then PyIceberg's rows against DuckDB's, bit by bit, and rows found by what they are laid out
by. What is excused is said by the tables (``Table.excused``) and by ``ENGINE_FAULTS``; anything else fails the example.
"""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import pyarrow as pa
from hypothesis import note
from pyiceberg.table import StaticTable

import icelake.lakehouse
import icelake.tables.rewrite
from icelake.engines.duckdb import iceberg_scan
from icelake.ingest.applier import Applier, Progress
from icelake.lakehouse import Lakehouse
from icelake.model.relation import Column, Relation
from icelake.model.types import Primitive, parse
from icelake.observe.desk import SqliteDesk
from icelake.ports import Json
from icelake.project import load_project
from icelake.tables.expire import Policy
from icelake.tables.schema import relation_of
from icelake.verify.run import InProcess
from tests.conformance.test_engines_read import as_pyiceberg, bits, comparable, typed
from tests.machine.source import Source, Table

PATIENCE = 240.0
"""Seconds after which a lake that has not caught up never will. Far beyond what any example takes."""
Rows = list[tuple[Any, ...]]


class Killed(BaseException):
    """The process is gone: nothing catches this but the one who plays it."""


class Doom:
    """Lets the process die at the n-th call of a port from now, as it begins or after it returned (``observe.faults``)."""

    def __init__(self) -> None:
        self.left: int | None = None

    def reach(self, call: str, when: str) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left <= 0:
            self.left = None
            note(f"-- killed {when} {call}")
            raise Killed


@dataclass(frozen=True)
class Knobs:
    """Sizes that decide how work is cut into steps and files."""

    range_rows: int = 1_000_000
    chunk_bytes: int = 1 << 25
    upkeep_commits: int = 32
    thin: bool = False
    """Drop every snapshot that nothing needs."""
    fanout: int = 8
    smallest: int = 64 << 10


class Lake:
    def __init__(self, folder: Path, source: Source, knobs: Knobs, engine: duckdb.DuckDBPyConnection) -> None:
        self.folder = folder
        self.source = source
        self.knobs = knobs
        self.doom = Doom()
        self._engine = engine
        self._life = ExitStack()
        self.lakehouse: Lakehouse
        self.applier: Applier
        self.desk: SqliteDesk
        self._shaped = ExitStack()
        self._shaped.enter_context(patch.object(icelake.tables.rewrite, "FANOUT", knobs.fanout))
        self._shaped.enter_context(patch.object(icelake.tables.rewrite, "_SMALLEST", knobs.smallest))
        # Loading its extensions takes DuckDB longer than comparing the tables.
        self._shaped.enter_context(patch("icelake.verify.run.connect", lambda *_, **__: engine.cursor()))
        try:
            self.open()
        except BaseException:
            self.close()
            raise

    # ---------------------------------------------------------------------------------------------------- process

    def open(self) -> None:
        """A new process: the project is read, the lake opened, an applier made that has not begun yet."""
        (self.folder / "icelake.toml").write_text(self._project())
        with patch.object(icelake.lakehouse, "fault_point", lambda _: self.doom):
            self.lakehouse = self._life.enter_context(Lakehouse(load_project(self.folder)))
        settings = self.lakehouse._source_settings(None)
        self.desk = self.lakehouse._desk(settings.name)
        self._life.enter_context(self.desk.own(settings.name))
        self.applier = self._life.enter_context(self.lakehouse._applier(settings, self.desk))
        changes: dict[str, Any] = {"retention": Policy(((1, 0),))} if self.knobs.thin else {}
        self.applier.settings = replace(
            self.applier.settings,
            commit_interval=0.0,
            idle_interval=0.0,
            range_rows=self.knobs.range_rows,
            chunk_bytes=self.knobs.chunk_bytes,
            upkeep_commits=self.knobs.upkeep_commits,
            **changes,
        )

    def restart(self) -> None:
        note("-- restart")
        self._life.close()
        self.open()

    def kill(self, calls: int) -> None:
        """Let it work until it dies at the n-th call (or has nothing more to do), and start it again."""
        self.doom.left = calls
        try:
            for _ in range(40):
                self.step(0.0)
        except Killed:
            pass
        finally:
            self.doom.left = None
        note("-- restart")
        self._life.close()
        # The sockets of a process go with it; a stream that was just begun is nobody's yet.
        self.source.session.execute("select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where active_pid is not null")
        self.open()

    def close(self) -> None:
        self._life.close()
        self._shaped.close()

    def _project(self) -> str:
        lines = [
            '[project]\nname = "machine"',
            f"[sources.main]\ndsn = {_toml(self.source.dsn)}\ntables = [{_toml(self.source.schema + '.*')}]",
        ]
        for table in self.source.tables:
            layout = table.layout
            lines += [
                f"[tables.{_toml(table.id)}]",
                f'out_of_range = "{table.policy}"\nformat = {layout.format_version}',
                f"partition = [{', '.join(_toml(str(one)) for one in layout.partition)}]",
                f"sort = [{', '.join(_toml(str(one)) for one in layout.sort)}]",
                *(["append_only = true"] if table.identity == "append" else []),
                *(["history = true"] if table.history else []),
            ]
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------------------------------------------------ steps

    def step(self, timeout: float) -> Progress:
        progress = self.applier.step(timeout)
        error = progress.error
        if error is not None:
            table = next((one for one in self.source.tables if one.id == error.table), None)
            note(f"-- {progress.kind}: {error}")
            if progress.kind != "park" or table is None or error.code not in table.excused:
                raise AssertionError(f"{progress.kind} without an excuse") from error
        return progress

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step(0.0)

    def catch_up(self) -> None:
        """Everything the source has committed is in the lake, but for tables that are parked."""
        target = self.source.lsn()
        self.applier.run_to(target)
        deadline = time.monotonic() + PATIENCE
        while not (self.applier.running and self.applier.position >= target and not self.applier.loading):
            self.step(0.02)
            assert time.monotonic() < deadline, f"it never catches up: {self.applier.status()}"

    def parked(self) -> dict[str, str]:
        """Table -> code. Each must have an excuse."""
        parked = {str(one.id): one.note.code for one in self.applier.parked.values()}
        for name, code in parked.items():
            excused = next(table.excused for table in self.source.tables if table.id == name)
            assert code in excused, f"{name} is parked: {[one.note for one in self.applier.parked.values() if str(one.id) == name]}"
        return parked

    def resume(self, tables: Sequence[Table], reload: bool) -> list[Json]:
        """What was refused of it. The lake is caught up."""
        note(f"-- resume {'--reload ' * reload}{', '.join(table.name for table in tables)}")
        request = self.desk.request_resume([table.id for table in tables], reload, PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while (answer := self.desk.resume_answer(request)) is None:
            self.step(0.02)
            assert time.monotonic() < deadline, "resume is never answered"
        self.catch_up()
        for refusal in answer:
            note(f"-- refused: {refusal}")
        return answer

    # -------------------------------------------------------------------------------------------------- judgement

    def notice(self) -> None:
        """Caught up, and what was done to tables' shapes is known."""
        self.catch_up()
        if any(table.restless for table in self.source.tables):
            self.restart()
            self.catch_up()

    def settle(self, *, reload: bool) -> None:
        """Every table that is there is followed: what is parked is resumed, by replay if ``reload`` is not wished and it can be."""
        self.notice()
        waiting = [table for table in self.source.alive() if table.id in self.parked()]
        if waiting and not reload:
            self.resume(waiting, False)
            still = [table for table in waiting if table.id in self.parked()]
            for table in still:
                assert table.must_reload, f"{table.id} should have been replayed"
            waiting = still
        if waiting:
            refused = self.resume(waiting, True)
            assert not refused, refused
        left = set(self.parked())
        assert not left - {table.id for table in self.source.tables if table.gone}, left

    def judge(self, *, engines: bool) -> None:
        """The lake equals the source, whoever reads it. Parked tables are left out."""
        parked = self.parked()
        followed = [table for table in self.source.alive() if table.id in map(str, self.applier.followed) and table.id not in parked]
        if not followed:
            return
        note(f"-- verify {', '.join(table.name for table in followed)}")
        lakehouse = self.lakehouse
        settings = lakehouse._source_settings(None)
        bring = InProcess(lambda lsn: lakehouse._bring(self.applier, self.desk, lsn), lakehouse._catalog)
        report = lakehouse._verify(settings, [table.id for table in followed], bring, None)
        assert report["equal"] is True, json.dumps(report, indent=1, ensure_ascii=False)
        assert {one["name"] for one in report["tables"]} == {table.id for table in followed}
        assert {one["name"] for one in report["histories"]} >= {f"{table.id}_history" for table in followed if table.history}
        if engines:
            at = lakehouse.resolve(str(report["cut"])).tables
            for table in followed:
                location, snapshot = at[table.id]
                metadata = next(one.metadata for one in self._mirrors() if str(one.id) == table.id)
                Readers(self._engine, relation_of(metadata), location, snapshot).agree()

    def _mirrors(self) -> list[Any]:
        return [loaded for _, loaded in self.lakehouse._mirrors("main")]


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class Readers:
    """DuckDB and PyIceberg on one snapshot of a mirror."""

    def __init__(self, engine: duckdb.DuckDBPyConnection, relation: Relation, location: str, snapshot: int | None) -> None:
        self._engine = engine
        self._columns = relation.columns
        self._name = str(relation.id)
        # By place, as names may differ only in their case.
        aliases = ", ".join(f"l{place}" for place in range(len(self._columns)))
        self._scan = f"(SELECT * FROM {iceberg_scan((location, snapshot))} AS t({aliases}))"
        self._location, self._snapshot = location, snapshot

    def agree(self) -> None:
        ours = self._engine.sql(f"SELECT * FROM {self._scan}").to_arrow_table()
        theirs = self._pyiceberg(ours.num_rows)
        if theirs is not None:
            assert self._bits(theirs) == self._bits(ours), f"{self._name}: PyIceberg and DuckDB read different rows"
        for place, column in enumerate(self._columns):
            self._findable(place, column)

    def _bits(self, table: pa.Table) -> Rows:
        """As PyIceberg shows it: also PyIceberg's own rows, as what it makes empty is null where a file has no such column."""
        shown = []
        for values, column in zip(table.columns, self._columns, strict=True):
            cast, kind = typed(values, column), parse(column.iceberg)
            plain = cast.cast(bits(cast.type)).to_pylist()
            shown.append(plain if isinstance(kind, Primitive) else [as_pyiceberg(value, kind) for value in plain])
        return _ordered(shown)

    def _pyiceberg(self, rows: int) -> pa.Table | None:
        """None: it cannot read this one (``ENGINE_FAULTS``)."""
        if not rows and any("uuid" in column.iceberg != "uuid" for column in self._columns):
            return None
        found = StaticTable.from_metadata(self._location).scan(snapshot_id=self._snapshot).to_arrow()
        assert found.column_names == [column.name for column in self._columns]
        return found

    def _findable(self, place: int, column: Column) -> None:
        """Each value is found through the partition and the bounds of the file it is in."""
        if not isinstance(parse(column.iceberg), Primitive):
            return
        where = f"FROM {self._scan} WHERE l{place}"
        values = self._engine.sql(f"SELECT DISTINCT {_spelled(place, column)} {where} IS NOT NULL LIMIT 3").fetchall()
        conditions = [*(f"= {constant}" for (constant,) in values), "IS NULL"]
        whole = ", ".join(f"count(*) FILTER (WHERE l{place} {condition})" for condition in conditions)
        asked = ", ".join(f"(SELECT count(*) {where} {condition})" for condition in conditions)
        counted, found = self._engine.sql(f"SELECT [{whole}], [{asked}] FROM {self._scan}").fetchall()[0]
        assert counted == found, f"{self._name}: {column.name} {conditions} find {found} of {counted} rows"
        assert 0 not in counted[:-1], f"{self._name}: {column.name} {conditions} are not found"


def _spelled(place: int, column: Column) -> str:
    """SQL: a value of a column as a constant of SQL. DuckDB cannot read again every time that it prints."""
    if column.iceberg in ("timestamp", "timestamptz"):
        return f"'make_{column.iceberg}(' || epoch_us(l{place}) || ')'"
    kind = {"long": "bigint", "string": "varchar", "binary": "blob"}.get(column.iceberg, column.iceberg)
    return f"chr(39) || replace(l{place}::varchar, chr(39), chr(39) || chr(39)) || chr(39) || '::{kind}'"


def _ordered(columns: Sequence[Sequence[Any]]) -> Rows:
    """Rows in some order, each value so that -0.0 is not 0.0, and NaN is NaN."""
    return sorted(zip(*(map(comparable, values) for values in columns), strict=True), key=repr)


ENGINE_FAULTS = {
    "PyIceberg 0.12: a null list of structs, or map to structs, is empty": "tests.conformance.test_engines_read.as_pyiceberg",
    "PyIceberg 0.12: no result without rows where a uuid is inside another type": "Readers._pyiceberg",
}
"""What is excused of an engine, and where."""
