"""Breadth first through everything that may happen, so that what is broken is shown in the fewest steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar


class Violation(Exception):
    """A promise is broken by a step. promise: as in changefeed.history.checkers, or "crash", "stuck"."""

    def __init__(self, promise: str, says: str) -> None:
        super().__init__(f"{promise}: {says}")
        self.promise = promise
        self.says = says


S = TypeVar("S", bound=Hashable)


class World(Protocol[S]):
    """What is explored. A state is hashable and holds all that matters."""

    def begin(self) -> S: ...

    def steps(self, state: S) -> Iterable[tuple[str, Callable[[], S]]]:
        """What may happen in a state: its words, and the state after it. That raises Violation for what is broken."""

    def at_rest(self, state: S) -> None:
        """Nothing can happen any more. Raises Violation if something should."""


@dataclass(frozen=True)
class Explored:
    """What a search saw. complete: everything within the world's bounds. depth: the steps of the longest shortest way.
    broken: the first broken promise, with the steps that lead to it. met: what was done, and how often."""

    states: int
    moves: int
    depth: int
    complete: bool
    seconds: float
    broken: Violation | None = None
    trail: tuple[str, ...] = ()
    met: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        extent = "complete" if self.complete else "not complete"
        said = f"{self.states:,} states, {self.moves:,} steps, depth {self.depth}, {extent}, {self.seconds:.1f} s"
        if self.broken is None:
            return said
        lines = [f"  {number:>3}  {words}" for number, words in enumerate(self.trail, 1)]
        return "\n".join([f"{self.broken} ({said})", *lines])


def explore(world: World[Any], *, states_max: int = 5_000_000, seconds: float = 600.0) -> Explored:
    """Look at every state that can be reached, until one breaks a promise. Bounded by the number of states and by
    seconds of the processor: what met a bound is not complete."""
    begun = time.process_time()
    first = world.begin()
    came: dict[Hashable, tuple[Hashable, str] | None] = {first: None}
    layer, depth, moves = [first], 0, 0
    met: Counter[str] = Counter()

    def seen(complete: bool, broken: Violation | None = None, trail: tuple[str, ...] = ()) -> Explored:
        return Explored(len(came), moves, depth, complete, time.process_time() - begun, broken, trail, met)

    while layer:
        following = []
        for state in layer:
            if len(came) > states_max or time.process_time() - begun > seconds:
                return seen(False)
            any_step = False
            for words, step in world.steps(state):
                any_step = True
                moves += 1
                met[words.split(":")[0]] += 1
                try:
                    after = step()
                except Violation as broken:
                    return seen(False, broken, (*_trail(came, state), words))
                if after not in came:
                    came[after] = (state, words)
                    following.append(after)
            if not any_step:
                try:
                    world.at_rest(state)
                except Violation as broken:
                    return seen(False, broken, _trail(came, state))
        layer = following
        depth += bool(layer)
    return seen(True)


def _trail(came: dict[Hashable, tuple[Hashable, str] | None], state: Hashable) -> tuple[str, ...]:
    words = []
    at = came[state]
    while at is not None:
        words.append(at[1])
        at = came[at[0]]
    return tuple(reversed(words))
