"""What a simulated cluster is made of beside the production code: frozen processes, a seeded scheduler, sightings."""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import trio
from trio._core import _run  # the scheduler's private parts: tests/simulation holds them

from changefeed.leader import machine as leader_machine
from changefeed.leader import refusals
from changefeed.log.memory import Faults
from changefeed.peer.far import FarLeader
from changefeed.serving import driver as serving_driver
from changefeed.serving.desk import Desk

#: The simulated process that a task belongs to; inherited by the tasks that it starts.
PROCESS: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="")


class Freezer(trio.abc.Instrument):
    """Stops whole processes as SIGSTOP does: none of their tasks runs a step until `thaw`, whatever becomes due for it
    meanwhile. What others have sent waits, as in the kernel's buffers."""

    def __init__(self) -> None:
        self._held: dict[str, list[trio.lowlevel.Task]] = {}

    def freeze(self, process: str) -> None:
        self._held.setdefault(process, [])

    def thaw(self, process: str) -> None:
        _run.GLOBAL_RUN_CONTEXT.runner.runq.extend(self._held.pop(process, ()))

    def is_frozen(self, process: str) -> bool:
        return process in self._held

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        held = self._held.get(task.context.get(PROCESS, ""))
        if held is not None:
            runq = _run.GLOBAL_RUN_CONTEXT.runner.runq
            assert runq[-1] is task, "trio puts a task last into its queue before it says so"
            runq.pop()
            held.append(task)


class DistantLog(Faults):
    """A log whose calls take time, before and after their effect: so that much is under way when something breaks."""

    def __init__(self, latency: Callable[[], float]) -> None:
        super().__init__()
        self._latency = latency

    async def __call__(self, point: str, feed: str) -> None:
        await trio.sleep(self._latency())
        await super().__call__(point, feed)


@contextmanager
def seeded_scheduler(seed: int) -> Iterator[None]:
    """Trio runs tasks in an order drawn from the seed."""
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[misc]
        _run._r.setstate(before[1])


#: What must have been met at least once over 200 seeds: else the simulation tests less than it seems to.
WANTED: Final = (
    "a batch known already",
    "a named rerun answered",
    "a position resumed",
    "a position inside a group resumed",
    "an Open again after a lost leader",
    "a batch forwarded",
    "an append fenced",
    "an append of unknown outcome",
    "elected: start",
    "elected: process-gone",
    "elected: silent",
    "elected: handover",
    "elected: outcome-unknown",
    "elected: session-lost",
    "elected: reply-lost",
    "epoch raised to the log",
    "frozen while leading",
    "killed while leading",
    "thawed into another's term",
)


class Sightings(Counter[str]):
    """How often something was met. `watching` counts what only the production code's functions can tell."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for target, name, judge in (
                (leader_machine.Sequencer, "_store", _known_already),
                (refusals, "gap", lambda *_: "a gap refused"),
                (refusals, "superseded", lambda *_: "a publisher superseded"),
                (serving_driver, "admit", _resumed),
                (serving_driver, "group_start", lambda *_: "a group's start looked for"),
                (Desk, "lost", lambda *_: "an Open again after a lost leader"),
                (FarLeader, "publish", lambda *_: "a batch forwarded"),
            ):
                stack.enter_context(patch.object(target, name, self._counting(getattr(target, name), judge)))
            yield

    def _counting(self, function: Callable[..., Any], judge: Callable[..., str]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            seen = judge(*arguments)
            if seen:
                self[seen] += 1
            return function(*arguments, **options)

        return counting

    def traced(self, name: str, facts: dict[str, Any]) -> None:
        """A step that the production code traces."""
        if name == "append":
            seen = {"fenced": "an append fenced", "append-outcome-unknown": "an append of unknown outcome"}
            if facts["outcome"] in seen:
                self[seen[facts["outcome"]]] += 1
        elif name == "elected":
            self[f"elected: {facts['why']}"] += 1
        elif name == "deposed":
            self[f"deposed: {facts['why']}"] += 1
        elif name == "coordinator-write" and facts["what"] == "raiseepoch" and facts["outcome"] == "True":
            self["epoch raised to the log"] += 1

    def missing(self) -> list[str]:
        return [name for name in WANTED if not self[name]]


def _known_already(machine: Any, request: Any, first: Any, again: bool, *_: Any) -> str:
    if not again:
        return ""
    return "a named rerun answered" if request.channel.run.known.named else "a batch known already"


def _resumed(request: Any, look: Any, *_: Any) -> str:
    return "a position resumed" if request.start.position is not None and request.start.position.seq else ""
