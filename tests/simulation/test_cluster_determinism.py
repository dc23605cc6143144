"""The same seed and plan are the same run: in any process, under any hash seed, after any other run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from changefeed.simulation.cluster import virtual
from changefeed.simulation.plan import Plan, Step
from changefeed.simulation.tiers import tier

SEEDS = 12
PROGRAM = """
import sys
from changefeed.simulation.tiers import tier
print([tier("cluster").run(seed).digest for seed in map(int, sys.argv[1:])])
"""


@pytest.mark.processes
def test_the_same_seeds_are_the_same_runs_under_three_hash_seeds() -> None:
    """In processes of their own, each with the seeds in another order: nothing hangs on the order of a set, on the
    addresses of objects, or on what ran before."""
    seeds = list(range(500, 500 + SEEDS))
    orders = (seeds, seeds[::-1], seeds[3:] + seeds[:3])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, order)],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed, order in zip((0, 1, 4242), orders, strict=True)
    ]
    found = []
    for process, order in zip(running, orders, strict=True):
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        digests = json.loads(printed.replace("'", '"'))
        found.append(dict(zip(order, digests, strict=True)))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].values())) == SEEDS


def test_a_plan_that_was_written_down_is_the_same_run() -> None:
    cluster = tier("cluster")
    plan = cluster.draw(31)
    again = Plan.from_json(plan.to_json())
    assert cluster.draw(31) == plan
    assert cluster.run(31).digest == cluster.run(31, again).digest
    assert cluster.run(31).history == cluster.run(31, plan).history


def test_leaving_a_fault_out_shifts_none_of_the_others() -> None:
    """A shrinker may drop steps: the others come when they came, and each publisher publishes the same, as far as it
    gets."""
    cluster = tier("cluster")
    seed, plan = next((seed, plan) for seed in range(100) if len((plan := cluster.draw(seed)).steps) > 2)

    def faults(steps: tuple[Step, ...]) -> list[tuple[int, str]]:
        history = cluster.run(seed, Plan(steps, plan.options)).history
        return [(record["t"], record["kind"]) for record in history if record["f"] == "fault"]

    def published(steps: tuple[Step, ...]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for record in cluster.run(seed, Plan(steps, plan.options)).history:
            if record["f"] == "submit" and record["life"] == 1:
                found.setdefault(record["node"], []).extend(record["keys"])
        return found

    assert faults(plan.steps[1:]) == faults(plan.steps)[1:]
    assert faults(plan.steps[:-1]) == faults(plan.steps)[:-1]
    whole, short = published(plan.steps), published(plan.steps[1:])
    assert set(whole) == set(short)
    for who, keys in whole.items():
        count = min(len(keys), len(short[who]))
        assert count and keys[:count] == short[who][:count]


def test_what_makes_trio_quicker_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = tier("cluster")
    quick = [cluster.run(seed).digest for seed in range(40, 46)]
    monkeypatch.setattr(virtual, "QUICKER", [])
    assert [cluster.run(seed).digest for seed in range(40, 46)] == quick
