"""How a project wants a table laid out: what it is partitioned by, how its files are sorted, which format version it has.

Promises that ``str()`` of a parsed field parses to the same field. Knows which transform fits which type (Iceberg spec, Partition
Transforms) and nothing of files. Parsing raises ValueError in words that name the choices.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from icelake.model.relation import Relation
from icelake.model.types import Primitive, parse

_MAX_WIDTH = (1 << 31) - 1
_WITH_WIDTH = ("bucket", "truncate")
_DATES = frozenset({"date", "timestamp", "timestamptz"})
_COUNTED = frozenset({"int", "long", "decimal", "string", "binary"})
SOURCES: Mapping[str, frozenset[str]] = {
    # No floating point: a partition would be named NaN, and -0.0 and 0.0 would be two of them. No uuid, here and in bucket: DuckDB
    # 1.5.5 hashes uuids otherwise and PyIceberg 0.12 compares them with their own bytes as unequal, and both then hide rows.
    "identity": _COUNTED | _DATES | {"boolean", "time"},
    "year": _DATES,
    "month": _DATES,
    "day": _DATES,
    "hour": _DATES - {"date"},
    "bucket": _COUNTED | _DATES | {"time"},
    # DuckDB 1.5.5 truncates decimals to 64 bits and hides rows, or stops with an internal error.
    "truncate": _COUNTED - {"decimal"},
}
"""Transform -> the types it takes."""
_TIMES = ("year", "month", "day", "hour")

_QUOTING = "a name with spaces, brackets, commas or quotes in it goes in double quotes"
_NAME = r'"(?:[^"]|"")+"|[^\s"(),]+'
_PARTITION = re.compile(rf"\s*(?:([A-Za-z_]+)\s*\(\s*(?:(\d{{1,10}})\s*,\s*)?({_NAME})\s*\)|({_NAME}))\s*")
_SORT = re.compile(rf"\s*({_NAME})(?:\s+(asc|desc))?(?:\s+nulls\s+(first|last))?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PartitionField:
    """One part of what a table is partitioned by. ``width``: buckets, or what is truncated to; None for the other transforms."""

    column: str
    transform: str = "identity"
    width: int | None = None

    @staticmethod
    def parse(text: str) -> "PartitionField":
        """Of ``country``, ``day(placed_at)``, ``bucket(16, customer_id)``; names as in SQL, but their case counts."""
        match = _PARTITION.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is none of: column, day(column), bucket(16, column); {_QUOTING}")
        word, width, inner, alone = match.groups()
        if word is None:
            return PartitionField(_unquoted(alone))
        if word not in SOURCES:
            raise ValueError(f"there is no transform {word!r}; choose of: {', '.join(SOURCES)}")
        if (word in _WITH_WIDTH) != (width is not None):
            raise ValueError(f"{text!r}: write {f'{word}(16, column)' if word in _WITH_WIDTH else f'{word}(column)'}")
        if width is not None and not 1 <= int(width) <= _MAX_WIDTH:
            raise ValueError(f"{text!r}: the number is from 1 to {_MAX_WIDTH}")
        return PartitionField(_unquoted(inner), word, None if width is None else int(width))

    def __str__(self) -> str:
        if self.transform == "identity":
            return _quoted(self.column)
        width = "" if self.width is None else f"{self.width}, "
        return f"{self.transform}({width}{_quoted(self.column)})"


@dataclass(frozen=True, slots=True)
class SortField:
    """One part of the order of the rows of a file."""

    column: str
    descending: bool = False
    nulls_first: bool = True

    @staticmethod
    def parse(text: str) -> "SortField":
        """Of ``customer_id``, ``placed_at desc``, ``placed_at desc nulls last``. Nulls are the smallest unless said otherwise."""
        match = _SORT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is none of: column, column desc, column asc nulls last; {_QUOTING}")
        name, direction, nulls = match.groups()
        descending = direction is not None and direction.lower() == "desc"
        return SortField(_unquoted(name), descending, not descending if nulls is None else nulls.lower() == "first")

    def __str__(self) -> str:
        return f"{_quoted(self.column)} {'desc' if self.descending else 'asc'} nulls {'first' if self.nulls_first else 'last'}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Fixed when the table is made. ``format_version``: 3, or 2 for readers that cannot read 3."""

    partition: tuple[PartitionField, ...] = ()
    sort: tuple[SortField, ...] = ()
    format_version: int = 3

    def __str__(self) -> str:
        partition, sort = ", ".join(map(str, self.partition)), ", ".join(map(str, self.sort))
        return f"format {self.format_version}, partitioned by {partition or 'nothing'}, sorted by {sort or 'nothing'}"

    def misfit(self, relation: Relation) -> tuple[str, str] | None:
        """(why the relation cannot be laid out so, what to do), or None if it can."""
        kinds = {column.name: parse(column.iceberg) for column in relation.columns}
        for column in [*(one.column for one in self.partition), *(one.column for one in self.sort)]:
            if column not in kinds:
                return f"there is no column {column!r}", f"the columns are: {', '.join(kinds)}"
            if not isinstance(kinds[column], Primitive):
                return f"{column!r} is a {kinds[column]}, which has parts", "name a column without parts"
        seen: set[tuple[str, str]] = set()
        for one in self.partition:
            kind = str(kinds[one.column])
            bare = "decimal" if kind.startswith("decimal") else kind
            if bare not in SOURCES[one.transform]:
                fit = [name for name, sources in SOURCES.items() if bare in sources]
                return f"{one.transform} does not take {one.column!r}, which is {kind}", f"choose of: {', '.join(fit) or 'no transform'}"
            # A day says the month and the year too: engines refuse such pairs.
            place = (one.column, "time" if one.transform in _TIMES else one.transform)
            if place in seen:
                return f"{one.column!r} is partitioned by twice in the same way", f"leave {one} out"
            seen.add(place)
        names = [one.column for one in self.sort]
        if len(set(names)) != len(names):
            return "a column is sorted by twice", "leave one out"
        return None


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _quoted(name: str) -> str:
    return name if re.fullmatch(r'[^\s"(),]+', name) else '"' + name.replace('"', '""') + '"'
