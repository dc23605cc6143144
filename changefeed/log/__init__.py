"""3. The log: durable, fenced, readable. This file is the contract; one conformance suite holds every store to it.

    LogStore   opens feeds of one place (a URL)            memory.py  sqlite.py  postgresql/    urls.py opens them
    FeedLog    the log of one feed                         verify.py walks one
    Outbox     changes that applications wrote in transactions of their own, where a store has one
    rules.py   what every store holds to (pure)

Stores are passive: they call nobody back. They hold no lock across an await. All methods may be called concurrently
from tasks of one process, and other processes may use the same place at the same time.

**What makes it safe.** `fence(epoch, term)` makes every append under another epoch and term invisible for ever, also
one in flight. An append is accepted only if epoch and term *equal* the fence and the expected tail is the tail: two
independent defences. An epoch is fenced at most once, with its term, and fences only grow.

**After an error.** `Fenced`, `TailMoved`, `LogUnavailable`: nothing was written. `AppendOutcomeUnknown`: it may have
been; the caller ends its term and goes through election, fence and recovery. `LogDamaged`, `LogReplaced`,
`LogFormatUnknown`: the caller stops serving this feed and does not contend.

**Cancellation.** Reads may be cancelled at any time. Writes (`append`, `fence`, `open_publisher`, `trim`,
`fold`, `set_settings`) run to their end once begun (shielded) and return their result; the cancellation is delivered
at the caller's next checkpoint. Cancelled before they began, they have done nothing; `trim` and a `fold` that begins
anew may stop between two of their steps.

A mistake of the caller's code (entries that are not dense, times that decrease) is a ValueError: nothing was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from changefeed.batch import Entry, Tail
from changefeed.change import FeedSettings, Key, Position
from changefeed.errors import CannotResume, FuturePosition, OtherLineage, PositionTooOld

FORMAT: Final = 1
#: The publisher of what is moved in from an application's own transactions; clients may not use this id.
OUTBOX: Final = "outbox"


@dataclass(frozen=True, slots=True)
class Fence:
    """Who may append. instance, process, pid, url: for people, and to find a frozen holder on this machine.

    coordinator: random id of the coordinator under which the epoch was won. renewed: wall milliseconds of the last
    `look(renew=...)` of the holder: a candidate that finds a live fence of *another* coordinator refuses to contend.
    clean: the term before ended by a handover (its leader had nothing in flight).
    format: what the log's content needs; a process that does not know it must not contend.
    """

    epoch: int
    term: str
    instance: str = ""
    process: str = ""
    pid: int = 0
    pid_started: int = 0
    url: str = ""
    coordinator: str = ""
    renewed: int = 0
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """A term in the log's history. first: seq of its first entry (tail + 1 when it was fenced). time: wall ms.

    why: "start", "handover", "process-gone", "silent", "session-lost", "outcome-unknown", "log-slow" …: for people.
    """

    epoch: int
    term: str
    first: int
    time: int
    instance: str
    why: str


@dataclass(frozen=True, slots=True)
class PublisherState:
    """What the log knows of a publisher id. Dropped only when all its entries are trimmed (or it never had any).

    incarnation: the newest one given. last_number: the last number stored under it (0: none). last_seq: seq of the
    last entry of any incarnation (0: none). named: keeps its incarnation over runs.
    """

    publisher: str
    incarnation: int
    last_number: int
    last_seq: int
    named: bool


@dataclass(frozen=True, slots=True)
class Latest:
    """A row of a feed's snapshot: the latest event of one object (resource, id), kept also when its entry is trimmed.

    seq, epoch, term, time, publisher: of the event. payload: its change as the entry had it; None for a tombstone: the
    object was deleted under `version`, which is remembered until retention has passed `seq`. version: the highest one
    that the object's changes carried; None if none did.
    """

    resource: str
    id: str
    seq: int
    epoch: int
    term: str
    time: int
    publisher: str
    version: int | None
    payload: bytes | None

    @property
    def key(self) -> tuple[str, str]:
        return (self.resource, self.id)


@dataclass(frozen=True, slots=True)
class Look:
    """One consistent look into the log (one read transaction), begun after the call.

    folded: up to which seq the entries are in the snapshot; None where the log keeps none. It is never above the tail.
    versioned: whether a change that was ever folded carried a version.
    """

    lineage: str
    tail: Tail
    floor: Tail
    fence: Fence
    epochs: tuple[EpochRecord, ...]
    incarnations: int
    settings_version: int
    bytes: int
    folded: int | None = None
    versioned: bool = False

    def epoch_of(self, seq: int) -> tuple[int, str] | None:
        """Epoch and term of the entry that holds seq, from the history of terms; None where that is not known."""
        if seq == self.floor.seq:
            return (self.floor.epoch, self.floor.term)
        found: EpochRecord | None = None
        for record in self.epochs:
            if record.first <= seq:
                found = record
        return None if found is None else (found.epoch, found.term)

    def position(self, seq: int) -> Position:
        """The position of a seq from the floor to the tail."""
        stamp = self.epoch_of(seq)
        if stamp is None:
            raise ValueError(f"seq {seq} is not held: floor {self.floor.seq}, tail {self.tail.seq}")
        return Position(self.lineage, stamp[0], stamp[1], seq)

    @property
    def head(self) -> Position:
        return self.tail.position(self.lineage)

    @property
    def earliest(self) -> Position:
        """The oldest position that can be resumed."""
        return self.floor.position(self.lineage)

    def check(self, position: Position) -> CannotResume | None:
        """Why a position cannot be resumed in this log, or None. A final answer only if this look is fresh."""
        kind: type[CannotResume] | None = None
        if position.lineage != self.lineage:
            kind, why = OtherLineage, "belongs to another log: the feed's log was lost, restored or replaced"
        elif position.seq > self.tail.seq:
            kind, why = (
                FuturePosition,
                f"lies beyond the end of the log (seq {self.tail.seq}): an older copy was restored",
            )
        elif position.seq < self.floor.seq and self.epoch_of(position.seq) in (None, (position.epoch, position.term)):
            kind, why = PositionTooOld, f"is too old: what follows it was trimmed up to seq {self.floor.seq}"
        elif (position.epoch, position.term) != self.epoch_of(position.seq):
            # Below the floor too, as far as the history of terms reaches: it is not old, but of another log.
            kind, why = OtherLineage, "belongs to a term that this log does not hold: the log was restored from a copy"
        if kind is None:
            return None
        return kind(f"position {position} {why}", position, self.earliest, self.head)


@dataclass(frozen=True, slots=True)
class Moved:
    """Changes of an outbox that may be appended next: whole transactions, each one group, oldest first.

    sizes, payload: as of a batch. rows: ids of the rows that they came from, to be taken out by the append.
    open, part: the transaction of which only a part is in here, since it is larger than a group may be, and how many of
    its parts have been moved then; it goes on first. None and 0: nothing is open.
    """

    sizes: tuple[int, ...]
    payload: bytes
    rows: tuple[int, ...]
    open: int | None = None
    part: int = 0


class Outbox(Protocol):
    """Changes that applications wrote beside their own data, in their own transactions, waiting to be moved into the
    log by whoever leads. The publisher of what is moved is OUTBOX; its numbers only count."""

    async def waiting(self, bytes_max: int) -> Moved | None:
        """What may be moved next, without a lock: some transactions, or a part of one above `bytes_max`; None if
        nothing waits. Raises LogUnavailable."""

    async def append(self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry], moved: Moved) -> None:
        """As FeedLog.append; takes exactly these rows out of the outbox in the same transaction. TailMoved also if some
        of them are no longer there."""

    async def wait(self, pause_s: float) -> None:
        """Return when something may be waiting; after `pause_s` at the latest."""


class FeedLog(Protocol):
    """The log of one feed. outbox: where applications' transactions put changes for it; None where a store has none."""

    feed: str
    lineage: str
    outbox: Outbox | None

    async def look(self, renew: tuple[int, str, int] | None = None) -> Look:
        """A consistent look. `renew=(epoch, term, wall ms)`: also stamps the fence's `renewed` if it is still of that
        epoch and term. Raises LogUnavailable, LogDamaged, LogReplaced."""

    async def fence(self, fence: Fence, *, why: str, time: int, clean: bool) -> Look:
        """Let only (fence.epoch, fence.term) append from now on; returns a look taken after that, durable.

        No append under another epoch or term can become visible after this returns, not even one in flight. Unless
        `clean`, entries that the dead leader wrote but never synced are made durable before this returns.
        Raises Fenced (with the fence that stands) if fence.epoch is not above it: nothing changed. Raises
        LogUnavailable if the log's lock cannot be had within `log_timeout_s` (its holder may be frozen: the fence row
        that `look` shows names it), AppendOutcomeUnknown (the fence may stand: go on with a higher epoch).
        """

    async def append(self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry]) -> None:
        """Store entries behind `expected_tail`, with their publishers' states, in one transaction; durable on return.

        `entries` are dense (first seq = expected_tail + 1), carry their digests, and have first numbers that are not
        stored yet under their publisher's incarnation (else ValueError: the last line of defence). Updates
        PublisherState (last_number, last_seq) of each entry's (publisher, incarnation). Raises Fenced, TailMoved,
        LogFull, LogUnavailable (nothing written), AppendOutcomeUnknown.
        """

    async def open_publisher(self, epoch: int, term: str, publisher: str, *, named: bool) -> PublisherState:
        """Give a publisher id its incarnation, committed before this returns.

        A named publisher that the log knows keeps its incarnation and last number; any other gets the next number of
        the feed's counter and last_number 0. Where `publishers_max` are known, some that hold no entry any more are
        dropped, those opened longest ago first. Raises Fenced, TooManyPublishers, LogFull (not even that much room
        is left), LogUnavailable, AppendOutcomeUnknown.
        """

    async def publisher_state(self, publisher: str) -> PublisherState | None: ...

    async def last_number(self, publisher: str, incarnation: int) -> int | None:
        """The last number stored under an incarnation, also an old one; None if nothing of it is held."""

    async def find_batch(self, publisher: str, incarnation: int, number: int) -> Entry | None:
        """The entry whose batch contains that number, or None (never stored, or trimmed)."""

    async def read(self, after_seq: int, max_bytes: int) -> list[Entry]:
        """Entries from exactly after_seq + 1 on: at least one, then while their `Entry.bytes` fit; [] at (or beyond)
        the tail: whether a position lies beyond it is for `Look.check`.

        after_seq may lie inside an entry: then the first entry returned is the one that holds after_seq + 1.
        Contiguity is checked on the *result*: a hole raises LogDamaged. Raises TrimmedAway if after_seq is below the
        floor. No read transaction outlives the call.
        """

    async def read_time(self, time: int) -> int:
        """The seq before the first entry with entry.time >= time (the tail's seq if there is none)."""

    async def trim(self, epoch: int, term: str, up_to_seq: int) -> int:
        """Drop whole entries with last_seq <= up_to_seq; returns the new floor's seq. The floor row (seq, epoch, term,
        digest) is written in the same transaction; EpochRecords below the one that covers the floor go. So does a
        publisher's state whose last_seq is trimmed, unless it was opened at or after the new floor (a quiet newcomer
        is not forgotten before a whole retention has passed); so do the snapshot's tombstones up to the new floor. A
        store may do it in steps. Raises Fenced, LogUnavailable, AppendOutcomeUnknown."""

    # ---- the snapshot: the latest event of each object, folded out of the entries by whoever leads

    async def fold(
        self, epoch: int, term: str, after: int | None, to: int, rows: Sequence[Latest], gone: Sequence[Key],
        *, versioned: bool,
    ) -> None:  # fmt: skip
        """Bring the snapshot from seq `after` to seq `to`, in one transaction: rows are put in place of what stood of
        their objects, the objects in `gone` are dropped, `Look.folded` is `to`, `Look.versioned` is set if `versioned`.

        after None: begin anew: every row goes first, whatever was folded, and `versioned` is what is given. Where there
        are many of them, a store may drop them in steps before: meanwhile, and if it ends there, nothing is folded
        (`Look.folded` is None).
        rows and gone name an object once; a row without payload (a tombstone) has a version. Room that is kept free
        for appends may be used: retention waits for this. Raises TailMoved if `after` is not `Look.folded` (nothing
        written), Fenced, LogFull, LogUnavailable, AppendOutcomeUnknown; ValueError if `to` is not a seq from the floor
        to the tail, or below `after`.
        """

    async def latest(self, keys: Sequence[Key]) -> list[Latest]:
        """The rows of these objects (at most LATEST_MAX of rules.py), tombstones too, in any order; what the snapshot
        does not hold is left out."""

    async def list_latest(self, after: Key | None, max_bytes: int, *, at: int | None = None) -> list[Latest]:
        """Rows, tombstones too, in the order of (resource, id) by their UTF-8 bytes, from the first one above `after`
        on: at least one, then while their payloads fit (a tombstone counts TOMBSTONE_BYTES of rules.py); [] at the end.

        at: raise TailMoved if what is folded is nothing, or below this seq: then the snapshot was begun anew since the
        seq was seen, and pages read before and after that are not of one list.
        """

    async def settings(self) -> FeedSettings: ...

    async def set_settings(self, settings: FeedSettings) -> FeedSettings:
        """Store settings if settings.version is the stored one; returns them with version + 1. Not fenced (any process
        may). Raises SettingsConflict, LogUnavailable, AppendOutcomeUnknown."""

    async def maintain(self) -> dict[str, int]:
        """Housekeeping beside appends (checkpoints); returns facts for status, e.g. {"wal_bytes": ...}."""

    async def wait(self, tail_seq: int) -> None:
        """Return when the tail may differ from tail_seq. May return too early; may need up to a second."""

    async def storage(self) -> tuple[int, int]:
        """(free bytes, total bytes) of the storage; (2**62, 2**62) where there is no such bound."""

    async def aclose(self) -> None: ...


class LogStore(Protocol):
    """A place that holds the logs of feeds.

    url: as given. kind: "memory", "sqlite" …: for status.
    """

    url: str

    async def open(self, feed: str, *, create: bool = True, check: bool = True) -> FeedLog:
        """Open a feed's log, creating it with a random lineage if `create`. Checks what it can without reading
        everything (the tail row against the last entry, the digest chain over the last 1,000 entries), unless told
        not to: for whoever only walks it, to find the first fault.
        Raises UnknownFeed (not there and not `create`), LogUnavailable, LogDamaged, LogFormatUnknown."""

    async def feeds(self) -> list[str]:
        """Names of the feeds that have a log here, sorted."""

    async def aclose(self) -> None: ...
