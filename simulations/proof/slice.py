"""The simulation's part of `make test`, timed: checkers on bad histories, tiers, mutants, models, power loss, chaos."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator

from simulations.proof.rows import Row
from simulations.proof.steps import ROOT, last_line, run

FOLDERS = (
    "history", "simulation", "simulation_runner", "simulation_stack", "explorer", "models", "mutants", "power_loss",
    "chaos",
)  # fmt: skip
LIMIT_S = 300.0


def rows() -> Iterator[Row]:
    folders = [f"tests/{name}" for name in FOLDERS if (ROOT / "tests" / name).is_dir()]
    missing = [name for name in FOLDERS if not (ROOT / "tests" / name).is_dir()]
    begun = time.monotonic()
    code, text = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *folders], limit_s=1_800)
    took = time.monotonic() - begun
    figure = f"{last_line(text)}; {took:.0f} s"
    skipped = re.search(r"(\d+) skipped", last_line(text))
    yield Row(
        f"the simulation's part of make test: {', '.join(folders)}",
        figure + (f"; missing: {', '.join(missing)}" if missing else ""),
        f"all pass, none skipped, within {LIMIT_S:g} s",
        code == 0 and not missing and skipped is None and took <= LIMIT_S,
    )
