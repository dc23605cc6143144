"""What a publisher decides after a refusal, and when its incarnation, or it itself, comes to an end."""

from __future__ import annotations

import pytest
from publisher_steps import connect, make, opened, refused, sent, stored, submit

from changefeed.errors import (
    AcknowledgedLost,
    ChangeTooLarge,
    Forgotten,
    NumberReused,
    OutcomeUnknown,
    Superseded,
    UnknownResource,
    UsageError,
)
from changefeed.publisher.groups import MISUNDERSTOOD_MAX, Leave, Raise, Settled, Stopped
from changefeed.publisher.machine import PublisherMachine
from changefeed.wire.faults import fault_of
from changefeed.wire.messages import Fault, Open, Reopen

# ---- refusals


def test_only_the_bad_group_of_a_batch_is_refused() -> None:
    """A batch that was refused for its content is sent again group by group; nothing is lost, the order stays."""
    machine = make()
    connect(machine)
    good, bad, other = submit(machine, "a"), submit(machine, "bad", "b"), submit(machine, "c")
    (publish,) = sent(machine)
    assert machine.received(refused(publish, "unknown-resource")) == []
    singles = sent(machine)
    assert [(one.after, one.number) for one in singles] == [(0, 1), (1, 2), (3, 4)]
    machine.received(stored(singles[0], 1))
    assert good.receipt is not None
    assert machine.received(refused(singles[1], "unknown-resource")) == []
    (effect,) = machine.received(refused(singles[2], "number-gap"))
    assert effect == Settled((bad,))
    assert isinstance(bad.error, UnknownResource)
    (last,) = sent(machine)
    assert (last.after, last.number) == (1, 4), "chained to the last number that the log holds"
    machine.received(stored(last, 2))
    assert other.receipt is not None


def test_nothing_is_sent_while_answers_behind_a_refusal_are_missing() -> None:
    """They are all gaps; only when each is known can the rest be chained anew."""
    machine = make(batch_bytes_aim=1)
    connect(machine)
    groups = [submit(machine, id) for id in "abc"]
    publishes = sent(machine)
    machine.received(refused(publishes[0], "change-too-large"))
    submit(machine, "d")
    assert machine.take(0.0) is None
    machine.received(refused(publishes[1], "number-gap"))
    assert machine.take(0.0) is None
    machine.received(refused(publishes[2], "number-gap"))
    assert isinstance(groups[0].error, ChangeTooLarge)
    assert [(one.after, one.number) for one in sent(machine)] == [(0, 2), (2, 3), (3, 4)]


def test_a_full_log_refuses_a_whole_batch() -> None:
    """It is not about one change: nothing is gained by asking for each."""
    machine = make()
    connect(machine)
    groups = [submit(machine, id) for id in "ab"]
    (publish,) = sent(machine)
    machine.received(refused(publish, "log-full"))
    assert [group.error.code for group in groups if group.error] == ["log-full", "log-full"]
    assert machine.unacknowledged == 0


def test_a_full_log_leaves_a_copy_that_still_floats_in_doubt() -> None:
    """The first connection broke unanswered: its copy may reach the leader when there is room again."""
    machine = make()
    connect(machine)
    group = submit(machine, "a")
    sent(machine)
    machine.disconnected()
    connect(machine)
    (publish,) = sent(machine)
    machine.received(refused(publish, "log-full"))
    assert isinstance(group.error, OutcomeUnknown)


def test_a_gap_out_of_the_blue_opens_anew_and_never_reaches_the_caller() -> None:
    machine = make()
    connect(machine)
    group = submit(machine, "a")
    (publish,) = sent(machine)
    (effect,) = machine.received(refused(publish, "number-gap"))
    assert isinstance(effect, Leave)
    assert not group.settled
    machine.disconnected()
    connect(machine)
    assert sent(machine) == [publish]


@pytest.mark.parametrize("code", ["not-current", "draining", "publisher-in-use", "log-unavailable"])
def test_what_cannot_be_answered_now_is_asked_elsewhere(code: str) -> None:
    machine = make()
    connect(machine)
    group = submit(machine, "a")
    (publish,) = sent(machine)
    (effect,) = machine.received(refused(publish, code))
    assert isinstance(effect, Leave) and not effect.final
    assert not group.settled


def test_reopen_says_open_again_and_resends() -> None:
    """The leader changed behind the same connection; answers of before no longer count."""
    machine = make()
    connect(machine)
    group = submit(machine, "a")
    (publish,) = sent(machine)
    assert machine.received(Reopen("failover")) == []
    assert isinstance(machine.take(0.0), Open)
    assert machine.received(stored(publish, 1)) == []
    assert not group.settled
    opened(machine)
    assert sent(machine) == [publish]


def test_an_unknown_refusal_of_a_newer_server_is_final() -> None:
    machine = make()
    connect(machine)
    group = submit(machine, "a")
    (publish,) = sent(machine)
    machine.received(refused(publish, "from-the-future"))
    assert group.error is not None
    assert group.error.outcome == "refused"
    assert "from-the-future" in str(group.error)


# ---- how an incarnation ends


def test_superseded_settles_everything_and_never_fights() -> None:
    """Up to the last number: stored. Above: refused. A new incarnation is not taken by itself."""
    machine = make()
    connect(machine)
    a, b = submit(machine, "a"), submit(machine, "b")
    sent(machine)
    c = submit(machine, "c")
    machine.disconnected()
    machine.connected(1.0)
    machine.take(1.0)
    effects = machine.received(fault_of(Superseded("another one opened", 1)))
    assert isinstance(effects[-1], Stopped)
    assert isinstance(a.error, OutcomeUnknown) and "is stored" in str(a.error)
    assert isinstance(b.error, Superseded) and isinstance(c.error, Superseded)
    assert (machine.unacknowledged, machine.buffered_bytes) == (0, 0)
    with pytest.raises(Superseded):
        submit(machine, "d")


def test_superseded_without_a_last_number_leaves_what_was_sent_in_doubt() -> None:
    machine = make()
    connect(machine)
    a = submit(machine, "a")
    (publish,) = sent(machine)
    b = submit(machine, "b")
    machine.received(refused(publish, "superseded", last_number=None))
    assert isinstance(a.error, OutcomeUnknown)
    assert isinstance(b.error, Superseded)


def test_forgotten_with_nothing_in_doubt_takes_a_new_incarnation_by_itself() -> None:
    machine = make()
    connect(machine)
    (publish,) = (submit(machine, "a"), sent(machine))[1]
    machine.received(stored(publish, 1))
    machine.disconnected()
    waiting = submit(machine, "b")
    machine.connected(1.0)
    machine.take(1.0)
    effects = machine.received(fault_of(Forgotten("trimmed")))
    assert [type(effect) for effect in effects] == [Leave]
    machine.disconnected()
    assert connect(machine, incarnation=2).incarnation is None
    (again,) = sent(machine)
    assert (again.after, again.number) == (0, 1), "numbers begin anew"
    assert waiting.number == 1


def test_a_publisher_that_was_forgotten_still_tells_what_it_has_receipts_for() -> None:
    """A copy of the log may be put back before it opens again: what it was told is stored is lost all the same."""
    machine = acknowledged_up_to(5)
    receipt = machine.last_receipt
    assert receipt is not None
    machine.disconnected()
    machine.connected(1.0)
    machine.take(1.0)
    machine.received(fault_of(Forgotten("trimmed")))
    machine.disconnected()
    request = connect(machine, incarnation=9)
    assert (request.incarnation, request.last_receipt) == (None, receipt)


def test_forgotten_with_changes_in_doubt_ends_those_as_unknown() -> None:
    """A retry could not be told from a newcomer: it might be stored twice."""
    machine = make()
    connect(machine)
    doubtful = submit(machine, "a")
    sent(machine)
    machine.disconnected()
    waiting = submit(machine, "b")
    machine.connected(1.0)
    machine.take(1.0)
    machine.received(fault_of(Forgotten("trimmed")))
    assert isinstance(doubtful.error, OutcomeUnknown)
    assert not waiting.settled
    machine.disconnected()
    connect(machine, incarnation=2)
    (again,) = sent(machine)
    machine.received(stored(again, 5))
    assert waiting.receipt is not None


def acknowledged_up_to(count: int) -> PublisherMachine:
    machine = make()
    connect(machine)
    submit(machine, *[f"old-{n}" for n in range(count)])
    (publish,) = sent(machine)
    machine.received(stored(publish, 1))
    return machine


def test_acknowledged_lost_is_raised_once_and_the_rest_goes_on() -> None:
    """An older copy of the log was put back: what was never acknowledged is sent under a new incarnation."""
    machine = acknowledged_up_to(5)
    pending = submit(machine, "new")
    sent(machine)
    machine.disconnected()
    machine.connected(1.0)
    machine.take(1.0)
    lost = AcknowledgedLost("older copy", 3)
    effects = machine.received(fault_of(lost))
    (raised,) = [effect for effect in effects if isinstance(effect, Raise)]
    assert isinstance(raised.error, AcknowledgedLost) and raised.error.last_number == 3
    assert not pending.settled
    machine.disconnected()
    request = connect(machine, incarnation=9)
    assert (request.incarnation, request.last_receipt) == (None, None)
    (again,) = sent(machine)
    assert (again.after, again.number) == (0, 1)


def test_a_log_that_holds_less_than_it_acknowledged_is_noticed_here_too() -> None:
    machine = acknowledged_up_to(5)
    machine.disconnected()
    machine.connected(1.0)
    machine.take(1.0)
    effects = opened(machine, last=4)
    assert [type(effect) for effect in effects] == [Raise, Leave]


def test_what_a_log_lost_before_it_was_acknowledged_is_sent_again() -> None:
    """A new leader's Opened tells of more than this publisher has receipts for; then the log is put back to a copy that
    lacks it. Nothing acknowledged is lost: nobody is told that it was (simulation seed 576382103786)."""
    machine = acknowledged_up_to(5)
    pending = submit(machine, "new")
    sent(machine)
    machine.disconnected()
    machine.connected(1.0)
    machine.take(1.0)
    opened(machine, last=6)
    machine.disconnected()
    machine.connected(2.0)
    machine.take(2.0)
    effects = opened(machine, last=5)
    assert not [effect for effect in effects if isinstance(effect, Raise | Leave)]
    (again,) = sent(machine)
    assert (again.after, again.number) == (5, 6)
    machine.received(stored(again, 6))
    assert pending.receipt is not None


def test_a_reused_number_stops_the_publisher() -> None:
    """The number is known with other bytes: a copied or restored outbox. Its change is not stored; nothing goes on."""
    machine = make(named=True, batch_bytes_aim=1)
    connect(machine)
    a, b = submit(machine, "a"), submit(machine, "b")
    first, _ = sent(machine)
    c = submit(machine, "c")
    effects = machine.received(refused(first, "number-reused"))
    assert isinstance(effects[-1], Stopped)
    assert isinstance(a.error, NumberReused)
    assert isinstance(b.error, OutcomeUnknown), "it was sent behind, and may have been stored"
    assert isinstance(c.error, NumberReused)


def test_a_server_that_says_no_for_good_is_a_final_leave() -> None:
    machine = make()
    machine.connected(0.0)
    machine.take(0.0)
    (effect,) = machine.received(Fault("unknown-feed", "no such feed", False))
    assert isinstance(effect, Leave) and effect.final
    group = submit(machine, "a")
    assert isinstance(machine.stop(effect.error)[-1], Stopped)
    assert group.error is not None and group.error.code == "unknown-feed"


def test_a_publisher_that_is_not_understood_again_and_again_stops() -> None:
    """What it says breaks the protocol at that server: trying for ever would only hide it."""
    machine = make()
    group = submit(machine, "a")
    for _ in range(MISUNDERSTOOD_MAX):
        assert machine.stopped is None
        connect(machine)
        sent(machine)
        machine.received(Fault("bad-message", "what?", False))
        machine.disconnected()
    assert machine.stopped is not None
    assert isinstance(group.error, OutcomeUnknown)


def test_a_log_that_never_gave_the_incarnation_is_asked_for_another_one() -> None:
    """The log was replaced by an older copy before anything was acknowledged (review 3): what was sent is in doubt, the
    rest goes on; a service that only waited for something to publish is not stopped for good."""
    machine = make()
    connect(machine, incarnation=7)
    group = submit(machine, "a")
    sent(machine)
    machine.disconnected()
    later = submit(machine, "b")
    for _ in range(3):
        machine.connected(0.0)
        open_ = machine.take(0.0)
        assert isinstance(open_, Open) and open_.incarnation == 7
        machine.received(Fault("bad-message", "incarnation 7 was never given by this log", False))
        machine.disconnected()
    assert isinstance(group.error, OutcomeUnknown)
    machine.connected(0.0)
    open_ = machine.take(0.0)
    assert isinstance(open_, Open) and open_.incarnation is None
    opened(machine, incarnation=4)
    (publish,) = sent(machine)
    machine.received(stored(publish, 1))
    assert later.receipt is not None


def test_an_unanswered_open_changes_the_id_of_an_unnamed_publisher() -> None:
    """That Open may still be granted late; it would supersede the incarnation that was granted meanwhile."""
    machine = make()
    machine.connected(0.0)
    first = machine.take(0.0)
    machine.disconnected()
    machine.connected(1.0)
    second = machine.take(1.0)
    assert isinstance(first, Open) and isinstance(second, Open)
    assert first.publisher != second.publisher
    opened(machine)
    machine.disconnected()
    machine.connected(2.0)
    third = machine.take(2.0)
    assert isinstance(third, Open)
    assert (third.publisher, third.incarnation) == (second.publisher, 1)


def test_leaving_ends_what_is_out_as_unknown() -> None:
    machine = make()
    connect(machine)
    a = submit(machine, "a")
    sent(machine)
    b = submit(machine, "b")
    (effect,) = machine.give_up("the block was left")
    assert effect == Settled((a, b))
    assert isinstance(a.error, OutcomeUnknown) and isinstance(b.error, OutcomeUnknown)
    with pytest.raises(UsageError):
        submit(machine, "c")
