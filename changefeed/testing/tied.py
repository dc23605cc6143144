"""`python -m changefeed.testing.tied MODULE ARGUMENT…`: runs a module as a program that does not outlive its starter.

Its standard input is a pipe whose writing end only the starter has (see `leash`). When that closes the starter is gone,
however it went, SIGKILL included, and this process kills itself at once; a frozen one does so when it is thawed.
"""

from __future__ import annotations

import functools
import os
import runpy
import signal
import sys
import threading


@functools.cache
def leash() -> int:
    """A descriptor for the standard input of every tied child: it reads nothing, and ends when this process does."""
    reading, _writing = os.pipe()  # the writing end stays open, and is not inherited
    return reading


def tied(module: str, *arguments: str) -> list[str]:
    """The command that runs a module tied to this process; to be started with `stdin=leash()`."""
    return [sys.executable, "-m", __name__, module, *arguments]


def _watch() -> None:
    try:
        while os.read(0, 4096):
            pass
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_watch, name="leash", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
