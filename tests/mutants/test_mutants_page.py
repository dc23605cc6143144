"""The table of deliberate bugs is what was measured last, and that keeps its limits."""

from __future__ import annotations

from simulations.mutants import harness
from simulations.mutants.catalogue import BUGS
from simulations.mutants.harness import BUDGET, Measured, Run
from simulations.mutants.table import MEDIAN_MAX, PAGE, Results, judge, page


def test_the_page_is_what_was_measured() -> None:
    """docs/internals/mutants.md is written by the command out of results.json, never by hand."""
    assert PAGE.read_text() == page(Results.load()), "run python -m simulations.mutants --write"


def test_all_bugs_are_caught_within_the_limits() -> None:
    """All of them; half of them within 20 seeds, the worst start within 2,000."""
    verdict = judge(Results.load())
    assert verdict.of == 36
    assert not verdict.missed
    assert verdict.median <= MEDIAN_MAX and verdict.worst <= BUDGET and verdict.ok


def test_a_survivor_fails_the_verdict() -> None:
    """One bug that one start did not see, or whose tests pass with it, and the verdict is no."""
    results = Results.load()
    name = next(mutant.name for mutant in BUGS if not mutant.tests and not mutant.hidden_by)
    results.measured[(name,)] = Measured((name,), [Run(3, ("C1",), "lost", 2), Run(BUDGET)])
    assert judge(results).missed == (name,) and not judge(results).ok
    assert "survives" in page(results)
    results = Results.load()
    tested = next(mutant for mutant in BUGS if mutant.tests)
    results.tested[tested.name, False] = harness.Tested(tested.name, False, tested.tests, "", 1.0)
    assert judge(results).missed == (tested.name,)
    assert not judge(Results()).ok


def test_a_hidden_bug_counts_with_what_hides_it() -> None:
    """Alone it may stay unseen; together with the defence it must be caught."""
    results = Results.load()
    hidden = next(mutant for mutant in BUGS if mutant.hidden_by)
    assert results.best(hidden) is results.measured[(hidden.name, *hidden.hidden_by)]
    del results.measured[(hidden.name, *hidden.hidden_by)]
    assert judge(results).missed == (hidden.name,)
