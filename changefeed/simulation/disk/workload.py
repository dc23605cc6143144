"""What a leader, its followers and its housekeeping do to the SQLite log on a recorded disk, and what each was told.

Every call goes to the production store and to the memory store beside it; both must answer alike. The memory store is
then the witness: after each call its content is kept, together with the write boundaries between which the call ran.
So for each boundary it is known what a log must hold that was cut off there: see `Timeline.allowed`.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import trio

from changefeed.batch import Entry
from changefeed.log import FeedLog, Fence, Look
from changefeed.log.memory import MemoryFeedLog, MemoryLogStore, MemoryPlace
from changefeed.log.sqlite import RunSync, SqliteFeedLog, SqliteLogStore
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.simulation.disk.in_place import run_in_place
from changefeed.simulation.disk.recorded import RecordedDisk
from changefeed.testing.log_scribe import Scribe

FEED: Final = "vmapi"
#: A small bound of the write-ahead log, so that checkpoints cut it to nothing now and then.
SETTINGS: Final = Settings(min_free_bytes=0, wal_bytes_truncate=256 * 1024)


@dataclass(frozen=True, slots=True)
class Act:
    """A call that was answered. It ran between the boundaries begun and done; after it the log holds `after`.

    changes: it was to change the log. Acts follow one another: at most one that changes the log runs at a time.
    """

    what: str
    begun: int
    done: int
    after: MemoryPlace
    changes: bool


@dataclass
class Timeline:
    """The acts of a life, in order. before: what the log held at its beginning; None: there was none."""

    before: MemoryPlace | None
    acts: list[Act] = field(default_factory=list)
    #: (boundary, seq): at that boundary at the latest, a reader was shown the log up to seq.
    shown: list[tuple[int, int]] = field(default_factory=list)

    def allowed(self, at: int) -> list[MemoryPlace | None]:
        """What a log may hold whose disk was cut off at boundary `at`: all that was answered before, or that and the
        call that was under way. None: there need not be a log."""
        answered = bisect_right(self.acts, at, key=lambda act: act.done)
        states = [self.acts[answered - 1].after if answered else self.before]
        if answered < len(self.acts) and self.acts[answered].begun < at and self.acts[answered].changes:
            states.append(self.acts[answered].after)
        return states

    def shown_at(self, at: int) -> int:
        """The highest seq that a reader was shown before boundary `at`."""
        return max((seq for boundary, seq in self.shown if boundary <= at), default=0)


Call = Callable[[FeedLog], Awaitable[Any]]


class Witness:
    """A log in memory that holds what the log must hold."""

    def __init__(self, place: MemoryPlace, world: World) -> None:
        self.place = place
        self._store = MemoryLogStore(place, SETTINGS, world=world)

    async def log(self) -> MemoryFeedLog:
        return await self._store.open(FEED)

    async def look(self) -> Look:
        return await (await self.log()).look()


@dataclass
class Life:
    """One process's use of the log: opens it several times over, as several processes would, and writes its timeline.

    `begin` first. Raises AssertionError where the two stores differ: then the production store is wrong without any
    loss of power.
    """

    disk: RecordedDisk
    seed: str
    place: MemoryPlace = field(default_factory=MemoryPlace)
    #: Which of the handles leads, always; None: by chance.
    leader: int | None = None
    #: How the store's blocking calls run: at once, or in threads.
    run_sync: RunSync = run_in_place

    def __post_init__(self) -> None:
        known = self.place.copy() if self.place.feeds else None
        self.timeline = Timeline(known)
        self.chance = random.Random(f"workload {self.seed}")
        # Both draw the lineage of a new log from the same seed.
        self._witness = Witness(self.place, World(entropy=SeededEntropy(self.seed)))
        self._world = World(entropy=SeededEntropy(self.seed), wall_ms=lambda: 1_000_000)
        self.logs: list[SqliteFeedLog] = []
        self.leads = 0
        self.scribe: Scribe | None = None
        self.publishers: dict[str, int] = {}

    async def begin(self) -> None:
        """Open the log twice."""
        await self.act("open", self._open_all, lambda: self._witness.log(), changes=True)
        self.witness = await self._witness.log()

    async def take_over(self, logs: list[SqliteFeedLog]) -> None:
        """Begin with logs that are open already."""
        self.logs, self.witness = logs, await self._witness.log()

    async def _open_all(self) -> SqliteFeedLog:
        store = SqliteLogStore("sqlite:", self.disk.folder, SETTINGS, world=self._world, run_sync=self.run_sync)
        for _ in range(2):
            self.logs.append(await store.open(FEED))
        return self.logs[0]

    async def end(self) -> None:
        """Close them."""
        while self.logs:
            await self.logs.pop().aclose()

    async def act(
        self, what: str, real: Callable[[], Awaitable[Any]], told: Callable[[], Awaitable[Any]], *, changes: bool
    ) -> Any:
        """Do one call on both and note it."""
        begun = self.disk.count
        result = await real()
        done = self.disk.count
        expected = await told()
        if not isinstance(result, SqliteFeedLog):
            assert _plain(result) == _plain(expected), f"{what}: the store says {result!r}, the witness {expected!r}"
        self.timeline.acts.append(Act(what, begun, done, self.place.copy(), changes))
        return result

    async def both(self, what: str, call: Call, *, changes: bool = True) -> Any:
        return await self.act(what, lambda: call(self.logs[self.leads]), lambda: call(self.witness), changes=changes)

    # ---- what a leader does

    async def lead(self, *, clean: bool) -> None:
        """A new term, by the other handle now and then."""
        self.leads = self.chance.randrange(len(self.logs)) if self.leader is None else self.leader
        look = await self.witness.look()
        epoch = look.fence.epoch + self.chance.choice((1, 1, 1, 5))
        fence = Fence(epoch, f"{epoch:08x}", f"i{self.leads}", coordinator="c0ffee")
        found = await self.both("fence", lambda log: log.fence(fence, why="start", time=epoch, clean=clean))
        self.scribe = Scribe(self.logs[self.leads], found)

    async def open_publisher(self, name: str, *, named: bool) -> None:
        scribe = self._scribe()
        state = await self.both(
            "open_publisher", lambda log: log.open_publisher(scribe.epoch, scribe.term, name, named=named)
        )
        self.publishers[name] = state.incarnation
        scribe.numbers[name, state.incarnation] = state.last_number

    async def append(self, groups: int) -> None:
        """A group commit of several publishers' batches."""
        scribe = self._scribe()
        entries: list[Entry] = []
        for _ in range(groups):
            name = self.chance.choice(sorted(self.publishers))
            key = (name, self.publishers[name])
            if key not in scribe.numbers:
                scribe.numbers[key] = await self.witness.last_number(*key) or 0
            sizes = [self.chance.choice((1, 1, 2, 5)) for _ in range(self.chance.choice((1, 1, 3)))]
            entries.append(scribe.entry(*key, sizes, self.chance.choice((20, 200, 200, 1500, 9000))))
        await self.both("append", lambda log: log.append(scribe.epoch, scribe.term, entries[0].seq - 1, entries))

    async def trim(self, share: float | None = None) -> None:
        """Drop that share of what is held; None: one by chance."""
        scribe, look = self._scribe(), await self.witness.look()
        share = self.chance.choice((0.1, 0.3, 0.5, 1.0)) if share is None else share
        seq = look.floor.seq + int((look.tail.seq - look.floor.seq) * share)
        await self.both("trim", lambda log: log.trim(scribe.epoch, scribe.term, seq))

    async def set_settings(self) -> None:
        standing = await self.witness.settings()
        wanted = replace(standing, retention_count=self.chance.randrange(1, 10**6))
        await self.both("set_settings", lambda log: log.set_settings(wanted))

    async def maintain(self) -> None:
        log = self.logs[self.chance.randrange(len(self.logs))]
        await self.act(
            "maintain", lambda: _nothing(log.maintain()), lambda: _nothing(self.witness.look()), changes=False
        )

    async def read(self) -> None:
        """A reader is shown the log's end."""
        look = await self.logs[self.chance.randrange(len(self.logs))].look()
        self.timeline.shown.append((self.disk.count, look.tail.seq))

    async def reopen(self) -> None:
        """Every process ends orderly, and others begin."""
        await self.end()
        await self.act("reopen", self._open_all, lambda: _nothing(self.witness.look()), changes=False)
        await self.lead(clean=True)

    def _scribe(self) -> Scribe:
        assert self.scribe is not None, "nobody leads"
        return self.scribe


async def run_life(life: Life, commits: int, *, beside: bool = False) -> None:
    """A first term, then acts by chance until so many appends were made. beside: housekeeping and a reader run at the
    same time, in threads, so that each run is another one."""
    await life.begin()
    await life.lead(clean=False)
    await life.open_publisher("p0", named=True)
    async with trio.open_nursery() as nursery:
        if beside:
            nursery.start_soon(_housekeeping, life)
            nursery.start_soon(_following, life)
        made = 0
        while made < commits:
            made += await _step(life, beside)
        nursery.cancel_scope.cancel()
    await life.end()


async def _step(life: Life, beside: bool) -> int:
    drawn = life.chance.random()
    if drawn < 0.70:
        await life.append(life.chance.choice((1, 1, 2, 4, 16)))
        return 1
    if drawn < 0.78:
        name = f"p{life.chance.randrange(8)}"
        await life.open_publisher(name, named=life.chance.random() < 0.5)
    elif drawn < 0.82:
        await life.trim()
    elif drawn < 0.86:
        await life.lead(clean=life.chance.random() < 0.5)
    elif drawn < 0.88:
        await life.set_settings()
    elif drawn < 0.94:
        await life.read()
    elif drawn < 0.985 or beside:
        await life.maintain()
    else:
        await life.reopen()
    return 0


async def _housekeeping(life: Life) -> None:
    while True:
        for log in life.logs:
            await log.maintain()
            await trio.sleep(0.002)


async def _following(life: Life) -> None:
    while True:
        await life.read()
        await trio.sleep(0.001)


async def _nothing(call: Awaitable[object]) -> None:
    await call


def _plain(value: Any) -> Any:
    return repr(value)
