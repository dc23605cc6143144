"""The part of the conformance suite (log_suite.py) that is about the snapshot: the latest event of each object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio

from changefeed.change import Key
from changefeed.errors import Fenced, LogUnavailable, TailMoved
from changefeed.log import FeedLog, Fence, Latest
from changefeed.log.rules import LATEST_MAX, TOMBSTONE_BYTES
from changefeed.testing.log_scribe import MakeStore, Scribe, check_whole, opened, raises


def latest(
    id: str, seq: int, payload: bytes | None = b"change", version: int | None = None, resource: str = "vm"
) -> Latest:
    """A row as a leader of term 1 would fold it."""
    return Latest(resource, id, seq, 1, "00000001", 1000 + seq, "p", version, payload)


async def fold(
    scribe: Scribe,
    after: int | None,
    to: int,
    rows: Sequence[Latest] = (),
    gone: Sequence[Key] = (),
    versioned: bool = False,
) -> None:
    await scribe.log.fold(scribe.epoch, scribe.term, after, to, rows, gone, versioned=versioned)


async def listed(log: FeedLog, max_bytes: int = 2**20) -> list[Latest]:
    """The whole list, page by page."""
    found: list[Latest] = []
    while page := await log.list_latest(found[-1].key if found else None, max_bytes):
        found += page
    return found


async def folded(log: FeedLog) -> tuple[int | None, bool]:
    look = await log.look()
    return look.folded, look.versioned


async def check_snapshot(make_store: MakeStore) -> None:
    """Rows are put in place of what stood of their objects, others stay; what is gone is gone; another process sees
    it. A log that was never folded holds none."""
    async with opened(make_store, "snapshot") as log, opened(make_store, "snapshot") as other:
        assert await folded(log) == (None, False)
        assert await log.latest([("vm", "a")]) == await log.list_latest(None, 1000) == []
        await raises(Fenced, log.fold(0, "00000000", None, 0, [], [], versioned=False))
        scribe = await Scribe.fencing(log, 1)
        await fold(scribe, None, 0)
        assert await folded(other) == (0, False) and await other.list_latest(None, 1000) == []
        await scribe.write(3, 3)
        a, b, c = latest("a", 1), latest("b", 2, b"", 2**63 - 1), latest("c", 3, version=0)
        await fold(scribe, 0, 3, [c, a, b])
        assert await folded(other) == (3, False) and await listed(other) == [a, b, c]
        assert await other.latest([]) == []
        keys = [b.key, ("vm", "nothing"), a.key, b.key, ("nic", "a")]
        assert sorted(await other.latest(keys), key=lambda row: row.seq) == [a, b]
        newer = replace(a, seq=5, epoch=7, term="0badcafe", time=9, publisher="q", version=4, payload=b"newer")
        await fold(scribe, 3, 5, [newer], [c.key, ("vm", "nothing")], versioned=True)
        assert await folded(other) == (5, True) and await listed(other) == [newer, b]
        await fold(scribe, 5, 6)
        await fold(scribe, 6, 6, [c])
        assert await folded(other) == (6, True) and await listed(other) == [newer, b, c]
        await check_whole(log)
    async with opened(make_store, "snapshot") as log:
        assert await folded(log) == (6, True) and await listed(log) == [newer, b, c]


async def check_snapshot_refused(make_store: MakeStore) -> None:
    """A fold that does not begin where the snapshot stands is TailMoved, one of a deposed leader Fenced, one that ends
    outside of the log or says what cannot be a ValueError: nothing is written of any."""
    async with opened(make_store, "snapshot refused") as log, opened(make_store, "snapshot refused") as other:
        scribe = await Scribe.fencing(log, 1)
        await scribe.write(2, 2)
        row, new = latest("a", 1), latest("a", 3)
        await raises(TailMoved, fold(scribe, 0, 2, [row]))
        assert await folded(log) == (None, False) and await log.latest([row.key]) == []
        await log.trim(1, scribe.term, 2)
        await fold(scribe, None, 3, [row])
        for after in (0, 2, 4):
            await raises(TailMoved, fold(scribe, after, 4, [new], [("vm", "b")], True))
        for to in (5, 1, 0):
            await raises(ValueError, fold(scribe, None, to, []))
        two = [latest("b", 3), latest("b", 2)]
        for rows, gone in (
            (two, []),
            ([row], [row.key]),
            ([], [row.key, row.key]),
            ([latest("b", 5)], []),
            ([latest("b", 0)], []),
            ([latest("b", 3, None)], []),
            ([latest("b", 3, version=2**63)], []),
            ([latest("b", 3, version=-1)], []),
        ):
            await raises(ValueError, fold(scribe, 3, 4, rows, gone))
        await raises(ValueError, fold(scribe, 3, 2))
        await raises(ValueError, fold(scribe, 3, 5))
        await raises(ValueError, log.latest([("vm", "a")] * (LATEST_MAX + 1)))
        late = Scribe(other, await other.look())
        await Scribe.fencing(other, 2)
        for epoch, term in ((1, scribe.term), (2, "deadbeef"), (3, "00000002")):
            await raises(Fenced, other.fold(epoch, term, 3, 4, [new], [], versioned=True))
            await raises(Fenced, other.fold(epoch, term, None, 4, [new], [], versioned=True))
        # Both are wrong: the fence speaks first.
        await raises(Fenced, fold(late, 2, 4))
        assert await folded(log) == (3, False) and await listed(log) == [row]


async def check_snapshot_tombstones(make_store: MakeStore) -> None:
    """A tombstone is told of its object and listed, and goes with the trim that reaches its seq, not before; a row
    with a payload stays, also one that took the tombstone's place."""
    async with opened(make_store, "tombstones") as log, opened(make_store, "tombstones") as other:
        scribe = await Scribe.fencing(log, 1)
        await scribe.write(1, 1, 1, 1)
        kept, revived = latest("kept", 1, version=1), latest("revived", 4, b"again", 9)
        dead = [latest(f"dead{seq}", seq, None, 10 * seq) for seq in (2, 3)]
        gone = latest("revived", 2, None, 8)
        await fold(scribe, None, 3, [kept, *dead, gone], versioned=True)
        assert await listed(other) == [*dead, kept, gone]
        await fold(scribe, 3, 4, [revived])
        keys = [row.key for row in (kept, revived, *dead)]

        async def held() -> list[str]:
            return sorted(row.id for row in await other.latest(keys))

        for up_to, expected in (
            (0, "dead2 dead3 kept revived"),
            (1, "dead2 dead3 kept revived"),
            (2, "dead3 kept revived"),
            (3, "kept revived"),
            (4, "kept revived"),
        ):
            await log.trim(1, scribe.term, up_to)
            assert await held() == expected.split(), up_to
        assert await listed(other) == [kept, revived] and await folded(other) == (4, True)
        # Deleted again, below the floor: gone with the next trim, though that finds no entry to drop.
        again = [replace(dead[0], seq=4), latest("revived", 4, None, 9)]
        await fold(scribe, 4, 4, again, [kept.key])
        assert await held() == ["dead2", "revived"] and await listed(other) == again
        await log.trim(1, scribe.term, 0)
        assert await held() == [] and await listed(other) == []


async def check_snapshot_anew(make_store: MakeStore) -> None:
    """Folding that begins anew holds what it is given and nothing else, however much there was; a list that began
    before is told so by the seq that it names."""
    async with opened(make_store, "snapshot anew") as log, opened(make_store, "snapshot anew") as other:
        scribe = await Scribe.fencing(log, 1)
        await scribe.write(1, 1, 1)
        many = [latest(f"{n:05}", 1 + n % 3, None if n % 7 == 0 else b"%d" % n, n) for n in range(12_000)]
        await fold(scribe, None, 1, [row for row in many if row.seq == 1], versioned=True)
        await fold(scribe, 1, 3, [row for row in many if row.seq > 1])
        assert await listed(other, 10_000) == many
        assert await other.list_latest(many[-2].key, 1, at=3) == many[-1:]
        await fold(scribe, None, 2, [latest("new", 2)])
        assert await folded(other) == (2, False) and await listed(other) == [latest("new", 2)]
        assert await other.latest([row.key for row in many[:10_000]]) == []
        await raises(TailMoved, other.list_latest(None, 1, at=3))
        assert await other.list_latest(None, 1, at=2) == [latest("new", 2)]
        await log.trim(1, scribe.term, 3)
        assert await listed(other) == [latest("new", 2)]
        await raises(TailMoved, fold(scribe, 3, 3))
        # It was off for long: what is folded lies below the floor, and goes on from there or begins anew.
        await fold(scribe, None, 3, [], versioned=True)
        assert await folded(other) == (3, True) and await listed(other) == []
    async with opened(make_store, "snapshot anew empty") as log:
        await raises(TailMoved, log.list_latest(None, 1, at=0))


async def check_snapshot_order(make_store: MakeStore) -> None:
    """The list goes by resource, then id, by their UTF-8 bytes, whatever the characters; a list goes on behind any key,
    also one that is not there."""
    # \uffff is three bytes and below every astral character, though UTF-16 says otherwise; \0 ends no id.
    ids = ["\0", "\0\0", "!", "A", "B", "Z", "_", "a", "a\0", "a!", "aa", "b", "\x7f", "ä", "é"]
    ids += ["\uffff", "\U00010000", "\U0010ffff"]
    resources = ["A", "VM", "a", "vm", "vm.x", "vm:x", "vmx"]
    keys = [(resource, id) for resource in resources for id in ids]
    assert keys == sorted(keys, key=lambda key: (key[0].encode(), key[1].encode()))
    async with opened(make_store, "snapshot order") as log:
        scribe = await Scribe.fencing(log, 1)
        await scribe.write(1)
        rows = [latest(id, 1, resource=resource) for resource, id in keys]
        await fold(scribe, None, 1, sorted(rows, key=lambda row: (row.id[::-1], row.resource)))
        assert await listed(log) == rows and await listed(log, 0) == rows
        for number, key in enumerate(keys):
            assert await log.list_latest(key, 1) == rows[number + 1 : number + 2]
        assert await log.list_latest(("vm", "aZ"), 1) == [row for row in rows if row.key == ("vm", "aa")]
        assert await log.list_latest(("b", "z"), 1) == [row for row in rows if row.key == ("vm", "\0")]
        assert await log.list_latest(("zz", ""), 1) == []
        found = await log.latest(keys)
        assert sorted(found, key=lambda row: row.key) == rows


async def check_snapshot_pages(make_store: MakeStore) -> None:
    """A page holds as many rows as their payloads fit, and at least one; tombstones are not free."""
    async with opened(make_store, "snapshot pages") as log:
        scribe = await Scribe.fencing(log, 1)
        await scribe.write(1)
        rows = [latest(f"{n}", 1, bytes(100)) for n in range(5)]
        large = latest("5", 1, bytes(3 * 2**20))
        await fold(scribe, None, 1, [*rows, large])
        for limit, count in ((0, 1), (99, 1), (100, 1), (199, 1), (200, 2), (499, 4), (500, 5), (2**20, 5)):
            assert await log.list_latest(None, limit) == rows[:count], limit
        assert await log.list_latest(rows[3].key, 2**22) == [rows[4], large]
        assert await log.list_latest(rows[4].key, 1) == [large] and await log.list_latest(large.key, 1) == []
        dead = [latest(f"6{n}", 1, None, n) for n in range(4)]
        await fold(scribe, 1, 1, dead)
        for limit, count in ((0, 1), (2 * TOMBSTONE_BYTES - 1, 1), (2 * TOMBSTONE_BYTES, 2), (2**20, 4)):
            assert await log.list_latest(large.key, limit) == dead[:count], limit


async def check_snapshot_in_flight(make_store: MakeStore) -> None:
    """A fence taken while the leader folds without pause: nothing is folded by the old term after it."""
    async with opened(make_store, "fold in flight") as log, opened(make_store, "fold in flight") as other:
        scribe = await Scribe.fencing(log, 1)
        await scribe.write(*[1] * 500)
        await fold(scribe, None, 0)
        for epoch in range(2, 12, 2):
            old = await Scribe.fencing(log, epoch)
            started = trio.Event()

            async def saturate(scribe: Scribe, seq: int, started: trio.Event) -> None:
                while True:
                    try:
                        await fold(scribe, seq, seq + 1, [latest(f"{seq % 5}", seq + 1, b"%d" % scribe.epoch)])
                    except Fenced:
                        return
                    started.set()
                    seq += 1

            begin = (await log.look()).folded
            assert begin is not None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(saturate, old, begin, started)
                await started.wait()
                for _ in range(epoch % 5):
                    await trio.lowlevel.checkpoint()
                look = await other.fence(Fence(epoch + 1, f"{epoch + 1:08x}"), why="silent", time=1, clean=False)
                rows = await listed(other)
            assert look.folded is not None and begin < look.folded < 500
            assert (await other.look()).folded == look.folded and await listed(other) == rows
            assert max(row.seq for row in rows) == look.folded
            new = Scribe(other, look)
            await fold(new, look.folded, look.folded + 1)
        await check_whole(log)


async def check_snapshot_cancelled(make_store: MakeStore) -> None:
    """A fold that is cancelled is whole or was never begun, and leaves the log usable."""
    async with opened(make_store, "fold cancelled") as log, opened(make_store, "fold cancelled") as other:
        scribe = await Scribe.fencing(log, 1)
        await scribe.write(*[1] * 21)
        await fold(scribe, None, 0)
        for delay in range(20):
            begin = (await other.look()).folded
            assert begin is not None
            ended: list[str] = []

            async def one(seq: int, ended: list[str]) -> None:
                await fold(scribe, seq, seq + 1, [latest("a", seq + 1), latest(f"{seq}", seq + 1)])
                ended.append("folded")
                await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, begin, ended)
                for _ in range(delay // 4):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            count = begin + len(ended)
            assert (await other.look()).folded == count
            assert [row.seq for row in await other.latest([("vm", "a")])] == ([count] if count else [])
        await fold(scribe, count, 21)
        async with opened(make_store, "fold cancelled") as closed:
            pass
        await raises(LogUnavailable, closed.latest([("vm", "a")]))
        await raises(LogUnavailable, closed.list_latest(None, 1))


SNAPSHOT_CHECKS = (
    check_snapshot,
    check_snapshot_refused,
    check_snapshot_tombstones,
    check_snapshot_anew,
    check_snapshot_order,
    check_snapshot_pages,
    check_snapshot_in_flight,
    check_snapshot_cancelled,
)
