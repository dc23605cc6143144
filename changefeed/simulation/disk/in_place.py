"""Blocking calls of the SQLite store in the calling task, without threads: for runs that must be the same each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
import trio.to_thread

T = TypeVar("T")


@contextmanager
def calls_in_place() -> Iterator[None]:
    """While this is entered, `trio.to_thread.run_sync` runs its function at once, in the task that calls it.

    Limiters are waited for as ever, so calls have their turns; a call is one step between two checkpoints. No time
    passes in it, virtual or not. Not for functions that wait for another task.
    """
    threads = trio.to_thread.run_sync

    async def run_sync(
        function: Callable[..., T],
        *arguments: Any,
        thread_name: str | None = None,
        abandon_on_cancel: bool = False,
        cancellable: bool | None = None,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        await trio.lowlevel.checkpoint()
        if limiter is None:
            return function(*arguments)
        async with limiter:
            return function(*arguments)

    trio.to_thread.run_sync = run_sync  # type: ignore[assignment]
    try:
        yield
    finally:
        trio.to_thread.run_sync = threads
