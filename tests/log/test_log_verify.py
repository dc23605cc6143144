"""verify: a whole log passes, and each kind of fault is named with the seq at which it begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from changefeed.batch import Entry, Tail, batch_digest, chain
from changefeed.errors import LogDamaged
from changefeed.log import EpochRecord, verify
from changefeed.log.memory import MemoryFeedLog, MemoryLogStore
from changefeed.log.verify import verify_log
from changefeed.testing.log_scribe import Scribe


async def written() -> MemoryFeedLog:
    """Terms 1 (seqs 1 to 4), 2 (nothing) and 3 (5 to 10); publishers p and q."""
    log = await MemoryLogStore().open("vmapi")
    first = await Scribe.fencing(log, 1)
    await log.open_publisher(1, first.term, "q", named=True)
    first.time = 100
    await first.write(1, 3)
    await Scribe.fencing(log, 2)
    third = await Scribe.fencing(log, 3)
    third.time = 200
    await third.append([third.entry("q", 2, (2, 1))])
    await third.write(1, 2)
    return log


async def test_a_whole_log_passes_with_its_figures() -> None:
    """Counts of what was walked, from the floor to the tail."""
    log = await written()
    found = await verify_log(log)
    assert found.fault is None
    assert (found.feed, found.lineage, found.floor, found.tail) == ("vmapi", log.lineage, 0, 10)
    assert (found.entries, found.events, found.groups, found.epochs, found.publishers) == (5, 10, 9, 2, 2)
    assert found.payload_bytes == 100
    await log.trim(3, "00000003", 4)
    found = await verify_log(log)
    assert found.fault is None and (found.floor, found.tail, found.entries, found.epochs) == (4, 10, 3, 1)
    await log.trim(3, "00000003", 10)
    found = await verify_log(log)
    assert found.fault is None and (found.floor, found.tail, found.entries) == (10, 10, 0)


def rebuilt(log: MemoryFeedLog, index: int, **parts: Any) -> None:
    """Change an entry and make the chain right again: only a check of the meaning can see it."""
    data = log._data
    entries = data.entries
    entries[index] = replace(entries[index], **parts)
    digest = data.floor.digest
    for place, entry in enumerate(entries):
        entry = replace(entry, batch_digest=batch_digest(entry.sizes, entry.payload))
        entries[place] = entry = replace(entry, digest=chain(digest, log.lineage, entry))
        digest = entry.digest
    last = entries[-1]
    data.tail = Tail(last.last_seq, last.epoch, last.term, last.digest, last.time)


def change(index: int, **parts: Any) -> Any:
    return lambda log: rebuilt(log, index, **parts)


def raw(index: int, **parts: Any) -> Any:
    def edit(log: MemoryFeedLog) -> None:
        log._data.entries[index] = replace(log._data.entries[index], **parts)

    return edit


def ends(**parts: Any) -> Any:
    def edit(log: MemoryFeedLog) -> None:
        for name, value in parts.items():
            setattr(log._data, name, value(getattr(log._data, name)))

    return edit


def known(publisher: str, **parts: Any) -> Any:
    def edit(log: MemoryFeedLog) -> None:
        log._data.publishers[publisher] = replace(log._data.publishers[publisher], **parts)

    return edit


def epochs(*records: tuple[int, int]) -> Any:
    def edit(log: MemoryFeedLog) -> None:
        log._data.epochs = [EpochRecord(epoch, f"{epoch:08x}", first, 1, "i", "start") for epoch, first in records]

    return edit


FAULTS = {
    "payload": (raw(1, payload=b"x" * 20), 2, "do not match their digest"),
    "digest of the bytes": (raw(1, batch_digest=bytes(8)), 2, "do not match their digest"),
    "digest": (raw(1, digest=bytes(32)), 2, "digest chain"),
    "stamp": (raw(3, incarnation=2), 8, "digest chain"),
    "gap": (lambda log: log._data.entries.pop(2), 5, "after seq 4 comes seq 8"),
    "repeat": (lambda log: log._data.entries.insert(2, log._data.entries[1]), 5, "after seq 4 comes seq 2"),
    "end missing": (lambda log: log._data.entries.pop(), 9, "ends at 10"),
    "empty group": (change(1, sizes=(0, 3)), 2, "empty group"),
    "time back": (change(1, time=99), 2, "before that of the entry before it"),
    "epoch back": (change(3, epoch=1, term="00000001"), 8, "after one of epoch 3"),
    "wrong epoch": (change(0, epoch=2, term="00000002"), 1, "gives 1.00000001 there"),
    "wrong term": (change(2, term="ffffffff"), 5, "term 3.ffffffff; the history of terms gives 3.00000003"),
    "number skipped": (change(3, after=5, number=6), 8, "follows 5, but the last one stored is 4"),
    "number again": (change(4, after=4, number=5), 9, "follows 4, but the last one stored is 5"),
    "number behind after": (change(4, number=5), 9, "number 5 follows 5"),
    "first number not there": (change(2, after=7, number=8), 5, "which the log does not hold"),
    "incarnation never given": (change(2, incarnation=9, after=0), 5, "never given: the counter stands at 2"),
    "history ends early": (epochs((1, 1), (2, 5)), 10, "not that of the newest term"),
    "history begins late": (epochs((3, 1)), 1, "gives 3.00000003 there"),
    "history inside an entry": (epochs((1, 1), (2, 3), (3, 5)), 2, "epoch 2 begins inside the entry"),
    "history not growing": (epochs((1, 1), (3, 5), (3, 5)), 5, "epoch 3 from seq 5 comes after epoch 3"),
    "history going back": (epochs((1, 5), (3, 1)), 1, "comes after epoch 1 from 5"),
    "no history": (epochs(), 10, "not that of the newest term"),
    "tail of another digest": (ends(tail=lambda tail: replace(tail, digest=bytes(32))), 10, "another digest"),
    "tail of another epoch": (ends(tail=lambda tail: replace(tail, epoch=1)), 10, "another epoch or time"),
    "tail inside": (ends(tail=lambda tail: replace(tail, seq=9)), 9, "ends at seq 10"),
    "floor beyond": (ends(floor=lambda floor: replace(floor, seq=11)), 10, "after its end"),
    "floor not the beginning": (ends(floor=lambda floor: replace(floor, digest=bytes(32))), 0, "must be its beginning"),
    "publisher forgotten": (lambda log: log._data.publishers.pop("q"), 7, "forgotten publisher q"),
    "publisher behind": (known("q", last_seq=1), 7, "is behind its last entry"),
    "publisher of an older incarnation": (known("q", incarnation=1), 7, "is behind its last entry"),
    "publisher's number behind": (known("p", last_number=1), 10, "says 1, its last entry 7"),
    "publisher's number ahead": (known("p", last_number=9), 10, "says 9, its last entry 7"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_is_named_with_its_seq(name: str) -> None:
    """The first fault, where it is, and what is wrong; the figures end before it."""
    edit, seq, what = FAULTS[name]
    log = await written()
    edit(log)
    found = await verify_log(log)
    assert found.fault is not None, found
    assert (found.fault.seq, what in found.fault.what) == (seq, True), found.fault


async def test_rows_of_a_log_without_entries_must_agree() -> None:
    """After a total trim floor and tail say the same."""
    log = await written()
    await log.trim(3, "00000003", 10)
    log._data.tail = replace(log._data.tail, term="ffffffff")
    found = await verify_log(log)
    assert found.fault is not None and "floor and tail differ" in found.fault.what


async def test_a_walk_overtaken_by_a_trim_begins_again() -> None:
    """Trimming meanwhile is no fault, and neither are appends: the walk ends at the tail that it saw first."""
    log = await written()
    read = log.read
    looked = 0

    async def read_and_disturb(after_seq: int, max_bytes: int) -> list[Entry]:
        nonlocal looked
        looked += 1
        if looked == 2:
            await log.trim(3, "00000003", 7)
            await Scribe(log, await log.look()).write(5)
        return (await read(after_seq, max_bytes))[:1]

    log.read = read_and_disturb  # type: ignore[method-assign]
    found = await verify_log(log)
    assert found.fault is None and (found.floor, found.tail, found.entries) == (7, 15, 3)


async def test_what_the_store_itself_finds_damaged_is_a_fault() -> None:
    """LogDamaged from a read is narrowed down to the entry, from a look it is a fault of the rows."""
    log = await written()
    read = log.read

    async def damaged(after_seq: int, max_bytes: int) -> list[Entry]:
        entries = await read(after_seq, max_bytes)
        if any(entry.seq == 5 for entry in entries):
            raise LogDamaged("entry 5 cannot be read")
        return entries

    log.read = damaged  # type: ignore[method-assign]
    found = await verify_log(log)
    assert found.fault is not None and (found.fault.seq, found.tail) == (5, 4)
    assert found.fault.what == "entry 5 cannot be read"

    async def broken(*arguments: object) -> None:
        raise LogDamaged("no fence row")

    log.look = broken  # type: ignore[method-assign,assignment]
    found = await verify_log(log)
    assert found.fault is not None and (found.fault.seq, found.fault.what) == (0, "no fence row")
    log = await written()
    log.publisher_state = broken  # type: ignore[method-assign,assignment]
    assert (await verify_log(log)).fault is not None


async def test_memory_is_bounded_by_asking_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more publishers than are remembered, the last number of the others is asked of the log: a whole log still
    passes, and a broken chain is still seen."""
    monkeypatch.setattr(verify, "PUBLISHERS_KEPT", 2)
    log = await MemoryLogStore().open("vmapi")
    scribe = await Scribe.fencing(log, 1, opens=False)
    for incarnation in range(1, 6):
        await log.open_publisher(1, scribe.term, f"p{incarnation}", named=False)
    for _ in range(3):
        for incarnation in range(1, 6):
            await scribe.write(2, publisher=f"p{incarnation}", incarnation=incarnation)
    assert (await verify_log(log)).fault is None
    rebuilt(log, 12, after=3, number=5)
    found = await verify_log(log)
    assert found.fault is not None and found.fault.seq == 25
