"""Comparing one table: every count against a model, with values made to break encodings."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.engines.duckdb import connect
from icelake.errors import Corrupt
from icelake.verify.canonical import Form
from icelake.verify.compare import Comparison, Difference, Pair

Row = tuple[str | None, ...]

NASTY = st.one_of(
    st.none(), st.sampled_from(["", "n", "1:a", "2:ab", ":", '"', ",", "\n", "\r\n", "\\", "\\N", "é", "𝄞", "0", "?"]), st.text(max_size=4)
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    scratch = tmp_path_factory.mktemp("scratch")
    connection = connect([scratch], memory_limit="256MB", scratch=scratch, threads=2)
    yield connection
    connection.close()


def arrow(rows: Sequence[Row], columns: int) -> pa.Table:
    return pa.table({f"c{n}": pa.array([row[n] for row in rows], pa.string()) for n in range(columns)})


def compare(
    engine: duckdb.DuckDBPyConnection, source: Sequence[Row], lake: Sequence[Row], columns: int, keys: int = 1, samples: int = 100
) -> Difference:
    pairs = [Pair(f"column {n}", n, Form(), n < keys, f"column {n}") for n in range(columns)]
    engine.register("lake_rows", arrow(lake, columns))

    def batches(expressions: Sequence[str]) -> Iterator[pa.Table]:
        assert list(expressions) == [f'"column {n}"' for n in range(columns)]
        middle = len(source) // 2
        yield arrow(source[:middle], columns)
        yield arrow(source[middle:], columns)

    try:
        return Comparison(engine, "t", pairs, batches, lambda: "lake_rows", lambda phase, rows: None, samples).run()
    finally:
        engine.unregister("lake_rows")


def model(source: Sequence[Row], lake: Sequence[Row], keys: int) -> tuple[int, int, int]:
    """missing, extra, different."""
    only_source: Counter[Row] = Counter()
    only_lake: Counter[Row] = Counter()
    for row, count in (Counter(source) - Counter(lake)).items():
        only_source[row[:keys]] += count
    for row, count in (Counter(lake) - Counter(source)).items():
        only_lake[row[:keys]] += count
    different = sum(min(only_source[key], only_lake[key]) for key in only_source)
    return sum(only_source.values()) - different, sum(only_lake.values()) - different, different


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_counts_and_samples_are_those_of_a_model(engine: duckdb.DuckDBPyConnection, data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 3))
    keys = data.draw(st.integers(1, columns))
    row = st.tuples(*[NASTY] * columns)
    # Keys may repeat on both sides: a mirror with a row twice, and a source whose unique index is broken.
    source = data.draw(st.lists(row, max_size=8))
    lake = data.draw(st.permutations(source + data.draw(st.lists(row, max_size=3))))[: data.draw(st.integers(0, 12))]
    got = compare(engine, source, lake, columns, keys)
    expected = model(source, lake, keys)
    assert (got.source_rows, got.lake_rows) == (len(source), len(lake))
    assert (got.missing, got.extra, got.different) == expected
    assert got.equal == (Counter(source) == Counter(lake))
    sides: Counter[str] = Counter(sample.side for sample in got.samples)
    for count, side in zip(expected, ("source", "lake", "both"), strict=True):
        assert bool(sides[side]) == bool(count)
    known = {row[:keys] for row in [*source, *lake]}
    for sample in got.samples:
        assert tuple(sample.key.values()) in known
        assert bool(sample.columns) == (sample.side == "both")


def test_values_that_only_move_over_a_column_border_are_found(engine: duckdb.DuckDBPyConnection) -> None:
    got = compare(engine, [("1", "ab", "c")], [("1", "a", "bc")], 3)
    assert got.different == 1
    assert got.samples[0].columns == ("column 1", "column 2")


def test_null_is_not_empty(engine: duckdb.DuckDBPyConnection) -> None:
    got = compare(engine, [("1", None)], [("1", "")], 2)
    assert (got.different, got.samples[0].columns) == (1, ("column 1",))


def test_a_row_twice_in_the_lake_is_extra(engine: duckdb.DuckDBPyConnection) -> None:
    got = compare(engine, [("1", "a"), ("2", "b")], [("1", "a"), ("2", "b"), ("2", "b")], 2)
    assert (got.missing, got.extra, got.different) == (0, 1, 0)
    assert got.samples[0].key == {"column 0": "2"}
    assert not got.equal


def test_one_lost_and_another_twice_is_found_though_the_counts_agree(engine: duckdb.DuckDBPyConnection) -> None:
    got = compare(engine, [("1", "a"), ("2", "a")], [("1", "a"), ("1", "a")], 2)
    assert (got.missing, got.extra, got.different) == (1, 1, 0)


def test_samples_are_limited_and_counts_are_not(engine: duckdb.DuckDBPyConnection) -> None:
    source = [(str(n), "a") for n in range(3000)]
    lake = [(str(n), "b") for n in range(1000, 4000)]
    got = compare(engine, source, lake, 2, samples=5)
    assert (got.missing, got.extra, got.different) == (1000, 1000, 2000)
    assert Counter(sample.side for sample in got.samples) == {"source": 5, "lake": 5, "both": 5}


def test_a_side_that_changes_between_two_readings_is_an_error(engine: duckdb.DuckDBPyConnection) -> None:
    engine.register("lake_rows", arrow([("1", "a")], 2))
    readings = iter([[("1", "b")], [("1", "a")], [("1", "a")]])
    pairs = [Pair("k", 0, Form(), True, "k"), Pair("v", 1, Form(), False, "v")]
    comparison = Comparison(
        engine, "t", pairs, lambda _: iter([arrow(next(readings), 2)]), lambda: "lake_rows", lambda phase, rows: None, 5
    )
    with pytest.raises(Corrupt, match="VERIFY_UNSTEADY"):
        comparison.run()
    # Nothing is left for the next table.
    assert engine.execute("SELECT count(*) FROM duckdb_tables()").fetchall() == [(0,)]
    engine.unregister("lake_rows")


def test_a_lake_that_cannot_be_read_is_an_error(engine: duckdb.DuckDBPyConnection) -> None:
    pairs = [Pair("k", 0, Form(), True, "k")]
    comparison = Comparison(engine, "t", pairs, lambda _: iter([]), lambda: "read_parquet('/nowhere.parquet')", lambda phase, rows: None, 5)
    with pytest.raises(Corrupt, match="VERIFY_LAKE_UNREADABLE"):
        comparison.run()


def test_more_than_memory_is_compared(tmp_path: Path) -> None:
    connection = connect([tmp_path], memory_limit="32MB", scratch=tmp_path, threads=2)
    rows = 100_000

    def batches(expressions: Sequence[str]) -> Iterator[pa.Table]:
        for start in range(0, rows, 20_000):
            keys = [f"{n:020d}" * 8 for n in range(start, start + 20_000)]
            yield pa.table({"c0": pa.array(keys), "c1": pa.array(["a"] * len(keys))})

    pairs = [Pair("k", 0, Form(), True, "k"), Pair("v", 1, Form(), False, "v")]
    scan = f"(SELECT repeat(lpad(i::VARCHAR, 20, '0'), 8) AS k, 'b' AS v FROM range({rows}) x(i))"
    try:
        got = Comparison(connection, "t", pairs, batches, lambda: scan, lambda phase, n: None, 3).run()
    finally:
        connection.close()
    assert (got.missing, got.extra, got.different) == (0, 0, rows)
    assert [sample.columns for sample in got.samples] == [("v",)] * 3
