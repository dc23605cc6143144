"""Does what a plan says, and tells what was seen of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from changefeed.errors import AppendOutcomeUnknown
from changefeed.simulation.cluster.cluster import Armed, Cluster, Process
from changefeed.simulation.cluster.recording import FEED, Voice
from changefeed.simulation.plan import Step

MISSED: Final = "missed"


class Nemesis:
    """One run's faults. Each step is a task of its own, so that two can be under way at once."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.voice: Voice = cluster.voice("nemesis", 1)

    async def run(self, steps: tuple[Step, ...]) -> None:
        """All steps, each at its time; returns when the last one is over."""
        async with trio.open_nursery() as nursery:
            for number, step in enumerate(steps):
                await trio.sleep_until(step.at)
                nursery.start_soon(self._step, number, step)

    async def _step(self, number: int, step: Step) -> None:
        target = step.target
        if target == "leader":
            target = self.cluster.leader() or self.cluster.names[0]
        self.voice("fault", id=number, kind=step.kind, target=target, on={"lasts": step.lasts, "how": step.how})
        do: Callable[[str, Step], Awaitable[str]] = getattr(self, "_" + step.kind.replace("-", "_"))
        seen = await do(target, step)
        self.voice("effect", id=number, what=seen)
        self.cluster.sightings[f"fault: {step.kind}" + (", missed" if seen == MISSED else "")] += 1
        self.voice("over", id=number)

    # ---- processes

    async def _kill(self, target: str, step: Step) -> str:
        return "killed" if self.cluster.kill(target) else MISSED

    async def _kill_all(self, target: str, step: Step) -> str:
        killed = [name for name in self.cluster.names if self.cluster.kill(name)]
        return "killed" if killed else MISSED

    async def _freeze(self, target: str, step: Step) -> str:
        process = self.cluster.freeze(target)
        if process is None:
            return MISSED
        return await self._thaw_later(process, step.lasts)

    async def _thaw_later(self, process: Process, lasts: float) -> str:
        cluster, name = self.cluster, process.name
        led = process.instance is not None and process.instance.leads(FEED)
        await trio.sleep(lasts)
        if not cluster.freezer.is_frozen(name) or cluster.processes.get(name) is not process:
            return "frozen"
        cluster.thaw(name)
        if led and cluster.leader_beside(name):
            cluster.sightings["thawed into another's term"] += 1
        return "frozen"

    async def _drain(self, target: str, step: Step) -> str:
        process = self.cluster.running(target)
        if process is None:
            return MISSED
        process.drain.set()
        return "drained"

    async def _drain_all(self, target: str, step: Step) -> str:
        """A rolling restart: one after the other."""
        seen = MISSED
        for name in self.cluster.names:
            if await self._drain(name, step) != MISSED:
                seen = "drained"
            await trio.sleep(0.2 + step.lasts / 2)
        return seen

    async def _at_point(self, target: str, step: Step, act: Callable[[str], None]) -> str:
        """When an instance passes the named step, within `lasts` + 1 s. how: the step, and what brings it about."""
        cluster, done = self.cluster, trio.Event()
        point, _, cause = step.how.partition("/")

        def passed(who: str) -> None:
            act(who)
            done.set()

        armed = Armed(point, target if step.target != "leader" else "", passed, cluster.names)
        cluster.armed.append(armed)
        self._cause(cause)
        with trio.move_on_after(step.lasts + 1):
            await done.wait()
        if armed in cluster.armed:
            cluster.armed.remove(armed)
        if done.is_set():
            cluster.sightings[f"{step.kind} {point}"] += 1
        return point if done.is_set() else MISSED

    def _cause(self, what: str) -> None:
        cluster = self.cluster
        leader = cluster.leader()
        match what:
            case "kill" if leader is not None:
                cluster.kill(leader)
            case "delete":
                cluster.coordination.delete_leader(FEED)
            case "drain" if leader is not None:
                cluster.processes[leader].drain.set()
            case "kill-client":
                cluster.writers[0].killed(0.0)
            case "drop":
                for who in cluster.clients:
                    for name in cluster.names:
                        cluster.network.drop(who, name)

    async def _kill_at(self, target: str, step: Step) -> str:
        def kill(who: str) -> None:
            self.cluster.kill(who)

        return await self._at_point(target, step, kill)

    async def _freeze_at(self, target: str, step: Step) -> str:
        frozen: list[Process | None] = []
        seen = await self._at_point(target, step, lambda who: frozen.append(self.cluster.freeze(who)))
        if frozen and frozen[0] is not None:
            await self._thaw_later(frozen[0], step.lasts)
        return seen

    # ---- the network

    def _others(self, target: str, how: str) -> list[str]:
        cluster = self.cluster
        others = [name for name in cluster.names if name != target]
        match how:
            case "one":
                return others[:1]
            case "clients":
                return list(cluster.clients)
            case _:
                return others

    async def _cut(self, target: str, step: Step) -> str:
        network, others = self.cluster.network, self._others(target, step.how)
        for other in others:
            network.cut(target, other)
        await trio.sleep(step.lasts)
        for other in others:
            network.heal(target, other)
        return "cut"

    async def _cut_way(self, target: str, step: Step) -> str:
        """What the target sends is lost; or, for every second plan, what it should receive."""
        network, others = self.cluster.network, self._others(target, step.how)
        for other in others:
            network.cut_way(*((target, other) if int(step.at * 1000) % 2 else (other, target)))
        await trio.sleep(step.lasts)
        for other in others:
            network.heal(target, other)
        return "cut"

    async def _drop_links(self, target: str, step: Step) -> str:
        for other in self._others(target, step.how):
            self.cluster.network.drop(target, other)
        return "dropped"

    async def _reconnect_all(self, target: str, step: Step) -> str:
        """Every client loses its connection in the same moment."""
        cluster = self.cluster
        for who in cluster.clients:
            for name in cluster.names:
                cluster.network.drop(who, name)
        return "dropped"

    async def _slow_network(self, target: str, step: Step) -> str:
        self.cluster.extra_way_s = 0.3
        await trio.sleep(step.lasts)
        self.cluster.extra_way_s = 0.0
        return "slow"

    # ---- the coordinator

    def _coordinator_of(self, target: str) -> Any:
        process = self.cluster.running(target)
        return None if process is None else process.coordinator

    async def _cut_coordinator(self, target: str, step: Step) -> str:
        participant = self._coordinator_of(target)
        if participant is None:
            return MISSED
        self.cluster.coordination.disconnect(participant)
        await trio.sleep(step.lasts)
        if not participant.crashed and not self.cluster.freezer.is_frozen(target):
            self.cluster.coordination.reconnect(participant)
        return "session-lost" if step.lasts > self.cluster.coordination.session_s else "cut"

    async def _isolate(self, target: str, step: Step) -> str:
        """Neither the coordinator nor another instance hears of it; its clients and the log do."""
        participant, network = self._coordinator_of(target), self.cluster.network
        if participant is None:
            return MISSED
        self.cluster.coordination.disconnect(participant)
        others = self._others(target, "all")
        for other in others:
            network.cut(target, other)
        await trio.sleep(step.lasts)
        for other in others:
            network.heal(target, other)
        if not participant.crashed and not self.cluster.freezer.is_frozen(target):
            self.cluster.coordination.reconnect(participant)
        return "isolated"

    async def _expire(self, target: str, step: Step) -> str:
        participant = self._coordinator_of(target)
        if participant is None:
            return MISSED
        self.cluster.coordination.expire(participant)
        return "session-expired"

    async def _delete_record(self, target: str, step: Step) -> str:
        self.cluster.coordination.delete_leader(FEED)
        return "record-deleted"

    async def _lost_reply(self, target: str, step: Step) -> str:
        """Each instance's next write is done, and it does not hear of that; and somebody must write."""
        cluster = self.cluster
        for process in cluster.processes.values():
            cluster.coordination.lose_reply(process.coordinator)
        self._cause(step.how)
        return "reply-lost"

    async def _held_watches(self, target: str, step: Step) -> str:
        participant = self._coordinator_of(target)
        if participant is None:
            return MISSED
        self.cluster.coordination.hold_watches(participant)
        await trio.sleep(step.lasts)
        self.cluster.coordination.release_watches(participant)
        return "watches-held"

    async def _quorum(self, target: str, step: Step) -> str:
        coordination = self.cluster.coordination
        if not coordination.quorum:
            return MISSED
        coordination.lose_quorum()
        await trio.sleep(step.lasts)
        if not coordination.quorum:
            coordination.regain_quorum()
        return "quorum-lost"

    async def _wipe(self, target: str, step: Step) -> str:
        self.cluster.coordination.wipe()
        return "wiped"

    async def _older_coordinator(self, target: str, step: Step) -> str:
        """A backup of its data is put back: epochs that were given will be given again."""
        coordination = self.cluster.coordination
        coordination.put_epoch(FEED, max(0, coordination.view(FEED).epoch - 1 - int(step.lasts * 2)))
        return "epoch-put-back"

    async def _read_only(self, target: str, step: Step) -> str:
        self.cluster.coordination.read_only = True
        await trio.sleep(step.lasts)
        self.cluster.coordination.read_only = False
        return "read-only"

    async def _slow_coordinator(self, target: str, step: Step) -> str:
        self.cluster.extra_ask_s = 1.0
        await trio.sleep(step.lasts)
        self.cluster.extra_ask_s = 0.0
        return "slow"

    # ---- the log

    def _plan_unknown(self, target: str, step: Step, point: str) -> str:
        process = self.cluster.running(target)
        if process is None:
            return MISSED
        error = AppendOutcomeUnknown("the connection was lost during commit")
        process.faults.plan(point if step.how == "before" else f"{point} done", error, delay_s=step.lasts / 10)
        return "planned"

    async def _unknown_append(self, target: str, step: Step) -> str:
        return self._plan_unknown(target, step, "append")

    async def _unknown_fence(self, target: str, step: Step) -> str:
        self.cluster.coordination.delete_leader(FEED)
        return self._plan_unknown(target, step, "fence")

    async def _unknown_incarnation(self, target: str, step: Step) -> str:
        return self._plan_unknown(target, step, "open_publisher")

    async def _slow_append(self, target: str, step: Step) -> str:
        process = self.cluster.running(target)
        if process is None:
            return MISSED
        process.faults.plan("append", None, delay_s=step.lasts)
        return "planned"

    async def _log_outage(self, target: str, step: Step) -> str:
        process = self.cluster.running(target)
        if process is None:
            return MISSED
        process.faults.outage = True
        await trio.sleep(step.lasts)
        process.faults.outage = process.voice.silent
        return "log-away"

    async def _log_outage_all(self, target: str, step: Step) -> str:
        cluster = self.cluster
        for process in cluster.processes.values():
            process.faults.outage = True
        await trio.sleep(step.lasts)
        for process in cluster.processes.values():
            process.faults.outage = False
        return "log-away"

    async def _put_back(self, target: str, step: Step) -> str:
        """The log is copied; later the copy is put back. how: whether the instances run meanwhile, and whether the
        coordinator's data is kept, lost, or put back too, so that epochs come again; and whether readers are away until
        others have written where these had read."""
        cluster = self.cluster
        running, coordinator, *late = step.how.split("/")
        backup, epoch = cluster.place.copy(), cluster.coordination.view(FEED).epoch
        await trio.sleep(step.lasts)
        if running == "stopped":
            for name in cluster.names:
                cluster.kill(name)
            # What was under way in the log has landed by then, or never will.
            await trio.sleep(0.5)
        if late:
            for reader in cluster.followers:
                reader.killed(1.0 + step.lasts)
        cluster.place.put_back(backup)
        data = cluster.place.feeds[FEED]
        cluster.archive.put_back(data)
        self.voice("restored", lineage=data.lineage, tail=data.tail.seq)
        if coordinator != "kept":
            cluster.coordination.wipe()
        if coordinator == "older":
            cluster.coordination.put_epoch(FEED, epoch)
        cluster.sightings[f"put back: {running}, coordinator {coordinator}"] += 1
        return "put-back"

    async def _disk_full(self, target: str, step: Step) -> str:
        place = self.cluster.place
        place.free = 0
        await trio.sleep(step.lasts)
        place.free = place.total
        return "disk-full"

    # ---- clients and clocks

    async def _kill_client(self, target: str, step: Step) -> str:
        client = self.cluster.clients.get(target)
        if client is None or client.scope is None:
            return MISSED
        client.killed(step.lasts / 3)
        return "killed"

    async def _freeze_client(self, target: str, step: Step) -> str:
        cluster = self.cluster
        if target not in cluster.clients or cluster.freezer.is_frozen(target):
            return MISSED
        cluster.freezer.freeze(target)
        await trio.sleep(step.lasts)
        cluster.freezer.thaw(target)
        return "frozen"

    async def _cut_client(self, target: str, step: Step) -> str:
        network, names = self.cluster.network, self.cluster.names
        for name in names:
            network.cut(target, name)
        await trio.sleep(step.lasts)
        for name in names:
            network.heal(target, name)
        return "cut"

    async def _slow_reader(self, target: str, step: Step) -> str:
        cluster = self.cluster
        reader = next((one for one in cluster.followers if one.who == target), None)
        if reader is None:
            return MISSED
        reader.slow_s = 0.2
        await trio.sleep(step.lasts)
        reader.slow_s = 0.0
        return "slow"

    async def _clock_jump(self, target: str, step: Step) -> str:
        self.cluster.wall_ms += int(step.how or 0) * 1000
        return "jumped"
