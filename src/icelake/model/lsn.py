"""PostgreSQL log positions.

An LSN is a plain ``int`` (64 bit byte position in the WAL) everywhere inside; the ``X/Y`` text form exists only at the doors,
in table metadata and in SQL. A transaction's position is its *end* LSN (docs/protocol.md, Positions).
"""

import re

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


def parse_lsn(text: str) -> int:
    """``'0/16B3748'`` -> int. Raises ValueError when the text is not an LSN (PostgreSQL datatype pg_lsn)."""
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not an LSN: {text!r} (expected two hexadecimal numbers, as in 0/16B3748)")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """int -> ``'0/16B3748'``, as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
