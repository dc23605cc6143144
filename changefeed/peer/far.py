"""The queues of a link, and the leader that a follower sees through it."""

from __future__ import annotations

from collections import deque

import trio

from changefeed.batch import ENTRY_OVERHEAD, Batch
from changefeed.errors import NotCurrent
from changefeed.leader import Answered
from changefeed.peer.machine import FollowerEnd, OpenSettled, Settled
from changefeed.signal import Changed
from changefeed.wire.faults import error_of
from changefeed.wire.messages import AnyMessage, Open, Opened, PeerClose, PeerOpen, PeerPublish, Publish


def weight(batch: Batch) -> int:
    """What a batch counts towards `leader_queue_bytes`."""
    return len(batch.payload) + ENTRY_OVERHEAD


class Outgoing:
    """Messages that wait to be sent over one link. What may be put is bounded by who puts it: batches by the bytes
    that have no answer yet, answers by the batches."""

    def __init__(self) -> None:
        self._messages: deque[AnyMessage] = deque()
        self.wake = trio.Event()

    def put(self, message: AnyMessage) -> None:
        self._messages.append(message)
        self.wake.set()

    def take(self) -> AnyMessage | None:
        """The next message, if there is one."""
        return self._messages.popleft() if self._messages else None

    async def wait(self, deadline: float) -> None:
        """Until something was put (or `wake` was set), or the deadline."""
        with trio.move_on_at(deadline):
            await self.wake.wait()
        if not self._messages:
            self.wake = trio.Event()


class Intake:
    """The leader's end: batches that came over one link and wait for room at the leader, in order.

    A follower keeps its unanswered batches below the same bound, so that the reading of the link, and with it the
    follower's heartbeats, never waits for a leader that is full.
    """

    def __init__(self, bytes_max: int) -> None:
        self._batches: deque[tuple[int, Batch]] = deque()
        self._bytes = 0
        self._bytes_max = bytes_max
        self._changed = Changed()

    async def put(self, channel: int, batch: Batch) -> None:
        """Take a batch in; waits only for a follower that does not keep to the bound."""
        while self._batches and self._bytes + weight(batch) > self._bytes_max:
            await self._changed.wait()
        self._batches.append((channel, batch))
        self._bytes += weight(batch)
        self._changed.notify()

    async def next(self) -> tuple[int, Batch]:
        while not self._batches:
            await self._changed.wait()
        channel, batch = self._batches.popleft()
        self._bytes -= weight(batch)
        self._changed.notify()
        return channel, batch

    def drop(self, channel: int) -> None:
        """That channel's publisher has gone: nobody waits for an answer, and it may send these again elsewhere."""
        self._batches = deque(item for item in self._batches if item[0] != channel)
        self._bytes = sum(weight(batch) for _, batch in self._batches)
        self._changed.notify()


class FarLeader:
    """A leader at the other end of a link; see leader.Leader for the contract."""

    def __init__(
        self, name: str, epoch: int, term: str, machine: FollowerEnd, queue: Outgoing, unanswered_bytes_max: int
    ) -> None:
        self.name = name
        self.epoch = epoch
        self.term = term
        self.lost = trio.Event()
        self._machine = machine
        self._queue = queue
        self._numbers: dict[str, int] = {}
        #: Per channel, what has no answer yet: whom to tell, and the bytes.
        self._unanswered: dict[int, deque[tuple[Answered, int]]] = {}
        self._bytes = 0
        self._bytes_max = unanswered_bytes_max
        self._room = Changed()
        self._gate = trio.StrictFIFOLock()
        self._opens: dict[int, trio.MemorySendChannel[OpenSettled]] = {}

    async def open(self, request: Open, channel: str) -> Opened:
        if self.lost.is_set():
            raise NotCurrent("the leader was lost; ask again")
        self.close(channel)
        number = self._numbers[channel] = self._machine.open_sent()
        self._unanswered[number] = deque()
        send, receive = trio.open_memory_channel[OpenSettled](1)
        self._opens[number] = send
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
        if self._gate.locked() or not self._fits(batch):
            async with self._gate:  # in the order of arrival: a large batch is not overtaken for ever by small ones
                while not self._fits(batch):
                    await self._room.wait()
        if self.lost.is_set() or number is None or self._numbers.get(channel) != number:
            raise NotCurrent("the leader was lost; open again")
        self._unanswered[number].append((answered, weight(batch)))
        self._bytes += weight(batch)
        self._machine.publish_sent(number, batch.number)
        body = Publish(batch.after, batch.number, batch.sizes, batch.payload)
        self._queue.put(PeerPublish(number, batch.publisher, batch.incarnation, body))

    def _fits(self, batch: Batch) -> bool:
        return self.lost.is_set() or not self._bytes or self._bytes + weight(batch) <= self._bytes_max

    def close(self, channel: str) -> None:
        number = self._numbers.pop(channel, None)
        if number is not None and not self.lost.is_set():
            self._bytes -= sum(size for _, size in self._unanswered.pop(number, ()))
            self._machine.channel_closed(number)
            self._queue.put(PeerClose(number))
            self._room.notify()

    def open_settled(self, effect: OpenSettled) -> None:
        send = self._opens.pop(effect.channel, None)
        if send is not None:
            send.send_nowait(effect)
            send.close()

    def settled(self, effect: Settled) -> None:
        waiting = self._unanswered.get(effect.channel)
        if waiting:
            answered, size = waiting.popleft()
            self._bytes -= size
            self._room.notify()
            answered(effect.answer)

    def lose(self) -> None:
        """Nothing more will be answered."""
        self.lost.set()
        self._unanswered.clear()
        self._room.notify()
        for send in self._opens.values():
            send.close()
        self._opens.clear()
