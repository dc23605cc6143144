"""The pure machines in all orders of a few steps: complete, without a broken promise; deliberate bugs are seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from changefeed.batch import Batch
from changefeed.change import Position
from changefeed.election import machine as election_machine
from changefeed.leader import machine as leader_machine
from changefeed.leader.book import Known, Run
from changefeed.leader.effects import Reply
from changefeed.publisher import machine as publisher_machine
from changefeed.serving import machine as serving_machine
from changefeed.simulation.explorer import log as explorer_log
from changefeed.simulation.explorer.electing import ElectBounds, Electing
from changefeed.simulation.explorer.publishing import Publishing
from changefeed.simulation.explorer.publishing_state import Bounds
from changefeed.simulation.explorer.reading import ReadBounds, Reading
from changefeed.simulation.explorer.scenarios import SCENARIOS, Scenario
from changefeed.simulation.explorer.search import Violation, World, explore
from changefeed.simulation.tiers import tier
from changefeed.subscriber import machine as subscriber_machine
from changefeed.wire.messages import Answer

QUICK = [scenario for scenario in SCENARIOS if not scenario.long]


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_every_order_of_steps_keeps_the_promises(scenario: Scenario) -> None:
    """Complete within the scenario's bounds."""
    seen = explore(scenario.world(), seconds=60)
    assert seen.broken is None, str(seen)
    assert seen.complete and seen.states > 500


def test_the_tier_tells_what_it_saw_and_tells_it_again() -> None:
    """A seed is a scenario; the same digest each time; a plan names another scenario."""
    explorer = tier("explorer")
    seed = next(index for index, one in enumerate(SCENARIOS) if one.name == "reading: from now on")
    first, again = explorer.run(seed), explorer.run(seed + len(SCENARIOS))
    assert first.digest == again.digest and not first.broken
    assert first.history[0]["complete"] and first.history[0]["states"] > 500
    assert explorer.run(0, explorer.draw(seed)).digest == first.digest
    assert first.sightings["cut"] > 0


def test_a_plan_of_an_unknown_scenario_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not raise."""
    explorer = tier("explorer")
    plan = explorer.draw(0)
    monkeypatch.setattr("changefeed.simulation.explorer.tier.SCENARIOS", ())
    outcome = explorer.run(0, plan)
    assert [broken.promise for broken in outcome.broken] == ["crash"] and "no scenario" in outcome.broken[0].says


# ---- deliberate bugs


def without_epochs(self: explorer_log.Log, epoch: int, term: str, expected: int, entries: Any) -> Any:
    """M3: the log compares neither epoch nor tail."""
    return RIGHT_APPEND(self, self.epoch, self.term, self.tail.seq, entries)


RIGHT_APPEND = explorer_log.Log.append
RIGHT_UNSEND = publisher_machine.PublisherMachine._unsend


def ack_first(self: Any, channel: str, ticket: Any, batch: Batch) -> Any:
    """M5: the receipt leaves before the append."""
    position = Position(self.lineage, self.epoch, self.term, self.tail.seq + 1)
    return [*RIGHT_PUBLISH(self, channel, ticket, batch), Reply(ticket, Answer(batch.number, batch.count, position))]


RIGHT_PUBLISH = leader_machine.Sequencer.publish


def forgets_what_is_known(self: Any, state: Any) -> Run:
    """M7: what a publisher has stored is not read from the log."""
    self.run = Run(self, state.incarnation, 0, 0)
    return self.run


def failure_goes_on(self: Any, error: Any) -> Any:
    """M11: an append without an answer counts as stored."""
    return self.appended() if error.code == "append-outcome-unknown" else RIGHT_FAILED(self, error)


RIGHT_FAILED = leader_machine.Sequencer.append_failed


def new_numbers(self: Any) -> Any:
    """M12: what was sent and not answered is sent again under new numbers."""
    effects = RIGHT_UNSEND(self)
    for batch in self._flight:
        for group in batch.groups:
            group.number += 1
        batch.number += 1
        batch.after = batch.number - 1
    self.last_number += len(self._flight)
    return effects


def nobody_is_told(self: Any, channel: Any) -> None:
    """The bug that the explorer found: whoever waits on a channel that a late Open replaces waits for ever."""
    self.close(channel.name)


def resumes_too_late(request: Any, look: Any, tail: Any, time_seq: Any = None) -> Any:
    """M16: a subscription goes on one entry too late."""
    start = RIGHT_ADMIT(request, look, tail, time_seq)
    return look.position(start.seq + 1) if start.seq < look.tail.seq else start


RIGHT_ADMIT = serving_machine.admit


def future_from_behind(request: Any, look: Any, tail: Any, time_seq: Any = None) -> Any:
    """M31: a final no from what this instance has seen, not from the log."""
    from changefeed.errors import FuturePosition

    start = request.start.position
    if start is not None and (tail is None or start.seq > tail.seq):
        raise FuturePosition(f"{start} lies in the future", start, look.earliest, look.head)
    return RIGHT_ADMIT(request, look, tail, time_seq)


def nobody_contends(self: Any, now: float) -> None:
    """An empty seat is left alone: each waits for another."""


PUBLISHING = Bounds(((1, 1),), terms=1, cuts=1, unknowns=1, deaths=0)
READING = ReadBounds(2, cuts=1, deaths=1, restarts=0)
Patch = tuple[Any, str, Any]
BUGS: dict[str, tuple[Callable[[], World[Any]], set[str], Patch]] = {
    "M3 the log compares neither epoch nor tail": (
        lambda: Publishing(PUBLISHING), {"C2", "C4", "C6", "C8"}, (explorer_log.Log, "append", without_epochs)),
    "M5 receipts before the append": (
        lambda: Publishing(PUBLISHING), {"C1"}, (leader_machine.Sequencer, "publish", ack_first)),
    "M7 known numbers not read from the log": (
        lambda: Publishing(PUBLISHING), {"C2"}, (Known, "learn", forgets_what_is_known)),
    "M11 an unknown outcome counts as stored": (
        lambda: Publishing(PUBLISHING), {"C1"}, (leader_machine.Sequencer, "append_failed", failure_goes_on)),
    "M12 sent again under new numbers": (
        lambda: Publishing(PUBLISHING), {"C3", "C6", "stuck"},
        (publisher_machine.PublisherMachine, "_unsend", new_numbers)),
    "a late Open silences who waits": (
        lambda: Publishing(PUBLISHING), {"stuck"}, (leader_machine.Sequencer, "_displace", nobody_is_told)),
    "M16 resumed too late": (
        lambda: Reading(READING), {"C5", "crash", "stuck"},
        ("changefeed.simulation.explorer.reading", "admit", resumes_too_late)),
    "nobody takes an empty seat": (
        lambda: Electing(ElectBounds(ticks=6, lost=1)), {"C14"},
        (election_machine.Election, "_decide_vacant", nobody_contends)),
    "M31 a final no from memory": (
        lambda: Reading(READING), {"C13"}, ("changefeed.simulation.explorer.reading", "admit", future_from_behind)),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_deliberate_bug_breaks_a_promise(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen, with the fewest steps that lead to it."""
    world, promises, (target, name, patch) = BUGS[bug]
    where = f"{target}.{name}" if isinstance(target, str) else None
    if where is not None:
        monkeypatch.setattr(where, patch)
    else:
        monkeypatch.setattr(target, name, patch)
    seen = explore(world(), seconds=60)
    assert isinstance(seen.broken, Violation), f"{bug}: not seen in {seen}"
    assert seen.broken.promise in promises, str(seen)
    assert seen.trail and str(seen).count("\n") == len(seen.trail)


def test_subscriber_that_takes_any_frame_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that was cut off with its connection leaves a gap, which the machine must notice."""
    right = subscriber_machine.SubscriberMachine.received

    def any_generation(self: Any, message: Any, generation: int, now: float) -> Any:
        return right(self, message, self._generation, now)

    monkeypatch.setattr(subscriber_machine.SubscriberMachine, "received", any_generation)
    seen = explore(Reading(READING), seconds=60)
    assert seen.broken is not None, "frames of an old connection are taken, and nobody sees it"


def test_a_search_that_met_its_bounds_is_not_complete() -> None:
    """And the tier says so instead of passing."""
    seen = explore(Publishing(PUBLISHING), states_max=100)
    assert not seen.complete and seen.broken is None and "not complete" in str(seen)
