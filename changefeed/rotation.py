"""Which server a client tries next, and how long it waits before. Pure: no clock, no randomness of its own.

The first try after a loss is at once, at the next server: it hides a failover. Then come 0.1 s to 15 s with full jitter
(a random share of a bound that doubles with each round over all servers), so that 10,000 agents do not come back in one
moment. The bound must not grow per try: with three servers that refuse, a second's outage would make a client stay away
for ten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

#: A connection that served for so long (seconds) proves that the server works: the next try is at once again.
SERVED_S: Final = 1.0
#: Servers of one redirect that are tried; the rest is ignored.
REDIRECTS_MAX: Final = 16


class Rotation:
    """The servers of one client, in turn. `roll` is a random float in [0, 1), given by the caller.

    attempts: tries since a connection last proved that a server works.
    """

    def __init__(self, min_s: float, max_s: float) -> None:
        self.attempts = 0
        self._min_s = min_s
        self._max_s = max_s
        self._servers: tuple[str, ...] = ()
        self._next = 0
        self._preferred: deque[str] = deque()
        self._welcomed: float | None = None
        self._finals = 0

    @property
    def known(self) -> bool:
        """Whether there is any server to try."""
        return bool(self._servers)

    @property
    def round_begins(self) -> bool:
        """Whether each server has had its turn: the moment to ask again which servers there are."""
        return self._next % max(len(self._servers), 1) == 0 and not self._preferred

    @property
    def first_round(self) -> bool:
        """Whether there are other servers that have not had their turn since one was lost."""
        return 0 < self.attempts < len(self._servers)

    def use(self, servers: Sequence[str], roll: float) -> None:
        """Use these servers from now on. The first list begins at a random one, which spreads clients."""
        servers = tuple(dict.fromkeys(servers))
        if servers == self._servers:
            return
        start = int(roll * len(servers)) if not self._servers else 0
        self._servers = servers[start:] + servers[:start]
        self._next = 0

    def redirect(self, servers: Sequence[str]) -> None:
        """Try these first, once each."""
        self._preferred = deque(servers[:REDIRECTS_MAX])

    def choose(self) -> str:
        """The server to try now."""
        if self._preferred:
            return self._preferred.popleft()
        if not self._servers:
            raise ValueError("no server is known")
        chosen = self._servers[self._next % len(self._servers)]
        self._next += 1
        return chosen

    def delay(self, roll: float) -> float:
        """Seconds to wait before the next try."""
        if self.attempts == 0:
            return 0.0
        rounds = (self.attempts - 1) // max(len(self._servers), 1)
        return roll * min(self._max_s, self._min_s * 2.0 ** min(rounds, 40))

    def trying(self) -> None:
        """A try begins: unless it leads to a connection that serves, the next one waits longer."""
        self.attempts += 1
        self._welcomed = None

    def at_once(self) -> None:
        """The next try is not because of a failure: it need not wait."""
        self.attempts = 0

    def welcomed(self, now: float) -> None:
        """The server took us in."""
        self._welcomed = now
        self._finals = 0

    def lost(self, now: float) -> None:
        """The connection ended. Only one that served for a while lets the next try be at once."""
        if self._welcomed is not None and now - self._welcomed >= SERVED_S:
            self.attempts = 0
        self._welcomed = None

    def refused_for_good(self) -> bool:
        """A server said no for good; True once every server in turn has."""
        self._finals += 1
        return self._finals >= max(len(self._servers), 1)
