"""Hosts whose websockets run over simulated byte streams, with the hooks that a simulated cluster's faults use."""

from __future__ import annotations

from collections.abc import Collection

from changefeed.settings import Settings
from changefeed.simulation.stack.streams import StreamNetwork
from changefeed.transport import Connection, Listener, Network, Response
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import JSON, MSGPACK


class StackNetwork:
    """streams: the bytes below. speaks_json: hosts whose clients ask for the JSON sub-protocol."""

    def __init__(self, streams: StreamNetwork, settings: Settings, speaks_json: Collection[str] = ()) -> None:
        self.streams = streams
        self._settings = settings
        self._speaks_json = speaks_json

    def host(self, name: str) -> Network:
        """The Network of a new life of that host: real websockets over its streams."""
        network = WebsocketNetwork(self._settings, streams=self.streams.host(name))
        return JsonNetwork(network) if name in self._speaks_json else network

    def kill(self, host: str) -> None:
        self.streams.kill(host)

    def drop(self, host: str, other: str) -> None:
        self.streams.reset(host, other)

    def cut(self, host: str, other: str) -> None:
        self.streams.cut(host, other)
        self.streams.cut(other, host)

    def cut_way(self, source: str, target: str) -> None:
        self.streams.cut(source, target)

    def heal(self, host: str, other: str) -> None:
        self.streams.heal(host, other)
        self.streams.heal(other, host)


class JsonNetwork:
    """The product's own clients speak msgpack; through this one they ask for JSON instead, as strangers do."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def connect(
        self, url: str, *, subprotocols: tuple[str, ...], message_bytes_max: int, timeout_s: float
    ) -> Connection:
        asked = tuple(JSON if each == MSGPACK else each for each in subprotocols)
        return await self._network.connect(
            url, subprotocols=asked, message_bytes_max=message_bytes_max, timeout_s=timeout_s
        )

    async def listen(self, host: str, port: int, *, subprotocols: tuple[str, ...], message_bytes_max: int) -> Listener:
        return await self._network.listen(host, port, subprotocols=subprotocols, message_bytes_max=message_bytes_max)

    async def get(self, url: str, *, timeout_s: float) -> Response:
        return await self._network.get(url, timeout_s=timeout_s)
