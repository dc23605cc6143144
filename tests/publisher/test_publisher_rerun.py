"""A named publisher runs again: what the log holds is asked for in large pieces, and every line gets its own receipt.

How the first run cut its lines is not known. The leader answers as far as positions are a run; the rest of a piece is
asked for again.
"""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
from hypothesis import given
from model_leader import ModelLeader, change, settings
from publisher_steps import connect, make, refused, sent, stored, submit

from changefeed.errors import NumberReused, NumberSkipped, OutcomeUnknown
from changefeed.publisher.groups import Group, Leave
from changefeed.publisher.machine import PublisherMachine
from changefeed.wire.changes import encode_change
from changefeed.wire.messages import Answer, Open, Opened, Publish


def numbers(publishes: list[Publish]) -> list[range]:
    return [range(one.number, one.number + sum(one.sizes)) for one in publishes]


def test_what_is_beyond_the_last_number_is_not_asked_for_together_with_what_is_known() -> None:
    """A batch is known to its end, or new from its beginning."""
    machine = make(named=True)
    connect(machine, last=3)
    groups = [submit(machine, f"line-{number}", number=number) for number in range(1, 7)]
    known = sent(machine)
    assert numbers(known) == [range(1, 2), range(2, 3), range(3, 4), range(4, 7)]
    assert known[-1].after == 3
    for publish, seq in zip(known, (11, 12, 17, 30), strict=True):
        machine.received(stored(publish, seq, repeated=publish.number < 4))
    receipts = [group.receipt for group in groups]
    assert [receipt and receipt.position.seq for receipt in receipts] == [11, 12, 17, 30, 31, 32]


def test_pieces_grow_and_the_rest_of_one_is_asked_for_again() -> None:
    """The next pieces are as large as what came back; each group gets the receipt of its own place."""
    machine = make(named=True, in_flight_max=1)
    connect(machine, last=20)
    groups = [submit(machine, f"line-{number}", number=number) for number in range(1, 21)]
    asked: list[range] = []
    # Two batches of the first run: 1 to 9 at seq 101, 10 to 20 at seq 201.
    while publishes := sent(machine):
        asked += numbers(publishes)
        first, count = publishes[0].number, sum(publishes[0].sizes)
        part = min(count, 10 - first) if first < 10 else count
        seq = 100 + first if first < 10 else 191 + first
        answer = stored(publishes[0], seq, repeated=True)
        machine.received(Answer(answer.number, part, answer.first, True))
    assert asked == [range(1, 2), range(2, 4), range(4, 8), range(8, 16), range(10, 14), range(14, 21)]
    seqs = [group.receipt.position.seq for group in groups if group.receipt is not None]
    assert seqs == [*range(101, 110), *range(201, 212)]
    assert (machine.buffered_bytes, machine.unacknowledged) == (0, 0)


def test_only_a_known_batch_may_be_answered_in_part() -> None:
    """A new batch is stored whole, groups are whole, and nothing is answered of more than was asked."""
    for held, sizes, count in ((0, (1, 1), 1), (4, (2, 2), 1), (4, (2, 2), 5)):
        machine = make(named=True, in_flight_max=4)
        connect(machine, last=held)
        machine._cut.whole(50)
        number = 1
        for size in sizes:
            submit(machine, *("abc"[:size]), number=number)
            number += size
        (publish,) = sent(machine)
        answer = stored(publish, 7, repeated=True)
        (effect,) = machine.received(Answer(answer.number, count, answer.first, True))
        assert isinstance(effect, Leave) and "speaks of" in str(effect.error)
        assert machine.unacknowledged == sum(sizes)


def test_what_was_trimmed_ends_as_unknown_only_as_far_as_the_answer_goes() -> None:
    machine = make(named=True, in_flight_max=1)
    connect(machine, last=4)
    machine._cut.whole(2)
    groups = [submit(machine, f"line-{number}", number=number) for number in range(1, 5)]
    (publish,) = sent(machine)
    assert numbers([publish]) == [range(1, 5)]
    machine.received(Answer(1, 1, code="outcome-unknown", message="trimmed"))
    assert isinstance(groups[0].error, OutcomeUnknown) and not groups[1].settled
    while publishes := sent(machine):
        machine.received(stored(publishes[0], 10 + publishes[0].number, repeated=True))
    assert [group.receipt is None for group in groups] == [True, False, False, False]


def test_a_changed_line_of_a_rerun_stops_it_after_the_lines_before_it() -> None:
    machine = make(named=True, in_flight_max=1)
    connect(machine, last=4)
    machine._cut.whole(2)
    groups = [submit(machine, f"line-{number}", number=number) for number in range(1, 5)]
    (publish,) = sent(machine)
    answer = stored(publish, 1, repeated=True)
    machine.received(Answer(1, 2, answer.first, True))
    (publish,) = sent(machine)
    assert publish.number == 3
    machine.received(refused(publish, "number-reused"))
    assert [group.receipt is not None for group in groups] == [True, True, False, False]
    assert isinstance(groups[2].error, NumberReused) and isinstance(groups[3].error, NumberReused)
    assert isinstance(machine.stopped, NumberReused)


def test_a_line_that_comes_too_late_is_refused_alone() -> None:
    """It was refused in the first run (the log was full), and later lines were stored: the rerun goes on behind it."""
    machine = make(named=True, in_flight_max=1)
    connect(machine, last=4)
    machine._cut.whole(4)
    groups = [submit(machine, f"line-{number}", number=number) for number in range(1, 6)]
    (publish,) = sent(machine)
    answer = stored(publish, 1, repeated=True)
    machine.received(Answer(1, 1, answer.first, True))
    while publishes := sent(machine):
        (publish,) = publishes
        count = sum(publish.sizes)
        if publish.number == 2:
            machine.received(refused(publish, "number-skipped"))
        else:
            machine.received(stored(publish, 10 + publish.number, repeated=publish.number + count - 1 <= 4))
    assert [group.receipt is not None for group in groups] == [True, False, True, True, True]
    assert isinstance(groups[1].error, NumberSkipped)
    assert machine.stopped is None and machine.unacknowledged == 0


def test_a_rest_keeps_its_place_when_the_connection_ends() -> None:
    """What was sent behind later numbers is sent again before them, and new numbers chain to the last one held."""
    machine = make(named=True)
    connect(machine, last=6)
    machine._cut.whole(2)
    for number in range(1, 9):
        submit(machine, f"line-{number}", number=number)
    publishes = sent(machine)
    assert numbers(publishes) == [range(1, 5), range(5, 7), range(7, 9)]
    machine.received(Answer(1, 1, stored(publishes[0], 1).first, True))
    assert numbers(sent(machine)) == [range(2, 4)]
    machine.disconnected()
    connect(machine, last=6)
    again = sent(machine)
    assert numbers(again) == [range(2, 4), range(5, 7), range(7, 9)]
    assert again[-1].after == 6
    machine.received(stored(again[0], 2, repeated=True))
    machine.received(stored(again[1], 5, repeated=True))
    machine.received(stored(again[2], 7))
    assert numbers(sent(machine)) == [range(4, 5)]


@given(st.data())
def test_every_line_of_any_rerun_gets_its_own_receipt(data: st.DataObject) -> None:
    """Any first run, any cut, foreign batches between, connections that end at any moment."""
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=40), "groups")
    leader = ModelLeader(in_flight_max=data.draw(st.integers(1, 5), "in flight"))
    before = data.draw(st.integers(0, len(sizes)), "groups of the first run")
    first_run(leader, sizes[:before], data)
    rerun(leader, sizes, data)


def lines_of(number: int, size: int) -> list[str]:
    return [f"line-{number + index}" for index in range(size)]


def first_run(leader: ModelLeader, sizes: list[int], data: st.DataObject) -> None:
    """Store these groups, cut anyhow, with batches of others between them."""
    granted = leader.open(Open("vmapi", "p", "old", True))
    assert isinstance(granted, Opened)
    number, rest = 1, deque(sizes)
    while rest:
        batch = [rest.popleft() for _ in range(data.draw(st.integers(1, len(rest))))]
        payload = b"".join(encode_change(change(id), 1000) for id in lines_of(number, sum(batch)))
        leader.publish("p", granted.incarnation, Publish(number - 1, number, tuple(batch), payload))
        number += sum(batch)
        leader.log += [change("foreign")] * data.draw(st.integers(0, 2))


def rerun(leader: ModelLeader, sizes: list[int], data: st.DataObject) -> None:
    machine = PublisherMachine("vmapi", "p", "new", settings(in_flight_max=leader.in_flight_max), named=True)
    groups: list[Group] = []
    sends = 0
    for round in range(1000):
        link: deque[Answer] = deque()
        machine.connected(0.0)
        request = machine.take(0.0)
        assert isinstance(request, Open)
        granted = leader.open(request)
        machine.received(granted)
        assert isinstance(granted, Opened)
        if not groups:
            for size in sizes:
                number = 1 + sum(group.count for group in groups)
                groups.append(submit(machine, *lines_of(number, size), number=number))
        lasts = data.draw(st.integers(1, 30), "steps") if round < 10 else 10_000
        for _ in range(lasts):
            message = machine.take(0.0)
            if message is not None:
                sends += 1
                link.append(leader.publish("p", granted.incarnation, message))
            if link and (message is None or data.draw(st.booleans())):
                machine.received(link.popleft())
            if not link and message is None:
                break
        if all(group.settled for group in groups):
            break
        machine.disconnected()
    where = {one.id: seq for seq, one in enumerate(leader.log, 1)}
    for group in groups:
        assert group.receipt is not None
        seqs = list(range(group.receipt.first.seq, group.receipt.last.seq + 1))
        assert seqs == [where[id] for id in lines_of(group.number, group.count)]
    assert (machine.buffered_bytes, machine.unacknowledged, machine.last_number) == (0, 0, sum(sizes))
