"""Both ends of a link between two instances: who performs what peer/machine.py decides.

The follower connects to the leader's URL and keeps the link up for as long as it follows that leader. Over it go, both
ways, heartbeats; towards the leader, publishers' Opens and batches, unchanged; towards the follower, their answers and
the durable entries for its window. `Link` tells the election what it sees; a far `Leader` exists while the peer leads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import trio

from changefeed.batch import Batch, Entry
from changefeed.change import Position
from changefeed.coordination import LeaderRecord
from changefeed.errors import (
    ChangefeedError,
    ConnectionLost,
    ConnectionRefused,
    LogUnavailable,
    NotCurrent,
    UnsupportedProtocol,
)
from changefeed.leader import Leader
from changefeed.log import FeedLog
from changefeed.peer.far import FarLeader, Intake, Outgoing
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
from changefeed.wire.faults import fault_of
from changefeed.wire.messages import (
    Answer,
    AnyMessage,
    Ask,
    Entries,
    Fault,
    Open,
    PeerAnswer,
    PeerBeat,
    PeerClose,
    PeerHello,
    PeerOpen,
    PeerOpened,
    PeerPublish,
    Said,
)

logger = logging.getLogger("changefeed.peer")

#: Between two tries to reach a leader that does not answer; the first retry is at once.
RETRY_S = 0.05
RETRY_MAX_S = 0.5
CONNECT_S = 1.0
#: A follower gives up a link on which nothing came for so many times `suspect_after_s`, and connects anew.
SILENCES = 2


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
        self._queue = Outgoing()
        self._beat_at = 0.0

    def announce(self) -> None:
        """Send a heartbeat now: what it says has changed. Does nothing while there is no link."""
        self._beat_at = float("-inf")
        self._queue.wake.set()

    async def run(self, record: LeaderRecord) -> None:
        """Follow the leader of this record until cancelled."""
        node, pause = self._node, 0.0
        while True:
            began = trio.current_time()
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
                if await self._converse(connection, record) and trio.current_time() >= began + RETRY_MAX_S:
                    # At once: whether the leader refuses now is what its election waits for.
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
        self._queue = queue = Outgoing()
        try:
            hello = PeerHello(node.name, node.instance, node.process, node.url, position)
            await _send(connection, hello, CONNECT_S)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, connection, queue)
                await self._read(connection, record, machine, queue)
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

    async def _read(self, connection: Connection, record: LeaderRecord, machine: FollowerEnd, queue: Outgoing) -> None:
        """Until the connection must go. Raises ConnectionLost, also if it only seems to be open: what carries it may
        have been lost on one way (a router that forgot it), while the others hear the leader well."""
        settings, silent = self._node.settings, 0
        silence_s = max(settings.suspect_after_s, 2 * settings.peer_heartbeat_s)
        greeted_by = trio.current_time() + settings.handshake_s
        while True:
            patience = trio.current_time() + silence_s if machine.met else greeted_by
            with trio.move_on_at(patience) as quiet:
                message = decode(await connection.receive(), PEER, None)
            if quiet.cancelled_caught:
                silent += 1
                if not machine.met:
                    return
                # Whoever was itself stopped finds only now what came meanwhile: it waits once more.
                if silent == SILENCES:
                    raise ConnectionLost(f"nothing came for {silent * silence_s:g} s")
                continue
            silent = 0
            for effect in machine.received(message):
                if not self._perform(effect, record, machine, queue):
                    return

    async def _write(self, connection: Connection, queue: Outgoing) -> None:
        node, self._beat_at = self._node, trio.current_time()
        while True:
            message: AnyMessage | None = None
            if trio.current_time() >= self._beat_at:
                self._beat_at = trio.current_time() + node.settings.peer_heartbeat_s
                message = node.beat()
            message = message or queue.take()
            if message is None:
                await queue.wait(self._beat_at)
            else:
                await _send(connection, message, node.settings.stall_after_s)

    def _perform(self, effect: Effect, record: LeaderRecord, machine: FollowerEnd, queue: Outgoing) -> bool:
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
                self._leader = FarLeader(name, epoch, term, machine, queue, node.settings.leader_queue_bytes)
                node.far_leader(self._leader)
            case LeadsNoMore():
                self._lose()
            case BeginWindow(at):
                node.begin_window(at)
            case Visible(entries):
                try:
                    node.visible(entries)
                except ValueError as error:
                    # Other bytes under seqs that are known: this history is not mine.
                    return self._perform(Broken(str(error), foreign_log=True), record, machine, queue)
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
    await _Served(connection, hello, node).run()


class _Served:
    """One follower's link, at the leader's end.

    One task reads, and never waits for the leader or the log: what the follower's heartbeats say is wanted most while
    these are slow. Another one brings batches to the leader, each Open has a task of its own, and one writes.
    """

    def __init__(self, connection: Connection, hello: PeerHello, node: Node) -> None:
        self._connection = connection
        self._node = node
        self._hello = hello
        self._lineage = node.log.lineage
        self._end: LeaderEnd | None = None
        self._queue = Outgoing()
        self._intake = Intake(node.settings.leader_queue_bytes)
        self._prefix = f"{hello.name}/{hello.process}/{id(connection)}"
        self._channels: dict[int, tuple[Leader, str]] = {}
        self._opening: dict[int, trio.CancelScope] = {}

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._check_hello)
                nursery.start_soon(self._bring)
                nursery.start_soon(self._wake_on_change)
                nursery.start_soon(self._write)
                await self._read(nursery)
        finally:
            for leader, channel in self._channels.values():
                leader.close(channel)

    async def _check_hello(self) -> None:
        """Entries are sent once it is known that the follower's log is mine."""
        node, tail = self._node, self._hello.tail
        while tail is not None:
            try:
                with trio.fail_after(node.settings.log_timeout_s):
                    look = await node.log.look()
            except (LogUnavailable, trio.TooSlowError):
                await trio.sleep(node.settings.log_look_s)
                continue
            refusal = look.check(tail)
            if refusal is not None and refusal.code != "position-too-old":
                self._queue.put(Fault("other-lineage", str(refusal), False))
                return
            break
        self._end = LeaderEnd(tail if tail is None or tail.lineage == self._lineage else None)
        self._queue.wake.set()

    # ---- sending

    async def _wake_on_change(self) -> None:
        while True:
            await self._node.changed.wait()
            self._queue.wake.set()

    async def _write(self) -> None:
        node, settings, queue = self._node, self._node.settings, self._queue
        said: tuple[int, str] | None = None
        due = trio.current_time()
        while True:
            message: AnyMessage | None = None
            changed, now = node.serving() != said, trio.current_time()
            if changed:
                # The answers of a term that has ended leave before the beat that says so: after it they count no more.
                message = queue.take()
            if message is None and (changed or now >= due):
                said, due = node.serving(), now + settings.peer_heartbeat_s
                message = node.beat()
                self._forget_lost()
            message = message or queue.take() or self._entries()
            if message is None:
                await queue.wait(due)
            else:
                await _send(self._connection, message, settings.stall_after_s)

    def _forget_lost(self) -> None:
        """Channels of terms that are over are not closed by the follower: nobody is there to be told."""
        for number in [number for number, (leader, _) in self._channels.items() if leader.lost.is_set()]:
            del self._channels[number]

    def _entries(self) -> Entries | None:
        """What the follower's window wants next."""
        window = self._node.window
        after = None if self._end is None else self._end.next_after(window.floor, window.tail, self._lineage)
        entries = None if after is None else window.after(after.seq, self._node.settings.frame_bytes_aim)
        if self._end is None or after is None or entries is None:
            return None
        self._end.sent(entries, self._lineage)
        return Entries(after, tuple(entries))

    # ---- receiving

    async def _read(self, nursery: trio.Nursery) -> None:
        node = self._node
        while True:
            with trio.move_on_after(node.settings.heartbeat_dead_s) as dead:
                message = decode(await self._connection.receive(), PEER, None)
            if dead.cancelled_caught:
                raise ConnectionLost("the follower sent nothing for too long")
            match message:
                case PeerBeat():
                    node.evidence.follower_beat(message)
                case PeerOpen(number, request):
                    nursery.start_soon(self._open, number, request)
                case PeerPublish(number, publisher, incarnation, body):
                    if number in self._channels:
                        batch = Batch(publisher, incarnation, body.after, body.number, body.sizes, body.payload)
                        await self._intake.put(number, batch)
                case PeerClose(number):
                    self._close(number)
                case _:
                    raise ConnectionLost(f"a follower does not send {message.TYPE}")

    def _close(self, number: int) -> None:
        self._intake.drop(number)
        opening = self._opening.pop(number, None)
        if opening is not None:
            opening.cancel()
        known = self._channels.pop(number, None)
        if known is not None:
            known[0].close(known[1])

    async def _open(self, number: int, request: Open) -> None:
        node = self._node
        leader, channel = node.near_leader(), f"{self._prefix}/{number}"
        with trio.CancelScope() as scope:
            self._opening[number] = scope
            try:
                if leader is None:
                    raise NotCurrent(f"instance {node.instance} does not lead feed {node.name} now")
                opened = await leader.open(request, channel)
            except ChangefeedError as error:
                self._queue.put(PeerOpened(number, None, fault_of(error)))
            else:
                self._channels[number] = (leader, channel)
                self._queue.put(PeerOpened(number, opened, None))
            finally:
                self._opening.pop(number, None)

    async def _bring(self) -> None:
        """Bring batches to the leader, waiting for its room. One whose term is over is dropped: the beat that says so
        travels ahead, and it will be sent again."""
        while True:
            number, batch = await self._intake.next()
            known = self._channels.get(number)
            if known is not None:
                leader, channel = known
                try:
                    await leader.publish(channel, batch, partial(self._answered, number))
                except NotCurrent:
                    continue

    def _answered(self, number: int, answer: Answer) -> None:
        self._queue.put(PeerAnswer(number, answer))


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
