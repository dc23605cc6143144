"""What the conformance suite of coordinators needs: a place to open them at, and ways to wait without guessing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import trio
import trio.testing

from changefeed.coordination import Alive, Coordinator, Member, View
from changefeed.errors import CoordinatorUnavailable

FEED: Final = "vmapi"
LIMIT_S: Final = 20.0


class Place(Protocol):
    """One coordinator's data, empty at first, and what can be done to it."""

    def open(self, alive: Alive | None = None) -> Coordinator:
        """A new participant, as another process would open it."""

    async def end_session(self, who: Coordinator) -> None:
        """The session of `who` ends as by a time-out, while its process goes on: it will join again."""

    async def crash(self, who: Coordinator) -> None:
        """The process of `who` dies without a word, and the coordinator has had the time to notice."""

    async def wipe(self) -> None:
        """All data of the coordinator is lost while its participants go on."""


def member(name: str, *, process: str = "", candidate: bool = True) -> Member:
    return Member(name, process or f"process-of-{name}", f"ws://127.0.0.1:1/{name}", candidate, (FEED,))


@asynccontextmanager
async def participants(place: Place, *names: str) -> AsyncIterator[list[Coordinator]]:
    """Started coordinators, closed at the end."""
    opened = [place.open() for _ in names]
    try:
        with trio.fail_after(LIMIT_S):
            for name, coordinator in zip(names, opened, strict=True):
                await coordinator.start(member(name))
        yield opened
    finally:
        with trio.CancelScope(shield=True):
            for coordinator in opened:
                await coordinator.aclose()


async def eventually(what: str, probe: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the probe says yes. Answers that cannot be had meanwhile do not count."""
    with trio.move_on_after(LIMIT_S):
        while True:
            try:
                if await probe():
                    return
            except CoordinatorUnavailable:
                pass
            await trio.sleep(0.01)
    raise AssertionError(f"did not happen within {LIMIT_S:g} s: {what}")


async def insist(act: Callable[[], Awaitable[View | None]]) -> View | None:
    """Do it again while the coordinator cannot be asked (a session is just being made anew)."""
    with trio.fail_after(LIMIT_S):
        while True:
            try:
                return await act()
            except CoordinatorUnavailable:
                await trio.sleep(0.01)


async def lead(coordinator: Coordinator) -> View:
    """Take the lead of FEED, which nobody leads."""

    async def act() -> View | None:
        return await coordinator.take(FEED, await coordinator.read(FEED))

    view = await insist(act)
    assert view is not None, "nobody leads, nobody else takes: taking the lead must succeed"
    return view


async def change_after(coordinator: Coordinator, known: View | None, cause: Callable[[], Awaitable[object]]) -> View:
    """What wait_change returns if `cause` happens while it waits."""
    seen: list[View] = []

    async def wait() -> None:
        seen.append(await coordinator.wait_change(FEED, known))

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not seen, f"wait_change returned {seen} although nothing had changed since {known}"
            await cause()
    return seen[0]
