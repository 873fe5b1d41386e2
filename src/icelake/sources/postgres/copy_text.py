"""COPY ... TO STDOUT in text format, decoded: whole lines -> Arrow columns, by the same readers as the change stream.

Promises: exactly the values PostgreSQL printed; the difference between an empty text and a null kept. Fails with Corrupt on
lines that are not what COPY TO writes, and with ValueOutOfContract as ``values`` does. Never looks at a partial line: the
caller cuts its buffer after a line end.
Source: PostgreSQL documentation, COPY, File Formats: Text Format; commands/copyto.c, CopyAttributeOutText.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.errors import Corrupt
from icelake.model.relation import Column
from icelake.ports import arrow_schema
from icelake.sources.postgres import kernels
from icelake.sources.postgres.values import Fields, read_only, reader

_LARGEST: Final = 2**31 - 64
_AGAIN: Final = "start again: the range is read anew; if it comes back, report it with the server's version"


def decode_copy(lines: bytes | bytearray | memoryview, columns: Sequence[Column], table: str = "") -> pa.RecordBatch:
    """``arrow_schema(columns)`` of whole lines (below 2 GiB), whose fields are these columns in this order."""
    arrays = [reader(column, table)(field) for column, field in zip(columns, _fields(lines, len(columns), table), strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(columns))


def last_line(lines: bytes | bytearray | memoryview, columns: int) -> tuple[str | None, ...]:
    """PostgreSQL's text of every field of the last of these whole lines: where a range that was cut short ended."""
    whole = bytes(lines)
    begin = whole.rfind(b"\n", 0, -1) + 1
    return tuple(
        field.text(0).decode("utf-8", "surrogateescape") if field.length[0] >= 0 else None
        for field in _fields(memoryview(whole)[begin:], columns, "")
    )


def _fields(lines: bytes | bytearray | memoryview, columns: int, table: str) -> list[Fields]:
    if len(lines) > _LARGEST:
        raise ValueError("more than 2 GiB of lines in one call")
    buffer = read_only(lines)
    count = kernels.count_lines(buffer)
    start = np.empty((columns, count), np.int32)
    length = np.empty((columns, count), np.int32)
    escaped = np.zeros(columns, np.int64)
    line = kernels.scan_lines(buffer, start, length, escaped)
    if line >= 0:
        raise _corrupt(line, table, f"it has not exactly {columns} fields")
    return [
        _unescaped(buffer, start[n], length[n], table) if many else Fields(buffer, start[n], length[n])
        for n, many in enumerate(escaped.tolist())
    ]


def _unescaped(buffer: npt.NDArray[np.uint8], start: npt.NDArray[np.int32], length: npt.NDArray[np.int32], table: str) -> Fields:
    out = np.empty(int(np.maximum(length, 0).sum(dtype=np.int64)), np.uint8)
    new_start, new_length = np.empty_like(start), np.empty_like(length)
    line = kernels.unescape(buffer, start, length, out, new_start, new_length)
    if line < len(start):
        raise _corrupt(line, table, "it has a backslash sequence COPY TO never writes")
    return Fields(read_only(out), new_start, new_length)


def _corrupt(line: int, table: str, why: str) -> Corrupt:
    what = f"line {line + 1} of a block of rows{f' of {table}' if table else ''} cannot be read"
    return Corrupt("COPY_CORRUPT", what, why, _AGAIN)
