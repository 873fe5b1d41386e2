"""What every catalog promises, shown on each of them: whole commits or none, across processes and kills.

A new catalog joins by a class with a ``catalog`` fixture and ``opener``: a way for another process to open the same catalog.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from icelake.catalog.store import SqlCatalog
from icelake.errors import AlreadyExists, CommitConflict, NoSuchTable, ProjectError
from icelake.model.relation import TableId
from icelake.ports import Catalog, Json, LoadedTable, TableChange
from icelake.storage.local import LocalStorage

SCHEMA: Json = {"type": "struct", "fields": [{"id": 1, "name": "id", "required": True, "type": "long"}]}
LEFT, RIGHT = TableId("shop", "left"), TableId("shop", "right")


class WallClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class RealChance:
    def snapshot_id(self) -> int:
        return random.SystemRandom().getrandbits(62) + 1

    def uuid(self) -> str:
        return str(uuid.uuid4())


CHANCE = RealChance()


def next_snapshot(table: LoadedTable, *, expect: int | str | None = "current", note: str = "") -> TableChange:
    """A commit of an empty snapshot on top of ``table`` as it was loaded (or on another base)."""
    metadata = table.metadata
    base = metadata.get("current-snapshot-id") if expect == "current" else expect
    ident = CHANCE.snapshot_id()
    snapshot = {
        "snapshot-id": ident,
        "sequence-number": metadata["last-sequence-number"] + 1,
        "timestamp-ms": max(int(time.time() * 1000), metadata["last-updated-ms"]),
        "manifest-list": f"{metadata['location']}/metadata/{ident}.avro",
        "summary": {"operation": "append", "note": note},
        "schema-id": 0,
        "first-row-id": metadata["next-row-id"],
        "added-rows": 1,
    }
    return TableChange(
        table.id,
        [
            {"type": "assert-table-uuid", "uuid": metadata["table-uuid"]},
            {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": base},
        ],
        [
            {"action": "add-snapshot", "snapshot": snapshot},
            {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": ident},
        ],
    )


def main_of(table: LoadedTable) -> int:
    ident = table.metadata["refs"]["main"]["snapshot-id"]
    assert isinstance(ident, int)
    return ident


class CatalogConformance:
    """The behaviour of the port. Subclasses give the ``catalog`` and ``opener`` fixtures."""

    @pytest.fixture
    def pair(self, catalog: Catalog) -> tuple[LoadedTable, LoadedTable]:
        return catalog.create(LEFT, SCHEMA, {"p": "1"}), catalog.create(RIGHT, SCHEMA, {})

    def test_create_load_list(self, catalog: Catalog) -> None:
        assert list(catalog.tables()) == []
        made = catalog.create(LEFT, SCHEMA, {"p": "1"})
        assert made == catalog.load(LEFT)
        assert made.metadata["properties"] == {"p": "1"}
        assert made.metadata["format-version"] == 3
        with pytest.raises(AlreadyExists, match="TABLE_EXISTS"):
            catalog.create(LEFT, SCHEMA, {})
        catalog.create(TableId("a", "z"), SCHEMA, {})
        assert list(catalog.tables()) == [TableId("a", "z"), LEFT]
        with pytest.raises(NoSuchTable, match="NO_SUCH_TABLE"):
            catalog.load(RIGHT)

    def test_names_that_are_no_paths(self, catalog: Catalog) -> None:
        names = ["../../etc", "..", "a/b", "Größe", "a b", "A", "a", 'q"uote', "%2e%2e", "x" * 63]
        made = [catalog.create(TableId("name.space", name), SCHEMA, {}) for name in names]
        assert len({table.metadata["location"].lower() for table in made}) == len(names)
        for table in made:
            assert ".." not in table.metadata["location"]
            assert table == catalog.load(table.id)

    def test_tables_never_share_a_folder(self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable]) -> None:
        where = pair[0].metadata["location"]
        for location in (where, f"{where}/", f"{where}/inner", where.rsplit("/", 1)[0]):
            with pytest.raises(AlreadyExists, match="LOCATION_TAKEN"):
                catalog.create(TableId("shop", "third"), SCHEMA, {}, location)
        catalog.create(TableId("shop", "third"), SCHEMA, {}, f"{where}2")
        with pytest.raises(AlreadyExists):
            catalog.commit([TableChange(RIGHT, [], [{"action": "set-location", "location": where}])])

    def test_a_commit_over_two_tables(self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable]) -> None:
        changes = [next_snapshot(pair[1]), next_snapshot(pair[0])]
        done = catalog.commit(changes)
        assert [table.id for table in done] == [RIGHT, LEFT]
        for table in done:
            assert table == catalog.load(table.id)
            assert table.metadata["next-row-id"] == 1

    def test_a_stale_base_is_a_conflict_and_changes_no_table_of_the_transaction(
        self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable]
    ) -> None:
        left, right = pair
        catalog.commit([next_snapshot(right)])
        before = [catalog.load(LEFT), catalog.load(RIGHT)]
        for changes in ([next_snapshot(left), next_snapshot(right)], [next_snapshot(right), next_snapshot(left)]):
            with pytest.raises(CommitConflict, match="COMMIT_CONFLICT"):
                catalog.commit(changes)
        # Even with the right ref, a snapshot made for another base (sequence number, row ids) is a conflict.
        with pytest.raises(CommitConflict):
            catalog.commit([next_snapshot(left), next_snapshot(right, expect=main_of(before[1]))])
        assert [catalog.load(LEFT), catalog.load(RIGHT)] == before

    def test_the_identical_commit_sent_again_is_a_conflict(self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable]) -> None:
        change = next_snapshot(pair[0])
        done = catalog.commit([change])
        with pytest.raises(CommitConflict):
            catalog.commit([change])
        assert [catalog.load(LEFT)] == done

    def test_requirements_alone_fence_and_write_nothing(self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable]) -> None:
        left, right = pair
        fence = TableChange(RIGHT, [{"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": None}], [])
        done = catalog.commit([next_snapshot(left), fence])
        assert done[1] == right
        catalog.commit([next_snapshot(right)])
        with pytest.raises(CommitConflict):
            catalog.commit([next_snapshot(done[0]), fence])
        assert catalog.load(LEFT) == done[0]
        assert list(catalog.commit([TableChange(RIGHT, [], [])])) == [catalog.load(RIGHT)]

    def test_unknown_tables_and_wrong_requests_change_nothing(self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable]) -> None:
        change = next_snapshot(pair[0])
        with pytest.raises(NoSuchTable):
            catalog.commit([change, TableChange(TableId("no", "where"), [], [])])
        with pytest.raises(ProjectError, match="CATALOG_UNKNOWN_UPDATE"):
            catalog.commit([change, TableChange(RIGHT, [], [{"action": "make-it-so"}])])
        with pytest.raises(ProjectError, match="CATALOG_BAD_REQUEST"):
            catalog.commit([change, change])
        assert (catalog.load(LEFT), catalog.load(RIGHT)) == pair

    def test_loaded_metadata_never_changes_afterwards(self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable]) -> None:
        before = orjson.dumps(pair[0].metadata)
        catalog.commit([next_snapshot(pair[0])])
        assert orjson.dumps(pair[0].metadata) == before

    def test_a_leased_snapshot_stays(self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable]) -> None:
        first = catalog.commit([next_snapshot(pair[0])])[0]
        second = catalog.commit([next_snapshot(first)])[0]
        old = main_of(first)
        lease = catalog.lease("test", {LEFT: old}, 600)
        assert list(catalog.leases()) == [lease]
        remove = TableChange(LEFT, [], [{"action": "remove-snapshots", "snapshot-ids": [old]}])
        with pytest.raises(CommitConflict, match="SNAPSHOT_LEASED"):
            catalog.commit([next_snapshot(pair[1]), remove])
        assert (catalog.load(LEFT), catalog.load(RIGHT)) == (second, pair[1])
        catalog.release(lease.id)
        catalog.release(lease.id)
        assert list(catalog.leases()) == []
        catalog.commit([remove])
        with pytest.raises(CommitConflict, match="SNAPSHOT_GONE"):
            catalog.lease("test", {LEFT: old}, 600)
        with pytest.raises(CommitConflict):
            catalog.lease("test", {TableId("no", "where"): old}, 600)
        # A lease of the past holds nothing.
        catalog.lease("test", {LEFT: main_of(second)}, -1)
        assert list(catalog.leases()) == []

    def test_two_processes_racing_two_table_commits_never_diverge(
        self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable], opener: str
    ) -> None:
        rounds = 200
        racers = [child(opener, RACER, str(number), str(rounds)) for number in range(2)]
        won = 0
        for racer in racers:
            out, _ = racer.communicate(timeout=120)
            assert racer.returncode == 0, out
            won += json.loads(out)["won"]
        assert won >= rounds
        left, right = catalog.load(LEFT).metadata, catalog.load(RIGHT).metadata
        notes = [[one["summary"]["note"] for one in table["snapshots"]] for table in (left, right)]
        assert notes[0] == notes[1]
        assert len(set(notes[0])) == len(notes[0]) == won
        assert left["next-row-id"] == left["last-sequence-number"] == won

    def test_kill_9_in_the_middle_of_commits(self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable], opener: str) -> None:
        acknowledged = 0
        delays = random.Random(5)
        for _ in range(5):
            writer = child(opener, WRITER)
            assert writer.stdout is not None
            ready = writer.stdout.readline()
            assert ready, writer.communicate()
            time.sleep(delays.uniform(0.0, 0.05))
            os.kill(writer.pid, signal.SIGKILL)
            out, _ = writer.communicate(timeout=60)
            acknowledged = max([acknowledged, *(int(line) for line in (ready + out).splitlines(keepends=True) if line.endswith("\n"))])
            left, right = catalog.load(LEFT), catalog.load(RIGHT)
            assert left.metadata["last-sequence-number"] == right.metadata["last-sequence-number"] >= acknowledged
            for table in (left, right):
                assert self.stored(table.metadata_location) == table.metadata
                for entry in table.metadata["metadata-log"]:
                    assert self.stored(entry["metadata-file"])["table-uuid"] == table.metadata["table-uuid"]
            # And the next writer can go on at once.
            catalog.commit([next_snapshot(left), next_snapshot(right)])

    def stored(self, location: str) -> Json:
        loaded = orjson.loads(LocalStorage().read(location))
        assert isinstance(loaded, dict)
        return loaded


RACER = """
    import json
    number, rounds = sys.argv[1], int(sys.argv[2])
    won = 0
    for turn in range(10_000):
        left, right = catalog.load(LEFT), catalog.load(RIGHT)
        if left.metadata["last-sequence-number"] >= rounds:
            break
        note = f"{number}.{turn}"
        changes = [next_snapshot(left, note=note), next_snapshot(right, note=note)]
        try:
            catalog.commit(changes if number == "0" else changes[::-1])
            won += 1
        except CommitConflict:
            pass
    print(json.dumps({"won": won}))
"""

WRITER = """
    while True:
        left, right = catalog.load(LEFT), catalog.load(RIGHT)
        done = catalog.commit([next_snapshot(left), next_snapshot(right)])
        print(done[0].metadata["last-sequence-number"], flush=True)
"""


def child(opener: str, program: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process with ``catalog`` open and this module's names."""
    start = "import sys\nfrom tests.conformance.test_catalog import *\n" + opener + "\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


class TestSqliteOnDisk(CatalogConformance):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> str:
        return f"catalog = SqlCatalog.sqlite({str(tmp_path / 'c.db')!r}, {str(tmp_path / 'w')!r}, LocalStorage(), WallClock(), CHANCE)"

    @pytest.fixture
    def catalog(self, tmp_path: Path) -> Iterator[Catalog]:
        catalog = SqlCatalog.sqlite(str(tmp_path / "c.db"), str(tmp_path / "w"), LocalStorage(), WallClock(), CHANCE)
        yield catalog
        catalog.close()

    def test_another_process_sees_each_commit(self, catalog: Catalog, pair: tuple[LoadedTable, LoadedTable], tmp_path: Path) -> None:
        other = SqlCatalog.sqlite(str(tmp_path / "c.db"), str(tmp_path / "w"), LocalStorage(), WallClock(), CHANCE)
        for writer, reader in itertools.islice(itertools.cycle([(catalog, other), (other, catalog)]), 6):
            done = writer.commit([next_snapshot(writer.load(LEFT))])
            assert reader.load(LEFT) == done[0]
        other.close()
