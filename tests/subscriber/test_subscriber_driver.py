"""Subscriptions over a memory network against a scripted server, in virtual time."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import trio
import trio.testing
from feed_server import make_feed, opened, serve_all, serving, take
from model_feed import LINEAGE, seqs

from changefeed.change import Event, Filter, Position
from changefeed.errors import (
    BadPosition,
    BadUrl,
    InvalidName,
    Stalled,
    UsageError,
)
from changefeed.settings import Settings
from changefeed.subscriber.driver import make_filter, make_start, open_subscription
from changefeed.testing.scripted import Peer, open_scripted_server
from changefeed.transport.memory import MemoryNetwork
from changefeed.wire.messages import Beat, Handled, Limits, Redirect, Start, Subscribe

# ---- the loop


async def test_the_events_of_a_feed_in_order(autojump_clock: trio.abc.Clock) -> None:
    feed = make_feed(*[1, 3, 2] * 20)
    async with serving(feed) as network, opened(network) as subscription:
        events = []
        async for event in subscription:
            events.append(event)
            if subscription.state.caught_up:
                break
        assert seqs(events) == list(range(1, feed.head + 1))
        assert [event.id for event in events[:3]] == ["id-1", "id-2", "id-3"]
        assert [event.last for event in events[:4]] == [True, False, False, True]
        state = subscription.state
        assert (state.connected, state.instance, state.head, state.lag) == (True, "a", feed.head, 1)
        assert state.position == feed.position(feed.head - 1)


async def test_whole_groups(autojump_clock: trio.abc.Clock) -> None:
    feed = make_feed(1, 3, 2)
    async with serving(feed, 2) as network, opened(network) as subscription:
        groups = []
        async for group in subscription.groups():
            groups.append(seqs(group))
            if subscription.state.caught_up:
                break
        assert groups == [[1], [2, 3, 4], [5, 6]]


async def test_groups_from_a_position_inside_one_begin_at_its_first_event(autojump_clock: trio.abc.Clock) -> None:
    feed = make_feed(1, 4, 1)
    async with serving(feed) as network, opened(network, start=feed.position(3)) as subscription:
        groups = subscription.groups()
        assert seqs(await groups.__anext__()) == [2, 3, 4, 5]
        assert subscription.state.last_error is None


async def test_start_now_is_fixed_when_the_block_begins(autojump_clock: trio.abc.Clock) -> None:
    """What is published after that is delivered, however late the loop begins."""
    network, feed = MemoryNetwork(), make_feed(1, 1)
    async with open_scripted_server(network) as server, trio.open_nursery() as nursery:
        peers: list[Peer] = []

        async def admit() -> None:
            peer = await server.accept()
            asked = await peer.subscribed(feed.position(2))
            assert asked.start == Start(at="now")
            peers.append(peer)

        nursery.start_soon(admit)
        async with opened(network, start="now") as subscription:
            assert subscription.state.position == feed.position(2)
            feed.append(1, 1)
            await peers[0].send(feed.frame(2, 3))
            assert seqs(await take(subscription, 1)) == [3]


async def test_it_does_not_starve_other_tasks(autojump_clock: trio.abc.Clock) -> None:
    """There is a checkpoint at least once per frame."""
    feed = make_feed(*[1] * 100)
    ran = 0

    async def other() -> None:
        nonlocal ran
        while True:
            await trio.lowlevel.checkpoint()
            ran += 1

    async with serving(feed, 10) as network, opened(network) as subscription, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await take(subscription, 1)
        ran = 0
        await take(subscription, 99)
        assert ran >= 9
        nursery.cancel_scope.cancel()


async def test_only_one_task_may_iterate(autojump_clock: trio.abc.Clock) -> None:
    feed = make_feed()
    async with serving(feed) as network, opened(network) as subscription, trio.open_nursery() as nursery:
        nursery.start_soon(subscription.__anext__)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await subscription.__anext__()
        nursery.cancel_scope.cancel()


async def test_a_cancelled_wait_for_the_next_event_loses_none(autojump_clock: trio.abc.Clock) -> None:
    network, feed = MemoryNetwork(), make_feed(1, 1)
    async with open_scripted_server(network) as server, opened(network, wait=False) as subscription:
        peer = await server.accept()
        await peer.subscribed(feed.position(0), feed.position(2))
        with trio.move_on_after(1) as scope:
            await subscription.__anext__()
        assert scope.cancelled_caught
        await peer.send(feed.frame(0, 2))
        assert seqs(await take(subscription, 2)) == [1, 2]


# ---- reconnecting


async def test_cuts_in_the_middle_lose_and_repeat_nothing(autojump_clock: trio.abc.Clock) -> None:
    network, feed = MemoryNetwork(), make_feed(*[1] * 50)
    async with open_scripted_server(network.host("server")) as server, trio.open_nursery() as nursery:
        nursery.start_soon(serve_all, server, feed, 3)
        async with opened(network.host("app")) as subscription:
            events: list[Event] = []
            async for event in subscription:
                events.append(event)
                if len(events) % 7 == 0:
                    network.drop("app", "server")
                    await trio.sleep(0.01)
                if len(events) == 50:
                    break
        assert seqs(events) == list(range(1, 51))
        nursery.cancel_scope.cancel()


async def test_a_lost_frame_is_fetched_again(autojump_clock: trio.abc.Clock) -> None:
    network, feed = MemoryNetwork(), make_feed(*[1] * 6)
    async with open_scripted_server(network) as server, opened(network, wait=False) as subscription:
        peer = await server.accept()
        await peer.subscribed(feed.position(0), feed.position(6))
        await peer.send(feed.frame(0, 2))
        assert seqs(await take(subscription, 2)) == [1, 2]
        await peer.send(feed.frame(4, 6))
        peer = await server.accept()
        asked = await peer.subscribed(feed.position(2), feed.position(6))
        assert asked.start == Start(position=feed.position(2))
        await peer.send(feed.frame(2, 6))
        assert seqs(await take(subscription, 4)) == [3, 4, 5, 6]
        assert subscription.state.resets == 0


async def test_a_silent_server_is_left_and_a_slow_loop_is_not_silence(autojump_clock: trio.abc.Clock) -> None:
    """While the loop is busy nothing is received, so only a server that is waited for is timed."""
    network, feed = MemoryNetwork(), make_feed(*[1] * 4)
    async with open_scripted_server(network) as server, opened(network, wait=False) as subscription:
        peer = await server.accept()
        await peer.subscribed(feed.position(0), feed.position(4))
        await peer.send(feed.frame(0, 2), feed.frame(2, 4))
        assert seqs(await take(subscription, 1)) == [1]
        await trio.sleep(1000)
        assert subscription.state.connected
        assert seqs(await take(subscription, 3)) == [2, 3, 4]
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.__anext__)
            peer = await server.accept()
            assert 25 <= trio.current_time() - began < 26
            assert isinstance(subscription.state.last_error, Stalled)
            nursery.cancel_scope.cancel()


async def test_a_redirect_is_followed_and_the_place_kept(autojump_clock: trio.abc.Clock) -> None:
    network, feed = MemoryNetwork(), make_feed(1, 1, 1)
    async with (
        open_scripted_server(network) as old,
        open_scripted_server(network, 7600) as new,
        opened(network, wait=False) as subscription,
    ):
        peer = await old.accept()
        await peer.subscribed(feed.position(0), feed.position(3))
        await peer.send(feed.frame(0, 2), Redirect(("http://127.0.0.1:7600",), 2.0))
        assert seqs(await take(subscription, 2)) == [1, 2]
        other = await new.accept()
        asked = await other.subscribed(feed.position(2), feed.position(3))
        assert asked.start.position == feed.position(2)
        await other.send(feed.frame(2, 3))
        assert seqs(await take(subscription, 1)) == [3]


async def test_tries_back_off_and_never_end(autojump_clock: trio.abc.Clock) -> None:
    network, feed = MemoryNetwork(), make_feed(1)
    async with opened(network, wait=False) as subscription:
        await trio.sleep(300)
        state = subscription.state
        assert state.last_error is not None and state.last_error.code == "connection-refused"
        assert state.staleness_s == float("inf")
        async with open_scripted_server(network) as server, trio.open_nursery() as nursery:
            nursery.start_soon(serve_all, server, feed)
            assert seqs(await take(subscription, 1)) == [1]
            nursery.cancel_scope.cancel()


# ---- what can be asked for


async def test_what_is_subscribed_to_is_what_was_asked_for(autojump_clock: trio.abc.Clock) -> None:
    network, feed = MemoryNetwork(), make_feed(1)
    options = {"resources": {"vm": ["state"], "nic": []}, "ids": ["a"], "ops": ["update"], "start": 1234}
    async with open_scripted_server(network) as server, opened(network, wait=False, **options):
        peer = await server.accept()
        asked = await peer.expect(Subscribe)
        assert (asked.feed, asked.name, asked.groups) == ("vmapi", "me", False)
        assert asked.filter == Filter({"vm": ("state",), "nic": ()}, frozenset("a"), frozenset(["update"]))
        assert asked.start == Start(time=1234)
        await peer.send(feed.subscribed(0))


async def test_heartbeats_are_as_often_as_the_server_wants(autojump_clock: trio.abc.Clock) -> None:
    network, feed = MemoryNetwork(), make_feed()
    async with open_scripted_server(network) as server, opened(network, wait=False), trio.open_nursery() as nursery:
        peer = await server.accept()
        await peer.subscribed(feed.position(0), limits=Limits(2**20, 2**23, 9 * 2**20, 16, 2.0, 5.0))
        nursery.start_soon(peer.listen)
        for _ in range(5):
            await trio.sleep(2)
            await peer.send(Beat(3, 0, 0.0))
        assert len([one for one in peer.heard if isinstance(one, Handled)]) >= 4
        nursery.cancel_scope.cancel()


def test_starts() -> None:
    at = Position(LINEAGE, 1, "00000001", 1)
    assert make_start("now") == Start(at="now")
    assert make_start(str(at)) == make_start(at) == Start(position=at)
    assert make_start(datetime.datetime(1970, 1, 1, 0, 0, 2, tzinfo=datetime.UTC)) == Start(time=2000)
    for wrong in ("yesterday", "", -1, True, 1.5, Start(), Start(at="now", time=1)):
        with pytest.raises((UsageError, BadPosition)):
            make_start(wrong)  # type: ignore[arg-type]


def test_filters() -> None:
    assert make_filter(None, ["vm"], (), ()) == Filter({"vm": ()})
    assert make_filter(Filter(ids=frozenset("a")), None, (), ()) == Filter(ids=frozenset("a"))
    for wrong in (
        (Filter(), ["vm"], (), ()),
        (None, "vm", (), ()),
        (None, {"vm": "state"}, (), ()),
        (None, ["v m"], (), ()),
        (None, {"vm": ["a b"]}, (), ()),
        (None, None, "id", ()),
        (None, None, (), ["two words"]),
        (None, None, [3], ()),
    ):
        with pytest.raises(UsageError):
            make_filter(*wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"feed": "VMs"}, InvalidName),
        ({"name": ""}, InvalidName),
        ({"name": "x" * 129}, InvalidName),
        ({"servers": "tcp://a:1"}, BadUrl),
        ({"start": "tomorrow"}, BadPosition),
    ],
)
async def test_what_cannot_be_opened_says_why(options: dict[str, Any], error: type[Exception]) -> None:
    options = {"feed": "vmapi", "servers": "ws://127.0.0.1:7557"} | options
    with pytest.raises(error):
        async with open_subscription(network=MemoryNetwork(), settings=Settings(), **options):
            raise AssertionError("it was opened")
