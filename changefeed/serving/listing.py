"""A snapshot's list at the instance that serves it: where it stands, which page comes next, what is sent of it. Pure.

The list is read out of the log page by page while others write and fold: nothing is held but the page that is being
sent. An object that changes meanwhile may come as it was, or as it is, or not at all if it came into being behind the
place where the list stands: the stream that follows, from the position before the list on, makes up for all of them.

An object that was deleted under a version is listed too, as its delete, until retention has passed that: whoever keeps
a table from the list must know the version, or an update that was published late would bring the object back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from changefeed.change import Change, FeedSettings, Filter, Key, Position
from changefeed.errors import FuturePosition, NoSnapshot, NotCurrent, OtherLineage
from changefeed.wire.changes import encode_change
from changefeed.wire.messages import Listed, Run, Start, Subscribe
from changefeed.wire.tables import RUNS_MAX

if TYPE_CHECKING:
    from changefeed.log import Latest, Look


#: What a row takes in a message beside its payload, at most: the names of a run's parts, its stamp and its publisher.
ROW_BYTES: Final = 192
#: Above what a delete takes with the longest of ids.
CHANGE_BYTES_MAX: Final = 4096
#: A filter that names so few objects is answered by asking for them, so many at once; else the whole list is read.
NAMED_MAX: Final = 10_000
NAMED_AT_ONCE: Final = 32


def wants_list(start: Start) -> bool:
    """Whether a subscription begins with a list."""
    return start.at == "snapshot" or (start.position is not None and start.position.is_listing)


def admit_list(request: Subscribe, look: Look, settings: FeedSettings) -> Position:
    """The position behind which the stream goes on after the list.

    look, settings: taken after the request came in. Raises NoSnapshot; NotCurrent while nothing is folded yet, or not
    as far as the list stood that is to go on; and for one that cannot go on what `Look.check` says.
    """
    start = request.start
    if start.position is not None and start.position.lineage != look.lineage:
        raise OtherLineage(
            f"position {start.position} belongs to another log: the feed's log was lost, restored or replaced",
            start.position,
            look.earliest,
            look.head,
        )
    check_kept(request.feed, settings)
    check_newest(request, look)
    if start.snapshot is not None:
        refusal = look.check(start.snapshot)
        if refusal is not None:
            raise refusal
    needed = look.floor.seq if start.snapshot is None else start.snapshot.seq
    if look.folded is None or look.folded < needed:
        raise NotCurrent(f"the snapshot of feed {request.feed} is being made; ask again")
    return look.position(look.folded) if start.snapshot is None else start.snapshot


def check_newest(request: Subscribe, look: Look) -> None:
    """Raise why a list cannot be gone on with, or be followed behind: an older copy of the log was put back, and what
    the subscriber was given is not in it."""
    newest = request.newest
    refusal = None if newest is None else look.check(newest)
    if refusal is not None:
        raise refusal
    if request.whole > look.tail.seq:
        raise FuturePosition(
            f"the list that was given reached up to seq {request.whole}, the log ends at {look.tail.seq}: an older "
            "copy was restored",
            request.start.position or request.start.snapshot,
            look.earliest,
            look.head,
        )


def check_kept(feed: str, settings: FeedSettings) -> None:
    """Raise NoSnapshot if the feed keeps none."""
    if not settings.snapshot:
        raise NoSnapshot(
            f"feed {feed} keeps no snapshot to start with: start at the beginning or now, or switch it on "
            f"(changefeed feed set {feed} --snapshot)"
        )


class Named:
    """The objects that a filter names one by one, in order."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = sorted(keys)

    @classmethod
    def of(cls, filter: Filter, declared: FeedSettings) -> Named | None:
        """None where a filter does not name them, or too many. A feed that declares its resources knows them all."""
        resources = tuple(filter.resources) or tuple(declared.declared)
        if not filter.ids or not resources or len(resources) * len(filter.ids) > NAMED_MAX:
            return None
        return cls([(resource, id) for resource in resources for id in filter.ids])

    def after(self, key: Key | None) -> list[Key]:
        """The next few; [] at the end."""
        left = self._keys if key is None else (each for each in self._keys if each > key)
        return list(islice(left, NAMED_AT_ONCE))


class Listing:
    """One list, from its first page to its last message.

    snapshot: where the stream goes on. after: the last object that was read, or a place before the next one that can be
    wanted. over: there is nothing more to read; `sent` once its last message was cut. highest: of the seqs listed.
    """

    def __init__(self, request: Subscribe, snapshot: Position, named: Named | None, frame_bytes: int) -> None:
        self.snapshot = snapshot
        self.after = request.start.listed
        self.over = self.sent = False
        self.highest = snapshot.seq
        self.named = named
        self._frame_bytes = frame_bytes
        self._resources = sorted(request.filter.resources)
        self._ids = request.filter.ids
        self._rows: list[Latest] = []
        self._cut = 0
        self._skip()

    @property
    def ready(self) -> bool:
        """Whether a message can be cut: something was read that is not sent, or nothing more is to come."""
        return self._cut < len(self._rows) or (self.over and not self.sent)

    def took(self, rows: Sequence[Latest], end: Key | None) -> None:
        """A page came: rows above `after`, in order. end: up to where it went; None: to the end of the list."""
        self._rows, self._cut = [told(row) for row in rows if self._wanted(row)], 0
        if end is None:
            self.over = True
            return
        self.after = end
        self._skip()

    def cut(self, head: int) -> Listed:
        """The next message: what is read and fits; the last one if that is all. head: the visible tail's seq now."""
        rows, start = self._rows, self._cut
        end, size = start, 0
        while end < len(rows) and end - start < RUNS_MAX:
            size += ROW_BYTES + len(rows[end].payload or b"")
            if end > start and size > self._frame_bytes:
                break
            end += 1
        runs = tuple(_run(row) for row in rows[start:end])
        self._cut = end
        if runs:
            self.highest = max(self.highest, *(row.seq for row in rows[start:end]))
        if end < len(rows):
            return Listed(self.snapshot, runs, False)
        self._rows, self._cut = [], 0
        self.sent = self.over
        return Listed(self.snapshot, runs, self.over, max(head, self.highest) if self.over else 0)

    def _wanted(self, row: Latest) -> bool:
        if self._resources and row.resource not in self._resources:
            return False
        return not self._ids or row.id in self._ids

    def _skip(self) -> None:
        """Go on before the next resource that is wanted; over if there is none."""
        if not self._resources or (self.after is not None and self.after[0] in self._resources):
            return
        following = [name for name in self._resources if self.after is None or name > self.after[0]]
        if following:
            self.after = (following[0], "")
        else:
            self.over = True


def told(row: Latest) -> Latest:
    """A row as it is listed: a tombstone has the delete that it stands for."""
    if row.payload is not None:
        return row
    gone = Change(row.resource, row.id, "delete", None, None, row.version)
    return replace(row, payload=encode_change(gone, CHANGE_BYTES_MAX))


def _run(row: Latest) -> Run:
    assert row.payload is not None
    return Run(row.epoch, row.term, row.time, row.publisher, row.seq, None, row.payload)
