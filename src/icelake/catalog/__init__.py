"""Tables by name, and commits over many of them that happen whole or not at all (ports.Catalog)."""
