"""A publisher's groups and batches, and what its machine asks the driver to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from changefeed.change import Position, Receipt
from changefeed.errors import ChangefeedError
from changefeed.wire.messages import Answer

#: What a kept group costs beside its payload, in bytes: counted towards `publisher_buffer_bytes`.
GROUP_OVERHEAD: Final = 200


class Group:
    """The changes of one submit. `handle` is the driver's; everything else is the machine's.

    number: of the first change (0: not numbered yet). size: bytes of its changes. payload: its changes, empty while a
    batch holds them. alone: wants a batch of its own. answer, offset: where it was stored. error: how it ended else.
    """

    __slots__ = ("alone", "answer", "count", "error", "handle", "number", "offset", "payload", "settled", "size")

    def __init__(self, count: int, payload: bytes) -> None:
        self.count = count
        self.payload = payload
        self.size = len(payload)
        self.number = 0
        self.alone = False
        self.settled = False
        self.answer: Answer | None = None
        self.offset = 0
        self.error: ChangefeedError | None = None
        self.handle: Any = None

    @property
    def bytes(self) -> int:
        return self.size + GROUP_OVERHEAD

    @property
    def receipt(self) -> Receipt | None:
        """Where it was stored; None if it was not (or it is not known where)."""
        at = None if self.answer is None else self.answer.first
        if self.answer is None or at is None:
            return None
        first = Position(at.lineage, at.epoch, at.term, at.seq + self.offset)
        last = first if self.count == 1 else Position(at.lineage, at.epoch, at.term, first.seq + self.count - 1)
        return Receipt(first, last, self.answer.repeated)


class Batch:
    """Groups with consecutive numbers, sealed. after: the number that it chains to.

    doubtful: a copy was sent on a connection that ended before it was answered.
    """

    __slots__ = ("after", "count", "doubtful", "groups", "number", "payload", "sizes")

    def __init__(self, groups: list[Group], doubtful: bool = False) -> None:
        self.groups = groups
        self.number = groups[0].number
        self.sizes = tuple([group.count for group in groups])
        self.count = sum(self.sizes)
        self.payload = groups[0].payload if len(groups) == 1 else b"".join([group.payload for group in groups])
        self.after = self.number - 1
        self.doubtful = doubtful
        for group in groups:
            group.payload = b""

    @property
    def last_number(self) -> int:
        return self.number + self.count - 1

    def unseal(self) -> list[Group]:
        """The groups with their changes again; the batch is of no use afterwards."""
        end = 0
        for group in self.groups:
            start, end = end, end + group.size
            group.payload = self.payload[start:end]
        return self.groups


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The leader took us in: what waits can be sent."""


@dataclass(frozen=True, slots=True)
class Settled:
    """These groups have their outcome; there may be room for others."""

    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave this connection and open another one. final: this server said no for good."""

    error: ChangefeedError
    final: bool = False


@dataclass(frozen=True, slots=True)
class Go:
    """Leave this connection after `delay_s` and prefer these servers."""

    servers: tuple[str, ...]
    delay_s: float


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise this once to the application."""

    error: ChangefeedError


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nothing is sent any more; each further submit raises this."""

    error: ChangefeedError


Effect = Welcomed | Settled | Leave | Go | Raise | Stopped
