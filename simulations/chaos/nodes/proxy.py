"""A TCP proxy in user space, in front of the instances: delay and jitter, resets, half-closed flows.

Told what to do through a shared page, at any time: see SWITCHES. A flow whose instance refuses is refused, too.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from simulations.chaos.shim import Numbers

#: delay_ms, jitter_ms: added to each piece of data, in order. reset, half_close: counts; raised by one: do it to all
#: flows now. The rest are counters.
SWITCHES = ("delay_ms", "jitter_ms", "reset", "half_close", "delayed", "flows", "cut", "ready")
PIECE = 64 * 1024
#: Data on its way through one direction of a flow, pieces.
PIECES_MAX = 64
LOOK_S = 0.02


@dataclass(eq=False)
class Flow:
    client: trio.SocketStream
    server: trio.SocketStream
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    swallow: bool = False

    def reset(self) -> None:
        for stream in (self.client, self.server):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.scope.cancel()

    async def half_close(self) -> None:
        """The client hears an end and may go on talking; nobody listens."""
        self.swallow = True
        try:
            await self.client.send_eof()
        except (trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError, OSError):
            self.scope.cancel()


class Proxy:
    """targets: {port: (host, port)}."""

    def __init__(self, host: str, targets: dict[int, tuple[str, int]], page: Numbers) -> None:
        self._host = host
        self._targets = targets
        self._page = page
        self._flows: set[Flow] = set()
        self._chance = random.Random(1)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey)
            for port, target in self._targets.items():
                listeners = await trio.open_tcp_listeners(port, host=self._host)
                nursery.start_soon(trio.serve_listeners, self._handler(target), listeners)
            self._page.set("ready", 1)

    def _handler(self, target: tuple[str, int]) -> Callable[[trio.SocketStream], Awaitable[None]]:
        async def handle(client: trio.SocketStream) -> None:
            try:
                with trio.fail_after(3):
                    server = await trio.open_tcp_stream(*target)
            except (OSError, trio.TooSlowError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            flow = Flow(client, server)
            self._flows.add(flow)
            self._page.set("flows", len(self._flows))
            try:
                with flow.scope:
                    async with server, trio.open_nursery() as nursery:
                        nursery.start_soon(self._pump, flow, client, server)
                        nursery.start_soon(self._pump, flow, server, client)
            finally:
                self._flows.discard(flow)
                self._page.set("flows", len(self._flows))

        return handle

    async def _pump(self, flow: Flow, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        """One direction: read at once, hand on when its time has come."""
        send, receive = trio.open_memory_channel[tuple[float, bytes]](PIECES_MAX)

        async def read() -> None:
            last = 0.0
            async with send:
                while data := await source.receive_some(PIECE):
                    late = (self._page.get("delay_ms") + self._chance.random() * self._page.get("jitter_ms")) / 1000
                    if late:
                        self._page.add("delayed", len(data))
                    last = max(last, trio.current_time() + late)
                    await send.send((last, bytes(data)))

        async def write() -> None:
            async for due, data in receive:
                await trio.sleep_until(due)
                if not flow.swallow:
                    await sink.send_all(data)
            if not flow.swallow:
                await sink.send_eof()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(write)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            flow.scope.cancel()

    async def _obey(self) -> None:
        seen = {"reset": self._page.get("reset"), "half_close": self._page.get("half_close")}
        while True:
            await trio.sleep(LOOK_S)
            for what, before in seen.items():
                if self._page.get(what) == before:
                    continue
                seen[what] = self._page.get(what)
                for flow in list(self._flows):
                    self._page.add("cut")
                    if what == "reset":
                        flow.reset()
                    else:
                        await flow.half_close()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    targets = {int(port): (host, number) for port, (host, number) in given["targets"].items()}
    trio.run(Proxy(given["host"], targets, Numbers(Path(given["gauge"]), SWITCHES)).run)
