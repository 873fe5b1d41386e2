"""icelake.toml -> Project.

Promises: whatever is wrong is said with file, line, key and the valid choices, before anything is opened or written; what is not
built yet is refused by name, never ignored. Never resolves a secret. Fails with ProjectError PROJECT_... only.
"""

import difflib
import re
import tomllib
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from icelake.errors import ProjectError
from icelake.model.layout import Layout, PartitionField, SortField
from icelake.model.location import canonical, is_s3
from icelake.model.relation import Choice
from icelake.model.types import Primitive
from icelake.model.types import parse as parse_type
from icelake.project.lines import key_lines, line_of
from icelake.project.project import (
    READS_V3,
    CatalogSettings,
    CommitSettings,
    OutOfRange,
    Project,
    QuerySettings,
    Reader,
    RetentionSettings,
    S3Settings,
    SourceSettings,
    TableSettings,
    Thinning,
)
from icelake.project.secret import Secret

FILE = "icelake.toml"
PROFILES = ("embedded", "stack", "external")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MOST_GRACE = 3600
"""Seconds: there is a list for every upkeep in it, and each is named in what every commit writes."""
_DURATION = re.compile(r"(\d{1,9})\s*([smhd])")


def _duration(text: str) -> str:
    if _DURATION.fullmatch(text) is None:
        raise ValueError("expected a whole number and a unit: s, m, h or d, as in 10m")
    return text


def _pattern(text: str) -> str:
    schema, dot, name = text.partition(".")
    if not dot or not schema or not name or "*" in schema or ("*" in name and name != "*"):
        raise ValueError("expected schema.table or schema.*")
    return text


def _memory(text: str) -> str:
    if re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]i?B)", text) is None:
        raise ValueError("expected a number and a unit, as in 512MB")
    return text


def _column_type(text: str) -> str:
    try:
        kind = parse_type(text)
    except ValueError:
        kind = Primitive("")
    if kind != Primitive("string") and not (isinstance(kind, Primitive) and kind.decimal):
        raise ValueError("expected string, or a decimal of at most 38 digits, as in decimal(20,4)")
    return str(kind)


def _folder(text: str) -> str:
    if "://" in text:
        raise ValueError(
            'the catalog and the indexes stay in a local folder; the tables may be elsewhere: warehouse = "s3://bucket/prefix"'
        )
    return text


def _partition(text: str) -> str:
    PartitionField.parse(text)
    return text


def _sort(text: str) -> str:
    SortField.parse(text)
    return text


def _warehouse(text: str) -> str:
    bucket, _, prefix = canonical(text).removeprefix("s3://").partition("/")
    if not is_s3(text) or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{1,61}[A-Za-z0-9]", bucket) is None:
        raise ValueError("expected s3://bucket/prefix")
    if re.fullmatch(r"[A-Za-z0-9!_.'()=+@-]+(/[A-Za-z0-9!_.'()=+@-]+)*", prefix) is None or {"", ".", ".."} & set(prefix.split("/")):
        raise ValueError("expected a prefix in the bucket, of letters, digits and plain signs: s3://bucket/prefix")
    return canonical(text)


def _endpoint(text: str) -> str:
    if re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-fA-F:]+\](:\d{1,5})?", text.rstrip("/")) is None:
        raise ValueError("expected a URL of host and port only, as in https://s3.example.org or http://127.0.0.1:8333")
    return text.rstrip("/")


Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Duration = Annotated[str, AfterValidator(_duration)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Project(_Part):
    name: Name
    profile: Literal["embedded", "stack", "external"] = "embedded"


class _Reference(_Part):
    env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    file: Annotated[str, StringConstraints(min_length=1)] | None = None


class _S3(_Part):
    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = "us-east-1"
    access_key: _Reference
    secret_key: _Reference
    session_token: _Reference | None = None
    path_style: bool | None = None


class _Lake(_Part):
    folder: Annotated[str, StringConstraints(min_length=1), AfterValidator(_folder)] = "lake"
    warehouse: Annotated[str, AfterValidator(_warehouse)] | None = None
    s3: _S3 | None = None


class _Catalog(_Part):
    database: _Reference | None = None
    guard: Literal["refuse", "warn"] = "refuse"


class _Source(_Part):
    dsn: str | _Reference
    tables: Annotated[list[Pattern], Field(min_length=1)]
    exclude: list[Pattern] = []


class _Column(_Part):
    type: Annotated[str, AfterValidator(_column_type)] | None = None
    out_of_range: OutOfRange | None = None


class _Table(_Part):
    readers: Annotated[list[Reader], Field(min_length=1)] = ["duckdb"]
    out_of_range: OutOfRange = "error"
    columns: dict[str, _Column] = {}
    append_only: bool = False
    history: bool = False
    partition: list[Annotated[str, AfterValidator(_partition)]] = []
    sort: list[Annotated[str, AfterValidator(_sort)]] = []
    format: Literal[2, 3] | None = None


class _Commit(_Part):
    interval_ms: Annotated[int, Field(ge=50, le=3_600_000)] = 1000
    batch_mb: Annotated[int, Field(ge=1, le=65_536)] = 256


class _Retention(_Part):
    keep_all: Duration = "1m"
    thin: list[Annotated[list[Duration], Field(min_length=2, max_length=2)]] = [["10s", "10m"], ["5m", "1h"], ["1h", "1d"], ["1d", "30d"]]
    grace: Duration = "10m"


class _Query(_Part):
    memory_limit: Annotated[str, AfterValidator(_memory)] = "512MB"


class _File(_Part):
    project: _Project
    lake: _Lake = _Lake()
    catalog: _Catalog = _Catalog()
    sources: Annotated[dict[Name, _Source], Field(min_length=1)]
    tables: dict[Pattern, _Table] = {}
    commit: _Commit = _Commit()
    retention: _Retention = _Retention()
    query: _Query = _Query()


class _Writing:
    """The file as written: makes the error that points into it."""

    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        self.lines = key_lines(text)

    def error(self, code: str, path: tuple[str, ...], what: str, why: str = "", fix: str = "") -> ProjectError:
        line = line_of(self.lines, path)
        where = f"{self.file}:{line}" if line is not None else str(self.file)
        return ProjectError(code, f"{where}: {_dotted(path)}: {what}" if path else f"{where}: {what}", why, fix)


def load_project(path: Path, profile: str | None = None) -> Project:
    """The project of a folder, or of an icelake.toml. ``profile`` overrides the file's. Raises ProjectError."""
    file = path / FILE if path.is_dir() else path
    try:
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ProjectError("PROJECT_NOT_FOUND", f"there is no project file {file}", "", "make one with: icelake init") from error
    except OSError as error:
        raise ProjectError("PROJECT_NOT_READABLE", f"{file} cannot be read", error.strerror or "", "look at its permissions") from error
    except UnicodeDecodeError as error:
        raise ProjectError("PROJECT_SYNTAX", f"{file} is not UTF-8 text", f"byte {error.start}", "save it as UTF-8") from error
    text = text.replace("\r\n", "\n")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"{file}:{line[1]}" if line else f"{file}:{max(1, len(text.splitlines()))}"
        raise ProjectError("PROJECT_SYNTAX", f"{where}: this is not TOML", str(error), "see https://toml.io/en/v1.0.0") from error
    writing = _Writing(file, text)
    try:
        checked = _File.model_validate(content)
    except ValidationError as error:
        raise _explain(writing, content, error) from error
    return _project(writing, checked, profile)


def _project(writing: _Writing, checked: _File, profile: str | None) -> Project:
    chosen = profile or checked.project.profile
    if chosen not in PROFILES:
        raise ProjectError(
            "PROJECT_UNKNOWN_PROFILE", f"there is no profile {chosen!r}", _near(chosen, PROFILES), f"choose of: {', '.join(PROFILES)}"
        )
    if chosen != "embedded":
        raise writing.error(
            "PROJECT_PROFILE_NOT_BUILT",
            ("project", "profile"),
            f"the profile {chosen} is not in this version",
            "it is where the same project will run on services",
            'use profile = "embedded"',
        )
    root = writing.file.absolute().parent
    sources = {name: _source(writing, root, name, source) for name, source in checked.sources.items()}
    for table in checked.tables:
        if not any(_wants(source, table) for source in sources.values()):
            patterns = ", ".join(pattern for source in sources.values() for pattern in source.tables)
            raise writing.error(
                "PROJECT_TABLE_NOT_MIRRORED",
                ("tables", table),
                "no source mirrors this table",
                f"the sources' tables are: {patterns}",
                "add it there",
            )
        if checked.tables[table].append_only and table.endswith(".*"):
            raise writing.error(
                "PROJECT_BAD_VALUE",
                ("tables", table, "append_only"),
                "is for one table",
                "updates and deletes of such a table do not reach its mirror: that is to be said of each by name",
                'write [tables."schema.name"]',
            )
    lake = (root / checked.lake.folder).absolute()
    return Project(
        file=writing.file.absolute(),
        name=checked.project.name,
        profile=chosen,
        lake=lake,
        warehouse=checked.lake.warehouse or str(lake / "warehouse"),
        s3=_s3(writing, root, checked.lake),
        catalog=CatalogSettings(
            _secret(writing, root, ("catalog", "database"), checked.catalog.database) if checked.catalog.database is not None else None,
            checked.catalog.guard,
        ),
        sources=sources,
        tables={name: _table(writing, name, table) for name, table in checked.tables.items()},
        commit=CommitSettings(checked.commit.interval_ms, checked.commit.batch_mb),
        retention=_retention(writing, checked.retention),
        query=QuerySettings(checked.query.memory_limit),
    )


def _source(writing: _Writing, root: Path, name: str, source: _Source) -> SourceSettings:
    place = ("sources", name, "dsn")
    if isinstance(source.dsn, str):
        if not source.dsn.strip():
            raise writing.error("PROJECT_BAD_VALUE", place, "is empty", "", 'write a DSN, { env = "NAME" } or { file = "path" }')
        secret = Secret("text", source.dsn)
    else:
        secret = _secret(writing, root, place, source.dsn)
    return SourceSettings(name, secret, tuple(source.tables), tuple(source.exclude))


def _table(writing: _Writing, name: str, table: _Table) -> TableSettings:
    only_v2 = [reader for reader in table.readers if reader not in READS_V3]
    if only_v2 and table.format == 3:
        raise writing.error(
            "PROJECT_BAD_VALUE",
            ("tables", name, "format"),
            f"version 3 is not for {', '.join(only_v2)}",
            f"a reader of the table was not seen to read it; these were: {', '.join(sorted(READS_V3))}",
            "leave format out, or take the engine out of readers",
        )
    columns = {column: Choice(chosen.type, chosen.out_of_range) for column, chosen in table.columns.items()}
    layout = Layout(
        tuple(map(PartitionField.parse, table.partition)),
        tuple(map(SortField.parse, table.sort)),
        table.format or (2 if only_v2 else 3),
    )
    return TableSettings(tuple(table.readers), table.out_of_range, columns, layout, table.append_only, table.history)


def _secret(writing: _Writing, root: Path, place: tuple[str, ...], reference: _Reference) -> Secret:
    if reference.env is not None and reference.file is None:
        return Secret("env", reference.env)
    if reference.file is not None and reference.env is None:
        return Secret("file", str(root / reference.file))
    raise writing.error("PROJECT_BAD_VALUE", place, "a secret has one place", "", 'write either { env = "NAME" } or { file = "path" }')


def _s3(writing: _Writing, root: Path, lake: _Lake) -> S3Settings | None:
    s3 = lake.s3
    if lake.warehouse is None and s3 is not None:
        raise writing.error(
            "PROJECT_MISSING_KEY", ("lake", "s3"), "there is no warehouse on S3", "", 'add warehouse = "s3://bucket/prefix" to [lake]'
        )
    if lake.warehouse is not None and s3 is None:
        raise writing.error("PROJECT_MISSING_KEY", ("lake", "warehouse"), "how to reach S3 is missing", "", _EXAMPLES["s3"])
    if s3 is None:
        return None
    place = ("lake", "s3")
    return S3Settings(
        endpoint=s3.endpoint,
        region=s3.region,
        access_key=_secret(writing, root, (*place, "access_key"), s3.access_key),
        secret_key=_secret(writing, root, (*place, "secret_key"), s3.secret_key),
        session_token=_secret(writing, root, (*place, "session_token"), s3.session_token) if s3.session_token is not None else None,
        # Amazon's own buckets have hosts; servers at an endpoint seldom have names for theirs.
        path_style=s3.path_style if s3.path_style is not None else s3.endpoint is not None,
    )


def _wants(source: SourceSettings, table: str) -> bool:
    return any(fnmatchcase(table, pattern) for pattern in source.tables) and not any(fnmatchcase(table, p) for p in source.exclude)


def _retention(writing: _Writing, retention: _Retention) -> RetentionSettings:
    thin = tuple(Thinning(_seconds(every), _seconds(until)) for every, until in retention.thin)
    ages = [_seconds(retention.keep_all), *(step.until for step in thin)]
    steps = [step.every for step in thin]
    if any(later <= earlier for earlier, later in [*pairwise(ages), *pairwise(steps)]):
        why = "each pair is [one snapshot per, up to this age]"
        raise writing.error("PROJECT_BAD_VALUE", ("retention", "thin"), "ages and steps must grow", why, "order the pairs by age")
    if any(step <= 0 for step in steps) or any(later % earlier for earlier, later in pairwise(steps)):
        why = "only then is what a later step keeps still there"
        raise writing.error("PROJECT_BAD_VALUE", ("retention", "thin"), "every step must divide the next", why, "as in 10s, 1m, 1h, 1d")
    grace = _seconds(retention.grace)
    if grace > _MOST_GRACE:
        why = "what is to be deleted is listed in the control table, whose metadata every commit writes"
        raise writing.error("PROJECT_BAD_VALUE", ("retention", "grace"), "is more than an hour", why, "keep the snapshots for longer: thin")
    return RetentionSettings(ages[0], thin, grace)


def _seconds(text: str) -> int:
    match = _DURATION.fullmatch(text)
    assert match is not None
    return int(match[1]) * _UNITS[match[2]]


def _explain(writing: _Writing, content: dict[str, Any], error: ValidationError) -> ProjectError:
    """The first thing wrong, by line; how many more there are is said."""

    def rank(problem: Any) -> tuple[bool, int]:
        # A key that is missing is often one that is misspelt: the misspelling is what to say.
        return problem["type"] == "missing", line_of(writing.lines, _where(problem["loc"])) or 0

    # A union (a DSN is text or a table) tells of each of its arms; the arm that has the shape that was written is the one to name.
    problems = [p for p in error.errors(include_url=False) if not _other_arm(p["loc"], content)]
    first = min(problems or error.errors(include_url=False), key=rank)
    more = len({_where(p["loc"]) for p in problems}) - 1
    path = _where(first["loc"])
    fix = ""
    if first["type"] == "extra_forbidden":
        known = _keys(path[:-1])
        code, what = "PROJECT_UNKNOWN_KEY", "there is no such key"
        why, fix = _near(path[-1], known), f"valid here: {', '.join(known)}"
    elif first["type"] == "missing":
        code, what, why = "PROJECT_MISSING_KEY", "is missing", ""
        fix = _EXAMPLES.get(path[-1], "add it")
    else:
        code, what, why = "PROJECT_BAD_VALUE", first["msg"].removeprefix("Value error, "), ""
        if first["type"] == "literal_error":
            expected = [word.strip("'") for word in re.split(r",\s*|\s+or\s+", first["ctx"]["expected"])]
            choices = [str(choice) for choice in get_args(Reader)] if "readers" in path else expected
            what = f"{first['input']!r} is not a choice"
            why, fix = _near(str(first["input"]), choices), f"choose of: {', '.join(choices)}"
        elif first["type"] == "string_pattern_mismatch":
            # Of a DSN it may be the DSN itself, put where its name belongs.
            what = "what stands here is not a name" if "dsn" in path else f"{first['input']!r} is not a name"
            fix = "names are lower-case letters, digits, _ and -, and begin with a letter (an environment variable: letters, digits and _)"
        elif first["type"].endswith("_type"):
            wanted = "Input should be a table" if first["type"] == "model_type" else what
            what = f"{wanted}, not {_toml_type(first['input'])}"
            fix = _EXAMPLES.get(path[-1], "")
    if more > 0:
        why = f"{why}; and {more} more" if why else f"and {more} more"
    return writing.error(code, path, what, why, fix)


_EXAMPLES = {
    "project": '[project] with name = "shop"',
    "name": 'name = "shop"',
    "sources": '[sources.shop] with dsn = { env = "SHOP_DSN" } and tables = ["public.*"]',
    "dsn": 'dsn = { env = "SHOP_DSN" }, { file = "path" }, or the DSN itself',
    "tables": 'tables = ["public.*"]',
    "s3": '[lake.s3] with access_key = { env = "LAKE_ACCESS_KEY" }, secret_key = { env = "LAKE_SECRET_KEY" } and endpoint = "https://..."',
    "access_key": 'access_key = { env = "LAKE_ACCESS_KEY" } or { file = "path" }',
    "secret_key": 'secret_key = { env = "LAKE_SECRET_KEY" } or { file = "path" }',
    "session_token": 'session_token = { env = "LAKE_SESSION_TOKEN" } or { file = "path" }',
    "database": 'database = { env = "CATALOG_DSN" } or { file = "path" }',
    "exclude": 'exclude = ["public.audit"]',
    "readers": 'readers = ["duckdb", "spark"]',
    "partition": 'partition = ["day(placed_at)", "bucket(16, customer_id)"]',
    "sort": 'sort = ["customer_id", "placed_at desc"]',
}

_UNION_ARMS = ("str", "_Reference")
_MAPPING_KEY = "[key]"


def _where(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """pydantic's location as keys of the file: without list numbers, union arms and key marks."""
    return tuple(part for part in loc if isinstance(part, str) and part not in _UNION_ARMS and part != _MAPPING_KEY)


def _other_arm(loc: tuple[int | str, ...], content: dict[str, Any]) -> bool:
    value: Any = content
    for part in loc:
        if part in _UNION_ARMS:
            return isinstance(value, dict) != (part == "_Reference")
        if part == _MAPPING_KEY or not isinstance(value, dict | list):
            return False
        try:
            value = value[part]  # type: ignore[index]
        except (KeyError, IndexError):
            return False
    return False


def _keys(path: tuple[str, ...]) -> list[str]:
    """The keys that are valid in the table at ``path``."""
    parts: dict[str, type[BaseModel]] = {
        "project": _Project,
        "lake": _Lake,
        "catalog": _Catalog,
        "sources": _Source,
        "tables": _Table,
        "commit": _Commit,
        "retention": _Retention,
        "query": _Query,
    }
    model: type[BaseModel]
    if not path:
        model = _File
    elif (len(path) == 3 and (path[-1] == "dsn" or path[:2] == ("lake", "s3"))) or path[:2] == ("catalog", "database"):
        model = _Reference
    elif len(path) == 4 and path[2] == "columns":
        model = _Column
    else:
        model = _S3 if path[:2] == ("lake", "s3") else parts[path[0]]
    return list(model.model_fields)


def _near(word: str, choices: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""


def _toml_type(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"' for part in path)
