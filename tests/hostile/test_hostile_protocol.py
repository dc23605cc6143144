"""Clients that speak the protocol and abuse it, against a real instance; `arena`'s healthy peers go on meanwhile."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
import trio
from hostile_arena import Arena, Peer, publish, until
from raw_socket import RawSocket, message

from changefeed.change import Change, Position
from changefeed.publisher.driver import open_publisher
from changefeed.wire import JSON, MSGPACK, PEER
from changefeed.wire.changes import encode_change
from changefeed.wire.codec import decode
from changefeed.wire.messages import (
    Answer,
    Ask,
    Beat,
    Events,
    Fault,
    Handled,
    Open,
    Opened,
    PeerBeat,
    PeerHello,
    Publish,
    Said,
    Start,
    Subscribe,
    Subscribed,
)

pytestmark = pytest.mark.processes

#: What a peer that does not read leaves unread: the least that the kernel allows.
SMALL = 1024
SUBSCRIBE = Subscribe("free", Start(at="beginning"), "abuse")


def listed(arena: Arena, feed: str, name: str) -> list[dict[str, Any]]:
    subscribers = arena.instance.get("/status")["feeds"][feed]["subscribers"]
    return [one for one in subscribers if one["name"] == name]


async def test_a_subscriber_lies_about_what_it_handled(arena: Arena) -> None:
    """What it was never sent, another log's position: the session goes on, and status says nothing that is not so."""
    peer = await arena.connect()
    await peer.say(Subscribe("free", Start(at="beginning"), "liar"))
    at: Position = (await peer.hear_one(Subscribed)).position
    beyond = Position(at.lineage, 9, "0badf00d", at.seq + 10**9)
    await peer.say(Handled(Position("f" * 16, 9, "0badf00d", 1)), Handled(beyond), Beat())
    async with open_publisher("free", arena.url) as publisher:
        receipt = await publisher.publish("thing", "after-lies", "create")
    while (frame := await peer.hear_one(Events)).to.seq < receipt.position.seq:
        pass
    await peer.say(Handled(frame.to))
    await trio.to_thread.run_sync(until, lambda: listed(arena, "free", "liar")[0]["handled"] == str(frame.to))
    await peer.connection.aclose()


async def test_subscribers_that_never_read(arena: Arena) -> None:
    """Thirty megabytes wait for each; the instance keeps nothing for them, and cuts them off after `stall_after_s`."""
    async with open_publisher("free", arena.url) as publisher:
        for number in range(150):
            await publisher.submit(Change("thing", f"large-{number}", "update", body="x" * 200_000))

    def all_cut_off() -> bool:
        found = listed(arena, "free", "lazy")
        return bool(found) and not any(one["connected"] for one in found) and found[-1]["reason"] == "stalled"

    with arena.grows_by_less_than(24):
        lazy = [RawSocket(arena.instance.port, receive_bytes=SMALL) for _ in range(10)]
        for one in lazy:
            one.upgrade()
            one.send(message(Subscribe("free", Start(at="beginning"), "lazy")))
        await trio.to_thread.run_sync(until, all_cut_off)
        for one in lazy:
            one.socket.close()
    # Who reads gets all of it.
    peer = await arena.connect()
    await peer.say(SUBSCRIBE)
    head = (await peer.hear_one(Subscribed)).head
    while (await peer.hear_one(Events)).to.seq < head.seq:
        pass
    await peer.connection.aclose()


def test_a_publisher_that_never_reads_its_answers(arena: Arena) -> None:
    """Each publish is refused with a sentence that it does not take: the connection is dropped, nothing piles up."""
    with arena.grows_by_less_than(24), RawSocket(arena.instance.port, receive_bytes=SMALL) as raw:
        raw.upgrade()
        raw.send(message(Open("vmapi", "deaf", "session")))
        batch = message(publish(1, resource="mv"))
        while raw.send(batch * 100):
            pass


def test_a_publisher_that_opens_again_and_again(arena: Arena) -> None:
    """Without reading what it gets: in the end the connection is closed, or all of them are answered."""
    with arena.grows_by_less_than(24), RawSocket(arena.instance.port) as raw:
        raw.upgrade()
        raw.send(message(Open("free", "flood", "session")) * 300)
        answered = 0
        while answered < 300:
            found = raw.frame()
            assert found is not None
            heard = decode(found[1], MSGPACK)
            if isinstance(heard, Fault):
                assert heard.code == "bad-message"
                break
            assert isinstance(heard, Opened | Beat)
            answered += isinstance(heard, Opened)


async def test_publishes_at_once_beyond_the_bound(arena: Arena) -> None:
    """16 MiB in batches of 1 MiB, four times, while the log is held: what was taken is stored once it is free, no more
    is kept than was announced."""
    holder = sqlite3.connect(arena.folder / "log" / "free.db", isolation_level=None)
    peers = [await opened(arena, f"burst-{number}") for number in range(4)]
    with arena.grows_by_less_than(160):
        try:
            holder.execute("BEGIN IMMEDIATE")
            faults = []
            for peer, welcome in peers:
                for number in range(1, welcome.limits.in_flight_max + 2):
                    await peer.say(publish(number, body="x" * 1_000_000))
            for peer, _ in peers:
                fault, _ = await peer.end()
                faults.append(fault.code if fault else "")
        finally:
            holder.close()
        assert faults == ["bad-message"] * len(peers)
    await arena.serves()


async def opened(arena: Arena, publisher: str, subprotocol: str = MSGPACK, feed: str = "free") -> tuple[Peer, Opened]:
    peer = await arena.connect(subprotocol)
    await peer.say(Open(feed, publisher, "session"))
    return peer, await peer.hear_one(Opened)


async def test_bodies_that_cost_more_than_they_weigh(arena: Arena) -> None:
    """Two megabytes of empty lists are a legal publish: they are checked in parts, and stored."""
    peer, _ = await opened(arena, "lists")
    change = encode_change(Change("vm", "lists", "update", body=[[]] * 250_000), 2**20)
    with arena.grows_by_less_than(96):
        await peer.say(Publish(0, 1, (1,) * 8, change * 8))
        assert (await peer.answer()).first is not None
    await peer.connection.aclose()


async def test_a_subscriber_that_gets_such_bodies_as_json(arena: Arena) -> None:
    """They are written a change at a time, beside the event loop."""
    peer, _ = await opened(arena, "lists-again")
    change = encode_change(Change("vm", "lists", "update", body=[[]] * 150_000), 2**20)
    await peer.say(Publish(0, 1, (8,), change * 8))
    first = (await peer.answer()).first
    await peer.connection.aclose()
    assert first is not None
    before = Position(first.lineage, first.epoch, first.term, first.seq - 1)
    with arena.grows_by_less_than(96):
        reader = await arena.connect(JSON)
        await reader.say(Subscribe("free", Start(position=before), "json"))
        while len(text := await reader.connection.receive()) < 2**20:
            pass
    assert str(text).count('"resource":"vm"') == 8
    await reader.connection.aclose()


async def test_a_large_json_publish(arena: Arena) -> None:
    """JSON is decoded at once, beside the event loop: it takes about thirty times its length."""
    peer, _ = await opened(arena, "json", JSON)
    body = "[" + "[]," * 80_000 + "[]]"
    change = f'{{"resource": "vm", "id": "json", "op": "update", "body": {body}}}'
    text = f'{{"type": "publish", "after": 0, "number": 1, "sizes": [8], "changes": [{",".join([change] * 8)}]}}'
    with arena.grows_by_less_than(128):
        await peer.say(text)
        answer = await peer.answer()
    assert isinstance(answer, Answer) and answer.first is not None
    await peer.connection.aclose()


async def test_a_stranger_who_plays_an_instance(arena: Arena) -> None:
    """Claims a term far in the future, another log, asks nonsense: the leader goes on to lead in its epoch."""
    before = arena.instance.get("/status")["feeds"]["free"]
    lineage = Position.parse(before["head"]).lineage
    for tail in (None, Position(lineage, 2**53 - 1, "0badf00d", 2**53 - 1), Position("f" * 16, 1, "0badf00d", 1)):
        peer = await arena.connect(PEER)
        await peer.say(PeerHello("free", "stranger", "0123456789abcdef", "ws://127.0.0.1:1", tail))
        beat = PeerBeat("stranger", "0123456789abcdef", "leading", 2**53 - 1, "0badf00d", tail, log_ok=True)
        try:
            for _ in range(20):
                await peer.say(beat)
            await peer.hear()
        finally:
            peer.connection.abort()
    peer = await arena.connect(PEER)
    await peer.say(Ask("free", "nobody"))
    assert isinstance(await peer.hear(), Said)
    peer.connection.abort()
    await arena.serves()
    after = arena.instance.get("/status")["feeds"]["free"]
    assert (after["leader"], after["epoch"]) == (before["leader"], before["epoch"])


async def test_a_hundred_ways_to_leave_in_the_middle(arena: Arena) -> None:
    """Dropped after each step of a conversation: nothing is left of them."""
    for step in range(50):
        with RawSocket(arena.instance.port) as raw:
            raw.upgrade()
            words = [message(Open("free", f"leaver-{step}", "s")), message(publish(1)), message(Beat())]
            said = b"".join(words)
            raw.send(said[: len(said) * step // 50])
    for step in range(50):
        with RawSocket(arena.instance.port) as raw:
            raw.upgrade()
            said = message(Subscribe("free", Start(at="beginning"), "leaver")) + message(Beat())
            raw.send(said[: len(said) * step // 50])
    await trio.to_thread.run_sync(until, lambda: not any(one["connected"] for one in listed(arena, "free", "leaver")))
    await arena.serves()
