"""The command: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time

from simulations.mutants.code.run import BaselineFails, Tried, prepare, try_module
from simulations.mutants.code.survivors import figures, load, merged, open_points, save, summary
from simulations.mutants.code.targets import TARGETS, Target


def tell(tried: Tried) -> None:
    if tried.outcome in ("survived", "error"):
        where = f"{tried.point.line} {tried.point.scope}"
        print(f"    {tried.outcome} [{tried.seconds:.0f} s] {where}: {tried.shown[:150]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.mutants.code")
    parser.add_argument("--module", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--most", type=int, default=0, help="places tried per module (default: as targets.py says)")
    parser.add_argument("--seed", type=int, default=0, help="draws the places that are tried")
    parser.add_argument("--again", action="store_true", help="only what survived last time and is not explained")
    parser.add_argument("--write", action="store_true", help="keep the results in results.json")
    options = parser.parse_args()
    unknown = [name for name in options.module if name not in TARGETS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(TARGETS)}")
    prepare()
    bad = False
    for module in options.module or TARGETS:
        target = TARGETS[module]
        if options.most:
            target = Target(target.module, target.tests, options.most)
        begun = time.monotonic()
        print(module, flush=True)
        only = open_points(module) if options.again else []
        if options.again and not only:
            continue
        try:
            total, tried = try_module(target, seed=options.seed, tell=tell, only=only)
        except BaselineFails as error:
            print(f"    {error}", flush=True)
            bad = True
            continue
        found = summary(module, total, options.seed, tried)
        print(
            f"    {found['killed']} of {found['tried']} killed ({total} places) [{time.monotonic() - begun:.0f} s]",
            flush=True,
        )
        bad = bad or any(one.outcome == "error" for one in tried)
        if options.write:
            results = load()
            results[module] = merged(results[module], found) if options.again else found
            save(results)
    said = figures(load())
    print(said)
    for change in said.open:
        print(f"    open: {change.module} {change.scope}: {change.shown}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
