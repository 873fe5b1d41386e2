"""Which rows and columns are compared: multisets, keys of the mirror's own, partitions, inheritance, renames, sizes."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from icelake.errors import Corrupt, Unreachable
from icelake.model.relation import Column, Relation, TableId
from icelake.ports import arrow_schema
from icelake.tables.table import Table
from icelake.verify.lake import RELATION
from icelake.verify.source import SourceSnapshot

T = TableId("public", "t")


def mirror(
    pair: Any, rows: Sequence[Mapping[str, Any]], types: dict[str, str], key: tuple[str, ...], name: str = "t", **claims: Any
) -> None:
    """A mirror of ``types``' columns with these rows, made from the catalogs and by hand. ``claims``: what icelake.relation says else."""
    found = pair.connection.execute(
        "SELECT attrelid, attname, attnum, atttypid, atttypmod, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute "
        "WHERE attrelid = ('public.' || quote_ident(%s))::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (name,),
    ).fetchall()
    columns = tuple(
        Column(column, attnum, oid, typmod, text, types[column], nullable)
        for _, column, attnum, oid, typmod, text, nullable in found
        if column in types
    )
    relation = Relation(found[0][0], "public", name, columns, key or (columns[0].name,))
    pair.put(f"public.{name}", pa.Table.from_pylist([dict(row) for row in rows], schema=arrow_schema(columns)), relation)
    if not key:
        claims = {"identity": "full", "key": [], **claims}
    if claims:
        claim(pair, relation.id, **claims)


def claim(pair: Any, table: TableId, policy: str | None = None, **claims: Any) -> None:
    document = {**json.loads(pair.catalog.load(table).metadata["properties"][RELATION]), **claims}
    if policy is not None:
        document["columns"] = [{**column, "out-of-range": policy} for column in document["columns"]]
    opened = Table.open(pair.catalog.load(table), pair.storage, pair.clock, pair.chance)
    pair.catalog.commit([opened.delta().prepare({}, {RELATION: json.dumps(document)})])


def only(pair: Any) -> dict[str, Any]:
    (table,) = pair.verify()["tables"]
    return table


def counts(table: dict[str, Any]) -> tuple[int, int, int]:
    return table["missing"], table["extra"], table["different"]


@pytest.mark.parametrize("identity", ["full", "none"])
def test_without_a_key_the_rows_are_a_multiset(pair, identity: str) -> None:
    pair.sql("CREATE TABLE t (a int, v text); INSERT INTO t VALUES (1, 'x'), (1, 'x'), (NULL, NULL), (2, 'y')")
    rows: list[dict[str, Any]] = [{"a": 2, "v": "y"}, {"a": 1, "v": "x"}, {"a": None, "v": None}, {"a": 1, "v": "x"}]
    mirror(pair, rows, {"a": "int", "v": "string"}, (), identity=identity)
    table = only(pair)
    assert (table["equal"], table["problems"], table["source_rows"]) == (True, [], 4)


def test_a_multiset_counts_how_often_a_row_is_there(pair) -> None:
    pair.sql("CREATE TABLE t (a int, v text); INSERT INTO t VALUES (1, 'x'), (1, 'x'), (2, 'y')")
    mirror(pair, [{"a": 1, "v": "x"}, {"a": 2, "v": "y"}, {"a": 2, "v": "y"}], {"a": "int", "v": "string"}, ())
    table = only(pair)
    assert (table["equal"], counts(table)) == (False, (1, 1, 0))
    assert table["samples"] == [
        {"key": {"a": "2", "v": "y"}, "side": "lake", "columns": []},
        {"key": {"a": "1", "v": "x"}, "side": "source", "columns": []},
    ]


def test_a_long_value_of_a_row_without_a_key_is_cut_in_the_report(pair) -> None:
    pair.sql("CREATE TABLE t (v text); INSERT INTO t VALUES (repeat('x', 5000))")
    mirror(pair, [], {"v": "string"}, ())
    (sample,) = only(pair)["samples"]
    assert sample["key"] == {"v": "x" * 1000 + "…"}


def test_the_key_is_the_one_the_mirror_has(pair) -> None:
    """As with REPLICA IDENTITY USING INDEX: not the primary key."""
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE, v int); INSERT INTO t VALUES (1, 'a', 10), (2, 'b', 20)")
    types = {"id": "int", "code": "string", "v": "int"}
    mirror(pair, [{"id": 1, "code": "a", "v": 10}, {"id": 3, "code": "b", "v": 20}], types, ("code",))
    table = only(pair)
    assert (table["problems"], counts(table)) == ([], (0, 0, 1))
    assert table["samples"] == [{"key": {"code": "b"}, "side": "both", "columns": ["id"]}]


@pytest.mark.parametrize("unique", ["", "UNIQUE (code) DEFERRABLE", "UNIQUE (code, id)", "EXCLUDE (code WITH =)"])
def test_a_claimed_key_that_nothing_keeps_unique_is_a_problem(pair, unique: str) -> None:
    pair.sql(f"CREATE TABLE t (id int, code int NOT NULL{', ' + unique if unique else ''}); INSERT INTO t VALUES (1, 5)")
    mirror(pair, [{"id": 1, "code": 5}], {"id": "int", "code": "int"}, ("code",))
    table = only(pair)
    assert (table["problems"], counts(table), table["equal"]) == (["nothing in the source keeps (code) unique"], (0, 0, 0), False)


def test_a_claimed_key_that_is_not_there_is_a_problem(pair) -> None:
    pair.sql("CREATE TABLE t (id int, v int); INSERT INTO t VALUES (1, 5)")
    mirror(pair, [{"id": 1, "v": 5}], {"id": "int", "v": "int"}, ("id",))
    claim(pair, T, key=["gone"])
    assert only(pair)["problems"] == ["no key can be compared"]


def test_a_column_is_its_attnum_whatever_it_is_called(pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, a int, b int); INSERT INTO t VALUES (1, 10, 20)")
    mirror(pair, [{"id": 1, "a": 10, "b": 20}], {"id": "int", "a": "int", "b": "int"}, ("id",))
    pair.sql("ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME id TO key")
    table = only(pair)
    assert counts(table) == (0, 0, 0)
    assert table["problems"] == [
        "column id of the lake is called key in the source",
        "column a of the lake is called c in the source",
        "column b of the lake is called a in the source",
    ]
    pair.sql("UPDATE t SET a = 21")
    assert only(pair)["samples"] == [{"key": {"id": "1"}, "side": "both", "columns": ["b"]}]


def test_a_column_that_was_dropped_and_made_anew_is_another(pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, NULL)")
    mirror(pair, [{"id": 1, "v": None}], {"id": "int", "v": "int"}, ("id",))
    pair.sql("ALTER TABLE t DROP v; ALTER TABLE t ADD v int")
    table = only(pair)
    assert (table["equal"], table["problems"]) == (False, ["column v was dropped in the source and made anew"])


def test_a_table_that_was_loaded_again_from_a_dump_is_matched_by_name(pair) -> None:
    pair.sql("CREATE TABLE t (gone int, id int PRIMARY KEY, v int); ALTER TABLE t DROP gone; INSERT INTO t VALUES (1, 5)")
    mirror(pair, [{"id": 1, "v": 5}], {"id": "int", "v": "int"}, ("id",))
    pair.sql("DROP TABLE t; CREATE TABLE t (v int, id int PRIMARY KEY); INSERT INTO t VALUES (5, 1)")
    assert only(pair)["equal"]


def test_a_relation_that_says_nothing_is_an_error(pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY)")
    mirror(pair, [], {"id": "int"}, ("id",), columns=[1])
    with pytest.raises(Corrupt, match="VERIFY_RELATION_CORRUPT"):
        pair.verify()


def test_the_policy_of_a_column_decides_what_an_unfit_value_must_be(pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, n numeric(5,2), d date); INSERT INTO t VALUES (1, 'NaN', 'infinity'), (2, 1.5, NULL)")
    rows: list[dict[str, Any]] = [{"id": 1, "n": None, "d": None}, {"id": 2, "n": Decimal("1.50"), "d": None}]
    mirror(pair, rows, {"id": "int", "n": "decimal(5,2)", "d": "date"}, ("id",))
    table = only(pair)
    assert [(sample["key"], sample["columns"]) for sample in table["samples"]] == [({"id": "1"}, ["n", "d"])]
    claim(pair, T, policy="null")
    assert only(pair)["equal"]
    # Policy or not: a value that fits is not NULL.
    pair.sql("UPDATE t SET d = '2024-01-01' WHERE id = 1")
    assert counts(only(pair)) == (0, 0, 1)


def test_a_decimal_the_project_named_holds_what_fits_exactly(pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, n numeric); INSERT INTO t VALUES (1, 1.5), (2, 1.50000), (3, -99.99), (4, 0.001)")
    rows = [{"id": number, "n": Decimal(text)} for number, text in enumerate(["1.50", "1.50", "-99.99", "0.00"], 1)]
    mirror(pair, rows, {"id": "int", "n": "decimal(4,2)"}, ("id",))
    table = only(pair)
    assert [sample["key"] for sample in table["samples"]] == [{"id": "4"}]


def test_a_partitioned_table_is_the_rows_of_all_its_leaves(pair) -> None:
    pair.sql(
        "CREATE TABLE t (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE old PARTITION OF t FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');"
        "CREATE TABLE new PARTITION OF t FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY LIST (id);"
        "CREATE TABLE new_1 PARTITION OF new FOR VALUES IN (1); CREATE TABLE new_rest (at date NOT NULL, gone int, id int NOT NULL);"
        "ALTER TABLE new_rest DROP gone; ALTER TABLE new ATTACH PARTITION new_rest DEFAULT;"
        "INSERT INTO t VALUES (1, '2020-05-05'), (1, '2021-05-05'), (2, '2021-06-06')"
    )
    days = [dt.date(2020, 5, 5), dt.date(2021, 5, 5), dt.date(2021, 6, 6)]
    rows = [{"id": number, "at": day} for number, day in zip([1, 1, 2], days, strict=True)]
    mirror(pair, rows, {"id": "int", "at": "date"}, ("id", "at"))
    table = only(pair)
    assert (table["equal"], table["problems"], table["source_rows"]) == (True, [], 3)
    # A detached partition takes its rows along.
    pair.sql("ALTER TABLE t DETACH PARTITION old")
    table = only(pair)
    assert (counts(table), table["samples"][0]["key"]) == ((0, 1, 0), {"id": "1", "at": "2020-05-05"})


PARTITIONED = (
    "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF t FOR VALUES FROM (0) TO (10);"
    "CREATE TABLE p2 (id int PRIMARY KEY); INSERT INTO t VALUES (1); INSERT INTO p2 VALUES (11)"
)


def ids(source: SourceSnapshot) -> list[str | None]:
    table = source.describe([T])[T]
    assert table is not None
    return [row["c0"] for batch in source.rows(table, ["id"]) for row in batch.to_pylist()]


@pytest.mark.parametrize("statement", ["TRUNCATE p1", "ALTER TABLE t DETACH PARTITION p1", "DROP TABLE p1", "DROP TABLE t"])
def test_a_leaf_that_changed_behind_the_snapshot_is_refused(pair, statement: str) -> None:
    pair.sql(PARTITIONED)
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        pair.sql(statement)
        with pytest.raises(Unreachable, match="VERIFY_TABLE_CHANGED"):
            source.describe([T])


def test_a_leaf_attached_after_the_snapshot_is_not_read(pair) -> None:
    pair.sql(PARTITIONED)
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        pair.sql("ALTER TABLE t ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)")
        assert ids(source) == ["1"]
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        assert sorted(ids(source), key=str) == ["1", "11"]


def test_a_partitioned_table_without_partitions_is_empty(pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    mirror(pair, [], {"id": "int"}, ("id",))
    assert only(pair)["equal"]


def test_whoever_may_read_the_root_may_verify_it(pair) -> None:
    pair.sql(PARTITIONED)
    role = f"root_{pair.dsn.rsplit('/', 1)[1]}"
    pair.sql(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'; GRANT SELECT ON t TO {role}")
    try:
        with SourceSnapshot(f"{pair.dsn}?user={role}&password=x") as source:
            source.take(30)
            assert ids(source) == ["1"]
    finally:
        pair.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_table_that_took_the_name_is_not_the_table(pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY)")
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        pair.sql("ALTER TABLE t RENAME TO u; CREATE TABLE t (id int PRIMARY KEY)")
        with pytest.raises(Unreachable, match="VERIFY_TABLE_CHANGED"):
            source.describe([T])


def test_the_children_of_a_table_are_not_its_rows(pair) -> None:
    pair.sql(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE child () INHERITS (t); INSERT INTO t VALUES (1); INSERT INTO child VALUES (2)"
    )
    mirror(pair, [{"id": 1}], {"id": "int"}, ("id",))
    assert only(pair)["equal"]


def test_a_generated_column_is_compared_if_the_lake_has_it(pair) -> None:
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, s int GENERATED ALWAYS AS (id * 2) STORED, v int GENERATED ALWAYS AS (id * 3) VIRTUAL)")
    pair.sql("INSERT INTO t VALUES (1)")
    mirror(pair, [{"id": 1, "s": 3}], {"id": "int", "s": "int"}, ("id",))
    assert only(pair)["samples"] == [{"key": {"id": "1"}, "side": "both", "columns": ["s"]}]


def test_any_name_is_only_a_name(pair) -> None:
    names = ['a"b', "{0}", "ключ", "select", "t.x", "e0", "u", "n'", "%s", "l0", "c0"]
    declared = ", ".join('"' + name.replace('"', '""') + '" int[]' for name in names[1:])
    pair.sql(f'CREATE TABLE "T x{{}}" ("a""b" int PRIMARY KEY, {declared})')
    values = ", ".join(f"'{{{number},NULL}}'" for number in range(1, len(names)))
    pair.sql(f'INSERT INTO "T x{{}}" VALUES (1, {values})')
    rows = [{'a"b': 1, **{name: f"{{{number},NULL}}" for number, name in enumerate(names[1:], 1)}}]
    mirror(pair, rows, {'a"b': "int", **dict.fromkeys(names[1:], "string")}, ('a"b',), "T x{}")
    assert only(pair)["equal"]


def test_as_many_columns_as_a_table_can_have(pair) -> None:
    names = [f"c{number}" for number in range(1599)]
    pair.sql(f"CREATE TABLE t (id int PRIMARY KEY, {', '.join(f'{name} int' for name in names)})")
    pair.sql("INSERT INTO t (id, c1598) VALUES (1, 5), (2, 6)")
    rows = [{"id": 1, "c1598": 5}, {"id": 2, "c1598": 7, "c3": 0}]
    mirror(pair, rows, dict.fromkeys(["id", *names], "int"), ("id",))
    assert only(pair)["samples"] == [{"key": {"id": "2"}, "side": "both", "columns": ["c3", "c1598"]}]


def test_large_values_are_compared_whole(pair) -> None:
    size = 5_000_000
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, b bytea, v text)")
    pair.sql(f"INSERT INTO t VALUES (1, decode(repeat('ab', {size}), 'hex'), repeat('x', {size}))")
    types = {"id": "int", "b": "binary", "v": "string"}
    mirror(pair, [{"id": 1, "b": b"\xab" * size, "v": "x" * (size - 1) + "y"}], types, ("id",))
    assert only(pair)["samples"] == [{"key": {"id": "1"}, "side": "both", "columns": ["v"]}]
