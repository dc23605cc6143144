"""Is the process that the leader record names still there? Evidence, silence and the inquiry before a challenge. Pure.

Two kinds of answers. *Gone*: its URL refuses, or another process answers there; that is evidence, and it is
challenged at once. *Silent*: it was not heard for `suspect_after_s`, or it answers but does not serve the epoch of the
record; that is a suspicion, and before a challenge the other members are asked and the log's tail is watched. A
time-out, or a link that merely closed, is nothing: it only lets the silence grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from changefeed.coordination import LeaderRecord
from changefeed.settings import Settings
from changefeed.wire.messages import PeerBeat, Said

NEVER: Final = float("-inf")
FOR_EVER: Final = float("inf")


class Suspicion:
    """What is known of one leader record's process. `watch` begins anew with each new record.

    gone: why its process is known to be gone, "" while it is not. heard_elsewhere: a member heard it lately.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: A frozen process sent its last beat up to one heartbeat before, and wrote to the log until it froze: tails
        #: seen before this much silence prove nothing.
        self._settle_s = min(2 * settings.peer_heartbeat_s, settings.suspect_after_s / 2)
        self._span_s = settings.suspect_after_s / 4
        self.record: LeaderRecord | None = None
        self._forget(NEVER)

    def _forget(self, now: float) -> None:
        self.since = now
        self.gone = ""
        self._alive_at = NEVER  # any word of it
        self._serving_at = NEVER  # a word that it serves, or fences, the epoch of the record
        self._leading = False  # its last word said that it serves
        self._hold_until = NEVER  # no challenge for silence before this
        self._moved_at = NEVER  # the log's tail moved although it is silent
        self.heard_elsewhere = False
        self._restart()

    def _restart(self) -> None:
        """What was asked and looked up belongs to another stretch of silence."""
        self._first_look: float | None = None
        self._last_look: float | None = None
        self._tail = -1
        self._answered_at = NEVER

    # ---- facts

    def watch(self, now: float, record: LeaderRecord) -> bool:
        """The leader record of another process; True if it is a new one: then all that is known begins anew."""
        known, self.record = self.record, record
        new = known is None or (known.process, known.epoch) != (record.process, record.epoch)
        if new:
            self._forget(now)
        return new

    def excuse(self, now: float) -> None:
        """My own process was stalled: silence counts from now on."""
        self.since = max(self.since, now)
        self._restart()

    def concerns(self, process: str) -> bool:
        return self.record is not None and self.record.process == process

    def up(self, now: float, process: str) -> None:
        if self.concerns(process):
            self.gone = ""
            self._alive_at = now

    def beat(self, now: float, beat: PeerBeat) -> None:
        if not self.concerns(beat.process) or self.record is None:
            return
        self.gone = ""
        self._alive_at = now
        self._leading = beat.state == "leading" and not beat.leaving
        # A higher epoch than the record's: my view is behind, and it is not dead.
        if beat.state in ("leading", "fencing") and beat.epoch >= self.record.epoch:
            self._serving_at = now
            self.heard_elsewhere = False
            self._restart()

    def closed(self, process: str) -> None:
        """The link to it ended. No evidence; but if its record vanishes too, nobody waits for it to come back."""
        if self.concerns(process):
            self._leading = False

    def lost(self, process: str, why: str) -> None:
        """Its URL refused, or answered as another process."""
        if self.concerns(process):
            self.gone = why

    def looked(self, began: float, now: float, tail_seq: int) -> None:
        """A look that began at `began` found this tail."""
        if began < self._quiet_since + self._settle_s:
            return
        if self._first_look is not None and tail_seq != self._tail:
            self._moved_at = now
            self._restart()
            return
        if self._first_look is None:
            self._first_look = began
        self._last_look = began
        self._tail = tail_seq

    def answered(self, now: float, said: Sequence[Said]) -> None:
        """What the other members said; none of them may have been reachable."""
        heard = [s.heard_s for s in said if s.heard_s is not None]
        limit = self._settings.suspect_after_s
        self.heard_elsewhere = bool(heard) and min(heard) < limit
        if self.heard_elsewhere:
            self.hold(now + max(limit - min(heard), self._settings.peer_heartbeat_s))
        else:
            self._answered_at = now

    def hold(self, until: float) -> None:
        """No challenge for silence before `until`; what was found out must be found out again then."""
        self._hold_until = max(self._hold_until, until)
        self._answered_at = NEVER

    # ---- judgement

    @property
    def _quiet_since(self) -> float:
        return max(self.since, self._serving_at, self._moved_at)

    @property
    def due(self) -> float:
        """When members are asked and the log is looked at for the last time; infinity without a record."""
        if self.record is None:
            return FOR_EVER
        return max(self._quiet_since + self._settings.suspect_after_s, self._hold_until)

    def silent_for(self, now: float) -> float:
        return now - max(self.since, self._serving_at)

    def heard_for(self) -> float:
        """From the first view of this record to the last word that it serves."""
        return max(0.0, self._serving_at - self.since)

    def serving(self, now: float) -> bool:
        """It said within two heartbeats that it serves, is not leaving, and is not known to be gone."""
        return self._leading and now < self.serving_until() and not self.gone

    def serving_until(self) -> float:
        return self._serving_at + 2 * self._settings.peer_heartbeat_s

    def idle(self, now: float) -> bool:
        """It answers, but does not serve the epoch of the record."""
        return now - self._alive_at < self._settings.suspect_after_s and self.silent_for(now) > now - self._alive_at

    def wants_look(self, now: float) -> bool:
        """A look begun now would help to judge the silence."""
        due = self.due
        if due == FOR_EVER or now < self._quiet_since + self._settle_s:
            return False
        if self._first_look is None or self._last_look is None:
            return True
        return now >= self._final and self._last_look < self._final

    @property
    def _final(self) -> float:
        """The last look must begin at or after this."""
        first = self._first_look
        return self.due if first is None else max(self.due, first + self._span_s)

    def wants_answers(self, now: float) -> bool:
        """The other members should be asked now. Who hears it itself need not ask whether it lives."""
        return now >= self.due and self._answered_at < self.due and not self.idle(now)

    def condemned(self, now: float) -> bool:
        """It was silent for long enough, no member heard it, and the log's tail stood still."""
        if now < self.due or self._last_look is None or self._last_look < self._final:
            return False
        return self._answered_at >= self.due or self.idle(now)

    def wake(self, now: float) -> float:
        """When time alone changes one of the answers above."""
        if self.record is None:
            return FOR_EVER
        times = (self._quiet_since + self._settle_s, self.due, self._final)
        return min((t for t in times if t > now), default=FOR_EVER)
