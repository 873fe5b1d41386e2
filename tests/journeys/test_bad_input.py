"""Everything that can be wrong around a mirror, done to a real one: a clear error or the policy that is stated, and nothing lost.

Each case goes through the real command twice, for people and for programs: the exit code, the code of the error and its next step,
no traceback, no password. Then the cause is removed, by the next step itself where it is a statement, and ``verify`` must be equal.
docs/explanation/policies.md states what is held here.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from icelake.stack.postgres import Postgres
from tests.journeys.refusals import ICELAKE, MANY, PROJECT, SLOT, Following, call, clean, one, refused, whole, with_project
from tests.provoked import said


@pytest.fixture
def mirror(shell: Any) -> Any:
    """The shop, with a project; not mirrored yet."""
    return with_project(shell)


# ------------------------------------------------------------------------------------------------------------------- DSN


def test_wrong_dsn(mirror: Any, server: Postgres) -> None:
    call(mirror, "sync", 0)
    mirror.sql(MANY.format(1000))
    good = mirror.dsn
    for dsn, code, exit_code in (
        ("postgres//nonsense", "BAD_DSN", 2),
        (good.replace("postgres:", "postgres:p@ss"), "BAD_DSN", 2),
        (good.replace("@127", "x@127"), "AUTHENTICATION_FAILED", 4),
        (good.replace("postgres:", "nobody_here:"), "AUTHENTICATION_FAILED", 4),
        (good + "_not_there", "NO_SUCH_DATABASE", 4),
    ):
        mirror.environment["SHOP_DSN"] = dsn
        refused(mirror, code, exit_code)
    del mirror.environment["SHOP_DSN"]
    assert "SHOP_DSN" in refused(mirror, "SECRET_NOT_SET", 2)["what"]
    mirror.environment["SHOP_DSN"] = server.dsn
    refused(mirror, "OTHER_DATABASE")
    mirror.environment["SHOP_DSN"] = good
    whole(mirror)


def test_wal_level_and_a_server_that_is_down(mirror: Any) -> None:
    with Postgres(settings={"wal_level": "replica", "fsync": "off"}) as server:
        mirror.dsn = mirror.environment["SHOP_DSN"] = server.dsn
        mirror.sql("create table items (id int primary key, name text); insert into items select n, 'i' from generate_series(1, 500) n")
        assert "ALTER SYSTEM SET wal_level = 'logical'" in refused(mirror, "WAL_LEVEL")["fix"]
        found = json.loads(call(mirror, "doctor --json", 1).stdout)["findings"]
        assert [one["code"] for one in found if one["level"] == "problem"] == ["WAL_LEVEL"]
        mirror.sql("alter system set wal_level = 'logical'")
        del server.settings["wal_level"]
        server.restart()
        call(mirror, "sync", 0)
        mirror.sql("update items set name = 'j' where id % 3 = 0")
        server.stop()
        assert json.loads(call(mirror, "status --json", 3).stdout)["sources"][0]["reachable"] is False
        call(mirror, "status", 3)
        waiting = subprocess.Popen(["icelake", "sync"], cwd=mirror.folder, env=mirror.env, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        try:
            assert "icelake: trying again: SOURCE_UNREACHABLE" in waiting.stderr.readline()
            server.start()
            _, err = waiting.communicate(timeout=100)
        finally:
            waiting.kill()
        clean(mirror, err)
        assert waiting.returncode == 0, err
        whole(mirror)


def test_missing_privilege(mirror: Any) -> None:
    """Every statement is the one an error or ``doctor`` says."""
    role = f"mirror_{one(mirror, 'select current_database()')}"
    mirror.sql(f"create role {role} login password 'open-sesame'")
    owner = mirror.dsn
    mirror.environment["SHOP_DSN"] = owner.replace("postgres:" + owner.split(":")[2].partition("@")[0], f"{role}:open-sesame")
    fix = refused(mirror, "NO_REPLICATION_PRIVILEGE")["fix"]
    mirror.sql(fix.partition(";")[0])
    refused(mirror, "NO_TABLES")
    found = json.loads(call(mirror, "doctor --json", 1).stdout)["findings"]
    for finding in found:
        if finding["code"] == "NO_SELECT_PRIVILEGE":
            mirror.sql(finding["fix"])
    error = refused(mirror, "NOT_TABLE_OWNER")
    mirror.sql(error["fix"].partition("have the owner run: ")[2])
    whole(mirror)
    mirror.sql(f"revoke select on orders from {role}")
    mirror.sql("delete from orders where id % 10 = 3")
    (parked,) = json.loads(call(mirror, "sync --json", 4).stdout)["parked"]
    assert (parked["table"], parked["code"]) == ("public.orders", "NO_SELECT_PRIVILEGE")
    mirror.sql(parked["fix"].partition("then `icelake")[0])
    call(mirror, "resume", 0)
    whole(mirror)


# ------------------------------------------------------------------------------------------------- slot and publication


def test_slot_in_use(mirror: Any) -> None:
    call(mirror, "sync", 0)
    mirror.sql("update customers set born = null where id % 2 = 0")
    slot = one(mirror, SLOT)
    copy = mirror.folder / "copy"  # with an epoch of its own, so that both forms of the error can be waited for at once
    copy.mkdir()
    shutil.copytree(mirror.folder / "lake", copy / "lake")
    shutil.copy(mirror.folder / "icelake.toml", copy)
    thief = psycopg.connect(mirror.dsn + "?replication=database", autocommit=True)
    try:
        thief.pgconn.send_query(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names '\"{slot}\"')".encode())
        while one(mirror, f"select active_pid is null from pg_replication_slots where slot_name = '{slot}'"):
            time.sleep(0.05)
        plain = subprocess.Popen(["icelake", "sync", "-C", "copy"], cwd=mirror.folder, env=mirror.env, stderr=subprocess.PIPE, text=True)
        document = json.loads(call(mirror, "sync --json", 4).stdout)
        _, err = plain.communicate(timeout=100)
        assert plain.returncode == 4
        clean(mirror, err)
        assert "icelake: SLOT_IN_USE: " in err
        assert document["error"]["code"] == "SLOT_IN_USE"
        pid = one(mirror, f"select active_pid from pg_replication_slots where slot_name = '{slot}'")
        assert str(pid) in document["error"]["why"]
        assert "pg_terminate_backend(pid)" in document["error"]["fix"]
        one(mirror, f"select pg_terminate_backend({pid}, 10000)")
    finally:
        thief.close()
    whole(mirror)


def test_what_the_source_cannot_send_any_more(mirror: Any) -> None:
    """The slot or the publication was touched: changes may be gone, so nothing goes on before every table was compared."""
    for number, (statement, code) in enumerate(
        (
            ("select pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())", "SLOT_AHEAD"),
            ("select pg_drop_replication_slot('{slot}')", "SLOT_GONE"),
            ("alter publication {slot} set (publish = 'insert')", "PUBLICATION_CHANGED"),
            ("drop publication {slot}", "PUBLICATION_CHANGED"),
        )
    ):
        call(mirror, "sync", 0)
        mirror.sql(MANY.format(1000 * (number + 1)))
        mirror.sql(statement.format(slot=one(mirror, SLOT)))
        error = refused(mirror, code)
        statement, _, command = error["fix"].rpartition("`icelake ")
        if "DROP PUBLICATION" in statement:
            mirror.sql(statement.partition(";")[0])
        call(mirror, command.partition("`")[0], 0)
        whole(mirror)


def test_the_publication_is_gone_while_it_is_followed(mirror: Any) -> None:
    with Following(mirror) as following:
        following.has(0)
        mirror.sql(f"drop publication {one(mirror, SLOT)}")
        mirror.sql("update orders set total = total + 1 where id % 7 = 0; insert into customers values (5000, 'p')")
        following.refused("PUBLICATION_CHANGED")
    call(mirror, "resume --reload", 0)
    whole(mirror)


def test_a_table_leaves_the_publication_while_it_is_followed(mirror: Any) -> None:
    with Following(mirror) as following:
        following.has(0)
        mirror.sql(f"alter publication {one(mirror, SLOT)} drop table orders")
        mirror.sql("update orders set total = total + 1 where id % 7 = 0; insert into customers values (5000, 'p')")
        following.parks("public.orders", "PUBLICATION_CHANGED")
        following.stop()
    call(mirror, "resume orders --reload", 0)
    whole(mirror)


# --------------------------------------------------------------------------------------------------------- the project file


@pytest.mark.parametrize(
    ("text", "code", "line", "words"),
    [
        ("\x00\x01 nonsense", "PROJECT_SYNTAX", 1, "TOML"),
        (PROJECT.replace("[project]", "[project"), "PROJECT_SYNTAX", 1, "TOML"),
        (PROJECT.replace("tables", "tabels"), "PROJECT_UNKNOWN_KEY", 5, "did you mean tables?"),
        (PROJECT.replace("interval_ms = 100", 'interval_ms = "soon"'), "PROJECT_BAD_VALUE", 7, "interval_ms"),
        (PROJECT.replace('name = "shop"', 'name = "Shop!"'), "PROJECT_BAD_VALUE", 2, "lower-case letters"),
        (PROJECT.replace("public.*", "public"), "PROJECT_BAD_VALUE", 5, "schema.table or schema.*"),
        (PROJECT + '[tables."public.orders"]\nreaders = ["duckdbb"]\n', "PROJECT_BAD_VALUE", 9, "choose of: duckdb, flink"),
        (PROJECT + '[lake]\nfolder = "s3://bucket/x"\n', "PROJECT_BAD_VALUE", 9, "local folder"),
        (PROJECT + '[lake]\nfolder = "icelake.toml"\n', "LAKE_NOT_WRITABLE", None, "[lake] folder"),
        (
            PROJECT.replace('[project]\nname = "shop"\n', '[project]\nname = "shop"\nprofile = "stack"\n'),
            "PROJECT_PROFILE_NOT_BUILT",
            3,
            "embedded",
        ),
        ("", "PROJECT_MISSING_KEY", None, "[project]"),
    ],
)
def test_a_project_file_of_nonsense(tmp_path: Path, text: str, code: str, line: int | None, words: str) -> None:
    file = tmp_path / "icelake.toml"
    file.write_text(text)
    environment = {**os.environ, "SHOP_DSN": "postgresql://u:secret-word@127.0.0.1:1/x"}
    outputs = []
    for command in ([ICELAKE, "sync"], [ICELAKE, "sync", "--json"]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        outputs.append(said(done.stdout + done.stderr))
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "secret-word" not in outputs[-1]
    error = json.loads(outputs[1])["error"]
    assert error["code"] == code
    assert f"icelake: {code}: {error['what']}" in outputs[0]
    assert (f"icelake.toml:{line}:" if line else "icelake.toml") in error["what"]
    assert words in " ".join((error["what"], error["why"], error["fix"]))
    assert sorted(tmp_path.iterdir()) == [file]
