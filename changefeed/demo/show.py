"""The verdict for people."""

from __future__ import annotations

from changefeed.demo.history import History
from changefeed.demo.verdict import Verdict


def verdict_lines(verdict: Verdict, history: History) -> list[str]:
    """A few lines that say what was done, what is held against it, and the verdict."""
    told = verdict.summary()
    events = ", ".join(f"{name.removeprefix('subscriber-')} {count:,}" for name, count in verdict.events.items())
    faults = "  ".join(f"{kind} {told[kind]}" for kind in Verdict.KINDS if kind != "trees")
    gap = "none was measured"
    if verdict.gaps_ms:
        gap = f"median {told['gap_ms_median']:.0f} ms, worst {told['gap_ms_worst']:.0f} ms around a kill"
    lines = [
        f"history      {history.source}: {len(history.commits):,} commits, {history.changes:,} file changes",
        f"publishers   {verdict.changes:,} changes sent; {verdict.receipts:,} groups acknowledged, "
        f"{verdict.repeated_receipts:,} of them stored before they were asked for again",
        f"subscribers  events handled: {events}",
        f"kills        {verdict.kills} leaders killed, {verdict.kills_counted} with changes in flight; "
        f"receipts under {verdict.epochs} epochs",
        f"no receipts  {gap}",
        f"trees        {verdict.trees_equal} of {verdict.trees} equal the tree of HEAD",
        f"faults       {faults}",
    ]
    for sentences in verdict.faults.values():
        lines += [f"             {sentence}" for sentence in sentences]
    lines += [f"             {reason}" for reason in verdict.empty]
    lines.append(
        f"verdict      {'CLEAN: nothing lost, nothing twice, nothing out of order' if verdict.clean else 'NOT CLEAN'}"
    )
    return lines
