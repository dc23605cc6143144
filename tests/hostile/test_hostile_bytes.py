"""Garbage at the port of a real instance, before and after the handshake: each ends its own connection and no other.

The healthy peers of `arena` go on meanwhile. Memory: the peak of the instance's resident memory during each block.
"""

from __future__ import annotations

import random
import struct

import pytest
from hostile_arena import Arena, until
from raw_socket import BINARY, FINAL, TEXT, RawSocket, frame, message, upgrade

from changefeed.settings import Settings
from changefeed.wire import JSON, PEER

pytestmark = pytest.mark.processes

NOISE = random.Random(11)

BEFORE = {
    "random bytes": NOISE.randbytes(5000),
    "zeros": bytes(1000),
    "a TLS hello": bytes.fromhex("1603010200010001fc0303") + NOISE.randbytes(500),
    "an SSH greeting": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "half a head": upgrade()[:60],
    "a head without its last byte": upgrade()[:-1],
    "a huge target": b"GET /" + b"a" * 100_000,
    "a huge header": b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "a thousand headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "a body of 50 MB announced": b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n" + bytes(100_000),
    "no key": upgrade().replace(b"Sec-WebSocket-Key", b"X"),
    "an old version": upgrade().replace(b"Version: 13", b"Version: 8"),
    "another path": upgrade().replace(b"/v1", b"/changefeeds"),
    "requests in a row": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 500,
}


@pytest.mark.parametrize("what", BEFORE)
def test_garbage_instead_of_a_request(arena: Arena, what: str) -> None:
    """An HTTP error or nothing; the instance ends the connection by itself, at the latest after `handshake_s`."""
    with arena.grows_by_less_than(16), RawSocket(arena.instance.port) as raw:
        raw.send(BEFORE[what])
        answer = raw.rest()
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200")), answer[:200]


async def test_connections_that_say_nothing(arena: Arena) -> None:
    """Slow lorises beyond `handshakes_max` are refused at once, the others after `handshake_s`; who has said hello
    before is not touched, and afterwards newcomers are served."""
    limit = Settings().handshakes_max
    silent = [RawSocket(arena.instance.port) for _ in range(limit + 20)]
    try:
        answers = [one.rest() for one in reversed(silent)]
        refused = [answer for answer in answers if answer]
        assert len(refused) >= 20 and all(answer.startswith(b"HTTP/1.1 503") for answer in refused)
    finally:
        for one in silent:
            one.socket.close()
    await arena.serves()


FRAMES = {
    "random bytes": NOISE.randbytes(4000),
    "an unmasked frame": frame(FINAL | BINARY, b"x", mask=None),
    "a reserved opcode": frame(FINAL | 0x3, b"x"),
    "reserved bits": frame(0xF0 | BINARY, b"x"),
    "a continuation of nothing": frame(FINAL, b"x"),
    "a message within a message": frame(BINARY, b"x") + frame(FINAL | BINARY, b"y"),
    "text that is not UTF-8": frame(FINAL | TEXT, b"\xff\xfe"),
    "a ping of 126 bytes": frame(FINAL | 0x9, bytes(126)),
    "a fragmented ping": frame(0x9, b"x"),
    "a close code that is none": frame(FINAL | 0x8, struct.pack("!H", 1)),
    "a close of one byte": frame(FINAL | 0x8, b"x"),
    "a message after a close": frame(FINAL | 0x8, struct.pack("!H", 4400)) + message(b"\x80"),
    "a size beyond all bounds": frame(FINAL | BINARY, bytes(1000), size=2**63 - 1),
    "a size with its high bit set": struct.pack("!BBQ", FINAL | BINARY, 0xFF, 2**64 - 1),
    "a message that never ends": frame(BINARY, bytes(100_000)),
    "fifty thousand empty fragments": frame(BINARY, b"") + frame(0, b"") * 50_000,
    "fifty thousand fragments of one byte": frame(BINARY, b"") + frame(0, b"x") * 50_000,
    "five thousand pings": frame(FINAL | 0x9, bytes(100)) * 5_000,
    "a message above the limit": frame(FINAL | BINARY, bytes(12 * 2**20)),
    "a message above the limit in pieces": frame(BINARY, bytes(6 * 2**20)) + frame(FINAL, bytes(6 * 2**20)),
}


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("what", FRAMES)
def test_garbage_instead_of_frames(arena: Arena, what: str, leaves: bool) -> None:
    """After a proper handshake: the connection ends, whether the peer stays or leaves without reading."""
    with arena.grows_by_less_than(64), RawSocket(arena.instance.port) as raw:
        raw.upgrade()
        raw.send(FRAMES[what])
        if not leaves:
            raw.close_code()


def nest(opening: bytes, depth: int) -> bytes:
    return b"\x82\xa4type\xa9subscribe\xa1x" + opening * depth + b"\xc0"


MESSAGES = {
    "a nest of arrays": nest(b"\x91", 900_000),
    "a nest of maps": nest(b"\x81\xa1x", 300_000),
    "arrays of four billion elements": b"\xdd\xff\xff\xff\xff" * 200_000,
    "a map of four billion pairs": b"\xdf\xff\xff\xff\xff",
    "a text of four gigabytes": b"\xdb\xff\xff\xff\xff",
    "a bin of four gigabytes": b"\xc6\xff\xff\xff\xff",
    "an extension": b"\xc7\x05\x01hello",
    "a map with a list for a key": b"\x81\x91\x01\x01",
    "a million empty lists": nest(struct.pack("!BI", 0xDD, 1_000_000) + b"\x90" * 999_999, 1).removesuffix(b"\xc0")
    + b"\x90",
    "nine million empty lists": nest(struct.pack("!BI", 0xDD, 9_000_000) + b"\x90" * 8_999_999, 1),
    "a type of a million letters": b"\x81\xa4type\xdb" + struct.pack("!I", 1_000_000) + b"x" * 1_000_000,
    "nothing": b"",
}


@pytest.mark.parametrize("what", MESSAGES)
def test_hostile_messages(arena: Arena, what: str) -> None:
    """msgpack that would cost gigabytes if it were believed: refused with a code that says "do not reconnect"."""
    with arena.grows_by_less_than(128), RawSocket(arena.instance.port) as raw:
        raw.upgrade()
        raw.send(message(MESSAGES[what]))
        assert raw.close_code() in (4541, 4542)


TEXTS = {
    "a nest of lists": "[" * 500_000,
    "a nest of objects": '{"x":' * 200_000,
    "a number of a million digits": '{"type": ' + "9" * 1_000_000 + "}",
    "a float beyond all bounds": '{"type": 1e999999}',
    "a hundred thousand empty lists": '{"type": "subscribe", "x": [' + "[]," * 300_000 + "[]]}",
    "a name twice": '{"type": "subscribe", "type": "open"}',
    "lone surrogates": '{"type": "\\ud800"}',
    "nothing": "",
}


@pytest.mark.parametrize("what", TEXTS)
def test_hostile_texts(arena: Arena, what: str) -> None:
    """The same in JSON."""
    with arena.grows_by_less_than(96), RawSocket(arena.instance.port) as raw:
        raw.upgrade(JSON)
        raw.send(frame(FINAL | TEXT, TEXTS[what].encode()))
        assert raw.close_code() == 4541


@pytest.mark.parametrize("what", ["a nest of arrays", "nine million empty lists", "an extension", "nothing"])
def test_strangers_at_the_peers_sub_protocol(arena: Arena, what: str) -> None:
    """What instances say to each other is open to anybody who can connect: garbage ends there, too."""
    with arena.grows_by_less_than(128), RawSocket(arena.instance.port) as raw:
        raw.upgrade(PEER)
        raw.send(message(MESSAGES[what]))
        assert raw.close_code() in (4541, 4542)


async def test_newcomers_are_served_afterwards(arena: Arena) -> None:
    """And nobody is counted who has gone."""
    await arena.serves()

    def alone() -> bool:
        feed = arena.instance.get("/status")["feeds"]["vmapi"]
        return sum(one["connected"] for one in feed["subscribers"]) == 1

    until(alone)
