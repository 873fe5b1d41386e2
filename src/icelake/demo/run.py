"""``icelake demo``: a shop trades in PostgreSQL, its changes are in Iceberg a moment later, its questions are answered, all proven.

Promises: everything is real (a PostgreSQL with durable commits, the lakehouse as every user runs it); ``verified`` is true only if
``verify`` found every table equal at one LSN while the shop traded on, and the books balanced at every cut that was asked. Nothing
is left behind, after Ctrl-C and errors too: servers end, temporary folders go (``keep`` keeps the project and its lake).
Any error of a part ends the demo and is raised as it is.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol, Self

import psycopg
import pyarrow as pa
from rich.text import Text

from icelake.compiled import announced
from icelake.demo import questions
from icelake.demo.build import Size, build
from icelake.demo.screen import Figures, Screen
from icelake.demo.shop import Traders
from icelake.errors import ProjectError, Unreachable
from icelake.ingest.applier import Progress
from icelake.lakehouse import Lakehouse
from icelake.observe.freshness import Freshness
from icelake.ports import Json
from icelake.stack.postgres import Postgres

PROJECT = """\
[project]
name = "demo"

[sources.shop]
dsn = { file = "SECRET" }
tables = ["shop.*"]
"""

PULSE = "SELECT beat FROM shop.pulse WHERE id = 1"
BEAT = "UPDATE shop.pulse SET beat = %s, at = clock_timestamp() WHERE id = 1"

FIRST_ANSWER_LIMIT = 120.0
"""Seconds until the lake must have answered; then something is badly wrong."""


@dataclass(frozen=True, slots=True)
class Options:
    """``seconds``: how long the shop trades before the last proof is asked for (the proof itself comes on top)."""

    seconds: float = 45.0
    seed: int = 7
    keep: Path | None = None
    workers: int = 3
    rate: float = 600.0
    """rows changed a second"""
    size: Size = field(default_factory=Size)


class Checked(Protocol):
    """What works beside us and may have ended of an error."""

    def check(self) -> None: ...


class Part(threading.Thread):
    """A thread whose error is kept for ``check``. ``body`` gets the event that asks it to end."""

    def __init__(self, name: str, body: Callable[[threading.Event], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._body = body
        self._error: BaseException | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        try:
            self._body(self.stopping)
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits for us
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self.join()


class Demo:
    """One run. The parts (traders, heartbeat, sync, reader) are threads; this one conducts and draws."""

    def __init__(self, options: Options, screen: Screen) -> None:
        self._options = options
        self._screen = screen
        self._freshness = Freshness()
        self._cut_made = threading.Event()
        self._status: Json = {}
        self._phase = "starting"
        self._began = time.monotonic()
        self._rows: dict[str, int] = {}
        self._counted = 0.0

    def run(self) -> Json:
        """The closing document (cli.md): ``verified``, ``tables``, ``changes``, ``lsn``, ``freshness_p50_ms``, ``freshness_p99_ms``, ..."""
        options = self._options
        with ExitStack() as stack:
            self._screen.say("starting PostgreSQL and building the shop")
            server = stack.enter_context(Postgres())
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                built = build(connection, options.seed, options.size)
            self._screen.say(
                f"the shop has {sum(built.values()):,} rows in {len(built) + 1} tables; it opens, and the lake is loaded meanwhile"
            )
            folder = self._project(server)
            traders = stack.enter_context(Traders(server.dsn, options.seed, options.workers, options.rate))
            opened = time.monotonic()
            lake = stack.enter_context(Lakehouse.open(folder))
            heart = stack.enter_context(Part("heart", lambda stop: self._beat(server.dsn, stop)))
            follower = stack.enter_context(Part("sync", lambda stop: self._follow(folder, stop)))
            parts: list[Checked] = [traders, heart, follower]

            self._phase = "loading"
            expected = len(built) + 1
            self._wait(lake, traders, parts, lambda: self._whole(lake, expected), FIRST_ANSWER_LIMIT)
            answer = lake.query(questions.FIRST).to_pylist()[0]
            first_answer = time.monotonic() - self._began
            start = lake.cuts()[0]
            started = time.monotonic()
            self._screen.answer(
                Text(
                    f"First answer after {first_answer:.1f} s: {answer['orders']:,} orders, € {answer['revenue']:,} "
                    f"(all {expected} tables at {start['lsn']})",
                    style="bold",
                )
            )
            parts.append(stack.enter_context(Part("reader", lambda stop: self._read(folder, stop))))

            self._phase = "trading"
            self._wait_until(lake, traders, parts, opened + options.seconds * 0.7)
            balanced = self._ask(lake, traders, parts, start, started)

            self._phase = "trading"
            self._wait_until(lake, traders, parts, opened + options.seconds)
            self._phase = "verifying while the shop trades"
            proof = self._verify(folder, lake, traders, parts)
            self._answer_proof(proof)
            self._screen.say(
                f"{self._status.get('changes', 0):,} changes in {self._status.get('commits', 0):,} commits; from commit to answer "
                f"{_milliseconds(self._freshness.percentile(0.50))} ms (median), {_milliseconds(self._freshness.percentile(0.99))} ms (p99)"
            )
            if options.keep:
                self._screen.say(f"the lake stays in {folder}: try icelake tables, cuts and query there")
            trades = traders.transactions
        return {
            "verified": bool(proof["equal"]) and balanced,
            "tables": len(proof["tables"]),
            "changes": int(self._status.get("changes", 0)),
            "lsn": proof["lsn"],
            "freshness_p50_ms": _milliseconds(self._freshness.percentile(0.50)),
            "freshness_p99_ms": _milliseconds(self._freshness.percentile(0.99)),
            "freshness_samples": self._freshness.samples,
            "first_answer_ms": _milliseconds(first_answer),
            "transactions": trades,
            "rows_loaded": int(self._status.get("rows_loaded", 0)),
            "commits": int(self._status.get("commits", 0)),
            "books_balance": balanced,
            "seconds": round(time.monotonic() - self._began, 1),
            "seed": options.seed,
        }

    def _project(self, server: Postgres) -> Path:
        folder = self._options.keep.resolve() if self._options.keep else server.temporary / "project"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / "icelake.toml").exists() or (folder / "lake").exists():
            raise ProjectError("DEMO_FOLDER_IN_USE", f"{folder} already holds a project", "", "name a new or empty folder with --keep")
        secret = folder / "shop.dsn"
        secret.touch(mode=0o600)
        secret.write_text(server.dsn)
        (folder / "icelake.toml").write_text(PROJECT.replace("SECRET", str(secret)), encoding="utf-8")
        return folder

    # ------------------------------------------------------------------------------------------------------ the parts

    def _beat(self, dsn: str, stop: threading.Event) -> None:
        with psycopg.connect(dsn, autocommit=True, application_name="shop heartbeat") as connection:
            while not stop.wait(0.1):
                connection.execute(BEAT, (self._freshness.next_beat(),))

    def _follow(self, folder: Path, stop: threading.Event) -> None:
        def report(progress: Progress, status: Json) -> None:
            self._status = status
            if progress.kind in ("commit", "load"):
                self._cut_made.set()

        with Lakehouse.open(folder) as lake:
            lake.sync(follow=True, stop=stop, report=report)

    def _read(self, folder: Path, stop: threading.Event) -> None:
        """Looks at every cut, as soon as it hears of it."""
        with Lakehouse.open(folder) as lake:
            while not stop.is_set():
                if self._cut_made.wait(0.2):
                    self._cut_made.clear()
                    self._freshness.saw(int(lake.query(PULSE).column("beat")[0].as_py()))

    # ---------------------------------------------------------------------------------------------------- conducting

    def _whole(self, lake: Lakehouse, expected: int) -> bool:
        cuts = lake.cuts()
        return bool(cuts) and len(cuts[0]["tables"]) >= expected

    def _wait(self, lake: Lakehouse, traders: Traders, parts: list[Checked], condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise Unreachable("DEMO_TIMEOUT", f"the demo waited {seconds:g} s in vain ({self._phase})", f"status: {self._status}")
            self._tick(lake, traders, parts)
            time.sleep(0.1)

    def _wait_until(self, lake: Lakehouse, traders: Traders, parts: list[Checked], moment: float) -> None:
        while time.monotonic() < moment:
            self._tick(lake, traders, parts)
            time.sleep(0.1)

    def _tick(self, lake: Lakehouse, traders: Traders, parts: list[Checked]) -> None:
        for part in parts:
            part.check()
        now = time.monotonic()
        if now - self._counted >= 2.0:
            self._rows = {table["name"]: table["rows"] for table in lake.tables()}
            self._counted = now
        self._screen.show(
            Figures(
                elapsed=now - self._began,
                phase=self._phase,
                traded=traders.rows,
                applied=int(self._status.get("changes", 0)),
                loaded=int(self._status.get("rows_loaded", 0)),
                cuts=int(self._status.get("commits", 0)),
                lag_bytes=self._status.get("lag_bytes"),
                lag_seconds=self._freshness.lag(),
                p50=self._freshness.percentile(0.50),
                p99=self._freshness.percentile(0.99),
                rows=self._rows,
            )
        )

    def _ask(self, lake: Lakehouse, traders: Traders, parts: list[Checked], start: Json, started: float) -> bool:
        """The shop's questions, while it trades. True if the books balance at both cuts."""

        def ask(sql: str, at: str | None = None) -> pa.Table:
            self._tick(lake, traders, parts)
            return lake.query(sql, at)

        wall = time.time()
        window = max(15.0, time.monotonic() - self._began)
        self._screen.answer(questions.draw_sales(ask(questions.sales(wall - window)), wall - window, wall))
        self._screen.answer(questions.draw_running_out(ask(questions.running_out(wall - window)), window))
        here = lake.cuts()[0]
        age = time.monotonic() - started
        then, now = (ask(questions.STATE, cut["lsn"]) for cut in (start, here))
        self._screen.answer(questions.draw_travel(then, now, start["lsn"], age))
        books = [(f"At {cut['lsn']}", ask(questions.BOOKS, cut["lsn"])) for cut in (start, here)]
        self._screen.answer(questions.draw_books(books))
        return all(questions.books_balance(answer) for _, answer in books)

    def _verify(self, folder: Path, lake: Lakehouse, traders: Traders, parts: list[Checked]) -> Json:
        proofs: list[Json] = []

        def prove(_: threading.Event) -> None:
            with Lakehouse.open(folder) as own:
                proofs.append(own.verify())

        # Not waited for when something fails: it ends with its connection, when the server does.
        verifier = Part("verify", prove)
        verifier.start()
        while verifier.is_alive():
            self._tick(lake, traders, [*parts, verifier])
            verifier.join(0.1)
        verifier.check()
        return proofs[0]

    def _answer_proof(self, proof: Json) -> None:
        for table in proof["tables"]:
            if table["missing"] or table["extra"] or table["different"]:
                found = f"{table['missing']} missing, {table['extra']} extra, {table['different']} different"
                self._screen.answer(Text(f"{table['name']}: {found}", style="bold red"))
        rows = sum(table["source_rows"] for table in proof["tables"])
        self._screen.answer(
            Text(f"Verified: {len(proof['tables'])} tables, {rows:,} rows, equal at {proof['lsn']}", style="bold green")
            if proof["equal"]
            else Text(f"NOT EQUAL at {proof['lsn']}", style="bold red")
        )


def run(options: Options, *, answers_on_stdout: bool) -> Json:
    """Run the demo; the closing document. Ctrl-C and SIGTERM end it clean (KeyboardInterrupt)."""
    with _terminable(), Screen(answers_on_stdout=answers_on_stdout) as screen, announced(screen.say):
        return Demo(options, screen).run()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP as KeyboardInterrupt, so that everything is taken down the same way."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
