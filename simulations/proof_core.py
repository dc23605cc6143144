"""make proof-core: every promise of the broker, run from a clean clone and printed as line, figure, limit, verdict.

    python simulations/proof_core.py [--git DIR] [--only STEP,STEP] [--json FILE]

Exit 1 if a row fails. What is not in it was not shown. Servers run on loopback, in temporary folders.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Workers that the steps start find `simulations` and `changefeed` there too.
os.environ["PYTHONPATH"] = str(ROOT)

from simulations.proof import ensemble_loss, exactly_once, failover, log_stall, restored_log, speed, steps  # noqa: E402
from simulations.proof.rows import Proof, Row  # noqa: E402


def machine() -> str:
    """What these figures were measured on."""
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    gib = int(memory.split()[1]) / 2**20
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return (
        f"commit {commit.strip()}; {os.cpu_count()} cores, {gib:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--git", type=Path, help="a clone whose history the demo replays (default: a generated one)")
    parser.add_argument("--only", default="", help="comma-separated names of steps")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    known = all_steps(options.git)
    chosen = [name for name in options.only.split(",") if name] or list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(known)}")
    print(f"proof-core on {machine()}", flush=True)
    proof = Proof()
    for name in chosen:
        proof.run(name, known[name])
    print(f"\n{machine()}\n\n{proof.table()}\n")
    if options.json is not None:
        options.json.write_text(proof.json())
    failed = [row.line for row in proof.rows if not row.ok]
    print(f"{len(proof.rows)} rows, {len(failed)} failed{': ' + '; '.join(failed) if failed else ''}")
    return 0 if proof.ok else 1


if __name__ == "__main__":
    sys.exit(main())
