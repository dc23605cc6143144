"""Chaos found: exactly once was twice, for filtered groups. Who applies whole groups saves the position of the last
event that it was given of a group. Where the filter selects nothing of the group behind that one, the position lies
inside of the group, and a restart began at the group's first event: the group was applied again."""

from __future__ import annotations

import sqlite3

import pytest
import trio
from trio.testing import MockClock

from changefeed import SqliteCursor, open_subscription
from changefeed.batch import Entry
from changefeed.change import Change, Filter, Position
from changefeed.serving.entry import serve_connection
from changefeed.serving.filters import compile_filter
from changefeed.serving.machine import group_start
from changefeed.testing.fake_feed import FakeFeed
from changefeed.testing.serving_bench import ServingBench, ids, no_peers, open_bench
from changefeed.transport import Connection, Request
from changefeed.transport.memory import connection_pair
from changefeed.wire import MSGPACK
from changefeed.wire.messages import Start

VMS = Filter({"vm": ()})
#: One group: of it the filter selects the first and the third change.
GROUP = [
    Change("vm", "a", "create"),
    Change("nic", "b", "create"),
    Change("vm", "c", "create"),
    Change("nic", "d", "x"),
]


async def _bench(b: ServingBench) -> None:
    await b.feed.append(GROUP)
    await b.feed.append([Change("vm", "e", "create"), Change("nic", "f", "create")])


@pytest.mark.parametrize(
    ("seq", "start", "got"),
    [
        (1, 0, ["a", "c", "e"]),  # "c" is still to come: the group from its beginning
        (2, 0, ["a", "c", "e"]),
        (3, 3, ["e"]),  # nothing of it is left for this subscriber
        (4, 4, ["e"]),
        (5, 5, []),
    ],
)
async def test_a_group_of_which_nothing_is_left_is_not_given_again(
    seq: int, start: int, got: list[str], autojump_clock: MockClock
) -> None:
    """Whole groups go back to a group's beginning only while the filter selects something of it behind the position."""
    async with open_bench() as b:
        await _bench(b)
        at = Position(b.feed.log.lineage, 1, b.feed.term, seq)
        client = await b.subscribe(Start(position=at), VMS, groups=True)
        assert client.position is not None and client.position.seq == start
        await client.until(6)
        assert ids(client) == got


async def test_without_a_filter_a_position_inside_is_inside(autojump_clock: MockClock) -> None:
    async with open_bench() as b:
        await _bench(b)
        (entry, *_) = await b.feed.log.read(0, 1)
        look = await b.feed.log.look()
        at = Position(b.feed.log.lineage, 1, b.feed.term, 3)
        assert group_start(at, entry, look).seq == 0
        assert group_start(at, entry, look, compile_filter(Filter({"nic": ()}))).seq == 0
        assert group_start(at, entry, look, compile_filter(VMS)) == at
        assert isinstance(entry, Entry)


async def test_filtered_groups_are_applied_exactly_once_over_restarts(autojump_clock: MockClock) -> None:
    """The example of docs/examples/exactly_once.py with a filter, restarted behind every group."""
    feed = await FakeFeed.create()
    await feed.append(GROUP)
    await feed.append([Change("vm", "e", "create"), Change("nic", "f", "create")])
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute("CREATE TABLE applied (seq INTEGER, id TEXT)")
    async with trio.open_nursery() as nursery:

        async def connect() -> Connection:
            near, far = connection_pair(MSGPACK)
            nursery.start_soon(serve_connection, far, Request("/v1"), {feed.name: feed}, no_peers, feed.settings)
            return near

        for _ in range(3):
            cursor = SqliteCursor(database, "agent", feed.name)
            with trio.move_on_after(5):
                async with open_subscription(
                    feed.name, cursor=cursor, start="beginning", filter=VMS, connect=connect
                ) as subscription:
                    async for group in subscription.groups():
                        database.execute("BEGIN IMMEDIATE")
                        database.executemany("INSERT INTO applied VALUES (?, ?)", [(e.seq, e.id) for e in group])
                        cursor.save(group[-1].position)
                        database.execute("COMMIT")
                        break
        nursery.cancel_scope.cancel()
    assert database.execute("SELECT seq, id FROM applied").fetchall() == [(1, "a"), (3, "c"), (5, "e")]
