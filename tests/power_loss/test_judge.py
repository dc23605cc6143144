"""The judge of a log that a loss of power left says what is wrong with it, and nothing of one that is right."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import trio

from changefeed.simulation.disk import RecordedDisk, calls_in_place
from changefeed.simulation.disk.judge import Wrong, recover
from changefeed.simulation.disk.recorded import lay_out
from changefeed.simulation.disk.workload import Life

LAST = "(SELECT max(last_seq) FROM entries)"


def lived(scratch: str) -> tuple[RecordedDisk, Life]:
    """A small log: three terms, publishers, settings, a trim, four appends of one batch."""

    async def run() -> None:
        await life.begin()
        await life.lead(clean=False)
        for name in ("p0", "p1"):
            await life.open_publisher(name, named=True)
        await life.append(1)
        await life.append(1)
        await life.trim()
        await life.set_settings()
        await life.lead(clean=True)
        await life.append(1)
        await life.append(1)
        await life.open_publisher("p7", named=False)
        await life.lead(clean=True)
        await life.end()

    disk = RecordedDisk(f"{scratch}/log", keep=True)
    life = Life(disk, "judged")
    with calls_in_place(), disk:
        trio.run(run)
    return disk, life


def judged(scratch: str, *statements: str, shown: int = 0) -> list[Wrong]:
    """What the judge says of the log after these statements, which no loss of power could have done."""
    disk, life = lived(scratch)
    lay_out(f"{scratch}/judged", disk.disk.content())
    with closing(sqlite3.connect(f"{scratch}/judged/vmapi.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    with RecordedDisk(f"{scratch}/judged") as left:
        found, _ = trio.run(recover, left, life.timeline.allowed(disk.count), shown, "judge")
    return found


def test_a_log_that_is_right_is_right(scratch: str) -> None:
    """Nothing was touched: nothing is wrong, and it was gone on with."""
    assert judged(scratch) == []


@pytest.mark.parametrize(
    ("promise", "says", "statements"),
    [
        ("damaged", "does not", ["UPDATE feed SET lineage = 'f' || substr(lineage, 2)"]),
        ("C1", "incarnations were given", ["UPDATE counters SET incarnations = incarnations - 1"]),
        (
            "C1",
            "fenced for epoch",
            [
                "DELETE FROM epochs WHERE epoch = (SELECT max(epoch) FROM epochs)",
                "UPDATE fence SET (epoch, term) = (SELECT epoch, term FROM epochs ORDER BY epoch DESC LIMIT 1)",
            ],
        ),
        ("C1", "settings of version 1", ["UPDATE settings SET version = 0"]),
        ("C1", "the settings are not those", ["UPDATE settings SET value = replace(value, '604800', '604801')"]),
        ("C1", "publisher p7: the log holds None", ["DELETE FROM publishers WHERE publisher = 'p7'"]),
        ("damaged", "does not", [f"DELETE FROM entries WHERE last_seq = {LAST}"]),
        ("damaged", "does not", [f"UPDATE entries SET payload = zeroblob(length(payload)) WHERE last_seq = {LAST}"]),
    ],
)
def test_what_is_wrong_is_named(scratch: str, promise: str, says: str, statements: list[str]) -> None:
    """Each thing that a log may have lost or mixed up."""
    found = judged(scratch, *statements)
    assert [(wrong.promise, says in wrong.says) for wrong in found] == [(promise, True)], found


def test_the_end_that_was_acknowledged_is_missed(scratch: str) -> None:
    """A log that is whole and ends earlier, as one before the last append was: lost; and shown before, C12."""
    disk, life = lived(scratch)
    last = [act for act in life.timeline.acts if act.what == "append"][-1]
    lay_out(f"{scratch}/earlier", disk.at(last.begun).content())
    tail = last.after.feeds["vmapi"].tail.seq
    for shown, promise in ((0, "C1"), (tail, "C12")):
        with RecordedDisk(f"{scratch}/earlier") as left:
            found, _ = trio.run(recover, left, life.timeline.allowed(disk.count), shown, "judge")
        assert [wrong.promise for wrong in found] == [promise], found


def test_a_state_between_two_calls_is_neither_before_nor_after(scratch: str) -> None:
    """An append that was never made, whole and chained: more than what was acknowledged, and not what was under way."""
    disk, life = lived(scratch)
    first = next(act for act in life.timeline.acts if act.what == "append")
    lay_out(f"{scratch}/later", disk.disk.content())
    with RecordedDisk(f"{scratch}/later") as left:
        found, _ = trio.run(recover, left, life.timeline.allowed(first.begun), 0, "judge")
    assert [wrong.promise for wrong in found] == ["atomic"], found
