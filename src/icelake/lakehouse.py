"""The lakehouse of a project: the only place that wires the rooms together.

Everything a door can ask for is a method here. A ``Lakehouse`` may be opened by many processes at once; only the one that
syncs a source holds that source's lock. Errors are those of ``icelake.errors``, unchanged.
"""

import errno
import json
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import pyarrow as pa

from icelake.catalog.store import SqlCatalog
from icelake.errors import IcelakeError, NoSuchTable, ProjectError, Refused, Unreachable, UnsupportedTable
from icelake.ingest.applier import LEFT_OUT, Applier, Progress, Settings
from icelake.model.history import HISTORY, HistoryNote, mirror_of, owner_of
from icelake.model.ident import CONTROL_NAMESPACE, control_table
from icelake.model.layout import Layout
from icelake.model.lsn import format_lsn, parse_lsn
from icelake.model.marker import LOAD, LSN, SLOT, SOURCE, Cut
from icelake.model.parking import Parking
from icelake.model.relation import Refusal, Relation, TableId, excludes
from icelake.model.types import holds, parse
from icelake.observe.clock import SystemChance, SystemClock
from icelake.observe.desk import SqliteDesk
from icelake.observe.faults import FaultPoint, fault_point, plant
from icelake.ports import Json, LoadedTable, Storage
from icelake.project import Project, S3Keys, SourceSettings, TableSettings, load_project
from icelake.sources.postgres.choices import choose
from icelake.sources.postgres.doctor import Question, check
from icelake.sources.postgres.server import PostgresSource
from icelake.sources.postgres.session import conninfo_of
from icelake.storage.local import LocalStorage
from icelake.storage.s3 import S3Storage
from icelake.tables.expire import Policy
from icelake.tables.key_index import FolderFiles
from icelake.tables.schema import check_names, relation_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    # Loaded where it is used: 30 MiB that a process which only follows does without.
    from icelake.engines.duckdb import DuckDBEngine, TableAt
    from icelake.verify.run import AtDesk, InProcess

BUSY = 20.0
"""Seconds to wait for another holder of our slot: a process that was killed, or one that this one has just fenced."""
HOLD = 300.0
"""Seconds an applier in this process may take to reach verify's LSN."""
QUERY_LEASE = 600.0
"""Seconds a query's snapshots are kept readable."""
NEW_TABLES = 60.0
"""Seconds after which a process that follows looks whether tables have come."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Report = Callable[[Progress, Json], None]
"""Told of every step of a sync: what it did, and the status then."""


@dataclass(frozen=True, slots=True)
class At:
    """What a question is asked of: snapshots by table, and the cut they make (None if the question names one snapshot)."""

    tables: "Mapping[str, TableAt]"
    snapshots: Mapping[TableId, int]
    cut: Cut | None
    absent: Collection[str]
    """Tables the lake has, and not there."""


class Lakehouse:
    """See the module. ``open`` is how to get one."""

    def __init__(self, project: Project, environment: Mapping[str, str] | None = None) -> None:
        self.project = project
        self._point: FaultPoint | None = fault_point(os.environ if environment is None else environment)
        self._clock = SystemClock()
        self._chance = SystemChance()
        lake = project.lake
        for folder in (lake, lake / "index", lake / "desk", lake / "scratch"):
            _make(folder)
        if project.s3 is None:
            _make(Path(project.warehouse))
            self._files: LocalStorage | S3Storage = LocalStorage()
        else:
            self._files = S3Storage(project.warehouse, project.s3)
        self._storage: Storage = plant("storage", self._files, self._point)
        secret = project.catalog.database
        if secret is None:
            catalog = SqlCatalog.sqlite(str(lake / "catalog.db"), project.warehouse, self._storage, self._clock, self._chance)
        else:
            from icelake.catalog.postgres import Postgres

            catalog = SqlCatalog(
                lambda started: Postgres(secret.reveal, started), project.warehouse, self._storage, self._clock, self._chance
            )
        self._catalog = plant("catalog", catalog, self._point)
        self._asked: tuple[S3Keys | None, DuckDBEngine] | None = None
        self._asking = threading.Lock()
        self._open = ExitStack()
        """What only some doors open."""

    @staticmethod
    def open(path: Path | str = ".", profile: str | None = None) -> "Lakehouse":
        """The lakehouse of the project in a folder (or of an icelake.toml). Raises ProjectError."""
        return Lakehouse(load_project(Path(path), profile))

    def close(self) -> None:
        self._open.close()
        self._catalog.close()
        self._files.close()
        with self._asking:
            if self._asked is not None:
                self._asked[1].close()
            self._asked = None

    def rest(self, hosts: Collection[str], also: Sequence[str] = (), warn: Callable[[str], None] = print) -> "ASGIApp":
        """The catalog as a web application that speaks the Iceberg REST protocol, to whom asks for one of ``hosts``.

        ``also``: where tables may be, besides the warehouse. A warehouse ``lake@X`` is the lake at what ``query --at X`` is asked of.
        ``warn`` is told what would have been refused, where the project says that it be only told.
        """
        from icelake.catalog.rest import app
        from icelake.tables.guard import Guard

        self._catalog.places += also
        guard = Guard(self._storage)
        self._open.callback(guard.close)

        def check(base: Json | None, new: Json) -> None:
            try:
                guard.check(base, new)
            except Refused as error:
                if self.project.catalog.guard == "refuse":
                    raise
                warn(f"{error.what}; {error.why}")

        self._catalog.guard = check
        return app(self._catalog, hosts, lambda point: self.resolve(point).snapshots)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------------- sync

    def sync(
        self,
        *,
        source: str | None = None,
        until: str = "now",
        follow: bool = False,
        stop: threading.Event | None = None,
        report: Report | None = None,
        patience: float = 60.0,
    ) -> Json:
        """Bring the tables to the source's position ``until`` (an LSN, or ``now``), or ``follow`` it until ``stop`` is set.

        Temporary trouble is waited out: for ever when following, else ``patience`` seconds. Gives the last status.
        """
        settings = self._source_settings(source)
        if not follow:
            _position(until)
        desk = self._desk(settings.name)
        with desk.own(settings.name), self._applier(settings, desk) as applier:
            return self._run(applier, settings, desk, None if follow else until, stop, report, patience)

    def _run(
        self,
        applier: Applier,
        settings: SourceSettings,
        desk: SqliteDesk,
        until: str | None,
        stop: threading.Event | None = None,
        report: Report | None = None,
        patience: float = 60.0,
    ) -> Json:
        """Step the applier until its position is ``until``, or (None) until ``stop`` is set."""
        target: int | None = None
        began = last_good = looked = self._clock.monotonic()
        totals = {"changes": 0, "rows_loaded": 0, "transactions": 0, "commits": 0}
        reached: Json | None = None
        while True:
            try:
                progress = applier.step(0.5)
            except IcelakeError:
                if reached is not None:
                    return reached  # what is in the way of tidying up afterwards is met by the next sync
                raise
            now = self._clock.monotonic()
            totals["changes"] += progress.changes
            totals["rows_loaded"] += progress.rows
            totals["transactions"] += progress.transactions
            totals["commits"] += progress.kind == "commit"
            status = {**applier.status(), **totals, "seconds": round(now - began, 3)}
            if progress.kind == "park":
                last_good = now
            elif progress.error is not None:
                status["error"] = str(progress.error)
                if until is not None and now - last_good > patience:
                    raise progress.error
            else:
                last_good = now
            if progress.kind in ("commit", "load", "retry", "park", "resume"):
                desk.report(status)
            if report is not None:
                report(progress, status)
            if until is None and applier.running and applier.between_batches and now - looked >= NEW_TABLES:
                looked = now
                with suppress(IcelakeError):
                    if applier.take_up():
                        # The next step starts again, with them.
                        applier.close()
            if until is not None and target is None and applier.running:
                target = self._target(settings, until)
                applier.run_to(target)
            status["reached"] = target is not None and applier.running and applier.position >= target and not applier.loading
            if status["reached"]:
                # What it brought is tidied, as long as nothing else comes between.
                goes_on = progress.error is None and (reached is None or progress.kind == "upkeep")
                if not (goes_on and applier.restless):
                    return status
                reached = status
            if stop is not None and stop.is_set():
                return status

    def resume(
        self,
        tables: Sequence[str] = (),
        *,
        reload: bool = False,
        source: str | None = None,
        report: Report | None = None,
        patience: float = 600.0,
    ) -> Json:
        """Let parked tables go on (none named: all that are parked), by replaying what was kept of their changes.

        ``reload``: by comparing them with the source instead, also tables that are not parked; none named: the whole source, from a
        new slot, which is the way out when changes it has not sent yet are gone. Gives ``{"resumed": [...], "refused": [{"table",
        "code", "what", "why", "fix"}], "status"}``. With no applier running, the tables are brought to the present as ``sync`` does.
        """
        settings = self._source_settings(source)
        desk = self._desk(settings.name)
        names = self._named(settings.name, tables)
        if not tables and reload:
            with desk.own(settings.name), self._applier(settings, desk) as applier:
                applier.renew()
                status = self._run(applier, settings, desk, "now", report=report)
                return {"resumed": [str(table) for table in applier.followed], "refused": _parked_again(status), "status": status}
        if not names:
            return {"resumed": [], "refused": [], "status": None}
        request = desk.request_resume(names, reload, patience)
        if desk.owner() is not None:
            answer, final = self._answer(desk, request, patience), None
        else:
            with desk.own(settings.name), self._applier(settings, desk) as applier:
                final = self._run(applier, settings, desk, "now", report=report)
            answer = desk.resume_answer(request) or []
        refused = {refusal["table"] for refusal in answer}
        if final is not None:
            # What was let go may have come upon the same trouble again.
            answer = [*answer, *(one for one in _parked_again(final) if one["table"] in names and one["table"] not in refused)]
            refused = {refusal["table"] for refusal in answer}
        return {"resumed": [name for name in names if name not in refused], "refused": answer, "status": final}

    def _answer(self, desk: SqliteDesk, request: str, patience: float) -> list[Json]:
        deadline = self._clock.monotonic() + patience
        while (answer := desk.resume_answer(request)) is None:
            if desk.owner() is None or self._clock.monotonic() > deadline:
                raise Unreachable(
                    "RESUME_NOT_ANSWERED",
                    "the process that syncs the source did not answer",
                    "it is busy, stuck or gone",
                    "look at `icelake status`; then run icelake resume again",
                )
            self._clock.sleep(0.05)
        return answer

    def _named(self, source: str, tables: Sequence[str]) -> list[str]:
        """The mirrors that are meant; none named: those that are parked. Raises ProjectError."""
        mirrors = {str(table): loaded for table, loaded in self._mirrors(source)}
        if not tables:
            notes = {name: Parking.read(loaded.metadata["properties"]) for name, loaded in mirrors.items()}
            return [name for name, note in notes.items() if note is not None and note.code != LEFT_OUT]
        out = []
        for name in tables:
            found = [name] if name in mirrors else [one for one in mirrors if one.partition(".")[2] == name]
            if len(found) != 1:
                raise ProjectError("NO_SUCH_TABLE", f"the lake has no table {name}", "", f"it has: {', '.join(sorted(mirrors)) or 'none'}")
            out += found
        return out

    def _target(self, settings: SourceSettings, until: str) -> int:
        position = _position(until)
        return self._source(settings).current_lsn() if position is None else position

    @contextmanager
    def _applier(self, settings: SourceSettings, desk: SqliteDesk) -> Iterator[Applier]:
        commit = self.project.commit
        index = self.project.lake / "index"
        applier = Applier(
            settings.name,
            plant("source", self._source(settings), self._point),
            self._catalog,
            self._storage,
            self._clock,
            self._chance,
            desk,
            lambda table: plant("index", FolderFiles(index / quote(table.namespace, safe="") / quote(table.name, safe="")), self._point),
            settings.tables,
            settings.exclude,
            self._judge,
            Settings(
                commit_interval=commit.interval_ms / 1000,
                batch_bytes=commit.batch_mb << 20,
                retention=self._retention(),
                grace=self.project.retention.grace,
            ),
            self._layout,
            self._history,
        )
        try:
            yield applier
        finally:
            applier.close()

    def _judge(self, relation: Relation) -> Relation | Refusal:
        """The relation as the project wants it mirrored, or what stands against that."""
        chosen = self._chosen(relation)
        if isinstance(chosen, Relation):
            try:
                check_names(chosen)
            except UnsupportedTable as error:
                return Refusal(relation.schema, relation.name, error.code, f"{error.what}: {error.why}", error.fix)
        return chosen

    def _chosen(self, relation: Relation) -> Relation | Refusal:
        wanted = self._table_settings(relation)
        if wanted is None:
            return relation
        chosen = choose(relation, wanted.out_of_range, wanted.columns, exact=str(relation.id) in self.project.tables)
        if isinstance(chosen, Refusal):
            return chosen
        misfit = self._layout(relation).misfit(chosen)
        if misfit is not None:
            why, fix = misfit
            return Refusal(relation.schema, relation.name, "LAYOUT_DOES_NOT_FIT", f"partition or sort in its settings: {why}", fix)
        times = [column.name for column in chosen.columns if holds(parse(column.iceberg), "time")]
        if "spark" not in wanted.readers or not times:
            return chosen
        return Refusal(
            relation.schema,
            relation.name,
            "READER_CANNOT",
            f"spark is a reader of it and cannot read its time columns ({', '.join(times)})",
            f'take spark out of readers in [tables."{relation.id}"], or the table out of the source\'s tables',
        )

    def _table_settings(self, relation: Relation) -> TableSettings | None:
        return self.project.tables.get(str(relation.id)) or self.project.tables.get(f"{relation.schema}.*")

    def _layout(self, relation: Relation) -> Layout:
        settings = self._table_settings(relation)
        return settings.layout if settings is not None else Layout()

    def _history(self, relation: Relation) -> bool:
        settings = self._table_settings(relation)
        return settings is not None and settings.history

    def _retention(self) -> Policy:
        retention = self.project.retention
        tiers = [(int(retention.keep_all * 1000), 0), *((int(t.until * 1000), int(t.every * 1000)) for t in retention.thin)]
        return Policy(tuple(tiers))

    def _source(self, settings: SourceSettings) -> PostgresSource:
        return PostgresSource(settings.dsn.reveal(), settings.name, append_only=self._append_only(), busy_seconds=BUSY)

    def _append_only(self) -> list[str]:
        return [name for name, settings in self.project.tables.items() if settings.append_only]

    def _desk(self, source: str) -> SqliteDesk:
        return SqliteDesk(self.project.lake / "desk" / f"{source}.db")

    def _source_settings(self, name: str | None) -> SourceSettings:
        sources = self.project.sources
        if name is None:
            if len(sources) == 1:
                return next(iter(sources.values()))
            raise ProjectError("SOURCE_WANTED", "which source?", f"the project has {len(sources)}", f"name one of: {', '.join(sources)}")
        if name not in sources:
            raise ProjectError("NO_SUCH_SOURCE", f"no source {name!r}", "", f"the project has: {', '.join(sources) or 'none'}")
        return sources[name]

    # -------------------------------------------------------------------------------------------------- read

    def query(self, sql: str, at: str | None = None) -> pa.Table:
        """Ask DuckDB at one point in time (``resolve`` says how it is named); the whole answer."""
        from icelake.engines.duckdb import named

        where = self.resolve(at)
        lease = self._catalog.lease(f"query {os.getpid()}", where.snapshots, QUERY_LEASE) if where.snapshots else None
        try:
            return self._engine().query(sql, where.tables, where.absent)
        except ProjectError as error:
            if error.code == "SQL_UNKNOWN_TABLE" and (meant := named(sql, where.absent)):
                raise Refused(
                    "TABLE_NOT_IN_CUT",
                    f"{', '.join(meant)} is not in the cut that is asked",
                    "it is still being loaded, is parked, or was not in the lake then",
                    "`icelake tables` tells which; ask again when it is followed, or with --at a cut or time that has it",
                ) from error
            raise
        finally:
            if lease is not None:
                self._catalog.release(lease.id)

    def _engine(self) -> "DuckDBEngine":
        """The DuckDB of all questions, because starting one costs more than most of them; a new one when the storage has new keys, or

        an error left one that answers nothing any more."""
        from icelake.engines.duckdb import DuckDBEngine

        keys = None if self.project.s3 is None else self.project.s3.reveal()
        with self._asking:
            if self._asked is None or self._asked[0] != keys or self._asked[1].spent:
                # Who is still asking the one before has hold of it: it ends with the last of them.
                engine = DuckDBEngine(
                    [self.project.warehouse],
                    memory_limit=self.project.query.memory_limit,
                    scratch=self.project.lake / "scratch",
                    s3=self.project.s3,
                )
                self._asked = keys, engine
            return self._asked[1]

    def resolve(self, at: str | None) -> At:
        """``at``: None (the last cut), an LSN (the last cut <= it), a time (the last cut of commits until then), a cut's or a
        table's snapshot id. Every source's tables are taken at that source's cut. Raises ProjectError if there is none."""
        from icelake.engines.duckdb import TableAt

        tables: dict[str, TableAt] = {}
        snapshots: dict[TableId, int] = {}
        absent: list[str] = []
        found: Cut | None = None
        for source in self.project.sources:
            cut = self._present(source) if at is None else _choose(self._cuts(source), at)
            found = cut or found
            for table, loaded in self._readable(source):
                snapshot = cut.tables.get(str(table)) if cut is not None else None
                if snapshot is not None:
                    tables[str(table)] = (loaded.metadata_location, snapshot)
                    snapshots[table] = snapshot
                else:
                    absent.append(str(table))
        if found is None and at is not None:
            named = self._by_snapshot(at)
            if named is None:
                raise ProjectError(
                    "NO_SUCH_POINT",
                    f"nothing in the lake is known as --at {at}",
                    "it is older than the oldest cut that is kept, or not the name of a cut, snapshot, LSN or time",
                    "`icelake cuts` lists the cuts",
                )
            return named
        return At(tables, snapshots, found, absent)

    def _by_snapshot(self, at: str) -> At | None:
        if not at.isdecimal():
            return None
        there = [(table, loaded) for source in self.project.sources for table, loaded in self._readable(source)]
        # Of the others some were never a state of the source: a table half loaded, or emptied to be loaded again.
        in_cuts = {item for source in self.project.sources for cut in self._cuts(source) for item in cut.tables.items()}
        for table, loaded in there:
            if (str(table), int(at)) in in_cuts:
                absent = [str(other) for other, _ in there if other != table]
                return At({str(table): (loaded.metadata_location, int(at))}, {table: int(at)}, None, absent)
        return None

    def _cuts(self, source: str) -> list[Cut]:
        """The source's cuts that have tables, oldest first."""
        try:
            metadata = self._catalog.load(control_table(source)).metadata
        except NoSuchTable:
            return []
        cuts = [Cut.read(snapshot) for snapshot in metadata["snapshots"]]
        return [cut for cut in cuts if cut.tables]

    def _present(self, source: str) -> Cut | None:
        """The last cut, whether it has tables or all are parked or loading; None before the source has a position."""
        try:
            control = self._catalog.load(control_table(source))
            snapshot = control.snapshot(control.head)
        except NoSuchTable:
            return None
        cut = None if snapshot is None else Cut.read(snapshot)
        return cut if cut is not None and cut.lsn else None

    def _mirrors(self, source: str) -> list[tuple[TableId, LoadedTable]]:
        return [(table, one) for table, one in self._readable(source) if HISTORY not in one.metadata["properties"]]

    def _readable(self, source: str) -> list[tuple[TableId, LoadedTable]]:
        """The mirrors of a source and their histories."""
        try:
            ident = self._catalog.load(control_table(source)).metadata["properties"][SOURCE]
        except NoSuchTable:
            return []
        loaded: list[tuple[TableId, LoadedTable]] = []
        for table in self._catalog.tables():
            with suppress(NoSuchTable):  # somebody dropped it just now
                loaded += [(table, self._catalog.load(table))] if table.namespace != CONTROL_NAMESPACE else []
        ours = [(table, one, one.metadata["properties"]) for table, one in loaded]
        return [(table, one) for table, one, properties in ours if properties.get(SOURCE) == ident or mirror_of(properties, ident)]

    def cuts(self) -> list[Json]:
        """The cuts that are kept, newest first."""
        return [
            {
                "source": source,
                "cut": cut.id,
                "lsn": format_lsn(cut.lsn),
                "commit_time": _moment(cut.commit_time) if cut.commit_time else None,
                "made": _time(cut.made_ms / 1e3),
                "epoch": cut.epoch,
                "tables": dict(cut.tables),
            }
            for source in self.project.sources
            for cut in reversed(self._cuts(source))
        ]

    def tables(self) -> list[Json]:
        """Each mirror and history: rows, files and bytes at its head, and how far it is."""
        out: list[Json] = []
        for source in self.project.sources:
            cut = self._present(source)
            for table, loaded in self._readable(source):
                out.append(self._table(source, table, loaded, cut))
        return sorted(out, key=lambda table: table["name"])

    def table(self, name: str) -> Json:
        """One mirror or history in detail: columns with their PostgreSQL types, key, snapshots. Raises ProjectError."""
        names = {}
        for source in self.project.sources:
            cut = self._present(source)
            for table, loaded in self._readable(source):
                names[str(table)] = (source, table, loaded, cut)
        found = names.get(name) or names.get(f"public.{name}")
        if found is None:
            raise ProjectError("NO_SUCH_TABLE", f"the lake has no table {name}", "", f"it has: {', '.join(sorted(names)) or 'none'}")
        loaded = found[2]
        relation = relation_of(loaded.metadata)
        return {
            **self._table(*found),
            "identity": relation.identity,
            "key": list(relation.key),
            "columns": [
                {"name": c.name, "type": c.iceberg, "postgres": c.pg_type, "attnum": c.attnum, "nullable": c.nullable}
                for c in relation.columns
            ],
            "snapshots_kept": [
                {
                    "snapshot": snapshot["snapshot-id"],
                    "made": _time(snapshot["timestamp-ms"] / 1e3),
                    "operation": snapshot["summary"]["operation"],
                    "lsn": snapshot["summary"].get(LSN),
                }
                for snapshot in reversed(loaded.metadata["snapshots"])
            ],
        }

    def _table(self, source: str, table: TableId, loaded: LoadedTable, cut: Cut | None) -> Json:
        metadata = loaded.metadata
        head = loaded.snapshot(loaded.head)
        summary = head["summary"] if head else {}
        in_cut = cut is not None and str(table) in cut.tables
        parked = Parking.read(metadata["properties"])
        note = HistoryNote.read(metadata["properties"]) if HISTORY in metadata["properties"] else None
        state = "following" if in_cut else "parked" if parked is not None else "loading"
        _, mirror = owner_of(metadata["properties"]) or ("", None)
        if mirror is not None and cut is not None and not in_cut:
            # It goes with its mirror, unless the project does not want it any more.
            state = "stopped" if mirror in cut.tables else "parked" if mirror in cut.parked else "loading"
        return {
            "name": str(table),
            "source": source,
            "history_of": mirror,
            "since": None if note is None else format_lsn(note.since),
            "rows": int(summary.get("total-records", 0)) - int(summary.get("total-position-deletes", 0)),
            "files": int(summary.get("total-data-files", 0)),
            "delete_files": int(summary.get("total-delete-files", 0)),
            "bytes": int(summary.get("total-files-size", 0)),
            "snapshots": len(metadata["snapshots"]),
            "snapshot": head["snapshot-id"] if head else None,
            "lsn": format_lsn(cut.lsn) if cut and in_cut else None,
            "changed": _time(head["timestamp-ms"] / 1e3) if head else None,
            "state": state,
            "parked": None if parked is None else json.loads(parked.dump()),
            "load": metadata["properties"].get(LOAD) if not in_cut else None,
            "location": metadata["location"],
            "metadata": loaded.metadata_location,
        }

    def status(self) -> Json:
        """Each source: who syncs it, how far the lake is and how far behind."""
        out = []
        for settings in self.project.sources.values():
            desk = self._desk(settings.name)
            cut = self._present(settings.name)
            mirrors = self._mirrors(settings.name)
            entry: Json = {
                "source": settings.name,
                "position": format_lsn(cut.lsn) if cut else None,
                "cut": cut.id if cut else None,
                "epoch": cut.epoch if cut else None,
                "tables": len(mirrors),
                "tables_in_cut": sum(str(table) in cut.tables for table, _ in mirrors) if cut else 0,
                "parked": dict(cut.parked) if cut else {},
                "applier": desk.latest_report(),
            }
            try:
                here = self._source(settings).current_lsn()
                entry["source_lsn"] = format_lsn(here)
                entry["lag_bytes"] = max(0, here - cut.lsn) if cut else None
                entry["reachable"] = True
            except IcelakeError as error:
                # The others' are told all the same.
                entry["reachable"] = False
                entry["error"] = f"{error.code}: {error.what}"
            out.append(entry)
        return {"project": self.project.name, "profile": self.project.profile, "sources": out}

    # ------------------------------------------------------------------------------------------------ verify

    def verify(self, tables: Sequence[str] = (), *, source: str | None = None, report: Callable[[Json], None] | None = None) -> Json:
        """Prove that the lake equals the source at one LSN. With no applier running, the tables are first brought there."""
        from icelake.verify.run import AtDesk, InProcess

        settings = self._source_settings(source)
        desk = self._desk(settings.name)
        if desk.owner() is not None:
            return self._verify(settings, tables, AtDesk(desk, self._catalog), report)
        with desk.own(settings.name), self._applier(settings, desk) as applier:
            self._run(applier, settings, desk, "now")
            return self._verify(settings, tables, InProcess(lambda lsn: self._bring(applier, desk, lsn), self._catalog), report)

    def _verify(
        self, settings: SourceSettings, tables: Sequence[str], handshake: "AtDesk | InProcess", report: Callable[[Json], None] | None
    ) -> Json:
        from icelake.verify.run import verify

        dsn = settings.dsn.reveal()
        conninfo_of(dsn)  # says that it cannot be read, where libpq would repeat it
        # Before the long part, so that nothing is lost with it.
        left = [] if tables else self._not_mirrored(settings)
        result = verify(
            dsn,
            self._catalog,
            tables or [str(table) for table, _ in self._mirrors(settings.name)],
            handshake,
            report=report,
            scratch=self.project.lake / "scratch",
            s3=self.project.s3,
        )
        return {**result, "not_mirrored": left}

    def _not_mirrored(self, settings: SourceSettings) -> list[Json]:
        """The tables the source's patterns name and the lake does not have: ``{"name", "code", "why"}``."""
        mirrors = {str(table) for table, _ in self._mirrors(settings.name)}
        out = []
        for entry in self._source(settings).describe(settings.tables):
            name = f"{entry.schema}.{entry.name}"
            if name in mirrors or excludes(settings.exclude, entry.schema, entry.name):
                continue
            judged = entry if isinstance(entry, Refusal) else self._judge(entry)
            code, why = (
                (judged.code, judged.why) if isinstance(judged, Refusal) else ("NOT_YET", "no sync has looked for new tables since it came")
            )
            out.append({"name": name, "code": code, "why": why})
        return out

    def _bring(self, applier: Applier, desk: SqliteDesk, lsn: int) -> int:
        """The id of a cut on exactly the commits before ``lsn``, made by stepping the applier of this process."""
        request = desk.request_hold(HOLD)
        desk.set_hold_lsn(request, lsn)
        while True:
            progress = applier.step(0.1)
            state = desk.hold_state(request)
            if state.state == "answered":
                assert state.cut_id is not None and state.lease_id is not None
                self._catalog.release(state.lease_id)
                return state.cut_id
            if state.state not in ("wanted", "granted"):
                raise progress.error or Unreachable(
                    "SOURCE_SILENT",
                    f"the source did not send its changes up to {format_lsn(lsn)} within {HOLD:g} s",
                    "",
                    "look at `icelake status`; then try again",
                )

    # ------------------------------------------------------------------------------------------------ doctor

    def doctor(self, deep: bool = False) -> list[Json]:
        """What is missing or unsafe, with the statement that mends it. ``deep``: the tables' values, too."""
        findings: list[Json] = []
        for settings in self.project.sources.values():
            asked = Question(
                settings.tables, self._slot_of(settings.name), deep, self._append_only(), exclude=settings.exclude, judge=self._judge
            )
            findings.extend({"source": settings.name, **asdict(finding)} for finding in check(settings.dsn.reveal(), asked))
        return findings

    def _slot_of(self, source: str) -> str | None:
        """The replication slot the lake follows the source by; None before it has one."""
        try:
            control = self._catalog.load(control_table(source))
            snapshot = control.snapshot(control.head)
        except NoSuchTable:
            return None
        return None if snapshot is None else snapshot["summary"].get(SLOT)


def _parked_again(status: Json) -> list[Json]:
    names = ("table", "code", "what", "why", "fix")
    return [{name: parked[name] for name in names} for parked in status["parked"] if parked["code"] != LEFT_OUT]


def _make(folder: Path) -> None:
    """With all above it. What is in it is for the user who makes it, as PostgreSQL's own files are."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused("DISK_FULL", f"cannot make {folder}", why, "free space where the lake's folder is, then start again") from error
        raise ProjectError(
            "LAKE_NOT_WRITABLE", f"cannot make {folder}", why, "name a folder this user may make and write: [lake] folder, in icelake.toml"
        ) from error


def _position(until: str) -> int | None:
    """An LSN; None for now."""
    if until == "now":
        return None
    try:
        return parse_lsn(until)
    except ValueError as error:
        raise ProjectError("BAD_LSN", f"--until {until}", str(error), "give an LSN such as 0/16B3748, or `now`") from error


def _choose(cuts: Sequence[Cut], at: str) -> Cut | None:
    """The cut ``at`` names, or None. ``cuts``: oldest first. A time without a zone is in UTC."""
    if at.isdecimal():
        return next((cut for cut in cuts if cut.id == int(at)), None)
    try:
        lsn = parse_lsn(at)
    except ValueError:
        pass
    else:
        return next((cut for cut in reversed(cuts) if cut.lsn <= lsn), None)
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        return None
    if moment.tzinfo is None:
        # As every time that is printed.
        moment = moment.replace(tzinfo=UTC)
    micros = (moment - _EPOCH) // timedelta(microseconds=1)
    return next((cut for cut in reversed(cuts) if cut.commit_time <= micros), None)


def _moment(micros: int) -> str:
    """To the microsecond: given as ``--at`` it is this cut's."""
    return (_EPOCH + timedelta(microseconds=micros)).isoformat(timespec="microseconds")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
