"""What others commit, looked at before the pointer moves: no commit makes a table unreadable, or silently wrong.

Promises that what a commit adds was read, and keeps the rules of the format that engines rely on without looking (Iceberg spec:
Snapshots, Manifests, Manifest Lists, Sequence Numbers, Row Lineage, Deletion Vectors). What is already in a table is believed. Only
what Spark, DuckDB and PyIceberg all keep is demanded. The lake's own commits are looked at more sharply by ``tables.validate``.

Costs what the change costs, not what the table holds: a commit reads its manifest list, its new manifests and the manifests they
replace, of each new file the end, and of kept manifests those that may hold a data file its deletes are about; all that was read of
manifests is remembered (``manifest_index``). Whether a new data file is already in a kept manifest is looked up in those that are
remembered and in ``COLD`` others.

Fails with Refused COMMIT_BREAKS_TABLE, which names the rule and the file; nothing was done then. Unreachable passes through.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from icelake.errors import IcelakeError
from icelake.model.location import below
from icelake.ports import Json, Storage
from icelake.tables.added_files import Added, Bounds, broken, check_partition, check_puffin, check_tail, readable, require
from icelake.tables.layout import Partition
from icelake.tables.manifest_index import (
    NO_ROW_ID,
    Held,
    Holding,
    Joined,
    Keys,
    ManifestIndex,
    Spec,
    columns,
    covers,
    holding_manifests,
    key_of,
    path_key,
    specs_of,
)
from icelake.tables.manifests import ADDED, DATA, DELETED, DELETES, EQUALITY_DELETES, EXISTING, POSITION_DELETES, Record, read_manifest

READERS: Final = 8
"""Files read at once, for all requests together."""
COLD: Final = 64
"""Manifests that are not remembered, and are read only to see whether a new data file is in them already."""
MAX_ENTRIES: Final = 5_000_000
"""Entries of the new manifests of a snapshot; more take more memory than a catalog should need."""
_SKEW_MS: Final = 60_000
"""Clocks of writers may differ by so much (spec, snapshot-log: the reference allows as much)."""
_PLACES = ("write.data.path", "write.metadata.path", "write.object-storage.path", "write.folder-storage.path")
_OPERATIONS = frozenset({"append", "replace", "overwrite", "delete"})
_COUNTS = tuple((name, status) for name, status in (("added", ADDED), ("existing", EXISTING), ("deleted", DELETED)))


class Guard:
    """Checks commits. One for all tables of a storage; may be used by several threads."""

    def __init__(self, storage: Storage, budget: int = 256 << 20) -> None:
        """``budget``: bytes of memory kept about manifests."""
        self._storage = storage
        self._pool = ThreadPoolExecutor(READERS, "icelake-guard")
        self._index = ManifestIndex(storage, budget, self._pool)

    def check(self, base: Json | None, new: Json) -> None:
        """Look at the snapshots that ``new`` has and ``base`` has not (table metadata; None: the commit makes the table).

        Raises Refused COMMIT_BREAKS_TABLE. A snapshot whose parent is not known is a table of its own: all it lists is looked at.
        """
        known: dict[int, Json] = {} if base is None else {one["snapshot-id"]: one for one in base.get("snapshots") or ()}
        fresh = [one for one in new.get("snapshots") or () if one.get("snapshot-id") not in known]
        if not fresh:
            return
        with _well_formed(new["location"]):
            table = _Table.of(base, new, fresh)
            fresh.sort(key=lambda one: one.get("sequence-number") or 0)
        for snapshot in fresh:
            with _well_formed(f"snapshot {snapshot.get('snapshot-id')}"):
                one = _Check(self._storage, self._index, table, snapshot, known)
                one.snapshot_itself()
            one.run()
            known[snapshot["snapshot-id"]] = snapshot
        if table.whole and table.version >= 3:
            told = new["next-row-id"]
            require(told >= table.next_row_id, "next-row-id is behind all row ids", "table metadata", f"{told} < {table.next_row_id}")

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def _well_formed(where: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise broken("the metadata has the form of the spec", where, f"{type(error).__name__}: {error}") from error


@dataclass(slots=True)
class _Table:
    """What the snapshots of a commit are held against; the last three grow with each of them."""

    base: Json | None
    version: int
    base_version: int
    folders: Sequence[str]
    specs: Mapping[int, Spec]
    schemas: frozenset[int]
    columns: frozenset[int]
    whole: bool
    """No snapshot was added and removed again, none of before is missing: the numbers follow one another without a gap."""
    sequence: int
    next_row_id: int
    timestamp: int

    @staticmethod
    def of(base: Json | None, new: Json, fresh: Sequence[Json]) -> "_Table":
        before: Json = base or {}
        states = [new] if base is None else [new, base]
        folders = [place for state in states for place in (state["location"], *(state.get("properties", {}).get(name) for name in _PLACES))]
        schemas = new.get("schemas") or [new["schema"]]
        last = before.get("last-sequence-number") or 0
        numbered = sum((one.get("sequence-number") or 0) > last for one in fresh)
        log = before.get("snapshot-log") or ()
        return _Table(
            base,
            version=new["format-version"],
            base_version=new["format-version"] if base is None else base["format-version"],
            folders=[place for place in dict.fromkeys(folders) if place],
            specs=specs_of(before) | specs_of(new) if base else specs_of(new),
            schemas=frozenset(schema.get("schema-id", 0) for schema in schemas),
            columns=frozenset(ident for schema in schemas for ident, _ in columns(schema)),
            whole=(new.get("last-sequence-number") or 0) - last == numbered,
            sequence=last,
            next_row_id=before.get("next-row-id") or 0,
            timestamp=max((entry["timestamp-ms"] for entry in log), default=0),
        )


@dataclass(slots=True)
class _Carried:
    """Entries of new manifests that are not new, by content."""

    content: int
    entries: list[tuple[int, int, int | None, int | None, int | None, int, Partition, str]] = field(default_factory=list)
    """(status, key, both sequence numbers, first row id, rows, partition, path)."""


class _Check:
    """One snapshot. What is asked of the storage is asked in the order of the methods ``run`` calls."""

    def __init__(self, storage: Storage, index: ManifestIndex, table: _Table, snapshot: Json, known: Mapping[int, Json]) -> None:
        self.storage = storage
        self.index = index
        self.table = table
        self.snapshot = snapshot
        self.known = known
        self.ident: int = snapshot["snapshot-id"]
        self.where = f"snapshot {self.ident}"
        self.sequence: int = snapshot.get("sequence-number") or 0
        parent = snapshot.get("parent-snapshot-id")
        self.parent: Json | None = None if parent is None else known.get(parent)
        self.adrift = parent is not None and self.parent is None
        """Its past is gone: what it lists need not be of this snapshot."""
        self.version = self._version()
        self.kept: list[Record] = []
        self.kept_before: list[Record] = []
        self.replaced: list[Record] = []
        self.new: list[Record] = []
        self.held: list[tuple[Record, Held]] = []
        """Of the new manifests."""
        self.added: list[Added] = []
        self.carried = {DATA: _Carried(DATA), DELETES: _Carried(DELETES)}
        self.removed: dict[int, tuple[int, Partition]] = {}
        """Keys of the data files that live no more, with spec and partition."""
        self.entries = 0

    def run(self) -> None:
        """After ``snapshot_itself``."""
        records = self._manifest_list()
        self._row_ids(records)
        for record, data in self.index.ahead(self._fetched, self.new):
            with readable(record["manifest_path"]):
                self._manifest(record, data)
        for content in (DATA, DELETES):
            self._carry(content)
        self._live_once()
        self._files()
        self._vectors()
        self._left_behind()
        self._totals(records)
        for record, held in self.held:
            self.index.keep(record["manifest_path"], held)
        self.index.keep_list(self.snapshot["manifest-list"], records)

    # --------------------------------------------------------------------------------------------------- the snapshot

    def _version(self) -> int:
        """The format version it was made in, which is not the table's if the table was upgraded afterwards."""
        version, base = self.table.version, self.table.base_version
        upgraded = base < version or self.table.base is None or not self.table.whole
        if version >= 3 and upgraded and self.snapshot.get("first-row-id") is None:
            version = 2
        return 1 if version == 2 and upgraded and not self.sequence else version

    def snapshot_itself(self) -> None:
        """What needs no file."""
        snapshot, table, where = self.snapshot, self.table, self.where
        require(type(self.ident) is int and self.ident > 0, "a snapshot id is a positive number", where)
        require(not self.adrift or not table.whole or table.base is None, "the parent is known", where, snapshot.get("parent-snapshot-id"))
        if self.version > 1:
            # The first snapshot of a table that replaces this one may be numbered as of when it was begun.
            anew = snapshot.get("parent-snapshot-id") is None and 0 < self.sequence <= table.sequence
            fits = self.sequence == table.sequence + 1 if table.whole else self.sequence > table.sequence
            require(fits or anew, "sequence-number is the last one + 1", where, f"{self.sequence} after {table.sequence}")
        table.sequence = max(table.sequence, self.sequence)
        timestamp = snapshot["timestamp-ms"]
        require(timestamp >= table.timestamp - _SKEW_MS, "timestamp-ms does not go back", where, f"{timestamp} after {table.timestamp}")
        table.timestamp = max(table.timestamp, timestamp)
        require(isinstance(snapshot.get("manifest-list"), str), "a snapshot has a manifest list", where)
        schema = snapshot.get("schema-id")
        require(schema is None or schema in table.schemas or not table.whole, "schema-id is known", where, schema)
        summary = snapshot.get("summary")
        if self.version > 1 or summary is not None:
            require(isinstance(summary, dict), "a snapshot has a summary", where)
            assert summary is not None
            require(summary.get("operation") in _OPERATIONS, "the summary names an operation", where, summary.get("operation"))
            require(all(isinstance(value, str) for value in summary.values()), "a summary holds texts only", where)
        if self.version >= 3:
            first, rows = snapshot.get("first-row-id", -1), snapshot.get("added-rows", -1)
            require(type(first) is type(rows) is int and min(first, rows) >= 0, "a snapshot has first-row-id and added-rows", where)
            fits = first == table.next_row_id if table.whole else first >= table.next_row_id
            require(fits, "first-row-id is the table's next-row-id", where, f"{first}, not {table.next_row_id}")
            table.next_row_id = first + rows

    def _manifest_list(self) -> Sequence[Record]:
        location: str = self.snapshot["manifest-list"]
        self._below(location)
        with readable(location):
            header, records = self.index.read_list(location)
        expected = {"snapshot-id": self.ident, "parent-snapshot-id": self.snapshot.get("parent-snapshot-id")}
        if self.version > 1:
            expected["sequence-number"] = self.sequence
        if self.version > 2:
            expected["first-row-id"] = self.snapshot["first-row-id"]
        for name, value in expected.items():
            told = header.get(name, b"").decode()
            require(told in ("", "null", str(value)), "the manifest list's header agrees with its snapshot", location, f"{name} is {told}")
        before: dict[str, Record] = {}
        if self.parent is not None:
            place = self.parent.get("manifest-list") or f"snapshot {self.parent['snapshot-id']}"
            with readable(place):
                before = {record["manifest_path"]: record for record in self.index.listed(self.parent)}
        seen: set[str] = set()
        for record in records:
            path = record["manifest_path"]
            require(path not in seen, "a manifest is listed once", path)
            seen.add(path)
            spec = record["partition_spec_id"]
            require(spec in self.table.specs, "a manifest's partition spec is the table's", path, f"there is no spec {spec}")
            require(record["content"] in (DATA, DELETES), "a manifest holds data or deletes", path, record["content"])
            known = before.get(path)
            if known is None:
                self.new.append(record)
            else:
                different = _difference(known, record)
                require(not different, "a kept manifest is listed as it was", path, different)
                self.kept.append(record)
                self.kept_before.append(known)
        self.replaced = [record for path, record in before.items() if path not in seen]
        return records

    def _totals(self, records: Sequence[Record]) -> None:
        """Totals are carried on from the parent's. Those of deletes cannot be relied on (DuckDB 1.5.5 counts them too high)."""
        told = [((one or {}).get("summary") or {}).get("total-data-files") for one in (self.parent, self.snapshot)]
        right = [str(_data_files(listed)) for listed in ((*self.kept_before, *self.replaced), records)]
        believed = not self.adrift and (self.parent is None or told[0] == right[0])
        fits = told[1] in (None, right[1]) or not believed
        require(fits, "total-data-files is how many there are", self.where, f"{told[1]}, not {right[1]}")

    def _row_ids(self, records: Sequence[Record]) -> None:
        """Ids are given to whole manifests, by their list (spec, First Row ID Assignment)."""
        if self.version < 3:
            for record in records:
                require(record["first_row_id"] is None, "there are no row ids before version 3", record["manifest_path"])
            return
        given = list(self.new) if not self.adrift else []
        given += [now for now, before in zip(self.kept, self.kept_before, strict=True) if before["first_row_id"] is None]
        ranges = []
        for record in records:
            # DuckDB 1.5.5 writes one for manifests of deletes too, which nobody reads.
            has = record["content"] != DATA or record["first_row_id"] is not None
            require(has, "a manifest of data has a first_row_id", record["manifest_path"])
        for record in given:
            if record["content"] == DATA:
                rows = (record["added_rows_count"] or 0) + (record["existing_rows_count"] or 0)
                ranges.append((record["first_row_id"], record["first_row_id"] + rows, record["manifest_path"]))
        first = self.snapshot["first-row-id"]
        end, total = first, 0
        for start, stop, path in sorted(ranges):
            require(start >= end, "no row id is given twice", path, f"its ids begin at {start}, and those up to {end} are taken")
            end, total = max(end, stop), total + stop - start
        rows = self.snapshot["added-rows"]
        require(end <= first + rows, "row ids are given out of the snapshot's own", self.where, f"{end} is beyond {first} + {rows}")
        require(total == rows or self.adrift, "added-rows is how many row ids are given", self.where, f"{rows}, and {total} are given")

    # ------------------------------------------------------------------------------------------------ the new manifests

    def _fetched(self, record: Record) -> bytes:
        self._below(record["manifest_path"])
        with readable(record["manifest_path"]):
            return self.index.fetch(record["manifest_path"])

    def _below(self, path: str) -> None:
        require(below(path, self.table.folders), "a file is below the table's location", path, self.table.folders[0])

    def _manifest(self, listed: Record, data: bytes) -> None:
        path, content, spec = listed["manifest_path"], listed["content"], self.table.specs[listed["partition_spec_id"]]
        require(content == DATA or self.version > 1, "there are no deletes before version 2", path)
        said = listed["manifest_length"]
        require(said == len(data), "manifest_length is the size of the manifest", path, f"{said}, it has {len(data)}")
        header, entries = read_manifest(data, path)
        for name, expected in (("content", "deletes" if content == DELETES else "data"), ("partition-spec-id", str(spec.spec_id))):
            told = header.get(name, expected.encode()).decode()
            require(told == expected, "a manifest's header agrees with the manifest list", path, f"{name} is {told}")
        written = header.get("format-version", b"1").decode()
        require(written in "123"[: self.version], "a manifest is of the table's format version", path, f"it is of version {written}")
        if not self.adrift:
            for name, value in (("added_snapshot_id", self.ident), ("sequence_number", self.sequence)):
                known = listed[name] in ((value,) if self.version > 1 else (None, 0, value))
                require(known, "a new manifest is of this snapshot", path, f"its {name} is {listed[name]}, not {value}")
        require(listed["sequence_number"] <= self.sequence, "no sequence number is of the future", path, listed["sequence_number"])
        files, rows = dict.fromkeys((EXISTING, ADDED, DELETED), 0), dict.fromkeys((EXISTING, ADDED, DELETED), 0)
        holding, bounds, live = Holding(), Bounds(spec), set()
        lowest = self.sequence
        for entry in entries:
            self.entries += 1
            require(self.entries <= MAX_ENTRIES, f"a commit writes at most {MAX_ENTRIES} entries", path)
            status, file = entry["status"], entry["data_file"]
            where = file["file_path"]
            require(status in files, "an entry's status is one of the spec's", where, status)
            require(file["record_count"] >= 0, "record_count is not negative", where, file["record_count"])
            files[status] += 1
            rows[status] += file["record_count"]
            partition = check_partition(spec, file, where)
            self._numbers(listed, entry)
            if status == ADDED or (status == EXISTING and self.adrift):
                self._new(listed, entry, partition)
                if content == DATA:
                    bounds.add(file, partition)
            else:
                self._old(listed, entry, partition)
            holding.add(entry, partition)
            if status != DELETED:
                live.add(partition)
                number = entry.get("sequence_number")
                lowest = min(lowest, listed["sequence_number"] if number is None else number)
        bounds.check()
        for name, status in _COUNTS:
            for what, found in (("files", files), ("rows", rows)):
                counted = listed[f"{name}_{what}_count"]
                right = counted == found[status] or (counted is None and self.version == 1)
                require(right, "a manifest list counts right", path, f"{name}_{what}_count is {counted}, there are {found[status]}")
        smallest = listed["min_sequence_number"]
        require(smallest <= lowest or not live, "min_sequence_number is not above an entry's", path, f"{smallest} > {lowest}")
        self._summaries(spec, listed, live)
        self.held.append((listed, holding.done()))

    def _summaries(self, spec: Spec, listed: Record, live: Iterable[Partition]) -> None:
        """Engines leave out a manifest by these: too narrow, and rows are hidden."""
        summaries, path = listed["partitions"], listed["manifest_path"]
        if not summaries:
            return
        require(len(summaries) == len(spec.fields), "a manifest list sums up each partition field", path, f"{len(summaries)} summaries")
        for at, one in enumerate(spec.fields):
            for value in {partition[at] for partition in live}:
                told = f"{one.name}: {value!r} is not in {summaries[at]}"
                require(covers(one, summaries[at], value), "a summary of partitions is not narrower than its entries", path, told)

    def _numbers(self, listed: Record, entry: Record) -> None:
        """Sequence numbers: null is inherited, by new entries alone (spec, Sequence Number Inheritance)."""
        where = entry["data_file"]["file_path"]
        number, file_number = entry.get("sequence_number"), entry.get("file_sequence_number")
        if entry["status"] == ADDED:
            ours = entry.get("snapshot_id") in (None, self.ident if not self.adrift else listed["added_snapshot_id"])
            require(ours, "a new entry has the snapshot's id", where, entry.get("snapshot_id"))
            require(
                file_number in (None, listed["sequence_number"]), "a new entry has the snapshot's file sequence number", where, file_number
            )
        else:
            carried = (number is not None and file_number is not None) or not listed["sequence_number"]
            require(carried, "an entry that is not new carries its sequence numbers", where)
        require(number is None or 0 <= number <= listed["sequence_number"], "no sequence number is of the future", where, number)

    def _old(self, listed: Record, entry: Record, partition: Partition) -> None:
        file, content = entry["data_file"], listed["content"]
        require(bool(file.get("content")) == (content == DELETES), "an entry has its manifest's content", file["file_path"])
        self.carried[content].entries.append(
            (
                entry["status"],
                key_of(file),
                entry.get("sequence_number"),
                entry.get("file_sequence_number"),
                file.get("first_row_id"),
                file["record_count"],
                (listed["partition_spec_id"], *partition),
                file["file_path"],
            )
        )

    def _new(self, listed: Record, entry: Record, partition: Partition) -> None:
        file, path, sequence = entry["data_file"], entry["data_file"]["file_path"], entry.get("sequence_number")
        content, kind = file.get("content") or DATA, file["file_format"].upper()
        require((content != DATA) == (listed["content"] == DELETES), "an entry has its manifest's content", path)
        self._below(path)
        offset = length = about = None
        if content == DATA and file.get("first_row_id") is not None and not self.adrift:
            old = file["first_row_id"] + file["record_count"] <= self.snapshot.get("first-row-id", 0)
            told = "a new data file inherits its row ids, unless it holds rows of before"
            require(self.snapshot["summary"]["operation"] == "replace" and old, told, path, file["first_row_id"])
        elif content == POSITION_DELETES and (kind == "PUFFIN" or (self.version >= 3 and entry["status"] == ADDED and not self.adrift)):
            require(self.version >= 3, "there are no deletion vectors before version 3", path)
            require(kind == "PUFFIN", "new position deletes of version 3 are deletion vectors", path, f"it is {kind}")
            about, offset, length = file.get("referenced_data_file"), file.get("content_offset"), file.get("content_size_in_bytes")
            require(about is not None, "a deletion vector names its data file", path, "referenced_data_file is null")
        elif content == EQUALITY_DELETES:
            idents = file.get("equality_ids") or ()
            known = bool(idents) and self.table.columns.issuperset(idents)
            require(known, "equality deletes are about columns of the table", path, f"equality_ids are {list(idents)}")
        require(content in (DATA, POSITION_DELETES, EQUALITY_DELETES), "an entry's content is one of the spec's", path, content)
        self.added.append(
            Added(
                key_of(file),
                path,
                content,
                kind,
                file["record_count"],
                file["file_size_in_bytes"],
                listed["partition_spec_id"],
                partition,
                listed["sequence_number"] if sequence is None else sequence,
                about,
                offset,
                length,
            )
        )

    # ------------------------------------------------------------------------------------- against what was live before

    def _carry(self, content: int) -> None:
        """Entries that are not new were live in a manifest that is replaced, and are what they were."""
        entries = self.carried[content].entries
        replaced = [record for record in self.replaced if record["content"] == content]
        if self.adrift or not (replaced or entries):
            return
        before = Joined(list(self._asked(replaced)))
        gone = set(before.gone.tolist())
        at = before.places(np.array([entry[1] for entry in entries], np.uint64))
        stays, deleted = np.zeros(len(before.keys), bool), set()
        for (status, key, number, file_number, row_id, rows, partition, path), place in zip(entries, at.tolist(), strict=True):
            what = "an entry that is not new was live in a manifest that is replaced"
            # DuckDB 1.5.5 carries on what was deleted before. Readers pass it over.
            require(place >= 0 or (status == DELETED and key in gone), what, path, "DELETED" if status == DELETED else "EXISTING")
            if status == DELETED:
                deleted.add(key)
                continue
            stays[place] = True
            numbers = (number or 0, file_number or 0)
            known = (int(before.sequence[place]), int(before.file_sequence[place]))
            require(numbers == known, "an existing entry keeps its sequence numbers", path, f"{numbers}, they were {known}")
            require(partition == before.partition(place), "an existing entry keeps its partition", path, f"{partition}")
            require(rows == before.rows[place], "an existing entry keeps its record_count", path, f"{rows}, not {before.rows[place]}")
            if content == DATA and self.version >= 3:
                before_id = None if before.row_id[place] == NO_ROW_ID else int(before.row_id[place])
                told = f"{row_id}, it was {before_id}: its rows would get other ids"
                require(row_id == before_id, "an existing entry keeps its first_row_id", path, told)
        again = {one.key: one.path for one in self.added if (one.content == DATA) == (content == DATA)}
        for key in before.keys.tolist() if again else ():
            require(key not in again or key in deleted, "a new file was not live before", again.get(key, ""))
        if content == DATA:
            for place in np.flatnonzero(~stays).tolist():
                partition = before.partition(place)
                self.removed[int(before.keys[place])] = (partition[0], partition[1:])

    def _asked(self, records: Sequence[Record], unread: int | None = None) -> Iterator[tuple[Record, Held]]:
        return self.index.held(records, self.table.specs, unread)

    def _live_once(self) -> None:
        """No file lives twice: in the new manifests, or in one of them and a kept one."""
        for content in (DATA, DELETES):
            parts = [held.keys for record, held in self.held if record["content"] == content]
            keys, counts = np.unique(np.concatenate(parts), return_counts=True) if parts else (np.empty(0, np.uint64), np.empty(0))
            twice = set(keys[counts > 1].tolist())
            if twice:
                named = (entry[7] for entry in self.carried[content].entries if entry[1] in twice)
                path = next(named, None) or next(one.path for one in self.added if one.key in twice)
                raise broken("a file lives in a snapshot once", path, "two entries of the new manifests have it")
        new = {one.key: one.path for one in self.added if one.content == DATA}
        if new:
            keys = np.array(list(new), np.uint64)
            for record, held in self._asked([record for record in self.kept if record["content"] == DATA], COLD):
                for key, _ in held.find(keys):
                    raise broken("a new file was not live before", new[key], f"it is in {record['manifest_path']}")

    # ---------------------------------------------------------------------------------------------------- the new files

    def _files(self) -> None:
        plain = (one for one in self.added if one.file_format != "PUFFIN" or one.content == DATA)
        for _ in self.index.ahead(lambda one: check_tail(self.storage, one), plain):
            pass

    def _vectors(self) -> None:
        """Each is about one live data file, applies to it, and is the only one."""
        vectors = {path_key(one.about): one for one in self.added if one.about is not None}
        if not vectors:
            return
        keys = np.array(sorted(vectors), np.uint64)
        about = np.concatenate([held.about for record, held in self.held if record["content"] == DELETES])
        both, counts = np.unique(about, return_counts=True)
        for key in both[counts > 1].tolist():
            raise _two(vectors[key]) if key in vectors else broken(_TWO, self.where)
        places = [(one.spec_id, one.partition) for one in vectors.values()]
        for _, held in self._asked(holding_manifests(self.kept, DELETES, self.table.specs, places)):
            for key, _ in held.vectors(keys):
                raise _two(vectors[key])
        rows = self._about(vectors, keys)
        puffins: dict[str, list[Added]] = {}
        for one in vectors.values():
            puffins.setdefault(one.path, []).append(one)
        for _ in self.index.ahead(
            lambda those: check_puffin(self.storage, those, [rows[path_key(one.about or "")] for one in those]), puffins.values()
        ):
            pass

    def _about(self, vectors: Mapping[int, Added], keys: Keys) -> dict[int, int]:
        """The rows of the data file of each vector, by its key."""
        rows: dict[int, int] = {}
        data = [(record, held) for record, held in self.held if record["content"] == DATA]
        places = [(one.spec_id, one.partition) for one in vectors.values()]
        likely = holding_manifests(self.kept, DATA, self.table.specs, places)
        for found in (iter(data), self._asked(likely), self._elsewhere(likely)):
            for record, held in found:
                for key, at in held.find(keys):
                    one = vectors[key]
                    partition = held.partitions[held.code[at]]
                    same = (record["partition_spec_id"], partition) == (one.spec_id, one.partition)
                    told = f"{one.spec_id}, {one.partition}; {one.about} is in {record['partition_spec_id']}, {partition}"
                    require(same, "a deletion vector has the partition of its data file", one.path, told)
                    number = int(held.sequences(record)[at])
                    told = f"{one.sequence} < {number}: engines ignore it"
                    require(one.sequence >= number, "a deletion vector is not older than its data file", one.path, told)
                    rows[key] = int(held.rows[at])
                if len(rows) == len(vectors):
                    return rows
        lost = next(one for key, one in vectors.items() if key not in rows)
        raise broken("a deletion vector is about a live data file", lost.path, f"{lost.about} does not live in this snapshot")

    def _elsewhere(self, likely: Sequence[Record]) -> Iterator[tuple[Record, Held]]:
        """Where a data file is not where it should be, the others may tell why."""
        seen = {record["manifest_path"] for record in likely}
        yield from self._asked([one for one in self.kept if one["content"] == DATA and one["manifest_path"] not in seen], COLD)

    def _left_behind(self) -> None:
        """No deletion vector is left of a data file that lives no more."""
        if not self.removed or self.version < 3:
            return
        gone = np.array(sorted(self.removed), np.uint64)
        new = [(record, held) for record, held in self.held if record["content"] == DELETES]
        kept = holding_manifests(self.kept, DELETES, self.table.specs, self.removed.values())
        for found in (iter(new), self._asked(kept)):
            for record, held in found:
                for _ in held.vectors(gone):
                    raise broken("a removed data file leaves no deletion vector", record["manifest_path"])


_TWO = "two deletion vectors for one data file"


def _two(one: Added) -> IcelakeError:
    return broken(_TWO, one.path, f"another one about {one.about} lives in this snapshot")


def _data_files(listed: Iterable[Record]) -> int:
    return sum((one["added_files_count"] or 0) + (one["existing_files_count"] or 0) for one in listed if one["content"] == DATA)


def _difference(before: Record, now: Record) -> str:
    """What of a kept manifest was changed. Null may have been filled in: an older format version did not have it."""
    if before == now:
        return ""
    for name, value in now.items():
        known = before.get(name)
        if known is None or known == value:
            continue
        if name == "partitions" and _room(known) == _room(value):
            continue
        return f"{name} is {value!r}, it was {known!r}"
    return ""


def _room(summaries: Sequence[Record]) -> list[tuple[Any, ...]]:
    return [(one["contains_null"], one.get("lower_bound"), one.get("upper_bound")) for one in summaries or ()]
