"""What SQLite's files need beside SQL: connections, the meaning of its errors, whose file it is, and who is in the way.

Nothing here may open() a database file or its -shm: closing any descriptor of them drops this process's POSIX locks
on them, which are SQLite's. They are only looked at with stat().
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import sqlite3
import struct
import threading
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from changefeed.errors import BadConfig, ChangefeedError, LogDamaged, LogFull, LogReplaced, LogUnavailable

BUSY: Final = frozenset({5, 6, 15})  # SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PROTOCOL
IOERR: Final = 10
FULL: Final = 13
READONLY_DBMOVED: Final = 8 | (4 << 8)
DAMAGED: Final = frozenset({1, 11, 19, 20, 24, 26})  # ERROR, CORRUPT, CONSTRAINT, MISMATCH, FORMAT, NOTADB

# fmt: off
NETWORK_FILE_SYSTEMS: Final = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "smb", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs",
    "ocfs2", "gfs2", "davfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.ceph",
    "fuse.juicefs", "fuse.davfs",
})
# fmt: on

#: A fence that stands still (its process is frozen) may hold back others' appends by no more than this.
TURN_S: Final = 0.1
#: How long an appender then ignores that fence's wish, lest each append waits for TURN_S again.
TURN_IGNORED_S: Final = 2.0


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 if the error is not SQLite's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def connect(path: str, *, create: bool, cache_kib: int, autocheckpoint: int = 0) -> sqlite3.Connection:
    """A connection that waits for no lock (the callers retry: SQLite's own busy handler starves the fence).

    autocheckpoint: pages of write-ahead log at which a commit checkpoints; 0: never. Raises sqlite3.Error.
    """
    connection = sqlite3.connect(
        f"file:{quote(path)}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )
    try:
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
        # Some builds zero what is deleted: a trim would then write all that it frees into the write-ahead log.
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute(f"PRAGMA wal_autocheckpoint = {autocheckpoint}")
        if connection.execute("PRAGMA synchronous").fetchone() != (2,):
            raise LogUnavailable(f"SQLite does not take synchronous=FULL for {path}: acknowledged events could be lost")
    except BaseException:
        connection.close()
        raise
    return connection


def meaning(error: sqlite3.Error, path: str) -> ChangefeedError:
    """What an error says when nothing was written by the call that met it."""
    code, text = code_of(error), f"{path}: {error}"
    if getattr(error, "sqlite_errorcode", 0) == READONLY_DBMOVED:
        return LogReplaced(f"{text}; the log's file was moved or replaced")
    if code in BUSY:
        return LogUnavailable(f"{text}; other processes hold the log's lock")
    if code == FULL:
        return LogFull(f"{text}; free room on the disk or lower the feed's retention")
    # Without a code it is the module's own: text that is not UTF-8, say; or a connection that was closed meanwhile.
    if code in DAMAGED or (code == 0 and not isinstance(error, sqlite3.ProgrammingError)):
        return LogDamaged(f"{text}; restore the log from a backup, or move it away to begin a new one")
    return LogUnavailable(text)


def retry_pause() -> float:
    """Between two tries for a lock: short enough to meet the gap between a busy leader's appends, and irregular."""
    return random.uniform(0.0001, 0.0005)


def truncate_wal(connection: sqlite3.Connection, wait_s: float) -> bool:
    """Copy the whole write-ahead log into the database and cut it to nothing. Waits so long at most, for readers and
    for a checkpoint of another process; False: they were in the way, or the disk is full. Raises sqlite3.Error."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            connection.execute(f"PRAGMA busy_timeout = {max(1, int(1000 * (deadline - time.monotonic())))}")
            try:
                row = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.execute("PRAGMA busy_timeout = 0")
            if row is not None and row[0] == 0:
                return True
        except sqlite3.Error as error:
            if code_of(error) not in BUSY and code_of(error) != FULL:
                raise
        # SQLite waits for readers, but not for the lock of another's checkpoint: then it says busy at once.
        if time.monotonic() >= deadline:
            return False
        time.sleep(retry_pause())


# ---- whose file it is


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which files a connection works on, so that a replaced one is noticed: SQLite itself would go on with the old.

    Both the database and its write-ahead log: no SQLite removes or replaces either while a connection is open.
    """

    path: str
    database: tuple[int, int]
    wal: tuple[int, int] | None

    @classmethod
    def of(cls, path: str) -> Identity | None:
        """The identity of what stands at the path now; None if nothing does."""
        database = _identity(path)
        return None if database is None else cls(path, database, _identity(path + "-wal"))

    def check(self) -> None:
        """Raise LogReplaced if the path no longer names these files."""
        if _identity(self.path) != self.database:
            raise LogReplaced(f"{self.path} was removed or replaced while this process uses it; restart the process")
        if self.wal is not None and _identity(self.path + "-wal") != self.wal:
            raise LogReplaced(f"{self.path}-wal was removed or replaced while this process uses it; restart it")


# ---- who is in the way

_STAMP_BYTES: Final = 64
_DOUBT: Final = b"!"


class Turn:
    """FEED.turn: what processes tell each other beside the log, without its lock and without waiting for the disk.

    First, a wish: "a fence waits for the write lock; let it have the next turn". An appender that commits back to back
    leaves the lock free for a tenth of a millisecond at a time; a fence that only polls may miss it for long. So a
    fence holds an flock on FEED.turn while it waits, and appenders look there first.

    Second, the leader's stamp: "this fence was alive at that time". It stands here and not in the database, since a
    look must not wait for an append that waits for a slow disk.

    Third, a doubt: "an I/O error was met: the write-ahead log that is seen may not be the one on the disk". It is never
    synced: once the machine has lost its memory, what is seen is what is on the disk.

    All are only hints: without the file, or with a fence frozen in it, everything still works, less fairly.
    """

    def __init__(self, path: str) -> None:
        self._ignored_until = 0.0
        # A descriptor that another thread has closed may be another file's by now: looks are left to their threads.
        self._mutex = threading.Lock()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            self._fd = -1

    def claim(self) -> None:
        """Ask for the next turn; returns at once, also where another fence asks already."""
        self._lock(fcntl.LOCK_EX)

    def release(self) -> None:
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def give_way(self) -> None:
        """Wait while a fence asks for the turn, for TURN_S at most."""
        started = time.monotonic()
        while not self._lock(fcntl.LOCK_SH):
            now = time.monotonic()
            if now < self._ignored_until:
                return
            if now > started + TURN_S:
                self._ignored_until = now + TURN_IGNORED_S
                return
            time.sleep(0.0005)
        self.release()

    def stamp(self, epoch: int, term: str, wall_ms: int) -> None:
        """Say that the fence of this epoch and term was alive at wall_ms."""
        with self._mutex:
            if self._fd >= 0:
                try:
                    os.pwrite(self._fd, f"{epoch} {term} {wall_ms}".ljust(_STAMP_BYTES).encode(), 0)
                except OSError:
                    pass

    def stamped(self, epoch: int, term: str) -> int:
        """When the fence of this epoch and term was last stamped alive; 0 if it never was."""
        try:
            with self._mutex:
                read = os.pread(self._fd, _STAMP_BYTES, 0) if self._fd >= 0 else b""
            found = read.decode("ascii", "replace").split()
            if len(found) == 3 and (int(found[0]), found[1]) == (epoch, term):
                return int(found[2])
        except (OSError, ValueError):
            pass
        return 0

    def doubt(self, doubtful: bool) -> None:
        """Say that the write-ahead log may not be on the disk as it is seen; or that it is again."""
        with self._mutex:
            if self._fd >= 0:
                try:
                    os.pwrite(self._fd, _DOUBT if doubtful else b" ", _STAMP_BYTES)
                except OSError:
                    pass

    def doubtful(self) -> bool:
        """Whether somebody said so, and nobody has mended it."""
        try:
            with self._mutex:
                return self._fd >= 0 and os.pread(self._fd, 1, _STAMP_BYTES) == _DOUBT
        except OSError:
            return False

    def close(self) -> None:
        with self._mutex:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _lock(self, how: int) -> bool:
        if self._fd < 0:
            return True
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


_WRITE_BYTE: Final = 120
_READ_BYTES: Final = range(124, 128)  # the marks of readers that hold the write-ahead log back


def _holders(path: str, wanted: range) -> list[int]:
    # SQLite's WAL locks are POSIX locks on fixed bytes of the -shm file; Linux lists them all.
    shm = _identity(path + "-shm")
    found: list[int] = []
    if shm is None:
        return found
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as lines:
            for line in lines:
                parts = line.split()
                if "->" in parts or len(parts) < 8 or parts[1] != "POSIX":
                    continue
                major, minor, inode = parts[5].split(":")
                device = os.makedev(int(major, 16), int(minor, 16))
                if (device, int(inode)) != shm or parts[7] == "EOF":
                    continue
                if range(max(wanted.start, int(parts[6])), min(wanted.stop, int(parts[7]) + 1)):
                    found.append(int(parts[4]))
    except (OSError, ValueError):
        pass
    return [pid for pid in found if pid > 0]


def write_lock_holder(path: str) -> int:
    """The pid that holds the write lock of a log's file, 0 if it cannot be told. For people and for killing it."""
    return next(iter(_holders(path, range(_WRITE_BYTE, _WRITE_BYTE + 1))), 0)


def wal_holder(path: str) -> int:
    """The pid of a reader that keeps the write-ahead log from being truncated, 0 if it cannot be told."""
    return next((pid for pid in _holders(path, _READ_BYTES) if pid != os.getpid()), 0)


# ---- the disk


def size_of(path: str) -> int:
    """Bytes of a file, 0 if it is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


_WAL_HEADER: Final = struct.Struct(">6I8x")  # magic, version, page size, checkpoint number, two salts, check sums
_FRAME_HEADER: Final = struct.Struct(">8x2I8x")  # page, size after commit, two salts, check sums
_WAL_MAGIC: Final = (0x377F0682, 0x377F0683)
_FRAMES_AT_ONCE: Final = 256


def write_wal_again(path: str) -> int:
    """Write the frames of a write-ahead log over themselves and sync them; returns how many bytes that were.

    After a sync that failed the kernel may show pages that are not on the disk and that no later sync writes; only
    writing them again does. The caller holds the log's write lock. path: of the write-ahead log, on which SQLite holds
    no locks that opening and closing it could drop. Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        header = os.pread(fd, _WAL_HEADER.size, 0)
        if len(header) < _WAL_HEADER.size:
            return 0
        magic, _, page, _, *salts = _WAL_HEADER.unpack(header)
        if magic not in _WAL_MAGIC or not 512 <= page <= 65536:
            return 0  # it was never written whole: SQLite takes none of its frames
        _write_all(fd, header, 0)
        at, whole = len(header), _FRAMES_AT_ONCE * (_FRAME_HEADER.size + page)
        size = whole
        while size == whole:
            block = os.pread(fd, whole, at)
            size = _frames_of(block, _FRAME_HEADER.size + page, salts)
            _write_all(fd, block[:size], at)
            at += size
        os.fsync(fd)
        return at
    finally:
        os.close(fd)


def _frames_of(block: bytes, frame: int, salts: list[int]) -> int:
    """How many bytes of a block are frames with these salts: behind them lie those of an earlier round."""
    size = 0
    while size + frame <= len(block) and [*_FRAME_HEADER.unpack_from(block, size)] == salts:
        size += frame
    return size


def _write_all(fd: int, data: bytes, at: int) -> None:
    if os.pwrite(fd, data, at) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_room(directory: str) -> tuple[int, int]:
    """(free bytes, total bytes) of the disk of a directory. Raises LogUnavailable."""
    try:
        found = os.statvfs(directory)
    except OSError as error:
        raise LogUnavailable(f"{directory}: {error.strerror}") from None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def file_system_of(path: str, mounts: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that holds a path, "" where that cannot be told."""
    real, best, kind = os.path.realpath(path), "", ""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                point = before.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
                # Later lines of the same mount point lie on top of earlier ones.
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, after.split()[0]
    except (OSError, IndexError, UnicodeError):
        return ""
    return kind


def refuse_network(directory: str, mounts: str = "/proc/self/mountinfo") -> None:
    """Raise BadConfig if the directory lies on a file system of another machine."""
    kind = file_system_of(directory, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise BadConfig(
            f"{directory} is on a network file system ({kind}): SQLite's locks and write-ahead log are not safe there;"
            " use a directory on a local disk"
        )


def make_directory(path: str) -> None:
    """Make a directory, and those above it that are missing, each durable with its name: a file that is synced in a
    directory whose own name is lost is lost too."""
    missing = []
    at = os.path.abspath(path)
    while not os.path.isdir(at):
        missing.append(at)
        at = os.path.dirname(at)
    os.makedirs(path, exist_ok=True)
    for made in reversed(missing):
        sync_directory(os.path.dirname(made))


def sync_directory(path: str) -> None:
    """Make names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
