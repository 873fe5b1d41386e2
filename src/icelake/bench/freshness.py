"""``icelake bench freshness``: how old is what a fresh ``query`` answers, while 2,000 rows a second change in eight tables?

``icelake sync --follow`` runs as everybody runs it, pgbench writes (60 % updates, 20 % inserts, 20 % deletes, all tables in each
transaction), a heartbeat beats, and this process asks for it with one query after the other. A beat's age is the time from before its
commit until the first answer that holds it has arrived (``observe.freshness``). ``size``: minutes.
"""

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from icelake.bench import figure
from icelake.bench.rig import ICELAKE, Rig, rig
from icelake.errors import IcelakeError
from icelake.observe.freshness import Freshness

MINUTES = 10.0
TABLES = 8
ROWS = 50_000
PER_SECOND = 2_000
BEATS_PER_SECOND = 5
PAUSE = 0.05
"""Seconds between an answer and the next question."""
_STARTING, _CAUGHT_UP = 120.0, 2.0
"""Seconds until the lake must have answered a beat that is no older than so many."""

_TABLE = """
create table t{n} (
    id bigint primary key, customer int not null, name text not null, amount numeric(12,2) not null, changed timestamptz not null
);
insert into t{n} select g, g % 997, 'name ' || g, g / 100.0, '2026-01-01' from generate_series(1, {rows}) g;
"""
_PULSE = "create table pulse (id int primary key, beat bigint not null); insert into pulse values (1, 0); create sequence turn minvalue 0;"
_PART = """
    update t{n} set amount = amount + 1, changed = clock_timestamp()
    where id in (select low + 2 + (random() * {inside})::bigint from generate_series(1, 6));
    insert into t{n} select low + {rows} + g, g, 'new', g, clock_timestamp() from generate_series(0, 1) g;
    delete from t{n} where id in (low, low + 1);
"""
_TURN = """
create procedure trade() language plpgsql as $$
declare low bigint := 1 + 2 * nextval('turn');
begin {parts} end $$;
"""
PER_TRANSACTION = 10 * TABLES


def run(_variant: str, size: float | None, _pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module."""
    with rig() as bench:
        return _run(bench, (size or MINUTES) * 60, note)


def _run(bench: Rig, seconds: float, note: Callable[[str], None]) -> dict[str, Any]:
    parts = "".join(_PART.format(n=n, rows=ROWS, inside=ROWS - 4) for n in range(TABLES))
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        for n in range(TABLES):
            connection.execute(_TABLE.format(n=n, rows=ROWS))
        connection.execute(_PULSE)
        connection.execute(_TURN.format(parts=parts))
    script = bench.folder / "trade.sql"
    script.write_text("call trade();\n")
    bench.lakehouse.sync()
    freshness, stop = Freshness(), threading.Event()
    following = subprocess.Popen(
        [*ICELAKE, "sync", "--follow", "--json"],
        cwd=bench.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    beating = threading.Thread(target=_beat, args=(bench.dsn, freshness, stop))
    try:
        beating.start()
        began = time.monotonic()
        # What was sent while it started is older than anything later.
        while freshness.samples == 0 or (freshness.lag() or 0.0) > _CAUGHT_UP:
            if following.poll() is not None or time.monotonic() > began + _STARTING:
                raise RuntimeError("icelake sync --follow did not begin")
            _ask(bench, freshness)
        began = time.monotonic()
        before = freshness.samples
        told = began + 10
        rate = PER_SECOND / PER_TRANSACTION
        trading = bench.program("pgbench", "-n", "-f", str(script), "-c", "2", "-R", str(rate), "-T", str(max(1, round(seconds))))
        with trading:
            while trading.poll() is None:
                _ask(bench, freshness)
                _must_live(following, beating)
                if time.monotonic() >= told:
                    told += 10
                    recent = sorted(freshness.recent(10 * BEATS_PER_SECOND))
                    middle, worst = recent[len(recent) // 2], recent[-1]
                    note(f"{time.monotonic() - began:6.0f} s: the last beats were {middle:.2f} s old, {worst:.2f} at most")
            said = trading.communicate()[0]
            if trading.returncode:
                raise subprocess.CalledProcessError(trading.returncode, "pgbench", said)
        traded = time.monotonic() - began
        stop.set()
        beating.join()
        # The beats that are not seen yet are the oldest of all.
        deadline = time.monotonic() + _STARTING
        while freshness.lag():
            if following.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("icelake sync --follow did not show the last beats")
            _ask(bench, freshness)
    finally:
        stop.set()
        beating.join()
        following.terminate()
        following.wait()
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        row = connection.execute("select last_value from turn").fetchone()
        assert row is not None
        changes = int(row[0]) * PER_TRANSACTION
    note("comparing the lake with the source")
    equal = bench.lakehouse.verify()["equal"]
    against = "from before the commit in PostgreSQL until a fresh query has answered; a commit to Iceberg a second"
    return {
        "verified": equal,
        "changes": changes,
        "beats": freshness.samples - before,
        "figures": [
            *(
                figure(f"freshness.{what}_ms", _milliseconds(freshness.percentile(part, before)), "ms", against)
                for what, part in (("p99", 0.99), ("p50", 0.5), ("max", 1.0))
            ),
            figure("changes", changes / traded, "changes/s", "what was asked for", PER_SECOND),
        ],
    }


def _beat(dsn: str, freshness: Freshness, stop: threading.Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not stop.wait(1 / BEATS_PER_SECOND):
            connection.execute("update pulse set beat = %s", (freshness.next_beat(),))


def _must_live(following: "subprocess.Popen[bytes]", beating: threading.Thread) -> None:
    """What is not asked for any more, or not answered, would not be missed among the ages."""
    if following.poll() is not None:
        raise RuntimeError(f"icelake sync --follow ended with code {following.returncode}")
    if not beating.is_alive():
        raise RuntimeError("the heartbeat stopped")


def _milliseconds(seconds: float | None) -> float:
    assert seconds is not None  # the last beats were seen
    return 1000 * seconds


def _ask(bench: Rig, freshness: Freshness) -> None:
    with suppress(IcelakeError):
        freshness.saw(int(bench.lakehouse.query("select beat from pulse").column("beat")[0].as_py()))
    time.sleep(PAUSE)
