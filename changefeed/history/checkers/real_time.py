"""C7: what is published after somebody's receipt came stands behind it, whoever published.

Broken if the receipt of a came before b was first submitted, but b stands before a in the log.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import Op, View

PROMISE = "C7"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    log = view.log
    placed = sorted(
        ((log.place[op.keys[0]], op) for op in view.ops.values() if op.keys and op.keys[0] in log.place),
        key=lambda one: one[0],
        reverse=True,
    )
    earliest: tuple[int, int, Op] | None = None  # the first receipt of all that stand behind
    for seq, op in placed:
        submit = op.submits[0]
        if earliest is not None and earliest[0] < submit.t:
            found.say(
                f"op {op.op} was published after the receipt of op {earliest[2].op} had come, but stands before it: at "
                f"{seq}, and that at {earliest[1]}",
                record=submit.at,
                seqs=[seq, earliest[1]],
                key=op.keys[0],
            )
        stamp = log.at[seq].stamp
        acked = min((answer.t for answer in op.acks if answer.first == (stamp, seq)), default=None)
        if acked is not None and (earliest is None or acked < earliest[0]):
            earliest = acked, seq, op
    return found.result()
