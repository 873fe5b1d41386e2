"""What is refused or given up seldom: each provoked once on a real lake of a real database, in words that say how to go on."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from icelake.errors import ForeignChange, ProjectError, Refused, Unreachable
from icelake.stack.postgres import Postgres
from tests.museum.exhibit import Exhibit, settings


@pytest.fixture
def lake(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Exhibit]:
    """A database of two tables with a project beside it, not mirrored yet."""
    name = f"rare_{abs(hash(request.node.name)):x}"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"create database {name}")
        with psycopg.connect(server.dsn_of(name), autocommit=True) as session:
            one = Exhibit(tmp_path, server.dsn_of(name), session)
            one.project()
            one.sql("create table a (id int primary key, v text)", "create table b (id int primary key)", "insert into a values (1, 'v')")
            yield one
        admin.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s and active_pid is null", [name]
        )
        admin.execute(f"drop database {name} with (force)")


def test_which_source_and_how_far(lake: Exhibit) -> None:
    with lake.open() as lakehouse:
        with pytest.raises(ProjectError, match="NO_SUCH_SOURCE"):
            lakehouse.sync(source="crm")
        with pytest.raises(ProjectError, match="BAD_LSN"):
            lakehouse.sync(until="yesterday")
    lake.project(f'[sources.crm]\ndsn = "{lake.dsn}"\ntables = ["public.a"]\n')
    with lake.open() as lakehouse:
        with pytest.raises(ProjectError, match="SOURCE_WANTED"):
            lakehouse.sync()
        lakehouse.sync(source="main")
        # The catalog has one table of a name; another source's is not taken for it.
        with pytest.raises(ForeignChange, match="TABLE_EXISTS"):
            lakehouse.sync(source="crm")
        lakehouse.sync(source="main")
        assert lakehouse.verify(source="main")["equal"]


def test_there_is_nothing_to_renew(lake: Exhibit) -> None:
    with lake.open() as lakehouse, pytest.raises(Refused, match="NOTHING_TO_RENEW"):
        lakehouse.resume(reload=True)
    lake.whole()


def test_another_cluster_at_the_same_address(lake: Exhibit) -> None:
    lake.sync()
    with Postgres(settings={"fsync": "off"}) as other:
        with psycopg.connect(other.dsn, autocommit=True) as session:
            session.execute("create table a (id int primary key, v text)")
        mine, lake.dsn = lake.dsn, other.dsn
        lake.project()
        with pytest.raises(Refused, match="OTHER_SERVER"):
            lake.sync()
        with lake.open() as lakehouse, pytest.raises(Refused, match="OTHER_SERVER"):
            lakehouse.resume(reload=True)
    lake.dsn = mine
    lake.project()
    lake.whole()


def test_nobody_answers(lake: Exhibit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the process that syncs the source, and of the source itself."""
    lake.sync()
    with lake.open() as lakehouse:
        with lakehouse._desk("main").own("main"), pytest.raises(Unreachable, match="RESUME_NOT_ANSWERED"):
            lakehouse.resume(["a"], patience=0.1)
        monkeypatch.setattr("icelake.lakehouse.HOLD", 0.3)
        source = lakehouse._source_settings(None)
        desk = lakehouse._desk("main")
        with desk.own("main"), lakehouse._applier(source, desk) as applier:
            applier.step(0.1)
            with pytest.raises(Unreachable, match="SOURCE_SILENT"):
                lakehouse._bring(applier, desk, lakehouse._source(source).current_lsn() + (1 << 30))
    lake.whole()


def test_what_is_not_mirrored_cannot_be_resumed(lake: Exhibit) -> None:
    """Asked of a process that runs, by one that thinks it is."""
    lake.sync()
    with lake.applier() as (lakehouse, applier):
        applier.step(0.1)
        asker = lakehouse._desk("main")
        request = asker.request_resume(["public.gone"], False, 60)
        while applier.step(0.1).kind != "resume":
            pass
        (refusal,) = asker.resume_answer(request) or []
    assert (refusal["code"], refusal["table"]) == ("NOT_MIRRORED", "public.gone")
    lake.whole()


def test_a_parked_table_past_its_limit(lake: Exhibit) -> None:
    """Under the policy that nothing may be let go, everything stops, and nothing is lost."""
    lake.sync()
    lake.sql("alter table a drop column v", "insert into a values (2)")
    assert [entry["code"] for entry in lake.sync()["parked"]] == ["TABLE_CHANGED"]
    with lake.open() as lakehouse, pytest.raises(Refused, match="TABLE_NOT_IN_CUT"):
        lakehouse.query("select * from a")
    before = lake.confirmed()
    lake.sql("insert into a values (3)", "insert into b values (1)")
    with settings(parked_bytes=1, parked_past_limit="stop"), pytest.raises(Refused, match="PARKED_FULL"):
        lake.sync()
    assert lake.confirmed() == before
    with lake.open() as lakehouse:
        assert lakehouse.resume(["a"])["refused"] == []
    lake.whole()
    assert lake.lake("select count(*) from a") == [(3,)]
