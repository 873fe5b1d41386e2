"""Ours, told by LSNs how far to go: ``apply`` brings the lake there, ``follow`` is there before the changes are made."""

import sys
import threading
from pathlib import Path
from typing import Any

from turn import answer

from icelake.ingest.applier import Progress
from icelake.lakehouse import Lakehouse
from icelake.model.lsn import parse_lsn


def follow(lakehouse: Lakehouse) -> None:
    changed = threading.Condition()
    position = [0]
    stop = threading.Event()

    def report(_: Progress, status: dict[str, Any]) -> None:
        if status["state"] == "running":
            with changed:
                position[0] = parse_lsn(status["position"])
                changed.notify()

    def reach(lsn: str) -> None:
        with changed:
            changed.wait_for(lambda: position[0] >= parse_lsn(lsn) or not following.is_alive())
        if not following.is_alive():
            sys.exit("it does not follow any more")

    following = threading.Thread(target=lambda: lakehouse.sync(follow=True, stop=stop, report=report))
    following.start()
    reach("0/1")
    answer(reach)
    stop.set()
    following.join()


with Lakehouse.open(Path(sys.argv[2])) as lakehouse:
    if sys.argv[1] == "follow":
        follow(lakehouse)
    else:
        answer(lambda lsn: lakehouse.sync(until=lsn))
