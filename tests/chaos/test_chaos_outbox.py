"""A publisher of the run: what it submits follows from its name and a count, so that its history is its outbox."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from simulations.chaos.nodes.publisher import Given, Outbox, drawn
from simulations.chaos.recorder import Recorder


def given(folder: Path, *, life: int, named: bool) -> Given:
    return Given(
        name="p1", life=life, feed="chaos", servers="", history=str(folder / "p1.jsonl"), gauge="", seed=5,
        named=named, per_s=100, sizes=(1, 9), ahead=8,
    )  # fmt: skip


def submit(records: Recorder, group: object) -> None:
    records.write("submit", op=group.op, keys=[c.id for c in group.changes], number=group.number, count=group.count)  # type: ignore[attr-defined]


def test_a_named_publisher_goes_on_with_what_has_no_outcome(tmp_path: Path) -> None:
    """The same changes under the same numbers, in their order; then new ones behind the last number given out."""
    first = list(islice(Outbox(given(tmp_path, life=1, named=True)), 6))
    records = Recorder(tmp_path / "p1.jsonl", "p1", 1, "chaos")
    for group in first:
        submit(records, group)
    for group in (first[0], first[1], first[3]):
        records.write("acked", op=group.op, first="", last="", repeated=False)
    again = list(islice(Outbox(given(tmp_path, life=2, named=True)), 5))
    assert again[:3] == [first[2], first[4], first[5]]
    assert again[3].number == first[5].number + len(first[5].changes)
    assert again[3].count == 7


def test_numbers_are_dense(tmp_path: Path) -> None:
    groups = list(islice(Outbox(given(tmp_path, life=1, named=True)), 50))
    expected = 1
    for group in groups:
        assert group.number == expected
        expected += len(group.changes)


def test_a_line_that_a_kill_cut_off_was_never_submitted(tmp_path: Path) -> None:
    """Its op comes again as if for the first time: nobody was asked for it."""
    first = list(islice(Outbox(given(tmp_path, life=1, named=True)), 2))
    records = Recorder(tmp_path / "p1.jsonl", "p1", 1, "chaos")
    submit(records, first[0])
    with (tmp_path / "p1.jsonl").open("ab") as file:
        file.write(b'{"t":1,"node":"p1","li')
    again = list(islice(Outbox(given(tmp_path, life=2, named=True)), 2))
    assert again == first


def test_an_unnamed_publisher_begins_anew_in_each_life(tmp_path: Path) -> None:
    """Under keys that were never used."""
    one, two = (drawn(given(tmp_path, life=life, named=False), 1, 0) for life in (1, 2))
    assert {c.id for c in one.changes}.isdisjoint(c.id for c in two.changes)
    assert one.number == 0
