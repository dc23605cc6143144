"""Which mutants run, alone and with what hides them; how many seeds it takes until a checker sees them.

Each combination runs from several starts that share no seed, so that what is measured is a median and not one lucky
number. Whatever seed caught a mutant is run again on the code as it is: a seed that fails there has caught nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from simulations.mutants.catalogue import BUGS, MUTANTS, patches_of
from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import ROOT, Patch, check

#: More seeds than this and the mutant has survived.
BUDGET: Final = 2_000
#: Independent starts, and how far they lie apart.
RUNS: Final = 7
APART: Final = 10_000
#: Seeds that something hidden runs alone: to show that it is, and no more.
HIDDEN_SEEDS: Final = 40
#: Of one seed, in seconds of real time. A whole one takes a tenth.
SEED_S: Final = 20
TEST_S: Final = 600
#: An error of these kinds says that the mutant is badly written, not that a promise was broken.
TRIVIAL: Final = (
    "NameError", "UnboundLocalError", "AttributeError", "TypeError", "ImportError", "ModuleNotFoundError",
    "SyntaxError",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """One start. seeds: how many ran; by: the promises that the last one broke, () if none did in all of them."""

    seeds: int
    by: tuple[str, ...] = ()
    says: str = ""
    seed: int | None = None


@dataclass(slots=True)
class Measured:
    """A combination of mutants. invalid: why what was seen does not count ("" if it does)."""

    names: tuple[str, ...]
    runs: list[Run] = field(default_factory=list)
    seconds: float = 0.0
    invalid: str = ""

    @property
    def caught(self) -> bool:
        return bool(self.runs) and all(run.by for run in self.runs) and not self.invalid

    @property
    def median(self) -> float:
        return statistics.median(run.seeds for run in self.runs)

    @property
    def worst(self) -> int:
        return max(run.seeds for run in self.runs)

    @property
    def by(self) -> Counter[str]:
        """How many starts ended at each promise."""
        return Counter(promise for run in self.runs for promise in run.by)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Measured:
        runs = [Run(run["seeds"], tuple(run["by"]), run["says"], run["seed"]) for run in found["runs"]]
        return cls(tuple(found["names"]), runs, found["seconds"], found["invalid"])


@dataclass(slots=True)
class Tested:
    """Tests that were run with a mutant. failed: the first that failed, "" if none did."""

    name: str
    twin: bool
    tests: tuple[str, ...]
    failed: str
    seconds: float


def trivial(promise: str, says: str, trace: str) -> bool:
    """Whether a crash is only the mutant's own bad code."""
    if promise != "crash":
        return False
    return any(f"{kind}:" in says or f"{kind}(" in says or f"\n{kind}:" in trace for kind in TRIVIAL)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def run_seeds(patches: Sequence[Patch], ranges: Sequence[tuple[int, int]], tier: str) -> list[dict[str, Any]]:
    """The answers of a worker, one per range. Raises RuntimeError if it ends without them."""
    left, answers = list(ranges), []
    while left:
        job = {"patches": [(p.module, p.old, p.new) for p in patches], "tier": tier, "ranges": left, "seed_s": SEED_S}
        process = subprocess.Popen(
            [sys.executable, "-m", "simulations.mutants.worker"],
            cwd=ROOT, env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            told = [json.loads(line) for line in process.stdout]
        finally:
            process.kill()
            errors = process.stderr.read()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                pipe.close()
        if not told:
            raise RuntimeError(f"a worker said nothing: {errors[-2000:]}")
        answers += told
        # A seed that hangs takes its process with it; the other ranges get another one.
        left = left[len(told) :]
    return answers


def measure(
    names: Sequence[str], *, budget: int = BUDGET, runs: int = RUNS, tier: str = "cluster", first: int = 0
) -> Measured:
    """Run a combination from every start until a seed breaks a promise."""
    begun = time.monotonic()
    patches = patches_of(names)
    check(patches)
    ranges = [(first + index * APART, first + index * APART + budget) for index in range(runs)]
    found = Measured(tuple(names))
    for answer in run_seeds(patches, ranges, tier):
        broken = answer["broken"]
        bad = [b for b in broken if trivial(b["promise"], b["says"], b["about"].get("traceback", ""))]
        if bad and len(bad) == len(broken):
            found.invalid = f"only bad code: {bad[0]['says'][:200]}"
        by = tuple(sorted({b["promise"] for b in broken if b not in bad}, key=_order))
        says = next((b["says"] for b in broken if b not in bad), "")
        found.runs.append(Run(answer["ran"], by, says, answer.get("seed")))
    found.seconds = time.monotonic() - begun
    return found


def _order(promise: str) -> tuple[int, str]:
    return (int(promise[1:]), "") if promise[1:].isdigit() else (99, promise)


def control(found: Iterable[Measured], tier: str) -> None:
    """Whatever seed caught something must be clean without any mutant."""
    measured = list(found)
    seeds = sorted({run.seed for one in measured for run in one.runs if run.by and run.seed is not None})
    if not seeds:
        return
    answers = run_seeds((), [(seed, seed + 1) for seed in seeds], tier)
    bad = {answer["seed"]: answer["broken"][0]["says"] for answer in answers if answer["broken"]}
    for one in measured:
        for run in one.runs:
            if run.by and run.seed in bad:
                one.invalid = f"seed {run.seed} fails without the mutant too: {bad[run.seed][:150]}"


def run_tests(mutant: Mutant, *, twin: bool) -> Tested:
    """Run the tests that must fail with a mutant, or with its twin, installed."""
    patches, tests = (mutant.twin, mutant.twin_tests) if twin else (mutant.patches, mutant.tests)
    check(patches)
    begun = time.monotonic()
    plugin = json.dumps([(p.module, p.old, p.new) for p in patches])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "simulations.mutants.plugin", "-p", "no:cacheprovider",
         "-p", "no:xdist", *tests],
        cwd=ROOT, env={**environment(), "CHANGEFEED_MUTANT": plugin}, capture_output=True, text=True, timeout=TEST_S,
    )  # fmt: skip
    failed = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))), "")
    if done.returncode not in (0, 1) or (done.returncode == 1 and not failed):
        raise RuntimeError(f"{mutant.name}: pytest could not run: {done.stdout[-800:]}{done.stderr[-800:]}")
    name = failed.split(" ", 1)[1].split(" - ")[0] if failed else ""
    return Tested(mutant.name, twin, tests, name, time.monotonic() - begun)


def combinations(only: Iterable[str] = ()) -> list[tuple[str, ...]]:
    """What is measured: every bug alone, and with what hides it."""
    chosen = set(only)
    found: list[tuple[str, ...]] = []
    for mutant in BUGS:
        if chosen and mutant.name not in chosen:
            continue
        if not mutant.tests:
            found.append((mutant.name,))
            if mutant.hidden_by:
                found.append((mutant.name, *mutant.hidden_by))
    return found


def measure_all(
    wanted: Sequence[tuple[str, ...]],
    *,
    budget: int = BUDGET,
    runs: int = RUNS,
    jobs: int = 1,
    tier: str = "cluster",
    tell: Callable[[Measured], None] = lambda measured: None,
) -> list[Measured]:
    """Measure combinations, `jobs` at a time. Something hidden runs HIDDEN_SEEDS alone, from one start."""

    def one(names: tuple[str, ...]) -> Measured:
        hidden = len(names) == 1 and bool(MUTANTS[names[0]].hidden_by)
        if hidden:
            found = measure(names, budget=min(budget, HIDDEN_SEEDS), runs=1, tier=tier)
        else:
            found = measure(names, budget=budget, runs=runs, tier=tier)
        control([found], tier)
        tell(found)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, wanted))
