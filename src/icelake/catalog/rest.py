"""The catalog over HTTP: the Iceberg REST protocol, answered by a store.

Promises: every answer has the form the REST specification gives it, errors too; what is not known (an update, a requirement, a route)
is refused; a commit over many tables is one transaction of the store. A request is bounded in size and depth before anything is made
of it. Holds no state of its own: several servers may answer from one store.
Source: Iceberg REST catalog specification (open-api/rest-catalog-open-api.yaml, 1.11).
"""

import asyncio
import hashlib
import re
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from icelake.catalog.fresh import fresh
from icelake.catalog.metadata import VERSIONS, bad, bounded, list_of, new_table, object_of, text_of, understood
from icelake.catalog.pace import Pace
from icelake.catalog.past import Past
from icelake.catalog.store import LEVEL, RESERVED, Kind, SqlCatalog, owned
from icelake.errors import AlreadyExists, CommitConflict, CommitUnknown, IcelakeError, ProjectError, Refused, Unreachable
from icelake.model.ident import CONTROL_NAMESPACE
from icelake.model.relation import TableId
from icelake.ports import Json, LoadedTable, TableChange

At = Callable[[str], Mapping[TableId, int]]
"""Of a point in time (a cut, an LSN, a time): the tables there were, each with its snapshot. Raises ProjectError NO_SUCH_POINT."""

LARGEST_CHANGE = 1000
"""Updates, or requirements, of a table in one request."""
_SKEW_MS = 60_000
"""Clocks of writers may be ahead by so much."""
LARGEST_REQUEST = 64 << 20
"""Bytes of a request's body."""
_LARGEST_PAGE = 10_000
_RESERVED = frozenset(
    {
        "format-version",
        "uuid",
        "snapshot-count",
        "current-snapshot-summary",
        "current-snapshot-id",
        "current-snapshot-timestamp-ms",
        "current-schema",
        "default-partition-spec",
        "default-sort-order",
    }
)
"""Properties a client may send that are no properties (reference implementation, TableProperties)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    names: Mapping[str, str]
    """What stands in the path, decoded."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any

    @property
    def namespace(self) -> str:
        return _namespace(self.names["namespace"].split(LEVEL))

    @property
    def json(self) -> Json:
        if not isinstance(self.body, dict):
            raise bad("the request", "its body is not a JSON object")
        return self.body

    def ident(self, what: str) -> TableId:
        return TableId(self.namespace, self.names[what])


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back; ``body`` None: nothing but the status."""

    status: int = 200
    body: Json | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    raced: Sequence[str] = ()
    """Tables for which it was a race: won, or with status 409 lost (``catalog.pace``)."""


def app(store: SqlCatalog, hosts: Collection[str], at: At) -> ASGIApp:
    """The ASGI application.

    ``hosts``: the names it is asked by; a web page that has its own name lead here asks by that. ``at``: see ``At``.
    """
    api, pace = _Api(store, at), Pace()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        found = await _answered(api, request, hosts)
        if found.raced and found.status == 409:
            await asyncio.sleep(max(map(pace.wait, found.raced)))
        elif found.raced:
            for table in found.raced:
                pace.committed(table)
        headers = {"cache-control": "no-store", **found.headers}
        body = b"" if found.body is None or request.method == "HEAD" else orjson.dumps(found.body)
        await Response(body, found.status, headers, "application/json" if body else None)(scope, receive, send)

    return answer


async def _answered(api: "_Api", request: Request, hosts: Collection[str]) -> Answer:
    try:
        try:
            host, path = request.url.hostname, _path(request)
            if host not in hosts:
                return _error(421, "BadRequestException", f"this is not the catalog of {host}")
            past, handler, names = _route(request.method, path)
            if request.headers.get("content-encoding", "identity").lower() != "identity":
                return _error(415, "BadRequestException", "request bodies are taken as they are, not compressed")
            data = await _body(request)
            # No other kind: a web page may send those to whom it likes.
            if data and request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return _error(415, "BadRequestException", "the body's content-type is not application/json")
            query = {key: values[-1] for key, values in parse_qs(request.url.query, keep_blank_values=True).items()}
            body = orjson.loads(data) if data else None
            bounded(body)
        except ValueError as error:
            return _error(400, "BadRequestException", f"the request cannot be read: {error}")

        def handled() -> Answer:
            # In a thread: a point in time is looked up in the store, too.
            found: Answer = getattr(api.past(past) if past else api, handler)(Call(names, query, request.headers, body))
            return found

        return await run_in_threadpool(handled)
    except _NoRoute as error:
        return _error(error.status, "BadRequestException" if error.status == 405 else "NotFoundException", str(error))
    except _TooLarge:
        return _error(413, "BadRequestException", f"a request has {LARGEST_REQUEST:,} bytes at most")
    except IcelakeError as error:
        return _refusal(error)
    except Exception:  # noqa: BLE001 - the last door of a request: the server goes on
        traceback.print_exc()
        return _error(500, "InternalServerError", "this is a bug in icelake; the server's log has it")


def _path(request: Request) -> str:
    # Starlette's path is decoded: a name with a slash in it would be two.
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return raw.decode("ascii", "replace").partition("?")[0]


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > LARGEST_REQUEST:
            raise _TooLarge
    return bytes(data)


class _TooLarge(Exception):
    pass


class _NoRoute(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


# ---------------------------------------------------------------------------------------------------------------- errors

_TYPES = {
    "NO_SUCH_TABLE": (404, "NoSuchTableException"),
    "NO_SUCH_VIEW": (404, "NoSuchViewException"),
    "NO_SUCH_NAMESPACE": (404, "NoSuchNamespaceException"),
    "NAMESPACE_NOT_EMPTY": (409, "NamespaceNotEmptyException"),
    "COMMIT_BREAKS_TABLE": (400, "BadRequestException"),
    "DISK_FULL": (507, "ServiceFailureException"),
    "FILE_MISSING": (404, "NotFoundException"),
    "NO_SUCH_POINT": (404, "NotFoundException"),
    "READ_ONLY": (403, "ForbiddenException"),
    "PROTECTED": (403, "ForbiddenException"),
}


def _refusal(error: IcelakeError) -> Answer:
    said = f"{error.what}: {error.why}" if error.why else error.what
    # Clients compare messages with the reference's; for people there is more.
    more = [f"icelake: {error.code}", *([f"next: {error.fix}"] if error.fix else [])]
    if error.code in _TYPES:
        return _error(*_TYPES[error.code], said, more)
    match error:
        case AlreadyExists():
            return _error(409, "AlreadyExistsException", said, more)
        case CommitConflict():
            return _error(409, "CommitFailedException", said, more)
        case CommitUnknown():
            return _error(504, "CommitStateUnknownException", said, more)
        case ProjectError():
            # The reference tells a view that cannot be from a request that is none.
            return _error(400, "IllegalArgumentException" if error.code == "VIEW_IMPOSSIBLE" else "BadRequestException", said, more)
        case Unreachable():
            return _error(503, "ServiceUnavailableException", said, more)
    # Nothing was done. 500 would say that nobody knows.
    return _error(422, "UnprocessableEntityException", said, more)


def _error(status: int, kind: str, message: str, more: Sequence[str] = ()) -> Answer:
    return Answer(status, {"error": {"message": message, "type": kind, "code": status, "stack": list(more)}})


# --------------------------------------------------------------------------------------------------------------- routing


@dataclass(frozen=True, slots=True)
class _Way:
    method: str
    path: str
    """As in the specification, without ``/v1/{prefix}/``."""
    handler: str
    advertised: bool = True


_WAYS = (
    _Way("GET", "config", "config", advertised=False),
    _Way("GET", "namespaces", "list_namespaces"),
    _Way("POST", "namespaces", "create_namespace"),
    _Way("GET", "namespaces/{namespace}", "load_namespace"),
    _Way("HEAD", "namespaces/{namespace}", "namespace_exists"),
    _Way("DELETE", "namespaces/{namespace}", "drop_namespace"),
    _Way("POST", "namespaces/{namespace}/properties", "update_namespace"),
    _Way("GET", "namespaces/{namespace}/tables", "list_tables"),
    _Way("POST", "namespaces/{namespace}/tables", "create_table"),
    _Way("POST", "namespaces/{namespace}/register", "register_table"),
    _Way("GET", "namespaces/{namespace}/tables/{table}", "load_table"),
    _Way("HEAD", "namespaces/{namespace}/tables/{table}", "table_exists"),
    _Way("POST", "namespaces/{namespace}/tables/{table}", "update_table"),
    _Way("DELETE", "namespaces/{namespace}/tables/{table}", "drop_table"),
    _Way("POST", "namespaces/{namespace}/tables/{table}/metrics", "report_metrics"),
    _Way("POST", "tables/rename", "rename_table"),
    _Way("POST", "transactions/commit", "commit_transaction"),
    _Way("GET", "namespaces/{namespace}/views", "list_views"),
    _Way("POST", "namespaces/{namespace}/views", "create_view"),
    _Way("GET", "namespaces/{namespace}/views/{view}", "load_view"),
    _Way("HEAD", "namespaces/{namespace}/views/{view}", "view_exists"),
    _Way("POST", "namespaces/{namespace}/views/{view}", "replace_view"),
    _Way("DELETE", "namespaces/{namespace}/views/{view}", "drop_view"),
    _Way("POST", "views/rename", "rename_view"),
    _Way("POST", "namespaces/{namespace}/register-view", "register_view"),
)
_PAST = "lake@"
"""Before a point in time, in the name of a warehouse and as what stands before every path then."""
_ENDPOINTS = [f"{way.method} /v1/{{prefix}}/{way.path}" for way in _WAYS if way.advertised]
_PATTERNS = [
    (way, [None if part.startswith("{") else part for part in way.path.split("/")], re.findall(r"{(\w+)}", way.path)) for way in _WAYS
]


def _route(method: str, path: str) -> tuple[str, str, dict[str, str]]:
    """The warehouse of a point in time ('': now), the handler's name, and the names in the path.

    Each part is decoded by itself, so a name may have a slash in it.
    """
    version, *parts = path.strip("/").split("/")
    if version != "v1":
        raise _NoRoute(404, f"there is nothing at {path}; the catalog is at /v1")
    past = ""
    if parts and unquote(parts[0]).startswith(_PAST):
        # Some clients encode what they were told to put there, others do not. No point in time has a % in it.
        past, parts = unquote(unquote(parts[0])), parts[1:]
    there = False
    for way, pattern, names in _PATTERNS:
        if len(pattern) != len(parts) or any(known not in (None, part) for known, part in zip(pattern, parts, strict=True)):
            continue
        there = True
        if way.method == method:
            values = [unquote(part) for known, part in zip(pattern, parts, strict=True) if known is None]
            return past, way.handler, dict(zip(names, values, strict=True))
    if there:
        raise _NoRoute(405, f"{method} is not done at {path}")
    raise _NoRoute(404, f"there is nothing at {path}")


# ------------------------------------------------------------------------------------------------------------- handlers


class _Api:
    """One method a route of the specification, by its operation's name."""

    def __init__(self, store: SqlCatalog | Past, at: At) -> None:
        self._store = store
        self._at = at

    def past(self, warehouse: str) -> "_Api":
        """The same of a point in time."""
        if not isinstance(self._store, SqlCatalog):
            raise bad("config", "a point in time has no points in time of its own")
        point = warehouse.removeprefix(_PAST)
        return _Api(Past(self._store, self._at(point.removeprefix("cut:")), point), self._at)

    def config(self, call: Call) -> Answer:
        warehouse = call.query.get("warehouse", "")
        if not warehouse.startswith(_PAST) and ("@" in warehouse or warehouse.startswith("cut:")):
            fix = "a point in time is lake@cut:N, lake@LSN or lake@TIME"
            raise ProjectError("NO_SUCH_POINT", f"there is no warehouse {warehouse}", "", fix)
        if not warehouse.startswith(_PAST):
            return Answer(body={"defaults": {}, "overrides": {}, "endpoints": _ENDPOINTS})
        self.past(warehouse)
        reading = [endpoint for endpoint in _ENDPOINTS if endpoint.startswith(("GET ", "HEAD "))]
        return Answer(body={"defaults": {}, "overrides": {"prefix": quote(warehouse, safe="@:+")}, "endpoints": reading})

    # ------------------------------------------------------------------------------------------------- namespaces

    def list_namespaces(self, call: Call) -> Answer:
        parent = call.query.get("parent", "")
        names = self._store.namespaces(parent)
        page, token = _page(names, call.query)
        return Answer(body={"namespaces": [name.split(LEVEL) for name in page], "next-page-token": token})

    def create_namespace(self, call: Call) -> Answer:
        levels = list_of(call.json, "namespace", "create namespace")
        properties = _strings(call.json, "properties")
        self._store.create_namespace(_namespace(levels), properties)
        return Answer(body={"namespace": levels, "properties": properties})

    def load_namespace(self, call: Call) -> Answer:
        return Answer(body={"namespace": call.namespace.split(LEVEL), "properties": self._store.namespace(call.namespace)})

    def namespace_exists(self, call: Call) -> Answer:
        self._store.namespace(call.namespace)
        return Answer(204)

    def drop_namespace(self, call: Call) -> Answer:
        self._store.drop_namespace(call.namespace)
        return Answer(204)

    def update_namespace(self, call: Call) -> Answer:
        updates, removals = _strings(call.json, "updates"), call.json.get("removals") or []
        if not isinstance(removals, list) or not all(isinstance(key, str) for key in removals):
            raise bad("update namespace", "removals is not a list of names")
        both = sorted(updates.keys() & set(removals))
        if both:
            return _error(422, "UnprocessableEntityException", f"{', '.join(both)}: set and removed in one request")
        removed, missing = self._store.set_namespace(call.namespace, updates, list(dict.fromkeys(removals)))
        return Answer(body={"updated": sorted(updates), "removed": removed, "missing": missing})

    # ----------------------------------------------------------------------------------------------------- tables

    def list_tables(self, call: Call) -> Answer:
        return self._names(call, "table")

    def create_table(self, call: Call) -> Answer:
        request = call.json
        table = self._open(TableId(call.namespace, _name(request)))
        properties = _strings(request, "properties")
        version = properties.get("format-version", "2")
        if version not in map(str, VERSIONS):
            raise bad("create", f"format-version is {version!r}")
        made = fresh(object_of(request, "schema", "create"), request.get("partition-spec"), request.get("write-order"))
        uuid, place = self._store.address(table)
        with understood():
            new = new_table(
                uuid,
                (request.get("location") or place).rstrip("/"),
                made.schema,
                {key: value for key, value in properties.items() if key not in _RESERVED},
                int(time.time() * 1000),
                partition_spec=made.spec,
                sort_order=made.order,
                format_version=int(version),
            )
        if request.get("stage-create"):
            self._store.free(table)
            return Answer(body={"metadata": new, "config": {}})
        return _loaded(self._store.create_from(table, new))

    def register_table(self, call: Call) -> Answer:
        table = self._open(TableId(call.namespace, _name(call.json)))
        location = text_of(call.json, "metadata-location", "register")
        if not location.endswith(".metadata.json"):
            raise bad("register", f"{location} is no metadata.json")
        if call.json.get("overwrite") and table.name in self._store.names(table.namespace, "table"):
            self._unowned(table)
        return _loaded(self._store.register(table, location, overwrite=bool(call.json.get("overwrite"))))

    def load_table(self, call: Call) -> Answer:
        loaded = self._store.load_whole(call.ident("table"))
        whole = call.query.get("snapshots", "all")
        if whole not in ("all", "refs"):
            raise bad("load table", f"snapshots is {whole!r}, not all or refs")
        tag = _etag(loaded, whole)
        if tag in re.split(r"\s*,\s*", call.headers.get("if-none-match", "")):
            return Answer(304, headers={"etag": tag})
        metadata = loaded.metadata
        if whole == "refs":
            named = {ref["snapshot-id"] for ref in metadata["refs"].values()}
            metadata = {**metadata, "snapshots": [snapshot for snapshot in metadata["snapshots"] if snapshot["snapshot-id"] in named]}
        # The file is of the table as it is now.
        location = {} if isinstance(self._store, Past) else {"metadata-location": loaded.metadata_location}
        return Answer(body={**location, "metadata": metadata, "config": {}}, headers={"etag": tag})

    def table_exists(self, call: Call) -> Answer:
        self._store.load(call.ident("table"))
        return Answer(204)

    def update_table(self, call: Call) -> Answer:
        change = _change(self._open(call.ident("table")), call.json)
        return self._raced([change], lambda loaded: _loaded(loaded[0], config=False))

    def drop_table(self, call: Call) -> Answer:
        table = self._unowned(call.ident("table"))
        if call.query.get("purgeRequested", "false").lower() == "true":
            self._store.purge(table)
        else:
            self._store.drop(table)
        return Answer(204)

    def rename_table(self, call: Call) -> Answer:
        self._store.rename(self._unowned(_identifier(call.json, "source")), self._open(_identifier(call.json, "destination")))
        return Answer(204)

    def report_metrics(self, call: Call) -> Answer:
        self._store.load(call.ident("table"))
        text_of(call.json, "report-type", "report metrics")
        return Answer(204)

    def commit_transaction(self, call: Call) -> Answer:
        changes = list_of(call.json, "table-changes", "commit")
        if not changes:
            raise bad("commit", "there are no table-changes")
        parts = [_change(self._open(_identifier(change, "identifier")), change) for change in changes]
        return self._raced(parts, lambda _: Answer(204))

    # ------------------------------------------------------------------------------------------------------ views

    def list_views(self, call: Call) -> Answer:
        return self._names(call, "view")

    def create_view(self, call: Call) -> Answer:
        request = call.json
        view = self._open(TableId(call.namespace, _name(request)))
        schema, version = object_of(request, "schema", "create view"), object_of(request, "view-version", "create view")
        return _loaded(self._store.create_view(view, schema, version, _strings(request, "properties"), request.get("location")))

    def register_view(self, call: Call) -> Answer:
        view = self._open(TableId(call.namespace, _name(call.json)))
        return _loaded(self._store.register_view(view, text_of(call.json, "metadata-location", "register")))

    def load_view(self, call: Call) -> Answer:
        return _loaded(self._store.load_view(call.ident("view")))

    def view_exists(self, call: Call) -> Answer:
        self._store.load_view(call.ident("view"))
        return Answer(204)

    def replace_view(self, call: Call) -> Answer:
        change = _change(call.ident("view"), call.json)
        return _loaded(self._store.commit_view(change.id, change.requirements, change.updates))

    def drop_view(self, call: Call) -> Answer:
        self._store.drop(call.ident("view"), "view")
        return Answer(204)

    def rename_view(self, call: Call) -> Answer:
        self._store.rename(_identifier(call.json, "source"), self._open(_identifier(call.json, "destination")), "view")
        return Answer(204)

    # ----------------------------------------------------------------------------------------------------- inside

    def _raced(self, changes: Sequence[TableChange], done: Callable[[Sequence[LoadedTable]], Answer]) -> Answer:
        """A commit, with the tables for which it was a race."""
        try:
            answer = done(self._store.commit_foreign(changes))
        except CommitConflict as error:
            answer = _refusal(error)
        return replace(answer, raced=[str(change.id) for change in changes])

    def _open(self, table: TableId) -> TableId:
        """The table, if it is not one that only the lake itself writes."""
        if table.namespace == CONTROL_NAMESPACE:
            raise _protected(table)
        return table

    def _unowned(self, table: TableId) -> TableId:
        """The table, if it is not one that a source is mirrored to, or that the lake keeps for itself."""
        if owned(self._store.load(self._open(table)).metadata):
            raise _protected(table)
        return table

    def _names(self, call: Call, kind: Kind) -> Answer:
        page, token = _page(self._store.names(call.namespace, kind), call.query)
        levels = call.namespace.split(LEVEL)
        return Answer(body={"identifiers": [{"namespace": levels, "name": name} for name in page], "next-page-token": token})


def _protected(table: TableId) -> Refused:
    return Refused(
        "PROTECTED",
        f"{table} is the lake's own",
        "it may hold the only copy of what its source has let go",
        "leave the table out in icelake.toml, then `icelake sync`",
    )


def _loaded(loaded: LoadedTable, *, config: bool = True) -> Answer:
    body = {"metadata-location": loaded.metadata_location, "metadata": loaded.metadata, **({"config": {}} if config else {})}
    return Answer(body=body, headers={"etag": _etag(loaded, "all")})


def _etag(loaded: LoadedTable, what: str) -> str:
    """Changes with every commit, because metadata locations are never reused; and with the snapshot a table is shown at."""
    # The file of a registered table may be written anew by whoever wrote it.
    metadata = loaded.metadata
    of = f"{loaded.metadata_location} {metadata.get('table-uuid')} {metadata.get('last-updated-ms')} {loaded.head} {what}"
    return f'"{hashlib.sha256(of.encode()).hexdigest()[:32]}"'


def _page(names: Sequence[str], query: Mapping[str, str]) -> tuple[Sequence[str], str | None]:
    """The names a client asked for, and where the next page begins; all of them if it asked for no page (REST specification, pageToken)."""
    if "pageToken" not in query and "pageSize" not in query:
        return names, None
    size = query.get("pageSize", str(_LARGEST_PAGE))
    if not size.isdecimal() or len(size) > 9 or int(size) < 1:
        raise bad("list", f"pageSize is {size!r}")
    after = query.get("pageToken", "")
    rest = [name for name in names if name > after] if after else names
    page = rest[: min(int(size), _LARGEST_PAGE)]
    return page, page[-1] if len(page) < len(rest) else None


def _change(ident: TableId, request: Json) -> TableChange:
    requirements, updates = request.get("requirements") or [], request.get("updates") or []
    for things, what in ((requirements, "requirements"), (updates, "updates")):
        if not isinstance(things, list) or not all(isinstance(thing, dict) for thing in things):
            raise bad("commit", f"{what} is not a list of objects")
        if len(things) > LARGEST_CHANGE:
            raise bad("commit", f"there are {len(things):,} {what}, of {LARGEST_CHANGE:,} at most")
    for update in updates:
        said = update.get("updates") or update.get("removals") or ()
        if any(isinstance(key, str) and key.startswith(RESERVED) for key in said):
            raise bad("commit", f"properties that begin with {RESERVED} are the lake's own")
        at = update["snapshot"].get("timestamp-ms", 0) if isinstance(update.get("snapshot"), dict) else 0
        if isinstance(at, int) and at > time.time() * 1000 + _SKEW_MS:
            raise bad("add-snapshot", f"timestamp-ms {at} is in the future: whoever comes next with a clock that is right would be refused")
    return TableChange(ident, requirements, updates)


def _identifier(thing: Any, key: str) -> TableId:
    found = object_of(thing, key, "the request")
    return TableId(_namespace(list_of(found, "namespace", key)), text_of(found, "name", key))


def _namespace(levels: Sequence[Any]) -> str:
    if not levels or not all(isinstance(level, str) and level and LEVEL not in level for level in levels):
        raise bad("namespace", f"{levels!r} is not a list of names")
    return LEVEL.join(levels)


def _name(request: Json) -> str:
    return text_of(request, "name", "the request")


def _strings(request: Json, key: str) -> dict[str, str]:
    found = request.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise bad("the request", f"{key} is not an object of strings")
    if any(name.startswith(RESERVED) for name in found):
        raise bad("the request", f"{key} that begin with {RESERVED} are the lake's own")
    return found
