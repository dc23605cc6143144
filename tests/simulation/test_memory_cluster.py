"""Whole clusters under virtual time: seeds that found something once, some fresh ones, and the same seed twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from changefeed.publisher.machine import PublisherMachine
from simulations import memory_cluster, memory_restore
from simulations.cluster_parts import PROCESS, WANTED, Freezer, Sightings

ROOT = Path(__file__).parents[2]
RUNS = {"cluster": memory_cluster.run_seed, "restore": memory_restore.run_seed}
FRESH = 5


def kept_seeds() -> list[tuple[str, int]]:
    lines = (ROOT / "simulations" / "seeds.txt").read_text().splitlines()
    found = [re.fullmatch(r"(\w+) (\d+): (.+)", line) for line in lines if line and not line.startswith("#")]
    assert all(found), "a line is SCENARIO SEED: a sentence"
    return [(match[1], int(match[2])) for match in found if match]


@pytest.mark.parametrize(("scenario", "seed"), kept_seeds())
def test_a_seed_that_found_something_stays_clean(scenario: str, seed: int) -> None:
    """See simulations/seeds.txt for what it found."""
    problems, _ = RUNS[scenario](seed)
    assert problems == []


def test_fresh_seeds_are_clean_and_meet_something() -> None:
    """Few enough for every run of the tests; `python -m simulations.memory_cluster` runs as many as one likes."""
    sightings = Sightings()
    first = 1000
    for seed in range(first, first + FRESH):
        problems, _ = memory_cluster.run_seed(seed, sightings)
        assert problems == [], f"seed {seed}"
    for what in ("a batch forwarded", "a position resumed", "an Open again after a lost leader", "elected: start"):
        assert sightings[what], what
    assert set(sightings.missing()) < set(WANTED)


def test_copies_of_the_log_are_noticed() -> None:
    """An older copy under living clients: typed resets, receipts that are lost, nothing wrong."""
    sightings = Sightings()
    for seed in range(100, 103):
        problems, _ = memory_restore.run_seed(seed, sightings)
        assert problems == [], f"seed {seed}"
    assert sightings["a publisher told of lost receipts"]
    assert sightings["reset: future-position"] + sightings["reset: other-lineage"]


def test_the_same_seed_is_the_same_run_whatever_the_hash_seed() -> None:
    """In processes of their own with other hash seeds: no decision hangs on the order of a set."""
    found = []
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "simulations.memory_cluster", "--hash", "--first", "7", "--seeds", "1"]
        run = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        found.append(re.findall(r"seed 7: trace (\w+)", run.stdout))
    assert found[0] == found[1]
    assert len(found[0]) == 1


def test_the_simulation_sees_a_publisher_that_forgets_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deliberate bug: after each lost leader all that is unanswered is numbered anew. Some seed must see it."""

    def numbers_anew(machine: PublisherMachine) -> list[object]:
        machine.opened = False
        machine._dissolve()
        machine._sent = 0
        machine.incarnation = None
        machine.last_receipt = None
        machine._held = machine._chain = 0
        return []

    monkeypatch.setattr(PublisherMachine, "_unsend", numbers_anew)
    assert any("twice" in problem for seed in (0, 4, 10) for problem in memory_cluster.run_seed(seed)[0])


# ---- the simulation's own parts


def test_a_frozen_process_runs_no_step_until_it_is_thawed() -> None:
    """Not even when its sleep is over or it is cancelled; the others go on."""
    freezer = Freezer()
    steps: list[tuple[str, float]] = []

    async def walk(who: str) -> None:
        while True:
            steps.append((who, trio.current_time()))
            await trio.sleep(1)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for who in ("a", "b"):
                mark = PROCESS.set(who)
                nursery.start_soon(walk, who)
                PROCESS.reset(mark)
            await trio.sleep(1.5)
            freezer.freeze("a")
            await trio.sleep(3)
            freezer.thaw("a")
            await trio.sleep(0.9)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[freezer])
    assert [at for who, at in steps if who == "a"] == [0, 1, 4.5]
    assert [at for who, at in steps if who == "b"] == [0, 1, 2, 3, 4, 5]
