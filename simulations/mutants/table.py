"""What was measured, kept in results.json, and the page that is made of it."""

from __future__ import annotations

import fcntl
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from simulations.mutants.catalogue import BUGS, MUTANTS
from simulations.mutants.harness import BUDGET, Measured, Tested
from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import ROOT

RESULTS: Final = Path(__file__).with_name("results.json")
PAGE: Final = ROOT / "docs" / "internals" / "mutants.md"
MEDIAN_MAX: Final = 20


@dataclass(slots=True)
class Results:
    measured: dict[tuple[str, ...], Measured] = field(default_factory=dict)
    tested: dict[tuple[str, bool], Tested] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Results:
        if not RESULTS.exists():
            return cls()
        found = json.loads(RESULTS.read_text())
        measured = [Measured.from_json(one) for one in found["measured"]]
        tested = [Tested(**{**one, "tests": tuple(one["tests"])}) for one in found["tested"]]
        return cls({one.names: one for one in measured}, {(one.name, one.twin): one for one in tested})

    def save(self) -> None:
        content = {
            "measured": [one.to_json() for names, one in sorted(self.measured.items()) if set(names) <= set(MUTANTS)],
            "tested": [asdict(one) for key, one in sorted(self.tested.items()) if key[0] in MUTANTS],
        }
        for one in content["measured"]:
            one["seconds"] = round(one["seconds"], 1)
        for one in content["tested"]:
            one["seconds"] = round(one["seconds"], 1)
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def keep(cls, *, measured: Measured | None = None, tested: Tested | None = None) -> None:
        """Put one result into the file, beside whatever another process of this kind has put there."""
        with open(Path(tempfile.gettempdir()) / "changefeed-mutants.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            results = cls.load()
            if measured is not None:
                results.measured[measured.names] = measured
            if tested is not None:
                results.tested[tested.name, tested.twin] = tested
            results.save()

    def best(self, mutant: Mutant) -> Measured | None:
        """What counts for a mutant: alone if that was caught from every start, else with what hides it."""
        alone = self.measured.get((mutant.name,))
        together = self.measured.get((mutant.name, *mutant.hidden_by)) if mutant.hidden_by else None
        if mutant.hidden_by:
            return together
        return alone

    def caught(self, mutant: Mutant) -> bool:
        if mutant.tests:
            tested = self.tested.get((mutant.name, False))
            return tested is not None and bool(tested.failed)
        best = self.best(mutant)
        return best is not None and best.caught


@dataclass(frozen=True, slots=True)
class Verdict:
    caught: int
    of: int
    median: float
    worst: int
    missed: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.caught == self.of and self.median <= MEDIAN_MAX and self.worst <= BUDGET

    def __str__(self) -> str:
        missed = f"; NOT caught: {', '.join(self.missed)}" if self.missed else ""
        return (
            f"{self.caught} of {self.of} mutants caught, median {self.median:g} seeds (at most {MEDIAN_MAX}), "
            f"worst {self.worst} (at most {BUDGET}){missed}"
        )


def judge(results: Results, names: set[str] | None = None) -> Verdict:
    """names: of the bugs that are asked about (None: all)."""
    wanted = [mutant for mutant in BUGS if names is None or mutant.name in names]
    missed = tuple(mutant.name for mutant in wanted if not results.caught(mutant))
    found = [results.best(mutant) for mutant in wanted if mutant.name not in missed and not mutant.tests]
    best = [one for one in found if one is not None]
    median = statistics.median([one.median for one in best] or [0])
    worst = max((one.worst for one in best), default=0)
    return Verdict(len(wanted) - len(missed), len(wanted), median, worst, missed)


HEAD: Final = """\
# Deliberate bugs: what the simulation catches

<!-- Written by `python -m simulations.mutants --write` out of simulations/mutants/results.json; do not edit. -->

A simulation that finds nothing proves nothing until it is shown what it would find. Each *mutant* is a bug that
somebody could have written: a piece of the production code replaced by another while it is imported, in a fresh
process; nothing of it is in the package. Each runs from {runs} starts that share no seed, until a checker (C1 to C16,
see `changefeed/history/checkers/`) says that a promise is broken; every seed that caught one is clean without it.

{verdict}.

Some bugs are harmless as long as another defence stands: two defences for one promise hide each other's absence from
every test. Those run alone (and must be harmless: *hidden*), and together with the defences (M and D numbers) that hide
them. *crash* is an assertion of the code itself that stopped the bug; *hangs* a run that did not end.

| mutant | what is wrong | where | seeds until caught: median (worst) | by | hidden by |
|---|---|---|---|---|---|
"""


def page(results: Results) -> str:
    starts = [len(best.runs) for mutant in BUGS if (best := results.best(mutant)) is not None] or [0]
    runs = f"{min(starts)} to {max(starts)}" if min(starts) < max(starts) else str(max(starts))
    lines = [HEAD.format(runs=runs, verdict=judge(results)).rstrip("\n")]
    for mutant in BUGS:
        lines.append(_row(results, mutant))
    lines += ["", "## The defences that hide bugs", "", "| | switched off | where |", "|---|---|---|"]
    for mutant in MUTANTS.values():
        if not mutant.is_bug:
            lines.append(f"| {mutant.name} | {_cell(mutant.breaks)} | {_where(mutant)} |")
    lines += ["", "## The rules that they break, in the words of the design", "", "| mutant | rule |", "|---|---|"]
    lines += [f"| {mutant.name} | {_cell(mutant.rule)} |" for mutant in BUGS]
    twins = [mutant for mutant in BUGS if mutant.twin]
    lines += [
        "",
        "## Twins",
        "",
        "The cluster tier runs the memory log and the memory coordinator. Where the same bug could be written in the",
        "part that production uses, it was, and a test of that part must see it.",
        "",
        "| mutant | twin in | seen by |",
        "|---|---|---|",
    ]
    for mutant in twins:
        tested = results.tested.get((mutant.name, True))
        seen = "not run" if tested is None else f"`{tested.failed}`" if tested.failed else "**not seen**"
        lines.append(f"| {mutant.name} | {_files({p.module for p in mutant.twin})} | {seen} |")
    return "\n".join(lines) + "\n"


def _row(results: Results, mutant: Mutant) -> str:
    if mutant.tests:
        tested = results.tested.get((mutant.name, False))
        seen = "not run" if tested is None else f"`{tested.failed}`" if tested.failed else "**not seen**"
        return f"| {mutant.name} | {_cell(mutant.breaks)} | {_where(mutant)} | (a test) | {seen} | |"
    best = results.best(mutant)
    figures = by = "not run"
    if best is not None and best.runs:
        figures = f"{best.median:g} ({best.worst})" if best.caught else f"**survives** ({best.invalid or best.worst})"
        by = ", ".join(promise for promise, _ in best.by.most_common()) or "-"
    hidden = ""
    if mutant.hidden_by:
        alone = results.measured.get((mutant.name,))
        harmless = alone is not None and not any(run.by for run in alone.runs)
        hidden = ", ".join(mutant.hidden_by)
        if alone is not None and not harmless:
            seen = ", ".join(promise for promise, _ in alone.by.most_common())
            hidden += f" (alone: {seen} after {alone.median:g})"
        elif alone is not None:
            hidden += f" (alone: nothing in {alone.worst})"
    return f"| {mutant.name} | {_cell(mutant.breaks)} | {_where(mutant)} | {figures} | {by} | {hidden} |"


def _where(mutant: Mutant) -> str:
    return _files({patch.module for patch in mutant.patches})


def _files(modules: set[str]) -> str:
    return ", ".join(f"`{module.removeprefix('changefeed.')}`" for module in sorted(modules))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write_page(results: Results) -> None:
    PAGE.write_text(page(results))
