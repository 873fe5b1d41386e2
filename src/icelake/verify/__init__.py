"""Proof that the lake equals the source at one LSN. Shares no code with what filled the lake: never imports ingest, tables, sources."""
