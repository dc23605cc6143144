"""Looks into the log that begin after they were asked for, shared by all who ask while another one is under way."""

from __future__ import annotations

import trio

from changefeed.errors import ChangefeedError
from changefeed.log import FeedLog, Look


class _Turn:
    """A look that has not begun yet. Without look and error once done: whoever took it was cancelled."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.look: Look | None = None
        self.error: ChangefeedError | None = None


class FreshLooks:
    """At most one look is under way and one waits: a thousand publishers that reconnect cost a few looks."""

    def __init__(self, log: FeedLog) -> None:
        self._log = log
        self._one = trio.Lock()
        self._next: _Turn | None = None

    async def fresh(self) -> Look:
        """A look that began after this call. Raises what `FeedLog.look` raises. Cancellation: harmless, the others who
        wait for the same look take another one."""
        while True:
            turn = self._next
            if turn is None:
                turn = self._next = _Turn()
                await self._take(turn)
            else:
                await turn.done.wait()
            if turn.look is not None:
                return turn.look
            if turn.error is not None:
                # An exception of its own for each task: they add their tracebacks to it.
                raise type(turn.error)(str(turn.error))

    async def _take(self, turn: _Turn) -> None:
        try:
            async with self._one:
                self._next = None
                try:
                    turn.look = await self._log.look()
                except ChangefeedError as error:
                    turn.error = error
        finally:
            if self._next is turn:
                self._next = None
            turn.done.set()
