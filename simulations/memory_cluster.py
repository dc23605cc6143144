"""A whole cluster in one process: the production code under virtual time, with memory parts and drawn faults.

    python -m simulations.memory_cluster [--seeds 200] [--first 0] [--trace]

Each seed draws its faults first, then runs three instances, two publishers and two subscribers for some virtual seconds,
heals everything, and demands that the cluster converges. Checked: every acknowledged change is in the log once, at its
receipt's place; the log is dense; each publisher's changes are in order and its groups whole; each subscriber saw exactly
the log. The same seed gives the same list of events. (The full simulation is a later release's; this shows that the seams
are real.)
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing

from changefeed import Change, MemoryCursor, open_instance, open_publisher, open_subscription
from changefeed.coordination.memory import MemoryCoordination, MemoryCoordinator
from changefeed.errors import AppendOutcomeUnknown, ChangefeedError, CoordinatorUnavailable
from changefeed.instance import Instance
from changefeed.log.memory import Faults, MemoryLogStore, MemoryPlace
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.transport.memory import MemoryNetwork

FEED = "vmapi"
NAMES = ("a", "b", "c")
WALL_START_MS = 1_700_000_000_000
CHAOS_S = 10.0
HEAL_S = 90.0


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
    "cut",
    "expire",
    "quorum",
    "delete-record",
    "unknown-append",
    "log-outage",
    "drop-links",
)


def draw_plan(chance: random.Random) -> list[Step]:
    """1 to 5 kinds of faults are on in a seed ("swarm"), so that rare pairs meet often."""
    kinds = chance.sample(KINDS, chance.randint(1, 5))
    steps, at = [], 1.0 + chance.random()
    while at < CHAOS_S:
        steps.append(Step(at, chance.choice(kinds), chance.choice(NAMES), 0.05 + 3 * chance.random() ** 2))
        at += 0.1 + 3 * chance.random() ** 2
    return steps


@dataclass
class Cluster:
    """Everything of one run."""

    seed: int
    trace: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = MemoryNetwork()
        self.place = MemoryPlace()
        delays = random.Random(f"{self.seed}-net")
        self.network.delay = lambda source, target: 0.0002 + 0.002 * delays.random() ** 3
        waits = random.Random(f"{self.seed}-zk")
        self.coordination = MemoryCoordination(
            SeededEntropy(f"{self.seed}-coordination"),
            session_s=4.0,
            answer_s=0.5,
            latency=lambda: 0.003 * waits.random(),
        )
        self.faults: dict[str, Faults] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self.running: dict[str, Instance] = {}
        self.participants: dict[str, MemoryCoordinator] = {}
        self.starts = 0
        self.healed = False
        self.urls = {name: f"ws://127.0.0.1:{7000 + n}" for n, name in enumerate(NAMES)}

    def note(self, name: str, /, **facts: Any) -> None:
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
        """One process: until it is killed."""
        store = MemoryLogStore(self.place, world=self.world(name))
        faults = self.faults[name] = Faults()
        store.hook = faults
        coordinator = self.participants[name] = self.coordination.coordinator(alive=self.dead)
        with trio.CancelScope() as scope:
            self.scopes[name] = scope
            async with open_instance(
                [FEED],
                log=store,
                coordinator=coordinator,
                listen=self.urls[name].removeprefix("ws://"),
                name=name,
                settings=SETTINGS,
                network=self.network.host(name),
                world=self.world(name),
            ) as instance:
                self.running[name] = instance
                await trio.sleep_forever()
        self.running.pop(name, None)

    async def dead(self, member: Any) -> bool:
        return False

    def kill(self, name: str) -> None:
        """As SIGKILL: first nothing of it can leave any more, then it ends."""
        if name in self.scopes:
            self.note("kill", who=name)
            self.network.kill(name)
            self.coordination.crash(self.participants[name])
            self.scopes.pop(name).cancel()

    async def keep(self, name: str, stop: trio.Event) -> None:
        """Run an instance; start it again some time after it was killed."""
        chance = random.Random(f"{self.seed}-restart-{name}")
        while True:
            try:
                await self.run_instance(name)
            except CoordinatorUnavailable:
                self.note("start-failed", who=name)
            if stop.is_set():
                return
            await trio.sleep(0.2 if self.healed else 0.2 + 3 * chance.random())

    def leader(self) -> str | None:
        return next((name for name, instance in self.running.items() if instance.leads(FEED)), None)

    # ---- faults

    async def harm(self, step: Step) -> None:
        target = step.target
        self.note("fault", kind=step.kind, target=target)
        match step.kind:
            case "kill":
                self.kill(target)
            case "kill-leader":
                self.kill(self.leader() or target)
            case "cut":
                other = NAMES[(NAMES.index(target) + 1) % len(NAMES)]
                self.network.cut(target, other)
                await trio.sleep(step.lasts)
                self.network.heal(target, other)
            case "drop-links":
                for other in NAMES:
                    self.network.drop(target, other)
            case "expire":
                if target in self.running:
                    self.coordination.expire(self.participants[target])
            case "quorum":
                self.coordination.lose_quorum()
                await trio.sleep(step.lasts)
                self.coordination.regain_quorum()
            case "delete-record":
                self.coordination.delete_leader(FEED)
            case "unknown-append":
                error = AppendOutcomeUnknown("the connection was lost during commit")
                point = "append done" if step.lasts > 1 else "append"
                if target in self.faults:
                    self.faults[target].plan(point, error, delay_s=step.lasts / 10)
            case "log-outage":
                if target in self.faults:
                    faults = self.faults[target]
                    faults.outage = True
                    await trio.sleep(step.lasts)
                    faults.outage = False

    def heal(self) -> None:
        self.healed = True
        for name in NAMES:
            for other in NAMES:
                if name < other:
                    self.network.heal(name, other)
        if not self.coordination.quorum:
            self.coordination.regain_quorum()
        for faults in self.faults.values():
            faults.outage = False


SETTINGS = Settings(heartbeat_s=2.0, heartbeat_dead_s=5.0, reconnect_max_s=1.0, cursor_interval_s=0.2)


@dataclass
class Written:
    """What one publisher submitted and was told: group number -> (ids, seqs or None)."""

    groups: list[tuple[list[str], tuple[int, int] | None]] = field(default_factory=list)


async def publish(cluster: Cluster, who: str, stop: trio.Event, written: Written) -> None:
    chance = random.Random(f"{cluster.seed}-{who}")
    number = 0

    async def settle(at: int, pending: Any) -> None:
        receipt = await pending.wait()
        ids, _ = written.groups[at]
        written.groups[at] = (ids, (receipt.first.seq, receipt.last.seq))

    servers = cluster.servers
    chance.shuffle(servers)
    async with trio.open_nursery() as nursery:
        async with open_publisher(
            FEED, servers, settings=SETTINGS, network=cluster.network.host(who), world=cluster.world(who)
        ) as publisher:
            while not stop.is_set():
                size = 1 if chance.random() < 0.6 else chance.randint(2, 5)
                ids = [f"{who}-{number + n}" for n in range(size)]
                number += size
                written.groups.append((ids, None))
                pending = await publisher.submit([Change("vm", id, "update", ("n",), {"id": id}) for id in ids])
                nursery.start_soon(settle, len(written.groups) - 1, pending)
                await trio.sleep(0.25 * chance.random() ** 2)


async def subscribe(cluster: Cluster, who: str, stop: trio.Event, seen: list[tuple[int, str, int, bool]]) -> None:
    """From the beginning; killed and resumed from its cursor now and then, so each event must come exactly once."""
    chance = random.Random(f"{cluster.seed}-{who}")
    cursor = MemoryCursor()
    servers = cluster.servers
    chance.shuffle(servers)
    while not stop.is_set():
        quota = 10**9 if who == "s0" or cluster.healed else chance.randint(20, 200)
        with trio.move_on_after(1e9 if who == "s0" or cluster.healed else 0.5 + 4 * chance.random()):
            async with open_subscription(
                FEED,
                servers,
                start="beginning",
                cursor=cursor,
                name=who,
                settings=SETTINGS,
                network=cluster.network.host(who),
                world=cluster.world(who),
            ) as subscription:
                async for event in subscription:
                    seen.append((event.seq, event.id, event.group, event.last))
                    await subscription.commit(event.position)
                    quota -= 1
                    if quota <= 0:
                        break


async def run_cluster(cluster: Cluster, plan: list[Step]) -> list[str]:
    """What was wrong, as sentences."""
    written = {"p0": Written(), "p1": Written()}
    seen: dict[str, list[tuple[int, str, int, bool]]] = {"s0": [], "s1": []}
    stop_publishing, stop_all = trio.Event(), trio.Event()
    problems: list[str] = []
    async with trio.open_nursery() as outer:
        for name in NAMES:
            outer.start_soon(cluster.keep, name, stop_all)
        for who, events in seen.items():
            outer.start_soon(subscribe, cluster, who, stop_all, events)
        with trio.move_on_after(CHAOS_S + HEAL_S) as patience:
            async with trio.open_nursery() as publishers:
                for who, groups in written.items():
                    publishers.start_soon(publish, cluster, who, stop_publishing, groups)
                async with trio.open_nursery() as chaos:
                    for step in plan:
                        await trio.sleep_until(step.at)
                        chaos.start_soon(cluster.harm, step)
                cluster.heal()
                await trio.sleep(1)
                stop_publishing.set()
            entries = [seq for one in written.values() for _, seqs in one.groups if seqs for seq in seqs]
            while any(not events or events[-1][0] < max(entries) for events in seen.values()):
                await trio.sleep(0.1)
        if patience.cancelled_caught:
            ends = {who: events[-1][0] if events else 0 for who, events in seen.items()}
            pending = {who: sum(seqs is None for _, seqs in one.groups) for who, one in written.items()}
            problems.append(
                f"did not converge within {HEAL_S:g} s after healing: subscribers {ends}, unsettled {pending}"
            )
        stop_all.set()
        outer.cancel_scope.cancel()
    return problems + check(cluster, written, seen)


def check(
    cluster: Cluster, written: dict[str, Written], seen: dict[str, list[tuple[int, str, int, bool]]]
) -> list[str]:
    from changefeed.wire.changes import decode_change, split

    log: list[tuple[int, str]] = []
    for entry in cluster.place.feeds[FEED].entries:
        for offset, data in enumerate(split(entry.payload)):
            log.append((entry.seq + offset, decode_change(data).id))
    problems = []
    if [seq for seq, _ in log] != list(range(1, len(log) + 1)):
        problems.append("the log is not dense")
    at = {id: seq for seq, id in log}
    if len(at) != len(log):
        problems.append(f"{len(log) - len(at)} changes are in the log twice")
    for who, one in written.items():
        newest = 0
        for ids, seqs in one.groups:
            places = [at.get(id) for id in ids]
            if seqs is not None and places != list(range(seqs[0], seqs[1] + 1)):
                problems.append(f"{who}: {ids} acknowledged at {seqs} stands at {places}")
            held = [place for place in places if place is not None]
            if held and (len(held) != len(ids) or held != list(range(held[0], held[0] + len(ids)))):
                problems.append(f"{who}: the group {ids} is torn: {places}")
            if held and held[0] <= newest:
                problems.append(f"{who}: {ids} stands before what was published earlier")
            newest = held[-1] if held else newest
    for who, events in seen.items():
        got = [(seq, id) for seq, id, _, _ in events]
        if got != log[: len(got)]:
            wrong = next((n for n, pair in enumerate(got) if n >= len(log) or pair != log[n]), len(log))
            problems.append(f"{who}: event {wrong} is {got[wrong : wrong + 2]}, the log has {log[wrong : wrong + 2]}")
    cluster.note(
        "end", log=len(log), acknowledged=sum(seqs is not None for one in written.values() for _, seqs in one.groups)
    )
    return problems


@contextmanager
def seeded_scheduler(seed: int) -> Iterator[None]:
    """Trio runs tasks in an order drawn from the seed: two private names, held by a test of ours."""
    from trio._core import _run  # type: ignore[attr-defined]

    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        _run._r.setstate(before[1])


def run_seed(seed: int) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Problems and trace of one seed."""
    plan = draw_plan(random.Random(f"{seed}-plan"))

    async def main() -> tuple[list[str], list[tuple[Any, ...]]]:
        cluster = Cluster(seed)
        for step in plan:
            cluster.note("plan", at=round(step.at, 3), kind=step.kind, target=step.target, lasts=round(step.lasts, 3))
        try:
            problems = await run_cluster(cluster, plan)
        except* ChangefeedError as group:
            problems = [f"an error left the cluster: {group.exceptions!r}"]
        return problems, cluster.trace

    with seeded_scheduler(seed):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--trace", action="store_true", help="print what happened, for one seed")
    parser.add_argument("--hash", action="store_true", help="print a hash of each seed's trace")
    options = parser.parse_args()
    failed, begun = [], time.monotonic()
    for seed in range(options.first, options.first + options.seeds):
        problems, trace = run_seed(seed)
        if options.trace:
            for line in trace:
                print(*line)
        if options.hash:
            print(f"seed {seed}: trace {hashlib.sha256(repr(trace).encode()).hexdigest()[:16]}")
        if problems:
            failed.append(seed)
            print(f"seed {seed}: {'; '.join(problems)[:500]}", flush=True)
        elif seed % 20 == 19:
            print(f"{seed + 1 - options.first} seeds, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{options.seeds} seeds, {len(failed)} failed{': ' + ', '.join(map(str, failed)) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
