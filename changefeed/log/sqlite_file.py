"""One feed's file, synchronously: connections, transactions, locks, checkpoints, and what follows from an error.

Called from worker threads. Writes come from one thread at a time, each other kind of call from any.

**After an I/O error** every connection is closed and opened anew. The kernel may have dropped pages that it could not
write and call the next fsync a success, so nothing that this process wrote since its last success is trusted: reads go
on, but writes are refused with AppendOutcomeUnknown, which ends a leader's term, until a fence has written the whole
write-ahead log again in place, and then copied it into the database (`wal_checkpoint(TRUNCATE)`). In this order: a copy
alone would leave, until the log's truncation is durable, a newer database beside a log with a hole.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar

from changefeed.batch import Entry, Tail
from changefeed.change import FeedSettings, Key
from changefeed.errors import (
    AppendOutcomeUnknown,
    ChangefeedError,
    LogDamaged,
    LogFull,
    LogReplaced,
    LogUnavailable,
    UnknownFeed,
)
from changefeed.log import Fence, Latest, Look, PublisherState
from changefeed.log import sqlite_read as rows
from changefeed.log import sqlite_snapshot as snapshot
from changefeed.log import sqlite_write as changes
from changefeed.log.rules import room_needed
from changefeed.log.sqlite_io import (
    BUSY,
    FULL,
    IOERR,
    Identity,
    Turn,
    code_of,
    connect,
    disk_room,
    make_directory,
    meaning,
    retry_pause,
    size_of,
    truncate_wal,
    wal_holder,
    write_lock_holder,
    write_wal_again,
)
from changefeed.log.sqlite_schema import read_end
from changefeed.ports import World
from changefeed.settings import Settings

T = TypeVar("T")

PAGE: Final = 4096
#: The writer's cache holds the pages of the largest append, so that none is spilled before the commit.
WRITER_CACHE_KIB: Final = 32 * 1024
READER_CACHE_KIB: Final = 2 * 1024
READERS: Final = 4
#: How long a TRUNCATE may hold appends up (or an unclean fence be held up) by readers.
TRUNCATE_WAIT_S: Final = 0.05
#: How often appends look at the free room of the disk.
ROOM_EVERY_S: Final = 0.1


class FeedFile:
    """The file of one feed. `open` first, `close` last."""

    def __init__(self, directory: str, feed: str, settings: Settings, world: World) -> None:
        self.feed = feed
        self.directory = directory
        self.path = os.path.join(directory, f"{feed}.db")
        self.lineage = ""
        self._settings = settings
        self._world = world
        self._turn: Turn | None = None
        self._mutex = threading.Lock()  # of the four below; held for moments, never across I/O
        self._generation = 0
        self._idle: list[sqlite3.Connection] = []
        self._identity: Identity | None = None
        self._newest: tuple[int, Tail] | None = None
        self._writer: sqlite3.Connection | None = None
        self._writer_generation = -1
        self._keeper: sqlite3.Connection | None = None
        self._keeper_generation = -1
        self._final: LogReplaced | None = None
        self._closed = False
        self._failed = False
        self._truncate_due = False
        self._room_checked = float("-inf")
        self._room_error: LogFull | None = None

    # ---- opening and closing

    def open(self, create: bool, check: bool = True) -> None:
        """Open, and lay out if `create`; check the log's end if `check`. See LogStore.open for what it raises."""
        if create:
            make_directory(self.directory)
        if not create and not size_of(self.path):
            raise UnknownFeed(f"there is no log of feed {self.feed} in {self.directory}")
        try:
            self._lay_out(create)
            self._turn = Turn(os.path.join(self.directory, f"{self.feed}.turn"))
            self._mend()
            self._add_tables()
            look = rows.check_opening if check else rows.look
            found = self._read(lambda connection: look(connection, self.feed))
        except BaseException:
            self.close()
            raise
        self.lineage = found.lineage
        self._newest = (found.fence.epoch, found.tail)

    def _lay_out(self, create: bool) -> None:
        deadline = time.monotonic() + self._settings.log_timeout_s
        while True:
            connection: sqlite3.Connection | None = None
            try:
                connection = self._connect_writer(create)
                if not rows.is_laid_out(connection, self.feed):
                    self._create(connection, create)
            except sqlite3.Error as error:
                self._discard(connection)
                # Others create or recover the same file: their locks are short.
                if code_of(error) not in BUSY or time.monotonic() > deadline:
                    raise meaning(error, self.path) from error
                time.sleep(retry_pause())
            except BaseException:
                self._discard(connection)
                raise
            else:
                self._writer, self._writer_generation = connection, self._generation
                return

    def _create(self, connection: sqlite3.Connection, create: bool) -> None:
        if not create:
            raise UnknownFeed(f"there is no log of feed {self.feed} in {self.directory}")
        changes.lay_out(connection, self.feed, self._world)

    def _add_tables(self) -> None:
        """What a file of release 0.1.0 lacks. After `_mend`, since a commit may copy the write-ahead log."""
        if not self._read(snapshot.has_snapshot_tables):
            try:
                with self._transaction("open") as connection:
                    snapshot.create_snapshot_tables(connection)
            except AppendOutcomeUnknown as error:
                raise LogUnavailable(f"the tables of the snapshot could not be added: {error}") from error

    def _connect_writer(self, create: bool) -> sqlite3.Connection:
        # The leader checkpoints beside its appends (`maintain`); this is the bound where nobody does.
        pages = max(1000, 2 * self._settings.wal_bytes_truncate // PAGE)
        before = Identity.of(self.path)
        connection = connect(self.path, create=create, cache_kib=WRITER_CACHE_KIB, autocheckpoint=pages)
        try:
            if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise LogUnavailable(f"SQLite cannot keep a write-ahead log beside {self.path} on this file system")
            connection.execute(f"PRAGMA journal_size_limit = {self._settings.wal_bytes_truncate}")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            found = Identity.of(self.path)
            if before is not None and (found is None or found.database != before.database):
                raise LogReplaced(f"{self.path} was replaced while it was opened; open it again")
        except BaseException:
            connection.close()
            raise
        with self._mutex:
            self._identity = found
        return connection

    def close(self) -> None:
        """Close what is idle; a call that is still running in another thread closes its connection itself."""
        self._closed = True
        self._drop_connections()
        for connection in (self._writer, self._keeper):
            if connection is not None:
                connection.close()
        self._writer = self._keeper = None
        if self._turn is not None:
            self._turn.close()

    def _drop_connections(self) -> None:
        with self._mutex:
            self._generation += 1
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # ---- errors

    def _check_usable(self) -> None:
        if self._closed:
            raise LogUnavailable(f"the log of feed {self.feed} was closed by this process")
        if self._final is not None:
            raise LogReplaced(str(self._final))
        with self._mutex:
            identity = self._identity
        if identity is not None:
            try:
                identity.check()
            except LogReplaced as error:
                self._final = error
                raise

    def _understand(self, error: sqlite3.Error) -> ChangefeedError:
        """The typed error of a call that wrote nothing; closes the log after an I/O error."""
        if code_of(error) == IOERR:
            self._io_failed()
        return meaning(error, self.path)

    def _io_failed(self) -> None:
        self._failed = True
        if self._turn is not None:
            self._turn.doubt(True)
        self._drop_connections()

    def _replaced(self, why: str) -> LogReplaced:
        self._final = LogReplaced(f"{why}; {self.path} is not the file that this process opened: restart the process")
        return self._final

    def _compare(self, known: tuple[int, Tail] | None, found: Look) -> None:
        """Hold a look against what was known when it began: a file that is overwritten in place keeps its inode, but
        a log never goes back."""
        if found.lineage != self.lineage:
            raise self._replaced(f"the log of feed {self.feed} is another one now (lineage {found.lineage})")
        if known is None:
            return
        epoch, tail = known
        same = found.tail.seq == tail.seq and found.tail.digest == tail.digest
        if found.fence.epoch < epoch or not (same or found.tail.seq > tail.seq):
            raise self._replaced(
                f"the log of feed {self.feed} was at epoch {epoch} and seq {tail.seq} and now says epoch"
                f" {found.fence.epoch} and seq {found.tail.seq}"
            )

    def _note(self, epoch: int, tail: Tail) -> None:
        with self._mutex:
            if self._newest is None or (tail.seq, epoch) >= (self._newest[1].seq, self._newest[0]):
                self._newest = (epoch, tail)

    # ---- reading

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one read transaction, which is over when this returns."""
        self._check_usable()
        deadline = time.monotonic() + self._settings.log_timeout_s
        while True:
            with self._mutex:
                generation = self._generation
                connection = self._idle.pop() if self._idle else None
            try:
                if connection is None:
                    connection = connect(self.path, create=False, cache_kib=READER_CACHE_KIB)
                connection.execute("BEGIN")
                result = work(connection)
                connection.execute("COMMIT")
                self._give_back(connection, generation)
                return result
            except sqlite3.Error as error:
                self._discard(connection)
                # Readers are locked out only while another process recovers or closes the file.
                if code_of(error) not in BUSY or time.monotonic() > deadline:
                    raise self._understand(error) from error
                time.sleep(retry_pause())
            except ChangefeedError:
                self._end_read(connection, generation)
                raise
            except BaseException:
                self._discard(connection)
                raise

    def _end_read(self, connection: sqlite3.Connection | None, generation: int) -> None:
        try:
            if connection is not None:
                connection.execute("ROLLBACK")
                self._give_back(connection, generation)
        except sqlite3.Error:
            self._discard(connection)

    def _give_back(self, connection: sqlite3.Connection, generation: int) -> None:
        with self._mutex:
            keep = generation == self._generation and len(self._idle) < READERS and not self._closed
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def _discard(self, connection: sqlite3.Connection | None) -> None:
        if connection is not None:
            connection.close()

    def look(self, renew: tuple[int, str, int] | None) -> Look:
        known = self._newest
        found = self._read(lambda connection: rows.look(connection, self.feed))
        self._compare(known, found)
        self._note(found.fence.epoch, found.tail)
        fence = found.fence
        if renew is not None and self._turn is not None and (fence.epoch, fence.term) == renew[:2]:
            self._turn.stamp(*renew)
        return self._stamped(found)

    def _stamped(self, found: Look) -> Look:
        fence = found.fence
        stamp = self._turn.stamped(fence.epoch, fence.term) if self._turn is not None else 0
        return replace(found, fence=replace(fence, renewed=stamp)) if stamp > fence.renewed else found

    def tail_seq(self) -> int:
        return self._read(lambda connection: read_end(connection, self.feed, "tail").seq)

    def read(self, after_seq: int, max_bytes: int) -> list[Entry]:
        return self._read(lambda connection: rows.read(connection, self.feed, self.lineage, after_seq, max_bytes))

    def read_time(self, time: int) -> int:
        return self._read(lambda connection: rows.read_time(connection, self.feed, time))

    def publisher_state(self, publisher: str) -> PublisherState | None:
        return self._read(lambda connection: rows.publisher_state(connection, self.feed, publisher))

    def last_number(self, publisher: str, incarnation: int) -> int | None:
        return self._read(lambda connection: rows.last_number(connection, self.feed, publisher, incarnation))

    def find_batch(self, publisher: str, incarnation: int, number: int) -> Entry | None:
        return self._read(lambda connection: rows.find_batch(connection, self.feed, publisher, incarnation, number))

    def latest(self, keys: Sequence[Key]) -> list[Latest]:
        return self._read(lambda connection: snapshot.latest(connection, self.feed, keys))

    def list_latest(self, after: Key | None, max_bytes: int, at: int | None) -> list[Latest]:
        return self._read(lambda connection: snapshot.list_latest(connection, self.feed, after, max_bytes, at))

    def settings(self) -> FeedSettings:
        return self._read(lambda connection: rows.read_settings(connection, self.feed))

    # ---- writing

    def _writing(self) -> sqlite3.Connection:
        """The write connection of the present generation."""
        if self._writer is not None and self._writer_generation != self._generation:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            generation = self._generation
            try:
                self._writer = self._connect_writer(create=False)
            except sqlite3.Error as error:
                raise self._understand(error) from error
            self._writer_generation = generation
        return self._writer

    @contextmanager
    def _transaction(self, what: str, wait_s: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its start; committed and durable when the block is left."""
        self._check_usable()
        connection = self._writing()
        self._begin(connection, what, self._settings.log_timeout_s if wait_s is None else wait_s)
        try:
            yield connection
        except sqlite3.Error as error:
            self._roll_back(connection)
            raise self._not_written(error, what) from error
        except BaseException:
            self._roll_back(connection)
            raise
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection)
            # A full disk leaves the commit's last frame unwritten. Of anything else we do not know.
            if code_of(error) == FULL:
                raise self._not_written(error, what) from error
            if code_of(error) == IOERR:
                self._io_failed()
            raise AppendOutcomeUnknown(f"{what} failed while it was committed ({error}): it may be stored") from error
        # Whoever replaced the file meanwhile has the commit in a file that nobody will read again.
        self._check_usable()

    def _begin(self, connection: sqlite3.Connection, what: str, wait_s: float) -> None:
        started = time.monotonic()
        while True:
            if self._turn is not None and what != "fence":
                self._turn.give_way()
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.Error as error:
                if code_of(error) not in BUSY:
                    raise self._not_written(error, what) from error
            if time.monotonic() - started >= wait_s:
                holder = write_lock_holder(self.path)
                who = f"process {holder}" if holder else "another process"
                raise LogUnavailable(f"{what}: {who} has held the write lock of {self.path} for {wait_s:g} s")
            time.sleep(retry_pause())

    def _not_written(self, error: sqlite3.Error, what: str) -> ChangefeedError:
        found = self._understand(error)
        if code_of(error) == IOERR:
            # Nothing of this one is stored, but a leader must not go on: its term ends as after an unknown outcome.
            return AppendOutcomeUnknown(f"{what}: {found}; the log is closed until it is fenced again")
        if isinstance(found, LogFull) and what not in ("append", "open_publisher", "fold"):
            # LogFull is what publishers are refused with; a fence or a trim that finds no room just waits for it.
            return LogUnavailable(f"{what}: {found}")
        return found

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._drop_connections()

    def _refuse_after_failure(self, what: str) -> None:
        if self._failed:
            raise AppendOutcomeUnknown(
                f"{what}: this process closed the log of feed {self.feed} after an I/O error; a fence opens it again"
            )

    def fence(self, fence: Fence, why: str, time: int, clean: bool) -> Look:
        known = self._newest
        if self._turn is not None:
            self._turn.claim()
        try:
            with self._transaction("fence") as connection:
                if self._failed or not clean or (self._turn is not None and self._turn.doubtful()):
                    self._write_wal_again()
                found = changes.fence(connection, self.feed, fence, why, time)
                self._compare(known, found)
        finally:
            if self._turn is not None:
                self._turn.release()
        self._note(found.fence.epoch, found.tail)
        self._make_whole(clean)
        return found

    def _mend(self) -> None:
        """Before anything is copied out of a write-ahead log of which somebody said that the disk failed under it."""
        if self._turn is not None and self._turn.doubtful():
            try:
                with self._transaction("open", wait_s=0.0):
                    self._write_wal_again()
            except LogUnavailable:
                # Somebody else writes: nothing was lost from what is seen, or they mend it.
                if self._failed:
                    raise

    def _write_wal_again(self) -> None:
        """Make durable what a dead leader wrote and never synced, also where its sync *failed*: then the pages may be
        marked clean and yet not be on the disk, and what is committed behind them would be lost with them."""
        try:
            write_wal_again(self.path + "-wal")
        except OSError as error:
            self._io_failed()
            raise LogUnavailable(f"{self.path}-wal could not be written again: {error.strerror}") from error
        if self._turn is not None:
            self._turn.doubt(False)

    def _make_whole(self, clean: bool) -> None:
        """Copy the write-ahead log into the database, so that nothing depends any more on where a disk has failed.

        A reader frozen inside a transaction can keep the copy from being complete. Waiting for it would let one
        stopped process stop the feed, for the sake of a disk that failed and whose owner told nobody; so this gives up
        after TRUNCATE_WAIT_S, having copied what that reader allows, and `maintain` tries again until it succeeds.
        If it was *this* process that saw the disk fail, it insists.
        """
        if clean and not self._failed:
            return
        try:
            self._copy_all()
        except (LogUnavailable, LogFull) as error:
            # Of the fence itself these would say that it is written nowhere.
            raise AppendOutcomeUnknown(
                f"the fence stands, but the write-ahead log of {self.path} could not be copied: {error}"
            ) from error

    def _copy_all(self) -> None:
        connection = self._writing()
        deadline = time.monotonic() + self._settings.log_timeout_s
        while not self._truncate(connection):
            if not self._failed:
                self._truncate_due = True
                return
            if time.monotonic() > deadline:
                holder = wal_holder(self.path)
                raise AppendOutcomeUnknown(
                    f"the fence stands, but after an I/O error the write-ahead log of {self.path} could not be copied:"
                    f" {f'process {holder}' if holder else 'another process'} reads from it"
                )
        self._truncate_due = False
        self._failed = False

    def _truncate(self, connection: sqlite3.Connection) -> bool:
        """Copy the whole write-ahead log and cut it to nothing; False if somebody is in the way for TRUNCATE_WAIT_S."""
        try:
            return truncate_wal(connection, TRUNCATE_WAIT_S)
        except sqlite3.Error as error:
            raise self._understand(error) from error

    def append(self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry]) -> None:
        self._refuse_after_failure("append")
        self._check_room()
        with self._transaction("append") as connection:
            changes.append(connection, self.feed, epoch, term, expected_tail, entries)
        end = entries[-1]
        self._note(epoch, Tail(end.last_seq, end.epoch, end.term, end.digest, end.time))

    def open_publisher(self, epoch: int, term: str, publisher: str, named: bool) -> PublisherState:
        self._refuse_after_failure("open_publisher")
        limit = self._settings.publishers_max
        with self._transaction("open_publisher") as connection:
            return changes.open_publisher(connection, self.feed, epoch, term, publisher, named, limit)

    def trim_some(self, epoch: int, term: str, up_to_seq: int) -> tuple[int, bool]:
        self._refuse_after_failure("trim")
        with self._transaction("trim") as connection:
            return changes.trim_some(connection, self.feed, epoch, term, up_to_seq)

    def fold_some(
        self, epoch: int, term: str, after: int | None, to: int, latest: Sequence[Latest], gone: Sequence[Key],
        versioned: bool,
    ) -> bool:  # fmt: skip
        self._refuse_after_failure("fold")
        with self._transaction("fold") as connection:
            return changes.fold_some(connection, self.feed, epoch, term, after, to, latest, gone, versioned)

    def set_settings(self, settings: FeedSettings) -> FeedSettings:
        self._refuse_after_failure("set_settings")
        with self._transaction("set_settings") as connection:
            return changes.set_settings(connection, self.feed, settings)

    # ---- beside appends

    def maintain(self) -> dict[str, int]:
        """Checkpoint; facts: wal_bytes, wal_left_bytes (not yet copied), file_bytes, and wal_holder_pid if a reader
        keeps a large write-ahead log from being truncated."""
        self._check_usable()
        connection = self._keeping()
        try:
            row = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            if code_of(error) not in BUSY and code_of(error) != FULL:
                raise self._understand(error) from error
            row = None
        facts = {}
        if self._truncate_due or size_of(self.path + "-wal") > self._settings.wal_bytes_truncate:
            if self._truncate(connection):
                self._truncate_due = False
            elif holder := wal_holder(self.path):
                facts["wal_holder_pid"] = holder
        facts["wal_bytes"] = size_of(self.path + "-wal")
        facts["file_bytes"] = size_of(self.path)
        facts["wal_left_bytes"] = PAGE * max(0, row[1] - row[2]) if row is not None else facts["wal_bytes"]
        return facts

    def _keeping(self) -> sqlite3.Connection:
        if self._keeper is not None and self._keeper_generation != self._generation:
            self._keeper.close()
            self._keeper = None
        if self._keeper is None:
            generation = self._generation
            try:
                self._keeper = connect(self.path, create=False, cache_kib=READER_CACHE_KIB)
                # Until it has read once, a connection does not know that there is a write-ahead log.
                self._keeper.execute("SELECT count(*) FROM sqlite_master").fetchone()
                self._keeper.execute(f"PRAGMA journal_size_limit = {self._settings.wal_bytes_truncate}")
            except sqlite3.Error as error:
                raise self._understand(error) from error
            self._keeper_generation = generation
        return self._keeper

    def storage(self) -> tuple[int, int]:
        """(free, total): the disk's free bytes and those inside the file, which trimming frees: the file never
        shrinks."""
        free, total = disk_room(self.directory)
        inside = self._read(lambda connection: connection.execute("PRAGMA freelist_count").fetchone())
        if inside is None or type(inside[0]) is not int:
            raise LogDamaged(f"the log of feed {self.feed} does not know its free pages")
        return free + PAGE * int(inside[0]), total

    def _check_room(self) -> None:
        now = time.monotonic()
        if now - self._room_checked >= ROOM_EVERY_S:
            free, total = self.storage()
            needed = room_needed(total, self._settings)
            self._room_checked = now
            self._room_error = None
            if free < needed:
                self._room_error = LogFull(
                    f"the disk of {self.directory} has {free} bytes free, less than the {needed} that are kept free;"
                    f" free room, or lower the retention of feed {self.feed}"
                )
        if self._room_error is not None:
            raise LogFull(str(self._room_error))
