"""The network of a client of the run: it speaks one sub-protocol, whatever the library would choose."""

from __future__ import annotations

from changefeed.settings import Settings
from changefeed.transport import Connection, Listener, Network, Response
from changefeed.transport.websocket import WebsocketNetwork


class ClientNetwork:
    def __init__(self, settings: Settings, subprotocol: str) -> None:
        self._network: Network = WebsocketNetwork(settings)
        self._subprotocol = subprotocol

    async def connect(
        self, url: str, *, subprotocols: tuple[str, ...], message_bytes_max: int, timeout_s: float
    ) -> Connection:
        return await self._network.connect(
            url, subprotocols=(self._subprotocol,), message_bytes_max=message_bytes_max, timeout_s=timeout_s
        )

    async def listen(self, host: str, port: int, *, subprotocols: tuple[str, ...], message_bytes_max: int) -> Listener:
        return await self._network.listen(host, port, subprotocols=subprotocols, message_bytes_max=message_bytes_max)

    async def get(self, url: str, *, timeout_s: float) -> Response:
        return await self._network.get(url, timeout_s=timeout_s)
