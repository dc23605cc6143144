"""What the processes of a demo leave behind: JSON lines that survive SIGKILL, and gauges that others can read.

The files are those of changefeed.history; what a record of a demo holds, its judge (verdict.py) says.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any

from changefeed.history.records import Lines, now_ns

__all__ = ["Gauge", "Records", "now_ns"]


class Records(Lines):
    """A file of records, written by one process at a time."""

    def write(self, kind: str, **facts: Any) -> None:
        """Append one record of that kind, stamped with the time."""
        self.append({"f": kind, "t": now_ns(), **facts})


class Gauge:
    """A few numbers in a small shared file: written by one process, read by another, for display and for aiming.

    Nothing is judged by them: the verdict reads records only.
    """

    NAMES = ("sent", "answered", "seq", "epoch")
    _FORM = struct.Struct(f"<{len(NAMES)}q")

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(fd, self._FORM.size)
            self._map = mmap.mmap(fd, self._FORM.size)
        finally:
            os.close(fd)

    def set(self, name: str, value: int) -> None:
        struct.pack_into("<q", self._map, 8 * self.NAMES.index(name), value)

    def get(self, name: str) -> int:
        value: int = struct.unpack_from("<q", self._map, 8 * self.NAMES.index(name))[0]
        return value

    def close(self) -> None:
        self._map.close()
