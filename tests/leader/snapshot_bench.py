"""A log that keeps a snapshot, and a leader of it, driven by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from leader_bench import Bench, SyncLog

from changefeed.batch import Batch
from changefeed.change import Change, Key
from changefeed.leader.effects import Facts, LookUp
from changefeed.leader.folding import fold
from changefeed.leader.guard import marks_of
from changefeed.log import Latest, Look
from changefeed.wire.changes import encode_change


def vm(id: str, version: int | None = None, op: str = "update", body: Any = "b") -> Change:
    return Change("vm", id, op, body=body, version=version)


def batch_of(
    number: int,
    *changes: Change,
    publisher: str = "p",
    incarnation: int = 1,
    after: int | None = None,
    sizes: tuple[int, ...] | None = None,
) -> Batch:
    payload = b"".join(encode_change(change, 1 << 20) for change in changes)
    groups = (1,) * len(changes) if sizes is None else sizes
    return Batch(publisher, incarnation, number - 1 if after is None else after, number, groups, payload)


class SnapLog(SyncLog):
    """rows: the snapshot up to seq `folded`."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[Key, Latest] = {}
        self.folded: int | None = None
        self.versioned = False

    def look(self) -> Look:
        return replace(super().look(), folded=self.folded, versioned=self.versioned)

    def facts(self, wanted: LookUp) -> Facts:
        return replace(super().facts(wanted), rows=self.latest(wanted.keys))

    def latest(self, keys: Sequence[Key]) -> list[Latest]:
        return [self.rows[key] for key in keys if key in self.rows]

    def fold(self, entries: int | None = None) -> int:
        """Fold the next so many entries (None: all); returns up to where the snapshot reaches."""
        after = self.folded = self.floor.seq if self.folded is None else self.folded
        part = [entry for entry in self.held if entry.seq > after][:entries]
        if part:
            folded = fold(after, part, list(self.rows.values()))
            for key in folded.gone:
                self.rows.pop(key, None)
            self.rows |= {row.key: row for row in folded.rows}
            self.versioned = self.versioned or folded.versioned
            self.folded = part[-1].last_seq
        return self.folded

    def trim(self, up_to: int) -> None:
        super().trim(up_to)
        self.rows = {key: row for key, row in self.rows.items() if row.payload is not None or row.seq > self.floor.seq}


class SnapBench(Bench):
    """A leader of a feed that keeps a snapshot, with publisher p open over channel c."""

    log: SnapLog

    def __init__(self, log: SnapLog | None = None, *, build: bool = True) -> None:
        super().__init__(SnapLog() if log is None else log, snapshot=True)
        self.open(incarnation=None if log is None else 1)
        if build:
            self.build()

    def build(self) -> None:
        after = self.log.folded or 0
        self.perform(self.machine.built([(marks_of(e), e.last_seq) for e in self.log.held if e.seq > after]))

    def fold(self, entries: int | None = None) -> None:
        reached = self.log.fold(entries)
        self.machine.checks.guard.reached(reached, self.log.versioned)

    def store(self, ticket: Any, batch: Batch, channel: str = "c") -> None:
        """Publish, and append what was accepted."""
        self.publish(ticket, batch, channel)
        self.look()
        if self.machine.waiting:
            self.append()
        assert self.answers[ticket].code == "", self.answers[ticket]
