"""A whole cluster in one process: production tasks and machines; network, coordinator, log, clock and chance simulated.

Processes are named: instances a, b, c; publishers p0 …; readers s0 …. Each runs in lives: it is killed and begins anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from changefeed import open_instance
from changefeed.change import FeedSettings
from changefeed.coordination.memory import MemoryCoordination, MemoryCoordinator
from changefeed.errors import ChangefeedError
from changefeed.instance import Instance
from changefeed.log import LogStore
from changefeed.log.memory import MemoryLogStore, MemoryPlace
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.simulation.cluster.clients import Client, Reader, Writer
from changefeed.simulation.cluster.distant import PAUSE_CHANCE, PAUSE_S, DistantLog, ProcessFaults
from changefeed.simulation.cluster.drawing import NAMES
from changefeed.simulation.cluster.lister import Lister
from changefeed.simulation.cluster.recording import FEED, Archive, Recorder, Voice
from changefeed.simulation.cluster.sightings import Sightings
from changefeed.simulation.cluster.virtual import PROCESS, Freezer, virtual_clock
from changefeed.simulation.plan import Plan
from changefeed.simulation.tiers import Broken
from changefeed.transport.memory import MemoryNetwork

WALL_START_MS = 1_700_000_000_000
#: Traces that are records of the history, under the same names and with the same facts.
RECORDED = frozenset({"elected", "fence", "append", "repeat", "deposed"})


@dataclass
class Process:
    """One life of an instance."""

    name: str
    voice: Voice
    faults: ProcessFaults[Any]
    coordinator: MemoryCoordinator
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    drain: trio.Event = field(default_factory=trio.Event)
    instance: Instance | None = None


@dataclass
class Armed:
    """Something that happens when an instance passes a named step. target: "" for any of `names`."""

    point: str
    target: str
    act: Callable[[str], None]
    names: tuple[str, ...]


class Cluster:
    """Everything of one run."""

    def __init__(self, seed: int, plan: Plan, recorder: Recorder, sightings: Sightings) -> None:
        self.seed = seed
        self.plan = plan
        self.recorder = recorder
        self.sightings = sightings
        self.freezer = Freezer()
        self.healed = trio.Event()
        self.names = NAMES[: plan.option("instances", 3)]
        self.urls = {name: f"ws://127.0.0.1:{7000 + n}" for n, name in enumerate(self.names)}
        self.processes: dict[str, Process] = {}
        self.lives: dict[str, int] = {}
        self.armed: list[Armed] = []
        pauses = plan.option("pauses", ())
        self._stalls = frozenset(point.removeprefix("step: ") for point in pauses if point.startswith("step: "))
        self._stalled: dict[str, object] = {}
        self._stalling = random.Random(f"{seed}-stalls")
        self.wall_ms = WALL_START_MS
        self.extra_way_s = 0.0
        self.extra_ask_s = 0.0
        self.place = MemoryPlace()
        self.archive = Archive(recorder)
        self.network = MemoryNetwork()
        self.network.delay = self._delay()
        self.network.timers = virtual_clock().at
        self.settings = self._settings()
        self.coordination = MemoryCoordination(
            SeededEntropy(f"{seed}-coordination"), session_s=2.0, answer_s=0.3, latency=self._latency()
        )
        self.coordination.sleep = virtual_clock().sleep
        self.writers = [Writer(self, who) for who in plan.option("publishers", ["p0"])]
        self.readers = [Reader(self, options) for options in plan.option("readers", [{"who": "s0", "filter": {}}])]
        self.listers = [Lister(self, options) for options in plan.option("listers", ())]
        self.followers: list[Reader | Lister] = [*self.readers, *self.listers]
        self.clients: dict[str, Client] = {one.who: one for one in (*self.writers, *self.followers)}
        #: What is wrong and not to be seen in the history.
        self.wrong: list[Broken] = []
        self._versions = 0
        self._objects = random.Random(f"{seed}-objects")

    def _settings(self) -> Settings:
        return Settings(
            heartbeat_s=1.0,
            heartbeat_dead_s=2.5,
            reconnect_max_s=0.5,
            cursor_interval_s=0.2,
            drain_s=2.0,
            redirect_spread_s=0.5,
            handshake_s=3.0,
            stall_after_s=4.0,
            peer_heartbeat_s=0.4,
            suspect_after_s=1.2,
            stale_after_s=2.0,
            log_timeout_s=1.0,
            retention_every_s=0.5 if self.plan.option("keep") is not None else 10.0,
            batch_bytes_aim=self.plan.option("batch_bytes", 262144),
            in_flight_max=self.plan.option("in_flight", 16),
            # A small window sends whoever is behind to the log, where retention may have been.
            snapshot_every_s=self.plan.option("snapshot_every_s", 1.0),
            snapshot_list_bytes=self.plan.option("snapshot_list_bytes", 262144),
            window_bytes=self.plan.option("window_bytes", 64 * 1024 * 1024),
        )

    def _delay(self) -> Any:
        chance, way_s = random.Random(f"{self.seed}-net").random, self.plan.option("way_s", 0.002)

        def delay(source: str, target: str) -> float:
            return 0.0002 + (way_s + self.extra_way_s) * chance() ** 3  # type: ignore[no-any-return]

        return delay

    def _latency(self) -> Any:
        chance, ask_s = random.Random(f"{self.seed}-coordinator").random, self.plan.option("ask_s", 0.003)
        pausing = "coordinator" in self.plan.option("pauses", ())

        def latency() -> float:
            wait_s = (ask_s + self.extra_ask_s) * chance()
            if pausing and chance() < PAUSE_CHANCE:
                wait_s += PAUSE_S * chance()
            return wait_s  # type: ignore[no-any-return]

        return latency

    def object_of(self, key: str, op: str) -> tuple[str, str, int | None]:
        """Which object a change is about, how, and its version. Where somebody lists, objects change often, and some
        carry versions that grow as the changes are made: publishers that race bring them in another order. Where
        retention is short, a delete's version is soon forgotten, so that a later update of a lower one is a new object:
        there, objects with versions are not deleted."""
        if not self.listers:
            return key, op, None
        number = self._objects.randrange(12)
        if number < 7:
            return f"o{number}", op, None
        self._versions += 1
        kept = self.plan.option("keep") is None
        return f"v{number}", op if kept or op != "delete" else "update", self._versions

    @property
    def servers(self) -> list[str]:
        return list(self.urls.values())

    # ---- what is said

    def voice(self, who: str, life: int) -> Voice:
        return Voice(self.recorder, who, life)

    def world(self, who: str, voice: Voice) -> World:
        """What a process gets of the world. Its chances hang on its life only."""

        def trace(name: str, /, **facts: Any) -> None:
            if voice.silent:
                return
            self.sightings.traced(name, facts)
            if name in RECORDED:
                facts.pop("instance", None)
                voice(name, **facts)
            elif name == "welcomed" and not isinstance(self.clients[facts["name"]], Lister):
                reader = facts["name"]
                said = self.clients[reader].voice
                said("connected", reader=reader, instance=facts["instance"], position=str(facts["position"]))
            if self.armed:
                self.passed(who, name)
            if name in self._stalls and who in self.processes:
                self._stall(who)

        entropy = SeededEntropy(f"{self.seed}-{who}-{voice.life}")
        return World(entropy, lambda: self.wall_ms + int(trio.current_time() * 1000), trace)

    def passed(self, who: str, point: str) -> None:
        """A process passes a named step: whatever waits for that happens now, before its next line."""
        for armed in self.armed:
            if armed.point == point and who in armed.names and armed.target in ("", who):
                self.armed.remove(armed)
                armed.act(who)
                return

    def _stall(self, who: str) -> None:
        """Now and then a process stands still for a moment, before its next line."""
        chance = self._stalling
        if self.healed.is_set() or self.freezer.is_frozen(who) or chance.random() >= PAUSE_CHANCE:
            return
        token = self._stalled[who] = object()

        def go_on() -> None:
            if self._stalled.get(who) is token:
                self._stalled.pop(who)
                self.freezer.thaw(who)

        self.freezer.freeze(who)
        clock = virtual_clock()
        clock.at(clock.now + PAUSE_S * chance.random(), go_on)
        self.sightings["a process stood still behind a step"] += 1

    # ---- instances

    async def start(self, nursery: trio.Nursery) -> None:
        """The log with its settings, then all processes."""
        keep = self.plan.option("keep")
        store = MemoryLogStore(self.place, self.settings, world=World(SeededEntropy(f"{self.seed}-log")))
        log = await store.open(FEED)
        if keep is not None or self.listers:
            await log.set_settings(FeedSettings(retention_count=keep, snapshot=bool(self.listers)))
        for name in self.names:
            nursery.start_soon(self.keep, name)
        for reader in self.followers:
            nursery.start_soon(reader.run)

    async def keep(self, name: str) -> None:
        """Run an instance; start it again some time after it ended."""
        PROCESS.set(name)
        chance = random.Random(f"{self.seed}-restart-{name}")
        while True:
            try:
                await self._run_instance(name)
            except ChangefeedError as error:
                self.sightings[f"start failed: {error.code}"] += 1
            with trio.move_on_after(0.1 + 2 * chance.random() ** 2):
                await self.healed.wait()
            await trio.sleep(0.05)

    def store(self, name: str, life: int, world: World) -> tuple[LogStore, ProcessFaults[Any]]:
        """The log as one process has it, and what is done to its calls."""
        store = MemoryLogStore(self.place, self.settings, world=world)
        faults = DistantLog(
            self.place,
            self.archive,
            random.Random(f"{self.seed}-log-{name}-{life}"),
            self.plan.option("log_s", 0.0),
            self.plan.option("pauses", ()),
            partial(self.passed, name),
        )
        store.hook = faults
        return store, faults

    async def _run_instance(self, name: str) -> None:
        """One process: until it is killed or has drained."""
        life = self.lives[name] = self.lives.get(name, 0) + 1
        voice = self.voice(name, life)
        world = self.world(name, voice)
        store, faults = self.store(name, life, world)
        process = Process(name, voice, faults, self.coordination.coordinator(alive=self._dead))
        self.processes[name] = process
        try:
            with process.scope:
                async with open_instance(
                    [FEED],
                    log=store,
                    coordinator=process.coordinator,
                    listen=self.urls[name].removeprefix("ws://"),
                    name=name,
                    settings=self.settings,
                    network=self.network.host(name),
                    world=world,
                ) as instance:
                    process.instance = instance
                    await process.drain.wait()
                    await instance.drain()
                    process.instance = None
                    self._kill_homed(name)
        finally:
            if self.processes.get(name) is process:
                del self.processes[name]
                self._kill_homed(name)

    async def _dead(self, member: Any) -> bool:
        return False

    def running(self, name: str) -> Process | None:
        """The process of that instance, once it is open."""
        process = self.processes.get(name)
        return process if process is not None and process.instance is not None else None

    def leader(self) -> str | None:
        """Who thinks that it leads."""
        for name, process in self.processes.items():
            if process.instance is not None and process.instance.leads(FEED):
                return name
        return None

    def leader_beside(self, name: str) -> bool:
        """Whether another instance thinks that it leads."""
        others = (process for who, process in self.processes.items() if who != name)
        return any(process.instance is not None and process.instance.leads(FEED) for process in others)

    # ---- what is done to processes

    def kill(self, name: str) -> bool:
        """As SIGKILL: first nothing of it can leave any more, then it ends."""
        process = self.processes.pop(name, None)
        if process is None:
            return False
        if process.instance is not None and process.instance.leads(FEED):
            self.sightings["killed while leading"] += 1
        process.voice.silent = True
        self.network.kill(name)
        self.coordination.crash(process.coordinator)
        process.faults.killed = True
        self._stalled.pop(name, None)
        self._kill_homed(name)
        process.scope.cancel()
        self.freezer.thaw(name)
        return True

    def _kill_homed(self, name: str) -> None:
        """Who lives in an instance's process ends with it."""
        for client in self.clients.values():
            if client.home == name:
                client.killed(0.0)

    def freeze(self, name: str) -> Process | None:
        """As SIGSTOP. The coordinator hears nothing of it meanwhile."""
        process = self.running(name)
        if process is None or self.freezer.is_frozen(name):
            return None
        assert process.instance is not None
        if process.instance.leads(FEED):
            self.sightings["frozen while leading"] += 1
        self.freezer.freeze(name)
        self.coordination.disconnect(process.coordinator)
        return process

    def thaw(self, name: str) -> None:
        process = self.processes.get(name)
        if process is not None:
            self.coordination.reconnect(process.coordinator)
        self.freezer.thaw(name)

    def heal(self) -> None:
        """Everything that is still wrong ends now."""
        self.armed.clear()
        self._stalled.clear()
        hosts = [*self.names, *self.clients]
        for number, host in enumerate(hosts):
            for other in hosts[number + 1 :]:
                self.network.heal(host, other)
        for who in hosts:
            if self.freezer.is_frozen(who):
                self.thaw(who)
        if not self.coordination.quorum:
            self.coordination.regain_quorum()
        self.coordination.read_only = False
        for process in self.processes.values():
            process.faults.outage = False
            self.coordination.release_watches(process.coordinator)
            self.coordination.reconnect(process.coordinator)
        self.place.free = self.place.total
        self.extra_way_s = self.extra_ask_s = 0.0
        for reader in self.followers:
            reader.slow_s = 0.0
        self.healed.set()
