"""What the memory store adds to the contract: faults on request, and copies that are put back."""

from __future__ import annotations

import pytest
import trio

from changefeed.errors import AppendOutcomeUnknown, Fenced, LogFormatUnknown, LogFull, LogReplaced, LogUnavailable
from changefeed.log import Fence
from changefeed.log.memory import Faults, MemoryLogStore, MemoryPlace
from changefeed.settings import MIB, Settings
from changefeed.testing.log_scribe import Scribe


async def test_planned_errors_come_before_or_after_the_effect() -> None:
    """An unknown outcome that is not stored, one that is, a fenced and an unavailable log; then nothing more."""
    store = MemoryLogStore()
    faults = store.hook = Faults()
    log = await store.open("vmapi")
    scribe = await Scribe.fencing(log, 1)
    for point, error, stored in (
        ("append", AppendOutcomeUnknown("?"), 0),
        ("append", LogUnavailable("away"), 0),
        ("append", Fenced("x"), 0),
        ("append done", AppendOutcomeUnknown("?"), 1),
    ):
        faults.plan(point, error)
        scribe = Scribe(log, await log.look())
        before = scribe.tail.seq
        with pytest.raises(type(error)):
            await scribe.write(1)
        assert (await log.look()).tail.seq == before + stored
    await Scribe(log, await log.look()).write(1)


async def test_delays_pass_in_virtual_time_and_outlive_their_caller(autojump_clock: trio.testing.MockClock) -> None:
    """An append that is delayed before its effect lands although its caller was cancelled meanwhile; a fence that
    comes first makes it Fenced."""
    place = MemoryPlace()
    store, other = MemoryLogStore(place), MemoryLogStore(place)
    faults = store.hook = Faults()
    log, rival = await store.open("vmapi"), await other.open("vmapi")
    scribe = await Scribe.fencing(log, 1)
    faults.plan("append", delay_s=5)
    begun = trio.current_time()
    with trio.move_on_after(1):
        await scribe.write(1)
    assert trio.current_time() == begun + 5 and (await rival.look()).tail.seq == 1
    faults.plan("append", delay_s=5)
    outcome: list[str] = []

    async def late() -> None:
        try:
            await scribe.write(1)
        except Fenced:
            outcome.append("fenced")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await trio.sleep(1)
        await Scribe.fencing(rival, 2)
    assert outcome == ["fenced"] and (await rival.look()).tail.seq == 1


async def test_an_outage_is_of_one_store() -> None:
    """A process cut off from the log: its calls are LogUnavailable; another process's are not."""
    place = MemoryPlace()
    store, other = MemoryLogStore(place), MemoryLogStore(place)
    faults = store.hook = Faults()
    log, rival = await store.open("vmapi"), await other.open("vmapi")
    faults.outage = True
    for call in (log.look(), log.read(0, 1), log.fence(Fence(1, "00000001"), why="x", time=1, clean=True)):
        with pytest.raises(LogUnavailable):
            await call
    await Scribe.fencing(rival, 1)
    faults.outage = False
    assert (await log.look()).fence.epoch == 1


async def test_a_copy_put_back_replaces_open_logs() -> None:
    """Logs that are open end with LogReplaced, also those that wait; opened again they hold the copy."""
    store = MemoryLogStore()
    log = await store.open("vmapi")
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    copy = store.place.copy()
    await scribe.write(1)

    async def wait() -> None:
        with pytest.raises(LogReplaced):
            await log.wait(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        store.place.put_back(copy)
    with pytest.raises(LogReplaced):
        await scribe.write(1)
    log = await store.open("vmapi")
    assert (await log.look()).tail.seq == 1
    # The copy itself is untouched by what follows.
    await (await Scribe.fencing(log, 2)).write(1)
    store.place.put_back(copy)
    assert (await (await store.open("vmapi")).look()).fence.epoch == 1


async def test_a_full_place_refuses_appends_only() -> None:
    """free below what is kept free: LogFull; room again: it goes on."""
    store = MemoryLogStore(None, Settings(min_free_bytes=10 * MIB))
    log = await store.open("vmapi")
    scribe = await Scribe.fencing(log, 1)
    store.place.free = 9 * MIB
    with pytest.raises(LogFull):
        await Scribe(log, await log.look()).write(1)
    await log.open_publisher(1, scribe.term, "q", named=False)
    assert await log.storage() == (9 * MIB, 2**62)
    store.place.free = 10 * MIB
    await Scribe(log, await log.look()).write(1)


async def test_a_newer_format_is_refused() -> None:
    """As in every store: what a later release wrote is neither served nor fenced."""
    store = MemoryLogStore()
    log = await store.open("vmapi")
    await log.fence(Fence(1, "00000001", format=2), why="start", time=1, clean=True)
    for call in (log.look(), log.fence(Fence(2, "00000002"), why="x", time=1, clean=True), store.open("vmapi")):
        with pytest.raises(LogFormatUnknown):
            await call


async def test_entries_must_continue_the_chain() -> None:
    """The store where leaders are tested takes only what would verify."""
    store = MemoryLogStore()
    log = await store.open("vmapi")
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    forked = Scribe(log, await log.look())
    forked.tail = type(forked.tail)(1, 1, forked.term, b"\0" * 32)
    with pytest.raises(ValueError, match="digest chain"):
        await forked.write(1)
