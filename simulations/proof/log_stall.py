"""A log that stalls for everybody: no election, since moving the lead to another instance helps nobody."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import trio

from changefeed.testing.processes import ServeCluster
from simulations.proof.failover import FEED, audit
from simulations.proof.load import Load, steady_load, whole_feed
from simulations.proof.rows import Row

STALL_S = 10


def stall_for_all() -> Iterator[Row]:
    """A stranger holds the SQLite write lock for ten seconds while 1,000 ev/s are published."""
    with tempfile.TemporaryDirectory() as folder, ServeCluster([FEED], count=3, folder=Path(folder)) as cluster:
        cluster.start()
        before = cluster.wait_leader()
        epoch = before.get("/status")["feeds"][FEED]["epoch"]
        loads: list[tuple[str, Load]] = []

        async def stall() -> tuple[float, str]:
            async with steady_load(FEED, cluster.servers, name="stall") as load:
                loads.append(("stall", load))
                await load.more(500, 20)
                since = trio.current_time()
                holder = sqlite3.connect(Path(folder) / "log" / f"{FEED}.db", isolation_level=None, timeout=10)
                try:
                    holder.execute("BEGIN IMMEDIATE")
                    await trio.sleep(STALL_S)
                    notes = "; ".join(before.get("/status")["feeds"][FEED]["election"]["notes"])
                    holder.execute("ROLLBACK")
                finally:
                    holder.close()
                await load.more(500, 30)
                return load.longest_gap(since), notes

        gap, notes = trio.run(stall)
        after = cluster.wait_leader()
        same = after is before and after.get("/status")["feeds"][FEED]["epoch"] == epoch
        wrong = audit(trio.run(whole_feed, FEED, cluster.servers), loads)
        yield Row(
            f"a log that takes no write for {STALL_S} s: no election",
            f"{'the same leader and epoch' if same else 'the leader changed'}; {gap:.1f} s without receipts; "
            f"status said: {notes or 'nothing'}; audit {wrong or 'clean'}",
            "no election, said in status",
            same and bool(notes) and not wrong,
        )
