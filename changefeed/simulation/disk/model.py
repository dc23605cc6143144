"""What a disk holds, and what it may hold after its power was lost. Pure: no file is touched here.

A file's content changes by writes and truncations; they are *owed* until the file is synced. A folder's names change
by links (a file is made), unlinks and renames; they are owed until the folder is synced, also where the file itself
was synced (POSIX promises no more). After a loss of power everything that was not owed is there. Of what was owed, any
part may be: which part is drawn as a `Manner`.

    Step       one thing that was done, in order; the boundaries between two steps are where power can be lost
    Disk       the state after some steps; survivors() is the folder after a loss of power then
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

SECTOR: Final = 512
PAGE: Final = 4096


class Chance(Protocol):
    """What of `random.Random` is drawn from."""

    def random(self) -> float: ...
    def randrange(self, start: int, stop: int) -> int: ...
    def randbytes(self, n: int) -> bytes: ...


# ---- what was done


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset of a file."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file's size was set: what lies behind is gone, what is new reads as zeros."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """A file was synced. covers: steps before this number were done when it began: they are what it made durable."""

    file: int
    covers: int


@dataclass(frozen=True, slots=True)
class Names:
    """Names of a folder changed, in one piece: name to file (None: the name is gone). A rename changes two.

    Names are paths from the disk's folder on, as "feeds/vmapi.json". A folder in it is a file without bytes.
    """

    changes: tuple[tuple[str, int | None], ...]

    @property
    def folder(self) -> str:
        """Whose sync makes it durable; "" for the disk's folder itself."""
        return self.changes[-1][0].rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class SyncNames:
    """A folder was synced. covers: as in Sync."""

    covers: int
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """A sync of the file failed. The kernel may mark what it could not write as written: no later sync writes it again.
    steps: of what was owed, what did not reach the disk and never will. The rest did."""

    file: int
    steps: frozenset[int]


Step = Write | Truncate | Sync | Names | SyncNames | Lost
Owed = tuple[int, Write | Truncate]


# ---- what survives


@dataclass(frozen=True, slots=True)
class Manner:
    """How a disk treats what it owes when its power goes.

    name: "nothing", "everything", "ordered" (all up to some step, nothing after it), "any" (each piece by chance),
    "versions" (each place by itself holds what it held at some time since its last sync, as a page cache writes it).
    unit: in pieces of so many bytes, cut at multiples of it; 0: a write is one piece. kept: how likely each is there.
    garbage: a file may have grown without its bytes: then what lies there is what the disk held before, for us chance.
    until: for "ordered": the last step that is there.
    """

    name: str
    unit: int = 0
    kept: float = 0.5
    garbage: bool = False
    until: int = -1


MANNERS: Final = ("nothing", "everything", "ordered", "any", "any", "any", "versions", "versions")


def draw_manner(chance: Chance) -> Manner:
    """A manner by chance."""
    name = MANNERS[chance.randrange(0, len(MANNERS))]
    unit = (0, SECTOR, PAGE)[chance.randrange(0, 3)]
    kept = (0.05, 0.5, 0.5, 0.95)[chance.randrange(0, 4)]
    if name == "versions" and not unit:
        unit = SECTOR
    return Manner(name, unit, kept, name in ("any", "versions", "ordered") and chance.random() < 0.5)


@dataclass(slots=True)
class File:
    """One file. durable: its bytes as synced. size: as whoever uses it sees it."""

    durable: bytearray = field(default_factory=bytearray)
    owed: list[Owed] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True)
class Disk:
    """A folder on a disk. `apply` steps in order; they are numbered from `count` on.

    names: as whoever uses the folder sees it. durable_names: as synced. owed_names: the changes since.
    """

    files: dict[int, File] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    durable_names: dict[str, int] = field(default_factory=dict)
    owed_names: list[tuple[int, Names]] = field(default_factory=list)
    count: int = 0

    @classmethod
    def holding(cls, content: Iterable[tuple[str, bytes]]) -> Disk:
        """A disk that owes nothing and holds these files, numbered from 1 in this order."""
        disk = cls()
        for number, (name, data) in enumerate(content, 1):
            disk.files[number] = File(bytearray(data), [], len(data))
            disk.names[name] = disk.durable_names[name] = number
        return disk

    def copy(self) -> Disk:
        """A disk of its own in the same state."""
        files = {number: File(bytearray(f.durable), list(f.owed), f.size) for number, f in self.files.items()}
        names, durable = dict(self.names), dict(self.durable_names)
        return Disk(files, names, durable, list(self.owed_names), self.count)

    def renumbered(self) -> Disk:
        """A copy whose next step is number 0: what is owed has numbers below."""
        other = self.copy()
        for held in other.files.values():
            held.owed = [(number - self.count, step) for number, step in held.owed]
        other.owed_names = [(number - self.count, step) for number, step in other.owed_names]
        other.count = 0
        return other

    def apply(self, step: Step) -> None:
        """Do the next step."""
        number = self.count
        self.count += 1
        match step:
            case Write(file, offset, data):
                held = self.files[file]
                held.owed.append((number, step))
                held.size = max(held.size, offset + len(data))
            case Truncate(file, size):
                held = self.files[file]
                held.owed.append((number, step))
                held.size = size
            case Sync(file, covers):
                self._settle(self.files[file], lambda owed: owed < covers)
            case Lost(file, steps):
                held = self.files[file]
                self._settle(held, lambda owed: owed not in steps)
                held.owed.clear()
            case Names(changes):
                for name, target in changes:
                    if target is None:
                        self.names.pop(name, None)
                    else:
                        self.names[name] = target
                        self.files.setdefault(target, File())
                self.owed_names.append((number, step))
            case SyncNames(covers, folder):
                reached = [step for n, step in self.owed_names if n < covers and step.folder == folder]
                self.durable_names = _renamed(self.durable_names, reached)
                self.owed_names = [(n, s) for n, s in self.owed_names if n >= covers or s.folder != folder]
                self._forget_unnamed()

    def _settle(self, held: File, reached: _Chosen) -> None:
        _write(held.durable, [step for number, step in held.owed if reached(number)])
        held.owed = [(number, step) for number, step in held.owed if not reached(number)]

    def _forget_unnamed(self) -> None:
        # A file without a name can be written for as long as it is open, but it cannot come back.
        named = {*self.names.values(), *self.durable_names.values()}
        named.update(target for _, step in self.owed_names for _, target in step.changes if target is not None)
        for number in [number for number in self.files if number not in named]:
            held = self.files[number]
            held.owed.clear()
            held.durable.clear()

    def owes(self) -> int:
        """How many steps are not durable yet."""
        return len(self.owed_names) + sum(len(held.owed) for held in self.files.values())

    def content(self) -> dict[str, bytes]:
        """The folder as whoever uses it sees it, but for what a failed sync has lost."""
        return {name: _written(self.files[number], lambda _: True) for name, number in sorted(self.names.items())}

    def survivors(self, chance: Chance, manner: Manner | None = None) -> dict[str, bytes]:
        """The folder after a loss of power now: names and bytes. The same for the same chance, which alone decides."""
        manner = draw_manner(chance) if manner is None else manner
        if manner.name == "ordered":
            owed = sorted(
                [number for number, _ in self.owed_names] + [n for f in self.files.values() for n, _ in f.owed]
            )
            manner = replace(manner, until=owed[chance.randrange(0, len(owed))] if owed else -1)
        kept_names = [step for number, step in self.owed_names if _whole(number, manner, chance)]
        names = _renamed(self.durable_names, kept_names)
        # What lies in a folder whose own name is gone is gone.
        names = {name: number for name, number in names.items() if _above(name) <= names.keys()}
        return {name: _survived(self.files[number], manner, chance) for name, number in sorted(names.items())}


class _Chosen(Protocol):
    def __call__(self, number: int, /) -> bool: ...


def _renamed(names: dict[str, int], steps: Iterable[Names]) -> dict[str, int]:
    found = dict(names)
    for step in steps:
        for name, target in step.changes:
            if target is None:
                found.pop(name, None)
            else:
                found[name] = target
    return found


def _above(name: str) -> set[str]:
    parts = name.split("/")
    return {"/".join(parts[:depth]) for depth in range(1, len(parts))}


def _write(content: bytearray, steps: Iterable[Write | Truncate]) -> None:
    for step in steps:
        if isinstance(step, Truncate):
            del content[step.size :]
            content.extend(bytes(step.size - len(content)))
        else:
            _put(content, step.offset, step.data)


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _written(held: File, reached: _Chosen) -> bytes:
    content = bytearray(held.durable)
    _write(content, [step for number, step in held.owed if reached(number)])
    return bytes(content)


def _whole(number: int, manner: Manner, chance: Chance) -> bool:
    if manner.name in ("nothing", "everything"):
        return manner.name == "everything"
    if manner.name == "ordered":
        return number <= manner.until
    return chance.random() < manner.kept


def _survived(held: File, manner: Manner, chance: Chance) -> bytes:
    if not held.owed or manner.name == "nothing":
        return bytes(held.durable)
    content = bytearray(held.durable)
    if manner.name in ("everything", "ordered"):
        _write(content, [step for number, step in held.owed if _whole(number, manner, chance)])
    elif manner.name == "versions":
        _write(content, _versions(held, manner, chance))
    else:
        for _, step in held.owed:
            if isinstance(step, Truncate):
                if chance.random() < manner.kept:
                    _write(content, [step])
                continue
            for offset, data in _pieces(step, manner.unit):
                if chance.random() < manner.kept:
                    if manner.garbage and offset > len(content):
                        content.extend(chance.randbytes(offset - len(content)))
                    _put(content, offset, data)
    if manner.garbage and held.size > len(content) and chance.random() < 0.5:
        content.extend(chance.randbytes(held.size - len(content)))
    return bytes(content)


def _pieces(step: Write, unit: int) -> Iterator[tuple[int, bytes]]:
    """A write cut at multiples of `unit`."""
    if not unit:
        yield step.offset, step.data
        return
    at, end = step.offset, step.offset + len(step.data)
    while at < end:
        cut = min(end, (at // unit + 1) * unit)
        yield at, step.data[at - step.offset : cut - step.offset]
        at = cut


def _versions(held: File, manner: Manner, chance: Chance) -> list[Write | Truncate]:
    """The pieces that reached the disk if each place of `unit` bytes was written out at some time of its own."""
    touched: dict[int, int] = {}
    for _, step in held.owed:
        if isinstance(step, Write):
            for offset, _ in _pieces(step, manner.unit):
                touched[offset // manner.unit] = touched.get(offset // manner.unit, 0) + 1
    upto = {place: chance.randrange(0, many + 1) for place, many in touched.items()}
    seen = dict.fromkeys(touched, 0)
    kept: list[Write | Truncate] = []
    for _, step in held.owed:
        if isinstance(step, Truncate):
            if chance.random() < manner.kept:
                kept.append(step)
            continue
        for offset, data in _pieces(step, manner.unit):
            place = offset // manner.unit
            seen[place] += 1
            if seen[place] <= upto[place]:
                kept.append(Write(step.file, offset, data))
    return kept
