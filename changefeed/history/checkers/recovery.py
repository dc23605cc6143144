"""C15: how long nobody gets a receipt, or a delivery, after each kind of fault; within its limit, if one is set.

Broken if, after a fault of a kind that has a limit, publishers waited longer than it for the next receipt, or readers
for the next delivery. A pause counts only while somebody waits: from the fault, or from the first submit after the
last receipt (delivery), whichever is later. And (steady.py) if a term ends although nobody had harmed its leader.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from changefeed.history.broken import Broken, Findings
from changefeed.history.checkers import steady
from changefeed.history.view import Fault, View

PROMISE = "C15"
#: What begins so long after a fault was over is not its doing.
AFTER_NS = 30 * 10**9


@dataclass(frozen=True, slots=True)
class Recovery:
    """The pauses after the faults of one kind, in seconds, sorted. A fault after which nobody waited has none."""

    kind: str
    faults: int
    receipts: tuple[float, ...]
    deliveries: tuple[float, ...]

    def figures(self) -> dict[str, float | int | None]:
        """median, p99 and worst of both, in seconds; None where nobody waited."""
        made: dict[str, float | int | None] = {"faults": self.faults}
        for name, values in (("receipts", self.receipts), ("deliveries", self.deliveries)):
            made[f"{name}_median_s"] = statistics.median(values) if values else None
            made[f"{name}_p99_s"] = values[max(0, -(-99 * len(values) // 100) - 1)] if values else None
            made[f"{name}_worst_s"] = values[-1] if values else None
        return made


def check(view: View, limits: Mapping[str, float] | None = None) -> list[Broken]:
    """limits: kind of fault -> seconds, for receipts and deliveries, beside those that the history sets."""
    found = Findings(PROMISE)
    steady.check(view, found)
    if not limits and not view.limits:
        return found.result()
    measured = _measure(view)
    for fault, receipts, deliveries in measured:
        record = view.limits.get(fault.kind, {})
        both = (limits or {}).get(fault.kind)
        for what, pause, limit in (
            ("receipt", receipts, record.get("receipts_s", both)),
            ("delivery", deliveries, record.get("deliveries_s", both)),
        ):
            if limit is not None and pause is not None and pause > limit:
                found.say(
                    f"after {fault.kind} of {fault.target or 'all'} nobody got a {what} for {pause:.2f} s; the limit "
                    f"is {limit:g} s",
                    record=fault.at,
                    seconds=pause,
                )
    return found.result()


def recoveries(views: View | Iterable[View]) -> list[Recovery]:
    """The pauses of one history or of several, by kind of fault."""
    faults: dict[str, int] = {}
    receipts: dict[str, list[float]] = {}
    deliveries: dict[str, list[float]] = {}
    for view in (views,) if isinstance(views, View) else views:
        for fault, receipt, delivery in _measure(view):
            faults[fault.kind] = faults.get(fault.kind, 0) + 1
            for into, pause in ((receipts, receipt), (deliveries, delivery)):
                if pause is not None:
                    into.setdefault(fault.kind, []).append(pause)
    return [
        Recovery(kind, count, tuple(sorted(receipts.get(kind, ()))), tuple(sorted(deliveries.get(kind, ()))))
        for kind, count in sorted(faults.items())
    ]


def _measure(view: View) -> list[tuple[Fault, float | None, float | None]]:
    """For each fault: the longest pause in receipts, in deliveries, in seconds."""
    submitted: list[int] = []
    acked: list[int] = []
    for op in view.ops.values():
        times = [answer.t for answer in op.acks]
        if times:
            submitted.append(op.submits[0].t)
            acked.append(min(times))
    delivered: dict[str, int] = {}
    for segment in view.segments:
        for step in segment.steps:
            if step.kind == "event":
                key, t = step.record["key"], step.record["t"]
                delivered[key] = min(t, delivered.get(key, t))
    sent = [view.by_key[key][0].submits[0].t for key in delivered if key in view.by_key]
    came = [t for key, t in delivered.items() if key in view.by_key]
    receipts, deliveries = _pauses(submitted, acked), _pauses(sent, came)
    faults = sorted(view.faults, key=lambda fault: fault.t)
    made = []
    for place, fault in enumerate(faults):
        over = fault.t if fault.over is None else fault.over
        later = bisect_right(faults, fault.t, lo=place, key=lambda one: one.t)
        upto = over + AFTER_NS
        if later < len(faults):
            upto = min(upto, faults[later].t)
        made.append((fault, _longest(receipts, fault.t, upto), _longest(deliveries, fault.t, upto)))
    return made


def _pauses(begun: list[int], ended: list[int]) -> list[tuple[int, int]]:
    """When nobody got anything although somebody waited: (from, to) between each two endings.

    The n-th pause ends with the n-th ending. It begins with the ending before it, or, if nobody waited then, when the
    next one began: everything that began before has ended by then, so that is the n-th beginning.
    """
    begun, ended = sorted(begun), sorted(ended)
    pauses, before = [], 0
    for begin, end in zip(begun, ended, strict=True):
        pauses.append((max(before, begin), end))
        before = end
    return pauses


def _longest(pauses: Sequence[tuple[int, int]], begin: int, upto: int) -> float | None:
    """The longest part behind `begin` of the pauses that begin before `upto` and end behind `begin`, in seconds."""
    place = bisect_left(pauses, begin, key=lambda pause: pause[1])
    longest = None
    for start, end in pauses[place:]:
        if start >= upto and start > begin:
            break
        longest = max(longest or 0.0, (end - max(start, begin)) / 1e9)
    return longest
