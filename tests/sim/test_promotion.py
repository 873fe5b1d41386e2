"""A standby takes over: what the applier may go on with, and what it must not."""

from typing import Any

import pytest

from icelake.errors import Gap, Unreachable
from icelake.ports import Stream
from tests.sim.run import Schedule


def loading() -> Schedule:
    """A lake that holds a range read after its position: the stream has not come so far."""
    for seed in range(100):
        play = Schedule(seed)
        play.world.plan = {}
        for _ in range(40):
            play.world.transact()
            play._newest_step()
            (one,) = play.running
            if one.applier.position and max((f.load.newest for f in one.applier.followed.values()), default=0) > one.applier.position:
                return play
    raise AssertionError("no schedule loads a range ahead of the stream")


def test_a_range_read_after_the_switch_is_noticed() -> None:
    play = loading()
    (one,) = play.running
    position, newest = one.applier.position, max(f.load.newest for f in one.applier.followed.values())
    play.world.postgres.promote(newest - 8)
    assert newest - 8 >= position
    play._stop(one)
    with pytest.raises(Gap, match="NEW_TIMELINE"):
        play._start().applier.start()


def test_a_server_that_changes_between_two_sessions_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    play = loading()
    play._stop(play.running[0])
    applier = play._start().applier
    begin = applier._source.stream

    def stream(*how: Any) -> Stream:
        play.world.promote()
        return begin(*how)

    monkeypatch.setattr(applier._source, "stream", stream)
    with pytest.raises(Unreachable, match="SERVER_CHANGED"):
        applier.start()


def test_two_promotions_while_loading_are_followed_and_recorded_before_anything_else() -> None:
    play = loading()
    (one,) = play.running
    play.world.promote()
    play.world.promote()
    play._stop(one)
    play._start().applier.start()
    assert play.running[-1].applier._control.marker is not None
    assert play.running[-1].applier._control.marker.timeline == 3
    play._come_to_rest()
