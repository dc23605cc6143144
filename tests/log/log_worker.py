"""Another process on the same log, for tests: `python log_worker.py MODE DIRECTORY`. It prints one line per step.

append     fence the next epoch, then append without end; a line "acked SEQ" after each append that returned
hold       take the write lock as a frozen leader does, with an uncommitted entry, and stand still
read       begin a read transaction and stand still inside it
fold       as append, and fold seq n into the row of object n % 10, one by one; a line "folded SEQ" for each
fail       as append, but go on after AppendOutcomeUnknown: append again, fence again, append; prints what each did
"""

from __future__ import annotations

import sqlite3
import sys

import trio

from changefeed.errors import AppendOutcomeUnknown, ChangefeedError
from changefeed.log import FeedLog, Fence, Latest
from changefeed.log.sqlite import SqliteLogStore
from changefeed.testing.log_scribe import Scribe

FEED = "vmapi"


def say(*words: object) -> None:
    print(*words, flush=True)


async def take(log: FeedLog, *, clean: bool = False) -> Scribe:
    epoch = (await log.look()).fence.epoch + 1
    look = await log.fence(Fence(epoch, f"{epoch:08x}", "worker"), why="test", time=epoch, clean=clean)
    await log.open_publisher(epoch, look.fence.term, "p", named=True)
    return Scribe(log, look)


async def append(directory: str) -> None:
    log = await SqliteLogStore("sqlite:", directory).open(FEED)
    scribe = await take(log)
    say("ready")
    while True:
        entries = await scribe.write(1, 2, size=3000)
        say("acked", entries[-1].last_seq)


async def fold(directory: str) -> None:
    log = await SqliteLogStore("sqlite:", directory).open(FEED)
    scribe = await take(log)
    look = await log.look()
    folded = look.folded
    if folded is None:
        await log.fold(scribe.epoch, scribe.term, None, look.floor.seq, [], [], versioned=False)
        folded = look.floor.seq
    say("ready")
    while True:
        if folded == scribe.tail.seq:
            await scribe.write(5)
        seq = folded + 1
        row = Latest("vm", str(seq % 10), seq, scribe.epoch, scribe.term, 0, "p", None, str(seq).encode())
        await log.fold(scribe.epoch, scribe.term, folded, seq, [row], [], versioned=False)
        folded = seq
        say("folded", seq)


async def fail(directory: str) -> None:
    log = await SqliteLogStore("sqlite:", directory).open(FEED)
    scribe = await take(log)
    acked = 0
    try:
        while acked < 1000:
            acked = (await scribe.write(1))[-1].last_seq
    except AppendOutcomeUnknown:
        say("unknown", acked)
    try:
        await scribe.write(1)
    except ChangefeedError as error:
        say("then", error.code)
    say("held", (await log.look()).tail.seq)
    scribe = await take(log, clean=True)
    await scribe.write(1)
    say("acked", scribe.tail.seq)
    await log.aclose()


def stand_still(directory: str, *statements: str) -> None:
    connection = sqlite3.connect(f"{directory}/{FEED}.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement).fetchall()
    say("ready")
    sys.stdin.read()


def main() -> None:
    mode, directory = sys.argv[1:]
    if mode == "append":
        trio.run(append, directory)
    elif mode == "fold":
        trio.run(fold, directory)
    elif mode == "fail":
        trio.run(fail, directory)
    elif mode == "hold":
        stand_still(directory, "BEGIN IMMEDIATE", "UPDATE ends SET time = time + 1")
    else:
        stand_still(directory, "BEGIN", "SELECT count(*) FROM entries")


if __name__ == "__main__":
    main()
