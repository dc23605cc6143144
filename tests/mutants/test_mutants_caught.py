"""A slice of the deliberate bugs is caught by the simulation, and what counts as caught is told apart from bad code."""

from __future__ import annotations

import pytest

from simulations.mutants.harness import Measured, Run, control, measure, run_seeds, trivial

#: Caught within a few seeds, by different checkers, in different places of the code.
QUICK = {"M5": "C1", "M6": "C12", "M11": "C1", "M14": "C13", "M16": "C5", "M31": "C13"}


@pytest.mark.parametrize(("name", "promise"), QUICK.items())
def test_a_deliberate_bug_is_caught(name: str, promise: str) -> None:
    """Within a few dozen seeds the promise that it breaks is named; the same seed is clean without it."""
    found = measure([name], budget=80, runs=1)
    control([found], "cluster")
    assert found.caught, found
    assert promise in found.by, found


def test_the_code_as_it_is_breaks_nothing() -> None:
    """The harness, with no mutant at all, sees nothing in the seeds in which it looks first."""
    (answer,) = run_seeds((), [(0, 8)], "cluster")
    assert answer["ran"] == 8 and not answer["broken"]


def test_bad_code_is_no_catch() -> None:
    """An error that only says that the mutant is badly written is told apart from an assertion of ours."""
    assert trivial("crash", "NameError: name 'x' is not defined", "")
    assert trivial("crash", "an error", "Traceback\nTypeError: 'int' object is not callable")
    assert not trivial("crash", "ValueError: entry 4 does not continue the digest chain", "")
    assert not trivial("C1", "the change TypeError: was not stored", "")


def test_a_survivor_is_no_catch() -> None:
    """One start of several that saw nothing, or a seed that fails without the mutant, and it is not caught."""
    good = Run(3, ("C1",), "lost", 2)
    assert Measured(("M1",), [good, good]).caught
    assert not Measured(("M1",), [good, Run(2000)]).caught
    assert not Measured(("M1",), [good], invalid="seed 2 fails without the mutant too").caught
    assert not Measured(("M1",), []).caught
    measured = Measured(("M1",), [Run(1, ("C1",)), Run(9, ("C9", "C1")), Run(5, ("C9",))])
    assert (measured.median, measured.worst, measured.by["C1"]) == (5, 9, 2)
    assert Measured.from_json(measured.to_json()) == measured
