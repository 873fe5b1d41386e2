"""DuckDB: DELETE and MERGE INTO an Iceberg table in one transaction, through a REST catalog
(https://duckdb.org/docs/current/core_extensions/iceberg/writing_to_iceberg); a MERGE with both is refused by 1.5.5.
"""

import os
from pathlib import Path

import duckdb
from duckdb_extensions import import_extension
from turn import main

COLUMNS = "customer", "sku", "price", "quantity", "paid", "changed"


def attached() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for extension in ("httpfs", "avro", "iceberg"):
        import_extension(extension, con=connection)
    given = {name: os.environ[name] for name in ("S3", "CATALOG", "TOKENS", "ACCESS_KEY", "SECRET_KEY", "BUCKET")}
    for statement in (
        "create secret (type s3, key_id '{ACCESS_KEY}', secret '{SECRET_KEY}', endpoint '{S3}', url_style 'path', use_ssl false)",
        "create secret catalog (type iceberg, client_id '{ACCESS_KEY}', client_secret '{SECRET_KEY}', oauth2_server_uri '{TOKENS}')",
        "attach '{BUCKET}' as lake (type iceberg, secret catalog, endpoint '{CATALOG}', access_delegation_mode 'none')",
        "create schema if not exists lake.peer",
        "use lake.peer",
    ):
        connection.execute(statement.format(**given))
    return connection


def load(folder: Path) -> None:
    connection.execute(
        "create table item (id bigint, customer int, sku varchar, price decimal(12,2), quantity int, paid boolean, changed timestamptz)"
    )
    connection.execute(f"insert into item from '{folder}/before.parquet'")


def apply(batch: Path) -> None:
    connection.execute(f"create or replace temp table batch as from '{batch}'")
    connection.execute("begin")
    connection.execute("delete from item where id in (select id from batch where deleted)")
    connection.execute(
        "merge into item using (from batch where not deleted) as batch on item.id = batch.id"
        f" when matched then update set {', '.join(f'{name} = batch.{name}' for name in COLUMNS)}"
        f" when not matched then insert (id, {', '.join(COLUMNS)}) values (batch.id, {', '.join(f'batch.{name}' for name in COLUMNS)})"
    )
    connection.execute("commit")


def read(folder: Path) -> tuple[int, int]:
    connection.execute(f"copy (from item) to '{folder}/after.parquet'")
    files, size = connection.execute(f"select count(*), sum(size) from read_blob('s3://{os.environ['BUCKET']}/**')").fetchall()[0]
    return files, int(size)


connection = attached()
main(load, apply, read)
