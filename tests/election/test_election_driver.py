"""The election's driver: whatever the world does, one task goes on, and a slow answer delays nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
from election_bench import FEED, beat, member
from trio.testing import MockClock

from changefeed.coordination import LeaderRecord, View
from changefeed.coordination.memory import MemoryCoordination
from changefeed.election.driver import COORDINATOR_S, Elector
from changefeed.errors import LogDamaged, LogUnavailable
from changefeed.log import Fence, Look
from changefeed.log.memory import Faults, MemoryLogStore, MemoryPlace
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.wire.messages import Said


class Hooks:
    """Writes down what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.on_start: Callable[[Fence], None] = lambda fence: None
        self.said: list[Said] = []
        self.asked: list[LeaderRecord] = []

    def start_term(self, fence: Fence, look: Look, why: str) -> None:
        assert look.fence == fence
        self.calls.append(("start", fence.epoch, why))
        self.on_start(fence)

    def end_term(self, why: str) -> None:
        self.calls.append(("end", why))

    def follow(self, record: LeaderRecord | None) -> None:
        self.calls.append(("follow", None if record is None else record.name))

    async def finish_term(self) -> None:
        self.calls.append(("finish",))

    async def ask_members(self, record: LeaderRecord) -> list[Said]:
        self.asked.append(record)
        return self.said


class Setting:
    """One Elector "a" on a coordinator and a log in memory, and a second participant "b" moved by hand."""

    def __init__(self, **options: Any) -> None:
        self.server = MemoryCoordination(SeededEntropy(1), answer_s=0.01)
        self.coordinator, self.other = self.server.coordinator(), self.server.coordinator()
        self.store = MemoryLogStore(MemoryPlace())
        self.faults = Faults()
        self.store.hook = self.faults
        self.hooks = Hooks()
        self.options = options

    async def __aenter__(self) -> Setting:
        await self.coordinator.start(member("a"))
        await self.other.start(member("b"))
        self.log = await self.store.open(FEED)
        self.elector = Elector(
            feed=FEED, coordinator=self.coordinator, log=self.log, member=member("a"), hooks=self.hooks,
            settings=Settings(), world=World(entropy=SeededEntropy(2)), **self.options,
        )  # fmt: skip
        return self

    async def __aexit__(self, *args: object) -> None:
        pass

    async def b_leads(self) -> View:
        view = await self.other.take(FEED, await self.other.read(FEED))
        assert view is not None
        await self.log.fence(Fence(view.epoch, "bbbbbbbb", coordinator=self.server.id), why="", time=0, clean=True)
        return view


async def run(elector: Elector, seconds: float, then: Callable[[], Any] | None = None) -> None:
    """Run an Elector for some virtual time; call `then` after the first second."""
    async with trio.open_nursery() as nursery:
        await nursery.start(elector.run)
        await trio.sleep(min(seconds, 1.0))
        if then is not None:
            then()
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()


async def test_it_takes_the_lead_and_ends_its_term_when_it_is_cancelled(autojump_clock: MockClock) -> None:
    """Cancellation leaves no term behind; the record goes with the coordinator's session."""
    async with Setting() as at:
        await run(at.elector, 3.0)
        assert at.hooks.calls == [("start", 1, "start"), ("end", "stopped")]
        assert at.elector.status.role == "stopped"
        fence = (await at.log.look()).fence
        assert (fence.instance, fence.process, fence.coordinator) == ("a", "process-a", at.server.id)


async def test_the_leader_renews_its_fence_with_each_look(autojump_clock: MockClock) -> None:
    """Others see by it that a foreign leader lives."""
    stamps: list[int] = []
    async with Setting() as at:
        at.elector._world = World(entropy=SeededEntropy(2), wall_ms=lambda: int(trio.current_time() * 1000) + 10**6)
        async with trio.open_nursery() as nursery:
            await nursery.start(at.elector.run)
            for _ in range(4):
                await trio.sleep(1.0)
                stamps.append((await at.log.look()).fence.renewed)
            nursery.cancel_scope.cancel()
    assert [b - a for a, b in pairwise(stamps)] == [1000, 1000, 1000]


async def test_a_coordinator_call_that_hangs_delays_no_heartbeat_and_is_given_up(autojump_clock: MockClock) -> None:
    """The synced read never returns; heartbeats and looks go on, and after a while it is asked again."""
    async with Setting() as at:
        view = await at.b_leads()
        reads: list[float] = []

        async def read(feed: str) -> View:
            reads.append(trio.current_time())
            await trio.sleep_forever()
            raise AssertionError

        at.coordinator.read = read  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            await nursery.start(at.elector.run)
            for _ in range(100):
                at.elector.link_beat(beat("b", epoch=view.epoch))
                await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        assert at.hooks.asked == [], "it was heard all the time"
        assert at.elector.status.leader == "b" and at.elector.status.log_ok
        assert len(reads) > 3 and reads[1] - reads[0] == pytest.approx(COORDINATOR_S + 0.1, abs=0.02)


async def test_a_look_that_hangs_counts_as_no_answer_after_log_timeout(autojump_clock: MockClock) -> None:
    async with Setting() as at:
        at.faults.plan("look", delay_s=1000.0)
        async with trio.open_nursery() as nursery:
            await nursery.start(at.elector.run)
            await trio.sleep(1.9)
            assert at.elector.status.log_slow_s == pytest.approx(1.9)
            assert at.elector.status.hindrance == "log-unanswered"
            await trio.sleep(1.0)  # given up at 2.0, and asked again
            assert at.elector.status.role == "leading"
            nursery.cancel_scope.cancel()


async def test_errors_of_the_world_do_not_end_it(autojump_clock: MockClock) -> None:
    """Typed or not: a library's own exception is an answer too."""
    async with Setting() as at:
        broken = {"n": 0}
        real = at.coordinator.read

        async def read(feed: str) -> View:
            broken["n"] += 1
            if broken["n"] <= 3:
                raise ZeroDivisionError("a bug of some client library")
            return await real(feed)

        at.coordinator.read = read  # type: ignore[method-assign]
        at.faults.plan("look", LogUnavailable("away"))
        at.faults.plan("fence", LogUnavailable("locked"))
        await run(at.elector, 5.0)
        assert at.hooks.calls[0] == ("start", 1, "start")
        assert broken["n"] >= 4


async def test_a_watch_that_fails_is_set_up_again(autojump_clock: MockClock) -> None:
    async with Setting() as at:
        await at.b_leads()
        real, failures = at.coordinator.wait_change, {"n": 0}

        async def wait_change(feed: str, known: View | None) -> View:
            failures["n"] += 1
            if failures["n"] <= 5:
                raise OSError("the socket broke")
            return await real(feed, known)

        at.coordinator.wait_change = wait_change  # type: ignore[method-assign]
        await run(at.elector, 5.0, lambda: at.server.crash(at.other))
        assert failures["n"] > 5
        assert ("follow", "b") in at.hooks.calls


async def test_evidence_leads_to_a_term_without_time_passing_but_for_the_calls(autojump_clock: MockClock) -> None:
    """Memory answers at once: from refused to serving no virtual time passes at all."""
    async with Setting() as at:
        await at.b_leads()
        async with trio.open_nursery() as nursery:
            await nursery.start(at.elector.run)
            await trio.sleep(1.0)
            before = trio.current_time()
            started = trio.Event()
            at.hooks.on_start = lambda fence: started.set()
            at.elector.link_refused("process-b")
            await started.wait()
            assert trio.current_time() == before
            assert at.hooks.calls[-1] == ("start", 2, "process-gone")
            nursery.cancel_scope.cancel()


async def test_facts_before_run_are_kept(autojump_clock: MockClock) -> None:
    """Links may speak before the election runs; nothing is performed until it does."""
    async with Setting() as at:
        await at.b_leads()
        at.elector.link_refused("process-b")
        at.elector.follower_beat(beat("c", "following"))
        assert at.hooks.calls == []
        await run(at.elector, 1.0)
        assert ("follow", "b") in at.hooks.calls


async def test_a_hook_may_tell_facts(autojump_clock: MockClock) -> None:
    """A term that ends while it is being started does not upset the order of effects."""
    async with Setting() as at:

        def on_start(fence: Fence) -> None:
            if fence.epoch == 1:
                at.elector.term_ended(1, "outcome-unknown")
                at.elector.link_closed("process-x")

        at.hooks.on_start = on_start
        await run(at.elector, 3.0)
        assert at.hooks.calls == [("start", 1, "start"), ("start", 2, "outcome-unknown"), ("end", "stopped")]


async def test_a_damaged_log_ends_the_part_of_this_instance(autojump_clock: MockClock) -> None:
    async with Setting() as at:
        await run(at.elector, 3.0, lambda: at.faults.plan("look", LogDamaged("the chain is broken")))
        assert at.hooks.calls == [("start", 1, "start"), ("end", "log-damaged")]
        assert (await at.other.read(FEED)).leader is None


async def test_asking_members_is_bounded(autojump_clock: MockClock) -> None:
    """A member that never answers is not reachable; the challenge does not wait for it."""
    async with Setting() as at:
        await at.b_leads()

        async def ask_members(record: LeaderRecord) -> list[Said]:
            await trio.sleep_forever()
            raise AssertionError

        at.hooks.ask_members = ask_members  # type: ignore[method-assign]
        await run(at.elector, 4.0)
        assert at.hooks.calls == [("follow", "b"), ("follow", None), ("start", 2, "silent"), ("end", "stopped")]


async def test_members_that_heard_the_leader_hold_the_challenge_back(autojump_clock: MockClock) -> None:
    async with Setting() as at:
        view = await at.b_leads()
        at.hooks.said = [Said(0.1, 0, "process-c")]
        await run(at.elector, 10.0)
        assert at.hooks.calls == [("follow", "b")]
        assert at.hooks.asked[0] == view.leader


async def test_handing_over_without_running_returns_at_once(autojump_clock: MockClock) -> None:
    async with Setting() as at:
        await at.elector.hand_over()
        assert trio.current_time() == 0


async def test_a_handover_waits_for_the_successors_fence(autojump_clock: MockClock) -> None:
    """b does by hand what a successor does."""
    async with Setting() as at, trio.open_nursery() as nursery:
        at.hooks.on_start = lambda fence: None
        await nursery.start(at.elector.run)
        await trio.sleep(1.0)
        done = trio.Event()

        async def leave() -> None:
            await at.elector.hand_over()
            done.set()

        nursery.start_soon(leave)
        await trio.sleep(0.1)
        assert at.hooks.calls[-1] == ("finish",)
        at.elector.term_ended(1, "handover")
        await trio.sleep(0.1)
        view = await at.other.read(FEED)
        assert view.leader is not None and view.leader.leaving and view.leader.successor == "b"
        won = await at.other.challenge(FEED, view)
        assert won is not None and not done.is_set()
        fence = Fence(won.epoch, "bbbbbbbb", coordinator=at.server.id)
        await at.log.fence(fence, why="handover", time=0, clean=True)
        await trio.sleep(0.1)
        assert done.is_set()
        assert at.elector.status.leader == "b" and at.elector.status.hindrance == "leaving"
        assert at.hooks.calls[-1] == ("follow", "b")
        nursery.cancel_scope.cancel()


async def test_status_can_be_read_at_any_time(autojump_clock: MockClock) -> None:
    async with Setting(candidate=False) as at:
        before = at.elector.status
        assert (before.role, before.epoch, before.leader, before.connected) == ("following", 0, "", False)
        await run(at.elector, 1.0)
        after = at.elector.status
        assert (after.role, after.hindrance) == ("stopped", "not-a-candidate")
