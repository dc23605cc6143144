"""A log in SQLite files: `sqlite:DIR` names a directory that holds one file per feed, FEED.db. One machine only.

    sqlite.py          the store's face for trio: which thread does what, cancellation, wake-ups
    sqlite_file.py     one feed's file, synchronously: connections, transactions, checkpoints, errors
    sqlite_write.py    what each writing transaction does    sqlite_read.py    what each reading one does
    sqlite_schema.py   tables and rows                       sqlite_io.py      locks, identity, disk, mounts
    sqlite_snapshot.py the latest event of each object: its tables, and what is read and written of them

Blocking calls run in worker threads under limiters of their own, so that catch-up reads hold up neither appends nor
looks: one writer, READERS readers, one look, one checkpoint at a time.

**Cancellation.** Waiting for one's turn can be cancelled and leaves nothing behind. A write that has begun runs to its
end and returns its result; the cancellation is delivered at the caller's next checkpoint. A read that is cancelled is
left to its thread, which drops its result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, TypeVarTuple

import trio
import trio.to_thread

from changefeed.batch import Entry
from changefeed.change import FEED_NAME, FeedSettings, Key, check_feed_name
from changefeed.errors import BadUrl, LogUnavailable
from changefeed.log import Fence, Latest, Look, Outbox, PublisherState
from changefeed.log.rules import check_entries, check_fold, check_keys
from changefeed.log.sqlite_file import READERS, FeedFile
from changefeed.log.sqlite_io import refuse_network
from changefeed.ports import World
from changefeed.settings import Settings

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: How often a waiting process looks whether the write-ahead log was touched, and how often it asks all the same.
POLL_S = 0.05
ASK_EVERY = 10


class RunSync(Protocol):
    """How blocking calls run. trio.to_thread.run_sync, unless a simulation runs them in its own time."""

    async def __call__(
        self,
        call: Callable[[*Ts], T],
        /,
        *arguments: *Ts,
        limiter: trio.CapacityLimiter,
        abandon_on_cancel: bool = False,
    ) -> T: ...


class Bell:
    """Wakes those in this process who wait for a feed's tail to move."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        event, self._event = self._event, trio.Event()
        event.set()

    async def wait(self) -> None:
        await self._event.wait()


class SqliteLogStore:
    """The store behind `sqlite:`. Creates its directory when the first feed is opened."""

    kind = "sqlite"

    def __init__(
        self,
        url: str,
        directory: str,
        settings: Settings | None = None,
        *,
        world: World | None = None,
        run_sync: RunSync = trio.to_thread.run_sync,
    ) -> None:
        self.url = url
        self.directory = os.path.abspath(directory)
        self._settings = Settings() if settings is None else settings
        self._world = World() if world is None else world
        self._run_sync = run_sync
        self._bells: dict[str, Bell] = {}
        self._limiter = trio.CapacityLimiter(1)

    async def open(self, feed: str, *, create: bool = True, check: bool = True) -> SqliteFeedLog:
        """See LogStore.open. Also raises BadUrl if the path is not a directory, and BadConfig on a network file
        system. Cancelled, it leaves nothing open."""
        check_feed_name(feed)
        file = FeedFile(self.directory, feed, self._settings, self._world)
        await self._run_sync(self._open, file, create, check, limiter=self._limiter)
        return SqliteFeedLog(file, self._bells.setdefault(feed, Bell()), self._run_sync)

    def _open(self, file: FeedFile, create: bool, check: bool) -> None:
        self._check_directory()
        try:
            file.open(create, check)
        except OSError as error:
            raise LogUnavailable(
                f"the log's folder {self.directory} cannot be made or used: {error.strerror}; write sqlite:DIR "
                "with a folder that can be written"
            ) from error

    def _check_directory(self) -> None:
        if os.path.lexists(self.directory) and not os.path.isdir(self.directory):
            raise BadUrl(f"{self.url}: {self.directory} is not a directory; sqlite: keeps one file per feed in one")
        refuse_network(self.directory)

    async def feeds(self) -> list[str]:
        return await self._run_sync(self._feeds, limiter=self._limiter)

    def _feeds(self) -> list[str]:
        self._check_directory()
        try:
            names = [entry.name for entry in os.scandir(self.directory) if entry.is_file() and entry.stat().st_size]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LogUnavailable(f"{self.directory}: {error.strerror}") from error
        found = (name.removesuffix(".db") for name in names if name.endswith(".db"))
        return sorted(name for name in found if FEED_NAME.match(name))

    async def aclose(self) -> None:
        """Closes nothing but itself: each FeedLog is closed by whoever opened it."""
        await trio.lowlevel.checkpoint()


class SqliteFeedLog:
    """The log of one feed in its file. See FeedLog for what each call does and raises."""

    outbox: Outbox | None = None

    def __init__(self, file: FeedFile, bell: Bell, run_sync: RunSync = trio.to_thread.run_sync) -> None:
        self.feed = file.feed
        self.lineage = file.lineage
        self._file = file
        self._bell = bell
        self._run_sync = run_sync
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(READERS)
        self._looking = trio.CapacityLimiter(1)
        self._keeping = trio.CapacityLimiter(1)

    async def _write(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        # Not abandoned when cancelled: trio waits for the thread and hands over its result.
        return await self._run_sync(call, *arguments, limiter=self._writing)

    async def _read(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await self._run_sync(call, *arguments, limiter=self._reading, abandon_on_cancel=True)

    async def look(self, renew: tuple[int, str, int] | None = None) -> Look:
        return await self._run_sync(self._file.look, renew, limiter=self._looking, abandon_on_cancel=True)

    async def fence(self, fence: Fence, *, why: str, time: int, clean: bool) -> Look:
        return await self._write(self._file.fence, fence, why, time, clean)

    async def append(self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry]) -> None:
        check_entries(epoch, term, expected_tail, entries)
        await self._write(self._file.append, epoch, term, expected_tail, entries)
        self._bell.ring()

    async def open_publisher(self, epoch: int, term: str, publisher: str, *, named: bool) -> PublisherState:
        return await self._write(self._file.open_publisher, epoch, term, publisher, named)

    async def publisher_state(self, publisher: str) -> PublisherState | None:
        return await self._read(self._file.publisher_state, publisher)

    async def last_number(self, publisher: str, incarnation: int) -> int | None:
        return await self._read(self._file.last_number, publisher, incarnation)

    async def find_batch(self, publisher: str, incarnation: int, number: int) -> Entry | None:
        return await self._read(self._file.find_batch, publisher, incarnation, number)

    async def read(self, after_seq: int, max_bytes: int) -> list[Entry]:
        return await self._read(self._file.read, after_seq, max_bytes)

    async def read_time(self, time: int) -> int:
        return await self._read(self._file.read_time, time)

    async def trim(self, epoch: int, term: str, up_to_seq: int) -> int:
        """Drops in several short transactions, between which appends and fences have their turn; cancelled between
        two, it leaves the floor where the last one put it."""
        more = True
        while more:
            floor, more = await self._write(self._file.trim_some, epoch, term, up_to_seq)
        return floor

    async def fold(
        self, epoch: int, term: str, after: int | None, to: int, rows: Sequence[Latest], gone: Sequence[Key],
        *, versioned: bool,
    ) -> None:  # fmt: skip
        """Where it begins anew, many rows are dropped in several short transactions before."""
        check_fold(after, to, rows, gone)
        while await self._write(self._file.fold_some, epoch, term, after, to, rows, gone, versioned):
            pass

    async def latest(self, keys: Sequence[Key]) -> list[Latest]:
        check_keys(keys)
        return await self._read(self._file.latest, keys)

    async def list_latest(self, after: Key | None, max_bytes: int, *, at: int | None = None) -> list[Latest]:
        return await self._read(self._file.list_latest, after, max_bytes, at)

    async def settings(self) -> FeedSettings:
        return await self._read(self._file.settings)

    async def set_settings(self, settings: FeedSettings) -> FeedSettings:
        settings.check()
        return await self._write(self._file.set_settings, settings)

    async def maintain(self) -> dict[str, int]:
        return await self._run_sync(self._file.maintain, limiter=self._keeping)

    async def wait(self, tail_seq: int) -> None:
        touched: object = None
        asked = 0
        while True:
            before, touched = touched, self._touched()
            if touched != before or asked >= ASK_EVERY:
                asked = 0
                if await self._read(self._file.tail_seq) != tail_seq:
                    return
            asked += 1
            with trio.move_on_after(POLL_S):
                await self._bell.wait()

    def _touched(self) -> object:
        # A stat costs a microsecond, and the file systems of other machines are refused. Its time stamp may be too
        # coarse to show a second write within a tick: that is why the tail is asked now and then all the same.
        try:
            found = os.stat(self._file.path + "-wal")
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size)

    async def storage(self) -> tuple[int, int]:
        return await self._read(self._file.storage)

    async def aclose(self) -> None:
        """Waits for a write that has begun. Idempotent."""
        with trio.CancelScope(shield=True):
            async with self._keeping:
                await self._write(self._file.close)
