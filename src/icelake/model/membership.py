"""What tells that a table's stream of changes has a hole although the table looks as before, and which leaves it has.

A table that leaves its publication and comes back has lost the changes between, and so has one whose publication did not send all
kinds of changes for a while. A table whose rows were rewritten by ALTER TABLE (``ALTER COLUMN … TYPE … USING``) sent none of them. A leaf
that is attached to a partitioned table, or detached from it, brings or takes rows without a change. A mark is kept in the mirror's
properties and compared before every commit.
"""

from dataclasses import dataclass

_UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True)
class Leaf:
    """The mark of one leaf of a partitioned table."""

    oid: int
    publication: str
    """As ``Membership.publication``; empty while it is in no publication."""
    joined: str
    """Another one whenever it, or a branch that it is part of, was attached anew (xmin of the pg_inherits rows up to the root)."""
    storage: str
    columns: str

    def __str__(self) -> str:
        return f"{self.oid}:{self.publication}:{self.joined}:{self.storage}:{self.columns}"

    @staticmethod
    def parse(text: str) -> "Leaf":
        """Raises ValueError."""
        oid, publication, joined, storage, columns = text.split(":")
        return Leaf(int(oid), publication, joined, storage, columns)


@dataclass(frozen=True, slots=True)
class Membership:
    """The mark of one table. Its text is ``publication|storage|columns``, then ``|unnamed`` if that is so, then ``|`` and each leaf."""

    publication: str
    """Another one whenever the table was added to a publication anew (the OIDs of publication and membership), and whenever the
    publication's options, or its owner, changed (xmin of its pg_publication row)."""
    storage: str
    """Another one after every rewrite of the table: VACUUM FULL, CLUSTER and TRUNCATE too (relfilenode)."""
    columns: str
    """Another one after every ALTER of a column, of its default or statistics too (xmin of the pg_attribute rows)."""
    unnamed: bool = False
    """Its updates and deletes are published and nothing names their rows any more: PostgreSQL refuses them to the table's users."""
    leaves: tuple[Leaf, ...] = ()
    """Of a partitioned table, by OID. The leaves are published, not the table, and they have its rows: its own marks say little."""

    def __str__(self) -> str:
        flags = [_UNNAMED] if self.unnamed else []
        return "|".join([self.publication, self.storage, self.columns, *flags, *map(str, self.leaves)])

    @staticmethod
    def parse(text: str) -> "Membership":
        """Raises ValueError."""
        publication, storage, columns, *more = text.split("|")
        unnamed = more[:1] == [_UNNAMED]
        return Membership(publication, storage, columns, unnamed, tuple(map(Leaf.parse, more[unnamed:])))

    def left(self, now: "Membership") -> bool:
        """Whether the table, or a leaf that stayed one, was out of the publication, or the publication was another, between the two."""
        return self.publication != now.publication or any(
            old.publication and old.publication != new.publication for old, new in self._stayed(now)
        )

    def rewritten(self, now: "Membership") -> bool:
        """Whether rows may have been changed by ALTER TABLE between the two: both marks moved, which else only come apart."""
        if self.storage != now.storage and self.columns != now.columns:
            return True
        return any(old.storage != new.storage and old.columns != new.columns for old, new in self._stayed(now))

    def other_leaves(self, now: "Membership") -> tuple[int, ...]:
        """The leaves that came, went, or did both between the two, and those that are not published yet."""
        before, after = {leaf.oid: leaf for leaf in self.leaves}, {leaf.oid: leaf for leaf in now.leaves}
        same = {old.oid for old, new in self._stayed(now) if old.publication and new.publication}
        return tuple(sorted((before.keys() | after.keys()) - same))

    def _stayed(self, now: "Membership") -> list[tuple[Leaf, Leaf]]:
        after = {leaf.oid: leaf for leaf in now.leaves}
        pairs = [(leaf, after[leaf.oid]) for leaf in self.leaves if leaf.oid in after]
        return [(old, new) for old, new in pairs if old.joined == new.joined]
