"""The SQLite log after a loss of power at any write boundary: nothing acknowledged is gone. And the search can see."""

from __future__ import annotations

import hashlib
import random

import pytest
import trio

from changefeed.errors import LogReplaced
from changefeed.log.sqlite import SqliteLogStore
from changefeed.simulation.disk import RecordedDisk, calls_in_place, seed_sqlite
from changefeed.simulation.disk.judge import judge_point
from changefeed.simulation.disk.losses import AWAY, choose, search
from changefeed.simulation.disk.model import Manner
from changefeed.simulation.disk.workload import Life, run_life
from changefeed.testing.log_scribe import Scribe, check_whole


@pytest.mark.parametrize("beside", [False, True])
def test_nothing_acknowledged_is_lost(scratch: str, beside: bool) -> None:
    """At 40 boundaries of a run with group commits, terms, publishers, trims, settings and checkpoints the power goes,
    and once more in the recovery; what was answered before is there each time, and the log is gone on with. Also with
    housekeeping and a reader in threads of their own."""
    losses = search(60, 40 if not beside else 20, seed=1, beside=beside, scratch=scratch)
    assert losses.wrong == []
    assert losses.boundaries > 1000 and losses.events > 500
    assert len(losses.points) == (20 if beside else 40)
    assert all(point.again >= 0 for point in losses.points)
    assert len({point.manner.name for point in losses.points}) > 3


@pytest.mark.parametrize("away", [name for name in AWAY if name])
def test_what_is_not_synced_is_lost_and_seen(scratch: str, away: str) -> None:
    """Without one of the things that make the log durable, acknowledged events are lost and the search says so."""
    losses = search(40, 20, seed=2, away=away, scratch=scratch)
    assert losses.promises["C1"] + losses.promises["damaged"] >= 3, losses.points
    if away == "synchronous=NORMAL":
        assert losses.promises["C1"] and losses.promises["C12"], "both what was acknowledged and what was shown"
        assert not losses.promises["damaged"], "NORMAL loses the end of a log, it does not damage it"


def test_the_first_boundaries_one_by_one(scratch: str) -> None:
    """While the log is laid out nothing was acknowledged, but it must open, each time."""
    with calls_in_place():
        disk = RecordedDisk(f"{scratch}/log", keep=True)
        life = Life(disk, "early")
        with disk:
            trio.run(run_life, life, 1)
        first_fence = next(act.done for act in life.timeline.acts if act.what == "fence")
        assert first_fence > 20
        for at in range(first_fence + 1):
            point = trio.run(lambda at=at: judge_point(disk, life.timeline, at, "early", scratch))
            assert not point.wrong, point


def test_a_run_is_the_same_for_the_same_seed(scratch: str) -> None:
    """Steps, acts and verdicts: the same bytes for one seed, other bytes for another."""

    def digest(seed: int, folder: str) -> str:
        seed_sqlite(seed)
        with calls_in_place(), RecordedDisk(folder, keep=True) as disk:
            life = Life(disk, str(seed))
            trio.run(run_life, life, 20)
        acts = [(act.what, act.begun, act.done) for act in life.timeline.acts]
        return hashlib.sha256(repr((disk.steps, acts)).encode()).hexdigest()

    assert digest(3, f"{scratch}/1") == digest(3, f"{scratch}/2") != digest(4, f"{scratch}/3")


def test_what_a_log_may_hold_at_a_boundary(scratch: str) -> None:
    """Before a call begins, what was answered; while it runs, that or its effect; once it is answered, its effect."""
    with calls_in_place(), RecordedDisk(f"{scratch}/log", keep=True) as disk:
        life = Life(disk, "allowed")
        trio.run(run_life, life, 3)
    timeline = life.timeline
    assert timeline.allowed(0) == [None]
    appends = [act for act in timeline.acts if act.what == "append"]
    assert len(appends) == 3
    act = appends[1]
    before = timeline.acts[timeline.acts.index(act) - 1].after
    assert timeline.allowed(act.begun) == [before]
    assert timeline.allowed(act.begun + 1) == timeline.allowed(act.done - 1) == [before, act.after]
    assert timeline.allowed(act.done)[0] is act.after


def test_points_cover_the_whole_run() -> None:
    """One boundary by chance of each equal part; all of them where there are few."""
    assert choose(10, 100, 1) == list(range(11))
    for seed in range(5):
        points = choose(1000, 60, seed)
        assert len(points) == len(set(points)) == 60 and points == sorted(points)
        assert points[0] < 17 and points[-1] > 983
    assert choose(1000, 60, 1) != choose(1000, 60, 2)


def test_something_unknown_cannot_be_taken_away() -> None:
    """A misspelt name is an error that lists the others, not a search that finds nothing."""
    with pytest.raises(ValueError, match="sync of WAL"):
        search(1, 1, 1, away="sync of wal")


async def test_a_store_in_use_loses_its_power_and_is_opened_anew(scratch: str) -> None:
    """What a simulated run does: crash, the old log is dead, open again at the same path, all in one process."""
    with RecordedDisk(f"{scratch}/log") as disk:
        stored = 0
        for life in range(1, 6):
            log = await SqliteLogStore("sqlite:", disk.folder).open("vmapi")
            scribe = await Scribe.fencing(log, life)
            assert scribe.tail.seq == stored
            await scribe.write(1, 2, 3)
            stored += 6
            disk.crash(random.Random(life), Manner("any", 512))
            with pytest.raises(LogReplaced):
                await scribe.write(1)
            await log.aclose()
        log = await SqliteLogStore("sqlite:", disk.folder).open("vmapi")
        assert (await log.look()).tail.seq == stored == 30
        await check_whole(log)
        await log.aclose()
