"""Chaos found (no memory, F22): when trio's own tasks die, threads cannot hand over their results any more, and an
instance that ends waits for them for ever. `changefeed serve` stayed as a process that did nothing, held its port, and
that no supervisor started again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from changefeed.cli.last_resort import STATUS

#: Runs `changefeed serve`; once it is ready, the task dies by which threads reach trio.
SERVE = """
import sys, time
import trio
from changefeed.cli import main, serve

serve.END_S = 0.5

async def no_memory():
    raise MemoryError

announce = serve._announce

async def announced(*arguments):
    await announce(*arguments)
    async with trio.open_nursery() as nursery:
        # As an instance's reads and writes of its log, which are never few.
        nursery.start_soon(trio.to_thread.run_sync, time.sleep, 0.5)
        await trio.sleep(0.1)
        # The very task by which threads reach trio dies when it wants to wait again.
        trio.lowlevel.current_task()._runner.entry_queue.wakeup.wait_woken = no_memory
        trio.lowlevel.current_trio_token().run_sync_soon(lambda: None)

serve._announce = announced
place = sys.argv[1]
sys.exit(main(["serve", "vmapi", "--log", f"sqlite:{place}/log", "--coordinator", f"file:{place}/c", "--listen",
               "127.0.0.1:0"]))
"""

BLOCK = """
import sys
import trio
from changefeed.cli.last_resort import LastResort

async def stuck():
    with trio.CancelScope(shield=True):
        await trio.sleep(float(sys.argv[1]))

async def run():
    with LastResort(0.3) as resort:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resort.watch)
            nursery.start_soon(stuck)
            nursery.cancel_scope.cancel()
    await trio.sleep(0.6)
    print("left", flush=True)

trio.run(run)
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip


@pytest.mark.processes
def test_serve_ends_though_a_thread_never_answers(tmp_path: Path) -> None:
    """With a status of its own, and a sentence."""
    done = run(SERVE, str(tmp_path))
    assert done.returncode == STATUS, done.stderr[-2000:]
    assert "did not end within 0.5 s of its cancellation; exit status 70" in done.stderr


@pytest.mark.processes
def test_a_block_that_is_left_in_time_ends_nothing() -> None:
    """Also when its process goes on for longer than the limit."""
    done = run(BLOCK, "0.01")
    assert (done.returncode, done.stdout) == (0, "left\n")


@pytest.mark.processes
def test_a_block_that_is_not_left_ends_the_process() -> None:
    done = run(BLOCK, "1e9")
    assert (done.returncode, done.stdout) == (STATUS, "")
