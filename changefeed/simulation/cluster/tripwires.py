"""In a run nothing may come from outside: real time, the system's randomness, threads. Who asks for it gets an error.

What a module took from another by name at its import cannot be caught here; tests/simulation compares whole runs of
processes with other hash seeds, which would show it.
"""

from __future__ import annotations

import gc
import os
import random
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from changefeed.election import driver as election
from changefeed.election import frozen

#: Modules that may: a log line is stamped by the standard library, and that decides nothing.
ALLOWED: Final = frozenset({"logging"})

_WIRES: Final[tuple[tuple[Any, str], ...]] = (
    *((time, name) for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep")),
    *((random, name) for name in ("random", "randint", "randrange", "choice", "shuffle", "sample", "uniform", "seed")),
    *((secrets, name) for name in ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "choice")),
    *((uuid, name) for name in ("uuid1", "uuid4")),
    (os, "urandom"),
    (threading.Thread, "start"),
)
#: So many runs, then their garbage is collected.
COLLECT_EVERY: Final = 25
_runs = [0]


class Undetermined(AssertionError):
    """The code asked for something that is not the same in each run of a seed."""


def _wire(real: Callable[..., Any], name: str) -> Callable[..., Any]:
    def tripped(*arguments: Any, **options: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller in ALLOWED:
            return real(*arguments, **options)
        raise Undetermined(f"{caller} called {name} in a simulated run: take it from ports.World, or from trio's clock")

    return tripped


_PATCHES: Final = [
    (place, name, getattr(place, name), _wire(getattr(place, name), f"{place.__name__}.{name}"))
    for place, name in _WIRES
]
# When this process started is asked of the kernel, for each election anew.
_PATCHES.append((election, "process_started", frozen.process_started, lambda pid: 0))


@contextmanager
def tripwires() -> Iterator[None]:
    """While this is open the wires are armed, and garbage is not collected: when an object dies decides nothing."""
    collecting = gc.isenabled()
    gc.disable()
    for place, name, _, tripped in _PATCHES:
        setattr(place, name, tripped)
    try:
        yield
    finally:
        for place, name, real, _ in _PATCHES:
            setattr(place, name, real)
        _runs[0] += 1
        if _runs[0] % COLLECT_EVERY == 0:
            gc.collect()
        if collecting:
            gc.enable()
