"""Faults of instances' processes: killed, frozen, starved, drained, without descriptors or memory, a jumping clock."""

from __future__ import annotations

import random
import resource
import signal
from pathlib import Path
from typing import Final

import trio

from changefeed.cli.last_resort import STATUS
from changefeed.cli.serve import END_S
from changefeed.simulation.plan import Step
from simulations.chaos.processes import Node
from simulations.chaos.stage import INSTANCES, Doing, Stage, lowest_free_descriptor
from simulations.chaos.strangers import send_large

#: How long the placed faults wait for the call that they are placed at.
PLACE_S: Final = 3.0
DRAIN_S: Final = 12.0
READY_S: Final = 15.0
#: How a process ends that had no memory.
STARVED_ENDS: Final = (1, STATUS, -signal.SIGABRT, -signal.SIGSEGV)
#: How much longer than its own last resort a process may take to end.
SPARE_S: Final = 5.0
#: Below what an instance takes in one message, and more than it finds among what it has.
LARGE_BYTES: Final = 8 * 2**20


def follower(stage: Stage, chance: random.Random) -> Node:
    leader = stage.leader()
    return stage.instances[chance.choice([name for name in INSTANCES if leader is None or name != leader.name])]


async def kill_leader(stage: Stage, step: Step, chance: random.Random) -> None:
    if not await stage.working() or (leader := stage.leader()) is None:
        return
    before = stage.epoch()
    async with stage.fault(step.kind, leader.name, ("leader-changed",), hold=(leader.name,)) as doing:
        leader.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_start_later, stage, leader, step.lasts)
            await stage.leader_changed(doing, before)


async def _start_later(stage: Stage, node: Node, after_s: float) -> None:
    await trio.sleep(after_s)
    stage.restart(node)


async def kill_follower(stage: Stage, step: Step, chance: random.Random) -> None:
    node = follower(stage, chance)
    async with stage.fault(step.kind, node.name, ("process-gone",), hold=(node.name,)) as doing:
        node.kill()
        doing.effect("process-gone")
        await _start_later(stage, node, step.lasts)


async def kill_before_write(stage: Stage, step: Step, chance: random.Random) -> None:
    await _kill_inside(stage, step, "kill_at_write")


async def kill_after_sync(stage: Stage, step: Step, chance: random.Random) -> None:
    await _kill_inside(stage, step, "kill_after_sync")


async def _kill_inside(stage: Stage, step: Step, switch: str) -> None:
    if not await stage.working() or (leader := stage.leader()) is None:
        return
    before = stage.epoch()
    async with stage.fault(step.kind, leader.name, ("process-gone",), hold=(leader.name,)) as doing:
        with stage.switched(leader.name, **{switch: 1}):
            gone = await stage.until(lambda: not leader.running, PLACE_S)
        doing.effect("process-gone" if gone else "missed")
        await trio.sleep(step.lasts)
        stage.restart(leader)
        if gone:
            await stage.leader_changed(doing, before)


async def freeze_leader(stage: Stage, step: Step, chance: random.Random) -> None:
    if not await stage.working() or (leader := stage.leader()) is None:
        return
    before, fenced = stage.epoch(), leader.gauge.get("fenced")
    async with stage.fault(step.kind, leader.name, ("leader-changed",), hold=(leader.name,)) as doing:
        leader.freeze()
        try:
            await stage.leader_changed(doing, before)
            await trio.sleep(step.lasts)
        finally:
            leader.thaw()
        await _after_thaw(stage, leader, fenced, doing)


async def _after_thaw(stage: Stage, node: Node, fenced: int, doing: Doing) -> None:
    """A zombie that wakes: it was killed since it held the lock, or its append is fenced, or it just follows."""
    if not node.running:
        doing.effect("killed-as-holder")
        stage.restart(node)
    elif await stage.until(lambda: node.gauge.get("fenced") > fenced, 0.3):
        doing.effect("append-fenced")


async def freeze_in_append(stage: Stage, step: Step, chance: random.Random) -> None:
    await _freeze_inside(stage, step, "stop_at_write")


async def freeze_after_sync(stage: Stage, step: Step, chance: random.Random) -> None:
    await _freeze_inside(stage, step, "stop_after_sync")


async def _freeze_inside(stage: Stage, step: Step, switch: str) -> None:
    if not await stage.working() or (leader := stage.leader()) is None:
        return
    before, fenced = stage.epoch(), leader.gauge.get("fenced")
    async with stage.fault(step.kind, leader.name, ("stopped-inside",), hold=(leader.name,)) as doing:
        with stage.switched(leader.name, **{switch: 1}):
            stopped = await stage.until(lambda: leader.frozen or not leader.running, PLACE_S)
        doing.effect("stopped-inside" if stopped else "missed")
        try:
            if stopped:
                await stage.leader_changed(doing, before)
                await trio.sleep(step.lasts)
        finally:
            leader.thaw()
        await _after_thaw(stage, leader, fenced, doing)


async def freeze_follower(stage: Stage, step: Step, chance: random.Random) -> None:
    node = follower(stage, chance)
    async with stage.fault(step.kind, node.name, ("stopped",), hold=(node.name,)) as doing:
        node.freeze()
        try:
            # It may have died meanwhile, or stand inside a call of the kernel for so long.
            doing.effect("stopped" if await stage.until(lambda: node.frozen, 1.0) else "missed")
            await trio.sleep(step.lasts)
        finally:
            node.thaw()
        if not node.running:
            stage.restart(node)


async def starve(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    async with stage.fault(step.kind, node.name, ("stopped",), hold=(node.name,)) as doing:
        end, bursts = trio.current_time() + step.lasts, 0
        while trio.current_time() < end and node.running:
            node.freeze()
            try:
                await trio.sleep(0.09)
                bursts += node.frozen
            finally:
                node.thaw()
            await trio.sleep(0.01)
        doing.effect("stopped" if bursts else "missed", bursts=bursts)
        if not node.running:
            stage.restart(node)


async def rolling_restart(stage: Stage, step: Step, chance: random.Random) -> None:
    """Each in turn; the next one when all are ready again."""
    async with stage.fault(step.kind, ",".join(INSTANCES), ("drained",), hold=INSTANCES) as doing:
        for node in stage.instances.values():
            if not await stage.until(lambda: all(stage.ready(one) for one in stage.instances.values()), READY_S):
                continue
            node.terminate()
            if await stage.until(lambda node=node: not node.running, DRAIN_S):  # type: ignore[misc]
                if node.status == 0:
                    doing.effect("drained", instance=node.name)
                else:
                    stage.note_end(node)
            else:
                stage.crashes.append(f"{node.name} did not end within {DRAIN_S:g} s of SIGTERM; {node.said()}")
                node.kill()
            node.start()


async def no_descriptors(stage: Stage, step: Step, chance: random.Random) -> None:
    """Neither connections nor files can be opened; strangers who ask something meanwhile get no answer."""
    if not await stage.working() or (node := stage.leader()) is None:
        return
    async with stage.fault(step.kind, node.name, ("limit-met",), hold=(node.name,)) as doing:
        before = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (lowest_free_descriptor(node.pid), before[1]))
        end, asked, unanswered = trio.current_time() + step.lasts, 0, 0
        try:
            while trio.current_time() < end and node.running:
                asked += 1
                unanswered += not await _answers(stage, node)
        finally:
            if node.running:
                resource.prlimit(node.pid, resource.RLIMIT_NOFILE, before)
        doing.effect("limit-met" if unanswered else "missed", asked=asked, unanswered=unanswered)
        if not node.running:
            stage.restart(node)


async def _answers(stage: Stage, node: Node) -> bool:
    with trio.move_on_after(0.3):
        try:
            stream = await trio.open_tcp_stream(stage.network.nodes[node.name], stage.ports[node.name])
            async with stream:
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: chaos\r\n\r\n")
                return b"200" in await stream.receive_some(200)
        except (OSError, trio.BrokenResourceError):
            pass
    return False


async def no_memory(stage: Stage, step: Step, chance: random.Random) -> None:
    """Nothing large can be allocated any more, and strangers send what needs it. A process that ends of it is started
    again like one that the kernel's own killer took."""
    if not await stage.working() or (node := stage.leader()) is None:
        return
    async with stage.fault(step.kind, node.name, ("limit-met", "process-gone"), hold=(node.name,)) as doing:
        before = resource.prlimit(node.pid, resource.RLIMIT_AS)
        limit = _address_space(node.pid)
        resource.prlimit(node.pid, resource.RLIMIT_AS, (limit, before[1]))
        cut = 0
        try:
            end = trio.current_time() + step.lasts
            while trio.current_time() < end and node.running:
                cut += await send_large(stage.url(node.name), LARGE_BYTES)
                await trio.sleep(0.1)
        finally:
            if node.running:
                resource.prlimit(node.pid, resource.RLIMIT_AS, before)
        # Trio's own tasks may have died: then it ends by itself soon (changefeed/cli/last_resort.py), or it goes on.
        before_ns = node.gauge.get("monotonic_ns")
        alive = await stage.until(
            lambda: not node.running or node.gauge.get("monotonic_ns") > before_ns, END_S + SPARE_S
        )
        if not alive:
            # A thread that dies while it starts leaves its starter waiting, and with it the loop: CPython's own.
            doing.effect("hangs")
            node.kill()
        if node.running:
            met = cut and _address_space(node.pid) >= limit - LARGE_BYTES
            doing.effect("limit-met" if met else "missed", cut=cut)
        else:
            doing.effect("process-gone", status=node.status)
            # Out of memory is one end that a program cannot choose.
            stage.note_end(node, allowed=STARVED_ENDS)
            node.start()


def _address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


async def clock_jump(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    jump_s = chance.choice((-3600, -60, 60, 3600))
    async with stage.fault(step.kind, node.name, ("clock-moved",), jump_s=jump_s) as doing:
        with stage.switched(node.name, wall_offset_ns=jump_s * 10**9) as switches:
            before = switches.get("wall_reads")
            await trio.sleep(step.lasts)
            doing.effect("clock-moved" if switches.get("wall_reads") > before else "missed")


FAULTS: Final = {
    "kill-leader": kill_leader,
    "kill-follower": kill_follower,
    "kill-before-write": kill_before_write,
    "kill-after-sync": kill_after_sync,
    "freeze-leader": freeze_leader,
    "freeze-in-append": freeze_in_append,
    "freeze-after-sync": freeze_after_sync,
    "freeze-follower": freeze_follower,
    "starve": starve,
    "rolling-restart": rolling_restart,
    "no-descriptors": no_descriptors,
    "no-memory": no_memory,
    "clock-jump": clock_jump,
}
