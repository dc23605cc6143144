"""Blocking calls of the SQLite store in the calling task, without threads: for runs that must be the same each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import trio
import trio.to_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def run_in_place(
    call: Callable[[*Ts], T],
    /,
    *arguments: *Ts,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """In place of `trio.to_thread.run_sync`: runs the function at once, in the task that calls it.

    Limiters are waited for as ever, so calls have their turns; a call is one step between two checkpoints. No time
    passes in it, virtual or not. Not for functions that wait for another task.
    """
    await trio.lowlevel.checkpoint()
    if limiter is None:
        return call(*arguments)
    async with limiter:
        return call(*arguments)


@contextmanager
def calls_in_place() -> Iterator[None]:
    """While this is entered, whoever calls `trio.to_thread.run_sync` gets `run_in_place`. For code that cannot be given
    it; the SQLite store takes it as `run_sync`."""
    threads = trio.to_thread.run_sync
    trio.to_thread.run_sync = run_in_place  # type: ignore[assignment]
    try:
        yield
    finally:
        trio.to_thread.run_sync = threads
