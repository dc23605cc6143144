"""A TCP relay on loopback between a client and the scripted server: does to bytes what networks and crashes do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import trio

#: What a proxy says while the server behind it restarts.
UNAVAILABLE: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Relay:
    """`port` is where the client connects; `url` the same as it is told. tries: TCP connections that came so far.

    cut_after: break every connection after so many more bytes towards the client (None: do not). drip: let bytes
    towards the client through one at a time. refuse: "silent" closes new connections without a byte, "http" answers
    them with HTTP 503, "hang" leaves them open without an answer, "" lets them through. moved: called when anything
    happened.
    """

    def __init__(self, target: int, moved: Callable[[], None]) -> None:
        self.target = target
        self.port = 0
        self.tries = 0
        self.cut_after: int | None = None
        self.drip = False
        self.refuse = ""
        self._moved = moved
        self._open: set[_Link] = set()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._holder: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled or shut; the port is held until `close`."""
        # Bound and not listened on: it keeps the port when the listener is gone, so that whoever connects is refused.
        self._holder = _bound(0)
        self.port = self._holder.getsockname()[1]
        listening = trio.socket.from_stdlib_socket(_bound(self.port))
        listening.listen(100)
        task_status.started()
        try:
            with self._scope:
                await trio.serve_listeners(self._serve, [trio.SocketListener(listening)])
        finally:
            self._ended.set()

    def freeze(self) -> None:
        """No byte passes any more on the connections that are open, in neither direction; they stay open."""
        for link in self._open:
            link.frozen = True

    async def shut(self) -> None:
        """As if the server's process had been killed: connections break, and new ones are refused."""
        self._scope.cancel()
        await self._ended.wait()

    def close(self) -> None:
        """Let the port go."""
        if self._holder is not None:
            self._holder.close()

    async def _serve(self, near: trio.SocketStream) -> None:
        refuse = self.refuse
        self.tries += 1
        self._moved()
        try:
            async with near:
                if refuse == "http":
                    await near.receive_some()
                    await near.send_all(UNAVAILABLE)
                elif refuse == "hang":
                    await trio.sleep_forever()
                elif not refuse:
                    await self._pass(near)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # either end may go at any moment

    async def _pass(self, near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.target) as far:
            link = _Link()
            self._open.add(link)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._upward, near, far, link, nursery.cancel_scope)
                    nursery.start_soon(self._downward, far, near, link, nursery.cancel_scope)
            finally:
                self._open.discard(link)

    async def _upward(
        self, near: trio.SocketStream, far: trio.SocketStream, link: _Link, scope: trio.CancelScope
    ) -> None:
        try:
            async for data in near:
                await link.pause()
                await far.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async def _downward(
        self, far: trio.SocketStream, near: trio.SocketStream, link: _Link, scope: trio.CancelScope
    ) -> None:
        try:
            async for data in far:
                await link.pause()
                piece = bytes(data)
                if self.cut_after is not None:
                    piece = piece[: self.cut_after]
                    self.cut_after -= len(piece)
                for part in [piece[n : n + 1] for n in range(len(piece))] if self.drip else [piece]:
                    await near.send_all(part)
                if self.cut_after == 0:
                    self.cut_after = None
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


def _bound(port: int) -> socket.socket:
    """A socket on loopback that shares its port with others of this process's user that are made here."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


class _Link:
    """One connection through the relay."""

    frozen = False

    async def pause(self) -> None:
        """Returns at once, or never when it is frozen."""
        if self.frozen:
            await trio.sleep_forever()
