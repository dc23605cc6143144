"""The contract of a tier: what draws a plan from a seed, and what runs it."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from changefeed.history import Broken
from changefeed.simulation.plan import Plan

__all__ = ["Broken", "Outcome", "Tier", "tier"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed came to.

    history: the records of changefeed.history, as JSON-able dicts, in order. digest: SHA-256 over the history, 16 hex
    digits: the same for the same seed and plan. sightings: what was met, and how often. virtual_s: how long it took in
    virtual seconds.
    """

    tier: str
    seed: int
    plan: Plan
    broken: tuple[Broken, ...]
    digest: str
    sightings: Counter[str]
    virtual_s: float
    history: Sequence[dict[str, Any]] = ()


class Tier(Protocol):
    """name: "cluster", "stack". wanted: the sightings that must be met in at least 1 % of seeds."""

    name: str
    wanted: tuple[str, ...]

    def draw(self, seed: int) -> Plan:
        """The faults of a seed. Pure."""

    def run(self, seed: int, plan: Plan | None = None) -> Outcome:
        """Run a seed, with its own plan or another one: chance, workload and schedule depend on the seed only, so that
        leaving a fault out does not shift the others. Never raises for what the run did."""


#: The package of each tier; its `TIER` is the tier. Imported when it is asked for.
TIERS: Final = {
    "cluster": "changefeed.simulation.cluster",
    "stack": "changefeed.simulation.stack",
    "explorer": "changefeed.simulation.explorer",
}


def tier(name: str) -> Tier:
    """The tier of that name. Raises ValueError that names those there are."""
    if name not in TIERS:
        raise ValueError(f"there is no tier {name!r}; there are {', '.join(TIERS)}")
    found: Tier = importlib.import_module(TIERS[name]).TIER
    return found
