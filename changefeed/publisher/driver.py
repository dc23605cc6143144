"""The publisher's tasks, and what `open_publisher` returns. Decisions are in machine.py."""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio

from changefeed.change import WORD, Change, Receipt, check_feed_name
from changefeed.errors import ChangefeedError, ConnectionLost, InvalidName, Moved, OutcomeUnknown
from changefeed.nursery import open_owned_nursery
from changefeed.ports import World
from changefeed.publisher.groups import Effect, Go, Group, Leave, Raise, Settled, Stopped, Welcomed
from changefeed.publisher.machine import PublisherMachine
from changefeed.servers import Connect, Dialer, Servers
from changefeed.session import Session
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.transport import Network
from changefeed.wire.faults import final_close
from changefeed.wire.messages import AnyMessage

logger = logging.getLogger("changefeed.publisher")

#: The id of the broker's own publisher.
RESERVED: Final = "outbox"
#: Submits that find room, in a row, before other tasks get their turn.
TURN: Final = 64


@dataclass(frozen=True, slots=True)
class PublisherStatus:
    """What a publisher is doing.

    server: the one last tried. connected: the leader has taken it in. incarnation: None before that. last_number: the
    last one given out. unacknowledged: changes without an outcome; buffered_bytes: what they occupy. last_error: why
    the last connection or attempt ended; None while connected.
    """

    server: str
    connected: bool
    incarnation: int | None
    last_number: int
    unacknowledged: int
    buffered_bytes: int
    last_error: ChangefeedError | None


class Pending:
    """A group of changes that was submitted: it has been numbered, is kept and will be sent.

    number: of its first change (it changes if the publisher has to take a new incarnation). count: its changes.
    """

    __slots__ = ("_event", "_group", "_publisher")

    def __init__(self, publisher: Publisher, group: Group) -> None:
        self._publisher = publisher
        self._group = group
        self._event: trio.Event | None = None

    @property
    def number(self) -> int:
        return self._group.number

    @property
    def count(self) -> int:
        return self._group.count

    @property
    def done(self) -> bool:
        """Whether the outcome is known: `wait` returns or raises at once."""
        return self._group.settled

    async def wait(self) -> Receipt:
        """The receipt, once the change is durable.

        Raises Refused kinds (nothing happened), OutcomeUnknown (it can no longer be told), and AcknowledgedLost (once
        per loss of the log; the change stays and `wait` may be called again). Cancellation: the change is *not*
        withdrawn; `wait` may be called again.
        """
        if self._group.settled:
            await trio.lowlevel.checkpoint_if_cancelled()
        while not self._group.settled:
            self._publisher._raise_lost()
            if self._event is None:
                self._event = trio.Event()
            await self._event.wait()
        return self._outcome()

    def _outcome(self) -> Receipt:
        receipt, error = self._group.receipt, self._group.error
        if receipt is not None:
            return receipt
        assert error is not None
        raised = copy.copy(error)
        if isinstance(raised, OutcomeUnknown):
            raised.pending = self
        raise raised

    def _wake(self) -> bool:
        """Wake whoever waits; True if somebody does."""
        event, self._event = self._event, None
        if event is None or not event.statistics().tasks_waiting:
            return False
        event.set()
        return True


class Publisher:
    """Publishes to one feed; made by `open_publisher`. All methods may be called from many tasks."""

    def __init__(self, machine: PublisherMachine, dialer: Dialer, settings: Settings) -> None:
        self.wake = Changed()
        self._machine = machine
        self._dialer = dialer
        self._settings = settings
        self._changed = Changed()
        self._gate = trio.StrictFIFOLock()
        self._turn = 0
        self._lost: ChangefeedError | None = None
        self._session: Session | None = None
        self._closing = False

    # ---- for applications

    @property
    def id(self) -> str:
        """As it stands in events. Without a name it may change until the first connection stands."""
        return self._machine.publisher

    async def publish(
        self,
        resource: str,
        id: str,
        op: str,
        *,
        fields: Sequence[str] | None = None,
        body: Any = None,
        version: int | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Publish one change and wait until it is durable; see change.Change for the parts.

        Waits through failovers and reconnects for as long as the caller lets it: bound it with a cancel scope. Raises
        InvalidChange and Refused kinds (nothing happened), OutcomeUnknown, AcknowledgedLost (once per loss of the log).
        Cancellation: a change that was already submitted is not withdrawn.
        """
        names = fields if fields is None or isinstance(fields, str) else tuple(fields)
        change = Change(resource, id, op, names, body, version, meta)  # type: ignore[arg-type]
        return await (await self.submit(change)).wait()

    async def publish_many(self, changes: Iterable[Change]) -> Receipt:
        """Publish changes as one group, all or nothing, and wait until it is durable. Otherwise like `publish`.

        A group holds 1 to 50,000 changes and at most `group_bytes_max` bytes (GroupTooLarge).
        """
        return await (await self.submit(changes)).wait()

    async def submit(self, changes: Change | Iterable[Change], *, number: int | None = None) -> Pending:
        """Number and keep a change (or several: one group); returns without waiting for the outcome.

        Waits while `publisher_buffer_bytes` are unacknowledged, first come first served. number: of the first change,
        for named publishers only; numbers only grow. Raises InvalidChange, ChangeTooLarge, GroupTooLarge,
        UnknownResource, UnknownField, UsageError, PublisherInUse, what stopped the publisher (Superseded,
        NumberReused, UnknownFeed), AcknowledgedLost (once): nothing was submitted then. Cancellation: nothing was.
        """
        group = self._encode(changes)
        self._turn += 1
        if self._turn % TURN == 0:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        if self._gate.locked() or not self._admissible(group):
            async with self._gate:
                while not self._admissible(group):
                    await self._changed.wait()
        return self._admit(group, number)

    def submit_nowait(self, changes: Change | Iterable[Change], *, number: int | None = None) -> Pending:
        """Like `submit`, but raises trio.WouldBlock where that would wait."""
        group = self._encode(changes)
        if self._gate.locked() or not self._admissible(group):
            raise trio.WouldBlock
        return self._admit(group, number)

    async def flush(self) -> None:
        """Until everything that was submitted before has an outcome, whichever it is: `Pending.wait` tells.

        Raises AcknowledgedLost (once). Cancellation: safe.
        """
        await trio.lowlevel.checkpoint()
        for group in list(self._machine.groups()):
            pending: Pending = group.handle
            while not pending.done:
                self._raise_lost()
                if pending._event is None:
                    pending._event = trio.Event()
                await pending._event.wait()
        self._raise_lost()

    async def wait_ready(self) -> None:
        """Until the leader has taken this publisher in. Raises what stopped the publisher. Cancellation: safe."""
        await trio.lowlevel.checkpoint()
        while not self._machine.opened:
            if self._machine.stopped is not None:
                raise copy.copy(self._machine.stopped)
            await self._changed.wait()

    @property
    def status(self) -> PublisherStatus:
        machine = self._machine
        return PublisherStatus(
            self._dialer.server,
            machine.opened,
            machine.incarnation,
            machine.last_number,
            machine.unacknowledged,
            machine.buffered_bytes,
            machine.last_error,
        )

    def _encode(self, changes: Change | Iterable[Change]) -> Group:
        self._raise_lost()
        return self._machine.encode((changes,) if isinstance(changes, Change) else changes)

    def _admissible(self, group: Group) -> bool:
        machine = self._machine
        if machine.stopped is not None:
            raise copy.copy(machine.stopped)
        if machine.in_use is not None and not machine.ever_opened:
            raise copy.copy(machine.in_use)
        return machine.numbering and machine.has_room(group)

    def _admit(self, group: Group, number: int | None) -> Pending:
        self._machine.admit(group, number)
        pending = group.handle = Pending(self, group)
        self.wake.notify()
        return pending

    def _raise_lost(self) -> None:
        if self._lost is not None:
            lost, self._lost = self._lost, None
            raise lost

    # ---- what a session asks (session.Side)

    def take(self) -> AnyMessage | None:
        return self._machine.take(trio.current_time())

    @property
    def deadline(self) -> float:
        return self._machine.deadline

    @property
    def dead_s(self) -> float:
        return self._machine.dead_s

    async def room(self) -> None:
        """A publisher's answers need no room."""

    def received(self, message: AnyMessage) -> None:
        self._perform(self._machine.received(message))  # type: ignore[arg-type]
        self.wake.notify()

    # ---- tasks

    async def run(self) -> None:
        """Connect, again and again, until the publisher stopped or is closed."""
        machine = self._machine
        while machine.stopped is None and not self._closing:
            try:
                connection = await self._dialer.dial()
            except ChangefeedError as error:
                self._perform(machine.disconnected(error))
                if not error.retryable:
                    self._refused(error)
                continue
            machine.connected(trio.current_time())
            self._session = Session(connection, self._settings)
            try:
                ended = await self._session.run(self)
            finally:
                self._session = None
                self._dialer.lost()
            final = final_close(ended) if isinstance(ended, ConnectionLost) else None
            self._perform(machine.disconnected(machine.last_error if final is None else final))
            if machine.last_error is None:
                machine.last_error = ended
            if final is not None:
                self._refused(final)
            if not self._closing:
                logger.info("feed %s: publisher %s lost %s: %s", machine.feed, self.id, self._dialer.server, ended)
        self._changed.notify()

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Settled():
                    self._settled(effect.groups)
                case Leave():
                    self._leave(effect.error)
                    if effect.final:
                        self._refused(effect.error)
                case Go():
                    self._dialer.redirect(effect.servers)
                    self._leave(Moved("the server asked to go elsewhere"), effect.delay_s)
                case Raise():
                    self._lost = effect.error
                    for group in self._machine.groups():
                        if group.handle is not None and group.handle._wake():
                            break
                case Stopped():
                    self._leave(effect.error)
                case Welcomed():
                    self._dialer.welcomed()
        self._changed.notify()

    def _settled(self, groups: Sequence[Group]) -> None:
        heard = False
        for group in groups:
            handle: Pending | None = group.handle
            if handle is not None and handle._event is not None:
                heard |= handle._wake()
        error = groups[0].error
        if error is not None and not heard:
            count = sum(group.count for group in groups)
            logger.warning("feed %s: %d changes ended with %s: %s", self._machine.feed, count, error.code, error)

    def _leave(self, error: ChangefeedError, delay_s: float = 0.0) -> None:
        if self._session is not None:
            self._session.leave(error, delay_s)

    def _refused(self, error: ChangefeedError) -> None:
        """A server said no for good: stop once all did, unless one took this publisher in before."""
        if self._dialer.rotation.refused_for_good() and not self._machine.ever_opened:
            self._perform(self._machine.stop(error))

    async def close(self) -> None:
        """End the connection politely."""
        self._closing = True
        if self._session is not None:
            self._session.leave(Moved("the publisher is closed"))
            while self._session is not None:
                await self._changed.wait()

    def end(self, why: str) -> None:
        """Nothing more is sent: what has no outcome yet ends as OutcomeUnknown."""
        self._closing = True
        self._perform(self._machine.give_up(why))


@asynccontextmanager
async def open_publisher(
    feed: str,
    servers: Servers = None,
    *,
    name: str | None = None,
    settings: Settings | None = None,
    network: Network | None = None,
    world: World | None = None,
    connect: Connect | None = None,
) -> AsyncIterator[Publisher]:
    """A publisher of a feed, connected to any one of `servers` and to others when that one fails, for ever.

    servers: see changefeed/servers.py; one address is enough. name: a *named* publisher keeps its incarnation and goes
    on numbering over runs, so that a change resubmitted under its number is stored once; a second live run of a name is
    refused (PublisherInUse). Without a name each run is a publisher of its own. connect: instead of servers, opens
    connections to an instance in this process.

    Returns at once, connected or not. Leaving the block normally waits until everything submitted has an outcome (bound
    it with a cancel scope); leaving it by an exception or cancellation ends what has none as OutcomeUnknown. Raises
    InvalidName, BadUrl; from the block's end, AcknowledgedLost if nothing else could raise it.
    """
    check_feed_name(feed)
    if name is not None and (not WORD.match(name) or name == RESERVED):
        raise InvalidName(f"{name!r} cannot name a publisher: use 1 to 64 letters, digits or _.:- (not {RESERVED!r})")
    settings, world = settings or Settings(), world or World()
    dialer = Dialer(servers, connect, network, settings, world)
    session = world.entropy.token(8)
    machine = PublisherMachine(feed, name or world.entropy.token(8), session, settings, named=name is not None)
    publisher = Publisher(machine, dialer, settings)
    async with open_owned_nursery() as nursery:
        nursery.start_soon(publisher.run)
        try:
            yield publisher
            await publisher.flush()
            await publisher.close()
        finally:
            publisher.end("the publisher was left")
            nursery.cancel_scope.cancel()


__all__ = ["Pending", "Publisher", "PublisherStatus", "open_publisher"]
