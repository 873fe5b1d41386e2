"""A database of its own on a running server, and a folder with a project that mirrors it: what tests of the lakehouse in this process
stand in. Those that type commands have a shell (``tests/journeys/conftest.py``)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import psycopg

from icelake.lakehouse import Lakehouse
from icelake.ports import Json
from icelake.stack.postgres import Postgres

M = TypeVar("M", bound="Mirrored")


@dataclass
class Mirrored:
    folder: Path
    dsn: str
    session: "psycopg.Connection[Any]"

    PROJECT: ClassVar[str] = """\
[project]
name = "shop"
[sources.shop]
dsn = "{dsn}"
tables = ["public.*"]
"""

    def sql(self, *statements: str) -> list[Any]:
        """In one transaction; what the last one answers."""
        with self.session.transaction():
            for statement in statements:
                cursor = self.session.execute(statement)
        return cursor.fetchall() if cursor.description else []

    def project(self, more: str = "") -> None:
        """Write the project file, with ``more`` behind it."""
        (self.folder / "icelake.toml").write_text(self.PROJECT.format(dsn=self.dsn) + more)

    def open(self) -> Lakehouse:
        return Lakehouse.open(self.folder)

    def sync(self) -> Json:
        with self.open() as lakehouse:
            return lakehouse.sync()

    def lake(self, statement: str, at: str | None = None) -> list[tuple[Any, ...]]:
        """The rows of an answer."""
        with self.open() as lakehouse:
            return list(zip(*(column.to_pylist() for column in lakehouse.query(statement, at).columns), strict=True))


@contextmanager
def mirrored(kind: type[M], server: Postgres, folder: Path, test: str, extensions: str = "") -> Iterator[M]:
    """A ``kind`` with a database called after the test. Afterwards neither it nor its slots are there."""
    name = f"{kind.__name__.lower()}_{abs(hash(test)):x}"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"create database {name}")
        with psycopg.connect(server.dsn_of(name), autocommit=True) as session:
            session.execute("set timezone = 'UTC'")
            for extension in extensions.split():
                session.execute(f"create extension {extension}")
            made = kind(folder, server.dsn_of(name), session)
            made.project()
            yield made
        slots = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s and not active"
        admin.execute(slots, [name])
        admin.execute(f"drop database {name} with (force)")
