"""The conformance suite of log stores: what `changefeed/log/__init__.py` promises, as checks for any store.

    for check in LOG_CHECKS:                     # or all at once: await check_log_store(make_store)
        await check(make_store)

`make_store(place, settings, world)` gives a store on the place of that name: the same name again is another process on
the same data (both may be open at once), another name is an empty place. A check raises AssertionError, or lets the
error out that the store should not have raised. Beside it: log_restores.py (copies that are put back; needs to copy a
place) and log_lockstep.py (beside the memory store; needs hypothesis).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import trio

from changefeed.batch import ENTRY_OVERHEAD, Entry, Tail, chain, chain_start
from changefeed.change import NO_TERM, FeedSettings, Position, Resource
from changefeed.errors import (
    ChangefeedError,
    Fenced,
    FuturePosition,
    InvalidName,
    LogUnavailable,
    OtherLineage,
    PositionTooOld,
    SettingsConflict,
    TailMoved,
    TrimmedAway,
    UnknownFeed,
)
from changefeed.log import Fence
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.testing.log_scribe import MakeStore, Scribe, check_whole, everything, opened, raises
from changefeed.testing.log_suite_publishers import (
    check_batches,
    check_publishers,
    check_publishers_bound,
    check_publishers_trimmed,
)
from changefeed.testing.log_suite_snapshot import SNAPSHOT_CHECKS

Check = Callable[[MakeStore], Awaitable[None]]


# ---- opening


async def check_opening(make_store: MakeStore) -> None:
    """A feed's log is created once, keeps its lineage, and is another one for each feed and place."""
    store = make_store("opening", Settings(), World())
    await raises(UnknownFeed, store.open("vmapi", create=False))
    assert await store.feeds() == []
    log = await store.open("vmapi")
    assert (log.feed, len(log.lineage)) == ("vmapi", 16) and int(log.lineage, 16) >= 0
    other = await store.open("napi")
    assert other.lineage != log.lineage
    assert await store.feeds() == ["napi", "vmapi"]
    await raises(InvalidName, store.open("../etc"))
    await (await Scribe.fencing(log, 1)).write(1)
    assert (await other.look()).fence.epoch == 0
    for opened_log in (log, other):
        await opened_log.aclose()
    await store.aclose()
    async with opened(make_store, "opening") as again:
        assert again.lineage == log.lineage
    async with opened(make_store, "opening elsewhere") as elsewhere:
        assert elsewhere.lineage != log.lineage


async def check_empty(make_store: MakeStore) -> None:
    """An empty log has one position, its beginning, and nobody may write to it before a fence."""
    async with opened(make_store, "empty") as log:
        look = await log.look()
        beginning = Position.beginning(log.lineage)
        assert look.head == look.earliest == beginning and look.check(beginning) is None
        assert look.tail == look.floor == Tail(0, 0, NO_TERM, chain_start(log.lineage, "vmapi"), 0)
        assert (look.fence.epoch, look.fence.term, look.epochs, look.bytes) == (0, NO_TERM, (), 0)
        assert await log.read(0, 1000) == [] and await log.read_time(0) == 0
        assert await log.settings() == FeedSettings()
        nobody = Scribe(log, look)
        await raises(Fenced, nobody.append([nobody.entry()]))
        await raises(Fenced, log.open_publisher(0, NO_TERM, "p", named=False))
        await raises(Fenced, log.trim(0, NO_TERM, 1))
        assert await log.look() == look
        await check_whole(log)


async def check_restart(make_store: MakeStore) -> None:
    """Everything stands after a restart, byte for byte; a closed log answers LogUnavailable."""
    async with opened(make_store, "restart") as log:
        scribe = await Scribe.fencing(log, 3, opens=False)
        await log.open_publisher(3, scribe.term, "q", named=True)
        entries = await scribe.write(2, 1, 3, publisher="q")
        await log.set_settings(FeedSettings(retention_count=7, retention_bytes=None))
        await log.trim(3, scribe.term, 2)
        look, settings = await log.look(), await log.settings()
        state = await log.publisher_state("q")
    await raises(LogUnavailable, log.look())
    async with opened(make_store, "restart") as log:
        assert await log.look() == look and await log.settings() == settings
        assert await log.publisher_state("q") == state
        assert await everything(log) == entries[1:]
        await check_whole(log)
        await (await Scribe.fencing(log, 4)).write(1)
        await check_whole(log)


# ---- fence and tail


async def check_fence(make_store: MakeStore) -> None:
    """An epoch is fenced once, fences only grow, the row and the history of terms say who and why."""
    async with opened(make_store, "fence") as log, opened(make_store, "fence") as other:
        fence = Fence(5, "0badcafe", "i1", "proc", 42, 4242, "ws://h:1", "c0ffee", 0)
        look = await log.fence(fence, why="process-gone", time=1234, clean=False)
        assert look.fence == fence and (await other.look()).fence == fence
        (record,) = look.epochs
        assert (record.epoch, record.term, record.first, record.time) == (5, "0badcafe", 1, 1234)
        assert (record.instance, record.why) == ("i1", "process-gone")
        for late in (fence, replace(fence, term="00000001"), replace(fence, epoch=4), replace(fence, epoch=0)):
            error = await raises(Fenced, other.fence(late, why="late", time=1, clean=True))
            assert isinstance(error, Fenced)
            assert (error.epoch, error.term, error.coordinator) == (5, "0badcafe", "c0ffee")
        assert await other.look() == look
        assert (await log.look(renew=(5, "0badcafe", 777))).fence.renewed == 777
        assert (await other.look(renew=(5, "ffffffff", 888))).fence.renewed == 777
        assert (await other.look(renew=(4, "0badcafe", 999))).fence == replace(fence, renewed=777)
        await other.fence(Fence(6, "0badcafe", "i2"), why="handover", time=2, clean=True)
        assert (await log.look()).fence == Fence(6, "0badcafe", "i2")


async def check_fence_alone(make_store: MakeStore) -> None:
    """The fence refuses a deposed leader that expects the right tail: by epoch alone, and by term alone."""
    async with opened(make_store, "fence alone") as log, opened(make_store, "fence alone") as other:
        old = await Scribe.fencing(log, 1)
        await old.write(1)
        new = await Scribe.fencing(other, 2)
        late = old.entry()
        error = await raises(Fenced, old.append([late]))
        assert isinstance(error, Fenced) and (error.epoch, error.term) == (2, new.term)
        twin = Scribe(log, await log.look())
        twin.term = "deadbeef"
        await raises(Fenced, twin.append([twin.entry()]))
        ahead = Scribe(log, await log.look())
        ahead.epoch = 3
        await raises(Fenced, ahead.append([ahead.entry()]))
        for epoch, term in ((1, old.term), (2, "deadbeef"), (3, new.term)):
            await raises(Fenced, log.open_publisher(epoch, term, "p", named=False))
            await raises(Fenced, log.trim(epoch, term, 1))
        assert (await other.look()).tail.seq == 1
        await new.write(1)
        assert [e.epoch for e in await everything(log)] == [1, 2]


async def check_tail_alone(make_store: MakeStore) -> None:
    """The expected tail refuses an append under the right fence that does not know the log's end."""
    async with opened(make_store, "tail alone") as log, opened(make_store, "tail alone") as other:
        await (await Scribe.fencing(log, 1)).write(1, 2)
        look = await log.look()
        behind, same = Scribe(log, look), Scribe(other, look)
        await behind.write(3)
        await raises(TailMoved, same.append([same.entry()]))
        beyond = Scribe(log, await log.look())
        beyond.entry()
        await raises(TailMoved, beyond.append([beyond.entry()]))
        assert (await other.look()).tail == behind.tail
        both = Scribe(log, look)
        both.term = "deadbeef"
        await raises(Fenced, both.append([both.entry()]))


async def check_fence_in_flight(make_store: MakeStore) -> None:
    """A fence taken while the leader appends without pause: what is stored of the old term is stored before it."""
    async with opened(make_store, "in flight") as log, opened(make_store, "in flight") as other:
        for epoch in range(1, 21, 2):
            old = await Scribe.fencing(log, epoch)

            async def saturate(scribe: Scribe) -> None:
                with trio.CancelScope() as scope:
                    while not scope.cancel_called:
                        try:
                            await scribe.write(1, 1)
                        except Fenced:
                            return

            async with trio.open_nursery() as nursery:
                nursery.start_soon(saturate, old)
                for _ in range(epoch % 5):
                    await trio.lowlevel.checkpoint()
                look = await other.fence(Fence(epoch + 1, f"{epoch + 1:08x}"), why="silent", time=1, clean=False)
                await Scribe(other, look).write(1)
            assert look.epochs[-1].first == look.tail.seq + 1
            after = await other.read(look.tail.seq, 10**6)
            assert [e.epoch for e in after] == [epoch + 1]
        await check_whole(log)


async def check_caller_mistakes(make_store: MakeStore) -> None:
    """Entries that are not what the contract asks for are a ValueError, and nothing is written."""
    async with opened(make_store, "mistakes") as log:
        scribe = await Scribe.fencing(log, 1)
        scribe.time = 50
        await scribe.write(1)
        entry = scribe.entry()
        wrong = [
            [],
            [replace(entry, seq=3)],
            [replace(entry, epoch=2)],
            [replace(entry, term="ffffffff")],
            [replace(entry, sizes=())],
            [replace(entry, sizes=(0,))],
            [replace(entry, digest=b"")],
            [replace(entry, batch_digest=b"")],
            [replace(entry, time=49)],
            [entry, replace(entry, seq=3, time=49)],
            [entry, entry],
            [replace(entry, number=1)],
        ]
        for entries in wrong:
            await raises(ValueError, log.append(1, scribe.term, 1, entries))
        assert (await log.look()).tail.seq == 1
        await scribe.append([entry])
        await check_whole(log)


# ---- reading


async def check_read(make_store: MakeStore) -> None:
    """Reading after any seq begins with the entry that holds the next one, also inside an entry."""
    async with opened(make_store, "read") as log, opened(make_store, "read") as other:
        scribe = await Scribe.fencing(log, 1)
        written = await scribe.write(1, 3, 1)
        grouped = scribe.entry("q", 2, (2, 1, 4))
        await scribe.append([grouped])
        written.append(grouped)
        for reader in (log, other):
            for after in range(scribe.tail.seq + 3):
                expected = [entry for entry in written if entry.last_seq > after]
                assert await reader.read(after, 10**6) == expected
                assert await reader.read(after, 0) == expected[:1]


async def check_read_bytes(make_store: MakeStore) -> None:
    """max_bytes counts Entry.bytes and gives way to at least one entry."""
    async with opened(make_store, "read bytes") as log:
        scribe = await Scribe.fencing(log, 1)
        written = await scribe.write(1, 1, 1, 1, size=1000)
        large = await scribe.write(1, size=300_000)
        one = 1000 + ENTRY_OVERHEAD
        assert written[0].bytes == one
        for limit, count in (
            (1, 1),
            (one - 1, 1),
            (one, 1),
            (2 * one - 1, 1),
            (2 * one, 2),
            (3 * one, 3),
            (4 * one, 4),
        ):
            assert await log.read(0, limit) == written[:count]
        assert await log.read(4, 10) == large
        assert (await log.look()).bytes == 4 * one + 300_000 + ENTRY_OVERHEAD


async def check_read_time(make_store: MakeStore) -> None:
    """read_time gives the seq before the first entry at or after a time, the tail's if there is none."""
    async with opened(make_store, "read time") as log:
        scribe = await Scribe.fencing(log, 1)
        for time, count in ((10, 2), (20, 1), (20, 3), (30, 1)):
            scribe.time = time
            await scribe.write(count)
        expected = {0: 0, 10: 0, 11: 2, 20: 2, 21: 6, 30: 6, 31: 7, 10**15: 7}
        assert {time: await log.read_time(time) for time in expected} == expected
        await log.trim(1, scribe.term, 3)
        assert [await log.read_time(time) for time in (0, 20, 21, 31)] == [3, 3, 6, 7]
        await log.trim(1, scribe.term, 7)
        assert [await log.read_time(time) for time in (0, 31)] == [7, 7]


async def check_wait(make_store: MakeStore) -> None:
    """wait returns at once where the tail differs, and when it moves, whoever moved it."""
    async with opened(make_store, "wait") as log, opened(make_store, "wait") as other:
        scribe = await Scribe.fencing(log, 1)
        with trio.fail_after(30):
            await log.wait(5)
            for reader in (log, other):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reader.wait, scribe.tail.seq)
                    await trio.lowlevel.checkpoint()
                    await scribe.write(1)
        with trio.move_on_after(0.01) as scope:
            await other.wait(scribe.tail.seq)
        assert scope.cancelled_caught


# ---- positions


async def check_positions(make_store: MakeStore) -> None:
    """A position carries the epoch and term of the entry that holds its seq: terms that stored nothing name none."""
    async with opened(make_store, "positions") as log:
        first = await Scribe.fencing(log, 1)
        await first.write(1, 2)
        for epoch in (2, 3):
            await Scribe.fencing(log, epoch)
        fourth = await Scribe.fencing(log, 4)
        assert (await log.look()).head == Position(log.lineage, 1, first.term, 3)
        await fourth.write(2)
        look = await log.look()
        assert [look.epoch_of(seq) for seq in range(6)] == [
            (0, NO_TERM),
            *[(1, first.term)] * 3,
            *[(4, fourth.term)] * 2,
        ]
        for seq in range(6):
            assert look.check(look.position(seq)) is None
        held = look.position(3)
        for foreign in (replace(held, epoch=2), replace(held, term=fourth.term), replace(held, lineage="0" * 16)):
            assert type(look.check(foreign)) is OtherLineage
        refused = look.check(Position(log.lineage, 4, fourth.term, 6))
        assert type(refused) is FuturePosition
        assert (refused.earliest, refused.head) == (look.position(0), look.position(5))


async def check_trimmed_positions(make_store: MakeStore) -> None:
    """The floor stays a position with its own epoch, below it is too old, through a total trim and a restart. Where the
    history of terms, which reaches below the floor, says that another term wrote there, it is of another log."""
    async with opened(make_store, "trimmed positions") as log:
        first = await Scribe.fencing(log, 1)
        await first.write(2, 2)
        second = await Scribe.fencing(log, 2)
        await second.write(1)
        before = await log.look()
        for up_to, floor in ((1, 0), (2, 2), (3, 2), (4, 4), (5, 5), (99, 5)):
            assert await log.trim(2, second.term, up_to) == floor
            look = await log.look()
            assert look.floor.seq == floor and look.tail == before.tail
            assert look.earliest == before.position(floor)
            for seq in range(6):
                refused = look.check(before.position(seq))
                assert (type(refused) is PositionTooOld) if seq < floor else (refused is None), (floor, seq)
        assert look.floor == look.tail and look.bytes == 0
    async with opened(make_store, "trimmed positions") as log:
        assert await log.look() == look
        third = await Scribe.fencing(log, 3)
        (entry,) = await third.write(1)
        assert entry.seq == 6 and entry.digest == chain(before.tail.digest, log.lineage, entry)
        look = await log.look()
        assert look.check(before.position(5)) is None and type(look.check(before.position(4))) is PositionTooOld
        assert look.check(Position(log.lineage, 2, third.term, 5)) is not None
        await third.write(2, 2)
        await log.trim(3, third.term, 8)
        look = await log.look()
        assert look.floor.seq == 8 and type(look.check(Position(log.lineage, 3, third.term, 6))) is PositionTooOld
        assert type(look.check(Position(log.lineage, 2, second.term, 6))) is OtherLineage
        assert type(look.check(before.position(4))) is PositionTooOld
        await check_whole(log)


async def check_trim(make_store: MakeStore) -> None:
    """Trimming drops whole entries; reading below the floor is TrimmedAway, at it goes on."""
    async with opened(make_store, "trim") as log, opened(make_store, "trim") as other:
        scribe = await Scribe.fencing(log, 1)
        grouped = scribe.entry("p", 1, (3,))
        await scribe.append([grouped])
        rest = await scribe.write(1, 1)
        for inside in (0, 1, 2):
            assert await log.trim(1, scribe.term, inside) == 0
        assert await log.trim(1, scribe.term, 3) == 3
        assert await log.trim(1, scribe.term, 1) == 3
        for reader in (log, other):
            for after in (0, 2):
                await raises(TrimmedAway, reader.read(after, 1000))
            assert await reader.read(3, 1000) == rest
        assert (await log.look()).bytes == sum(entry.bytes for entry in rest)
        await check_whole(other)
        many = [scribe.entry("many", 1, (1,), 0) for _ in range(5000)]
        await scribe.append(many)
        assert await log.trim(1, scribe.term, many[-2].last_seq) == many[-2].last_seq
        assert await other.read(many[-2].last_seq, 1000) == many[-1:]
        await check_whole(other)


async def check_history(make_store: MakeStore) -> None:
    """The history of terms keeps the term that covers the floor and drops older ones; it is bounded."""
    async with opened(make_store, "history") as log:
        for epoch in range(1, 6):
            scribe = await Scribe.fencing(log, epoch)
            await scribe.write(1)
        for up_to, oldest in ((0, 1), (1, 1), (2, 2), (4, 4), (5, 5)):
            await log.trim(5, scribe.term, up_to)
            assert [record.epoch for record in (await log.look()).epochs] == list(range(oldest, 6))
        for epoch in range(6, 9):
            scribe = await Scribe.fencing(log, epoch)
        await log.trim(8, scribe.term, 5)
        look = await log.look()
        assert [record.epoch for record in look.epochs] == [5, 6, 7, 8]
        assert look.epoch_of(5) == (5, "00000005")


async def check_history_bound(make_store: MakeStore) -> None:
    """Of more than a thousand terms, the oldest that stored nothing go; those of entries that are held stay."""
    async with opened(make_store, "history bound") as log:
        await (await Scribe.fencing(log, 1)).write(1)
        for epoch in range(2, 1012):
            scribe = await Scribe.fencing(log, epoch)
        await scribe.write(1)
        look = await log.look()
        assert len(look.epochs) == 1000
        assert [look.epoch_of(seq) for seq in (1, 2)] == [(1, "00000001"), (1011, scribe.term)]
        assert look.epochs[0].epoch == 1 and look.epochs[1].epoch == 13
        await check_whole(log)


# ---- settings, cancellation


async def check_settings(make_store: MakeStore) -> None:
    """Settings are a compare-and-set on their version, for any process, and survive."""
    async with opened(make_store, "settings") as log, opened(make_store, "settings") as other:
        wanted = FeedSettings(
            (Resource("vm", ("state", "nics.0"), "https://vmapi/vms"), Resource("server"), Resource("nic", ())),
            None,
            2**40,
            12,
        )
        stored = await other.set_settings(wanted)
        assert stored == replace(wanted, version=1) and await log.settings() == stored
        assert (await log.look()).settings_version == 1
        await raises(SettingsConflict, log.set_settings(wanted))
        assert (await log.set_settings(replace(stored, retention_age_s=1.5))).version == 2
        assert (await other.settings()).retention_age_s == 1.5
    async with opened(make_store, "settings") as log:
        assert (await log.settings()).resources == wanted.resources


async def check_cancelled(make_store: MakeStore) -> None:
    """A write that is cancelled is whole or was never begun, and leaves the log usable."""
    async with opened(make_store, "cancelled") as log, opened(make_store, "cancelled") as other:
        scribe = await Scribe.fencing(log, 1)
        for delay in range(40):
            before = await other.look()
            scribe = Scribe(log, before)
            entries = [scribe.entry(f"p{delay}"), scribe.entry(f"q{delay}", 1, (2,))]
            ended: list[str] = []

            async def write(scribe: Scribe, entries: list[Entry], ended: list[str]) -> None:
                await scribe.append(entries)
                ended.append("appended")
                await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, scribe, entries, ended)
                for _ in range(delay // 4):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            after = await other.look()
            assert after.tail.seq == before.tail.seq + (3 if ended else 0)
        with trio.CancelScope() as scope:
            scope.cancel()
            await Scribe.fencing(log, 2)
        assert (await other.look()).fence.epoch == 1
        await (await Scribe.fencing(log, 3)).write(1)
        await check_whole(log)


async def check_maintain(make_store: MakeStore) -> None:
    """Housekeeping and the room of the storage can be asked for at any time, beside appends."""
    async with opened(make_store, "maintain") as log:
        scribe = await Scribe.fencing(log, 1)

        async def write() -> None:
            for _ in range(50):
                await scribe.write(1, size=5000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for _ in range(5):
                facts = await log.maintain()
                assert facts and all(type(value) is int and value >= 0 for value in facts.values())
        free, total = await log.storage()
        assert free > 0 and total > 0
        await check_whole(log)


LOG_CHECKS: Final[tuple[Check, ...]] = (
    check_opening,
    check_empty,
    check_restart,
    check_fence,
    check_fence_alone,
    check_tail_alone,
    check_fence_in_flight,
    check_caller_mistakes,
    check_read,
    check_read_bytes,
    check_read_time,
    check_wait,
    check_positions,
    check_trimmed_positions,
    check_trim,
    check_history,
    check_history_bound,
    check_publishers,
    check_batches,
    check_publishers_trimmed,
    check_publishers_bound,
    check_settings,
    check_cancelled,
    check_maintain,
    *SNAPSHOT_CHECKS,
)


async def check_log_store(make_store: MakeStore) -> None:
    """Put a store to every check; raises at the first that it fails, naming it."""
    for check in LOG_CHECKS:
        try:
            await check(make_store)
        except (AssertionError, ChangefeedError) as error:
            raise AssertionError(f"{check.__name__}: {error!r}") from error
