"""The key index against a dict: batches, crashes, torn logs, foreign commits; and that nothing damaged is ever believed."""

import random
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from icelake.errors import Corrupt, Refused, Unreachable
from icelake.tables import key_index
from icelake.tables.key_index import FolderFiles, Identity, KeyIndex, Reconciled
from icelake.tables.keys import Hashes, hash_keys

SEED = (1, 2)


def batch(keys: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"k": pa.array([f"key {key}" for key in keys])})


def hashes(keys: list[int], seed: tuple[int, int] = SEED) -> Hashes:
    return hash_keys(batch(keys), seed)


class Memory:
    """``IndexFiles`` in a dict; ``fail`` makes the next write fail half way."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.fail = False
        self.writes = 0

    def read(self, name: str) -> bytes | None:
        return self.data.get(name)

    def replace(self, name: str, data: bytes) -> None:
        self._write()
        self.data[name] = data

    def append(self, name: str, data: bytes) -> None:
        if self.fail:
            self.data[name] += data[: len(data) // 2]
        self._write()
        self.data[name] += data

    def _write(self) -> None:
        if self.fail:
            raise Refused("DISK_FULL", "planted")
        self.writes += 1


@dataclass
class FakeFile:
    path: str
    rows: dict[int, tuple[int, int]]
    """position -> (key, row id)"""
    vector: int = 0

    @property
    def identity(self) -> Identity:
        return self.path, f"{self.path}.dv{self.vector}" if self.vector else None


@dataclass
class FakeTable:
    """A table as a process sees it: the numbers of its files are its own, from 1 on."""

    files: dict[int, FakeFile] = field(default_factory=dict)
    snapshot_id: int | None = None
    read: list[int] = field(default_factory=list)

    def read_keys(self, no: int, /) -> tuple[pa.RecordBatch, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        self.read.append(no)
        rows = self.files[no].rows
        return (
            batch([key for key, _ in rows.values()]),
            np.array(list(rows), np.int64),
            np.array([row_id for _, row_id in rows.values()], np.int64),
        )

    def identities(self) -> dict[int, Identity]:
        return {no: file.identity for no, file in self.files.items()}

    def expected(self) -> dict[int, tuple[int, int, int]]:
        return {key: (no, position, row_id) for no, file in self.files.items() for position, (key, row_id) in file.rows.items()}

    def add(self, no: int, rows: Mapping[int, tuple[int, int]]) -> None:
        self.files[no] = FakeFile(f"/t/data/{random.Random(no).random()}-{no}.parquet", dict(rows))

    def kill(self, keys: set[int]) -> None:
        for no, file in list(self.files.items()):
            left = {position: row for position, row in file.rows.items() if row[0] not in keys}
            if not left:
                del self.files[no]
            elif len(left) < len(file.rows):
                self.files[no] = FakeFile(file.path, left, file.vector + 1)


def found(index: KeyIndex, keys: list[int]) -> dict[int, tuple[int, int, int]]:
    file_no, position, row_id = index.lookup(hashes(keys, index.seed))
    rows = zip(keys, file_no.tolist(), position.tolist(), row_id.tolist(), strict=True)
    return {key: (no, at, ident) for key, no, at, ident in rows if no >= 0}


def open_index(files: Memory | FolderFiles | None, table: FakeTable) -> tuple[KeyIndex, Reconciled]:
    index = KeyIndex.load(files, "uuid", seed=SEED)
    return index, index.reconcile(table)


def put(index: KeyIndex, no: int, rows: Mapping[int, tuple[int, int]]) -> None:
    index.put(hashes([key for key, _ in rows.values()], index.seed), no, list(rows), [row_id for _, row_id in rows.values()])


def grown(files: Memory | FolderFiles | None, commits: int = 3, keys: int = 10) -> tuple[KeyIndex, FakeTable]:
    table = FakeTable()
    index, _ = open_index(files, table)
    for number in range(1, commits + 1):
        rows = {position: ((number - 1) * keys + position, 1000 + position) for position in range(keys)}
        table.add(number, rows)
        put(index, number, rows)
        table.snapshot_id = number
        index.commit(table.snapshot_id, table.identities())
    return index, table


def restarted(table: FakeTable, shift: int = 100) -> FakeTable:
    """The same table in another process: other numbers."""
    return FakeTable({no + shift: file for no, file in table.files.items()}, table.snapshot_id)


class Machine(RuleBasedStateMachine):
    """Random batches, ends of the process and changes by others. The model is the fake table itself."""

    @initialize(small=st.booleans(), log=st.sampled_from([0, 2000, 1 << 20]))
    def begin(self, small: bool, log: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(key_index, "_LOG_BYTES", log)
        if small:
            self.patch.setattr(key_index, "_PART_ROWS", 7)
            self.patch.setattr(key_index, "_REDO_BYTES", 1500)
            self.patch.setattr(key_index, "_ASIDE_BYTES", 100)
        self.store = Memory()
        self.number = 0
        self.snapshots = 0
        self.torn = False
        self.committed = FakeTable()
        self.index, _ = open_index(self.store, self.committed)
        self.running = self.copy(self.committed)

    def teardown(self) -> None:
        self.patch.undo()

    @staticmethod
    def copy(table: FakeTable) -> FakeTable:
        return FakeTable({no: FakeFile(f.path, dict(f.rows), f.vector) for no, f in table.files.items()}, table.snapshot_id)

    def append(self, table: FakeTable, keys: set[int], row_ids: int) -> tuple[int, dict[int, tuple[int, int]]]:
        self.number += 1
        rows = {position: (key, row_ids + position if row_ids else -1) for position, key in enumerate(sorted(keys))}
        table.kill(keys)
        table.add(self.number, rows)
        return self.number, rows

    @rule(keys=st.sets(st.integers(0, 60), min_size=1), row_ids=st.sampled_from([0, 500]))
    def put_rows(self, keys: set[int], row_ids: int) -> None:
        put(self.index, *self.append(self.running, keys, row_ids))

    @rule(keys=st.sets(st.integers(0, 60), min_size=1))
    def remove_rows(self, keys: set[int]) -> None:
        self.running.kill(keys)
        self.index.remove(hashes(sorted(keys), self.index.seed))

    @rule()
    def truncate(self) -> None:
        self.running.files.clear()
        self.index.clear()

    @rule()
    def commit(self) -> None:
        """Also mends what a full disk has torn."""
        self.snapshots += 1
        self.torn = False
        self.running.snapshot_id = self.snapshots
        self.committed = self.copy(self.running)
        self.index.commit(self.snapshots, self.committed.identities())

    @rule()
    def rollback(self) -> None:
        self.running = self.copy(self.committed)
        self.index.rollback()

    @rule()
    def commit_with_a_full_disk(self) -> None:
        self.snapshots += 1
        self.running.snapshot_id = self.snapshots
        self.committed = self.copy(self.running)
        self.store.fail = True
        try:
            self.index.commit(self.snapshots, self.committed.identities())
        except Refused:
            self.torn = True
        finally:
            self.store.fail = False

    @rule(damage=st.sampled_from(["no", "no", "torn", "flip", "lost", "zeros"]), seed=st.integers(0, 10**6))
    def restart(self, damage: str, seed: int) -> None:
        rng = random.Random(seed)
        if damage != "no" and self.store.data:
            name = rng.choice(sorted(self.store.data))
            data = self.store.data[name]
            at = rng.randrange(len(data)) if data else 0
            if damage == "torn":
                self.store.data[name] = data[:at]
            elif damage == "zeros":
                self.store.data[name] = data[:at] + bytes(len(data) - at)
            elif damage == "lost":
                del self.store.data[name]
            elif data:
                self.store.data[name] = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        self.renumber(rng)
        self.index, done = open_index(self.store, self.committed)
        assert len(self.committed.read) == done.files_read
        assert damage != "no" or self.torn or done.reason == ""
        self.torn = False

    @rule(keys=st.sets(st.integers(0, 60), min_size=1), more=st.sets(st.integers(0, 60)), alive=st.booleans())
    def foreign_commit(self, keys: set[int], more: set[int], alive: bool) -> None:
        self.index.rollback()
        self.append(self.committed, more, 0)
        self.committed.kill(keys)
        self.snapshots += 1
        self.committed.snapshot_id = self.snapshots
        if not alive:
            self.renumber(random.Random(self.snapshots))
            self.index = KeyIndex.load(self.store, "uuid")
        self.index.reconcile(self.committed)
        self.running = self.copy(self.committed)

    @precondition(lambda self: len(self.committed.files) >= 1)
    @rule()
    def compaction(self) -> None:
        self.rollback()
        keys = {key for file in self.running.files.values() for key, _ in file.rows.values()}
        put(self.index, *self.append(self.running, keys, 700))
        self.commit()

    def renumber(self, rng: random.Random) -> None:
        """Another process gives the files other numbers."""
        files = list(self.committed.files.values())
        rng.shuffle(files)
        start = rng.choice([1, 4])
        self.committed.files = dict(enumerate(files, start))
        self.committed.read = []
        self.number = max(self.number, start + len(files))
        self.running = self.copy(self.committed)

    @invariant()
    def same_as_the_model(self) -> None:
        if hasattr(self, "index"):
            expected = self.running.expected()
            assert found(self.index, list(range(61))) == expected
            assert len(self.index) == len(expected)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestMachine = Machine.TestCase


def test_a_restart_reads_nothing_again() -> None:
    store = Memory()
    _, table = grown(store)
    after = restarted(table)
    index, done = open_index(store, after)
    assert done == Reconciled(False, 0, "")
    assert found(index, list(range(31))) == after.expected()
    assert index.snapshot_id == 3
    assert index.files == after.identities()
    writes = store.writes
    open_index(store, restarted(table, 7))
    assert store.writes == writes


def test_it_must_be_reconciled_before_use() -> None:
    index = KeyIndex.load(Memory(), "uuid")
    with pytest.raises(Corrupt) as caught:
        index.lookup(hashes([1]))
    assert caught.value.code == "KEY_INDEX_STALE"


def test_only_what_changed_is_read_after_a_foreign_commit() -> None:
    index, table = grown(Memory())
    table.kill({5})
    table.add(9, {0: (77, -1)})
    table.snapshot_id = 50
    assert index.reconcile(table) == Reconciled(False, 2, "")
    assert sorted(table.read) == [1, 9]
    assert found(index, list(range(100))) == table.expected()


def test_two_live_rows_for_one_key_are_refused() -> None:
    index, table = grown(Memory())
    table.add(9, {3: (12, -1)})
    with pytest.raises(Corrupt) as caught:
        index.reconcile(table)
    assert caught.value.code == "KEY_TWICE"
    assert "key 12" in caught.value.what
    assert table.files[9].path in caught.value.why
    assert table.files[2].path in caught.value.why
    with pytest.raises(Corrupt):
        index.lookup(hashes([1]))
    del table.files[9]
    assert index.reconcile(table).rebuilt
    assert found(index, list(range(100))) == table.expected()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data.update(base=data["base"][:-1]), "the base is damaged"),
        (lambda data: data.update(base=b"x" + data["base"]), "the base is damaged"),
        (lambda data: data.pop("part-1-0"), "part-1-0 of the base is damaged or missing"),
        (lambda data: data.update({"part-1-0": data["part-1-0"][:-1] + b"\xff"}), "part-1-0 of the base is damaged or missing"),
    ],
)
def test_a_damaged_base_is_reported_and_rebuilt(damage: object, reason: str) -> None:
    store = Memory()
    index, table = grown(store)
    index.checkpoint()
    if "part-1-0" not in store.data or not store.data["part-1-0"]:
        index.checkpoint()
    assert callable(damage)
    damage(store.data)
    again, done = open_index(store, restarted(table))
    assert done == Reconciled(True, 3, reason)
    assert len(again) == 30
    assert open_index(store, table)[1] == Reconciled(False, 0, "")


def test_the_index_of_another_table_is_not_believed() -> None:
    store = Memory()
    _, table = grown(store)
    index = KeyIndex.load(store, "another")
    done = index.reconcile(table)
    assert (done.rebuilt, done.files_read) == (True, 3)
    assert "another table" in done.reason


@pytest.mark.parametrize(
    "change",
    [
        {"seed": ["-1", "2"]},
        {"seed": [f"{1 << 64:x}", "2"]},
        {"seed": ["1"]},
        {"keys": 0},
        {"keys": 1 << 60},
        {"keys": 1e300},
        {"side": "../1"},
        {"side": 7},
        {"parts": [["../../etc/passwd", 2, 0]]},
        {"files": []},
        {"files": [["/a", None], ["/a", None]]},
        {"snapshot": [1]},
        {"snapshot": "x"},
    ],
)
def test_a_base_whose_checksum_is_right_and_content_wrong_is_rebuilt(change: dict[str, object]) -> None:
    files, table = Memory(), FakeTable()
    table.add(1, {0: (1, 10), 1: (2, 11)})
    KeyIndex.load(files, "u").reconcile(table)
    base = orjson.loads(files.data["base"][len(key_index._BASE_MAGIC) + 8 :])
    block = orjson.dumps({**base, **change})
    files.data["base"] = key_index._BASE_MAGIC + struct.pack("<II", len(block), zlib.crc32(block)) + block
    index = KeyIndex.load(files, "u")
    reconciled = index.reconcile(table)
    assert reconciled.rebuilt
    assert reconciled.reason
    assert found(index, [1, 2, 3]) == table.expected()
    # And what it wrote is believed again.
    again = KeyIndex.load(files, "u")
    assert again.reconcile(table) == Reconciled(False, 0)
    assert found(again, [1, 2]) == table.expected()


@pytest.mark.parametrize("operations", [[[0, 5]], [[0, -1]], [[1, 1 << 60]], [[0, 1], [0, 1]]])
def test_a_record_of_the_log_that_says_more_than_it_holds_is_not_believed(operations: list[list[int]]) -> None:
    files, table = Memory(), FakeTable()
    table.add(1, {0: (1, 10)})
    index = KeyIndex.load(files, "u")
    index.reconcile(table)
    name = next(name for name in files.data if name.startswith("log-") and files.data[name])
    head = {"before": None, "after": 2, "keys": 1, "gone": [], "changed": [], "named": [[1, table.files[1].path]], "dropped": False}
    text = orjson.dumps({**head, "operations": operations})
    block = struct.pack("<I", len(text)) + text + bytes(32)
    files.data[name] += struct.pack("<II", len(block), zlib.crc32(block)) + block
    again = KeyIndex.load(files, "u")
    assert again.reconcile(table).reason
    assert found(again, [1, 2]) == table.expected()


def test_a_torn_log_is_believed_up_to_the_last_whole_record() -> None:
    store = Memory()
    _, table = grown(store)
    log = next(name for name in store.data if name.startswith("log") and store.data[name])
    whole = store.data[log]
    for cut in range(len(whole)):
        store.data[log] = whole[:cut]
        copy = Memory()
        copy.data = dict(store.data)
        index, done = open_index(copy, restarted(table))
        assert len(index) == 30
        if cut < 32:
            assert "missing, or of another base" in done.reason
        assert done.files_read >= 1
        assert open_index(copy, table)[1] == Reconciled(False, 0, "")


def test_the_seed_is_kept_and_random() -> None:
    store = Memory()
    table = FakeTable()
    first = KeyIndex.load(store, "uuid")
    first.reconcile(table)
    assert KeyIndex.load(store, "uuid").seed == first.seed
    assert KeyIndex.load(None, "uuid").seed != first.seed


def test_the_log_does_not_outgrow_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "_LOG_BYTES", 5_000)
    store = Memory()
    sizes = []
    table = FakeTable()
    index, _ = open_index(store, table)
    for number in range(1, 61):
        rows = {position: (position, -1) for position in range(10)}
        table.kill(set(range(10)))
        table.add(number, rows)
        put(index, number, rows)
        table.snapshot_id = number
        index.commit(table.snapshot_id, table.identities())
        sizes.append(sum(map(len, store.data.values())))
    assert max(sizes) < 7_000
    assert open_index(store, restarted(table))[1] == Reconciled(False, 0, "")


def test_a_very_large_batch_is_given_up_by_reading_the_table_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "_UNDO_BYTES", 1_000)
    monkeypatch.setattr(key_index, "_REDO_BYTES", 1_000)
    store = Memory()
    index, table = grown(store)
    put(index, 50, {position: (position, -1) for position in range(100)})
    index.rollback()
    with pytest.raises(Corrupt):
        index.lookup(hashes([1]))
    done = index.reconcile(table)
    assert (done.rebuilt, done.reason) == (True, "a very large batch was given up")
    assert found(index, list(range(200))) == table.expected()
    rows = {position: (position + 500, -1) for position in range(100)}
    put(index, 60, rows)
    table.add(60, rows)
    index.commit(9, table.identities())
    assert found(open_index(store, table)[0], list(range(700))) == table.expected()


def test_a_row_of_a_file_that_is_not_live_never_reaches_the_disk() -> None:
    index, table = grown(Memory())
    put(index, 40, {0: (1, -1)})
    index.commit(9, table.identities())
    with pytest.raises(Corrupt) as caught:
        index.checkpoint()
    assert caught.value.code == "KEY_INDEX_CORRUPT"


def test_positions_must_fit() -> None:
    index, _ = grown(None)
    with pytest.raises(Refused, match="FILE_TOO_LONG"):
        index.put(hashes([1]), 1, 1 << 32, -1)
    index.put(hashes([1]), 2**31 - 1, 0xFFFF_FFFE, 2**62)
    assert found(index, [1]) == {1: (2**31 - 1, 0xFFFF_FFFE, 2**62)}


def test_many_integer_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "_SCRATCH_BYTES", 1 << 20)
    monkeypatch.setattr(key_index, "_COPIED_ROWS", 10_000)
    monkeypatch.setattr(key_index, "_ASIDE_BYTES", 1 << 20)
    index = KeyIndex.load(FolderFiles(tmp_path / "i"), "uuid", scratch=str(tmp_path))
    index.reconcile(FakeTable())
    keys = pa.RecordBatch.from_pydict({"k": pa.array(np.random.default_rng(1).permutation(200_000))})
    hashed = hash_keys(keys, index.seed)
    for part in range(0, 200_000, 20_000):
        index.put(hashed[part : part + 20_000], 3, np.arange(part, part + 20_000), -1)
    assert (index.lookup(hashed)[1] == np.arange(200_000)).all()
    index.remove(hashed[::2])
    file_no, position, _ = index.lookup(hashed)
    assert (file_no[::2] == -1).all()
    assert (file_no[1::2] == 3).all()
    assert (position[1::2] == np.arange(200_000)[1::2]).all()
    index.rollback()
    assert len(index) == 0
    assert (index.lookup(hashed)[0] == -1).all()


def test_room_for_what_is_expected_and_none_for_what_only_moves() -> None:
    index = KeyIndex.load(None, "uuid")
    index.reconcile(FakeTable())
    index.expect(10_000)
    size = len(index._rows)
    assert size > 10_000
    hashed = hashes(list(range(10_000)), index.seed)
    assert index.put(hashed, 1, np.arange(10_000), -1) == 10_000
    # The room left is too small for as many again.
    assert index.put(hashed, 2, np.arange(10_000), -1) == 0
    assert len(index._rows) == size
    index.expect(0)
    index.rollback()
    assert len(index) == 0
    assert (index.lookup(hashed)[0] == -1).all()
    assert index.put(hashed[:7], 1, np.arange(7), -1) == 7


def test_what_a_growing_table_left_takes_no_memory() -> None:
    rows = key_index._new_table(1 << 20, None)
    rows[:] = 7
    key_index._let_go(rows[1000:900_000])
    assert not rows[2000:890_000].any()
    assert rows[:1000].all()
    assert rows[900_000:].all()


def test_files_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    index, table = grown(FolderFiles(folder))
    assert open_index(FolderFiles(folder), restarted(table))[1] == Reconciled(False, 0, "")
    index.checkpoint()
    assert sorted(path.name for path in folder.iterdir()) in (["base", "log-0", "part-0-0"], ["base", "log-1", "part-1-0"])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unreachable):
        FolderFiles(tmp_path / "file").replace("x", b"1")
