"""IceLake: PostgreSQL changes in Apache Iceberg, exactly once, queried and proven."""

__version__ = "0.1.0"
