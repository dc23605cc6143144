"""Bugs that were found stay mended: each file of simulations/found/ says what it must, and its plan holds today."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from changefeed.simulation.case import read_case
from changefeed.simulation.runner import run_one
from changefeed.simulation.tiers import TIERS
from simulations.proof import found
from simulations.proof.found import Found, Seen, judged, prove

ALL = found.all_found()
PLANS = [each for each in ALL if "plan" in each.facts and each.facts["tier"] in TIERS]


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_a_file_says_what_it_must(each: Found) -> None:
    """Readable as a case, too: `changefeed simulate --plan FILE` runs it."""
    each.check()
    if each in PLANS:
        case = read_case(each.path)
        assert (case.tier, case.seed) == (each.facts["tier"], each.facts["seed"])


@pytest.mark.processes
@pytest.mark.parametrize("each", PLANS, ids=lambda each: each.name)
async def test_a_plan_that_found_something_holds_today(each: Found) -> None:
    case = read_case(each.path)
    assert case.tier is not None and case.seed is not None
    result = await run_one(case.tier, case.seed, case.plan)
    assert [f"{item.promise}: {item.says}" for item in result.broken] == []


def test_files_that_say_too_little_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "FOUND", tmp_path)
    facts = {"tier": "cluster", "seed": 1, "before": "abc", "after": "def", "title": "t", "symptom": "s"}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(facts))
    assert [each.name for each in found.all_found()] == ["one"]
    for key in facts:
        path.write_text(json.dumps({name: value for name, value in facts.items() if name != key}))
        with pytest.raises(ValueError, match=r"one\.json must name"):
            found.all_found()
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        found.all_found()


def test_what_a_run_says_is_red_green_or_no_run() -> None:
    """A command that a commit does not know is not taken for the bug."""
    assert judged({}, 1, ['[["C1", "k is lost"]]'], 0.1) == Seen(True, "C1: k is lost", 0.1, frozenset({"C1"}))
    assert judged({}, 0, ["[]"], 0.1) == Seen(False, "every promise held", 0.1)
    assert judged({}, 1, ["Traceback", "ModuleNotFoundError: No module named 'x'"], 0.1).wrong
    old = {"command": ["-m", "simulations.old"]}
    assert judged(old, 1, ["/usr/bin/python: No module named simulations.old"], 0.1).wrong
    assert judged({"command": ["-m", "pytest"]}, 4, ["ERROR: file or directory not found: tests/x"], 0.1).wrong
    assert judged(old, 1, ["seed 7: twice", "1 seeds, 1 failed"], 0.1) == Seen(True, "1 seeds, 1 failed", 0.1)
    assert judged({**old, "tokens": ["seed 7:"]}, 1, ["seed 7: twice", "1 failed"], 0.1).says == "seed 7: twice"


@pytest.mark.processes
def test_a_bug_is_seen_red_and_then_green(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a small repository of its own: what stands in a commit runs, and no worktree is left."""
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example", *words],
            cwd=repository, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    git("init", "-q")
    commits = []
    for status in (1, 0, 0):
        (repository / "program.py").write_text(f"import sys\nprint('seed 3: lost')\nsys.exit({status})  # {commits}\n")
        git("add", ".")
        git("commit", "-q", "-m", "x")
        commits.append(git("rev-parse", "HEAD"))
    monkeypatch.setattr(found, "ROOT", repository)
    facts = {"command": ["program.py"], "before": commits[0], "after": commits[1], "title": "lost"}
    (row,) = prove(Found(tmp_path / "lost.json", facts))
    assert row.ok and "RED (seed 3: lost)" in row.figure
    (row,) = prove(Found(tmp_path / "lost.json", {**facts, "before": commits[2]}))
    assert not row.ok
    (row,) = prove(Found(tmp_path / "lost.json", {**facts, "after": commits[0]}))
    assert not row.ok
    (row,) = prove(Found(tmp_path / "lost.json", {**facts, "before": "0" * 40}))
    assert not row.ok and "does not hold commit" in row.figure
    assert git("worktree", "list").count("\n") == 0
