"""What a command says: lines for a person who looks, JSON lines into a pipe or with --json; errors to stderr.

Writing never blocks the event loop (a stalled reader of `changefeed tail | less` must not cost the connection its
heartbeats) and never leaves standard output non-blocking for whoever shares it: we write at most what fits into a pipe
that is said to be writable.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any, Final, Protocol

import trio

from changefeed.errors import ChangefeedError

#: A pipe that polls writable takes at least one page without blocking.
_PIECE: Final = 4096
#: To the beginning of the terminal's line, and remove what stands there.
ERASE: Final = "\r\x1b[K"


class Sink(Protocol):
    """Where bytes go. Raises BrokenPipeError when nobody reads any more."""

    def is_terminal(self) -> bool: ...

    def columns(self) -> int:
        """How wide the terminal is; 0 if that is not known."""

    async def write(self, data: bytes) -> None:
        """Returns when everything was handed to the operating system. Cancellation: a part may have been written."""

    async def wait_closed(self) -> None:
        """Returns when nobody reads any more; never for a file."""


class FdSink:
    """A file descriptor: file, pipe, terminal or socket."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def is_terminal(self) -> bool:
        return os.isatty(self.fd)

    def columns(self) -> int:
        try:
            return os.get_terminal_size(self.fd).columns
        except OSError:
            return 0

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if not self._poll.poll(0):
                await trio.lowlevel.wait_writable(self.fd)
                continue
            view = view[os.write(self.fd, view[:_PIECE]) :]

    async def wait_closed(self) -> None:
        watch = select.poll()
        watch.register(self.fd, 0)  # errors and hang-ups are always reported
        while True:  # nothing tells of a reader that leaves an idle pipe; asking is cheap
            if any(event & (select.POLLERR | select.POLLNVAL) for _, event in watch.poll(0)):
                return
            await trio.sleep(0.25)


def printable(text: str) -> str:
    """The text with control characters made visible: ids and bodies come from strangers and land on terminals."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def duration_text(seconds: float) -> str:
    """A duration as it is written on the command line: 7d, 1h30m, 1.5s."""
    text, rest = "", seconds
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        count, rest = divmod(rest, size)
        text += f"{count:.0f}{unit}" if count else ""
    return text + f"{rest:g}s" if rest or not text else text


def size_text(size: int) -> str:
    """A size as it is written on the command line: 4GiB, 1000."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def to_json(record: Any) -> str:
    """One line of JSON."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form, but an escape
        text = json.dumps(record)
    return text


class Output:
    """A command's voice.

    human: whether a person reads standard output. record: the same content as a JSON object and as text for people.
    """

    def __init__(self, *, json: bool = False, out: Sink | None = None, err: Sink | None = None) -> None:
        self.out = out or FdSink(1)
        self.err = err or FdSink(2)
        self.json = json
        self.human = not json and self.out.is_terminal()
        self.live = self.err.is_terminal() and not json
        self._progress_shown = False

    def for_people(self) -> Output:
        """The same voice for a command that is a show: text also into a pipe, unless --json was given."""
        self.human = not self.json
        return self

    async def line(self, record: Any, text: str) -> None:
        """One result: the JSON form into a pipe, the text on a terminal. Flushed when it returns."""
        await self.raw((text if self.human else to_json(record)) + "\n")

    async def raw(self, text: str) -> None:
        if self._progress_shown and self.human:
            await self.progress("")
        await self.out.write(text.encode(errors="backslashreplace"))

    async def note(self, text: str) -> None:
        """A remark beside the results, for people: to stderr, also when the results go into a pipe; not with --json."""
        if self.json:
            return
        self._progress_shown = False
        # Also over the terminal's echo of Ctrl-C.
        await self.err.write(((ERASE if self.live else "") + text + "\n").encode(errors="backslashreplace"))

    async def progress(self, text: str) -> None:
        """Replace the line of progress on a terminal; "" removes it. What does not fit into one line is cut off, since
        the rest of a line that wrapped would stay."""
        if not self.live or not (text or self._progress_shown):
            return
        self._progress_shown = bool(text)
        columns = self.err.columns()
        if 0 < columns <= len(text):
            text = text[: columns - 2] + "…"
        await self.err.write(f"{ERASE}{text}".encode(errors="backslashreplace"))


def error_record(error: BaseException) -> dict[str, Any]:
    """{"error": code, "message": sentence} and what else the error knows."""
    if isinstance(error, ChangefeedError):
        details = {key: value for key, value in error.details().items() if value is not None}
        return {"error": error.code, "message": str(error) or error.code, **details}
    if isinstance(error, trio.TooSlowError):
        return {"error": "timed-out", "message": str(error) or "there was no answer in time"}
    if isinstance(error, OSError):
        return {"error": "os-error", "message": str(error)}
    return {"error": "internal", "message": f"{type(error).__name__}: {error}"}


def say_error(error: BaseException, *, json: bool) -> None:
    """One sentence to stderr, with the error's code; a JSON object with --json."""
    record = error_record(error)
    if json:
        text = to_json(record)
    else:
        sentence = printable(record["message"].rstrip("."))
        text = f"changefeed: {sentence} ({record['error']})"
        for key in ("earliest", "head"):
            if key in record:
                text += f"\n  {key}: {record[key]}"
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        pass  # nobody reads what went wrong; the exit status still says that something did
