"""A planned handover: finish the term, name a successor, wait until it has the log. Pure.

finishing   the term appends and answers what it took. It must end by saying so within half of `drain_s`
marking     a successor is chosen and my record marked as leaving: nothing of mine is in flight any more
waiting     until the successor's fence stands in the log
resigning   nobody to hand over to, or it went wrong somewhere: my record goes, anybody may take the lead
over        `how` says how it ended
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from changefeed.coordination import Member
from changefeed.election.logwatch import Report
from changefeed.settings import Settings

Phase = Literal["finishing", "marking", "waiting", "resigning", "over"]

#: The members may take so long to be listed before the record is simply resigned.
LIST_S: Final = 1.0
LIST_AGAIN_S: Final = 0.1
#: After the term's queue is empty, the term's own task must have ended within this.
SAY_S: Final = 0.5
#: The coordinator may take so long to take the resignation.
RESIGN_S: Final = 2.0
FOR_EVER: Final = float("inf")


class Handover:
    """epoch: of the term to hand over, 0 if none runs. how: "" until it is over; told: the driver knows it.
    successor: None while not chosen, "" if there is none."""

    def __init__(self, settings: Settings, now: float, epoch: int) -> None:
        self.epoch = epoch
        self.how = ""
        self.told = False
        self.successor: str | None = None
        self.asked_to_finish = False
        self._leavers: set[str] = set()
        self._settings = settings
        self._list_at = now
        self._outcome = "resigned" if epoch else "nothing-to-hand-over"
        self.phase: Phase = "finishing"
        self._until = now + settings.drain_s / 2
        if not epoch:
            self._resign(now)

    def _enter(self, phase: Phase, until: float) -> None:
        self.phase, self._until = phase, until

    def _resign(self, now: float) -> None:
        self._enter("resigning", now + RESIGN_S)

    def _over(self, how: str) -> None:
        self._enter("over", FOR_EVER)
        self.how = how

    # ---- facts

    def term_over(self, now: float, why: str) -> None:
        """The running term ended. Only "handover" promises that it had nothing in flight."""
        if self.phase != "finishing":
            return
        if why == "handover":
            self._enter("marking", now + self._settings.suspect_after_s)
            self._list_until = now + LIST_S
        else:
            if why in ("fenced", "overtaken"):
                self._outcome = "overtaken"
            self._resign(now)

    def did_finish(self, now: float) -> None:
        if self.phase == "finishing":
            self._until = min(self._until, now + SAY_S)

    def finish_failed(self, now: float) -> None:
        if self.phase == "finishing":
            self._until = now

    def did_list(self, members: Mapping[str, Member], me: Member, feed: str, followers: Mapping[str, Report]) -> None:
        """Choose: a live candidate of this feed other than me that is not known to be leaving itself; of those one that
        I hear and whose log answers, and among these the one that is furthest."""
        able = [m for m in members.values() if m.candidate and m.process != me.process and m.name != me.name]
        able = [m for m in able if not m.feeds or feed in m.feeds]
        leavers = {name for name, report in followers.items() if report.leaving} | self._leavers
        able = [m for m in able if m.name not in leavers]

        def rank(member: Member) -> tuple[bool, int, str]:
            report = followers.get(member.name)
            good = report is not None and report.log_ok
            return (not good, 0 if report is None else -report.tail, member.name)

        self.successor = min(able, key=rank).name if able else ""

    def heard(self, now: float, name: str, leaving: bool) -> None:
        """A follower said whether it is leaving too. A successor that is does not take over: choose another one."""
        if not leaving:
            self._leavers.discard(name)
            return
        self._leavers.add(name)
        if name == self.successor and self.phase in ("finishing", "marking", "waiting"):
            self.successor = None
            self._list_at = now
            if self.phase != "finishing":
                self._enter("marking", now + self._settings.suspect_after_s)
                self._list_until = now + LIST_S

    def list_failed(self, now: float) -> None:
        self._list_at = now + LIST_AGAIN_S

    def did_mark(self, now: float, marked: bool, successor: str) -> None:
        """The record names that successor, or is not mine any more."""
        if self.phase == "marking" and not marked:
            self._over("overtaken")
        elif self.phase == "marking" and successor == self.successor:
            self._enter("waiting", now + 2 * self._settings.suspect_after_s + 1.0)

    def did_resign(self) -> None:
        if self.phase == "resigning":
            self._over(self._outcome)

    def fence_seen(self, epoch: int) -> None:
        """The log's fence is of this epoch."""
        if self.epoch and epoch > self.epoch and self.phase in ("marking", "waiting"):
            self._over("fenced" if self.phase == "waiting" else "overtaken")

    def tick(self, now: float) -> None:
        if self.phase == "marking" and (self.successor == "" or (self.successor is None and now >= self._list_until)):
            self._resign(now)
        if now < self._until:
            return
        if self.phase in ("marking", "waiting"):
            self._resign(now)
        elif self.phase == "resigning":
            self._over("gave-up")

    # ---- what is wanted

    def wants_finish(self) -> bool:
        return self.phase == "finishing" and not self.asked_to_finish

    def wants_end(self, now: float) -> bool:
        """The term did not end by itself in time: end it by force."""
        return self.phase == "finishing" and now >= self._until

    def wants_members(self, now: float) -> bool:
        return self.phase in ("finishing", "marking") and self.successor is None and now >= self._list_at

    def wants_mark(self) -> bool:
        return self.phase == "marking" and bool(self.successor)

    def wake(self) -> tuple[float, ...]:
        """When time alone changes something."""
        times = [self._until]
        if self.successor is None and self.phase in ("finishing", "marking"):
            times.append(self._list_at)
            if self.phase == "marking":
                times.append(self._list_until)
        return tuple(times)
