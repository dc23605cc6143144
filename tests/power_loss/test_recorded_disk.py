"""The recorded disk sees every write boundary of SQLite, loses its power, fails when told to, and harms nobody else."""

from __future__ import annotations

import ctypes
import os
import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from changefeed.simulation.disk import Call, Fault, Manner, NoSharedSqlite, RecordedDisk, seed_sqlite, sqlite_vfs
from changefeed.simulation.disk.model import Lost, Sync, SyncNames, Write
from changefeed.simulation.disk.recorded import IOERR_FSYNC, lay_out

NOTHING, EVERYTHING = Manner("nothing"), Manner("everything")


def connect(folder: str, name: str = "a.db", mode: str = "WAL") -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{folder}/{name}?mode=rwc", uri=True, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous = FULL")
    assert connection.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode.lower(),)
    connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER, b BLOB)")
    return connection


def insert(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("INSERT INTO t VALUES (?, ?)", (number, bytes([number % 256]) * 300))


def numbers(folder: str, name: str = "a.db") -> list[int]:
    with closing(sqlite3.connect(f"{folder}/{name}")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY rowid")]


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_what_is_recorded_is_what_is_written(scratch: str, mode: str) -> None:
    """The record gives every file byte for byte: nothing passes it by, also with checkpoints and a rollback journal."""
    with RecordedDisk(f"{scratch}/d", keep=True) as disk:
        with closing(connect(disk.folder, mode=mode)) as connection:
            for number in range(200):
                insert(connection, number)
                if number % 50 == 49:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    connection.execute("DELETE FROM t WHERE n < ?", (number // 2,))
                    assert disk.unlike() == []
            connection.execute("VACUUM")
            assert disk.unlike() == []
        assert disk.unlike() == []
        assert disk.at(disk.count).content() == disk.disk.content()
        with open(f"{disk.folder}/a.db", "r+b") as file:
            file.write(b"x")
        assert disk.unlike() == ["a.db"], "a write past SQLite was not noticed"


def test_after_a_crash_what_was_committed_is_there(scratch: str) -> None:
    """The folder holds at its old path what survived; the old connection is dead and reaches nothing of it."""
    with RecordedDisk(f"{scratch}/d") as disk:
        for life in range(20):
            connection = connect(disk.folder)
            insert(connection, life)
            loss = disk.crash(random.Random(life))
            assert loss.at > 0 and disk.count == 0
            with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
                insert(connection, 1000)
            connection.close()
            assert disk.count == 0
        assert numbers(disk.folder) == list(range(20))


def test_without_a_sync_commits_are_lost(scratch: str) -> None:
    """The same with synchronous=NORMAL loses some, now and then; what is left is a beginning of what was committed."""
    lost = 0
    for seed in range(20):
        with RecordedDisk(f"{scratch}/{seed}") as disk:
            with closing(connect(disk.folder)) as connection:
                connection.execute("PRAGMA synchronous = NORMAL")
                for number in range(5):
                    insert(connection, number)
                disk.crash(random.Random(seed))
            found = numbers(disk.folder) if os.path.exists(f"{disk.folder}/a.db") else []
            assert found == list(range(len(found)))
            lost += len(found) < 5
    assert lost > 5


def test_any_boundary_can_be_gone_back_to(scratch: str) -> None:
    """Cut off at each boundary of a run, nothing that was committed by then is missing, and nothing else is there."""
    committed: list[int] = []
    with RecordedDisk(f"{scratch}/d", keep=True) as disk:
        with closing(connect(disk.folder)) as connection:
            made = disk.count
            for number in range(12):
                insert(connection, number)
                committed.append(disk.count)
                if number == 6:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for at in range(made, disk.count + 1):
            lay_out(f"{scratch}/at-{at}", disk.survivors(at, random.Random(at)))
            found = numbers(f"{scratch}/at-{at}")
            done = sum(boundary <= at for boundary in committed)
            assert found in (list(range(done)), list(range(done + 1)))
        assert disk.survivors(5, random.Random(1)) == disk.survivors(5, random.Random(1))
        with pytest.raises(ValueError, match="no boundary"):
            disk.at(disk.count + 1)


def test_a_disk_without_its_record_cannot_go_back(scratch: str) -> None:
    """keep=False holds only what a crash now needs, and says so."""
    with RecordedDisk(f"{scratch}/d") as disk, closing(connect(disk.folder)):
        assert disk.count and not disk.steps
        with pytest.raises(ValueError, match="keep=True"):
            disk.survivors(1, random.Random(1))


def test_files_elsewhere_are_left_alone(scratch: str) -> None:
    """Other folders are not recorded, do not fail, and several disks do not mix; afterwards nothing is recorded."""
    with RecordedDisk(f"{scratch}/one") as one, RecordedDisk(f"{scratch}/two") as two:
        one.faulty = lambda call: Fault(IOERR_FSYNC)
        os.mkdir(f"{scratch}/three")
        with closing(connect(two.folder)), closing(connect(f"{scratch}/three")):
            assert one.count == 0 and two.count > 0
        with pytest.raises(ValueError, match="recorded already"):
            RecordedDisk(two.folder).install()
        count = two.count
    with closing(connect(two.folder)) as connection:
        insert(connection, 1)
    assert two.count == count


def test_a_name_with_odd_characters_and_a_link_to_the_folder(scratch: str) -> None:
    """Names are taken as SQLite gives them: real paths, decoded, without the URI's parameters."""
    os.mkdir(f"{scratch}/real folder")
    os.symlink(f"{scratch}/real folder", f"{scratch}/link")
    with RecordedDisk(f"{scratch}/link") as disk, closing(connect(f"{scratch}/link", "ä b.db")):
        assert "ä b.db" in disk.disk.names


def test_commits_of_many_threads_are_all_recorded(scratch: str) -> None:
    """Writers, readers and checkpoints in threads of their own: the record is still what is written, and a crash keeps
    what each thread had committed."""
    done: list[int] = []
    with RecordedDisk(f"{scratch}/d") as disk:
        connect(disk.folder).close()
        stop = threading.Event()

        def write(first: int) -> None:
            with closing(connect(disk.folder)) as connection:
                connection.execute("PRAGMA busy_timeout = 20000")
                for number in range(first, first + 40):
                    insert(connection, number)
                    done.append(number)

        def check_point() -> None:
            with closing(connect(disk.folder)) as connection:
                while not stop.is_set():
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

        threads = [threading.Thread(target=write, args=(first,)) for first in (0, 100, 200)]
        keeper = threading.Thread(target=check_point)
        for thread in (keeper, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        keeper.join()
        assert len(done) == 120 and disk.unlike() == []
        disk.crash(random.Random(1), NOTHING)
    assert sorted(numbers(disk.folder)) == sorted(done)


@contextmanager
def folder_syncs() -> Iterator[list[str]]:
    """Notes each folder that SQLite itself opens in order to sync it, by its own table of system calls."""
    seen: list[str] = []
    shim = sqlite_vfs.shim()
    vfs = sqlite_vfs._Vfs.from_address(shim._original_at)
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(vfs.xGetSystemCall)
    put = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(vfs.xSetSystemCall)
    original = kind(get(shim._original_at, b"openDirectory"))

    def open_directory(path: bytes, out: int) -> int:
        seen.append(os.fsdecode(path))
        return int(original(path, out))

    mine = kind(open_directory)
    assert put(shim._original_at, b"openDirectory", ctypes.cast(mine, ctypes.c_void_p)) == 0
    try:
        yield seen
    finally:
        assert put(shim._original_at, b"openDirectory", None) == 0


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "PERSIST"])
def test_the_folder_is_synced_exactly_when_sqlite_syncs_it(scratch: str, mode: str) -> None:
    """Which syncs take the folder along is inferred from how a file was opened; SQLite's own calls agree, each time."""
    with RecordedDisk(f"{scratch}/d", keep=True) as disk, folder_syncs() as seen:
        for level in ("FULL", "EXTRA", "NORMAL"):
            for number in range(3):
                with closing(connect(disk.folder, mode=mode)) as connection:
                    connection.execute(f"PRAGMA synchronous = {level}")
                    insert(connection, number)
                    insert(connection, number)
                    assert len(seen) == sum(isinstance(step, SyncNames) for step in disk.steps)
        assert len(seen) == sum(isinstance(step, SyncNames) for step in disk.steps) > 3


# ---- failures


class FailOnce:
    def __init__(self, what: str, ending: str, fault: Fault) -> None:
        self.what, self.ending, self.fault, self.met = what, ending, fault, 0

    def __call__(self, call: Call) -> Fault | None:
        if self.met or call.what != self.what or not call.name.endswith(self.ending):
            return None
        self.met += 1
        return self.fault


def test_a_sync_that_fails_is_an_error_and_loses_for_good(scratch: str) -> None:
    """The commit raises; what it wrote is in the file, and no later sync of anybody makes it durable."""
    with RecordedDisk(f"{scratch}/d", keep=True) as disk, closing(connect(disk.folder)) as connection:
        insert(connection, 1)
        disk.faulty = once = FailOnce("sync", "-wal", Fault(IOERR_FSYNC))
        with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            insert(connection, 2)
        assert once.met == 1
        lost = [step for step in disk.steps if isinstance(step, Lost)]
        assert len(lost) == 1 and len(lost[0].steps) >= 2
        wal = disk.disk.names["a.db-wal"]
        assert not disk.disk.files[wal].owed
        assert os.path.getsize(f"{disk.folder}/a.db-wal") > len(
            disk.survivors(disk.count, random.Random(1))["a.db-wal"]
        )
        insert(connection, 3)
        disk.crash(random.Random(1), NOTHING)
    assert numbers(disk.folder) == [1, 3]


def test_a_write_that_fails_may_be_done_in_part(scratch: str) -> None:
    """Half of its bytes are in the file and in the record; the commit raises and is not there."""
    with RecordedDisk(f"{scratch}/d", keep=True) as disk, closing(connect(disk.folder)) as connection:
        disk.faulty = once = FailOnce("write", "-wal", Fault(13, 0.5))
        before = disk.count
        with pytest.raises(sqlite3.OperationalError, match="full"):
            insert(connection, 1)
        assert once.met == 1 and disk.unlike() == []
        (half,) = disk.steps[before:]
        assert isinstance(half, Write) and len(half.data) == 12
        insert(connection, 2)
        assert disk.unlike() == []
        disk.crash(random.Random(1))
    assert numbers(disk.folder) == [2]


def test_all_processes_killed_the_machine_stays_up(scratch: str) -> None:
    """A copy holds what was written; what its disk owes is still owed, and a crash of it can lose that."""
    with RecordedDisk(f"{scratch}/d") as disk, closing(connect(disk.folder)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        insert(connection, 1)
        with disk.killed(f"{scratch}/killed") as killed:
            assert killed.unlike() == [] and killed.disk.owes() > 0
            killed.crash(random.Random(1), EVERYTHING)
        with disk.killed(f"{scratch}/killed too") as too:
            too.crash(random.Random(1), NOTHING)
        insert(connection, 2)
    assert numbers(killed.folder) == [1]
    assert numbers(disk.folder) == [1, 2]
    assert numbers(too.folder) == []


def test_an_error_in_the_recorder_is_raised_not_swallowed(scratch: str) -> None:
    """SQLite cannot carry an exception: it sees a failing disk, and whoever ends the recording gets the exception."""

    def broken(call: Call) -> Fault | None:
        raise LookupError("in the middle of SQLite")

    with pytest.raises(LookupError, match="in the middle"), RecordedDisk(f"{scratch}/d") as disk:
        connection = connect(disk.folder)
        disk.faulty = broken
        with pytest.raises(sqlite3.OperationalError):
            insert(connection, 1)
        disk.faulty = None
        connection.close()
        sqlite_vfs.shim().errors[1:] = []


def test_the_same_seed_gives_the_same_bytes(scratch: str) -> None:
    """With SQLite's own random numbers seeded, two runs write the same bytes; with another seed they do not."""

    def run(folder: str, seed: int) -> list[object]:
        seed_sqlite(seed)
        with RecordedDisk(folder, keep=True) as disk, closing(connect(disk.folder)) as connection:
            for number in range(20):
                insert(connection, number)
            return list(disk.steps)

    first = run(f"{scratch}/1", 1)
    assert first == run(f"{scratch}/2", 1) != run(f"{scratch}/3", 2)
    assert sum(isinstance(step, Sync) for step in first) > 20


def test_without_a_shared_library_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Python whose sqlite3 is linked statically cannot be recorded: a typed error that says what to use instead."""
    empty = tmp_path / "maps"
    empty.write_text("7f00-7f01 r-xp 00000000 fe:00 1    /usr/lib/libc.so.6\n")
    real = open

    def open_other(path: str, *arguments: object, **named: object) -> object:
        return real(empty if path == "/proc/self/maps" else path, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", open_other)
    with pytest.raises(NoSharedSqlite, match=r"linked statically.*Debian"):
        sqlite_vfs._library()
