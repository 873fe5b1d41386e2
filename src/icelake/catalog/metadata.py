"""Table metadata as pure functions: a new table, checking a commit's requirements, applying its updates.

Metadata, requirements and updates are JSON objects in the shapes of the Iceberg table spec (Appendix C, format version 3; version 2 is
the same without row lineage, version 1 without sequence numbers too) and the REST specification (TableRequirement, TableUpdate).
Nothing here does I/O or changes what it was given: ``apply`` copies only the lists it touches, so metadata may be shared and cached.

What was stored is believed only if ``read`` finds in it all that is relied on here and by the tables.

Fails with ``CommitConflict`` when the request was made for another state of the table (HTTP 409), and with ``ProjectError`` when
the request is wrong in itself (HTTP 400). An update that is not known is refused, never passed over.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

import orjson

from icelake.errors import CommitConflict, ProjectError
from icelake.ports import Json

PREVIOUS_VERSIONS = "write.metadata.previous-versions-max"
_DEFAULT_PREVIOUS_VERSIONS = 100
VERSIONS: Final = (1, 2, 3)
_SKEW_MS = 60_000
"""Clocks of writers may differ by so much (spec, snapshot-log: the reference allows as much)."""
FIRST_PARTITION_ID = 1000
"""Spec, Partition Specs: partition field ids start here."""
_REF_FIELDS = ("snapshot-id", "type", "min-snapshots-to-keep", "max-snapshot-age-ms", "max-ref-age-ms")


def new_table(
    uuid: str,
    location: str,
    schema: Json,
    properties: Mapping[str, str],
    now_ms: int,
    *,
    partition_spec: Json | None = None,
    sort_order: Json | None = None,
    format_version: int = 3,
) -> Json:
    """Metadata of an empty table: unpartitioned and unsorted unless said otherwise. The schema gets the id 0; field ids are kept."""
    fields = check_schema(schema)
    if format_version not in VERSIONS:
        raise bad("create", f"there is no format version {format_version} here, only 1, 2 and 3")
    spec = {"spec-id": 0, "fields": [], **(partition_spec or {})}
    order = {"order-id": 0, "fields": [], **(sort_order or {})}
    for field in (*spec["fields"], *order["fields"]):
        if int_of(field, "source-id", "create") not in fields:
            raise bad("create", f"there is no field {field['source-id']} to partition or sort by")
    new: Json = {
        **_NOTHING,
        "format-version": format_version,
        "table-uuid": uuid,
        "location": location,
        "last-updated-ms": now_ms,
        "last-column-id": max(fields, default=0),
        "current-schema-id": 0,
        "schemas": [{**schema, "schema-id": 0}],
        "default-spec-id": spec["spec-id"],
        "partition-specs": [spec],
        "last-partition-id": max((int_of(field, "field-id", "create") for field in spec["fields"]), default=FIRST_PARTITION_ID - 1),
        "default-sort-order-id": order["order-id"],
        "sort-orders": [order],
        "properties": dict(properties),
    }
    if format_version >= 3:
        new["next-row-id"] = 0
    return _as_version_1(new) if format_version == 1 else new


def built(updates: Iterable[Json], now_ms: int) -> Json:
    """Metadata of a table that a commit makes (``assert-create``), from its updates alone.

    Without ``upgrade-format-version`` it has version 2, as the specification's reference gives it. Raises ProjectError if the updates
    leave out what a table must have.
    """
    new = apply(_NOTHING, updates, now_ms)
    for key, missing in (("table-uuid", None), ("location", None), ("current-schema-id", -1)):
        if new[key] == missing:
            raise bad("create", f"the updates give the table no {key}")
    for key, pointer in (("partition-specs", "default-spec-id"), ("sort-orders", "default-sort-order-id")):
        if new[pointer] == -1:
            known = _UNPARTITIONED if key == "partition-specs" else _UNSORTED
            new = {**new, key: [*new[key], known], pointer: 0}
    return new


_UNPARTITIONED: Final[Json] = {"spec-id": 0, "fields": []}
_UNSORTED: Final[Json] = {"order-id": 0, "fields": []}
_NOTHING: Final[Json] = {
    "format-version": 2,
    "table-uuid": None,
    "location": None,
    "last-sequence-number": 0,
    "last-updated-ms": 0,
    "last-column-id": 0,
    "current-schema-id": -1,
    "schemas": [],
    "default-spec-id": -1,
    "partition-specs": [],
    "last-partition-id": FIRST_PARTITION_ID - 1,
    "default-sort-order-id": -1,
    "sort-orders": [],
    "properties": {},
    "refs": {},
    "snapshots": [],
    "snapshot-log": [],
    "metadata-log": [],
    "statistics": [],
    "partition-statistics": [],
}
"""What every table begins with, and the updates of a commit that makes one."""


def _as_version_1(new: Json) -> Json:
    """With the fields that version 1 alone has, and must have (spec, Table Metadata Fields)."""
    schema = next(schema for schema in new["schemas"] if schema["schema-id"] == new["current-schema-id"])
    spec = next(spec for spec in new["partition-specs"] if spec["spec-id"] == new["default-spec-id"])
    return {**new, "schema": schema, "partition-spec": spec["fields"]}


# --------------------------------------------------------------------------------------------------------- what was stored

_OF_SNAPSHOT: Final = {"snapshot-id": int}
_SHAPE: Final = {
    "format-version": int,
    "table-uuid": str,
    "location": str,
    "last-sequence-number": int,
    "last-updated-ms": int,
    "last-column-id": int,
    "current-schema-id": int,
    "schemas": [{"schema-id": int, "fields": [{"id": int, "name": str, "required": bool, "type": (str, dict)}]}],
    "default-spec-id": int,
    "partition-specs": [{"spec-id": int, "fields": [{"field-id": int, "name": str, "transform": str}]}],
    "last-partition-id": int,
    "default-sort-order-id": int,
    "sort-orders": [{"order-id": int, "fields": [{"transform": str}]}],
    "properties": {...: str},
    "refs": {...: {"snapshot-id": int, "type": str}},
    "snapshots": [{"snapshot-id": int, "sequence-number": int, "timestamp-ms": int, "manifest-list": str, "summary": {...: str}}],
    "snapshot-log": [{"snapshot-id": int, "timestamp-ms": int}],
    "metadata-log": [{"metadata-file": str, "timestamp-ms": int}],
    "statistics": [_OF_SNAPSHOT],
    "partition-statistics": [_OF_SNAPSHOT],
}
"""Keys that must be there and what each holds; ``...``: under any key."""
_DEEPEST_DOCUMENT: Final = 200
_DEEPEST: Final = 128
"""Levels of JSON below a schema's fields: whoever walks through types does so by calling itself."""


def read(data: bytes) -> Json:
    """Table metadata from its JSON. Raises ValueError where it has not the form of the spec, or contradicts itself."""
    found = orjson.loads(data)
    check_whole(found)
    result: Json = found
    return result


def check_whole(found: Any, known: Json | None = None) -> None:
    """Raises ValueError where table metadata has not the form of the spec, or contradicts itself.

    ``known``: metadata that was looked at before. What is the same object in both is not looked at again.
    """
    fresh = _fresh(found, known) if known is not None and isinstance(found, dict) else found
    check_form(fresh, _SHAPE, "it")
    if found["format-version"] >= 3:
        # Snapshots of before the table had version 3 have no row ids.
        lineage = [snapshot for snapshot in fresh["snapshots"] if "first-row-id" in snapshot or "added-rows" in snapshot]
        check_form({**found, "snapshots": lineage}, {"next-row-id": int, "snapshots": [{"first-row-id": int, "added-rows": int}]}, "it")
    for schema in fresh["schemas"]:
        _check_depth(schema["fields"])
    for things, ident, current in (
        ("schemas", "schema-id", "current-schema-id"),
        ("partition-specs", "spec-id", "default-spec-id"),
        ("sort-orders", "order-id", "default-sort-order-id"),
    ):
        if all(thing[ident] != found[current] for thing in found[things]):
            raise ValueError(f"{current} is {found[current]}, which is none of its {things}")
    if any(not 0 <= snapshot["timestamp-ms"] < 1 << 62 for snapshot in found["snapshots"]):
        raise ValueError("a snapshot is of no time")
    sequence = {snapshot["snapshot-id"]: snapshot["sequence-number"] for snapshot in found["snapshots"]}
    if len(sequence) != len(found["snapshots"]):
        raise ValueError("a snapshot is there twice")
    for counter in ("last-sequence-number", "last-updated-ms", "last-column-id", "last-partition-id", "next-row-id"):
        if not -1 <= found.get(counter, 0) < 1 << 62:
            raise ValueError(f"{counter} is {found[counter]}")
    if found["last-sequence-number"] < max(sequence.values(), default=0):
        raise ValueError("a snapshot has a number after last-sequence-number")
    for snapshot in found["snapshots"]:
        parent = snapshot.get("parent-snapshot-id")
        # Of version 1, all have number 0.
        number = snapshot["sequence-number"]
        if parent is not None and (not isinstance(parent, int) or (number and sequence.get(parent, -1) >= number)):
            raise ValueError(f"snapshot {snapshot['snapshot-id']} does not follow its parent")
    for name, ref in found["refs"].items():
        if ref["snapshot-id"] not in sequence:
            raise ValueError(f"{name} is at a snapshot that is not there, {ref['snapshot-id']}")


def _fresh(found: Json, known: Json) -> Json:
    """Metadata without those members of its lists that are in the known one's."""
    out: Json = {}
    for key, value in found.items():
        before = known.get(key)
        if isinstance(value, list) and isinstance(before, list):
            # By identity: equal is not enough where 1 is True.
            seen = set(map(id, before))
            out[key] = [one for one in value if id(one) not in seen]
        else:
            out[key] = value
    return out


def registered(data: bytes) -> Json:
    """The same of a file that somebody else wrote: what the spec lets them leave out is given its meaning."""
    found = orjson.loads(data)
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    bounded(found)
    for key in ("refs", "properties"):
        found.setdefault(key, {})
    for key in ("snapshots", "snapshot-log", "metadata-log", "statistics", "partition-statistics"):
        found.setdefault(key, [])
    found.setdefault("last-sequence-number", 0)
    if "schemas" not in found and isinstance(found.get("schema"), dict):
        found |= {"schemas": [{"schema-id": 0, **found["schema"]}], "current-schema-id": found["schema"].get("schema-id", 0)}
    if "partition-specs" not in found and isinstance(fields := found.get("partition-spec"), list):
        fields = [{"field-id": FIRST_PARTITION_ID + at, **field} for at, field in enumerate(fields)]
        last = max((field["field-id"] for field in fields), default=FIRST_PARTITION_ID - 1)
        found |= {"partition-specs": [{"spec-id": 0, "fields": fields}], "default-spec-id": 0, "last-partition-id": last}
    if "sort-orders" not in found:
        found |= {"sort-orders": [_UNSORTED], "default-sort-order-id": 0}
    found.setdefault("table-uuid", str(uuid5(NAMESPACE_URL, str(found.get("location")))))
    for snapshot in found["snapshots"] if isinstance(found["snapshots"], list) else ():
        if isinstance(snapshot, dict):
            snapshot.setdefault("sequence-number", 0)
            snapshot.setdefault("summary", {"operation": "overwrite"})
    if found.get("current-snapshot-id") == -1:
        del found["current-snapshot-id"]
    if found.get("current-snapshot-id") is not None and isinstance(found["refs"], dict):
        found["refs"].setdefault("main", {"snapshot-id": found["current-snapshot-id"], "type": "branch"})
    return read(orjson.dumps(found))


def check_form(thing: Any, form: Any, where: str) -> None:
    if isinstance(form, dict):
        if not isinstance(thing, dict):
            raise ValueError(f"{where} is no object")
        for key, inner in form.items():
            if key is ...:
                for name, value in thing.items():
                    check_form(value, inner, name)
            elif key in thing:
                check_form(thing[key], inner, key)
            else:
                raise ValueError(f"{where} has no {key}")
    elif isinstance(form, list):
        if not isinstance(thing, list):
            raise ValueError(f"{where} is no list")
        for one in thing:
            check_form(one, form[0], f"one of its {where}")
    elif not isinstance(thing, form) or (isinstance(thing, bool) and form is not bool):
        raise ValueError(f"{where} is {str(thing)[:80]!r}")


def _check_depth(kind: Any, deepest: int = _DEEPEST, what: str = "a type") -> None:
    level, depth = [kind], 0
    while level := [inner for one in level for inner in _inside(one)]:
        depth += 1
        if depth > deepest:
            raise ValueError(f"{what} is nested more than {deepest} levels deep")


def bounded(document: Any) -> None:
    """Raises ValueError if JSON is nested so deep that it could not be written again as part of something."""
    _check_depth(document, _DEEPEST_DOCUMENT, "it")


def deep(kind: Any, where: str) -> None:
    """Raises ProjectError if a type a client sent is nested too deep for whoever walks through it."""
    try:
        _check_depth(kind)
    except ValueError as error:
        raise bad(where, str(error)) from None


def _inside(thing: Any) -> Iterable[Any]:
    return thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list) else ()


# ---------------------------------------------------------------------------------------------------------- requirements


def check(metadata: Json | None, requirements: Iterable[Json]) -> None:
    """Raise CommitConflict naming the first requirement that does not hold. ``metadata`` is None where there is no table."""
    for requirement in requirements:
        kind = text_of(requirement, "type", "requirement")
        if kind == "assert-create":
            if metadata is not None:
                raise failed("table already exists")
            continue
        if metadata is None:
            raise failed("there is no such table")
        if kind == "assert-ref-snapshot-id":
            name = text_of(requirement, "ref", kind)
            wanted = requirement.get("snapshot-id")
            ref = metadata["refs"].get(name)
            found = ref["snapshot-id"] if ref is not None else None
            if found != wanted:
                raise failed(f"branch or tag {name} has changed: it is at {_snapshot(found)}, the commit was made for {_snapshot(wanted)}")
        elif kind == "assert-table-uuid":
            if str(value_of(requirement, "uuid", kind)).lower() != str(metadata["table-uuid"]).lower():
                raise failed(f"UUID does not match: expected {requirement['uuid']} != {metadata['table-uuid']}")
        elif kind in _COMPARED:
            wanted_key, key, what = _COMPARED[kind]
            wanted_value = value_of(requirement, wanted_key, kind)
            if metadata[key] != wanted_value:
                raise failed(f"{what} changed: expected id {wanted_value} != {metadata[key]}")
        else:
            raise ProjectError(
                "CATALOG_UNKNOWN_REQUIREMENT",
                f"the catalog does not know the requirement {kind!r}",
                "a requirement that is not understood cannot be checked",
                "use a writer that keeps to the Iceberg REST specification, or a newer IceLake",
            )


_COMPARED = {
    "assert-current-schema-id": ("current-schema-id", "current-schema-id", "current schema"),
    "assert-last-assigned-field-id": ("last-assigned-field-id", "last-column-id", "last assigned field id"),
    "assert-default-spec-id": ("default-spec-id", "default-spec-id", "default partition spec"),
    "assert-default-sort-order-id": ("default-sort-order-id", "default-sort-order-id", "default sort order"),
    "assert-last-assigned-partition-id": ("last-assigned-partition-id", "last-partition-id", "last assigned partition id"),
}
"""Requirement -> (its key, the metadata's key, what clients know it as)."""


# --------------------------------------------------------------------------------------------------------------- updates


def apply(metadata: Json, updates: Iterable[Json], now_ms: int) -> Json:
    """The metadata after the updates, in order; ``metadata`` itself stays as it was.

    ``last-updated-ms`` never goes back, whatever the clock does.
    """
    change = _Change(metadata)
    for update in updates:
        action = text_of(update, "action", "update")
        step = _STEPS.get(action)
        if step is None:
            raise ProjectError(
                "CATALOG_UNKNOWN_UPDATE",
                f"the catalog does not know the update {action!r}",
                "an update that is not understood cannot be applied",
                "use a writer that keeps to the Iceberg REST specification for format version 3, or a newer IceLake",
            )
        step(change, update)
    return change.finish(now_ms)


def with_history(base: Json, base_location: str, new: Json) -> tuple[Json, list[str]]:
    """``new`` with the file of ``base`` in its metadata log, and the locations that fell off the end of the log.

    The log's length is the property ``write.metadata.previous-versions-max`` (100 unless set).
    """
    try:
        keep = max(1, int(new["properties"].get(PREVIOUS_VERSIONS, _DEFAULT_PREVIOUS_VERSIONS)))
    except ValueError as error:
        raise bad("set-properties", f"{PREVIOUS_VERSIONS} is not a number") from error
    log = [*base["metadata-log"], {"metadata-file": base_location, "timestamp-ms": base["last-updated-ms"]}]
    return {**new, "metadata-log": log[-keep:]}, [entry["metadata-file"] for entry in log[:-keep]]


class _Change:
    """Metadata being changed: a shallow copy whose lists and maps are replaced, never changed in place."""

    def __init__(self, base: Json) -> None:
        self.base = base
        self.new: Json = dict(base)
        self.added: dict[int, Json] = {}
        self.removed: set[int] = set()
        self.known: set[int] | None = None
        self.last: dict[str, int] = {}
        """The id that -1 stands for: what this request added last."""

    def snapshots(self) -> set[int]:
        if self.known is None:
            self.known = {snapshot["snapshot-id"] for snapshot in self.new["snapshots"]}
        return self.known

    def finish(self, now_ms: int) -> Json:
        new, base = self.new, self.base
        if self.removed or new["refs"] is not base["refs"]:
            for name, ref in new["refs"].items():
                if ref["snapshot-id"] not in self.snapshots():
                    raise conflict("remove-snapshots", f"{name} is at snapshot {ref['snapshot-id']}")
        newest = max((snapshot["timestamp-ms"] for snapshot in self.added.values()), default=0)
        log = new["snapshot-log"]
        now = max(now_ms, base["last-updated-ms"], newest, log[-1]["timestamp-ms"] if log else 0)
        new["last-updated-ms"] = now
        main = new["refs"].get("main")
        current = main["snapshot-id"] if main is not None else None
        if current is None:
            new.pop("current-snapshot-id", None)
            new["snapshot-log"] = []
        elif current != base.get("current-snapshot-id"):
            new["current-snapshot-id"] = current
            added = self.added.get(current)
            new["snapshot-log"] = [*log, {"timestamp-ms": added["timestamp-ms"] if added else now, "snapshot-id": current}]
        if self.removed:
            self._forget()
        return _as_version_1(new) if new["format-version"] == 1 and new["current-schema-id"] >= 0 and new["default-spec-id"] >= 0 else new

    def _forget(self) -> None:
        new, removed = self.new, self.removed
        # Spec, snapshot-log: entries before an expired snapshot go too, or a time inside the gap would be answered with a
        # snapshot that was not current then.
        log = new["snapshot-log"]
        last = max((at for at, entry in enumerate(log) if entry["snapshot-id"] in removed), default=-1)
        new["snapshot-log"] = log[last + 1 :]
        for key in ("statistics", "partition-statistics"):
            if new.get(key):
                new[key] = [entry for entry in new[key] if entry["snapshot-id"] not in removed]


def _add_snapshot(change: _Change, update: Json) -> None:
    action = "add-snapshot"
    new = change.new
    snapshot = object_of(update, "snapshot", action)
    ident = int_of(snapshot, "snapshot-id", action)
    if ident in change.snapshots():
        raise conflict(action, f"snapshot {ident} is there already")
    numbered = new["format-version"] > 1
    sequence = int_of(snapshot, "sequence-number", action) if numbered else 0
    # The first snapshot of a table that replaces this one, made while others committed: its files are numbered by themselves.
    anew = snapshot.get("parent-snapshot-id") is None and 0 < sequence <= new["last-sequence-number"]
    if numbered and sequence != new["last-sequence-number"] + 1 and not anew:
        raise conflict(action, f"the next sequence number is {new['last-sequence-number'] + 1}, the snapshot has {sequence}")
    if not numbered:
        snapshot = {**snapshot, "sequence-number": 0}
    lineage = new["format-version"] >= 3
    first = int_of(snapshot, "first-row-id", action) if lineage else 0
    if lineage and first != new["next-row-id"]:
        raise conflict(action, f"the next row id is {new['next-row-id']}, the snapshot begins at {first}")
    rows = int_of(snapshot, "added-rows", action) if lineage else 0
    if rows < 0:
        raise bad(action, "added-rows is negative")
    if not lineage and not snapshot.keys().isdisjoint({"first-row-id", "added-rows"}):
        raise bad(action, "a table has no row ids before version 3")
    timestamp = int_of(snapshot, "timestamp-ms", action)
    log = new["snapshot-log"]
    newest = max([log[-1]["timestamp-ms"] if log else 0, *(other["timestamp-ms"] for other in change.added.values())])
    if timestamp < newest - _SKEW_MS:
        raise bad(action, f"timestamp-ms {timestamp} is older than the snapshot log, which ends at {newest}")
    text_of(snapshot, "manifest-list", action)
    text_of(object_of(snapshot, "summary", action), "operation", action)
    if "schema-id" in snapshot and not any(schema["schema-id"] == snapshot["schema-id"] for schema in new["schemas"]):
        raise bad(action, f"there is no schema {snapshot['schema-id']}")
    new["snapshots"] = [*new["snapshots"], snapshot]
    new["last-sequence-number"] = max(new["last-sequence-number"], sequence)
    if lineage:
        new["next-row-id"] = first + rows
    change.snapshots().add(ident)
    change.added[ident] = snapshot


def _set_snapshot_ref(change: _Change, update: Json) -> None:
    action = "set-snapshot-ref"
    name = text_of(update, "ref-name", action)
    kind = text_of(update, "type", action)
    if kind not in ("branch", "tag") or (name == "main" and kind != "branch"):
        raise bad(action, f"{name} cannot be a {kind}")
    ident = int_of(update, "snapshot-id", action)
    if ident not in change.snapshots():
        raise conflict(action, f"there is no snapshot {ident} for {name}")
    ref = {key: update[key] for key in _REF_FIELDS if update.get(key) is not None}
    change.new["refs"] = {**change.new["refs"], name: ref}


def _remove_snapshot_ref(change: _Change, update: Json) -> None:
    name = text_of(update, "ref-name", "remove-snapshot-ref")
    change.new["refs"] = {key: ref for key, ref in change.new["refs"].items() if key != name}


def _remove_snapshots(change: _Change, update: Json) -> None:
    gone = set(list_of(update, "snapshot-ids", "remove-snapshots"))
    change.removed |= gone & change.snapshots()
    change.new["snapshots"] = [snapshot for snapshot in change.new["snapshots"] if snapshot["snapshot-id"] not in gone]
    change.known = None


def _set_properties(change: _Change, update: Json) -> None:
    updates = object_of(update, "updates", "set-properties")
    if not all(isinstance(value, str) for value in updates.values()):
        raise bad("set-properties", "a property's value is not a string")
    change.new["properties"] = {**change.new["properties"], **updates}


def _remove_properties(change: _Change, update: Json) -> None:
    gone = set(list_of(update, "removals", "remove-properties"))
    change.new["properties"] = {key: value for key, value in change.new["properties"].items() if key not in gone}


def _add_schema(change: _Change, update: Json) -> None:
    new = change.new
    schema = object_of(update, "schema", "add-schema")
    fields = check_schema(schema)
    change.last["schema"] = _put(change, "schemas", "schema-id", schema, ("fields", "identifier-field-ids"))
    new["last-column-id"] = max(new["last-column-id"], *fields, 0)


def _set_current_schema(change: _Change, update: Json) -> None:
    _point(change, update, "set-current-schema", "schema-id", "schema", "schemas", "current-schema-id")


def _remove_schemas(change: _Change, update: Json) -> None:
    _drop(change, update, "remove-schemas", "schema-ids", "schemas", "schema-id", "current-schema-id")


def _add_spec(change: _Change, update: Json) -> None:
    action = "add-spec"
    new = change.new
    fields = []
    last = new["last-partition-id"]
    for field in list_of(object_of(update, "spec", action), "fields", action):
        ident = field.get("field-id")
        if ident is None:
            last += 1
            ident = last
        for key in ("name", "transform"):
            text_of(field, key, action)
        _check_sources(new, field, action)
        fields.append({**field, "field-id": ident})
        last = max(last, ident)
    change.last["spec"] = _put(change, "partition-specs", "spec-id", {**update["spec"], "fields": fields}, ("fields",))
    new["last-partition-id"] = last


def _check_sources(metadata: Json, field: Json, action: str) -> None:
    """What a field of a spec or an order is made of is, or was, in the table."""
    sources = list_of(field, "source-ids", action) if "source-ids" in field else [int_of(field, "source-id", action)]
    known = {ident for schema in metadata["schemas"] for ident in _field_ids(schema)}
    if not known.issuperset(sources):
        raise bad(action, f"there is no field {', '.join(map(str, sources))} to partition or sort by")


def _set_default_spec(change: _Change, update: Json) -> None:
    _point(change, update, "set-default-spec", "spec-id", "spec", "partition-specs", "default-spec-id")


def _remove_partition_specs(change: _Change, update: Json) -> None:
    _drop(change, update, "remove-partition-specs", "spec-ids", "partition-specs", "spec-id", "default-spec-id")


def _add_sort_order(change: _Change, update: Json) -> None:
    order = object_of(update, "sort-order", "add-sort-order")
    for field in list_of(order, "fields", "add-sort-order"):
        _check_sources(change.new, field, "add-sort-order")
    # Spec, Sorting: order 0 is the one without fields.
    change.last["order"] = _put(change, "sort-orders", "order-id", order, ("fields",), first=1 if order["fields"] else 0)


def _set_default_sort_order(change: _Change, update: Json) -> None:
    _point(change, update, "set-default-sort-order", "sort-order-id", "order", "sort-orders", "default-sort-order-id", "order-id")


def _assign_uuid(change: _Change, update: Json) -> None:
    uuid = text_of(update, "uuid", "assign-uuid")
    if change.new["table-uuid"] is None:
        change.new["table-uuid"] = uuid
    if uuid.lower() != str(change.new["table-uuid"]).lower():
        raise conflict("assign-uuid", f"the table is {change.new['table-uuid']} and stays it")


def _set_location(change: _Change, update: Json) -> None:
    change.new["location"] = text_of(update, "location", "set-location").rstrip("/")


def _upgrade_format_version(change: _Change, update: Json) -> None:
    version, now = int_of(update, "format-version", "upgrade-format-version"), change.new["format-version"]
    # A table that is being made has no version yet.
    if version not in VERSIONS or (version < now and change.base is not _NOTHING):
        raise bad("upgrade-format-version", f"the table has version {now}, which cannot become {version}")
    change.new["format-version"] = version
    if version >= 3:
        change.new.setdefault("next-row-id", 0)
    for key in ("schema", "partition-spec") if version > 1 else ():
        change.new.pop(key, None)


def _set_statistics(change: _Change, update: Json) -> None:
    _replace_statistics(change, object_of(update, "statistics", "set-statistics"), "statistics", "set-statistics")


def _set_partition_statistics(change: _Change, update: Json) -> None:
    action = "set-partition-statistics"
    _replace_statistics(change, object_of(update, "partition-statistics", action), "partition-statistics", action)


def _remove_statistics(change: _Change, update: Json) -> None:
    ident = int_of(update, "snapshot-id", "remove-statistics")
    change.new["statistics"] = [entry for entry in change.new.get("statistics", ()) if entry["snapshot-id"] != ident]


def _remove_partition_statistics(change: _Change, update: Json) -> None:
    ident = int_of(update, "snapshot-id", "remove-partition-statistics")
    kept = [entry for entry in change.new.get("partition-statistics", ()) if entry["snapshot-id"] != ident]
    change.new["partition-statistics"] = kept


def _add_encryption_key(change: _Change, update: Json) -> None:
    action = "add-encryption-key"
    key = object_of(update, "encryption-key", action)
    ident = text_of(key, "key-id", action)
    known = change.new.get("encryption-keys", [])
    if not any(one["key-id"] == ident for one in known):
        change.new["encryption-keys"] = [*known, key]


def _remove_encryption_key(change: _Change, update: Json) -> None:
    ident = text_of(update, "key-id", "remove-encryption-key")
    change.new["encryption-keys"] = [key for key in change.new.get("encryption-keys", ()) if key["key-id"] != ident]


_STEPS: Mapping[str, Callable[[_Change, Json], None]] = {
    "add-snapshot": _add_snapshot,
    "set-snapshot-ref": _set_snapshot_ref,
    "remove-snapshot-ref": _remove_snapshot_ref,
    "remove-snapshots": _remove_snapshots,
    "set-properties": _set_properties,
    "remove-properties": _remove_properties,
    "add-schema": _add_schema,
    "set-current-schema": _set_current_schema,
    "remove-schemas": _remove_schemas,
    "add-spec": _add_spec,
    "set-default-spec": _set_default_spec,
    "remove-partition-specs": _remove_partition_specs,
    "add-sort-order": _add_sort_order,
    "set-default-sort-order": _set_default_sort_order,
    "assign-uuid": _assign_uuid,
    "set-location": _set_location,
    "upgrade-format-version": _upgrade_format_version,
    "set-statistics": _set_statistics,
    "remove-statistics": _remove_statistics,
    "set-partition-statistics": _set_partition_statistics,
    "remove-partition-statistics": _remove_partition_statistics,
    "add-encryption-key": _add_encryption_key,
    "remove-encryption-key": _remove_encryption_key,
}


def _replace_statistics(change: _Change, entry: Json, key: str, action: str) -> None:
    ident = int_of(entry, "snapshot-id", action)
    if ident not in change.snapshots():
        raise conflict(action, f"there is no snapshot {ident}")
    change.new[key] = [*(other for other in change.new.get(key, ()) if other["snapshot-id"] != ident), entry]


def _put(change: _Change, key: str, id_key: str, thing: Json, same: Sequence[str], *, first: int = 0) -> int:
    """Add a schema, spec or order under a new id, or find the equal one that is there; its id."""
    things = change.new[key]
    for known in things:
        if all((known.get(part) or []) == (thing.get(part) or []) for part in same):
            return int(known[id_key])
    ident = max([first - 1, *(known[id_key] for known in things)]) + 1
    change.new[key] = [*things, {**thing, id_key: ident}]
    return int(ident)


def _point(change: _Change, update: Json, action: str, id_key: str, last: str, key: str, pointer: str, known_key: str = "") -> None:
    ident = int_of(update, id_key, action)
    if ident == -1:
        if last not in change.last:
            raise bad(action, f"-1 means the {last} added last, and this request added none")
        ident = change.last[last]
    if not any(known[known_key or id_key] == ident for known in change.new[key]):
        raise bad(action, f"there is no {last} {ident}")
    change.new[pointer] = ident


def _drop(change: _Change, update: Json, action: str, ids_key: str, key: str, id_key: str, pointer: str) -> None:
    gone = set(list_of(update, ids_key, action))
    if change.new[pointer] in gone:
        raise bad(action, f"{pointer} is {change.new[pointer]}")
    change.new[key] = [known for known in change.new[key] if known[id_key] not in gone]


# --------------------------------------------------------------------------------------------------- shapes and messages


def check_schema(schema: Json) -> set[int]:
    """The ids of all fields, nested ones too. Raises ProjectError on a schema that names a field or an id twice."""
    if schema.get("type") != "struct" or not isinstance(schema.get("fields"), list):
        raise bad("schema", "it is not a struct with fields")
    deep(schema["fields"], "schema")
    ids: set[int] = set()
    for ident in _field_ids(schema):
        if not isinstance(ident, int) or isinstance(ident, bool) or ident in ids:
            raise bad("schema", f"the field id {ident} is not an int, or is there twice")
        ids.add(ident)
    missing = set(schema.get("identifier-field-ids", ())) - ids
    if missing:
        raise bad("schema", f"identifier-field-ids names {sorted(missing)}, which no field has")
    return ids


def _field_ids(kind: Any) -> Iterator[Any]:
    if not isinstance(kind, dict):
        return
    match kind.get("type"):
        case "struct":
            names = [field["name"] for field in kind["fields"]]
            if len(set(names)) != len(names):
                raise bad("schema", "a field's name is there twice")
            for field in kind["fields"]:
                yield field["id"]
                yield from _field_ids(field["type"])
        case "list":
            yield kind["element-id"]
            yield from _field_ids(kind["element"])
        case "map":
            yield from (kind["key-id"], kind["value-id"])
            yield from _field_ids(kind["key"])
            yield from _field_ids(kind["value"])


def value_of(thing: Any, key: str, where: str) -> Any:
    if not isinstance(thing, dict) or key not in thing:
        raise bad(where, f"{key} is missing")
    return thing[key]


def text_of(thing: Any, key: str, where: str) -> str:
    value = value_of(thing, key, where)
    if not isinstance(value, str) or not value:
        raise bad(where, f"{key} is not a text")
    return value


def int_of(thing: Any, key: str, where: str) -> int:
    value = value_of(thing, key, where)
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad(where, f"{key} is not a whole number")
    return value


def object_of(thing: Any, key: str, where: str) -> Json:
    value = value_of(thing, key, where)
    if not isinstance(value, dict):
        raise bad(where, f"{key} is not an object")
    return value


def list_of(thing: Any, key: str, where: str) -> list[Any]:
    value = value_of(thing, key, where)
    if not isinstance(value, list | tuple):
        raise bad(where, f"{key} is not a list")
    return list(value)


def _snapshot(ident: int | None) -> str:
    return "no snapshot" if ident is None else f"snapshot {ident}"


def conflict(which: str, why: str) -> CommitConflict:
    return CommitConflict("COMMIT_CONFLICT", f"{which} failed: {why}", "the table has changed since the commit was prepared")


def failed(why: str) -> CommitConflict:
    """A requirement does not hold, in the reference's words, by which clients tell conflicts apart."""
    return CommitConflict("COMMIT_CONFLICT", f"Requirement failed: {why}", "the table has changed since the commit was prepared")


@contextmanager
def understood() -> Iterator[None]:
    """Whoever stumbles over the form of a request within it has found that it is none. Raises ProjectError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise bad("the request", f"{type(error).__name__}: {error}") from error


def bad(where: str, why: str) -> ProjectError:
    return ProjectError(
        "CATALOG_BAD_REQUEST",
        f"{where}: {why}",
        "the request does not have the form the Iceberg REST specification gives it",
        "this is an error of the writer that sent it",
    )
