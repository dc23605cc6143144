"""Entries -> the runs of an events message, cut out without re-encoding; and back to events. Pure.

An entry that nobody filters travels as it stands in the log: `run_of` hands on the very bytes object. Otherwise the
wanted changes are cut out of it and joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise, repeat

from changefeed.batch import Entry
from changefeed.change import Event, ListedEvent
from changefeed.errors import BadMessage
from changefeed.wire.changes import ends_of, heads, raw_heads
from changefeed.wire.messages import Events, Listed, Run

#: (resource, id, op, fields) -> whether the subscriber wants it. See serving/filters.py.
Wanted = Callable[[str, str, str, tuple[str, ...] | None], bool]


def run_of(entry: Entry, after: int, wanted: Wanted | None = None) -> Run | None:
    """The events of an entry with seqs above `after` that are wanted; None if there are none.

    An entry without a filter is shared, not copied. Raises BadMessage if the entry's payload is damaged.
    """
    if after >= entry.last_seq:
        return None
    sizes = entry.sizes
    if wanted is None:
        if after < entry.seq:
            groups = None if len(sizes) == entry.count else tuple(_groups(entry))
            return _run(entry, entry.seq, groups, entry.payload)
        skipped = after + 1 - entry.seq
        ends = ends_of(entry.payload)
        _expect(len(ends), entry.count)
        groups = None if len(sizes) == entry.count else tuple(_rest(_groups(entry), after))
        return _run(entry, after + 1, groups, entry.payload[ends[skipped - 1] :])
    found = heads(entry.payload)
    _expect(len(found), entry.count)
    seqs: list[int] = []
    parts: list[bytes] = []
    payload = entry.payload
    for seq, (resource, id, op, fields, start, end) in enumerate(found, entry.seq):
        if seq > after and wanted(resource, id, op, fields):
            seqs.append(seq)
            parts.append(payload[start:end])
    if not seqs:
        return None
    groups = None if len(sizes) == entry.count else _groups_of(seqs, entry)
    if len(seqs) == entry.count:
        return _run(entry, entry.seq, groups, payload)
    dense = seqs[-1] - seqs[0] == len(seqs) - 1
    return _run(entry, seqs[0] if dense else tuple(seqs), groups, b"".join(parts))


def _run(entry: Entry, seqs: int | tuple[int, ...], groups: tuple[tuple[int, int], ...] | None, payload: bytes) -> Run:
    return Run(entry.epoch, entry.term, entry.time, entry.publisher, seqs, groups, payload)


def _expect(found: int, count: int) -> None:
    if found != count:
        raise BadMessage(f"the entry's payload holds {found} changes, but its sizes add up to {count}")


def _groups(entry: Entry) -> Iterator[tuple[int, int]]:
    """(first seq, size) of each group of an entry."""
    return zip(accumulate(entry.sizes, initial=entry.seq), entry.sizes, strict=False)


def _rest(groups: Iterator[tuple[int, int]], after: int) -> Iterator[tuple[int, int]]:
    """The groups that have events above `after`, each with how many."""
    for first, size in groups:
        left = min(size, first + size - 1 - after)
        if left > 0:
            yield first, left


def _groups_of(seqs: Sequence[int], entry: Entry) -> tuple[tuple[int, int], ...] | None:
    """The groups of chosen seqs with how many were chosen of each; None if each is alone and the first of its group."""
    made: list[tuple[int, int]] = []
    groups = _groups(entry)
    first, size = next(groups)
    count = 0
    for seq in seqs:
        while seq >= first + size:
            if count:
                made.append((first, count))
                count = 0
            first, size = next(groups)
        count += 1
    made.append((first, count))
    if len(made) == len(seqs) and all(first == seq for (first, _), seq in zip(made, seqs, strict=True)):
        return None
    return tuple(made)


def events_of(events: Events, lineage: str) -> list[Event]:
    """The events of a frame, in order; `last` is set on the last event of each group in it.

    Bodies stay encoded until they are asked for. Raises BadMessage if the frame contradicts itself.
    """
    made: list[Event] = []
    for run in events.runs:
        found = raw_heads(run.payload)
        count = len(found)
        seqs = range(run.seqs, run.seqs + count) if isinstance(run.seqs, int) else run.seqs
        if len(seqs) != count:
            raise BadMessage(f"events: a run has {len(seqs)} seqs for {count} changes")
        if not found or seqs[0] <= events.after or seqs[-1] > events.to.seq:
            raise BadMessage(f"events: a run is empty or not within ({events.after}, {events.to.seq}]")
        stamp = (lineage, run.epoch, run.term, run.time, run.publisher)
        if run.groups is None:
            groups: Sequence[int] = seqs
            lasts: Iterator[bool] = repeat(True, count)
        else:
            groups = [first for first, size in run.groups for _ in range(size)]
            lasts = (index == size for _, size in run.groups for index in range(1, size + 1))
            _check_groups(run.groups, groups, seqs)
        made += map(Event.from_wire, found, repeat(stamp), seqs, groups, lasts)
    return made


def _check_groups(pairs: Sequence[tuple[int, int]], groups: Sequence[int], seqs: Sequence[int]) -> None:
    if len(groups) != len(seqs):
        raise BadMessage(f"events: a run's groups have {len(groups)} events, but it has {len(seqs)} changes")
    if any(a >= b for (a, _), (b, _) in pairwise(pairs)) or any(map(int.__gt__, groups, seqs)):
        raise BadMessage("events: a run's groups are out of order")


def listed_of(listed: Listed, lineage: str) -> list[Event]:
    """The events of a part of a list, in order; each is a group of its own.

    Raises BadMessage if the part contradicts itself: more than one change in a run, two of one object, out of order.
    """
    runs = listed.runs
    payload = b"".join(run.payload for run in runs)
    ends = ends_of(payload) if payload else []
    if ends != list(accumulate(len(run.payload) for run in runs)):
        raise BadMessage("listed: a run does not hold exactly one change")
    found = raw_heads(payload, len(ends)) if runs else []
    try:
        # Text is compared by code points here, which is the order of its UTF-8 bytes.
        wrong = any(head[:2] >= after[:2] for head, after in pairwise(found))
    except TypeError:
        raise BadMessage("listed: a resource or id that is not text") from None
    if wrong:
        raise BadMessage("listed: two events of one object, or objects out of order")
    made: list[Event] = []
    for run, head in zip(runs, found, strict=True):
        if not isinstance(run.seqs, int):
            raise BadMessage("listed: a run must have one seq")
        stamp = (lineage, run.epoch, run.term, run.time, run.publisher)
        made.append(ListedEvent.from_wire(head, stamp, run.seqs, run.seqs, True))
    return made
