"""C12: what is delivered, or counted as stored, is durable, and was before.

Broken if an event that a reader was given is not in the final log (and was neither trimmed nor lost with the storage);
if it was given before its commit, or without one; if what stood in the log earlier is gone or is something else; if a
leader counted as stored what was never committed.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.log import Held
from changefeed.history.view import View, seq_of

PROMISE = "C12"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    log, committed, told = view.log, view.committed, bool(view.commits)
    at, known = log.at, log.known_after
    for segment in view.segments:
        for step in segment.steps:
            if step.kind != "event":
                continue
            seq, stamp = step.seq, step.stamp
            held = at.get(seq)
            gone = held.stamp != stamp if held is not None else seq > known
            if gone and not view.lost(stamp, seq):
                about = {"record": step.at, "seqs": [seq], "key": step.record["key"]}
                found.say(f"{segment} was given {stamp}.{seq}, which {_what(held)}", **about)
            if told:
                commit = committed.get((stamp, seq))
                if commit is None or commit > step.at:
                    when = "was never committed" if commit is None else "was committed only later"
                    about = {"record": step.at, "seqs": [seq], "key": step.record["key"]}
                    found.say(f"{segment} was given {stamp}.{seq}, which {when}", **about)
    _seen(view, found)
    _stored(view, found)
    return found.result()


def _what(held: Held | None) -> str:
    return (
        "the log does not hold" if held is None else f"the log does not hold: {held.key} of {held.stamp} stands there"
    )


def _seen(view: View, found: Findings) -> None:
    """What was seen in the log earlier is still there."""
    log = view.log
    if not log.whole:
        return
    for entry in view.entries:
        for seen in entry:
            held = log.at.get(seen.seq)
            if seen is held:
                break  # a whole entry of the log itself
            gone = seen.seq > log.floor if held is None else (held.stamp, held.key) != (seen.stamp, seen.key)
            if gone and seen.seq > log.floor and not view.lost(seen.stamp, seen.seq) and not _clashes(view, seen):
                about = {"record": seen.record, "seqs": [seen.seq], "key": seen.key}
                found.say(f"{seen.stamp}.{seen.seq} was {seen.key} once, which {_what(held)}", **about)


def _clashes(view: View, seen: Held) -> bool:
    """Whether this is an entry of the log itself, at a seq that is taken: epochs says so."""
    return any(seen is clash for clash in view.log.clashes)


def _stored(view: View, found: Findings) -> None:
    if not view.commits:
        return
    ranges = {(commit.epoch, seq) for commit in view.commits for seq in (commit.first, commit.last)}
    for at, record in view.appends:
        if record["outcome"] == "stored":
            first, last = seq_of(record["first"]), seq_of(record["last"])
            if (record["epoch"], first) not in ranges or (record["epoch"], last) not in ranges:
                found.say(
                    f"{record['node']} counted {first} to {last} of epoch {record['epoch']} as stored, but that was "
                    "never committed",
                    record=at,
                    seqs=[first, last],
                )
