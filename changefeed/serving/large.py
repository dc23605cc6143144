"""Encoding and decoding of what is large: beside the event loop, one at a time.

Eight megabytes of brackets take a second and hundreds of megabytes; nobody's heartbeats may wait for that, and many
such messages must not take their memory at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

#: Larger than what well-behaved publishers and subscribers meet: they aim at a quarter of it.
LARGE_BYTES: Final = 2**20
_LIMITER: Final[trio.lowlevel.RunVar[trio.CapacityLimiter]] = trio.lowlevel.RunVar("changefeed_large")


async def in_turn(work: Callable[[], T]) -> T:
    """What `work` returns or raises, in a thread. Cancellation: while waiting for its turn; then it runs to its end."""
    try:
        limiter = _LIMITER.get()
    except LookupError:
        limiter = trio.CapacityLimiter(1)
        _LIMITER.set(limiter)
    return await trio.to_thread.run_sync(work, limiter=limiter)
