"""Single places of the subscriber's machine that a change of one sign or line would break unseen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from model_feed import LIMITS, ModelFeed, seqs

from changefeed.change import Event, Filter, Position
from changefeed.errors import BadMessage, PositionTooOld, UsageError
from changefeed.settings import Settings
from changefeed.subscriber.machine import MISUNDERSTOOD_MAX, SubscriberMachine
from changefeed.wire.faults import fault_of
from changefeed.wire.messages import Beat, Start, Subscribe


def make(start: Start | None = None, saved: Position | None = None, **options: Any) -> SubscriberMachine:
    return SubscriberMachine(
        "vmapi", "me", start or Start(at="beginning"), Filter(), Settings(), saved=saved, **options
    )


@pytest.fixture
def feed() -> ModelFeed:
    made = ModelFeed()
    for _ in range(12):
        made.append(1, 1)
    return made


def connect(machine: SubscriberMachine, feed: ModelFeed, now: float = 0.0) -> int:
    generation = machine.connected(now)
    asked = machine.take(now)
    assert isinstance(asked, Subscribe)
    machine.received(feed.subscribed(feed.place(asked.start, asked.groups)), generation, now)
    return generation


def given(machine: SubscriberMachine, most: int) -> list[Event]:
    """What a loop gets that asks `most` times: all but the last of it is handled."""
    found = []
    for _ in range(most):
        machine.settle(0.0)
        event = machine.ask()
        if event is None:
            break
        found.append(event)
    return found


def test_a_new_subscription_knows_no_head() -> None:
    """Before anything was heard the feed's head is 0, and nothing is caught up."""
    machine = make()
    assert machine.head == 0
    assert not machine.caught_up and machine.lag == 0


def test_groups_from_the_beginning_need_no_new_connection(feed: ModelFeed) -> None:
    """A start that names no position is a group's end wherever it turns out to be: the connection stays."""
    machine = make()
    connect(machine, feed)
    assert machine.use_groups() is False
    assert machine.subscribed and machine.position == feed.position(0)


def test_nothing_to_save_begins_the_interval_anew(feed: ModelFeed) -> None:
    """The saver looked and had nothing to save: what is given after that waits for a whole interval again."""
    machine = make(saves=True, save_interval_s=5.0)
    generation = connect(machine, feed)
    machine.begin_save(0.0, force=True)
    machine.save_ended(machine.handled)
    assert machine.save_deadline == float("inf"), "nothing is unsaved, so there is nothing to wait for"
    assert machine.begin_save(10.0) is None
    machine.received(feed.frame(0, 3), generation, 10.0)
    given(machine, 1)
    assert machine.save_deadline == 15.0


def test_a_save_after_a_restart_counts(feed: ModelFeed) -> None:
    """A restart goes back behind what the cursor holds; once that is saved, the cursor may be trusted again."""
    machine = make(saves=True)
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 12), generation, 0.0)
    given(machine, 9)
    machine.save_ended(machine.begin_save(0.0, force=True))
    assert machine.is_saved(feed.position(8))
    machine.fail(PositionTooOld("gone", feed.position(8), None, None))
    machine.restart(Start(position=feed.position(2)))
    assert not machine.is_saved(feed.position(2))
    machine.save_ended(machine.begin_save(1.0, force=True))
    assert machine.is_saved(feed.position(2)) and not machine.is_saved(feed.position(3))


def test_a_server_that_announces_no_deadline_leaves_ones_own(feed: ModelFeed) -> None:
    """heartbeat_dead_s of 0 says nothing: the subscription's own setting holds."""
    machine = make()
    generation = machine.connected(0.0)
    machine.take(0.0)
    quiet = replace(feed.subscribed(0), limits=replace(LIMITS, heartbeat_dead_s=0.0))
    machine.received(quiet, generation, 0.0)
    assert machine.dead_s == Settings().heartbeat_dead_s


def test_before_it_is_taken_in_a_subscription_only_beats(feed: ModelFeed) -> None:
    """A server that has not taken the subscription in is not told what is handled, soon or at the heartbeat."""
    machine = make(saved=feed.position(4))
    machine.connected(0.0)
    assert isinstance(machine.take(0.0), Subscribe)
    assert machine.deadline == machine.heartbeat_s
    assert machine.take(machine.heartbeat_s) == Beat()


def test_a_frame_forgives_what_was_misunderstood(feed: ModelFeed) -> None:
    """Only misunderstandings in a row end a subscription: a frame in between begins the count at nothing."""
    machine = make()
    fault = fault_of(UsageError("no such thing"))
    assert not fault.retryable
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 1), generation, 0.0)
    for _ in range(MISUNDERSTOOD_MAX - 1):
        machine.received(fault, generation, 0.0)
    assert machine.failure is None
    machine.received(fault, generation, 0.0)
    assert machine.failure is not None


def test_the_event_at_the_position_is_not_given_again(feed: ModelFeed) -> None:
    """A frame that begins with exactly the event that I stand at gives only what lies above it."""
    machine = make(saved=feed.position(3))
    generation = connect(machine, feed)
    machine.received(feed.frame(2, 5), generation, 0.0)
    assert seqs(given(machine, 9)) == [4, 5]


def test_a_refusal_without_a_position_is_about_mine(feed: ModelFeed) -> None:
    """A server need not repeat the position: the error that leaves the loop carries it, and the connection is over."""
    machine = make(saved=feed.position(3))
    generation = connect(machine, feed)
    machine.received(fault_of(PositionTooOld("trimmed", None, None, None)), generation, 0.0)
    assert isinstance(machine.failure, PositionTooOld)
    assert machine.failure.position == feed.position(3)
    assert not machine.subscribed and machine.take(100.0) is None


def test_a_restart_asks_for_its_own_start(feed: ModelFeed) -> None:
    """After a reset the next Subscribe says where the application wanted to go on, and the head is not known."""
    machine = make(saved=feed.position(3))
    connect(machine, feed)
    machine.fail(PositionTooOld("gone", feed.position(3), None, None))
    machine.restart(Start(at="now"))
    assert machine.head == 0
    machine.connected(1.0)
    asked = machine.take(1.0)
    assert isinstance(asked, Subscribe) and asked.start == Start(at="now")
    machine.restart(Start(position=feed.position(5)))
    assert machine.head == 5


def test_a_frame_of_an_older_epoch_is_named(feed: ModelFeed) -> None:
    """What cannot follow is left, with a sentence that says so."""
    other = ModelFeed()
    other.append(6, 1)
    later = ModelFeed()
    later.append(4, 2)
    machine = make(saved=later.position(4))
    generation = connect(machine, later)
    machine.received(other.frame(4, 6), generation, 0.0)
    assert isinstance(machine.last_error, BadMessage)
