"""What must hold, whatever happens: the simulator's invariants. Each failure raises ``Broken``.

``commit`` runs after every commit that reaches the catalog; ``finish`` once at the end, over everything that is kept.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from icelake.errors import CommitConflict
from icelake.model.history import STOPPED, history_of
from icelake.model.ident import control_table
from icelake.model.load import LoadState
from icelake.model.lsn import parse_lsn
from icelake.model.parking import PARKED, SUFFIX, Parking, spool_of
from icelake.ports import LoadedTable, TableChange
from tests.sim.history import SUFFIX as HISTORY
from tests.sim.history import Histories
from tests.sim.lake import Json, Lake
from tests.sim.postgres import Key, Row, Rows, State, Table, parsed_key
from tests.sim.world import Broken, Hold, Process, World

LEASE = 100_000.0
"""Longer than a schedule and the jumps of its clock."""
Births = dict[tuple[str, int, int], int]
"""(table, how often it was compared with the source before, number of the birth) -> row id"""


class Checks:
    """Knows the world whole: the source's history, the disk as a power cut would leave it, the catalog's durable state."""

    def __init__(self, world: World, source: str, thorough: bool) -> None:
        self.world = world
        self.lake = Lake(world.machine)
        self.histories = Histories(world.postgres, self.lake)
        self.control = control_table(source)
        self.thorough = thorough
        self.row_ids: Births = {}
        self.compared: dict[str, list[int]] = {}
        """Table -> sequence numbers from which on its rows were compared with the source."""
        self.loads: dict[str, list[tuple[int, int]]] = {}
        """Table that is loaded whole -> (the sequence number its rows came with, the L they were read at), each time it was."""
        self.ids_at: dict[tuple[str, int], tuple[int, frozenset[int] | None]] = {}
        """(table, L it was loaded at) -> (position, row ids there)"""
        self.owners: Births = {}
        """(table, how often it was compared, row id) -> number of the birth"""
        self.position = 0
        self.commit_time = 0
        self.epoch = 0
        self.rng = random.Random(world.postgres.system_id)  # not the world's: how much is checked must not change the course
        self.cuts = 0
        self.answers = 0
        self.lists: dict[int, str] = {}
        """Snapshot -> its manifest list."""
        self.let_go: set[str] = set()
        """Files of snapshots that were dropped, and lists of such files."""
        self.leased: list[tuple[str, Mapping[str, int], State, int]] = []
        """(lease, its snapshots, what the source had then, the position)"""
        self._compared: dict[tuple[str, int, int], tuple[Rows, dict[Key, int]]] = {}
        """(table, snapshot, ``id`` of the rows it was found to have) -> those rows, so that the id stays theirs; each key's row id."""
        self._replayed: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
        """(table, snapshot of the mirror, snapshot of its history) -> the history's rows, which were found to give the mirror."""
        world.committed = self.commit
        world.confirming = self.confirm
        world.answered = self.answer

    def renewed(self) -> None:
        """The source was begun anew: what lies before has no meaning in its log any more."""
        self.position = 0

    def loaded_at(self, metadata: Json, name: str, snapshot_id: int) -> int:
        """The L that a table that is loaded whole was read at, as of a snapshot."""
        sequence = next(s["sequence-number"] for s in metadata["snapshots"] if s["snapshot-id"] == snapshot_id)
        return max((at, lsn) for at, lsn in self.loads[name] if at <= sequence)[1]

    # --------------------------------------------------------------------------------------------------- at each step

    def commit(self, process: Process, changes: Sequence[TableChange], after: Sequence[LoadedTable]) -> None:
        """A commit is in the catalog: its owner was the owner, its files are durable, the cut it makes is true."""
        world = self.world
        touched: set[str] = set()
        for change, loaded in zip(changes, after, strict=True):
            for update in change.updates:
                if update["action"] == "add-snapshot":
                    touched.add(str(change.id))
                    self.lists[update["snapshot"]["snapshot-id"]] = update["snapshot"]["manifest-list"]
                    if update["snapshot"]["manifest-list"] not in world.machine.files:
                        raise Broken(f"{change.id}: committed before its files were synced")
                if update["action"] == "remove-snapshots":
                    # Of those another program made nothing is known.
                    for dropped in self.lists.keys() & set(update["snapshot-ids"]):
                        self.let_go |= self.lake.locations(self.lists[dropped])
            if change.updates and world.machine.get(loaded.metadata_location) is None:
                raise Broken(f"{change.id}: committed before its metadata was written")
        control = world.server.load(self.control).metadata
        self.let_go |= self.lists_of_garbage(control)
        snapshot = head(control)
        if snapshot is None:
            return
        summary = snapshot["summary"]
        epoch = int(summary["icelake.epoch"])
        position = parse_lsn(summary["icelake.lsn"]) if "icelake.lsn" in summary else 0
        if epoch < self.epoch or position < self.position:
            raise Broken(f"the control table went back: epoch {self.epoch} -> {epoch}, position {self.position:X} -> {position:X}")
        if epoch > self.epoch:
            world.epochs[epoch] = process.number
        elif world.epochs.get(epoch) != process.number:
            raise Broken(f"process {process.number} committed in epoch {epoch} of process {world.epochs.get(epoch)}")
        self.commit_time = self.time_of(summary, self.position, position)
        self.epoch, self.position = epoch, position
        hold = world.hold
        if (
            str(self.control) in touched
            and hold is not None
            and hold.granted_at is not None
            and hold.lsn is not None
            and not hold.answered
            and not hold.withdrawn
            and world.time < hold.deadline
            and position > hold.lsn
        ):
            raise Broken(f"a cut at {position:X} while one at {hold.lsn:X} is promised")
        cut: dict[str, int] = json.loads(summary["icelake.cut"])
        tables = self.mirrors(cut)
        parked: dict[str, str] = json.loads(summary.get(PARKED, "{}"))
        if parked.keys() & tables.keys():
            raise Broken(f"parked and in the cut: {parked.keys() & tables.keys()}")
        self.cuts += 1
        moved = any(change.id == self.control and change.updates for change in changes)
        for change, loaded in zip(changes, after, strict=True):
            for update in change.updates:
                if update["action"] == "add-snapshot" and "parent-snapshot-id" in update["snapshot"]:
                    self.same_rows(str(change.id), loaded.metadata, update["snapshot"], moved)
            load = LoadState.parse(loaded.metadata["properties"].get("icelake.load", "[]"))
            if not load.complete:
                # Which row was which is not known any more: a row that was compared, or loaded again, may get another row id.
                self.compared.setdefault(str(change.id), []).append(loaded.metadata["last-sequence-number"])
            if len(load.intervals) == 1 and (lsn := load.intervals[0].lsn) is not None:
                loads = self.loads.setdefault(str(change.id), [])
                if not loads or loads[-1][1] != lsn:
                    loads.append((loaded.metadata["last-sequence-number"], lsn))
        chosen = self.rng.random() < 0.25 or self.thorough
        if chosen:
            self.check_cut(tables, position, touched & set(tables))
        for name in touched - set(tables) - {str(self.control)}:
            if not name.endswith((SUFFIX, HISTORY)):
                self.loading(name, position)
        for name in sorted(self.world.postgres.tables):
            if name in touched or name + HISTORY in touched:
                self.history(name, cut, position, whole=chosen)
        for name in parked:
            self.spool(name, position)

    def time_of(self, summary: Mapping[str, str], before: int, position: int) -> int:
        """The commit time of a cut: that of no transaction up to it is later."""
        time = int(summary["icelake.commit-time"])
        # The first position, and that of a source that was begun anew, says nothing of what lies before it; no table is in such a cut.
        taken = before and (json.loads(summary["icelake.cut"]) or PARKED in summary)
        log = [t for t in self.world.postgres.log if before < t.end_lsn <= position and t.is_sent()] if taken else []
        latest = max((transaction.time_us for transaction in log), default=0)
        if time < max(self.commit_time, latest):
            raise Broken(f"the cut at {position:X} is of {time}; a transaction in it is of {latest}, the cut before of {self.commit_time}")
        return time

    def same_rows(self, name: str, metadata: Json, snapshot: Json, moved: bool) -> None:
        """A rewrite changes no row. Nor does a key get another row id where a range is compared: what moves no position makes no new row.

        ``moved``: whether the commit moved the source's position.
        """
        table = self.world.postgres.tables.get(name)
        replaces = snapshot["summary"]["operation"] == "replace"
        if table is None or (moved and not replaces):
            return
        columns = [column.name for column in table.relation.columns]
        before = self.lake.contents(metadata, snapshot["parent-snapshot-id"], columns)
        after = self.lake.contents(metadata, snapshot["snapshot-id"], columns)
        if replaces:
            rows = [
                sorted((row_id, since, repr(row)) for (row, row_id), since in zip(c.rows, c.updated, strict=True)) for c in (before, after)
            ]
            if rows[0] != rows[1]:
                raise Broken(f"a rewrite of {name} changed rows, their ids, or when they were changed last")
        elif table.keyed:
            ids = {table.key(row): row_id for row, row_id in before.rows}
            for row, row_id in after.rows:
                if ids.get(table.key(row), row_id) != row_id:
                    raise Broken(f"{name}: the row with key {table.key(row)} was compared, and changed its row id")

    def mirrors(self, cut: Mapping[str, int]) -> dict[str, int]:
        """The tables of a cut without the histories."""
        return {name: at for name, at in cut.items() if name in self.world.postgres.tables}

    def history(self, name: str, cut: Mapping[str, int], position: int, whole: bool) -> None:
        """A history that says that it is in step with its mirror is; one that is kept moves whenever its mirror does."""
        table = self.world.postgres.tables[name]
        ident = history_of(table.relation.id)
        if ident not in self.world.server.tables():
            return
        mirror, loaded = self.world.server.load(table.relation.id).metadata, self.world.server.load(ident).metadata
        at, main, main_of_history = json.loads(loaded["properties"]["icelake.history"])["mirror"], head(mirror), head(loaded)
        if at == STOPPED:
            return  # a cut may name it until the next batch: as of before, like its mirror
        step = main
        while step is not None and step["snapshot-id"] != at:
            if step["summary"]["operation"] != "replace":
                if str(ident) in cut:
                    raise Broken(f"{ident} is in the cut and has not moved with its mirror")
                return
            before = step.get("parent-snapshot-id")
            step = next((s for s in mirror["snapshots"] if s["snapshot-id"] == before), None)
            if step is None and before != at and str(ident) not in cut:
                return  # the snapshot it was in step with is expired: it says nothing of this one
        if not whole or main is None or main_of_history is None:
            return
        what = f"at {position:X}"
        rows = self.replay(name, main["snapshot-id"], main_of_history["snapshot-id"], what)
        if str(ident) in cut:
            self.histories.complete(table, mirror, loaded, rows, position, what)

    def replay(self, name: str, at: int, history_at: int, what: str) -> list[Mapping[str, Any]]:
        """At these snapshots the history gives its mirror. Its rows."""
        known = self._replayed.get((name, at, history_at))
        if known is not None:
            self.lake.there(at)
            self.lake.there(history_at)
            return known
        table = self.world.postgres.tables[name]
        mirror, history = (self.world.server.load(one).metadata for one in (table.relation.id, history_of(table.relation.id)))
        rows = self._replayed[name, at, history_at] = self.histories.check(table, mirror, at, history, history_at, what)
        return rows

    def spool(self, name: str, position: int) -> None:
        """What is kept of a parked table is every change since it was parked, once, in order."""
        postgres = self.world.postgres
        table = postgres.tables[name]
        note = Parking.read(self.world.server.load(table.relation.id).metadata["properties"])
        if note is None:
            raise Broken(f"{name} is parked in the cut, and its properties do not say so")
        spool = self.world.server.load(spool_of(table.relation.id)).metadata if note.replay else None
        if spool is None:
            return
        main = head(spool)
        columns = ["number", "commit_lsn", "change"]
        rows = sorted(row for row, _ in self.lake.contents(spool, main["snapshot-id"], columns).rows) if main is not None else []
        expected = [
            transaction.commit_lsn
            for transaction in postgres.log
            if note.since < transaction.end_lsn <= position
            for change in transaction.changes
            if table in change.tables() and any(table.relation.oid in oids for oids in transaction.published.values())
            # Of an append-only table nothing else is published.
            if table.relation.identity != "none" or change.old is None
        ]
        if [row[0] for row in rows] != list(range(1, len(rows) + 1)):
            raise Broken(f"{name}: what is kept is not numbered from 1 to {len(rows)}")
        if [row[1] for row in rows] != expected:
            raise Broken(f"{name}: {len(rows)} changes are kept at {position:X}, the source made {len(expected)} since {note.since:X}")

    def confirm(self, lsn: int) -> None:
        """Nothing may be confirmed to the source before it is recorded, durably, with all that came before it."""
        snapshot = head(self.world.server.load(self.control).metadata)
        recorded = parse_lsn(snapshot["summary"].get("icelake.lsn", "0/0")) if snapshot else 0
        if lsn > recorded:
            raise Broken(f"the slot is confirmed up to {lsn:X}, the lake holds {recorded:X}")

    def answer(self, hold: Hold, cut_id: int, lease_id: str) -> None:
        """The cut a verify asked for holds exactly the commits before its LSN, and is leased."""
        assert hold.lsn is not None
        self.answers += 1
        control = self.world.server.load(self.control).metadata
        snapshot = next((s for s in control["snapshots"] if s["snapshot-id"] == cut_id), None)
        if snapshot is None:
            raise Broken("a hold was answered with a cut that is not there")
        tables: dict[str, int] = json.loads(snapshot["summary"]["icelake.cut"])
        truth = self.world.postgres.state_before(hold.lsn)
        for name, snapshot_id in self.mirrors(tables).items():
            self.compare(name, snapshot_id, truth[name], f"the cut for verify at {hold.lsn:X}", hold.lsn)
        lease = next((lease for lease in self.world.server.leases() if lease.id == lease_id), None)
        if lease is None or {str(table): at for table, at in lease.snapshots.items()} != {**tables, str(self.control): cut_id}:
            raise Broken("the cut for verify is not leased")
        self.leased.append((lease_id, tables, truth, hold.lsn))

    def lease(self, rng: random.Random) -> None:
        """A reader leases a cut that is kept: what it holds must stay readable."""
        server = self.world.server
        if self.control not in server.tables():
            return
        cuts = [s for s in server.load(self.control).metadata["snapshots"] if "icelake.lsn" in s["summary"]]
        if not cuts:
            return
        summary = rng.choice(cuts)["summary"]
        tables: dict[str, int] = json.loads(summary["icelake.cut"])
        known = {str(table): table for table in server.tables()}
        try:
            lease = server.lease("a reader", {known[name]: at for name, at in tables.items()}, LEASE)
        except CommitConflict:
            return  # its tables were thinned already
        position = parse_lsn(summary["icelake.lsn"])
        self.world.say(f"a reader leases the cut at {position:X}")
        self.leased.append((lease.id, tables, self.world.postgres.state(position), position))

    # ------------------------------------------------------------------------------------------------------ comparing

    def compare(
        self,
        name: str,
        snapshot_id: int,
        truth: Rows,
        what: str,
        position: int | None = None,
        inside: Callable[[Key], bool] | None = None,
    ) -> dict[Key, int]:
        """The rows of a table at a snapshot (with keys ``inside``) are these; the row id of each key.

        ``position``: of an append-only table; None: now.
        """
        table = self.world.postgres.tables[name]
        if not table.keyed:
            self.compare_rows(table, snapshot_id, truth, what, position)
            return {}
        # A snapshot never changes, nor do the rows the source had after a transaction: what was true of both is, as long as its files are.
        if inside is None and (found := self._compared.get((name, snapshot_id, id(truth)))) is not None:
            self.lake.there(snapshot_id)
            return found[1]
        metadata = self.world.server.load(table.relation.id).metadata
        columns = [column.name for column in table.relation.columns]
        contents = self.lake.contents(metadata, snapshot_id, columns)
        ids: dict[Key, int] = {}
        for row, row_id in contents.rows:
            key = table.key(row)
            if inside is not None and not inside(key):
                continue
            if key in ids:
                raise Broken(f"{what}: {name} has key {key} twice")
            ids[key] = row_id
            if key not in truth:
                raise Broken(f"{what}: {name} has {row}, the source has not")
            if truth[key] != row:
                raise Broken(f"{what}: {name} has {row}, the source {truth[key]}")
        if len(ids) != len(truth):
            missing = next(key for key in truth if key not in ids)
            raise Broken(f"{what}: {name} lacks {missing}")
        if len(set(ids.values())) != len(ids):
            raise Broken(f"{what}: {name} has a row id twice")
        if inside is None:
            self._compared[name, snapshot_id, id(truth)] = truth, ids
        return ids

    def compare_rows(self, table: Table, snapshot_id: int, truth: Rows, what: str, position: int | None) -> None:
        """The rows of a table without a key are these, each as often; an append-only one holds what was inserted."""
        metadata = self.world.server.load(table.relation.id).metadata
        contents = self.lake.contents(metadata, snapshot_id, [column.name for column in table.relation.columns])
        wanted: Iterable[Row] = truth.values()
        if table.relation.identity == "none":
            at = self.world.postgres.wal if position is None else position
            wanted = self.world.postgres.appended(table.name, self.loaded_at(metadata, table.name, snapshot_id), at)
        # repr tells 0.0 from -0.0.
        found, expected = Counter(repr(row) for row, _ in contents.rows), Counter(map(repr, wanted))
        if found != expected:
            raise Broken(f"{what}: {table.name} has {dict(found - expected)} too many and lacks {dict(expected - found)}")
        if len({row_id for _, row_id in contents.rows}) != len(contents.rows):
            raise Broken(f"{what}: {table.name} has a row id twice")

    def new_row_ids(self, table: Table, snapshot_id: int, position: int) -> None:
        """From cut to cut there are no more new row ids than rows were inserted: updates keep theirs, whichever of equal rows they meet."""
        metadata = self.world.server.load(table.relation.id).metadata
        contents = self.lake.contents(metadata, snapshot_id, [column.name for column in table.relation.columns])
        now = frozenset(row_id for _, row_id in contents.rows)
        of = table.name, self.loaded_at(metadata, table.name, snapshot_id)
        before, known = self.ids_at.get(of, (0, None))
        if position < before:
            return
        self.ids_at[of] = position, now
        if known is None:
            return
        inserted = sum(
            change.table is table and change.old is None
            for transaction in self.world.postgres.log
            if before < transaction.end_lsn <= position
            for change in transaction.changes
        )
        if len(now - known) > inserted:
            raise Broken(f"{table.name}: {len(now - known)} new row ids, {inserted} rows were inserted")

    def check_cut(self, tables: Mapping[str, int], position: int, only: set[str] | None = None) -> None:
        """Every table of a cut is what the source was at its position; rows keep their row ids from cut to cut."""
        truth = self.world.postgres.state(position)
        births = self.world.postgres.births(position)
        for name, snapshot_id in tables.items():
            if only is not None and name not in only:
                continue
            ids = self.compare(name, snapshot_id, truth[name], f"the cut at {position:X}", position)
            if not (table := self.world.postgres.tables[name]).keyed:
                self.new_row_ids(table, snapshot_id, position)
            metadata = self.world.server.load(self.world.postgres.tables[name].relation.id).metadata
            sequence = next(s["sequence-number"] for s in metadata["snapshots"] if s["snapshot-id"] == snapshot_id)
            times = sum(before < sequence for before in self.compared.get(name, ()))
            for key, row_id in ids.items():
                birth = births[name][key]
                if self.row_ids.setdefault((name, times, birth), row_id) != row_id:
                    raise Broken(f"{name}: the row with key {key} changed its row id from {self.row_ids[name, times, birth]} to {row_id}")
                if self.owners.setdefault((name, times, row_id), birth) != birth:
                    raise Broken(f"{name}: the row with key {key} was inserted, and has the row id of another, {row_id}")

    def loading(self, name: str, position: int) -> None:
        """A table that is still loading holds, of each loaded range, what the source had at the range's L or has at the position."""
        table = self.world.postgres.tables[name]
        metadata = self.world.server.load(table.relation.id).metadata
        snapshot = head(metadata)
        assert snapshot is not None
        truth: dict[Key, Row] = {}
        held: list[tuple[tuple[Key, int] | None, tuple[Key, int] | None]] = []
        intervals = LoadState.parse(metadata["properties"]["icelake.load"]).intervals
        lower: tuple[Key, int] | None = None
        for interval in intervals:
            upper = None if interval.upper is None else (parsed_key(table, interval.upper[0]), interval.upper[1])
            if interval.lsn is not None:
                postgres = self.world.postgres
                state = postgres.state(position) if interval.lsn <= position else postgres.state_before(interval.lsn)
                inside = {
                    key: row
                    for key, row in state[name].items()
                    if (lower is None or lower < (key, 1)) and (upper is None or (key, 1) <= upper)
                }
                truth.update(inside)
            elif interval.held:
                held.append((lower, upper))
            lower = upper

        def trusted(key: Key) -> bool:
            return not any((low is None or low < (key, 1)) and (high is None or (key, 1) <= high) for low, high in held)

        if table.keyed:
            self.compare(name, snapshot["snapshot-id"], truth, f"loading, at {position:X}", None, trusted)
        elif intervals[0].lsn is not None:
            self.compare(name, snapshot["snapshot-id"], state[name], f"loading, at {position:X}", max(position, intervals[0].lsn))
        elif self.lake.contents(metadata, snapshot["snapshot-id"], [column.name for column in table.relation.columns]).rows:
            raise Broken(f"{name} has rows, and none of it is loaded")

    def lists_of_garbage(self, control: Json) -> set[str]:
        """The lists that are named. All are there."""
        named = {location for _, location in json.loads(control["properties"].get("icelake.garbage", "[]"))}
        if lacking := named - self.world.machine.files.keys():
            raise Broken(f"lists that are named are not there: {lacking}")
        return named

    def nothing_forgotten(self) -> None:
        """What was let go and is needed by nobody is gone, or on a list."""
        files = self.world.machine.files
        listed = named = self.lists_of_garbage(self.world.server.load(self.control).metadata)
        for location in named:
            listed = listed.union(*(items for _, _, items in json.loads(files[location])))
        forgotten = (self.let_go & files.keys()) - listed
        if not forgotten:
            return
        for table in self.world.server.tables():
            for snapshot in self.world.server.load(table).metadata.get("snapshots", ()):
                forgotten -= self.lake.locations(snapshot["manifest-list"])
        if forgotten:
            raise Broken(f"let go and forgotten: {', '.join(sorted(forgotten))}")

    # ---------------------------------------------------------------------------------------------------- at the end

    def finish(self, wanted: Sequence[str], historic: Collection[str]) -> None:
        """Everything that is kept can be read and is true, and nothing else was forgotten; the mirror equals the source."""
        self.nothing_forgotten()
        world = self.world
        control = world.server.load(self.control).metadata
        snapshots = control["snapshots"]
        for snapshot in snapshots:
            summary = snapshot["summary"]
            position = parse_lsn(summary["icelake.lsn"]) if "icelake.lsn" in summary else 0
            cut = json.loads(summary["icelake.cut"])
            self.check_cut(self.mirrors(cut), position)
            for name, at in self.mirrors(cut).items():
                if name + HISTORY in cut:
                    self.replay(name, at, cut[name + HISTORY], f"the cut at {position:X}")
            self.lake.contents(control, snapshot["snapshot-id"], ["note"])
        for name in wanted:
            table_id = world.postgres.tables[name].relation.id
            loaded = world.server.load(table_id)
            for snapshot in loaded.metadata["snapshots"]:
                self.lake.contents(loaded.metadata, snapshot["snapshot-id"], [c.name for c in world.postgres.tables[name].relation.columns])
        for table in world.server.tables():
            loaded = world.server.load(table)
            stored = world.machine.get(loaded.metadata_location)
            if stored is None or json.loads(stored) != loaded.metadata:
                raise Broken(f"{table}: {loaded.metadata_location} is not the metadata the catalog has")
        newest = json.loads(snapshots_head(control)["summary"]["icelake.cut"])
        lacking = {*wanted, *(name + HISTORY for name in historic if name in wanted)} - set(newest)
        for name in wanted:
            self.history(name, newest, world.postgres.history.ends[-1], whole=True)
        if lacking:
            raise Broken(f"not in the last cut: {', '.join(sorted(lacking))}")
        for name, snapshot_id in self.mirrors(newest).items():
            main = head(world.server.load(world.postgres.tables[name].relation.id).metadata)
            assert main is not None
            self.compare(name, main["snapshot-id"], world.postgres.now[name], "the end")
            self.compare(name, snapshot_id, world.postgres.now[name], "the last cut")
        for lease_id, tables, truth, position in self.leased:
            if any(lease.id == lease_id for lease in world.server.leases()):
                for name, snapshot_id in self.mirrors(tables).items():
                    self.compare(name, snapshot_id, truth[name], f"the leased cut at {position:X}", position)


def head(metadata: Json) -> Json | None:
    """The snapshot main points at."""
    at = metadata.get("refs", {}).get("main", {}).get("snapshot-id")
    return next((s for s in metadata.get("snapshots", ()) if s["snapshot-id"] == at), None)


def snapshots_head(metadata: Json) -> Json:
    found = head(metadata)
    assert found is not None
    return found
