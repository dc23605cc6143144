"""What can go wrong in a run: each kind of fault, its number in the fault table, and what must be seen of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: What a kind may need: a network of our own, a proxy, the shim (a C compiler), a ZooKeeper ensemble, a small disk of
#: our own, a time namespace.
NETWORK, SHIM, ZOOKEEPER, FILE, DISK, TIME = "network", "shim", "zookeeper", "file", "disk", "time"
#: Faults of one lane come one after the other; lanes go side by side.
LEADER, OUTSIDE, CLIENTS = "leader", "outside", "clients"


@dataclass(frozen=True, slots=True)
class Kind:
    """numbers: in the fault table. weight: how often it is drawn. lasts: from and to, seconds. expects: effects of
    which one must be seen, unless there was nothing to harm. apart_s: before the next fault of its lane."""

    name: str
    numbers: str
    lane: str
    about: str
    needs: frozenset[str] = frozenset()
    weight: float = 1.0
    lasts: tuple[float, float] = (0.2, 0.8)
    expects: tuple[str, ...] = ()
    apart_s: float = 0.6


def _kind(name: str, numbers: str, lane: str, about: str, *needs: str, **more: object) -> Kind:
    return Kind(name, numbers, lane, about, frozenset(needs), **more)  # type: ignore[arg-type]


CHANGED: Final = "leader-changed"
_KINDS: Final = (
    # ---- processes of instances
    _kind("kill-leader", "F1", LEADER, "SIGKILL of the leader", weight=6.0, expects=(CHANGED,)),
    _kind("kill-follower", "F1", LEADER, "SIGKILL of an instance that does not lead", expects=("process-gone",)),
    _kind("kill-before-write", "F1", LEADER, "SIGKILL inside an append, before its first write", SHIM,
          expects=("process-gone",)),
    _kind("kill-after-sync", "F1 F13", LEADER, "SIGKILL between an append's sync and its receipts: answers lost",
          SHIM, expects=("process-gone",)),
    _kind("freeze-leader", "F2", LEADER, "SIGSTOP of the leader, SIGCONT after its successor acted", weight=3.0,
          lasts=(0.1, 1.0), expects=(CHANGED,)),
    _kind("freeze-in-append", "F2", LEADER, "SIGSTOP inside an append's write, holding the log's lock", SHIM,
          lasts=(0.1, 0.5), expects=("stopped-inside",)),
    _kind("freeze-after-sync", "F2 F13", LEADER, "SIGSTOP right after an append's sync", SHIM,
          lasts=(0.1, 0.5), expects=("stopped-inside",)),
    _kind("freeze-follower", "F2", LEADER, "SIGSTOP of an instance that does not lead", lasts=(0.5, 3.0),
          expects=("stopped",)),
    _kind("starve", "F21", LEADER, "bursts of SIGSTOP: 10 ms of work in 100 ms", lasts=(1.0, 3.0),
          expects=("stopped",)),
    _kind("rolling-restart", "F20", LEADER, "SIGTERM of each instance in turn, drained and started again", weight=0.4,
          expects=("drained",)),
    _kind("no-descriptors", "F22", LEADER, "the leader can open no more descriptors", lasts=(1.0, 2.5),
          expects=("limit-met",)),
    _kind("no-memory", "F22", LEADER, "the leader gets no more address space", lasts=(1.0, 2.0), weight=0.5,
          expects=("limit-met", "process-gone")),
    _kind("clock-jump", "F18", LEADER, "the wall clock jumps by up to an hour, and back", SHIM, lasts=(0.5, 3.0),
          expects=("clock-moved",)),
    # ---- the log's storage, as one instance sees it
    _kind("sync-error", "F14", LEADER, "a sync of the log fails and is not done", SHIM, expects=("error-met",)),
    _kind("sync-error-after", "F13 F14", LEADER, "a sync of the log is done, and yet reports an error: outcome unknown",
          SHIM, expects=("error-met",)),
    _kind("write-error", "F14", LEADER, "a write into the log fails with EIO", SHIM, expects=("error-met",)),
    _kind("slow-sync", "F14", LEADER, "each sync of the log takes 50 to 600 ms longer", SHIM, lasts=(1.0, 3.0),
          expects=("slowed",)),
    _kind("no-space-error", "F15", LEADER, "writes into the log fail with ENOSPC", SHIM, expects=("error-met",)),
    _kind("disk-full", "F15", LEADER, "the log's disk is full", DISK, lasts=(0.5, 2.0), expects=("refused-full",)),
    _kind("store-cut", "F3", LEADER, "the leader alone is cut off from the log: every call fails", SHIM,
          lasts=(2.0, 4.0), expects=("error-met",)),
    _kind("store-hang", "F3 F12", LEADER, "the leader alone gets no answer from the log", SHIM, lasts=(2.0, 7.0),
          expects=("hung",)),
    _kind("lock-held", "F12", LEADER, "a stranger, frozen, holds the log's lock: nobody can write", lasts=(0.8, 2.5),
          expects=("nothing-stored",)),
    # ---- the network
    _kind("partition", "F3", OUTSIDE, "an instance is cut off from all others, both ways", NETWORK, weight=2.0,
          lasts=(2.0, 5.0), expects=("packets-lost",)),
    _kind("partition-out", "F3", OUTSIDE, "nothing that an instance sends arrives", NETWORK, weight=2.0,
          lasts=(2.0, 5.0), expects=("packets-lost",)),
    _kind("partition-in", "F3", OUTSIDE, "nothing arrives at an instance", NETWORK, weight=2.0,
          lasts=(2.0, 5.0), expects=("packets-lost",)),
    _kind("cut-coordinator", "F3", OUTSIDE, "an instance is cut off from ZooKeeper alone", NETWORK, ZOOKEEPER,
          weight=2.0, lasts=(2.0, 5.0), expects=("packets-lost",)),
    _kind("cut-subscriber", "F3", OUTSIDE, "a subscriber is cut off", NETWORK, lasts=(1.0, 4.0),
          expects=("packets-lost",)),
    _kind("vanish", "F5", OUTSIDE, "an instance dies while it is cut off: its connections stay half open", NETWORK,
          lasts=(0.5, 2.0), expects=("process-gone",)),
    _kind("black-hole", "F4", OUTSIDE, "one established flow of an instance is swallowed, new ones pass", NETWORK,
          lasts=(2.0, 5.0), expects=("packets-lost",)),
    _kind("reset-flows", "F5", OUTSIDE, "every flow to an instance is reset", NETWORK, lasts=(0.1, 0.4),
          expects=("packets-lost",)),
    _kind("loss", "F6", OUTSIDE, "3 to 30 % of an instance's packets are lost", NETWORK, lasts=(1.5, 4.0),
          expects=("packets-lost",)),
    _kind("narrow", "F8", OUTSIDE, "little bandwidth into an instance", NETWORK, lasts=(1.5, 4.0),
          expects=("packets-delayed",)),
    _kind("delay", "F7", OUTSIDE, "delay and jitter through the proxy in front of an instance", lasts=(1.5, 4.0),
          expects=("bytes-delayed",)),
    _kind("proxy-reset", "F5", OUTSIDE, "the proxy's flows are reset", expects=("flows-cut",)),
    _kind("half-close", "F5", OUTSIDE, "the proxy half-closes its flows, and swallows the rest", lasts=(1.0, 3.0),
          expects=("flows-cut",)),
    # ---- the coordinator
    _kind("kill-zookeeper", "F1 F11", OUTSIDE, "SIGKILL of a ZooKeeper server, often of its leader", ZOOKEEPER,
          weight=4.0, expects=("server-gone",)),
    _kind("quorum-lost", "F11", OUTSIDE, "two of three ZooKeeper servers stand still or are gone", ZOOKEEPER,
          lasts=(1.5, 4.0), expects=("no-quorum", "servers-stopped")),
    _kind("expire-session", "F9", OUTSIDE, "an instance's ZooKeeper session expires", NETWORK, ZOOKEEPER, weight=4.0,
          expects=("session-expired",)),
    _kind("delete-leader-node", "F10", OUTSIDE, "the leader's node is deleted in ZooKeeper", ZOOKEEPER,
          expects=(CHANGED,)),
    _kind("wipe-zookeeper", "F10", OUTSIDE, "ZooKeeper loses its data", ZOOKEEPER, weight=0.4,
          expects=("coordinator-lost-its-data",)),
    _kind("restore-zookeeper", "F10", OUTSIDE, "ZooKeeper gets an older copy of its data", ZOOKEEPER, weight=0.4,
          expects=("coordinator-went-back",)),
    _kind("tear-record", "F10", OUTSIDE, "the file coordinator's record is torn or deleted", FILE, expects=(CHANGED,)),
    # ---- clients
    _kind("kill-publisher", "F1", CLIENTS, "SIGKILL of a publisher", weight=2.0, expects=("process-gone",)),
    _kind("kill-subscriber", "F1", CLIENTS, "SIGKILL of a subscriber", weight=4.0, expects=("process-gone",)),
    _kind("freeze-publisher", "F2", CLIENTS, "SIGSTOP of a publisher", lasts=(0.5, 4.0), expects=("stopped",)),
    _kind("freeze-subscriber", "F2 F23", CLIENTS, "SIGSTOP of a subscriber: the slowest reader", lasts=(1.0, 6.0),
          weight=2.0, expects=("stopped",)),
    _kind("never-read", "F23", CLIENTS, "subscribers that never read a byte", lasts=(1.0, 3.0), weight=2.0,
          expects=("backed-up", "cut-off")),
    _kind("crowd", "F23", CLIENTS, "some hundred subscribers connect at once, and go", weight=0.7,
          expects=("welcomed",)),
    _kind("garbage", "F24", CLIENTS, "bad frames, foreign and future positions, replayed and oversized publishes",
          weight=2.0, expects=("refused",)),
)  # fmt: skip
KINDS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in _KINDS}

#: What the whole of a run shows besides its kinds: done once, or all the time.
ALWAYS: Final = (
    ("F17", "a byte of a copy of the log is flipped: walking it must say so (once per round, at the end)"),
    ("F19", "instances have different monotonic clocks (time namespaces; all the time)"),
)
#: What is not here, and where it is instead.
ELSEWHERE: Final = (
    ("F7", "netem is not in this kernel: delay and jitter come from a proxy in user space, so packets of one "
           "connection are never reordered"),
    ("F16", "power loss: simulations/power_loss.py"),
    ("F20", "mixed versions: there is only one release yet; rolling restarts are here"),
    ("F12", "a store that is a server (PostgreSQL): there is none yet; here the store is a file whose lock is held"),
)  # fmt: skip


def available(have: frozenset[str]) -> dict[str, Kind]:
    """The kinds for which everything is there."""
    return {name: kind for name, kind in KINDS.items() if kind.needs <= have}


def of_numbers(numbers: set[str]) -> set[str]:
    """Names of the kinds that have one of these numbers ("F2") or names. Raises ValueError for what is neither."""
    chosen = {name for name, kind in KINDS.items() if name in numbers or numbers & set(kind.numbers.split())}
    known = {number for kind in KINDS.values() for number in kind.numbers.split()} | set(KINDS)
    if numbers - known:
        raise ValueError(f"no such fault: {', '.join(sorted(numbers - known))}; there are {', '.join(sorted(known))}")
    return chosen
