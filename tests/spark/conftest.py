"""``spark``: a Spark of our own for the tests that ask for it, on one core with a heap of 1 GB.

Promises the versions locked in ``requirements-spark.lock`` and ``jgo.lock.toml`` whatever else is installed or set in the
environment, and a JVM that is gone with the tests, or with their process if that is killed. Needs Java 17 or 21 (Spark 4.1 does not
start on 25) with its vector module. What is absent is for ``lacking`` to judge; a jar that is not the locked one is a failure.
"""

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from icelake.errors import ProjectError, Unreachable
from icelake.stack.java import VERSIONS, java_home
from icelake.stack.maven import fetched, locked
from tests.conftest import Lacking

LOCK = Path(__file__).with_name("jgo.lock.toml")


@pytest.fixture(scope="session")
def spark(lacking: Lacking) -> Iterator[Any]:
    """A ``pyspark.sql.SparkSession`` with Iceberg in UTC, no catalog configured."""
    home = java_home()
    if home is None:
        lacking("spark", f"no Java {' or '.join(map(str, VERSIONS))} in JAVA_HOME, on PATH or in /usr/lib/jvm")
    try:
        pyspark = importlib.import_module("pyspark.sql")
    except ImportError as error:
        lacking("spark", f"{error}; make test-spark installs it")
    with tempfile.TemporaryDirectory(prefix="spark-") as folder, pytest.MonkeyPatch.context() as environment:
        try:
            jars = [fetched(jar, Path(sys.prefix) / "maven") for jar in locked(LOCK)]
        except (ProjectError, Unreachable) as error:
            lacking("spark", f"Iceberg for Spark can't be had: {error.why}")

        settings = {
            "spark.driver.memory": "1g",
            "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={folder} -XX:-UsePerfData",
            "spark.jars": ",".join(map(str, jars)),
            "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            # Otherwise pyspark looks for "localhost", which a container without /etc/hosts does not know.
            "spark.python.unix.domain.socket.enabled": "true",
            "spark.local.dir": folder,
            "spark.sql.warehouse.dir": f"{folder}/warehouse",
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.shuffle.partitions": "1",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "ERROR",
        }
        for name in list(os.environ):
            if name.startswith(("SPARK_", "PYSPARK_", "HADOOP_", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")):
                environment.delenv(name)
        environment.setenv("JAVA_HOME", str(home))
        environment.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        environment.setenv("SPARK_LAUNCHER_OPTS", "-XX:-UsePerfData")
        builder = pyspark.SparkSession.builder.master("local[1]").appName("icelake-tests")
        for name, value in settings.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        gateway = session.sparkContext._gateway
        yield session
        session.stop()
        gateway.shutdown()
        # The JVM ends when its standard input does.
        gateway.proc.stdin.close()
        gateway.proc.wait(60)
