"""C6: a publisher's changes stand in the log in the order in which it published them; a group stands together, whole.

Broken if the numbers of a publisher's incarnation do not grow along the log, or an older incarnation's change stands
behind a newer one's; if two groups that one publisher submitted in one order stand in the other; if the changes of one
group are not the whole of one group of the log, in their order.
"""

from __future__ import annotations

from collections import defaultdict

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import Op, View

PROMISE = "C6"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    _numbers(view, found)
    mine: dict[str, list[tuple[int, int, Op]]] = defaultdict(list)
    place, known = view.log.place, view.log.known_after
    for op in view.ops.values():
        seqs = [place[key] for key in op.keys if key in place]
        if not seqs:
            continue
        if len(seqs) == len(op.keys) or min(seqs) > known:
            _whole(view, op, found)
        # Whoever was refused, or told that what was stored is lost with the storage, may submit again, later.
        again = view.restores and len(op.submits) > 1
        if not again and not any(answer.kind == "failed" for answer in op.answers):
            mine[op.who].append((op.submits[0].at, min(seqs), op))
    for who, ops in mine.items():
        ops.sort(key=lambda one: one[0])
        newest, before = -1, ""
        for at, seq, op in ops:
            if seq < newest:
                found.say(
                    f"{who} published op {before} before op {op.op}, but the log has {op.op} first, at {seq}",
                    record=at,
                    seqs=[seq, newest],
                    key=op.keys[0],
                )
            else:
                newest, before = seq, op.op
    return found.result()


def _numbers(view: View, found: Findings) -> None:
    newest: dict[str, tuple[int, int, int]] = {}
    at = view.log.at
    for seq in view.log.seqs:
        held = at[seq]
        before = newest.get(held.publisher)
        if before is not None and (held.incarnation, held.number) <= before[:2]:
            found.say(
                f"publisher {held.publisher} has number {held.number} of incarnation {held.incarnation} at {seq}, "
                f"behind number {before[1]} of incarnation {before[0]} at {before[2]}",
                record=held.record,
                seqs=[before[2], seq],
                key=held.key,
            )
        else:
            newest[held.publisher] = (held.incarnation, held.number, seq)


def _whole(view: View, op: Op, found: Findings) -> None:
    log = view.log
    seqs = [log.place.get(key) for key in op.keys]
    first = seqs[0]
    if first is not None and seqs == list(range(first, first + len(seqs))):
        held = log.at[first]
        if (held.group, held.group_last) == (first, first + len(seqs) - 1):
            return
        says = f"at {first} to {seqs[-1]}, but the log has a group from {held.group} to {held.group_last} there"
    else:
        says = f"at {', '.join('nowhere' if seq is None else str(seq) for seq in seqs[:20])}"
    found.say(
        f"the group of op {op.op} ({len(op.keys)} changes) is torn: its changes stand {says}",
        record=op.submits[0].at,
        seqs=[seq for seq in seqs if seq is not None],
        key=op.keys[0],
    )
