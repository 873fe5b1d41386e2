"""The source's standby takes over: gone on with where nothing can be lost, refused with the exact positions where something is."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from icelake.errors import Gap
from icelake.lakehouse import Lakehouse
from icelake.model.lsn import format_lsn
from icelake.project import load_project
from icelake.sources.postgres.server import PostgresSource
from icelake.stack.binaries import Binaries
from icelake.stack.postgres import Postgres


@dataclass
class Pair:
    """A primary with its standby, and a lakehouse whose address leads to whichever it is pointed at."""

    primary: Postgres
    standby: Postgres
    folder: Path
    held: ExitStack = field(default_factory=ExitStack)

    def point_at(self, server: Postgres) -> Lakehouse:
        (self.folder / "dsn").write_text(server.dsn)
        return self.held.enter_context(closing(Lakehouse(load_project(self.folder))))

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def sql(server: Postgres, *statements: str) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    with psycopg.connect(server.dsn, autocommit=True) as session:
        for statement in statements:
            cursor = session.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
    return rows


@pytest.fixture
def pair(binaries: Binaries, tmp_path: Path) -> Iterator[Pair]:
    (tmp_path / "icelake.toml").write_text('[project]\nname = "x"\n[sources.main]\ndsn = { file = "dsn" }\ntables = ["public.*"]\n')
    with Postgres(version=binaries, settings={"fsync": "off", "autovacuum": "off"}) as primary:
        sql(primary, "create table a (id int primary key, v int)", "insert into a select g, g from generate_series(1, 10) g")
        settings = {"sync_replication_slots": "on"} if binaries.major >= 17 else {}
        with primary.standby("sb", settings=settings) as standby, ExitStack() as held:
            yield Pair(primary, standby, tmp_path, held)


@pytest.mark.versions(18, 16)
def test_a_promoted_standby_is_followed_if_it_has_the_slot(pair: Pair, binaries: Binaries) -> None:
    lakehouse = pair.point_at(pair.primary)
    lakehouse.sync()
    if binaries.major >= 17:
        sql(pair.primary, "alter system set synchronized_standby_slots = 'sb'", "select pg_reload_conf()")

        def synced() -> bool:
            # A synchronized slot becomes lasting once the primary's has moved past where the standby's begins.
            sql(pair.primary, "select pg_log_standby_snapshot()", "update a set v = v + 1 where id = 1")
            lakehouse.sync()
            return sql(pair.standby, "select 1 from pg_replication_slots where synced and not temporary") != []

        pair.wait(synced)
    sql(pair.primary, "insert into a values (11, 11)")
    lakehouse.sync()
    (end,) = sql(pair.primary, "select pg_current_wal_flush_lsn()")[0]
    pair.wait(lambda: sql(pair.standby, f"select pg_last_wal_replay_lsn() >= '{end}'") == [(True,)])
    pair.primary.kill9()
    pair.standby.promote()
    sql(pair.standby, "insert into a values (12, 12)", "update a set v = 0 where id = 11", "delete from a where id = 3")
    after = pair.point_at(pair.standby)
    if binaries.major < 17:
        with pytest.raises(Gap, match="SLOT_GONE") as caught:
            after.sync()
        assert "promoted" in caught.value.why
        return
    for _ in range(2):
        after.sync()
        assert after.verify()["equal"]
    assert after.query("select count(*) as n from a").to_pylist() == [{"n": 11}]
    sql(pair.standby, "insert into a values (13, 13)")
    after.sync()
    assert after.verify()["equal"]


def test_a_standby_that_was_behind_the_lake_is_refused(pair: Pair, binaries: Binaries) -> None:
    lakehouse = pair.point_at(pair.primary)
    lakehouse.sync()
    pair.standby.stop()
    sql(pair.primary, "insert into a values (11, 11)")
    lakehouse.sync()
    pair.primary.kill9()
    pair.standby.start()
    pair.standby.promote()
    switch = PostgresSource(pair.standby.dsn).switched_from(1)
    assert switch is not None
    sql(pair.standby, "insert into a select g from generate_series(20, 50000) g")
    for _ in range(2):
        with pytest.raises(Gap, match="NEW_TIMELINE") as caught:
            pair.point_at(pair.standby).sync()
        assert format_lsn(switch) in caught.value.why


@pytest.mark.versions(14)
def test_the_history_of_timelines(pair: Pair) -> None:
    first = PostgresSource(pair.primary.dsn)
    assert first.identify().timeline == 1
    assert first.switched_from(1) is None
    pair.standby.promote()
    source = PostgresSource(pair.standby.dsn)
    assert source.identify().timeline == 2
    switch = source.switched_from(1)
    assert switch is not None
    flushed = source.identify().flushed
    assert flushed is not None
    assert 0 < switch <= flushed
    assert source.switched_from(2) is None
    with pair.standby.standby() as third:
        third.promote()
        last = PostgresSource(third.dsn)
        assert last.identify().timeline == 3
        assert last.switched_from(1) == switch
        assert (last.switched_from(2) or 0) > switch
        assert last.switched_from(3) is None
        assert last.switched_from(7) is None
