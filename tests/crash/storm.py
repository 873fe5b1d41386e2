"""A long trial by disaster of the real process under load: ``make storm ARGS="--rounds 310 --seed 7 --json"``.

Traders change a real PostgreSQL all the time, ``icelake sync --follow`` mirrors it, and each round one disaster, drawn from the seed,
strikes at a random moment. It passes; then icelake must be past what the source held at that moment, by itself, or started again where
it was killed or said DISK_FULL. Every few rounds, and at the end, ``verify`` must be equal (half of the times while everybody trades
on), nothing parked, one slot and no temporary one left, the slot's restart_lsn past where the log ended at the last check; and log,
descriptors, threads, memory and scratch files within bounds.

The seed gives the disasters and how long they last, not the machine's timing: a failure's lake, server and logs are kept for a look.
As root the lake is on a file system of its own, which can be full; elsewhere that disaster is left out, and the report says so. The
clock is libfaketime's, of all icelake processes; only the wall clock jumps.
"""

import argparse
import importlib.util
import itertools
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import orjson
import psycopg

from icelake.model.lsn import format_lsn, parse_lsn
from icelake.stack.postgres import Postgres
from tests.crash.shop import Lake, make_tables
from tests.crash.wire import Wire

KINDS = ("kill", "pause", "full", "reset", "dead", "slow", "clock", "restart", "crash", "walsender", "sessions", "freeze")
"""
kill: kill -9 of icelake, maybe again while it starts. pause: SIGSTOP, often for longer than the server waits. full: no space where the
lake is. reset, dead, slow: of the network. clock: the wall clock jumps. restart: of PostgreSQL, fast. crash: immediate, or kill -9 of all
of it. walsender, sessions: terminated by the server. freeze: all of PostgreSQL is stopped (SIGSTOP) for a while.
"""
_SHARE = 31
"""One round in so many is for each kind but ``kill``, which has the rest."""
_SETTINGS = {
    "wal_sender_timeout": "3s",
    "logical_decoding_work_mem": "1MB",
    "checkpoint_timeout": "30s",
    "max_wal_size": "256MB",
    "fsync": "off",  # what is killed here is processes, not the machine
}
_PROJECT = """[tables."public.ledger"]
history = true
[retention]
keep_all = "1s"
thin = [["2s", "4s"]]
grace = "0s"
"""
_TABLES = """
create table line (item int, qty int, note text);
alter table line replica identity full;
create table page (id bigint primary key, body text, raw bytea, seen int not null default 0);
alter table page alter column body set storage external, alter column raw set storage external;
create table ledger (id int primary key, amount numeric(12,2) not null, memo text not null default '');
create table noise (v text);
alter table noise alter column v set storage external;
insert into line select g % 50, g % 3, case when g % 4 <> 0 then 'n' || g % 20 end from generate_series(1, 800) g;
insert into page select g, repeat(md5(g::text), 150), decode(repeat(md5(g::text), 80), 'hex') from generate_series(1, 150) g;
insert into ledger select g, g, 'm' || g from generate_series(1, 300) g;
"""
_MIRRORED = {f"public.{name}" for name in ("account", "entry", "audit", "line", "page", "ledger")}
_FOLDER_BYTES = 2 << 30
_PATIENCE = 600.0
"""Seconds icelake may take to come back, on a machine that others use."""
_FLOOD = 72 << 20
"""Bytes of log from which on what is behind comes by SQL pieces."""
_BOUNDS = {"descriptors": 200, "threads": 100, "resident_mb": 1536, "wal_mb": 1536, "scratch_files": 40, "temporary_files": 40}

_ACTIONS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (24, ("update account set balance = balance + 1 where id %% 17 = %(n)s %% 17",)),
    (12, ("update account set id = -id where abs(id) = any (array[%(n)s %% 600 + 1, %(n)s * 7 %% 600 + 1])",)),
    (24, ("insert into entry select 1 + g, %(n)s * 50 + g, g / 7.0 from generate_series(1, 20) g",)),
    (12, ("delete from entry where number < (%(n)s - 200) * 50",)),
    (12, ("insert into audit (what, payload) select 'x', jsonb_build_object('n', %(n)s) from generate_series(1, 5)",)),
    (12, ("delete from audit where id in (select id from audit limit 4)",)),
    (4, ("update audit set what = what || '.' where left(id::text, 2) = '00'",)),
    (12, ("insert into page select %(n)s * 10 + g, repeat(md5(random()::text), 150), null from generate_series(1, 5) g",)),
    (16, ("update page set seen = seen + 1 where abs(id) %% 23 = %(n)s %% 23",)),
    (8, ("update page set id = -id where abs(id) %% 41 = %(n)s %% 41",)),
    (4, ("update page set body = body || 'x' where abs(id) %% 71 = %(n)s %% 71",)),
    (8, ("delete from page where id in (select id from page order by abs(id) limit greatest(0, (select count(*) - 400 from page)))",)),
    (12, ("insert into line select %(n)s %% 50, g, null from generate_series(1, 6) g, generate_series(1, 2)",)),
    (12, ("update line set qty = qty + 1 where item = %(n)s %% 50", "delete from line where ctid in (select ctid from line limit 14)")),
    (12, ("insert into ledger select (%(n)s * 7 + g) %% 500, g from generate_series(1, 8) g on conflict (id) do update set amount = 0",)),
    (8, ("delete from ledger where id %% 31 = %(n)s %% 31", "update ledger set memo = memo || '.' where id %% 29 = %(n)s %% 29")),
    (8, ("update ledger l set id = -id where abs(id) %% 50 = %(n)s %% 50 and not exists (select from ledger o where o.id = -l.id)",)),
    # Some of it is never committed.
    (8, ("savepoint s", "delete from account", "rollback to s", "update account set note = md5(note) where id %% 100 = %(n)s %% 100")),
    (2, ("truncate line", "insert into line select g %% 50, g, 'again' from generate_series(1, 300) g")),
    (1, ("truncate entry, ledger",)),
    (1, ("insert into page select %(n)s * 10 + g, null, '' from generate_series(1, 5) g", "truncate page", "truncate audit")),
    # Large ones.
    (1, ("insert into line select g %% 50, g, 'large' from generate_series(1, 4000) g", "delete from line where note = 'large'")),
    (1, ("insert into entry select g, %(n)s * 50 + 49, 1 from generate_series(1, 4000) g", "update account set balance = balance + 0.01")),
)
"""(weight, statements of one transaction). ``n`` is of this transaction alone, and grows."""
_numbers = itertools.count(1000)


class Failure(AssertionError):
    """What must hold did not."""


class Traders:
    """Change the source until stopped. ``paused`` gives a time in which nobody does."""

    def __init__(self, dsn: str, seed: str, count: int = 2) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self._go = threading.Event()
        self._go.set()
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._run, args=(f"{seed}/{n}",), daemon=True) for n in range(count)]
        self.changes = self.transactions = self.broken = 0
        """Rows and transactions that were committed, and transactions that failed (disasters, deadlocks)."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._go.set()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._go.clear()
        try:
            for _ in self._threads:
                self._idle.acquire()
            yield
        finally:
            self._go.set()

    def _run(self, seed: str) -> None:
        rng = random.Random(seed)
        weights = [weight for weight, _ in _ACTIONS]
        while not self._stop.is_set():
            with suppress(psycopg.Error), psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as connection:
                while not self._stop.wait(rng.uniform(0, 0.2)):
                    if not self._go.is_set():
                        self._idle.release()
                        self._go.wait()
                    self._trade(connection, rng.choices(_ACTIONS, weights, k=rng.choice((1, 1, 1, 3))))
            if not self._go.is_set():
                self._idle.release()
                self._go.wait()
            # Nobody answers: there is a disaster.
            self._stop.wait(0.1)

    def _trade(self, connection: "psycopg.Connection[Any]", actions: Sequence[tuple[int, tuple[str, ...]]]) -> None:
        n, changes = next(_numbers), 0
        try:
            with connection.transaction():
                for statement in (statement for _, statements in actions for statement in statements):
                    changes += max(0, connection.execute(statement, {"n": n}).rowcount)
        except psycopg.Error:
            with self._lock:
                self.broken += 1
            if connection.closed:
                time.sleep(0.1)
                raise
            return
        with self._lock:
            self.changes += changes
            self.transactions += 1


class Follower:
    """``icelake sync --follow``: one process after the other. What each says is in a file of its own, ``lives/NUMBER.out`` and ``.err``."""

    def __init__(self, one: Lake, folder: Path) -> None:
        self._lake = one
        self._folder = folder
        folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = 0
        self.lives = 0
        self.position = 0
        self.status: dict[str, Any] = {}
        self.retries: Counter[str] = Counter()
        """Of this life and those before: codes of what was tried again."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        assert self._process is None
        self.lives += 1
        self._unread = self.position = 0
        with self._file("out").open("wb") as out, self._file("err").open("wb") as err:
            self._process = self._lake.start("sync", "--follow", out=out.fileno(), err=err.fileno())

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def read(self) -> None:
        """Take in what it said since."""
        with self._file("out").open("rb") as file:
            file.seek(self._unread)
            said = file.read()
        whole = said[: said.rfind(b"\n") + 1]
        self._unread += len(whole)
        for line in whole.splitlines():
            told = orjson.loads(line)
            if "position" in told:
                self.status = told
                self.position = max(self.position, parse_lsn(told["position"]))
            if told.get("kind") == "retry" and "error" in told:
                self.retries[told["error"]["code"]] += 1
            elif told.get("kind") == "park":
                raise Failure(f"a table is parked: {told['error']}")

    def ended(self) -> str:
        """The code it ended with by itself; "" while it runs."""
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return ""
        self._process = None
        last = self._file("out").read_bytes().splitlines()[-1:]
        told = orjson.loads(last[0]) if last else {}
        if "error" in told and "code" in told["error"] and status > 0:
            return str(told["error"]["code"])
        return f"status {status}: {self._file('err').read_text()[-2000:]}"

    def ends(self, seconds: float) -> None:
        """It was asked to end: with exit code 0."""
        assert self._process is not None
        status = self._process.wait(seconds)
        self._process = None
        if status != 0:
            raise Failure(f"asked to end, it ended with {status}: {self._file('err').read_text()[-2000:]}")

    def stuck(self) -> str:
        """Ends it; where its threads are."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGABRT)
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        return self._file("err").read_text()[-6000:]

    def forget(self, keep: int = 30) -> None:
        for file in sorted(self._folder.iterdir())[: -2 * keep]:
            file.unlink()

    def _file(self, kind: str) -> Path:
        return self._folder / f"{self.lives:05}.{kind}"


class Volume:
    """A file system for one folder, whose size can be made what is used of it. Wants root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        self._mount(f"size={_FOLDER_BYTES}")
        return self

    def __exit__(self, *exc: object) -> None:
        subprocess.run(["umount", "-l", self._folder], check=True, capture_output=True)

    @contextmanager
    def full(self, left: int) -> Iterator[None]:
        """``left`` bytes are free at the beginning."""
        for _ in range(50):
            # Somebody may write between the question and the answer.
            with suppress(subprocess.CalledProcessError):
                self._mount(f"remount,size={self.used() + left}")
                break
        else:
            raise Failure("the lake's file system could not be made small")
        try:
            yield
        finally:
            self._mount(f"remount,size={_FOLDER_BYTES}")

    def used(self) -> int:
        disk = os.statvfs(self._folder)
        return (disk.f_blocks - disk.f_bfree) * disk.f_frsize

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self._folder], check=True, capture_output=True)


class Clock:
    """The wall clock of the processes started with ``environment``; everything else about time is as ever."""

    def __init__(self, file: Path) -> None:
        self._file = file
        found = importlib.util.find_spec("libfaketime")
        library = Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1" if found and found.origin else Path()
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        self.set(-86400)
        asked = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"], env={**os.environ, **self.environment}, capture_output=True
        )
        self.works = library.name != "" and asked.returncode == 0 and abs(time.time() - 86400 - float(asked.stdout)) < 60
        if not self.works:
            self.environment = {}
        self.set(0)

    def set(self, offset: int) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset:+}")
        fresh.rename(self._file)


class Storm:
    """See the module. ``run`` gives the report, in which ``failed`` is None or what went wrong, and where what is left of it is."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        rounds: int,
        every: int,
        kinds: Sequence[str] = (),
        seconds: float = float("inf"),
        version: Any = 18,
        note: Callable[[str], None],
    ) -> None:
        """``kinds``: by turns; none: all of them, most of all ``kill``. ``every``: so many rounds from check to check.
        ``seconds``: no round begins after them.
        """
        self._folder = folder
        self._seed = seed
        self._every = every
        self._until = time.monotonic() + seconds
        self._note = note
        self._stack = ExitStack()
        self.server = Postgres(version=version, settings=_SETTINGS)
        self._wall = Clock(folder / "clock")
        place = folder / "lake"
        place.mkdir()
        self._volume = Volume(place) if os.geteuid() == 0 and shutil.which("mount") else None
        if self._volume is not None:
            try:
                self._stack.enter_context(self._volume)
            except subprocess.CalledProcessError:
                self._volume = None
        self.left_out = [
            *(["full"] if self._volume is None else []),
            *(["clock"] if not self._wall.works else []),
        ]
        rng = random.Random(f"{seed}/deck")
        if kinds:
            self._deck = [kinds[n % len(kinds)] for n in range(rounds)]
        else:
            others = [kind for kind in KINDS[1:] for _ in range(rounds // _SHARE)]
            self._deck = [*others, *["kill"] * (rounds - len(others))]
        rng.shuffle(self._deck)
        self._deck = [kind for kind in self._deck if kind not in self.left_out]
        self._mark = 0
        self._over = 0.0
        self.kills = self.verifies = 0
        self.floods = 0
        self.done: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.recovery: dict[str, list[float]] = defaultdict(list)
        self.most: Counter[str] = Counter()
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}

    def run(self) -> dict[str, Any]:
        began = time.monotonic()
        failed = None
        with self._stack:
            try:
                self._stack.enter_context(self.server)
                wire = self._wire = self._stack.enter_context(Wire(lambda: self.server.port))
                make_tables(self.server)
                with self._session() as session:
                    for statement in _TABLES.strip().split(";\n"):
                        session.execute(statement)
                dsn = self.server.dsn.replace(f":{self.server.port}/", f":{wire.port}/")
                extra = {"CRASH_DSN": dsn, "PYTHONFAULTHANDLER": "1", **self._wall.environment}
                self._lake = Lake(self._folder / "lake", self.server, _PROJECT, exclude='"public.noise"', environment=extra)
                self.follower = Follower(self._lake, self._folder / "lives")
                self._stack.callback(self.follower.kill)
                self.traders = self._stack.enter_context(Traders(self.server.dsn, str(self._seed)))
                self._rounds()
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - it is told, with what is left
                failed = self._keep(error)
        times = {
            kind: {"p50": round(statistics.median(took), 2), "max": round(max(took), 2)} for kind, took in sorted(self.recovery.items())
        }
        return {
            "seed": self._seed,
            "postgres": self.server.binaries.major,
            "rounds": dict(self.done),
            "left_out": self.left_out,
            "kills": self.kills,
            "backlogs": self.floods,
            "verifies": self.verifies,
            "transactions": self.traders.transactions if hasattr(self, "traders") else 0,
            "changes": self.traders.changes if hasattr(self, "traders") else 0,
            "recovery_seconds": times,
            "lives": self.follower.lives if hasattr(self, "follower") else 0,
            "ended_by_itself": dict(self.exits),
            "tried_again": dict(self.follower.retries) if hasattr(self, "follower") else {},
            "most": dict(self.most),
            "first": self.first,
            "last": self.last,
            "seconds": round(time.monotonic() - began, 1),
            "failed": failed,
        }

    def _rounds(self) -> None:
        self.follower.start()
        self._comes_back("start", self._end_of_log())
        for number, kind in enumerate(self._deck, 1):
            rng = random.Random(f"{self._seed}/{number}")
            time.sleep(rng.uniform(0, 2.0))
            self._what = f"round {number}, {kind}"
            told: str = getattr(self, f"_{kind}")(rng) or ""
            self._over = time.monotonic()
            seconds = self._comes_back(kind, self._end_of_log())
            self.done[kind] += 1
            self._note(f"{number}/{len(self._deck)} {kind}{told and f' ({told})'}: back after {seconds:.1f} s")
            last = number == len(self._deck) or time.monotonic() > self._until
            if last or number % self._every == 0:
                self._check(paused=last or rng.random() < 0.5)
            if last:
                break
        self._what = "the end"
        self.follower.send(signal.SIGTERM)
        self.follower.ends(_PATIENCE)
        log = self.server.log.read_text(errors="replace")
        if said := [line for line in log.splitlines() if "PANIC" in line or "signal 11" in line or "signal 6" in line]:
            raise Failure(f"PostgreSQL: {said}")

    # --------------------------------------------------------------------------------------------------------- disasters

    def _kill(self, rng: random.Random) -> str:
        self._kill_now()
        if rng.random() < 0.08:
            self._flood()
        self.follower.start()
        again = 0
        while rng.random() < 0.3:
            time.sleep(rng.uniform(0, 3.0))
            self._kill_now()
            self.follower.start()
            again += 1
        return f"{again} more while it starts" if again else ""

    def _kill_now(self) -> None:
        self._alive()
        self.follower.kill()
        self.kills += 1

    def _pause(self, rng: random.Random) -> str:
        seconds = rng.choice((rng.uniform(0.2, 2.0), rng.uniform(4.0, 8.0)))
        self.follower.send(signal.SIGSTOP)
        if rng.random() < 0.2:
            self._flood()
        time.sleep(seconds)
        self.follower.send(signal.SIGCONT)
        return f"{seconds:.1f} s"

    def _full(self, rng: random.Random) -> str:
        assert self._volume is not None
        left, refused = rng.randrange(8 << 10, 512 << 10), 0
        with self._volume.full(left):
            until = time.monotonic() + rng.uniform(2.0, 6.0)
            while time.monotonic() < until or refused == 0:
                if self._ended_full():
                    refused += 1
                    self.follower.start()
                if time.monotonic() > until + _PATIENCE:
                    raise Failure("the file system is full, and it goes on")
                time.sleep(0.05)
        if self._ended_full():
            refused += 1
            self.follower.start()
        return f"{left >> 10} KiB, said {refused} times"

    def _ended_full(self) -> bool:
        self.follower.read()
        code = self.follower.ended()
        if code not in ("", "DISK_FULL"):
            raise Failure(f"it ended: {code}")
        self.exits.update([code] if code else [])
        return bool(code)

    def _reset(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            seconds = rng.uniform(0, 3.0)
            self._wire.reset(seconds)
            return f"refused for {seconds:.1f} s"
        after = int(10 ** rng.uniform(0, 6))
        self._wire.tear(after, 3.0)
        return f"torn after {after} bytes"

    def _dead(self, rng: random.Random) -> str:
        seconds = rng.uniform(0.5, 8.0)
        self._wire.dead(seconds)
        return f"{seconds:.1f} s"

    def _slow(self, rng: random.Random) -> str:
        delay, seconds = rng.uniform(0.02, 0.3), rng.uniform(2.0, 5.0)
        if rng.random() < 0.3:
            # It must ask its way through again.
            self._wire.reset(0.0)
        self._wire.slow(delay, seconds)
        return f"{delay * 1000:.0f} ms for {seconds:.1f} s"

    def _clock(self, rng: random.Random) -> str:
        offset = rng.choice((-40 * 86400, -86400, -3600, -90, -2, 0, 2, 90, 3600, 86400, 40 * 86400))
        self._wall.set(offset)
        time.sleep(1.0)
        return f"{offset:+} s"

    def _restart(self, rng: random.Random) -> None:
        self.server.restart("fast")

    def _crash(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            self.server.restart("immediate")
            return "immediate"
        self.server.kill9()
        time.sleep(rng.uniform(0, 2.0))
        self.server.start()
        return "kill -9"

    def _walsender(self, rng: random.Random) -> str:
        with self._session() as session:
            return f"{len(session.execute('select pg_terminate_backend(pid) from pg_stat_replication').fetchall())} of them"

    def _sessions(self, rng: random.Random) -> str:
        ended = 0
        for _ in range(rng.randrange(1, 6)):
            with self._session() as session:
                ended += len(
                    session.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'icelake'").fetchall()
                )
            time.sleep(rng.uniform(0, 0.5))
        return f"{ended} of them"

    def _freeze(self, rng: random.Random) -> str:
        seconds, stopped = rng.uniform(0.5, 7.0), [self.server.pid]
        os.kill(self.server.pid, signal.SIGSTOP)  # makes no more children
        for pid in _children(self.server.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        time.sleep(seconds)
        for pid in reversed(stopped):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return f"{seconds:.1f} s"

    def _flood(self) -> None:
        """So much that what is behind comes by SQL pieces; most of it of a table that is not mirrored, between rows of those that are."""
        self.floods += 1
        with self._session() as session:
            until = self._end_of_log() + _FLOOD
            while self._end_of_log() < until:
                session.execute("insert into noise select repeat(md5(random()::text), 30000) from generate_series(1, 6)")
                session.execute("insert into audit (what, payload) select 'flood', '{}' from generate_series(1, 20)")
            session.execute("truncate noise")

    # ------------------------------------------------------------------------------------------------------------ checks

    def _comes_back(self, kind: str, position: int) -> float:
        """Until it is at ``position``; the seconds since the disaster was over. Only where it is full may it have ended."""
        deadline = time.monotonic() + _PATIENCE
        while self.follower.position < position:
            if kind == "full" and self._ended_full():
                # What failed before there was room again, ends a moment later.
                self.follower.start()
            self._alive()
            self.follower.read()
            if time.monotonic() > deadline:
                where = f"at {format_lsn(self.follower.position)}, wanted {format_lsn(position)}, says {self.follower.status}"
                raise Failure(f"it did not come back in {_PATIENCE:.0f} s: {where}\n{self.follower.stuck()}")
            time.sleep(0.02)
        seconds = time.monotonic() - self._over if self._over else 0.0
        if self._over:
            self.recovery[kind].append(seconds)
        for name in ("parked", "refused", "left_in_publication"):
            if self.follower.status.get(name):
                raise Failure(f"{name}: {self.follower.status[name]}")
        return seconds

    def _alive(self) -> None:
        if code := self.follower.ended():
            raise Failure(f"it ended: {code}")

    def _check(self, *, paused: bool) -> None:
        began = time.monotonic()
        self._what += f", {'verify' if paused else 'verify while they trade'}"
        with self.traders.paused() if paused else nullcontext():
            code, report = self._lake.run("verify", seconds=_PATIENCE)
        self._alive()
        if code != 0 or not report.get("equal") or {table["name"] for table in report["tables"]} != _MIRRORED:
            raise Failure(f"verify: exit code {code}: {report}")
        if [history["name"] for history in report["histories"]] != ["public.ledger_history"]:
            raise Failure(f"verify: no history: {report}")
        self.verifies += 1
        verified = time.monotonic() - began
        self._slots()
        self._resources()
        self.follower.forget()
        last = ", ".join(f"{name} {value}" for name, value in self.last.items())
        self._note(f"equal in {verified:.1f} s{' without trade' if paused else ''}; {self.traders.changes:,} changes; {last}")

    def _slots(self) -> None:
        """One slot, none that was meant to be temporary, and a log that may go."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with self._session() as session:
                session.execute("checkpoint")  # gives decoding a point to go on from
                slots = session.execute("select slot_name, temporary, restart_lsn from pg_replication_slots").fetchall()
                (wal,) = session.execute("select sum(size) from pg_ls_waldir()").fetchone() or (0,)
            if len(slots) == 1 and not slots[0][1] and parse_lsn(slots[0][2]) > self._mark:
                break
            if time.monotonic() > deadline:
                raise Failure(f"slots: {slots}; restart_lsn was to be past {format_lsn(self._mark)}")
            time.sleep(0.2)
        self._mark = self._end_of_log()
        self._seen("wal_mb", int(wal) >> 20)

    def _resources(self) -> None:
        process = Path(f"/proc/{self.follower.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        self._seen("descriptors", len(list((process / "fd").iterdir())))
        self._seen("threads", int(status["Threads"]))
        self._seen("resident_mb", int(status["VmHWM"].split()[0]) >> 10)
        self._seen("scratch_files", sum(1 for _ in (self._folder / "lake" / "lake" / "scratch").rglob("*")))
        self._seen("temporary_files", sum(1 for path in self.server.data.glob("base/pgsql_tmp/*")))
        files = [path for path in (self._folder / "lake" / "lake").rglob("*") if path.is_file()]
        self._seen("lake_files", len(files))
        if self._volume is not None:
            self._seen("lake_mb", self._volume.used() >> 20)

    def _seen(self, name: str, value: int) -> None:
        self.first.setdefault(name, value)
        self.last[name] = value
        self.most[name] = max(self.most[name], value)
        if value > _BOUNDS.get(name, value):
            raise Failure(f"{name}: {value}, and {_BOUNDS[name]} is the bound; first {self.first[name]}")

    # ------------------------------------------------------------------------------------------------------------ inside

    @contextmanager
    def _session(self) -> Iterator["psycopg.Connection[Any]"]:
        with psycopg.connect(self.server.dsn, autocommit=True, connect_timeout=60) as connection:
            yield connection

    def _end_of_log(self) -> int:
        with self._session() as session:
            (lsn,) = session.execute("select pg_current_wal_lsn()").fetchone() or ("0/0",)
        return parse_lsn(lsn)

    def _keep(self, error: BaseException) -> dict[str, str]:
        """What went wrong, with everything that may tell why in a folder that stays."""
        kept = Path(tempfile.mkdtemp(prefix=f"icelake-storm-{self._seed}-"))
        if hasattr(self, "follower"):
            self.follower.kill()
        self.server.stop("immediate")
        shutil.copytree(self._folder, kept, dirs_exist_ok=True, symlinks=True)
        for name in (self.server.data, self.server.log):
            with suppress(OSError):
                (shutil.copytree if name.is_dir() else shutil.copy)(name, kept / name.name)
        what = f"{type(error).__name__}: {error}"
        self._note(f"FAILED in {getattr(self, '_what', 'the beginning')}: {what}\nseed {self._seed}; lake, server and logs: {kept}")
        return {"where": getattr(self, "_what", "the beginning"), "what": what, "kept": str(kept)}


def _children(pid: int) -> list[int]:
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()]


def _interrupted(*_: object) -> None:
    """Asked to end, it takes down everything that it started."""
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="storm", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=310, help="from 31 on every kind has its rounds (default: 310, 200 of them kills)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=5, help="rounds from verify to verify")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no round begins after them")
    parser.add_argument("--kinds", default="", help=f"these, by turns: {', '.join(KINDS)}")
    parser.add_argument("--postgres", type=int, default=18, help="its version")
    parser.add_argument("--json", action="store_true", help="the report on stdout, as JSON")
    arguments = parser.parse_args()
    kinds = [kind for kind in arguments.kinds.split(",") if kind]
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, _interrupted)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="icelake-storm-") as folder:
        report = Storm(
            Path(folder),
            seed=arguments.seed,
            rounds=arguments.rounds,
            every=arguments.every,
            kinds=kinds,
            seconds=arguments.minutes * 60,
            version=arguments.postgres,
            note=lambda line: print(f"{time.monotonic() - began:7.1f} s  {line}", file=sys.stderr, flush=True),
        ).run()
    if arguments.json:
        print(orjson.dumps(report).decode())
    else:
        print(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
