"""Kill a process that froze while it held the log's lock: the only way to get at a SQLite log that it locked.

A process that is stopped (SIGSTOP, a debugger, a frozen container) inside a SQLite transaction keeps the write lock,
and nobody but the kernel can take it away. Who won the epoch may then kill it. That is a hard thing to do to a process,
so all of this must hold:

- it is on this machine, since its boot id and start time are those that its fence names (a pid alone comes again);
- it is not this process, nor its parent, nor pid 1;
- it is *frozen*: stopped or traced (`/proc/PID/stat`), or in a frozen control group. A slow one is never killed;
- where the kernel lists locks (`/proc/locks`), it holds one for writing.

The signal goes through a pidfd that was opened before all this was checked, so it can hit no other process.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final, Literal

from changefeed.log import Fence

Outcome = Literal["killed", "not-frozen", "holds-no-lock", "gone", "other-process", "not-allowed", "unsupported"]

_TICKS_BITS: Final = 35  # ten years of 100 Hz ticks since boot; 28 bits of the boot id above them fill a signed 64
_STOPPED: Final = frozenset("Tt")
PROC: Final = Path("/proc")
CGROUP: Final = Path("/sys/fs/cgroup")


def process_started(pid: int, proc: Path = PROC) -> int:
    """When and in which boot a process began, as one number for `Fence.pid_started`; 0 where that cannot be told."""
    stat = _stat(pid, proc)
    if stat is None:
        return 0
    try:
        boot = int((proc / "sys/kernel/random/boot_id").read_text()[:7], 16)
    except (OSError, ValueError):
        return 0
    return (boot << _TICKS_BITS) | (stat[1] & ((1 << _TICKS_BITS) - 1))


def kill_frozen(holder: Fence, proc: Path = PROC, cgroup: Path = CGROUP) -> Outcome:
    """Send SIGKILL to the process that this fence names if all of the above holds; says what was done or why not.

    Blocks for a few small reads. Raises nothing that the operating system may answer.
    """
    pid = holder.pid
    if pid <= 1 or pid in (os.getpid(), os.getppid()) or not holder.pid_started:
        return "other-process"
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return "unsupported"
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return "gone"
    except OSError:
        return "unsupported"
    try:
        if process_started(pid, proc) != holder.pid_started:
            return "other-process"
        if not is_frozen(pid, proc, cgroup):
            return "not-frozen"
        if not _holds_write_lock(pid, proc):
            return "holds-no-lock"
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        return "not-allowed"
    except OSError:
        return "unsupported"
    finally:
        os.close(fd)
    return "killed"


def is_frozen(pid: int, proc: Path = PROC, cgroup: Path = CGROUP) -> bool:
    """Stopped, traced, or in a control group that is frozen. Waiting for a disk or a lock is not frozen."""
    stat = _stat(pid, proc)
    if stat is None:
        return False
    return stat[0] in _STOPPED or _cgroup_frozen(pid, proc, cgroup)


def _stat(pid: int, proc: Path) -> tuple[str, int] | None:
    """State letter and start time in clock ticks since boot. The command's name may hold anything, also brackets."""
    try:
        fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _cgroup_frozen(pid: int, proc: Path, cgroup: Path) -> bool:
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        if line.startswith("0::/"):
            try:
                events = (cgroup / line[4:] / "cgroup.events").read_text().split()
            except OSError:
                return False
            return "frozen" in events and events[events.index("frozen") + 1 : events.index("frozen") + 2] == ["1"]
    return False


def _holds_write_lock(pid: int, proc: Path) -> bool:
    """Whether the kernel lists a write lock of that process; True where it lists no locks at all (no evidence)."""
    try:
        lines = (proc / "locks").read_text().splitlines()
    except OSError:
        return True
    # "3: POSIX  ADVISORY  WRITE 4711 fe:01:1234 120 120"; a line with "->" is a waiter.
    rows = [line.split() for line in lines]
    return any(
        len(row) >= 5 and row[1] != "->" and row[3] == "WRITE" and row[4] == str(pid) and row[1] in ("POSIX", "OFDLCK")
        for row in rows
    )
