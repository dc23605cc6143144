"""The k-th disk call of a call of the log fails: the answer is honest, and the log is gone on with."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from changefeed.errors import AppendOutcomeUnknown
from changefeed.log import Fence
from changefeed.log.sqlite import SqliteLogStore
from changefeed.simulation.disk import Call, Fault, Manner, RecordedDisk
from changefeed.simulation.disk.failures import CALLS, fail_each
from changefeed.simulation.disk.recorded import IOERR_FSYNC, lay_out
from changefeed.testing.log_scribe import Scribe, check_whole


@pytest.mark.parametrize("call", CALLS)
def test_whichever_disk_call_fails_nothing_acknowledged_is_lost(scratch: str, call: str) -> None:
    """Each write, sync, truncation, opening and removal that the call makes fails in turn, in each way; then the power
    goes, or all processes are killed, or the leader goes on. Every sixth of these here; all of them in
    simulations/power_loss.py --failures."""
    found = fail_each(call, seed=1, scratch=scratch, every=6)
    assert [failed for failed in found if failed.wrong] == []
    whats = Counter(failed.at.what for failed in found)
    assert whats and len(found) >= (8 if call in ("append", "trim", "fence after a crash") else 1)


def test_each_disk_call_of_one_append_fails(scratch: str) -> None:
    """What the publisher is told for each kind of failure."""
    found = fail_each("append", seed=2, scratch=scratch, every=3)
    assert [failed for failed in found if failed.wrong] == []
    said = {(failed.at.what, failed.fault.code & 0xFF): failed.said for failed in found}
    assert said == {
        ("write", 10): "append-outcome-unknown",
        ("write", 13): "log-full",
        ("sync", 10): "append-outcome-unknown",
    }
    assert len({failed.at.number for failed in found}) > 8


class FailSync:
    """Fails the n-th sync of a file from now on."""

    def __init__(self, ending: str, number: int) -> None:
        self.ending, self.left = ending, number

    def __call__(self, call: Call) -> Fault | None:
        if call.what == "sync" and call.name.endswith(self.ending):
            self.left -= 1
            if not self.left:
                return Fault(IOERR_FSYNC)
        return None


@pytest.mark.parametrize(("ending", "number"), [("-wal", 3), (".db", 1)])
async def test_a_fence_that_stands_never_says_that_it_does_not(scratch: str, ending: str, number: int) -> None:
    """A fence is committed and then copies the write-ahead log. If the disk fails in that copy the fence stands: that
    is an unknown outcome, and the next leader takes a higher epoch. (It said log-unavailable: nothing was written.)"""
    with RecordedDisk(f"{scratch}/log") as disk:
        log = await SqliteLogStore("sqlite:", disk.folder).open("vmapi")
        await (await Scribe.fencing(log, 1)).write(1)
        disk.faulty = FailSync(ending, number)
        with pytest.raises(AppendOutcomeUnknown, match="the fence stands"):
            await log.fence(Fence(2, "00000002"), why="process-gone", time=1, clean=False)
        disk.faulty = None
        assert (await log.look()).fence.epoch == 2
        await (await Scribe.fencing(log, 3)).write(1)
        await check_whole(log)
        await log.aclose()


async def test_what_a_failed_sync_lost_is_written_again_by_an_unclean_fence(scratch: str) -> None:
    """The leader's sync fails, all processes are killed, the entry is seen in the file. Once the next leader's fence
    has returned, the entry survives a loss of power, although no sync ever brings its old pages to the disk: the
    write-ahead log is written again. (It was only copied, and cut to nothing; if that was lost, the log had a hole.)"""
    with RecordedDisk(f"{scratch}/log", chance=random.Random(1)) as disk:
        log = await SqliteLogStore("sqlite:", disk.folder).open("vmapi")
        scribe = await Scribe.fencing(log, 1)
        await scribe.write(1)
        disk.faulty = FailSync("-wal", 1)
        with pytest.raises(AppendOutcomeUnknown):
            await scribe.write(1)
        disk.faulty = None
        with disk.killed(f"{scratch}/killed") as killed:
            other = await SqliteLogStore("sqlite:", killed.folder).open("vmapi")
            assert (await other.look()).tail.seq == 2, "the killed leader's entry is in the file"
            await other.fence(Fence(2, "00000002"), why="process-gone", time=1, clean=False)
            killed.crash(random.Random(1), Manner("nothing"))
            await other.aclose()
            again = await SqliteLogStore("sqlite:", killed.folder).open("vmapi")
            found = await again.look()
            assert (found.tail.seq, found.fence.epoch) == (2, 2)
            await check_whole(again)
            await again.aclose()
        await log.aclose()


async def test_a_log_that_is_only_opened_after_a_failed_sync_is_not_damaged(scratch: str) -> None:
    """The leader's sync of a trim fails, all processes are killed, somebody opens the log and closes it, which copies
    the write-ahead log into the database. Wherever the power goes in that, the log is whole, with the trim or without
    it. (It was damaged: a newer database beside a log that ended before.)"""
    with RecordedDisk(f"{scratch}/log", chance=random.Random(1)) as disk:
        log = await SqliteLogStore("sqlite:", disk.folder).open("vmapi")
        scribe = await Scribe.fencing(log, 1)
        for _ in range(20):
            await scribe.write(1, size=2000)
        disk.faulty = FailSync("-wal", 1)
        with pytest.raises(AppendOutcomeUnknown):
            await log.trim(1, scribe.term, 10)
        disk.faulty = None
        killed = disk.killed(f"{scratch}/killed", keep=True)
        await log.aclose()
    with killed:
        reader = await SqliteLogStore("sqlite:", killed.folder).open("vmapi")
        assert (await reader.look()).floor.seq == 10, "the killed leader's trim is in the file"
        await reader.aclose()
    floors = set()
    for at in range(killed.count + 1):
        lay_out(f"{scratch}/at-{at}", killed.survivors(at, random.Random(at), Manner("nothing")))
        again = await SqliteLogStore("sqlite:", f"{scratch}/at-{at}").open("vmapi")
        await check_whole(again)
        look = await again.look()
        assert look.tail.seq == 20
        floors.add(look.floor.seq)
        await again.aclose()
    assert floors == {0, 10}
