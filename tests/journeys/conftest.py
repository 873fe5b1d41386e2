"""A shop's database on a real server, and a shell that has ``icelake``: what a user has who follows the README."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from icelake.stack.postgres import Postgres
from tests.provoked import said

SHOP = """
create table customers (id bigint primary key, email text not null, born date);
create table orders (id bigint generated always as identity primary key, customer bigint not null references customers,
                     total numeric(12,2) not null, placed timestamptz not null default now(), note text);
insert into customers select n, 'c' || n || '@example.org', date '1970-01-01' + n::int from generate_series(1, 200) n;
insert into orders (customer, total, note) select 1 + n % 200, n / 100.0, case when n % 7 = 0 then null else 'note ' || n end
from generate_series(1, 3000) n;
"""


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off"}) as server:
        yield server


@dataclass
class Shell:
    """Commands as a user types them, in a folder of their own."""

    folder: Path
    dsn: str
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, script: str, *, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A script for bash; its exit code must be ``code``."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            capture_output=True,
            text=True,
            cwd=cwd or self.folder,
            env=self.env,
            check=False,
        )
        said(done.stdout + done.stderr)
        assert done.returncode == code, f"{script}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, script: str, *, code: int = 0) -> Any:
        """What the script printed: one JSON document and nothing else."""
        return json.loads(self.run(script, code=code).stdout)

    @property
    def env(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", **self.environment}

    def sql(self, statement: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def shop_on(server: Postgres, folder: Path, name: str) -> Iterator[Shell]:
    """A shell beside a database of its own with the shop in it."""
    database = f"shop_{abs(hash(name)):x}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"create database {database}")
    shell = Shell(folder, server.dsn_of(database))
    shell.sql(SHOP)
    yield shell
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        slots = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s and not active"
        connection.execute(slots, [database])
        connection.execute(f"drop database {database} with (force)")


def mirror(shell: Shell) -> Shell:
    shell.environment["SHOP_DSN"] = shell.dsn
    shell.run("icelake init . --name shop")
    shell.run("icelake sync --json")
    return shell


@pytest.fixture
def shell(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shell]:
    """The shop, not mirrored yet."""
    with shop_on(server, tmp_path, request.node.nodeid) as shell:
        yield shell


@pytest.fixture
def shop(shell: Shell) -> Shell:
    """The shop, mirrored."""
    return mirror(shell)


@pytest.fixture(scope="module")
def still(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The shop, mirrored, for tests that change nothing."""
    with shop_on(server, tmp_path_factory.mktemp("still"), "still") as shell:
        yield mirror(shell)
