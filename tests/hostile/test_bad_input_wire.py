"""Rows of "On the wire": raw connections to a real instance, each ended or answered as the page says."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import pytest
import trio
from bad_input_page import Outcome, Page
from hostile_arena import Arena, Peer, publish

from changefeed.change import Change, Filter, Position
from changefeed.errors import Unreachable, UnsupportedProtocol
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.changes import encode_change
from changefeed.wire.messages import Answer, Beat, Open, Opened, Publish, Start, Subscribe, Subscribed

pytestmark = pytest.mark.processes

SECTION = "On the wire"
Row = Callable[[Arena], Awaitable[Outcome]]
ROWS: dict[str, Row] = {}


def row(input: str) -> Callable[[Row], Row]:
    def add(made: Row) -> Row:
        ROWS[input] = made
        return made

    return add


async def ended(peer: Peer) -> Outcome:
    fault, lost = await peer.end()
    if fault is None:
        return Outcome("", lost.reason, f"close {lost.close_code_received}")
    return Outcome(fault.code, fault.message, f"close {lost.close_code_received}")


async def after(arena: Arena, *messages: Any, subprotocol: str = MSGPACK) -> Outcome:
    """What ends a new connection that says this."""
    peer = await arena.connect(subprotocol)
    await peer.say(*messages)
    return await ended(peer)


def subscribe(feed: str = "vmapi", start: Start | None = None, **more: Any) -> Subscribe:
    return Subscribe(feed, start or Start(at="now"), "row", **more)


async def opened(arena: Arena, publisher: str, feed: str = "vmapi", **more: Any) -> tuple[Peer, Opened]:
    peer = await arena.connect()
    await peer.say(Open(feed, publisher, "session", **more))
    return peer, await peer.hear_one(Opened)


async def refused(arena: Arena, publisher: str, *batches: Publish) -> Outcome:
    """The answer to the last of them; the connection goes on."""
    peer, _ = await opened(arena, publisher)
    answer = Answer(0, 0)
    stored = 0
    for batch in batches:
        await peer.say(batch)
        answer = await peer.answer()
        stored = batch.number + sum(batch.sizes) - 1 if answer.first else stored
    assert answer.code, answer
    await peer.say(publish(stored + 1, id="row-goes-on"))
    assert (await peer.answer()).first is not None
    await peer.connection.aclose()
    return Outcome(answer.code, answer.message, "answer")


async def head(arena: Arena) -> Position:
    peer = await arena.connect()
    await peer.say(subscribe())
    welcome = await peer.hear_one(Subscribed)
    await peer.connection.aclose()
    position: Position = welcome.head
    return position


# ---- what is no message


@row("bytes that are not msgpack")
async def _(arena: Arena) -> Outcome:
    return await after(arena, b"\xc1\xc1")


@row("text in the msgpack sub-protocol")
async def _(arena: Arena) -> Outcome:
    return await after(arena, "{}")


@row("text that is not JSON in the JSON sub-protocol")
async def _(arena: Arena) -> Outcome:
    return await after(arena, "{nonsense", subprotocol=JSON)


@row("only sub-protocols that the server does not speak")
async def _(arena: Arena) -> Outcome:
    with pytest.raises(UnsupportedProtocol) as caught:
        await arena.connect("changefeed.v9.msgpack")
    return Outcome(caught.value.code, str(caught.value), "HTTP 400")


@row("another path than /v1")
async def _(arena: Arena) -> Outcome:
    with pytest.raises(Unreachable) as caught:
        await arena.network.connect(arena.url + "/v2", subprotocols=(MSGPACK,), message_bytes_max=1000, timeout_s=60)
    return Outcome(caught.value.code, str(caught.value), "HTTP 404")


@row("a message that is no map")
async def _(arena: Arena) -> Outcome:
    return await after(arena, "[1]", subprotocol=JSON)


@row("a message without a type")
async def _(arena: Arena) -> Outcome:
    return await after(arena, "{}", subprotocol=JSON)


@row("a type that nobody knows")
async def _(arena: Arena) -> Outcome:
    return await after(arena, '{"type": "subscrib"}', subprotocol=JSON)


@row("a `subscribe` without its feed")
async def _(arena: Arena) -> Outcome:
    return await after(arena, '{"type": "subscribe"}', subprotocol=JSON)


@row("a `subscribe` whose name is a number")
async def _(arena: Arena) -> Outcome:
    text = '{"type": "subscribe", "feed": "vmapi", "start": {"at": "now"}, "name": 7}'
    return await after(arena, text, subprotocol=JSON)


@row("nothing at all for `handshake_s` (1 s here)")
async def _(arena: Arena) -> Outcome:
    return await after(arena)


@row("a first message of more than 1 MiB")
async def _(arena: Arena) -> Outcome:
    return await after(arena, msgpack.packb({"type": "subscribe", "junk": [[]] * 2**20}))


@row("a message above frame_bytes_max")
async def _(arena: Arena) -> Outcome:
    peer = await arena.connect()
    await peer.say(Open("vmapi", "row-frame", "session"))
    await peer.hear_one(Opened)
    await peer.say(b"\xc4" + bytes(9 * 2**20))
    return await ended(peer)


@row("a message above what the transport takes")
async def _(arena: Arena) -> Outcome:
    peer = await arena.connect()
    await peer.say(bytes(12 * 2**20))
    return await ended(peer)


@row("a part of more than 1 MiB that is not the payload")
async def _(arena: Arena) -> Outcome:
    peer, _ = await opened(arena, "row-part")
    await peer.say(msgpack.packb({"type": "publish", "after": 0, "number": 1, "sizes": [1] * 2**20, "payload": b"x"}))
    return await ended(peer)


# ---- what comes at the wrong time


@row("a `publish` before the `open`")
async def _(arena: Arena) -> Outcome:
    return await after(arena, publish(1))


@row("a second `subscribe` on one connection")
async def _(arena: Arena) -> Outcome:
    return await after(arena, subscribe(), subscribe())


@row("an `open` of another publisher on one connection")
async def _(arena: Arena) -> Outcome:
    peer, _ = await opened(arena, "row-first")
    await peer.say(Open("vmapi", "row-second", "session"))
    return await ended(peer)


@row("more publishes at once than `in_flight_max`")
async def _(arena: Arena) -> Outcome:
    """With the feed's log held by somebody else, so that none is answered meanwhile."""
    peer, welcome = await opened(arena, "row-flight", "free")
    holder = sqlite3.connect(arena.folder / "log" / "free.db", isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        for number in range(1, welcome.limits.in_flight_max + 2):
            await peer.say(publish(number))
        found = await ended(peer)
    finally:
        holder.close()
    # What was taken before is stored all the same.
    peer, _ = await opened(arena, "row-flight", "free", incarnation=welcome.incarnation)
    await peer.say(publish(1))
    assert (await peer.answer()).repeated
    await peer.connection.aclose()
    return found


# ---- names


@row("a feed that the instance does not serve")
async def _(arena: Arena) -> Outcome:
    return await after(arena, subscribe("vmap"))


@row("a resource in a filter that the feed does not declare")
async def _(arena: Arena) -> Outcome:
    return await after(arena, subscribe(filter=Filter({"nik": ()})))


@row("a field in a filter that the feed does not declare")
async def _(arena: Arena) -> Outcome:
    return await after(arena, subscribe(filter=Filter({"vm": ("stat",)})))


@row("a filter of 10,000 ids")
async def _(arena: Arena) -> Outcome:
    return await after(arena, subscribe(filter=Filter(ids=frozenset(map(str, range(10_000))))))


@row("a resource in a change that the feed does not declare")
async def _(arena: Arena) -> Outcome:
    return await refused(arena, "row-resource", publish(1, resource="mv"))


@row("a field in a change that the feed does not declare")
async def _(arena: Arena) -> Outcome:
    return await refused(arena, "row-field", publish(1, fields=("state", "rum")))


@row("a change whose op is two words")
async def _(arena: Arena) -> Outcome:
    good = encode_change(Change("vm", "row", "update"), 2**20)
    return await refused(arena, "row-op", Publish(0, 1, (1,), good.replace(b"\xa6update", b"\xa6up ate")))


@row("the publisher id `outbox`")
async def _(arena: Arena) -> Outcome:
    return await after(arena, Open("vmapi", "outbox", "session"))


# ---- sizes and numbers


@row("a change above change_bytes_max")
async def _(arena: Arena) -> Outcome:
    return await refused(arena, "row-change", publish(1, body="x" * 2**20))


@row("a group above group_bytes_max")
async def _(arena: Arena) -> Outcome:
    change = encode_change(Change("vm", "row", "update", body="x" * 1_000_000), 2**20)
    return await refused(arena, "row-group", Publish(0, 1, (9,), change * 9))


@row("sizes that do not add up to the number of changes")
async def _(arena: Arena) -> Outcome:
    peer, _ = await opened(arena, "row-sizes")
    await peer.say(Publish(0, 1, (2,), publish(1).payload))
    return await ended(peer)


@row("a publisher's number that leaves one out")
async def _(arena: Arena) -> Outcome:
    return await refused(arena, "row-gap", publish(1), publish(3))


@row("a publisher's number that does not lie above `after`")
async def _(arena: Arena) -> Outcome:
    peer, _ = await opened(arena, "row-after")
    await peer.say(Publish(5, 5, (1,), publish(1).payload))
    return await ended(peer)


@row("a number again with other bytes")
async def _(arena: Arena) -> Outcome:
    return await refused(arena, "row-reused", publish(1), publish(1, body="other"))


@row("an incarnation that the log never gave")
async def _(arena: Arena) -> Outcome:
    return await after(arena, Open("vmapi", "row-never", "session", incarnation=10**6))


@row("a last receipt that the log does not hold")
async def _(arena: Arena) -> Outcome:
    beyond = await head(arena)
    beyond = Position(beyond.lineage, beyond.epoch, beyond.term, beyond.seq + 10**6)
    return await after(arena, Open("vmapi", "row-receipt", "session", last_receipt=beyond))


# ---- positions


@row("a position that is none")
async def _(arena: Arena) -> Outcome:
    text = '{"type": "subscribe", "feed": "vmapi", "start": {"position": "12"}, "name": "row"}'
    return await after(arena, text, subprotocol=JSON)


@row("a position from the future")
async def _(arena: Arena) -> Outcome:
    at = await head(arena)
    return await after(arena, subscribe(start=Start(position=Position(at.lineage, at.epoch, at.term, at.seq + 10**6))))


@row("a position of another log")
async def _(arena: Arena) -> Outcome:
    return await after(arena, subscribe(start=Start(position=Position("f" * 16, 1, "0badf00d", 1))))


@row("a position of a term that the log does not have")
async def _(arena: Arena) -> Outcome:
    at = await head(arena)
    return await after(arena, subscribe(start=Start(position=Position(at.lineage, at.epoch, "0badf00d", 1))))


# ---- the tests


@pytest.mark.parametrize("input", ROWS)
async def test_a_row(arena: Arena, page: Page, input: str) -> None:
    """Ends as the page says, whatever the encoding, and newcomers are served afterwards."""
    with trio.fail_after(60):
        outcome = await ROWS[input](arena)
    page.holds(SECTION, input, outcome)


async def test_newcomers_are_served_afterwards(arena: Arena) -> None:
    """On the feed on which the log was held, too."""
    await arena.serves()


async def test_a_subscriber_tells_nonsense_about_what_it_handled(arena: Arena) -> None:
    """What it was never sent, another log's position, an older one: the session goes on, status shows nothing false."""
    from changefeed.wire.messages import Handled

    peer = await arena.connect()
    await peer.say(Subscribe("vmapi", Start(at="now"), "liar"))
    at: Position = (await peer.hear_one(Subscribed)).position
    await peer.say(
        Handled(Position("f" * 16, 9, "0badf00d", 1)),
        Handled(Position(at.lineage, at.epoch, at.term, at.seq + 10**9)),
        Beat(),
    )
    feed = arena.instance.get("/status")["feeds"]["vmapi"]
    (liar,) = [one for one in feed["subscribers"] if one["name"] == "liar"]
    assert liar["handled_seq"] is None or liar["handled_seq"] <= feed["seq"]
    await peer.say(Beat())
    await peer.connection.aclose()


def test_the_section_is_whole(page: Page) -> None:
    """The page has these rows, in this order, and no other."""
    page.expects(SECTION, list(ROWS))
