"""A leader's hand for tests of the outbox: moves what waits by one append, as a leader does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from changefeed.batch import Entry, Tail, batch_digest, chain
from changefeed.change import Change
from changefeed.log import OUTBOX, FeedLog
from changefeed.log.urls import open_log
from changefeed.testing.log_scribe import Scribe
from changefeed.wire.changes import decode_change, split

FEED = "vmapi"


@asynccontextmanager
async def feed_log(database: str) -> AsyncIterator[FeedLog]:
    store = open_log(database)
    log = await store.open(FEED)
    yield log
    await log.aclose()
    await store.aclose()


async def take(log: FeedLog, scribe: Scribe, bytes_max: int = 2**23) -> list[list[Any]]:
    """Move what waits by one append; the groups, as changes."""
    assert log.outbox is not None
    moved = await log.outbox.waiting(bytes_max)
    if moved is None:
        return []
    entry = scribe.entry(OUTBOX, 7, moved.sizes)
    look = await log.look()
    entry = replace(entry, payload=moved.payload, batch_digest=batch_digest(moved.sizes, moved.payload))
    entry = replace(entry, digest=chain(look.tail.digest, log.lineage, entry))
    scribe.tail = Tail(entry.last_seq, entry.epoch, entry.term, entry.digest, entry.time)
    await log.outbox.append(scribe.epoch, scribe.term, entry.seq - 1, [entry], moved)
    return groups(entry)


async def take_all(log: FeedLog, scribe: Scribe, bytes_max: int = 2**23) -> list[list[Any]]:
    found: list[list[Any]] = []
    while taken := await take(log, scribe, bytes_max):
        found += taken
    return found


def groups(entry: Entry) -> list[list[Change]]:
    changes = [decode_change(data) for data in split(entry.payload)]
    found = []
    for size in entry.sizes:
        found.append(changes[:size])
        changes = changes[size:]
    return found


def ids(taken: list[list[Change]]) -> list[list[str]]:
    return [[change.id for change in group] for group in taken]
