"""Who is here and who should lead. This file is the contract; one conformance suite holds every coordinator to it.

    memory.py     tests and simulations              file.py     one machine, several processes
    zookeeper.py  the only kazoo, seen from trio     zookeeper_recipe.py  a fleet: candidacy, challenge, membership
    urls.py       open_coordinator: which of them a URL means
    records.py    members and leader records as JSON

The coordinator makes leadership *live*; the log makes it *safe*. Two leaders at once must be harmless, so nothing
here needs to be perfect, but it must not lie about three things: an epoch that was taken is never given again
by the same coordinator's data; a compare-and-set with an old version fails; `read` is at least as new as the call.

A *view* of a feed is (epoch, version, leader). Taking the lead, challenging and raising are one compare-and-set on
`version`, so that a challenge names exactly the term that it saw die (review 28): a bad version means "that term is
already over: follow". The version changes exactly when the epoch does: marking a record as leaving, resigning and the
death of a leader leave it alone. It is never equal by chance after the coordinator's data was lost and made anew.

**Sessions.** A coordinator object holds at most one session at a time. When a session is lost the member's nodes go
(leader record, membership) and, when the coordinator can be reached again, a new session joins by itself. A leader
record counts as mine only if its `session` is my present one.

**Cancellation.** Calls that write may or may not have happened; the caller reads again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Member:
    """An instance that takes part. process: random id of the process, new at each start. url: where peers reach it.

    candidate: may lead. feeds: the feeds it takes part in."""

    name: str
    process: str
    url: str
    candidate: bool = True
    feeds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    """The leader as the coordinator knows it. session: opaque id of the session that holds the record.

    leaving: set when the leader hands over; successor: name of the instance asked to take over ("" : none)."""

    name: str
    process: str
    url: str
    epoch: int
    session: str
    leaving: bool = False
    successor: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What the coordinator says of a feed. epoch: 0 before the first. version: opaque, for compare-and-set.

    leader: None if no live session holds the record. Its epoch equals `epoch` unless the epoch was raised since."""

    feed: str
    epoch: int
    version: int
    leader: LeaderRecord | None


@dataclass(frozen=True, slots=True)
class CoordinatorState:
    """For status. connected: the coordinator can be asked now. session_s: the negotiated session time-out, 0 if none.

    id: random id of the coordinator's data ("" while it is not known), another one after that data was lost.
    read_only: the server that answers takes no writes."""

    id: str
    connected: bool
    session: str
    session_s: float
    read_only: bool = False


#: Asks whether a member's process still answers at its URL: the evidence for replacing a name whose session lives on.
Alive = Callable[[Member], Awaitable[bool]]


class Coordinator(Protocol):
    """url: as given."""

    url: str

    async def start(self, member: Member) -> None:
        """Join as `member` and keep the membership until `aclose`. Raises NameTaken if another *live* process holds
        the name (a dead one's is replaced), CoordinatorUnavailable if it cannot be reached within 10 s."""

    def state(self) -> CoordinatorState: ...

    async def read(self, feed: str) -> View:
        """A synced view: at least as new as the call. Raises CoordinatorUnavailable."""

    async def take(self, feed: str, seen: View) -> View | None:
        """Become leader with epoch seen.epoch + 1 if `seen.version` still holds and nobody leads. None: somebody was
        faster. Raises CoordinatorUnavailable (it may have happened: read again, `mine` tells)."""

    async def challenge(self, feed: str, seen: View) -> View | None:
        """Replace the leader of `seen` (also one with no leader record) by me, epoch seen.epoch + 1, if `seen.version`
        still holds. None: that term is already over. Raises CoordinatorUnavailable."""

    async def raise_epoch(self, feed: str, seen: View, epoch: int) -> bool:
        """Set the epoch to `epoch` (> seen.epoch) if `seen.version` still holds; the leader record is left alone.
        For a coordinator that was wiped and is behind the log."""

    async def mark_leaving(self, feed: str, epoch: int, successor: str) -> bool:
        """Mark my record of that epoch as leaving. False if it is not mine any more."""

    async def resign(self, feed: str, epoch: int) -> None:
        """Remove my leader record of that epoch if it is still mine."""

    def mine(self, view: View) -> bool:
        """Whether the view's leader record is of my present session."""

    async def members(self) -> Mapping[str, Member]:
        """The live members by name. Raises CoordinatorUnavailable."""

    async def wait_change(self, feed: str, known: View | None) -> View:
        """Return a view that differs from `known` as soon as there is one (None: at once). Also returns the same view
        when the session changed, so that a lost leadership is noticed. Waits while the coordinator is away."""

    async def aclose(self) -> None:
        """Leave: membership and leader records of this session go at once."""
