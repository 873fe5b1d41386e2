"""Published losses: a commit that was done twice, by half, or not at all. docs/explanation/museum.md lists them all.

What others lose between a coordinator and a REST catalog can only be lost here between the applier and its catalog: that is where
``Wire`` loses answers, keeps requests back and delivers them late. Everything else is the real thing.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest
from pyiceberg.table import StaticTable

from icelake.catalog.store import SqlCatalog
from icelake.errors import CommitConflict, CommitUnknown, ForeignChange, Unreachable
from icelake.observe.clock import SystemChance, SystemClock
from icelake.ports import LoadedTable, TableChange, arrow_schema
from icelake.storage.local import LocalStorage
from icelake.tables.schema import iceberg_schema, table_properties
from icelake.tables.table import Table
from tests.museum.exhibit import Exhibit, Killed, Send, Wire, answer_lost, chunks_of
from tests.unit.tables.mirror import relation

APPEND_ONLY = '[tables."public.log"]\nappend_only = true\n'
"""No key: a row that comes twice is there twice, and nothing else would notice."""


@pytest.fixture
def pair(exhibit: Exhibit) -> Exhibit:
    """A table with a key and one without, mirrored. Of a later start the first commit is its epoch, the second its first batch."""
    exhibit.sql("create table a (id int primary key, v int)", "create table log (line text)")
    exhibit.sql("insert into a values (1, 0)", "insert into log values ('begin')")
    exhibit.project(APPEND_ONLY)
    exhibit.sync()
    return exhibit


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icelake.ingest.commit.FIRST_PAUSE", 0.001)


def trade(exhibit: Exhibit, number: int) -> None:
    exhibit.sql(f"insert into a values ({number}, {number})", "insert into log values ('same'), ('same')", "update a set v = v + 1")


def once(exhibit: Exhibit) -> None:
    """Nothing is lost, nothing is there twice, and no file was added twice."""
    exhibit.sync()
    exhibit.same("a")
    exhibit.same("log")
    for table in ("a", "log"):
        assert set(exhibit.added(table).values()) == {1}
    with exhibit.open() as lakehouse:
        assert lakehouse.verify(["a"])["equal"]


def unanswered(send: Send, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
    """It arrives, and so does every repetition; no answer ever comes back."""
    with suppress(CommitConflict):
        send(changes)
    raise CommitUnknown("COMMIT_UNKNOWN", "no answer")


def test_iceberg_16282_a_file_in_two_snapshots(pair: Exhibit) -> None:
    """iceberg 16282, 13763: a file was committed, the coordinator ended before it had noted that, its successor committed it again."""
    for number in (2, 3):
        trade(pair, number)
        assert pair.dies("catalog.commit:after:2")
    once(pair)


def test_iceberg_16008_a_lost_answer_and_a_new_identity(pair: Exhibit) -> None:
    """iceberg 16008: the catalog was slow and answers were lost; the job came back under a new id and did not know its commit again."""
    trade(pair, 2)
    with pair.applier() as (lakehouse, applier):
        wire = Wire(lakehouse, dict.fromkeys(range(2, 40), unanswered))
        error = None
        while error is None:
            error = applier.step(0.05).error
        assert error.code == "COMMIT_UNKNOWN"
        assert wire.sent > 3
    before = pair.cuts()[-1]
    trade(pair, 3)
    once(pair)
    assert pair.cuts()[-1]["epoch"] > before["epoch"]


@pytest.mark.parametrize("arrives", ["before the start", "after the epoch", "after the commit"])
def test_iceberg_14425_a_commit_in_flight_at_a_restart(pair: Exhibit, arrives: str) -> None:
    """iceberg 14425: the commit was still on its way to the REST catalog when the job was restarted, and was applied beside its
    repetition."""
    late: list[Sequence[TableChange]] = []

    def in_flight(_: Send, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        late.append(changes)
        raise Killed

    trade(pair, 2)
    with pair.applier() as (lakehouse, applier):
        Wire(lakehouse, {2: in_flight})
        with pytest.raises(Killed):
            pair.reach(applier, lakehouse)
    with pair.open() as network:
        if arrives == "before the start":
            network._catalog.commit(late[0])
        with pair.applier() as (lakehouse, applier):
            applier.start()
            if arrives == "after the epoch":
                with pytest.raises(CommitConflict):
                    network._catalog.commit(late[0])
            trade(pair, 3)
            pair.reach(applier, lakehouse)
        if arrives != "before the start":
            with pytest.raises(CommitConflict):
                network._catalog.commit(late[0])
    once(pair)


@pytest.mark.parametrize("landed", [True, False])
def test_clickhouse_112081_an_unknown_outcome_and_a_cleanup(pair: Exhibit, landed: bool) -> None:
    """ClickHouse 112081, duckdb-iceberg 1120: no answer was taken for a failure, and the cleanup deleted the files of what was now
    the table's present snapshot."""
    kept: list[Sequence[TableChange]] = []

    def keep(_: Send, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        kept.append(changes)
        raise CommitUnknown("COMMIT_UNKNOWN", "no answer")

    trade(pair, 2)
    with pair.applier() as (lakehouse, applier), pair.open() as network:
        Wire(lakehouse, dict.fromkeys(range(2, 8), unanswered if landed else keep))
        while applier.step(0.05).error is None:
            pass
        if not landed:
            # It does arrive, after everybody stopped waiting for it.
            network._catalog.commit(kept[-1])
        assert pair.lake("select (select count(*) from a), (select count(*) from log)") == [(2, 3)]
        trade(pair, 3)
        pair.reach(applier, lakehouse)
    once(pair)


def test_redpanda_4591_the_answer_was_lost(pair: Exhibit) -> None:
    """redpanda-connect 4591: a 5xx or a time-out after the commit was done; the retry registered the files a second time."""
    trade(pair, 2)
    with pair.applier() as (lakehouse, applier):
        wire = Wire(lakehouse, {2: answer_lost})
        pair.reach(applier, lakehouse)
        assert wire.sent > 2
    once(pair)


def test_redpanda_4591_the_request_was_sent_again_on_the_way(pair: Exhibit) -> None:
    """redpanda-connect 4591: something between repeated the request, and the client heard only the conflict with itself. Here that
    stops with a word, and the next start finds the commit."""

    def repeated(send: Send, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        send(changes)
        return send(changes)

    trade(pair, 2)
    with pair.applier() as (lakehouse, applier):
        Wire(lakehouse, {2: repeated})
        with pytest.raises(ForeignChange, match="CONTROL_CHANGED"):
            pair.reach(applier, lakehouse)
    once(pair)


def test_iceberg_15846_half_a_commit(exhibit: Exhibit) -> None:
    """iceberg 15846: what was taken after the barrier went with the wrong commit; a checkpoint that failed left half of it out."""

    def failed(_: Send, __: Sequence[TableChange]) -> Sequence[LoadedTable]:
        raise Unreachable("CATALOG_BUSY", "the commit failed")

    exhibit.sql("create table a (id int primary key, v text)", "create table log (line text)")
    exhibit.project(APPEND_ONLY)
    exhibit.sync()
    rows = "select {0} + n, repeat('x', 40) from generate_series(1, 50) n"
    with chunks_of(2000), exhibit.applier() as (lakehouse, applier):
        Wire(lakehouse, {3: failed, 5: failed})
        for number in range(4):
            # Each larger than a chunk, with a small one before it that could be committed alone.
            exhibit.sql(f"insert into a values ({-number}, '')", f"insert into log values ('{number}')")
            exhibit.sql(f"insert into a {rows.format(1000 * (number + 1))}", f"insert into log select x from ({rows.format(0)}) t (n, x)")
            for _ in range(3):
                applier.step(0.05)
        exhibit.reach(applier, lakehouse)
    cuts = [cut for cut in exhibit.cuts() if len(cut["tables"]) == 2]
    assert len(cuts) > 3
    counts = [exhibit.lake("select (select count(*) from a), (select count(*) from log)", str(cut["cut"]))[0] for cut in cuts]
    assert all(a == log for a, log in counts), counts
    assert counts[-1] == (204, 204)
    exhibit.same("log")
    with exhibit.open() as lakehouse:
        assert lakehouse.verify(["a"])["equal"]


def test_iceberg_10431_an_aborted_interval_is_merged_into_the_next(pair: Exhibit) -> None:
    """iceberg 10431, 11008: a checkpoint was aborted, its changes were committed with those of the next, and the second delete of a key
    found nothing to delete: both versions stayed."""

    def failed(_: Send, __: Sequence[TableChange]) -> Sequence[LoadedTable]:
        raise Unreachable("CATALOG_BUSY", "the checkpoint was aborted")

    pair.sql("insert into a values (2, 0), (3, 0)")
    pair.sync()
    with pair.applier() as (lakehouse, applier):
        wire = Wire(lakehouse, {2: failed, 4: failed})
        pair.sql("update a set v = 10 where id = 1", "delete from a where id = 2", "insert into a values (4, 10)")
        while applier.step(0.05).error is None:
            pass
        pair.sql("update a set v = 20 where id = 1", "insert into a values (2, 20)", "update a set v = 20 where id = 4")
        while applier.step(0.05).error is None:
            pass
        assert wire.sent == 4
        pair.sql("update a set v = 30 where id = 1", "delete from a where id = 4")
        pair.reach(applier, lakehouse)
    once(pair)
    expected = [(1, 30), (2, 20), (3, 0)]
    assert pair.lake("select * from a order by id") == expected
    assert sorted(tuple(row.values()) for row in pair.pyiceberg("a")) == expected


@pytest.mark.parametrize("version", [3, 2])
def test_iceberg_15305_a_delete_and_its_row_in_one_commit(exhibit: Exhibit, version: int) -> None:
    """iceberg 15305: rows and the equality deletes meant for them came with one sequence number, so the deletes did not count. By
    position they do, whichever engine reads."""
    exhibit.sql("create table a (id int primary key, v text)", "insert into a select n, 'old' from generate_series(1, 20) n")
    exhibit.project(f'[tables."public.a"]\nformat = {version}\n')
    exhibit.sync()
    with chunks_of(1000):
        # The transaction's files are written chunk by chunk; what later chunks delete is in earlier ones.
        exhibit.sql(
            "insert into a select n, repeat('n', 20) from generate_series(21, 100) n",
            "update a set v = 'u' || id where id % 3 = 0",
            "delete from a where id % 5 = 0",
            "insert into a select n, 'again' from generate_series(5, 100, 10) n",
            "update a set v = v || '!' where id % 4 = 1",
        )
        exhibit.sync()
    with exhibit.open() as lakehouse:
        head = lakehouse.table("a")
        opened = StaticTable.from_metadata(head["metadata"])
        # A compaction may have come after it.
        summaries = [snapshot.summary for snapshot in opened.snapshots() if snapshot.summary is not None]
        keys = ("added-data-files", "added-delete-files")
        assert any(min(int(summary.get(key) or 0) for key in keys) > 1 for summary in summaries), summaries
        assert lakehouse.verify()["equal"]
    source = sorted(exhibit.sql("select id, v from a"))
    assert sorted(exhibit.lake("select id, v from a")) == source
    assert sorted((row["id"], row["v"]) for row in exhibit.pyiceberg("a")) == source


def test_nessie_10062_first_appends_at_once(tmp_path: Path) -> None:
    """Nessie 10062: of concurrent first appends to an empty table more were acknowledged than were kept."""
    shape = relation(("id", "long"))
    storage, clock, chance = LocalStorage(), SystemClock(), SystemChance()
    barrier = Barrier(4)

    def catalog() -> SqlCatalog:
        return SqlCatalog.sqlite(str(tmp_path / "c.db"), str(tmp_path / "w"), storage, clock, chance)

    def append(number: int) -> int | None:
        with closing(catalog()) as mine:
            table = Table.open(mine.load(shape.id), storage, clock, chance)
            delta = table.delta()
            delta.append(pa.RecordBatch.from_pylist([{"id": number}], arrow_schema(shape.columns)), None)
            change = delta.prepare({"by": str(number)}, {})
            storage.flush()
            barrier.wait(60)
            try:
                mine.commit([change])
            except CommitConflict:
                return None
            return number

    with closing(catalog()) as ours:
        ours.create(shape.id, iceberg_schema(shape), table_properties(shape))
        with ThreadPoolExecutor(4) as pool:
            acknowledged = [number for number in pool.map(append, range(4)) if number is not None]
        kept = StaticTable.from_metadata(ours.load(shape.id).metadata_location).scan().to_arrow().column("id").to_pylist()
    storage.close()
    assert len(acknowledged) == 1
    assert kept == acknowledged
