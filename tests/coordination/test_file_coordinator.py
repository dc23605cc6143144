"""What only the file coordinator must stand: forks, kills, torn files, deleted files, a frozen process."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from changefeed.coordination import Coordinator, Member, View
from changefeed.coordination import file as file_module
from changefeed.coordination.file import FileCoordinator
from changefeed.errors import CoordinatorUnavailable, NameTaken
from changefeed.ports import World

FEED = "vmapi"
LIMIT_S = 20.0

#: A process that leads: argv is the folder, then what it does besides ("fork", "exec" or "nothing").
LEADER = """
import os, subprocess, sys, time, trio
from changefeed.coordination import Member
from changefeed.coordination.file import FileCoordinator
from changefeed.ports import World

async def main():
    coordinator = FileCoordinator("file:x", sys.argv[1], world=World())
    await coordinator.start(Member("leader", "its-process", "ws://leader", True, ("vmapi",)))
    assert await coordinator.take("vmapi", await coordinator.read("vmapi"))
    child = 0
    if sys.argv[2] == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
    elif sys.argv[2] == "exec":
        child = subprocess.Popen(["sleep", "600"], close_fds=False).pid
    print(child, flush=True)
    await trio.sleep(600)

trio.run(main)
"""


def coordinator(folder: Path) -> FileCoordinator:
    return FileCoordinator(f"file:{folder}", str(folder), world=World())


def member(name: str) -> Member:
    return Member(name, f"process-of-{name}", f"ws://{name}", True, (FEED,))


@asynccontextmanager
async def joined(folder: Path, name: str) -> AsyncIterator[FileCoordinator]:
    opened = coordinator(folder)
    await opened.start(member(name))
    try:
        yield opened
    finally:
        await opened.aclose()


async def leading(who: Coordinator) -> View:
    view = await who.take(FEED, await who.read(FEED))
    assert view is not None
    return view


@contextmanager
def leader_process(folder: Path, besides: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A leading process, and the id of its child (0: none); both are gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEADER, str(folder), besides], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    child = 0
    try:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        yield process, child
    finally:
        process.kill()
        if child:
            os.kill(child, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.processes
@pytest.mark.parametrize("besides", ["nothing", "fork", "exec"])
async def test_a_killed_process_leads_no_more(tmp_path: Path, besides: str) -> None:
    """Its lock goes with it, also where a child that it forked or executed lives on; its name is free."""
    async with joined(tmp_path, "b") as b:
        with leader_process(tmp_path, besides) as (process, child):
            view = await b.read(FEED)
            assert view.leader is not None and view.leader.name == "leader" and view.epoch == 1
            assert await b.take(FEED, view) is None
            process.kill()
            with trio.fail_after(LIMIT_S):
                view = await b.wait_change(FEED, view)
            assert view.leader is None and view.epoch == 1
            if child:
                os.kill(child, 0)  # it lives
            assert list(await b.members()) == ["b"]
            assert sorted(os.listdir(tmp_path / "members")) == ["b.member"], "a dead member's file is removed"
            async with joined(tmp_path, "leader"):
                assert (await leading(b)).epoch == 2


@pytest.mark.processes
async def test_a_frozen_process_keeps_the_lead_until_it_is_challenged(tmp_path: Path) -> None:
    """A lock cannot be taken from it, but leadership is a record; thawed, it does not find itself in there."""
    async with joined(tmp_path, "b") as b:
        with leader_process(tmp_path, "nothing") as (process, _):
            process.send_signal(signal.SIGSTOP)
            view = await b.read(FEED)
            assert view.leader is not None and await b.take(FEED, view) is None
            second = await b.challenge(FEED, view)
            assert second is not None and second.epoch == 2 and b.mine(second)
            other = coordinator(tmp_path)
            with pytest.raises(NameTaken):
                await other.start(member("leader"))
            process.send_signal(signal.SIGCONT)
            assert await b.read(FEED) == second


async def test_a_forked_child_cannot_use_its_parents_coordinator(tmp_path: Path) -> None:
    """It says so instead of acting under its parent's name, and the parent keeps its lock."""
    async with joined(tmp_path, "a") as a, joined(tmp_path, "b") as b:
        view = await leading(a)
        a.forget_after_fork()  # what os.register_at_fork does in the child
        with pytest.raises(CoordinatorUnavailable, match="forked child"):
            await a.read(FEED)
        with pytest.raises(CoordinatorUnavailable, match="forked child"):
            await a.challenge(FEED, view)
        assert not a.state().connected and not a.mine(view)
        assert (await b.read(FEED)).leader is None, "here the child's close was the last one"


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 200, b"[1]", b'{"version": -4, "epoch": 1}', b'{"epoch": 7}'])
async def test_a_torn_record_reads_as_epoch_0(tmp_path: Path, content: bytes) -> None:
    """So the election finds the log ahead and raises; no old view matches."""
    async with joined(tmp_path, "a") as a, joined(tmp_path, "b") as b:
        old = await leading(a)
        (tmp_path / "feeds" / f"{FEED}.json").write_bytes(content)
        view = await b.wait_change(FEED, old)
        assert (view.epoch, view.leader) == (0, None)
        assert not a.mine(await a.read(FEED))
        assert await a.challenge(FEED, old) is None
        assert await b.raise_epoch(FEED, view, 5)
        assert (await leading(b)).epoch == 6


async def test_a_leader_that_cannot_be_read_is_nobody(tmp_path: Path) -> None:
    """The epoch beside it still counts."""
    async with joined(tmp_path, "a") as a:
        await leading(a)
        path = tmp_path / "feeds" / f"{FEED}.json"
        record = json.loads(path.read_text())
        record["leader"]["url"] = 7
        path.write_text(json.dumps(record))
        view = await a.read(FEED)
        assert (view.epoch, view.leader) == (1, None)
        assert (await leading(a)).epoch == 2


async def test_a_missing_record_reads_as_epoch_0(tmp_path: Path) -> None:
    """A feed's record that somebody deleted."""
    async with joined(tmp_path, "a") as a:
        old = await leading(a)
        (tmp_path / "feeds" / f"{FEED}.json").unlink()
        assert (await a.wait_change(FEED, old)) == View(FEED, 0, -1, None)
        assert (await leading(a)).epoch == 1


async def test_the_id_is_in_the_folder(tmp_path: Path) -> None:
    """All participants see the same one; another folder has another."""
    async with joined(tmp_path / "x", "a") as a, joined(tmp_path / "x", "b") as b, joined(tmp_path / "y", "c") as c:
        assert a.state().id == b.state().id != c.state().id
        assert (tmp_path / "x" / "id").read_text().strip() == a.state().id
        assert a.state().session_s == 0 and a.state().session != b.state().session


async def test_a_lock_that_stays_taken_is_an_error_that_names_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process frozen while it holds the short lock does not block others for ever; reading needs no lock."""
    monkeypatch.setattr(file_module, "LOCK_LIMIT_S", 0.05)
    async with joined(tmp_path, "a") as a:
        view = await a.read(FEED)
        with (tmp_path / "lock").open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(CoordinatorUnavailable, match=f"process {os.getpid()}.*frozen"):
                await a.take(FEED, view)
            assert await a.read(FEED) == view
        assert (await leading(a)).epoch == 1


async def test_a_deleted_lock_file_is_made_anew(tmp_path: Path) -> None:
    """Whoever waits on the deleted one notices that it is not the one in the folder."""
    async with joined(tmp_path, "a") as a:
        (tmp_path / "lock").unlink()
        assert (await leading(a)).epoch == 1
        assert (tmp_path / "lock").exists()


async def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    """With the system's reason; a wait goes on, and ends when the folder is there."""
    blocked = tmp_path / "blocked"
    blocked.write_text("not a folder")
    who = coordinator(blocked)
    with pytest.raises(CoordinatorUnavailable, match=r"folder cannot be used.*blocked"):
        await who.start(member("a"))
    with pytest.raises(CoordinatorUnavailable):
        await who.read(FEED)
    assert not who.state().connected
    seen: list[View] = []

    async def wait() -> None:
        seen.append(await who.wait_change(FEED, None))

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            blocked.unlink()
    assert [view.epoch for view in seen] == [0]
    await who.aclose()


async def test_temporary_files_of_the_dead_are_swept(tmp_path: Path) -> None:
    """Old ones only: a young one may be somebody's record that is just being written."""
    for folder in ("members", "feeds"):
        (tmp_path / folder).mkdir()
        for name, age in ((".new-old", 3600), (".new-young", 0)):
            path = tmp_path / folder / name
            path.write_text("x")
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    async with joined(tmp_path, "a") as a:
        await leading(a)
        assert sorted(os.listdir(tmp_path / "members")) == [".new-young", "a.member"]
        assert sorted(os.listdir(tmp_path / "feeds")) == [".new-young", f"{FEED}.json"]


async def test_a_name_taken_while_away_is_not_fought_over(tmp_path: Path) -> None:
    """An instance whose member file vanished, and whose name another process then took, stays out until it is free."""
    async with joined(tmp_path, "a") as a, joined(tmp_path, "b") as b:
        os.unlink(a.member_path)
        thief = coordinator(tmp_path)
        await thief.start(Member("a", "thief", "ws://thief"))
        view = await a.read(FEED)
        assert a.state().session == ""
        with pytest.raises(CoordinatorUnavailable, match="not joined"):
            await a.take(FEED, view)
        await thief.aclose()
        with trio.fail_after(LIMIT_S):
            await a.wait_change(FEED, view)  # its session changes: it has joined again
        assert (await b.members())["a"].process == "process-of-a"


async def test_reading_changes_nothing_in_the_records(tmp_path: Path) -> None:
    """No record is made for a feed that nobody has led."""
    async with joined(tmp_path, "a") as a:
        await a.read(FEED)
        await a.resign(FEED, 1)
        assert not await a.mark_leaving(FEED, 1, "b")
        assert os.listdir(tmp_path / "feeds") == []
