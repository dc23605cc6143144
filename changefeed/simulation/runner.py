"""Many seeds over processes: what was run, what failed, what was met, and whether the same seed is the same run.

    order = Order(tier="cluster", seeds=2_000, jobs=2)
    run = Run(order)
    await run.go(tell)          # tell(result) for each seed that failed; run.summary may be read meanwhile
    run.summary.problems()      # sentences; empty if everything is as it must be

Failures are run a second time in a process with another hash seed; one seed of 500 too.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from changefeed.history import Broken
from changefeed.nursery import open_owned_nursery
from changefeed.simulation.plan import Plan
from changefeed.simulation.workers import Pool, Result

#: Real seconds that one seed may take before it counts as hanging: a seed takes well under a second.
LIMIT_S: Final = 120.0
#: So many failures are enough to look at; then no more seeds are begun.
FAILURES: Final = 10
#: One seed of so many is run twice, in processes with different hash seeds.
TWICE_EVERY: Final = 500
#: What must be met now and then is judged from so many seeds on: never met, or met in less than its share.
NEVER_FROM: Final = 2_000
SELDOM_FROM: Final = 10_000
SHARE: Final = 0.01
#: Names of sightings that are counted; a tier has some dozens.
NAMES_MAX: Final = 1_000


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def new_first() -> int:
    """A first seed that nobody has run before: drawn from the operating system, below 10**12 so that people can
    copy it."""
    return random.SystemRandom().randrange(10**6, 10**12)


@dataclass(frozen=True, slots=True)
class Order:
    """What to run.

    tier: a name of tiers.py, or MODULE:NAME. first, seeds: the seeds first … first + seeds - 1; seeds None: as many as
    `seconds` allow. plan: run this one instead of each seed's own. seconds: begin no seed after so much real time.
    jobs: processes at work. limit_s: real seconds after which a seed counts as hanging. failures: begin no seed after
    so many.
    """

    tier: str = "cluster"
    first: int = 0
    seeds: int | None = 100
    plan: Plan | None = None
    seconds: float | None = None
    jobs: int = 1
    limit_s: float = LIMIT_S
    failures: int = FAILURES

    def __post_init__(self) -> None:
        if self.seeds is None and self.seconds is None:
            raise ValueError("an order names how many seeds, or for how long, or both")


@dataclass(slots=True)
class Summary:
    """What a run has come to; grows while it goes on.

    seeds: how many ended, failed ones included; last: the highest of them. reached: in how many seeds each sighting was
    met; met: how often. virtual_s: over all seeds. twice, unequal: seeds that were run twice, and those that came to
    two digests. stopped: why it ended before its time ("" if it did not). wanted: what the tier must meet.
    """

    order: Order
    seeds: int = 0
    last: int = -1
    failed: list[Result] = field(default_factory=list)
    reached: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    took_s: float = 0.0
    twice: int = 0
    unequal: int = 0
    slowest_s: float = 0.0
    slowest_seed: int = -1
    stopped: str = ""
    wanted: tuple[str, ...] = ()

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.last = max(self.last, result.seed)
        self.virtual_s += result.virtual_s
        for name, count in result.sightings.items():
            if count and (name in self.met or len(self.met) < NAMES_MAX):
                self.reached[name] += 1
                self.met[name] += count
        if result.took_s > self.slowest_s:
            self.slowest_s, self.slowest_seed = result.took_s, result.seed

    @property
    def per_minute(self) -> float:
        """Seeds per minute of real time, all processes together."""
        return 60 * self.seeds / self.took_s if self.took_s else 0.0

    def share(self, name: str) -> float:
        return self.reached[name] / self.seeds if self.seeds else 0.0

    def seldom(self) -> list[str]:
        """What must be met and was not, or in too few seeds, as far as so many seeds can tell."""
        if self.seeds < NEVER_FROM:
            return []
        least = SHARE if self.seeds >= SELDOM_FROM else 0.0
        return [name for name in self.wanted if not self.reached[name] or self.share(name) < least]

    def problems(self) -> list[str]:
        """What is wrong, as sentences. Empty: every promise held, and what must be met was met."""
        found = []
        if self.failed:
            seeds = ", ".join(str(seed) for seed in sorted(result.seed for result in self.failed))
            found.append(f"{len(self.failed)} of {self.seeds:,} seeds failed: {seeds}")
        if seldom := self.seldom():
            found.append(f"met in too few seeds, so that little of it was tried: {', '.join(seldom)}")
        if not self.seeds:
            found.append("no seed was run to its end")
        return found


Tell = Callable[[Result], Awaitable[None]]


@asynccontextmanager
async def open_pool(tier: str, jobs: int, limit_s: float = LIMIT_S) -> AsyncIterator[Pool]:
    """A pool for the block; every process of it is gone behind the block, whatever ends it."""
    async with open_owned_nursery() as nursery:
        pool = Pool(tier, jobs, limit_s).entered(nursery)
        try:
            yield pool
        finally:
            await pool.aclose()


class Run:
    """One order being run. `summary` may be read at any time."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.summary = Summary(order)
        self._seeds = self._draw()
        self._given = 0
        self._begun = 0.0
        self._scope = trio.CancelScope()

    async def go(self, tell: Tell) -> None:
        """Run it. tell: called for each seed that failed, after it was run a second time.

        Raises BadConfig for a tier that does not exist or a plan that it refuses. Returns early
        after `stop`, and when there were enough failures or time is up: `summary.stopped` says so.
        """
        self._begun = trio.current_time()
        with self._scope:
            async with (
                open_pool(self.order.tier, self.order.jobs, self.order.limit_s) as pool,
                open_owned_nursery() as nursery,
            ):
                for _ in range(self.order.jobs):
                    nursery.start_soon(self._serve, pool, tell)

    def stop(self, why: str) -> None:
        """End now: seeds at work are given up, their processes killed. `go` returns."""
        self.summary.stopped = why
        self._scope.cancel()

    def _draw(self) -> Iterator[int]:
        seed = self.order.first
        while self.order.seeds is None or seed < self.order.first + self.order.seeds:
            yield seed
            seed += 1

    def _next(self) -> int | None:
        summary, order = self.summary, self.order
        if len(summary.failed) >= order.failures:
            summary.stopped = summary.stopped or f"{len(summary.failed)} failures are enough to look at"
            return None
        if order.seconds is not None and trio.current_time() - self._begun >= order.seconds:
            if order.seeds is not None and self._given < order.seeds:
                summary.stopped = summary.stopped or "time was up"
            return None
        seed = next(self._seeds, None)
        if seed is not None:
            self._given += 1
        return seed

    async def _serve(self, pool: Pool, tell: Tell) -> None:
        """One of the jobs: seeds until there are none."""
        while (seed := self._next()) is not None:
            twice = self.order.seeds != 1 and self._given % TWICE_EVERY == 1
            result = await pool.ask(seed, self.order.plan)
            self.summary.wanted = pool.wanted
            if result.broken:
                await self._confirm(pool, result)
            elif twice:
                await self._compare(pool, result)
            self.summary.add(result)
            self.summary.took_s = trio.current_time() - self._begun
            if result.broken:
                self.summary.failed.append(result)
                await tell(result)

    async def _confirm(self, pool: Pool, result: Result) -> None:
        """Whether a failure is seen again under another hash seed. What hangs is not waited for twice."""
        if result.breaks("hang"):
            return
        again = await pool.ask(result.seed, self.order.plan, unlike=result.hash_seed)
        promises = {item.promise for item in result.broken}
        result.reproduced = again.digest == result.digest and any(again.breaks(promise) for promise in promises)

    async def _compare(self, pool: Pool, result: Result) -> None:
        """The same seed in another process: another digest is a broken promise of the simulation itself."""
        again = await pool.ask(result.seed, self.order.plan, history=True, unlike=result.hash_seed)
        self.summary.twice += 1
        if again.digest == result.digest:
            return
        self.summary.unequal += 1
        says = (
            f"the same seed came to digest {result.digest} under PYTHONHASHSEED={result.hash_seed} and to "
            f"{again.digest or 'no end'} under PYTHONHASHSEED={again.hash_seed}"
        )
        result.broken = (Broken("determinism", says, {}), *again.broken)
        result.plan, result.history, result.left_out = again.plan, again.history, again.left_out
        result.reproduced = False


async def run_one(tier: str, seed: int, plan: Plan | None = None, *, limit_s: float = LIMIT_S) -> Result:
    """One seed with its history. Raises BadConfig for a tier or plan that cannot be run."""
    async with open_pool(tier, 1, limit_s) as pool:
        return await pool.ask(seed, plan, history=True)
