"""Byte streams on virtual time: what TCP and two kernels do to bytes, drawn from seeds. See transport/bytestreams.py.

    net = StreamNetwork("7-net", Weather(latency_s=0.002))
    a, b = net.host("a"), net.host("b")      # each is a ByteNetwork; what it opens belongs to that life of that host
    net.kill("a")                            # SIGKILL: its kernel closes what it had open; its ports refuse
    net.vanish("a"); net.return_("a")        # its machine loses power: silence; once it is back its kernel resets
    net.cut("a", "b"); net.heal("a", "b")    # nothing arrives from a to b; what was sent arrives after the heal
    net.reset("a", "b")                      # every stream between two hosts is reset, at both ends
    net.sever("a", "b", 12, "silence")       # of each stream 12 bytes more arrive at b, then "reset", "end" or nothing

Bytes are split and merged at drawn places, never reordered, never changed. A writer is held back by a bounded buffer,
which is freed by what the reader reads and its kernel can tell. A frozen process needs nothing here: its tasks do not
run, its kernel's buffers fill up. What is under way is bytes; nothing is called when it arrives.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator
from itertools import count
from typing import Final

import trio

from changefeed.errors import ConnectionRefused, PortInUse, Unreachable
from changefeed.simulation.stack.flow import NEVER, Ending, Flow, Weather
from changefeed.transport.urls import Address

BACKLOG: Final = 128
FIRST_FREE_PORT: Final = 40_000
#: A kernel tries again after so long where a machine did not answer, or had no room for one more connection.
RETRANSMIT_S: Final = 0.2


class SimulatedStream:
    """See bytestreams.ByteStream. One end of a stream."""

    def __init__(self, link: Link, host: str, peer: str, incoming: Flow, outgoing: Flow) -> None:
        self.peer = peer
        self.host = host
        self.closed = False
        self._link = link
        self._in = incoming
        self._out = outgoing

    def __repr__(self) -> str:
        return f"<SimulatedStream to {self.peer}>"

    def _check(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this end closed the stream")
        if self._in.reached(self._in.reset_due):
            raise trio.BrokenResourceError("the peer reset the stream")

    def _settle(self) -> None:
        """The reader's kernel tells how much was read, once it is worth telling, and if its words arrive."""
        flow = self._in
        worth = not flow.unread or flow.owed * 4 >= flow.weather.buffer_bytes
        if flow.owed and worth and self._out.held_at is None:
            flow.owed = 0
            flow.writable.set()
            flow.writable = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        flow = self._in
        while True:
            if self.closed:
                raise trio.ClosedResourceError("this end closed the stream")
            data = flow.take(max_bytes)
            if data:
                self._settle()
                return data
            self._check()
            if flow.reached(flow.fin_due) and not flow.pieces:
                return b""
            with trio.move_on_at(flow.next_due()):
                await flow.readable.wait()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while True:
            done = self._write(view)
            view = view[done:]
            if not view:
                return
            self._link.sightings["a write that waited for room"] += 1
            await self._wait_room()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.closed and not self._in.reached(self._in.reset_due) and not self._out.room:
            await self._wait_room()

    async def _wait_room(self) -> None:
        with trio.move_on_at(self._in.reset_due if self._in.held_at is None else NEVER):
            await self._out.writable.wait()

    def write_now(self, head: bytes, payload: bytes) -> int:
        data = head + payload
        size = self._write(memoryview(data))
        if size < len(data):
            self._link.sightings["a frame that went out in two parts"] += 1
        return size

    def _write(self, view: memoryview) -> int:
        self._check()
        flow = self._out
        if flow.finished:
            raise trio.ClosedResourceError("this end said that it sends nothing more")
        size = min(len(view), flow.room)
        if size:
            flow.put(bytes(view[:size]))
            self._link.written(self)
        return size

    def finish(self) -> None:
        if not self.closed and not self._out.finished:
            self._out.finished = True
            if not self._out.deaf:
                self._out.fin_due = self._out.arrival()
            self._out.ring()

    def close(self) -> None:
        if self.closed:
            return
        if any(self._in.reached(due) for due, _ in self._in.pieces):
            # Unread bytes: the kernel resets instead, and drops what it has not sent.
            self._link.sightings["a close over unread bytes"] += 1
            self.abort()
            return
        self.finish()
        coming = self._in.pieces[0][0] if self._in.pieces else None
        self._end()
        if coming is not None:
            # What arrives later is answered with a reset.
            self._out.reset(coming - trio.current_time())

    def abort(self) -> None:
        if not self.closed:
            if not self._out.deaf:
                self._out.drop_some()
            self._end()
            self._out.reset()

    def _end(self) -> None:
        self.closed = True
        self._in.forget()
        self._in.deaf = True
        self._in.ring()
        self._out.ring()
        self._link.ended()


class Link:
    """A stream with its two ends: the client's is `near`."""

    def __init__(self, network: StreamNetwork, source: str, target: str, number: int) -> None:
        self.sightings = network.sightings
        self.source, self.target = source, target
        seed = f"{network.seed}-{source}-{target}-{number}"
        self.forth = Flow(network, seed + "-forth")
        self.back = Flow(network, seed + "-back")
        self.forth.opposite, self.back.opposite = self.back, self.forth
        self.near = SimulatedStream(self, source, target, self.back, self.forth)
        self.far = SimulatedStream(self, target, f"{source}:{number}", self.forth, self.back)
        self._network = network

    def flow(self, source: str) -> Flow:
        """The direction that this host writes."""
        return self.forth if source == self.source else self.back

    def written(self, end: SimulatedStream) -> None:
        """Bytes for an end that is closed are answered with a reset."""
        other = self.far if end is self.near else self.near
        if other.closed and other.host not in self._network.gone and other._out.reset_due == NEVER:
            other._out.reset(other._in.latency())

    def ended(self) -> None:
        if self.near.closed and self.far.closed:
            self._network.links.pop(self, None)


class SimulatedListener:
    """See bytestreams.ByteListener."""

    def __init__(self, network: StreamNetwork, host: str, address: str, port: int) -> None:
        self.port = port
        self.host = host
        self.address = address
        self.closed = False
        self._network = network
        self._waiting: deque[SimulatedStream] = deque()
        self._bell = trio.Event()

    def offer(self, stream: SimulatedStream) -> bool:
        """A connection that the kernel has completed; False if there is no room."""
        if len(self._waiting) >= BACKLOG:
            return False
        self._waiting.append(stream)
        self._bell.set()
        return True

    async def accept(self) -> SimulatedStream:
        await trio.lowlevel.checkpoint()
        while True:
            if self.closed:
                raise trio.ClosedResourceError("the listener was closed")
            if self._waiting:
                return self._waiting.popleft()
            self._bell = trio.Event()
            await self._bell.wait()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._network.listeners.pop((self.address, self.port), None)
            while self._waiting:
                self._waiting.popleft().abort()
            self._bell.set()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class StreamHost:
    """The ByteNetwork of one life of a host."""

    def __init__(self, network: StreamNetwork, name: str) -> None:
        self.name = name
        self.dead = False
        self._network = network

    async def connect(self, address: Address) -> SimulatedStream:
        network, key = self._network, (canonical(address.host), address.port)
        link: Link | None = None
        try:
            while True:
                await trio.lowlevel.checkpoint()
                if self.dead:
                    raise Unreachable(f"{address.shown} cannot be reached: this process was killed")
                owner = network.owners.get(key, "")
                await network.pass_(self.name, owner)
                listener = network.listeners.get(key)
                if listener is None:
                    await network.pass_(owner, self.name)
                    raise ConnectionRefused(f"nothing listens on {address.shown}")
                link = network.new_link(self.name, listener.host)
                if listener.offer(link.far):
                    await network.pass_(owner, self.name)
                    if self.dead:
                        raise Unreachable(f"{address.shown} cannot be reached: this process was killed")
                    return link.near
                link.near.abort()
                link.far.abort()
                await trio.sleep(RETRANSMIT_S)
        except BaseException:
            if link is not None:
                link.near.abort()
            raise

    async def listen(self, host: str, port: int) -> list[SimulatedListener]:
        await trio.lowlevel.checkpoint()
        network, address = self._network, canonical(host)
        if port == 0:
            port = next(network.free_ports)
        if (address, port) in network.listeners:
            raise PortInUse(f"cannot listen on {host}:{port}: the port is in use; choose another port")
        listener = SimulatedListener(network, self.name, address, port)
        network.listeners[address, port] = listener
        network.owners[address, port] = self.name
        return [listener]


class StreamNetwork:
    """Hosts, listeners and streams in one object, with the hooks that do harm. See the module's docstring."""

    def __init__(self, seed: str, weather: Weather | None = None, sightings: Counter[str] | None = None) -> None:
        self.seed = seed
        self.weather = Weather() if weather is None else weather
        self.extra_latency_s = 0.0
        self.sightings: Counter[str] = Counter() if sightings is None else sightings
        self.listeners: dict[tuple[str, int], SimulatedListener] = {}
        self.owners: dict[tuple[str, int], str] = {}
        self.links: dict[Link, None] = {}
        self.gone: set[str] = set()
        self.free_ports = count(FIRST_FREE_PORT)
        self._hosts: dict[str, StreamHost] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._ways = random.Random(f"{seed}-ways")
        self._healed = trio.Event()

    def host(self, name: str) -> StreamHost:
        """A new life of that host: what an earlier one had open is no more its own."""
        self._hosts[name] = StreamHost(self, name)
        return self._hosts[name]

    # ---- used by hosts

    async def pass_(self, source: str, target: str) -> None:
        """One packet's way; it is sent again until it gets through."""
        await trio.sleep(0.00005 + (self.weather.latency_s + self.extra_latency_s) * self._ways.random() ** 3)
        while self._held(source, target):
            await self._healed.wait()
            await trio.sleep(RETRANSMIT_S * self._ways.random())

    def new_link(self, source: str, target: str) -> Link:
        self._numbers[source, target] += 1
        link = Link(self, source, target, self._numbers[source, target])
        self.links[link] = None
        for writer, reader in ((source, target), (target, source)):
            if self._held(writer, reader):
                link.flow(writer).hold()
        return link

    def _held(self, source: str, target: str) -> bool:
        return (source, target) in self._cuts or source in self.gone or target in self.gone

    def _of(self, host: str, other: str | None = None) -> Iterator[Link]:
        for link in list(self.links):
            if host in (link.source, link.target) and (other is None or other in (link.source, link.target)):
                yield link

    # ---- harm

    def kill(self, host: str) -> None:
        """As SIGKILL: nothing that the process does from now on gets out; its kernel closes what it had open."""
        if host in self._hosts:
            self._hosts[host].dead = True
        for listener in [each for each in self.listeners.values() if each.host == host]:
            listener.close()
        for link in self._of(host):
            for end in (link.near, link.far):
                if end.host == host:
                    end.close()

    def vanish(self, host: str) -> None:
        """As a power loss: its machine is silent, nobody is told. What it had under way is lost."""
        self.gone.add(host)
        if host in self._hosts:
            self._hosts[host].dead = True
        for listener in [each for each in self.listeners.values() if each.host == host]:
            listener.close()
        for link in self._of(host):
            for end in (link.near, link.far):
                if end.host == host:
                    end._out.drop_some()
                    end._out.deaf = True
                    end._in.hold()
                    end.closed = True
                    end._in.ring()
                    end._out.ring()

    def return_(self, host: str) -> None:
        """The machine is back and knows none of its streams: what its peers send, or send again, is reset."""
        self.gone.discard(host)
        for link in self._of(host):
            for end in (link.near, link.far):
                if end.host == host and end.closed and end._out.reset_due == NEVER:
                    waiting = end._in.unread > 0
                    end._in.forget()
                    end._in.deaf = True
                    if waiting:
                        end._out.reset(RETRANSMIT_S * end._out.chance.random())
        self._tell_healed()

    def cut(self, source: str, target: str) -> None:
        """Nothing arrives from source at target any more, and neither is told."""
        self._cuts.add((source, target))
        for link in self._of(source, target):
            link.flow(source).hold()

    def heal(self, source: str, target: str) -> None:
        """What was sent meanwhile is sent again."""
        self._cuts.discard((source, target))
        for link in self._of(source, target):
            if not self._held(source, target):
                link.flow(source).release()
                (link.near if link.source == source else link.far)._settle()
        self._tell_healed()

    def _tell_healed(self) -> None:
        self._healed.set()
        self._healed = trio.Event()

    def reset(self, host: str, other: str) -> int:
        """Somebody between two hosts resets every stream of theirs, at both ends; new ones can be opened."""
        found = 0
        for link in self._of(host, other):
            for flow in (link.forth, link.back):
                if flow.reset_due == NEVER:
                    flow.drop_some()
                    flow.reset()
                    found += 1
        return found

    def sever(self, source: str, target: str, after_bytes: int, then: Ending) -> int:
        """Of each open stream, so many bytes more arrive from source at target; then what `then` says."""
        found = 0
        for link in self._of(source, target):
            flow = link.flow(source)
            if not flow.deaf and flow.left is None:
                flow.left, flow.then = max(1, after_bytes), then
                found += 1
        return found


def canonical(host: str) -> str:
    return "127.0.0.1" if host in ("localhost", "::1") else host
