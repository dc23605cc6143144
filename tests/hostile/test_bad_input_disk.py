"""Rows of "A full disk": the log of a real instance on a small file system that fills up and is cleaned up again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio
from bad_input_page import Outcome, Page
from hostile_arena import PATIENCE_S, Arena, clean_environment

from changefeed.change import Receipt
from changefeed.errors import LogFull
from changefeed.publisher.driver import open_publisher
from changefeed.subscriber.driver import open_subscription

pytestmark = pytest.mark.processes

SECTION = "A full disk"
ROWS = [
    "`changefeed publish vmapi vm 1 update`, less than `min_free` left",
    "`changefeed publish vmapi vm 1 update --timeout 2s`, not a byte left",
    "`changefeed tail vmapi --until-caught-up`, not a byte left",
    "`changefeed publish vmapi vm 1 update`, after cleaning up",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """An instance whose log lies on a file system of 24 MiB."""
    folder = tmp_path_factory.mktemp("arena")
    (folder / "log").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder / "log")]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with Arena(folder, healthy=False, warns="free room") as arena:
            yield arena
    finally:
        subprocess.run(["umount", "-l", str(folder / "log")], check=True)


def run(arena: Arena, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "changefeed.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**clean_environment(), "CHANGEFEED_URL": arena.url},
    )


def told(done: subprocess.CompletedProcess[str]) -> Outcome:
    sentence, _, code = done.stderr.strip().removeprefix("changefeed: ")[:-1].rpartition(" (")
    return Outcome(code, sentence, f"exit {done.returncode}")


def fill(arena: Arena, leave: int) -> None:
    """Something else takes the room: all but `leave` bytes."""
    place = arena.folder / "log"
    with (place / "ballast").open("ab", buffering=0) as file:
        while (free := os.statvfs(place).f_bavail * os.statvfs(place).f_frsize) > leave:
            try:
                file.write(bytes(min(free - leave, 2**20)))
            except OSError:
                return


async def published(arena: Arena) -> Receipt:
    """A publish by the library, retried by the application for as long as the log is full."""
    async with open_publisher("vmapi", arena.url) as publisher:
        while True:
            try:
                return await publisher.publish("vm", "resumed", "update")
            except LogFull:
                await trio.sleep(0.05)


def test_a_full_disk(small: Arena, page: Page) -> None:
    """Publishes are refused, reads go on, and once there is room publishing resumes, by itself and under one leader."""
    outcomes = trio.run(through_it_all, small)
    for row, outcome in zip(ROWS, outcomes, strict=True):
        page.holds(SECTION, row, outcome)


async def through_it_all(arena: Arena) -> list[Outcome]:
    async def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await trio.to_thread.run_sync(run, arena, *arguments)

    publish = ("publish", "vmapi", "vm", "1", "update", "--timeout", "2s")
    seen: list[int] = []
    outcomes: list[Outcome] = []
    with trio.fail_after(3 * PATIENCE_S):
        async with (
            open_publisher("vmapi", arena.url) as publisher,
            open_subscription("vmapi", arena.url, start="beginning") as subscription,
            trio.open_nursery() as nursery,
        ):

            async def read() -> None:
                async for event in subscription:
                    seen.append(event.seq)

            nursery.start_soon(read)
            for _ in range(10):
                await publisher.publish("vm", "before", "update", body="x" * 10_000)
            fill(arena, 1_000_000)
            await until_full(publisher)
            outcomes.append(told(await command(*publish)))
            fill(arena, 0)
            full = told(await command(*publish))
            # Whether its incarnation still finds a page to be written to is chance; no change does.
            assert "free room" in full.sentence
            outcomes.append(Outcome(full.code, "(the same, or that the disk is full)", full.ends))
            done = await command("tail", "vmapi", "--until-caught-up", "--id", "before")
            assert done.stderr == "" and len(done.stdout.splitlines()) == 10
            outcomes.append(Outcome("", "(all events)", f"exit {done.returncode}"))
            (arena.folder / "log" / "ballast").unlink()
            receipt = await published(arena)
            done = await command(*publish)
            assert done.stderr == ""
            outcomes.append(Outcome("", "(the receipt)", f"exit {done.returncode}"))
            last = await publisher.publish("vm", "after", "update")
            assert receipt.position.seq < json.loads(done.stdout)["seq"] < last.position.seq
            await subscription.wait_until(last.position)
            assert publisher.status.last_error is None and subscription.state.last_error is None
            nursery.cancel_scope.cancel()
    assert seen == list(range(1, seen[-1] + 1))
    status = arena.instance.get("/status")["feeds"]["vmapi"]
    assert status["epoch"] == 1
    verified = await trio.to_thread.run_sync(run, arena, "verify", "vmapi", "--log", arena.log)
    assert verified.returncode == 0, verified.stdout
    return outcomes


async def until_full(publisher: object) -> None:
    """The instance looks at the disk now and then only."""
    while True:
        try:
            await publisher.publish("vm", "filling", "update")  # type: ignore[attr-defined]
        except LogFull:
            return
        await trio.sleep(0.02)


def test_the_section_is_whole(page: Page) -> None:
    """The page has these rows, in this order, and no other."""
    page.expects(SECTION, ROWS)
