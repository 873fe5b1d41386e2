"""What one table has to wait for, the others do not: a transaction that runs for long, a lock that somebody holds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

import icelake.ingest.applier as applier_module
from icelake.ingest.applier import Applier, Progress
from icelake.lakehouse import Lakehouse
from icelake.project import SourceSettings
from icelake.sources.postgres.server import PostgresSource
from icelake.stack.postgres import Postgres
from tests.mirrored import mirrored
from tests.museum.exhibit import Exhibit


class Quick(Exhibit):
    @contextmanager
    def busy(self, *statements: str) -> Iterator[None]:
        """Somebody's transaction, open for as long as the block lasts."""
        with psycopg.connect(self.dsn) as other:
            for statement in statements:
                other.execute(statement)
            yield
            other.rollback()

    def trade(self, applier: Applier, lakehouse: Lakehouse, number: int) -> None:
        """The table that is followed goes on meanwhile."""
        self.sql(f"insert into a values ({number})")
        target = lakehouse._source(lakehouse._source_settings(None)).current_lsn()
        applier.run_to(target)
        for _ in range(400):
            applier.step(0.05)
            if applier.running and applier.position >= target:
                return
        raise AssertionError(applier.status())


@pytest.fixture
def quick(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Quick]:
    def source(lakehouse: Lakehouse, settings: SourceSettings) -> PostgresSource:
        return PostgresSource(settings.dsn.reveal(), settings.name, slot_seconds=1)

    monkeypatch.setattr(Lakehouse, "_source", source)
    with mirrored(Quick, server, tmp_path, request.node.name) as quick:
        quick.sql("create table a (id int primary key)", "insert into a values (0)")
        quick.sync()
        yield quick


def test_a_range_waits_for_a_transaction(quick: Quick) -> None:
    with quick.applier() as (lakehouse, applier):
        with quick.busy("insert into a values (-1)"):
            quick.sql("create table late (id int primary key)", "insert into late values (1)")
            for number in range(1, 6):
                quick.trade(applier, lakehouse, number)
            assert [str(table) for table in applier.loading] == ["public.late"]
        quick.reach(applier, lakehouse)
    quick.whole()
    assert quick.lake("select count(*) from late") == [(1,)]


def test_a_new_table_waits_for_a_lock(quick: Quick) -> None:
    with quick.applier() as (lakehouse, applier):
        quick.sql("create table late (id int primary key)", "insert into late values (1)")
        with quick.busy("lock table late in share update exclusive mode"):
            quick.trade(applier, lakehouse, 1)
            assert [(refusal.name, refusal.code) for refusal in applier.refusals] == [("late", "LOCKED")]
            # Neither is it taken up while it runs.
            assert not applier.take_up()
            assert len(applier.refusals) == 1
            quick.trade(applier, lakehouse, 2)
        assert applier.take_up()
        applier.close()
        quick.reach(applier, lakehouse)
        assert not applier.take_up()
    quick.whole()
    assert quick.lake("select count(*) from late") == [(1,)]


def test_a_reload_waits_for_nobody(quick: Quick) -> None:
    quick.sql("create table b (id int primary key)")
    quick.sync()
    with quick.applier() as (lakehouse, applier):
        quick.reach(applier, lakehouse)
        desk = lakehouse._desk("main")
        quick.session.execute("alter publication " + quick.slot() + " drop table b")
        with quick.busy("lock table b in share update exclusive mode"):
            wish = desk.request_resume(["public.b"], True, 60)
            quick.trade(applier, lakehouse, 1)
            answer = desk.resume_answer(wish)
        assert answer is not None
        assert [(one["table"], one["code"]) for one in answer] == [("public.b", "LOCKED")]


def test_a_range_is_as_large_as_two_files_of_its_rows(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows how wide rows are before some were read; then no range of wide ones keeps the others waiting for long."""
    monkeypatch.setattr(applier_module, "_FIRST_ROWS", 100)
    monkeypatch.setattr(applier_module, "_RANGE_BYTES", 100_000)
    quick.sql("create table b (id int primary key, v text)", "insert into b select n, repeat('x', 988) from generate_series(1, 420) n")
    ranges: list[int] = []

    def report(progress: Progress, _status: object) -> None:
        ranges.extend([progress.rows] if progress.kind == "load" else [])

    with quick.open() as lakehouse:
        lakehouse.sync(report=report)
    assert [rows for rows in ranges if rows != 1] == [100, 100, 100, 100, 20]
    quick.whole()


def test_a_table_at_rest_is_compacted_too(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put off while others were waited for has its turn, although the table does not change any more."""

    def files() -> int:
        with quick.open() as lakehouse:
            return next(int(table["files"]) for table in lakehouse.tables() if table["name"] == "public.b")

    quick.sql("create table b (id int primary key)")
    with monkeypatch.context() as patch:
        patch.setattr(Applier, "_tidy", lambda _: None)
        patch.setattr(Applier, "_tidy_at_rest", lambda _: False)
        for number in range(9):
            quick.sql(f"insert into b values ({number})")
            quick.sync()
    assert files() == 9
    quick.sql("insert into a values (7)")
    quick.sync()
    assert files() == 1
    quick.whole()


def test_a_table_that_comes_to_rest_has_few_files(quick: Quick) -> None:
    """Of a few small files one is made: by a sync that is through, and by one that follows when nothing was changed for a while."""

    def files() -> int:
        with quick.open() as lakehouse:
            return next(int(table["files"]) for table in lakehouse.tables() if table["name"] == "public.a")

    for number in range(1, 4):
        quick.sql(f"insert into a values ({number})")
        quick.sync()
        assert files() == 1
    with quick.applier() as (lakehouse, applier):
        applier.settings = replace(applier.settings, commit_interval=0.0, idle_interval=60.0, rest_interval=3.0)
        applier.step(0.05)
        for number in range(10, 14):
            quick.sql(f"insert into a values ({number})")
            target = lakehouse._source(lakehouse._source_settings(None)).current_lsn()
            while applier.position < target:
                applier.step(0.05)
        assert files() > 3
        deadline = time.monotonic() + 30
        while files() > 1 and time.monotonic() < deadline:
            applier.step(0.2)
        assert files() == 1
    quick.whole()


def test_a_change_before_which_others_are_missing(quick: Quick) -> None:
    """What it contradicts is found before the commit at which marks are looked at; the process goes on with the others all the same."""
    quick.sql("create table b (id int primary key, v int)", "create table bag (v int)", "alter table bag replica identity full")
    quick.sql("insert into b values (1, 1)", "insert into bag values (1), (2)")
    quick.sync()
    name = quick.slot()
    with quick.applier() as (lakehouse, applier):
        quick.reach(applier, lakehouse)
        quick.sql(f"alter publication {name} drop table b", "insert into b values (2, 2)", f"alter publication {name} add table b")
        quick.sql("alter table bag alter column v type int using v * 100")
        quick.sql("update b set v = 3 where id = 2", "delete from bag where v = 100")
        quick.trade(applier, lakehouse, 1)
        assert {str(table): parked.note.code for table, parked in applier.parked.items()} == {
            "public.b": "PUBLICATION_CHANGED",
            "public.bag": "TABLE_REWRITTEN",
        }
    with quick.open() as lakehouse:
        assert lakehouse.resume(["b", "bag"], reload=True)["refused"] == []
    quick.whole()
    assert quick.lake("select v from bag") == [(200,)]


def test_a_new_table_of_somebody_else(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with mirrored(Quick, server, tmp_path, request.node.name) as quick:
        role = "mirror_" + str(quick.one("select current_database()"))
        quick.sql(
            f"create role {role} login replication password 'p'",
            f"grant create on database {quick.one('select current_database()')} to {role}",
            "create table a (id int primary key)",
            f"alter table a owner to {role}",
        )
        quick.dsn = psycopg.conninfo.make_conninfo(quick.dsn, user=role, password="p")
        quick.project()
        quick.sync()
        quick.sql("create table late (id int primary key)", f"grant select on late to {role}")
        with quick.applier() as (lakehouse, applier):
            quick.trade(applier, lakehouse, 1)
            assert [(refusal.name, refusal.code) for refusal in applier.refusals] == [("late", "NOT_TABLE_OWNER")]
            # It is told, and not tried every minute.
            assert not applier.take_up()
            assert [refusal.name for refusal in applier.refusals] == ["late"]
            quick.trade(applier, lakehouse, 2)
            quick.sql(f"alter table late owner to {role}")
            applier.close()
            quick.reach(applier, lakehouse)
            assert not applier.refusals
        quick.whole()
        quick.sql(
            "alter table a owner to current_user",
            "alter table late owner to current_user",
            f"drop owned by {role} cascade",
            f"drop role {role}",
        )
