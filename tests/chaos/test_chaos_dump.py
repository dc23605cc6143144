"""What is read when everything has stopped: the log, the commits and trims that its triggers noted, what a witness saw
of it before, and a flipped bit that must be noticed."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from changefeed.batch import Entry, Tail, batch_digest, chain
from changefeed.change import Change
from changefeed.history.records import Record, read_file
from changefeed.log.urls import open_log
from changefeed.testing.log_scribe import Scribe
from changefeed.wire.changes import encode_change
from simulations.chaos import dump
from simulations.chaos.sandbox import Network
from simulations.chaos.stage import FEED, Stage
from simulations.chaos.witness import Witness


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, Network(False), frozenset(), 1, ensemble=None, chroot="/t", library=None, per_s=100)
    made.subscribers = {}
    yield made
    made.end()


def entry(scribe: Scribe, *ids: str) -> Entry:
    """The next entry of publisher p: a group of changes with these ids."""
    payload = b"".join(encode_change(Change("vm", id, "create", None, {"pad": id * 20}), 2**20) for id in ids)
    empty = scribe.entry(sizes=(len(ids),))
    made = replace(empty, payload=payload, batch_digest=batch_digest((len(ids),), payload), digest=b"")
    return replace(made, digest=b"")


async def append(scribe: Scribe, *ids: str) -> None:
    before = scribe.tail
    made = entry(scribe, *ids)
    made = replace(made, digest=chain(before.digest, scribe.log.lineage, made))
    scribe.tail = Tail(made.last_seq, made.epoch, made.term, made.digest, made.time)
    await scribe.append([made])


@asynccontextmanager
async def written(stage: Stage) -> AsyncIterator[Witness]:
    """Two terms: a group of two under the first, one change under each; the first entry is trimmed, and was seen."""
    log = await open_log(f"sqlite:{stage.log_folder}").open(FEED)
    stage._audit()
    witness = Witness(f"sqlite:{stage.log_folder}", FEED)
    scribe = await Scribe.fencing(log, 1)
    await append(scribe, "a", "b")
    await witness.read(log)
    await append(scribe, "c")
    numbers, scribe = scribe.numbers, await Scribe.fencing(log, 2)
    scribe.numbers = numbers
    await append(scribe, "d")
    await witness.read(log)
    await log.trim(2, scribe.term, 2)
    await log.aclose()
    yield witness


def records(stage: Stage, node: str) -> list[Record]:
    return list(read_file(stage.history / f"{node}.jsonl"))


async def test_the_log_is_told_as_it_is_and_as_it_was(stage: Stage) -> None:
    """Trimmed entries come before the log's own record, as seen earlier; the others after it."""
    async with written(stage) as witness:
        await dump.dump_log(stage, dump.wall_ahead_ns(), witness.entries)
    told = records(stage, "end")
    assert [(one["f"], one.get("keys")) for one in told] == [
        ("entry", ["a", "b"]), ("log", None), ("entry", ["c"]), ("entry", ["d"]),
    ]  # fmt: skip
    assert (told[1]["tail"], told[1]["floor"]) == (4, 2)
    assert told[3]["epoch"] == 2 and told[3]["heads"] == [["vm", "d", "create", None]]


async def test_commits_say_which_fence_stood(stage: Stage) -> None:
    """Noted inside of each commit, by the log itself; a transaction that was rolled back leaves nothing."""
    async with written(stage) as witness:
        with sqlite3.connect(stage.log_file, isolation_level=None) as connection:
            connection.execute("BEGIN")
            connection.execute(
                "INSERT INTO entries SELECT 9, 9, epoch, term, time, publisher, incarnation, after, 99, sizes,"
                " batch_digest, digest, payload FROM entries LIMIT 1"
            )
            connection.execute("ROLLBACK")
        connection.close()
        await dump.dump_log(stage, dump.wall_ahead_ns(), witness.entries)
    told = records(stage, "store")
    assert [(one["f"], one.get("epoch"), one.get("fence"), one.get("first"), one.get("last")) for one in told[:3]] == [
        ("commit", 1, 1, 1, 2), ("commit", 1, 1, 3, 3), ("commit", 2, 2, 4, 4),
    ]  # fmt: skip
    assert (told[3]["f"], told[3]["floor"]) == ("trimmed", 2) and len(told) == 4
    assert all(one["fence_term"] == one["term"] for one in told[:3])
    assert [one["t"] for one in told] == sorted(one["t"] for one in told)


async def test_a_flipped_bit_is_noticed(stage: Stage) -> None:
    """Whichever it is."""
    async with written(stage):
        for seed in range(10):
            await dump.flip_bytes(stage, random.Random(seed))
    told = [record for record in records(stage, "nemesis") if record["f"] == "effect"]
    assert [record["what"] for record in told] == ["damage-detected"] * 10
    assert stage.wrong == []
