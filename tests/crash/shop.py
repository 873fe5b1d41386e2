"""A small source that keeps changing, and a lakehouse over it that can be killed."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import orjson
import psycopg

from icelake.stack.postgres import Postgres
from tests.provoked import said

TABLES = """
create table account (id int primary key, owner text not null, balance numeric(12,2) not null, note text);
create table entry (
    account int, number int, amount numeric(12,2) not null, made timestamptz not null default now(), primary key (account, number)
);
create table audit (id uuid primary key default gen_random_uuid(), what text, payload jsonb);
insert into account select g, 'owner ' || g, 100, case when g % 5 = 0 then repeat(md5(g::text), 500) end from generate_series(1, 600) g;
insert into entry select 1 + g % 600, g, g / 7.0 from generate_series(1, 1500) g;
insert into audit (what, payload) select 'w' || g, jsonb_build_object('n', g) from generate_series(1, 300) g;
alter table account alter column note set storage external;
"""

TRADE = (
    "update account set balance = balance + 1 where id %% 17 = %(n)s %% 17",
    "insert into entry select 1 + g %% 600, 10000 + %(n)s * 50 + g, g from generate_series(1, 20) g",
    "delete from entry where number %% 97 = %(n)s %% 97 and number < 9000",
    "insert into audit (what, payload) select 'x', '{}' from generate_series(1, 5)",
    "update account set id = -id where id = any (array[%(n)s %% 600 + 1, -(%(n)s %% 600 + 1)])",
    "delete from audit where id in (select id from audit limit 3)",
)

_rounds = itertools.count()
"""Of all traders of the process: what one inserts, the next must not insert again."""


class Trader:
    """Changes the source in transactions over all tables until stopped."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._stop.wait(0.02):
                n = next(_rounds)
                with connection.transaction():
                    for statement in TRADE:
                        connection.execute(statement, {"n": n})


def make_tables(server: Postgres) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for statement in TABLES.split(";\n"):
            connection.execute(statement)


class Lake:
    """A project in a folder; its commands run in processes of their own."""

    def __init__(
        self,
        folder: Path,
        server: Postgres,
        extra: str = "",
        tables: str = "public.*",
        *,
        exclude: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``extra``: more of the project file. ``environment``: of its commands, over ours."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "icelake.toml").write_text(
            '[project]\nname = "crash"\n[sources.main]\ndsn = { env = "CRASH_DSN" }\n'
            f'tables = ["{tables}"]\nexclude = [{exclude}]\n[commit]\ninterval_ms = 100\n{extra}'
        )
        self._environment = {**os.environ, "CRASH_DSN": server.dsn, "PYTHONWARNINGS": "ignore", **(environment or {})}

    def start(
        self, *words: str, fault: str | None = None, out: int = subprocess.PIPE, err: int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        environment: Mapping[str, str] = {**self._environment, **({"ICELAKE_FAULT": fault} if fault else {})}
        return subprocess.Popen(
            [Path(sys.executable).parent / "icelake", *words, "--json"],
            cwd=self.folder,
            env=environment,
            stdout=out,
            stderr=err,
        )

    def run(self, *words: str, seconds: float = 120) -> tuple[int, Any]:
        """(exit code, the last document on stdout)."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        lines = out.splitlines()
        assert lines, f"{words}: nothing on stdout; stderr: {err.decode()[-3000:]}"
        return process.returncode, orjson.loads(said(lines[-1].decode()))

    def die(self, fault: str, *words: str, seconds: float = 60) -> None:
        """Run a command that must be killed by its fault point."""
        process = self.start(*words, fault=fault)
        try:
            _, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
            raise AssertionError(f"{fault} was not reached in {seconds} s: {err.decode()[-2000:]}") from None
        assert process.returncode == -signal.SIGKILL, (fault, process.returncode, err.decode()[-2000:])

    def drop_slots(self, server: Postgres) -> None:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for _ in range(100):
                busy = connection.execute("select count(*) from pg_replication_slots where active").fetchone()
                if busy is None or busy[0] == 0:
                    break
                time.sleep(0.05)
            connection.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots")
            for (name,) in connection.execute("select pubname from pg_publication").fetchall():
                connection.execute(f'drop publication "{name}"')


@contextmanager
def lake(folder: Path, server: Postgres, extra: str = "", tables: str = "public.*") -> Iterator[Lake]:
    made = Lake(folder, server, extra, tables)
    try:
        yield made
    finally:
        made.drop_slots(server)
