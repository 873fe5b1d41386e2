"""The history of a mirror, ``<name>_history``: every effect the lake's applier had on its rows, as rows that are never changed.

Its columns, and what replays it (docs/protocol.md, Histories): in order of ``number``, ``truncate`` and ``reset`` take every row away (of
one ``partition``, if they name it), else the row under ``old_key`` goes if there is one, and ``row`` comes if there is one. What comes
out is the mirror.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from icelake.model.lsn import format_lsn, parse_lsn
from icelake.model.relation import TableId

HISTORY_OF = "icelake.history-of"
"""Property of a history: the lake's id of the source and the mirror it belongs to, ``<id>/<schema.name>``."""
HISTORY = "icelake.history"
"""Property of a history: ``HistoryNote`` as JSON."""
SUFFIX = "_history"

INSERT: Final = "insert"
UPDATE: Final = "update"
DELETE: Final = "delete"
TRUNCATE: Final = "truncate"
LOAD: Final = "load"
"""A row that was read from the source; its commit LSN is the L it was read at."""
MEND: Final = "mend"
"""The lake put itself right, and the source did nothing then: a row that a comparison at L added, changed or removed, or one that left
the lake to be read again."""
RESET: Final = "reset"
"""Every row left the lake, or nothing before this is to be relied on: the rows there are come after it."""
EMPTYING: Final = (TRUNCATE, RESET)
STOPPED: Final = -1
"""Instead of a snapshot of the mirror: changes were taken that are not told, also if they left no trace in the mirror."""
PARTITION: Final = "partition"
"""The column that only the history of a partitioned table has."""

COLUMNS: Final = (
    ("number", "long", True, "place in the history, from 1 and without gaps: the order to replay it in"),
    ("op", "string", True, "insert, update, delete, truncate: a change of the source; load, mend, reset: the lake's own"),
    ("commit_lsn", "long", True, "of a change: where its transaction's commit record begins; else as of which LSN the source was read"),
    ("seq", "long", False, "place among its transaction's changes of this table, from 1; null unless it is a change"),
    ("xid", "long", False, "the transaction; null unless it is a change"),
    ("commit_time", "timestamptz", False, "the source's clock at the commit; null unless it is a change"),
    (
        "old_key",
        "struct",
        False,
        "what names the row before: its key columns, or all of it if nothing less names it; null if there was none",
    ),
    ("row", "struct", False, "the row after, whole; null if there is none"),
    (PARTITION, "long", False, "of truncate and reset: the OID (tableoid) of the partition whose rows alone went; null: all rows"),
)
"""(name, type, required, meaning) in order; a column's field id is its place, from 1."""


@dataclass(frozen=True, slots=True)
class HistoryNote:
    """What a history says of itself, written with every commit of it."""

    mirror: int | None
    """The mirror's snapshot whose rows a replay gives; None: the mirror before its first snapshot; ``STOPPED``: none."""
    last: int
    """The number of the last row."""
    since: int
    """The LSN a replay begins at: that of the last reset, or where the history began."""

    def dump(self) -> str:
        return json.dumps({"mirror": self.mirror, "last": self.last, "since": format_lsn(self.since)})

    @staticmethod
    def read(properties: Mapping[str, str]) -> "HistoryNote":
        """The inverse. Raises KeyError/ValueError/TypeError when it is mangled."""
        document = json.loads(properties[HISTORY])
        return HistoryNote(document["mirror"], int(document["last"]), parse_lsn(document["since"]))


def history_of(mirror: TableId) -> TableId:
    """The name of a mirror's history."""
    return TableId(mirror.namespace, mirror.name + SUFFIX)


def owner_of(properties: Mapping[str, str]) -> tuple[str, str] | None:
    """(the lake's id of the source, ``schema.name`` of the mirror) whose history a table is, if it is one."""
    source, _, mirror = properties.get(HISTORY_OF, "").partition("/")
    return (source, mirror) if mirror else None


def mirror_of(properties: Mapping[str, str], source: str) -> str | None:
    """``schema.name`` of the mirror whose history a table is, if it is one of this source (the lake's id of it)."""
    owner = owner_of(properties)
    return owner[1] if owner is not None and owner[0] == source else None
