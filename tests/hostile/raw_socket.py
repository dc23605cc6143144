"""Websockets by hand: raw sockets that can say what no library would."""

from __future__ import annotations

import base64
import socket
import struct
from typing import Any

from changefeed.wire import MSGPACK
from changefeed.wire.codec import encode

PATIENCE_S = 60
KEY = base64.b64encode(b"0123456789abcdef").decode()
TEXT, BINARY, FINAL = 0x1, 0x2, 0x80


def upgrade(subprotocol: str = MSGPACK) -> bytes:
    """A proper handshake."""
    return (
        "GET /v1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    ).encode()


def frame(first: int, payload: bytes, mask: bytes | None = b"\0\0\0\0", size: int | None = None) -> bytes:
    """A client's frame: opcode and flags, then the payload; masked with zeros, which leaves it readable."""
    size = len(payload) if size is None else size
    bit = 0 if mask is None else 0x80
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + (mask or b"") + payload


def message(value: Any) -> bytes:
    """A whole msgpack message in one frame."""
    data = value if isinstance(value, bytes) else encode(value, MSGPACK)
    assert isinstance(data, bytes)
    return frame(FINAL | BINARY, data)


class RawSocket:
    """receive_bytes: the size of the receiving buffer, for those who will not read."""

    def __init__(self, port: int, *, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """False if the peer has gone."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def upgrade(self, subprotocol: str = MSGPACK) -> None:
        """Shake hands, and read the answer."""
        self.socket.sendall(upgrade(subprotocol))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            more = self.socket.recv(1)
            assert more, head
            head += more
        assert head.startswith(b"HTTP/1.1 101"), head

    def rest(self) -> bytes:
        """Everything until the peer ends the connection. Raises TimeoutError if it does not."""
        data = b""
        try:
            while more := self.socket.recv(65536):
                data = (data + more)[-100_000:]
        except ConnectionResetError:
            pass
        return data

    def close_code(self) -> int:
        """Read frames until the server closes, and leave without the polite answer: its code; 1006 without one."""
        while (found := self.frame()) is not None:
            opcode, payload = found
            if opcode == 0x8:
                self.socket.close()
                return int(struct.unpack("!H", payload[:2])[0])
        return 1006

    def frame(self) -> tuple[int, bytes] | None:
        """The next frame's opcode and payload; None once the server has gone."""
        head = self._exactly(2)
        if head is None:
            return None
        size = head[1] & 0x7F
        if size >= 126:
            more = self._exactly(2 if size == 126 else 8)
            if more is None:
                return None
            size = int.from_bytes(more, "big")
        payload = self._exactly(size)
        return None if payload is None else (head[0] & 0x0F, payload)

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except ConnectionResetError:
                return None
            if not more:
                return None
            data += more
        return bytes(data)
