"""A publisher's groups and batches, and what its machine asks the driver to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from changefeed.change import Position, Receipt
from changefeed.errors import ChangefeedError
from changefeed.wire.changes import BATCH_CHANGES_MAX
from changefeed.wire.messages import Answer

#: What a kept group costs beside its payload, in bytes: counted towards `publisher_buffer_bytes`.
GROUP_OVERHEAD: Final = 200
#: A publisher that servers of its feed do not understand, so many times in a row, stops instead of trying for ever.
MISUNDERSTOOD_MAX: Final = 10
#: After so many of them it gives up its incarnation: a log that was replaced by an older copy has never given it.
NEVER_GIVEN: Final = 3
#: Numbers stay below this; the wire's positions do too.
NUMBER_MAX: Final = 2**53 - 1


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

    def cut(self, count: int) -> list[Group]:
        """Keep the groups that hold the first `count` changes; returns those after them, with their changes again.
        Empty, and nothing happened, unless a group ends there and another one follows."""
        following = self.number + count
        index = next((i for i, group in enumerate(self.groups) if group.number == following), 0)
        if not index:
            return []
        groups = self.unseal()
        self.groups, rest = groups[:index], groups[index:]
        self.sizes, self.count = self.sizes[:index], count
        self.payload = b"".join([group.payload for group in self.groups])
        for group in self.groups:
            group.payload = b""
        return rest

    def unseal(self) -> list[Group]:
        """The groups with their changes again; the batch is of no use afterwards."""
        end = 0
        for group in self.groups:
            start, end = end, end + group.size
            group.payload = self.payload[start:end]
        return self.groups


class Cut:
    """How many changes to ask for at once of numbers that the log holds, when how an earlier run cut them is not known.

    A leader answers as far as the positions are a run in one term. `most` grows while that is to the end, and follows
    what came back where it is not: a rerun asks about as often as the first run published.
    """

    __slots__ = ("most",)

    def __init__(self) -> None:
        self.most = 1

    def whole(self, count: int) -> None:
        """A batch of so many was answered to its end."""
        self.most = max(self.most, min(2 * count, BATCH_CHANGES_MAX))

    def part(self, count: int) -> None:
        """Of a larger batch only so many were answered."""
        self.most = max(1, count, self.most // 2)


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
