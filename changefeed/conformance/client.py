"""The program under test as a process: what it prints, what it leaves behind, how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import termios
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from changefeed.errors import BadConfig

#: Of what it says on stderr, so much is kept, for people.
STDERR_BYTES: Final = 4096
#: A line of output longer than this is none of an event.
LINE_BYTES_MAX: Final = 16 * 2**20
#: How long pipes may stay open after the process has ended, in seconds: a child of its own may hold them.
PIPES_S: Final = 1.0


class Failed(Exception):
    """The client did not do what is asked of it; the message says what was expected and what came."""


class Client:
    """The program under test; it may be started again after its end.

    env: its environment. cursor: the file in which it is to keep its position. seqs: of the events that it printed
    since it was started first. ids: of events whose id is not "id-SEQ". status: how it ended; None while it runs.
    moved: called when anything happened. What is wrong with its output is raised as Failed by its tasks.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str], cursor: Path, moved: Callable[[], None]) -> None:
        self.command = list(command)
        self.env = env
        self.cursor = cursor
        self.seqs: list[int] = []
        self.ids: dict[int, str] = {}
        self.status: int | None = None
        self.stderr = b""
        self._moved = moved
        self._process: trio.Process | None = None
        self._reading = trio.Event()
        self._reading.set()

    async def start(self, nursery: trio.Nursery) -> None:
        """Start it. Raises BadConfig if the operating system cannot."""
        assert self._process is None or self.status is not None, "it runs"
        self.status = None
        self._process = await nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[trio.Process]) -> None:
        try:
            process = await trio.lowlevel.open_process(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise BadConfig(f"cannot start {self.command[0]!r}: {error.strerror}") from error
        task_status.started(process)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_events, process)
                nursery.start_soon(self._read_stderr, process)
                status = await process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + PIPES_S
        finally:
            self._kill(process)
            with trio.CancelScope(shield=True):
                await process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                with trio.move_on_after(0):
                    await stream.aclose()
        self.status = status
        self._moved()

    async def _read_events(self, process: trio.Process) -> None:
        assert process.stdout is not None
        held = b""
        await self._reading.wait()
        async for data in process.stdout:
            *lines, held = (held + bytes(data)).split(b"\n")
            for line in lines:
                self._line(line)
            if len(held) > LINE_BYTES_MAX:
                raise Failed(f"it printed a line of more than {LINE_BYTES_MAX} bytes")

    async def _read_stderr(self, process: trio.Process) -> None:
        assert process.stderr is not None
        async for data in process.stderr:
            self.stderr = (self.stderr + bytes(data))[-STDERR_BYTES:]

    def _line(self, line: bytes) -> None:
        try:
            event: Any = json.loads(line)
            seq, id = event["seq"], event["id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = line[:200].decode(errors="replace")
            raise Failed(f'it printed {text!r}; each line must be the JSON of an event with "seq" and "id"') from None
        expected = self.ids.get(seq, f"id-{seq}") if isinstance(seq, int) else None
        if id != expected and expected is not None:
            raise Failed(f"it printed seq {seq} with id {id!r}; that event's id is {expected!r}")
        self.seqs.append(seq)
        self._moved()

    # ---- output that nobody reads

    def stick(self) -> None:
        """From the next start on nobody reads what it prints, so that it cannot go on printing."""
        self._reading = trio.Event()

    def unstick(self) -> None:
        """Read what it printed."""
        self._reading.set()

    @property
    def unread(self) -> int:
        """Bytes that it printed and nobody has read."""
        assert self._process is not None and self._process.stdout is not None
        answer = bytearray(4)
        stdout: Any = self._process.stdout
        fcntl.ioctl(stdout.fileno(), termios.FIONREAD, answer)
        return int.from_bytes(answer, "little")

    # ---- its end

    def kill(self) -> None:
        """SIGKILL, to it and the processes that it started."""
        if self._process is not None and self.status is None:
            self._kill(self._process)

    def _kill(self, process: trio.Process) -> None:
        # Its group is asked, not itself: a shell that was killed leaves what it had started.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
