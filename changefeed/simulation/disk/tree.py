"""Files that are written with Python's own functions, on a disk that can lose power: cursors, a coordinator's folder.

Such code writes a file beside, syncs it, renames it, syncs the folder. While a `RecordedTree` is entered, the functions
of `os` that make something durable or change names look at the whole tree before and after themselves: what is new
since the last look was written meanwhile, and is owed; the sync or rename is what it is. So the boundaries are these
calls, not each single write between two of them: a file that is being written may be torn anywhere all the same,
since what is owed survives in pieces.

For small trees, in one thread at a time. The same for the same calls.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any, Final

from changefeed.simulation.disk.model import Chance, Disk, Manner, Names, Step, Sync, SyncNames, Truncate, Write

#: Functions that change names or make a file: looked at before and after.
_NAMING: Final = ("open", "mkdir", "rename", "replace", "unlink", "rmdir")


class RecordedTree:
    """Records what is done below a folder while it is entered.

    folder: must exist; what it holds when this is made counts as durable.
    """

    def __init__(self, folder: str) -> None:
        self.folder = os.path.realpath(folder)
        self._originals: dict[str, Callable[..., Any]] = {}
        self._names: dict[str, int] = {}
        self._content: dict[int, bytes] = {}
        self._inodes: dict[int, int] = {}
        self._folders: set[int] = set()
        self._next = 1
        self.disk = Disk()
        self.steps: list[Step] = []
        self._look()
        for folder_name in ["", *self._names]:
            self._did(SyncNames(self.count, folder_name))
        for number in self._content:
            self._did(Sync(number, self.count))
        self._base = self.disk.renumbered()
        self.disk = self._base.copy()
        self.steps.clear()

    @property
    def count(self) -> int:
        """How many steps were done: the number of the present boundary."""
        return len(self.steps)

    def at(self, at: int) -> Disk:
        """The disk as it was at that boundary."""
        disk = self._base.copy()
        for step in self.steps[:at]:
            disk.apply(step)
        return disk

    def rebuild(self, folder: str, at: int, chance: Chance, manner: Manner | None = None) -> None:
        """Make a new folder that holds what a loss of power at that boundary leaves."""
        disk = self.at(at)
        os.makedirs(folder)
        numbers = dict(disk.durable_names)
        for _, step in disk.owed_names:
            numbers |= {name: number for name, number in step.changes if number is not None}
        for name, data in disk.survivors(chance, manner).items():
            path = os.path.join(folder, name)
            if numbers[name] in self._folders:
                os.makedirs(path, exist_ok=True)
                continue
            with open(path, "wb") as file:
                file.write(data)

    def __enter__(self) -> RecordedTree:
        for name in (*_NAMING, "fsync"):
            self._originals[name] = getattr(os, name)
            setattr(os, name, self._fsync if name == "fsync" else self._naming(self._originals[name]))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._originals.items():
            setattr(os, name, function)
        self._originals.clear()
        self._look()

    def _naming(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._look()
            try:
                return original(*arguments, **named)
            finally:
                self._look()

        return call

    def _fsync(self, fd: int) -> None:
        self._look()
        covers = self.count
        self._originals["fsync"](fd)
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path == self.folder or path.startswith(self.folder + "/"):
                self._did(SyncNames(covers, path[len(self.folder) + 1 :]))
        elif found.st_ino in self._inodes:
            self._did(Sync(self._inodes[found.st_ino], covers))

    def _did(self, step: Step) -> None:
        self.disk.apply(step)
        self.steps.append(step)

    # ---- looking

    def _look(self) -> None:
        """Turn what is new in the tree into steps: new names, bytes, renames, names that are gone; in this order."""
        names: dict[str, int] = {}
        content: dict[int, bytes] = {}
        inodes: dict[int, int] = {}
        gone = dict(self._names)
        for name, inode, data in self._walk(""):
            number = self._inodes.get(inode)
            if number is None:
                # An inode that had no name at the last look is another file by now.
                number, self._next = self._next, self._next + 1
                self._did(Names(((name, number),)))
                if data is None:
                    self._folders.add(number)
            names[name], inodes[inode], content[number] = number, number, data or b""
        for number, data in content.items():
            self._wrote(number, self._content.get(number, b""), data)
        for name, number in names.items():
            if self._names.get(name) != number and number in self._names.values():
                olds = [old for old, held in gone.items() if held == number and names.get(old) != number]
                self._did(Names((*((old, None) for old in olds if old not in names), (name, number))))
        for name in self._names:
            if name not in names and name in self.disk.names:
                self._did(Names(((name, None),)))
        self._names, self._content, self._inodes = names, content, inodes

    def _walk(self, folder: str) -> list[tuple[str, int, bytes | None]]:
        """Name, inode and bytes (None: a folder) of all below, folders before what is in them."""
        found: list[tuple[str, int, bytes | None]] = []
        for entry in sorted(os.scandir(os.path.join(self.folder, folder)), key=lambda entry: entry.name):
            name = os.path.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                found += [(name, entry.inode(), None), *self._walk(name)]
            else:
                found.append((name, entry.inode(), _bytes_of(entry.path)))
        return found

    def _wrote(self, number: int, before: bytes, after: bytes) -> None:
        if after == before:
            return
        if not after.startswith(before):
            self._did(Truncate(number, 0))
            before = b""
        self._did(Write(number, len(before), after[len(before) :]))


def _bytes_of(path: str) -> bytes:
    # With the real open: the one of `os` looks here in its turn.
    with open(path, "rb") as file:
        return file.read()
