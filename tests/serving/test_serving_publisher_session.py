"""A publisher's connection from Open to its end, with a leader that does what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from changefeed.change import Change, FeedSettings, Position, Resource
from changefeed.errors import (
    AcknowledgedLost,
    ConnectionLost,
    LogUnavailable,
    NotCurrent,
    PublisherInUse,
    Superseded,
)
from changefeed.serving.entry import serve_connection
from changefeed.settings import Settings
from changefeed.testing.fake_feed import FakeFeed, FakeLeader, ServingClient
from changefeed.transport import Request
from changefeed.transport.memory import connection_pair
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.changes import encode_change
from changefeed.wire.messages import Answer, Beat, Fault, Open, Opened, Publish, Reopen

OPEN = Open("vmapi", "napi", "5e55104")


async def no_peers(connection: Any, first: Any) -> None:
    raise AssertionError("not a peer's connection")


class Bench:
    def __init__(self, feed: FakeFeed, nursery: trio.Nursery) -> None:
        self.feed = feed
        self.nursery = nursery
        self.leader = FakeLeader(feed)
        self.ended: list[ServingClient] = []

    def connect(self, subprotocol: str = MSGPACK, **options: Any) -> ServingClient:
        near, far = connection_pair(subprotocol, **options)
        client = ServingClient(near, self.feed.log.lineage)

        async def serve() -> None:
            await serve_connection(far, Request("/v1"), {"vmapi": self.feed}, no_peers, self.feed.settings)
            self.ended.append(client)

        self.nursery.start_soon(serve)
        return client

    async def open(self, request: Open = OPEN, **options: Any) -> ServingClient:
        client = self.connect(**options)
        await client.say(request)
        opened = await client.hear()
        assert isinstance(opened, Opened), opened
        self.nursery.start_soon(self._beat, client)
        return client

    async def _beat(self, client: ServingClient) -> None:
        try:
            while True:
                await trio.sleep(8)
                await client.say(Beat())
        except (ConnectionLost, trio.BusyResourceError):
            pass


@asynccontextmanager
async def bench(settings: Settings | None = None, *, leads: bool = True) -> AsyncIterator[Bench]:
    feed = await FakeFeed.create(settings)
    async with trio.open_nursery() as nursery:
        made = Bench(feed, nursery)
        if leads:
            feed.set_leader(made.leader)
        yield made
        nursery.cancel_scope.cancel()


def publish(number: int, *names: str, after: int | None = None, resource: str = "vm", body: Any = None) -> Publish:
    changes = [Change(resource, name, "update", ("state",), body) for name in names or (str(number),)]
    payload = b"".join(encode_change(change, 2**24) for change in changes)
    return Publish(number - 1 if after is None else after, number, (1,) * len(changes), payload)


@pytest.mark.parametrize("subprotocol", [MSGPACK, JSON])
async def test_the_way_of_a_batch(autojump_clock: MockClock, subprotocol: str) -> None:
    """Opened with this instance's name and limits and the declared resources; receipts in order; then visible."""
    async with bench() as b:
        b.feed.declaration = FeedSettings((Resource("vm"),))
        client = b.connect(subprotocol)
        await client.say(OPEN)
        opened = await client.hear()
        assert (opened.instance, opened.process, opened.leader) == ("i1", b.feed.process, "i1")
        assert (opened.incarnation, opened.limits.in_flight_max) == (1, b.feed.settings.in_flight_max)
        assert opened.resources == (Resource("vm"),)
        await client.say(publish(1, "a", "b"))
        await client.say(publish(3, "c"))
        await b.leader.work(2)
        lineage, term = b.feed.log.lineage, b.feed.term
        assert await client.hear() == Answer(1, 2, Position(lineage, 1, term, 1))
        assert await client.hear() == Answer(3, 1, Position(lineage, 1, term, 3))
        assert b.feed.window.tail is not None and b.feed.window.tail.seq == 3
        batch = (await b.feed.log.read(0, 10**6))[0]
        assert (batch.publisher, batch.incarnation, batch.after, batch.number) == ("napi", 1, 0, 1)
        assert batch.payload == publish(1, "a", "b").payload


async def test_open_waits_for_a_leader_while_heartbeats_go_on(autojump_clock: MockClock) -> None:
    """However long there is none; a leader that cannot answer now is asked again."""
    async with bench(leads=False) as b:
        client = b.connect()
        await client.say(OPEN)
        assert await client.hear() == Beat(1, 0, 0.0)
        assert await client.hear() == Beat(1, 0, 0.0)
        assert trio.current_time() == 20
        b.leader.refuse_open += [NotCurrent("fencing"), LogUnavailable("slow")]
        b.feed.set_leader(b.leader)
        assert isinstance(await client.hear(), Opened)
        assert len(b.leader.opens) == 3
        assert len({channel for _, channel in b.leader.opens}) == 3
        assert b.leader.closed == [channel for _, channel in b.leader.opens[:2]]


class LostLeader(FakeLeader):
    """Its link is lost while an Open is under way: it may still grant what was asked."""

    async def open(self, request: Open, channel: str) -> Opened:
        self.opens.append((request, channel))
        self.lose()
        raise NotCurrent("the leader was lost before it answered; ask again")


ASKS = OPEN
NAMED = Open("vmapi", "importer", "5e55104", named=True)
KEEPS = Open("vmapi", "napi", "5e55104", incarnation=1)


async def test_an_incarnation_is_not_asked_for_twice_in_one_term(autojump_clock: MockClock) -> None:
    """The link to the leader was lost, and is there again: the first Open may be granted after the second, and would
    supersede it. The publisher must ask anew, under another id: it is told at once."""
    async with bench(leads=False) as b:
        lost = LostLeader(b.feed)
        b.feed.set_leader(lost)
        client = b.connect()
        await client.say(ASKS)
        await trio.testing.wait_all_tasks_blocked()
        b.feed.set_leader(b.leader)
        fault, _ = await client.hear_all()
        assert (fault.code, fault.retryable) == ("not-current", True)
        assert len(lost.opens) == 1 and not b.leader.opens


@pytest.mark.parametrize("request_", [NAMED, KEEPS], ids=["named", "has one"])
async def test_who_keeps_an_incarnation_is_opened_again_over_a_new_link(
    autojump_clock: MockClock, request_: Open
) -> None:
    """No grant can supersede it, however late."""
    async with bench(leads=False) as b:
        b.feed.set_leader(LostLeader(b.feed))
        client = b.connect()
        await client.say(request_)
        await trio.testing.wait_all_tasks_blocked()
        b.feed.set_leader(b.leader)
        assert isinstance(await client.hear(), Opened)


async def test_an_incarnation_is_asked_for_again_of_the_next_term(autojump_clock: MockClock) -> None:
    """Its fence has ended whatever the leader before it might still have granted."""
    async with bench(leads=False) as b:
        b.feed.set_leader(LostLeader(b.feed))
        client = b.connect()
        await client.say(ASKS)
        await trio.testing.wait_all_tasks_blocked()
        await b.feed.new_term()
        second = FakeLeader(b.feed, "i2")
        b.feed.set_leader(second)
        assert isinstance(await client.hear(), Opened)
        assert len(second.opens) == 1


@pytest.mark.parametrize(
    ("error", "details"),
    [
        (Superseded("a newer one", 41), {"last_number": 41}),
        (AcknowledgedLost("gone", 40), {"last_number": 40}),
        (PublisherInUse("another lives"), {}),
    ],
)
async def test_what_the_leader_refuses_an_open_with_ends_the_connection(
    autojump_clock: MockClock, error: Any, details: dict[str, Any]
) -> None:
    async with bench() as b:
        b.leader.refuse_open.append(error)
        client = b.connect()
        await client.say(OPEN)
        fault, lost = await client.hear_all()
        assert (fault.code, fault.message, fault.details) == (error.code, str(error), details)
        assert lost.close_code_received == error.close_code


async def test_a_reserved_publisher_id_is_refused(autojump_clock: MockClock) -> None:
    async with bench() as b:
        client = b.connect()
        await client.say(Open("vmapi", "outbox", "s"))
        fault, _ = await client.hear_all()
        assert fault.code == "invalid-name" and not b.leader.opens


async def test_a_lost_leader_means_open_again(autojump_clock: MockClock) -> None:
    """Answers that were given still arrive; then Reopen; batches sent before the next Open are ignored; the batch
    without an answer is sent again under its number to the next leader."""
    async with bench() as b:
        client = await b.open()
        await client.say(publish(1))
        await client.say(publish(2))
        await b.leader.work(1)
        await trio.testing.wait_all_tasks_blocked()
        b.leader.lose()
        assert (await client.hear()).number == 1
        assert isinstance(await client.hear(), Reopen)
        await client.say(publish(3))
        await client.say(Open("vmapi", "napi", "5e55104", incarnation=1))
        await trio.sleep(3)
        _, _, late = b.leader.queue[0]
        late(Answer(2, 1, Position.beginning(b.feed.log.lineage)))
        await b.feed.new_term()
        second = FakeLeader(b.feed, "i2")
        second.last_number = 1
        b.feed.set_leader(second)
        opened = await client.hear()
        assert (opened.leader, opened.instance, opened.last_number) == ("i2", "i1", 1)
        await client.say(publish(2))
        await client.say(publish(3))
        await second.work(2)
        answers = [await client.hear(), await client.hear()]
        assert [(each.number, each.first.seq, each.first.epoch) for each in answers] == [(2, 2, 2), (3, 3, 2)]
        assert [batch.number for _, batch, _ in b.leader.queue] == [2]


async def test_a_leader_lost_while_a_batch_waits_for_room(autojump_clock: MockClock) -> None:
    """The queue is full, then the leader goes: Reopen, once."""
    async with bench() as b:
        client = await b.open()
        b.leader.room = trio.Event()
        await client.say(publish(1))
        await trio.sleep(1)
        b.leader.lose()
        b.leader.room.set()
        assert isinstance(await client.hear(), Reopen)
        with trio.move_on_after(5):
            raise AssertionError(await client.hear())


async def test_a_full_leader_holds_the_publisher_back(autojump_clock: MockClock) -> None:
    """Nothing more is read while there is no room; the connection is not taken for dead; then everything goes on."""
    async with bench(Settings(in_flight_max=100)) as b:
        client = await b.open(buffer_bytes=3000)
        b.leader.room = trio.Event()

        async def flood() -> None:
            for number in range(1, 41):
                await client.say(publish(number, body="x" * 500))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.sleep(60)
            assert not b.leader.queue and not b.ended
            b.leader.room.set()
            nursery.start_soon(b.leader.work, 40)
            numbers = []
            while len(numbers) < 40:
                message = await client.hear()
                if isinstance(message, Answer):
                    numbers.append(message.number)
            assert numbers == list(range(1, 41))


async def test_undeclared_names_are_refused_in_order_and_nothing_is_stored(autojump_clock: MockClock) -> None:
    """With the nearest name; a refusal does not overtake the answer of an earlier batch; the connection goes on."""
    async with bench() as b:
        b.feed.declaration = FeedSettings((Resource("vm", ("state", "alias")), Resource("nic", None)))
        client = await b.open()
        await client.say(publish(1))
        await client.say(publish(2, resource="vn"))
        await client.say(publish(3, resource="nic", after=1))
        wrong = Change("vm", "x", "update", ("stat",))
        await client.say(Publish(3, 4, (1,), encode_change(wrong, 1000)))
        with trio.move_on_after(2):
            raise AssertionError(await client.hear())
        await b.leader.work(2)
        answers = [await client.hear() for _ in range(4)]
        assert [(each.number, each.code) for each in answers] == [
            (1, ""), (2, "unknown-resource"), (3, ""), (4, "unknown-field"),
        ]  # fmt: skip
        assert "'state'" in answers[3].message and answers[1].count == 1
        assert [entry.number for entry in await b.feed.log.read(0, 10**6)] == [1, 3]


async def test_too_large_changes_and_groups_are_refused(autojump_clock: MockClock) -> None:
    """With an Answer; the connection goes on."""
    async with bench(Settings(change_bytes_max=1000, group_bytes_max=3000)) as b:
        client = await b.open()
        await client.say(publish(1, body="x" * 1200))
        await client.say(publish(2, *"abcdefgh", body="x" * 500))
        await client.say(publish(3, after=0))
        await b.leader.work(1)
        answers = [await client.hear() for _ in range(3)]
        assert [(each.number, each.count, each.code) for each in answers] == [
            (1, 1, "change-too-large"), (2, 8, "group-too-large"), (3, 1, ""),
        ]  # fmt: skip


async def test_a_refusal_of_the_leader_does_not_end_the_connection(autojump_clock: MockClock) -> None:
    async with bench() as b:
        client = await b.open()
        b.leader.answers[1] = Answer(1, 1, code="log-full", message="full")
        await client.say(publish(1))
        await b.leader.work(1)
        assert (await client.hear()).code == "log-full"
        await client.say(publish(2, after=0))
        await b.leader.work(1)
        assert (await client.hear()).first is not None


async def test_more_in_flight_than_announced_ends_the_connection(autojump_clock: MockClock) -> None:
    async with bench(Settings(in_flight_max=3)) as b:
        client = await b.open()
        for number in range(1, 5):
            await client.say(publish(number))
        fault, lost = await client.hear_all()
        assert (fault.code, lost.close_code_received) == ("bad-message", 4541)
        assert len(b.leader.queue) == 3
        assert b.leader.closed == [b.leader.opens[0][1]]


@pytest.mark.parametrize(
    "wrong",
    [
        b"\xc1",
        "text",
        Publish(0, 1, (2,), publish(1).payload),
        Publish(0, 1, (1,), b"\x93\x01\x02\x03"),
        Open("vmapi", "somebody-else", "s"),
        Open("other", "napi", "s"),
        Answer(1, 1, code="x"),
    ],
    ids=repr,
)
async def test_a_message_that_is_wrong_ends_the_connection(autojump_clock: MockClock, wrong: Any) -> None:
    """Others at the same feed do not notice; what was taken before is still appended."""
    async with bench() as b:
        client, other = await b.open(), await b.open(Open("vmapi", "other", "s2"))
        await client.say(publish(1))
        await trio.testing.wait_all_tasks_blocked()
        if isinstance(wrong, bytes | str):
            await client.connection.send(wrong)
        else:
            await client.say(wrong)
        fault, lost = await client.hear_all()
        assert fault.code == "bad-message" and lost.close_code_received == 4541
        await b.leader.work(1)
        await other.say(publish(1))
        await b.leader.work(1)
        assert (await other.hear()).first.seq == 2


async def test_opening_again_on_the_same_connection(autojump_clock: MockClock) -> None:
    """To get a new incarnation: what was under way is answered no more, the old channel is closed."""
    async with bench() as b:
        client = await b.open()
        await client.say(publish(1))
        await client.say(OPEN)
        assert isinstance(await client.hear(), Opened)
        await b.leader.work(1)
        await client.say(publish(1))
        await b.leader.work(1)
        answer = await client.hear()
        assert (answer.number, answer.first.seq) == (1, 2)
        assert b.leader.closed == [b.leader.opens[0][1]]


async def test_a_silent_publisher_is_let_go(autojump_clock: MockClock) -> None:
    async with bench() as b:
        client = b.connect()
        await client.say(OPEN)
        heard = await client.hear_all()
        assert [type(each) for each in heard] == [Opened, Beat, Beat, Fault, ConnectionLost]
        assert heard[3].code == "stalled" and trio.current_time() == 25


async def test_a_publisher_that_reads_nothing_is_cut(autojump_clock: MockClock) -> None:
    async with bench(Settings(in_flight_max=1000)) as b:
        client = await b.open(buffer_bytes=300)
        for number in range(1, 30):
            await client.say(publish(number))
            await b.leader.work(1)
        assert not b.ended
        await trio.sleep(31)
        assert b.ended == [client]
        assert b.leader.closed == [b.leader.opens[0][1]]


async def test_draining_answers_what_was_taken_and_reads_no_more(autojump_clock: MockClock) -> None:
    """Receipts of taken batches leave first; then draining, retryable, 4411; what waited for room is not waited for."""
    async with bench() as b:
        client = await b.open()
        await client.say(publish(1))
        await trio.testing.wait_all_tasks_blocked()
        b.leader.room = trio.Event()
        await client.say(publish(2))
        await trio.testing.wait_all_tasks_blocked()
        b.feed.draining.set()
        await client.say(publish(3))
        await trio.sleep(1)
        await b.leader.work(1)
        heard = await client.hear_all()
        assert [getattr(each, "number", getattr(each, "code", "")) for each in heard[:2]] == [1, "draining"]
        assert heard[1].retryable and heard[2].close_code_received == 4411
        assert trio.current_time() == 1
        assert b.ended == [client]


async def test_draining_does_not_wait_for_answers_for_ever(autojump_clock: MockClock) -> None:
    async with bench() as b:
        client = await b.open()
        await client.say(publish(1))
        await trio.testing.wait_all_tasks_blocked()
        b.feed.draining.set()
        heard = await client.hear_all()
        assert heard[-2].code == "draining"
        assert trio.current_time() == b.feed.settings.drain_s


async def test_a_publisher_that_leaves_closes_its_channel(autojump_clock: MockClock) -> None:
    """By whatever end, also while it waits for a leader; what the leader took is still appended."""
    async with bench() as b:
        for number in range(4):
            client = await b.open()
            await client.say(publish(1))
            await trio.testing.wait_all_tasks_blocked()
            client.connection.abort() if number % 2 else await client.connection.aclose()
            await trio.testing.wait_all_tasks_blocked()
        await b.leader.work(4)
        assert b.leader.closed == [channel for _, channel in b.leader.opens]
        b.feed.set_leader(None)
        waiting = b.connect()
        await waiting.say(OPEN)
        await trio.testing.wait_all_tasks_blocked()
        waiting.connection.abort()
        await trio.sleep(11)
        assert len(b.ended) == 5
