"""A nursery for things that own tasks and are opened with `async with`: a lone exception leaves it as itself.

Trio wraps whatever leaves a nursery in a group. For `async with open_subscription(...)` that would hide the user's own
`PositionTooOld` or `ValueError` in a group of one, only because tasks of ours happen to run beside the block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_owned_nursery() -> AsyncIterator[trio.Nursery]:
    """Like `trio.open_nursery`, but a group of exactly one exception is unwrapped; larger groups stay groups."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from error.__cause__
