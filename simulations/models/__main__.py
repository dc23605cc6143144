"""Check the models of the protocol and of the election with Spin: which variants hold, and which are seen to break.

    python -m simulations.models [--long] [--only WORD] [--memory MIB] [--seconds S]

Prints for each variant what came of it, how many states were looked at and how long that took. Exit 1 if one that
should hold does not, or one with a deliberate fault is not seen to break the promise that it must; 2 without Spin.
"""

from __future__ import annotations

import argparse
import sys

from simulations.models.spin import MEMORY_MB, SECONDS, ask, missing
from simulations.models.variants import ALL


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="simulations.models", description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="also what takes longer than a few seconds")
    parser.add_argument("--only", default="", help="only variants with this in their model, name or flags")
    parser.add_argument("--memory", type=int, default=MEMORY_MB, help="MiB that one search may take")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds that one search may take")
    asked = parser.parse_args(arguments)
    gone = missing()
    if gone:
        print(gone, file=sys.stderr)
        return 2
    failed = count = 0
    for variant in ALL:
        text = f"{variant.model} {variant.name} {' '.join(variant.defines)}"
        if asked.only not in text or (variant.long and not asked.long):
            continue
        result = ask(variant, seconds=asked.seconds, memory_mb=asked.memory)
        print(result, flush=True)
        count += 1
        failed += not result.ok
    print(f"{count - failed} of {count} variants as they must be")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main())
