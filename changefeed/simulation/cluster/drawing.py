"""What a seed does: the swarm's switches and the faults, drawn before anything runs (pure).

Each seed switches a few kinds of faults on, and a few of everything else: so rare pairs meet often. All chances of a
plan come from one stream; a run draws from others, so that leaving a step out does not shift them.
"""

from __future__ import annotations

import random
from typing import Any, Final

from changefeed.simulation.plan import Plan, Step

NAMES: Final = ("a", "b", "c")
PUBLISHERS: Final = ("p0", "p1", "p2")
READERS: Final = ("s0", "s1", "s2")
LISTERS: Final = ("l0", "l1")
#: The cluster starts, elects and is connected to before the first fault.
BEGIN_S: Final = 0.6

#: What is done to an instance.
INSTANCE_KINDS: Final = (
    "kill",
    "freeze",
    "drain",
    "drain-all",
    "kill-all",
    "cut",
    "cut-way",
    "cut-coordinator",
    "isolate",
    "drop-links",
    "expire",
    "delete-record",
    "lost-reply",
    "held-watches",
    "unknown-append",
    "unknown-fence",
    "unknown-incarnation",
    "slow-append",
    "log-outage",
    "kill-at",
    "freeze-at",
)
#: What is done to a part that all share; it has no target.
SHARED_KINDS: Final = (
    "quorum",
    "wipe",
    "read-only",
    "slow-coordinator",
    "older-coordinator",
    "log-outage-all",
    "disk-full",
    "put-back",
    "slow-network",
    "reconnect-all",
    "clock-jump",
)
#: What is done to a client.
CLIENT_KINDS: Final = ("kill-client", "freeze-client", "cut-client", "slow-reader")
KINDS: Final = INSTANCE_KINDS + SHARED_KINDS + CLIENT_KINDS
#: Kinds that are on more often than the others: the bugs that somebody could write hide behind these (mutants.md).
OFTEN: Final = {
    "kill": 3,
    "freeze": 4,
    "isolate": 4,
    "kill-at": 3,
    "unknown-append": 2,
    "slow-append": 2,
    "kill-client": 4,
    "put-back": 2,
    "quorum": 2,
    "slow-coordinator": 3,
    "disk-full": 2,
}

#: Named steps of the production code at which a process is killed or frozen: traces, and calls of the log.
POINTS: Final = (
    "elected",
    "fence",
    "term-start",
    "term-end",
    "append",
    "visible",
    "deposed",
    "repeat",
    "coordinator-write",
    "log: fence",
    "log: fence done",
    "log: append",
    "log: append done",
    "log: open_publisher",
    "log: open_publisher done",
    "log: look",
)
#: Steps that are only passed when the leader changes; something is done that makes it.
ELECTION_POINTS: Final = frozenset(POINTS[:4]) | {"deposed", "coordinator-write", "log: fence", "log: fence done"}
#: Where a drawn pause may be put, if its seed has it on: calls of the log and of the coordinator, which take longer
#: then; and named steps of an instance's code ("step: …"), behind which the whole process stands still for a moment.
PAUSES: Final = (
    "fence",
    "fence done",
    "append",
    "append done",
    "open_publisher",
    "open_publisher done",
    "look",
    "read",
    "find_batch",
    "publisher_state",
    "last_number",
    "open",
    "settings",
    "trim",
    "trim done",
    "coordinator",
    "step: elected",
    "step: fence",
    "step: term-start",
    "step: term-end",
    "step: append",
    "step: visible",
    "step: deposed",
    "step: coordinator-write",
)
FILTERS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {},
    {"ops": ["create"]},
    {"resources": {"nic": []}},
    {"resources": {"vm": ["state"]}},
    {"ids": ["p0-3", "p2-7"]},
)


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    chance = random.Random(f"{seed}-plan")
    options = _options(chance)
    if options["keep"] is not None:
        # What is kept of a named publisher goes with its last entry: a rerun after that is as new as any other.
        options["named"] = ""
    _cursors(random.Random(f"{seed}-cursors"), options)
    _homes(random.Random(f"{seed}-homes"), options)
    _listers(random.Random(f"{seed}-listers"), options)
    steps = _steps(chance, options)
    if any(step.kind == "put-back" for step in steps):
        # What such a reader applied and had not saved is of a log that is gone, and nothing can tell it so.
        for reader in options["readers"]:
            reader.pop("saves", None)
    # Publishing goes on for as long as something is wrong.
    options["work_s"] = max(options["chaos_s"], *(round(step.at + step.lasts - BEGIN_S, 2) for step in steps))
    return Plan(steps, tuple(options.items()))


def _options(chance: random.Random) -> dict[str, Any]:
    publishers = chance.sample(PUBLISHERS, chance.choice((1, 2, 2, 3)))
    readers = [_reader(chance, who) for who in READERS[: chance.choice((1, 2, 2, 3))]]
    return {
        "instances": chance.choice((2, 3, 3, 3)),
        "chaos_s": round(chance.uniform(1.5, 3.5), 2),
        # On a slow network or a slow log much is under way when something breaks.
        "way_s": chance.choice((0.002, 0.002, 0.03, 0.1)),
        "log_s": chance.choice((0.0, 0.0, 0.02, 0.1)),
        "ask_s": chance.choice((0.003, 0.003, 0.05)),
        "publishers": sorted(publishers),
        "named": chance.choice(("p0", "p1", "p2")),
        "groups": chance.randint(4, 14),
        "burst": round(chance.choice((0.3, 0.7, 0.9)), 2),
        "batch_bytes": chance.choice((1, 100, 100, 262144)),
        "in_flight": chance.choice((1, 2, 16, 16)),
        "readers": readers,
        "keep": chance.choice((None, None, None, None, 8)),
        "pauses": [point for point in PAUSES if chance.random() < 0.25] if chance.random() < 0.5 else [],
    }


def _reader(chance: random.Random, who: str) -> dict[str, Any]:
    """late: seconds after which it begins, from now on. The first reader wants everything, from the
    beginning."""
    found: dict[str, Any] = {"who": who, "filter": {} if who == READERS[0] else chance.choice(FILTERS)}
    if chance.random() < 0.25:
        found["groups"] = True
    if chance.random() < 0.2 and who != READERS[0]:
        found["late"] = round(chance.uniform(0.3, 2.5), 2)
    if chance.random() < 0.3:
        found["breaks"] = chance.randint(3, 20)
    return found


def _cursors(chance: random.Random, options: dict[str, Any]) -> None:
    """Some readers leave their cursor to the subscription; their work takes time, and some of them fail at it."""
    if chance.random() < (0.6 if options["keep"] is not None else 0.2):
        options["window_bytes"] = 500
    for reader in options["readers"]:
        if chance.random() < 0.35:
            reader["saves"] = True
            reader["work_s"] = chance.choice((0.0, 0.01, 0.05))
            if chance.random() < 0.6:
                reader["fails"] = chance.randint(1, 12)


def _homes(chance: random.Random, options: dict[str, Any]) -> None:
    """Some clients live in an instance's process: they end with it, and reach it without a socket."""
    if chance.random() < 0.2:
        clients = [*options["publishers"], *(reader["who"] for reader in options["readers"])]
        homes = {who: chance.choice(NAMES[: options["instances"]]) for who in clients if chance.random() < 0.5}
        if homes:
            options["homes"] = homes


def _listers(chance: random.Random, options: dict[str, Any]) -> None:
    """In some runs the feed keeps a snapshot, and somebody starts with it while everything happens."""
    if chance.random() < 0.2:
        options["listers"] = [
            {
                "who": who,
                "late": round(chance.uniform(0.3, 3.0), 2),
                "work_s": chance.choice((0.0, 0.02, 0.1)),
                "breaks": chance.choice((0, 0, 5, 15)),
            }
            for who in LISTERS[: chance.choice((1, 2))]
        ]
        options["snapshot_every_s"] = chance.choice((0.05, 0.3, 1.0))
        options["snapshot_list_bytes"] = chance.choice((1, 200, 262144))


def _kinds(chance: random.Random) -> list[str]:
    """One to four kinds, each at most once."""
    pool = [kind for kind in KINDS for _ in range(OFTEN.get(kind, 1))]
    kinds: list[str] = []
    for _ in range(chance.choice((1, 2, 2, 3, 4))):
        kind = chance.choice(pool)
        if kind not in kinds:
            kinds.append(kind)
    return kinds


def _steps(chance: random.Random, options: dict[str, Any]) -> tuple[Step, ...]:
    kinds = _kinds(chance)
    instances = NAMES[: options["instances"]]
    clients = [
        *options["publishers"],
        *(reader["who"] for reader in (*options["readers"], *options.get("listers", ()))),
    ]
    steps: list[Step] = []
    at = BEGIN_S + 0.5 * chance.random()
    for _ in range(chance.choice((1, 2, 3, 3, 4, 5))):
        kind = chance.choice(kinds)
        if kind == "put-back" and any(step.kind == kind for step in steps):
            continue
        steps.append(_step(chance, kind, round(at, 3), instances, clients))
        if chance.random() < 0.7:
            at += options["chaos_s"] * chance.random() ** 2
    if options["keep"] is not None:
        # Somebody stays away until retention has passed it.
        away = chance.choice([who for who in clients if who.startswith("s")])
        steps.append(
            Step(round(BEGIN_S + 0.4 * chance.random(), 3), "kill-client", away, round(chance.uniform(3, 7), 3))
        )
        steps.sort(key=lambda step: step.at)
    return tuple(steps)


def _step(chance: random.Random, kind: str, at: float, instances: tuple[str, ...], clients: list[str]) -> Step:
    lasts = round(0.05 + 2.5 * chance.random() ** 2, 3)
    if kind in SHARED_KINDS:
        how = ""
        if kind == "clock-jump":
            how = str(round(chance.uniform(-3600, 3600)))
        elif kind == "put-back":
            how = f"{chance.choice(('running', 'stopped', 'stopped'))}/{chance.choice(('kept', 'lost', 'older'))}"
            how += chance.choice(("", "/late"))
        elif kind == "disk-full":
            lasts = round(0.8 + 1.7 * chance.random(), 3)
        return Step(at, kind, "", lasts, how)
    if kind in CLIENT_KINDS:
        if kind == "slow-reader":
            clients = [who for who in clients if who.startswith(("s", "l"))]
        return Step(at, kind, chance.choice(clients), lasts)
    target = "leader" if chance.random() < 0.6 else chance.choice(instances)
    how = ""
    if kind in ("kill-at", "freeze-at"):
        how = chance.choice(POINTS)
        target = "" if how in ELECTION_POINTS else target
        if how in ELECTION_POINTS:
            how += "/" + chance.choice(("kill", "delete", "drain"))
        elif how.startswith("log: open_publisher"):
            how += "/kill-client"
        elif how == "repeat":
            how += "/drop"
    elif kind == "freeze":
        lasts = round(0.05 + 3.5 * chance.random(), 3)
    elif kind == "isolate":
        target, lasts = "leader", round(1.8 + 1.7 * chance.random(), 3)
    elif kind == "lost-reply":
        how = chance.choice(("delete", "kill"))
    elif kind in ("cut", "cut-way", "drop-links"):
        how = chance.choice(("one", "all", "clients"))
    elif kind in ("unknown-append", "unknown-fence", "unknown-incarnation"):
        how = chance.choice(("before", "after"))
    elif kind == "cut-coordinator":
        lasts = round(lasts + 1.5 * chance.random(), 3)
    return Step(at, kind, target, lasts, how)
