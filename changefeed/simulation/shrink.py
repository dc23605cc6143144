"""A smaller plan that still breaks the same promise under the same seed.

First steps are left out (ddmin: halves, quarters … single ones), then what is left is made plainer: faults that last
shorter, options at their defaults, an earlier end, rounder times. Each stage keeps a change only if a run of it broke
the promise. It ends after `runs` runs, or when nothing more helps; the plan in hand is always one that was seen to
fail.
Pure but for the runs, which the caller makes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from changefeed.history import Broken
from changefeed.simulation.plan import Plan, Step

#: Enough for a plan of 30 steps and 30 options; a few minutes at most.
RUNS: Final = 400
#: Options that say how many virtual seconds a run has; they are made smaller instead of left out.
END_OPTIONS: Final = ("chaos_s", "seconds", "end_s", "lasts_s", "until_s")

#: Whether each of these plans breaks the promise, in their order. May run them at once.
Judge = Callable[[Sequence[Plan]], Awaitable[list[bool]]]
#: Told after each change that was kept, and at the end of each stage.
Say = Callable[[str], Awaitable[None]]


@dataclass(slots=True)
class Shrunk:
    """plan: the smallest that was seen to fail. runs: how many were made. tried: what was done, a sentence a stage.
    complete: nothing more helped; False: the runs were used up."""

    plan: Plan
    runs: int = 0
    tried: list[str] = field(default_factory=list)
    complete: bool = True


class _UsedUp(Exception):
    """No run is left."""


class Shrinker:
    """plan: one that breaks the promise. judge: makes the runs, up to `width` at once."""

    def __init__(self, plan: Plan, judge: Judge, *, width: int = 1, runs: int = RUNS, say: Say | None = None) -> None:
        self._judge, self._width, self._say = judge, max(1, width), say
        self._runs_max = runs
        self._seen: dict[str, bool] = {plan.to_json(): True}
        self.found = Shrunk(plan)

    async def run(self) -> Shrunk:
        """Shrink. Cancellation leaves `found` at the smallest plan so far."""
        try:
            while True:
                before = self.found.plan
                await self._stage("steps left out", self._leave_out)
                await self._stage("faults made shorter", self._shorten)
                await self._stage("options left at their defaults", self._default)
                await self._stage("an earlier end", self._end)
                await self._stage("rounder times", self._round)
                if self.found.plan == before:
                    return self.found
        except _UsedUp:
            self.found.complete = False
            await self._tell(f"{self.found.runs} runs are used up")
            return self.found

    # ---- stages

    async def _leave_out(self) -> None:
        """ddmin over the steps: leave out ever smaller parts."""
        parts = 2
        while (steps := self.found.plan.steps) and parts <= 2 * len(steps):
            if await self._first(self._with(kept) for kept in without(steps, min(parts, len(steps)))):
                parts = max(2, parts - 1)
            elif parts >= len(steps):
                return
            else:
                parts *= 2

    async def _shorten(self) -> None:
        for index in range(len(self.found.plan.steps)):
            while await self._first(self._shorter(index)):
                pass

    def _shorter(self, index: int) -> Iterator[Plan]:
        steps = self.found.plan.steps
        lasts = steps[index].lasts
        for value in (0.0, lasts / 8, lasts / 2):
            if round(value, 3) < lasts and (value == 0.0 or lasts > 0.05):
                yield self._with(changed(steps, index, lasts=round(value, 3)))

    async def _default(self) -> None:
        """All options at once, then one by one."""
        names = [name for name, _ in self.found.plan.options if name not in END_OPTIONS]
        if not names or await self._first([self._without_options(names)]):
            return
        for name in names:
            if not await self._first([self._without_options([name])]):
                await self._thin_out(name)

    async def _thin_out(self, name: str) -> None:
        """A list of things that are switched on, or of clients: leave out one after the other."""
        while await self._first(self._thinner(name)):
            pass

    def _thinner(self, name: str) -> Iterator[Plan]:
        value = self.found.plan.option(name)
        if isinstance(value, list | tuple):
            for index in reversed(range(len(value))):
                yield self._with_option(name, [*value[:index], *value[index + 1 :]])

    async def _end(self) -> None:
        """Nothing happens after the last fault: what comes behind it is shortened."""
        for name, value in self.found.plan.options:
            if name in END_OPTIONS and isinstance(value, int | float) and not isinstance(value, bool):
                while await self._first(self._earlier(name)):
                    pass

    def _earlier(self, name: str) -> Iterator[Plan]:
        value = float(self.found.plan.option(name))
        least = max((step.at for step in self.found.plan.steps), default=0.0)
        for wanted in (least + 0.5, least + (value - least) / 2, value - 1):
            shorter = round(wanted, 1)
            if least <= shorter < value - 0.2:
                yield self._with_option(name, shorter)

    async def _round(self) -> None:
        """Times that can be read: all at once, then each by itself."""
        steps = self.found.plan.steps
        for digits in (1, 2, 3):
            rounded = tuple(replace(s, at=round(s.at, digits), lasts=round(s.lasts, digits)) for s in steps)
            if rounded == steps or await self._first([self._with(rounded)]):
                return
        for index, step in enumerate(steps):
            values: list[dict[str, Any]] = [{"at": round(step.at, 1)}, {"at": round(step.at, 2)}]
            await self._first(
                self._with(changed(self.found.plan.steps, index, **value)) for value in values if value["at"] != step.at
            )

    # ---- runs

    async def _first(self, plans: Iterator[Plan] | Sequence[Plan]) -> bool:
        """Take the first of these plans that fails; in the order in which they come, however fast each run is."""
        waiting = [plan for plan in plans if plan != self.found.plan]
        while waiting:
            batch: list[Plan] = []
            while waiting and len(batch) < self._width:
                plan = waiting.pop(0)
                if self._seen.get(plan.to_json(), True):
                    batch.append(plan)
            for plan, fails in zip(batch, await self._ask(batch), strict=True):
                if fails:
                    self.found.plan = plan
                    return True
        return False

    async def _ask(self, plans: Sequence[Plan]) -> list[bool]:
        new = [plan for plan in plans if plan.to_json() not in self._seen]
        if new:
            if self.found.runs + len(new) > self._runs_max:
                raise _UsedUp
            self.found.runs += len(new)
            for plan, fails in zip(new, await self._judge(new), strict=True):
                self._seen[plan.to_json()] = fails
        return [self._seen[plan.to_json()] for plan in plans]

    async def _stage(self, what: str, stage: Callable[[], Awaitable[None]]) -> None:
        before, runs = self.found.plan, self.found.runs
        await stage()
        if self.found.plan != before:
            sentence = f"{what}: {size(before)} -> {size(self.found.plan)} in {self.found.runs - runs} runs"
            self.found.tried.append(sentence)
            await self._tell(sentence)
        elif self.found.runs > runs:
            self.found.tried.append(f"{what}: nothing in {self.found.runs - runs} runs")

    async def _tell(self, sentence: str) -> None:
        if self._say is not None:
            await self._say(sentence)

    def _with(self, steps: Sequence[Step]) -> Plan:
        return replace(self.found.plan, steps=tuple(steps))

    def _with_option(self, name: str, value: Any) -> Plan:
        options = tuple((key, value if key == name else item) for key, item in self.found.plan.options)
        return replace(self.found.plan, options=options)

    def _without_options(self, names: Sequence[str]) -> Plan:
        options = tuple((name, value) for name, value in self.found.plan.options if name not in names)
        return replace(self.found.plan, options=options)


def signature(broken: Broken) -> str:
    """What makes two broken promises the same one: the promise; of a crash also its error, whatever its numbers are:
    a plan without an option that the tier needs must not be taken for the crash that is looked for."""
    if broken.promise != "crash":
        return broken.promise
    return "crash: " + "".join(letter for letter in broken.says if not letter.isdigit())[:160]


def without(steps: Sequence[Step], parts: int) -> Iterator[tuple[Step, ...]]:
    """The steps without one of so many parts, each part once; the last ones first: what comes late matters least."""
    edges = [len(steps) * n // parts for n in range(parts + 1)]
    for low, high in reversed(list(pairwise(edges))):
        if low < high:
            yield (*steps[:low], *steps[high:])


def changed(steps: Sequence[Step], index: int, **values: Any) -> tuple[Step, ...]:
    return (*steps[:index], replace(steps[index], **values), *steps[index + 1 :])


def size(plan: Plan) -> str:
    """`3 steps of 1.2 s, 4 options`."""
    lasts = sum(step.lasts for step in plan.steps)
    return f"{len(plan.steps)} steps of {lasts:.1f} s, {len(plan.options)} options"
