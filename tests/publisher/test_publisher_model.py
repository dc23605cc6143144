"""The publisher's machine against a small leader, with losses, reopenings and copies that arrive late.

Whatever happens: each change is in the log at most once and in the order of the submits, a group stands together, a
receipt tells where it stands, what was refused is nowhere, and in the end everything has an outcome.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from model_leader import ModelLeader, change, settings

from changefeed.change import Change
from changefeed.errors import NumberGap, OutcomeUnknown, Refused
from changefeed.publisher.groups import Group, Leave, Settled, Stopped
from changefeed.publisher.machine import PublisherMachine
from changefeed.wire.messages import Answer, Beat, Fault, Open, Opened, Publish, Reopen


@dataclass(eq=False)
class Link:
    """A connection: what is under way to the server and back. publisher, incarnation: of the last Open granted."""

    up: deque[Open | Publish | Beat] = field(default_factory=deque)
    down: deque[Opened | Answer | Reopen | Fault] = field(default_factory=deque)
    publisher: str = ""
    incarnation: int | None = None


class PublisherAndLeader(RuleBasedStateMachine):
    named = False

    def __init__(self) -> None:
        super().__init__()
        self.leader = ModelLeader(in_flight_max=4)
        self.machine = PublisherMachine(
            "vmapi", "p", "s", settings(batch_bytes_aim=64, in_flight_max=4), named=self.named
        )
        self.link: Link | None = None
        self.floating: list[Link] = []
        self.submitted: list[tuple[Group, list[Change]]] = []
        self.count = 0
        self.now = 0.0
        self.stopped = False

    # ---- the application

    @rule(kinds=st.lists(st.sampled_from(["vm", "vm", "vm", "bad"]), min_size=1, max_size=3))
    def submit(self, kinds: list[str]) -> None:
        if not self.machine.numbering:
            return
        changes = []
        for kind in kinds:
            self.count += 1
            changes.append(change(f"c{self.count}", kind))
        group = self.machine.encode(changes)
        self.machine.admit(group)
        self.submitted.append((group, changes))

    # ---- the network

    @precondition(lambda self: self.link is None)
    @rule()
    def connect(self) -> None:
        self.link = Link()
        self.machine.connected(self.now)

    @precondition(lambda self: self.link is not None)
    @rule(late=st.booleans())
    def disconnect(self, late: bool) -> None:
        assert self.link is not None
        if late:
            self.floating.append(self.link)
        self.link = None
        self.perform(self.machine.disconnected())

    @precondition(lambda self: self.link is not None)
    @rule()
    def send(self) -> None:
        assert self.link is not None
        message = self.machine.take(self.now)
        if message is not None:
            self.link.up.append(message)

    @precondition(lambda self: self.link is not None and self.link.up)
    @rule()
    def serve(self) -> None:
        assert self.link is not None
        self.step(self.link)

    @precondition(lambda self: self.link is not None)
    @rule(sends=st.integers(0, 5), serves=st.integers(0, 5), receives=st.integers(0, 5))
    def exchange(self, sends: int, serves: int, receives: int) -> None:
        """Several messages each way, so that runs get somewhere."""
        for _ in range(sends):
            self.send()
        for _ in range(serves):
            if self.link is not None and self.link.up:
                self.serve()
        for _ in range(receives):
            if self.link is not None and self.link.down:
                self.receive()

    @precondition(lambda self: any(link.up for link in self.floating))
    @rule(which=st.integers(0, 10))
    def late(self, which: int) -> None:
        """A message of an old connection reaches the leader now."""
        links = [link for link in self.floating if link.up]
        self.step(links[which % len(links)])

    @precondition(lambda self: self.link is not None and self.link.down)
    @rule()
    def receive(self) -> None:
        assert self.link is not None
        self.perform(self.machine.received(self.link.down.popleft()))

    @precondition(lambda self: self.link is not None and self.link.incarnation is not None)
    @rule(late=st.booleans())
    def reopen(self, late: bool) -> None:
        """The leader was lost: what is under way gets no answer here, but the leader may have taken it."""
        assert self.link is not None
        publishes = [message for message in self.link.up if isinstance(message, Publish)]
        if late:
            self.floating.append(Link(deque(publishes), deque(), self.link.publisher, self.link.incarnation))
        self.link.up = deque(message for message in self.link.up if not isinstance(message, Publish))
        self.link.incarnation = None
        self.link.down.append(Reopen())

    @precondition(lambda self: self.link is not None)
    @rule()
    def disk_was_full(self) -> None:
        """Everything that is under way now meets a full log; then there is room again."""
        self.leader.full = True
        for _ in range(3):
            self.exchange(3, 3, 1)
            if self.link is None:
                break
        self.leader.full = False

    def step(self, link: Link) -> None:
        message = link.up.popleft()
        if isinstance(message, Open):
            answer = self.leader.open(message)
            link.publisher = message.publisher
            link.incarnation = answer.incarnation if isinstance(answer, Opened) else None
            link.down.append(answer)
        elif isinstance(message, Publish) and link.incarnation is not None:
            link.down.append(self.leader.publish(link.publisher, link.incarnation, message))

    def perform(self, effects: list[object]) -> None:
        for effect in effects:
            if isinstance(effect, Leave) and self.link is not None:
                self.floating.append(self.link)
                self.link = None
                self.perform(list(self.machine.disconnected()))
            if isinstance(effect, Stopped):
                self.stopped = True
            if isinstance(effect, Settled):
                assert all(group.settled for group in effect.groups)

    # ---- what holds at any time

    @invariant()
    def once_and_in_order(self) -> None:
        ids = [int(one.id[1:]) for one in self.leader.log]
        assert ids == sorted(set(ids)), "a change is in the log twice, or before an earlier one"

    @invariant()
    def outcomes_are_true(self) -> None:
        where = {one.id: seq for seq, one in enumerate(self.leader.log, 1)}
        for group, changes in self.submitted:
            if not group.settled:
                continue
            receipt = group.receipt
            seqs = [where.get(one.id) for one in changes]
            if receipt is not None:
                assert seqs == list(range(receipt.first.seq, receipt.last.seq + 1))
            elif isinstance(group.error, Refused):
                assert not isinstance(group.error, NumberGap), "a gap reached the application"
                assert seqs == [None] * len(changes), "a refused change is in the log"
            else:
                assert isinstance(group.error, OutcomeUnknown)

    @invariant()
    def accounts_are_right(self) -> None:
        left = [group for group, _ in self.submitted if not group.settled]
        assert list(self.machine.groups()) == left, "what is kept is not what was submitted, in its order"
        assert self.machine.buffered_bytes == sum(group.bytes for group in left)
        assert self.machine.unacknowledged == sum(group.count for group in left)
        assert not self.stopped

    def teardown(self) -> None:
        """Everything comes to an end, also with the copies that arrive last."""
        for _ in range(10_000):
            if self.link is None:
                self.connect()
            self.send()
            link = self.link
            if link is not None and link.up:
                self.step(link)
            if link is not None and link.down:
                self.receive()
            if all(group.settled for group, _ in self.submitted):
                break
        for link in self.floating:
            while link.up:
                self.step(link)
        assert all(group.settled for group, _ in self.submitted)
        for group, changes in self.submitted:
            if any(one.resource == "bad" for one in changes):
                assert isinstance(group.error, Refused), "only the bad group of a batch is refused"
            else:
                assert group.receipt is not None or group.error is not None
                if isinstance(group.error, Refused):
                    assert group.error.code == "log-full"
        self.once_and_in_order()
        self.outcomes_are_true()


class NamedPublisherAndLeader(PublisherAndLeader):
    named = True


TestPublisher = PublisherAndLeader.TestCase
TestPublisher.settings = hypothesis_settings(max_examples=150, stateful_step_count=60, deadline=None)
TestNamedPublisher = NamedPublisherAndLeader.TestCase
TestNamedPublisher.settings = hypothesis_settings(max_examples=100, stateful_step_count=60, deadline=None)
