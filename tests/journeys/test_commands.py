"""Every command on a live database: documents with the promised keys, the past, differences found, interruptions survived."""

import csv
import io
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest


def test_documents_have_the_promised_keys(still: Any) -> None:
    assert still.json("icelake query 'select id, email from customers order by id limit 2' --json") == {
        "engine": "duckdb",
        "columns": ["id", "email"],
        "types": ["int64", "string"],
        "rows": [[1, "c1@example.org"], [2, "c2@example.org"]],
    }
    tables = still.json("icelake tables --json")["tables"]
    assert [(table["name"], table["rows"], table["state"]) for table in tables] == [
        ("public.customers", 200, "following"),
        ("public.orders", 3000, "following"),
    ]
    orders = still.json("icelake tables orders --json")
    assert orders["key"] == ["id"]
    assert {column["name"]: column["type"] for column in orders["columns"]}["total"] == "decimal(12,2)"
    cut = still.json("icelake cuts --limit 1 --json")["cuts"][0]
    assert set(cut["tables"]) == {"public.customers", "public.orders"}
    (source,) = still.json("icelake status --json")["sources"]
    assert (source["source"], source["reachable"], source["cut"]) == ("shop", True, cut["cut"])
    assert still.json("icelake doctor --deep --json")["healthy"] is True
    report = still.json("icelake verify --json")
    assert report["equal"] is True
    assert [(table["name"], table["source_rows"], table["lake_rows"]) for table in report["tables"]] == [
        ("public.customers", 200, 200),
        ("public.orders", 3000, 3000),
    ]


@pytest.mark.parametrize("command", ["tables", "tables orders", "cuts", "status", "doctor", "verify", "query 'from orders limit 3'"])
def test_people_get_text(still: Any, command: str) -> None:
    done = still.run(f"icelake {command}")
    assert done.stdout
    assert "\x1b" not in done.stdout


def test_forms_of_an_answer(still: Any) -> None:
    sql = "select id, total, note from orders where id in (7, 8) order by id"
    text = still.run(f"icelake query '{sql}' --csv").stdout
    assert list(csv.reader(io.StringIO(text))) == [["id", "total", "note"], ["7", "0.07", ""], ["8", "0.08", "note 8"]]
    still.run(f"icelake query '{sql}' --arrow --output answer.arrow")
    table = pa.ipc.open_stream((still.folder / "answer.arrow").read_bytes()).read_all()
    assert table.schema.field("total").type == pa.decimal128(12, 2)
    still.run(f"icelake query '{sql}' --arrow > piped.arrow")
    assert (still.folder / "piped.arrow").read_bytes() == (still.folder / "answer.arrow").read_bytes()
    assert still.json(f"echo '{sql}' | icelake query - --json")["rows"] == [[7, "0.07", None], [8, "0.08", "note 8"]]
    assert "OUTPUT_NOT_WRITABLE" in still.run(f"icelake query '{sql}' --csv -o nowhere/x.csv", code=2).stderr
    assert still.run("icelake query 'from range(100000)' --csv | head -n 2", code=141).stdout == "range\n0\n"


def test_bad_sql_is_exit_2(still: Any) -> None:
    assert still.json("icelake query 'select * from ordres' --json", code=2)["error"]["code"] == "SQL_UNKNOWN_TABLE"
    assert still.json("icelake query 'selec' --json", code=2)["error"]["code"] == "SQL_ERROR"


def test_the_past_can_be_asked(shop: Any) -> None:
    before = shop.json("icelake cuts --limit 1 --json")["cuts"][0]
    time.sleep(1.1)  # a time between two commits, to the second
    between = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    shop.sql(
        "delete from orders where id <= 1000; update customers set email = 'gone' where id = 1; insert into customers values (0, 'new')"
    )
    after = shop.json("icelake sync --json")
    count = "select count(*), (select count(*) from customers) from orders"
    assert shop.json(f"icelake query '{count}' --json")["rows"] == [[2000, 201]]
    for at in (before["cut"], before["lsn"], between, after["position"]):
        expected = [[2000, 201]] if at == after["position"] else [[3000, 200]]
        assert shop.json(f"icelake query '{count}' --at {at} --json")["rows"] == expected, at
    assert shop.json(f"icelake query '{count}' --at 1999-01-01 --json", code=2)["error"]["code"] == "NO_SUCH_POINT"


def test_follow_until_it_is_told_to_stop(shop: Any) -> None:
    following = subprocess.Popen(
        ["icelake", "sync", "--follow", "--json"], cwd=shop.folder, env=shop.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        shop.sql("insert into customers select n, 'x' from generate_series(1001, 1100) n")
        wait_for(shop, "select count(*) from customers", 300)
        second = shop.json("icelake sync --json", code=4)
        assert second["error"]["code"] == "ALREADY_RUNNING"
        report = shop.json("icelake verify --json")
        assert report["equal"] is True
        following.send_signal(signal.SIGTERM)
        out, err = following.communicate(timeout=60)
    finally:
        following.kill()
    assert following.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["kind"] == "end"
    assert sum(line["kind"] == "commit" for line in lines) >= 1


def test_kill_9_loses_and_doubles_nothing(shop: Any) -> None:
    for number in range(3):
        following = subprocess.Popen(["icelake", "sync", "--follow"], cwd=shop.folder, env=shop.env, stderr=subprocess.DEVNULL)
        try:
            first = 10_000 * (number + 1)
            shop.sql(
                f"insert into customers select n, 'x' from generate_series({first}, {first} + 999) n; update orders set total = total + 1"
            )
            wait_for(shop, f"select count(*) from customers where id >= {first}", 1000)
        finally:
            following.kill()
            following.wait()
    assert shop.json("icelake verify --json")["equal"] is True


def test_ctrl_c_ends_a_follow_with_130_and_no_traceback(shop: Any) -> None:
    following = subprocess.Popen(["icelake", "sync", "--follow"], cwd=shop.folder, env=shop.env, stderr=subprocess.PIPE, text=True)
    shop.sql("insert into customers values (1001, 'x')")
    wait_for(shop, "select count(*) from customers", 201)
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=60)
    assert following.returncode == 130
    assert "Traceback" not in err


def test_a_source_that_cannot_be_reached_is_exit_3(shop: Any) -> None:
    shop.environment["SHOP_DSN"] = "postgresql://nobody@127.0.0.1:1/none"
    status = shop.json("icelake status --json", code=3)
    assert status["sources"][0]["reachable"] is False
    assert status["sources"][0]["cut"] is not None
    # What is in the lake can be asked all the same.
    assert shop.json("icelake query 'select count(*) from orders' --json")["rows"] == [[3000]]


def test_a_query_leaves_nothing_behind(still: Any) -> None:
    def files() -> list[Path]:
        return sorted(path for path in still.folder.rglob("*") if not path.name.endswith(("-wal", "-shm")))

    still.run("icelake query 'from orders limit 1'")
    before = files()
    still.run("icelake query 'from customers limit 1'")
    assert files() == before


def wait_for(shop: Any, sql: str, rows: int) -> None:
    """Until the lake answers ``rows``; the suite's time-out ends a wait that is in vain."""
    while shop.json(f"icelake query '{sql}' --json")["rows"] != [[rows]]:
        time.sleep(0.2)
