"""What a project is once its file has been checked: frozen values, nothing left to doubt. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    ``history``: a table beside it keeps every change.
    ``append_only``: its mirror holds what was inserted since its last TRUNCATE; updates and deletes do not reach it.
    """

    readers: tuple[Reader, ...]
    out_of_range: OutOfRange
    columns: Mapping[str, Choice]
    layout: Layout
    append_only: bool = False
    history: bool = False


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

    Ages grow, steps grow, and every step divides the next. Files stay for another ``grace`` seconds.
    """

    keep_all: int
    thin: tuple[Thinning, ...]
    grace: int


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """``memory_limit`` is DuckDB's: a number with a unit, as in ``512MB``."""

    memory_limit: str


@dataclass(frozen=True, slots=True)
class S3Keys:
    """Secrets themselves: for signing, and for nothing that is shown."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach an S3. ``endpoint``: a URL without a path; None: Amazon's of the region.

    ``path_style``: the bucket is in the path; else it is the first part of the host's name.
    """

    endpoint: str | None
    region: str
    access_key: Secret
    secret_key: Secret
    session_token: Secret | None
    path_style: bool

    def reveal(self) -> S3Keys:
        """Raises ProjectError SECRET_... ."""
        return S3Keys(
            self.access_key.reveal(), self.secret_key.reveal(), self.session_token.reveal() if self.session_token is not None else None
        )

    def base(self) -> str:
        """The endpoint's URL."""
        return self.endpoint or f"https://s3.{self.region}.amazonaws.com"

    def url(self, bucket: str) -> str:
        """Where the bucket's requests go: the endpoint, or the bucket's own host at it."""
        scheme, _, host = self.base().partition("://")
        return f"{scheme}://{host}" if self.path_style else f"{scheme}://{bucket}.{host}"


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """``database``: the DSN of the PostgreSQL it is in; None: SQLite, in the lake's folder.

    ``guard``: whether what a commit over HTTP adds is refused if it would break a table, or only told of.
    """

    database: Secret | None
    guard: Literal["refuse", "warn"]


@dataclass(frozen=True, slots=True)
class Project:
    """``file`` is the icelake.toml; ``lake`` the local folder of the catalog, indexes and scratch files, absolute.

    ``warehouse``: the location of the tables' files: a folder in ``lake``, or ``s3://bucket/prefix``, and then ``s3`` says how.
    """

    file: Path
    name: str
    profile: str
    lake: Path
    warehouse: str
    s3: S3Settings | None
    catalog: CatalogSettings
    sources: Mapping[str, SourceSettings]
    tables: Mapping[str, TableSettings]
    commit: CommitSettings
    retention: RetentionSettings
    query: QuerySettings
