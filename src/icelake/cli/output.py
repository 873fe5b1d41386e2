"""What commands print: JSON documents, tables for people, CSV and Arrow for programs.

Promises: values are exact (decimals are strings in JSON and CSV unless they are whole, NULL and '' differ in CSV, NaN is a string
in JSON); nothing a row holds can move the cursor or colour the terminal. NO_COLOR and a stdout that is no terminal mean plain text.
"""

import base64
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from icelake.ports import Json

TERMINAL_ROWS = 100


def document(value: object) -> None:
    """One JSON document on one line of stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain), flush=True)


def note(text: str) -> None:
    """A line for people, on stderr."""
    print(shown(text), file=sys.stderr, flush=True)


def plain(value: object) -> Any:
    """A value as JSON holds it without loss: see the module."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value).replace("inf", "Infinity").replace("nan", "NaN")
        case Decimal():
            return int(value) if value.as_tuple().exponent == 0 else format(value, "f")
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return f"PT{value.total_seconds():f}S"
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case tuple() if type(value).__name__ == "MonthDayNano":
            return dict(zip(("months", "days", "nanoseconds"), value, strict=True))
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
        case _:
            return str(value)


def rows(answer: "pa.Table") -> Iterator[list[Any]]:
    """The rows of an answer as plain values."""
    for batch in answer.to_batches(max_chunksize=10_000):
        columns = [_values(column) for column in batch.columns]
        if not columns:
            continue
        yield from (list(row) for row in zip(*columns, strict=True))


def _values(column: "pa.Array[Any]") -> list[Any]:
    try:
        return [plain(value) for value in column.to_pylist()]
    except (ValueError, OverflowError):
        return [_value(value) for value in column]


def _value(value: "pa.Scalar[Any]") -> Any:
    import pyarrow as pa

    try:
        return plain(value.as_py())
    except (ValueError, OverflowError):
        # Python knows the years 1 to 9999.
        if isinstance(value, pa.StructScalar):
            return {name: _value(part) for name, part in value.items()}
        if isinstance(value, pa.ListScalar):
            assert value.values is not None  # of a null, the value itself is None
            return [_value(part) for part in value.values]
        return _far(value)


def _far(value: "pa.Scalar[Any]") -> str:
    """A day or moment of any year in ISO 8601, as Python writes those it knows. Arrow counts years in 16 bits only."""
    import numpy as np
    import pyarrow as pa

    is_day = pa.types.is_date(value.type)
    count = value.cast(pa.date32()).cast(pa.int32()) if is_day else value.cast(pa.int64())
    text = str(np.datetime64(count.as_py(), "D" if is_day else value.type.unit)).removesuffix(".000000")
    if text.startswith("-"):
        year, _, rest = text[1:].partition("-")
        text = f"-{year:0>4}-{rest}"
    return text if is_day or value.type.tz is None else f"{text}+00:00"


def csv(answer: "pa.Table", to: IO[str]) -> None:
    """RFC 4180 with LF: a header, then the rows. NULL is nothing at all, an empty text is ``""``."""
    to.write(",".join(_field(name) for name in answer.column_names) + "\n")
    for row in rows(answer):
        to.write(",".join(_field(value) for value in row) + "\n")


def _field(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not text or any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def arrow(answer: "pa.Table", to: IO[bytes]) -> None:
    """An Arrow IPC stream."""
    import pyarrow as pa

    with pa.ipc.new_stream(to, answer.schema) as writer:  # type: ignore[arg-type]
        writer.write_table(answer)


def console(*, stderr: bool = False) -> "Console":
    """A rich console that draws in colour on a terminal only, and in text as wide as it needs elsewhere."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(file=stream, highlight=False, no_color=bool(os.environ.get("NO_COLOR")))
    return Console(file=stream, highlight=False, no_color=True, width=10_000, force_terminal=False)


def table(columns: Sequence[str], lines: Iterable[Sequence[Any]], *, numbers: Iterable[int] = (), limit: int | None = None) -> int:
    """Draw rows for people; the number of rows there were. ``numbers``: the columns to set flush right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    right = set(numbers)
    for number, name in enumerate(columns):
        drawn.add_column(Text(shown(name)), justify="right" if number in right else "left", overflow="fold")
    count = 0
    for line in lines:
        count += 1
        if limit is None or count <= limit:
            drawn.add_row(*(Text("NULL", style="dim") if value is None else Text(shown(value)) for value in line))
    out.print(drawn)
    if limit is not None and count > limit:
        note(f"… and {count - limit:,} more rows (--json, --csv and --arrow give all; --limit N draws more)")
    return count


def answer_table(answer: "pa.Table", limit: int | None) -> None:
    """An answer for people: at most ``limit`` rows on a terminal, all of them elsewhere."""
    import pyarrow as pa

    numbers = [
        n
        for n, kind in enumerate(answer.schema.types)
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    ]
    shown = answer if limit is None else answer.slice(0, limit)
    table(answer.column_names, rows(shown), numbers=numbers)
    if shown.num_rows < answer.num_rows:
        note(f"… and {answer.num_rows - shown.num_rows:,} more rows (--json, --csv and --arrow give all; --limit N draws more)")


def records(found: "Sequence[Json]", columns: Mapping[str, str], *, numbers: Sequence[str] = ()) -> None:
    """Draw documents of one shape; ``columns`` maps a key to its heading."""
    keys = list(columns)
    table(list(columns.values()), [[one.get(key) for key in keys] for one in found], numbers=[keys.index(key) for key in numbers])


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def shown(value: Any) -> str:
    """Text as it can be shown: control characters become visible instead of doing what they say."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(character if character.isprintable() or character == "\n" else repr(character)[1:-1] for character in text)
