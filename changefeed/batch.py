"""The bytes: batch, entry, digest chain. Encodings are in changefeed/wire; this module holds what is stored and hashed.

A *batch* is a publisher's run of changes, encoded once: the concatenation of canonical change encodings (`payload`)
and the sizes of its groups. It is never cut: it is sent, resent, forwarded, logged and found again as a whole.
An *entry* is a batch with its stamp in the log. The digest chain over entries proves that a log is whole.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from changefeed.change import Position


def batch_digest(sizes: Sequence[int], payload: bytes) -> bytes:
    """8 bytes that identify a batch's content: a publisher's number is known only together with them (review 4)."""
    head = struct.pack(f">I{len(sizes)}I", len(sizes), *sizes)
    return hashlib.sha256(head + payload).digest()[:8]


@dataclass(frozen=True)
class Batch:
    """One publisher's run of changes on its way to the log.

    publisher, incarnation: who. number: the publisher's number of the first change; the i-th has number + i.
    after: the publisher's last number before this batch that was not refused: number - 1 unless numbers were skipped.
        The leader accepts a batch only if `after` is the last number that it holds, so a refused number leaves no gap.
    sizes: number of changes of each group, in order; their sum is the number of changes.
    payload: concatenated canonical change encodings (wire/changes.py).
    """

    publisher: str
    incarnation: int
    after: int
    number: int
    sizes: tuple[int, ...]
    payload: bytes

    @cached_property
    def count(self) -> int:
        return sum(self.sizes)

    @property
    def last_number(self) -> int:
        return self.number + self.count - 1

    @cached_property
    def digest(self) -> bytes:
        return batch_digest(self.sizes, self.payload)


@dataclass(frozen=True)
class Entry:
    """A batch in the log. Its changes have seqs `seq` to `last_seq`; the digest chains it to the entry before.

    time: milliseconds since 1970, never below the previous entry's. batch_digest: `Batch.digest`, 8 bytes.
    digest: 32 bytes, `chain(previous digest, lineage, this)`.
    """

    epoch: int
    term: str
    seq: int
    time: int
    publisher: str
    incarnation: int
    after: int
    number: int
    sizes: tuple[int, ...]
    payload: bytes
    batch_digest: bytes
    digest: bytes = b""

    @cached_property
    def count(self) -> int:
        return sum(self.sizes)

    @property
    def last_seq(self) -> int:
        return self.seq + self.count - 1

    @property
    def bytes(self) -> int:
        """What the entry is counted as towards windows, reads and retention: its payload and a fixed share."""
        return len(self.payload) + ENTRY_OVERHEAD


ENTRY_OVERHEAD: Final = 128


def chain_start(lineage: str, feed: str) -> bytes:
    """The digest before the first entry."""
    return hashlib.sha256(b"changefeed.v1\0" + lineage.encode() + b"\0" + feed.encode()).digest()


def chain(previous: bytes, lineage: str, entry: Entry) -> bytes:
    """The digest of an entry: over the previous digest, the canonical stamp with lineage and term, and the bytes.

    The stamp is fixed-width big-endian numbers and length-prefixed texts, so that no two stamps share an encoding.
    """
    publisher = entry.publisher.encode()
    stamp = struct.pack(
        f">16sQ8sQQH{len(publisher)}sQQQI{len(entry.sizes)}I",
        lineage.encode(),
        entry.epoch,
        entry.term.encode(),
        entry.seq,
        entry.time,
        len(publisher),
        publisher,
        entry.incarnation,
        entry.after,
        entry.number,
        len(entry.sizes),
        *entry.sizes,
    )
    return hashlib.sha256(previous + stamp + entry.payload).digest()


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a log (or its floor: the last trimmed entry), as a row of its own that survives a total trim.

    seq, epoch, term: of the last entry (0, 0, NO_TERM before the first). digest: the chain up to it. time: its time.
    """

    seq: int
    epoch: int
    term: str
    digest: bytes
    time: int = 0

    def position(self, lineage: str) -> Position:
        return Position(lineage, self.epoch, self.term, self.seq)
