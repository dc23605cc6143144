"""What sessions of one feed share: runs cut out for equal filters, and frames encoded once. Pure.

A key holds the range with its end's epoch and term, so that nothing of a replaced log can answer for another one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from changefeed.wire.messages import Run

Value = TypeVar("Value")

ITEMS_MAX: Final = 256
BYTES_MAX: Final = 8 * 1024 * 1024
_OVERHEAD: Final = 256


class Shared(Generic[Value]):
    """The most recently used values, bounded by number and by the bytes that the caller says they take."""

    def __init__(self, items_max: int = ITEMS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        found = self._values.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keep a value; one larger than a quarter of the bound is not kept."""
        size += _OVERHEAD
        if size > self._bytes_max // 4:
            return
        old = self._values.pop(key, None)
        if old is not None:
            self.bytes -= old[1]
        self._values[key] = (value, size)
        self.bytes += size
        while len(self._values) > self._items_max or self.bytes > self._bytes_max:
            _, (_, gone) = self._values.popitem(last=False)
            self.bytes -= gone


class FramesCache:
    """runs: (filter, range) -> what the filter selects of it. frames: (filter, sub-protocol, range) -> encoded."""

    def __init__(self) -> None:
        self.runs: Shared[tuple[Run, ...]] = Shared()
        self.frames: Shared[bytes | str] = Shared()
