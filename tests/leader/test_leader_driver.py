"""A term in office on a log in memory, under virtual time: what the driver does when the world misbehaves."""

from __future__ import annotations

import logging

import pytest
import trio
from leader_bench import batch
from leader_office import Office, in_office
from trio.testing import MockClock, wait_all_tasks_blocked

from changefeed.batch import Entry
from changefeed.change import FeedSettings, Position, Resource
from changefeed.errors import (
    AppendOutcomeUnknown,
    InvalidName,
    LogDamaged,
    LogUnavailable,
    NotCurrent,
    Superseded,
    TooManyPublishers,
)
from changefeed.wire.messages import Answer, Open, Opened

# ---- the ordinary way


async def test_an_idle_leader_appends_at_once(autojump_clock: MockClock) -> None:
    """No timer lies between a batch and its receipt; the receipt leaves before subscribers see the entry."""
    async with in_office() as office:
        began = trio.current_time()
        await office.publish(batch(1))
        with trio.fail_after(1):
            await office.log.wait(0)
        await wait_all_tasks_blocked()
        assert trio.current_time() == began
        answer, entry = office.steps
        assert isinstance(answer, Answer)
        assert isinstance(entry, Entry)
        assert answer.first == Position(office.log.lineage, 1, "00000001", 1)
        facts = {"feed": "f", "epoch": 1, "first": 1, "last": 1, "outcome": "stored"}
        assert office.traced == [("append", facts)]


async def test_what_comes_during_an_append_goes_into_the_next(autojump_clock: MockClock) -> None:
    """Group commit."""
    async with in_office() as office:
        office.faults.plan("append", delay_s=1)
        for number in range(1, 11):
            await office.publish(batch(number))
            await wait_all_tasks_blocked()
        await office.settled(10)
        assert office.calls.count("append") == 2
        assert [answer.first.seq for answer in office.answers if answer.first] == list(range(1, 11))
        stats = office.term.stats()
        assert (stats["appends"], stats["entries"], stats["events"]) == (2, 10, 10)
        assert (stats["queue_bytes"], stats["waiting_s"]) == (0, 0.0)


async def test_opened_says_what_a_publisher_needs(autojump_clock: MockClock) -> None:
    """Who leads, the limits, the declared resources, its incarnation and last number."""
    async with in_office() as office:
        office.declared = FeedSettings(resources=(Resource("vm"),))
        await office.publish(batch(1))
        await office.settled(1)
        opened = await office.term.open(Open("f", "p", "s", False, 1), "d")
        assert isinstance(opened, Opened)
        assert (opened.leader, opened.instance, opened.process, opened.epoch) == ("me", "me", "1234", 1)
        assert (opened.incarnation, opened.last_number) == (1, 1)
        assert opened.limits.in_flight_max == office.settings.in_flight_max
        assert opened.resources == (Resource("vm"),)


async def test_open_raises_what_the_machine_denies(autojump_clock: MockClock) -> None:
    """Typed, and the term goes on."""
    async with in_office(publishers_max=1) as office:
        with pytest.raises(InvalidName):
            await office.term.open(Open("f", "outbox", "s"), "d")
        await office.publish(batch(1))
        await office.settled(1)
        with pytest.raises(TooManyPublishers):
            await office.term.open(Open("f", "q", "s"), "d")
        await office.term.open(Open("f", "p", "t"), "e")
        with pytest.raises(Superseded):
            await office.term.open(Open("f", "p", "s", False, 1), "d")
        assert not office.term.lost.is_set()


async def test_opening_waits_for_what_is_on_its_way(autojump_clock: MockClock) -> None:
    """The last number told is that of the log after the append under way."""
    async with in_office() as office:
        office.faults.plan("append", delay_s=1)
        await office.publish(batch(1))
        await wait_all_tasks_blocked()
        opened = await office.term.open(Open("f", "p", "s", False, 1), "d")
        assert opened.last_number == 1
        # Whoever waits on the connection that was replaced is told to come again; it gets no receipt.
        assert [answer.code for answer in office.answers] == ["not-current"]


async def test_publishers_that_come_together_share_looks(autojump_clock: MockClock) -> None:
    """A thousand reconnects after a failover do not queue for a thousand looks."""
    async with in_office() as office:
        async with trio.open_nursery() as nursery:
            for index in range(100):
                nursery.start_soon(office.term.open, Open("f", f"p{index}", "s"), f"c{index}")
        assert office.calls.count("look") <= 3
        assert office.calls.count("open_publisher") == 100


async def test_look_ups_do_not_hold_up_appends_nor_the_other_way(autojump_clock: MockClock) -> None:
    """A retry is answered from the log while an append takes long, and appends go on while a look takes long."""
    async with in_office() as office:
        await office.term.open(Open("f", "q", "s"), "d")
        for number in range(1, 70):
            await office.publish(batch(number))
        await office.settled(69)
        office.faults.plan("append", delay_s=1)
        await office.publish(batch(1, publisher="q", incarnation=2), "d")
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await office.publish(batch(1))
        await office.settled(70)
        assert office.answers[-1].repeated
        assert trio.current_time() - began < 0.1
        await office.settled(71)

        office.faults.plan("look", delay_s=1)
        began = trio.current_time()
        await office.publish(batch(99))
        await wait_all_tasks_blocked()
        await office.publish(batch(2, publisher="q", incarnation=2), "d")
        await office.settled(72)
        assert office.answers[-1].first is not None
        assert trio.current_time() - began < 0.1
        await office.settled(73)
        assert office.answers[-1].code == "number-gap"


async def test_an_answer_that_cannot_be_handed_over_harms_nobody(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong in one connection's callback is logged; the others get their answers."""

    def broken(answer: Answer) -> None:
        raise ValueError("a connection of its own trouble")

    async with in_office() as office:
        await office.publish(batch(1), answered=broken)
        await office.publish(batch(2))
        await office.settled(1)
        assert office.answers[0].first is not None
        assert "could not be handed over" in caplog.text


async def test_a_closed_channel_gets_no_answers(autojump_clock: MockClock) -> None:
    """What it brought is stored all the same."""
    async with in_office() as office:
        await office.publish(batch(1))
        office.term.close("c")
        await office.log.wait(0)
        await wait_all_tasks_blocked()
        assert office.answers == []
        assert (await office.log.look()).tail.seq == 1


# ---- when the log fails


async def test_a_number_skipped_long_ago_is_told_from_one_that_was_trimmed(autojump_clock: MockClock) -> None:
    """The entry before it is still held, so nothing that came after it has been trimmed."""
    async with in_office() as office:
        for sent in (batch(1), batch(2), batch(4, after=2)):
            await office.publish(sent)
        await office.settled(3)
        await office.log.trim(1, "00000001", 1)
        await office.publish(batch(3))
        await office.publish(batch(1))
        await office.settled(5)
        assert [answer.code for answer in office.answers[3:]] == ["number-skipped", ""]


@pytest.mark.parametrize("point", ["append", "append done"])
async def test_an_unknown_outcome_ends_the_term(autojump_clock: MockClock, point: str) -> None:
    """Whether it was stored or not: nothing is answered, nothing becomes visible, and whoever waits is told."""
    async with in_office() as office:
        office.faults.plan(point, AppendOutcomeUnknown("the connection broke"), delay_s=1)
        await office.publish(batch(1))
        await wait_all_tasks_blocked()
        await office.publish(batch(2))
        await office.term.lost.wait()
        await wait_all_tasks_blocked()
        assert office.why == "outcome-unknown"
        assert office.steps == []
        with pytest.raises(NotCurrent):
            await office.publish(batch(3))
        with pytest.raises(NotCurrent):
            await office.term.open(Open("f", "q", "s"), "d")
        stored = (await office.log.look()).tail.seq
        assert stored == (1 if point == "append done" else 0)
        # The next leader finds in the log what nobody knew: one copy, and the receipt.
        await office.elect()
        async with trio.open_nursery() as nursery:
            await nursery.start(office.run)
            opened = await office.term.open(Open("f", "p", "s", False, 1), "c")
            assert opened.last_number == stored
            await office.publish(batch(1))
            await office.publish(batch(2))
            await office.settled(2)
            assert [answer.repeated for answer in office.answers] == [point == "append done", False]
            assert (await office.log.look()).tail.seq == 2
            office.term.end("test")


async def test_a_leader_fenced_in_the_middle_of_an_append_answers_nothing(autojump_clock: MockClock) -> None:
    """The log refuses, the term ends, the new leader stores it once."""
    async with in_office() as office:
        office.faults.plan("append", delay_s=1)
        await office.publish(batch(1))
        await wait_all_tasks_blocked()
        deposed = office.term
        await office.elect()
        await deposed.lost.wait()
        await wait_all_tasks_blocked()
        assert office.why == "fenced"
        assert office.steps == []
        assert (await office.log.look()).tail.seq == 0


async def test_a_deposed_idle_leader_gives_no_final_no(autojump_clock: MockClock) -> None:
    """It learns from the look that it needs for a no."""
    async with in_office() as office:
        deposed = office.term
        await office.elect()
        await deposed.publish("c", batch(9), office.steps.append)
        await deposed.lost.wait()
        await wait_all_tasks_blocked()
        assert office.why == "fenced"
        assert office.steps == []


async def test_a_full_log_refuses_until_there_is_room(autojump_clock: MockClock) -> None:
    """The term goes on, and publishing resumes by itself."""
    async with in_office() as office:
        office.place.free, office.place.total = 0, 2**40
        await office.publish(batch(1))
        await office.settled(1)
        assert office.answers[0].code == "log-full"
        office.place.free = 2**40
        await office.publish(batch(1))
        await office.settled(2)
        assert office.answers[1].first is not None
        assert not office.term.lost.is_set()


async def test_a_log_that_is_away_is_asked_again(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """For as long as the term lives; status shows for how long; nothing is lost or repeated."""
    async with in_office() as office:
        office.faults.outage = True
        await office.publish(batch(1))
        await trio.sleep(10)
        assert office.term.waiting_s == pytest.approx(10, abs=0.1)
        assert office.term.stats()["append_retries"] >= 9
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
        office.faults.outage = False
        await office.settled(1)
        assert office.term.waiting_s == 0
        assert (await office.log.look()).tail.seq == 1


async def test_what_cannot_be_looked_up_is_not_current(autojump_clock: MockClock) -> None:
    """The log is away, or does not answer in time: never a final no, and openings are told the same."""
    async with in_office() as office:
        office.faults.plan("look", LogUnavailable("away"))
        await office.publish(batch(9))
        await office.settled(1)
        office.faults.plan("look", delay_s=3600)
        began = trio.current_time()
        await office.publish(batch(9))
        await office.settled(2)
        assert trio.current_time() - began == pytest.approx(office.settings.log_timeout_s, abs=0.1)
        assert [answer.code for answer in office.answers] == ["not-current", "not-current"]
        office.faults.plan("publisher_state", LogUnavailable("away"))
        with pytest.raises(NotCurrent):
            await office.term.open(Open("f", "q", "s"), "d")
        assert not office.term.lost.is_set()


async def test_a_damaged_log_ends_the_term(autojump_clock: MockClock) -> None:
    """Wherever it is met."""
    async with in_office() as office:
        office.faults.plan("look", LogDamaged("torn"))
        with pytest.raises(NotCurrent):
            await office.term.open(Open("f", "q", "s"), "d")
        await wait_all_tasks_blocked()
        assert office.why == "log-damaged"


# ---- the end


async def test_handover_appends_what_waits_and_takes_no_more(autojump_clock: MockClock) -> None:
    """All that was taken is answered before `finish` returns; what comes meanwhile is sent elsewhere."""
    async with in_office(leader_queue_bytes=1200) as office:
        office.faults.plan("append", delay_s=1)
        await office.publish(batch(1, "x" * 300))
        await wait_all_tasks_blocked()
        await office.publish(batch(2, "x" * 300))
        await office.publish(batch(9))
        refused: list[Exception] = []

        async def too_late(number: int) -> None:
            try:
                await office.publish(batch(number, "x" * 400), "c")
            except NotCurrent as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(too_late, 3)
            nursery.start_soon(too_late, 4)
            await wait_all_tasks_blocked()
            nursery.start_soon(office.term.finish)
            await wait_all_tasks_blocked()
            assert len(refused) == 2
            with pytest.raises(NotCurrent):
                await office.publish(batch(5))
            with pytest.raises(NotCurrent):
                await office.term.open(Open("f", "q", "s"), "d")
            assert not office.term.lost.is_set()
        await wait_all_tasks_blocked()
        assert office.why == "handover"
        assert [answer.code for answer in office.answers] == ["", "", "number-gap"]
        await office.term.finish()


async def test_a_term_that_never_ran_can_be_ended_and_finished() -> None:
    """Nobody waits for ever."""
    office = Office()
    term = await office.elect()
    await term.finish()
    assert term.lost.is_set()
    assert await term.run() == "handover"

    term = await office.elect()
    term.end("told")
    term.end("again")
    assert await term.run() == "told"
    assert office.traced[-1] == ("term_ended", {"feed": "f", "epoch": 2, "why": "told"})


async def test_what_was_taken_before_run_is_appended_by_it(autojump_clock: MockClock) -> None:
    """A term serves from its construction on; `finish` waits for a `run` that is about to begin."""
    office = Office()
    term = await office.elect()
    await term.open(Open("f", "p", "s"), "c")
    await office.publish(batch(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(term.finish)
        await wait_all_tasks_blocked()
        nursery.start_soon(office.run)
    assert office.why == "handover"
    assert len(office.answers) == 1


async def test_end_cuts_off_everything(autojump_clock: MockClock) -> None:
    """An append that has begun is stored, and nobody hears of it; openings and waiting publishers are sent away."""
    async with in_office(leader_queue_bytes=500) as office:
        office.faults.plan("append", delay_s=1)
        office.faults.plan("open_publisher", delay_s=2)
        await office.publish(batch(1, "x" * 300))
        away: list[str] = []

        async def open_other() -> None:
            with pytest.raises(NotCurrent):
                await office.term.open(Open("f", "q", "s"), "d")
            away.append("open")

        async def publish_more() -> None:
            with pytest.raises(NotCurrent):
                await office.publish(batch(2, "x" * 300))
            away.append("publish")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_other)
            nursery.start_soon(publish_more)
            await wait_all_tasks_blocked()
            office.term.end("session-lost")
            assert office.term.lost.is_set()
        assert away == ["publish", "open"]
        assert office.why == "session-lost"
        assert office.steps == []
        assert (await office.log.look()).tail.seq == 1


async def test_cancelling_run_ends_the_term(autojump_clock: MockClock) -> None:
    """An append that has begun runs to its end in the log; nothing begins after it, nothing else is answered."""
    office = Office()
    term = await office.elect()
    await term.open(Open("f", "p", "s"), "c")
    async with trio.open_nursery() as nursery:
        await nursery.start(office.run)
        office.faults.plan("append", delay_s=1)
        await office.publish(batch(1))
        await wait_all_tasks_blocked()
        await office.publish(batch(2))
        nursery.cancel_scope.cancel()
    assert term.lost.is_set()
    assert office.why is None
    assert (await office.log.look()).tail.seq == 1
    assert [answer.number for answer in office.answers] in ([], [1])
    with pytest.raises(NotCurrent):
        await office.publish(batch(3))


async def test_a_cancelled_opening_leaves_nothing(autojump_clock: MockClock) -> None:
    """Others who wait for the same look take another one; the publisher may come again."""
    async with in_office() as office:
        before = office.term.stats()["publishers"]
        office.faults.plan("look", delay_s=1)
        opened: list[Opened] = []

        async def open_other(name: str) -> None:
            opened.append(await office.term.open(Open("f", name, "s"), name))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.5):
                async with trio.open_nursery() as cut:
                    cut.start_soon(open_other, "q")
                    await wait_all_tasks_blocked()
                    cut.start_soon(open_other, "r")
                    await wait_all_tasks_blocked()
                    nursery.start_soon(open_other, "t")
                    await wait_all_tasks_blocked()
        assert len(opened) == 1
        assert office.term.stats()["publishers"] == before + 1
        await open_other("q")
        assert len(opened) == 2


# ---- back-pressure


async def test_publish_waits_for_room_in_order(autojump_clock: MockClock) -> None:
    """A large batch is not overtaken by small ones for ever; a cancelled one was not taken."""
    async with in_office(leader_queue_bytes=1000) as office:
        for name in ("q", "r", "t"):
            await office.term.open(Open("f", name, "s"), name)
        office.faults.plan("append", delay_s=1)
        await office.publish(batch(1, "x" * 600))
        entered: list[str] = []

        async def bring(name: str, incarnation: int, size: int) -> None:
            await office.publish(batch(1, "x" * size, publisher=name, incarnation=incarnation), name)
            entered.append(name)

        async with trio.open_nursery() as nursery:
            cut = trio.CancelScope()

            async def bring_and_give_up() -> None:
                with cut:
                    await bring("q", 2, 900)

            nursery.start_soon(bring_and_give_up)
            await wait_all_tasks_blocked()
            nursery.start_soon(bring, "r", 3, 700)
            await wait_all_tasks_blocked()
            nursery.start_soon(bring, "t", 4, 10)
            await wait_all_tasks_blocked()
            assert entered == []
            cut.cancel()
            await wait_all_tasks_blocked()
            assert entered == []
        assert entered == ["r", "t"]
        await office.settled(3)
        log = await office.log.read(0, 1 << 20)
        assert sorted(entry.publisher for entry in log) == ["p", "r", "t"]
        assert office.term.stats()["queue_bytes"] == 0


async def test_room_left_by_one_who_gave_up_goes_to_the_next(autojump_clock: MockClock) -> None:
    """A small batch behind a large one that is withdrawn gets in at once."""
    async with in_office(leader_queue_bytes=1000) as office:
        await office.term.open(Open("f", "q", "s"), "q")
        office.faults.plan("append", delay_s=1)
        await office.publish(batch(1, "x" * 300))
        async with trio.open_nursery() as nursery:
            cut = trio.CancelScope()

            async def large() -> None:
                with cut:
                    await office.publish(batch(2, "x" * 900))

            nursery.start_soon(large)
            await wait_all_tasks_blocked()
            nursery.start_soon(office.publish, batch(1, publisher="q", incarnation=2), "q")
            await wait_all_tasks_blocked()
            began = trio.current_time()
            cut.cancel()
        assert trio.current_time() == began
