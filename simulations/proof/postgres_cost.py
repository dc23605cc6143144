"""proof-postgres: what it costs: appends beside plain inserts and beside SQLite, pgbench with and without capture."""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import trio

from changefeed.log.postgresql import capture
from changefeed.log.postgresql.capture import Capture
from changefeed.log.postgresql.connections import Server
from changefeed.log.urls import open_log
from changefeed.testing.log_scribe import Scribe
from changefeed.testing.postgresql_server import programs
from simulations.pgbench import TABLES
from simulations.proof import postgres_basis as basis
from simulations.proof.rows import Row

BATCHES: Final = (1, 10, 100, 1000)
CHANGE_BYTES: Final = 200
#: Times of each, alternating; medians are compared.
TIMES: Final = 300
PGBENCH_S: Final = 12
PGBENCH_RUNS: Final = 3
SCALE: Final = 8
#: Four captured statements for each transaction, and a leader that shares the machine with server and clients.
SHARE: Final = 0.2


def cost(quick: bool = False) -> Iterator[Row]:
    yield from appends(TIMES // 10 if quick else TIMES, quick)
    yield captured(3 if quick else PGBENCH_S, quick)


def appends(times: int, quick: bool) -> Iterator[Row]:
    """The three kinds take turns, one at a time, so that all see the same machine and the same disk."""
    with basis.database() as (server, url), tempfile.TemporaryDirectory(dir=server.directory.parent) as folder:
        server.execute("CREATE TABLE plain (id bigserial PRIMARY KEY, data bytea NOT NULL)", database="proof")
        found = trio.run(measure, url, f"sqlite:{Path(folder) / 'log'}", times)
    for count in BATCHES:
        log, plain, sqlite = (found[count, kind] for kind in ("log", "plain", "sqlite"))
        yield Row(
            f"append of {count:,} changes of {CHANGE_BYTES} bytes, durable: PostgreSQL beside as many plain INSERTs in "
            "one transaction, and beside SQLite on the same disk",
            f"{log:.2f} ms ({1000 * count / log:,.0f} changes/s); INSERT {plain:.2f} ms "
            f"({1000 * count / plain:,.0f} rows/s); SQLite {sqlite:.2f} ms ({1000 * count / sqlite:,.0f} changes/s); "
            f"medians of {times}",
            f"at most three times the plain INSERT{basis.quick_note(quick)}",
            log <= 3 * plain and not quick,
        )


async def measure(url: str, sqlite: str, times: int) -> dict[tuple[int, str], float]:
    """Median milliseconds, by batch and kind."""
    taken: dict[tuple[int, str], list[float]] = {}
    stores = {"log": open_log(url), "sqlite": open_log(sqlite)}
    logs = {kind: await store.open(basis.FEED) for kind, store in stores.items()}
    scribes = {kind: await Scribe.fencing(log, 1) for kind, log in logs.items()}
    with psycopg.connect(url) as connection:
        for number in range(times):
            # The first round warms caches and plans: it is not counted.
            for count in BATCHES:
                for kind in ("log", "plain", "sqlite"):
                    begun = time.perf_counter()
                    if kind == "plain":
                        await trio.to_thread.run_sync(insert, connection, count)
                    else:
                        scribe = scribes[kind]
                        entry = scribe.entry(sizes=(1,) * count, size=CHANGE_BYTES * count)
                        begun = time.perf_counter()
                        await scribe.append([entry])
                    if number:
                        taken.setdefault((count, kind), []).append(1000 * (time.perf_counter() - begun))
    for kind, log in logs.items():
        await log.aclose()
        await stores[kind].aclose()
    return {key: statistics.median(values) for key, values in taken.items()}


def insert(connection: psycopg.Connection[Any], count: int) -> None:
    """Rows as an application would write them in one transaction: one statement for all."""
    connection.execute(
        "INSERT INTO plain (data) SELECT unnest(%s::bytea[])", ([bytes(CHANGE_BYTES)] * count,), prepare=True
    )
    connection.commit()


# ---- pgbench with and without capture


def captured(seconds: int, quick: bool) -> Row:
    """pgbench's own transactions, with and without capture in turn, on one server; a leader moves what is captured."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    with basis.database() as (server, url), basis.cluster(url, count=1):
        run(server, "-i", "-q", "-s", str(SCALE))
        connect = Server(url, 10.0)
        for _ in range(1 if quick else PGBENCH_RUNS):
            for on in (False, True):
                for table, columns in TABLES.items():
                    if on:
                        wanted = Capture(basis.FEED, table, table, columns, initial=False)
                        capture.add(connect, wanted, lambda rows: None)
                    elif any(each.table == table for each in capture.captures(connect)):
                        capture.remove(connect, table)
                said = run(server, "-n", "-c", "8", "-j", "2", "-T", str(seconds))
                rates[on].append(float(re.search(r"tps = ([\d.]+)", said).group(1)))  # type: ignore[union-attr]
        left = basis.waiting_rows(url)
    without, with_it = statistics.median(rates[False]), statistics.median(rates[True])
    share = with_it / without
    return Row(
        f"pgbench (TPC-B, scale {SCALE}, 8 clients, four captured tables, a leader that moves them on the same "
        "machine): transactions per second with and without capture",
        f"{with_it:,.0f} with, {without:,.0f} without: {share:.0%} (medians of {len(rates[True])}, in turn); "
        f"{left:,} rows still waiting at the end",
        f"at least {SHARE:.0%}{basis.quick_note(quick)}",
        share >= SHARE and not quick,
    )


def run(server: Any, *arguments: str) -> str:
    command = [str(programs() / "pgbench"), "-h", server.host, "-p", str(server.port), "-U", "postgres"]
    done = subprocess.run([*command, *arguments, "proof"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pgbench failed: {done.stderr.strip()[-300:]}")
    return done.stdout
