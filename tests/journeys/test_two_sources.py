"""Two databases in one lake, and a table among them that cannot be mirrored."""

from typing import Any

import psycopg

from tests.journeys.refusals import call


def test_each_is_proven_for_itself(shell: Any, server: Any) -> None:
    other = f"other_{abs(hash(shell.dsn)):x}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"create database {other}")
    with psycopg.connect(server.dsn_of(other), autocommit=True) as connection:
        connection.execute("create schema crm; create table crm.people (id int primary key); insert into crm.people values (1)")
    # A new table that no engine could read must not hold up the others.
    shell.sql('create table odd (id int primary key, "Name" text, name text)')
    shell.environment |= {"SHOP_DSN": shell.dsn, "CRM_DSN": server.dsn_of(other)}
    (shell.folder / "icelake.toml").write_text(
        '[project]\nname = "both"\n[sources.shop]\ndsn = { env = "SHOP_DSN" }\ntables = ["public.*"]\n'
        '[sources.crm]\ndsn = { env = "CRM_DSN" }\ntables = ["crm.*"]\n'
    )
    try:
        status = call(shell, "sync --source shop", 0)
        assert [(one["table"], one["code"]) for one in status["refused"]] == [("public.odd", "TABLE_COLUMN_NAMES")]
        call(shell, "sync --source crm", 0)
        for source, tables in (("shop", ["public.customers", "public.orders"]), ("crm", ["crm.people"])):
            report = call(shell, f"verify --source {source}", 0)
            assert (report["equal"], [table["name"] for table in report["tables"]]) == (True, tables)
    finally:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            slots = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s and not active"
            connection.execute(slots, [other])
            connection.execute(f"drop database {other} with (force)")
