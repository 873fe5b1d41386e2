"""kill -9 before and after each durable write of a real process, while the source keeps changing; then ``verify`` must be equal.

The points are the calls of ports that docs/protocol.md lists under "Durable writes, in order". Short here: each point on one side,
before and after in turn; ``make test-full`` takes every point on both.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from icelake.stack.postgres import Postgres
from tests.crash.shop import Lake, Trader, lake, make_tables

pytestmark = pytest.mark.crash

FIRST_START = (
    "catalog.create:{when}:1",  # control table
    "catalog.commit:{when}:1",  # epoch
    "source.publish:{when}:1",
    "source.create_slot:{when}:1",
    "catalog.commit:{when}:2",  # first position
    "catalog.create:{when}:3",  # a mirror
    "storage.write:{when}:9",  # a range's data file, or a manifest of it
    "catalog.commit:{when}:3",  # a range with its L
    "index.append:{when}:1",
)
FOLLOWING = (
    "storage.write:{when}:20",
    "storage.write:{when}:43",
    "storage.flush:{when}:9",
    "catalog.commit:{when}:4",
    "catalog.commit:{when}:7",
    "catalog.commit:{when}:15",
    "index.append:{when}:5",
    "stream.confirm:{when}:1",
    "stream.confirm:{when}:4",
    "storage.delete:{when}:3",  # expiry
)

FULL = bool(os.environ.get("ICELAKE_FULL"))


def faults(points: tuple[str, ...]) -> list[str]:
    both = [(point.format(when="before"), point.format(when="after")) for point in points]
    return [fault for pair in both for fault in pair] if FULL else [pair[number % 2] for number, pair in enumerate(both)]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as running:
        make_tables(running)
        yield running


def equal(lake: Lake, *histories: str) -> None:
    code, report = lake.run("verify")
    assert report["equal"], report
    assert [history["name"] for history in report["histories"]] == list(histories)
    assert code == 0
    assert {table["name"] for table in report["tables"]} == {"public.account", "public.entry", "public.audit"}


@pytest.mark.parametrize("fault", faults(FIRST_START))
def test_killed_at_the_first_start(server: Postgres, tmp_path: Path, fault: str) -> None:
    with lake(tmp_path, server) as one, Trader(server.dsn):
        one.die(fault, "sync")
        equal(one)


@pytest.mark.parametrize("fault", faults(FOLLOWING))
def test_killed_while_following(server: Postgres, tmp_path: Path, fault: str) -> None:
    retention = '[retention]\nkeep_all = "1s"\nthin = [["2s", "4s"]]\ngrace = "0s"\n'
    with lake(tmp_path, server, retention) as one, Trader(server.dsn):
        code, _ = one.run("sync")
        assert code == 0
        one.die(fault, "sync", "--follow", seconds=90)
        equal(one)


def test_killed_again_and_again(server: Postgres, tmp_path: Path) -> None:
    """With a history beside it, which every commit moves with its mirror."""
    with lake(tmp_path, server, '[tables."public.account"]\nhistory = true\n') as one, Trader(server.dsn):
        for fault in ("catalog.commit:after:5", "stream.confirm:before:2", "storage.flush:before:4", "index.append:after:2"):
            one.die(fault, "sync", "--follow", seconds=90)
        equal(one, "public.account_history")
