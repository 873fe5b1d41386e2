"""Spark shows of every type what docs/reference/types.md says."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from icelake.stack.maven import locked
from tests.conformance import shown
from tests.spark.conftest import LOCK

# pyspark leaves the socket a result came through to the garbage collector.
pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]


def test_spark(tmp_path: Path, spark: Any) -> None:
    @cache
    def whole(location: str, some: bool) -> tuple[dict[str, str], pa.Table]:
        frame = spark.read.format("iceberg").load(location).where(str(some))
        return dict(frame.dtypes), frame.toArrow()

    def read(location: str, column: str, some: bool) -> tuple[str, pa.Table]:
        kinds, rows = whole(location, some)
        return kinds[column], rows.select(["id", column])

    (iceberg,) = locked(LOCK)
    refusals = (importlib.import_module("pyspark.errors").PySparkException,)
    engine = shown.Engine("Spark", f"{spark.version} with Iceberg {iceberg.version}", read, refusals)
    with shown.mirrored(tmp_path) as tables:
        shown.as_recorded(engine, tables)
