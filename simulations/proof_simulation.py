"""make proof-simulation: the figures behind the proof, printed as line, figure, limit, verdict, seconds.

    python simulations/proof_simulation.py [--only STEP,STEP] [--json FILE]
        [--seeds N] [--minutes M] [--jobs J] [--quick]

Exit 1 if a row fails. What is not in it was not shown. --seeds and --minutes bound the two long runs, --quick asks
every step for a small share: a quick look says so in its rows, and those do not pass. Servers and network namespaces
are this machine's own, and are removed behind it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Workers that the steps start find `simulations` and `changefeed` there too.
os.environ["PYTHONPATH"] = str(ROOT)

from simulations.proof.rows import Row, proof_parser, run_proof  # noqa: E402

#: Step -> (module in simulations/proof/, its function). A step takes what it knows of seeds, minutes, jobs, quick.
STEPS: dict[str, tuple[str, str]] = {
    "slice": ("slice", "rows"),
    "checkers": ("checkers", "rows"),
    "determinism": ("simulated", "determinism"),
    "found": ("found", "rows"),
    "models": ("models", "rows"),
    "explorer": ("explorer", "rows"),
    "mutants": ("mutants", "rows"),
    "power-loss": ("power_loss", "rows"),
    "chaos": ("chaos", "rows"),
    "stack": ("simulated", "stack"),
    "cluster": ("simulated", "cluster"),
}
#: The long runs: --seeds is about them.
LONG = ("cluster", "stack")
#: What --quick asks them for.
QUICK_SEEDS = 500


def step(module: str, function: str, options: dict[str, Any]) -> Iterator[Row]:
    """Import it only now, so that one step does not need what another one does; give it what it takes."""
    call: Callable[..., Iterator[Row]] = getattr(importlib.import_module(f"simulations.proof.{module}"), function)
    taken = inspect.signature(call).parameters
    yield from call(**{name: value for name, value in options.items() if name in taken and value is not None})


def main() -> int:
    parser = proof_parser(__doc__)
    parser.add_argument("--seeds", type=int, help="seeds of each long run")
    parser.add_argument("--minutes", type=float, help="end each long run after so many minutes")
    parser.add_argument("--jobs", type=int, help="processes of each long run (default: one per processor)")
    parser.add_argument("--quick", action="store_true", help="a look at every step; does not pass")
    options = parser.parse_args()
    if any(value is not None and value <= 0 for value in (options.seeds, options.minutes, options.jobs)):
        parser.error("--seeds, --minutes and --jobs take more than 0")
    given: dict[str, Any] = {"minutes": options.minutes, "jobs": options.jobs, "quick": options.quick or None}
    long = {**given, "seeds": options.seeds or (QUICK_SEEDS if options.quick else None)}
    known = {
        name: partial(step, module, function, long if name in LONG else given)
        for name, (module, function) in STEPS.items()
    }
    return run_proof("proof-simulation", parser, options, known)


if __name__ == "__main__":
    sys.exit(main())
