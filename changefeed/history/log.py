"""The log of a history, as far as it is known: what stood at each seq, and what a filter selects of it. Pure.

The filter is worked out here once more, from the words of the contract and not with the server's code: a server whose
filter is wrong must not be judged by itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Held(NamedTuple):
    """One change in a log.

    stamp: "LINEAGE.EPOCH.TERM" of its entry. number: its own, not its batch's. group, group_last: the seqs of its
    group's ends. head: [resource, id, op, fields or None]; None where nobody told. record: the index of the entry's.
    """

    seq: int
    stamp: str
    key: str
    digest: str
    publisher: str
    incarnation: int
    number: int
    group: int
    group_last: int
    head: Sequence[Any] | None
    record: int

    @property
    def epoch(self) -> int:
        return int(self.stamp.split(".")[1])


class Log:
    """One log. floor: nothing up to there is held any more (it may still be known). tail: its last seq.

    at: seq -> what stood there. place: key -> the first seq where it stands. clashes: what one dump has at a seq that
    was taken already. whole: whether the history holds a dump of it. known_after: above it everything is known.
    """

    def __init__(self, lineage: str, floor: int, tail: int, whole: bool) -> None:
        self.lineage = lineage
        self.floor = floor
        self.tail = tail
        self.whole = whole
        self.at: dict[int, Held] = {}
        self.place: dict[str, int] = {}
        self.clashes: list[Held] = []
        self.seqs: list[int] = []
        self.known_after = floor
        self._selected: dict[str, list[int]] = {}

    def finish(self) -> None:
        """Everything is in `at`: make the rest."""
        seqs = self.seqs = sorted(self.at)
        place, at = self.place, self.at
        for seq in reversed(seqs):
            place[at[seq].key] = seq
        # Above known_after everything is known, as far down as nothing is missing.
        known = self.tail
        for seq in reversed(seqs):
            if seq != known:
                if seq > known:
                    continue
                break
            known -= 1
        # A hole above the floor is a fault of the log, not ignorance.
        self.known_after = min(known, self.floor) if self.whole else known

    def between(self, after: int, upto: int) -> list[int]:
        """Known seqs in (after, upto]."""
        seqs = self.seqs
        return seqs[bisect_right(seqs, after) : bisect_right(seqs, upto)]

    def selected(self, filter: Mapping[str, Any] | None) -> list[int]:
        """The seqs that a filter selects, in order. Raises KeyError, with the key, where nobody told the head."""
        if not any((filter or {}).values()):
            return self.seqs
        assert filter is not None
        name = repr(sorted(filter.items(), key=lambda item: item[0]))
        found = self._selected.get(name)
        if found is None:
            at = self.at
            found = self._selected[name] = [seq for seq in self.seqs if selects(filter, at[seq])]
        return found

    def stands(self, stamp: str, seq: int) -> bool:
        """Whether a position is of this log, as far as that is known: the entry that holds seq is of that term."""
        held = self.at.get(seq)
        if held is not None:
            return held.stamp == stamp
        return stamp.startswith(self.lineage + ".") and seq <= self.known_after and (seq > 0 or is_beginning(stamp))

    def group_start(self, seq: int, stamp: str | None = None, filter: Mapping[str, Any] | None = None) -> int:
        """The seq before the first event of the group that seq lies inside; seq itself if a group ends there, if
        something of another stamp stands there, or if a filter selects nothing of the group behind seq: then whoever
        has that filter has had the group whole."""
        held = self.at.get(seq)
        if held is None or seq == held.group_last or stamp not in (None, held.stamp):
            return seq
        if any((filter or {}).values()):
            try:
                selected = self.selected(filter)
            except KeyError:  # nobody told what the filter selects
                return held.group - 1
            following = first_above(selected, seq)
            if following == len(selected) or selected[following] > held.group_last:
                return seq
        return held.group - 1

    def groups_after(self, seq: int, stamp: str, filter: Mapping[str, Any] | None) -> int | None:
        """After which seq whole groups begin for a position; None where nothing tells how far its group reaches."""
        held = self.at.get(seq)
        if held is None or held.stamp != stamp:
            return seq if seq in (0, self.floor) else None
        return self.group_start(seq, stamp, filter)


def is_beginning(stamp: str) -> bool:
    return stamp.endswith(".0.00000000")


def selects(filter: Mapping[str, Any], held: Held) -> bool:
    """Whether a filter selects a change: every given part must match; fields narrow updates that name their fields."""
    if held.head is None:
        raise KeyError(held.key)
    resource, id, op, fields = held.head
    resources, ids, ops = filter.get("resources"), filter.get("ids"), filter.get("ops")
    if ids and id not in ids:
        return False
    if ops and op not in ops:
        return False
    if not resources:
        return True
    if resource not in resources:
        return False
    wanted = resources[resource]
    return not (wanted and op == "update" and fields) or any(name in fields for name in wanted)


def first_above(seqs: Sequence[int], seq: int) -> int:
    """The index of the first of sorted seqs above seq."""
    return bisect_right(seqs, seq)
