"""Keeps the snapshot of a feed beside the appends of one term: reads what is durable, folds it, writes the rows.

At the term's start, and when the feed's option is switched on, it first reads what stands between the snapshot and the
log's end for the guard. The rule is in folding.py, what the guard is for in guard.py.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from changefeed.change import FeedSettings, Key
from changefeed.errors import ChangefeedError, TailMoved, TrimmedAway
from changefeed.leader.effects import Effect
from changefeed.leader.folding import Folded, Stretch
from changefeed.leader.guard import OBJECTS_MAX, marks_of
from changefeed.leader.machine import Sequencer
from changefeed.log import FeedLog, Latest, Look
from changefeed.settings import Settings

logger = logging.getLogger("changefeed.leader")

#: A fold is due after so many appended bytes, or `snapshot_every_s` after the last one.
FOLD_BYTES: Final = 4 * 1024 * 1024
#: What one transaction folds, unless a single entry has more.
STRETCH_BYTES: Final = 1024 * 1024
STRETCH_OBJECTS: Final = 5000
#: How many objects the log is asked for at once.
LATEST_MAX: Final = 10_000
#: Read at most for the guard. More than this is only unfolded where the option has just been switched on, or where
#: folding has failed for long: until it is folded, no change is refused because of what it holds.
BUILD_BYTES: Final = 16 * 1024 * 1024
#: Of so many objects that were folded last their versions are remembered, so that the log need not be asked for those
#: that change often.
VERSIONS_MAX: Final = 50_000
#: The shortest pause, whatever `snapshot_every_s` says.
PAUSE_MIN_S: Final = 0.01


class Folder:
    """One term's. perform: does what the machine says."""

    def __init__(
        self,
        log: FeedLog,
        machine: Sequencer,
        settings: Settings,
        declared: Callable[[], FeedSettings],
        perform: Callable[[Sequence[Effect]], None],
    ) -> None:
        self._log = log
        self._machine = machine
        self._settings = settings
        self._declared = declared
        self._perform = perform
        self._due = trio.Event()
        self._unfolded_bytes = 0
        #: Up to where the snapshot reaches, as far as this term knows; None: it does not.
        self._folded: int | None = None
        self._folds = 0
        #: Object -> its row's version, as this term has written it. No tombstones: retention takes them away.
        self._versions: dict[Key, int | None] = {}

    def stats(self) -> dict[str, Any]:
        """For status; empty where the feed keeps no snapshot. unfolded: how many events it lags behind."""
        folded = self._folded
        if not self._declared().snapshot:
            return {}
        return {
            "folded": folded,
            "unfolded": self._machine.tail.seq - (folded or 0),
            "folds": self._folds,
            "versioned_unfolded": self._machine.checks.guard.objects,
        }

    def appended(self, size: int) -> None:
        """So many bytes have become durable."""
        self._unfolded_bytes += size
        if self._unfolded_bytes >= FOLD_BYTES or self._machine.checks.guard.full:
            self._due.set()

    async def run(self, beside: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> None:
        """Until cancelled: a fold that has begun in the log runs to its end. beside: does housekeeping, and takes what
        it raises."""
        while True:
            self._due = trio.Event()
            if self._declared().snapshot:
                await beside(self._keep_up)
            else:
                self._versions.clear()
                self._perform(self._machine.keep_no_snapshot())
                self._folded = None
            with trio.move_on_after(max(self._settings.snapshot_every_s, PAUSE_MIN_S)):
                await self._due.wait()

    async def _keep_up(self) -> None:
        machine = self._machine
        if self._folded == machine.tail.seq and machine.checks.guard.on and not machine.checks.guard.building:
            return
        try:
            look = await self._log.look()
            machine.keep_snapshot(look)
            if machine.checks.guard.building:
                self._perform(machine.built(await self._standing(look)))
            await self._fold(look)
        except ChangefeedError as error:
            self._versions.clear()
            if not isinstance(error, TailMoved | TrimmedAway):
                raise
            # Not where I believed: the next turn looks again.
            self._folded = None
            logger.warning("feed %s: the snapshot is not where it was: %s", self._log.feed, error)

    async def _standing(self, look: Look) -> list[tuple[dict[Key, int], int]]:
        """What gives versions to objects between the snapshot and the log's end."""
        after, until = max(look.folded or 0, look.floor.seq), self._machine.tail.seq
        found: list[tuple[dict[Key, int], int]] = []
        size = objects = 0
        while after < until:
            entries = [e for e in await self._log.read(after, STRETCH_BYTES) if e.last_seq <= until]
            for entry in entries:
                size += entry.bytes
                if size > BUILD_BYTES or objects >= OBJECTS_MAX:
                    logger.info("feed %s: the snapshot has %d events to catch up with", self._log.feed, until - after)
                    return found
                marks = marks_of(entry)
                if marks:
                    objects += len(marks)
                    found.append((marks, entry.last_seq))
                await trio.lowlevel.checkpoint()
            if not entries:
                break
            after = entries[-1].last_seq
        return found

    async def _fold(self, look: Look) -> None:
        """Up to what is durable now, in stretches."""
        log, machine = self._log, self._machine
        after, until, versioned = look.folded, machine.tail.seq, look.versioned
        self._unfolded_bytes = 0
        if after is None or after < look.floor.seq:
            # It is new, or was off while retention went on: what is trimmed is lost to it.
            after, versioned = look.floor.seq, False
            self._versions.clear()
            await log.fold(machine.epoch, machine.term, None, after, (), (), versioned=False)
        self._reached(after, versioned)
        while after < until and self._declared().snapshot:
            stretch = await self._read(after)
            if stretch.to == after:
                return
            seen = {key: self._versions[key] for key in stretch.objects if key in self._versions}
            known = await self._known([key for key in stretch.objects if key not in seen]) if versioned else []
            folded = stretch.fold(known, seen)
            for resource in folded.emptied:
                await self._empty(resource, after, versioned)
            await log.fold(
                machine.epoch, machine.term, after, stretch.to, folded.rows, folded.gone, versioned=folded.versioned
            )
            after, versioned = stretch.to, versioned or folded.versioned
            self._folds += 1
            if versioned:
                self._remember(folded)
            self._reached(after, versioned)

    async def _empty(self, resource: str, at: int, versioned: bool) -> None:
        """Drop what the snapshot, folded up to `at`, holds of a table that is truncated behind it. A list that begins
        meanwhile lacks what the stream behind it, which tells the TRUNCATE, takes away as well."""
        log, machine = self._log, self._machine
        self._versions.clear()
        while True:
            rows = await log.list_latest((resource, ""), STRETCH_BYTES)
            keys = [row.key for row in rows if row.resource == resource][:STRETCH_OBJECTS]
            if not keys:
                return
            await log.fold(machine.epoch, machine.term, at, at, (), keys, versioned=versioned)

    def _reached(self, seq: int, versioned: bool) -> None:
        self._folded = seq
        self._machine.checks.guard.reached(seq, versioned)
        # There may be room for those who wait.
        self._perform(())

    def _remember(self, folded: Folded) -> None:
        versions = self._versions
        for key in folded.gone:
            versions.pop(key, None)
        for row in folded.rows:
            versions.pop(row.key, None)
            if row.payload is not None:
                versions[row.key] = row.version
        while len(versions) > VERSIONS_MAX:
            del versions[next(iter(versions))]

    async def _read(self, after: int) -> Stretch:
        """Only what is durable under this term's fence. An entry at a time, so that appends need not wait."""
        stretch = Stretch(after)
        for entry in await self._log.read(after, STRETCH_BYTES):
            more = len(stretch.objects) + entry.count > STRETCH_OBJECTS
            if entry.last_seq > self._machine.tail.seq or (more and stretch.to > after):
                break
            stretch.add(entry)
            await trio.lowlevel.checkpoint()
        return stretch

    async def _known(self, objects: Sequence[Key]) -> list[Latest]:
        rows: list[Latest] = []
        for index in range(0, len(objects), LATEST_MAX):
            rows += await self._log.latest(objects[index : index + LATEST_MAX])
        return rows
