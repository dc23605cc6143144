"""Single places of the publisher's machine that a change of one sign or line would break unseen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from model_leader import LIMITS, change
from publisher_steps import connect, make, opened, sent, stored, submit

from changefeed.errors import AcknowledgedLost, GroupTooLarge, OutcomeUnknown
from changefeed.publisher.groups import Batch, Cut, Group, Settled
from changefeed.wire.changes import BATCH_CHANGES_MAX
from changefeed.wire.faults import fault_of
from changefeed.wire.messages import Fault, Open, Reopen


def test_a_group_of_more_changes_than_a_batch_may_hold_is_refused() -> None:
    """Also where its bytes would fit: the refusal names the bound."""
    machine = make()
    many = [change("a")] * (BATCH_CHANGES_MAX + 1)
    with pytest.raises(GroupTooLarge, match=str(BATCH_CHANGES_MAX)):
        machine.encode(many)
    assert machine.encode(many[1:]).count == BATCH_CHANGES_MAX


def test_a_server_that_announces_no_deadline_leaves_ones_own() -> None:
    """heartbeat_dead_s of 0 says nothing: the publisher's own setting holds."""
    machine = make()
    connect(machine, limits=replace(LIMITS, heartbeat_dead_s=0.0))
    assert machine.dead_s == machine.settings.heartbeat_dead_s


def test_nothing_leaves_once_the_connection_has_gone() -> None:
    """Neither a change nor a beat nor an Open, however late it is."""
    machine = make()
    connect(machine)
    submit(machine, "a")
    machine.disconnected()
    assert machine.take(1000.0) is None


def test_a_named_publisher_whose_leader_is_lost_asks_again_on_the_same_connection() -> None:
    """It keeps its incarnation over runs: an Open that is granted late cannot supersede anything."""
    machine = make(named=True)
    machine.connected(0.0)
    first = machine.take(0.0)
    assert isinstance(first, Open) and first.incarnation is None
    assert machine.received(Reopen("the leader was lost")) == []
    assert machine.take(0.0) == first


@pytest.mark.parametrize("code", ["draining", "not-current"])
def test_a_fault_that_ends_the_connection_leaves_an_open_unanswered(code: str) -> None:
    """The instance stops, or knows no leader, while an Open is under way: it may be granted late, and would supersede
    the next one if that asked under the same id."""
    machine = make()
    machine.connected(0.0)
    first = machine.take(0.0)
    machine.received(Fault(code, "goes away", True))
    machine.disconnected()
    machine.connected(1.0)
    second = machine.take(1.0)
    assert isinstance(first, Open) and isinstance(second, Open)
    assert first.publisher != second.publisher and second.incarnation is None


def test_what_was_sent_is_in_doubt_when_exactly_the_last_receipt_is_lost() -> None:
    """The log lost what it had acknowledged: what was sent behind it may have been stored and lost too."""
    machine = make()
    connect(machine)
    submit(machine, "a")
    (publish,) = sent(machine)
    machine.received(stored(publish, 1))
    late = submit(machine, "b")
    sent(machine)
    machine.disconnected()
    machine.connected(1.0)
    machine.take(1.0)
    effects = machine.received(fault_of(AcknowledgedLost("an older copy", 1)))
    assert Settled((late,)) in effects
    assert isinstance(late.error, OutcomeUnknown)


def test_a_publisher_that_gave_up_keeps_nothing() -> None:
    """Everything is settled once; nothing is left that could be sent or settled again."""
    machine = make()
    connect(machine)
    groups = [submit(machine, "a"), submit(machine, "b")]
    sent(machine)
    (settled,) = machine.give_up("closed")
    assert isinstance(settled, Settled) and list(settled.groups) == groups
    assert list(machine.groups()) == []
    assert machine.give_up("closed again") == []


def test_a_sealed_batch_holds_its_changes_once() -> None:
    """The groups give their bytes to the batch, which chains to the number before its first."""
    one, two = Group(1, b"a"), Group(2, b"bc")
    one.number, two.number = 5, 6
    batch = Batch([one, two])
    assert (batch.after, batch.number, batch.last_number, batch.payload) == (4, 5, 7, b"abc")
    assert one.payload == two.payload == b""


def test_a_group_without_an_answer_has_no_receipt() -> None:
    """Only what was stored has positions."""
    machine = make()
    connect(machine)
    group = submit(machine, "a")
    assert group.receipt is None
    (publish,) = sent(machine)
    machine.received(stored(publish, 7))
    found = group.receipt
    assert found is not None and found.first.seq == 7


def test_how_much_a_rerun_asks_for_never_falls_below_one() -> None:
    """After a partial answer it asks for as much as came, at least one change."""
    cut = Cut()
    cut.whole(8)
    assert cut.most == 16
    cut.part(3)
    assert cut.most == 8
    for _ in range(9):
        cut.part(0)
    assert cut.most == 1


def test_opened_again_with_the_same_last_number_is_no_loss() -> None:
    """The log holds exactly what it acknowledged: nobody is told anything."""
    machine = make()
    connect(machine)
    submit(machine, "a")
    (publish,) = sent(machine)
    machine.received(stored(publish, 1))
    machine.disconnected()
    machine.connected(1.0)
    machine.take(1.0)
    opened(machine, last=1)
    assert machine.opened and machine.stopped is None and machine.last_error is None
