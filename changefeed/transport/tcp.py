"""Byte streams over TCP sockets: see bytestreams.py. TCP_NODELAY is set on both ends (by trio). No proxies, no TLS."""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket
import struct
from collections.abc import Awaitable
from typing import Final

import trio

from changefeed.errors import BadConfig, ConnectionRefused, PortInUse, Unreachable
from changefeed.transport.handlers import leaves
from changefeed.transport.urls import Address

_NO_ROUTE_ERRNOS: Final = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH}


class TcpStream:
    """See bytestreams.ByteStream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.peer = _peer_name(stream)
        self._stream = stream

    def receive_some(self, max_bytes: int | None = None) -> Awaitable[bytes | bytearray]:
        return self._stream.receive_some(max_bytes)

    def send_all(self, data: bytes | bytearray | memoryview) -> Awaitable[None]:
        return self._stream.send_all(data)

    def wait_send_all_might_not_block(self) -> Awaitable[None]:
        return self._stream.wait_send_all_might_not_block()

    def write_now(self, head: bytes, payload: bytes) -> int:
        """Straight to the kernel: nothing is copied together, and no task switch is made."""
        fd = self._stream.socket.fileno()
        if fd == -1:
            raise trio.ClosedResourceError("this end closed the connection")
        try:
            return os.writev(fd, (head, payload))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(f"the connection broke: {error}") from error

    def finish(self) -> None:
        try:
            self._stream.socket.shutdown(stdlib_socket.SHUT_WR)
        except OSError:
            pass  # the connection is gone already

    def close(self) -> None:
        self._stream.socket.close()

    def abort(self) -> None:
        if self._stream.socket.fileno() != -1:
            try:
                linger = struct.pack("ii", 1, 0)
                self._stream.socket.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, linger)
            except OSError:
                pass  # the connection is gone already
        self.close()


def _peer_name(stream: trio.SocketStream) -> str:
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError:
        return "a peer that is gone"
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


class TcpListener:
    """See bytestreams.ByteListener."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.port: int = listener.socket.getsockname()[1]
        self._listener = listener

    async def accept(self) -> TcpStream:
        return TcpStream(await self._listener.accept())

    async def aclose(self) -> None:
        await self._listener.aclose()


class TcpNetwork:
    """See bytestreams.ByteNetwork."""

    async def connect(self, address: Address) -> TcpStream:
        try:
            return TcpStream(await trio.open_tcp_stream(address.host, address.port))
        except OSError as error:
            causes = leaves(error.__cause__) if error.__cause__ is not None else [error]
            refused = [cause for cause in causes if isinstance(cause, ConnectionRefusedError)]
            other = [cause for cause in causes if not isinstance(cause, ConnectionRefusedError)]
            if refused and all(getattr(cause, "errno", None) in _NO_ROUTE_ERRNOS for cause in other):
                raise ConnectionRefused(f"nothing listens on {address.shown}") from error
            raise Unreachable(f"{address.shown} cannot be reached: {(other or causes)[0]}") from error

    async def listen(self, host: str, port: int) -> list[TcpListener]:
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            if error.errno == errno.EADDRINUSE or _any_errno(error, errno.EADDRINUSE):
                raise PortInUse(
                    f"cannot listen on {host}:{port}: the port is in use (an instance that runs already?); "
                    "stop it or choose another port"
                ) from error
            raise BadConfig(f"cannot listen on {host}:{port}: {error}") from error
        if port == 0:
            # Several addresses of one name would get a port each; the first one is listened on.
            for extra in listeners[1:]:
                await extra.aclose()
            del listeners[1:]
        return [TcpListener(listener) for listener in listeners]


def _any_errno(error: BaseException, number: int) -> bool:
    chain = [error, *([error.__cause__] if error.__cause__ is not None else [])]
    found = [leaf for link in chain for leaf in leaves(link)]
    return any(isinstance(leaf, OSError) and leaf.errno == number for leaf in found)
