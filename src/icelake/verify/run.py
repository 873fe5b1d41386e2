"""``verify``: proof that the lake equals the source at one LSN, or the keys that differ.

Promises: ``equal`` is true only if every mirror asked for was read whole on both sides, at one LSN, over all columns, and no row
differs; whatever could not be compared is named and makes it false. The source keeps writing meanwhile. Memory is bounded
(DuckDB's limit and a few batches), disk is used only for rows that may differ. Never writes to the source or to a table.
Values are not reported, only keys and the names of columns: a report may be shown to people who must not see the rows. A row of a
table without a key has no other name than all its values.
Fails with ProjectError (no such table), Unreachable (wait and run it again), Refused, Corrupt.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
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
from icelake.verify.history import Replay
from icelake.verify.lake import CutTables, LakeTable, check_columns, describe, histories, locations, mirrors, read_cut, scan
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
    memory_limit: str = "1GB",
    snapshot_wait: float = 60.0,
    s3: S3Settings | None = None,
) -> Json:
    """Compare the named mirrors (``schema.name``, or a name only one has; none: all) with their source tables.

    Gives ``{"equal", "lsn", "cut", "tables": [{"name", "equal", "source_rows", "lake_rows", "missing", "extra", "different",
    "problems", "samples": [{"key", "side": "source"|"lake"|"both", "columns"}]}], "histories": [{"name", "equal", "rows",
    "replayed_rows", "mirror_rows", "missing", "extra", "different", "problems", "samples": [{"key", "side":
    "history"|"mirror"|"both"}]}], "skipped": [{"name", "why"}], "held": {"pid", "seconds"}}``. Of the tables that are compared, the
    histories in the cut are replayed: rows they come to and their mirrors have not are ``missing``.
    ``samples`` limits the samples of each side, not the counts. ``held``: the backend that kept the source's old
    row versions alive, and for how long. A table in ``skipped`` was not compared, and then ``equal`` is false.
    ``memory_limit``: what DuckDB may take; it holds a value of the lake several times over, so one of 100 MB needs it all.
    ``snapshot_wait``: seconds the source's running transactions may take to end. ``scratch``: where DuckDB may spill (a folder of
    its own is made in it and removed). ``s3``: how to reach the lake's files there.
    """
    mirrored = mirrors(catalog)
    wanted = _choose(tables, sorted(mirrored, key=str))
    kept = histories(catalog, mirrored)
    read = [*wanted, *(kept[table] for table in wanted if table in kept)]
    with (
        tempfile.TemporaryDirectory(prefix="icelake-verify-", dir=scratch) as folder,
        closing(
            connect(locations(catalog, read), memory_limit=memory_limit, scratch=Path(folder), threads=_threads(catalog, wanted), s3=s3)
        ) as connection,
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
            replayed = {kept[table]: cut.cut.tables[str(kept[table])] for table in compared if str(kept.get(table)) in cut.cut.tables}
            lease.keep(compared | replayed)
            results: list[Json] = []
            of_histories: list[Json] = []
            for table, snapshot in compared.items():

                def tick(phase: Phase, rows: int, name: str = str(table)) -> None:
                    lease.keep(compared | replayed)
                    if report is not None:
                        held = round(time.monotonic() - source.taken_at, 3)
                        report({"table": name, "phase": phase, "rows": rows, "held_seconds": held})

                lake = describe(catalog, table, snapshot)
                results.append(_compare(connection, source, described[table], catalog, lake, tick, samples))
                if (history := kept.get(table)) in replayed:
                    told = describe(catalog, history, replayed[history])
                    of_histories.append(_replay(connection, described[table], catalog, lake, told, tick, samples))
            skipped = [_skipped(table, cut) for table in wanted if table not in compared]
        finally:
            lease.release()
        return {
            "equal": bool(results) and not skipped and all(result["equal"] for result in [*results, *of_histories]),
            "lsn": format_lsn(lsn),
            "cut": cut_id,
            "tables": results,
            "histories": of_histories,
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


def _threads(catalog: CatalogReader, tables: Sequence[TableId]) -> int:
    """As many as DuckDB has memory for: each thread keeps vectors of 2,048 values for every column, about 100 kB."""
    widest = max((len(schema["fields"]) for table in tables for schema in catalog.load(table).metadata["schemas"]), default=1)
    return max(1, min(os.cpu_count() or 1, 2000 // max(1, widest)))


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
    parked = cut.cut.parked.get(str(table))
    why = (
        f"it is parked ({parked})"
        if parked
        else "it is not in the cut: still loading"
        if table in cut.loading
        else "it mirrors another source"
    )
    return {"name": str(table), "why": why}


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
    problems += there.problems
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


def _replay(
    connection: duckdb.DuckDBPyConnection,
    there: SourceTable | None,
    catalog: CatalogReader,
    lake: LakeTable,
    history: LakeTable,
    tick: Callable[[Phase, int], None],
    samples: int,
) -> Json:
    pairs = pair(there, lake)[0] if there is not None else []
    mirror = Comparison(connection, str(history.id), pairs, lambda _: iter(()), lambda: scan(catalog, lake), tick, samples)
    if not pairs:
        history = replace(history, problems=("no column of its mirror can be compared",))
    keyed = lake.key is not None and lake.key == tuple(one.name for one in pairs if one.key)
    return Replay(mirror, pairs, keyed, history, lambda: scan(catalog, history), samples).run()


def pair(source: SourceTable, lake: LakeTable) -> tuple[list[Pair], list[str]]:
    """The columns to compare, keys first, and what is unlike on the two sides. Without a key the whole row is the key.

    A column is its attnum, whatever it is called now, as long as the table is the one the mirror was made of; the columns of
    another table (a dump that was loaded again) are matched by name. A generated column is compared only if the lake has it:
    PostgreSQL need not publish it.
    """
    problems: list[str] = []
    by_name = {column.name: column for column in source.columns}
    by_attnum = {column.attnum: column for column in source.columns} if source.oid == lake.oid else {}
    found: dict[str, Pair] = {}
    seen: set[str] = set()
    for place, column in enumerate(lake.columns):
        if by_attnum and column.attnum is not None:
            there = by_attnum.get(column.attnum)
        else:
            there = by_name.get(column.name)
        if there is None and column.name in by_name:
            problems.append(f"column {column.name} was dropped in the source and made anew")
            seen.add(column.name)
            continue
        if there is None:
            problems.append(f"column {column.name} is in the lake but not in the source")
            continue
        seen.add(there.name)
        if there.name != column.name:
            problems.append(f"column {column.name} of the lake is called {there.name} in the source")
        how = form(there.type, column.type, column.nulls)
        if how is None:
            problems.append(f"column {column.name} is {there.type.text} in the source, which {column.type} in the lake cannot hold truly")
        else:
            found[column.name] = Pair(column.name, place, how, lake.key is not None and column.name in lake.key, there.name)
    problems += [
        f"column {column.name} is in the source but not in the lake"
        for column in source.columns
        if column.name not in seen and not column.generated
    ]
    if lake.key is None:
        return [replace(one, key=True) for one in found.values()], problems
    if not lake.key or any(name not in found for name in lake.key):
        return [replace(one, key=True) for one in found.values()], [*problems, "no key can be compared"]
    keys = [found[name] for name in lake.key]
    # What is unique in a partitioned table is so in each leaf.
    if frozenset(key.column for key in keys if source.leaves is None or key.column != "tableoid") not in source.keys:
        problems.append(f"nothing in the source keeps ({', '.join(key.column for key in keys)}) unique")
    return keys + [one for one in found.values() if not one.key], problems


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
