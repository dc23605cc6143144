"""Writing a write-ahead log over itself: the same bytes, only the live ones, and nobody's locks."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from changefeed.log.sqlite import SqliteLogStore
from changefeed.log.sqlite_io import Turn, write_wal_again
from changefeed.testing.log_scribe import Scribe, check_whole, everything


def fill(connection: sqlite3.Connection, rows: int) -> None:
    for number in range(rows):
        connection.execute("INSERT INTO t VALUES (?, ?)", (number, os.urandom(3000)))


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("PRAGMA wal_autocheckpoint = 0")
        made.execute("CREATE TABLE t (n INTEGER, b BLOB)")
        yield made


def test_all_frames_are_written_again_and_none_is_changed(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """A log of more frames than are read at once: its whole length, byte for byte the same."""
    fill(connection, 400)
    wal = tmp_path / "a.db-wal"
    before = wal.read_bytes()
    assert write_wal_again(str(wal)) == len(before) > 300 * 4096
    assert wal.read_bytes() == before
    fill(connection, 1)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (401,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_frames_of_an_earlier_round_are_left_out(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """A log that begins anew keeps its length; only the live frames at its beginning count."""
    fill(connection, 50)
    assert connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
    fill(connection, 2)
    wal = str(tmp_path / "a.db-wal")
    written = write_wal_again(wal)
    assert 0 < written < os.path.getsize(wal) / 4
    assert (written - 32) % (24 + 4096) == 0


@pytest.mark.parametrize("content", [b"", b"\x37\x7f\x06\x82" * 4, bytes(32), b"rubbish, and longer than a header is"])
def test_what_is_no_log_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """An empty file, a torn header: SQLite takes none of its frames, so nothing need be written."""
    path = tmp_path / "x-wal"
    path.write_bytes(content)
    assert write_wal_again(str(path)) == 0
    assert path.read_bytes() == content


@pytest.mark.processes
async def test_the_write_lock_is_kept_while_the_log_is_written_again(tmp_path: Path) -> None:
    """Opening and closing the write-ahead log does not drop this process's lock: another process stays locked out."""
    store = SqliteLogStore("sqlite:", str(tmp_path))
    log = await store.open("vmapi")
    await (await Scribe.fencing(log, 1)).write(1, 2, 3)
    other = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
        "try:\n    c.execute('BEGIN IMMEDIATE')\n"
        "except sqlite3.OperationalError as error:\n    print(error)\n"
        "else:\n    print('it got the lock')\n"
    )

    def ask() -> str:
        done = subprocess.run(
            [sys.executable, "-c", other, str(tmp_path / "vmapi.db")], capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip()

    with closing(sqlite3.connect(tmp_path / "vmapi.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        assert write_wal_again(str(tmp_path / "vmapi.db-wal")) > 0
        assert ask() == "database is locked"
        holder.execute("ROLLBACK")
        assert ask() == "it got the lock"
    await log.aclose()


async def test_a_doubt_is_mended_once_by_whoever_opens_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who met an I/O error says so beside the log; the next who opens or fences it writes the write-ahead log again."""
    from changefeed.log import sqlite_file

    written: list[str] = []

    def noted(path: str) -> int:
        written.append(path)
        return write_wal_again(path)

    monkeypatch.setattr(sqlite_file, "write_wal_again", noted)
    store = SqliteLogStore("sqlite:", str(tmp_path))
    log = await store.open("vmapi")
    entries = await (await Scribe.fencing(log, 1)).write(1, 2)
    assert written == []
    turn = Turn(str(tmp_path / "vmapi.turn"))
    turn.stamp(1, "00000001", 1234)
    turn.doubt(True)
    assert turn.doubtful() and turn.stamped(1, "00000001") == 1234
    other = await store.open("vmapi")
    assert len(written) == 1 and not turn.doubtful() and turn.stamped(1, "00000001") == 1234
    await (await store.open("vmapi")).aclose()
    assert len(written) == 1
    turn.doubt(True)
    await Scribe.fencing(other, 2)  # a clean one
    assert len(written) == 2 and not turn.doubtful()
    assert await everything(other) == entries
    await check_whole(other)
    turn.close()
    assert not turn.doubtful()
    await log.aclose()
    await other.aclose()


async def test_a_doubtful_log_that_somebody_writes_is_opened_all_the_same(tmp_path: Path) -> None:
    """Whoever holds the write lock lives, so nothing was lost from what is seen: opening does not wait for them."""
    store = SqliteLogStore("sqlite:", str(tmp_path))
    log = await store.open("vmapi")
    await (await Scribe.fencing(log, 1)).write(1)
    turn = Turn(str(tmp_path / "vmapi.turn"))
    turn.doubt(True)
    with closing(sqlite3.connect(tmp_path / "vmapi.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        other = await store.open("vmapi")
        assert turn.doubtful()
        holder.execute("ROLLBACK")
    assert (await other.look()).tail.seq == 1
    turn.close()
    await other.aclose()
    await log.aclose()
