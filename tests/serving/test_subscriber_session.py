"""A subscriber's connection, from its first message to its end, on a real log in memory and in virtual time."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from changefeed.batch import Tail
from changefeed.change import Change, Filter, Position, Resource
from changefeed.change import FeedSettings as Declaration
from changefeed.errors import ConnectionLost, LogUnavailable
from changefeed.serving.entry import serve_connection
from changefeed.settings import Settings
from changefeed.testing.fake_feed import FakeFeed, ServingClient
from changefeed.transport import Request
from changefeed.transport.memory import MemoryConnection, connection_pair
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.messages import Beat, Events, Fault, Handled, Redirect, Start, Subscribe, Subscribed

BEGINNING = Start(at="beginning")


async def no_peers(connection: Any, first: Any) -> None:
    raise AssertionError("not a peer's connection")


class Bench:
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
async def bench(settings: Settings | None = None, *, vouched: bool = True) -> AsyncIterator[Bench]:
    feed = await FakeFeed.create(settings, vouched=vouched)
    async with trio.open_nursery() as nursery:
        yield Bench(feed, nursery)
        nursery.cancel_scope.cancel()


def ids(client: ServingClient) -> list[str]:
    return [event.id for event in client.events]


# ---- starts


async def test_every_start_mode(autojump_clock: MockClock) -> None:
    """Beginning, now, a position, a time; the welcome says where the subscription stands and where the head is."""
    async with bench() as b:
        for number in range(1, 11):
            await b.feed.append([Change("vm", str(number), "update")], time=number * 100)
        head = b.feed.tail.position(b.feed.log.lineage)
        for start, first in (
            (Start(at="beginning"), 1),
            (Start(at="now"), 11),
            (Start(position=Position(head.lineage, 1, b.feed.term, 4)), 5),
            (Start(time=350), 4),
            (Start(time=400), 4),
            (Start(time=0), 1),
            (Start(time=10**12), 11),
        ):
            client = await b.subscribe(start)
            assert client.welcome is not None
            assert (client.welcome.position.seq, client.welcome.head) == (first - 1, head)
            assert (client.welcome.leader, client.welcome.epoch) == ("i1", 1)
            if first <= 10:
                await client.until(10)
            assert ids(client) == [str(number) for number in range(first, 11)]


async def test_positions_that_cannot_be_resumed_are_refused_from_the_log(autojump_clock: MockClock) -> None:
    """Each with its code, a close code that says "do not reconnect", and where the log begins and ends."""
    async with bench() as b:
        await b.feed.fill(10)
        await b.feed.log.trim(1, b.feed.term, 4)
        lineage, term = b.feed.log.lineage, b.feed.term
        for position, code, close in (
            (Position(lineage, 1, term, 3), "position-too-old", 4531),
            (Position(lineage, 1, term, 11), "future-position", 4533),
            (Position(lineage, 7, "00000007", 6), "other-lineage", 4532),
            (Position("f" * 16, 1, term, 6), "other-lineage", 4532),
        ):
            fault, lost = await b.refused(Subscribe("vmapi", Start(position=position), "agent"))
            assert (fault.code, fault.retryable, lost.close_code_received) == (code, False, close)
            assert fault.details == {
                "position": str(position),
                "earliest": f"{lineage}.1.{term}.4",
                "head": f"{lineage}.1.{term}.10",
            }
        assert (await b.refused(Subscribe("vmapi", Start(time=0), "agent")))[0].code == "position-too-old"


async def test_an_instance_that_is_behind_refuses_nothing_that_the_log_holds(autojump_clock: MockClock) -> None:
    """A position beyond its visible tail is accepted, and served once somebody vouches for what follows."""
    async with bench() as b:
        await b.feed.fill(3)
        hidden = [await b.feed.append([Change("vm", "x", "create")], visible=False) for _ in range(2)]
        position = Position(b.feed.log.lineage, 1, b.feed.term, 4)
        client = await b.subscribe(Start(position=position))
        assert client.welcome is not None and client.welcome.head.seq == 3
        with trio.move_on_after(3):
            raise AssertionError(await client.hear())
        b.feed.show(hidden)
        await client.until(5)
        assert [event.seq for event in client.events] == [5]


async def test_a_log_that_cannot_be_asked_is_no_reason_for_a_final_no(autojump_clock: MockClock) -> None:
    """not-current, which means: ask again; whether it fails or does not answer."""
    async with bench() as b:
        await b.feed.fill(1)
        wrong = Subscribe("vmapi", Start(position=Position("f" * 16, 1, b.feed.term, 1)), "agent")
        b.feed.faults.outage = True
        fault, lost = await b.refused(wrong)
        assert (fault.code, fault.retryable, lost.close_code_received) == ("not-current", True, 4401)
        b.feed.faults.outage = False
        b.feed.faults.plan("look", delay_s=100)
        fault, _ = await b.refused(wrong)
        assert fault.code == "not-current" and "within 2 s" in fault.message
        assert (await b.refused(wrong))[0].code == "other-lineage"


async def test_now_waits_for_a_leader(autojump_clock: MockClock) -> None:
    """Nobody knows where now is before somebody vouches for a tail; for so long as a handshake may take."""
    async with bench(vouched=False) as b:
        client = b.connect()
        await client.say(Subscribe("vmapi", Start(at="now"), "agent"))
        await trio.sleep(1)
        b.feed.vouch()
        assert isinstance(await client.hear(), Subscribed)
        b.feed.window.tail = None
        assert (await b.refused(Subscribe("vmapi", Start(at="now"), "agent")))[0].code == "not-current"


async def test_nothing_beyond_the_visible_tail_is_served(autojump_clock: MockClock) -> None:
    """Neither out of the log, nor before anybody has vouched for anything."""
    async with bench(vouched=False) as b:
        await b.feed.append([Change("vm", "1", "create")], visible=False)
        client = await b.subscribe()
        with trio.move_on_after(2):
            raise AssertionError(await client.hear())
        b.feed.vouch()
        await b.feed.append([Change("vm", "2", "create")], visible=False)
        await client.until(1)
        with trio.move_on_after(2):
            raise AssertionError(await client.hear())
        assert ids(client) == ["1"]


async def test_a_position_inside_a_group(autojump_clock: MockClock) -> None:
    """An event iterator goes on inside it; groups start at the group's first event."""
    async with bench() as b:
        await b.feed.fill(1)
        await b.feed.append(
            [Change("vm", "a", "create")],
            [Change("vm", name, "create") for name in "bcd"],
            [Change("vm", "e", "delete")],
        )
        inside = Position(b.feed.log.lineage, 1, b.feed.term, 4)
        client = await b.subscribe(Start(position=inside))
        await client.until(6)
        assert [(event.id, event.group, event.last) for event in client.events] == [("d", 3, True), ("e", 6, True)]
        client = await b.subscribe(Start(position=inside), groups=True)
        assert client.position is not None and client.position.seq == 2
        await client.until(6)
        assert [(event.id, event.group, event.last) for event in client.events] == [
            ("b", 3, False), ("c", 3, False), ("d", 3, True), ("e", 6, True),
        ]  # fmt: skip
        end = Position(b.feed.log.lineage, 1, b.feed.term, 5)
        client = await b.subscribe(Start(position=end), groups=True)
        assert client.position == end


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (Subscribe("vmapj", BEGINNING, "agent"), "unknown-feed"),
        (Subscribe("vmapi", BEGINNING, "agent", Filter({"vn": ()})), "unknown-resource"),
        (Subscribe("vmapi", BEGINNING, "agent", Filter({"vm": ("stat",)})), "unknown-field"),
        (Beat(), "bad-message"),
        (Handled(Position.beginning("0" * 16)), "bad-message"),
    ],
)
async def test_first_messages_that_are_refused(autojump_clock: MockClock, first: Any, code: str) -> None:
    """With the nearest name, where a name is meant."""
    async with bench() as b:
        b.feed.declaration = Declaration((Resource("vm", ("state",)),))
        fault, lost = await b.refused(first)
        assert fault.code == code and 4500 <= lost.close_code_received < 5000
        if code.startswith("unknown"):
            assert any(name in fault.message for name in ("vmapi", "vm", "state"))


async def test_a_silent_connection_is_let_go(autojump_clock: MockClock) -> None:
    async with bench() as b:
        client = b.connect()
        fault, lost = await client.hear_all()
        assert (fault.code, lost.close_code_received) == ("handshake-timeout", 4403)
        assert trio.current_time() == b.feed.settings.handshake_s


# ---- the stream


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
        await second.connection.aclose()
        await trio.sleep(1)
        (left,) = b.feed.subscribers.snapshot(5)
        assert (left["connected"], left["reason"], left["left"]) == (False, "connection-lost", 1000)
        again = await b.subscribe(name="dns")
        (back,) = b.feed.subscribers.snapshot(5)
        assert (back["connected"], back["before"]) == (True, "connection-lost")
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


# ---- slow, trimmed, broken


async def test_a_slow_reader_is_served_from_the_log_and_holds_no_memory(autojump_clock: MockClock) -> None:
    """It reads an event now and then while megabytes pass by: nothing is kept for it; in the end it has everything."""
    settings = Settings(window_bytes=50_000, frame_bytes_aim=20_000)
    async with bench(settings) as b:
        fast = await b.subscribe(name="fast")
        body = "z" * 2000

        async def growth(start: int) -> int:
            """By how much memory grows with 1,000 events that the fast reader takes; the log itself is in memory."""
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            await b.feed.fill(1000, start=start, body=body)
            await fast.until(start + 999)
            fast.events.clear()
            fast.frames.clear()
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before

        tracemalloc.start()
        await growth(1)
        alone = await growth(1001)
        slow = await b.subscribe(buffer_bytes=40_000)
        beside = await growth(2001)
        tracemalloc.stop()
        assert alone > 2_000_000, "what the log itself holds was not seen"
        assert beside < alone + 200_000, "memory grew with what the slow reader has not read"
        await slow.until(3000)
        assert ids(slow) == [str(number) for number in range(1, 3001)]


async def test_a_reader_that_takes_nothing_is_cut_after_stall_after(autojump_clock: MockClock) -> None:
    """Though it still beats; the others go on."""
    async with bench(Settings(frame_bytes_aim=1000)) as b:
        await b.feed.fill(1)
        client = await b.subscribe(buffer_bytes=2000)
        other = await b.subscribe(name="other")
        await b.feed.fill(20, start=2, body="x" * 900)
        await other.until(21)
        await trio.sleep(29)
        assert len(b.feed.subscribers) == 2
        await trio.sleep(2 + 30)
        assert len(b.feed.subscribers) == 1
        (left,) = [each for each in b.feed.subscribers.snapshot() if not each["connected"]]
        assert (left["name"], left["reason"]) == ("agent", "stalled")
        with pytest.raises(ConnectionLost):
            await client.hear()


async def test_a_position_that_falls_out_of_retention_is_told(autojump_clock: MockClock) -> None:
    """PositionTooOld from a fresh look, with what the subscriber may do instead; never a silent jump."""
    async with bench(Settings(window_bytes=100, frame_bytes_aim=1000)) as b:
        client = await b.subscribe(buffer_bytes=2000)
        await b.feed.fill(40, body="x" * 900)
        await trio.testing.wait_all_tasks_blocked()
        await b.feed.log.trim(1, b.feed.term, 35)
        heard = await client.hear_all()
        fault, lost = heard[-2:]
        assert (fault.code, lost.close_code_received) == ("position-too-old", 4531)
        assert client.position is not None and fault.details["position"] == str(client.position)
        assert fault.details["earliest"].endswith(".35")
        assert ids(client) == [str(number) for number in range(1, client.position.seq + 1)]


async def test_a_log_outage_keeps_subscribers_and_goes_on_by_itself(autojump_clock: MockClock) -> None:
    async with bench(Settings(window_bytes=100, frame_bytes_aim=300)) as b:
        await b.feed.fill(10)
        client = await b.subscribe()
        await client.hear()
        await trio.testing.wait_all_tasks_blocked()
        late = await b.subscribe(name="late")
        b.feed.faults.outage = True
        await trio.sleep(30)
        assert len(b.feed.subscribers) == 2
        b.feed.faults.outage = False
        for each in (client, late):
            await each.until(10)
            assert ids(each) == [str(number) for number in range(1, 11)]


async def test_a_read_that_fails_once_is_tried_again(autojump_clock: MockClock) -> None:
    async with bench(Settings(window_bytes=100, frame_bytes_aim=300)) as b:
        await b.feed.fill(10)
        for delay in (0.0, 100.0):
            b.feed.faults.plan("read", LogUnavailable("busy") if not delay else None, delay_s=delay)
            client = await b.subscribe()
            await client.until(10)
            assert len(client.events) == 10


async def test_an_older_log_under_a_running_session_is_told(autojump_clock: MockClock) -> None:
    """The visible tail goes back behind a session's position: the log decides, and the subscriber is told."""
    async with bench() as b:
        await b.feed.fill(4)
        backup = b.feed.place.copy()
        await b.feed.fill(6, start=5)
        client = await b.subscribe()
        await client.until(10)
        b.feed.log._data.entries[:] = backup.feeds["vmapi"].entries
        b.feed.log._data.tail = backup.feeds["vmapi"].tail
        b.feed.window.begin(backup.feeds["vmapi"].tail)
        b.feed.changed.notify()
        heard = await client.hear_all()
        assert [each.code for each in heard if isinstance(each, Fault)] == ["future-position"]


async def test_a_damaged_entry_ends_the_session_as_log_damaged(autojump_clock: MockClock) -> None:
    async with bench() as b:
        entry = await b.feed.append([Change("vm", "1", "create"), Change("vm", "2", "create")])
        object.__setattr__(entry, "payload", entry.payload[:-1])
        client = await b.subscribe(filter=Filter({"vm": ()}))
        heard = await client.hear_all()
        assert [each.code for each in heard if isinstance(each, Fault)] == ["log-damaged"]


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\xc1",
        b"\x81\xa4type\xa3xyz",
        "text",
        b"x" * 100,
        pytest.param(Subscribe("vmapi", BEGINNING, "n"), id="twice"),
    ],
)
async def test_a_message_that_is_wrong_ends_the_connection_with_a_reason(autojump_clock: MockClock, wrong: Any) -> None:
    async with bench() as b:
        client, other = await b.subscribe(), await b.subscribe(name="other")
        if isinstance(wrong, Subscribe):
            await client.say(wrong)
        else:
            await client.connection.send(wrong)
        fault, lost = await client.hear_all()
        assert (fault.code, lost.close_code_received) == ("bad-message", 4541)
        await b.feed.fill(1)
        await other.until(1)


# ---- leaving


async def test_draining_sends_subscribers_elsewhere_spread_over_time(autojump_clock: MockClock) -> None:
    """Each is told at once where to go and when; served until then; closed with 4410 if it does not go by itself."""
    async with bench() as b:
        await b.feed.fill(2)
        clients = [await b.subscribe(name=f"n{number}") for number in range(20)]
        for client in clients:
            await client.until(2)
        b.feed.servers = ("ws://other:7557",)
        b.feed.draining.set()
        delays = []
        for client in clients:
            redirect = await client.hear()
            assert isinstance(redirect, Redirect) and redirect.servers == ("ws://other:7557",)
            delays.append(redirect.delay_s)
        assert all(0 <= delay < 10 for delay in delays) and max(delays) - min(delays) > 3
        assert trio.current_time() == 0
        await b.feed.fill(1, start=3)
        for client in clients:
            await client.until(3)
        fault, lost = await b.refused(Subscribe("vmapi", BEGINNING, "late"))
        assert (fault.code, lost.close_code_received) == ("draining", 4411)
        for client in clients:
            heard = await client.hear_all()
            assert [each.code for each in heard if isinstance(each, Fault)] == ["moved"]
            assert heard[-1].close_code_received == 4410
        assert trio.current_time() == pytest.approx(max(delays) + 2)
        assert len(b.feed.subscribers) == 0


async def test_draining_without_another_server_closes_at_once(autojump_clock: MockClock) -> None:
    async with bench() as b:
        client = await b.subscribe()
        b.feed.draining.set()
        fault, lost = await client.hear_all()
        assert (fault.code, fault.retryable, lost.close_code_received) == ("draining", True, 4411)
        assert trio.current_time() == 0


async def test_a_stale_instance_redirects_once_a_minute_by_name(autojump_clock: MockClock) -> None:
    """Only to a server that is fresh; a subscriber that comes back is kept for the rest of the minute."""
    async with bench() as b:
        client = await b.subscribe(Start(at="now"))
        b.feed.stale = 30.0
        redirects: list[float] = []

        async def watch(each: ServingClient) -> None:
            for message in await each.hear_all():
                assert not isinstance(message, Fault)

        with trio.move_on_after(12):
            while True:
                assert isinstance(await client.hear(), Beat)
        b.feed.servers = ("ws://fresh:1",)
        while len(redirects) < 1:
            if isinstance(await client.hear(), Redirect):
                redirects.append(trio.current_time())
        client.connection.abort()
        client = await b.subscribe(Start(at="now"))
        while len(redirects) < 2:
            if isinstance(await client.hear(), Redirect):
                redirects.append(trio.current_time())
        assert 60 <= redirects[1] - redirects[0] <= 66


async def test_a_session_ends_when_its_peer_goes(autojump_clock: MockClock) -> None:
    """By a close, by a break, in the middle of whatever: nothing is left of it."""
    async with bench(Settings(frame_bytes_aim=500)) as b:
        await b.feed.fill(50, body="x" * 300)
        for number in range(12):
            client = await b.subscribe(buffer_bytes=1000, beats=False)
            for _ in range(number % 4):
                await client.hear()
            if number % 2:
                client.connection.abort()
            else:
                await client.connection.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert len(b.feed.subscribers) == 0
        assert {each["reason"] for each in b.feed.subscribers.snapshot()} == {"connection-lost"}


async def test_a_window_that_begins_anew_is_no_gap(autojump_clock: MockClock) -> None:
    """A new leader's window may begin at any tail: what lies between is read from the log."""
    async with bench() as b:
        await b.feed.fill(3)
        client = await b.subscribe()
        await client.until(3)
        await b.feed.new_term()
        entries = [await b.feed.append([Change("vm", str(n), "create")], visible=False) for n in (4, 5, 6)]
        last = entries[-1]
        b.feed.window.begin(Tail(last.last_seq, last.epoch, last.term, last.digest, last.time))
        b.feed.changed.notify()
        await client.until(6)
        assert ids(client) == [str(number) for number in range(1, 7)]
        assert client.position is not None and client.position.epoch == 2
        assert isinstance(client.frames[-1], Events)
