"""Deliberate bugs: the simulation is shown what it would find; and small changes of any line, which tests must see."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from simulations.mutants.catalogue import BUGS
from simulations.mutants.code.survivors import explained, figures, load, standing
from simulations.mutants.harness import BUDGET, RUNS, combinations, measure_all, run_tests
from simulations.mutants.table import MEDIAN_MAX, PAGE, Results, judge, page
from simulations.proof.rows import Row

#: Of the changes of the machines that could be seen, so many must be.
SHARE_MIN = 0.9


def rows(jobs: int = 1, quick: bool = False) -> Iterator[Row]:
    """All mutants from several starts each (quick: from one), then what is kept of them and of changes of the code."""
    results = Results()
    for found in measure_all(combinations(), runs=1 if quick else RUNS, jobs=jobs):
        results.measured[found.names] = found
    for mutant, twin in product(BUGS, (False, True)):
        if mutant.twin_tests if twin else mutant.tests:
            results.tested[mutant.name, twin] = run_tests(mutant, twin=twin)
    verdict = judge(results)
    missed = f", not {', '.join(verdict.missed)}" if verdict.missed else ""
    yield Row(
        "deliberate bugs caught, alone or with what hides them",
        f"{verdict.caught} of {verdict.of}{missed}",
        "all",
        verdict.caught == verdict.of,
    )
    yield Row(
        "seeds until a deliberate bug is caught, median over the bugs",
        f"{verdict.median:g}",
        f"at most {MEDIAN_MAX}",
        verdict.median <= MEDIAN_MAX,
    )
    yield Row("the same, worst start of all", str(verdict.worst), f"at most {BUDGET}", verdict.worst <= BUDGET)
    twins = [tested for (_, twin), tested in results.tested.items() if twin]
    seen = sum(bool(tested.failed) for tested in twins)
    yield Row(
        "their twins in the production log, coordinator and cursors, seen by a test",
        f"{seen} of {len(twins)}",
        "all",
        seen == len(twins) > 0,
    )
    kept = Results.load()
    yield Row(
        "the table in docs/internals/mutants.md",
        str(judge(kept)),
        "is what was measured last",
        judge(kept).ok and PAGE.read_text() == page(kept),
    )
    yield _code()


def _code() -> Row:
    said = figures(load())
    gone = [change for change in explained() if standing(change) is None]
    return Row(
        "small changes of the machines' lines that a test sees, of those that change anything",
        f"{100 * said.share:.1f} % ({said.killed} of {said.tried - said.equivalent}; {said.equivalent} explained)",
        f"at least {100 * SHARE_MIN:g} %, explanations of the present source",
        said.share >= SHARE_MIN and said.tried > 0 and not gone,
    )
