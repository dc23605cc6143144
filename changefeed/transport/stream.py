"""The byte stream under a websocket: gives bytes back, writes data frames itself, and can be dropped at once."""

from __future__ import annotations

import struct
from typing import Final

import trio

from changefeed.transport import Message
from changefeed.transport.bytestreams import ByteStream

#: After so many sends that went through at once, or so many bytes, other tasks get their turn.
YIELD_SENDS: Final = 16
YIELD_BYTES: Final = 256 * 1024
_TEXT, _BINARY = 0x81, 0x82  # a final frame, with the opcode


class FrameStream(trio.abc.Stream):
    """The stream that the library works on. ended: nothing more will be read. Frames of ours and sends of the library
    are written one after the other. After `discard()` what arrives is read and thrown away, so that a peer in the
    middle of something too large still takes our close frame instead of a reset."""

    def __init__(self, stream: ByteStream, head: bytes = b"", rest: bytes = b"") -> None:
        self.ended = trio.Event()
        self._stream = stream
        # Bytes already read: the head is given back at once; the rest, and what is in the socket, after `release()`.
        self._head = head
        self._rest = rest
        self._released = trio.Event()
        if not head:
            self._released.set()
        self._writing = trio.StrictFIFOLock()
        self._write_now = stream.write_now  # not when somebody else is writing
        self._discarding = False
        self._sends = 0
        self._bytes = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._head:
            data, self._head = self._head, b""
            await trio.lowlevel.checkpoint()
            return data
        await self._released.wait()
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        try:
            while True:
                received = bytes(await self._stream.receive_some(max_bytes))
                if not received:
                    self.ended.set()
                if not (received and self._discarding):
                    return received
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise

    def release(self) -> None:
        """The handshake is done: the library would lose frames that it is given before."""
        self._released.set()

    def discard(self) -> None:
        self._discarding = True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._writing:
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Let go of the socket; the kernel still sends what it has taken. Idempotent."""
        self.ended.set()
        self._released.set()
        self._stream.close()

    def abort(self) -> None:
        """Reset the connection: neither end's kernel sends or keeps anything more. Idempotent."""
        self._stream.abort()
        self.close()

    async def send_frame(self, message: Message) -> None:
        """Write one whole unmasked data frame. Raises BrokenResourceError, ClosedResourceError; whoever cancels must
        abort."""
        payload = message.encode() if isinstance(message, str) else message
        head = _frame_head(_TEXT if isinstance(message, str) else _BINARY, len(payload))
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._writing.locked():
            async with self._writing:
                await self._stream.send_all(head + payload)
            return
        size = len(head) + len(payload)
        sent = self._write_now(head, payload)
        if sent < size:
            async with self._writing:
                rest = memoryview(payload)[sent - len(head) :] if sent >= len(head) else head[sent:] + payload
                await self._stream.send_all(rest)
            self._sends = self._bytes = 0
            return
        self._sends += 1
        self._bytes += size
        if self._sends >= YIELD_SENDS or self._bytes >= YIELD_BYTES:
            self._sends = self._bytes = 0
            await trio.lowlevel.checkpoint()


def _frame_head(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)
