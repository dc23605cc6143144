"""A publisher at a steady rate, and what it saw: every receipt with its time. Used by the failover measurements."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import trio

from changefeed import Change, open_publisher
from changefeed.publisher.driver import Pending


@dataclass
class Load:
    """receipts: (trio time, seq) in order. sent: how many were submitted."""

    sent: int = 0
    receipts: list[tuple[float, int]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _wake: trio.Event = field(default_factory=trio.Event)

    def longest_gap(self, since: float, until: float | None = None) -> float:
        """The longest time without a receipt from `since` on, counted from the last receipt before it."""
        times = [at for at, _ in self.receipts if until is None or at <= until]
        earlier = [at for at in times if at <= since]
        times = ([earlier[-1]] if earlier else [since]) + [at for at in times if at > since]
        return max((b - a for a, b in pairwise(times)), default=float("inf"))

    async def more(self, count: int, within_s: float) -> None:
        """Until `count` more receipts have come; raises trio.TooSlowError."""
        want = len(self.receipts) + count
        with trio.fail_after(within_s):
            while len(self.receipts) < want:
                self._wake = trio.Event()
                await self._wake.wait()

    def got(self, seq: int) -> None:
        self.receipts.append((trio.current_time(), seq))
        self._wake.set()


@asynccontextmanager
async def steady_load(
    feed: str, servers: str, *, per_second: int = 1000, name: str = "load", record: Path | None = None
) -> AsyncIterator[Load]:
    """Publish one change every 1/per_second until the block ends; then wait for what is out (at most 30 s)."""
    load = Load()
    send, receive = trio.open_memory_channel[tuple[int, Pending]](100_000)
    out = None if record is None else record.open("a", buffering=1)

    async def publish(stop: trio.Event) -> None:
        due = trio.current_time()
        async with send:
            while not stop.is_set():
                load.sent += 1
                change = Change("thing", f"{name}-{load.sent}", "update", ("n",), {"n": load.sent, "by": name})
                await send.send((load.sent, await publisher.submit(change)))
                due += 1 / per_second
                await trio.sleep_until(max(due, trio.current_time()))

    async def collect() -> None:
        async for number, pending in receive:
            receipt = await pending.wait()
            load.got(receipt.last.seq)
            if out is not None:
                out.write(json.dumps([number, receipt.last.seq]) + "\n")

    try:
        async with open_publisher(feed, servers) as publisher:
            stop = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish, stop)
                nursery.start_soon(collect)
                await load.more(50, 20)
                yield load
                stop.set()
                nursery.cancel_scope.deadline = trio.current_time() + 30
    finally:
        if out is not None:
            out.close()


async def whole_feed(feed: str, servers: str) -> list[tuple[int, str]]:
    """(seq, id) of every event from the beginning to the head, as a subscriber sees it."""
    from changefeed import open_subscription

    seen: list[tuple[int, str]] = []
    async with open_subscription(feed, servers, start="beginning") as subscription:
        head = subscription.state.head or 0
        async for event in subscription:
            seen.append((event.seq, event.id))
            if event.seq >= head and subscription.state.caught_up:
                break
    return seen
