"""What is bounded whatever the source does: memory, by a transaction of millions of rows, by values that are larger than what is sent
of them, by a storage slower than the source; open files, by the number of tables.

Short here. At full length (``make bounds``): five million rows, two thousand tables, a minute of writing.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from icelake.stack.postgres import Postgres
from tests.conftest import Lacking
from tests.mirrored import Mirrored, mirrored
from tests.s3.proxy import Proxy
from tests.s3.server import running
from tests.watched import Watched

FULL = bool(os.environ.get("ICELAKE_FULL"))
LIMIT = 1024.0
"""MiB that our processes may hold."""
pytestmark = pytest.mark.timeout(14_400 if FULL else 300)


class Bounded(Mirrored):
    PROJECT = Mirrored.PROJECT

    def run(self, *words: str, data: int | None = None) -> tuple[Any, Watched]:
        """The document a command printed, and what it took; told to whoever looks (``pytest -s``)."""
        with Watched(self.folder, *words, data=data) as process:
            answer = process.answer()
        took = f"{process.memory:,.0f} MiB, {process.seconds:.1f} s of CPU, {process.files} files"
        print(f"\n{self.folder.name}: icelake {' '.join(words)}: {took}", end="")
        return answer, process

    def equal(self) -> None:
        report, _ = self.run("verify")
        assert report["equal"], report

    def flushed(self) -> str:
        return str(self.sql("select pg_current_wal_flush_lsn()")[0][0])

    def status(self) -> Any:
        with self.open() as lakehouse:
            (status,) = lakehouse.status()["sources"]
        return status

    def behind(self, lsn: str) -> bool:
        return bool(self.sql(f"select '{self.status()['position']}'::pg_lsn < '{lsn}'::pg_lsn")[0][0])

    def wait_for(self, lsn: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.behind(lsn):
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def large() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off", "max_wal_size": "16GB", "max_locks_per_transaction": "4000"}) as server:
        yield server


@pytest.fixture
def bounded(large: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bounded]:
    with mirrored(Bounded, large, tmp_path, request.node.name) as made:
        yield made


ROWS = 5_000_000 if FULL else 120_000
TRANSACTIONS = (
    f"insert into t select g, g % 17, 'name ' || g, g / 100.0, '2026-01-01' from generate_series(1, {ROWS}) g",
    "update t set n = n + 1, amount = amount + 1",
)


@pytest.mark.parametrize("how", ["live", "backlog"] if FULL else ["live"])
def test_one_transaction(bounded: Bounded, how: str) -> None:
    bounded.sql("create table t (id bigint primary key, n int not null, name text not null, amount numeric(12,2), at timestamptz not null)")
    bounded.run("sync")
    for statement in TRANSACTIONS:
        if how == "backlog":
            bounded.sql(statement)
            _, process = bounded.run("sync")
        else:
            with Watched(bounded.folder, "sync", "--follow") as process:
                bounded.wait_for(bounded.flushed(), 60)
                bounded.sql(statement)
                bounded.wait_for(bounded.flushed(), ROWS / 1000 + 60)
            print(f"\nlive: {process.memory:,.0f} MiB, {process.seconds:.1f} s of CPU", end="")
        assert process.memory <= (LIMIT if FULL else 640.0)
    bounded.equal()


def test_values_that_were_not_sent(bounded: Bounded) -> None:
    """An update of which 60 bytes are sent is a row of 16 kB in the lake."""
    rows = 150_000 if FULL else 12_000
    bounded.sql("create table d (id int primary key, n int not null, doc text)", "alter table d alter doc set storage external")
    bounded.sql(f"insert into d select g, 0, repeat(md5(g::text), 512) from generate_series(1, {rows}) g")
    bounded.run("sync")
    bounded.sql("update d set n = n + 1")
    _, process = bounded.run("sync")
    assert process.memory <= (LIMIT if FULL else 800.0)
    bounded.equal()


def test_many_tables(bounded: Bounded) -> None:
    tables = 2000 if FULL else 24
    for first in range(0, tables, 500):
        bounded.sql(
            *(
                f"create table t{n} (id int primary key, v text); insert into t{n} select g, 'v' || g from generate_series(1, 10) g"
                for n in range(first, min(tables, first + 500))
            )
        )
    bounded.run("sync")
    bounded.sql(*(f"update t{n} set v = 'w' where id < 3; delete from t{n} where id = 7" for n in range(tables)))
    _, process = bounded.run("sync")
    # More than are kept open before they are synced, and the process's own.
    assert process.files <= 400
    assert process.memory <= LIMIT
    bounded.run("status")
    bounded.equal()


def test_a_storage_slower_than_the_source(bounded: Bounded, lacking: Lacking) -> None:
    seconds = 60.0 if FULL else 6.0
    bounded.sql("create table t (id bigint generated always as identity primary key, note text not null)")
    with running(lacking) as s3, Proxy(s3.endpoint) as proxy:
        for name, value in (("access", s3.access_key), ("secret", s3.secret_key)):
            (bounded.folder / name).write_text(value)
        bounded.project(
            f'[lake]\nwarehouse = "s3a://lake/{bounded.folder.name}/"\n[lake.s3]\nendpoint = "{proxy.endpoint}"\n'
            'access_key = { file = "access" }\nsecret_key = { file = "secret" }\n'
        )
        bounded.run("sync")
        proxy.delay = 1.0
        stop = threading.Event()
        writing = threading.Thread(target=_write, args=(bounded.dsn, stop))
        lags = []
        with Watched(bounded.folder, "sync", "--follow") as process:
            writing.start()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(1)
                lags.append((bounded.status(), process.memory))
            stop.set()
            writing.join()
            last = bounded.flushed()
            assert bounded.behind(last), "the storage was not slower than the source"
            assert max(status["lag_bytes"] for status, _ in lags) > 1 << 20
            told = [status["applier"]["buffered_bytes"] for status, _ in lags if status["applier"]]
            assert told
            # The stream's buffer, and what one look at the connection brings.
            assert max(told) <= (1 << 26) + (1 << 20)
            proxy.delay = 0.0
            bounded.wait_for(last, 60 + 10 * seconds)
        print(f"\nslow: {process.memory:,.0f} MiB, {max(s['lag_bytes'] for s, _ in lags) >> 20} MiB behind at most", end="")
        assert process.memory <= LIMIT
        bounded.equal()


def _write(dsn: str, stop: threading.Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not stop.is_set():
            connection.execute("insert into t (note) select md5(g::text) from generate_series(1, 20000) g")
