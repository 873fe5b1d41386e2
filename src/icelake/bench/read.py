"""``icelake bench read.after_updates``: what updates cost the readers.

Of the table of ``bench.load`` a tenth of the rows is updated in a hundred commits, upkeep on. The peer is a lake freshly loaded from the
same rows. Both are asked the same questions by turns through an engine that is there already; the figure is the median over the questions
of updated / loaded, each of medians of ``pairs`` turns. ``size``: rows.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import psycopg

from icelake.bench import figure, peak_memory
from icelake.bench.load import TABLE
from icelake.bench.rig import Rig, rig
from icelake.engines.duckdb import DuckDBEngine

ROWS = 2_000_000
COMMITS = 100

QUESTIONS = {
    "pricing summary": "select l_returnflag, l_linestatus, sum(l_quantity), sum(l_extendedprice * (1 - l_discount)),"
    " avg(l_discount), count(*) from lineitem where l_shipdate <= date '1998-06-01' group by all order by all",
    "revenue change": "select sum(l_extendedprice * l_discount) from lineitem"
    " where l_shipdate >= date '1994-01-01' and l_shipdate < date '1995-01-01' and l_discount between 0.05 and 0.07 and l_quantity < 24",
    "one order": "select * from lineitem where l_orderkey = 100000 order by all",
    "best parts": "select l_partkey, sum(l_quantity) as n from lineitem group by 1 order by 2 desc, 1 limit 20",
    "late by mode": "select l_shipmode, count(*) from lineitem where l_receiptdate > l_commitdate group by all order by all",
    "whole table": "select count(*), sum(length(l_comment)), max(l_extendedprice), min(l_commitdate), count(distinct l_partkey)"
    " from lineitem",
}


def run(_variant: str, size: float | None, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module."""
    with rig(settings={"max_wal_size": "16GB"}) as bench:
        return _run(bench, int(size or ROWS), pairs, note)


def _run(bench: Rig, rows: int, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        note(f"making a table of {rows:,} rows")
        for statement in TABLE.format(rows=rows).split(";\n"):
            connection.execute(statement)
        bench.lakehouse.sync()
        for n in range(COMMITS):
            connection.execute(
                "update lineitem set l_quantity = 1 + (l_quantity + 7) % 50, l_comment = 'updated ' || l_partkey "
                f"where l_orderkey % 1000 = {n * 7919 % 1000}"
            )
            bench.lakehouse.sync()
            if n % 20 == 19:
                note(f"{n + 1} commits of {rows // 1000:,} updates")
    memory = peak_memory()
    with bench.another_lake() as fresh:
        fresh.sync()
        lakes = [(lakehouse.resolve(None).tables, DuckDBEngine([lakehouse.project.warehouse])) for lakehouse in (bench.lakehouse, fresh)]
        ratios: list[float] = []
        figures = []
        for name, question in QUESTIONS.items():
            times: list[list[float]] = [[], []]
            for turn in range(pairs + 1):
                answers: list[Any] = [None, None]
                for which in (0, 1) if turn % 2 else (1, 0):
                    tables, engine = lakes[which]
                    began = time.monotonic()
                    answers[which] = engine.query(question, tables)
                    if turn:  # the first warms the page cache
                        times[which].append(time.monotonic() - began)
                assert answers[0].equals(answers[1]), f"{name}: not the same answer"
            updated, loaded = map(statistics.median, times)
            ratios.append(updated / loaded)
            figures.append(figure(name, updated, "s", "the same rows freshly loaded", loaded))
            note(f"{name}: {updated:.3f} s, freshly loaded {loaded:.3f} s: {ratios[-1]:.2f} of it")
        for _, engine in lakes:
            engine.close()
        table = bench.lakehouse.tables()[0]
        equal = bool(bench.lakehouse.verify()["equal"])
    return {
        "verified": equal,
        "files": table["files"],
        "delete_files": table["delete_files"],
        "figures": [
            figure("read.after_updates", statistics.median(ratios), "of the time of the same rows freshly loaded"),
            *figures,
            memory,
        ],
    }
