"""The world the applier lives in, played from a seed: processes that die, a disk that forgets, a catalog that does not answer.

Every port of ``icelake.ports`` is here, over one shared world. Each call of a port first lets the world go on (the source
commits, a late request lands), then consults the plan of faults. A process that is dead has no effects whatever its unwinding
code calls. Nothing here decides whether the applier is right: that is ``checks.py``.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from icelake.catalog.store import SqlCatalog
from icelake.errors import CommitConflict, CommitUnknown, Corrupt, IcelakeError, Refused, Unreachable, UnsupportedTable
from icelake.model.ident import append_publication
from icelake.model.load import Bound
from icelake.model.membership import Membership
from icelake.model.relation import Refusal, Relation, SlotState, SourceIdentity, TableId
from icelake.ports import (
    Chunk,
    HoldRequest,
    Json,
    Lease,
    LoadedTable,
    RangeEnd,
    RangeRead,
    RangeReading,
    ResumeRequest,
    StoredFile,
    TableChange,
    arrow_schema,
)
from icelake.sources.postgres.pgoutput import Decoder, Raw, RelationMessage
from tests.sim.postgres import SimPostgres, Transaction, parsed_key, text_of

WAREHOUSE = "/lake"

KILLS = ("kill", "kill after")
POWER = ("power", "power after")
CALLS: Mapping[str, tuple[tuple[str, ...], int]] = {
    # port call: the faults it can meet, and about how many such calls a schedule makes
    "source.identify": ((*KILLS, "error"), 4),
    "source.describe": ((*KILLS, "error"), 4),
    "source.publish": ((*KILLS, "error", "lost"), 1),
    "source.published": ((*KILLS, "error"), 2),
    "source.slot": ((*KILLS, "error"), 4),
    "source.create_slot": ((*KILLS, "error", "lost"), 1),
    "source.stream": ((*KILLS, "error", "lost"), 4),
    "source.read_range": ((*KILLS, "error", "takeover"), 5),
    "source.rows": ((*KILLS, "error", "takeover"), 5),
    "stream.wait": ((*KILLS, "error", "server crash", "takeover"), 18),
    "stream.take": ((*KILLS, "error", "server crash"), 14),
    "stream.confirm": ((*KILLS, *POWER, "lost", "takeover"), 6),
    "storage.write": ((*KILLS, *POWER, "error", "lost"), 50),
    "storage.flush": ((*KILLS, *POWER, "error", "lost", "takeover"), 10),
    "storage.read": ((*KILLS, "error"), 24),
    "storage.open": ((*KILLS, "error"), 5),
    "storage.delete": ((*KILLS, *POWER, "error", "lost"), 2),
    "catalog.create": ((*KILLS, *POWER, "error", "unknown undone", "unknown done"), 3),
    "catalog.load": ((*KILLS, "error", "takeover"), 20),
    "catalog.tables": ((*KILLS, "error"), 3),
    "catalog.commit": (
        (
            *KILLS,
            *POWER,
            "error",
            "unknown undone",
            "unknown done",
            "unknown late",
            "takeover",
            "out after undone",
            "out after done",
            "out after late",
        ),
        14,
    ),
    "catalog.leases": ((*KILLS, "error"), 1),
    "catalog.put": ((*KILLS, *POWER), 40),
    "index.read": ((*KILLS, "rot"), 4),
    "index.append": ((*KILLS, *POWER), 10),
    "index.replace": ((*KILLS, *POWER), 2),
    "desk.resume_wanted": (KILLS, 25),
    "desk.resume_answered": (KILLS, 1),
    "desk.hold_wanted": (KILLS, 25),
    "desk.hold_granted": ((*KILLS, "forgotten"), 1),
    "desk.hold_answered": ((*KILLS, "forgotten"), 1),
    "catalog.lease": ((*KILLS, "error"), 1),
}
"""Every (port call, fault) pair that is played."""


class Killed(BaseException):
    """The process that made this call is dead. Not an Exception: nothing may catch it."""


class Broken(AssertionError):
    """An invariant does not hold."""


class Machine:
    """A file system: what is on disk, and what is only in the page cache."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.files: dict[str, bytes] = {}
        self.dirty: dict[str, bytes] = {}

    def get(self, location: str) -> bytes | None:
        data = self.dirty.get(location)
        return self.files.get(location) if data is None else data

    def power_cut(self) -> None:
        """What was not synced is gone, torn, or by chance there."""
        for location, data in self.dirty.items():
            fate = self.rng.random()
            if fate < 0.25:
                self.files[location] = data[: self.rng.randrange(len(data) + 1)]
            elif fate < 0.4:
                kept = self.rng.randrange(len(data) + 1)
                self.files[location] = data[:kept] + bytes(len(data) - kept)
            elif fate < 0.5:
                self.files[location] = data
        self.dirty.clear()


@dataclass(slots=True)
class Process:
    """One run of the applier's program. ``number`` grows with every start."""

    number: int
    alive: bool = True
    epoch: int = 0
    unsynced: list[str] = field(default_factory=list)


@dataclass(slots=True)
class LateRequest:
    due: int
    process: Process
    changes: Sequence[TableChange]


@dataclass(slots=True)
class Hold:
    request: str
    deadline: float
    lsn: int | None = None
    granted_at: int | None = None
    lsn_at: int = 0
    withdrawn: bool = False
    answered: bool = False


class World:
    """All that outlives a process. ``enter`` is the one gate every port call passes."""

    def __init__(self, seed: int, postgres: SimPostgres, plan: Mapping[tuple[str, int], str], transactions: int) -> None:
        self.rng = random.Random(f"world {seed}")
        self.postgres = postgres
        self.plan = dict(plan)
        self.transactions_left = transactions
        self.machine = Machine(random.Random(f"disk {seed}"))
        self.index_files: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()
        self.hits: Counter[tuple[str, str]] = Counter()
        self.time = 1_760_000_000.0
        self.skew = 0.0
        self.ticks = 0
        self.processes: list[Process] = []
        self.late: list[LateRequest] = []
        self.committing: Process | None = None
        self.hold: Hold | None = None
        self.holds = 0
        self.unwell: set[int] = set()
        """OIDs of tables that cannot be followed for a while."""
        self.wish: ResumeRequest | None = None
        self.wishes = 0
        self.outage = 0
        """How many commits more the catalog does not answer."""
        self.trace: Callable[[str], None] | None = None
        self.take_over: Callable[[Process], None] | None = None
        self.committed: Callable[[Process, Sequence[TableChange], Sequence[LoadedTable]], None] = lambda *_: None
        self.confirming: Callable[[int], None] = lambda _: None
        self.answered: Callable[[Hold, int, str], None] = lambda *_: None
        self.meanwhile: Callable[[], None] = lambda: None
        """What others do between any two steps of the applier."""
        self.connections: list[SimStream] = []
        self.epochs: dict[int, int] = {}
        """Epoch -> the number of the process that committed it."""
        self.quiet = False
        self.restarted = False
        """Whether the power was cut since a process was started."""
        self.clock = SimClock(self)
        self.server = SqlCatalog.sqlite(":memory:", WAREHOUSE, ServerStorage(self), self.clock, SimChance(random.Random(f"server {seed}")))

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(text)

    def spawn(self) -> Process:
        process = Process(len(self.processes) + 1)
        self.processes.append(process)
        if self.restarted:
            # As the catalog does when it is opened on a machine that was started anew.
            self.restarted = False
            self.server.mend()
        self.say(f"process {process.number} starts")
        return process

    @property
    def newest(self) -> Process:
        return self.processes[-1]

    # ----------------------------------------------------------------------------------------------------- the gate

    def enter(self, process: Process, call: str) -> str | None:
        """Called first by every port call. The fault the call itself has to play, or None."""
        if not process.alive:
            raise Killed
        self.ticks += 1
        self.time += 0.0005
        if call in _BUSY:
            self.tick()
        number = self.counts[call] = self.counts[call] + 1
        if self.trace is not None:
            self.trace(f"[{process.number}] {call} #{number}")
        fault = self.plan.pop((call, number), None)
        if fault is None or self.quiet:
            return None
        if fault == "takeover":
            if self.take_over is None or process is not self.newest:
                return None
            self.hit(call, fault)
            self.take_over(process)
            if not process.alive:
                raise Killed
            return None
        self.hit(call, fault)
        if fault == "kill":
            self.kill(process)
        if fault == "power":
            self.power_cut()
            raise Killed
        return fault

    def leave(self, process: Process, call: str, fault: str | None) -> None:
        """Called last by every port call that was done."""
        if fault is None:
            return
        if fault == "kill after":
            self.kill(process)
        if fault == "power after":
            self.power_cut()
            raise Killed
        if fault == "lost":
            raise Unreachable("SIM_LOST", f"{call}: done, and the answer was lost")

    def hit(self, call: str, fault: str) -> None:
        self.hits[call, fault] += 1
        self.say(f"*** {fault} at {call}")

    def kill(self, process: Process) -> None:
        """kill -9: memory is gone, the page cache is not."""
        self.end(process)
        raise Killed

    def end(self, process: Process) -> None:
        process.alive = False
        for connection in self.connections:
            if connection.process is process:
                connection.attached = False

    def power_cut(self) -> None:
        for process in self.processes:
            if process.alive:
                self.end(process)
        self.machine.power_cut()
        self.restarted = True
        for name in list(self.index_files):
            fate = self.rng.random()
            data = self.index_files[name]
            if fate < 0.2:
                del self.index_files[name]
            elif fate < 0.5:
                self.index_files[name] = data[: self.rng.randrange(len(data) + 1)]
            elif fate < 0.6:
                kept = self.rng.randrange(len(data) + 1)
                self.index_files[name] = data[:kept] + bytes(len(data) - kept)

    def tick(self) -> None:
        """The world goes on by itself between any two steps of the applier."""
        rng = self.rng
        if self.transactions_left and rng.random() < 0.06:
            self.transact()
        if rng.random() < 0.02:
            self.postgres.other_activity()
        if self.late:
            for request in [request for request in self.late if request.due <= self.ticks]:
                self.late.remove(request)
                self.land(request)
        self.meanwhile()

    def transact(self) -> None:
        if self.transactions_left <= 0:
            return
        self.transactions_left -= 1
        size = self.rng.choice((0, 1, 1, 1, 2, 2, 3, 5)) if self.rng.random() < 0.98 else self.rng.randrange(30, 90)
        transaction = self.postgres.transact(size)
        if self.trace is not None:
            self.trace(f"source commits {transaction.commit_lsn:X}..{transaction.end_lsn:X}, {len(transaction.changes)} changes")

    def land(self, request: LateRequest) -> None:
        """A request that was under way reaches the catalog now, whoever sent it and whether or not he lives."""
        try:
            after = self.server.commit(request.changes)
        except CommitConflict:
            self.say("a late request lands: refused (409)")
            return
        self.say("a late request lands: done")
        self.committed(request.process, request.changes, after)

    def server_crash(self) -> None:
        """The source's server dies and comes back: connections are gone, slots stand where they were last persisted."""
        for connection in self.connections:
            connection.attached = False
        self.postgres.crash()

    def promote(self) -> None:
        """A standby that has everything, the slot too, takes the server's place."""
        self.say("a standby is promoted")
        self.server_crash()
        self.postgres.promote(self.postgres.wal)

    def unreachable(self, call: str) -> Unreachable:
        return Unreachable("LOCKED" if call == "source.read_range" else "SIM_UNREACHABLE", f"{call}: nothing was done")


_BUSY = frozenset({"source.publish", "source.create_slot", "source.describe", "source.stream", "source.read_range", "source.rows",
                   "stream.wait", "stream.take", "stream.confirm", "storage.flush", "catalog.commit", "catalog.load"})  # fmt: skip


# ------------------------------------------------------------------------------------------------------ clock and chance


class SimClock:
    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        """Jumps, also backwards."""
        world = self._world
        if world.rng.random() < 0.02:
            world.skew = world.rng.choice((0.0, -30.0, -300.0, 2.5))
        return world.time + world.skew

    def monotonic(self) -> float:
        return self._world.time

    def sleep(self, seconds: float) -> None:
        self._world.time += seconds
        self._world.tick()


class SimChance:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def snapshot_id(self) -> int:
        return self._rng.getrandbits(62) + 1

    def uuid(self) -> str:
        digits = f"{self._rng.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


# --------------------------------------------------------------------------------------------------------------- storage


class SimStorage:
    """``ports.Storage`` of one process."""

    prefix = "storage"

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def _enter(self, call: str) -> str | None:
        return self._world.enter(self._process, f"{self.prefix}.{call}")

    def _leave(self, call: str, fault: str | None) -> None:
        self._world.leave(self._process, f"{self.prefix}.{call}", fault)

    def write(self, location: str, data: bytes | pa.Buffer) -> None:
        fault = self._enter("write")
        if fault == "error":
            raise self._world.unreachable("storage.write")
        content = bytes(data)
        machine = self._world.machine
        there = machine.get(location)
        if there is not None and there != content:
            raise Broken(f"location reused: {location}")
        if there is None:
            machine.dirty[location] = content
        self._process.unsynced.append(location)
        self._leave("write", fault)

    def put(self, location: str, data: bytes) -> None:
        """As ``write``; nobody syncs it."""
        fault = self._enter("put")
        if fault == "error":
            raise self._world.unreachable("storage.put")
        self._world.machine.dirty[location] = bytes(data)
        self._leave("put", fault)

    def flush(self) -> None:
        fault = self._enter("flush")
        machine = self._world.machine
        pending = self._process.unsynced
        if fault == "error":
            for location in pending[: len(pending) // 2]:
                if location in machine.dirty:
                    machine.files[location] = machine.dirty.pop(location)
            raise self._world.unreachable("storage.flush")
        for location in pending:
            if location in machine.dirty:
                machine.files[location] = machine.dirty.pop(location)
        pending.clear()
        self._leave("flush", fault)

    def _get(self, location: str) -> bytes:
        data = self._world.machine.get(location)
        if data is None:
            raise Corrupt("FILE_MISSING", f"{location} is not there")
        return data

    def read(self, location: str, offset: int = 0, length: int | None = None) -> bytes:
        fault = self._enter("read")
        if fault == "error":
            raise self._world.unreachable("storage.read")
        data = self._get(location)
        self._leave("read", fault)
        return data[offset:] if length is None else data[offset : offset + length]

    def open(self, location: str) -> pa.NativeFile:
        fault = self._enter("open")
        if fault == "error":
            raise self._world.unreachable("storage.open")
        data = self._get(location)
        self._leave("open", fault)
        return pa.BufferReader(data)

    def delete(self, location: str) -> None:
        fault = self._enter("delete")
        if fault == "error":
            raise self._world.unreachable("storage.delete")
        self._world.machine.files.pop(location, None)
        self._world.machine.dirty.pop(location, None)
        self._leave("delete", fault)

    def list(self, prefix: str) -> Iterator[StoredFile]:
        self._enter("list")
        machine = self._world.machine
        for location in sorted({*machine.files, *machine.dirty}):
            if location.startswith(prefix):
                yield StoredFile(location, len(self._get(location)), self._world.time)


class ServerStorage(SimStorage):
    """The catalog's own storage: in one process with whoever is committing, so that one can die inside the catalog."""

    prefix = "catalog"

    def __init__(self, world: World) -> None:
        super().__init__(world, Process(0))

    def _enter(self, call: str) -> str | None:
        process = self._world.committing
        if process is None or call != "put":
            return None
        return self._world.enter(process, f"catalog.{call}")

    def _leave(self, call: str, fault: str | None) -> None:
        if self._world.committing is not None:
            self._world.leave(self._world.committing, f"catalog.{call}", fault)


# --------------------------------------------------------------------------------------------------------------- catalog


class SimCatalog:
    """``ports.Catalog`` of one process: the real catalog behind a wire that loses requests and answers."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def _read(self, call: str, what: Callable[[], Any]) -> Any:
        fault = self._world.enter(self._process, f"catalog.{call}")
        if fault == "error":
            raise self._world.unreachable(f"catalog.{call}")
        answer = what()
        self._world.leave(self._process, f"catalog.{call}", fault)
        return answer

    def tables(self) -> Sequence[TableId]:
        return self._read("tables", self._world.server.tables)

    def load(self, table: TableId) -> LoadedTable:
        return self._read("load", lambda: self._world.server.load(table))

    def lease(self, holder: str, snapshots: Mapping[TableId, int], seconds: float) -> Lease:
        return self._read("lease", lambda: self._world.server.lease(holder, snapshots, seconds))

    def release(self, lease_id: str) -> None:
        self._read("release", lambda: self._world.server.release(lease_id))

    def leases(self) -> Sequence[Lease]:
        return self._read("leases", self._world.server.leases)

    def _write(self, call: str, what: Callable[[], Any]) -> Any:
        """Run ``what`` inside the catalog; the process may die in there."""
        world = self._world
        world.committing = self._process
        try:
            return what()
        finally:
            world.committing = None

    def create(
        self,
        table: TableId,
        schema: Json,
        properties: Mapping[str, str],
        location: str | None = None,
        *,
        partition_spec: Json | None = None,
        sort_order: Json | None = None,
        format_version: int = 3,
    ) -> LoadedTable:
        world = self._world
        fault = world.enter(self._process, "catalog.create")
        if fault == "error":
            raise world.unreachable("catalog.create")
        if fault == "unknown undone":
            raise CommitUnknown("SIM_UNKNOWN", "the request was lost")
        made: LoadedTable = self._write(
            "create",
            lambda: world.server.create(
                table,
                schema,
                properties,
                location,
                partition_spec=partition_spec,
                sort_order=sort_order,
                format_version=format_version,
            ),
        )
        if fault == "unknown done":
            raise CommitUnknown("SIM_UNKNOWN", "the answer was lost")
        world.leave(self._process, "catalog.create", fault)
        return made

    def commit(self, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        world = self._world
        fault = world.enter(self._process, "catalog.commit")
        if fault is not None and fault.startswith("out after"):
            world.outage = 6
            fault = fault.replace("out after", "unknown")
        elif world.outage:
            world.outage -= 1
            fault = "error"
        if fault == "error":
            raise world.unreachable("catalog.commit")
        if fault == "unknown undone":
            raise CommitUnknown("SIM_UNKNOWN", "the request was lost")
        if fault == "unknown late":
            wait = world.rng.choice((1, 5, 20, 100, 400))
            world.late.append(LateRequest(world.ticks + world.rng.randrange(1, wait + 1), self._process, list(changes)))
            raise CommitUnknown("SIM_UNKNOWN", "no answer yet")
        try:
            after = self._write("commit", lambda: world.server.commit(changes))
        except CommitConflict as error:
            world.say(f"[{self._process.number}] 409 {error.what}")
            if fault == "unknown done":
                raise CommitUnknown("SIM_UNKNOWN", "the answer (409) was lost") from None
            raise
        world.say(f"[{self._process.number}] committed {', '.join(str(change.id) for change in changes)}")
        world.committed(self._process, changes, after)
        if fault == "unknown done":
            raise CommitUnknown("SIM_UNKNOWN", "the answer was lost")
        world.leave(self._process, "catalog.commit", fault)
        return after


# ----------------------------------------------------------------------------------------------------------- index files


class SimIndexFiles:
    """The key index's files of one table: never synced, so a power cut tears them; sometimes they rot."""

    def __init__(self, world: World, process: Process, table: TableId) -> None:
        self._world = world
        self._process = process
        self._table = str(table)

    def read(self, name: str) -> bytes | None:
        fault = self._world.enter(self._process, "index.read")
        data = self._world.index_files.get(f"{self._table}/{name}")
        if fault == "rot":
            rng = self._world.rng
            if not data or rng.random() < 0.2:
                return None
            at = rng.randrange(len(data))
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        self._world.leave(self._process, "index.read", fault)
        return data

    def replace(self, name: str, data: bytes) -> None:
        fault = self._world.enter(self._process, "index.replace")
        self._world.index_files[f"{self._table}/{name}"] = bytes(data)
        self._world.leave(self._process, "index.replace", fault)

    def append(self, name: str, data: bytes) -> None:
        fault = self._world.enter(self._process, "index.append")
        key = f"{self._table}/{name}"
        self._world.index_files[key] = self._world.index_files.get(key, b"") + bytes(data)
        self._world.leave(self._process, "index.append", fault)


# ------------------------------------------------------------------------------------------------------------------ desk


class SimDesk:
    """``ports.Desk`` of one process."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def hold_wanted(self) -> HoldRequest | None:
        world = self._world
        fault = world.enter(self._process, "desk.hold_wanted")
        hold = world.hold
        wanted = None
        if hold is not None and not hold.answered and not hold.withdrawn and world.time < hold.deadline:
            if hold.granted_at is not None and hold.lsn is None and world.ticks >= hold.lsn_at:
                # The asker's snapshot: a temporary slot with this consistent point.
                hold.lsn = world.postgres.wal
                world.say(f"the asker's consistent point is {hold.lsn:X}")
            wanted = HoldRequest(hold.request, hold.lsn)
        world.leave(self._process, "desk.hold_wanted", fault)
        return wanted

    def hold_granted(self, request: str) -> None:
        world = self._world
        fault = world.enter(self._process, "desk.hold_granted")
        hold = world.hold
        if fault == "forgotten":
            world.hold = None
        elif hold is not None and hold.request == request and hold.granted_at is None:
            hold.granted_at = world.ticks
            hold.lsn_at = world.ticks + world.rng.randrange(30)
            world.say(f"hold {request} granted")
        world.leave(self._process, "desk.hold_granted", fault)

    def hold_answered(self, request: str, cut_id: int, lease_id: str) -> None:
        world = self._world
        fault = world.enter(self._process, "desk.hold_answered")
        hold = world.hold
        if fault == "forgotten":
            world.hold = None
        elif hold is not None and hold.request == request:
            hold.answered = True
            world.say(f"hold {request} answered")
            world.answered(hold, cut_id, lease_id)
        world.leave(self._process, "desk.hold_answered", fault)

    def resume_wanted(self) -> ResumeRequest | None:
        world = self._world
        fault = world.enter(self._process, "desk.resume_wanted")
        wish = world.wish
        world.leave(self._process, "desk.resume_wanted", fault)
        return wish

    def resume_answered(self, request: str, refusals: Sequence[IcelakeError]) -> None:
        world = self._world
        fault = world.enter(self._process, "desk.resume_answered")
        for refusal in refusals:
            if refusal.code == "SPOOL_CORRUPT":
                raise Broken(f"nobody harmed what was kept: {refusal}")
        if world.wish is not None and world.wish.id == request:
            world.wish = None
            world.say(f"{request} answered: {[str(refusal) for refusal in refusals]}")
        world.leave(self._process, "desk.resume_answered", fault)

    def report(self, status: Json) -> None:
        self._world.enter(self._process, "desk.report")


# ---------------------------------------------------------------------------------------------------------------- source


class SimSource:
    """``ports.Source`` of one process."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def _call(self, call: str, what: Callable[[], Any]) -> Any:
        fault = self._world.enter(self._process, f"source.{call}")
        if fault == "error":
            raise self._world.unreachable(f"source.{call}")
        answer = what()
        self._world.leave(self._process, f"source.{call}", fault)
        return answer

    def identify(self) -> SourceIdentity:
        postgres = self._world.postgres

        def identity() -> SourceIdentity:
            flushed = postgres.wal if postgres.restored is None else postgres.restored
            return SourceIdentity(postgres.system_id, postgres.timeline, postgres.database, 180004, flushed)

        return self._call("identify", identity)

    def switched_from(self, timeline: int) -> int | None:
        # Asked right after ``identify``, which has the faults.
        return self._world.postgres.switches.get(timeline)

    def describe(self, tables: Sequence[str]) -> Sequence[Relation | Refusal]:
        postgres = self._world.postgres
        return self._call("describe", lambda: [postgres.tables[name].relation for name in tables])

    def publish(self, publication: str, relations: Sequence[Relation]) -> None:
        def publish() -> None:
            for name, append in ((publication, False), (append_publication(publication), True)):
                oids = frozenset(relation.oid for relation in relations if (relation.identity == "none") == append)
                self._world.postgres.publish(name, oids)

        self._call("publish", publish)

    def published(self, publication: str) -> Mapping[TableId, str]:
        def names() -> Mapping[TableId, str]:
            postgres = self._world.postgres
            if publication not in postgres.publications:
                raise Refused("PUBLICATION_CHANGED", f"publication {publication} is gone")
            oids = postgres.publications[publication] | postgres.publications[append_publication(publication)]
            unnamed = postgres.unnamed & postgres.publications[publication]
            return {
                t.relation.id: str(_mark(postgres, t.relation.oid, t.relation.oid in unnamed))
                for t in postgres.tables.values()
                if t.relation.oid in oids
            }

        return self._call("published", names)

    def withdraw(self, publication: str) -> Mapping[TableId, str]:
        # Asked right after ``identify``, which has the faults.
        postgres = self._world.postgres
        unnamed = postgres.unnamed & postgres.publications.get(publication, frozenset())
        if unnamed:
            postgres.publications[publication] -= unnamed
        return {table.relation.id: "" for table in postgres.tables.values() if table.relation.oid in unnamed}

    def slot(self, name: str) -> SlotState | None:
        def state() -> SlotState | None:
            slot = self._world.postgres.slots.get(name)
            if slot is None:
                return None
            return SlotState(name, "pgoutput", "shop", None, slot.confirmed, slot.lost)

        return self._call("slot", state)

    def create_slot(self, name: str) -> int:
        if name in self._world.postgres.slots:
            raise Refused("SLOT_EXISTS", f"replication slot {name} exists")
        return self._call("create_slot", lambda: self._world.postgres.create_slot(name))

    def drop_slot(self, name: str) -> None:
        self._call("drop_slot", lambda: self._world.postgres.slots.pop(name, None))

    def stream(
        self, slot: str, publication: str, start: int, relations: Sequence[Relation], parked: Sequence[Relation] = ()
    ) -> "SimStream":
        def begin() -> SimStream:
            if slot not in self._world.postgres.slots:
                raise Refused("SLOT_GONE", f"replication slot {slot} does not exist")
            # The server ends a connection whose client it has given up; the client may not know it yet.
            for connection in self._world.connections:
                connection.attached = False
            stream = SimStream(self._world, self._process, slot, publication, start, relations, parked)
            self._world.connections = [stream]
            return stream

        return self._call("stream", begin)

    def read_range(self, relation: Relation, lower: Bound | None, upper: Bound | None, limit: int) -> RangeReading:
        return SimRange(self._world, self._process, relation, lower, upper, limit)


def _mark(postgres: SimPostgres, oid: int, unnamed: bool) -> Membership:
    written = str(postgres.rewritten.get(oid, 0))
    return Membership(f"1.{oid}.{postgres.joined[oid]}", written, written, unnamed)


class SimRange:
    """``ports.RangeReading``: a snapshot at a consistent point, its rows given out batch by batch while the world goes on."""

    def __init__(self, world: World, process: Process, relation: Relation, lower: Bound | None, upper: Bound | None, limit: int) -> None:
        self._world = world
        self._process = process
        self._relation = relation
        self._table = world.postgres.tables[str(relation.id)]
        self._lower = lower
        self._upper = upper
        self._limit = limit
        self._end = RangeEnd()

    def __enter__(self) -> RangeRead:
        world, table = self._world, self._table
        fault = world.enter(self._process, "source.read_range")
        if fault == "error":
            raise world.unreachable("source.read_range")
        if world.rng.random() < 0.5:
            world.postgres.other_activity()
        lsn, timeline = world.postgres.wal, world.postgres.timeline
        low = None if self._lower is None else (parsed_key(table, self._lower[0]), self._lower[1])
        high = None if self._upper is None else (parsed_key(table, self._upper[0]), self._upper[1])
        single = low is not None and high is not None and low[0] == high[0]
        if not self._relation.key_is_ordered and not single and (low is not None or high is not None):
            raise Broken(f"{self._relation.id} has no key order, and was asked for a range of it")
        rows = sorted(world.postgres.now[table.name].items(), key=lambda item: item[0])
        rows = [(key, row) for key, row in rows if (low is None or low < (key, 1)) and (high is None or (key, 1) <= high)]
        cut = self._relation.key_is_ordered and len(rows) >= self._limit
        if cut:
            rows = rows[: self._limit]
        world.say(f"range of {table.name} at {lsn:X}: {len(rows)} rows{', cut short' if cut else ''}")
        bound: Bound | None = self._upper
        if cut:
            bound = (tuple(text_of(value).decode() for value in rows[-1][0]), 1)
        world.leave(self._process, "source.read_range", fault)
        return RangeRead(lsn, self._rows([row for _, row in rows], bound), self._end, timeline)

    def _rows(self, rows: Sequence[tuple[Any, ...]], bound: Bound | None) -> Iterator[pa.RecordBatch]:
        world = self._world
        schema = arrow_schema(self._relation.columns)
        done = 0
        while done < len(rows):
            fault = world.enter(self._process, "source.rows")
            if fault == "error":
                raise world.unreachable("source.rows")
            part = rows[done : done + world.rng.choice((1, 5, 100, 100))]
            done += len(part)
            columns = [pa.array(values, field.type) for values, field in zip(zip(*part, strict=True), schema, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
            world.leave(self._process, "source.rows", fault)
        self._end.bound = bound

    def __exit__(self, *exc: object) -> None:
        return None


@dataclass(slots=True)
class _Received:
    """A transaction in the client's buffer."""

    commit_lsn: int
    end_lsn: int
    frames: list[bytes]
    whole: bool = False


class SimStream:
    """``ports.Stream``: one walsender and what its client has received, with the real decoder behind ``take``."""

    def __init__(
        self,
        world: World,
        process: Process,
        slot: str,
        publication: str,
        start: int,
        relations: Sequence[Relation],
        parked: Sequence[Relation],
    ) -> None:
        self._world = world
        self.process = process
        self.timeline = world.postgres.timeline
        self._slot = slot
        self._publication = publication
        self._relations = {relation.oid: relation for relation in relations}
        self._parked = {relation.oid: relation for relation in parked}
        self._decoder = Decoder(self._relation)
        self._next = world.postgres.first_sent(slot, start)
        self._known: set[int] = set()
        self._wire: list[bytes] = []
        self._buffer: list[_Received] = []
        self._asked = False
        self._appetite = world.rng.choice((500, 3000, 1 << 20, 1 << 20, 1 << 20))
        self._capacity = world.rng.choice((1000, 6000, 1 << 22, 1 << 22))
        self.attached = True
        self._silence = world.rng.randrange(6)
        self.behind = self._silence == 5
        self._buffered = 0
        self._complete = start
        self._server_lsn = start

    @property
    def buffered(self) -> int:
        self._meanwhile()
        return self._buffered

    @property
    def complete(self) -> int:
        self._meanwhile()
        return self._complete

    @property
    def server_lsn(self) -> int:
        self._meanwhile()
        return self._server_lsn

    def _meanwhile(self) -> None:
        """The real receiver is a thread: what it has received may grow between any two looks."""
        if self.attached and self._world.rng.random() < 0.1:
            self._receive()

    def _relation(self, message: RelationMessage) -> Relation | Raw:
        parked = self._parked.get(message.oid)
        if parked is not None:
            return Raw(parked.id, tuple(column.attnum for column in parked.columns))
        relation = self._relations.get(message.oid)
        if relation is None:
            raise Broken(f"a relation message for {message.schema}.{message.name}, which was not asked for")
        if [c.name for c in relation.columns] != [c.name for c in message.columns]:
            raise Broken(f"{relation.id}: the decoder read other columns than were sent")
        if relation.oid in self._world.unwell:
            self._world.say(f"{relation.id} cannot be followed")
            raise UnsupportedTable("TABLE_CHANGED", f"{relation.id} cannot be followed", "it is unwell", table=str(relation.id))
        return relation

    def _gone(self) -> bool:
        """A connection the server has ended: the client may notice late."""
        if self.attached:
            return False
        self._silence -= 1
        return self._silence < 0

    def wait(self, timeout: float, enough: int = 0) -> bool:
        world = self._world
        fault = world.enter(self.process, "stream.wait")
        if fault == "server crash":
            world.server_crash()
            fault = "error"
        if fault == "error":
            self.attached = False
            raise world.unreachable("stream.wait")
        if self._gone():
            raise Unreachable("SIM_CONNECTION_LOST", "the replication connection is gone")
        news = self.attached and self._receive()
        if not news or self._buffered < enough:
            world.time += max(0.0, timeout)
        world.leave(self.process, "stream.wait", fault)
        return news

    def _unsent(self, known: set[int]) -> tuple[Transaction, list[bytes]] | None:
        try:
            return self._world.postgres.messages(self._publication, self._next, known, self._world.rng)
        except LookupError:
            raise Refused("PUBLICATION_MISSING", "the publication did not exist when a change was made") from None

    def _receive(self) -> bool:
        world = self._world
        rng = world.rng
        news = False
        budget = rng.choice((1, 4, 40, 10_000))
        while budget > 0 and self._buffered < self._capacity:
            if not self._wire:
                found = self._unsent(self._known)
                if found is None:
                    break
                transaction, messages = found
                self._next = transaction.number + 1
                self._wire = messages[::-1]
                if rng.random() < 0.1:
                    # Everything before this commit record has been sent, and the server says so.
                    self._server_lsn = max(self._server_lsn, transaction.commit_lsn)
                self._buffer.append(_Received(transaction.commit_lsn, transaction.end_lsn, []))
            message = self._wire.pop()
            last = self._buffer[-1]
            last.frames.append(message)
            self._buffered += len(message) + 4
            budget -= 1
            news = True
            if not self._wire:
                last.whole = True
                self._complete = last.end_lsn
                self._server_lsn = max(self._server_lsn, last.end_lsn)
        if not self._wire and self._buffered < self._capacity and (self._asked or rng.random() < 0.3):
            self._asked = False
            if self._unsent(set(self._known)) is None and self._server_lsn < world.postgres.wal:
                self._server_lsn = world.postgres.wal
                news = True
        return news

    def take(self, *, before: int | None = None, max_bytes: int = 1 << 25) -> Chunk | None:
        world = self._world
        fault = world.enter(self.process, "stream.take")
        if fault == "server crash":
            world.server_crash()
            fault = "error"
        if fault == "error":
            self.attached = False
            raise world.unreachable("stream.take")
        if not self.attached and not self._buffer and self._gone():
            raise Unreachable("SIM_CONNECTION_LOST", "the replication connection is gone")
        limit = min(max_bytes, self._appetite)
        out = bytearray()
        while self._buffer:
            first = self._buffer[0]
            if before is not None and first.commit_lsn >= before:
                break
            size = sum(map(len, first.frames)) + 4 * len(first.frames)
            if first.whole and len(out) + size <= limit:
                for frame in first.frames:
                    out += len(frame).to_bytes(4, "little") + frame
                self._buffer.pop(0)
                continue
            if not out and (first.whole or self._buffered >= min(limit, self._capacity)):
                while first.frames and (not out or len(out) < limit):
                    frame = first.frames.pop(0)
                    out += len(frame).to_bytes(4, "little") + frame
                if first.whole and not first.frames:
                    self._buffer.pop(0)
            break
        self._buffered -= len(out)
        chunk = self._decoder.decode(bytes(out)) if out else None
        if chunk is not None and world.trace is not None:
            until = "in the middle of one" if chunk.open else f"to {chunk.position or 0:X}"
            world.say(f"[{self.process.number}] takes {chunk.transactions} transactions {until}")
        world.leave(self.process, "stream.take", fault)
        return chunk

    def blocked(self, before: int) -> bool:
        if self._buffer:
            return self._buffer[0].commit_lsn >= before
        return self._server_lsn >= before

    def ask(self) -> None:
        self._world.enter(self.process, "stream.ask")
        self._asked = True

    def confirm(self, lsn: int) -> None:
        world = self._world
        fault = world.enter(self.process, "stream.confirm")
        world.confirming(lsn)
        if self.attached and fault != "lost":
            world.postgres.confirm(self._slot, lsn)
        if fault == "lost":
            self.attached = False
            return
        world.leave(self.process, "stream.confirm", fault)

    def close(self) -> None:
        self._world.enter(self.process, "stream.close")
        self.attached = False
        self._silence = 0
