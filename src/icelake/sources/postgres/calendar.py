"""PostgreSQL's ISO date and time text, one value at a time, and back: exact over PostgreSQL's whole range.

The bulk way is in ``kernels``; this one orders keys and prints them. Python's own ``datetime`` cannot: it knows neither years
before Christ nor years after 9999. Days and microseconds count from 1970-01-01, in the proleptic Gregorian calendar.
A text that is not what PostgreSQL prints under ``types.SESSION``, infinity included, raises ValueError.
Source: PostgreSQL documentation 8.5, utils/adt/datetime.c (EncodeDateOnly, EncodeDateTime).
"""

import re

DAY_US = 86_400_000_000

_DATE = r"(\d{4,7})-(\d\d)-(\d\d)"
_TIME = r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?"
_ONLY_DATE = re.compile(_DATE + r"( BC)?", re.ASCII)
_ONLY_TIME = re.compile(_TIME, re.ASCII)
_BOTH = re.compile(_DATE + " " + _TIME + r"(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?( BC)?", re.ASCII)
_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def parse_date(text: str) -> int:
    """``'0044-03-15 BC'`` -> days since 1970-01-01."""
    match = _ONLY_DATE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a date: {text!r}")
    return _days(text, *match.groups())


def parse_time(text: str) -> int:
    """``'03:04:05.06'`` -> microseconds since midnight; 24:00:00 is allowed here (PostgreSQL's largest time)."""
    match = _ONLY_TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time: {text!r}")
    return _micros(text, *match.groups())


def parse_timestamp(text: str) -> int:
    """``'2024-01-02 03:04:05.06+00'`` -> microseconds since 1970, in UTC when the text has an offset."""
    match = _BOTH.fullmatch(text)
    if match is None:
        raise ValueError(f"not a timestamp: {text!r}")
    year, month, day, hour, minute, second, fraction, sign, off_hour, off_minute, off_second, era = match.groups()
    offset = int(off_hour or 0) * 3600 + int(off_minute or 0) * 60 + int(off_second or 0)
    if sign == "-":
        offset = -offset
    return _days(text, year, month, day, era) * DAY_US + _micros(text, hour, minute, second, fraction) - offset * 1_000_000


def print_date(days: int) -> str:
    """Days since 1970-01-01 -> PostgreSQL's text."""
    text, era = _print_day(days)
    return text + era


def print_time(micros: int) -> str:
    """Microseconds since midnight -> PostgreSQL's text, without trailing zeros of the fraction."""
    seconds, fraction = divmod(micros, 1_000_000)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{fraction:06}".rstrip("0") if fraction else text


def print_timestamp(micros: int, zone: str = "") -> str:
    """Microseconds since 1970 -> PostgreSQL's text; ``zone`` (``'+00'``) is put where PostgreSQL puts it."""
    days, rest = divmod(micros, DAY_US)
    text, era = _print_day(days)
    return f"{text} {print_time(rest)}{zone}{era}"


def _days(text: str, year: str, month: str, day: str, era: str | None) -> int:
    # Howard Hinnant, chrono-Compatible Low-Level Date Algorithms: days_from_civil.
    y, m, d = int(year), int(month), int(day)
    if y == 0 or not 1 <= m <= 12:
        raise ValueError(f"not a date: {text!r}")
    if era:
        y = 1 - y
    leap = m == 2 and y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)
    if not 1 <= d <= _MONTH_DAYS[m - 1] + leap:
        raise ValueError(f"not a date: {text!r}")
    y -= m <= 2
    of_year = (153 * (m + (-3 if m > 2 else 9)) + 2) // 5 + d - 1
    return y * 365 + y // 4 - y // 100 + y // 400 + of_year - 719468


def _micros(text: str, hour: str, minute: str, second: str, fraction: str | None) -> int:
    h, m, s = int(hour), int(minute), int(second)
    micros = (h * 3600 + m * 60 + s) * 1_000_000 + int((fraction or "0").ljust(6, "0"))
    if m > 59 or s > 59 or micros > DAY_US:
        raise ValueError(f"not a time: {text!r}")
    return micros


def _print_day(days: int) -> tuple[str, str]:
    # civil_from_days, same source.
    era, of_era = divmod(days + 719468, 146097)
    year_of_era = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * of_year + 2) // 153
    day = of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + (3 if shifted < 10 else -9)
    year = year_of_era + era * 400 + (month <= 2)
    if year <= 0:
        return f"{1 - year:04}-{month:02}-{day:02}", " BC"
    return f"{year:04}-{month:02}-{day:02}", ""
