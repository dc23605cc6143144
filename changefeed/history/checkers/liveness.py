"""C14: once everything is healed, the run converges within its bound.

Broken if the run was not seen to converge within the bound of its last heal; if a submitted group has no outcome in the
end although its publisher was not killed for good; if a reader that is not over was not given everything that its
filter selects of what the log holds, or, where it tells of bookmarks, does not know that it has come so far.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import Segment, View

PROMISE = "C14"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    if not view.heals:
        return []
    at, heal = view.heals[-1]
    after = [record for index, record in view.converged if index > at]
    if not after:
        found.say(f"the run did not converge: it was healed, and {heal['bound_s']:g} s were given", record=at)
    else:
        took = (after[0]["t"] - heal["t"]) / 1e9
        if took > heal["bound_s"]:
            found.say(
                f"the run converged {took:.1f} s after it was healed, not within {heal['bound_s']:g} s", record=at
            )
    _pending(view, found)
    acked = max((a.last[1] for op in view.ops.values() for a in op.acks if view.log.stands(*a.last)), default=0)
    for segments in view.readers.values():
        _reader(view, segments, acked, found)
    return found.result()


def _pending(view: View, found: Findings) -> None:
    for op in view.ops.values():
        last = op.submits[-1]
        if not op.answers and not view.publisher_quits.get((last.node, last.life), False):
            found.say(
                f"op {op.op} of {last.node} has no outcome: neither a receipt nor an error ever came",
                record=last.at,
                op=op.op,
                key=op.keys[0] if op.keys else None,
            )


def _reader(view: View, segments: list[Segment], acked: int, found: Findings) -> None:
    last = segments[-1]
    if last.quit:
        return
    if last.refused is not None:
        found.say(f"{last} was refused ({last.refused.record['code']}) and never began anew", record=last.refused.at)
        return
    try:
        selected = view.log.selected(last.filter)
    except KeyError:
        return  # exactly_once says so
    steps = [step for segment in segments if segment.chapter == last.chapter for step in segment.steps]
    reached = max((step.seq for step in steps), default=0)
    if selected and selected[-1] > reached and view.log.whole:
        missing = next(seq for seq in selected if seq > reached)
        found.say(
            f"{last} was given everything up to {reached}, and never {missing} ({view.log.at[missing].key}), though "
            "all was healed",
            record=last.at,
            seqs=[reached, missing],
        )
    elif acked > reached and any(step.kind == "bookmark" for step in steps):
        found.say(
            f"{last} knows that it has everything up to {reached}, though {acked} was acknowledged and all was healed",
            record=last.at,
            seqs=[reached, acked],
        )
