"""Performs a plan: the lanes side by side, in each one fault after the other."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence

import trio

from changefeed.simulation.plan import Plan, Step
from simulations.chaos import faults_clients, faults_coordinator, faults_disk, faults_leader, faults_network
from simulations.chaos.kinds import Kind
from simulations.chaos.plan import LANES, lane_of
from simulations.chaos.stage import Stage

FAULTS = {
    **faults_leader.FAULTS,
    **faults_disk.FAULTS,
    **faults_network.FAULTS,
    **faults_coordinator.FAULTS,
    **faults_clients.FAULTS,
}


class Nemesis:
    """done: how many of each kind were begun. A fault that waits for its moment delays what follows in its lane; what
    does not fit before `until` is left out, so that a round is bounded."""

    def __init__(self, stage: Stage, plan: Plan, kinds: Mapping[str, Kind], limit_s: float) -> None:
        self.done: Counter[str] = Counter()
        self.left_out = 0
        self._stage = stage
        self._plan = plan
        self._kinds = kinds
        self._limit_s = limit_s

    async def run(self) -> None:
        """Returns when every lane has come to its end. Cancellation: each fault undoes itself."""
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for lane in LANES:
                nursery.start_soon(self._lane, begun, lane_of(self._plan, lane, self._kinds))

    async def _lane(self, begun: float, steps: Sequence[Step]) -> None:
        free = 0.0
        for step in steps:
            if trio.current_time() > begun + self._limit_s:
                self.left_out += 1
                continue
            # Where the lane is behind its plan, faults still keep a distance.
            await trio.sleep_until(max(begun + step.at, free))
            try:
                await FAULTS[step.kind](self._stage, step, random.Random(step.how))
            except Exception as error:
                # A mistake of the harness ends neither the round nor the campaign, but neither is clean then.
                where = traceback.extract_tb(error.__traceback__)[-1]
                self._stage.wrong.append(f"{step.kind} failed: {error!r} ({where.name}, line {where.lineno})")
            self.done[step.kind] += 1
            free = trio.current_time() + 0.5 * self._kinds[step.kind].apart_s
