"""C8: along a log seqs are dense and epochs never decrease; an epoch is one term, of one leader.

Broken if the log lacks a seq between its floor and its tail, has one twice or one beyond its tail; if an epoch is lower
than one before it; if one epoch has two terms in one log; if the log let two leaders, or two terms, fence one epoch
(unless its storage was put back between them), or somebody fenced an epoch and the log (where the store tells of its
fences) knows nothing of it.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.log import Log
from changefeed.history.view import View, place_of

PROMISE = "C8"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    log = view.log
    if log.whole:
        _dense(log, found)
        _tail(view, found)
    newest, terms = 0, dict[int, str]()
    stamp = ""
    for seq in log.seqs:
        held = log.at[seq]
        if held.stamp == stamp:
            continue
        stamp = held.stamp
        lineage, epoch_text, term = stamp.split(".")
        epoch = int(epoch_text)
        about = {"record": held.record, "seqs": [seq], "key": held.key}
        if epoch < newest:
            found.say(f"the log has epoch {epoch} at {seq}, behind epoch {newest}", **about)
        newest = max(newest, epoch)
        if terms.setdefault(epoch, term) != term:
            found.say(f"the log has epoch {epoch} of term {term} at {seq}, and of term {terms[epoch]} before", **about)
        if lineage != log.lineage:
            found.say(f"the log of lineage {log.lineage} has an entry of lineage {lineage} at {seq}", **about)
    _fenced(view, found)
    return found.result()


def _dense(log: Log, found: Findings) -> None:
    for held in log.clashes:
        about = {"record": held.record, "seqs": [held.seq], "key": held.key}
        found.say(f"the log has seq {held.seq} twice: {log.at[held.seq].key} and {held.key}", **about)
    expected = log.floor + 1
    for seq in log.between(log.floor, log.seqs[-1] if log.seqs else 0):
        if seq != expected:
            about = {"record": log.at[seq].record, "seqs": [expected, seq]}
            found.say(f"the log lacks {expected} to {seq - 1}, between its floor {log.floor} and its tail", **about)
        expected = seq + 1
    newest = expected - 1
    if newest > log.tail:
        found.say(f"the log's tail is {log.tail}, but it holds {newest}", seqs=[log.tail, newest])
    elif newest < log.tail:
        found.say(f"the log's tail is {log.tail}, but its last entry ends at {newest}", seqs=[newest, log.tail])


def _tail(view: View, found: Findings) -> None:
    """The log's own rows of tail and floor carry the stamp of the entry that holds them, where it is told."""
    for name, value in view.ends.items():
        if isinstance(value, str) and view.log.lineage:
            stamp, seq = place_of(value)
            held = view.log.at.get(seq)
            if held is not None and held.stamp != stamp:
                found.say(f"the log's {name} is {value}, but its entry there is of {held.stamp}", seqs=[seq])


def _fenced(view: View, found: Findings) -> None:
    terms: dict[tuple[int, int], str] = {}
    leaders: dict[tuple[int, int], tuple[str, int]] = {}
    made: dict[tuple[int, int], tuple[str, int]] = {}
    for at, record in view.fenced:
        key = view.era(at), record["epoch"]
        term, _ = made.setdefault(key, (record["term"], at))
        if term != record["term"]:
            found.say(
                f"the log let epoch {record['epoch']} be fenced with term {record['term']}, after term {term}",
                record=at,
            )
    for at, record in sorted((*view.elected, *view.fences), key=lambda one: one[0]):
        key = view.fence_era(at, record), record["epoch"]
        term, who = record["term"], (record["node"], record["life"])
        told, since = made.get(key, ("", at))
        if made and (told != term or since > at):
            found.say(
                f"{record['node']} says that it fenced epoch {record['epoch']} with term {term}: the log never did",
                record=at,
            )
        if terms.setdefault(key, term) != term:
            found.say(
                f"epoch {record['epoch']} was fenced with term {term} by {record['node']}, before with {terms[key]}",
                record=at,
            )
        if leaders.setdefault(key, who) != who:
            before = leaders[key]
            found.say(
                f"epoch {record['epoch']} was given to {record['node']} (life {record['life']}) and to {before[0]} "
                f"(life {before[1]})",
                record=at,
            )
