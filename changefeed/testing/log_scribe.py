"""A leader's hand for tests of log stores: entries that continue the chain, and what those checks have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from changefeed.batch import Entry, Tail, batch_digest, chain
from changefeed.log import FeedLog, Fence, LogStore, Look
from changefeed.log.verify import verify_log
from changefeed.ports import World
from changefeed.settings import Settings

#: Gives a store on the place of that name: the same name again is another process on the same data.
MakeStore = Callable[[str, Settings, World], LogStore]


class Scribe:
    """Writes to a log as a leader does: entries that continue the chain, publishers that count their numbers."""

    def __init__(self, log: FeedLog, look: Look) -> None:
        self.log = log
        self.epoch, self.term = look.fence.epoch, look.fence.term
        self.tail = look.tail
        self.time = look.tail.time
        self.numbers: dict[tuple[str, int], int] = {}

    @classmethod
    async def fencing(cls, log: FeedLog, epoch: int, *, opens: bool = True) -> Scribe:
        """A scribe of a new term. opens: publisher p has its incarnation 1 (it is the first of the log)."""
        fence = Fence(epoch, f"{epoch:08x}", instance=f"i{epoch}", coordinator="c0ffee")
        look = await log.fence(fence, why="start", time=epoch * 1000, clean=True)
        if opens and not look.incarnations:
            await log.open_publisher(epoch, fence.term, "p", named=False)
        return cls(log, look)

    def entry(self, publisher: str = "p", incarnation: int = 1, sizes: Sequence[int] = (1,), size: int = 20) -> Entry:
        """The next entry, which the following ones continue; `size` bytes that differ from entry to entry."""
        key, count = (publisher, incarnation), sum(sizes)
        after = self.numbers.get(key, 0)
        payload = (f"{publisher}/{incarnation}/{after + 1}/{self.epoch}.{self.term}:".encode() * size)[:size]
        made = Entry(
            self.epoch,
            self.term,
            self.tail.seq + 1,
            self.time,
            publisher,
            incarnation,
            after,
            after + 1,
            tuple(sizes),
            payload,
            batch_digest(sizes, payload),
        )
        made = replace(made, digest=chain(self.tail.digest, self.log.lineage, made))
        self.numbers[key] = after + count
        self.tail = Tail(made.last_seq, made.epoch, made.term, made.digest, made.time)
        return made

    async def append(self, entries: Sequence[Entry]) -> None:
        await self.log.append(self.epoch, self.term, entries[0].seq - 1, entries)

    async def write(self, *counts: int, publisher: str = "p", incarnation: int = 1, size: int = 20) -> list[Entry]:
        """Append one entry of one-change groups per count, in one append; goes on with the publisher's numbers."""
        if (publisher, incarnation) not in self.numbers:
            self.numbers[publisher, incarnation] = await self.log.last_number(publisher, incarnation) or 0
        entries = [self.entry(publisher, incarnation, (1,) * count, size) for count in counts]
        await self.append(entries)
        return entries


@asynccontextmanager
async def opened(
    make_store: MakeStore, place: str, feed: str = "vmapi", settings: Settings | None = None
) -> AsyncIterator[FeedLog]:
    """A feed's log as one more process would open it."""
    store = make_store(place, Settings() if settings is None else settings, World())
    log = await store.open(feed)
    try:
        yield log
    finally:
        await log.aclose()
        await store.aclose()


async def raises(kind: type[BaseException], call: Awaitable[object]) -> BaseException:
    """The error of that kind that the call raises; AssertionError if it raises none."""
    try:
        result = await call
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, got {result!r}")


async def everything(log: FeedLog) -> list[Entry]:
    """All entries from the floor on."""
    seq = (await log.look()).floor.seq
    found: list[Entry] = []
    while entries := await log.read(seq, 1000):
        found += entries
        seq = entries[-1].last_seq
    return found


async def check_whole(log: FeedLog) -> None:
    """The log must verify."""
    fault = (await verify_log(log)).fault
    assert fault is None, fault
