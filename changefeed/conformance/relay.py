"""A TCP relay on loopback: does to the bytes towards the client what networks do."""

from __future__ import annotations

import trio


class Relay:
    """Between a client and a server's port. `port` is where the client connects.

    cut_after: towards the client, break every connection after so many more bytes (None: do not). drip: towards the
    client, let bytes through one at a time.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.cut_after: int | None = None
        self.drip = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            return
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._upward, near, far, nursery.cancel_scope)
            await self._downward(far, near)
            nursery.cancel_scope.cancel()

    async def _upward(self, near: trio.SocketStream, far: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            async for data in near:
                await far.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async def _downward(self, far: trio.SocketStream, near: trio.SocketStream) -> None:
        try:
            async for data in far:
                piece = bytes(data)
                if self.cut_after is not None:
                    piece = piece[: self.cut_after]
                    self.cut_after -= len(piece)
                for part in [piece[n : n + 1] for n in range(len(piece))] if self.drip else [piece]:
                    await near.send_all(part)
                if self.cut_after == 0:
                    self.cut_after = None
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
