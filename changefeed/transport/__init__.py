"""Messages between processes. This file is the contract; one conformance suite holds every transport to it.

    memory.py  tests, simulations, an instance's own clients      websocket.py  the only trio_websocket

A connection carries whole messages, in order, each way. One port serves websockets and plain HTTP GET.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

Message = bytes | str


@dataclass(frozen=True, slots=True)
class Request:
    """What the client asked for before any message. path without query; header names in lower case."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Connection(Protocol):
    """subprotocol: what both ends agreed on. peer: for people, e.g. "127.0.0.1:40312"."""

    subprotocol: str
    peer: str

    async def send(self, message: Message) -> None:
        """Send one message. Only one task may send at a time. Returns when it was handed to the peer's buffers.
        Raises ConnectionLost. Cancellation: the connection is broken afterwards (half a frame may be out)."""

    async def receive(self) -> Message:
        """The next message. Only one task may receive at a time. Raises ConnectionLost (with the peer's close code and
        reason), FrameTooLarge (the connection is closed). Cancellation: safe, nothing is lost."""

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with a code; waits at most 2 s for the peer's answer, then drops the connection. Idempotent."""

    def abort(self) -> None:
        """Drop the connection at once, without a word. Idempotent, synchronous."""


ConnectionHandler = Callable[[Connection, Request], Awaitable[None]]
HttpHandler = Callable[[Request], Awaitable[Response]]


class Listener(Protocol):
    """address: (host, port) really bound."""

    address: tuple[str, int]

    async def serve(self, handle: ConnectionHandler, http: HttpHandler) -> None:
        """Serve until cancelled or closed. Each connection has a task of its own; whatever it raises is logged and ends
        that connection only. When `handle` returns, the connection is closed with 1000 unless it is closed already."""

    async def aclose(self) -> None:
        """Stop accepting; connections that are open go on."""


class Network(Protocol):
    async def connect(
        self, url: str, *, subprotocols: tuple[str, ...], message_bytes_max: int, timeout_s: float
    ) -> Connection:
        """Open a connection. Raises ConnectionRefused (nothing listens there), Unreachable (time-out, no route, no such
        host, not a websocket server), UnsupportedProtocol (no common sub-protocol), BadUrl."""

    async def listen(self, host: str, port: int, *, subprotocols: tuple[str, ...], message_bytes_max: int) -> Listener:
        """Bind now (port 0: any free one). Raises PortInUse. Connections are refused once the listener is closed."""

    async def get(self, url: str, *, timeout_s: float) -> Response:
        """Plain HTTP GET. Raises like `connect`."""
