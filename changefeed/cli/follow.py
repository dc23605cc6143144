"""The loop of `changefeed tail`: events to standard output, one after the other, until told to stop.

An event is handled when its line has been handed to the operating system. Stopping (a signal, `--count`, caught up,
nobody reads any more) never cuts a line: it takes effect while waiting for the next event, and the cursor is saved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from changefeed.change import Event
from changefeed.errors import Unreachable
from changefeed.subscriber.driver import Subscription

Tell = Callable[[Event], Awaitable[None]]


class Follow:
    """told: events written. last: the newest of them."""

    def __init__(self, subscription: Subscription, tell: Tell, count: int | None = None) -> None:
        self.told = 0
        self.last: Event | None = None
        self._subscription = subscription
        self._tell = tell
        self._count = count
        self._stopped = False
        self._waiting: trio.CancelScope | None = None

    def stop(self) -> None:
        """No further event is asked for; one that is being written is written to its end."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def stop_when_caught_up(self) -> None:
        await self._subscription.wait_caught_up()
        self.stop()

    async def connect(self, timeout_s: float) -> None:
        """Until a server has taken the subscription in, or `stop`. Raises Unreachable after `timeout_s`."""
        with trio.CancelScope() as self._waiting:
            if self._stopped:
                return
            with trio.move_on_after(timeout_s) as scope:
                await self._subscription.wait_ready()
            if scope.cancelled_caught:
                state = self._subscription.state
                why = state.last_error or f"{state.server} has not answered yet"
                raise Unreachable(f"no server took the subscription in within {timeout_s:g} s: {why}")
        self._waiting = None

    async def run(self) -> None:
        """Raises what ended the subscription (CannotResume, UnknownFeed …), and BrokenPipeError."""
        while not self._stopped and self.told != self._count:
            with trio.CancelScope() as self._waiting:
                event = await anext(self._subscription)
            if self._waiting.cancelled_caught:
                return
            self._waiting = None
            await self._tell(event)
            self.told += 1
            self.last = event
