"""Other programs and processes at the worst moment: what they did is followed or refused, never taken for our own."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest

from icelake.errors import CommitUnknown, Fenced
from icelake.ports import Json, LoadedTable, ResumeRequest, TableChange
from icelake.tables.expire import Policy
from icelake.tables.rewrite import rewrite
from icelake.tables.table import Delta, Table
from tests.sim.run import Running, Schedule


def calm(seed: int) -> Schedule:
    """One in which nothing happens by itself but transactions."""
    play = Schedule(seed)
    play.world.plan = {}
    play.sickly = play.late_table = play.meddled = play.read = False
    play.wanted = list(play.names)
    return play


def following(least: int = 0) -> tuple[Schedule, Running]:
    """A lake that has all its tables, and one with a key and that many rows among them; nothing goes wrong by itself."""
    for seed in range(100):
        play = calm(seed)
        play.settings = replace(play.settings, upkeep_commits=3, commit_interval=0.0, retention=Policy(((1000, 0),)))
        for _ in range(40):
            play.world.transact()
            play.world.time += 0.5
            play._newest_step()
            (one,) = play.running
            if one.applier.position and one.applier.followed and not one.applier.loading and len(keyed(one).files) > least:
                return play, one
    raise AssertionError("no schedule loads its tables")


def keyed(one: Running) -> Table:
    return next(followed.table for followed in one.applier.followed.values() if followed.relation.identity == "key")


def others(play: Schedule, table: Table) -> Table:
    """The same table in another program's hands."""
    return Table.open(play.world.server.load(table.id), table.storage, table.clock, table.chance)


def send(play: Schedule, delta: Delta, called: str = "") -> None:
    """``called``: what the other program says it did."""
    change = delta.prepare({"by": "another"}, {})
    summary = change.updates[0]["snapshot"]["summary"]
    summary["operation"] = called or summary["operation"]
    delta.table.storage.flush()
    play.world.server.commit([change])


def twice(table: Table) -> Delta:
    """A row that is there is written again."""
    names = [column.name for column in table.relation.columns]
    no = next(iter(table.files))
    delta = table.delta()
    delta.append(pa.table(table.live_rows(no, names)[1].select(names)).slice(0, 1), None)
    return delta


def test_a_lost_answer_to_an_expiry_does_not_hide_a_new_owner() -> None:
    """fence: the process whose expiry was done must not take what the next owner made of the control table for its own."""
    play, one = following()
    world = play.world
    commit = world.server.commit

    def answer_late(changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        after = commit(changes)
        if any(update["action"] == "remove-snapshots" for update in changes[0].updates):
            world.server.commit = commit  # type: ignore[method-assign]
            play._take_over(one.process)
            raise CommitUnknown("SIM_UNKNOWN", "the answer was lost")
        return after

    def go_on() -> None:
        while one is play.running[-1]:
            world.time += 1.5
            world.transact()
            one.applier.step(0.1)

    world.transactions_left += 60
    world.server.commit = answer_late  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        go_on()


def test_a_table_that_leaves_the_publication_before_it_has_a_mirror_is_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """members: there is nothing yet that could be wrong, and the others go on."""
    play = calm(0)
    publish = play.world.postgres.publish
    left = play.names[0]

    def meddled(publication: str, oids: frozenset[int]) -> None:
        publish(publication, oids)
        monkeypatch.undo()
        play.world.postgres.leave(left)

    monkeypatch.setattr(play.world.postgres, "publish", meddled)
    one = play._start()
    said = []
    for _ in range(40):
        play.world.transact()
        play.world.time += 0.5
        progress = one.applier.step(0.1)
        said += [progress.error.code] if progress.error is not None else []
    assert said == ["PUBLICATION_CHANGED"]
    assert {str(table) for table in one.applier.followed} == set(play.names)
    assert not one.applier.parked


def test_a_rewrite_by_another_program_is_followed_by_expiry_too() -> None:
    """conflict: what moved a mirror without moving the control table is opened anew, whoever meets it."""
    play, one = following()
    play.world.transactions_left += 60
    for number in range(60):
        play.world.time += 1.5
        play.world.transact()
        one.applier.step(0.1)
        followed = list(one.applier.followed.values())
        theirs = others(play, followed[number // 2 % len(followed)].table) if number % 2 and followed else None
        if theirs is not None and theirs.files:
            send(play, rewrite(theirs, list(theirs.files))[0])
    play._come_to_rest()


def test_a_mirror_that_another_program_laid_out_anew_stops_alone() -> None:
    """alone: the others go on."""
    play, one = following()
    table = keyed(one)
    spec = {"fields": [{"source-id": 1, "transform": "identity", "name": "another"}]}
    updates: list[Json] = [{"action": "add-spec", "spec": spec}, {"action": "set-default-spec", "spec-id": -1}]
    play.world.server.commit([TableChange(table.id, [], updates)])
    play._stop(one)
    again = play._start()
    again.applier.start()
    assert {ident: parked.note.code for ident, parked in again.applier.parked.items()} == {table.id: "TABLE_SHAPE_CHANGED"}
    for _ in range(20):
        play.world.time += 1.5
        play.world.transact()
        again.applier.step(0.1)
    assert again.applier.position > one.applier.position


@pytest.mark.parametrize("whole", [False, True])
def test_a_key_that_another_program_wrote_twice_is_mended(whole: bool) -> None:
    """The applier has not met it yet when it is told to compare the table (or all of them) with the source."""
    play, one = following()
    table = keyed(one)
    send(play, twice(others(play, table)))
    if whole:
        one.applier.renew()
        play.checks.renewed()
    else:
        play.world.wish = ResumeRequest("wish-1", (str(table.id),), True)
    play._come_to_rest()


@pytest.mark.parametrize("whole", [False, True])
def test_a_rewrite_that_doubled_a_key_stops_the_table_alone(whole: bool) -> None:
    """alone: and the way out that the error names is one."""
    play, one = following()
    table = keyed(one)
    send(play, twice(others(play, table)), "replace")
    play._stop(one)
    again = play._start()
    again.applier.start()
    assert {ident: parked.note.code for ident, parked in again.applier.parked.items()} == {table.id: "KEY_TWICE"}
    if whole:
        again.applier.renew()
        play.checks.renewed()
    else:
        play.world.wish = ResumeRequest("wish-1", (str(table.id),), True)
    play._come_to_rest()


def test_a_key_that_another_program_wrote_twice_is_mended_by_a_new_slot() -> None:
    """And if the table was parked for it before."""
    play, one = following()
    table = keyed(one)
    send(play, twice(others(play, table)))
    play._stop(one)
    again = play._start()
    again.applier.start()
    assert [parked.note.code for parked in again.applier.parked.values()] == ["TABLE_CHANGED_BY_OTHERS"]
    again.applier.renew()
    play.checks.renewed()
    play._come_to_rest()
