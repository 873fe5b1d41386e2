"""Names made by rule: control tables, slots, publications."""

from icelake.model.relation import TableId

CONTROL_NAMESPACE = "icelake"


def control_table(source: str) -> TableId:
    """The control table of a source of that project name."""
    return TableId(CONTROL_NAMESPACE, f"control_{source}")


def slot_name(source: str, source_uuid: str) -> str:
    """A slot only this lake uses: PostgreSQL allows [a-z0-9_]{1,63}."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in source.lower())[:40]
    return f"icelake_{safe}_{source_uuid.replace('-', '')[:8]}"


def publication_name(source: str, source_uuid: str) -> str:
    return slot_name(source, source_uuid)


def append_publication(publication: str) -> str:
    """The publication beside ``publication`` that holds the append-only tables: it sends no updates and no deletes."""
    return f"{publication[: 63 - len('_append')]}_append"
