"""C1: an acknowledged change is in the log, at the place that its receipt names, and was there before.

Broken if a receipt names a place where the final log holds nothing or something else (and it was neither trimmed nor
lost with the storage), if it does not name one place for each change of its group, or if it was given before the
commit that stored it.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import Answer, Op, View

PROMISE = "C1"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    for op in view.ops.values():
        for answer in op.answers:
            if answer.kind == "acked":
                _receipt(view, op, answer, found)
    return found.result()


def _receipt(view: View, op: Op, answer: Answer, found: Findings) -> None:
    stamp, first = answer.first
    about = {"record": answer.at, "op": op.op, "seqs": [first, answer.last[1]]}
    if answer.last != (stamp, first + len(op.keys) - 1):
        found.say(
            f"the receipt of op {op.op} names {stamp}.{first} to {answer.last[0]}.{answer.last[1]}: that is not one "
            f"place for each of its {len(op.keys)} changes",
            **about,
        )
        return
    log = view.log
    for seq, (key, digest) in enumerate(zip(op.keys, op.digests, strict=True), first):
        held = log.at.get(seq)
        if held is not None and held.stamp == stamp and held.key == key:
            if held.digest != digest and not op.variants:
                found.say(
                    f"change {key} was acknowledged at {stamp}.{seq}, where its bytes are others", **about, key=key
                )
        elif not (held is None and seq <= log.known_after) and not view.lost(stamp, seq):
            what = "nothing" if held is None else f"{held.key} of {held.stamp}"
            found.say(
                f"change {key} (op {op.op}) was acknowledged at {stamp}.{seq}, where the log holds {what}",
                **about,
                key=key,
            )
        committed = view.committed.get((stamp, seq))
        if committed is not None and committed > answer.at:
            found.say(f"change {key} was acknowledged at {stamp}.{seq} before it was stored there", **about, key=key)
