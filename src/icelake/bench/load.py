"""``icelake bench load``: an initial load, against ``COPY … TO … (FORMAT binary)`` of the same rows to /dev/null.

The table has the 16 columns of TPC-H's lineitem. Each pair is a lake of its own: slot, publication, ranges with a snapshot each,
Parquet, key index, commits. The limit is psql's, on as many connections as ours reads with, which is one. ``size``: rows.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import psycopg

from icelake.bench import figure, peak_memory
from icelake.bench.rig import Rig, rig

ROWS = 5_000_000

TABLE = """
create table lineitem (
    l_orderkey bigint, l_partkey bigint not null, l_suppkey bigint not null, l_linenumber int, l_quantity numeric(12,2) not null,
    l_extendedprice numeric(12,2) not null, l_discount numeric(12,2) not null, l_tax numeric(12,2) not null,
    l_returnflag char(1) not null, l_linestatus char(1) not null, l_shipdate date not null, l_commitdate date not null,
    l_receiptdate date not null, l_shipinstruct char(25) not null, l_shipmode char(10) not null, l_comment varchar(44) not null,
    primary key (l_orderkey, l_linenumber)
);
insert into lineitem
select 1 + g / 4, 1 + (g::bigint * 7919) % 200000, 1 + (g::bigint * 104729) % 10000, 1 + g % 4, 1 + g % 50,
    900 + (g::bigint * 31) % 104000 + (g % 100) / 100.0, (g % 11) / 100.0, (g % 9) / 100.0,
    substr('RAN', 1 + g % 3, 1), substr('OF', 1 + g % 2, 1), date '1992-01-01' + g % 2500, date '1992-01-31' + g * 17 % 2500,
    date '1992-01-02' + g % 2500 + g % 30,
    (array['DELIVER IN PERSON', 'COLLECT COD', 'NONE', 'TAKE BACK RETURN'])[1 + g % 4],
    (array['REG AIR', 'AIR', 'RAIL', 'SHIP', 'TRUCK', 'MAIL', 'FOB'])[1 + g % 7], substr(md5(g::text) || md5((g + 1)::text), 1, 10 + g % 34)
from generate_series(0, {rows} - 1) g;
vacuum analyze lineitem;
"""


def run(_variant: str, size: float | None, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module."""
    rows = int(size or ROWS)
    with rig(settings={"max_wal_size": "16GB"}) as bench:
        return _run(bench, rows, pairs, note)


def _run(bench: Rig, rows: int, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        note(f"making a table of {rows:,} rows")
        for statement in TABLE.format(rows=rows).split(";\n"):
            connection.execute(statement)
    ours: list[float] = []
    limits: list[float] = []
    processor: list[float] = []
    equal = True
    for pair in range(pairs):
        if pair % 2 == 0:
            limits.append(_copied(bench))
        with bench.another_lake() as lakehouse:
            began, used = time.monotonic(), time.process_time()
            loaded = int(lakehouse.sync()["rows_loaded"])
            ours.append(time.monotonic() - began)
            processor.append(time.process_time() - used)
            if pair == pairs - 1:
                memory = peak_memory()
                note("comparing the lake with the source")
                equal = bool(lakehouse.verify()["equal"])
        if pair % 2 == 1:
            limits.append(_copied(bench))
        note(f"{loaded:,} rows in {ours[-1]:.2f} s, COPY in {limits[-1]:.2f} s: {limits[-1] / ours[-1]:.2f} of it")
    rate, ratios = rows / statistics.median(ours), [limit / seconds for limit, seconds in zip(limits, ours, strict=True)]
    return {
        "verified": equal,
        "rows": rows,
        "figures": [
            {
                **figure("load.rows", rate, "rows/s", "COPY (FORMAT binary) to /dev/null", rate / statistics.median(ratios)),
                "pairs": [round(ratio, 3) for ratio in ratios],
            },
            figure("load.rows per CPU second", rows / statistics.median(processor), "rows/s"),
            figure("load.rows: the limit", rows / statistics.median(limits), "rows/s"),
            memory,
        ],
    }


def _copied(bench: Rig) -> float:
    return bench.run("psql", "-qXc", f"\\copy lineitem to '{os.devnull}' (format binary)")
