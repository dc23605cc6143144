"""Slow readers, retention, outages, bad messages, draining: how a subscription goes on or ends, in virtual time."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from changefeed.batch import Tail
from changefeed.change import Change, Filter
from changefeed.errors import ConnectionLost, LogUnavailable
from changefeed.settings import Settings
from changefeed.testing.fake_feed import ServingClient
from changefeed.testing.serving_bench import BEGINNING, ids
from changefeed.testing.serving_bench import open_bench as bench
from changefeed.wire.messages import Beat, Events, Fault, Redirect, Start, Subscribe


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
            (gone,) = b.feed.subscribers.snapshot()
            assert gone["reason"] == ("connection-lost" if number % 2 else "left")


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


async def test_another_history_under_a_running_session_is_told(autojump_clock: MockClock) -> None:
    """An older log that has grown past the session's position since: its epochs are lower; nothing of it is served."""
    async with bench() as b:
        await b.feed.fill(4)
        backup = b.feed.place.copy().feeds["vmapi"]
        await b.feed.new_term()
        await b.feed.fill(6, start=5)
        client = await b.subscribe()
        await client.until(10)
        data = b.feed.log._data  # type: ignore[attr-defined]
        for part in dataclasses.fields(backup):
            setattr(data, part.name, getattr(backup, part.name))
        b.feed.epoch, b.feed.term, b.feed.tail = 1, backup.fence.term, backup.tail
        foreign = [await b.feed.append([Change("vm", "foreign", "create")], visible=False) for _ in range(10)]
        b.feed.window.begin(backup.tail)
        b.feed.show(foreign)
        heard = await client.hear_all()
        assert [each.code for each in heard if isinstance(each, Fault)] == ["other-lineage"]
        assert "foreign" not in ids(client)
