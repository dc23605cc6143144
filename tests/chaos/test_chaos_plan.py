"""The nemesis' plan: drawn from a seed alone, in lanes, with what is wanted; and the table of what can go wrong."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from changefeed.simulation.plan import Plan
from simulations.chaos.kinds import (
    ALWAYS,
    DISK,
    ELSEWHERE,
    FILE,
    KINDS,
    NETWORK,
    SHIM,
    TIME,
    ZOOKEEPER,
    available,
    of_numbers,
)
from simulations.chaos.nemesis import FAULTS
from simulations.chaos.plan import LANES, draw, lane_of

EVERYTHING = frozenset({NETWORK, SHIM, ZOOKEEPER, FILE, DISK, TIME})


@given(st.integers(0, 2**31), st.floats(1, 120))
def test_the_same_seed_gives_the_same_plan(seed: int, seconds: float) -> None:
    """And nothing else than the seed decides: it can be kept as JSON and read again."""
    plan = draw(seed, seconds, KINDS)
    assert plan == draw(seed, seconds, KINDS)
    assert Plan.from_json(plan.to_json()).steps == plan.steps
    assert json.loads(plan.to_json())["options"]["seed"] == seed


@given(st.integers(0, 2**31))
@example(12526028)
def test_faults_of_one_lane_come_one_after_the_other(seed: int) -> None:
    """Each begins after the one before could be over; steps lie within the round and last what their kind allows."""
    plan = draw(seed, 60, KINDS)
    for lane in LANES:
        steps = lane_of(plan, lane, KINDS)
        assert steps, "no lane is idle"
        assert all(0 <= step.at < 60 for step in steps)
        assert all(later.at > step.at + step.lasts for step, later in pairwise(steps))
        for step in steps:
            low, high = KINDS[step.kind].lasts
            assert low - 0.001 <= step.lasts <= high + 0.001


def test_a_plan_without_a_kind_leaves_the_other_lanes_as_they_are() -> None:
    """Lanes draw from streams of their own."""
    without = {name: kind for name, kind in KINDS.items() if name != "kill-leader"}
    for lane in LANES[1:]:
        assert lane_of(draw(3, 60, without), lane, KINDS) == lane_of(draw(3, 60, KINDS), lane, KINDS)


@given(st.integers(0, 2**31))
def test_what_is_wanted_is_in_the_plan(seed: int) -> None:
    """Whatever the swarm switched off."""
    wanted = {"kill-leader": 8, "freeze-leader": 3, "partition": 2, "garbage": 2}
    kinds = [step.kind for step in draw(seed, 60, KINDS, wanted).steps]
    for name, count in wanted.items():
        assert kinds.count(name) >= count


@given(st.integers(0, 2**31))
def test_over_half_of_the_faults_are_aimed_at_the_leader(seed: int) -> None:
    steps = draw(seed, 600, KINDS).steps
    aimed = sum(step.target == "leader" for step in steps) / len(steps)
    assert 0.4 < aimed < 0.8


def test_every_fault_of_the_table_is_done_or_named() -> None:
    """F1 to F24: each has a kind, is there all the time, or is named with its reason; and each kind has its doer."""
    numbers = {number for kind in KINDS.values() for number in kind.numbers.split()}
    named = {number for number, _ in (*ALWAYS, *ELSEWHERE)}
    assert numbers | named == {f"F{number}" for number in range(1, 25)}
    assert set(FAULTS) == set(KINDS)


def test_what_a_machine_lacks_takes_kinds_away() -> None:
    assert set(available(EVERYTHING)) == set(KINDS)
    bare = available(frozenset({FILE}))
    assert "kill-leader" in bare and "partition" not in bare and "sync-error" not in bare and "tear-record" in bare


def test_kinds_are_chosen_by_number_and_by_name() -> None:
    assert of_numbers({"F2"}) >= {"freeze-leader", "freeze-in-append"}
    assert of_numbers({"kill-leader"}) == {"kill-leader"}
    with pytest.raises(ValueError, match="no such fault: F99; there are F1"):
        of_numbers({"F99", "F2"})
