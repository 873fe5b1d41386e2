"""The catalog on SQLite: one row a table or view, one database transaction a commit, however many tables it touches.

Promises: a commit happens whole or not at all, and is durable when it returns. It is made outside the transaction: the metadata files are
written first, for the state that was found, and the pointers to them move only if that is still the state; else it is made again. A row
holds the bytes of its metadata file, so the file need not be synced: after a power cut it is written anew from the row (``mend``).
Nothing is ever rebased here: what was required is looked at each time. Several processes may use one database at once; a reader never
waits for a writer.
Never removes a snapshot that somebody holds a lease on.
Fails with ``CommitConflict`` (nothing done), and as ``catalog.database`` does.
"""

import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from icelake.catalog import metadata as table_metadata
from icelake.catalog import views as view_metadata
from icelake.catalog.database import Connection, Database, Started, corrupt
from icelake.catalog.sqlite import Sqlite
from icelake.errors import AlreadyExists, CommitConflict, CommitUnknown, Corrupt, IcelakeError, NoSuchTable, ProjectError
from icelake.model.location import below, canonical
from icelake.model.relation import TableId
from icelake.ports import Chance, Clock, Json, Lease, LoadedTable, Storage, TableChange

_TURNS = 1024
"""Locks among which tables are divided."""
Kind = Literal["table", "view"]

LEVEL = "\x1f"
"""Between the levels of a namespace's name, as in the REST specification."""

RESERVED = "icelake."
"""What the lake says of its own tables is in properties that begin so."""
DELETE_OLD = "write.metadata.delete-after-commit.enabled"
METADATA_PATH = "write.metadata.path"
_PLACES = ("write.data.path", METADATA_PATH, "write.object-storage.path", "write.folder-storage.path")
"""Properties that say where engines put a table's files."""

_OURS: Final = re.compile(r"/\d{5,}-[0-9a-f-]{36}\.metadata\.json$")
_FORGET = "DELETE FROM former WHERE uuid = (SELECT uuid FROM tables WHERE namespace = ? AND name = ?)"
_BOOT = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class _Row:
    version: int
    loaded: LoadedTable


@dataclass(frozen=True, slots=True)
class _Proposed:
    row: _Row
    base: _Row | None
    """What it was made of; None: it makes the table."""
    data: bytes | None
    """The metadata's; None: nothing is changed."""


class _Moved(Exception):
    """What a commit was made of is not the state any more."""


Guard = Callable[[Json | None, Json], None]
"""Given metadata before a commit (None: it makes the table) and after it. Raises Refused COMMIT_BREAKS_TABLE (``tables.guard``)."""


class SqlCatalog:
    """``ports.Catalog``. ``warehouse``: the location new tables go below; ``database``: made of what is to be done when it is opened."""

    def __init__(self, database: Callable[[Started], Database], warehouse: str, storage: Storage, clock: Clock, chance: Chance) -> None:
        self.places = [warehouse]
        """Folders below which tables and views may be; new ones are in the first."""
        self._database = database(Started(self._new_machine, self._look_after))
        self._warehouse = warehouse.rstrip("/")
        self._storage = storage
        self._clock = clock
        self._chance = chance
        self._turns = [threading.Lock() for _ in range(_TURNS)]
        self._cache: dict[TableId, _Row] = {}
        self.guard: Guard | None = None
        """What looks at the snapshots of ``commit_foreign``."""

    @staticmethod
    def sqlite(path: str, warehouse: str, storage: Storage, clock: Clock, chance: Chance) -> "SqlCatalog":
        """In a file of SQLite's, or ``":memory:"``."""
        return SqlCatalog(lambda started: Sqlite(path, started, clock), warehouse, storage, clock, chance)

    # ------------------------------------------------------------------------------------------------------ reading

    def tables(self) -> Sequence[TableId]:
        """All tables, by name."""
        with self._database.reading() as connection:
            found = connection.execute("SELECT namespace, name FROM tables WHERE kind = 'table' ORDER BY namespace, name").fetchall()
        return [TableId(namespace, name) for namespace, name in found]

    def load(self, table: TableId) -> LoadedTable:
        with self._database.reading() as connection:
            return self._row(connection, table).loaded

    def load_whole(self, table: TableId) -> LoadedTable:
        """``load`` for who reads the metadata's file: it is there. Raises Corrupt FILE_MISSING if it is not."""
        loaded = self.load(table)
        try:
            self._storage.read(loaded.metadata_location, 0, 1)
        except Corrupt as error:
            # In the reference's words, which engines show.
            what = f"Failed to open input stream for file: {loaded.metadata_location}"
            raise Corrupt(error.code, what, error.what, "restore the file from a backup; the catalog has its content") from error
        return loaded

    def names(self, namespace: str, kind: Kind) -> list[str]:
        """The tables or views of a namespace, by name. Raises NoSuchTable NO_SUCH_NAMESPACE."""
        with self._database.reading() as connection:
            self._namespace(connection, namespace)
            of = (namespace, kind)
            found = connection.execute("SELECT name FROM tables WHERE namespace = ? AND kind = ? ORDER BY name", of).fetchall()
        return [name for (name,) in found]

    def load_view(self, view: TableId) -> LoadedTable:
        """``metadata`` is then a view's. Raises NoSuchTable NO_SUCH_VIEW."""
        with self._database.reading() as connection:
            return self._row(connection, view, "view").loaded

    # -------------------------------------------------------------------------------------------------- namespaces

    def namespaces(self, parent: str = "") -> list[str]:
        """The namespaces right below ``parent``, by name; '': the outermost. Raises NoSuchTable NO_SUCH_NAMESPACE."""
        with self._database.reading() as connection:
            if parent:
                self._namespace(connection, parent)
            first = f"{parent}{LEVEL}" if parent else ""
            found = connection.execute("SELECT name FROM namespaces WHERE substr(name, 1, ?) = ? ORDER BY name", (len(first), first))
            return [name for (name,) in found if LEVEL not in name[len(first) :]]

    def namespace(self, name: str) -> dict[str, str]:
        """Its properties. Raises NoSuchTable NO_SUCH_NAMESPACE."""
        with self._database.reading() as connection:
            return self._namespace(connection, name)

    def create_namespace(self, name: str, properties: Mapping[str, str]) -> None:
        """Raises AlreadyExists, and NoSuchTable NO_SUCH_NAMESPACE if the one around it is not there."""
        with self._writing() as connection:
            parent, nested, _ = name.rpartition(LEVEL)
            if nested:
                self._namespace(connection, parent)
            made = connection.execute(
                "INSERT INTO namespaces VALUES (?, ?) ON CONFLICT DO NOTHING", (name, orjson.dumps(dict(properties)))
            ).rowcount
            if not made:
                raise AlreadyExists("NAMESPACE_EXISTS", f"Namespace already exists: {shown(name)}")

    def set_namespace(self, name: str, updates: Mapping[str, str], removals: Collection[str]) -> tuple[list[str], list[str]]:
        """Set and remove properties; which were removed, and which were not there."""
        with self._writing() as connection:
            known = self._namespace(connection, name)
            gone = [key for key in removals if key in known]
            new = {**{key: value for key, value in known.items() if key not in removals}, **updates}
            connection.execute("UPDATE namespaces SET properties = ? WHERE name = ?", (orjson.dumps(new), name))
        return gone, [key for key in removals if key not in known]

    def drop_namespace(self, name: str) -> None:
        """Raises NoSuchTable NO_SUCH_NAMESPACE, and CommitConflict NAMESPACE_NOT_EMPTY."""
        with self._writing() as connection:
            self._namespace(connection, name)
            below = f"{name}{LEVEL}"
            inside = connection.execute(
                "SELECT name FROM tables WHERE namespace = ? UNION ALL SELECT name FROM namespaces WHERE substr(name, 1, ?) = ? LIMIT 1",
                (name, len(below), below),
            ).fetchone()
            if inside:
                raise CommitConflict("NAMESPACE_NOT_EMPTY", f"Namespace is not empty: {shown(name)}", f"it holds {shown(inside[0])}")
            connection.execute("DELETE FROM namespaces WHERE name = ?", (name,))

    # ------------------------------------------------------------------------------------------------------- leases

    def lease(self, holder: str, snapshots: Mapping[TableId, int], seconds: float) -> Lease:
        until = self._clock.now() + seconds
        lease = Lease(self._chance.uuid(), holder, until, dict(snapshots))
        held = orjson.dumps([[table.namespace, table.name, snapshot] for table, snapshot in snapshots.items()])
        with self._writing(alone=False) as connection:
            connection.execute("DELETE FROM leases WHERE until <= ?", (self._clock.now(),))
            for table, snapshot in sorted(snapshots.items()):
                try:
                    known = self._row(connection, table, lock=self._database.kept).loaded.metadata["snapshots"]
                except NoSuchTable as error:
                    raise CommitConflict("SNAPSHOT_GONE", f"{table} is gone") from error
                if not any(one["snapshot-id"] == snapshot for one in known):
                    raise CommitConflict("SNAPSHOT_GONE", f"{table} has no snapshot {snapshot} any more", "it expired before it was leased")
            connection.execute("INSERT INTO leases VALUES (?, ?, ?, ?)", (lease.id, holder, until, held))
        return lease

    def release(self, lease_id: str) -> None:
        with self._writing(alone=False) as connection:
            connection.execute("DELETE FROM leases WHERE id = ?", (lease_id,))

    def leases(self) -> Sequence[Lease]:
        with self._database.reading() as connection:
            return self._leases(connection)

    # ------------------------------------------------------------------------------------------------------ writing

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
        """``ports.Catalog.create``. Without ``location`` the table gets a folder of its own below the warehouse.

        Its namespace is made if it is not there.
        """
        uuid, place = self.address(table)
        new = table_metadata.new_table(
            uuid,
            (location or place).rstrip("/"),
            schema,
            properties,
            self._now_ms(),
            partition_spec=partition_spec,
            sort_order=sort_order,
            format_version=format_version,
        )
        return self._make(table, "table", new, anywhere=True)

    def address(self, ident: TableId) -> tuple[str, str]:
        """For a table or view that is to be made: its uuid, and the location it gets if nobody wants another."""
        uuid = self._chance.uuid()
        # The uuid keeps tables apart that a file system might not: by case, or by characters that cannot be in a path.
        folders = "/".join(_in_path(level) for level in ident.namespace.split(LEVEL))
        return uuid, f"{self._warehouse}/{folders}/{_in_path(ident.name)}-{uuid.replace('-', '')[:8]}"

    def free(self, ident: TableId) -> None:
        """Raises AlreadyExists unless a table or view could get this name, NoSuchTable NO_SUCH_NAMESPACE."""
        with self._database.reading() as connection:
            self._namespace(connection, ident.namespace)
            self._check_name(connection, ident, "table")

    def purge(self, ident: TableId) -> None:
        """Drop a table, and delete the files that were below its location then, where no other table is (``LOCATION_TAKEN``).

        Where the property ``gc.enabled`` is false others may need its files, and they stay. Raises as ``drop`` does. What cannot be deleted
        is an orphan: the table is gone all the same.
        """
        metadata = self.load(ident).metadata
        own = metadata["properties"].get("gc.enabled", "true").lower() != "false"
        files = [file.location for file in self._storage.list(f"{metadata['location']}/")] if own else []
        self.drop(ident)
        with suppress(IcelakeError):
            for location in files:
                self._storage.delete(location)
            self._storage.flush()

    def create_from(self, table: TableId, new: Json) -> LoadedTable:
        """A table of this metadata. Raises AlreadyExists, and NoSuchTable NO_SUCH_NAMESPACE."""
        return self._make(table, "table", new)

    def create_view(self, view: TableId, schema: Json, version: Json, properties: Mapping[str, str], location: str | None) -> LoadedTable:
        """Raises AlreadyExists, and NoSuchTable NO_SUCH_NAMESPACE."""
        uuid, place = self.address(view)
        with table_metadata.understood():
            new = view_metadata.new_view(uuid, (location or place).rstrip("/"), schema, version, properties, self._now_ms())
        return self._make(view, "view", new)

    def register(self, table: TableId, metadata_location: str, *, overwrite: bool = False) -> LoadedTable:
        """A table that is there as files. ``overwrite``: in the place of one of that name.

        Raises AlreadyExists, NoSuchTable NO_SUCH_NAMESPACE, ProjectError if the file is no table's metadata.
        """
        new = self._there(metadata_location, table_metadata.registered)
        if owned(new):
            raise ProjectError(
                "CATALOG_BAD_REQUEST",
                f"{metadata_location} is of a lake's own table",
                f"its properties that begin with {RESERVED} would make it a mirror of a source",
                "take them out of a copy, and register that",
            )
        return self._make(table, "table", new, at=metadata_location, overwrite=overwrite)

    def register_view(self, view: TableId, metadata_location: str) -> LoadedTable:
        """A view that is there as a file. Raises as ``register`` does."""
        return self._make(view, "view", self._there(metadata_location, view_metadata.registered), at=metadata_location)

    def _there(self, metadata_location: str, read: Callable[[bytes], Json]) -> Json:
        """Metadata that a client says is there."""
        self._check_inside(metadata_location, self.places, "metadata")
        try:
            return read(self._storage.read(metadata_location))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            what = f"{metadata_location} cannot be registered"
            raise ProjectError("CATALOG_BAD_REQUEST", what, str(error), "name a metadata.json") from error

    def _make(
        self, ident: TableId, kind: Kind, new: Json, *, at: str | None = None, overwrite: bool = False, anywhere: bool = False
    ) -> LoadedTable:
        """Put a table or view into the catalog. ``at``: its metadata is there already; ``anywhere``: its namespace is made if need be."""

        def check(connection: Connection) -> None:
            if not anywhere:
                self._namespace(connection, ident.namespace)
            self._check_name(connection, ident, kind, instead=overwrite)
            self._check_place(connection, ident, new)

        # Nothing is written for what is refused at once.
        with self._database.reading() as connection:
            check(connection)
        written: list[str] = []
        if at is None:
            row, data = self._write(ident, 0, new, written)
        else:
            row, data = _Row(0, LoadedTable(ident, new, at)), _readable(new)
        with self._writing(written) as connection:
            check(connection)
            if overwrite:
                with suppress(NoSuchTable):
                    self._row(connection, ident, kind, lock=self._database.locked)
                self._check_leases(connection, ident, {snapshot["snapshot-id"] for snapshot in new["snapshots"]})
            if anywhere:
                connection.execute("INSERT INTO namespaces VALUES (?, ?) ON CONFLICT DO NOTHING", (ident.namespace, b"{}"))
            if overwrite:
                self._forget(connection, ident)
            self._insert(connection, kind, row, data)
        self._cache[ident] = row
        return row.loaded

    def drop(self, ident: TableId, kind: Kind = "table") -> LoadedTable:
        """Take a table or view out of the catalog; as it was then. Its files stay.

        Raises NoSuchTable, and CommitConflict SNAPSHOT_LEASED if somebody reads it.
        """
        with self._writing() as connection:
            row = self._row(connection, ident, kind, lock=self._database.locked)
            if kind == "table":
                self._check_leases(connection, ident, set())
            self._forget(connection, ident)
        self._cache.pop(ident, None)
        return row.loaded

    def rename(self, ident: TableId, to: TableId, kind: Kind = "table") -> None:
        """Raises NoSuchTable (also NO_SUCH_NAMESPACE), AlreadyExists."""
        with self._writing() as connection:
            self._row(connection, ident, kind, lock=self._database.locked)
            if kind == "table":
                self._check_leases(connection, ident, set())
            self._namespace(connection, to.namespace)
            taken = connection.execute("SELECT kind FROM tables WHERE namespace = ? AND name = ?", (to.namespace, to.name)).fetchone()
            if taken:
                why = f"{taken[0].capitalize()} already exists"
                raise AlreadyExists(f"{taken[0].upper()}_EXISTS", f"Cannot rename {named(ident)} to {named(to)}. {why}")
            connection.execute(
                "UPDATE tables SET namespace = ?, name = ? WHERE namespace = ? AND name = ?",
                (to.namespace, to.name, ident.namespace, ident.name),
            )
        self._cache.pop(ident, None)

    def commit_view(self, view: TableId, requirements: Sequence[Json], updates: Sequence[Json]) -> LoadedTable:
        """Change a view. Raises CommitConflict, ProjectError, NoSuchTable NO_SUCH_VIEW."""
        with self._turn([view]):
            while True:
                with self._database.reading() as connection:
                    base = self._row(connection, view, "view")
                with table_metadata.understood():
                    view_metadata.check(base.loaded.metadata, requirements)
                    new = view_metadata.apply(base.loaded.metadata, updates, self._now_ms())
                with self._database.reading() as connection:
                    self._check_place(connection, view, new, base.loaded.metadata)
                written: list[str] = []
                one = self._proposed(view, base, new, written, readable=True)
                with suppress(_Moved):
                    self._move([one], "view", written)
                    return one.row.loaded

    def commit(self, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        return self._commit(changes, foreign=False)

    def commit_foreign(self, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        """The same of somebody who is not known to write only what can be read again: what would be stored is read first."""
        return self._commit(changes, foreign=True)

    def _commit(self, changes: Sequence[TableChange], *, foreign: bool) -> Sequence[LoadedTable]:
        if len({change.id for change in changes}) != len(changes):
            raise ProjectError("CATALOG_BAD_REQUEST", "a commit names a table twice", "a table has one change in a commit")
        with self._turn([change.id for change in changes]):
            while True:
                with suppress(_Moved):
                    return self._attempt(changes, foreign)

    def _attempt(self, changes: Sequence[TableChange], foreign: bool) -> Sequence[LoadedTable]:
        """Raises _Moved if somebody else has committed meanwhile: nothing was done."""
        with self._database.reading() as connection:
            bases = [self._base(connection, change) for change in changes]
        for change, base in zip(changes, bases, strict=True):
            with table_metadata.understood():
                table_metadata.check(base.loaded.metadata if base is not None else None, change.requirements)
        new: list[Json] = []
        outdated: list[str] = []
        for change, base in zip(changes, bases, strict=True):
            with table_metadata.understood():
                if base is None:
                    new.append(table_metadata.built(change.updates, self._now_ms()))
                elif not change.updates:
                    new.append(base.loaded.metadata)
                else:
                    made = table_metadata.apply(base.loaded.metadata, change.updates, self._now_ms())
                    made, dropped = table_metadata.with_history(base.loaded.metadata, base.loaded.metadata_location, made)
                    # Who registered a table wrote its log: only what is the table's own may be deleted by it.
                    outdated += [
                        old for old in dropped if _below(old, [made["location"]]) and old.endswith(".metadata.json") and _thins(made)
                    ]
                    new.append(made)
            known = base.loaded.metadata if base is not None else None
            if change.updates:
                # Before the guard, which reads below the location.
                with self._database.reading() as connection:
                    self._check_place(connection, change.id, new[-1], known)
            if foreign and self.guard is not None and change.new_snapshot is not None:
                self.guard(known, new[-1])
        written: list[str] = []
        proposed = [
            self._proposed(change.id, base, made, written, readable=foreign or base is None, unchanged=not change.updates)
            for change, base, made in zip(changes, bases, new, strict=True)
        ]
        thinned = [change.id for change in changes if any(update["action"] == "remove-snapshots" for update in change.updates)]
        self._move(proposed, "table", written, thinned)
        for location in outdated:
            # The commit is done; a file that cannot be deleted now is an orphan and is found as one.
            with suppress(IcelakeError):
                self._storage.delete(location)
        return [one.row.loaded for one in proposed]

    def mend(self) -> None:
        """Write anew the metadata files that are torn or gone. Done by itself when the machine has been started anew."""
        with self._database.writing() as connection:
            self._mend(connection)

    def close(self) -> None:
        """Let the database go. The next call opens it again (a ``":memory:"`` catalog is lost)."""
        self._database.close()
        self._cache.clear()

    # ------------------------------------------------------------------------------------------------------- inside

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)

    @staticmethod
    def _namespace(connection: Connection, name: str) -> dict[str, str]:
        found = connection.execute("SELECT properties FROM namespaces WHERE name = ?", (name,)).fetchone()
        if found is None:
            raise NoSuchTable("NO_SUCH_NAMESPACE", f"Namespace does not exist: {shown(name)}", fix="make it first")
        properties: dict[str, str] = orjson.loads(found[0])
        return properties

    @staticmethod
    def _check_name(connection: Connection, ident: TableId, wanted: Kind, *, instead: bool = False) -> None:
        """Raises AlreadyExists unless the name is free; ``instead``: one of the same kind makes room."""
        key = (ident.namespace, ident.name)
        found = connection.execute("SELECT kind FROM tables WHERE namespace = ? AND name = ?", key).fetchone()
        if found is None:
            return
        if not (instead and found[0] == wanted):
            code = "TABLE_EXISTS" if found[0] == "table" else "VIEW_EXISTS"
            with_same_name = "" if wanted == found[0] else " with same name"
            raise AlreadyExists(code, f"{found[0].capitalize()}{with_same_name} already exists: {named(ident)}")

    def _base(self, connection: Connection, change: TableChange) -> _Row | None:
        """What a commit changes; None if it makes the table."""
        try:
            return self._row(connection, change.id)
        except NoSuchTable:
            if not any(requirement.get("type") == "assert-create" for requirement in change.requirements):
                raise
            self._namespace(connection, change.id.namespace)
            self._check_name(connection, change.id, "table")
            return None

    def _proposed(
        self, ident: TableId, base: _Row | None, new: Json, written: list[str], *, readable: bool, unchanged: bool = False
    ) -> _Proposed:
        """What a commit makes of a table or view whose place was checked, its metadata file written. If that fails, nothing is left."""
        if base is not None and unchanged:
            return _Proposed(base, base, None)
        try:
            known = base.loaded.metadata if base is not None else None
            row, data = self._write(ident, base.version + 1 if base is not None else 0, new, written, known, readable=readable)
        except Exception:
            self._discard(written)
            raise
        return _Proposed(row, base, data)

    def _move(self, proposed: Sequence[_Proposed], kind: Kind, written: Sequence[str], thinned: Collection[TableId] = ()) -> None:
        """The pointers, in one transaction. ``thinned``: tables that lose snapshots. Raises _Moved where a base is not what is there."""
        query = f"SELECT version, metadata_location FROM tables WHERE namespace = ? AND name = ? AND kind = ?{self._database.locked}"
        # Alone is who takes or leaves a name or a place.
        alone = any(one.base is None or one.row.loaded.metadata["location"] != one.base.loaded.metadata["location"] for one in proposed)
        with self._writing(written, alone=alone) as connection:
            # In one order, or two might wait for each other.
            for one in sorted(proposed, key=lambda one: one.row.loaded.id):
                ident, base, new = one.row.loaded.id, one.base, one.row.loaded.metadata
                found = connection.execute(query, (ident.namespace, ident.name, kind)).fetchone()
                if found != (None if base is None else (base.version, base.loaded.metadata_location)):
                    raise _Moved
                if one.data is None:
                    continue
                if base is None:
                    self._namespace(connection, ident.namespace)
                    self._check_name(connection, ident, kind)
                    self._check_place(connection, ident, new)
                    self._insert(connection, kind, one.row, one.data)
                    continue
                if ident in thinned:
                    self._check_leases(connection, ident, {snapshot["snapshot-id"] for snapshot in new["snapshots"]})
                self._check_place(connection, ident, new, base.loaded.metadata)
                if new["location"] != base.loaded.metadata["location"] and kind == "table":
                    # Files of it may be there still: nobody else's may come to be.
                    former = (base.loaded.metadata["location"], base.loaded.metadata["table-uuid"])
                    connection.execute("INSERT INTO former VALUES (?, ?) ON CONFLICT DO NOTHING", former)
                self._update(connection, one.row, one.data)
        self._cache.update((one.row.loaded.id, one.row) for one in proposed)

    @contextmanager
    def _turn(self, idents: Sequence[TableId]) -> Iterator[None]:
        """Those who change one table in this process do it one after the other: whoever comes second would have worked in vain."""
        with ExitStack() as held:
            for number in sorted({hash(ident) % _TURNS for ident in idents}):
                held.enter_context(self._turns[number])
            yield

    def _discard(self, written: Sequence[str]) -> None:
        for location in written:
            with suppress(IcelakeError):
                self._storage.delete(location)

    @staticmethod
    def _forget(connection: Connection, ident: TableId) -> None:
        for statement in (_FORGET, "DELETE FROM tables WHERE namespace = ? AND name = ?"):
            connection.execute(statement, (ident.namespace, ident.name))

    @staticmethod
    def _insert(connection: Connection, kind: Kind, row: _Row, data: bytes) -> None:
        loaded = row.loaded
        new = loaded.metadata
        key = (loaded.id.namespace, loaded.id.name, new["table-uuid" if kind == "table" else "view-uuid"])
        made = connection.execute(
            "INSERT INTO tables VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*key, row.version, new["location"], loaded.metadata_location, data, kind),
        )
        if not made.rowcount:
            raise AlreadyExists("TABLE_EXISTS", f"this {kind} is in the catalog already, under another name", "its uuid or location is")

    @staticmethod
    def _update(connection: Connection, row: _Row, data: bytes) -> None:
        loaded = row.loaded
        connection.execute(
            "UPDATE tables SET version = ?, location = ?, metadata_location = ?, metadata = ? WHERE namespace = ? AND name = ?",
            (row.version, loaded.metadata["location"], loaded.metadata_location, data, loaded.id.namespace, loaded.id.name),
        )

    def _row(self, connection: Connection, table: TableId, kind: Kind = "table", *, lock: str = "") -> _Row:
        cached = self._cache.get(table)
        # Metadata locations of ours are never reused, so a known one spares reading and parsing. The file of a table that was registered is
        # somebody else's, who may write it anew; and a file of ours that was registered is another row, which begins with version 0.
        known = cached.loaded.metadata_location if cached and _OURS.search(cached.loaded.metadata_location) else None
        found = connection.execute(
            "SELECT version, metadata_location, CASE WHEN metadata_location = ? AND version = ? THEN NULL ELSE metadata END"
            f" FROM tables WHERE namespace = ? AND name = ? AND kind = ?{lock}",
            (known, cached.version if cached else None, table.namespace, table.name, kind),
        ).fetchone()
        if found is None:
            if kind == "view":
                raise NoSuchTable("NO_SUCH_VIEW", f"View does not exist: {named(table)}")
            raise NoSuchTable("NO_SUCH_TABLE", f"Table does not exist: {named(table)}", fix="`icelake tables` lists those there are")
        version, location, data = found
        if data is None:
            assert cached is not None
            return cached
        try:
            parsed = table_metadata.read(data) if kind == "table" else orjson.loads(data)
        except ValueError as error:
            raise corrupt(self._database.where, f"the metadata of {table} is not a table's: {error}") from error
        row = _Row(version, LoadedTable(table, parsed, location))
        self._cache[table] = row
        return row

    def _write(
        self, table: TableId, version: int, new: Json, written: list[str], known: Json | None = None, *, readable: bool = True
    ) -> tuple[_Row, bytes]:
        folder = new["properties"].get(METADATA_PATH, f"{new['location']}/metadata").rstrip("/")
        location = f"{folder}/{version:05d}-{self._chance.uuid()}.metadata.json"
        data = _readable(new, known) if readable else orjson.dumps(new)
        written.append(location)
        self._storage.put(location, data)
        return _Row(version, LoadedTable(table, new, location)), data

    def _leases(self, connection: Connection) -> list[Lease]:
        found = connection.execute("SELECT id, holder, until, snapshots FROM leases WHERE until > ? ORDER BY until", (self._clock.now(),))
        return [
            Lease(ident, holder, until, {TableId(namespace, name): snapshot for namespace, name, snapshot in orjson.loads(snapshots)})
            for ident, holder, until, snapshots in found
        ]

    def _check_leases(self, connection: Connection, table: TableId, kept: Collection[int]) -> None:
        for lease in self._leases(connection):
            if table in lease.snapshots and lease.snapshots[table] not in kept:
                raise CommitConflict(
                    "SNAPSHOT_LEASED",
                    f"snapshot {lease.snapshots[table]} of {table} is being read",
                    f"{lease.holder} holds a lease on it for another {lease.until - self._clock.now():.0f} s",
                )

    @staticmethod
    def _check_inside(location: str, folders: Sequence[str], what: str) -> None:
        """A client that may name any location could read or overwrite what is not a table's."""
        if not _below(location, folders):
            raise ProjectError(
                "CATALOG_LOCATION",
                f"{location} is no place for {what}",
                f"it is not below {' or '.join(folders)}, or not written in the plainest form",
                "leave the location out: the catalog chooses one",
            )

    def _check_place(self, connection: Connection, ident: TableId, new: Json, base: Json | None = None) -> None:
        """The locations that metadata names are its own. Raises ProjectError CATALOG_LOCATION, AlreadyExists LOCATION_TAKEN."""
        location = new["location"]
        if base is None or location != base["location"]:
            self._check_inside(location, self.places, named(ident))
            self._check_location(connection, ident, location)
        if base is None or location != base["location"] or new["properties"] != base["properties"]:
            for name in _PLACES:
                if new["properties"].get(name, location).rstrip("/") != location:
                    self._check_inside(new["properties"][name], [location], name)

    @staticmethod
    def _check_location(connection: Connection, table: TableId, location: str) -> None:
        where = (
            "SELECT namespace, name, location FROM tables UNION ALL "
            "SELECT namespace, name, former.location FROM former JOIN tables USING (uuid)"
        )
        for namespace, name, taken in connection.execute(where):
            other = TableId(namespace, name)
            mine, theirs = f"{canonical(location)}/", f"{canonical(taken)}/"
            inside = mine.startswith(theirs) or theirs.startswith(mine)
            if inside and other != table:
                raise AlreadyExists(
                    "LOCATION_TAKEN",
                    f"{location} belongs to {other}",
                    "tables in one folder would take each other's files for their own",
                    "choose another location",
                )

    @contextmanager
    def _writing(self, written: Sequence[str] = (), *, alone: bool = True) -> Iterator[Connection]:
        """One write transaction. ``written``: files made for it, deleted when it is certain that it did not happen."""
        try:
            with self._database.writing(alone=alone) as connection:
                yield connection
        except CommitUnknown:
            raise
        except Exception:
            self._discard(written)
            raise

    @staticmethod
    def _new_machine(connection: Connection) -> bool:
        """Once the machine has been started anew, metadata files may be torn or gone."""
        boot = boot_id()
        return not boot or connection.execute("SELECT boot FROM machine WHERE boot = ?", (boot,)).fetchone() is None

    def _look_after(self, connection: Connection) -> None:
        self._mend(connection)
        if boot := boot_id():
            connection.execute("INSERT INTO machine VALUES (?)", (boot,))

    def _mend(self, connection: Connection) -> None:
        for kind, location in connection.execute("SELECT kind, metadata_location FROM tables").fetchall():
            # Objects of a store were there for good when they were written; and other files than ours are not ours to make.
            if "://" in canonical(location) or not _OURS.search(location) or self._whole(kind, location):
                continue
            found = connection.execute("SELECT metadata FROM tables WHERE metadata_location = ?", (location,)).fetchone()
            if found is not None:  # of those on PostgreSQL one may have moved on meanwhile
                self._storage.delete(location)
                self._storage.put(location, found[0])

    def _whole(self, kind: Kind, location: str) -> bool:
        try:
            (table_metadata.read if kind == "table" else view_metadata.registered)(self._storage.read(location))
        except (Corrupt, ValueError, TypeError, KeyError, AttributeError):
            return False
        return True


def _thins(metadata: Json) -> bool:
    """Whether a table's old metadata files are deleted: where it says so, and where it is the lake's own."""
    return metadata["properties"].get(DELETE_OLD, "false").lower() == "true" or owned(metadata)


def owned(metadata: Json) -> bool:
    """Whether it is a table that the lake makes of a source, or for itself."""
    return any(key.startswith(RESERVED) for key in metadata["properties"])


def _below(location: str, folders: Sequence[str]) -> bool:
    """Whether a location is below one of the folders, and written in the plainest form."""
    return below(canonical(location), folders) and "%" not in location


def _readable(new: Json, known: Json | None = None) -> bytes:
    """What is stored. It is looked at as it will be by the next process: what that would not believe is refused now.

    ``known``: metadata it was made of, which was looked at then.
    """
    try:
        data = orjson.dumps(new)
        table_metadata.check_whole(new, known) if "table-uuid" in new else view_metadata.registered(data)
        return data
    except (ValueError, TypeError) as error:
        raise ProjectError(
            "CATALOG_BAD_REQUEST",
            "what the request makes is no table's or view's metadata",
            str(error),
            "this is an error of the writer that sent it",
        ) from error


def shown(namespace: str) -> str:
    """A namespace's name for people."""
    return namespace.replace(LEVEL, ".")


def named(ident: TableId) -> str:
    """A table's or view's name for people."""
    return f"{shown(ident.namespace)}.{ident.name}"


def _in_path(name: str) -> str:
    """A table's or namespace's name as part of a location: letters, digits, ``_`` and ``-`` stay."""
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in name)[:60]


def boot_id() -> str:
    """Of the machine since it was started; '' where that cannot be known."""
    try:
        with open(_BOOT) as file:
            return file.read().strip()
    except OSError:
        return ""
