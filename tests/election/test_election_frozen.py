"""Killing a frozen holder of a SQLite lock: real processes, and everything that must keep the signal away."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from changefeed.election.frozen import is_frozen, kill_frozen, process_started
from changefeed.log import Fence

HOLDER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS t (a)")
if sys.argv[2] == "lock":
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t VALUES (1)")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def holder(database: Path) -> Iterator[subprocess.Popen[str]]:
    """A process inside a transaction."""
    yield from _spawn(database, "lock")


@pytest.fixture
def idler(database: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the database open, outside any transaction."""
    yield from _spawn(database, "idle")


def _spawn(database: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(database), mode]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            child.wait()
        for stream in (child.stdin, child.stdout):
            assert stream is not None
            stream.close()


def fence_of(pid: int, started: int | None = None) -> Fence:
    return Fence(5, "bbbbbbbb", pid=pid, pid_started=process_started(pid) if started is None else started)


def freeze(child: subprocess.Popen[str]) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])


def test_a_frozen_holder_is_killed_and_the_lock_is_free(holder: subprocess.Popen[str], database: Path) -> None:
    """Nothing but the kernel could take the lock away; afterwards the transaction is rolled back."""
    fence = fence_of(holder.pid)
    freeze(holder)
    db = sqlite3.connect(database, timeout=0, isolation_level=None)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        db.execute("BEGIN IMMEDIATE")
    assert kill_frozen(fence) == "killed"
    assert holder.wait() == -signal.SIGKILL
    db.execute("BEGIN IMMEDIATE")
    assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
    db.close()


def test_a_holder_that_runs_is_never_killed(holder: subprocess.Popen[str]) -> None:
    """Slow is not frozen."""
    assert kill_frozen(fence_of(holder.pid)) == "not-frozen"
    assert holder.poll() is None


def test_a_frozen_process_without_the_lock_is_not_killed(idler: subprocess.Popen[str]) -> None:
    """It holds up nobody: when it thaws it follows."""
    freeze(idler)
    assert kill_frozen(fence_of(idler.pid)) == "holds-no-lock"
    os.kill(idler.pid, signal.SIGCONT)
    assert idler.poll() is None


def test_another_process_under_the_same_pid_is_not_killed(holder: subprocess.Popen[str]) -> None:
    """The start time tells them apart, and the boot id tells another machine's."""
    freeze(holder)
    started = process_started(holder.pid)
    assert kill_frozen(fence_of(holder.pid, started - 1)) == "other-process"
    assert kill_frozen(fence_of(holder.pid, started ^ (1 << 40))) == "other-process"
    assert kill_frozen(fence_of(holder.pid, 0)) == "other-process"
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.poll() is None


def test_a_process_that_is_gone(idler: subprocess.Popen[str]) -> None:
    fence = fence_of(idler.pid)
    idler.kill()
    idler.wait()
    assert kill_frozen(fence) == "gone"
    assert process_started(idler.pid) == 0 and not is_frozen(idler.pid)


@pytest.mark.parametrize("pid", [0, 1, -1, os.getpid(), os.getppid()], ids=["0", "init", "-1", "me", "parent"])
def test_myself_my_parent_and_init_are_never_killed(pid: int) -> None:
    assert kill_frozen(fence_of(pid, process_started(pid) or 1)) == "other-process"


def test_a_start_time_fits_where_a_log_keeps_it() -> None:
    """SQLite and PostgreSQL store signed 64 bits; two asks give the same."""
    started = process_started(os.getpid())
    assert 0 < started < 2**63
    assert started == process_started(os.getpid())


def fake(
    tmp_path: Path, *, state: str = "S", name: str = "python3", frozen: str = "0", locks: str | None = None
) -> Path:
    """A /proc with one process 4242, whose command may hold anything."""
    proc = tmp_path / "proc"
    (proc / "4242").mkdir(parents=True)
    numbers = " ".join(str(n) for n in range(4, 50))
    (proc / "4242/stat").write_text(f"4242 ({name}) {state} {numbers}")
    (proc / "4242/cgroup").write_text("0::/pod/box\n")
    box = tmp_path / "cgroup/pod/box"
    box.mkdir(parents=True)
    (box / "cgroup.events").write_text(f"populated 1\nfrozen {frozen}\n")
    if locks is not None:
        (proc / "locks").write_text(locks)
    return proc


@pytest.mark.parametrize(
    ("state", "name", "frozen", "expected"),
    [
        ("S", "python3", "0", False),
        ("D", "python3", "0", False),
        ("R", "T) T (", "0", False),
        ("T", "a) S b", "0", True),
        ("t", "python3", "0", True),
        ("D", "python3", "1", True),
    ],
)
def test_what_counts_as_frozen(tmp_path: Path, state: str, name: str, frozen: str, expected: bool) -> None:
    """Stopped, traced, or in a frozen control group; waiting for a disk is not, whatever the command is called."""
    proc = fake(tmp_path, state=state, name=name, frozen=frozen)
    assert is_frozen(4242, proc, tmp_path / "cgroup") is expected


@pytest.mark.parametrize(
    ("locks", "expected"),
    [
        ("1: POSIX  ADVISORY  WRITE 4242 fe:01:77 120 120\n", True),
        ("1: OFDLCK ADVISORY  WRITE 4242 fe:01:77 120 120\n", True),
        ("1: POSIX  ADVISORY  READ  4242 fe:01:77 124 124\n", False),
        ("1: POSIX  ADVISORY  WRITE 4243 fe:01:77 120 120\n1: -> POSIX ADVISORY WRITE 4242 fe:01:77 120 120\n", False),
        ("1: FLOCK  ADVISORY  WRITE 4242 fe:01:78 0 EOF\n", False),
        ("", False),
        (None, True),
    ],
)
def test_what_counts_as_holding_a_lock(tmp_path: Path, locks: str | None, expected: bool) -> None:
    """A write lock of its own; a reader, a waiter and another's lock are none. No list at all is no evidence."""
    from changefeed.election.frozen import _holds_write_lock

    assert _holds_write_lock(4242, fake(tmp_path, locks=locks)) is expected
