"""Wake-ups when a tail moves: LISTEN while somebody waits, NOTIFY after an append, and a poll behind both.

A NOTIFY takes a lock of the whole server until its transaction has committed: inside an append it would make the
appends of all feeds, and every other program's notifications, wait for one another's fsync. So it is sent after the
append, in a transaction of its own that writes nothing and does not wait for the disk.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Final

import trio
import trio.to_thread

from changefeed.errors import LogError
from changefeed.log.postgresql.connections import Link, Server

logger = logging.getLogger("changefeed.log")

CHANNEL: Final = "changefeed_tail"
#: The poll behind the notifications: FeedLog.wait may need up to a second.
POLL_S: Final = 0.5


class Waker:
    """Of one feed in one process. `moved` after an append of this process; `wait` returns when the tail may differ."""

    def __init__(self, server: Server, feed_id: int) -> None:
        self._feed_id = feed_id
        self._notifier = Link(server, stamps=True)
        self._listener = Link(server, stamps=True)
        self._listening = False
        self._bell = trio.Event()
        self._due = 0
        self._busy = False
        self._sent = trio.Event()
        self._closed = False

    def moved(self, seq: int) -> None:
        """Wake who waits in this process now, and in others soon. Never fails: the poll is behind it."""
        self._ring()
        self._due = seq
        if not self._busy and not self._closed:
            self._busy, self._sent = True, trio.Event()
            trio.lowlevel.spawn_system_task(self._notify)

    def _ring(self) -> None:
        bell, self._bell = self._bell, trio.Event()
        bell.set()

    async def _notify(self) -> None:
        try:
            while self._due and not self._closed:
                seq, self._due = self._due, 0
                await trio.to_thread.run_sync(self._send, seq)
        except Exception:  # a system task that raises ends the whole program; the poll is behind it
            logger.exception("telling others of a feed's tail")
        finally:
            self._busy = False
            self._sent.set()

    def _send(self, seq: int) -> None:
        with contextlib.suppress(LogError):
            self._notifier.read("notify", "SELECT pg_notify(%s, %s)", (CHANNEL, f"{self._feed_id}:{seq}"))

    async def wait(self) -> None:
        """Until the tail may have moved; POLL_S at most. Cancellation leaves nothing behind."""
        bell = self._bell
        with trio.move_on_after(POLL_S):
            if self._listening:
                await bell.wait()
                return
            self._listening = True
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_rung, bell, nursery.cancel_scope)
                    await self._listen()
                    nursery.cancel_scope.cancel()
            finally:
                self._listening = False
                self._ring()

    async def _until_rung(self, bell: trio.Event, scope: trio.CancelScope) -> None:
        await bell.wait()
        scope.cancel()

    async def _listen(self) -> None:
        try:
            connection = await trio.to_thread.run_sync(self._subscribe, abandon_on_cancel=True)
        except LogError:
            await trio.sleep(POLL_S)
            return
        while True:
            await trio.lowlevel.wait_readable(connection.fileno())
            connection.pgconn.consume_input()
            while (found := connection.pgconn.notifies()) is not None:
                if found.extra.partition(b":")[0] == str(self._feed_id).encode():
                    return

    def _subscribe(self) -> Any:
        connection = self._listener.connection
        connection.execute(f"LISTEN {CHANNEL}")
        return connection

    async def aclose(self) -> None:
        self._closed = True
        self._ring()
        if self._busy:
            await self._sent.wait()
        self._listener.shut()
        self._notifier.shut()
