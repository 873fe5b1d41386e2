"""One DuckDB for all questions of a lakehouse, as long as it reaches the storage with the keys there are."""

from pathlib import Path

import pytest

from icelake.errors import ProjectError
from icelake.lakehouse import Lakehouse

PROJECT = """[project]
name = "shop"
[sources.shop]
dsn = "postgresql://nobody@localhost/none"
tables = ["public.*"]
"""
S3 = """[lake]
warehouse = "s3://lake/here/"
[lake.s3]
endpoint = "http://127.0.0.1:1"
access_key = { file = "access.key" }
secret_key = { file = "secret.key" }
"""


def test_questions_share_a_duckdb(tmp_path: Path) -> None:
    (tmp_path / "icelake.toml").write_text(PROJECT)
    with Lakehouse.open(tmp_path) as lakehouse:
        engine = lakehouse._engine()
        assert lakehouse.query("select 1 as n").to_pylist() == [{"n": 1}]
        assert lakehouse._engine() is engine
        with pytest.raises(ProjectError, match="SQL_"):
            lakehouse.query("select nonsense")
        assert lakehouse._engine() is engine
    with Lakehouse.open(tmp_path) as lakehouse:
        assert lakehouse._engine() is not engine


def test_a_duckdb_that_answers_nothing_any_more_is_replaced(tmp_path: Path) -> None:
    """Simulated: its connection ends while a question is asked."""
    (tmp_path / "icelake.toml").write_text(PROJECT)
    with Lakehouse.open(tmp_path) as lakehouse:
        engine = lakehouse._engine()
        with engine.read("select 1 as n", {}):
            engine._connection.close()
        assert lakehouse._engine() is not engine
        assert lakehouse.query("select 1 as n").to_pylist() == [{"n": 1}]


def test_new_keys_of_the_storage_are_used(tmp_path: Path) -> None:
    (tmp_path / "icelake.toml").write_text(PROJECT + S3)
    (tmp_path / "access.key").write_text("one")
    (tmp_path / "secret.key").write_text("secret")
    with Lakehouse.open(tmp_path) as lakehouse:
        engine = lakehouse._engine()
        assert lakehouse._engine() is engine
        (tmp_path / "secret.key").write_text("another")
        assert lakehouse._engine() is not engine
        # Who was asking the one before still has it.
        assert engine.query("select 1 as n", {}).to_pylist() == [{"n": 1}]
