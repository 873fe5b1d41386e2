"""The shop's questions give what the rows say, and the drawings hold it."""

import random
from datetime import UTC, datetime
from decimal import Decimal
from io import StringIO

import duckdb
import pyarrow as pa
import pytest
from rich.console import Console, RenderableType

from icelake.demo import questions
from icelake.demo.build import Size, generate
from icelake.demo.screen import Figures, Screen
from icelake.observe.freshness import Freshness

NOW = datetime(2026, 11, 20, 20, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def lake() -> duckdb.DuckDBPyConnection:
    """The shop's opening rows in DuckDB, typed as the lake types them."""
    connection = duckdb.connect()
    connection.execute("CREATE SCHEMA shop")
    for name, table in generate(random.Random(7), Size(), NOW).items():
        columns = {column: [row[at] for row in table.rows] for at, column in enumerate(table.columns) if "id" in column or column != "id"}
        arrow = pa.table(
            {
                column: pa.array([str(v) for v in values])
                if values and type(values[0]).__name__ == "UUID"
                else pa.array(values, pa.decimal128(12, 2))
                if values and isinstance(values[0], Decimal)
                else pa.array(values)
                for column, values in columns.items()
            }
        )
        connection.register("incoming", arrow)
        connection.execute(f"CREATE TABLE shop.{name} AS SELECT * FROM incoming")
    return connection


def ask(lake: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    return lake.execute(sql).to_arrow_table()


def drawn(what: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=120, no_color=True).print(what)
    return out.getvalue()


def test_state_then_and_now(lake: duckdb.DuckDBPyConnection) -> None:
    state = ask(lake, questions.STATE)
    row = state.to_pylist()[0]
    assert row["orders ever placed"] == 4000
    assert row["customers"] == 2000
    assert "4,000" in drawn(questions.draw_travel(state, state, "0/1", 12))
    assert ask(lake, questions.FIRST).to_pylist()[0]["revenue"] == row["revenue €"]


def test_books_balance_and_a_missing_line_is_found(lake: duckdb.DuckDBPyConnection) -> None:
    whole = ask(lake, questions.BOOKS)
    assert questions.books_balance(whole)
    lake.execute("BEGIN")
    lake.execute("DELETE FROM shop.order_lines WHERE order_id = 1 AND line_no = 1")
    lake.execute("UPDATE shop.stock_levels SET on_hand = on_hand + 1 WHERE product_id = 3 AND warehouse = 'RTM-1'")
    broken = ask(lake, questions.BOOKS)
    lake.execute("ROLLBACK")
    assert broken.to_pylist() == [{"products_off": 1, "orders_off": 1}]
    assert "1 products and 1 orders do not add up" in drawn(questions.draw_books([("at 0/1", broken), ("at 0/2", whole)]))


def test_sales_and_what_runs_out(lake: duckdb.DuckDBPyConnection) -> None:
    until = NOW.timestamp()
    since = until - 3600
    sales = ask(lake, questions.sales(since))
    expected = lake.execute(
        f"SELECT count(*) FROM shop.orders WHERE epoch_us(placed_at) >= {since * 1e6} AND status <> 'cancelled'"
    ).fetchone()
    assert (sum(row["orders"] for row in sales.to_pylist()),) == expected
    assert "Sales per minute" in drawn(questions.draw_sales(sales, since, until))
    short = ask(lake, questions.running_out(since))
    lasting = [row["free"] / row["sold"] for row in short.to_pylist()]
    assert lasting == sorted(lasting)
    assert 0 < len(lasting) <= 6
    assert "warehouse" in drawn(questions.draw_running_out(short, 3600))


def test_drawings_of_nothing() -> None:
    empty = pa.table({"slot": pa.array([], pa.int64()), "orders": pa.array([], pa.int64()), "revenue": pa.array([], pa.decimal128(12, 2))})
    assert "0" in drawn(questions.draw_sales(empty, 0, 60))
    assert questions.bar(0, 10) == ""
    assert questions.bar(1, 10) == "█" * 10
    assert questions.bar(7, 3) == "███"
    assert questions.sparkline([]) == ""
    assert questions.sparkline([0, 1, 2]) == "▁▄█"


def test_freshness_counts_each_beat_once_and_leaves_out_the_load() -> None:
    freshness = Freshness()
    assert freshness.lag() is None
    assert freshness.percentile(0.5) is None
    for _ in range(5):
        freshness.next_beat()
    freshness.saw(3)  # the first whole cut: beats 1 to 5 were sent during the load
    assert freshness.samples == 0
    freshness.next_beat()
    assert freshness.lag() is not None
    freshness.saw(6)
    freshness.saw(6)
    assert freshness.samples == 1
    assert freshness.lag() == 0.0
    assert freshness.percentile(0.99) == freshness.recent(10)[0] >= 0


def test_screen_keeps_stdout_for_answers(capsys: pytest.CaptureFixture[str]) -> None:
    figures = Figures(3.0, "trading", 10, 5, 40_000, 3, 20_000, 0.4, 0.8, 1.4, {"shop.orders": 10})
    with Screen(answers_on_stdout=True) as screen:
        screen.show(figures)
        screen.say("said")
        screen.answer("the answer")
    said = capsys.readouterr()
    assert said.out.strip() == "the answer"
    assert "lag 20 kB / 400 ms, freshness p50 800 ms p99 1,400 ms" in said.err
    with Screen(answers_on_stdout=False) as screen:
        screen.answer("the answer")
    assert capsys.readouterr().out == ""
    assert "shop" not in drawn(screen._panel(figures)).replace("shop trades", "")
