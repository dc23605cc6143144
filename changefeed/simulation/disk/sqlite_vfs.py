"""Between SQLite and the files: an own VFS in the SQLite library that Python's sqlite3 uses, through ctypes.

A VFS is SQLite's table of functions for files. Ours is a copy of the one of this system, made the default, in which
opening a file of a watched folder hands out a file whose writes, truncations and syncs pass through a `Watcher`; locks,
shared memory and reads are the original's, and so is everything of files elsewhere. So whoever uses sqlite3 in this
process runs unchanged. It works where sqlite3 is linked to a shared libsqlite3 (as Debian's and most others are).

Called from any thread, with the interpreter's lock, as ctypes does. A watcher must not use sqlite3.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

OK: Final = 0
IOERR: Final = 10
#: Flags of xOpen.
CREATE: Final = 0x00000004
MAIN_JOURNAL, SUPER_JOURNAL, WAL = 0x00000800, 0x00004000, 0x00080000

_pointer = ctypes.c_void_p
_int = ctypes.c_int
_int64 = ctypes.c_int64


def _pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, _pointer) for name in names.split()]


class NoSharedSqlite(RuntimeError):
    """Python's sqlite3 does not use a shared SQLite library here, or not the one that was found: its writes cannot be
    recorded."""


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("iVersion", _int),
        ("szOsFile", _int),
        ("mxPathname", _int),
        ("pNext", _pointer),
        ("zName", ctypes.c_char_p),
        ("pAppData", _pointer),
        *_pointers(
            "xOpen xDelete xAccess xFullPathname xDlOpen xDlError xDlSym xDlClose xRandomness xSleep xCurrentTime"
            " xGetLastError xCurrentTimeInt64 xSetSystemCall xGetSystemCall xNextSystemCall"
        ),
    ]


class _Methods(ctypes.Structure):
    _fields_ = [
        ("iVersion", _int),
        *_pointers(
            "xClose xRead xWrite xTruncate xSync xFileSize xLock xUnlock xCheckReservedLock xFileControl"
            " xSectorSize xDeviceCharacteristics xShmMap xShmLock xShmBarrier xShmUnmap xFetch xUnfetch"
        ),
    ]


_XOpen = ctypes.CFUNCTYPE(_int, _pointer, _pointer, _pointer, _int, _pointer)
_XRandomness = ctypes.CFUNCTYPE(_int, _pointer, _int, _pointer)
_XDelete = ctypes.CFUNCTYPE(_int, _pointer, _pointer, _int)
_XClose = ctypes.CFUNCTYPE(_int, _pointer)
_XWrite = ctypes.CFUNCTYPE(_int, _pointer, _pointer, _int, _int64)
_XTruncate = ctypes.CFUNCTYPE(_int, _pointer, _int64)
_XSync = ctypes.CFUNCTYPE(_int, _pointer, _int)


class Handle(Protocol):
    """An open file of a watched folder. Each call gets the original to call and returns SQLite's result code."""

    def write(self, offset: int, data: bytes, original: Callable[[bytes], int]) -> int:
        """original: writes the bytes that it is given at that offset."""

    def truncate(self, size: int, original: Callable[[], int]) -> int: ...

    def sync(self, original: Callable[[], int]) -> int: ...

    def close(self) -> None:
        """The file is closed."""


class Watcher(Protocol):
    """What happens in one folder."""

    def open(self, name: str, flags: int, original: Callable[[], int]) -> tuple[int, Handle | None]:
        """Open a file directly below the folder; no handle: let it be."""

    def delete(self, name: str, sync: bool, original: Callable[[], int]) -> int: ...


class _Shim:
    """The VFS, once per process: made at its first use, registered while a folder is watched, never freed."""

    def __init__(self) -> None:
        self._library = _library()
        find, self._register = self._library.sqlite3_vfs_find, self._library.sqlite3_vfs_register
        self._unregister = self._library.sqlite3_vfs_unregister
        find.restype, find.argtypes = _pointer, [ctypes.c_char_p]
        for function in (self._register, self._unregister):
            function.restype = _int
        self._register.argtypes, self._unregister.argtypes = [_pointer, _int], [_pointer]
        self._original_at: int = find(None)
        original = _Vfs.from_address(self._original_at)
        self._open = _XOpen(original.xOpen)
        self._delete = _XDelete(original.xDelete)
        self._vfs = _Vfs.from_buffer_copy(original)
        self._vfs.pNext = None
        self._vfs.zName = b"changefeed-recorded"
        self._callbacks: list[Any] = []  # ctypes keeps no reference to a function that it has made a pointer of
        self._vfs.xOpen = self._pointer_to(_XOpen, self._x_open)
        self._vfs.xDelete = self._pointer_to(_XDelete, self._x_delete)
        self._randomness = _XRandomness(original.xRandomness)
        self._vfs.xRandomness = self._pointer_to(_XRandomness, self._x_randomness)
        self._seed = b""
        self._tables: dict[int, _Table] = {}
        self._mutex = threading.Lock()
        self.watchers: dict[str, Watcher] = {}
        self.handles: dict[int, Handle] = {}
        self.opened = 0
        self.errors: list[BaseException] = []

    def _pointer_to(self, kind: Any, function: Callable[..., int]) -> int | None:
        made = kind(self.guarded(function))
        self._callbacks.append(made)
        return ctypes.cast(made, _pointer).value

    def guarded(self, function: Callable[..., int]) -> Callable[..., int]:
        """An exception cannot pass through SQLite: it is kept for `check`, and SQLite sees a failing disk."""

        def call(*arguments: Any) -> int:
            try:
                return function(*arguments)
            except BaseException as error:
                self.errors.append(error)
                return IOERR

        return call

    def watch(self, folder: str, watcher: Watcher) -> None:
        with self._mutex:
            if any(folder == other for other in self.watchers):
                raise ValueError(f"{folder} is recorded already")
            self.watchers[folder] = watcher
            if len(self.watchers) == 1:
                self._register(ctypes.addressof(self._vfs), 1)

    def unwatch(self, folder: str) -> None:
        with self._mutex:
            if self.watchers.pop(folder, None) is not None and not self.watchers:
                # Files that are open keep their functions, which stay; only new ones are the original's again.
                self._register(self._original_at, 1)
                self._unregister(ctypes.addressof(self._vfs))

    def seed(self, seed: bytes) -> None:
        """Let SQLite's generator begin anew from this seed: when it is next used while a folder is watched."""
        self._seed = seed
        self._library.sqlite3_randomness(0, None)

    def _x_randomness(self, vfs: int, size: int, out: int) -> int:
        seed, self._seed = self._seed, b""
        if not seed:
            return int(self._randomness(self._original_at, size, out))
        ctypes.memmove(out, seed.ljust(size, b"\0")[:size], size)
        return size

    def _x_open(self, vfs: int, name_at: int | None, file: int, flags: int, out: int | None) -> int:
        def original() -> int:
            return int(self._open(self._original_at, name_at, file, flags, out))

        self.opened += 1
        found = self._watcher(name_at)
        if found is None:
            return original()
        watcher, name = found
        code, handle = watcher.open(name, flags, original)
        methods_at = _pointer.from_address(file)
        if code == OK and handle is not None and methods_at.value:
            table = self._tables.get(methods_at.value)
            if table is None:
                table = self._tables[methods_at.value] = _Table(self, methods_at.value)
            self.handles[file] = handle
            methods_at.value = ctypes.addressof(table.methods)
        return code

    def _x_delete(self, vfs: int, name_at: int | None, sync: int) -> int:
        def original() -> int:
            return int(self._delete(self._original_at, name_at, sync))

        found = self._watcher(name_at)
        return original() if found is None else found[0].delete(found[1], bool(sync), original)

    def _watcher(self, name_at: int | None) -> tuple[Watcher, str] | None:
        # The pointer itself goes to the original: behind the name lie the parameters of the URI.
        if not name_at:
            return None
        folder, _, name = os.fsdecode(ctypes.string_at(name_at)).rpartition("/")
        watcher = self.watchers.get(folder)
        return None if watcher is None else (watcher, name)


class _Table:
    """The functions of one kind of open file, some of them ours."""

    def __init__(self, shim: _Shim, original_at: int) -> None:
        self._handles = shim.handles
        original = _Methods.from_address(original_at)
        self._close, self._write = _XClose(original.xClose), _XWrite(original.xWrite)
        self._truncate, self._sync = _XTruncate(original.xTruncate), _XSync(original.xSync)
        # An older version's table is shorter: the members that it lacks are not read by SQLite, nor copied here.
        self.methods = _Methods()
        size = {1: _Methods.xShmMap.offset, 2: _Methods.xFetch.offset}.get(original.iVersion, ctypes.sizeof(_Methods))
        ctypes.memmove(ctypes.addressof(self.methods), original_at, size)
        self._callbacks = (
            _XClose(shim.guarded(self._x_close)),
            _XWrite(shim.guarded(self._x_write)),
            _XTruncate(shim.guarded(self._x_truncate)),
            _XSync(shim.guarded(self._x_sync)),
        )
        for name, made in zip(("xClose", "xWrite", "xTruncate", "xSync"), self._callbacks, strict=True):
            setattr(self.methods, name, ctypes.cast(made, _pointer).value)

    def _x_close(self, file: int) -> int:
        self._handles.pop(file).close()
        return int(self._close(file))

    def _x_write(self, file: int, data_at: int, size: int, offset: int) -> int:
        data = ctypes.string_at(data_at, size)
        return self._handles[file].write(offset, data, lambda part: self._write(file, part, len(part), offset))

    def _x_truncate(self, file: int, size: int) -> int:
        return self._handles[file].truncate(size, lambda: self._truncate(file, size))

    def _x_sync(self, file: int, flags: int) -> int:
        return self._handles[file].sync(lambda: self._sync(file, flags))


def _library() -> ctypes.CDLL:
    """The SQLite library that sqlite3 uses. Raises NoSharedSqlite."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libsqlite3" in line}
    except OSError as error:
        raise NoSharedSqlite(f"which SQLite library sqlite3 uses cannot be told on {sys.platform}: {error}") from error
    if len(paths) != 1:
        why = "it is linked statically" if not paths else f"several are loaded: {', '.join(sorted(paths))}"
        raise NoSharedSqlite(
            f"sqlite3 of this Python uses no shared SQLite library that could be shimmed ({why}); run this with a"
            " Python whose sqlite3 is linked to a shared libsqlite3, such as Debian's"
        )
    library = ctypes.CDLL(paths.pop())
    library.sqlite3_sourceid.restype = ctypes.c_char_p
    mine = sqlite3.connect(":memory:")
    try:
        (source,) = mine.execute("SELECT sqlite_source_id()").fetchone()
    finally:
        mine.close()
    if library.sqlite3_sourceid().decode() != source:
        raise NoSharedSqlite("the shared SQLite library that is loaded is another one than sqlite3 uses")
    return library


_shim: _Shim | None = None


def shim() -> _Shim:
    """The process's VFS. Raises NoSharedSqlite if there can be none."""
    global _shim
    if _shim is None:
        made = _Shim()
        _prove(made)
        _shim = made
    return _shim


def seed_sqlite(seed: int) -> None:
    """Make the random numbers that SQLite uses (salts of its write-ahead logs) follow from a seed, in this process.

    Takes effect at their next use while a disk is recorded. Once at the start of a run, with a seed of its own: the
    same salts twice in one write-ahead log would bring old frames back to life. Raises NoSharedSqlite.
    """
    shim().seed(hashlib.sha256(str(seed).encode()).digest())


def _prove(made: _Shim) -> None:
    """A file that sqlite3 opens must come through here: otherwise nothing would be recorded, silently."""

    class Nowhere:
        def open(self, name: str, flags: int, original: Callable[[], int]) -> tuple[int, Handle | None]:
            return original(), None

        def delete(self, name: str, sync: bool, original: Callable[[], int]) -> int:
            return original()

    made.watch("/", Nowhere())
    try:
        connection = sqlite3.connect("file:/changefeed-no-such-file?mode=ro", uri=True)
    except sqlite3.OperationalError:
        pass
    else:
        connection.close()
    finally:
        made.unwatch("/")
    if not made.opened:
        raise NoSharedSqlite("a file that sqlite3 opened did not come through the shared library's VFS")
