"""Does what a plan of the stack tier says: the cluster tier's faults, and those of bytes, machines and disks."""

from __future__ import annotations

import json
import random
from typing import Final

import trio

from changefeed.errors import ChangefeedError
from changefeed.simulation.cluster.faults import MISSED, Nemesis
from changefeed.simulation.cluster.recording import FEED
from changefeed.simulation.disk import Call, Fault
from changefeed.simulation.plan import Step
from changefeed.simulation.stack import strangers
from changefeed.simulation.stack.cluster import StackCluster
from changefeed.transport.urls import parse_url

#: SQLite's codes of failing calls: fsync, write, no room.
ERRORS: Final = {"sync": 10 | (4 << 8), "write": 10 | (3 << 8), "full": 13}
#: So long everything is dark.
DARK_S: Final = 0.3


class StackNemesis(Nemesis):
    cluster: StackCluster

    def __init__(self, cluster: StackCluster) -> None:
        super().__init__(cluster)
        self._chance = random.Random(f"{cluster.seed}-stack-nemesis")

    # ---- bytes

    async def _reset(self, target: str, step: Step) -> str:
        return "reset" if self.cluster.streams.reset(target, step.how) else MISSED

    async def _break_off(self, target: str, step: Step) -> str:
        other, way, size, then = step.how.split()
        source, to = (target, other) if way == "out" else (other, target)
        found = self.cluster.streams.sever(source, to, int(size), then)  # type: ignore[arg-type]
        return then if found else MISSED

    async def _slow_network(self, target: str, step: Step) -> str:
        self.cluster.streams.extra_latency_s = 0.3
        await trio.sleep(step.lasts)
        self.cluster.streams.extra_latency_s = 0.0
        return "slow"

    async def _vanish(self, target: str, step: Step) -> str:
        if not self.cluster.lose_power(target):
            self.cluster.streams.return_(target)
            return MISSED
        await trio.sleep(step.lasts)
        self.cluster.streams.return_(target)
        return "silent"

    async def _stranger(self, target: str, step: Step) -> str:
        """Something else answers where an instance did."""
        cluster = self.cluster
        if not cluster.kill(target):
            return MISSED
        chance = random.Random(f"{cluster.seed}-stranger-{step.at}")
        with trio.move_on_after(step.lasts):
            try:
                await strangers.pose(cluster.streams, parse_url(cluster.urls[target]).port, step.how, chance)
            except ChangefeedError:
                return MISSED  # the instance was back before
        return "answered"

    async def _garbage(self, target: str, step: Step) -> str:
        cluster = self.cluster
        chance = random.Random(f"{cluster.seed}-garbage-{step.at}")
        address = parse_url(cluster.urls[target])
        seen = ""
        for _ in range(3):
            seen = await strangers.pester(cluster.streams, address, step.how, chance, FEED)
        return seen

    async def _ask_status(self, target: str, step: Step) -> str:
        """An answer is whole, or there is an error that says why not."""
        cluster, seen = self.cluster, MISSED
        network, end = cluster.network.host("watcher"), trio.current_time() + step.lasts
        while trio.current_time() < end:
            try:
                response = await network.get(f"{cluster.urls[target]}/status", timeout_s=0.5)
            except ChangefeedError as error:
                seen = error.code
            else:
                # Strangers answer there too, but never this.
                seen = f"{response.status}"
                if response.status == 200:
                    assert json.loads(response.body)["instance"] == target
                    cluster.sightings["a status told"] += 1
            await trio.sleep(0.1)
        return seen

    # ---- the disk

    async def _power_loss(self, target: str, step: Step) -> str:
        """With the next write, within `lasts` + 1 s: after so many calls of the disk nothing more reaches it; every
        instance is gone before that write has an answer; then the log's files are what survived."""
        cluster, done = self.cluster, trio.Event()
        disk, place, chance = cluster.disk, cluster.sqlite, self._chance
        if disk is None or place.written is not None:
            return MISSED
        first = disk.calls
        limit = int(step.how)

        def dark(call: Call) -> Fault | None:
            if call.what in ("write", "sync", "truncate", "delete") and call.number - first >= limit:
                torn = chance.random() if call.number - first == limit and call.what == "write" else 0.0
                return Fault(ERRORS["write"], torn)
            return None

        def written() -> None:
            place.written = None
            for name in cluster.names:
                cluster.lose_power(name)
            place.end()
            disk.crash(chance)
            disk.faulty = None
            place.begin()
            # What it had stored before it died was stored under the fence that stood then.
            cluster.archive.looked(place.held, "append done")
            done.set()

        disk.faulty, place.written = dark, written
        with trio.move_on_after(step.lasts + 1):
            await done.wait()
        if not done.is_set():
            if place.written is written:
                disk.faulty = place.written = None
            return MISSED
        cluster.sightings["power lost"] += 1
        await trio.sleep(DARK_S)
        for name in cluster.names:
            cluster.streams.return_(name)
        return "power-lost"

    async def _disk_error(self, target: str, step: Step) -> str:
        """The next calls of one kind fail."""
        disk = self.cluster.disk
        what, count = step.how.split()
        if disk is None or disk.faulty is not None:
            return MISSED
        left = int(count)
        kind = "write" if what == "full" else what

        def failing(call: Call) -> Fault | None:
            nonlocal left
            if call.what == kind and left > 0:
                left -= 1
                return Fault(ERRORS[what])
            return None

        disk.faulty = failing
        await trio.sleep(step.lasts + 0.5)
        if disk.faulty is failing:
            disk.faulty = None
        met = int(count) - left
        if met:
            self.cluster.sightings[f"a failed {what}"] += met
        return "failed" if met else MISSED
