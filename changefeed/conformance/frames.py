"""The feed that is played: its positions and frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from changefeed.change import Change, Position
from changefeed.settings import MIB
from changefeed.wire.changes import encode_change
from changefeed.wire.messages import Events, Run

FEED: Final = "conformance"
LINEAGE: Final = "5e1d3c7a90b24f68"
EPOCH: Final = 7
TERM: Final = "c0ffee42"
#: The term in office after a failover.
LATER: Final = (9, "0badf00d")
TIME: Final = 1_767_268_800_000
#: Announced to the client, in seconds; short, so that grading takes little time.
HEARTBEAT_S: Final = 0.5
DEAD_S: Final = 2.5


def at(seq: int, epoch: int = EPOCH, term: str = TERM) -> Position:
    """The position of an event."""
    return Position(LINEAGE, epoch, term, seq) if seq else Position.beginning(LINEAGE)


def run_of(
    *seqs: int,
    size: int = 0,
    epoch: int = EPOCH,
    term: str = TERM,
    groups: tuple[tuple[int, int], ...] | None = None,
    ids: Mapping[int, str] | None = None,
) -> Run:
    """Events with these seqs; ids: those that are not "id-SEQ". size: bytes of each body."""
    body = {"n": "x" * size} if size else None
    names = {seq: f"id-{seq}" for seq in seqs} | dict(ids or {})
    payload = b"".join(encode_change(Change("thing", names[seq], "update", None, body), MIB) for seq in seqs)
    dense = tuple(range(seqs[0], seqs[0] + len(seqs))) == seqs
    return Run(epoch, term, TIME, "script", seqs[0] if dense else seqs, groups, payload)


def frame(after: int, to: int, *seqs: int, size: int = 0, ids: Mapping[int, str] | None = None) -> Events:
    """A frame of (after, to] with these events, all of one term; without any it is a bookmark."""
    return Events(after, at(to), (run_of(*seqs, size=size, ids=ids),) if seqs else ())
