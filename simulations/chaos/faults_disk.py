"""Faults of the log's storage: errors and delays of calls, a full disk, one instance cut off from it, its lock."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Final

import trio

from changefeed.simulation.plan import Step
from simulations.chaos.faults_leader import PLACE_S
from simulations.chaos.stage import LEADER_S, Doing, Stage

#: Takes the log's write lock and stands still.
_HOLDER: Final = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=5, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
os.kill(os.getpid(), signal.SIGSTOP)
connection.execute("ROLLBACK")
"""


async def sync_error(stage: Stage, step: Step, chance: random.Random) -> None:
    await _errors(stage, step, sync_error=chance.randint(1, 2))


async def sync_error_after(stage: Stage, step: Step, chance: random.Random) -> None:
    await _errors(stage, step, sync_error_after=1)


async def write_error(stage: Stage, step: Step, chance: random.Random) -> None:
    await _errors(stage, step, write_errors=chance.randint(1, 3), write_errno=errno.EIO)


async def no_space_error(stage: Stage, step: Step, chance: random.Random) -> None:
    await _errors(stage, step, write_errors=chance.randint(1, 40), write_errno=errno.ENOSPC)


async def _errors(stage: Stage, step: Step, **switches: int) -> None:
    """So many calls of the leader fail, the next ones."""
    if not await stage.working() or (leader := stage.leader()) is None:
        return
    before, unknown = stage.epoch(), leader.gauge.get("unknown")
    async with stage.fault(step.kind, leader.name, ("error-met",), switches=switches) as doing:
        with stage.switched(leader.name, **switches) as page:
            errors = page.get("errors")
            met = await stage.until(lambda: page.get("errors") > errors, PLACE_S)
            await trio.sleep(step.lasts)
            doing.effect("error-met" if met else "missed", errors=page.get("errors") - errors)
        if leader.gauge.get("unknown") > unknown:
            doing.effect("outcome-unknown")
        if await stage.until(lambda: stage.leader() is not None, LEADER_S) and stage.epoch() > before:
            doing.effect("leader-changed", epoch=stage.epoch())


async def slow_sync(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    delay_ms = chance.choice((50, 150, 300, 600))
    async with stage.fault(step.kind, node.name, ("slowed",), delay_ms=delay_ms) as doing:
        with stage.switched(node.name, sync_delay_us=delay_ms * 1000) as page:
            before = page.get("delays")
            await trio.sleep(step.lasts)
            # Only the leader syncs: another one has nothing to be slow at.
            doing.effect("slowed" if page.get("delays") > before else "missed", syncs=page.get("delays") - before)


async def disk_full(stage: Stage, step: Step, chance: random.Random) -> None:
    """A stranger's file takes all that is left."""
    if not await stage.working():
        return
    full = sum(node.gauge.get("full") for node in stage.instances.values())
    stranger = stage.log_folder / "stranger"
    async with stage.fault(step.kind, "log", ("refused-full",)) as doing:
        try:
            _fill(stranger)
            await trio.sleep(step.lasts)
            refused = sum(node.gauge.get("full") for node in stage.instances.values()) - full
            doing.effect("refused-full" if refused else "missed", appends=refused)
        finally:
            stranger.unlink(missing_ok=True)


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        size = 2**26
        at = 0
        while size >= 4096:
            try:
                os.posix_fallocate(file.fileno(), at, size)
                at += size
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2


async def store_cut(stage: Stage, step: Step, chance: random.Random) -> None:
    await _only_the_leader(stage, step, "errors", "error-met", all_errno=errno.EIO)


async def store_hang(stage: Stage, step: Step, chance: random.Random) -> None:
    await _only_the_leader(stage, step, "hangs", "hung", hang=1)


async def _only_the_leader(stage: Stage, step: Step, counter: str, effect: str, **switches: int) -> None:
    if not await stage.working() or (leader := stage.leader()) is None:
        return
    before = stage.epoch()
    async with stage.fault(step.kind, leader.name, (effect,)) as doing:
        with stage.switched(leader.name, **switches) as page:
            count = page.get(counter)
            await trio.sleep(step.lasts)
            doing.effect(effect if page.get(counter) > count else "missed", calls=page.get(counter) - count)
        await _moved(stage, doing, before)


async def _moved(stage: Stage, doing: Doing, before: int) -> None:
    if await stage.until(lambda: stage.leader() is not None, LEADER_S) and stage.epoch() > before:
        doing.effect("leader-changed", epoch=stage.epoch())


async def lock_held(stage: Stage, step: Step, chance: random.Random) -> None:
    """A stranger with a frozen transaction: nothing of ours may kill it, and nobody can write."""
    if not await stage.working():
        return
    command = [sys.executable, "-c", _HOLDER, str(stage.log_file)]
    holder = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - it takes a millisecond
    async with stage.fault(step.kind, "log", ("nothing-stored",)) as doing:
        try:
            held = await stage.until(lambda: _stands(holder.pid) or holder.poll() is not None, 6.0)
            await trio.sleep(0.1)
            before = stage.tail()
            await trio.sleep(step.lasts)
            still = held and holder.poll() is None and stage.tail() == before
            doing.effect("nothing-stored" if still else "missed")
        finally:
            holder.kill()
            holder.wait()


def _stands(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


FAULTS: Final = {
    "sync-error": sync_error,
    "sync-error-after": sync_error_after,
    "write-error": write_error,
    "slow-sync": slow_sync,
    "no-space-error": no_space_error,
    "disk-full": disk_full,
    "store-cut": store_cut,
    "store-hang": store_hang,
    "lock-held": lock_held,
}
