"""One fake feed with the server's side of as many connections as a test opens, over the transport in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from changefeed.change import Filter
from changefeed.errors import ConnectionLost
from changefeed.serving.entry import serve_connection
from changefeed.settings import Settings
from changefeed.testing.fake_feed import FakeFeed, ServingClient
from changefeed.transport import Request
from changefeed.transport.memory import MemoryConnection, connection_pair
from changefeed.wire import MSGPACK
from changefeed.wire.messages import Beat, Fault, Start, Subscribe, Subscribed

BEGINNING = Start(at="beginning")


async def no_peers(connection: Any, first: Any) -> None:
    raise AssertionError("not a peer's connection")


class ServingBench:
    """One feed and the server's side of as many connections as a test opens."""

    def __init__(self, feed: FakeFeed, nursery: trio.Nursery) -> None:
        self.feed = feed
        self.nursery = nursery

    def connect(self, subprotocol: str = MSGPACK, **options: Any) -> ServingClient:
        near, far = connection_pair(subprotocol, **options)
        self.nursery.start_soon(self._serve, far)
        return ServingClient(near, self.feed.log.lineage)

    async def _serve(self, far: MemoryConnection) -> None:
        feed = self.feed
        await serve_connection(far, Request("/v1"), {feed.name: feed}, no_peers, feed.settings)
        await far.aclose()

    async def subscribe(
        self,
        start: Start = BEGINNING,
        filter: Filter | None = None,
        *,
        name: str = "agent",
        groups: bool = False,
        subprotocol: str = MSGPACK,
        beats: bool = True,
        **options: Any,
    ) -> ServingClient:
        """A subscriber that was welcomed. beats: it says something often enough to be taken for alive."""
        client = self.connect(subprotocol, **options)
        await client.say(Subscribe(self.feed.name, start, name, filter or Filter(), groups))
        welcome = await client.hear()
        assert isinstance(welcome, Subscribed), welcome
        if beats:
            self.nursery.start_soon(self._beat, client)
        return client

    async def _beat(self, client: ServingClient) -> None:
        try:
            while True:
                await trio.sleep(5)
                await client.say(Beat())
        except ConnectionLost:
            pass

    async def refused(self, subscribe: Any) -> tuple[Fault, ConnectionLost]:
        """What a first message is refused with, and how the connection is closed."""
        client = self.connect()
        await client.say(subscribe)
        fault, lost = await client.hear_all()
        assert isinstance(fault, Fault) and isinstance(lost, ConnectionLost)
        return fault, lost


@asynccontextmanager
async def open_bench(settings: Settings | None = None, *, vouched: bool = True) -> AsyncIterator[ServingBench]:
    feed = await FakeFeed.create(settings, vouched=vouched)
    async with trio.open_nursery() as nursery:
        yield ServingBench(feed, nursery)
        nursery.cancel_scope.cancel()


def ids(client: ServingClient) -> list[str]:
    """The object ids of the events that came, in order."""
    return [event.id for event in client.events]
