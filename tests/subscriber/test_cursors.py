"""Cursors: what a file survives, who may use it, and the compare-and-set in the caller's own transaction."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from changefeed.change import Position
from changefeed.errors import (
    CursorDamaged,
    CursorError,
    CursorInUse,
    CursorMoved,
    CursorOfOtherFeed,
    UsageError,
)
from changefeed.subscriber.cursors import FileCursor, MemoryCursor, SqliteCursor

LINEAGE = "0123456789abcdef"


def at(seq: int) -> Position:
    return Position(LINEAGE, 1, "aaaaaaaa", seq)


# ---- files


async def written(path: Path, seq: int = 7, feed: str = "vmapi") -> None:
    cursor = FileCursor(path)
    await cursor.open(feed)
    await cursor.store(at(seq))
    await cursor.aclose()


async def test_a_file_cursor_keeps_its_position(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    cursor = FileCursor(path)
    assert await cursor.open("vmapi") is None
    await cursor.store(at(1))
    await cursor.store(at(2))
    await cursor.aclose()
    await cursor.aclose()
    assert await FileCursor(path).open("vmapi") == at(2)
    assert sorted(os.listdir(tmp_path)) == ["cursor", "cursor.lock"]
    assert path.read_bytes().count(b"\n") == 1
    assert json.loads(path.read_bytes())["position"] == str(at(2))


async def test_a_crash_while_saving_leaves_the_old_position(tmp_path: Path) -> None:
    """What is half written is beside the file, never in it; the next save replaces it."""
    path = tmp_path / "cursor"
    await written(path, 3)
    (tmp_path / "cursor.new").write_bytes(b'{"changefeed": "cur')
    cursor = FileCursor(path)
    assert await cursor.open("vmapi") == at(3)
    await cursor.store(at(4))
    assert not (tmp_path / "cursor.new").exists()
    await cursor.aclose()


DAMAGE = {
    "truncated": lambda data: data[:-10],
    "without its end of line": lambda data: data[:-1],
    "empty": lambda data: b"",
    "another position": lambda data: data.replace(b".7", b".8"),
    "another feed's name": lambda data: data.replace(b'"vmapi"', b'"napi"'),
    "not JSON": lambda data: b"seven\n",
    "other JSON": lambda data: b'{"name": "package"}\n',
    "a list": lambda data: b"[1]\n",
    "a newer format": lambda data: data.replace(b'"format": 1', b'"format": 2'),
    "very long": lambda data: b" " * 5000 + data,
    "deeply nested": lambda data: b"[" * 4000 + b"\n",
    "binary": lambda data: b"\x00\xff\xfe\n",
}


@pytest.mark.parametrize("how", DAMAGE)
async def test_a_damaged_cursor_is_refused_and_not_overwritten(how: str, tmp_path: Path) -> None:
    """Guessing a position would skip or repeat: a person decides."""
    path = tmp_path / "cursor"
    await written(path)
    damaged = DAMAGE[how](path.read_bytes())
    path.write_bytes(damaged)
    cursor = FileCursor(path)
    with pytest.raises(CursorDamaged, match="remove the file"):
        await cursor.open("vmapi")
    assert path.read_bytes() == damaged
    path.unlink()
    assert await cursor.open("vmapi") is None, "the lock was released"
    await cursor.aclose()


async def test_a_cursor_of_another_feed_is_refused(tmp_path: Path) -> None:
    await written(tmp_path / "cursor", feed="napi")
    with pytest.raises(CursorOfOtherFeed, match="'napi'"):
        await FileCursor(tmp_path / "cursor").open("vmapi")


async def test_a_folder_that_is_missing_or_a_file_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CursorError, match="does not exist"):
        await FileCursor(tmp_path / "missing" / "cursor").open("vmapi")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CursorError, match="is a folder"):
        await FileCursor(tmp_path / "folder").open("vmapi")
    assert not (tmp_path / "folder.lock").exists()


async def test_a_save_that_fails_says_so(tmp_path: Path) -> None:
    cursor = FileCursor(tmp_path / "cursor")
    await cursor.open("vmapi")
    (tmp_path / "cursor.new").mkdir()
    with pytest.raises(CursorError, match="cannot be saved"):
        await cursor.store(at(1))
    await cursor.aclose()
    with pytest.raises(CursorError, match="not open"):
        await cursor.store(at(1))


HOLDER = r"""
import os, sys, time, trio
from changefeed.subscriber.cursors import FileCursor
async def main():
    cursor = FileCursor(sys.argv[1])
    await cursor.open("vmapi")
    if len(sys.argv) > 2:
        if os.fork() == 0:
            os.write(1, b"child %d\n" % os.getpid())
            while True:
                time.sleep(1)
                os.write(1, b"alive\n")
    os.write(1, b"held\n")
    time.sleep(600)
trio.run(main)
"""


def hold(path: Path, *more: str) -> subprocess.Popen[str]:
    """A process that holds the cursor; it says so."""
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(path), *more], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = hold(tmp_path / "cursor")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.processes
async def test_a_second_process_is_refused_until_the_first_is_gone(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    cursor = FileCursor(tmp_path / "cursor")
    with pytest.raises(CursorInUse, match="another process"):
        await cursor.open("vmapi")
    holder.kill()
    holder.wait()
    assert await cursor.open("vmapi") is None
    await cursor.aclose()


@pytest.mark.processes
async def test_a_forked_child_does_not_keep_the_cursor_locked(tmp_path: Path) -> None:
    """A worker that was forked off outlives its parent; the parent's lock must not."""
    process = hold(tmp_path / "cursor", "fork")
    assert process.stdout is not None
    child = 0
    try:
        for _ in range(2):
            word, *more = process.stdout.readline().split()
            child = int(more[0]) if word == "child" else child
        cursor = FileCursor(tmp_path / "cursor")
        with pytest.raises(CursorInUse):
            await cursor.open("vmapi")
        process.kill()
        process.wait()
        os.kill(child, 0)
        assert await cursor.open("vmapi") is None
        await cursor.aclose()
    finally:
        # The child ends by itself when its parent's pipe to the test is closed, should its pid not be known.
        if child:
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()


async def test_a_deleted_lock_file_does_not_make_two_holders_of_new_ones(tmp_path: Path) -> None:
    """Whoever comes after the deletion locks the new file; a third one is refused by that."""
    first, second, third = (FileCursor(tmp_path / "cursor") for _ in range(3))
    await first.open("vmapi")
    (tmp_path / "cursor.lock").unlink()
    await second.open("vmapi")
    with pytest.raises(CursorInUse):
        await third.open("vmapi")
    await first.aclose()
    with pytest.raises(CursorInUse):
        await third.open("vmapi")
    await second.aclose()


async def test_reset_is_for_after_a_reset(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    await written(path, 99)
    cursor = FileCursor(path)
    await cursor.reset(at(5))
    assert await cursor.open("vmapi") == at(5)
    with pytest.raises(CursorInUse):
        await cursor.reset(at(6))
    await cursor.aclose()
    await cursor.reset(None)
    assert await cursor.open("vmapi") is None
    await cursor.aclose()
    with pytest.raises(CursorError, match="not known"):
        await FileCursor(tmp_path / "never").reset(at(1))
    first = FileCursor(tmp_path / "never")
    await first.reset(at(1), feed="vmapi")
    assert await first.open("vmapi") == at(1)
    await first.aclose()


async def test_a_memory_cursor_is_one_of_them() -> None:
    cursor = MemoryCursor()
    assert await cursor.open("vmapi") is None
    with pytest.raises(CursorInUse):
        await cursor.open("vmapi")
    await cursor.store(at(3))
    await cursor.aclose()
    with pytest.raises(CursorOfOtherFeed):
        await cursor.open("napi")
    assert await cursor.open("vmapi") == at(3)
    await cursor.reset(None)
    assert cursor.position is None


# ---- SQLite, in the caller's transaction


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE applied (seq INTEGER)")
    connection.close()
    yield path


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=5)


def count(path: Path) -> list[int]:
    connection = connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT seq FROM applied ORDER BY rowid")]
    finally:
        connection.close()


def apply(connection: sqlite3.Connection, cursor: SqliteCursor, seq: int) -> None:
    """The documented recipe."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("INSERT INTO applied VALUES (?)", (seq,))
        cursor.save(at(seq))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


async def test_position_and_effect_are_one_transaction(database: Path) -> None:
    connection = connect(database)
    cursor = SqliteCursor(connection, "worker", "vmapi")
    assert await cursor.open("vmapi") is None
    apply(connection, cursor, 1)
    apply(connection, cursor, 2)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO applied VALUES (3)")
    cursor.save(at(3))
    connection.close()  # the process dies before its commit
    again = connect(database)
    assert SqliteCursor(again, "worker", "vmapi").load() == at(2)
    assert count(database) == [1, 2]
    again.close()


async def test_two_processes_on_one_cursor_apply_each_event_once(database: Path) -> None:
    """Both have the same events; whoever is second is told, rolls back, and has applied nothing."""
    first, second = connect(database), connect(database)
    a, b = SqliteCursor(first, "worker", "vmapi"), SqliteCursor(second, "worker", "vmapi")
    assert a.load() is None and b.load() is None
    apply(first, a, 1)
    with pytest.raises(CursorMoved):
        apply(second, b, 1)
    apply(first, a, 2)
    assert b.load() == at(2)
    apply(second, b, 3)
    with pytest.raises(CursorMoved):
        apply(first, a, 3)
    assert count(database) == [1, 2, 3]
    first.close()
    second.close()


async def test_going_on_after_a_rollback_is_refused(database: Path) -> None:
    """An event's effect was rolled back and the loop went on: saving its successor would skip it."""
    connection = connect(database)
    cursor = SqliteCursor(connection, "worker", "vmapi")
    cursor.load()
    apply(connection, cursor, 1)
    connection.execute("BEGIN IMMEDIATE")
    cursor.save(at(2))
    connection.execute("ROLLBACK")
    with pytest.raises(CursorMoved):
        apply(connection, cursor, 3)
    assert cursor.load() == at(1)
    connection.close()


async def test_save_wants_the_callers_transaction(database: Path) -> None:
    connection = connect(database)
    cursor = SqliteCursor(connection, "worker", "vmapi")
    with pytest.raises(UsageError, match="load"):
        cursor.save(at(1))
    cursor.load()
    with pytest.raises(UsageError, match="BEGIN IMMEDIATE"):
        cursor.save(at(1))
    connection.execute("BEGIN IMMEDIATE")
    cursor.save(at(1))
    assert connection.in_transaction, "it never commits"
    connection.execute("COMMIT")
    with pytest.raises(UsageError, match="saved by its caller"):
        await cursor.store(at(2))
    connection.close()


async def test_a_sqlite_cursor_says_what_is_wrong_with_it(database: Path) -> None:
    connection = connect(database)
    cursor = SqliteCursor(connection, "worker", "vmapi")
    cursor.load()
    connection.execute("BEGIN")
    cursor.reset(at(9))
    connection.execute("COMMIT")
    with pytest.raises(CursorOfOtherFeed):
        SqliteCursor(connection, "worker", "napi").load()
    with pytest.raises(CursorOfOtherFeed):
        await cursor.open("napi")
    connection.execute("UPDATE changefeed_cursors SET position = 'nine'")
    with pytest.raises(CursorDamaged):
        cursor.load()
    connection.close()
    with pytest.raises(CursorError, match="cannot be read"):
        cursor.load()


async def test_a_connection_in_legacy_mode_works_too(database: Path) -> None:
    """Python's default opens the transaction at the first write; the caller commits."""
    connection = sqlite3.connect(database)
    cursor = SqliteCursor(connection, "worker", "vmapi")
    cursor.load()
    connection.execute("INSERT INTO applied VALUES (1)")
    cursor.save(at(1))
    connection.rollback()
    assert cursor.load() is None
    with connection:
        connection.execute("INSERT INTO applied VALUES (1)")
        cursor.save(at(1))
    assert SqliteCursor(connection, "worker", "vmapi").load() == at(1)
    connection.close()
