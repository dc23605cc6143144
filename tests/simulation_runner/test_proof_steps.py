"""The steps of `make proof-simulation`: each is there and can be called; a quick look never passes for the proof."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import pytest

from simulations import proof_simulation
from simulations.proof import simulated
from simulations.proof.rows import Row


@pytest.mark.parametrize("name", proof_simulation.STEPS)
def test_every_step_is_there_and_needs_nothing_that_is_not_given(name: str) -> None:
    """A step takes what it knows of seeds, minutes, jobs and quick; whatever else it takes has a default."""
    module, function = proof_simulation.STEPS[name]
    call = getattr(importlib.import_module(f"simulations.proof.{module}"), function)
    given = {"seeds", "minutes", "jobs", "quick"}
    needed = [item for item in inspect.signature(call).parameters.values() if item.default is item.empty]
    assert {item.name for item in needed} <= given


def test_a_step_gets_only_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(jobs: int = 1) -> Iterator[Row]:
        yield Row("a", str(jobs), "", True)

    monkeypatch.setattr(simulated, "cluster", rows)
    options = {"jobs": 3, "minutes": 2.0, "seeds": None, "quick": True}
    assert [row.figure for row in proof_simulation.step("simulated", "cluster", options)] == ["3"]


@pytest.mark.processes
def test_few_seeds_do_not_pass_as_a_long_run() -> None:
    """The rows say so; nothing failed, and yet none of them passes. With enough of them they do."""
    rows = list(simulated.long_run("fake_tier:Healthy", wanted=1_000, seeds=10, jobs=1))
    assert len(rows) == 3
    assert all("a quick look: 1,000 are asked for" in row.line and not row.ok for row in rows)
    rows = list(simulated.long_run("fake_tier:Healthy", wanted=10, jobs=1))
    assert [row.ok for row in rows] == [True, True, True]
    rows = list(simulated.long_run("fake_tier:Fake", wanted=15, jobs=1))
    assert [row.ok for row in rows] == [False, False, True]
    assert "failed: " in rows[0].figure and "a rare thing 0.0%" in rows[1].figure


@pytest.mark.processes
def test_digests_under_three_hash_seeds() -> None:
    """A tier whose digests hang on the hash seed is seen."""
    (same,) = simulated.determinism(("fake_tier:Healthy",))
    (other,) = simulated.determinism(("fake_tier:HashBound",))
    assert same.ok and same.figure == "0 differ"
    assert not other.ok and other.figure.startswith("100 differ")
