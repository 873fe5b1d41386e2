"""A mirror something is wrong with: commands that must refuse in the right words, and the proof that nothing is lost in the end."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psycopg

from tests.provoked import said

PROJECT = """\
[project]
name = "shop"
[sources.shop]
dsn = { env = "SHOP_DSN" }
tables = ["public.*"]
[commit]
interval_ms = 100
"""
ICELAKE = str(Path(sys.executable).parent / "icelake")
MANY = "update orders set total = total + 1 where id % 2 = 0; insert into customers select n, 'm' from generate_series({0}, {0} + 99) n"

SLOT = "select slot_name from pg_replication_slots where database = current_database()"


def with_project(shell: Any) -> Any:
    """The shop with a project beside it."""
    (shell.folder / "icelake.toml").write_text(PROJECT)
    shell.environment["SHOP_DSN"] = shell.dsn
    return shell


def call(shell: Any, words: str | list[str], code: int) -> "subprocess.CompletedProcess[str]":
    """A command, and what holds for every one: the exit code, no traceback, no password."""
    split = words.split() if isinstance(words, str) else words
    done = subprocess.run(["icelake", *split], cwd=shell.folder, env=shell.env, capture_output=True, text=True, timeout=120)
    clean(shell, said(done.stdout + done.stderr))
    assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def clean(shell: Any, text: str) -> None:
    assert "Traceback" not in text, text
    for dsn in (shell.dsn, shell.environment.get("SHOP_DSN", "")):
        password = dsn.partition("://")[2].rpartition("@")[0].partition(":")[2]
        assert not password or password not in text


def refused(shell: Any, code: str, exit_code: int = 4, *, people: str = "sync", programs: str = "verify --json") -> dict[str, Any]:
    """Both forms of one error, of two commands that meet it; the error as programs get it."""
    done = call(shell, people, exit_code)
    assert f"icelake: {code}: " in done.stderr, done.stderr
    assert "\n  next: " in done.stderr
    assert done.stdout == ""
    document = json.loads(call(shell, programs, exit_code).stdout)
    error: dict[str, Any] = document["error"]
    assert error["code"] == code, error
    assert error["what"]
    assert error["fix"]
    return error


def whole(shell: Any) -> Any:
    """Nothing is lost: the status of a sync that ends well, after which ``verify`` says equal."""
    status = json.loads(call(shell, "sync --json", 0).stdout)
    report = json.loads(call(shell, "verify --json", 0).stdout)
    assert report["equal"] is True
    assert report["tables"]
    return status


def unequal(shell: Any) -> Any:
    """What verify says of a lake that is not equal to the source."""
    return json.loads(call(shell, "verify --json", 1).stdout)


def rows(shell: Any, sql: str) -> Any:
    """What the lake answers."""
    done = subprocess.run(["icelake", "query", sql, "--json"], cwd=shell.folder, env=shell.env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["rows"]


class Following:
    """``icelake sync --follow --json``, killed at the end if it still runs."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell

    def __enter__(self) -> Self:
        self.errors = (self.shell.folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            ["icelake", "sync", "--follow", "--json"],
            cwd=self.shell.folder,
            env=self.shell.env,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def until(self, so: Callable[[Any], bool]) -> None:
        """Until a step's status is so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            status = json.loads(said(line))
            if "state" not in status:
                raise AssertionError(status)
            if so(status):
                return
        raise AssertionError(f"it ended with {self.process.wait()}")

    def has(self, changes: int) -> None:
        """Until everything is loaded and so many changes are committed."""
        self.until(lambda status: not status["loading"] and status["changes"] >= changes)

    def streams(self) -> None:
        """Until it has the slot; it says nothing of its own before there is something to commit."""
        while not one(self.shell, f"select coalesce(bool_or(active), false) from pg_replication_slots where slot_name in ({SLOT})"):
            assert self.process.poll() is None
            time.sleep(0.05)

    def _end(self) -> Any:
        assert self.process.stdout is not None
        lines = self.process.stdout.read().splitlines()
        self.process.wait()
        self.errors.seek(0)
        clean(self.shell, said("\n".join([*lines, self.errors.read()])))
        return json.loads(lines[-1])

    def refused(self, code: str) -> dict[str, Any]:
        """It ends by itself with this error."""
        error: dict[str, Any] = self._end()["error"]
        assert (self.process.returncode, error["code"]) == (4, code), error
        assert error["fix"]
        return error

    def parks(self, table: str, code: str) -> Any:
        """Until the table is parked for this; the entry of the status."""
        found: list[Any] = []

        def so(status: Any) -> bool:
            found[:] = [entry for entry in status["parked"] if (entry["table"], entry["code"]) == (table, code)]
            return bool(found)

        self.until(so)
        return found[0]

    def stop(self) -> None:
        """It ends well when it is told to."""
        self.process.send_signal(signal.SIGTERM)
        assert (self._end()["kind"], self.process.returncode) == ("end", 0)


def one(shell: Any, sql: str) -> Any:
    with psycopg.connect(shell.dsn, autocommit=True) as connection:
        row = connection.execute(sql).fetchone()
    assert row is not None
    return row[0]
