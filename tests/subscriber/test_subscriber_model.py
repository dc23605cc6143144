"""The subscription's machine against a log: whatever frames come, in whatever order and how often, and however often
the process is killed and started again from its cursor, what the loop handles is the log, each event once.
"""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from model_feed import ModelFeed, Row

from changefeed.change import Event, Filter, Position
from changefeed.settings import Settings
from changefeed.subscriber.machine import Leave, SubscriberMachine
from changefeed.wire.messages import Events, Handled, Start, Subscribe


class SubscriberAndFeed(RuleBasedStateMachine):
    """few: only each third event is wanted. whole: the loop takes whole groups."""

    few = False
    whole = False

    def __init__(self) -> None:
        super().__init__()
        self.feed = ModelFeed()
        self.epoch = 1
        self.now = 0.0
        self.cursor: Position | None = None
        self.handled: list[int] = []
        self.begin()

    def wanted(self, row: Row) -> bool:
        return not self.few or row.seq % 3 == 0

    def begin(self) -> None:
        """A process starts: with its cursor, or at the beginning."""
        self.machine = SubscriberMachine(
            "vmapi", "me", Start(at="beginning"), Filter(), Settings(), saved=self.cursor, saves=True, save_events=4
        )
        if self.whole:
            self.machine.use_groups()
        self.given: list[Event] = []
        self.saving: Position | None = None
        self.generation: int | None = None
        self.old: list[tuple[int, Events]] = []

    # ---- the feed

    @rule(size=st.integers(1, 4), change=st.booleans())
    def publish(self, size: int, change: bool) -> None:
        self.epoch += change
        self.feed.append(size, self.epoch)

    # ---- the connection

    @precondition(lambda self: self.generation is None)
    @rule()
    def connect(self) -> None:
        generation = self.machine.connected(self.now)
        asked = self.machine.take(self.now)
        assert isinstance(asked, Subscribe)
        place = self.feed.place(asked.start, asked.groups)
        effects = self.machine.received(self.feed.subscribed(place), generation, self.now)
        assert not any(isinstance(effect, Leave) for effect in effects)
        self.generation = generation

    @precondition(lambda self: self.generation is not None)
    @rule()
    def disconnect(self) -> None:
        self.generation = None
        self.machine.disconnected()

    @precondition(lambda self: self.generation is not None and self.machine.has_room)
    @rule(data=st.data())
    def frame(self, data: st.DataObject) -> None:
        """Any frame: repeated, overlapping, in order, or beyond what I have (then a part was lost)."""
        assert self.generation is not None
        after = data.draw(st.integers(0, self.feed.head))
        to = self.feed.group_end(data.draw(st.integers(after, self.feed.head)))
        self.deliver(self.generation, self.feed.frame(after, to, self.wanted))

    @precondition(lambda self: self.generation is not None and self.machine.has_room)
    @rule(events=st.integers(0, 6))
    def next_frame(self, events: int) -> None:
        """The frame that a server sends next."""
        assert self.generation is not None and self.machine.position is not None
        after = self.machine.position.seq
        to = self.feed.group_end(min(self.feed.head, after + events))
        frame = self.feed.frame(after, to, self.wanted)
        self.old.append((self.generation, frame))
        self.deliver(self.generation, frame)

    @precondition(lambda self: self.old and self.machine.has_room)
    @rule(which=st.integers(0, 100))
    def again(self, which: int) -> None:
        """A frame of an old connection, or once more of this one."""
        self.deliver(*self.old[which % len(self.old)])

    def deliver(self, generation: int, frame: Events) -> None:
        before = self.machine.position
        effects = self.machine.received(frame, generation, self.now)
        if any(isinstance(effect, Leave) for effect in effects):
            assert before is not None and frame.after > before.seq, "a good frame was refused"
            assert self.machine.position == before
            self.disconnect()

    # ---- the loop

    @rule(many=st.integers(1, 5))
    def ask(self, many: int) -> None:
        """The loop asks for more: what it had is handled."""
        for _ in range(many):
            event = None if self.whole else self.machine.advance()
            if event is None:
                self.machine.settle(self.now)
                if self.machine.must_save:
                    self.note()
                    return
                found = self.machine.ask_group() if self.whole else self.machine.ask()
                self.note()
                if found is None:
                    return
                self.given = found if isinstance(found, list) else [found]
            else:
                self.note()
                self.given = [event]

    def note(self) -> None:
        self.handled += [event.seq for event in self.given]
        self.given = []

    @rule(force=st.booleans())
    def save(self, force: bool) -> None:
        self.now += 0.3
        position = self.machine.begin_save(self.now, force)
        if position is not None:
            self.saving = position

    @rule(well=st.booleans())
    def saved(self, well: bool) -> None:
        if self.saving is not None:
            if well:
                self.cursor = self.saving
            self.machine.save_ended(self.saving if well else None)
            self.saving = None

    @rule()
    def commit(self) -> None:
        if self.machine.given is not None:
            self.cursor = self.machine.commit(None)
            self.machine.save_ended(self.cursor)
            self.saving = None
            self.note()

    @rule(saving_arrives=st.booleans())
    def killed(self, saving_arrives: bool) -> None:
        """The process dies. What it handled and had not saved comes again, as a part of what it was."""
        if self.saving is not None and saving_arrives:
            self.cursor = self.saving
        reached = 0 if self.cursor is None else self.cursor.seq
        unsaved = [seq for seq in self.handled if seq > reached]
        assert len(unsaved) <= 4 + (4 if self.whole else 0), "more is repeated than was allowed to be unsaved"
        self.handled = [seq for seq in self.handled if seq <= reached]
        self.begin()

    # ---- what holds

    @invariant()
    def handled_is_the_log(self) -> None:
        want = [row.seq for row in self.feed.rows if self.wanted(row)]
        assert self.handled == want[: len(self.handled)]

    @invariant()
    def no_progress_without_handling(self) -> None:
        position, handled = self.machine.handled, set(self.handled)
        reached = 0 if position is None else position.seq
        assert all(row.seq in handled for row in self.feed.rows[:reached] if self.wanted(row))

    @invariant()
    def the_cursor_never_skips(self) -> None:
        handled, cursor = set(self.handled), 0 if self.cursor is None else self.cursor.seq
        assert all(row.seq in handled for row in self.feed.rows[:cursor] if self.wanted(row))

    @invariant()
    def what_the_server_is_told_is_handled(self) -> None:
        self.now += 2
        message = self.machine.take(self.now) if self.generation is not None else None
        if isinstance(message, Handled):
            handled = set(self.handled)
            assert all(row.seq in handled for row in self.feed.rows[: message.position.seq] if self.wanted(row))

    def teardown(self) -> None:
        """In the end everything was handled."""
        if self.generation is None:
            self.connect()
        for _ in range(1000):
            if self.machine.has_room:
                self.next_frame(3)
            self.ask(3)
            self.save(True)
            self.saved(True)
            if self.machine.handled == self.feed.position(self.feed.head):
                break
        assert self.handled == [row.seq for row in self.feed.rows if self.wanted(row)]
        assert self.machine.caught_up and self.machine.lag == 0


class FilteredSubscriber(SubscriberAndFeed):
    few = True


class GroupedSubscriber(SubscriberAndFeed):
    whole = True


TestSubscriber = SubscriberAndFeed.TestCase
TestFilteredSubscriber = FilteredSubscriber.TestCase
TestGroupedSubscriber = GroupedSubscriber.TestCase
TestSubscriber.settings = TestFilteredSubscriber.settings = TestGroupedSubscriber.settings = hypothesis_settings(
    max_examples=100, stateful_step_count=60, deadline=None
)
