"""JSON lines become receipts, in order; a bad line is told with its number and costs no other one anything."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from cli_fakes import FakePublisher, line
from hypothesis import given
from hypothesis import strategies as st

from changefeed.change import Receipt
from changefeed.cli import lines as under_test
from changefeed.cli.lines import chunks_of, connect, numbered_lines, publish_lines
from changefeed.errors import (
    ChangefeedError,
    LogFull,
    NumberReused,
    OutcomeUnknown,
    UnknownResource,
    Unreachable,
)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await trio.lowlevel.checkpoint()
        yield part


async def published(
    publisher: FakePublisher, *parts: bytes, numbered: bool = False, timeout_s: float = 10
) -> tuple[Any, list[tuple[int, str]]]:
    told: list[tuple[int, str]] = []

    async def tell(number: int, result: Receipt | ChangefeedError) -> None:
        await trio.lowlevel.checkpoint()
        told.append((number, result.code if isinstance(result, ChangefeedError) else f"seq {result.position.seq}"))

    tally = await publish_lines(
        publisher, pieces(*parts), numbered=numbered, timeout_s=timeout_s, tell=tell  # type: ignore[arg-type]
    )  # fmt: skip
    return tally, told


async def collected(*parts: bytes) -> list[tuple[int, bytes | None]]:
    return [item async for item in numbered_lines(pieces(*parts))]


@given(st.lists(st.binary(max_size=30)))
def test_lines_do_not_depend_on_how_they_arrive(parts: list[bytes]) -> None:
    """However the bytes are cut into pieces, the lines and their numbers are the same."""
    whole = b"".join(parts)
    expected = whole.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    found = trio.run(collected, *parts, clock=trio.testing.MockClock(autojump_threshold=0))
    assert found == list(enumerate(expected, 1))


async def test_a_line_that_is_too_long_is_dropped_but_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not grow in memory, and the line after it has its own number."""
    monkeypatch.setattr(under_test, "LINE_BYTES_MAX", 10)
    assert await collected(b"x" * 8, b"x" * 8, b"x" * 100 + b"\nok\n", b"y" * 11) == [(1, None), (2, b"ok"), (3, None)]


async def test_each_line_gets_its_receipt_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """Also where a later line is answered first."""
    publisher = FakePublisher()
    publisher.delays["a"] = 5
    tally, told = await published(publisher, line("a") + line("b"), line("c"))
    assert told == [(1, "seq 1"), (2, "seq 2"), (3, "seq 3")]
    assert (tally.acknowledged, tally.refused) == (3, 0)


async def test_whoever_stops_listening_is_all_that_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many lines are on their way when nobody reads the receipts any more."""
    monkeypatch.setattr(under_test, "AHEAD_MAX", 2)

    async def tell(number: int, result: Receipt | ChangefeedError) -> None:
        await trio.testing.wait_all_tasks_blocked()
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await publish_lines(FakePublisher(), pieces(line("a") * 10), numbered=False, timeout_s=10, tell=tell)  # type: ignore[arg-type]


async def test_a_line_that_was_trimmed_is_told_and_the_rest_goes_on() -> None:
    """A rerun reaches its new lines although retention has passed its first ones."""
    publisher = FakePublisher()
    publisher.answers["a"] = OutcomeUnknown("it was stored once and has been trimmed since")
    tally, told = await published(publisher, line("a") + line("b"), numbered=True)
    assert told == [(1, "outcome-unknown"), (2, "seq 2")]
    assert (tally.acknowledged, tally.refused, tally.unknown) == (1, 0, 1)


async def test_a_bad_line_is_told_with_its_number_and_the_rest_goes_on() -> None:
    """Malformed, of an unknown name, refused at once and refused later; blank lines are passed over."""
    publisher = FakePublisher()
    publisher.refusals["b"] = UnknownResource("no such resource")
    publisher.answers["c"] = LogFull("the disk is full")
    wrong = b'{"resource": "vm"}\nnot json\n[1]\n\xff\n{"resource":"vm","id":"x","op":"u","colour":1}\n\n  \r\n'
    tally, told = await published(publisher, line("a") + wrong + line("b") + line("c") + line("d"), numbered=True)
    assert told == [
        (1, "seq 1"), (2, "invalid-change"), (3, "bad-message"), (4, "invalid-change"), (5, "bad-message"),
        (6, "invalid-change"), (9, "unknown-resource"), (10, "log-full"), (11, "seq 3"),
    ]  # fmt: skip
    assert publisher.submitted == [(1, "a"), (10, "c"), (11, "d")]
    assert (tally.acknowledged, tally.refused) == (2, 7)


async def test_without_a_name_the_publisher_numbers() -> None:
    """Only a named publisher's lines carry numbers."""
    publisher = FakePublisher()
    await published(publisher, line("a") + b"oops\n" + line("b"))
    assert publisher.submitted == [(None, "a"), (None, "b")]


async def test_an_answer_that_does_not_come_is_of_unknown_outcome(autojump_clock: trio.testing.MockClock) -> None:
    """The error names the line; what was acknowledged before has been told."""
    publisher = FakePublisher()
    publisher.delays["b"] = 11
    with pytest.raises(OutcomeUnknown, match="line 2: no answer within 10 s"):
        await published(publisher, line("a") + line("b"))


async def test_what_ends_the_publisher_ends_the_run() -> None:
    """A reused number stops a publisher: the line is told, and the run does not go on as if nothing had happened."""
    publisher = FakePublisher()
    publisher.refusals["b"] = NumberReused("other bytes")
    with pytest.raises(NumberReused):
        await published(publisher, line("a") + line("b") + line("c"), numbered=True)


async def test_nobody_there_is_said_in_time(autojump_clock: trio.testing.MockClock) -> None:
    """A publisher that no leader takes in is unreachable after the time-out."""
    publisher = FakePublisher()
    publisher.ready = False
    with pytest.raises(Unreachable, match="within 3 s"):
        await connect(publisher, 3)  # type: ignore[arg-type]


async def test_a_pipe_is_read_as_it_comes() -> None:
    """A line is published before the next one is written: nothing waits for a full buffer."""
    reading, writing = os.pipe()
    publisher, told = FakePublisher(), trio.Event()

    async def tell(number: int, result: Receipt | ChangefeedError) -> None:
        told.set()

    async def write() -> None:
        os.write(writing, line("a"))
        await told.wait()
        os.close(writing)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        tally = await publish_lines(
            publisher, chunks_of(reading), numbered=False, timeout_s=10, tell=tell  # type: ignore[arg-type]
        )  # fmt: skip
    os.close(reading)
    assert tally.acknowledged == 1
