"""make proof-seeds: bugs that the simulation found are red in the commit before, green in the one that mended them.

    python simulations/proof_seeds.py [N | --all] [--only NAME,NAME] [--json FILE]

N: so many bugs (default 3). Each commit is checked out into a temporary folder (git worktree) and removed behind it.
Exit 1 if one is not red and then green. See simulations/found/ and simulations/proof/found.py.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from simulations.proof import found  # noqa: E402
from simulations.proof.rows import Proof  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=found.BUGS, help="so many bugs (default 3)")
    parser.add_argument("--all", action="store_true", help="all that are kept")
    parser.add_argument(
        "--only", default="", help="comma-separated names of files in simulations/found/, without .json"
    )
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name]
    known = [each.name for each in found.all_found()]
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no bug {', '.join(unknown)}; there are {', '.join(known)}")
    if options.count < 1:
        parser.error("run at least one")
    count = None if options.all else len(names) or options.count
    print("proof-seeds: each bug's seed, in the commit before and in the one that mended it", flush=True)
    proof = Proof()
    proof.run("found", partial(found.rows, count, names))
    print(f"\n{proof.table()}\n")
    if options.json is not None:
        options.json.write_text(proof.json())
    return 0 if proof.ok else 1


if __name__ == "__main__":
    sys.exit(main())
