"""Two figures that must hold from the first day: a file cursor's rate, and what a slow subscriber costs the others."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from changefeed import Change, FileCursor, open_publisher, open_subscription
from changefeed.testing.processes import ServeCluster
from simulations.proof.rows import Row

FEED = "vmapi"
EVENTS = 100_000
FAST = 10


async def publish(servers: str, count: int, prefix: str) -> None:
    body = {"state": "running", "note": "x" * 100}
    async with open_publisher(FEED, servers) as publisher:
        for n in range(0, count, 50):
            await publisher.submit([Change("vm", f"{prefix}-{n + k}", "update", ("state",), body) for k in range(50)])


async def read(servers: str, count: int, cursor: FileCursor | None = None) -> float:
    """Events per second of one subscription that reads `count` events from the beginning."""
    begun, seen = trio.current_time(), 0
    async with open_subscription(FEED, servers, start="beginning", cursor=cursor) as subscription:
        async for _ in subscription:
            seen += 1
            if seen == count:
                break
    return count / (trio.current_time() - begun)


def file_cursor() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder, ServeCluster([FEED], count=1, folder=Path(folder)) as cluster:
        cluster.start()
        trio.run(publish, cluster.servers, EVENTS, "c")
        rates = []
        for n in range(5):
            rates.append(trio.run(read, cluster.servers, EVENTS, FileCursor(Path(folder) / f"cursor{n}")))
        rate = statistics.median(rates)
        yield Row(
            f"subscriber with a file cursor, {EVENTS:,} events, median of {len(rates)}",
            f"{rate:,.0f} ev/s ({min(rates):,.0f} to {max(rates):,.0f})",
            "50,000 ev/s",
            rate >= 50_000,
        )


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError("no VmRSS")


async def fan_out(servers: str, count: int, with_slow: bool, prefix: str) -> float:
    """Seconds until all fast subscribers have seen all events that are published meanwhile."""
    done = 0

    async def fast(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        nonlocal done
        seen = 0
        async with open_subscription(FEED, servers, start="now") as subscription:
            task_status.started()
            async for _ in subscription:
                seen += 1
                if seen == count:
                    break
        done += 1

    async def slow(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with open_subscription(FEED, servers, start="now") as subscription:
            task_status.started()
            async for _ in subscription:
                await trio.sleep(1)

    async with trio.open_nursery() as outer:
        if with_slow:
            await outer.start(slow)
        async with trio.open_nursery() as nursery:
            for _ in range(FAST):
                await nursery.start(fast)
            begun = trio.current_time()
            await publish(servers, count, prefix)
        seconds = trio.current_time() - begun
        outer.cancel_scope.cancel()
    assert done == FAST
    return seconds


def slow_subscriber() -> Iterator[Row]:
    """Alternates runs with and without the slow subscriber on one broker, so that both see the same machine."""
    with tempfile.TemporaryDirectory() as folder, ServeCluster([FEED], count=1, folder=Path(folder)) as cluster:
        cluster.start()
        servers, pid = cluster.servers, cluster.instances[0].pid
        # Fills the window and warms caches, so that what grows afterwards is due to the slow subscriber.
        for n in range(4):
            trio.run(fan_out, servers, EVENTS, False, f"warm{n}")
        without: list[float] = []
        with_slow: list[float] = []
        growth: list[int] = []
        for n in range(5):
            without.append(trio.run(fan_out, servers, EVENTS, False, f"a{n}"))
            before = rss_kib(pid)
            with_slow.append(trio.run(fan_out, servers, EVENTS, True, f"b{n}"))
            growth.append(rss_kib(pid) - before)
        loss = statistics.median(with_slow) / statistics.median(without) - 1
        grown = max(growth) / 1024
        yield Row(
            f"slow subscriber (1 event/s) beside {FAST} fast ones, {EVENTS:,} events: growth of the broker, worst of 5",
            f"{grown:.1f} MiB",
            "20 MiB",
            grown <= 20,
        )
        yield Row(
            "the fast ones against the same run without it (medians of 5, alternating)",
            f"{loss:+.1%} time ({statistics.median(without):.2f} s without, {statistics.median(with_slow):.2f} s with)",
            "at most 10 % slower",
            loss <= 0.10,
        )


if __name__ == "__main__":
    begun = time.monotonic()
    for step in (file_cursor, slow_subscriber):
        for row in step():
            print(row, f"{time.monotonic() - begun:.1f} s")
