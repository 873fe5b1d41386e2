"""What a project is once its file has been checked: frozen values, nothing left to doubt. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icelake.model.layout import Layout
from icelake.model.relation import Choice
from icelake.project.secret import Secret

Reader = Literal["duckdb", "flink", "pyiceberg", "spark", "trino", "athena", "bigquery", "clickhouse", "redshift", "snowflake"]
READS_V3: frozenset[Reader] = frozenset({"duckdb", "flink", "pyiceberg", "spark", "trino"})
"""Engines that were seen to read format version 3 with deletion vectors as it is written here. The others get version 2."""
OutOfRange = Literal["error", "null", "text"]


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """A PostgreSQL database. ``tables`` and ``exclude`` hold ``schema.name`` or ``schema.*``."""

    name: str
    dsn: Secret
    tables: tuple[str, ...]
    exclude: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableSettings:
    """``readers``: the engines that must be able to read the table. ``out_of_range``: what a value its Iceberg type cannot hold

    becomes, in columns that do not choose for themselves and are no key. ``columns``: choices by column name.
    ``layout``: how it is made; later changes to it are refused.
    ``append_only``: its mirror holds what was inserted since its last TRUNCATE; updates and deletes do not reach it.
    """

    readers: tuple[Reader, ...]
    out_of_range: OutOfRange
    columns: Mapping[str, Choice]
    layout: Layout
    append_only: bool = False


@dataclass(frozen=True, slots=True)
class CommitSettings:
    """A commit is made every ``interval_ms``, or sooner once ``batch_mb`` MiB of changes wait."""

    interval_ms: int
    batch_mb: int


@dataclass(frozen=True, slots=True)
class Thinning:
    """Of the snapshots not older than ``until`` seconds, one is kept per ``every`` seconds."""

    every: int
    until: int


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """All snapshots and cuts younger than ``keep_all`` seconds stay; older ones thin by ``thin``, in order of age, and then go.

    Ages grow, steps grow, and every step divides the next.
    """

    keep_all: int
    thin: tuple[Thinning, ...]


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """``memory_limit`` is DuckDB's: a number with a unit, as in ``512MB``."""

    memory_limit: str


@dataclass(frozen=True, slots=True)
class Project:
    """``file`` is the icelake.toml; ``lake`` the folder of everything IceLake writes, absolute."""

    file: Path
    name: str
    profile: str
    lake: Path
    sources: Mapping[str, SourceSettings]
    tables: Mapping[str, TableSettings]
    commit: CommitSettings
    retention: RetentionSettings
    query: QuerySettings
