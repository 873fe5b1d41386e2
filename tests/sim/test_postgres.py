"""The model server against the real decoder: what it sends, applied to an empty dict, is what it holds."""

import random
from typing import Any

import pytest

from icelake.ports import DELETE, INSERT, TRUNCATE, UPDATE, ChangeSet
from icelake.sources.postgres.pgoutput import Decoder
from tests.sim.postgres import TOAST_FROM, SimPostgres, make_tables


def _apply(rows: dict[Any, Any], changes: ChangeSet) -> None:
    names = [column.name for column in changes.relation.columns]
    new = changes.new.to_pylist()
    old = changes.old_key.to_pylist()
    key_names = changes.relation.key
    for at, op in enumerate(changes.op):
        if op == TRUNCATE:
            rows.clear()
            continue
        old_key = tuple(old[at][name] for name in key_names)
        before = rows.pop(old_key) if op in (UPDATE, DELETE) else None
        if op in (INSERT, UPDATE):
            values = tuple(
                before[i] if before is not None and name in changes.unchanged and changes.unchanged[name][at] else new[at][name]
                for i, name in enumerate(names)
            )
            key = tuple(new[at][name] for name in key_names)
            assert key not in rows
            rows[key] = values


@pytest.mark.parametrize("seed", range(12))
def test_what_is_sent_is_what_is_held(seed: int) -> None:
    postgres = SimPostgres(random.Random(seed), make_tables(full=seed % 2 == 0))
    tables = {table.relation.oid: table for table in postgres.tables.values()}
    postgres.publish("all", frozenset(tables))
    slot = postgres.create_slot("slot")
    decoder = Decoder(lambda message: tables[message.oid].relation)
    rows: dict[str, dict[Any, Any]] = {name: {} for name in postgres.tables}
    known: set[int] = set()
    toast = 0
    number = postgres.first_sent("slot", slot)
    for _ in range(40):
        postgres.transact(postgres.rng.randrange(6))
        while (found := postgres.messages("all", number, known, postgres.rng)) is not None:
            transaction, messages = found
            number = transaction.number + 1
            middle = random.Random(seed).randrange(len(messages))
            for part in (messages[:middle], messages[middle:]):
                chunk = decoder.decode(b"".join(len(m).to_bytes(4, "little") + m for m in part))
                for changes in chunk.changes:
                    toast += sum(int(mask.sum()) for mask in changes.unchanged.values())
                    _apply(rows[str(changes.relation.id)], changes)
            assert chunk.position == transaction.end_lsn
            assert rows == postgres.state(transaction.end_lsn)
    assert toast > 0 or seed % 2 == 0
    assert any(isinstance(v, str) and len(v) >= TOAST_FROM for t in postgres.now.values() for row in t.values() for v in row)


def test_a_start_below_the_confirmed_position_is_moved_forward() -> None:
    postgres = SimPostgres(random.Random(1), make_tables(full=False))
    postgres.create_slot("slot")
    start = postgres.wal
    first, second = postgres.transact(1), postgres.transact(1)
    assert postgres.first_sent("slot", start) == first.number
    postgres.confirm("slot", first.end_lsn)
    assert postgres.first_sent("slot", start) == second.number


def test_a_server_crash_may_take_the_confirmed_position_back() -> None:
    postgres = SimPostgres(random.Random(1), make_tables(full=False))
    created = postgres.create_slot("slot")
    last = postgres.transact(1).end_lsn
    seen = set()
    for _ in range(20):
        postgres.confirm("slot", last)
        postgres.crash()
        seen.add(postgres.slots["slot"].confirmed)
        postgres.slots["slot"].confirmed = postgres.slots["slot"].persisted = created
    assert seen == {created, last}
