"""What is left when everything has stopped: the log, read directly from its store; the readers' own databases; and what
a flipped byte in a copy of the log comes to (F17)."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from changefeed.batch import Entry
from changefeed.errors import ChangefeedError, LogDamaged
from changefeed.history.facts import entry_facts
from changefeed.history.records import read_file
from changefeed.log.urls import open_log
from changefeed.log.verify import verify_log
from simulations.chaos.processes import Node
from simulations.chaos.recorder import Recorder
from simulations.chaos.stage import FEED, Stage

READ_BYTES: Final = 4 * 2**20
FLIPS: Final = 1


async def dump_log(stage: Stage, ahead_ns: int, witnessed: Sequence[Entry]) -> None:
    """The log and its entries; the commits and trims as the log's own triggers noted them. ahead_ns: by how much the
    wall clock is ahead of the monotonic one. witnessed: what was seen of the log earlier."""
    records = Recorder(stage.history / "end.jsonl", "end", 1, FEED)
    _dump_store(stage, ahead_ns)
    log = await open_log(f"sqlite:{stage.log_folder}").open(FEED, create=False)
    try:
        look = await log.look()
        trimmed = [entry for entry in witnessed if entry.last_seq <= look.floor.seq]
        records.write_all(("entry", entry_facts(entry, look.lineage)) for entry in trimmed)
        records.write("log", lineage=look.lineage, tail=look.tail.seq, floor=look.floor.seq)
        after = look.floor.seq
        while entries := await log.read(after, READ_BYTES):
            records.write_all(("entry", entry_facts(entry, look.lineage)) for entry in entries)
            after = entries[-1].last_seq
    finally:
        await log.aclose()
    for node in stage.subscribers.values():
        write_effects(records, node, f"{look.lineage}.0.00000000.0")


def write_effects(records: Recorder, node: Node, beginning: str) -> None:
    """What a reader with a database of its own has in it. beginning: the log's first position."""
    given = node.given(node.life)
    if given["kind"] != "sqlite":
        return
    with sqlite3.connect(given["store"]) as connection:
        keys = [id for (id,) in connection.execute("SELECT id FROM effects ORDER BY place")]
        row = connection.execute("SELECT position FROM changefeed_cursors").fetchone()
    connection.close()
    position = {} if row is None else {"position": row[0]}
    origin = _origin(node.history) or beginning
    records.write("effects", reader=node.name, origin=origin, keys=keys, **position)


def _origin(history: Path) -> str | None:
    """The position after which a reader's database begins: where it was first connected since it last began anew."""
    origin = None
    for record in read_file(history):
        if record["f"] == "refused":
            origin = None
        elif record["f"] == "connected":
            origin = origin or str(record["position"])
    return origin


def _dump_store(stage: Stage, ahead_ns: int) -> None:
    """When something was committed is known to the millisecond, rounded down."""
    records = Recorder(stage.history / "store.jsonl", "store", 1, FEED)
    found: list[tuple[int, str, dict[str, Any]]] = []
    with sqlite3.connect(stage.log_file) as connection:
        for epoch, term, first, end, fence, fence_term, wall_ms in connection.execute(
            "SELECT epoch, term, first, last, fence, fence_term, wall_ms FROM chaos_commits ORDER BY place"
        ):
            facts = {"epoch": epoch, "term": term, "first": first, "last": end, "fence": fence}
            found.append((wall_ms, "commit", {**facts, "fence_term": fence_term}))
        for floor, wall_ms in connection.execute("SELECT floor, wall_ms FROM chaos_trims ORDER BY place"):
            found.append((wall_ms, "trimmed", {"floor": floor}))
    connection.close()
    last = 0
    for wall_ms, f, told in sorted(found, key=itemgetter(0)):
        last = max(last, wall_ms * 10**6 - ahead_ns)
        records.lines.append({**records.record(f, told), "t": last})


def wall_ahead_ns() -> int:
    """By how much the wall clock is ahead of the monotonic one."""
    return time.time_ns() - time.monotonic_ns()


async def flip_bytes(stage: Stage, chance: random.Random) -> None:
    """Flip single bits of changes in copies of the log: whoever opens or walks it must notice."""
    for number in range(FLIPS):
        copy = stage.folder / f"flipped-{number}"
        copy.mkdir()
        path = copy / f"{FEED}.db"
        for suffix in ("", "-wal"):
            source = stage.log_file.with_name(stage.log_file.name + suffix)
            if source.exists():
                shutil.copy(source, path.with_name(path.name + suffix))
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
            (payload,) = connection.execute(
                "SELECT payload FROM entries ORDER BY seq LIMIT 1 OFFSET ?", (chance.randrange(entries),)
            ).fetchone()
        connection.close()
        async with stage.fault("flip-byte", path.name, ("damage-detected",)) as doing:
            at = _flip(path, bytes(payload), chance)
            if not at:
                doing.effect("missed")
            elif await _noticed(copy):
                doing.effect("damage-detected", at=at)
            else:
                stage.wrong.append(f"a bit flipped at {at} of {path} was not noticed")
        shutil.rmtree(copy)


def _flip(path: Path, payload: bytes, chance: random.Random) -> int:
    """Flip a bit of a payload where it stands in the file; returns where, 0 if it was not found in one piece."""
    piece = payload[:64]
    data = bytearray(path.read_bytes())
    begin = data.find(piece)
    if begin < 0:
        return 0
    at = begin + chance.randrange(len(piece))
    data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return at


async def _noticed(folder: Path) -> bool:
    try:
        log = await open_log(f"sqlite:{folder}").open(FEED, create=False)
    except LogDamaged:
        return True
    try:
        return (await verify_log(log)).fault is not None
    except ChangefeedError:
        return True
    finally:
        await log.aclose()
