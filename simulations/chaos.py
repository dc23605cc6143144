"""Chaos on real processes: see simulations/chaos/__init__.py.

    python simulations/chaos.py [--minutes M | --until-counts | --rounds N] [--coordinator zk|file|both] [--only F2,F3]
                                [--seed S] [--round-seconds S] [--keep DIR] [--json FILE] [--chart FILE]

Exit 1 if a checker speaks or a process ended by itself. As root (or where user namespaces are allowed) everything runs
in namespaces of its own and goes with them; without, what needs them is named in the report.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))

from simulations.chaos.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
