"""``to_arrow``: the first byte chooses a column, the rest are its values' texts, parted by 0x1F; 0x1E alone is a null."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pyarrow as pa

from icelake.sources.postgres import kernels, values
from icelake.sources.postgres.values import to_arrow, to_text
from tests.fuzz.tables import PARTS, SCALARS

WATCHED = (values, kernels)
_STRICT: Final = (*SCALARS, *PARTS)
_COLUMNS: Final = tuple(column for strict in _STRICT for column in (strict, replace(strict, out_of_range="null")))
_BETWEEN, _NULL = b"\x1f", b"\x1e"
_NO_KEYS: Final = frozenset({"float", "double"})
"""What these print is Python's text, which PostgreSQL reads but does not print."""


def run(data: bytes) -> None:
    column = _COLUMNS[data[0] % len(_COLUMNS)] if data else _COLUMNS[0]
    texts = data[1:].split(_BETWEEN)
    found = to_arrow(pa.array([None if text == _NULL else text for text in texts], pa.binary()), column)
    found.validate(full=True)
    assert len(found) == len(texts)
    if column.iceberg in _NO_KEYS:
        return
    try:
        printed = to_text(found, column)
    except ValueError:
        assert pa.types.is_nested(found.type)
        return
    # What we print of a value is read as the same value.
    assert to_arrow(pa.array(printed, pa.string()), column).equals(found)


def seeds() -> Iterator[bytes]:
    for place, column in enumerate(_COLUMNS):
        yield bytes([place]) + _BETWEEN.join([*(text for kind, text in _TEXTS if kind in column.iceberg), _NULL])


_TEXTS: Final = (
    ("boolean", b"t"),
    ("boolean", b"f"),
    ("int", b"-2147483648"),
    ("long", b"9223372036854775807"),
    ("float", b"1.5e-05"),
    ("double", b"-Infinity"),
    ("decimal(19,2)", b"-$1,234.56"),
    ("decimal(12,2)", b"-1234567890.12"),
    ("string", "ä€𝄞".encode()),
    ("binary", b"\\x00ff"),
    ("date", b"0044-03-15 BC"),
    ("date", b"infinity"),
    ("time", b"23:59:59.999999"),
    ("timestamp", b"294247-01-10 04:00:54.775807"),
    ("timestamptz", b"2026-01-01 00:00:00.5+05:30:10 BC"),
    ("uuid", b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("micros", b"1 year -2 mons +3 days -04:05:06.789"),
    ("list<int>", b"{1,NULL,-3}"),
    ("list<string>", b'{"a\\"b",NULL,""}'),
    ("list<struct<a", b'{"(1,\\"x y\\")",NULL}'),
    ("struct<a", b'(1,"q""uo, te")'),
    ("struct<n", b'("(2,y)",{2026-01-01})'),
    ("lower: int", b"[1,5)"),
    ("lower: date", b"empty"),
    ("list<struct<lower", b"{[1,3),[5,9)}"),
    ("lower: string", b'[a,"b c"]'),
    ("map<", b'"k"=>"v", "n"=>NULL'),
    ("list<float>", b"[1,2.5,-3]"),
)
