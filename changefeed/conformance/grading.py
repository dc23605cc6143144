"""Plays scenarios with a client, each with a process, a server and a folder of its own, several at the same time."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from changefeed.conformance.client import Failed
from changefeed.conformance.scenarios import Scenario, name_of, title_of
from changefeed.conformance.stage import PATIENCE_S, open_stage
from changefeed.errors import BadConfig, ConnectionLost


@dataclass(frozen=True)
class Grade:
    """What a client got for one scenario.

    problem: what it should have done and what it did; "" if it passed. stderr: the end of what it said there.
    """

    name: str
    title: str
    problem: str
    stderr: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem


async def grade(scenario: Scenario, command: Sequence[str], patience_s: float = PATIENCE_S) -> Grade:
    """Play one scenario with the program that `command` starts. Raises BadConfig if it cannot be started.

    patience_s: how long it may take for one step, in seconds. Cancellation: its processes are killed.
    """
    problem, stderr = "", b""
    mistake: BaseException | None = None
    with tempfile.TemporaryDirectory(prefix="changefeed-conformance-") as folder:
        try:
            async with open_stage(command, Path(folder), patience_s) as stage:
                try:
                    await scenario(stage)
                except* ConnectionLost as lost:
                    raise await stage.left(_first(lost)) from None
                finally:
                    stderr = stage.client.stderr
        except* Failed as failed:
            problem = str(_first(failed))
        except* BadConfig as bad:
            mistake = _first(bad)
    if mistake is not None:
        raise mistake
    return Grade(name_of(scenario), title_of(scenario), problem, stderr.decode(errors="replace") if problem else "")


async def grade_all(
    scenarios: Sequence[Scenario],
    command: Sequence[str],
    jobs: int,
    tell: Callable[[Grade], Awaitable[None]],
) -> list[Grade]:
    """Play scenarios, at most `jobs` at a time; `tell` gets the grades in the order of the scenarios.

    Raises a group with BadConfig if the program cannot be started. Cancellation: its processes are killed.
    """
    found: dict[int, Grade] = {}
    told = 0
    lock = trio.Lock()
    left = iter(range(len(scenarios)))

    async def work() -> None:
        nonlocal told
        for index in left:
            found[index] = await grade(scenarios[index], command)
            async with lock:
                while told in found:
                    await tell(found[told])
                    told += 1

    async with trio.open_nursery() as nursery:
        for _ in range(min(jobs, len(scenarios))):
            nursery.start_soon(work)
    return [found[index] for index in range(len(scenarios))]


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
