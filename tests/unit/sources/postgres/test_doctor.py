"""The doctor's findings: each provoked on a real server, and gone once the statement it prints was executed."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import psycopg
import pytest

from icelake.sources.postgres.doctor import Finding, Question, check
from icelake.sources.postgres.server import PostgresSource
from icelake.stack.binaries import Binaries
from icelake.stack.postgres import Postgres

WELL = {"fsync": "off", "max_slot_wal_keep_size": "4GB", "autovacuum": "off", "max_prepared_transactions": "2"}


@pytest.fixture(scope="module")
def server(binaries: Binaries) -> Iterator[Postgres]:
    with Postgres(version=binaries, settings=WELL) as running:
        execute(
            running.dsn,
            "create table good (id int primary key); create table bad (id int); create role clerk login password 'x';"
            " create role keeper; create role visitor login replication password 'x'; grant usage, create on schema public to visitor",
        )
        yield running


def execute(dsn: str, *statements: str) -> None:
    """Each by itself: ALTER SYSTEM wants no other statement beside it."""
    with psycopg.connect(dsn, autocommit=True) as session:
        for statement in statements:
            session.execute(statement)


def statements(finding: Finding) -> list[str]:
    return re.split(r"(?<=;) (?=[A-Z])", finding.fix)


def found(findings: list[Finding], *levels: str) -> dict[str, Finding]:
    """By code, those that are not well."""
    return {finding.code: finding for finding in findings if finding.level in (levels or ("problem", "warning", "note"))}


def looked(dsn: str, asked: Question, code: str, *, there: bool) -> dict[str, Finding]:
    """What is found once that finding is (or is not) ``there``: a setting takes a moment to be read again, a standby to connect."""
    deadline = time.monotonic() + 30
    while (code in (findings := found(check(dsn, asked)))) is not there:
        assert time.monotonic() < deadline, findings
        time.sleep(0.05)
    return findings


def mended(dsn: str, asked: Question, code: str, admin: str | None = None, then: Callable[[], None] = lambda: None) -> Finding:
    """The finding; what it says mends it, and nothing else is worse for it."""
    before = looked(dsn, asked, code, there=True)
    finding = before[code]
    assert finding.why
    execute(admin or dsn, *statements(finding))
    then()
    assert looked(dsn, asked, code, there=False).keys() <= before.keys() - {code}
    return finding


def role_dsn(server: Postgres, role: str) -> str:
    return server.dsn.replace("postgres:" + server.password, f"{role}:x")


@pytest.mark.versions(18, 14)
def test_a_server_that_is_well(server: Postgres) -> None:
    findings = check(server.dsn, Question(["public.good"], deep=True))
    assert found(findings) == {}
    assert {"REACHABLE", "VERSION", "WAL_LEVEL", "FREE_SLOT", "FREE_WALSENDER", "ROLE", "TABLE"} <= found(findings, "ok").keys()


def test_what_a_role_lacks(server: Postgres) -> None:
    asked, clerk = Question(["public.good"]), role_dsn(server, "clerk")
    assert found(check(clerk, asked)).keys() == {"NO_REPLICATION_PRIVILEGE", "NO_SELECT_PRIVILEGE", "NO_CREATE_PRIVILEGE"}
    assert found(check(clerk, asked), "warning").keys() == {"NO_CREATE_PRIVILEGE"}
    execute(server.dsn, "alter role clerk connection limit 3")
    assert mended(clerk, asked, "CONNECTION_LIMIT", server.dsn).level == "warning"
    mended(clerk, asked, "NO_REPLICATION_PRIVILEGE", server.dsn)
    mended(clerk, asked, "NO_CREATE_PRIVILEGE", server.dsn)
    before = found(check(clerk, asked))
    execute(server.dsn, *statements(before["NO_SELECT_PRIVILEGE"]))
    # Now that it may read the table, it shows that it may not publish it.
    assert found(check(clerk, asked)).keys() == {"NOT_TABLE_OWNER"}
    execute(server.dsn, "alter table good owner to keeper")
    assert mended(clerk, asked, "NOT_TABLE_OWNER", server.dsn).table == "public.good"
    execute(server.dsn, "alter table good owner to postgres")


def test_settings_of_a_role(server: Postgres) -> None:
    execute(server.dsn, "alter role visitor set default_transaction_read_only = on; grant create on database postgres to visitor")
    assert mended(role_dsn(server, "visitor"), Question([]), "READ_ONLY_ROLE", server.dsn).level == "problem"


TABLES: Mapping[str, tuple[str, str]] = {
    "NOT_A_PLAIN_TABLE": ("create unlogged table t (id int primary key)", "problem"),
    "ROW_SECURITY": ("create table t (id int primary key); alter table t enable row level security, force row level security", "problem"),
    "IDENTITY_FULL": ("create table t (id int primary key); alter table t replica identity full", "note"),
}


@pytest.mark.parametrize("code", TABLES)
def test_tables_that_a_statement_mends(server: Postgres, code: str) -> None:
    make, level = TABLES[code]
    visitor = role_dsn(server, "visitor")
    execute(server.dsn, "grant create on database postgres to visitor", "create schema odd authorization visitor")
    try:
        execute(visitor + "?options=-csearch_path%3Dodd", *make.split("; "))
        finding = mended(visitor, Question(["odd.t"]), code, server.dsn)
        assert (finding.level, finding.table) == (level, "odd.t")
    finally:
        execute(server.dsn, "drop schema odd cascade", "alter role visitor nobypassrls")


def test_tables_that_no_statement_mends(server: Postgres) -> None:
    execute(
        server.dsn,
        'create table gen (id int primary key, "twice it" int generated always as (id * 2) stored)',
        "create table words (n numeric primary key)",
        "insert into words select generate_series(1, 1000)",
    )
    findings = found(check(server.dsn, Question(["public.bad", "public.absent", "public.gen", "public.words"], large=8192)))
    assert {code: finding.level for code, finding in findings.items()} == {
        "NO_PRIMARY_KEY": "problem",
        "TABLE_NOT_FOUND": "problem",
        "GENERATED_COLUMNS": "note",
        "LOADED_IN_ONE_GO": "warning",
    }
    assert "twice it" in findings["GENERATED_COLUMNS"].what
    assert findings["LOADED_IN_ONE_GO"].table == "public.words"
    assert all(finding.why for finding in findings.values())


def test_values_the_lake_cannot_hold_are_counted_when_asked(server: Postgres) -> None:
    execute(
        server.dsn,
        'create table odd (id int primary key, d date, "T s" timestamp, z timestamptz, t time, n numeric(9,2), free numeric)',
        "insert into odd values (1, 'infinity', '-infinity', '294276-12-31 23:59:59.999999+00', '24:00', 'NaN', 'NaN')",
        "insert into odd values (2, '5874897-12-31', '4713-01-01 BC', '294247-01-10 04:00:54.775807+00', '23:59:59.999999', 1, 1)",
        "insert into odd values (4, '-infinity', '294247-01-10 04:00:54.775808', 'infinity', null, 'NaN', 'Infinity')",
    )
    assert found(check(server.dsn, Question(["public.odd"]))) == {}
    findings = [finding for finding in check(server.dsn, Question(["public.odd"], deep=True)) if finding.level == "problem"]
    assert {finding.code for finding in findings} == {"VALUES_OUT_OF_CONTRACT"}
    counts = {re.search(r"in (.+) \(", f.what)[1]: int(f.what.split()[0]) for f in findings}  # type: ignore[index]
    assert counts == {"d": 2, "T s": 2, "z": 2, "t": 1, "n": 2}


def test_transactions_that_hold_up_a_slot(server: Postgres) -> None:
    asked = Question([], patience=0.0)
    execute(server.dsn, "create database other")
    with psycopg.connect(server.dsn_of("other"), application_name="nightly job") as running:
        running.execute("create table t (id int)")
        finding = mended(server.dsn, asked, "LONG_TRANSACTION")
        assert "nightly job" in finding.what
        assert found(check(server.dsn, Question([]))) == {}
        running.close()
    execute(server.dsn, "begin; create table t2pc (id int); prepare transaction 'it''s left'")
    assert mended(server.dsn, asked, "PREPARED_TRANSACTION").level == "warning"


def test_slots_and_publications(server: Postgres) -> None:
    source = PostgresSource(server.dsn)
    source.create_slot("icelake_gone_12345678")
    asked = Question(["public.good"], slot="icelake_mine")
    assert found(check(server.dsn, asked)).keys() == {"SLOT_GONE", "PUBLICATION_CHANGED", "ABANDONED_SLOT"}
    execute(server.dsn, "create publication icelake_mine for table good")
    source.create_slot("icelake_mine")
    assert mended(server.dsn, asked, "ABANDONED_SLOT").level == "warning"
    assert found(check(server.dsn, asked)) == {}
    execute(server.dsn, "alter publication icelake_mine set (publish = 'insert')")
    assert found(check(server.dsn, asked), "problem").keys() == {"PUBLICATION_CHANGED"}
    execute(server.dsn, "drop publication icelake_mine")
    source.drop_slot("icelake_mine")


def test_databases_of_other_encodings(server: Postgres, binaries: Binaries) -> None:
    provider = " locale_provider libc" if binaries.major >= 15 else ""
    for encoding, level in (("SQL_ASCII", "problem"), ("LATIN1", "note")):
        execute(server.dsn, f"create database \"{encoding}\" encoding '{encoding}' locale 'C' template template0{provider}")
        assert found(check(server.dsn_of(encoding), Question([])), level).keys() == {"ENCODING"}


RELOADED = {
    "WAL_WITHOUT_LIMIT": {"max_slot_wal_keep_size": "-1"},
    "WAL_LIMIT_SMALL": {"max_slot_wal_keep_size": "1MB"},
    "DECODING_MEMORY": {"logical_decoding_work_mem": "64kB"},
    "WAL_SENDER_TIMEOUT": {"wal_sender_timeout": "1s"},
    "IDLE_SLOT_TIMEOUT": {"idle_replication_slot_timeout": "1min"},
}


def test_settings_that_hurt(binaries: Binaries) -> None:
    """What the server was started with is stronger than ALTER SYSTEM: here it is set as a user would have."""
    bare = {name: value for name, value in WELL.items() if name != "max_slot_wal_keep_size"}
    with Postgres(version=binaries, settings=bare) as server:
        for name in ("wal_level", "max_replication_slots", "max_wal_senders"):
            del server.settings[name]
        lacking = {"wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1", "max_slot_wal_keep_size": "4GB"}
        execute(server.dsn, *(f"alter system set {name} = '{value}'" for name, value in lacking.items()))
        server.restart()
        assert found(check(server.dsn, Question([])), "problem").keys() == {"WAL_LEVEL"}
        assert found(check(server.dsn, Question([])), "warning").keys() == {"NO_FREE_SLOT", "NO_FREE_WALSENDER"}
        execute(server.dsn, "select pg_create_physical_replication_slot('used')")
        assert "NO_FREE_SLOT" in found(check(server.dsn, Question([])), "problem")
        for code in ("WAL_LEVEL", "NO_FREE_SLOT", "NO_FREE_WALSENDER"):
            assert mended(server.dsn, Question([]), code, then=server.restart).then == "restart PostgreSQL"
        for code, settings in RELOADED.items():
            ((name, value),) = settings.items()
            if name == "idle_replication_slot_timeout" and binaries.major < 18:
                continue
            execute(server.dsn, f"alter system set {name} = '{value}'", "select pg_reload_conf()")
            mended(server.dsn, Question([]), code)


@pytest.mark.versions(18, 16)
def test_failover(server: Postgres, binaries: Binaries) -> None:
    with server.standby("the_standby") as standby:
        if binaries.major < 17:
            assert looked(server.dsn, Question([]), "FAILOVER_WITHOUT_SLOT", there=True)["FAILOVER_WITHOUT_SLOT"].level == "note"
        else:
            finding = mended(server.dsn, Question([]), "FAILOVER_LOSES")
            assert "the_standby" in finding.fix
            execute(server.dsn, "alter system reset synchronized_standby_slots", "select pg_reload_conf()")
        assert "STANDBY" in found(check(standby.dsn, Question(["public.good"])), "problem")
    execute(server.dsn, "select pg_drop_replication_slot('the_standby')")


def test_a_server_that_does_not_answer_is_a_finding() -> None:
    (finding,) = check("postgresql://x:secret@127.0.0.1:1/x", Question(["public.a"]))
    assert (finding.level, finding.code) == ("problem", "SOURCE_UNREACHABLE")
    assert "secret" not in str(finding)
    (finding,) = check("nonsense", Question([]))
    assert (finding.level, finding.code) == ("problem", "BAD_DSN")


@contextmanager
def pooler(server: Postgres, spoken: tuple[bytes, bytes], heard: Callable[[bytes], bytes]) -> Iterator[str]:
    """Between client and server as a connection pooler is: changes what is spoken to the server, and what is heard from it."""

    def pump(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(change(data))
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client = held.enter_context(door.accept()[0])
                upstream = held.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                for way in ((client, upstream, lambda data: data.replace(*spoken)), (upstream, client, heard)):
                    threads.append(threading.Thread(target=pump, args=way))
                    threads[-1].start()

    with ExitStack() as held, socket.create_server(("127.0.0.1", 0)) as door:
        threads = [threading.Thread(target=serve)]
        threads[0].start()
        try:
            yield server.dsn.replace(f":{server.port}/", f":{door.getsockname()[1]}/") + "?sslmode=disable&gssencmode=disable"
        finally:
            door.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def made_up(data: bytes) -> bytes:
    """The process id of BackendKeyData (K, length 12) is another's: a pooler makes up the key a client cancels by."""
    at = data.find(b"K\0\0\0\x0c")
    return data if at < 0 else data[: at + 5] + b"\0\1\2\3" + data[at + 9 :]


def test_a_pooler_in_between(server: Postgres) -> None:
    for spoken, heard, told in (
        ((b"TimeZone", b"TimeZone"), made_up, "not with the server itself"),
        ((b"TimeZone=UTC", b"TimeZone=GMT"), bytes, "does not keep TimeZone"),
    ):
        with pooler(server, spoken, heard) as dsn:
            finding = found(check(dsn, Question([])))["POOLER"]
        assert (finding.level, finding.fix) == ("problem", "")
        assert told in finding.what
        assert "port" in finding.then
