"""C4: one position is one event, for everybody who sees it.

Broken if two observers (the log, a receipt, what any reader was given) have another change, other bytes, another
publisher or another group at one position; or one seq of a lineage in two terms, unless the storage was put back
between them.
"""

from __future__ import annotations

from typing import Any

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import Step, View

PROMISE = "C4"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    #: What was seen where the log says nothing: (stamp, seq) -> [key, digest, publisher, group], None where not told.
    seen: dict[tuple[str, int], list[Any]] = {}
    terms: dict[tuple[str, int], str] = {}
    plain = view.log.at if not view.restores else {}
    for segment in view.segments:
        for step in segment.steps:
            if step.kind == "event":
                record = step.record
                held = plain.get(step.seq) or _held(view, step)
                if held is None or held.stamp != step.stamp:
                    _compare(view, seen, terms, step.stamp, step.seq, _facts(record), str(segment), step.at, found)
                elif (
                    held.key != record["key"]
                    or held.group != record["group"]
                    or held.publisher != record["publisher"]
                    or (held.digest != record["digest"] and record["digest"] is not None)
                ):
                    mine = [held.key, held.digest, held.publisher, held.group]
                    _say(found, str(segment), step.stamp, step.seq, _facts(record), "the log", mine, step.at)
    for op in view.ops.values():
        for answer in op.acks:
            stamp, first = answer.first
            for seq, (key, digest) in enumerate(zip(op.keys, op.digests, strict=True), first):
                if seq not in view.log.at:
                    facts = [key, None if op.variants else digest, None, first]
                    _compare(view, seen, terms, stamp, seq, facts, f"the receipt of op {op.op}", answer.at, found)
    return found.result()


def _held(view: View, step: Step) -> Any:
    return view.log_of(step.stamp, step.seq).at.get(step.seq) if view.restores else None


def _facts(record: dict[str, Any]) -> list[Any]:
    return [record["key"], record["digest"], record["publisher"], record["group"]]


def _compare(
    view: View,
    seen: dict[tuple[str, int], list[Any]],
    terms: dict[tuple[str, int], str],
    stamp: str,
    seq: int,
    facts: list[Any],
    who: str,
    at: int,
    found: Findings,
) -> None:
    """Hold one sight against the log's term at that seq, and against what others saw."""
    lost = view.lost(stamp, seq)
    held = view.log.at.get(seq)
    lineage = stamp.partition(".")[0]
    if held is not None and held.stamp != stamp and not lost and lineage == view.log.lineage:
        found.say(
            f"{who} has {stamp}.{seq}, and the log has {held.stamp} at that seq", record=at, seqs=[seq], key=facts[0]
        )
        return
    term = terms.setdefault((lineage, seq), stamp)
    if term != stamp and not lost and not view.lost(term, seq):
        found.say(f"{who} has {stamp}.{seq}, and somebody else {term}.{seq}", record=at, seqs=[seq], key=facts[0])
    before = seen.setdefault((stamp, seq), facts)
    if any(a != b and a is not None and b is not None for a, b in zip(before, facts, strict=True)):
        _say(found, who, stamp, seq, facts, "somebody else", before, at)


def _say(
    found: Findings, who: str, stamp: str, seq: int, facts: list[Any], other: str, theirs: list[Any], at: int
) -> None:
    names = ("change", "bytes", "publisher", "group")
    parts = [
        f"{name} {a!r} instead of {b!r}"
        for name, a, b in zip(names, facts, theirs, strict=True)
        if a != b and a is not None and b is not None
    ]
    found.say(f"at {stamp}.{seq} {who} has {', '.join(parts)}, which {other} has", record=at, seqs=[seq], key=facts[0])
