"""Peers that are not ours, and send what they should not: F24. Each attempt says what it expects, and what it got.

What gets no answer (the server just died, the network is cut) shows nothing. What gets a wrong one is a violation.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import trio

from changefeed.change import Change
from changefeed.errors import ChangefeedError, ConnectionLost
from changefeed.history.facts import submit_facts
from changefeed.settings import Settings
from changefeed.transport import Connection
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import JSON
from changefeed.wire.changes import change_to_json
from simulations.chaos.recorder import Recorder

ANSWER_S: Final = 3.0
#: Codes by which an instance that is behind, or just failing over, may answer anything: it says no final no.
FOR_NOW: Final = frozenset(
    {"not-current", "draining", "moved", "too-many-connections", "log-unavailable", "unavailable"}
)


class NoAnswer(Exception):
    """Nothing can be concluded."""


@dataclass(frozen=True)
class Garbage:
    """url: of an instance. lineage, tail: of the log, about. number: of this attempt in the run."""

    url: str
    feed: str
    lineage: str
    tail: int
    number: int
    records: Recorder
    settings: Settings
    chance: random.Random

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("ws://").rpartition(":")
        return host, int(port)

    async def connect(self) -> Connection:
        network = WebsocketNetwork(self.settings)
        return await network.connect(self.url, subprotocols=(JSON,), message_bytes_max=2**24, timeout_s=ANSWER_S)


async def _ask(connection: Connection, message: dict[str, Any] | str | bytes) -> dict[str, Any]:
    """Send one message; the next one that comes back, or {"type": "closed", "code": close code}."""
    text = json.dumps(message) if isinstance(message, dict) else message
    try:
        await connection.send(text)
        answer: dict[str, Any] = json.loads(await connection.receive())
    except ConnectionLost as error:
        if error.close_code_received in (1006, 1001):
            raise NoAnswer from error
        return {"type": "closed", "code": error.close_code_received}
    return answer


def _code(answer: dict[str, Any]) -> str:
    code = answer.get("code", "")
    if code in FOR_NOW or answer.get("type") == "redirect":
        raise NoAnswer
    return f"{answer['type']} {code}".strip()


async def _noise(g: Garbage) -> str:
    """Bytes that are no HTTP."""
    stream = await trio.open_tcp_stream(*g.address)
    async with stream:
        await stream.send_all(g.chance.randbytes(2000) + b"\r\n\r\n")
        got = bytes(await stream.receive_some(1000))
    return "refused" if not got or b" 400 " in got.split(b"\r\n")[0] or b"101" not in got[:20] else f"got {got[:60]!r}"


async def _bad_frame(g: Garbage) -> str:
    async with _open(g) as connection:
        answer = _code(await _ask(connection, g.chance.randbytes(300)))
    return "refused" if answer.startswith(("fault", "closed")) else answer


async def _bad_types(g: Garbage) -> str:
    async with _open(g) as connection:
        answer = _code(await _ask(connection, {"type": "subscribe", "feed": 7, "start": ["beginning"], "name": None}))
    return "refused" if answer.startswith(("fault", "closed")) else answer


async def _foreign_position(g: Garbage) -> str:
    return await _subscribe_at(g, f"{g.chance.randbytes(8).hex()}.1.{g.chance.randbytes(4).hex()}.5", "other-lineage")


async def _future_position(g: Garbage) -> str:
    position = f"{g.lineage}.9999.{g.chance.randbytes(4).hex()}.{g.tail + 10**9}"
    return await _subscribe_at(g, position, "future-position")


async def _foreign_term(g: Garbage) -> str:
    """A seq of the log under a term that it does not have; where retention has taken that seq meanwhile, too old."""
    position = f"{g.lineage}.1.{g.chance.randbytes(4).hex()}.{max(1, g.tail - 20)}"
    return await _subscribe_at(g, position, "other-lineage", "position-too-old")


async def _subscribe_at(g: Garbage, position: str, *codes: str) -> str:
    async with _open(g) as connection:
        message = {"type": "subscribe", "feed": g.feed, "start": {"position": position}, "name": "stranger"}
        answer = _code(await _ask(connection, message))
    return "refused" if answer in {f"fault {code}" for code in codes} else f"position {position} was answered {answer}"


async def _oversized(g: Garbage) -> str:
    async with _open(g) as connection:
        answer = _code(await _ask(connection, "x" * (8 * 2**20)))
    return "refused" if answer.startswith(("fault", "closed")) else answer


async def _replayed(g: Garbage) -> str:
    """One publish, again, and again with other bytes: answered, answered the same, refused."""
    node = f"g{g.number}"
    change = Change("vm", f"{node}.1.0", "update", None, {"by": "stranger"})
    async with _open(g) as connection:
        opened = await _ask(connection, {"type": "open", "feed": g.feed, "publisher": node, "session": node})
        if opened.get("type") != "opened":
            _code(opened)
            raise NoAnswer
        message = {"type": "publish", "after": 0, "number": 1, "sizes": [1], "changes": [change_to_json(change)]}
        g.records.write_for(node, 1, "submit", **submit_facts(f"{node}.1", [change]))
        first = await _answer(connection, message)
        position = first.get("first")
        if position is None:
            _code(first)
            return f"a first publish was answered {first}"
        g.records.write_for(node, 1, "acked", op=f"{node}.1", first=position, last=position,
                            repeated=bool(first.get("repeated")))  # fmt: skip
        again = await _answer(connection, message)
        if again.get("first") != position or not again.get("repeated"):
            _code(again)
            return f"a replayed publish was answered {again}, the first one at {position}"
        other = {**message, "changes": [change_to_json(Change("vm", f"{node}.1.0", "update", None, {"by": "other"}))]}
        answer = _code(await _answer(connection, other))
    return "refused" if answer.endswith("number-reused") else f"a number with other bytes was answered {answer}"


async def _answer(connection: Connection, message: dict[str, Any]) -> dict[str, Any]:
    answer = await _ask(connection, message)
    while answer.get("type") == "beat":
        answer = json.loads(await connection.receive())
    if answer.get("type") in ("reopen", "redirect"):
        raise NoAnswer
    return answer


async def send_large(url: str, size: int) -> bool:
    """Send one message of that size as a first one; whether the server cut it off, or could not be reached."""
    try:
        with trio.fail_after(ANSWER_S):
            network = WebsocketNetwork(Settings())
            connection = await network.connect(url, subprotocols=(JSON,), message_bytes_max=2**24, timeout_s=ANSWER_S)
            try:
                await connection.send("x" * size)
                return not json.loads(await connection.receive())
            finally:
                connection.abort()
    except (ChangefeedError, trio.TooSlowError, ValueError):
        return True


class _open:
    def __init__(self, garbage: Garbage) -> None:
        self._garbage = garbage

    async def __aenter__(self) -> Connection:
        self._connection = await self._garbage.connect()
        return self._connection

    async def __aexit__(self, *exc: object) -> None:
        self._connection.abort()


ATTEMPTS: Final[tuple[Callable[[Garbage], Awaitable[str]], ...]] = (
    _noise, _bad_frame, _bad_types, _foreign_position, _future_position, _foreign_term, _oversized, _replayed,
)  # fmt: skip


async def send_garbage(garbage: Garbage) -> tuple[int, list[str]]:
    """All attempts, one after the other: how many were refused as they must be, and what was wrong."""
    refused, wrong = 0, []
    for attempt in ATTEMPTS:
        try:
            with trio.fail_after(ANSWER_S):
                said = await attempt(garbage)
        except (NoAnswer, ChangefeedError, OSError, trio.BrokenResourceError, trio.TooSlowError):
            continue
        if said == "refused":
            refused += 1
        else:
            wrong.append(f"{attempt.__name__.strip('_')} at {garbage.url}: {said}")
    return refused, wrong
