"""Bounds that only show in the small: what is large runs beside the loop, what is not taken is not asked for again."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hostile_arena import PATIENCE_S, publish

from changefeed.change import Change, FeedSettings, Filter, Position, Resource
from changefeed.errors import BadConfig, BadMessage, BadUrl, ConnectionLost, Unreachable, UsageError
from changefeed.instance import open_instance
from changefeed.log.memory import MemoryLogStore
from changefeed.serving import large
from changefeed.serving.entry import serve_connection
from changefeed.settings import Settings
from changefeed.subscriber.driver import make_start
from changefeed.testing.fake_feed import FakeFeed, FakeLeader, ServingClient
from changefeed.transport import Request
from changefeed.transport.memory import connection_pair
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.changes import encode_change, json_texts
from changefeed.wire.codec import check_structure, encode
from changefeed.wire.messages import Answer, Events, Open, Opened, Publish, Run, Start, Subscribe
from changefeed.wire.values import loads


@asynccontextmanager
async def serving(settings: Settings | None = None) -> AsyncIterator[Callable[..., ServingClient]]:
    """A function that connects to a feed with a leader."""
    feed = await FakeFeed.create(settings)
    leader = FakeLeader(feed)
    feed.set_leader(leader)

    async def no_peers(connection: Any, first: Any) -> None:
        raise AssertionError("not a peer's connection")

    async with trio.open_nursery() as nursery:

        def connect(subprotocol: str = MSGPACK, **options: Any) -> ServingClient:
            near, far = connection_pair(subprotocol, **options)
            nursery.start_soon(serve_connection, far, Request("/v1"), {"vmapi": feed}, no_peers, feed.settings)
            return ServingClient(near, feed.log.lineage)

        nursery.start_soon(leader.work, 10**6)
        yield connect
        nursery.cancel_scope.cancel()


async def test_a_large_publish_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is being decoded, another publisher is answered."""
    begun, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    real = large.in_turn

    async def slow(work: Any) -> Any:
        def held() -> Any:
            token.run_sync_soon(begun.set)
            assert go_on.wait(PATIENCE_S)
            return work()

        return await real(held)

    monkeypatch.setattr("changefeed.serving.publishers.in_turn", slow)
    with trio.fail_after(PATIENCE_S):
        async with serving() as connect:
            first, second = connect(), connect()
            for client, name in ((first, "first"), (second, "second")):
                await client.say(Open("vmapi", name, name))
                assert isinstance(await client.hear(), Opened)
            change = encode_change(Change("vm", "1", "update", body="x" * 1_000_000), 2**20)
            await first.say(Publish(0, 1, (1, 1), change * 2))
            await begun.wait()
            await second.say(publish(1))
            answer = await second.hear()
            assert isinstance(answer, Answer) and answer.first is not None
            go_on.set()
            answer = await first.hear()
            assert isinstance(answer, Answer) and answer.first is not None


async def test_a_large_frame_is_written_in_json_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is what it would have been."""
    turns = []

    async def counted(work: Any) -> Any:
        turns.append(work)
        return await large.in_turn(work)

    monkeypatch.setattr("changefeed.serving.driver.in_turn", counted)
    with trio.fail_after(PATIENCE_S):
        async with serving() as connect:
            publisher, subscriber = connect(), connect(JSON)
            await publisher.say(Open("vmapi", "p", "s"))
            assert isinstance(await publisher.hear(), Opened)
            await subscriber.say(Subscribe("vmapi", Start(at="beginning"), "json"))
            change = encode_change(Change("vm", "1", "update", body="x" * 1_000_000), 2**20)
            await publisher.say(Publish(0, 1, (2,), change * 2))
            await subscriber.until(2)
            assert [len(event.body) for event in subscriber.events] == [1_000_000] * 2
            assert len(turns) == 1


@pytest.mark.parametrize("bodies", [0, 1, 500])
def test_changes_are_written_some_at_a_time(bodies: int) -> None:
    """The JSON of a frame is the same; a publisher may be called whatever looks like JSON."""
    changes = [Change("vm", f'"changes":[] {number}', "update", body=["x" * 500]) for number in range(bodies)]
    payload = b"".join(encode_change(change, 2**20) for change in changes)
    texts = list(json_texts(payload))
    assert len(texts) == {0: 0, 1: 1, 500: 4}[bodies]
    assert loads("[" + ",".join(texts) + "]") == [
        {"resource": "vm", "id": change.id, "op": "update", "body": change.body} for change in changes
    ]
    if bodies:
        at = Position("5e1d3c7a90b24f68", 1, "0badf00d", bodies)
        runs = (Run(1, "0badf00d", 5, "p", 1, None, payload),) * 2
        text = encode(Events(0, at, runs), JSON)
        assert isinstance(text, str)
        assert [len(run["changes"]) for run in loads(text)["runs"]] == [bodies] * 2


async def test_a_publisher_that_takes_nothing_cannot_open_for_ever() -> None:
    """What waits for it is bounded: in the end it is told to read, and nothing more is asked of the leader."""
    with trio.fail_after(PATIENCE_S):
        async with serving(Settings(in_flight_max=4)) as connect, trio.open_nursery() as nursery:
            client = connect(buffer_bytes=1)

            async def open_again_and_again() -> None:
                with pytest.raises(ConnectionLost):
                    while True:
                        await client.say(Open("vmapi", "again", "s"))

            nursery.start_soon(open_again_and_again)
            await trio.testing.wait_all_tasks_blocked()
            *answers, fault, lost = await client.hear_all()
            assert len(answers) <= 6 and all(isinstance(answer, Opened) for answer in answers)
            assert fault.code == "bad-message" and lost.close_code_received == 4541


def test_only_a_payload_may_be_large() -> None:
    """Lists by the million in any other part are refused before they are built; a large payload is not looked into."""
    import msgpack

    lists = [[]] * 1_100_000
    check_structure(encode(Publish(0, 1, (1,), b"x" * 3_000_000), MSGPACK))
    check_structure(b"x" * 3_000_000)  # no message at all: left to decode
    for hostile in ({"sizes": lists}, {"payload": lists}, {"type": "publish", "x": {"y": lists}}):
        with pytest.raises(BadMessage, match="only the payload"):
            check_structure(msgpack.packb(hostile))


RESOURCES = tuple(Resource(f"r{number}") for number in range(1025))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (FeedSettings(RESOURCES), "at most 1,024 resources"),
        (FeedSettings((Resource("v m"),)), "is not a word"),
        (FeedSettings((Resource("vm"), Resource("vm"))), "'vm' is declared twice"),
        (FeedSettings((Resource("vm", ("a b",)),)), "without spaces"),
        (FeedSettings((Resource("vm", tuple(map(str, range(1025)))),)), "1,025 fields; the limit is 1,024"),
        (FeedSettings(tuple(Resource(f"r{n}", tuple(map(str, range(1000)))) for n in range(11))), "at most 10,000"),
        (FeedSettings((Resource("vm", None, "x" * 2049),)), "2,049 characters; the limit is 2,048"),
        (FeedSettings(retention_age_s=float("inf")), "from 0 s to 100 years"),
        (FeedSettings(retention_age_s=-1), "from 0 s to 100 years"),
        (FeedSettings(retention_bytes=2**63), "how many bytes"),
        (FeedSettings(retention_count=-1), "how many events"),
    ],
)
async def test_settings_that_no_log_keeps(settings: FeedSettings, sentence: str) -> None:
    """Every publisher is told what a feed declares: beyond the wire's bounds, all of them would be shut out."""
    log = await MemoryLogStore().open("vmapi")
    with pytest.raises(BadConfig, match=sentence):
        await log.set_settings(settings)
    assert await log.settings() == FeedSettings()


@pytest.mark.parametrize("start", [2**60, -1, Start(time=2**60), Start(time=-1), True])
def test_times_that_cannot_be(start: Any) -> None:
    """A start that the wire cannot carry is refused where it is given."""
    with pytest.raises(UsageError, match="write 'beginning'"):
        make_start(start)


def test_filters_are_checked_where_they_are_made() -> None:
    """Before anything is connected; the server looks again."""
    for filter in (
        Filter({"": ()}),
        Filter({"vm": ("a b",)}),
        Filter(ids=frozenset({""})),
        Filter(ops=frozenset({"a b"})),
    ):
        with pytest.raises(UsageError):
            filter.check()
    Filter({"vm": ("state",)}, frozenset({"1"}), frozenset({"update"})).check()


async def test_an_instance_refuses_what_would_make_it_fight_itself() -> None:
    """A feed named twice would be two nodes that depose each other; a URL that is none cannot be reached by anybody."""
    for feeds, more, error in ((["a", "a"], {}, BadConfig), (["a"], {"advertise": "broker:1"}, BadUrl)):
        with pytest.raises(error):
            async with open_instance(feeds, log="memory:hostile", coordinator="memory:hostile", listen=":0", **more):
                pass


async def test_somebody_elses_web_server() -> None:
    """Its page is not quoted."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        page = b"<!DOCTYPE HTML>\n<html>" + b"x" * 1000
        head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\nContent-Type: text/html\r\n\r\n" % len(page)
        await stream.send_all(head + page)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        with pytest.raises(Unreachable, match=r"refused the websocket with HTTP 404: no reason$"):
            await WebsocketNetwork().connect(url, subprotocols=(MSGPACK,), message_bytes_max=1000, timeout_s=PATIENCE_S)
        nursery.cancel_scope.cancel()
