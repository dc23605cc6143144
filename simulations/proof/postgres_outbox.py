"""proof-postgres: the outbox: its order against a model, transactions held open, leaders that race, a million rows."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
import trio

from changefeed import Change, open_publisher
from simulations.proof import postgres_basis as basis
from simulations.proof.postgres_jobs import imported, laid_out
from simulations.proof.rows import Row

EXAMPLES: Final = 60
SECONDS: Final = 150.0
WRITERS: Final = 6
KEYS: Final = 12
KILLS: Final = 6
#: Of a kept-open transaction.
HELD_S: Final = 120.0
MILLION: Final = 1_000_000
#: What a leader may grow by while it drains the second half of them, 100 MiB and more: its window is full by then.
GROWTH_MIB: Final = 24
RATE_CPU: Final = 20_000
#: Of a publisher's rate, all its processor seconds counted: a row is also read, parsed and taken out again.
RATE_SHARE: Final = 1 / 3
PUT: Final = (
    "SELECT count(changefeed.publish(%s, 'vm', 'vm-' || i %% 1000, 'update', ARRAY['state'],"
    " jsonb_build_object('state', 'running', 'n', i, 'note', repeat('x', 100))))"
    " FROM generate_series(%s::int, %s::int) i"
)


def model(quick: bool = False) -> Iterator[Row]:
    """The machine of tests/postgresql/test_outbox_model.py, from new seeds."""
    examples = 5 if quick else EXAMPLES
    from hypothesis import HealthCheck, settings

    machine = imported("test_outbox_model").Outbox
    with laid_out() as server:
        machine.server = server
        case = machine.TestCase
        case.settings = settings(
            max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        )
        case().runTest()  # raises what differs, with the steps that lead there
    yield Row(
        "outbox beside a model: crossing keys, other order of commits than of writes, rollbacks, two leaders racing; "
        "sequences of up to 25 steps from new seeds",
        f"{examples} sequences, 0 differ",
        f"0 differ{basis.quick_note(quick)}",
        not quick,
    )


# ---- real transactions at once


@dataclass
class Ledger:
    """What the feed tells. Every change carries its transaction, its number in it, and how many that one has."""

    seen: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    torn: list[str] = field(default_factory=list)
    twice: int = 0
    groups: int = 0
    _transactions: set[int] = field(default_factory=set)

    def apply(self, events: list[Any]) -> None:
        bodies = [event.change.body for event in events]
        transactions = {body["transaction"] for body in bodies}
        numbers = [body["number"] for body in bodies]
        if len(transactions) != 1 or numbers != list(range(1, bodies[0]["of"] + 1)):
            self.torn.append(f"{transactions} {numbers}")
        self.groups += 1
        self.twice += len(transactions & self._transactions)
        self._transactions |= transactions
        for event, body in zip(events, bodies, strict=True):
            self.seen[event.change.id].append((body["transaction"], body["number"]))

    def faults(self, source: dict[str, list[tuple[int, int]]]) -> list[str]:
        """Against each key's history, which was written in the same transactions."""
        found = [f"torn: {each}" for each in self.torn[:3]]
        if self.twice:
            found.append(f"{self.twice} transactions twice")
        for key in sorted({*source, *self.seen}):
            if self.seen.get(key, []) != source.get(key, []):
                told, written = len(self.seen.get(key, [])), len(source.get(key, []))
                found.append(f"key {key}: {told} told of {written}, in another order than committed")
        return found


SCHEMA: Final = (
    "CREATE TABLE counts (key text PRIMARY KEY, count bigint NOT NULL)",
    "CREATE TABLE history (key text, count bigint, transaction bigint, number integer, PRIMARY KEY (key, count))",
)
STEP: Final = (
    "SELECT changefeed.publish('vmapi', 'vm', %(key)s, 'update', NULL, jsonb_build_object('transaction',"
    " %(transaction)s::bigint, 'number', %(number)s::int, 'of', %(of)s::int))"
)
#: Behind publish(), hence under its lock: a key's counts are the order in which its transactions commit.
COUNTED: Final = (
    "WITH counted AS (INSERT INTO counts VALUES (%(key)s, 1) ON CONFLICT (key) DO UPDATE SET count = counts.count + 1"
    " RETURNING count) INSERT INTO history SELECT %(key)s, count, %(transaction)s, %(number)s FROM counted"
)


class Writer:
    """A thread that commits transactions of one to five changes of keys in any order; a deadlock is tried again."""

    def __init__(self, url: str, number: int, stop: threading.Event) -> None:
        self.url, self.stop = url, stop
        self.number = number
        self.chance = random.Random(os.urandom(8))
        self.committed = self.rolled_back = self.deadlocks = 0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        transaction = self.number * 10**9
        with psycopg.connect(self.url) as connection:
            while not self.stop.is_set():
                transaction += 1
                keys = [f"k{self.chance.randrange(KEYS)}" for _ in range(self.chance.randint(1, 5))]
                try:
                    self.transaction(connection, transaction, keys)
                except psycopg.errors.DeadlockDetected:
                    connection.rollback()
                    self.deadlocks += 1

    def transaction(self, connection: psycopg.Connection[Any], transaction: int, keys: list[str]) -> None:
        for number, key in enumerate(keys, 1):
            put(connection, transaction, key, number, len(keys))
            time.sleep(self.chance.choice((0, 0, 0.001, 0.005)))
        if self.chance.random() < 0.15:
            connection.rollback()
            self.rolled_back += 1
        else:
            connection.commit()
            self.committed += 1


def put(connection: psycopg.Connection[Any], transaction: int, key: str, number: int, of: int) -> None:
    """One change of a key, its count and its line in the history: in the caller's transaction."""
    values = {"key": key, "transaction": transaction, "number": number, "of": of}
    connection.execute(STEP, values)
    connection.execute(COUNTED, values)


def busy(quick: bool = False) -> Iterator[Row]:
    """Writers at once, a transaction held open all the while, leaders killed: each committed row once, in order. Then
    without what keeps the order."""
    found = at_once(*((10.0, 2) if quick else (SECONDS, KILLS)))
    yield Row(
        f"outbox: {WRITERS} applications at once over {KEYS} keys, {found.kills} leaders killed, one transaction held "
        f"open for {found.held:.0f} s",
        f"{found.committed:,} transactions committed, {found.rolled_back:,} rolled back, {found.deadlocks:,} deadlocks "
        f"tried again; {found.groups:,} groups in the feed; "
        f"{'; '.join(found.faults) or 'each once, whole, each key in the order of commits'}",
        f"each once, whole, in order; held open {HELD_S:g} s, {KILLS} kills{basis.quick_note(quick)}",
        not found.faults
        and found.groups == found.committed
        and found.held >= HELD_S
        and found.kills >= KILLS
        and not quick,
    )
    for line, function, text, instead in WITHOUT:
        broken = at_once(10.0, 1, changed(function, text, instead))
        yield Row(
            f"the same for {broken.held:.0f} s {line}: must break, or this proves nothing",
            f"{broken.committed:,} transactions committed; {len(broken.faults)} faults"
            f"{': ' + broken.faults[0] if broken.faults else ''}",
            "broken",
            bool(broken.faults),
        )


#: (in words, function, a text of it, what stands there instead)
WITHOUT: Final = (
    (
        "without the lock of the key",
        "publish",
        "PERFORM pg_advisory_xact_lock(hashtextextended(v_feed || ' ' || resource || ' ' || id, 1));",
        "",
    ),
    (
        "in the order of transaction ids",
        "outbox_waiting",
        "array_agg(t.xid ORDER BY t.top)",
        "array_agg(t.xid ORDER BY t.xid)",
    ),
)


def changed(function: str, text: str, instead: str) -> str:
    """A function of outbox_1.sql with one text replaced."""
    source = (basis.ROOT / "changefeed/log/postgresql/outbox_1.sql").read_text()
    begin = source.index(f"CREATE FUNCTION changefeed.{function}(")
    found = source[begin : source.index("END $$;", begin) + len("END $$;")]
    assert found.count(text) == 1, f"{function} holds {text!r} {found.count(text)} times"
    return found.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1).replace(text, instead)


@dataclass
class AtOnce:
    """What a run came to. held: seconds for which one transaction was open."""

    kills: int = 0
    held: float = 0.0
    committed: int = 0
    rolled_back: int = 0
    deadlocks: int = 0
    groups: int = 0
    faults: list[str] = field(default_factory=list)


def at_once(seconds: float, kills: int, instead: str = "") -> AtOnce:
    """One run on a server of its own. instead: a function of the outbox as it should not be."""
    # Keys cross on purpose, so that deadlocks are many: they are noticed soon.
    with basis.database(deadlock_timeout="20ms") as (server, url), basis.cluster(url) as cluster:
        server.execute(*SCHEMA, *([instead] if instead else []), database="proof")
        ledger, stop = Ledger(), threading.Event()
        killer = basis.Killer(cluster, seconds / (kills + 1))
        found = AtOnce()

        async def main() -> None:
            reader = basis.Reader(cluster.servers, ledger.apply)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run)
                scope = _start(nursery, killer)
                await trio.to_thread.run_sync(write, url, seconds, stop, found)
                scope.cancel()
                if not await basis.settle(url, reader):
                    found.faults.append("the subscriber did not get everything within 120 s")
                nursery.cancel_scope.cancel()

        try:
            trio.run(main)
        finally:
            stop.set()
        with psycopg.connect(url) as connection:
            source: dict[str, list[tuple[int, int]]] = defaultdict(list)
            rows = connection.execute("SELECT key, transaction, number FROM history ORDER BY key, count")
            for key, transaction, number in rows:
                source[key].append((transaction, number))
    found.kills, found.groups = killer.kills, ledger.groups
    found.faults += ledger.faults(source)
    return found


def write(url: str, seconds: float, stop: threading.Event, found: AtOnce) -> None:
    """Writers at once for so long; one transaction is open for most of it."""
    writers = [Writer(url, number, stop) for number in range(1, WRITERS + 1)]
    # It draws a row id first of all, and another one when everybody else has long gone on.
    with psycopg.connect(url) as long_one:
        begun = time.monotonic()
        put(long_one, 1, "held", 1, 2)
        time.sleep(seconds * 0.8)
        put(long_one, 1, "held-too", 2, 2)
        long_one.commit()
        found.held = time.monotonic() - begun
    time.sleep(seconds * 0.2)
    stop.set()
    for writer in writers:
        writer.thread.join()
    found.committed = sum(writer.committed for writer in writers) + 1
    found.rolled_back = sum(writer.rolled_back for writer in writers)
    found.deadlocks = sum(writer.deadlocks for writer in writers)


def _start(nursery: trio.Nursery, killer: basis.Killer) -> trio.CancelScope:
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await killer.run()

    nursery.start_soon(run)
    return scope


# ---- a million rows waiting


def million(quick: bool = False) -> Iterator[Row]:
    """Put while nobody leads; then one instance drains them. Processor seconds: others do not count."""
    rows = MILLION // 20 if quick else MILLION
    with basis.database() as (server, url):
        trio.run(basis.create_feed, url)
        latencies = {"empty": publish_ms(url)}
        fill(url, rows)
        latencies["full"] = publish_ms(url)
        left = basis.waiting_rows(url)
        size = int(basis.ask(url, "SELECT pg_total_relation_size('changefeed.outbox')"))
        with basis.cluster(url, count=1, started=False) as cluster:
            found = drain(server, url, cluster, left)
            published = append_rate(server, cluster, rows // 5)
        latencies["drained"] = publish_ms(url)
        size_after = int(basis.ask(url, "SELECT pg_total_relation_size('changefeed.outbox')"))
    rate = left / found.cpu
    yield Row(
        f"{left:,} rows waiting when the leader begins: drained",
        f"{found.wall:.1f} s: {left / found.wall:,.0f} rows/s; {rate:,.0f} rows per processor second of leader "
        f"({found.leader:.1f} s) and PostgreSQL ({found.server:.1f} s); the same changes through a publisher: "
        f"{published:,.0f} per processor second of publisher, leader and PostgreSQL",
        f"{RATE_CPU:,} rows per processor second, at least a third of a publisher's{basis.quick_note(quick)}",
        rate >= RATE_CPU and rate >= RATE_SHARE * published and left >= MILLION and not quick,
    )
    yield Row(
        "memory of the leader's process meanwhile",
        f"{found.before:.0f} MiB at its start, {found.half:.0f} MiB at most until half was drained, "
        f"{found.most:.0f} MiB at most until all was: {found.most - found.half:.0f} MiB more; the outbox's table "
        f"{size / basis.MIB:.0f} MiB",
        f"{GROWTH_MIB} MiB more in the second half{basis.quick_note(quick)}",
        found.most - found.half <= GROWTH_MIB and not quick,
    )
    yield Row(
        "what the outbox's own table costs an application: one publish() and its commit, median",
        f"{latencies['empty']:.2f} ms empty, {latencies['full']:.2f} ms with {left:,} waiting, "
        f"{latencies['drained']:.2f} ms after; table {size / basis.MIB:.0f} MiB full, {size_after / basis.MIB:.0f} MiB "
        "after",
        f"at most twice as long{basis.quick_note(quick)}",
        max(latencies["full"], latencies["drained"]) <= 2 * latencies["empty"] and not quick,
    )


def fill(url: str, rows: int, each: int = 1000) -> None:
    """By publish(), in transactions of 1,000 changes: two connections at once."""

    def one(begin: int, end: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for first in range(begin, end, each):
                connection.execute(PUT, (basis.FEED, first, min(first + each, end) - 1))

    half = rows // 2 // each * each
    threads = [threading.Thread(target=one, args=bounds) for bounds in ((0, half), (half, rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def publish_ms(url: str, times: int = 300) -> float:
    """Median time of a transaction that publishes one change."""
    taken = []
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(times):
            begun = time.perf_counter()
            connection.execute(PUT, (basis.FEED, number, number))
            taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken)


@dataclass
class Drained:
    wall: float
    leader: float
    server: float
    before: float
    half: float
    most: float

    @property
    def cpu(self) -> float:
        return max(self.leader + self.server, 0.01)


def drain(server: Any, url: str, cluster: Any, rows: int) -> Drained:
    """From the leader's start until the outbox is empty."""
    (instance,) = cluster.instances
    used: dict[int, float] = {}
    begun = time.monotonic()
    instance.start()
    before = half = 0.0
    while True:
        meter(server, used)
        if not before and instance.ready():
            before = basis.memory_mib(instance.pid)
        moved = basis.tail_seq(url)
        if not half and moved >= rows / 2:
            half = basis.memory_mib(instance.pid, "VmHWM")
        if moved >= rows:
            break
        if time.monotonic() - begun > 600:
            raise RuntimeError(f"of {rows:,} rows, {basis.waiting_rows(url):,} still wait after 600 s")
        time.sleep(0.05)
    wall = time.monotonic() - begun
    return Drained(
        wall,
        basis.cpu_s([instance.pid]),
        sum(used.values()),
        before,
        half,
        basis.memory_mib(instance.pid, "VmHWM"),
    )


def meter(server: Any, used: dict[int, float]) -> None:
    """Notes what each server process has used: those that end meanwhile count with what was seen last."""
    for pid in server.backends():
        used[pid] = max(used.get(pid, 0.0), basis.cpu_s([pid]))


def append_rate(server: Any, cluster: Any, count: int) -> float:
    """Changes per processor second of publisher (this process), leader and PostgreSQL, in groups of 1,000."""
    (instance,) = cluster.instances
    used: dict[int, float] = {}
    meter(server, used)
    begun = basis.cpu_s([instance.pid]) + sum(used.values()) + time.process_time()
    trio.run(appended, cluster.servers, count)
    meter(server, used)
    return count / max(basis.cpu_s([instance.pid]) + sum(used.values()) + time.process_time() - begun, 0.01)


async def appended(servers: str, count: int) -> None:
    """A publisher sends the same bodies, all acknowledged."""
    body = {"state": "running", "n": 1, "note": "x" * 100}
    async with open_publisher(basis.FEED, servers) as publisher:
        pending = [
            await publisher.submit([Change("vm", f"vm-{number}", "update", ("state",), body) for number in range(1000)])
            for _ in range(count // 1000)
        ]
        for each in pending:
            await each.wait()
