"""Upgrades between releases: instances, logs, cursors and clients of an older release beside those of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from changefeed import Change, FileCursor, open_publisher, open_subscription
from changefeed.change import Position
from changefeed.testing.processes import ServeCluster

ROOT = Path(__file__).resolve().parents[2]
#: Version -> the commit that it was made of (CHANGELOG.md).
RELEASES = {"0.1.0": "138d004"}
FEED = "vmapi"
LIMIT_S = 60

pytestmark = pytest.mark.processes


def tree_of(release: str, folder: Path) -> Path:
    """The code of a release, out of the repository's history."""
    made = subprocess.run(
        ["git", "archive", RELEASES[release], "changefeed"], cwd=ROOT, capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"the history of {release} is not here: {made.stderr.decode().strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=made.stdout, check=True)
    return folder


async def publish(cluster: ServeCluster, first: int, count: int) -> list[Position]:
    async with open_publisher(FEED, cluster.servers) as publisher:
        pending = [
            await publisher.submit(Change("vm", str(number), "update", None, {"n": number}))
            for number in range(first, first + count)
        ]
        return [(await each.wait()).position for each in pending]


async def follow(cluster: ServeCluster, cursor: Path, upto: Position) -> list[str]:
    """The ids of what comes, from where the cursor stands to a position; the cursor is saved."""
    found: list[str] = []
    async with open_subscription(FEED, cluster.servers, start="beginning", cursor=FileCursor(cursor)) as subscription:
        async for event in subscription:
            found.append(event.id)
            if event.position.seq >= upto.seq:
                break
    return found


@pytest.mark.parametrize("release", RELEASES)
async def test_instances_are_upgraded_one_by_one(release: str, tmp_path: Path) -> None:
    """All of the older release; one of them of this one; then both. What was published is read by all, a cursor that an
    older log gave resumes, and the log that is left is whole."""
    old = tree_of(release, tmp_path / "old")
    cursor = tmp_path / "cursor"
    env = {"PYTHONPATH": str(old), "PYTHONSAFEPATH": "1"}
    asked = [sys.executable, "-c", "import changefeed; print(changefeed.__file__)"]
    said = await trio.run_process(asked, env={**os.environ, **env}, capture_stdout=True)
    assert Path(said.stdout.decode().strip()).is_relative_to(old), "the older code is not what runs"
    with ServeCluster([FEED], count=2, folder=tmp_path / "run", env=env) as cluster:
        with trio.fail_after(LIMIT_S):
            await trio.to_thread.run_sync(cluster.start)
            last = (await publish(cluster, 0, 100))[-1]
            assert await follow(cluster, cursor, last) == [str(number) for number in range(100)]
            for step, instance in enumerate(cluster.instances, 1):
                instance.terminate()
                assert await trio.to_thread.run_sync(instance.wait, 30) == 0
                instance._env["PYTHONPATH"] = str(ROOT)
                await trio.to_thread.run_sync(instance.start)
                await trio.to_thread.run_sync(cluster.wait_ready)
                # Whoever leads is killed: the other release takes over.
                leader = await trio.to_thread.run_sync(cluster.wait_leader)
                await trio.to_thread.run_sync(leader.kill)
                last = (await publish(cluster, 100 * step, 100))[-1]
                await trio.to_thread.run_sync(leader.start)
                await trio.to_thread.run_sync(cluster.wait_ready)
                first = 100 * step
                assert await follow(cluster, cursor, last) == [str(number) for number in range(first, first + 100)]
        command = [sys.executable, "-m", "changefeed.cli", "verify", FEED, "--log", cluster.log]
        verify = await trio.run_process(command, cwd=ROOT, check=False, capture_stdout=True, capture_stderr=True)
        assert verify.returncode == 0, verify.stdout + verify.stderr
