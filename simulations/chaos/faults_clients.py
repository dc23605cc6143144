"""Faults of clients: killed and frozen publishers and subscribers, readers that never read, crowds, garbage."""

from __future__ import annotations

import fcntl
import json
import random
import socket
import struct
import termios
from typing import Final

import trio

from changefeed.errors import ChangefeedError
from changefeed.settings import Settings
from changefeed.simulation.plan import Step
from changefeed.transport import Connection
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import JSON
from simulations.chaos.processes import Node
from simulations.chaos.stage import FEED, SETTINGS, Stage
from simulations.chaos.strangers import Garbage, send_garbage

CROWD: Final = 200
CROWD_S: Final = 8.0
IDLE_READERS: Final = 5
#: Beyond `stall_after_s`, a reader that takes no byte must have been cut off.
CUT_SPARE_S: Final = 4.0
_UPGRADE: Final = (
    "GET /v1 HTTP/1.1\r\nHost: chaos\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: changefeed.v1.json\r\n\r\n"
)


async def _kill(stage: Stage, step: Step, node: Node) -> None:
    async with stage.fault(step.kind, node.name, ("process-gone",), hold=(node.name,)) as doing:
        node.kill()
        doing.effect("process-gone")
        await trio.sleep(step.lasts)
        stage.restart(node)


async def _freeze(stage: Stage, step: Step, node: Node) -> None:
    async with stage.fault(step.kind, node.name, ("stopped",)) as doing:
        node.freeze()
        try:
            if await stage.until(lambda: node.frozen, 1.0):
                doing.effect("stopped")
            await trio.sleep(step.lasts)
        finally:
            node.thaw()


async def kill_publisher(stage: Stage, step: Step, chance: random.Random) -> None:
    await _kill(stage, step, stage.publishers[chance.choice(sorted(stage.publishers))])


async def kill_subscriber(stage: Stage, step: Step, chance: random.Random) -> None:
    await _kill(stage, step, stage.subscribers[chance.choice(sorted(stage.subscribers))])


async def freeze_publisher(stage: Stage, step: Step, chance: random.Random) -> None:
    await _freeze(stage, step, stage.publishers[chance.choice(sorted(stage.publishers))])


async def freeze_subscriber(stage: Stage, step: Step, chance: random.Random) -> None:
    await _freeze(stage, step, stage.subscribers[chance.choice(sorted(stage.subscribers))])


async def never_read(stage: Stage, step: Step, chance: random.Random) -> None:
    """Subscribers from the beginning, with the smallest buffers, that never take a byte."""
    node = stage.aim(step.target, chance)
    async with stage.fault(step.kind, node.name, ("backed-up", "cut-off")) as doing:
        readers = []
        try:
            for _ in range(IDLE_READERS):
                reader = await _idle_reader(stage, node)
                if reader is not None:
                    readers.append(reader)
            await trio.sleep(step.lasts)
            full = [reader for reader in readers if _waiting(reader) > 1000]
            doing.effect("backed-up" if full else "missed", readers=len(full))
            if full and chance.random() < 0.3:
                with trio.move_on_after(SETTINGS["stall_after_s"] + CUT_SPARE_S):
                    await _cut_off(full[0])
                    doing.effect("cut-off")
        finally:
            for reader in readers:
                reader.close()


async def _idle_reader(stage: Stage, node: Node) -> trio.socket.SocketType | None:
    reader = trio.socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        with trio.fail_after(2):
            await reader.connect((stage.network.nodes[node.name], stage.ports[node.name]))
            await reader.send(_UPGRADE.encode())
            await reader.recv(1000)
            hello = {"type": "subscribe", "feed": FEED, "start": {"at": "beginning"}, "name": "never-reads"}
            await reader.send(_masked(json.dumps(hello).encode()))
    except (OSError, trio.TooSlowError):
        reader.close()
        return None
    return reader


def _masked(text: bytes) -> bytes:
    """One text frame of a client, of 126 to 65535 bytes; a mask of zeros changes nothing."""
    text = text.ljust(126)
    return b"\x81\xfe" + struct.pack(">H", len(text)) + bytes(4) + text


def _waiting(reader: trio.socket.SocketType) -> int:
    """Bytes that wait to be read."""
    return int(struct.unpack("i", fcntl.ioctl(reader.fileno(), termios.FIONREAD, bytes(4)))[0])


async def _cut_off(reader: trio.socket.SocketType) -> None:
    """Returns once the server has given the connection up: it is reset, or ends behind what waits."""
    while True:
        await trio.sleep(0.1)
        state = reader.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state != 1:  # not established any more
            return


async def crowd(stage: Stage, step: Step, chance: random.Random) -> None:
    """Many subscribers at once, to all instances; all gone at once, too."""
    network = WebsocketNetwork(Settings(**SETTINGS))
    connections: list[Connection] = []
    welcomed = 0

    async def come(url: str, number: int) -> None:
        nonlocal welcomed
        try:
            connection = await network.connect(url, subprotocols=(JSON,), message_bytes_max=2**24, timeout_s=CROWD_S)
            connections.append(connection)
            hello = {"type": "subscribe", "feed": FEED, "start": {"at": "now"}, "name": f"crowd-{number}"}
            await connection.send(json.dumps(hello))
            welcomed += json.loads(await connection.receive())["type"] == "subscribed"
        except ChangefeedError:
            pass

    async with stage.fault(step.kind, "", ("welcomed",)) as doing:
        try:
            with trio.move_on_after(CROWD_S):
                async with trio.open_nursery() as nursery:
                    for number in range(CROWD):
                        nursery.start_soon(come, stage.url(chance.choice("abc")), number)
            doing.effect("welcomed" if welcomed else "missed", subscribers=welcomed)
        finally:
            for connection in connections:
                connection.abort()


async def garbage(stage: Stage, step: Step, chance: random.Random) -> None:
    node = stage.aim(step.target, chance)
    stage.strangers += 1
    async with stage.fault(step.kind, node.name, ("refused",)) as doing:
        refused, wrong = await send_garbage(
            Garbage(
                stage.url(node.name), FEED, stage.lineage, stage.tail(), stage.strangers, stage.records,
                Settings(**SETTINGS), chance,
            )
        )  # fmt: skip
        stage.records.write_for(f"g{stage.strangers}", 1, "quit", abandoned=True)
        stage.wrong += wrong
        doing.effect("refused" if refused else "missed", attempts=refused)


FAULTS: Final = {
    "kill-publisher": kill_publisher,
    "kill-subscriber": kill_subscriber,
    "freeze-publisher": freeze_publisher,
    "freeze-subscriber": freeze_subscriber,
    "never-read": never_read,
    "crowd": crowd,
    "garbage": garbage,
}
