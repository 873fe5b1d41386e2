"""A table as its writer holds it, and the changes of one commit to it.

Promises that opening reads only metadata, that a delta costs what it changes and not what the table holds, and that nothing is
visible before a catalog accepted ``Delta.prepare``'s change: until then every file it wrote is unknown to everybody. Every
commit passes the strict validator first. Row lineage follows the spec (Iceberg spec, Row Lineage). Never retries, never rebases:
a delta whose base has moved cannot be prepared. Fails with Corrupt when files are not what the metadata says, with
ForeignChange when they were written in a way a mirror never is.

A Table is not thread-safe.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyroaring import BitMap64

from icelake.errors import Corrupt, ForeignChange
from icelake.model.marker import Marker
from icelake.model.relation import TABLEOID, Relation, TableId
from icelake.ports import Chance, Clock, Json, LoadedTable, Storage, TableChange, arrow_type
from icelake.tables import data_files, deletion_vectors, position_deletes
from icelake.tables.data_files import DataFiles, Wanted
from icelake.tables.layout import BoundLayout, Partition, layout_of
from icelake.tables.manifests import (
    ADDED,
    DATA,
    DELETED,
    DELETES,
    EXISTING,
    POSITION_DELETES,
    Entry,
    Manifest,
    Record,
    codec_of,
    corrupt,
    decode_manifest,
    decode_manifest_list,
    entry_bytes,
    inherit,
    manifest_header,
)
from icelake.tables.schema import LAST_UPDATED, LAST_UPDATED_FIELD, RELATION, ROW_ID, ROW_ID_FIELD, Fields, fields_of
from icelake.tables.validate import Proposal, validate

WRITER = "icelake"
"""Summary key ``engine-name`` of every snapshot made here."""
LINE = "icelake.line"
"""Summary key: the sequence number since which every snapshot was made here, on the newest one there was. Snapshots of one line
are a history without rollbacks, branches or other writers, even where those in between are expired."""

OPEN_BYTES = 64 << 20
"""Arrow bytes from which on a delta's data file is written at once, and no more rows come into it."""
_FANOUT = 8
"""Manifests of about one size are merged when there are this many, so a table of n files has O(log n) manifests."""
_MANIFEST_BYTES = 8 << 20
_DELETES_PER_MANIFEST = 64
"""Deletion vectors are replaced often, and replacing one rewrites its manifest: so these stay small."""

_LAYOUT = ("format-version", "partition-specs", "sort-orders", "current-schema-id")
"""What of the metadata a table's layout is made from."""

_numbers = itertools.count(1)
"""File numbers are unique in the process, so that a number kept from an older Table can never mean another file."""


@dataclass(frozen=True, slots=True, eq=False)
class LiveFile:
    """A data file of the table's current snapshot with the deletion vector that applies to it. Positions count from 0."""

    no: int
    path: str
    record_count: int
    size: int
    first_row_id: int
    """Row id of position 0; a row has ``first_row_id + position`` unless the file names another. -1: rows have no ids (v2)."""
    sequence_number: int
    partition: Partition
    deletes: BitMap64 | None = None
    """Positions that are no rows any more; never change it."""
    dv_path: str | None = None
    """The file that ``deletes`` is in: a Puffin file with a deletion vector, in version 2 a Parquet file of position deletes."""
    leaves: tuple[int, int] | None = None
    """The smallest and the largest ``tableoid`` in the file, as its statistics say; None: they do not, or there is no such column."""

    @property
    def identity(self) -> tuple[str, str | None]:
        """Equal identities mean equal live rows."""
        return (self.path, self.dv_path)

    @property
    def live_count(self) -> int:
        return self.record_count - (len(self.deletes) if self.deletes is not None else 0)


class Table:
    """A table at one snapshot of main, and how to move on from it."""

    def __init__(self, loaded: LoadedTable, storage: Storage, clock: Clock, chance: Chance) -> None:
        """Use ``open``."""
        self.id: TableId = loaded.id
        self.storage = storage
        self.clock = clock
        self.chance = chance
        self.files: dict[int, LiveFile] = {}
        self.by_path: dict[str, LiveFile] = {}
        self.manifests: list[Manifest] = []
        """Of the current snapshot, in the order of its manifest list."""
        self.homes: dict[int, dict[int, Manifest]] = {DATA: {}, DELETES: {}}
        """Manifest content -> file number -> the manifest that lists the file (or its deletion vector)."""
        self._data_files = DataFiles(storage)
        self._headers: dict[int, dict[str, bytes]] = {}
        self._learn(loaded)

    @classmethod
    def open(cls, loaded: LoadedTable, storage: Storage, clock: Clock, chance: Chance) -> "Table":
        """The table as main has it: reads the manifest list, its manifests and its deletion vectors, no data."""
        table = cls(loaded, storage, clock, chance)
        snapshot = table.snapshot(table.snapshot_id)
        if snapshot is None:
            return table
        manifest_list = snapshot["manifest-list"]
        try:
            table._read_manifests(manifest_list)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise corrupt(manifest_list, f"it or its manifests lack what the spec demands ({type(error).__name__}: {error})") from error
        return table

    def _learn(self, loaded: LoadedTable) -> None:
        previous: Json = getattr(self, "metadata", {})
        self.metadata: Json = loaded.metadata
        """Table metadata (spec, Appendix C). Shared: never change it."""
        self.location: str = loaded.metadata["location"].rstrip("/")
        self.snapshot_id: int | None = loaded.head
        """The snapshot main points at; None while there is none."""
        if not previous or any(previous[key] != loaded.metadata[key] for key in _LAYOUT):
            self.layout: BoundLayout = layout_of(loaded.metadata)
            self.codec = codec_of(self.layout)
        if (
            not previous
            or previous["current-schema-id"] != loaded.metadata["current-schema-id"]
            or previous["properties"][RELATION] != loaded.metadata["properties"].get(RELATION)
        ):
            self.fields: Fields = fields_of(loaded.metadata)
            self._headers.clear()

    @property
    def relation(self) -> Relation:
        return self.fields.relation

    @property
    def has_lineage(self) -> bool:
        """Whether rows have ids and remember their last change (v3)."""
        return self.layout.format_version >= 3

    def header(self, content: int) -> Mapping[str, bytes]:
        """The header of manifests written now."""
        if content not in self._headers:
            self._headers[content] = manifest_header(self.metadata, content)
        return self._headers[content]

    def snapshot(self, snapshot_id: int | None) -> Json | None:
        """A retained snapshot in its JSON form, or None."""
        # From the end: it is nearly always one of the last.
        for snapshot in reversed(self.metadata.get("snapshots", ())):
            if snapshot["snapshot-id"] == snapshot_id:
                found: Json = snapshot
                return found
        return None

    def marker(self) -> Marker | None:
        """How far the source is in this table: from main's ancestry, else from the properties, which survive its expiry."""
        try:
            snapshot = self.snapshot(self.snapshot_id)
            while snapshot is not None:
                marker = Marker.read(snapshot["summary"])
                if marker is not None:
                    return marker
                snapshot = self.snapshot(snapshot.get("parent-snapshot-id"))
            return Marker.read(self.metadata.get("properties", {}))
        except (KeyError, ValueError) as error:
            raise Corrupt(
                "MARKER_CORRUPT",
                f"the marker of {self.id} is mangled",
                f"{type(error).__name__}: {error}",
                "find out who changed the table; then load the tables again into a new lake",
            ) from error

    def _read_manifests(self, manifest_list: str) -> None:
        head = self.snapshot(self.snapshot_id)
        _, records = decode_manifest_list(self.storage.read(manifest_list), manifest_list, head["summary"] if head else None)
        # Data first: a deletion vector is an entry about a file.
        for record in sorted(records, key=lambda record: int(record["content"])):
            path = record["manifest_path"]
            entries: list[Entry] = []
            if record["added_files_count"] or record["existing_files_count"]:
                _, raw = decode_manifest(self.storage.read(path, 0, record["manifest_length"]), path)
                resolved = inherit(record, raw, path, self.layout.format_version)
                entries = [self._read_entry(entry, path) for entry in resolved if entry["status"] != DELETED]
            manifest = Manifest(record, self.codec.encode_manifest_file(record), tuple(entries))
            self.manifests.append(manifest)
            home = self.homes[manifest.content]
            for known in entries:
                home[known.no] = manifest
        order = {record["manifest_path"]: place for place, record in enumerate(records)}
        self.manifests.sort(key=lambda manifest: order[manifest.path])

    def _read_entry(self, entry: Record, where: str) -> Entry:
        record = entry["data_file"]
        path = record["file_path"]
        partition = self.layout.partition(record["partition"])
        if record["content"] == DATA:
            if path in self.by_path:
                raise corrupt(where, f"{path} is in the snapshot twice")
            file = LiveFile(
                no=next(_numbers),
                path=path,
                record_count=record["record_count"],
                size=record["file_size_in_bytes"],
                first_row_id=record["first_row_id"] if self.has_lineage else -1,
                sequence_number=entry["sequence_number"],
                partition=partition,
                leaves=self.leaves_of(record),
            )
            size = file.size
        else:
            about = self.by_path.get(record["referenced_data_file"])
            if about is None:
                raise corrupt(where, f"{path} is about {record['referenced_data_file']}, which the snapshot has not")
            if about.dv_path is not None:
                raise corrupt(where, f"{about.path} has two deletion vectors, or files of position deletes")
            if about.partition != partition:
                raise corrupt(where, f"{path} is not in the partition of {about.path}")
            if self.has_lineage:
                size = record["content_size_in_bytes"]
                deletes = deletion_vectors.decode(self.storage.read(path, record["content_offset"], size), record["record_count"], path)
            else:
                size = record["file_size_in_bytes"]
                deletes = position_deletes.decode(self.storage.read(path, 0, size), about.path, record["record_count"], path)
            if deletes.max() >= about.record_count:
                raise corrupt(where, f"{path} deletes positions that {about.path} has not")
            file = replace(about, deletes=deletes, dv_path=path)
        self.files[file.no] = file
        self.by_path[file.path] = file
        return Entry(
            no=file.no,
            snapshot_id=entry["snapshot_id"],
            sequence_number=entry["sequence_number"],
            file_sequence_number=entry["file_sequence_number"],
            record_count=record["record_count"],
            size=size,
            partition=file.partition,
            data_file=self.codec.encode_data_file(record),
        )

    # -------------------------------------------------------------------------------------------------------- reading

    def read(
        self,
        file_no: npt.NDArray[np.integer],
        positions: npt.NDArray[np.integer],
        columns: Sequence[str],
        *,
        delta: "Delta | None" = None,
        lineage: bool = False,
    ) -> pa.Table:
        """The rows at (file_no, position), in that order, deleted or not, as ``arrow_schema`` has the columns.

        Reads only the columns and row groups needed, each file once. With ``delta`` the files may be ones it wrote. With
        ``lineage`` two int64 columns follow: ``_row_id`` and ``_last_updated_sequence_number``, of committed files only; both
        are -1 in a table without lineage.
        """
        wanted = self.wanted(columns)
        if not len(file_no):
            empty = [(column.name, column.type) for column in wanted]
            return pa.schema(empty + ([(ROW_ID, pa.int64()), (LAST_UPDATED, pa.int64())] if lineage else [])).empty_table()
        order = np.lexsort((positions, file_no))
        numbers, sorted_positions = file_no[order], positions[order].astype(np.int64)
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        parts = []
        for start, end in itertools.pairwise(edges):
            no, here = int(numbers[start]), sorted_positions[start:end]
            if lineage:
                parts.append(self._with_lineage(self.files[no], wanted, here))
            else:
                parts.append(delta.take(no, wanted, here) if delta is not None and no not in self.files else self._take(no, wanted, here))
        together = pa.concat_tables(parts)
        if np.array_equal(order, np.arange(len(order))):
            return together
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return together.take(data_files.indices(back))

    def read_keys(self, file_no: int) -> tuple[pa.RecordBatch, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(key columns, positions, row ids) of the live rows of one file, in file order."""
        positions, rows = self.live_rows(file_no, self.relation.key)
        return one_batch(rows.select(list(self.relation.key))), positions, rows.column(ROW_ID).to_numpy()

    def live_rows(self, file_no: int, columns: Sequence[str]) -> tuple[npt.NDArray[np.int64], pa.Table]:
        """(positions, rows with lineage as ``read`` gives it) of all rows of a committed file that are not deleted."""
        file = self.files[file_no]
        if file.deletes is None:
            positions = np.arange(file.record_count, dtype=np.int64)
            return positions, self._with_lineage(file, self.wanted(columns), None)
        live = np.ones(file.record_count, np.bool_)
        live[deletion_vectors.positions_of(file.deletes)] = False
        positions = np.flatnonzero(live).astype(np.int64)
        return positions, self._with_lineage(file, self.wanted(columns), positions)

    def files_with(self, leaf: int, last: int | None = None) -> list[int]:
        """Numbers of the live files that may hold rows of a leaf, or of those up to the ``last`` (``Relation.partitioned``)."""
        low, high = leaf, leaf if last is None else last
        return [no for no, file in self.files.items() if file.leaves is None or (file.leaves[0] <= high and low <= file.leaves[1])]

    def leaves_of(self, record: Record) -> tuple[int, int] | None:
        """The smallest and the largest leaf a data file may hold rows of, by its bounds; None: nothing is known of them."""
        ident = next((self.fields.ids[column.name] for column in self.relation.columns if column.attnum == TABLEOID), None)
        if ident is None:
            return None
        found = [
            int.from_bytes(pair["value"], "little", signed=True)
            for which in ("lower_bounds", "upper_bounds")
            for pair in record[which] or ()
            if pair["key"] == ident
        ]
        return (found[0], found[1]) if len(found) == 2 else None

    def wanted(self, columns: Iterable[str]) -> list[Wanted]:
        kinds = {column.name: column.iceberg for column in self.relation.columns}
        fields = self.fields
        return [
            Wanted(
                fields.ids[name], name, arrow_type(kinds[name]), fields.defaults.get(name), fields.plain.field(name), fields.inner_defaults
            )
            for name in columns
        ]

    def remember(self, path: str, footer: pq.FileMetaData) -> None:
        self._data_files.remember(path, footer)

    def arrow_bytes(self, no: int) -> int:
        """Of a file's rows, when they were written; 0 if nobody knows: it is not ours, or as old as that. May read its footer."""
        return self._data_files.arrow_bytes(self.files[no].path)

    def take(self, path: str, rows: int, wanted: Sequence[Wanted], positions: npt.NDArray[np.int64]) -> pa.Table:
        """The rows at these ascending positions of a data file of ``rows`` rows."""
        return self._data_files.take(path, rows, wanted, positions)

    def _take(self, no: int, wanted: Sequence[Wanted], positions: npt.NDArray[np.int64]) -> pa.Table:
        return self.take(self.files[no].path, self.files[no].record_count, wanted, positions)

    def _with_lineage(self, file: LiveFile, wanted: Sequence[Wanted], positions: npt.NDArray[np.int64] | None) -> pa.Table:
        if not self.has_lineage:
            if positions is None:
                rows = self._data_files.read(file.path, file.record_count, wanted)
            else:
                rows = self._data_files.take(file.path, file.record_count, wanted, positions)
            none = pa.array(np.full(rows.num_rows, -1, np.int64))
            return rows.append_column(ROW_ID, none).append_column(LAST_UPDATED, none)
        both = [
            *wanted,
            Wanted(ROW_ID_FIELD, ROW_ID, pa.int64()),
            Wanted(LAST_UPDATED_FIELD, LAST_UPDATED, pa.int64()),
        ]
        if positions is None:
            rows = self._data_files.read(file.path, file.record_count, both)
            positions = np.arange(file.record_count, dtype=np.int64)
        else:
            rows = self._data_files.take(file.path, file.record_count, both, positions)
        # Null means inherited (spec, Row Lineage).
        ids: Any = rows.column(ROW_ID)
        updated: Any = rows.column(LAST_UPDATED)
        if ids.null_count:
            derived = pa.array(positions + file.first_row_id)
            ids = pa.chunked_array([pc.coalesce(ids.combine_chunks(), derived)])
        if updated.null_count:
            updated = pc.fill_null(updated, file.sequence_number)
        return rows.set_column(len(wanted), ROW_ID, ids).set_column(len(wanted) + 1, LAST_UPDATED, updated)

    # -------------------------------------------------------------------------------------------------------- writing

    def delta(self, *, replace: bool = False) -> "Delta":
        """An empty change to the present snapshot. ``replace``: it will change files but no rows (compaction)."""
        return Delta(self, replace)

    def adopt(self, loaded: LoadedTable, delta: "Delta | None") -> None:
        """The catalog made ``loaded`` of this table by ``delta``'s change; None: by one that added no snapshot to main."""
        now = loaded.head
        outcome = delta.outcome if delta is not None else None
        expected = outcome.snapshot_id if outcome is not None and outcome.snapshot_id is not None else self.snapshot_id
        if now != expected:
            raise ForeignChange(
                "TABLE_MOVED",
                f"main of {self.id} is at snapshot {now}, our commit put it at {expected}",
                "someone else changed the table right after us",
                "start again: the table is opened anew",
            )
        self._learn(loaded)
        if outcome is None or outcome.snapshot_id is None:
            return
        self.manifests = outcome.manifests
        for no in outcome.removed:
            gone = self.files.pop(no)
            del self.by_path[gone.path]
            self._data_files.forget(gone.path)
            del self.homes[DATA][no]
        for no in outcome.without_vector:
            del self.homes[DELETES][no]
        for file in outcome.files:
            self.files[file.no] = file
            self.by_path[file.path] = file
        for manifest in outcome.written:
            home = self.homes[manifest.content]
            for entry in manifest.entries:
                home[entry.no] = manifest


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Where rows were written: file number and position of each, in the order they were given."""

    file_no: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]


@dataclass(slots=True)
class _Pending:
    """A data file of a delta. Its rows are in memory until it is written; then ``record`` describes it in the manifest."""

    no: int
    partition: Partition
    rows: int = 0
    held: list[pa.Table] = field(default_factory=list)
    """In the schema of a data file, with the columns of lineage or without them."""
    path: str = ""
    arrow_bytes: int = 0
    """Of its rows."""
    record: Record = field(default_factory=dict)
    footer: pq.FileMetaData | None = None


@dataclass(slots=True)
class _Outcome:
    """What the table will be once the commit is done."""

    snapshot_id: int | None = None
    manifests: list[Manifest] = field(default_factory=list)
    written: list[Manifest] = field(default_factory=list)
    files: list[LiveFile] = field(default_factory=list)
    """Added, and those with another deletion vector."""
    removed: set[int] = field(default_factory=set)
    without_vector: set[int] = field(default_factory=set)
    """Files whose deletion vector goes with no other in its place."""


@dataclass(slots=True)
class _New:
    """A file to be added: its manifest record, and the live file it makes."""

    no: int
    record: Record
    size: int
    partition: Partition


class Delta:
    """Everything one commit does to one table. May be fed for long before ``prepare``, which ends it.

    A data file is written when it has ``OPEN_BYTES``, or by ``write``, or by ``prepare`` with all the rest; until then it is open: its
    rows are in memory, and more may come. ``written`` names all that was, for cleaning up once it is certain that the commit was not
    done. ``unused`` names those of them that no snapshot will know even if it was.
    """

    def __init__(self, table: Table, replaces: bool) -> None:
        """Use ``Table.delta``."""
        self.table = table
        self.replaces = replaces
        self.written: list[str] = []
        self.unused: list[str] = []
        self.outcome: _Outcome | None = None
        self._base = table.snapshot_id
        self._pending: dict[int, _Pending] = {}
        self._open: dict[Partition, _Pending] = {}
        self._deletes: dict[int, BitMap64] = {}
        self._removed: set[int] = set()

    @property
    def is_empty(self) -> bool:
        return not (self._pending or self._deletes or self._removed)

    def files_with(self, leaf: int) -> list[int]:
        """Numbers of the data files this delta adds that may hold rows of a leaf (``Relation.partitioned``)."""
        spans = ((no, self.table.leaves_of(pending.record) if pending.path else None) for no, pending in self._pending.items())
        return [no for no, span in spans if span is None or span[0] <= leaf <= span[1]]

    def rows(self, no: int) -> int:
        """How many a data file has, committed or added by this delta."""
        return self._pending[no].rows if no in self._pending else self.table.files[no].record_count

    def take(self, no: int, wanted: Sequence[Wanted], positions: npt.NDArray[np.int64]) -> pa.Table:
        """The rows at these ascending positions of a data file that this delta adds."""
        pending = self._pending[no]
        if pending.path:
            return self.table.take(pending.path, pending.rows, wanted, positions)
        names = [column.name for column in wanted]
        rows = pa.concat_tables([part.select(names) for part in pending.held]).take(data_files.indices(positions))
        return rows.cast(pa.schema([(column.name, column.type) for column in wanted]))

    # -------------------------------------------------------------------------------------------------------- feeding

    def append(
        self,
        rows: pa.Table | pa.RecordBatch,
        row_ids: npt.NDArray[np.int64] | None,
        last_updated: npt.NDArray[np.int64] | None = None,
    ) -> Placed:
        """Add rows (``arrow_schema`` of the relation), into files of one partition each, sorted by the table's sort order.

        ``row_ids``: the id each row keeps, -1 for a new row; None: all are new. ``last_updated``: the sequence numbers that last
        changed the rows, -1 for this commit's; only with row_ids. A table without lineage keeps neither. Where rows have an order
        every call makes files of its own.
        """
        if rows.schema.names != self.table.fields.plain.names:
            raise ValueError(f"columns {rows.schema.names} are not the table's: {self.table.fields.plain.names}")
        total = rows.num_rows
        out = Placed(np.empty(total, np.int32), np.empty(total, np.int64))
        if not total:
            return out
        if not self.table.has_lineage:
            row_ids = last_updated = None
        order, groups = self.table.layout.arrange(rows)
        if order is not None:
            rows = rows.take(data_files.indices(order))
            row_ids = None if row_ids is None else row_ids[order]
            last_updated = None if last_updated is None else last_updated[order]
        file_no = np.empty(total, np.int32)
        positions = np.empty(total, np.int64)
        grows = self.table.layout.sort_order_id is None
        # A little more than a file should have is still one file.
        most = data_files.TARGET_BYTES + data_files.TARGET_BYTES // 8
        step = min(data_files.TARGET_ROWS, max(1, int(total * most // max(rows.nbytes, 1))))
        for group in groups:
            # Even parts: no small file at the end.
            count = group.end - group.start
            parts = -(-count // step)
            for part in range(parts):
                start, end = group.start + count * part // parts, group.start + count * (part + 1) // parts
                ids = None if row_ids is None else row_ids[start:end]
                updated = None if last_updated is None else last_updated[start:end]
                pending = self._with_room(group.partition, end - start)
                file_no[start:end] = pending.no
                positions[start:end] = np.arange(pending.rows, pending.rows + end - start)
                pending.held.append(self._in_file(rows.slice(start, end - start), ids, updated))
                pending.rows += end - start
                pending.arrow_bytes += pending.held[-1].nbytes
                if grows and pending.arrow_bytes < OPEN_BYTES:
                    self._open[group.partition] = pending
                else:
                    self._write(pending)
        back = slice(None) if order is None else order
        out.file_no[back] = file_no
        out.positions[back] = positions
        return out

    def _with_room(self, partition: Partition, rows: int) -> _Pending:
        """The open file of a partition, or a new one."""
        there = self._open.pop(partition, None)
        if there is not None:
            if there.rows + rows <= data_files.TARGET_ROWS:
                return there
            self._write(there)
        no = next(_numbers)
        self._pending[no] = _Pending(no, partition)
        return self._pending[no]

    def _in_file(
        self, rows: pa.Table | pa.RecordBatch, row_ids: npt.NDArray[np.int64] | None, last_updated: npt.NDArray[np.int64] | None
    ) -> pa.Table:
        fields = self.table.fields
        if row_ids is None or not (row_ids >= 0).any():
            return data_files.in_file(rows, fields.plain)
        updated = np.full(len(row_ids), -1, np.int64) if last_updated is None else last_updated
        lineage = pa.array(row_ids, mask=row_ids < 0), pa.array(updated, mask=updated < 0)
        return data_files.in_file(rows, fields.lineage, lineage)

    def write(self) -> None:
        """Write the files that are open: their rows leave the memory."""
        for pending in self._open.values():
            self._write(pending)
        self._open.clear()

    def _drop_dead(self) -> None:
        """Open files of which no row is left are not written at all."""
        for partition, pending in list(self._open.items()):
            deleted = self._deletes.get(pending.no)
            if deleted is not None and len(deleted) == pending.rows:
                del self._open[partition], self._pending[pending.no], self._deletes[pending.no]

    def _write(self, pending: _Pending) -> None:
        table, held = self.table, pending.held
        if len({part.num_columns for part in held}) > 1:
            # Null is what a row without a past has in the columns of lineage.
            lineage = table.fields.lineage
            held = [part if len(part.columns) == len(lineage) else data_files.in_file(part, lineage, _no_past(part)) for part in held]
        encoded = data_files.encode(pa.concat_tables(held), [column.iceberg for column in table.fields.relation.columns])
        pending.held.clear()
        pending.path = f"{table.location}/data/{table.chance.uuid()}.parquet"
        self.written.append(pending.path)
        table.storage.write(pending.path, encoded.data)
        table.remember(pending.path, encoded.footer)
        pending.footer = encoded.footer
        pending.record = {
            **encoded.record,
            "file_path": pending.path,
            "partition": table.layout.record(pending.partition),
            "sort_order_id": table.layout.sort_order_id,
        }

    def delete(self, file_no: npt.NDArray[np.integer], positions: npt.NDArray[np.integer]) -> None:
        """Rows that are no rows any more, in committed or own files. A position deleted already stays deleted."""
        if not len(file_no):
            return
        order = np.argsort(file_no, kind="stable")
        numbers, where = file_no[order], positions[order].astype(np.int64)
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for start, end in itertools.pairwise(edges):
            no = int(numbers[start])
            if no in self._removed:
                continue
            bitmap = deletion_vectors.bitmap_of(where[start:end])
            if bitmap.max() >= self.rows(no):
                raise ValueError(f"position {bitmap.max()} of a file with {self.rows(no)} rows")
            if no in self._deletes:
                self._deletes[no] |= bitmap
            else:
                self._deletes[no] = bitmap

    def remove(self, file_no: int) -> None:
        """A committed data file goes with all its rows."""
        if file_no not in self.table.files:
            raise KeyError(file_no)
        self._removed.add(file_no)
        self._deletes.pop(file_no, None)

    def truncate(self) -> None:
        """Every row goes, committed or added by this delta before."""
        self._removed.update(self.table.files)
        self.unused += (pending.path for pending in self._pending.values() if pending.path)
        self._pending.clear()
        self._open.clear()
        self._deletes.clear()

    # ------------------------------------------------------------------------------------------------------ preparing

    def prepare(self, summary: Mapping[str, str], properties: Mapping[str, str], requirements_extra: Sequence[Json] = ()) -> TableChange:
        """Write what is left to write and give the table's part of the commit. Called once; the caller flushes the storage.

        With no rows, no deletes and no summary no snapshot is made, only the properties are set. Raises Corrupt if the result
        would break a rule of the format, and ValueError if the table has moved on since the delta began.
        """
        table = self.table
        if self.outcome is not None or table.snapshot_id != self._base:
            raise ValueError("a delta is prepared once, on the snapshot it began with")
        self._drop_dead()
        self.write()
        self.outcome = _Outcome()
        updates: list[Json] = []
        if summary or not self.is_empty:
            snapshot = self._plan(self.outcome, summary)
            updates = [
                {"action": "add-snapshot", "snapshot": snapshot},
                {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": snapshot["snapshot-id"]},
            ]
        if properties:
            updates.append({"action": "set-properties", "updates": dict(properties)})
        requirements: list[Json] = [
            {"type": "assert-table-uuid", "uuid": table.metadata["table-uuid"]},
            {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": self._base},
            *requirements_extra,
        ]
        return TableChange(table.id, requirements, updates)

    def first_row_id(self, file_no: int) -> int:
        """Row id of position 0 of a file this delta added, -1 without lineage; known once it is prepared."""
        if self.outcome is None:
            raise ValueError("row ids are given by prepare")
        return next(file.first_row_id for file in self.outcome.files if file.no == file_no)

    def _plan(self, outcome: _Outcome, summary: Mapping[str, str]) -> Json:
        table, metadata = self.table, self.table.metadata
        snapshot_id = table.chance.snapshot_id()
        sequence = metadata["last-sequence-number"] + 1
        blobs: dict[str, bytes] = {}

        removed = set(self._removed)
        vectors: dict[int, BitMap64] = {}
        for no, deleted in self._deletes.items():
            known = table.files[no].deletes if no in table.files else None
            together = deleted if known is None else deleted | known
            if known is not None and len(together) == len(known):
                continue
            if len(together) < self.rows(no):
                vectors[no] = together
            elif no in self._pending:
                self.unused.append(self._pending[no].path)
            else:
                removed.add(no)
        pending = [file for file in self._pending.values() if file.path not in self.unused]

        added = [_New(file.no, file.record, file.record["file_size_in_bytes"], file.partition) for file in pending]
        added_vectors = [self._vector(no, self._pending.get(no) or table.files[no], bitmap, blobs) for no, bitmap in vectors.items()]
        old_vectors = {no for no in (*removed, *vectors) if no in table.files and table.files[no].dv_path is not None}
        outcome.removed = removed
        outcome.without_vector = old_vectors & removed

        kept, drafts = self._roll(DATA, removed, added)
        kept_deletes, delete_drafts = self._roll(DELETES, old_vectors, added_vectors)

        first_row_id = next_row_id = metadata["next-row-id"] if table.has_lineage else -1
        new: list[Manifest] = []
        row_ids: dict[int, int] = {}
        for draft in drafts:
            manifest, next_row_id = self._write_manifest(DATA, draft, snapshot_id, sequence, next_row_id, row_ids, blobs)
            new.append(manifest)
        new_deletes = [self._write_manifest(DELETES, draft, snapshot_id, sequence, 0, {}, blobs)[0] for draft in delete_drafts]
        outcome.manifests = [*kept, *new, *kept_deletes, *new_deletes]
        outcome.written = [*new, *new_deletes]

        for file in pending:
            outcome.files.append(
                LiveFile(
                    no=file.no,
                    path=file.path,
                    record_count=file.record["record_count"],
                    size=file.record["file_size_in_bytes"],
                    first_row_id=row_ids[file.no],
                    sequence_number=sequence,
                    partition=file.partition,
                    leaves=table.leaves_of(file.record),
                )
            )
        by_number = {file.no: file for file in outcome.files}
        dv_paths = {vector.no: vector.record["file_path"] for vector in added_vectors}
        outcome.files = [file for file in outcome.files if file.no not in vectors] + [
            replace(by_number.get(no) or table.files[no], deletes=bitmap, dv_path=dv_paths[no]) for no, bitmap in vectors.items()
        ]

        manifest_list = f"{table.location}/metadata/snap-{snapshot_id}-1-{table.chance.uuid()}.avro"
        snapshot: Json = {
            "snapshot-id": snapshot_id,
            "sequence-number": sequence,
            "timestamp-ms": max(int(table.clock.now() * 1000), metadata["last-updated-ms"]),
            "manifest-list": manifest_list,
            "summary": self._summary(summary, added, added_vectors, removed, old_vectors),
            "schema-id": metadata["current-schema-id"],
        }
        if table.has_lineage:
            snapshot |= {"first-row-id": first_row_id, "added-rows": next_row_id - first_row_id}
        if self._base is not None:
            snapshot["parent-snapshot-id"] = self._base
        blobs[manifest_list] = table.codec.encode_manifest_list(snapshot, outcome.manifests)

        validate(
            Proposal(
                metadata=metadata,
                manifests=table.manifests,
                files=table.by_path,
                fields=table.fields,
                layout=table.layout,
                snapshot=snapshot,
                blobs=blobs,
                footers={file.path: file.footer for file in pending if file.footer is not None},
                sizes={file.path: file.record["file_size_in_bytes"] for file in pending},
            )
        )
        for location, data in blobs.items():
            self.written.append(location)
            table.storage.write(location, data)
        outcome.snapshot_id = snapshot_id
        return snapshot

    def _vector(self, no: int, about: _Pending | LiveFile, bitmap: BitMap64, blobs: dict[str, bytes]) -> _New:
        """What is deleted of a file: a deletion vector, in version 2 a file of position deletes. Always all of it, in one place."""
        table = self.table
        record: Record = {
            "content": POSITION_DELETES,
            "partition": table.layout.record(about.partition),
            "record_count": len(bitmap),
            "referenced_data_file": about.path,
        }
        stem = f"{table.location}/data/{table.chance.uuid()}"
        if table.has_lineage:
            blob = deletion_vectors.encode(bitmap)
            location, size = f"{stem}.puffin", len(blob)
            blobs[location] = deletion_vectors.puffin(blob, about.path, len(bitmap))
            record |= {"file_format": "PUFFIN", "content_offset": deletion_vectors.BLOB_OFFSET, "content_size_in_bytes": size}
        else:
            location = stem + position_deletes.SUFFIX
            blobs[location] = position_deletes.encode(bitmap, about.path)
            size = len(blobs[location])
            lower, upper = position_deletes.bounds(bitmap, about.path)
            record |= {
                "file_format": "PARQUET",
                "lower_bounds": [{"key": ident, "value": value} for ident, value in lower.items()],
                "upper_bounds": [{"key": ident, "value": value} for ident, value in upper.items()],
            }
        record |= {"file_path": location, "file_size_in_bytes": len(blobs[location])}
        return _New(no, record, size, about.partition)

    def _roll(self, content: int, gone: set[int], added: list[_New]) -> tuple[list[Manifest], list["_Draft"]]:
        """(manifests that stay as they are, manifests to write) so that ``gone`` leave and ``added`` come."""
        home = self.table.homes[content]
        touched = {home[no] for no in gone}
        kept: list[Manifest] = []
        draft = _Draft([], added, [])
        for manifest in self.table.manifests:
            if manifest.content != content or not manifest.entries:
                continue
            if manifest not in touched:
                kept.append(manifest)
                continue
            for entry in manifest.entries:
                (draft.deleted if entry.no in gone else draft.existing).append(entry)
        if not (draft.existing or draft.added or draft.deleted):
            return kept, []
        while True:
            live = len(draft.existing) + len(draft.added)
            # The smallest power of the fan-out above it: a merge never mixes in manifests of a larger class.
            limit = _FANOUT
            while limit <= live:
                limit *= _FANOUT
            alike = [manifest for manifest in kept if len(manifest.entries) < limit and not _full(manifest)]
            if len(alike) + 1 < _FANOUT:
                return kept, draft.split(content)
            kept = [manifest for manifest in kept if manifest not in alike]
            draft.existing += (entry for manifest in alike for entry in manifest.entries)

    def _write_manifest(
        self,
        content: int,
        draft: "_Draft",
        snapshot_id: int,
        sequence: int,
        next_row_id: int,
        row_ids: dict[int, int],
        blobs: dict[str, bytes],
    ) -> tuple[Manifest, int]:
        table = self.table
        bodies = [
            entry_bytes(EXISTING, entry.snapshot_id, (entry.sequence_number, entry.file_sequence_number), entry.data_file)
            for entry in draft.existing
        ]
        entries = list(draft.existing)
        existing_rows = sum(entry.record_count for entry in draft.existing)
        added_rows = 0
        for new in draft.added:
            count = new.record["record_count"]
            body = table.codec.encode_data_file(new.record)
            bodies.append(entry_bytes(ADDED, snapshot_id, None, body))
            if content == DATA:
                # Inherited (spec, First Row ID Inheritance): the manifest's, plus the rows of the new files before this one.
                row_ids[new.no] = next_row_id + added_rows if table.has_lineage else -1
            if content == DATA and table.has_lineage:
                body = table.codec.encode_data_file({**new.record, "first_row_id": row_ids[new.no]})
            entries.append(Entry(new.no, snapshot_id, sequence, sequence, count, new.size, new.partition, body))
            added_rows += count
        bodies += (
            entry_bytes(DELETED, snapshot_id, (entry.sequence_number, entry.file_sequence_number), entry.data_file)
            for entry in draft.deleted
        )
        location = f"{table.location}/metadata/{table.chance.uuid()}-m0.avro"
        blobs[location] = table.codec.encode_manifest(table.header(content), bodies)
        record: Record = {
            "manifest_path": location,
            "manifest_length": len(blobs[location]),
            "partition_spec_id": table.layout.spec_id,
            "content": content,
            "sequence_number": sequence,
            "min_sequence_number": min((entry.sequence_number for entry in entries), default=sequence),
            "added_snapshot_id": snapshot_id,
            "added_files_count": len(draft.added),
            "existing_files_count": len(draft.existing),
            "deleted_files_count": len(draft.deleted),
            "added_rows_count": added_rows,
            "existing_rows_count": existing_rows,
            "deleted_rows_count": sum(entry.record_count for entry in draft.deleted),
            "partitions": table.layout.summaries(entry.partition for entry in (*entries, *draft.deleted)),
            "key_metadata": None,
        }
        if table.has_lineage:
            record["first_row_id"] = next_row_id if content == DATA else None
        manifest = Manifest(record, table.codec.encode_manifest_file(record), tuple(entries))
        return manifest, next_row_id + added_rows + existing_rows

    def _summary(
        self, summary: Mapping[str, str], added: list[_New], vectors: list[_New], removed: set[int], old_vectors: set[int]
    ) -> dict[str, str]:
        table = self.table
        gone = [table.files[no] for no in removed]
        home = table.homes[DELETES]
        gone_vectors = [next(entry for entry in home[no].entries if entry.no == no) for no in old_vectors]
        if self.replaces:
            operation = "replace"
        elif not (gone or vectors):
            operation = "append"
        elif added:
            operation = "overwrite"
        else:
            operation = "delete"
        rows = sum(new.record["record_count"] for new in added)
        rows_gone = sum(file.record_count for file in gone)
        positions = sum(new.record["record_count"] for new in vectors)
        positions_gone = sum(entry.record_count for entry in gone_vectors)
        size = sum(new.size for new in (*added, *vectors))
        size_gone = sum(file.size for file in gone) + sum(entry.size for entry in gone_vectors)
        counts = {
            "added-data-files": len(added),
            "deleted-data-files": len(gone),
            "added-records": rows,
            "deleted-records": rows_gone,
            "added-delete-files": len(vectors),
            "added-dvs": len(vectors) if table.has_lineage else 0,
            "removed-delete-files": len(gone_vectors),
            "removed-dvs": len(gone_vectors) if table.has_lineage else 0,
            "added-position-deletes": positions,
            "removed-position-deletes": positions_gone,
            "added-files-size": size,
            "removed-files-size": size_gone,
        }
        grown = {
            "total-data-files": len(added) - len(gone),
            "total-records": rows - rows_gone,
            "total-delete-files": len(vectors) - len(gone_vectors),
            "total-position-deletes": positions - positions_gone,
            "total-equality-deletes": 0,
            "total-files-size": size - size_gone,
        }
        touched = {new.partition for new in (*added, *vectors)}
        touched |= {file.partition for file in gone} | {entry.partition for entry in gone_vectors}
        before = table.snapshot(table.snapshot_id)
        newest = table.metadata["last-sequence-number"]
        line = None if before is None or before["sequence-number"] != newest else before["summary"].get(LINE)
        totals = {name: int((before or {"summary": {}})["summary"].get(name, 0)) for name in grown}
        return {
            **summary,
            "operation": operation,
            "engine-name": WRITER,
            LINE: line or str(newest + 1),
            **{name: str(count) for name, count in counts.items() if count},
            "changed-partition-count": str(len(touched)),
            **{name: str(totals[name] + grown[name]) for name in grown},
        }


def _no_past(rows: pa.Table) -> tuple[Any, Any]:
    return pa.nulls(rows.num_rows, pa.int64()), pa.nulls(rows.num_rows, pa.int64())


def one_batch(rows: pa.Table) -> pa.RecordBatch:
    """``rows`` in one record batch."""
    arrays: list[Any] = [column.combine_chunks() for column in rows.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=rows.schema)


def _full(manifest: Manifest) -> bool:
    """Whether a manifest is as large as it should get."""
    if manifest.content == DELETES:
        return len(manifest.entries) >= _DELETES_PER_MANIFEST
    return manifest.length >= _MANIFEST_BYTES


@dataclass(slots=True)
class _Draft:
    """The entries of manifests to be written."""

    existing: list[Entry]
    added: list[_New]
    deleted: list[Entry]

    def split(self, content: int) -> list["_Draft"]:
        """As drafts of manifests of the right size."""
        most, budget = (_DELETES_PER_MANIFEST, _MANIFEST_BYTES) if content == DELETES else (1 << 30, _MANIFEST_BYTES)
        bytes_each = [len(entry.data_file) for entry in (*self.existing, *self.deleted)]
        if len(bytes_each) + len(self.added) <= most and sum(bytes_each) + (len(self.added) << 12) <= budget:
            return [self]
        out = [_Draft([], [], [])]
        size = count = 0

        def room(bytes_more: int) -> _Draft:
            nonlocal size, count
            if count >= most or size + bytes_more > budget:
                out.append(_Draft([], [], []))
                size = count = 0
            size, count = size + bytes_more, count + 1
            return out[-1]

        for entry in self.existing:
            room(len(entry.data_file)).existing.append(entry)
        for new in self.added:
            room(1 << 12).added.append(new)
        for entry in self.deleted:
            room(len(entry.data_file)).deleted.append(entry)
        return out
