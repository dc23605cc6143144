"""New seeds for each day of `make test`: the same for all its processes, other ones tomorrow."""

from __future__ import annotations

import datetime
from collections import Counter

from changefeed.simulation.tiers import tier

#: Of each chunk; a chunk is one test.
SEEDS = 100


def first_of(chunk: int) -> int:
    """The first seed of a chunk of today."""
    day = datetime.datetime.now(datetime.UTC).date().toordinal()
    return day * 1_000_000 + chunk * SEEDS


def run_chunk(chunk: int, met: Counter[str]) -> None:
    """Run a chunk's seeds; fails with each seed that broke a promise, and how to see it again."""
    cluster = tier("cluster")
    first, failed = first_of(chunk), []
    for seed in range(first, first + SEEDS):
        outcome = cluster.run(seed)
        met["seeds"] += 1
        met.update(set(outcome.sightings))
        if outcome.broken:
            says = "; ".join(f"{item.promise}: {item.says}" for item in outcome.broken[:3])
            failed.append(f"seed {seed} broke {says}\n  changefeed simulate --seed {seed} --trace\n  {outcome.plan}")
    assert not failed, "\n".join(failed)


def all_met(met: Counter[str]) -> None:
    """Whether what must be met in 1 % of seeds was met at all; only for a whole file's seeds."""
    if met["seeds"] >= 1000:
        assert [name for name in tier("cluster").wanted if not met[name]] == []
