"""The tasks of one subscriber's connection: read after its position (window, else log), send, repeat.

One task sends, one receives, one waits for the instance to drain; what to do is decided in machine.py. What a session
holds is constant: a position, and the frame that is being sent. TCP is the back-pressure.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import trio

from changefeed.batch import Entry
from changefeed.change import Filter, Position
from changefeed.errors import (
    BadMessage,
    ChangefeedError,
    Draining,
    LogDamaged,
    LogUnavailable,
    NotCurrent,
    Stalled,
    TailMoved,
    TrimmedAway,
)
from changefeed.log import Latest, Look
from changefeed.serving.feed import Feed, limits_of
from changefeed.serving.filters import check_filter, compile_filter
from changefeed.serving.large import LARGE_BYTES, in_turn
from changefeed.serving.listing import Listing, Named, admit_list, check_kept, check_newest, wants_list
from changefeed.serving.machine import End, Page, Read, Send, Session, Sight, Verify, Wait, admit, group_start
from changefeed.serving.registry import Subscriber
from changefeed.transport import Connection
from changefeed.wire import MSGPACK
from changefeed.wire.codec import SUBSCRIBER_BYTES_MAX, check_size, decode, encode
from changefeed.wire.frames import Wanted, run_of
from changefeed.wire.messages import Beat, Events, Handled, Listed, Redirect, Run, Subscribe, Subscribed

Value = TypeVar("Value")

__all__ = ["Feed", "serve_subscriber"]


async def serve_subscriber(connection: Connection, first: Subscribe, feed: Feed) -> None:
    """Serve one subscription until it ends. Never returns normally: raises the typed error that ended it (refused
    start, ConnectionLost, Stalled, Draining, Moved, PositionTooOld …), which the caller tells the peer. Cancellation:
    safe between frames; in the middle of one it breaks the connection."""
    check_filter(first.filter, feed.declared())
    if feed.draining.is_set():
        # Whoever is new has nothing to lose: it is not spread over time.
        raise _draining(feed)
    listing: Listing | None = None
    if wants_list(first.start):
        start, head, listing = await _admit_list(first, feed)
    else:
        start, head = await _admit(first, feed)
    subscriber = feed.subscribers.join(first.name, first.filter, first.client, connection.peer, start)
    reason = "cancelled"
    try:
        served = _Served(connection, first, feed, start, subscriber, listing)
        error = await served.run(head)
        reason = served.session.ended(error)
        raise error
    finally:
        feed.subscribers.leave(subscriber, reason)


# ---- admission


async def _admit(request: Subscribe, feed: Feed) -> tuple[Position, Position]:
    """Where the subscription starts, and the head; every refusal rests on a look that began after the request."""
    start, log = request.start, feed.log
    if start.at == "now" and feed.window.tail is None:
        with trio.move_on_after(feed.settings.handshake_s):
            await feed.wait_visible(-1)
    time_seq = None if start.time is None else await _ask(feed, log.read_time(start.time))
    look = await _ask(feed, log.look())
    position = admit(request, look, feed.window.tail, time_seq)
    check_newest(request, look)
    if request.groups and start.position is not None and position.seq > look.floor.seq:
        try:
            holder = (await _ask(feed, log.read(position.seq - 1, 1)))[0]
        except TrimmedAway:
            raise await _refusal(position, feed) from None
        wanted = _whole(request.filter) if position.seq < request.whole else _compiled(request.filter)
        position = group_start(position, holder, look, wanted)
    return position, _head(feed, look)


async def _admit_list(request: Subscribe, feed: Feed) -> tuple[Position, Position, Listing]:
    """The listing position, the head, and the list that comes first."""
    look = await _ask(feed, feed.log.look())
    settings = await _ask(feed, feed.log.settings())
    snapshot = admit_list(request, look, settings)
    named = Named.of(request.filter, settings)
    listing = Listing(request, snapshot, named, feed.settings.snapshot_list_bytes)
    return Position.listing(look.lineage), _head(feed, look), listing


def _head(feed: Feed, look: Look) -> Position:
    tail = feed.window.tail
    return look.head if tail is None else tail.position(feed.log.lineage)


def _compiled(filter: Filter) -> Wanted | None:
    return compile_filter(filter) if filter else None


def _whole(filter: Filter) -> Wanted | None:
    """What the filter selects where no names of fields narrow updates."""
    return _compiled(replace(filter, resources=dict.fromkeys(filter.resources, ())))


async def _ask(feed: Feed, question: Awaitable[Value]) -> Value:
    """The log's answer. Raises NotCurrent if it cannot be asked now: who does not know gives no final no."""
    try:
        with trio.fail_after(feed.settings.log_timeout_s):
            return await question
    except (trio.TooSlowError, LogUnavailable) as error:
        why = str(error) or f"it did not answer within {feed.settings.log_timeout_s:g} s"
        raise NotCurrent(f"the log of feed {feed.name} cannot be asked now ({why}); ask again") from error


async def _refusal(position: Position, feed: Feed) -> ChangefeedError:
    """Why a position cannot be served any more, from a fresh look; NotCurrent if the log does not bear it out."""
    look: Look = await _ask(feed, feed.log.look())
    return look.check(position) or NotCurrent(f"feed {feed.name} was trimmed meanwhile; ask again")


def _draining(feed: Feed) -> ChangefeedError:
    return Draining(f"instance {feed.instance} is shutting down; subscribe at another")


async def _encode_events(message: Listed | Events, subprotocol: str) -> bytes | str:
    if subprotocol == MSGPACK or sum(len(run.payload) for run in message.runs) <= LARGE_BYTES:
        return encode(message, subprotocol)
    return await in_turn(partial(encode, message, subprotocol))


# ---- one subscription


class _Served:
    """The tasks of one subscription; `run` returns the error that ended it."""

    def __init__(
        self,
        connection: Connection,
        request: Subscribe,
        feed: Feed,
        start: Position,
        subscriber: Subscriber,
        listing: Listing | None,
    ) -> None:
        self._connection = connection
        self._feed = feed
        self._name = request.name
        self._start = start
        self._subscriber = subscriber
        self._wanted = _compiled(request.filter)
        #: Instead of `_wanted`, until `session.whole` is passed; None where it would select the same.
        self._whole = _whole(request.filter) if any(request.filter.resources.values()) else None
        self._key = request.filter.key
        now, luck = trio.current_time(), feed.world.entropy.random()
        self.session = Session(start, feed.settings, now, luck, listing=listing, whole=request.whole)
        self._shared = False
        self._waiting: trio.CancelScope | None = None
        self._woken = False

    async def run(self, head: Position) -> ChangefeedError:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._watch_draining)
            try:
                await self._send(encode(self._welcome(head), self._connection.subprotocol))
                error = await self._serve()
            except ChangefeedError as raised:
                error = raised
            nursery.cancel_scope.cancel()
        return error

    def _welcome(self, head: Position) -> Subscribed:
        feed = self._feed
        leader, epoch = feed.leading()
        limits = limits_of(feed.settings)
        return Subscribed(feed.name, feed.instance, feed.process, self._start, head, leader, epoch, limits)

    async def _receive(self) -> None:
        session, connection, feed = self.session, self._connection, self._feed
        try:
            while True:
                data = await connection.receive()
                check_size(data, SUBSCRIBER_BYTES_MAX, "a subscriber's message")
                message = decode(data, connection.subprotocol, (Handled, Beat), feed.settings)
                session.heard(trio.current_time())
                if isinstance(message, Handled):
                    position = session.handled(message.position)
                    if position is not None:
                        feed.subscribers.handled(self._subscriber, position)
        except ChangefeedError as error:
            session.failed(error)
            self._wake()

    async def _watch_draining(self) -> None:
        await self._feed.draining.wait()
        self._wake()

    def _wake(self) -> None:
        self._woken = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _serve(self) -> ChangefeedError:
        session = self.session
        while True:
            now = trio.current_time()
            match session.step(now, self._sight(now)):
                case Send(message):
                    await self._send(await self._encoded(message))
                    if isinstance(message, Redirect):
                        self._feed.subscribers.redirected(self._name, now)
                    self._subscriber.sent = session.told
                case Read(after, upto):
                    await self._read(after, upto)
                case Page(listing):
                    await self._read_page(listing)
                case Wait(until, beyond):
                    await self._wait(until, beyond)
                case Verify(position):
                    refusal = await self._verify(position)
                    if refusal is not None:
                        return refusal
                case End(error):
                    return error

    def _sight(self, now: float) -> Sight:
        feed = self._feed
        tail = feed.window.tail
        return Sight(
            -1 if tail is None else tail.seq,
            feed.leading()[1],
            feed.stale_s(),
            feed.redirect(),
            feed.draining.is_set(),
            feed.subscribers.redirected_s(self._name, now),
        )

    async def _wait(self, until: float, beyond: int | None) -> None:
        if not self._woken:
            with trio.CancelScope(deadline=until) as self._waiting:
                if beyond is None:
                    await trio.sleep_forever()
                else:
                    await self._feed.wait_visible(beyond)
            self._waiting = None
        self._woken = False

    async def _verify(self, position: Position) -> ChangefeedError | None:
        try:
            return (await _ask(self._feed, self._feed.log.look())).check(position)
        except NotCurrent:
            return None

    # ---- reading

    async def _read(self, after: int, upto: int) -> None:
        """Look through the next stretch, from the window or from the log, and tell the session what it holds."""
        feed, session = self._feed, self.session
        entries = feed.window.after(after, feed.settings.frame_bytes_aim)
        shared = entries is not None
        if entries is None:
            try:
                found = await _ask(feed, feed.log.read(after, feed.settings.frame_bytes_aim))
            except NotCurrent:
                session.log_failed(trio.current_time())
                return
            except TrimmedAway:
                raise await _refusal(session.told, feed) from None
            # What lies beyond the visible tail may be in the log and yet not stay there.
            entries = [entry for entry in found if entry.last_seq <= upto]
        if not entries:
            session.log_failed(trio.current_time())
            return
        if entries[0].epoch < session.scanned.epoch:
            # Epochs only grow along a log: this is another one than the subscriber was served from.
            raise await _refusal(session.told, feed)
        last = entries[-1]
        to = Position(feed.log.lineage, last.epoch, last.term, last.last_seq)
        wanted = self._wanted
        if self._whole is not None and after < session.whole:
            # What is cut for this one alone is not for others with its filter.
            wanted, shared = self._whole, False
        runs = self._runs(after, to, entries, wanted, shared)
        session.took(runs, to, trio.current_time())
        self._shared = shared
        if not runs:
            # Nothing is sent that would let others run.
            await trio.lowlevel.checkpoint()

    def _runs(
        self, after: int, to: Position, entries: list[Entry], wanted: Wanted | None, shared: bool
    ) -> tuple[Run, ...]:
        """What the filter selects of the entries; sessions with equal filters look through the window once."""
        cache = self._feed.subscribers.frames.runs
        key = (self._key, after, to)
        found = cache.get(key) if shared and wanted is not None else None
        if found is None:
            try:
                cut = [run_of(entry, after, wanted) for entry in entries]
            except BadMessage as error:
                raise LogDamaged(f"feed {self._feed.name}: an entry up to seq {to.seq} is damaged: {error}") from error
            found = tuple(run for run in cut if run is not None)
            if shared and wanted is not None:
                cache.put(key, found, sum(len(run.payload) for run in found))
        return found

    async def _read_page(self, listing: Listing) -> None:
        """Read the next page of the list, beside whoever writes and folds. Raises NoSnapshot if it was switched off."""
        feed = self._feed
        try:
            try:
                rows, end = await self._page(listing)
            except TailMoved:
                # It is folded anew: the list goes on once as much is folded as when it began.
                check_kept(feed.name, await _ask(feed, feed.log.settings()))
                raise NotCurrent(f"the snapshot of feed {feed.name} is being made anew") from None
        except NotCurrent:
            self.session.log_failed(trio.current_time())
            return
        listing.took(rows, end)
        if not listing.ready:
            # Nothing is sent that would let others run.
            await trio.lowlevel.checkpoint()

    async def _page(self, listing: Listing) -> tuple[list[Latest], tuple[str, str] | None]:
        """Rows in order, and up to where they go (None: to the end). Raises NotCurrent if the log does not answer now,
        TailMoved if less is folded than when the list began."""
        feed, at = self._feed, listing.snapshot.seq
        if listing.named is None:
            size = feed.settings.snapshot_list_bytes
            rows = await _ask(feed, feed.log.list_latest(listing.after, size, at=at))
            return rows, rows[-1].key if rows else None
        keys = listing.named.after(listing.after)
        if not keys:
            return [], None
        rows = await _ask(feed, feed.log.latest(keys))
        # Only for what it may raise.
        await _ask(feed, feed.log.list_latest(keys[-1], 1, at=at))
        return sorted(rows, key=lambda row: row.key), keys[-1]

    # ---- sending

    async def _encoded(self, message: Listed | Events | Beat | Redirect) -> bytes | str:
        """The message as it travels; frames out of the window are encoded once for all sessions with equal filters."""
        subprotocol = self._connection.subprotocol
        if isinstance(message, Beat | Redirect):
            return encode(message, subprotocol)
        if isinstance(message, Listed) or not self._shared:
            return await _encode_events(message, subprotocol)
        cache = self._feed.subscribers.frames.frames
        key = (self._key, subprotocol, message.after, message.to)
        data = cache.get(key)
        if data is None:
            data = await _encode_events(message, subprotocol)
            cache.put(key, data, len(data))
        return data

    async def _send(self, data: bytes | str) -> None:
        """Send within `stall_after_s`, per `frame_bytes_aim` begun: a slow line is no stall. A send that is given up
        breaks the connection."""
        settings = self._feed.settings
        allowed = settings.stall_after_s * (1 + len(data) // max(1, settings.frame_bytes_aim))
        with trio.move_on_after(allowed) as scope:
            await self._connection.send(data)
        if scope.cancelled_caught:
            self._connection.abort()
            raise Stalled(f"subscriber {self._name} did not take {len(data)} bytes within {allowed:g} s")
