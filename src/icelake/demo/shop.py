"""The shop trading: customers come, fill carts, order, pay, are sent things, return some, move, and ask to be forgotten.

Every ``step`` is one transaction, most of them over several tables; ``shop.sql`` names two sums that hold after each. Decisions
come from the seed; what concurrency decides (who gets the last lamp) does not. Deadlocks and serialization failures are tried
again. Any other database error ends the trader that met it and is raised from ``Traders.check`` and ``Traders.stop``.
"""

import heapq
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Self

import psycopg
from psycopg import errors

from icelake.demo.build import CARRIERS, METHODS, REASONS, address, customer, description, popularity, product
from icelake.errors import Refused, Unreachable

Row = tuple[Any, ...]

NEXT = {"placed": "pay", "paid": "pick", "picked": "ship", "shipped": "deliver", "delivered": "settle"}
"""What happens to an order next."""

RESERVE = """
WITH wanted AS (SELECT * FROM unnest(%(products)s::bigint[], %(quantities)s::int[]) AS w(product_id, quantity)),
free AS (
    SELECT s.warehouse, s.product_id, w.quantity FROM shop.stock_levels s JOIN wanted w USING (product_id)
    WHERE s.warehouse = (SELECT code FROM shop.warehouses WHERE city = %(city)s) AND s.on_hand - s.reserved >= w.quantity
    ORDER BY s.product_id FOR UPDATE OF s
)
UPDATE shop.stock_levels s SET reserved = s.reserved + f.quantity, updated_at = now()
FROM free f WHERE s.warehouse = f.warehouse AND s.product_id = f.product_id
RETURNING s.product_id, f.quantity
"""

MOVE = """
WITH wanted AS (SELECT * FROM unnest(%(products)s::bigint[], %(quantities)s::int[]) AS w(product_id, quantity)),
held AS (
    SELECT s.warehouse, s.product_id, w.quantity FROM shop.stock_levels s JOIN wanted w USING (product_id)
    WHERE s.warehouse = (SELECT code FROM shop.warehouses WHERE city = %(city)s)
    ORDER BY s.product_id FOR UPDATE OF s
)
UPDATE shop.stock_levels s
SET on_hand = s.on_hand + %(on_hand)s * h.quantity, reserved = s.reserved + %(reserved)s * h.quantity, updated_at = now()
FROM held h WHERE s.warehouse = h.warehouse AND s.product_id = h.product_id
"""

BOOK = """
INSERT INTO shop.stock_movements (warehouse, product_id, quantity, reason, order_id)
SELECT (SELECT code FROM shop.warehouses WHERE city = %(city)s), w.product_id, %(sign)s * w.quantity, %(reason)s, %(order)s
FROM unnest(%(products)s::bigint[], %(quantities)s::int[]) AS w(product_id, quantity)
"""


@dataclass(slots=True)
class Cart:
    customer: int
    items: dict[int, int] = field(default_factory=dict)
    """product -> quantity"""


@dataclass(slots=True)
class Order:
    customer: int
    city: str
    total: Decimal
    products: list[int]
    quantities: list[int]
    status: str


class Trader:
    """One worker with a connection of its own (autocommit). It owns every ``workers``-th customer, order and cart."""

    def __init__(self, connection: psycopg.Connection[Any], seed: int, number: int = 0, workers: int = 1) -> None:
        self._connection = connection
        self._rng = random.Random(f"{seed}/{number}")
        self._number = number
        self.steps = 0
        self.retries = 0
        mine = {"n": workers, "k": number}
        self._customers: list[int] = [i for (i,) in self._all("SELECT id FROM shop.customers WHERE id %% %(n)s = %(k)s ORDER BY id", mine)]
        self._cities: list[str] = [city for (city,) in self._all("SELECT city FROM shop.warehouses ORDER BY city")]
        self._products: list[int] = [i for (i,) in self._all("SELECT id FROM shop.products ORDER BY id")]
        self._weights = popularity(len(self._products))
        self._serial = 0
        self._carts: dict[uuid.UUID, Cart] = {}
        for basket, owner, each, quantity in self._all(
            "SELECT c.id, c.customer_id, i.product_id, i.quantity FROM shop.carts c JOIN shop.cart_items i ON i.cart_id = c.id "
            "WHERE c.customer_id %% %(n)s = %(k)s ORDER BY c.id, i.product_id",
            mine,
        ):
            self._carts.setdefault(basket, Cart(owner)).items[each] = quantity
        self._orders: dict[int, Order] = {}
        self._due: list[tuple[int, int]] = []
        """(step, order): when something happens to the order next"""
        for ident, *rest in self._all(
            "SELECT o.id, o.customer_id, o.ships_from, o.total, array_agg(l.product_id ORDER BY line_no), "
            "array_agg(l.quantity ORDER BY line_no), o.status FROM shop.orders o JOIN shop.order_lines l ON l.order_id = o.id "
            "WHERE o.status IN ('placed', 'paid', 'picked', 'shipped') AND o.customer_id %% %(n)s = %(k)s GROUP BY o.id ORDER BY o.id",
            mine,
        ):
            self._orders[ident] = Order(*rest)
            self._later(ident, 4000)
        self._actions: Sequence[tuple[int, Callable[[], int]]] = (
            (300, self.fill_cart),
            (100, self.change_cart),
            (260, self.place_order),
            (40, self.log_in),
            (60, self.abandon_cart),
            (60, self.sign_up),
            (45, self.change_prices),
            (6, self.rewrite_description),
            (45, self.change_email),
            (25, self.move_house),
            (45, self.restock),
            (10, self.forget),
            (3, self.launch_product),
            (2, self.relocate_warehouse),
        )

    # ------------------------------------------------------------------------------------------------------------- a step

    def step(self) -> int:
        """One transaction; how many rows it changed (rows changed by a cascade count where they are known)."""
        self.steps += 1
        due = self._due and self._due[0][0] <= self.steps
        action = self.advance if due else self._rng.choices([a for _, a in self._actions], [w for w, _ in self._actions])[0]
        while True:
            try:
                with self._connection.transaction():
                    return action()
            except (errors.DeadlockDetected, errors.SerializationFailure):
                self.retries += 1

    def _all(self, query: str, parameters: dict[str, Any] | None = None) -> list[Row]:
        return self._connection.execute(query, parameters).fetchall()

    def _one(self, query: str, **parameters: Any) -> Row:
        row: Row | None = self._connection.execute(query, parameters).fetchone()
        if row is None:
            raise Refused("SHOP_INCONSISTENT", "the shop's database is not what its traders left", f"no row from: {query}")
        return row

    def _do(self, query: str, **parameters: Any) -> int:
        return self._connection.execute(query, parameters).rowcount

    def _must(self, expected: int, query: str, **parameters: Any) -> int:
        done = self._do(query, **parameters)
        if done != expected:
            raise Refused("SHOP_INCONSISTENT", "the shop's database is not what its traders left", f"{done} rows, not {expected}: {query}")
        return done

    def _later(self, order: int, steps: int) -> None:
        heapq.heappush(self._due, (self.steps + self._rng.randrange(1, steps), order))

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self._rng.getrandbits(128), version=4)

    def _wish(self) -> dict[int, int]:
        count = self._rng.choices((1, 2, 3, 4), (40, 30, 20, 10))[0]
        chosen = self._rng.choices(self._products, self._weights, k=count)
        return {each: self._rng.choices((1, 2, 3), (80, 15, 5))[0] for each in sorted(set(chosen))}

    # -------------------------------------------------------------------------------------------------------------- carts

    def fill_cart(self) -> int:
        basket, cart = self._uuid(), Cart(self._rng.choice(self._customers), self._wish())
        self._do("INSERT INTO shop.carts (id, customer_id) VALUES (%(id)s, %(customer)s)", id=basket, customer=cart.customer)
        self._do(
            "INSERT INTO shop.cart_items (cart_id, product_id, quantity) SELECT %(id)s, * FROM unnest(%(p)s::bigint[], %(q)s::int[])",
            id=basket,
            p=list(cart.items),
            q=list(cart.items.values()),
        )
        self._carts[basket] = cart
        return 1 + len(cart.items)

    def change_cart(self) -> int:
        """Something more goes in, or the quantity of what was there goes up."""
        if not self._carts:
            return self.fill_cart()
        basket = self._any_cart()
        ((each, quantity), *_) = self._wish().items()
        self._do(
            "INSERT INTO shop.cart_items (cart_id, product_id, quantity) VALUES (%(id)s, %(p)s, %(q)s) "
            "ON CONFLICT (cart_id, product_id) DO UPDATE SET quantity = cart_items.quantity + excluded.quantity",
            id=basket,
            p=each,
            q=quantity,
        )
        self._must(1, "UPDATE shop.carts SET updated_at = now() WHERE id = %(id)s", id=basket)
        items = self._carts[basket].items
        items[each] = items.get(each, 0) + quantity
        return 2

    def log_in(self) -> int:
        """The visitor's session gets a new id, and the cart and its items with it: primary keys change."""
        if not self._carts:
            return self.fill_cart()
        old, new = self._any_cart(), self._uuid()
        self._must(1, "UPDATE shop.carts SET id = %(new)s, updated_at = now() WHERE id = %(old)s", old=old, new=new)
        cart = self._carts.pop(old)
        self._carts[new] = cart
        return 1 + len(cart.items)

    def abandon_cart(self) -> int:
        if not self._carts:
            return self.fill_cart()
        basket = self._any_cart()
        return self._drop_cart(basket)

    def _drop_cart(self, basket: uuid.UUID) -> int:
        self._must(1, "DELETE FROM shop.carts WHERE id = %(id)s", id=basket)
        return 1 + len(self._carts.pop(basket).items)

    def _any_cart(self) -> uuid.UUID:
        return self._rng.choice(list(self._carts))

    # ------------------------------------------------------------------------------------------------------------- orders

    def place_order(self) -> int:
        """A cart becomes an order of what one warehouse has; the rest is a lost sale."""
        if not self._carts:
            return self.fill_cart()
        basket, city = self._any_cart(), self._rng.choice(self._cities)
        cart = self._carts[basket]
        wanted = {"products": list(cart.items), "quantities": list(cart.items.values()), "city": city}
        free: dict[int, int] = dict(self._all(RESERVE, wanted))
        if not free:
            return self._drop_cart(basket)
        products = sorted(free)
        quantities = [free[each] for each in products]
        price: dict[int, Decimal] = dict(self._all("SELECT id, price FROM shop.products WHERE id = ANY(%(p)s)", {"p": products}))
        total = sum((price[each] * free[each] for each in products), Decimal(0))
        (order,) = self._one(
            "INSERT INTO shop.orders (customer_id, status, ships_from, total, ship_to) VALUES (%(c)s, 'placed', %(city)s, %(total)s, "
            "(SELECT street || ', ' || postcode || ' ' || city FROM shop.addresses WHERE customer_id = %(c)s ORDER BY id LIMIT 1)) "
            "RETURNING id",
            c=cart.customer,
            city=city,
            total=total,
        )
        self._do(
            "INSERT INTO shop.order_lines (order_id, line_no, product_id, quantity, unit_price) "
            "SELECT %(id)s, u.line_no, u.p, u.q, u.price "
            "FROM unnest(%(p)s::bigint[], %(q)s::int[], %(price)s::numeric[]) WITH ORDINALITY AS u(p, q, price, line_no)",
            id=order,
            p=products,
            q=quantities,
            price=[price[each] for each in products],
        )
        rows = 2 * len(products) + 1 + self._drop_cart(basket)
        self._orders[order] = Order(cart.customer, city, total, products, quantities, "placed")
        self._later(order, 30)
        return rows

    def advance(self) -> int:
        """What is due next happens to an order."""
        _, ident = self._due[0]
        order = self._orders[ident]
        chance = self._rng.random()
        if order.status in ("placed", "paid") and chance < (0.09 if order.status == "placed" else 0.03):
            rows, status = self._cancel(ident, order), "cancelled"
        elif order.status == "delivered":
            rows, status = (self._return(ident, order), "returned") if chance < 0.12 else (0, "settled")
        else:
            rows, status = {"placed": self._pay, "paid": self._pick, "picked": self._ship, "shipped": self._deliver}[order.status](
                ident, order
            )
        if status != "settled":
            rows += self._must(
                1, "UPDATE shop.orders SET status = %(status)s, updated_at = now() WHERE id = %(id)s", status=status, id=ident
            )
        # Only now, when no statement can fail any more, do we remember it.
        heapq.heappop(self._due)
        order.status = status
        if status in NEXT:
            self._later(ident, 60 if status == "delivered" else 30)
        else:
            del self._orders[ident]
        return rows

    def _pay(self, ident: int, order: Order) -> tuple[int, str]:
        return self._do(
            "INSERT INTO shop.payments (id, order_id, method, amount, status) VALUES (%(id)s, %(o)s, %(method)s, %(amount)s, 'captured')",
            id=self._uuid(),
            o=ident,
            method=self._rng.choice(METHODS),
            amount=order.total,
        ), "paid"

    def _pick(self, ident: int, order: Order) -> tuple[int, str]:
        return self._stock(ident, order, on_hand=-1, reserved=-1) + self._book(ident, order, -1, "sale"), "picked"

    def _ship(self, ident: int, order: Order) -> tuple[int, str]:
        return self._do(
            "INSERT INTO shop.shipments (order_id, warehouse, carrier, tracking) "
            "VALUES (%(o)s, (SELECT code FROM shop.warehouses WHERE city = %(city)s), %(carrier)s, %(tracking)s)",
            o=ident,
            city=order.city,
            carrier=self._rng.choice(CARRIERS),
            tracking=f"{self._rng.randrange(16**10):010X}",
        ), "shipped"

    def _deliver(self, ident: int, order: Order) -> tuple[int, str]:
        return self._must(1, "UPDATE shop.shipments SET delivered_at = now() WHERE order_id = %(o)s", o=ident), "delivered"

    def _cancel(self, ident: int, order: Order) -> int:
        return self._stock(ident, order, on_hand=0, reserved=-1) + self._refund(ident)

    def _return(self, ident: int, order: Order) -> int:
        rows = self._do(
            "INSERT INTO shop.returns (order_id, line_no, quantity, reason, refund) "
            "SELECT order_id, line_no, quantity, %(reason)s, quantity * unit_price FROM shop.order_lines WHERE order_id = %(o)s",
            o=ident,
            reason=self._rng.choice(REASONS),
        )
        return rows + self._stock(ident, order, on_hand=1, reserved=0) + self._book(ident, order, 1, "return") + self._refund(ident)

    def _refund(self, ident: int) -> int:
        return self._do("UPDATE shop.payments SET status = 'refunded' WHERE order_id = %(o)s", o=ident)

    def _stock(self, ident: int, order: Order, *, on_hand: int, reserved: int) -> int:
        return self._must(
            len(order.products),
            MOVE,
            products=order.products,
            quantities=order.quantities,
            city=order.city,
            on_hand=on_hand,
            reserved=reserved,
        )

    def _book(self, ident: int, order: Order, sign: int, reason: str) -> int:
        return self._do(BOOK, products=order.products, quantities=order.quantities, city=order.city, sign=sign, reason=reason, order=ident)

    # --------------------------------------------------------------------------------------------------------- the people

    def sign_up(self) -> int:
        self._serial += 1
        email, name, phone, born, newsletter = customer(self._rng, 0)
        email = f"{email.split('.0@')[0]}.{self._number}.{self._serial}@example.com"
        (ident,) = self._one(
            "INSERT INTO shop.customers (email, name, phone, born, newsletter) VALUES (%(e)s, %(n)s, %(p)s, %(b)s, %(l)s) RETURNING id",
            e=email,
            n=name,
            p=phone,
            b=born,
            l=newsletter,
        )
        self._do(
            "INSERT INTO shop.addresses (customer_id, kind, street, postcode, city, country) "
            "VALUES (%(c)s, 'home', %(s)s, %(p)s, %(t)s, %(l)s)",
            c=ident,
            **dict(zip("sptl", address(self._rng), strict=True)),
        )
        self._customers.append(ident)
        return 2

    def change_email(self) -> int:
        self._serial += 1
        return self._must(
            1,
            "UPDATE shop.customers SET email = %(e)s, newsletter = NOT newsletter, updated_at = now() WHERE id = %(c)s",
            e=f"moved.{self._number}.{self._serial}@example.org",
            c=self._rng.choice(self._customers),
        )

    def move_house(self) -> int:
        street, postcode, city, country = address(self._rng)
        return self._do(
            "UPDATE shop.addresses SET street = %(s)s, postcode = %(p)s, city = %(t)s, country = %(l)s WHERE customer_id = %(c)s",
            s=street,
            p=postcode,
            t=city,
            l=country,
            c=self._rng.choice(self._customers),
        )

    def forget(self) -> int:
        """Someone asks to be deleted: the person goes, the orders stay without a name."""
        if len(self._customers) < 10:
            return self.sign_up()
        who = self._rng.choice(self._customers)
        baskets = [basket for basket, cart in self._carts.items() if cart.customer == who]
        rows = self._do("DELETE FROM shop.carts WHERE customer_id = %(c)s", c=who)
        rows += sum(len(self._carts[basket].items) for basket in baskets)
        rows += self._do("UPDATE shop.orders SET customer_id = NULL, ship_to = NULL, updated_at = now() WHERE customer_id = %(c)s", c=who)
        rows += self._do("DELETE FROM shop.addresses WHERE customer_id = %(c)s", c=who)
        rows += self._must(1, "DELETE FROM shop.customers WHERE id = %(c)s", c=who)
        self._customers.remove(who)
        for basket in baskets:
            del self._carts[basket]
        return rows

    # ----------------------------------------------------------------------------------------------------------- the goods

    def change_prices(self) -> int:
        """A few products at once. Their descriptions, stored out of line, do not change and are not sent."""
        chosen = sorted(set(self._rng.choices(self._products, k=self._rng.randrange(1, 6))))
        return self._do(
            "UPDATE shop.products p SET price = greatest(1, round(p.price * %(f)s::numeric, 2)), updated_at = now() "
            "FROM (SELECT id FROM shop.products WHERE id = ANY(%(p)s) ORDER BY id FOR NO KEY UPDATE) locked WHERE p.id = locked.id",
            f=Decimal(self._rng.randrange(90, 112)) / 100,
            p=chosen,
        )

    def rewrite_description(self) -> int:
        return self._must(
            1,
            "UPDATE shop.products SET description = %(d)s, updated_at = now() WHERE id = %(p)s",
            d=description(self._rng),
            p=self._rng.choice(self._products),
        )

    def launch_product(self) -> int:
        """Every warehouse gets some of it. Traders who opened before it do not sell it."""
        self._serial += 1
        sku, name, price, weight, text, attributes = product(self._rng, self._serial)
        (ident,) = self._one(
            "INSERT INTO shop.products (sku, name, price, weight, launched, description, attributes) "
            "VALUES (%(sku)s, %(n)s, %(price)s, %(w)s, current_date, %(d)s, %(a)s) RETURNING id",
            sku=f"NEW-{self._number}-{sku}",
            n=name,
            price=price,
            w=weight,
            d=text,
            a=attributes,
        )
        self._do(
            "INSERT INTO shop.stock_levels (warehouse, product_id, on_hand, reorder_at) SELECT code, %(p)s, 50, 10 FROM shop.warehouses",
            p=ident,
        )
        rows = self._do(
            "INSERT INTO shop.stock_movements (warehouse, product_id, quantity, reason) "
            "SELECT code, %(p)s, 50, 'opening' FROM shop.warehouses",
            p=ident,
        )
        self._products.append(ident)
        self._weights.append(self._weights[len(self._weights) // 10])
        return 1 + 2 * rows

    def restock(self) -> int:
        """A lorry for one warehouse, with what it is short of, at most 25 products."""
        city = self._rng.choice(self._cities)
        short = self._all(
            "SELECT product_id, 3 * reorder_at FROM shop.stock_levels WHERE on_hand - reserved < reorder_at "
            "AND warehouse = (SELECT code FROM shop.warehouses WHERE city = %(city)s) ORDER BY product_id LIMIT 25",
            {"city": city},
        )
        if not short:
            return 0
        lorry = Order(0, city, Decimal(0), [each for each, _ in short], [quantity for _, quantity in short], "")
        rows = self._must(len(short), MOVE, products=lorry.products, quantities=lorry.quantities, city=city, on_hand=1, reserved=0)
        return rows + self._do(BOOK, products=lorry.products, quantities=lorry.quantities, city=city, sign=1, reason="restock", order=None)

    def relocate_warehouse(self) -> int:
        """A warehouse gets a new code: its primary key changes, and with it the key of every stock level there."""
        # Nobody may be half way through an order from it; nothing else is locked yet, so nobody waits for us in a circle.
        self._connection.execute("LOCK TABLE shop.stock_levels IN SHARE ROW EXCLUSIVE MODE")
        city = self._rng.choice(self._cities)
        (code,) = self._one("SELECT code FROM shop.warehouses WHERE city = %(city)s", city=city)
        prefix, _, building = code.partition("-")
        new = f"{prefix}-{int(building) + 1}"
        self._must(1, "UPDATE shop.warehouses SET code = %(new)s WHERE code = %(old)s", new=new, old=code)
        (rows,) = self._one("SELECT count(*) FROM shop.stock_levels WHERE warehouse = %(new)s", new=new)
        return 1 + int(rows)


class Traders:
    """Some traders in threads, together changing about ``rate`` rows a second. A context manager; may be used once."""

    def __init__(self, dsn: str, seed: int, workers: int = 3, rate: float = 600.0) -> None:
        self._dsn = dsn
        self._seed = seed
        self._workers = workers
        self._rate = rate
        self._stop = threading.Event()
        self._counts = [(0, 0)] * workers
        self._failed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"trader {number}", daemon=True) for number in range(workers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def transactions(self) -> int:
        return sum(transactions for transactions, _ in self._counts)

    @property
    def rows(self) -> int:
        """Rows changed so far."""
        return sum(rows for _, rows in self._counts)

    def stop(self) -> None:
        """No more trade; raises what a trader ended of."""
        self.__exit__()
        self.check()

    def check(self) -> None:
        """Raises what a trader ended of, if one did."""
        if self._failed:
            raise self._failed[0]

    def _work(self, number: int) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True, application_name=f"shop {number}") as connection:
                trade(connection, self._seed, self._stop, self._rate / self._workers, number, self._workers, self._count)
        except psycopg.OperationalError as error:
            self._failed.append(Unreachable("SHOP_DATABASE", "the shop lost its database", str(error)))
        except (psycopg.Error, Refused) as error:
            self._failed.append(error)

    def _count(self, number: int, transactions: int, rows: int) -> None:
        self._counts[number] = (transactions, rows)


def trade(
    connection: psycopg.Connection[Any],
    seed: int,
    stop: threading.Event,
    rate: float,
    number: int = 0,
    workers: int = 1,
    report: Callable[[int, int, int], None] | None = None,
) -> None:
    """Trade until ``stop`` is set, changing about ``rate`` rows a second, evenly in time; ``report(number, transactions, rows)``."""
    trader = Trader(connection, seed, number, workers)
    rows = 0
    began = time.monotonic()
    while not stop.is_set():
        rows += trader.step()
        if report is not None:
            report(number, trader.steps, rows)
        ahead = rows / rate - (time.monotonic() - began)
        if ahead > 0:
            stop.wait(min(ahead, 1.0))
        elif ahead < -1.0:
            began = time.monotonic() - rows / rate  # too slow for the rate: do not make up for it in a burst
