"""What must hold of histories: replayed, each is its mirror; and every row of it is what the source's log, or the lake, did.

Shares no code with what writes them. Each failure raises ``Broken``.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from icelake.model.load import LoadState
from icelake.model.lsn import parse_lsn
from tests.sim.lake import Json, Lake
from tests.sim.postgres import Change, Row, SimPostgres, Table, Transaction
from tests.sim.world import Broken

SUFFIX = "_history"
CHANGES = ("insert", "update", "delete", "truncate")
COLUMNS = ("number", "op", "commit_lsn", "seq", "xid", "commit_time", "old_key", "row")
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)


def spelled(row: Row | None) -> str:
    """Tells 0.0 from -0.0, and no zone from another that is the same."""
    return repr([value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value for value in row or ()])


class Histories:
    """``rows`` of a history as dicts, in order."""

    def __init__(self, postgres: SimPostgres, lake: Lake) -> None:
        self.postgres = postgres
        self.lake = lake
        self._published: dict[tuple[str, int], tuple[Transaction, list[Change]]] = {}
        """Of a table and a transaction's ``id``, which stays its own as long as it is here."""

    def check(self, table: Table, mirror: Json, at: int, history: Json, history_at: int, what: str) -> list[Mapping[str, Any]]:
        """At these snapshots the history is its mirror's. Its rows."""
        columns = [name for name in COLUMNS if table.relation.identity != "none" or name != "old_key"]
        found = sorted(row for row, _ in self.lake.contents(history, history_at, columns).rows)
        rows: list[Mapping[str, Any]] = [dict(zip(columns, row, strict=True)) for row in found]
        replayed = self._replayed(table, rows, what)
        names = [column.name for column in table.relation.columns]
        held = Counter(spelled(row) for row, _ in self.lake.contents(mirror, at, names).rows)
        if replayed != held:
            raise Broken(f"{what}: the history of {table.name} lacks {dict(held - replayed)} and has {dict(replayed - held)} too many")
        return rows

    def _replayed(self, table: Table, rows: Sequence[Mapping[str, Any]], what: str) -> "Counter[str]":
        keyed: dict[Any, str] = {}
        bag: Counter[str] = Counter()
        transactions = {transaction.commit_lsn: transaction for transaction in self.postgres.log}
        for place, entry in enumerate(rows, start=1):
            about = f"{what}: the history of {table.name}, number {entry['number']} ({entry['op']})"
            if entry["number"] != place:
                raise Broken(f"{about} is the {place}th")
            old, row = entry.get("old_key"), entry["row"]
            if entry["op"] in CHANGES:
                transaction = transactions[entry["commit_lsn"]]
                self._is_in_the_log(table, entry, transaction, about)
            elif not entry["seq"] is entry["xid"] is entry["commit_time"] is None:
                raise Broken(f"{about} is no change, and has a transaction")
            if entry["op"] in ("truncate", "reset"):
                keyed.clear()
                bag.clear()
            if old is not None:
                key = tuple(old.values())
                gone = keyed.pop(key, None) if table.keyed else spelled(key)
                if gone is None or not bag[gone]:
                    raise Broken(f"{about} takes {key}, which is not there")
                bag[gone] -= 1
            if row is not None:
                new = tuple(row.values())
                if table.keyed and table.key(new) in keyed:
                    raise Broken(f"{about} brings {table.key(new)}, which is there")
                keyed[table.key(new)] = spelled(new)
                bag[spelled(new)] += 1
        return +bag

    def published(self, table: Table, transaction: Transaction) -> list[Change]:
        """A transaction's changes of the table, as far as they are sent."""
        known = self._published.get((table.name, id(transaction)))
        if known is None:
            sent = any(table.relation.oid in oids for oids in transaction.published.values())
            changes = [
                change
                for change in transaction.changes
                if sent and table in change.tables() and (table.relation.identity != "none" or change.old is None)
            ]
            known = self._published[table.name, id(transaction)] = (transaction, changes)
        return known[1]

    def _is_in_the_log(self, table: Table, entry: Mapping[str, Any], transaction: Transaction, about: str) -> None:
        made = _UNIX + timedelta(microseconds=transaction.time_us)
        if (entry["xid"], entry["commit_time"]) != (transaction.xid, made):
            raise Broken(f"{about} is of transaction {entry['xid']} at {entry['commit_time']}, not {transaction.xid} at {made}")
        changes = self.published(table, transaction)
        if not 1 <= entry["seq"] <= len(changes):
            raise Broken(f"{about} has place {entry['seq']} of {len(changes)}")
        change = changes[entry["seq"] - 1]
        old, row = entry.get("old_key"), entry["row"]
        if (entry["op"] == "truncate") != bool(change.truncated):
            raise Broken(f"{about}: the log has {change}")
        if row is not None and spelled(tuple(row.values())) != spelled(change.new):
            raise Broken(f"{about} has {tuple(row.values())}, the log {change.new}")
        if old is not None and (change.old is None or spelled(tuple(old.values())) != spelled(self._named(table, change.old))):
            raise Broken(f"{about} has {tuple(old.values())} before, the log {change.old}")
        # A change of key over the edge of what is loaded is the half of it that happened here.
        shape = {"insert": (False, True), "update": (True, True), "delete": (True, False), "truncate": (False, False)}[entry["op"]]
        if (old is not None, row is not None) != shape:
            raise Broken(f"{about} has {'an' if old is not None else 'no'} old row and {'a' if row is not None else 'no'} new one")

    def _named(self, table: Table, row: Row) -> tuple[Any, ...]:
        return table.key(row) if table.keyed else row

    def complete(self, table: Table, mirror: Json, history: Json, rows: Sequence[Mapping[str, Any]], position: int, what: str) -> None:
        """Of a table that is loaded, every change since then, or since the history began, is there once. All are as they are now."""
        newest = LoadState.parse(mirror["properties"]["icelake.load"]).newest
        begin = max(newest, parse_lsn(json.loads(history["properties"]["icelake.history"])["since"]))
        reset = max((row["number"] for row in rows if row["op"] == "reset"), default=0)
        found = [
            (row["commit_lsn"], row["seq"]) for row in rows if row["op"] in CHANGES and row["number"] > reset and row["commit_lsn"] >= begin
        ]
        wanted = [
            (transaction.commit_lsn, place)
            for transaction in self.postgres.log
            if transaction.commit_lsn >= begin and transaction.end_lsn <= position
            for place in range(1, 1 + len(self.published(table, transaction)))
        ]
        if found != wanted:
            raise Broken(f"{what}: the history of {table.name} has the changes {found} since {begin:X}, the log {wanted}")
