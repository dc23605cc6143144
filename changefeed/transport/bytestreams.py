"""What the websocket transport stands on: streams of bytes. This file is the contract.

    tcp.py   real sockets, the default      changefeed/simulation/stack/streams.py   simulated, on virtual time

A stream carries bytes in order each way; where one `send_all` ends is not seen by the reader. One task may read and one
may write at a time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from changefeed.transport.urls import Address


class ByteStream(Protocol):
    """peer: for people, e.g. "127.0.0.1:40312"."""

    peer: str

    def receive_some(self, max_bytes: int | None = None) -> Awaitable[bytes | bytearray]:
        """At least one byte and at most max_bytes; nothing when the peer has said that it sends no more. Raises
        trio.BrokenResourceError (reset …), trio.ClosedResourceError (closed at this end, also meanwhile).
        Cancellation: safe, nothing is lost."""

    def send_all(self, data: bytes | bytearray | memoryview) -> Awaitable[None]:
        """Give all bytes to this end's buffers; waits while they are full. Raises as `receive_some`. Cancellation: an
        unknown part of the bytes has been taken."""

    def wait_send_all_might_not_block(self) -> Awaitable[None]:
        """See trio.abc.SendStream."""

    def write_now(self, head: bytes, payload: bytes) -> int:
        """Give what the buffers take without waiting, of head and payload in this order; returns how many bytes they
        took, 0 if they are full. Not while somebody is in `send_all`. Raises as `receive_some`."""

    def finish(self) -> None:
        """This end sends nothing more: the peer reads what was sent, then the end. Idempotent, never raises."""

    def close(self) -> None:
        """Let go of the stream. What the buffers took is still sent, unless bytes came that nobody has read: then the
        peer may find the stream reset instead. Whoever waits in a call gets ClosedResourceError. Idempotent, never
        raises."""

    def abort(self) -> None:
        """Reset the stream: nothing more is sent, what the buffers hold is dropped. Idempotent, never raises."""


class ByteListener(Protocol):
    """port: the one really bound."""

    port: int

    async def accept(self) -> ByteStream:
        """The next stream of a peer. Raises trio.ClosedResourceError once the listener is closed, OSError with the
        errno of a resource that ran out (EMFILE …). Cancellation: safe."""

    async def aclose(self) -> None:
        """Stop listening: streams that nobody has accepted are reset, the others go on. Idempotent."""


class ByteNetwork(Protocol):
    async def connect(self, address: Address) -> ByteStream:
        """Open a stream; waits for as long as it takes. Raises ConnectionRefused only if every address of that name
        that there is a way to was refused; else Unreachable. Cancellation: nothing is left open."""

    async def listen(self, host: str, port: int) -> Sequence[ByteListener]:
        """Bind now, each address of that name; port 0: any free one, of one address. Raises PortInUse, BadConfig."""
