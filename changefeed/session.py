"""One connection of a client, from its opening to its end: sends what there is, receives, notices a silent server.

What is sent and what a message means is the business of a `Side` (a publisher's or a subscription's machine, seen
through its driver); this module knows only how to wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from changefeed.errors import ChangefeedError, ConnectionLost, Stalled
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.transport import Connection
from changefeed.wire.codec import decode, encode
from changefeed.wire.messages import AnyMessage, ServerMessage

#: How long a polite end may take, in seconds, before the connection is dropped.
CLOSE_S = 1.0


class Side(Protocol):
    """wake: notified whenever `take` may have something new, or `deadline` moved."""

    wake: Changed

    def take(self) -> AnyMessage | None:
        """The next message to send, which counts as sent; None: nothing now."""

    @property
    def deadline(self) -> float:
        """When to ask `take` again though nothing was notified."""

    @property
    def dead_s(self) -> float:
        """After so long without a message the server is taken for gone."""

    async def room(self) -> None:
        """Returns when another message can be taken in."""

    def received(self, message: AnyMessage) -> None:
        """Called with each message, in order."""


class Session:
    """A connection while it is used; `run` returns why it ended."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._nursery: trio.Nursery | None = None
        self._ended: ChangefeedError | None = None

    def leave(self, error: ChangefeedError, delay_s: float = 0.0) -> None:
        """End this session, now or after a while. The first reason counts."""
        if self._nursery is None:
            self._ended = self._ended or error
        elif delay_s > 0:
            self._nursery.start_soon(self._leave_later, error, delay_s)
        else:
            self._ended = self._ended or error
            self._nursery.cancel_scope.cancel()

    async def _leave_later(self, error: ChangefeedError, delay_s: float) -> None:
        await trio.sleep(delay_s)
        self.leave(error)

    async def run(self, side: Side) -> ChangefeedError:
        """Serve `side` until the connection ends, and return why. It is closed then; cancellation drops it."""
        connection = self._connection
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._ended is not None:
                    nursery.cancel_scope.cancel()
                nursery.start_soon(self._guard, self._send, side)
                nursery.start_soon(self._guard, self._receive, side)
            self._nursery = None
            assert self._ended is not None
            if not isinstance(self._ended, ConnectionLost | Stalled):
                with trio.move_on_after(CLOSE_S):
                    await connection.aclose()
            return self._ended
        finally:
            self._nursery = None
            connection.abort()

    async def _guard(self, run: Callable[[Side], Awaitable[None]], side: Side) -> None:
        try:
            await run(side)
        except ChangefeedError as error:
            self.leave(error)

    async def _send(self, side: Side) -> None:
        subprotocol, send = self._connection.subprotocol, self._connection.send
        with trio.CancelScope() as scope:
            while True:
                message = side.take()
                if message is None:
                    scope.deadline = float("inf")
                    with trio.move_on_at(side.deadline):
                        await side.wake.wait()
                    continue
                scope.deadline = trio.current_time() + self._settings.stall_after_s
                await send(encode(message, subprotocol))
        raise Stalled(f"{self._connection.peer} took no byte for {self._settings.stall_after_s:g} s")

    async def _receive(self, side: Side) -> None:
        subprotocol, receive = self._connection.subprotocol, self._connection.receive
        with trio.CancelScope() as scope:
            while True:
                scope.deadline = float("inf")
                await side.room()
                scope.deadline = trio.current_time() + side.dead_s
                data = await receive()
                message = decode(data, subprotocol, ServerMessage, self._settings, skip_unknown=True)
                if message is not None:
                    side.received(message)
        raise Stalled(f"{self._connection.peer} sent nothing for {side.dead_s:g} s")
