"""A log in memory, for tests, simulations and trying things out: nothing survives the process.

    MemoryPlace      the data; a copy can be put back, as a backup is
    MemoryLogStore   one process's way to a place; several stores on one place are several processes on one log
    Faults           what a test or a simulation does to a store: delays, errors before or after the effect, outages

Each call is one atomic step between two checkpoints: no threads, no clocks, the same order for the same schedule.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import trio

from changefeed.batch import Entry, Tail, batch_digest, chain, chain_start
from changefeed.change import NO_TERM, FeedSettings, Key, check_feed_name
from changefeed.errors import (
    ChangefeedError,
    LogFormatUnknown,
    LogFull,
    LogReplaced,
    LogUnavailable,
    SettingsConflict,
    TailMoved,
    TooManyPublishers,
    TrimmedAway,
    UnknownFeed,
)
from changefeed.log import FORMAT, EpochRecord, Fence, Latest, Look, Outbox, PublisherState
from changefeed.log.rules import (
    EPOCHS_KEPT,
    check_entries,
    check_fold,
    check_folded,
    check_keys,
    check_listed,
    check_time,
    fence_refused,
    fenced,
    listed_bytes,
    room_needed,
    too_old,
)
from changefeed.ports import World
from changefeed.settings import Settings

#: Called with ("append", feed) before the effect of each call and ("append done", feed) after that of each write.
Hook = Callable[[str, str], Awaitable[None]]


@dataclass
class _Known:
    """A publisher's row. opened: the tail when it was last opened; keeps a quiet newcomer until retention passes it."""

    incarnation: int
    last_number: int
    last_seq: int
    named: bool
    opened: int


@dataclass
class _Feed:
    feed: str
    lineage: str
    tail: Tail
    floor: Tail
    fence: Fence
    settings: FeedSettings = field(default_factory=FeedSettings)
    entries: list[Entry] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    publishers: dict[str, _Known] = field(default_factory=dict)
    batches: dict[tuple[str, int], list[Entry]] = field(default_factory=dict)  # by publisher and incarnation
    incarnations: int = 0
    rows: dict[Key, Latest] = field(default_factory=dict)
    folded: int | None = None
    versioned: bool = False

    def copy(self) -> _Feed:
        return replace(
            self,
            entries=list(self.entries),
            epochs=list(self.epochs),
            publishers={name: replace(known) for name, known in self.publishers.items()},
            batches={key: list(found) for key, found in self.batches.items()},
            rows=dict(self.rows),
        )


class MemoryPlace:
    """The logs of feeds, shared by every store that is given this object.

    free, total: bytes of the pretended disk, for `LogFull`.
    """

    def __init__(self) -> None:
        self.feeds: dict[str, _Feed] = {}
        self.free = self.total = 2**62
        self.generation = 0
        self._waiting: set[trio.Event] = set()

    def copy(self) -> MemoryPlace:
        """A backup: what the place holds now."""
        copy = MemoryPlace()
        copy.feeds = {name: feed.copy() for name, feed in self.feeds.items()}
        return copy

    def put_back(self, copy: MemoryPlace) -> None:
        """Restore a backup. Logs that are open find their file replaced (LogReplaced) and must be opened again."""
        self.feeds = copy.copy().feeds
        self.generation += 1
        self.ring()

    def ring(self) -> None:
        """Wake those who wait for a tail to move."""
        waiting, self._waiting = self._waiting, set()
        for event in waiting:
            event.set()

    def bell(self) -> trio.Event:
        event = trio.Event()
        self._waiting.add(event)
        return event

    def forget(self, event: trio.Event) -> None:
        self._waiting.discard(event)


class Faults:
    """A hook that tests and simulations set on a store: what happens to the next call at a point.

    Points are the names of FeedLog's methods ("append": before its effect, nothing is written) and, for writes, those
    names with " done" ("append done": it is stored, only the answer suffers). outage: every call raises
    LogUnavailable before its effect.
    """

    def __init__(self) -> None:
        self.outage = False
        self._planned: list[tuple[str, float, ChangefeedError | None]] = []

    def plan(self, point: str, error: ChangefeedError | None = None, *, delay_s: float = 0.0) -> None:
        """Let the next call at `point` wait for delay_s and then raise `error`, if one is given."""
        self._planned.append((point, delay_s, error))

    async def __call__(self, point: str, feed: str) -> None:
        for index, (planned, delay_s, error) in enumerate(self._planned):
            if planned == point:
                del self._planned[index]
                if delay_s > 0:
                    await trio.sleep(delay_s)
                if error is not None:
                    raise error
                break
        if self.outage and not point.endswith(" done"):
            raise LogUnavailable(f"the log of feed {feed} does not answer (an outage that a test asked for)")


_places: dict[str, MemoryPlace] = {}


def shared_place(name: str) -> MemoryPlace:
    """The place that `memory:NAME` names; one per name and process."""
    return _places.setdefault(name, MemoryPlace())


class MemoryLogStore:
    """The store behind `memory:`. hook: see Faults; None lets every call through."""

    kind = "memory"

    def __init__(
        self,
        place: MemoryPlace | None = None,
        settings: Settings | None = None,
        *,
        world: World | None = None,
        url: str = "memory:",
    ) -> None:
        self.url = url
        self.place = MemoryPlace() if place is None else place
        self.settings = Settings() if settings is None else settings
        self.world = World() if world is None else world
        self.hook: Hook | None = None

    async def open(self, feed: str, *, create: bool = True, check: bool = True) -> MemoryFeedLog:
        check_feed_name(feed)
        await trio.lowlevel.checkpoint()
        if self.hook is not None:
            await self.hook("open", feed)
        data = self.place.feeds.get(feed)
        if data is None:
            if not create:
                raise UnknownFeed(f"there is no log of feed {feed} in {self.url}")
            lineage = self.world.entropy.token(8)
            start = Tail(0, 0, NO_TERM, chain_start(lineage, feed))
            data = self.place.feeds[feed] = _Feed(feed, lineage, start, start, Fence(0, NO_TERM))
        _check_format(data)
        return MemoryFeedLog(self, data)

    async def feeds(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return sorted(self.place.feeds)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def _check_format(data: _Feed) -> None:
    if data.fence.format > FORMAT:
        raise LogFormatUnknown(
            f"the log of feed {data.feed} is of format {data.fence.format}; this release reads formats up to {FORMAT}"
        )


class MemoryFeedLog:
    """One process's view of one feed's log in memory."""

    outbox: Outbox | None = None

    def __init__(self, store: MemoryLogStore, data: _Feed) -> None:
        self.feed = data.feed
        self.lineage = data.lineage
        self._store = store
        self._place = store.place
        self._generation = store.place.generation
        self._data = data
        self._closed = False

    async def look(self, renew: tuple[int, str, int] | None = None) -> Look:
        data = await self._begin("look")
        if renew is not None and (data.fence.epoch, data.fence.term) == renew[:2]:
            data.fence = replace(data.fence, renewed=renew[2])
        return _look(data)

    async def fence(self, fence: Fence, *, why: str, time: int, clean: bool) -> Look:
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            data = await self._begin("fence")
            if fence.epoch <= data.fence.epoch:
                raise fence_refused(self.feed, fence, data.fence)
            data.fence = fence
            first = data.tail.seq + 1
            data.epochs.append(EpochRecord(fence.epoch, fence.term, first, time, fence.instance, why))
            _drop_empty_terms(data)
            look = _look(data)
            await self._end("fence")
        return look

    async def append(self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry]) -> None:
        check_entries(epoch, term, expected_tail, entries)
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            data = await self._begin("append")
            if self._place.free < room_needed(self._place.total, self._store.settings):
                raise LogFull(f"the log of feed {self.feed} has only {self._place.free} bytes free")
            self._check_fence(data, epoch, term)
            if data.tail.seq != expected_tail:
                raise TailMoved(f"feed {self.feed} ends at seq {data.tail.seq}, not at {expected_tail}")
            check_time(data.tail, entries[0])
            self._check_new(data, entries)
            for entry in entries:
                _store(data, entry)
            self._place.ring()
            await self._end("append")

    def _check_new(self, data: _Feed, entries: Sequence[Entry]) -> None:
        # The memory store is where leaders are tested: what it would store must be a log that verifies.
        digest = data.tail.digest
        numbers = {(e.publisher, e.incarnation, e.number) for e in entries}
        if len(numbers) < len(entries):
            raise ValueError("two entries carry the same publisher number")
        for entry in entries:
            if _find(data, entry.publisher, entry.incarnation, entry.number) is not None:
                raise ValueError(f"entry {entry.seq} carries a publisher number that is stored already")
            if entry.batch_digest != batch_digest(entry.sizes, entry.payload):
                raise ValueError(f"entry {entry.seq} carries the batch digest of other bytes")
            digest = chain(digest, self.lineage, entry)
            if entry.digest != digest:
                raise ValueError(f"entry {entry.seq} does not continue the digest chain")

    def _check_fence(self, data: _Feed, epoch: int, term: str) -> None:
        # Epoch 0 is that of a log which nobody has fenced: nobody may write under it.
        if epoch < 1 or (data.fence.epoch, data.fence.term) != (epoch, term):
            raise fenced(self.feed, epoch, term, data.fence)

    async def open_publisher(self, epoch: int, term: str, publisher: str, *, named: bool) -> PublisherState:
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            data = await self._begin("open_publisher")
            self._check_fence(data, epoch, term)
            known = data.publishers.get(publisher)
            if known is None:
                self._make_room(data)
            if known is None or not (named and known.named):
                data.incarnations += 1
                last_seq = 0 if known is None else known.last_seq
                known = _Known(data.incarnations, 0, last_seq, named, 0)
                data.publishers[publisher] = known
            known.opened = data.tail.seq
            state = _state(publisher, known)
            await self._end("open_publisher")
        return state

    def _make_room(self, data: _Feed) -> None:
        limit = self._store.settings.publishers_max
        if len(data.publishers) < limit:
            return
        idle = sorted(
            (known.opened, known.incarnation, name)
            for name, known in data.publishers.items()
            if known.last_seq <= data.floor.seq
        )
        if not idle:
            raise TooManyPublishers(
                f"feed {self.feed} remembers {len(data.publishers)} publishers, all with entries; the limit is {limit}"
            )
        for _, _, name in idle[: max(1, limit // 100)]:
            del data.publishers[name]

    async def publisher_state(self, publisher: str) -> PublisherState | None:
        data = await self._begin("publisher_state")
        known = data.publishers.get(publisher)
        return None if known is None else _state(publisher, known)

    async def last_number(self, publisher: str, incarnation: int) -> int | None:
        data = await self._begin("last_number")
        known = data.publishers.get(publisher)
        if known is not None and known.incarnation == incarnation and known.last_number:
            return known.last_number
        held = data.batches.get((publisher, incarnation))
        return held[-1].number + held[-1].count - 1 if held else None

    async def find_batch(self, publisher: str, incarnation: int, number: int) -> Entry | None:
        return _find(await self._begin("find_batch"), publisher, incarnation, number)

    async def read(self, after_seq: int, max_bytes: int) -> list[Entry]:
        data = await self._begin("read")
        if after_seq < data.floor.seq:
            raise TrimmedAway(too_old(self.feed, after_seq, data.floor.seq))
        found: list[Entry] = []
        size = 0
        start = bisect_right(data.entries, after_seq, key=lambda entry: entry.last_seq)
        for entry in data.entries[start:]:
            size += entry.bytes
            if found and size > max_bytes:
                break
            found.append(entry)
        return found

    async def read_time(self, time: int) -> int:
        data = await self._begin("read_time")
        index = bisect_left(data.entries, time, key=lambda entry: entry.time)
        return data.entries[index].seq - 1 if index < len(data.entries) else data.tail.seq

    async def trim(self, epoch: int, term: str, up_to_seq: int) -> int:
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            data = await self._begin("trim")
            self._check_fence(data, epoch, term)
            _trim(data, up_to_seq)
            floor = data.floor.seq
            await self._end("trim")
        return floor

    async def fold(
        self, epoch: int, term: str, after: int | None, to: int, rows: Sequence[Latest], gone: Sequence[Key],
        *, versioned: bool,
    ) -> None:  # fmt: skip
        check_fold(after, to, rows, gone)
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            data = await self._begin("fold")
            self._check_fence(data, epoch, term)
            check_folded(self.feed, data.folded, after, to, data.floor.seq, data.tail.seq)
            if after is None:
                data.rows, data.versioned = {}, False
            data.rows.update((row.key, row) for row in rows)
            for key in gone:
                data.rows.pop(key, None)
            data.folded = to
            data.versioned = data.versioned or versioned
            await self._end("fold")

    async def latest(self, keys: Sequence[Key]) -> list[Latest]:
        check_keys(keys)
        data = await self._begin("latest")
        return [data.rows[key] for key in dict.fromkeys(keys) if key in data.rows]

    async def list_latest(self, after: Key | None, max_bytes: int, *, at: int | None = None) -> list[Latest]:
        data = await self._begin("list_latest")
        check_listed(self.feed, data.folded, at)
        found: list[Latest] = []
        size = 0
        # Text is compared by code points here, which is the order of its UTF-8 bytes.
        for key in sorted(key for key in data.rows if after is None or key > after):
            row = data.rows[key]
            size += listed_bytes(row.payload)
            if found and size > max_bytes:
                break
            found.append(row)
        return found

    async def settings(self) -> FeedSettings:
        return (await self._begin("settings")).settings

    async def set_settings(self, settings: FeedSettings) -> FeedSettings:
        settings.check()
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            data = await self._begin("set_settings")
            if settings.version != data.settings.version:
                raise SettingsConflict(
                    f"the settings of feed {self.feed} are of version {data.settings.version} now, not of"
                    f" {settings.version}; read them again"
                )
            data.settings = stored = replace(settings, version=settings.version + 1)
            await self._end("set_settings")
        return stored

    async def maintain(self) -> dict[str, int]:
        await self._begin("maintain")
        return {"wal_bytes": 0}

    async def wait(self, tail_seq: int) -> None:
        data = await self._begin("wait")
        while data.tail.seq == tail_seq:
            bell = self._place.bell()
            try:
                await bell.wait()
            finally:
                self._place.forget(bell)
            data = self._check_open()

    async def storage(self) -> tuple[int, int]:
        await self._begin("storage")
        return self._place.free, self._place.total

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()

    async def _begin(self, point: str) -> _Feed:
        await trio.lowlevel.checkpoint()
        if self._store.hook is not None:
            await self._store.hook(point, self.feed)
        return self._check_open()

    def _check_open(self) -> _Feed:
        if self._closed:
            raise LogUnavailable(f"the log of feed {self.feed} was closed by this process")
        if self._generation != self._place.generation:
            raise LogReplaced(f"the log of feed {self.feed} was replaced by another copy; open it again")
        _check_format(self._data)
        return self._data

    async def _end(self, point: str) -> None:
        if self._store.hook is not None:
            await self._store.hook(f"{point} done", self.feed)


def _look(data: _Feed) -> Look:
    return Look(
        data.lineage,
        data.tail,
        data.floor,
        data.fence,
        tuple(data.epochs),
        data.incarnations,
        data.settings.version,
        sum(entry.bytes for entry in data.entries),
        data.folded,
        data.versioned,
    )


def _state(publisher: str, known: _Known) -> PublisherState:
    return PublisherState(publisher, known.incarnation, known.last_number, known.last_seq, known.named)


def _find(data: _Feed, publisher: str, incarnation: int, number: int) -> Entry | None:
    held = data.batches.get((publisher, incarnation), [])
    index = bisect_right(held, number, key=lambda entry: entry.number) - 1
    return held[index] if index >= 0 and number < held[index].number + held[index].count else None


def _store(data: _Feed, entry: Entry) -> None:
    known = data.publishers.get(entry.publisher)
    if known is None:
        # Its row was dropped while it lived. It may be a named one: it must not lose its number to a rerun.
        known = data.publishers[entry.publisher] = _Known(entry.incarnation, 0, 0, True, data.tail.seq)
    if entry.incarnation >= known.incarnation:
        known.incarnation = entry.incarnation
        known.last_number = entry.number + entry.count - 1
    known.last_seq = entry.last_seq
    data.entries.append(entry)
    insort(data.batches.setdefault((entry.publisher, entry.incarnation), []), entry, key=lambda held: held.number)
    data.tail = Tail(entry.last_seq, entry.epoch, entry.term, entry.digest, entry.time)


def _trim(data: _Feed, up_to_seq: int) -> None:
    count = bisect_right(data.entries, up_to_seq, key=lambda entry: entry.last_seq)
    if count:
        last = data.entries[count - 1]
        for entry in data.entries[:count]:
            held = data.batches[entry.publisher, entry.incarnation]
            held.remove(entry)
            if not held:
                del data.batches[entry.publisher, entry.incarnation]
        del data.entries[:count]
        data.floor = Tail(last.last_seq, last.epoch, last.term, last.digest, last.time)
    floor = data.floor.seq
    covering = max((r.epoch for r in data.epochs if r.first <= floor), default=0)
    data.epochs = [r for r in data.epochs if r.epoch >= covering]
    data.publishers = {
        name: known for name, known in data.publishers.items() if known.last_seq > floor or known.opened >= floor
    }
    data.rows = {key: row for key, row in data.rows.items() if row.payload is not None or row.seq > floor}


def _drop_empty_terms(data: _Feed) -> None:
    """Bound the history of terms: a term that stored nothing names no position, so the oldest of them may go."""
    surplus = len(data.epochs) - EPOCHS_KEPT
    for record, following in zip(list(data.epochs), data.epochs[1:], strict=False):
        if surplus <= 0:
            break
        if record.first == following.first:
            data.epochs.remove(record)
            surplus -= 1
