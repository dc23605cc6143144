"""Tier "explorer": a seed names a small world, which is looked at completely. There is no chance in it."""

from __future__ import annotations

import hashlib
from typing import Final

from changefeed.history import Broken
from changefeed.simulation.explorer.scenarios import SCENARIOS
from changefeed.simulation.explorer.search import Explored, explore
from changefeed.simulation.plan import Plan
from changefeed.simulation.tiers import Outcome

#: Bounds of one search: states, and seconds of the processor. What meets them is reported as broken: it proves nothing.
STATES_MAX: Final = 5_000_000
SECONDS: Final = 900.0


class ExplorerTier:
    """See simulation.tiers.Tier. A seed beyond the last scenario begins anew with the first one."""

    name = "explorer"
    wanted: tuple[str, ...] = ()

    def draw(self, seed: int) -> Plan:
        return Plan((), (("scenario", SCENARIOS[seed % len(SCENARIOS)].name),))

    def run(self, seed: int, plan: Plan | None = None) -> Outcome:
        """The history is one record of what was seen, or the steps that lead to what is broken."""
        plan = self.draw(seed) if plan is None else plan
        name = plan.option("scenario", "")
        scenario = next((one for one in SCENARIOS if one.name == name), None)
        if scenario is None:
            broken = Broken("crash", f"there is no scenario {name!r}; there are {[one.name for one in SCENARIOS]}")
            return Outcome(self.name, seed, plan, (broken,), "", Explored(0, 0, 0, False, 0.0).met, 0.0)
        seen = explore(scenario.world(), states_max=STATES_MAX, seconds=SECONDS)
        words = f"{name} {seen.states} {seen.moves} {seen.depth} {seen.complete} {seen.broken} {seen.trail}"
        digest = hashlib.sha256(words.encode()).hexdigest()[:16]
        facts = {"states": seen.states, "moves": seen.moves, "depth": seen.depth, "complete": seen.complete}
        history = [{"t": 0, "node": "explorer", "life": 1, "f": "explored", "feed": "", "scenario": name, **facts}]
        for number, step in enumerate(seen.trail, 1):
            history.append({"t": number, "node": "explorer", "life": 1, "f": "step", "feed": "", "what": step})
        return Outcome(self.name, seed, plan, tuple(_broken(seen)), digest, seen.met, 0.0, history)


def _broken(seen: Explored) -> list[Broken]:
    if seen.broken is not None:
        return [Broken(seen.broken.promise, seen.broken.says, {"steps": list(seen.trail)})]
    if not seen.complete:
        return [Broken("C16", f"the search met its bounds after {seen.states} states: it proves nothing")]
    return []


TIER: Final = ExplorerTier()
