"""Tier "stack": draws a plan from a seed, runs it, and has its history judged."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import ExitStack
from typing import Final

import trio

from changefeed.simulation.cluster import tier as cluster_tier
from changefeed.simulation.cluster.judge import judge
from changefeed.simulation.cluster.lister import judge_tables
from changefeed.simulation.cluster.recording import Recorder
from changefeed.simulation.cluster.tripwires import tripwires
from changefeed.simulation.cluster.virtual import run_virtually
from changefeed.simulation.disk import RecordedDisk, seed_sqlite
from changefeed.simulation.plan import Plan
from changefeed.simulation.stack import drawing
from changefeed.simulation.stack.cluster import StackCluster
from changefeed.simulation.stack.faults import StackNemesis
from changefeed.simulation.stack.sightings import WANTED, StackSightings
from changefeed.simulation.stack.store import SqlitePlace, quiet_world
from changefeed.simulation.tiers import Broken, Outcome


class StackTier:
    """See simulation.tiers.Tier."""

    name = "stack"
    wanted = WANTED

    def draw(self, seed: int) -> Plan:
        return drawing.draw(seed)

    def run(self, seed: int, plan: Plan | None = None) -> Outcome:
        plan = self.draw(seed) if plan is None else plan
        recorder, sightings = Recorder(), StackSightings()
        faults: list[Broken] = []
        ended = [0.0]
        place = SqlitePlace(f"{seed}-place")

        async def main() -> None:
            cluster = StackCluster(seed, plan, recorder, sightings, place, disk)
            try:
                await cluster_tier.run_phases(cluster, StackNemesis(cluster))
                faults.extend(cluster.wrong)
                if plan.option("keep") is None:
                    faults.extend(judge_tables(cluster.listers, place.held.entries))
            finally:
                # Whatever happened: who is frozen could not even end.
                for who in (*cluster.names, *cluster.clients):
                    cluster.freezer.thaw(who)
                ended[0] = trio.current_time()

        with ExitStack() as stack:
            stack.callback(place.remove)
            stack.enter_context(sightings.watching())
            stack.enter_context(cluster_tier.overheard(faults, logging.WARNING))
            stack.enter_context(tripwires())
            stack.enter_context(quiet_world(seed, place))
            disk: RecordedDisk | None = None
            if plan.option("disk"):
                disk = stack.enter_context(RecordedDisk(place.folder))
                seed_sqlite(seed)
            try:
                run_virtually(f"{seed}-order", main)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                    raise
                faults.append(cluster_tier.crash(error))
        broken = tuple(faults) or tuple(judge(recorder.records))
        return Outcome(self.name, seed, plan, broken, recorder.digest(), Counter(sightings), ended[0], recorder.records)


TIER: Final = StackTier()
