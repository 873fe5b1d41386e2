"""A PostgreSQL and a project of its own for a benchmark, gone when it ends."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from icelake.lakehouse import Lakehouse
from icelake.stack.postgres import Postgres


@dataclass(frozen=True, slots=True)
class Rig:
    postgres: Postgres
    dsn: str
    lakehouse: Lakehouse
    folder: Path

    def reach(self, *, tcp: bool) -> None:
        """From the next command on, the lakehouse reaches the server over TCP, or over its unix socket."""
        (self.folder / "dsn").write_text(self.postgres.dsn_tcp if tcp else self.postgres.dsn_socket)


@contextmanager
def rig(tables: str = "public.*", *, settings: Mapping[str, str] | None = None, extra: str = "") -> Iterator[Rig]:
    """A server reached over its unix socket, and an empty lakehouse beside it. ``extra``: more of the project file, TOML."""
    with Postgres(settings=settings) as postgres, tempfile.TemporaryDirectory(prefix="icelake-bench-") as name:
        folder = Path(name)
        (folder / "dsn").touch(0o600)
        (folder / "dsn").write_text(postgres.dsn_socket)
        (folder / "icelake.toml").write_text(
            f'[project]\nname = "bench"\n[sources.main]\ndsn = {{ file = "dsn" }}\ntables = ["{tables}"]\n{extra}'
        )
        with Lakehouse.open(folder) as lakehouse:
            yield Rig(postgres, postgres.dsn_socket, lakehouse, folder)
