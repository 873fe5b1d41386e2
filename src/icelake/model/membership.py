"""What tells that a table's stream of changes has a hole although the table looks as before.

A table that leaves its publication and comes back has lost the changes between, and so has one whose publication did not send all
kinds of changes for a while. A table whose rows were rewritten by ALTER TABLE (``ALTER COLUMN … TYPE … USING``) sent none of them. A
mark is kept in the mirror's properties and compared before every commit.
"""

from dataclasses import dataclass

_UNNAMED = "|unnamed"


@dataclass(frozen=True, slots=True)
class Membership:
    """The mark of one table. Its text is ``publication|storage|columns``, and ``|unnamed`` behind it if that is so."""

    publication: str
    """Another one whenever the table was added to a publication anew (the OIDs of publication and membership), and whenever the
    publication's options, or its owner, changed (xmin of its pg_publication row)."""
    storage: str
    """Another one after every rewrite of the table: VACUUM FULL, CLUSTER and TRUNCATE too (relfilenode)."""
    columns: str
    """Another one after every ALTER of a column, of its default or statistics too (xmin of the pg_attribute rows)."""
    unnamed: bool = False
    """Its updates and deletes are published and nothing names their rows any more: PostgreSQL refuses them to the table's users."""

    def __str__(self) -> str:
        return f"{self.publication}|{self.storage}|{self.columns}{_UNNAMED if self.unnamed else ''}"

    @staticmethod
    def parse(text: str) -> "Membership":
        """Raises ValueError."""
        publication, storage, columns = text.removesuffix(_UNNAMED).split("|")
        return Membership(publication, storage, columns, text.endswith(_UNNAMED))

    def left(self, now: "Membership") -> bool:
        """Whether the table was out of the publication, or the publication was another, between the two."""
        return self.publication != now.publication

    def rewritten(self, now: "Membership") -> bool:
        """Whether rows may have been changed by ALTER TABLE between the two: both marks moved, which else only come apart."""
        return self.storage != now.storage and self.columns != now.columns
