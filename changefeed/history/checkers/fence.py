"""C9: from the moment that a fence returns, nothing of a lower epoch is stored any more.

Broken if a commit was made while another epoch (or term) was fenced than its own; if a commit of a lower epoch came
after a fence had returned; if a commit does not go on where the one before ended; if the log holds an entry of a lower
epoch beyond the tail that a fence returned, or one of its own epoch, or of a later one, at or below it.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.view import View, place_of, seq_of

PROMISE = "C9"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    _commits(view, found)
    _tails(view, found)
    return found.result()


def _commits(view: View, found: Findings) -> None:
    """Commits and returned fences, in the order in which they happened."""
    fences = [(at, record["epoch"]) for at, record in view.fences if view.fence_era(at, record) == view.era(at)]
    events = sorted(
        [(at, epoch, None) for at, epoch in fences] + [(commit.at, 0, commit) for commit in view.commits],
        key=lambda one: one[0],
    )
    era, highest, tail = 0, 0, None
    for at, epoch, commit in events:
        if view.restores and view.era(at) != era:
            era, highest, tail = view.era(at), 0, None
        if commit is None:
            highest = max(highest, epoch)
            continue
        about = {"record": at, "seqs": [commit.first, commit.last]}
        mine = f"a commit of {commit.stamp} ({commit.first} to {commit.last})"
        if commit.epoch != commit.fence:
            found.say(f"{mine} was made while epoch {commit.fence} was fenced", **about)
        elif commit.fence_term is not None and commit.fence_term != commit.term:
            found.say(f"{mine} was made while term {commit.fence_term} was fenced", **about)
        elif commit.epoch < highest:
            found.say(f"{mine} was made after the fence of epoch {highest} had returned", **about)
        if tail is not None and commit.first != tail + 1:
            found.say(f"{mine} does not go on after {tail}, where the commit before it ended", **about)
        tail = commit.last


def _tails(view: View, found: Findings) -> None:
    """The tail that each fence returned cuts the log in two. Only the fences since the storage was put back."""
    ends: dict[int, tuple[int, int]] = {}
    stamp, epoch = "", 0
    for seq in view.log.seqs:
        held = view.log.at[seq]
        if held.stamp != stamp:
            stamp, epoch = held.stamp, held.epoch
        low, _ = ends.get(epoch, (seq, seq))
        ends[epoch] = low, seq
    last = len(view.restores)
    for at, record in view.fences:
        if view.fence_era(at, record) != last:
            continue
        if isinstance(record["tail"], str) and view.lost(*place_of(record["tail"])):
            continue  # it was made in the log that is gone, and told of afterwards
        tail = seq_of(record["tail"])
        mine = f"the fence of epoch {record['epoch']} by {record['node']} returned the tail {tail}"
        for epoch, (low, high) in ends.items():
            if epoch < record["epoch"] and high > tail:
                found.say(f"{mine}, but the log holds {high} of epoch {epoch}", record=at, seqs=[tail, high])
            elif epoch >= record["epoch"] and low <= tail:
                found.say(f"{mine}, but the log holds {low} of epoch {epoch}", record=at, seqs=[low, tail])
