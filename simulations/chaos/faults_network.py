"""Faults of the network: cuts of every direction, swallowed and reset flows, loss, narrow links, delay, half closes.

Every way between two nodes passes the run's router (sandbox.py), so that a rule there is a cut.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from changefeed.simulation.plan import Step
from simulations.chaos.processes import Node
from simulations.chaos.sandbox import Rule
from simulations.chaos.stage import LEADER_S, SERVERS, Doing, Stage


async def _cut(stage: Stage, step: Step, node: Node, rules: Sequence[Rule], doing: Doing) -> None:
    """Leave these rules standing for a while, and say how many packets met them."""
    before = stage.epoch()
    try:
        await trio.sleep(step.lasts)
    finally:
        met = stage.network.mend(rules)
        doing.effect("packets-lost" if met else "missed", packets=met)
    if await stage.until(lambda: stage.leader() is not None, LEADER_S) and stage.epoch() > before:
        doing.effect("leader-changed", epoch=stage.epoch())


async def partition(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    async with stage.fault(step.kind, node.name, ("packets-lost",)) as doing:
        await _cut(stage, step, node, stage.network.cut_both(node.name), doing)


async def partition_out(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    async with stage.fault(step.kind, node.name, ("packets-lost",)) as doing:
        await _cut(stage, step, node, stage.network.cut_out(node.name), doing)


async def partition_in(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    async with stage.fault(step.kind, node.name, ("packets-lost",)) as doing:
        await _cut(stage, step, node, stage.network.cut_in(node.name), doing)


async def cut_coordinator(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    async with stage.fault(step.kind, node.name, ("packets-lost",)) as doing:
        await _cut(stage, step, node, stage.network.cut_between(node.name, SERVERS), doing)


async def cut_subscriber(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.subscribers[chance.choice(sorted(stage.subscribers))]
    async with stage.fault(step.kind, node.name, ("packets-lost",)) as doing:
        await _cut(stage, step, node, stage.network.cut_both(node.name), doing)


async def vanish(stage: Stage, step: Step, chance: random.Random) -> None:
    """As if the machine lost its power: no FIN, no RST; when it is back, nothing knows the old connections."""
    if not await stage.working():
        return
    node = stage.aim(step.target, chance)
    before, led = stage.epoch(), stage.leader() is node
    async with stage.fault(step.kind, node.name, ("process-gone",), hold=(node.name,)) as doing:
        rules = stage.network.cut_both(node.name)
        try:
            node.kill()
            doing.effect("process-gone")
            await trio.sleep(step.lasts)
        finally:
            stage.network.mend(rules)
        stage.restart(node)
        if led:
            await stage.leader_changed(doing, before)


def established(node: Node, port: int) -> list[int]:
    """The far ports of connections that are open to a port of that node, seen inside of its network namespace."""
    found = []
    for line in Path(f"/proc/{node.pid}/net/tcp").read_text().splitlines()[1:]:
        parts = line.split()
        if parts[3] == "01" and int(parts[1].rpartition(":")[2], 16) == port:
            found.append(int(parts[2].rpartition(":")[2], 16))
    return found


async def black_hole(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    port = stage.ports[node.name]
    flows = established(node, port) if node.running else []
    if not flows:
        return
    far = str(chance.choice(flows))
    address = stage.network.nodes[node.name]
    rules = [
        stage.network.drop("-d", address, "-p", "tcp", "-m", "tcp", "--sport", far, "--dport", str(port)),
        stage.network.drop("-s", address, "-p", "tcp", "-m", "tcp", "--sport", str(port), "--dport", far),
    ]
    async with stage.fault(step.kind, node.name, ("packets-lost",), flows=len(flows)) as doing:
        await _cut(stage, step, node, rules, doing)


async def reset_flows(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    to_it = ("-d", stage.network.nodes[node.name], "-p", "tcp", "-m", "tcp", "--dport", str(stage.ports[node.name]))
    rules = [stage.network.drop(*to_it, jump=("REJECT", "--reject-with", "tcp-reset"))]
    async with stage.fault(step.kind, node.name, ("packets-lost",)) as doing:
        await _cut(stage, step, node, rules, doing)


async def loss(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    share = chance.choice((0.03, 0.1, 0.3))
    async with stage.fault(step.kind, node.name, ("packets-lost",), share=share) as doing:
        await _cut(stage, step, node, stage.network.lose(node.name, share), doing)


async def narrow(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    kbit = chance.choice((128, 512, 2048))
    async with stage.fault(step.kind, node.name, ("packets-delayed",), kbit=kbit) as doing:
        stage.network.throttle(node.name, kbit)
        try:
            await trio.sleep(step.lasts)
        finally:
            met = stage.network.unthrottle(node.name)
            doing.effect("packets-delayed" if met else "missed", packets=met)


async def delay(stage: Stage, step: Step, chance: random.Random) -> None:
    page = stage.proxy.gauge
    delay_ms, jitter_ms = chance.choice(((20, 20), (100, 200), (300, 700)))
    before = page.get("delayed")
    async with stage.fault(step.kind, "x", ("bytes-delayed",), delay_ms=delay_ms, jitter_ms=jitter_ms) as doing:
        page.set("jitter_ms", jitter_ms)
        page.set("delay_ms", delay_ms)
        try:
            await trio.sleep(step.lasts)
        finally:
            page.set("delay_ms", 0)
            page.set("jitter_ms", 0)
        delayed = page.get("delayed") - before
        doing.effect("bytes-delayed" if delayed else "missed", bytes=delayed)


async def proxy_reset(stage: Stage, step: Step, chance: random.Random) -> None:
    await _cut_flows(stage, step, "reset")


async def half_close(stage: Stage, step: Step, chance: random.Random) -> None:
    await _cut_flows(stage, step, "half_close")


async def _cut_flows(stage: Stage, step: Step, how: str) -> None:
    page = stage.proxy.gauge
    before = page.get("cut")
    async with stage.fault(step.kind, "x", ("flows-cut",)) as doing:
        page.add(how)
        await trio.sleep(step.lasts)
        doing.effect("flows-cut" if page.get("cut") > before else "missed", flows=page.get("cut") - before)


FAULTS: Final = {
    "partition": partition,
    "partition-out": partition_out,
    "partition-in": partition_in,
    "cut-coordinator": cut_coordinator,
    "cut-subscriber": cut_subscriber,
    "vanish": vanish,
    "black-hole": black_hole,
    "reset-flows": reset_flows,
    "loss": loss,
    "narrow": narrow,
    "delay": delay,
    "proxy-reset": proxy_reset,
    "half-close": half_close,
}
