"""A PostgreSQL and a project of its own for a benchmark, gone when it ends."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from icelake.lakehouse import Lakehouse
from icelake.stack.postgres import Postgres

ICELAKE = [sys.executable, "-c", "import sys; from icelake.cli import main; sys.exit(main())"]
"""The command, as a process of its own."""


@dataclass(frozen=True, slots=True)
class Rig:
    postgres: Postgres
    dsn: str
    lakehouse: Lakehouse
    folder: Path

    def reach(self, *, tcp: bool) -> None:
        """From the next command on, the lakehouse reaches the server over TCP, or over its unix socket."""
        (self.folder / "dsn").write_text(self.postgres.dsn_tcp if tcp else self.postgres.dsn_socket)

    def program(self, name: str, *words: str, tcp: bool = False) -> subprocess.Popen[str]:
        """One of PostgreSQL's programs, told where the server is; its output is read by the caller."""
        reached = {**self.postgres.environment, "PGDATABASE": "postgres"}
        if not tcp:
            reached["PGHOST"] = str(self.postgres.socket_folder)
        command = [str(self.postgres.bin(name)), *words]
        return subprocess.Popen(command, env={**os.environ, **reached}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, name: str, *words: str, tcp: bool = False) -> float:
        """Seconds such a program takes. Raises CalledProcessError with what it said."""
        began = time.monotonic()
        with self.program(name, *words, tcp=tcp) as process:
            said, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, [name, *words], said)
        return time.monotonic() - began

    @contextmanager
    def another_lake(self) -> Iterator[Lakehouse]:
        """An empty lakehouse beside the same server, gone with its slot when the block ends."""
        with _project(self.postgres, (self.folder / "icelake.toml").read_text()) as folder, Lakehouse.open(folder) as lakehouse:
            yield lakehouse
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active")


@contextmanager
def rig(tables: str = "public.*", *, settings: Mapping[str, str] | None = None, extra: str = "") -> Iterator[Rig]:
    """A server reached over its unix socket, and an empty lakehouse beside it. ``extra``: more of the project file, TOML."""
    source = f'[sources.main]\ndsn = {{ file = "dsn" }}\ntables = ["{tables}"]\n'
    project = f'[project]\nname = "bench"\n{source}[retention]\ngrace = "0s"\n{extra}'
    with Postgres(settings=settings) as postgres, _project(postgres, project) as folder, Lakehouse.open(folder) as lakehouse:
        yield Rig(postgres, postgres.dsn_socket, lakehouse, folder)


@contextmanager
def _project(postgres: Postgres, text: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="icelake-bench-") as name:
        folder = Path(name)
        (folder / "dsn").touch(0o600)
        (folder / "dsn").write_text(postgres.dsn_socket)
        (folder / "icelake.toml").write_text(text)
        yield folder
