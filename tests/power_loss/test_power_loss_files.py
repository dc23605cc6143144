"""Files that are kept beside the log, after a loss of power: cursors, the file coordinator's record, new folders."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
import trio

from changefeed.change import Position
from changefeed.coordination import Member
from changefeed.coordination.file import FileCoordinator
from changefeed.log.sqlite import SqliteLogStore
from changefeed.ports import SeededEntropy, World
from changefeed.simulation.disk import Manner, RecordedDisk, calls_in_place
from changefeed.simulation.disk.model import SyncNames
from changefeed.simulation.disk.recorded import lay_out
from changefeed.simulation.disk.tree import RecordedTree
from changefeed.subscriber.cursors import FileCursor, SqliteCursor

LINEAGE = "0123456789abcdef"
TRIES = 12


def position(seq: int) -> Position:
    return Position(LINEAGE, 1, "00000001", seq)


def losses(tree: RecordedTree, scratch: str, judge: Callable[[str, int], None]) -> None:
    """Judge what a loss of power leaves at every boundary, several times each."""
    for at in range(tree.count + 1):
        for turn in range(TRIES):
            folder = f"{scratch}/lost-{at}-{turn}"
            tree.rebuild(folder, at, random.Random(f"{at} {turn}"))
            judge(folder, at)


def test_a_file_cursor_is_never_torn_and_never_behind_what_was_saved(scratch: str) -> None:
    """After a loss of power at any time it holds a position that was saved, not before the last one that was saved
    durably, not beyond the last one asked for."""
    saved = [(0, 0)]
    os.mkdir(f"{scratch}/tree")

    async def save() -> None:
        cursor = FileCursor(f"{scratch}/tree/cursor")
        with tree:
            await cursor.open("vmapi")
            for seq in range(1, 9):
                sync = seq % 3 != 0
                await cursor.store(position(seq), sync=sync)
                if sync:
                    saved.append((tree.count, seq))
            await cursor.aclose()

    async def found(folder: str) -> int:
        cursor = FileCursor(f"{folder}/cursor")
        held = await cursor.open("vmapi")
        await cursor.store(position(100))
        await cursor.aclose()
        return 0 if held is None else held.seq

    def judge(folder: str, at: int) -> None:
        seq = trio.run(found, folder)
        least = max(number for boundary, number in saved if boundary <= at)
        most = min([number for boundary, number in saved if boundary > at] + [8]) + 1
        assert least <= seq <= most, f"boundary {at}: at seq {seq}, saved {least}"

    with calls_in_place():
        tree = RecordedTree(f"{scratch}/tree")
        trio.run(save)
        assert tree.count > 30
        losses(tree, scratch, judge)


def test_the_tree_sees_a_cursor_that_is_not_synced(scratch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the sync of the file: torn cursors are found; so the test above can fail."""
    os.mkdir(f"{scratch}/tree")
    torn = set()

    async def save() -> None:
        cursor = FileCursor(f"{scratch}/tree/cursor")
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        with tree:
            await cursor.open("vmapi")
            for seq in range(1, 4):
                await cursor.store(position(seq))
            await cursor.aclose()
        monkeypatch.undo()

    def judge(folder: str, at: int) -> None:
        try:
            with open(f"{folder}/cursor", "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return
        if not data.endswith(b"\n"):
            torn.add(at)

    with calls_in_place():
        tree = RecordedTree(f"{scratch}/tree")
        real_did = tree._did
        # A sync that is called and does nothing is not one: the tree would otherwise take it for done.
        tree._did = lambda step: (
            None if isinstance(step, SyncNames) or "Sync" in type(step).__name__ else real_did(step)
        )
        trio.run(save)
        tree._did = real_did
        losses(tree, scratch, judge)
    assert torn


def test_a_sqlite_cursor_and_its_effects_survive_together(scratch: str) -> None:
    """Effect and position are saved in one transaction: after a loss of power the effects are exactly those up to the
    position, whatever the journal."""
    for mode in ("DELETE", "WAL"):
        with RecordedDisk(f"{scratch}/{mode}", keep=True) as disk:
            boundaries = [(disk.count, 0)]
            with closing(database(disk.folder, mode)) as connection:
                cursor = SqliteCursor(connection, "me", "vmapi")
                cursor.load()
                for seq in range(1, 7):
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute("INSERT INTO effects VALUES (?)", (seq,))
                    cursor.save(position(seq))
                    connection.execute("COMMIT")
                    boundaries.append((disk.count, seq))
            for at in range(disk.count + 1):
                folder = f"{scratch}/{mode}-{at}"
                lay_out(folder, disk.survivors(at, random.Random(at)))
                with closing(database(folder, mode)) as connection:
                    effects = [n for (n,) in connection.execute("SELECT n FROM effects ORDER BY n")]
                    held = SqliteCursor(connection, "me", "vmapi").load()
                    seq = 0 if held is None else held.seq
                    assert effects == list(range(1, seq + 1)), f"{mode}, boundary {at}"
                    if mode == "WAL":
                        # With a rollback journal SQLite's FULL may undo the last one: its journal's removal is not
                        # synced. Then effect and position go back together.
                        assert seq >= max(number for boundary, number in boundaries if boundary <= at)


def database(folder: str, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{folder}/app.db", isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.execute("CREATE TABLE IF NOT EXISTS effects (n INTEGER PRIMARY KEY)")
    return connection


def test_the_file_coordinator_s_record_is_not_lost(scratch: str) -> None:
    """An epoch that was won is in the record after a loss of power, whole, and its folder with it; also where the
    folder and those above it were new. (The folders' own names were never synced.)"""
    os.mkdir(f"{scratch}/tree")
    won: list[tuple[int, int]] = [(0, 0)]
    known: list[tuple[int, str]] = []

    def coordinator(folder: str, seed: int) -> FileCoordinator:
        path = f"{folder}/a/b/coordinator"
        return FileCoordinator(f"file:{path}", path, world=World(entropy=SeededEntropy(seed)))

    async def lead() -> None:
        mine = coordinator(f"{scratch}/tree", 1)
        with tree:
            await mine.start(Member("i1", "p1", "ws://127.0.0.1:1"))
            known.append((tree.count, mine.state().id))
            view = await mine.read("vmapi")
            for _ in range(4):
                view = await mine.challenge("vmapi", view)
                assert view is not None
                won.append((tree.count, view.epoch))
            await mine.resign("vmapi", view.epoch)
            await mine.aclose()

    async def found(folder: str) -> tuple[int, str]:
        mine = coordinator(folder, 2)
        await mine.start(Member("i2", "p2", "ws://127.0.0.1:2"))
        view = await mine.read("vmapi")
        taken = await mine.take("vmapi", view)
        assert taken is not None and taken.epoch == view.epoch + 1, "nobody leads, so the lead can be taken"
        await mine.aclose()
        return view.epoch, mine.state().id

    def judge(folder: str, at: int) -> None:
        epoch, id = trio.run(found, folder)
        least = max(number for boundary, number in won if boundary <= at)
        most = min([number for boundary, number in won if boundary > at] + [4])
        assert least <= epoch <= most, f"boundary {at}: epoch {epoch}, won {least}"
        for boundary, name in known:
            assert at < boundary or id == name, f"boundary {at}: the coordinator has forgotten its id"

    with calls_in_place():
        tree = RecordedTree(f"{scratch}/tree")
        trio.run(lead)
        losses(tree, scratch, judge)


def test_a_new_log_s_folder_is_durable_with_those_above_it(scratch: str) -> None:
    """A log that is opened in folders that were not there: when the opening returns, all their names are synced. (Only
    the last one was.)"""
    os.mkdir(f"{scratch}/tree")

    async def open_log() -> None:
        store = SqliteLogStore("sqlite:", f"{scratch}/tree/new/newer/log")
        with tree:
            log = await store.open("vmapi")
        await log.aclose()

    with calls_in_place():
        tree = RecordedTree(f"{scratch}/tree")
        trio.run(open_log)
    tree.rebuild(f"{scratch}/lost", tree.count, random.Random(1), Manner("nothing"))
    assert os.path.isdir(f"{scratch}/lost/new/newer/log")
