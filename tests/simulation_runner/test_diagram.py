"""The space-time diagram: who did what to whom, in order, readable at 120 columns."""

from __future__ import annotations

from typing import Any

from fake_tier import history_of, position

from changefeed.simulation.diagram import COLUMNS_MAX, LEGEND, WIDTH, Diagram, focus_of, seq_of


def drawn(history: list[dict[str, Any]], *abouts: dict[str, Any], **options: Any) -> list[str]:
    return Diagram(history, abouts).lines(**options)


def line_with(lines: list[str], words: str) -> str:
    found = [line for line in lines if words in line]
    assert len(found) == 1, found
    return found[0]


def column(lines: list[str], name: str) -> int:
    return next(line for line in lines if "time s" in line).index(f" {name}") + 1


def test_columns_are_nemesis_instances_publishers_readers() -> None:
    """One column per node, in the order in which an event travels; what comes after the run has none."""
    head = drawn(history_of(1))[0]
    assert head.split() == ["time", "s", "nem", "a", "b", "p0", "p1", "s0", "s1"]


def test_arrows_go_from_who_acts_to_whom_it_reaches() -> None:
    """A receipt comes from whoever appended it, a delivery from the instance that serves, a fault hits its target."""
    lines = drawn(history_of(1), rows=100)
    receipt = line_with(lines, "p0 gets its receipt 1:1")
    assert receipt[column(lines, "p0")] == "R"
    assert receipt[column(lines, "a") : column(lines, "p0")].startswith("┃─")
    assert receipt[column(lines, "p0") - 1] == ">"
    assert receipt[column(lines, "b")] == "┼"  # crossed
    kill = line_with(lines, "kill a")
    assert kill[column(lines, "nem")] == "X"
    assert kill[column(lines, "a") - 1] == ">"


def test_lives_show_who_leads_is_frozen_and_down() -> None:
    """A leader's line is thick until it is deposed or killed; one that was killed has none; a frozen one is dotted."""
    history = history_of(1)
    at = history[-1]["t"] + 1
    more = [
        {"t": at, "node": "nemesis", "life": 1, "f": "fault", "id": 2, "kind": "freeze", "target": "b"},
        {"t": at + 1, "node": "p0", "life": 1, "f": "submit", "op": 90, "keys": ["k90"]},
        {"t": at + 2, "node": "nemesis", "life": 1, "f": "over", "id": 2},
        {"t": at + 3, "node": "p0", "life": 1, "f": "submit", "op": 91, "keys": ["k91"]},
        {"t": at + 4, "node": "b", "life": 1, "f": "deposed", "epoch": 2, "why": "overtaken"},
        {"t": at + 5, "node": "p0", "life": 1, "f": "submit", "op": 92, "keys": ["k92"]},
    ]
    lines = drawn([*history, *more], rows=100)
    a, b = column(lines, "a"), column(lines, "b")
    assert line_with(lines, "p1 submits k1")[a] == "┃"
    assert line_with(lines, "p0 submits k4")[a] == " "
    assert line_with(lines, "p0 submits k4")[b] == "┃"
    assert line_with(lines, "p0 submits k90")[b] == ":"
    assert line_with(lines, "p0 submits k91")[b] == "┃"
    assert line_with(lines, "p0 submits k92")[b] == "│"


def test_deliveries_are_joined_but_never_across_an_append() -> None:
    """Events and saves of one reader that nothing came between are one row; a filter's gaps are told as counts."""
    base = {"node": "s0", "life": 1}
    history: list[dict[str, Any]] = [
        {"t": 1, **base, "f": "connected", "instance": "a", "position": position(1, 0)},
        {"t": 2, **base, "f": "event", "position": position(1, 1), "key": "k1"},
        {"t": 3, **base, "f": "handled", "position": position(1, 1)},
        {"t": 4, **base, "f": "event", "position": position(1, 4), "key": "k4"},
        {"t": 5, "node": "a", "life": 1, "f": "append", "epoch": 1, "first": 5, "last": 5, "outcome": "stored"},
        {"t": 6, **base, "f": "event", "position": position(1, 5), "key": "k5"},
        {"t": 900_000_000, **base, "f": "event", "position": position(1, 6), "key": "k6"},
    ]
    lines = drawn(history)
    assert line_with(lines, "s0 gets 2 of 1:1-4 from a, saved 1")
    assert line_with(lines, "s0 gets 1:5 from a")
    assert line_with(lines, "s0 gets 1:6 from a")


def test_the_place_where_it_broke_is_marked_and_what_led_there_is_drawn() -> None:
    """An index into the whole history finds its row, also in the tail of a history; the rest is counted."""
    history = history_of(1, groups=60)
    place = next(n for n, record in enumerate(history) if record.get("op") == 20 and record["f"] == "acked")
    lines = drawn(history, {"record": place, "keys": ["k3"]})
    marked = [line for line in lines if line.startswith("»")]
    assert [line.split("  ")[-1].strip() for line in marked[:-1]] == ["p0 gets its receipt 1:21"]
    assert line_with(lines, "p1 submits k3")
    assert any("… " in line and line.endswith(" steps") for line in lines)
    assert line_with(lines, "everybody has come to the end")

    tail = Diagram(history[30:], [{"record": place}], left_out=30).lines()
    assert line_with(tail, "p0 gets its receipt 1:21").startswith("»")


def test_lines_fit_into_120_columns_however_many_nodes_there_are() -> None:
    """Nodes that do nothing in the rows that are drawn are left out, and named."""
    history: list[dict[str, Any]] = [
        {"t": n, "node": f"p{n}", "life": 1, "f": "submit", "op": n, "keys": [f"key-{n}-{m}" for m in range(9)]}
        for n in range(40)
    ]
    lines = drawn(history, rows=8)
    assert max(len(line) for line in lines) <= WIDTH
    assert len(lines[0].split()) == COLUMNS_MAX + 2
    assert {f"p{n}" for n in range(32, 40)} <= set(lines[0].split())
    assert any(line.startswith("(no room for p") for line in lines)
    assert lines[-len(LEGEND) :] == list(LEGEND)


def test_records_that_nobody_knows_are_shown_as_they_are() -> None:
    lines = drawn([{"t": 5, "node": "z", "life": 1, "f": "sneezed", "feed": "", "how": "loudly"}])
    assert line_with(lines, "z sneezed how=loudly")


def test_an_empty_history_says_so() -> None:
    assert drawn([]) == ["(the history holds no steps)"]
    assert drawn([{"t": 0, "node": "end", "life": 1, "f": "log"}]) == ["(the history holds no steps)"]


def test_seqs_are_found_in_positions_numbers_and_facts() -> None:
    assert [seq_of(value) for value in (position(3, 41), 7, "x", None, True)] == [41, 7, 0, 0, 0]
    assert focus_of([{"keys": ["a"], "key": "b"}, {"seqs": [1, 2], "first": position(1, 9), "more": 3}]) == (
        {"a", "b"},
        {1, 2, 9},
    )
