"""The decoder against messages written by hand, a plain Python model of what they mean, and noise."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.errors import Corrupt, UnsupportedTable, ValueOutOfContract
from icelake.model.relation import TABLEOID, Column, Relation
from icelake.ports import DELETE, INSERT, TRUNCATE, UPDATE, Chunk
from icelake.sources.postgres.pgoutput import Decoder, RelationMessage, parse_relation
from tests.unit.sources.postgres.wire import (
    UNSENT,
    begin,
    commit,
    delete,
    frame,
    insert,
    relation,
    relation_message,
    truncate,
    update,
)

ORDERS = relation(100, "orders", [("id", 20), ("note", 25), ("n", 23)], ["id"])
LINES = relation(50, "lines", [("text", 25), ("line", 23), ("order_id", 20)], ["order_id", "line"])
EVENTS = replace(relation(70, "events", [("n", 23), ("note", 25)], []), identity="full")
JOURNAL = replace(relation(60, "journal", [("n", 23), ("note", 25)], []), identity="none")
TABLES = {table.oid: table for table in (ORDERS, LINES, EVENTS, JOURNAL)}


def lookup(message: RelationMessage) -> Relation:
    return TABLES[message.oid]


def decoder() -> Decoder:
    """One that knows all tables."""
    made = Decoder(lookup)
    made.decode(frame(begin(1), *map(relation_message, TABLES.values()), commit(1, 2)))
    return made


def rows(batch: Any) -> list[tuple[Any, ...]]:
    batch.validate(full=True)
    return [tuple(row.values()) for row in batch.to_pylist()]


def test_one_transaction() -> None:
    chunk = Decoder(lookup).decode(
        frame(
            begin(0x5000, 1_700_000_000_000_123),
            relation_message(ORDERS),
            insert(100, [1, "a", None]),
            relation_message(LINES),
            insert(50, ["x", 7, 1]),
            update(100, [1, "ä", 5]),
            update(100, [2, "", 5], key=[1, None, None]),
            delete(50, key=[None, 7, 1]),
            truncate(50, 100),
            commit(0x5000, 0x5040, 1_700_000_000_000_123),
        )
    )
    assert (chunk.position, chunk.commit_time, chunk.transactions, chunk.open) == (0x5040, 1_700_000_000_000_123, 1, False)
    orders, lines = chunk.changes
    assert orders.relation is ORDERS
    assert orders.op.tolist() == [INSERT, UPDATE, UPDATE, TRUNCATE]
    assert set(orders.commit_lsn.tolist()) == {0x5000}
    assert rows(orders.new) == [(1, "a", None), (1, "ä", 5), (2, "", 5), (None, None, None)]
    assert rows(orders.old_key) == [(None,), (1,), (1,), (None,)]
    assert lines.op.tolist() == [INSERT, DELETE, TRUNCATE]
    assert lines.old_key.schema.names == ["order_id", "line"]
    assert rows(lines.old_key) == [(None, None), (1, 7), (None, None)]


def test_a_transaction_over_many_chunks() -> None:
    made = decoder()
    first = made.decode(frame(begin(9), insert(100, [1, "a", 1]), commit(9, 12), begin(2**63 + 5), insert(100, [2, "b", 1])))
    assert (first.position, first.open, first.transactions) == (12, True, 1)
    assert first.changes[0].commit_lsn.tolist() == [9, 2**63 + 5]
    second = made.decode(frame(insert(100, [3, "c", 1])))
    assert (second.position, second.open, second.commit_time) == (None, True, 0)
    assert second.changes[0].commit_lsn.tolist() == [2**63 + 5]
    third = made.decode(frame(commit(2**63 + 5, 2**63 + 9, 77)))
    assert (third.position, third.open, third.changes, third.commit_time) == (2**63 + 9, False, [], 77)
    nothing = made.decode(b"")
    assert (nothing.position, nothing.open, nothing.changes, nothing.bytes) == (None, False, [], 0)


def test_commit_time_is_the_largest_not_the_last() -> None:
    chunk = Decoder(lookup).decode(frame(begin(1), commit(1, 2, 500), begin(3), commit(3, 4, 400)))
    assert (chunk.commit_time, chunk.position, chunk.transactions) == (500, 4, 2)


def test_values_that_were_not_sent() -> None:
    (changes,) = (
        decoder()
        .decode(
            frame(
                begin(5),
                update(100, [1, UNSENT, 2]),
                update(100, [2, UNSENT, 2], key=[1, None, None]),
                update(100, [2, UNSENT, UNSENT], old=[2, "kept", None]),
                update(100, [UNSENT, "x", 2], key=[3, None, None]),
                update(100, [UNSENT, "y", 2], old=[4, "old", 1]),
                update(100, [5, UNSENT, 2], old=[4, UNSENT, 1]),
                insert(100, [6, "", 1]),
                commit(5, 6),
            )
        )
        .changes
    )
    assert rows(changes.new) == [(1, None, 2), (2, None, 2), (2, "kept", None), (3, "x", 2), (4, "y", 2), (5, None, 2), (6, "", 1)]
    assert rows(changes.old_key) == [(1,), (1,), (2,), (3,), (4,), (4,), (None,)]
    assert {name: where.tolist() for name, where in changes.unchanged.items()} == {"note": [True, True, False, False, False, True, False]}


def test_a_full_old_row_gives_the_key() -> None:
    (changes,) = (
        decoder()
        .decode(frame(begin(5), delete(50, old=["long text", 3, 9]), update(50, ["t", 4, 9], old=["s", 3, 8]), commit(5, 6)))
        .changes
    )
    assert rows(changes.old_key) == [(9, 3), (8, 3)]
    assert rows(changes.new) == [(None, None, None), ("t", 4, 9)]


def test_whole_old_rows_where_nothing_else_names_rows() -> None:
    (changes,) = (
        decoder()
        .decode(
            frame(
                begin(5),
                insert(70, [1, None]),
                update(70, [2, UNSENT], old=[1, "large"]),
                update(70, [None, None], old=[None, None]),
                delete(70, old=[None, ""]),
                truncate(70),
                commit(5, 6),
            )
        )
        .changes
    )
    assert changes.old is not None
    assert rows(changes.new) == [(1, None), (2, "large"), (None, None), (None, None), (None, None)]
    assert rows(changes.old) == [(None, None), (1, "large"), (None, None), (None, ""), (None, None)]
    assert (changes.op.tolist(), changes.unchanged) == ([INSERT, UPDATE, UPDATE, DELETE, TRUNCATE], {})
    assert changes.old_key.schema.names == []


def test_a_table_whose_rows_nothing_names() -> None:
    (changes,) = decoder().decode(frame(begin(5), insert(60, [1, None]), truncate(60), insert(60, [None, "a"]), commit(5, 6))).changes
    assert rows(changes.new) == [(1, None), (None, None), (None, "a")]
    assert (changes.old, changes.old_key.num_columns) == (None, 0)


def test_the_leaves_of_a_partitioned_table() -> None:
    """Each is a change set of its own, with its OID as ``tableoid`` and as part of the key, whatever the order of its columns."""
    plain = relation(1, "root", [("id", 23), ("note", 25)], ["id"])
    tableoid = Column("tableoid", TABLEOID, 26, -1, "oid", "long", nullable=False)
    root = replace(plain, columns=(*plain.columns, tableoid), key=("tableoid", "id"))
    leaves = replace(plain, oid=3_000_000_000, name="a"), replace(plain, oid=20, name="b")
    chunk = Decoder(lambda _: root).decode(
        frame(
            begin(5),
            relation_message(leaves[0]),
            relation_message(leaves[1], order=["note", "id"]),
            insert(3_000_000_000, [1, "a"]),
            insert(20, ["b", 1]),
            update(20, ["c", 2], key=[None, 1]),
            update(20, [UNSENT, 2]),
            delete(3_000_000_000, key=[1, None]),
            truncate(3_000_000_000, 20),
            commit(5, 6),
        )
    )
    a, b = chunk.changes
    assert (a.relation, b.relation) == (root, root)
    assert rows(a.new) == [(1, "a", 3_000_000_000), (None, None, None), (None, None, 3_000_000_000)]
    assert rows(a.old_key) == [(None, None), (3_000_000_000, 1), (None, None)]
    assert rows(b.new) == [(1, "b", 20), (2, "c", 20), (2, None, 20), (None, None, 20)]
    assert rows(b.old_key) == [(None, None), (20, 1), (20, 2), (None, None)]
    assert {name: where.tolist() for name, where in b.unchanged.items()} == {"note": [False, False, True, False]}
    assert b.op.tolist() == [INSERT, UPDATE, UPDATE, TRUNCATE]
    # Without a key the old row is whole, and without an identity there is none.
    bag = replace(root, key=(), identity="full")
    full = [begin(7), relation_message(leaves[1], b"f"), update(20, [3, "d"], old=[2, None]), delete(20, old=[3, "d"]), commit(7, 8)]
    (changes,) = Decoder(lambda _: bag).decode(frame(*full)).changes
    assert changes.old is not None
    assert rows(changes.old) == [(2, None, 20), (3, "d", 20)]
    log = replace(bag, identity="none")
    (changes,) = (
        Decoder(lambda _: log).decode(frame(begin(9), relation_message(leaves[1], b"n"), insert(20, [1, "x"]), commit(9, 10))).changes
    )
    assert rows(changes.new) == [(1, "x", 20)]


def test_columns_by_name_whatever_their_order_and_what_else_is_sent() -> None:
    wider = relation(100, "orders", [("extra", 25), ("n", 23), ("id", 20), ("note", 25)], ["id"])
    (changes,) = (
        Decoder(lookup)
        .decode(
            frame(begin(5), relation_message(wider), insert(100, ["?", 3, 1, "a"]), delete(100, key=[None, None, 1, None]), commit(5, 6))
        )
        .changes
    )
    assert rows(changes.new) == [(1, "a", 3), (None, None, None)]
    assert rows(changes.old_key) == [(None,), (1,)]


def test_a_changed_relation_starts_a_new_change_set() -> None:
    wider = relation(100, "orders", [("id", 20), ("note", 25), ("n", 23), ("more", 25)], ["id"])
    answers = [ORDERS, ORDERS, wider, ORDERS]
    asked: list[RelationMessage] = []

    def relations(message: RelationMessage) -> Relation:
        asked.append(message)
        return answers[len(asked) - 1]

    made = Decoder(relations)
    chunk = made.decode(
        frame(
            begin(5), relation_message(ORDERS), insert(100, [1, "a", 1]), relation_message(ORDERS), insert(100, [2, "a", 1]),
            relation_message(wider), insert(100, [3, "a", 1, "m"]), insert(100, [4, "a", 1, "m"]), commit(5, 6),
        )
    )  # fmt: skip
    assert [change.relation for change in chunk.changes] == [ORDERS, wider]
    assert [rows(change.new)[-1] for change in chunk.changes] == [(2, "a", 1), (4, "a", 1, "m")]
    assert len(asked) == 3
    again = made.decode(frame(begin(7), insert(100, [5, "a", 1, "m"]), relation_message(ORDERS), insert(100, [6, "a", 1]), commit(7, 8)))
    assert [change.relation for change in again.changes] == [wider, ORDERS]


def test_a_refused_relation_leaves_the_decoder_as_it_was() -> None:
    made = Decoder(lookup)
    made.decode(frame(begin(1), relation_message(ORDERS), insert(100, [1, "a", 1])))
    stranger = relation(7, "stranger", [("id", 20)], ["id"])
    with pytest.raises(KeyError):
        made.decode(frame(insert(100, [2, "a", 1]), relation_message(LINES), relation_message(stranger), commit(1, 2)))
    assert made.open
    with pytest.raises(Corrupt, match="before the Relation message"):
        made.decode(frame(insert(50, ["x", 7, 1])))
    assert made.decode(frame(insert(100, [2, "a", 1]), commit(1, 2))).changes[0].commit_lsn.tolist() == [1]


def test_a_relation_message_with_a_column_of_another_type_is_refused() -> None:
    sent = relation(100, "orders", [("id", 23), ("note", 25), ("n", 23)], ["id"])
    with pytest.raises(UnsupportedTable, match="TABLE_CHANGED"):
        Decoder(lookup).decode(frame(begin(1), relation_message(sent), commit(1, 2)))


def test_a_column_that_a_message_lacks_has_its_default() -> None:
    """It was added later: what the change's row has of it is the constant that rows from before the column have."""
    sent = relation(100, "orders", [("id", 20), ("n", 23)], ["id"])
    held = relation(100, "orders", [("id", 20), ("n", 23), ("late", 23), ("later", 25)], ["id"])
    held = replace(held, columns=(*held.columns[:2], replace(held.columns[2], default="7"), held.columns[3]))
    frames = frame(begin(1), relation_message(sent), insert(100, [1, 2]), insert(100, [2, None]), commit(1, 2))
    (changes,) = Decoder(lambda _: held).decode(frames).changes
    assert changes.new.to_pylist() == [{"id": 1, "n": 2, "late": 7, "later": None}, {"id": 2, "n": None, "late": 7, "later": None}]


def test_a_value_error_names_the_table() -> None:
    dated = relation(9, "dated", [("id", 20), ("d", 1082)], ["id"])
    with pytest.raises(ValueOutOfContract, match=r"public\.dated\.d"):
        Decoder(lambda _: dated).decode(frame(begin(1), relation_message(dated), insert(9, [1, "infinity"]), commit(1, 2)))


def test_other_messages_are_passed_over() -> None:
    chunk = decoder().decode(
        frame(
            b"M\x00" + bytes(8) + b"prefix\0" + bytes(4), begin(3), b"O" + bytes(8) + b"origin\0", b"Y" + bytes(4) + b"s\0t\0", commit(3, 4)
        )
    )
    assert (chunk.position, chunk.changes) == (4, [])


def test_a_relation_message_is_read_whole() -> None:
    message = relation_message(LINES, b"f")
    parsed = parse_relation(message)
    assert (parsed.oid, parsed.schema, parsed.name, parsed.replica_identity) == (50, "public", "lines", "f")
    assert [(c.key, c.name, c.type_oid, c.typmod) for c in parsed.columns] == [
        (False, "text", 25, -1),
        (True, "line", 23, -1),
        (True, "order_id", 20, -1),
    ]
    for cut in range(len(message)):
        with pytest.raises(Corrupt):
            parse_relation(message[:cut])
    with pytest.raises(Corrupt, match="CHANGE_STREAM_CORRUPT"):
        parse_relation(message + b"\0")


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([begin(1), begin(1)], "Begin"),
        ([begin(1)[:-1]], "Begin"),
        ([commit(1, 2)], "Commit"),
        ([begin(1), commit(2, 3)], "Commit"),
        ([begin(1), commit(1, 2) + b"x"], "Commit"),
        ([insert(100, [1, "a", 1])], "outside"),
        ([truncate(100)], "outside"),
        ([begin(1), insert(7, [1])], "before the Relation"),
        ([begin(1), truncate(100, 7)], "before the Relation"),
        ([begin(1), truncate(100)[:-1]], "too short"),
        ([begin(1), insert(100, [1, "a"])], "number of columns"),
        ([begin(1), update(100, [1, "a", 1, 1])], "number of columns"),
        ([begin(1), delete(100, key=[1])], "number of columns"),
        ([begin(1), insert(100, [1, "a", 1]) + b"x"], "exactly"),
        ([begin(1), delete(100, key=[1, None, None]) + b"x"], "exactly"),
        ([begin(1), insert(100, [1, UNSENT, 1])], "exactly"),
        ([begin(1), insert(100, [1, "a", 1]).replace(b"N", b"K", 1)], "exactly"),
        ([begin(1), delete(100, key=[1, None, None]).replace(b"K", b"N", 1)], "exactly"),
        ([begin(1), update(100, [1, "a", 1], key=[1, None, None])[:24]], "exactly"),
        ([begin(1), insert(100, [None, "a", 1])], "key column"),
        ([begin(1), update(100, [None, "a", 1], key=[1, None, None])], "key column"),
        ([begin(1), update(100, [1, "a", 1], key=[None, None, None])], "key column"),
        ([begin(1), update(100, [UNSENT, "a", 1])], "key column"),
        ([begin(1), delete(100, key=[UNSENT, None, None])], "key column"),
        ([begin(1), update(70, [1, "a"])], "row before the change"),
        ([begin(1), update(70, [1, "a"], key=[1, None])], "row before the change"),
        ([begin(1), delete(70, key=[1, None])], "row before the change"),
        ([begin(1), delete(70, old=[1, UNSENT])], "row before the change"),
        ([begin(1), update(70, [1, UNSENT], old=[1, UNSENT])], "row before the change"),
        ([begin(1), insert(70, [1, UNSENT])], "not in the message"),
        ([b"S" + bytes(12)], "streaming"),
        ([b"b" + bytes(40)], "streaming"),
        ([b"?"], "no message"),
        ([b""], "beyond the bytes"),
    ],
)
def test_what_cannot_be(messages: Sequence[bytes], why: str) -> None:
    made = decoder()
    with pytest.raises(Corrupt, match=why):
        made.decode(frame(*messages))
    assert not made.open


def test_every_torn_end_is_noticed() -> None:
    whole = frame(begin(5), insert(100, [1, "abc", 1]), update(50, ["x", 1, 2], old=["y", 1, 2]), commit(5, 6))
    edges = {0}
    at = 0
    while at < len(whole):
        at += 4 + struct.unpack_from("<I", whole, at)[0]
        edges.add(at)
    for cut in range(len(whole)):
        if cut in edges:
            decoder().decode(whole[:cut])
        else:
            with pytest.raises(Corrupt):
                decoder().decode(whole[:cut])


# ------------------------------------------------------------------------------------------------- a model, and noise

texts = st.none() | st.text(st.sampled_from("aé漢\\\t'"), max_size=4)
numbers = st.none() | st.integers(-9, 9)
order_rows = st.tuples(st.integers(1, 9), texts, numbers)
line_rows = st.tuples(texts, st.integers(1, 9), st.integers(1, 9))


@st.composite
def change(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int, tuple[Any, ...], tuple[Any, ...], tuple[bool, ...]]]]:
    """A message, and what it means: (oid, op, new row, old key, what was not sent) for each table it touches."""
    table = draw(st.sampled_from([ORDERS, LINES]))
    made = order_rows if table is ORDERS else line_rows
    places = [[c.name for c in table.columns].index(name) for name in table.key]
    none, no_key = (None,) * 3, (None,) * len(places)
    sent = (False,) * 3

    def key_of(row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(row[p] for p in places)

    def bare(row: Sequence[Any]) -> list[Any]:
        return [value if p in places else None for p, value in enumerate(row)]

    new, old = draw(made), draw(made)
    match draw(st.sampled_from("IUKODFT")):
        case "I":
            return insert(table.oid, new), [(table.oid, INSERT, new, no_key, sent)]
        case "D":
            return delete(table.oid, key=bare(old)), [(table.oid, DELETE, none, key_of(old), sent)]
        case "F":
            return delete(table.oid, old=old), [(table.oid, DELETE, none, key_of(old), sent)]
        case "T":
            both = draw(st.booleans())
            oids = [100, 50] if both else [table.oid]
            return truncate(*oids), [(oid, TRUNCATE, none, (None,) * len(TABLES[oid].key), sent) for oid in oids]
        case kind:
            held = tuple(p not in places and draw(st.booleans()) for p in range(3))
            row = [UNSENT if held[p] else value for p, value in enumerate(new)]
            if kind == "O":
                means = tuple(old[p] if held[p] else value for p, value in enumerate(new))
                return update(table.oid, row, old=old), [(table.oid, UPDATE, means, key_of(old), sent)]
            means = tuple(None if held[p] else value for p, value in enumerate(new))
            if kind == "K":
                return update(table.oid, row, key=bare(old)), [(table.oid, UPDATE, means, key_of(old), held)]
            return update(table.oid, row), [(table.oid, UPDATE, means, key_of(new), held)]


def flatten(chunks: Iterable[Chunk]) -> dict[int, list[Any]]:
    out: dict[int, list[Any]] = {oid: [] for oid in TABLES}
    for chunk in chunks:
        for found in chunk.changes:
            held = [found.unchanged.get(c.name, [False] * len(found.op)) for c in found.relation.columns]
            for at, (op, lsn, new, key) in enumerate(zip(found.op, found.commit_lsn, rows(found.new), rows(found.old_key), strict=True)):
                out[found.relation.oid].append((int(lsn), int(op), new, key, tuple(bool(column[at]) for column in held)))
    return out


@given(st.lists(st.lists(change(), max_size=6), max_size=5), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_any_transactions_cut_anywhere_mean_what_they_say(transactions: list[list[Any]], random: Any) -> None:
    messages: list[bytes] = []
    expected: dict[int, list[Any]] = {oid: [] for oid in TABLES}
    for number, changes in enumerate(transactions):
        lsn = 1000 + 10 * number
        messages.append(begin(lsn, number))
        for message, meanings in changes:
            messages.append(message)
            for oid, op, new, key, held in meanings:
                expected[oid].append((lsn, op, new, key, held))
        messages.append(commit(lsn, lsn + 4, number))
    made = decoder()
    chunks = []
    while messages:
        many = random.randint(1, len(messages))
        chunks.append(made.decode(frame(*messages[:many])))
        del messages[:many]
    assert flatten(chunks) == expected
    positions = [chunk.position for chunk in chunks if chunk.position is not None]
    assert positions == sorted(positions)
    assert sum(chunk.transactions for chunk in chunks) == len(transactions)
    if transactions:
        assert positions[-1] == 1000 + 10 * (len(transactions) - 1) + 4
    assert not made.open


def outcome(frames: bytes | memoryview) -> object:
    made = decoder()
    try:
        return flatten([made.decode(frames)])
    except KeyError:
        return "the caller does not know the relation"
    except (Corrupt, ValueOutOfContract, UnsupportedTable) as error:
        return str(error)


def surrounded(noise: bytes) -> None:
    found = outcome(noise)
    # The same wherever it lies: what is before and after it in memory was never looked at.
    around = b"N\x00\x03t\x00\x00\x00\x01" + noise + b"t\x00\x00\x00\x011" * 4
    assert outcome(memoryview(around)[8 : 8 + len(noise)]) == found


@given(st.lists(st.binary(max_size=30), max_size=8), st.binary(max_size=40))
@settings(deadline=None)
def test_noise(messages: list[bytes], tail: bytes) -> None:
    surrounded(frame(*messages) + tail)
    surrounded(frame(begin(5), *messages))


@given(
    st.lists(change(), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_damaged_messages(changes: list[Any], damage: list[tuple[int, int]], within_a_frame: bool) -> None:
    messages = [begin(5), relation_message(ORDERS), *[message for message, _ in changes], commit(5, 6)]
    if within_a_frame:
        at = damage[0][0] % len(messages)
        messages[at] = spoil(messages[at], damage)
        surrounded(frame(*messages))
    else:
        surrounded(spoil(frame(*messages), damage))


def spoil(raw: bytes, damage: list[tuple[int, int]]) -> bytes:
    spoiled = bytearray(raw)
    for at, value in damage:
        spoiled[at % len(spoiled)] = value
    return bytes(spoiled)
