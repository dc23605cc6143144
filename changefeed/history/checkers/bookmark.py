"""C11: a bookmark is a promise: nothing up to it comes any more, and everything up to it is in the log.

Broken if an event at or below a bookmark is given after it in the same life; if a bookmark is lower than one before it;
if it lies beyond what was committed at that time (where commits are told) or beyond the log's tail; if it is of
another term than the entry that holds its seq.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import Segment, Step, View

PROMISE = "C11"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    for segment in view.segments:
        high = -1
        for step in segment.steps:
            if step.kind == "event":
                if step.seq <= high:
                    found.say(
                        f"{segment} was given {step.stamp}.{step.seq} after a bookmark of {high}",
                        record=step.at,
                        seqs=[step.seq, high],
                        key=step.record["key"],
                    )
            elif step.kind == "bookmark":
                if step.seq < high:
                    found.say(
                        f"{segment} got a bookmark of {step.seq} after one of {high}",
                        record=step.at,
                        seqs=[step.seq, high],
                    )
                high = max(high, step.seq)
                _true(view, segment, step, found)
    return found.result()


def _true(view: View, segment: Segment, step: Step, found: Findings) -> None:
    """Whether the log had come so far, in that term."""
    seq, about = step.seq, {"record": step.at, "seqs": [step.seq]}
    tail = view.committed_tail(step.at)
    if tail is not None and seq > tail and not view.lost(step.stamp, seq):
        found.say(f"{segment} got a bookmark of {seq} when the log ended at {tail}", **about)
    held = view.log.at.get(seq)
    if held is not None:
        if held.stamp != step.stamp and not view.lost(step.stamp, seq):
            says = f"but the entry that holds {seq} is of {held.stamp}"
            found.say(f"{segment} got a bookmark of {step.stamp}.{seq}, {says}", **about)
    elif seq > view.log.tail and not view.lost(step.stamp, seq):
        found.say(f"{segment} got a bookmark of {seq}, but the log ends at {view.log.tail}", **about)
