"""Published losses: where a process goes on after it ended. docs/explanation/museum.md lists them all.

Each test makes the circumstances that were published, on a real PostgreSQL with the real applier, and says whose they were.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import pytest

from icelake.errors import Gap, Refused
from icelake.model.lsn import parse_lsn
from icelake.ports import LoadedTable, TableChange
from icelake.stack.postgres import Postgres
from tests.museum.exhibit import Exhibit, Send, Wire, chunks_of, settings, steps


def copied(exhibit: Exhibit, table: str, keys: range) -> None:
    """One COPY: PostgreSQL writes the rows of a page as one WAL record, so they share its LSN."""
    with exhibit.session.cursor() as cursor, cursor.copy(f"copy {table} from stdin") as copy:
        for key in keys:
            copy.write_row((key, key))


def test_debezium_7531_changes_that_share_one_lsn(exhibit: Exhibit) -> None:
    """Debezium PR 7531 (dbz 1554): of several changes with one LSN the first was recorded as all of them; a restart lost the rest."""
    exhibit.sql("create table a (id int primary key, v int)", "insert into a values (0, 0)")
    exhibit.sync()
    exhibit.sql("insert into a values (-1, -1)")
    copied(exhibit, "a", range(1, 201))
    peek = f"select lsn, count(*) from pg_logical_slot_peek_binary_changes('{exhibit.slot()}', null, null, 'proto_version', '1', "
    peek += f"'publication_names', '{exhibit.slot()}') group by lsn order by count(*) desc limit 1"
    assert exhibit.sql(peek)[0][1] > 50
    with chunks_of(1000):
        # A chunk ends in the middle of such a record; its file is written, and the process is gone.
        for number in (4, 5, 7):
            before = exhibit.written()
            assert exhibit.dies(f"storage.write:after:{number}")
            assert exhibit.written() > before
        assert exhibit.lake("select count(*) from a") == [(1,)]
        exhibit.sql("insert into a values (1000, 1000)")
    exhibit.whole()
    assert exhibit.lake("select count(*), sum(v) from a") == [(203, 21_099)]


def test_dbz_5739_a_slot_that_was_made_again(exhibit: Exhibit) -> None:
    """DBZ-5739: the slot was dropped and made again under its name; what happened between was missing, and nobody said so."""
    exhibit.sql("create table a (id int primary key, v int)", "insert into a select n, n from generate_series(1, 10) n")
    exhibit.sync()
    slot = exhibit.slot()
    exhibit.sql(f"select pg_drop_replication_slot('{slot}')")
    exhibit.sql("insert into a values (11, 11)", "delete from a where id = 3", "update a set v = 0 where id = 4")
    exhibit.sql(f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    exhibit.sql("insert into a values (12, 12)")
    for _ in range(2):
        with pytest.raises(Gap, match="SLOT_AHEAD"):
            exhibit.sync()
    assert exhibit.lake("select count(*), sum(v) from a") == [(10, 55)]
    with exhibit.open() as lakehouse:
        assert lakehouse.resume(reload=True)["resumed"] == ["public.a"]
    exhibit.whole()


@contextmanager
def load(exhibit: Exhibit) -> Iterator[None]:
    """Somebody who writes all the time, without waiting for the disk: WAL is written ahead of what is flushed."""
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(exhibit.dsn, autocommit=True) as session:
            session.execute("set synchronous_commit = off")
            number = 0
            while not stop.wait(0.01):
                number += 1
                session.execute("insert into a select 1000000 + %s * 10 + n, n from generate_series(1, 10) n", [number])
                session.execute("update a set v = v + 1 where id = any (array[%s %% 2000, 1000001])", [number])
                session.execute("delete from a where id = 7 * %s %% 2000", [number])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def recorded(exhibit: Exhibit) -> str:
    """The position of the control table, which has no cut with tables yet."""
    with exhibit.open() as lakehouse:
        (control,) = (table for table in lakehouse._catalog.tables() if table.name == "control_main")
        snapshots = lakehouse._catalog.load(control).metadata["snapshots"]
    return str(snapshots[-1]["summary"]["icelake.lsn"])


def test_olake_1084_first_sync_under_load(exhibit: Exhibit) -> None:
    """OLake PR 1084: the first sync recorded the WAL's write pointer, the slot stopped at the flushed one; from then on every sync
    ended in a mismatch, and the way out was to throw the lake away."""
    exhibit.sql("create table a (id int primary key, v int)", "insert into a select n, n from generate_series(1, 2000) n")
    with load(exhibit), settings(range_rows=500):
        # Ended before the slot was told anything: what is recorded is where it stands.
        assert exhibit.dies("catalog.commit:after:2")
        assert exhibit.confirmed() == int(exhibit.one(f"select '{recorded(exhibit)}'::pg_lsn - '0/0'::pg_lsn"))
        exhibit.sync()
        for _ in range(3):
            assert exhibit.confirmed() <= exhibit.position()
            exhibit.sync()
    exhibit.whole()


def test_olake_1112_an_error_of_the_last_flush(exhibit: Exhibit, monkeypatch: pytest.MonkeyPatch) -> None:
    """OLake 1112: what the last flush of a sync failed with was swallowed; the sync ended well, and its position moved on."""
    exhibit.sql("create table a (id int primary key, v int)", "insert into a values (0, 0)")
    exhibit.sync()
    exhibit.sql("insert into a select n, n from generate_series(1, 100) n")
    before = exhibit.confirmed()
    count, fail_at = 0, 0
    real = os.fsync

    def fsync(fd: int) -> None:
        nonlocal count
        count += 1
        if count == fail_at:
            raise OSError(5, "Input/output error")
        real(fd)

    # Learn how many there are: all of a sync that is given up before its last commit.
    monkeypatch.setattr(os, "fsync", fsync)
    assert exhibit.dies("catalog.commit:before:2")
    last = count
    assert last > 3
    for number in (last, last - 1):
        count, fail_at = 0, number
        with pytest.raises(Refused, match="DISK_ERROR"):
            exhibit.sync()
        assert exhibit.confirmed() == before
        assert exhibit.lake("select count(*) from a") == [(1,)]
    monkeypatch.undo()
    exhibit.whole()


APPEND_ONLY = '[tables."public.log"]\nappend_only = true\n'
"""No key: a row that comes twice is there twice, and nothing else would notice."""


def test_olake_968_a_retry_after_the_commit_was_done(exhibit: Exhibit) -> None:
    """OLake 968: the commit was done, something after it failed, and the retry wrote the same rows again."""
    exhibit.sql("create table log (line text)", "create table a (id int primary key)")
    exhibit.project(APPEND_ONLY)
    exhibit.sync()
    for number, fault in enumerate(("catalog.commit:after:2", "index.append:before:1", "stream.confirm:before:1")):
        exhibit.sql(f"insert into log values ('same'), ('{number}')", f"insert into a values ({number})")
        assert exhibit.dies(fault)
        assert exhibit.lake("select count(*) from log") == [(2 * number + 2,)]
        exhibit.sync()
        assert exhibit.same("log") == 2 * number + 2
    assert set(exhibit.added("log").values()) == {1}


@pytest.mark.parametrize("fault", ["catalog.commit:after:2", "index.append:after:1", "stream.confirm:before:1", "stream.confirm:after:1"])
def test_olake_998_a_commit_that_is_done_by_half(exhibit: Exhibit, fault: str) -> None:
    """OLake PR 998: only one of the tables had changes; the crash came after the commit and before the last note of it, and the next
    start took the difference for a mismatch that nothing could mend."""
    exhibit.sql("create table a (id int primary key)", "create table b (id int primary key)")
    exhibit.sql("insert into a values (1)", "insert into b values (1)")
    exhibit.sync()
    exhibit.sql("insert into a values (2)")
    assert exhibit.dies(fault)
    exhibit.sql("insert into b values (2)")
    exhibit.whole()
    assert exhibit.lake("select (select count(*) from a), (select count(*) from b)") == [(2, 2)]


def test_debezium_server_290_a_crash_between_tables(exhibit: Exhibit) -> None:
    """debezium-server-iceberg 290: each table was committed by itself; a crash between two of them applied some changes twice."""
    exhibit.sql("create table a (id int primary key, v int)", "create table b (id int primary key, v int)", "create table log (line text)")
    exhibit.project(APPEND_ONLY)
    exhibit.sql("insert into a values (1, 100)", "insert into b values (1, 0)", "insert into log values ('begin')")
    exhibit.sync()
    number, moved = -1, 0
    dead = True
    while dead:
        # Every other file of the tables' parts of the commit, and of the catalog's, is a place to die at.
        number += 2
        exhibit.sql("update a set v = v - 1", "update b set v = v + 1", "insert into log values ('moved')")
        moved += 1
        dead = exhibit.dies(f"storage.write:before:{number}")
        assert exhibit.lake("select a.v + b.v, (select count(*) from log) - b.v from a join b using (id)") == [(100, 1)]
        assert number < 60
    assert number > 12
    assert exhibit.lake("select v from b") == [(moved,)]
    assert exhibit.same("log") == moved + 1
    exhibit.sync()
    with exhibit.open() as lakehouse:
        assert lakehouse.verify(["a", "b"])["equal"]


def test_debezium_server_699_a_table_that_fails_among_others(exhibit: Exhibit) -> None:
    """debezium-server-iceberg before 699: of several tables written at once one failed, nobody heard, and its rows were gone."""
    exhibit.sql("create table a (id int primary key, day date)", "create table b (id int primary key, v int)")
    exhibit.sql("insert into a values (1, '2024-02-29')", "insert into b values (1, 1)")
    exhibit.sync()
    exhibit.sql("insert into a values (2, '2024-03-01'), (3, 'infinity')", "insert into b values (2, 2)")
    exhibit.sql("delete from a where id = 1")
    status = exhibit.sync()
    assert [(entry["table"], entry["code"]) for entry in status["parked"]] == [("public.a", "VALUE_OUT_OF_CONTRACT")]
    assert exhibit.lake("select count(*) from b") == [(2,)]
    exhibit.sql("insert into a values (4, '2024-03-02')", "insert into b values (3, 3)")
    (parked,) = exhibit.sync()["parked"]
    assert "public.a" in parked["what"]
    with exhibit.open() as lakehouse:
        assert not lakehouse.verify()["equal"]
        exhibit.sql("update a set day = '2024-04-01' where id = 3")
        assert lakehouse.resume(["a"], reload=True)["resumed"] == ["public.a"]
    exhibit.whole()
    assert exhibit.lake("select count(*) from a") == [(3,)]


def test_risingwave_14060_one_recovery_after_another(exhibit: Exhibit) -> None:
    """RisingWave 14060: the connector was made anew again and again; transactions that came meanwhile were taken for known and
    skipped."""
    exhibit.sql("create table log (line int)", "create table a (id int primary key)")
    exhibit.project(APPEND_ONLY)
    exhibit.sync()
    backend = f"select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = '{exhibit.slot()}'"
    backend += " and active_pid is not null"
    rows = 0
    with exhibit.applier() as (lakehouse, applier):
        for number in range(1, 7):
            # Begun before the connection is lost, committed while there is none; and whole ones on both sides.
            with psycopg.connect(exhibit.dsn) as slow:
                slow.execute("insert into log select n from generate_series(1, 40) n")
                exhibit.sql(f"insert into log values ({number})", f"insert into a values ({number})")
                list(steps(applier, number))
                exhibit.sql(backend)
            exhibit.sql(f"insert into log values (-{number})")
            list(steps(applier, 2))
            rows += 42
        exhibit.reach(applier, lakehouse)
    assert exhibit.same("log") == rows
    with exhibit.open() as lakehouse:
        assert lakehouse.verify(["a"])["equal"]


def test_risingwave_27026_changes_to_what_was_loaded_before_a_restart(exhibit: Exhibit) -> None:
    """RisingWave 27026: a load went on where it had been; changes to the part that was loaded before had been thrown away meanwhile."""
    exhibit.sql("create table a (id int primary key, v int)", "insert into a select n, 0 from generate_series(1, 50) n")
    with settings(range_rows=10):
        for number in range(1, 4):
            assert exhibit.dies(f"catalog.commit:after:{3 if number == 1 else 2}")
            exhibit.sql(f"update a set v = {number} where id % 7 = {number}", f"delete from a where id % 11 = {number}")
            exhibit.sql(f"insert into a values ({100 + number}, {number}), ({-number}, {number})")
        exhibit.whole()


def test_airbyte_55846_the_source_is_never_told_more_than_is_recorded(exhibit: Exhibit) -> None:
    """airbyte 55846: the slot was moved past the position that had been saved, and the next sync began from nothing."""
    exhibit.sql("create table a (id int primary key)", "insert into a values (0)")
    exhibit.sync()
    with exhibit.applier() as (lakehouse, applier):

        def meanwhile(send: Send, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
            """By the time the commit is done more was received."""
            stream = applier._stream
            assert stream is not None
            before = stream.complete
            exhibit.sql("insert into a values (100)")
            while stream.complete == before:
                stream.wait(0.05)
            return send(changes)

        Wire(lakehouse, {2: meanwhile})
        exhibit.sql("insert into a values (1)")
        assert "commit" in steps(applier, 100)
        assert applier.position == exhibit.position()
        for _ in range(20):
            assert exhibit.confirmed() <= applier.position
            time.sleep(0.01)
        exhibit.reach(applier, lakehouse)
    exhibit.whole()


def test_olake_213_a_slot_moves_on_while_its_tables_rest(exhibit: Exhibit, server: Postgres) -> None:
    """OLake 213: while nothing happened in the tables that are mirrored the slot stood still, and WAL grew until the disk was full."""
    exhibit.sql("create table a (id int primary key, v text)", "insert into a values (1, 'v')")
    exhibit.sync()
    with settings(idle_interval=0.1), exhibit.applier() as (_, applier):
        list(steps(applier, 2))
        for _ in range(3):
            with psycopg.connect(server.dsn, autocommit=True) as elsewhere:
                elsewhere.execute("create table busy as select n, md5(n::text) from generate_series(1, 5000) n")
                elsewhere.execute("drop table busy")
                (now,) = elsewhere.execute("select pg_current_wal_flush_lsn()::text").fetchone() or ("",)
            for kind in steps(applier, 200):
                if kind == "commit" and applier.position >= parse_lsn(now):
                    break
            else:
                raise AssertionError(applier.status())
        # The server takes note of what it was told in its own time.
        for _ in steps(applier, 200):
            if exhibit.confirmed() >= parse_lsn(now):
                break
        assert exhibit.confirmed() >= parse_lsn(now)
    exhibit.whole()


def test_olake_213_a_parked_table_does_not_hold_the_slot(exhibit: Exhibit) -> None:
    """OLake 213, the other way to fill a disk: one table cannot go on, and the slot waits for it."""
    exhibit.sql("create table a (id int primary key, v text)", "create table b (id int primary key)")
    exhibit.sync()
    exhibit.sql("alter table a alter column v type int using 1", "insert into a values (1, 1)")
    assert [entry["table"] for entry in exhibit.sync()["parked"]] == ["public.a"]
    before = exhibit.confirmed()
    exhibit.sql("insert into a select n, n from generate_series(2, 500) n", "insert into b values (1)")
    exhibit.sync()
    assert exhibit.confirmed() > before
    with exhibit.open() as lakehouse:
        lakehouse.resume(["a"], reload=True)
    exhibit.whole()


def test_airbyte_55846_a_slot_that_was_invalidated(exhibit: Exhibit, server: Postgres) -> None:
    """airbyte 55846 and others: max_slot_wal_keep_size took the slot; what it had not sent is gone. Said, and mended by comparison."""
    exhibit.sql("create table a (id int primary key, v text)", "insert into a select n, 'v' from generate_series(1, 50) n")
    exhibit.sync()
    exhibit.sql("update a set v = 'lost' where id % 7 = 0", "delete from a where id = 10")
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("alter system set max_slot_wal_keep_size = '1MB'")
        admin.execute("select pg_reload_conf()")
        try:
            for _ in range(3):
                admin.execute("select pg_switch_wal()")
                admin.execute("create table filler as select n from generate_series(1, 1000) n")
                admin.execute("drop table filler")
            admin.execute("checkpoint")
            for _ in range(2):
                with pytest.raises(Gap, match="SLOT_LOST"):
                    exhibit.sync()
        finally:
            admin.execute("alter system reset max_slot_wal_keep_size")
            admin.execute("select pg_reload_conf()")
    assert exhibit.lake("select count(*) from a where v = 'v'") == [(50,)]
    with exhibit.open() as lakehouse:
        lakehouse.resume(reload=True)
    exhibit.whole()
    assert exhibit.lake("select count(*) from a where v = 'lost'") == [(7,)]
