"""A publisher and a place for output that do what a test wants."""

from __future__ import annotations

import json

import trio

from changefeed.change import Change, Position, Receipt
from changefeed.errors import ChangefeedError


class ListSink:
    """Keeps what was written. terminal: what it pretends to be."""

    def __init__(self, terminal: bool = False) -> None:
        self.terminal = terminal
        self.width = 0
        self.data = b""

    def is_terminal(self) -> bool:
        return self.terminal

    def columns(self) -> int:
        return self.width

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.data += data

    async def wait_closed(self) -> None:
        await trio.sleep_forever()


class FakePending:
    """An outcome that the test decides, `delay` virtual seconds after the wait began."""

    def __init__(self, result: Receipt | ChangefeedError, delay: float = 0) -> None:
        self.result = result
        self.delay = delay
        self.done = False

    async def wait(self) -> Receipt:
        await trio.sleep(self.delay)
        self.done = True
        if isinstance(self.result, ChangefeedError):
            raise self.result
        return self.result


class FakePublisher:
    """Takes changes and answers with the next seq; `answers` and `refusals` by id decide otherwise."""

    class status:
        last_error = None
        server = "ws://one:7557"

    def __init__(self) -> None:
        self.submitted: list[tuple[int | None, str]] = []
        self.answers: dict[str, ChangefeedError] = {}
        self.refusals: dict[str, ChangefeedError] = {}
        self.delays: dict[str, float] = {}
        self.ready = True

    async def wait_ready(self) -> None:
        if not self.ready:
            await trio.sleep_forever()

    async def submit(self, change: Change, *, number: int | None = None) -> FakePending:
        await trio.lowlevel.checkpoint()
        if change.id in self.refusals:
            raise self.refusals[change.id]
        self.submitted.append((number, change.id))
        position = Position("0" * 16, 1, "0" * 8, len(self.submitted))
        return FakePending(self.answers.get(change.id, Receipt(position, position)), self.delays.get(change.id, 0))


def line(id: str) -> bytes:
    return json.dumps({"resource": "vm", "id": id, "op": "update"}).encode() + b"\n"
