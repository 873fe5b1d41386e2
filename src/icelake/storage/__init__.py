"""Where files live: immutable files by location, durable when ``flush`` returned (ports.Storage)."""
