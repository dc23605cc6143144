"""Power loss of the SQLite log at its write boundaries: what was acknowledged must be there, each time.

    python simulations/power_loss.py [--points N|all] [--commits N] [--seed S] [--jobs J] [--threads]
    python simulations/power_loss.py --synchronous NORMAL        the same without what makes the log durable
    python simulations/power_loss.py --away "sync of WAL"
    python simulations/power_loss.py --failures [CALL]           the k-th disk call of each call of the log fails

The production store runs through appends, terms, publishers, trims, settings and checkpoints while every write, sync,
truncation and removal of SQLite's files is recorded. Then the power is lost after any of these: of what was not synced,
any part survives, in pieces, in any order. The production recovery opens what is left, and is itself cut off once.

Prints what it found and a verdict; exit 1 if something acknowledged was lost, or, with something taken away, if nothing
was: then this could not see. 500 points take about half a minute on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from changefeed.simulation.disk import NoSharedSqlite
from changefeed.simulation.disk.failures import CALLS, Failed, fail_each
from changefeed.simulation.disk.losses import AWAY, Losses, search

#: Where a sync costs nothing: the disk is the record.
MEMORY = "/dev/shm"
#: Wrong points and failures that are printed.
SHOWN = 10


def scratch_folder() -> str | None:
    """A folder in memory if there is one; None: the system's temporary folder."""
    return MEMORY if os.path.isdir(MEMORY) and os.access(MEMORY, os.W_OK) else None


def show_progress(done: int, of: int) -> None:
    print(f"\r  {done} of {of} losses of power", end="" if done < of else "\n", file=sys.stderr, flush=True)


def losses(options: argparse.Namespace) -> int:
    """One search. Exit code."""
    away = options.away or ("" if options.synchronous == "FULL" else f"synchronous={options.synchronous}")
    begun = time.monotonic()
    points = 10**9 if options.points == "all" else int(options.points)
    found = search(
        options.commits,
        points,
        options.seed,
        away=away,
        beside=options.threads,
        jobs=options.jobs,
        scratch=options.scratch,
        progress=show_progress if sys.stderr.isatty() else None,
    )
    print(f"{found.appends} appends, {found.events} events acknowledged, {found.boundaries} write boundaries")
    print(f"{len(found.points)} losses of power, each with a second one in the recovery of those that were whole")
    print_wrong(found)
    print(f"{time.monotonic() - begun:.1f} s")
    if away:
        lost = len(found.wrong)
        print(f"{'PASS' if lost else 'FAIL'}: without {away_named(away)} {lost} of {len(found.points)} lost something")
        return 0 if lost else 1
    print(f"{'FAIL' if found.wrong else 'PASS'}: {len(found.wrong)} of {len(found.points)} lost something acknowledged")
    return 1 if found.wrong else 0


def away_named(away: str) -> str:
    level = away.partition("synchronous=")[2]
    return f"synchronous=FULL ({level} instead)" if level else f"the {away}"


def print_wrong(found: Losses) -> None:
    for promise, points in sorted(found.promises.items()):
        print(f"  {promise}: {points}")
    for point in found.wrong[:SHOWN]:
        where = f"{point.at}" + (f", again at {point.again} of the recovery" if point.again >= 0 else "")
        print(f"  boundary {where}, {point.manner}:")
        for wrong in point.wrong:
            print(f"    {wrong.promise}: {wrong.says[:300]}")


def failures(options: argparse.Namespace) -> int:
    """Every disk call of the log's calls fails in turn. Exit code."""
    failed: list[Failed] = []
    for call in options.failures or CALLS:
        begun = time.monotonic()
        found = fail_each(call, options.seed, options.scratch, every=options.every)
        failed += found
        said = Counter(each.said or "nothing" for each in found)
        told = ", ".join(f"{count} {what}" for what, count in sorted(said.items()))
        print(f"{call}: {len(found)} failures, said {told}, {time.monotonic() - begun:.1f} s", flush=True)
    wrong = [each for each in failed if each.wrong]
    for each in wrong[:SHOWN]:
        print(f"  {each.call}: {each.at.what} of {each.at.name}, {each.fault}, said {each.said or 'nothing'}:")
        for what in each.wrong:
            print(f"    {what.promise}: {what.says[:300]}")
    print(f"{'FAIL' if wrong else 'PASS'}: {len(wrong)} of {len(failed)} failures of the disk did harm")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default="500", help="losses of power, spread over the run; all: at every boundary")
    parser.add_argument("--commits", type=int, default=300, help="appends of the run (default 300)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes that judge")
    parser.add_argument(
        "--threads", action="store_true", help="checkpoints and a reader beside the appends, in threads"
    )
    parser.add_argument("--synchronous", choices=("FULL", "NORMAL", "OFF"), default="FULL")
    parser.add_argument("--away", choices=[name for name in AWAY if name], help="what makes the log durable, left out")
    parser.add_argument("--failures", nargs="*", metavar="CALL", help=f"let disk calls fail; CALL: {', '.join(CALLS)}")
    parser.add_argument("--every", type=int, default=1, help="with --failures: each so many-th only")
    parser.add_argument("--scratch", default=scratch_folder(), help="folder for the files (default: in memory)")
    options = parser.parse_args()
    if options.points != "all" and not (options.points.isdigit() and int(options.points) > 0):
        parser.error("--points takes a number above 0, or all")
    if min(options.commits, options.jobs, options.every) < 1:
        parser.error("--commits, --jobs and --every take a number above 0")
    if unknown := [call for call in options.failures or () if call not in CALLS]:
        parser.error(f"no call {', '.join(unknown)}; there are {', '.join(CALLS)}")
    try:
        return losses(options) if options.failures is None else failures(options)
    except NoSharedSqlite as error:
        print(f"cannot run here: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
