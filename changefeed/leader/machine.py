"""One leader's term: what is accepted, what an append holds, and which answers may leave after it (pure).

A batch is judged when it comes: it goes on where its publisher's numbers end -> it waits for the next append; its
numbers are known -> it gets the receipt that it had (after the append that is under way, if it is in that); anything
else is refused, but *finally* only after a look into the log that began after the batch came and found this term's
fence. At most one append is under way; what waits meanwhile goes into the next. Durable, then answers, then visible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from changefeed.batch import ENTRY_OVERHEAD, Batch, Entry, Tail
from changefeed.change import Position
from changefeed.errors import (
    AcknowledgedLost,
    BadMessage,
    ChangefeedError,
    InvalidName,
    LogError,
    LogFull,
    LogUnavailable,
    NotCurrent,
)
from changefeed.leader import refusals
from changefeed.leader.book import IDLE_MAX, Accepted, Channel, Flight, Known, Opening, Request, Run, shared, stamped
from changefeed.leader.checks import Checks
from changefeed.leader.effects import (
    Admit,
    Append,
    Deny,
    Effect,
    End,
    Facts,
    Give,
    Hold,
    LookUp,
    Reply,
    Step,
    Visible,
)
from changefeed.log import OUTBOX
from changefeed.wire.messages import Answer, Open

if TYPE_CHECKING:
    from changefeed.change import Key
    from changefeed.log import Look, PublisherState

#: Between two tries of an append that the log could not take; doubles up to the second.
RETRY_S: Final = 0.05
RETRY_MAX_S: Final = 1.0


class Sequencer:
    """One term. `look` is the one that fencing returned. Methods return effects in the order of their performance."""

    def __init__(
        self,
        look: Look,
        epoch: int,
        term: str,
        *,
        append_bytes_max: int,
        queue_bytes_max: int,
        snapshot: bool = False,
    ) -> None:
        """snapshot: the feed keeps one, as far as is known now; see `keep_snapshot`."""
        self.epoch = epoch
        self.term = term
        self.lineage = look.lineage
        self.tail = look.tail
        self.ended: str | None = None
        self.finishing = False
        self.queue_bytes = 0
        self.repeated = 0
        self.refused = 0
        self._append_bytes_max = append_bytes_max
        self._queue_bytes_max = queue_bytes_max
        self._known: dict[str, Known] = {}
        self._idle: dict[str, None] = {}
        self._channels: dict[str, Channel] = {}
        self._openings: dict[int, Opening] = {}
        self._looking: dict[int, Request] = {}
        self._held: list[Request] = []
        self._displaced: list[Reply] = []
        self._waiting: deque[Accepted] = deque()
        self._flight: Flight | None = None
        self._token = 0
        self.checks = Checks(self._judge, self._refuse, self._look_up, self._looking)
        if snapshot:
            self.keep_snapshot(look)

    # ---- what the driver and status ask

    def room(self, size: int) -> bool:
        """Whether a batch of so many bytes may be brought now. A batch above the whole bound comes alone."""
        if self.checks.guard.full:
            return False
        return self.queue_bytes == 0 or self.queue_bytes + size <= self._queue_bytes_max

    @property
    def idle(self) -> bool:
        """Nothing waits, is in flight or is being looked up: all that was brought is answered."""
        return not (self._waiting or self._flight or self._looking or self._held or self.checks.waiting)

    @property
    def channels(self) -> int:
        return len(self._channels)

    @property
    def publishers(self) -> int:
        return len(self._known)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    # ---- the term's end

    def finish(self) -> None:
        """Take no more; what was taken is still appended and answered."""
        self.finishing = True

    def end(self, why: str) -> list[Effect]:
        """Over, at once: nothing more is answered."""
        if self.ended is not None:
            return []
        self.ended = why
        self.queue_bytes = 0
        self._channels.clear()
        self._looking.clear()
        self._held.clear()
        self.checks.clear()
        self._waiting.clear()
        self._flight = None
        return [End(why)]

    def failed(self, error: ChangefeedError) -> list[Effect]:
        """A call of the log, other than an append or a look-up, failed: some errors end the term."""
        why = refusals.ends_term(error)
        return [] if why is None else self.end(why)

    # ---- the snapshot

    def keep_snapshot(self, look: Look) -> None:
        """The feed keeps a snapshot: from now on batches are checked; where that needs what stands between the snapshot
        and the log's end, after `built`. Nothing happens if that is known already."""
        if self.checks.guard.on or self.ended is not None:
            return
        self.checks.guard.begin(look)
        for accepted in self._accepted():
            self.checks.note(accepted)

    def keep_no_snapshot(self) -> list[Effect]:
        """It keeps none any more."""
        effects: list[Effect] = []
        if self.checks.guard.on:
            self.checks.stop(self._accepted(), effects)
        return effects

    def built(self, found: Sequence[tuple[dict[Key, int], int]]) -> list[Effect]:
        """What stands between the snapshot and the log's end has been read; see Guard.built."""
        self.checks.guard.built(found)
        effects: list[Effect] = []
        self.checks.again(effects)
        return effects

    def _accepted(self) -> list[Accepted]:
        flight = [] if self._flight is None else self._flight.accepted
        return [*flight, *self._waiting]

    # ---- opening a publisher

    def open(self, request: Open, channel: str, *, own: bool = False) -> Step:
        """A publisher wants to publish over `channel`. Earlier channels of its session are replaced, also this one:
        what they brought is still appended, their answers are dropped. own: it is the leader itself, who moves what
        waits in an outbox."""
        self.close(channel)
        if request.publisher == OUTBOX and not own:
            return Deny(InvalidName(f"the publisher id {OUTBOX!r} is reserved; choose another one"))
        if self.ended is not None or self.finishing:
            return Deny(NotCurrent("this leader's term has ended or is ending; ask again"))
        known = self._known.setdefault(request.publisher, Known(request.publisher))
        self._idle.pop(request.publisher, None)
        known.openings += 1
        for other in [c for c in known.channels if c.session == request.session]:
            self._displace(other)
        self._token += 1
        opening = self._openings[self._token] = Opening(self._token, request, channel, known)
        return self._prepare(opening)

    def displaced(self) -> list[Reply]:
        """After `open`: answers for those who wait on the channels that were replaced."""
        displaced, self._displaced = self._displaced, []
        return displaced

    def _displace(self, channel: Channel) -> None:
        """The Open that replaces a channel may be the late one, of a connection that broke before this channel was
        opened. So whoever waits on it must not wait for ever: it opens again, and sends again under the same numbers.
        """
        error = NotCurrent("this publisher was opened over another connection meanwhile; open it again, and resend")
        self._displaced += [Reply(request.ticket, refusals.refusal(request.batch, error)) for request in channel.queue]
        self.close(channel.name)

    def resume(self, token: int) -> Step:
        """After Hold, once an append was settled."""
        opening = self._openings[token]
        if self.ended is not None:
            return self._deny(opening, NotCurrent("this leader's term has ended; ask again"))
        barrier = opening.barrier
        if barrier is not None and not barrier.settled:
            return Hold(token)
        return self._look_up_opening(opening)

    def open_found(self, token: int, facts: Facts) -> Step:
        """What the log said for an opening."""
        opening = self._openings[token]
        request, known = opening.request, opening.known
        if not self._ours(facts.look):
            self.end("fenced")
            return self._deny(opening, NotCurrent("another leader has taken over; ask again"))
        if known.run is None and facts.state is not None:
            known.learn(facts.state)
        lost = refusals.lost_receipt(request, facts.look)
        if lost is not None:
            if request.incarnation is not None and not facts.asked.last:
                return self._prepare(opening, last=True)
            newest = known.run.stored if request.incarnation is None and known.run is not None else None
            return self._deny(opening, AcknowledgedLost(lost, facts.last or newest or 0))
        if self.ended is not None:
            return self._deny(opening, NotCurrent("this leader's term has ended; ask again"))
        if request.incarnation is None:
            return self._in_use(opening) or Give(token, request.publisher, request.named)
        if known.run is not None and request.incarnation == known.run.incarnation:
            return self._in_use(opening) or self._admit(opening, known.run)
        if known.run is not None and request.incarnation < known.run.incarnation:
            if not facts.asked.last:
                return self._prepare(opening, last=True)
            return self._deny(opening, refusals.superseded(request.publisher, request.incarnation, facts.last))
        return self._deny(opening, refusals.unknown_incarnation(request.publisher, request.incarnation, facts.look))

    def open_given(self, token: int, state: PublisherState) -> Step:
        """The log gave (or kept) the incarnation that Give asked for."""
        opening = self._openings[token]
        run = opening.known.learn(state)
        return self._in_use(opening) or self._admit(opening, run)

    def open_failed(self, token: int, error: ChangefeedError) -> Step:
        """The log could not be asked, or gave no incarnation."""
        opening = self._openings[token]
        self.failed(error)
        if isinstance(error, LogError):
            error = NotCurrent(f"the log could not be asked ({error}); ask again")
        return self._deny(opening, error)

    def open_abandoned(self, token: int) -> None:
        """Whoever opened does not wait any more. Harmless after Admit and Deny."""
        opening = self._openings.pop(token, None)
        if opening is not None:
            opening.known.openings -= 1
            self._release(opening.known)

    def close(self, channel: str) -> None:
        """The connection ended: what it brought is still appended, its answers are dropped."""
        found = self._channels.pop(channel, None)
        if found is not None:
            found.closed = True
            found.queue.clear()
            found.run.known.channels.discard(found)
            self._release(found.run.known)

    def _prepare(self, opening: Opening, *, last: bool = False) -> Step:
        """Let what is pending of this publisher settle first: then the last number that the log tells is final."""
        opening.last = last
        run = opening.known.run_of(opening.request.incarnation)
        opening.barrier = None if run is None else run.last_pending()
        return self._look_up_opening(opening) if opening.barrier is None else Hold(opening.token)

    def _look_up_opening(self, opening: Opening) -> LookUp:
        request = opening.request
        unknown = opening.known.run is None
        return LookUp(opening.token, request.publisher, request.incarnation or 0, state=unknown, last=opening.last)

    def _in_use(self, opening: Opening) -> Deny | None:
        """A named publisher has one living session."""
        request, known = opening.request, opening.known
        if not (request.named or known.named) or not known.in_use(request.session):
            return None
        return self._deny(opening, refusals.in_use(request.publisher))

    def _admit(self, opening: Opening, run: Run) -> Step:
        if self.finishing or self.ended is not None:
            return self._deny(opening, NotCurrent("this leader's term has ended or is ending; ask again"))
        # Another opening over this channel may have been answered while this one asked the log.
        self.close(opening.channel)
        channel = Channel(opening.channel, opening.request.session, run)
        self._channels[opening.channel] = channel
        run.known.channels.add(channel)
        self.open_abandoned(opening.token)
        return Admit(run.incarnation, run.stored)

    def _deny(self, opening: Opening, error: ChangefeedError) -> Deny:
        self.open_abandoned(opening.token)
        return Deny(error)

    def _release(self, known: Known) -> None:
        """Keep a publisher that nobody uses for a while, if the log knows it; forget the one idle for longest."""
        if known.busy or self.ended is not None:
            return
        if known.run is None:
            self._known.pop(known.publisher, None)
            return
        self._idle[known.publisher] = None
        if len(self._idle) > IDLE_MAX:
            eldest = next(iter(self._idle))
            del self._idle[eldest], self._known[eldest]

    # ---- batches

    def publish(self, channel: str, ticket: Any, batch: Batch) -> list[Effect]:
        """A batch has come over an opened channel."""
        effects: list[Effect] = []
        found = self._channels.get(channel)
        if self.ended is not None:
            return effects
        if found is None:
            error = NotCurrent("this connection has no open publisher at this leader; open it again")
            return [Reply(ticket, refusals.refusal(batch, error))]
        request = Request(found, ticket, batch, len(batch.payload) + ENTRY_OVERHEAD)
        self.queue_bytes += request.size
        found.queue.append(request)
        problem = refusals.malformed(batch, found.run)
        if problem:
            self._refuse(request, BadMessage(problem), effects)
        else:
            self._judge(request, None, effects)
        return effects

    def found(self, token: int, facts: Facts) -> list[Effect]:
        """What the log said to a LookUp of a batch."""
        request = self._looking.pop(token, None)
        if request is None:
            return []
        if not self._ours(facts.look):
            return self.end("fenced")
        effects: list[Effect] = []
        if self.checks.waits_for(request, token):
            self.checks.told(request, facts.rows, effects)
        else:
            self._judge(request, facts, effects)
        return effects

    def not_found(self, token: int, error: ChangefeedError) -> list[Effect]:
        """The log could not be asked."""
        request = self._looking.pop(token, None)
        if request is None:
            return []
        effects = self.failed(error)
        if not effects:
            self._refuse(request, NotCurrent(f"the log could not be asked ({error}); send it again"), effects)
            self.checks.drain(request.channel.run, effects)
        return effects

    def _judge(self, request: Request, facts: Facts | None, effects: list[Effect]) -> None:
        """facts: what a look-up for this request found; without one, nothing is refused for good."""
        batch, run = request.batch, request.channel.run
        if request.channel.closed:
            self._drop(request)
        elif run is not run.known.run:
            self._judge_superseded(request, facts, effects)
        elif batch.number <= run.expected:
            self._judge_known(request, facts, effects)
        elif run.checking and run.checking[0] is not request:
            self.checks.behind(request, effects)
        elif batch.after == run.expected:
            if self.checks.passed(request, effects):
                self._accept(request)
        elif facts is None:
            self._look_up(request, effects)
        else:
            self._refuse(request, refusals.gap(batch, run.expected), effects)

    def _accept(self, request: Request) -> None:
        batch, run = request.batch, request.channel.run
        run.pending[batch.number] = accepted = Accepted(batch, run, [(request, 0)])
        run.expected = batch.last_number
        self.checks.accepted(request, accepted)
        self._waiting.append(accepted)
        # Hashed now, while another append is under way, rather than between two appends.
        _ = batch.digest

    def _judge_superseded(self, request: Request, facts: Facts | None, effects: list[Effect]) -> None:
        run = request.channel.run
        if run.pending:
            # The last number stored of the old incarnation is final only when these are settled.
            self._held.append(request)
        elif facts is None or not facts.asked.last:
            self._look_up(request, effects, last=True)
        else:
            error = refusals.superseded(run.known.publisher, run.incarnation, facts.last)
            self._refuse(request, error, effects)

    def _judge_known(self, request: Request, facts: Facts | None, effects: list[Effect]) -> None:
        """A number at or below the last one: the same bytes get the receipt that they have or will have."""
        batch, run = request.batch, request.channel.run
        if batch.number > run.stored:
            accepted = run.pending_with(batch.number)
            offset, count = (0, 0) if accepted is None else shared(accepted.batch, accepted.batch.digest, batch)
            if accepted is not None and count == batch.count:
                accepted.requests.append((request, offset))
            elif facts is None:
                self._look_up(request, effects)
            else:
                why = refusals.skipped if accepted is None else refusals.reused
                self._refuse(request, why(batch), effects)
            return
        landed = run.recent.get(batch.number)
        if landed is not None and landed[1] == batch.digest:
            self._store(request, Position(self.lineage, self.epoch, self.term, landed[0]), True, effects)
        elif facts is None or not facts.asked.number:
            self._look_up(request, effects, number=batch.number)
        elif facts.entry is not None:
            self._judge_held(request, facts.entry, facts.behind, effects)
        elif facts.before is not None or facts.look.floor.seq == 0:
            # What comes after an entry that is still held has not been trimmed: the number was skipped.
            self._refuse(request, refusals.skipped(batch), effects)
        elif batch.last_number > run.stored:
            # A batch is stored whole: one that reaches beyond the last number stored is not the one that was trimmed.
            self._refuse(request, refusals.reused(batch), effects)
        else:
            # Of what is known to end in the trimmed part all is gone; else only its first group is for certain.
            count = batch.count if facts.end is None else batch.sizes[0]
            self._refuse(request, refusals.trimmed(batch), effects, count)

    def _judge_held(self, request: Request, entry: Entry, behind: Sequence[Entry], effects: list[Effect]) -> None:
        """An entry of the log has the batch's first number. A rerun of a file may have cut its lines elsewhere: what
        goes on at another place is asked for again, if all its numbers are stored."""
        batch = request.batch
        offset, count = shared(entry, entry.batch_digest, batch, behind)
        if count == batch.count or (count and batch.last_number <= request.channel.run.stored):
            position = Position(self.lineage, entry.epoch, entry.term, entry.seq + offset)
            self._store(request, position, True, effects, count)
        else:
            self._refuse(request, refusals.reused(batch), effects)

    def _look_up(
        self, request: Request, effects: list[Effect], keys: Sequence[Key] = (), *, last: bool = False, number: int = 0
    ) -> int:
        self._token += 1
        self._looking[self._token] = request
        batch = request.batch
        after = batch.after if number else 0
        end, size = (batch.last_number, len(batch.payload)) if number and len(batch.sizes) > 1 else (0, 0)
        who, incarnation = batch.publisher, batch.incarnation
        effects.append(LookUp(self._token, who, incarnation, False, last, number, after, end, size, tuple(keys)))
        return self._token

    # ---- appends

    def next_append(self, wall_ms: int) -> Append | None:
        """What to append now: the same again if the log could not take it, else all that waits, up to the bound."""
        flight = self._flight
        if flight is not None:
            delay_s = min(RETRY_S * 2 ** min(flight.tries, 10), RETRY_MAX_S)
            return Append(self.tail.seq, flight.entries, flight.tries, delay_s)
        if not self._waiting:
            return None
        accepted: list[Accepted] = []
        entries: list[Entry] = []
        time = max(self.tail.time, wall_ms)
        seq, digest, size = self.tail.seq, self.tail.digest, 0
        while self._waiting:
            batch = self._waiting[0].batch
            size += len(batch.payload) + ENTRY_OVERHEAD
            if entries and size > self._append_bytes_max:
                break
            accepted.append(self._waiting.popleft())
            entry = stamped(batch, self.lineage, self.epoch, self.term, seq + 1, time, digest)
            entries.append(entry)
            seq, digest = entry.last_seq, entry.digest
        self._flight = flight = Flight(accepted, tuple(entries))
        return Append(self.tail.seq, flight.entries)

    def appended(self) -> list[Effect]:
        """The append is durable: answers, then visible."""
        flight, self._flight = self._flight, None
        if flight is None:
            return []
        effects: list[Effect] = []
        last = flight.entries[-1]
        self.tail = Tail(last.last_seq, self.epoch, self.term, last.digest, last.time)
        for accepted, entry in zip(flight.accepted, flight.entries, strict=True):
            run, batch = accepted.run, accepted.batch
            accepted.settled = True
            if accepted.marks:
                self.checks.guard.appended(accepted.marks, entry.last_seq)
            del run.pending[batch.number]
            run.stored = batch.last_number
            run.landed(batch.number, entry.seq, entry.batch_digest)
            again = False
            for request, offset in accepted.requests:
                position = Position(self.lineage, self.epoch, self.term, entry.seq + offset)
                self._store(request, position, again, effects)
                again = True
            self._settled(run)
        effects.append(Visible(flight.entries))
        self._judge_waiting(effects)
        return effects

    def append_failed(self, error: ChangefeedError) -> list[Effect]:
        """The append was not taken (then go on as the error says), or nobody knows (then the term ends)."""
        flight = self._flight
        if flight is None:
            return []
        if isinstance(error, LogUnavailable):
            flight.tries += 1
            return []
        if isinstance(error, LogFull):
            return self._roll_back(flight, error)
        return self.end(refusals.ends_term(error) or error.code)

    def _roll_back(self, flight: Flight, error: LogFull) -> list[Effect]:
        """Nothing of the append is stored: its batches are refused, and what waited to follow them has a gap."""
        effects: list[Effect] = []
        self._flight = None
        runs = dict.fromkeys(accepted.run for accepted in flight.accepted)
        orphans: list[Accepted] = []
        for accepted in flight.accepted:
            accepted.settled = True
            self.checks.guard.dropped(accepted.marks)
        for run in runs:
            orphans += [accepted for accepted in run.pending.values() if not accepted.settled]
            run.pending.clear()
            run.expected = run.stored
        for accepted in orphans:
            accepted.settled = True
            self.checks.guard.dropped(accepted.marks)
        self._waiting = deque(accepted for accepted in self._waiting if not accepted.settled)
        for accepted in flight.accepted:
            for request, _ in accepted.requests:
                self._refuse(request, error, effects)
        for accepted in orphans:
            for request, _ in accepted.requests:
                self._judge(request, None, effects)
        for run in runs:
            self._settled(run)
        self._judge_waiting(effects)
        return effects

    def _settled(self, run: Run) -> None:
        """Something pending of this run is settled."""
        known = run.known
        if not run.pending:
            known.old.pop(run.incarnation, None)
            if not known.channels:
                self._release(known)

    def _judge_waiting(self, effects: list[Effect]) -> None:
        if self._held:
            held, self._held = self._held, []
            for request in held:
                self._judge(request, None, effects)
        if self.checks.waiting:
            self.checks.again(effects)

    # ---- answers

    def _store(
        self, request: Request, first: Position, again: bool, effects: list[Effect], count: int | None = None
    ) -> None:
        """count: how many of the batch's changes this is about (None: all)."""
        self.repeated += again
        batch = request.batch
        self._answer(request, Answer(batch.number, count or batch.count, first, again), effects)

    def _refuse(
        self, request: Request, error: ChangefeedError, effects: list[Effect], count: int | None = None
    ) -> None:
        self.refused += 1
        self._answer(request, refusals.refusal(request.batch, error, count), effects)

    def _answer(self, request: Request, answer: Answer, effects: list[Effect]) -> None:
        """Answers of one channel leave in the order in which its batches came."""
        request.answer = answer
        self._drop(request)
        queue = request.channel.queue
        while queue and queue[0].answer is not None:
            first = queue.popleft()
            assert first.answer is not None
            effects.append(Reply(first.ticket, first.answer, first.batch.publisher))

    def _drop(self, request: Request) -> None:
        self.queue_bytes -= request.size

    def _ours(self, look: Look) -> bool:
        """Whether a look found this term's fence; if not, the term is over."""
        return (look.fence.epoch, look.fence.term, look.lineage) == (self.epoch, self.term, self.lineage)
