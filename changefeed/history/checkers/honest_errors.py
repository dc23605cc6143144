"""C13: whoever is told no is told the truth, and whoever must be told is told.

Broken if a position is refused as too old that the log still follows, as of the future or of another lineage although
it is a place of this log; if a position that the log cannot follow is gone on from, or refused for another reason; if a
publisher hears of lost receipts that are not lost, or does not hear of those that are before its next receipt; if a
publisher is refused as superseded by nobody, as forgotten without a trim, for other bytes that it never sent, as too
late for its number though nothing behind it was ever stored, or for a gap at all.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.log import Log, is_beginning
from changefeed.history.records import Record
from changefeed.history.view import CANNOT_RESUME, Answer, Op, Step, View, place_of

PROMISE = "C13"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    for segment in view.segments:
        for step in segment.steps:
            if step.kind == "refused" and step.record["position"]:
                _refused(view, str(segment), step, found)
            elif step.kind == "connected" and step.record.get("asked"):
                stamp, seq = place_of(step.record["asked"])
                why, _ = _unfit(view, stamp, seq, step.at)
                if why:
                    says = f"{segment} was taken in after {stamp}.{seq}, which {why}"
                    found.say(says, record=step.at, seqs=[seq])
    for op in view.ops.values():
        for answer in op.answers:
            if answer.kind == "failed":
                _failed(view, op, answer, found)
    _losses(view, found)
    return found.result()


def _log_at(view: View, at: int) -> Log:
    """The log of the time of a record."""
    return view.logs[view.era(at)] if view.restores else view.log


def _floor(view: View, at: int) -> int:
    """Up to where the log was trimmed for sure when a record was written: since it was put back last."""
    since = max((restore.at for restore in view.restores if restore.at < at), default=-1)
    return max((floor for when, floor in view.trims if since < when < at), default=0)


def _unfit(view: View, stamp: str, seq: int, at: int) -> tuple[str, tuple[str, ...]]:
    """Why a position could not be resumed at that time, and which codes say so; "" if none is known."""
    log = _log_at(view, at)
    lineage = stamp.partition(".")[0]
    if log.lineage and lineage != log.lineage:
        return f"is of lineage {lineage}, not {log.lineage}", ("other-lineage",)
    floor, tail = _floor(view, at), view.committed_tail(at)
    if seq < floor:
        # Below the floor nobody can tell any more whether a copy was put back above it.
        return f"lies below the floor {floor}", ("position-too-old", "other-lineage")[: 1 + bool(view.restores)]
    if seq > (log.tail if tail is None else tail) and (log.whole or tail is not None):
        return "lies beyond the log's tail", ("future-position", "other-lineage")
    held = log.at.get(seq)
    if held is not None and held.stamp != stamp:
        return f"is of another term than the entry there ({held.stamp})", ("other-lineage", "future-position")[
            : 1 + bool(view.restores)
        ]
    return "", ()


def _refused(view: View, who: str, step: Step, found: Findings) -> None:
    code, stamp, seq = step.record["code"], step.stamp, step.seq
    position = f"{stamp}.{seq}"
    about = {"record": step.at, "seqs": [seq]}
    log = _log_at(view, step.at)
    why, codes = _unfit(view, stamp, seq, step.at)
    if why:
        if code not in (*codes, "cannot-resume"):
            found.say(f"{who} was refused with {code} after {position}, which {why}: the reason is another", **about)
    elif not log.whole or code not in CANNOT_RESUME:
        return
    elif code == "position-too-old" and seq >= log.floor:
        found.say(f"{who} was refused as too old after {position}, but the log's floor is {log.floor}", **about)
    elif code != "position-too-old" and log.stands(stamp, seq) and (is_beginning(stamp) or seq in log.at):
        if code == "future-position" and seq > view.seen_tail(step.at):
            return  # it came to be a place of this log only later, perhaps
        found.say(f"{who} was refused with {code} after {position}, which is a place of this log", **about)


def _failed(view: View, op: Op, answer: Answer, found: Findings) -> None:
    about = {"record": answer.at, "op": op.op}
    if answer.code == "number-gap":
        found.say(
            f"{answer.node} was refused op {op.op} for a gap in its numbers, which never reaches a caller", **about
        )
    elif answer.code == "number-reused" and not op.variants:
        found.say(f"{answer.node} was refused op {op.op} for other bytes under a number, which it never sent", **about)
    elif answer.code == "number-skipped" and not _overtaken(view, op, answer):
        found.say(
            f"{answer.node} was refused op {op.op} as too late for its number, but nothing that was submitted behind "
            "it was ever stored",
            **about,
        )
    elif answer.code == "superseded":
        others = {
            (submit.node, submit.life)
            for other in view.ops.values()
            if other.name == op.name
            for submit in other.submits
        }
        if op.name is None or not others - {(answer.node, answer.life)}:
            found.say(f"{answer.node} was refused op {op.op} as superseded, by nobody", **about)
    elif answer.code == "forgotten" and view.log.whole and not (view.trims or view.log.floor or view.restores):
        found.say(f"{answer.node} was refused op {op.op} as forgotten, though nothing was ever trimmed", **about)


def _overtaken(view: View, op: Op, answer: Answer) -> bool:
    """Whether the log had something that its publisher submits behind it: a name's numbers are in the order in which it
    submitted its ops first. Where the store does not tell of commits: whether the log has it in the end, or had."""
    if op.name is None:
        return False
    begun = op.submits[0].at
    behind = [other for other in view.ops.values() if other.name == op.name and other.submits[0].at > begun]
    if any(ack.at < answer.at for other in behind for ack in other.acks):
        return True
    keys = {key for other in behind for key in other.keys}
    entries = (one for held in view.entries for one in held)
    return any(one.key in keys and (one.record < answer.at or not view.commits) for one in entries)


def _losses(view: View, found: Findings) -> None:
    """Acknowledged-lost: only with cause, and wherever there is cause."""
    receipts: dict[tuple[str, int], list[Answer]] = {}
    for op in view.ops.values():
        for answer in op.acks:
            receipts.setdefault((answer.node, answer.life), []).append(answer)
    for mine in receipts.values():
        mine.sort(key=lambda answer: answer.at)
    told: dict[tuple[str, int], list[int]] = {}
    for at, record in view.losses:
        told.setdefault((record["node"], record["life"]), []).append(at)
        _loss(view, at, record, receipts.get((record["node"], record["life"]), []), found)
    for restore in view.restores:
        for who, mine in receipts.items():
            before = [answer for answer in mine if answer.at < restore.at]
            newest = max(before, key=lambda answer: answer.last[1], default=None)
            if newest is None or (
                restore.lineage == newest.last[0].partition(".")[0] and newest.last[1] <= restore.tail
            ):
                continue
            later = next((one for one in mine if one.at > restore.at and not view.lost(*one.last)), None)
            same = restore.lineage == newest.last[0].partition(".")[0]
            if later is not None and any(
                same and restore.at < at < later.at and floor >= newest.last[1] for at, floor in view.trims
            ):
                continue  # what stood there may have been trimmed since: nobody can tell the two apart any more
            if later is not None and not any(restore.at < at < later.at for at in told.get(who, ())):
                found.say(
                    f"{who[0]} got a receipt at {later.last[0]}.{later.last[1]}, and was never told that its receipt "
                    f"for {newest.last[0]}.{newest.last[1]} was lost with the storage",
                    record=later.at,
                    seqs=[newest.last[1], later.last[1]],
                )


def _loss(view: View, at: int, record: Record, receipts: list[Answer], found: Findings) -> None:
    before = [answer for answer in receipts if answer.at < at]
    log = view.log
    for answer in before:
        stamp, seq = answer.last
        held = log.at.get(seq)
        if view.lost(stamp, seq) or (held is not None and held.stamp != stamp) or (held is None and seq > log.tail):
            return
    found.say(
        f"{record['node']} was told that acknowledged changes are lost, but the log holds all that it has receipts for",
        record=at,
    )
