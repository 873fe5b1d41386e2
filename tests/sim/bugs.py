"""Bugs planted in the product's source as it is imported: what the simulator must catch.

Each is a rule of docs/protocol.md broken, or a loss others have published. ``plant`` changes what Python imports in this process;
the files of the checkout are not touched. A patch whose old text is not exactly once in the module is an error: a bug that can
no longer be planted must be written anew.
``seeds.json`` has for each the seed that caught it last: it is tried first. Where it does not any more, others are, and
``python -m tests.sim --bugs --learn`` writes the file anew.
"""

import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType


@dataclass(frozen=True, slots=True)
class Patch:
    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Bug:
    name: str
    breaks: str
    """The rule it breaks."""
    patches: tuple[Patch, ...]


class _Loader(SourceFileLoader):
    def __init__(self, spec: ModuleSpec, patches: Sequence[Patch]) -> None:
        assert spec.origin is not None
        super().__init__(spec.name, spec.origin)
        self._patches = patches

    def get_code(self, fullname: str) -> CodeType:
        return compile(patched(Path(self.path).read_text(), self._patches), self.path, "exec", dont_inherit=True)


def patched(source: str, patches: Sequence[Patch]) -> str:
    """The source with every patch applied. Raises ValueError when an old text is not there exactly once."""
    for patch in patches:
        if source.count(patch.old) != 1:
            raise ValueError(f"{patch.module}: {source.count(patch.old)} places for {patch.old!r}")
        source = source.replace(patch.old, patch.new)
    return source


class _Planter(MetaPathFinder):
    def __init__(self, bug: Bug) -> None:
        self._patches: dict[str, list[Patch]] = {}
        for patch in bug.patches:
            self._patches.setdefault(patch.module, []).append(patch)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self._patches:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        return importlib.util.spec_from_loader(fullname, _Loader(spec, self._patches[fullname]))


def plant(bug: Bug) -> None:
    """Make this process import the product with the bug in it. The modules must not have been imported yet."""
    early = [patch.module for patch in bug.patches if patch.module in sys.modules]
    if early:
        raise ValueError(f"imported already: {', '.join(early)}")
    sys.meta_path.insert(0, _Planter(bug))


APPLIER = "icelake.ingest.applier"
CONTROL = "icelake.ingest.control"
COMMIT = "icelake.ingest.commit"
FOLLOWED = "icelake.ingest.followed"
UPKEEP = "icelake.ingest.upkeep"
GARBAGE = "icelake.ingest.garbage"
STORE = "icelake.catalog.store"

BAG = "icelake.tables.bag_index"
KEYS = "icelake.tables.keys"
PARKED = "icelake.ingest.parked"
MEND = "icelake.ingest.mend"
LOAD = "icelake.model.load"

TABLE = "icelake.tables.table"
EXPIRE = "icelake.tables.expire"
REWRITE = "icelake.tables.rewrite"
PGOUTPUT = "icelake.sources.postgres.pgoutput"

_ALL = (
    Bug(
        "commit before sync",
        "data files are durable before the commit that names them",
        (
            Patch(
                APPLIER,
                'everything was thrown away and is begun again."""\n        self._storage.flush()\n',
                'everything was thrown away and is begun again."""\n',
            ),
        ),
    ),
    Bug(
        "a torn metadata file is taken for a whole one",
        "what a power cut takes of metadata files is written anew",
        (Patch(STORE, "            return False\n        return True\n", "            return True\n        return True\n"),),
    ),
    Bug(
        "confirmed before the commit",
        "the slot is confirmed only up to what is durable",
        (
            Patch(
                APPLIER,
                "            return self._commit(self._batch.position)\n        # Inside",
                "            self._confirm(self._batch.position)\n            return self._commit(self._batch.position)\n        # Inside",
            ),
        ),
    ),
    Bug(
        "confirmed what was received",
        "the slot is confirmed only up to what is durable",
        (
            Patch(
                APPLIER,
                "        self._confirm(position)\n",
                "        self._confirm(self._stream.server_lsn)\n",
            ),
        ),
    ),
    Bug(
        "keepalive over pending changes",
        "a keepalive's position is recorded only when every commit before it is",
        (
            Patch(APPLIER, "        if self._batch.open or stream.buffered:\n", "        if self._batch.open:\n"),
            Patch(APPLIER, " or stream.complete > self.position or stream.buffered:", ":"),
        ),
    ),
    Bug(
        "same epoch again",
        "a starting applier first commits epoch + 1",
        (Patch(CONTROL, "replace(self.cut, epoch=self.epoch + 1)", "replace(self.cut, epoch=max(1, self.epoch))"),),
    ),
    Bug(
        "zombie takes the source back",
        "an applier that lost its epoch ends",
        (Patch(CONTROL, "self.epoch != held and self._attempt not in self._claims:", "self.epoch < held:"),),
    ),
    Bug(
        "loads are not fenced",
        "every commit is guarded by the control table",
        (
            Patch(
                APPLIER,
                "        after = self._send([self._control.fence(), *parts])\n        if after is None:\n"
                '            return Progress("retry", position=self.position)\n        followed.done(after[1:])\n',
                "        after = self._send(parts)\n        if after is None:\n"
                '            return Progress("retry", position=self.position)\n        followed.done(after)\n',
            ),
        ),
    ),
    Bug(
        "gap not looked for",
        "refuse if the slot's position is past the lake's",
        (Patch(APPLIER, "if slot.confirmed_flush_lsn > self.position:", "if slot.confirmed_flush_lsn < 0:"),),
    ),
    Bug(
        "starts where the slot stands",
        "the stream starts at the marker: the slot may have gone back",
        (
            Patch(
                APPLIER,
                "self._source.stream(self._slot, publication, self.position,",
                "self._source.stream(self._slot, publication, self._source.slot(self._slot).confirmed_flush_lsn,",
            ),
        ),
    ),
    Bug(
        "late table not published",
        "a table is published before it is loaded",
        (
            Patch(
                APPLIER,
                "            if late:\n                self._source.publish(publication, late)\n",
                "",
            ),
        ),
    ),
    Bug(
        "slot before publication",
        "the publication comes first: decoding WAL from before it fails",
        (
            Patch(
                APPLIER,
                "        self._source.publish(publication, relations)\n        if self._source.slot(self._slot) is not None:\n",
                "        if self._source.slot(self._slot) is not None:\n",
            ),
            Patch(
                APPLIER,
                "        start = self._source.create_slot(self._slot)\n        self._record(start, 0, {})\n",
                "        start = self._source.create_slot(self._slot)\n        self._source.publish(publication, relations)\n"
                "        self._record(start, 0, {})\n",
            ),
        ),
    ),
    Bug(
        "lost answer taken for a failure",
        "outcome unknown: send the identical request again until answered",
        (
            Patch(
                COMMIT,
                "        except CommitUnknown:\n            in_doubt = True\n",
                '        except CommitUnknown as error:\n            raise CommitConflict("LOST", "taken for a failure") from error\n',
            ),
        ),
    ),
    Bug(
        "own commit not recognised",
        "after a lost answer a conflict may be one's own commit",
        (Patch(COMMIT, 'return update["snapshot"]["snapshot-id"] in present', "return False"),),
    ),
    Bug(
        "cleanup of a commit in doubt",
        "outcome unknown: delete none of its files",
        (
            Patch(
                APPLIER,
                "            self.close()\n            self._failures += 1\n",
                "            for followed in self.followed.values():\n                for location in followed.rollback():\n"
                "                    self._storage.delete(location)\n            self.close()\n            self._failures += 1\n",
            ),
        ),
    ),
    Bug(
        "half a transaction",
        "a batch ends at a transaction boundary",
        (
            Patch(
                APPLIER,
                "        if self._batch.open and not self._batch.mid:\n",
                "        if self._batch.open and self._batch.position > self.position:\n",
            ),
        ),
    ),
    Bug(
        "table enters a cut too early",
        "a table enters cuts at the first cut >= all its L",
        (Patch(APPLIER, "(known or followed.whole_at(position))", "(known or followed.load.complete)"),),
    ),
    Bug(
        "cut names the snapshot before",
        "a cut is one position at which all tables are consistent",
        (Patch(APPLIER, "made.get(table.id) or table.snapshot_id", "table.snapshot_id or made.get(table.id)"),),
    ),
    Bug(
        "cut for verify not exact",
        "the applier ends a cut on exactly the commits before L",
        (Patch(APPLIER, "taken = self._take(stream, hold.lsn)", "taken = self._take(stream)"),),
    ),
    Bug(
        "changes before L applied",
        "a streamed change with commit LSN < L is dropped",
        (
            Patch(
                FOLLOWED,
                "return np.where(changes.commit_lsn < np.uint64(interval.lsn), np.uint8(collapse.SKIP), changes.op)",
                "return changes.op.copy()",
            ),
        ),
    ),
    Bug(
        "change at L dropped",
        "a streamed change with commit LSN = L is not in the range's snapshot",
        (
            Patch(
                FOLLOWED,
                "return np.where(changes.commit_lsn < np.uint64(interval.lsn), np.uint8(collapse.SKIP), changes.op)",
                "return np.where(changes.commit_lsn <= np.uint64(interval.lsn), np.uint8(collapse.SKIP), changes.op)",
            ),
        ),
    ),
    Bug(
        "range bounds ignored",
        "a streamed change to a range that is not loaded is dropped",
        (
            Patch(
                FOLLOWED,
                "        new_ok = commit_lsn >= starts[",
                "        starts = np.minimum(starts, starts.min())\n        new_ok = commit_lsn >= starts[",
            ),
        ),
    ),
    Bug(
        "unchanged TOAST becomes NULL",
        "values that were not sent are filled from the lake",
        (Patch(FOLLOWED, "                if field.name in sources:\n", "                if not field.name:\n"),),
    ),
    Bug(
        "TOAST by the new key",
        "values that were not sent are found by the old key",
        (Patch(FOLLOWED, "base = net.origin[rows[part[from_lake[part]]]]", "base = new[rows[part[from_lake[part]]]]"),),
    ),
    Bug(
        "updates get new row ids",
        "an update keeps its row id",
        (Patch(FOLLOWED, "append(rows, row_ids if (row_ids >= 0).any() else None)", "append(rows, None)"),),
    ),
    Bug(
        "TRUNCATE ignored",
        "a TRUNCATE removes every row",
        (
            Patch(
                FOLLOWED,
                "            self._truncate(changes)\n        else:\n            if len(gone)",
                "            self.index.clear()\n        else:\n            if len(gone)",
            ),
        ),
    ),
    Bug(
        "rows before a TRUNCATE survive",
        "a TRUNCATE also removes rows of its own batch",
        (
            Patch(
                TABLE,
                "        self.unused += (pending.path for pending in self._pending.values() if pending.path)\n"
                "        self._pending.clear()\n        self._open.clear()\n",
                "",
            ),
        ),
    ),
    Bug(
        "deletion vector replaced, not merged",
        "a second delete in a file does not bring back the first",
        (Patch(TABLE, "together = deleted if known is None else deleted | known", "together = deleted"),),
    ),
    Bug(
        "compaction resurrects rows",
        "compaction rewrites live rows only",
        (
            Patch(
                TABLE,
                "        if file.deletes is None:\n            positions = np.arange",
                "        if file.path:\n            positions = np.arange",
            ),
        ),
    ),
    Bug(
        "compaction renumbers rows",
        "compaction writes the row ids it found",
        (Patch(REWRITE, "delta.append(content, row_ids, rows.column(LAST_UPDATED).to_numpy())", "delta.append(content, None, None)"),),
    ),
    Bug(
        "expiry forgets the cuts",
        "a cut that is kept keeps the snapshots it names",
        (Patch(UPKEEP, "                    needed[names[name]].add(snapshot_id)\n", "                    pass\n"),),
    ),
    Bug(
        "expiry deletes what the next snapshot needs",
        "nothing is deleted that a retained snapshot references",
        (Patch(EXPIRE, "reachable.only(run, [*before, snapshot])", "reachable.only(run, before)"),),
    ),
    Bug(
        "files deleted before the commit",
        "files go only after the commit that drops their snapshots is durable",
        (
            Patch(
                APPLIER,
                "        try:\n            after = commit(self._catalog, self._clock, fenced)\n",
                "        for location in (one for files in plan.files.values() for one in files):\n"
                "            self._storage.delete(location)\n"
                "        try:\n            after = commit(self._catalog, self._clock, fenced)\n",
            ),
        ),
    ),
    Bug(
        "a list is named no more before it was emptied",
        "what is let go is known until it is gone",
        (Patch(GARBAGE, "kept = [*(one for one in named if one not in self._emptied), new]", "kept = [new]"),),
    ),
    Bug(
        "the lists are of one process",
        "what is let go is known until it is gone",
        (Patch(GARBAGE, "kept = [*(one for one in named if one not in self._emptied), new]", "kept = [*self._emptied, new]"),),
    ),
    Bug(
        "a list that was emptied stays",
        "what is let go is known until it is gone",
        (Patch(GARBAGE, "[*files.get(control.id, ()), *emptied]", "[*files.get(control.id, ())]"),),
    ),
    Bug(
        "a list is not synced",
        "files first, then the pointer to them",
        (Patch(GARBAGE, "        self._storage.flush()\n        kept = [", "        kept = ["),),
    ),
    Bug(
        "key index believed",
        "on start the live files are compared with the key index",
        (
            Patch(
                FOLLOWED,
                "        return self.index.reconcile(self.table).reason\n",
                "        if self.index.files:\n            self.index._ready = True\n        else:\n"
                "            self.index.reconcile(self.table)\n        return ''\n",
            ),
        ),
    ),
    Bug(
        "expiry without a fence",
        "a zombie's commit fails, whatever it commits",
        (
            Patch(APPLIER, "        self._control.still_ours(control)\n", ""),
            Patch(UPKEEP, "replace(fence, updates=", "replace(fence, requirements=[], updates="),
        ),
    ),
    Bug(
        "idle position read late",
        "a keepalive's position is taken over only when nothing received is pending",
        (
            Patch(
                APPLIER,
                "        if self.position < self._wanted_position() <= position:\n            return position\n",
                "        if self.position < self._wanted_position() <= position:\n            return stream.server_lsn\n",
            ),
            Patch(
                APPLIER,
                "        return position if self._clock.monotonic() >= ",
                "        return stream.server_lsn if self._clock.monotonic() >= ",
            ),
        ),
    ),
    Bug(
        "a range of the promoted server",
        "a range is of the timeline that was checked",
        (Patch(APPLIER, "                self._must_be_on(read.timeline)\n", ""),),
    ),
    Bug(
        "a timeline not recorded",
        "the new timeline is recorded before a range is read",
        (Patch(APPLIER, "        self._record(self.position, self._control.cut.commit_time, self._control.cut.tables)\n", ""),),
    ),
    Bug(
        "position is the commit's start",
        "a transaction's position is its end LSN",
        (Patch(PGOUTPUT, "position=int(state[kernels.POSITION]) & _U64 if transactions", "position=int(log.lsn[0]) if transactions"),),
    ),
    Bug(
        "0.0 taken for -0.0",
        "a delete without a key takes a row that is the same bit by bit",
        (Patch(KEYS, "        if not exact:\n", "        if True:\n"),),
    ),
    Bug(
        "equal rows taken once",
        "of equal rows a delete takes one, two deletes take two",
        (Patch(FOLLOWED, "self.index.take(hashes[first][net.taken])", "self.index.take(hashes[first][np.sort(np.unique(net.taken))])"),),
    ),
    Bug(
        "row index not told of compaction",
        "the row index follows where a rewrite moves rows",
        (
            Patch(
                FOLLOWED,
                "        self.index.move(moved.was_file_no, moved.was_position, moved.file_no, moved.positions, moved.row_ids)\n",
                "        return\n",
            ),
        ),
    ),
    Bug(
        "rows of one chunk not found by the next",
        "a change may take a row that the same batch brought",
        (
            Patch(
                BAG,
                "        self._add(hashes, file_no, position, row_id)\n\n",
                "        if (np.asarray(row_id) >= 0).any():\n            self._add(hashes, file_no, position, row_id)\n\n",
            ),
        ),
    ),
    Bug(
        "updates without a key get new row ids",
        "an update keeps its row id, also where rows have no key",
        (
            Patch(
                FOLLOWED,
                "self._row_ids(net.origin[net.live], file_no, position, row_id)",
                "np.full(len(net.live), -1, np.int64)",
            ),
        ),
    ),
    Bug(
        "lost identity not noticed",
        "a table that lost what names its rows is refused: its users cannot change it because of us",
        (
            Patch(FOLLOWED, "    if now.unnamed:\n", "    if now is None:\n"),
            Patch(APPLIER, "        unnamed = self._source.withdraw(publication)\n", "        unnamed: dict[TableId, str] = {}\n"),
        ),
    ),
    Bug(
        "lost identity stays published",
        "a table that nothing names is taken out of the publication: its users cannot change it because of us",
        (Patch(APPLIER, "        unnamed = self._source.withdraw(publication)\n", "        unnamed: dict[TableId, str] = {}\n"),),
    ),
    Bug(
        "append-only TRUNCATE ignored",
        "an append-only mirror holds what was inserted since the last TRUNCATE",
        (Patch(FOLLOWED, "            self._truncate(changes)\n            inserts = ", "            inserts = "),),
    ),
    Bug(
        "append-only keeps what a TRUNCATE of its own chunk removed",
        "an append-only mirror holds what was inserted since the last TRUNCATE",
        (Patch(FOLLOWED, "            inserts = inserts[inserts > truncates[-1]]\n", ""),),
    ),
    Bug(
        "parked changes let go",
        "while a table is parked every change to it is kept",
        (Patch(APPLIER, "            self.parked[raw.table].keep(raw)\n", "            pass\n"),),
    ),
    Bug(
        "parked table stays in the cut",
        "a parked table leaves the cut: its mirror stands still",
        (Patch(APPLIER, "        heads = self._heads_without(map(str, notes))\n", "        heads = dict(self._control.cut.tables)\n"),),
    ),
    Bug(
        "spool not emptied by the replay",
        "what was replayed is gone from the spool in the same commit",
        (Patch(APPLIER, "[*parts[1:], *([emptied] if emptied is not None else [])]", "parts[1:]"),),
    ),
    Bug(
        "replayed only in part",
        "the whole spool is applied in one batch",
        (Patch(PARKED, "        for no in self._ordered():\n", "        for no in self._ordered()[:1]:\n"),),
    ),
    Bug(
        "replayed out of order",
        "the spool is applied in source order",
        (Patch(PARKED, "        for no in self._ordered():\n", "        for no in reversed(self._ordered()):\n"),),
    ),
    Bug(
        "spool merged out of order",
        "merging files of a spool keeps its changes in their order",
        (Patch(PARKED, "rewrite(self.spool, chosen)", "rewrite(self.spool, chosen[::-1])"),),
    ),
    Bug(
        "spool merged around what stays",
        "only neighbours of a spool's files are merged",
        (Patch(REWRITE, "[file.no for file in files[oldest:]]", "[file.no for file in files[oldest::2]]"),),
    ),
    Bug(
        "half a batch goes with the table that parks",
        "the batch is thrown away and made again from the marker",
        (
            Patch(
                APPLIER,
                "            self._throw_away()\n            self.close()\n            if error.code",
                "            self._commit(self._batch.position or self.position)\n            self.close()\n            if error.code",
            ),
        ),
    ),
    Bug(
        "held rows believed",
        "an interval that is not loaded admits no change, whether the lake has rows of it or not",
        (Patch(LOAD, "return LoadState((Interval(None, None, held=True),))", "return LoadState((Interval(None, 0),))"),),
    ),
    Bug(
        "rows the source has not are kept",
        "to load a held interval is to remove what the source does not have",
        (Patch(APPLIER, "                    mending.finish(lower, read.upper.bound)\n", ""),),
    ),
    Bug(
        "rows that differ are kept",
        "to load a held interval is to replace what differs",
        (Patch(MEND, "            if len(unlike):\n", "            if len(unlike) > 1 << 40:\n"),),
    ),
    Bug(
        "rows beyond the range removed",
        "a range is compared within its bounds",
        (
            Patch(
                MEND,
                "            inside = np.flatnonzero(self._inside(keys, lower, upper))\n",
                "            inside = np.arange(len(unseen))\n",
            ),
        ),
    ),
    Bug(
        "history without what was not sent",
        "every row of a history is whole, also one that a later change of its chunk hides",
        (Patch(FOLLOWED, "self.history.changed(changes, kind, table)", "self.history.changed(changes, kind, changes.new.take(rows))"),),
    ),
    Bug(
        "history without what a comparison removed",
        "every effect on a mirror is a row of its history: so is what is mended",
        (Patch(MEND, "                self._tell(keys.take(inside), None)\n", ""),),
    ),
    Bug(
        "history without what a batch undid",
        "every change is a row, also if its mirror is as before",
        (Patch(FOLLOWED, " and not (self.history is not None and self.history.pending)", ""),),
    ),
    Bug(
        "places counted anew in each chunk",
        "a change's place is that among all of its transaction's",
        (Patch(PGOUTPUT, "places(lsn, self._seen.before(lsn))", "places(lsn, 0)"),),
    ),
    Bug(
        "history goes on after a gap",
        "a history that is not in step with its mirror begins anew",
        (
            Patch(
                APPLIER, "        if not in_step(loaded, mirror):\n", "        if not history.note.last and not in_step(loaded, mirror):\n"
            ),
        ),
    ),
    Bug(
        "fence without its assertion",
        "every commit asserts the control table's snapshot",
        (
            Patch(
                CONTROL,
                '            {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": self._table.snapshot_id},\n        ]\n'
                "        return TableChange(self.id, requirements, [])",
                "        ]\n        return TableChange(self.id, requirements, [])",
            ),
            Patch(
                APPLIER,
                "            self._control.still_ours(next(loaded for loaded in after if loaded.id == self._control.id))\n",
                "",
            ),
        ),
    ),
    Bug(
        "commit time goes back",
        "a cut's commit time is the running maximum of its transactions'",
        (Patch(CONTROL, "commit_time=max(commit_time, self.cut.commit_time)", "commit_time=commit_time or self.cut.commit_time"),),
    ),
    Bug(
        "commit time of the last chunk",
        "a cut's commit time is the running maximum of its transactions'",
        (Patch(APPLIER, "max(batch.time, chunk.commit_time)", "chunk.commit_time"),),
    ),
    Bug(
        "lost WAL not looked for",
        "before streaming: the slot is not lost",
        (Patch(APPLIER, "        if slot.lost:\n", "        if slot is None:\n"),),
    ),
    Bug(
        "another cluster taken for ours",
        "the server is the cluster the lake was made from",
        (Patch(APPLIER, "marker.system_id != now.system_id", "marker.system_id == ''"),),
    ),
    Bug(
        "any timeline will do",
        "gone on with only if its history leaves the lake's timeline at or behind the recorded position",
        (Patch(APPLIER, "(switch is None or switch < self.position)", "switch is None"),),
    ),
    Bug(
        "range newer than the promoted server",
        "the timeline was left behind every L",
        (Patch(APPLIER, "            if newest > switch:\n", "            if newest < 0:\n"),),
    ),
    Bug(
        "restored server not noticed",
        "the server's WAL reaches the recorded position",
        (Patch(APPLIER, "now.flushed < self.position", "now.flushed < 0"),),
    ),
)

BUGS = {bug.name: bug for bug in _ALL}
SEEDS = Path(__file__).with_name("seeds.json")


def known_seeds() -> dict[str, int]:
    """Bug -> the seed that caught it last."""
    known: dict[str, int] = json.loads(SEEDS.read_text())
    return known
