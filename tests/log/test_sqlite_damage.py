"""The SQLite store when its files are not what they were: replaced, overwritten, edited, flipped, of another format."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from changefeed.batch import Entry
from changefeed.errors import ChangefeedError, LogDamaged, LogFormatUnknown, LogReplaced
from changefeed.log import Fence
from changefeed.log.sqlite import SqliteFeedLog
from changefeed.log.verify import verify_log
from changefeed.testing.log_scribe import Scribe, everything

Open = Callable[..., Awaitable[SqliteFeedLog]]
Worker = Callable[..., "subprocess.Popen[str]"]


async def written(log: SqliteFeedLog, appends: int = 4) -> Scribe:
    """A log of two terms and two publishers, everything copied into the database."""
    scribe = await Scribe.fencing(log, 1)
    state = await log.open_publisher(1, scribe.term, "q", named=True)
    for _ in range(appends // 2):
        await scribe.write(1, 2, size=300)
    scribe = await Scribe.fencing(log, 2)
    for _ in range(appends // 2):
        await scribe.write(3, publisher="q", incarnation=state.incarnation, size=300)
    await log.maintain()
    return scribe


def edit(directory: Path, *statements: str) -> None:
    """What a person with the sqlite3 shell can do to a stopped log."""
    connection = sqlite3.connect(directory / "vmapi.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


# ---- replaced while running


async def both_ends(log: SqliteFeedLog, scribe: Scribe, kind: type[ChangefeedError]) -> None:
    """Look, append, fence and read all raise that error; nothing of them is stored anywhere."""
    with pytest.raises(kind):
        await log.look()
    with pytest.raises(kind):
        await scribe.append([scribe.entry()])
    with pytest.raises(kind):
        await log.fence(Fence(99, "00000099"), why="late", time=1, clean=False)
    with pytest.raises(kind):
        await log.read(0, 1000)


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_replaced_while_running(directory: Path, open_here: Open, suffix: str, how: str) -> None:
    """The database or its write-ahead log removed, or another put in its place: log-replaced, at once and for good."""
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    path = directory / f"vmapi.db{suffix}"
    aside = directory / "aside"
    os.rename(path, aside)
    if how == "replaced":
        shutil.copy(aside, path)
    await both_ends(log, scribe, LogReplaced)
    # Back again: what was appended to meanwhile may be either file. This process has ended with it.
    os.replace(aside, path)
    await both_ends(log, scribe, LogReplaced)
    await log.aclose()


async def test_replaced_by_an_older_copy_while_running(directory: Path, open_here: Open, tmp_path: Path) -> None:
    """The usual accident: a backup moved into place under running processes, its write-ahead log gone."""
    log = await open_here()
    await written(log)
    await log.aclose()
    shutil.copytree(directory, tmp_path / "backup")
    log = await open_here()
    scribe = await Scribe.fencing(log, 3)
    await scribe.write(1)
    os.replace(tmp_path / "backup" / "vmapi.db", directory / "vmapi.db")
    await both_ends(log, scribe, LogReplaced)
    await log.aclose()


async def test_overwritten_in_place_while_running(directory: Path, open_here: Open, tmp_path: Path) -> None:
    """`cp` over the file keeps its inode: the log is found to have gone back, or to contradict itself. No append that
    comes after the next look succeeds."""
    log = await open_here()
    await written(log)
    await log.aclose()
    shutil.copytree(directory, tmp_path / "backup")
    log = await open_here()
    scribe = await Scribe.fencing(log, 3)
    await scribe.write(1)
    await log.fence(Fence(4, "00000004"), why="process-gone", time=1, clean=False)
    subprocess.run(["cp", tmp_path / "backup" / "vmapi.db", directory / "vmapi.db"], check=True)  # noqa: ASYNC221
    with pytest.raises((LogReplaced, LogDamaged)):
        # SQLite does not notice that its pages changed; a new connection reads them.
        log._file._drop_connections()
        await log.look()
    with pytest.raises((LogReplaced, LogDamaged)):
        scribe.epoch, scribe.term = 4, "00000004"
        await scribe.append([scribe.entry()])
    await log.aclose()


# ---- replaced while stopped


async def test_older_copy_put_back_while_stopped(directory: Path, open_here: Open, tmp_path: Path) -> None:
    """A whole older copy is a whole log: positions beyond it are from the future, never wrong events."""
    log = await open_here()
    await written(log)
    await log.aclose()
    shutil.copytree(directory, tmp_path / "backup")
    log = await open_here()
    await (await Scribe.fencing(log, 3)).write(5)
    ahead = (await log.look()).head
    await log.aclose()
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "backup", directory)
    log = await open_here()
    look = await log.look()
    refused = look.check(ahead)
    assert refused is not None and refused.code == "future-position"
    await (await Scribe.fencing(log, 3)).write(9)
    assert (await log.look()).check(ahead) is None, "the same term id: the suite shows what random ones do"
    assert (await verify_log(log)).fault is None
    await log.aclose()


@pytest.mark.processes
@pytest.mark.parametrize("appends", [10, 120])
async def test_older_file_beside_a_newer_write_ahead_log(
    directory: Path, open_here: Open, worker: Worker, tmp_path: Path, appends: int
) -> None:
    """The trap of review 15: an older database put back, the -wal of a killed process left beside it. Opening or the
    first read of a damaged place says log-damaged; nothing that was not written there is ever delivered."""
    log = await open_here()
    await written(log)
    await log.aclose()
    shutil.copytree(directory, tmp_path / "backup")
    log = await open_here()
    scribe = await Scribe.fencing(log, 3)
    for _ in range(appends):
        await scribe.write(1, size=3000)
    # A checkpoint between the copy and the end: its pages are in the newer database only.
    await log.fence(Fence(4, "00000004"), why="process-gone", time=1, clean=False)
    true = await everything(log)
    process = worker("append")
    await log.wait(scribe.tail.seq)
    process.kill()
    process.wait()
    true += await log.read(true[-1].last_seq, 10**9)
    wal = tmp_path / "wal"
    subprocess.run(["cp", directory / "vmapi.db-wal", wal], check=True)  # noqa: ASYNC221
    await log.aclose()
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "backup", directory)
    shutil.copy(wal, directory / "vmapi.db-wal")
    with pytest.raises(LogDamaged):
        log = await open_here()
        try:
            await log.look()
            for entry in await everything(log):
                assert entry in true
        finally:
            await log.aclose()


# ---- edited


EDITS = {
    "tail ahead": "UPDATE ends SET seq = seq + 1 WHERE name = 'tail'",
    "tail of another term": "UPDATE ends SET term = 'ffffffff' WHERE name = 'tail'",
    "tail of another digest": "UPDATE ends SET digest = zeroblob(32) WHERE name = 'tail'",
    "tail missing": "DELETE FROM ends WHERE name = 'tail'",
    "tail is text": "UPDATE ends SET seq = 'ten' WHERE name = 'tail'",
    "floor ahead": "UPDATE ends SET seq = 99 WHERE name = 'floor'",
    "floor inside": "UPDATE ends SET seq = 3 WHERE name = 'floor'",
    "floor missing": "DELETE FROM ends WHERE name = 'floor'",
    "last entry missing": "DELETE FROM entries WHERE last_seq = (SELECT max(last_seq) FROM entries)",
    "all entries missing": "DELETE FROM entries",
    "entry in the middle missing": "DELETE FROM entries WHERE last_seq = 4",
    "payload": "UPDATE entries SET payload = zeroblob(300) WHERE last_seq = 4",
    "payload and sizes": "UPDATE entries SET payload = x'00', sizes = x'0000000100000001' WHERE last_seq = 4",
    "sizes": "UPDATE entries SET sizes = x'00000002' WHERE last_seq = 4",
    "sizes cut": "UPDATE entries SET sizes = x'0000' WHERE last_seq = 4",
    "time": "UPDATE entries SET time = time + 1 WHERE last_seq = 4",
    "number": "UPDATE entries SET number = number + 100 WHERE last_seq = 4",
    "publisher": "UPDATE entries SET publisher = 'evil' WHERE last_seq = 4",
    "term": "UPDATE entries SET term = 'ffffffff' WHERE last_seq = 4",
    "term too long": "UPDATE entries SET term = 'fffffffff' WHERE last_seq = 4",
    "negative epoch": "UPDATE entries SET epoch = -1 WHERE last_seq = 4",
    "batch digest": "UPDATE entries SET batch_digest = zeroblob(8) WHERE last_seq = 4",
    "publisher's row older": "UPDATE publishers SET last_number = 1 WHERE publisher = 'p'",
    "publisher's row behind": "UPDATE publishers SET last_seq = 1 WHERE publisher = 'q'",
    "publisher's row missing": "DELETE FROM publishers WHERE publisher = 'q'",
    "fence of no term": "UPDATE fence SET epoch = 7",
    "fence missing": "DELETE FROM fence",
    "history missing": "DELETE FROM epochs",
    "history wrong": "UPDATE epochs SET first = 3 WHERE epoch = 2",
    "counters missing": "DELETE FROM counters",
    "feed missing": "DELETE FROM feed",
    "feed of another name": "UPDATE feed SET feed = 'napi'",
    "lineage": "UPDATE feed SET lineage = '0000000000000000'",
    "table missing": "DROP TABLE publishers",
    "another program's": "PRAGMA application_id = 1",
}


@pytest.mark.parametrize("name", EDITS)
async def test_an_edited_log_is_not_opened(directory: Path, open_here: Open, name: str) -> None:
    """Whatever contradicts itself near the log's end, or in its rows, is log-damaged when it is opened."""
    log = await open_here()
    await written(log)
    await log.aclose()
    edit(directory, EDITS[name])
    with pytest.raises(LogDamaged):
        await open_here()


READ_EDITS = [
    name
    for name in EDITS
    if "entry" in name or name in ("payload", "sizes", "time", "number", "term", "term too long", "batch digest")
]


@pytest.mark.parametrize("name", READ_EDITS)
async def test_an_edited_log_is_not_served(directory: Path, open_here: Open, name: str) -> None:
    """The same under a process that has it open: reads say log-damaged, and verify where."""
    log = await open_here()
    await written(log)
    edit(directory, EDITS[name])
    with pytest.raises(LogDamaged):
        await everything(log)
    found = await verify_log(log)
    where = {"last entry missing": 10, "all entries missing": 1}.get(name, 4)
    assert found.fault is not None and (found.fault.seq, found.tail) == (where, where - 1)
    await log.aclose()


async def test_a_hole_is_seen_from_both_sides(directory: Path, open_here: Open) -> None:
    """Reading up to a missing entry, into it, and after it: damaged each time that the result would touch it."""
    log = await open_here()
    await written(log)
    edit(directory, "DELETE FROM entries WHERE last_seq = 4")
    assert [entry.seq for entry in await log.read(0, 1)] == [1]
    for after in (1, 3, 4):
        with pytest.raises(LogDamaged, match=r"hole|ends at seq 4"):
            await log.read(after, 10**6)
    assert [entry.seq for entry in await log.read(6, 10**6)] == [7, 10]
    await log.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_flipped_bits_never_reach_a_reader(directory: Path, open_here: Open, tmp_path: Path, seed: int) -> None:
    """One bit flipped anywhere in the stopped file: what is still read is what was written, byte for byte, and where
    something is missing there is an error. verify never calls a log whole that reads otherwise."""
    log = await open_here()
    await written(log, 12)
    true = await everything(log)
    lineage = log.lineage
    await log.aclose()
    path = directory / "vmapi.db"
    whole = path.read_bytes()
    # Found by their position in the file: the rows of entries, in part; then anywhere.
    chance = random.Random(seed)
    marks = [whole.index(entry.payload[:40]) for entry in true]
    damaged = 0
    for number in range(40):
        place = chance.choice(marks) + chance.randrange(-60, 300) if number % 2 else chance.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        for suffix in ("-wal", "-shm"):
            (directory / f"vmapi.db{suffix}").unlink(missing_ok=True)
        got: list[Entry] = []
        fault = True
        try:
            log = await open_here()
            try:
                got = await everything(log)
                fault = (await verify_log(log)).fault is not None
            finally:
                await log.aclose()
        except (LogDamaged, LogFormatUnknown):
            damaged += 1
            continue
        assert got == true and log.lineage == lineage, f"byte {place}"
        assert not fault
    assert damaged > 5


async def test_an_error_that_is_kept_holds_no_snapshot(directory: Path, open_here: Open) -> None:
    """The error of a damaged read, traceback and all, does not keep the write-ahead log from being cut, nor does it
    leave later reads with an old snapshot."""
    log = await open_here()
    scribe = await written(log)
    edit(directory, "UPDATE entries SET payload = zeroblob(300) WHERE last_seq = 4")
    errors = []
    for after in (0, 3):
        with pytest.raises(LogDamaged) as caught:
            await log.read(after, 10**6)
        errors.append(caught.value)
    with pytest.raises(LogDamaged) as caught:
        await open_here()
    errors.append(caught.value)
    await scribe.write(1)
    assert [entry.seq for entry in await log.read(12, 10**6)] == [13]
    await log.fence(Fence(3, "00000003"), why="process-gone", time=1, clean=False)
    assert (directory / "vmapi.db-wal").stat().st_size == 0
    assert len(errors) == 3
    await log.aclose()


# ---- other formats, other files


async def test_a_newer_format_is_neither_served_nor_fenced(directory: Path, open_here: Open) -> None:
    """A log that a newer release has written to: no look, no read, no fence, and no opening."""
    log = await open_here()
    await written(log)
    edit(directory, "UPDATE fence SET format = 2")
    for call in (log.look(), log.read(0, 1000), log.fence(Fence(9, "00000009"), why="x", time=1, clean=True)):
        with pytest.raises(LogFormatUnknown, match="format 2"):
            await call
    with pytest.raises(LogFormatUnknown):
        await open_here()
    await log.aclose()


async def test_newer_tables_are_not_opened(directory: Path, open_here: Open) -> None:
    """Tables of a later release say so."""
    log = await open_here()
    await log.aclose()
    edit(directory, "PRAGMA user_version = 2")
    with pytest.raises(LogFormatUnknown, match="version 2"):
        await open_here()


async def test_files_of_others_are_left_alone(directory: Path, open_here: Open) -> None:
    """Neither a text file nor another program's database is taken for a log, or for an empty one."""
    path = directory / "vmapi.db"
    os.makedirs(directory)
    path.write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(LogDamaged):
        await open_here()
    assert path.read_text().startswith("not a database")
    path.unlink()
    edit(directory, "CREATE TABLE theirs (x)")
    with pytest.raises(LogDamaged, match="not a changefeed log"):
        await open_here()
    path.unlink()
    log = await open_here()
    await log.aclose()
