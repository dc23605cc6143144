"""A subscriber, the sessions that serve it and the log: the production's machines, and everything that may happen.

The log grows by entries of two terms, one of them a group of two changes. Each instance learns of the visible tail when
it likes, one may be started anew and then knows none. The subscriber's connection may break at any point; frames that
were on their way may still come; the subscriber may die and come back with what it saved together with its effects.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from changefeed.batch import Batch, Entry, Tail, batch_digest, chain
from changefeed.change import Change, Filter, Position
from changefeed.errors import CannotResume, ConnectionLost, NotCurrent
from changefeed.log import PublisherState
from changefeed.serving.filters import compile_filter
from changefeed.serving.machine import Read, Send, Session, Sight, admit
from changefeed.settings import Settings
from changefeed.simulation.explorer.acts import LIMITS
from changefeed.simulation.explorer.cells import Cells, Values
from changefeed.simulation.explorer.log import FEED, LINEAGE, Log
from changefeed.simulation.explorer.search import Violation
from changefeed.subscriber.machine import SubscriberMachine
from changefeed.wire.changes import encode_change, split
from changefeed.wire.faults import fault_of
from changefeed.wire.frames import run_of
from changefeed.wire.messages import Fault, Start, Subscribe, Subscribed

Move = tuple[str, Callable[[], Hashable]]
SETTINGS: Final = Settings()
#: (epoch, ops of each change of a group), one entry each: what the log comes to hold.
ENTRIES: Final = ((1, ("a",)), (2, ("b", "a")), (2, ("b",)))
#: Frames on their way that one connection holds.
DOWN_MAX: Final = 2


@dataclass(frozen=True)
class ReadBounds:
    """entries: how many of ENTRIES. cuts, deaths (of the subscriber), restarts (of an instance): how often. ops: what
    the filter selects, () for everything. start: "beginning" or "now"."""

    entries: int = 3
    cuts: int = 1
    deaths: int = 1
    restarts: int = 1
    ops: tuple[str, ...] = ()
    start: str = "beginning"


class Serving(NamedTuple):
    """A connection. asked: the Subscribe that was not answered yet. session: None before that. down: on their way."""

    instance: int
    generation: int
    asked: int | None
    session: int | None = None
    down: tuple[int, ...] = ()


class ReadState(NamedTuple):
    """held: entries in the log. vouched: those that a leader announced. tails: what each instance knows of that, -1 for
    nothing. effects: keys that the application applied; saved: the position that it saved with the last of them."""

    held: int
    vouched: int
    tails: tuple[int, ...]
    machine: int
    conn: Serving | None
    old: Serving | None
    effects: tuple[str, ...]
    saved: Position | None
    origin: int
    cuts: int
    deaths: int
    restarts: int


class Reading:
    """The world of one search."""

    def __init__(self, bounds: ReadBounds) -> None:
        self.bounds = bounds
        self.filter = Filter(ops=frozenset(bounds.ops))
        self.wanted = compile_filter(self.filter) if self.filter else None
        self.values = Values()
        self.subscribers: Cells[SubscriberMachine] = Cells(SETTINGS)
        self.sessions: Cells[Session] = Cells(SETTINGS)
        self.logs = [_log(count) for count in range(bounds.entries + 1)]

    def begin(self) -> ReadState:
        bounds = self.bounds
        machine = self.subscribers.add(self._machine(None))
        return ReadState(0, 0, (-1, -1), machine, None, None, (), None, -1, bounds.cuts, bounds.deaths, bounds.restarts)

    def _machine(self, saved: Position | None) -> SubscriberMachine:
        return SubscriberMachine(FEED, "s", Start(at=self.bounds.start), self.filter, SETTINGS, saved=saved)

    # ---- what may happen

    def steps(self, state: ReadState) -> Iterator[Move]:
        if state.held < self.bounds.entries:
            yield "append: an entry joins the log", lambda: state._replace(held=state.held + 1)
        if state.vouched < state.held:
            yield "announce: by the leader", lambda: state._replace(vouched=state.vouched + 1)
        for instance, tail in enumerate(state.tails):
            if tail < state.vouched:
                tails = tuple(state.vouched if i == instance else t for i, t in enumerate(state.tails))
                yield f"learn: {instance} hears of the tail", partial(state._replace, tails=tails)
            if state.restarts and tail >= 0:
                yield f"restart: of {instance}", partial(self._restart, state, instance)
        yield from self._connection_moves(state)
        event = self.subscribers.ask(state.machine, _next)
        if event is not None:
            yield f"apply: {event[0]}", lambda: self._apply(state)
        if state.deaths and state.saved is not None:
            yield "death: of the subscriber", lambda: self._die(state)

    def _connection_moves(self, state: ReadState) -> Iterator[Move]:
        conn = state.conn
        if conn is None:
            for instance in range(len(state.tails)):
                yield f"connect: to {instance}", partial(self._connect, state, instance)
        else:
            if conn.asked is not None:
                yield f"admit: by {conn.instance}", lambda: self._admit(state, conn)
            elif len(conn.down) < DOWN_MAX and self._may_serve(state, conn):
                yield f"serve: by {conn.instance}", lambda: self._serve(state, conn)
            if conn.down and self.subscribers.ask(state.machine, _has_room):
                yield "down: a message comes", lambda: self._hear(state, conn)
            if state.cuts:
                yield "cut: the connection breaks", lambda: self._cut(state._replace(cuts=state.cuts - 1))
        if state.old is not None and state.old.down:
            yield "late: a message of the broken connection comes", partial(self._hear_late, state, state.old)

    def at_rest(self, state: ReadState) -> None:
        if state.effects != self._right(state, self.bounds.entries):
            raise Violation("stuck", f"the subscriber has {state.effects} of {self._right(state, self.bounds.entries)}")

    # ---- the instances

    def _restart(self, state: ReadState, instance: int) -> ReadState:
        tails = tuple(-1 if i == instance else t for i, t in enumerate(state.tails))
        state = state._replace(tails=tails, restarts=state.restarts - 1)
        return self._cut(state) if state.conn is not None and state.conn.instance == instance else state

    def _admit(self, state: ReadState, conn: Serving) -> ReadState:
        request: Subscribe = self.values[conn.asked]  # type: ignore[index]
        look, tail = self.logs[state.held].look(), self._tail(state.tails[conn.instance])
        try:
            start = admit(request, look, tail)
        except NotCurrent:
            return state._replace(conn=None, machine=self._told(state, self._disconnect)[0])
        except CannotResume as error:
            if request.start.position is not None and look.check(request.start.position) is None:
                raise Violation("C13", f"{error.code} is said of a position that the log holds") from error
            return self._down(state, conn._replace(asked=None), fault_of(error))
        head = look.head if tail is None else tail.position(LINEAGE)
        session = self.sessions.add(Session(start, SETTINGS, 0.0, 0.0))
        welcome = Subscribed(FEED, f"i{conn.instance}", f"p{conn.instance}", start, head, "", 0, LIMITS)
        return self._down(state, conn._replace(asked=None, session=session), welcome)

    def _tail(self, count: int) -> Tail | None:
        return None if count < 0 else self.logs[count].tail

    def _down(self, state: ReadState, conn: Serving, message: Any) -> ReadState:
        return state._replace(conn=conn._replace(down=(*conn.down, self.values.number(message))))

    def _may_serve(self, state: ReadState, conn: Serving) -> bool:
        if conn.session is None:
            return False
        step = self.sessions.ask(conn.session, _step_asked, state.tails[conn.instance], self._seq(state, conn))
        return bool(step)

    def _seq(self, state: ReadState, conn: Serving) -> int:
        tail = self._tail(state.tails[conn.instance])
        return -1 if tail is None else tail.seq

    def _serve(self, state: ReadState, conn: Serving) -> ReadState:
        """Until it has said something, or waits: reading and sending by turns."""
        session, message = self.sessions.do(conn.session, self._step, self._seq(state, conn), state.held)  # type: ignore[arg-type]
        conn = conn._replace(session=session)
        if message is None:
            return state._replace(conn=conn)
        return state._replace(conn=conn._replace(down=(*conn.down, message)))

    def _step(self, session: Session, tail: int, held: int) -> int | None:
        sight = Sight(tail, 1, 0.0, (), False)
        match session.step(0.0, sight):
            case Read(after, upto):
                entry = self.logs[held].read(after)[0]
                if entry.last_seq > upto:
                    raise Violation("C12", f"an entry up to {entry.last_seq} is read, visible is {upto}")
                run = run_of(entry, after, self.wanted)
                to = Position(LINEAGE, entry.epoch, entry.term, entry.last_seq)
                session.took([] if run is None else [run], to, 0.0)
                return None
            case Send(message):
                return self.values.number(message)
        return None

    # ---- the subscriber

    def _told(self, state: ReadState, act: Callable[..., Any], *facts: Hashable) -> tuple[int, Any]:
        try:
            return self.subscribers.do(state.machine, act, *facts)
        except Exception as error:
            raise Violation("crash", f"subscriber: {type(error).__name__}: {error}") from error

    def _connect(self, state: ReadState, instance: int) -> ReadState:
        other = 0 if state.old is None else state.old.generation
        machine, (generation, asked) = self._told(state, self._connected, other)
        return state._replace(machine=machine, conn=Serving(instance, generation, asked))

    def _connected(self, machine: SubscriberMachine, other: int) -> tuple[int, int]:
        # Generations only say whether a message is of the present connection: another one than the last is enough.
        machine._generation = 1 if other == 1 else 0
        generation = machine.connected(0.0)
        return generation, self.values.number(machine.take(0.0))

    def _disconnect(self, machine: SubscriberMachine) -> None:
        machine.disconnected(ConnectionLost("cut"))

    def _cut(self, state: ReadState) -> ReadState:
        """What was on its way may still come; what was on the way of an older connection does not."""
        machine, _ = self._told(state, self._disconnect)
        old = state.conn if state.conn is not None and state.conn.down else None
        return state._replace(machine=machine, conn=None, old=old)

    def _hear(self, state: ReadState, conn: Serving) -> ReadState:
        message, rest = conn.down[0], conn._replace(down=conn.down[1:])
        machine, leaves = self._told(state, self._heard, message, conn.generation)
        state = state._replace(machine=machine, conn=rest)
        said = self.values[message]
        if self.bounds.start == "now" and state.origin < 0 and isinstance(said, Subscribed):
            # Where now was, the server says; where the beginning is, nobody needs to be told.
            state = state._replace(origin=said.position.seq)
        return self._cut(state) if leaves else state

    def _hear_late(self, state: ReadState, old: Serving) -> ReadState:
        machine, leaves = self._told(state, self._heard, old.down[0], old.generation)
        if leaves:
            raise Violation("C10", "a message of a connection that is gone makes it leave the present one")
        rest = old._replace(down=old.down[1:])
        return state._replace(machine=machine, old=rest if rest.down else None)

    def _heard(self, machine: SubscriberMachine, message: int, generation: int) -> bool:
        said = self.values[message]
        effects = machine.received(said, generation, 0.0)
        if machine.failure is not None or isinstance(said, Fault):
            raise Violation("C13", f"the subscriber is told {machine.failure or said}, although nothing was lost")
        return any(type(effect).__name__ in ("Leave", "Go") for effect in effects)

    def _apply(self, state: ReadState) -> ReadState:
        """The application has the next event; its effect and its position are saved in one step."""
        machine, (key, seq, position) = self._told(state, _given)
        effects = (*state.effects, key)
        log = self.logs[state.vouched]
        if log.tail.seq < seq:
            raise Violation("C12", f"{key} at {seq} is given, vouched for is {log.tail.seq}")
        right = self._right(state, self.bounds.entries)
        if effects != right[: len(effects)]:
            raise Violation("C5", f"the effects are {effects}, the log says {right}")
        return state._replace(machine=machine, effects=effects, saved=position)

    def _right(self, state: ReadState, entries: int) -> tuple[str, ...]:
        return tuple(
            f"k{seq}"
            for seq, op in enumerate((op for _, ops in ENTRIES[:entries] for op in ops), 1)
            if seq > max(state.origin, 0) and (not self.bounds.ops or op in self.bounds.ops)
        )

    def _die(self, state: ReadState) -> ReadState:
        machine = self.subscribers.add(self._machine(state.saved))
        return state._replace(machine=machine, conn=None, old=None, deaths=state.deaths - 1)


# ---- questions and facts for a subscriber's machine


def _step_asked(session: Session, _count: int, tail: int) -> str:
    step = session.step(0.0, Sight(tail, 1, 0.0, (), False))
    return type(step).__name__ if isinstance(step, Read | Send) else ""


def _has_room(machine: SubscriberMachine) -> bool:
    return machine.has_room


def _next(machine: SubscriberMachine) -> tuple[str, int] | None:
    machine.settle(0.0)
    event = machine.advance() or machine.ask()
    return None if event is None else (event.id, event.position.seq)


def _given(machine: SubscriberMachine) -> tuple[str, int, Position]:
    machine.settle(0.0)
    event = machine.advance() or machine.ask()
    assert event is not None
    machine.settle(0.0)
    return event.id, event.position.seq, event.position


def _log(count: int) -> Log:
    """The log that holds the first `count` of ENTRIES."""
    log = Log()
    seq = 1
    for epoch, ops in ENTRIES[:count]:
        if log.epoch < epoch:
            log, _ = log.fence(epoch, f"{epoch:08x}", "i0")
        payload = b"".join(
            encode_change(Change("r", f"k{seq + index}", op), SETTINGS.change_bytes_max) for index, op in enumerate(ops)
        )
        assert len(split(payload)) == len(ops)
        batch = Batch("p", 1, seq - 1, seq, (len(ops),), payload)
        digest = batch_digest(batch.sizes, payload)
        entry = Entry(epoch, log.term, seq, 0, "p", 1, seq - 1, seq, batch.sizes, payload, digest)
        object.__setattr__(entry, "digest", chain(log.tail.digest, LINEAGE, entry))
        if not log.publishers:
            log = Log(log.epoch, log.term, log.tail, (), log.epochs, (PublisherState("p", 1, 0, 0, False),), 1)
        log, refused = log.append(epoch, log.term, seq - 1, (entry,))
        assert not refused
        seq += len(ops)
    return log
