"""What nobody needs any more, and when it is deleted: lists of files, named in the control table.

An expiry writes down the files it lets go in a list, a file of its own, and commits the list's location with the drop: in one
transaction they become garbage and are known as such. They are deleted some time after it, for the sake of readers that take no lease; a
process that dies meanwhile leaves the lists to the next. Files may be deleted twice, never forgotten: a list is itself an item of the list
that follows it.

Nothing is deleted that a snapshot of its table references now: where others made snapshots, all are asked (``expire.still_needed``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from icelake.errors import Corrupt, IcelakeError, NoSuchTable, Refused, Unreachable
from icelake.model.relation import TableId
from icelake.ports import Chance, Json, LoadedTable, Storage
from icelake.tables.expire import still_needed

GARBAGE = "icelake.garbage"
"""Property of the control table: ``[[milliseconds, location of a list], ...]``, oldest first."""
_AT_ONCE = 4
"""Lists that are emptied in one upkeep: there is one a time, but for those that a pause left behind."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A list by its location, and when its files were let go (ms since 1970)."""

    made_ms: int
    location: str


class Bin:
    """The lists of one source."""

    def __init__(self, storage: Storage, chance: Chance) -> None:
        self._storage = storage
        self._chance = chance
        self._emptied: frozenset[Listed] = frozenset()
        """Lists that are still named and need not be read again."""

    def empty(self, control: LoadedTable, load: Callable[[TableId], LoadedTable], until_ms: int) -> IcelakeError | None:
        """Delete what lists name that were made until then: of a few lists, the oldest first. What went wrong, if anything did.

        ``load``: a table as the catalog has it now (raises NoSuchTable). What could not be deleted is tried again the next time.
        """
        due = [one for one in _named(control) if one.made_ms <= until_ms]
        self._emptied = self._emptied.intersection(due)
        for one in [one for one in due if one not in self._emptied][:_AT_ONCE]:
            try:
                gone = self._delete(one, load)
                self._storage.flush()
            except (Unreachable, Refused, Corrupt) as error:
                return error
            if gone:
                self._emptied |= {one}
        return None

    def add(self, control: LoadedTable, files: Mapping[TableId, Sequence[str]], now_ms: int) -> Json:
        """Write a list of these files, durably: the update of the control table that names it, and those not emptied before it no more."""
        named = _named(control)
        emptied = [one.location for one in named if one in self._emptied]
        items = {**files, control.id: [*files.get(control.id, ()), *emptied]}
        new = Listed(now_ms, f"{control.metadata['location']}/metadata/{self._chance.uuid()}.garbage.json")
        self._storage.write(new.location, orjson.dumps([[table.namespace, table.name, list(names)] for table, names in items.items()]))
        self._storage.flush()
        kept = [*(one for one in named if one not in self._emptied), new]
        return {"action": "set-properties", "updates": {GARBAGE: orjson.dumps([[one.made_ms, one.location] for one in kept]).decode()}}

    def _delete(self, one: Listed, load: Callable[[TableId], LoadedTable]) -> bool:
        """Whether all that the list names, and nobody needs, is gone."""
        try:
            items = orjson.loads(self._storage.read(one.location))
        except Corrupt as error:
            if error.code != "FILE_MISSING":
                raise
            return True  # who took over was faster; or somebody took it for an orphan
        except ValueError:
            return False  # damaged: not worth stopping for, and what it named is to be looked for among the orphans
        for namespace, name, files in items:
            try:
                needed = still_needed(load(TableId(namespace, name)), files, self._storage)
            except NoSuchTable:
                needed = set()
            for location in files:
                if location not in needed:
                    self._storage.delete(location)
        return True


def _named(control: LoadedTable) -> list[Listed]:
    return [Listed(made, location) for made, location in orjson.loads(control.metadata["properties"].get(GARBAGE, "[]"))]
