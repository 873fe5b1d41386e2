"""PostgreSQL's types as its catalogs describe them, whole: what an array is of, a row's attributes, a range's bounds.

Promises: domains are looked through, since a value of a domain is a value of its base type; a type an extension brought is known
by the extension's name too, so nobody's own type is taken for it. Never guesses: what is none of these kinds is ``base``.
Source: PostgreSQL documentation, System Catalogs (pg_type, pg_range, pg_attribute, pg_depend).
"""

from dataclasses import dataclass
from typing import Any, Literal

import psycopg


@dataclass(frozen=True, slots=True)
class PgType:
    """A type; domains are already looked through."""

    name: str
    """pg_type.typname of PostgreSQL's own types, ``extension.typname`` of an extension's, '' of any other."""
    text: str
    """format_type()'s text."""
    kind: Literal["base", "array", "composite", "range", "multirange"] = "base"
    parts: "tuple[tuple[str, PgType], ...]" = ()
    """Composite: its attributes by name, in order. Array: its element; range: the subtype; multirange: the range (the name is '')."""
    schema: str = "pg_catalog"
    delimiter: str = ","
    """What array_out() writes between such elements."""


_TYPE = """
SELECT t.typname, n.nspname, t.typdelim, format_type(t.oid, %s), x.extname, nullif(t.typbasetype, 0), t.typtypmod,
       nullif(t.typrelid, 0), e.oid, r.rngsubtype, m.rngtypid
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
LEFT JOIN pg_range r ON r.rngtypid = t.oid
LEFT JOIN pg_range m ON m.rngmultitypid = t.oid
LEFT JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
LEFT JOIN pg_extension x ON x.oid = d.refobjid
WHERE t.oid = %s
"""
_ATTRIBUTES = """
SELECT attname, atttypid, atttypmod FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


class PgTypes:
    """Reads types over a connection, each once. Raises psycopg.Error."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._known: dict[tuple[int, int], PgType] = {}

    def read(self, oid: int, typmod: int) -> PgType:
        key = oid, typmod
        if key not in self._known:
            self._known[key] = self._read(oid, typmod)
        return self._known[key]

    def _read(self, oid: int, typmod: int) -> PgType:
        row = self._connection.execute(_TYPE, (typmod, oid)).fetchone()
        if row is None:
            return PgType("", f"type {oid}")
        name, schema, delimiter, text, extension, base, base_typmod, relation, element, subtype, of_range = row
        if base is not None:
            return self.read(base, base_typmod)
        if schema != "pg_catalog":
            name = "" if extension is None else f"{extension}.{name}"
        if relation is not None:
            attributes = self._connection.execute(_ATTRIBUTES, (relation,)).fetchall()
            parts = tuple((attribute, self.read(kind, modifier)) for attribute, kind, modifier in attributes)
            return PgType(name, text, "composite", parts, schema, delimiter)
        if element is not None:
            # The modifier of an array is that of its elements.
            return PgType(name, text, "array", (("", self.read(element, typmod)),), schema, delimiter)
        if subtype is not None:
            return PgType(name, text, "range", (("", self.read(subtype, -1)),), schema, delimiter)
        if of_range is not None:
            return PgType(name, text, "multirange", (("", self.read(of_range, -1)),), schema, delimiter)
        return PgType(name, text, "base", (), schema, delimiter)
