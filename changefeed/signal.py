"""A level-triggered wake-up: wait until something changed since I last looked, for any number of waiters."""

from __future__ import annotations

import trio


class Changed:
    """`notify()` wakes everybody who waits now. A waiter looks at the state, finds nothing to do, then awaits `wait()`
    without another await between the two, so that no change is missed. Cancellation: nothing is lost."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        if self._event.statistics().tasks_waiting:
            self._event.set()
            self._event = trio.Event()

    async def wait(self) -> None:
        await self._event.wait()
