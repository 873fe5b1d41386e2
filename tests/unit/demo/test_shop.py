"""The shop: its books balance after every step, its decisions come from the seed, and it does all the things a mirror must cope with."""

import hashlib
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from icelake.demo.build import Size, build, generate
from icelake.demo.shop import Trader, Traders, trade
from icelake.errors import Refused, Unreachable
from icelake.stack.postgres import Postgres

NOW = datetime(2026, 11, 20, 15, 30, tzinfo=UTC)
SMALL = Size(customers=200, products=40, orders=300, days=3)
TABLES = (
    *("addresses", "cart_items", "carts", "customers", "order_lines", "orders", "payments", "products", "pulse", "returns", "shipments"),
    *("stock_levels", "stock_movements", "warehouses"),
)

STOCK_OFF = """
SELECT count(*) FROM (SELECT product_id, sum(on_hand) AS n FROM shop.stock_levels GROUP BY 1) a
FULL JOIN (SELECT product_id, sum(quantity) AS n FROM shop.stock_movements GROUP BY 1) b USING (product_id) WHERE a.n IS DISTINCT FROM b.n
"""
ORDERS_OFF = """
SELECT count(*) FROM shop.orders o LEFT JOIN (SELECT order_id, sum(quantity * unit_price) AS n FROM shop.order_lines GROUP BY 1) l
ON l.order_id = o.id WHERE o.total IS DISTINCT FROM l.n
"""
RESERVED_OFF = """
SELECT count(*) FROM (SELECT product_id, sum(reserved) AS n FROM shop.stock_levels GROUP BY 1) a LEFT JOIN
(SELECT product_id, sum(quantity) AS n FROM shop.order_lines l JOIN shop.orders o ON o.id = l.order_id
 WHERE status IN ('placed', 'paid') GROUP BY 1) b USING (product_id) WHERE a.n <> coalesce(b.n, 0)
"""
PAID_OFF = """
SELECT count(*) FROM shop.orders o LEFT JOIN shop.payments p ON p.order_id = o.id
WHERE o.status IN ('paid', 'picked', 'shipped', 'delivered') AND (p.amount, p.status) IS DISTINCT FROM (o.total, 'captured')
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off"}) as running:
        yield running


@pytest.fixture
def shop(server: Postgres, request: pytest.FixtureRequest) -> Iterator[tuple[str, psycopg.Connection[Any]]]:
    """A database of its own with a small shop: its URL and a connection."""
    name = "shop_" + hashlib.md5(request.node.name.encode()).hexdigest()[:8]
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(server.dsn_of(name), autocommit=True) as connection:
        build(connection, 7, SMALL, NOW)
        yield server.dsn_of(name), connection


def numbers(connection: psycopg.Connection[Any], *queries: str) -> list[int]:
    return [connection.execute(query).fetchone()[0] for query in queries]  # type: ignore[index]


def test_opens_with_books_in_order(shop: tuple[str, psycopg.Connection[Any]]) -> None:
    _, connection = shop
    assert numbers(connection, STOCK_OFF, ORDERS_OFF, RESERVED_OFF, PAID_OFF) == [0, 0, 0, 0]
    assert numbers(connection, "SELECT count(*) FROM shop.customers", "SELECT count(*) FROM shop.orders") == [200, 300]
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'shop' ORDER BY 1").fetchall()
    assert tuple(name for (name,) in found) == TABLES
    without_key = "SELECT count(*) FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'shop'::regnamespace AND NOT EXISTS "
    assert numbers(connection, without_key + "(SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)") == [0]


def test_descriptions_are_stored_out_of_line(shop: tuple[str, psycopg.Connection[Any]]) -> None:
    _, connection = shop
    smallest, toast = numbers(
        connection,
        "SELECT min(length(description)) FROM shop.products",
        "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'shop.products'::regclass",
    )
    assert smallest > 8000
    assert toast > 40 * 2000


def test_history_is_from_the_seed_and_has_nights() -> None:
    one, same, other = (generate(random.Random(seed), Size(), NOW) for seed in (1, 1, 2))
    assert {name: table.rows for name, table in one.items()} == {name: table.rows for name, table in same.items()}
    assert one["orders"].rows != other["orders"].rows
    hours = [row[6].hour for row in one["orders"].rows]
    assert sum(18 <= hour < 22 for hour in hours) > 3 * sum(2 <= hour < 6 for hour in hours)


def digest(connection: psycopg.Connection[Any]) -> str:
    """All tables without their times."""
    parts = []
    for table in TABLES:
        columns = connection.execute(
            "SELECT string_agg(quote_ident(attname), ',' ORDER BY attnum) FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND atttypid NOT IN ('timestamptz'::regtype, 'date'::regtype)",
            (f"shop.{table}",),
        ).fetchone()
        assert columns is not None
        rows = connection.execute(f"SELECT {columns[0]} FROM shop.{table} ORDER BY 1, 2").fetchall()
        parts.append(hashlib.sha256(repr(rows).encode()).hexdigest())
    return " ".join(parts)


def test_the_same_seed_trades_the_same(server: Postgres) -> None:
    digests = []
    for name, seed in (("same_a", 5), ("same_b", 5), ("same_c", 6)):
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(server.dsn_of(name), autocommit=True) as connection:
            build(connection, 7, SMALL, NOW)
            trader = Trader(connection, seed)
            for _ in range(150):
                trader.step()
            digests.append(digest(connection))
    assert digests[0] == digests[1] != digests[2]


def test_everything_happens_and_the_books_balance_after_each_step(shop: tuple[str, psycopg.Connection[Any]]) -> None:
    _, connection = shop
    trader = Trader(connection, 3)
    for action in (trader.relocate_warehouse, trader.forget, trader.launch_product, trader.rewrite_description, trader.log_in):
        with connection.transaction():
            assert action() > 0
        assert numbers(connection, STOCK_OFF, ORDERS_OFF, RESERVED_OFF, PAID_OFF) == [0, 0, 0, 0]
    for step in range(1500):
        trader.step()
        if step % 50 == 0:
            assert numbers(connection, STOCK_OFF, ORDERS_OFF, RESERVED_OFF, PAID_OFF) == [0, 0, 0, 0], step
    reached = {status for (status,) in connection.execute("SELECT DISTINCT status FROM shop.orders WHERE id > 300")}
    assert reached >= {"delivered", "cancelled", "returned"}
    forgotten, moved, returned, restocked, orphans = numbers(
        connection,
        "SELECT count(*) FROM shop.orders WHERE customer_id IS NULL AND ship_to IS NULL",
        "SELECT count(*) FROM shop.warehouses WHERE code NOT LIKE '%-1'",
        "SELECT count(*) FROM shop.returns WHERE returned_at > now() - interval '1 hour'",
        "SELECT count(*) FROM shop.stock_movements WHERE reason = 'restock'",
        "SELECT count(*) FROM shop.orders o LEFT JOIN shop.customers c ON c.id = customer_id WHERE c.id IS NULL AND ship_to IS NOT NULL",
    )
    assert min(forgotten, moved, returned, restocked) > 0
    assert orphans == 0


def test_traders_together_keep_the_books(shop: tuple[str, psycopg.Connection[Any]]) -> None:
    dsn, connection = shop
    traders = Traders(dsn, 11, workers=3, rate=1e6)
    with traders:
        while traders.transactions < 600:
            traders.check()
            threading.Event().wait(0.02)
    traders.stop()
    assert traders.rows > 600
    assert numbers(connection, STOCK_OFF, ORDERS_OFF, RESERVED_OFF, PAID_OFF) == [0, 0, 0, 0]


def test_trade_keeps_its_rate(shop: tuple[str, psycopg.Connection[Any]]) -> None:
    _, connection = shop
    stop = threading.Event()
    seen: list[tuple[int, int, int]] = []

    def report(number: int, transactions: int, rows: int) -> None:
        seen.append((number, transactions, rows))
        if transactions == 20:
            stop.set()

    trade(connection, 1, stop, 1e6, report=report)
    assert [transactions for _, transactions, _ in seen] == list(range(1, 21))
    assert sorted(rows for *_, rows in seen) == [rows for *_, rows in seen]


def test_a_shop_that_somebody_else_changes_is_said(shop: tuple[str, psycopg.Connection[Any]]) -> None:
    _, connection = shop
    trader = Trader(connection, 3)
    trader.fill_cart()
    connection.execute("DELETE FROM shop.carts")
    with pytest.raises(Refused, match="SHOP_INCONSISTENT"):
        trader.log_in()


def test_a_lost_database_is_said(shop: tuple[str, psycopg.Connection[Any]]) -> None:
    dsn, connection = shop
    traders = Traders(dsn, 11, workers=1)
    with traders:
        while not traders.transactions:
            threading.Event().wait(0.01)
        while not traders._failed:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shop 0'")
            threading.Event().wait(0.02)
    with pytest.raises(Unreachable, match="SHOP_DATABASE"):
        traders.check()
