"""What if the k-th call that SQLite makes to the disk fails: every call of the log, at every one of its disk calls.

A call of the log that meets a failing disk must say so honestly: what it says was not written is not there, what it
says is stored is, and of an unknown outcome it does not matter. Then the log must be gone on with: by the same process
after a fence, by another one, after a kill of all processes, and after a loss of power at any of these times; a sync
that failed may have lost for good what it was to write.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from changefeed.errors import AppendOutcomeUnknown, ChangefeedError, LogFull, LogUnavailable
from changefeed.log.memory import MemoryPlace
from changefeed.simulation.disk.judge import Wrong, compare, go_on, recover
from changefeed.simulation.disk.recorded import (
    CANTOPEN,
    FULL,
    IOERR_DELETE,
    IOERR_FSYNC,
    IOERR_TRUNCATE,
    IOERR_WRITE,
    Call,
    Fault,
    RecordedDisk,
    lay_out,
    survived,
)
from changefeed.simulation.disk.workload import Life

#: How a call of each kind can fail. A sync that fails loses all, or a part, of what it was to make durable.
FAULTS: Final[dict[str, tuple[Fault, ...]]] = {
    "open": (Fault(CANTOPEN),),
    "write": (Fault(IOERR_WRITE), Fault(IOERR_WRITE, 0.5), Fault(FULL), Fault(FULL, 0.5)),
    "truncate": (Fault(IOERR_TRUNCATE),),
    "sync": (Fault(IOERR_FSYNC), Fault(IOERR_FSYNC, 0.5), Fault(IOERR_FSYNC, 1.0)),
    "delete": (Fault(IOERR_DELETE),),
}

Do = Callable[[Life], Awaitable[None]]


async def _reopen(life: Life) -> None:
    await life.end()
    await life.begin()


#: The calls of the log that write.
CALLS: Final[dict[str, Do]] = {
    "append": lambda life: life.append(3),
    "fence": lambda life: life.lead(clean=True),
    "fence after a crash": lambda life: life.lead(clean=False),
    "open_publisher": lambda life: life.open_publisher("p3", named=False),
    "trim": lambda life: life.trim(0.7),
    "set_settings": lambda life: life.set_settings(),
    "maintain": lambda life: life.maintain(),
    "reopen": _reopen,
}


@dataclass(frozen=True, slots=True)
class Failed:
    """One failure and what came of it. said: the error's code, "" for none."""

    call: str
    at: Call
    fault: Fault
    said: str
    wrong: tuple[Wrong, ...]


class _Once:
    """Fails the call of one number, once; counted from when it was made."""

    def __init__(self, number: int, fault: Fault | None) -> None:
        self._number, self._fault = number, fault
        self.seen: list[Call] = []
        self.met: Call | None = None

    def __call__(self, call: Call) -> Fault | None:
        self.seen.append(call)
        if len(self.seen) - 1 == self._number:
            self.met = call
            return self._fault
        return None


async def _prepared(disk: RecordedDisk, seed: str) -> Life:
    """A log that is in use: several terms, publishers, settings; something lies in the write-ahead log."""
    life = Life(disk, seed)
    await life.begin()
    await life.lead(clean=False)
    for name in ("p0", "p1"):
        await life.open_publisher(name, named=True)
    for _ in range(3):
        await life.append(4)
    await life.maintain()
    await life.append(2)
    await life.lead(clean=True)
    await life.append(2)
    return life


def fail_each(call: str, seed: int, scratch: str | None = None, *, every: int = 1) -> list[Failed]:
    """Let each disk call of one call of the log fail, in each way; on a log of its own each time. every: only each
    every-th of these failures, counted from one by the seed. Raises NoSharedSqlite."""
    calls, after = trio.run(_unharmed, call, seed, scratch)
    cases = [(number, fault) for number, met in enumerate(calls) for fault in FAULTS[met.what]]
    return [trio.run(_fail, call, *case, after, seed, scratch) for case in cases[seed % every :: every]]


async def _unharmed(call: str, seed: int, scratch: str | None) -> tuple[list[Call], MemoryPlace]:
    """The disk calls that the call of the log makes if none fails, and what the log holds then."""
    with tempfile.TemporaryDirectory(prefix="failure-", dir=scratch) as folder:
        disk = RecordedDisk(os.path.join(folder, "log"))
        with disk:
            life = await _prepared(disk, str(seed))
            disk.faulty = seen = _Once(-1, None)
            await CALLS[call](life)
            disk.faulty = None
            await life.end()
    return seen.seen, life.place


async def _fail(call: str, number: int, fault: Fault, after: MemoryPlace, seed: int, scratch: str | None) -> Failed:
    name = f"{seed} {call} {number} {fault}"
    folder = tempfile.mkdtemp(prefix="failure-", dir=scratch)
    disk = RecordedDisk(os.path.join(folder, "log"), keep=True, chance=random.Random(name))
    try:
        with disk:
            # The preparation is the same for every failure of a seed, so the call of that number is the same too.
            life = await _prepared(disk, str(seed))
            before = life.place.copy()
            disk.faulty = once = _Once(number, fault)
            error: ChangefeedError | None = None
            try:
                await CALLS[call](life)
            except ChangefeedError as raised:
                error = raised
            disk.faulty = None
            assert once.met is not None, "the disk call that was to fail was not made"
            allowed, wrong = _judge_answer(error, before, after)
            if not wrong:
                wrong = await _aftermath(disk, life, allowed, random.Random(name), folder)
            await life.end()
            return Failed(call, once.met, fault, "" if error is None else error.code, tuple(wrong))
    finally:
        shutil.rmtree(folder)


def _judge_answer(
    error: ChangefeedError | None, before: MemoryPlace, after: MemoryPlace
) -> tuple[list[MemoryPlace], list[Wrong]]:
    """What the log may hold after that answer."""
    match error:
        case None:
            return [after], []
        case AppendOutcomeUnknown():
            return [before, after], []
        case LogFull() | LogUnavailable():
            return [before], []
    return [], [Wrong("honest", f"a failing disk is answered with {error.code}: {error}")]


async def _aftermath(
    disk: RecordedDisk, life: Life, allowed: list[MemoryPlace], chance: random.Random, folder: str
) -> list[Wrong]:
    """The log must be gone on with, whatever happens next: a loss of power, a kill of all, or nothing."""
    name = f"aftermath {chance.random()}"
    wrong = await _power_lost(disk, allowed, chance, os.path.join(folder, "lost"), name)
    if wrong:
        return [Wrong(w.promise, f"after a loss of power: {w.says}") for w in wrong]
    wrong = await _killed(disk, allowed, chance, folder, name)
    if wrong:
        return [Wrong(w.promise, f"after a kill of all processes: {w.says}") for w in wrong]
    wrong = await _goes_on(disk, life, allowed, chance, os.path.join(folder, "went on"), name)
    return [Wrong(w.promise, f"gone on in the same process: {w.says}") for w in wrong]


async def _killed(
    disk: RecordedDisk, allowed: list[MemoryPlace], chance: random.Random, folder: str, name: str
) -> list[Wrong]:
    """All processes are killed, the next ones recover; the power is lost somewhere in that, and at its end."""
    with disk.killed(os.path.join(folder, "killed")) as killed:
        wrong, life = await recover(killed, allowed, 0, name)
    if wrong or life is None:
        return wrong
    fenced = next(act.done for act in life.timeline.acts if act.what == "fence")
    for turn, at in enumerate(
        (chance.randrange(0, fenced + 1), chance.randrange(fenced, killed.count + 1), killed.count)
    ):
        may = life.timeline.allowed(at)
        if at < fenced:
            # Until a fence has returned, what was written and never made durable may be seen, and be lost again.
            may = [*allowed, *may]
        cut = os.path.join(folder, f"killed and lost {turn}")
        lay_out(cut, survived(killed.folder, killed.at(at), chance))
        with RecordedDisk(cut) as recovering:
            wrong, _ = await recover(recovering, may, 0, name)
        if wrong:
            return [Wrong(w.promise, f"power lost at boundary {at} of the recovery: {w.says}") for w in wrong]
    return []


async def _goes_on(
    disk: RecordedDisk, life: Life, allowed: list[MemoryPlace], chance: random.Random, folder: str, name: str
) -> list[Wrong]:
    """The handle that met the failure, or the other one, takes the lead; then the power is lost."""
    leader = chance.randrange(2)
    try:
        if len(life.logs) < 2:
            await life.end()
            await life.begin()
        logs = list(life.logs)
        wrong, place = await compare(life.logs[leader], allowed, 0)
        if wrong or place is None:
            return wrong
        onwards = Life(disk, name, place.copy(), leader=leader)
        await onwards.take_over(logs)
        await go_on(onwards)
    except (ChangefeedError, AssertionError) as error:
        return [Wrong("onwards", f"the log cannot be gone on with: {error}")]
    return await _power_lost(disk, [onwards.place], chance, folder, name)


async def _power_lost(
    disk: RecordedDisk, allowed: list[MemoryPlace], chance: random.Random, folder: str, name: str
) -> list[Wrong]:
    lay_out(folder, survived(disk.folder, disk.disk, chance))
    with RecordedDisk(folder) as recovering:
        wrong, _ = await recover(recovering, allowed, 0, name)
    return wrong
