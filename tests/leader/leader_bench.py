"""A log that answers at once, and a leader's machine on it, driven by hand: what the tests of the leader share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from changefeed.batch import Batch, Entry, Tail, chain, chain_start
from changefeed.change import NO_TERM, Change
from changefeed.errors import ChangefeedError, Fenced, TailMoved
from changefeed.leader.effects import Admit, Append, Deny, End, Facts, Give, Hold, LookUp, Reply, Visible
from changefeed.leader.machine import Sequencer
from changefeed.log import EpochRecord, Fence, Look, PublisherState
from changefeed.wire.changes import encode_change
from changefeed.wire.messages import Answer, Open

LINEAGE = "00112233aabbccdd"


def change(text: str) -> bytes:
    return encode_change(Change("vm", text[:100], "update", body=text[100:] or None), 1 << 20)


def batch(
    number: int,
    *texts: str,
    publisher: str = "p",
    incarnation: int = 1,
    after: int | None = None,
    sizes: tuple[int, ...] | None = None,
) -> Batch:
    """A batch of one change per text, each a group of its own unless `sizes` says otherwise."""
    texts = texts or (f"{publisher}-{number}",)
    return Batch(
        publisher,
        incarnation,
        number - 1 if after is None else after,
        number,
        (1,) * len(texts) if sizes is None else sizes,
        b"".join(change(text) for text in texts),
    )


class SyncLog:
    """The log's contract without waiting, and with a memory: `history` keeps what was trimmed too."""

    def __init__(self, lineage: str = LINEAGE) -> None:
        self.lineage = lineage
        self.tail = self.floor = Tail(0, 0, NO_TERM, chain_start(lineage, "f"))
        self.held: list[Entry] = []
        self.history: list[Entry] = []
        self.fence_row = Fence(0, NO_TERM)
        self.epochs: list[EpochRecord] = []
        self.states: dict[str, PublisherState] = {}
        self.incarnations = 0

    def fence(self, epoch: int) -> Look:
        assert epoch > self.fence_row.epoch
        term = f"{epoch:08x}"
        self.fence_row = Fence(epoch, term)
        self.epochs.append(EpochRecord(epoch, term, self.tail.seq + 1, 0, "", ""))
        return self.look()

    def look(self) -> Look:
        size = sum(entry.bytes for entry in self.held)
        epochs = tuple(self.epochs)
        return Look(self.lineage, self.tail, self.floor, self.fence_row, epochs, self.incarnations, 0, size)

    def check_fence(self, epoch: int, term: str) -> None:
        if (self.fence_row.epoch, self.fence_row.term) != (epoch, term):
            raise Fenced("another leads")

    def append(self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry]) -> None:
        self.check_fence(epoch, term)
        if expected_tail != self.tail.seq:
            raise TailMoved("another tail")
        for entry in entries:
            assert entry.seq == self.tail.seq + 1
            assert entry.time >= self.tail.time
            assert entry.digest == chain(self.tail.digest, self.lineage, entry)
            self.held.append(entry)
            self.history.append(entry)
            self.tail = Tail(entry.last_seq, entry.epoch, entry.term, entry.digest, entry.time)
            last = entry.number + entry.count - 1
            state = self.states.get(entry.publisher)
            if state is None or state.incarnation <= entry.incarnation:
                named = state is None or state.named
                self.states[entry.publisher] = PublisherState(
                    entry.publisher, entry.incarnation, last, entry.last_seq, named
                )
            else:
                self.states[entry.publisher] = PublisherState(
                    entry.publisher, state.incarnation, state.last_number, entry.last_seq, state.named
                )

    def open_publisher(self, epoch: int, term: str, publisher: str, named: bool) -> PublisherState:
        self.check_fence(epoch, term)
        state = self.states.get(publisher)
        if state is None or not (named and state.named):
            self.incarnations += 1
            state = PublisherState(publisher, self.incarnations, 0, state.last_seq if state else 0, named)
            self.states[publisher] = state
        return state

    def of(self, publisher: str, incarnation: int) -> list[Entry]:
        return [e for e in self.held if (e.publisher, e.incarnation) == (publisher, incarnation)]

    def last_number(self, publisher: str, incarnation: int) -> int | None:
        state = self.states.get(publisher)
        if state is not None and state.incarnation == incarnation and state.last_number:
            return state.last_number
        return max((e.number + e.count - 1 for e in self.of(publisher, incarnation)), default=None)

    def find_batch(self, publisher: str, incarnation: int, number: int) -> Entry | None:
        found = (e for e in self.of(publisher, incarnation) if e.number <= number < e.number + e.count)
        return next(found, None)

    def trim(self, up_to: int) -> None:
        while self.held and self.held[0].last_seq <= up_to:
            gone = self.held.pop(0)
            self.floor = Tail(gone.last_seq, gone.epoch, gone.term, gone.digest, gone.time)
        self.states = {name: s for name, s in self.states.items() if s.last_seq > self.floor.seq}

    def behind(self, entry: Entry, size: int) -> list[Entry]:
        """Like `FeedLog.read`: at least one entry, where there is one."""
        found: list[Entry] = []
        for following in self.held:
            if following.seq > entry.seq and (not found or size >= following.bytes):
                found.append(following)
                size -= following.bytes
        return found

    def reads(self, wanted: LookUp) -> dict[str, Any]:
        """What a LookUp wants read before its look."""
        who, incarnation = wanted.publisher, wanted.incarnation
        entry = self.find_batch(who, incarnation, wanted.number) if wanted.number else None
        before = self.find_batch(who, incarnation, wanted.after) if wanted.after and entry is None else None
        end = self.find_batch(who, incarnation, wanted.end) if wanted.end and entry is None else None
        return {
            "state": self.states.get(who) if wanted.state else None,
            "last": self.last_number(who, incarnation) if wanted.last else None,
            "entry": entry,
            "before": before,
            "end": end,
            "behind": [] if entry is None or not wanted.end else self.behind(entry, wanted.size),
        }

    def facts(self, wanted: LookUp) -> Facts:
        return Facts(wanted, look=self.look(), **self.reads(wanted))


class Bench:
    """A leader's machine on a SyncLog. answers: what it replied, by ticket; visible: what subscribers see."""

    def __init__(
        self,
        log: SyncLog | None = None,
        *,
        append_bytes_max: int = 1 << 20,
        queue_bytes_max: int = 1 << 20,
        snapshot: bool = False,
    ):
        self.log = SyncLog() if log is None else log
        look = self.log.fence(self.log.fence_row.epoch + 1)
        self.machine = Sequencer(
            look,
            look.fence.epoch,
            look.fence.term,
            append_bytes_max=append_bytes_max,
            queue_bytes_max=queue_bytes_max,
            snapshot=snapshot,
        )
        self.answers: dict[Any, Answer] = {}
        self.order: list[Any] = []
        self.visible: list[Entry] = []
        self.look_ups: list[LookUp] = []

    def perform(self, effects: Sequence[Any]) -> None:
        for effect in effects:
            match effect:
                case Reply(ticket, answer):
                    assert ticket not in self.answers, "answered twice"
                    self.answers[ticket] = answer
                    self.order.append(ticket)
                case Visible(entries):
                    assert all(entry in self.log.history for entry in entries), "visible before it is durable"
                    self.visible += entries
                case LookUp():
                    self.look_ups.append(effect)
                case End():
                    assert self.machine.ended == effect.why
                case _:
                    raise AssertionError(effect)

    def open(
        self,
        publisher: str = "p",
        channel: str = "c",
        *,
        session: str = "s",
        named: bool = False,
        incarnation: int | None = None,
        **more: Any,
    ) -> Admit | ChangefeedError:
        """Open to the end; an opening that is held is an error here."""
        request = Open("f", publisher, session, named, incarnation, **more)
        step = self.machine.open(request, channel)
        self.perform(self.machine.displaced())
        return self.opened(step)

    def opened(self, step: Any) -> Admit | ChangefeedError:
        while True:
            match step:
                case LookUp(token):
                    step = self.machine.open_found(token, self.log.facts(step))
                case Give(token, publisher, named):
                    state = self.log.open_publisher(self.machine.epoch, self.machine.term, publisher, named)
                    step = self.machine.open_given(token, state)
                case Admit():
                    return step
                case Deny(error):
                    return error
                case _:
                    assert isinstance(step, Hold)
                    raise AssertionError("held")

    def publish(self, ticket: Any, batch: Batch, channel: str = "c") -> Answer | None:
        self.perform(self.machine.publish(channel, ticket, batch))
        return self.answers.get(ticket)

    def look(self) -> None:
        """Answer all look-ups."""
        while self.look_ups:
            wanted = self.look_ups.pop(0)
            self.perform(self.machine.found(wanted.token, self.log.facts(wanted)))

    def append(self, wall_ms: int = 0) -> Append:
        """One append that succeeds."""
        append = self.machine.next_append(wall_ms)
        assert append is not None
        self.log.append(self.machine.epoch, self.machine.term, append.expected_tail, append.entries)
        self.perform(self.machine.appended())
        return append

    def settle(self) -> None:
        """Look-ups and appends until all is answered."""
        while not self.machine.idle and self.machine.ended is None:
            self.look()
            if self.machine.waiting:
                self.append()
