"""pgbench's own transactions against captured tables; the tables are rebuilt from the feed alone, group by group.

    python simulations/pgbench.py [--seconds 60] [--clients 8] [--kills 6] [--scale 1] [--keep DIR]

A PostgreSQL server of this run's own holds pgbench's four tables and the log. Three instances, whose leader is killed
again and again; once the server is restarted, once it crashes (pgbench goes on after each). A subscriber applies each
group to mirrors of the four tables and then checks that the sums over accounts, tellers and branches agree, as they do
after each of pgbench's transactions. In the end each mirror must equal its table, row by row. Exit 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

import psycopg  # noqa: E402
import trio  # noqa: E402

from changefeed import Change, open_subscription  # noqa: E402
from changefeed.log.postgresql import capture  # noqa: E402
from changefeed.log.postgresql.capture import Capture  # noqa: E402
from changefeed.log.postgresql.connections import Server  # noqa: E402
from changefeed.log.postgresql.layout import lay_out  # noqa: E402
from changefeed.testing.postgresql_server import PostgresqlServer, programs  # noqa: E402
from changefeed.testing.processes import ServeCluster  # noqa: E402

FEED: Final = "bank"
#: Table -> its columns that name a row. pgbench_history has no key: all of its columns, and rows are counted.
TABLES: Final = {
    "pgbench_accounts": ("aid",),
    "pgbench_tellers": ("tid",),
    "pgbench_branches": ("bid",),
    "pgbench_history": ("tid", "bid", "aid", "delta", "mtime", "filler"),
}
BALANCES: Final = {"pgbench_accounts": "abalance", "pgbench_tellers": "tbalance", "pgbench_branches": "bbalance"}


@dataclass
class Mirrors:
    """The tables as the feed tells them. uneven: group boundaries at which the sums did not agree."""

    rows: dict[str, dict[str, Any]] = field(default_factory=lambda: {name: {} for name in BALANCES})
    history: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    groups: int = 0
    changes: int = 0
    uneven: int = 0
    first_uneven: str = ""

    def apply(self, events: list[Any]) -> None:
        for event in events:
            self._apply(event.change)
        self.groups += 1
        self.changes += len(events)
        sums = {name: self.sums[name] for name in BALANCES}
        if len(set(sums.values())) != 1:
            self.uneven += 1
            self.first_uneven = self.first_uneven or f"after {events[-1].position}: {sums}"

    def _apply(self, change: Change) -> None:
        table = change.resource
        if table == "pgbench_history":
            key = json.dumps(change.body, sort_keys=True)
            if change.op == "delete":
                self.history[change.id] -= 1
            else:
                self.history[key] += 1
            return
        column, held = BALANCES[table], self.rows[table]
        before = held.get(change.id)
        self.sums[table] -= 0 if before is None else before[column]
        if change.op == "delete":
            held.pop(change.id, None)
            return
        held[change.id] = change.body
        self.sums[table] += change.body[column]


@dataclass
class Report:
    """What the run came to."""

    seconds: float = 0.0
    kills: int = 0
    restarts: int = 0
    crashes: int = 0
    transactions: int = 0
    errors: list[str] = field(default_factory=list)
    mirrors: Mirrors = field(default_factory=Mirrors)

    @property
    def clean(self) -> bool:
        return not self.errors and not self.mirrors.uneven

    def lines(self) -> list[str]:
        mirrors = self.mirrors
        return [
            f"pgbench      {self.transactions:,} transactions recorded in {self.seconds:.0f} s",
            f"harm         {self.kills} leaders killed; server {self.restarts} x restarted, {self.crashes} x crashed",
            f"feed         {mirrors.groups:,} groups, {mirrors.changes:,} changes",
            f"sums         uneven at {mirrors.uneven} of {mirrors.groups:,} group boundaries {mirrors.first_uneven}",
            *(f"differs      {each}" for each in self.errors),
            f"verdict      {'CLEAN: every table equals its mirror, every sum agreed' if self.clean else 'NOT CLEAN'}",
        ]


class Run:
    """One run."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = folder
        self.server = PostgresqlServer(folder / "postgresql")
        self.report = Report()
        self.begun = time.monotonic()
        self.chance = random.Random(options.seed)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:6.1f} s  {text}", flush=True)

    def prepare(self) -> None:
        self.server.create()
        self.server.start()
        self.server.execute("CREATE DATABASE bank")
        self.url = self.server.url("bank")
        lay_out(Server(self.url, 10.0))
        self.pgbench("-i", "-q", "-s", str(self.options.scale)).wait()
        self.say(f"PostgreSQL runs, with {100_000 * self.options.scale:,} accounts")

    def pgbench(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(programs() / "pgbench"), "-h", self.server.host, "-p", str(self.server.port), "-U", "postgres"]
        log = (self.folder / "pgbench.log").open("ab")
        with log:
            return subprocess.Popen([*command, *arguments, "bank"], stdout=log, stderr=log)

    def capture(self) -> None:
        for table, columns in TABLES.items():
            capture.add(Server(self.url, 10.0), Capture(FEED, table, table, columns), lambda rows: None)
        self.say("four tables are captured; rows that were there are in the outbox")

    async def run(self) -> None:
        cluster = ServeCluster(
            [FEED], count=3, folder=self.folder, log=self.url, coordinator=None, env=dict(os.environ)
        )
        try:
            for instance in cluster.instances:
                instance.start()
            await trio.to_thread.run_sync(cluster.wait_ready, 60.0)
            await trio.to_thread.run_sync(self.capture)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.follow, cluster.servers)
                await self.load(cluster)
                await self.catch_up(nursery.cancel_scope)
        finally:
            cluster.stop()
            await trio.to_thread.run_sync(self.compare)

    async def follow(self, servers: str) -> None:
        async with open_subscription(FEED, servers, start="beginning") as subscription:
            async for events in subscription.groups():
                self.report.mirrors.apply(events)

    async def load(self, cluster: ServeCluster) -> None:
        """pgbench for so many seconds in three stretches: a restart ends the first, a crash the second."""
        begun = trio.current_time()
        stretch = self.options.seconds / 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.kill_leaders, cluster)
            for number, end in enumerate((signal.SIGINT, signal.SIGQUIT, None)):
                bench = self.pgbench("-n", "-c", str(self.options.clients), "-j", "2", "-T", str(int(stretch) + 5))
                await trio.sleep(stretch if end else 0)
                if end is None:
                    await trio.to_thread.run_sync(bench.wait)
                    break
                await trio.to_thread.run_sync(self.server.restart, end)
                await trio.to_thread.run_sync(bench.wait)
                self.report.restarts += number == 0
                self.report.crashes += number == 1
                self.say(f"PostgreSQL was {'restarted' if number == 0 else 'killed (immediate) and recovered'}")
            while self.report.kills < self.options.kills:  # noqa: ASYNC110  # other processes are what it waits for
                await trio.sleep(0.2)
            nursery.cancel_scope.cancel()
        self.report.seconds = trio.current_time() - begun

    async def kill_leaders(self, cluster: ServeCluster) -> None:
        pause = self.options.seconds / (self.options.kills + 1)
        while True:
            await trio.sleep(pause)
            leader = await trio.to_thread.run_sync(cluster.leader)
            if leader is None:
                await trio.sleep(0.2)
                continue
            os.kill(leader.pid, signal.SIGKILL)
            await trio.to_thread.run_sync(leader.wait, 10.0)
            self.report.kills += 1
            self.say(f"kill {self.report.kills}: leader {leader.name}; {self.report.mirrors.groups:,} groups so far")
            await trio.sleep(0.3)
            leader.start()

    async def catch_up(self, scope: trio.CancelScope) -> None:
        """Until the outbox is empty and the subscriber has everything; 120 s at most."""
        with trio.move_on_after(120):
            while True:
                before = self.report.mirrors.groups
                left = await trio.to_thread.run_sync(self.waiting)
                await trio.sleep(1.0)
                if not left and before == self.report.mirrors.groups:
                    break
        scope.cancel()

    def waiting(self) -> int:
        with psycopg.connect(self.url) as connection:
            row = connection.execute("SELECT count(*) FROM changefeed.outbox").fetchone()
        return int(row[0]) if row else 0

    def compare(self) -> None:
        """Every row of every table, as PostgreSQL's own to_jsonb has it."""
        if left := self.waiting():
            self.report.errors.append(f"{left} rows are still in the outbox")
        with psycopg.connect(self.url) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for table in BALANCES:
                rows = connection.execute(f"SELECT {TABLES[table][0]}::text, to_jsonb(t.*) FROM {table} t").fetchall()
                source = dict(rows)
                mirror = self.report.mirrors.rows[table]
                wrong = [key for key in {*source, *mirror} if source.get(key) != mirror.get(key)]
                if wrong:
                    self.report.errors.append(f"{table}: {len(wrong)} of {len(source)} rows, {wrong[0]} first")
            rows = connection.execute("SELECT to_jsonb(t.*) FROM pgbench_history t")
            history = Counter(json.dumps(row, sort_keys=True) for (row,) in rows)
        self.report.transactions = history.total()
        if history != self.report.mirrors.history:
            missing, surplus = history - self.report.mirrors.history, self.report.mirrors.history - history
            self.report.errors.append(f"pgbench_history: {missing.total()} missing, {surplus.total()} too many")


def run(options: argparse.Namespace) -> Report:
    """One run in a temporary folder; everything is stopped and removed behind it."""
    with tempfile.TemporaryDirectory(prefix="changefeed-pgbench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        found = Run(Path(name), options)
        try:
            found.prepare()
            trio.run(found.run)
        finally:
            found.server.stop(signal.SIGQUIT)
        return found.report


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seconds", type=float, default=60.0, help="of pgbench, in all")
    made.add_argument("--clients", type=int, default=8)
    made.add_argument("--kills", type=int, default=6, help="of the leader")
    made.add_argument("--scale", type=int, default=1, help="pgbench's: 100,000 accounts each")
    made.add_argument("--seed", type=int, default=1)
    return made


if __name__ == "__main__":
    report = run(parser().parse_args())
    print("\n".join(["", *report.lines()]))
    sys.exit(0 if report.clean else 1)
