"""A fence against a leader in another process that appends without pause: how long it takes, and that nothing slips by.

`python -m simulations.proof.fence_race [--rounds N]` prints figures as JSON lines; `figures()` is what the proof calls.
The leader that is raced against takes each new term as its own and appends back to back until it is fenced again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from changefeed.errors import Fenced
from changefeed.log import FeedLog, Fence
from changefeed.log.sqlite import SqliteLogStore
from changefeed.log.verify import verify_log
from changefeed.settings import MIB, Settings
from changefeed.testing.log_scribe import Scribe

FEED = "race"
#: (entries of one append, bytes of each): a single event, a hundred of them, a full batch.
LOADS = ((1, 200), (1, 20_000), (1, 256 * 1024))


@dataclass(frozen=True)
class Race:
    """rounds: fences taken. Times in ms, of the whole call. appended: entries of the raced leader. late: entries of an
    old term behind a newer fence (must be 0). fault: what a walk through the log says."""

    entries: int
    bytes: int
    rounds: int
    median_ms: float
    worst_ms: float
    appended: int
    late: int
    fault: str


async def append_without_pause(directory: str, entries: int, size: int) -> None:
    """The raced leader: under whatever fence stands, until its parent ends it."""
    log = await SqliteLogStore("sqlite:", directory).open(FEED)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(maintain, log)
        while True:
            scribe = Scribe(log, await log.look())
            try:
                while True:
                    await scribe.write(*[1] * entries, size=size)
            except Fenced:
                continue


async def maintain(log: FeedLog) -> None:
    while True:
        await log.maintain()
        await trio.sleep(0.05)


async def race(directory: str, rounds: int, entries: int, size: int) -> Race:
    log = await SqliteLogStore("sqlite:", directory, Settings(log_timeout_s=30)).open(FEED)
    scribe = await Scribe.fencing(log, 1)
    command = [sys.executable, __file__, "--append", directory, "--load", str(entries), str(size)]
    times: list[float] = []
    late = appended = 0
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as leader:  # noqa: ASYNC220
        try:
            for epoch in range(2, rounds + 2):
                tail = (await log.look()).tail.seq
                await log.wait(tail)
                await trio.sleep(0.001 * (epoch % 7))
                fence = Fence(epoch, f"{epoch:08x}", "racer")
                begun = time.perf_counter()
                look = await log.fence(fence, why="silent", time=epoch, clean=False)
                times.append((time.perf_counter() - begun) * 1000)
                await log.wait(look.tail.seq)
                behind = await log.read(look.tail.seq, 1)
                late += sum(entry.epoch < epoch for entry in behind)
                appended = look.tail.seq
                if appended * size > 64 * MIB:
                    await log.trim(epoch, fence.term, look.tail.seq - entries)
        finally:
            leader.kill()
            leader.wait()
    scribe = await Scribe.fencing(log, rounds + 2)
    await scribe.write(1)
    found = (await verify_log(log)).fault
    await log.aclose()
    return Race(
        entries,
        size,
        rounds,
        round(statistics.median(times), 2),
        round(max(times), 2),
        appended,
        late,
        "" if found is None else f"{found.seq}: {found.what}",
    )


def figures(rounds: int = 100) -> Iterator[Race]:
    """One race per load, each with `rounds` fences."""
    for entries, size in LOADS:
        with tempfile.TemporaryDirectory(prefix="changefeed-race-") as directory:
            yield trio.run(race, str(Path(directory) / "log"), rounds, entries, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--append", metavar="DIRECTORY")
    parser.add_argument("--load", nargs=2, type=int, metavar=("ENTRIES", "BYTES"))
    options = parser.parse_args()
    if options.append:
        trio.run(append_without_pause, options.append, *options.load)
        return
    for found in figures(options.rounds):
        print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main()
