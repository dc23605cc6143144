"""A log small enough to be obviously right, and the frames that a server may make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from changefeed.change import Change, Event, Position
from changefeed.wire.changes import encode_change
from changefeed.wire.messages import Events, Limits, Run, Start, Subscribed

LINEAGE = "0123456789abcdef"
LIMITS = Limits(2**20, 2**23, 9 * 2**20, 16, 10.0, 25.0)


@dataclass(frozen=True)
class Row:
    """One event of the log: group is the seq of its group's first event."""

    seq: int
    group: int
    epoch: int
    data: bytes
    id: str


def term(epoch: int) -> str:
    return f"{epoch:08x}"


@dataclass
class ModelFeed:
    """rows[i] has seq i + 1."""

    lineage: str = LINEAGE
    rows: list[Row] = field(default_factory=list)

    def append(self, size: int, epoch: int) -> None:
        """A group of `size` events."""
        first = len(self.rows) + 1
        for seq in range(first, first + size):
            change = Change("vm", f"id-{seq}", "update", None, {"seq": seq})
            self.rows.append(Row(seq, first, epoch, encode_change(change, 2**20), f"id-{seq}"))

    @property
    def head(self) -> int:
        return len(self.rows)

    def position(self, seq: int) -> Position:
        if seq == 0:
            return Position.beginning(self.lineage)
        row = self.rows[seq - 1]
        return Position(self.lineage, row.epoch, term(row.epoch), seq)

    def group_end(self, seq: int) -> int:
        """The end of the group that holds seq (0: 0)."""
        end = seq
        while 0 < end < self.head and self.rows[end].group == self.rows[seq - 1].group:
            end += 1
        return end

    def group_start(self, seq: int) -> int:
        """The seq before the first event of the group that `seq` lies inside of; seq itself at a group's end."""
        if seq == 0 or self.group_end(seq) == seq:
            return seq
        return self.rows[seq - 1].group - 1

    def place(self, start: Start, groups: bool) -> int:
        """Where a subscription that starts so stands."""
        if start.position is not None:
            return self.group_start(start.position.seq) if groups else start.position.seq
        return self.head if start.at == "now" else 0

    def subscribed(self, seq: int) -> Subscribed:
        return Subscribed("vmapi", "a", "p", self.position(seq), self.position(self.head), "a", 1, LIMITS)

    def frame(self, after: int, to: int, wanted: Callable[[Row], bool] = lambda row: True) -> Events:
        """The events of (after, to] that are wanted; `to` should be a group's end."""
        rows = [row for row in self.rows[after:to] if wanted(row)]
        runs: list[Run] = []
        while rows:
            epoch = rows[0].epoch
            part = [row for row in rows if row.epoch == epoch]
            rows = [row for row in rows if row.epoch != epoch]
            runs.append(run_of_rows(part))
        return Events(after, self.position(to), tuple(runs))


def run_of_rows(rows: Sequence[Row]) -> Run:
    seqs = tuple(row.seq for row in rows)
    dense = seqs[-1] - seqs[0] == len(seqs) - 1
    groups: list[tuple[int, int]] = []
    for row in rows:
        if groups and groups[-1][0] == row.group:
            groups[-1] = (row.group, groups[-1][1] + 1)
        else:
            groups.append((row.group, 1))
    payload = b"".join(row.data for row in rows)
    epoch = rows[0].epoch
    return Run(epoch, term(epoch), 1000 + epoch, "p", seqs[0] if dense else seqs, tuple(groups), payload)


def seqs(events: Sequence[Event]) -> list[int]:
    return [event.seq for event in events]
