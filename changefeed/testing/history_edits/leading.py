"""C8, C9, C12: epochs, fences, and what is durable."""

from __future__ import annotations

from itertools import pairwise

from changefeed.history.records import Record
from changefeed.testing.history_edits.bench import Bench, edit, later_epoch, seq_of, shifted, span

# ---- C8: epochs


@edit("C8", "the log has a hole")
def _hole(bench: Bench) -> bool:
    entry = bench.pick(bench.entries[:-1])
    return entry is not None and bench.remove(entry)


@edit("C8", "the log ends before its tail")
def _short(bench: Bench) -> bool:
    return bool(bench.entries) and bench.remove(bench.entries[-1])


@edit("C8", "the log goes on beyond its tail")
def _long(bench: Bench) -> bool:
    if not bench.entries:
        return False
    bench.log["tail"] = bench.entries[-1]["seq"] - 1
    return True


@edit("C8", "one seq is given twice")
def _seq_twice(bench: Bench) -> bool:
    entry = bench.pick(bench.entries)
    if entry is None:
        return False
    keys = [f"{key}-again" for key in entry["keys"]]
    bench.records.append({**entry, "keys": keys, "t": bench.records[-1]["t"]})
    return True


@edit("C8", "an epoch decreases along the log")
def _epoch_back(bench: Bench) -> bool:
    entries = bench.entries
    place = bench.pick([n for n in range(1, len(entries)) if entries[n - 1]["epoch"] > 0])
    if place is None:
        return False
    entries[place]["epoch"] = entries[place - 1]["epoch"] - 1
    return True


@edit("C8", "an epoch has two terms")
def _two_terms(bench: Bench) -> bool:
    entries = bench.entries
    pairs = [(a, b) for a, b in pairwise(entries) if a["epoch"] == b["epoch"]]
    pair = bench.pick(pairs)
    if pair is None:
        return False
    pair[1]["term"] = "ffffffff"
    return True


@edit("C8", "two leaders have one epoch")
def _two_leaders(bench: Bench) -> bool:
    record = bench.pick(bench.all("elected"))
    if record is None:
        return False
    node = "b" if record["node"] != "b" else "c"
    bench.records.insert(bench.at(record) + 1, {**record, "node": node})
    return True


@edit("C8", "an epoch is fenced with two terms")
def _fenced_twice(bench: Bench) -> bool:
    record = bench.pick(bench.all("fence"))
    if record is None:
        return False
    bench.records.insert(bench.at(record) + 1, {**record, "term": "ffffffff"})
    return True


@edit("C8", "the log lets an epoch be fenced twice")
def _let_twice(bench: Bench) -> bool:
    record = bench.pick(bench.all("fenced"))
    if record is None:
        return False
    bench.records.insert(bench.at(record) + 1, {**record, "term": "ffffffff"})
    return True


@edit("C8", "somebody fences an epoch, and the log knows nothing of it")
def _never_fenced(bench: Bench) -> bool:
    record = bench.pick(bench.all("fenced"))
    told = [one for one in bench.all("fence") if record is not None and one["term"] == record["term"]]
    return bool(told) and record is not None and len(bench.all("fenced")) > 1 and bench.remove(record)


@edit("C8", "the row of the tail is of another term")
def _tail_term(bench: Bench) -> bool:
    if not bench.entries:
        return False
    bench.log["tail"] = later_epoch(bench.log["tail"])
    return True


# ---- C9: the fence


@edit("C9", "a commit is made under another epoch than its own")
def _commit_epoch(bench: Bench) -> bool:
    commit = bench.pick(bench.commits)
    if commit is None:
        return False
    commit["fence"] += bench.chance.choice((-1, 1))
    return True


@edit("C9", "a commit is made under another term than its own")
def _commit_term(bench: Bench) -> bool:
    commit = bench.pick(bench.commits)
    if commit is None:
        return False
    commit["fence_term"] = "ffffffff"
    return True


@edit("C9", "a commit comes after a later fence has returned")
def _commit_late(bench: Bench) -> bool:
    pairs = []
    for commit in bench.commits:
        at = bench.at(commit)
        later = [fence for fence in bench.all("fence") if fence["epoch"] > commit["epoch"] and bench.at(fence) > at]
        pairs += [(commit, fence) for fence in later[:1]]
    pair = bench.pick(pairs)
    return pair is not None and not bench.restored and bench.move_behind(*pair)


@edit("C9", "a commit overwrites the one before")
def _commit_over(bench: Bench) -> bool:
    commit = bench.pick(bench.commits[1:])
    if commit is None or bench.restored:
        return False
    commit["first"] -= 1
    return True


@edit("C9", "a fence returns a tail that is too low")
def _tail_low(bench: Bench) -> bool:
    held = bench.held()
    fences = [fence for fence in bench.all("fence") if seq_of(fence["tail"]) in held]
    fence = bench.pick(fences)
    if fence is None or bench.restored:
        return False
    fence["tail"] = shifted(fence["tail"], -1)
    return True


@edit("C9", "a fence returns a tail that is too high")
def _tail_high(bench: Bench) -> bool:
    held = bench.held()
    fences = [fence for fence in bench.all("fence") if seq_of(fence["tail"]) + 1 in held]
    fence = bench.pick(fences)
    if fence is None or bench.restored:
        return False
    fence["tail"] = shifted(fence["tail"], 1)
    return True


# ---- C12: durable


def _delivered(bench: Bench) -> list[tuple[Record, Record]]:
    """(event, the log's entry that holds it)"""
    held = bench.held()
    return [(life[n], held[seq_of(life[n]["position"])]) for life, n in bench.events()]


@edit("C12", "what was delivered is gone")
def _gone(bench: Bench) -> bool:
    pair = bench.pick(_delivered(bench))
    return pair is not None and bench.remove(pair[1])


@edit("C12", "what was delivered is of another term in the end")
def _replaced(bench: Bench) -> bool:
    pair = bench.pick(_delivered(bench))
    if pair is None or bench.restored:
        return False
    pair[1]["term"] = "ffffffff"
    return True


@edit("C12", "an event comes before its commit")
def _too_soon(bench: Bench) -> bool:
    pair = bench.pick(_delivered(bench) if bench.commits else [])
    if pair is None:
        return False
    event, entry = pair
    commits = [c for c in bench.commits if c["term"] == entry["term"] and c["first"] <= entry["seq"] <= c["last"]]
    return bool(commits) and bench.move_behind(commits[0], event)


@edit("C12", "an event is delivered that was never committed")
def _uncommitted(bench: Bench) -> bool:
    pair = bench.pick(_delivered(bench) if len(bench.commits) > 1 else [])
    if pair is None:
        return False
    entry = pair[1]
    commits = [c for c in bench.commits if c["term"] == entry["term"] and c["first"] <= entry["seq"] <= c["last"]]
    return bool(commits) and bench.remove(commits[0])


@edit("C12", "a leader counts as stored what was never committed")
def _counted(bench: Bench) -> bool:
    record = bench.pick(bench.all("append", lambda one: one["outcome"] == "stored") if bench.commits else [])
    if record is None:
        return False
    record["last"] += 1000
    return True


@edit("C12", "what stood in the log once is gone")
def _vanished(bench: Bench) -> bool:
    early = [r for r in bench.records[: bench.dump] if r["f"] == "entry"]
    held = bench.held()
    same = [held[r["seq"]] for r in early if r["seq"] in held and held[r["seq"]]["keys"] == r["keys"]]
    entry = bench.pick(same)
    if entry is None:
        return False
    if bench.chance.random() < 0.5:
        return bench.remove(entry)
    entry["keys"] = [f"{key}-other" for key in entry["keys"]]
    return len(span(entry)) > 0
