"""View metadata as pure functions, in the shapes of the Iceberg view spec (format version 1) and the REST specification (ViewUpdate).

Promises: what it was given is never changed; an update or a requirement that is not known is refused. Fails with ``CommitConflict``
(the view has changed) and ``ProjectError`` (the request is wrong in itself).
Source: Iceberg view spec; REST specification, CreateViewRequest, CommitViewRequest.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import orjson

from icelake.catalog.metadata import bad, bounded, check_form, check_schema, conflict, failed, int_of, object_of, text_of
from icelake.errors import ProjectError
from icelake.ports import Json

VERSIONS_KEPT = "version.history.num-entries"
_DEFAULT_VERSIONS_KEPT = 10
_DROP_DIALECT = "replace.drop-dialect.allowed"


def new_view(uuid: str, location: str, schema: Json, version: Json, properties: Mapping[str, str], now_ms: int) -> Json:
    """Metadata of a view of one version."""
    base: Json = {
        "view-uuid": uuid,
        "format-version": 1,
        "location": location,
        "schemas": [],
        "current-version-id": 0,
        "versions": [],
        "version-log": [],
        "properties": dict(properties),
    }
    updates: list[Json] = [
        {"action": "add-schema", "schema": schema},
        {"action": "add-view-version", "view-version": {**version, "schema-id": -1}},
        {"action": "set-current-view-version", "view-version-id": -1},
    ]
    return apply(base, updates, now_ms)


_SHAPE: Final = {
    "view-uuid": str,
    "format-version": int,
    "location": str,
    "schemas": [{"schema-id": int, "fields": [{"id": int, "name": str, "type": (str, dict)}]}],
    "current-version-id": int,
    "versions": [{"version-id": int, "schema-id": int, "representations": [{"type": str}]}],
    "version-log": [{"version-id": int, "timestamp-ms": int}],
}


def registered(data: bytes) -> Json:
    """View metadata from its JSON. Raises ValueError where it has not the form of the spec, or contradicts itself."""
    found = orjson.loads(data)
    bounded(found)
    check_form(found, _SHAPE, "it")
    found.setdefault("properties", {})
    check_form(found["properties"], {...: str}, "properties")
    if all(version["version-id"] != found["current-version-id"] for version in found["versions"]):
        raise ValueError("its current version is none of its versions")
    view: Json = found
    return view


def check(metadata: Json, requirements: Iterable[Json]) -> None:
    """Raise CommitConflict naming the first requirement that does not hold."""
    for requirement in requirements:
        kind = text_of(requirement, "type", "requirement")
        if kind != "assert-view-uuid":
            raise _unknown("CATALOG_UNKNOWN_REQUIREMENT", f"requirement {kind!r} of a view")
        if text_of(requirement, "uuid", kind).lower() != metadata["view-uuid"].lower():
            raise failed(f"view UUID does not match: expected {requirement['uuid']} != {metadata['view-uuid']}")


def apply(metadata: Json, updates: Iterable[Json], now_ms: int) -> Json:
    """The metadata after the updates, in order."""
    new = dict(metadata)
    last_schema = last_version = None
    for update in updates:
        match text_of(update, "action", "update"):
            case "assign-uuid":
                if text_of(update, "uuid", "assign-uuid").lower() != new["view-uuid"].lower():
                    raise conflict("assign-uuid", f"the view is {new['view-uuid']} and stays it")
            case "upgrade-format-version":
                if int_of(update, "format-version", "upgrade-format-version") != 1:
                    raise bad("upgrade-format-version", "views have version 1")
            case "set-location":
                new["location"] = text_of(update, "location", "set-location").rstrip("/")
            case "set-properties":
                values = object_of(update, "updates", "set-properties")
                if not all(isinstance(value, str) for value in values.values()):
                    raise bad("set-properties", "a property's value is not a string")
                new["properties"] = {**new["properties"], **values}
            case "remove-properties":
                gone = set(update.get("removals") or ())
                new["properties"] = {key: value for key, value in new["properties"].items() if key not in gone}
            case "add-schema":
                last_schema = _add_schema(new, object_of(update, "schema", "add-schema"))
            case "add-view-version":
                last_version = _add_version(new, object_of(update, "view-version", "add-view-version"), last_schema)
            case "set-current-view-version":
                ident = int_of(update, "view-version-id", "set-current-view-version")
                _set_current(new, last_version if ident == -1 else ident, now_ms)
            case action:
                raise _unknown("CATALOG_UNKNOWN_UPDATE", f"update {action!r} of a view")
    if new["current-version-id"] != metadata["current-version-id"]:
        _keeps_dialects(metadata, new)
    return _with_few_versions(new)


def _add_schema(new: Json, schema: Json) -> int:
    check_schema(schema)
    same = ("fields", "identifier-field-ids")
    for known in new["schemas"]:
        if all((known.get(part) or []) == (schema.get(part) or []) for part in same):
            return int(known["schema-id"])
    ident = max((known["schema-id"] for known in new["schemas"]), default=-1) + 1
    new["schemas"] = [*new["schemas"], {**schema, "schema-id": ident}]
    return int(ident)


def _add_version(new: Json, version: Json, last_schema: int | None) -> int:
    action = "add-view-version"
    schema = int_of(version, "schema-id", action)
    if schema == -1:
        if last_schema is None:
            raise bad(action, "-1 means the schema added last, and this request added none")
        schema = last_schema
    if all(known["schema-id"] != schema for known in new["schemas"]):
        raise bad(action, f"there is no schema {schema}")
    queries = version.get("representations")
    if not isinstance(queries, list) or not queries:
        raise bad(action, "a version has no representations")
    dialects = [text_of(query, "dialect", action).lower() for query in queries if text_of(query, "type", action) == "sql"]
    if len(set(dialects)) != len(dialects):
        raise _impossible(f"Invalid view version: Cannot add multiple queries for dialect {max(dialects, key=dialects.count)}")
    made = {**version, "schema-id": schema}
    same = ("summary", "representations", "default-catalog", "default-namespace", "schema-id")
    for known in new["versions"]:
        if all(known.get(part) == made.get(part) for part in same):
            return int(known["version-id"])
    ident = max((known["version-id"] for known in new["versions"]), default=0) + 1
    new["versions"] = [*new["versions"], {**made, "version-id": ident}]
    return int(ident)


def _set_current(new: Json, ident: int | None, now_ms: int) -> None:
    action = "set-current-view-version"
    if ident is None:
        raise bad(action, "-1 means the version added last, and this request added none")
    version = next((known for known in new["versions"] if known["version-id"] == ident), None)
    if version is None:
        raise bad(action, f"there is no version {ident}")
    if new["current-version-id"] == ident:
        return
    new["current-version-id"] = ident
    at = max(now_ms, new["version-log"][-1]["timestamp-ms"] if new["version-log"] else 0)
    new["version-log"] = [*new["version-log"], {"timestamp-ms": at, "version-id": ident}]


def _keeps_dialects(before: Json, after: Json) -> None:
    """A version that replaces one may not silently be unreadable for an engine that could read it."""
    if str(after["properties"].get(_DROP_DIALECT, "false")).lower() == "true":
        return
    gone = sorted(_dialects(before) - _dialects(after))
    if gone:
        raise _impossible(f"Cannot replace view due to loss of view dialects ({_DROP_DIALECT}=false): {', '.join(gone)}")


def _dialects(metadata: Json) -> set[str]:
    current = (known for known in metadata["versions"] if known["version-id"] == metadata["current-version-id"])
    return {query["dialect"].lower() for known in current for query in known["representations"] if query.get("type") == "sql"}


def _with_few_versions(new: Json) -> Json:
    """Only the newest versions are kept, and the current one."""
    try:
        keep = int(new["properties"].get(VERSIONS_KEPT, _DEFAULT_VERSIONS_KEPT))
    except ValueError as error:
        raise bad("set-properties", f"{VERSIONS_KEPT} is not a number") from error
    if keep < 1:
        raise bad("set-properties", f"{VERSIONS_KEPT} must be positive but was {keep}")
    if len(new["versions"]) <= keep:
        return new
    others = sorted((known["version-id"] for known in new["versions"] if known["version-id"] != new["current-version-id"]), reverse=True)
    kept = {new["current-version-id"], *others[: keep - 1]}
    versions = [known for known in new["versions"] if known["version-id"] in kept]
    # The log tells what was current from when on, as far back as its versions are there.
    last = max((at for at, entry in enumerate(new["version-log"]) if entry["version-id"] not in kept), default=-1)
    return {**new, "versions": versions, "version-log": new["version-log"][last + 1 :]}


def _impossible(what: str) -> ProjectError:
    return ProjectError("VIEW_IMPOSSIBLE", what, "", "an engine that reads the view in its own dialect needs one query in it")


def _unknown(code: str, which: str) -> ProjectError:
    return ProjectError(
        code,
        f"the catalog does not know the {which}",
        "what is not understood cannot be done",
        "use a client that keeps to the Iceberg REST specification, or a newer IceLake",
    )
