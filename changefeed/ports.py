"""What a process needs from the world besides log, coordinator and network: wall time, randomness, a trace.

All are passed in from the first day, so that a simulation runs this code and not a model of it. Deadlines and
monotonic time come only from trio (`trio.current_time`), which a MockClock replaces.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


class Entropy(Protocol):
    """Randomness for ids and jitter."""

    def random(self) -> float:
        """A float in [0, 1)."""

    def token(self, size: int) -> str:
        """`size` random bytes as lower-case hex."""


class SystemEntropy:
    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def random(self) -> float:
        return self._random.random()

    def token(self, size: int) -> str:
        return os.urandom(size).hex()


class SeededEntropy:
    """The same ids and jitter for the same seed: for tests and simulations."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def random(self) -> float:
        return self._random.random()

    def token(self, size: int) -> str:
        return self._random.getrandbits(8 * size).to_bytes(size, "big").hex()


def system_wall_ms() -> int:
    return time.time_ns() // 1_000_000


def no_trace(name: str, /, **fields: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class World:
    """Everything that is not decided by our code and not a log, a coordinator or a network.

    wall_ms: milliseconds since 1970; only for stamps and display, never for a decision about safety.
    trace: called with the name and facts of each step that a simulation or a history records; must not block.
    """

    entropy: Entropy = field(default_factory=SystemEntropy)
    wall_ms: Callable[[], int] = system_wall_ms
    trace: Callable[..., None] = no_trace
