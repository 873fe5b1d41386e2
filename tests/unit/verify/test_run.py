"""verify, with a real database beside a real lake: what is right is equal, and every single wrong value is found by key and column."""

import datetime as dt
import decimal
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from icelake.errors import Corrupt, ProjectError, Refused
from icelake.model.relation import Relation, TableId
from icelake.observe.desk import SqliteDesk
from icelake.ports import arrow_schema, arrow_type
from icelake.verify.run import AtDesk, InProcess

LITERALS: dict[str, list[str]] = {
    "bool": ["true", "false"],
    "int2": ["0", "-32768", "32767"],
    "int4": ["0", "-2147483648", "2147483647"],
    "int8": ["0", "-9223372036854775808", "9223372036854775807", "9223372036854775806"],
    "oid": ["0", "4294967295"],
    "float4": ["0", "-0", "1e-45", "1.1", "1.1000001", "3.4028235e38", "NaN", "Infinity", "-Infinity", "16777217"],
    "float8": [
        "0",
        "-0",
        "5e-324",
        "0.1",
        "0.10000000000000002",
        "1.7976931348623157e308",
        "1.7976931348623155e308",
        "2.2250738585072014e-308",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e22",
    ],
    "numeric(12,2)": ["0", "-0.05", "0.05", "9999999999.99", "9999999999.98", "-1.5"],
    "numeric(38,38)": ["0", "-0.00000000000000000000000000000000000001", "0." + "9" * 38],
    "numeric(38,0)": ["9" * 38, "-" + "9" * 38, "7"],
    "numeric(3,3)": ["0.5", "-0.125"],
    "numeric": ["0", "1.10", "1.1", "NaN", "Infinity", "-Infinity", "1e-20", "9" * 60 + ".5"],
    "text": ["", " ", "a,b", '"', "''", "\n", "\r\n", "\\.", "\\N", "é", "𝄞", "NULL", "t", "x" * 20000],
    "varchar(10)": ["", "abc  "],
    "char(5)": ["", "ab", "ab  x"],
    "name": ["pg", ""],
    '"char"': ["a", ""],
    "bytea": ["", "\\x00", "\\xff00ab", "\\x" + "5c" * 300],
    "date": ["1970-01-01", "2024-02-29", "4713-11-24 BC", "0001-01-01", "10000-01-01", "5874897-12-31"],
    "time": ["00:00:00", "23:59:59.999999", "12:00:00.5"],
    "timetz": ["00:00:00+00", "23:59:59.999999-15:59", "12:30:00.1+05:30"],
    "timestamp": [
        "1970-01-01",
        "1969-12-31 23:59:59.999999",
        "4713-11-24 00:00:00 BC",
        "0001-01-01 00:00:00.000001",
        "10000-01-01 01:02:03.4",
    ],
    "timestamptz": [
        "1970-01-01 00:00:00+00",
        "2024-07-01 12:00:00.000001+02",
        "4713-11-24 00:00:00+00 BC",
        "294246-01-01 00:00:00+00",
        "294246-01-01 00:00:00.000001+00",
    ],
    "uuid": ["00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-4fff-bfff-ffffffffffff"],
    "json": ['{"a":  1}', '"x"', "null", '{"a": 1, "a": 2}'],
    "jsonb": ['{"a":  1}', '"\\u00e9"', "null", "[1.0, 1.00]"],
}


def test_every_type_is_equal_and_every_value_is_told_from_its_neighbour(pair) -> None:
    """A column a type: the right lake is equal; with each row's values in its neighbour's place, exactly the columns that differ do."""
    columns = {f"v {number}": kind for number, kind in enumerate(LITERALS)}
    declared = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
    rows: list[list[str | None]] = [
        [next(iter(literals[row - 1 : row]), None) for literals in LITERALS.values()] for row in range(1 + max(map(len, LITERALS.values())))
    ]
    rows[0] = [None] * len(columns)
    marks = ", ".join(f"%s::text::{kind}" for kind in columns.values())
    for name in ("t_right", "t_wrong"):
        pair.sql(f"CREATE TABLE {name} (id int PRIMARY KEY, {declared})")
        with pair.connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {name} VALUES (%s, {marks})", [[number, *row] for number, row in enumerate(rows)])
    right = pair.rows("public.t_right")
    pair.put("public.t_right", right)
    pair.put("public.t_wrong", right.take(pa.array([*range(1, right.num_rows), 0])).set_column(0, right.schema.field(0), right.column(0)))

    # ``concat`` prints as COPY does; a cast to text would cut char(5)'s padding.
    texts = ", ".join(f'CASE WHEN "{column}" IS NOT NULL THEN concat("{column}") END' for column in columns)
    pair.sql("SET TimeZone = 'UTC'")
    printed = pair.connection.execute(f"SELECT {texts} FROM t_right ORDER BY id").fetchall()
    for place, (kind, literals) in enumerate(LITERALS.items()):
        assert len({row[place] for row in printed}) == len(literals) + 1, kind
    report = pair.verify(samples=100)
    assert [(table["name"], table["equal"], table["problems"]) for table in report["tables"]] == [
        ("public.t_right", True, []),
        ("public.t_wrong", False, []),
    ]
    wrong = report["tables"][1]
    assert (wrong["missing"], wrong["extra"], wrong["different"]) == (0, 0, len(rows))
    for sample in wrong["samples"]:
        here = int(sample["key"]["id"])
        there = (here + 1) % len(rows)
        unlike = [column for column, a, b in zip(columns, printed[here], printed[there], strict=True) if a != b]
        assert sample["columns"] == unlike


KINDS = [
    "boolean",
    "int",
    "long",
    "float",
    "double",
    "decimal(9, 2)",
    "string",
    "binary",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "uuid",
]
POSTGRES = dict(
    zip(
        KINDS,
        ["bool", "int4", "int8", "float4", "float8", "numeric(9,2)", "text", "bytea", "date", "time", "timestamp", "timestamptz", "uuid"],
        strict=True,
    )
)
KEYS = ["int", "long", "string", "date", "timestamptz", "uuid", "decimal(9, 2)"]


def value(chance: random.Random, kind: str) -> Any:
    match kind:
        case "boolean":
            return chance.random() < 0.5
        case "int":
            return chance.choice([0, chance.randint(-(2**31), 2**31 - 1)])
        case "long":
            return chance.choice([chance.randint(-10, 10), chance.randint(-(2**63), 2**63 - 1)])
        case "float" | "double":
            number = chance.choice([0.0, chance.gauss(0, 1), chance.uniform(-1e30, 1e30)])
            return pa.scalar(number, arrow_type(kind)).as_py()
        case "decimal(9, 2)":
            return decimal.Decimal(chance.randint(-(10**9) + 1, 10**9 - 1)).scaleb(-2)
        case "string":
            return "".join(chance.choice("ab,\"'\n\r\\N:0né𝄞 ") for _ in range(chance.randint(0, 6)))
        case "binary":
            return chance.randbytes(chance.randint(0, 5))
        case "date":
            return dt.date.fromordinal(chance.randint(1, dt.date.max.toordinal()))
        case "time":
            return (dt.datetime.min + dt.timedelta(microseconds=chance.randrange(86_400_000_000))).time()
        case "timestamp":
            return dt.datetime(1, 1, 1) + dt.timedelta(microseconds=chance.randrange(3 * 10**17))
        case "timestamptz":
            return dt.datetime(1, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=chance.randrange(3 * 10**17))
    return uuid.UUID(bytes=chance.randbytes(16))


def lake_rows(relation: Relation, rows: list[dict[str, Any]]) -> pa.Table:
    plain = [{name: one.bytes if isinstance(one, uuid.UUID) else one for name, one in row.items()} for row in rows]
    return pa.Table.from_pylist(plain, schema=arrow_schema(relation.columns))


@pytest.mark.parametrize("seed", [1, 2])
def test_any_single_mutation_of_a_random_table_is_found(pair, seed: int) -> None:
    """The lake is written from Python values, not from what PostgreSQL says they are: neither side's text can hide behind the other's."""
    chance = random.Random(seed)
    expected: dict[str, tuple[str, dict[str, Any], str | None]] = {}
    sorts: dict[tuple[str, str], str] = {}
    for number in range(10):
        name = f"t{number}"
        kinds = {f"k{n}": chance.choice(KEYS) for n in range(chance.randint(1, 3))}
        keys = list(kinds)
        sorts |= {(f"public.{name}", key): kinds[key] for key in keys}
        kinds |= {f"v {n}": chance.choice(KINDS) for n in range(chance.randint(1, 6))}
        order = chance.sample(list(kinds), len(kinds))
        columns = ", ".join(f'"{column}" {POSTGRES[kinds[column]]}' for column in order)
        pair.sql(f"CREATE TABLE {name} ({columns}, PRIMARY KEY ({', '.join(keys)}))")
        rows = {}
        for _ in range(chance.randint(1, 40)):
            row = {column: value(chance, kind) if column in keys or chance.random() < 0.85 else None for column, kind in kinds.items()}
            rows[tuple(row[key] for key in keys)] = row
        listed = list(rows.values())
        with pair.connection.cursor() as cursor:
            marks = ", ".join(["%s"] * len(order))
            cursor.executemany(f"INSERT INTO {name} VALUES ({marks})", [[row[column] for column in order] for row in listed])
        lake = [dict(row) for row in listed]
        chosen = chance.randrange(len(lake))
        column = chance.choice([one for one in order if one not in keys])
        match number % 5:
            case 0:
                old = lake[chosen][column]
                while lake[chosen][column] == old:
                    lake[chosen][column] = chance.choice([None, value(chance, kinds[column])])
                expected[f"public.{name}"] = ("different", listed[chosen], column)
            case 1:
                expected[f"public.{name}"] = ("missing", lake.pop(chosen), None)
            case 2:
                lake.append(dict(lake[chosen]))
                expected[f"public.{name}"] = ("extra", listed[chosen], None)
            case 3:
                pair.connection.execute(
                    f"DELETE FROM {name} WHERE ({', '.join(keys)}) = ({', '.join(['%s'] * len(keys))})",
                    [listed[chosen][key] for key in keys],
                )
                expected[f"public.{name}"] = ("extra", listed[chosen], None)
            case _:
                pass
        relation = pair.relation(f"public.{name}")
        chance.shuffle(lake)
        pair.put(f"public.{name}", lake_rows(relation, lake))
    report = pair.verify()
    assert len(report["tables"]) == 10
    for table in report["tables"]:
        counts = {kind: table[kind] for kind in ("missing", "extra", "different")}
        if table["name"] not in expected:
            assert table["equal"], table
            continue
        kind, row, changed = expected[table["name"]]
        assert counts == {"missing": 0, "extra": 0, "different": 0, kind: 1}, table
        (sample,) = table["samples"]
        assert sample["side"] == {"missing": "source", "extra": "lake", "different": "both"}[kind]
        assert sample["columns"] == ([changed] if changed else [])
        found = pair.connection.execute(
            "SELECT " + ", ".join(f"%s = %s::{POSTGRES[sorts[table['name'], key]]}" for key in sample["key"]),
            [part for key, text in sample["key"].items() for part in (row[key], text)],
        ).fetchone()
        assert found is not None
        assert all(found)
    assert not report["equal"]


def simple(pair, rows: int = 3) -> TableId:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
    pair.sql(f"INSERT INTO t SELECT i, 'value ' || i FROM generate_series(1, {rows}) i")
    pair.mirror("public.t")
    return TableId("public", "t")


def test_the_report_is_what_the_command_promises(pair, capfd: pytest.CaptureFixture[str]) -> None:
    simple(pair)
    seen: list[dict[str, Any]] = []
    report = pair.verify(report=seen.append)
    assert capfd.readouterr().out == ""
    assert report["equal"] is True
    assert set(report) == {"equal", "lsn", "cut", "tables", "histories", "skipped", "held"}
    (table,) = report["tables"]
    assert table == {
        "name": "public.t",
        "equal": True,
        "source_rows": 3,
        "lake_rows": 3,
        "missing": 0,
        "extra": 0,
        "different": 0,
        "problems": [],
        "samples": [],
    }
    assert report["held"]["pid"] > 0
    assert {one["phase"] for one in seen} >= {"source"}
    # Nothing is left: no lease, no scratch, no slot.
    assert list(pair.catalog.leases()) == []
    assert list(pair.scratch.iterdir()) == []


def test_the_source_may_go_on_after_the_lsn(pair) -> None:
    simple(pair)

    def bring(lsn: int) -> int:
        pair.sql("INSERT INTO t VALUES (99, 'later'); UPDATE t SET v = 'later' WHERE id = 1; DELETE FROM t WHERE id = 2")
        return pair.cut(lsn)

    assert pair.verify(bring=bring)["equal"]
    assert not pair.verify()["equal"]


def test_with_an_applier_in_another_process_word_goes_over_the_desk(pair, tmp_path: Path) -> None:
    """The applier's side is played here: it answers with a cut at exactly the LSN, and a lease on it."""
    table = simple(pair)
    path = tmp_path / "desk.db"
    done = threading.Event()

    def applier() -> None:
        desk = SqliteDesk(path)
        while not done.is_set():
            wanted = desk.hold_wanted()
            if wanted is not None:
                desk.hold_granted(wanted.id)
                if wanted.lsn is not None:
                    lease = pair.catalog.lease("applier", {table: pair.snapshots[str(table)]}, 60)
                    desk.hold_answered(wanted.id, pair.cut(wanted.lsn), lease.id)
            time.sleep(0.005)
        desk.close()

    thread = threading.Thread(target=applier)
    thread.start()
    asking = SqliteDesk(path)
    try:
        report = pair.verify(handshake=AtDesk(asking, pair.catalog))
    finally:
        done.set()
        thread.join()
        asking.close()
    assert report["equal"]
    assert list(pair.catalog.leases()) == []


def test_rows_under_deletion_vectors_are_not_rows(pair) -> None:
    table = simple(pair, 10)
    pair.delete(table, 4)
    (result,) = pair.verify()["tables"]
    assert (result["source_rows"], result["lake_rows"], result["missing"]) == (10, 9, 1)
    assert result["samples"] == [{"key": {"id": "5"}, "side": "source", "columns": []}]


def test_the_snapshot_of_the_cut_is_read_not_the_newest(pair) -> None:
    table = simple(pair)

    def bring(lsn: int) -> int:
        cut = pair.cut(lsn)
        pair.delete(table, 0)
        return cut

    assert pair.verify(bring=bring)["equal"]


def test_an_empty_table_is_equal_to_an_empty_table(pair) -> None:
    simple(pair, 0)
    assert pair.verify()["equal"]


def test_a_mirror_that_is_not_in_the_cut_is_skipped_and_not_equal(pair) -> None:
    simple(pair)
    pair.sql("CREATE TABLE loading (id bigint PRIMARY KEY)")
    pair.mirror("public.loading")
    del pair.snapshots["public.loading"]
    report = pair.verify()
    assert report["tables"][0]["equal"]
    assert [one["name"] for one in report["skipped"]] == ["public.loading"]
    assert not report["equal"]
    assert pair.verify("public.t")["equal"]
    assert pair.verify("t")["equal"]


def test_a_lake_without_mirrors_proves_nothing(pair) -> None:
    assert not pair.verify()["equal"]


def test_an_unknown_table_is_a_usage_error(pair) -> None:
    simple(pair)
    with pytest.raises(ProjectError, match=r"name one of: public\.t"):
        pair.verify("public.q")


def test_columns_that_only_one_side_has_are_named(pair) -> None:
    simple(pair)
    pair.sql("ALTER TABLE t ADD fresh int; ALTER TABLE t RENAME v TO w; ALTER TABLE t ADD g int GENERATED ALWAYS AS (1) STORED")
    (table,) = pair.verify()["tables"]
    assert not table["equal"]
    assert table["problems"] == [
        "column v of the lake is called w in the source",
        "column fresh is in the source but not in the lake",
    ]
    assert (table["source_rows"], table["lake_rows"], table["different"]) == (3, 3, 0)


def test_a_type_the_lake_cannot_hold_truly_is_named(pair) -> None:
    simple(pair)
    pair.sql("ALTER TABLE t ALTER id TYPE float8")
    (table,) = pair.verify()["tables"]
    assert not table["equal"]
    assert any("column id is double precision in the source" in problem for problem in table["problems"])


def test_a_table_the_source_does_not_have_is_all_extra(pair) -> None:
    simple(pair)
    pair.sql("DROP TABLE t")
    (table,) = pair.verify()["tables"]
    assert (table["lake_rows"], table["extra"], table["equal"]) == (3, 3, False)
    assert table["problems"] == ["the source has no such table"]


def test_a_table_whose_key_was_dropped_is_compared_by_what_was_its_key(pair) -> None:
    simple(pair)
    pair.sql("ALTER TABLE t DROP CONSTRAINT t_pkey; UPDATE t SET v = 'x' WHERE id = 1")
    (table,) = pair.verify()["tables"]
    assert table["problems"] == ["nothing in the source keeps (id) unique"]
    assert (table["missing"], table["extra"], table["different"]) == (0, 0, 1)


def test_a_cut_beyond_the_snapshot_is_refused_and_nothing_stays_leased(pair) -> None:
    simple(pair)
    with pytest.raises(Refused, match="VERIFY_CUT_TOO_LATE"):
        pair.verify(bring=lambda lsn: pair.cut(lsn + 1))
    assert list(pair.catalog.leases()) == []


def test_another_server_is_refused(pair) -> None:
    simple(pair)
    pair.system_id = "1"
    with pytest.raises(Refused, match="VERIFY_OTHER_SERVER"):
        pair.verify()


def test_a_cut_that_is_gone_is_refused(pair) -> None:
    simple(pair)
    with pytest.raises(Refused, match="VERIFY_CUT_GONE"):
        pair.verify(bring=lambda lsn: 12345)


def test_a_damaged_data_file_is_an_error_not_a_difference(pair) -> None:
    table = simple(pair)
    location = pair.catalog.load(table).metadata["location"]
    (file,) = [one.location for one in pair.storage.list(f"{location}/data") if one.location.endswith(".parquet")]
    with open(file, "r+b") as data:
        data.seek(4)
        data.write(b"\xff" * 40)
    with pytest.raises(Corrupt, match="VERIFY_LAKE_UNREADABLE"):
        pair.verify()


def test_a_value_larger_than_the_memory_is_said(pair) -> None:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t VALUES (1, repeat('x', 40000000))")
    pair.mirror("public.t")
    with pytest.raises(Refused, match="VERIFY_NO_SPACE"):
        pair.verify("public.t", memory_limit="32MB")


def test_the_handshake_is_taken_back_after_a_failure(pair) -> None:
    simple(pair)

    class Watched(InProcess):
        withdrawn = 0

        def withdraw(self) -> None:
            self.withdrawn += 1

    def fail(lsn: int) -> int:
        raise Refused("TEST", "the applier failed")

    handshake = Watched(fail, pair.catalog)
    with pytest.raises(Refused, match="TEST"):
        pair.verify(handshake=handshake)
    assert handshake.withdrawn == 1
