"""A process that has come to its end does end, also if a task in it waits for what never comes.

Without memory, trio's own tasks may die; from then on no thread can hand over its result, and whoever waits for one
waits for ever: the process would stay, half dead, and nobody would start it again.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Final

import trio

#: EX_SOFTWARE of sysexits.h.
STATUS: Final = 70


class LastResort:
    """Around a nursery in which `watch` runs: once that is cancelled, for whatever reason, the block must be left
    within `limit_s` seconds; else the process is ended with STATUS, without another word from Python.

    Everything that is needed then is made before: there may be no memory for it.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._left = False
        self._reading, self._writing = os.pipe()
        self._says = f"did not end within {limit_s:g} s of its cancellation; exit status {STATUS}\n".encode()

    def __enter__(self) -> LastResort:
        threading.Thread(target=self._wait, name="last-resort", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._left = True
        self._wake()

    async def watch(self) -> None:
        """Cancellation: the time begins."""
        try:
            await trio.sleep_forever()
        finally:
            self._wake()

    def _wake(self) -> None:
        writing, self._writing = self._writing, -1
        if writing >= 0:
            os.close(writing)

    def _wait(self) -> None:
        os.read(self._reading, 1)
        os.close(self._reading)
        end = time.monotonic() + self.limit_s
        while not self._left:
            if time.monotonic() >= end:
                os.write(2, self._says)
                os._exit(STATUS)
            time.sleep(0.05)


__all__ = ["STATUS", "LastResort"]
