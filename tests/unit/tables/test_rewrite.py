import random
from decimal import Decimal

import pyarrow.parquet as pq
import pytest

from icelake.errors import Corrupt
from icelake.model.marker import Marker
from icelake.tables import rewrite as rewriting
from icelake.tables.rewrite import choose, rewrite
from tests.unit.tables.mirror import SMALL, Mirror, relation


def test_nothing_is_worth_rewriting_in_a_young_table() -> None:
    mirror = Mirror(SMALL)
    assert choose(mirror.table) == []
    for key in range(7):
        mirror.commit([(key, "x")])
    assert choose(mirror.table) == []


def test_eight_files_of_a_size_become_one() -> None:
    mirror = Mirror(SMALL)
    for key in range(8):
        mirror.commit([(key, "x"), (100, str(key))])
    head = mirror.compact()
    assert head is not None
    assert head["summary"]["operation"] == "replace"
    assert len(mirror.table.files) == 1
    assert head["summary"]["total-delete-files"] == "0"
    assert head["summary"]["total-records"] == "9"
    mirror.check()
    assert choose(mirror.table) == []


def test_rows_keep_their_ids_and_their_last_change() -> None:
    mirror = Mirror(SMALL)
    chance = random.Random(1)
    for step in range(40):
        put = {chance.randrange(60): str(step) for _ in range(4)}
        gone = [key for key in chance.sample(sorted(mirror.model), min(1, len(mirror.model))) if key not in put]
        mirror.commit(list(put.items()), gone)
        mirror.compact()
        mirror.check()
    assert len(mirror.table.files) < 16


def test_the_marker_stays_where_it_was() -> None:
    mirror = Mirror(SMALL)
    mirror.commit([(1, "a")])
    marker = Marker(source="s", system_id="7", timeline=1, slot="x", lsn=99, attempt="a")
    mirror.send(mirror.table.delta(), marker.summary())
    mirror.compact(list(mirror.table.files))
    assert mirror.table.marker() == marker


def test_a_hollow_file_is_rewritten_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(SMALL)
    mirror.commit([(key, "x") for key in range(100)])
    (large,) = mirror.table.files
    mirror.commit([(200, "y")], delete=list(range(31)))
    assert choose(mirror.table) == []
    # It is only worth it for files that are not tiny anyway.
    monkeypatch.setattr(rewriting, "_SMALLEST", 100)
    assert choose(mirror.table) == [large]
    mirror.compact([large])
    mirror.check()
    assert choose(mirror.table) == []


def test_hollow_files_become_one_together_as_far_as_what_is_left_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(SMALL)
    for number in range(4):
        mirror.commit([(100 * number + key, "x") for key in range(100)])
    # Of three files half is left, of one all.
    mirror.commit([], delete=[100 * number + key for number in (0, 1, 3) for key in range(50)])
    monkeypatch.setattr(rewriting, "_SMALLEST", 100)
    hollow = [no for no, file in mirror.table.files.items() if file.live_count < file.record_count]
    assert len(hollow) == 3
    assert choose(mirror.table) == hollow
    half = mirror.table.arrow_bytes(hollow[0]) // 2
    monkeypatch.setattr(rewriting, "OPEN_BYTES", 2 * half)
    assert choose(mirror.table) == hollow[:2]
    monkeypatch.setattr(rewriting, "OPEN_BYTES", half // 2)
    assert choose(mirror.table) == hollow[:1]
    mirror.compact(choose(mirror.table))
    mirror.check()


def test_files_that_are_full_are_left_alone_whoever_wrote_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """However well their rows are compressed: merged, they would be as many as before."""
    mirror = Mirror(SMALL)
    for number in range(9):
        mirror.commit([(100 * number + key, "x" * 100) for key in range(50)])
    assert len(choose(mirror.table)) == 9
    monkeypatch.setattr(rewriting, "_FULL", 5_000)
    assert choose(mirror.table) == []
    assert choose(mirror.reopen()) == []
    # Eight that are not full lie between those that are.
    for number in range(8):
        mirror.commit([(10_000 + number, "y")])
    assert [mirror.table.files[no].record_count for no in choose(mirror.table)] == [1] * 8


def test_at_rest_two_small_files_are_too_many() -> None:
    mirror = Mirror(SMALL)
    mirror.commit([(1, "a")])
    assert choose(mirror.table, at_rest=True) == []
    for key in range(2, 5):
        mirror.commit([(key, "b")])
    assert choose(mirror.table) == []
    mirror.compact(choose(mirror.table, at_rest=True))
    assert len(mirror.table.files) == 1
    mirror.check()
    assert choose(mirror.table, at_rest=True) == []


def test_at_rest_files_that_are_not_small_or_are_full_are_let_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(SMALL)
    for number in range(3):
        mirror.commit([(100 * number + key, "x" * 100) for key in range(50)])
    sizes = [file.size for file in mirror.table.files.values()]
    monkeypatch.setattr(rewriting, "_SMALL", min(sizes))
    assert choose(mirror.table, at_rest=True) == []
    monkeypatch.undo()
    assert len(choose(mirror.table, at_rest=True)) == 3
    monkeypatch.setattr(rewriting, "_FULL", 5_000)
    assert choose(mirror.table, at_rest=True) == []


def test_files_of_so_many_rows_that_two_make_two_again_are_let_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(SMALL)
    for number in range(8):
        mirror.commit([(100 * number + key, "x") for key in range(50)])
    monkeypatch.setattr(rewriting, "TARGET_ROWS", 100)
    assert choose(mirror.table) == []
    assert choose(mirror.table, at_rest=True) == []
    monkeypatch.setattr(rewriting, "TARGET_ROWS", 102)
    assert len(choose(mirror.table)) == 8


def test_a_hollow_file_of_which_little_is_left_on_disk_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(SMALL)
    mirror.commit([(key, "x" * 100) for key in range(100)])
    mirror.commit([(200, "y")], delete=list(range(31)))
    assert choose(mirror.table) == []
    monkeypatch.setattr(rewriting, "_FULL", 5_000)
    assert len(choose(mirror.table)) == 1


def test_one_call_reads_a_bounded_amount() -> None:
    mirror = Mirror(SMALL)
    for key in range(10):
        mirror.commit([(key, "x")])
    sizes = {no: file.size for no, file in mirror.table.files.items()}
    few = choose(mirror.table, max_bytes=sum(sorted(sizes.values())[-3:]))
    assert len(few) == 3
    assert few == sorted(mirror.table.files)[:3]
    assert len(choose(mirror.table, max_rows=4)) == 4
    # Two at least, or nothing would ever be merged.
    assert len(choose(mirror.table, max_bytes=1)) == 2


def test_moved_tells_where_every_row_is() -> None:
    mirror = Mirror(SMALL)
    mirror.commit([(key, f"v{key}") for key in range(10)])
    mirror.commit([(3, "new")], delete=[5])
    delta, moved = rewrite(mirror.table, list(mirror.table.files))
    found = mirror.table.read(moved.file_no, moved.positions, ["id", "text"], delta=delta)
    assert found.column("id").to_pylist() == moved.keys.column("id").to_pylist()
    assert sorted(zip(found.column("id").to_pylist(), found.column("text").to_pylist(), strict=True)) == sorted(mirror.model.values())
    assert dict(zip(moved.keys.column("id").to_pylist(), moved.row_ids.tolist(), strict=True)) == mirror.ids


def test_a_rewrite_that_loses_a_row_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(SMALL)
    mirror.commit([(key, "x") for key in range(10)])
    read = mirror.table.live_rows
    monkeypatch.setattr(mirror.table, "live_rows", lambda no, names: (read(no, names)[0], read(no, names)[1].slice(1)))
    delta, _ = rewrite(mirror.table, list(mirror.table.files))
    with pytest.raises(Corrupt, match="a rewrite changes no row"):
        delta.prepare({"x": "y"}, {})


def test_lineage_is_written_out() -> None:
    mirror = Mirror(SMALL)
    mirror.commit([(1, "a")])
    mirror.commit([(2, "b")])
    mirror.compact(list(mirror.table.files))
    (file,) = mirror.table.files.values()
    rows = pq.read_table(mirror.storage.open(file.path)).to_pylist()
    assert [(row["_row_id"], row["_last_updated_sequence_number"]) for row in rows] == [(0, 1), (1, 2)]


def test_nested_values_move_as_they_are() -> None:
    mirror = Mirror(
        relation(
            ("id", "long"),
            ("l", "list<struct<a: uuid, d: decimal(9,2)>>"),
            ("m", "map<string, list<int>>"),
            ("s", "struct<lower: double, tags: list<string>>"),
        )
    )
    values = [
        ([{"a": bytes(range(16)), "d": Decimal("1.25")}, {"a": None, "d": None}, None], [("k", [1, None]), ("n", None)], None),
        ([], [], {"lower": None, "tags": None}),
        (None, None, {"lower": -0.0, "tags": ["", None]}),
    ]
    for step in range(8):
        mirror.commit([(3 * step + n, *values[n]) for n in range(3)])
    mirror.commit([(4, *values[0])], delete=[0, 5])
    mirror.compact(list(mirror.table.files))
    assert len(mirror.table.files) == 1
    mirror.check()
    mirror.commit([(7, *values[2])], delete=[8])
    mirror.compact(list(mirror.table.files))
    mirror.check()
