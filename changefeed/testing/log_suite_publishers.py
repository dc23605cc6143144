"""What a log knows of publishers: the part of the conformance suite (log_suite.py) that is about them."""

from __future__ import annotations

from dataclasses import replace

from changefeed.batch import chain
from changefeed.errors import Fenced, TooManyPublishers
from changefeed.settings import Settings
from changefeed.testing.log_scribe import MakeStore, Scribe, check_whole, opened, raises


async def check_publishers(make_store: MakeStore) -> None:
    """Incarnations come from one counter, committed at once; only a named publisher keeps its own."""
    async with opened(make_store, "publishers") as log, opened(make_store, "publishers") as other:
        scribe = await Scribe.fencing(log, 1, opens=False)

        async def open_it(publisher: str, named: bool) -> tuple[int, int]:
            state = await log.open_publisher(1, scribe.term, publisher, named=named)
            assert state == await other.publisher_state(publisher) and state.named is named
            return state.incarnation, state.last_number

        assert await other.publisher_state("a") is None and await other.last_number("a", 1) is None
        assert [await open_it("a", False), await open_it("b", True), await open_it("a", False)] == [
            (1, 0),
            (2, 0),
            (3, 0),
        ]
        assert (await other.look()).incarnations == 3
        await scribe.write(2, publisher="b", incarnation=2)
        await scribe.write(3, 1, publisher="a", incarnation=3)
        assert [await open_it("b", True), await open_it("a", False), await open_it("b", False)] == [
            (2, 2),
            (4, 0),
            (5, 0),
        ]
        assert [await other.last_number(*who) for who in (("a", 1), ("a", 3), ("a", 4), ("b", 2), ("c", 1))] == [
            None,
            4,
            None,
            2,
            None,
        ]
        state = await other.publisher_state("a")
        assert state is not None and (state.incarnation, state.last_number, state.last_seq) == (4, 0, 6)
        await Scribe.fencing(log, 2)
        await raises(Fenced, log.open_publisher(1, scribe.term, "c", named=False))
        assert await other.publisher_state("c") is None


async def check_batches(make_store: MakeStore) -> None:
    """A batch of any age is found by any of its numbers, under its own incarnation, until it is trimmed."""
    async with opened(make_store, "batches") as log, opened(make_store, "batches") as other:
        scribe = await Scribe.fencing(log, 1)
        first, second = await scribe.write(2, 3, publisher="a", incarnation=1)
        (newer,) = await scribe.write(2, publisher="a", incarnation=2)
        skipped = replace(scribe.entry("a", 2), number=9)
        skipped = replace(skipped, digest=chain(newer.digest, log.lineage, skipped))
        await scribe.append([skipped])
        expected = {1: first, 2: first, 3: second, 5: second, 6: None, 0: None}
        for number, entry in expected.items():
            assert await other.find_batch("a", 1, number) == entry
        found = [await other.find_batch("a", 2, number) for number in (1, 2, 3, 8, 9, 10)]
        assert found == [newer, newer, None, None, skipped, None]
        assert await other.find_batch("b", 1, 1) is None and await other.find_batch("a", 3, 1) is None
        assert [await other.last_number("a", incarnation) for incarnation in (1, 2)] == [5, 9]
        await log.trim(1, scribe.term, 2)
        assert [await other.find_batch("a", 1, number) for number in (2, 3)] == [None, second]
        await log.trim(1, scribe.term, 5)
        assert await other.find_batch("a", 1, 5) is None and await other.last_number("a", 1) is None


async def check_publishers_trimmed(make_store: MakeStore) -> None:
    """A publisher is dropped when all its entries are trimmed, not before; a quiet newcomer is given as long."""
    async with opened(make_store, "publishers trimmed") as log:
        scribe = await Scribe.fencing(log, 1, opens=False)
        for publisher in ("a", "b"):
            await log.open_publisher(1, scribe.term, publisher, named=False)
        await scribe.write(1, publisher="a", incarnation=1)
        await scribe.write(1, publisher="b", incarnation=2)
        await log.open_publisher(1, scribe.term, "quiet", named=False)
        await scribe.write(1, publisher="a", incarnation=1)

        async def known() -> list[str]:
            return [name for name in ("a", "b", "quiet") if await log.publisher_state(name) is not None]

        for up_to, expected in ((1, "a b quiet"), (2, "a quiet"), (3, "")):
            await log.trim(1, scribe.term, up_to)
            assert await known() == expected.split(), up_to
        assert (await log.look()).incarnations == 3
        # Appended all the same (the leader still knows it): its row comes back, and stands for a named one.
        await scribe.write(1, publisher="b", incarnation=2)
        state = await log.open_publisher(1, scribe.term, "b", named=True)
        assert (state.incarnation, state.last_number) == (2, 2)
        assert (await log.open_publisher(1, scribe.term, "a", named=True)).incarnation == 4
        await check_whole(log)


async def check_publishers_bound(make_store: MakeStore) -> None:
    """At publishers_max, those that hold no entry make room, opened longest ago first; then comes the refusal."""
    async with opened(make_store, "publishers bound", settings=Settings(publishers_max=3)) as log:
        scribe = await Scribe.fencing(log, 1, opens=False)

        async def open_it(publisher: str) -> int:
            state = await log.open_publisher(1, scribe.term, publisher, named=False)
            await scribe.write(1, publisher=publisher, incarnation=state.incarnation)
            return state.incarnation

        await log.open_publisher(1, scribe.term, "idle", named=False)
        assert [await open_it("a"), await open_it("b")] == [2, 3]
        await log.open_publisher(1, scribe.term, "a", named=False)
        assert await open_it("c") == 5
        assert await log.publisher_state("idle") is None
        error = await raises(TooManyPublishers, log.open_publisher(1, scribe.term, "d", named=False))
        assert isinstance(error, TooManyPublishers) and error.retryable
        assert (await log.look()).incarnations == 5
        assert await open_it("b") == 6
        await log.trim(1, scribe.term, 1)
        assert await open_it("d") == 7
