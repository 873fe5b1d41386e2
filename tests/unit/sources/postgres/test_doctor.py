"""The doctor's findings, on a server that is well and on ones that are not."""

from collections.abc import Iterator

import psycopg
import pytest

from icelake.sources.postgres.doctor import Finding, check
from icelake.stack.postgres import Postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off", "max_slot_wal_keep_size": "4GB"}) as running:
        with psycopg.connect(running.dsn, autocommit=True) as session:
            session.execute("create table good (id int primary key); create table bad (id int); create role clerk login password 'x'")
        yield running


def found(findings: list[Finding], level: str) -> dict[str, Finding]:
    return {finding.code: finding for finding in findings if finding.level == level}


def test_a_server_that_is_well(server: Postgres) -> None:
    findings = check(server.dsn, ["public.good"])
    assert found(findings, "error") == {}
    assert found(findings, "warn") == {}
    assert {"REACHABLE", "VERSION", "WAL_LEVEL", "FREE_SLOT", "FREE_WALSENDER", "ROLE", "TABLE"} <= found(findings, "ok").keys()


def test_what_a_role_lacks(server: Postgres) -> None:
    findings = check(server.dsn.replace("postgres:" + server.password, "clerk:x"), ["public.good"])
    assert found(findings, "error").keys() == {"NO_REPLICATION_PRIVILEGE", "NO_SELECT_PRIVILEGE"}
    assert found(findings, "warn").keys() == {"NO_CREATE_PRIVILEGE"}
    assert all(finding.fix for finding in findings if finding.level != "ok")


def test_every_refusal_of_a_table_is_an_error(server: Postgres) -> None:
    findings = check(server.dsn, ["public.*", "public.absent"])
    assert found(findings, "error").keys() == {"NO_PRIMARY_KEY", "TABLE_NOT_FOUND"}
    assert "public.bad" in found(findings, "error")["NO_PRIMARY_KEY"].what


def test_append_only_is_said(server: Postgres) -> None:
    findings = check(server.dsn, ["public.bad"], ["public.bad"])
    assert found(findings, "error") == {}
    assert "append-only" in found(findings, "ok")["TABLE"].what


def test_a_table_of_another_owner(server: Postgres) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute("grant select on good to clerk; alter role clerk replication")
    findings = check(server.dsn.replace("postgres:" + server.password, "clerk:x"), ["public.good"])
    assert found(findings, "error") == {}
    assert "NOT_TABLE_OWNER" in found(findings, "warn")


def test_settings_that_hurt(server: Postgres) -> None:
    changed = {
        "wal_level": "replica",
        "max_replication_slots": "0",
        "max_wal_senders": "1",
        "max_slot_wal_keep_size": "-1",
        "logical_decoding_work_mem": "64kB",
        "wal_sender_timeout": "1s",
    }
    with Postgres(settings={"fsync": "off"} | changed) as weak:
        findings = check(weak.dsn, [])
        assert found(findings, "error").keys() == {"WAL_LEVEL", "NO_FREE_SLOT"}
        assert found(findings, "warn").keys() == {"NO_FREE_WALSENDER", "WAL_WITHOUT_LIMIT", "DECODING_MEMORY", "WAL_SENDER_TIMEOUT"}
        assert all(finding.fix for finding in findings if finding.level != "ok")


def test_a_server_that_does_not_answer_is_a_finding() -> None:
    (finding,) = check("postgresql://x:secret@127.0.0.1:1/x", ["public.a"])
    assert (finding.level, finding.code) == ("error", "SOURCE_UNREACHABLE")
    assert "secret" not in str(finding)
    (finding,) = check("nonsense", [])
    assert (finding.level, finding.code) == ("error", "BAD_DSN")
