"""A client that shares no code with us, on a real cluster whose leader is killed again and again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from nodes import node

from changefeed import Change, Publisher, open_publisher, open_subscription
from changefeed.signal import Changed
from changefeed.testing.processes import ServeCluster

pytestmark = pytest.mark.processes

FEED = "vmapi"
KILLS = 10
#: Changes that are acknowledged between two kills, at least.
BETWEEN = 30
PATIENCE_S = 100.0


@pytest.fixture
def client() -> list[str]:
    """The command of the client."""
    return node(Path(__file__).with_name("subscriber.mjs"))


@contextmanager
def stranger(client: list[str], folder: Path, servers: str) -> Iterator[subprocess.Popen[bytes]]:
    """The client, printing into the file `printed`."""
    env = {
        **os.environ,
        "CHANGEFEED_URL": servers,
        "CHANGEFEED_FEED": FEED,
        "CHANGEFEED_CURSOR": str(folder / "cursor"),
    }
    with (folder / "printed").open("wb") as printed, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(client, stdout=printed, stderr=stderr, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Load:
    """Changes that are published in groups of one to three, one after the other; what was acknowledged."""

    def __init__(self) -> None:
        self.changed = Changed()
        self.acknowledged: list[tuple[int, str]] = []
        self.epoch = 0
        self.enough = False

    async def publish(self, publisher: Publisher) -> None:
        count = 0
        while not self.enough:
            group = [
                Change("vm", f"vm-{count}-{n} “{n}”", "update", ("state",), {"count": count, "n": n})
                for n in range(1 + count % 3)
            ]
            receipt = await publisher.publish_many(group)
            self.acknowledged += [(receipt.first.seq + n, change.id) for n, change in enumerate(group)]
            self.epoch = receipt.last.epoch
            count += 1
            self.changed.notify()

    async def more(self, since: int) -> None:
        while len(self.acknowledged) < since + BETWEEN:
            await self.changed.wait()


async def kill_leaders(cluster: ServeCluster, load: Load) -> None:
    """Kill whoever leads while changes are on their way, start it again, and see the next one at work; ten times."""
    for _ in range(KILLS):
        await load.more(len(load.acknowledged))
        epoch = load.epoch
        leader = await trio.to_thread.run_sync(cluster.wait_leader)
        leader.kill()
        leader.start()
        while load.epoch <= epoch:
            await load.changed.wait()
        await trio.to_thread.run_sync(cluster.wait_ready)
    await load.more(len(load.acknowledged))


async def read_feed(servers: str, last: int) -> list[dict[str, Any]]:
    """The whole feed, as the client would print it."""
    found: list[dict[str, Any]] = []
    async with open_subscription(FEED, servers, start="beginning") as subscription:
        async for event in subscription:
            line = {"seq": event.seq, "id": event.id, "resource": event.resource, "op": event.op, "body": event.body}
            found.append(line)
            if event.seq >= last:
                break
    return found


def wait_written(path: Path, lines: int, process: subprocess.Popen[bytes]) -> None:
    """Until another process has written so many lines, or has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and path.read_bytes().count(b"\n") < lines and time.monotonic() < deadline:
        time.sleep(0.02)


async def test_the_stranger_survives_ten_leader_kills(client: list[str], tmp_path: Path) -> None:
    """What it printed is the feed, line by line, each event once; and all that was acknowledged is in it."""
    load = Load()
    with (
        trio.fail_after(PATIENCE_S),
        ServeCluster([FEED], count=3, folder=tmp_path / "cluster") as cluster,
        stranger(client, tmp_path, cluster.servers) as process,
    ):
        await trio.to_thread.run_sync(cluster.start)
        async with open_publisher(FEED, cluster.servers) as publisher, trio.open_nursery() as nursery:
            nursery.start_soon(load.publish, publisher)
            await kill_leaders(cluster, load)
            load.enough = True
        feed = await read_feed(cluster.servers, load.acknowledged[-1][0])
        await trio.to_thread.run_sync(wait_written, tmp_path / "printed", len(feed), process, abandon_on_cancel=True)
        said = (tmp_path / "stderr").read_text()
        printed = [json.loads(line) for line in (tmp_path / "printed").read_bytes().splitlines()]
        status = process.poll()

    assert status is None, said
    assert printed == feed
    assert [event["seq"] for event in feed] == list(range(1, len(feed) + 1))
    assert [(event["seq"], event["id"]) for event in feed] == load.acknowledged
    assert load.epoch > KILLS
