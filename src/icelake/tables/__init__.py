"""Iceberg v3 tables as files: schemas, data files, deletion vectors, manifests, commits, compaction, expiry, key index.

Promises tables every v3 reader reads alike (checked with DuckDB, PyIceberg and Spark), written without any of them. Reaches
the world only through the ports storage, clock and chance; a catalog makes what is prepared here visible.
"""
