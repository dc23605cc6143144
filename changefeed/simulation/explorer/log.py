"""The log as a value: what a store must do, in as few words as possible. Each call says what came of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from changefeed.batch import Entry, Tail, batch_digest, chain, chain_start
from changefeed.change import NO_TERM
from changefeed.log import EpochRecord, Fence, Look, PublisherState

FEED: Final = "f"
LINEAGE: Final = "0123456789abcdef"
START: Final = Tail(0, 0, NO_TERM, chain_start(LINEAGE, FEED))


@dataclass(frozen=True)
class Log:
    """epoch, term: the fence. publishers: by id, in order of arrival."""

    epoch: int = 0
    term: str = NO_TERM
    tail: Tail = START
    entries: tuple[Entry, ...] = ()
    epochs: tuple[EpochRecord, ...] = ()
    publishers: tuple[PublisherState, ...] = ()
    incarnations: int = 0

    # ---- writes: (the log after it, "" or why it was refused)

    def fence(self, epoch: int, term: str, instance: str) -> tuple[Log, str]:
        if epoch <= self.epoch:
            return self, "fenced"
        record = EpochRecord(epoch, term, self.tail.seq + 1, 0, instance, "start")
        return replace(self, epoch=epoch, term=term, epochs=(*self.epochs, record)), ""

    def append(self, epoch: int, term: str, expected: int, entries: tuple[Entry, ...]) -> tuple[Log, str]:
        if (epoch, term) != (self.epoch, self.term):
            return self, "fenced"
        if expected != self.tail.seq:
            return self, "tail-moved"
        states = {state.publisher: state for state in self.publishers}
        for entry in entries:
            known = states[entry.publisher]
            number = entry.number + entry.count - 1
            states[entry.publisher] = replace(known, last_number=number, last_seq=entry.last_seq)
        last = entries[-1]
        tail = Tail(last.last_seq, epoch, term, last.digest, last.time)
        return replace(self, tail=tail, entries=self.entries + entries, publishers=tuple(states.values())), ""

    def open_publisher(self, epoch: int, term: str, publisher: str, named: bool) -> tuple[Log, PublisherState | None]:
        """None: fenced."""
        if (epoch, term) != (self.epoch, self.term):
            return self, None
        known = self.publisher(publisher)
        if known is not None and named and known.named:
            return self, known
        state = PublisherState(publisher, self.incarnations + 1, 0, 0 if known is None else known.last_seq, named)
        others = tuple(one for one in self.publishers if one.publisher != publisher)
        return replace(self, publishers=(*others, state), incarnations=self.incarnations + 1), state

    # ---- reads

    def look(self) -> Look:
        fence = Fence(self.epoch, self.term)
        return Look(LINEAGE, self.tail, START, fence, self.epochs, self.incarnations, 0, 0)

    def publisher(self, publisher: str) -> PublisherState | None:
        return next((state for state in self.publishers if state.publisher == publisher), None)

    def last_number(self, publisher: str, incarnation: int) -> int | None:
        known = self.publisher(publisher)
        if known is not None and known.incarnation == incarnation and known.last_number:
            return known.last_number
        held = [entry for entry in self.entries if (entry.publisher, entry.incarnation) == (publisher, incarnation)]
        return held[-1].number + held[-1].count - 1 if held else None

    def find(self, publisher: str, incarnation: int, number: int) -> Entry | None:
        for entry in self.entries:
            same = (entry.publisher, entry.incarnation) == (publisher, incarnation)
            if same and entry.number <= number < entry.number + entry.count:
                return entry
        return None

    def read(self, after: int) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.last_seq > after)

    def at(self, seq: int) -> Entry | None:
        return next((entry for entry in self.entries if entry.seq <= seq <= entry.last_seq), None)


def wrong_with(log: Log, entries: tuple[Entry, ...]) -> tuple[str, str] | None:
    """(promise, sentence) if entries that the log is about to take must not be in it; None if all is well."""
    digest = log.tail.digest
    lasts: dict[tuple[str, int], int] = {}
    for entry in entries:
        who = (entry.publisher, entry.incarnation)
        last = lasts.get(who, log.last_number(*who) or 0)
        if entry.number <= last:
            return "C2", f"number {entry.number} of {entry.publisher} is stored a second time"
        if entry.number != last + 1:
            return "C6", f"number {entry.number} of {entry.publisher} is stored after {last}"
        lasts[who] = entry.number + entry.count - 1
        if entry.batch_digest != batch_digest(entry.sizes, entry.payload):
            return "C4", f"the entry at {entry.seq} carries the digest of other bytes"
        digest = chain(digest, LINEAGE, entry)
        if entry.digest != digest:
            return "C4", f"the entry at {entry.seq} does not continue the chain"
        if log.entries and entry.epoch < log.entries[-1].epoch:
            return "C8", f"the entry at {entry.seq} is of epoch {entry.epoch}, after {log.entries[-1].epoch}"
    return None
