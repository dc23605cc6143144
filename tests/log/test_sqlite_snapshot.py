"""The snapshot in SQLite files: files of release 0.1.0, damage, failing statements, processes that are killed."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from changefeed.errors import AppendOutcomeUnknown, ChangefeedError, LogDamaged, LogFull, LogUnavailable
from changefeed.log import Latest
from changefeed.log import sqlite_file as sqlite_file_module
from changefeed.log.sqlite import SqliteFeedLog, SqliteLogStore
from changefeed.log.verify import verify_log
from changefeed.settings import Settings
from changefeed.testing.log_scribe import Scribe
from changefeed.testing.log_suite_snapshot import fold, folded, latest, listed

Open = Callable[..., Awaitable[SqliteFeedLog]]
NOMEM, FULL, IOERR_FSYNC, BUSY = 7, 13, 10 | (4 << 8), 5


def edit(directory: Path, *statements: str) -> None:
    connection = sqlite3.connect(directory / "vmapi.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def tables(directory: Path) -> dict[str, str]:
    connection = sqlite3.connect(directory / "vmapi.db")
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()
    return found


# ---- files of release 0.1.0


LACKS = {
    "all of it": ("DROP TABLE objects", "DROP TABLE snapshot"),
    "objects": ("DROP TABLE objects",),
    "snapshot": ("DROP TABLE snapshot",),
    "tombstones": ("DROP INDEX tombstones",),
}


@pytest.mark.parametrize("lacks", LACKS)
async def test_a_file_without_the_tables_is_given_them(directory: Path, open_here: Open, lacks: str) -> None:
    """Its layout stays 1, so that release 0.1.0 opens it as before; entries, terms and publishers are as they were, and
    what it was folded up to is nothing. `all of it` is what 0.1.0 laid out."""
    log = await open_here()
    complete = tables(directory)
    scribe = await Scribe.fencing(log, 1)
    entries = await scribe.write(1, 2)
    look = await log.look()
    await log.aclose()
    edit(directory, *LACKS[lacks])
    assert tables(directory) != complete
    first = await SqliteLogStore("sqlite:", str(directory)).open("vmapi", create=False, check=False)
    log = await open_here()
    assert tables(directory) == complete
    for each in (log, first):
        assert await each.look() == look and await each.read(0, 10**6) == entries
        assert await each.latest([("vm", "a")]) == await each.list_latest(None, 1) == []
    await fold(Scribe(log, look), None, 2, [latest("a", 1)])
    assert await listed(first) == [latest("a", 1)]
    assert (await verify_log(log)).fault is None
    await first.aclose()
    await log.aclose()


async def test_a_file_without_the_tables_waits_for_the_write_lock(directory: Path, open_here: Open) -> None:
    """While somebody holds it, opening is LogUnavailable after log_timeout_s; then it opens."""
    log = await open_here()
    await log.aclose()
    edit(directory, *LACKS["all of it"])
    holder = sqlite3.connect(directory / "vmapi.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogUnavailable, match="has held the write lock"):
        await open_here(Settings(log_timeout_s=0.05))
    holder.close()
    log = await open_here()
    assert await folded(log) == (None, False)
    await log.aclose()


# ---- damage


DAMAGE = {
    "folded beyond the tail": "UPDATE snapshot SET folded = 99",
    "folded is text": "UPDATE snapshot SET folded = 'two'",
    "folded is negative": "UPDATE snapshot SET folded = -2",
    "versioned is text": "UPDATE snapshot SET versioned = 'yes'",
    "row missing": "DELETE FROM snapshot",
}
DAMAGED_ROWS = {
    "no version and no payload": "UPDATE objects SET payload = NULL WHERE id = 'b'",
    "payload is text": "UPDATE objects SET payload = 'text' WHERE id = 'b'",
    "version is text": "UPDATE objects SET version = 'one' WHERE id = 'b'",
    "seq is text": "UPDATE objects SET seq = 'one' WHERE id = 'b'",
    "id is bytes": "UPDATE objects SET id = x'62' WHERE id = 'b'",
}


@pytest.fixture
async def with_rows(directory: Path, open_here: Open) -> SqliteFeedLog:
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1, 1, 1)
    await fold(scribe, None, 3, [latest("a", 1), latest("b", 2), latest("c", 3, version=1)])
    return log


@pytest.mark.parametrize("name", DAMAGE)
async def test_a_damaged_state_of_the_snapshot_is_not_opened(
    directory: Path, open_here: Open, with_rows: SqliteFeedLog, name: str
) -> None:
    """Nor is it looked at, or folded further."""
    edit(directory, DAMAGE[name])
    with pytest.raises(LogDamaged):
        await open_here()
    if name != "folded beyond the tail":
        with pytest.raises(LogDamaged):
            await with_rows.look()
        with pytest.raises(LogDamaged):
            await with_rows.fold(1, "00000001", 3, 3, [], [], versioned=False)
    await with_rows.aclose()


@pytest.mark.parametrize("name", DAMAGED_ROWS)
async def test_a_damaged_row_is_not_listed(directory: Path, with_rows: SqliteFeedLog, name: str) -> None:
    """LogDamaged for whoever comes to it; what stands before it is read."""
    edit(directory, DAMAGED_ROWS[name])
    assert await with_rows.list_latest(None, 1) == [latest("a", 1)]
    with pytest.raises(LogDamaged):
        await listed(with_rows)
    with pytest.raises(LogDamaged) if name != "id is bytes" else nullcontext():
        assert await with_rows.latest([("vm", "b")]) == []
    await with_rows.aclose()


async def test_verify_sees_a_row_beyond_what_is_folded(directory: Path, with_rows: SqliteFeedLog) -> None:
    """And one that cannot be read; the log's own entries are whole, and are walked first."""
    assert (await verify_log(with_rows)).fault is None
    edit(directory, "UPDATE snapshot SET folded = 2")
    fault = (await verify_log(with_rows)).fault
    assert fault is not None and (fault.seq, "row of vm 'c' is of seq 3" in fault.what) == (3, True)
    edit(directory, "UPDATE snapshot SET folded = 3", DAMAGED_ROWS["payload is text"])
    verified = await verify_log(with_rows)
    assert verified.fault is not None and "unreadable row of its snapshot" in verified.fault.what
    assert verified.events == 3
    edit(directory, DAMAGE["folded beyond the tail"])
    fault = (await verify_log(with_rows)).fault
    assert fault is not None and "beyond the tail" in fault.what
    await with_rows.aclose()


# ---- statements that fail


class Failing:
    """A connection that fails at one statement, once, as SQLite would."""

    def __init__(self, connection: sqlite3.Connection, plan: list[tuple[str, int, bool]]) -> None:
        self._connection = connection
        self._plan = plan

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, statement: str, *arguments: object) -> object:
        if self._plan and statement.startswith(self._plan[0][0]):
            _, code, after = self._plan.pop(0)
            if after:
                self._connection.execute(statement, *arguments)
            error = sqlite3.OperationalError(f"injected {code}")
            error.sqlite_errorcode = code
            raise error
        return self._connection.execute(statement, *arguments)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """(beginning of the statement, SQLite's code, whether it takes effect all the same) of the next failure."""
    planned: list[tuple[str, int, bool]] = []
    connect = sqlite_file_module.connect
    monkeypatch.setattr(
        sqlite_file_module, "connect", lambda *args, **kwargs: Failing(connect(*args, **kwargs), planned)
    )
    return planned


@pytest.mark.parametrize("stored", [True, False])
async def test_a_fold_whose_commit_fails_is_of_unknown_outcome(
    open_here: Open, plan: list[tuple[str, int, bool]], stored: bool
) -> None:
    """It is whole or not there; nothing more is folded or written under this term, until a fence; reads go on."""
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1, 1)
    await fold(scribe, None, 1, [latest("a", 1)])
    plan.append(("COMMIT", IOERR_FSYNC, stored))
    with pytest.raises(AppendOutcomeUnknown, match=r"fold failed while it was committed.*may be stored"):
        await fold(scribe, 1, 2, [latest("b", 2)], [("vm", "a")], True)
    assert await folded(log) == ((2, True) if stored else (1, False))
    assert await listed(log) == ([latest("b", 2)] if stored else [latest("a", 1)])
    for call in (fold(scribe, 2, 2), fold(scribe, 1, 2), scribe.write(1)):
        with pytest.raises(AppendOutcomeUnknown, match="after an I/O error"):
            await call
    scribe = await Scribe.fencing(log, 2)
    await fold(scribe, 1 + stored, 2, [latest("c", 2)])
    assert (await folded(log))[0] == 2 and (await listed(log))[-1] == latest("c", 2)
    await log.aclose()


@pytest.mark.parametrize(
    ("statement", "code", "kind", "goes_on"),
    [
        ("BEGIN IMMEDIATE", IOERR_FSYNC, AppendOutcomeUnknown, False),
        ("UPDATE snapshot", IOERR_FSYNC, AppendOutcomeUnknown, False),
        ("UPDATE snapshot", FULL, LogFull, True),
        ("UPDATE snapshot", NOMEM, LogUnavailable, True),
        ("COMMIT", FULL, LogFull, True),
        ("COMMIT", NOMEM, AppendOutcomeUnknown, True),
    ],
)
async def test_what_an_error_of_a_fold_leaves_behind(
    open_here: Open,
    plan: list[tuple[str, int, bool]],
    statement: str,
    code: int,
    kind: type[ChangefeedError],
    goes_on: bool,
) -> None:
    """Each error of a statement of a fold: its type, that nothing is written, and whether the term may go on."""
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    await fold(scribe, None, 0)
    plan.append((statement, code, False))
    with pytest.raises(kind):
        await fold(scribe, 0, 1, [latest("a", 1)])
    assert not plan and await folded(log) == (0, False) and await listed(log) == []
    if goes_on:
        await fold(scribe, 0, 1, [latest("a", 1)])
    else:
        with pytest.raises(AppendOutcomeUnknown):
            await fold(scribe, 0, 1, [latest("a", 1)])
        await fold(await Scribe.fencing(log, 2), 0, 1, [latest("a", 1)])
    assert await listed(log) == [latest("a", 1)]
    await log.aclose()


async def test_a_fold_that_began_anew_and_was_stopped_leaves_nothing_folded(
    open_here: Open, plan: list[tuple[str, int, bool]]
) -> None:
    """Many rows are dropped in several transactions: stopped between them, what is left of the rows is nobody's."""
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1, 1)
    await fold(scribe, None, 1, [latest(f"{n:05}", 1, version=1) for n in range(12_000)], versioned=True)
    plan.append(("UPDATE snapshot SET folded = ?", NOMEM, False))
    with pytest.raises(LogUnavailable):
        await fold(scribe, None, 2, [latest("new", 2)])
    assert await folded(log) == (None, False)
    assert await log.latest([("vm", "11999"), ("vm", "00000")]) == await listed(log) == []
    await fold(scribe, None, 2, [latest("new", 2)])
    assert await folded(log) == (2, False) and await listed(log) == [latest("new", 2)]
    assert await log.latest([("vm", "11999")]) == []
    await log.aclose()


async def test_a_fold_may_use_the_room_that_is_kept_free(open_here: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention waits for it: if it were refused as appends are, nothing would ever make room again."""
    log = await open_here()
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    monkeypatch.setattr(log._file, "storage", lambda: (0, 2**40))
    monkeypatch.setattr(sqlite_file_module, "ROOM_EVERY_S", 0.0)
    with pytest.raises(LogFull):
        await Scribe(log, await log.look()).write(1)
    await fold(scribe, None, 1, [latest("a", 1)])
    await log.trim(1, scribe.term, 1)
    assert await listed(log) == [latest("a", 1)]
    await log.aclose()


async def test_a_process_killed_while_it_folds_leaves_whole_folds(
    directory: Path, open_here: Open, worker: Callable[..., object]
) -> None:
    """What it was told is there, and what is there are the rows of exactly what `folded` says."""
    log = await open_here()
    for _ in range(3):
        process = worker("fold")
        told = 0
        for _ in range(20):
            word, number = process.stdout.readline().split()  # type: ignore[attr-defined]
            assert word == "folded"
            told = int(number)
        process.kill()  # type: ignore[attr-defined]
        process.wait()  # type: ignore[attr-defined]
        look = await log.look()
        assert look.folded is not None and told <= look.folded <= look.tail.seq
        rows: list[Latest] = await listed(log)
        # It puts seq n into row n % 10.
        assert sorted(row.seq for row in rows) == list(range(look.folded - 9, look.folded + 1))
        assert all(row.id == str(row.seq % 10) and row.payload == str(row.seq).encode() for row in rows)
    assert (await verify_log(log)).fault is None
    await log.aclose()
