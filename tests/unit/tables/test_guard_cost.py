"""What a check reads is bounded by what a commit changes: in a table of many manifests, whose data files are in the metadata alone."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from icelake.tables.guard import COLD, Guard
from icelake.tables.manifests import ADDED, DATA, Codec, Record, entry_bytes
from tests.unit.tables.commits import Draft, Live, Made
from tests.unit.tables.test_guard import Watched, passes

MANIFESTS, FILES = (2_000, 500) if os.environ.get("ICELAKE_FULL") else (200, 20)
_DIGITS = b"0000000000"


def huge(folder: Path, spec: str, manifests: int = MANIFESTS, files: int = FILES) -> Made:
    """A table that has these manifests of so many files each, in its one snapshot. Partitions go by the manifest."""
    made = Made(folder, 3, spec, random.Random(0))
    codec = Codec(3, tuple((name, kind, 1000 + at) for at, (name, _, kind, _) in enumerate(made.fields)))
    draft = Draft(made, "append")
    for number in range(manifests):
        values = (number, f"name {number % 50}", number % 30 * 86_400_000_000)
        path = made.name(".avro")
        file: Record = {
            "content": DATA,
            "file_path": str(folder / "data" / f"{_DIGITS.decode()}.parquet"),
            "file_format": "PARQUET",
            "partition": made.partition(values),
            "record_count": 10,
            "file_size_in_bytes": 1_000,
        }
        template = entry_bytes(ADDED, draft.ident, None, codec.encode_data_file(file))
        first = number * files
        entries = [template.replace(_DIGITS, b"%010d" % (first + place)) for place in range(files)]
        made.put(path, codec.encode_manifest({"partition-spec-id": b"0", "content": b"data"}, entries))
        draft.listed.append(
            {
                "manifest_path": path,
                "manifest_length": Path(path).stat().st_size,
                "partition_spec_id": 0,
                "content": DATA,
                "sequence_number": 1,
                "min_sequence_number": 1,
                "added_snapshot_id": draft.ident,
                **{f"{status}_{what}_count": 0 for status in ("existing", "deleted") for what in ("files", "rows")},
                "added_files_count": files,
                "added_rows_count": 10 * files,
                "partitions": draft.summaries([file["partition"]]),
                "first_row_id": 10 * first,
            }
        )
        entry = {"status": ADDED, "snapshot_id": draft.ident, "sequence_number": 1, "file_sequence_number": 1}
        named = str(folder / "data" / f"{first:010d}.parquet")
        made.data[named] = Live({**entry, "data_file": {**file, "file_path": named, "first_row_id": 10 * first}}, path)
        made.values[named] = values
    rows = 10 * manifests * files
    draft.snapshot |= {"first-row-id": 0, "added-rows": rows}
    draft.publish()
    made.listed = draft.listed
    return made


@pytest.fixture(scope="module", params=["none", "identity"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return huge(tmp_path_factory.mktemp("huge"), request.param)


@pytest.fixture
def storage() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


def append(made: Made, files: int) -> Draft:
    draft = made.draft("manifests")
    draft.written, draft.kept = [], {record["manifest_path"]: dict(record) for record in made.listed}
    draft.snapshot["summary"] = {"operation": "append"}
    draft.add(*(made.data_file() for _ in range(files)))
    return draft


def delta(made: Made, live: Live) -> Draft:
    draft = append(made, 1)
    draft.snapshot["summary"] = {"operation": "overwrite"}
    draft.delete_rows(live)
    return draft


def test_reads_of_a_commit(table: Made, storage: Watched) -> None:
    made = table.copy()
    guard = Guard(storage)
    told: list[tuple[str, int, float]] = []

    def reads(name: str, draft: Draft) -> int:
        storage.reads.clear()
        base, new = draft.seal().publish()
        started = time.perf_counter()
        guard.check(base, new)
        told.append((name, len(storage.reads), time.perf_counter() - started))
        draft.settle()
        return len(storage.reads)

    lists = 2  # the new one, and that of the parent
    assert reads("cold append", append(made, 1)) <= lists + 1 + 1 + COLD
    live = [made.data[path] for path in sorted(made.data)][:40]
    # The data file is looked for where its partition may be.
    places = MANIFESTS if not made.fields else MANIFESTS // 50
    assert reads("cold delta", delta(made, live[0])) <= 1 + 2 + 2 + places + COLD
    for _ in range(1 + MANIFESTS // COLD):
        passes(guard, append(made, 1))
    for number in range(1, 4):
        assert reads("warm append", append(made, 1)) == 1 + 1 + 1
        assert reads("warm append of 5 files", append(made, 5)) == 1 + 1 + 5
        assert reads("warm delta", delta(made, live[number])) == 1 + 2 + 2
        assert reads("warm delta again", delta(made, live[number])) == 1 + 3 + 2
    for name, count, seconds in told:
        print(f"{name}: {count} reads, {1000 * seconds:.1f} ms; {guard._index._bytes >> 20} MiB are remembered")
    guard.close()


def test_a_forgetful_guard_reads_again(table: Made, storage: Watched) -> None:
    """What does not fit into the budget costs reads, and nothing else."""
    made: Any = table.copy()
    guard = Guard(storage, 100_000)
    for number in range(3):
        live = made.data[sorted(made.data)[number]]
        passes(guard, delta(made, live))
    assert guard._index._bytes <= 100_000
    guard.close()
