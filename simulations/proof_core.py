"""make proof-core: every promise of the broker, run from a clean clone and printed as line, figure, limit, verdict.

    python simulations/proof_core.py [--git DIR] [--only STEP,STEP] [--json FILE]

Exit 1 if a row fails. What is not in it was not shown. Servers run on loopback, in temporary folders.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Workers that the steps start find `simulations` and `changefeed` there too.
os.environ["PYTHONPATH"] = str(ROOT)

from simulations.proof import ensemble_loss, exactly_once, failover, log_stall, restored_log, speed, steps  # noqa: E402
from simulations.proof.rows import Row, proof_parser, run_proof  # noqa: E402


def all_steps(git: Path | None) -> dict[str, Callable[[], Iterator[Row]]]:
    tests = steps.tests
    return {
        "failover": failover.kills_and_freezes,
        "stall": log_stall.stall_for_all,
        "handover": failover.handovers,
        "ensemble": ensemble_loss.lost_and_wiped,
        "restored": restored_log.older_copies,
        "positions": partial(
            tests,
            "exhaustive small model of positions over restores: none foreign is accepted",
            "tests/log",
            "-k",
            "restores",
        ),
        "refusals": partial(
            tests,
            "a deposed idle leader and a lagging follower give no final no that the log does not bear out",
            "tests/leader",
            "tests/serving",
            "-k",
            "behind or final",
        ),
        "fence": steps.fence_race,
        "handled": partial(
            tests,
            "handler that raises on event N: N first after a restart; with break N+1",
            "tests/subscriber/test_subscriber_resume.py",
            "-k",
            "first_after_a_restart or break",
        ),
        "exactly-once": exactly_once.killed_often,
        "cursor": speed.file_cursor,
        "slow": speed.slow_subscriber,
        "filters": partial(tests, "op x fields x filter, as printed in the docs", "tests/serving/test_filters.py"),
        "stranger": steps.stranger,
        "seeds": steps.seeds,
        "bad-input": partial(tests, "bad input: input, code, sentence, exit", "tests/hostile"),
        "demo": partial(steps.demo_both, git),
        "clean-clone": steps.clean_clone,
    }


def main() -> int:
    parser = proof_parser(__doc__)
    parser.add_argument("--git", type=Path, help="a clone whose history the demo replays (default: a generated one)")
    options = parser.parse_args()
    return run_proof("proof-core", parser, options, all_steps(options.git))


if __name__ == "__main__":
    sys.exit(main())
