"""One table, both sides, row for row by canonical hash, in bounded memory.

Every row is an unambiguous text (each column NULL or length and canonical text), its MD5 a 128-bit number. First both sides are
only counted and summed up in buckets of the key: the sums of both 64-bit halves of different sets of rows agree with probability
about 2^-128. Only rows of buckets that differ are then kept (on disk where memory ends), which names the keys: per key, rows that
only the source has and rows that only the lake has pair up into ``different``; what is left is ``missing`` or ``extra``. So two
rows of one key are found on either side. Last, for the sampled keys, the columns.

Never calls a table equal that it has not read whole on both sides. Fails with what reading either side fails with.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import pyarrow as pa

from icelake.engines.duckdb import unreadable
from icelake.errors import Corrupt, IcelakeError, Refused
from icelake.verify.canonical import Form, quoted

BUCKETS = 1024
"""A power of two: DuckDB divides 128-bit numbers bit by bit, and masks them at once."""

SHOWN = 1000
"""Characters of a key's canonical text that a report shows at most."""

Rows = Callable[[Sequence[str]], Iterator[pa.Table]]
"""All rows of the source: batches with string columns c0, c1, ... for these PostgreSQL expressions. Called once a reading."""
Phase = Literal["source", "lake", "find", "columns", "history"]
Values = tuple[str | None, ...]
"""A row: the canonical texts of its key, as far as they are shown, and a hash of each column's."""
Tick = Callable[[Phase, int], None]
"""Told often: what is being done and how many source rows it has seen."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A column both sides have. ``place`` is its position in the lake's schema."""

    name: str
    place: int
    form: Form
    key: bool
    column: str
    """Its name in the source."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A key that differs. ``side``: which one has the row; ``columns``: those that differ, if both have it."""

    key: dict[str, str | None]
    side: Literal["source", "lake", "both"]
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """``source_rows - missing == lake_rows - extra``. ``samples``: up to the limit of each kind, in order of their key's text."""

    source_rows: int
    lake_rows: int
    missing: int = 0
    extra: int = 0
    different: int = 0
    samples: tuple[Sample, ...] = ()

    @property
    def equal(self) -> bool:
        return not (self.missing or self.extra or self.different) and self.source_rows == self.lake_rows


class Comparison:
    """``pairs``: keys first, in key order; at least one is a key. ``scan`` gives the lake's FROM item, for each reading anew."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        pairs: Sequence[Pair],
        rows: Rows,
        scan: Callable[[], str],
        tick: Tick,
        samples: int,
    ) -> None:
        self._connection = connection
        self._name = name
        self._pairs = pairs
        self._keys = sum(pair.key for pair in pairs)
        self._rows = rows
        self._scan = scan
        self._tick = tick
        self._limit = samples
        self._seen = 0

    def run(self) -> Difference:
        source = self._sums_of_source()
        lake = self._sums_of_lake()
        counts = sum(sums[0] for sums in source.values()), sum(sums[0] for sums in lake.values())
        differing = sorted(bucket for bucket in source.keys() | lake.keys() if source.get(bucket) != lake.get(bucket))
        if not differing:
            return Difference(*counts)
        try:
            self._find(differing)
            return self._name_them(*counts)
        finally:
            for table in ("bucket", "stray", "verdict", "sampled"):
                self._connection.execute(f"DROP TABLE IF EXISTS {table}")

    # ------------------------------------------------------------------------------------------------ counts and sums

    def _sums_of_source(self) -> dict[int, tuple[int, int, int]]:
        sums: dict[int, tuple[int, int, int]] = {}
        for part in self._each_batch("source", _sums(self.hashed("batch"))):
            for bucket, *new in part:
                rows, high, low = sums.get(bucket, (0, 0, 0))
                sums[bucket] = rows + new[0], high + new[1], low + new[2]
        return sums

    def _sums_of_lake(self) -> dict[int, tuple[int, int, int]]:
        return {bucket: (rows, high, low) for bucket, rows, high, low in self.lake("lake", _sums(self.hashed(None)))}

    # ------------------------------------------------------------------------------------------------- which keys differ

    def _find(self, differing: Sequence[int]) -> None:
        """Table ``verdict``: a row a key (by hash) that differs, and how often it is different, missing, extra."""
        run = self._connection.execute
        run("CREATE TEMP TABLE bucket AS SELECT unnest(?::USMALLINT[]) AS bucket", [differing])
        # Hashes only: rows of one small size are what DuckDB can group beyond its memory.
        run("CREATE TEMP TABLE stray (k UHUGEINT, h UHUGEINT, side TINYINT)")
        keep = "INSERT INTO stray SELECT k, h, {} FROM ({}) WHERE {} IN (SELECT bucket FROM bucket)"
        for _ in self._each_batch("find", keep.format(1, self.hashed("batch"), _BUCKET)):
            pass
        self.lake("find", keep.format(-1, self.hashed(None), _BUCKET))
        # Equal rows of both sides cancel; what is left of a key pairs up into ``different`` as far as it goes.
        self.lake(
            "find",
            """CREATE TEMP TABLE verdict AS
            SELECT k, least(s, l) AS different, s - least(s, l) AS missing, l - least(s, l) AS extra FROM (
                SELECT k, coalesce(sum(net) FILTER (net > 0), 0) AS s, coalesce(-sum(net) FILTER (net < 0), 0) AS l
                FROM (SELECT k, h, sum(side) AS net FROM stray GROUP BY k, h HAVING net <> 0) GROUP BY k)""",
        )
        run("DROP TABLE stray")

    def _name_them(self, source_rows: int, lake_rows: int) -> Difference:
        run = self._connection.execute
        counted = run("SELECT coalesce(sum(missing), 0), coalesce(sum(extra), 0), coalesce(sum(different), 0) FROM verdict").fetchone()
        assert counted is not None
        missing, extra, different = (int(count) for count in counted)
        if not (missing or extra or different) or source_rows - missing != lake_rows - extra:
            raise self._unsteady()
        run("CREATE TEMP TABLE sampled (k UHUGEINT, side VARCHAR)")
        for kind, side in (("missing", "source"), ("extra", "lake"), ("different", "both")):
            run(f"INSERT INTO sampled SELECT k, '{side}' FROM verdict WHERE {kind} > 0 ORDER BY k LIMIT {self._limit}")
        return Difference(source_rows, lake_rows, missing, extra, different, tuple(self._samples()))

    def _samples(self) -> list[Sample]:
        """The sampled keys' rows are fetched from both sides, and compared here."""
        sides = self._connection.execute("SELECT k, side FROM sampled").fetchall()
        # Of a value only its hash is needed, of a key what a report can show, and of rows that are alike how many there are.
        fetch = (
            f"SELECT k, count(*), any_value(list_transform(texts[:{self._keys}], lambda t: left(t, {SHOWN + 1}))), "
            "any_value(list_transform(texts, lambda t: md5(t))) FROM ({}) WHERE k IN (SELECT k FROM sampled) GROUP BY k, h"
        )
        source: defaultdict[int, Counter[Values]] = defaultdict(Counter)
        lake: defaultdict[int, Counter[Values]] = defaultdict(Counter)
        for part in self._each_batch("columns", fetch.format(self.hashed("batch"))):
            for key, count, shown, hashes in part:
                source[key][tuple(shown + hashes)] += count
        for key, count, shown, hashes in self.lake("columns", fetch.format(self.hashed(None))):
            lake[key][tuple(shown + hashes)] += count
        out: list[tuple[str, Values, Sample]] = []
        for key, side in sides:
            here, there = source[key] - lake[key], lake[key] - source[key]
            if (side != "lake" and not here) or (side != "source" and not there):
                raise self._unsteady()
            columns = self._unlike(next(iter(here)), next(iter(there))) if side == "both" else ()
            named = next(iter(here or there))[: self._keys]
            out.append((side, named, Sample(shown_key(self._pairs, named), side, columns)))
        out.sort(key=lambda one: (one[0], [(value is None, value or "") for value in one[1]]))
        return [sample for _, _, sample in out]

    def _unlike(self, here: Values, there: Values) -> tuple[str, ...]:
        hashes = zip(self._pairs, here[self._keys :], there[self._keys :], strict=True)
        return tuple(pair.name for pair, a, b in hashes if a != b)

    def _unsteady(self) -> Corrupt:
        return Corrupt(
            "VERIFY_UNSTEADY",
            f"two readings of {self._name} did not agree",
            "a side was read twice at one snapshot and gave different rows",
            "check disk and memory of this machine; then run verify again",
        )

    # ---------------------------------------------------------------------------------------------------------- reading

    def hashed(self, source: str | None) -> str:
        """SQL: k (the key's hash), h (the row's hash) and the list of its canonical texts of a source batch, or of the lake (None)."""
        if source is not None:
            texts = [f"c{number}" for number in range(len(self._pairs))]
            item = source
        else:
            texts = [pair.form.lake(f"l{pair.place}") for pair in self._pairs]
            places = ", ".join(f"l{place}" for place in range(1 + max(pair.place for pair in self._pairs)))
            item = f"{self._scan()} AS lake({places})"
        columns = ", ".join(f"{text} AS t{number}" for number, text in enumerate(texts))
        hashes = f"md5_number({encoded(self._keys)}) AS k, md5_number({encoded(len(texts))}) AS h"
        listed = ", ".join(f"t{number}" for number in range(len(texts)))
        return f"SELECT {hashes}, [{listed}] AS texts FROM (SELECT {columns} FROM {item})"

    def _each_batch(self, phase: Phase, query: str) -> Iterator[list[tuple[Any, ...]]]:
        """The query's rows for each batch of the source, which it knows as ``batch``."""
        self._seen = 0
        self._tick(phase, 0)
        for batch in self._rows([pair.form.source(quoted(pair.column)) for pair in self._pairs]):
            self._connection.register("batch", batch)
            try:
                rows = self._connection.execute(query).fetchall()
            except duckdb.Error as error:
                raise self._failed(error) from error
            finally:
                self._connection.unregister("batch")
            self._seen += batch.num_rows
            self._tick(phase, self._seen)
            yield rows

    def lake(self, phase: Phase, query: str) -> list[tuple[Any, ...]]:
        """Run in a thread, so that the caller's lease is kept and Ctrl-C is heard however long it takes."""
        with ThreadPoolExecutor(1, thread_name_prefix="verify") as pool:
            running = pool.submit(lambda: self._connection.execute(query).fetchall())
            try:
                while True:
                    try:
                        return running.result(timeout=0.5)
                    except TimeoutError:
                        self._tick(phase, self._seen)
                    except duckdb.Error as error:
                        raise self._failed(error) from error
            except BaseException:
                self._connection.interrupt()
                raise

    def _failed(self, error: duckdb.Error) -> IcelakeError:
        if isinstance(error, duckdb.OutOfMemoryException):
            return Refused(
                "VERIFY_NO_SPACE",
                f"{self._name} needs more memory or scratch space",
                str(error),
                "free space in the scratch folder; a single large value needs memory",
            )
        if not isinstance(found := unreadable(str(error)), Corrupt):
            return found
        return Corrupt(
            "VERIFY_LAKE_UNREADABLE", f"{self._name} cannot be read", str(error), "restore the file from a backup if it is damaged or gone"
        )


def shown_key(pairs: Sequence[Pair], key: Sequence[str | None]) -> dict[str, str | None]:
    """A key's canonical texts, the first of the pairs', as a report has them."""
    out: dict[str, str | None] = {}
    for pair, text in zip(pairs, key, strict=False):
        if text is None or len(text) <= SHOWN:
            out[pair.name] = None if text is None else pair.form.show(text)
        else:
            out[pair.name] = f"{text[:SHOWN]}…"
    return out


_BUCKET = f"(k & {BUCKETS - 1}::UHUGEINT)::USMALLINT"


def _sums(hashed: str) -> str:
    # 64-bit halves: their sums fit DuckDB's HUGEINT for 2^63 rows.
    return (
        f"SELECT {_BUCKET} AS bucket, count(*), sum((h >> 64)::UBIGINT), "
        f"sum((h & 18446744073709551615::UHUGEINT)::UBIGINT) FROM ({hashed}) GROUP BY bucket"
    )


def encoded(columns: int) -> str:
    """SQL: t0, t1, ... as one text. All lengths come first, so different values never give the same text.

    As few expressions a column as may be: DuckDB keeps a vector for each, and a table may have 1,600 columns.
    """
    texts = [f"t{n}" for n in range(columns)]
    return f"concat(CAST([{', '.join(f'strlen({text})' for text in texts)}] AS VARCHAR), {', '.join(texts)})"
