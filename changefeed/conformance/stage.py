"""One scenario's scripted server, and the client under test as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from changefeed.change import Change, Position
from changefeed.conformance.relay import Relay
from changefeed.errors import ChangefeedError, ConnectionLost
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.transport import Connection, Request, Response
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import SUBPROTOCOLS
from changefeed.wire.changes import encode_change
from changefeed.wire.codec import decode, encode
from changefeed.wire.messages import (
    AnyMessage,
    Beat,
    Events,
    Handled,
    Limits,
    Run,
    Subscribe,
    Subscribed,
)

FEED = "conformance"
LINEAGE, EPOCH, TERM = "5e1d3c7a90b24f68", 7, "c0ffee42"
#: Announced to the client; short, so that grading takes seconds.
HEARTBEAT_S, DEAD_S = 0.5, 1.5
#: How long a client may take for one step.
PATIENCE_S = 10.0


class Failed(Exception):
    """The client did not do what the scenario asks for; the message says what was expected and what came."""


def at(seq: int) -> Position:
    return Position(LINEAGE, EPOCH, TERM, seq) if seq else Position.beginning(LINEAGE)


def run_of(*seqs: int, size: int = 0) -> Run:
    """A run of events with these seqs; ids are "id-SEQ". size: bytes of each body."""
    body = {"n": "x" * size} if size else None
    payload = b"".join(encode_change(Change("thing", f"id-{seq}", "update", None, body), 2**20) for seq in seqs)
    dense = tuple(range(seqs[0], seqs[0] + len(seqs))) == seqs
    return Run(EPOCH, TERM, 1_767_268_800_000, "script", seqs[0] if dense else seqs, None, payload)


def frame(after: int, to: int, *seqs: int, size: int = 0) -> Events:
    return Events(after, at(to), (run_of(*seqs, size=size),) if seqs else ())


@dataclass
class Talk:
    """One connection of the client, after its Subscribe."""

    connection: Connection
    subscribe: Subscribe

    async def welcome(self, position: int, head: int) -> None:
        limits = Limits(2**20, 2**23, 9 * 2**20, 16, HEARTBEAT_S, DEAD_S)
        await self.say(Subscribed(FEED, "script", "01", at(position), at(head), "script", EPOCH, limits))

    async def say(self, *messages: AnyMessage) -> None:
        for message in messages:
            await self.connection.send(encode(message, self.connection.subprotocol))

    async def say_raw(self, plain: dict[str, Any]) -> None:
        """A message that this release does not know."""
        import msgpack

        text = self.connection.subprotocol.endswith("json")
        await self.connection.send(json.dumps(plain) if text else msgpack.packb(plain))

    async def hear(self, within_s: float = PATIENCE_S) -> Handled | Beat:
        """The client's next word."""
        with trio.move_on_after(within_s):
            data = await self.connection.receive()
            message: Handled | Beat = decode(data, self.connection.subprotocol, (Handled, Beat))
            return message
        raise Failed(f"it said nothing for {within_s:g} s; a word is due every {HEARTBEAT_S:g} s (heartbeat_s)")

    async def hear_handled(self, seq: int) -> None:
        """Until the client says that it has handled everything up to seq."""
        handled = None
        with trio.move_on_after(PATIENCE_S):
            while True:
                message = await self.hear()
                if isinstance(message, Handled):
                    handled = message.position.seq
                    if message.position == at(seq):
                        return
        raise Failed(f"it did not say that it handled {at(seq)}; the last it said was seq {handled}")

    def expect_position(self, seq: int) -> None:
        start = self.subscribe.start
        if start.position != at(seq):
            said = start.position or start.at or start.time
            raise Failed(f"it resumed at {said}; its position was {at(seq)}")

    async def gone(self, why: str) -> None:
        """Until the client has left this connection."""
        with trio.move_on_after(PATIENCE_S):
            try:
                while True:
                    await self.connection.receive()
            except ChangefeedError:
                return
        raise Failed(f"it stayed on the connection; it should have left: {why}")


@dataclass
class Client:
    """The program under test. lines: what it printed, parsed; words: what was no JSON event."""

    command: Sequence[str]
    env: dict[str, str]
    process: trio.Process | None = None
    seqs: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    changed: Changed = field(default_factory=Changed)

    async def start(self, nursery: trio.Nursery) -> None:
        self.process = await nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[trio.Process]) -> None:
        process = await trio.lowlevel.open_process(
            list(self.command), env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        task_status.started(process)
        held = b""
        assert process.stdout is not None
        try:
            async for data in process.stdout:
                *lines, held = (held + bytes(data)).split(b"\n")
                for line in lines:
                    self._line(line)
            await process.wait()
        finally:
            self.kill()
            self.changed.notify()

    def _line(self, line: bytes) -> None:
        try:
            seq = json.loads(line)["seq"]
        except (ValueError, KeyError, TypeError):
            self.words.append(line.decode(errors="replace"))
        else:
            self.seqs.append(seq)
        self.changed.notify()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    async def printed(self, *seqs: int) -> None:
        """Until it has printed exactly these events, in this order, since it was started first."""
        want = list(seqs)
        with trio.move_on_after(PATIENCE_S):
            while self.seqs != want and want[: len(self.seqs)] == self.seqs:
                if self.process is not None and self.process.poll() is not None:
                    break
                await self.changed.wait()
        if self.seqs != want:
            raise Failed(f"it printed {shown(self.seqs)}; expected {shown(want)}")

    async def stopped(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self.process is not None
        with trio.move_on_after(PATIENCE_S):
            return await self.process.wait()
        raise Failed("it goes on running; it should have stopped")


def shown(seqs: list[int]) -> str:
    return "nothing" if not seqs else ", ".join(map(str, seqs[:20])) + (" …" if len(seqs) > 20 else "")


class Stage:
    """What a scenario works with: `client`, `accept()`, and the relay between the two."""

    def __init__(self, client: Client, relay: Relay, nursery: trio.Nursery) -> None:
        self.client = client
        self.relay = relay
        self._nursery = nursery
        self._arrived: list[tuple[Talk, trio.Event]] = []
        self._changed = Changed()
        self.arrivals = 0

    async def start_client(self) -> None:
        await self.client.start(self._nursery)

    async def handle(self, connection: Connection, request: Request) -> None:
        try:
            first = decode(await connection.receive(), connection.subprotocol, Subscribe)
        except ConnectionLost:
            return
        done = trio.Event()
        self.arrivals += 1
        self._arrived.append((Talk(connection, first), done))
        self._changed.notify()
        await done.wait()

    async def accept(self, why: str = "it should have connected") -> Talk:
        """The client's next connection, with its Subscribe. Raises Failed if none comes."""
        with trio.move_on_after(PATIENCE_S):
            while not self._arrived:
                await self._changed.wait()
            talk = self._arrived.pop(0)[0]
            if talk.subscribe.feed != FEED:
                raise Failed(f"it asked for feed {talk.subscribe.feed!r}; $CHANGEFEED_FEED says {FEED!r}")
            return talk
        raise Failed(f"{why}; nobody connected for {PATIENCE_S:g} s")

    async def quiet(self, seconds: float, why: str) -> None:
        """Nobody may connect for a while."""
        with trio.move_on_after(seconds):
            while not self._arrived:
                await self._changed.wait()
            raise Failed(f"it connected again; {why}")


@asynccontextmanager
async def open_stage(command: Sequence[str], folder: Path) -> AsyncIterator[Stage]:
    """A scripted server, a relay before it, and a client that is not started yet."""
    settings = Settings()
    listener = await WebsocketNetwork(settings).listen(
        "127.0.0.1", 0, subprotocols=SUBPROTOCOLS, message_bytes_max=settings.frame_bytes_max
    )

    async def http(request: Request) -> Response:
        return Response(404, b"a scripted server has no routes\n", "text/plain")

    async with trio.open_nursery() as nursery:
        relay = Relay(listener.address[1])
        await nursery.start(relay.run)
        env = {
            **os.environ,
            "CHANGEFEED_URL": f"ws://127.0.0.1:{relay.port}",
            "CHANGEFEED_FEED": FEED,
            "CHANGEFEED_CURSOR": str(folder / "cursor"),
        }
        client = Client(command, env)
        stage = Stage(client, relay, nursery)
        nursery.start_soon(listener.serve, stage.handle, http)
        try:
            yield stage
        finally:
            client.kill()
            nursery.cancel_scope.cancel()
