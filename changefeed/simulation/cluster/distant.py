"""The log as an instance reaches it: calls take time, may pause at drawn steps, and can be made to fail."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from changefeed.errors import LogUnavailable
from changefeed.log.memory import Faults, MemoryPlace
from changefeed.simulation.cluster.recording import FEED, Archive
from changefeed.simulation.cluster.virtual import virtual_clock

#: A pause that is on in a seed happens with this chance, and takes up to so many seconds.
PAUSE_CHANCE = 0.25
PAUSE_S = 0.4
#: A call that was on its way when its process was killed takes effect with this chance.
LANDS_CHANCE = 0.6


Place = TypeVar("Place")


class ProcessFaults(Faults, Generic[Place]):
    """What is done to the calls of one process's store, in either tier.

    lag_s: the mean way of each call, there and back. pauses: the points (calls) at which it may pause. passed: told of
    each point before anything else is done there; the process may be killed by it. killed: nothing more leaves the
    process; what was on its way lands, or not.
    """

    def __init__(
        self,
        place: Place,
        archive: Archive,
        chance: random.Random,
        lag_s: float,
        pauses: Collection[str],
        passed: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.killed = False
        self._place = place
        self._archive = archive
        self._chance = chance
        self._lag_s = lag_s
        self._pauses = pauses
        self._passed = passed


class DistantLog(ProcessFaults[MemoryPlace]):
    """The hook of one process's store in memory."""

    async def __call__(self, point: str, feed: str) -> None:
        if point.endswith(" done"):
            # Still within the write: nothing has run since its effect.
            self._archive.looked(self._place.feeds[FEED], point)
        self._passed(f"log: {point}")
        if self.killed:
            raise LogUnavailable("its process was killed before it asked")
        lands = self._chance.random() < LANDS_CHANCE
        wait_s = self._lag_s * self._chance.random() ** 2 if self._lag_s else 0.0
        if point in self._pauses and self._chance.random() < PAUSE_CHANCE:
            wait_s += PAUSE_S * self._chance.random()
        if wait_s:
            await virtual_clock().sleep(wait_s)
        if self.killed and not lands:
            raise LogUnavailable("its process was killed, and what it sent was lost")
        await super().__call__(point, feed)
