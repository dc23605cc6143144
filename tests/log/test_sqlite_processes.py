"""The SQLite store among several processes: killed, frozen, racing for the lock, standing in the way."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from changefeed.errors import AppendOutcomeUnknown, Fenced, LogUnavailable
from changefeed.log import Fence
from changefeed.log.sqlite import SqliteFeedLog
from changefeed.log.sqlite_io import wal_holder, write_lock_holder
from changefeed.log.verify import verify_log
from changefeed.settings import Settings
from changefeed.testing.log_scribe import Scribe

Open = Callable[..., Awaitable[SqliteFeedLog]]
Worker = Callable[..., "subprocess.Popen[str]"]

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
IMPATIENT = Settings(log_timeout_s=0.05)


async def test_follower_reads_while_another_process_appends(directory: Path, open_here: Open, worker: Worker) -> None:
    """What another process appends is read here, entry by entry, in its order; wait wakes for it."""
    log = await open_here()
    leader = worker("append")
    seq = 0
    while seq < 60:
        await log.wait(seq)
        for entry in await log.read(seq, 5000):
            assert entry.seq == seq + 1
            seq = entry.last_seq
    leader.kill()
    leader.wait()
    assert (await verify_log(log)).fault is None
    await log.aclose()


async def test_what_was_acknowledged_survives_a_kill_mid_append(
    directory: Path, open_here: Open, worker: Worker
) -> None:
    """SIGKILL of an appending process, again and again: acknowledged entries are held, the log is whole."""
    acked = 0
    for round_ in range(5):
        leader = worker("append")
        assert leader.stdout is not None
        lines = [leader.stdout.readline() for _ in range(3 + round_)]
        leader.kill()
        lines += leader.stdout.read().splitlines(keepends=True)
        acked = max(int(line.split()[1]) for line in lines if line.endswith("\n"))
        log = await open_here()
        scribe = await Scribe.fencing(log, (await log.look()).fence.epoch + 1, opens=False)
        assert (await verify_log(log)).fault is None
        # One append of two entries may have been stored without its acknowledgement arriving.
        assert scribe.tail.seq in (acked, acked + 3)
        await log.aclose()
    assert acked > 0


async def test_a_deposed_leader_of_another_process_is_fenced(directory: Path, open_here: Open, worker: Worker) -> None:
    """The other process appends until our fence stands, and nothing of it follows."""
    log = await open_here()
    leader = worker("append")
    await log.wait(0)
    look = await log.fence(Fence(2, "feedface"), why="silent", time=1, clean=False)
    await Scribe(log, look).write(1)
    assert leader.wait() == 1, "the worker ends with an unhandled Fenced"
    assert [entry.epoch for entry in await log.read(look.tail.seq, 10**6)] == [2]
    await log.aclose()


async def test_a_holder_of_the_write_lock_is_named_and_does_not_hide_the_fence(
    directory: Path, open_here: Open, worker: Worker
) -> None:
    """A process frozen inside a transaction: fences and appends give up after log_timeout_s and name it, looks and
    reads go on (so the election can find and kill it), and after its death everything does."""
    log = await open_here(IMPATIENT)
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    frozen = worker("hold")
    frozen.send_signal(signal.SIGSTOP)
    assert write_lock_holder(str(directory / "vmapi.db")) == frozen.pid
    with pytest.raises(LogUnavailable, match=f"process {frozen.pid} has held the write lock"):
        await log.fence(Fence(2, "00000002"), why="silent", time=1, clean=False)
    with pytest.raises(LogUnavailable, match=str(frozen.pid)):
        await scribe.append([scribe.entry()])
    assert (await log.look(renew=(1, scribe.term, 99))).fence.renewed == 99
    assert len(await log.read(0, 1000)) == 1
    other = await open_here(IMPATIENT)
    assert (await other.look()).fence.renewed == 99
    frozen.kill()
    frozen.wait()
    await (await Scribe.fencing(log, 2)).write(1)
    assert (await other.look()).tail.seq == 2
    assert write_lock_holder(str(directory / "vmapi.db")) == 0
    await other.aclose()
    await log.aclose()


async def test_a_frozen_reader_holds_neither_fence_nor_appends(
    directory: Path, open_here: Open, worker: Worker
) -> None:
    """A process frozen inside a read keeps the write-ahead log from being cut: the fence gives up waiting for it,
    `maintain` names it, and cuts the log once it is gone."""
    log = await open_here(Settings(wal_bytes_truncate=100_000))
    await (await Scribe.fencing(log, 1)).write(1)
    frozen = worker("read")
    frozen.send_signal(signal.SIGSTOP)
    scribe = Scribe(log, await log.fence(Fence(2, "00000002"), why="silent", time=1, clean=False))
    await scribe.write(1, size=300_000)
    facts = await log.maintain()
    assert facts["wal_holder_pid"] == frozen.pid == wal_holder(str(directory / "vmapi.db"))
    assert facts["wal_bytes"] > 300_000 and facts["wal_left_bytes"] > 0
    frozen.kill()
    frozen.wait()
    facts = await log.maintain()
    assert facts["wal_bytes"] == facts["wal_left_bytes"] == 0 and "wal_holder_pid" not in facts
    assert (await verify_log(log)).fault is None
    await log.aclose()


async def test_an_unclean_fence_leaves_nothing_in_the_write_ahead_log(directory: Path, open_here: Open) -> None:
    """After it, everything is in the database and synced; a clean one leaves that to `maintain`."""
    log = await open_here()
    wal = directory / "vmapi.db-wal"
    await (await Scribe.fencing(log, 1)).write(1)
    await log.fence(Fence(2, "00000002"), why="handover", time=1, clean=True)
    assert wal.stat().st_size > 0
    await log.fence(Fence(3, "00000003"), why="process-gone", time=1, clean=False)
    assert wal.stat().st_size == 0
    await log.aclose()


async def test_a_fence_frozen_in_its_turn_does_not_stop_appends(directory: Path, open_here: Open) -> None:
    """The turn is a hint: an appender gives way for a moment, then goes on, and does not wait for each append."""
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    with (directory / "vmapi.turn").open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for _ in range(3):
            await scribe.write(1)
        await Scribe.fencing(log, 2)
    await log.aclose()


async def test_the_turn_file_may_vanish(directory: Path, open_here: Open) -> None:
    """Without it everything works, less fairly; another process makes a new one."""
    log = await open_here()
    os.unlink(directory / "vmapi.turn")
    await (await Scribe.fencing(log, 1)).write(1)
    (directory / "vmapi.turn").mkdir()
    other = await open_here()
    await (await Scribe.fencing(other, 2)).write(1)
    assert (await other.look(renew=(2, "00000002", 5))).fence.renewed == 0
    await log.aclose()
    await other.aclose()


async def test_appends_without_maintenance_do_not_grow_the_write_ahead_log_for_ever(
    directory: Path, open_here: Open
) -> None:
    """Where nobody calls `maintain`, commits checkpoint at a high mark."""
    log = await open_here(Settings(wal_bytes_truncate=10_000))
    scribe = await Scribe.fencing(log, 1)
    for _ in range(24):
        await scribe.write(1, size=1_000_000)
    assert (directory / "vmapi.db-wal").stat().st_size < 8_000_000
    await log.aclose()


async def test_two_processes_create_one_feed(directory: Path, open_here: Open, worker: Worker) -> None:
    """Whoever comes first lays the file out; all get the same lineage."""
    lineages: set[str] = set()

    async def open_it() -> None:
        log = await open_here()
        lineages.add(log.lineage)
        await log.aclose()

    process = worker("append", wait=False)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(open_it)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert len(lineages) == 1


async def test_a_failing_disk_ends_the_term_and_a_fence_opens_the_log_again(
    directory: Path, open_here: Open, worker: Worker
) -> None:
    """Real EIO from fdatasync in the middle of appends: the outcome is unknown, the process writes nothing more until
    it has fenced anew, and what was acknowledged before and after is held."""
    try:
        await trio.run_process(["strace", "-o", "/dev/null", "true"], capture_stderr=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("strace is needed to make fdatasync fail, and may trace nothing here")
    inject = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=30")
    process = worker("fail", "strace", "-f", "-qq", "-o", "/dev/null", *inject, wait=False)
    out, _ = process.communicate()
    said = dict(line.split() for line in out.splitlines())
    assert process.returncode == 0 and said["then"] == AppendOutcomeUnknown.code, out
    acked = int(said["unknown"])
    assert 0 < acked < 1000 and int(said["held"]) in (acked, acked + 1)
    log = await open_here()
    assert (await log.look()).tail.seq == int(said["acked"]) >= acked + 1
    assert (await verify_log(log)).fault is None
    await log.aclose()


def test_fence_race_loses_nothing() -> None:
    """A few rounds of the proof's race (fence against a saturating appender of another process): no entry of an old
    term behind a fence, and the log is whole. Times are for the proof."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "simulations" / "proof" / "fence_race.py"), "--rounds", "3"],
        check=True,
        capture_output=True,
        text=True,
    )
    races = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(races) == 3
    for race in races:
        assert race["late"] == 0 and race["fault"] == "" and race["rounds"] == 3 and race["appended"] > 0


async def test_connections_are_as_durable_as_promised(directory: Path, open_here: Open) -> None:
    """Every connection has synchronous=FULL and waits for no lock; the file is in write-ahead mode."""
    log = await open_here()
    await (await Scribe.fencing(log, 1)).write(1)
    await log.maintain()
    file = log._file
    connections: list[sqlite3.Connection | None] = [file._writer, file._keeper, *file._idle]
    assert len(connections) >= 3
    for connection in connections:
        assert connection is not None
        pragmas = {
            name: connection.execute(f"PRAGMA {name}").fetchone()
            for name in ("synchronous", "busy_timeout", "journal_mode", "secure_delete")
        }
        assert pragmas == {"synchronous": (2,), "busy_timeout": (0,), "journal_mode": ("wal",), "secure_delete": (0,)}
        assert not connection.in_transaction
    await log.aclose()


async def test_fenced_here_by_a_process_that_ended(directory: Path, open_here: Open, worker: Worker) -> None:
    """A fence of a process that has gone stands all the same."""
    process = worker("append")
    process.kill()
    process.wait()
    log = await open_here()
    with pytest.raises(Fenced, match="worker"):
        await log.fence(Fence(1, "ffffffff"), why="late", time=1, clean=True)
    await log.aclose()
