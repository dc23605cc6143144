"""C16: the run did something: its silence means something.

Broken if there is no log at the end to judge by, no receipt, or no delivery though there was something to read; if
there is less of something than the run itself asked for (`want`); if a fault had none of the effects of which one had
to be seen, or no fault at all had any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import Segment, View

PROMISE = "C16"
#: An effect that says that there was none.
MISSED = "missed"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    had = counts(view)
    if not view.log.whole:
        found.say("the history does not hold the log itself (a record 'log', read from the store after everything)")
    for name, least in {"acks": 1, "events": int(not _all_read(view)), **view.wants}.items():
        if had[name] < least:
            found.say(f"the run was too idle: {had[name]} {name}, at least {least} wanted", name=name)
    for fault in view.faults:
        if fault.expects and not set(fault.expects) & set(fault.effects):
            seen = ", ".join(fault.effects) or "nothing"
            found.say(
                f"{fault.kind} of {fault.target or 'all'} had no effect: one of {', '.join(fault.expects)} was to be "
                f"seen, and {seen} was",
                record=fault.at,
            )
    asked = [fault for fault in view.faults if fault.expects is None or fault.expects]
    effects = {effect for fault in asked for effect in fault.effects}
    if not effects - {MISSED} and not all(MISSED in fault.effects for fault in asked):
        found.say(f"none of the {len(asked)} faults had any effect that was seen", record=asked[0].at)
    return found.result()


def _all_read(view: View) -> bool:
    """Whether there were readers, and nothing that they select lay before any of them: all began at the end."""
    return bool(view.segments) and all(
        segment.steps
        and segment.steps[0].kind == "connected"
        and not any(seq > segment.steps[0].seq for seq in _selected(view, segment)[-1:])
        for segment in view.segments
    )


def _selected(view: View, segment: Segment) -> Sequence[int]:
    try:
        return view.log.selected(segment.filter)
    except KeyError:
        return ()  # exactly_once says so


def counts(view: View) -> Counter[str]:
    """How much of what a run had."""
    had = Counter(view.sightings)
    had["submits"] = view.counts["submit"]
    had["acks"] = view.counts["acked"]
    had["events"] = view.counts["event"]
    had["trims"] = len(view.trims)
    had["faults"] = len(view.faults)
    repeated = sum(answer.repeated for op in view.ops.values() for answer in op.acks)
    had["repeats"] = max(repeated, view.counts["repeat"])
    terms = {(view.era(at), record["epoch"]) for at, record in (*view.elected, *view.fences)}
    had["leader-changes"] = max(0, len(terms) - 1)
    outcomes = Counter(record["outcome"] for _, record in view.appends)
    had["fenced-appends"] = outcomes["fenced"]
    had["unknown-appends"] = outcomes["append-outcome-unknown"]
    for segments in view.readers.values():
        for before, segment in pairwise(segments):
            had["resets"] += before.refused is not None
            had["resumes"] += before.refused is None and any(s.seq for s in segment.steps if s.kind != "refused")
    for fault in view.faults:
        had[f"fault:{fault.kind}"] += 1
        for effect in fault.effects:
            had[f"effect:{effect}"] += 1
    return had
