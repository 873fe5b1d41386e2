"""Minor releases of PostgreSQL whose logical decoding loses something, by exact number.

Promises: a release is named here only for what its successor's release notes say was mended, and the first releases that have it.
Pure functions of ``server_version_num``; what to do about it is said where it is done.
"""

from collections.abc import Mapping

_SEES_CATALOG_CHANGES: Mapping[int, int] = {14: 18, 15: 13, 16: 9, 17: 5}
"""Release notes of 17.5 (May 2025): "Avoid data loss when DDL operations that don't take a strong lock affect tables that are being
logically replicated". Before, a transaction that runs while a table joins a publication leaves the walsender believing that the
table is not in it."""

_QUIET: Mapping[int, int] = {14: 19, 15: 14, 16: 10, 17: 6}
"""Release notes of 17.6 (August 2025): "Avoid re-distributing cache invalidation messages from other transactions during logical
replication" (those of 17.5 and its sisters alone do), and "Avoid premature removal of old WAL during checkpoints"."""


def shown(version: int) -> str:
    """``server_version_num`` as people write it: 17.4."""
    return f"{version // 10000}.{version % 10000}"


def forgets_late_tables(version: int) -> str | None:
    """The first release of this major that does not lose changes to a table that joins a publication late; None if this one does not."""
    return _older(version, _SEES_CATALOG_CHANGES)


def decodes_badly(version: int) -> str | None:
    """The first release that neither multiplies invalidations nor removes WAL a slot still needs; None if this one does not."""
    return _older(version, _QUIET)


def multiplies_invalidations(version: int) -> bool:
    """DDL beside running transactions can end decoding with "invalid memory alloc request size"."""
    return decodes_badly(version) is not None and forgets_late_tables(version) is None


def _older(version: int, first: Mapping[int, int]) -> str | None:
    major = version // 10000
    return f"{major}.{first[major]}" if major in first and version % 10000 < first[major] else None
