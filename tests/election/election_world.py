"""Several instances of one feed under virtual time: real Electors on a coordinator and a log in memory.

What is faked: links (who hears whom, whose URL refuses), terms (a task that appends an entry every `APPEND_S`), frozen
processes (nothing of them runs; what was under way in the world goes on) and the kernel (a frozen process keeps the
log's lock; SIGKILL frees it). What is checked all the time: an epoch is fenced once, fences only grow, a term begins
only under a fence that it got, nothing is appended under another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

from changefeed.batch import Entry, Tail, batch_digest, chain
from changefeed.coordination import Coordinator, LeaderRecord, Member
from changefeed.coordination.memory import MemoryCoordination, MemoryCoordinator
from changefeed.election.driver import Elector
from changefeed.errors import AppendOutcomeUnknown, ChangefeedError, CoordinatorUnavailable, Fenced, LogUnavailable
from changefeed.log import Fence, Look
from changefeed.log.memory import MemoryFeedLog, MemoryLogStore, MemoryPlace
from changefeed.ports import SeededEntropy, World
from changefeed.settings import Settings
from changefeed.wire.messages import PeerBeat, Said

FEED = "vmapi"
APPEND_S = 0.05
CONNECT_S = 1.0
FIRST_PID = 1_000_000


class Process(Elector):
    """An Elector that can be frozen: what reaches it meanwhile waits, as in a socket's buffer, until it thaws."""

    node: Node

    def _tell(self, fact: Callable[..., None], *args: object) -> None:
        if self.node.dead:
            return
        if self.node.frozen:
            self.node.inbox.append((fact, args))
        else:
            super()._tell(fact, *args)

    async def _sleep(self) -> None:
        await super()._sleep()
        await self.node.gate()

    async def _kill(self, holder: Fence) -> str:
        return self.node.world.kernel_kill(holder)


@dataclass(eq=False)
class Node:
    """One process of one instance. Restarting an instance makes a new Node of the same name."""

    world: Cluster
    name: str
    candidate: bool = True
    kill_frozen: bool = False
    pid: int = 0
    process: str = ""
    frozen: bool = False
    dead: bool = False
    started: bool = False  # listens, and has an elector
    closed: bool = False  # left in good order: its listener is closed
    log_out: bool = False  # it alone cannot reach the log
    append_fails: bool = False
    append_every: float = APPEND_S
    lock_and_freeze: bool = False
    inbox: list[tuple[Callable[..., None], tuple[object, ...]]] = field(default_factory=list)
    heard: dict[str, float] = field(default_factory=dict)
    term: Term | None = None
    followed: LeaderRecord | None = None

    def __post_init__(self) -> None:
        world = self.world
        self.url = f"ws://{self.name}:1"
        self.process = world.entropy.token(4)
        self.pid = world.next_pid()
        self.thawed = trio.Event()
        self.news = trio.Event()
        self.retarget = trio.Event()
        self.scope = trio.CancelScope()
        self.over = trio.Event()
        self.coordinator: MemoryCoordinator = world.server_of(self.name).coordinator(alive=world.alive)
        self.store = MemoryLogStore(world.place, world.settings, world=world.world)
        self.store.hook = self._log_hook

    # -- life

    async def run(self) -> None:
        world = self.world
        with self.scope:
            member = Member(self.name, self.process, self.url, self.candidate, (FEED,))
            while True:
                try:
                    await self.coordinator.start(member)
                    break
                except CoordinatorUnavailable:
                    await trio.sleep(0.5)
            self.log: MemoryFeedLog = await self.store.open(FEED)
            coordinator: Coordinator = self.coordinator
            self.elector = Process(
                feed=FEED, coordinator=coordinator, log=self.log, member=member, hooks=self, settings=world.settings,
                world=world.world, candidate=self.candidate, kill_frozen=self.kill_frozen,
            )  # fmt: skip
            self.elector.node = self
            self.elector._machine._pid, self.elector._machine._pid_started = self.pid, 1
            self.started = True
            async with trio.open_nursery() as self.nursery:
                self.nursery.start_soon(self._links)
                await self.nursery.start(self.elector.run)
        self.over.set()

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more; its session lives on, its connections break, its URL refuses."""
        self.dead = True
        if self.world.lock is self:
            self.world.unlock()
        self.world.note("killed", self.name)
        self.coordinator.server.crash(self.coordinator)
        self.term = None
        self.scope.cancel()
        self.frozen = False
        self.thawed.set()
        self.ring()

    def freeze(self) -> None:
        self.frozen = True
        self.thawed = trio.Event()
        self.coordinator.server.disconnect(self.coordinator)
        self.world.note("frozen", self.name)

    def thaw(self) -> None:
        self.frozen = False
        self.coordinator.server.reconnect(self.coordinator)
        self.world.note("thawed", self.name)
        inbox, self.inbox = self.inbox, []
        for fact, args in inbox:
            self.elector._tell(fact, *args)
        self.thawed.set()

    async def gate(self) -> None:
        while self.frozen:
            await self.thawed.wait()

    async def close(self) -> None:
        """After a handover: the listener closes, the session is left, the process ends."""
        self.closed = True
        self.ring()
        self.scope.cancel()
        await self.over.wait()
        await self.coordinator.aclose()
        self.dead = True

    def ring(self) -> None:
        self.news.set()
        self.news = trio.Event()

    # -- the log as this process sees it

    async def _log_hook(self, point: str, feed: str) -> None:
        world = self.world
        await trio.sleep(world.entropy.random() * world.log_latency)
        if point == "append" and self.lock_and_freeze:
            self.lock_and_freeze = False
            world.lock = self
            self.freeze()
            await self.thawed.wait()
            if self.dead:
                raise LogUnavailable("killed inside a transaction: it is rolled back")
            world.unlock()
        began = trio.current_time()
        while world.log_stalled or (world.lock not in (None, self) and point in ("fence", "append")):
            if trio.current_time() - began >= world.settings.log_timeout_s and point == "fence":
                raise LogUnavailable("the log is locked")
            with trio.move_on_after(0.1):
                await world.log_bell.wait()
        if self.log_out and not point.endswith("done"):
            raise LogUnavailable("cut off from the log")
        if point == "append" and self.append_fails:
            raise AppendOutcomeUnknown("the disk failed")

    # -- hooks of the elector

    def start_term(self, fence: Fence, look: Look, why: str) -> None:
        assert not self.frozen and not self.dead
        self.world.term_began(self, fence, look, why)
        assert self.term is None, "a term began while another one ran"
        self.term = Term(self, fence, look)
        self.nursery.start_soon(self.term.run)
        self.ring()

    def end_term(self, why: str) -> None:
        if self.term is not None:
            self.world.note("term-ended", self.name, self.term.fence.epoch, why)
            self.term.scope.cancel()
            self.term = None
        self.ring()

    def follow(self, record: LeaderRecord | None) -> None:
        self.followed = record
        self.retarget.set()

    async def finish_term(self) -> None:
        if self.term is not None:
            await self.term.finish()

    async def ask_members(self, record: LeaderRecord) -> list[Said]:
        said: list[Said] = []
        waited = False
        await trio.sleep(self.world.latency() * 2)
        for other in self.world.nodes.values():
            if other is self or other.process == record.process or other.dead or not other.started:
                continue
            if other.frozen or not self.world.connected(self, other):
                waited = True
                continue
            heard = other.heard.get(record.process)
            said.append(Said(None if heard is None else trio.current_time() - heard, 0, other.process))
        if waited:
            await trio.sleep(CONNECT_S)
        return said

    # -- links

    def beat(self) -> PeerBeat:
        status = self.elector.status
        state, epoch, term = status.beat_state, status.epoch, status.term
        if self.term is not None:
            state, epoch, term = "leading", self.term.fence.epoch, self.term.fence.term
        elif state != "fencing":
            state, epoch, term = "following", 0, ""
        return PeerBeat(
            self.name, self.process, state, epoch, term, None, status.log_ok, status.log_slow_s, status.leaving
        )

    async def _links(self) -> None:
        while True:
            self.retarget = trio.Event()
            async with trio.open_nursery() as nursery:
                if self.followed is not None:
                    nursery.start_soon(self._link, self.followed)
                await self.retarget.wait()
                nursery.cancel_scope.cancel()

    async def _link(self, record: LeaderRecord) -> None:
        world, pause = self.world, 0.0
        while True:
            await trio.sleep(pause + world.latency())
            await self.gate()
            pause = min(max(0.05, pause * 2), 0.5)
            target = world.at_url(record.url)
            if target is not None and (target.frozen or not world.connected(self, target)):
                await trio.sleep(CONNECT_S)
                self.elector.link_silent(record.process)
            elif target is None or target.dead or target.closed:
                if world.reachable(self, record.url):
                    self.elector.link_refused(record.process)
                else:
                    await trio.sleep(CONNECT_S)
                    self.elector.link_silent(record.process)
            elif target.process != record.process:
                self.elector.link_foreign(record.process, target.process)
            else:
                self.elector.link_up(record.process)
                await self._converse(target)
                self.elector.link_closed(record.process)
                pause = 0.0

    async def _converse(self, target: Node) -> None:
        """Heartbeats both ways, at once when something changed, until one of the two is gone."""
        while not (target.dead or target.closed):
            if self.world.connected(self, target) and not target.frozen and not self.frozen:
                self.hear(target.beat())
                target.elector.follower_beat(self.beat())
            with trio.move_on_after(self.world.settings.peer_heartbeat_s):
                await target.news.wait()
            await trio.sleep(self.world.latency())
            await self.gate()

    def hear(self, beat: PeerBeat) -> None:
        if beat.state in ("leading", "fencing"):
            self.heard[beat.process] = trio.current_time()
        self.elector.link_beat(beat)


class Term:
    """Appends one entry after another, as long as the log lets it."""

    def __init__(self, node: Node, fence: Fence, look: Look) -> None:
        self.node, self.fence, self.tail = node, fence, look.tail
        self.scope = trio.CancelScope()
        self.finishing = False
        self.finished = trio.Event()
        self.hurry = trio.Event()

    async def run(self) -> None:
        node, why = self.node, "handover"
        with self.scope:
            try:
                while not self.finishing:
                    await node.gate()
                    await self._append()
                    await node.gate()
                    until = trio.current_time() + node.append_every
                    while trio.current_time() < until and not self.finishing:
                        with trio.move_on_at(min(until, trio.current_time() + APPEND_S)):
                            await self.hurry.wait()
                        until = min(until, trio.current_time() + node.append_every)
            except Fenced:
                why = "fenced"
            except AppendOutcomeUnknown:
                why = "outcome-unknown"
            except ChangefeedError as error:
                why = error.code
            await node.gate()
            self.finished.set()
            if node.term is self:
                node.term = None
                node.world.note("term-ended", node.name, self.fence.epoch, why)
            node.ring()
            node.elector.term_ended(self.fence.epoch, why)

    async def _append(self) -> None:
        node, tail = self.node, self.tail
        payload = b"x"
        made = Entry(
            self.fence.epoch, self.fence.term, tail.seq + 1, max(tail.time, node.world.wall()), "p", 1,
            tail.seq, tail.seq + 1, (1,), payload, batch_digest((1,), payload),
        )  # fmt: skip
        digest = chain(tail.digest, node.log.lineage, made)
        entry = Entry(**{**made.__dict__, "digest": digest})
        await node.log.append(self.fence.epoch, self.fence.term, tail.seq, [entry])
        self.tail = Tail(entry.last_seq, entry.epoch, entry.term, digest, entry.time)
        node.world.appended(node, self.fence)

    async def finish(self) -> None:
        self.finishing = True
        self.hurry.set()
        await self.finished.wait()


class Cluster:
    """The world around the nodes. `at` is virtual seconds; everything random comes from `entropy`."""

    def __init__(self, seed: int = 0, settings: Settings | None = None, *, servers: int = 1) -> None:
        self.settings = Settings() if settings is None else settings
        self.entropy = SeededEntropy(seed)
        self.world = World(entropy=self.entropy, wall_ms=self.wall)
        self.servers = [
            MemoryCoordination(self.entropy, session_s=10.0, answer_s=0.05, latency=self.latency)
            for _ in range(servers)
        ]
        self.place = MemoryPlace()
        self.nodes: dict[str, Node] = {}
        self.cut: set[frozenset[str]] = set()
        self.home: dict[str, int] = {}
        self.history: list[tuple[Any, ...]] = []
        self.terms: dict[int, tuple[str, str]] = {}
        self.appends: list[tuple[float, int, str]] = []
        self.log_latency = 0.004
        self.log_stalled = False
        self.log_bell = trio.Event()
        self.lock: Node | None = None
        self.kills = 0
        self._pid = FIRST_PID

    # -- world

    @staticmethod
    def wall() -> int:
        return 1_700_000_000_000 + int(trio.current_time() * 1000)

    def latency(self) -> float:
        return 0.0005 + self.entropy.random() * 0.004

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid

    @property
    def server(self) -> MemoryCoordination:
        return self.servers[0]

    def server_of(self, name: str) -> MemoryCoordination:
        return self.servers[self.home.get(name, 0)]

    async def alive(self, member: Member) -> bool:
        node = self.nodes.get(member.name)
        return node is not None and not node.dead and node.process == member.process

    def note(self, *what: Any) -> None:
        self.history.append((round(trio.current_time(), 4), *what))

    def connected(self, a: Node, b: Node) -> bool:
        return frozenset((a.name, b.name)) not in self.cut

    def reachable(self, node: Node, url: str) -> bool:
        """A machine that answers, if only with a refusal."""
        return all(
            frozenset((node.name, other.name)) not in self.cut for other in self.nodes.values() if other.url == url
        )

    def at_url(self, url: str) -> Node | None:
        return next(
            (n for n in self.nodes.values() if n.url == url and n.started and not n.dead and not n.closed), None
        )

    def kernel_kill(self, holder: Fence) -> str:
        node = next((n for n in self.nodes.values() if n.pid == holder.pid and not n.dead), None)
        if node is None:
            return "gone"
        if not node.frozen:
            return "not-frozen"
        if self.lock is not node:
            return "holds-no-lock"
        self.kills += 1
        node.kill()
        return "killed"

    def unlock(self) -> None:
        self.lock = None
        self.ring_log()

    def ring_log(self) -> None:
        self.log_bell.set()
        self.log_bell = trio.Event()

    # -- actions

    def start(self, nursery: trio.Nursery, name: str, **options: Any) -> Node:
        node = self.nodes[name] = Node(self, name, **options)
        self.note("started", name, node.process)
        nursery.start_soon(node.run)
        return node

    def partition(self, a: str, b: str) -> None:
        self.cut.add(frozenset((a, b)))
        self.note("cut", a, b)

    def heal(self) -> None:
        self.cut.clear()
        self.note("healed")

    # -- checks

    def term_began(self, node: Node, fence: Fence, look: Look, why: str) -> None:
        self.note("term-began", node.name, fence.epoch, why)
        assert fence.process == node.process
        assert fence.epoch not in self.terms, (
            f"epoch {fence.epoch} is led twice: {self.terms[fence.epoch]}, {node.name}"
        )
        self.terms[fence.epoch] = (node.name, fence.term)
        assert (look.fence.epoch, look.fence.term) == (fence.epoch, fence.term), "a term began without its fence"

    def appended(self, node: Node, fence: Fence) -> None:
        self.appends.append((trio.current_time(), fence.epoch, node.name))

    def check(self) -> None:
        """Safety, from the log itself."""
        data = self.place.feeds.get(FEED)
        if data is None:
            return
        epochs = [record.epoch for record in data.epochs]
        assert epochs == sorted(set(epochs)), f"fences must grow: {epochs}"
        stored = [entry.epoch for entry in data.entries]
        assert stored == sorted(stored), "entries of an older epoch stand behind newer ones"
        for entry in data.entries:
            assert self.terms.get(entry.epoch, ("", ""))[1] == entry.term, "an entry of a term that never began"

    def leader(self) -> Node | None:
        """The one node that leads in every respect, or None: it appends, the coordinator names it, all follow it."""
        live = [n for n in self.nodes.values() if n.started and not n.dead and not n.frozen]
        leading = [n for n in live if n.elector.status.role == "leading" and n.term is not None]
        if len(leading) != 1:
            return None
        node = leading[0]
        assert node.term is not None
        view = self.server_of(node.name).view(FEED)
        named = view.leader is not None and (view.leader.process, view.leader.epoch) == (
            node.process, node.term.fence.epoch
        )  # fmt: skip
        fence = self.place.feeds[FEED].fence
        fenced = (fence.epoch, fence.term) == (node.term.fence.epoch, node.term.fence.term)
        same = [n for n in live if self.server_of(n.name) is self.server_of(node.name)]
        followed = all(n.elector.status.leader == node.name for n in same)
        recent = node.append_every > 1 or (bool(self.appends) and self.appends[-1][1] == node.term.fence.epoch)
        return node if named and fenced and followed and recent else None

    async def settled_among(self, nodes: list[Node], within: float) -> Node:
        """Wait until one of these leads, as far as the log and itself are concerned."""
        with trio.fail_after(within):
            while True:
                for node in nodes:
                    if node.term is not None and self.place.feeds[FEED].fence.term == node.term.fence.term:
                        return node
                await trio.sleep(0.01)

    async def settled(self, within: float, *, but: str = "") -> Node:
        """Wait until there is a leader (of another name than `but`); fails with the history after `within` seconds."""
        end = trio.current_time() + within
        while trio.current_time() < end:
            node = self.leader()
            if node is not None and node.name != but:
                return node
            await trio.sleep(0.01)
        status = {n.name: ("dead" if n.dead or not n.started else n.elector.status) for n in self.nodes.values()}
        told = "\n".join(map(str, self.history[-60:]))
        raise AssertionError(f"no leader within {within} s\n{told}\n{status}\n{self.server.view(FEED)}")

    def gap_after(self, at: float) -> float:
        """Seconds from `at` to the first append after it."""
        return next(t for t, _, _ in self.appends if t > at) - at

    def longest_gap(self) -> float:
        times = [t for t, _, _ in self.appends]
        return max(b - a for a, b in pairwise(times))

    def changes(self) -> int:
        return len(self.terms)


def simulate(main: Callable[[Cluster, trio.Nursery], Awaitable[None]], seed: int = 0, **options: Any) -> Cluster:
    """Run `main` in a cluster of its own under virtual time; the same seed gives the same run."""
    found: list[Cluster] = []

    async def run() -> None:
        cluster = Cluster(seed, **options)
        found.append(cluster)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(100_000):  # a deadlock ends here, since virtual time jumps to it
                await main(cluster, nursery)
            cluster.check()
            nursery.cancel_scope.cancel()
        cluster.check()

    # trio has no public way to seed its scheduler; pyproject.toml pins trio for these two names.
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r.seed(seed)
    trio.run(run, clock=MockClock(autojump_threshold=0))
    return found[0]


__all__ = ["FEED", "Cluster", "Node", "simulate"]
