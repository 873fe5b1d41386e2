"""The control table: who owns a source, how far the lake is, and which snapshots make each cut.

One table a source, with no rows: all it knows stands in its snapshots' summaries. Every commit the applier makes carries
``assert-ref-snapshot-id`` on it, so a process with an older epoch can commit nothing (docs/protocol.md, One owner).
"""

from collections.abc import Mapping
from dataclasses import replace

from icelake.errors import AlreadyExists, CommitConflict, Fenced, ForeignChange, NoSuchTable
from icelake.ingest.commit import commit
from icelake.model.ident import control_table
from icelake.model.marker import ATTEMPT, LSN, SOURCE, Cut, Marker
from icelake.model.relation import Column, Relation
from icelake.ports import Catalog, Chance, Clock, LoadedTable, Storage, TableChange
from icelake.tables.schema import iceberg_schema, table_properties
from icelake.tables.table import Delta, Table


def _shape(source: str) -> Relation:
    # A table must have a column; nothing is ever written to it.
    table = control_table(source)
    note = Column(name="note", attnum=1, type_oid=25, typmod=-1, pg_type="text", iceberg="string", nullable=False)
    return Relation(oid=0, schema=table.namespace, name=table.name, columns=(note,), key=("note",))


class Control:
    """The control table, held by an owner since ``acquire``. Not thread-safe."""

    def __init__(self, name: str, catalog: Catalog, storage: Storage, clock: Clock, chance: Chance) -> None:
        self.id = control_table(name)
        self._name = name
        self._catalog = catalog
        self._storage = storage
        self._clock = clock
        self._chance = chance
        self._table: Table
        self.source = ""
        """The lake's id of the source (UUID)."""
        self.epoch = 0
        self.cut: Cut
        self.marker: Marker | None = None
        self._claims: set[str] = set()
        self._attempt = ""

    @property
    def position(self) -> int | None:
        """Everything with end LSN <= this is in the lake. None before the slot was recorded."""
        return self.marker.lsn if self.marker else None

    @property
    def snapshots(self) -> int:
        """How many the control table has: a cut each, and those that others left."""
        return len(self._table.metadata.get("snapshots", ()))

    def acquire(self, held: int | None) -> None:
        """Own the source: commit the next epoch. ``held`` is the epoch this process had before, None at its start.

        Raises Fenced if ``held`` is not the epoch in the table any more: someone else has taken over.
        """
        while True:
            loaded = self._load_or_create()
            self._adopt(loaded)
            if held is not None and self.epoch != held and self._attempt not in self._claims:
                raise self._fenced(held)
            delta = self._table.delta()
            summary = self._summary(self.marker, replace(self.cut, epoch=self.epoch + 1))
            # A claim whose answer was lost is still ours when it turns up later.
            self._claims.add(summary[ATTEMPT])
            change = delta.prepare(summary, {})
            self._storage.flush()
            try:
                (after,) = commit(self._catalog, self._clock, [change])
            except CommitConflict:
                # Another process was faster (or a late request of a dead one landed): look again.
                continue
            self._adopt(after)
            if self._attempt != summary[ATTEMPT]:
                # The answer was lost, and by the time we knew, another process had taken over.
                raise self._fenced(self.epoch)
            return

    def still_ours(self, loaded: LoadedTable) -> None:
        """``loaded``: the control table after a commit of ours. Raises Fenced if another process has taken over since."""
        snapshot = loaded.snapshot(loaded.head)
        if snapshot is None or Cut.read(snapshot).epoch != self.epoch:
            raise self._fenced(self.epoch)

    def check(self) -> None:
        """After a conflict: raises Fenced if the epoch is not ours any more, ForeignChange if the table is not as we left it."""
        loaded = self._catalog.load(self.id)
        snapshot = loaded.snapshot(loaded.head)
        if snapshot is None:
            raise ForeignChange("CONTROL_CHANGED", f"{self.id} lost its snapshots", "someone else wrote to it", "restore the catalog")
        self.still_ours(loaded)
        if snapshot["snapshot-id"] != self._table.snapshot_id:
            raise ForeignChange(
                "CONTROL_CHANGED",
                f"{self.id} holds a commit of this epoch that this process did not make",
                "someone else wrote to the control table",
                "find out who; then start again: the lake goes on from what the control table says",
            )

    def fence(self) -> TableChange:
        """The part of a commit that only says: this epoch still owns the source."""
        requirements = [
            {"type": "assert-table-uuid", "uuid": self._table.metadata["table-uuid"]},
            {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": self._table.snapshot_id},
        ]
        return TableChange(self.id, requirements, [])

    def advance(self, marker: Marker, commit_time: int, tables: Mapping[str, int], parked: Mapping[str, str]) -> tuple[Delta, TableChange]:
        """The part of a commit that makes a cut at ``marker.lsn``. Hand the delta back to ``adopt`` when it is done."""
        delta = self._table.delta()
        cut = replace(self.cut, epoch=self.epoch, commit_time=max(commit_time, self.cut.commit_time), tables=tables, parked=parked)
        return delta, delta.prepare(self._summary(marker, cut), {})

    def adopt(self, loaded: LoadedTable, delta: Delta | None) -> None:
        """A commit with our part in it is done."""
        if delta is None:
            self._adopt(loaded)
            return
        self._table.adopt(loaded, delta)
        self._read(loaded)

    def drop(self, loaded: LoadedTable) -> None:
        """Snapshots of the control table were expired: the head is what it was."""
        self._adopt(loaded)

    def _fenced(self, held: int) -> Fenced:
        return Fenced(
            "FENCED",
            f"epoch {held} of source {self._name!r} is over: another process owns it now",
            "two processes were syncing the same source",
            "nothing is lost; stop one of them",
        )

    def _load_or_create(self) -> LoadedTable:
        try:
            return self._catalog.load(self.id)
        except NoSuchTable:
            shape = _shape(self._name)
            properties = {**table_properties(shape), SOURCE: self._chance.uuid()}
            try:
                return self._catalog.create(self.id, iceberg_schema(shape), properties)
            except AlreadyExists:
                return self._catalog.load(self.id)

    def _adopt(self, loaded: LoadedTable) -> None:
        self._table = Table.open(loaded, self._storage, self._clock, self._chance)
        self._read(loaded)

    def _read(self, loaded: LoadedTable) -> None:
        self.source = loaded.metadata["properties"][SOURCE]
        snapshot = loaded.snapshot(loaded.head)
        if snapshot is None:
            self.epoch, self.marker, self._attempt = 0, None, ""
            self.cut = Cut(id=0, lsn=0, commit_time=0, made_ms=0, epoch=0, tables={})
            return
        self.cut = Cut.read(snapshot)
        self.epoch = self.cut.epoch
        self._attempt = snapshot["summary"][ATTEMPT]
        self.marker = Marker.read(snapshot["summary"]) if LSN in snapshot["summary"] else None

    def _summary(self, marker: Marker | None, cut: Cut) -> dict[str, str]:
        known = marker.summary() if marker else {SOURCE: self.source}
        return {**known, ATTEMPT: self._chance.uuid(), **cut.summary()}
