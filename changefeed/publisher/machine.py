"""What a publisher decides: numbers, batches, what is in flight, what an answer settles. Pure.

A group is sealed into a batch when that can be sent; a batch is resent byte for byte under the same numbers. Three
outcomes settle a group: stored (a Receipt), refused (an error; nothing happened), unknown (OutcomeUnknown).

**After a refusal** the batches behind it chain to a number that the log does not hold, so none of them can have been
stored: their answers (gaps) are awaited, then they are chained to the last number that the log does hold and sent
again, under the same numbers and incarnation. A copy that still floats on an older connection can therefore never be
stored a second time: its number is known by then. (Under a new incarnation it could: nobody would know its number.)
A batch of several groups that was refused for its content is sent again group by group, so that only the bad one is
refused. What was refused for the log's state (`log-full`) while an older copy may still float is of unknown outcome.

**An Open that asks for an incarnation** and is never answered may still be granted late, by an instance that waited for
a leader, and would then supersede the one that was granted meanwhile. So the next one asks under another id.

**A new incarnation** is asked for only when the log has forgotten the old one or lost what it had acknowledged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from changefeed.change import Change, Position, Resource
from changefeed.declared import check_change
from changefeed.errors import (
    AcknowledgedLost,
    ChangefeedError,
    Forgotten,
    GroupTooLarge,
    InvalidChange,
    NumberGap,
    NumberReused,
    OutcomeUnknown,
    ProtocolError,
    PublisherInUse,
    Refused,
    Superseded,
    TooManyPublishers,
    UsageError,
)
from changefeed.publisher.groups import (
    GROUP_OVERHEAD,
    MISUNDERSTOOD_MAX,
    NEVER_GIVEN,
    NUMBER_MAX,
    Batch,
    Cut,
    Effect,
    Go,
    Group,
    Leave,
    Raise,
    Settled,
    Stopped,
    Welcomed,
)
from changefeed.settings import Settings
from changefeed.wire.changes import BATCH_CHANGES_MAX, encode_change
from changefeed.wire.faults import error_of, refusal_of
from changefeed.wire.messages import (
    Answer,
    Beat,
    Fault,
    Limits,
    Open,
    Opened,
    Publish,
    Redirect,
    Reopen,
    ServerMessage,
)


class PublisherMachine:
    """One publisher of one feed.

    incarnation: None until the leader gave one. last_number: the last number given out. stopped: why it ended.
    """

    def __init__(self, feed: str, publisher: str, session: str, settings: Settings, *, named: bool = False) -> None:
        self.feed = feed
        self.publisher = publisher
        self.session = session
        self.named = named
        self.settings = settings
        self.incarnation: int | None = None
        self.last_number = 0
        self.last_receipt: Position | None = None
        self.buffered_bytes = 0
        self.unacknowledged = 0
        self.last_error: ChangefeedError | None = None
        self.stopped: ChangefeedError | None = None
        self.opened = False
        self.ever_opened = False
        self.in_use: PublisherInUse | None = None
        #: Whether this run gave out a number: a named one may begin below the last one that the log holds (a rerun).
        self._given_out = False
        #: Connections that ended because of what I said, since something was last stored.
        self._misunderstood = 0
        self._limits: Limits | None = None
        self._resources: dict[str, Resource] = {}
        self._snapshot = False
        self._connected = False
        self._open_due = False
        #: Whether an Open that asks for an incarnation is unanswered; how often that made me change the id.
        self._asked = False
        self._base = publisher
        self._ids = 1
        self._sent_at = 0.0
        #: What waits to be sealed, in the order of numbers.
        self._waiting: deque[Group] = deque()
        self._waiting_bytes = 0
        #: Sealed and unanswered; the first `_sent` of them are on the present connection.
        self._flight: deque[Batch] = deque()
        self._sent = 0
        #: Refused on the present connection, until everything sent behind them is answered too.
        self._rejected: list[tuple[Batch, ChangefeedError]] = []
        #: The last number that the log is known to hold, and the last one sealed (what the next batch chains after).
        self._held = 0
        self._chain = 0
        self._cut = Cut()

    # ---- the application's side

    @property
    def numbering(self) -> bool:
        """Whether numbers can be given: a named publisher must first learn which ones are taken."""
        return not self.named or self.ever_opened

    def encode(self, changes: Iterable[Change]) -> Group:
        """Check and encode the changes of one group; keeps nothing.

        Raises InvalidChange, ChangeTooLarge, GroupTooLarge, and once the feed's declarations are known UnknownResource
        or UnknownField (with the nearest name), BodyMissing on a feed that keeps a snapshot.
        """
        limits = self._limits
        change_max, group_max = self.settings.change_bytes_max, self.settings.group_bytes_max
        if limits is not None:
            change_max, group_max = min(change_max, limits.change_bytes_max), min(group_max, limits.group_bytes_max)
        encoded: list[bytes] = []
        size = 0
        for change in changes:
            data = encode_change(change, change_max)
            check_change(change, self._resources, self._snapshot)
            size += len(data)
            encoded.append(data)
            if size > group_max or len(encoded) > BATCH_CHANGES_MAX:
                raise GroupTooLarge(
                    f"the group is above {group_max} bytes (group_bytes_max) or {BATCH_CHANGES_MAX} changes: "
                    "publish it in several groups, each of which is complete in itself"
                )
        if not encoded:
            raise InvalidChange("a group needs at least one change")
        return Group(len(encoded), b"".join(encoded))

    def has_room(self, group: Group) -> bool:
        """Whether the group fits into the buffer. An empty buffer takes any group."""
        return self.buffered_bytes == 0 or self.buffered_bytes + group.bytes <= self.settings.publisher_buffer_bytes

    def admit(self, group: Group, number: int | None = None) -> None:
        """Number the group and keep it until it is settled. `number`: of its first change, for named publishers only.

        Raises what stopped the publisher, and UsageError for a number that cannot be. Nothing is kept then.
        """
        if self.stopped is not None:
            raise self.stopped
        if number is None:
            number = self.last_number + 1
        elif not self.named:
            raise UsageError("only a named publisher chooses its numbers: open it with name=")
        elif number <= self.last_number and self._given_out:
            raise UsageError(f"number {number} is not above {self.last_number}, the last one given: numbers only grow")
        if not 1 <= number <= NUMBER_MAX - group.count:
            raise UsageError(f"number {number} is not from 1 to 2**53 - 1")
        group.number = number
        self._given_out = True
        self.last_number = number + group.count - 1
        self._waiting.append(group)
        self._waiting_bytes += group.size
        self.buffered_bytes += group.bytes
        self.unacknowledged += group.count

    def groups(self) -> Iterator[Group]:
        """Everything that is not settled, in the order of numbers."""
        for batch, _ in self._rejected:
            yield from batch.groups
        for batch in self._flight:
            yield from batch.groups
        yield from self._waiting

    def give_up(self, why: str) -> list[Effect]:
        """Nobody will send any more: everything that is kept is of unknown outcome."""
        groups = list(self.groups())
        self._forget_all()
        self.stopped = self.stopped or UsageError("the publisher has been closed")
        return self._settle_all(groups, OutcomeUnknown(f"{why}: the change may or may not be stored"))

    # ---- the connection's side

    @property
    def heartbeat_s(self) -> float:
        announced = self._limits.heartbeat_s if self._limits is not None else 0.0
        return min(self.settings.heartbeat_s, announced) if announced > 0 else self.settings.heartbeat_s

    @property
    def dead_s(self) -> float:
        """A server that sends nothing for so long is gone: what it announced, or less where the settings say less."""
        own, limits = self.settings.heartbeat_dead_s, self._limits
        if limits is None or limits.heartbeat_dead_s <= 0:
            return own
        return max(min(own, limits.heartbeat_dead_s), 2 * limits.heartbeat_s)

    @property
    def deadline(self) -> float:
        """When `take` wants to be asked again although nothing happened."""
        return self._sent_at + self.heartbeat_s if self._connected else float("inf")

    def connected(self, now: float) -> None:
        self._connected = True
        self._open_due = True
        self._sent_at = now
        if self._asked and not self.named:
            self._ids += 1
            self.publisher = f"{self._base}.{self._ids}"
            self._asked = False

    def disconnected(self, error: ChangefeedError | None = None) -> list[Effect]:
        """The connection is gone: what was sent and not answered is in doubt, and is sent again on the next one."""
        self._connected = self._open_due = False
        if error is not None:
            self.last_error = error
        return self._unsend()

    def take(self, now: float) -> Open | Publish | Beat | None:
        """The next message to send, if any; it counts as sent. Batches are sealed here: when they can leave."""
        if not self._connected:
            return None
        message: Open | Publish | Beat | None = None
        if self._open_due:
            self._open_due = False
            self._asked = self.incarnation is None
            message = Open(self.feed, self.publisher, self.session, self.named, self.incarnation, self.last_receipt)
        elif self.opened and not self._rejected and self._sent < self._in_flight_max:
            if self._sent == len(self._flight) and self._worth_sealing():
                self._flight.append(self._seal())
            if self._sent < len(self._flight):
                batch = self._flight[self._sent]
                self._sent += 1
                message = Publish(batch.after, batch.number, batch.sizes, batch.payload)
        if message is None and now >= self._sent_at + self.heartbeat_s:
            message = Beat()
        if message is not None:
            self._sent_at = now
        return message

    @property
    def _in_flight_max(self) -> int:
        announced = self._limits.in_flight_max if self._limits is not None else 1
        return max(1, min(self.settings.in_flight_max, announced))

    def _worth_sealing(self) -> bool:
        """An idle publisher sends at once. Under load the more is unanswered, the fuller a batch must be: what waits
        behind a commit would only wait at the leader instead, in more and smaller pieces."""
        if not self._waiting:
            return False
        if self._waiting[0].number <= self._held:
            # What is stored is in no hurry, and costs the leader a look into the log each time.
            much = self._waiting_bytes >= self.settings.batch_bytes_aim or len(self._waiting) >= self._cut.most
            return much or not self._sent
        most = self._in_flight_max
        if self._sent < max(1, most // 4):
            return True
        return self._waiting_bytes * most >= self.settings.batch_bytes_aim * self._sent

    def _seal(self) -> Batch:
        waiting = self._waiting
        first = waiting.popleft()
        groups = [first]
        size, count, following = first.size, first.count, first.number + first.count
        aim = self.settings.batch_bytes_aim
        aim = aim if self._limits is None else min(aim, self._limits.group_bytes_max)
        last, most = NUMBER_MAX, BATCH_CHANGES_MAX
        if first.number <= self._held:
            last, most = self._held, self._cut.most
        while waiting and not first.alone:
            group = waiting[0]
            if (
                group.alone
                or group.number != following
                or group.number + group.count - 1 > last
                or size + group.size > aim
                or count + group.count > most
            ):
                break
            groups.append(waiting.popleft())
            size, count, following = size + group.size, count + group.count, following + group.count
        self._waiting_bytes -= size
        batch = Batch(groups)
        self._link(batch)
        return batch

    def _link(self, batch: Batch) -> None:
        """Chain a batch after the one before it. What the log holds is known by its bytes, whatever it chains to."""
        if batch.number > self._held:
            batch.after = self._chain
            self._chain = batch.last_number

    def _relink(self) -> None:
        self._chain = self._held
        for batch in self._flight:
            self._link(batch)

    def received(self, message: ServerMessage) -> list[Effect]:
        match message:
            case Answer():
                return self._answered(message)
            case Opened():
                self._asked = False
                return self._admitted(message)
            case Reopen() if self._asked and not self.named:
                return [self._broken("the leader was lost before it gave an incarnation")]
            case Reopen():
                effects = self._unsend()
                self._open_due = True
                return effects
            case Fault():
                # It may have nothing to do with an Open that is unanswered (draining): that one may still be granted.
                return self._faulted(error_of(message), message.retryable)
            case Redirect():
                return [Go(message.servers, message.delay_s)]
            case Beat():
                return []
        return [self._broken(f"a publisher gets no {message.TYPE}")]

    # ---- opening

    def _admitted(self, message: Opened) -> list[Effect]:
        if self.opened or not self._connected:
            return [self._broken("an Opened came that nobody asked for")]
        if self.incarnation is not None and message.incarnation != self.incarnation:
            return self._faulted(Forgotten(f"incarnation {self.incarnation} became {message.incarnation}"), False)
        effects: list[Effect] = [Welcomed()]
        if self.incarnation is None:
            self.incarnation = message.incarnation
            self._begin(message.last_number)
        elif message.last_number < self._let_go() and self.last_receipt is not None:
            held = f"the log holds this publisher's changes up to number {message.last_number}"
            says = f"{held}, but acknowledged them up to {self._let_go()}"
            return self._faulted(AcknowledgedLost(says, message.last_number), False)
        self.opened = self.ever_opened = True
        self.in_use = None
        self.last_error = None
        self._limits = message.limits
        self._resources, self._snapshot = {one.name: one for one in message.resources}, message.snapshot
        self._held = message.last_number
        self._relink()
        return effects

    def _let_go(self) -> int:
        """The last number that the log held and that I no longer hold. If a log has lost only what stands above it,
        that is sent again, and nobody needs to know."""
        kept = self._flight or self._waiting
        return min(self._held, kept[0].number - 1) if kept else self._held

    def _begin(self, last_number: int) -> None:
        """A (publisher, incarnation) begins, or a named one goes on: `last_number` is what the log holds of it."""
        self._held = last_number
        if self.named:
            if not self._given_out:
                self.last_number = last_number
            return
        # Nobody else numbers under a new incarnation; what is kept goes on from its beginning.
        self._dissolve()
        number = last_number + 1
        for group in self._waiting:
            group.number = number
            number += group.count
        self.last_number = number - 1

    def _dissolve(self) -> None:
        """What was sealed waits again; only for a new incarnation, under which no copy of it can have been sent."""
        for batch in reversed(self._flight):
            self._waiting.extendleft(reversed(batch.unseal()))
            self._waiting_bytes += len(batch.payload)
        self._flight.clear()
        self._sent = 0

    def _unsend(self) -> list[Effect]:
        """Nothing of what was sent will be answered on this opening."""
        self.opened = False
        for index in range(self._sent):
            self._flight[index].doubtful = True
        self._sent = 0
        # What was asked for again (see _rest) was sent behind later numbers.
        self._flight = deque(sorted(self._flight, key=lambda batch: batch.number))
        return self._resolve() if self._rejected else []

    # ---- answers

    def _answered(self, answer: Answer) -> list[Effect]:
        if not self.opened or not self._sent:
            return []
        batch = self._flight[0]
        if answer.number != batch.number:
            known = any(self._flight[i].number == answer.number for i in range(self._sent))
            return [self._broken(f"the answer to {answer.number} came before that to {batch.number}")] if known else []
        error = refusal_of(answer) if answer.code else None
        if error is None or isinstance(error, OutcomeUnknown):
            if answer.count == batch.count:
                self._cut.whole(batch.count)
            elif not self._rest(batch, answer.count):
                what = f"the answer to {answer.number} speaks of {answer.count} changes of {batch.count}"
                return [self._broken(what)]
            return self._stored(batch, answer) if error is None else self._held_somewhere(batch, error)
        if isinstance(error, NumberReused):
            self._flight.popleft()
            self._sent -= 1
            return [*self._settle_all(batch.groups, error), *self._faulted(error, False)]
        if isinstance(error, Superseded | Forgotten | AcknowledgedLost):
            return self._faulted(error, False)
        final = isinstance(error, Refused | UsageError) and not isinstance(error, PublisherInUse | TooManyPublishers)
        if not final or (isinstance(error, NumberGap) and not self._rejected):
            # It cannot be decided there now, or the leader's numbers are not what I believe: ask anew.
            self.last_error = error
            return [Leave(error)]
        self._flight.popleft()
        self._sent -= 1
        self._rejected.append((batch, error))
        return [] if self._sent else self._resolve()

    def _rest(self, batch: Batch, count: int) -> bool:
        """Only the first `count` changes are answered: the others, which the log holds too, are asked for again. False
        if that cannot be: a batch that is new is stored whole."""
        rest = batch.cut(count) if batch.last_number <= self._held else None
        if not rest:
            return False
        self._cut.part(count)
        waiting, overtaken = self._waiting, []
        while waiting and waiting[0].number < rest[0].number:
            overtaken.append(waiting.popleft())
        waiting.extendleft(reversed(overtaken + rest))
        self._waiting_bytes += sum(group.size for group in rest)
        return True

    def _taken(self, batch: Batch) -> None:
        """The log holds (or held) the first batch in flight."""
        self._misunderstood = 0
        self._flight.popleft()
        self._sent -= 1
        self._held = max(self._held, batch.last_number)

    def _held_somewhere(self, batch: Batch, error: OutcomeUnknown) -> list[Effect]:
        """An earlier copy was stored, and retention has trimmed it since. Sending it again would tell no more."""
        self._taken(batch)
        why = str(error) or "the change was stored once and has been trimmed since: its position is not known any more"
        effects = self._settle_all(batch.groups, OutcomeUnknown(why))
        return effects + (self._resolve() if self._rejected and not self._sent else [])

    def _stored(self, batch: Batch, answer: Answer) -> list[Effect]:
        at = answer.first
        assert at is not None, "the wire holds no stored answer without its place"
        self._taken(batch)
        self.last_receipt = Position(at.lineage, at.epoch, at.term, at.seq + batch.count - 1)
        self.buffered_bytes -= len(batch.payload) + GROUP_OVERHEAD * len(batch.groups)
        self.unacknowledged -= batch.count
        offset = 0
        for group in batch.groups:
            group.settled = True
            group.answer = answer
            group.offset = offset
            offset += group.count
        effects: list[Effect] = [Settled(tuple(batch.groups))]
        if self._rejected and not self._sent:
            effects += self._resolve()
        return effects

    def _resolve(self) -> list[Effect]:
        """Everything sent behind a refused batch is answered: settle what is final, chain the rest anew."""
        effects: list[Effect] = []
        again: list[Batch] = []
        for batch, error in self._rejected:
            if isinstance(error, NumberGap):
                again.append(batch)
            elif error.retryable and batch.doubtful:
                unknown = OutcomeUnknown(f"{error} An earlier copy of the change may still be under way, though.")
                effects += self._settle_all(batch.groups, unknown)
            elif error.retryable or len(batch.groups) == 1:
                effects += self._settle_all(batch.groups, error)
            else:
                for group in batch.unseal():
                    group.alone = True
                    again.append(Batch([group], batch.doubtful))
        self._rejected.clear()
        self._flight.extendleft(reversed(again))
        self._relink()
        return effects

    # ---- faults

    def _faulted(self, error: ChangefeedError, retryable: bool) -> list[Effect]:
        """The server refuses this publisher, or ends the connection."""
        effects = self._unsend()
        self.last_error = error
        match error:
            case Superseded():
                last = error.last_number
                doubt = None if last is not None else "the log no longer knows the old one's numbers"
                effects += self._end_incarnation(last or 0, error, doubt)
                return [*effects, *self._stop(error)]
            case NumberReused():
                effects += self._end_incarnation(0, error, "numbers after one that was reused")
                return [*effects, *self._stop(error)]
            case Forgotten():
                effects += self._end_incarnation(0, None, "the log has forgotten this publisher")
                return [*effects, Leave(error)]
            case AcknowledgedLost():
                # What was sent chained after numbers that the log lost, so that it can hold nothing above its last one.
                doubt = None if error.last_number < self._held else "the log lost what it had acknowledged"
                effects += self._end_incarnation(error.last_number, None, doubt)
                # Told once. In every other case the next Open tells the next log what this publisher has receipts for.
                self.last_receipt = None
                return [*effects, Raise(error), Leave(error)]
            case PublisherInUse():
                self.in_use = error
                return [*effects, Leave(error)]
            case ProtocolError() | UsageError() if self.ever_opened:
                self._misunderstood += 1
                if self._misunderstood >= MISUNDERSTOOD_MAX:
                    return [*effects, *self.stop(error)]
                if self._misunderstood == NEVER_GIVEN and self.incarnation is not None:
                    effects += self._end_incarnation(0, None, f"the log does not know this incarnation ({error})")
                return [*effects, Leave(error)]
        return [*effects, Leave(error, final=not retryable)]

    def _end_incarnation(self, last: int, refusal: ChangefeedError | None, doubt: str | None) -> list[Effect]:
        """The incarnation is over; `last` is the last number that the log holds of it.

        Up to `last`: stored, but where is not known. Above it: sent ones are of unknown outcome if there is a `doubt`;
        the others are refused with `refusal`, or wait for the next incarnation if there is none.
        """
        stored: list[Group] = []
        unknown: list[Group] = []
        rest: list[Group] = []
        for batch in self._flight:
            for group in batch.unseal():
                if group.number + group.count - 1 <= last:
                    stored.append(group)
                elif doubt is not None and batch.doubtful:
                    unknown.append(group)
                else:
                    rest.append(group)
        rest += self._waiting
        self._flight.clear()
        self._waiting = deque(sorted(rest, key=lambda group: group.number))
        self._waiting_bytes = sum(group.size for group in rest)
        self.incarnation = None
        self._held = self._chain = 0
        effects: list[Effect] = []
        if stored:
            effects += self._settle_all(
                stored, OutcomeUnknown("the change is stored; its position is not known any more")
            )
        if unknown:
            effects += self._settle_all(unknown, OutcomeUnknown(f"{doubt}: the change may or may not be stored"))
        if refusal is not None and rest:
            self._waiting.clear()
            self._waiting_bytes = 0
            effects += self._settle_all(rest, refusal)
        return effects

    def stop(self, error: ChangefeedError) -> list[Effect]:
        """Every server refused this publisher for good: what was sent is of unknown outcome, the rest is refused."""
        effects = [*self._unsend(), *self._end_incarnation(0, error, f"the publisher stopped ({error.code})")]
        return [*effects, *self._stop(error)]

    def _stop(self, error: ChangefeedError) -> list[Effect]:
        self.stopped = error
        return [Stopped(error)]

    def _forget_all(self) -> None:
        self._rejected.clear()
        self._flight.clear()
        self._waiting.clear()
        self._waiting_bytes = self._sent = 0

    def _broken(self, what: str) -> Leave:
        self.last_error = ProtocolError(f"{what}: the connection is given up")
        return Leave(self.last_error)

    def _settle_all(self, groups: list[Group], error: ChangefeedError) -> list[Effect]:
        """Settle groups with an error. Refused ones end as what the error says: nothing happened."""
        if not groups:
            return []
        for group in groups:
            group.settled = True
            group.error = error
            self.buffered_bytes -= group.bytes
            self.unacknowledged -= group.count
        return [Settled(tuple(groups))]
