"""Judges one round's history, as a process of its own: `python -m simulations.chaos.judge HISTORY VERDICT`.

HISTORY: a folder of files *.jsonl; VERDICT: the file to write, JSON. A round's history is hundreds of thousands of
records: what they take in memory ends with this process. It gives way to the next round, which runs meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from changefeed.history.checkers import check_view, views_of
from changefeed.history.checkers.recovery import _measure, recoveries
from changefeed.history.checkers.vacuous import counts
from changefeed.history.records import BadHistory, read_history
from changefeed.history.view import Fault, View

#: A fault is alone if nothing else was done so long before it, and until so long behind its beginning or to its end.
APART_NS: Final = 2 * 10**9


def alone(view: View) -> list[tuple[Fault, float]]:
    """Seconds without receipts after those faults around which nothing else was done."""
    found = []
    for fault, receipts, _ in _measure(view):
        begin, end = fault.t - APART_NS, max(fault.over or fault.t, fault.t + APART_NS)
        near = [one for one in view.faults if one is not fault and one.t < end and (one.over or one.t) > begin]
        if not near and receipts is not None:
            found.append((fault, receipts))
    return found


def judged(folder: Path) -> dict[str, Any]:
    """broken: what the checkers say. counts: how much of what there was. pauses: by kind, as the recoveries are."""
    try:
        (view,) = views_of(read_history(folder))
    except BadHistory as error:
        return {"broken": [{"promise": "history", "says": str(error)}], "counts": {}, "pauses": {}, "effects": {}}
    broken = [{"promise": one.promise, "says": one.says, "about": one.about} for one in check_view(view)]
    effects: dict[str, dict[str, int]] = {}
    for fault in view.faults:
        seen = effects.setdefault(fault.kind, {"done": 0, "hit": 0})
        seen["done"] += 1
        seen["hit"] += bool(set(fault.effects) - {"missed"})
        for what in set(fault.effects):
            seen[what] = seen.get(what, 0) + 1
    pauses: dict[str, dict[str, Any]] = {
        one.kind: {"faults": one.faults, "receipts": one.receipts, "deliveries": one.deliveries, "alone": []}
        for one in recoveries(view)
    }
    for fault, receipts in alone(view):
        pauses[fault.kind]["alone"].append(receipts)
    events = sum(len(op.keys) for op in view.ops.values() if op.acks)
    return {"broken": broken, "counts": {**counts(view), "acked-events": events}, "pauses": pauses, "effects": effects}


if __name__ == "__main__":
    os.nice(10)
    Path(sys.argv[2]).write_text(json.dumps(judged(Path(sys.argv[1]))))
