"""What `changefeed dev` runs: instances as processes, a slow sample publisher, and lines to paste."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from changefeed.demo.cluster import child_environment, until
from changefeed.errors import BadConfig
from changefeed.publisher.driver import open_publisher
from changefeed.testing.processes import ServeCluster, ServeProcess

FEED: Final = "demo"
#: Between two sample changes, between a death and a new start, and between two looks at who leads, in seconds.
SAMPLE_S: Final = 1.0
RESTART_S: Final = 2.0
LOOK_S: Final = 0.3
INSTANCES_MAX: Final = 7

Say = Callable[[Any, str], Awaitable[None]]


class Sandbox:
    """A cluster that lives until it is cancelled."""

    def __init__(self, folder: Path, *, instances: int, say: Say) -> None:
        if instances > INSTANCES_MAX:
            raise BadConfig(f"--instances goes up to {INSTANCES_MAX}")
        self.cluster = ServeCluster([FEED], count=instances, folder=folder, env=child_environment())
        self.folder = folder
        self._say = say

    async def run(self) -> None:
        """Until cancelled; all processes are gone then."""
        try:
            for instance in self.cluster.instances:
                instance.start()
            await trio.to_thread.run_sync(self.cluster.wait_ready, 60.0, abandon_on_cancel=True)
            async with open_publisher(FEED, self.cluster.servers, name="sample") as publisher:
                receipt = await publisher.publish("vm", "vm-0", "create", body={"state": "running"})
                await self._greet(str(receipt.position))
                async with trio.open_nursery() as nursery:
                    for instance in self.cluster.instances:
                        nursery.start_soon(self._keep_alive, instance)
                    nursery.start_soon(self._tell_leaders)
                    draw = random.Random()
                    while True:
                        await trio.sleep(SAMPLE_S)
                        id, state = f"vm-{draw.randint(0, 9)}", draw.choice(("running", "stopped", "failed"))
                        await publisher.publish("vm", id, "update", fields=["state"], body={"state": state})
        finally:
            self.cluster.stop()

    async def _greet(self, position: str) -> None:
        leader = await self._leader()
        me = "changefeed" if shutil.which("changefeed") else f"{shlex.quote(sys.executable)} -m changefeed.cli"
        body = shlex.quote(json.dumps({"state": "running"}))
        lines = [
            f"{len(self.cluster.instances)} instances of the feed {FEED!r} are up, with a sample publisher.",
            f"The data is in {self.folder}. Ctrl-C ends and removes all of it.",
            "",
            "Paste into another terminal:",
            "",
            f"  export CHANGEFEED_URL={self.cluster.servers}",
            f"  {me} tail {FEED}",
            f"  {me} publish {FEED} vm vm-3 update --fields state --body {body}",
            f"  {me} status --elections",
            f"  kill -9 {leader.pid}    # the leader, {leader.name}: it is started again after {RESTART_S:g} s",
            f"  {me} tail {FEED} --start {position}    # resume after that event",
            "",
        ]
        facts = {instance.name: {"url": instance.url, "pid": instance.pid} for instance in self.cluster.instances}
        await self._say(
            {"event": "ready", "feed": FEED, "servers": self.cluster.servers, "instances": facts,
             "leader": leader.name, "pid": leader.pid, "position": position},
            "\n".join(lines),
        )  # fmt: skip

    async def _leader(self) -> ServeProcess:
        while True:
            leader = await trio.to_thread.run_sync(self.cluster.leader, abandon_on_cancel=True)
            if leader is not None:
                return leader
            await trio.sleep(LOOK_S)

    async def _tell_leaders(self) -> None:
        told = ""
        while True:
            leader = await self._leader()
            if told and leader.name != told:
                await self._say(
                    {"event": "leader", "leader": leader.name, "pid": leader.pid},
                    f"{leader.name} leads now: kill -9 {leader.pid}",
                )
            told = leader.name
            await trio.sleep(LOOK_S)

    async def _keep_alive(self, instance: ServeProcess) -> None:
        """Start an instance again when somebody killed it."""
        while True:
            await until(lambda: not instance.running, every_s=LOOK_S)
            await self._say({"event": "gone", "instance": instance.name}, f"{instance.name} is gone")
            await trio.sleep(RESTART_S)
            instance.start()
            await self._say(
                {"event": "started", "instance": instance.name, "pid": instance.pid},
                f"{instance.name} is started again (pid {instance.pid})",
            )
