"""``verify``: proof that the lake equals the source at one LSN, or the keys that differ.

Promises: ``equal`` is true only if every mirror asked for was read whole on both sides, at one LSN, over all columns, and no row
differs; whatever could not be compared is named and makes it false. The source keeps writing meanwhile. Memory is bounded
(DuckDB's limit and a few batches), disk is used only for rows that may differ. Never writes to the source or to a table.
Values are not reported, only keys and the names of columns: a report may be shown to people who must not see the rows.
Fails with ProjectError (no such table), Unreachable (wait and run it again), Refused, Corrupt.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb

from icelake.engines.duckdb import connect, unreadable
from icelake.errors import ProjectError, Refused
from icelake.model.lsn import format_lsn
from icelake.model.relation import TableId
from icelake.ports import CatalogReader, Json
from icelake.project import S3Settings
from icelake.verify.canonical import form
from icelake.verify.compare import Comparison, Difference, Pair, Phase
from icelake.verify.handshake import LEASE_SECONDS, AtDesk, Handshake, InProcess
from icelake.verify.lake import CutTables, LakeTable, check_columns, describe, locations, mirrors, read_cut, scan
from icelake.verify.source import SourceSnapshot, SourceTable

__all__ = ["AtDesk", "Handshake", "InProcess", "verify"]

Report = Callable[[Json], None]
"""Told of progress: ``{"table", "phase": "source"|"lake"|"find"|"columns", "rows", "held_seconds"}``."""


def verify(
    dsn: str,
    catalog: CatalogReader,
    tables: Sequence[str],
    handshake: Handshake,
    *,
    report: Report | None = None,
    samples: int = 20,
    scratch: Path | None = None,
    memory_limit: str = "256MB",
    snapshot_wait: float = 60.0,
    s3: S3Settings | None = None,
) -> Json:
    """Compare the named mirrors (``schema.name``, or a name only one has; none: all) with their source tables.

    Gives ``{"equal", "lsn", "cut", "tables": [{"name", "equal", "source_rows", "lake_rows", "missing", "extra", "different",
    "problems", "samples": [{"key", "side": "source"|"lake"|"both", "columns"}]}], "skipped": [{"name", "why"}], "held": {"pid",
    "seconds"}}``. ``samples`` limits the samples of each side, not the counts. ``held``: the backend that kept the source's old
    row versions alive, and for how long. A table in ``skipped`` was not compared, and then ``equal`` is false.
    ``snapshot_wait``: seconds the source's running transactions may take to end. ``scratch``: where DuckDB may spill (a folder of
    its own is made in it and removed). ``s3``: how to reach the lake's files there.
    """
    wanted = _choose(tables, sorted(mirrors(catalog), key=str))
    with (
        tempfile.TemporaryDirectory(prefix="icelake-verify-", dir=scratch) as folder,
        closing(connect(locations(catalog, wanted), memory_limit=memory_limit, scratch=Path(folder), s3=s3)) as connection,
        SourceSnapshot(dsn) as source,
    ):
        # It would be drawn on stdout, where the report goes.
        connection.execute("PRAGMA disable_progress_bar")
        try:
            handshake.hold()
            lsn = source.take(snapshot_wait)
            described = source.describe(wanted)
            cut_id, lease_id = handshake.cut_at(lsn)
        finally:
            handshake.withdraw()
        lease = _Lease(catalog, lease_id)
        try:
            cut = read_cut(catalog, cut_id)
            _check(cut, source)
            compared = {table: cut.snapshots[table] for table in wanted if table in cut.snapshots}
            lease.keep(compared)
            results: list[Json] = []
            for table, snapshot in compared.items():

                def tick(phase: Phase, rows: int, name: str = str(table)) -> None:
                    lease.keep(compared)
                    if report is not None:
                        held = round(time.monotonic() - source.taken_at, 3)
                        report({"table": name, "phase": phase, "rows": rows, "held_seconds": held})

                results.append(_compare(connection, source, described[table], catalog, describe(catalog, table, snapshot), tick, samples))
            skipped = [_skipped(table, cut) for table in wanted if table not in compared]
        finally:
            lease.release()
        return {
            "equal": bool(results) and not skipped and all(result["equal"] for result in results),
            "lsn": format_lsn(lsn),
            "cut": cut_id,
            "tables": results,
            "skipped": skipped,
            "held": {"pid": source.pid, "seconds": round(time.monotonic() - source.taken_at, 3)},
        }


def _choose(names: Sequence[str], known: Sequence[TableId]) -> list[TableId]:
    if not names:
        return list(known)
    chosen: list[TableId] = []
    for name in names:
        found = [table for table in known if str(table) == name] or [table for table in known if table.name == name]
        if len(found) != 1:
            raise ProjectError(
                "NO_SUCH_TABLE",
                f"{'several mirrors are' if found else 'no mirror is'} called {name}",
                "",
                f"name one of: {', '.join(str(table) for table in (found or known)) or '(the lake has none yet)'}",
            )
        chosen += [table for table in found if table not in chosen]
    return chosen


def _check(cut: CutTables, source: SourceSnapshot) -> None:
    if cut.cut.lsn > source.lsn:
        raise Refused(
            "VERIFY_CUT_TOO_LATE",
            f"the cut is at {format_lsn(cut.cut.lsn)}, the source's snapshot at {format_lsn(source.lsn)}",
            "the lake holds commits this source does not have (was it restored, or is it another one?), or a cut was made meanwhile",
            "check the source's address; then run verify again",
        )
    if cut.marker is not None and cut.marker.system_id != source.system_id:
        raise Refused(
            "VERIFY_OTHER_SERVER",
            f"the lake mirrors the PostgreSQL cluster {cut.marker.system_id}, the source is {source.system_id}",
            "an LSN means something only in the cluster it comes from",
            "check the source's address",
        )


def _skipped(table: TableId, cut: CutTables) -> Json:
    loading = table in cut.loading
    return {"name": str(table), "why": "it is not in the cut: still loading, or parked" if loading else "it mirrors another source"}


def _compare(
    connection: duckdb.DuckDBPyConnection,
    source: SourceSnapshot,
    there: SourceTable | None,
    catalog: CatalogReader,
    lake: LakeTable,
    tick: Callable[[Phase, int], None],
    samples: int,
) -> Json:
    problems = list(lake.problems)
    if there is None:
        rows = _count(connection, scan(catalog, lake))
        return _result(lake, Difference(0, rows, extra=rows), [*problems, "the source has no such table"])
    check_columns(lake, [str(row[0]) for row in _rows(connection, f"DESCRIBE SELECT * FROM {scan(catalog, lake)}")])
    pairs, unlike = pair(there, lake)
    problems += unlike
    if not pairs:
        return _result(lake, Difference(0, 0), [*problems, "no column can be compared"])
    comparison = Comparison(
        connection,
        str(lake.id),
        pairs,
        lambda expressions: source.rows(there, expressions),
        lambda: scan(catalog, lake),
        tick,
        samples,
    )
    return _result(lake, comparison.run(), problems)


def pair(source: SourceTable, lake: LakeTable) -> tuple[list[Pair], list[str]]:
    """The columns to compare, keys first, and what is unlike on the two sides. A table without a usable key has its whole row as key.

    A generated column is compared only if the lake has it: PostgreSQL does not publish it otherwise.
    """
    problems: list[str] = []
    places: Mapping[str, int] = {name: place for place, (name, _) in enumerate(lake.columns)}
    by_name = {column.name: column for column in source.columns}
    problems += [f"column {name} is in the lake but not in the source" for name, _ in lake.columns if name not in by_name]
    found: dict[str, Pair] = {}
    for column in source.columns:
        if column.name not in places:
            if not column.generated:
                problems.append(f"column {column.name} is in the source but not in the lake")
            continue
        iceberg = lake.columns[places[column.name]][1]
        how = form(column.type_name, column.type_text, iceberg)
        if how is None:
            problems.append(f"column {column.name} is {column.type_text} in the source, which {iceberg} in the lake cannot hold truly")
        else:
            found[column.name] = Pair(column.name, places[column.name], how, column.name in source.key)
    if not source.key or any(name not in found for name in source.key):
        problems.append("no primary key can be compared" if source.key else "the source has no primary key")
        return [Pair(one.name, one.place, one.form, True) for one in found.values()], problems
    return [found[name] for name in source.key] + [one for one in found.values() if not one.key], problems


def _count(connection: duckdb.DuckDBPyConnection, item: str) -> int:
    return int(_rows(connection, f"SELECT count(*) FROM {item}")[0][0])


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    try:
        return connection.execute(query).fetchall()
    except (duckdb.IOException, duckdb.HTTPException) as error:
        raise unreadable(str(error)) from error


def _result(lake: LakeTable, difference: Difference, problems: Sequence[str]) -> Json:
    return {
        "name": str(lake.id),
        "equal": difference.equal and not problems,
        "source_rows": difference.source_rows,
        "lake_rows": difference.lake_rows,
        "missing": difference.missing,
        "extra": difference.extra,
        "different": difference.different,
        "problems": list(problems),
        "samples": [{**asdict(sample), "columns": list(sample.columns)} for sample in difference.samples],
    }


class _Lease:
    """Keeps the snapshots readable for as long as it takes: renewed at half time, so a killed verify holds them only briefly."""

    def __init__(self, catalog: CatalogReader, lease_id: str) -> None:
        self._catalog = catalog
        self._id = lease_id
        self._due = 0.0

    def keep(self, snapshots: Mapping[TableId, int]) -> None:
        if time.monotonic() >= self._due:
            lease = self._catalog.lease("verify", snapshots, LEASE_SECONDS)
            self._catalog.release(self._id)
            self._id = lease.id
            self._due = time.monotonic() + LEASE_SECONDS / 2

    def release(self) -> None:
        self._catalog.release(self._id)
