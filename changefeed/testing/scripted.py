"""A server that does what a test says, message by message: for tests of clients.

async with open_scripted_server(network) as server:
    peer = await server.accept()              # the next connection
    asked = await peer.expect(Subscribe)      # its next message that is not a heartbeat
    await peer.send(Subscribed(...))
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from changefeed.change import Position, Resource
from changefeed.errors import ChangefeedError, ConnectionLost
from changefeed.transport import Connection, Listener, Network, Request, Response
from changefeed.wire import SUBPROTOCOLS
from changefeed.wire.codec import decode, encode
from changefeed.wire.faults import fault_of
from changefeed.wire.messages import AnyMessage, Beat, Handled, Limits, Open, Opened, Subscribe, Subscribed

M = TypeVar("M")
PORT = 7557
LIMITS = Limits(2**20, 2**23, 9 * 2**20, 16, 10.0, 25.0)


class Peer:
    """One client's connection, seen from the server. heard: every message that came, heartbeats too."""

    def __init__(self, connection: Connection) -> None:
        self.heard: list[Any] = []
        self.gone = trio.Event()
        self._connection = connection

    async def send(self, *messages: AnyMessage) -> None:
        for message in messages:
            await self._connection.send(encode(message, self._connection.subprotocol))

    async def send_raw(self, data: bytes | str) -> None:
        await self._connection.send(data)

    async def receive(self) -> Any:
        """The next message, whichever it is. Raises ConnectionLost."""
        message: Any = decode(await self._connection.receive(), self._connection.subprotocol)
        self.heard.append(message)
        return message

    async def expect(self, kind: type[M]) -> M:
        """The next message but for Beats and Handleds that were not asked for; it must be of this kind."""
        while True:
            message = await self.receive()
            if isinstance(message, kind):
                return message
            if not isinstance(message, Beat | Handled):
                raise AssertionError(f"expected {kind.__name__}, got {message}")

    async def listen(self) -> None:
        """Take in messages until the client goes."""
        try:
            while True:
                await self.receive()
        except ConnectionLost:
            return

    async def fail(self, error: ChangefeedError) -> None:
        """Say the Fault of an error, and close with its code."""
        await self.send(fault_of(error))
        await self._connection.aclose(error.close_code, error.code)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self._connection.aclose(code, reason)

    def drop(self) -> None:
        """As if the process were killed."""
        self._connection.abort()

    # ---- the usual first exchange

    async def opened(
        self, incarnation: int = 1, last_number: int = 0, resources: tuple[Resource, ...] = (), limits: Limits = LIMITS
    ) -> Open:
        """Expect an Open and grant it."""
        asked = await self.expect(Open)
        await self.send(
            Opened(asked.feed, "a", "process-a", "a", 1, incarnation, last_number, limits, resources=resources)
        )
        return asked

    async def subscribed(self, position: Position, head: Position | None = None, limits: Limits = LIMITS) -> Subscribe:
        """Expect a Subscribe and grant it."""
        asked = await self.expect(Subscribe)
        await self.send(Subscribed(asked.feed, "a", "process-a", position, head or position, "a", 1, limits))
        return asked


class ScriptedServer:
    """url: where it listens."""

    def __init__(self, listener: Listener) -> None:
        self.url = f"ws://{listener.address[0]}:{listener.address[1]}"
        self._listener = listener
        self._send, self._receive = trio.open_memory_channel[Peer](100)

    async def accept(self) -> Peer:
        """The next connection."""
        return await self._receive.receive()

    async def refuse(self) -> None:
        """Stop listening: connections are refused from now on."""
        await self._listener.aclose()

    async def serve(self) -> None:
        await self._listener.serve(self._handle, self._http)

    async def _handle(self, connection: Connection, request: Request) -> None:
        peer = Peer(connection)
        await self._send.send(peer)
        await peer.gone.wait()

    async def _http(self, request: Request) -> Response:
        return Response(404, b"{}")


@asynccontextmanager
async def open_scripted_server(
    network: Network, port: int = PORT, subprotocols: tuple[str, ...] = SUBPROTOCOLS
) -> AsyncIterator[ScriptedServer]:
    """A scripted server on loopback of `network`."""
    listener = await network.listen("127.0.0.1", port, subprotocols=subprotocols, message_bytes_max=2**24)
    server = ScriptedServer(listener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await listener.aclose()
