"""What the processes of a demo leave behind: JSON lines that survive SIGKILL, and gauges that others can read.

A record is one `write` to a file opened for appending: it is there whole or, if a kill cut it off, without its end.
Whoever goes on with a file first drops such a remainder: what was not completed never happened.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any


def now_ns() -> int:
    """CLOCK_MONOTONIC, the same for all processes of this machine."""
    return time.monotonic_ns()


class Records:
    """A file of records, written by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._drop_remainder()

    def _drop_remainder(self) -> None:
        size = os.fstat(self._fd).st_size
        end = size
        while end > 0:
            begin = max(0, end - 65536)
            found = os.pread(self._fd, end - begin, begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end != size:
            os.ftruncate(self._fd, end)

    def write(self, kind: str, **facts: Any) -> None:
        """Append one record of that kind, stamped with the time."""
        line = json.dumps({"f": kind, "t": now_ns(), **facts}, separators=(",", ":"), ensure_ascii=False) + "\n"
        os.write(self._fd, line.encode())

    def last(self, kind: str) -> dict[str, Any] | None:
        """The newest record of a kind, or None."""
        found = None
        mark = b'{"f":"' + kind.encode() + b'"'
        with self.path.open("rb") as file:
            for line in file:
                if line.startswith(mark):
                    found = line
        return None if found is None else json.loads(found)

    def close(self) -> None:
        os.close(self._fd)


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
