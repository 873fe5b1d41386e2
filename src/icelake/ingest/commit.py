"""Send one commit to the catalog and find out, whatever happens, whether it was done.

Done, or not done and never will be: this never leaves a caller in doubt without saying so. A lost answer is met by sending the
identical request again; a conflict after a lost answer is met by looking for what the request would have left
(docs/protocol.md, One owner). Raises CommitConflict (not done) or CommitUnknown (still in doubt after every try: nothing the
attempt wrote may be deleted, and only a new epoch makes it safe to go on).
"""

from collections.abc import Sequence

from icelake.errors import CommitConflict, CommitUnknown, Unreachable
from icelake.ports import Catalog, Clock, LoadedTable, TableChange

TRIES = 6
FIRST_PAUSE = 0.05


def landed(catalog: Catalog, changes: Sequence[TableChange]) -> bool:
    """Whether a commit is in its tables: its snapshots are there, or the snapshots it removes are gone.

    One table answers for all, because a commit happens whole or not at all.
    """
    for change in changes:
        for update in change.updates:
            if update["action"] in ("add-snapshot", "remove-snapshots"):
                present = {snapshot["snapshot-id"] for snapshot in catalog.load(change.id).metadata.get("snapshots", ())}
                if update["action"] == "add-snapshot":
                    return update["snapshot"]["snapshot-id"] in present
                return present.isdisjoint(update["snapshot-ids"])
    return False


def commit(catalog: Catalog, clock: Clock, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
    """Do ``changes`` in one transaction; the new state of each table, in order."""
    in_doubt = False
    pause = FIRST_PAUSE
    for _ in range(TRIES):
        try:
            return catalog.commit(changes)
        except CommitConflict:
            if in_doubt and landed(catalog, changes):
                return [catalog.load(change.id) for change in changes]
            raise
        except CommitUnknown:
            in_doubt = True
        except Unreachable:
            # Nothing was done by this try; but an earlier one may still be.
            if not in_doubt:
                raise
        clock.sleep(pause)
        pause *= 2
    raise CommitUnknown(
        "COMMIT_UNKNOWN",
        f"the catalog did not say whether a commit to {', '.join(str(change.id) for change in changes)} was done",
        f"{TRIES} identical requests were not answered",
        "it is found out at the next start; nothing is lost and nothing is confirmed to the source before that",
    )
