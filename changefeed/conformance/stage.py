"""One scenario's scripted server, and what a scenario can do with it and expect of the client.

Everything that the client says is read and checked at once, whatever the scenario is waiting for; everything that is
expected is waited for at most `patience_s`, and what fails says what was expected and what came.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgpack
import trio

from changefeed.change import Position
from changefeed.conformance.client import Client, Failed
from changefeed.conformance.frames import DEAD_S, EPOCH, FEED, HEARTBEAT_S, at
from changefeed.conformance.relay import Relay
from changefeed.errors import ChangefeedError, ConnectionLost
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.transport import Connection, Request, Response
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import JSON, SUBPROTOCOLS
from changefeed.wire.codec import decode, encode
from changefeed.wire.messages import AnyMessage, Beat, Handled, Limits, Start, Subscribe, Subscribed

#: How long a client may take for one step, in seconds. Machines that run tests stall.
PATIENCE_S: Final = 15.0
#: How much later than announced a heartbeat may come, in seconds.
GRACE_S: Final = 1.5
#: So long after it handled something a client must have saved its position, in seconds.
SAVED_S: Final = 2.0

#: How often the stage looks at its clock, in seconds.
TICK_S: Final = 0.05

_SETTINGS: Final = Settings()


def limits(dead_s: float) -> Limits:
    """What the server announces."""
    bounds = (_SETTINGS.change_bytes_max, _SETTINGS.group_bytes_max, _SETTINGS.frame_bytes_max)
    return Limits(*bounds, _SETTINGS.in_flight_max, HEARTBEAT_S, dead_s)


class Talk:
    """One connection of the client, from its Subscribe on. After `welcome` it beats like a server.

    handled: the last position that the client said to have handled. heard_at: when it said anything last, in
    `lived_s`. over: why
    the connection ended; None while it is open. quiet: the server says nothing by itself.
    """

    def __init__(self, connection: Connection, subscribe: Subscribe, stage: Stage) -> None:
        self.connection = connection
        self.subscribe = subscribe
        self.handled: Position | None = None
        self.heard_at = stage.lived_s
        self.over: ChangefeedError | None = None
        self.quiet = False
        self._stage = stage
        self._sending = trio.Lock()
        self._told = 0

    # ---- what the client says

    async def listen(self) -> None:
        """Until the connection ends."""
        try:
            while True:
                data = await self.connection.receive()
                message = decode(data, self.connection.subprotocol, (Handled, Beat))
                self.heard_at = self._stage.lived_s
                if isinstance(message, Handled):
                    if message.position.seq > self._told:
                        raise Failed(
                            f"it said that it handled {message.position}; it was told of nothing beyond {self._told}"
                        )
                    self.handled = message.position
                self._stage.changed.notify()
        except ConnectionLost as lost:
            self.over = lost
            self._stage.changed.notify()
            # The transport ends with this task: a goodbye that another one is saying comes first.
            async with self._sending:
                pass
        except ChangefeedError as error:
            self.over = error
            raise Failed(f"it sent what no subscriber may send: {error}") from None
        finally:
            self._stage.changed.notify()

    def expect_beginning(self) -> None:
        if self.subscribe.start != Start(at="beginning"):
            raise Failed(f'with no saved position it must start at "beginning"; it started at {self.started_at}')

    def expect_position(self, position: int | Position) -> None:
        wanted = position if isinstance(position, Position) else at(position)
        if self.subscribe.start.position != wanted:
            raise Failed(f"it resumed at {self.started_at}; its position was {wanted}")

    @property
    def started_at(self) -> str:
        """Where the client asked to start, for people."""
        start = self.subscribe.start
        return str(start.position) if start.position is not None else repr(start.at if start.at else start.time)

    # ---- what it is told

    async def welcome(self, position: int | Position, head: int, dead_s: float = DEAD_S) -> None:
        """Subscribed; then beats until the connection ends. dead_s: announced as heartbeat_dead_s."""
        where = position if isinstance(position, Position) else at(position)
        await self.say(Subscribed(FEED, "script", "01", where, at(head), "script", EPOCH, limits(dead_s)))
        self._stage.nursery.start_soon(self._beat, head)

    async def _beat(self, head: int) -> None:
        while self.over is None:
            await trio.sleep(HEARTBEAT_S)
            if self.quiet:
                return
            try:
                await self.say(Beat(EPOCH, max(head, self._told)))
            except (ConnectionLost, Failed):
                return

    async def say(self, *messages: AnyMessage) -> None:
        for message in messages:
            to = getattr(message, "to", None) or getattr(message, "position", None)
            self._told = max(self._told, to.seq if to is not None else 0)
            await self._send(encode(message, self.connection.subprotocol))

    def pour(self, *messages: AnyMessage) -> None:
        """Say it in the background, to a client that may not read."""

        async def say() -> None:
            try:
                await self.say(*messages)
            except (ConnectionLost, Failed):
                pass

        self._stage.nursery.start_soon(say)

    async def say_with(self, message: AnyMessage, alter: Callable[[dict[str, Any]], None]) -> None:
        """A message whose plain form a later release has altered."""
        to = getattr(message, "to", None)
        self._told = max(self._told, to.seq if to is not None else 0)
        data = encode(message, self.connection.subprotocol)
        plain = json.loads(data) if isinstance(data, str) else msgpack.unpackb(data)
        alter(plain)
        await self.say_plain(plain)

    async def say_plain(self, plain: dict[str, Any]) -> None:
        """A message that this release does not know."""
        text = self.connection.subprotocol == JSON
        await self._send(json.dumps(plain) if text else msgpack.packb(plain))

    async def _send(self, data: bytes | str) -> None:
        with trio.move_on_after(self._stage.patience_s):
            async with self._sending:
                await self.connection.send(data)
            return
        raise Failed(f"it did not read for {self._stage.patience_s:g} s")

    async def close(self, code: int, reason: str) -> None:
        self.quiet = True
        async with self._sending:
            await self.connection.aclose(code, reason)

    def abort(self) -> None:
        """The connection breaks without a word."""
        self.connection.abort()

    # ---- what is waited for

    async def hear_handled(self, position: int | Position) -> None:
        """Until the client says that it has handled everything up to there."""
        wanted = position if isinstance(position, Position) else at(position)
        await self._stage.until(
            lambda: self.handled == wanted,
            lambda: f"it should have said that it handled {wanted}; the last it said was {self.handled}",
        )

    async def hear_regularly(self, seconds: float) -> None:
        """For so long the client may never be silent for much longer than heartbeat_s."""
        stage = self._stage
        since = stage.lived_s
        while stage.lived_s < since + seconds:
            await stage.changed.wait()
            if self.over is not None:
                raise Failed(f"it left the connection, on which nothing was wrong ({self.over})")
            silence = stage.lived_s - max(self.heard_at, since)
            if silence >= HEARTBEAT_S + GRACE_S:
                raise Failed(
                    f"it said nothing for {silence:.1f} s; it must say handled every heartbeat_s ({HEARTBEAT_S:g} s)"
                )

    async def gone(self, why: str) -> None:
        """Until the client has left this connection."""
        await self._stage.until(
            lambda: self.over is not None, lambda: f"it stayed on the connection; it should have left it: {why}", True
        )


class Stage:
    """What a scenario works with.

    client: the program. relay: between client and server; other: a second way to the same server, which the client
    knows only if a scenario tells it. arrivals: how often a Subscribe came. changed: notified when anything happened.
    patience_s: how long the client may take for one step, in seconds. lived_s: seconds that this process has lived
    through; while it was held up (a busy machine, a large message) they do not pass, so that nobody is called silent
    whose words wait to be read.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, target: int, nursery: trio.Nursery, patience_s: float
    ) -> None:
        self.patience_s = patience_s
        self.changed = Changed()
        self.nursery = nursery
        self.relay = Relay(target, self.changed.notify)
        self.other = Relay(target, self.changed.notify)
        self.arrivals = 0
        self.lived_s = 0.0
        self.client = Client(command, dict(os.environ), folder / "cursor", self.changed.notify)
        self.client.env |= {"CHANGEFEED_FEED": FEED, "CHANGEFEED_CURSOR": str(self.client.cursor)}
        self._arrived: list[Talk] = []

    async def live(self) -> None:
        """Let `lived_s` pass."""
        while True:
            before = trio.current_time()
            await trio.sleep(TICK_S)
            self.lived_s += min(trio.current_time() - before, 2 * TICK_S)
            self.changed.notify()

    async def start_client(self, *servers: str) -> None:
        """Start the program (again). servers: what it is told; without any, the relay's URL."""
        self.client.env["CHANGEFEED_URL"] = ",".join(servers or (self.relay.url,))
        await self.client.start(self.nursery)

    async def begin(self, head: int, *servers: str, dead_s: float = DEAD_S) -> Talk:
        """Start the program, and take it in at the beginning."""
        await self.start_client(*servers)
        talk = await self.accept()
        talk.expect_beginning()
        await talk.welcome(0, head, dead_s)
        return talk

    async def handle(self, connection: Connection, request: Request) -> None:
        """The server's side of each connection."""
        try:
            first = decode(await connection.receive(), connection.subprotocol, Subscribe)
            if first.feed != FEED:
                raise Failed(f"it asked for feed {first.feed!r}; $CHANGEFEED_FEED says {FEED!r}")
            talk = Talk(connection, first, self)
            self.arrivals += 1
            self._arrived.append(talk)
            self.changed.notify()
            await talk.listen()
        except ConnectionLost:
            pass
        except ChangefeedError as error:
            self.nursery.start_soon(_fail, Failed(f"its first message is no subscribe that could be served: {error}"))
        except Failed as failed:
            self.nursery.start_soon(_fail, failed)

    # ---- what is waited for

    async def until(
        self,
        condition: Callable[[], bool],
        failure: Callable[[], str],
        also_dead: bool = False,
        within_s: float | None = None,
    ) -> None:
        """Until the condition is true. Raises Failed with what `failure` says, also when the client has ended, unless
        the condition may become true all the same (also_dead). within_s: instead of `patience_s`."""
        with trio.move_on_after(self.patience_s if within_s is None else within_s):
            while not condition():
                if self.client.status is not None and not also_dead:
                    raise Failed(f"{failure()}; it had ended with exit status {self.client.status}")
                await self.changed.wait()
            return
        raise Failed(failure())

    async def accept(self, why: str = "it should have connected", within_s: float | None = None) -> Talk:
        """The client's next connection, with its Subscribe."""
        tries = self.relay.tries + self.other.tries

        def failure() -> str:
            more = self.relay.tries + self.other.tries - tries
            came = f"only {more} connections without a subscribe" if more else "no connection"
            return f"{why}; {came} came"

        await self.until(lambda: bool(self._arrived), failure, within_s=within_s)
        return self._arrived.pop(0)

    async def again(
        self, position: int | Position, why: str = "it should have connected again", within_s: float | None = None
    ) -> Talk:
        """The client's next connection, which must resume at that position."""
        talk = await self.accept(why, within_s)
        talk.expect_position(position)
        return talk

    async def arrives(self, within_s: float) -> Talk | None:
        """The client's next connection, if it comes so soon."""
        with trio.move_on_after(within_s):
            while not self._arrived:
                await self.changed.wait()
        return self._arrived.pop(0) if self._arrived else None

    async def printed(self, *seqs: int) -> None:
        """Until it has printed exactly these events, in this order, since it was started first."""
        want, client = list(seqs), self.client
        await self.until(
            lambda: client.seqs == want or client.seqs != want[: len(client.seqs)],
            lambda: f"it printed {shown(client.seqs)}; expected {shown(want)}",
        )
        if client.seqs != want:
            raise Failed(f"it printed {shown(client.seqs)}; expected {shown(want)}")

    async def stopped(self, why: str) -> int:
        """Its exit status, once it has ended by itself."""
        await self.until(
            lambda: self.client.status is not None or bool(self._arrived),
            lambda: f"it goes on running; it should have stopped: {why}",
            also_dead=True,
        )
        if self.client.status is None:
            raise Failed(f"it connected again; it should have stopped: {why}")
        return self.client.status

    async def left(self, lost: BaseException) -> Failed:
        """What is to be said of a client that left while the scenario talked to it; perhaps because it ended."""
        with trio.move_on_after(1.0):
            while self.client.status is None:
                await self.changed.wait()
        ended = self.client.status
        more = "" if ended is None else f"; it had ended with exit status {ended}"
        return Failed(f"it left a connection on which nothing was wrong ({lost}){more}")

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone and all that it printed was read."""
        self.client.kill()
        await self.until(lambda: self.client.status is not None, lambda: "it survives SIGKILL", also_dead=True)

    async def kill_saved(self) -> None:
        """Kill it when it has had the time to save its position."""
        await trio.sleep(SAVED_S)
        await self.kill()


async def _fail(failed: Failed) -> None:
    raise failed


def shown(seqs: Sequence[int]) -> str:
    """A list of seqs for people."""
    return "nothing" if not seqs else ", ".join(map(str, seqs[:20])) + (" …" if len(seqs) > 20 else "")


@asynccontextmanager
async def open_stage(command: Sequence[str], folder: Path, patience_s: float = PATIENCE_S) -> AsyncIterator[Stage]:
    """A scripted server, the relays before it, and a client that is not started yet."""
    listener = await WebsocketNetwork(_SETTINGS).listen(
        "127.0.0.1", 0, subprotocols=SUBPROTOCOLS, message_bytes_max=_SETTINGS.frame_bytes_max
    )

    async def http(request: Request) -> Response:
        return Response(404, b"a scripted server has no routes\n", "text/plain")

    async with trio.open_nursery() as nursery:
        stage = Stage(command, folder, listener.address[1], nursery, patience_s)
        await nursery.start(stage.relay.run)
        await nursery.start(stage.other.run)
        nursery.start_soon(listener.serve, stage.handle, http)
        nursery.start_soon(stage.live)
        try:
            yield stage
        finally:
            nursery.cancel_scope.cancel()
            stage.relay.close()
            stage.other.close()
