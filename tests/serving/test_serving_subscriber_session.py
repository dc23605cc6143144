"""A subscriber's stream: catch-up, live, filters, frames, heartbeats, names, in virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from changefeed.change import Change, Filter, Position
from changefeed.settings import Settings
from changefeed.testing.serving_bench import ids
from changefeed.testing.serving_bench import open_bench as bench
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.messages import Beat, Handled, Start


@pytest.mark.parametrize("subprotocol", [MSGPACK, JSON])
async def test_catch_up_and_live_merge_at_every_step(autojump_clock: MockClock, subprotocol: str) -> None:
    """An append before, between and after each message that a subscriber takes: each event once, in order, whether it
    comes out of the log or the window."""
    settings = Settings(window_bytes=1500, frame_bytes_aim=600)
    async with bench(settings) as b:
        await b.feed.fill(20)
        client = await b.subscribe(subprotocol=subprotocol)
        count = 20
        for _ in range(30):
            await client.hear()
            count += 1
            await b.feed.fill(1, start=count)
            await trio.testing.wait_all_tasks_blocked()
        await client.until(count)
        assert ids(client) == [str(number) for number in range(1, count + 1)]


async def test_appends_at_every_point_of_a_read_from_the_log(autojump_clock: MockClock) -> None:
    """While the log is being read, while its answer is on the way, while the window moves past it."""
    settings = Settings(window_bytes=600, frame_bytes_aim=300)
    async with bench(settings) as b:
        await b.feed.fill(5)
        count = 5
        b.feed.log._store.hook = None

        async def hook(point: str, feed: str) -> None:
            nonlocal count
            if point == "read" and count < 60:
                count += 3
                await b.feed.fill(3, start=count - 2)

        b.feed.log._store.hook = hook
        client = await b.subscribe()
        await client.until(60)
        assert ids(client) == [str(number) for number in range(1, count + 1)][: len(client.events)]
        assert len(client.events) >= 60


async def test_a_filter_selects_and_a_bookmark_never_overtakes_an_event(autojump_clock: MockClock) -> None:
    """With appends while bookmarks are due: the position passes no wanted event before it is delivered."""
    async with bench() as b:
        client = await b.subscribe(filter=Filter({"vm": ()}))
        wanted: list[int] = []
        for number in range(1, 200):
            resource = "vm" if number % 17 == 0 else "nic"
            await b.feed.append([Change(resource, str(number), "update")])
            if resource == "vm":
                wanted.append(number)
            await trio.sleep(0.13)
            if number % 3 == 0 and client.position is not None and client.position.seq < number - 10:
                await client.hear()
                covered = client.position.seq
                assert [event.seq for event in client.events] == [seq for seq in wanted if seq <= covered]
        await client.until(199)
        assert [event.seq for event in client.events] == wanted
        assert any(not frame.runs for frame in client.frames)


async def test_a_filter_that_selects_nothing_still_moves_through_log_and_window(autojump_clock: MockClock) -> None:
    """A subscriber is told that it has caught up at once, not only when the next bookmark is due."""
    async with bench(Settings(window_bytes=2000, frame_bytes_aim=500)) as b:
        await b.feed.fill(100)
        client = await b.subscribe(filter=Filter({"nic": ()}))
        await client.until(100)
        assert (trio.current_time(), client.events, len(client.frames)) == (0, [], 1)


async def test_equal_filters_share_their_frames(autojump_clock: MockClock) -> None:
    """At the tail, a frame is cut and encoded once for all sessions with an equal filter and sub-protocol."""
    async with bench() as b:
        filters = [Filter({"vm": ("state",)}), Filter({"vm": ("state",)}), Filter(), Filter(), Filter({"nic": ()})]
        clients = [await b.subscribe(Start(at="now"), each) for each in filters]
        clients += [await b.subscribe(Start(at="now"), subprotocol=JSON) for _ in range(2)]
        frames = b.feed.subscribers.frames.frames
        for number in range(1, 11):
            await b.feed.fill(1, start=number)
            await trio.testing.wait_all_tasks_blocked()
        assert (frames.misses, frames.hits) == (30, 30)
        for client in (*clients[:4], *clients[5:]):
            await client.until(10)
            assert ids(client) == [str(number) for number in range(1, 11)]


async def test_frames_end_at_group_ends_and_are_of_about_the_size_aimed_at(autojump_clock: MockClock) -> None:
    """A group travels in one frame even if it is larger; frames do not grow beyond the aim otherwise."""
    async with bench(Settings(frame_bytes_aim=2000)) as b:
        await b.feed.append([Change("vm", f"g{n}", "update", None, "x" * 500) for n in range(20)])
        await b.feed.fill(50, body="y" * 100)
        client = await b.subscribe()
        await client.until(70)
        assert client.frames[0].to.seq == 20
        for frame in client.frames[1:]:
            assert sum(len(each.payload) for each in frame.runs) <= 2000
        assert all(event.last == (event.seq >= 20) for event in client.events)


async def test_heartbeats_go_both_ways_when_idle(autojump_clock: MockClock) -> None:
    """The server beats every heartbeat_s with head, epoch and staleness; a client that says nothing is let go."""
    async with bench() as b:
        await b.feed.fill(3)
        client = await b.subscribe(Start(at="now"), beats=False)
        b.feed.stale = 2.5
        heard = await client.hear_all()
        assert heard[:2] == [Beat(1, 3, 2.5)] * 2
        assert (heard[2].code, heard[3].close_code_received) == ("stalled", 4412)
        assert trio.current_time() == 25


async def test_handled_positions_are_listed_by_name(autojump_clock: MockClock) -> None:
    """Both of two connections of one name; who left stays, with position and reason, until the memory ends."""
    async with bench(Settings(subscriber_memory_s=100)) as b:
        await b.feed.fill(5)
        first = await b.subscribe(name="dns", filter=Filter({"vm": ("state",)}, frozenset(map(str, range(20)))))
        second = await b.subscribe(name="dns")
        await first.until(5)
        await first.say(Handled(Position(b.feed.log.lineage, 1, b.feed.term, 3)))
        await second.say(Handled(Position(b.feed.log.lineage, 1, b.feed.term, 99)))
        await trio.sleep(1)
        listed = b.feed.subscribers.snapshot(5)
        assert sorted((each["name"], each["handled_seq"], each["lag"]) for each in listed) == [
            ("dns", 3, 2),
            ("dns", 5, 0),
        ]
        shown = next(each for each in listed if each["handled_seq"] == 3)
        assert shown["filter"]["resources"] == {"vm": ["state"]} and shown["filter"]["ids_count"] == 20
        first.connection.abort()
        await trio.testing.wait_all_tasks_blocked()
        await second.connection.aclose()
        await trio.sleep(1)
        (left,) = b.feed.subscribers.snapshot(5)
        assert (left["connected"], left["reason"], left["left"]) == (False, "left", 1000)
        again = await b.subscribe(name="dns")
        (back,) = b.feed.subscribers.snapshot(5)
        assert (back["connected"], back["before"]) == (True, "left")
        again.connection.abort()
        await trio.sleep(102)
        assert b.feed.subscribers.snapshot() == []


async def test_names_that_left_are_bounded(autojump_clock: MockClock) -> None:
    async with bench(Settings(subscribers_named_max=3)) as b:
        for number in range(10):
            client = await b.subscribe(name=f"n{number}")
            client.connection.abort()
            await trio.testing.wait_all_tasks_blocked()
        assert [each["name"] for each in b.feed.subscribers.snapshot()] == ["n7", "n8", "n9"]
