"""The applier: the exactly-once core that turns a stream of changes into Iceberg commits."""
