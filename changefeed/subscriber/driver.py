"""The subscription's tasks, and what `open_subscription` returns. Decisions are in machine.py."""

from __future__ import annotations

import copy
import datetime
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import trio

from changefeed.change import SEQ_MAX, Event, Filter, Position, check_feed_name
from changefeed.errors import (
    CannotResume,
    ChangefeedError,
    ConnectionLost,
    CursorError,
    InvalidName,
    Moved,
    UsageError,
)
from changefeed.nursery import open_owned_nursery
from changefeed.ports import World
from changefeed.servers import Connect, Dialer, Servers
from changefeed.session import Session
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.subscriber.cursors import Cursor, FileCursor
from changefeed.subscriber.machine import Effect, Go, Leave, SubscriberMachine, Welcomed
from changefeed.transport import Network
from changefeed.wire.faults import final_close
from changefeed.wire.messages import AnyMessage, Start

logger = logging.getLogger("changefeed.subscriber")

#: How long a subscription that ended well may take to tell the server what it has handled, in seconds.
CLOSE_S = 1.0

Bootstrap = Callable[[CannotResume], Awaitable[Start | Position | str | None]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """What a subscription is doing.

    server: the one last tried; instance: the name of the one that serves (or served last). connected: it is served now.
    position: everything up to it is handled (None: not known yet). head: the newest seq that is known. caught_up: the
    loop has been given everything up to the head. lag: seqs between position and head. staleness_s: for how long nobody
    has proved that this is current (infinite: never). resets: how often `bootstrap` healed a CannotResume, and
    last_reset the last one. last_error: why the last connection or attempt ended; None while connected. listing: it
    began at a snapshot and has not handled everything up to the head that stood at the list's end: what the loop has
    built is not whole yet, `position` is the one that begins the list again, and lag counts from where the stream goes
    on.
    """

    name: str
    server: str
    instance: str
    connected: bool
    position: Position | None
    head: int
    caught_up: bool
    lag: int
    staleness_s: float
    resets: int
    last_reset: CannotResume | None
    last_error: ChangefeedError | None
    listing: bool = False


class Subscription:
    """The events of a feed, in order; made by `open_subscription`. Iterate it in one task.

    `async for event in subscription`: an event is *handled* when the loop asks for the next one, or when the
    `async with` block ends without an exception (also after `break`); not when that ends by an exception or a
    cancellation: then the event comes first after a restart with the cursor. There is a checkpoint at least once per
    frame, not with each event.
    """

    def __init__(
        self,
        machine: SubscriberMachine,
        dialer: Dialer,
        settings: Settings,
        world: World,
        cursor: Cursor | None,
        bootstrap: Bootstrap | None,
    ) -> None:
        self.name = machine.name
        self.wake = Changed()
        self._machine = machine
        self._advance = machine.advance
        self._dialer = dialer
        self._settings = settings
        self._world = world
        self._cursor = cursor
        self._bootstrap = bootstrap
        self._changed = Changed()
        self._save_wake = Changed()
        self._save_lock = trio.Lock()
        self._session: Session | None = None
        self._generation = 0
        self._asking = False
        self._watchers = 0
        self._cursor_error: CursorError | None = None

    # ---- for applications

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        event = self._advance()
        return event if event is not None else await self._next(self._machine.ask)

    def groups(self) -> AsyncIterator[list[Event]]:
        """Whole groups instead of single events: a list of the events of a group that the filter selects.

        Only group ends are saved then; a saved position inside a group means: from the group's first event, unless the
        filter selects nothing behind it in that group. Raises UsageError if the loop is inside a group already.
        """
        if self._machine.use_groups() and self._session is not None:
            self._dialer.rotation.at_once()
            self._session.leave(Moved("whole groups are wanted"))
        return _Groups(self)

    async def commit(self, position: Position | None = None) -> None:
        """Save the cursor now: everything that the loop was given is handled, or everything up to `position`.

        Raises BadPosition for a position that the loop has not had, CursorError, UsageError without a cursor or with
        one that its caller saves. Cancellation: it may or may not be saved.
        """
        if self._cursor is None or self._cursor.by_caller:
            raise UsageError("there is no cursor that the subscription could save: open it with cursor=")
        target = self._machine.commit(position)
        await self._save(target)
        self._progress()

    async def wait_caught_up(self) -> None:
        """Until everything is handled that the feed held when the server last took the subscription in.

        The loop must go on in another task. Raises what ended the subscription. Cancellation: safe.
        """
        await self._wait_for(lambda: self._machine.reached)

    async def wait_until(self, position: Position) -> None:
        """Until everything up to `position` is handled: read your writes, with a receipt's position.

        The loop must go on in another task. Raises OtherLineage for a position of another log, and what ended the
        subscription. Cancellation: safe.
        """

        def reached() -> bool:
            foreign = self._machine.foreign(position)
            if foreign is not None:
                raise foreign
            handled = self._machine.handled
            return handled is not None and handled.seq >= position.seq

        await self._wait_for(reached)

    async def wait_ready(self) -> None:
        """Until a server has taken the subscription in (so that "now" is fixed) or refused it for good, which the loop
        will be told. `open_subscription` waits for it unless told not to. Cancellation: safe."""
        await trio.lowlevel.checkpoint()
        while not self._machine.ever_subscribed and self._machine.failure is None:
            await self._changed.wait()

    @property
    def state(self) -> SubscriptionState:
        machine = self._machine
        return SubscriptionState(
            machine.name,
            self._dialer.server,
            machine.instance,
            machine.subscribed,
            machine.handled,
            machine.head,
            machine.caught_up,
            machine.lag,
            machine.staleness_s(trio.current_time()),
            machine.resets,
            machine.last_reset,
            machine.last_error,
            machine.listing,
        )

    # ---- the loop

    async def _next(self, ask: Callable[[], T | None]) -> T:
        if self._asking:
            raise trio.BusyResourceError("another task iterates this subscription")
        self._asking = True
        machine = self._machine
        try:
            # Before anything is given: whoever is cancelled here has not had the next event.
            await trio.lowlevel.checkpoint()
            machine.settle(trio.current_time())
            self._progress()
            while True:
                if self._cursor_error is not None:
                    raise copy.copy(self._cursor_error)
                if not machine.must_save:
                    found = ask()
                    if found is not None:
                        self._changed.notify()
                        return found
                    if machine.failure is not None:
                        await self._heal(machine.failure)
                        continue
                await self._changed.wait()
        finally:
            self._asking = False

    async def _heal(self, error: ChangefeedError) -> None:
        """Let `bootstrap` say where to go on, or raise the error out of the loop."""
        if self._bootstrap is None or not isinstance(error, CannotResume):
            raise copy.copy(error)
        again = self._machine.resets_in_a_row
        if again:
            settings = self._settings
            bound = min(settings.reconnect_max_s, settings.reconnect_min_s * 2.0 ** min(again - 1, 40))
            await trio.sleep(self._world.entropy.random() * bound)
        logger.warning("feed %s: %s: %s; asking bootstrap where to go on", self._machine.feed, error.code, error)
        start = await self._bootstrap(error)
        if start is None:
            raise copy.copy(error)
        self._machine.restart(make_start(start))
        self._changed.notify()

    def _progress(self) -> None:
        """What is handled has moved: tell whoever waits for it."""
        self._changed.notify()
        self._save_wake.notify()

    async def _wait_for(self, reached: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        self._watchers += 1
        self._machine.watch(True)
        try:
            while not reached():
                failure = self._machine.failure
                if failure is not None and (self._bootstrap is None or not isinstance(failure, CannotResume)):
                    raise copy.copy(failure)
                await self._changed.wait()
        finally:
            self._watchers -= 1
            self._machine.watch(self._watchers > 0)

    # ---- the cursor

    async def _save(self, position: Position, *, sync: bool = True) -> None:
        """Save, one at a time, and never back behind what was saved meanwhile."""
        assert self._cursor is not None
        machine = self._machine
        async with self._save_lock:
            if machine.is_saved(position):
                machine.save_ended(None)
                return
            try:
                await self._cursor.store(position, sync=sync)
            except BaseException:
                machine.save_ended(None)
                raise
            machine.save_ended(position)

    async def save_loop(self) -> None:
        """Save as often as the machine says, beside the loop."""
        machine = self._machine
        while True:
            position = machine.begin_save(trio.current_time())
            if position is None:
                with trio.move_on_at(machine.save_deadline):
                    await self._save_wake.wait()
                continue
            try:
                await self._save(position, sync=False)
            except CursorError as error:
                self._cursor_error = error
                self._changed.notify()
                return
            self._changed.notify()

    # ---- what a session asks (session.Side)

    def take(self) -> AnyMessage | None:
        message = self._machine.take(trio.current_time())
        if message is None and self._machine.closing:
            self._changed.notify()
        return message

    @property
    def deadline(self) -> float:
        return self._machine.deadline

    @property
    def dead_s(self) -> float:
        return self._machine.dead_s

    async def room(self) -> None:
        while not self._machine.has_room:
            await self._changed.wait()

    def received(self, message: AnyMessage) -> None:
        self._perform(self._machine.received(message, self._generation, trio.current_time()))  # type: ignore[arg-type]
        self.wake.notify()
        self._progress()

    # ---- tasks

    async def run(self) -> None:
        """Connect, again and again."""
        machine = self._machine
        while not machine.closing:
            if machine.failure is not None:
                await self._changed.wait()
                continue
            try:
                connection = await self._dialer.dial()
            except ChangefeedError as error:
                machine.disconnected(error)
                if not error.retryable:
                    self._refused(error)
                self._changed.notify()
                continue
            self._generation = machine.connected(trio.current_time())
            self._session = Session(connection, self._settings)
            try:
                ended = await self._session.run(self)
            finally:
                self._session = None
                self._dialer.lost()
            final = final_close(ended) if isinstance(ended, ConnectionLost) else None
            machine.disconnected(final or machine.last_error or ended)
            if final is not None and machine.failure is None:
                self._refused(final)
            self._progress()
            if not machine.closing:
                logger.info("feed %s: lost %s: %s", machine.feed, self._dialer.server, ended)

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Leave():
                    self._leave(effect.error)
                    if effect.final:
                        self._refused(effect.error)
                case Go():
                    self._dialer.redirect(effect.servers)
                    self._leave(Moved("the server asked to go elsewhere"), effect.delay_s)
                case Welcomed():
                    machine = self._machine
                    self._dialer.welcomed()
                    self._world.trace(
                        "welcomed",
                        feed=machine.feed,
                        name=machine.name,
                        instance=machine.instance,
                        position=machine.position,
                    )

    def _leave(self, error: ChangefeedError, delay_s: float = 0.0) -> None:
        if self._session is not None:
            self._session.leave(error, delay_s)

    def _refused(self, error: ChangefeedError) -> None:
        if self._dialer.rotation.refused_for_good():
            self._machine.refused_everywhere(error)

    async def close(self) -> None:
        """The block ended without an exception: what was given is handled; tell the server, and leave politely."""
        machine = self._machine
        machine.settle(trio.current_time())
        machine.closing = True
        self.wake.notify()
        with trio.move_on_after(CLOSE_S):
            while self._session is not None and not machine.all_told:
                await self._changed.wait()
        self._leave(Moved("the subscription is closed"))
        while self._session is not None:
            await self._changed.wait()

    async def save_last(self) -> None:
        """Save what is handled; the tasks have ended."""
        position = self._machine.begin_save(trio.current_time(), force=True)
        if position is not None:
            await self._save(position)


class _Groups:
    """See Subscription.groups."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def __aiter__(self) -> _Groups:
        return self

    async def __anext__(self) -> list[Event]:
        subscription = self._subscription
        return await subscription._next(subscription._machine.ask_group)


def make_start(start: Start | Position | str | int | datetime.datetime) -> Start:
    """A Start from what `open_subscription` accepts. Raises BadPosition, UsageError."""
    match start:
        case Start():
            if sum(part is not None for part in (start.at, start.position, start.time)) != 1:
                raise UsageError("a Start names exactly one of: at, position, time")
            return start if start.time is None else make_start(start.time)
        case Position():
            return Start(position=start)
        case "now" | "beginning" | "snapshot":
            return Start(at=str(start))
        case str():
            return Start(position=Position.parse(start))
        case datetime.datetime():
            return Start(time=max(0, int(start.timestamp() * 1000)))  # before 1970 there was no event
        case int() if not isinstance(start, bool) and 0 <= start <= SEQ_MAX:
            return Start(time=start)
    raise UsageError(
        f"start={start!r}: write 'beginning', 'now', 'snapshot', a position, or a time (datetime, or ms since 1970)"
    )


def make_filter(
    filter: Filter | None,
    resources: Mapping[str, Iterable[str]] | Iterable[str] | None,
    ids: Iterable[str],
    ops: Iterable[str],
) -> Filter:
    """A Filter from what `open_subscription` accepts. Raises UsageError."""
    ids, ops = _names(ids, "ids"), _names(ops, "ops")
    if filter is not None:
        if resources or ids or ops:
            raise UsageError("give either filter= or its parts (resources=, ids=, ops=), not both")
        filter.check()
        return filter
    if resources is None:
        chosen = {}
    elif isinstance(resources, Mapping):
        chosen = {name: _names(fields, f"resources[{name!r}]") for name, fields in resources.items()}
    else:
        chosen = dict.fromkeys(_names(resources, "resources"), ())
    made = Filter(chosen, frozenset(ids), frozenset(ops))
    made.check()
    return made


def _names(names: Iterable[str], what: str) -> tuple[str, ...]:
    if isinstance(names, str):
        raise UsageError(f"{what} must be several names, not one text: write ({names!r},)")
    found = tuple(names)
    if not all(isinstance(name, str) for name in found):
        raise UsageError(f"{what} must be texts")
    return found


@asynccontextmanager
async def open_subscription(
    feed: str,
    servers: Servers = None,
    *,
    start: Start | Position | str | int | datetime.datetime = "now",
    filter: Filter | None = None,
    resources: Mapping[str, Iterable[str]] | Iterable[str] | None = None,
    ids: Iterable[str] = (),
    ops: Iterable[str] = (),
    name: str | None = None,
    cursor: Cursor | str | os.PathLike[str] | None = None,
    commit_interval_s: float | None = None,
    commit_events: int | None = None,
    bootstrap: Bootstrap | None = None,
    wait: bool = True,
    settings: Settings | None = None,
    network: Network | None = None,
    world: World | None = None,
    connect: Connect | None = None,
) -> AsyncIterator[Subscription]:
    """Subscribe to a feed at any one of `servers`, and at others when that one fails, for ever.

    servers: see changefeed/servers.py. start: "beginning", "now", "snapshot" (a list of the latest event of each
    object, then the stream: docs/how-to/snapshot.md), a Position (or its text), a time (datetime, or milliseconds since
    1970: the first event at or after it); used only when the cursor is empty. resources: names, or
    {name: fields that must have changed}; ids, ops: exact; or all as one `filter`. name: under which status lists the
    subscription, 1 to 128 printable characters; default host and pid. cursor: a Cursor, or the path of a file. It is
    saved every commit_interval_s or commit_events (defaults: cursor_interval_s, cursor_events), at catching up, and
    at the end: after a crash at most that much is repeated. bootstrap: called with a CannotResume, it returns where to
    go on (None: raise it after all). connect: instead of servers, opens connections to an instance in this process.

    Returns once a server has taken the subscription in, or refused it for good; with wait=False, at once. The loop
    raises CannotResume kinds, Refused kinds (UnknownFeed, UnknownResource …), CursorError; this function InvalidName,
    BadUrl, BadPosition, UsageError, CursorInUse, CursorDamaged, CursorOfOtherFeed.
    """
    check_feed_name(feed)
    chosen = make_filter(filter, resources, ids, ops)
    begin = make_start(start)
    settings, world = settings or Settings(), world or World()
    name = f"{socket.gethostname()}-{os.getpid()}"[:128] if name is None else name
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise InvalidName(f"{name!r} cannot name a subscription: use 1 to 128 printable characters")
    if isinstance(cursor, str | os.PathLike):
        cursor = FileCursor(cursor)
    dialer = Dialer(servers, connect, network, settings, world)
    saved = await cursor.open(feed) if cursor is not None else None
    saves = cursor is not None and not cursor.by_caller
    machine = SubscriberMachine(
        feed,
        name,
        begin,
        chosen,
        settings,
        saved=saved,
        saves=saves,
        save_interval_s=commit_interval_s,
        save_events=commit_events,
    )
    subscription = Subscription(machine, dialer, settings, world, cursor, bootstrap)
    try:
        async with open_owned_nursery() as nursery:
            nursery.start_soon(subscription.run)
            if saves:
                nursery.start_soon(subscription.save_loop)
            try:
                if wait:
                    await subscription.wait_ready()
                yield subscription
                await subscription.close()
            finally:
                nursery.cancel_scope.cancel()
    except BaseException:
        await _let_go(subscription, cursor, quietly=True)
        raise
    await _let_go(subscription, cursor, quietly=False)


async def _let_go(subscription: Subscription, cursor: Cursor | None, *, quietly: bool) -> None:
    """Save what is handled, and release the cursor. Not to be cancelled: it is one write."""
    if cursor is None:
        return
    with trio.CancelScope(shield=True):
        try:
            await subscription.save_last()
        except CursorError as error:
            if not quietly:
                raise
            # What ends the block says more.
            logger.error("the cursor was not saved at the end: %s", error)
        finally:
            await cursor.aclose()


__all__ = ["Subscription", "SubscriptionState", "make_filter", "make_start", "open_subscription"]
