"""A source table as the lake knows it: columns by attnum, a key, and what it is called on both sides.

``Column.iceberg`` is the Iceberg type as ``model.types`` spells it.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

TABLEOID = -6
"""attnum of the system column ``tableoid``, which every table of PostgreSQL has. No other column can have its name."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``attnum`` is its identity (a rename keeps it); ``pg_type`` is ``format_type()``'s text."""

    name: str
    attnum: int
    type_oid: int
    typmod: int
    pg_type: str
    iceberg: str
    nullable: bool = True
    out_of_range: Literal["error", "null"] = "error"
    """What a value that PostgreSQL can hold and ``iceberg`` cannot becomes; on key columns always an error."""
    default: str | None = None
    """PostgreSQL's text of the constant that rows from before the column have (its missing value); None: null."""
    source: str = ""
    """What its values' text is made of (``sources.postgres.types``), where ``type_oid`` and ``typmod`` do not say it by themselves."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a project chooses for a column over what the type contract makes of it; None leaves that as it is."""

    type: str | None = None
    """``string`` (PostgreSQL's exact text), or, for a numeric, ``decimal(p,s)``."""
    out_of_range: Literal["error", "null", "text"] | None = None
    """What a value the Iceberg type cannot hold becomes; ``text``: a column that can hold such values is a string."""


@dataclass(frozen=True, slots=True, order=True)
class TableId:
    """A table in the catalog: ``namespace.name``; for mirrors these are the PostgreSQL schema and table names."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}.{self.name}"


@dataclass(frozen=True, slots=True)
class Relation:
    """A source table that can be mirrored. ``key`` holds names of columns, in key order; it is empty unless ``identity`` is "key"."""

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    key_is_ordered: bool = True
    """Whether the source's order of the key can be reproduced exactly here, so the table can be loaded in ranges."""
    identity: Literal["key", "full", "none"] = "key"
    """How changes name rows: by ``key``; by the whole old row ("full": rows are a multiset); not at all ("none": append-only)."""
    last_attnum: int = 0
    """The highest attnum the table has ever given out; 0: not known. Only a column beyond it is one that was added since."""
    dropped: tuple[int, ...] = ()
    """Attnums of columns that were dropped; known of a relation as described, not of one the lake holds."""
    uneven: tuple[int, ...] = ()
    """Attnums of columns whose ``default`` is not the same in all leaves of a partitioned table; known as ``dropped`` is."""

    @property
    def partitioned(self) -> bool:
        """Whether its rows are in leaves, tables of their own: then it has a column ``tableoid``, the OID of a row's leaf.

        If its identity is "key", that column is the first of the key: the rows of a leaf lie together in the key's order.
        """
        return any(column.attnum == TABLEOID for column in self.columns)

    @property
    def leaf(self) -> str:
        """The column that says which leaf a row is of. Only of a partitioned table."""
        return next(column.name for column in self.columns if column.attnum == TABLEOID)

    @property
    def sent(self) -> tuple[Column, ...]:
        """The columns a change brings along, in the order of their attnums: all but ``tableoid``."""
        return tuple(sorted((column for column in self.columns if column.attnum > 0), key=lambda column: column.attnum))

    @property
    def id(self) -> TableId:
        return TableId(self.schema, self.name)

    @property
    def named_by(self) -> str:
        """How changes name rows, in words."""
        return {"key": f"the key ({', '.join(self.key)})", "full": "all their values", "none": "nothing"}[self.identity]

    @property
    def ever(self) -> int:
        """The highest attnum there was, as far as it is known."""
        return self.last_attnum or max((column.attnum for column in self.columns), default=0)

    @property
    def key_columns(self) -> tuple[Column, ...]:
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in self.key)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A source table that cannot be mirrored, and why. ``code`` is an error code of ``icelake.errors``."""

    schema: str
    name: str
    code: str
    why: str
    fix: str


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which server this is (IDENTIFY_SYSTEM): the system identifier never changes, the timeline does at a promotion."""

    system_id: str
    timeline: int
    database: str
    version: int = field(default=0)
    """server_version_num"""
    flushed: int | None = None
    """How far its WAL is written (IDENTIFY_SYSTEM, xlogpos)."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """A replication slot as pg_replication_slots shows it. ``lost`` covers wal_status=lost and any invalidation_reason."""

    name: str
    plugin: str
    database: str
    active_pid: int | None
    confirmed_flush_lsn: int
    lost: str | None


def excludes(patterns: Collection[str], schema: str, name: str) -> bool:
    """Whether a table is among ``patterns``: ``schema.name`` or ``schema.*``."""
    return f"{schema}.{name}" in patterns or f"{schema}.*" in patterns
