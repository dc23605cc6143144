"""One direction of a simulated stream: what its writer's kernel, the network and its reader's kernel do to bytes."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import trio

if TYPE_CHECKING:
    from changefeed.simulation.stack.streams import StreamNetwork

NEVER: Final = float("inf")

Ending = Literal["reset", "end", "silence"]


@dataclass(frozen=True, slots=True)
class Weather:
    """How a run's network is. latency_s: of the slowest of drawn ways (most are much faster). bytes_s: what a way
    carries. buffer_bytes: what both kernels hold, each way. splits: up to so many cuts in what is written at once.
    short_reads: how often a read gives fewer bytes than have arrived."""

    latency_s: float = 0.002
    bytes_s: float = 10e6
    buffer_bytes: int = 64 * 1024
    splits: int = 2
    short_reads: float = 0.1


class Flow:
    """One direction of a stream: bytes on their way from its writer to its reader.

    pieces: (due, bytes), in order; fin_due, reset_due: when the writer's end or reset arrives. held_at: since when
    nothing arrives any more; deaf: nobody is there to take what arrives, or to answer.
    """

    opposite: Flow

    def __init__(self, network: StreamNetwork, seed: str) -> None:
        self.pieces: deque[tuple[float, bytes]] = deque()
        self.unread = 0  # bytes in pieces
        self.owed = 0  # bytes that were read, which the writer does not know of
        self.vanished = 0  # bytes that nobody will ever take
        self.fin_due = self.reset_due = NEVER
        self.reset_loses = False
        self.held_at: float | None = None
        self.deaf = False
        self.finished = False  # its writer sends nothing more
        self.left: int | None = None  # so many bytes more get through, then `then` happens
        self.then: Ending = "silence"
        self.readable = trio.Event()
        self.writable = trio.Event()
        self.chance = random.Random(seed)
        self.network = network
        self.weather = network.weather
        self._clear_at = 0.0
        self._last_due = 0.0

    # ---- time

    def latency(self) -> float:
        return 0.00005 + (self.weather.latency_s + self.network.extra_latency_s) * self.chance.random() ** 3

    def arrival(self, size: int = 0) -> float:
        """When what is sent now arrives; never before what was sent earlier."""
        self._clear_at = max(self._clear_at, trio.current_time()) + size / self.weather.bytes_s
        self._last_due = max(self._last_due, self._clear_at + self.latency())
        return self._last_due

    def reached(self, due: float) -> bool:
        return due <= (trio.current_time() if self.held_at is None else self.held_at)

    def hold(self) -> None:
        if self.held_at is None:
            self.held_at = trio.current_time()

    def release(self) -> None:
        """What was lost is sent again."""
        if self.held_at is None:
            return
        since, self.held_at = self.held_at, None
        again = trio.current_time() + self.latency()
        self.pieces = deque((due if due <= since else max(due, again), data) for due, data in self.pieces)
        if self.fin_due > since:
            self.fin_due = max(self.fin_due, again)
        if self.reset_due > since:
            self.reset_due = max(self.reset_due, again)
        self._last_due = max(self._last_due, again)
        self.ring()

    def ring(self) -> None:
        """Wake its reader and its writer."""
        for event in (self.readable, self.writable):
            event.set()
        self.readable, self.writable = trio.Event(), trio.Event()

    # ---- the writer's side

    @property
    def room(self) -> int:
        return max(0, self.weather.buffer_bytes - self.unread - self.owed - self.vanished)

    def put(self, data: bytes) -> None:
        """Take bytes, cut into pieces that arrive one after the other."""
        if self.deaf:
            self.vanished += len(data)
            return
        if self.left is not None:
            self.vanished += max(0, len(data) - self.left)
            data = data[: self.left]
            self.left -= len(data)
        splits = self.chance.randint(0, self.weather.splits) if self.weather.splits else 0
        cuts = sorted(self.chance.randint(1, len(data)) for _ in range(splits)) if len(data) > 1 else []
        start = 0
        for cut in (*cuts, len(data)):
            if cut > start:
                self.pieces.append((self.arrival(cut - start), data[start:cut]))
                self.unread += cut - start
                start = cut
        if self.left == 0:
            self.left = None
            self.break_off()
        self.readable.set()
        self.readable = trio.Event()

    def break_off(self) -> None:
        """Somebody between the two does it: only what was sent until now arrives."""
        match self.then:
            case "reset":
                self.reset()
                self.opposite.reset()
            case "end":
                self.fin_due = min(self.fin_due, self.arrival())
        self.deaf = True

    def drop_some(self) -> None:
        """Of what is under way, only a drawn part arrives."""
        under_way = sum(len(data) for due, data in self.pieces if not self.reached(due))
        lost = self.chance.randint(0, under_way)
        while lost:
            due, data = self.pieces.pop()
            keep = data[: max(0, len(data) - lost)]
            lost -= len(data) - len(keep)
            self.unread -= len(data) - len(keep)
            if keep:
                self.pieces.append((due, keep))

    def reset(self, delay_s: float = 0.0) -> None:
        """A reset is sent. Whether its reader's kernel still gives out what has arrived differs."""
        self.deaf = True
        self.reset_due = min(self.reset_due, max(self.arrival(), trio.current_time() + delay_s))
        self.reset_loses = self.chance.random() < 0.5
        self.ring()

    # ---- the reader's side

    def take(self, max_bytes: int | None) -> bytes:
        """What has arrived, or some of it; nothing if nothing has."""
        if self.reset_loses and self.reached(self.reset_due):
            self.forget()
        limit = 2**30 if max_bytes is None else max_bytes
        if self.pieces and self.weather.short_reads and self.chance.random() < self.weather.short_reads:
            limit = min(limit, self.chance.randint(1, 20))
        taken, size = [], 0
        while self.pieces and size < limit and self.reached(self.pieces[0][0]):
            due, data = self.pieces.popleft()
            if size + len(data) > limit:
                self.pieces.appendleft((due, data[limit - size :]))
                data = data[: limit - size]
            taken.append(data)
            size += len(data)
        self.unread -= size
        self.owed += size
        return b"".join(taken)

    def forget(self) -> None:
        self.pieces.clear()
        self.unread = 0

    def next_due(self) -> float:
        """When something will be there to read, as far as is known."""
        if self.held_at is not None:
            return NEVER
        return min(self.pieces[0][0] if self.pieces else NEVER, self.fin_due, self.reset_due)
