"""What commands tell about what they did not do: tables that are not there, are parked again, or were never a state of the source."""

import json
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from icelake.cli import main
from icelake.errors import ProjectError
from icelake.lakehouse import Lakehouse
from icelake.model.lsn import parse_lsn
from tests.journeys.conftest import Shell

ICELAKE = Path(sys.executable).parent / "icelake"
OUT_OF_RANGE = "create table readings (id int primary key, at timestamptz); insert into readings values (1, 'infinity')"


def mirrored(shell: Shell, tables: str = '["public.*"]', more: str = "") -> None:
    shell.environment["SHOP_DSN"] = shell.dsn
    shell.run("icelake init . --name shop")
    project = shell.folder / "icelake.toml"
    text = project.read_text().replace('tables = ["public.*"]', f"tables = {tables}")
    project.write_text(text + more)


def test_a_name_never_means_another_table(shell: Shell) -> None:
    shell.sql("create schema archive; create table archive.orders (id int primary key); insert into archive.orders values (1)")
    shell.sql("alter table orders add column at timestamptz; update orders set at = 'infinity' where id = 1")
    mirrored(shell, '["public.*", "archive.*"]')
    shell.run("icelake sync", code=4)
    # public.orders is parked: to answer from the archive would be a lie.
    for question in ("select count(*) from orders", "select count(*) from public.orders"):
        refused = shell.run(f'icelake query "{question}"', code=4)
        assert "TABLE_NOT_IN_CUT" in refused.stderr
    assert shell.json('icelake query "select count(*) from archive.orders" --json')["rows"] == [[1]]


def test_a_twin_in_other_letters_is_not_taken_for_it(shell: Shell) -> None:
    shell.sql("""create table "Orders" (id int primary key, at timestamptz); insert into "Orders" values (1, 'infinity')""")
    mirrored(shell)
    shell.run("icelake sync", code=4)
    assert "SQL_AMBIGUOUS_TABLE" in shell.run("""icelake query 'select count(*) from "Orders"'""", code=2).stderr


def test_verify_names_what_is_not_mirrored(shell: Shell) -> None:
    mirrored(shell)
    shell.run("icelake sync")
    shell.sql("create table keyless (v int)")
    report = shell.json("icelake verify --json")
    assert report["equal"] is True
    assert [(one["name"], one["code"]) for one in report["not_mirrored"]] == [("public.keyless", "NO_PRIMARY_KEY")]
    assert "not mirrored: public.keyless" in shell.run("icelake verify").stderr
    assert shell.json("icelake verify public.orders --json")["not_mirrored"] == []


def test_verify_says_why_it_is_not_equal(shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mirrored(shell)
    shell.run("icelake sync")
    report = shell.json("icelake verify --json")
    report["equal"] = report["tables"][0]["equal"] = False
    report["tables"][0]["problems"] = ["column extra is in the source but not in the lake"]
    monkeypatch.setattr(Lakehouse, "verify", lambda *_, **__: report)
    assert main(["verify", "-C", str(shell.folder)]) == 1
    assert "public.customers: column extra is in the source but not in the lake" in capsys.readouterr().err


def test_a_table_that_is_parked_again_is_not_resumed(shell: Shell) -> None:
    shell.sql(OUT_OF_RANGE)
    mirrored(shell)
    shell.run("icelake sync", code=4)
    for words in ("resume readings --reload", "resume --reload"):
        said = shell.run(f"icelake {words}", code=4)
        assert "VALUE_OUT_OF_CONTRACT" in said.stderr
        assert "resumed: public.readings" not in said.stderr
    status = shell.json("icelake status --json")["sources"][0]
    assert (status["tables"], status["tables_in_cut"]) == (3, 2)
    assert "parked: public.readings: VALUE_OUT_OF_CONTRACT" in shell.run("icelake status").stderr
    assert "infinity" in shell.run("icelake tables readings").stderr


@pytest.fixture
def tokyo() -> Iterator[None]:
    """The machine's zone is not UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("tokyo")
def test_the_time_that_is_shown_is_the_cut_s(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored(shell)
    monkeypatch.setenv("SHOP_DSN", shell.dsn)
    with Lakehouse.open(shell.folder) as lakehouse:
        for number in range(3):
            shell.sql(f"update orders set note = '{number}' where id = 1")
            lakehouse.sync()
        cuts = [cut for cut in lakehouse.cuts() if cut["commit_time"]]
        assert len(cuts) >= 3
        every = lakehouse._cuts("shop")[::-1]
        for cut in cuts:
            # Without a zone it is in UTC, as it is shown.
            for moment in (cut["commit_time"], cut["commit_time"].removesuffix("+00:00")):
                found = lakehouse.resolve(moment).cut
                assert found is not None
                # Of several with the same commits, made while tables are loaded, it is the last.
                assert (found.lsn, found.id) == next((one.lsn, one.id) for one in every if one.commit_time == found.commit_time)
                assert found.lsn == parse_lsn(cut["lsn"])
        for nonsense in ("0001-01-01", "0001-01-01T00:00+14:00", "²"):
            with pytest.raises(ProjectError, match="NO_SUCH_POINT"):
                lakehouse.resolve(nonsense)


def test_a_table_half_loaded_is_no_point_in_time(shell: Shell) -> None:
    mirrored(shell)
    shell.run("icelake sync")
    shell.run("icelake resume orders --reload")
    named = {snapshot for cut in shell.json("icelake cuts --json")["cuts"] for snapshot in cut["tables"].values()}
    kept = [one["snapshot"] for one in shell.json("icelake tables orders --json")["snapshots_kept"]]
    assert set(kept) & named
    assert set(kept) - named, "the reload made none that no cut names"
    for snapshot in kept:
        said = shell.run(f'icelake query "select count(*) from orders" --json --at {snapshot}', code=0 if snapshot in named else 2)
        assert ("NO_SUCH_POINT" in said.stdout) == (snapshot not in named)


def test_a_position_of_nonsense_makes_nothing_at_the_source(shell: Shell) -> None:
    mirrored(shell)
    assert "BAD_LSN" in shell.run("icelake sync --until nwo", code=2).stderr
    with psycopg.connect(shell.dsn) as source:
        assert source.execute("select count(*) from pg_replication_slots where database = current_database()").fetchone() == (0,)


def test_a_sync_that_was_told_to_end_early_says_so(shell: Shell) -> None:
    mirrored(shell)
    shell.run("icelake sync")
    waiting = subprocess.Popen([ICELAKE, "sync", "--until", "FF/0", "--json"], cwd=shell.folder, env=shell.env, stdout=subprocess.PIPE)
    with psycopg.connect(shell.dsn, autocommit=True) as source:
        active = "select from pg_replication_slots where active and not temporary and database = current_database()"
        _until(lambda: source.execute(active).fetchall())
    waiting.terminate()
    out, _ = waiting.communicate(timeout=60)
    # It ended in order, and did not die of the signal, which would be the same code to a shell.
    assert waiting.returncode == 143
    assert json.loads(out)["reached"] is False
    assert shell.json("icelake sync --json")["reached"] is True


def test_a_table_that_comes_while_it_is_followed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icelake.lakehouse.NEW_TABLES", 0.5)
    mirrored(shell)
    monkeypatch.setenv("SHOP_DSN", shell.dsn)
    stop = threading.Event()
    seen: list[int] = []
    with Lakehouse.open(shell.folder) as lakehouse:

        def follow() -> None:
            lakehouse.sync(follow=True, stop=stop, report=lambda _, status: seen.append(status["tables"]))

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            _until(lambda: 2 in seen)
            shell.sql("create table late (id int primary key); insert into late values (1)")
            _until(lambda: 3 in seen)
        finally:
            stop.set()
            thread.join()
    shell.run("icelake sync")
    assert shell.json('icelake query "select count(*) from late" --json')["rows"] == [[1]]


def test_doctor_leaves_out_what_the_project_does(shell: Shell) -> None:
    shell.sql("create table keyless (v int)")
    mirrored(shell)
    shell.run("icelake doctor", code=1)
    project = shell.folder / "icelake.toml"
    project.write_text(re.sub(r"(?m)^exclude = .*$", 'exclude = ["public.keyless"]', project.read_text()))
    shell.run("icelake doctor")


def test_doctor_knows_the_project_s_choices(shell: Shell) -> None:
    shell.sql("create table hours (id int primary key, opens time)")
    mirrored(shell, more='[tables."public.hours"]\nreaders = ["spark"]\n')
    findings = shell.json("icelake doctor --json", code=1)["findings"]
    assert [one["code"] for one in findings if one.get("table") == "public.hours"] == ["READER_CANNOT"]


def test_a_value_does_not_colour_the_terminal(shell: Shell) -> None:
    mirrored(shell)
    shell.run("icelake sync")
    said = shell.run("""icelake query "select ('a' || chr(27) || '[31mRED')::int" """, code=2)
    assert "\x1b" not in said.stderr
    assert "RED" in said.stderr


def test_the_lake_is_its_owner_s(shell: Shell) -> None:
    mirrored(shell)
    shell.run("icelake sync")
    assert stat.S_IMODE((shell.folder / "lake").stat().st_mode) == 0o700


def test_a_dsn_where_its_name_belongs_is_not_shown(shell: Shell) -> None:
    (shell.folder / "icelake.toml").write_text(
        '[project]\nname = "x"\n[sources.main]\ndsn = { env = "postgresql://u:hunter2@h/d" }\ntables = ["public.*"]\n'
    )
    said = shell.run("icelake status", code=2)
    assert "PROJECT_BAD_VALUE" in said.stderr
    assert "hunter2" not in said.stderr


def _until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
