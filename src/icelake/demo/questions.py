"""What a shop asks its lake, as SQL for DuckDB, and how the answers are drawn.

Times are compared as microseconds since 1970 (``epoch_us``), so no session's time zone has a say.
"""

import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

SLOT_SECONDS = 5

FIRST = "SELECT count(*) AS orders, sum(total) AS revenue FROM shop.orders WHERE status NOT IN ('cancelled', 'returned')"

STATE = """
SELECT
    (SELECT count(*) FROM shop.orders) AS "orders ever placed",
    (SELECT sum(total) FROM shop.orders WHERE status NOT IN ('cancelled', 'returned')) AS "revenue €",
    (SELECT count(*) FROM shop.orders WHERE status IN ('placed', 'paid', 'picked')) AS "orders not shipped yet",
    (SELECT sum(on_hand) FROM shop.stock_levels) AS "pieces in stock",
    (SELECT count(*) FROM shop.customers) AS "customers",
    (SELECT count(*) FROM shop.orders WHERE customer_id IS NULL) AS "orders of people forgotten"
"""

BOOKS = """
SELECT
    (SELECT count(*) FROM (SELECT product_id, sum(on_hand) AS pieces FROM shop.stock_levels GROUP BY 1) AS shelves
        FULL JOIN (SELECT product_id, sum(quantity) AS pieces FROM shop.stock_movements GROUP BY 1) AS moved USING (product_id)
        WHERE shelves.pieces IS DISTINCT FROM moved.pieces) AS products_off,
    (SELECT count(*) FROM shop.orders
        LEFT JOIN (SELECT order_id, sum(quantity * unit_price) AS total FROM shop.order_lines GROUP BY 1) AS added
        ON added.order_id = orders.id WHERE added.total IS DISTINCT FROM orders.total) AS orders_off
"""
"""The two sums of shop.sql: a cut that held half a transaction would break them."""


def sales(since: float) -> str:
    """``since``: seconds since 1970."""
    return f"""
SELECT epoch_us(placed_at) // {SLOT_SECONDS * 1_000_000} AS slot, count(*) AS orders, sum(total) AS revenue
FROM shop.orders WHERE epoch_us(placed_at) >= {int(since * 1e6)} AND status <> 'cancelled' GROUP BY 1 ORDER BY 1
"""


def running_out(since: float) -> str:
    """Products by how soon a warehouse has none left at the pace sold there since then."""
    return f"""
WITH sold AS (
    SELECT l.product_id, o.ships_from AS city, sum(l.quantity) AS pieces
    FROM shop.order_lines l JOIN shop.orders o ON o.id = l.order_id
    WHERE epoch_us(o.placed_at) >= {int(since * 1e6)} AND o.status <> 'cancelled' GROUP BY 1, 2
)
SELECT p.sku, p.name, w.city, s.on_hand - s.reserved AS free, sold.pieces AS sold
FROM shop.stock_levels s JOIN shop.warehouses w ON w.code = s.warehouse JOIN shop.products p ON p.id = s.product_id
JOIN sold ON sold.product_id = s.product_id AND sold.city = w.city
WHERE p.active ORDER BY (s.on_hand - s.reserved) / sold.pieces, sold.pieces DESC, p.sku, w.city LIMIT 6
"""


def draw_sales(answer: pa.Table, since: float, until: float) -> RenderableType:
    """A bar for every few seconds: revenue by the minute at that pace."""
    by_slot = {row["slot"]: row for row in answer.to_pylist()}
    slots = range(int(since) // SLOT_SECONDS, max(int(until) // SLOT_SECONDS, int(since) // SLOT_SECONDS + 1))  # whole ones
    a_minute = [by_slot[slot]["revenue"] * (60 // SLOT_SECONDS) if slot in by_slot else Decimal(0) for slot in slots][-14:]
    highest = max(a_minute, default=Decimal(0)) or Decimal(1)
    table = _table("Sales per minute", ("from (UTC)", "left"), ("orders", "right"), ("€ a minute", "right"), ("", "left"))
    for slot, revenue in zip(slots[-14:], a_minute, strict=True):
        orders = by_slot[slot]["orders"] if slot in by_slot else 0
        moment = time.strftime("%H:%M:%S", time.gmtime(slot * SLOT_SECONDS))
        table.add_row(moment, str(orders), f"{revenue:,.0f}", Text(bar(float(revenue / highest), 32), style="cyan"))
    return table


def draw_running_out(answer: pa.Table, seconds: float) -> RenderableType:
    table = _table(
        f"Stock running out, at the pace of the last {seconds:.0f} s",
        ("sku", "left"),
        ("product", "left"),
        ("warehouse", "left"),
        ("free", "right"),
        ("sold", "right"),
        ("lasts", "right"),
    )
    for row in answer.to_pylist():
        left = row["free"] / float(row["sold"]) * seconds
        lasts = Text("none left" if row["free"] <= 0 else f"{left:.0f} s", style="red" if left < 30 else "yellow")
        table.add_row(row["sku"], row["name"], row["city"], str(row["free"]), str(row["sold"]), lasts)
    return table


def draw_travel(then: pa.Table, now: pa.Table, lsn: str, seconds: float) -> RenderableType:
    before, after = then.to_pylist()[0], now.to_pylist()[0]
    table = _table(
        "The same question, then and now", ("", "left"), (f"{seconds:.0f} s ago, at {lsn}", "right"), ("now", "right"), ("", "right")
    )
    for name in before:
        change = (after[name] or 0) - (before[name] or 0)
        table.add_row(name, _number(before[name]), _number(after[name]), Text(f"{change:+,}", style="dim"))
    return table


def draw_books(answers: Sequence[tuple[str, pa.Table]]) -> RenderableType:
    lines = []
    for when, answer in answers:
        row = answer.to_pylist()[0]
        whole = row["products_off"] == 0 and row["orders_off"] == 0
        lines.append(
            Text(
                f"{when}: every product's shelves equal its movements, every order equals its lines"
                if whole
                else f"{when}: {row['products_off']} products and {row['orders_off']} orders do not add up",
                style="green" if whole else "bold red",
            )
        )
    return Group(*lines)


def books_balance(answer: pa.Table) -> bool:
    row = answer.to_pylist()[0]
    return bool(row["products_off"] == 0 and row["orders_off"] == 0)


def bar(part: float, width: int) -> str:
    """A horizontal bar of eighths of a character."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def sparkline(values: Sequence[float]) -> str:
    highest = max(values, default=0.0) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(value / highest * 7.99))] for value in values)


def _table(title: str, *columns: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name, justify in columns:
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    return table


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,}"
