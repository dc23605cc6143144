"""Walks a feed's log from its floor to its tail and proves that it is whole, or names the first fault.

What is checked: every entry follows the one before (seq, digest chain, time); its bytes match their digest; it is of
the epoch and term that the history of terms gives for its seq, and epochs only grow; each publisher's entries form a
chain (`after` is the last number of the entry before); the row for the tail is what the walk arrives at; the rows for
publishers agree with their last entries; the snapshot is not folded beyond the tail, and no row of it is of an event
beyond what is folded. (Not that its rows are what folding gives: what was trimmed cannot be folded again.)

The walk streams: memory is bounded by READ_BYTES and PUBLISHERS_KEPT, whatever the log's size. The log may be written
and trimmed meanwhile: the walk ends at the tail that it saw first, and begins again if it is overtaken by a trim.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from changefeed.batch import Entry, batch_digest, chain, chain_start
from changefeed.change import NO_TERM, Key
from changefeed.errors import LogDamaged, TailMoved, TrimmedAway
from changefeed.log import EpochRecord, FeedLog, Look

READ_BYTES: Final = 4 * 2**20
#: (publisher, incarnation) pairs whose last number is remembered; of others it is asked of the log.
PUBLISHERS_KEPT: Final = 100_000


@dataclass(frozen=True, slots=True)
class LogFault:
    """The first thing that is wrong: `seq` is that of the entry in question (the tail's for a fault of the rows)."""

    seq: int
    what: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What a walk found. fault: None if the log is whole; the counts are of what was walked before it."""

    feed: str
    lineage: str
    floor: int
    tail: int
    entries: int
    events: int
    groups: int
    payload_bytes: int
    epochs: int
    publishers: int
    fault: LogFault | None


class _Fault(Exception):
    def __init__(self, seq: int, what: str) -> None:
        super().__init__(what)
        self.fault = LogFault(seq, what)


@dataclass
class _Walk:
    """The state of a walk: where it stands, and what the next entry must continue."""

    look: Look
    seq: int
    digest: bytes
    time: int
    epoch: int
    record: int = -1
    entries: int = 0
    events: int = 0
    groups: int = 0
    payload_bytes: int = 0
    stored_bytes: int = 0
    epochs_seen: int = 0
    publishers: int = 0
    last_numbers: OrderedDict[tuple[str, int], tuple[int, int]] = field(default_factory=OrderedDict)

    @classmethod
    def at_floor(cls, look: Look) -> _Walk:
        floor = look.floor
        return cls(look, floor.seq, floor.digest, floor.time, floor.epoch)


async def verify_log(log: FeedLog) -> Verified:
    """Walk the log. Raises what `look` and `read` raise, except LogDamaged, which is a fault."""
    while True:
        try:
            look = await log.look()
        except LogDamaged as error:
            return Verified(log.feed, log.lineage, 0, 0, 0, 0, 0, 0, 0, 0, LogFault(0, str(error)))
        walk = _Walk.at_floor(look)
        fault: LogFault | None = None
        try:
            _check_rows(log, look)
            while walk.seq < look.tail.seq:
                for entry in await _read(log, walk):
                    if walk.seq < look.tail.seq:
                        await _check_entry(log, walk, entry)
            _check_end(walk)
            await _check_publishers(log, walk)
            await _check_snapshot(log)
        except TrimmedAway:
            continue
        except _Fault as found:
            fault = found.fault
        except LogDamaged as error:
            fault = LogFault(walk.seq + 1, str(error))
        return Verified(
            log.feed,
            look.lineage,
            look.floor.seq,
            walk.seq,
            walk.entries,
            walk.events,
            walk.groups,
            walk.payload_bytes,
            walk.epochs_seen,
            walk.publishers,
            fault,
        )


async def _read(log: FeedLog, walk: _Walk) -> list[Entry]:
    try:
        entries = await log.read(walk.seq, READ_BYTES)
    except LogDamaged:
        # Somewhere among them: go on one by one up to the first that cannot be read.
        try:
            entries = await log.read(walk.seq, 0)
        except LogDamaged as error:
            raise _Fault(walk.seq + 1, str(error)) from error
    if not entries:
        raise _Fault(walk.seq + 1, f"the log holds nothing after seq {walk.seq}, yet ends at {walk.look.tail.seq}")
    return entries


def _check_rows(log: FeedLog, look: Look) -> None:
    floor, tail = look.floor, look.tail
    if floor.seq > tail.seq:
        raise _Fault(tail.seq, f"the log begins at seq {floor.seq}, after its end at seq {tail.seq}")
    if floor.seq == 0 and (floor.epoch, floor.term, floor.digest) != (0, NO_TERM, chain_start(look.lineage, log.feed)):
        raise _Fault(0, "the floor of a log that was never trimmed must be its beginning")
    if look.folded is not None and look.folded > tail.seq:
        raise _Fault(tail.seq, f"the snapshot is folded up to seq {look.folded}, beyond the tail")
    before: EpochRecord | None = None
    for record in look.epochs:
        if before is not None and (record.epoch <= before.epoch or record.first < before.first):
            raise _Fault(
                record.first,
                f"epoch {record.epoch} from seq {record.first} comes after epoch {before.epoch} from {before.first}",
            )
        before = record
    fence = (look.fence.epoch, look.fence.term)
    if fence != ((before.epoch, before.term) if before is not None else (0, NO_TERM)):
        raise _Fault(tail.seq, "the fence is not that of the newest term in the history")


async def _check_entry(log: FeedLog, walk: _Walk, entry: Entry) -> None:
    seq = entry.seq
    if seq != walk.seq + 1:
        raise _Fault(walk.seq + 1, f"after seq {walk.seq} comes seq {seq}")
    if not entry.sizes or min(entry.sizes) < 1:
        raise _Fault(seq, "the entry holds an empty group or none")
    if batch_digest(entry.sizes, entry.payload) != entry.batch_digest:
        raise _Fault(seq, "the entry's bytes do not match their digest")
    if chain(walk.digest, walk.look.lineage, entry) != entry.digest:
        raise _Fault(seq, "the entry does not continue the digest chain")
    if entry.time < walk.time:
        raise _Fault(seq, f"the entry's time {entry.time} is before that of the entry before it, {walk.time}")
    _check_epoch(walk, entry)
    await _check_number(log, walk, entry)
    if entry.incarnation > walk.look.incarnations:
        raise _Fault(
            seq, f"incarnation {entry.incarnation} was never given: the counter stands at {walk.look.incarnations}"
        )
    walk.seq, walk.digest, walk.time = entry.last_seq, entry.digest, entry.time
    walk.entries += 1
    walk.events += entry.count
    walk.groups += len(entry.sizes)
    walk.payload_bytes += len(entry.payload)
    walk.stored_bytes += entry.bytes


def _check_epoch(walk: _Walk, entry: Entry) -> None:
    if entry.epoch < walk.epoch:
        raise _Fault(entry.seq, f"the entry is of epoch {entry.epoch}, after one of epoch {walk.epoch}")
    epochs = walk.look.epochs
    while walk.record + 1 < len(epochs) and epochs[walk.record + 1].first <= entry.seq:
        walk.record += 1
    record = epochs[walk.record] if walk.record >= 0 else None
    if record is None or (record.epoch, record.term) != (entry.epoch, entry.term):
        found = "none" if record is None else f"{record.epoch}.{record.term}"
        raise _Fault(
            entry.seq, f"the entry is of term {entry.epoch}.{entry.term}; the history of terms gives {found} there"
        )
    if walk.record + 1 < len(epochs) and epochs[walk.record + 1].first <= entry.last_seq:
        raise _Fault(entry.seq, f"epoch {epochs[walk.record + 1].epoch} begins inside the entry")
    walk.epochs_seen += entry.epoch != walk.epoch or walk.entries == 0
    walk.epoch = entry.epoch


async def _check_number(log: FeedLog, walk: _Walk, entry: Entry) -> None:
    key = (entry.publisher, entry.incarnation)
    who = f"publisher {entry.publisher} (incarnation {entry.incarnation})"
    if not 0 <= entry.after < entry.number:
        raise _Fault(entry.seq, f"{who}: number {entry.number} follows {entry.after}")
    before = walk.last_numbers.pop(key, None)
    if before is None and entry.after and len(walk.last_numbers) >= PUBLISHERS_KEPT:
        # Its last entry may have been walked and then forgotten: the log knows.
        found = await log.find_batch(*key, entry.after)
        before = None if found is None else (found.number + found.count - 1, found.last_seq)
    if before is None:
        walk.publishers += 1
        if entry.after and not walk.look.floor.seq:
            raise _Fault(entry.seq, f"{who}: its first entry follows number {entry.after}, which the log does not hold")
    elif before[0] != entry.after:
        raise _Fault(
            entry.seq, f"{who}: number {entry.number} follows {entry.after}, but the last one stored is {before[0]}"
        )
    walk.last_numbers[key] = (entry.number + entry.count - 1, entry.last_seq)
    if len(walk.last_numbers) > PUBLISHERS_KEPT:
        walk.last_numbers.popitem(last=False)


def _check_end(walk: _Walk) -> None:
    tail, floor = walk.look.tail, walk.look.floor
    if (walk.seq, walk.digest) != (tail.seq, tail.digest):
        raise _Fault(
            tail.seq, f"the last entry ends at seq {walk.seq}; the row for the tail says {tail.seq}, or another digest"
        )
    if not walk.entries and (floor.epoch, floor.term, floor.digest, floor.time) != (
        tail.epoch,
        tail.term,
        tail.digest,
        tail.time,
    ):
        raise _Fault(tail.seq, "the log holds no entry, and yet its rows for floor and tail differ")
    if walk.entries and (tail.epoch, tail.time) != (walk.epoch, walk.time):
        raise _Fault(tail.seq, "the row for the tail is of another epoch or time than the last entry")
    if walk.stored_bytes != walk.look.bytes:
        raise _Fault(tail.seq, f"the entries take {walk.stored_bytes} bytes; the log counts {walk.look.bytes}")


async def _check_publishers(log: FeedLog, walk: _Walk) -> None:
    newest: dict[str, tuple[int, int, int]] = {}
    for (publisher, incarnation), (number, seq) in walk.last_numbers.items():
        newest[publisher] = max(newest.get(publisher, (0, 0, 0)), (incarnation, number, seq))
    for publisher, (incarnation, number, seq) in newest.items():
        state = await log.publisher_state(publisher)
        if state is None:
            if (await log.look()).floor.seq < seq:
                raise _Fault(seq, f"the log has forgotten publisher {publisher}, of which it holds entries")
            continue
        # Appends go on meanwhile: a row may be ahead of the walk, never behind it.
        if state.incarnation < incarnation or state.last_seq < seq:
            raise _Fault(seq, f"the row for publisher {publisher} is behind its last entry")
        if state.incarnation == incarnation and state.last_number < number:
            raise _Fault(seq, f"the row for publisher {publisher} says {state.last_number}, its last entry {number}")
        if state.last_seq == seq and state.incarnation == incarnation and state.last_number != number:
            raise _Fault(seq, f"the row for publisher {publisher} says {state.last_number}, its last entry {number}")


async def _check_snapshot(log: FeedLog) -> None:
    begun = (await log.look()).folded
    after: Key | None = None
    while begun is not None:
        try:
            rows = await log.list_latest(after, READ_BYTES, at=begun)
        except TailMoved:
            # It was begun anew, or switched off: of what is being built there is nothing to say yet.
            return
        folded = (await log.look()).folded
        if not rows or folded is None or folded < begun:
            return
        for row in rows:
            if row.seq > folded:
                raise _Fault(
                    row.seq,
                    f"the snapshot's row of {row.resource} {row.id!r:.80} is of seq {row.seq}, but it is folded only up"
                    f" to seq {folded}",
                )
            if after is not None and row.key <= after:
                raise _Fault(row.seq, f"the snapshot's row of {row.resource} {row.id!r:.80} is out of order")
            after = row.key
