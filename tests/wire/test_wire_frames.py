"""Runs: cutting entries above a position and by a filter, and turning them back into events."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from changefeed.batch import Entry
from changefeed.change import Change, Position
from changefeed.errors import BadMessage
from changefeed.testing.strategies import entries
from changefeed.testing.strategies import events as frames
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.changes import decode_change, encode_change, split
from changefeed.wire.codec import decode, encode
from changefeed.wire.frames import events_of, run_of
from changefeed.wire.messages import Events, Run

LINEAGE = "a" * 16


def change(index: int) -> bytes:
    return encode_change(Change("vm", f"v{index}", "update", ("n",), {"index": index}), 1000)


def entry_of(sizes: tuple[int, ...], first: int = 10) -> Entry:
    payload = b"".join(map(change, range(sum(sizes))))
    return Entry(3, "b" * 8, first, 7, "p", 1, 0, 1, sizes, payload, b"d" * 8)


def frame(entry: Entry, after: int, run: Run | None) -> Events:
    to = Position(LINEAGE, entry.epoch, entry.term, entry.last_seq)
    return Events(after, to, () if run is None else (run,))


def test_an_entry_that_nobody_filters_is_shared() -> None:
    """The run holds the very bytes object of the log: nothing is copied per subscriber."""
    entry = entry_of((1, 1, 1))
    for after in (0, 9):
        run = run_of(entry, after)
        assert run is not None and run.payload is entry.payload
        assert (run.seqs, run.groups) == (10, None)
    everything = run_of(entry, 9, lambda *parts: True)
    assert everything is not None and everything.payload is entry.payload


def test_nothing_above_the_position_is_no_run() -> None:
    """An entry that was handled entirely, or of which nothing is wanted, gives None: a bookmark."""
    entry = entry_of((2, 1))
    assert run_of(entry, 12) is None
    assert run_of(entry, 99, lambda *parts: True) is None
    assert run_of(entry, 9, lambda *parts: False) is None
    assert run_of(entry, 11, lambda resource, id, op, fields: id == "v1") is None


@pytest.mark.parametrize(
    ("after", "wanted", "seqs", "groups", "events"),
    [
        (9, "012345", 10, ((10, 1), (11, 2), (13, 3)), "10:10! 11:11 12:11! 13:13 14:13 15:13!"),
        (10, "012345", 11, ((11, 2), (13, 3)), "11:11 12:11! 13:13 14:13 15:13!"),
        (11, "012345", 12, ((11, 1), (13, 3)), "12:11! 13:13 14:13 15:13!"),
        (13, "012345", 14, ((13, 2),), "14:13 15:13!"),
        (14, "012345", 15, ((13, 1),), "15:13!"),
        (9, "0", 10, None, "10:10!"),
        (9, "01", 10, None, "10:10! 11:11!"),
        (9, "2", 12, ((11, 1),), "12:11!"),
        (9, "135", (11, 13, 15), ((11, 1), (13, 2)), "11:11! 13:13 15:13!"),
        (9, "034", (10, 13, 14), ((10, 1), (13, 2)), "10:10! 13:13 14:13!"),
        (13, "1345", 14, ((13, 2),), "14:13 15:13!"),
        (9, "45", 14, ((13, 2),), "14:13 15:13!"),
        (9, "3", 13, None, "13:13!"),
    ],
)
@pytest.mark.parametrize("subprotocol", [MSGPACK, JSON])
def test_cuts(
    after: int,
    wanted: str,
    seqs: int | tuple[int, ...],
    groups: tuple[tuple[int, int], ...] | None,
    events: str,
    subprotocol: str,
) -> None:
    """An entry 10-15 with groups of 1, 2, 3: seq:group of each event, ! where `last` is set."""
    entry = entry_of((1, 2, 3))
    run = run_of(entry, after, lambda resource, id, op, fields: id[1:] in wanted)
    assert run is not None
    assert (run.seqs, run.groups) == (seqs, groups)
    message = decode(encode(frame(entry, after, run), subprotocol), subprotocol)
    made = events_of(message, LINEAGE)
    assert " ".join(f"{e.seq}:{e.group}{'!' * e.last}" for e in made) == events
    for event in made:
        assert event.position == Position(LINEAGE, 3, "b" * 8, event.seq)
        assert (event.time, event.publisher, event.op, event.fields) == (7, "p", "update", ("n",))
        assert event.id == f"v{event.seq - 10}" and event.body == {"index": event.seq - 10}
        assert event.body is event.body


@given(entries(), st.data())
def test_any_cut_of_any_entry(entry: Entry, data: st.DataObject) -> None:
    """Against the plain definition: the wanted changes above the position, each with its seq, group, and whether a
    later one of its group follows."""
    after = data.draw(st.integers(entry.seq - 2, entry.last_seq + 1))
    chosen = data.draw(st.none() | st.sets(st.integers(0, entry.count - 1)))
    parts = split(entry.payload)
    firsts = [
        first
        for first, size in zip(accumulate(entry.sizes, initial=entry.seq), entry.sizes, strict=False)
        for _ in range(size)
    ]
    places = [
        (seq, firsts[seq - entry.seq], parts[seq - entry.seq])
        for seq in range(max(after + 1, entry.seq), entry.last_seq + 1)
        if chosen is None or seq - entry.seq in chosen
    ]
    calls = iter(range(entry.count)) if chosen is None else iter(range(max(0, after + 1 - entry.seq), entry.count))
    run = run_of(entry, after, None if chosen is None else lambda *parts: next(calls) in (chosen or ()))
    if run is None:
        assert not places
        return
    assert run.payload == b"".join(part for _, _, part in places)
    made = events_of(frame(entry, after, run), LINEAGE)
    assert [(e.seq, e.group) for e in made] == [(seq, group) for seq, group, _ in places]
    assert [e.change for e in made] == [decode_change(part) for _, _, part in places]
    groups = [group for _, group, _ in places]
    assert [e.last for e in made] == [b != a for a, b in zip(groups, [*groups[1:], None], strict=True)]


@given(frames())
def test_events_come_in_order_and_json_gives_the_same(message: Events) -> None:
    """Seqs grow; every group ends; a JSON subscriber sees what a msgpack one sees."""
    made = events_of(message, LINEAGE)
    assert [e.seq for e in made] == sorted({e.seq for e in made})
    assert all(message.after < e.seq <= message.to.seq and e.group <= e.seq for e in made)
    assert not made or made[-1].last
    assert events_of(decode(encode(message, JSON), JSON), LINEAGE) == made


def test_a_bookmark_has_no_events() -> None:
    """A frame without runs moves the position only."""
    assert events_of(frame(entry_of((1,)), 9, None), LINEAGE) == []


def test_frames_that_contradict_themselves_are_refused() -> None:
    """A broken server is noticed instead of believed."""
    entry = entry_of((1, 2, 3))
    run = run_of(entry, 9)
    assert run is not None
    for bad, sentence in (
        (replace(run, seqs=(10, 11)), "2 seqs for 6 changes"),
        (replace(run, seqs=11), "not within"),
        (replace(run, seqs=9), "not within"),
        (replace(run, payload=b""), "empty"),
        (replace(run, payload=run.payload[:-1]), "the payload ends inside"),
        (replace(run, groups=((10, 1),)), "groups have 1 events, but it has 6"),
        (replace(run, groups=((10, 1), (14, 2), (13, 3))), "out of order"),
        (replace(run, groups=((12, 6),)), "out of order"),
    ):
        with pytest.raises(BadMessage, match=sentence):
            events_of(frame(entry, 9, bad), LINEAGE)


def test_a_damaged_entry_is_noticed_where_it_is_cut() -> None:
    """Sizes that do not fit the payload are an error, not a wrong cut."""
    entry = replace(entry_of((1, 2, 3)), sizes=(1, 2, 4))
    for wanted in (None, lambda *parts: True):
        with pytest.raises(BadMessage, match="holds 6 changes, but its sizes add up to 7"):
            run_of(entry, 10, wanted)
