"""Shrinking: the smallest plan that still fails, in few runs, whatever the failing condition is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio
from fake_tier import Fake
from hypothesis import given
from hypothesis import strategies as st

from changefeed.history import Broken
from changefeed.simulation.plan import Plan, Step
from changefeed.simulation.shrink import Shrinker, Shrunk, signature


def shrink(plan: Plan, fails: Callable[[Plan], bool], *, width: int = 1, runs: int = 400) -> tuple[Shrunk, list[Plan]]:
    asked: list[Plan] = []

    async def judge(plans: Sequence[Plan]) -> list[bool]:
        await trio.lowlevel.checkpoint()
        asked.extend(plans)
        return [fails(each) for each in plans]

    return trio.run(Shrinker(plan, judge, width=width, runs=runs).run), asked


def plan_of(*kinds: str, lasts: float = 2.5, options: tuple[tuple[str, object], ...] = ()) -> Plan:
    return Plan(tuple(Step(1.2345 + n, kind, "a", lasts) for n, kind in enumerate(kinds)), options)


def kinds(plan: Plan) -> list[str]:
    return [step.kind for step in plan.steps]


def test_only_the_steps_that_matter_stay() -> None:
    """Two faults far from each other are found among thirty."""
    names = [f"n{n}" for n in range(30)]
    names[4], names[23] = "kill", "expire"
    found, asked = shrink(plan_of(*names), lambda plan: {"kill", "expire"} <= set(kinds(plan)))
    assert kinds(found.plan) == ["kill", "expire"]
    assert found.complete
    assert found.runs == len(asked) <= 100


def test_what_is_left_is_made_plain() -> None:
    """Faults as short as they may be, options at their defaults, lists thinned out, an earlier end, round times."""

    def fails(plan: Plan) -> bool:
        needed = [step for step in plan.steps if step.kind == "freeze" and step.lasts >= 1.0]
        return bool(needed) and "look" in (plan.option("pauses") or ()) and (plan.option("chaos_s") or 0) >= 3

    options = (("chaos_s", 40.0), ("log_s", 0.1), ("pauses", ["fence", "look", "read"]), ("way_s", 0.002))
    found, _ = shrink(plan_of("cut", "freeze", "drain", lasts=8.0, options=options), fails)
    assert kinds(found.plan) == ["freeze"]
    assert 1.0 <= found.plan.steps[0].lasts < 2.0
    assert found.plan.steps[0].at == 2.2
    assert dict(found.plan.options).keys() == {"chaos_s", "pauses"}
    assert found.plan.option("pauses") == ["look"]
    assert 3 <= found.plan.option("chaos_s") < 4
    assert {sentence.split(":")[0] for sentence in found.tried} == {
        "steps left out",
        "faults made shorter",
        "options left at their defaults",
        "an earlier end",
        "rounder times",
    }


def test_runs_are_bounded_and_what_was_found_by_then_is_kept() -> None:
    found, asked = shrink(plan_of(*["kill"] * 40), lambda plan: len(plan.steps) >= 7, runs=9)
    assert not found.complete
    assert len(asked) <= 9
    assert 7 <= len(found.plan.steps) < 40


def test_no_plan_is_run_twice() -> None:
    _, asked = shrink(plan_of(*"abcdefgh"), lambda plan: {"b", "g"} <= set(kinds(plan)))
    texts = [plan.to_json() for plan in asked]
    assert len(texts) == len(set(texts))


def test_runs_beside_each_other_find_the_same_plan() -> None:
    """Which plan is found does not hang on how many runs are made at once."""
    plan = plan_of(*"abcdefghijkl")
    alone, _ = shrink(plan, lambda plan: {"c", "k"} <= set(kinds(plan)))
    together, _ = shrink(plan, lambda plan: {"c", "k"} <= set(kinds(plan)), width=4)
    assert alone.plan == together.plan


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=14), st.data())
def test_the_result_fails_and_lost_nothing_that_was_needed(names: list[str], data: st.DataObject) -> None:
    """Whatever set of steps is needed: the result fails, and leaving out any one more step would pass."""
    needed = data.draw(st.lists(st.sampled_from(names), max_size=4, unique=True))

    def fails(plan: Plan) -> bool:
        return set(needed) <= set(kinds(plan))

    found, _ = shrink(plan_of(*names), fails)
    assert fails(found.plan)
    assert sorted(kinds(found.plan)) == sorted(needed)


def test_a_promise_is_the_same_whatever_its_sentence_and_a_crash_only_with_its_error() -> None:
    """A plan without an option that the tier needs crashes otherwise than the crash that is looked for."""
    assert signature(Broken("C1", "k1 is lost")) == signature(Broken("C1", "k9 is lost"))
    assert signature(Broken("crash", "an error: KeyError: 'x' at 12")) == signature(
        Broken("crash", "an error: KeyError: 'x' at 7")
    )
    assert signature(Broken("crash", "an error: KeyError: 'x'")) != signature(Broken("crash", "an error: TypeError"))


def test_the_fake_tier_fails_only_with_both_faults() -> None:
    """What the tests of the command rely on."""
    tier = Fake()
    assert tier.run(3).broken and not tier.run(4).broken
    assert not tier.run(3, Plan(tuple(step for step in tier.draw(3).steps if step.kind != "kill"))).broken
