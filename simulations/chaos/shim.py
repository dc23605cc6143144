"""Faults of disk and wall clock inside of a real process: builds shim.c, and holds the switches of one process.

A switch is set here and acts in the process at its next call on the log's files. The counters say what really happened
there: they are the *observed effect* of such a fault.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("shim.c")
#: In the order of shim.c's struct page.
FIELDS: Final = (
    "sync_error", "sync_error_after", "sync_delay_us", "write_errno", "write_errors", "all_errno", "hang",
    "stop_at_write", "stop_after_sync", "kill_at_write", "kill_after_sync", "wall_offset_ns",
    "syncs", "writes", "errors", "delays", "hangs", "stops", "wall_reads",
)  # fmt: skip
COUNTERS: Final = ("syncs", "writes", "errors", "delays", "hangs", "stops", "wall_reads")


def compiler() -> str | None:
    """A C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """The library, compiled into `folder`. Raises RuntimeError with what the compiler said."""
    cc = compiler()
    if cc is None:
        raise RuntimeError("no C compiler (Debian: gcc libc6-dev): faults of disk and wall clock cannot be injected")
    made = folder / "chaos-shim.so"
    done = subprocess.run(
        [cc, "-O2", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{cc} could not compile {SOURCE.name}: {done.stderr.strip()[-500:]}")
    return made


class Numbers:
    """A small shared file of named 64-bit numbers: written by one process, read by another; survives a SIGKILL."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path = path
        self.names = names
        self._at = {name: 8 * index for index, name in enumerate(names)}
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            self._map = mmap.mmap(fd, mmap.PAGESIZE)
        finally:
            os.close(fd)

    def get(self, name: str) -> int:
        value: int = struct.unpack_from("<q", self._map, self._at[name])[0]
        return value

    def set(self, name: str, value: int) -> None:
        struct.pack_into("<q", self._map, self._at[name], value)

    def add(self, name: str, more: int = 1) -> None:
        self.set(name, self.get(name) + more)

    def close(self) -> None:
        self._map.close()


class Switches(Numbers):
    """The page of one process."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, FIELDS)

    def clear(self) -> None:
        """Everything as without us; the counters stay."""
        for name in FIELDS:
            if name not in COUNTERS:
                self.set(name, 0)

    def environment(self, library: Path, log_folder: Path) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(library),
            "CHAOS_SHIM_PAGE": str(self.path),
            "CHAOS_SHIM_DIR": f"{log_folder}{os.sep}",
        }
