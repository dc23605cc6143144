"""What is handled, where a restart begins, cursors and resets: over a memory network, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from feed_server import make_feed, opened, serving, take
from model_feed import seqs

from changefeed.change import Position
from changefeed.errors import (
    BadPosition,
    CannotResume,
    CursorError,
    CursorInUse,
    OtherLineage,
    PositionTooOld,
    UnknownFeed,
    UsageError,
)
from changefeed.subscriber.cursors import FileCursor, MemoryCursor
from changefeed.testing.scripted import open_scripted_server
from changefeed.transport.memory import MemoryNetwork
from changefeed.wire.messages import Handled, Subscribe

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


@pytest.mark.parametrize("explicit", [False, True])
async def test_a_loop_that_commits_by_itself_is_never_held(explicit: bool, autojump_clock: trio.abc.Clock) -> None:
    """What it committed counts as saved; the saver has nothing left to do, and the loop does not wait for it."""
    feed, cursor = make_feed(*[1] * 100), MemoryCursor()
    async with serving(feed, 30) as network, opened(network, cursor=cursor, commit_events=10) as subscription:
        async for event in subscription:
            await subscription.commit(event.position if explicit else None)
            assert cursor.position == event.position
            if event.seq == 100:
                break
    assert trio.current_time() < 1


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
