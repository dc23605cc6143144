"""The SQLite store in a simulated process: its blocking calls run inline, after drawn delays; a kill ends them.

A call runs as one step: no other task of any process runs within it, so its locks are never seen taken by another
instance. What real processes do to each other inside such a step (locks, turns, frozen holders) is not simulated here;
tests/log and the chaos on real processes show it. What can come between two steps is everything else.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Final, TypeVar, TypeVarTuple
from unittest.mock import patch

import trio

from changefeed.batch import Entry, Tail
from changefeed.change import NO_TERM, FeedSettings
from changefeed.errors import ChangefeedError, LogUnavailable
from changefeed.log import Fence, Look, sqlite, sqlite_file, sqlite_io, sqlite_read, sqlite_write
from changefeed.log.sqlite import SqliteFeedLog
from changefeed.log.sqlite_file import FeedFile
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.simulation.cluster.distant import PAUSE_CHANCE, PAUSE_S, ProcessFaults
from changefeed.simulation.cluster.recording import FEED, Archive

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Calls that write: they have a second step, "… done", after their effect.
WRITES: Final = frozenset({"fence", "append", "open_publisher", "trim", "set_settings"})
_POINTS: Final = {"trim_some": "trim", "_open": "open", "_feeds": "feeds"}
_READ_BYTES: Final = 2**40
NOTHING: Final = Tail(0, 0, NO_TERM, b"")


@dataclass
class Held:
    """What the log holds, as it was last seen: by the harness itself, not by an instance."""

    lineage: str = ""
    tail: Tail = NOTHING
    floor: Tail = NOTHING
    fence: Fence | None = None
    entries: list[Entry] = field(default_factory=list)


class SqlitePlace:
    """The folder of one run's log, and what is in it. free, total: bytes of the pretended disk.

    It keeps a connection of its own open, so that a killed instance's connections are never the last ones: the last
    one to close tidies up, which SIGKILL does not.
    """

    def __init__(self, entropy: str) -> None:
        shm = "/dev/shm"
        self.folder = tempfile.mkdtemp(prefix="changefeed-stack-", dir=shm if os.access(shm, os.W_OK) else None)
        self.held = Held()
        self.feeds = {FEED: self.held}
        self.free = self.total = 2**62
        #: Grows with each write: what the time stamps of files tell real processes.
        self.writes = 0
        #: Called after the effect of each write, before anything else can happen: what a loss of power waits for.
        self.written: Callable[[], None] | None = None
        self._settings = Settings()
        self._world = World(SeededEntropy(entropy), lambda: 0)
        self._file: FeedFile | None = None

    def begin(self) -> None:
        """Open the log, and lay it out if there is none. What is still there of what was seen before stays the same
        objects."""
        self._file = FeedFile(self.folder, FEED, self._settings, self._world)
        self._file.open(create=True)
        held = self.held
        known = {entry.seq: entry for entry in held.entries}
        held.lineage = self._file.lineage
        held.entries, held.tail = [], NOTHING
        self.look()
        held.entries = [known[each.seq] if known.get(each.seq) == each else each for each in held.entries]

    def set(self, settings: FeedSettings) -> None:
        assert self._file is not None
        self._file.set_settings(settings)

    def look(self) -> None:
        """See what a write has changed. What cannot be read just now is seen later."""
        self.writes += 1
        held, file = self.held, self._file
        if file is None:
            return
        try:
            found: Look = file.look(None)
            if found.tail.seq > held.tail.seq:
                held.entries += file.read(max(held.tail.seq, found.floor.seq), _READ_BYTES)
        except ChangefeedError:
            return
        if found.floor.seq > held.floor.seq:
            held.entries = [entry for entry in held.entries if entry.seq > found.floor.seq]
        held.tail, held.floor, held.fence = found.tail, found.floor, found.fence

    def end(self) -> None:
        """Let go of the log, as a loss of power does. `begin` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)


class Threads(ProcessFaults[SqlitePlace]):
    """Where one process's store runs its blocking calls, with the same points as a store in memory: see
    sqlite.RunSync."""

    def __init__(
        self,
        place: SqlitePlace,
        archive: Archive,
        chance: random.Random,
        lag_s: float,
        pauses: Collection[str],
        passed: Callable[[str], None],
    ) -> None:
        super().__init__(place, archive, chance, lag_s, pauses, passed)
        self._under_way: dict[trio.CancelScope, None] = {}
        self._files: dict[FeedFile, None] = {}

    async def run_sync(
        self,
        call: Callable[[*Ts], T],
        /,
        *arguments: *Ts,
        limiter: trio.CapacityLimiter,
        abandon_on_cancel: bool = False,
    ) -> T:
        name = getattr(call, "__name__", "call")
        point = _POINTS.get(name, name)
        for each in (getattr(call, "__self__", None), *arguments):
            if isinstance(each, FeedFile):
                self._files[each] = None
        if point == "close":
            # Cancellation has been kept away by whoever closes; a process that was killed has closed already.
            await trio.lowlevel.checkpoint()
            return call(*arguments)
        async with limiter:
            with trio.CancelScope(shield=not abandon_on_cancel) as scope:
                self._under_way[scope] = None
                try:
                    return await self._run(point, call, *arguments)
                finally:
                    self._under_way.pop(scope, None)
        raise LogUnavailable("this process was killed")

    async def _run(self, point: str, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        await self._step(point)
        self._check_alive()
        if point not in WRITES:
            return call(*arguments)
        try:
            result = call(*arguments)
        finally:
            if self._place.written is not None:
                self._place.written()
            self._check_alive()
            self._place.look()
            self._archive.looked(self._place.held, "trim done" if point == "trim" else "append done")
        await self._step(f"{point} done")
        self._check_alive()
        return result

    def _check_alive(self) -> None:
        if self.killed:
            raise LogUnavailable("this process was killed")

    async def _step(self, point: str) -> None:
        self._check_alive()
        self._passed(f"log: {point}")
        wait_s = self._lag_s * self._chance.random() ** 2 if self._lag_s else 0.0
        if point in self._pauses and self._chance.random() < PAUSE_CHANCE:
            wait_s += PAUSE_S * self._chance.random()
        await trio.sleep(wait_s)
        await super().__call__(point, FEED)

    def kill(self) -> None:
        """As SIGKILL: a call that has not begun never will; one that is over is not told of."""
        self.killed = True
        for scope in list(self._under_way):
            scope.shield = False
            scope.cancel()
        for file in self._files:
            file.close()


@contextmanager
def quiet_world(seed: int, place: SqlitePlace) -> Iterator[None]:
    """What the SQLite store and the websockets take from the operating system without asking for it: clock, sleep,
    chance, room and time stamps of files. All come from the seed and from virtual time here."""
    chance = random.Random(f"{seed}-system")
    slept = [0.0]

    def monotonic() -> float:
        try:
            return trio.current_time() + slept[0]
        except RuntimeError:
            return slept[0]

    def sleep(seconds: float) -> None:
        slept[0] += seconds

    def room(directory: str) -> tuple[int, int]:
        return place.free, place.total

    def touched(log: SqliteFeedLog) -> object:
        return place.writes

    instead = {"time": SimpleNamespace(monotonic=monotonic, sleep=sleep), "random": chance, "disk_room": room}
    modules = (sqlite, sqlite_file, sqlite_io, sqlite_read, sqlite_write)
    with ExitStack() as stack:
        stack.enter_context(patch.object(os, "urandom", chance.randbytes))
        stack.enter_context(patch.object(sqlite.SqliteFeedLog, "_touched", touched))
        for module, name in [(module, name) for module in modules for name in instead if name in vars(module)]:
            stack.enter_context(patch.object(module, name, instead[name]))
        yield
