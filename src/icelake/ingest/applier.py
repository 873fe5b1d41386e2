"""The applier: one process, one source, every change exactly once.

It promises: changes are applied in source-transaction order and committed at transaction boundaries, all touched tables and
the control table in one catalog commit; the slot is confirmed only up to what is durable; a restart, a crash at any step, a
lost answer or a second process neither loses nor doubles a change. It reaches the world only through ports and is single
threaded, so a simulator can play every schedule. The rules are docs/protocol.md; the names of its states are used here.

``step`` does one bounded thing and returns what it was. Temporary trouble (Unreachable, CommitUnknown) ends the running
batch, and the next step starts again from the control table with a new epoch; anything else that is raised is final.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from icelake.errors import (
    AlreadyExists,
    CommitConflict,
    CommitUnknown,
    Corrupt,
    Fenced,
    ForeignChange,
    Gap,
    IcelakeError,
    NoSuchTable,
    Refused,
    Unreachable,
    UnsupportedTable,
    ValueOutOfContract,
)
from icelake.ingest.commit import commit
from icelake.ingest.control import Control
from icelake.ingest.followed import Followed, Keyed, check_member, follow, identity_lost, left_publication, with_history
from icelake.ingest.garbage import Bin
from icelake.ingest.history import History, in_step, load_or_create, stopped
from icelake.ingest.mend import Mending
from icelake.ingest.parked import Parked, PastLimit, make_spool, note_change, replay
from icelake.ingest.upkeep import plan_expiry
from icelake.model.history import history_of, mirror_of
from icelake.model.ident import publication_name, slot_name
from icelake.model.layout import Layout
from icelake.model.load import Interval, LoadState, leaf_bounds
from icelake.model.lsn import format_lsn
from icelake.model.marker import LOAD, MEMBERSHIP, SOURCE, Marker
from icelake.model.membership import Membership
from icelake.model.parking import PARKED, Parking
from icelake.model.relation import Refusal, Relation, SourceIdentity, TableId, excludes
from icelake.ports import (
    Catalog,
    Chance,
    Clock,
    Desk,
    HoldRequest,
    Json,
    LoadedTable,
    ResumeRequest,
    Source,
    Storage,
    Stream,
    TableChange,
)
from icelake.sources.postgres.choices import as_held
from icelake.sources.postgres.schema import IS_PARTITION, altered_types, only_grew
from icelake.sources.postgres.types import order
from icelake.tables.expire import Policy
from icelake.tables.history import evolved
from icelake.tables.key_index import IndexFiles
from icelake.tables.layout import layout_properties, partition_spec, sort_order
from icelake.tables.rewrite import FANOUT
from icelake.tables.schema import evolve, iceberg_schema, relation_of, table_properties
from icelake.tables.table import OPEN_BYTES, Table

LEFT_OUT = "LEFT_OUT"
"""Code of a mirror that the project's ``exclude`` names."""
TRY_AGAIN = 60.0
"""Seconds after which it is tried again to take a table out of the publication."""
_RANGE_BYTES = 4 * OPEN_BYTES
"""Arrow bytes read under one exported snapshot, about: whole data files, which nobody has to merge."""
_FIRST_ROWS = 100_000
"""Rows of a table's first range: nobody knows yet how large they are."""
_COMPARED_ROWS = 500_000
"""Rows of a range that is compared."""
CONFLICTS = 4
"""How often in a row a batch is begun again because someone else changed a mirror."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds, sizes in bytes."""

    commit_interval: float = 1.0
    """At most one commit in this time, unless a batch is full."""
    take_bytes: int = 1 << 23
    """So much is worth decoding and applying before the commit is due."""
    chunk_bytes: int = 1 << 24
    """At most so much is applied at once, while as much is decoded; twice that is held in memory as rows before it is written."""
    batch_bytes: int = 1 << 28
    """A batch is committed at the next boundary once it holds this much."""
    range_rows: int = 2_000_000
    """Rows read under one exported snapshot, at most."""
    idle_interval: float = 10.0
    """An idle source's position is recorded and confirmed this often."""
    rest_interval: float = 10.0
    """A table that nobody changed for so long is at rest: it gets few files."""
    upkeep_commits: int = 32
    """Snapshots are thinned every so many commits."""
    hold_lease: float = 600.0
    """How long a cut made for ``verify`` stays readable if nobody releases it."""
    retention: Policy = field(default_factory=Policy)
    grace: float = 600.0
    """Seconds that files stay after the last snapshot that needed them was dropped: readers without a lease may be at them."""
    parked_bytes: int = 1 << 30
    """How much is kept of one parked table's changes, as files."""
    parked_past_limit: PastLimit = "reload"
    """And then: let them go and have the table compared with the source, or stop (the slot then keeps WAL)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a step did. ``rows`` and ``changes`` are of this step alone."""

    kind: Literal["load", "commit", "upkeep", "hold", "wait", "retry", "park", "resume"]
    rows: int = 0
    changes: int = 0
    transactions: int = 0
    position: int = 0
    seconds: float = 0.0
    error: IcelakeError | None = None


@dataclass(slots=True)
class _Batch:
    """What was taken from the stream since the last commit; the rows are in the followed tables' deltas."""

    open: bool = False
    mid: bool = False
    """The last chunk ended inside a transaction."""
    position: int = 0
    time: int = 0
    bytes: int = 0
    held: int = 0
    """Of the bytes, those whose rows may be in memory."""
    changes: int = 0
    transactions: int = 0


class Applier:
    """See the module. Call ``start`` (or just ``step``), then ``step`` for as long as you like, then ``close``."""

    def __init__(
        self,
        name: str,
        source: Source,
        catalog: Catalog,
        storage: Storage,
        clock: Clock,
        chance: Chance,
        desk: Desk,
        index_files: Callable[[TableId], IndexFiles | None],
        tables: Sequence[str],
        exclude: Sequence[str] = (),
        judge: Callable[[Relation], Relation | Refusal] = lambda relation: relation,
        settings: Settings | None = None,
        layout: Callable[[Relation], Layout] = lambda _: Layout(),
        history: Callable[[Relation], bool] = lambda _: False,
    ) -> None:
        """``tables`` and ``exclude``: ``schema.name`` or ``schema.*``. ``judge``: the relation with what the project chooses

        for its columns (of a table that is made now: what the lake holds stays), or what the project has against it.

        ``layout``: how the project wants a table laid out. ``history``: whether it wants one of it.

        ``index_files``: where a table's key index is kept; None: in memory only.
        """
        self.name = name
        self.settings = settings or Settings()
        self._source = source
        self._catalog = catalog
        self._storage = storage
        self._clock = clock
        self._chance = chance
        self._desk = desk
        self._index_files = index_files
        self._wanted = tuple(tables)
        self._exclude = frozenset(exclude)
        self._judge = judge
        self._layout = layout
        self._wants_history = history
        self._control = Control(name, catalog, storage, clock, chance)
        self._bin = Bin(storage, chance)
        self._identity: SourceIdentity
        self._slot = ""
        self._stream: Stream | None = None
        self._epoch: int | None = None
        self._target = 0
        self._hold: HoldRequest | None = None
        self._failures = 0
        self.followed: dict[TableId, Followed] = {}
        self.parked: dict[TableId, Parked] = {}
        self._histories: dict[str, TableId] = {}
        """``schema.name`` of a mirror -> its history, as far as the catalog has one, also one that is not kept any more."""
        self._troubles: dict[TableId, IcelakeError] = {}
        """Mirrors that must stop and are not parked yet."""
        self._denied: set[TableId] = set()
        """Tables that came late and may not be published; a start tries again, and nothing before."""
        self._load_from: dict[TableId, float] = {}
        """When a range is tried again that could not be read."""
        self._left_in: Mapping[TableId, str] = {}
        """Tables that nothing names and that could not be taken out of the publication: what is in the way."""
        self._tried = 0.0
        self.refusals: Sequence[Refusal] = ()
        """Tables a pattern named that cannot be mirrored."""
        self.rebuilt_indexes: dict[TableId, str] = {}
        """Key indexes that were not (all) believed when they were last opened, and so were read from the table again: why."""
        self._batch = _Batch()
        self._last_commit = 0.0
        self._commits = 0
        self._untidy: dict[TableId, None] = {}
        """Tables that may have files worth compacting, the longest waiting first."""
        self._put_off = 0
        """Commits since they had their turn."""
        self._turn_to_rest = True
        """Nothing that waits is let wait for more than one step of that, between two commits."""
        self._restless: dict[TableId, float] = {}
        """Tables that were changed since they were tidied at rest, and when: the last one at the end."""
        self._turn_to_load = True

    # ------------------------------------------------------------------------------------------------- start

    @property
    def position(self) -> int:
        """Everything with end LSN <= this is in the lake, in every followed table that is in the cut."""
        return self._control.position or 0

    @property
    def loading(self) -> Sequence[TableId]:
        """Followed tables that are not in cuts yet."""
        return [table for table in self.followed if str(table) not in self._control.cut.tables]

    @property
    def running(self) -> bool:
        """Whether the source is owned and streaming."""
        return self._stream is not None

    @property
    def restless(self) -> bool:
        """Whether the next step would tidy a table at rest, if nothing else came before it."""
        return self.running and self._comes_to_rest() is not None

    @property
    def between_batches(self) -> bool:
        """Whether nothing was taken that is not committed."""
        return not self._batch.open

    def status(self) -> Json:
        """For people and ``icelake status``: how far, how far behind, and what is not followed yet."""
        server = self._stream.server_lsn if self._stream is not None else 0
        return {
            "state": "running" if self.running else "starting",
            "epoch": self._epoch,
            "position": format_lsn(self.position),
            "server_lsn": format_lsn(server) if server else None,
            "lag_bytes": max(0, server - self.position) if server else None,
            "buffered_bytes": self._stream.buffered if self._stream is not None else 0,
            "tables": len(self.followed),
            "loading": [str(table) for table in self.loading],
            "parked": [
                {"table": str(p.id), "since": format_lsn(p.note.since), **{k: getattr(p.note, k) for k in ("code", "what", "why", "fix")}}
                for p in self.parked.values()
            ],
            "append_only": [str(table) for table, followed in self.followed.items() if followed.relation.identity == "none"],
            "histories": [
                {"table": str(history), "of": mirror, **self._history_status(mirror)} for mirror, history in self._histories.items()
            ],
            "left_in_publication": [{"table": str(table), "why": why} for table, why in self._left_in.items()],
            "refused": [{"table": f"{r.schema}.{r.name}", "code": r.code, "why": r.why} for r in self.refusals],
            "rebuilt_indexes": [{"table": str(table), "why": why} for table, why in self.rebuilt_indexes.items()],
        }

    def _history_status(self, mirror: str) -> Json:
        followed = next((f for f in self.followed.values() if str(f.id) == mirror), None)
        if followed is not None and followed.history is not None:
            return {"state": "following", "since": format_lsn(followed.history.note.since)}
        return {"state": "parked" if any(str(table) == mirror for table in self.parked) else "stopped", "since": None}

    def start(self) -> None:
        """Take the source over (epoch + 1), check that nothing is missing, and open tables, indexes and the stream.

        Raises Fenced, Gap, ForeignChange, UnsupportedTable, Refused and what the ports raise.
        """
        publication = self._take_over()
        self._denied.clear()
        self._check_server()
        # Before anything that may be refused: meanwhile nobody could change such a table.
        unnamed = self._source.withdraw(publication)
        self._left_in = {table: left for table, left in unnamed.items() if left}
        switch = self._check_identity()
        first = self._control.marker is None
        if not first:
            self._check_slot()
        mirrors = self._mirrors()
        if switch is not None:
            # Before any commit whose marker names the new timeline.
            self._take_timeline(switch, mirrors)
        relations = self._relations(mirrors)
        if first:
            self._begin_source(publication, relations)
        else:
            late = self._publish_late(publication, [relation for relation in relations if relation.id not in mirrors])
            relations = [relation for relation in relations if relation.id in mirrors or relation in late]
        members = self._source.published(publication)
        self._park_unnamed(unnamed, members, mirrors)
        for table, loaded in mirrors.items():
            note = Parking.read(loaded.metadata["properties"])
            if note is not None:
                self.parked[table] = self._open_parked(loaded, note)
                trouble = self._troubles.get(table)
                if trouble is not None and not (_outweighs(trouble, note) or (note.replay and table in unnamed)):
                    del self._troubles[table]  # it is parked already, and keeps the reason it has
        for relation in relations:
            if relation.id not in self._troubles and relation.id not in self.parked:
                try:
                    self.followed[relation.id] = self._follow(relation, members.get(relation.id))
                except Refused as error:
                    if error.table != str(relation.id) or relation.id not in mirrors:
                        raise
                    self._troubles[relation.id] = error
        self._begin_stream(publication)
        self._tried = self._clock.monotonic()
        self._last_commit = self._tried - self.settings.commit_interval
        self._untidy = dict.fromkeys([*self.followed, *self.parked])
        self._restless = dict.fromkeys(self.followed, self._tried)
        # Lives that are all shorter than that would never thin anything.
        self._commits = max(self._commits, self._control.snapshots)

    def _begin_stream(self, publication: str) -> None:
        """Park what is in trouble, and have the rest sent; while the first of it is on its way the row indexes are opened."""
        while self._stream is None:
            if self._troubles:
                self._park()
            following, kept = [f.relation for f in self.followed.values()], [p.relation for p in self.parked.values()]
            self._stream = self._source.stream(self._slot, publication, self.position, following, kept)
            self._must_be_on(self._stream.timeline)
            for followed in list(self.followed.values()):
                try:
                    self._open_index(followed)
                    self._keep_history(followed)
                except Refused as error:
                    if error.table != str(followed.id):
                        raise
                    self._troubles[followed.id] = error
                    del self.followed[followed.id]
            if self._troubles:
                self._stream.close()
                self._stream = None

    def _park_unnamed(self, unnamed: Mapping[TableId, str], members: Mapping[TableId, str], mirrors: Mapping[TableId, LoadedTable]) -> None:
        """What ``withdraw`` said of mirrors is why they stop, unless there is a reason that weighs more."""
        for table in unnamed.keys() & mirrors.keys():
            before, now = Membership.parse(mirrors[table].metadata["properties"][MEMBERSHIP]), members.get(table)
            if now is not None and not unnamed[table] and not before.left(Membership.parse(now)):
                continue  # it only sends inserts, and had been put into the wrong publication
            trouble = self._troubles.get(table)
            if trouble is None or _can_be_replayed(trouble):
                self._troubles[table] = identity_lost(table, unnamed[table])

    def _take_over(self) -> str:
        """Become the owner, from here on the only one who commits, and learn who the source is. The name of its publication."""
        self.close()
        self._control.acquire(self._epoch)
        self._epoch = self._control.epoch
        self._identity = self._source.identify()
        self._slot = slot_name(self.name, self._control.source)
        return publication_name(self.name, self._control.source)

    def close(self) -> None:
        """End the stream and forget the running batch. Nothing that is in the lake changes."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._batch = _Batch()
        self._hold = None
        self.followed = {}
        self.parked = {}

    def _relations(self, mirrors: Mapping[TableId, LoadedTable]) -> list[Relation]:
        """What is to be followed. A mirror of which that cannot be said any more is left in ``_troubles``."""
        described = self._described_all(mirrors)
        refused = [entry for entry in described if isinstance(entry, Refusal)]
        known = {str(table): table for table in mirrors}
        for refusal in refused:
            name = f"{refusal.schema}.{refusal.name}"
            if name in self._wanted and name not in known:
                raise UnsupportedTable(refusal.code, f"{name} cannot be mirrored", refusal.why, refusal.fix)
        relations = {entry.id: entry for entry in described if isinstance(entry, Relation)}
        # A table once mirrored goes on being mirrored, or says why not: it must not fall behind without a word.
        for name in [name for name, table in known.items() if self._excludes(table.namespace, table.name)]:
            why, fix = "it is among the tables to exclude", f"take it out of exclude, then `icelake resume {name} --reload`"
            self._trouble(known.pop(name), Refused(LEFT_OUT, f"{name} is mirrored, and the project leaves it out", why, fix))
        missing = sorted(known.keys() - {str(table) for table in relations})
        for entry in self._source.describe(missing) if missing else ():
            if isinstance(entry, Relation):
                relations[entry.id] = entry
                continue
            name = f"{entry.schema}.{entry.name}"
            if entry.code == "TABLE_NOT_FOUND":
                self._trouble(
                    known[name],
                    Refused(
                        "TABLE_GONE",
                        f"{name} is mirrored but is not in the source any more",
                        "it was dropped or renamed",
                        f"make it again or give it its name back, then `icelake resume {name} --reload`; or put it into exclude",
                    ),
                )
            else:
                error = UnsupportedTable(
                    entry.code, f"{name} cannot be mirrored any more", entry.why, f"{entry.fix}; then `icelake resume {name}`"
                )
                self._trouble(known[name], error)
        self.refusals = [refusal for refusal in refused if f"{refusal.schema}.{refusal.name}" not in known]
        if not relations and not mirrors:
            raise UnsupportedTable(
                "NO_TABLES",
                f"source {self.name!r} has no table that can be mirrored",
                "; ".join(f"{r.schema}.{r.name}: {r.why}" for r in refused) or f"nothing matches {', '.join(self._wanted)}",
                "`icelake doctor` says what each table needs",
            )
        return list(relations.values())

    def _trouble(self, table: TableId, error: IcelakeError) -> None:
        error.table = str(table)
        self._troubles.setdefault(table, error)

    def _described_all(self, mirrors: Iterable[TableId]) -> list[Relation | Refusal]:
        """What the source has of what is wanted, as the project wants it."""
        described = [self._judged(entry) for entry in self._source.describe(self._wanted) if not self._excluded(entry)]
        return self._without_histories(described, mirrors)

    def _judged(self, entry: Relation | Refusal) -> Relation | Refusal:
        return entry if isinstance(entry, Refusal) else self._judge(entry)

    def _without_histories(self, described: Sequence[Relation | Refusal], mirrors: Iterable[TableId]) -> list[Relation | Refusal]:
        """A table that comes to the source under the name of a history is not mirrored."""
        wanted = [entry for entry in described if isinstance(entry, Relation) and self._wants_history(entry)]
        taken = {history_of(entry.id): str(entry.id) for entry in wanted} | {history: of for of, history in self._histories.items()}
        for table in mirrors:
            taken.pop(table, None)
        why, fix = "the lake has the history of {} under this name", "rename the table, or leave it out"
        return [
            Refusal(entry.schema, entry.name, "RESERVED_NAME", why.format(taken[entry.id]), fix)
            if isinstance(entry, Relation) and entry.id in taken
            else entry
            for entry in described
        ]

    def _excluded(self, entry: Relation | Refusal) -> bool:
        return self._excludes(entry.schema, entry.name)

    def _excludes(self, schema: str, name: str) -> bool:
        return excludes(self._exclude, schema, name)

    def take_up(self) -> bool:
        """Publish tables that came to the source since the start, or can be mirrored by now; whether another start would follow any."""
        known: dict[TableId, object] = {**self.followed, **self.parked, **self._troubles}
        entries = self._described_all(known)
        known |= dict.fromkeys(self._denied)
        new = {entry.id: entry for entry in entries if isinstance(entry, Relation) and entry.id not in known}
        self.refusals = [refusal for refusal in self.refusals if TableId(refusal.schema, refusal.name) not in new]
        return bool(self._publish_late(publication_name(self.name, self._control.source), list(new.values())))

    def _mirrors(self) -> dict[TableId, LoadedTable]:
        """The mirrors of this source that the catalog has."""
        loaded: list[LoadedTable] = []
        for table in self._catalog.tables():
            with suppress(NoSuchTable):  # somebody dropped it just now
                loaded += [self._catalog.load(table)] if table != self._control.id else []
        owners = {one.id: mirror_of(one.metadata["properties"], self._control.source) for one in loaded}
        self._histories = {mirror: table for table, mirror in owners.items() if mirror is not None}
        return {one.id: one for one in loaded if one.metadata["properties"].get(SOURCE) == self._control.source}

    def renew(self) -> None:
        """Begin anew with a source whose changes since the lake's position are gone: a new slot, and every table is compared.

        One commit says both: the new position, and that no row is trusted. Nothing leaves the lake before it was compared.
        """
        publication = self._take_over()
        if self._control.marker is None:
            raise Refused("NOTHING_TO_RENEW", f"the lake holds nothing of source {self.name!r} yet", "", "icelake sync")
        self._check_server()
        mirrors = self._mirrors()
        self._source.publish(publication, self._relations(mirrors))
        self._troubles = {}
        if self._source.slot(self._slot) is not None:
            self._source.drop_slot(self._slot)
        start = self._source.create_slot(self._slot)
        members = self._source.published(publication)
        marker = self._marker(start)
        changes: list[TableChange] = []
        for table, mirror in mirrors.items():
            part, *history = self._distrusted(mirror, members.get(table, mirror.metadata["properties"][MEMBERSHIP]), marker)
            changes += history
            changes.append(replace(part, updates=[*part.updates, {"action": "remove-properties", "removals": [PARKED]}]))
            note = Parking.read(mirror.metadata["properties"])
            emptied = self._open_parked(mirror, note).emptied() if note is not None else None
            if emptied is not None:
                changes.append(emptied)
        self._cut(marker, changes, {}, {})

    def _check_server(self) -> None:
        marker, now = self._control.marker, self._identity
        if marker is not None and marker.system_id != now.system_id:
            raise Refused(
                "OTHER_SERVER",
                f"source {self.name!r} is another PostgreSQL cluster than the one the lake was made from",
                f"system identifier {now.system_id}, the lake's is {marker.system_id}",
                "check the address in icelake.toml",
            )

    def _check_identity(self) -> int | None:
        """Whether this is the server the lake was made from, or its rightful successor.

        The position at which the lake's timeline was left if a standby was promoted since, else None.
        """
        marker, now = self._control.marker, self._identity
        if marker is None:
            return None
        self._check_server()
        switch = self._source.switched_from(marker.timeline) if marker.timeline != now.timeline else None
        if marker.timeline != now.timeline and (switch is None or switch < self.position):
            raise self._new_timeline(self.position, switch)
        if now.flushed is not None and now.flushed < self.position:
            raise Gap(
                "SOURCE_WENT_BACK",
                f"source {self.name!r} is at {format_lsn(now.flushed)}, the lake at {format_lsn(self.position)}",
                "the server was restored from a backup or a snapshot: the lake holds transactions it no longer has",
                "`icelake resume --reload` begins a new slot and compares every table with the source",
            )
        return switch

    def _take_timeline(self, switch: int, mirrors: Mapping[TableId, LoadedTable]) -> None:
        """Go on from the promoted server: nothing of the lake is newer than what it took over. Recorded before anything else is."""
        for mirror in mirrors.values():
            newest = LoadState.parse(mirror.metadata["properties"][LOAD]).newest
            if newest > switch:
                raise self._new_timeline(newest, switch)
        self._record(self.position, self._control.cut.commit_time, self._control.cut.tables)

    def _must_be_on(self, timeline: int) -> None:
        """Every session finds its server by itself, and a standby may take over, or answer beside it, at any moment."""
        if timeline != self._identity.timeline:
            raise Unreachable(
                "SERVER_CHANGED",
                f"source {self.name!r} answers from timeline {timeline}, a moment ago it was {self._identity.timeline}",
                "a standby was promoted meanwhile, or the address leads to more than one server",
                "it is tried again, after a look at where the new timeline left the old",
            )

    def _new_timeline(self, held: int, switch: int | None) -> Gap:
        assert self._control.marker is not None
        was, now = self._control.marker.timeline, self._identity.timeline
        if switch is None:
            why = f"timeline {now} does not descend from {was}: this is not the standby that took over, or the old primary came back"
        else:
            why = f"a standby was promoted that had the log up to {format_lsn(switch)} only; the lake holds it up to {format_lsn(held)}"
        return Gap(
            "NEW_TIMELINE",
            f"source {self.name!r} is on timeline {now}; the lake was made on {was}, and may hold transactions that are lost",
            why,
            "`icelake resume --reload` compares every table with the source; synchronized_standby_slots (17+) prevents it",
        )

    def _begin_source(self, publication: str, relations: Sequence[Relation]) -> None:
        # The publication comes first: decoding WAL from before a publication existed fails.
        self._source.publish(publication, relations)
        if self._source.slot(self._slot) is not None:
            # Its name holds this lake's id and nothing was ever recorded: a crash between the two next lines left it.
            self._source.drop_slot(self._slot)
        start = self._source.create_slot(self._slot)
        self._record(start, 0, {})

    def _publish_late(self, publication: str, late: Sequence[Relation]) -> list[Relation]:
        """Those that are in the publication now. One that cannot be is no reason to stop the others, if only a pattern names it."""
        try:
            if late:
                self._source.publish(publication, late)
            return list(late)
        except (Refused, Unreachable) as error:
            if isinstance(error, Unreachable) and error.code not in _WAITS:
                raise
            if len(late) > 1:
                return [published for relation in late for published in self._publish_late(publication, [relation])]
            (relation,) = late
            if isinstance(error, Refused):
                if str(relation.id) in self._wanted:
                    raise
                self._denied.add(relation.id)
            refusal = Refusal(relation.schema, relation.name, error.code, f"{error.what}: {error.why}", error.fix)
            self.refusals = [*self.refusals, refusal]
            return []

    def _check_slot(self) -> None:
        slot = self._source.slot(self._slot)
        if slot is None:
            raise Gap(
                "SLOT_GONE",
                f"replication slot {self._slot} does not exist any more",
                "it was dropped, the server was restored or replaced, or a standby was promoted that did not have it (before "
                "PostgreSQL 17 none has): changes since the lake's position may be gone",
                "`icelake resume --reload` begins a new slot and compares every table with the source",
            )
        if slot.database != self._identity.database:
            raise Refused(
                "OTHER_DATABASE",
                f"source {self.name!r} is database {self._identity.database}; the lake was made from database {slot.database}",
                "the address names another database of the same server",
                "check the address in icelake.toml",
            )
        if slot.lost:
            raise Gap(
                "SLOT_LOST",
                f"replication slot {self._slot} was invalidated: {slot.lost}",
                "the source removed WAL the lake had not read",
                "raise max_slot_wal_keep_size, then `icelake resume --reload`: every table is compared with the source",
            )
        if slot.confirmed_flush_lsn > self.position:
            raise Gap(
                "SLOT_AHEAD",
                f"replication slot {self._slot} is at {format_lsn(slot.confirmed_flush_lsn)}, past the lake's {format_lsn(self.position)}",
                "someone else read from the slot or moved it: the changes between are gone",
                "`icelake resume --reload` begins a new slot and compares every table with the source",
            )

    def _published(self) -> Mapping[TableId, str]:
        return self._source.published(publication_name(self.name, self._control.source))

    def _check_members(self, members: Mapping[TableId, str]) -> bool:
        """Refuse to go on if changes to a followed table may be missing from the stream. False: there is another to be withdrawn."""
        for followed in self.followed.values():
            followed.is_member(members.get(followed.id))
        unnamed = {table for table in members.keys() - self.followed.keys() if Membership.parse(members[table]).unnamed}
        return unnamed <= self._left_in.keys()

    def _evolve(self, mirror: LoadedTable, relation: Relation, *, replacing: bool = False) -> LoadedTable:
        """The mirror with the schema its source has now."""
        return self._reshaped(mirror, lambda metadata: evolve(metadata, relation, replacing=replacing))

    def _reshaped(self, loaded: LoadedTable, plan: Callable[[Json], list[Json]]) -> LoadedTable:
        """A table after the updates that are planned for its metadata; none: as it is."""
        metadata = loaded.metadata
        try:
            updates = plan(metadata)
        except UnsupportedTable as error:
            error.table = str(loaded.id)
            raise
        if not updates:
            return loaded
        requirements = [
            *loaded.unmoved(),
            {"type": "assert-current-schema-id", "current-schema-id": metadata["current-schema-id"]},
            {"type": "assert-last-assigned-field-id", "last-assigned-field-id": metadata["last-column-id"]},
        ]
        try:
            after = commit(self._catalog, self._clock, [self._control.fence(), TableChange(loaded.id, requirements, updates)])
        except CommitConflict:
            self._control.check()
            now = self._catalog.load(loaded.id)
            if plan(now.metadata):
                raise
            return now  # it was done, and the answer was lost
        self._control.still_ours(after[0])
        return after[1]

    def _follow(self, relation: Relation, member: str | None, parked: Parking | None = None) -> Followed:
        """Open a mirror, made if it is not there. What it raises names the table if it is about this one alone.

        A column that was added is added to the mirror. ``parked``: it is resumed, and whatever else of its shape can be followed, is.
        """
        resuming = parked is not None
        try:
            loaded = self._catalog.load(relation.id)
        except NoSuchTable:
            if member is None:
                left = left_publication(relation.id)
                raise Unreachable(left.code, left.what, left.why, "it is published again by the next start") from None
            loaded = self._create(relation, member)
        properties = loaded.metadata["properties"]
        if properties.get(SOURCE) != self._control.source:
            raise ForeignChange(
                "TABLE_EXISTS",
                f"the catalog already has a table {relation.id} that is not a mirror of source {self.name!r}",
                "someone else made it",
                "move it out of the way, or give the mirror's source another catalog",
            )
        table = self._open(loaded)
        if table.relation.oid != relation.oid:
            raise UnsupportedTable(
                "TABLE_REPLACED",
                f"{relation.id} is another table than the one its mirror was made from",
                f"it was dropped and made again: its oid is {relation.oid}, it was {table.relation.oid}",
                f"`icelake resume {relation.id} --reload` compares it with the lake",
                table=str(relation.id),
            )
        relation = as_held(relation, table.relation, resuming=resuming)
        if resuming and (altered := altered_types(table.relation, relation)):
            raise UnsupportedTable(
                "RESUME_NEEDS_RELOAD",
                f"changes of {relation.id} that were kept cannot be replayed",
                f"{'; '.join(altered)}: rows that nobody touched read otherwise now",
                f"`icelake resume {relation.id} --reload` compares the table with the source instead",
                table=str(relation.id),
            )
        if resuming or only_grew(table.relation, relation):
            # Marks first: of a table whose rows were rewritten, what rows from before have is not known any more.
            check_member(table, member)
            loaded = self._evolve(loaded, relation)
            table = self._open(loaded)
        if _shape(table.relation) != _shape(relation):
            raise UnsupportedTable(
                "TABLE_CHANGED",
                f"{relation.id} has not the shape any more that its mirror has",
                _difference(table.relation, relation),
                f"if the lake shall follow: `icelake resume {relation.id}`; its changes are kept until then",
                table=str(relation.id),
            )
        wanted, made = self._layout(relation), table.layout.declared
        if (made.partition, made.sort) != (wanted.partition, wanted.sort) or made.format_version > wanted.format_version:
            raise UnsupportedTable(
                "LAYOUT_CHANGED",
                f"the project wants {relation.id} laid out otherwise than it was made",
                f"wanted: {wanted}; made: {made}",
                "put the settings back, or load the table into a new lake: partitions, sort order and format stay what they were",
            )
        self._check_foreign(table, self._control.cut.tables.get(str(relation.id)) if parked is None else parked.head)
        if relation.partitioned and member is not None:
            told, member = self._follow_leaves(table, relation, member, parked)
            if told is not None:
                loaded, table = told, self._open(told)
        followed = follow(table)
        followed.is_member(member)
        return followed

    def _open_index(self, followed: Followed) -> None:
        try:
            rebuilt = followed.open_index(self._index_files(followed.id))
        except Corrupt as error:
            if error.code == "KEY_TWICE":
                error.table = str(followed.id)
            raise
        if rebuilt:
            self.rebuilt_indexes[followed.id] = rebuilt

    def _open(self, mirror: LoadedTable) -> Table:
        """The mirror; one that another program wrote in a way that cannot be read is no reason to stop the others."""
        try:
            return Table.open(mirror, self._storage, self._clock, self._chance)
        except ForeignChange as error:
            error.table = str(mirror.id)
            raise

    def _follow_leaves(self, table: Table, relation: Relation, member: str, parked: Parking | None) -> tuple[LoadedTable | None, str]:
        """Tell the mirror which leaves its table has now: the mirror then, if it was another set, and its mark.

        What came and went with a leaf is not in the stream. So, in one commit, the rows of such leaves are held and not loaded, and
        the mirror leaves the cut until they are compared with the source.
        """
        held, now = Membership.parse(table.metadata["properties"][MEMBERSHIP]), check_member(table, member)
        other = held.other_leaves(now)
        if not other:
            return None, member
        if any(leaf.oid in other for leaf in now.leaves):
            # Before its range is read: what the range does not hold, then, is in the stream. It may be in the publication already, by a
            # process that did not live to go on from there.
            member = self._publish_leaves(relation)
            other = held.other_leaves(check_member(table, member))
        delta, summary, state = table.delta(), {}, LoadState.parse(table.metadata["properties"][LOAD])
        if relation.identity == "key":
            to = order(relation)
            for leaf in other:
                state = state.distrust(*leaf_bounds(leaf), to)
        elif parked is not None:
            raise UnsupportedTable(
                "RESUME_NEEDS_RELOAD",
                f"changes of {relation.id} that were kept cannot be replayed",
                "it has other partitions now, and no key tells the rows of one that stayed from those that came or went",
                f"`icelake resume {relation.id} --reload` compares the table with the source instead",
                table=str(relation.id),
            )
        else:
            delta.truncate()
            summary, state = self._marker(self.position).summary(), LoadState()
        change = delta.prepare(summary, {LOAD: state.dump(), MEMBERSHIP: member})
        self._settle(change, [], [], self._heads_without([str(table.id)]), parked)
        return self._catalog.load(table.id), member

    def _publish_leaves(self, relation: Relation) -> str:
        """Add a table's new leaves to the publication; its mark then. If that is not allowed, only this table stops."""
        publication = publication_name(self.name, self._control.source)
        try:
            self._source.publish(publication, [relation])
        except Refused as error:
            fix = f"{error.fix.rstrip(';')}; then `icelake resume {relation.id}`"
            raise UnsupportedTable(error.code, error.what, error.why, fix, table=str(relation.id)) from None
        member = self._source.published(publication).get(relation.id)
        if member is None:
            raise left_publication(relation.id)
        return member

    def _keep_history(self, followed: Followed) -> None:
        """Begin to tell its history, or stop that, before the first change. Its row index is open: no history begins with a key twice."""
        if not self._wants_history(followed.relation):
            if (known := self._histories.get(str(followed.id))) is not None:
                self._reshaped(self._catalog.load(known), stopped)
            return
        try:
            loaded = self._catalog.load(followed.id)
            if (loaded.head, loaded.metadata["current-schema-id"]) == _shown(followed.table):
                followed.history = self._history(followed.table, loaded)
                return
            what, why = f"{followed.id} was changed while it was opened", "another program did"
        except Refused as error:
            error.table = error.table or str(followed.id)
            raise
        except (CommitConflict, NoSuchTable) as error:
            what, why = f"the history of {followed.id} was not begun", str(error)
        raise Unreachable("COMMIT_CONFLICT", what, why, "it is opened again")

    def _history(self, table: Table, mirror: LoadedTable) -> History:
        """The history of a mirror, in step with it and of its shape: made, or begun anew, if it is not there or is behind."""
        loaded = load_or_create(self._catalog, mirror, self._control.source, self.position)
        self._histories[str(mirror.id)] = loaded.id
        loaded = self._reshaped(loaded, lambda metadata: evolved(loaded.id, metadata, mirror.metadata))
        try:
            history = History(self._open(loaded))
        except ForeignChange as error:
            error.table = str(mirror.id)
            raise
        heads, marker = dict(self._control.cut.tables), self._marker(self.position)
        parts: list[TableChange] = []
        if not in_step(loaded, mirror):
            history.begin(table, max(self.position, LoadState.parse(mirror.metadata["properties"][LOAD]).newest))
            parts = [history.prepare(marker, table.snapshot_id)]
        if not parts and (str(mirror.id) not in heads or str(history.id) in heads):
            return history
        # Its mirror is in the cut, so it is from here on.
        head = parts[0].new_snapshot if parts else history.table.snapshot_id
        if str(mirror.id) in heads and head is not None:
            heads[str(history.id)] = head
        after = self._cut(marker, [*parts, TableChange(mirror.id, mirror.unmoved(), [])], heads, self._control.cut.parked)
        if parts:
            history.done(after)
        return history

    def _create(self, relation: Relation, member: str) -> LoadedTable:
        layout, schema = self._layout(relation), iceberg_schema(relation)
        properties = {
            **table_properties(relation),
            **layout_properties(layout),
            SOURCE: self._control.source,
            LOAD: LoadState().dump(),
            MEMBERSHIP: member,
        }
        try:
            return self._catalog.create(
                relation.id,
                schema,
                properties,
                partition_spec=partition_spec(layout, schema),
                sort_order=sort_order(layout, schema),
                format_version=layout.format_version,
            )
        except AlreadyExists:
            return self._catalog.load(relation.id)

    def _check_foreign(self, table: Table, expected: int | None) -> None:
        """A mirror must be at the snapshot the control table (or the note that parked it) says, give or take rewrites that change no
        row. None: it is still loading, and all that is known is that nobody else wrote last."""
        metadata = table.metadata
        by_id = {snapshot["snapshot-id"]: snapshot for snapshot in metadata.get("snapshots", ())}
        at = table.snapshot_id
        while at is not None and at != expected:
            snapshot = by_id.get(at)
            if snapshot is None:
                break  # someone expired what came before, the last cut's snapshot perhaps with it
            summary = snapshot["summary"]
            if summary["operation"] != "replace":
                if expected is None and summary.get(SOURCE) == self._control.source:
                    break  # still loading: our own commits, not in any cut yet
                why = f"snapshot {at} ({summary['operation']}) was not made by this source's applier"
                raise self._changed(table.id, why)
            at = snapshot.get("parent-snapshot-id")
        if at != expected and expected in by_id:
            raise self._changed(table.id, f"it was rolled back: the last cut's snapshot {expected} is not behind its present one")

    def _changed(self, table: TableId, why: str) -> ForeignChange:
        return ForeignChange(
            "TABLE_CHANGED_BY_OTHERS",
            f"{table} was changed by someone else",
            why,
            f"`icelake resume {table} --reload` compares it with the source and mends what differs",
            table=str(table),
        )

    # --------------------------------------------------------------------------------------------------- parking

    def _open_parked(self, mirror: LoadedTable, note: Parking) -> Parked:
        return Parked.open(mirror, note, self._catalog, self._storage, self._clock, self._chance)

    def _park(self) -> None:
        """The tables in ``_troubles`` leave the cut, and what happens to them is kept from here on. One commit for all."""
        notes: dict[TableId, Parking] = {}
        mirrors: dict[TableId, LoadedTable] = {}
        for table, error in self._troubles.items():
            mirrors[table] = self._catalog.load(table)
            replay = _can_be_replayed(error)
            notes[table] = Parking(self.position, error.code, error.what, error.why, error.fix, mirrors[table].head, replay)
            if replay:
                make_spool(table, self._control.source, self._catalog)
        heads = self._heads_without(map(str, notes))
        codes = {**self._control.cut.parked, **{str(table): note.code for table, note in notes.items()}}
        parts = [note_change(mirrors[table], note) for table, note in notes.items()]
        # A table that is parked for another reason now begins with an empty spool.
        parts += [part for table in notes if table in self.parked and (part := self.parked[table].emptied()) is not None]
        for loaded in self._cut(self._marker(self.position), parts, heads, codes)[: len(notes)]:
            self.parked[loaded.id] = self._open_parked(loaded, notes[loaded.id])
        self._troubles = {}

    def _heads_without(self, names: Iterable[str]) -> dict[str, int]:
        """The tables of the last cut but these and their histories."""
        gone = set(names)
        gone |= {str(history) for mirror, history in self._histories.items() if mirror in gone}
        return {name: head for name, head in self._control.cut.tables.items() if name not in gone}

    # -------------------------------------------------------------------------------------------------- resuming

    def _resume(self, wish: ResumeRequest) -> Progress:
        """Let parked tables go on: by replaying what was kept, or by comparing them with the source."""
        refusals: list[IcelakeError] = []
        names = {str(table): table for table in (*self.parked, *self.followed)}
        for name in wish.tables:
            try:
                if name not in names:
                    raise Refused("NOT_MIRRORED", f"{name} is not mirrored", "", f"the mirrors are: {', '.join(sorted(names))}")
                parked = self.parked.get(names[name])
                if wish.reload:
                    self._reload(names[name])
                elif parked is not None:
                    self._replay(parked)
            except (Unreachable, CommitUnknown, CommitConflict, Fenced):
                raise
            except IcelakeError as refusal:
                refusal.table = refusal.table or name
                refusals.append(refusal)
        self._desk.resume_answered(wish.id, refusals)
        # Opened anew: what is followed, and under which shape, has changed.
        self.close()
        return Progress("resume", position=self.position)

    def _described(self, table: TableId) -> Relation:
        (entry,) = self._source.describe([str(table)])
        entry = self._judged(entry)
        if isinstance(entry, Refusal):
            raise UnsupportedTable(entry.code, f"{table} cannot be mirrored", entry.why, entry.fix, table=str(table))
        return entry

    def _replay(self, parked: Parked) -> None:
        if not parked.note.replay:
            raise Refused(
                "RESUME_NEEDS_RELOAD",
                f"the changes of {parked.id} were not kept",
                f"it is parked because of {parked.note.code}: {parked.note.why}",
                f"`icelake resume {parked.id} --reload` compares it with the source and mends what differs",
                table=str(parked.id),
            )
        publication = publication_name(self.name, self._control.source)
        relation = self._described(parked.id)
        followed = self._follow(relation, self._source.published(publication).get(parked.id), parked.note)
        self._open_index(followed)
        self._keep_history(followed)
        try:
            for kept in parked.kept():
                for changes in replay(kept, followed.relation):
                    followed.apply(changes)
            parts = followed.prepare(self._marker(self.position)) or [followed.unchanged()]
        except Refused:
            for location in followed.rollback():
                self._storage.delete(location)
            raise
        heads = dict(self._control.cut.tables)
        if followed.whole_at(self.position):
            heads |= _heads(followed, parts)
        emptied = parked.emptied()
        self._unpark(parts[0], [*parts[1:], *([emptied] if emptied is not None else [])], heads)

    def _reload(self, table: TableId) -> None:
        """No row of the mirror is trusted: it leaves the cut, and range by range is compared with the source."""
        publication = publication_name(self.name, self._control.source)
        relation = self._described(table)
        try:
            self._source.publish(publication, [relation])
        except Unreachable as error:
            # Who asked may ask again; the other tables do not wait for it.
            raise Refused(error.code, error.what, error.why, error.fix, table=str(table)) from None
        member = self._source.published(publication).get(table)
        if member is None:
            raise left_publication(table)
        mirror = self._catalog.load(table)
        held, parked = relation_of(mirror.metadata), self.parked.get(table)
        same = (held.oid, held.identity, _key(held)) == (relation.oid, relation.identity, _key(relation))
        heads = self._heads_without([str(table)])
        # First nothing of it is believed any more, then it may change its shape, then it goes on: a crash leaves it parked.
        why, fix = "a reload was begun and did not come to its end", f"`icelake resume {table} --reload`"
        note = Parking(self.position, "RELOAD_UNFINISHED", f"{table} is being compared with the source", why, fix, None, False)
        distrusted, *also = self._distrusted(mirror, member, self._marker(self.position), same=same)
        emptied = parked.emptied() if parked is not None else None
        self._settle(distrusted, note_change(mirror, note).updates, [*also, *([emptied] if emptied is not None else [])], heads, note)
        mirror = self._evolve(self._catalog.load(table), relation, replacing=True)
        self._unpark(TableChange(table, mirror.unmoved(), []), [], heads)

    def _distrusted(self, mirror: LoadedTable, member: str, marker: Marker, *, same: bool = True) -> list[TableChange]:
        """The parts of a commit after which no row of a mirror counts as loaded. ``same``: its rows are told apart as they were.

        Rows that no key tells apart cannot be compared one by one: they leave the lake, and are loaded. So it is if another program
        wrote, which may have written a key twice.
        """
        table = self._open(mirror)
        note = Parking.read(mirror.metadata["properties"])
        try:
            self._check_foreign(table, self._control.cut.tables.get(str(table.id)) if note is None else note.head)
        except ForeignChange:
            same = False
        if note is not None and note.code in _DOUBTED:
            same = False
        delta, state, history = table.delta(), LoadState.suspect(), self._history_in_step(mirror)
        if not same or table.relation.identity != "key":
            delta.truncate()
            state = LoadState()
            if history is not None:
                history.reset(marker.lsn)
        # A snapshot of ours even if it changes nothing: what others wrote before it is compared like all the rest.
        return with_history(delta.prepare(marker.summary(), {LOAD: state.dump(), MEMBERSHIP: member}), history, marker)

    def _history_in_step(self, mirror: LoadedTable) -> History | None:
        """The history of a mirror that is not opened, if one is kept and a replay of it gives the mirror; else it will begin anew."""
        known = self._histories.get(str(mirror.id))
        if known is None or not self._wants_history(relation_of(mirror.metadata)):
            return None
        loaded = self._catalog.load(known)
        return History(self._open(loaded)) if in_step(loaded, mirror) else None

    def _unpark(self, change: TableChange, also: Sequence[TableChange], heads: Mapping[str, int]) -> None:
        """``change`` of the mirror, its note removed, and a cut with ``heads``, in one commit."""
        self._settle(change, [{"action": "remove-properties", "removals": [PARKED]}], also, heads, None)

    def _settle(
        self, change: TableChange, more: Sequence[Json], also: Sequence[TableChange], heads: Mapping[str, int], note: Parking | None
    ) -> None:
        """One commit: ``change`` of a mirror with ``more`` updates, ``also`` its history's and its spool's, a cut with ``heads`` and

        the mirror's ``note``."""
        name = str(change.id)
        codes = {other: code for other, code in self._control.cut.parked.items() if other != name}
        if note is not None:
            codes[name] = note.code
        self._cut(self._marker(self.position), [replace(change, updates=[*change.updates, *more]), *also], heads, codes)
        self.parked.pop(change.id, None)

    # -------------------------------------------------------------------------------------------------- step

    def step(self, timeout: float = 1.0) -> Progress:
        """Do one thing: commit what is due, load a range, tidy up, or wait up to ``timeout`` seconds for changes."""
        began = self._clock.monotonic()
        try:
            progress = self._try(timeout)
        except (Unreachable, CommitUnknown) as error:
            # What the batch wrote stays: a commit in doubt may still need it. The next step starts from the control table.
            self.close()
            self._failures += 1
            self._clock.sleep(min(30.0, 0.1 * 2.0 ** min(self._failures, 10)))
            return Progress("retry", position=self.position, error=error)
        return replace(progress, seconds=self._clock.monotonic() - began)

    def _try(self, timeout: float) -> Progress:
        """A step that temporary trouble may end at any place, also where an error about one table is dealt with."""
        try:
            if self._stream is None:
                self.start()
            progress = self._step(timeout)
            if progress.kind != "retry":
                self._failures = 0
            return progress
        except Fenced:
            raise
        except Refused as error:
            # What looks like a gap or someone else's change may be the work of the process that has taken over: say that instead.
            if self._epoch is not None:
                self._control.still_ours(self._catalog.load(self._control.id))
            table = next((table for table in self.followed if str(table) == error.table), None)
            if table is None:
                raise
            if error.code not in _FOLLOWED:
                # It stops alone: the others begin again from the marker, with what happens to it kept raw.
                self._troubles[table] = error
            # Else the start gives the mirror the new columns, or tells it its leaves; then the same changes are read again.
            self._throw_away()
            self.close()
            if error.code in _FOLLOWED:
                return Progress("retry", position=self.position)
            return Progress("park", position=self.position, error=error)

    def run_to(self, lsn: int) -> None:
        """The position the caller waits for: it is recorded as soon as it is reached, also when nothing changes."""
        self._target = max(self._target, lsn)

    def _step(self, timeout: float) -> Progress:
        stream = self._stream
        assert stream is not None
        hold = self._desk.hold_wanted()
        if hold is not None and (hold.lsn is None or hold.lsn >= max(self.position, self._batch.position)):
            return self._step_hold(stream, hold, timeout)
        self._hold = None
        if not self._batch.open and (wish := self._desk.resume_wanted()) is not None:
            return self._resume(wish)
        if not self._batch.open and self._left_in and self._clock.monotonic() >= self._tried + TRY_AGAIN:
            # Another start tries to take them out of the publication.
            self.close()
            return Progress("retry", position=self.position)
        if not self._batch.open and self._commits >= self.settings.upkeep_commits:
            self._commits = 0
            return self._expire()
        if not self._batch.open and (self._turn_to_rest or not stream.buffered) and self._tidy_at_rest():
            self._turn_to_rest = False
            return Progress("upkeep", position=self.position)
        due = self._last_commit + self.settings.commit_interval
        if self._turn_to_load:
            loading = self._to_load()
            # A batch that has begun is ended first: a range is committed alone.
            if loading is not None and not self._batch.open:
                self._turn_to_load = False
                return self._load(loading)
        if self._batch.open or stream.buffered:
            self._turn_to_load = True
            full = self._batch.bytes >= self.settings.batch_bytes
            # A caller does not wait for the interval. Tables that wait for a cut do, or each of many would have one of its own.
            if full or self._clock.monotonic() >= due or self.position < self._target <= stream.server_lsn:
                return self._take_and_commit(stream)
            if stream.buffered >= self.settings.take_bytes and self._take_one(stream):
                return Progress("wait", position=self.position)
        elif (idle := self._idle_position(stream)) is not None:
            return self._commit(idle)
        elif not self._turn_to_load and self._to_load() is not None:
            self._turn_to_load = True
            stream.wait(0)
            return Progress("wait", position=self.position)
        wait, enough = timeout, 0
        if stream.buffered or self._batch.open:
            wait = max(0.0, min(timeout, due - self._clock.monotonic()))
            enough = self.settings.take_bytes
        if self._wanted_position() > stream.server_lsn:
            stream.ask()
            wait = min(wait, 0.1)
        stream.wait(wait, enough)
        return Progress("wait", position=self.position)

    def _take(self, stream: Stream, before: int | None = None) -> bool:
        """Apply what is there to the running batch; whether anything was.

        What arrives meanwhile is of the next batch, or a source that never rests would keep this one open for ever, in ever smaller
        pieces. Only where a whole chunk waits, or what somebody waits for, a batch may have as many as fit and as an interval sees.
        """
        taken = False
        until = self._clock.monotonic() + self.settings.commit_interval
        while not taken or before is not None or self._batch.mid or self._behind(stream, until):
            if not self._take_one(stream, before):
                break
            taken = True
        return taken

    def _take_one(self, stream: Stream, before: int | None = None) -> bool:
        """Apply a chunk to the running batch, if there is one."""
        chunk = stream.take(before=before, max_bytes=self.settings.chunk_bytes)
        if chunk is None:
            return False
        batch = self._batch
        for changes in chunk.changes:
            followed = self.followed[changes.relation.id]
            try:
                followed.apply(changes)
            except (UnsupportedTable, ValueOutOfContract) as error:
                error.table = str(followed.id)
                raise
            except Corrupt:
                # It does not fit if changes before it are missing: then what the table's mark says is the reason, and parks it.
                self._check_members(self._published())
                raise
            batch.changes += len(changes.op)
        for raw in chunk.raw:
            self.parked[raw.table].keep(raw)
            batch.changes += len(raw.messages)
        batch.transactions += chunk.transactions
        batch.bytes += chunk.bytes
        batch.held += chunk.bytes
        batch.time = max(batch.time, chunk.commit_time)
        batch.position = max(batch.position, chunk.position or 0)
        batch.open, batch.mid = True, chunk.open
        if batch.held >= 2 * self.settings.chunk_bytes:
            for followed in self.followed.values():
                followed.write()
            for parked in self.parked.values():
                parked.write()
            batch.held = 0
        return True

    def _behind(self, stream: Stream, until: float) -> bool:
        """Whether more than a chunk waits, or what somebody waits for, and the batch has room and time for it."""
        waits = stream.buffered >= self.settings.chunk_bytes or self._batch.position < self._target <= stream.server_lsn
        return waits and self._batch.bytes < self.settings.batch_bytes and self._clock.monotonic() < until

    def _take_and_commit(self, stream: Stream) -> Progress:
        taken = self._take(stream)
        if self._batch.open and not self._batch.mid:
            return self._commit(self._batch.position)
        # Inside a transaction: what a chunk of it held is written, and invisible until the rest has come.
        if not taken:
            stream.wait(0.05)
        return Progress("wait", position=self.position)

    # ------------------------------------------------------------------------------------------------ commit

    def _commit(self, position: int) -> Progress:
        """One cut at ``position``: every touched table and the control table, whole or not at all."""
        assert position >= self.position
        # After everything of the batch was received: whoever left the publication before any of it, is missing here.
        if not self._check_members(self._published()):
            self._throw_away()
            self.close()
            return Progress("retry", position=self.position)
        # The interval runs from beginning to beginning: commits come once in it, however long one takes.
        self._last_commit = self._clock.monotonic()
        marker = self._marker(position)
        touched: list[tuple[Followed, list[TableChange]]] = []
        heads: dict[str, int] = {}
        time = self._batch.time
        for followed in self.followed.values():
            parts = followed.prepare(marker)
            if parts:
                touched.append((followed, parts))
            name = str(followed.id)
            known = name in self._control.cut.tables
            named = _heads(followed, parts)
            if named and (known or followed.whole_at(position)):
                heads |= named
                if not known:
                    # Its rows were committed in the source before they were read: no later than the range was committed here.
                    time = max(time, followed.table.metadata["last-updated-ms"] * 1000)
        spools = [(p, p.prepare(marker, self.settings.parked_bytes, self.settings.parked_past_limit)) for p in self.parked.values()]
        control_delta, control_change = self._control.advance(marker, time, heads, self._control.cut.parked)
        parts_of_all = [change for _, parts in (*touched, *spools) for change in parts]
        after = self._send([control_change, *parts_of_all])
        if after is None:
            return Progress("retry", position=self.position)
        progress = Progress(
            "commit",
            changes=self._batch.changes,
            transactions=self._batch.transactions,
            position=position,
        )
        self._control.adopt(after[0], control_delta)
        rest = iter(after[1:])
        unused = [location for followed, parts in touched for location in followed.done([next(rest) for _ in parts])]
        for parked, changes in spools:
            unused += parked.done([next(rest) for _ in changes])
        for followed in self.followed.values():
            unused += followed.idle()
        self._batch = _Batch()
        self._commits += 1
        self._turn_to_rest = True
        self._confirm(position)
        for location in unused:
            self._storage.delete(location)
        # What waits comes first; and it changes the rows of the files that would be made now.
        stream = self._stream
        more = stream is not None and (stream.buffered >= self.settings.take_bytes or stream.behind)
        waits = self._to_load() is not None or more
        changed = [followed.id for followed, _ in touched]
        self._untidy |= dict.fromkeys([*changed, *(parked.id for parked, changes in spools if changes)])
        self._touched(changed)
        self._put_off += 1
        if not waits or self._put_off >= FANOUT:
            self._put_off = 0
            self._tidy()
        return progress

    def _tidy(self) -> None:
        """A step of compaction for each table that may need it, as far as an interval goes; the others have their turn next time."""
        until = self._clock.monotonic() + self.settings.commit_interval
        for table in list(self._untidy):
            del self._untidy[table]
            worth = self._compact(table)
            if worth is None:
                return  # everything was opened anew, and has its turn again
            if worth:
                self._untidy[table] = None
            if self._clock.monotonic() >= until:
                return

    def _touched(self, tables: Iterable[TableId]) -> None:
        now = self._clock.monotonic()
        for table in tables:
            self._restless.pop(table, None)
            self._restless[table] = now

    def _comes_to_rest(self) -> TableId | None:
        """A table that rests, and was not tidied since: it was not changed for a while, or who waits for a position has it."""
        if not self._restless:
            return None
        table, since = next(iter(self._restless.items()))
        due = self._clock.monotonic() >= since + self.settings.rest_interval or (0 < self._target <= self.position and not self.loading)
        return table if due and self._to_load() is None else None

    def _tidy_at_rest(self) -> bool:
        """A step of compaction for the first table at rest that needs one; whether there was one."""
        while (table := self._comes_to_rest()) is not None:
            if self._compact(table, at_rest=True) is not False:
                return True
            del self._restless[table]
        return False

    def _compact(self, table: TableId, *, at_rest: bool = False) -> bool | None:
        """Rewrite what is worth it, in a commit of its own. Whether anything was; None: somebody else was faster, all is opened anew."""
        followed = self.followed.get(table)
        parts: list[Followed | History | Parked | None] = [followed, followed.history] if followed is not None else [self.parked.get(table)]
        worth = False
        for part in parts:
            change = part.compact(self._marker(self.position), at_rest=at_rest) if part is not None else None
            if part is None or change is None:
                continue
            after = self._send([self._control.fence(), change])
            if after is None:
                return None
            part.done(after[1:])
            worth = True
        return worth

    def _record(self, position: int, commit_time: int, tables: Mapping[str, int]) -> None:
        """A cut in which no table changes: the first position of a new source, or the timeline the source is on now."""
        self._cut(self._marker(position), [], tables, self._control.cut.parked, commit_time)

    def _cut(
        self, marker: Marker, parts: Sequence[TableChange], heads: Mapping[str, int], parked: Mapping[str, str], commit_time: int = 0
    ) -> Sequence[LoadedTable]:
        """A cut that no batch makes, in one commit with ``parts`` of other tables: these tables then. A conflict is final here."""
        delta, change = self._control.advance(marker, commit_time, heads, parked)
        self._storage.flush()
        try:
            after = commit(self._catalog, self._clock, [change, *parts])
        except CommitConflict:
            self._control.check()
            raise
        self._control.still_ours(after[0])
        self._control.adopt(after[0], delta)
        return after[1:]

    def _send(self, changes: Sequence[TableChange]) -> Sequence[LoadedTable] | None:
        """Durable files, then the commit. None: someone else committed; everything was thrown away and is begun again."""
        self._storage.flush()
        try:
            after = commit(self._catalog, self._clock, changes)
            self._control.still_ours(next(loaded for loaded in after if loaded.id == self._control.id))
            return after
        except CommitConflict:
            self._control.check()
            self._failures += 1
            if self._failures > CONFLICTS:
                raise
            # The control table is ours and unmoved, so a mirror was changed. If it was a rewrite, the key index follows it and
            # the batch is made again from the marker; anything else is refused by the start.
            self._throw_away()
            self.close()
            self.start()
            return None

    def _throw_away(self) -> None:
        """The running batch is given up, and what it wrote was never sent to the catalog, or refused by it."""
        written = [location for followed in self.followed.values() for location in followed.rollback()]
        written += [location for parked in self.parked.values() for location in parked.rollback()]
        for location in written:
            self._storage.delete(location)

    def _confirm(self, position: int) -> None:
        if self._stream is not None:
            self._stream.confirm(position)

    def _marker(self, position: int) -> Marker:
        identity = self._identity
        return Marker(
            source=self._control.source,
            system_id=identity.system_id,
            timeline=identity.timeline,
            slot=self._slot,
            lsn=position,
            attempt=self._chance.uuid(),
        )

    def _wanted_position(self) -> int:
        """The position something waits for: a caller, or tables that are loaded and want to enter a cut."""
        waiting = [f.load.whole_from for f in self.followed.values() if f.load.complete and str(f.id) not in self._control.cut.tables]
        return max([self._target, *waiting])

    def _idle_position(self, stream: Stream) -> int | None:
        """How far the source is, if nothing is pending and it is time to record that."""
        # Read first: what is received from here on raises the stream's position, and must not raise this one.
        position = stream.server_lsn
        if position <= self.position or stream.complete > self.position or stream.buffered:
            return None
        if self.position < self._wanted_position() <= position:
            return position
        return position if self._clock.monotonic() >= self._last_commit + self.settings.idle_interval else None

    # -------------------------------------------------------------------------------------------------- load

    def _to_load(self) -> Followed | None:
        """A table of which a range is missing, and can be tried to be read."""
        now = self._clock.monotonic()
        return next((f for f in self.followed.values() if not f.load.complete and self._load_from.get(f.id, now) <= now), None)

    def _load(self, followed: Followed) -> Progress:
        """Read one missing range under a snapshot of its own and commit it with its consistent point."""
        began = self._clock.monotonic()
        missing = followed.load.next_missing()
        assert missing is not None
        lower, interval = missing
        try:
            with self._source.read_range(followed.relation, lower, interval.upper, self._range_rows(followed, interval)) as read:
                self._must_be_on(read.timeline)
                if interval.held:
                    assert isinstance(followed, Keyed)
                    mending = Mending(followed, read.lsn)
                    rows = mending.rows(read.rows)
                    mending.finish(lower, read.upper.bound)
                else:
                    rows = followed.load_rows(read.rows, read.lsn, read.table_rows)
                followed.loaded_until(followed.load.loaded(lower, read.upper.bound, read.lsn))
        except Unreachable as error:
            # A transaction runs for long, or somebody locks the table: meanwhile the stream has at least as much time as this took.
            now = self._clock.monotonic()
            self._load_from[followed.id] = now + max(1.0, now - began)
            if error.code not in _WAITS or followed.delta is not None:
                raise
            return Progress("retry", position=self.position, error=error)
        except UnsupportedTable as error:
            error.table = str(followed.id)
            raise
        except ValueOutOfContract as error:
            fix = f"change the value in PostgreSQL, or say what such values become (out_of_range); then `icelake resume {followed.id}`"
            raise ValueOutOfContract(error.code, error.what, error.why, fix, table=str(followed.id)) from None
        parts = followed.prepare(self._marker(self.position))
        assert parts
        after = self._send([self._control.fence(), *parts])
        if after is None:
            return Progress("retry", position=self.position)
        followed.done(after[1:])
        self._commits += 1
        self._touched([followed.id])
        return Progress("load", rows=rows, position=self.position)

    def _range_rows(self, followed: Followed, interval: Interval) -> int:
        """How many rows to read at once."""
        if interval.held:
            return min(self.settings.range_rows, _COMPARED_ROWS)
        known = _RANGE_BYTES // followed.row_bytes if followed.row_bytes else _FIRST_ROWS
        return max(1, min(self.settings.range_rows, known))

    # ------------------------------------------------------------------------------------------------ upkeep

    def _expire(self) -> Progress:
        # As the catalog has them now: a branch that someone made keeps files that main alone would not. A zombie, which could commit
        # nothing, need not plan.
        control = self._catalog.load(self._control.id)
        self._control.still_ours(control)
        spools = {p.spool.id: p.spool for p in self.parked.values() if p.spool is not None}
        histories = {f.history.id: f.history.table for f in self.followed.values() if f.history is not None}
        opened = {**{table: followed.table for table, followed in self.followed.items()}, **histories, **spools}
        tables = {table: self._catalog.load(table) for table in (*opened, *self.parked)}
        if any(table.snapshot_id != tables[ident].head for ident, table in opened.items()):
            # Someone else committed: everything is opened anew, which follows rewrites and parks what else was changed.
            self._throw_away()
            self.close()
            return Progress("retry", position=self.position)
        now = int(self._clock.now() * 1000)
        # Nobody waits for what is to be deleted: it is no reason to stop.
        until = now - int(1000 * self.settings.grace)
        trouble = self._bin.empty(control, lambda table: tables.get(table) or self._catalog.load(table), until)
        plan = plan_expiry(control, tables, self._catalog.leases(), self.settings.retention, now, self._storage)
        if not plan.files:
            return Progress("upkeep", position=self.position, error=trouble)
        fenced = plan.fenced(self._control.fence(), self._bin.add(control, plan.files, now))
        try:
            after = commit(self._catalog, self._clock, fenced)
        except CommitConflict:
            # A lease was taken meanwhile, or we are fenced: then it is not ours to do.
            self._control.check()
            return Progress("upkeep", position=self.position, error=trouble)
        self._control.still_ours(after[0])
        for change, loaded in zip(fenced, after, strict=True):
            if change.id == self._control.id:
                self._control.drop(loaded)
            elif change.id in opened:
                opened[change.id].adopt(loaded, None)
            else:
                self.parked[change.id].mirror = loaded
        return Progress("upkeep", position=self.position, error=trouble)

    # -------------------------------------------------------------------------------------------------- hold

    def _step_hold(self, stream: Stream, hold: HoldRequest, timeout: float) -> Progress:
        """Make no cut until the asker's LSN is known, then one on exactly the commits before it."""
        if self._hold is None or self._hold.id != hold.id:
            self._desk.hold_granted(hold.id)
        self._hold = hold
        if hold.lsn is None:
            stream.wait(min(timeout, 0.02))
            return Progress("hold", position=self.position)
        taken = self._take(stream, hold.lsn)
        if not stream.blocked(hold.lsn) or self._batch.mid:
            if not taken:
                stream.ask()
                stream.wait(min(timeout, 0.05))
            return Progress("hold", position=self.position)
        progress = self._commit(hold.lsn)
        if progress.kind == "commit":
            self._answer(hold)
        return progress

    def _answer(self, hold: HoldRequest) -> None:
        cut = self._control.cut
        named = [*self.followed, *(f.history.id for f in self.followed.values() if f.history is not None)]
        tables = {table: cut.tables[str(table)] for table in named if str(table) in cut.tables}
        try:
            # The cut itself too: who took over meanwhile may have dropped it, and not yet its tables' snapshots.
            lease = self._catalog.lease(f"verify {hold.id}", {**tables, self._control.id: cut.id}, self.settings.hold_lease)
        except CommitConflict:
            self._control.check()
            raise
        self._desk.hold_answered(hold.id, cut.id, lease.id)
        self._hold = None


_DOUBTED = frozenset({"TABLE_CHANGED_BY_OTHERS", "KEY_TWICE"})
"""Codes of mirrors that may hold a key twice."""
_WAITS = frozenset({"SLOT_WAITS_FOR_TRANSACTION", "LOCKED", "STATEMENT_TIMEOUT", "NO_FREE_SLOT", "NO_FREE_WALSENDER"})
"""Codes of what may keep one table from being published or read for long, while the stream is well."""
_GONE = frozenset({LEFT_OUT, IS_PARTITION})
"""Codes of mirrors that are not to be followed, whatever they were parked for before."""
_FOLLOWED = frozenset({"TABLE_GREW", "LEAVES_CHANGED"})
"""Codes of what the start follows."""
_HOLES = frozenset({"TABLE_REWRITTEN", "TABLE_REPLACED", "REPLICA_IDENTITY_LOST", IS_PARTITION})
"""Codes that say that changes are missing from the stream: there is nothing to replay."""


def _can_be_replayed(error: IcelakeError) -> bool:
    """Whether every change after what stopped a mirror is in the stream, so that keeping them helps."""
    return isinstance(error, UnsupportedTable | ValueOutOfContract) and error.code not in _HOLES


def _outweighs(trouble: IcelakeError, note: Parking) -> bool:
    return trouble.code in _GONE and note.code not in _GONE


def _heads(followed: Followed, parts: Sequence[TableChange]) -> dict[str, int]:
    """The snapshots that a cut names of a table and its history after a commit with these parts; none while the table has none."""
    made = {part.id: part.new_snapshot for part in parts}
    tables = [followed.table, *([followed.history.table] if followed.history is not None else [])]
    heads = {str(table.id): made.get(table.id) or table.snapshot_id for table in tables}
    return {} if heads[str(followed.id)] is None else {name: head for name, head in heads.items() if head is not None}


def _shown(table: Table) -> tuple[int | None, int]:
    return table.snapshot_id, table.metadata["current-schema-id"]


def _key(relation: Relation) -> tuple[tuple[int, int, int, str], ...]:
    """What the key is made of, in the source and in the lake."""
    return tuple((column.attnum, column.type_oid, column.typmod, column.iceberg) for column in relation.key_columns)


def _shape(relation: Relation) -> Relation:
    """What must stay as it is: whether a column may be null does not matter to a mirror, whose columns may all be."""
    columns = tuple(replace(column, nullable=True, default=None) for column in relation.columns)
    return replace(relation, key_is_ordered=True, columns=columns, last_attnum=0, dropped=(), uneven=())


def _difference(lake: Relation, source: Relation) -> str:
    def columns(relation: Relation) -> set[str]:
        return {f"{c.name} {c.pg_type} (attnum {c.attnum}{', made of ' + c.source if c.source else ''})" for c in relation.columns}

    parts: list[str] = []
    parts.extend(f"new: {text}" for text in sorted(columns(source) - columns(lake)))
    parts.extend(f"gone: {text}" for text in sorted(columns(lake) - columns(source)))
    if (lake.identity, lake.key) != (source.identity, source.key):
        parts.append(f"rows named by {source.named_by}, were by {lake.named_by}")
    return "; ".join(parts)
