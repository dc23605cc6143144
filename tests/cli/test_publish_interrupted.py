"""A stream of lines that is interrupted says how far it came, and what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from cli_fakes import FakePublisher, ListSink, line
from trio.testing import MockClock

from changefeed.cli import publish as under_test
from changefeed.cli.output import Output
from changefeed.cli.parser import parse
from changefeed.errors import OutcomeUnknown


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> FakePublisher:
    """Whoever opens a publisher gets this one: it answers all lines but the last one."""
    fake = FakePublisher()
    fake.delays["never"] = 1e9

    @asynccontextmanager
    async def opened(*args: Any, **options: Any) -> AsyncIterator[FakePublisher]:
        yield fake

    async def lines(fd: int) -> AsyncIterator[bytes]:
        yield line("a") + line("b") + line("never")  # a real file is read by a thread, which no virtual clock waits for

    monkeypatch.setattr("changefeed.publisher.driver.open_publisher", opened)
    monkeypatch.setattr("changefeed.cli.lines.chunks_of", lines)
    return fake


async def run(err: ListSink, *flags: str) -> int:
    _, values = parse(["publish", "vmapi", "-", *flags], {})
    return await under_test.run(values, Output(out=ListSink(), err=err))


@pytest.mark.parametrize("name", [None, "importer"])
async def test_an_interrupted_stream_says_how_far_it_came(
    publisher: FakePublisher, autojump_clock: MockClock, name: str | None
) -> None:
    """Cancelled, as by Ctrl-C; under a name it may simply be run again."""
    err = ListSink()
    flags = () if name is None else ("--publisher", name)
    with trio.move_on_after(5) as scope:
        await run(err, *flags, "--timeout", "1h")
    assert scope.cancelled_caught
    told = err.data.decode()
    assert told.startswith("2 lines answered; what was sent after them may be stored or not")
    assert ("run it again with --publisher importer" in told) == (name is not None)


async def test_an_answer_that_does_not_come_says_how_far_it_came(
    publisher: FakePublisher, autojump_clock: MockClock
) -> None:
    err = ListSink()
    with pytest.raises(OutcomeUnknown, match="line 3: no answer within 5 s"):
        await run(err, "--timeout", "5s")
    assert err.data.startswith(b"2 lines answered")
