"""What a publisher decides, step by step: batches, numbers, and checks before anything is numbered."""

from __future__ import annotations

import pytest
from model_leader import change, position
from publisher_steps import connect, make, refused, sent, stored, submit

from changefeed.change import Resource
from changefeed.errors import (
    ChangeTooLarge,
    GroupTooLarge,
    InvalidChange,
    OutcomeUnknown,
    PublisherInUse,
    UnknownField,
    UnknownResource,
    UsageError,
)
from changefeed.publisher.groups import Go, Leave, Settled
from changefeed.wire.changes import split
from changefeed.wire.faults import fault_of
from changefeed.wire.messages import Answer, Beat, Limits, Open, Publish, Redirect

# ---- batches


def test_an_idle_publisher_sends_one_change_at_once() -> None:
    """No timer holds a change back: it leaves with the next chance to send."""
    machine = make()
    connect(machine)
    submit(machine, "a")
    (publish,) = sent(machine)
    assert (publish.after, publish.number, publish.sizes) == (0, 1, (1,))
    assert sent(machine) == []


def test_what_comes_before_the_sender_gets_its_turn_is_one_batch() -> None:
    """Changes that wait together leave together, in order, each group whole."""
    machine = make()
    connect(machine)
    for n in range(100):
        submit(machine, f"{n}-0", f"{n}-1")
    (publish,) = sent(machine)
    assert publish.sizes == (2,) * 100
    assert len(split(publish.payload)) == 200


def test_under_load_batches_fill_instead_of_multiplying() -> None:
    """With a quarter of the window unanswered, small batches wait: they grow up to the aim, which all can use."""
    machine = make(batch_bytes_aim=1600)
    connect(machine)
    first = []
    for n in range(200):
        submit(machine, f"change-{n:04}")
        first += sent(machine)
    assert len(first) < 16, "an endless trickle makes a bounded number of batches"
    assert len(first[0].sizes) == 1
    assert len(first[-1].sizes) > 10
    sizes = [len(publish.sizes) for publish in first]
    assert sizes == sorted(sizes)
    machine.received(stored(first[0], 1))
    later = sent(machine)
    assert all(len(publish.payload) <= 1600 for publish in later)


def test_never_more_batches_in_flight_than_the_server_allows() -> None:
    machine = make(batch_bytes_aim=64, in_flight_max=16)
    connect(machine, limits=Limits(2**20, 2**23, 2**24, 3, 10.0, 25.0))
    for n in range(50):
        submit(machine, f"change-{n:04}", body="x" * 60)
    first = sent(machine)
    assert len(first) == 3
    machine.received(stored(first[0], 1))
    assert [publish.number for publish in sent(machine)] == [4]


def test_a_group_larger_than_a_batch_is_sent_alone_and_whole() -> None:
    machine = make(batch_bytes_aim=100)
    connect(machine)
    submit(machine, "small-1")
    group = submit(machine, *[f"big-{n}" for n in range(50)])
    submit(machine, "small-2")
    publishes = sent(machine)
    assert [publish.sizes for publish in publishes] == [(1,), (50,), (1,)]
    assert [publish.after for publish in publishes] == [0, 1, 51]
    assert group.number == 2


def test_a_group_larger_than_the_buffer_is_admitted_when_nothing_else_is_kept() -> None:
    """The buffer bounds memory, but never makes an allowed group impossible."""
    machine = make(publisher_buffer_bytes=1000)
    big = machine.encode([change(f"{n}", body="x" * 100) for n in range(50)])
    small = machine.encode([change("a")])
    assert machine.has_room(big)
    machine.admit(big)
    assert not machine.has_room(small)
    connect(machine)
    (publish,) = sent(machine)
    machine.received(stored(publish, 1))
    assert machine.has_room(small)
    assert machine.buffered_bytes == 0


def test_a_resent_batch_is_the_same_bytes_under_the_same_numbers() -> None:
    """What was sealed is never cut or joined, whatever was submitted meanwhile."""
    machine = make()
    connect(machine)
    submit(machine, "a")
    submit(machine, "b")
    before = sent(machine)
    submit(machine, "c")
    machine.disconnected()
    submit(machine, "d")
    again = connect(machine)
    assert again.incarnation == 1
    after = sent(machine)
    assert after[0] == before[0]
    assert [publish.number for publish in after] == [1, 3]
    assert split(after[1].payload) == [machine.encode([change("c")]).payload, machine.encode([change("d")]).payload]


def test_stored_on_the_lost_connection_comes_back_as_repeated() -> None:
    machine = make()
    connect(machine)
    group = submit(machine, "a", "b")
    sent(machine)
    machine.disconnected()
    connect(machine, last=2)
    (publish,) = sent(machine)
    (effect,) = machine.received(stored(publish, 7, repeated=True))
    assert effect == Settled((group,))
    receipt = group.receipt
    assert receipt is not None
    assert (receipt.first, receipt.last, receipt.repeated) == (position(7), position(8), True)


def test_each_group_of_a_batch_gets_its_own_positions() -> None:
    machine = make()
    connect(machine)
    groups = [submit(machine, "a"), submit(machine, "b", "c"), submit(machine, "d")]
    (publish,) = sent(machine)
    machine.received(stored(publish, 10))
    spans = [(group.receipt.first.seq, group.receipt.last.seq) for group in groups if group.receipt]
    assert spans == [(10, 10), (11, 12), (13, 13)]
    assert machine.last_receipt == position(13)
    machine.disconnected()
    machine.connected(1.0)
    message = machine.take(1.0)
    assert isinstance(message, Open)
    assert message.last_receipt == position(13), "so that a log that lost it is noticed"


def test_an_answer_that_matches_nothing_is_dropped() -> None:
    machine = make()
    connect(machine)
    group = submit(machine, "a")
    (publish,) = sent(machine)
    assert machine.received(Answer(99, 1, position(5))) == []
    assert not group.settled
    machine.received(stored(publish, 1))
    assert machine.received(stored(publish, 2)) == []


@pytest.mark.parametrize("what", ["order", "count"])
def test_a_server_that_answers_wrongly_is_left(what: str) -> None:
    """An answer out of order, or to another number of changes, says that its receipts cannot be trusted."""
    machine = make(batch_bytes_aim=1)
    connect(machine)
    submit(machine, "a")
    submit(machine, "b")
    first, second = sent(machine)
    wrong = stored(second, 2) if what == "order" else Answer(first.number, 2, position(1))
    (effect,) = machine.received(wrong)
    assert isinstance(effect, Leave)
    assert machine.unacknowledged == 2


def test_heartbeats_fill_silence_only() -> None:
    machine = make()
    connect(machine)
    assert machine.take(9.9) is None
    assert machine.deadline == 10.0
    assert machine.take(10.0) == Beat()
    submit(machine, "a")
    assert isinstance(machine.take(15.0), Publish)
    assert machine.take(20.0) is None
    assert machine.take(25.0) == Beat()


# ---- named publishers


def test_a_named_publisher_goes_on_after_the_last_number_of_the_log() -> None:
    machine = make(named=True)
    assert not machine.numbering
    connect(machine, incarnation=4, last=100)
    assert machine.numbering
    group = submit(machine, "a")
    (publish,) = sent(machine)
    assert (group.number, publish.after, publish.number) == (101, 100, 101)


def test_numbers_may_be_skipped_but_never_go_back() -> None:
    machine = make(named=True)
    connect(machine)
    submit(machine, "a", number=5)
    submit(machine, "b", number=9)
    with pytest.raises(UsageError, match="numbers only grow"):
        submit(machine, "c", number=9)
    assert [(one.after, one.number) for one in sent(machine)] == [(0, 5), (5, 9)]


def test_only_a_named_publisher_chooses_numbers() -> None:
    machine = make()
    with pytest.raises(UsageError, match="name="):
        submit(machine, "a", number=1)
    assert machine.unacknowledged == 0


def test_a_refused_number_of_a_named_publisher_is_skipped() -> None:
    machine = make(named=True, batch_bytes_aim=1)
    connect(machine, last=7)
    submit(machine, "bad")
    submit(machine, "good")
    bad, good = sent(machine)
    machine.received(refused(bad, "change-too-large"))
    machine.received(refused(good, "number-gap"))
    (again,) = sent(machine)
    assert (again.after, again.number, again.payload) == (7, 9, good.payload)


def test_a_name_in_use_is_told_until_it_is_granted() -> None:
    machine = make(named=True)
    machine.connected(0.0)
    machine.take(0.0)
    (effect,) = machine.received(fault_of(PublisherInUse("another process publishes as p")))
    assert isinstance(effect, Leave) and not effect.final
    assert machine.in_use is not None
    machine.disconnected()
    connect(machine)
    assert machine.in_use is None


def test_a_position_that_was_trimmed_is_not_invented() -> None:
    machine = make(named=True)
    connect(machine, last=1)
    group = submit(machine, "a", number=1)
    (publish,) = sent(machine)
    machine.received(refused(publish, "outcome-unknown"))
    assert isinstance(group.error, OutcomeUnknown)


# ---- checks before anything is numbered


def test_undeclared_names_are_refused_with_the_nearest_one() -> None:
    machine = make()
    connect(machine, resources=(Resource("vm", ("state", "nics")), Resource("image")))
    with pytest.raises(UnknownResource, match="'vm'"):
        machine.encode([change("a", resource="vms")])
    with pytest.raises(UnknownField, match="'state'"):
        machine.encode([change("a").__class__("vm", "a", "update", ("stat",))])
    machine.encode([change("a").__class__("image", "a", "update", ("anything",))])
    assert machine.last_number == 0


def test_limits_are_the_smaller_of_mine_and_the_servers() -> None:
    machine = make()
    machine.encode([change("a", body="x" * 2000)])
    connect(machine, limits=Limits(1000, 3000, 2**24, 16, 10.0, 25.0))
    with pytest.raises(ChangeTooLarge):
        machine.encode([change("a", body="x" * 2000)])
    with pytest.raises(GroupTooLarge):
        machine.encode([change(str(n), body="x" * 900) for n in range(4)])
    with pytest.raises(InvalidChange):
        machine.encode([])


def test_a_redirect_is_followed() -> None:
    machine = make()
    connect(machine)
    assert machine.received(Redirect(("ws://b:1",), 3.0)) == [Go(("ws://b:1",), 3.0)]
