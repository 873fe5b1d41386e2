"""Printed values are exact, and cannot do anything to the terminal."""

import csv
import datetime as dt
import io
import json
from decimal import Decimal

import pyarrow as pa
import pytest

from icelake.cli import output

ANSWER = pa.table(
    {
        "n": pa.array([2**63 - 1, None]),
        "text": pa.array(['a,"b"\n', ""]),
        "price": pa.array([Decimal("1.20"), None]),
        "sum": pa.array([Decimal(10**30), None], pa.decimal128(38, 0)),
        "at": pa.array([dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC), None], pa.timestamp("us", "UTC")),
        "day": pa.array([-800_000, None], pa.date32()),
        "real": pa.array([float("nan"), float("-inf")]),
        "bytes": pa.array([b"\x00\xff", None]),
        "span": pa.array([pa.MonthDayNano([1, 2, 3]), None]),  # type: ignore[call-arg, list-item, arg-type]
        "list": pa.array([[Decimal("0.5")], None]),
    }
)


def test_json_is_strict_and_exact(capsys: pytest.CaptureFixture[str]) -> None:
    output.document(list(output.rows(ANSWER)))
    first, second = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert first == [
        2**63 - 1,
        'a,"b"\n',
        "1.20",
        10**30,
        "2026-01-02T03:04:05.000006+00:00",
        "-0221-09-04",
        "NaN",
        "AP8=",
        {"months": 1, "days": 2, "nanoseconds": 3},
        ["0.5"],
    ]
    assert second == [None, "", None, None, None, None, "-Infinity", None, None, None]


def test_days_beyond_python_s_years_wherever_they_are() -> None:
    day = pa.date32()
    span = pa.struct([("lower", day), ("upper", pa.timestamp("us", "UTC")), ("bounds", pa.string())])
    spans = [{"lower": -800_000, "upper": 0, "bounds": "[)"}, None, {"lower": None, "upper": 2**62, "bounds": "()"}]
    table = pa.table(
        {
            "days": pa.array([-800_000, 0, None], day),
            "span": pa.array(spans, span),
            "spans": pa.array([[{"lower": -800_000}, None], [], None], pa.list_(span)),
        }
    )
    nothing = {"lower": None, "upper": None, "bounds": None}
    assert list(output.rows(table)) == [
        [
            "-0221-09-04",
            {"lower": "-0221-09-04", "upper": "1970-01-01T00:00:00+00:00", "bounds": "[)"},
            [{**nothing, "lower": "-0221-09-04"}, None],
        ],
        ["1970-01-01", None, []],
        [None, {"lower": None, "upper": "148108-07-06T14:00:27.387904+00:00", "bounds": "()"}, None],
    ]


def test_csv_tells_null_from_empty_and_reads_back() -> None:
    text = io.StringIO()
    output.csv(ANSWER, text)
    assert text.getvalue().splitlines()[-1] == ',"",,,,,-Infinity,,,'
    header, first, _second = csv.reader(io.StringIO(text.getvalue()))
    assert header == ANSWER.column_names
    assert first[:4] == [str(2**63 - 1), 'a,"b"\n', "1.20", str(10**30)]


def test_arrow_is_the_answer_itself() -> None:
    sink = io.BytesIO()
    output.arrow(ANSWER, sink)
    back = pa.ipc.open_stream(sink.getvalue()).read_all()
    assert back.schema == ANSWER.schema
    assert list(output.rows(back)) == list(output.rows(ANSWER))


def test_a_drawn_value_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.answer_table(pa.table({"a[red]": ["\x1b[31m[bold]x\r\x07"]}), None)
    drawn = capsys.readouterr().out
    assert "\x1b" not in drawn
    assert "\r" not in drawn
    assert r"\x1b[31m[bold]x\r\x07" in drawn
    assert "a[red]" in drawn


def test_a_long_answer_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.answer_table(pa.table({"n": list(range(30))}), 10)
    told = capsys.readouterr()
    assert "20 more rows" in told.err
    assert told.out.split()[-1] == "9"


def test_wide_rows_are_not_broken_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.answer_table(pa.table({"a": ["x" * 500]}), None)
    assert "x" * 500 in capsys.readouterr().out


def test_sizes() -> None:
    assert [output.size(n) for n in (None, 0, 1023, 1536, 2**20, 2**50)] == ["-", "0 B", "1023 B", "1.5 KiB", "1.0 MiB", "1024.0 TiB"]
