"""TPC-H that changes: its 22 queries say the same of PostgreSQL and of the lake, at an LSN in the past and at the end.

DuckDB's ``dbgen`` makes the eight tables; random transactions over all of them (cascades, keys that change, savepoints, rollbacks)
run while ``icelake sync --follow`` mirrors them. Sums and counts must be exact; an average or a ratio, which DuckDB makes a double of
and PostgreSQL a numeric, within 1e-9. One table is partitioned and sorted, one is of format version 2.

ICELAKE_TPCH_SCALE is the scale factor (`make test-tpch`: 1; here 0.01), and the figures of a run go to stdout.
"""

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pytest

from icelake.engines.duckdb import DuckDBEngine, extension_file
from icelake.lakehouse import Lakehouse
from icelake.stack.postgres import Postgres

SCALE = float(os.environ.get("ICELAKE_TPCH_SCALE", "0.01"))
TRANSACTIONS = max(200, int(3000 * SCALE))
"""On each side of the LSN in the past."""
ICELAKE = Path(sys.executable).parent / "icelake"

# Text is varchar: char(n) compares without its padding in PostgreSQL, and in no reader of the lake, which has the padding.
TABLES = {
    "region": "r_regionkey int, r_name varchar(25), r_comment varchar(152), primary key (r_regionkey)",
    "nation": "n_nationkey int, n_name varchar(25), n_regionkey int, n_comment varchar(152), primary key (n_nationkey)",
    "supplier": "s_suppkey bigint, s_name varchar(25), s_address varchar(40), s_nationkey int, s_phone char(15),"
    " s_acctbal numeric(15,2), s_comment varchar(101), primary key (s_suppkey)",
    "customer": "c_custkey bigint, c_name varchar(25), c_address varchar(40), c_nationkey int, c_phone char(15),"
    " c_acctbal numeric(15,2), c_mktsegment varchar(10), c_comment varchar(117), primary key (c_custkey)",
    "part": "p_partkey bigint, p_name varchar(55), p_mfgr varchar(25), p_brand varchar(10), p_type varchar(25), p_size int,"
    " p_container varchar(10), p_retailprice numeric(15,2), p_comment varchar(23), primary key (p_partkey)",
    "partsupp": "ps_partkey bigint, ps_suppkey bigint, ps_availqty bigint, ps_supplycost numeric(15,2), ps_comment varchar(199),"
    " primary key (ps_partkey, ps_suppkey)",
    "orders": "o_orderkey bigint, o_custkey bigint, o_orderstatus char(1), o_totalprice numeric(15,2), o_orderdate date,"
    " o_orderpriority varchar(15), o_clerk varchar(15), o_shippriority int, o_comment varchar(79), primary key (o_orderkey)",
    "lineitem": "l_orderkey bigint, l_partkey bigint, l_suppkey bigint, l_linenumber bigint, l_quantity numeric(15,2),"
    " l_extendedprice numeric(15,2), l_discount numeric(15,2), l_tax numeric(15,2), l_returnflag char(1), l_linestatus char(1),"
    " l_shipdate date, l_commitdate date, l_receiptdate date, l_shipinstruct varchar(25), l_shipmode varchar(10),"
    " l_comment varchar(44), primary key (l_orderkey, l_linenumber)",
}
REFERENCES = [
    ("nation", "n_regionkey", "region"),
    ("supplier", "s_nationkey", "nation"),
    ("customer", "c_nationkey", "nation"),
    ("partsupp", "ps_partkey", "part"),
    ("partsupp", "ps_suppkey", "supplier"),
    ("orders", "o_custkey", "customer"),
    ("lineitem", "l_orderkey", "orders"),
    ("lineitem", "l_partkey, l_suppkey", "partsupp"),
]
PROJECT = """\
[project]
name = "tpch"
[sources.main]
dsn = { file = "dsn" }
tables = ["public.*"]
[tables."public.lineitem"]
partition = ["year(l_shipdate)"]
sort = ["l_partkey", "l_shipdate desc"]
[tables."public.orders"]
format = 2
[commit]
interval_ms = 300
[retention]
keep_all = "6h"
thin = [["1h", "1d"]]
"""

# ------------------------------------------------------------------------------------------------------------ changes

LAST = {"order": 6_000_000, "customer": 150_000, "part": 200_000, "supplier": 10_000}
"""The last key of ``dbgen`` at scale 1."""
ORDER = "(select o_orderkey from orders where o_orderkey >= %(order)s order by 1 limit 1)"
CUSTOMER = "(select c_custkey from customer where c_custkey >= %(customer)s order by 1 limit 1)"
PART = "(select p_partkey from part where p_partkey >= %(part)s order by 1 limit 1)"
SUPPLIER = "(select s_suppkey from supplier where s_suppkey >= %(supplier)s order by 1 limit 1)"
NATION = "(select n_nationkey from nation where n_nationkey >= 4 * %(few)s order by 1 limit 1)"
LINES = """
insert into lineitem
select %(new)s, ps_partkey, ps_suppkey, row_number() over (order by ps_partkey, ps_suppkey), %(few)s + 1,
       (%(few)s + 1) * p_retailprice, %(few)s / 100.0, 0.08, (array['R', 'A', 'N'])[%(few)s %% 3 + 1], 'O', %(day)s, %(day)s::date + 40,
       %(day)s::date + %(few)s * 3, 'DELIVER IN PERSON', (array['AIR', 'AIR REG', 'MAIL', 'SHIP'])[%(few)s %% 4 + 1], %(text)s
from (select * from partsupp where ps_partkey >= %(part)s order by ps_partkey, ps_suppkey limit 1 + %(few)s) as offered
join part on p_partkey = ps_partkey
"""
NEW_NATION = "n_nationkey > 24 and n_nationkey not in (select c_nationkey from customer union select s_nationkey from supplier)"
OPERATIONS: list[tuple[int, str]] = [
    (20, f"""insert into orders select %(new)s, {CUSTOMER}, 'O', %(money)s, %(day)s, '1-URGENT', 'Clerk#000000001', 0, %(text)s;
             {LINES};
             update customer set c_acctbal = c_acctbal - %(money)s where c_custkey = {CUSTOMER};
             update partsupp set ps_availqty = ps_availqty - 1
             where (ps_partkey, ps_suppkey) in (select l_partkey, l_suppkey from lineitem where l_orderkey = %(new)s)"""),
    (8, f"delete from lineitem where l_orderkey = {ORDER}; delete from orders where o_orderkey = {ORDER}"),
    (8, f"delete from orders where o_orderkey = {ORDER}"),
    (10, f"""update lineitem set l_quantity = %(few)s + 1, l_extendedprice = %(money)s, l_returnflag = 'R', l_shipdate = %(day)s,
             l_receiptdate = %(day)s::date + 9 where l_orderkey = {ORDER} and l_linenumber <= 3"""),
    (6, f"update lineitem set l_linenumber = l_linenumber + 10 where l_orderkey = {ORDER} and l_linenumber < 10"),
    (6, f"update orders set o_orderstatus = 'F', o_totalprice = %(money)s, o_comment = %(text)s where o_orderkey = {ORDER}"),
    (4, f"update orders set o_orderkey = %(new)s, o_orderdate = %(day)s where o_orderkey = {ORDER}"),
    (4, f"insert into customer select %(new)s, 'Customer', 'é', {NATION}, '13-555-777-9999', %(money)s, 'BUILDING', %(text)s"),
    (2, f"delete from customer where c_custkey = {CUSTOMER}"),
    (3, f"update customer set c_nationkey = {NATION}, c_mktsegment = 'BUILDING' where c_custkey = {CUSTOMER}"),
    (3, """insert into part
           values (%(new)s, 'forest green', 'Manufacturer#1', 'Brand#23', 'PROMO BRASS', 15, 'MED BOX', %(money)s, %(text)s);
           insert into partsupp select %(new)s, s_suppkey, 9999, %(money)s, %(text)s from supplier
           where s_suppkey >= %(supplier)s order by s_suppkey limit 4"""),
    (2, f"update part set p_brand = 'Brand#12', p_container = 'SM BOX', p_retailprice = %(money)s where p_partkey = {PART}"),
    (1, f"update part set p_partkey = %(new)s where p_partkey = {PART}"),
    (1, f"delete from part where p_partkey = {PART}"),
    (3, f"update partsupp set ps_supplycost = %(money)s, ps_comment = %(text)s where ps_partkey = {PART}"),
    (2, f"insert into supplier select %(new)s, 'Supplier#' || %(new)s, '', {NATION}, '30-000-000-0000', %(money)s, %(text)s"),
    (2, f"update supplier set s_nationkey = {NATION}, s_acctbal = -s_acctbal where s_suppkey = {SUPPLIER}"),
    (1, "delete from supplier where s_suppkey = (select max(s_suppkey) from supplier)"),
    (1, f"update nation set n_comment = %(text)s where n_nationkey = {NATION}"),
    (1, "insert into nation select %(new)s, 'NEW', max(r_regionkey), %(text)s from region"),
    (1, f"delete from nation where {NEW_NATION}"),
    (1, "update region set r_comment = %(text)s where r_regionkey = %(few)s"),
    (1, "insert into region values (%(new)s, 'NEW', %(text)s)"),
    (1, "delete from region where r_regionkey > 4 and r_regionkey not in (select n_regionkey from nation)"),
]  # fmt: skip
"""(weight, statements), which go into one transaction with others."""
BULK = [
    "update lineitem set l_discount = l_discount + 0.01, l_comment = %(text)s where l_orderkey %% 480 = %(few)s",
    "update partsupp set ps_supplycost = ps_supplycost + 0.01 where ps_partkey %% 80 = %(few)s",
    "delete from lineitem where l_orderkey %% 480 = %(few)s and l_linenumber > 2",
]


@dataclass
class Changes:
    """Random transactions, the same for the same seed; each ends before the next begins, so that any moment between is one LSN."""

    session: psycopg.Connection[Any]
    chance: random.Random
    new: int = 2_000_000_000
    """Keys not used so far; they fit an int, and grow so that they are also beyond the keys of ``dbgen``."""
    kept: Counter[str] = field(default_factory=Counter)
    """How many rows the statements of committed transactions changed, by table; cascades come on top."""

    def run(self, transactions: int) -> None:
        for number in range(transactions):
            done: Counter[str] = Counter()
            with self.session.transaction(force_rollback=self.chance.random() < 0.1) as outer:
                for _ in range(self.chance.randrange(1, 4)):
                    with self.session.transaction(force_rollback=self.chance.random() < 0.1) as inner:
                        there = self._operation(bulk=number % 60 == 59)
                    if not inner.force_rollback:
                        done += there
            if not outer.force_rollback:
                self.kept += done

    def _operation(self, *, bulk: bool) -> Counter[str]:
        self.new += 1
        values = {
            # Beyond the keys of dbgen are the new ones.
            **{name: self.chance.randrange(1, int(1.05 * SCALE * last)) for name, last in LAST.items()},
            "new": self.new,
            "few": self.chance.randrange(7),
            "money": f"{self.chance.randrange(-99_999, 9_999_999)}e-2",
            "day": f"{self.chance.randrange(1992, 1999)}-{self.chance.randrange(1, 13):02d}-{self.chance.randrange(1, 29):02d}",
            "text": "".join(self.chance.choices(["special", " ", "requests", "é", "🦆", "'", '"', "\\", "\n", ","], k=3)),
        }
        weights, choices = zip(*OPERATIONS, strict=True)
        statements = self.chance.choice(BULK) if bulk else self.chance.choices(choices, weights)[0]
        done: Counter[str] = Counter()
        for statement in statements.split(";"):
            (table,) = re.findall(r"^\s*(?:insert into|update|delete from) (\w+)", statement)
            done[table] += self.session.execute(statement, values).rowcount
        return done


# ------------------------------------------------------------------------------------------------------------ queries


TIES = {3: "l_orderkey", 10: "c_custkey", 18: "o_orderkey"}
"""What must be ordered by besides, where rows are cut off: all else the two engines take as it stands."""


def queries(tpch: duckdb.DuckDBPyConnection) -> dict[int, str]:
    """The benchmark's queries by number, in words both engines know."""
    found = dict(tpch.execute("select query_nr, query from tpch_queries()").fetchall())
    return {number: query.replace("LIMIT", f", {TIES[number]} LIMIT") if number in TIES else query for number, query in found.items()}


def same(ours: pa.Table, theirs: Sequence[tuple[Any, ...]]) -> None:
    """The same rows, in whatever order: what DuckDB has as a double within 1e-9, anything else exactly."""
    about = [place for place, kind in enumerate(ours.schema.types) if pa.types.is_floating(kind)]
    mine = list(zip(*(column.to_pylist() for column in ours.columns), strict=True))

    def exact(row: tuple[Any, ...]) -> list[tuple[bool, Any]]:
        return [(value is None, value) for place, value in enumerate(row) if place not in about]

    assert len(mine) == len(theirs)
    for one, other in zip(sorted(mine, key=exact), sorted(theirs, key=exact), strict=True):
        assert exact(one) == exact(other)
        for place in about:
            if one[place] is None or other[place] is None:
                assert one[place] is other[place], (one, other)
            else:
                assert math.isclose(one[place], float(other[place]), rel_tol=1e-9), (one, other)


def fill(tpch: duckdb.DuckDBPyConnection, session: psycopg.Connection[Any], folder: Path) -> None:
    """The benchmark's tables in PostgreSQL, with keys, references and indexes for them."""
    tpch.execute(f"call dbgen(sf = {SCALE})")
    for table, columns in TABLES.items():
        bare, key = columns.rsplit(", primary key ", 1)
        session.execute(f"create table {table} ({bare})")
        file = folder / f"{table}.csv"
        tpch.execute(f"copy {table} to '{file}' (header false)")
        tpch.execute(f"drop table {table}")
        with session.cursor().copy(f"copy {table} from stdin (format csv)") as copy, file.open("rb") as data:
            while block := data.read(1 << 20):
                copy.write(block)
        file.unlink()
        session.execute(f"alter table {table} add primary key {key}")
    for table, column, to in REFERENCES:
        session.execute(f"create index on {table} ({column})")
        session.execute(f"alter table {table} add foreign key ({column}) references {to} on delete cascade on update cascade")
    session.execute("create index on lineitem (l_suppkey)")
    session.execute("analyze")


def icelake(folder: Path, *words: str) -> bytes:
    """What the command printed."""
    done = subprocess.run([ICELAKE, *words, "-C", folder], capture_output=True, check=False)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@pytest.mark.timeout(900 if SCALE < 0.1 else 7200)
def test_22_queries_while_everything_changes(tmp_path: Path) -> None:
    seconds: dict[str, float] = {}

    def timed(what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.monotonic()
        answer = call(*arguments)
        seconds[what] = seconds.get(what, 0.0) + time.monotonic() - began
        return answer

    with (
        duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(tmp_path / "spill")}) as tpch,
        Postgres(settings={"fsync": "off", "max_wal_size": "4GB", "shared_buffers": "512MB", "work_mem": "128MB"}) as server,
        psycopg.connect(server.dsn, autocommit=True) as session,
        psycopg.connect(server.dsn) as past,
    ):
        tpch.execute(f"load '{extension_file('tpch')}'")
        asked = queries(tpch)
        timed("dbgen, COPY into PostgreSQL, its indexes", fill, tpch, session, tmp_path)
        (tmp_path / "dsn").write_text(server.dsn)
        (tmp_path / "icelake.toml").write_text(PROJECT)
        loaded = json.loads(timed("icelake sync, the first", icelake, tmp_path, "sync", "--json"))

        follower = subprocess.Popen([ICELAKE, "sync", "--follow", "-C", tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not session.execute("select from pg_replication_slots where active and not temporary").fetchall():
            assert follower.poll() is None
            time.sleep(0.05)
        changes = Changes(session, random.Random(22))
        moments = []
        for source in (past, session):
            timed("changes in PostgreSQL", changes.run, TRANSACTIONS)
            report = json.loads(timed("the rest of them in the lake, and verify", icelake, tmp_path, "verify", "--json"))
            assert report["equal"], report
            assert {table["name"] for table in report["tables"]} == {f"public.{table}" for table in TABLES}
            moments.append((report["lsn"], source))
            if source is past:
                # Nothing was written since: what this transaction sees is what verify saw, and stays so.
                past.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                past.execute("select 1")
        assert set(changes.kept) == set(TABLES)

        answers: dict[int, list[list[tuple[Any, ...]]]] = {number: [] for number in asked}
        with Lakehouse.open(tmp_path) as lake, DuckDBEngine([lake.project.warehouse], scratch=lake.project.lake / "scratch") as engine:
            for lsn, source in moments:
                at = lake.resolve(lsn)
                for number, query in asked.items():
                    ours = timed("the 22 queries twice, DuckDB on the lake", engine.query, query, at.tables)
                    theirs = timed("the 22 queries twice, PostgreSQL", source.execute, query).fetchall()
                    same(ours, theirs)
                    answers[number].append(theirs)
                with pa.ipc.open_stream(icelake(tmp_path, "query", asked[9], "--at", lsn, "--arrow")) as answer:
                    same(answer.read_all(), source.execute(asked[9]).fetchall())
            (applied,) = (state["applier"] for state in lake.status()["sources"])
            tables = lake.tables()
        # At a small scale a query can be without rows, and not all must answer otherwise after a while.
        assert sum(bool(then or now) for then, now in answers.values()) >= 20
        assert sum(then != now for then, now in answers.values()) >= 15
        follower.terminate()
        assert follower.wait(600) == 0
    rows = sum(len(answer) for twice in answers.values() for answer in twice)
    print(f"\nTPC-H at scale {SCALE:g}: {loaded['rows_loaded']:,} rows loaded; {applied['changes']:,} changes in", end=" ")
    print(f"{applied['transactions']:,} transactions and {applied['commits']:,} commits; {rows:,} rows of answers the same")
    for what, took in seconds.items():
        print(f"{took:9.1f} s  {what}")
    for table in tables:
        print(f"{table['rows']:11,} rows, {table['files']} files, {table['delete_files']} deletes  {table['name']}")
