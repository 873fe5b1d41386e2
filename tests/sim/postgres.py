"""A model PostgreSQL: tables, transactions, WAL positions, publications, slots, and the pgoutput protocol in bytes.

Promises what the protocol of logical replication promises and nothing more: whole transactions in commit order (protocol
version 1), START_REPLICATION below ``confirmed_flush_lsn`` silently moved forward, unchanged TOAST values not sent, a table's
changes sent only while its publication names it, ``confirmed_flush_lsn`` going back when the server crashes.
Sources: PostgreSQL documentation, "Logical Replication Message Formats", "Streaming Replication Protocol".
It does no I/O and knows nothing of the applier.
"""

import random
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from icelake.model.ident import append_publication
from icelake.model.relation import Column, Relation

Row = tuple[Any, ...]
Key = tuple[Any, ...]
Rows = Mapping[Key, Row]
State = Mapping[str, Rows]
"""Table -> its rows by key; rows without a key by a number of their own, which nothing that is sent tells."""

TOAST_FROM = 24
"""A text value at least this long is stored out of line in a toastable column."""
PG_EPOCH_US = 946_684_800_000_000
_MICROSECOND = timedelta(microseconds=1)
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)


def _column(name: str, attnum: int, pg_type: str, nullable: bool = True, typmod: int = -1) -> Column:
    oid, iceberg = {
        "integer": (23, "int"),
        "bigint": (20, "long"),
        "text": (25, "string"),
        "boolean": (16, "boolean"),
        "double precision": (701, "double"),
        "numeric(12,2)": (1700, "decimal(12,2)"),
        "timestamp with time zone": (1184, "timestamptz"),
    }[pg_type]
    return Column(name, attnum, oid, typmod, pg_type, iceberg, nullable)


@dataclass(frozen=True, slots=True)
class Table:
    relation: Relation
    key_at: tuple[int, ...]
    """Where the key columns are among the columns; empty if it has no key."""
    toastable: frozenset[int]
    full: bool
    """REPLICA IDENTITY FULL."""

    @property
    def name(self) -> str:
        return str(self.relation.id)

    @property
    def keyed(self) -> bool:
        return self.relation.identity == "key"

    def key(self, row: Row) -> Key:
        return tuple(row[i] for i in self.key_at)


def make_keyless() -> list[Table]:
    """events (REPLICA IDENTITY FULL, many equal rows), journal (nothing names its rows: append-only)."""
    columns = (
        _column("kind", 1, "text"),
        _column("size", 3, "integer"),
        _column("weight", 4, "double precision"),
        _column("body", 5, "text"),
    )
    events = Relation(16405, "shop", "events", columns, (), False, "full")
    journal = Relation(16406, "shop", "journal", columns, (), False, "none")
    return [Table(events, (), frozenset({3}), True), Table(journal, (), frozenset({3}), False)]


def make_tables(full: bool) -> list[Table]:
    """customers (integer key), orders (bigint key), lines (two-column key), tags (a text key that has no order here)."""
    numeric_12_2 = ((12 << 16) | 2) + 4
    customers = Relation(
        16401,
        "shop",
        "customers",
        (
            _column("id", 1, "integer", False),
            _column("name", 2, "text"),
            _column("note", 4, "text"),
            _column("active", 5, "boolean"),
        ),
        ("id",),
    )
    orders = Relation(
        16402,
        "shop",
        "orders",
        (
            _column("memo", 1, "text"),
            _column("id", 2, "bigint", False),
            _column("amount", 3, "numeric(12,2)", True, numeric_12_2),
            _column("placed", 4, "timestamp with time zone"),
        ),
        ("id",),
    )
    lines = Relation(
        16403,
        "shop",
        "lines",
        (
            _column("order_id", 1, "bigint", False),
            _column("n", 2, "integer", False),
            _column("text", 3, "text"),
            _column("more", 4, "text"),
        ),
        ("order_id", "n"),
    )
    tags = Relation(
        16404,
        "shop",
        "tags",
        (_column("tag", 1, "text", False), _column("weight", 2, "double precision")),
        ("tag",),
        key_is_ordered=False,
    )
    return [
        Table(customers, (0,), frozenset({2}), False),
        Table(orders, (1,), frozenset({0}), False),
        Table(lines, (0, 1), frozenset({2, 3}), full),
        Table(tags, (0,), frozenset(), False),
    ]


# ------------------------------------------------------------------------------------------------------ output functions


def text_of(value: Any) -> bytes:
    """A value as PostgreSQL's output function prints it (DateStyle ISO, TimeZone UTC)."""
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, datetime):
        fraction = f".{value.microsecond:06d}".rstrip("0") if value.microsecond else ""
        return (value.strftime("%Y-%m-%d %H:%M:%S") + fraction + "+00").encode()
    if isinstance(value, float):
        if value != value:
            return b"NaN"
        if value in (float("inf"), float("-inf")):
            return b"Infinity" if value > 0 else b"-Infinity"
        return ("-0" if str(value) == "-0.0" else repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)).encode()
    return str(value).encode()


def parsed_key(table: "Table", key: Sequence[str]) -> Key:
    """The inverse of ``text_of`` for a key of that table."""
    columns = table.relation.key_columns
    return tuple(text if column.iceberg == "string" else int(text) for text, column in zip(key, columns, strict=True))


class Unchanged:
    """What stands in a new tuple for a TOAST value that was not sent."""


UNCHANGED = Unchanged()


def _tuple(values: Sequence[Any]) -> bytes:
    out = [struct.pack(">H", len(values))]
    for value in values:
        if value is None:
            out.append(b"n")
        elif value is UNCHANGED:
            out.append(b"u")
        else:
            text = text_of(value)
            out.append(b"t" + struct.pack(">I", len(text)) + text)
    return b"".join(out)


def begin_message(commit_lsn: int, time_us: int, xid: int) -> bytes:
    return b"B" + struct.pack(">QqI", commit_lsn, time_us - PG_EPOCH_US, xid)


def commit_message(commit_lsn: int, end_lsn: int, time_us: int) -> bytes:
    return b"C" + struct.pack(">BQQq", 0, commit_lsn, end_lsn, time_us - PG_EPOCH_US)


def origin_message() -> bytes:
    return b"O" + struct.pack(">Q", 0) + b"elsewhere\0"


def relation_message(table: Table) -> bytes:
    relation = table.relation
    out = [
        b"R",
        struct.pack(">I", relation.oid),
        relation.schema.encode() + b"\0" + relation.name.encode() + b"\0",
        b"f" if table.full else b"d" if table.keyed else b"n",
        struct.pack(">H", len(relation.columns)),
    ]
    for at, column in enumerate(relation.columns):
        flag = 1 if table.full or at in table.key_at else 0
        out.append(struct.pack(">B", flag) + column.name.encode() + b"\0" + struct.pack(">Ii", column.type_oid, column.typmod))
    return b"".join(out)


# ------------------------------------------------------------------------------------------------------------ operations


@dataclass(frozen=True, slots=True)
class Change:
    """One row change, or with ``truncated`` a TRUNCATE of several tables at once. ``old``/``new`` are whole rows."""

    table: Table | None
    old: Row | None
    new: Row | None
    truncated: tuple[Table, ...] = ()

    def message(self, published: frozenset[int], append: frozenset[int]) -> bytes | None:
        """The pgoutput message, or None if nothing of it is published. OIDs of tables: all changes; inserts and truncates only."""
        if self.truncated:
            oids = [t.relation.oid for t in self.truncated if t.relation.oid in published | append]
            return b"T" + struct.pack(">IB", len(oids), 0) + b"".join(struct.pack(">I", oid) for oid in oids) if oids else None
        table = self.table
        assert table is not None
        if table.relation.oid not in (published if self.old is not None else published | append):
            return None
        oid = struct.pack(">I", table.relation.oid)
        if self.old is None:
            assert self.new is not None
            return b"I" + oid + b"N" + _tuple(self.new)
        key_only = [value if at in table.key_at else None for at, value in enumerate(self.old)]
        if self.new is None:
            return b"D" + oid + (b"O" + _tuple(self.old) if table.full else b"K" + _tuple(key_only))
        sent = [
            UNCHANGED if at in table.toastable and was == now and isinstance(now, str) and len(now) >= TOAST_FROM else now
            for at, (was, now) in enumerate(zip(self.old, self.new, strict=True))
        ]
        identity = b""
        if table.full:
            identity = b"O" + _tuple(self.old)
        elif table.key(self.old) != table.key(self.new):
            identity = b"K" + _tuple(key_only)
        return b"U" + oid + identity + b"N" + _tuple(sent)

    def tables(self) -> tuple[Table, ...]:
        if self.truncated:
            return self.truncated
        assert self.table is not None
        return (self.table,)


@dataclass(frozen=True, slots=True)
class Transaction:
    number: int
    """Its place in ``SimPostgres.log``."""
    xid: int
    commit_lsn: int
    """Where the commit record starts (Begin.final_lsn)."""
    end_lsn: int
    time_us: int
    changes: tuple[Change, ...]
    published: Mapping[str, frozenset[int]]
    """Publication -> OIDs, as it was when the transaction ran."""

    def is_sent(self) -> bool:
        """Whether any change of it is."""
        sent = frozenset().union(*self.published.values())
        return any(
            table.relation.oid in sent and (table.relation.identity != "none" or change.old is None)
            for change in self.changes
            for table in change.tables()
        )


@dataclass(slots=True)
class Slot:
    name: str
    confirmed: int
    persisted: int
    """What ``confirmed`` falls back to when the server crashes."""
    lost: str | None = None


@dataclass(slots=True)
class History:
    """The rows of all tables after each transaction; only touched tables are copied."""

    ends: list[int] = field(default_factory=list)
    commits: list[int] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    births: list[Mapping[str, Mapping[Key, int]]] = field(default_factory=list)
    """For each live row the number of its birth: kept by updates, new with every insert."""


class SimPostgres:
    """The server. Every method is instantaneous; who waits, loses connections or dies is the world's business."""

    def __init__(self, rng: random.Random, tables: Sequence[Table]) -> None:
        self.rng = rng
        self.tables = {table.name: table for table in tables}
        self.system_id = str(7_000_000_000_000_000_000 + rng.getrandbits(40))
        self.timeline = 1
        self.switches: dict[int, int] = {}
        """Timeline -> the LSN it was left at."""
        self.wal = 0x1500000 + rng.randrange(1 << 16) * 8
        self.publications: dict[str, frozenset[int]] = {}
        self.unnamed: set[int] = set()
        """OIDs of tables whose replica identity was taken away."""
        self.joined: dict[int, int] = {}
        """OID -> how often the table was added to its publication."""
        self.rewritten: dict[int, int] = {}
        """OID -> how often ALTER TABLE wrote its rows anew."""
        self.database = "shop"
        self.restored: int | None = None
        """Where its WAL ends, if it was restored, and does not grow any more."""
        self.slots: dict[str, Slot] = {}
        self.log: list[Transaction] = []
        self.history = History([0], [0], [{table.name: {} for table in tables}], [{table.name: {} for table in tables}])
        self._xid = 700
        self._birth = 0
        self._serial = 0
        self._truncating = rng.choice((0.005, 0.01, 0.06))
        self._busy = sorted(self.tables)
        self._time_us = 1_760_000_000_000_000

    # ---------------------------------------------------------------------------------------------------------- state

    def state(self, lsn: int) -> State:
        """Everything committed with end LSN <= ``lsn``: what a lake at that position holds."""
        return self.history.states[bisect_right(self.history.ends, lsn) - 1]

    def appended(self, table: str, lsn: int, position: int) -> list[Row]:
        """What an append-only mirror read at consistent point ``lsn`` holds at ``position``: what it read, and what was inserted since."""
        rows = list(self.state_before(lsn)[table].values())
        for transaction in self.log:
            if transaction.commit_lsn >= lsn and transaction.end_lsn <= position:
                for change in transaction.changes:
                    if table in {each.name for each in change.truncated}:
                        rows.clear()
                    elif change.table is not None and change.table.name == table and change.old is None and change.new is not None:
                        rows.append(change.new)
        return rows

    def births(self, lsn: int) -> Mapping[str, Mapping[Key, int]]:
        return self.history.births[bisect_right(self.history.ends, lsn) - 1]

    def state_before(self, lsn: int) -> State:
        """Everything whose commit LSN is < ``lsn``: what a snapshot with that consistent point sees."""
        at = bisect_right(self.history.commits, lsn - 1) - 1
        return self.history.states[at]

    @property
    def now(self) -> State:
        return self.history.states[-1]

    # ---------------------------------------------------------------------------------------------------- transactions

    def other_activity(self) -> None:
        """WAL that no publication cares about: another database, a checkpoint, an index build."""
        self.wal += 8 * self.rng.randrange(1, 400)

    def commit(self, changes: Sequence[Change], births: Mapping[str, Mapping[Key, int]], state: State) -> Transaction:
        # Records of a transaction may all have been written before the previous one committed: then the commit records touch.
        self.wal += self.rng.choice((0, 0, 8, 64, 8 * self.rng.randrange(1, 2000)))
        commit_lsn = self.wal
        self.wal += 8 * self.rng.randrange(5, 9)
        self._xid += 1
        self._time_us += self.rng.randrange(-400_000, 2_000_000)  # commit times are not monotonic in LSN
        transaction = Transaction(len(self.log), self._xid, commit_lsn, self.wal, self._time_us, tuple(changes), dict(self.publications))
        self.log.append(transaction)
        self.history.ends.append(self.wal)
        self.history.commits.append(commit_lsn)
        self.history.states.append(state)
        self.history.births.append(births)
        return transaction

    def transact(self, size: int) -> Transaction:
        """A random transaction of about ``size`` changes over random tables."""
        rng = self.rng
        state: dict[str, Rows] = dict(self.now)
        births: dict[str, Mapping[Key, int]] = dict(self.history.births[-1])
        touched: dict[str, tuple[dict[Key, Row], dict[Key, int]]] = {}
        # Traffic dwells on a few tables for a while, as in life.
        if rng.random() < 0.12:
            self._busy = rng.sample(sorted(self.tables), rng.choice((1, 2, 2, 3)))
        names = self._busy
        changes: list[Change] = []

        def open_table(name: str) -> tuple[dict[Key, Row], dict[Key, int]]:
            if name not in touched:
                touched[name] = (dict(state[name]), dict(births[name]))
                state[name], births[name] = touched[name]
            return touched[name]

        for _ in range(size):
            table = self.tables[rng.choice(names)]
            rows, born = open_table(table.name)
            what = rng.random()
            if what < self._truncating and len(changes) < 40:
                several = [table] + ([self.tables[rng.choice(names)]] if rng.random() < 0.4 else [])
                several = list({t.name: t for t in several}.values())
                for each in several:
                    emptied, unborn = open_table(each.name)
                    emptied.clear()
                    unborn.clear()
                changes.append(Change(None, None, None, tuple(several)))
            elif what < 0.42 or not rows:
                row = self._row(table)
                key = table.key(row) if table.keyed else (self._birth,)
                if key in rows:
                    self._update(table, rows, key, changes)
                else:
                    self._birth += 1
                    rows[key] = row
                    born[key] = self._birth
                    changes.append(Change(table, None, row))
            else:
                key = rng.choice(list(rows))
                if what < 0.75:
                    self._update(table, rows, key, changes)
                elif what < 0.84 and table.keyed:
                    self._move(table, rows, born, key, changes)
                else:
                    gone = rows.pop(key)
                    changes.append(Change(table, gone, None))
                    born.pop(key)
                    if what > 0.95:  # delete and insert of one key, or of one row, in one transaction
                        self._birth += 1
                        row = self._row(table, key) if table.keyed else gone
                        rows[key] = row
                        born[key] = self._birth
                        changes.append(Change(table, None, row))
        return self.commit(changes, births, state)

    def _update(self, table: Table, rows: dict[Key, Row], key: Key, changes: list[Change]) -> None:
        old = rows[key]
        fresh = self._row(table, key)
        new = tuple(
            was if at in table.key_at or self.rng.random() < (0.7 if at in table.toastable else 0.5) else now
            for at, (was, now) in enumerate(zip(old, fresh, strict=True))
        )
        rows[key] = new
        changes.append(Change(table, old, new))

    def _move(self, table: Table, rows: dict[Key, Row], born: dict[Key, int], key: Key, changes: list[Change]) -> None:
        """An update of the key; sometimes two rows swap their keys, which takes three updates."""

        def step(source: Key, target: Key) -> None:
            old = rows.pop(source)
            fresh = self._row(table, target)
            new = tuple(
                now if at in table.key_at else (was if self.rng.random() < 0.8 else now)
                for at, (was, now) in enumerate(zip(old, fresh, strict=True))
            )
            rows[target] = new
            born[target] = born.pop(source)
            changes.append(Change(table, old, new))

        free = table.key(self._row(table))
        if free in rows:
            others = [other for other in rows if other != key]
            spare = self._spare(table)
            if not others or spare in rows:
                return
            other = self.rng.choice(others)
            step(key, spare)
            step(other, key)
            step(spare, other)
        else:
            step(key, free)

    def _spare(self, table: Table) -> Key:
        return tuple("spare" if column.iceberg == "string" else -7 for column in table.relation.key_columns)

    def _row(self, table: Table, key: Key | None = None) -> Row:
        if not table.keyed:
            return self._one_of_few(table)
        values = [self._value(column, at in table.toastable) for at, column in enumerate(table.relation.columns)]
        drawn = key if key is not None else tuple(self._key_value(column) for column in table.relation.key_columns)
        for at, value in zip(table.key_at, drawn, strict=True):
            values[at] = value
        return tuple(values)

    def _one_of_few(self, table: Table) -> Row:
        """A row many others are equal to; 0.0 and -0.0 are two values, and so are NULL and the empty text."""
        rng = self.rng
        values: dict[str, tuple[Any, ...]] = {
            "kind": ("", None, "a"),
            "size": (None, 1, 2),
            "weight": (0.0, -0.0),
            "body": (None, None, "large " * 6, "LARGE " * 6),
        }
        return tuple(rng.choice(values[column.name]) for column in table.relation.columns)

    def _key_value(self, column: Column) -> Any:
        rng = self.rng
        if column.iceberg == "string":
            return rng.choice("abcdefghij") + rng.choice(("", "é", "'", "\\", " z"))
        if column.iceberg == "int":
            return rng.randrange(-6, 30) if column.name == "id" else rng.randrange(0, 4)
        return rng.randrange(0, 24) if column.name == "order_id" else rng.choice((1, 1 << 33, -(1 << 40))) + rng.randrange(0, 14)

    def _value(self, column: Column, toastable: bool) -> Any:
        rng = self.rng
        if rng.random() < 0.12:
            return None
        kind = column.iceberg
        if kind == "string":
            self._serial += 1
            if toastable and rng.random() < 0.6:
                return f"long value {self._serial} \u00fc\t" + "x" * rng.randrange(TOAST_FROM, 60)
            return rng.choice(("", "\\N", "tab\tback\\slash", f"v{self._serial}", f"w{self._serial}", f"x{self._serial}"))
        if kind == "boolean":
            return rng.random() < 0.5
        if kind == "double":
            return rng.choice((0.1 + self._serial, -1.5e300, 0.0, float("inf"), 5e-324, 1.0))
        if kind == "timestamptz":
            return _UNIX + rng.randrange(-(10**17), 2 * 10**18) // 100 * _MICROSECOND
        if kind == "decimal(12,2)":
            return Decimal(rng.randrange(-(10**12) + 1, 10**12)).scaleb(-2)
        return rng.randrange(-1000, 1000)

    # ------------------------------------------------------------------------------------------- slots and publications

    def publish(self, publication: str, oids: frozenset[int]) -> None:
        known = self.publications.get(publication, frozenset())
        for oid in oids - known:
            self.joined[oid] = self.joined.get(oid, 0) + 1
        self.publications[publication] = known | oids
        self.other_activity()

    def leave(self, name: str) -> None:
        """Somebody takes a table out of its publication."""
        oid = self.tables[name].relation.oid
        self.publications = {publication: oids - {oid} for publication, oids in self.publications.items()}
        self.other_activity()

    def come_back(self, name: str, publications: Mapping[str, frozenset[int]]) -> None:
        """And puts it into it again, as it was in ``publications``."""
        oid = self.tables[name].relation.oid
        for publication, oids in publications.items():
            if oid in oids:
                self.publish(publication, frozenset({oid}))

    def rewrite(self, name: str) -> None:
        """ALTER TABLE … TYPE … USING: values change in many rows, and no change of it is sent."""
        table = self.tables[name]
        rows = {key: self._rewritten(table, key, row) for key, row in self.now[name].items()}
        self.rewritten[table.relation.oid] = self.rewritten.get(table.relation.oid, 0) + 1
        self.commit([], self.history.births[-1], {**self.now, name: rows})

    def _rewritten(self, table: Table, key: Key, row: Row) -> Row:
        fresh = self._row(table, key)
        return tuple(
            was if at in table.key_at or self.rng.random() < 0.4 else now for at, (was, now) in enumerate(zip(row, fresh, strict=True))
        )

    def create_slot(self, name: str) -> int:
        """A slot whose consistent point is here: it sends transactions whose commit LSN is at or after it."""
        if self.rng.random() < 0.5:
            self.other_activity()
        self.slots[name] = Slot(name, self.wal, self.wal)
        return self.wal

    def confirm(self, name: str, lsn: int) -> None:
        slot = self.slots[name]
        slot.confirmed = max(slot.confirmed, lsn)
        if self.rng.random() < 0.3:
            slot.persisted = slot.confirmed

    def crash(self) -> None:
        for slot in self.slots.values():
            slot.confirmed = slot.persisted

    def promote(self, at: int) -> None:
        """On a new timeline, which took over what ends at or before ``at``: its history knows nothing of what branched off later."""
        later = [timeline for timeline, left in self.switches.items() if left > at]
        parent = min(later, default=self.timeline)
        self.switches = {timeline: left for timeline, left in self.switches.items() if timeline < parent} | {parent: at}
        self.timeline += 1

    def first_sent(self, slot: str, start: int) -> int:
        """The number of the first transaction START_REPLICATION at ``start`` sends: never one the slot has confirmed."""
        begin_at = max(start, self.slots[slot].confirmed)
        return bisect_left(self.log, begin_at, key=lambda transaction: transaction.commit_lsn)

    def messages(self, publication: str, number: int, known: set[int], rng: random.Random) -> tuple[Transaction, list[bytes]] | None:
        """The first transaction at or after ``number`` that the stream of a publication and the append-only one beside it sends,

        and its messages; None: none yet.

        ``known`` holds the OIDs whose relation message this connection has sent. Raises LookupError when the publication did not
        exist at the time of the change.
        """
        for transaction in self.log[number:]:
            if publication not in transaction.published:
                if transaction.changes:
                    raise LookupError(publication)
                continue
            published = transaction.published[publication]
            append = transaction.published.get(append_publication(publication), frozenset())
            out: list[bytes] = []
            for change in transaction.changes:
                message = change.message(published, append)
                if message is None:
                    continue
                for table in change.tables():
                    oid = table.relation.oid
                    if oid in published | append and (oid not in known or rng.random() < 0.02):
                        known.add(oid)
                        out.append(relation_message(table))
                out.append(message)
            if not out and transaction.xid % 10 >= 3:
                continue  # since PostgreSQL 15 an empty transaction is not sent; before, it was
            head = [begin_message(transaction.commit_lsn, transaction.time_us, transaction.xid)]
            if rng.random() < 0.03:
                head.append(origin_message())
            tail = commit_message(transaction.commit_lsn, transaction.end_lsn, transaction.time_us)
            return transaction, [*head, *out, tail]
        return None
