"""How entries become rows of the snapshot: the latest event of each object (pure).

A change *stands* if its version is not below the highest one that its object's changes have carried; a change without
version always stands. What stands takes the row's place, and the row keeps the highest version. A delete leaves a
tombstone where a version is known, so that a late update does not resurrect the object; else the row goes. A change
with another op than create, update and delete has the object's state in its body; without a body it says nothing of it.
A TRUNCATE of a captured table, which the outbox tells as one change of the id "*", drops every object of its resource.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from changefeed.change import Key
from changefeed.declared import WITH_BODY
from changefeed.log import OUTBOX, Latest
from changefeed.wire.changes import ends_of, raw_heads

if TYPE_CHECKING:
    from changefeed.batch import Entry


DELETE: Final = "delete"
#: What the triggers of a captured table tell of a TRUNCATE: op and id.
TRUNCATE: Final = "truncate"
EVERY: Final = "*"
_STATES: Final = WITH_BODY | {DELETE}
_NONE: Final[Mapping[Key, int | None]] = MappingProxyType({})


def tells_state(op: str, body: bytes | None) -> bool:
    """Whether a change says what became of its object."""
    return body is not None or op in _STATES


@dataclass(frozen=True, slots=True)
class Folded:
    """What a fold writes. rows: in the order of their objects' first change. gone: objects without a row now; some may
    have had none before. versioned: whether a change carried a version. emptied: resources of which every object that
    is not in `rows` goes, whatever the snapshot held."""

    rows: tuple[Latest, ...]
    gone: tuple[Key, ...]
    versioned: bool
    emptied: tuple[str, ...] = ()


class Stretch:
    """Entries that follow each other in the log and are folded together.

    objects: which ones they change. after, to: the seqs that the stretch lies between: (after, to]. bytes: of entries.
    """

    def __init__(self, after: int) -> None:
        self.after = self.to = after
        self.bytes = 0
        self.versioned = False
        self.objects: dict[Key, None] = {}
        self._entries: list[tuple[Entry, list[_Told], list[int]]] = []

    def add(self, entry: Entry) -> None:
        """Take in the next entry. Raises BadMessage for a payload that holds no changes (ValueError where the entry
        does not follow)."""
        if entry.seq != self.to + 1:
            raise ValueError(f"entry {entry.seq} does not follow seq {self.to}")
        told: list[_Told] = []
        for resource, id, op, _, body, version, _ in raw_heads(entry.payload, entry.count):
            key = (resource, id)
            told.append((key, op, version, tells_state(op, body)))
            self.objects[key] = None
            self.versioned = self.versioned or version is not None
        self._entries.append((entry, told, [0, *ends_of(entry.payload)]))
        self.to = entry.last_seq
        self.bytes += entry.bytes

    def fold(self, known: Iterable[Latest], versions: Mapping[Key, int | None] = _NONE) -> Folded:
        """known: the rows of `objects` before, tombstones too; of some the versions may be told instead. Both may be
        left out where none of the snapshot has a version."""
        now: dict[Key, _Row] = {key: (version, True, None) for key, version in versions.items()}
        for row in known:
            now[row.key] = (row.version, True, None)
        emptied: dict[str, None] = {}
        for index, (entry, told, _) in enumerate(self._entries):
            for offset, (key, op, version, tells) in enumerate(told):
                if op == TRUNCATE and key[1] == EVERY and entry.publisher == OUTBOX:
                    emptied[key[0]] = None
                    now.update({each: _EMPTIED for each in now if each[0] == key[0]})
                    continue
                highest = now[key][0] if key in now else None
                if not tells or (version is not None and highest is not None and version < highest):
                    continue
                if version is None:
                    version = highest
                now[key] = (version, op != DELETE, (index, offset))
        rows: list[Latest] = []
        gone: list[Key] = []
        for key in self.objects:
            version, lives, at = now.get(key, _NOTHING)
            if at is not None and not lives and version is None:
                gone.append(key)
            elif at is not None:
                rows.append(self._row(key, version, lives, *at))
        return Folded(tuple(rows), tuple(gone), self.versioned, tuple(emptied))

    def _row(self, key: Key, version: int | None, lives: bool, index: int, offset: int) -> Latest:
        entry, _, ends = self._entries[index]
        payload = entry.payload[ends[offset] : ends[offset + 1]] if lives else None
        seq = entry.seq + offset
        return Latest(*key, seq, entry.epoch, entry.term, entry.time, entry.publisher, version, payload)


#: Of a change: object, op, version, whether it tells the object's state.
_Told = tuple[Key, str, int | None, bool]
#: Of an object: highest version, whether it lives, which change of the stretch stands (None: none of it).
_Row = tuple[int | None, bool, tuple[int, int] | None]
_EMPTIED: Final[_Row] = (None, False, (0, 0))
_NOTHING: Final[_Row] = (None, True, None)


def fold(after: int, entries: Iterable[Entry], known: Iterable[Latest]) -> Folded:
    """The rows that change when the entries behind seq `after` are folded into a snapshot that holds `known`."""
    stretch = Stretch(after)
    for entry in entries:
        stretch.add(entry)
    return stretch.fold(known)
