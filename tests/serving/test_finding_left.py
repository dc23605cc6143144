"""How status names the end of a subscription: a subscriber that says goodbye is not one whose connection was lost."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from changefeed import open_subscription
from changefeed.change import Position
from changefeed.errors import ConnectionLost, Moved, PositionTooOld
from changefeed.serving.entry import serve_connection
from changefeed.serving.machine import Session, Sight
from changefeed.settings import Settings
from changefeed.testing.fake_feed import FakeFeed
from changefeed.testing.serving_bench import open_bench
from changefeed.transport import Connection, Request
from changefeed.transport.memory import connection_pair
from changefeed.wire import MSGPACK

START = Position("a" * 16, 1, "b" * 8, 5)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionLost("closed", 1000), "left"),
        (ConnectionLost("a browser's tab", 1001), "left"),
        (ConnectionLost("broken", 1006), "connection-lost"),
        (ConnectionLost("the client met an error", 4541), "connection-lost"),
        (PositionTooOld("trimmed"), "position-too-old"),
        (Moved("go"), "moved"),
    ],
)
def test_the_reason_of_an_end(error: Exception, reason: str) -> None:
    session = Session(START, Settings(), 0.0, 0.5)
    assert session.ended(error) == reason  # type: ignore[arg-type]


def test_a_subscriber_that_goes_where_it_was_sent_has_moved() -> None:
    """Also from a stale instance, which keeps those that do not go."""
    for draining in (True, False):
        session = Session(START, Settings(), 0.0, 0.5)
        session.step(0.0, Sight(5, 1, 100.0, ("ws://other:1",), draining))
        assert session.ended(ConnectionLost("closed", 1000)) == "moved"


async def test_the_client_says_goodbye(autojump_clock: MockClock) -> None:
    """A block that ends normally, and one that breaks out of its loop, close with 1000; a cancelled one just goes."""
    async with open_bench() as b:
        feed = b.feed
        await feed.fill(3)

        async def connect() -> Connection:
            mine, served = connection_pair(MSGPACK)
            b.nursery.start_soon(_serve, served, feed)
            return mine

        def reasons() -> dict[str, str]:
            return {each["name"]: each["reason"] for each in feed.subscribers.snapshot()}

        async with open_subscription("vmapi", connect=connect, start="beginning", name="breaks") as events:
            async for event in events:
                if event.seq == 3:
                    break
        async with open_subscription("vmapi", connect=connect, name="ends"):
            pass
        with trio.CancelScope() as scope:
            async with open_subscription("vmapi", connect=connect, name="cancelled"):
                scope.cancel()
                await trio.sleep(1)
        with pytest.raises(ZeroDivisionError):
            async with open_subscription("vmapi", connect=connect, name="raises"):
                raise ZeroDivisionError
        await trio.sleep(1)
        assert reasons() == {
            "breaks": "left",
            "ends": "left",
            "cancelled": "connection-lost",
            "raises": "connection-lost",
        }
        assert feed.subscribers.snapshot()[0]["handled_seq"] == 3


async def _serve(connection: Connection, feed: FakeFeed) -> None:
    async def peers(connection: Connection, first: object) -> None:
        raise AssertionError("no peer comes")

    await serve_connection(connection, Request("/v1"), {"vmapi": feed}, peers, feed.settings)
