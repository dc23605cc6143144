"""Both ends of a link between two instances: who performs what peer/machine.py decides.

The follower connects to the leader's URL and keeps the link up for as long as it follows that leader. Over it go, both
ways, heartbeats; towards the leader, publishers' Opens and batches, unchanged; towards the follower, their answers and
the durable entries for its window. `Link` tells the election what it sees; a far `Leader` exists while the peer leads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import trio

from changefeed.batch import Batch, Entry
from changefeed.change import Position
from changefeed.coordination import LeaderRecord
from changefeed.errors import (
    ChangefeedError,
    ConnectionLost,
    ConnectionRefused,
    NotCurrent,
    UnsupportedProtocol,
)
from changefeed.leader import Answered, Leader
from changefeed.log import FeedLog
from changefeed.peer.machine import (
    BeginWindow,
    Broken,
    Effect,
    FollowerEnd,
    Foreign,
    Heard,
    LeaderEnd,
    Leads,
    LeadsNoMore,
    Met,
    OpenSettled,
    Settled,
    Visible,
)
from changefeed.ports import World
from changefeed.serving.window import Window
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.transport import Connection, Network
from changefeed.wire import PEER
from changefeed.wire.codec import decode, encode
from changefeed.wire.faults import error_of, fault_of
from changefeed.wire.messages import (
    Answer,
    AnyMessage,
    Ask,
    Entries,
    Fault,
    Open,
    Opened,
    PeerAnswer,
    PeerBeat,
    PeerClose,
    PeerHello,
    PeerOpen,
    PeerOpened,
    PeerPublish,
    Publish,
    Said,
)

logger = logging.getLogger("changefeed.peer")

#: Between two tries to reach a leader that does not answer; the first retry is at once.
RETRY_S = 0.05
RETRY_MAX_S = 0.5
CONNECT_S = 1.0


class Evidence(Protocol):
    """What the election wants to hear of a link (see election/driver.py)."""

    def link_up(self, process: str) -> None: ...
    def link_beat(self, beat: PeerBeat) -> None: ...
    def link_closed(self, process: str) -> None: ...
    def link_refused(self, process: str) -> None: ...
    def link_foreign(self, process: str, found: str) -> None: ...
    def link_silent(self, process: str) -> None: ...
    def follower_beat(self, beat: PeerBeat) -> None: ...


class Node(Protocol):
    """An instance's part in one feed, as far as its links need it (implemented by feednode.FeedNode)."""

    name: str
    log: FeedLog
    window: Window
    settings: Settings
    world: World
    instance: str
    process: str
    url: str
    network: Network
    changed: Changed

    @property
    def evidence(self) -> Evidence: ...
    def serving(self) -> tuple[int, str]: ...
    def beat(self) -> PeerBeat: ...
    def begin_window(self, at: Position) -> None: ...
    def visible(self, entries: Sequence[Entry]) -> None: ...
    def near_leader(self) -> Leader | None: ...
    def far_leader(self, leader: Leader | None) -> None: ...
    def foreign_log(self, why: str) -> None: ...


class FarLeader:
    """A leader at the other end of a link; see leader.Leader for the contract."""

    def __init__(self, name: str, epoch: int, term: str, machine: FollowerEnd, queue: _Outgoing) -> None:
        self.name = name
        self.epoch = epoch
        self.term = term
        self.lost = trio.Event()
        self._machine = machine
        self._queue = queue
        self._numbers: dict[str, int] = {}
        self._next = 0
        self._answered: dict[int, list[Answered]] = {}
        self._opens: dict[int, trio.MemorySendChannel[OpenSettled]] = {}

    async def open(self, request: Open, channel: str) -> Opened:
        if self.lost.is_set():
            raise NotCurrent("the leader was lost; ask again")
        self.close(channel)
        self._next += 1
        number = self._numbers[channel] = self._next
        self._answered[number] = []
        send, receive = trio.open_memory_channel[OpenSettled](1)
        self._opens[number] = send
        self._machine.open_sent(number)
        self._queue.put(PeerOpen(number, request))
        try:
            async for settled in receive:
                if settled.fault is not None:
                    raise error_of(settled.fault)
                if settled.opened is not None:
                    return settled.opened
        finally:
            self._opens.pop(number, None)
        raise NotCurrent("the leader was lost before it answered; ask again")

    async def publish(self, channel: str, batch: Batch, answered: Answered) -> None:
        number = self._numbers.get(channel)
        if self.lost.is_set() or number is None:
            raise NotCurrent("the leader was lost; open again")
        await self._queue.room()
        if self.lost.is_set():
            raise NotCurrent("the leader was lost; open again")
        self._answered[number].append(answered)
        self._machine.publish_sent(number, batch.number)
        body = Publish(batch.after, batch.number, batch.sizes, batch.payload)
        self._queue.put(PeerPublish(number, batch.publisher, batch.incarnation, body), len(batch.payload))

    def close(self, channel: str) -> None:
        number = self._numbers.pop(channel, None)
        if number is not None and not self.lost.is_set():
            self._answered.pop(number, None)
            self._machine.channel_closed(number)
            self._queue.put(PeerClose(number))

    def open_settled(self, effect: OpenSettled) -> None:
        send = self._opens.pop(effect.channel, None)
        if send is not None:
            send.send_nowait(effect)
            send.close()

    def settled(self, effect: Settled) -> None:
        waiting = self._answered.get(effect.channel)
        if waiting:
            waiting.pop(0)(effect.answer)

    def lose(self) -> None:
        self.lost.set()
        self._answered.clear()
        for send in self._opens.values():
            send.close()
        self._opens.clear()


class _Outgoing:
    """Messages that wait to be sent over one link; bounded in bytes by whoever awaits `room`."""

    def __init__(self, bytes_max: int) -> None:
        self._messages: list[AnyMessage] = []
        self._bytes = 0
        self._bytes_max = bytes_max
        self._room = Changed()
        self.wake = trio.Event()

    def put(self, message: AnyMessage, size: int = 256) -> None:
        self._messages.append(message)
        self._bytes += size
        self.wake.set()

    def take(self) -> list[AnyMessage]:
        messages, self._messages, self._bytes = self._messages, [], 0
        self._room.notify()
        return messages

    async def room(self) -> None:
        while self._bytes >= self._bytes_max:
            await self._room.wait()

    async def wait(self, deadline: float) -> None:
        """Until something was put, or the deadline."""
        with trio.move_on_at(deadline):
            await self.wake.wait()
        self.wake = trio.Event() if not self._messages else self.wake


async def _send(connection: Connection, message: AnyMessage, stall_after_s: float) -> None:
    """Send one message, or drop the connection if the peer takes no byte for too long."""
    with trio.move_on_after(stall_after_s) as scope:
        await connection.send(encode(message, PEER))
    if scope.cancelled_caught:
        connection.abort()
        raise ConnectionLost("the peer took no byte for too long")


class Link:
    """The follower's end: one leader at a time, reconnected for as long as it is followed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.heard = float("-inf")  # trio time of the last beat of a serving leader
        self.connected_to = ""
        self._leader: FarLeader | None = None

    async def run(self, record: LeaderRecord) -> None:
        """Follow the leader of this record until cancelled."""
        node, pause = self._node, 0.0
        while True:
            try:
                connection = await node.network.connect(
                    record.url.rstrip("/") + "/v1",
                    subprotocols=(PEER,),
                    message_bytes_max=_message_max(node.settings),
                    timeout_s=CONNECT_S,
                )
            except ConnectionRefused:
                node.evidence.link_refused(record.process)
            except (ChangefeedError, UnsupportedProtocol) as error:
                logger.debug("link to %s: %s", record.url, error)
                node.evidence.link_silent(record.process)
            else:
                if await self._converse(connection, record):
                    pause = 0.0
                    continue
            pause = min(max(RETRY_S, pause * 2), RETRY_MAX_S)
            await trio.sleep(pause * (0.5 + node.world.entropy.random() / 2))

    async def _converse(self, connection: Connection, record: LeaderRecord) -> bool:
        """Talk until the connection ends; True if the right process had answered."""
        node = self._node
        tail = node.window.tail
        position = None if tail is None else tail.position(node.log.lineage)
        machine = FollowerEnd(record.process, node.log.lineage, position)
        queue = _Outgoing(node.settings.leader_queue_bytes)
        try:
            hello = PeerHello(node.name, node.instance, node.process, node.url, position)
            await _send(connection, hello, CONNECT_S)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, connection, queue)
                with trio.move_on_after(node.settings.handshake_s) as first:
                    while True:
                        message = decode(await connection.receive(), PEER, None)
                        for effect in machine.received(message):
                            if not self._perform(effect, record, machine, queue):
                                nursery.cancel_scope.cancel()
                        if machine.met:
                            first.deadline = float("inf")
                nursery.cancel_scope.cancel()
        except* (ChangefeedError, trio.BrokenResourceError) as group:
            logger.debug("link to %s ended: %s", record.url, group.exceptions[0])
        finally:
            connection.abort()
            self._lose()
            self.connected_to = ""
            if machine.met:
                node.evidence.link_closed(record.process)
        return machine.met

    async def _write(self, connection: Connection, queue: _Outgoing) -> None:
        node, due = self._node, trio.current_time()
        while True:
            for message in queue.take():
                await _send(connection, message, node.settings.stall_after_s)
            if trio.current_time() >= due:
                await _send(connection, node.beat(), node.settings.stall_after_s)
                due = trio.current_time() + node.settings.peer_heartbeat_s
            await queue.wait(due)

    def _perform(self, effect: Effect, record: LeaderRecord, machine: FollowerEnd, queue: _Outgoing) -> bool:
        """Perform one effect; False: the connection must go."""
        node = self._node
        match effect:
            case Met(process):
                self.connected_to = process
                node.evidence.link_up(process)
            case Foreign(found):
                node.evidence.link_foreign(record.process, found)
                return False
            case Heard(beat):
                if beat.state == "leading":
                    self.heard = trio.current_time()
                node.evidence.link_beat(beat)
            case Leads(name, epoch, term):
                self._leader = FarLeader(name, epoch, term, machine, queue)
                node.far_leader(self._leader)
            case LeadsNoMore():
                self._lose()
            case BeginWindow(at):
                node.begin_window(at)
            case Visible(entries):
                node.visible(entries)
            case OpenSettled():
                if self._leader is not None:
                    self._leader.open_settled(effect)
            case Settled():
                if self._leader is not None:
                    self._leader.settled(effect)
            case Broken(why, foreign_log):
                logger.warning("feed %s: link to %s: %s", node.name, record.url, why)
                if foreign_log:
                    node.foreign_log(why)
                return False
        return True

    def _lose(self) -> None:
        if self._leader is not None:
            leader, self._leader = self._leader, None
            leader.lose()
            self._node.far_leader(None)


def _message_max(settings: Settings) -> int:
    """Entries travel in messages of about frame_bytes_aim, at least one entry, which may be as large as a batch."""
    return settings.frame_bytes_max + settings.batch_bytes_aim + 2**20


async def serve_peer(connection: Connection, hello: PeerHello, node: Node) -> None:
    """The leader's end of one link; also answers when this instance does not lead, so that it is known to live."""
    lineage = node.log.lineage
    if hello.tail is not None and node.near_leader() is not None:
        refusal = (await node.log.look()).check(hello.tail)
        if refusal is not None and refusal.code != "position-too-old":
            await _send(connection, Fault("other-lineage", str(refusal), False), CONNECT_S)
            return
    end = LeaderEnd(hello.tail if hello.tail is None or hello.tail.lineage == lineage else None)
    queue = _Outgoing(node.settings.leader_queue_bytes)
    prefix = f"{hello.name}/{hello.process}/{id(connection)}"
    channels: dict[int, tuple[Leader, str]] = {}
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_writes, connection, node, end, queue)
            await _serve_reads(connection, node, queue, prefix, channels, nursery)
    finally:
        for leader, channel in channels.values():
            leader.close(channel)


async def _serve_writes(connection: Connection, node: Node, end: LeaderEnd, queue: _Outgoing) -> None:
    settings, lineage = node.settings, node.log.lineage
    said: tuple[int, str] | None = None
    due = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wake_on_change, node.changed, queue)
        while True:
            for message in queue.take():
                await _send(connection, message, settings.stall_after_s)
            if node.serving() != said or trio.current_time() >= due:
                said, due = node.serving(), trio.current_time() + settings.peer_heartbeat_s
                await _send(connection, node.beat(), settings.stall_after_s)
            after = end.next_after(node.window.floor, node.window.tail, lineage)
            entries = None if after is None else node.window.after(after.seq, settings.frame_bytes_aim)
            if after is not None and entries:
                end.sent(entries, lineage)
                await _send(connection, Entries(after, tuple(entries)), settings.stall_after_s)
                continue
            await queue.wait(due)


async def _wake_on_change(changed: Changed, queue: _Outgoing) -> None:
    while True:
        await changed.wait()
        queue.wake.set()


async def _serve_reads(
    connection: Connection,
    node: Node,
    queue: _Outgoing,
    prefix: str,
    channels: dict[int, tuple[Leader, str]],
    nursery: trio.Nursery,
) -> None:
    while True:
        with trio.move_on_after(node.settings.heartbeat_dead_s) as dead:
            message = decode(await connection.receive(), PEER, None)
        if dead.cancelled_caught:
            raise ConnectionLost("the follower sent nothing for too long")
        match message:
            case PeerBeat():
                node.evidence.follower_beat(message)
            case PeerOpen(number, request):
                nursery.start_soon(_forwarded_open, node, queue, number, request, f"{prefix}/{number}", channels)
            case PeerPublish(number, publisher, incarnation, body):
                known = channels.get(number)
                if known is not None:
                    batch = Batch(publisher, incarnation, body.after, body.number, body.sizes, body.payload)
                    await _forwarded_publish(known, number, batch, queue)
            case PeerClose(number):
                known = channels.pop(number, None)
                if known is not None:
                    known[0].close(known[1])
            case _:
                raise ConnectionLost(f"a follower does not send {message.TYPE}")


async def _forwarded_open(
    node: Node, queue: _Outgoing, number: int, request: Open, channel: str, channels: dict[int, tuple[Leader, str]]
) -> None:
    leader = node.near_leader()
    try:
        if leader is None:
            raise NotCurrent(f"instance {node.instance} does not lead feed {node.name} now")
        opened = await leader.open(request, channel)
    except ChangefeedError as error:
        queue.put(PeerOpened(number, None, fault_of(error)))
    else:
        channels[number] = (leader, channel)
        queue.put(PeerOpened(number, opened, None))


async def _forwarded_publish(known: tuple[Leader, str], number: int, batch: Batch, queue: _Outgoing) -> None:
    """A batch whose term is over is dropped: the beat that says so travels ahead, and it will be sent again."""
    leader, channel = known

    def answered(answer: Answer) -> None:
        queue.put(PeerAnswer(number, answer))

    try:
        await leader.publish(channel, batch, answered)
    except NotCurrent:
        pass


async def ask_peer(network: Network, url: str, feed: str, process: str, settings: Settings) -> Said | None:
    """What the instance at url says of the leader whose process is given; None if it does not answer in a second."""
    try:
        with trio.fail_after(CONNECT_S):
            connection = await network.connect(
                url.rstrip("/") + "/v1",
                subprotocols=(PEER,),
                message_bytes_max=_message_max(settings),
                timeout_s=CONNECT_S,
            )
            try:
                await connection.send(encode(Ask(feed, process), PEER))
                answer = decode(await connection.receive(), PEER, None)
            finally:
                connection.abort()
    except (ChangefeedError, trio.TooSlowError):
        return None
    return answer if isinstance(answer, Said) else None
