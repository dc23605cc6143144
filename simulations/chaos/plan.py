"""The faults of a round, drawn from a seed before anything is done. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from changefeed.simulation.plan import Plan, Step
from simulations.chaos.kinds import CLIENTS, LEADER, OUTSIDE, Kind

#: Of faults that can be aimed, so many hit whoever leads.
AIMED: Final = 0.6
LANES: Final = (LEADER, OUTSIDE, CLIENTS)
#: Rough seconds that a fault occupies its lane beyond `lasts`: until its effect is seen and everybody is back.
OCCUPIES_S: Final = 1.2
#: No fault is planned for longer.
LONGEST_S: Final = 9.0


def draw(seed: int, seconds: float, kinds: Mapping[str, Kind], wanted: Mapping[str, int] | None = None) -> Plan:
    """A plan for about so many seconds: lanes side by side, in each one fault after the other.

    Each kind is switched on or off for the round (swarm), except those in `wanted`, of which so many come in any case
    if they fit. A step's target is "leader" for those that are aimed, "" for any; which one that is shows when it is
    done. The same arguments give the same plan.
    """
    steps: list[Step] = []
    for lane in LANES:
        chance = random.Random(f"chaos/{seed}/{lane}")
        mine = {name: kind for name, kind in kinds.items() if kind.lane == lane}
        if not mine:
            continue
        on = [kind for kind in mine.values() if chance.random() < 0.6] or list(mine.values())
        due = [mine[name] for name, count in sorted((wanted or {}).items()) if name in mine for _ in range(count)]
        chance.shuffle(due)
        steps += _lane(chance, seconds, on, due)
    steps.sort(key=lambda step: (step.at, step.kind))
    return Plan(tuple(steps), (("seed", seed), ("seconds", seconds)))


def _longest(kind: Kind) -> float:
    """What a fault of that kind takes of its lane at most."""
    return OCCUPIES_S + kind.lasts[1] + 1.5 * kind.apart_s


def _lane(chance: random.Random, seconds: float, on: list[Kind], due: list[Kind]) -> list[Step]:
    steps: list[Step] = []
    at = round(chance.uniform(0.0, 0.5), 3)
    while at < seconds:
        # What is due is spread over the round, among what is drawn freely, and comes first where time runs out.
        left, needed = seconds - at, sum(_longest(kind) for kind in due)
        if due and (needed + LONGEST_S > left or chance.random() < needed / left):
            kind = due.pop()
        else:
            kind = chance.choices(on, [one.weight for one in on])[0]
        lasts = chance.uniform(*kind.lasts)
        target = "leader" if chance.random() < AIMED else ""
        steps.append(Step(at, kind.name, target, round(lasts, 3), f"{chance.randrange(10**9)}"))
        # Rounded before it is compared: a step at 59.9996 s would stand at the end of a round of 60 s.
        at = round(at + OCCUPIES_S + lasts + kind.apart_s * chance.uniform(0.5, 1.5), 3)
    return steps


def lane_of(plan: Plan, lane: str, kinds: Mapping[str, Kind]) -> list[Step]:
    """A lane's steps, in order."""
    return [step for step in plan.steps if kinds[step.kind].lane == lane]
