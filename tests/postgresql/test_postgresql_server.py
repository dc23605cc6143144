"""What an instance says of a server that it cannot use, and what it does when one goes away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from changefeed.errors import (
    AppendOutcomeUnknown,
    BadUrl,
    Fenced,
    LogAccessDenied,
    LogDamaged,
    LogFormatUnknown,
    LogFull,
    LogNotLaidOut,
    LogReplaced,
    LogUnavailable,
    LogUnsafe,
)
from changefeed.log import Fence
from changefeed.log.postgresql.connections import Server
from changefeed.log.postgresql.layout import LAYOUT, info, lay_out
from changefeed.log.urls import open_log
from changefeed.settings import Settings
from changefeed.testing.log_scribe import Scribe, everything, raises
from changefeed.testing.postgresql_server import PostgresqlServer, programs

pytestmark = pytest.mark.postgresql

FEED = "vmapi"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "postgresql.md"
QUICK = Settings(log_timeout_s=1.0)


@pytest.fixture
def own_server() -> Iterator[PostgresqlServer]:
    """A server that the test may stop."""
    with PostgresqlServer.starting() as running:
        running.execute("CREATE DATABASE log")
        lay_out(Server(running.url("log"), 5.0))
        yield running


@contextmanager
def holding_the_head(server: PostgresqlServer) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that keeps the feed's row locked; it may be ended by anybody."""
    holder = psycopg.connect(server.url("log"))
    try:
        holder.execute("SELECT * FROM changefeed.heads FOR UPDATE")
        yield holder
    finally:
        holder.close()


async def opening(url: str) -> None:
    log = await open_log(url, QUICK).open(FEED)
    await log.aclose()


# ---- what is refused


async def test_a_wrong_password_database_or_role_is_said(server: PostgresqlServer, database: str) -> None:
    """With the URL, without its password."""
    server.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + before)
    try:
        server.execute("SELECT pg_reload_conf()")
        with trio.fail_after(10):
            while True:
                error = await raises(Exception, opening(server.url("laid_out", "locked", "secret")))
                if isinstance(error, LogAccessDenied):
                    break
                await trio.sleep(0.05)
        assert "password authentication failed" in str(error) and "secret" not in str(error)
        assert "check user, password, database" in str(error)
    finally:
        hba.write_text(before)
        server.execute("SELECT pg_reload_conf()")
    nobody = await raises(LogAccessDenied, opening(server.url("laid_out", "nobody_here")))
    assert 'role "nobody_here" does not exist' in str(nobody)
    nowhere = await raises(LogAccessDenied, opening(server.url("no_such_database")))
    assert 'database "no_such_database" does not exist' in str(nowhere)


async def test_missing_older_and_newer_tables_are_said(server: PostgresqlServer, database: str) -> None:
    """With the command that makes or upgrades them; never made by an instance."""
    missing = await raises(LogNotLaidOut, opening(server.url("postgres")))
    assert "changefeed log init --log URL" in str(missing)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE changefeed.layout SET version = 0")
        assert "needs" in str(await raises(LogNotLaidOut, opening(database)))
        connection.execute("UPDATE changefeed.layout SET version = %s", (LAYOUT + 1,))
        assert f"knows layouts up to {LAYOUT}" in str(await raises(LogFormatUnknown, opening(database)))
        with pytest.raises(LogFormatUnknown):
            lay_out(Server(database, 5.0))


def test_laying_out_again_changes_nothing(database: str) -> None:
    """init on what stands is harmless."""
    assert lay_out(Server(database, 5.0)) == (LAYOUT, LAYOUT)
    assert info(Server(database, 5.0)).layout == LAYOUT


async def test_a_role_without_privileges_is_said(server: PostgresqlServer, database: str) -> None:
    """The table that it may not touch is named."""
    server.execute("CREATE ROLE guest LOGIN")
    denied = await raises(LogAccessDenied, opening(database.replace("postgres@", "guest@")))
    assert "permission denied" in str(denied)


async def test_an_instances_role_needs_no_more_than_the_page_says(server: PostgresqlServer, database: str) -> None:
    """The statements of docs/how-to/postgresql.md are enough to lead."""
    page = PAGE.read_text()
    (statements,) = [part.partition("```")[0] for part in page.split("```sql\n")[1:]]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(statements)
    log = await open_log(database.replace("postgres@", "changefeed@")).open(FEED)
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(2)
    await log.trim(1, scribe.term, 1)
    await log.look((1, scribe.term, 5))
    assert len(await everything(log)) == 1
    await log.aclose()


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit"])
async def test_a_server_that_would_lose_what_it_acknowledges_is_refused(name: str) -> None:
    """The setting is named."""
    with PostgresqlServer.starting(**{name: "off"}) as server:
        server.execute("CREATE DATABASE log")
        unsafe = await raises(LogUnsafe, opening(server.url("log")))
        assert f"{name} = off" in str(unsafe) and "could be lost" in str(unsafe)


async def test_a_standby_is_refused(own_server: PostgresqlServer, tmp_path: Path) -> None:
    """Nothing is written to it, and nothing is read from it."""
    standby = PostgresqlServer(own_server.directory / "standby")
    own_server.execute("SELECT pg_create_physical_replication_slot('s')")
    standby.directory.mkdir()
    standby.directory.chmod(0o755)
    own_server.own(standby.directory)
    backup = [programs() / "pg_basebackup", "-h", own_server.host, "-p", str(own_server.port), "-U", "postgres", "-R"]
    own_server.call([*map(str, backup), "-c", "fast", "-D", str(standby.data)])
    standby.configure(port=str(standby.port))
    standby.start()
    try:
        refused = await raises(LogUnsafe, opening(standby.url("log")))
        assert "read-only standby" in str(refused) and "primary" in str(refused)
    finally:
        standby.stop(signal.SIGQUIT)


async def test_nobody_answers(own_server: PostgresqlServer) -> None:
    """A server that is down is LogUnavailable; one that is no PostgreSQL, too."""
    own_server.stop()
    down = await raises(LogUnavailable, opening(own_server.url("log")))
    assert "Connection refused" in str(down)
    with pytest.raises(BadUrl, match="write postgresql://"):
        open_log("postgresql://h/d?nonsense=1")


# ---- what happens when it goes away


async def test_a_server_that_dies_in_an_append_leaves_its_outcome_unknown(own_server: PostgresqlServer) -> None:
    """The log itself says what it holds once the server is back; the old term goes on only after a fence."""
    log = await open_log(own_server.url("log"), QUICK).open(FEED)
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    with holding_the_head(own_server):

        async def append() -> None:
            await raises(AppendOutcomeUnknown, scribe.write(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            with psycopg.connect(own_server.url("log"), autocommit=True) as watcher:
                waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
                while watcher.execute(waiting).fetchone() != (1,):  # noqa: ASYNC110  # another process
                    await trio.sleep(0.01)
            own_server.stop(signal.SIGQUIT)
    await raises(LogUnavailable, log.look())
    own_server.start()
    assert len(await everything(log)) == 1
    again = await Scribe.fencing(log, 2)
    await again.write(1)
    await log.aclose()


async def test_an_idle_connection_that_the_server_ended_costs_no_term(own_server: PostgresqlServer) -> None:
    """It is noticed before anything is sent."""
    log = await open_log(own_server.url("log"), QUICK).open(FEED)
    scribe = await Scribe.fencing(log, 1)
    own_server.restart()
    await scribe.write(1)
    assert len(await everything(log)) == 1
    await log.aclose()


async def test_a_fence_ends_whoever_holds_the_head(own_server: PostgresqlServer) -> None:
    """A transaction that keeps the feed's row is ended after 200 ms: the fence needs no more than a moment."""
    log = await open_log(own_server.url("log"), QUICK).open(FEED)
    await Scribe.fencing(log, 1)
    with holding_the_head(own_server) as holder:
        await Scribe.fencing(log, 2)
        with pytest.raises(psycopg.OperationalError, match="terminating connection"):
            holder.execute("SELECT 1")
    await log.aclose()


async def test_a_frozen_holder_is_named(own_server: PostgresqlServer) -> None:
    """One that cannot be ended, since its process stands still, is named with its pid."""
    log = await open_log(own_server.url("log"), QUICK).open(FEED)
    await Scribe.fencing(log, 1)
    with holding_the_head(own_server) as holder:
        pid = holder.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            fence = Fence(2, "0badcafe")
            stuck = await raises(LogUnavailable, log.fence(fence, why="silent", time=1, clean=False))
            assert f"server process {pid} has held the lock" in str(stuck)
        finally:
            os.kill(pid, signal.SIGCONT)
    await Scribe.fencing(log, 2)
    await log.aclose()


async def test_an_older_database_put_back_is_noticed(own_server: PostgresqlServer) -> None:
    """By a process that has seen the newer one; positions of it are refused."""
    log = await open_log(own_server.url("log"), QUICK).open(FEED)
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1)
    own_server.stop()
    copy = own_server.directory / "copy"
    shutil.copytree(own_server.data, copy, copy_function=shutil.copy)
    own_server.start()
    await scribe.write(1)
    position = (await log.look()).head
    own_server.stop()
    shutil.rmtree(own_server.data)
    shutil.move(copy, own_server.data)
    own_server.own(own_server.data)
    own_server.start()
    replaced = await raises(LogReplaced, log.look())
    assert "older copy" in str(replaced)
    await raises(LogReplaced, scribe.write(1))
    await log.aclose()
    fresh = await open_log(own_server.url("log"), QUICK).open(FEED)
    refused = (await fresh.look()).check(position)
    assert refused is not None and refused.code == "future-position"
    await fresh.aclose()


async def test_rows_that_contradict_each_other_are_damage(database: str) -> None:
    """A hole, other bytes, a tail that says more: each is LogDamaged, and nothing of it is delivered."""
    log = await open_log(database).open(FEED)
    scribe = await Scribe.fencing(log, 1)
    await scribe.write(1, 1, 1)
    for after, harm, mend in (
        (
            0,
            "UPDATE changefeed.entries SET seq = 9 WHERE seq = 2",
            "UPDATE changefeed.entries SET seq = 2 WHERE seq = 9",
        ),
        (3, "UPDATE changefeed.heads SET tail_seq = 7", "UPDATE changefeed.heads SET tail_seq = 3"),
        (0, "UPDATE changefeed.entries SET payload = '\\x00' WHERE seq = 3", ""),
    ):
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(harm)
            await raises(LogDamaged, log.read(after, 10_000))
            if mend:
                connection.execute(mend)
                assert len(await log.read(0, 10_000)) == 3
    await log.aclose()


async def test_a_deposed_leader_is_fenced(database: str) -> None:
    """Another process on the same database."""
    old, new = await open_log(database).open(FEED), await open_log(database).open(FEED)
    deposed = await Scribe.fencing(old, 1)
    await Scribe.fencing(new, 2)
    await raises(Fenced, deposed.write(1))
    await raises(Fenced, old.trim(1, deposed.term, 0))
    await old.aclose()
    await new.aclose()


# ---- a full disk


@pytest.fixture
def small_disk(own_server: PostgresqlServer) -> Iterator[Path]:
    """Entries lie on a disk of 4 MiB, beside the server's own: its write-ahead log must go on."""
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    place = own_server.directory / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        space = place / "space"
        space.mkdir()
        own_server.own(space)
        own_server.execute(f"CREATE TABLESPACE small LOCATION '{space}'", database="log")
        own_server.execute("ALTER TABLE changefeed.entries SET TABLESPACE small", database="log")
        yield place
    finally:
        own_server.stop(signal.SIGQUIT)
        subprocess.run(["umount", place], check=True)


async def test_a_full_disk_refuses_appends_and_nothing_else(own_server: PostgresqlServer, small_disk: Path) -> None:
    """LogFull, with nothing of the append stored; reads go on; with room again, so do appends of the same term."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 * 2**20))
    log = await open_log(own_server.url("log"), QUICK).open(FEED)
    scribe = await Scribe.fencing(log, 1)
    stored = 0
    with pytest.raises(LogFull, match="free room on the server's disk or lower the feed's retention"):
        for _ in range(40):
            await scribe.write(1, size=200_000)
            stored += 1
    assert 0 < stored < 40
    assert len(await everything(log)) == stored
    ballast.unlink()
    again = Scribe(log, await log.look())
    await again.write(1, size=200_000)
    assert len(await everything(log)) == stored + 1
    await log.aclose()
