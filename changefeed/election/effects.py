"""What the election machine asks its driver to do. Pure values.

An `Effect` without an id is done at once, in the order given. A `Request` is begun at once and answered later, by one
`did_…` or `failed` fact that carries its id; requests of different slots run side by side, and at most one request of a
slot is in flight, so that a slow coordinator delays no look into the log, and neither delays a heartbeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from changefeed.coordination import LeaderRecord, View
from changefeed.log import Fence, Look


@dataclass(frozen=True, slots=True)
class Effect:
    """Something that the driver does before it looks at the next one."""


@dataclass(frozen=True, slots=True)
class StartTerm(Effect):
    """Begin to serve under this fence; `look` was taken after it."""

    fence: Fence
    look: Look
    why: str


@dataclass(frozen=True, slots=True)
class EndTerm(Effect):
    """Stop the running term at once: nothing more is answered."""

    epoch: int
    why: str


@dataclass(frozen=True, slots=True)
class Follow(Effect):
    """Point the link to this leader; None: there is nobody to follow."""

    record: LeaderRecord | None


@dataclass(frozen=True, slots=True)
class HandedOver(Effect):
    """The planned handover is over; `how`: "fenced" (the successor has the log), "resigned", "nothing-to-hand-over",
    "overtaken" or "gave-up" (the coordinator could not be told)."""

    how: str


@dataclass(frozen=True, slots=True)
class Request(Effect):
    """id: grows with each request of this machine."""

    SLOT: ClassVar[str] = ""
    id: int


@dataclass(frozen=True, slots=True)
class Read(Request):
    """A synced view of the coordinator -> did_read."""

    SLOT: ClassVar[str] = "read"


@dataclass(frozen=True, slots=True)
class Write(Request):
    """A compare-and-set on the coordinator, or a change of my record -> did_write. One at a time."""

    SLOT: ClassVar[str] = "write"


@dataclass(frozen=True, slots=True)
class Take(Write):
    """Become leader where nobody is; `seen` comes from a synced read."""

    seen: View
    why: str


@dataclass(frozen=True, slots=True)
class Challenge(Write):
    """Replace the leader of `seen`: the view under which the suspect's epoch was read. clean: it handed over."""

    seen: View
    why: str
    clean: bool


@dataclass(frozen=True, slots=True)
class RaiseEpoch(Write):
    """The coordinator is behind the log: lift its epoch to the log's."""

    seen: View
    epoch: int


@dataclass(frozen=True, slots=True)
class MarkLeaving(Write):
    epoch: int
    successor: str


@dataclass(frozen=True, slots=True)
class Resign(Write):
    epoch: int


@dataclass(frozen=True, slots=True)
class ListMembers(Request):
    """Who is here -> did_list."""

    SLOT: ClassVar[str] = "members"


@dataclass(frozen=True, slots=True)
class LookLog(Request):
    """A look into the log -> did_look. renew: (epoch, term) of my running term, whose fence is stamped as alive."""

    SLOT: ClassVar[str] = "look"
    renew: tuple[int, str] | None


@dataclass(frozen=True, slots=True)
class FenceLog(Request):
    """Fence the log -> did_fence."""

    SLOT: ClassVar[str] = "fence"
    fence: Fence
    why: str
    clean: bool


@dataclass(frozen=True, slots=True)
class AskMembers(Request):
    """When did the other members last hear that leader? -> did_ask."""

    SLOT: ClassVar[str] = "ask"
    record: LeaderRecord


@dataclass(frozen=True, slots=True)
class KillHolder(Request):
    """Kill the process named by that fence if it is frozen, of this machine and not me -> did_kill."""

    SLOT: ClassVar[str] = "kill"
    holder: Fence


@dataclass(frozen=True, slots=True)
class FinishTerm(Request):
    """Let the running term append and answer what it took, and take no more -> did_finish."""

    SLOT: ClassVar[str] = "finish"
