"""The command line of simulations/chaos.py."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from simulations.chaos import report, sandbox
from simulations.chaos.kinds import KINDS, of_numbers
from simulations.chaos.rounds import Campaign, Options, Result, unavailable

#: What the long row must have: how often each kind must have hit; every kind of this machine a few times.
LONG: Final = {
    **dict.fromkeys(KINDS, 3),
    "kill-leader": 200, "freeze-leader": 100, "kill-zookeeper": 50, "expire-session": 50, "partition": 8,
    "partition-out": 8, "partition-in": 8, "cut-coordinator": 8, "store-cut": 8, "store-hang": 8, "disk-full": 6,
    "sync-error": 12, "sync-error-after": 12, "kill-after-sync": 12, "kill-subscriber": 50, "kill-publisher": 20,
    "freeze-subscriber": 20, "never-read": 20, "garbage": 20, "acked-events": 1_000_000,
}  # fmt: skip
ROUND_S: Final = 80.0
#: Over so many rounds the counts of the long proof are spread; more follow if some are missing.
ROUNDS: Final = 12
ROUNDS_MAX: Final = 40
#: A subscriber that stands still for some seconds falls out of so many events.
RETAIN: Final = 3000


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="chaos.py", description="real faults on real processes, one history, a verdict")
    made.add_argument("--minutes", type=float, help="rounds for about so long")
    made.add_argument("--until-counts", action="store_true", help="rounds until the long proof's counts are reached")
    made.add_argument("--want", default="", help="what must be reached: kill-leader=3,acked-events=10000")
    made.add_argument("--rounds", type=int, help="so many rounds (default 1); fewer if all that is wanted was reached")
    made.add_argument("--coordinator", choices=("zk", "file", "both"), default="both")
    made.add_argument("--only", default="", help="fault numbers or kinds, comma-separated: F2,kill-leader")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--round-seconds", type=float, default=ROUND_S)
    made.add_argument("--rate", type=float, default=1600.0, help="changes per second that are submitted")
    made.add_argument("--retain", type=int, help="events that the feed keeps (default: all, but in every third round)")
    made.add_argument("--scale", type=float, default=1.0, help="of the counts of --until-counts")
    made.add_argument("--keep", type=Path, help="folder for rounds that were not clean (default: a temporary one)")
    made.add_argument("--loopback", action="store_true", help="without namespaces of its own, on loopback")
    made.add_argument("--json", type=Path)
    made.add_argument("--chart", type=Path, help="an SVG of the pauses")
    return made


def main(arguments: list[str]) -> int:
    asked = parser().parse_args(arguments)
    try:
        only = frozenset(of_numbers(set(filter(None, asked.only.split(",")))))
        wanted = _wanted(asked)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    missing = "--loopback was asked for" if asked.loopback else sandbox.missing()
    if not sandbox.inside() and not missing:
        return sandbox.enter([sys.executable, str(Path(__file__).resolve().parents[1] / "chaos.py"), *arguments])
    if not sandbox.inside():
        print(f"without a network of its own: {missing}", flush=True)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Whoever is started in the background by a shell inherits that; a Ctrl-C ends it all the same.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    campaign = Campaign(folder=asked.keep, judged=_say)
    cannot = unavailable(campaign, {"zk", "file"} if asked.coordinator == "both" else {asked.coordinator})
    targets = {name: count for name, count in wanted.items() if name not in cannot}
    interrupted = False
    try:
        _campaign(campaign, asked, only, targets)
        campaign.wait_judged()
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; what there is:", flush=True)
    finally:
        campaign.close()
    made = report.Report(campaign.results, cannot, campaign.missing(targets), campaign.own_clocks)
    print(made.text(), flush=True)
    if asked.json:
        asked.json.write_text(made.json())
    if asked.chart:
        asked.chart.write_text(made.svg())
    return 130 if interrupted else int(not made.ok)


def _say(result: Result) -> None:
    print(report.round_line(result), flush=True)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _wanted(asked: argparse.Namespace) -> dict[str, int]:
    """What the campaign must reach. Raises ValueError for what is no kind of fault."""
    if asked.want:
        found = dict(part.split("=", 1) for part in asked.want.split(","))
        of_numbers(set(found) - {"acked-events"})
        return {name: int(count) for name, count in found.items()}
    return {name: max(1, round(count * asked.scale)) for name, count in LONG.items()} if asked.until_counts else {}


def _campaign(campaign: Campaign, asked: argparse.Namespace, only: frozenset[str], targets: dict[str, int]) -> None:
    begun, seed, number = time.monotonic(), asked.seed, 0
    while True:
        missing = campaign.missing(targets)
        if asked.until_counts:
            late = asked.minutes and time.monotonic() - begun > asked.minutes * 60
            if not missing or late or number >= ROUNDS_MAX:
                return
        elif asked.minutes:
            if time.monotonic() - begun > asked.minutes * 60:
                return
        elif number >= (asked.rounds or 1) or (number and targets and not missing):
            return
        # Three of four rounds with ZooKeeper; every other one on a small disk; every third one trims all the time.
        coordinator = ("zk" if number % 4 != 3 else "file") if asked.coordinator == "both" else asked.coordinator
        rounds_left = max(1, ROUNDS - number) if asked.until_counts else 1
        wanted = {name: -(-count // rounds_left) for name, count in missing.items() if name != "acked-events"}
        options = Options(
            seed=seed, seconds=asked.round_seconds, coordinator=coordinator, only=only, wanted=wanted,
            per_s=asked.rate, disk=number % 2 == 0, retain=asked.retain or (RETAIN if number % 3 == 2 else None),
        )  # fmt: skip
        campaign.run_round(options)
        number += 1
        seed += 1
