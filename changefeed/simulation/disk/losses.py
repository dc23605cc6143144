"""Many losses of power of one run of the log: the search behind simulations/power_loss.py and its tests.

Also with something taken away on purpose (`AWAY`): then the search must find what is lost, or it could not see.
"""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Final

import trio
import trio.to_thread

from changefeed.log import sqlite_file
from changefeed.simulation.disk.in_place import run_in_place
from changefeed.simulation.disk.judge import Point, judge_point
from changefeed.simulation.disk.recorded import RecordedDisk
from changefeed.simulation.disk.sqlite_vfs import seed_sqlite
from changefeed.simulation.disk.workload import Life, run_life

#: What can be taken away: SQLite's synchronous level, or the effect of some syncs. "": nothing.
AWAY: Final = ("", "synchronous=NORMAL", "synchronous=OFF", "sync of WAL", "sync of database", "sync of folder")

Lies = Callable[[str, str], bool]
_LIES: Final[dict[str, Lies]] = {
    "sync of WAL": lambda what, name: what == "sync" and name.endswith("-wal"),
    "sync of database": lambda what, name: what == "sync" and name.endswith(".db"),
    "sync of folder": lambda what, name: what == "sync-names",
}


@contextmanager
def synchronous(level: str) -> Iterator[None]:
    """Let every connection of the store have another synchronous level, behind the back of its check. For this process,
    and for connections that are made meanwhile."""
    connect = sqlite_file.connect  # type: ignore[attr-defined]

    def mutated(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **named)
        connection.execute(f"PRAGMA synchronous = {level}")
        return connection

    sqlite_file.connect = mutated  # type: ignore[attr-defined]
    try:
        yield
    finally:
        sqlite_file.connect = connect  # type: ignore[attr-defined]


@dataclass
class Losses:
    """What a search found. boundaries: of the run. appends, events: that the run had acknowledged at its end."""

    boundaries: int
    appends: int
    events: int
    points: list[Point] = field(default_factory=list)

    @property
    def wrong(self) -> list[Point]:
        """The points after which something was wrong."""
        return [point for point in self.points if point.wrong]

    @property
    def promises(self) -> Counter[str]:
        """How many points broke each promise."""
        return Counter(promise for point in self.points for promise in {wrong.promise for wrong in point.wrong})


def choose(boundaries: int, points: int, seed: int) -> list[int]:
    """Boundaries to cut at: all of them if there are no more than `points`, else one by chance of each equal part."""
    total = boundaries + 1
    if points >= total:
        return list(range(total))
    chance = random.Random(f"points {seed}")
    return [chance.randrange(i * total // points, (i + 1) * total // points) for i in range(points)]


def search(
    commits: int,
    points: int,
    seed: int,
    *,
    away: str = "",
    beside: bool = False,
    jobs: int = 1,
    scratch: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Losses:
    """Run the log through `commits` appends and what belongs to them on a recorded disk, then judge it after losses of
    power at `points` boundaries. away: one of AWAY. beside: housekeeping and a reader in threads of their own, so that
    the run is not the same each time. scratch: a folder for the files (a tmpfs is fastest).

    Raises NoSharedSqlite, ValueError for an unknown `away`; AssertionError if the run itself goes wrong.
    """
    if away not in AWAY:
        raise ValueError(f"{away!r} cannot be taken away; these can: {', '.join(name for name in AWAY if name)}")
    level = away.partition("synchronous=")[2]
    with tempfile.TemporaryDirectory(prefix="power-loss-", dir=scratch) as folder:
        seed_sqlite(seed)
        disk = RecordedDisk(os.path.join(folder, "log"), keep=True, lies=_LIES.get(away))
        life = Life(disk, str(seed), run_sync=trio.to_thread.run_sync if beside else run_in_place)
        with disk, synchronous(level) if level else nullcontext():
            trio.run(lambda: run_life(life, commits, beside=beside))
        unlike = disk.unlike()
        assert not unlike, f"something wrote past SQLite's calls: {', '.join(unlike)} differ from what was recorded"
        tail = life.timeline.acts[-1].after.feeds["vmapi"].tail.seq
        losses = Losses(disk.count, commits, tail)
        boundaries = choose(disk.count, points, seed)
        losses.points += _judge_all(disk, life, boundaries, seed, folder, jobs, progress or (lambda done, of: None))
        return losses


def _judge_all(
    disk: RecordedDisk,
    life: Life,
    boundaries: Sequence[int],
    seed: int,
    folder: str,
    jobs: int,
    progress: Callable[[int, int], None],
) -> list[Point]:
    def judge(some: Sequence[int]) -> list[Point]:
        async def judge_some() -> list[Point]:
            return [await judge_point(disk, life.timeline, at, str(seed), folder) for at in some]

        return trio.run(judge_some)

    parts = [boundaries[i : i + PART] for i in range(0, len(boundaries), PART)]
    points: list[Point] = []
    if jobs <= 1:
        for part in parts:
            points += judge(part)
            progress(len(points), len(boundaries))
        return points
    global _judge
    _judge = judge
    # Forked, so that each has the record; what a worker opens are files of its own.
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        for found in pool.map(_judge_part, parts):
            points += found
            progress(len(points), len(boundaries))
    return points


PART: Final = 20
_judge: Callable[[Sequence[int]], list[Point]] | None = None


def _judge_part(part: Sequence[int]) -> list[Point]:
    assert _judge is not None, "made before the workers were forked"
    return _judge(part)
