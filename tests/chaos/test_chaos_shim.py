"""Faults placed inside of a real process: errors, delays, stops, deaths at the very call, a wall clock that jumps.

The process is SQLite's own: it commits rows, one by one, and says after each what came of it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simulations.chaos import shim
from simulations.chaos.shim import Switches

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shim.compiler() is None, reason="no C compiler (Debian: gcc libc6-dev)"),
]

#: Commits a row for each line that it reads, and answers: the number of rows, or the error; "time": the wall clock.
WORKER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA synchronous = FULL")
connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER)")
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "time":
        print(int(time.time()), flush=True)
        continue
    try:
        connection.execute("INSERT INTO t VALUES (1)")
        print(connection.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
    except sqlite3.Error as error:
        print(f"error: {error}", flush=True)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shim.build(tmp_path_factory.mktemp("shim"))


class Worker:
    def __init__(self, process: subprocess.Popen[str], page: Switches, path: Path) -> None:
        self.process = process
        self.page = page
        self.path = path

    def ask(self, line: str = "commit") -> str:
        self.tell(line)
        return self.hear()

    def tell(self, line: str = "commit") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def rows(self) -> int:
        with sqlite3.connect(self.path) as connection:
            found = int(connection.execute("SELECT count(*) FROM t").fetchone()[0])
        connection.close()
        return found


@contextmanager
def worker(library: Path, folder: Path) -> Iterator[Worker]:
    page = Switches(folder / "page")
    log = folder / "log"
    log.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(log / "t.db")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **page.environment(library, log)},
    )  # fmt: skip
    try:
        made = Worker(process, page, log / "t.db")
        assert made.hear() == "ready"
        yield made
    finally:
        process.kill()
        process.communicate()
        page.close()


def test_a_sync_fails_and_the_next_one_does_not(library: Path, tmp_path: Path) -> None:
    """So many times as was said; the counter tells that it happened."""
    with worker(library, tmp_path) as w:
        assert w.ask() == "1"
        w.page.set("sync_error", 1)
        assert w.ask() == "error: disk I/O error"
        assert (w.page.get("errors"), w.page.get("sync_error")) == (1, 0)
        assert not w.ask().startswith("error")
        assert w.page.get("syncs") >= 3


def test_a_sync_that_is_done_may_report_an_error(library: Path, tmp_path: Path) -> None:
    """Committed, and yet reported as failed: the outcome is unknown to whoever asked."""
    with worker(library, tmp_path) as w:
        w.page.set("sync_error_after", 1)
        assert w.ask() == "error: disk I/O error"
        w.process.kill()
        w.process.wait()
        assert w.rows() == 1


def test_writes_fail_with_the_error_that_was_asked_for(library: Path, tmp_path: Path) -> None:
    with worker(library, tmp_path) as w:
        w.page.set("write_errno", 28)
        w.page.set("write_errors", 1)
        assert w.ask() == "error: database or disk is full"
        assert w.ask() == "1"


def test_everything_of_the_log_fails_while_it_is_cut_off(library: Path, tmp_path: Path) -> None:
    """And nothing else: the process still talks."""
    with worker(library, tmp_path) as w:
        w.page.set("all_errno", 5)
        assert w.ask().startswith("error")
        w.page.clear()
        assert w.page.get("errors") > 0
        assert w.ask() == "1"


def test_a_call_hangs_until_it_is_let_go(library: Path, tmp_path: Path) -> None:
    with worker(library, tmp_path) as w:
        w.page.set("hang", 1)
        w.tell()
        while not w.page.get("hangs"):
            time.sleep(0.001)
        assert w.rows() == 0
        w.page.clear()
        assert w.hear() == "1"


def test_it_stops_inside_of_a_write_and_holds_the_lock(library: Path, tmp_path: Path) -> None:
    """Another process finds the log locked; thawed, the commit goes on."""
    with worker(library, tmp_path) as w:
        w.page.set("stop_at_write", 1)
        w.tell()
        _, status = os.waitpid(w.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with sqlite3.connect(w.path, timeout=0) as other, pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("INSERT INTO t VALUES (2)")
        other.close()
        w.process.send_signal(signal.SIGCONT)
        assert w.hear() == "1"


@pytest.mark.parametrize(("switch", "rows"), [("kill_at_write", 0), ("kill_after_sync", 1)])
def test_it_dies_before_a_commit_or_right_behind_it(switch: str, rows: int, library: Path, tmp_path: Path) -> None:
    """Killed before the first write nothing is there; killed behind the sync the row is, and nobody was told."""
    with worker(library, tmp_path) as w:
        w.page.set(switch, 1)
        w.tell()
        assert w.hear() == "", "it ended without a word"
        assert w.process.wait() == -signal.SIGKILL
        assert w.rows() == rows


def test_the_wall_clock_jumps_for_that_process_alone(library: Path, tmp_path: Path) -> None:
    with worker(library, tmp_path) as w:
        w.page.set("wall_offset_ns", -3600 * 10**9)
        assert abs(int(w.ask("time")) - (time.time() - 3600)) < 60
        assert w.page.get("wall_reads") > 0
        w.page.clear()
        assert abs(int(w.ask("time")) - time.time()) < 60


def test_other_files_are_left_alone(library: Path, tmp_path: Path) -> None:
    """Only what lies in the log's folder fails."""
    page = Switches(tmp_path / "page")
    page.set("all_errno", 5)
    (tmp_path / "other").write_text("here")
    done = subprocess.run(
        [sys.executable, "-c", f"print(open({str(tmp_path / 'other')!r}).read())"],
        env={**os.environ, **page.environment(library, tmp_path / "log")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "here\n"
    assert page.get("errors") == 0
