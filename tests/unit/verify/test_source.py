"""The snapshot at an LSN, against a real server."""

import threading
import time
from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from icelake.errors import IcelakeError, Refused, Unreachable
from icelake.model.lsn import format_lsn, parse_lsn
from icelake.model.relation import TableId
from icelake.verify import source as source_module
from icelake.verify.source import SourceSnapshot
from tests.between import Between

T = TableId("public", "t")


def read(source: SourceSnapshot, *expressions: str) -> list[tuple[str | None, ...]]:
    table = source.describe([T])[T]
    assert table is not None
    return [tuple(row.values()) for batch in source.rows(table, expressions) for row in batch.to_pylist()]


def test_it_reads_exactly_the_commits_before_its_lsn(pair) -> None:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY)")
    stop = threading.Event()
    committed: list[tuple[int, int]] = []

    def write() -> None:
        with psycopg.connect(pair.dsn, autocommit=True) as connection:
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute("INSERT INTO t VALUES (%s)", (number,))
                row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
                assert row is not None
                committed.append((number, parse_lsn(row[0])))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            with SourceSnapshot(pair.dsn) as source:
                lsn = source.take(30)
                seen = {int(row[0] or 0) for row in read(source, "id")}
                # A commit that was over before L is in it; nothing whose transaction began after it.
                known = list(committed)
                assert {number for number, after in known if after <= lsn} <= seen
                assert seen == set(range(1, len(seen) + 1))
                later = [number for number, _ in known[1:] if known[number - 2][1] > lsn]
                assert not seen.intersection(later)
    finally:
        stop.set()
        writer.join()


def test_a_commit_after_the_consistent_point_is_not_read_however_soon_it_came(pair) -> None:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)")

    class Raced(SourceSnapshot):
        def _command(self, command: str, seconds: float):
            result = super()._command(command, seconds)
            if command.startswith("CREATE_REPLICATION_SLOT"):
                pair.sql("INSERT INTO t VALUES (2)")
            return result

    with Raced(pair.dsn) as source:
        source.take(30)
        assert read(source, "id") == [("1",)]


def test_no_slot_is_left_while_it_reads(pair) -> None:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY)")
    slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'icelake_verify_%'"
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        deadline = time.monotonic() + 10
        while pair.connection.execute(slots).fetchone() != (0,) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert pair.connection.execute(slots).fetchone() == (0,)
        held = pair.connection.execute("SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = %s", (source.pid,)).fetchone()
        assert held == (True,)


def test_the_time_out_names_the_transaction_it_waits_for_and_leaves_nobody_waiting(pair) -> None:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY)")
    with psycopg.connect(pair.dsn, application_name="slow batch") as slow:
        slow.execute("INSERT INTO t VALUES (1)")
        with SourceSnapshot(pair.dsn) as source:
            with pytest.raises(Unreachable, match="VERIFY_WAITS_FOR_TRANSACTION") as caught:
                source.take(0.4)
            assert f"pid {slow.info.backend_pid}" in str(caught.value)
            assert "slow batch" in str(caught.value)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'icelake verify'"
        deadline = time.monotonic() + 10
        while pair.connection.execute(waiting).fetchone() != (0,) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert pair.connection.execute(waiting).fetchone() == (0,)


def test_values_arrive_as_postgresql_prints_them(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "BATCH_BYTES", 64)
    values = ["", "a", '"', '""', ",", "\n", "\r", "\r\n", "\\.", "\\N", "\\", " x ", "é𝄞", "NULL", "x" * 100_000, "tab\there"]
    pair.sql("CREATE TABLE t (id int PRIMARY KEY, s text, c char(5))")
    with pair.connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (%s, %s, 'ab')", list(enumerate([None, *values])))
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        assert sorted(read(source, "id", "s", "c"), key=lambda row: int(row[0] or 0)) == [
            (str(number), value, "ab   ") for number, value in enumerate([None, *values])
        ]
        assert {row[0] for row in read(source, "s")} == {None, *values}


def test_a_table_is_described_as_the_snapshot_has_it(pair) -> None:
    pair.sql(
        'CREATE TABLE t (a int, gone int, "B b" numeric(5,2), g int GENERATED ALWAYS AS (a + 1) STORED, PRIMARY KEY ("B b", a) INCLUDE (g))'
    )
    pair.sql("ALTER TABLE t DROP COLUMN gone")
    pair.sql("CREATE TYPE mood AS ENUM ('ok'); CREATE VIEW v AS SELECT 1 AS one; ALTER TABLE t ADD m mood")
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        found = source.describe([T, TableId("public", "v"), TableId("public", "nothing")])
        table = found[T]
        assert table is not None
        assert [(c.name, c.attnum, c.generated, c.type.name, c.type.text) for c in table.columns] == [
            ("a", 1, False, "int4", "integer"),
            ("B b", 3, False, "numeric", "numeric(5,2)"),
            ("g", 4, True, "int4", "integer"),
            ("m", 5, False, "", "public.mood"),
        ]
        assert table.keys == {frozenset(("B b", "a"))}
        assert list(found.values())[1:] == [None, None]


@pytest.mark.parametrize("statement", ["TRUNCATE t", "ALTER TABLE t ALTER id TYPE int", "DROP TABLE t", "VACUUM FULL t"])
def test_a_table_that_was_rewritten_behind_the_snapshot_is_refused(pair, statement: str) -> None:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)")
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        pair.sql(statement)
        with pytest.raises(Unreachable, match="VERIFY_TABLE_CHANGED"):
            source.describe([T])


def test_a_table_cannot_be_truncated_while_it_is_read(pair) -> None:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)")
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        source.describe([T])
        with pytest.raises(psycopg.errors.LockNotAvailable):
            pair.sql("SET lock_timeout = '50ms'; TRUNCATE t")
        assert read(source, "id") == [("1",)]


def _fails(action: Callable[[], object]) -> IcelakeError:
    with pytest.raises(IcelakeError) as caught:
        action()
    return caught.value


def test_errors_say_what_to_do_and_never_show_the_password(pair) -> None:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1); ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    suffix = pair.dsn.rsplit("/", 1)[1]
    pair.sql(f"CREATE ROLE plain_{suffix} LOGIN PASSWORD 'hidden-word'; CREATE ROLE repl_{suffix} LOGIN REPLICATION PASSWORD 'hidden-word'")

    def as_role(role: str, password: str = "hidden-word") -> str:
        return make_conninfo(pair.dsn, user=f"{role}_{suffix}", password=password)

    def take(dsn: str) -> None:
        with SourceSnapshot(dsn) as source:
            source.take(30)
            read(source, "id")

    try:
        errors = [
            _fails(lambda: take("host=127.0.0.1 port=1 password=hidden-word user=x")),
            _fails(lambda: take("hidden-word hidden-word")),
            _fails(lambda: take(as_role("plain", "hidden-word-2"))),
            _fails(lambda: take(as_role("plain"))),
            _fails(lambda: take(as_role("repl"))),
        ]
        pair.sql(f"GRANT SELECT ON t TO repl_{suffix}")
        errors.append(_fails(lambda: take(as_role("repl"))))
    finally:
        pair.sql(f"DROP OWNED BY repl_{suffix}; DROP ROLE plain_{suffix}, repl_{suffix}")
    assert [error.code for error in errors] == [
        "SOURCE_UNREACHABLE",
        "SOURCE_BAD_DSN",
        "SOURCE_UNREACHABLE",
        "VERIFY_NO_WALSENDER",
        "VERIFY_PRIVILEGE",
        "VERIFY_PRIVILEGE",
    ]
    assert "row-level security" in errors[-1].what
    assert isinstance(errors[-1], Refused)
    assert all("hidden-word" not in str(error) and error.fix for error in errors)


def test_a_table_that_is_locked_is_waited_for_and_named(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(source_module._SETTINGS, "lock_timeout", "50ms")
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY)")
    with SourceSnapshot(pair.dsn) as source, psycopg.connect(pair.dsn) as somebody:
        source.take(30)
        somebody.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unreachable, match="VERIFY_TABLE_LOCKED"):
            source.describe([T])


def test_what_postgresql_cannot_answer_is_said_with_its_sqlstate(pair) -> None:
    pair.sql("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (0)")
    with SourceSnapshot(pair.dsn) as source:
        source.take(30)
        with pytest.raises(Refused, match=r"(?s)VERIFY_SOURCE_FAILED.*22012"):
            read(source, "1 / id")


def test_a_server_of_an_older_version_is_refused(pair) -> None:
    with Between(pair.dsn, lambda said: said.replace(b"server_version\x0018.", b"server_version\x0013.")) as older:
        with pytest.raises(Refused, match=r"SOURCE_TOO_OLD.*PostgreSQL 13"), SourceSnapshot(older.dsn):
            pass


def test_the_lsn_is_where_a_slot_would_start(pair) -> None:
    with SourceSnapshot(pair.dsn) as source:
        lsn = source.take(30)
        now = pair.connection.execute("SELECT pg_current_wal_insert_lsn() >= %s::pg_lsn", (format_lsn(lsn),)).fetchone()
        assert now == (True,)
        assert source.system_id == pair.system_id
