"""Writes docs/reference/types.md: what every PostgreSQL type becomes in the lake, by the tables the code goes by, and what engines
show of it, by what tests saw (tests/conformance/shown.json).

`--check` only compares and exits 1 when the page is old.
"""

import json
import sys
from typing import Any

from pages import ROOT, keep

from icelake.model.types import Primitive, parse
from icelake.sources.postgres.types import (
    SCALARS,
    SESSION,
    ArrayOf,
    Composite,
    Leaf,
    MultirangeOf,
    PgType,
    RangeOf,
    Scalar,
    can_be_beyond,
    iceberg_type,
)

PAGE = ROOT / "docs" / "reference" / "types.md"
SEEN = ROOT / "tests" / "conformance" / "shown.json"

HEAD = """\
# Types

Written by `make docs` from the code. What a column of each PostgreSQL type becomes in the lake, when it cannot hold a value, and what
engines show of it. A value in the lake is the one in PostgreSQL or the table stops: nothing is rounded, clipped or guessed.

*Text* is what PostgreSQL prints in IceLake's sessions ({session}); a column of Iceberg type `string` holds
exactly that text. *Out of range* are the values PostgreSQL can hold and the Iceberg type cannot. What such a value becomes is the
project's choice, by table or column: `out_of_range = "error"` (the default), `"null"` or `"text"`, see [the project file](project.md).
A column's Iceberg type is fixed when its table is made.

## Types without parts

| PostgreSQL | Iceberg | text | out of range | default | can be a key |
|---|---|---|---|---|---|
"""

PARTS = """
A domain is what it is over. `other` is any base type that is not listed: the remaining geometric types, `xid`, `jsonpath`, `reg*`, those
of other extensions. A composite type without attributes is `other`, too. `regclass` and the other `reg*` types, and `aclitem`, PostgreSQL
prints from the names of other things: after such a thing was renamed or moved, rows nobody touched read otherwise in the source than in
the lake. Nothing announces that; `verify` finds it, and `icelake resume TABLE --reload` mends it.

## Types with parts

Every part is optional: an array's elements, a composite's attributes and a range's bounds can be null. None of these can be a key.

| PostgreSQL | Iceberg | out of range | default |
|---|---|---|---|
"""

TAIL = """
- An **array** is a list if it has one dimension and begins at 1, as PostgreSQL's own arrays do unless one asks for more.
- A **range**'s `bounds` are `[)`, `(]`, `()`, `[]` or `empty`. A bound that is null is none: the range has no end there. Of an empty range
  both are null.
- With `out_of_range = "null"` the innermost part that does not fit becomes null: the column's value, the element, the attribute, the bound
  (which then looks like none: choose `"text"` where that matters).
- A composite's attributes are known by their number, as columns are. `ALTER TYPE ... ADD`, `DROP` or `RENAME ATTRIBUTE` is a change of the
  table's shape. So is `ALTER TYPE ... RENAME VALUE` of an enum: PostgreSQL prints the new label in rows it sends no change of.

## Numbers

`numeric(p,s)` with 0 <= s <= p <= 38 is a decimal. Every other `numeric`, declared wider, with a negative scale or without any, is a string
with PostgreSQL's exact text. The project can name a decimal for a numeric column (`type = "decimal(20,4)"`): a number that does not fit
it, with digits other than zero beyond its scale for instance, is out of range then.

## Keys

A key in the lake is the value that is stored, and not whatever PostgreSQL takes for equal to it: `A` and `a` of a `citext` or under a
collation that is not deterministic, 1.0 and 1.00 of a `numeric` that is a string. PostgreSQL holds only one of them at a time, and says
so when the one becomes the other: that is a change of key, under the row's id. 0.0 and -0.0 of a float are one key here too.
"""

ENGINES = """
## What engines show

A column of each type was mirrored, with NULL and the values at the type's edges, and read by each engine. A cell has the engine's type (of
PyIceberg: Arrow's) and every value that is not shown as it is stored, bit for bit. Tests fail when an engine shows anything else than this.
Only NULLs were read of `xml`; the values of citext, hstore, ltree and PostGIS came from types that stand in for theirs.

"""

SQL_NAMES = {
    "bool": "boolean",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "varchar": "character varying",
    "bpchar": "character",
    "char": '"char"',
    "timetz": "time with time zone",
    "timestamptz": "timestamp with time zone",
    "varbit": "bit varying",
    "enum": "any enum",
}
"""How SQL writes a type, where that is another word."""

OWN_TYPES = {
    "mood": "any enum",
    "pair": "a composite of `a integer, b text`",
    "pair[]": "an array of that",
    "visit": "a composite of `at timestamp, tags text[]`",
    "ident": "a composite of `u uuid`",
    "trip": "a composite of an array of composites",
}
"""The types that the test with the engines makes for itself (tests/conformance/shown.py)."""

EXAMPLES: list[tuple[str, PgType]] = [
    ("`text[]`", ArrayOf(Leaf("text"))),
    ("`date[]`", ArrayOf(Leaf("date"))),
    ("a composite of `a integer, b text`", Composite(((1, "a", Leaf("int4")), (2, "b", Leaf("text"))))),
    ("a composite of `at timestamp, tags text[]`", Composite(((1, "at", Leaf("timestamp")), (2, "tags", ArrayOf(Leaf("text")))))),
    ("`int4range`", RangeOf(Leaf("int4"))),
    ("`numrange`", RangeOf(Leaf("numeric"))),
    ("`daterange`", RangeOf(Leaf("date"))),
    ("`int4multirange`", MultirangeOf(Leaf("int4"))),
]


def page() -> str:
    lines = [HEAD.format(session=", ".join(f"`{name} = {value}`" for name, value in SESSION.items()))]
    for name, scalar in SCALARS.items():
        if name == "numeric":
            lines.append(row("`numeric(p,s)`, 0 <= s <= p <= 38", "`decimal(p,s)`", scalar, "`NaN`, `Infinity`, `-Infinity`"))
            lines.append(row("other `numeric`", f"`{scalar.iceberg}`", scalar, ""))
        else:
            shown = SQL_NAMES.get(name, name)
            label = shown if name == "enum" else f"`{shown}`" + (f" (`{name}`)" if shown != name and name != "char" else "")
            if scalar.extension:
                label += f" (extension {scalar.extension})"
            lines.append(row(label, f"`{scalar.iceberg}`", scalar, scalar.beyond))
    lines.append(PARTS)
    for label, source in EXAMPLES:
        iceberg = iceberg_type(source)
        lines.append(f"| {label} | `{iceberg}` | {beyond(source)} | {'`error`' if can_be_beyond(source, iceberg) else ''} |\n")
    lines.append(TAIL)
    lines.append(ENGINES)
    lines += engines(json.loads(SEEN.read_text(encoding="utf-8")))
    return "".join(lines)


def engines(seen: dict[str, Any]) -> list[str]:
    """The table of engines; types that are shown alike by each share a row."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for kind in next(iter(seen.values()))["types"]:
        alike.setdefault(tuple(cell(engine["types"][kind]) for engine in seen.values()), []).append(OWN_TYPES.get(kind, f"`{kind}`"))
    heads = ["PostgreSQL", *(f"{name} {engine['version']}" for name, engine in seen.items())]
    lines = [f"| {' | '.join(heads)} |\n", f"|{'---|' * len(heads)}\n"]
    lines += [f"| {', '.join(kinds)} | {' | '.join(cells)} |\n" for cells, kinds in alike.items()]
    return lines


def cell(shown: dict[str, Any]) -> str:
    if "refused" in shown:
        return f"the table is refused: `{shown['refused']}`"
    said = [f"`{shown['as']}`", *(f"`{literal}` is `{instead}`" for literal, instead in shown.get("instead", {}).items())]
    if "without_rows" in shown:
        said.append(f"an answer without rows fails: `{shown['without_rows']}`")
    return "; ".join(said)


def row(label: str, iceberg: str, scalar: Scalar, out_of_range: str) -> str:
    key = "yes" if isinstance(parse(scalar.iceberg), Primitive) else "no: it has parts"
    return f"| {label} | {iceberg} | {scalar.text} | {out_of_range} | {'`error`' if out_of_range else ''} | {key} |\n"


def beyond(source: PgType) -> str:
    """What of a type with parts is out of range: of itself, and of its parts."""
    match source:
        case Leaf(name):
            return SCALARS[name].beyond
        case ArrayOf(element):
            said = ["more than one dimension", "a lower bound other than 1", beyond(element)]
        case Composite(attributes):
            said = [beyond(kind) for _, _, kind in attributes]
        case RangeOf(bound) | MultirangeOf(bound):
            said = [beyond(bound)]
    return "; ".join(text for text in dict.fromkeys(said) if text)


if __name__ == "__main__":
    sys.exit(keep(PAGE, page()))
