"""The command: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time

from simulations.mutants.catalogue import BUGS, MUTANTS
from simulations.mutants.harness import BUDGET, RUNS, Measured, Tested, combinations, measure_all, run_tests
from simulations.mutants.table import Results, judge, write_page


def tell(found: Measured) -> None:
    name = " + ".join(found.names)
    caught = sum(bool(run.by) for run in found.runs)
    by = ", ".join(f"{promise} x{count}" for promise, count in found.by.most_common())
    figures = f"median {found.median:g}, worst {found.worst}" if found.runs else "no runs"
    says = next((run.says for run in found.runs if run.says), "")
    invalid = f" INVALID: {found.invalid}" if found.invalid else ""
    print(
        f"{name:14} caught {caught}/{len(found.runs)}, {figures} seeds, by {by or '-'}, {found.seconds:.0f} s{invalid}"
    )
    if says:
        print(f"{'':14} {says[:160]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.mutants", description="Run the deliberate bugs.")
    parser.add_argument("--only", action="append", default=[], metavar="M4", help="only this one; may be repeated")
    parser.add_argument("--seeds", type=int, default=BUDGET, help=f"the budget of each start (default {BUDGET})")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"independent starts (default {RUNS})")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--tier", default="cluster", help="the simulation's tier that runs them")
    parser.add_argument("--tests", action="store_true", help="run also the tests that must see mutants and their twins")
    parser.add_argument("--write", action="store_true", help="keep the results, and write docs/internals/mutants.md")
    options = parser.parse_args()
    unknown = [name for name in options.only if name not in MUTANTS]
    if unknown:
        parser.error(f"there is no mutant {', '.join(unknown)}; there are {', '.join(MUTANTS)}")
    begun = time.monotonic()
    results = Results.load()
    wanted = combinations(options.only)

    def told(found: Measured) -> None:
        tell(found)
        results.measured[found.names] = found
        if options.write:
            Results.keep(measured=found)

    measure_all(wanted, budget=options.seeds, runs=options.runs, jobs=options.jobs, tier=options.tier, tell=told)
    for mutant in BUGS:
        if options.only and mutant.name not in options.only:
            continue
        for twin, tests in ((False, mutant.tests), (True, mutant.twin_tests)):
            if tests and (options.tests or (not twin)):
                tested = run_tests(mutant, twin=twin)
                results.tested[mutant.name, twin] = tested
                report(tested)
                if options.write:
                    Results.keep(tested=tested)
    if options.write:
        results = Results.load()
        write_page(results)
    verdict = judge(results, {mutant.name for mutant in BUGS if not options.only or mutant.name in options.only})
    print(f"{verdict} [{time.monotonic() - begun:.0f} s]")
    return 0 if verdict.ok else 1


def report(tested: Tested) -> None:
    what = "twin" if tested.twin else "tests"
    print(
        f"{tested.name:14} {what}: {tested.failed or 'NOT SEEN by ' + ' '.join(tested.tests)} [{tested.seconds:.0f} s]"
    )


if __name__ == "__main__":
    sys.exit(main())
