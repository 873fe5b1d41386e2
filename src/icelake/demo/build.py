"""The shop's database as it is when the demo opens: tables, catalogue, customers and some days of trade.

The same seed, size and moment give the same rows. The two sums that ``shop.sql`` names hold from the start.
"""

import json
import math
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WAREHOUSES = (("RTM-1", "Rotterdam"), ("LYS-1", "Lyon"), ("POZ-1", "Poznań"), ("TRN-1", "Torino"), ("MLM-1", "Malmö"))
FIRST_NAMES = _words(
    "Ada Alan Amélie Anton Barbara Bjørn Chiara Claude Dagmar Edsger Elif Emma Femke Grace Håkon Ines Jakub Jan Joana Jürgen "
    "Katarzyna Lars Leonor Liam Linnéa Luca Magnus Maria Marta Mateusz Nils Noor Oskar Paula Rasmus Rózsa Sofia Søren Thijs Zoë"
)
LAST_NAMES = _words(
    "Andersson Bakker Bianchi Costa Dubois Fischer García Haddad Hopper Horváth Janssen Kowalski Lambert Larsen Lovelace Martin "
    "Meyer Moreau Nilsson Novák Nowak O'Brien Papadopoulos Peeters Petrov Ricci Rossi Schmidt Silva Smith Turing Visser Weber Yılmaz"
)
STREETS = _words("Canal Castle Church Garden Harbour High Lime Market Mill Orchard Park Ropemaker's Rose School Station Well")
CITIES = tuple(
    zip(
        _words("Amsterdam Antwerp Berlin Bologna Copenhagen Gdańsk Ghent Lisbon Lyon Malmö Porto Rotterdam Torino Utrecht Wrocław"),
        _words("NL BE DE IT DK PL BE PT FR SE PT NL IT NL PL"),
        strict=True,
    )
)
MATERIALS = _words("oak steel linen wool ceramic glass cork leather bamboo copper enamel canvas walnut marble felt")
THINGS = _words("lamp kettle chair blanket bowl backpack clock shelf teapot rug notebook mirror stool vase cushion knife jar tray")
WORDS = _words(
    "made by hand in a small workshop near the sea with care for every seam and edge so that it lasts longer than you expect it "
    "warm quiet sturdy light honest plain generous slow repairable washable stackable foldable seasoned brushed turned glazed woven "
    "table kitchen garden winter morning evening guest family window train river island forest market story summer Sunday "
    "keeps holds carries lights covers opens closes fits hangs stands ages softens shines rests travels belongs returns"
)
METHODS = ("card", "card", "card", "ideal", "paypal", "invoice")
CARRIERS = ("PostNord", "DHL", "DPD", "GLS")
REASONS = ("too small", "too large", "not as pictured", "arrived damaged", "changed my mind", "a second one by mistake")


@dataclass(frozen=True, slots=True)
class Size:
    """How big the shop is when it opens."""

    customers: int = 2000
    products: int = 500
    orders: int = 4000
    days: int = 7


@dataclass(slots=True)
class _Rows:
    """One table's rows on their way to COPY."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def build(connection: psycopg.Connection[Any], seed: int, size: Size | None = None, now: datetime | None = None) -> dict[str, int]:
    """Make the schema ``shop`` and fill it, in one transaction; rows by table. Raises psycopg errors (it exists already, ...)."""
    tables = generate(random.Random(seed), size or Size(), now or datetime.now(UTC))
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(Path(__file__).with_name("shop.sql").read_bytes())
        for name, table in tables.items():
            target = sql.Identifier("shop", name)
            columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(target, columns)) as copy:
                for row in table.rows:
                    copy.write_row(row)
            if table.columns[0] == "id" and table.rows and isinstance(table.rows[0][0], int):
                cursor.execute(
                    sql.SQL("SELECT setval(pg_get_serial_sequence({}, 'id'), {})").format(
                        sql.Literal(f"shop.{name}"), sql.Literal(len(table.rows))
                    )
                )
    return {name: len(table.rows) for name, table in tables.items()}


def customer(rng: random.Random, number: int) -> tuple[str, str, str | None, date | None, bool]:
    """email, name, phone, born, newsletter. ``number`` keeps the address unique."""
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    return (
        f"{_ascii(first)}.{_ascii(last)}.{number}@example.com",
        f"{first} {last}",
        f"+31 6 {rng.randrange(10**8):08d}" if rng.random() < 0.7 else None,
        date(1940, 1, 1) + timedelta(days=rng.randrange(24000)) if rng.random() < 0.6 else None,
        rng.random() < 0.3,
    )


def address(rng: random.Random) -> tuple[str, str, str, str]:
    """street, postcode, city, country"""
    city, country = rng.choice(CITIES)
    return f"{rng.choice(STREETS)} Street {rng.randrange(1, 200)}", f"{rng.randrange(1000, 9999)}", city, country


def product(rng: random.Random, number: int) -> tuple[str, str, Decimal, float, str, str]:
    """sku, name, price, weight in kg, description (8 kB and more), attributes as JSON"""
    name = f"{rng.choice(MATERIALS).capitalize()} {rng.choice(THINGS)}"
    price = Decimal(round(math.exp(rng.gauss(3.4, 0.7)) * 100)) / 100
    attributes = {
        "colours": rng.sample(("sand", "moss", "ink", "brick", "snow", "ochre", "plum"), 3),
        "size_mm": [rng.randrange(40, 900) for _ in range(3)],
        "care": " ".join(rng.choices(WORDS, k=30)),
        "rating": round(rng.uniform(2.5, 5.0), 2),
        "notes": {str(rng.randrange(1000)): " ".join(rng.choices(WORDS, k=8)) for _ in range(8)},
    }
    return f"SKU-{number:05d}", name, price, round(rng.lognormvariate(0, 0.8), 3), description(rng), json.dumps(attributes)


def description(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(1450, 1800)))


def popularity(products: int) -> list[float]:
    """Weights of products 1..n: a few sell most (Zipf)."""
    return [1 / (rank + 3) ** 0.9 for rank in range(products)]


def generate(rng: random.Random, size: Size, now: datetime) -> dict[str, _Rows]:
    """All rows, parents before children."""
    opened = now - timedelta(days=size.days)
    people = [
        (number, *customer(rng, number), seen := opened - timedelta(days=rng.random() * 900), seen)
        for number in range(1, size.customers + 1)
    ]
    addresses: list[tuple[Any, ...]] = []
    for number in range(1, size.customers + 1):
        for kind in ("home", "work")[: 1 + (rng.random() < 0.4)]:
            addresses.append((len(addresses) + 1, number, kind, *address(rng)))
    first_address = {row[1]: f"{row[3]}, {row[4]} {row[5]}" for row in reversed(addresses)}
    goods = []
    for number in range(1, size.products + 1):
        sku, name, price, weight, text, attributes = product(rng, number)
        launched = (opened - timedelta(days=rng.randrange(1500))).date()
        goods.append((number, sku, name, price, weight, rng.random() < 0.97, launched, text, attributes, opened))

    codes = {city: code for code, city in WAREHOUSES}
    orders: list[tuple[Any, ...]] = []
    lines: list[tuple[Any, ...]] = []
    payments: list[tuple[Any, ...]] = []
    shipments: list[tuple[Any, ...]] = []
    returns: list[tuple[Any, ...]] = []
    moves: list[tuple[Any, ...]] = []
    """(warehouse, product, quantity, reason, order, when), without id until they are sorted by time"""
    reserved: Counter[tuple[str, int]] = Counter()
    weights = popularity(size.products)
    for number, placed in enumerate(_trading_hours(rng, size, opened, now), start=1):
        age = (now - placed).total_seconds() / 3600
        status = _status(rng, age)
        code, city = rng.choice(WAREHOUSES)
        buyer = rng.randrange(1, size.customers + 1)
        wanted = sorted(set(rng.choices(range(1, size.products + 1), weights, k=rng.choices((1, 2, 3, 4, 5), (40, 28, 16, 10, 6))[0])))
        own = [(number, at, each, rng.choices((1, 2, 3), (80, 15, 5))[0], goods[each - 1][3]) for at, each in enumerate(wanted, start=1)]
        total = sum((line[3] * line[4] for line in own), Decimal(0))
        lines += own
        touched = placed
        if status in ("placed", "paid"):
            for line in own:
                reserved[code, line[2]] += line[3]
        if status != "placed" and not (status == "cancelled" and rng.random() < 0.7):
            touched = placed + timedelta(minutes=rng.random() * min(30, age * 30))
            refunded = status in ("cancelled", "returned")
            payments.append((_uuid(rng), number, rng.choice(METHODS), total, "refunded" if refunded else "captured", touched))
        if status in ("picked", "shipped", "delivered", "returned"):
            touched = placed + timedelta(hours=age * 0.4)
            moves += [(code, line[2], -line[3], "sale", number, touched) for line in own]
        if status in ("shipped", "delivered", "returned"):
            arrived = placed + timedelta(hours=age * 0.7) if status != "shipped" else None
            tracking = f"{rng.randrange(16**10):010X}"
            shipments.append((len(shipments) + 1, number, code, rng.choice(CARRIERS), tracking, touched, arrived))
            touched = arrived or touched
        if status == "returned":
            touched = placed + timedelta(hours=age * 0.9)
            for line in own:
                returns.append((len(returns) + 1, number, line[1], line[3], rng.choice(REASONS), line[3] * line[4], touched))
                moves.append((code, line[2], line[3], "return", number, touched))
        orders.append((number, buyer, status, city, first_address[buyer], total, placed, touched))

    sold: Counter[tuple[str, int]] = Counter()
    for code, each, quantity, *_ in moves:
        sold[code, each] -= quantity
    levels = []
    for code, _ in WAREHOUSES:
        for each in range(1, size.products + 1):
            popular = weights[each - 1] / weights[0]
            reorder = 5 + round(25 * popular)
            on_hand = reserved[code, each] + rng.randrange(1, 4 * reorder)
            levels.append((code, each, on_hand, reserved[code, each], reorder, now))
            moves.append((code, each, on_hand + sold[code, each], "opening", None, opened))
    moves.sort(key=lambda move: move[5])

    carts = []
    items = []
    for _ in range(size.customers // 20):
        basket, begun = _uuid(rng), now - timedelta(hours=rng.random() * 24)
        carts.append((basket, rng.randrange(1, size.customers + 1), begun, begun))
        chosen = set(rng.choices(range(1, size.products + 1), weights, k=rng.randrange(1, 5)))
        items += [(basket, each, rng.randrange(1, 3), begun) for each in sorted(chosen)]

    return {
        "customers": _Rows(("id", "email", "name", "phone", "born", "newsletter", "created_at", "updated_at"), list(people)),
        "addresses": _Rows(("id", "customer_id", "kind", "street", "postcode", "city", "country"), addresses),
        "products": _Rows(
            ("id", "sku", "name", "price", "weight", "active", "launched", "description", "attributes", "updated_at"), list(goods)
        ),
        "warehouses": _Rows(
            ("code", "city", "capacity", "opens_at"),
            [(codes[city], city, rng.randrange(5, 30) * 1000, time(6, 30)) for _, city in WAREHOUSES],
        ),
        "stock_levels": _Rows(("warehouse", "product_id", "on_hand", "reserved", "reorder_at", "updated_at"), list(levels)),
        "stock_movements": _Rows(
            ("id", "warehouse", "product_id", "quantity", "reason", "order_id", "moved_at"),
            [(number, *move) for number, move in enumerate(moves, start=1)],
        ),
        "carts": _Rows(("id", "customer_id", "created_at", "updated_at"), list(carts)),
        "cart_items": _Rows(("cart_id", "product_id", "quantity", "added_at"), list(items)),
        "orders": _Rows(("id", "customer_id", "status", "ships_from", "ship_to", "total", "placed_at", "updated_at"), orders),
        "order_lines": _Rows(("order_id", "line_no", "product_id", "quantity", "unit_price"), lines),
        "payments": _Rows(("id", "order_id", "method", "amount", "status", "paid_at"), payments),
        "shipments": _Rows(("id", "order_id", "warehouse", "carrier", "tracking", "shipped_at", "delivered_at"), shipments),
        "returns": _Rows(("id", "order_id", "line_no", "quantity", "reason", "refund", "returned_at"), returns),
    }


def _trading_hours(rng: random.Random, size: Size, opened: datetime, now: datetime) -> Sequence[datetime]:
    """When the orders were placed: quiet nights, a busy evening, in ascending order."""
    by_hour = [
        1 + 6 * math.exp(-(((hour - 20) / 2.5) ** 2)) + 4 * math.exp(-(((hour - 12) / 3) ** 2)) - 0.8 * (1 <= hour <= 6)
        for hour in range(24)
    ]
    heaviest = max(by_hour)
    times: list[datetime] = []
    while len(times) < size.orders:
        moment = opened + (now - opened) * rng.random()
        if rng.random() < by_hour[moment.hour] / heaviest:
            times.append(moment)
    return sorted(times)


def _status(rng: random.Random, hours: float) -> str:
    """How far an order of that age has come."""
    if rng.random() < 0.05:
        return "cancelled"
    steps = (("delivered", 60), ("shipped", 30), ("picked", 16), ("paid", 3), ("placed", 0))
    reached = next(status for status, needed in steps if hours * rng.uniform(0.6, 1.4) >= needed)
    return "returned" if reached == "delivered" and rng.random() < 0.07 else reached


def _uuid(rng: random.Random) -> uuid.UUID:
    return uuid.UUID(int=rng.getrandbits(128), version=4)


def _ascii(name: str) -> str:
    return "".join(c for c in name.lower() if c.isascii() and c.isalpha()) or "x"
