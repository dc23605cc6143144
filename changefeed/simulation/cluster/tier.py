"""Tier "cluster": draws a plan from a seed, runs it, and has its history judged."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

from changefeed.simulation.cluster import drawing
from changefeed.simulation.cluster.cluster import Cluster
from changefeed.simulation.cluster.faults import Nemesis
from changefeed.simulation.cluster.judge import judge
from changefeed.simulation.cluster.lister import judge_tables
from changefeed.simulation.cluster.recording import FEED, Recorder
from changefeed.simulation.cluster.sightings import WANTED, Sightings
from changefeed.simulation.cluster.tripwires import tripwires
from changefeed.simulation.cluster.virtual import run_virtually, virtual_clock
from changefeed.simulation.plan import Plan
from changefeed.simulation.tiers import Broken, Outcome

#: Within so many virtual seconds after everything has been healed the run must have converged.
BOUND_S: Final = 40.0
#: Between two looks how far everybody is.
LOOK_S: Final = 0.1


class ClusterTier:
    """See simulation.tiers.Tier."""

    name = "cluster"
    wanted = WANTED

    def draw(self, seed: int) -> Plan:
        return drawing.draw(seed)

    def run(self, seed: int, plan: Plan | None = None) -> Outcome:
        plan = self.draw(seed) if plan is None else plan
        recorder, sightings = Recorder(), Sightings()
        faults: list[Broken] = []
        ended = [0.0]

        async def main() -> None:
            cluster = Cluster(seed, plan, recorder, sightings)
            try:
                await run_phases(cluster, Nemesis(cluster))
                wrong.extend((*cluster.wrong, *judge_tables(cluster.listers, cluster.archive.entries)))
            finally:
                # Whatever happened: who is frozen could not even end.
                for who in (*cluster.names, *cluster.clients):
                    cluster.freezer.thaw(who)
                ended[0] = trio.current_time()

        wrong: list[Broken] = []
        with sightings.watching(), overheard(faults), tripwires():
            try:
                run_virtually(f"{seed}-order", main)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                    raise
                faults.append(crash(error))
        broken = (*wrong, *judge(recorder.records)) if not faults else tuple(faults)
        return Outcome(self.name, seed, plan, broken, recorder.digest(), Counter(sightings), ended[0], recorder.records)


def crash(error: BaseException) -> Broken:
    """An error that left the code, by its innermost cause."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('changefeed/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return Broken("crash", f"{type(error).__name__}: {error}"[:500], {"frames": frames[-6:]})


class _Overhearing(logging.Handler):
    """What the code reports as its own fault, with a traceback, is a fault of the run."""

    def __init__(self, faults: list[Broken], level: int) -> None:
        super().__init__(level)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._faults.append(crash(record.exc_info[1]))


@contextmanager
def overheard(faults: list[Broken], level: int = logging.ERROR) -> Iterator[None]:
    """Everything that the library logs at that level with a traceback is added to `faults`."""
    logger = logging.getLogger("changefeed")
    before, silenced = (logger.level, logger.propagate), logging.root.manager.disable
    handler = _Overhearing(faults, level)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    logging.disable(logging.NOTSET)  # whoever runs us may want to hear nothing; we must
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        logging.disable(silenced)


async def run_phases(cluster: Cluster, nemesis: Nemesis) -> None:
    """Anything goes; then everything is healed and must converge."""
    say = cluster.voice("nemesis", 1)
    async with trio.open_nursery() as outer:
        await cluster.start(outer)
        with trio.CancelScope() as patience:
            async with trio.open_nursery() as writers:
                for writer in cluster.writers:
                    writers.start_soon(writer.run)
                writers.start_soon(_watch, cluster)
                await nemesis.run(cluster.plan.steps)
                await trio.sleep_until(drawing.BEGIN_S + cluster.plan.option("chaos_s", 2.0))
                cluster.heal()
                say("heal", bound_s=BOUND_S)
                patience.deadline = trio.current_time() + BOUND_S
                while not _converged(cluster):
                    await virtual_clock().sleep(LOOK_S)
                writers.cancel_scope.cancel()
            say("converged")
        for reader in cluster.readers:
            reader.look()
        for name in sorted(cluster.sightings):
            say("sighting", name=name)
        _record_end(cluster)
        for client in cluster.clients.values():
            client.voice.silent = True
        for process in cluster.processes.values():
            process.voice.silent = True
        outer.cancel_scope.cancel()


async def _watch(cluster: Cluster) -> None:
    while True:
        await virtual_clock().sleep(2 * LOOK_S)
        for reader in cluster.readers:
            reader.look()


def _converged(cluster: Cluster) -> bool:
    if not all(writer.done for writer in cluster.writers):
        return False
    data = cluster.place.feeds[FEED]
    tail = data.tail.position(data.lineage)
    return all(reader.reached == tail for reader in cluster.followers)


def _record_end(cluster: Cluster) -> None:
    cluster.archive.end(cluster.place.feeds[FEED])
    for reader in cluster.readers:
        effects = reader.effects
        facts: dict[str, Any] = {"reader": reader.who, "origin": str(effects.origin), "keys": effects.keys}
        if effects.origin is not None:
            cluster.recorder.add("end", 1, "effects", **facts, position=str(effects.place))


TIER: Final = ClusterTier()
