"""Where a subscription's position is kept between runs: in memory, in a file, in the application's own SQLite database.

A cursor that is saved *after* the effect repeats at most the unsaved part after a crash, and skips nothing. A cursor
saved *with* the effect, in one transaction, applies each event exactly once; only the application can do that, so a
`SqliteCursor` is saved by its caller:

    connection = sqlite3.connect("state.db", isolation_level=None)
    cursor = SqliteCursor(connection, "billing", "vmapi")
    async with open_subscription("vmapi", cursor=cursor) as subscription:
        async for event in subscription:
            connection.execute("BEGIN IMMEDIATE")      # DEFERRED could fail with BUSY_SNAPSHOT at the first write
            try:
                ...                                    # the effect
                cursor.save(event.position)            # compare-and-set on the position before
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import weakref
from pathlib import Path
from typing import ClassVar, Final, Protocol

import trio

from changefeed.change import Position, check_feed_name
from changefeed.errors import (
    BadPosition,
    CursorDamaged,
    CursorError,
    CursorInUse,
    CursorMoved,
    CursorOfOtherFeed,
    UsageError,
)

FORMAT: Final = 1
#: A cursor file is one short line; what is longer is not one.
FILE_BYTES_MAX: Final = 4096
TABLE: Final = "changefeed_cursors"


class Cursor(Protocol):
    """by_caller: the application saves, in its own transaction; the subscription only reads it at the start."""

    by_caller: bool

    async def open(self, feed: str) -> Position | None:
        """Take hold of the cursor and return the saved position, None if it is empty.

        Raises CursorInUse, CursorDamaged, CursorOfOtherFeed, CursorError. Cancellation: the hold may be kept until
        `aclose`."""

    async def store(self, position: Position, *, sync: bool = True) -> None:
        """Keep `position`, durably where the cursor is durable. sync=False: it survives the death of the process; the
        loss of power surely only once another one was stored with sync, and on a file system that keeps the order of
        renames (ext4, XFS) once another one was stored at all. Raises CursorError. Cancellation: it is kept."""

    async def aclose(self) -> None:
        """Let go. Idempotent; the cursor may be opened again."""


class MemoryCursor:
    """Keeps the position for as long as the object lives: over subscriptions, not over processes."""

    by_caller = False

    def __init__(self, position: Position | None = None) -> None:
        self.position = position
        self._feed: str | None = None
        self._open = False

    async def open(self, feed: str) -> Position | None:
        await trio.lowlevel.checkpoint()
        if self._open:
            raise CursorInUse("another subscription uses this cursor")
        if self._feed is not None and self._feed != feed:
            raise CursorOfOtherFeed(f"the cursor holds a position of feed {self._feed!r}, not of {feed!r}")
        self._feed = feed
        self._open = True
        return self.position

    async def store(self, position: Position, *, sync: bool = True) -> None:
        await trio.lowlevel.checkpoint()
        self.position = position

    async def reset(self, position: Position | None) -> None:
        """Hold another position (None: be empty) from the next subscription on."""
        await trio.lowlevel.checkpoint()
        self.position = position

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._open = False


class FileCursor:
    """Keeps the position in a file: one line, replaced atomically and fsynced; locked beside it while it is used.

    path: the file; its folder must exist. `path` + ".lock" is made beside it and never deleted. One process (and one
    subscription) at a time may use it: a second one gets CursorInUse.
    """

    by_caller = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._feed: str | None = None
        self._lock: _FileLock | None = None
        # Waiting for a disk must not take threads from others, nor wait for theirs.
        self._limiter = trio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"FileCursor({str(self.path)!r})"

    async def open(self, feed: str) -> Position | None:
        return await trio.to_thread.run_sync(self._open, feed, limiter=self._limiter)

    async def store(self, position: Position, *, sync: bool = True) -> None:
        await trio.to_thread.run_sync(self._store, position, sync, limiter=self._limiter)

    async def reset(self, position: Position | None, *, feed: str | None = None) -> None:
        """Hold another position (None: be empty) from the next subscription on; for after a CannotResume.

        feed: of the position; needed for a file that is not there yet, as after a first list. Raises CursorInUse while
        a subscription uses it, CursorError if its feed is not known: it was never opened.
        """
        if feed is not None:
            check_feed_name(feed)
        await trio.to_thread.run_sync(self._reset, position, feed, limiter=self._limiter)

    async def aclose(self) -> None:
        await trio.to_thread.run_sync(self._close, limiter=self._limiter)

    def _open(self, feed: str) -> Position | None:
        self._take()
        try:
            position = self._read(feed)
        except BaseException:
            self._close()
            raise
        self._feed = feed
        return position

    def _take(self) -> None:
        if self._lock is not None:
            raise CursorInUse(f"another subscription of this process uses the cursor {self.path}")
        self._lock = _FileLock(self.path)

    def _close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _read(self, feed: str) -> Position | None:
        try:
            with open(self.path, "rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CursorError(f"the cursor {self.path} cannot be read: {error.strerror}") from error
        found, position = _parse(data, self.path)
        if found != feed:
            raise CursorOfOtherFeed(f"the cursor {self.path} holds a position of feed {found!r}, not of {feed!r}")
        return position

    def _store(self, position: Position, sync: bool) -> None:
        if self._lock is None or self._feed is None:
            raise CursorError(f"the cursor {self.path} is not open")
        self._write(self._feed, position, sync)

    def _write(self, feed: str, position: Position, sync: bool = True) -> None:
        new = self.path.with_name(self.path.name + ".new")
        try:
            with open(new, "wb") as file:
                file.write(_line(feed, position))
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
            if not sync:
                # The old content or the new, never half of it; mostly the next fsync brings the rename along.
                return
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise CursorError(f"the cursor {self.path} cannot be saved: {error.strerror}") from error

    def _reset(self, position: Position | None, feed: str | None) -> None:
        self._take()
        try:
            if position is None:
                self.path.unlink(missing_ok=True)
                return
            feed = feed or self._feed
            if feed is None:
                try:
                    feed, _ = _parse(self.path.read_bytes()[: FILE_BYTES_MAX + 1], self.path)
                except OSError as error:
                    raise CursorError(
                        f"the cursor {self.path} cannot be reset: which feed it is for is not known ({error.strerror})"
                    ) from error
            self._write(feed, position)
        finally:
            self._close()


def _line(feed: str, position: Position) -> bytes:
    """The content of a cursor file."""
    text = str(position)
    content = {"changefeed": "cursor", "format": FORMAT, "feed": feed, "position": text, "check": _check(feed, text)}
    return json.dumps(content).encode() + b"\n"


def _check(feed: str, position: str) -> str:
    return hashlib.sha256(f"{FORMAT}\0{feed}\0{position}".encode()).hexdigest()[:16]


def _parse(data: bytes, path: Path) -> tuple[str, Position]:
    """Feed and position of a cursor file's content. Raises CursorDamaged."""
    damaged = (
        f"{path} is no cursor of ours, or was cut or edited: {{}}. If its position does not matter, remove the file; "
        "the subscription then begins at its `start`"
    )
    if not data.endswith(b"\n") or len(data) > FILE_BYTES_MAX:
        raise CursorDamaged(damaged.format("it is not one whole line"))
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise CursorDamaged(damaged.format("it is not JSON")) from None
    if not isinstance(content, dict) or content.get("changefeed") != "cursor":
        raise CursorDamaged(damaged.format('it does not say "changefeed": "cursor"'))
    if content.get("format") != FORMAT:
        raise CursorDamaged(damaged.format(f"its format is {content.get('format')!r}, not {FORMAT}"))
    feed, text = content.get("feed"), content.get("position")
    if not isinstance(feed, str) or not isinstance(text, str) or content.get("check") != _check(feed, text):
        raise CursorDamaged(damaged.format("its check sum is wrong"))
    try:
        return feed, Position.parse(text)
    except BadPosition as error:
        raise CursorDamaged(damaged.format(str(error))) from None


class _FileLock:
    """`flock` on a file beside the cursor; dropped with the process, not inherited by what it forks or executes."""

    #: Every lock that is held, so that a forked child can let go of its copies: they would hold it after the parent.
    held: ClassVar[weakref.WeakSet[_FileLock]] = weakref.WeakSet()

    def __init__(self, path: Path) -> None:
        if path.is_dir() or not path.name:
            raise CursorError(f"{path} is a folder; a cursor is a file of its own")
        lock = path.with_name(path.name + ".lock")
        self._fd = -1
        while self._fd < 0:
            try:
                fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError as error:
                raise CursorError(
                    f"the folder {path.parent} of the cursor {path} does not exist: make it first"
                ) from error
            except OSError as error:
                raise CursorError(f"the cursor {path} cannot be locked: {error.strerror} ({lock})") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Somebody may have deleted the file between the two: then another process can lock its successor.
                if os.fstat(fd).st_ino == os.stat(lock).st_ino:
                    self._fd = fd
            except BlockingIOError:
                raise CursorInUse(f"another process uses the cursor {path}: each needs a cursor of its own") from None
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CursorError(f"the cursor {path} cannot be locked: {error.strerror} ({lock})") from error
            finally:
                if self._fd != fd:
                    os.close(fd)
        _FileLock.held.add(self)

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _FileLock.held.discard(self)
            os.close(fd)

    @classmethod
    def forked(cls) -> None:
        """In a forked child: close the copies. The lock stays the parent's, whose descriptor is still open."""
        for lock in list(cls.held):
            lock.release()


os.register_at_fork(after_in_child=_FileLock.forked)


class SqliteCursor:
    """Keeps the position in the application's database, saved in the application's own transaction.

    connection: used in the thread that calls. name: of the cursor; one row per name. feed: that it is for. The table
    `changefeed_cursors` is made when it is missing. Nothing here ever commits or rolls back, but for making the table
    where no transaction is open.
    """

    by_caller = True

    def __init__(self, connection: sqlite3.Connection, name: str, feed: str) -> None:
        self.name = name
        self.feed = feed
        self.position: Position | None = None
        self._connection = connection
        self._loaded = False

    def load(self) -> Position | None:
        """Read the saved position; None if there is none. Raises CursorOfOtherFeed, CursorDamaged, CursorError."""
        try:
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS {TABLE}"
                " (name TEXT PRIMARY KEY, feed TEXT NOT NULL, position TEXT NOT NULL)"
            )
            row = self._connection.execute(
                f"SELECT feed, position FROM {TABLE} WHERE name = ?", (self.name,)
            ).fetchone()
        except sqlite3.Error as error:
            raise CursorError(f"the cursor {self.name!r} cannot be read: {error}") from error
        position = None
        if row is not None:
            if row[0] != self.feed:
                raise CursorOfOtherFeed(f"the cursor {self.name!r} is of feed {row[0]!r}, not of {self.feed!r}")
            try:
                position = Position.parse(row[1])
            except BadPosition as error:
                raise CursorDamaged(f"the cursor {self.name!r} in table {TABLE} was edited: {error}") from None
        self.position = position
        self._loaded = True
        return position

    def save(self, position: Position) -> None:
        """Write `position` inside the caller's transaction, if the row still holds what was last read or saved here.

        Raises CursorMoved if it does not (another process works on it, or an earlier transaction was rolled back): roll
        back. Raises UsageError outside a transaction, CursorError if the database fails. Begin with BEGIN IMMEDIATE.
        """
        connection = self._connection
        if not self._loaded:
            raise UsageError("load() the cursor, or open a subscription with it, before saving")
        if connection.isolation_level is None and not connection.in_transaction:
            raise UsageError("save() belongs into the transaction of the effect: execute BEGIN IMMEDIATE before it")
        old = self.position
        try:
            if old is None:
                done = connection.execute(
                    f"INSERT INTO {TABLE} (name, feed, position) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING",
                    (self.name, self.feed, str(position)),
                )
            else:
                done = connection.execute(
                    f"UPDATE {TABLE} SET position = ? WHERE name = ? AND feed = ? AND position = ?",
                    (str(position), self.name, self.feed, str(old)),
                )
        except sqlite3.Error as error:
            raise CursorError(f"the cursor {self.name!r} cannot be saved: {error}") from error
        if done.rowcount != 1:
            raise CursorMoved(
                f"the cursor {self.name!r} does not hold {old or 'nothing'} any more: another process moved it, or an "
                "earlier transaction was rolled back. Roll back, and open the subscription again"
            )
        self.position = position

    def reset(self, position: Position | None) -> None:
        """Write `position` (None: no row) inside the caller's transaction, whatever the row holds."""
        self._connection.execute(f"DELETE FROM {TABLE} WHERE name = ?", (self.name,))
        if position is not None:
            self._connection.execute(
                f"INSERT INTO {TABLE} (name, feed, position) VALUES (?, ?, ?)", (self.name, self.feed, str(position))
            )
        self.position = position

    async def open(self, feed: str) -> Position | None:
        await trio.lowlevel.checkpoint()
        if feed != self.feed:
            raise CursorOfOtherFeed(f"the cursor {self.name!r} is of feed {self.feed!r}, not of {feed!r}")
        return self.load()

    async def store(self, position: Position, *, sync: bool = True) -> None:
        raise UsageError(
            "a SqliteCursor is saved by its caller, in the transaction of the effect: cursor.save(position)"
        )

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


__all__ = ["Cursor", "FileCursor", "MemoryCursor", "SqliteCursor"]
