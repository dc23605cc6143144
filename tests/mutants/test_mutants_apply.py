"""Every deliberate bug is a change of the present source: one that no longer applies is an error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.mutants.catalogue import BUGS, MUTANTS, patches_of
from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import ROOT, DoesNotApply, Patch, check, install, mutated

MODULE = "changefeed.leader.machine"


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda mutant: mutant.name)
def test_each_mutant_applies_exactly_once(mutant: Mutant) -> None:
    """Alone, with what hides it, and its twin: each old text stands once, and what comes of it compiles."""
    assert mutant.patches, "a bug that changes nothing"
    check(mutant.patches)
    check(patches_of((mutant.name, *mutant.hidden_by)))
    check(mutant.twin)


def test_all_are_there() -> None:
    """M1 to M33, and those of the snapshot, each with its rule, and each seen by a checker or by tests that exist."""
    assert [mutant.name for mutant in BUGS] == [f"M{number}" for number in range(1, 37)]
    for mutant in BUGS:
        assert mutant.breaks and mutant.rule
        assert bool(mutant.sees) != bool(mutant.tests), f"{mutant.name}: by a checker, or by tests"
        assert bool(mutant.twin) == bool(mutant.twin_tests)
        assert all(name in MUTANTS for name in mutant.hidden_by)
        assert all((ROOT / test.partition("::")[0]).exists() for test in (*mutant.tests, *mutant.twin_tests))


def test_most_bugs_are_in_the_production_code() -> None:
    """Of the harness only the application's own part is changed: how it saves its cursor (M18)."""
    outside = {m.name for m in BUGS for p in m.patches if p.module.startswith("changefeed.simulation")}
    assert outside <= {"M18"}


@pytest.mark.parametrize(
    ("patches", "why"),
    [
        ([Patch(MODULE, "no such text", "x")], "found 0 times"),
        ([Patch(MODULE, "self", "me")], "instead of once"),
        ([Patch(MODULE, "RETRY_MAX_S: Final = 1.0", "RETRY_MAX_S: Final = 1.0")], "nothing changes"),
        ([Patch(MODULE, "RETRY_MAX_S: Final", "A"), Patch(MODULE, "MAX_S: Final = 1.0", "B")], "overlap"),
        ([Patch("changefeed.nowhere", "a", "b")], "no module"),
    ],
)
def test_what_does_not_apply_is_refused(patches: list[Patch], why: str) -> None:
    """A text that is gone, that stands twice, that changes nothing, two that overlap, a module that was moved."""
    with pytest.raises(DoesNotApply, match=why):
        check(patches)


def test_replacements_find_the_source_as_it_was() -> None:
    """The new text of one replacement is never found by another."""
    patches = [Patch("m", "first", "second"), Patch("m", "second", "third")]
    assert mutated("first second", patches) == "second third"


def test_a_module_that_is_imported_already_is_refused() -> None:
    """In a process that runs the code as it is, nothing can be mutated any more."""
    import changefeed.leader.machine  # noqa: F401

    before = list(sys.meta_path)
    with pytest.raises(DoesNotApply, match="fresh process"):
        install(MUTANTS["M21"].patches)
    assert sys.meta_path == before


def test_code_that_no_longer_compiles_is_refused() -> None:
    """A mutant is a bug, not a syntax error."""
    with pytest.raises(SyntaxError):
        check([Patch(MODULE, "RETRY_MAX_S: Final = 1.0", "RETRY_MAX_S: Final = = 1.0")])


def test_nothing_on_disk_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import sees other text than the file holds, and the file stays."""
    package = tmp_path / "made_up"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("ANSWER = 41\n")
    monkeypatch.setattr("simulations.mutants.patching.ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    finder = install([Patch("made_up.part", "41", "42")])
    try:
        found: Callable[[], int] = __import__("made_up.part", fromlist=["ANSWER"]).ANSWER
    finally:
        sys.meta_path.remove(finder)
        sys.modules.pop("made_up.part", None)
        sys.modules.pop("made_up", None)
    assert found == 42
    assert (package / "part.py").read_text() == "ANSWER = 41\n"
    # Least of all a compiled file of the other text, which a later run would take for the real one.
    assert not list(package.rglob("part*.pyc"))
