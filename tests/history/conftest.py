"""Histories by hand: one line is one record.

    p0 submits o1: a b           p2(importer)#2 submits o3: d        of a named publisher, in its second life
    p0 acked o1 1.1-2            the receipt: epoch 1, seqs 1 to 2   (… repeated)
    p0 failed o1 log-full        p0 unknown o1    p0 lost    p0 quit    p0 quit abandoned
    a elected 1                  a fence 1 tail 0                    a append 1 1-2 stored      a deposed 1
    b repeat importer 1          store commit 1 1-2 (… under 2)      store trimmed 4
    store fenced 1
    s0 reader from beginning     s1 reader {"ids": ["c"]} groups from 1.2
    s0 connected 1.2 (… asked 1.2)     s0 event 1.1 a (… group 1 more)     s0 bookmark 1.2     s0 handled 1.2
    s0 refused position-too-old 1.2
    nemesis fault 1 kill a expects seen    nemesis effect 1 seen    nemesis over 1   nemesis heal 10   nemesis converged
    nemesis want acks 1          nemesis limit kill 3                nemesis restored 4        nemesis sighting name
    end log 2.4 floor 0          end entry 1.1 p0-1/1/1: a b | c     (publisher/incarnation/number: groups)
    end effects s0 from 0 at 2.4: a b c

A place is EPOCH.SEQ; "1/ffffffff.4" names another term than the epoch's own, "bb:1.4" another lineage, "0" is the
beginning. "a!" is change a with other bytes. "@2.5" before a line: at that many seconds; otherwise 1 ms after the line
before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

Record = dict[str, Any]
LINEAGE = "00000000000000aa"


def place(text: str) -> str:
    """The position of a place."""
    lineage, _, rest = text.rpartition(":")
    epoch, _, seq = rest.rpartition(".")
    epoch, _, term = epoch.partition("/")
    number = int(epoch or 0)
    return f"{(lineage * 8) or LINEAGE}.{number}.{term or format(number, '08x')}.{seq}"


def digest(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()[:16]


def key(word: str) -> str:
    return word.rstrip("!")


def seqs(text: str) -> dict[str, int]:
    first, _, last = text.partition("-")
    return {"first": int(first), "last": int(last or first)}


def head(word: str) -> list[Any]:
    """Changes a to z are updates of vms; "x:delete" is of that op, "nic/x" of that resource, "x+f+g" names fields."""
    word = key(word)
    word, *fields = word.split("+")
    word, _, op = word.partition(":")
    resource, _, id = word.rpartition("/")
    return [resource or "vm", id, op or "update", fields or None]


def facts(f: str, rest: str, name: str | None) -> tuple[str, dict[str, Any]]:
    """The kind and the facts of a line."""
    if f in PUBLISHERS:
        return PUBLISHERS[f](rest, name)
    if f in LEADERS:
        return LEADERS[f](rest)
    if f in READERS:
        return READERS[f](rest)
    return OTHERS[f](rest)


def _submits(rest: str, name: str | None) -> tuple[str, dict[str, Any]]:
    op, _, words = rest.partition(":")
    changes = words.split()
    return "submit", {
        "op": op,
        "name": name,
        "keys": [key(word) for word in changes],
        "digests": [digest(word) for word in changes],
        "heads": [head(word) for word in changes],
    }


def _acked(rest: str, name: str | None) -> tuple[str, dict[str, Any]]:
    op, where, *more = rest.split()
    begin, _, last = where.partition("-")
    first = place(begin)
    stamp = first.rpartition(".")[0]
    return "acked", {"op": op, "first": first, "last": f"{stamp}.{last}", "repeated": more == ["repeated"]}


PUBLISHERS: dict[str, Callable[[str, str | None], tuple[str, dict[str, Any]]]] = {
    "submits": _submits,
    "acked": _acked,
    "failed": lambda rest, name: ("failed", {"op": rest.split()[0], "code": rest.split()[1]}),
    "unknown": lambda rest, name: ("unknown", {"op": rest, "code": "outcome-unknown"}),
    "lost": lambda rest, name: ("lost", {"code": "acknowledged-lost"}),
    "quit": lambda rest, name: ("quit", {"abandoned": rest == "abandoned"}),
}


def _term(epoch: str) -> dict[str, Any]:
    number, _, term = epoch.partition("/")
    return {"epoch": int(number), "term": term or f"{int(number):08x}"}


def _append(rest: str) -> tuple[str, dict[str, Any]]:
    epoch, where, outcome = rest.split()
    return "append", {"epoch": int(epoch), **seqs(where), "outcome": outcome}


def _commit(rest: str) -> tuple[str, dict[str, Any]]:
    epoch, where, *more = rest.split()
    fence = _term(more[1] if more else epoch)
    return "commit", {**_term(epoch), **seqs(where), "fence": fence["epoch"], "fence_term": fence["term"]}


LEADERS: dict[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "elected": lambda rest: ("elected", {**_term(rest), "why": "start"}),
    "fence": lambda rest: ("fence", {**_term(rest.split()[0]), "tail": place(rest.split()[2])}),
    "append": _append,
    "deposed": lambda rest: ("deposed", {"epoch": int(rest), "why": "fenced"}),
    "repeat": lambda rest: ("repeat", {"publisher": rest.split()[0], "number": int(rest.split()[1])}),
    "commit": _commit,
    "fenced": lambda rest: ("fenced", _term(rest)),
    "trimmed": lambda rest: ("trimmed", {"floor": int(rest)}),
}


def _reader(rest: str) -> tuple[str, dict[str, Any]]:
    text, _, start = rest.rpartition("from ")
    groups = text.strip().endswith("groups")
    filter = text.strip().removesuffix("groups").strip()
    if start not in ("beginning", "now"):
        start = place(start)
    return "reader", {"filter": json.loads(filter) if filter else None, "groups": groups, "start": start}


def _event(rest: str) -> tuple[str, dict[str, Any]]:
    where, word, *more = rest.split()
    position = place(where)
    group = int(more[more.index("group") + 1]) if "group" in more else int(position.rpartition(".")[2])
    return "event", {
        "position": position,
        "key": key(word),
        "digest": digest(word),
        "publisher": more[more.index("by") + 1] if "by" in more else None,
        "group": group,
        "last": "more" not in more,
    }


def _connected(rest: str) -> tuple[str, dict[str, Any]]:
    where, *more = rest.split()
    asked = {"asked": place(more[1])} if more else {}
    return "connected", {"instance": "a", "position": place(where), **asked}


def _refused(rest: str) -> tuple[str, dict[str, Any]]:
    code, *where = rest.split()
    position = place(where[0]) if where else None
    return "refused", {"code": code, "position": position, "earliest": None, "head": None}


READERS: dict[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "reader": _reader,
    "connected": _connected,
    "event": _event,
    "bookmark": lambda rest: ("bookmark", {"position": place(rest)}),
    "handled": lambda rest: ("handled", {"position": place(rest)}),
    "refused": _refused,
}


def _fault(rest: str) -> tuple[str, dict[str, Any]]:
    id, kind, target, *more = rest.split()
    expects = {"expects": more[1:]} if more else {}
    return "fault", {"id": int(id), "kind": kind, "target": target, "on": {}, **expects}


def _log(rest: str) -> tuple[str, dict[str, Any]]:
    tail, _, floor = rest.split()
    position = place(tail)
    return "log", {"lineage": position.split(".")[0], "tail": position, "floor": int(floor)}


def _entry(rest: str) -> tuple[str, dict[str, Any]]:
    where, who, *_ = rest.partition(": ")[0].split()
    publisher, incarnation, number = who.split("/")
    lineage, epoch, term, seq = place(where).split(".")
    groups = [group.split() for group in rest.partition(": ")[2].split("|")]
    words = [word for group in groups for word in group]
    return "entry", {
        "epoch": int(epoch),
        "term": term,
        "seq": int(seq),
        "lineage": lineage,
        "publisher": publisher,
        "incarnation": int(incarnation),
        "number": int(number),
        "sizes": [len(group) for group in groups],
        "keys": [key(word) for word in words],
        "digests": [digest(word) for word in words],
    }


def _effects(rest: str) -> tuple[str, dict[str, Any]]:
    match = re.fullmatch(r"(\w+) from (\S+)(?: at ([^:]+))?:(.*)", rest)
    assert match is not None, rest
    cursor = {"position": place(match[3])} if match[3] else {}
    return "effects", {
        "reader": match[1],
        "origin": None if match[2] == "-" else place(match[2]),
        "keys": match[4].split(),
        **cursor,
    }


def _restored(rest: str) -> tuple[str, dict[str, Any]]:
    tail, *lineage = rest.split()
    return "restored", {"lineage": lineage[0] * 8 if lineage else LINEAGE, "tail": int(tail), "was": LINEAGE}


OTHERS: dict[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "fault": _fault,
    "effect": lambda rest: ("effect", {"id": int(rest.split()[0]), "what": rest.split()[1]}),
    "over": lambda rest: ("over", {"id": int(rest)}),
    "heal": lambda rest: ("heal", {"bound_s": float(rest)}),
    "converged": lambda rest: ("converged", {}),
    "want": lambda rest: ("want", {"name": rest.split()[0], "count": int(rest.split()[1])}),
    "limit": lambda rest: ("limit", {"kind": rest.split()[0], "receipts_s": float(rest.split()[1])}),
    "restored": _restored,
    "sighting": lambda rest: ("sighting", {"name": rest}),
    "log": _log,
    "entry": _entry,
    "effects": _effects,
}

LINE = re.compile(r"(?:@(\S+) )?(\w+)(?:\((\w+)\))?(?:#(\d+))? (\w+) ?(.*)")


def told(lines: str | Sequence[str]) -> list[Record]:
    """The history that lines tell. What an event lacks of its publisher is that of the entry with its key."""
    records: list[Record] = []
    t = 0
    for line in lines.strip().splitlines() if isinstance(lines, str) else lines:
        match = LINE.fullmatch(line.strip())
        assert match is not None, line
        t = int(float(match[1]) * 1e9) if match[1] else t + 1_000_000
        f, rest = facts(match[5], match[6], match[3])
        node = match[2]
        if match[5] in READERS:
            rest = {"reader": node, **rest}
        records.append({"t": t, "node": node, "life": int(match[4] or 1), "f": f, "feed": "vmapi", **rest})
    publishers = {word: r["publisher"] for r in records if r["f"] == "entry" for word in r["keys"]}
    for record in records:
        if record["f"] == "event" and record["publisher"] is None:
            record["publisher"] = publishers.get(record["key"], "nobody")
    return records


@pytest.fixture(name="told")
def told_fixture() -> Callable[[str | Sequence[str]], list[Record]]:
    return told
