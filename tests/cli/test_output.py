"""Lines for people, JSON into pipes; a pipe that nobody reads any more ends a command quietly."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from cli_fakes import ListSink

from changefeed.cli.output import (
    FdSink,
    Output,
    duration_text,
    error_record,
    printable,
    say_error,
    size_text,
    to_json,
)
from changefeed.errors import PositionTooOld
from changefeed.settings import parse_duration, parse_size


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            pass  # the test closed it


async def test_people_get_text_and_pipes_get_json() -> None:
    """A terminal shows the text; a pipe, or --json, gets one object per line."""
    for terminal, flag, expected in (
        (True, False, b"text\n"),
        (True, True, b'{"a": 1}\n'),
        (False, False, b'{"a": 1}\n'),
    ):
        sink = ListSink(terminal)
        await Output(json=flag, out=sink, err=ListSink()).line({"a": 1}, "text")
        assert sink.data == expected


async def test_remarks_and_progress_stay_out_of_the_results() -> None:
    """Remarks go to stderr, progress only to a terminal, neither with --json."""
    out, err = ListSink(), ListSink(terminal=True)
    output = Output(out=out, err=err)
    await output.progress("1 of 2")
    await output.note("half-way")
    assert out.data == b"" and err.data == b"\r\x1b[K1 of 2\r\x1b[Khalf-way\n"

    quiet = ListSink()
    output = Output(out=out, err=quiet)
    await output.progress("1 of 2")
    assert quiet.data == b""

    output = Output(json=True, out=out, err=err)
    err.data = b""
    await output.progress("1 of 2")
    await output.note("half-way")
    assert err.data == b""


async def test_progress_stays_one_line_on_a_narrow_terminal(pipe: tuple[int, int]) -> None:
    """The last column stays free: some terminals wrap there."""
    err = ListSink(terminal=True)
    err.width = 10
    output = Output(out=ListSink(), err=err)
    await output.progress("123456789")
    await output.progress("1234567890")
    assert err.data.decode() == "\r\x1b[K123456789\r\x1b[K12345678…"
    assert FdSink(pipe[1]).columns() == 0


async def test_a_slow_reader_does_not_block_the_loop(pipe: tuple[int, int]) -> None:
    """While a pipe is full other tasks go on, and what was written arrives whole once it is read."""
    reading, writing = pipe
    data = bytes(range(256)) * 4096
    written = trio.Event()

    async def write() -> None:
        await FdSink(writing).write(data)
        written.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert not written.is_set()
        received = b""
        while len(received) < len(data):
            received += await trio.to_thread.run_sync(os.read, reading, 65536)
    assert received == data
    assert os.get_blocking(writing)


async def test_a_closed_pipe_is_noticed(pipe: tuple[int, int]) -> None:
    """While writing, and also while there is nothing to write."""
    reading, writing = pipe
    sink = FdSink(writing)
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        await sink.write(b"x")
    await sink.wait_closed()


def test_control_characters_do_not_reach_the_terminal() -> None:
    """Ids and bodies come from strangers."""
    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
    assert printable("ü ok") == "ü ok"


def test_every_value_has_a_json_line() -> None:
    """Also text with a lone surrogate; letters beyond ASCII stay readable."""
    assert to_json({"a": "ü"}) == '{"a": "ü"}'
    assert json.loads(to_json({"a": "\ud800"}).encode())["a"] == "\ud800"


def test_errors_are_one_sentence_or_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """With the error's code, and with what a resumption can start from."""
    error = PositionTooOld("position p is too old.")
    say_error(error, json=False)
    assert capsys.readouterr().err == "changefeed: position p is too old (position-too-old)\n"
    say_error(error, json=True)
    assert json.loads(capsys.readouterr().err) == {"error": "position-too-old", "message": "position p is too old."}
    assert error_record(trio.TooSlowError())["error"] == "timed-out"
    assert error_record(FileNotFoundError(2, "No such file", "x"))["error"] == "os-error"
    assert error_record(KeyError("x"))["error"] == "internal"


def test_durations_and_sizes_are_told_as_they_are_written() -> None:
    """What is shown can be typed."""
    for text in ("7d", "1h30m", "1.5s", "0s", "1d1s"):
        assert duration_text(parse_duration(text)) == text
    for text in ("4GiB", "1000", "3KiB", "0"):
        assert size_text(parse_size(text)) == text
