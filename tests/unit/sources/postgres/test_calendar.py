from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.sources.postgres.calendar import (
    DAY_US,
    parse_date,
    parse_time,
    parse_timestamp,
    print_date,
    print_time,
    print_timestamp,
)


@settings(deadline=None)
@given(st.datetimes())
def test_agrees_with_python_where_python_has_a_calendar(moment: datetime) -> None:
    micros = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    text = f"{moment.year:04}-{moment:%m-%d %H:%M:%S.%f}"
    assert parse_timestamp(text) == micros
    assert parse_timestamp(text + "-05:30") == micros + 19_800_000_000
    assert parse_date(text[:10]) == micros // DAY_US
    assert parse_time(text[11:]) == micros % DAY_US


@settings(deadline=None)
@given(st.integers(-2_440_588, 2_145_031_948))
def test_dates_there_and_back(days: int) -> None:
    assert parse_date(print_date(days)) == days


@settings(deadline=None)
@given(st.integers(-210_866_803_200_000_000, 2**63 - 1))
def test_timestamps_there_and_back(micros: int) -> None:
    assert parse_timestamp(print_timestamp(micros)) == micros
    assert parse_timestamp(print_timestamp(micros, "+00")) == micros


def test_the_edges() -> None:
    assert print_date(-719_163) == "0001-12-31 BC"
    assert print_date(-719_162) == "0001-01-01"
    assert print_time(parse_time("24:00:00")) == "24:00:00"
    assert print_timestamp(-1, "+00") == "1969-12-31 23:59:59.999999+00"


@pytest.mark.parametrize(
    "text", ["", "infinity", "0000-01-01", "2023-02-29", "1900-02-29", "2024-13-01", "2024-1-01", "2024-01-01 AD", "٢٠٢٤-01-01"]
)
def test_what_is_no_date(text: str) -> None:
    with pytest.raises(ValueError, match="not a date"):
        parse_date(text)


@pytest.mark.parametrize("text", ["", "24:00:00.000001", "23:60:00", "23:59:60", "1:00:00", "01:00", "01:00:00.", "01:00:00.1234567"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        parse_time(text)
