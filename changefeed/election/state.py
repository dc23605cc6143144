"""What one process knows of a feed's election, and the few changes that mean something. Pure; part of the machine.

machine.py tells this class what happened and decides what to do next; notes.py tells people.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from changefeed.coordination import LeaderRecord, Member, View
from changefeed.election.effects import Challenge, Effect, EndTerm, StartTerm, Take
from changefeed.election.handover import Handover
from changefeed.election.logwatch import LogWatch
from changefeed.election.pace import Pace
from changefeed.election.requests import Requests
from changefeed.election.status import ElectionEvent, Role
from changefeed.election.suspicion import Suspicion
from changefeed.election.views import Views
from changefeed.errors import Fenced
from changefeed.log import Fence, Look
from changefeed.settings import Settings

EVENTS_MAX: Final = 64


@dataclass(slots=True)
class Term:
    """My running term. number: of the newest request when it began: looks asked for before prove nothing about it."""

    fence: Fence
    why: str
    began: float
    number: int


@dataclass(slots=True)
class Won:
    """An epoch that I won and have not fenced yet. refused: what the log answered, and the number to be newer than."""

    fence: Fence
    why: str
    clean: bool
    since: float
    number: int
    again_at: float = 0.0
    kill_at: float = 0.0
    refused: Fenced | None = None
    refused_number: int = 0


class State:
    """pid, pid_started: written into my fences, so that another process of this machine can find me when I am frozen.
    broken: code of the error that ended my part, "". kills: frozen holders that I had killed.
    """

    def __init__(
        self,
        *,
        feed: str,
        member: Member,
        settings: Settings,
        candidate: bool = True,
        kill_frozen: bool = False,
        pid: int = 0,
        pid_started: int = 0,
    ) -> None:
        self.feed = feed
        self.member = member
        self.settings = settings
        self.candidate = candidate
        self.kill_frozen = kill_frozen
        self.requests = Requests()
        self.views = Views()
        self.log = LogWatch(settings)
        self.suspicion = Suspicion(settings)
        self.pace = Pace(settings)
        self.term: Term | None = None
        self.won: Won | None = None
        self.handover: Handover | None = None
        self.broken = ""
        self.kills = 0
        self.stopped = False
        self.leader_since = 0
        self.events: deque[ElectionEvent] = deque(maxlen=EVENTS_MAX)
        self._pid, self._pid_started = pid, pid_started
        self._why_again = ""  # why my own record has no running term, if I know
        self._discard = -1  # epoch of a record of mine that must go instead of being replaced
        self._look_at = float("-inf")
        self._look_again = float("-inf")
        self._look_needed = -1  # no candidacy before a look with a higher number
        self._recheck_at = float("-inf")
        self._followed: LeaderRecord | None = None
        self._wall_offset = 0.0

    # ---- the driver's side

    @property
    def deadline(self) -> float:
        """When `tick` should be called if nothing else happens."""
        return self.requests.deadline

    def set_wall(self, now: float, wall_ms: int) -> None:
        """Wall time for stamps; called before facts, as often as the driver likes."""
        self._wall_offset = wall_ms - now * 1000.0
        if not self.leader_since:
            self.leader_since = wall_ms

    def wall(self, now: float) -> int:
        return int(self._wall_offset + now * 1000.0)

    def take_effects(self) -> list[Effect]:
        return self.requests.take()

    # ---- what changes

    def _adopt(self, now: float, view: View, mine: bool, number: int) -> None:
        changed = self.views.adopt(now, view, mine, number)
        record = view.leader
        if changed:
            self.leader_since = self.wall(now)
            if record is not None:
                self._event(now, record.epoch, record.name, "named by the coordinator")
        if record is not None and record.process != self.member.process and self.suspicion.watch(now, record):
            self.suspicion.hold(self.pace.silence_after)

    def _win(self, now: float, request: Take | Challenge, epoch: int, term: str) -> None:
        self.pace.won(now, for_silence=request.why in ("silent", "not-serving"))
        self._event(now, epoch, self.member.name, f"won: {request.why}")
        self._why_again = ""
        if self._barred(now):
            self._discard = epoch
            return
        self._end_term(now, "reclaimed")
        member = self.member
        fence = Fence(
            epoch,
            term,
            instance=member.name,
            process=member.process,
            pid=self._pid,
            pid_started=self._pid_started,
            url=member.url,
            coordinator=self.views.id,
            renewed=self.wall(now),
        )
        clean = isinstance(request, Challenge) and request.clean
        self.won = Won(fence, request.why, clean, now, self.requests.number)

    def _start_term(self, now: float, look: Look) -> None:
        won = self.won
        assert won is not None and self.term is None, "a term starts from a won epoch, after the one before has ended"
        self.won = None
        self.term = Term(won.fence, won.why, now, self.requests.number)
        self.leader_since = self.wall(now)
        self._event(now, won.fence.epoch, self.member.name, f"leads: {won.why}")
        self.requests.do(StartTerm(won.fence, look, won.why))

    def _end_term(self, now: float, why: str) -> None:
        if self.term is not None:
            self.requests.do(EndTerm(self.term.fence.epoch, why))
            self._close_term(now, why)

    def _close_term(self, now: float, why: str) -> None:
        term = self.term
        assert term is not None
        self.term = None
        self._event(now, term.fence.epoch, self.member.name, f"ended: {why}")
        self._why_again = why
        if why == "fenced":  # by whom, the coordinator knows
            self.views.doubt()
        lasted = now - term.began
        if self.log.followers(now):
            self.pace.term_heard(lasted)
        self.pace.term_ended(now, lasted, why)
        if self.handover is not None:
            self.handover.term_over(now, why)

    def _break(self, now: float, code: str) -> None:
        """The log cannot be served: never lead again."""
        self.broken = code
        self.won = None
        self._end_term(now, code)
        self._event(now, 0, self.member.name, code)

    def _yield(self, now: float, why: str) -> None:
        """Give up an epoch that I won; its record is resigned, not challenged."""
        assert self.won is not None
        self._event(now, self.won.fence.epoch, self.member.name, f"gave up: {why}")
        self._discard = self.won.fence.epoch
        self.won = None

    def _event(self, now: float, epoch: int, who: str, why: str) -> None:
        self.events.append(ElectionEvent(self.wall(now), epoch, who, why))

    # ---- judgement

    def _barred(self, now: float) -> str:
        """Why I must not lead, "" if I may."""
        if self.broken:
            return self.broken
        if not self.candidate:
            return "not-a-candidate"
        if self.handover is not None:
            return "leaving"
        if self.log.look is None or self.log.number <= self._look_needed:
            return "log-unanswered"
        if self.log.unknown_format():
            return "log-format-unknown"
        if self.log.foreign(now, self.wall(now), self.views.id, self.member.process) is not None:
            return "two-coordinators"
        return ""

    def hindrance(self, now: float) -> str:
        """Why I do not contend now, "" if I would."""
        barred = self._barred(now)
        if barred:
            return barred
        if not self.log.answers(now):
            return "log-unanswered"
        return "too-many-elections" if now < self.pace.rest_until else ""

    def holder(self) -> Fence | None:
        """Whoever may hold up my fence: the fence that stands, of a lower epoch and another process."""
        won, look = self.won, self.log.look
        if won is None or look is None or self.log.number <= won.number:
            return None
        fence = look.fence
        mine = fence.process == self.member.process or fence.pid == self._pid
        return None if mine or not fence.pid or fence.epoch >= won.fence.epoch else fence

    def gone(self, record: LeaderRecord) -> str:
        """Why the record's process is known to be gone, or "". My own URL is answered by me, so not by it."""
        if record.process != self.member.process and record.url == self.member.url:
            return "its URL is mine"
        return self.suspicion.gone if self.suspicion.concerns(record.process) else ""

    @property
    def role(self) -> Role:
        if self.stopped:
            return "stopped"
        if self.broken:
            return "broken"
        if self.handover is not None and not self.handover.how:
            return "leaving"
        if self.term is not None:
            return "leading"
        if self.won is not None:
            return "fencing"
        return "candidate" if isinstance(self.requests.flying("write"), Take | Challenge) else "following"
