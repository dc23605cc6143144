"""An instance, as `changefeed serve` runs one, that also writes its part of the history.

It serves until SIGTERM, then drains and exits with status 0. What it is given: see Given.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from changefeed.cli.last_resort import LastResort
from changefeed.cli.serve import END_S
from changefeed.instance import open_instance
from changefeed.ports import World
from changefeed.settings import Settings
from simulations.chaos.recorder import Recorder
from simulations.chaos.shim import Numbers

#: Beside the history, for aiming and for seeing effects: nothing is judged by them.
GAUGES = (
    "leading", "epoch", "tail", "fenced", "unknown", "full", "connected", "session", "terms", "ready", "stopped",
    "monotonic_ns", "wall_ms",
)  # fmt: skip


@dataclass(frozen=True)
class Given:
    """settings: Settings by name. ahead_ns: of the monotonic clock of a time namespace."""

    name: str
    life: int
    feed: str
    log: str
    coordinator: str
    listen: str
    advertise: str | None
    history: str
    gauge: str
    settings: dict[str, Any] = field(default_factory=dict)
    ahead_ns: int = 0


class Told:
    """Turns what the instance traces into records and gauges."""

    def __init__(self, given: Given) -> None:
        self.records = Recorder(Path(given.history), given.name, given.life, given.feed, given.ahead_ns)
        self.gauge = Numbers(Path(given.gauge), GAUGES)
        for name in GAUGES:
            self.gauge.set(name, 0)

    def trace(self, name: str, /, **facts: Any) -> None:
        gauge, write = self.gauge, self.records.write
        match name:
            case "fence":
                write("fence", epoch=facts["epoch"], term=facts["term"], tail=facts["tail"])
            case "repeat":
                write("repeat", publisher=facts["publisher"], number=facts["number"])
            case "elected":
                write("elected", epoch=facts["epoch"], term=facts["term"], why=facts["why"])
                gauge.set("epoch", facts["epoch"])
                gauge.set("leading", 1)
                gauge.add("terms")
            case "deposed":
                write("deposed", epoch=facts["epoch"], why=facts["why"])
                if gauge.get("epoch") == facts["epoch"]:
                    gauge.set("leading", 0)
            case "term_ended":
                if gauge.get("epoch") == facts["epoch"]:
                    gauge.set("leading", 0)
            case "append":
                outcome = facts["outcome"]
                write("append", epoch=facts["epoch"], first=facts["first"], last=facts["last"], outcome=outcome)
                if outcome == "stored":
                    gauge.set("tail", facts["last"])
                elif outcome == "fenced":
                    gauge.add("fenced")
                elif outcome == "append-outcome-unknown":
                    gauge.add("unknown")
                elif outcome == "log-full":
                    gauge.add("full")


async def serve(given: Given) -> None:
    told = Told(given)
    settings = Settings(**given.settings)
    world = World(trace=told.trace)
    stop = trio.Event()
    with LastResort(END_S) as resort:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resort.watch)
            await nursery.start(watch_sigterm, stop)
            async with open_instance(
                [given.feed],
                log=given.log,
                coordinator=given.coordinator,
                listen=given.listen,
                advertise=given.advertise,
                name=given.name,
                insecure=True,
                kill_frozen=True,
                settings=settings,
                world=world,
            ) as instance:
                nursery.start_soon(show, instance, told.gauge)
                await stop.wait()
                await instance.drain()
            told.gauge.set("stopped", 1)
            nursery.cancel_scope.cancel()


async def show(instance: Any, gauge: Numbers) -> None:
    """A few times a second: what can be seen of it from outside."""
    while True:
        state = instance.coordinator.state()
        gauge.set("connected", int(state.connected))
        gauge.set("session", zlib.crc32(state.session.encode()))
        gauge.set("ready", int(instance.readiness()[0]))
        gauge.set("monotonic_ns", time.monotonic_ns())
        gauge.set("wall_ms", instance.world.wall_ms())
        await trio.sleep(0.1)


async def watch_sigterm(stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            stop.set()


if __name__ == "__main__":
    # Where a process hangs can be asked from outside.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    trio.run(serve, Given(**json.loads(sys.argv[1])))
