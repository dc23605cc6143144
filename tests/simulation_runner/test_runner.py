"""Many seeds over worker processes: what fails, hangs, dies or is not the same twice is named with its seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from fake_tier import Fake

from changefeed.errors import BadConfig
from changefeed.history import Broken
from changefeed.simulation.plan import Plan, Step
from changefeed.simulation.runner import NEVER_FROM, SELDOM_FROM, Order, Run, Summary, new_first, open_pool, run_one
from changefeed.simulation.workers import Result

pytestmark = pytest.mark.processes


async def finished(order: Order) -> tuple[Summary, list[Result]]:
    told: list[Result] = []

    async def tell(result: Result) -> None:
        await trio.lowlevel.checkpoint()
        told.append(result)

    run = Run(order)
    with trio.fail_after(100):
        await run.go(tell)
    return run.summary, told


async def test_seeds_are_run_once_each_and_what_they_met_is_counted() -> None:
    """Over two processes; one of them is run a second time under another hash seed."""
    summary, told = await finished(Order("fake_tier:Healthy", first=100, seeds=40, jobs=2))
    assert (summary.seeds, summary.last, told, summary.failed) == (40, 139, [], [])
    assert summary.reached["a kill"] == 40
    assert summary.met["a kill"] == 60
    assert summary.reached["an expiry"] == 20
    assert summary.virtual_s == 40 * 12.5
    assert summary.twice == 1 and summary.unequal == 0
    assert summary.problems() == []
    assert summary.per_minute > 0


async def test_a_failure_comes_with_plan_and_history_and_is_seen_twice() -> None:
    summary, told = await finished(Order("fake_tier:Fake", seeds=8, jobs=2))
    (failure,) = told
    assert summary.failed == told
    assert failure.seed == 3
    assert failure.broken == Fake().run(3).broken
    assert failure.plan == Fake().draw(3)
    assert failure.history == list(Fake().run(3).history)
    assert failure.digest == Fake().run(3).digest
    assert failure.reproduced is True
    assert summary.problems() == ["1 of 8 seeds failed: 3"]


async def test_what_hangs_dies_or_raises_names_its_seed_and_the_others_go_on() -> None:
    """A hung one with the place where it hangs, a dead one with its end and last words."""
    summary, told = await finished(Order("fake_tier:Troubled", seeds=8, jobs=2, limit_s=4.0))
    assert summary.seeds == 8
    broken = {result.seed: result.broken[0] for result in told}
    assert broken.keys() == {2, 3, 4, 5}
    assert broken[2].promise == "hang"
    assert "hang_here" in broken[2].about["stack"]
    assert broken[3].says == "the process that ran the seed died: signal SIGKILL"
    assert broken[4].says == "the process that ran the seed died: exit status 17; nobody expected this"
    assert broken[5].says.endswith("RuntimeError: a bug of the simulation")
    assert "fake_tier.py" in broken[5].about["traceback"]


async def test_a_run_that_hangs_on_the_hash_seed_is_a_failure() -> None:
    """The first seed is run twice; its two digests differ."""
    summary, told = await finished(Order("fake_tier:HashBound", seeds=3))
    assert summary.unequal == 1
    (failure,) = told
    assert failure.broken[0].promise == "determinism"
    assert failure.reproduced is False
    assert failure.history


async def test_enough_failures_end_the_run() -> None:
    summary, told = await finished(Order("fake_tier:Fake", seeds=1_000_000, failures=2))
    assert [result.seed for result in told] == [3, 10]
    assert summary.seeds < 20
    assert summary.stopped == "2 failures are enough to look at"


async def test_time_ends_the_run_where_no_number_is_named() -> None:
    """No seed is begun after it; those at work are finished."""
    summary, _ = await finished(Order("fake_tier:Slow", seeds=None, seconds=0.5))
    assert 1 <= summary.seeds <= 5
    assert summary.stopped == ""
    summary, _ = await finished(Order("fake_tier:Slow", seeds=500, seconds=0.5))
    assert 1 <= summary.seeds <= 5
    assert summary.stopped == "time was up"


async def test_a_stop_ends_it_at_once_and_leaves_no_process() -> None:
    run = Run(Order("fake_tier:Troubled", first=2, seeds=1, limit_s=300))
    others = set(children_of(os.getpid()))  # servers that other tests of this process have started

    async def never(result: Result) -> None:
        raise AssertionError(result)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.go, never)
        with trio.fail_after(60):
            # Nothing tells of a process.
            while not (children := set(children_of(os.getpid())) - others):  # noqa: ASYNC110
                await trio.sleep(0.01)
            run.stop("enough")
    assert run.summary.stopped == "enough"
    assert run.summary.problems() == ["no seed was run to its end"]
    assert not [child for child in children if is_there(child)]


def children_of(pid: int) -> list[int]:
    """Of all its threads: trio starts processes from one of its own."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(word) for text in lists for word in text.split()]


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_plan_replaces_the_drawn_one() -> None:
    plan = Plan((Step(1, "kill", "a"), Step(2, "expire", "b", 2.0)))
    summary, told = await finished(Order("fake_tier:Fake", first=1, seeds=2, plan=plan))
    assert summary.seeds == 2
    assert [(result.seed, result.plan) for result in told] == [(1, plan), (2, plan)]


async def test_one_seed_comes_with_its_whole_history() -> None:
    result = await run_one("fake_tier:Fake", 4)
    assert result.broken == ()
    assert result.history == list(Fake().run(4).history)
    assert result.plan == Fake().draw(4)


@pytest.mark.parametrize(
    ("tier", "plan", "sentence"),
    [
        ("custard", None, "there is no tier 'custard'"),
        ("fake_tier:Missing", None, "there is no tier 'fake_tier:Missing'"),
        ("no_module_of_that_name:Tier", None, "No module named"),
        ("fake_tier:Fake", Plan((Step(1, "sneeze"),)), "there is no fault 'sneeze'"),
    ],
)
async def test_tiers_and_plans_that_cannot_be_run_are_refused(tier: str, plan: Plan | None, sentence: str) -> None:
    with pytest.raises(BadConfig, match=sentence):
        await run_one(tier, 1, plan)


async def test_a_plan_that_is_refused_while_shrinking_breaks_nothing() -> None:
    async with open_pool("fake_tier:Fake", 2) as pool:
        plans = [Plan((Step(1, "sneeze"),)), Plan((Step(1, "kill"), Step(2, "expire", "b", 2.0)))]
        answers = await pool.ask_all([(7, plan) for plan in plans])
    assert [bool(result.broken) for result in answers] == [False, True]


def test_what_must_be_met_is_judged_when_there_were_enough_seeds() -> None:
    """Never met counts from 2,000 seeds on, met in less than 1 % from 10,000 on."""
    summary = Summary(Order(), wanted=("often", "seldom", "never"))
    summary.reached.update({"often": 1_000, "seldom": 3})
    summary.seeds = NEVER_FROM - 1
    assert summary.seldom() == []
    summary.seeds = NEVER_FROM
    assert summary.seldom() == ["never"]
    summary.seeds = SELDOM_FROM
    assert summary.seldom() == ["seldom", "never"]
    assert "seldom, never" in summary.problems()[0]


def test_new_seeds_are_new_and_an_order_has_an_end() -> None:
    assert len({new_first() for _ in range(20)}) == 20
    with pytest.raises(ValueError, match="how many seeds, or for how long"):
        Order(seeds=None)


def test_a_result_knows_what_it_breaks() -> None:
    assert Result(1, broken=(Broken("C1", ""),)).breaks("C1")
    assert not Result(1, broken=(Broken("C1", ""),)).breaks("C2")
