"""A folder whose SQLite files are on a disk that can lose power, or fail: see RecordedDisk."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from changefeed.simulation.disk import sqlite_vfs as vfs
from changefeed.simulation.disk.model import (
    Chance,
    Disk,
    Lost,
    Manner,
    Names,
    Step,
    Sync,
    SyncNames,
    Truncate,
    Write,
    draw_manner,
)

IOERR_WRITE: Final = 10 | (3 << 8)
IOERR_FSYNC: Final = 10 | (4 << 8)
IOERR_TRUNCATE: Final = 10 | (6 << 8)
IOERR_DELETE: Final = 10 | (10 << 8)
CANTOPEN: Final = 14
FULL: Final = 13

What = Literal["open", "write", "truncate", "sync", "delete"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of SQLite that is about to reach the disk. number: counted from 0 since the disk was made."""

    number: int
    what: What
    name: str


@dataclass(frozen=True, slots=True)
class Fault:
    """How a call fails. code: SQLite's. done: how much of a write is done all the same, from 0 to 1."""

    code: int
    done: float = 0.0


#: Says of each call whether it fails, and how.
Faulty = Callable[[Call], Fault | None]


@dataclass(frozen=True, slots=True)
class Loss:
    """What a loss of power came to. at: the number of steps before it. owed: of these, the ones not durable then."""

    at: int
    owed: int
    manner: Manner


@dataclass
class RecordedDisk:
    """Records every write boundary of the SQLite files of one folder, and tells what a loss of power leaves.

    folder: made if it is missing; what it holds already counts as durable. keep: keep all steps, so that survivors()
    can go back to any of them (memory: all bytes that are written); without it only the state that a crash now needs
    (memory: the files). chance: for what a failed sync loses.

        with RecordedDisk(folder) as disk:
            ...                                  # sqlite3 on files in folder, in any thread
            disk.crash(random.Random(1))         # the power goes, and comes back: folder holds what survived

    What the disk records are SQLite's files. Files that others write (FEED.turn, the -shm files, which SQLite writes
    through memory) hold anything after a crash: nothing, rubbish, or are not there; nobody may depend on them.

    Raises NoSharedSqlite where sqlite3 cannot be recorded.
    """

    folder: str
    keep: bool = False
    chance: Chance = field(default_factory=lambda: random.Random(0))
    #: Asked before each call; None: no call fails.
    faulty: Faulty | None = None
    #: Steps that are not recorded although they are done: a disk, or a program, that lies. For testing the tester.
    lies: Callable[[str, str], bool] | None = None

    def __post_init__(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        self.folder = os.path.realpath(self.folder)
        self.steps: list[Step] = []
        self.calls = 0
        self._mutex = threading.RLock()
        self._life = 0
        content = [(name, data) for name, data in _files(self.folder) if not _is_unrecorded(name)]
        self._begin(Disk.holding(content))

    def _begin(self, disk: Disk) -> None:
        self.disk = disk
        self._next_file = max(disk.files, default=0) + 1
        if self.keep:
            self._base = self.disk.copy()
            self._replayed = self._base.copy()
            self.steps = []

    # ---- being in the way

    def install(self) -> None:
        """From now on, files that sqlite3 opens in the folder are recorded. Raises ValueError if they are already."""
        vfs.shim().watch(self.folder, self)
        _python.add(self)

    def remove(self) -> None:
        """Files that are opened from now on are not recorded; those that are open still are. Idempotent."""
        vfs.shim().unwatch(self.folder)
        _python.drop(self)

    def __enter__(self) -> RecordedDisk:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
        self.check()

    @property
    def count(self) -> int:
        """How many steps were done: the number of the present write boundary."""
        return self.disk.count

    def check(self) -> None:
        """Raise what went wrong in recording, if anything did."""
        errors = vfs.shim().errors
        if errors:
            raise errors.pop()

    def unlike(self) -> list[str]:
        """Names of files whose real content is not what was recorded: something has written past SQLite's calls. Only
        for a disk without failed syncs."""
        with self._mutex:
            recorded = self.disk.content()
        real = {name: data for name, data in _files(self.folder) if not _is_unrecorded(name)}
        return sorted(name for name in {*recorded, *real} if recorded.get(name) != real.get(name))

    # ---- power

    def crash(self, chance: Chance, manner: Manner | None = None) -> Loss:
        """The power goes and comes back: the folder, at its old path, holds what survived.

        Whatever is still open on the old files is dead: its writes and syncs fail with SQLITE_IOERR and reach nothing
        (its reads show the old files). A store must be opened anew. The same for the same chance.
        """
        with self._mutex:
            manner = draw_manner(chance) if manner is None else manner
            loss = Loss(self.disk.count, self.disk.owes(), manner)
            content = survived(self.folder, self.disk, chance, manner)
            self._life += 1
            # The old files keep their inodes for as long as they are open: no lock or path of theirs can be mistaken.
            old = f"{self.folder}.before-{self._life}"
            os.rename(self.folder, old)
            lay_out(self.folder, content)
            shutil.rmtree(old)
            self._begin(Disk.holding((name, data) for name, data in content.items() if not _is_unrecorded(name)))
            return loss

    def killed(self, folder: str, *, keep: bool | None = None) -> RecordedDisk:
        """A disk of its own in a new folder, as if every process had been killed now and the machine had stayed up:
        files hold all that was written, and the disk owes what it owes here. This one goes on unharmed. keep: as of a
        disk; None: as this one."""
        with self._mutex:
            lay_out(folder, {name: data for name, data in _files(self.folder) if not name.endswith("-shm")})
            other = RecordedDisk(folder, self.keep if keep is None else keep, self.chance)
            other._begin(self.disk.renumbered())
            return other

    def survivors(self, at: int, chance: Chance, manner: Manner | None = None) -> dict[str, bytes]:
        """The folder after a loss of power at the write boundary `at` (so many steps were done), as names and bytes.

        Needs `keep`. Cheap if `at` does not decrease from call to call. The same for the same `at` and chance.
        """
        return survived(self.folder, self.at(at), chance, manner)

    def at(self, at: int) -> Disk:
        """The disk as it was at the write boundary `at`; not to be changed. Needs `keep`."""
        if not self.keep:
            raise ValueError("only a disk with keep=True can go back")
        with self._mutex:
            if not 0 <= at <= len(self.steps):
                raise ValueError(f"there are {len(self.steps)} steps, no boundary {at}")
            if at < self._replayed.count:
                self._replayed = self._base.copy()
            for step in self.steps[self._replayed.count : at]:
                self._replayed.apply(step)
            return self._replayed

    # ---- what SQLite does

    def open(self, name: str, flags: int, original: Callable[[], int]) -> tuple[int, vfs.Handle | None]:
        with self._mutex:
            fault = self._fault("open", name)
            if fault is not None:
                return fault.code, None
            code = original()
            if code != vfs.OK or _is_unrecorded(name):
                return code, None
            if name not in self.disk.names:
                self._did("create", name, Names(((name, self._next_file),)))
                self._next_file += 1
            return code, _Open(self, self._life, name, self.disk.names[name], _syncs_folder(flags))

    def delete(self, name: str, sync: bool, original: Callable[[], int]) -> int:
        with self._mutex:
            fault = self._fault("delete", name)
            if fault is not None:
                return fault.code
            code = original()
            if code == vfs.OK and name in self.disk.names:
                self._did("delete", name, Names(((name, None),)))
                if sync:
                    self._did("sync-names", name, SyncNames(self.count))
            return code

    def _fault(self, what: What, name: str) -> Fault | None:
        call = Call(self.calls, what, name)
        self.calls += 1
        return None if self.faulty is None else self.faulty(call)

    def _did(self, what: str, name: str, step: Step) -> None:
        if self.lies is not None and self.lies(what, name):
            return
        self.disk.apply(step)
        if self.keep:
            self.steps.append(step)


@dataclass(slots=True)
class _Open:
    """An open file. syncs_folder: its next sync syncs the folder too."""

    recorded: RecordedDisk
    life: int
    name: str
    file: int
    syncs_folder: bool

    def _dead(self) -> bool:
        return self.life != self.recorded._life

    def write(self, offset: int, data: bytes, original: Callable[[bytes], int]) -> int:
        disk = self.recorded
        with disk._mutex:
            if self._dead():
                return IOERR_WRITE
            fault = disk._fault("write", self.name)
            if fault is not None:
                data = data[: int(len(data) * fault.done)]
            if data or fault is None:
                code = original(data)
                if code != vfs.OK:
                    return code
                disk._did("write", self.name, Write(self.file, offset, data))
            return vfs.OK if fault is None else fault.code

    def truncate(self, size: int, original: Callable[[], int]) -> int:
        disk = self.recorded
        with disk._mutex:
            if self._dead():
                return IOERR_TRUNCATE
            fault = disk._fault("truncate", self.name)
            if fault is not None:
                return fault.code
            code = original()
            if code == vfs.OK:
                disk._did("truncate", self.name, Truncate(self.file, size))
            return code

    def sync(self, original: Callable[[], int]) -> int:
        disk = self.recorded
        with disk._mutex:
            if self._dead():
                return IOERR_FSYNC
            fault = disk._fault("sync", self.name)
            covers = disk.count
            if fault is not None:
                owed = [number for number, _ in disk.disk.files[self.file].owed]
                lost = frozenset(number for number in owed if disk.chance.random() >= fault.done)
                disk._did("lost", self.name, Lost(self.file, lost))
                return fault.code
        # Others write meanwhile: what they do counts as done after this sync began.
        code = original()
        with disk._mutex:
            if self._dead():
                return IOERR_FSYNC
            if code == vfs.OK:
                disk._did("sync", self.name, Sync(self.file, covers))
                if self.syncs_folder:
                    disk._did("sync-names", self.name, SyncNames(covers))
                    self.syncs_folder = False
            return code

    def close(self) -> None:
        pass


class _Beside:
    """What Python writes to and syncs of SQLite's files beside SQLite: while a disk is recorded, `os.pwrite` and
    `os.fsync` look whose file it is."""

    def __init__(self) -> None:
        self._disks: dict[str, RecordedDisk] = {}
        self._pwrite, self._fsync = os.pwrite, os.fsync

    def add(self, disk: RecordedDisk) -> None:
        if not self._disks:
            self._pwrite, self._fsync = os.pwrite, os.fsync
            os.pwrite, os.fsync = self._write, self._sync  # type: ignore[assignment]
        self._disks[disk.folder] = disk

    def drop(self, disk: RecordedDisk) -> None:
        if self._disks.pop(disk.folder, None) is not None and not self._disks:
            os.pwrite, os.fsync = self._pwrite, self._fsync

    def _open(self, fd: int) -> _Open | None:
        folder, _, name = os.readlink(f"/proc/self/fd/{fd}").rpartition("/")
        disk = self._disks.get(folder)
        if disk is None or name not in disk.disk.names:
            return None
        return _Open(disk, disk._life, name, disk.disk.names[name], False)

    def _write(self, fd: int, data: bytes, offset: int) -> int:
        file = self._open(fd)
        if file is None:
            return self._pwrite(fd, data, offset)
        written = 0

        def original(part: bytes) -> int:
            nonlocal written
            written = self._pwrite(fd, part, offset)
            return vfs.OK

        _raise(file.write(offset, bytes(data), original))
        return written

    def _sync(self, fd: int) -> None:
        file = self._open(fd)
        if file is None:
            self._fsync(fd)
            return

        def original() -> int:
            self._fsync(fd)
            return vfs.OK

        _raise(file.sync(original))


def _raise(code: int) -> None:
    if code != vfs.OK:
        number = errno.ENOSPC if code == FULL else errno.EIO
        raise OSError(number, os.strerror(number))


_python = _Beside()


def _syncs_folder(flags: int) -> bool:
    # As SQLite's unix VFS does: a journal or write-ahead log that may have been made here takes its name along with
    # its first sync. The name of the database itself comes along with that of its first journal.
    return bool(flags & vfs.CREATE) and bool(flags & (vfs.MAIN_JOURNAL | vfs.SUPER_JOURNAL | vfs.WAL))


def _is_unrecorded(name: str) -> bool:
    return name.endswith(("-shm", ".turn"))


def _files(folder: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file(follow_symlinks=False):
            with open(entry.path, "rb") as file:
                yield entry.name, file.read()


def survived(folder: str, disk: Disk, chance: Chance, manner: Manner | None = None) -> dict[str, bytes]:
    """What a loss of power leaves of a disk, and rubbish for the files beside it that nobody may depend on."""
    content = disk.survivors(chance, manner)
    for name in sorted({f"{name}-shm" for name in content if name.endswith(".db")} | _beside(folder)):
        drawn = chance.random()
        if drawn < 0.75:
            content[name] = chance.randbytes(chance.randrange(0, 70_000) if name.endswith("-shm") else 64)
    return content


def _beside(folder: str) -> set[str]:
    return {name for name in os.listdir(folder) if name.endswith(".turn")}


def lay_out(folder: str, content: dict[str, bytes]) -> None:
    """Make a new folder with these files."""
    os.makedirs(folder)
    for name, data in content.items():
        with open(os.path.join(folder, name), "xb") as file:
            file.write(data)
