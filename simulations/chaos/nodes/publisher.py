"""A publisher of the run: groups of changes at a steady rate until SIGTERM; then it waits for every outcome, and ends.

Everything that it submits follows from its name, its life and a count, so that a *named* publisher that was killed
finds in its own history what has no outcome yet, and submits exactly that again under the same numbers: its history is
its outbox. An unnamed one begins anew in each life.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from changefeed.change import Change, Receipt
from changefeed.errors import AcknowledgedLost, LogFull, OutcomeUnknown, Refused
from changefeed.history.facts import submit_facts
from changefeed.history.records import read_file
from changefeed.publisher.driver import Pending, Publisher, open_publisher
from changefeed.settings import Settings
from changefeed.wire import MSGPACK
from simulations.chaos.nodes.wires import ClientNetwork
from simulations.chaos.recorder import Recorder
from simulations.chaos.shim import Numbers

GAUGES = ("submitted", "acked", "failed", "unknown", "repeated", "open", "ready")
RESOURCES = ("vm", "nic", "rule")
OPS = ("create", "update", "update", "update", "delete")
FIELDS = (("state",), ("owner",), ("ip", "state"), None)
#: After a refusal for a full log.
REST_S = 0.05


@dataclass(frozen=True)
class Given:
    """named: keeps its incarnation over lives. per_s: changes per second. sizes: changes of a group, from and to.
    ahead: groups sent ahead of their receipts (1: one after the other). seed: of the run."""

    name: str
    life: int
    feed: str
    servers: str
    history: str
    gauge: str
    seed: int
    named: bool
    per_s: float
    sizes: tuple[int, int]
    ahead: int
    subprotocol: str = MSGPACK
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """One op. number: of its first change; 0 where the publisher numbers by itself."""

    op: str
    count: int
    changes: tuple[Change, ...]
    number: int


def drawn(given: Given, count: int, number: int) -> Group:
    """The `count`-th op of this publisher."""
    op = f"{given.name}.{count}" if given.named else f"{given.name}.{given.life}.{count}"
    chance = random.Random(f"{given.seed}/{op}")
    changes = tuple(
        Change(
            chance.choice(RESOURCES),
            f"{op}.{index}",
            chance.choice(OPS),
            chance.choice(FIELDS),
            {"of": op, "n": index, "pad": "x" * chance.randrange(80)},
        )
        for index in range(chance.randint(*given.sizes))
    )
    return Group(op, count, changes, number)


class Outbox:
    """What is to be submitted, in order: first what earlier lives left without an outcome."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._next = 1
        self._number = 1
        self._left: list[Group] = []
        if given.named:
            self._read(Path(given.history))

    def _read(self, path: Path) -> None:
        submitted: dict[str, dict[str, Any]] = {}
        for record in read_file(path) if path.exists() else ():
            if record["f"] == "submit":
                submitted[record["op"]] = record
                self._next = max(self._next, record["count"] + 1)
                self._number = max(self._number, record["number"] + len(record["keys"]))
            elif record["f"] in ("acked", "failed", "unknown"):
                submitted.pop(record["op"], None)
        left = sorted(submitted.values(), key=lambda record: record["count"])
        self._left = [drawn(self._given, record["count"], record["number"]) for record in left]

    def __iter__(self) -> Iterator[Group]:
        yield from self._left
        while True:
            group = drawn(self._given, self._next, self._number if self._given.named else 0)
            self._next += 1
            self._number += len(group.changes)
            yield group


class Work:
    def __init__(self, given: Given) -> None:
        self.given = given
        self.outbox = Outbox(given)
        self.records = Recorder(Path(given.history), given.name, given.life, given.feed)
        self.gauge = Numbers(Path(given.gauge), GAUGES)
        self.gauge.set("ready", 0)
        self.gauge.set("open", 0)
        self.stop = trio.Event()
        self.rest_until = 0.0

    async def publish(self, publisher: Publisher) -> None:
        """Submit until told to stop, at most `ahead` groups without an outcome."""
        given, due = self.given, trio.current_time()
        room = trio.Semaphore(given.ahead)
        async with trio.open_nursery() as nursery:
            for group in self.outbox:
                due = max(due, trio.current_time() - 2.0)
                with trio.move_on_at(max(due, self.rest_until)):
                    await self.stop.wait()
                if self.stop.is_set():
                    break
                await room.acquire()
                facts = submit_facts(group.op, group.changes, given.name if given.named else None)
                self.records.write("submit", **facts, number=group.number, count=group.count)
                self.gauge.add("submitted", len(group.changes))
                self.gauge.add("open")
                pending = await publisher.submit(group.changes, number=group.number or None)
                nursery.start_soon(self._settle, group, pending, room)
                due += len(group.changes) / given.per_s

    async def _settle(self, group: Group, pending: Pending, room: trio.Semaphore) -> None:
        receipt: Receipt | None = None
        while receipt is None:
            try:
                receipt = await pending.wait()
            except AcknowledgedLost as error:
                self.records.write("lost", code=error.code)
            except OutcomeUnknown as error:
                self.records.write("unknown", op=group.op, code=error.code)
                self.gauge.add("unknown", len(group.changes))
                break
            except Refused as error:
                if not isinstance(error, LogFull):
                    logging.error("op %s was refused: %s: %s", group.op, error.code, error)
                self.records.write("failed", op=group.op, code=error.code)
                self.gauge.add("failed", len(group.changes))
                self.rest_until = trio.current_time() + REST_S
                break
        if receipt is not None:
            self.records.write(
                "acked", op=group.op, first=str(receipt.first), last=str(receipt.last), repeated=receipt.repeated
            )
            self.gauge.add("acked", len(group.changes))
            self.gauge.add("repeated", int(receipt.repeated))
        self.gauge.add("open", -1)
        room.release()


async def run(given: Given) -> None:
    work = Work(given)
    settings = Settings(**given.settings)
    network = ClientNetwork(settings, given.subprotocol)
    name = given.name if given.named else None
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_sigterm, work.stop)
        async with open_publisher(
            given.feed, given.servers, name=name, settings=settings, network=network
        ) as publisher:
            # A named one whose connection before its death is still open somewhere is refused until that is noticed.
            await publisher.wait_ready()
            work.gauge.set("ready", 1)
            await work.publish(publisher)
        nursery.cancel_scope.cancel()


async def watch_sigterm(stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            stop.set()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    given = json.loads(sys.argv[1])
    trio.run(run, Given(**{**given, "sizes": tuple(given["sizes"])}))
