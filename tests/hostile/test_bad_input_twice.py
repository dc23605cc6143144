"""Rows of "Two processes where one is meant": publishers, cursors, names, ports, coordinators."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from bad_input_page import Outcome, Page
from hostile_arena import PATIENCE_S, Arena, Peer, clean_environment, publish, serve_process, until

from changefeed.change import Position
from changefeed.errors import CursorMoved
from changefeed.subscriber.cursors import SqliteCursor
from changefeed.wire.messages import Open, Opened

pytestmark = pytest.mark.processes

SECTION = "Two processes where one is meant"
CHANGEFEED = [sys.executable, "-m", "changefeed.cli"]
Row = Callable[[Arena, Path], Outcome]
ROWS: dict[str, Row] = {}


def row(input: str) -> Callable[[Row], Row]:
    def add(made: Row) -> Row:
        ROWS[input] = made
        return made

    return add


def environment(arena: Arena) -> dict[str, str]:
    return {**clean_environment(), "CHANGEFEED_URL": arena.url}


def run(arena: Arena, *arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHANGEFEED, *arguments],
        input=input,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(arena),
    )


@contextmanager
def running(arena: Arena, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on meanwhile; it must end with 0 when its input does, or with SIGTERM's status."""
    process = subprocess.Popen(
        [*CHANGEFEED, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(arena),
    )
    try:
        yield process
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE_S)
        assert "changefeed:" not in said, said
    finally:
        process.kill()
        process.communicate()


def told(done: subprocess.CompletedProcess[str], place: Path) -> Outcome:
    (said,) = done.stderr.splitlines()
    sentence, _, code = said.removeprefix("changefeed: ")[:-1].rpartition(" (")
    return Outcome(code, sentence.replace(str(place), "DIR"), f"exit {done.returncode}")


def change(id: str) -> str:
    return json.dumps({"resource": "vm", "id": id, "op": "update"}) + "\n"


# ---- publishers


@row("`changefeed publish vmapi - --publisher nightly --timeout 1s`, while another one runs")
def _(arena: Arena, place: Path) -> Outcome:
    with running(arena, "publish", "vmapi", "-", "--publisher", "nightly") as first:
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write(change("nightly-1"))
        first.stdin.flush()
        assert json.loads(first.stdout.readline())["line"] == 1
        found = told(run(arena, "publish", "vmapi", "-", "--publisher", "nightly", "--timeout", "1s"), place)
        # The first one is not disturbed.
        first.stdin.write(change("nightly-2"))
        first.stdin.flush()
        assert json.loads(first.stdout.readline())["line"] == 2
    return found


@row("`changefeed publish vmapi - --publisher weekly`, of a file that was edited since")
def _(arena: Arena, place: Path) -> Outcome:
    weekly = ("publish", "vmapi", "-", "--publisher", "weekly")
    assert run(arena, *weekly, input=change("weekly-1")).returncode == 0
    done = run(arena, *weekly, input=change("weekly-2"))
    answer = json.loads(done.stdout)
    return Outcome(answer["error"], answer["message"], f"told as line {answer['line']}; exit {done.returncode}")


async def opened(arena: Arena, publisher: str, session: str, **more: object) -> tuple[Peer, Opened]:
    peer = await arena.connect()
    await peer.say(Open("vmapi", publisher, session, **more))  # type: ignore[arg-type]
    return peer, await peer.hear_one(Opened)


async def refused_open(arena: Arena, request: Open) -> Outcome:
    peer = await arena.connect()
    await peer.say(request)
    fault, lost = await peer.end()
    assert fault is not None
    return Outcome(fault.code, fault.message, f"close {lost.close_code_received}")


@row("an `open` of a named publisher that another session has open")
def _(arena: Arena, place: Path) -> Outcome:
    async def main() -> Outcome:
        first, _ = await opened(arena, "twice", "one", named=True)
        found = await refused_open(arena, Open("vmapi", "twice", "two", named=True))
        await first.say(publish(1))
        assert (await first.answer()).first is not None
        await first.connection.aclose()
        return found

    return trio.run(main)


@row("a `publish` after another session opened the same id, which no person named")
def _(arena: Arena, place: Path) -> Outcome:
    async def main() -> Outcome:
        first, _ = await opened(arena, "random-id", "one")
        await first.say(publish(1))
        assert (await first.answer()).first is not None
        second, _ = await opened(arena, "random-id", "two")
        await first.say(publish(2))
        answer = await first.answer()
        await second.say(publish(1))
        assert (await second.answer()).first is not None
        for peer in (first, second):
            await peer.connection.aclose()
        return Outcome(answer.code, answer.message, "answer")

    return trio.run(main)


@row("an `open` with an incarnation that has been outgrown")
def _(arena: Arena, place: Path) -> Outcome:
    async def main() -> Outcome:
        first, welcome = await opened(arena, "outgrown", "one")
        await first.say(publish(1), publish(2))
        assert (await first.answer()).first is not None
        assert (await first.answer()).first is not None
        await first.connection.aclose()
        second, _ = await opened(arena, "outgrown", "two")
        await second.connection.aclose()
        return await refused_open(arena, Open("vmapi", "outgrown", "one", incarnation=welcome.incarnation))

    return trio.run(main)


# ---- cursors


@row("`changefeed tail vmapi --cursor FILE`, while another one runs")
def _(arena: Arena, place: Path) -> Outcome:
    tail = ("tail", "vmapi", "--start", "beginning", "--cursor", str(place / "cursor"))
    with running(arena, *tail) as first:
        assert first.stdout is not None and first.stdout.readline()
        found = told(run(arena, *tail, "--count", "1"), place)
        assert first.stdout.readline()
    return found


@row("`SqliteCursor.save`, after another process saved")
def _(arena: Arena, place: Path) -> Outcome:
    at = [Position("5e1d3c7a90b24f68", 1, "c0ffee42", seq) for seq in (1, 2, 3)]
    databases = [sqlite3.connect(place / "app.db", isolation_level=None) for _ in range(2)]
    one, two = (SqliteCursor(database, "dns", "vmapi") for database in databases)

    def save(cursor: SqliteCursor, database: sqlite3.Connection, position: Position) -> None:
        database.execute("BEGIN IMMEDIATE")
        cursor.save(position)
        database.execute("COMMIT")

    one.load()
    save(one, databases[0], at[0])
    two.load()
    save(one, databases[0], at[1])
    with pytest.raises(CursorMoved) as caught:
        save(two, databases[1], at[2])
    databases[1].execute("ROLLBACK")
    assert two.load() == at[1]
    for database in databases:
        database.close()
    return Outcome(caught.value.code, str(caught.value), "raised; nothing is committed")


# ---- instances


def serve(arena: Arena, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(arena, "serve", "vmapi", *arguments)


@row("`changefeed serve vmapi` on a port that is in use")
def _(arena: Arena, place: Path) -> Outcome:
    listen = arena.url.removeprefix("ws://")
    return told(serve(arena, "--log", arena.log, "--coordinator", arena.coordinator, "--listen", listen), place)


@row("`changefeed serve vmapi --name one`, while another process has the name")
def _(arena: Arena, place: Path) -> Outcome:
    here = ("--log", arena.log, "--coordinator", arena.coordinator, "--listen", "127.0.0.1:0", "--name", "one")
    return told(serve(arena, *here), place)


@row("`changefeed serve vmapi` on a log whose leader has another coordinator")
def _(arena: Arena, place: Path) -> Outcome:
    other = serve_process(["vmapi"], log=arena.log, coordinator=f"file:{place / 'c'}", name="two", folder=place)
    other.start()
    try:
        until(lambda: "two coordinators" in other.tail(), other.tail)
        (said,) = [line for line in other.tail().splitlines() if "two coordinators" in line]
        assert not other.ready()
        other.terminate()
        assert other.wait(PATIENCE_S) == 0
    finally:
        other.kill()
    sentence = said.partition("two coordinators: ")[2]
    known = {arena.instance.get("/status")["coordinator"]["id"], sentence.partition(" uses ")[2].partition(";")[0]}
    for each in known:
        sentence = sentence.replace(each, "ID")
    return Outcome("two-coordinators", sentence, "logged and shown in status; does not lead")


@pytest.mark.parametrize("input", ROWS)
def test_a_row(arena: Arena, page: Page, tmp_path: Path, input: str) -> None:
    """The one that was there first goes on; the other one is told."""
    page.holds(SECTION, input, ROWS[input](arena, tmp_path))


def test_the_section_is_whole(page: Page) -> None:
    """The page has these rows, in this order, and no other."""
    page.expects(SECTION, list(ROWS))
