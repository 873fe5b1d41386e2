"""What a museum's test stands in: a small database on a real server, its lake, and a place where the process can be made to die.

The applier is the real one, in this process. It dies at the product's own fault points (``observe.faults``), by an exception that
nothing catches; whatever opens the lake next is what a new process would be. ``Wire`` stands between an applier and its catalog.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
from pyiceberg.manifest import ManifestEntryStatus
from pyiceberg.table import StaticTable

from icelake.errors import CommitUnknown
from icelake.ingest.applier import Applier, Settings
from icelake.lakehouse import Lakehouse
from icelake.ports import Json, LoadedTable, TableChange
from icelake.project import load_project
from tests.mirrored import Mirrored


class Killed(BaseException):
    """The process is gone here; no line of it runs any more."""


class Exhibit(Mirrored):
    PROJECT = """\
[project]
name = "museum"
[sources.main]
dsn = "{dsn}"
tables = ["public.*"]
[commit]
interval_ms = 50
"""

    def one(self, statement: str) -> Any:
        return self.sql(statement)[0][0]

    # ------------------------------------------------------------------------------------------------ one process each

    def dies(self, fault: str) -> bool:
        """A sync that dies at this fault point (``PORT.CALL:before|after:N``); False if it ended well before it came there."""

        def kill(*_: object) -> None:
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("icelake.observe.faults.os", SimpleNamespace(kill=kill, getpid=int))
            with Lakehouse(load_project(self.folder), {"ICELAKE_FAULT": fault}) as lakehouse:
                try:
                    lakehouse.sync()
                except Killed:
                    return True
        return False

    @contextmanager
    def applier(self) -> Iterator[tuple[Lakehouse, Applier]]:
        """An applier to be led step by step."""
        with self.open() as lakehouse:
            settings = lakehouse._source_settings(None)
            desk = lakehouse._desk(settings.name)
            with desk.own(settings.name), lakehouse._applier(settings, desk) as applier:
                yield lakehouse, applier

    def reach(self, applier: Applier, lakehouse: Lakehouse) -> None:
        """Step until everything of this moment is in the lake."""
        target = lakehouse._source(lakehouse._source_settings(None)).current_lsn()
        applier.run_to(target)
        # By time: while the server has not flushed a range's position yet, steps are short and many.
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if applier.running and applier.position >= target and not applier.loading:
                return
            applier.step(0.05)
        raise AssertionError(f"{applier.status()}")

    # ---------------------------------------------------------------------------------------------------- what is there

    def whole(self) -> None:
        """A last sync has nothing to complain of, and every table is its source's equal."""
        with self.open() as lakehouse:
            status = lakehouse.sync()
            assert status["parked"] == []
            report = lakehouse.verify()
            assert report["equal"], report
            assert report["tables"]
            assert report["skipped"] == []

    def same(self, table: str) -> int:
        """The lake's rows are the source's, each as often as there; how many. For tables that ``verify`` does not tell."""
        lake, source = self.lake(f"select * from {table}"), self.sql(f"select * from {table}")
        assert Counter(map(repr, lake)) == Counter(map(repr, source))
        return len(source)

    def cuts(self) -> list[Json]:
        """Oldest first."""
        with self.open() as lakehouse:
            return lakehouse.cuts()[::-1]

    def written(self) -> int:
        """Data files there are, in snapshots or not."""
        return sum(1 for _ in (self.folder / "lake" / "warehouse").rglob("*.parquet"))

    def slot(self) -> str:
        return str(self.one("select slot_name from pg_replication_slots where database = current_database() and not temporary"))

    def confirmed(self) -> int:
        """How far the source was told that it may forget."""
        where = "slot_name = '" + self.slot() + "'"
        return int(self.one(f"select confirmed_flush_lsn - '0/0'::pg_lsn from pg_replication_slots where {where}"))

    def position(self) -> int:
        """How far the lake is, by its last cut."""
        return int(self.one(f"select '{self.cuts()[-1]['lsn']}'::pg_lsn - '0/0'::pg_lsn"))

    def added(self, table: str) -> Counter[str]:
        """Every data file and how many of the table's snapshots say that they added it, as PyIceberg reads them."""
        with self.open() as lakehouse:
            opened = StaticTable.from_metadata(lakehouse.table(table)["metadata"])
        return Counter(
            entry.data_file.file_path
            for snapshot in opened.snapshots()
            for manifest in snapshot.manifests(opened.io)
            if manifest.added_snapshot_id == snapshot.snapshot_id
            for entry in manifest.fetch_manifest_entry(opened.io, discard_deleted=False)
            if entry.status == ManifestEntryStatus.ADDED and entry.snapshot_id == snapshot.snapshot_id
        )

    def pyiceberg(self, table: str) -> list[dict[str, Any]]:
        with self.open() as lakehouse:
            rows: list[dict[str, Any]] = StaticTable.from_metadata(lakehouse.table(table)["metadata"]).scan().to_arrow().to_pylist()
            return rows


@contextmanager
def settings(**changed: Any) -> Iterator[None]:
    """Settings of every applier that is made here, where they are not the project's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icelake.lakehouse.Settings", partial(Settings, **changed))
        yield


@contextmanager
def chunks_of(size: int) -> Iterator[None]:
    """The stream is taken in chunks of about so many bytes, in the midst of transactions; each writes files of its own."""
    with settings(chunk_bytes=size), pytest.MonkeyPatch.context() as patch:
        patch.setattr("icelake.sources.postgres.stream._BATCH", size)
        yield


Send = Callable[[Sequence[TableChange]], Sequence[LoadedTable]]
Fate = Callable[[Send, Sequence[TableChange]], Sequence[LoadedTable]]
"""What becomes of a commit on its way to the catalog, and of the answer on its way back."""


def answer_lost(send: Send, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
    send(changes)
    raise CommitUnknown("COMMIT_UNKNOWN", "the answer was lost")


class Wire:
    """Each commit meets its fate by its number, from 1; the others arrive. ``sent`` counts."""

    def __init__(self, lakehouse: Lakehouse, fates: Mapping[int, Fate]) -> None:
        self.sent = 0
        self._send: Send = lakehouse._catalog.commit
        self._fates = fates
        lakehouse._catalog.commit = self._commit  # type: ignore[method-assign]

    def _commit(self, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        self.sent += 1
        fate = self._fates.get(self.sent)
        return self._send(changes) if fate is None else fate(self._send, changes)


def steps(applier: Applier, number: int) -> Iterator[str]:
    """The kinds of so many steps."""
    return islice(iter(lambda: str(applier.step(0.05).kind), ""), number)
