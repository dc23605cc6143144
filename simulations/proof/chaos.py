"""Rows of the chaos on real processes: what was done to them and how often, that every checker was silent, and how long
nobody got a receipt or a delivery."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simulations.chaos.command import LONG
from simulations.proof.rows import Row

SCRIPT = Path(__file__).resolve().parents[1] / "chaos.py"
QUICK = 0.03
#: Kinds that together are one line of what must be shown.
LINES: Mapping[str, tuple[str, ...]] = {
    "leader kills": ("kill-leader", "kill-after-sync", "kill-before-write"),
    "freezes of the leader": ("freeze-leader", "freeze-in-append", "freeze-after-sync"),
    "ZooKeeper servers killed": ("kill-zookeeper",),
    "ZooKeeper sessions expired": ("expire-session",),
    "partitions (full, one-way, leader-ZooKeeper only)": (
        "partition", "partition-out", "partition-in", "cut-coordinator",
    ),
    "the leader alone cut off from the store": ("store-cut", "store-hang"),
    "disk full": ("disk-full", "no-space-error"),
    "sync and write errors": ("sync-error", "write-error"),
    "connection lost at commit (outcome unknown)": ("sync-error-after", "kill-after-sync", "freeze-after-sync"),
    "subscriber and publisher kills": ("kill-subscriber", "kill-publisher"),
    "slow and never-reading subscribers": ("freeze-subscriber", "never-read"),
    "garbage peers": ("garbage",),
}  # fmt: skip


def rows(
    minutes: float | None = None,
    quick: bool | None = None,
    *,
    scale: float = 1.0,
    seed: int = 1,
    folder: Path | None = None,
) -> Iterator[Row]:
    """The long row. minutes: stop after so long, whatever was reached (what is missing fails). scale: of the counts.
    folder: where the report and the chart are kept, and the rounds that were not clean."""
    scale = QUICK if quick else scale
    with tempfile.TemporaryDirectory(prefix="changefeed-chaos-proof-") as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        said = place / "chaos.json"
        command = [sys.executable, str(SCRIPT), "--until-counts", "--scale", str(scale), "--seed", str(seed),
                   "--json", str(said), "--chart", str(place / "chaos.svg")]  # fmt: skip
        if folder is not None:
            command += ["--keep", str(place / "rounds")]
        if minutes is not None:
            command += ["--minutes", str(minutes)]
        done = subprocess.run(command)
        report = json.loads(said.read_text()) if said.exists() else None
    if report is None:
        yield Row("chaos on real processes", f"no report; exit status {done.returncode}", "a report", False)
        return
    yield from told(report, scale)


def told(report: Mapping[str, Any], scale: float) -> Iterator[Row]:
    """The rows of a report. A look at a small share says so, and does not pass."""
    short = "" if scale >= 1 else f" (only {scale:g} of the counts)"
    unavailable = report["unavailable"]
    for line, kinds in LINES.items():
        hits = {kind: report["kinds"].get(kind, {}).get("effects", {}).get("hit", 0) for kind in kinds}
        here = [kind for kind in kinds if kind not in unavailable]
        each = "; ".join(f"{kind} {hits[kind]}{_pauses(report, kind)}" for kind in kinds if hits[kind])
        lacking = "; ".join(f"not available here: {kind}" for kind in kinds if kind in unavailable)
        reached = all(hits[kind] >= LONG[kind] for kind in here)
        least = sum(LONG[kind] for kind in here)
        figure = f"{sum(hits.values())}: {'; '.join(filter(None, [each, lacking]))}"
        yield Row(f"chaos: {line}", figure, f"at least {least}{short}", reached)
    totals = report["totals"]
    acked = totals.get("acked-events", 0)
    bad = [one for one in report["rounds"] if one["broken"] or one["wrong"]]
    first = next((str(one) for each in bad for one in (*each["broken"], *each["wrong"])), "")
    yield Row(
        "chaos: every checker silent, no process ended by itself",
        f"{acked} events acknowledged, {totals.get('events', 0)} delivered, {totals.get('leader-changes', 0)} leader "
        f"changes, {totals.get('repeats', 0)} repeated publishes answered, {totals.get('fenced-appends', 0)} appends "
        f"fenced, {totals.get('unknown-appends', 0)} of unknown outcome, {totals.get('resumes', 0)} resumes; "
        f"{len(bad)} of {len(report['rounds'])} rounds not clean{': ' + first[:200] if first else ''}",
        f"0 findings in {LONG['acked-events']} acknowledged events{short}",
        not bad and acked >= LONG["acked-events"],
    )
    every = sum(one["effects"].get("hit", 0) > 0 for one in report["kinds"].values())
    lacking = ", ".join(f"{kind} ({why})" for kind, why in unavailable.items())
    yield Row(
        "chaos: kinds of faults that hit",
        f"{every}; not available here: {lacking or 'none'}",
        f"all that this machine can do{short}",
        not report["missing"],
    )


def _pauses(report: Mapping[str, Any], kind: str) -> str:
    """Seconds without receipts after faults of that kind; of those, after the ones that came alone."""
    found, alone = report["kinds"][kind]["receipts"], report["kinds"][kind]["alone"]
    apart = (
        f"; {alone['faults']} alone: {alone['median_s']:.2f}, worst {alone['worst_s']:.2f}" if alone["faults"] else ""
    )
    return (
        f" (no receipts for {found['median_s']:.2f} s, p99 {found['p99_s']:.2f}, worst {found['worst_s']:.2f}{apart})"
    )
