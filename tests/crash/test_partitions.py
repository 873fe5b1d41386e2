"""kill -9 in the middle of what happens to leaves: where it is told to the mirror, published, read; then ``verify`` must be equal."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from icelake.lakehouse import Lakehouse
from icelake.stack.postgres import Postgres
from tests.crash.shop import Lake, lake

pytestmark = pytest.mark.crash

MADE = """
create table meter (id int, day int, v text, primary key (id, day)) partition by range (day);
create table d1 partition of meter for values from (1) to (2);
create table d2 (v text, gone int, day int not null, id int not null);
alter table d2 drop column gone;
alter table meter attach partition d2 for values from (2) to (3);
insert into meter select g, 1 + g % 2, case when g % 5 = 0 then repeat(md5(g::text), 200) else 'v' end from generate_series(1, 200) g;
"""

# What happens, and where the next `sync` dies: its commits are the epoch, then the leaves (or the batch), then the range.
STEPS = (
    ("insert into meter values (1000, 2, 'gone'); truncate d2; insert into meter values (1001, 2, 'stays')", "catalog.commit:before:2"),
    ("create table d3 partition of meter for values from (3) to (4); insert into meter values (1, 3, 'new')", "source.publish:after:1"),
    (
        """create table d4 (like meter including all); insert into d4 select g, 4, 'unseen' from generate_series(1, 50) g;
        alter table meter attach partition d4 for values from (4) to (5); update meter set day = 3 where day = 4 and id > 40""",
        "catalog.commit:after:2",
    ),
    (
        "update meter set v = 'last' where day = 1; alter table meter detach partition d1; delete from d1 where id < 50",
        "catalog.commit:before:3",
    ),
    ("alter table meter attach partition d1 for values from (1) to (2)", "catalog.commit:after:3"),
    (
        """alter table meter detach partition d4; update d4 set v = 'unseen too' where id % 2 = 0;
        alter table meter attach partition d4 for values from (4) to (5)""",
        "storage.write:before:3",
    ),
    ("insert into meter values (1002, 4, 'gone'); drop table d4", "index.append:before:1"),
    ("truncate meter; insert into meter values (1, 1, 'again')", "catalog.commit:after:2"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off"}) as running:
        execute(running, MADE)
        yield running


def execute(server: Postgres, statements: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as session:
        for statement in statements.split(";"):
            if statement.strip():
                session.execute(statement)


def equal(one: Lake, monkeypatch: pytest.MonkeyPatch, server: Postgres) -> None:
    """In this process, which begins where the killed one left off."""
    monkeypatch.setenv("CRASH_DSN", server.dsn)
    with Lakehouse.open(one.folder) as lakehouse:
        report = lakehouse.verify()
        assert report["equal"], report


@pytest.mark.timeout(900)
def test_killed_at_what_happens_to_leaves(server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lake(tmp_path, server, tables="public.meter") as one:
        equal(one, monkeypatch, server)
        for number, (statements, fault) in enumerate(STEPS):
            execute(server, statements)
            one.die(fault, "sync")
            execute(
                server,
                f"insert into meter values ({2000 + number}, 2, 'meanwhile'); update meter set v = v || '.' where id % 7 = {number % 7}",
            )
            equal(one, monkeypatch, server)
        # While it follows: it is the publishing of the new leaf that kills it.
        following = one.start("sync", "--follow", fault="source.publish:after:1")
        try:
            execute(server, "insert into meter values (3000, 2, 'before')")
            execute(server, "create table d5 partition of meter for values from (5) to (6); insert into meter values (3001, 5, 'in it')")
            following.communicate(timeout=120)
        finally:
            following.kill()
        assert following.returncode == -signal.SIGKILL
        execute(server, "insert into meter values (3002, 5, 'after'); delete from meter where id = 3001")
        equal(one, monkeypatch, server)
