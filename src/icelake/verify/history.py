"""A history replayed: does what it says, row by row, come to what its mirror holds at the same cut?

Promises: ``equal`` only if the history was read whole since its last reset, no row of it is missing or there twice, every key came just
as often as it went (and once more, if it is there), and the rows that are left are the mirror's, value for value. Only hashes are kept,
on disk where memory ends. Replays by its own reading of docs/protocol.md (Histories); knows nothing of what wrote it.
Fails with what reading either side fails with.
"""

from collections.abc import Callable, Sequence

from icelake.model.history import EMPTYING, PARTITION, RESET
from icelake.model.types import StructType
from icelake.ports import Json
from icelake.verify.compare import SHOWN, Comparison, Pair, encoded, shown_key
from icelake.verify.lake import LakeTable

TEMPORARY = ("state", "unlike", "named", "emptied")


class Replay:
    """``mirror``: compares the mirror, and runs what is asked. ``history``: as it is at the cut; ``scan``: its FROM item."""

    def __init__(
        self, mirror: Comparison, pairs: Sequence[Pair], keyed: bool, history: LakeTable, scan: Callable[[], str], samples: int
    ) -> None:
        self._mirror = mirror
        self._pairs = pairs
        self._keys = [pair for pair in pairs if pair.key]
        self._keyed = keyed
        self._history = history
        self._scan = scan
        self._limit = samples
        self._places = {column.name: place for place, column in enumerate(history.columns)}
        self._start = 0
        self._leaf = next((pair.name for pair in pairs if pair.column == "tableoid"), "")
        """The column of the mirror that says which partition a row is of, if it has any."""

    def run(self) -> Json:
        problems = [*self._history.problems, *self._shape()]
        rows = live = held = different = missing = extra = 0
        samples: list[Json] = []
        if not problems:
            try:
                rows, gaps = self._counts()
                problems += gaps
                live, held, wrong = self._replay()
                if wrong:
                    problems.append(f"{wrong} {'keys' if self._keyed else 'rows'} did not come as often as they went")
                ((different, missing, extra),) = self._ask(
                    "SELECT coalesce(sum(different), 0), coalesce(sum(missing), 0), coalesce(sum(extra), 0) FROM unlike"
                )
                samples = self._samples() if different or missing or extra else []
            finally:
                for table in TEMPORARY:
                    self._ask(f"DROP TABLE IF EXISTS {table}")
        return {
            "name": str(self._history.id),
            "equal": not (problems or different or missing or extra),
            "rows": rows,
            "replayed_rows": live,
            "mirror_rows": held,
            "missing": int(missing),
            "extra": int(extra),
            "different": int(different),
            "problems": problems,
            "samples": samples,
        }

    def _ask(self, query: str) -> list[tuple[int, ...]]:
        return self._mirror.lake("history", query)

    def _shape(self) -> list[str]:
        """What the history lacks to be replayed."""
        row = self._inside("row")
        lacking = [pair.name for pair in self._pairs if pair.name not in row]
        if self._keyed:
            lacking += [f"{pair.name} of old_key" for pair in self._keys if pair.name not in self._inside("old_key")]
        elif "old_key" in self._places:
            lacking += [f"{pair.name} of old_key" for pair in self._pairs if pair.name not in self._inside("old_key")]
        missing = [f"column {name} of the mirror is not in its history" for name in lacking]
        return [*missing, *([f"it has no column {PARTITION}"] if self._leaf and PARTITION not in self._places else [])]

    def _inside(self, column: str) -> set[str]:
        place = self._places.get(column)
        kind = self._history.columns[place].type if place is not None else None
        return {name for name, _ in kind.fields} if isinstance(kind, StructType) else set()

    # -------------------------------------------------------------------------------------------------------- the rows

    def _item(self) -> str:
        return f"{self._scan()} AS history({', '.join(f'h{place}' for place in range(len(self._places)))})"

    def _column(self, name: str) -> str:
        return f"h{self._places[name]}"

    def _counts(self) -> tuple[int, list[str]]:
        """How many rows there are, and what is wrong with their numbers. From the last reset on they must be there, each once."""
        number, op = self._column("number"), self._column("op")
        emptying = ", ".join(f"'{name}'" for name in EMPTYING)
        leaf = self._column(PARTITION) if self._leaf else "NULL"
        ((rows, last, reset, self._start),) = self._ask(
            f"SELECT count(*), coalesce(max({number}), 0), coalesce(max({number}) FILTER ({op} = '{RESET}' AND {leaf} IS NULL), 1), "
            f"coalesce(max({number}) FILTER ({op} IN ({emptying}) AND {leaf} IS NULL), 0) FROM {self._item()}"
        )
        if self._leaf:
            self._ask(
                f"CREATE TEMP TABLE emptied AS SELECT {leaf} AS leaf, max({number}) AS number FROM {self._item()} "
                f"WHERE {op} IN ({emptying}) AND {leaf} IS NOT NULL GROUP BY ALL"
            )
        ((count, different),) = self._ask(f"SELECT count(*), count(DISTINCT {number}) FROM {self._item()} WHERE {number} >= {reset}")
        wanted = last - reset + 1 if rows else 0
        if (count, different) != (wanted, wanted):
            return rows, [f"its rows {reset} to {last} are {count}, not {wanted} with each number once"]
        return rows, []

    def _events(self, column: str, pairs: Sequence[Pair]) -> str:
        """SQL: number, k and h of the rows that a column holds of these pairs; h is that of the whole row only if these are all."""
        fields = ", ".join(f"struct_extract({self._column(column)}, {_literal(pair.name)}) AS l{pair.place}" for pair in pairs)
        texts = ", ".join(f"{pair.form.lake(f'l{pair.place}')} AS t{number}" for number, pair in enumerate(pairs))
        number, of = self._column("number"), f"struct_extract({self._column(column)}, {_literal(self._leaf)})"
        rows = (
            f"SELECT {number} AS number, {fields} FROM {self._item()} "
            + (f"LEFT JOIN emptied ON emptied.leaf = {of} " if self._leaf else "")
            + f"WHERE {number} > {self._start} AND {self._column(column)} IS NOT NULL"
            + (f" AND {number} > coalesce(emptied.number, 0)" if self._leaf else "")
        )
        listed = ", ".join(f"t{number}" for number in range(len(pairs)))
        hashes = f"md5_number({encoded(len(self._keys))}) AS k, md5_number({encoded(len(pairs))}) AS h"
        return f"SELECT number, {hashes}, [{listed}] AS texts FROM (SELECT number, {texts} FROM ({rows}))"

    def _replay(self) -> tuple[int, int, int]:
        """Tables ``state`` (k, h, n: what is left) and ``unlike`` (a key a row). (rows left, the mirror's rows, keys gone wrong)."""
        came = f"SELECT 2 * number + 1 AS place, k, h, 1 AS d FROM ({self._events('row', self._pairs)})"
        if self._keyed:
            went = f"SELECT 2 * number AS place, k, 0::UHUGEINT AS h, -1 AS d FROM ({self._events('old_key', self._keys)})"
            state = f"SELECT k, arg_max(h, place) AS h, sum(d) AS n FROM ({came} UNION ALL {went}) GROUP BY k"
            wrong = "n NOT IN (0, 1) OR (n = 1) <> (h <> 0)"
        else:
            went = (
                f"UNION ALL SELECT 2 * number, k, h, -1 FROM ({self._events('old_key', self._pairs)})" if "old_key" in self._places else ""
            )
            state = f"SELECT k, h, sum(d) AS n FROM ({came} {went}) GROUP BY k, h"
            wrong = "n < 0"
        self._ask(f"CREATE TEMP TABLE state AS {state}")
        ((live, bad),) = self._ask(f"SELECT coalesce(sum(n) FILTER (n > 0), 0), count(*) FILTER ({wrong}) FROM state")
        ((held,),) = self._ask(f"SELECT count(*) FROM ({self._mirror.hashed(None)})")
        self._ask(
            f"""CREATE TEMP TABLE unlike AS
            SELECT k, least(r, m) AS different, r - least(r, m) AS missing, m - least(r, m) AS extra FROM (
                SELECT k, coalesce(sum(net) FILTER (net > 0), 0) AS r, coalesce(-sum(net) FILTER (net < 0), 0) AS m
                FROM (SELECT k, h, sum(n) AS net FROM (
                    SELECT k, h, n FROM state WHERE n > 0 UNION ALL SELECT k, h, -1 FROM ({self._mirror.hashed(None)})
                ) GROUP BY k, h HAVING net <> 0) GROUP BY k)"""
        )
        return int(live), held, bad

    def _samples(self) -> list[Json]:
        self._ask("CREATE TEMP TABLE named (k UHUGEINT, side VARCHAR)")
        for kind, side in (("missing", "history"), ("extra", "mirror"), ("different", "both")):
            self._ask(f"INSERT INTO named SELECT k, '{side}' FROM unlike WHERE {kind} > 0 ORDER BY k LIMIT {self._limit}")
        keys = f"any_value(list_transform(texts[:{len(self._keys)}], lambda t: left(t, {SHOWN + 1})))"
        found: dict[int, list[str | None]] = {}
        for rows in (self._events("row", self._pairs), self._mirror.hashed(None)):
            found |= self._mirror.lake("history", f"SELECT k, {keys} FROM ({rows}) WHERE k IN (SELECT k FROM named) GROUP BY k")
        out = [
            {"key": shown_key(self._keys, found[key]), "side": side}
            for key, side in self._mirror.lake("history", "SELECT k, side FROM named")
        ]
        return sorted(out, key=lambda sample: (sample["side"], str(sample["key"])))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
