"""What a leader knows of each publisher: its runs of numbers, and where recent batches landed (pure).

Everything here comes from the log or from appends that the log confirmed, except `expected` and `pending`, which also
hold what was accepted and is not durable yet; a refused append takes them back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from changefeed.batch import Batch, Entry, chain
from changefeed.wire.changes import ends_of
from changefeed.wire.messages import Answer, Open

if TYPE_CHECKING:
    from changefeed.change import Key
    from changefeed.leader.guard import Check
    from changefeed.log import PublisherState

#: Landed batches kept in memory per publisher: four times what it may have in flight. Older ones are in the log.
RECENT_MAX: Final = 64
#: Publishers without a connection whose state is kept in memory, so that a retry after a reconnect needs no reading.
IDLE_MAX: Final = 1024


@dataclass(slots=True, eq=False)
class Request:
    """One publish as it came: it gets one answer, in the order of its channel. check: see checks.py; None until it is
    needed."""

    channel: Channel
    ticket: Any
    batch: Batch
    size: int
    answer: Answer | None = None
    check: Check | None = None


@dataclass(slots=True, eq=False)
class Accepted:
    """A batch that waits for its append or is in flight.

    requests: who asked for it, each with the offset of its batch in this one; the first one is why it was accepted,
    the others are retries that wait for the same append. marks: what the guard has noted of it. settled: it is durable,
    or will never be.
    """

    batch: Batch
    run: Run
    requests: list[tuple[Request, int]]
    marks: dict[Key, int] = field(default_factory=dict)
    settled: bool = False


@dataclass(slots=True, eq=False)
class Run:
    """Numbers of one (publisher, incarnation).

    stored: the last durable number. expected: the last number including what is pending: a batch that goes on after it
    is accepted. pending: by first number, in order. recent: first number -> (first seq, digest) of batches that this
    term stored. checking: the batch that cannot be accepted before it is checked, and what came behind it.
    """

    known: Known
    incarnation: int
    stored: int
    expected: int
    pending: dict[int, Accepted] = field(default_factory=dict)
    recent: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    checking: deque[Request] = field(default_factory=deque)

    def landed(self, number: int, seq: int, digest: bytes) -> None:
        self.recent[number] = (seq, digest)
        if len(self.recent) > RECENT_MAX:
            del self.recent[next(iter(self.recent))]

    def pending_with(self, number: int) -> Accepted | None:
        """The pending batch that contains a number."""
        found = self.pending.get(number)
        if found is None:
            for accepted in self.pending.values():
                if accepted.batch.number <= number <= accepted.batch.last_number:
                    return accepted
        return found

    def last_pending(self) -> Accepted | None:
        return next(reversed(self.pending.values()), None)


@dataclass(slots=True, eq=False)
class Known:
    """A publisher id. run: its newest incarnation (None: not read from the log yet, or the log knows none).

    old: older incarnations with batches that are still pending. channels: its open connections. openings: how many
    are being opened; while there is one, the state stays in memory, so that what was read cannot grow stale unseen.
    """

    publisher: str
    named: bool = False
    run: Run | None = None
    old: dict[int, Run] = field(default_factory=dict)
    channels: set[Channel] = field(default_factory=set)
    openings: int = 0

    def run_of(self, incarnation: int | None) -> Run | None:
        """The run of an incarnation (None: the newest), as far as it is in memory."""
        if self.run is not None and incarnation in (None, self.run.incarnation):
            return self.run
        return None if incarnation is None else self.old.get(incarnation)

    def learn(self, state: PublisherState) -> Run:
        """Take in what the log said; a newer incarnation supersedes. Returns the run that `state` speaks of.

        Of an incarnation that is known already, memory is right: only this leader appends, and what was read may be
        older than its last append.
        """
        if self.run is not None and state.incarnation == self.run.incarnation:
            return self.run
        run = Run(self, state.incarnation, state.last_number, state.last_number)
        if self.run is None or state.incarnation > self.run.incarnation:
            if self.run is not None and self.run.pending:
                self.old[self.run.incarnation] = self.run
            self.run = run
            self.named = state.named
        return run

    def in_use(self, session: str) -> bool:
        """Whether another session of this publisher lives."""
        return any(channel.session != session for channel in self.channels)

    @property
    def busy(self) -> bool:
        return bool(self.openings or self.channels or self.old or (self.run is not None and self.run.pending))


@dataclass(slots=True, eq=False)
class Channel:
    """A connection by which a publisher's batches come. queue: its unanswered requests, in order."""

    name: str
    session: str
    run: Run
    queue: deque[Request] = field(default_factory=deque)
    closed: bool = False


class Opening:
    """An Open that is being answered. barrier: a pending batch that must be settled first."""

    def __init__(self, token: int, request: Open, channel: str, known: Known) -> None:
        self.token = token
        self.request = request
        self.channel = channel
        self.known = known
        self.last = False
        self.barrier: Accepted | None = None


class Flight:
    """The append under way."""

    def __init__(self, accepted: Sequence[Accepted], entries: tuple[Entry, ...]) -> None:
        self.accepted = accepted
        self.entries = entries
        self.tries = 0


def stamped(batch: Batch, lineage: str, epoch: int, term: str, seq: int, time: int, previous: bytes) -> Entry:
    """The entry that a batch becomes. previous: the digest of the entry before it."""
    entry = Entry(
        epoch,
        term,
        seq,
        time,
        batch.publisher,
        batch.incarnation,
        batch.after,
        batch.number,
        batch.sizes,
        batch.payload,
        batch.digest,
    )
    # The digest is over the stamp: filling it in is cheaper than building the frozen entry twice.
    object.__setattr__(entry, "digest", chain(previous, lineage, entry))
    return entry


def shared(stored: Batch | Entry, digest: bytes, batch: Batch, behind: Sequence[Entry] = ()) -> tuple[int, int]:
    """(how many changes precede `batch` in a batch stored under the same incarnation, how many of `batch`'s are there).

    (0, 0) if its first group is not there. A publisher that resends what it kept sends whole batches; a rerun of a file
    may cut the same lines elsewhere, so that only its leading groups are in the same stored batch. Counted are whole
    groups, byte for byte the same. behind: entries that follow `stored` in the log; they count as long as the numbers
    go on there in the same term, so that the positions of what was counted are a run.
    """
    if stored.number == batch.number and digest == batch.digest:
        return 0, batch.count
    ours, count, index = [0, *ends_of(batch.payload)], 0, 0
    for place in (stored, *behind):
        at = batch.number + count - place.number
        first = _group_at(place.sizes, at) if 0 <= at < place.count else None
        if first is None or (place is not stored and not _alike(stored, place)):
            break
        theirs = [0, *ends_of(place.payload)]
        for size, other in zip(batch.sizes[index:], place.sizes[first:], strict=False):
            mine = batch.payload[ours[count] : ours[count + size]]
            if size != other or mine != place.payload[theirs[at] : theirs[at + size]]:
                return (batch.number - stored.number if count else 0), count
            count, at, index = count + size, at + size, index + 1
        if index == len(batch.sizes):
            break
    return (batch.number - stored.number if count else 0), count


def _alike(one: Batch | Entry, entry: Batch | Entry) -> bool:
    """Whether an entry is of the same publisher and the same term as another one."""
    if not (isinstance(one, Entry) and isinstance(entry, Entry)):
        return False
    return (one.publisher, one.incarnation, one.epoch, one.term) == (
        entry.publisher, entry.incarnation, entry.epoch, entry.term
    )  # fmt: skip


def _group_at(sizes: Sequence[int], offset: int) -> int | None:
    """The index of the group that begins after `offset` changes (fewer than all of them), if one begins there."""
    index = 0
    while offset > 0:
        offset -= sizes[index]
        index += 1
    return index if offset == 0 else None
