"""A subscriber whose cursor is in its own SQLite transaction, killed 100 times at random: each event applied once.

Also the worker itself: `python -m simulations.proof.exactly_once DB SERVERS` applies the feed until it is killed.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import trio

from changefeed import Change, SqliteCursor, open_publisher, open_subscription
from changefeed.testing.processes import ServeCluster
from simulations.proof.rows import Row

FEED, EVENTS, KILLS = "vmapi", 30_000, 100


async def work(path: str, servers: str) -> None:
    """Apply each event by counting it; the count and the position are one transaction. Groups of at most 200 events."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS applied (id TEXT PRIMARY KEY, times INTEGER)")
    cursor = SqliteCursor(connection, "worker", FEED)
    async with open_subscription(FEED, servers, start="beginning", cursor=cursor) as subscription:
        held = 0
        connection.execute("BEGIN IMMEDIATE")
        async for group in subscription.groups():
            for event in group:
                connection.execute(
                    "INSERT INTO applied VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET times = times + 1", (event.id,)
                )
            held += len(group)
            if held >= 20 or subscription.state.caught_up:
                cursor.save(group[-1].position)
                connection.execute("COMMIT")
                connection.execute("BEGIN IMMEDIATE")
                held = 0


async def publish_all(servers: str) -> None:
    async with open_publisher(FEED, servers) as publisher:
        for start in range(0, EVENTS, 3):
            await publisher.submit([Change("vm", f"vm-{n}", "update", None, {"n": n}) for n in range(start, start + 3)])


def killed_often() -> Iterator[Row]:
    chance = random.Random(7)
    with tempfile.TemporaryDirectory() as folder, ServeCluster([FEED], count=2, folder=Path(folder)) as cluster:
        cluster.start()
        trio.run(publish_all, cluster.servers)
        path = Path(folder) / "effects.db"
        command = [sys.executable, "-m", "simulations.proof.exactly_once", str(path), cluster.servers]
        counted = kills = 0

        def progress() -> int:
            try:
                with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as reader:
                    return int(reader.execute("SELECT count(*) FROM applied").fetchone()[0])
            except sqlite3.OperationalError:
                return 0

        useful = 0
        while kills < KILLS or counted < EVENTS:
            worker = subprocess.Popen(command)
            start = counted
            # Killed after a random amount of work seen from outside, so that kills fall into the middle of it.
            want = min(EVENTS, counted + chance.randrange(0, 2 * EVENTS // KILLS + 1)) if kills < KILLS else EVENTS
            while counted < want or (want == start and not path.exists()):
                if worker.poll() is not None:
                    raise RuntimeError(f"the worker ended by itself with {worker.returncode}")
                counted = progress()
            worker.kill()
            worker.wait()
            kills += 1
            counted = progress()
            useful += counted > start
        with sqlite3.connect(path) as reader:
            wrong = reader.execute("SELECT count(*) FROM applied WHERE times <> 1").fetchone()[0]
        yield Row(
            f"subscriber with a SQLite cursor killed {kills} times at random ({useful} times amid progress)",
            f"{counted} of {EVENTS} events applied, {wrong} of them not exactly once",
            "every event exactly once",
            counted == EVENTS and wrong == 0 and kills >= KILLS,
        )


if __name__ == "__main__":
    trio.run(work, sys.argv[1], sys.argv[2])
