"""The judge: reads what the processes of a demo wrote down, and nothing else; imports only the standard library.

    python changefeed/demo/verdict.py FOLDER        prints the verdict as JSON; exit status 1 if it is not clean

A folder holds JSON lines, one record per line; `t` is CLOCK_MONOTONIC in nanoseconds, the same for all processes of a
machine; a `position` is LINEAGE.EPOCH.TERM.SEQ.

    publisher-*.jsonl    {"f": "send", "t", "publisher", "number", "changes": [[id, op, mode, blob], …]}   one group
                         {"f": "receipt", "t", "publisher", "number", "first", "last", "repeated"}
                         {"f": "refused", "t", "publisher", "number", "code", "message"}
    subscriber-*.jsonl   {"f": "start", "t", "position"}     null: from the beginning
                         {"f": "event", "t", "position", "publisher", "number", "group", "last", "id", "op", "mode",
                          "blob"}
    kills.jsonl          {"f": "kill", "t", "instance", "pid"}
    tree.json            {path: [mode, blob]}                the tree that every subscriber must end with

What is held against them:

lost        an acknowledged change that a subscriber did not handle although it lies after its start
repeated    one change at two places, or handled twice
skipped     a place in the feed that a subscriber jumped over
reordered   a seq at or below the one before it, a publisher's number below an earlier one of it, two
            subscribers that saw different events at one place
torn        a group that is not together, not whole, or whose end is not marked
foreign     an event that nobody sent, or not as it was sent; a receipt that names another place than the event has
unsettled   a change that was sent and neither acknowledged nor refused in the end
trees       subscribers whose tree, rebuilt from the events, differs from the one that must come out
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Key = tuple[str, int]
Content = tuple[str, str, str, str]

#: Faults are counted all and told in words up to so many of each kind.
TOLD_MAX = 5


@dataclass
class Group:
    """A group as its publisher sent it: `count` changes from `number` on."""

    publisher: str
    number: int
    count: int
    sent: int
    answered: int | None = None
    first: int = 0
    refused: bool = False


@dataclass
class Verdict:
    """What was found. clean: nothing is held against them and there was something to judge."""

    changes: int = 0
    receipts: int = 0
    repeated_receipts: int = 0
    events: dict[str, int] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    kills_counted: int = 0
    gaps_ms: list[float] = field(default_factory=list)
    epochs: int = 0
    trees_equal: int = 0
    trees: int = 0

    KINDS = ("lost", "skipped", "repeated", "reordered", "torn", "foreign", "unsettled", "trees")

    def hold(self, kind: str, sentence: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        told = self.faults.setdefault(kind, [])
        if len(told) < TOLD_MAX:
            told.append(sentence)

    @property
    def empty(self) -> list[str]:
        """Why there was nothing to judge."""
        reasons = []
        if not self.receipts:
            reasons.append("nothing was acknowledged")
        if not self.events or not all(self.events.values()):
            reasons.append("a subscriber handled nothing, or there was none")
        if self.kills and not self.kills_counted:
            reasons.append("no leader was killed with something in flight")
        return reasons

    @property
    def clean(self) -> bool:
        return not self.counts and not self.empty

    def summary(self) -> dict[str, Any]:
        gaps = sorted(self.gaps_ms)
        return {
            "clean": self.clean,
            "changes": self.changes,
            "receipts": self.receipts,
            "repeated_receipts": self.repeated_receipts,
            "events": self.events,
            **{kind: self.counts.get(kind, 0) for kind in self.KINDS},
            "trees_equal": f"{self.trees_equal} of {self.trees}",
            "kills": self.kills,
            "kills_counted": self.kills_counted,
            "epochs": self.epochs,
            "gap_ms_median": round(statistics.median(gaps), 1) if gaps else None,
            "gap_ms_worst": round(gaps[-1], 1) if gaps else None,
            "gaps_ms": [round(gap, 1) for gap in self.gaps_ms],
            "empty": self.empty,
            "faults": self.faults,
        }


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file. A last line without its end was cut off by a kill: it was never completed."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def seq_of(position: str) -> int:
    return int(position.rsplit(".", 1)[1])


def epoch_of(position: str) -> int:
    return int(position.split(".")[1])


def judge(folder: Path) -> Verdict:
    """The verdict on a folder of records."""
    tree_file = folder / "tree.json"
    tree = json.loads(tree_file.read_text()) if tree_file.exists() else None
    kills = folder / "kills.jsonl"
    return judge_records(
        {path.stem: read_lines(path) for path in sorted(folder.glob("publisher-*.jsonl"))},
        {path.stem: read_lines(path) for path in sorted(folder.glob("subscriber-*.jsonl"))},
        read_lines(kills) if kills.exists() else (),
        tree,
    )


def judge_records(
    publishers: Mapping[str, Iterable[dict[str, Any]]],
    subscribers: Mapping[str, Iterable[dict[str, Any]]],
    kills: Iterable[dict[str, Any]],
    tree: Mapping[str, Any] | None,
) -> Verdict:
    """The verdict on records, already read."""
    verdict = Verdict()
    contents: dict[Key, Content] = {}
    groups: dict[Key, Group] = {}
    receipts: list[tuple[int, int]] = []
    for records in publishers.values():
        _read_publisher(records, verdict, contents, groups, receipts)
    places: dict[int, tuple[Key, str]] = {}
    for name, records in subscribers.items():
        _Reader(name, verdict, contents, groups, places).read(records, tree)
    receipts.sort()
    verdict.epochs = len({epoch for _, epoch in receipts})
    for kill in sorted(kills, key=lambda record: int(record["t"])):
        _judge_kill(int(kill["t"]), verdict, groups, receipts)
    return verdict


def _read_publisher(
    records: Iterable[dict[str, Any]],
    verdict: Verdict,
    contents: dict[Key, Content],
    groups: dict[Key, Group],
    receipts: list[tuple[int, int]],
) -> None:
    mine: list[Group] = []
    for record in records:
        key = (record["publisher"], int(record["number"]))
        if record["f"] == "send":
            group = Group(*key, len(record["changes"]), int(record["t"]))
            mine.append(group)
            for offset, change in enumerate(record["changes"]):
                contents[key[0], key[1] + offset] = tuple(change)
                groups[key[0], key[1] + offset] = group
            verdict.changes += group.count
            continue
        if key not in groups:
            verdict.hold("foreign", f"{key[0]} got an answer to number {key[1]}, which it never sent")
            continue
        group = groups[key]
        if group.answered is not None:
            verdict.hold("repeated", f"{key[0]} got two answers to number {key[1]}")
        group.answered = int(record["t"])
        if record["f"] == "refused":
            group.refused = True
            continue
        group.first = seq_of(record["first"])
        if seq_of(record["last"]) - group.first + 1 != group.count:
            verdict.hold("torn", f"the receipt of {key[0]} number {key[1]} covers another count than was sent")
        verdict.receipts += 1
        verdict.repeated_receipts += bool(record["repeated"])
        receipts.append((group.answered, epoch_of(record["first"])))
    for group in mine:
        if group.answered is None:
            verdict.hold("unsettled", f"{group.publisher} number {group.number} has no answer")


class _Reader:
    """Judges one subscriber's records, in the order in which it wrote them."""

    def __init__(
        self,
        name: str,
        verdict: Verdict,
        contents: Mapping[Key, Content],
        groups: Mapping[Key, Group],
        places: dict[int, tuple[Key, str]],
    ) -> None:
        self.name = name
        self.verdict = verdict
        self.contents = contents
        self.groups = groups
        self.places = places
        self.seen: dict[Key, int] = {}
        self.numbers: dict[str, int] = {}
        self.at: int | None = None
        self.start = 0
        self.open: tuple[int, Group] | None = None
        self.tree: dict[str, tuple[str, str]] = {}

    def hold(self, kind: str, sentence: str) -> None:
        self.verdict.hold(kind, f"{self.name}: {sentence}")

    def read(self, records: Iterable[dict[str, Any]], tree: Mapping[str, Any] | None) -> None:
        self.verdict.events[self.name] = 0
        for record in records:
            if record["f"] == "start":
                self._started(record["position"])
            elif record["f"] == "event":
                self.verdict.events[self.name] += 1
                self._event(record)
        if self.open is not None:
            self.hold("torn", f"the group at seq {self.open[0]} never ended")
        for key, group in self.groups.items():
            if group.answered is None or group.refused or key in self.seen:
                continue
            seq = group.first + key[1] - group.number
            if seq > self.start:
                self.hold("lost", f"{key[0]} number {key[1]}, acknowledged at seq {seq}, never came")
        if tree is not None and self.start == 0:
            self.verdict.trees += 1
            wanted = {path: tuple(entry) for path, entry in tree.items()}
            if self.tree == wanted:
                self.verdict.trees_equal += 1
            else:
                wrong = sorted(set(self.tree.items()) ^ set(wanted.items()))
                self.hold("trees", f"{len(wrong)} differences in the tree, the first at {wrong[0][0]!r}")

    def _started(self, position: str | None) -> None:
        seq = 0 if position is None else seq_of(position)
        if self.at is None:
            self.start = self.at = seq
        elif seq != self.at:
            self.hold("reordered", f"resumed at seq {seq}, but the last event that it wrote down was {self.at}")

    def _event(self, record: dict[str, Any]) -> None:
        seq, key = seq_of(record["position"]), (record["publisher"], int(record["number"]))
        content = (record["id"], record["op"], record["mode"], record["blob"])
        what = f"{key[0]} number {key[1]}"
        self._place(seq, key, record["position"])
        if key in self.seen:
            self.hold("repeated", f"{what} came at seq {self.seen[key]} and again at seq {seq}")
        elif key[1] <= self.numbers.get(key[0], 0):
            self.hold("reordered", f"{what} came after its number {self.numbers[key[0]]}")
        self.seen[key] = seq
        self.numbers[key[0]] = max(key[1], self.numbers.get(key[0], 0))
        if key not in self.groups:
            self.hold("foreign", f"{what} at seq {seq} was never sent")
            return
        group = self.groups[key]
        if self.contents[key] != content:
            self.hold("foreign", f"{what} at seq {seq} is not what was sent")
        if group.refused:
            self.hold("foreign", f"{what} at seq {seq} had been refused")
        elif group.answered is not None and group.first + key[1] - group.number != seq:
            self.hold("foreign", f"{what} is at seq {seq}, but its receipt says {group.first + key[1] - group.number}")
        self._group(record, group, seq, key)
        if record["op"] == "delete":
            self.tree.pop(record["id"], None)
        else:
            self.tree[record["id"]] = (record["mode"], record["blob"])

    def _place(self, seq: int, key: Key, position: str) -> None:
        """Events follow each other without a gap, and are the same for everybody."""
        if self.at is not None and seq != self.at + 1:
            self.hold("reordered" if seq <= self.at else "skipped", f"seq {seq} came after seq {self.at}")
        self.at = max(seq, self.at or 0)
        if self.places.setdefault(seq, (key, position)) != (key, position):
            self.hold("reordered", f"at seq {seq} it saw {key} ({position}), another one saw {self.places[seq]}")

    def _group(self, record: dict[str, Any], group: Group, seq: int, key: Key) -> None:
        first = seq - (key[1] - group.number)
        ends = key[1] == group.number + group.count - 1
        if record["group"] != first:
            self.hold("torn", f"seq {seq} says that its group begins at {record['group']}, it begins at {first}")
        if record["last"] != ends:
            self.hold("torn", f"seq {seq} is marked as {'' if record['last'] else 'not '}the last of its group")
        if self.open is not None and self.open[1] is not group:
            self.hold("torn", f"seq {seq} interrupts the group at seq {self.open[0]}")
        if self.open is None and key[1] != group.number and seq - 1 != self.start:
            self.hold("torn", f"seq {seq} is inside a group whose beginning did not come before it")
        self.open = None if ends else (first, group)


def _judge_kill(when: int, verdict: Verdict, groups: Mapping[Key, Group], receipts: list[tuple[int, int]]) -> None:
    """How long there were no receipts around a kill; it counts only if something was in flight.

    The answers that the dead leader had already sent may still arrive after the kill. So the gap is the longest stretch
    without a receipt between the last one before the kill and the first one of a newer epoch.
    """
    verdict.kills += 1
    in_flight = any(
        group.sent < when and (group.answered is None or group.answered > when)
        for key, group in groups.items()
        if key[1] == group.number
    )
    before = [index for index, (time, _) in enumerate(receipts) if time <= when]
    if not in_flight or not before:
        return
    verdict.kills_counted += 1
    epoch = max(receipts[index][1] for index in before)
    times = [receipts[before[-1]][0]]
    for time, of_epoch in receipts[before[-1] + 1 :]:
        times.append(time)
        if of_epoch > epoch:
            break
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if steps:
        verdict.gaps_ms.append(max(steps) / 1e6)


def main(arguments: list[str]) -> int:
    """Judge a folder and print the verdict."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python changefeed/demo/verdict.py FOLDER", file=sys.stderr)
        return 2
    verdict = judge(Path(arguments[0]))
    print(json.dumps(verdict.summary(), indent=2))
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
