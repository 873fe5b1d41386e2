"""The loops over raw bytes, compiled by numba: frames, tuples, COPY lines, and the text of each hot type.

Promises: every length read from the bytes is checked against the end of what holds it, so torn or hostile input gives an error
and never a read or write out of bounds; every character of a value is checked, and every overflow. Never raises: a scan returns
a status, a parser the number of the first value it could not read (the count of values when all were read), and the caller
says what is wrong. Nothing is compiled at import; compiled code is kept in numba's cache. The GIL is not held.

A *field* is one value's text in a buffer: ``start`` and ``length`` (int32). ``NULL`` and ``UNCHANGED`` are lengths below zero.
Buffers are read-only uint8 arrays (one numba specialisation for all); every other array is C-contiguous and writable.
Sources: PostgreSQL documentation 54.9 (Logical Replication Message Formats), 55.2 (COPY), 8 (the text of each type).
"""

from typing import Any, Final

import numpy as np

from icelake.compiled import kernel

NULL: Final = -1
UNCHANGED: Final = -2

# Status of a frame scan; everything from _ERRORS on is an error.
DONE: Final = 0
RELATION: Final = 1
TRUNCATED: Final = 2
TORN_FRAME: Final = 10
BAD_BEGIN: Final = 11
BAD_COMMIT: Final = 12
OUTSIDE_TRANSACTION: Final = 13
BAD_MESSAGE: Final = 14
UNKNOWN_RELATION: Final = 15
STREAMED: Final = 16
UNKNOWN_MESSAGE: Final = 17
BAD_TUPLE: Final = 18
COLUMN_COUNT: Final = 19
KEY_MISSING: Final = 20

# How the parts of one text are written: by array_out, record_out, range_out, multirange_out, pgvector and hstore.
ARRAY: Final = 0
RECORD: Final = 1
RANGE: Final = 2
MULTIRANGE: Final = 3
VECTOR: Final = 4
HSTORE: Final = 5

# Places in the state array of a frame scan (int64).
AT: Final = 0
COUNT: Final = 1
OPEN: Final = 2
FINAL_LSN: Final = 3
POSITION: Final = 4
COMMIT_TIME: Final = 5
TRANSACTIONS: Final = 6
BEGUN: Final = 7
STATE: Final = 8

_POSTGRES_EPOCH_US: Final = 946_684_800_000_000
_MAX_DAYS: Final = 106_751_991
_MAX_DAY_REST: Final = 14_454_775_807


# ------------------------------------------------------------------------------------------------------- pgoutput frames


@kernel
def _u16(buf: Any, at: Any) -> Any:
    return (np.int64(buf[at]) << 8) | np.int64(buf[at + 1])


@kernel
def u32(buf: Any, at: Any) -> Any:
    return (np.int64(buf[at]) << 24) | (np.int64(buf[at + 1]) << 16) | (np.int64(buf[at + 2]) << 8) | np.int64(buf[at + 3])


@kernel
def i64(buf: Any, at: Any) -> Any:
    return (u32(buf, at) << 32) | u32(buf, at + 4)


@kernel
def scan_frames(buf: Any, state: Any, oids: Any, layouts: Any, begun: Any, kind: Any, body: Any, end: Any, layout: Any, lsn: Any) -> Any:
    """Walk frames from ``state[AT]``; note each I, U, D; stop at R and T (the caller reads those and calls again).

    ``oids`` (sorted int64) and ``layouts`` (int32) map a relation OID to the caller's number for it. Per change are written, from
    ``state[COUNT]`` on: ``kind`` (the message byte), ``body`` and ``end`` (where what follows the OID begins and ends), ``layout`` and
    ``lsn`` (Begin.final_lsn). Room for one change per 4 bytes of ``buf`` is always enough. Per Begin is written, from ``state[BEGUN]``
    on, a row of ``begun``: final LSN, commit time (µs since 1970), xid; room for one per 25 bytes is enough. On RELATION and TRUNCATED
    ``state[AT]`` is past the frame, and ``body[count]``, ``end[count]`` frame the message; on an error ``state[AT]`` is at the frame.
    """
    size = buf.shape[0]
    at = state[AT]
    count = state[COUNT]
    known = oids.shape[0]
    last_oid = np.int64(-1)
    last_layout = np.int32(0)
    status = DONE
    while at < size:
        if size - at < 5:
            status = TORN_FRAME
            break
        length = np.int64(buf[at]) | (np.int64(buf[at + 1]) << 8) | (np.int64(buf[at + 2]) << 16) | (np.int64(buf[at + 3]) << 24)
        first = at + 4
        if length < 1 or length > size - first:
            status = TORN_FRAME
            break
        stop = first + length
        what = buf[first]
        if what == 73 or what == 85 or what == 68:  # I U D
            if state[OPEN] == 0:
                status = OUTSIDE_TRANSACTION
                break
            if length < 8:
                status = BAD_MESSAGE
                break
            oid = u32(buf, first + 1)
            if oid != last_oid:
                low = 0
                high = known
                while low < high:
                    middle = (low + high) >> 1
                    if oids[middle] < oid:
                        low = middle + 1
                    else:
                        high = middle
                if low == known or oids[low] != oid:
                    status = UNKNOWN_RELATION
                    break
                last_oid = oid
                last_layout = layouts[low]
            kind[count] = what
            body[count] = first + 5
            end[count] = stop
            layout[count] = last_layout
            lsn[count] = state[FINAL_LSN]
            count += 1
        elif what == 66:  # B: final LSN, commit time, xid
            if state[OPEN] != 0 or length != 21:
                status = BAD_BEGIN
                break
            state[OPEN] = 1
            state[FINAL_LSN] = i64(buf, first + 1)
            begun[state[BEGUN], 0] = state[FINAL_LSN]
            begun[state[BEGUN], 1] = i64(buf, first + 9) + _POSTGRES_EPOCH_US
            begun[state[BEGUN], 2] = u32(buf, first + 17)
            state[BEGUN] += 1
        elif what == 67:  # C: flags, commit LSN, end LSN, commit time
            if state[OPEN] == 0 or length != 26 or i64(buf, first + 2) != state[FINAL_LSN]:
                status = BAD_COMMIT
                break
            state[OPEN] = 0
            state[POSITION] = i64(buf, first + 10)
            state[TRANSACTIONS] += 1
            time = i64(buf, first + 18) + _POSTGRES_EPOCH_US
            if time > state[COMMIT_TIME]:
                state[COMMIT_TIME] = time
        elif what == 82 or what == 84:  # R T
            if state[OPEN] == 0:
                status = OUTSIDE_TRANSACTION
                break
            body[count] = first
            end[count] = stop
            at = stop
            status = RELATION if what == 82 else TRUNCATED
            break
        elif what == 89 or what == 79 or what == 77:  # Y O M: types, origins and messages change no row
            pass
        elif what in (83, 69, 99, 65, 98, 80, 75, 114, 112):  # S E c A b P K r p
            status = STREAMED
            break
        else:
            status = UNKNOWN_MESSAGE
            break
        at = stop
    state[AT] = at
    state[COUNT] = count
    return status


@kernel
def group(layout: Any, groups: Any, order: Any, bounds: Any) -> Any:
    """Stable counting sort: ``order`` lists the changes of group 0, 1, ...; group g is ``order[bounds[g]:bounds[g + 1]]``."""
    for g in range(groups + 1):
        bounds[g] = 0
    for i in range(layout.shape[0]):
        bounds[layout[i] + 1] += 1
    for g in range(groups):
        bounds[g + 1] += bounds[g]
    for i in range(layout.shape[0]):
        g = layout[i]
        order[bounds[g]] = i
        bounds[g] += 1
    for g in range(groups, 0, -1):
        bounds[g] = bounds[g - 1]
    bounds[0] = 0


@kernel
def _skip_tuple(buf: Any, at: Any, stop: Any, columns: Any) -> Any:
    """The end of the TupleData at ``at``, or -BAD_TUPLE, -COLUMN_COUNT."""
    if stop - at < 2:
        return np.int64(-BAD_TUPLE)
    if _u16(buf, at) != columns:
        return np.int64(-COLUMN_COUNT)
    at += 2
    for _ in range(columns):
        if at >= stop:
            return np.int64(-BAD_TUPLE)
        what = buf[at]
        at += 1
        if what == 116:  # t
            if stop - at < 4:
                return np.int64(-BAD_TUPLE)
            length = u32(buf, at)
            at += 4
            if length > stop - at:
                return np.int64(-BAD_TUPLE)
            at += length
        elif what != 110 and what != 117:  # n u
            return np.int64(-BAD_TUPLE)
    return at


@kernel
def scan_tuples(
    buf: Any,
    rows: Any,
    kind: Any,
    body: Any,
    end: Any,
    target: Any,
    key: Any,
    whole: Any,
    op: Any,
    start: Any,
    length: Any,
    key_start: Any,
    key_length: Any,
    missing: Any,
) -> Any:
    """The tuples of the changes ``rows`` (numbers into kind/body/end; kind T: a truncate), all of one relation message.

    ``target[c]`` is where message column c goes (-1: nowhere) and ``key[c]`` its place in the key (-1: none). Written per change:
    ``op``; ``start``, ``length`` of shape (columns, changes) for the new tuple; ``key_start``, ``key_length`` of shape (key columns,
    changes) for the key before the change: from the old tuple, else the new one. A value not sent ('u') is taken from a full old tuple
    ('O') when that has it, in a key column from either old tuple, and is UNCHANGED otherwise; ``missing`` counts those by column.
    ``whole``: the key is the whole row. It may then hold nulls, and comes from a full old tuple and from nowhere else.
    Returns (DONE, 0), or an error and the place in ``buf`` of the message body that has it.
    """
    columns = target.shape[0]
    keys = key_start.shape[0]
    wanted = start.shape[0]
    least = NULL if whole else 0
    for i in range(rows.shape[0]):
        row = rows[i]
        for c in range(wanted):
            start[c, i] = 0
            length[c, i] = NULL
        for k in range(keys):
            key_start[k, i] = 0
            key_length[k, i] = NULL
        if kind[row] == 84:
            op[i] = 3
            continue
        begin = np.int64(body[row])
        at = begin
        stop = np.int64(end[row])
        what = kind[row]
        op[i] = 0 if what == 73 else (1 if what == 85 else 2)
        if stop - at < 1:
            return BAD_TUPLE, begin
        tag = buf[at]
        at += 1
        old = np.int64(0)
        whole_old = tag == 79
        if whole and what != 73 and not whole_old:
            return KEY_MISSING, begin
        if tag == 75 or tag == 79:  # K O
            if what == 73:
                return BAD_TUPLE, begin
            old = at
            after = _skip_tuple(buf, at, stop, columns)
            if after < 0:
                return -after, begin
            # The old tuple is read again below only where it is needed: its key here.
            at += 2
            for c in range(columns):
                sent = buf[at]
                at += 1
                size = np.int64(NULL)
                if sent == 116:
                    size = u32(buf, at)
                    at += 4
                if key[c] >= 0:
                    key_start[key[c], i] = at
                    key_length[key[c], i] = size if sent != 117 else UNCHANGED
                if whole_old and target[c] >= 0 and what == 85:
                    # Kept for values the new tuple does not send.
                    start[target[c], i] = at
                    length[target[c], i] = size if sent != 117 else UNCHANGED
                if size > 0:
                    at += size
            if what == 85:
                if stop - at < 1:
                    return BAD_TUPLE, begin
                tag = buf[at]
                at += 1
        if what == 68:
            if old == 0 or at != stop:
                return BAD_TUPLE, begin
            for k in range(keys):
                if key_length[k, i] < least:
                    return KEY_MISSING, begin
            continue
        if tag != 78 or stop - at < 2:  # N
            return BAD_TUPLE, begin
        if _u16(buf, at) != columns:
            return COLUMN_COUNT, begin
        at += 2
        for c in range(columns):
            if at >= stop:
                return BAD_TUPLE, begin
            sent = buf[at]
            at += 1
            size = np.int64(NULL)
            if sent == 116:
                if stop - at < 4:
                    return BAD_TUPLE, begin
                size = u32(buf, at)
                at += 4
                if size > stop - at:
                    return BAD_TUPLE, begin
            elif sent != 110 and sent != 117:
                return BAD_TUPLE, begin
            t = target[c]
            if t >= 0:
                if sent != 117:
                    start[t, i] = at
                    length[t, i] = size
                elif key[c] >= 0 and old != 0:
                    start[t, i] = key_start[key[c], i]
                    length[t, i] = key_length[key[c], i]
                elif what == 73 or key[c] >= 0:
                    return KEY_MISSING if key[c] >= 0 else BAD_TUPLE, begin
                elif not whole_old:
                    length[t, i] = UNCHANGED
                if length[t, i] == UNCHANGED:
                    missing[t] += 1
                if key[c] >= 0:
                    if length[t, i] < least:
                        return KEY_MISSING, begin
                    if what == 85 and old == 0:
                        key_start[key[c], i] = start[t, i]
                        key_length[key[c], i] = length[t, i]
            if size > 0:
                at += size
        if at != stop:
            return BAD_TUPLE, begin
        if old != 0:
            for k in range(keys):
                if key_length[k, i] < least:
                    return KEY_MISSING, begin
    return DONE, np.int64(0)


# ------------------------------------------------------------------------------------------------------------- COPY text


@kernel
def count_lines(buf: Any) -> Any:
    """How many line ends ``buf`` holds. In COPY text a line end inside a value is always escaped."""
    count = 0
    for i in range(buf.shape[0]):
        if buf[i] == 10:
            count += 1
    return count


@kernel
def scan_lines(buf: Any, start: Any, length: Any, escaped: Any) -> Any:
    """Fields of whole lines: ``start``, ``length`` of shape (columns, lines), ``escaped[c]`` counts fields that hold a backslash.

    Returns -1, or the number of the first line that has not exactly that many fields, or no end.
    """
    columns = start.shape[0]
    lines = start.shape[1]
    if buf.shape[0] > 0 and buf[buf.shape[0] - 1] != 10:
        return lines
    # From here on every byte belongs to one of the lines counted.
    line = 0
    column = 0
    first = 0
    backslash = False
    for at in range(buf.shape[0]):
        byte = buf[at]
        if byte > 13 and byte != 92:
            continue
        if byte == 92:
            backslash = True
        elif byte == 9 or byte == 10:
            if column >= columns:
                return line
            size = at - first
            start[column, line] = first
            if backslash and size == 2 and buf[first] == 92 and buf[first + 1] == 78:  # \N
                length[column, line] = NULL
            else:
                length[column, line] = size
                if backslash:
                    escaped[column] += 1
            backslash = False
            first = at + 1
            column += 1
            if byte == 10:
                if column != columns:
                    return line
                column = 0
                line += 1
    return -1


@kernel
def unescape(buf: Any, start: Any, length: Any, out: Any, out_start: Any, out_length: Any) -> Any:
    """Fields without COPY's backslash sequences, written to ``out`` (room for all lengths together).

    Only what COPY TO writes is read: backslash and one of b f n r t v or backslash. Returns the first field with another, else the count.
    """
    filled = 0
    for i in range(start.shape[0]):
        out_start[i] = filled
        size = length[i]
        out_length[i] = size
        if size < 0:
            continue
        at = start[i]
        stop = at + size
        while at < stop:
            byte = buf[at]
            at += 1
            if byte == 92:
                if at == stop:
                    return i
                byte = buf[at]
                at += 1
                if byte == 110:
                    byte = np.uint8(10)
                elif byte == 116:
                    byte = np.uint8(9)
                elif byte == 114:
                    byte = np.uint8(13)
                elif byte == 98:
                    byte = np.uint8(8)
                elif byte == 102:
                    byte = np.uint8(12)
                elif byte == 118:
                    byte = np.uint8(11)
                elif byte != 92:
                    return i
            out[filled] = byte
            filled += 1
        out_length[i] = filled - out_start[i]
    return start.shape[0]


# ---------------------------------------------------------------------------------------------------- fields into columns


@kernel
def nulls(length: Any, bitmap: Any) -> Any:
    """Set the bit of every field that has a value (``bitmap`` comes zeroed, least significant bit first); how many have none."""
    count = 0
    for i in range(length.shape[0]):
        if length[i] < 0:
            count += 1
        else:
            bitmap[i >> 3] |= np.uint8(1 << (i & 7))
    return count


@kernel
def unsent(length: Any, out: Any) -> Any:
    """True where the field was not sent."""
    for i in range(length.shape[0]):
        out[i] = length[i] == UNCHANGED


@kernel
def lay_out(length: Any, offsets: Any, bitmap: Any) -> Any:
    """Arrow offsets (int32, one more than fields) and validity of strings of these lengths; (bytes in all, nulls).

    Bytes in all is -1 when int32 offsets cannot say it.
    """
    total = np.int64(0)
    count = 0
    for i in range(length.shape[0]):
        offsets[i] = total
        if length[i] < 0:
            count += 1
        else:
            bitmap[i >> 3] |= np.uint8(1 << (i & 7))
            total += length[i]
            if total > 2147483647:
                return np.int64(-1), count
    offsets[length.shape[0]] = total
    return total, count


@kernel
def gather(buf: Any, start: Any, length: Any, offsets: Any, out: Any) -> Any:
    """Copy every field to its place; True when all bytes are ASCII and none is NUL."""
    odd = False
    for i in range(start.shape[0]):
        size = length[i]
        if size > 0:
            source = start[i]
            to = offsets[i]
            high = np.uint8(0)
            lowest = np.uint8(255)
            for j in range(size):
                byte = buf[source + j]
                out[to + j] = byte
                high |= byte
                lowest = min(lowest, byte)
            if high > 127 or lowest == 0:
                odd = True
    return not odd


@kernel
def _never_plain(byte: Any, grammar: Any) -> Any:
    """Whether a part that holds this byte is always quoted."""
    if byte == 34 or byte == 92 or byte == 32 or 9 <= byte <= 13:
        return True
    if grammar == RECORD:
        return byte == 40 or byte == 41
    if grammar == RANGE:
        return byte == 40 or byte == 41 or byte == 91 or byte == 93
    return byte == 123 or byte == 125


@kernel
def split(
    buf: Any,
    start: Any,
    length: Any,
    grammar: Any,
    delimiter: Any,
    width: Any,
    out: Any,
    part_start: Any,
    part_length: Any,
    offsets: Any,
    state: Any,
) -> Any:
    """The parts of texts, one after another, without quotes and escapes: their bytes in ``out``, where each lies, and ``offsets``

    (one more than texts) into them. ``width``: how many parts each text must have, or -1. ``state`` (int64) is the text to go on
    with, and the bytes and parts there are before it. It ends at the count of texts, or at a text that is not of the grammar;
    after that text was made null, a call goes on with it. ``out`` has room for all lengths together; a text whose parts do not
    fit ``part_start`` is not of the grammar. A hstore gives two parts a pair. The parts of a multirange keep their quotes.
    """
    row, filled, parts = state[0], state[1], state[2]
    room = part_start.shape[0]
    doubled = grammar in (RECORD, RANGE)
    while row < start.shape[0]:
        offsets[row] = parts
        if length[row] < 0:
            row += 1
            continue
        at = np.int64(start[row])
        stop = at + length[row]
        if grammar != HSTORE:
            if stop - at < 2:
                break
            first = buf[at]
            last = buf[stop - 1]
            if grammar == RECORD:
                framed = first == 40 and last == 41
            elif grammar == RANGE:
                framed = (first == 40 or first == 91) and (last == 41 or last == 93)
            elif grammar == VECTOR:
                framed = first == 91 and last == 93
            else:
                framed = first == 123 and last == 125
            if not framed:
                break
            at += 1
            stop -= 1
        to = filled
        n = parts
        good = True
        more = at < stop or doubled
        while more:
            if n == room:
                good = False
                break
            begin = to
            null = False
            if at < stop and buf[at] == 34 and grammar != MULTIRANGE:
                at += 1
                good = False
                while at < stop:
                    byte = buf[at]
                    at += 1
                    if byte == 34:
                        if not doubled or at == stop or buf[at] != 34:
                            good = True
                            break
                        at += 1
                    elif byte == 92:
                        if at == stop:
                            break
                        byte = buf[at]
                        at += 1
                        if byte != 92 and (doubled or byte != 34):
                            break
                    out[to] = byte
                    to += 1
            else:
                depth = 0
                inside = False
                while at < stop:
                    byte = buf[at]
                    if grammar == MULTIRANGE:
                        if byte == 34:
                            inside = not inside
                        elif not inside:
                            if byte == 40 or byte == 91:
                                depth += 1
                            elif byte == 41 or byte == 93:
                                depth -= 1
                            elif byte == delimiter and depth == 0:
                                break
                    elif byte == delimiter:
                        break
                    elif _never_plain(byte, grammar):
                        good = False
                        break
                    out[to] = byte
                    to += 1
                    at += 1
                size = to - begin
                if doubled:
                    null = size == 0
                elif grammar in (ARRAY, HSTORE):
                    null = size == 4 and out[begin] == 78 and out[begin + 1] == 85 and out[begin + 2] == 76 and out[begin + 3] == 76
                    if null:
                        to = begin
                        if grammar == HSTORE and (n - parts) & 1 == 0:
                            good = False
                    elif size == 0 or grammar == HSTORE:
                        good = False
                elif size == 0 or inside or depth != 0 or (grammar == MULTIRANGE and out[begin] != 40 and out[begin] != 91):
                    good = False
            if not good:
                break
            part_start[n] = begin
            part_length[n] = NULL if null else to - begin
            n += 1
            if grammar == HSTORE:
                if (n - parts) & 1 == 1:
                    good = stop - at > 2 and buf[at] == 61 and buf[at + 1] == 62  # =>
                    at += 2
                elif at == stop:
                    more = False
                else:
                    good = stop - at > 2 and buf[at] == 44 and buf[at + 1] == 32
                    at += 2
                if not good:
                    break
            elif at == stop:
                more = False
            elif buf[at] == delimiter:
                at += 1
            else:
                good = False
                break
        if not good or (width >= 0 and n - parts != width):
            break
        filled = to
        parts = n
        row += 1
    if row == start.shape[0]:
        offsets[row] = parts
    state[0], state[1], state[2] = row, filled, parts


@kernel
def parse_bool(buf: Any, start: Any, length: Any, out: Any) -> Any:
    """``t`` or ``f`` into a bitmap (zeroed)."""
    for i in range(start.shape[0]):
        if length[i] < 0:
            continue
        if length[i] != 1:
            return i
        byte = buf[start[i]]
        if byte == 116:
            out[i >> 3] |= np.uint8(1 << (i & 7))
        elif byte != 102:
            return i
    return start.shape[0]


@kernel
def parse_int(buf: Any, start: Any, length: Any, low: Any, high: Any, out: Any) -> Any:
    """Decimal integers between ``low`` and ``high`` inclusive (int64), into int32 or int64."""
    for i in range(start.shape[0]):
        size = length[i]
        if size < 0:
            out[i] = 0
            continue
        at = start[i]
        stop = at + size
        negative = size > 0 and buf[at] == 45
        if negative:
            at += 1
        if at == stop or stop - at > 19:
            return i
        # Nineteen digits always fit an unsigned 64-bit word.
        value = np.uint64(0)
        while at < stop:
            digit = buf[at] - 48
            if digit < 0 or digit > 9:
                return i
            value = value * np.uint64(10) + np.uint64(digit)
            at += 1
        if negative:
            if value > np.uint64(9223372036854775808):
                return i
            signed = np.int64(np.uint64(0) - value)
        else:
            if value > np.uint64(9223372036854775807):
                return i
            signed = np.int64(value)
        if signed < low or signed > high:
            return i
        out[i] = signed
    return start.shape[0]


@kernel
def _two(buf: Any, at: Any) -> Any:
    """Two digits as a number; -1 when they are not."""
    tens = np.int64(buf[at]) - 48
    ones = np.int64(buf[at + 1]) - 48
    if tens < 0 or tens > 9 or ones < 0 or ones > 9:
        return np.int64(-1)
    return tens * 10 + ones


@kernel
def _days(buf: Any, at: Any, year_end: Any, era: Any) -> Any:
    """Days since 1970 of ``YYYY-MM-DD`` whose year ends at ``year_end``; ``era`` is true before Christ. Min of int64 when it is none.

    Source: Howard Hinnant, chrono-Compatible Low-Level Date Algorithms, days_from_civil. The caller checked the room.
    """
    bad = np.int64(-9223372036854775808)
    year = np.int64(0)
    while at < year_end:
        digit = np.int64(buf[at]) - 48
        if digit < 0 or digit > 9:
            return bad
        year = year * 10 + digit
        at += 1
    if buf[at] != 45 or buf[at + 3] != 45:
        return bad
    month = _two(buf, at + 1)
    day = _two(buf, at + 4)
    if year == 0 or month < 1 or month > 12 or day < 1:
        return bad
    if era:
        year = 1 - year
    if month == 2:
        longest = 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        longest = 30
    else:
        longest = 31
    if day > longest:
        return bad
    if month <= 2:
        year -= 1
        month += 9
    else:
        month -= 3
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469


@kernel
def _era(buf: Any, at: Any, stop: Any) -> Any:
    """True when the text ends in `` BC``."""
    return stop - at > 3 and buf[stop - 3] == 32 and buf[stop - 2] == 66 and buf[stop - 1] == 67


@kernel
def _micros(buf: Any, at: Any, stop: Any) -> Any:
    """``HH:MM:SS[.ffffff]`` filling [at, stop) -> microseconds since midnight, -1 when it is not; 24:00:00 is not."""
    bad = np.int64(-1)
    if stop - at < 8 or stop - at == 9 or stop - at > 15:
        return bad
    if buf[at + 2] != 58 or buf[at + 5] != 58:
        return bad
    hour = _two(buf, at)
    minute = _two(buf, at + 3)
    second = _two(buf, at + 6)
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return bad
    fraction = np.int64(0)
    at += 8
    if at < stop:
        if buf[at] != 46:
            return bad
        at += 1
        for _ in range(6):
            digit = np.int64(0)
            if at < stop:
                digit = np.int64(buf[at]) - 48
                if digit < 0 or digit > 9:
                    return bad
                at += 1
            fraction = fraction * 10 + digit
    return ((hour * 60 + minute) * 60 + second) * 1000000 + fraction


@kernel
def parse_date(buf: Any, start: Any, length: Any, out: Any) -> Any:
    """``YYYY-MM-DD[ BC]``, years of 4 to 7 digits, into int32 days since 1970."""
    for i in range(start.shape[0]):
        if length[i] < 0:
            out[i] = 0
            continue
        at = np.int64(start[i])
        stop = at + length[i]
        era = _era(buf, at, stop)
        if era:
            stop -= 3
        if stop - at < 10 or stop - at > 13:
            return i
        days = _days(buf, at, stop - 6, era)
        if days < -2147483648 or days > 2147483647:
            return i
        out[i] = days
    return start.shape[0]


@kernel
def parse_time(buf: Any, start: Any, length: Any, out: Any) -> Any:
    """``HH:MM:SS[.ffffff]`` into int64 microseconds since midnight; 24:00:00 is not one."""
    for i in range(start.shape[0]):
        if length[i] < 0:
            out[i] = 0
            continue
        micros = _micros(buf, np.int64(start[i]), np.int64(start[i]) + length[i])
        if micros < 0:
            return i
        out[i] = micros
    return start.shape[0]


@kernel
def parse_timestamp(buf: Any, start: Any, length: Any, zoned: Any, out: Any) -> Any:
    """``YYYY-MM-DD HH:MM:SS[.ffffff][+HH[:MM[:SS]]][ BC]`` into int64 microseconds since 1970.

    ``zoned``: the offset must be there and is subtracted; else it must not.
    """
    for i in range(start.shape[0]):
        if length[i] < 0:
            out[i] = 0
            continue
        at = np.int64(start[i])
        stop = at + length[i]
        era = _era(buf, at, stop)
        if era:
            stop -= 3
        if stop - at < 19:
            return i
        offset = np.int64(0)
        if zoned:
            # +HH, +HH:MM or +HH:MM:SS: the sign is at one of three places from the end.
            parts = 0
            for k in range(1, 4):
                sign = buf[stop - 3 * k]
                if sign == 43 or sign == 45:
                    parts = k
                    break
                if sign != 58:
                    return i
            if parts == 0:
                return i
            sign_at = stop - 3 * parts
            for k in range(parts):
                two = _two(buf, sign_at + 1 + 3 * k)
                if two < 0 or (k > 0 and two > 59):
                    return i
                offset = offset * 60 + two
            for _ in range(parts, 3):
                offset *= 60
            if buf[sign_at] == 45:
                offset = -offset
            stop = sign_at
        space = at + 10
        while space < stop and buf[space] != 32:
            space += 1
        if space >= stop or space - at > 13:
            return i
        days = _days(buf, at, space - 6, era)
        micros = _micros(buf, space + 1, stop)
        if days < -_MAX_DAYS or days > _MAX_DAYS or micros < 0:
            return i
        micros -= offset * 1000000
        if days >= _MAX_DAYS - 4:
            # Offsets are below 100 hours: only here can the sum pass the largest int64.
            over = days - _MAX_DAYS
            if over * 86400000000 + micros > _MAX_DAY_REST:
                return i
        elif days <= 4 - _MAX_DAYS:
            return i
        out[i] = days * 86400000000 + micros
    return start.shape[0]


@kernel
def parse_decimal(buf: Any, start: Any, length: Any, precision: Any, scale: Any, out: Any) -> Any:
    """``[-]digits[.digits]`` into 128-bit two's complement: ``out`` is uint64 of shape (2 * fields,), low word first.

    At most ``scale`` digits after the point (fewer are filled with zeros, and zeros beyond say nothing: a numeric without a scale
    prints 5 / 2 as 2.5000000000000000) and ``precision`` significant digits in all.
    """
    low32 = np.uint64(0xFFFFFFFF)
    thirty_two = np.uint64(32)
    ten = np.uint64(10)
    for i in range(start.shape[0]):
        size = length[i]
        out[2 * i] = np.uint64(0)
        out[2 * i + 1] = np.uint64(0)
        if size < 0:
            continue
        at = start[i]
        stop = at + size
        negative = size > 0 and buf[at] == 45
        if negative:
            at += 1
        low = np.uint64(0)
        high = np.uint64(0)
        digits = 0
        seen = 0
        after = -1
        while True:
            if at < stop:
                byte = buf[at]
                at += 1
                if byte == 46:
                    if after >= 0 or seen == 0 or at == stop:
                        return i
                    after = 0
                    continue
                if byte < 48 or byte > 57:
                    return i
                digit = np.uint64(byte - 48)
                seen += 1
                if after >= 0:
                    if after == scale:
                        if digit != np.uint64(0):
                            return i
                        continue
                    after += 1
            else:
                # Past the end: zeros up to the scale.
                if seen == 0:
                    return i
                if after < 0:
                    after = 0
                if after == scale:
                    break
                after += 1
                digit = np.uint64(0)
            if digits > 0 or digit != np.uint64(0):
                digits += 1
                if digits > precision:
                    return i
            if digits < 19:
                low = low * ten + digit
            else:
                a = (low & low32) * ten + digit
                b = (low >> thirty_two) * ten + (a >> thirty_two)
                low = (b << thirty_two) | (a & low32)
                high = high * ten + (b >> thirty_two)
        if negative:
            low = ~low + np.uint64(1)
            high = ~high
            if low == np.uint64(0):
                high += np.uint64(1)
        out[2 * i] = low
        out[2 * i + 1] = high
    return start.shape[0]


@kernel
def _nibble(byte: Any) -> Any:
    """A hexadecimal digit as a number, 255 when it is none."""
    if 48 <= byte <= 57:
        return np.uint8(byte - 48)
    if 97 <= byte <= 102:
        return np.uint8(byte - 87)
    if 65 <= byte <= 70:
        return np.uint8(byte - 55)
    return np.uint8(255)


@kernel
def parse_uuid(buf: Any, start: Any, length: Any, out: Any) -> Any:
    """``8-4-4-4-12`` hexadecimal digits into 16 bytes a field."""
    for i in range(start.shape[0]):
        to = 16 * i
        if length[i] < 0:
            for j in range(16):
                out[to + j] = 0
            continue
        if length[i] != 36:
            return i
        at = start[i]
        if buf[at + 8] != 45 or buf[at + 13] != 45 or buf[at + 18] != 45 or buf[at + 23] != 45:
            return i
        for j in range(16):
            if j == 4 or j == 6 or j == 8 or j == 10:
                at += 1
            upper = _nibble(buf[at])
            lower = _nibble(buf[at + 1])
            if upper > 15 or lower > 15:
                return i
            out[to + j] = (upper << 4) | lower
            at += 2
    return start.shape[0]


@kernel
def hex_lengths(buf: Any, start: Any, length: Any, prefix: Any, out: Any) -> Any:
    r"""How many bytes each field of hexadecimal digits stands for; nulls stay below zero. ``prefix``: 2 if ``\x`` comes first, else 0."""
    for i in range(start.shape[0]):
        size = length[i]
        if size < 0:
            out[i] = size
            continue
        if size < prefix or size & 1 or (prefix == 2 and (buf[start[i]] != 92 or buf[start[i] + 1] != 120)):
            return i
        out[i] = (size - prefix) >> 1
    return start.shape[0]


@kernel
def parse_hex(buf: Any, start: Any, length: Any, prefix: Any, offsets: Any, out: Any) -> Any:
    """The bytes of such fields, each at its offset. ``length`` is that of the text, checked by ``hex_lengths``."""
    for i in range(start.shape[0]):
        if length[i] < 0:
            continue
        at = start[i] + prefix
        for j in range(offsets[i], offsets[i + 1]):
            upper = _nibble(buf[at])
            lower = _nibble(buf[at + 1])
            if upper > 15 or lower > 15:
                return i
            out[j] = (upper << 4) | lower
            at += 2
    return start.shape[0]


@kernel
def check_floats(buf: Any, start: Any, length: Any) -> Any:
    """Whether each field is a float as PostgreSQL prints it: ``[-]digits[.digits][e(+|-)digits]``, NaN, Infinity, -Infinity."""
    for i in range(start.shape[0]):
        size = length[i]
        if size < 0:
            continue
        at = start[i]
        stop = at + size
        if size == 3 and buf[at] == 78 and buf[at + 1] == 97 and buf[at + 2] == 78:
            continue
        if size > 0 and buf[at] == 45:
            at += 1
        if stop - at == 8 and buf[at] == 73:
            if (
                buf[at + 1] == 110
                and buf[at + 2] == 102
                and buf[at + 3] == 105
                and buf[at + 4] == 110
                and buf[at + 5] == 105
                and buf[at + 6] == 116
                and buf[at + 7] == 121
            ):
                continue
            return i
        part = 0  # 0 before the point, 1 after it, 2 in the exponent
        digits = 0
        while at < stop:
            byte = buf[at]
            at += 1
            if 48 <= byte <= 57:
                digits += 1
            elif byte == 46 and part == 0 and digits > 0:
                part = 1
                digits = 0
            elif byte == 101 and part < 2 and digits > 0:
                part = 2
                digits = 0
                if at < stop and (buf[at] == 43 or buf[at] == 45):
                    at += 1
            else:
                return i
        if digits == 0:
            return i
    return start.shape[0]


@kernel
def check_float_results(buf: Any, start: Any, length: Any, values: Any) -> Any:
    """Whether no checked field overflowed to infinity or vanished to zero when it was read into ``values`` (float32 or float64)."""
    for i in range(start.shape[0]):
        if length[i] < 0:
            continue
        at = start[i]
        stop = at + length[i]
        value = values[i]
        if buf[at] == 45:
            at += 1
        if np.isinf(value):
            if buf[at] != 73:
                return i
        elif value == 0.0:
            while at < stop and buf[at] != 101:
                if buf[at] != 48 and buf[at] != 46:
                    return i
                at += 1
    return start.shape[0]
