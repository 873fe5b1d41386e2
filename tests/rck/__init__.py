"""The REST compatibility kit of the Iceberg project, run against any REST catalog: ``python -m tests.rck URI``.

Its tests are Java, and are the client of the catalog they test. ``icelake.stack.iceberg_rest`` names the jars; the first run downloads
them.
"""
