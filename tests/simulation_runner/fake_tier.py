"""A tier that does what a test wants: deterministic, quick; it can fail, hang, die, and differ by hash seed.

What it does hangs on the seed, so that workers in other processes do it too. Named to the runner as fake_tier:NAME.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections import Counter
from typing import Any

from changefeed.history import Broken
from changefeed.simulation.plan import Plan, Step
from changefeed.simulation.tiers import Outcome

LINEAGE = "ab12cd34ab12cd34"


def position(epoch: int, seq: int) -> str:
    return f"{LINEAGE}.{epoch}.7f7f7f7f.{seq}"


def history_of(seed: int, groups: int = 8) -> list[dict[str, Any]]:
    """A small cluster: b takes over from a, which is killed in the middle."""
    chance = random.Random(f"{seed}-history")
    records: list[dict[str, Any]] = []
    clock = 0

    def add(node: str, f: str, **facts: Any) -> None:
        nonlocal clock
        clock += chance.randrange(1, 4_000_000)
        records.append({"t": clock, "node": node, "life": 1, "f": f, "feed": "vm", **facts})

    add("a", "elected", epoch=1, term="aa", why="start")
    for who in ("s0", "s1"):
        add(who, "connected", reader=who, instance="a", position=position(0, 0))
    for n in range(groups):
        leader, epoch = ("a", 1) if n < groups // 2 else ("b", 2)
        if n == groups // 2:
            add("nemesis", "fault", id=1, kind="kill", target="a", on={})
            add("b", "elected", epoch=2, term="bb", why="process-gone")
        publisher = f"p{n % 2}"
        add(publisher, "submit", op=n, keys=[f"k{n}"])
        add(leader, "append", epoch=epoch, first=n + 1, last=n + 1, outcome="stored")
        add(publisher, "acked", op=n, first=position(epoch, n + 1), last=position(epoch, n + 1), repeated=False)
        for who in ("s0", "s1"):
            add(who, "event", reader=who, position=position(epoch, n + 1), key=f"k{n}", last=n + 1)
    add("nemesis", "heal", bound_s=9.0)
    add("nemesis", "converged")
    add("end", "log", lineage=LINEAGE, tail=groups, floor=0)
    return records


class Fake:
    """Every 7th seed with a kill in its plan, and an expire behind it, breaks C1."""

    name = "fake"
    wanted: tuple[str, ...] = ("a kill", "a rare thing")

    def draw(self, seed: int) -> Plan:
        chance = random.Random(f"{seed}-plan")
        steps = [Step(round(1 + n + chance.random(), 3), chance.choice(("cut", "drain")), "a", 2.5) for n in range(8)]
        if seed % 7 == 3:
            steps[2] = Step(3.333333, "kill", "leader", 1.5)
            steps[6] = Step(7.25, "expire", "b", 3.0)
        return Plan(tuple(steps), (("chaos_s", 20.0), ("log_s", 0.1), ("instances", 3)))

    def breaks(self, plan: Plan) -> bool:
        kills = [step.at for step in plan.steps if step.kind == "kill"]
        expiries = [step.at for step in plan.steps if step.kind == "expire" and step.lasts > 1.0]
        return any(kill < expiry for kill in kills for expiry in expiries)

    def salt(self) -> str:
        return ""

    def run(self, seed: int, plan: Plan | None = None) -> Outcome:
        for step in () if plan is None else plan.steps:
            if step.kind not in ("cut", "drain", "kill", "expire"):
                raise ValueError(f"there is no fault {step.kind!r}")
        plan = self.draw(seed) if plan is None else plan
        history = history_of(seed)
        told = json.dumps([history, plan.to_json(), self.salt()])
        broken = (
            (Broken("C1", "k2 was acknowledged at 1:3 and is not in the log", {"keys": ["k2"], "seqs": [3]}),)
            if self.breaks(plan)
            else ()
        )
        sightings = Counter({"a kill": 1 + seed % 2, "an expiry": int(seed % 2 == 0)})
        return Outcome(
            self.name, seed, plan, broken, hashlib.sha256(told.encode()).hexdigest()[:16], sightings, 12.5, history
        )


class Healthy(Fake):
    """Nothing ever breaks, and everything that must be met is met."""

    wanted = ("a kill",)

    def breaks(self, plan: Plan) -> bool:
        return False


class HashBound(Healthy):
    """What it comes to hangs on the hash seed, as the order of a set would."""

    def salt(self) -> str:
        return str(hash("salt"))


class Troubled(Healthy):
    """Seed 2 hangs, seed 3 dies by SIGKILL, seed 4 ends its process, seed 5 raises."""

    def run(self, seed: int, plan: Plan | None = None) -> Outcome:
        match seed:
            case 2:
                hang_here()
            case 3:
                os.kill(os.getpid(), 9)
            case 4:
                print("nobody expected this", flush=True)
                os._exit(17)
            case 5:
                raise RuntimeError("a bug of the simulation")
        return super().run(seed, plan)


def hang_here() -> None:
    while True:
        time.sleep(3600)


class Slow(Healthy):
    """Each seed takes a while of real time."""

    def run(self, seed: int, plan: Plan | None = None) -> Outcome:
        time.sleep(0.2)
        return super().run(seed, plan)
