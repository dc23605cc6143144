"""The SQLite store on a disk that is full or fails, and on file systems of other machines."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from changefeed.batch import Entry
from changefeed.change import FeedSettings
from changefeed.errors import AppendOutcomeUnknown, BadConfig, ChangefeedError, LogFull, LogUnavailable
from changefeed.log import Fence
from changefeed.log import sqlite_file as sqlite_file_module
from changefeed.log.sqlite import SqliteFeedLog, SqliteLogStore
from changefeed.log.sqlite_io import file_system_of, refuse_network
from changefeed.log.verify import verify_log
from changefeed.settings import MIB, Settings
from changefeed.testing.log_scribe import Scribe, everything

Open = Callable[..., Awaitable[SqliteFeedLog]]


@pytest.fixture
def small_disk(directory: Path) -> Iterator[Path]:
    """The test's directory on a file system of 6 MiB of its own."""
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(directory)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


async def fill(scribe: Scribe, size: int = 20_000) -> list[Entry]:
    """Append until the log is full; what was acknowledged."""
    stored: list[Entry] = []
    while True:
        try:
            stored += await scribe.write(1, size=size)
        except LogFull:
            return stored


async def test_a_full_disk_refuses_appends_and_harms_nothing(small_disk: Path, open_here: Open) -> None:
    """Real ENOSPC: LogFull, nothing of that append is stored, reads go on, and once there is room so do appends."""
    log = await open_here(Settings(min_free_bytes=0, wal_bytes_truncate=MIB))
    scribe = await Scribe.fencing(log, 1)
    stored = await fill(scribe)
    assert len(stored) > 20
    for _ in range(2):
        look = await log.look()
        assert look.tail.seq == stored[-1].last_seq
        assert await everything(log) == stored
        again = Scribe(log, look)
        with pytest.raises(LogFull):
            await again.write(1, size=400_000)
    assert (await log.maintain())["wal_bytes"] >= 0
    await log.aclose()
    # Room again: a larger file system, as after cleaning up.
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)  # noqa: ASYNC221
    log = await open_here(Settings(min_free_bytes=0))
    assert await everything(log) == stored
    await (await Scribe.fencing(log, 2)).write(1, size=400_000)
    assert (await verify_log(log)).fault is None
    await log.aclose()


async def test_below_min_free_trimming_makes_room(
    small_disk: Path, open_here: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below min_free appends are refused while there is still room to trim; trimming frees room inside the file, and
    publishing resumes by itself. Publishers and settings can be changed all the while."""
    monkeypatch.setattr(sqlite_file_module, "ROOM_EVERY_S", 0.0)
    log = await open_here(Settings(min_free_bytes=3 * MIB, min_free_share=1.0, wal_bytes_truncate=MIB))
    scribe = await Scribe.fencing(log, 1)
    stored = await fill(scribe)
    free, total = await log.storage()
    assert free < 3 * MIB < total == 6 * MIB
    state = await log.open_publisher(1, scribe.term, "p", named=False)
    assert (await log.set_settings(FeedSettings(retention_bytes=MIB))).version == 1
    assert await everything(log) == stored
    with pytest.raises(LogFull, match="are kept free"):
        await Scribe(log, await log.look()).write(1)
    await log.trim(1, scribe.term, stored[len(stored) // 2].last_seq)
    await log.maintain()
    assert (await log.storage())[0] > 3 * MIB
    scribe = Scribe(log, await log.look())
    await scribe.write(1, incarnation=state.incarnation)
    assert (await verify_log(log)).fault is None
    await log.aclose()


async def test_the_disk_is_not_asked_for_each_append(open_here: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free room is looked at a few times a second; a refusal stands until the next look."""
    log = await open_here()
    asked = []
    monkeypatch.setattr(log._file, "storage", lambda: asked.append(1) or (0, 2**40))
    monkeypatch.setattr(sqlite_file_module, "ROOM_EVERY_S", 1000.0)
    scribe = await Scribe.fencing(log, 1)
    for _ in range(3):
        with pytest.raises(LogFull):
            await scribe.write(1)
    assert len(asked) == 1
    await log.aclose()


# ---- errors of single statements, injected below the store


class Failing:
    """A connection that fails at one statement, once, as SQLite would."""

    def __init__(self, connection: Any, plan: list[tuple[str, int, bool]]) -> None:
        self._connection = connection
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *arguments: Any) -> Any:
        for planned in self._plan:
            wanted, code, after = planned
            if statement.startswith(wanted):
                self._plan.remove(planned)
                if after:
                    self._connection.execute(statement, *arguments)
                raise failure(code)
        return self._connection.execute(statement, *arguments)


def failure(code: int) -> Exception:
    import sqlite3

    error = sqlite3.OperationalError(f"injected {code}")
    error.sqlite_errorcode = code
    return error


IOERR_FSYNC, BUSY, FULL, CORRUPT, NOMEM, READONLY = 10 | (4 << 8), 5, 13, 11, 7, 8


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """(beginning of the statement, SQLite's code, whether it takes effect all the same) of coming failures."""
    planned: list[tuple[str, int, bool]] = []
    connect = sqlite_file_module.connect
    monkeypatch.setattr(
        sqlite_file_module, "connect", lambda *args, **kwargs: Failing(connect(*args, **kwargs), planned)
    )
    return planned


@pytest.mark.parametrize("stored", [True, False])
async def test_a_commit_that_fails_is_of_unknown_outcome(
    open_here: Open, plan: list[tuple[str, int, bool]], stored: bool
) -> None:
    """Stored or not, the caller is told the same, and writes nothing more under this term; reads go on."""
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    plan.append(("COMMIT", IOERR_FSYNC, stored))
    with pytest.raises(AppendOutcomeUnknown, match="may be stored"):
        await scribe.write(1)
    assert (await log.look()).tail.seq == 1 + stored
    fresh = Scribe(log, await log.look())
    for call in (
        fresh.write(1),
        log.open_publisher(1, fresh.term, "q", named=False),
        log.trim(1, fresh.term, 1),
        log.set_settings(FeedSettings()),
    ):
        with pytest.raises(AppendOutcomeUnknown, match="after an I/O error"):
            await call
    fresh = await Scribe.fencing(log, 2)
    await fresh.write(1)
    assert (await log.look()).tail.seq == 2 + stored
    assert (await verify_log(log)).fault is None
    await log.aclose()


@pytest.mark.parametrize(
    ("statement", "code", "kind", "goes_on"),
    [
        ("BEGIN IMMEDIATE", IOERR_FSYNC, AppendOutcomeUnknown, False),
        ("UPDATE ends", IOERR_FSYNC, AppendOutcomeUnknown, False),
        ("UPDATE ends", FULL, LogFull, True),
        ("UPDATE ends", NOMEM, LogUnavailable, True),
        ("BEGIN IMMEDIATE", READONLY, LogUnavailable, True),
        ("COMMIT", FULL, LogFull, True),
        ("COMMIT", NOMEM, AppendOutcomeUnknown, True),
    ],
)
async def test_what_an_error_leaves_behind(
    open_here: Open,
    plan: list[tuple[str, int, bool]],
    statement: str,
    code: int,
    kind: type[ChangefeedError],
    goes_on: bool,
) -> None:
    """Each error of a statement of an append: its type, that nothing is stored, and whether the term may go on."""
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    await log.look()
    entry = scribe.entry()
    if statement == "COMMIT":
        log._file._check_room()  # else its read would meet the failure
    plan.append((statement, code, False))
    with pytest.raises(kind):
        await scribe.append([entry])
    assert (await log.look()).tail.seq == 0
    if goes_on:
        await scribe.append([entry])
    else:
        with pytest.raises(AppendOutcomeUnknown):
            await scribe.append([entry])
        await (await Scribe.fencing(log, 2)).write(1)
    await log.aclose()


@pytest.mark.parametrize("statement", ["UPDATE fence", "COMMIT"])
async def test_a_full_disk_lets_a_fence_be_tried_again(
    open_here: Open, plan: list[tuple[str, int, bool]], statement: str
) -> None:
    """LogFull is for publishes; a fence that finds no room is LogUnavailable, and stands nowhere."""
    log = await open_here()
    plan.append((statement, FULL, False))
    with pytest.raises(LogUnavailable, match="fence: "):
        await log.fence(Fence(1, "00000001"), why="start", time=1, clean=True)
    assert (await log.look()).fence.epoch == 0
    await (await Scribe.fencing(log, 1)).write(1)
    await log.aclose()


async def test_an_io_error_of_a_read_closes_the_log_too(open_here: Open, plan: list[tuple[str, int, bool]]) -> None:
    """A read that meets the bad place is LogUnavailable; the term of this process ends at its next append."""
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    plan.append(("SELECT last_seq, seq, epoch", IOERR_FSYNC, False))
    with pytest.raises(LogUnavailable, match="injected"):
        await log.read(0, 1000)
    assert len(await log.read(0, 1000)) == 1
    with pytest.raises(AppendOutcomeUnknown):
        await scribe.write(1)
    await log.aclose()


async def test_after_an_io_error_a_fence_insists_on_the_copy(
    open_here: Open, plan: list[tuple[str, int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that saw the disk fail does not take "a reader is in the way" for an answer, even for a clean
    fence; it stays closed until a fence has copied the write-ahead log."""
    log = await open_here(Settings(log_timeout_s=0.0))
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    plan.append(("COMMIT", IOERR_FSYNC, False))
    with pytest.raises(AppendOutcomeUnknown):
        await scribe.write(1)
    with monkeypatch.context() as patched:
        patched.setattr(log._file, "_truncate", lambda connection: False)
        with pytest.raises(AppendOutcomeUnknown, match="could not be copied"):
            await log.fence(Fence(2, "00000002"), why="outcome-unknown", time=1, clean=True)
        assert (await log.look()).fence.epoch == 2
        with pytest.raises(AppendOutcomeUnknown):
            await Scribe(log, await log.look()).write(1)
    await (await Scribe.fencing(log, 3)).write(1)
    await log.aclose()


async def test_busy_reads_are_tried_again(open_here: Open, plan: list[tuple[str, int, bool]]) -> None:
    """A read that meets another process's recovery waits for it."""
    log = await open_here()
    plan.append(("BEGIN", BUSY, False))
    plan.append(("SELECT feed, lineage", BUSY, False))
    assert (await log.look()).tail.seq == 0 and not plan
    await log.aclose()


# ---- file systems

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /srv rw - nfs4 server:/srv rw
31 30 0:41 / /srv/local\\040disk rw - xfs /dev/vdb rw
32 22 0:42 / /srv-not rw - btrfs /dev/vdc rw
33 22 0:43 / /over rw - ext4 /dev/vdd rw
34 33 0:44 / /over rw shared:1 - fuse.sshfs me@host:/ rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/feeds", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/feeds", "nfs4"),
        ("/srv/local disk/feeds", "xfs"),
        ("/srv-not/feeds", "btrfs"),
        ("/over/feeds", "fuse.sshfs"),
    ],
)
def test_network_file_systems_are_refused(tmp_path: Path, path: str, kind: str) -> None:
    """The innermost mount that holds the path decides; those of other machines are refused with their type."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system_of(path, str(mounts)) == kind
    if kind in ("nfs4", "fuse.sshfs"):
        with pytest.raises(BadConfig, match=f"network file system \\({kind}\\)"):
            refuse_network(path, str(mounts))
    else:
        refuse_network(path, str(mounts))


async def test_a_store_on_a_network_file_system_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither open nor feeds touch it."""
    from changefeed.log import sqlite as store_module

    def refuse(directory: str) -> None:
        raise BadConfig("network")

    monkeypatch.setattr(store_module, "refuse_network", refuse)
    store = SqliteLogStore("sqlite:x", str(tmp_path / "x"))
    for call in (store.open("vmapi"), store.feeds()):
        with pytest.raises(BadConfig):
            await call
    assert not (tmp_path / "x").exists()


def test_unknown_mounts_are_not_refused(tmp_path: Path) -> None:
    """Where the mounts cannot be read, nothing is known and nothing refused."""
    assert file_system_of("/x", str(tmp_path / "missing")) == ""
    refuse_network("/x", str(tmp_path / "missing"))
