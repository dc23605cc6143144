"""The demo's processes: instances, publishers, subscribers; the leader killed again and again while they work.

Everything that is judged is written by the processes themselves and in kills.jsonl; what this module knows besides
(gauges, the status of instances) is for aiming and for showing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

import changefeed
from changefeed.demo.history import History, write_plan
from changefeed.demo.records import Gauge, Records, now_ns
from changefeed.errors import Unavailable
from changefeed.testing.processes import ServeCluster, ServeProcess
from changefeed.testing.tied import leash, tied

FEED: Final = "demo"
PUBLISHERS: Final = 3
#: Of these "killed" is itself killed again and again, and "late" comes when this share has been acknowledged.
SUBSCRIBERS: Final = ("beginning", "late", "killed")
LATE_SHARE: Final = 0.4
#: A killed process is started again after so long.
RESTART_S: Final = 0.3
#: How long to wait for something in flight before killing anyway (the kill will not count).
AIM_S: Final = 1.0
#: How long the subscribers may need for the rest once everything was acknowledged.
CATCH_UP_S: Final = 60.0
STOP_S: Final = 10.0
#: How long nobody may lead, and how long a failover is watched.
LEADER_S: Final = 60.0
AGAIN_S: Final = 20.0

Say = Callable[[str, dict[str, Any], str], Awaitable[None]]


def child_environment() -> dict[str, str]:
    """So that children find this very package, installed or not, wherever they are started."""
    root = str(Path(changefeed.__file__).resolve().parents[1])
    rest = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{rest}" if rest else root}


class Child:
    """A publisher or subscriber as a process; what it prints goes to NAME.log."""

    def __init__(self, folder: Path, name: str, module: str, given: dict[str, Any]) -> None:
        self.name = name
        self.gauge = Gauge(folder / f"{name}.gauge")
        self.log = folder / f"{name}.log"
        self._command = tied(module, json.dumps(given))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=leash(),
                stdout=log,
                stderr=log,
                env=child_environment(),
                start_new_session=True,
            )

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def started(self) -> bool:
        return self._process is not None

    def send(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone, which is at once."""
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


@dataclass
class Demo:
    """One run: what is replayed, where, and how often the leader is killed."""

    history: History
    folder: Path
    log: str | None = None
    coordinator: str | None = None
    kill_every_s: float = 3.0
    kills_wanted: int = 10
    say: Say | None = None
    seed: int = 1
    kills: int = 0
    done: bool = False
    cluster: ServeCluster = field(init=False)
    publishers: list[Child] = field(init=False)
    subscribers: dict[str, Child] = field(init=False)

    def __post_init__(self) -> None:
        self.cluster = ServeCluster(
            [FEED],
            count=3,
            folder=self.folder,
            log=self.log,
            coordinator=self.coordinator,
            env=child_environment(),
        )
        common = {"folder": str(self.folder), "feed": FEED, "servers": self.cluster.servers}
        # The replay takes as long as the kills need; two more are allowed for those that will not count.
        over_s = self.kill_every_s * (self.kills_wanted + 2) if self.kills_wanted else 0.0
        self.publishers = [
            Child(
                self.folder,
                f"publisher-{index}",
                "changefeed.demo.publisher",
                {**common, "index": index, "over_s": over_s},
            )
            for index in range(PUBLISHERS)
        ]
        self.subscribers = {
            name: Child(self.folder, f"subscriber-{name}", "changefeed.demo.subscriber", {**common, "name": name})
            for name in SUBSCRIBERS
        }
        self._random = random.Random(self.seed)

    # ---- what the gauges say

    @property
    def sent(self) -> int:
        return sum(child.gauge.get("sent") for child in self.publishers)

    @property
    def answered(self) -> int:
        return sum(child.gauge.get("answered") for child in self.publishers)

    @property
    def epoch(self) -> int:
        return max(child.gauge.get("epoch") for child in self.publishers)

    @property
    def head(self) -> int:
        """The highest seq that was acknowledged."""
        return max(child.gauge.get("seq") for child in self.publishers)

    # ---- the run

    async def run(self) -> None:
        """Replay everything, then let the subscribers catch up. All processes are gone when this ends, however."""
        write_plan(self.folder, self.history, PUBLISHERS)
        try:
            for instance in self.cluster.instances:
                instance.start()
            await trio.to_thread.run_sync(self.cluster.wait_ready, 60.0, abandon_on_cancel=True)
            await self._tell("started", "3 instances are ready", servers=self.cluster.servers)
            async with trio.open_nursery() as nursery:
                for name in ("beginning", "killed"):
                    self.subscribers[name].start()
                for child in self.publishers:
                    child.start()
                nursery.start_soon(self._kill_leaders)
                nursery.start_soon(self._kill_subscriber)
                nursery.start_soon(self._start_late)
                await self._wait_publishers()
                self.done = True
                nursery.cancel_scope.cancel()
            await self._finish()
        finally:
            for child in (*self.publishers, *self.subscribers.values()):
                child.kill()
            self.cluster.stop()

    async def _tell(self, event: str, text: str, **facts: Any) -> None:
        if self.say is not None:
            await self.say(event, facts, text)

    async def _wait_publishers(self) -> None:
        await until(lambda: all(child.status is not None for child in self.publishers), every_s=0.05)
        for child in self.publishers:
            if child.status:
                await self._tell("failed", f"{child.name} ended with status {child.status}: {last_line(child.log)}")

    async def _finish(self) -> None:
        """Everybody back, everything read; then a drain, as in daily life."""
        for instance in self.cluster.instances:
            if not instance.running:
                instance.start()
        for child in self.subscribers.values():
            if child.status is not None or not child.started:
                child.start()
        await self._tell("published", f"all {self.answered} changes have an answer; subscribers read the rest")
        children = self.subscribers.values()
        caught_up = await until(
            lambda: all(child.gauge.get("seq") >= self.head for child in children), every_s=0.02, within_s=CATCH_UP_S
        )
        if not caught_up:
            await self._tell("failed", f"subscribers did not reach seq {self.head} within {CATCH_UP_S:g} s")
        else:
            await self._tell("read", f"all subscribers are at seq {self.head}; everything is stopped with SIGTERM")
        for child in children:
            child.send(signal.SIGTERM)
        await until(lambda: all(child.status is not None for child in children), every_s=0.02, within_s=STOP_S)
        for instance in self.cluster.instances:
            instance.terminate()
        gone = await until(
            lambda: not any(instance.running for instance in self.cluster.instances), every_s=0.02, within_s=STOP_S
        )
        await self._tell("drained" if gone else "failed", "instances drained" if gone else "an instance did not drain")

    # ---- what goes wrong

    async def _leader(self) -> ServeProcess:
        leader: ServeProcess | None = None
        deadline = trio.current_time() + LEADER_S
        while leader is None:
            if trio.current_time() > deadline:
                raise Unavailable(f"nobody leads for {LEADER_S:g} s; the instances' logs are in {self.folder}")
            leader = await trio.to_thread.run_sync(self.cluster.leader, abandon_on_cancel=True)
            await trio.sleep(0.05)
        return leader

    async def _kill_leaders(self) -> None:
        """Kill the leader, aimed at a moment with changes in flight; start it again; from the beginning."""
        records = Records(self.folder / "kills.jsonl")
        due = trio.current_time()
        while True:
            due = max(due + self.kill_every_s, trio.current_time())
            await trio.sleep_until(due)
            leader = await self._leader()
            await until(lambda: self.sent > self.answered, every_s=0.0003, within_s=AIM_S)
            in_flight, epoch, when = self.sent - self.answered, self.epoch, now_ns()
            os.kill(leader.pid, signal.SIGKILL)
            records.write("kill", instance=leader.name, pid=leader.pid)
            self.kills += 1
            pid = leader.pid
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._restart, leader)
                again = await self._next_epoch(epoch)
                took = f"receipts again after {(now_ns() - when) / 1e6:.0f} ms" if again else "no receipts since"
            await self._tell(
                "kill",
                f"kill {self.kills}: leader {leader.name} (pid {pid}), {in_flight} changes in flight; {took}",
                instance=leader.name, pid=pid, in_flight=in_flight,
            )  # fmt: skip

    async def _next_epoch(self, epoch: int) -> bool:
        return await until(lambda: self.epoch > epoch, every_s=0.001, within_s=AGAIN_S)

    async def _restart(self, instance: ServeProcess) -> None:
        await trio.sleep(RESTART_S)
        await trio.to_thread.run_sync(instance.wait, 10.0, abandon_on_cancel=True)
        instance.start()

    async def _kill_subscriber(self) -> None:
        """Kill a subscriber at any moment; it goes on after the last event that it wrote down."""
        victim = self.subscribers["killed"]
        while True:
            await trio.sleep(self._random.uniform(0.4, 2.0))
            victim.kill()
            victim.start()

    async def _start_late(self) -> None:
        await until(lambda: self.answered >= LATE_SHARE * self.history.changes, every_s=0.05)
        self.subscribers["late"].start()
        await self._tell("late", f"the late subscriber begins at the beginning, {self.answered} changes behind")
        await trio.sleep_forever()


async def until(condition: Callable[[], bool], *, every_s: float, within_s: float = float("inf")) -> bool:
    """Whether the condition came true in time; it is looked at every so often (other processes do not notify us)."""
    deadline = trio.current_time() + within_s
    while not condition():
        if trio.current_time() >= deadline:
            return False
        await trio.sleep(every_s)
    return True


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "it printed nothing"
