"""A log in PostgreSQL: `postgresql://USER@HOST/DATABASE`, for instances on many machines.

    __init__.py      the store's face for trio: which thread does what, cancellation, wake-ups
    feed.py          one feed, synchronously: what is asked, what is checked of the answer
    rows.py          the statements, and values from their rows (pure)
    connections.py   connections, what is refused of a server, and what its errors mean
    layout.py        making, upgrading and describing the tables
    layout_1.sql     the tables and the functions
    outbox_1.sql     changefeed.publish(), and which transactions may be moved next: with the proof of the order
    outbox.py        rows of the outbox become batches
    wakeup.py        NOTIFY after an append, LISTEN while somebody waits

Everything is read from and written to the primary; nothing is ever read from a standby. One row per feed, its *head*,
serialises and fences: see layout_1.sql. Blocking calls run in worker threads under limiters of their own, so that
catch-up reads hold up neither appends nor looks.

**Cancellation** is as in every store: see FeedLog. **Time-outs**: a server that acknowledges no byte for 10 s is taken
for gone; until then a write waits, and looks say that the log does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar, TypeVarTuple

import trio
import trio.to_thread

from changefeed.batch import Entry
from changefeed.change import FeedSettings, Key, check_feed_name
from changefeed.log import Fence, Latest, Look, Moved, Outbox, PublisherState
from changefeed.log.postgresql.connections import Link, Server
from changefeed.log.postgresql.feed import READERS, FeedRows
from changefeed.log.postgresql.layout import check_layout
from changefeed.log.postgresql.wakeup import Waker
from changefeed.log.rules import check_entries, check_fold, check_keys
from changefeed.ports import World
from changefeed.settings import Settings

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: The server does not say how much room its disk has: a full one is met by the append that finds no room.
NO_BOUND: Final = 2**62


class PostgresqlLogStore:
    """The store behind `postgresql:`. url: without its password, since status shows it."""

    kind = "postgresql"

    def __init__(self, url: str, settings: Settings | None = None, *, world: World | None = None) -> None:
        self._settings = Settings() if settings is None else settings
        self._world = World() if world is None else world
        self.server = Server(url, self._settings.log_timeout_s)
        self.url = self.server.shown
        self._limiter = trio.CapacityLimiter(1)

    async def open(self, feed: str, *, create: bool = True, check: bool = True) -> PostgresqlFeedLog:
        """See LogStore.open. Also raises LogAccessDenied, LogNotLaidOut, LogUnsafe. Cancelled, it leaves nothing
        open."""
        check_feed_name(feed)
        rows = FeedRows(self.server, feed, self._settings, self._world)
        await trio.to_thread.run_sync(rows.open, create, check, limiter=self._limiter)
        return PostgresqlFeedLog(rows, Waker(self.server, rows.id))

    async def feeds(self) -> list[str]:
        return await trio.to_thread.run_sync(self._feeds, limiter=self._limiter)

    def _feeds(self) -> list[str]:
        link = Link(self.server)
        try:
            check_layout(link)
            return [str(name) for (name,) in link.read("feeds", "SELECT feed FROM changefeed.feeds ORDER BY feed", ())]
        finally:
            link.close()

    async def aclose(self) -> None:
        """Closes nothing but itself: each FeedLog is closed by whoever opened it."""
        await trio.lowlevel.checkpoint()


class PostgresqlOutbox:
    """See Outbox: what changefeed.publish() and captured tables have put there."""

    def __init__(self, log: PostgresqlFeedLog, rows: FeedRows) -> None:
        self._log = log
        self._rows = rows
        self._limiter = trio.CapacityLimiter(1)

    async def waiting(self, bytes_max: int) -> Moved | None:
        return await trio.to_thread.run_sync(
            self._rows.waiting, bytes_max, limiter=self._limiter, abandon_on_cancel=True
        )

    async def append(self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry], moved: Moved) -> None:
        await self._log.store(epoch, term, expected_tail, entries, moved)

    async def wait(self, pause_s: float) -> None:
        """A poll: a NOTIFY of the applications' transactions would make their commits wait for one another."""
        await trio.sleep(pause_s)


class PostgresqlFeedLog:
    """The log of one feed. See FeedLog for what each call does and raises."""

    outbox: Outbox | None

    def __init__(self, rows: FeedRows, waker: Waker) -> None:
        self.outbox = PostgresqlOutbox(self, rows)
        self.feed = rows.feed
        self.lineage = rows.lineage
        self._rows = rows
        self._waker = waker
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(READERS)
        self._looking = trio.CapacityLimiter(1)

    async def _write(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        # Not abandoned when cancelled: trio waits for the thread and hands over its result.
        return await trio.to_thread.run_sync(call, *arguments, limiter=self._writing)

    async def _read(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await trio.to_thread.run_sync(call, *arguments, limiter=self._reading, abandon_on_cancel=True)

    async def look(self, renew: tuple[int, str, int] | None = None) -> Look:
        return await trio.to_thread.run_sync(self._rows.look, renew, limiter=self._looking, abandon_on_cancel=True)

    async def fence(self, fence: Fence, *, why: str, time: int, clean: bool) -> Look:
        return await self._write(self._rows.fence, fence, why, time, clean)

    async def append(self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry]) -> None:
        await self.store(epoch, term, expected_tail, entries, None)

    async def store(
        self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry], moved: Moved | None
    ) -> None:
        """FeedLog.append and Outbox.append."""
        check_entries(epoch, term, expected_tail, entries)
        await self._write(self._rows.append, epoch, term, expected_tail, entries, moved)
        self._waker.moved(entries[-1].last_seq)

    async def open_publisher(self, epoch: int, term: str, publisher: str, *, named: bool) -> PublisherState:
        return await self._write(self._rows.open_publisher, epoch, term, publisher, named)

    async def publisher_state(self, publisher: str) -> PublisherState | None:
        return await self._read(self._rows.publisher_state, publisher)

    async def last_number(self, publisher: str, incarnation: int) -> int | None:
        return await self._read(self._rows.last_number, publisher, incarnation)

    async def find_batch(self, publisher: str, incarnation: int, number: int) -> Entry | None:
        return await self._read(self._rows.find_batch, publisher, incarnation, number)

    async def read(self, after_seq: int, max_bytes: int) -> list[Entry]:
        return await self._read(self._rows.read, after_seq, max_bytes)

    async def read_time(self, time: int) -> int:
        return await self._read(self._rows.read_time, time)

    async def trim(self, epoch: int, term: str, up_to_seq: int) -> int:
        """Drops in several short transactions, between which appends and fences have their turn; cancelled between
        two, it leaves the floor where the last one put it."""
        more = True
        while more:
            floor, more = await self._write(self._rows.trim_some, epoch, term, up_to_seq)
        return floor

    async def fold(
        self, epoch: int, term: str, after: int | None, to: int, rows: Sequence[Latest], gone: Sequence[Key],
        *, versioned: bool,
    ) -> None:  # fmt: skip
        """Where it begins anew, many rows are dropped in several short transactions before."""
        check_fold(after, to, rows, gone)
        while await self._write(self._rows.fold_some, epoch, term, after, to, rows, gone, versioned):
            pass

    async def latest(self, keys: Sequence[Key]) -> list[Latest]:
        check_keys(keys)
        return await self._read(self._rows.latest, keys)

    async def list_latest(self, after: Key | None, max_bytes: int, *, at: int | None = None) -> list[Latest]:
        return await self._read(self._rows.list_latest, after, max_bytes, at)

    async def settings(self) -> FeedSettings:
        return await self._read(self._rows.settings)

    async def set_settings(self, settings: FeedSettings) -> FeedSettings:
        settings.check()
        return await self._write(self._rows.set_settings, settings)

    async def maintain(self) -> dict[str, int]:
        """Facts: table_bytes, of the entries' table with its indexes. The server's autovacuum does the rest."""
        return await self._read(self._rows.maintain)

    async def wait(self, tail_seq: int) -> None:
        while await self._read(self._rows.tail_seq) == tail_seq:
            await self._waker.wait()

    async def storage(self) -> tuple[int, int]:
        await trio.lowlevel.checkpoint()
        return NO_BOUND, NO_BOUND

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await self._waker.aclose()
            await trio.to_thread.run_sync(self._rows.close)
        await trio.lowlevel.checkpoint_if_cancelled()
