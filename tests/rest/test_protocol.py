"""The routes of the REST specification, one by one: what they answer, and what they refuse."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from icelake.ports import Json
from tests.provoked import said as words
from tests.rest.conftest import ENVIRONMENT, ICELAKE, Served, part, serving

SCHEMA: Json = {
    "type": "struct",
    "schema-id": 7,
    "fields": [
        {"id": 10, "name": "id", "required": True, "type": "long"},
        {"id": 20, "name": "name", "required": False, "type": "string"},
    ],
    "identifier-field-ids": [10],
}
VERSION: Json = {
    "version-id": 1,
    "timestamp-ms": 1,
    "schema-id": 0,
    "summary": {"engine-name": "x"},
    "default-namespace": ["shop"],
    "representations": [{"type": "sql", "sql": "select 1 as id", "dialect": "spark"}],
}
SPARK_AND_TRINO = [*VERSION["representations"], {"type": "sql", "sql": "select 1 id", "dialect": "trino"}]


@pytest.fixture
def shop(served: Served) -> Served:
    served.made("POST", "namespaces", {"namespace": ["shop"]})
    return served


def make(served: Served, name: str, namespace: str = "shop", **more: Any) -> Json:
    made: Json = served.made("POST", f"namespaces/{part(namespace)}/tables", {"name": name, "schema": SCHEMA, **more})
    return made


def snapshot(metadata: Json, ident: int, **changes: Any) -> list[Json]:
    """The updates of an empty append."""
    made = {
        "snapshot-id": ident,
        "sequence-number": metadata["last-sequence-number"] + 1,
        "timestamp-ms": metadata["last-updated-ms"],
        "manifest-list": f"{metadata['location']}/metadata/{ident}.avro",
        "summary": {"operation": "append"},
        "schema-id": 0,
        **changes,
    }
    return [
        {"action": "add-snapshot", "snapshot": made},
        {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": ident},
    ]


def unmoved(ident: int | None = None) -> Json:
    return {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": ident}


def test_what_is_there_is_what_is_advertised(served: Served) -> None:
    config = served.made("GET", "config")
    assert "POST /v1/{prefix}/transactions/commit" in config["endpoints"]
    for endpoint in config["endpoints"]:
        method, path = endpoint.split(" ")
        for name in ("{namespace}", "{table}", "{view}"):
            path = path.replace(name, "nothing")
        said = served.ask(method, path.removeprefix("/v1/{prefix}/"), None if method in ("GET", "HEAD", "DELETE") else {})
        assert said.status in (200, 400, 404), (endpoint, said)
        assert said.status != 404 or method == "HEAD" or said.error != "NotFoundException", endpoint


def test_namespaces(served: Served) -> None:
    assert served.made("GET", "namespaces")["namespaces"] == []
    made = served.made("POST", "namespaces", {"namespace": ["a"], "properties": {"owner": "me"}})
    assert made == {"namespace": ["a"], "properties": {"owner": "me"}}
    assert served.ask("POST", "namespaces", {"namespace": ["a"]}).error == "AlreadyExistsException"
    assert served.ask("POST", "namespaces", {"namespace": ["x", "y"]}).error == "NoSuchNamespaceException"
    for levels in (["a", "b"], ["a", "b", "c.d"], ["a", "e"], ["a b"]):
        served.made("POST", "namespaces", {"namespace": levels})
    assert served.made("GET", "namespaces")["namespaces"] == [["a"], ["a b"]]
    assert served.made("GET", "namespaces?parent=a")["namespaces"] == [["a", "b"], ["a", "e"]]
    assert served.made("GET", f"namespaces?parent={part('a', 'b')}")["namespaces"] == [["a", "b", "c.d"]]
    assert served.ask("GET", "namespaces?parent=none").error == "NoSuchNamespaceException"
    assert served.made("GET", f"namespaces/{part('a', 'b', 'c.d')}") == {"namespace": ["a", "b", "c.d"], "properties": {}}
    assert [served.ask("HEAD", f"namespaces/{name}").status for name in ("a", "b")] == [204, 404]
    changed = served.made("POST", "namespaces/a/properties", {"removals": ["owner", "none"], "updates": {"size": "1"}})
    assert changed == {"updated": ["size"], "removed": ["owner"], "missing": ["none"]}
    assert served.made("GET", "namespaces/a")["properties"] == {"size": "1"}
    assert served.ask("POST", "namespaces/a/properties", {"removals": ["x"], "updates": {"x": "1"}}).status == 422
    assert served.ask("DELETE", "namespaces/a").error == "NamespaceNotEmptyException"
    assert served.ask("DELETE", f"namespaces/{part('a', 'e')}").status == 204
    assert served.ask("DELETE", f"namespaces/{part('a', 'e')}").error == "NoSuchNamespaceException"


@pytest.mark.parametrize("levels", [[], [""], "a", [1], ["a\x1fb"], None])
def test_what_is_no_namespace(served: Served, levels: Any) -> None:
    assert served.ask("POST", "namespaces", {"namespace": levels}).error == "BadRequestException"


def test_pages(shop: Served) -> None:
    names = [f"t{n:02d}" for n in range(7)]
    for name in names:
        make(shop, name)
    whole = shop.made("GET", "namespaces/shop/tables")
    assert [one["name"] for one in whole["identifiers"]] == names
    assert whole["next-page-token"] is None
    found, token = [], ""
    while token is not None:
        page = shop.made("GET", f"namespaces/shop/tables?pageToken={token}&pageSize=3")
        assert len(page["identifiers"]) <= 3
        found += [one["name"] for one in page["identifiers"]]
        token = page["next-page-token"]
    assert found == names
    assert shop.ask("GET", "namespaces/shop/tables?pageSize=0").error == "BadRequestException"
    assert shop.ask("GET", "namespaces/none/tables").error == "NoSuchNamespaceException"


def test_metadata_files_are_where_the_table_says_and_must_be_there(shop: Served) -> None:
    place = f"{shop.warehouse.resolve()}/t"
    made = make(shop, "t", location=place, properties={"write.metadata.path": f"{place}/else"})
    assert Path(made["metadata-location"]).parent == Path(f"{place}/else")
    Path(made["metadata-location"]).rename(f"{place}/gone")
    said = shop.ask("GET", "namespaces/shop/tables/t")
    assert said.error == "NotFoundException"
    assert made["metadata-location"] in said.body["error"]["message"]
    Path(f"{place}/gone").rename(made["metadata-location"])
    assert shop.made("GET", "namespaces/shop/tables/t")["metadata"] == made["metadata"]
    # A path and the same as a URI are one place.
    said = shop.ask("POST", "namespaces/shop/tables", {"name": "u", "schema": SCHEMA, "location": f"file://{place}"})
    assert said.error == "AlreadyExistsException"
    other = make(shop, "u", location=f"file:{place}2")
    assert other["metadata-location"].startswith(f"file:{place}2/metadata/")
    assert Path(f"{place}2/metadata").is_dir()


def test_a_table_from_its_beginning_to_its_end(shop: Served) -> None:
    made = make(shop, "t", properties={"a": "1", "format-version": "3", "uuid": "x"})
    metadata = made["metadata"]
    assert (metadata["format-version"], metadata["properties"], metadata["next-row-id"]) == (3, {"a": "1"}, 0)
    # Ids are the catalog's.
    assert [field["id"] for field in metadata["schemas"][0]["fields"]] == [1, 2]
    assert metadata["schemas"][0]["identifier-field-ids"] == [1]
    assert json.loads(Path(made["metadata-location"]).read_text()) == metadata
    assert shop.made("GET", "namespaces/shop/tables/t")["metadata"] == metadata
    assert shop.ask("HEAD", "namespaces/shop/tables/t").status == 204
    said = shop.ask("POST", "namespaces/shop/tables", {"name": "t", "schema": SCHEMA})
    assert said.error == "AlreadyExistsException"
    change = {"requirements": [unmoved()], "updates": snapshot(metadata, 11, **{"first-row-id": 0, "added-rows": 3})}
    after = shop.made("POST", "namespaces/shop/tables/t", change)
    assert after["metadata"]["current-snapshot-id"] == 11
    assert after["metadata"]["next-row-id"] == 3
    assert shop.ask("POST", "namespaces/shop/tables/t", change).error == "CommitFailedException"
    served = shop.made("POST", "tables/rename", {"source": ident("t"), "destination": ident("u")})
    assert served is None
    assert shop.ask("GET", "namespaces/shop/tables/t").error == "NoSuchTableException"
    assert shop.made("GET", "namespaces/shop/tables/u")["metadata"] == after["metadata"]
    make(shop, "t")
    assert shop.ask("POST", "tables/rename", {"source": ident("u"), "destination": ident("t")}).error == "AlreadyExistsException"
    nowhere = {"namespace": ["none"], "name": "t"}
    assert shop.ask("POST", "tables/rename", {"source": ident("u"), "destination": nowhere}).error == "NoSuchNamespaceException"
    assert shop.ask("DELETE", "namespaces/shop/tables/u").status == 204
    assert Path(made["metadata-location"]).exists()
    registered = shop.made("POST", "namespaces/shop/register", {"name": "back", "metadata-location": after["metadata-location"]})
    assert registered["metadata"]["current-snapshot-id"] == 11
    assert shop.ask("DELETE", "namespaces/shop/tables/back?purgeRequested=true").status == 204
    assert not Path(made["metadata-location"]).exists()
    assert shop.ask("DELETE", "namespaces/shop/tables/back").error == "NoSuchTableException"


def test_an_error_has_a_code_for_people(shop: Served) -> None:
    make(shop, "t")
    view = {"name": "v", "schema": SCHEMA, "view-version": VERSION}
    shop.made("POST", "namespaces/shop/views", view)
    twice = {**VERSION, "representations": VERSION["representations"] * 2}
    for method, path, body, code in (
        ("GET", "namespaces/none", None, "NO_SUCH_NAMESPACE"),
        ("POST", "namespaces", {"namespace": ["shop"]}, "NAMESPACE_EXISTS"),
        ("DELETE", "namespaces/shop", None, "NAMESPACE_NOT_EMPTY"),
        ("GET", "namespaces/shop/tables/none", None, "NO_SUCH_TABLE"),
        ("POST", "namespaces/shop/tables", {"name": "t", "schema": SCHEMA}, "TABLE_EXISTS"),
        ("POST", "namespaces/shop/tables", {"name": "x", "schema": SCHEMA, "location": "/etc"}, "CATALOG_LOCATION"),
        ("GET", "namespaces/shop/views/none", None, "NO_SUCH_VIEW"),
        ("POST", "namespaces/shop/views", view, "VIEW_EXISTS"),
        ("POST", "namespaces/shop/views", {**view, "name": "w", "view-version": twice}, "VIEW_IMPOSSIBLE"),
    ):
        assert shop.ask(method, path, body).code == code


def ident(name: str) -> Json:
    return {"namespace": ["shop"], "name": name}


def test_a_staged_table_is_made_by_its_first_commit(shop: Served) -> None:
    request = {"name": "t", "schema": SCHEMA, "stage-create": True}
    staged = shop.made("POST", "namespaces/shop/tables", request)
    assert "metadata-location" not in staged
    assert shop.ask("GET", "namespaces/shop/tables/t").error == "NoSuchTableException"
    metadata = staged["metadata"]
    updates = [
        {"action": "assign-uuid", "uuid": metadata["table-uuid"]},
        {"action": "upgrade-format-version", "format-version": 2},
        {"action": "add-schema", "schema": metadata["schemas"][0]},
        {"action": "set-current-schema", "schema-id": -1},
        {"action": "add-spec", "spec": metadata["partition-specs"][0]},
        {"action": "set-default-spec", "spec-id": -1},
        {"action": "add-sort-order", "sort-order": metadata["sort-orders"][0]},
        {"action": "set-default-sort-order", "sort-order-id": -1},
        {"action": "set-location", "location": metadata["location"]},
        {"action": "set-properties", "updates": {"a": "b"}},
        *snapshot(metadata, 5),
    ]
    create = {"requirements": [{"type": "assert-create"}], "updates": updates}
    for missing in ("assign-uuid", "add-schema", "set-location"):
        fewer = [update for update in updates if update["action"] != missing]
        assert shop.ask("POST", "namespaces/shop/tables/t", {**create, "updates": fewer}).error == "BadRequestException"
    made = shop.made("POST", "namespaces/shop/tables/t", create)["metadata"]
    kept = ("table-uuid", "location", "schemas", "partition-specs", "sort-orders", "last-column-id", "last-partition-id")
    assert {key: made[key] for key in kept} == {key: metadata[key] for key in kept}
    assert (made["current-snapshot-id"], made["properties"]) == (5, {"a": "b"})
    assert shop.ask("POST", "namespaces/shop/tables/t", create).error == "CommitFailedException"


def test_a_transaction_is_whole_or_not_at_all(shop: Served) -> None:
    before = {name: make(shop, name)["metadata"] for name in ("a", "b")}

    def changes(second: int | None) -> Json:
        return {
            "table-changes": [
                {"identifier": ident("a"), "requirements": [unmoved()], "updates": snapshot(before["a"], 1)},
                {"identifier": ident("b"), "requirements": [unmoved(second)], "updates": snapshot(before["b"], 2)},
            ]
        }

    assert shop.ask("POST", "transactions/commit", changes(99)).error == "CommitFailedException"
    assert all(shop.made("GET", f"namespaces/shop/tables/{name}")["metadata"] == before[name] for name in before)
    files = sorted(shop.warehouse.rglob("*.metadata.json"))
    assert len(files) == 2
    assert shop.ask("POST", "transactions/commit", changes(None)).status == 204
    assert [shop.made("GET", f"namespaces/shop/tables/{name}")["metadata"]["current-snapshot-id"] for name in before] == [1, 2]
    assert shop.ask("POST", "transactions/commit", {"table-changes": []}).error == "BadRequestException"
    twice = changes(None)["table-changes"][:1] * 2
    assert shop.ask("POST", "transactions/commit", {"table-changes": twice}).error == "BadRequestException"


def test_an_answer_that_is_known_is_not_sent_again(shop: Served) -> None:
    make(shop, "t")
    first = shop.ask("GET", "namespaces/shop/tables/t")
    tag = first.headers["etag"]
    assert shop.ask("GET", "namespaces/shop/tables/t", headers={"If-None-Match": tag}).status == 304
    assert shop.ask("GET", "namespaces/shop/tables/t?snapshots=refs", headers={"If-None-Match": tag}).status == 200
    change = {"requirements": [], "updates": [{"action": "set-properties", "updates": {"a": "1"}}]}
    shop.made("POST", "namespaces/shop/tables/t", change)
    assert shop.ask("GET", "namespaces/shop/tables/t", headers={"If-None-Match": f'"x", {tag}'}).status == 200


def test_only_the_snapshots_that_are_named(shop: Served) -> None:
    metadata = make(shop, "t")["metadata"]
    for number in (1, 2):
        metadata = shop.made("POST", "namespaces/shop/tables/t", {"updates": snapshot(metadata, number)})["metadata"]
    shown = shop.made("GET", "namespaces/shop/tables/t?snapshots=refs")["metadata"]["snapshots"]
    assert [one["snapshot-id"] for one in shown] == [2]
    assert shop.ask("GET", "namespaces/shop/tables/t?snapshots=some").error == "BadRequestException"


@pytest.mark.parametrize(
    "change",
    [
        {"updates": [{"action": "frobnicate"}]},
        {"updates": [{"no": "action"}]},
        {"updates": {"action": "set-properties"}},
        {"updates": ["set-properties"]},
        {"requirements": [{"type": "assert-the-moon"}], "updates": []},
        {"updates": [{"action": "upgrade-format-version", "format-version": 1}]},
        {"updates": [{"action": "upgrade-format-version", "format-version": 4}]},
        {"updates": [{"action": "set-location", "location": "/etc"}]},
    ],
)
def test_what_is_not_understood_is_refused(shop: Served, change: Json) -> None:
    before = make(shop, "t")["metadata"]
    assert shop.ask("POST", "namespaces/shop/tables/t", change).error == "BadRequestException"
    assert shop.made("GET", "namespaces/shop/tables/t")["metadata"] == before


def test_versions_only_go_up(shop: Served) -> None:
    metadata = make(shop, "t", properties={"format-version": "1"})["metadata"]
    assert metadata["schema"] == metadata["schemas"][0]
    old = {key: value for key, value in snapshot(metadata, 1)[0]["snapshot"].items() if key != "sequence-number"}
    updates = [{"action": "add-snapshot", "snapshot": old}, snapshot(metadata, 1)[1]]
    shop.made("POST", "namespaces/shop/tables/t", {"updates": updates})
    for version in (2, 3):
        update = {"action": "upgrade-format-version", "format-version": version}
        metadata = shop.made("POST", "namespaces/shop/tables/t", {"updates": [update]})["metadata"]
        assert metadata["format-version"] == version
    assert "schema" not in metadata
    assert metadata["next-row-id"] == 0
    new = snapshot(metadata, 2, **{"first-row-id": 0, "added-rows": 1, "parent-snapshot-id": 1})
    shop.made("POST", "namespaces/shop/tables/t", {"updates": new})
    assert shop.made("GET", "namespaces/shop/tables/t")["metadata"]["last-sequence-number"] == 1


def test_views(shop: Served) -> None:
    request = {"name": "v", "schema": SCHEMA, "view-version": VERSION, "properties": {"a": "1"}}
    made = shop.made("POST", "namespaces/shop/views", request)["metadata"]
    assert (made["current-version-id"], made["format-version"]) == (1, 1)
    assert shop.ask("POST", "namespaces/shop/views", request).error == "AlreadyExistsException"
    # Tables and views share their names.
    assert shop.ask("POST", "namespaces/shop/tables", {"name": "v", "schema": SCHEMA}).error == "AlreadyExistsException"
    make(shop, "t")
    assert shop.ask("POST", "namespaces/shop/views", {**request, "name": "t"}).error == "AlreadyExistsException"
    assert shop.ask("GET", "namespaces/shop/tables/v").error == "NoSuchTableException"
    assert shop.ask("GET", "namespaces/shop/views/t").error == "NoSuchViewException"
    assert [one["name"] for one in shop.made("GET", "namespaces/shop/views")["identifiers"]] == ["v"]
    assert [one["name"] for one in shop.made("GET", "namespaces/shop/tables")["identifiers"]] == ["t"]
    uuid = {"type": "assert-view-uuid", "uuid": made["view-uuid"]}

    def replace(*representations: Json, **more: Any) -> Json:
        version = {**VERSION, "version-id": 2, "schema-id": -1, "representations": list(representations), **more}
        return {
            "requirements": [uuid],
            "updates": [
                {"action": "add-schema", "schema": SCHEMA},
                {"action": "add-view-version", "view-version": version},
                {"action": "set-current-view-version", "view-version-id": -1},
            ],
        }

    changed = shop.made("POST", "namespaces/shop/views/v", replace(*SPARK_AND_TRINO))["metadata"]
    assert (changed["current-version-id"], len(changed["versions"]), len(changed["schemas"])) == (2, 2, 1)
    said = shop.ask("POST", "namespaces/shop/views/v", replace(SPARK_AND_TRINO[1]))
    assert said.error == "IllegalArgumentException"
    assert said.body["error"]["message"].endswith(": spark")
    assert shop.ask("POST", "namespaces/shop/views/v", replace(SPARK_AND_TRINO[0], SPARK_AND_TRINO[0])).error == "IllegalArgumentException"
    for update in (
        {"action": "set-properties", "updates": {"b": "2", "version.history.num-entries": "2"}},
        {"action": "remove-properties", "removals": ["a"]},
        {"action": "set-location", "location": f"{made['location']}/moved"},
        {"action": "upgrade-format-version", "format-version": 1},
        {"action": "assign-uuid", "uuid": made["view-uuid"]},
    ):
        shop.made("POST", "namespaces/shop/views/v", {"requirements": [uuid], "updates": [update]})
    for number in range(3, 7):
        sql = {"type": "sql", "sql": f"select {number} as id", "dialect": "spark"}
        changed = shop.made("POST", "namespaces/shop/views/v", replace(sql, SPARK_AND_TRINO[1]))["metadata"]
    assert [version["version-id"] for version in changed["versions"]] == [5, 6]
    assert [entry["version-id"] for entry in changed["version-log"]] == [5, 6]
    assert changed["properties"] == {"b": "2", "version.history.num-entries": "2"}
    other = {"type": "assert-view-uuid", "uuid": "00000000-0000-0000-0000-000000000000"}
    assert shop.ask("POST", "namespaces/shop/views/v", {"requirements": [other], "updates": []}).error == "CommitFailedException"
    for bad in (
        {"requirements": [unmoved()]},
        {"updates": [{"action": "add-snapshot"}]},
        {"updates": [{"action": "set-current-view-version"}]},
    ):
        assert shop.ask("POST", "namespaces/shop/views/v", bad).error == "BadRequestException"
    shop.made("POST", "views/rename", {"source": ident("v"), "destination": ident("w")})
    where = shop.made("GET", "namespaces/shop/views/w")["metadata-location"]
    again = {"name": "x", "metadata-location": where}
    assert shop.ask("POST", "namespaces/shop/register-view", again).error == "AlreadyExistsException"
    assert shop.ask("POST", "namespaces/shop/register-view", {**again, "name": "w"}).error == "AlreadyExistsException"
    assert shop.ask("POST", "views/rename", {"source": ident("v"), "destination": ident("x")}).error == "NoSuchViewException"
    assert shop.ask("POST", "views/rename", {"source": ident("w"), "destination": ident("t")}).error == "AlreadyExistsException"
    assert [shop.ask("HEAD", f"namespaces/shop/views/{name}").status for name in ("v", "w")] == [404, 204]
    assert shop.ask("DELETE", "namespaces/shop").error == "NamespaceNotEmptyException"
    assert shop.ask("DELETE", "namespaces/shop/views/w").status == 204
    assert shop.ask("DELETE", "namespaces/shop/views/w").error == "NoSuchViewException"
    assert shop.made("POST", "namespaces/shop/register-view", again)["metadata"]["current-version-id"] == 6
    junk = shop.warehouse.resolve() / "junk.json"
    junk.write_text('{"versions": []}')
    said = shop.ask("POST", "namespaces/shop/register-view", {"name": "y", "metadata-location": str(junk)})
    assert said.error == "BadRequestException"


NAMES = [
    "a/b",
    "..",
    ".",
    "*",
    "%",
    "%2F",
    "a b",
    "a.b",
    "a?b",
    "a#b",
    "é",
    "а",
    "a\\b",
    "'; drop table x",
    "\u202e",
    "x" * 200,
    "CON",
    "a\nb",
]


def test_names_are_only_names(served: Served) -> None:
    """Whatever they are, they are found again, and their files are below the warehouse, apart from all others."""
    for name in NAMES:
        served.made("POST", "namespaces", {"namespace": [name]})
        made = make(served, name, name)
        assert served.made("GET", f"namespaces/{part(name)}/tables/{part(name)}")["metadata"] == made["metadata"]
        place = Path(made["metadata"]["location"])
        assert place.resolve().is_relative_to(served.warehouse.resolve())
        assert Path(made["metadata-location"]).is_file()
        assert served.made("GET", f"namespaces/{part(name)}/tables")["identifiers"] == [{"namespace": [name], "name": name}]
    assert sorted(levels[0] for levels in served.made("GET", "namespaces")["namespaces"]) == sorted(NAMES)
    assert len({path.parent for path in served.warehouse.rglob("*.metadata.json")}) == len(NAMES)


def test_locations_are_the_table_s_own(shop: Served) -> None:
    """Who may make a table may not reach what is not one: outside the warehouse, or in another table."""
    warehouse = shop.warehouse.resolve()
    mine = make(shop, "t", location=f"{warehouse}/here")["metadata"]
    assert mine["location"] == f"{warehouse}/here"
    outside = ["/etc", f"{warehouse}", f"{warehouse}/../x", f"{warehouse}x/y", f"{warehouse}/a/./b", f"{warehouse}//b", "relative"]
    outside += [f"{warehouse}/%2e%2e/x", "s3://bucket/x", "file:///etc", f"{warehouse}/a/.."]
    for location in outside:
        said = shop.ask("POST", "namespaces/shop/tables", {"name": "x", "schema": SCHEMA, "location": location})
        assert said.error == "BadRequestException", location
        change = {"updates": [{"action": "set-location", "location": location}]}
        assert shop.ask("POST", "namespaces/shop/tables/t", change).error == "BadRequestException", location
        for name in ("write.data.path", "write.metadata.path", "write.object-storage.path", "write.folder-storage.path"):
            change = {"updates": [{"action": "set-properties", "updates": {name: location}}]}  # type: ignore[dict-item]
            assert shop.ask("POST", "namespaces/shop/tables/t", change).error == "BadRequestException", (name, location)
            said = shop.ask("POST", "namespaces/shop/tables", {"name": "x", "schema": SCHEMA, "properties": {name: location}})
            assert said.error == "BadRequestException", (name, location)
        register = {"name": "x", "metadata-location": f"{location}/metadata.json"}
        assert shop.ask("POST", "namespaces/shop/register", register).status in (400, 404, 422), location
        view = {"name": "x", "schema": SCHEMA, "view-version": VERSION, "location": location}
        assert shop.ask("POST", "namespaces/shop/views", view).error == "BadRequestException", location
    for location in (f"{warehouse}/here", f"{warehouse}/here/inside", f"{warehouse}/here/"):
        said = shop.ask("POST", "namespaces/shop/tables", {"name": "x", "schema": SCHEMA, "location": location})
        assert said.error == "AlreadyExistsException", location
    inside = {"updates": [{"action": "set-properties", "updates": {"write.data.path": f"{mine['location']}/elsewhere"}}]}
    shop.made("POST", "namespaces/shop/tables/t", inside)


def test_a_log_that_a_client_wrote_deletes_nothing_of_others(shop: Served) -> None:
    """Old metadata files are deleted as a table goes on; which they are stands in metadata that may have been registered."""
    victim = make(shop, "victim")["metadata-location"]
    place = Path(f"{shop.warehouse.resolve()}/mine")
    mine = make(shop, "mine", location=str(place))
    shop.made("DELETE", "namespaces/shop/tables/mine")
    own = place / "metadata" / "00000-old.metadata.json"
    own.write_text("{}")
    log = [{"metadata-file": name, "timestamp-ms": 1} for name in (victim, f"{place}/../{Path(victim).name}", "/etc/hostname", str(own))]
    forged = place / "metadata" / "forged.metadata.json"
    properties = {"write.metadata.previous-versions-max": "1", "write.metadata.delete-after-commit.enabled": "true"}
    forged.write_text(json.dumps({**mine["metadata"], "metadata-log": log, "properties": properties}))
    shop.made("POST", "namespaces/shop/register", {"name": "mine", "metadata-location": str(forged)})
    for value in "ab":
        change = {"updates": [{"action": "set-properties", "updates": {"x": value}}]}
        shop.made("POST", "namespaces/shop/tables/mine", change)
    assert Path(victim).exists()
    assert Path("/etc/hostname").exists()
    assert not own.exists()


def test_what_could_not_be_read_again_is_not_stored(shop: Served) -> None:
    before = make(shop, "t")["metadata"]
    made = snapshot(before, 1)[0]["snapshot"]
    deep: Any = 1
    for _ in range(230):
        deep = [deep]
    field = {"id": 3, "name": "x", "required": False, "type": "int"}
    broken: list[Json] = [
        {"action": "add-snapshot", "snapshot": {**made, "summary": {"operation": "append", "n": 1}}},
        {"action": "add-snapshot", "snapshot": {**made, "parent-snapshot-id": "x"}},
        {"action": "add-snapshot", "snapshot": {**made, "timestamp-ms": 1 << 62}},
        {"action": "add-snapshot", "snapshot": {**made, "timestamp-ms": before["last-updated-ms"] + 10**9}},
        {"action": "add-snapshot", "snapshot": {**made, "junk": deep}},
        {"action": "add-sort-order", "sort-order": {"fields": [{"source-id": 1}]}},
        {"action": "add-schema", "schema": {"type": "struct", "fields": [{**field, "type": 5}]}},
        {"action": "add-schema", "schema": {"type": "struct", "fields": [{**field, "id": 1 << 62}]}},
        {"action": "add-schema", "schema": {"type": "struct", "fields": [{"name": "x", "type": "int"}]}},
        {"action": "add-schema", "schema": {"type": "struct", "fields": [5]}},
        {"action": "add-spec", "spec": {"fields": [{"source-id": 1, "name": "p", "transform": "identity", "field-id": "q"}]}},
        {"action": "add-spec", "spec": {"fields": [{"source-id": 99, "name": "p", "transform": "identity"}]}},
        {"action": "remove-snapshots", "snapshot-ids": [{}]},
        {"action": "remove-properties", "removals": [{}]},
        {"action": "set-properties", "updates": {"icelake.source": "mine"}},
    ]
    for update in [*broken, *[{"action": "set-location", "location": place} for place in (5, "x\0", "file://host/x")]]:
        said = shop.ask("POST", "namespaces/shop/tables/t", {"updates": [update]})
        assert said.error == "BadRequestException", (update, said)
    assert shop.ask("POST", "namespaces/shop/tables/t", {"updates": [broken[-1]] * 1001}).error == "BadRequestException"
    assert shop.made("GET", "namespaces/shop/tables/t")["metadata"] == before
    for more in ({"location": 5}, {"partition-spec": {"fields": [{"source-id": 10}]}}, {"properties": {"icelake.source": "x"}}):
        said = shop.ask("POST", "namespaces/shop/tables", {"name": "x", "schema": SCHEMA, **more})
        assert said.error == "BadRequestException", (more, said)
    assert shop.ask("POST", "namespaces/shop/properties", {"removals": 5}).error == "BadRequestException"
    assert shop.ask("GET", f"namespaces?pageSize={'9' * 5000}").error == "BadRequestException"
    # A table that is upgraded has snapshots without row ids.
    metadata = shop.made("POST", "namespaces/shop/tables/t", {"updates": snapshot(before, 1)})["metadata"]
    update = {"action": "upgrade-format-version", "format-version": 3}
    metadata = shop.made("POST", "namespaces/shop/tables/t", {"updates": [update]})["metadata"]
    again = shop.made("POST", "namespaces/shop/register", {"name": "u" * 300, "metadata-location": forge(shop, metadata)})
    assert again["metadata"]["format-version"] == 3
    for name in ("[]", '{"snapshots": 5}', '{"refs": []}', '{"partition-spec": [5]}', "[" * 220 + "]" * 220):
        place = shop.warehouse.resolve() / "broken.metadata.json"
        place.write_text(name)
        register = {"name": "v", "metadata-location": str(place)}
        assert shop.ask("POST", "namespaces/shop/register", register).error == "BadRequestException", name


def forge(served: Served, metadata: Json) -> str:
    """Metadata that somebody else wrote, of a table of its own."""
    folder = served.warehouse.resolve() / "forged"
    folder.mkdir(exist_ok=True)
    place = folder / "v1.metadata.json"
    place.write_text(json.dumps({**metadata, "location": str(folder), "table-uuid": "00000000-0000-0000-0000-000000000001"}))
    return str(place)


def test_nobody_makes_what_is_the_lake_s_own(shop: Served) -> None:
    served = shop
    served.made("POST", "namespaces", {"namespace": ["icelake"]})
    metadata = make(served, "t")["metadata"]
    view = {"name": "v", "schema": SCHEMA, "view-version": VERSION}
    served.made("POST", "namespaces/shop/views", view)
    control = {"namespace": ["icelake"], "name": "control_shop"}
    for method, path, body in (
        ("POST", "namespaces/icelake/tables", {"name": "control_shop", "schema": SCHEMA}),
        ("POST", "namespaces/icelake/views", {**view, "name": "control_shop"}),
        ("POST", "namespaces/icelake/register", {"name": "control_shop", "metadata-location": "x.metadata.json"}),
        ("POST", "namespaces/icelake/register-view", {"name": "control_shop", "metadata-location": "x.metadata.json"}),
        ("POST", "namespaces/icelake/tables/control_shop", {"requirements": [{"type": "assert-create"}], "updates": []}),
        ("POST", "tables/rename", {"source": ident("t"), "destination": control}),
        ("POST", "views/rename", {"source": ident("v"), "destination": control}),
    ):
        assert served.ask(method, path, body).code == "PROTECTED", path
    mirror = forge(served, {**metadata, "properties": {"icelake.source": "x"}})
    said = served.ask("POST", "namespaces/shop/register", {"name": "m", "metadata-location": mirror})
    assert said.error == "BadRequestException"


def test_where_a_table_was_nobody_else_comes_to_be(shop: Served) -> None:
    """There may be files of it still, which a purge of the other would delete."""
    warehouse = shop.warehouse.resolve()
    make(shop, "t", location=f"{warehouse}/one")
    change = {"updates": [{"action": "set-location", "location": f"{warehouse}/two"}]}
    shop.made("POST", "namespaces/shop/tables/t", change)
    for place in ("one", "one/inside", "two"):
        said = shop.ask("POST", "namespaces/shop/tables", {"name": "u", "schema": SCHEMA, "location": f"{warehouse}/{place}"})
        assert said.code == "LOCATION_TAKEN"
    shop.made("DELETE", "namespaces/shop/tables/t")
    make(shop, "u", location=f"{warehouse}/one")
    # Paths of its own are its own wherever it is.
    path = {"updates": [{"action": "set-properties", "updates": {"write.metadata.path": f"{warehouse}/one/m"}}]}
    shop.made("POST", "namespaces/shop/tables/u", path)
    assert shop.ask("POST", "namespaces/shop/tables/u", change).error == "BadRequestException"


def test_a_purge_leaves_what_others_may_need(shop: Served) -> None:
    kept = make(shop, "t", properties={"gc.enabled": "false"})["metadata-location"]
    shop.made("DELETE", "namespaces/shop/tables/t?purgeRequested=true")
    assert Path(kept).exists()


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    with serving(tmp_path) as (first, _), serving(tmp_path) as (second, _):
        one, other = Served(first, tmp_path), Served(second, tmp_path)
        one.made("POST", "namespaces", {"namespace": ["shop"]})
        metadata = make(one, "source")["metadata"]
        register = {"name": "t", "metadata-location": forge(one, metadata)}
        before = one.made("POST", "namespaces/shop/register", register)["metadata"]
        other.made("DELETE", "namespaces/shop/tables/t")
        place = Path(register["metadata-location"])
        place.write_text(json.dumps({**json.loads(place.read_text()), "table-uuid": "00000000-0000-0000-0000-000000000002"}))
        other.made("POST", "namespaces/shop/register", register)
        stale = {"requirements": [{"type": "assert-table-uuid", "uuid": before["table-uuid"]}], "updates": []}
        assert one.ask("POST", "namespaces/shop/tables/t", stale).error == "CommitFailedException"


def test_requests_are_bounded(shop: Served) -> None:
    assert shop.ask("POST", "namespaces", b"{").error == "BadRequestException"
    assert shop.ask("POST", "namespaces", b"[]").error == "BadRequestException"
    assert shop.ask("POST", "namespaces", b"\xff").error == "BadRequestException"
    assert shop.ask("POST", "namespaces", b"[" * 100_000).error == "BadRequestException"
    assert shop.ask("POST", "namespaces", b"", {"content-encoding": "gzip"}).status == 415
    assert shop.ask("POST", "namespaces", b'"' + b"x" * (65 << 20) + b'"').status == 413
    kind: Any = "long"
    for number in range(200):
        kind = {"type": "list", "element-id": 100 + number, "element": kind, "element-required": False}
    deep = {"type": "struct", "fields": [{"id": 1, "name": "a", "required": False, "type": kind}]}
    assert shop.ask("POST", "namespaces/shop/tables", {"name": "t", "schema": deep}).error == "BadRequestException"
    make(shop, "t")
    change = {"updates": [{"action": "add-schema", "schema": deep}]}
    assert shop.ask("POST", "namespaces/shop/tables/t", change).error == "BadRequestException"
    # What a web page could send, or ask under a name of its own.
    assert shop.ask("POST", "namespaces", {"namespace": ["a"]}, {"content-type": "text/plain"}).status == 415
    assert shop.ask("GET", "namespaces", headers={"host": "evil.example"}).status == 421
    assert shop.ask("GET", "namespaces", headers={"host": "localhost:1"}).status == 200
    assert shop.ask("PATCH", "namespaces").status == 405
    assert shop.ask("GET", "nowhere").error == "NotFoundException"
    assert shop.ask("GET", "../config").error == "NotFoundException"


def test_a_request_that_is_wrong_in_itself(shop: Served) -> None:
    for body in (
        {"name": "t"},
        {"schema": SCHEMA},
        {"name": "t", "schema": SCHEMA, "properties": {"a": 1}},
        {"name": "t", "schema": SCHEMA, "properties": {"format-version": "x"}},
        {"name": "t", "schema": SCHEMA, "properties": {"format-version": "9"}},
        {"name": "t", "schema": {"type": "struct"}},
        {"name": "t", "schema": SCHEMA, "partition-spec": {"fields": [{"source-id": 99, "name": "x", "transform": "identity"}]}},
        {"name": "t", "schema": SCHEMA, "write-order": {"fields": [{"transform": "identity"}]}},
    ):
        assert shop.ask("POST", "namespaces/shop/tables", body).error == "BadRequestException", body
    register = {"name": "t", "metadata-location": f"{shop.warehouse.resolve()}/none/x.metadata.json"}
    assert shop.ask("POST", "namespaces/shop/register", register).status in (404, 422)
    junk = shop.warehouse / "junk.json"
    junk.write_text("{}")
    register = {"name": "t", "metadata-location": str(junk.resolve())}
    assert shop.ask("POST", "namespaces/shop/register", register).error == "BadRequestException"


def test_what_the_applier_holds_is_served_too(tmp_path: Path) -> None:
    """A catalog of before has no namespaces of its own; they are those of its tables."""
    import sqlite3

    with serving(tmp_path) as (uri, _):
        served = Served(uri, tmp_path)
        served.made("POST", "namespaces", {"namespace": ["shop"]})
        make(served, "t")
    database = sqlite3.connect(tmp_path / "lake" / "catalog.db")
    database.executescript(
        "drop table namespaces; drop table former; drop table machine; alter table tables drop column kind; pragma user_version = 1"
    )
    database.close()
    with serving(tmp_path) as (uri, _):
        served = Served(uri, tmp_path)
        assert served.made("GET", "namespaces")["namespaces"] == [["shop"]]
        assert served.made("GET", "namespaces/shop/tables")["identifiers"] == [ident("t")]


def test_an_address_that_is_taken(served: Served) -> None:
    port = served.uri.rpartition(":")[2]
    command = [ICELAKE, "catalog", "serve", "-C", str(served.folder), "--port", port, "--json"]
    found = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert found.returncode == 4
    assert json.loads(words(found.stdout))["error"]["code"] == "ADDRESS_TAKEN"
    missing = [*command[:-2], "0", "--json", "--certificate", "none.pem"]
    found = subprocess.run(missing, capture_output=True, text=True, env=ENVIRONMENT)
    assert found.returncode == 2
    assert json.loads(words(found.stdout))["error"]["code"] == "BAD_CERTIFICATE"
    found = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, env=ENVIRONMENT)
    assert json.loads(words(found.stdout))["error"]["code"] == "NO_USERS"


def test_with_a_certificate(tmp_path: Path) -> None:
    import ssl
    from urllib.request import urlopen

    pair = tmp_path / "pair.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-keyout",
        str(tmp_path / "key.pem"),
        "-out",
        str(tmp_path / "cert.pem"),
        *subject,
    ]
    subprocess.run(new, check=True, capture_output=True)
    pair.write_text((tmp_path / "cert.pem").read_text() + (tmp_path / "key.pem").read_text())
    with serving(tmp_path, "--certificate", str(pair)) as (uri, _):
        assert uri.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        with urlopen(f"{uri}/v1/config", context=trusted) as answer:
            assert json.loads(answer.read())["defaults"] == {}
