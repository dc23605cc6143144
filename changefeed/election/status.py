"""What a person may ask of an election: one frozen value. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["following", "candidate", "fencing", "leading", "leaving", "stopped", "broken"]


@dataclass(frozen=True, slots=True)
class ElectionEvent:
    """One thing that happened. time: wall milliseconds here. who: an instance's name, "" where nobody is meant."""

    time: int
    epoch: int
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class ElectionStatus:
    """The election of one feed as this instance sees it.

    role: what this instance does. "broken": the log is damaged or was replaced; it neither serves nor contends.
    epoch, term: of the term that I serve or fence, else of the leader that I know (term "" where it is not known).
    leader, url, process: the leader that I know; "" for none. why: why that leader leads ("" if not known).
    since: wall ms from which on this leader (or its absence) has been known here.
    connected: the coordinator can be asked now. coordinator: its random id.
    log_ok: the log answered within `log_timeout_s`. log_slow_s: for how long a look has been waiting (0: none waits).
    hindrance: why this instance does not contend: "" (it would), "not-a-candidate", "log-unanswered",
        "two-coordinators", "log-format-unknown", "leaving", "too-many-elections", or an error's code ("log-damaged" …).
    leaving, successor: a planned handover is on its way, and to whom ("": nobody was asked).
    kills: frozen holders of the log's lock that this instance had to kill.
    notes: short sentences for people, the worst first. events: the last 64, oldest first.
    """

    feed: str
    role: Role
    epoch: int
    term: str
    leader: str
    url: str
    process: str
    why: str
    since: int
    connected: bool
    coordinator: str
    log_ok: bool
    log_slow_s: float
    hindrance: str
    leaving: bool
    successor: str
    kills: int
    notes: tuple[str, ...]
    events: tuple[ElectionEvent, ...]

    @property
    def broken(self) -> str:
        """Code of the error that ended this instance's part in the feed, or ""."""
        return self.hindrance if self.role == "broken" else ""

    @property
    def beat_state(self) -> str:
        """What a heartbeat between instances says: "leading", "fencing" or "following"."""
        return self.role if self.role in ("leading", "fencing") else "following"
