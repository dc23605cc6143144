"""How often I may stand for election. Pure.

A vanished leader is challenged at once, however often that happens. What is slowed down: challenges for *silence* that
I won (two instances that cannot see each other would take turns for ever), my own terms that end as soon as they began
(a disk that fails each append), and storms of any kind.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from changefeed.settings import Settings

#: A term shorter than this that ended by itself is a strike; from the third in a row on I rest before the next.
SHORT_TERM_S: Final = 1.0
STRIKES: Final = 3
REST_MIN_S: Final = 0.1
REST_MAX_S: Final = 5.0
#: More elections won than this within so many seconds is a storm (two instances under one URL, for instance).
STORM_WINS: Final = 8
STORM_S: Final = 10.0
#: Ends of a term that are nobody's fault, or another's doing.
HARMLESS: Final = frozenset({"fenced", "overtaken", "reclaimed", "handover", "stopped", "log-slow"})


class Pace:
    """silence_after: no challenge for silence before this. rest_until: no candidacy at all before this."""

    def __init__(self, settings: Settings) -> None:
        self._low = settings.challenge_backoff_min_s
        self._high = settings.challenge_backoff_max_s
        self._backoff_s = 0.0
        self._strikes = 0
        self._wins: deque[float] = deque(maxlen=STORM_WINS)
        self.silence_after = float("-inf")
        self.rest_until = float("-inf")

    def won(self, now: float, *, for_silence: bool) -> None:
        self._wins.append(now)
        if len(self._wins) == STORM_WINS:
            self.rest_until = max(self.rest_until, self._wins[0] + STORM_S)
        if for_silence:
            self._backoff_s = min(max(self._low, 2 * self._backoff_s), self._high)
            self.silence_after = now + self._backoff_s

    def term_heard(self, seconds: float) -> None:
        """Some leader, I or another, was in office and heard by others for so long. A term that nobody heard counts
        for nothing: it lasted because of this back-off."""
        if seconds >= self._high:
            self._backoff_s = 0.0

    def term_ended(self, now: float, lasted: float, why: str) -> None:
        """My own term ended."""
        if lasted >= SHORT_TERM_S:
            self._strikes = 0
        elif why not in HARMLESS:
            self._strikes += 1
            if self._strikes >= STRIKES:
                rest = min(REST_MIN_S * 2 ** min(self._strikes - STRIKES, 16), REST_MAX_S)
                self.rest_until = max(self.rest_until, now + rest)
