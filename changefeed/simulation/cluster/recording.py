"""Writes down what happens in a run, as changefeed.history says: in memory, in order."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import trio

from changefeed.batch import Entry
from changefeed.change import Change, Event, Position
from changefeed.history.facts import digest_of_change, entry_facts
from changefeed.history.records import Record

FEED: Final = "vmapi"

_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def key_of(change: Change) -> str:
    """Each change's own: where objects change often, their ids say nothing of the change."""
    body = change.body
    return str(body["id"]) if isinstance(body, dict) and "id" in body else change.id


def now_ns() -> int:
    return round(trio.current_time() * 1e9)


class Recorder:
    """The history of one run. records: ordered by `t`, which is virtual time."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._digests: dict[Any, str] = {}

    def add(self, node: str, life: int, f: str, **facts: Any) -> None:
        self.records.append({"t": now_ns(), "node": node, "life": life, "f": f, "feed": FEED, **facts})

    def event(self, reader: str, event: Event) -> dict[str, Any]:
        """The facts of `event`. What has equal heads has equal bytes: each is encoded once for all readers."""
        head = event._head
        digest = self._digests.get(head)
        if digest is None:
            digest = self._digests[head] = digest_of_change(event.change)
        return {
            "reader": reader,
            "position": str(event.position),
            "key": key_of(event.change),
            "digest": digest,
            "publisher": event.publisher,
            "group": event.group,
            "last": event.last,
        }

    def digest(self) -> str:
        return hashlib.sha256(_encode(self.records).encode()).hexdigest()[:16]


class Voice:
    """What one life of a node says. silent: it was killed; nothing that it still does can be heard."""

    __slots__ = ("_recorder", "life", "node", "silent")

    def __init__(self, recorder: Recorder, node: str, life: int) -> None:
        self._recorder = recorder
        self.node = node
        self.life = life
        self.silent = False

    def __call__(self, f: str, /, **facts: Any) -> None:
        if not self.silent:
            self._recorder.add(self.node, self.life, f, **facts)


class Archive:
    """Every entry that was ever committed, also those that retention trims; and the store's own records.

    It is told by the log's hook inside each write, before anything else can happen.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._newest: Entry | None = None
        self._floor = 0
        #: Everything that was committed, and was not lost with a copy that was put back; trimmed or not.
        self.entries: list[Entry] = []

    def looked(self, data: Any, point: str) -> None:
        """A write has just taken its effect. data: the feed as the place holds it."""
        if point == "append done":
            new: list[Entry] = []
            for entry in reversed(data.entries):
                if entry is self._newest:
                    break
                new.append(entry)
            for entry in reversed(new):
                self._recorder.add(
                    "store",
                    1,
                    "commit",
                    epoch=entry.epoch,
                    term=entry.term,
                    fence=data.fence.epoch,
                    fence_term=data.fence.term,
                    first=entry.seq,
                    last=entry.last_seq,
                )
                self._recorder.add("store", 1, "entry", **entry_facts(entry, data.lineage, key_of))
                self.entries.append(entry)
            if new:
                self._newest = new[0]
        elif point == "fence done":
            self._recorder.add("store", 1, "fenced", epoch=data.fence.epoch, term=data.fence.term)
        elif point == "trim done" and data.floor.seq > self._floor:
            self._floor = data.floor.seq
            self._recorder.add("store", 1, "trimmed", floor=self._floor)

    def put_back(self, data: Any) -> None:
        """The log is another copy now."""
        self._newest = data.entries[-1] if data.entries else None
        self._floor = data.floor.seq
        self.entries = [entry for entry in self.entries if entry.last_seq <= data.tail.seq]

    def end(self, data: Any) -> None:
        """The end: the log itself."""
        add, lineage = self._recorder.add, data.lineage
        tail: Position = data.tail.position(lineage)
        add("end", 1, "log", lineage=lineage, tail=str(tail), floor=str(data.floor.position(lineage)))
        for entry in data.entries:
            add("end", 1, "entry", **entry_facts(entry, lineage, key_of))
