"""Where a subscription begins, and what is refused, on a real log in memory and in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from changefeed.change import Change, Filter, Position, Resource
from changefeed.change import FeedSettings as Declaration
from changefeed.testing.serving_bench import BEGINNING, ids
from changefeed.testing.serving_bench import open_bench as bench
from changefeed.wire.messages import Beat, Handled, Start, Subscribe, Subscribed


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
