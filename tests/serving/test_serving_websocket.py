"""Sessions over real websockets: many subscribers in both encodings, one that does not read, a publisher."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio

from changefeed.change import Change
from changefeed.serving.entry import serve_connection
from changefeed.serving.http import Routes
from changefeed.settings import Settings
from changefeed.testing.fake_feed import FakeFeed, FakeLeader, ServingClient
from changefeed.testing.serving_bench import ids, no_peers
from changefeed.transport import Request
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import JSON, MSGPACK, SUBPROTOCOLS
from changefeed.wire.changes import encode_change
from changefeed.wire.messages import Open, Opened, Publish, Start, Subscribe

COUNT = 600


async def serve(feed: FakeFeed, connection: Any, request: Request) -> None:
    await serve_connection(connection, request, {feed.name: feed}, no_peers, feed.settings)


@pytest.mark.parametrize("frame_bytes_aim", [2000, 256 * 1024])
async def test_a_publisher_and_many_subscribers(frame_bytes_aim: int) -> None:
    """Everything published arrives once and in order at each, beside one that never reads."""
    feed = await FakeFeed.create(Settings(frame_bytes_aim=frame_bytes_aim, window_bytes=100_000))
    leader = FakeLeader(feed)
    feed.set_leader(leader)
    network = WebsocketNetwork(feed.settings)
    listener = await network.listen("127.0.0.1", 0, subprotocols=SUBPROTOCOLS, message_bytes_max=2**24)
    url = f"ws://127.0.0.1:{listener.address[1]}"

    async def client(subprotocol: str, first: Any) -> ServingClient:
        connection = await network.connect(url, subprotocols=(subprotocol,), message_bytes_max=2**24, timeout_s=10)
        made = ServingClient(connection, feed.log.lineage)
        await made.say(first)
        return made

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, partial(serve, feed), Routes(dict, lambda: (True, [])).respond)
            nursery.start_soon(leader.work, COUNT)
            subscribe = Subscribe("vmapi", Start(at="beginning"), "agent")
            readers = [await client(subprotocol, subscribe) for subprotocol in (MSGPACK, JSON) * 3]
            await client(MSGPACK, subscribe)
            publisher = await client(MSGPACK, Open("vmapi", "napi", "s"))
            assert isinstance(await publisher.hear(), Opened)
            async with trio.open_nursery() as reading:
                for reader in readers:
                    reading.start_soon(reader.until, COUNT)
                for number in range(1, COUNT + 1):
                    body = encode_change(Change("vm", str(number), "update", None, "x" * 1000), 2**20)
                    await publisher.say(Publish(number - 1, number, (1,), body))
                    assert (await publisher.hear()).first.seq == number
            for reader in readers:
                assert ids(reader) == [str(number) for number in range(1, COUNT + 1)]
            assert (await network.get(url + "/readyz", timeout_s=5)).status == 200
            nursery.cancel_scope.cancel()
    await listener.aclose()
