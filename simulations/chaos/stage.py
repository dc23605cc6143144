"""Everything that stands in one round, and where faults take hold of it."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from changefeed.testing.processes import free_port
from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble
from changefeed.wire import JSON, MSGPACK
from simulations.chaos.nodes import instance, proxy, publisher, subscriber
from simulations.chaos.processes import Node
from simulations.chaos.recorder import Recorder
from simulations.chaos.sandbox import Network
from simulations.chaos.shim import Switches

FEED: Final = "chaos"
INSTANCES: Final = ("a", "b", "c")
SERVERS: Final = ("z1", "z2", "z3")
PORT: Final = 7557
#: Of instances and clients; everything else has its default. Time-outs of seconds instead of tens of seconds, so that a
#: round of a minute holds many faults; suspicion, heartbeats between instances and the log's time-out are the defaults.
SETTINGS: Final[dict[str, Any]] = {
    "heartbeat_s": 1.0,
    "heartbeat_dead_s": 3.0,
    "stall_after_s": 4.0,
    "handshake_s": 4.0,
    "stale_after_s": 2.0,
    "reconnect_max_s": 1.0,
    "drain_s": 6.0,
    "redirect_spread_s": 1.0,
    "coordinator_session_s": 2.0,
    "challenge_backoff_max_s": 2.0,
    "cursor_interval_s": 0.3,
    "cursor_events": 200,
    "retention_every_s": 0.5,
}
#: A process that should run and does not is started again after so long.
RESTART_S: Final = 0.15
LOOK_S: Final = 0.01
#: How far the monotonic clocks of instances are ahead of the machine's, where time namespaces are available.
AHEAD_S: Final = {"a": 0, "b": 1_000_000, "c": 77}
#: Kinds that cannot miss: their effect is the harness's own doing, or is owed by the product.
MUST_HIT: Final = frozenset({
    "kill-leader", "kill-follower", "freeze-leader", "vanish", "rolling-restart", "kill-publisher",
    "kill-subscriber", "freeze-publisher", "freeze-subscriber", "kill-zookeeper"
})  # fmt: skip
#: How long the next leader may take: where ZooKeeper lost its data as well, two-coordinators is waited for (10 s).
LEADER_S: Final = 25.0
_AUDIT: Final = (
    "CREATE TABLE IF NOT EXISTS chaos_commits (place INTEGER PRIMARY KEY, epoch INTEGER, term TEXT, first INTEGER,"
    " last INTEGER, fence INTEGER, fence_term TEXT, wall_ms INTEGER)",
    "CREATE TRIGGER IF NOT EXISTS chaos_commit AFTER INSERT ON entries BEGIN INSERT INTO chaos_commits"
    " (epoch, term, first, last, fence, fence_term, wall_ms) SELECT NEW.epoch, NEW.term, NEW.seq, NEW.last_seq, epoch,"
    " term, CAST(strftime('%s', 'now') || substr(strftime('%f', 'now'), 4, 3) AS INTEGER) FROM fence; END",
    "CREATE TABLE IF NOT EXISTS chaos_trims (place INTEGER PRIMARY KEY, floor INTEGER, wall_ms INTEGER)",
    "CREATE TRIGGER IF NOT EXISTS chaos_trim AFTER UPDATE ON ends WHEN NEW.name = 'floor' AND NEW.seq > OLD.seq BEGIN"
    " INSERT INTO chaos_trims (floor, wall_ms) VALUES (NEW.seq,"
    " CAST(strftime('%s', 'now') || substr(strftime('%f', 'now'), 4, 3) AS INTEGER)); END",
)


@dataclass
class Doing:
    """A fault that is being done."""

    id: str
    kind: str
    stage: Stage
    seen: list[str] = field(default_factory=list)

    def effect(self, what: str, **facts: Any) -> None:
        """What was seen of it."""
        self.seen.append(what)
        self.stage.records.write("effect", id=self.id, what=what, **facts)


class Stage:
    """One round's processes. folder: everything that they write. have: what this machine offers (see kinds.py)."""

    def __init__(
        self, folder: Path, network: Network, have: frozenset[str], seed: int, *,
        ensemble: ZookeeperEnsemble | None, chroot: str, library: Path | None, per_s: float,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.network = network
        self.have = have
        self.seed = seed
        self.ensemble = ensemble
        self.log_folder = folder / "log"
        self.log_folder.mkdir(parents=True, exist_ok=True)
        self.history = folder / "history"
        self.history.mkdir(exist_ok=True)
        self.records = Recorder(self.history / "nemesis.jsonl", "nemesis", 1, "")
        self.coordinator = f"file:{folder / 'coordinator'}" if ensemble is None else ensemble.url(chroot)
        self.chroot = chroot
        self.crashes: list[str] = []
        self.held: set[str] = set()
        self.closing = False
        self.switches: dict[str, Switches] = {}
        self.ports = {name: PORT if network.own else free_port() for name in INSTANCES}
        self._library = library
        self.doings: list[Doing] = []
        self.instances = {name: self._instance(name) for name in INSTANCES}
        self.proxy = self._proxy()
        self.publishers = self._publishers(per_s)
        self.subscribers = self._subscribers()
        self.strangers = 0
        self.wrong: list[str] = []
        self.lineage = ""

    # ---- the nodes

    @property
    def nodes(self) -> dict[str, Node]:
        return {**self.instances, **self.publishers, **self.subscribers, "x": self.proxy}

    def url(self, name: str) -> str:
        return f"ws://{self.network.nodes[name]}:{self.ports[name]}"

    @property
    def servers(self) -> str:
        return ",".join(self.url(name) for name in INSTANCES)

    @property
    def proxied(self) -> str:
        """The same servers through the proxy."""
        return ",".join(f"ws://{self.network.nodes['x']}:{port}" for port in self._targets)

    def _node(self, name: str, module: str, gauges: tuple[str, ...], given: Callable[[int], dict[str, Any]],
              **more: Any) -> Node:  # fmt: skip
        self.network.add(name)
        return Node(name, f"simulations.chaos.nodes.{module}", self.history, gauges, given,
                    within=self.network.within(name), **more)  # fmt: skip

    def _instance(self, name: str) -> Node:
        self.network.add(name)
        environment = {}
        if self._library is not None:
            self.switches[name] = Switches(self.folder / f"{name}.switches")
            environment = self.switches[name].environment(self._library, self.log_folder)
        ahead_s = AHEAD_S[name] if "time" in self.have else 0

        def given(life: int) -> dict[str, Any]:
            return {
                "feed": FEED,
                "log": f"sqlite:{self.log_folder}",
                "coordinator": self.coordinator,
                "listen": f"{self.network.nodes[name]}:{self.ports[name]}",
                "advertise": None,
                "settings": SETTINGS,
                "ahead_ns": ahead_s * 10**9,
            }

        return self._node(name, "instance", instance.GAUGES, given, environment=environment, ahead_s=ahead_s)

    def _proxy(self) -> Node:
        address = self.network.add("x")
        self._targets = {free_port(): (self.network.nodes[name], self.ports[name]) for name in INSTANCES}
        return self._node("x", "proxy", proxy.SWITCHES, lambda life: {"host": address, "targets": self._targets})

    def _publishers(self, per_s: float) -> dict[str, Node]:
        """Two named, two unnamed; alone and in groups; far ahead of their receipts and one after the other."""

        def one(name: str, servers: str, **more: Any) -> tuple[str, Node]:
            def given(life: int) -> dict[str, Any]:
                return {"feed": FEED, "servers": servers, "seed": self.seed, "settings": SETTINGS, **more}

            return name, self._node(name, "publisher", publisher.GAUGES, given)

        return dict([
            one("p1", self.servers, named=True, per_s=per_s * 0.4, sizes=[10, 60], ahead=64),
            one("p2", self.servers, named=False, per_s=per_s * 0.35, sizes=[1, 60], ahead=16),
            one("p3", self.proxied, named=True, per_s=per_s * 0.15, sizes=[1, 40], ahead=8, subprotocol=JSON),
            one("p4", self.url("b"), named=False, per_s=per_s * 0.1, sizes=[1, 5], ahead=1),
        ])  # fmt: skip

    def _subscribers(self) -> dict[str, Node]:
        """All of it in a database; all of it by JSON through the proxy, with a file cursor; two with filters."""

        def one(name: str, kind: str, servers: str, **more: Any) -> tuple[str, Node]:
            store = self.folder / f"{name}.{'db' if kind == 'sqlite' else 'cursor'}"

            def given(life: int) -> dict[str, Any]:
                return {"feed": FEED, "servers": servers, "kind": kind, "store": str(store),
                        "settings": SETTINGS, **more}  # fmt: skip

            return name, self._node(name, "subscriber", subscriber.GAUGES, given)

        return dict([
            one("s1", "sqlite", self.servers, subprotocol=MSGPACK),
            one("s2", "file", self.proxied, subprotocol=JSON),
            one("s3", "sqlite", self.servers, filter={"resources": {"vm": ["state"], "nic": []}}, slow_s=0.3),
            one("s4", "file", self.servers, filter={"ops": ["delete"]}),
        ])  # fmt: skip

    # ---- life

    async def begin(self, within_s: float = 40.0) -> None:
        """Start everything; returns when the instances are ready and receipts and deliveries flow."""
        self.proxy.start()
        for node in self.instances.values():
            node.start()
        await self.until(lambda: all(self.ready(node) for node in self.instances.values()), within_s, "instances start")
        self._audit()
        for node in (*self.publishers.values(), *self.subscribers.values()):
            node.start()
        await self.until(
            lambda: all(node.gauge.get("acked") for node in self.publishers.values())
            and all(node.gauge.get("events") for node in self.subscribers.values()),
            within_s, "receipts and deliveries",
        )  # fmt: skip

    def _audit(self) -> None:
        """Let the log itself note, inside of each commit, which fence stood."""
        with sqlite3.connect(self.log_file, timeout=10) as connection:
            for statement in _AUDIT:
                connection.execute(statement)
            self.lineage = connection.execute("SELECT lineage FROM feed").fetchone()[0]
        connection.close()

    @property
    def log_file(self) -> Path:
        return self.log_folder / f"{FEED}.db"

    async def supervise(self) -> None:
        """Start again what should run and does not, unless a fault holds it; note what ended by itself."""
        while True:
            await trio.sleep(LOOK_S)
            for node in self.nodes.values():
                if node.wanted and not node.running and node.name not in self.held:
                    self.note_end(node)
                    await trio.sleep(RESTART_S)
                    if node.wanted and not node.running and node.name not in self.held:
                        node.start()

    def note_end(self, node: Node, allowed: tuple[int, ...] = ()) -> None:
        """An end by SIGKILL is somebody's doing (ours, or a lock holder's successor's); readers may begin anew."""
        if node.status not in (-signal.SIGKILL, subscriber.ANEW, *allowed):
            self.crashes.append(f"{node.name} (life {node.life}) ended with status {node.status}; {node.said(8)}")
        if node.name in self.publishers:
            self.records.write_for(node.name, node.life, "quit", abandoned=True)
        elif node.name in self.subscribers:
            self.records.write_for(node.name, node.life, "quit")

    def end(self) -> None:
        """SIGKILL whatever runs."""
        for node in self.nodes.values():
            node.wanted = False
            node.kill()

    # ---- what is seen

    @staticmethod
    def ready(node: Node) -> bool:
        return node.running and bool(node.gauge.get("ready"))

    def leader(self) -> Node | None:
        """Who leads now, as far as it shows: of those that run and say so, the one with the highest epoch."""
        leading = [node for node in self.instances.values() if node.running and node.gauge.get("leading")]
        best = max(leading, key=lambda node: node.gauge.get("epoch"), default=None)
        return best if best is not None and best.gauge.get("epoch") == self.epoch() else None

    def epoch(self) -> int:
        return max(node.gauge.get("epoch") for node in self.instances.values())

    def acked(self) -> int:
        return sum(node.gauge.get("acked") for node in self.publishers.values())

    def delivered(self) -> int:
        return sum(node.gauge.get("events") for node in self.subscribers.values())

    def tail(self) -> int:
        return max(node.gauge.get("tail") for node in self.instances.values())

    async def until(self, reached: Callable[[], bool], within_s: float, what: str = "") -> bool:
        """Whether it came true in time; looked at again and again. what: raise TimeoutError that names it instead."""
        with trio.move_on_after(within_s):
            while not reached():  # noqa: ASYNC110 - other processes notify nobody
                await trio.sleep(LOOK_S)
            return True
        if what:
            said = "; ".join(f"{node.name} {node.said(2)}" for node in self.instances.values())
            raise TimeoutError(f"not within {within_s:g} s: {what}. {said}")
        return False

    async def working(self, within_s: float = LEADER_S) -> bool:
        """Wait until somebody leads and receipts flow; whether it was so in time."""
        before = self.acked()
        return await self.until(lambda: self.leader() is not None and self.acked() > before, within_s)

    # ---- faults

    @asynccontextmanager
    async def fault(
        self, kind: str, target: str, expects: tuple[str, ...], hold: tuple[str, ...] = (), **on: Any
    ) -> AsyncIterator[Doing]:
        """Record a fault from its beginning to its end; the supervisor leaves the nodes in `hold` alone meanwhile."""
        may_miss = () if kind in MUST_HIT else ("missed",)
        doing = Doing(f"f{len(self.doings) + 1}", kind, self)
        self.doings.append(doing)
        self.held.update(hold)
        # A fault may meet nothing (the leader was just replaced); those are counted apart.
        self.records.write("fault", id=doing.id, kind=kind, target=target, on=on, expects=[*expects, *may_miss])
        try:
            yield doing
        finally:
            self.held.difference_update(hold)
            self.records.write("over", id=doing.id)

    def aim(self, target: str, chance: random.Random) -> Node:
        """The leader if that is aimed at and known, else any instance."""
        leader = self.leader()
        if target == "leader" and leader is not None:
            return leader
        return self.instances[chance.choice(INSTANCES)]

    async def leader_changed(self, doing: Doing, before: int, within_s: float = LEADER_S) -> bool:
        """Wait until somebody leads in a later epoch than `before`, and say so."""

        def changed() -> bool:
            leader = self.leader()
            return leader is not None and leader.gauge.get("epoch") > before

        found = await self.until(changed, within_s)
        if found:
            leader = self.leader()
            doing.effect("leader-changed", epoch=self.epoch(), leader=leader.name if leader else "")
        return found

    def restart(self, node: Node) -> None:
        """Note the end of a node and start it again."""
        if node.running or self.closing:
            return
        self.note_end(node)
        node.start()

    @contextmanager
    def switched(self, name: str, **values: int) -> Iterator[Switches]:
        """Set an instance's switches, and clear them in any case."""
        switches = self.switches[name]
        for field_name, value in values.items():
            switches.set(field_name, value)
        try:
            yield switches
        finally:
            switches.clear()


def lowest_free_descriptor(pid: int) -> int:
    """The number that the process's next descriptor will have."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(taken) + 1) if number not in taken)
