"""What must be met now and then: else the simulation tests less than it seems to. Counted in each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

from changefeed.leader import machine as leader_machine
from changefeed.leader import refusals
from changefeed.peer.far import FarLeader
from changefeed.serving import driver as serving_driver
from changefeed.serving.desk import Desk

#: Each must be met in at least 1 % of the seeds.
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
    "elected: vacant",
    "deposed: fenced",
    "append: log-full",
    "reset: future-position",
    "reset: position-too-old",
    "a publisher was told of lost receipts",
    "a process stood still behind a step",
    "an object was listed",
    "a change followed a list",
    "a list began again in another life",
)


class Sightings(Counter[str]):
    """How often something was met in one run. `watching` counts what only the production code's functions can tell."""

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
            outcome = facts["outcome"]
            if outcome != "stored":
                self[f"append: {outcome}"] += 1
                if outcome == "fenced":
                    self["an append fenced"] += 1
                elif outcome == "append-outcome-unknown":
                    self["an append of unknown outcome"] += 1
        elif name == "elected":
            self[f"elected: {facts['why']}"] += 1
        elif name == "deposed":
            self[f"deposed: {facts['why']}"] += 1
        elif name == "coordinator-write" and facts["what"] == "raiseepoch" and facts["outcome"] == "True":
            self["epoch raised to the log"] += 1


def _known_already(machine: Any, request: Any, first: Any, again: bool, *_: Any) -> str:
    if not again:
        return ""
    return "a named rerun answered" if request.channel.run.known.named else "a batch known already"


def _resumed(request: Any, look: Any, *_: Any) -> str:
    return "a position resumed" if request.start.position is not None and request.start.position.seq else ""
