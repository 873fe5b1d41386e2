"""One schedule: a seed makes a source, a load, a plan of faults; the applier runs through it; the checks judge it.

``schedule(seed)`` is a pure function of the seed (with PYTHONHASHSEED fixed, as ``python -m tests.sim`` does). A schedule has
three tables or more, fifty source transactions or more, and at least two faults that really struck.
"""

import contextlib
import random
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from icelake.errors import CommitUnknown, Fenced, Gap, IcelakeError, Refused, Unreachable
from icelake.ingest.applier import Applier, Progress, Settings
from icelake.ports import ResumeRequest
from icelake.tables import rewrite
from icelake.tables.expire import Policy
from tests.sim.checks import Checks
from tests.sim.postgres import SimPostgres, make_keyless, make_tables
from tests.sim.world import (
    CALLS,
    Broken,
    Hold,
    Killed,
    Process,
    SimCatalog,
    SimChance,
    SimDesk,
    SimIndexFiles,
    SimSource,
    SimStorage,
    World,
)

SOURCE = "shop"
VERIFY = frozenset({"desk.hold_granted", "desk.hold_answered", "catalog.lease"})
PAIRS = tuple((call, fault) for call, (faults, _) in CALLS.items() for fault in faults)
ENOUGH_FAULTS = 2
LOSSES = ("moved", "dropped", "lost", "timeline", "server", "publication", "identity", "ahead", "restored", "database")
"""What may be done to the source at the end, so that the next start must refuse."""
STEPS = 400
"""A schedule that needs more steps than this to come to rest makes no progress."""


@dataclass(slots=True)
class Result:
    seed: int
    error: str | None = None
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    transactions: int = 0
    tables: int = 0
    faults: int = 0
    cuts: int = 0
    processes: int = 0
    steps: int = 0
    answers: int = 0


@dataclass(slots=True)
class Running:
    process: Process
    applier: Applier
    chance: random.Random


class Schedule:
    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(f"schedule {seed}")
        # A schedule has few commits: often enough files must be merged all the same.
        rewrite.FANOUT = random.Random(f"fan-out {seed}").choice((3, 4, 8))
        tables = make_tables(full=rng.random() < 0.4)
        if rng.random() < 0.6:
            tables.pop(rng.randrange(len(tables)))
        tables += [table for table in make_keyless() if random.Random(f"{table.name} {seed}").random() < 0.35]
        self.names = [table.name for table in tables]
        self.wanted = list(self.names)
        # Drawn apart: whether there is a history must not change what else happens.
        self.moods = random.Random(f"history {seed}")
        self.historic = {name for name in self.names if self.moods.random() < 0.4}
        self.fickle = self.moods.choice(self.names)
        self.late_table = rng.random() < 0.4
        if self.late_table:
            self.wanted.remove(rng.choice(self.names))
        postgres = SimPostgres(random.Random(f"postgres {seed}"), tables)
        for _ in range(rng.randrange(3)):
            postgres.transact(rng.randrange(1, 40))
        self.world = World(seed, postgres, self._plan(), 50 + rng.randrange(6))
        self.world.trace = trace
        self.world.take_over = self._take_over
        self.checks = Checks(self.world, SOURCE, thorough=trace is not None)
        self.settings = Settings(
            commit_interval=rng.choice((0.0, 1.0, 2.0, 2.0)),
            take_bytes=random.Random(f"take {seed}").choice((300, 2000, 1 << 23, 1 << 23)),
            chunk_bytes=rng.choice((600, 4000, 1 << 25, 1 << 25)),
            batch_bytes=rng.choice((2000, 1 << 28, 1 << 28)),
            range_rows=rng.choice((6, 20, 500_000)),
            idle_interval=rng.choice((0.5, 5.0)),
            hold_lease=3600.0,
            upkeep_commits=rng.choice((3, 5, 8)),
            parked_bytes=rng.choice((4_000, 1 << 30, 1 << 30)),
            retention=self._policy(),
            rest_interval=random.Random(f"rest {seed}").choice((0.5, 3.0, 10.0)),
            grace=random.Random(f"grace {seed}").choice((0.0, 0.0, 3.0, 600.0)),
        )
        # A fault of resuming can only strike where something is resumed.
        resumed = any(call.startswith("desk.resume") for call, _ in self.world.plan)
        self.sickly = rng.random() < 0.35 or resumed
        own = random.Random(f"chronic {seed}")
        self.chronic = own.random() < 0.2 and not resumed
        """One table is unwell from the beginning, and nobody asks for it before the end: much is kept of it."""
        if self.chronic:
            self.world.unwell.add(own.choice(tables).relation.oid)
        # Drawn apart, as histories are.
        self.ddl = random.Random(f"ddl {seed}")
        self.meddled = self.ddl.random() < 0.25 and not resumed
        """Somebody takes tables out of their publication, or writes their rows anew."""
        self.readers = random.Random(f"readers {seed}")
        own = random.Random(f"lost {seed}")
        self.lost_on = own.choice(LOSSES) if own.random() < 0.2 else ""
        self.read = self.readers.random() < 0.2
        self.world.meanwhile = self._meanwhile
        self.running: list[Running] = []
        self.steps = 0
        self.nested = 0

    def _policy(self) -> Policy:
        return self.rng.choice(
            (Policy(), Policy(((2_000, 0), (20_000, 4_000))), Policy(((1_000, 0),)), Policy(((6_000, 1_000), (60_000, 10_000))))
        )

    def _plan(self) -> Mapping[tuple[str, int], str]:
        rng = self.rng
        plan: dict[tuple[str, int], str] = {}
        for _ in range(rng.choice((3, 3, 4, 4, 5))):
            call, fault = rng.choice(PAIRS)
            plan[call, 1 + int(rng.random() ** 1.3 * CALLS[call][1])] = fault
        # While an answer is waited for is when it matters most that another process starts.
        apart = random.Random(f"meanwhile {self.seed}")
        for (call, number), fault in list(plan.items()):
            if call == "catalog.commit" and fault.startswith(("unknown", "out")) and apart.random() < 0.4:
                plan.setdefault((call, number + 1), "takeover")
        return plan

    # ------------------------------------------------------------------------------------------------------ processes

    def _start(self) -> Running:
        world = self.world
        process = world.spawn()
        chance = random.Random(f"chance {self.seed} {process.number}")
        if self.moods.random() < 0.25:
            self.historic ^= {self.fickle}
            world.say(f"histories of {', '.join(sorted(self.historic))}")
        historic = frozenset(self.historic)
        applier = Applier(
            SOURCE,
            SimSource(world, process),
            SimCatalog(world, process),
            SimStorage(world, process),
            world.clock,
            SimChance(chance),
            SimDesk(world, process),
            lambda table: SimIndexFiles(world, process, table),
            list(self.wanted),
            settings=self.settings,
            history=lambda relation: str(relation.id) in historic,
        )
        running = Running(process, applier, chance)
        self.running.append(running)
        return running

    def _take_over(self, old: Process) -> None:
        """Another process starts and works while the old one stands in the middle of a call."""
        world = self.world
        if self.nested:
            return
        self.nested += 1
        committing, world.committing = world.committing, None
        try:
            new = self._start()
            steps = self.rng.choice((0, 0, 1, 2, 5))
            if not steps:
                # It owns the source from here on, and does no more for now.
                self._step(new, only_start=True)
            for _ in range(steps):
                if not self._step(new):
                    break
        finally:
            self.nested -= 1
            world.committing = committing

    def _step(self, running: Running, only_start: bool = False) -> bool:
        """One step of a process; False if it is no more."""
        world = self.world
        self.steps += 1
        try:
            if only_start:
                running.applier.start()
                progress = Progress("wait", position=running.applier.position)
            else:
                progress = running.applier.step(0.2)
        except (Unreachable, CommitUnknown) as error:
            if not only_start:
                raise Broken(f"process {running.process.number} gave up: {error}") from error
            return True
        except Killed:
            if running.process.alive:
                raise Broken("a process died that is alive") from None
        except Fenced as error:
            owner = world.epochs[max(world.epochs)]
            if owner == running.process.number:
                raise Broken(f"process {owner} owns the source and was fenced: {error}") from error
            world.say(f"[{running.process.number}] fenced")
            world.end(running.process)
        except IcelakeError as error:
            raise Broken(f"process {running.process.number} refused: {type(error).__name__} {error}") from error
        else:
            world.say(f"[{running.process.number}] step: {progress.kind} at {progress.position:X} {progress.error or ''}")
            return True
        self.running.remove(running)
        return False

    # ---------------------------------------------------------------------------------------------------------- course

    def run(self) -> None:
        world, rng = self.world, self.rng
        extra = 0
        patience = 100
        while True:
            if world.transactions_left and rng.random() < 0.4:
                for _ in range(rng.choice((1, 2, 4, 8))):
                    world.transact()
            world.time += rng.choice((0.0, 0.2, 1.2))
            self._disturb()
            self._newest_step()
            for old in self.running[:-1]:
                if rng.random() < 0.3:
                    self._step(old)
            if world.transactions_left or not (self._caught_up() or self.steps > patience):
                continue
            if sum(world.hits.values()) >= ENOUGH_FAULTS:
                break
            extra += 1
            if extra > 20:
                raise Broken("the schedule cannot strike enough faults")
            patience = self.steps + 30
            world.transactions_left += 3
            call, fault = rng.choice((("storage.flush", "kill"), ("catalog.commit", "kill after"), ("stream.wait", "error")))
            world.plan[call, world.counts[call] + 1 + rng.randrange(2)] = fault
        self._come_to_rest()

    def _disturb(self) -> None:
        world, rng = self.world, self.rng
        draw = rng.random()
        if draw < 0.03:
            world.postgres.other_activity()
        elif draw < 0.05 and world.hold is not None:
            world.hold.withdrawn = True
        elif (world.hold is None or world.hold.answered or world.hold.withdrawn) and (draw < 0.08 or self._verify_planned()):
            world.holds += 1
            world.hold = Hold(f"hold-{world.holds}", world.time + rng.choice((2.0, 60.0, 60.0)))
        elif draw < 0.1 and self.late_table and world.transactions_left < 30 and self.running:
            # A table joins: the program is stopped in order and started again with it.
            self.late_table = False
            self.wanted = list(self.names)
            self._stop(self.running[-1])
        elif draw < 0.12 and self.running:
            self._stop(self.running[-1])
        elif draw < 0.15 and self.sickly and world.transactions_left:
            # Its next Relation message comes with the next connection.
            name = rng.choice(self.names)
            world.unwell ^= {world.postgres.tables[name].relation.oid}
            world.say(f"{name} is {'un' if world.postgres.tables[name].relation.oid in world.unwell else ''}well")
            if rng.random() < 0.7:
                for connection in world.connections:
                    connection.attached = False
        elif draw < 0.18 and self.sickly and not self.chronic:
            self._wish()
        elif draw < 0.19:
            world.promote()

    def _meanwhile(self) -> None:
        if self.read and self.readers.random() < 0.01:
            self.checks.lease(self.readers)
        if self.meddled and self.world.transactions_left and self.ddl.random() < 0.015:
            self._meddle()

    def _meddle(self) -> None:
        """Changes of a table are missing from the stream from here on, or for a while, or one change of all its rows is."""
        postgres, rng = self.world.postgres, self.ddl
        # One that has no mirror yet may be refused: then there is nothing that could go wrong.
        mirrors = [name for name in self.names if postgres.tables[name].relation.id in self.world.server.tables()]
        if not mirrors:
            return
        name = rng.choice(mirrors)
        before = dict(postgres.publications)
        # A multiset whose next old row is one the lake never had says MIRROR_DIVERGED before anybody looks at its marks.
        ways = ("leaves", "leaves and comes back", "rewritten")
        what = rng.choice(ways[:2] if postgres.tables[name].relation.identity == "full" else ways)
        self.world.say(f"{name}: {what}")
        if what == "rewritten":
            postgres.rewrite(name)
        else:
            postgres.leave(name)
        if what == "leaves and comes back":
            for _ in range(rng.randrange(3)):
                self.world.transact()
            postgres.come_back(name, before)

    def _wish(self) -> None:
        """Somebody asks that what is parked goes on; sometimes that what is not parked is compared."""
        world, rng = self.world, self.rng
        if world.wish is not None or not self.running:
            return
        applier = self.running[-1].applier
        parked = [str(table) for table in applier.parked]
        wanted = parked or [str(table) for table in applier.followed if rng.random() < 0.3]
        if wanted:
            world.wishes += 1
            reload = not parked or rng.random() < 0.4
            world.wish = ResumeRequest(f"wish-{world.wishes}", tuple(wanted), reload)
            world.say(f"wish-{world.wishes}: {', '.join(wanted)}{' reload' if reload else ''}")

    def _verify_planned(self) -> bool:
        """A fault is waiting in the conversation with ``verify``: somebody must begin one."""
        return self.rng.random() < 0.3 and any(call in VERIFY for call, _ in self.world.plan)

    def _stop(self, running: Running) -> None:
        with contextlib.suppress(Killed):
            running.applier.close()
        self.world.end(running.process)
        self.running.remove(running)

    def _newest_step(self) -> None:
        if not self.running or self.running[-1].process is not self.world.newest:
            self._start()
        self._step(self.running[-1])

    def _caught_up(self) -> bool:
        if not self.running or self.running[-1].process is not self.world.newest:
            return False
        applier = self.running[-1].applier
        whole = not applier.loading and not applier.parked and self.world.wish is None
        return applier.position >= self.world.postgres.history.ends[-1] and bool(applier.followed) and whole

    def _come_to_rest(self) -> None:
        """Faults end; whatever was under way lands; the mirror must now reach the source and every zombie its end."""
        world = self.world
        world.quiet = True
        world.hold = None
        world.unwell.clear()
        self.wanted = list(self.names)
        for request in world.late:
            request.due = 0
        world.tick()
        if self.late_table and self.running:
            self._stop(self.running[-1])
        limit = self.steps + STEPS
        while True:
            if self.steps > limit:
                raise Broken(f"no progress: {STEPS} steps did not bring the mirror to the source")
            self._newest_step()
            if not self.running:
                continue
            world.time += 0.5
            if self.running[-1].applier.parked:
                self._wish()
            self.running[-1].applier.run_to(world.postgres.wal)
            if self._caught_up():
                break
        for old in list(self.running[:-1]):
            for _ in range(60):
                world.time += 5.0
                if not self._step(old):
                    break
            else:
                raise Broken(f"process {old.process.number} is a zombie and never notices")
        self.checks.finish(self.wanted, self.historic)
        if self.lost_on:
            self._refused(self.lost_on)

    def _refused(self, lost_on: str) -> None:
        """Something was done to the source that loses changes, or may: the next start must refuse, and say why."""
        world, postgres = self.world, self.world.postgres
        if lost_on == "ahead" and not self._read_ahead():
            return
        newest = max(followed.load.newest for followed in self.running[-1].applier.followed.values())
        self._stop(self.running[-1])
        (slot,) = postgres.slots.values()
        publication = next(iter(postgres.publications))
        world.say(f"the source was changed: {lost_on}")
        if lost_on == "moved":
            postgres.other_activity()
            slot.confirmed = postgres.transact(3).end_lsn
        elif lost_on == "dropped":
            del postgres.slots[slot.name]
        elif lost_on == "lost":
            slot.lost = "wal_removed"
        elif lost_on == "timeline":
            postgres.promote(self.checks.position - 8)
        elif lost_on == "ahead":
            postgres.promote(newest - 8)
        elif lost_on == "restored":
            postgres.restored = self.checks.position - 8
        elif lost_on == "database":
            postgres.database = "another"
        elif lost_on == "server":
            postgres.system_id += "1"
        elif lost_on == "publication":
            some = postgres.tables[self.names[0]].relation.oid
            postgres.publications[publication] -= {some}
        else:
            postgres.unnamed.add(postgres.tables[self.names[0]].relation.oid)
        applier = self._start().applier
        try:
            applier.step(0.2)
        except Refused as error:
            expected = Refused if lost_on in ("server", "database") else Gap
            if type(error) is not expected or lost_on in ("publication", "identity"):
                raise Broken(f"{lost_on}: {error}") from error
        else:
            parked = {str(table): parked.note.code for table, parked in applier.parked.items()}
            code = {"publication": "PUBLICATION_CHANGED", "identity": "REPLICA_IDENTITY_LOST"}.get(lost_on, "")
            if parked != {self.names[0]: code}:
                raise Broken(f"the source was changed ({lost_on}), and nobody noticed; parked: {parked}")
            if postgres.unnamed & postgres.publications[publication]:
                raise Broken(f"the users of {self.names[0]} cannot change it, because it is published")
        postgres.restored = None
        if lost_on not in ("server", "database"):
            self._mended(applier)

    def _read_ahead(self) -> bool:
        """Have a table compared with the source; whether a range of it was read later than the lake's position, which did not move."""
        world, applier = self.world, self.running[-1].applier
        keyed = [table for table, followed in applier.followed.items() if followed.relation.identity == "key"]
        if not keyed:
            return False
        world.postgres.other_activity()
        world.wishes += 1
        world.wish = ResumeRequest(f"wish-{world.wishes}", (str(keyed[0]),), True)
        for _ in range(STEPS):
            applier.step(0.2)
            if any(followed.load.newest > applier.position for followed in applier.followed.values()):
                return True
            if world.wish is None and not applier.loading and applier.followed:
                return False
        return False

    def _mended(self, applier: Applier) -> None:
        """And the way out: every table is compared with the source, and is its mirror again."""
        world = self.world
        world.postgres.unnamed.clear()
        if not applier.parked:
            applier.renew()
            self.checks.renewed()
        for _ in range(STEPS):
            if applier.parked:
                self._wish()
            applier.step(0.2)
            world.time += 0.5
            applier.run_to(world.postgres.wal)
            if self._caught_up():
                self.checks.finish(self.wanted, self.historic)
                return
        raise Broken("what was compared with the source did not become its mirror again")


def schedule(seed: int, trace: Callable[[str], None] | None = None) -> Result:
    """Play one schedule. ``Result.error`` is None when every invariant held."""
    play = Schedule(seed, trace)
    result = Result(seed)
    try:
        play.run()
    except Exception as error:  # noqa: BLE001 - whatever comes out of the applier is a finding
        result.error = f"{type(error).__name__}: {error}"
        play.world.say(traceback.format_exc())
    world = play.world
    world.server.close()
    result.hits = world.hits
    result.faults = sum(world.hits.values())
    result.transactions = len(world.postgres.log)
    result.tables = len(play.names)
    result.cuts = play.checks.cuts
    result.processes = len(world.processes)
    result.steps = play.steps
    result.answers = play.checks.answers
    return result
