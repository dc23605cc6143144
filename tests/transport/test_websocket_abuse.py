"""What hostile, broken and unlucky peers do to the one port: nothing to anybody else."""

from __future__ import annotations

import base64
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from changefeed.errors import BadConfig, ConnectionLost, PortInUse, Unreachable, UnsupportedProtocol
from changefeed.settings import Settings
from changefeed.transport import Connection, Request, Response, websocket
from changefeed.transport.websocket import WebsocketListener, WebsocketNetwork

PROTOCOLS = ("one.v1",)
LIMIT = 100_000
KEY = base64.b64encode(b"0123456789abcdef").decode()
UPGRADE = (
    "GET /v1 HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: one.v1\r\n\r\n"
).encode()


async def echo(connection: Connection, request: Request) -> None:
    while True:
        await connection.send(await connection.receive())


async def hello(request: Request) -> Response:
    return Response(200, f"{request.path} {dict(request.query)}".encode(), "text/plain")


class Port:
    def __init__(self, listener: WebsocketListener, network: WebsocketNetwork) -> None:
        self.listener = listener
        self.network = network
        self.url = f"ws://127.0.0.1:{listener.address[1]}"

    async def raw(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.listener.address[1])

    async def connect(self) -> Connection:
        return await self.network.connect(self.url, subprotocols=PROTOCOLS, message_bytes_max=LIMIT, timeout_s=10)

    async def check(self) -> None:
        """A well-behaved client is served."""
        client = await self.connect()
        await client.send(b"ping")
        assert await client.receive() == b"ping"
        await client.aclose()

    async def until(self, reached: Callable[[WebsocketListener], bool]) -> None:
        """Wait until the listener's figures are so; the kernel tells nobody when it has delivered something."""
        while not reached(self.listener):  # noqa: ASYNC110
            await trio.sleep(0.002)

    async def empty(self) -> None:
        """Wait until the listener counts nobody any more."""
        await self.until(lambda listener: not listener.connections.value)
        assert self.listener.handshakes.value == 0


@asynccontextmanager
async def open_port(
    settings: Settings | None = None, handle: Callable[[Connection, Request], Awaitable[None]] = echo
) -> AsyncIterator[Port]:
    network = WebsocketNetwork(settings)
    listener = await network.listen("127.0.0.1", 0, subprotocols=PROTOCOLS, message_bytes_max=LIMIT)
    assert isinstance(listener, WebsocketListener)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handle, hello)
            yield Port(listener, network)
            nursery.cancel_scope.cancel()
    await listener.aclose()


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    try:
        while more := await stream.receive_some(65536):
            data += more
    except trio.BrokenResourceError:
        pass
    return data


NOISE = random.Random(7)
GARBAGE = {
    "random bytes": NOISE.randbytes(5000),
    "a TLS hello": bytes.fromhex("1603010200010001fc0303") + NOISE.randbytes(300),
    "zeros": b"\0" * 100,
    "an SSH greeting": b"SSH-2.0-OpenSSH_9.2\r\n",
    "lower case": b"get / http/1.1\r\n\r\n",
    "a line without end": b"GET /" + b"a" * 40_000,
    "a huge header": b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nX: y\r\n z\r\n\r\n",
    "a header without name": b"GET / HTTP/1.1\r\n: y\r\n\r\n",
    "an old websocket": UPGRADE.replace(b"Version: 13", b"Version: 8"),
    "no key": UPGRADE.replace(KEY.encode(), b"short"),
    "no host": UPGRADE.replace(b"Host: x\r\n", b""),
    "a posted upgrade": UPGRADE.replace(b"GET", b"POST"),
    "another upgrade": UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
    "a host that is no name": UPGRADE.replace(b"Host: x", b"Host: xn--99999999999999"),
    "a host beyond ASCII": UPGRADE.replace(b"Host: x", b"Host: \xe4"),
    "a sub-protocol beyond ASCII": UPGRADE.replace(b"one.v1", b"one.v1, \xe4"),
    "extensions beyond ASCII": UPGRADE.replace(b"Upgrade: w", b"Sec-WebSocket-Extensions: \xa0\r\nUpgrade: w"),
    "an old HTTP": UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_instead_of_a_request(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each gets an HTTP error or nothing, is let go, and harms nobody; what peers do is no news."""
    async with open_port() as port:
        stream = await port.raw()
        try:
            await stream.send_all(GARBAGE[what])
        except trio.BrokenResourceError:
            pass
        answer = await read_all(stream)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:100]
        stream.socket.close()
        await port.check()
        await port.empty()
    assert not caplog.records


def frame(first: int, payload: bytes, mask: bytes | None = b"\0\0\0\0", size: int | None = None) -> bytes:
    size = len(payload) if size is None else size
    bit = 0x80 if mask is not None else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + (mask or b"") + payload


FRAMES = {
    "random bytes": NOISE.randbytes(4000),
    "an unmasked frame": frame(0x82, b"x", mask=None),
    "a reserved opcode": frame(0x83, b"x"),
    "reserved bits": frame(0xF2, b"x"),
    "a size beyond all bounds": frame(0x82, b"x" * 1000, size=2**63 - 1),
    "a size with its high bit set": struct.pack("!BBQ", 0x82, 0xFF, 2**64 - 1),
    "a message above the limit": frame(0x82, b"x" * (LIMIT + 1)),
    "a message above the limit in pieces": frame(0x02, b"x" * LIMIT) + frame(0x80, b"x" * 1000),
    "text that is not UTF-8": frame(0x81, b"\xff\xfe"),
    "a continuation of nothing": frame(0x80, b"x"),
    "a message within a message": frame(0x02, b"x") + frame(0x82, b"y"),
    "a ping of 126 bytes": frame(0x89, b"x" * 126),
    "a fragmented ping": frame(0x09, b"x"),
    "a close code that is none": frame(0x88, struct.pack("!H", 1)),
    "a close of one byte": frame(0x88, b"x"),
    "a close reason that is not UTF-8": frame(0x88, struct.pack("!H", 4400) + b"\xff"),
    "a close twice": frame(0x88, struct.pack("!H", 4400)) * 2,
    "a message after a close": frame(0x88, struct.pack("!H", 4400)) + frame(0x82, b"x"),
    "many pings": frame(0x89, b"ping") * 2000,
}


@pytest.mark.parametrize("way", ["close", "reset", "wait"])
@pytest.mark.parametrize("what", FRAMES)
async def test_garbage_instead_of_frames(what: str, way: str) -> None:
    """After a proper handshake: the connection ends, whether the peer leaves, resets or stays; nobody else notices."""
    async with open_port() as port:
        stream = await port.raw()
        await stream.send_all(UPGRADE)
        assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 101")
        try:
            await stream.send_all(FRAMES[what])
        except trio.BrokenResourceError:
            pass
        if way == "reset":
            reset(stream)
        elif way == "close" or what in ("many pings", "a size beyond all bounds"):
            stream.socket.close()
        else:
            await read_all(stream)
            stream.socket.close()
        await port.check()
        await port.empty()


@pytest.mark.parametrize("part", [1, 20, len(UPGRADE) - 1])
@pytest.mark.parametrize("resets", [False, True])
async def test_half_a_handshake(part: int, resets: bool) -> None:
    """A peer that leaves in the middle of its handshake."""
    async with open_port() as port:
        stream = await port.raw()
        await stream.send_all(UPGRADE[:part])
        await port.check()
        reset(stream) if resets else stream.socket.close()
        await port.empty()


@pytest.mark.parametrize("size", [1, 7, 70, 5000])
async def test_reset_in_the_middle_of_a_frame(size: int) -> None:
    async with open_port() as port:
        stream = await port.raw()
        await stream.send_all(UPGRADE + frame(0x82, b"x" * 10_000)[:size])
        await stream.receive_some(65536)
        reset(stream)
        await port.check()
        await port.empty()


async def test_bytes_that_follow_the_handshake_at_once_are_not_lost() -> None:
    """A client may send its first message in the same packet as the handshake."""
    async with open_port() as port:
        stream = await port.raw()
        await stream.send_all(UPGRADE + frame(0x82, b"early"))
        data = b""
        while b"early" not in data:
            more = await stream.receive_some(65536)
            assert more, data
            data += more
        reset(stream)


async def test_who_says_nothing_is_let_go_after_the_handshake_time() -> None:
    async with open_port(Settings(handshake_s=0.05)) as port:
        silent, slow = await port.raw(), await port.raw()
        await slow.send_all(UPGRADE[:30])
        assert await read_all(silent) == b""
        assert await read_all(slow) == b""
        await port.empty()


async def test_connections_above_the_bounds_are_refused_and_counted_right() -> None:
    """Above connections_max and handshakes_max a peer is refused at once; room comes back when others leave."""
    async with open_port(Settings(connections_max=3)) as port:
        clients = [await port.connect() for _ in range(3)]
        with pytest.raises(Unreachable):
            await port.connect()
        await clients[0].aclose()
        await port.until(lambda listener: listener.connections.value <= 2)
        await port.check()
        for client in clients:
            client.abort()
        await port.empty()
    async with open_port(Settings(handshakes_max=2)) as port:
        silent, quiet = await port.raw(), await port.connect()
        await port.until(lambda listener: listener.handshakes.value == 2)
        with pytest.raises(Unreachable):
            await port.connect()
        await quiet.send(b"hello")
        await quiet.receive()
        # It has said something: it no longer counts as a handshake.
        await port.check()
        silent.socket.close()
        quiet.abort()
        await port.empty()


async def test_plain_http() -> None:
    """GET and HEAD are answered, other methods are refused, and queries are decoded."""
    async with open_port() as port:
        for request, status, body in (
            (b"GET /a%20b?x=1&y=%2F HTTP/1.1\r\nHost: h\r\n\r\n", b"200", b"/a b {'x': '1', 'y': '/'}"),
            (b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n", b"200", b""),
            (b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", b"405", b"only GET is answered here\n"),
            (b"GET /changefeeds HTTP/1.0\r\nConnection: Close\r\n\r\n", b"200", b"/changefeeds {}"),
        ):
            stream = await port.raw()
            await stream.send_all(request)
            head, _, found = (await read_all(stream)).partition(b"\r\n\r\n")
            assert head.split(b" ")[1] == status
            assert found == body
            stream.socket.close()


@pytest.mark.parametrize("path", ["/", "/changefeeds", "/v2", "/v1/x"])
async def test_other_upgrade_paths_are_not_found(path: str) -> None:
    async with open_port() as port:
        stream = await port.raw()
        await stream.send_all(UPGRADE.replace(b"/v1", path.encode()))
        assert (await read_all(stream)).startswith(b"HTTP/1.1 404")
        stream.socket.close()


async def test_a_peer_that_never_answers_a_close_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """`aclose` waits for the answer only so long; the close frame has been sent before."""
    monkeypatch.setattr(websocket, "CLOSE_S", 0.05)

    async def close(connection: Connection, request: Request) -> None:
        await connection.aclose(4410, "go")

    async with open_port(handle=close) as port:
        stream = await port.raw()
        await stream.send_all(UPGRADE)
        data = await read_all(stream)
        assert data.endswith(frame(0x88, struct.pack("!H", 4410) + b"go", mask=None))
        await port.empty()
        stream.socket.close()


async def test_a_bug_on_the_way_to_the_handler_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And harms nobody else."""

    def boom(data: bytes) -> bool:
        raise ZeroDivisionError("a bug")

    async with open_port() as port:
        with monkeypatch.context() as patch:
            patch.setattr(websocket, "looks_like_http", boom)
            stream = await port.raw()
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            assert await read_all(stream) == b""
            stream.socket.close()
        assert "ZeroDivisionError" in caplog.text
        caplog.clear()
        await port.check()
        assert not caplog.records


STRANGERS = {
    "closes": b"",
    "noise": NOISE.randbytes(500),
    "an HTTP server": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "a 404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "a wrong accept": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("what", STRANGERS)
async def test_a_stranger_instead_of_a_server(what: str) -> None:
    """Whatever answers at the URL: a typed error, no hang, nothing left behind."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"

    async def strange(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        if STRANGERS[what]:
            await stream.send_all(STRANGERS[what])
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, strange, [listener])
        for _ in range(3):
            with pytest.raises(Unreachable):
                await WebsocketNetwork().connect(url, subprotocols=PROTOCOLS, message_bytes_max=LIMIT, timeout_s=10)
        nursery.cancel_scope.cancel()


async def test_a_server_that_agrees_to_no_sub_protocol_is_unsupported() -> None:
    from trio_websocket import serve_websocket

    async def any_websocket(request: object) -> None:
        ws = await request.accept()  # type: ignore[attr-defined]
        await ws.get_message()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, any_websocket, "127.0.0.1", 0, None)
        url = f"ws://127.0.0.1:{server.port}"
        with pytest.raises(UnsupportedProtocol):
            await WebsocketNetwork().connect(url, subprotocols=PROTOCOLS, message_bytes_max=LIMIT, timeout_s=10)
        nursery.cancel_scope.cancel()


async def test_a_server_that_never_answers_times_out() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
    with pytest.raises(Unreachable, match="did not answer within"):
        await WebsocketNetwork().connect(url, subprotocols=PROTOCOLS, message_bytes_max=LIMIT, timeout_s=0.05)
    with pytest.raises(Unreachable, match="did not answer within"):
        await WebsocketNetwork().get(url, timeout_s=0.05)
    await listener.aclose()


async def test_addresses_that_cannot_be_listened_on() -> None:
    network = WebsocketNetwork()
    with pytest.raises(BadConfig):
        await network.listen("203.0.113.7", 0, subprotocols=PROTOCOLS, message_bytes_max=LIMIT)
    first = await network.listen("127.0.0.1", 0, subprotocols=PROTOCOLS, message_bytes_max=LIMIT)
    with pytest.raises(PortInUse, match=str(first.address[1])):
        await network.listen("127.0.0.1", first.address[1], subprotocols=PROTOCOLS, message_bytes_max=LIMIT)
    await first.aclose()


async def test_large_and_small_frames_interleave_with_pings_under_load() -> None:
    """Our frames and the library's control frames share the socket, never half a frame of one inside the other."""

    async def flood(connection: Connection, request: Request) -> None:
        for index in range(400):
            await connection.send(struct.pack("!I", index) + b"x" * (0 if index % 3 else 90_000))
        await connection.receive()

    async with open_port(handle=flood) as port:
        stream = await port.raw()
        await stream.send_all(UPGRADE)
        async with trio.open_nursery() as nursery:

            async def ping() -> None:
                for _ in range(200):
                    await stream.send_all(frame(0x89, b"ping"))

            nursery.start_soon(ping)
            data = bytearray()
            while b"\r\n\r\n" not in data:
                data += await stream.receive_some(4096)
            del data[: data.index(b"\r\n\r\n") + 4]
            expected = pongs = 0
            while expected < 400 or pongs < 200:
                while (found := _frame_in(data)) is None:
                    more = await stream.receive_some(3000)
                    assert more
                    data += more
                opcode, payload = found
                if opcode == 0x8A:
                    assert payload == b"ping"
                    pongs += 1
                else:
                    assert (opcode, struct.unpack("!I", payload[:4])[0]) == (0x82, expected)
                    assert len(payload) == 4 + (0 if expected % 3 else 90_000)
                    expected += 1
        reset(stream)


def _frame_in(data: bytearray) -> tuple[int, bytes] | None:
    """Take one whole frame off the front."""
    if len(data) < 2:
        return None
    size, start = data[1], 2
    if size == 126:
        size, start = int.from_bytes(data[2:4], "big"), 4
    elif size == 127:
        size, start = int.from_bytes(data[2:10], "big"), 10
    if len(data) < start + size:
        return None
    found = data[0], bytes(data[start : start + size])
    del data[: start + size]
    return found


async def test_no_descriptor_is_left_behind() -> None:
    """After many connections of all kinds, as many descriptors are open as before."""
    async with open_port() as port:
        await port.check()
        await port.empty()
        before = len(os.listdir("/proc/self/fd"))
        for index in range(30):
            client = await port.connect()
            if index % 3 == 0:
                client.abort()
            elif index % 3 == 1:
                await client.aclose(4400, "bye")
            else:
                with trio.move_on_after(0):
                    await client.send(b"x" * 50_000)
                with pytest.raises(ConnectionLost):
                    await client.receive()
            await port.network.get(port.url + "/x", timeout_s=5)
        await port.empty()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(os.listdir("/proc/self/fd")) <= before
