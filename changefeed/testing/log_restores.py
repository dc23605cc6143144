"""Positions over restored copies: a small model played out on a real store, exhaustively up to a length (review 1)."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from changefeed.change import Position
from changefeed.log import Fence
from changefeed.testing.log_scribe import MakeStore, Scribe, opened

#: append; new term; new term and append; back up (the newest copy counts); put the copy back
RESTORE_STEPS: Final = "atwbr"


async def check_positions_over_restores(
    make_store: MakeStore,
    copy: Callable[[str, str], Awaitable[None]],
    length: int,
    term: Callable[[int], str] = "{:08x}".format,
    histories: Iterable[str] | None = None,
) -> int:
    """No position of a history that was undone is accepted, and none that is held is refused, however often older
    copies are put back and epoch numbers come again: a term's random id tells it from another of the same number.

    Plays every string of `length` steps on a log that was written and backed up once; after each step every position
    that the log ever named is judged. `copy(source, target)` makes the place `target` hold what `source` holds (none of
    them is open). term: the id of the n-th term; a constant shows that the check can fail. histories: these strings of
    steps instead of all, where copying takes long. Returns how many positions were judged foreign.
    """
    foreign = 0
    chosen = itertools.product(RESTORE_STEPS, repeat=length) if histories is None else histories
    for number, steps in enumerate(chosen):
        history = _History(make_store, copy, f"restores {number}", term)
        for step in ("w", "b", *steps):
            await history.play(step)
        foreign += history.foreign
    return foreign


class _History:
    """One log, what it holds (each event by a number of its own), and what every position ever named stood for."""

    def __init__(
        self, make_store: MakeStore, copy: Callable[[str, str], Awaitable[None]], place: str, term: Callable[[int], str]
    ) -> None:
        self._make_store = make_store
        self._copy = copy
        self._place = place
        self._term = term
        self._terms = self._events = 0
        self._held: tuple[int, ...] = ()
        self._copied: tuple[int, ...] = ()
        self._leads = False
        self._named: dict[tuple[Position, tuple[int, ...]], None] = {}
        self.foreign = 0

    async def play(self, step: str) -> None:
        if step == "b":
            await self._copy(self._place, f"{self._place} copy")
            self._copied = self._held
            return
        if step == "r":
            await self._copy(f"{self._place} copy", self._place)
            self._held = self._copied
            self._leads = False
        async with opened(self._make_store, self._place) as log:
            look = await log.look()
            if step in "tw":
                self._terms += 1
                # As a coordinator does that was restored together with the log: the epoch comes again.
                fence = Fence(look.fence.epoch + 1, self._term(self._terms))
                look = await log.fence(fence, why="start", time=1, clean=True)
                self._leads = True
            # Nobody appends under a term that he did not fence: whoever did before the copy was put back has ended.
            if step in "aw" and self._leads:
                await Scribe(log, look).write(1, publisher=f"p{self._events}")
                self._events += 1
                self._held += (self._events,)
            look = await log.look()
        for seq in range(len(self._held) + 1):
            self._named[look.position(seq), self._held[:seq]] = None
        for position, meant in self._named:
            own = self._held[: position.seq] == meant
            assert (look.check(position) is None) is own, f"{position} meant {meant}; the log holds {self._held}"
            self.foreign += not own
