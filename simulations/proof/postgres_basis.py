"""What the steps of `make proof-postgres` share: a server, a cluster on it, who reads along, what is measured."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
import trio

from changefeed import open_subscription
from changefeed.log.postgresql.connections import Server
from changefeed.log.postgresql.layout import lay_out
from changefeed.log.urls import open_log
from changefeed.testing.postgresql_server import PostgresqlServer
from changefeed.testing.processes import ServeCluster

ROOT: Final = Path(__file__).resolve().parents[2]
FEED: Final = "vmapi"
TICKS: Final = os.sysconf("SC_CLK_TCK")
MIB: Final = 2**20


def quick_note(quick: bool) -> str:
    """Goes into the limit of a row that a quick look made: such a row does not pass."""
    return " (a quick look: does not pass)" if quick else ""


@contextmanager
def database(**settings: str) -> Iterator[tuple[PostgresqlServer, str]]:
    """A server of this step's own, and the URL of a database in which a log is laid out."""
    with PostgresqlServer.starting(**settings) as server:
        server.execute("CREATE DATABASE proof")
        url = server.url("proof")
        lay_out(Server(url, 10.0))
        yield server, url


@contextmanager
def cluster(
    url: str,
    count: int = 3,
    feed: str | Sequence[str] = FEED,
    coordinator: str | None = None,
    started: bool = True,
    flags: Sequence[str] = (),
) -> Iterator[ServeCluster]:
    """Instances on that log, as processes."""
    feeds = [feed] if isinstance(feed, str) else list(feed)
    with tempfile.TemporaryDirectory(prefix="changefeed-proof-", ignore_cleanup_errors=True) as folder:
        made = ServeCluster(
            feeds, count=count, folder=Path(folder), log=url, coordinator=coordinator, env=dict(os.environ), flags=flags
        )
        try:
            if started:
                made.start(60.0)
            yield made
        finally:
            made.stop()


async def create_feed(url: str, feed: str = FEED) -> None:
    """As an instance does when it first takes part in it: what applications publish then has a feed to wait for."""
    store = open_log(url)
    log = await store.open(feed)
    await log.aclose()
    await store.aclose()


def ask(url: str, statement: str, *parameters: Any) -> Any:
    """The first value of the first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement, parameters or None).fetchone()
    return None if row is None else row[0]


def waiting_rows(url: str) -> int:
    return int(ask(url, "SELECT count(*) FROM changefeed.outbox"))


def tail_seq(url: str, feed: str = FEED) -> int:
    found = ask(
        url,
        "SELECT h.tail_seq FROM changefeed.heads h JOIN changefeed.feeds f ON f.id = h.feed_id WHERE f.feed = %s",
        feed,
    )
    return int(found or 0)


def cpu_s(pids: Sequence[int]) -> float:
    """Processor seconds of processes up to now; 0 for one that is gone."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(parts[11]) + int(parts[12])) / TICKS
    return total


def memory_mib(pid: int, name: str = "VmRSS") -> float:
    """VmRSS: now; VmHWM: the most that it was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no {name}")


@dataclass
class Reader:
    """One subscriber from the beginning. `seq`: of the last event that it handed to `apply`."""

    servers: str
    apply: Callable[[list[Any]], None]
    feed: str = FEED
    seq: int = 0
    groups: int = 0
    changes: int = 0
    _moved: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> None:
        async with open_subscription(self.feed, self.servers, start="beginning") as subscription:
            async for events in subscription.groups():
                self.apply(events)
                self.seq = events[-1].position.seq
                self.groups += 1
                self.changes += len(events)
                moved, self._moved = self._moved, trio.Event()
                moved.set()

    async def reach(self, seq: int, limit_s: float) -> bool:
        """Whether it came that far in time."""
        with trio.move_on_after(limit_s):
            while self.seq < seq:
                await self._moved.wait()
        return self.seq >= seq


async def settle(url: str, reader: Reader, limit_s: float = 120.0) -> bool:
    """Until nothing waits in the outbox and the reader has all that is in the log. Nobody may write meanwhile."""
    with trio.move_on_after(limit_s):
        while await trio.to_thread.run_sync(waiting_rows, url):  # noqa: ASYNC110  # other processes move it
            await trio.sleep(0.05)
        return await reader.reach(await trio.to_thread.run_sync(tail_seq, url, reader.feed), limit_s)
    return False


@dataclass
class Killer:
    """Kills the leader so often and starts it again."""

    cluster: ServeCluster
    every_s: float
    kills: int = 0

    async def run(self) -> None:
        while True:
            await trio.sleep(self.every_s)
            await self.kill()

    async def kill(self) -> None:
        """One kill, once somebody leads."""
        leader = None
        while leader is None:
            leader = await trio.to_thread.run_sync(self.cluster.leader, abandon_on_cancel=True)
            await trio.sleep(0.02)
        os.kill(leader.pid, signal.SIGKILL)
        self.kills += 1
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(leader.wait, 10.0)
            await trio.sleep(0.3)
            leader.start()


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Seconds since, on the wall."""
    begun = time.monotonic()
    yield lambda: time.monotonic() - begun
