"""Publishers, leaders and the log: the production's machines, and everything that may happen between them.

A publisher holds one connection, first in first out both ways, to an instance that takes its messages to whoever leads
(or believes to lead). A connection may break at any point: what was on its way down is lost; what was on its way up may
still arrive, also after the next connection stands. An append is on its way, arrives at the log, is answered; it may
outlive its leader. A leader may be fenced, end, or die at any point. A look-up reads, and then takes its look.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

from changefeed.batch import Entry
from changefeed.leader.effects import LookUp
from changefeed.leader.machine import Sequencer
from changefeed.publisher.machine import PublisherMachine
from changefeed.simulation.explorer.acts import SETTINGS, Acts, Outcome, Told
from changefeed.simulation.explorer.cells import Cells
from changefeed.simulation.explorer.log import FEED, Log, wrong_with
from changefeed.simulation.explorer.publishing_state import (
    INSTANCES,
    Bounds,
    Conn,
    Flight,
    Looking,
    Opening,
    Pub,
    State,
    Stray,
    Term,
)
from changefeed.simulation.explorer.search import Violation
from changefeed.wire.changes import ends_of
from changefeed.wire.faults import fault_of
from changefeed.wire.messages import Open, Reopen

Move = tuple[str, Callable[[], Hashable]]


class Publishing:
    """The world of one search."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.acts = Acts()
        self.publishers: Cells[PublisherMachine] = Cells(SETTINGS)
        self.leaders: Cells[Sequencer] = Cells()
        self.logs: list[Log] = []
        self._log_numbers: dict[Log, int] = {}
        self._known: dict[tuple[Any, ...], Any] = {}

    def begin(self) -> State:
        bounds = self.bounds
        pubs = tuple(
            Pub(self.publishers.add(PublisherMachine(FEED, f"p{index}", f"s{index}", SETTINGS)))
            for index in range(len(bounds.groups))
        )
        return State(
            pubs,
            (None,) * INSTANCES,
            (0,) * INSTANCES,
            self._log_number(Log()),
            (),
            bounds.cuts,
            bounds.unknowns,
            bounds.deaths,
            bounds.unavailable,
        )

    def _log_number(self, log: Log) -> int:
        found = self._log_numbers.setdefault(log, len(self.logs))
        if found == len(self.logs):
            self.logs.append(log)
        return found

    def _once(self, make: Callable[..., Any], *facts: Hashable) -> Any:
        """What `make(*facts)` gives, which depends on nothing else."""
        key = (make, facts)
        if key not in self._known:
            self._known[key] = make(*facts)
        return self._known[key]

    # ---- the log, by number

    def _fenced(self, log: int, instance: int, id: str) -> tuple[int, int, int]:
        """(the log after it, the new leader's machine, its epoch)."""
        after, refused = self.logs[log].fence(self.logs[log].epoch + 1, id, f"i{instance}")
        assert not refused, "an epoch above the fence is fenced"
        machine = Sequencer(
            after.look(),
            after.epoch,
            id,
            append_bytes_max=SETTINGS.append_bytes_max,
            queue_bytes_max=SETTINGS.leader_queue_bytes,
        )
        return self._log_number(after), self.leaders.add(machine), after.epoch

    def _appended(self, log: int, epoch: int, id: str, expected: int, entries: int) -> tuple[int, str]:
        held, stored = self.logs[log], self.acts.values[entries]
        after, refused = held.append(epoch, id, expected, stored)
        wrong = None if refused else wrong_with(held, stored)
        if wrong is not None:
            raise Violation(*wrong)
        return self._log_number(after), refused

    def _refuses(self, log: int, stray: Stray) -> bool:
        entries = self.acts.values[stray.entries]
        return bool(self.logs[log].append(stray.epoch, stray.id, stray.expected, entries)[1])

    def _gave(self, log: int, epoch: int, id: str, publisher: str, named: bool) -> tuple[int, Any]:
        after, given = self.logs[log].open_publisher(epoch, id, publisher, named)
        return self._log_number(after), given

    def _facts_read(self, log: int, wanted: LookUp) -> int:
        return self.acts.read(self.logs[log], wanted)

    def _facts_looked(self, log: int, facts: int) -> int:
        return self.acts.look(facts, self.logs[log])

    # ---- what may happen

    def steps(self, state: State) -> Iterator[Move]:
        for index in range(len(state.pubs)):
            yield from self._publisher_moves(state, index)
        for instance in range(INSTANCES):
            yield from self._leader_moves(state, instance)
        for stray in state.strays:
            yield f"late append: of epoch {stray.epoch} arrives", partial(self._stray, state, stray)

    def at_rest(self, state: State) -> None:
        """Somebody leads, everybody can speak with it, and yet something is not settled."""
        log = self.logs[state.log]
        for term in state.terms:
            if term is None or (term.epoch, term.id) != (log.epoch, log.term):
                continue
            for index, pub in enumerate(state.pubs):
                if len(pub.outcomes) < pub.submitted:
                    raise Violation(
                        "stuck", f"p{index} waits for ever for {pub.submitted - len(pub.outcomes)} receipts"
                    )

    # ---- what a publisher may do

    def _publisher_moves(self, state: State, index: int) -> Iterator[Move]:
        pub, name = state.pubs[index], f"p{index}"
        if pub.submitted < len(self.bounds.groups[index]):
            yield f"submit: {name} publishes group {pub.submitted}", lambda: self._submit(state, index)
        conn = pub.conn
        if conn is None:
            yield f"connect: {name}", lambda: self._connect(state, index)
        else:
            yield from self._up_moves(state, index, conn, "")
            if conn.down:
                said = type(self.acts.values[conn.down[0]]).TYPE
                yield f"down: {name} gets {said}", lambda: self._down(state, index)
            if state.cuts:
                yield f"cut: the connection of {name} breaks", lambda: self._cut(state, index, late=False)
                if conn.up or conn.opening is not None:
                    yield f"cut: of {name}, what it sent still arrives", lambda: self._cut(state, index, late=True)
        if pub.old is not None:
            yield from self._up_moves(state, index, pub.old, " (of the broken connection)")

    def _up_moves(self, state: State, index: int, conn: Conn, which: str) -> Iterator[Move]:
        name = f"p{index}{which}"
        if conn.opening is not None:
            yield from self._opening_moves(state, index, conn, name)
        elif conn.up:
            message = self.acts.values[conn.up[0]]
            if isinstance(message, Open):
                for instance, term in enumerate(state.terms):
                    if term is not None:
                        yield (
                            f"open: {name} at {instance} (epoch {term.epoch})",
                            partial(self._open, state, index, conn, instance),
                        )
            else:
                yield f"publish: {name} sends {message.number}", lambda: self._publish(state, index, conn)

    def _opening_moves(self, state: State, index: int, conn: Conn, name: str) -> Iterator[Move]:
        opening, term = conn.opening, self._term_of(state, conn)
        assert opening is not None
        assert term is not None
        if opening.step == "hold":
            if self.leaders.ask(term.machine, _may_resume, opening.back):
                yield f"resume: {name}", lambda: self._opening(state, index, conn, "resume")
        elif opening.step == "read" and not self.bounds.torn:
            yield f"look: for the opening of {name}", lambda: self._opening_at_once(state, index, conn)
        else:
            yield f"{opening.step}: for the opening of {name}", lambda: self._opening(state, index, conn, opening.step)

    def _submit(self, state: State, index: int) -> State:
        pub = state.pubs[index]
        count = self.bounds.groups[index][pub.submitted]
        return self._tell(
            state, index, pub._replace(submitted=pub.submitted + 1), self.acts.submit, pub.submitted, count
        )

    def _connect(self, state: State, index: int) -> State:
        pub = state.pubs[index]
        taken = "" if pub.old is None else pub.old.name
        name = next(n for n in (f"p{index}a", f"p{index}b") if n != taken)
        return self._tell(state, index, pub._replace(conn=Conn(name)), self.acts.connect)

    def _down(self, state: State, index: int) -> State:
        pub = state.pubs[index]
        conn = pub.conn
        assert conn is not None
        message, rest = conn.down[0], conn.down[1:]
        return self._tell(state, index, pub._replace(conn=conn._replace(down=rest)), self.acts.hear, message)

    def _cut(self, state: State, index: int, *, late: bool) -> State:
        return self._leave(state._replace(cuts=state.cuts - 1), index, late=late)

    def _leave(self, state: State, index: int, *, late: bool) -> State:
        """The connection is over. late: what is on its way up still arrives; what was on an older one does not."""
        state = self._forget(state, index)
        conn = state.pubs[index].conn
        assert conn is not None
        if not late:
            state = self._close(state, conn)
        pub = state.pubs[index]
        assert pub.conn is not None
        old = pub.conn._replace(down=()) if late else None
        return self._tell(state, index, pub._replace(conn=None, old=old), self.acts.disconnect)

    def _forget(self, state: State, index: int) -> State:
        pub = state.pubs[index]
        if pub.old is None:
            return state
        state = self._close(state, pub.old)
        return self._with_pub(state, index, state.pubs[index]._replace(old=None))

    def _close(self, state: State, conn: Conn) -> State:
        """The instance sees the end of a connection."""
        term = self._term_of(state, conn)
        if term is None or conn.term is None:
            return state
        if conn.opening is not None:
            state, _ = self._ask(state, conn.term[0], self.acts.abandon, conn.opening.back)
        state, _ = self._ask(state, conn.term[0], self.acts.close, conn.name)
        return state

    def _tell(self, state: State, index: int, pub: Pub, act: Callable[..., Any], *facts: Hashable) -> State:
        """Tell the publisher's machine a fact, and do what it says."""
        try:
            machine, (sent, outcomes, leaves, stopped) = self.publishers.do(pub.machine, act, *facts)
        except Exception as error:
            raise Violation("crash", f"p{index}: {type(error).__name__}: {error}") from error
        pub = pub._replace(machine=machine)
        if sent and pub.conn is not None:
            pub = pub._replace(conn=pub.conn._replace(up=pub.conn.up + sent))
        if outcomes:
            pub = pub._replace(outcomes=self._judged(state, index, pub, outcomes))
        if stopped:
            raise Violation("C3", f"p{index} was stopped although it is honest")
        state = self._with_pub(state, index, pub)
        if leaves and pub.conn is not None:
            return self._leave(state, index, late=False)
        return state

    def _judged(self, state: State, index: int, pub: Pub, outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
        log = self.logs[state.log]
        for outcome in outcomes:
            if any(known.group == outcome.group for known in pub.outcomes):
                raise Violation("C1", f"group {outcome.group} of p{index} was settled twice")
            if outcome.how != "stored":
                raise Violation("C3", f"group {outcome.group} of p{index} ended as {outcome.how} ({outcome.code})")
            epoch, term, seq = outcome.at
            entry = log.at(seq)
            mark = f"p{index}g{outcome.group}.0".encode()
            if entry is None or mark not in entry.payload:
                raise Violation("C1", f"group {outcome.group} of p{index} was acknowledged at {seq}, which is not it")
            first = seq - entry.seq
            if (entry.epoch, entry.term) != (epoch, term) or not _begins(entry, first, mark):
                raise Violation("C1", f"the receipt of group {outcome.group} of p{index} names {outcome.at}")
        return tuple(sorted((*pub.outcomes, *outcomes), key=lambda one: one.group))

    # ---- an Open, and publishes, at a leader

    def _open(self, state: State, index: int, conn: Conn, instance: int) -> State:
        term = state.terms[instance]
        assert term is not None
        state, told = self._ask(state, instance, self.acts.open, conn.up[0], conn.name)
        for ticket, reply in told.replies:
            state = self._reply(state, (instance, term.number), ticket, reply)
        conn = self._conn_of(state, index, conn.name)
        opened = conn._replace(
            term=(instance, term.number), opened=False, publisher=self.acts.values[conn.up[0]].publisher
        )
        return self._opening_went(state, index, conn, opened, told, instance)

    def _opening(self, state: State, index: int, conn: Conn, step: str) -> State:
        opening = conn.opening
        assert opening is not None and conn.term is not None
        instance = conn.term[0]
        if step == "read":
            facts = self._once(self._facts_read, state.log, opening.wanted)
            return self._with_conn(
                state, index, conn, conn._replace(opening=opening._replace(step="look", facts=facts))
            )
        if step == "look":
            facts = self._once(self._facts_looked, state.log, opening.facts)
            state, told = self._ask(state, instance, self.acts.open_found, opening.back, facts)
        elif step == "give":
            term = state.terms[instance]
            assert term is not None
            number, given = self._once(self._gave, state.log, term.epoch, term.id, *opening.wanted)
            state = state._replace(log=number)
            state, told = self._ask(state, instance, self.acts.open_given, opening.back, given)
        else:
            state, told = self._ask(state, instance, self.acts.resume, opening.back)
        # Looks that were begun meanwhile have moved the token on; `_ask` has counted that in the state.
        now = self._conn_of(state, index, conn.name)
        return self._opening_went(state, index, now, now, told, instance)

    def _opening_at_once(self, state: State, index: int, conn: Conn) -> State:
        state = self._opening(state, index, conn, "read")
        return self._opening(state, index, self._conn_of(state, index, conn.name), "look")

    def _opening_went(self, state: State, index: int, conn: Conn, after: Conn, told: Told, instance: int) -> State:
        kind, what = told.step
        if kind == "look":
            after = after._replace(opening=Opening(what[0], "read", what[1]))
        elif kind == "hold":
            after = after._replace(opening=Opening(what, "hold"))
        elif kind == "give":
            after = after._replace(opening=Opening(what[0], "give", what[1:]))
        elif kind == "admit":
            after = after._replace(
                opening=None, opened=True, up=after.up[1:], down=(*after.down, what[0]), incarnation=what[1]
            )
        else:
            error = self.acts.values[what]
            if error.retryable:  # the instance asks again, whoever leads then
                after = after._replace(opening=None, term=None)
            else:
                message = self.acts.values.number(fault_of(error))
                after = after._replace(opening=None, term=None, up=(), down=(*after.down, message))
        state = self._with_conn(state, index, conn, after)
        return self._ended(state, told, instance)

    def _publish(self, state: State, index: int, conn: Conn) -> State:
        after = conn._replace(up=conn.up[1:])
        state = self._with_conn(state, index, conn, after)
        if not conn.opened or self._term_of(state, conn) is None or conn.term is None:
            return state  # the leader is lost: what was not taken is sent again
        instance = conn.term[0]
        state, told = self._ask(
            state, instance, self.acts.publish, conn.name, conn.up[0], conn.publisher, conn.incarnation
        )
        return self._went(state, instance, told)

    # ---- what a leader may do

    def _leader_moves(self, state: State, instance: int) -> Iterator[Move]:
        term = state.terms[instance]
        if state.used[instance] < self.bounds.terms and (instance == 0 or any(state.used)):
            yield f"lead: {instance} wins an epoch and fences the log", lambda: self._lead(state, instance)
        if term is None:
            return
        name = f"{instance} (epoch {term.epoch})"
        for looking in term.looking:
            if not self.bounds.torn:
                yield f"look: {name} for a batch", partial(self._look_at_once, state, instance, looking)
            elif looking.facts < 0:
                yield f"read: {name} for a batch", partial(self._read, state, instance, looking)
            else:
                yield f"look: {name} for a batch", partial(self._look, state, instance, looking)
        flight = term.flight
        if flight is not None and flight.result is None:
            yield f"append: of {name} arrives", lambda: self._land(state, instance)
            if state.unavailable:
                yield f"unavailable: the log cannot take the append of {name}", lambda: self._refused(state, instance)
        elif flight is not None:
            yield f"answer: of the log to {name}", lambda: self._answer(state, instance, flight.result or "")
        if flight is not None and state.unknowns:
            yield f"unknown: {name} gets no answer to its append", lambda: self._unknown(state, instance)
        if state.deaths:
            yield f"death: {name}", lambda: self._end(state._replace(deaths=state.deaths - 1), instance)

    def _lead(self, state: State, instance: int) -> State:
        state = self._end(state, instance)
        number = sum(state.used) + 1
        used = tuple(n + (i == instance) for i, n in enumerate(state.used))
        id = f"{number:08x}"
        log, machine, epoch = self._once(self._fenced, state.log, instance, id)
        term = Term(machine, epoch, id, number)
        terms = tuple(term if i == instance else one for i, one in enumerate(state.terms))
        return state._replace(log=log, used=used, terms=terms, strays=self._alive(log, state.strays))

    def _end(self, state: State, instance: int) -> State:
        """Its term is over, by its own will or not. An append that is on its way still arrives, or does not."""
        term = state.terms[instance]
        if term is None:
            return state
        strays = state.strays
        flight = term.flight
        if flight is not None and flight.result is None:
            strays = (*strays, Stray(term.epoch, term.id, flight.expected, flight.entries))
        terms = tuple(None if i == instance else one for i, one in enumerate(state.terms))
        lost = (instance, term.number)
        pubs = tuple(pub._replace(conn=self._lost(pub.conn, lost), old=self._lost(pub.old, lost)) for pub in state.pubs)
        return state._replace(pubs=pubs, terms=terms, strays=self._alive(state.log, strays))

    def _lost(self, conn: Conn | None, term: tuple[int, int]) -> Conn | None:
        """The leader of a connection is lost: an Open is asked again of whoever leads then; who was open is told."""
        if conn is None or conn.term != term:
            return conn
        if conn.opened:
            reopen = self.acts.values.number(Reopen("the leader changed"))
            conn = conn._replace(down=(*conn.down, reopen), opened=False)
        return conn._replace(opening=None, term=None)

    def _alive(self, log: int, strays: tuple[Stray, ...]) -> tuple[Stray, ...]:
        """Those that the log would take. Fences and tails only grow: what is refused now is refused for ever."""
        return tuple(one for one in strays if not self._once(self._refuses, log, one)) if strays else ()

    def _read(self, state: State, instance: int, looking: Looking) -> State:
        term = state.terms[instance]
        assert term is not None
        facts = self._once(self._facts_read, state.log, looking.wanted)
        rest = tuple(looking._replace(facts=facts) if one == looking else one for one in term.looking)
        return self._with_term(state, instance, term._replace(looking=rest))

    def _look(self, state: State, instance: int, looking: Looking) -> State:
        term = state.terms[instance]
        assert term is not None
        facts = self._once(self._facts_looked, state.log, looking.facts)
        state = self._with_term(
            state, instance, term._replace(looking=tuple(one for one in term.looking if one != looking))
        )
        state, told = self._ask(state, instance, self.acts.found, looking.back, facts)
        return self._went(state, instance, told)

    def _look_at_once(self, state: State, instance: int, looking: Looking) -> State:
        state = self._read(state, instance, looking)
        facts = self._once(self._facts_read, state.log, looking.wanted)
        return self._look(state, instance, looking._replace(facts=facts))

    def _land(self, state: State, instance: int) -> State:
        term = state.terms[instance]
        assert term is not None and term.flight is not None
        state, refused = self._store(state, term.epoch, term.id, term.flight.expected, term.flight.entries)
        return self._with_term(state, instance, term._replace(flight=term.flight._replace(result=refused)))

    def _store(self, state: State, epoch: int, id: str, expected: int, entries: int) -> tuple[State, str]:
        number, refused = self._once(self._appended, state.log, epoch, id, expected, entries)
        return state._replace(log=number, strays=self._alive(number, state.strays)), refused

    def _stray(self, state: State, stray: Stray) -> State:
        rest = list(state.strays)
        rest.remove(stray)
        state = state._replace(strays=tuple(rest))
        return self._store(state, stray.epoch, stray.id, stray.expected, stray.entries)[0]

    def _answer(self, state: State, instance: int, result: str) -> State:
        term = state.terms[instance]
        assert term is not None
        state = self._with_term(state, instance, term._replace(flight=None))
        state, told = self._ask(state, instance, self.acts.appended, result)
        return self._went(state, instance, told)

    def _unknown(self, state: State, instance: int) -> State:
        """The log's answer is lost; the append may have arrived, or may yet."""
        term = state.terms[instance]
        assert term is not None and term.flight is not None
        state = state._replace(unknowns=state.unknowns - 1)
        if term.flight.result is None:
            stray = Stray(term.epoch, term.id, term.flight.expected, term.flight.entries)
            state = state._replace(strays=self._alive(state.log, (*state.strays, stray)))
        return self._answer(state, instance, "unknown")

    def _refused(self, state: State, instance: int) -> State:
        return self._answer(state._replace(unavailable=state.unavailable - 1), instance, "unavailable")

    # ---- what a leader said

    def _ask(self, state: State, instance: int, act: Callable[..., Told], *facts: Hashable) -> tuple[State, Told]:
        """Tell a leader's machine a fact. Everything that counts from its newest token is counted on."""
        term = state.terms[instance]
        assert term is not None
        try:
            machine, told = self.leaders.do(term.machine, act, *facts)
        except Exception as error:
            raise Violation("crash", f"leader {instance}: {type(error).__name__}: {error}") from error
        looking = term.looking
        if told.shift:
            looking = tuple(one._replace(back=one.back + told.shift) for one in looking)
            state = self._shifted(state, (instance, term.number), told.shift)
        return self._with_term(state, instance, term._replace(machine=machine, looking=looking)), told

    def _shifted(self, state: State, term: tuple[int, int], shift: int) -> State:
        def moved(conn: Conn | None) -> Conn | None:
            if conn is None or conn.opening is None or conn.term != term:
                return conn
            return conn._replace(opening=conn.opening._replace(back=conn.opening.back + shift))

        return state._replace(pubs=tuple(pub._replace(conn=moved(pub.conn), old=moved(pub.old)) for pub in state.pubs))

    def _went(self, state: State, instance: int, told: Told) -> State:
        """Look-ups begin, answers are on their way, entries are visible; the next append leaves."""
        term = state.terms[instance]
        assert term is not None
        if told.wants:
            looking = (*term.looking, *(Looking(back, wanted) for back, wanted in told.wants))
            state = self._with_term(state, instance, term._replace(looking=looking))
        for ticket, message in told.replies:
            state = self._reply(state, (instance, term.number), ticket, message)
        log = self.logs[state.log]
        for number in told.visible:
            for entry in self.acts.values[number]:
                if log.at(entry.seq) != entry:
                    raise Violation("C12", f"the entry at {entry.seq} is visible, but the log does not hold it")
        return self._ended(state, told, instance)

    def _ended(self, state: State, told: Told, instance: int) -> State:
        if told.ended:
            return self._end(state, instance)
        term = state.terms[instance]
        assert term is not None
        if term.flight is None:
            machine, append = self.leaders.do(term.machine, self.acts.next_append)
            flight = None if append is None else Flight(*append)
            state = self._with_term(state, instance, term._replace(machine=machine, flight=flight))
        return state

    def _reply(self, state: State, term: tuple[int, int], channel: str, message: int) -> State:
        answer, log = self.acts.values[message], self.logs[state.log]
        if answer.first is not None:
            entry = log.at(answer.first.seq)
            if entry is None or log.tail.seq < answer.first.seq + answer.count - 1:
                raise Violation("C1", f"a receipt for {answer.first.seq} leaves before the log holds it")
        for index, pub in enumerate(state.pubs):
            conn = pub.conn
            if conn is not None and conn.name == channel and conn.term == term and conn.opened:
                conn = conn._replace(down=(*conn.down, message))
                return self._with_pub(state, index, pub._replace(conn=conn))
        return state  # nobody is there to read it

    # ---- parts of a state

    def _stands(self, state: State, term: tuple[int, int]) -> bool:
        found = state.terms[term[0]]
        return found is not None and found.number == term[1]

    def _term_of(self, state: State, conn: Conn) -> Term | None:
        if conn.term is None or not self._stands(state, conn.term):
            return None
        return state.terms[conn.term[0]]

    def _conn_of(self, state: State, index: int, name: str) -> Conn:
        pub = state.pubs[index]
        for conn in (pub.conn, pub.old):
            if conn is not None and conn.name == name:
                return conn
        raise AssertionError(f"no connection {name}")

    def _with_conn(self, state: State, index: int, was: Conn, conn: Conn) -> State:
        pub = state.pubs[index]
        if pub.conn is not None and pub.conn.name == was.name:
            return self._with_pub(state, index, pub._replace(conn=conn))
        if not conn.up and conn.opening is None:
            state = self._close(state, conn)
            return self._with_pub(state, index, state.pubs[index]._replace(old=None))
        return self._with_pub(state, index, pub._replace(old=conn))

    def _with_pub(self, state: State, index: int, pub: Pub) -> State:
        return state._replace(pubs=tuple(pub if i == index else one for i, one in enumerate(state.pubs)))

    def _with_term(self, state: State, instance: int, term: Term) -> State:
        return state._replace(terms=tuple(term if i == instance else one for i, one in enumerate(state.terms)))


def _may_resume(machine: Sequencer, back: int) -> bool:
    opening = machine._openings[machine._token - back]
    return machine.ended is not None or opening.barrier is None or opening.barrier.settled


def _begins(entry: Entry, offset: int, mark: bytes) -> bool:
    """Whether the change at that offset of an entry is the one that bears the mark."""
    ends = [0, *ends_of(entry.payload)]
    return mark in entry.payload[ends[offset] : ends[offset + 1]]
