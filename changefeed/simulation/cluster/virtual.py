"""What makes a run of trio one of virtual time, drawn order and frozen processes. Nothing of the product is known here.

These reach into trio's private parts (the scheduler's randomness, its queue, its I/O manager): tests/simulation holds
them, so that another trio fails loudly.
"""

from __future__ import annotations

import contextvars
import heapq
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import trio
from trio._core import _run
from trio._core._instrumentation import Instruments
from trio._core._io_epoll import EpollIOManager

T = TypeVar("T")

#: Real seconds in which nothing happens and nothing is due, before a run is given up.
STUCK_MAX: Final = 5

#: The simulated process that a task belongs to; inherited by the tasks that it starts.
PROCESS: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="")


class VirtualClock(trio.abc.Clock):
    """Time stands still while any task can run, and jumps to the next deadline when none can."""

    def __init__(self) -> None:
        self.now = 0.0
        self._stuck = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Call `what` at that time, between the steps of tasks. Cannot be taken back: it must not mind to be called in
        vain. Those of one time are called in the order in which they were set."""
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, what))

    async def sleep(self, seconds: float) -> None:
        """Like trio.sleep, for less."""
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
            return
        task = trio.lowlevel.current_task()
        asleep = [True]

        def wake() -> None:
            if asleep:
                asleep.clear()
                trio.lowlevel.reschedule(task)

        def abort(_: Any) -> trio.lowlevel.Abort:
            asleep.clear()
            return trio.lowlevel.Abort.SUCCEEDED

        self.at(self.now + seconds, wake)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        # Trio asks only when no task can run: the moment to jump.
        timers = self._timers
        if timers and timers[0][0] <= deadline:
            self.now = max(self.now, timers[0][0])
            while timers and timers[0][0] <= self.now:
                heapq.heappop(timers)[2]()
            return 0.0
        if deadline == float("inf"):
            # At a run's end trio waits for its own wake-up, for some microseconds; anything else is for ever.
            self._stuck += 1
            if self._stuck > STUCK_MAX:
                raise RuntimeError("nothing will ever happen again: every task waits for another one")
            return 1.0
        self._stuck = 0
        self.now = max(self.now, deadline)
        return 0.0


class Freezer(trio.abc.Instrument):
    """Stops whole processes as SIGSTOP does: none of their tasks runs a step until `thaw`, whatever becomes due for it
    meanwhile. What others have sent waits, as in the kernel's buffers."""

    def __init__(self) -> None:
        self._held: dict[str, list[trio.lowlevel.Task]] = {}

    def freeze(self, process: str) -> None:
        if not self._held:
            trio.lowlevel.add_instrument(self)
        self._held.setdefault(process, [])

    def thaw(self, process: str) -> None:
        if process in self._held:
            _run.GLOBAL_RUN_CONTEXT.runner.runq.extend(self._held.pop(process))
            if not self._held:
                trio.lowlevel.remove_instrument(self)

    def is_frozen(self, process: str) -> bool:
        return process in self._held

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        held = self._held.get(task.context.get(PROCESS, ""))
        if held is not None:
            runq = _run.GLOBAL_RUN_CONTEXT.runner.runq
            assert runq[-1] is task, "trio puts a task last into its queue before it says so"
            runq.pop()
            held.append(task)


class _Order(random.Random):
    """Trio's source of order; as `random.Random`, but quick for the short lists that it shuffles."""

    def shuffle(self, x: Any) -> None:
        for index in range(len(x) - 1, 0, -1):
            other = int(self.random() * (index + 1))
            x[index], x[other] = x[other], x[index]


class _NoIo(EpollIOManager):
    """Nothing real is waited for while anything can happen, so the kernel need not be asked."""

    def get_events(self, timeout: float) -> Any:
        return super().get_events(timeout) if timeout else ()

    def process_events(self, events: Any) -> None:
        if events:
            super().process_events(events)


class _Instruments(dict[str, Any]):
    """Trio's collection of instruments as a plain dict: it is asked several times in each step whether it holds one."""

    add_instrument = Instruments.add_instrument
    remove_instrument = Instruments.remove_instrument
    call = Instruments.call

    def __init__(self, incoming: Iterable[trio.abc.Instrument]) -> None:
        super().__init__(_all={})
        for instrument in incoming:
            self.add_instrument(instrument)  # type: ignore[misc]

    @property
    def data(self) -> dict[str, Any]:
        return self


class _Deadline:
    """`CancelScope._might_change_registered_deadline` without its generator: entered twice for each scope."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Any) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        scope = self._scope
        old = scope._registered_deadline
        new = scope._deadline
        if scope._cancel_status is None or scope._cancel_called:
            new = float("inf")
        if old != new:
            scope._registered_deadline = new
            deadlines = _run.GLOBAL_RUN_CONTEXT.runner.deadlines
            if old != float("inf"):
                deadlines.remove(old, scope)
            if new != float("inf"):
                deadlines.add(new, scope)


def _guard(scope: Any) -> _Deadline:
    return _Deadline(scope)


#: What only makes trio quicker: tests/simulation holds that runs without it are the same.
QUICKER: list[tuple[Any, str, Any]] = [
    (_run, "Instruments", _Instruments),
    (_run.CancelScope, "_might_change_registered_deadline", _guard),
]


@contextmanager
def _scheduler(seed: str) -> Iterator[None]:
    """Trio runs tasks in an order drawn from the seed, and waits for nothing real."""
    patches = [
        (_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        (_run, "_r", _Order(seed)),
        (_run, "TheIOManager", _NoIo),
        *QUICKER,
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in patches]
    for place, name, value in patches:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def virtual_clock() -> VirtualClock:
    """The clock of this run."""
    clock = _run.GLOBAL_RUN_CONTEXT.runner.clock
    assert isinstance(clock, VirtualClock)
    return clock


def run_virtually(seed: str, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` to its end under virtual time that begins at 0. The same seed gives the same order of all steps."""
    with _scheduler(seed):
        return trio.run(main, clock=VirtualClock())
