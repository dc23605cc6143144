"""Peers that are no good: clients that send what no client should, and something else at an instance's port.

Whatever they do harms nobody else: the checkers judge the others, and what the library reports as a fault of its own
fails the run. Their bytes are drawn from a stream of chance of their own.
"""

from __future__ import annotations

import base64
import random
import struct
from typing import Final

import trio

from changefeed.errors import ChangefeedError
from changefeed.simulation.stack.streams import SimulatedStream, StreamNetwork
from changefeed.transport.urls import Address
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.codec import encode
from changefeed.wire.messages import Start, Subscribe

HOST: Final = "stranger"
#: A stranger gives up after so long.
PATIENCE_S: Final = 2.0


def handshake(chance: random.Random, subprotocol: str = MSGPACK) -> bytes:
    key = base64.b64encode(chance.randbytes(16)).decode()
    return (
        "GET /v1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    ).encode()


def frame(first: int, payload: bytes, chance: random.Random, *, size: int | None = None, masked: bool = True) -> bytes:
    """A frame as a client sends it; size: the one that its head tells."""
    size = len(payload) if size is None else size
    bit = 0x80 if masked else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if not masked:
        return head + payload
    mask = chance.randbytes(4)
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def flipped(data: bytes, chance: random.Random) -> bytes:
    """The same with one bit changed."""
    at = chance.randrange(len(data))
    return data[:at] + bytes((data[at] ^ (1 << chance.randrange(8)),)) + data[at + 1 :]


def words(manner: str, chance: random.Random, feed: str) -> list[bytes]:
    """What a hostile client sends, in pieces between which it waits for an answer."""
    hello = handshake(chance, chance.choice((MSGPACK, JSON)))
    binary = frame(0x82, chance.randbytes(chance.randint(1, 400)), chance)
    match manner:
        case "noise":
            return [chance.randbytes(chance.randint(1, 3000))]
        case "noise after a handshake":
            return [hello, chance.randbytes(chance.randint(1, 3000))]
        case "half a handshake":
            return [hello[: chance.randrange(1, len(hello))]]
        case "a flipped handshake":
            return [flipped(hello, chance), binary]
        case "half a frame":
            return [hello, binary[: chance.randrange(1, len(binary))]]
        case "a flipped head":
            return [hello, flipped(binary[:6], chance) + binary[6:], binary]
        case "an impossible size":
            return [hello, frame(0x82, b"x" * 100, chance, size=chance.choice((2**63 - 1, 2**40, 2**32, 20_000_000)))]
        case "an unmasked frame":
            return [hello, frame(0x82, b"x", chance, masked=False)]
        case "no message":
            text = chance.choice((b"null", b"{}", b'{"type":"subscribe"}', b"\xff", b"[" * 500, b"\x81\xa4type\xa1x"))
            return [hello, frame(chance.choice((0x81, 0x82)), text, chance), binary]
        case "many pings":
            return [hello, frame(0x89, b"ping", chance) * chance.randint(1, 400)]
        case "a hello and deafness":
            message = encode(Subscribe(feed, Start(at="beginning"), "deaf", groups=False), MSGPACK)
            assert isinstance(message, bytes)
            return [handshake(chance), frame(0x82, message, chance)]
        case "plain requests":
            path = chance.choice(("/healthz", "/status", "/metrics", "/nothing", "/v1", "/" + "a" * 9000))
            return [f"{chance.choice(('GET', 'HEAD', 'POST'))} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()]
    raise AssertionError(manner)


async def pester(streams: StreamNetwork, address: Address, manner: str, chance: random.Random, feed: str) -> str:
    """A hostile client's one connection; what it saw."""
    with trio.move_on_after(PATIENCE_S):
        try:
            stream = await streams.host(HOST).connect(address)
        except ChangefeedError as error:
            return error.code
        try:
            for piece in words(manner, chance, feed):
                await stream.send_all(piece)
                if manner != "a hello and deafness":
                    with trio.move_on_after(0.2 * chance.random()):
                        await stream.receive_some(4096)
            if manner == "a hello and deafness":
                await trio.sleep(PATIENCE_S)
            await leave(stream, chance)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return "cut"
        finally:
            stream.abort()
    return "left"


async def leave(stream: SimulatedStream, chance: random.Random) -> None:
    """It closes, resets, says that it sends no more, or waits until it is sent away."""
    match chance.randrange(4):
        case 0:
            stream.close()
        case 1:
            stream.abort()
        case 2:
            stream.finish()
            while await stream.receive_some(4096):
                pass
        case _:
            while await stream.receive_some(4096):
                pass


ANSWERED: Final = {
    "closes": b"",
    "half a handshake": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso",
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "a wrong accept": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
}


async def pose(streams: StreamNetwork, port: int, answer: str, chance: random.Random) -> None:
    """Answer at an instance's port until cancelled."""
    (listener,) = await streams.host(HOST).listen("127.0.0.1", port)
    try:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(_answer, await listener.accept(), answer, chance)
    finally:
        listener.close()


async def _answer(stream: SimulatedStream, answer: str, chance: random.Random) -> None:
    try:
        if answer == "resets":
            return
        await stream.receive_some(4096)
        if answer == "silence":
            await trio.sleep_forever()
        await stream.send_all(chance.randbytes(500) if answer == "noise" else ANSWERED[answer])
        stream.finish()
        await trio.sleep(PATIENCE_S * chance.random())
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        stream.abort()
