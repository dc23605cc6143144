"""A nursery for things that own tasks and are opened with `async with`: an exception leaves it as itself.

Trio wraps whatever leaves a nursery in a group. For `async with open_subscription(...)` that would hide the user's own
`PositionTooOld` or `ValueError` in a group of one, only because tasks of ours happen to run beside the block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


def lone(error: BaseException) -> BaseException:
    """The exception inside groups of one; a group of several stays as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def open_owned_nursery() -> AsyncIterator[trio.Nursery]:
    """Like `trio.open_nursery`, but what the block raises leaves as it is, also if that is a group; so does a single
    exception of a task, out of however many groups of one. Several exceptions stay a group."""
    grouped = False
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseExceptionGroup:
                grouped = True
                raise
        return
    except BaseExceptionGroup as group:
        # A group of the block's own loses no more than the nursery's group around it.
        found = group.exceptions[0] if grouped and len(group.exceptions) == 1 else lone(group)
        if found is group:
            raise
    context = found.__context__
    try:
        raise found
    finally:
        # What the nursery handled meanwhile (its group, or the block's cancellation) is no part of the story.
        found.__context__ = context
