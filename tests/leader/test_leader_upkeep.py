"""What a term does beside its appends; and honest publishers through everything that can go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import trio
from leader_bench import batch
from leader_office import Office, in_office
from trio.testing import MockClock, wait_all_tasks_blocked

from changefeed.change import FeedSettings, Position
from changefeed.errors import (
    AppendOutcomeUnknown,
    ChangefeedError,
    LogUnavailable,
    NotCurrent,
)
from changefeed.leader.driver import Term
from changefeed.wire.messages import Answer, Open

# ---- beside the appends


async def test_retention_trims_while_publishing_goes_on(autojump_clock: MockClock) -> None:
    """By count, a tenth a pass; the first after retention_every_s, faster while there is still too much."""
    async with in_office(retention_every_s=10) as office:
        office.declared = FeedSettings(retention_age_s=None, retention_bytes=None, retention_count=50)
        for number in range(1, 101):
            await office.publish(batch(number))
        await office.settled(100)
        await trio.sleep(10.5)
        assert (await office.log.look()).floor.seq == 10
        await trio.sleep(1)
        assert office.term.stats()["trimmed_to"] == 10 + 9
        await trio.sleep(60)
        look = await office.log.look()
        assert (look.floor.seq, look.tail.seq) == (50, 100)


async def test_retention_by_age_and_bytes(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Age counts from the newest entry's time; bytes go in small steps."""
    monkeypatch.setattr("changefeed.leader.retention.KEEP_EVENTS", 5)
    monkeypatch.setattr("changefeed.leader.retention.STEP_BYTES", 300)
    async with in_office(retention_every_s=10) as office:
        office.declared = FeedSettings(retention_age_s=60, retention_bytes=None)
        for number in range(1, 41):
            office.wall = number * 1000 if number < 40 else 10_000_000
            await office.publish(batch(number))
            await office.settled(number)
        await trio.sleep(1000)
        assert (await office.log.look()).floor.seq == 35
        office.calls.clear()
        office.declared = FeedSettings(retention_age_s=None, retention_bytes=0)
        await trio.sleep(1000)
        assert (await office.log.look()).floor.seq == 40


async def test_a_failed_trim_waits_for_its_next_turn_or_ends_the_term(autojump_clock: MockClock) -> None:
    """Not answered: later. Unknown outcome: the end."""
    async with in_office(retention_every_s=10) as office:
        office.declared = FeedSettings(retention_age_s=None, retention_bytes=None, retention_count=0)
        await office.publish(batch(1))
        await office.settled(1)
        office.faults.plan("trim", LogUnavailable("away"))
        await trio.sleep(11)
        assert (await office.log.look()).floor.seq == 0
        await trio.sleep(10)
        assert (await office.log.look()).floor.seq == 1
        await office.publish(batch(2))
        office.faults.plan("trim done", AppendOutcomeUnknown("lost"))
        await office.term.lost.wait()
        await wait_all_tasks_blocked()
        assert office.why == "outcome-unknown"


async def test_a_pass_ends_where_nothing_more_can_go(autojump_clock: MockClock) -> None:
    """The oldest entry reaches into the bound, or the log trims nothing."""
    async with in_office(retention_every_s=10) as office:
        office.declared = FeedSettings(retention_age_s=None, retention_bytes=None, retention_count=1)
        await office.publish(batch(1, "a", "b"))
        await office.settled(1)
        await trio.sleep(100)
        assert (await office.log.look()).floor.seq == 0

        async def nothing(epoch: int, term: str, up_to_seq: int) -> int:
            return 0

        office.log.trim = nothing  # type: ignore[method-assign]
        office.declared = FeedSettings(retention_age_s=None, retention_bytes=None, retention_count=0)
        await trio.sleep(100)
        assert (await office.log.look()).floor.seq == 0


async def test_housekeeping_follows_appends(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon after the last append, at once after many bytes, and not at all when idle."""
    monkeypatch.setattr("changefeed.leader.driver.MAINTAIN_BYTES", 1000)
    async with in_office(retention_every_s=10_000) as office:
        await trio.sleep(10)
        assert "maintain" not in office.calls
        await office.publish(batch(1))
        await trio.sleep(2)
        assert office.calls.count("maintain") == 1
        assert office.term.stats()["wal_bytes"] == 0
        await office.publish(batch(2, "x" * 2000))
        await office.settled(2)
        await wait_all_tasks_blocked()
        assert office.calls.count("maintain") == 2
        await trio.sleep(100)
        assert office.calls.count("maintain") == 2


# ---- all together


class Sender:
    """An honest publisher: keeps what was not answered, resends it in order to whoever leads."""

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self.incarnation: int | None = None
        self.receipts: dict[int, Position] = {}
        self.runs = 0

    async def run(self, office: Office) -> None:
        while len(self.receipts) < self.total:
            await trio.sleep(0.01)
            try:
                await self.work(office, office.term)
            except NotCurrent:
                pass

    async def work(self, office: Office, term: Term) -> None:
        self.runs += 1
        channel = f"{self.name}-{self.runs}"
        last = self.receipts.get(len(self.receipts))
        opened = await term.open(Open("f", self.name, "s", False, self.incarnation, last), channel)
        self.incarnation = opened.incarnation
        trouble = trio.Event()
        sent = len(self.receipts)
        wake = trio.Event()

        def answered(answer: Answer) -> None:
            if answer.first is not None:
                assert answer.number not in self.receipts
                self.receipts[answer.number] = answer.first
            else:
                assert answer.code in {"log-full", "number-gap", "not-current"}, answer
                trouble.set()
            wake.set()

        try:
            while len(self.receipts) < self.total and not trouble.is_set() and not term.lost.is_set():
                if sent < self.total and sent < len(self.receipts) + 4:
                    sent += 1
                    await term.publish(
                        channel, batch(sent, publisher=self.name, incarnation=self.incarnation), answered
                    )
                    await trio.sleep(0.02)
                else:
                    wake = trio.Event()
                    with trio.move_on_after(1):
                        await wake.wait()
        finally:
            term.close(channel)


def test_whatever_happens_each_change_is_stored_once() -> None:
    """Honest publishers through failovers, unknown outcomes, outages and a full disk: each number once, in order, and
    each receipt points at it."""

    async def trouble(office: Office, random: Random) -> None:
        ways: Sequence[tuple[str, ChangefeedError | None]] = [
            ("append", AppendOutcomeUnknown("lost")),
            ("append done", AppendOutcomeUnknown("lost")),
            ("append", LogUnavailable("away")),
            ("look", LogUnavailable("away")),
            ("open_publisher done", AppendOutcomeUnknown("lost")),
            ("append", None),
        ]
        while True:
            await trio.sleep(random.random() * 0.4)
            what = random.randrange(len(ways) + 2)
            if what < len(ways):
                office.faults.plan(*ways[what], delay_s=random.random() * 0.1)
            elif what == len(ways):
                office.place.free = 0
                await trio.sleep(0.05)
                office.place.free = 2**40
            else:
                office.term.end("challenged")

    async def lead(office: Office) -> None:
        while True:
            try:
                await office.elect()
            except ChangefeedError:
                await trio.sleep(0.1)
            else:
                await office.term.run()

    async def main(seed: int) -> int:
        office = Office()
        office.place.free = office.place.total = 2**40
        random = Random(seed)
        senders = [Sender(name, 60) for name in ("p", "q", "r")]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lead, office)
            await wait_all_tasks_blocked()
            nursery.start_soon(trouble, office, random)
            async with trio.open_nursery() as work:
                for sender in senders:
                    work.start_soon(sender.run, office)
            nursery.cancel_scope.cancel()
        office.store.hook = None
        log = await (await office.store.open("f")).read(0, 1 << 30)
        for sender in senders:
            mine = [entry for entry in log if entry.publisher == sender.name]
            assert [entry.number for entry in mine] == list(range(1, 61))
            assert {entry.number: entry.seq for entry in mine} == {n: p.seq for n, p in sender.receipts.items()}
            assert all(p.epoch == e.epoch for e, p in zip(mine, sender.receipts.values(), strict=True))
        assert len(log) == 180
        return log[-1].epoch

    epochs = [trio.run(main, seed, clock=MockClock(autojump_threshold=0)) for seed in range(8)]
    assert min(epochs) > 1, epochs
    assert sum(epochs) > 20, epochs
