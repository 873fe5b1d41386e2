"""pgoutput messages written by hand, for tests: the shortest encoder that follows the documentation."""

import struct
from collections.abc import Iterable, Sequence

from icelake.model.relation import Column, Relation
from icelake.sources.postgres.types import iceberg_type, leaf

UNSENT = object()
"""A value pgoutput leaves out because it is an unchanged TOAST value."""


def column(name: str, attnum: int, oid: int, typmod: int = -1) -> Column:
    return Column(name, attnum, oid, typmod, f"type {oid}", str(iceberg_type(leaf(oid, typmod))))


def relation(oid: int, name: str, columns: Sequence[tuple[str, int] | tuple[str, int, int]], key: Sequence[str]) -> Relation:
    made = tuple(column(c[0], n + 1, c[1], c[2] if len(c) == 3 else -1) for n, c in enumerate(columns))
    return Relation(oid, "public", name, made, tuple(key))


def frame(*messages: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(message)) + message for message in messages)


def begin(final_lsn: int, commit_time: int = 0, xid: int = 1) -> bytes:
    return struct.pack("!cQqI", b"B", final_lsn, commit_time - 946_684_800_000_000, xid)


def commit(lsn: int, end_lsn: int, commit_time: int = 0) -> bytes:
    return struct.pack("!cBQQq", b"C", 0, lsn, end_lsn, commit_time - 946_684_800_000_000)


def relation_message(table: Relation, identity: bytes = b"d", order: Sequence[str] | None = None) -> bytes:
    by_name = {c.name: c for c in table.columns}
    names = list(order) if order is not None else list(by_name)
    out = struct.pack("!cI", b"R", table.oid) + table.schema.encode() + b"\0" + table.name.encode() + b"\0"
    out += identity + struct.pack("!H", len(names))
    for name in names:
        c = by_name[name]
        out += bytes([name in table.key]) + name.encode() + b"\0" + struct.pack("!Ii", c.type_oid, c.typmod)
    return out


def values(row: Iterable[object]) -> bytes:
    row = list(row)
    out = struct.pack("!H", len(row))
    for value in row:
        if value is None:
            out += b"n"
        elif value is UNSENT:
            out += b"u"
        else:
            text = value if isinstance(value, bytes) else str(value).encode()
            out += b"t" + struct.pack("!I", len(text)) + text
    return out


def insert(oid: int, row: Iterable[object]) -> bytes:
    return struct.pack("!cI", b"I", oid) + b"N" + values(row)


def update(oid: int, row: Iterable[object], key: Iterable[object] | None = None, old: Iterable[object] | None = None) -> bytes:
    before = b"K" + values(key) if key is not None else b"O" + values(old) if old is not None else b""
    return struct.pack("!cI", b"U", oid) + before + b"N" + values(row)


def delete(oid: int, key: Iterable[object] | None = None, old: Iterable[object] | None = None) -> bytes:
    return struct.pack("!cI", b"D", oid) + (b"K" + values(key) if key is not None else b"O" + values(old or ()))


def truncate(*oids: int, options: int = 0) -> bytes:
    return struct.pack(f"!cIB{len(oids)}I", b"T", len(oids), options, *oids)
