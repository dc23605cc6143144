"""A feed without an instance: a real log in memory, a real window, a leader that does what a test says.

For tests of sessions and clients over a transport in memory: `FakeFeed` implements serving.driver.Feed, `FakeLeader`
implements leader.Leader on it, `ServingClient` speaks the wire and holds the server to its promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import trio

from changefeed.batch import Batch, Entry, Tail, batch_digest, chain
from changefeed.change import Change, Event, FeedSettings, Position
from changefeed.errors import ChangefeedError, NotCurrent
from changefeed.leader import Answered, Leader
from changefeed.leader.folding import Stretch
from changefeed.log import FeedLog, Fence
from changefeed.log.memory import Faults, MemoryLogStore, MemoryPlace
from changefeed.ports import SeededEntropy, World
from changefeed.serving.feed import limits_of
from changefeed.serving.registry import Registry
from changefeed.serving.window import Window
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.transport import Connection
from changefeed.wire.changes import encode_change
from changefeed.wire.codec import decode, encode
from changefeed.wire.frames import events_of, listed_of
from changefeed.wire.messages import Answer, Events, Fault, Listed, Open, Opened, Subscribed


class FakeFeed:
    """See serving.driver.Feed. Make one with `await FakeFeed.create()`."""

    name = "vmapi"
    instance = "i1"
    process = "0123456789abcdef"

    def __init__(self, log: FeedLog, settings: Settings, place: MemoryPlace, faults: Faults) -> None:
        self.log: FeedLog = log
        self.place = place
        self.faults = faults
        self.settings = settings
        self.world = World(entropy=SeededEntropy(1), wall_ms=lambda: int(trio.current_time() * 1000))
        self.window = Window(settings.window_bytes)
        self.draining = trio.Event()
        self.subscribers = Registry(settings, self.world)
        self.changed = Changed()
        self.declaration = FeedSettings()
        self.stale = 0.0
        self.servers: tuple[str, ...] = ()
        self.epoch = 0
        self.term = ""
        self.tail: Tail = Tail(0, 0, "00000000", b"")
        self._leader: Leader | None = None

    @classmethod
    async def create(cls, settings: Settings | None = None, *, vouched: bool = True) -> FakeFeed:
        """A feed under a first term. vouched: the window has a tail from the start."""
        settings = settings or Settings()
        place, faults = MemoryPlace(), Faults()
        store = MemoryLogStore(place, settings, world=World(entropy=SeededEntropy(2)))
        store.hook = faults
        feed = cls(await store.open(cls.name), settings, place, faults)
        await feed.new_term()
        if vouched:
            feed.vouch()
        return feed

    async def new_term(self) -> None:
        """Fence the next epoch. Entries appended from now on are of it."""
        self.epoch += 1
        self.term = f"{self.epoch:08x}"
        fence = Fence(self.epoch, self.term, instance=self.instance)
        look = await self.log.fence(fence, why="start", time=self.epoch, clean=True)
        self.tail = look.tail

    def vouch(self) -> None:
        """The window begins at the log's tail."""
        self.window.begin(self.tail)
        self.changed.notify()

    async def append(
        self, *groups: Sequence[Change], publisher: str = "p", number: int = 0, time: int = 0, visible: bool = True
    ) -> Entry:
        """Append one entry of these groups. visible=False: durable, but nobody has vouched for it yet."""
        changes = [change for group in groups for change in group]
        payload = b"".join(encode_change(change, 2**20) for change in changes)
        sizes = tuple(len(group) for group in groups)
        batch = Batch(publisher, 1, max(0, number - 1), number or self.tail.seq + 1, sizes, payload)
        return await self.append_batch(batch, time=time, visible=visible)

    async def append_batch(self, batch: Batch, *, time: int = 0, visible: bool = True) -> Entry:
        tail = self.tail
        entry = Entry(
            self.epoch,
            self.term,
            tail.seq + 1,
            max(time, tail.time),
            batch.publisher,
            batch.incarnation,
            batch.after,
            batch.number,
            batch.sizes,
            batch.payload,
            batch_digest(batch.sizes, batch.payload),
        )
        entry = replace(entry, digest=chain(tail.digest, self.log.lineage, entry))
        await self.log.append(self.epoch, self.term, tail.seq, [entry])
        self.tail = Tail(entry.last_seq, entry.epoch, entry.term, entry.digest, entry.time)
        if visible:
            self.show([entry])
        return entry

    def show(self, entries: Sequence[Entry]) -> None:
        self.window.append(entries)
        self.changed.notify()

    async def keep_snapshot(self) -> None:
        """Switch the option on, and fold what there is."""
        self.declaration = await self.log.set_settings(replace(await self.log.settings(), snapshot=True))
        await self.fold()

    async def fold(self, to: int | None = None) -> None:
        """Bring the snapshot up to the entry that ends at seq `to` (None: to the tail), as a leader does."""
        look = await self.log.look()
        stretch = Stretch(look.floor.seq if look.folded is None else look.folded)
        while stretch.to < (look.tail.seq if to is None else to):
            for entry in await self.log.read(stretch.to, 2**20):
                if to is None or entry.last_seq <= to:
                    stretch.add(entry)
        keys = list(stretch.objects)
        known = [
            row for index in range(0, len(keys), 1000) for row in await self.log.latest(keys[index : index + 1000])
        ]
        found = stretch.fold(known)
        await self.log.fold(
            self.epoch, self.term, look.folded, stretch.to, found.rows, found.gone, versioned=found.versioned
        )

    async def fill(self, count: int, *, start: int = 1, body: Any = None, resource: str = "vm") -> None:
        """Append `count` entries of one update each, of the objects "1", "2" …"""
        for index in range(start, start + count):
            await self.append([Change(resource, str(index), "update", ("state",), body)])

    def set_leader(self, leader: Leader | None) -> None:
        self._leader = leader
        self.changed.notify()

    # ---- Feed

    def declared(self) -> FeedSettings:
        return self.declaration

    def leading(self) -> tuple[str, int]:
        return self.instance, self.epoch

    def stale_s(self) -> float:
        return self.stale

    def redirect(self) -> tuple[str, ...]:
        return self.servers

    async def wait_visible(self, seq: int) -> None:
        while self.window.tail is None or self.window.tail.seq <= seq:
            await self.changed.wait()

    async def leader(self) -> Leader:
        while self._leader is None or self._leader.lost.is_set():
            await self.changed.wait()
        return self._leader


class FakeLeader:
    """Appends what it is given to a FakeFeed, one batch at a time, when `work` is told to.

    refuse_open: raised by the next `open`. answers: by number, given instead of an append. room: publishes wait for it.
    """

    def __init__(self, feed: FakeFeed, name: str = "i1") -> None:
        self.name = name
        self.epoch = feed.epoch
        self.term = feed.term
        self.lost = trio.Event()
        self.opens: list[tuple[Open, str]] = []
        self.closed: list[str] = []
        self.queue: list[tuple[str, Batch, Answered]] = []
        self.refuse_open: list[ChangefeedError] = []
        self.answers: dict[int, Answer] = {}
        self.last_number = 0
        self.room = trio.Event()
        self.room.set()
        self.came = Changed()
        self._feed = feed

    async def open(self, request: Open, channel: str) -> Opened:
        await trio.lowlevel.checkpoint()
        if self.lost.is_set():
            raise NotCurrent("the leader was lost")
        self.opens.append((request, channel))
        if self.refuse_open:
            raise self.refuse_open.pop(0)
        limits = limits_of(self._feed.settings)
        incarnation = len(self.opens) if request.incarnation is None else request.incarnation
        return Opened(request.feed, self.name, "f" * 16, self.name, self.epoch, incarnation, self.last_number, limits)

    async def publish(self, channel: str, batch: Batch, answered: Answered) -> None:
        await trio.lowlevel.checkpoint()
        await self.room.wait()
        if self.lost.is_set():
            raise NotCurrent("the leader was lost")
        self.queue.append((channel, batch, answered))
        self.came.notify()

    def close(self, channel: str) -> None:
        self.closed.append(channel)

    async def work(self, count: int = 1) -> None:
        """Append and answer so many batches, waiting for them."""
        for _ in range(count):
            while not self.queue:
                await self.came.wait()
            _, batch, answered = self.queue.pop(0)
            planned = self.answers.pop(batch.number, None)
            if planned is not None:
                answered(planned)
                continue
            entry = await self._feed.append_batch(batch, visible=False)
            position = Position(self._feed.log.lineage, entry.epoch, entry.term, entry.seq)
            answered(Answer(batch.number, batch.count, position))
            self._feed.show([entry])

    def lose(self) -> None:
        self.lost.set()


class ServingClient:
    """A subscriber's or publisher's end, for tests: decodes whatever comes, and holds frames to the range rules."""

    def __init__(self, connection: Connection, lineage: str) -> None:
        self.connection = connection
        self.lineage = lineage
        self.position: Position | None = None
        self.welcome: Subscribed | None = None
        self.events: list[Event] = []
        self.parts: list[Listed] = []
        self.listed: list[Event] = []
        self.frames: list[Events] = []

    async def say(self, message: Any) -> None:
        await self.connection.send(encode(message, self.connection.subprotocol))

    async def hear(self) -> Any:
        """The next message; frames are checked and their events kept. Raises AssertionError for a broken promise."""
        message = decode(await self.connection.receive(), self.connection.subprotocol)
        if isinstance(message, Subscribed):
            self.welcome, self.position = message, message.position
        elif isinstance(message, Listed):
            assert self.position is not None and self.position.is_listing, "a part of a list where none is under way"
            assert not self.parts or self.parts[0].snapshot == message.snapshot, "one list, two places in the stream"
            found = listed_of(message, self.lineage)
            keys = [(event.resource, event.id) for event in (*self.listed[-1:], *found)]
            assert all(a < b for a, b in pairwise(keys)), "the list is out of order"
            self.listed += found
            self.parts.append(message)
            if message.last:
                self.position = message.snapshot
        elif isinstance(message, Events):
            assert self.position is not None, "a frame before the welcome"
            assert not self.position.is_listing, "a frame in the middle of a list"
            assert message.after == self.position.seq, f"frame after {message.after}, position {self.position}"
            assert message.to.seq > message.after, "a frame that does not move"
            found = events_of(message, self.lineage)
            seqs = [event.seq for event in found]
            assert seqs == sorted(set(seqs)) and (not seqs or self.position.seq < seqs[0] <= seqs[-1] <= message.to.seq)
            self.events += found
            self.frames.append(message)
            self.position = message.to
        return message

    async def until(self, seq: int) -> None:
        """Hear until the position has reached seq."""
        while self.position is None or self.position.seq < seq:
            message = await self.hear()
            assert not isinstance(message, Fault), message

    async def hear_all(self) -> list[Any]:
        """Everything until the connection ends."""
        heard = []
        try:
            while True:
                heard.append(await self.hear())
        except ChangefeedError as error:
            heard.append(error)
        return heard
