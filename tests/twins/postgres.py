"""What the kernels of ``sources/postgres`` promise, in plain Python. Texts are bytes, None a null; ``WRONG``: it cannot be read."""

import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, localcontext

from icelake.sources.postgres import kernels as k
from tests.twins.ways import part, twin

WRONG = object()
Text = bytes | None


def signed(number: int) -> int:
    """The 64 bits of a number as a signed one."""
    return (number + 2**63) % 2**64 - 2**63


# ---------------------------------------------------------------------------------------------------------------- numbers


@twin(k._u16)
def u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


@twin(k.u32)
def u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


@twin(k.i64)
def i64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "big", signed=True)


@twin(k._two)
def two(data: bytes, at: int) -> int:
    digits = data[at : at + 2]
    return int(digits) if re.fullmatch(rb"[0-9]{2}", digits) else -1


@twin(k._nibble)
def nibble(byte: int) -> int:
    return int(chr(byte), 16) if chr(byte) in "0123456789abcdefABCDEF" else 255


# --------------------------------------------------------------------------------------------------- the text of one value


@twin(k.parse_bool)
def boolean(text: bytes) -> object:
    return {b"t": True, b"f": False}.get(text, WRONG)


@twin(k.parse_int)
def integer(text: bytes, low: int, high: int) -> object:
    return int(text) if re.fullmatch(rb"-?[0-9]{1,19}", text) and low <= int(text) <= high else WRONG


_DAY = rb"(?P<year>[0-9]{4,7})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
_TIME = rb"(?P<hour>[0-9]{2}):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9])(?:\.(?P<fraction>[0-9]{1,6}))?"
_OFFSET = rb"(?P<sign>[+-])(?P<hours>[0-9]{2})(?::(?P<minutes>[0-5][0-9])(?::(?P<seconds>[0-5][0-9]))?)?"
_ERA = rb"(?P<bc> BC)?"


def _days(found: re.Match[bytes]) -> int | None:
    """Since 1970, in the Gregorian calendar carried on both ways. Python knows one cycle of 400 years, and the others are the same."""
    year = int(found["year"])
    if year == 0:
        return None
    cycles, within = divmod((1 - year if found["bc"] else year) - 1, 400)
    try:
        day = date(within + 1, int(found["month"]), int(found["day"]))
    except ValueError:
        return None
    return day.toordinal() + cycles * 146_097 - date(1970, 1, 1).toordinal()


def _micros(found: re.Match[bytes]) -> int | None:
    hour, minute, second = (int(found[part]) for part in ("hour", "minute", "second"))
    return None if hour > 23 else ((hour * 60 + minute) * 60 + second) * 1_000_000 + int((found["fraction"] or b"").ljust(6, b"0"))


@twin(k.parse_date)
def day(text: bytes) -> object:
    found = re.fullmatch(_DAY + _ERA, text)
    days = _days(found) if found else None
    return WRONG if days is None or not -(2**31) <= days < 2**31 else days


@twin(k.parse_time)
def time_of_day(text: bytes) -> object:
    found = re.fullmatch(_TIME, text)
    micros = _micros(found) if found else None
    return WRONG if micros is None else micros


LAST_DAY = (2**63 - 1) // 86_400_000_000
"""The day the 64 bits end in."""


@twin(k.parse_timestamp)
def timestamp(text: bytes, zoned: bool) -> object:
    found = re.fullmatch(_DAY + b" " + _TIME + (_OFFSET if zoned else b"") + _ERA, text)
    days, micros = (_days(found), _micros(found)) if found else (None, None)
    # The first days that 64 bits could hold are refused: PostgreSQL begins 4714 BC.
    if found is None or days is None or micros is None or not 4 - LAST_DAY < days <= LAST_DAY:
        return WRONG
    value = days * 86_400_000_000 + micros
    if zoned:
        seconds = int(found["hours"]) * 3600 + int(found["minutes"] or 0) * 60 + int(found["seconds"] or 0)
        value -= (seconds if found["sign"] == b"+" else -seconds) * 1_000_000
    return WRONG if value > 2**63 - 1 else value


part(k.parse_timestamp, k._days, k._era, k._micros)


@twin(k.parse_decimal)
def decimal(text: bytes, precision: int, scale: int) -> object:
    """The number without its point."""
    if not re.fullmatch(rb"-?[0-9]+(\.[0-9]+)?", text):
        return WRONG
    with localcontext(prec=1000):
        number = Decimal(text.decode()).scaleb(scale)
        return int(number) if number == int(number) and abs(number) < 10**precision else WRONG


@twin(k.parse_uuid)
def uuid_bytes(text: bytes) -> object:
    form = rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    return uuid.UUID(text.decode()).bytes if re.fullmatch(form, text) else WRONG


@twin(k.hex_lengths)
def hex_length(text: bytes, prefix: bytes) -> object:
    return (len(text) - len(prefix)) // 2 if text.startswith(prefix) and len(text) % 2 == 0 else WRONG


@twin(k.parse_hex)
def hex_bytes(text: bytes, prefix: bytes) -> object:
    digits = text.removeprefix(prefix)
    return bytes.fromhex(digits.decode()) if re.fullmatch(rb"[0-9a-fA-F]*", digits) else WRONG


@twin(k.check_floats)
def is_float(text: bytes) -> object:
    return True if re.fullmatch(rb"NaN|-?Infinity|-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", text) else WRONG


@twin(k.check_float_results)
def was_read(text: bytes, value: float) -> object:
    """A float is infinite only if the text says so, and zero only if no digit before the exponent is another."""
    infinite = value in (float("inf"), float("-inf"))
    vanished = value == 0 and re.search(rb"[1-9]|Inf|NaN", text.split(b"e")[0]) is not None
    return WRONG if vanished or (infinite and not text.removeprefix(b"-").startswith(b"I")) else True


def column(texts: Iterable[Text], read: Callable[[bytes], object]) -> tuple[int, list[object]]:
    """(the number of the first text that cannot be read, or of all; the values before it, None for nulls)"""
    values: list[object] = []
    for text in texts:
        value = None if text is None else read(text)
        if value is WRONG:
            break
        values.append(value)
    return len(values), values


# ------------------------------------------------------------------------------------------------------------- whole columns


@twin(k.nulls)
def validity(lengths: Sequence[int]) -> tuple[int, list[bool]]:
    valid = [length >= 0 for length in lengths]
    return valid.count(False), valid


@twin(k.unsent)
def unsent(lengths: Sequence[int]) -> list[bool]:
    return [length == k.UNCHANGED for length in lengths]


@twin(k.lay_out)
def offsets(lengths: Sequence[int]) -> list[int] | None:
    """None: more than Arrow's 32 bits can say."""
    found = [0]
    for length in lengths:
        found.append(found[-1] + max(length, 0))
    return found if found[-1] < 2**31 else None


@twin(k.gather)
def gathered(texts: Sequence[Text]) -> tuple[bool, bytes]:
    together = b"".join(text or b"" for text in texts)
    return together.isascii() and b"\0" not in together, together


@twin(k.group)
def group(layout: Sequence[int], groups: int) -> list[list[int]]:
    return [[at for at, one in enumerate(layout) if one == wanted] for wanted in range(groups)]


# ----------------------------------------------------------------------------------------------------------------- COPY text


@twin(k.count_lines)
def count_lines(block: bytes) -> int:
    return block.count(b"\n")


@twin(k.scan_lines)
def lines(block: bytes, columns: int) -> tuple[int, list[list[Text]]]:
    """(-1, or the first line without so many fields or without an end; the fields of the lines, escapes left as they are)"""
    found = block.split(b"\n")
    if found.pop():
        return len(found), []
    rows = [[None if text == b"\\N" else text for text in line.split(b"\t")] for line in found]
    return next((number for number, row in enumerate(rows) if len(row) != columns), -1), rows


ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v", b"\\": b"\\"}


@twin(k.unescape)
def unescaped(text: bytes) -> object:
    if not re.fullmatch(rb"(?:[^\\]|\\[bfnrtv\\])*", text, re.DOTALL):
        return WRONG
    return re.sub(rb"\\(.)", lambda found: ESCAPES[found[1]], text, flags=re.DOTALL)


# --------------------------------------------------------------------------------------------------------- values with parts

_QUOTED = rb'"(?:[^"\\]|\\["\\])*"'
_DOUBLED = rb'"(?:[^"\\]|""|\\\\)*"'


def _unquoted(text: bytes) -> bytes:
    return re.sub(rb'\\(.)|"(")', lambda found: found[1] or found[2], text[1:-1], flags=re.DOTALL)


def _listed(inner: bytes, item: bytes, delimiter: bytes) -> list[bytes] | None:
    """Items with a delimiter between each two, and nothing else."""
    found, at = [], 0
    while match := re.compile(item, re.DOTALL).match(inner, at):
        found.append(match[0])
        at = match.end()
        if at == len(inner):
            return found
        if inner[at : at + len(delimiter)] != delimiter:
            return None
        at += len(delimiter)
    return None


def _multirange(inner: bytes, delimiter: bytes) -> list[Text] | None:
    """Ranges as they stand: a delimiter inside brackets or quotes is theirs."""
    outside = re.sub(rb'"[^"]*"', lambda found: b"q" * len(found[0]), inner)
    if b'"' in outside:
        return None
    found: list[Text] = []
    begin = depth = 0
    for at, byte in enumerate(outside + delimiter):
        depth += (byte in b"([") - (byte in b")]")
        if depth == 0 and byte == delimiter[0]:
            if not inner[begin:at].startswith((b"(", b"[")):
                return None
            found.append(inner[begin:at])
            begin = at + 1
    return found if begin > len(inner) else None


@twin(k.split)
def parts(text: bytes, grammar: int, delimiter: bytes) -> list[Text] | None:
    """The parts without quotes and escapes, None for nulls; None: not of the grammar."""
    frames = {
        k.ARRAY: rb"\{(.*)\}",
        k.MULTIRANGE: rb"\{(.*)\}",
        k.VECTOR: rb"\[(.*)\]",
        k.RECORD: rb"\((.*)\)",
        k.RANGE: rb"[\[(](.*)[\])]",
    }
    framed = re.fullmatch(frames.get(grammar, rb"(.*)"), text, re.DOTALL)
    if framed is None:
        return None
    inner = framed[1]
    if grammar in (k.RECORD, k.RANGE):
        never = rb'"\\\s()' + (rb"\[\]" if grammar == k.RANGE else b"") + re.escape(delimiter)
        found = _listed(inner, _DOUBLED + rb"|[^" + never + rb"]*", delimiter)
        return None if found is None else [None if not one else _unquoted(one) if one[0] == ord('"') else one for one in found]
    if not inner:
        return []
    if grammar == k.MULTIRANGE:
        return _multirange(inner, delimiter)
    if grammar == k.HSTORE:
        pairs = _listed(inner, _QUOTED + rb"=>(?:" + _QUOTED + rb"|NULL)", b", ")
        if pairs is None:
            return None
        halves = [half for pair in pairs for half in re.findall(_QUOTED + rb"|NULL$", pair, re.DOTALL)]
        return [None if half == b"NULL" else _unquoted(half) for half in halves]
    plain = rb'[^"\\\s{}' + re.escape(delimiter) + rb"]+"
    found = _listed(inner, _QUOTED + rb"|" + plain, delimiter)
    if found is None:
        return None
    return [_unquoted(one) if one[0] == ord('"') else None if one == b"NULL" and grammar == k.ARRAY else one for one in found]


part(k.split, k._never_plain)


# ----------------------------------------------------------------------------------------------------------------- pgoutput

EPOCH = 946_684_800_000_000
"""µs from 1970 to 2000."""


@dataclass
class Scanned:
    """Changes: (message byte, where what follows the OID begins and ends, layout, commit LSN). Begun: (commit LSN, time, xid)."""

    status: int = k.DONE
    at: int = 0
    open: bool = False
    final_lsn: int = 0
    position: int = 0
    commit_time: int = 0
    transactions: int = 0
    changes: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    begun: list[tuple[int, int, int]] = field(default_factory=list)
    message: tuple[int, int] | None = None
    """Where the message that it stopped behind is."""


@twin(k.scan_frames)
def scan_frames(data: bytes, layouts: dict[int, int], was: Scanned) -> Scanned:
    """Go on from where ``was`` ended, until a Relation or Truncate, what is wrong, or the end."""
    now = Scanned(k.DONE, was.at, was.open, was.final_lsn, was.position, was.commit_time, was.transactions, was.changes[:], was.begun[:])
    while now.status == k.DONE and now.at < len(data):
        begin = now.at + 4
        size = int.from_bytes(data[now.at : begin], "little")
        body = data[begin : begin + size]
        if begin > len(data) or size == 0 or len(body) < size:
            now.status = k.TORN_FRAME
            break
        kind = chr(body[0])
        if kind in "IUD":
            oid = u32(body, 1)
            if not now.open:
                now.status = k.OUTSIDE_TRANSACTION
            elif size < 8:
                now.status = k.BAD_MESSAGE
            elif oid not in layouts:
                now.status = k.UNKNOWN_RELATION
            else:
                now.changes.append((body[0], begin + 5, begin + size, layouts[oid], now.final_lsn))
        elif kind == "B":
            if now.open or size != 21:
                now.status = k.BAD_BEGIN
            else:
                now.open, now.final_lsn = True, i64(body, 1)
                now.begun.append((now.final_lsn, signed(i64(body, 9) + EPOCH), u32(body, 17)))
        elif kind == "C":
            if not now.open or size != 26 or i64(body, 2) != now.final_lsn:
                now.status = k.BAD_COMMIT
            else:
                now.open, now.position = False, i64(body, 10)
                now.transactions += 1
                now.commit_time = max(now.commit_time, signed(i64(body, 18) + EPOCH))
        elif kind in "RT":
            if not now.open:
                now.status = k.OUTSIDE_TRANSACTION
            else:
                now.message = begin, begin + size
                now.at = begin + size
                now.status = k.RELATION if kind == "R" else k.TRUNCATED
        elif kind in "YOM":
            pass  # types, origins and messages change no row
        else:
            now.status = k.STREAMED if kind in "SEcAbPKrp" else k.UNKNOWN_MESSAGE
        if now.status == k.DONE:
            now.at = begin + size
    return now


Place = tuple[int, int]
"""Where a value is: start and length, or NULL, UNCHANGED as the length."""


def _tuple(data: bytes, at: int, stop: int, columns: int) -> tuple[list[Place], int, int]:
    """A TupleData: (its values, as far as they can be read, where it ends, what is wrong with it or DONE)."""
    found: list[Place] = []
    if stop - at < 2:
        return found, at, k.BAD_TUPLE
    if u16(data, at) != columns:
        return found, at, k.COLUMN_COUNT
    at += 2
    for _ in range(columns):
        sent = data[at : min(at + 1, stop)]
        at += 1
        if sent == b"t" and stop - at >= 4 and u32(data, at) <= stop - at - 4:
            found.append((at + 4, u32(data, at)))
            at += 4 + found[-1][1]
        elif sent in (b"n", b"u"):
            found.append((at, k.NULL if sent == b"n" else k.UNCHANGED))
        else:
            return found, at, k.BAD_TUPLE
    return found, at, k.DONE


@dataclass
class Change:
    op: int
    new: dict[int, Place]
    """By the caller's number of the column."""
    key: dict[int, Place]
    """Of the row before, by the place in the key."""


@twin(k.scan_tuples)
def change(data: bytes, kind: int, body: int, stop: int, target: Sequence[int], key: Sequence[int], whole: bool) -> Change | set[int]:
    """One change; or all that is wrong with its message, of which a kernel names one."""
    if kind == ord("T"):
        return Change(3, {}, {})
    columns = len(target)
    op = b"IUD".index(kind)
    wrong = set()
    at = body
    tag = data[at : min(at + 1, stop)]
    full = tag == b"O"
    if whole and op and not full:
        wrong.add(k.KEY_MISSING)
    old: list[Place] | None = None
    new: list[Place] = []
    odd = k.DONE
    if op and tag in (b"K", b"O"):
        old, at, odd = _tuple(data, at + 1, stop, columns)
        if odd:
            return {*wrong, odd}
        tag = data[at : min(at + 1, stop)]
    if op < 2 and tag == b"N":
        new, at, odd = _tuple(data, at + 1, stop, columns)
    if odd or at != stop or (op < 2 and tag != b"N") or (op == 2 and old is None):
        wrong.add(odd or k.BAD_TUPLE)
    found = Change(op, {}, {place: old[at] for at, place in enumerate(key) if place >= 0} if old else {})
    for at, value in enumerate(new):
        in_key = key[at] >= 0
        if target[at] < 0:
            continue
        if value[1] == k.UNCHANGED and old and (full or in_key):
            value = old[at]
        elif value[1] == k.UNCHANGED and (op == 0 or in_key):
            wrong.add(k.KEY_MISSING if in_key else k.BAD_TUPLE)
        found.new[target[at]] = value
        if in_key and op and old is None:
            found.key[key[at]] = value
        if in_key and value[1] < (k.NULL if whole else 0):
            wrong.add(k.KEY_MISSING)
    if old and any(length < (k.NULL if whole else 0) for _, length in found.key.values()):
        wrong.add(k.KEY_MISSING)
    return wrong or found


part(k.scan_tuples, k._skip_tuple)
