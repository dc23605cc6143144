"""Records, and how they are kept: in memory, and in files that a SIGKILL cannot shorten.

A record is a plain dict, as changefeed/history/__init__.py has it. In a file it is one line of JSON, written by one
write(2) to a descriptor opened for appending: it is there whole or, if a kill or a full disk cut it off, without its
end. Whoever goes on with a file first drops such a remainder: what was not completed never happened.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

#: One record: `t`, `node`, `life`, `f`, `feed`, and the facts of its kind.
Record = dict[str, Any]
#: Writes one record of a kind with its facts; everything else about it is known to the writer.
Write = Callable[..., None]

_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
#: How far back a remainder is looked for at once, in bytes.
_LOOK_BACK: Final = 65536


class BadHistory(ValueError):
    """What was given is no history. where: the file, or "" for records in memory; line: its line, or the record's
    index, counted from 1; 0: not known."""

    def __init__(self, says: str, where: str = "", line: int = 0) -> None:
        place = f"{where}, line {line}: " if where and line else f"record {line}: " if line else ""
        super().__init__(place + says)
        self.says = says
        self.where = where
        self.line = line


def now_ns() -> int:
    """CLOCK_MONOTONIC, the same for all processes of this machine."""
    return time.monotonic_ns()


class MemoryHistory:
    """A history in memory. clock: the time in nanoseconds; feed: of all its records, unless one says otherwise.

    records: everything so far, in the order in which it happened; append to it directly where that is quicker.
    """

    def __init__(self, clock: Callable[[], int], feed: str = "") -> None:
        self.records: list[Record] = []
        self.clock = clock
        self.feed = feed

    def writer(self, node: str, life: int = 1) -> Write:
        """How one run of a node writes: `write(f, **facts)`. Costs little more than the record's dict."""
        append, clock, feed = self.records.append, self.clock, self.feed

        def write(f: str, /, **facts: Any) -> None:
            append({"t": clock(), "node": node, "life": life, "f": f, "feed": feed, **facts})

        return write

    def save(self, path: Path) -> None:
        """Write all of it to a new file (an old one of that name is replaced), as `read_file` reads it."""
        write_file(path, self.records)


class Lines:
    """A file of JSON lines, written by one process at a time. Opening it drops a line that was cut off.

    Raises OSError as the system does; a line that could not be written whole is taken back before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._drop_remainder()
        except BaseException:
            os.close(self._fd)
            raise

    def _drop_remainder(self) -> None:
        size = os.fstat(self._fd).st_size
        end = size
        while end > 0:
            begin = max(0, end - _LOOK_BACK)
            found = os.pread(self._fd, end - begin, begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end != size:
            os.ftruncate(self._fd, end)

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write records with one write(2): after a SIGKILL there is a whole number of them, from the first on."""
        data = b"".join([line_of(record) for record in records])
        done = os.write(self._fd, data)
        if done != len(data):
            # The disk is full, or a limit of this process was reached. A second write tells which, as an error.
            try:
                os.write(self._fd, data[done:])
            except OSError:
                self._drop_remainder()
                raise

    def last(self, f: str) -> Record | None:
        """The newest record of a kind, or None."""
        mark = b'"f":' + _encode(f).encode()
        found = None
        with self.path.open("rb") as file:
            for line in file:
                # The mark may also stand inside of a text: only the parsed record tells.
                if mark in line and line.endswith(b"\n"):
                    record = json.loads(line)
                    if record["f"] == f:
                        found = record
        return found

    def close(self) -> None:
        os.close(self._fd)


def line_of(record: Mapping[str, Any]) -> bytes:
    """A record as a line. A lone surrogate, which has no UTF-8 form, becomes its JSON escape."""
    return _encode(record).encode(errors="backslashreplace") + b"\n"


class FileHistory:
    """One node's records in a file; several runs of a node may go on with one file, each with its life.

    feed: of all its records, unless one says otherwise. Nothing is synced: a SIGKILL loses nothing, a power loss may.
    """

    def __init__(self, path: Path, node: str, life: int = 1, feed: str = "") -> None:
        self.lines = Lines(path)
        self.node = node
        self.life = life
        self.feed = feed

    def write(self, f: str, /, **facts: Any) -> None:
        """Append one record of that kind, stamped with the time. Raises OSError."""
        self.lines.append(self._stamped(f, facts))

    def write_all(self, records: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Append several with one write(2), in that order: for what happened in one step. Raises OSError."""
        stamped = [self._stamped(f, facts) for f, facts in records]
        if stamped:
            self.lines.append(*stamped)

    def _stamped(self, f: str, facts: Mapping[str, Any]) -> Record:
        return {"t": now_ns(), "node": self.node, "life": self.life, "f": f, "feed": self.feed, **facts}

    def last(self, f: str) -> Record | None:
        """The newest record of a kind in the file, of any life, or None."""
        return self.lines.last(f)

    def close(self) -> None:
        self.lines.close()


# ---- reading


def write_file(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A new file of these records; one of that name is replaced."""
    with path.open("wb") as file:
        file.writelines(map(line_of, records))


def read_file(path: Path) -> Iterator[Record]:
    """The records of a file, in its order; a last line without its end is left out.

    Raises BadHistory that names file and line for what is no record, and for times that go back; OSError.
    """
    before = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise BadHistory(f"this is no JSON: {error}", str(path), number) from None
            try:
                check_record(record)
            except ValueError as error:
                raise BadHistory(str(error), str(path), number) from None
            if before is not None and record["t"] < before:
                raise BadHistory(
                    f"its time {record['t']} lies before {before} of the line above: a file has one writer at a "
                    "time, and one clock",
                    str(path),
                    number,
                )
            before = record["t"]
            yield record


def check_record(record: Any) -> None:
    """Raise ValueError, with a sentence, for what lacks a part that every record has. Facts are checked by the view."""
    if type(record) is not dict:
        raise ValueError(f"a record is a JSON object, not {type(record).__name__}")
    for name, kind in (("t", int), ("node", str), ("life", int), ("f", str)):
        if type(record.get(name)) is not kind:
            raise ValueError(
                f"a record's {name!r} is {'text' if kind is str else 'an integer'}: {record.get(name)!r:.80}"
            )
    if type(record.setdefault("feed", "")) is not str:
        raise ValueError(f"a record's 'feed' is text: {record['feed']!r:.80}")


def read_history(*paths: Path) -> list[Record]:
    """All records of files, and of folders' files *.jsonl, merged by time; those of one file keep their order.

    Raises BadHistory for what is no record, and where there is no file at all; OSError.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise BadHistory(f"there is no file *.jsonl in {', '.join(map(str, paths)) or 'no folder'}")
    records: list[Record] = []
    for file in files:
        records += read_file(file)
    return in_order(records)


def in_order(records: Sequence[Record]) -> list[Record]:
    """Records by time; those of one time keep their order."""
    return sorted(records, key=itemgetter("t"))
