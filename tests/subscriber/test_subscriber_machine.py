"""What a subscription decides, step by step: frames, handled, saving, groups, and what ends it."""

from __future__ import annotations

from typing import Any

import pytest
from model_feed import LINEAGE, ModelFeed, run_of_rows, seqs, term

from changefeed.change import Event, Filter, Position
from changefeed.errors import BadPosition, FuturePosition, OtherLineage, PositionTooOld, UnknownFeed, UsageError
from changefeed.settings import Settings
from changefeed.subscriber.machine import MISUNDERSTOOD_MAX, Go, Leave, SubscriberMachine, Welcomed
from changefeed.wire.faults import fault_of
from changefeed.wire.messages import (
    Answer,
    Beat,
    Events,
    Fault,
    Handled,
    Redirect,
    Run,
    Start,
    Subscribe,
    Subscribed,
)


def make(start: Start | None = None, saved: Position | None = None, **options: Any) -> SubscriberMachine:
    return SubscriberMachine(
        "vmapi", "me", start or Start(at="beginning"), Filter(), Settings(), saved=saved, **options
    )


def make_feed(*groups: int, epoch: int = 1) -> ModelFeed:
    feed = ModelFeed()
    for size in groups:
        feed.append(size, epoch)
    return feed


def connect(machine: SubscriberMachine, feed: ModelFeed, now: float = 0.0) -> int:
    generation = machine.connected(now)
    asked = machine.take(now)
    assert isinstance(asked, Subscribe)
    effects = machine.received(feed.subscribed(feed.place(asked.start, asked.groups)), generation, now)
    assert effects == [Welcomed()]
    return generation


def give(machine: SubscriberMachine, most: int = 1000, now: float = 0.0) -> list[Event]:
    """What a loop gets that asks up to `most` times; what it gets last is not handled yet."""
    found: list[Event] = []
    while len(found) < most:
        event = machine.advance()
        if event is None:
            machine.settle(now)
            event = machine.ask()
        if event is None:
            break
        found.append(event)
    return found


# ---- frames


def test_repeated_and_overlapping_frames_give_each_event_once() -> None:
    feed, machine = make_feed(*[1] * 10), make()
    generation = connect(machine, feed)
    got: list[int] = []
    for after, to in [(0, 3), (0, 3), (1, 5), (2, 4), (5, 6), (0, 10), (0, 10)]:
        assert machine.received(feed.frame(after, to), generation, 0.0) == []
        got += seqs(give(machine))
    assert got == list(range(1, 11))


def test_a_lost_frame_is_noticed_and_resumed_after_what_i_have() -> None:
    feed, machine = make_feed(*[1] * 10), make()
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 3), generation, 0.0)
    (effect,) = machine.received(feed.frame(4, 6), generation, 0.0)
    assert isinstance(effect, Leave) and not effect.final
    machine.disconnected()
    machine.connected(1.0)
    asked = machine.take(1.0)
    assert isinstance(asked, Subscribe)
    assert asked.start == Start(position=feed.position(3))
    assert seqs(give(machine)) == [1, 2, 3], "what was taken is not lost"


def test_frames_of_an_older_connection_are_dropped() -> None:
    feed, machine = make_feed(1, 1, 1), make()
    old = connect(machine, feed)
    machine.disconnected()
    assert machine.received(feed.frame(0, 1), old, 0.0) == []
    connect(machine, feed)
    assert machine.received(feed.frame(0, 1), old, 0.0) == []
    assert give(machine) == []


def test_bookmarks_move_on_without_events() -> None:
    """A filter that selects nothing still moves the position, which can be saved and resumed."""
    feed, machine = make_feed(*[1] * 5), make(saves=True)
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 5, lambda row: False), generation, 0.0)
    assert machine.handled == feed.position(5)
    assert machine.caught_up and machine.reached
    assert machine.begin_save(0.0) == feed.position(5)


def test_a_bookmark_behind_an_unhandled_event_waits_for_it() -> None:
    feed, machine = make_feed(*[1] * 5), make(saves=True)
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 1), generation, 0.0)
    assert seqs(give(machine, 1)) == [1]
    machine.received(feed.frame(1, 5, lambda row: False), generation, 0.0)
    assert machine.handled == Position.beginning(LINEAGE)
    assert machine.caught_up, "the loop has been given all there is"
    machine.settle(0.0)
    assert machine.handled == feed.position(5)


def test_at_most_one_frame_is_received_ahead() -> None:
    feed, machine = make_feed(*[1] * 9), make()
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 3), generation, 0.0)
    assert not machine.has_room, "nothing asked yet: the first frame waits"
    give(machine, 1)
    assert machine.has_room
    machine.received(feed.frame(3, 6), generation, 0.0)
    assert not machine.has_room
    assert seqs(give(machine, 3)) == [2, 3, 4]
    assert machine.has_room


def wrong_frames(feed: ModelFeed) -> list[tuple[str, Events]]:
    row = feed.rows[4]
    other = ModelFeed("fedcba9876543210", feed.rows)
    runs = (run_of_rows(feed.rows[6:8]), run_of_rows(feed.rows[4:6]))
    return [
        ("of another log", other.frame(4, 6)),
        ("of an older epoch", Events(4, Position(LINEAGE, 1, term(1), 6), feed.frame(4, 6).runs)),
        ("of another term of this epoch", Events(4, Position(LINEAGE, 2, "ffffffff", 6), feed.frame(4, 6).runs)),
        ("with runs out of order", Events(4, feed.position(8), runs)),
        ("beyond its own range", Events(4, feed.position(5), (run_of_rows(feed.rows[4:6]),))),
        ("with an event of an older epoch", Events(4, feed.position(6), (Run(1, term(1), 1, "p", 5, None, row.data),))),
        ("malformed", Events(4, feed.position(5), (Run(2, term(2), 1, "p", 5, None, b"\xc1"),))),
    ]


@pytest.mark.parametrize("which", range(7))
def test_a_frame_that_cannot_continue_what_i_have_is_not_taken(which: int) -> None:
    """The connection is given up, and resumed after what I have; never wrong events."""
    feed, machine = make_feed(1, 1, 1, 1, epoch=2), make()
    for _ in range(4):
        feed.append(1, 2)
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 4), generation, 0.0)
    name, frame = wrong_frames(feed)[which]
    (effect,) = machine.received(frame, generation, 0.0)
    assert isinstance(effect, Leave), name
    assert machine.position == feed.position(4)
    assert seqs(give(machine)) == [1, 2, 3, 4]


def test_a_place_beyond_what_was_asked_for_is_refused() -> None:
    """A server that skips is worse than none."""
    feed, machine = make_feed(*[1] * 5), make(Start(position=make_feed(1, 1).position(2)))
    for at in (feed.position(3), ModelFeed("fedcba9876543210", feed.rows).position(2)):
        generation = machine.connected(0.0)
        machine.take(0.0)
        (effect,) = machine.received(
            Subscribed("vmapi", "a", "p", at, at, "", 0, feed.subscribed(0).limits), generation, 0
        )
        assert isinstance(effect, Leave)
        machine.disconnected()


def test_a_message_that_no_subscriber_gets_ends_the_connection() -> None:
    feed, machine = make_feed(1), make()
    generation = connect(machine, feed)
    (effect,) = machine.received(Answer(1, 1), generation, 0.0)  # type: ignore[arg-type]
    assert isinstance(effect, Leave)


# ---- handled


def test_an_event_is_handled_when_the_next_one_is_asked_for() -> None:
    feed, machine = make_feed(*[1] * 3), make()
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 3), generation, 0.0)
    assert seqs(give(machine, 2)) == [1, 2]
    assert machine.handled == feed.position(1)
    assert machine.given == feed.position(2)
    assert machine.lag == 2
    machine.settle(0.0)
    assert machine.handled == feed.position(2)


def test_progress_is_told_soon_and_silence_is_filled() -> None:
    feed, machine = make_feed(*[1] * 3), make()
    generation = connect(machine, feed)
    assert machine.take(0.5) is None
    assert machine.deadline == 1.0
    assert machine.take(1.0) == Handled(Position.beginning(LINEAGE)), "where it stands, for status"
    assert machine.deadline == 11.0
    machine.received(feed.frame(0, 3), generation, 1.0)
    assert machine.deadline == 2.0, "while events are out, look each second whether they were handled"
    assert machine.take(2.0) is None
    assert machine.deadline == 3.0
    give(machine, 3)
    assert machine.take(3.0) == Handled(feed.position(2))
    machine.settle(3.0)
    assert machine.take(3.5) is None
    assert machine.take(4.0) == Handled(feed.position(3))
    assert machine.take(13.9) is None
    assert machine.take(14.0) == Handled(feed.position(3))


def test_before_it_stands_anywhere_it_only_beats() -> None:
    machine = make()
    machine.connected(0.0)
    machine.take(0.0)
    assert machine.take(9.0) is None
    assert machine.take(10.0) == Beat()


def test_staleness_counts_from_the_last_proof() -> None:
    feed, machine = make_feed(1), make()
    assert machine.staleness_s(5.0) == float("inf")
    generation = connect(machine, feed, now=10.0)
    assert machine.staleness_s(12.0) == 2.0
    machine.received(Beat(1, 7, 3.5), generation, 20.0)
    assert machine.staleness_s(21.0) == 4.5
    assert machine.lag == 7


# ---- saving


def saver(events: int = 10, feed_size: int = 100) -> tuple[SubscriberMachine, ModelFeed]:
    feed, machine = make_feed(*[1] * feed_size), make(saves=True, save_events=events, save_interval_s=1.0)
    generation = connect(machine, feed)
    machine.received(feed.frame(0, feed_size), generation, 0.0)
    return machine, feed


def test_a_save_begins_at_half_of_what_may_be_unsaved_and_holds_the_loop_at_the_whole() -> None:
    machine, feed = saver()
    assert len(give(machine, 5)) == 5
    machine.settle(0.0)
    assert machine.begin_save(0.1) == feed.position(5)
    assert len(give(machine, 5)) == 5
    machine.settle(0.1)
    assert machine.must_save, "ten are handled and none is saved"
    machine.save_ended(feed.position(5))
    assert not machine.must_save
    assert machine.begin_save(0.1) == feed.position(10)
    machine.save_ended(None)
    assert machine.saved == feed.position(5), "a save that failed is none"
    give(machine, 5)
    machine.settle(0.1)
    assert machine.must_save, "only what was saved counts, not what was handled when the save ended"


def test_a_slow_loop_is_saved_by_time() -> None:
    machine, feed = saver()
    give(machine, 2)
    assert machine.begin_save(0.5) is None
    assert machine.save_deadline == 1.0
    assert machine.begin_save(1.0) == feed.position(1)
    assert machine.save_deadline == float("inf"), "one at a time"
    machine.save_ended(feed.position(1))
    assert machine.save_deadline == 2.0


def test_catching_up_saves_at_once() -> None:
    feed, machine = make_feed(*[1] * 3), make(saves=True, save_events=1000)
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 3), generation, 0.0)
    give(machine)
    assert machine.reached
    assert machine.begin_save(0.001) == feed.position(3)


def test_commit_takes_what_was_given_as_handled() -> None:
    machine, feed = saver()
    give(machine, 3)
    assert machine.commit(None) == feed.position(3)
    assert machine.handled == feed.position(3)
    assert machine.commit(feed.position(2)) == feed.position(2)
    with pytest.raises(BadPosition, match="was not reached"):
        machine.commit(feed.position(4))
    with pytest.raises(BadPosition):
        machine.commit(Position("fedcba9876543210", 1, term(1), 1))


def test_nothing_goes_back_behind_an_explicit_commit() -> None:
    """commit(position) of the event at hand, then the block is left by an exception: the cursor stays."""
    machine, feed = saver()
    give(machine, 3)
    machine.save_ended(machine.commit(feed.position(3)))
    assert machine.handled == feed.position(2)
    assert machine.begin_save(5.0, force=True) is None


def test_a_cursor_that_is_not_mine_is_never_saved() -> None:
    feed, machine = make_feed(1), make(saves=False)
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 1), generation, 0.0)
    give(machine)
    assert machine.begin_save(100.0, force=True) is None
    assert machine.save_deadline == float("inf")


# ---- groups


def test_groups_are_whole_whatever_is_asked_between() -> None:
    feed, machine = make_feed(3, 1, 2), make()
    machine.use_groups()
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 6), generation, 0.0)
    found = []
    while True:
        machine.settle(0.0)
        group = machine.ask_group()
        if group is None:
            break
        found.append(seqs(group))
    assert found == [[1, 2, 3], [4], [5, 6]]
    assert machine.handled == feed.position(6)


def test_a_position_inside_a_group_starts_groups_at_its_first_event() -> None:
    """Without taking the cursor back: a crash before the group is handled leaves it where it was."""
    feed = make_feed(1, 4, 1)
    machine = make(saved=feed.position(3), saves=True)
    generation = connect(machine, feed)
    assert machine.use_groups() is True, "the connection was for single events"
    assert machine.received(feed.frame(3, 6), generation, 0.0) == []
    assert machine.handled == feed.position(3) and machine.ask_group() is None, "nor is what it still brings"
    machine.disconnected()
    generation = connect(machine, feed)
    assert machine.handled == feed.position(3)
    machine.received(feed.frame(1, 6), generation, 0.0)
    assert machine.handled == feed.position(3)
    machine.settle(0.0)
    assert seqs(machine.ask_group() or []) == [2, 3, 4, 5]
    machine.settle(0.0)
    assert machine.handled == feed.position(5)


def test_groups_cannot_begin_in_the_middle_of_one() -> None:
    feed, machine = make_feed(3, 1), make()
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 4), generation, 0.0)
    give(machine, 1)
    with pytest.raises(UsageError, match="inside a group"):
        machine.use_groups()
    give(machine, 2)
    assert machine.use_groups() is False


# ---- what ends it


@pytest.mark.parametrize("kind", [PositionTooOld, OtherLineage, FuturePosition])
def test_a_reset_is_told_after_everything_before_it(kind: Any) -> None:
    feed, machine = make_feed(*[1] * 4), make()
    generation = connect(machine, feed)
    machine.received(feed.frame(0, 4), generation, 0.0)
    machine.disconnected()
    generation = machine.connected(1.0)
    machine.take(1.0)
    fault = fault_of(kind("cannot", feed.position(4), feed.position(1), feed.position(2)))
    (effect,) = machine.received(fault, generation, 1.0)
    assert isinstance(effect, Leave)
    failure = machine.failure
    assert isinstance(failure, kind)
    assert (failure.position, failure.earliest, failure.head) == (feed.position(4), feed.position(1), feed.position(2))
    assert seqs(give(machine)) == [1, 2, 3, 4], "the loop has it all before it is told"


def test_a_restart_heals_a_reset_and_counts_it() -> None:
    feed, machine = make_feed(*[1] * 4), make(saved=Position("fedcba9876543210", 9, term(9), 99), saves=True)
    generation = machine.connected(0.0)
    machine.take(0.0)
    machine.received(fault_of(OtherLineage("another log")), generation, 0.0)
    machine.disconnected()
    machine.restart(Start(position=feed.position(2)))
    assert machine.failure is None
    assert (machine.resets, machine.resets_in_a_row) == (1, 1)
    assert isinstance(machine.last_reset, OtherLineage)
    assert machine.begin_save(0.0) == feed.position(2), "the cursor follows at once"
    machine.save_ended(feed.position(2))
    generation = connect(machine, feed)
    machine.received(feed.frame(2, 4), generation, 0.0)
    assert seqs(give(machine)) == [3, 4]
    assert machine.resets_in_a_row == 0


def test_a_restart_may_take_the_cursor_back() -> None:
    """Within one lineage: future-position, and the application goes back to the head."""
    feed = make_feed(*[1] * 9)
    machine = make(saved=feed.position(9), saves=True)
    machine.fail(FuturePosition("older copy", feed.position(9), None, feed.position(5)))
    machine.restart(Start(position=feed.position(5)))
    assert machine.begin_save(0.0) == feed.position(5)


def test_a_final_no_before_anything_stood_is_told() -> None:
    machine = make()
    generation = machine.connected(0.0)
    machine.take(0.0)
    (effect,) = machine.received(Fault("unknown-feed", "did you mean 'vmapi'?", False), generation, 0.0)
    assert isinstance(effect, Leave) and effect.final
    machine.refused_everywhere(effect.error)
    assert isinstance(machine.failure, UnknownFeed)


def test_a_feed_that_was_served_before_is_waited_for() -> None:
    """Instances come and go; only a refusal of what was asked ends a subscription that once stood."""
    feed, machine = make_feed(1), make()
    connect(machine, feed)
    machine.refused_everywhere(UnknownFeed("not here"))
    assert machine.failure is None
    machine.refused_everywhere(UsageError("no such field any more"))
    assert machine.failure is not None


def test_one_that_is_not_understood_again_and_again_ends() -> None:
    feed, machine = make_feed(1), make()
    for _ in range(MISUNDERSTOOD_MAX):
        assert machine.failure is None
        generation = connect(machine, feed)
        machine.received(Fault("bad-message", "what?", False), generation, 0.0)
        machine.disconnected()
    assert machine.failure is not None


def test_a_redirect_is_followed() -> None:
    feed, machine = make_feed(1), make()
    generation = connect(machine, feed)
    assert machine.received(Redirect(("ws://b:1",), 2.0), generation, 0.0) == [Go(("ws://b:1",), 2.0)]
