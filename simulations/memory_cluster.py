"""A whole cluster in one process: the production code under virtual time, with memory parts and drawn faults.

    python -m simulations.memory_cluster [--seeds 200] [--first 0] [--trace]

Each seed draws its faults first, then runs three instances, three publishers and five subscribers for some virtual
seconds, heals everything, and demands that the cluster converges. Checked: every acknowledged change is in the log
once, at its receipt's place; the log is dense; each publisher's changes are in order and its groups whole; each
subscriber applied exactly what its filter selects of the log, once. The same seed gives the same list of events. At the
end it says how often each thing was met that must be met now and then (cluster_parts.WANTED).
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing

from changefeed import open_instance
from changefeed.coordination.memory import MemoryCoordination, MemoryCoordinator
from changefeed.errors import AppendOutcomeUnknown, ChangefeedError, CoordinatorUnavailable
from changefeed.instance import Instance
from changefeed.log.memory import MemoryLogStore, MemoryPlace
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.transport.memory import MemoryNetwork
from simulations.cluster_clients import FEED, Reader, Written, check, publish, readers, subscribe
from simulations.cluster_parts import PROCESS, DistantLog, Freezer, Sightings, seeded_scheduler

NAMES = ("a", "b", "c")
WALL_START_MS = 1_700_000_000_000
CHAOS_S = 10.0
HEAL_S = 90.0
SETTINGS = Settings(
    heartbeat_s=2.0,
    heartbeat_dead_s=5.0,
    reconnect_max_s=1.0,
    cursor_interval_s=0.2,
    drain_s=4.0,
    redirect_spread_s=1.0,
)


@dataclass(frozen=True)
class Step:
    """At `at` virtual seconds, do `kind` to `target` for `lasts` seconds."""

    at: float
    kind: str
    target: str
    lasts: float


KINDS = (
    "kill",
    "kill-leader",
    "freeze",
    "freeze-leader",
    "drain",
    "drain-leader",
    "cut",
    "drop-links",
    "expire",
    "quorum",
    "delete-record",
    "wipe",
    "lost-reply",
    "held-watches",
    "unknown-append",
    "unknown-fence",
    "unknown-incarnation",
    "slow-append",
    "log-outage",
)


def draw_plan(chance: random.Random) -> list[Step]:
    """1 to 5 kinds of faults are on in a seed ("swarm"), so that rare pairs meet often."""
    kinds = chance.sample(KINDS, chance.randint(1, 5))
    steps, at = [], 1.0 + chance.random()
    while at < CHAOS_S:
        steps.append(Step(at, chance.choice(kinds), chance.choice(NAMES), 0.05 + 4 * chance.random() ** 2))
        at += 0.1 + 3 * chance.random() ** 2
    return steps


@dataclass
class Cluster:
    """Everything of one run."""

    seed: int
    sightings: Sightings
    freezer: Freezer
    settings: Settings = SETTINGS
    trace: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = MemoryNetwork()
        self.place = MemoryPlace()
        # Half of the seeds are on a slow network, half on a slow log: what is under way then is what faults meet.
        far = random.Random(f"{self.seed}-far")
        delays, way_s = random.Random(f"{self.seed}-net"), far.choice((0.002, 0.1))
        self.network.delay = lambda source, target: 0.0002 + way_s * delays.random() ** 3
        self.log_s = far.choice((0.0, 0.02))
        waits = random.Random(f"{self.seed}-zk")
        self.coordination = MemoryCoordination(
            SeededEntropy(f"{self.seed}-coordination"),
            session_s=4.0,
            answer_s=0.5,
            latency=lambda: 0.003 * waits.random(),
        )
        self.faults: dict[str, DistantLog] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self.drains: dict[str, trio.Event] = {}
        self.running: dict[str, Instance] = {}
        self.participants: dict[str, MemoryCoordinator] = {}
        self.starts = 0
        self.healed = False
        self.urls = {name: f"ws://127.0.0.1:{7000 + n}" for n, name in enumerate(NAMES)}

    def note(self, name: str, /, **facts: Any) -> None:
        self.sightings.traced(name, facts)
        self.trace.append((round(trio.current_time(), 6), name, *sorted(facts.items())))

    def world(self, who: str) -> World:
        self.starts += 1
        entropy = SeededEntropy(f"{self.seed}-{who}-{self.starts}")
        return World(entropy, lambda: WALL_START_MS + int(trio.current_time() * 1000), self.note)

    @property
    def servers(self) -> list[str]:
        return list(self.urls.values())

    # ---- instances

    async def run_instance(self, name: str) -> None:
        """One process: until it is killed or has drained."""
        store = MemoryLogStore(self.place, self.settings, world=self.world(name))
        lags = random.Random(f"{self.seed}-log-{name}-{self.starts}")
        faults = self.faults[name] = DistantLog(lambda: self.log_s * lags.random() ** 2)
        store.hook = faults
        coordinator = self.participants[name] = self.coordination.coordinator(alive=self.dead)
        self.drains[name] = trio.Event()
        with trio.CancelScope() as scope:
            self.scopes[name] = scope
            async with open_instance(
                [FEED],
                log=store,
                coordinator=coordinator,
                listen=self.urls[name].removeprefix("ws://"),
                name=name,
                settings=self.settings,
                network=self.network.host(name),
                world=self.world(name),
            ) as instance:
                self.running[name] = instance
                await self.drains[name].wait()
                self.note("drain", who=name)
                await instance.drain()
        self.running.pop(name, None)

    async def dead(self, member: Any) -> bool:
        return False

    def kill(self, name: str) -> None:
        """As SIGKILL: first nothing of it can leave any more, then it ends."""
        if name in self.scopes:
            self.note("kill", who=name)
            if name in self.running and self.running[name].leads(FEED):
                self.sightings["killed while leading"] += 1
            self.network.kill(name)
            self.coordination.crash(self.participants[name])
            self.faults[name].outage = True
            self.running.pop(name, None)
            self.scopes.pop(name).cancel()
            self.freezer.thaw(name)

    def cut_off(self, client: str) -> None:
        """No instance can be reached from there any more, and nobody is told."""
        for name in NAMES:
            self.network.cut(client, name)

    def let_in(self, client: str) -> None:
        for name in NAMES:
            self.network.heal(client, name)

    async def freeze(self, name: str, lasts: float) -> None:
        """As SIGSTOP, and SIGCONT after a while. ZooKeeper hears nothing of it meanwhile."""
        instance = self.running.get(name)
        if instance is None or self.freezer.is_frozen(name):
            return
        led = instance.leads(FEED)
        if led:
            self.sightings["frozen while leading"] += 1
        participant = self.participants[name]
        self.freezer.freeze(name)
        self.coordination.disconnect(participant)
        await trio.sleep(lasts)
        if self.freezer.is_frozen(name) and self.participants[name] is participant:
            self.thaw(name)
            if led and any(other.leads(FEED) for who, other in self.running.items() if who != name):
                self.sightings["thawed into another's term"] += 1

    def thaw(self, name: str) -> None:
        self.note("thaw", who=name)
        self.coordination.reconnect(self.participants[name])
        self.freezer.thaw(name)

    def thaw_all(self) -> None:
        for name in NAMES:
            if self.freezer.is_frozen(name):
                self.thaw(name)

    async def keep(self, name: str, stop: trio.Event) -> None:
        """Run an instance; start it again some time after it ended."""
        chance = random.Random(f"{self.seed}-restart-{name}")
        while True:
            mark = PROCESS.set(name)
            try:
                await self.run_instance(name)
            except CoordinatorUnavailable:
                self.note("start-failed", who=name)
            finally:
                PROCESS.reset(mark)
            if stop.is_set():
                return
            await trio.sleep(0.2 if self.healed else 0.2 + 3 * chance.random())

    def leader(self) -> str | None:
        return next((name for name, instance in self.running.items() if instance.leads(FEED)), None)

    # ---- faults

    async def harm(self, step: Step) -> None:
        target = step.target
        if step.kind.endswith("-leader"):
            target = self.leader() or target
        self.note("fault", kind=step.kind, target=target)
        match step.kind.removesuffix("-leader"):
            case "kill":
                self.kill(target)
            case "freeze":
                await self.freeze(target, step.lasts)
            case "drain":
                if target in self.drains:
                    self.drains[target].set()
            case "cut":
                other = NAMES[(NAMES.index(target) + 1) % len(NAMES)]
                self.network.cut(target, other)
                await trio.sleep(step.lasts)
                self.network.heal(target, other)
            case "drop-links":
                for other in NAMES:
                    self.network.drop(target, other)
            case kind:
                if target in self.running:
                    await (self.harm_log if kind in LOG_KINDS else self.harm_coordinator)(kind, target, step.lasts)

    async def harm_coordinator(self, kind: str, target: str, lasts: float) -> None:
        coordination, participant = self.coordination, self.participants[target]
        match kind:
            case "expire":
                coordination.expire(participant)
            case "quorum":
                coordination.lose_quorum()
                await trio.sleep(lasts)
                coordination.regain_quorum()
            case "delete-record":
                coordination.delete_leader(FEED)
            case "wipe":
                coordination.wipe()
            case "lost-reply":
                coordination.lose_reply(participant)
                coordination.delete_leader(FEED)
            case "held-watches":
                coordination.hold_watches(participant)
                await trio.sleep(lasts)
                coordination.release_watches(participant)
            case _:
                raise AssertionError(kind)

    async def harm_log(self, kind: str, target: str, lasts: float) -> None:
        faults = self.faults[target]
        unknown = AppendOutcomeUnknown("the connection was lost during commit")
        match kind:
            case "unknown-append":
                faults.plan("append done" if lasts > 1 else "append", unknown, delay_s=lasts / 10)
            case "unknown-fence":
                faults.plan("fence done", unknown, delay_s=lasts / 10)
                self.coordination.delete_leader(FEED)
            case "unknown-incarnation":
                faults.plan("open_publisher done", unknown)
            case "slow-append":
                faults.plan("append", None, delay_s=lasts)
            case "log-outage":
                faults.outage = True
                await trio.sleep(lasts)
                faults.outage = not (faults is self.faults[target] and target in self.running)
            case _:
                raise AssertionError(kind)

    def heal(self) -> None:
        self.healed = True
        for name in NAMES:
            for other in NAMES:
                if name < other:
                    self.network.heal(name, other)
        self.thaw_all()
        if not self.coordination.quorum:
            self.coordination.regain_quorum()
        for name in self.running:
            self.faults[name].outage = False
            self.coordination.release_watches(self.participants[name])


LOG_KINDS = ("unknown-append", "unknown-fence", "unknown-incarnation", "slow-append", "log-outage")


async def run_cluster(cluster: Cluster, plan: list[Step]) -> list[str]:
    """What was wrong, as sentences."""
    written = {who: Written() for who in ("p0", "p1", "p2")}
    reading = readers(random.Random(f"{cluster.seed}-filters"))
    stop_publishing, stop_all = trio.Event(), trio.Event()
    problems: list[str] = []
    async with trio.open_nursery() as outer:
        try:
            for name in NAMES:
                outer.start_soon(cluster.keep, name, stop_all)
            for reader in reading:
                outer.start_soon(subscribe, cluster, reader, stop_all)
            with trio.move_on_after(CHAOS_S + HEAL_S) as patience:
                async with trio.open_nursery() as publishers:
                    for who, one in written.items():
                        publishers.start_soon(publish, cluster, who, stop_publishing, one)
                    async with trio.open_nursery() as chaos:
                        for step in plan:
                            await trio.sleep_until(step.at)
                            chaos.start_soon(cluster.harm, step)
                    cluster.heal()
                    healed = trio.current_time()
                    await trio.sleep(1)
                    stop_publishing.set()
                while any(reader.reached < acknowledged(written) for reader in reading):  # noqa: ASYNC110  # virtual time
                    await trio.sleep(0.1)
                cluster.note("converged", after=round(trio.current_time() - healed, 1))
            if patience.cancelled_caught:
                problems.append(not_converged(written, reading))
            problems += check(cluster, written, reading)
            stop_all.set()
            outer.cancel_scope.cancel()
        finally:
            # Whatever happened: who is frozen could not even end.
            cluster.thaw_all()
    return problems


def acknowledged(written: dict[str, Written]) -> int:
    """The highest seq in a receipt."""
    return max((group.seqs[1] for one in written.values() for group in one.groups if group.seqs), default=0)


def not_converged(written: dict[str, Written], reading: list[Reader]) -> str:
    ends = {reader.who: reader.reached for reader in reading}
    pending = {
        who: sum(group.seqs is None and not group.abandoned for group in one.groups) for who, one in written.items()
    }
    return f"did not converge within {HEAL_S:g} s after healing: readers {ends}, unsettled {pending}"


def run_seed(seed: int, sightings: Sightings | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Problems and trace of one seed."""
    sightings = Sightings() if sightings is None else sightings
    plan = draw_plan(random.Random(f"{seed}-plan"))
    freezer = Freezer()

    async def main() -> tuple[list[str], list[tuple[Any, ...]]]:
        cluster = Cluster(seed, sightings, freezer)
        for step in plan:
            cluster.note("plan", at=round(step.at, 3), kind=step.kind, target=step.target, lasts=round(step.lasts, 3))
        try:
            problems = await run_cluster(cluster, plan)
        except* ChangefeedError as group:
            problems = [f"an error left the cluster: {group.exceptions!r}"]
        return problems, cluster.trace

    clock = trio.testing.MockClock(autojump_threshold=0)
    with seeded_scheduler(seed), sightings.watching():
        return trio.run(main, clock=clock, instruments=[freezer])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--trace", action="store_true", help="print what happened, for one seed")
    parser.add_argument("--hash", action="store_true", help="print a hash of each seed's trace")
    parser.add_argument("--log", action="store_true", help="print what the library logs")
    options = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG if options.log else logging.CRITICAL, stream=sys.stdout)
    failed, begun, sightings, slowest = [], time.monotonic(), Sightings(), (0.0, -1)
    for seed in range(options.first, options.first + options.seeds):
        problems, trace = run_seed(seed, sightings)
        if options.trace:
            for line in trace:
                print(*line)
        if options.hash:
            print(f"seed {seed}: trace {hashlib.sha256(repr(trace).encode()).hexdigest()[:16]}")
        took = next((line[2][1] for line in trace if line[1] == "converged"), HEAL_S)
        slowest = max(slowest, (took, seed))
        if problems:
            failed.append(seed)
            print(f"seed {seed}: {'; '.join(problems)[:500]}", flush=True)
        elif (seed + 1 - options.first) % 20 == 0:
            print(f"{seed + 1 - options.first} seeds, {time.monotonic() - begun:.0f} s", flush=True)
    for name, count in sorted(sightings.items()):
        print(f"{count:8} x {name}")
    print(f"slowest to converge after healing: {slowest[0]} s, seed {slowest[1]}")
    missing = sightings.missing() if options.seeds >= 200 else []
    verdict = f"{options.seeds} seeds, {len(failed)} failed{': ' + ', '.join(map(str, failed)) if failed else ''}"
    print(verdict + (f"; never met: {', '.join(missing)}" if missing else ""))
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
