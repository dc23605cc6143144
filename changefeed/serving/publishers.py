"""The tasks of one publisher's connection: Open, then Publish -> whoever leads -> Answer, in order; Reopen at its loss.

One task receives (and waits for the leader where there is none or no room), one sends. Which answers may leave, and
when the publisher must open again, is decided in desk.py.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from changefeed.batch import Batch
from changefeed.declared import check_declared
from changefeed.errors import (
    AppendOutcomeUnknown,
    BadMessage,
    ChangefeedError,
    ChangeTooLarge,
    Draining,
    Fenced,
    GroupTooLarge,
    InvalidChange,
    InvalidName,
    LogUnavailable,
    NotCurrent,
    Stalled,
    TailMoved,
    UnknownField,
    UnknownResource,
)
from changefeed.leader import Leader
from changefeed.serving.desk import Desk, Slot, refused
from changefeed.serving.feed import Feed, limits_of
from changefeed.serving.large import LARGE_BYTES, in_turn
from changefeed.transport import Connection, Message
from changefeed.wire.changes import raw_heads
from changefeed.wire.codec import answer_of, check_structure, decode, encode
from changefeed.wire.messages import Answer, Beat, Open, Opened, Publish, Reopen

#: Between two tries to be admitted by a leader that cannot answer now.
RETRY_S: Final = 0.1
RESERVED: Final = "outbox"
#: A leader that raises one of these has not said no: it is going, or its log does not answer.
_NOT_NOW: Final = (NotCurrent, LogUnavailable, AppendOutcomeUnknown, Fenced, TailMoved)


async def serve_publisher(connection: Connection, first: Open, feed: Feed) -> None:
    """Serve one publisher's connection until it ends. Never returns normally: raises the typed error that ended it
    (what the leader refused an Open with, BadMessage, Stalled, ConnectionLost, Draining), which the caller tells the
    peer. A refused batch does not end it. Cancellation: batches that the leader has taken are still appended."""
    raise await _Desk(connection, feed).run(first)


class _Desk:
    """The driver around a Desk; `run` returns the error that ended the connection."""

    def __init__(self, connection: Connection, feed: Feed) -> None:
        self._connection = connection
        self._feed = feed
        self._desk = Desk(feed.settings.in_flight_max)
        self._outgoing: deque[Opened | Reopen] = deque()
        self._wake = trio.Event()
        self._ended: ChangefeedError | None = None
        self._reading: trio.CancelScope | None = None
        self._request: Open | None = None
        self._incarnation = 0
        self._leader: Leader | None = None
        self._channel = ""
        self._watching: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None

    async def run(self, first: Open) -> ChangefeedError:
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._watch_draining)
                self._nursery.start_soon(self._read, first)
                try:
                    error = await self._write()
                except ChangefeedError as raised:
                    error = raised
                self._nursery.cancel_scope.cancel()
            return error
        finally:
            self._leave()

    def _leave(self) -> None:
        leader, self._leader = self._leader, None
        if leader is not None:
            leader.close(self._channel)

    # ---- receiving

    async def _read(self, first: Open) -> None:
        try:
            with trio.CancelScope() as self._reading:
                await self._open(first)
                while True:
                    await self._serve(await self._receive())
        except ChangefeedError as error:
            self._ended = error
            self._wake.set()

    async def _receive(self) -> Open | Publish | Beat | Answer:
        """The next message; an Answer for a Publish that is refused as it comes in."""
        settings, connection = self._feed.settings, self._connection
        with trio.move_on_after(settings.heartbeat_dead_s) as deadline:
            data = await connection.receive()
        if deadline.cancelled_caught:
            raise Stalled(f"the publisher sent nothing for {settings.heartbeat_dead_s:g} s")
        try:
            message = await self._decode(data)
        except (InvalidChange, ChangeTooLarge, GroupTooLarge) as error:
            answer: Answer | None = answer_of(error)
            if answer is None:
                raise BadMessage(f"a publish that cannot be answered: {error}") from error
            return answer
        return message

    async def _decode(self, data: Message) -> Open | Publish | Beat:
        check_structure(data)
        ask = partial(decode, data, self._connection.subprotocol, (Open, Publish, Beat), self._feed.settings)
        message: Open | Publish | Beat = ask() if len(data) <= LARGE_BYTES else await in_turn(ask)
        return message

    async def _serve(self, message: Open | Publish | Beat | Answer) -> None:
        match message:
            case Open():
                self._check_same(message)
                await self._open(message)
            case Publish():
                await self._publish(message)
            case Answer():
                self._refuse(message)

    def _check_same(self, request: Open) -> None:
        known = self._request
        if known is not None and (request.feed, request.publisher) != (known.feed, known.publisher):
            raise BadMessage(
                f"this connection was opened for publisher {known.publisher} of feed {known.feed}; "
                "another one needs a connection of its own"
            )

    async def _open(self, request: Open) -> None:
        """Be admitted by whoever leads, however long that takes: the writer beats meanwhile.

        A leader that was lost before it answered may still grant an incarnation, for as long as its term runs. Asked
        twice for one under the same id, it might grant the first one last, which would supersede the one in use. So
        only the leader of another term, whose fence ends that, is asked again; else the publisher must, under a new id.
        """
        if len(self._outgoing) >= self._feed.settings.in_flight_max:
            raise BadMessage(
                f"{len(self._outgoing)} messages were not taken, and yet the publisher opens again: read what is sent"
            )
        if request.publisher == RESERVED:
            raise InvalidName(f"the publisher id {RESERVED!r} is reserved for the outbox; choose another")
        self._request = request
        self._desk.closed()
        self._unwatch()
        self._leave()
        gives = request.incarnation is None and not request.named
        unanswered: tuple[int, str] | None = None
        while True:
            leader = await self._feed.leader()
            if unanswered == (leader.epoch, leader.term):
                raise NotCurrent("the leader was lost before it gave an incarnation; open again, under another id")
            channel = self._feed.subscribers.channel()
            self._leader, self._channel = leader, channel
            try:
                opened = await leader.open(request, channel)
            except _NOT_NOW:
                if gives and leader.lost.is_set():
                    unanswered = leader.epoch, leader.term
                self._leave()
                await trio.sleep(RETRY_S)
                continue
            break
        feed = self._feed
        opening = self._desk.opened()
        self._incarnation = opened.incarnation
        # Whoever leads, the publisher talks to this instance, under its limits.
        self._say(
            replace(
                opened,
                instance=feed.instance,
                process=feed.process,
                limits=limits_of(feed.settings),
                resources=feed.declared().resources,
                snapshot=feed.declared().snapshot,
            )
        )
        assert self._nursery is not None
        self._watching = trio.CancelScope()
        self._nursery.start_soon(self._watch_leader, leader, opening, self._watching)

    async def _publish(self, message: Publish) -> None:
        slot = self._desk.take(message.number)
        if slot is None or self._leader is None or self._request is None:
            return
        try:
            self._check_declared(message)
        except (UnknownResource, UnknownField) as error:
            self._answered(slot, refused(message, error.code, str(error)))
            return
        batch = Batch(
            self._request.publisher,
            self._incarnation,
            message.after,
            message.number,
            message.sizes,
            message.payload,
        )
        try:
            await self._leader.publish(self._channel, batch, partial(self._answered, slot))
        except _NOT_NOW:
            self._lost(slot.opening, "the leader takes no more")
        except trio.Cancelled:
            # Nobody knows whether it was taken; the publisher sends it again, elsewhere.
            self._desk.forget(slot)
            raise

    def _check_declared(self, message: Publish) -> None:
        """Raise UnknownResource or UnknownField for a change that the feed does not declare."""
        declared = self._feed.declared().declared
        if not declared:
            return
        for name, fields in {(head[0], head[3]) for head in raw_heads(message.payload, sum(message.sizes))}:
            check_declared(name, fields, declared)

    def _refuse(self, answer: Answer) -> None:
        slot = self._desk.take(answer.number)
        if slot is not None:
            self._answered(slot, answer)

    def _answered(self, slot: Slot, answer: Answer) -> None:
        if self._desk.answered(slot, answer):
            self._wake.set()

    # ---- what may happen meanwhile

    async def _watch_leader(self, leader: Leader, opening: int, scope: trio.CancelScope) -> None:
        with scope:
            await leader.lost.wait()
            self._lost(opening, "the leader changed, or this instance lost it")

    def _unwatch(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _lost(self, opening: int, why: str) -> None:
        if self._desk.lost(opening):
            self._say(Reopen(why))

    async def _watch_draining(self) -> None:
        """Stop reading; what was taken is still answered."""
        await self._feed.draining.wait()
        if self._reading is not None:
            self._reading.cancel()
        self._wake.set()

    # ---- sending

    def _say(self, message: Opened | Reopen) -> None:
        self._outgoing.append(message)
        self._wake.set()

    async def _write(self) -> ChangefeedError:
        """Send whatever may leave, beat when idle; returns the error with which the connection ends."""
        feed, desk = self._feed, self._desk
        beat_at = trio.current_time() + feed.settings.heartbeat_s
        drain_until: float | None = None
        while True:
            self._wake = trio.Event()
            if self._ended is not None:
                return self._ended
            # Answers of an opening leave before the Reopen that ends it, and after the Opened that began it.
            message: Opened | Reopen | Answer | Beat | None = None
            if self._outgoing and isinstance(self._outgoing[0], Opened):
                message = self._outgoing.popleft()
            else:
                message = desk.next() or (self._outgoing.popleft() if self._outgoing else None)
            now = trio.current_time()
            if message is None and feed.draining.is_set():
                drain_until = now + feed.settings.drain_s if drain_until is None else drain_until
                if desk.idle or not desk.is_open or now >= drain_until:
                    return Draining(f"instance {feed.instance} is shutting down; publish through another")
            if message is None and now >= beat_at:
                tail = feed.window.tail
                message = Beat(feed.leading()[1], 0 if tail is None else tail.seq, min(feed.stale_s(), 1e9))
            if message is None:
                with trio.move_on_at(beat_at if drain_until is None else min(beat_at, drain_until)):
                    await self._wake.wait()
                continue
            await self._send(message)
            beat_at = trio.current_time() + feed.settings.heartbeat_s

    async def _send(self, message: Opened | Reopen | Answer | Beat) -> None:
        settings = self._feed.settings
        with trio.move_on_after(settings.stall_after_s) as scope:
            await self._connection.send(encode(message, self._connection.subprotocol))
        if scope.cancelled_caught:
            self._connection.abort()
            raise Stalled(f"the publisher took no byte for {settings.stall_after_s:g} s")
