"""``decode_copy`` and ``last_line``: the first byte chooses a table, the rest is what COPY ... TO STDOUT gave of it."""

from collections.abc import Iterator
from typing import Final

from icelake.sources.postgres import copy_text, kernels, values
from icelake.sources.postgres.copy_text import decode_copy, last_line
from tests.fuzz.tables import TABLES

WATCHED = (copy_text, values, kernels)
_TABLES: Final = tuple(TABLES.values())


def run(data: bytes) -> None:
    table = _TABLES[data[0] % len(_TABLES)] if data else _TABLES[0]
    lines = data[1:]
    batch = decode_copy(lines, table.sent)
    batch.validate(full=True)
    assert batch.num_rows == lines.count(b"\n")
    if lines:
        assert len(last_line(lines, len(table.sent))) == len(table.sent)


def seeds() -> Iterator[bytes]:
    for place, table in enumerate(_TABLES):
        row = [b"1", *[b"\\N"] * (len(table.sent) - 1)]
        yield bytes([place]) + b"\t".join(row) + b"\n"
        yield bytes([place]) + b"\t".join([b"-7", *[b"\\\\x00\\t\\n\\\\"] * (len(table.sent) - 1)]) + b"\n"
        yield bytes([place]) + b"\t".join(row) + b"\n" + b"\t".join([b"2", "ä".encode(), b"1.25", *row[3:]]) + b"\n"
