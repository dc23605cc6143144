"""What moves an outbox: how often it looks."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from changefeed.leader.mover import Mover
from changefeed.log import Moved, Outbox
from changefeed.settings import Settings


class SlowOutbox:
    """Nothing waits in it, and each look takes so long."""

    def __init__(self, look_s: float) -> None:
        self.look_s = look_s
        self.looks = 0

    async def waiting(self, bytes_max: int) -> Moved | None:
        self.looks += 1
        await trio.sleep(self.look_s)
        return None

    async def wait(self, pause_s: float) -> None:
        await trio.sleep(pause_s)


class Term:
    async def open(self, request: Any, channel: str, *, own: bool = False) -> Any:
        class Opened:
            last_number = 0
            incarnation = 1

        return Opened()


@pytest.mark.parametrize(("look_s", "looks"), [(0.001, (190, 200)), (0.5, (4, 5))])
async def test_looks_that_take_long_are_made_less_often(
    look_s: float, looks: tuple[int, int], autojump_clock: MockClock
) -> None:
    """Every 50 ms while they are quick; slow ones take a fifth of the time at most."""
    outbox = SlowOutbox(look_s)
    mover = Mover("vmapi", cast(Outbox, outbox), cast(Any, Term()), Settings())
    with trio.move_on_after(10):
        await mover.run()
    assert looks[0] <= outbox.looks <= looks[1]
