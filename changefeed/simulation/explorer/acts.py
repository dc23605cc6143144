"""What is told to the machines of a publisher and of a leader, and what they say to it, as values. Pure.

Tokens of a leader's look-ups are told as how far they lie behind its newest one, so that a leader that has looked up a
lot is the same as one that has not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from changefeed.batch import Batch, Entry
from changefeed.change import Change
from changefeed.errors import AppendOutcomeUnknown, ChangefeedError, ConnectionLost, Fenced, LogUnavailable, TailMoved
from changefeed.leader.effects import Admit, Append, Deny, Effect, End, Facts, Give, Hold, LookUp, Reply, Visible
from changefeed.leader.machine import Sequencer
from changefeed.publisher.groups import Go, Leave, Raise, Settled, Stopped
from changefeed.publisher.machine import PublisherMachine
from changefeed.settings import Settings
from changefeed.simulation.explorer.cells import Values
from changefeed.simulation.explorer.log import FEED, Log
from changefeed.wire.messages import Limits, Opened, Publish

SETTINGS: Final = Settings()
LIMITS: Final = Limits(
    SETTINGS.change_bytes_max,
    SETTINGS.group_bytes_max,
    SETTINGS.frame_bytes_max,
    SETTINGS.in_flight_max,
    SETTINGS.heartbeat_s,
    SETTINGS.heartbeat_dead_s,
)
ERRORS: Final[dict[str, ChangefeedError]] = {
    "fenced": Fenced("another leader has fenced the log", 0, "", ""),
    "tail-moved": TailMoved("the log ends elsewhere"),
    "unknown": AppendOutcomeUnknown("no answer"),
    "unavailable": LogUnavailable("locked"),
}


@dataclass(frozen=True, slots=True)
class Told:
    """What a leader's machine said. shift: by how much its newest token moved on. wants: look-ups, as (token behind
    the newest, LookUp). replies: (ticket, number of the message). visible: numbers of tuples of entries."""

    shift: int = 0
    wants: tuple[tuple[int, LookUp], ...] = ()
    replies: tuple[tuple[Any, int], ...] = ()
    visible: tuple[int, ...] = ()
    ended: str = ""
    step: tuple[str, Any] = ("", None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a group of the application ended: "stored" at (epoch, term, seq), else "refused" or "unknown" with a code."""

    group: int
    how: str
    code: str = ""
    at: tuple[int, str, int] = (0, "", 0)


class Acts:
    """values: the messages, facts and entries that are on their way, by number."""

    def __init__(self) -> None:
        self.values = Values()

    # ---- a publisher

    def submit(self, machine: PublisherMachine, group: int, count: int) -> tuple[Any, ...]:
        changes = [Change("r", f"{machine.publisher[:2]}g{group}.{i}", "set") for i in range(count)]
        made = machine.encode(changes)
        made.handle = group
        machine.admit(made)
        return self._sent(machine, [])

    def connect(self, machine: PublisherMachine) -> tuple[Any, ...]:
        machine.connected(0.0)
        return self._sent(machine, [])

    def disconnect(self, machine: PublisherMachine) -> tuple[Any, ...]:
        return self._sent(machine, machine.disconnected(ConnectionLost("cut")))

    def hear(self, machine: PublisherMachine, message: int) -> tuple[Any, ...]:
        return self._sent(machine, machine.received(self.values[message]))

    def _sent(self, machine: PublisherMachine, effects: Iterable[Any]) -> tuple[Any, ...]:
        """(numbers of messages to send, outcomes, whether it leaves the connection, whether it stopped)."""
        outcomes: list[Outcome] = []
        leaves = stopped = False
        for effect in effects:
            match effect:
                case Settled(groups):
                    outcomes += [_outcome(group) for group in groups]
                case Leave() | Go():
                    leaves = True
                case Stopped():
                    stopped = True
                case Raise():
                    raise AssertionError(f"the publisher raises {effect.error!r} although the log lost nothing")
        sent = []
        while not leaves:
            message = machine.take(0.0)
            if message is None:
                break
            sent.append(self.values.number(message))
        return tuple(sent), tuple(outcomes), leaves, stopped

    # ---- a leader

    def open(self, machine: Sequencer, message: int, channel: str) -> Told:
        before = machine._token
        step = machine.open(self.values[message], channel)
        replies = tuple((reply.ticket, self.values.number(reply.answer)) for reply in machine.displaced())
        return replace(self._step(machine, before, step), replies=replies)

    def open_found(self, machine: Sequencer, back: int, facts: int) -> Told:
        before = machine._token
        return self._step(machine, before, machine.open_found(before - back, self.values[facts]))

    def open_given(self, machine: Sequencer, back: int, state: Any) -> Told:
        before = machine._token
        if state is None:
            return self._step(machine, before, machine.open_failed(before - back, ERRORS["fenced"]))
        return self._step(machine, before, machine.open_given(before - back, state))

    def resume(self, machine: Sequencer, back: int) -> Told:
        before = machine._token
        return self._step(machine, before, machine.resume(before - back))

    def abandon(self, machine: Sequencer, back: int) -> Told:
        machine.open_abandoned(machine._token - back)
        return Told()

    def publish(self, machine: Sequencer, channel: str, message: int, publisher: str, incarnation: int) -> Told:
        publish: Publish = self.values[message]
        batch = Batch(publisher, incarnation, publish.after, publish.number, publish.sizes, publish.payload)
        before = machine._token
        return self._told(machine, before, machine.publish(channel, channel, batch))

    def found(self, machine: Sequencer, back: int, facts: int) -> Told:
        before = machine._token
        return self._told(machine, before, machine.found(before - back, self.values[facts]))

    def close(self, machine: Sequencer, channel: str) -> Told:
        machine.close(channel)
        return Told()

    def next_append(self, machine: Sequencer) -> tuple[int, int] | None:
        """(expected tail, number of the entries)."""
        append: Append | None = machine.next_append(0)
        return None if append is None else (append.expected_tail, self.values.number(append.entries))

    def appended(self, machine: Sequencer, code: str) -> Told:
        before = machine._token
        effects = machine.append_failed(ERRORS[code]) if code else machine.appended()
        return self._told(machine, before, effects)

    def _step(self, machine: Sequencer, before: int, step: Any) -> Told:
        shift = machine._token - before
        match step:
            case LookUp(token):
                return Told(shift, step=("look", (machine._token - token, replace(step, token=0))))
            case Hold(token):
                return Told(shift, step=("hold", machine._token - token))
            case Give(token, publisher, named):
                return Told(shift, step=("give", (machine._token - token, publisher, named)))
            case Admit(incarnation, last):
                opened = Opened(FEED, "i", "p", "i", machine.epoch, incarnation, last, LIMITS)
                return Told(shift, step=("admit", (self.values.number(opened), incarnation)))
            case Deny(error):
                return Told(shift, ended=machine.ended or "", step=("deny", self.values.number(error)))
        raise AssertionError(f"a step that nobody knows: {step!r}")

    def _told(self, machine: Sequencer, before: int, effects: Sequence[Effect]) -> Told:
        wants, replies, visible, ended = [], [], [], ""
        for effect in effects:
            match effect:
                case LookUp(token):
                    wants.append((machine._token - token, replace(effect, token=0)))
                case Reply(ticket, answer):
                    replies.append((ticket, self.values.number(answer)))
                case Visible(entries):
                    visible.append(self.values.number(entries))
                case End(why):
                    ended = why
        return Told(machine._token - before, tuple(wants), tuple(replies), tuple(visible), ended)

    # ---- the log, for a look-up

    def read(self, log: Log, wanted: LookUp) -> int:
        """All of a look-up but the look, which comes last: see leader/driver.py."""
        who, incarnation = wanted.publisher, wanted.incarnation
        entry = log.find(who, incarnation, wanted.number) if wanted.number else None
        behind: tuple[Entry, ...] = ()
        if entry is not None and wanted.end >= entry.number + entry.count:
            behind = log.read(entry.last_seq)
        facts = Facts(
            wanted,
            log.look(),
            log.publisher(who) if wanted.state else None,
            log.last_number(who, incarnation) if wanted.last else None,
            entry,
            log.find(who, incarnation, wanted.after) if entry is None and wanted.after else None,
            log.find(who, incarnation, wanted.end) if entry is None and wanted.end else None,
            behind,
        )
        return self.values.number(facts)

    def look(self, facts: int, log: Log) -> int:
        return self.values.number(replace(self.values[facts], look=log.look()))


def _outcome(group: Any) -> Outcome:
    receipt = group.receipt
    if receipt is not None:
        return Outcome(group.handle, "stored", at=(receipt.first.epoch, receipt.first.term, receipt.first.seq))
    error = group.error
    how = "unknown" if getattr(error, "outcome", "") == "unknown" else "refused"
    return Outcome(group.handle, how, error.code)
