"""proof-postgres: mirrors of tables that are written to meanwhile: by two instances of a service, by pgbench."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
import trio

from changefeed import open_publisher
from changefeed.log.postgresql import capture
from changefeed.log.postgresql.capture import Capture
from changefeed.log.postgresql.connections import Server
from changefeed.testing.postgresql_server import programs
from simulations.proof import postgres_basis as basis
from simulations.proof.rows import Row

WAYS: Final = ("outbox", "captured", "versioned", "plain")
KEYS: Final = 4
#: Of writing, in rounds: at the end of each, mirrors and tables are compared.
SECONDS: Final = 60.0
ROUND_S: Final = 1.0
#: Between a commit and what a service then publishes: a scheduler, a garbage collection, a retry.
BETWEEN_S: Final = 0.05
INITIAL_SCALE: Final = 10


@dataclass
class Mirror:
    """A table as its feed tells it: the last word on each row; with versions, the highest."""

    versioned: bool
    rows: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    backwards: int = 0

    def apply(self, change: Any) -> None:
        held = self.rows.get(change.id)
        self.backwards += held is not None and change.body["version"] < held["version"]
        if self.versioned:
            if change.version <= self.versions.get(change.id, -1):
                return
            self.versions[change.id] = change.version
        if change.op == "delete":
            self.rows.pop(change.id, None)
        else:
            self.rows[change.id] = change.body


@dataclass
class Found:
    """differing: at the end of how many rounds a mirror differed from its table, and in how many rows, by way."""

    rounds: int = 0
    seconds: float = 0.0
    updates: int = 0
    unsettled: int = 0
    backwards: int = 0
    differing: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WAYS, 0))
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WAYS, 0))


def two_instances(quick: bool = False) -> Iterator[Row]:
    """One run for all four ways: each instance updates a row of each table, and tells it in that table's way."""
    seconds = 6.0 if quick else SECONDS
    with basis.database() as (server, url), basis.cluster(url) as cluster:
        server.execute(
            *(f"CREATE TABLE {way} (key text PRIMARY KEY, n integer, by text, version bigint)" for way in WAYS),
            *(f"INSERT INTO {way} SELECT 'k' || i, 0, '', 0 FROM generate_series(1, {KEYS}) i" for way in WAYS),
            database="proof",
        )
        capture.add(Server(url, 10.0), Capture(basis.FEED, "captured", "captured", ("key",)), lambda rows: None)
        found = trio.run(Service(url, cluster.servers).run, seconds)
    note = basis.quick_note(quick)
    enough = found.seconds >= SECONDS and found.updates > 0 and not found.unsettled and not quick
    told = {
        "outbox": "with the outbox",
        "captured": "with the table captured",
        "versioned": "with plain publish and `version`, of which the mirror keeps the highest",
    }
    for way, line in told.items():
        yield Row(
            f"two instances of a service update the same {KEYS} rows for {found.seconds:.0f} s, {line}",
            f"{found.updates // len(WAYS):,} updates; after {found.rounds} rounds the mirror differed "
            f"{found.differing[way]} times",
            f"equal after every round of {SECONDS:g} s{note}",
            found.differing[way] == 0 and enough,
        )
    yield Row(
        "the same with plain publish without `version`: does not hold (shown)",
        f"{found.updates // len(WAYS):,} updates; {found.backwards:,} times an older row came after a newer one; after "
        f"{found.rounds} rounds the mirror differed {found.differing['plain']} times, in {found.rows['plain']} rows",
        f"differs{note}",
        found.differing["plain"] > 0 and enough,
    )


class Service:
    """Two instances of it, and the mirrors of who follows."""

    def __init__(self, url: str, servers: str) -> None:
        self.url = url
        self.servers = servers
        self.found = Found()
        self.mirrors = {way: Mirror(way == "versioned") for way in WAYS}

    def apply(self, events: list[Any]) -> None:
        for event in events:
            self.mirrors[event.change.resource].apply(event.change)

    async def run(self, seconds: float) -> Found:
        reader = basis.Reader(self.servers, self.apply)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run)
            async with open_publisher(basis.FEED, self.servers) as one, open_publisher(basis.FEED, self.servers) as two:
                while self.found.seconds < seconds:
                    begun = trio.current_time()
                    async with trio.open_nursery() as instances:
                        for name, publisher in (("one", one), ("two", two)):
                            instances.start_soon(self.instance, name, publisher)
                    self.found.seconds += trio.current_time() - begun
                    self.found.rounds += 1
                    if not await basis.settle(self.url, reader):
                        self.found.unsettled += 1
                        break
                    await trio.to_thread.run_sync(self.compare)
            nursery.cancel_scope.cancel()
        self.found.backwards = self.mirrors["plain"].backwards
        return self.found

    async def instance(self, name: str, publisher: Any) -> None:
        """One instance for one round. What it publishes goes out beside its next update, as in a real one."""
        chance = random.Random(os.urandom(8))
        until = trio.current_time() + ROUND_S
        with psycopg.connect(self.url, autocommit=True) as connection:
            async with trio.open_nursery() as nursery:
                while trio.current_time() < until:
                    keys = {way: f"k{chance.randint(1, KEYS)}" for way in WAYS}
                    told = await trio.to_thread.run_sync(update, connection, name, keys)
                    self.found.updates += len(WAYS)
                    for way, key, body in told:
                        nursery.start_soon(self.publish, publisher, way, key, body, chance.uniform(0, BETWEEN_S))
                    await trio.sleep(chance.uniform(0, 0.005))

    async def publish(self, publisher: Any, way: str, key: str, body: dict[str, Any], later_s: float) -> None:
        await trio.sleep(later_s)
        version = body["version"] if way == "versioned" else None
        await publisher.publish(way, key, "update", body=body, version=version)

    def compare(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            for way in WAYS:
                source = dict(connection.execute(f"SELECT key, to_jsonb(t.*) FROM {way} t").fetchall())
                mirror = self.mirrors[way].rows
                # What nobody has updated yet was told by the capture only.
                source = {key: row for key, row in source.items() if row["version"] or key in mirror}
                wrong = [key for key in {*source, *mirror} if source.get(key) != mirror.get(key)]
                self.found.differing[way] += bool(wrong)
                self.found.rows[way] += len(wrong)


def update(connection: psycopg.Connection[Any], name: str, keys: dict[str, str]) -> list[tuple[str, str, Any]]:
    """One update of a row of each table, each in a transaction of its own. Returns what is still to be published."""
    told = []
    for way in WAYS:
        with connection.transaction():
            found = connection.execute(
                f"UPDATE {way} t SET n = n + 1, by = %s, version = version + 1 WHERE key = %s RETURNING to_jsonb(t.*)",
                (name, keys[way]),
            ).fetchone()
            assert found is not None
            if way == "outbox":
                connection.execute(
                    "SELECT changefeed.publish(%s, 'outbox', %s, 'update', body => %s::jsonb)",
                    (basis.FEED, keys[way], json.dumps(found[0])),
                )
        if way in ("versioned", "plain"):
            told.append((way, keys[way], found[0]))
    return told


# ---- capture add --initial under load


class Rebuilt:
    """pgbench_accounts as the feed tells it: a digest of each row."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.present = 0

    def apply(self, events: list[Any]) -> None:
        for event in events:
            change = event.change
            self.present += change.op == "present"
            if change.op == "delete":
                self.rows.pop(change.id, None)
            else:
                self.rows[change.id] = digest(change.body)


def digest(row: Any) -> bytes:
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).digest()


def initial(quick: bool = False) -> Iterator[Row]:
    """`changefeed capture add --initial` while pgbench writes; the command is killed twice and run again."""
    scale = 1 if quick else INITIAL_SCALE
    rows = 100_000 * scale
    with basis.database() as (server, url), basis.cluster(url, count=2) as cluster:
        pgbench(server, "-i", "-q", "-s", str(scale)).wait()
        rebuilt = Rebuilt()
        result: dict[str, Any] = {}

        async def main() -> None:
            reader = basis.Reader(cluster.servers, rebuilt.apply)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run)
                result.update(await trio.to_thread.run_sync(add_under_load, server, url, rows))
                result["settled"] = await basis.settle(url, reader, 300.0)
                nursery.cancel_scope.cancel()

        trio.run(main)
        wrong = missing = there = 0
        with psycopg.connect(url) as connection, connection.cursor(name="all") as cursor:
            cursor.itersize = 20_000
            cursor.execute("SELECT aid::text, to_jsonb(t.*) FROM pgbench_accounts t")
            for aid, row in cursor:
                there += 1
                held = rebuilt.rows.get(aid)
                missing += held is None
                wrong += held is not None and held != digest(row)
    surplus = len(rebuilt.rows) - (there - missing)
    equal = not (wrong or missing or surplus)
    late = "" if result["settled"] else "; the subscriber did not get everything within 300 s"
    yield Row(
        f"capture add --initial on {there:,} rows under pgbench load, the command killed {result['kills']} times",
        f"{result['seconds']:.0f} s; {result['transactions']:,} pgbench transactions meanwhile; {rebuilt.present:,} "
        f"rows told as present; rebuilt table: {missing} missing, {wrong} differ, {surplus} too many{late}",
        f"1,000,000 rows, 2 kills, equal{basis.quick_note(quick)}",
        equal
        and result["settled"]
        and there >= 1_000_000
        and result["kills"] == 2
        and result["transactions"] > 0
        and rebuilt.present >= there
        and not quick,
    )


def pgbench(server: Any, *arguments: str) -> subprocess.Popen[bytes]:
    command = [str(programs() / "pgbench"), "-h", server.host, "-p", str(server.port), "-U", "postgres"]
    return subprocess.Popen([*command, *arguments, "proof"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def add_under_load(server: Any, url: str, rows: int) -> dict[str, Any]:
    """Until the capture is complete: run, killed at a third, run, killed at two thirds, run."""
    # pgbench's three other tables are not captured: what is rebuilt are the accounts.
    load = pgbench(server, "-n", "-c", "4", "-T", "3600")
    begun, kills = time.monotonic(), 0
    command = [sys.executable, "-m", "changefeed.cli", "capture", "add", "--log", url, "--feed", basis.FEED]
    command += ["--table", "pgbench_accounts", "--resource", "account", "--id", "aid", "--initial"]
    try:
        for until in (rows // 3, 2 * rows // 3, None):
            with subprocess.Popen(command, cwd=basis.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as adding:
                while until is not None and adding.poll() is None and far(url) < until:
                    time.sleep(0.05)
                if until is not None and adding.poll() is None:
                    os.kill(adding.pid, signal.SIGKILL)
                    kills += 1
                _, said = adding.communicate(timeout=600)
                if until is None and adding.returncode:
                    raise RuntimeError(f"capture add failed: {said.decode(errors='replace').strip()[-300:]}")
    finally:
        load.terminate()  # whoever was started in the background by a shell ignores SIGINT, and so does what it starts
        load.wait()
    transactions = int(basis.ask(url, "SELECT count(*) FROM pgbench_history"))
    return {"kills": kills, "seconds": time.monotonic() - begun, "transactions": transactions}


def far(url: str) -> int:
    """How far the initial rows have come: the key after which it would go on."""
    found = basis.ask(url, "SELECT initial_after[1] FROM changefeed.captures")
    return int(found or 0)
