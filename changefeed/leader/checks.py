"""Batches of a feed that keeps a snapshot, from the moment when their numbers would be accepted until they are (pure).

A batch that needs to be asked about waits in its run's `checking`, and what came behind it waits behind it, so that the
order of a publisher's numbers stays; it is judged again whenever something may have changed. A refusal here is final
too: it is given only after a look that began after the batch came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from changefeed.errors import BadMessage, ChangefeedError
from changefeed.leader.guard import Guard, Wait, check_of, versions_of

if TYPE_CHECKING:
    from changefeed.change import Key
    from changefeed.leader.book import Accepted, Request, Run
    from changefeed.leader.effects import Effect, Facts
    from changefeed.log import Latest

Judge = Callable[["Request", "Facts | None", "list[Effect]"], None]
Refuse = Callable[["Request", ChangefeedError, "list[Effect]"], None]
#: Asks for a look-up about a request: these objects' rows, and a look; returns its token.
Ask = Callable[["Request", "list[Effect]", "tuple[Key, ...]"], int]


class Checks:
    """One term's. judge: what the Sequencer does with a batch; it comes back here where the batch is new. looking:
    look-ups on their way, by token."""

    def __init__(self, judge: Judge, refuse: Refuse, ask: Ask, looking: dict[int, Request]) -> None:
        self.guard = Guard()
        self._judge = judge
        self._refuse = refuse
        self._ask = ask
        self._looking = looking
        self._runs: dict[Run, None] = {}
        #: The request that was judged last could not be decided.
        self._undecided = False

    @property
    def waiting(self) -> bool:
        """Whether some batch waits for its check."""
        return bool(self._runs)

    def clear(self) -> None:
        """The term is over: nothing is judged any more."""
        self._runs.clear()

    def stop(self, pending: Iterable[Accepted], effects: list[Effect]) -> None:
        """The feed keeps no snapshot any more."""
        self.guard = Guard()
        for accepted in pending:
            accepted.marks = {}
        self.again(effects)

    # ---- batches

    def passed(self, request: Request, effects: list[Effect]) -> bool:
        """Whether a new batch may be accepted; if not, it has been refused or waits."""
        if not self.guard.on:
            return True
        if request.check is None:
            try:
                request.check = check_of(request.batch)
            except BadMessage as error:
                self._refuse(request, error, effects)
                return False
        check = request.check
        verdict = self.guard.judge(check)
        if verdict is None:
            return True
        if not isinstance(verdict, Wait) and check.looked:
            self._refuse(request, verdict, effects)
            return False
        self._wait(request)
        if verdict is not Wait.SETTLED:
            self._ask_once(request, effects)
        return False

    def behind(self, request: Request, effects: list[Effect]) -> None:
        """A batch of a publisher whose earlier one waits. What it needs is asked for at once."""
        self._wait(request)
        if self.guard.on and self.guard.versioned and not self.guard.building:
            try:
                request.check = request.check or check_of(request.batch)
            except BadMessage:
                return
            if request.check.bare:
                self._ask_once(request, effects)

    def accepted(self, request: Request, accepted: Accepted) -> None:
        """A batch that has passed is pending now."""
        if request.check is not None and self.guard.on:
            accepted.marks = request.check.marks
            self.guard.accepted(accepted.marks)

    def note(self, accepted: Accepted) -> None:
        """A batch that was accepted before the feed was known to keep a snapshot."""
        try:
            accepted.marks = check_of(accepted.batch).marks
        except BadMessage:
            return
        self.guard.accepted(accepted.marks)

    def _wait(self, request: Request) -> None:
        run = request.channel.run
        self._undecided = True
        self._runs[run] = None
        if not run.checking or run.checking[0] is not request:
            run.checking.append(request)

    def _ask_once(self, request: Request, effects: list[Effect]) -> None:
        check = request.check
        if check is not None and not check.token:
            check.token = self._ask(request, effects, () if check.error is not None else check.bare)
            self.guard.asks(check.token)

    # ---- what comes back

    def waits_for(self, request: Request, token: int) -> bool:
        return request.check is not None and request.check.token == token

    def told(self, request: Request, rows: Sequence[Latest], effects: list[Effect]) -> None:
        """The answer to a look-up of this module."""
        if request.check is not None:
            request.check.looked = True
            request.check.versions = versions_of(rows)
        self.drain(request.channel.run, effects)

    def again(self, effects: list[Effect]) -> None:
        """Something was settled."""
        for run in list(self._runs):
            self.drain(run, effects)

    def drain(self, run: Run, effects: list[Effect]) -> None:
        """Judge what waits of a run, in order, as far as that can be done now."""
        while run.checking:
            request = run.checking[0]
            self._undecided = False
            if request.answer is None:
                self._judge(request, None, effects)
            if self._undecided:
                return
            run.checking.popleft()
            if request.check is not None:
                # It is judged without what was asked, or may come back: then the snapshot must be asked again.
                self._looking.pop(request.check.token, None)
                self.guard.settled(request.check.token)
                request.check = None
        self._runs.pop(run, None)
