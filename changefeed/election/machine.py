"""Who leads a feed, decided for one process. Pure: facts in, ordered effects out.

Every fact only changes what is known; `_decide` then looks at all of it and asks for what is missing. So no order of
facts is special: a reply may be lost, a view may come late or twice, and the next look at the whole finds the way.

    following   somebody leads; or I may not (`hindrance`); or a take or challenge is being written ("candidate")
    fencing     I won an epoch at the coordinator and wait for the log's fence
    leading     a term runs under my fence; only the log, or a higher epoch, ends it
    leaving     a planned handover: finish the term, name a successor, wait for its fence

The driver calls facts with `now` (seconds, monotonic), performs `take_effects()` in order, and calls `tick` at
`deadline`. Rules and reasons: docs/internals/leadership.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from changefeed.coordination import LeaderRecord, Member, View
from changefeed.election.effects import (
    AskMembers,
    Challenge,
    FenceLog,
    FinishTerm,
    Follow,
    HandedOver,
    KillHolder,
    ListMembers,
    LookLog,
    MarkLeaving,
    RaiseEpoch,
    Read,
    Request,
    Resign,
    Take,
)
from changefeed.election.handover import Handover
from changefeed.election.state import State, Term, Won
from changefeed.errors import Fenced, LogDamaged, LogFormatUnknown, LogReplaced
from changefeed.log import Fence, Look
from changefeed.wire.messages import PeerBeat, Said

#: A fence that takes longer than this is probably held up by somebody's lock: find out by whose.
HOLDER_AFTER_S: Final = 0.2
#: A fence that failed is tried again after this; the stores retry the lock themselves much faster.
FENCE_AGAIN_S: Final = 0.02
#: Between two looks that somebody waits for, after one that answered and after one that failed.
LOOK_AGAIN_S: Final = 0.02
LOOK_FAILED_S: Final = 0.2
#: When the record of a leader that still serves vanishes, others wait so long for it to come back by itself.
GRACE_S: Final = 0.5
#: A tick that comes later than this says that my own process was stalled: what I did not hear proves nothing.
STALLED_S: Final = 0.25


class Election(State):
    """One feed's election in one process. All methods are synchronous and none raises for what the world does."""

    # ---- facts: clock, coordinator, me

    def tick(self, now: float) -> None:
        """Time passed; call at `deadline`, or whenever convenient."""
        self._decide(now)

    def coordinator_state(self, coordinator: str, connected: bool, mine: bool) -> None:
        """Cheap, told before every other fact. mine: the leader record of `views.view` is of my present session."""
        self.views.connected = connected
        self.views.id = coordinator or self.views.id
        self.views.mine = mine

    def view_changed(self, now: float, view: View, mine: bool) -> None:
        """A watch brought this view. It was true once; an epoch below the known one is asked for again."""
        known = self.views.view
        if known is not None and view.epoch < known.epoch:
            self.views.doubt()
        elif view != known:
            self._adopt(now, view, mine, 0)
        self._decide(now)

    def hand_over(self, now: float) -> None:
        """Planned: never contend again, and pass a running term on. Ends with the effect HandedOver, always."""
        if self.handover is None:
            epoch = 0 if self.term is None else self.term.fence.epoch
            self.handover = Handover(self.settings, now, epoch)
            self._event(now, epoch, self.member.name, "leaving")
        self._decide(now)

    def stop(self, now: float) -> None:
        """The process goes: end the term at once, ask for nothing more."""
        self._end_term(now, "stopped")
        self.stopped = True
        self.requests.deadline = float("inf")

    # ---- facts: link and term

    def link_up(self, now: float, process: str) -> None:
        self.suspicion.up(now, process)
        self._decide(now)

    def link_closed(self, now: float, process: str) -> None:
        self.suspicion.closed(process)
        self._decide(now)

    def link_beat(self, now: float, beat: PeerBeat) -> None:
        self.suspicion.beat(now, beat)
        self._hint(beat)
        self._decide(now)

    def link_refused(self, now: float, process: str) -> None:
        self.suspicion.lost(process, "refused")
        self._decide(now)

    def link_foreign(self, now: float, process: str, found: str) -> None:
        if found != process:
            self.suspicion.lost(process, "another process answers at its URL")
        self._decide(now)

    def follower_beat(self, now: float, beat: PeerBeat) -> None:
        self.log.heard(now, beat)
        if self.handover is not None:
            self.handover.heard(now, beat.name, beat.leaving)
        self._hint(beat)
        self._decide(now)

    def term_ended(self, now: float, epoch: int, why: str) -> None:
        """The running term of that epoch ended by itself."""
        if self.term is not None and self.term.fence.epoch == epoch:
            self._close_term(now, why)
        self._decide(now)

    def _hint(self, beat: PeerBeat) -> None:
        """Somebody serves a higher epoch than any I know: ask the coordinator."""
        if beat.epoch > self.views.known_epoch:
            self.views.known_epoch = beat.epoch
            self.views.doubt()

    # ---- facts: answers to requests

    def did_read(self, now: float, id: int, view: View, mine: bool) -> None:
        landed = self.requests.landed(id, Read)
        if landed is not None:
            self.views.answered()
            # A write that was under way meanwhile may be newer than this view, and so may what a watch brought if it
            # says otherwise: then it is asked for again.
            flight, known = landed[1], self.views.view
            written = self.requests.flying("write") is not None or flight.writes != self.requests.writes
            watched = known is not None and flight.views != self.views.count
            older = known is not None and view != known and view.epoch <= known.epoch
            if not written and not (watched and older):
                self._adopt(now, view, mine, id)
        self._decide(now)

    def did_write(self, now: float, id: int, outcome: View | bool | None, mine: bool, term: str) -> None:
        """outcome: the new view of a take or challenge (None: somebody was faster), whether the epoch was raised or
        the mark set, None for a resignation. term: a random term id, used if an epoch was won."""
        landed = self.requests.landed(id, Request)
        if landed is None:
            return
        self.requests.writes += 1
        self.views.answered()
        self.views.doubt()
        match landed[0]:
            case Take() | Challenge() as request:
                known = self.views.view
                if isinstance(outcome, View) and not (known is not None and known.epoch > outcome.epoch):
                    self._adopt(now, outcome, mine, id)
                    self._win(now, request, outcome.epoch, term)
            case RaiseEpoch(epoch=epoch):
                self._event(now, epoch, "", "coordinator raised to the log" if outcome else "coordinator moved")
                if outcome and self.won is not None:
                    self.won, self._why_again = None, "coordinator-behind"
            case MarkLeaving(successor=successor) if self.handover is not None:
                self.handover.did_mark(now, bool(outcome), successor)
            case Resign() if self.handover is not None:
                self.handover.did_resign()
        self._decide(now)

    def did_list(self, now: float, id: int, members: Mapping[str, Member]) -> None:
        if self.requests.landed(id, ListMembers) is not None and self.handover is not None:
            self.handover.did_list(members, self.member, self.feed, self.log.followers(now))
        self._decide(now)

    def did_look(self, now: float, id: int, look: Look) -> None:
        landed = self.requests.landed(id, LookLog)
        if landed is not None:
            self.log.ok(now, id, look)
            self.suspicion.looked(landed[1].began, now, look.tail.seq)
            self._look_again = now + LOOK_AGAIN_S
            term = self.term
            found = (look.fence.epoch, look.fence.term)
            if term is not None and id > term.number and found != (term.fence.epoch, term.fence.term):
                self._end_term(now, "fenced")
        self._decide(now)

    def did_fence(self, now: float, id: int, look: Look) -> None:
        landed = self.requests.landed(id, FenceLog)
        if landed is not None:
            # Looks that were asked for until now may be older than this one: it gets a number above theirs.
            self.log.seen(now, self.requests.next_number(), look)
            if self.won is not None and self.won.fence == landed[0].fence:
                self._start_term(now, look)
        self._decide(now)

    def did_ask(self, now: float, id: int, said: Sequence[Said]) -> None:
        landed = self.requests.landed(id, AskMembers)
        if landed is not None and self.suspicion.record == landed[0].record:
            self.suspicion.answered(now, said)
        self._decide(now)

    def did_kill(self, now: float, id: int, outcome: str) -> None:
        """outcome: "killed", or why not (see frozen.py)."""
        landed = self.requests.landed(id, KillHolder)
        if landed is not None:
            holder = landed[0].holder
            if outcome == "killed":
                self.kills += 1
                self._event(now, holder.epoch, holder.instance, "killed: frozen while it held the log's lock")
            if self.won is not None:
                self.won.kill_at = now + HOLDER_AFTER_S
        self._decide(now)

    def did_finish(self, now: float, id: int) -> None:
        if self.requests.landed(id, FinishTerm) is not None and self.handover is not None:
            self.handover.did_finish(now)
        self._decide(now)

    def failed(self, now: float, id: int, error: BaseException) -> None:
        """A request ended with an error of the outside world."""
        landed = self.requests.landed(id, Request)
        if landed is None:
            return
        match landed[0]:
            case LookLog() | FenceLog() if isinstance(error, LogDamaged | LogReplaced | LogFormatUnknown):
                self._break(now, error.code)
            case LookLog():
                self.log.fail(now)
                self._look_again = now + LOOK_FAILED_S
            case FenceLog(fence=fence):
                self._fence_failed(now, fence, error)
            case AskMembers(record=record):
                if self.suspicion.record == record:
                    self.suspicion.answered(now, ())  # nobody could be reached
            case KillHolder():
                if self.won is not None:
                    self.won.kill_at = now + HOLDER_AFTER_S
            case FinishTerm():
                if self.handover is not None:
                    self.handover.finish_failed(now)
            case ListMembers():
                if self.handover is not None:
                    self.handover.list_failed(now)
            case Read():
                self.views.failed(now, write=False)
            case _:
                self.requests.writes += 1
                self.suspicion.hold(self.views.failed(now, write=True))
        self._decide(now)

    def _fence_failed(self, now: float, fence: Fence, error: BaseException) -> None:
        won = self.won
        if won is None or won.fence != fence:
            return
        won.again_at = now + FENCE_AGAIN_S
        if getattr(error, "outcome", "refused") == "unknown":
            self.won, self._why_again = None, "outcome-unknown"
        elif isinstance(error, Fenced):
            if (error.epoch, error.term) == (fence.epoch, fence.term):
                # An earlier try was written although its answer was lost. An epoch is fenced once: take the next one.
                self.won, self._why_again = None, "outcome-unknown"
            else:
                won.refused, won.refused_number = error, self.requests.number

    # ---- decisions

    def _decide(self, now: float) -> None:
        if self.stopped:
            return
        if now > self.deadline + STALLED_S:
            self.suspicion.excuse(now)
        for _ in range(8):  # a change of phase is followed up at once; no chain of them is longer than a few
            self.requests.deadline = float("inf")
            if not self._phase(now):
                break
        self._read_if_needed(now)
        self._look_if_needed(now)
        self._follow()

    def _phase(self, now: float) -> bool:
        """One decision; True if the phase changed and the next one is due at once."""
        if self.handover is not None and not self.handover.told:
            return self._decide_handover(now, self.handover)
        if self.term is not None:
            return self._decide_leading(now, self.term)
        if self.won is not None:
            return self._decide_fencing(now, self.won)
        self._decide_following(now)
        return False

    def _can_write(self, now: float) -> bool:
        after = self.views.write_after()
        self.requests.wake(now, after)
        return self.requests.flying("write") is None and now >= after

    def _contend(self, now: float, why: str, *, clean: bool = False) -> None:
        """One compare-and-set with exactly the view that the decision rests on."""
        view, look = self.views.view, self.log.look
        if view is not None and view.leader is None and not self.views.number:
            self.views.need_read = True  # taking an empty seat rests on a synced read
        if view is None or self.views.need_read or not self._can_write(now):
            return  # a view in doubt is read first: a write that failed would only fail again
        if look is not None and look.fence.epoch > view.epoch:
            # The coordinator is behind the log: an epoch won now could not be fenced.
            self.requests.ask(now, RaiseEpoch, view, look.fence.epoch)
        elif view.leader is None:
            self.requests.ask(now, Take, view, why)
        else:
            self.requests.ask(now, Challenge, view, why, clean)

    # leading

    def _decide_leading(self, now: float, term: Term) -> bool:
        if self._log_fails_me_alone(now):
            self._end_term(now, "log-slow")
            return True
        view, record, epoch = self.views.view, self.views.record, term.fence.epoch
        if view is None:
            return False
        if record is not None and record.process != self.member.process:
            if record.epoch > epoch:
                self._end_term(now, "overtaken")
                return True
            self._contradict(now)
        elif record is None or record.epoch != epoch or not self.views.mine:
            # My record is gone, or of another session, while my term runs: contend again, and serve meanwhile.
            if not self.views.number:
                self.views.need_read = True
            elif not self.hindrance(now):
                self._contend(now, "session-lost")
            self.requests.wake(now, self.pace.rest_until)
        return False

    def _contradict(self, now: float) -> None:
        """The coordinator names another, but with no higher epoch than mine: it was wiped, or the view is old.

        The log decides: while its fence is mine the other serves nothing. It has suspect_after_s to change that, and
        is challenged then: others would look for a leader where there is none.
        """
        late = self.suspicion.since + self.settings.suspect_after_s
        if now >= late and self.views.number and not self.hindrance(now):
            self._contend(now, "not-serving")
        elif now >= self._recheck_at:
            self._recheck_at = now + self.settings.log_look_s
            self.views.doubt()
        self.requests.wake(now, late)
        self.requests.wake(now, self._recheck_at)

    def _log_fails_me_alone(self, now: float) -> bool:
        """The log has not answered me for log_timeout_s while it answered a follower: then I must not lead."""
        self.requests.wake(now, self.log.mute_at())
        if self.log.answers(now) or not self.log.answers_others(now):
            return False
        self._look_needed = self.requests.number
        if self.views.record is not None:
            self._discard = self.views.record.epoch
        return True

    # fencing

    def _decide_fencing(self, now: float, won: Won) -> bool:
        record = self.views.record
        if record is not None and record.process != self.member.process and record.epoch > won.fence.epoch:
            self._yield(now, "overtaken")
            return True
        barred = self._barred(now)
        if barred or self._log_fails_me_alone(now):
            self._yield(now, barred or "log-slow")
            return True
        if won.refused is not None:
            return self._settle_refusal(now, won, won.refused)
        if self.requests.flying("fence") is None and now >= won.again_at:
            self.requests.ask(now, FenceLog, won.fence, won.why, won.clean)
        self.requests.wake(now, won.again_at)
        self.requests.wake(now, won.since + HOLDER_AFTER_S)
        if now >= won.since + HOLDER_AFTER_S:
            self._seek_holder(now, won)
        return False

    def _settle_refusal(self, now: float, won: Won, refused: Fenced) -> bool:
        """The log's fence is not below my epoch. A synced view that is newer tells whether I was overtaken."""
        view = self.views.view
        if view is None or self.views.number <= won.refused_number:
            self.views.need_read = True
        elif view.epoch >= refused.epoch:
            self._yield(now, "overtaken")
            self._look_needed = won.refused_number  # my last look did not show that fence: it may be anybody's
            return True
        elif self.log.number > won.refused_number and self._can_write(now):
            # The coordinator is behind the log, and no other coordinator's leader lives (a newer look told).
            self.requests.ask(now, RaiseEpoch, view, refused.epoch)
        return False

    def _seek_holder(self, now: float, won: Won) -> None:
        holder = self.holder()
        if holder is None or not self.kill_frozen or self.requests.flying("kill") is not None:
            return
        if now >= won.kill_at:
            self.requests.ask(now, KillHolder, holder)
        self.requests.wake(now, won.kill_at)

    # following

    def _decide_following(self, now: float) -> None:
        record = self.views.record
        if self.views.view is None:
            return
        hindrance = self.hindrance(now)
        self.requests.wake(now, self.pace.rest_until)
        if record is not None and record.process == self.member.process:
            if hindrance or self._discard == record.epoch:
                if self.views.mine and not self.views.need_read and self._can_write(now):
                    self.requests.ask(now, Resign, record.epoch)
            else:
                # Mine without a term: the reply was lost, or the term ended by itself.
                self._contend(now, self._why_again or "reply-lost")
        elif hindrance:
            return
        elif record is None:
            self._decide_vacant(now)
        elif self.gone(record):
            self._contend(now, "process-gone")
        elif record.leaving:
            self._decide_leaver(now, record)
        else:
            self._decide_silence(now, record)

    def _decide_vacant(self, now: float) -> None:
        """Nobody leads. A leader that still serves and only lost its record comes back by itself; not for ever."""
        until = self.views.vacant_since + min(GRACE_S, self.settings.suspect_after_s)
        if now < until and self.suspicion.serving(now):
            self.requests.wake(now, until)
            self.requests.wake(now, self.suspicion.serving_until())
        else:
            last = self.suspicion.record
            self._contend(now, "start" if last is None else "process-gone" if self.gone(last) else "vacant")

    def _decide_leaver(self, now: float, record: LeaderRecord) -> None:
        """A handover: the successor at once, anybody else only if it does not come."""
        late = self.views.leaving_since + self.settings.suspect_after_s
        if record.successor in ("", self.member.name):
            look = self.log.look
            clean = look is not None and look.fence.epoch == record.epoch
            self._contend(now, "handover", clean=clean)
        elif now >= late:
            self._contend(now, "handover-late")
        self.requests.wake(now, late)

    def _decide_silence(self, now: float, record: LeaderRecord) -> None:
        suspicion = self.suspicion
        self.pace.term_heard(suspicion.heard_for())
        if suspicion.wants_answers(now) and self.requests.flying("ask") is None:
            self.requests.ask(now, AskMembers, record)
        if suspicion.condemned(now):
            self._contend(now, "not-serving" if suspicion.idle(now) else "silent")
        self.requests.wake(now, suspicion.wake(now))

    # leaving

    def _decide_handover(self, now: float, handover: Handover) -> bool:
        if self.won is not None:
            self._yield(now, "leaving")
        if self.log.look is not None:
            handover.fence_seen(self.log.look.fence.epoch)
        handover.tick(now)
        if handover.wants_end(now):
            self._end_term(now, "handover-too-slow")
        elif handover.wants_finish():
            handover.asked_to_finish = True
            self.requests.ask(now, FinishTerm)
        if handover.wants_members(now) and self.requests.flying("members") is None:
            self.requests.ask(now, ListMembers)
        if handover.wants_mark() and self._can_write(now):
            self.requests.ask(now, MarkLeaving, handover.epoch, handover.successor)
        elif handover.phase == "resigning" and self.requests.flying("write") is None:
            record = self.views.record
            if record is None or not self.views.mine:
                handover.did_resign()
            elif self._can_write(now):
                self.requests.ask(now, Resign, record.epoch)
        for at in handover.wake():
            self.requests.wake(now, at)
        if handover.how:
            handover.told = True
            self._event(now, handover.epoch, handover.successor or "", f"handover: {handover.how}")
            self._end_term(now, "handover")
            self.requests.do(HandedOver(handover.how))
        return bool(handover.how)

    # always

    def _read_if_needed(self, now: float) -> None:
        if self.views.need_read and self.requests.flying("read") is None and self.requests.flying("write") is None:
            after = self.views.read_after()
            if now >= after:
                self.requests.ask(now, Read, views=self.views.count)
            self.requests.wake(now, after)

    def _look_if_needed(self, now: float) -> None:
        if self.broken:
            return
        if self.requests.flying("look") is None:
            wanted = self._wants_look(now)
            if now >= self._look_at or (wanted and now >= self._look_again):
                self._look_at = now + self.settings.log_look_s
                self.log.begin(now)
                term = self.term
                self.requests.ask(now, LookLog, None if term is None else (term.fence.epoch, term.fence.term))
            else:
                self.requests.wake(now, self._look_at)
                if wanted:
                    self.requests.wake(now, self._look_again)
        self.requests.wake(now, self.log.mute_at())

    def _wants_look(self, now: float) -> bool:
        """Somebody waits for a look that is newer than the last one."""
        won, record = self.won, self.views.record
        if won is not None:
            if won.refused is not None:
                return self.log.number <= won.refused_number
            return now >= won.since + HOLDER_AFTER_S and self.log.number <= won.number
        if self.handover is not None:
            return self.handover.phase == "waiting"
        if self.term is not None or not self.candidate or record is None or record.leaving or self.gone(record):
            return False
        return self.suspicion.concerns(record.process) and self.suspicion.wants_look(now)

    def _follow(self) -> None:
        """Point the link to the leader that the coordinator names; keep the last one while it names nobody."""
        record = self.views.record
        if self.term is not None or self.won is not None or self.broken:
            target = None
        elif record is None:
            target = self._followed
        else:
            target = None if record.process == self.member.process else replace(record, leaving=False, successor="")
        if target != self._followed:
            self._followed = target
            self.requests.do(Follow(target))
