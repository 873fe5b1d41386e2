"""The guard where it stands: between an HTTP request and the pointer. What each rule is, ``tests/unit/tables/test_guard.py`` has."""

import json
import os
from pathlib import Path
from typing import Any

import orjson

from icelake.bench.append import SCHEMA, Rest, Writer, data_file, rest
from icelake.model.location import canonical
from icelake.ports import Json
from tests.provoked import said
from tests.rest.conftest import Served, serving

TABLE = "namespaces/shop/tables/t"


class Tampering(Rest):
    """A catalog whose client is broken: what it is about to send, and what it wrote, is changed on the way."""

    wrong: Any
    answer: Json

    def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, bytes]:
        if method == "POST" and body is not None:
            self.wrong(body["updates"][0]["snapshot"])
        status, answer = super().ask(method, path, body)
        self.answer = orjson.loads(answer) if answer else {}
        # A conflict is tried again, by a writer; here nobody else commits.
        return 400 if status == 409 else status, answer


def append(served: Served, wrong: Any = lambda _: None) -> Json:
    """One commit of a real writer, or what it is told of it."""
    with rest(served.uri) as catalog:
        tampering = Tampering(catalog.connection)
        tampering.wrong = wrong
        writer = Writer(tampering, data_file())
        try:
            writer.append(TABLE, 1000)
        except RuntimeError:
            error: Json = tampering.answer["error"]
            return error
    return {}


def shop(served: Served) -> Served:
    served.made("POST", "namespaces", {"namespace": ["shop"]})
    served.made("POST", "namespaces/shop/tables", {"name": "t", "schema": SCHEMA})
    return served


def no_list(snapshot: Json) -> None:
    os.unlink(canonical(snapshot["manifest-list"]))


def torn_list(snapshot: Json) -> None:
    file = Path(canonical(snapshot["manifest-list"]))
    file.write_bytes(file.read_bytes()[:-20])


def no_manifest(snapshot: Json) -> None:
    for file in Path(canonical(snapshot["manifest-list"])).parent.glob("*-m0.avro"):
        file.unlink()


def no_data(snapshot: Json) -> None:
    for file in (Path(canonical(snapshot["manifest-list"])).parent.parent / "data").glob("*.parquet"):
        file.unlink()


def no_operation(snapshot: Json) -> None:
    snapshot["summary"]["operation"] = "none"


def test_what_would_break_a_table_is_refused_with_its_rule(guarded: Served) -> None:
    shop(guarded)
    for wrong in (no_list, torn_list, no_manifest, no_data, no_operation):
        before = guarded.made("GET", TABLE)
        error = append(guarded, wrong)
        assert (error["code"], error["type"]) == (400, "BadRequestException"), (wrong, error)
        assert "icelake: COMMIT_BREAKS_TABLE" in error["stack"]
        said(json.dumps(error))
        after = guarded.made("GET", TABLE)
        assert after == before, wrong
    files = {path.name for path in guarded.warehouse.rglob("*.metadata.json")}
    assert files == {Path(guarded.made("GET", TABLE)["metadata-location"]).name}
    for number in range(3):
        assert append(guarded) == {}
        assert len(guarded.made("GET", TABLE)["metadata"]["snapshots"]) == number + 1


def test_nothing_is_read_outside_the_warehouse(guarded: Served, tmp_path: Path) -> None:
    """Of a table that is being moved there: its location is refused before anything below it is looked at."""
    shop(guarded)
    secret = tmp_path / "secret.avro"
    secret.write_text("secret")
    sent: list[Json] = []
    append(guarded, sent.append)
    first = sent[0]
    next_one = {
        **first,
        "snapshot-id": 7,
        "sequence-number": first["sequence-number"] + 1,
        "parent-snapshot-id": first["snapshot-id"],
        "manifest-list": str(secret),
    }
    add: Json = {"action": "add-snapshot", "snapshot": next_one}
    move: Json = {"action": "set-location", "location": str(tmp_path)}
    assert guarded.ask("POST", TABLE, {"requirements": [], "updates": [move, add]}).code == "CATALOG_LOCATION"
    assert guarded.ask("POST", TABLE, {"requirements": [], "updates": [add]}).code == "COMMIT_BREAKS_TABLE"


def test_a_commit_over_two_tables_is_refused_whole(guarded: Served) -> None:
    """The first table's part is right."""
    shop(guarded)
    guarded.made("POST", "namespaces/shop/tables", {"name": "u", "schema": SCHEMA})
    sent: list[Json] = []

    def keep(snapshot: Json) -> None:
        sent.append(dict(snapshot))
        snapshot["manifest-list"] += "x"

    append(guarded, keep)
    right = {"action": "add-snapshot", "snapshot": sent[0]}
    place = guarded.made("GET", "namespaces/shop/tables/u")["metadata"]["location"]
    wrong = {"action": "add-snapshot", "snapshot": {**sent[0], "manifest-list": f"{place}/metadata/none.avro"}}
    changes = [
        {"identifier": {"namespace": ["shop"], "name": name}, "requirements": [], "updates": [update]}
        for name, update in (("t", right), ("u", wrong))
    ]
    refused = guarded.ask("POST", "transactions/commit", {"table-changes": changes})
    assert refused.code == "COMMIT_BREAKS_TABLE"
    for name in ("t", "u"):
        assert guarded.made("GET", f"namespaces/shop/tables/{name}")["metadata"]["snapshots"] == []
    assert guarded.ask("POST", "transactions/commit", {"table-changes": changes[:1]}).status == 204


def test_a_policy_makes_it_a_warning(tmp_path: Path) -> None:
    with serving(tmp_path, guard="warn") as (uri, _):
        served = shop(Served(uri, tmp_path))
        assert append(served, no_data) == {}
        assert len(served.made("GET", TABLE)["metadata"]["snapshots"]) == 1
