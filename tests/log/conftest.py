"""What tests of the SQLite store share: logs, other processes on them, and the errors of a bad disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from changefeed.log.sqlite import SqliteFeedLog, SqliteLogStore
from changefeed.settings import Settings

WORKER = Path(__file__).with_name("log_worker.py")

Worker = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def worker(directory: Path) -> Iterator[Worker]:
    """Starts log_worker.py in a mode on the test's log; waits for its first line. All are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(mode: str, *before: str, wait: bool = True) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*before, sys.executable, str(WORKER), mode, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        if wait:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def open_here(directory: Path) -> Callable[..., Awaitable[SqliteFeedLog]]:
    """Opens feed vmapi in the test's log, as one more process would. Takes Settings."""

    def open_it(settings: Settings | None = None) -> Awaitable[SqliteFeedLog]:
        return SqliteLogStore(f"sqlite:{directory}", str(directory), settings).open("vmapi")

    return open_it
