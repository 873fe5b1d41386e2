"""Table metadata: requirements, updates, and what must never change under a reader."""

import copy
from typing import Any

import orjson
import pytest
from pyiceberg.table.metadata import TableMetadataUtil

from icelake.catalog.metadata import apply, built, check, new_table, read, registered, with_history
from icelake.errors import CommitConflict, ProjectError
from icelake.ports import Json

SCHEMA: Json = {
    "type": "struct",
    "fields": [
        {"id": 1, "name": "id", "required": True, "type": "long"},
        {
            "id": 2,
            "name": "tags",
            "required": False,
            "type": {"type": "list", "element-id": 7, "element": "string", "element-required": False},
        },
    ],
    "identifier-field-ids": [1],
}


def nested(*fields: Json) -> Json:
    """A schema with a list (element 9) of structs of these fields."""
    column = {"type": "list", "element-id": 9, "element": {"type": "struct", "fields": list(fields)}, "element-required": False}
    return {"type": "struct", "fields": [{"id": 1, "name": "a", "required": False, "type": column}]}


def table(**changes: Any) -> Json:
    return {**new_table("u-1", "/lake/t", SCHEMA, {"a": "1"}, 1_000), **changes}


def snapshot(ident: int, base: Json, **changes: Any) -> Json:
    made = {
        "snapshot-id": ident,
        "sequence-number": base["last-sequence-number"] + 1,
        "timestamp-ms": base["last-updated-ms"] + 10,
        "manifest-list": f"/lake/t/metadata/{ident}.avro",
        "summary": {"operation": "append"},
        "schema-id": 0,
        "first-row-id": base["next-row-id"],
        "added-rows": 5,
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def add(base: Json, ident: int, now_ms: int = 0, **changes: Any) -> Json:
    return apply(base, [{"action": "add-snapshot", "snapshot": snapshot(ident, base, **changes)}, main(ident)], now_ms)


def main(ident: int) -> Json:
    return {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": ident}


def test_a_new_table_is_version_3_and_empty() -> None:
    new = table()
    assert new["format-version"] == 3
    assert new["last-column-id"] == 7
    assert (new["last-sequence-number"], new["next-row-id"], new["last-partition-id"]) == (0, 0, 999)
    assert "current-snapshot-id" not in new
    assert new["schemas"][0]["schema-id"] == 0


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "list"},
        {"type": "struct", "fields": [{"id": 1, "name": "a", "type": "int"}, {"id": 1, "name": "b", "type": "int"}]},
        {"type": "struct", "fields": [{"id": 1, "name": "a", "type": "int"}, {"id": 2, "name": "a", "type": "int"}]},
        {"type": "struct", "fields": [{"id": 1, "name": "a", "type": "int"}], "identifier-field-ids": [2]},
        nested({"id": 2, "name": "x", "type": "int"}, {"id": 3, "name": "x", "type": "int"}),
        nested({"id": 1, "name": "x", "type": "int"}),
        nested({"id": 3, "name": "x", "type": {"type": "map", "key-id": 4, "key": "int", "value-id": 4, "value": "int"}}),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(schema: Json) -> None:
    with pytest.raises(ProjectError, match="CATALOG_BAD_REQUEST"):
        new_table("u", "/l", schema, {}, 0)


@pytest.mark.parametrize(
    ("requirement", "holds"),
    [
        ({"type": "assert-table-uuid", "uuid": "U-1"}, True),
        ({"type": "assert-table-uuid", "uuid": "u-2"}, False),
        ({"type": "assert-create"}, False),
        ({"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": 11}, True),
        ({"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": 12}, False),
        ({"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": None}, False),
        ({"type": "assert-ref-snapshot-id", "ref": "other", "snapshot-id": None}, True),
        ({"type": "assert-ref-snapshot-id", "ref": "other", "snapshot-id": 11}, False),
        ({"type": "assert-current-schema-id", "current-schema-id": 0}, True),
        ({"type": "assert-current-schema-id", "current-schema-id": 1}, False),
        ({"type": "assert-last-assigned-field-id", "last-assigned-field-id": 7}, True),
        ({"type": "assert-last-assigned-field-id", "last-assigned-field-id": 8}, False),
        ({"type": "assert-default-spec-id", "default-spec-id": 0}, True),
        ({"type": "assert-default-spec-id", "default-spec-id": 1}, False),
        ({"type": "assert-default-sort-order-id", "default-sort-order-id": 0}, True),
        ({"type": "assert-default-sort-order-id", "default-sort-order-id": 1}, False),
        ({"type": "assert-last-assigned-partition-id", "last-assigned-partition-id": 999}, True),
        ({"type": "assert-last-assigned-partition-id", "last-assigned-partition-id": 1000}, False),
    ],
)
def test_requirements(requirement: Json, holds: bool) -> None:
    metadata = add(table(), 11)
    if holds:
        check(metadata, [requirement])
    else:
        with pytest.raises(CommitConflict, match="Requirement failed: "):
            check(metadata, [requirement])


def test_requirements_of_a_table_that_is_not_there() -> None:
    check(None, [{"type": "assert-create"}])
    with pytest.raises(CommitConflict, match="COMMIT_CONFLICT"):
        check(None, [{"type": "assert-table-uuid", "uuid": "u-1"}])
    with pytest.raises(ProjectError, match="CATALOG_UNKNOWN_REQUIREMENT"):
        check(table(), [{"type": "assert-something-new"}])


def test_add_snapshot_moves_everything_it_must() -> None:
    base = table()
    before = copy.deepcopy(base)
    new = add(base, 11, now_ms=5_000)
    assert base == before
    assert new["current-snapshot-id"] == 11
    assert new["refs"] == {"main": {"type": "branch", "snapshot-id": 11}}
    assert new["last-sequence-number"] == 1
    assert new["next-row-id"] == 5
    assert new["snapshot-log"] == [{"timestamp-ms": 1_010, "snapshot-id": 11}]
    assert new["last-updated-ms"] == 5_000
    assert new["schemas"] is base["schemas"]  # what a commit does not touch is not copied
    # The clock went back: time in the metadata does not.
    newer = add(new, 12, now_ms=3)
    assert newer["last-updated-ms"] == 5_010
    assert newer["snapshots"][0] is new["snapshots"][0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"sequence-number": 1, "parent-snapshot-id": 11}, CommitConflict),
        ({"sequence-number": 0}, CommitConflict),
        ({"sequence-number": 3}, CommitConflict),
        ({"first-row-id": 4}, CommitConflict),
        ({"first-row-id": 6}, CommitConflict),
        ({"snapshot-id": 11}, CommitConflict),
        ({"first-row-id": None}, ProjectError),
        ({"added-rows": None}, ProjectError),
        ({"added-rows": -1}, ProjectError),
        ({"added-rows": "5"}, ProjectError),
        ({"sequence-number": None}, ProjectError),
        ({"summary": None}, ProjectError),
        ({"summary": {}}, ProjectError),
        ({"manifest-list": None}, ProjectError),
        ({"timestamp-ms": 1_010 - 60_001}, ProjectError),
        ({"schema-id": 1}, ProjectError),
    ],
)
def test_a_snapshot_that_does_not_follow_is_refused(changes: Json, error: type[Exception]) -> None:
    with pytest.raises(error):
        add(add(table(), 11), 12, **changes)


def test_a_table_that_was_replaced_begins_anew() -> None:
    """Whoever replaced it did not know what others committed meanwhile, and has no parent: its files are numbered by themselves."""
    new = add(add(table(), 11), 12, **{"sequence-number": 1})
    assert (new["last-sequence-number"], new["current-snapshot-id"], new["next-row-id"]) == (1, 12, 10)
    assert read(orjson.dumps(new)) == new


def test_a_table_that_a_commit_makes() -> None:
    updates: list[Json] = [
        {"action": "assign-uuid", "uuid": "u"},
        {"action": "set-location", "location": "/lake/t/"},
        {"action": "add-schema", "schema": SCHEMA},
        {"action": "set-current-schema", "schema-id": -1},
    ]
    new = built(updates, 7)
    assert new == {**new_table("u", "/lake/t", SCHEMA, {}, 7, format_version=2), "last-updated-ms": 7}
    for left_out in ("assign-uuid", "set-location", "add-schema"):
        with pytest.raises(ProjectError, match="CATALOG_BAD_REQUEST"):
            built([update for update in updates if update["action"] != left_out], 7)
    v3 = built([{"action": "upgrade-format-version", "format-version": 3}, *updates], 7)
    assert (v3["format-version"], v3["next-row-id"]) == (3, 0)


def test_what_the_spec_lets_others_leave_out() -> None:
    schema = {"type": "struct", "fields": SCHEMA["fields"]}
    old = {
        "format-version": 1,
        "location": "/lake/t",
        "last-updated-ms": 5,
        "last-column-id": 7,
        "schema": schema,
        "partition-spec": [{"name": "id", "transform": "identity", "source-id": 1}],
        "current-snapshot-id": 3,
        "snapshots": [{"snapshot-id": 3, "timestamp-ms": 5, "manifest-list": "/lake/t/m.avro"}],
    }
    found = registered(orjson.dumps(old))
    assert found["refs"] == {"main": {"snapshot-id": 3, "type": "branch"}}
    assert found["partition-specs"][0]["fields"][0]["field-id"] == 1000
    assert (found["snapshots"][0]["sequence-number"], found["current-schema-id"], found["last-partition-id"]) == (0, 0, 1000)
    assert "current-snapshot-id" not in registered(orjson.dumps({**old, "current-snapshot-id": -1}))
    for broken in (b"[]", b"{}", orjson.dumps({**old, "current-snapshot-id": 4}), b"{"):
        with pytest.raises(ValueError):  # noqa: PT011
            registered(broken)


def test_encryption_keys_come_and_go() -> None:
    key = {"key-id": "k", "encrypted-key-metadata": "AA=="}
    new = apply(table(), [{"action": "add-encryption-key", "encryption-key": key}] * 2, 1)
    assert new["encryption-keys"] == [key]
    assert apply(new, [{"action": "remove-encryption-key", "key-id": "k"}], 1)["encryption-keys"] == []


def test_sort_orders_are_numbered_from_one() -> None:
    order = {"fields": [{"source-id": 1, "transform": "identity", "direction": "asc", "null-order": "nulls-first"}]}
    orders: list[Json] = [order, {"fields": []}, order]
    new = apply(table(), [{"action": "add-sort-order", "sort-order": one} for one in orders], 1)
    assert [one["order-id"] for one in new["sort-orders"]] == [0, 1]


def test_rolling_main_back_and_a_tag() -> None:
    metadata = add(add(table(), 11), 12)
    rolled = apply(metadata, [main(11), {"action": "set-snapshot-ref", "ref-name": "v1", "type": "tag", "snapshot-id": 12}], 9_000)
    assert rolled["current-snapshot-id"] == 11
    assert [entry["snapshot-id"] for entry in rolled["snapshot-log"]] == [11, 12, 11]
    assert rolled["snapshot-log"][-1]["timestamp-ms"] == 9_000
    untagged = apply(rolled, [{"action": "remove-snapshot-ref", "ref-name": "v1"}], 0)
    assert set(untagged["refs"]) == {"main"}
    with pytest.raises(CommitConflict):
        apply(metadata, [main(99)], 0)
    with pytest.raises(ProjectError):
        apply(metadata, [{"action": "set-snapshot-ref", "ref-name": "main", "type": "tag", "snapshot-id": 11}], 0)


def test_removing_snapshots_cuts_the_log_at_the_gap_and_never_takes_a_ref() -> None:
    metadata = table()
    for ident in (11, 12, 13, 14):
        metadata = add(metadata, ident)
    statistics: list[Json] = [
        {"snapshot-id": ident, "statistics-path": "p", "file-size-in-bytes": 1, "file-footer-size-in-bytes": 1, "blob-metadata": []}
        for ident in (12, 13)
    ]
    metadata = apply(metadata, [{"action": "set-statistics", "statistics": entry} for entry in statistics], 0)
    thinned = apply(metadata, [{"action": "remove-snapshots", "snapshot-ids": [12, 99]}], 0)
    assert [one["snapshot-id"] for one in thinned["snapshots"]] == [11, 13, 14]
    assert [entry["snapshot-id"] for entry in thinned["snapshot-log"]] == [13, 14]
    assert [entry["snapshot-id"] for entry in thinned["statistics"]] == [13]
    with pytest.raises(CommitConflict, match="main is at"):
        apply(metadata, [{"action": "remove-snapshots", "snapshot-ids": [14]}], 0)


def test_removing_main_leaves_an_empty_table() -> None:
    emptied = apply(add(table(), 11), [{"action": "remove-snapshot-ref", "ref-name": "main"}], 0)
    assert "current-snapshot-id" not in emptied
    assert emptied["snapshot-log"] == []
    gone = apply(emptied, [{"action": "remove-snapshots", "snapshot-ids": [11]}], 0)
    assert (gone["snapshots"], gone["next-row-id"], gone["last-sequence-number"]) == ([], 5, 1)


def test_properties() -> None:
    updates: list[Json] = [{"action": "set-properties", "updates": {"b": "2"}}, {"action": "remove-properties", "removals": ["a", "zz"]}]
    assert apply(table(), updates, 0)["properties"] == {"b": "2"}
    with pytest.raises(ProjectError):
        apply(table(), [{"action": "set-properties", "updates": {"b": 2}}], 0)


def test_schemas_specs_and_orders() -> None:
    wider = {**SCHEMA, "fields": [*SCHEMA["fields"], {"id": 8, "name": "c", "required": False, "type": "int"}]}
    current: Json = {"action": "set-current-schema", "schema-id": -1}
    metadata = apply(table(), [{"action": "add-schema", "schema": wider}, current], 0)
    assert (metadata["current-schema-id"], metadata["last-column-id"]) == (1, 8)
    deep = nested({"id": 40, "name": "x", "type": {"type": "map", "key-id": 41, "key": "int", "value-id": 42, "value": "int"}})
    assert apply(metadata, [{"action": "add-schema", "schema": deep}, current], 0)["last-column-id"] == 42
    back = apply(metadata, [{"action": "add-schema", "schema": SCHEMA}, current], 0)
    assert (back["current-schema-id"], len(back["schemas"])) == (0, 2)
    fewer = apply(back, [{"action": "remove-schemas", "schema-ids": [1]}], 0)
    assert [schema["schema-id"] for schema in fewer["schemas"]] == [0]
    spec: Json = {"fields": [{"source-id": 1, "transform": "bucket[4]", "name": "id_bucket"}]}
    metadata = apply(metadata, [{"action": "add-spec", "spec": spec}, {"action": "set-default-spec", "spec-id": -1}], 0)
    assert (metadata["default-spec-id"], metadata["last-partition-id"]) == (1, 1000)
    assert metadata["partition-specs"][1]["fields"][0]["field-id"] == 1000
    order: Json = {"fields": [{"source-id": 1, "transform": "identity", "direction": "asc", "null-order": "nulls-first"}]}
    steps: list[Json] = [{"action": "add-sort-order", "sort-order": order}, {"action": "set-default-sort-order", "sort-order-id": -1}]
    metadata = apply(metadata, steps, 0)
    assert metadata["default-sort-order-id"] == 1
    for wrong in (
        [{"action": "set-current-schema", "schema-id": -1}],
        [{"action": "set-current-schema", "schema-id": 9}],
        [{"action": "remove-schemas", "schema-ids": [1]}],
        [{"action": "remove-partition-specs", "spec-ids": [1]}],
    ):
        with pytest.raises(ProjectError):
            apply(metadata, wrong, 0)


def test_identity_and_version_never_change() -> None:
    same: list[Json] = [{"action": "assign-uuid", "uuid": "u-1"}, {"action": "upgrade-format-version", "format-version": 3}]
    assert apply(table(), same, 0) == table()
    with pytest.raises(CommitConflict):
        apply(table(), [{"action": "assign-uuid", "uuid": "u-2"}], 0)
    with pytest.raises(ProjectError):
        apply(table(), [{"action": "upgrade-format-version", "format-version": 2}], 0)
    assert apply(table(), [{"action": "set-location", "location": "/other/"}], 0)["location"] == "/other"


@pytest.mark.parametrize(
    "update", [{"action": "drop-everything"}, {}, {"action": 3}, {"action": "add-snapshot"}, {"action": "set-properties"}]
)
def test_an_update_that_is_not_understood_is_refused(update: Json) -> None:
    with pytest.raises(ProjectError):
        apply(table(), [update], 0)


def test_history_keeps_the_last_files() -> None:
    metadata = table(properties={"write.metadata.previous-versions-max": "2"})
    dropped: list[str] = []
    for number in range(4):
        metadata, gone = with_history(metadata, f"f{number}", add(metadata, number + 1))
        dropped += gone
    assert [entry["metadata-file"] for entry in metadata["metadata-log"]] == ["f2", "f3"]
    assert dropped == ["f0", "f1"]


def test_pyiceberg_understands_the_metadata() -> None:
    metadata = table(**{"table-uuid": "f0e4c2f7-0000-4000-8000-000000000001"})
    assert TableMetadataUtil.parse_obj(metadata).current_snapshot() is None
    metadata = add(add(metadata, 11), 12)
    metadata = apply(metadata, [{"action": "remove-snapshots", "snapshot-ids": [11]}, {"action": "add-schema", "schema": SCHEMA}], 0)
    metadata, _ = with_history(table(), "/lake/t/metadata/00000-a.metadata.json", metadata)
    parsed = TableMetadataUtil.parse_obj(metadata)
    current = parsed.current_snapshot()
    assert current is not None
    assert (current.snapshot_id, current.sequence_number, parsed.format_version) == (12, 2, 3)
    assert [entry.snapshot_id for entry in parsed.snapshot_log] == [12]


SPEC: Json = {"spec-id": 0, "fields": [{"source-id": 1, "field-id": 1000, "name": "id_bucket", "transform": "bucket[4]"}]}
ORDER: Json = {
    "order-id": 1,
    "fields": [{"transform": "identity", "source-id": 1, "direction": "desc", "null-order": "nulls-last"}],
}


@pytest.mark.parametrize("format_version", [2, 3])
def test_a_table_is_made_as_it_is_asked_for(format_version: int) -> None:
    new = new_table("u-1", "/lake/t", SCHEMA, {}, 1, partition_spec=SPEC, sort_order=ORDER, format_version=format_version)
    assert (new["partition-specs"], new["default-spec-id"], new["last-partition-id"]) == ([SPEC], 0, 1000)
    assert (new["sort-orders"], new["default-sort-order-id"]) == ([ORDER], 1)
    assert ("next-row-id" in new) == (format_version == 3)
    theirs = TableMetadataUtil.parse_obj({**new, "table-uuid": "f79c3e09-677c-4bbd-a479-3f349cb785e7"})
    assert theirs.format_version == format_version
    assert str(theirs.spec().fields[0].transform) == "bucket[4]"


def test_a_layout_of_columns_that_are_not_there_is_refused() -> None:
    nowhere = {"fields": [{**SPEC["fields"][0], "source-id": 9}]}
    with pytest.raises(ProjectError, match="no field 9"):
        new_table("u-1", "/lake/t", SCHEMA, {}, 1, partition_spec=nowhere)
    with pytest.raises(ProjectError, match="no field 9"):
        new_table("u-1", "/lake/t", SCHEMA, {}, 1, sort_order=nowhere)
    with pytest.raises(ProjectError, match="no format version 4"):
        new_table("u-1", "/lake/t", SCHEMA, {}, 1, format_version=4)


def test_version_2_has_no_row_ids() -> None:
    base = new_table("u-1", "/lake/t", SCHEMA, {}, 1_000, format_version=2)
    made = {**snapshot(11, {**base, "next-row-id": 0}, **{"first-row-id": None, "added-rows": None})}
    after = apply(base, [{"action": "add-snapshot", "snapshot": made}, main(11)], 0)
    assert "next-row-id" not in after
    assert after["last-sequence-number"] == 1
    with pytest.raises(ProjectError, match="no row ids"):
        apply(base, [{"action": "add-snapshot", "snapshot": {**made, "first-row-id": 0, "added-rows": 1}}], 0)


def grown() -> Json:
    """A table with two snapshots, one after the other."""
    base = new_table("u-1", "/lake/t", SCHEMA, {"a": "b"}, 1_000)
    for ident, parent in ((11, None), (12, 11)):
        made = {**snapshot(ident, base), **({"parent-snapshot-id": parent} if parent else {})}
        base = apply(base, [{"action": "add-snapshot", "snapshot": made}, main(ident)], 0)
    return base


def test_what_was_stored_is_read_as_it_was() -> None:
    for metadata in (grown(), new_table("u-1", "/lake/t", SCHEMA, {}, 1_000, format_version=2)):
        assert read(orjson.dumps(metadata)) == metadata


DEEP: Any = "int"
for _ in range(150):
    DEEP = {"type": "list", "element-id": 9, "element": DEEP, "element-required": False}


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (["location"], None, "location is 'None'"),
        (["current-schema-id"], True, "current-schema-id is 'True'"),
        (["current-schema-id"], 7, "current-schema-id is 7"),
        (["properties"], {"a": 1}, "a is"),
        (["refs", "main"], 5, "main is no object"),
        (["refs", "main", "snapshot-id"], 13, "main is at a snapshot that is not there"),
        (["schemas", 0, "fields", 0, "type"], DEEP, "nested more than"),
        (["snapshots"], {}, "snapshots is no list"),
        # Whoever looks for the marker goes from parent to parent.
        (["snapshots", 0, "parent-snapshot-id"], 12, "does not follow its parent"),
        (["snapshots", 0, "parent-snapshot-id"], {}, "does not follow its parent"),
        (["snapshots", 1, "snapshot-id"], 11, "twice"),
        (["last-sequence-number"], 1, "after last-sequence-number"),
        (["next-row-id"], 1 << 63, "next-row-id is"),
    ],
)
def test_what_was_stored_and_contradicts_itself_is_not_read(path: list[Any], value: Any, why: str) -> None:
    metadata = copy.deepcopy(grown())
    inner: Any = metadata
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=why):
        read(orjson.dumps(metadata))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"null", b'{"format-version": 3}'])
def test_what_is_no_metadata_is_not_read(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read(text)
