"""DuckDB asks the lake's tables, each at a snapshot the caller chose.

Promises: works without network, without HOME and from an environment that cannot be written to; a query sees exactly the snapshots
it was given; SQL can read the lake's folders and nothing else, and can change nothing; answers carry the exact values (decimals stay
decimals, timestamptz is UTC). Never downloads an extension, never looks at Python variables or files the SQL names, never picks a
"latest" version by itself. A lake on S3 is read with the project's credentials below the warehouse only; they show in no answer and
in no error. Fails with ProjectError for SQL that is wrong, Corrupt for lake files that cannot be read, Unreachable or Refused for an
S3 that does not answer or does not let us.
"""

import difflib
import importlib.util
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import duckdb
import pyarrow as pa

from icelake.errors import Corrupt, IcelakeError, ProjectError, Refused, Unreachable
from icelake.model.location import canonical, is_s3
from icelake.project import S3Settings

EXTENSIONS = ("avro", "iceberg")
"""Loaded in this order from their wheels: iceberg reads manifests with avro."""
HTTPFS = "httpfs"
"""Loaded for a lake on S3."""
HTTP: Mapping[str, str] = {
    # Tries again after 0.1, 0.3, 0.9 and 2.7 s. Not longer: DuckDB waits so for an answer 403 too.
    "http_timeout": "60",
    "http_retries": "5",
    "http_retry_wait_ms": "100",
    "http_retry_backoff": "3",
    "httpfs_connection_caching": "true",
    # Else a ? in a location would be options, and a query could send our signatures to a server of its choice. (With
    # enable_global_s3_configuration off, DuckDB 1.5 does not look at this.)
    "s3_url_compatibility_mode": "true",
}

TableAt = tuple[str, int | None]
"""(location of the metadata.json, snapshot id); None: the table as it was before its first snapshot, which is empty."""

_UNQUALIFIED = "_unqualified"
_HTTP_STATUS = re.compile(r"\bHTTP (?:code )?(\d{3})\b")
_NO_ANSWER = re.compile(r"\bHTTP (GET|HEAD|POST)\b|error for HTTP")
_MISSING = re.compile(r'(?:Table with name|relation) "?([^"]+?)"? does not exist', re.IGNORECASE)


def extension_file(name: str) -> Path:
    """The DuckDB extension of that name inside its wheel. Raises IcelakeError when the wheel is missing or of another version."""
    spec = importlib.util.find_spec(f"duckdb_extension_{name}")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        if file.is_file():
            return file
    raise IcelakeError(
        "DUCKDB_EXTENSION_MISSING",
        f"the {name} extension of DuckDB {duckdb.__version__} is not installed",
        "it comes as a wheel of the same version as DuckDB",
        f"pip install duckdb-extension-{name}=={duckdb.__version__}",
    )


def connect(
    folders: Iterable[str | Path],
    *,
    memory_limit: str = "512MB",
    scratch: Path | None = None,
    threads: int | None = None,
    s3: S3Settings | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that can read Iceberg under ``folders`` and nothing outside them; configuration is then locked.

    ``folders`` may be locations on S3 if ``s3`` says how to reach them. ``scratch`` is where it may spill; None: it may not.
    ``memory_limit`` is DuckDB's (text with a unit).
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_persistent_secrets": "false",
        "python_enable_replacements": "false",
        # A cache keyed by path and time would be one more thing that can be stale; the page cache does as well.
        "enable_external_file_cache": "false",
        # Iceberg's scan takes deletes from its estimate of rows also where it has left the rows' own manifests out (1.5.5, GetCardinality
        # in iceberg_multi_file_list.cpp): the estimate wraps round to 2^64 - n, and this pass ends the query with an INTERNAL error.
        # Without it TPC-H takes the same time.
        "disabled_optimizers": "statistics_propagation",
        "extension_directory": str(extension_file("iceberg").parent.parent),
        "memory_limit": memory_limit,
        "temp_directory": str(scratch.absolute()) if scratch else "",
    }
    if threads is not None:
        config["threads"] = threads
    connection = duckdb.connect(":memory:", config=config)
    for name in EXTENSIONS:
        connection.execute(f"LOAD {_literal(str(extension_file(name)))}")
    allowed: set[str] = set()
    for folder in folders:
        if is_s3(str(folder)):
            allowed.add(f"{canonical(str(folder))}/")
        else:
            allowed |= {str(Path(folder).absolute()), str(Path(folder).resolve())}
    if s3 is not None:
        _reach(connection, s3, sorted(folder for folder in allowed if is_s3(folder)))
    if scratch:
        allowed.add(str(scratch.absolute()))
    connection.execute(f"SET allowed_directories=[{', '.join(_literal(path) for path in sorted(allowed))}]")
    connection.execute("SET TimeZone='UTC'")
    connection.execute("SET enable_external_access=false")
    connection.execute("SET lock_configuration=true")
    return connection


def _reach(connection: duckdb.DuckDBPyConnection, s3: S3Settings, folders: Sequence[str]) -> None:
    """Let the connection read the folders on S3 with the project's credentials, and ask nobody else for any."""
    connection.execute(f"LOAD {_literal(str(extension_file(HTTPFS)))}")
    for name, value in HTTP.items():
        # Global: some of them would else hold for this cursor only.
        connection.execute(f"SET GLOBAL {name}={value}")
    keys = s3.reveal()
    scheme, _, host = s3.base().partition("://")
    options = {
        "KEY_ID": _literal(keys.access_key),
        "SECRET": _literal(keys.secret_key),
        "REGION": _literal(s3.region),
        "ENDPOINT": _literal(host),
        "URL_STYLE": _literal("path" if s3.path_style else "vhost"),
        "USE_SSL": "true" if scheme == "https" else "false",
        "SCOPE": f"[{', '.join(_literal(folder) for folder in folders)}]",
    }
    if keys.session_token is not None:
        options["SESSION_TOKEN"] = _literal(keys.session_token)
    try:
        connection.execute(f"CREATE SECRET lake (TYPE s3, {', '.join(f'{name} {value}' for name, value in options.items())})")
    except duckdb.Error:
        # Its message may quote the statement, and with it the secret; nothing of it is passed on.
        raise ProjectError(
            "S3_SETTINGS", "DuckDB does not take the settings of [lake.s3]", "", "check that the keys hold no stray characters"
        ) from None


def iceberg_scan(at: TableAt) -> str:
    """The SQL of a FROM item that reads the table at its snapshot."""
    location, snapshot = at
    if snapshot is None:
        return f"(SELECT * FROM iceberg_scan({_literal(location)}) LIMIT 0)"
    return f"iceberg_scan({_literal(location)}, snapshot_from_id={snapshot}::UBIGINT)"


def named(sql: str, tables: Iterable[str]) -> tuple[str, ...]:
    """Those of ``tables`` (``schema.name``) whose name occurs as a word in the SQL: all it can mean, and perhaps a few more.

    Reading the text instead of the syntax tree errs only towards a view too many, and cannot be led astray by a dialect.
    """
    text = sql.replace('""', '"').casefold()
    return tuple(
        table
        for table in tables
        if re.search(rf"(?<!\w){re.escape(table.partition('.')[2].casefold())}(?!\w)", text, re.UNICODE) is not None
    )


class DuckDBEngine:
    """One DuckDB for many questions; each question has a catalog of its own, so threads may ask at once at different snapshots."""

    def __init__(
        self,
        folders: Sequence[str | Path],
        *,
        memory_limit: str = "512MB",
        scratch: Path | None = None,
        threads: int | None = None,
        s3: S3Settings | None = None,
    ) -> None:
        self._connection = connect(folders, memory_limit=memory_limit, scratch=scratch, threads=threads, s3=s3)
        self._numbers = itertools.count()
        self.spent = False
        """Whether an error of a question left a DuckDB that answers nothing any more (its FATAL and INTERNAL errors do)."""

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def query(self, sql: str, tables: Mapping[str, TableAt], absent: Collection[str] = ()) -> pa.Table:
        """The whole answer. ``tables`` maps ``schema.name`` to where and at which snapshot; see ``read`` for names and errors."""
        with self.read(sql, tables, absent=absent) as reader:
            return reader.read_all()

    @contextmanager
    def read(
        self, sql: str, tables: Mapping[str, TableAt], *, absent: Collection[str] = (), rows: int = 65_536
    ) -> Iterator[pa.RecordBatchReader]:
        """The answer in batches of about ``rows``, for as long as the block lasts.

        One statement that reads. A table is named as in PostgreSQL: ``schema.table``, or ``table`` alone when it is in ``public`` or
        in one schema only; ``absent`` are tables there are, but not here: their names mean no other. UUIDs come as text, hugeint as
        decimal(38,0), timestamptz as timestamp[us, UTC].
        Raises ProjectError (SQL_...), Corrupt (LAKE_FILE_UNREADABLE), Refused (QUERY_OUT_OF_MEMORY).
        """
        cursor = self._connection.cursor()
        catalog = f"_lake{next(self._numbers)}"
        try:
            # It would be drawn on stdout, among the answers; a cursor has a setting of its own.
            cursor.execute("PRAGMA disable_progress_bar")
            _open(cursor, catalog, sql, tables, absent)
            with _explained(tables):
                reader = cursor.execute(sql).to_arrow_reader(rows)
            yield _in_utc(reader, tables)
        finally:
            # The answer may have been left half read; closing the cursor ends it, and only then can its catalog go.
            cursor.close()
            try:
                with self._connection.cursor() as last:
                    last.execute(f"DETACH DATABASE IF EXISTS {catalog}")
            except duckdb.Error:
                # What the question met is the error to tell.
                self.spent = True


def _open(cursor: duckdb.DuckDBPyConnection, catalog: str, sql: str, tables: Mapping[str, TableAt], absent: Collection[str]) -> None:
    """Make the cursor's own catalog with a view for each table the SQL may mean."""
    with _explained(tables):
        statements = cursor.extract_statements(sql)
        kinds = [statement.type for statement in statements]
        if kinds == [duckdb.StatementType.EXPLAIN]:
            kinds = [_explained_kind(cursor, sql)]
    if kinds != [duckdb.StatementType.SELECT]:
        raise ProjectError(
            "SQL_NOT_A_QUERY",
            "a query is one statement that reads",
            f"this is {kinds[0].name}" if len(kinds) == 1 else f"this is {len(kinds)} statements",
            "write one SELECT, WITH, FROM, DESCRIBE or EXPLAIN; the lake's tables change only as their source does",
        )
    wanted = named(sql, tables)
    namesakes = Counter(_split(table)[1].casefold() for table in (*tables, *absent))
    twins = {table.casefold() for table in absent}
    cursor.execute(f"ATTACH ':memory:' AS {catalog}")
    for namespace in sorted({"public", _UNQUALIFIED, *(_split(table)[0] for table in wanted)}):
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {catalog}.{_quoted(namespace)}")
    for table in wanted:
        namespace, name = _split(table)
        if table.casefold() in twins:
            raise _twins(table)
        view = f"{catalog}.{_quoted(namespace)}.{_quoted(name)}"
        try:
            cursor.execute(f"CREATE VIEW {view} AS SELECT * FROM {iceberg_scan(tables[table])}")
        except duckdb.CatalogException as error:
            raise _twins(table) from error
        except duckdb.Error as error:
            raise unreadable(str(error)) from error
        if namesakes[name.casefold()] == 1:
            cursor.execute(f"CREATE VIEW {catalog}.{_UNQUALIFIED}.{_quoted(name)} AS SELECT * FROM {view}")
    cursor.execute(f"SET search_path='{catalog}.public,{catalog}.{_UNQUALIFIED}'")


def _twins(table: str) -> ProjectError:
    return ProjectError(
        "SQL_AMBIGUOUS_TABLE",
        f"{table} differs from another table only in upper and lower case",
        "DuckDB's names do not tell case apart",
        "ask with an engine that does, or rename one of them",
    )


def _explained_kind(cursor: duckdb.DuckDBPyConnection, sql: str) -> duckdb.StatementType:
    """What an EXPLAIN is of: EXPLAIN ANALYZE executes that, and of a COPY even EXPLAIN alone opens the file it writes to."""
    text = sql.encode()
    # Behind EXPLAIN come ANALYZE or options in brackets, or not; the first place from which the rest is a statement is its beginning.
    for at, _ in duckdb.tokenize(sql)[1:]:
        try:
            statements = cursor.extract_statements(text[at:].decode())
        except duckdb.Error:
            continue
        return statements[0].type if len(statements) == 1 else duckdb.StatementType.MULTI
    return duckdb.StatementType.INVALID


def _in_utc(reader: pa.RecordBatchReader, tables: Mapping[str, TableAt]) -> pa.RecordBatchReader:
    """The same batches; DuckDB's zone 'Etc/UTC' becomes 'UTC', which every reader knows without a zone database."""
    fields = [
        field.with_type(pa.timestamp(field.type.unit, "UTC")) if pa.types.is_timestamp(field.type) and field.type.tz else field
        for field in reader.schema
    ]
    schema = pa.schema(fields)

    def batches() -> Iterator[pa.RecordBatch]:
        while True:
            with _explained(tables):
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            yield batch.cast(schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


@contextmanager
def _explained(tables: Mapping[str, TableAt]) -> Iterator[None]:
    """Turn DuckDB's errors into ours. Batches come through Arrow's C stream, where they arrive as OSError with the same text."""
    try:
        yield
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        raise _explain(str(error), tables) from error
    except RuntimeError as error:
        if "interrupt" in str(error).lower():
            raise KeyboardInterrupt from error
        raise


def _explain(message: str, tables: Mapping[str, TableAt]) -> IcelakeError:
    kind = message.partition(":")[0]
    text = message.partition(":")[2].strip() or message
    if kind == "INTERRUPT Error":
        raise KeyboardInterrupt
    if kind in ("IO Error", "HTTP Error"):
        return unreadable(text)
    if kind == "Out of Memory Error":
        return Refused(
            "QUERY_OUT_OF_MEMORY",
            "the query needs more memory than it may have",
            text.partition("\n")[0],
            "ask for less at once (fewer columns, a filter, a LIMIT), or allow more: [query] memory_limit",
        )
    if kind == "Permission Error":
        return ProjectError(
            "SQL_NOT_ALLOWED",
            "the query reaches outside the lake",
            text.partition("\n")[0],
            "a query reads the lake's tables only",
        )
    missing = _MISSING.search(text)
    if missing:
        name = missing[1]
        names = {table: table for table in tables} | {_split(table)[1]: table for table in tables}
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        same = [table for table in tables if _split(table)[1].casefold() == name.casefold()]
        if len(same) > 1:
            return ProjectError(
                "SQL_AMBIGUOUS_TABLE",
                f"there is more than one table {name}",
                "it is in " + ", ".join(sorted(same)),
                "write its schema: schema.table",
            )
        suggestions = same or list(dict.fromkeys(names[match] for match in near))
        return ProjectError(
            "SQL_UNKNOWN_TABLE",
            f"the lake has no table {name}",
            f"it has {len(tables)}" + (f"; near: {', '.join(suggestions)}" if suggestions else ""),
            "icelake tables shows them all",
        )
    return ProjectError("SQL_ERROR", "DuckDB refuses the query", text, "see https://duckdb.org/docs/stable/sql/introduction")


def unreadable(text: str) -> IcelakeError:
    """What it means that DuckDB could not read the lake, by the text of its IO or HTTP error."""
    brief = text.partition("\n")[0]
    status = _HTTP_STATUS.search(text)
    if status is not None and status[1] in ("401", "403"):
        reason = next((line for line in text.splitlines()[1:] if line.strip()), brief)
        return Refused(
            "STORAGE_DENIED", "S3 does not let a query read the lake", reason, "check the keys in [lake.s3] and the bucket's policy"
        )
    if (status is None and _NO_ANSWER.search(text)) or (status is not None and (status[1] in ("408", "429") or status[1] >= "500")):
        return Unreachable(
            "STORAGE_UNREACHABLE",
            "a query cannot reach the lake on S3",
            brief,
            "try again; if it stays, look at the S3 server and the network",
        )
    return Corrupt(
        "LAKE_FILE_UNREADABLE",
        "a file of the lake cannot be read",
        brief,
        "if it is gone or damaged, restore it from a backup; an answer that takes more than ten minutes may also lose its files to upkeep",
    )


def _split(table: str) -> tuple[str, str]:
    namespace, _, name = table.partition(".")
    return namespace, name


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
