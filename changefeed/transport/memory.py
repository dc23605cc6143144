"""Transport without sockets: tests, simulations, and an instance's own clients. Deterministic under a MockClock.

    net = MemoryNetwork()
    a, b = net.host("a"), net.host("b")     # each is a Network; what it opens and connects belongs to that host
    net.kill("a")                           # as SIGKILL: its listeners refuse, its connections break
    net.cut("a", "b"); net.heal("a", "b")   # a partition: nothing arrives, nobody is told
    net.cut_way("a", "b")                   # the same for what a sends to b only
    net.delay = lambda source, target: 0.01 # seconds that a message is under way; order is kept

`MemoryNetwork` itself is the Network of the host "". `connection_pair()` gives the two ends of one connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from changefeed.errors import (
    ConnectionLost,
    ConnectionRefused,
    FrameTooLarge,
    PortInUse,
    Unreachable,
    UnsupportedProtocol,
)
from changefeed.transport import Connection, ConnectionHandler, HttpHandler, Listener, Message, Request, Response
from changefeed.transport.handlers import Alone, respond, run_handler
from changefeed.transport.urls import Address, parse_url

#: What a connection holds on the way, each way, before `send` waits: as kernel buffers do.
BUFFER_BYTES: Final = 256 * 1024
#: Connections that a listener has not taken yet.
BACKLOG: Final = 128
FIRST_FREE_PORT: Final = 40_000
ABNORMAL: Final = 1006

Timers = Callable[[float, Callable[[], None]], None]


class _Pipe:
    """One direction. end: how it ended for the reader once the queue is read; broken: ended at once, queue lost.

    back: the other direction of the same connection. timers: see MemoryNetwork. At most one task reads, and one waits
    for room.
    """

    back: _Pipe

    def __init__(self, delay: Callable[[], float] | None, timers: Timers | None) -> None:
        self.queue: deque[tuple[float, Message]] = deque()
        self.bytes = 0
        self.end: tuple[int, str] | None = None
        self.end_due = float("inf")
        self.broken = False
        self.held = False
        self._delay = delay
        self._due = float("-inf")
        self._timers = timers
        self._reader: trio.lowlevel.Task | None = None
        self._scope: trio.CancelScope | None = None
        self._room: trio.Event | None = None

    def notify(self) -> None:
        """Something rare has changed: whoever waits at either end of the connection looks again."""
        for pipe in (self, self.back):
            pipe._wake_reader()
            pipe.notify_room()

    def notify_room(self) -> None:
        """Whoever waits for room looks again."""
        if self._room is not None:
            self._room.set()
            self._room = None

    async def wait_room(self, deadline: float) -> None:
        """Until something changed for the sender, or the deadline."""
        self._room = trio.Event()
        with trio.move_on_at(deadline):
            await self._room.wait()

    async def wait(self, due: float) -> None:
        """For the reader: until something changed, or `due`. What is put meanwhile wakes it when it arrives."""
        if self._timers is None:
            with trio.CancelScope(deadline=due) as self._scope:
                await self._park()
            return
        if due != float("inf"):
            self._timers(due, self._wake_reader)
        await self._park()

    async def _park(self) -> None:
        self._reader = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            trio.lowlevel.reschedule(reader)

    def arrival(self) -> float:
        """When what is sent now arrives; never before what was sent earlier."""
        self._due = max(self._due, trio.current_time() + (self._delay() if self._delay is not None else 0.0))
        return self._due

    def put(self, message: Message) -> None:
        due = self.arrival()
        first = not self.queue
        self.queue.append((due, message))
        self.bytes += len(message)
        if not first or self._reader is None or self.held:
            return
        if due <= trio.current_time():
            self._wake_reader()
        elif self._timers is not None:
            self._timers(due, self._wake_reader)
        elif self._scope is not None:
            self._scope.deadline = min(self._scope.deadline, due)

    def break_(self) -> None:
        self.broken = True
        self.queue.clear()
        self.bytes = 0
        self.notify()

    def over(self) -> tuple[int, str] | None:
        """What the reader's side knows of the end."""
        if self.held:
            return None
        if self.broken:
            return (ABNORMAL, "")
        return self.end if trio.current_time() >= self.end_due else None


class MemoryConnection:
    """See transport.Connection."""

    def __init__(
        self, subprotocol: str, peer: str, incoming: _Pipe, outgoing: _Pipe, message_bytes_max: int, buffer_bytes: int
    ) -> None:
        self.subprotocol = subprotocol
        self.peer = peer
        self._incoming = incoming
        self._outgoing = outgoing
        self._message_bytes_max = message_bytes_max
        self._buffer_bytes = buffer_bytes
        self._closed: tuple[int, str] | None = None
        self._sending = Alone("sending over")
        self._receiving = Alone("receiving from")

    def __repr__(self) -> str:
        return f"<MemoryConnection to {self.peer}>"

    async def send(self, message: Message) -> None:
        with self._sending:
            try:
                await trio.lowlevel.checkpoint()
                self._check_open()
                while self._outgoing.bytes and self._outgoing.bytes + len(message) > self._buffer_bytes:
                    await self._outgoing.wait_room(float("inf") if self._incoming.held else self._incoming.end_due)
                    self._check_open()
            except trio.Cancelled:
                self.abort()
                raise
            self._outgoing.put(message)

    async def receive(self) -> Message:
        with self._receiving:
            await trio.lowlevel.checkpoint_if_cancelled()
            waited = False
            try:
                while (due := self._next_due()) > trio.current_time():
                    waited = True
                    await self._incoming.wait(due)
                message = self._take()
            finally:
                if not waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
            return message

    def _next_due(self) -> float:
        """When there is something to take; infinity: not known. Raises ConnectionLost once the connection is over."""
        if self._closed is not None:
            self._check_open()
        pipe = self._incoming
        if pipe.held:
            return float("inf")
        if pipe.queue:
            return pipe.queue[0][0]
        if pipe.over() is not None:
            self._check_open()
        return pipe.end_due

    def _take(self) -> Message:
        pipe = self._incoming
        message = pipe.queue.popleft()[1]
        pipe.bytes -= len(message)
        pipe.notify_room()
        if len(message) > self._message_bytes_max:
            self._close(1009, f"Exceeded maximum message size: {self._message_bytes_max} bytes")
            raise FrameTooLarge(
                f"{self.peer} sent a message of {len(message)} bytes; the limit is {self._message_bytes_max}"
            )
        return message

    def _check_open(self) -> None:
        if self._closed is not None:
            raise ConnectionLost(f"the connection to {self.peer} was closed at this end", *self._closed)
        over = self._incoming.over()
        if over is not None:
            code, reason = over
            raise ConnectionLost(f"{self.peer} ended the connection ({code} {reason or 'without a reason'})", *over)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self._close(code, reason)
        await trio.lowlevel.checkpoint()

    def _close(self, code: int, reason: str) -> None:
        if self._closed is None:
            over = self._incoming.over()
            self._closed = over if over is not None else (code, reason)
            if self._outgoing.end is None:
                self._outgoing.end = (code, reason)
                self._outgoing.end_due = self._outgoing.arrival()
            # Nobody will read what still comes.
            self._incoming.queue.clear()
            self._incoming.bytes = 0
            self._incoming.notify()

    def abort(self) -> None:
        if self._closed is None:
            self._closed = (ABNORMAL, "")
            self._outgoing.break_()
            self._incoming.queue.clear()
            self._incoming.bytes = 0
            self._incoming.notify()


def connection_pair(
    subprotocol: str = "changefeed.v1.msgpack",
    *,
    message_bytes_max: int = 2**24,
    buffer_bytes: int = BUFFER_BYTES,
    names: tuple[str, str] = ("client", "server"),
) -> tuple[MemoryConnection, MemoryConnection]:
    """Both ends of one connection. names: what each end is called by the other."""
    return _pair(subprotocol, names, (message_bytes_max, message_bytes_max), buffer_bytes, (None, None), None)


def _pair(
    subprotocol: str,
    names: tuple[str, str],
    limits: tuple[int, int],
    buffer_bytes: int,
    delays: tuple[Callable[[], float] | None, Callable[[], float] | None],
    timers: Timers | None,
) -> tuple[MemoryConnection, MemoryConnection]:
    there, here = _Pipe(delays[0], timers), _Pipe(delays[1], timers)
    there.back, here.back = here, there
    return (
        MemoryConnection(subprotocol, names[1], here, there, limits[0], buffer_bytes),
        MemoryConnection(subprotocol, names[0], there, here, limits[1], buffer_bytes),
    )


_Arrival = tuple[MemoryConnection | None, Request, Callable[[Response], None] | None]


class MemoryListener:
    """See transport.Listener."""

    def __init__(
        self,
        network: MemoryNetwork,
        host: str,
        address: tuple[str, int],
        subprotocols: tuple[str, ...],
        message_bytes_max: int,
    ) -> None:
        self.address = address
        self.host = host
        self.subprotocols = subprotocols
        self.message_bytes_max = message_bytes_max
        self._network = network
        self._send, self._receive = trio.open_memory_channel[_Arrival](BACKLOG)

    async def serve(self, handle: ConnectionHandler, http: HttpHandler) -> None:
        async with trio.open_nursery() as nursery:
            try:
                async for connection, request, answer in self._receive:
                    if connection is not None:
                        nursery.start_soon(run_handler, handle, connection, request)
                    elif answer is not None:
                        nursery.start_soon(self._respond, http, request, answer)
            except trio.ClosedResourceError:
                pass

    async def _respond(self, http: HttpHandler, request: Request, answer: Callable[[Response], None]) -> None:
        answer(await respond(http, request))

    async def arrive(self, arrival: _Arrival) -> None:
        try:
            await self._send.send(arrival)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise ConnectionRefused(f"nothing listens on {self.address[0]}:{self.address[1]} any more") from None

    def close(self) -> None:
        """Stop listening; what nobody has taken yet is reset."""
        self._network.forget(self)
        self._send.close()
        while True:
            try:
                connection, _, _ = self._receive.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                return
            if connection is not None:
                connection.abort()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class MemoryNetwork:
    """Hosts, ports and connections in one object, with the hooks by which tests do harm. See the module's docstring.

    delay: (source host, target host) -> seconds that a message is under way, asked for each message; None: no time.
    timers: (when, what) -> calls `what` at that trio time, from outside of any task: a simulation's clock can do that
    for less than what a cancel scope costs; None: cancel scopes are used.
    """

    def __init__(self, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.delay: Callable[[str, str], float] | None = None
        self.timers: Timers | None = None
        self.buffer_bytes = buffer_bytes
        self._listeners: dict[tuple[str, int], MemoryListener] = {}
        self._owners: dict[tuple[str, int], str] = {}
        self._links: list[tuple[str, str, MemoryConnection, MemoryConnection]] = []
        self._cuts: set[tuple[str, str]] = set()
        self._healed = trio.Event()
        self._next_port = FIRST_FREE_PORT

    def host(self, name: str) -> MemoryHost:
        """The Network as a process called `name` sees it."""
        return MemoryHost(self, name)

    # ---- harm

    def kill(self, host: str) -> None:
        """What other hosts see when a process is killed: its ports refuse, its connections break, unread bytes go."""
        for listener in [each for each in self._listeners.values() if each.host == host]:
            listener.close()
        for source, target, near, far in self._live():
            if host in (source, target):
                near.abort()
                far.abort()

    def drop(self, host: str, other: str) -> None:
        """Break every connection between two hosts; new ones can be opened."""
        for source, target, near, far in self._live():
            if {source, target} == {host, other}:
                near.abort()
                far.abort()

    def cut(self, host: str, other: str) -> None:
        """Nothing arrives between two hosts any more, and neither is told. What is sent waits until `heal`."""
        self._cuts |= {(host, other), (other, host)}
        self._hold()

    def cut_way(self, source: str, target: str) -> None:
        """Nothing that `source` sends arrives at `target` any more; the other way goes on.
        No connection can be opened meanwhile."""
        self._cuts.add((source, target))
        self._hold()

    def heal(self, host: str, other: str) -> None:
        """Both ways."""
        self._cuts -= {(host, other), (other, host)}
        self._hold()
        self._healed.set()
        self._healed = trio.Event()

    def _hold(self) -> None:
        for source, target, near, far in self._live():
            for pipe, way in ((near._incoming, (target, source)), (far._incoming, (source, target))):
                held = way in self._cuts
                if pipe.held != held:
                    pipe.held = held
                    pipe.notify()

    def _live(self) -> list[tuple[str, str, MemoryConnection, MemoryConnection]]:
        """Connections of which an end is open yet; others are forgotten."""
        self._links = [link for link in self._links if link[2]._closed is None or link[3]._closed is None]
        return self._links

    # ---- Network

    async def connect(
        self, url: str, *, subprotocols: tuple[str, ...], message_bytes_max: int, timeout_s: float
    ) -> Connection:
        return await self.connect_from("", url, subprotocols, message_bytes_max, timeout_s)

    async def listen(self, host: str, port: int, *, subprotocols: tuple[str, ...], message_bytes_max: int) -> Listener:
        return await self.listen_as("", host, port, subprotocols, message_bytes_max)

    async def get(self, url: str, *, timeout_s: float) -> Response:
        return await self.get_from("", url, timeout_s)

    # ---- the same for a host

    async def listen_as(
        self, name: str, host: str, port: int, subprotocols: tuple[str, ...], message_bytes_max: int
    ) -> MemoryListener:
        await trio.lowlevel.checkpoint()
        if port == 0:
            port, self._next_port = self._next_port, self._next_port + 1
        key = (_canonical(host), port)
        if key in self._listeners:
            raise PortInUse(f"cannot listen on {host}:{port}: the address is in use; choose another port")
        listener = MemoryListener(self, name, (host, port), subprotocols, message_bytes_max)
        self._listeners[key] = listener
        self._owners[key] = name
        return listener

    def forget(self, listener: MemoryListener) -> None:
        key = (_canonical(listener.address[0]), listener.address[1])
        if self._listeners.get(key) is listener:
            del self._listeners[key]

    async def connect_from(
        self, name: str, url: str, subprotocols: tuple[str, ...], message_bytes_max: int, timeout_s: float
    ) -> MemoryConnection:
        address = parse_url(url)
        with trio.move_on_after(timeout_s):
            listener = await self._find(name, address)
            if address.protocol_path != "/v1":
                raise Unreachable(f"{address.shown}: no changefeed at {address.protocol_path}")
            chosen = next((offer for offer in subprotocols if offer in listener.subprotocols), None)
            if chosen is None:
                raise UnsupportedProtocol(
                    f"{address.shown} speaks {', '.join(listener.subprotocols)}; offered was {', '.join(subprotocols)}"
                )
            near, far = _pair(
                chosen,
                (name or "client", address.shown),
                (message_bytes_max, listener.message_bytes_max),
                self.buffer_bytes,
                (
                    lambda: 0.0 if self.delay is None else self.delay(name, listener.host),
                    lambda: 0.0 if self.delay is None else self.delay(listener.host, name),
                ),
                self.timers,
            )
            self._live().append((name, listener.host, near, far))
            await listener.arrive((far, Request(address.protocol_path, peer=name), None))
            return near
        raise Unreachable(f"{address.shown} did not answer within {timeout_s:g} s")

    async def _find(self, name: str, address: Address) -> MemoryListener:
        """The listener at an address, across a cut only once that is healed."""
        key = (_canonical(address.host), address.port)
        while True:
            await trio.lowlevel.checkpoint()
            owner = self._owners.get(key)
            if owner is not None and ((name, owner) in self._cuts or (owner, name) in self._cuts):
                await self._healed.wait()
                continue
            listener = self._listeners.get(key)
            if listener is None:
                raise ConnectionRefused(f"nothing listens on {address.shown}")
            return listener

    async def get_from(self, name: str, url: str, timeout_s: float) -> Response:
        address = parse_url(url)
        answers: list[Response] = []
        done = trio.Event()

        def answer(response: Response) -> None:
            answers.append(response)
            done.set()

        with trio.move_on_after(timeout_s):
            listener = await self._find(name, address)
            await listener.arrive((None, Request(address.path or "/", peer=name), answer))
            await done.wait()
            return answers[0]
        raise Unreachable(f"{address.shown} did not answer within {timeout_s:g} s")


class MemoryHost:
    """The Network of one named host; see transport.Network."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self.network = network
        self.name = name

    async def connect(
        self, url: str, *, subprotocols: tuple[str, ...], message_bytes_max: int, timeout_s: float
    ) -> Connection:
        return await self.network.connect_from(self.name, url, subprotocols, message_bytes_max, timeout_s)

    async def listen(self, host: str, port: int, *, subprotocols: tuple[str, ...], message_bytes_max: int) -> Listener:
        return await self.network.listen_as(self.name, host, port, subprotocols, message_bytes_max)

    async def get(self, url: str, *, timeout_s: float) -> Response:
        return await self.network.get_from(self.name, url, timeout_s)


def _canonical(host: str) -> str:
    return "127.0.0.1" if host in ("localhost", "::1") else host


__all__ = ["MemoryConnection", "MemoryHost", "MemoryListener", "MemoryNetwork", "connection_pair"]
