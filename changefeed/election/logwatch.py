"""What the looks into the log have told: does it answer, who holds its fence, does it answer others. Pure.

The log is shared. If it is slow for all, moving the leadership helps nobody; if it is slow for me alone and another
answers for it, I must not lead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from changefeed.log import FORMAT, Fence, Look
from changefeed.settings import Settings
from changefeed.wire.messages import PeerBeat

#: A fence of another coordinator that was renewed within this time is alive (review 26).
RENEWED_S: Final = 10.0
#: Reports of followers that are kept; more followers than this report in turn.
REPORTS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Report:
    """What a follower's last heartbeat said. at: when it arrived."""

    at: float
    log_ok: bool
    tail: int
    leaving: bool = False


class LogWatch:
    """look: the newest one, None before the first. number: of the request that brought it; looks may overtake."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.look: Look | None = None
        self.number = 0
        self._answered_at: float | None = None
        self._pending_since: float | None = None
        self._trouble_since: float | None = None
        self._renewed_at = float("-inf")
        self.reports: dict[str, Report] = {}

    # ---- facts

    def begin(self, now: float) -> None:
        self._pending_since = now

    def ok(self, now: float, number: int, look: Look) -> None:
        self._pending_since = None
        self.seen(now, number, look)

    def seen(self, now: float, number: int, look: Look) -> None:
        """A look that was not asked for by `begin` (a fence brings one too)."""
        self._trouble_since = None
        self._answered_at = now
        if number < self.number:
            return
        before = self.look
        if before is not None and before.fence.renewed != look.fence.renewed:
            self._renewed_at = now
        self.look = look
        self.number = number

    def fail(self, now: float) -> None:
        if self._trouble_since is None:
            self._trouble_since = self._pending_since if self._pending_since is not None else now
        self._pending_since = None

    def heard(self, now: float, beat: PeerBeat) -> None:
        self.reports.pop(beat.name, None)
        while len(self.reports) >= REPORTS_MAX:
            self.reports.pop(next(iter(self.reports)))
        self.reports[beat.name] = Report(now, beat.log_ok, 0 if beat.tail is None else beat.tail.seq, beat.leaving)

    # ---- judgement

    @property
    def trouble_since(self) -> float | None:
        """Begin of the oldest look since the last answer that has none yet; None if none is waiting."""
        return self._trouble_since if self._trouble_since is not None else self._pending_since

    def waiting_s(self, now: float) -> float:
        since = self.trouble_since
        return 0.0 if since is None else now - since

    def answers(self, now: float) -> bool:
        """The log answered within log_timeout_s."""
        return self._answered_at is not None and self.waiting_s(now) < self._settings.log_timeout_s

    def mute_at(self) -> float:
        """When the log counts as not answering if nothing comes."""
        since = self.trouble_since
        return float("inf") if since is None else since + self._settings.log_timeout_s

    def answers_others(self, now: float) -> bool:
        """A follower had an answer while I had none.

        A heartbeat says log_ok until the follower's own look has timed out: where the log stalls for all, up to one
        look's interval and time-out after it stopped. Only a heartbeat later than that proves that the log answers.
        """
        since = self.trouble_since
        if since is None:
            return False
        settings = self._settings
        proof = since + settings.log_look_s + settings.log_timeout_s + 2 * settings.peer_heartbeat_s
        return any(report.log_ok and report.at >= proof for report in self.followers(now).values())

    def followers(self, now: float) -> dict[str, Report]:
        """Those heard within suspect_after_s."""
        limit = now - self._settings.suspect_after_s
        return {name: report for name, report in self.reports.items() if report.at >= limit}

    def foreign(self, now: float, wall: int, coordinator: str, process: str) -> Fence | None:
        """The fence, if it was written under another coordinator and its holder lives; None otherwise.

        Wall clocks of two machines may differ, so a stamp that changed under my eyes is alive whatever it says.
        """
        if self.look is None or not coordinator:
            return None
        fence = self.look.fence
        if fence.coordinator in ("", coordinator) or fence.process == process:
            return None
        stamped = abs(wall - fence.renewed) < RENEWED_S * 1000
        return fence if stamped or now - self._renewed_at < RENEWED_S else None

    def unknown_format(self) -> bool:
        return self.look is not None and self.look.fence.format > FORMAT
