"""A term in office on a log in memory: what the tests of the leader's driver share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from changefeed.batch import Batch, Entry
from changefeed.change import FeedSettings
from changefeed.leader.driver import Term
from changefeed.log import Fence
from changefeed.log.memory import Faults, MemoryFeedLog, MemoryLogStore, MemoryPlace
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.wire.messages import Answer, Open


class Office:
    """A log in memory and the terms that lead it. steps: answers and visible entries, in the order they left."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.place = MemoryPlace()
        self.store = MemoryLogStore(self.place, self.settings)
        self.faults = Faults()
        self.calls: list[str] = []
        self.store.hook = self.hook
        self.declared = FeedSettings()
        self.steps: list[Answer | Entry] = []
        self.answered = Changed()
        self.traced: list[tuple[str, dict[str, Any]]] = []
        self.wall = 0
        self.why: str | None = None
        self.log: MemoryFeedLog
        self.term: Term

    async def hook(self, point: str, feed: str) -> None:
        self.calls.append(point)
        await self.faults(point, feed)

    async def elect(self) -> Term:
        self.log = await self.store.open("f")
        epoch = (await self.log.look()).fence.epoch + 1
        fence = Fence(epoch, f"{epoch:08x}", "me")
        look = await self.log.fence(fence, why="start", time=0, clean=False)
        world = World(wall_ms=lambda: self.wall, trace=lambda name, **facts: self.traced.append((name, facts)))
        self.term = Term(
            log=self.log,
            look=look,
            fence=fence,
            settings=self.settings,
            world=world,
            visible=self.steps.extend,
            declared=lambda: self.declared,
            instance="me",
            process="1234",
        )
        return self.term

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.why = await self.term.run(task_status=task_status)

    async def publish(self, sent: Batch, channel: str = "c", answered: Callable[[Answer], None] | None = None) -> None:
        await self.term.publish(channel, sent, answered or self.answer)

    def answer(self, answer: Answer) -> None:
        self.steps.append(answer)
        self.answered.notify()

    @property
    def answers(self) -> list[Answer]:
        return [step for step in self.steps if isinstance(step, Answer)]

    async def settled(self, count: int) -> list[Answer]:
        """Until so many answers have come."""
        while len(self.answers) < count:
            await self.answered.wait()
        return self.answers


@asynccontextmanager
async def in_office(**settings: Any) -> AsyncIterator[Office]:
    """A running term with publisher p open over channel c; it is cut off at the end."""
    office = Office(**settings)
    await office.elect()
    async with trio.open_nursery() as nursery:
        await nursery.start(office.run)
        await office.term.open(Open("f", "p", "s"), "c")
        office.calls.clear()
        yield office
        nursery.cancel_scope.cancel()
