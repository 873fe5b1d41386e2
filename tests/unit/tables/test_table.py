import contextlib
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from icelake.errors import Corrupt, ForeignChange, IcelakeError
from icelake.model.layout import Layout, PartitionField, SortField
from icelake.model.marker import Marker
from icelake.ports import Json, LoadedTable
from icelake.tables import data_files
from icelake.tables import table as table_module
from icelake.tables.manifests import DATA, DELETES, decode_manifest, decode_manifest_list
from icelake.tables.table import Placed, Table
from tests.unit.tables.mirror import SMALL, MemoryStorage, Mirror, batch, relation

MARKER = Marker(source="s", system_id="7", timeline=1, slot="x", lsn=0x16B3748, attempt="a")


def filled(count: int = 10, *, version: int = 3) -> Mirror:
    mirror = Mirror(SMALL, layout=Layout(format_version=version))
    mirror.commit([(key, f"v{key}") for key in range(count)])
    return mirror


def only(placed: Placed) -> int:
    """The one file all rows are in, in their order."""
    first = int(placed.positions[0])
    assert placed.positions.tolist() == list(range(first, first + len(placed.positions)))
    (no,) = set(placed.file_no.tolist())
    return int(no)


def both(*pairs: tuple[int, int]) -> tuple[Any, Any]:
    return np.array([pair[0] for pair in pairs], np.int32), np.array([pair[1] for pair in pairs], np.int64)


# ------------------------------------------------------------------------------------------------------------- lifecycle


def test_a_new_table_has_no_snapshot_and_no_rows() -> None:
    mirror = Mirror(SMALL)
    assert mirror.table.snapshot_id is None
    assert mirror.table.marker() is None
    assert mirror.table.relation == SMALL
    assert not mirror.table.files
    assert mirror.table.delta().is_empty


def test_rows_come_back_with_their_row_ids() -> None:
    mirror = filled()
    mirror.commit([(3, "new"), (100, "other")], delete=[4])
    mirror.check()
    assert mirror.ids[3] == 3
    summary = mirror.head()["summary"]
    assert summary["operation"] == "overwrite"
    assert (summary["added-records"], summary["added-dvs"], summary["added-position-deletes"]) == ("2", "1", "2")
    assert (summary["total-records"], summary["total-data-files"], summary["total-position-deletes"]) == ("12", "2", "2")


@pytest.mark.parametrize(
    ("put", "delete", "operation"),
    [([(50, "x")], [], "append"), ([], [1], "delete"), ([(1, "x")], [], "overwrite"), ([], list(range(10)), "delete"), ([], [], "append")],
)
def test_the_operation_is_what_the_spec_calls_it(put: Any, delete: Any, operation: str) -> None:
    mirror = filled()
    assert mirror.commit(put, delete)["summary"]["operation"] == operation
    mirror.check()


def test_a_snapshot_may_hold_a_marker_and_nothing_else() -> None:
    mirror = filled()
    before = [manifest.path for manifest in mirror.table.manifests]
    head = mirror.send(mirror.table.delta(), MARKER.summary())
    assert head["added-rows"] == 0
    assert [manifest.path for manifest in mirror.table.manifests] == before
    assert mirror.table.marker() == MARKER
    mirror.check()


def test_properties_alone_make_no_snapshot() -> None:
    mirror = filled()
    delta = mirror.table.delta()
    (loaded,) = mirror.catalog.commit([delta.prepare({}, {"a": "b"})])
    mirror.table.adopt(loaded, delta)
    assert len(mirror.table.metadata["snapshots"]) == 1
    assert mirror.table.metadata["properties"]["a"] == "b"
    mirror.check()


def test_the_marker_is_found_behind_commits_without_one() -> None:
    mirror = filled()
    mirror.send(mirror.table.delta(), MARKER.summary())
    mirror.commit([(1, "x")])
    assert mirror.table.marker() == MARKER


def test_the_marker_survives_expiry_in_the_properties() -> None:
    mirror = filled()
    delta = mirror.table.delta()
    (loaded,) = mirror.catalog.commit([delta.prepare(MARKER.summary(), MARKER.summary())])
    mirror.table.adopt(loaded, delta)
    mirror.commit([(1, "x")])
    mirror.expire([snapshot["snapshot-id"] for snapshot in mirror.table.metadata["snapshots"][:-1]])
    assert mirror.table.marker() == MARKER
    assert mirror.reopen().marker() == MARKER


def test_a_mangled_marker_is_corrupt() -> None:
    mirror = filled()
    mirror.send(mirror.table.delta(), {"icelake.lsn": "nonsense"})
    with pytest.raises(Corrupt, match="MARKER_CORRUPT"):
        mirror.table.marker()


def test_the_clock_may_go_back() -> None:
    mirror = filled()
    mirror.clock.time -= 10_000
    mirror.commit([(1, "x")])
    first, second = (snapshot["timestamp-ms"] for snapshot in mirror.table.metadata["snapshots"])
    assert first <= second


def test_requirements_name_the_base() -> None:
    mirror = filled()
    change = mirror.table.delta().prepare({"x": "y"}, {"p": "q"}, [{"type": "assert-current-schema-id", "current-schema-id": 0}])
    uuid, ref, extra = change.requirements
    assert uuid == {"type": "assert-table-uuid", "uuid": mirror.table.metadata["table-uuid"]}
    assert ref == {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": mirror.table.snapshot_id}
    assert extra["type"] == "assert-current-schema-id"
    assert [update["action"] for update in change.updates] == ["add-snapshot", "set-snapshot-ref", "set-properties"]
    assert Mirror(SMALL).table.delta().prepare({"x": "y"}, {}).requirements[1]["snapshot-id"] is None


# --------------------------------------------------------------------------------------------------------------- deltas


def test_deleting_twice_deletes_once() -> None:
    mirror = filled()
    (no,) = mirror.table.files
    delta = mirror.table.delta()
    delta.delete(*both((no, 3), (no, 3)))
    delta.delete(*both((no, 3), (no, 4)))
    mirror.send(delta)
    assert mirror.table.files[no].live_count == 8
    vector = mirror.table.files[no].dv_path
    again = mirror.table.delta()
    again.delete(*both((no, 4)))
    mirror.send(again)
    assert mirror.table.files[no].dv_path == vector


def test_a_position_beyond_the_file_is_refused() -> None:
    mirror = filled()
    (no,) = mirror.table.files
    with pytest.raises(ValueError, match="position 10"):
        mirror.table.delta().delete(*both((no, 10)))
    with pytest.raises(KeyError):
        mirror.table.delta().delete(*both((no + 10_000, 0)))


def test_a_file_without_rows_leaves_with_its_vector() -> None:
    mirror = filled()
    mirror.commit(delete=[0, 1])
    mirror.commit([(77, "stays")], delete=list(range(2, 10)))
    assert len(mirror.table.files) == 1
    assert mirror.head()["summary"]["total-delete-files"] == "0"
    assert mirror.head()["summary"]["removed-dvs"] == "1"
    mirror.check()


@pytest.mark.parametrize("written", [True, False])
def test_a_delta_fed_many_times_is_one_snapshot(written: bool) -> None:
    mirror = filled()
    (base,) = mirror.table.files
    delta = mirror.table.delta()
    first = delta.append(batch(SMALL, [(20, "a"), (21, "b")]), None)
    delta.delete(*both((base, 0), (only(first), 0)))
    if written:
        delta.write()
    second = delta.append(batch(SMALL, [(20, "c"), (0, "d")]), np.array([-1, 0]))
    if written:
        delta.write()
    third = delta.append(batch(SMALL, [(30, "gone")]), None)
    delta.delete(*both((only(third), int(third.positions[0]))))
    # One file for as long as nothing is written, and its rows can be read all the same.
    assert [placed.positions.tolist() for placed in (first, second, third)] == ([[0, 1], [0, 1], [0]] if written else [[0, 1], [2, 3], [4]])
    assert len({only(placed) for placed in (first, second, third)}) == (3 if written else 1)
    where = both((only(second), int(second.positions[1])), (base, 5), (only(first), 1))
    found = mirror.table.read(*where, ["text"], delta=delta)
    assert found.column("text").to_pylist() == ["d", "v5", "b"]
    assert len(delta.written) == (2 if written else 0)
    mirror.send(delta)
    rows = mirror.rows()
    assert rows == mirror.rows(mirror.reopen())
    assert {key: row[1] for key, (row, _, _) in rows.items()} == {21: "b", 20: "c", 0: "d"} | {key: f"v{key}" for key in range(1, 10)}
    assert rows[0][1] == 0
    assert rows[21][1] == delta.first_row_id(only(first)) + 1
    assert rows[20][1] == delta.first_row_id(only(second)) + second.positions[0]
    assert len(mirror.table.files) == (3 if written else 2)
    assert delta.unused == []


def test_a_file_whose_rows_are_all_gone_is_not_written() -> None:
    mirror = filled()
    delta = mirror.table.delta()
    early = delta.append(batch(SMALL, [(20, "a")]), None)
    delta.write()
    late = delta.append(batch(SMALL, [(30, "b"), (31, "c")]), None)
    delta.delete(*both((only(early), 0), (only(late), 0), (only(late), 1)))
    mirror.send(delta)
    (unused,) = delta.unused
    assert unused in delta.written
    assert unused not in {file.path for file in mirror.table.files.values()}
    assert sum(path.endswith(".parquet") for path in delta.written) == 1
    assert set(mirror.rows()) == set(range(10))


def test_a_file_is_written_when_it_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "OPEN_BYTES", 200)
    mirror = Mirror(SMALL)
    delta = mirror.table.delta()
    numbers = [only(delta.append(batch(SMALL, [(key, "x" * 60)]), None)) for key in range(10)]
    assert 1 < len(set(numbers)) < 10
    assert len(delta.written) == len(set(numbers)) - 1
    mirror.send(delta)
    assert {no: file.record_count for no, file in mirror.table.files.items()} == dict(Counter(numbers))
    assert set(mirror.rows()) == set(range(10))


def test_truncate_takes_committed_and_pending_rows() -> None:
    mirror = filled()
    mirror.commit([(3, "x")])
    delta = mirror.table.delta()
    delta.append(batch(SMALL, [(20, "a")]), None)
    delta.write()
    delta.append(batch(SMALL, [(22, "c")]), None)
    delta.delete(*both(*((no, 0) for no in mirror.table.files)))
    delta.truncate()
    delta.delete(*both(*((no, 0) for no in mirror.table.files)))
    delta.append(batch(SMALL, [(21, "b")]), None)
    mirror.send(delta)
    assert {key: row[1] for key, (row, _, _) in mirror.rows().items()} == {21: "b"}
    assert len(delta.unused) == 1
    assert mirror.head()["summary"]["operation"] == "overwrite"
    assert mirror.rows(mirror.reopen()) == mirror.rows()


def test_large_appends_are_split_into_even_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "TARGET_ROWS", 30)
    mirror = Mirror(SMALL)
    mirror.commit([(key, str(key)) for key in range(100)])
    assert [file.record_count for file in mirror.table.files.values()] == [25] * 4
    mirror.check()


def test_a_delta_is_prepared_once_and_on_its_own_base() -> None:
    mirror = filled()
    old = mirror.table.delta()
    done = mirror.table.delta()
    done.prepare({"x": "y"}, {})
    with pytest.raises(ValueError, match="once"):
        done.prepare({"x": "y"}, {})
    mirror.commit([(1, "x")])
    with pytest.raises(ValueError, match="began with"):
        old.prepare({"x": "y"}, {})


def test_everything_written_is_named() -> None:
    mirror = filled()
    before = set(mirror.storage.files)
    delta = mirror.table.delta()
    (no,) = mirror.table.files
    delta.append(batch(SMALL, [(20, "a")]), None)
    delta.delete(*both((no, 1)))
    delta.prepare({"x": "y"}, {})
    assert set(delta.written) == set(mirror.storage.files) - before
    assert sorted(path.rsplit(".", 1)[1] for path in delta.written) == ["avro", "avro", "avro", "parquet", "puffin"]


def test_adopting_reads_nothing() -> None:
    mirror = filled()
    mirror.storage.reads.clear()
    for step in range(20):
        mirror.commit([(step, "x")], delete=[step + 1] if step + 1 in mirror.model else [])
    assert mirror.storage.reads == []
    mirror.check()


def test_adopting_what_is_not_ours_is_refused() -> None:
    mirror = filled()
    other = mirror.reopen()
    delta = other.delta()
    (loaded,) = mirror.catalog.commit([delta.prepare({"x": "y"}, {})])
    with pytest.raises(ForeignChange, match="TABLE_MOVED"):
        mirror.table.adopt(loaded, None)
    ours = mirror.table.delta()
    ours.prepare({"x": "y"}, {})
    with pytest.raises(ForeignChange):
        mirror.table.adopt(loaded, ours)


# -------------------------------------------------------------------------------------------------------------- reading


def test_rows_are_read_in_the_order_asked_for() -> None:
    mirror = filled(40)
    mirror.commit([(key, f"w{key}") for key in range(0, 40, 3)], delete=[1, 2])
    chance = random.Random(5)
    keys = chance.choices(sorted(mirror.model), k=60)
    found = mirror.table.read(*both(*(mirror.where[key] for key in keys)), ["text", "id"], lineage=True)
    assert found.column_names == ["text", "id", "_row_id", "_last_updated_sequence_number"]
    assert found.column("id").to_pylist() == keys
    assert found.column("text").to_pylist() == [mirror.model[key][1] for key in keys]
    assert found.column("_row_id").to_pylist() == [mirror.ids[key] for key in keys]
    assert found.column("_last_updated_sequence_number").to_pylist() == [mirror.updated[key] for key in keys]
    assert mirror.table.read(*both(), ["text"]).num_rows == 0


def test_keys_of_a_file_for_the_index() -> None:
    mirror = Mirror(relation(("a", "long"), ("text", "string"), ("b", "uuid"), key=("b", "a")))
    mirror.commit([(n, "x", bytes([n]) * 16) for n in range(5)])
    mirror.commit([(2, "y", bytes([2]) * 16)], delete=[4])
    old, new = sorted(mirror.table.files)
    keys, positions, row_ids = mirror.table.read_keys(old)
    assert keys.schema.names == ["b", "a"]
    assert keys.column(1).to_pylist() == [0, 1, 3]
    assert positions.tolist() == row_ids.tolist() == [0, 1, 3]
    keys, positions, row_ids = mirror.table.read_keys(new)
    assert (keys.to_pylist(), positions.tolist(), row_ids.tolist()) == ([{"b": bytes([2]) * 16, "a": 2}], [0], [2])


# --------------------------------------------------------------------------------------------------- what does not belong


def changed(mirror: Mirror, **values: Any) -> LoadedTable:
    loaded = mirror.loaded()
    metadata: Json = {**loaded.metadata, **values}
    return LoadedTable(loaded.id, metadata, loaded.metadata_location)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("content", [DATA, DELETES])
def test_a_manifest_list_that_was_cut_off_between_two_blocks_is_corrupt(version: int, content: int) -> None:
    mirror = filled(version=version)
    mirror.commit(delete=[1])
    kept = [manifest for manifest in mirror.table.manifests if manifest.content != content]
    mirror.storage.files[mirror.head()["manifest-list"]] = mirror.table.codec.encode_manifest_list(mirror.head(), kept)
    with pytest.raises(Corrupt, match="MANIFEST_CORRUPT"):
        mirror.reopen()


def test_other_shapes_of_tables_are_refused() -> None:
    mirror = filled()
    twice = [{"spec-id": 0, "fields": []}, {"spec-id": 1, "fields": []}]
    field = {"source-id": 1, "field-id": 1000, "name": "x", "transform": "void"}
    for values in (
        {"format-version": 1},
        {"format-version": 4},
        {"partition-specs": twice},
        {"partition-specs": [{"spec-id": 0, "fields": [{"name": "x"}]}]},
        {"partition-specs": [{"spec-id": 0, "fields": [field]}]},
        {"partition-specs": [{"spec-id": 0, "fields": [{**field, "transform": "identity", "source-id": 9}]}]},
        {"sort-orders": [{"order-id": 1, "fields": [{"transform": "bucket[3]", "source-id": 1, "direction": "asc", "null-order": "x"}]}]},
    ):
        with pytest.raises(ForeignChange, match="TABLE_SHAPE_CHANGED"):
            Table.open(changed(mirror, **values), mirror.storage, mirror.clock, mirror.chance)


@pytest.mark.parametrize(
    ("kind", "code"), [("avro", "MANIFEST_CORRUPT"), ("puffin", "DELETION_VECTOR_CORRUPT"), ("parquet", "POSITION_DELETES_CORRUPT")]
)
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_metadata_is_corrupt(kind: str, code: str, damage: str) -> None:
    mirror = filled(version=2 if kind == "parquet" else 3)
    mirror.commit([(1, "x")])
    listed = [mirror.head()["manifest-list"], *(manifest.path for manifest in mirror.table.manifests)]
    vectors = [file.dv_path for file in mirror.table.files.values() if file.dv_path]
    for path in listed if kind == "avro" else vectors:
        data = mirror.storage.files[path]
        mirror.storage.files[path] = data[:20] if damage == "cut" else data[:20] + bytes([data[20] ^ 255]) + data[21:]
        if damage == "cut" or kind == "puffin":
            with pytest.raises(Corrupt, match=code):
                mirror.reopen()
        mirror.storage.files[path] = data


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_flipped_bits_raise_what_a_caller_can_name(seed: int) -> None:
    chance = random.Random(seed)
    mirror = filled()
    mirror.commit([(1, "x")])
    path = chance.choice([mirror.head()["manifest-list"], *(manifest.path for manifest in mirror.table.manifests)])
    data = bytearray(mirror.storage.files[path])
    for _ in range(chance.randint(1, 8)):
        # Behind the header, mostly: there the values are.
        at = chance.randrange(len(data)) if chance.random() < 0.3 else chance.randrange(len(data) * 3 // 4, len(data))
        data[at] ^= 1 << chance.randrange(8)
    mirror.storage.files[path] = bytes(data)
    with contextlib.suppress(IcelakeError):
        mirror.reopen()


def test_columns_in_another_order_are_refused() -> None:
    mirror = filled()
    rows = batch(SMALL, [(50, "x")]).select(["text", "id"])
    with pytest.raises(ValueError, match="columns"):
        mirror.table.delta().append(rows, None)


# ------------------------------------------------------------------------------------------------------------- manifests


def test_manifests_stay_few() -> None:
    mirror = Mirror(SMALL)
    chance = random.Random(3)
    for step in range(150):
        keys = chance.sample(range(400), 3)
        mirror.commit([(key, str(step)) for key in keys])
        data = [manifest for manifest in mirror.table.manifests if manifest.content == DATA and manifest.entries]
        # Fewer than 8 of each size class.
        assert len(data) <= 8 * (1 + math.log(max(len(mirror.table.files), 1), 8)) + 1
        deletes = [manifest for manifest in mirror.table.manifests if manifest.content == DELETES and manifest.entries]
        assert len(deletes) <= 8 + 8 + len(mirror.table.files) / 32
        assert all(len(manifest.entries) <= 64 for manifest in deletes)
    mirror.check()


def test_a_merged_manifest_keeps_every_number() -> None:
    mirror = Mirror(SMALL)
    for key in range(8):
        mirror.commit([(key, "x")])
    (manifest,) = mirror.table.manifests
    _, entries = decode_manifest(mirror.storage.files[manifest.path], "x")
    assert [entry["status"] for entry in entries] == [0] * 7 + [1]
    assert [entry["sequence_number"] for entry in entries] == [*range(1, 8), None]
    assert [entry["data_file"]["first_row_id"] for entry in entries] == [*range(7), None]
    _, records = decode_manifest_list(mirror.storage.files[mirror.head()["manifest-list"]], "x")
    assert records[0]["min_sequence_number"] == 1
    # A rewritten manifest uses up row ids for the rows it carries (spec, Row Lineage): ids are unique, not dense.
    assert mirror.head()["added-rows"] == 8
    assert mirror.ids == {**{key: key for key in range(7)}, 7: 7}
    mirror.check()


def test_truncating_a_table_of_many_manifests() -> None:
    mirror = Mirror(SMALL)
    for step in range(20):
        mirror.commit([(step, "x"), (step + 1, "y")])
    mirror.commit(truncate=True)
    assert not mirror.table.files
    assert all(not manifest.entries for manifest in mirror.table.manifests)
    assert mirror.head()["summary"]["total-records"] == "0"
    mirror.check()
    mirror.commit([(1, "z")])
    assert len(mirror.table.manifests) == 1
    mirror.check()


# -------------------------------------------------------------------------------------------------- against a plain model

KEYS = st.integers(0, 25)


class AgainstModel(RuleBasedStateMachine):
    """Any sequence of commits, compactions and expiries: memory, files and a dict agree."""

    layout = Layout()

    def __init__(self) -> None:
        super().__init__()
        self.mirror = Mirror(SMALL, layout=self.layout)

    @rule(
        put=st.dictionaries(KEYS, st.none() | st.text(max_size=3), max_size=6),
        delete=st.sets(KEYS, max_size=6),
        truncate=st.sampled_from([False] * 9 + [True]),
    )
    def commit(self, put: dict[int, str | None], delete: set[int], truncate: bool) -> None:
        gone = [] if truncate else [key for key in delete if key in self.mirror.model and key not in put]
        self.mirror.commit(list(put.items()), gone, truncate=truncate)

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        if self.mirror.table.files:
            self.mirror.compact(data.draw(st.lists(st.sampled_from(sorted(self.mirror.table.files)), min_size=1, unique=True)))

    @rule()
    def reopen(self) -> None:
        by_path = {file.path: no for no, file in self.mirror.table.files.items()}
        self.mirror.table = self.mirror.reopen()
        now = {by_path[file.path]: no for no, file in self.mirror.table.files.items()}
        self.mirror.where = {key: (now[no], position) for key, (no, position) in self.mirror.where.items()}

    @rule(share=st.floats(0, 1), seed=st.integers())
    def expire(self, share: float, seed: int) -> None:
        chance = random.Random(seed)
        snapshots = [snapshot["snapshot-id"] for snapshot in self.mirror.table.metadata["snapshots"][:-1]]
        self.mirror.expire([snapshot for snapshot in snapshots if chance.random() < share])

    @invariant()
    def agrees(self) -> None:
        self.mirror.check()


class Partitioned(AgainstModel):
    """The same, with rows that move from one partition to another."""

    layout = Layout((PartitionField("text", "truncate", 1), PartitionField("id", "bucket", 2)), (SortField("text", True),))


class VersionTwo(AgainstModel):
    """The same without row lineage, with files of position deletes."""

    layout = Layout((PartitionField("text"),), (SortField("id"),), 2)


TestAgainstModel = AgainstModel.TestCase
TestPartitioned = Partitioned.TestCase
TestVersionTwo = VersionTwo.TestCase
TestAgainstModel.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
TestPartitioned.settings = TestVersionTwo.settings = settings(max_examples=8, stateful_step_count=10, deadline=None)


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=30))
@settings(max_examples=20, deadline=None)
def test_row_ids_never_repeat(changes: list[tuple[int, bool]]) -> None:
    mirror = Mirror(SMALL, MemoryStorage())
    given_out: set[int] = set()
    for key, delete in changes:
        known = mirror.ids.get(key)
        if delete and key in mirror.model:
            mirror.commit(delete=[key])
        else:
            mirror.commit([(key, "x")])
            assert known in (None, mirror.ids[key])
            if known is None:
                assert mirror.ids[key] not in given_out
                given_out.add(mirror.ids[key])
