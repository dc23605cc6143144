"""C2: one accepted publish is in the log once.

Broken if one change stands at two places of the log, or one number of a publisher's incarnation does.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import View

PROMISE = "C2"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    at = view.log.at
    keys: dict[str, int] = {}
    numbers: dict[tuple[str, int, int], int] = {}
    for seq in view.log.seqs:
        held = at[seq]
        before = keys.setdefault(held.key, seq)
        if before != seq:
            found.say(
                f"change {held.key} stands in the log twice, at {before} and {seq}",
                key=held.key,
                seqs=[before, seq],
                record=held.record,
            )
        before = numbers.setdefault((held.publisher, held.incarnation, held.number), seq)
        if before != seq:
            found.say(
                f"number {held.number} of publisher {held.publisher} (incarnation {held.incarnation}) stands in the "
                f"log twice, at {before} and {seq}",
                seqs=[before, seq],
                record=held.record,
            )
    return found.result()
