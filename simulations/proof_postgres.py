"""make proof-postgres: the log in PostgreSQL, the outbox and captured tables, as line, figure, limit, verdict, seconds.

    python simulations/proof_postgres.py [--git DIR] [--only STEP,STEP] [--json FILE] [--quick]

Exit 1 if a row fails. What is not in it was not shown. --quick asks every step for a small share: its rows say so, and
do not pass. PostgreSQL servers of the steps' own run on loopback, in temporary folders.
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

from simulations.proof import (  # noqa: E402
    postgres_cost,
    postgres_hosts,
    postgres_jobs,
    postgres_mirrors,
    postgres_outbox,
    postgres_snapshot,
)
from simulations.proof.rows import Row, proof_parser, run_proof  # noqa: E402


def all_steps(git: Path | None, quick: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    return {
        "conformance": partial(postgres_jobs.conformance, quick),
        "bad-input": partial(postgres_jobs.bad_input, quick),
        "freezes": partial(postgres_jobs.frozen, quick),
        "outbox-model": partial(postgres_outbox.model, quick),
        "outbox": partial(postgres_outbox.busy, quick),
        "million": partial(postgres_outbox.million, quick),
        "two-instances": partial(postgres_mirrors.two_instances, quick),
        "initial": partial(postgres_mirrors.initial, quick),
        "snapshot": partial(postgres_snapshot.snapshot, quick),
        "pgbench": partial(postgres_jobs.pgbench, quick),
        "hosts": partial(postgres_hosts.rows, quick),
        "cost": partial(postgres_cost.cost, quick),
        "demo": partial(postgres_jobs.demo, git, quick),
    }


def main() -> int:
    parser = proof_parser(__doc__)
    parser.add_argument("--git", type=Path, help="a clone whose history the demo replays (default: a generated one)")
    parser.add_argument("--quick", action="store_true", help="a look at every step; does not pass")
    options = parser.parse_args()
    return run_proof("proof-postgres", parser, options, all_steps(options.git, options.quick))


if __name__ == "__main__":
    sys.exit(main())
