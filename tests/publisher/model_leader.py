"""A leader small enough to be obviously right: it stores each number of an incarnation once, and says so again."""

from __future__ import annotations

from dataclasses import dataclass, field

from changefeed.change import Change, Position
from changefeed.settings import Settings
from changefeed.wire.changes import decode_change, split
from changefeed.wire.messages import Answer, Fault, Limits, Open, Opened, Publish

LINEAGE = "0123456789abcdef"
TERM = "aaaaaaaa"

LIMITS = Limits(2**20, 2**23, 9 * 2**20, 16, 10.0, 25.0)


def position(seq: int, epoch: int = 1, lineage: str = LINEAGE) -> Position:
    return Position(lineage, epoch, TERM, seq) if seq else Position.beginning(lineage)


def change(id: str, resource: str = "vm", body: object = None) -> Change:
    return Change(resource, id, "update", None, body)


def settings(**changed: float) -> Settings:
    return Settings(**changed)  # type: ignore[arg-type]


@dataclass
class ModelLeader:
    """The leader of one publisher process and its log. log[i] is the change with seq i + 1; resource "bad" is refused.

    newest: publisher id -> incarnation. last: incarnation -> the last number stored. stored: (incarnation, number) ->
    seq and bytes. entry: (incarnation, number) -> the first number of the batch that brought it. Incarnations are
    numbers of the feed, so one tells its publisher.
    """

    full: bool = False
    log: list[Change] = field(default_factory=list)
    given: int = 0
    newest: dict[str, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    stored: dict[tuple[int, int], tuple[int, bytes]] = field(default_factory=dict)
    entry: dict[tuple[int, int], int] = field(default_factory=dict)
    in_flight_max: int = 16

    def open(self, request: Open) -> Opened | Fault:
        known = self.newest.get(request.publisher)
        if request.incarnation is None and (known is None or not request.named):
            self.given += 1
            known = self.newest[request.publisher] = self.given
            self.last[known] = 0
        elif request.incarnation not in (None, known):
            last = self.last.get(request.incarnation or 0, 0)
            return Fault("superseded", "a newer one is open", False, {"last_number": last})
        assert known is not None
        limits = Limits(2**20, 2**23, 9 * 2**20, self.in_flight_max, 10.0, 25.0)
        return Opened(request.feed, "a", "p", "a", 1, known, self.last[known], limits)

    def publish(self, publisher: str, incarnation: int, message: Publish) -> Answer:
        changes = split(message.payload)
        count = len(changes)
        number, end = message.number, message.number + count - 1

        def refuse(code: str) -> Answer:
            return Answer(number, count, None, False, code, code, {"last_number": self.last[incarnation]})

        if incarnation != self.newest[publisher]:
            return refuse("superseded")
        held = [self.stored.get((incarnation, n)) for n in range(number, end + 1)]
        if any(one is not None for one in held) or end <= self.last[incarnation]:
            same = all(one is not None and one[1] == data for one, data in zip(held, changes, strict=True))
            part = self._in_one_entry(incarnation, message)
            if end <= self.last[incarnation] and 0 < part < count:
                same = all(one[1] == data for one, data in zip(held[:part], changes, strict=False) if one is not None)
                count = part
            if held[0] is None:
                return refuse("number-skipped")
            if not same:
                return refuse("number-reused")
            return Answer(number, count, position(held[0][0]), True)
        if message.after != self.last[incarnation]:
            return refuse("number-gap")
        decoded = [decode_change(data) for data in changes]
        if any(one.resource == "bad" for one in decoded):
            return refuse("unknown-resource")
        if self.full:
            return refuse("log-full")
        first = len(self.log) + 1
        self.log += decoded
        for index, data in enumerate(changes):
            self.stored[incarnation, number + index] = (first + index, data)
            self.entry[incarnation, number + index] = number
        self.last[incarnation] = end
        return Answer(number, count, position(first))

    def _in_one_entry(self, incarnation: int, message: Publish) -> int:
        """How many of its changes are in the batch that brought the first one, up to the end of a group."""
        entry, count = self.entry.get((incarnation, message.number)), 0
        for size in message.sizes:
            numbers = range(message.number + count, message.number + count + size)
            if any(self.entry.get((incarnation, n)) != entry for n in numbers):
                break
            count += size
        return count
