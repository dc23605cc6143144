"""A publisher's connection as a pure thing: order of answers, bounds, what a lost leader means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from changefeed.change import Position
from changefeed.errors import BadMessage
from changefeed.serving.desk import Desk, Slot
from changefeed.wire.messages import Answer

POSITION = Position("0" * 16, 1, "0000000a", 1)


def answer(number: int) -> Answer:
    return Answer(number, 1, POSITION)


def test_answers_leave_in_the_order_of_the_batches() -> None:
    """Also those that come earlier than an earlier one."""
    desk = Desk(10)
    desk.opened()
    slots = [desk.take(number) for number in (1, 2, 3)]
    assert all(slots)
    desk.answered(slots[1], answer(2))  # type: ignore[arg-type]
    assert desk.next() is None
    desk.answered(slots[0], answer(1))  # type: ignore[arg-type]
    assert [desk.next(), desk.next(), desk.next()] == [answer(1), answer(2), None]
    assert not desk.idle


def test_nothing_is_taken_while_not_open() -> None:
    """Before the first Opened, and after a loss until the next one: the publisher sends those batches again."""
    desk = Desk(10)
    assert desk.take(1) is None
    opening = desk.opened()
    assert desk.take(1) is not None
    assert desk.lost(opening)
    assert desk.take(2) is None
    assert not desk.lost(opening), "told twice"


def test_more_batches_than_were_allowed_break_the_protocol() -> None:
    """An answer frees its slot only when it leaves: a peer that does not read does not grow what is kept for it."""
    desk = Desk(2)
    desk.opened()
    first = desk.take(1)
    assert first is not None and desk.take(2) is not None
    desk.answered(first, answer(1))
    with pytest.raises(BadMessage, match="in_flight_max"):
        desk.take(3)
    assert desk.next() == answer(1)
    assert desk.take(3) is not None


def test_a_loss_forgets_what_is_unanswered_and_keeps_what_may_leave() -> None:
    desk = Desk(10)
    opening = desk.opened()
    slots = [desk.take(number) for number in (1, 2, 3)]
    desk.answered(slots[0], answer(1))  # type: ignore[arg-type]
    desk.answered(slots[2], answer(3))  # type: ignore[arg-type]
    desk.lost(opening)
    assert [desk.next(), desk.next()] == [answer(1), None]
    assert desk.idle
    assert not desk.answered(slots[1], answer(2)), "an answer of a lost leader"  # type: ignore[arg-type]


def test_a_batch_that_nobody_will_answer_is_forgotten() -> None:
    desk = Desk(10)
    desk.opened()
    first, second = desk.take(1), desk.take(2)
    assert first is not None and second is not None
    desk.answered(second, answer(2))
    desk.forget(first)
    desk.forget(first)
    assert desk.next() == answer(2) and desk.idle


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "answer", "next", "lose", "open", "ask"]), st.integers(0, 5)), max_size=80
    )
)
def test_every_answer_is_of_the_running_opening_and_in_order(happens: list[tuple[str, Any]]) -> None:
    """Whatever comes in whatever order: within an opening the numbers answered are a prefix of those taken."""
    desk, under_way, old, number = Desk(4), list[Slot](), list[Slot](), 0
    taken, left = list[int](), list[int]()
    opening = 0
    for what, index in happens:
        if what == "take":
            number += 1
            try:
                slot = desk.take(number)
            except BadMessage:
                assert len(taken) - len(left) >= 4
                continue
            assert (slot is None) == (not desk.is_open)
            if slot is not None:
                taken.append(number)
                under_way.append(slot)
        elif what == "answer" and (under_way or old):
            pool = under_way or old
            slot = pool.pop(index % len(pool))
            assert desk.answered(slot, answer(slot.number)) == (pool is under_way and desk.is_open)
        elif what == "next":
            found = desk.next()
            if found is not None:
                left.append(found.number)
        elif what in ("lose", "open", "ask"):
            old += under_way
            under_way = []
            if what == "lose":
                desk.lost(opening)
            elif what == "ask":
                desk.closed()
                taken, left = [], []
            else:
                opening = desk.opened()
                taken, left = [], []
        assert left == taken[: len(left)]
