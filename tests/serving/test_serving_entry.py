"""A connection's first message, and what ends a connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from changefeed.errors import ConnectionLost, LogDamaged, NotCurrent, NotDeclaredHere
from changefeed.serving.closing import close_with, typed_error
from changefeed.serving.entry import serve_connection
from changefeed.settings import Settings
from changefeed.testing.fake_feed import FakeFeed, ServingClient
from changefeed.transport import Request
from changefeed.transport.memory import connection_pair
from changefeed.wire import MSGPACK, PEER
from changefeed.wire.codec import encode
from changefeed.wire.messages import Ask, Beat, Fault, Start, Subscribe

SUBSCRIBE = Subscribe("vmapi", Start(at="beginning"), "agent")


async def serve(first: Any, feeds: Mapping[str, Any], peers: Any = None, subprotocol: str = MSGPACK) -> list[Any]:
    """Everything that the peer hears after its first message."""
    near, far = connection_pair(subprotocol)
    client = ServingClient(near, "0" * 16)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, far, Request("/v1"), feeds, peers, Settings())
        await near.send(first if isinstance(first, bytes | str) else encode(first, subprotocol))
        return await client.hear_all()


async def test_peers_get_their_connection_with_its_first_message(autojump_clock: MockClock) -> None:
    """Known by the sub-protocol; what the peer handler raises is told like anything else."""
    heard: list[Any] = []

    async def peers(connection: Any, first: Any) -> None:
        heard.append(first)
        raise NotDeclaredHere("not here")

    fault, lost = await serve(Ask("vmapi", "p"), {}, peers, PEER)
    assert heard == [Ask("vmapi", "p")]
    assert (fault.code, lost.close_code_received) == ("not-declared-here", 4500)
    fault, _ = await serve(encode(Beat(), MSGPACK), {}, peers, PEER)
    assert fault.code == "bad-message" and len(heard) == 1


@pytest.mark.parametrize("error", [NotCurrent("being opened"), LogDamaged("a hole")])
async def test_a_feed_that_is_not_served_now_says_why(autojump_clock: MockClock, error: Any) -> None:
    class Feeds(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise error

    fault, lost = await serve(SUBSCRIBE, Feeds())
    assert (fault.code, fault.message, lost.close_code_received) == (error.code, str(error), error.close_code)


async def test_a_bug_is_left_to_the_transport(autojump_clock: MockClock) -> None:
    """What is no typed error is not told to the peer as one."""
    feed = await FakeFeed.create()
    feed.declared = None  # type: ignore[assignment,method-assign]
    near, far = connection_pair(MSGPACK)
    await near.send(encode(SUBSCRIBE, MSGPACK))
    with pytest.raises(TypeError):
        await serve_connection(far, Request("/v1"), {"vmapi": feed}, None, Settings())  # type: ignore[arg-type]


def test_the_error_that_tells_most_is_found_in_groups() -> None:
    lost, moved = ConnectionLost("gone"), NotCurrent("ask again")
    assert typed_error(lost) is lost
    assert typed_error(ExceptionGroup("", [lost, ExceptionGroup("", [moved])])) is moved
    assert typed_error(ExceptionGroup("", [lost, ValueError()])) is None
    assert typed_error(ValueError()) is None


async def test_a_peer_that_takes_nothing_is_not_waited_for(autojump_clock: MockClock) -> None:
    near, far = connection_pair(MSGPACK, buffer_bytes=10)
    await far.send(b"x" * 100)
    await close_with(far, NotCurrent("x"))
    assert trio.current_time() == 2
    with pytest.raises(ConnectionLost):
        await near.receive()


async def test_the_fault_is_the_last_message(autojump_clock: MockClock) -> None:
    near, far = connection_pair(MSGPACK)
    await close_with(far, NotCurrent("x"))
    heard = await ServingClient(near, "0" * 16).hear_all()
    assert isinstance(heard[0], Fault) and heard[1].close_code_received == 4401 and heard[1].reason == "not-current"
