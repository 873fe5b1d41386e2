"""PostgreSQL as a source: its replication stream and its tables, decoded exactly. Nothing here writes to a lake."""
