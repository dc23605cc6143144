"""C3: what is in the log, or is delivered, was published before, as it is; and nothing that was refused.

Broken if a logged or delivered change was never submitted, was submitted only later, or with other bytes; if every
attempt to publish it was told that it is surely not stored; if a receipt answers what nobody submitted.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import Op, View

PROMISE = "C3"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    for at, record in view.stray:
        found.say(f"{record['node']} got an answer to op {record['op']}, which nobody submitted", record=at)
    told: set[tuple[str, str]] = set()
    by_key = view.by_key
    for entry in reversed(view.entries):
        for held in entry:
            known = by_key.get(held.key)
            if (held.key, held.digest) not in told or known is None or known[0].submits[0].at > held.record:
                told.add((held.key, held.digest))
                where = f"the log holds at {held.stamp}.{held.seq}"
                _known(view, held.key, held.digest, held.record, where, view.lost(held.stamp, held.seq), found)
    for segment in view.segments:
        for step in segment.steps:
            if step.kind == "event":
                record = step.record
                key, digest = record["key"], record["digest"]
                known = by_key.get(key)
                if (key, digest) not in told or known is None or known[0].submits[0].at > step.at:
                    where = f"{segment} was given at {step.stamp}.{step.seq}"
                    if _known(view, key, digest, step.at, where, view.lost(step.stamp, step.seq), found):
                        told.add((key, digest))
    return found.result()


def _known(view: View, key: str, digest: str | None, at: int, where: str, lost: bool, found: Findings) -> bool:
    """Whether a change was published as it was seen; says so if not. lost: it went away with the storage; it may have
    been refused afterwards."""
    op, place = view.by_key.get(key, (None, 0))
    if op is None:
        found.say(f"{where} the change {key}, which nobody published", key=key, record=at)
    elif digest is not None and digest not in _digests(op, place):
        found.say(f"{where} the change {key} with bytes that nobody published", key=key, record=at)
    elif op.submits[0].at > at:
        found.say(f"{where} the change {key} before it was published", key=key, record=at)
    elif not lost and len(op.answers) >= len(op.submits) and all(answer.kind == "failed" for answer in op.answers):
        codes = sorted({answer.code for answer in op.answers})
        found.say(f"{where} the change {key}, which was surely not stored ({', '.join(codes)})", key=key, record=at)
    else:
        return True
    return False


def _digests(op: Op, place: int) -> list[str]:
    return [digests[place] for digests in (op.digests, *op.variants)]
