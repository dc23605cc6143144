"""Subscriptions over a memory network against a scripted server, in virtual time."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from model_feed import LINEAGE, ModelFeed, seqs

from changefeed.change import Event, Filter, Position
from changefeed.errors import (
    BadPosition,
    BadUrl,
    CannotResume,
    CursorError,
    CursorInUse,
    InvalidName,
    OtherLineage,
    PositionTooOld,
    Stalled,
    UnknownFeed,
    UsageError,
)
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.subscriber.cursors import FileCursor, MemoryCursor
from changefeed.subscriber.driver import Subscription, make_filter, make_start, open_subscription
from changefeed.testing.scripted import Peer, ScriptedServer, open_scripted_server
from changefeed.transport.memory import MemoryNetwork
from changefeed.wire.messages import Beat, Handled, Limits, Redirect, Start, Subscribe


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


# ---- handled, and what the server is told


async def test_the_server_is_told_what_is_handled(autojump_clock: trio.abc.Clock) -> None:
    """Soon after progress, and the last of it before leaving."""
    network, feed = MemoryNetwork(), make_feed(*[1] * 6)
    async with open_scripted_server(network) as server, trio.open_nursery() as nursery:
        async with opened(network, wait=False) as subscription:
            peer = await server.accept()
            await peer.subscribed(feed.position(0), feed.position(6))
            await peer.send(feed.frame(0, 6))
            nursery.start_soon(peer.listen)
            await take(subscription, 3)
            await trio.sleep(1.5)
            assert peer.heard[-1] == Handled(feed.position(2))
            await take(subscription, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert peer.heard[-1] == Handled(feed.position(5)), "the block ended well"


class HandlerFailed(Exception):
    pass


@pytest.mark.parametrize(("how", "first"), [("raises", 4), ("break", 5), ("cancelled", 4), ("commit, raises", 5)])
async def test_what_comes_first_after_a_restart(how: str, first: int, autojump_clock: trio.abc.Clock) -> None:
    """The handler works on event 4. It is handled only if the loop went on or the block ended well (or it said so)."""
    feed, cursor = make_feed(*[1] * 9), MemoryCursor()
    async with serving(feed) as network:
        with trio.CancelScope() as scope:
            try:
                async with opened(network, cursor=cursor) as subscription:
                    async for event in subscription:
                        if event.seq == 4:
                            if how == "break":
                                break
                            if how == "cancelled":
                                scope.cancel()
                                await trio.sleep(1)
                            if how == "commit, raises":
                                await subscription.commit()
                            raise HandlerFailed
            except HandlerFailed:
                assert "raises" in how
        async with opened(network, cursor=cursor) as subscription:
            assert seqs(await take(subscription, 1)) == [first]


async def test_break_and_go_on_in_the_same_block(autojump_clock: trio.abc.Clock) -> None:
    feed = make_feed(*[1] * 5)
    async with serving(feed) as network, opened(network) as subscription:
        async for event in subscription:
            if event.seq == 2:
                break
        assert subscription.state.position == feed.position(1)
        async for event in subscription:
            assert event.seq == 3
            break
        assert subscription.state.position == feed.position(2)


async def test_waiting_for_a_position_and_for_the_head(autojump_clock: trio.abc.Clock) -> None:
    """Read your writes: done when everything up to there was handled, not when it was received."""
    feed = make_feed(*[1] * 20)
    reached: list[tuple[str, int]] = []
    async with serving(feed, 20) as network, opened(network) as subscription, trio.open_nursery() as nursery:
        done = 0

        async def until(seq: int) -> None:
            await subscription.wait_until(feed.position(seq))
            reached.append((f"until {seq}", done))

        async def head() -> None:
            await subscription.wait_caught_up()
            reached.append(("head", done))
            nursery.cancel_scope.cancel()

        nursery.start_soon(until, 7)
        nursery.start_soon(head)
        async for event in subscription:
            await trio.sleep(1)
            done = event.seq
    assert reached == [("until 7", 7), ("head", 20)]


async def test_waiting_for_a_position_of_another_log_ends(autojump_clock: trio.abc.Clock) -> None:
    feed = make_feed(1)
    async with serving(feed) as network, opened(network) as subscription:
        with pytest.raises(OtherLineage):
            await subscription.wait_until(Position("fedcba9876543210", 1, "00000001", 1))


async def test_an_empty_feed_is_caught_up(autojump_clock: trio.abc.Clock) -> None:
    async with serving(make_feed()) as network, opened(network) as subscription:
        await subscription.wait_caught_up()
        assert subscription.state.caught_up


# ---- cursors


async def test_start_is_used_only_while_the_cursor_is_empty(autojump_clock: trio.abc.Clock) -> None:
    feed = make_feed(*[1] * 5)
    async with serving(feed) as network:
        async with opened(network, cursor=MemoryCursor(feed.position(3))) as subscription:
            assert seqs(await take(subscription, 1)) == [4]
        async with opened(network, cursor=MemoryCursor(), start=feed.position(1)) as subscription:
            assert seqs(await take(subscription, 1)) == [2]


class Slow(MemoryCursor):
    """Takes a second to save; remembers what and when."""

    def __init__(self, fail_at: int = 0) -> None:
        super().__init__()
        self.saves: list[tuple[float, int]] = []
        self.fail_at = fail_at

    async def store(self, position: Position, *, sync: bool = True) -> None:
        await trio.sleep(1)
        if self.fail_at and position.seq >= self.fail_at:
            raise CursorError("the disk is full")
        self.saves.append((trio.current_time(), position.seq))
        await super().store(position)


async def test_a_fast_loop_saves_by_events_and_waits_for_a_slow_cursor(autojump_clock: trio.abc.Clock) -> None:
    """At most commit_events are handled and unsaved, whatever the disk does."""
    feed, cursor = make_feed(*[1] * 100), Slow()
    async with serving(feed, 7) as network:
        async with opened(network, cursor=cursor, commit_events=10) as subscription:
            async for event in subscription:
                saved = 0 if cursor.position is None else cursor.position.seq
                assert event.seq - 1 - saved <= 10
                if event.seq == 100:
                    break
        assert cursor.position == feed.position(100)
        assert len(cursor.saves) <= 21


async def test_a_slow_loop_saves_by_time(autojump_clock: trio.abc.Clock) -> None:
    feed, cursor = make_feed(*[1] * 100), Slow()
    async with serving(feed, 100) as network, opened(network, cursor=cursor, commit_interval_s=5.0) as subscription:
        for _ in range(60):
            await subscription.__anext__()
            await trio.sleep(0.5)
        gaps = [b[0] - a[0] for a, b in zip(cursor.saves, cursor.saves[1:], strict=False)]
        assert len(cursor.saves) >= 4
        assert all(5.0 <= gap < 6.5 for gap in gaps)


async def test_catching_up_saves_at_once(autojump_clock: trio.abc.Clock) -> None:
    feed, cursor = make_feed(*[1] * 3), MemoryCursor()
    async with serving(feed) as network, opened(network, cursor=cursor, commit_interval_s=1e6) as subscription:
        await take(subscription, 3)
        with trio.move_on_after(0.01):
            await subscription.__anext__()
        assert cursor.position == feed.position(3)


async def test_a_cursor_that_cannot_be_saved_ends_the_loop(autojump_clock: trio.abc.Clock) -> None:
    """Going on would repeat without bound after a crash."""
    feed, cursor = make_feed(*[1] * 100), Slow(fail_at=20)
    async with serving(feed) as network:
        with pytest.raises(CursorError, match="disk is full"):
            async with opened(network, cursor=cursor, commit_events=10) as subscription:
                async for event in subscription:
                    assert event.seq <= 40
    assert cursor.position is not None and cursor.position.seq < 20


async def test_commit_wants_a_cursor_and_a_position_that_was_reached(autojump_clock: trio.abc.Clock) -> None:
    feed, cursor = make_feed(*[1] * 5), MemoryCursor()
    async with serving(feed) as network:
        async with opened(network) as subscription:
            with pytest.raises(UsageError, match="cursor="):
                await subscription.commit()
        async with opened(network, cursor=cursor) as subscription:
            await take(subscription, 3)
            await subscription.commit(feed.position(2))
            assert cursor.position == feed.position(2)
            await subscription.commit(feed.position(1))
            assert cursor.position == feed.position(2), "never back"
            with pytest.raises(BadPosition):
                await subscription.commit(feed.position(4))


async def test_one_cursor_for_one_subscription(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Not two in one process either; after the first is closed it is free, also when its block failed."""
    feed, path = make_feed(*[1] * 5), tmp_path / "cursor"
    async with serving(feed) as network:
        with pytest.raises(HandlerFailed):
            async with opened(network, cursor=path) as subscription:
                await take(subscription, 3)
                with pytest.raises(CursorInUse):
                    async with opened(network, cursor=FileCursor(path)):
                        raise AssertionError("it was opened")
                raise HandlerFailed
        async with opened(network, cursor=str(path)) as subscription:
            assert seqs(await take(subscription, 1)) == [3]


# ---- resets


async def test_a_reset_raises_out_of_the_loop_after_everything_before_it(autojump_clock: trio.abc.Clock) -> None:
    network, feed = MemoryNetwork(), make_feed(*[1] * 5)
    events: list[int] = []
    async with open_scripted_server(network) as server, trio.open_nursery() as nursery:

        async def script() -> None:
            peer = await server.accept()
            await peer.subscribed(feed.position(0), feed.position(5))
            await peer.send(feed.frame(0, 3))
            await peer.close(1011)
            peer = await server.accept()
            await peer.expect(Subscribe)
            await peer.fail(PositionTooOld("trimmed", feed.position(3), feed.position(4), feed.position(5)))

        nursery.start_soon(script)
        with pytest.raises(PositionTooOld) as caught:
            async with opened(network) as subscription:
                async for event in subscription:
                    await trio.sleep(1)
                    events.append(event.seq)
        assert events == [1, 2, 3]
        assert caught.value.earliest == feed.position(4)
        assert caught.value.head == feed.position(5)


async def test_bootstrap_heals_a_reset_and_the_state_says_so(autojump_clock: trio.abc.Clock) -> None:
    feed = make_feed(*[1] * 5)
    cursor = MemoryCursor(Position("fedcba9876543210", 7, "00000007", 70))
    asked: list[CannotResume] = []

    async def bootstrap(error: CannotResume) -> Position:
        asked.append(error)
        await trio.sleep(3)
        assert error.head is not None
        return feed.position(error.head.seq - 2)

    async with serving(feed) as network:
        async with opened(network, cursor=cursor, bootstrap=bootstrap) as subscription:
            assert seqs(await take(subscription, 2)) == [4, 5]
            state = subscription.state
            assert (state.resets, state.last_reset) == (1, asked[0])
        assert cursor.position == feed.position(5)


async def test_bootstraps_that_do_not_help_back_off(autojump_clock: trio.abc.Clock) -> None:
    """Each hands out a position that is refused again: a loop, but a slow one."""
    feed, count = make_feed(1), 0
    foreign = Position("fedcba9876543210", 7, "00000007", 70)

    async def bootstrap(error: CannotResume) -> Position:
        nonlocal count
        count += 1
        return foreign

    async with serving(feed) as network, opened(network, start=foreign, bootstrap=bootstrap) as subscription:
        with trio.move_on_after(600):
            await subscription.__anext__()
        assert 20 < count < 300


async def test_bootstrap_may_decline(autojump_clock: trio.abc.Clock) -> None:
    async def bootstrap(error: CannotResume) -> None:
        return None

    foreign = Position("fedcba9876543210", 7, "00000007", 70)
    async with serving(make_feed(1)) as network:
        with pytest.raises(OtherLineage):
            async with opened(network, start=foreign, bootstrap=bootstrap) as subscription:
                await subscription.__anext__()


async def test_an_unknown_feed_is_told_by_the_loop(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, trio.open_nursery() as nursery:

        async def say_no() -> None:
            peer = await server.accept()
            await peer.expect(Subscribe)
            await peer.fail(UnknownFeed("no feed 'vmapi'; did you mean 'napi'?"))

        nursery.start_soon(say_no)
        with pytest.raises(UnknownFeed, match="napi"):
            async with opened(network) as subscription:
                async for _ in subscription:
                    raise AssertionError("no event came")


@pytest.mark.parametrize(("code", "ends"), [(4541, True), (4999, True), (4410, False), (1011, False), (1000, False)])
async def test_a_close_code_alone_says_whether_to_come_back(
    code: int, ends: bool, autojump_clock: trio.abc.Clock
) -> None:
    """4500 to 4999: do not reconnect; everything else: resume."""
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network, wait=False) as subscription:
        peer = await server.accept()
        await peer.expect(Subscribe)
        await peer.close(code, "because")
        if ends:
            with pytest.raises(Exception, match=f"{code}") as caught:
                await subscription.__anext__()
            assert caught.value.code == ("bad-message" if code == 4541 else "protocol-error")  # type: ignore[attr-defined]
        else:
            await (await server.accept()).expect(Subscribe)


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
