"""Rows of the models: Spin's variants, the explorer's worlds, traces of the cluster as behaviours of a specification.

spin()                       both Promela models, every variant, also the long ones
explored(long=True)          each scenario of tier "explorer", complete
traces(first, count)         so many seeds of tier "cluster", each record a step of simulations/models/trace.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from changefeed.simulation.explorer.scenarios import SCENARIOS
from changefeed.simulation.explorer.search import explore
from changefeed.simulation.tiers import tier
from simulations.models.spin import Result, ask, missing
from simulations.models.trace import Unexplained, validate
from simulations.models.variants import ALL
from simulations.proof.rows import Row

#: Of the processor, for one scenario.
EXPLORE_S = 900.0


def rows(quick: bool = False) -> Iterator[Row]:
    """Spin's variants, and traces of 2,000 seeds (quick: the short variants, and 200)."""
    yield from spin(long=not quick)
    yield from traces(count=200 if quick else 2000)


def spin(*, long: bool = True) -> Iterator[Row]:
    """A row for each model and kind of answer; one more for each variant that is not as it must be."""
    gone = missing()
    if gone:
        yield Row("Promela models", gone, "spin and gcc are here", False)
        return
    for model in ("protocol", "election"):
        results = [ask(variant) for variant in ALL if variant.model == model and (long or not variant.long)]
        yield from _spin_rows(model, results)


def _spin_rows(model: str, results: list[Result]) -> Iterator[Row]:
    hold = [result for result in results if not result.variant.breaks]
    broken = [result for result in results if result.variant.breaks]
    states, seconds = sum(result.states for result in hold), sum(result.seconds for result in results)
    wrong = [result for result in results if not result.ok]
    held = sum(result.ok for result in hold)
    yield Row(
        f"Promela, {model}: what must hold holds in all states",
        f"{held} of {len(hold)} variants, {states:,} states, {seconds:.1f} s",
        "all, each complete",
        held == len(hold) and held > 0,
    )
    seen = sum(result.ok for result in broken)
    yield Row(
        f"Promela, {model}: deliberate faults are seen",
        f"{seen} of {len(broken)} break what they must",
        "all",
        seen == len(broken) and seen > 0,
    )
    for result in wrong:
        yield Row(f"Promela, {model}: {result.variant.name}", str(result)[:200], "as it must be", False)


def explored(*, long: bool = True) -> Iterator[Row]:
    """A row for each scenario."""
    for scenario in SCENARIOS:
        if scenario.long and not long:
            continue
        seen = explore(scenario.world(), seconds=EXPLORE_S)
        figure = (
            f"{seen.states:,} states, {seen.moves:,} steps, depth {seen.depth}, {seen.seconds:.1f} s of a processor"
        )
        if seen.broken is not None:
            figure = str(seen)[:300]
        elif not seen.complete:
            figure += ", not complete"
        yield Row(f"explorer, {scenario.name}", figure, "complete, nothing broken", seen.complete)


def traces(first: int = 0, count: int = 2000) -> Iterator[Row]:
    """One row; the first trace that is refused is told."""
    cluster, begun = tier("cluster"), time.process_time()
    records = refused = 0
    told = ""
    for seed in range(first, first + count):
        history = cluster.run(seed).history
        records += len(history)
        try:
            validate(history)
        except Unexplained as error:
            refused += 1
            told = told or f"; seed {seed}: {error}"
    took = time.process_time() - begun
    yield Row(
        "traces of the cluster simulation are behaviours of the abstract specification",
        f"{count - refused} of {count} seeds, {records:,} records, {took:.0f} s of processor{told}",
        "all",
        refused == 0,
    )
