"""What a seed of the stack tier does: the cluster tier's workload and faults, smaller, and faults of bytes and disks.

Kinds of its own (the others are cluster.drawing's):

    reset            every stream between two hosts is reset, at both ends, what is under way is cut at any byte
    break-off        after so many bytes more each stream from one to another is reset, ends or falls silent
    vanish           an instance's machine loses its network and its processes: silence, resets once it is back
    stranger         an instance is killed, and something else answers at its port
    ask-status       somebody asks an instance for its status over plain HTTP, again and again
    garbage          a peer that sends noise, half a handshake, torn and impossible frames, or reads nothing
    power-loss       all instances die within a write; their log is what the disk had; silence until they are back
    disk-error       calls of the disk fail: a sync, a write, or there is no room
"""

from __future__ import annotations

import random
from typing import Any, Final

from changefeed.simulation.cluster import drawing as cluster
from changefeed.simulation.plan import Plan, Step

BYTE_KINDS: Final = ("reset", "break-off", "break-off", "vanish", "stranger", "garbage", "garbage", "ask-status")
DISK_KINDS: Final = ("power-loss", "disk-error")
#: Of the cluster tier's kinds, those that meet bytes: drawn here too, and more often.
PROCESS_KINDS: Final = (
    "kill",
    "kill-at",
    "freeze",
    "freeze-at",
    "freeze-at",
    "drain",
    "drain",
    "cut",
    "cut-way",
    "kill-client",
    "freeze-client",
    "slow-append",
    "unknown-append",
)
#: Of the cluster tier's kinds, those that a SQLite log does not know as they are meant there: a copy of its files that
#: is put back under running processes.
LEFT_OUT: Final = frozenset({"put-back"})
KINDS: Final = tuple(
    dict.fromkeys((*(kind for kind in cluster.KINDS if kind not in LEFT_OUT), *BYTE_KINDS, *DISK_KINDS))
)
#: Where a leader is frozen.
APPENDING: Final = ("log: append", "log: append", "log: append done", "append", "log: fence")
#: What a hostile client does (strangers.py), and what a stranger at an instance's port answers.
MANNERS: Final = (
    "noise",
    "noise after a handshake",
    "half a handshake",
    "a flipped handshake",
    "half a frame",
    "a flipped head",
    "an impossible size",
    "an unmasked frame",
    "no message",
    "many pings",
    "a hello and deafness",
    "plain requests",
)
ANSWERS: Final = ("noise", "closes", "resets", "silence", "half a handshake", "404", "a wrong accept", "a redirect")


def draw(seed: int) -> Plan:
    """The plan of a seed. Its workload is that of the cluster tier's seed of another name."""
    chance = random.Random(f"{seed}-stack-plan")
    base = cluster.draw(chance.getrandbits(48))
    options = dict(base.options)
    # Every client here is a process of its own, beyond a socket.
    options.pop("homes", None)
    options["chaos_s"] = min(options["chaos_s"], round(chance.uniform(1.0, 2.2), 2))
    options["groups"] = min(options["groups"], chance.randint(3, 9))
    # A run in which nobody reads shows nothing.
    options["readers"] = [{**options["readers"][0]}, *options["readers"][1:]]
    options["readers"][0].pop("late", None)
    options |= _weather(chance, options["way_s"])
    clients = [*options["publishers"], *(reader["who"] for reader in options["readers"])]
    clients += [reader["who"] for reader in options.get("listers", ())]
    options["json"] = [who for who in clients if chance.random() < 0.35]
    steps = _steps(chance, options, clients)
    if chance.random() < 0.4:
        end = cluster.BEGIN_S + options["chaos_s"]
        kept = [step for step in base.steps if chance.random() < 0.6 and step.at < end and step.kind in KINDS]
        steps = sorted([*steps, *kept], key=lambda step: step.at)
    options["disk"] = any(step.kind in DISK_KINDS for step in steps)
    return Plan(tuple(steps), tuple(options.items()))


def _weather(chance: random.Random, way_s: float) -> dict[str, Any]:
    small = (4096, 4096, 16384, 65536, 262144) if way_s < 0.01 else (32768, 65536, 262144)
    return {
        "buffer_bytes": chance.choice(small),
        "bytes_s": chance.choice((3e5, 3e6, 1e8, 1e8)),
        "splits": chance.choice((0, 1, 3)),
        "short_reads": chance.choice((0.0, 0.05, 0.3)),
        #: Bytes that are added to a change's body.
        "pad": chance.choice((0, 0, 200, 2000, 8000)),
    }


def _steps(chance: random.Random, options: dict[str, Any], clients: list[str]) -> list[Step]:
    instances = cluster.NAMES[: options["instances"]]
    kinds = chance.sample(BYTE_KINDS, chance.choice((1, 2, 2))) + chance.sample(PROCESS_KINDS, chance.choice((0, 1, 2)))
    if chance.random() < 0.25:
        kinds.append(chance.choice(DISK_KINDS))
    steps, at = [], cluster.BEGIN_S * chance.random() + 0.4
    for _ in range(chance.choice((1, 2, 2, 3, 4))):
        steps.append(_step(chance, chance.choice(kinds), round(at, 3), instances, clients))
        if chance.random() < 0.7:
            at += options["chaos_s"] * chance.random() ** 2
    if chance.random() < 0.12:
        # What is under way at a frozen leader meets another's term.
        at = round(0.3 + 0.5 * chance.random(), 3)
        steps.append(Step(at, "freeze-at", "leader", round(1.8 + chance.random(), 3), chance.choice(APPENDING)))
    return sorted(steps, key=lambda step: step.at)


def _step(chance: random.Random, kind: str, at: float, instances: tuple[str, ...], clients: list[str]) -> Step:
    lasts = round(0.05 + 1.5 * chance.random() ** 2, 3)
    target = "leader" if chance.random() < 0.6 else chance.choice(instances)
    other = chance.choice((*instances, *clients))
    match kind:
        case "reset":
            how = other
        case "break-off":
            size = chance.choice((chance.randint(1, 12), chance.randint(1, 300), chance.randint(1, 3000)))
            how = f"{other} {chance.choice(('out', 'in'))} {size} {chance.choice(('reset', 'end', 'silence'))}"
        case "stranger":
            how = chance.choice(ANSWERS)
        case "garbage":
            how = chance.choice(MANNERS)
        case "power-loss":
            target, how = "", str(chance.choice((0, 1, 2, 3, 5, 8, 13, 99)))
        case "disk-error":
            target, how = "", f"{chance.choice(('sync', 'sync', 'write', 'full'))} {chance.choice((1, 1, 2, 5))}"
        case "kill-at":
            how = chance.choice(cluster.POINTS)
        case "cut" | "cut-way":
            how = chance.choice(("one", "all", "clients"))
        case "freeze" | "freeze-at":
            # Long enough that another takes over, in most cases: what it had under way then meets another's term.
            how = chance.choice(APPENDING) if kind == "freeze-at" else ""
            lasts += chance.choice((0.0, 1.2, 1.2))
        case "kill-client" | "freeze-client":
            target, how = chance.choice(clients), ""
            lasts *= 2
        case "unknown-append":
            how = chance.choice(("before", "after"))
        case _:
            how = ""
    return Step(at, kind, target, round(lasts, 3), how)
