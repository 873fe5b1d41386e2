"""Two databases in one lake, and a table among them that cannot be mirrored."""

from pathlib import Path
from typing import Any

import psycopg

from icelake.lakehouse import Lakehouse
from icelake.project import load_project


def test_each_is_proven_for_itself(shell: Any, server: Any, tmp_path: Path) -> None:
    other = f"other_{abs(hash(shell.dsn)):x}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"create database {other}")
    with psycopg.connect(server.dsn_of(other), autocommit=True) as connection:
        connection.execute("create schema crm; create table crm.people (id int primary key); insert into crm.people values (1)")
    # A table of which no engine could read the columns must not hold up the others.
    shell.sql('create table odd (id int primary key, "Name" text, name text)')
    (tmp_path / "shop").write_text(shell.dsn)
    (tmp_path / "crm").write_text(server.dsn_of(other))
    (tmp_path / "icelake.toml").write_text(
        '[project]\nname = "both"\n[sources.shop]\ndsn = { file = "shop" }\ntables = ["public.*"]\n'
        '[sources.crm]\ndsn = { file = "crm" }\ntables = ["crm.*"]\n'
    )
    try:
        with Lakehouse(load_project(tmp_path)) as lakehouse:
            status = lakehouse.sync(source="shop")
            assert [(one["table"], one["code"]) for one in status["refused"]] == [("public.odd", "TABLE_COLUMN_NAMES")]
            lakehouse.sync(source="crm")
            for source, tables in (("shop", ["public.customers", "public.orders"]), ("crm", ["crm.people"])):
                report = lakehouse.verify(source=source)
                assert (report["equal"], [table["name"] for table in report["tables"]]) == (True, tables)
    finally:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            slots = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s and not active"
            connection.execute(slots, [other])
            connection.execute(f"drop database {other} with (force)")
