"""A server of a model feed over a memory network, and a subscription to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from model_feed import ModelFeed

from changefeed.change import Event
from changefeed.errors import (
    OtherLineage,
)
from changefeed.ports import SeededEntropy, World
from changefeed.subscriber.driver import Subscription, open_subscription
from changefeed.testing.scripted import Peer, ScriptedServer, open_scripted_server
from changefeed.transport.memory import MemoryNetwork
from changefeed.wire.messages import Subscribe


def make_feed(*groups: int, epoch: int = 1) -> ModelFeed:
    feed = ModelFeed()
    for size in groups:
        feed.append(size, epoch)
    return feed


@asynccontextmanager
async def opened(network: MemoryNetwork, **options: Any) -> AsyncIterator[Subscription]:
    async with open_subscription(
        "vmapi",
        options.pop("servers", "ws://127.0.0.1:7557"),
        network=network,
        world=World(entropy=SeededEntropy(1)),
        **{"start": "beginning", "name": "me", **options},
    ) as subscription:
        yield subscription


async def serve(peer: Peer, feed: ModelFeed, per_frame: int = 5) -> None:
    """Serve a connection from the feed as a server would, with a bookmark at the end, until the client goes."""
    try:
        asked = await peer.expect(Subscribe)
        after = feed.place(asked.start, asked.groups)
        if asked.start.position is not None and asked.start.position.lineage != feed.lineage:
            head = feed.position(feed.head)
            await peer.fail(OtherLineage("another log", asked.start.position, feed.position(0), head))
            return
        await peer.send(feed.subscribed(after))
        while after < feed.head:
            to = feed.group_end(min(feed.head, after + per_frame))
            await peer.send(feed.frame(after, to))
            after = to
        await peer.listen()
    except Exception:
        return


async def serve_all(server: ScriptedServer, feed: ModelFeed, per_frame: int = 5) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(serve, await server.accept(), feed, per_frame)


@asynccontextmanager
async def serving(feed: ModelFeed, per_frame: int = 5) -> AsyncIterator[MemoryNetwork]:
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, trio.open_nursery() as nursery:
        nursery.start_soon(serve_all, server, feed, per_frame)
        yield network
        nursery.cancel_scope.cancel()


async def take(subscription: Subscription, count: int) -> list[Event]:
    """Ask `count` times; the last one is not handled by that."""
    return [await subscription.__anext__() for _ in range(count)]
