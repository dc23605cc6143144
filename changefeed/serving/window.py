"""The newest visible entries in memory, and the tail up to which a leader vouches. Pure.

Visible means durable and announced: a near leader appends after its log has, a link after the far leader has said so.
Sessions never serve anything beyond `tail`, wherever they read it from.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from changefeed.batch import Entry, Tail

#: The list of entries is cut at its front once so many were dropped, so that dropping costs little.
_COMPACT: Final = 256
#: Stands at the front for entries that were dropped, until it is cut: whatever large entries held is free at once.
_GONE: Final = Entry(0, "", 0, 0, "", 0, 0, 0, (), b"", b"")


class Window:
    """Entries with seqs in (floor.seq, tail.seq], dense.

    bytes_max: the oldest entries go while the rest holds more; the newest one stays, however large. tail: the visible
    tail, None until a leader has vouched for one. floor: the end of what is no longer held, None together with tail.
    bytes: what the entries held count (`Entry.bytes`).
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.tail: Tail | None = None
        self.floor: Tail | None = None
        self.bytes = 0
        self._entries: list[Entry] = []
        self._lasts: list[int] = []
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._entries) - self._dropped

    def begin(self, tail: Tail) -> None:
        """Hold nothing, with that tail: at the start, or where a leader's history does not join what is held."""
        self._entries.clear()
        self._lasts.clear()
        self._dropped = self.bytes = 0
        self.tail = self.floor = tail

    def append(self, entries: Iterable[Entry]) -> None:
        """Make entries visible. Those at or below the tail are dropped (a new link repeats some). Raises ValueError,
        with nothing changed by the entry concerned, if one does not begin right after the tail, or if an entry that is
        held comes again as another."""
        for entry in entries:
            tail = self.tail
            if tail is None:
                raise ValueError("the window has no tail yet: begin it first")
            if entry.last_seq <= tail.seq:
                self._compare(entry)
                continue
            if entry.seq != tail.seq + 1:
                raise ValueError(f"an entry of seqs {entry.seq} to {entry.last_seq} does not follow tail {tail.seq}")
            self._entries.append(entry)
            self._lasts.append(entry.last_seq)
            self.bytes += entry.bytes
            self.tail = _end_of(entry)
        self._shrink()

    def _compare(self, entry: Entry) -> None:
        index = bisect_left(self._lasts, entry.last_seq, self._dropped)
        if index < len(self._entries) and self._entries[index].digest != entry.digest:
            raise ValueError(f"the entry of seqs {entry.seq} to {entry.last_seq} came again with another digest")

    def _shrink(self) -> None:
        while self.bytes > self.bytes_max and len(self) > 1:
            oldest = self._entries[self._dropped]
            self.bytes -= oldest.bytes
            self.floor = _end_of(oldest)
            self._entries[self._dropped] = _GONE
            self._dropped += 1
        if self._dropped >= _COMPACT and self._dropped * 2 >= len(self._entries):
            del self._entries[: self._dropped]
            del self._lasts[: self._dropped]
            self._dropped = 0

    def after(self, seq: int, max_bytes: int) -> list[Entry] | None:
        """Entries from the one that holds seq + 1 on: at least one, then while their `Entry.bytes` fit into max_bytes;
        [] at or beyond the tail; None if they are not held: ask the log."""
        if self.tail is None or self.floor is None:
            return None
        if seq >= self.tail.seq:
            return []
        if seq < self.floor.seq:
            return None
        entries = self._entries
        first = end = bisect_left(self._lasts, seq + 1, self._dropped)
        size = 0
        while end < len(entries) and (end == first or size + entries[end].bytes <= max_bytes):
            size += entries[end].bytes
            end += 1
        found = entries[first:end]
        assert found[0].seq <= seq + 1 <= found[0].last_seq, "the window is not dense"
        return found


def _end_of(entry: Entry) -> Tail:
    return Tail(entry.last_seq, entry.epoch, entry.term, entry.digest, entry.time)
