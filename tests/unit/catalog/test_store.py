"""SqlCatalog where the disk, the database or the machine does not play along."""

import errno
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from icelake.catalog import sqlite, store
from icelake.catalog.sqlite import Sqlite
from icelake.catalog.store import SqlCatalog
from icelake.errors import CommitConflict, CommitUnknown, Corrupt, NoSuchTable, Refused, Unreachable
from icelake.model.relation import TableId
from icelake.ports import Json, TableChange
from icelake.storage.local import LocalStorage

SCHEMA: Json = {"type": "struct", "fields": [{"id": 1, "name": "id", "required": True, "type": "long"}]}
ORDERS = TableId("shop", "orders")
TOUCH: list[Json] = [{"action": "set-properties", "updates": {"touched": "yes"}}]


class SteppingClock:
    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class RealChance:
    def snapshot_id(self) -> int:
        return uuid.uuid4().int >> 66

    def uuid(self) -> str:
        return str(uuid.uuid4())


class FailingStorage(LocalStorage):
    """Real files; ``fail`` names the call that does not work."""

    fail = ""

    def put(self, location: str, data: bytes) -> None:
        if self.fail == "write":
            raise Refused("DISK_FULL", "no space")
        if self.fail == "put":
            raise Unreachable("STORAGE_UNREACHABLE", "not now")
        super().put(location, data)

    def delete(self, location: str) -> None:
        if self.fail == "delete":
            raise Unreachable("STORAGE_UNREACHABLE", "not now")
        super().delete(location)


@pytest.fixture
def storage() -> FailingStorage:
    return FailingStorage()


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock()


@pytest.fixture
def catalog(tmp_path: Path, storage: FailingStorage, clock: SteppingClock) -> Iterator[SqlCatalog]:
    catalog = open_catalog(tmp_path, storage, clock)
    yield catalog
    catalog.close()


def open_catalog(tmp_path: Path, storage: FailingStorage, clock: SteppingClock) -> SqlCatalog:
    return SqlCatalog.sqlite(str(tmp_path / "catalog.db"), str(tmp_path / "w"), storage, clock, RealChance())


def database_of(catalog: SqlCatalog) -> Sqlite:
    assert isinstance(catalog._database, Sqlite)
    return catalog._database


def writer(catalog: SqlCatalog) -> sqlite3.Connection:
    found = database_of(catalog).writer
    assert found is not None
    return found


def files(tmp_path: Path) -> set[str]:
    return {str(path) for path in tmp_path.rglob("*.metadata.json")}


def test_files_are_there_before_the_pointer_moves(catalog: SqlCatalog, tmp_path: Path) -> None:
    before = catalog.create(ORDERS, SCHEMA, {})
    seen: list[str] = []
    writer(catalog).set_trace_callback(lambda statement: seen.append(f"{statement.split()[0]} with {len(files(tmp_path))} files"))
    after = catalog.commit([TableChange(ORDERS, [], TOUCH)])[0]
    done = ["BEGIN", "SAVEPOINT", "SELECT", "UPDATE", "RELEASE", "COMMIT"]
    assert seen == [f"{statement} with 2 files" for statement in done]
    assert files(tmp_path) == {before.metadata_location, after.metadata_location}


@pytest.mark.parametrize("left", [None, 0, 100, "zeros"])
def test_what_a_power_cut_took_of_a_metadata_file_is_written_anew(
    storage: FailingStorage, clock: SteppingClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int | str | None
) -> None:
    """Files are not synced. On a machine that was started anew each is looked at, once."""
    catalog = open_catalog(tmp_path, storage, clock)
    catalog.create(ORDERS, SCHEMA, {})
    (loaded,) = catalog.commit([TableChange(ORDERS, [], TOUCH)])
    untouched = catalog.create(TableId("shop", "other"), SCHEMA, {})
    file = Path(loaded.metadata_location)
    whole = file.read_bytes()
    file.unlink()
    if left is not None:
        file.write_bytes(whole[:50] + bytes(len(whole) - 50) if left == "zeros" else whole[: int(left)])
    catalog.close()
    torn = None if left is None else file.read_bytes()
    assert open_catalog(tmp_path, storage, clock).load(ORDERS) == loaded
    assert (None if not file.exists() else file.read_bytes()) == torn  # the machine is the same
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    when = os.stat(untouched.metadata_location).st_mtime_ns
    for _ in range(2):
        again = open_catalog(tmp_path, storage, clock)
        assert again.load_whole(ORDERS) == loaded
        assert file.read_bytes() == whole
        assert os.stat(untouched.metadata_location).st_mtime_ns == when
        again.commit([TableChange(ORDERS, [], [{"action": "remove-properties", "removals": ["none"]}])])
        loaded, file = again.load(ORDERS), Path(again.load(ORDERS).metadata_location)
        whole = file.read_bytes()
        again.close()


def test_a_registered_file_is_nobody_elses_to_write(
    storage: FailingStorage, clock: SteppingClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_catalog(tmp_path, storage, clock)
    metadata = catalog.create(ORDERS, SCHEMA, {})
    named = tmp_path / "w" / "elsewhere" / "v3.metadata.json"
    named.parent.mkdir()
    named.write_bytes(Path(metadata.metadata_location).read_bytes())
    catalog.drop(ORDERS)
    catalog.register(ORDERS, str(named))
    catalog.close()
    named.write_bytes(b"torn")
    monkeypatch.setattr(store, "boot_id", lambda: "another")
    assert list(open_catalog(tmp_path, storage, clock).tables()) == [ORDERS]
    assert named.read_bytes() == b"torn"


@pytest.mark.parametrize(("fail", "error"), [("write", Refused), ("put", Unreachable)])
def test_a_file_that_cannot_be_written_fails_the_commit_and_leaves_nothing(
    catalog: SqlCatalog, storage: FailingStorage, tmp_path: Path, fail: str, error: type[Exception]
) -> None:
    catalog.create(ORDERS, SCHEMA, {})
    before, there = catalog.load(ORDERS), files(tmp_path)
    storage.fail = fail
    with pytest.raises(error):
        catalog.commit([TableChange(ORDERS, [], TOUCH)])
    with pytest.raises(error):
        catalog.create(TableId("shop", "other"), SCHEMA, {})
    storage.fail = ""
    assert files(tmp_path) == there
    assert catalog.load(ORDERS) == before
    assert list(catalog.tables()) == [ORDERS]
    catalog.commit([TableChange(ORDERS, [], TOUCH)])


def test_old_metadata_files_go_and_a_failing_delete_does_not_matter(catalog: SqlCatalog, storage: FailingStorage, tmp_path: Path) -> None:
    delete = {"write.metadata.delete-after-commit.enabled": "true"}
    catalog.create(ORDERS, SCHEMA, {"write.metadata.previous-versions-max": "3", **delete})
    for _ in range(10):
        catalog.commit([TableChange(ORDERS, [], TOUCH)])
    loaded = catalog.load(ORDERS)
    log = {entry["metadata-file"] for entry in loaded.metadata["metadata-log"]}
    assert files(tmp_path) == log | {loaded.metadata_location}
    assert len(log) == 3
    storage.fail = "delete"
    catalog.commit([TableChange(ORDERS, [], TOUCH)])
    assert len(files(tmp_path)) == 5


def test_a_busy_database_is_unreachable_and_nothing_is_done(catalog: SqlCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.01)
    before = catalog.create(ORDERS, SCHEMA, {})
    other = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unreachable) as caught:
        catalog.commit([TableChange(ORDERS, [], TOUCH)])
    assert caught.value.code == "CATALOG_BUSY"
    assert catalog.load(ORDERS) == before  # reading does not wait for a writer
    other.execute("ROLLBACK")
    other.close()
    catalog.commit([TableChange(ORDERS, [], TOUCH)])


class FailingConnection:
    """A connection on which one statement fails, before or after it was really done."""

    def __init__(self, real: sqlite3.Connection, statement: str, code: int, done: bool) -> None:
        self.real, self.statement, self.code, self.done = real, statement, code, done

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement.startswith(self.statement):
            if self.done:
                self.real.execute(statement, *arguments)
            error = sqlite3.OperationalError("planted")
            error.sqlite_errorcode = self.code
            raise error
        return self.real.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def plant(catalog: SqlCatalog, statement: str, code: int, done: bool = False) -> None:
    real = writer(catalog)
    database_of(catalog).writer = FailingConnection(real, statement, code, done)  # type: ignore[assignment]


@pytest.mark.parametrize("done", [True, False])
def test_a_failing_commit_statement_is_an_unknown_outcome_and_its_files_stay(catalog: SqlCatalog, tmp_path: Path, done: bool) -> None:
    before = catalog.create(ORDERS, SCHEMA, {})
    change = TableChange(ORDERS, [], TOUCH)
    plant(catalog, "COMMIT", sqlite3.SQLITE_IOERR, done)
    with pytest.raises(CommitUnknown, match="COMMIT_UNKNOWN"):
        catalog.commit([change])
    assert len(files(tmp_path)) == 2
    loaded = catalog.load(ORDERS)
    assert ("touched" in loaded.metadata["properties"]) is done
    assert (loaded != before) is done


@pytest.mark.parametrize(
    ("code", "error", "name"),
    [
        (sqlite3.SQLITE_FULL, Refused, "DISK_FULL"),
        (sqlite3.SQLITE_CORRUPT, Corrupt, "CATALOG_CORRUPT"),
        (sqlite3.SQLITE_LOCKED, Unreachable, "CATALOG_BUSY"),
        (sqlite3.SQLITE_IOERR | 3 << 8, Refused, "DISK_ERROR"),
        (sqlite3.SQLITE_READONLY, Refused, "CATALOG_DENIED"),
    ],
)
def test_an_error_before_commit_means_nothing_was_done(
    catalog: SqlCatalog, tmp_path: Path, code: int, error: type[Refused], name: str
) -> None:
    before = catalog.create(ORDERS, SCHEMA, {})
    plant(catalog, "UPDATE", code)
    with pytest.raises(error) as caught:
        catalog.commit([TableChange(ORDERS, [], TOUCH)])
    assert caught.value.code == name
    assert files(tmp_path) == {before.metadata_location}
    assert catalog.load(ORDERS) == before


def test_a_file_that_is_no_database_is_corrupt(catalog: SqlCatalog, tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"not a database, surely" * 100)
    with pytest.raises(Corrupt):
        catalog.tables()
    with pytest.raises(Corrupt):
        catalog.create(ORDERS, SCHEMA, {})
    assert files(tmp_path) == set()


def test_a_catalog_that_lost_a_table_of_its_own_is_refused(catalog: SqlCatalog, tmp_path: Path) -> None:
    catalog.create(ORDERS, SCHEMA, {})
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as somebody:
        somebody.execute("DROP TABLE tables")
    with pytest.raises(Refused, match="CATALOG_ERROR"):
        catalog.load(ORDERS)


def test_a_newer_catalog_is_refused(catalog: SqlCatalog, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "catalog.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Refused) as caught:
        catalog.tables()
    assert caught.value.code == "CATALOG_NEWER"


def test_a_folder_that_is_not_there_is_refused(storage: FailingStorage, clock: SteppingClock, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        SqlCatalog.sqlite(str(tmp_path / "no" / "c.db"), "/w", storage, clock, RealChance()).tables()
    assert caught.value.code == "CATALOG_DENIED"


def test_leases_end_by_themselves(catalog: SqlCatalog, clock: SteppingClock, tmp_path: Path, storage: FailingStorage) -> None:
    made = catalog.create(ORDERS, SCHEMA, {})
    catalog.commit([TableChange(ORDERS, [], snapshots(made.metadata, 1, 2))])
    lease = catalog.lease("query, pid 7", {ORDERS: 1}, 60)
    remove = TableChange(ORDERS, [], [{"action": "remove-snapshots", "snapshot-ids": [1]}])
    # Another process honours it.
    other = open_catalog(tmp_path, storage, clock)
    with pytest.raises(CommitConflict, match=r"query, pid 7 holds a lease on it for another 60 s"):
        other.commit([remove])
    clock.time += 61
    assert list(catalog.leases()) == []
    other.commit([remove])
    with pytest.raises(CommitConflict):
        catalog.lease("query, pid 7", {ORDERS: 1}, 60)
    catalog.release(lease.id)
    other.close()


def snapshots(metadata: Json, *idents: int) -> list[Json]:
    updates: list[Json] = []
    for number, ident in enumerate(idents, 1):
        snapshot = {
            "snapshot-id": ident,
            "sequence-number": number,
            "timestamp-ms": metadata["last-updated-ms"],
            "manifest-list": "/m",
            "summary": {"operation": "append"},
            "first-row-id": 0,
            "added-rows": 0,
        }
        updates.append({"action": "add-snapshot", "snapshot": snapshot})
    return [*updates, {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": idents[-1]}]


def test_an_unchanged_table_is_not_parsed_again(catalog: SqlCatalog) -> None:
    catalog.create(ORDERS, SCHEMA, {})
    assert catalog.load(ORDERS).metadata is catalog.load(ORDERS).metadata
    with pytest.raises(NoSuchTable):
        catalog.load(TableId("shop", "none"))


def test_a_catalog_in_memory(tmp_path: Path, storage: FailingStorage, clock: SteppingClock) -> None:
    catalog = SqlCatalog.sqlite(":memory:", str(tmp_path), storage, clock, RealChance())
    made = catalog.create(ORDERS, SCHEMA, {})
    done = catalog.commit([TableChange(ORDERS, [], snapshots(made.metadata, 5))])
    assert catalog.load(ORDERS) == done[0]


def test_the_real_disk_full_message(storage: FailingStorage, clock: SteppingClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_catalog(tmp_path, storage, clock)
    before = catalog.create(ORDERS, SCHEMA, {})

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(Refused, match="DISK_FULL"):
            catalog.commit([TableChange(ORDERS, [], TOUCH)])
    assert catalog.load(ORDERS) == before
    catalog.close()


def test_processes_that_make_the_same_catalog_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from icelake.catalog.store import SqlCatalog; from icelake.observe.clock import SystemChance, SystemClock;"
        "from icelake.storage.local import LocalStorage;"
        f"catalog = SqlCatalog.sqlite({str(tmp_path / 'c.db')!r}, '/w', LocalStorage(), SystemClock(), SystemChance());"
        "print('ready', flush=True); sys.stdin.readline(); print(list(catalog.tables()))"
    )
    makers = [subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("go\n")
        maker.stdin.flush()
    assert [maker.communicate(timeout=60)[0] for maker in makers] == ["[]\n"] * 4
