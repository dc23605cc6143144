"""A list as an instance serves it: pages, frames, filters, refusals, a log that does not answer, draining."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from changefeed.change import Change, FeedSettings, Filter, Position, Resource
from changefeed.errors import ConnectionLost, LogUnavailable
from changefeed.settings import Settings
from changefeed.testing.fake_feed import ServingClient
from changefeed.testing.serving_bench import ServingBench
from changefeed.testing.serving_bench import open_bench as bench
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.codec import encode
from changefeed.wire.messages import Beat, Events, Fault, Listed, Redirect, Start, Subscribe, Subscribed

SNAPSHOT = Start(at="snapshot")
SMALL = Settings(snapshot_list_bytes=2000)


async def create(b: ServingBench, resource: str, *ids: str, body: Any = None) -> None:
    for id in ids:
        await b.feed.append([Change(resource, id, "create", None, body or {"id": id})])


async def whole_list(client: ServingClient) -> list[str]:
    """Hear until the list is over; the ids that it held."""
    while not client.parts or not client.parts[-1].last:
        message = await client.hear()
        assert not isinstance(message, Fault), message
    return [event.id for event in client.listed]


class Asked:
    """Which points of the log were reached, with what a test wants to happen there."""

    def __init__(self, b: ServingBench) -> None:
        self.points: list[str] = []
        self.fail: dict[str, int] = {}
        self.then: Any = None
        b.feed.log._store.hook = self  # type: ignore[attr-defined]

    async def __call__(self, point: str, feed: str) -> None:
        self.points.append(point)
        if self.fail.get(point, 0) > 0:
            self.fail[point] -= 1
            raise LogUnavailable("the test says so")
        if self.then is not None and point in ("list_latest", "latest"):
            await self.then()


@pytest.mark.parametrize("subprotocol", [MSGPACK, JSON])
async def test_a_list_in_frames_then_the_stream(autojump_clock: MockClock, subprotocol: str) -> None:
    """Every object once, in order of resource and id by their UTF-8 bytes; then what comes after the snapshot."""
    async with bench(SMALL) as b:
        ids = ["a", "a0", "a00", "b", "é", "～", "🌍", *(f"c{number}" for number in range(60))]
        await create(b, "vm", *ids)
        await create(b, "nic", "x", "y", "z")
        await b.feed.append([Change("nic", "y", "delete")])
        await b.feed.keep_snapshot()
        folded = b.feed.tail.seq
        await b.feed.append([Change("vm", "a", "update", ("state",), {"later": True})])
        client = await b.subscribe(SNAPSHOT, subprotocol=subprotocol)
        assert client.welcome is not None
        assert client.welcome.position == Position.listing(b.feed.log.lineage)
        assert client.welcome.head.seq == folded + 1
        assert await whole_list(client) == ["x", "z", *sorted(ids, key=str.encode)]
        assert [part.head for part in client.parts] == [0] * (len(client.parts) - 1) + [folded + 1]
        assert len(client.parts) > 3
        for part in client.parts:
            assert len(encode(part, MSGPACK)) <= SMALL.snapshot_list_bytes
        assert client.position is not None and client.position.seq == folded
        await client.until(folded + 1)
        assert [event.id for event in client.events] == ["a"]
        assert {event.body["id"] for event in client.listed} == {event.id for event in client.listed}


async def test_a_page_may_end_behind_any_object(autojump_clock: MockClock) -> None:
    """Ids that begin with each other, one in each page: none is skipped, none comes twice."""
    async with bench(Settings(snapshot_list_bytes=1)) as b:
        ids = ["a", "a\0", "a\0\0", "a ", "a0", "a00", "aa", "b", "é", "～", "🌍", "🌍a"]
        await create(b, "vm", *ids)
        await create(b, "vm.a", "a")
        await b.feed.keep_snapshot()
        client = await b.subscribe(SNAPSHOT)
        assert await whole_list(client) == [*sorted(ids, key=str.encode), "a"]
        assert [len(part.runs) for part in client.parts] == [1] * 13 + [0]


async def test_a_row_larger_than_a_frame_travels_alone(autojump_clock: MockClock) -> None:
    async with bench(SMALL) as b:
        await create(b, "vm", "a")
        await create(b, "vm", "b", body={"large": "x" * 100_000})
        await create(b, "vm", "c")
        await b.feed.keep_snapshot()
        client = await b.subscribe(SNAPSHOT)
        assert await whole_list(client) == ["a", "b", "c"]
        assert [len(part.runs) for part in client.parts] == [1, 1, 1, 0]


async def test_an_empty_list_says_so_at_once(autojump_clock: MockClock) -> None:
    """On an empty feed, and where the filter selects no object."""
    async with bench() as b:
        await b.feed.keep_snapshot()
        client = await b.subscribe(SNAPSHOT)
        assert await whole_list(client) == []
        assert client.position == Position.beginning(b.feed.log.lineage)
        await create(b, "vm", "a")
        await client.until(1)
        await b.feed.fold()
        other = await b.subscribe(SNAPSHOT, Filter({"nic": ()}))
        assert (await whole_list(other), other.position) == ([], client.position)
        assert trio.current_time() == 0


# ---- refusals


async def test_no_list_without_a_snapshot(autojump_clock: MockClock) -> None:
    """Off: for good. On, but nothing folded yet, or folded behind what was trimmed while it was off: ask again."""
    async with bench() as b:
        await b.feed.fill(20)
        fault, lost = await b.refused(Subscribe("vmapi", SNAPSHOT, "me"))
        assert (fault.code, fault.retryable, lost.close_code_received) == ("no-snapshot", False, 4522)
        log = b.feed.log
        await log.set_settings(replace(await log.settings(), snapshot=True))
        fault, _ = await b.refused(Subscribe("vmapi", SNAPSHOT, "me"))
        assert (fault.code, fault.retryable) == ("not-current", True)
        await b.feed.fold(10)
        await log.trim(b.feed.epoch, b.feed.term, 12)
        fault, _ = await b.refused(Subscribe("vmapi", SNAPSHOT, "me"))
        assert fault.code == "not-current"


async def test_what_a_list_that_broke_off_may_be_told(autojump_clock: MockClock) -> None:
    """Gone on with where it stood; refused where what follows was trimmed, in another log, and of the future; asked
    again while less is folded than it had."""
    async with bench() as b:
        await b.feed.fill(30)
        await b.feed.keep_snapshot()
        log, at = b.feed.log, b.feed.tail.position(b.feed.log.lineage)
        client = await b.subscribe(Start(at="snapshot", snapshot=at, listed=("vm", "5")))
        assert await whole_list(client) == ["6", "7", "8", "9"]
        again = await b.subscribe(Start(position=Position.listing(log.lineage)))
        assert len(await whole_list(again)) == 30

        async def code(start: Start) -> str:
            return (await b.refused(Subscribe("vmapi", start, "me")))[0].code

        other = replace(at, lineage="f" * 16)
        assert await code(Start(at="snapshot", snapshot=other, listed=("vm", "5"))) == "other-lineage"
        assert await code(Start(position=Position.listing("f" * 16))) == "other-lineage"
        assert await code(Start(at="snapshot", snapshot=replace(at, seq=31), listed=("vm", "5"))) == "future-position"
        await b.feed.fill(5, start=31)
        ahead = b.feed.tail.position(log.lineage)
        assert await code(Start(at="snapshot", snapshot=ahead, listed=("vm", "5"))) == "not-current"
        await b.feed.fold()
        await log.trim(b.feed.epoch, b.feed.term, 33)
        fault, _ = await b.refused(Subscribe("vmapi", Start(at="snapshot", snapshot=at, listed=("vm", "5")), "me"))
        assert (fault.code, fault.details["position"]) == ("position-too-old", str(at))


# ---- filters


async def test_a_list_is_of_what_resources_and_ids_select(autojump_clock: MockClock) -> None:
    """Names of fields and ops are about changes. Resources that are not wanted are not read."""
    async with bench(SMALL) as b:
        for resource in ("a", "b", "c", "d", "e"):
            await create(b, resource, *(f"{number:03}" for number in range(100)))
        await b.feed.keep_snapshot()
        asked = Asked(b)
        client = await b.subscribe(SNAPSHOT, Filter({"b": ("state",), "d": ()}, ops=frozenset({"delete"})))
        await whole_list(client)
        assert [event.resource for event in client.listed] == ["b"] * 100 + ["d"] * 100
        pages = asked.points.count("list_latest")
        everything = await b.subscribe(SNAPSHOT)
        await whole_list(everything)
        assert pages < (asked.points.count("list_latest") - pages) * 0.6


async def test_many_pages_of_which_nothing_is_wanted(autojump_clock: MockClock) -> None:
    """They make no frames; others run meanwhile, and the subscriber hears that the server lives."""
    async with bench(Settings(snapshot_list_bytes=200)) as b:
        await create(b, "vm", *(f"{number:04}" for number in range(500)))
        await b.feed.keep_snapshot()
        asked = Asked(b)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async def slow() -> None:
            await trio.sleep(1)

        asked.then = slow
        wanted = Filter(ids=frozenset({"0250"}))
        client = await b.subscribe(SNAPSHOT, wanted)
        assert [await client.hear() for _ in range(2)] == [Beat(1, 500, 0.0)] * 2
        asked.then = None
        assert await whole_list(client) == ["0250"]
        assert [len(part.runs) for part in client.parts] == [1, 0]
        asked.points.clear()
        client = await b.subscribe(SNAPSHOT, wanted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            assert await whole_list(client) == ["0250"]
            nursery.cancel_scope.cancel()
        assert turns >= asked.points.count("list_latest") > 5


async def test_objects_that_are_named_are_asked_for(autojump_clock: MockClock) -> None:
    """With resources and ids, or ids on a feed that declares its resources, the list is not read as a whole."""
    async with bench(SMALL) as b:
        await create(b, "vm", *(f"{number:03}" for number in range(400)))
        await create(b, "nic", "003", "007")
        await b.feed.append([Change("vm", "005", "delete")])
        await b.feed.keep_snapshot()
        asked = Asked(b)
        ids = frozenset(f"{number:03}" for number in range(70))
        client = await b.subscribe(SNAPSHOT, Filter({"vm": ()}, ids))
        assert await whole_list(client) == sorted(ids - {"005"})
        assert asked.points.count("latest") == 3
        log = b.feed.log
        declared = (Resource("vm"), Resource("nic"), Resource("net"))
        await log.set_settings(replace(await log.settings(), resources=declared))
        client = await b.subscribe(SNAPSHOT, Filter(ids=frozenset({"003", "390"})))
        assert await whole_list(client) == ["003", "003", "390"]
        assert asked.points.count("latest") == 4


async def test_up_to_the_head_no_names_of_fields_narrow(autojump_clock: MockClock) -> None:
    """An update may be the first that is heard of an object: up to the head of the list's end all are delivered, then
    the filter holds; others with the same filter are not given more."""
    async with bench() as b:
        await create(b, "vm", "a")
        await b.feed.keep_snapshot()
        narrow = Filter({"vm": ("state",)})
        ordinary = await b.subscribe(Start(at="now"), narrow)
        asked = Asked(b)
        count = 0

        async def change() -> None:
            nonlocal count
            count += 1
            await b.feed.append([Change("vm", f"u{count}", "update", ("alias",), {"n": count})])

        asked.then = change
        client = await b.subscribe(SNAPSHOT, narrow)
        await whole_list(client)
        assert (count, client.parts[-1].head) == (2, 3)
        await client.until(3)
        assert [event.id for event in client.events] == ["u1", "u2"]
        # The same range for another: nothing of what was cut for the first one.
        late = await b.subscribe(Start(position=Position(b.feed.log.lineage, 1, b.feed.term, 1)), narrow)
        await late.until(3)
        assert not late.events
        asked.then = None
        await change()
        await b.feed.append([Change("vm", "a", "update", ("state",), {"n": 0})])
        await client.until(5)
        assert [event.id for event in client.events] == ["u1", "u2", "a"]
        await ordinary.until(5)
        assert [event.id for event in ordinary.events] == ["a"]


@pytest.mark.parametrize("whole", [0, 2, 3, 4])
async def test_who_resumes_behind_a_list_says_up_to_where(autojump_clock: MockClock, whole: int) -> None:
    """`whole`: updates with a seq up to it are not narrowed, also one by one; behind it they are."""
    async with bench(Settings(frame_bytes_aim=1)) as b:
        for number in range(1, 6):
            await b.feed.append([Change("vm", str(number), "update", ("alias",), {"n": number})])
        client = b.connect()
        start = Start(position=Position(b.feed.log.lineage, 1, b.feed.term, 1))
        await client.say(Subscribe("vmapi", start, "me", Filter({"vm": ("state",)}), whole=whole))
        await client.until(5)
        assert [event.seq for event in client.events] == list(range(2, whole + 1))


# ---- trouble


async def test_a_log_that_does_not_answer_in_the_middle(autojump_clock: MockClock) -> None:
    """The subscriber is kept, and hears beats, until the list goes on."""
    async with bench(SMALL) as b:
        await create(b, "vm", *(f"{number:03}" for number in range(50)))
        await b.feed.keep_snapshot()
        asked = Asked(b)
        client = await b.subscribe(SNAPSHOT)
        await client.hear()
        asked.fail["list_latest"] = 60
        heard: list[Any] = []
        while not isinstance(heard[-1] if heard else None, Listed) or not heard[-1].last:
            heard.append(await client.hear())
        assert [event.id for event in client.listed] == [f"{number:03}" for number in range(50)]
        assert [type(message) for message in heard].count(Beat) >= 2
        assert trio.current_time() >= 29


async def test_draining_in_the_middle(autojump_clock: MockClock) -> None:
    """It is told where to go, is served until it must, and goes on elsewhere behind the last object."""
    async with bench(Settings(snapshot_list_bytes=300, redirect_spread_s=1.0)) as b:
        await create(b, "vm", *(f"{number:03}" for number in range(150)))
        await b.feed.keep_snapshot()
        asked = Asked(b)

        async def slow() -> None:
            await trio.sleep(0.5)

        asked.then = slow
        client = await b.subscribe(SNAPSHOT)
        await client.hear()
        b.feed.servers = ("ws://elsewhere:7557",)
        b.feed.draining.set()
        heard = await client.hear_all()
        assert any(isinstance(message, Redirect) for message in heard)
        assert heard[-1].close_code_received == 4410
        assert 3 < len(client.listed) < 150
        last = client.listed[-1]
        b.feed.draining = trio.Event()
        start = Start(at="snapshot", snapshot=client.parts[0].snapshot, listed=(last.resource, last.id))
        other = await b.subscribe(start)
        await whole_list(other)
        assert [event.id for event in (*client.listed, *other.listed)] == [f"{number:03}" for number in range(150)]


async def test_a_reader_that_takes_nothing_is_cut_off(autojump_clock: MockClock) -> None:
    """The same bound as for any other message; and no more is read than was sent."""
    async with bench() as b:
        await create(b, "vm", *(f"{number:03}" for number in range(30)), body={"large": "x" * 100_000})
        await b.feed.keep_snapshot()
        asked = Asked(b)
        client = await b.subscribe(SNAPSHOT)
        await trio.sleep(29)
        assert asked.points.count("list_latest") < 6
        await trio.sleep(120)
        heard = await client.hear_all()
        assert isinstance(heard[-1], ConnectionLost)
        assert b.feed.subscribers.snapshot(0)[0]["reason"] == "stalled"


async def test_switched_off_in_the_middle(autojump_clock: MockClock) -> None:
    """No list can go on that nobody keeps up; one that is folded anew goes on once as much is folded again."""
    async with bench(SMALL) as b:
        await create(b, "vm", *(f"{number:03}" for number in range(50)))
        await b.feed.keep_snapshot()
        log = b.feed.log
        clients = []
        for _ in range(2):
            asked = Asked(b)
            gate = trio.Event()
            asked.then = gate.wait
            client = await b.subscribe(SNAPSHOT)
            await trio.testing.wait_all_tasks_blocked()
            clients.append((client, gate))
            if not clients[1:]:
                # It begins anew, and is behind for a while.
                await log.fold(b.feed.epoch, b.feed.term, None, 10, [], [], versioned=False)
                gate.set()
                await trio.testing.wait_all_tasks_blocked()
                assert not client.parts
                asked.then = None
                await b.feed.fold()
                assert len(await whole_list(client)) == 40
        client, gate = clients[1]
        await log.fold(b.feed.epoch, b.feed.term, None, 10, [], [], versioned=False)
        await log.set_settings(replace(await log.settings(), snapshot=False))
        gate.set()
        heard = await client.hear_all()
        assert [heard[-2].code, heard[-1].close_code_received] == ["no-snapshot", 4522]


async def test_status_says_that_a_subscription_is_listing(autojump_clock: MockClock) -> None:
    """Until the stream behind the list has begun."""
    async with bench(SMALL) as b:
        await create(b, "vm", *(f"{number:03}" for number in range(50)))
        await b.feed.keep_snapshot()
        asked = Asked(b)
        gate = trio.Event()
        asked.then = gate.wait
        client = await b.subscribe(SNAPSHOT)
        await trio.testing.wait_all_tasks_blocked()
        assert [each["listing"] for each in b.feed.subscribers.snapshot(50)] == [True]
        gate.set()
        await whole_list(client)
        await trio.testing.wait_all_tasks_blocked()
        assert [(each["listing"], each["lag"]) for each in b.feed.subscribers.snapshot(50)] == [(False, 0)]


async def test_who_does_not_ask_never_sees_a_list(autojump_clock: MockClock) -> None:
    """On a feed that keeps a snapshot, every other start is served as ever."""
    async with bench() as b:
        await b.feed.fill(10)
        await b.feed.keep_snapshot()
        assert await b.feed.log.settings() == FeedSettings(version=1, snapshot=True)
        for start in (Start(at="beginning"), Start(at="now"), Start(time=0)):
            client = await b.subscribe(start)
            await b.feed.fill(1, start=b.feed.tail.seq + 1)
            await client.until(b.feed.tail.seq)
            assert isinstance(client.welcome, Subscribed) and not client.welcome.position.is_listing
            assert not client.parts and all(isinstance(frame, Events) for frame in client.frames)


@pytest.mark.parametrize(
    ("whole", "newest", "code"),
    [(4, 4, ""), (5, 0, "future-position"), (4, 5, "future-position"), (4, -4, "other-lineage")],
)
async def test_a_list_that_a_log_put_back_does_not_hold(
    autojump_clock: MockClock, whole: int, newest: int, code: str
) -> None:
    """Who was listed an event that is not in the log, or has a head to pass that lies beyond its end, is told so.

    newest: negative for one of another term."""
    async with bench() as b:
        await b.feed.log.set_settings(FeedSettings(snapshot=True))
        await create(b, "vm", "a", "b", "c", "d")
        lineage = b.feed.log.lineage
        position = Position(lineage, 1, b.feed.term, 2)
        term = b.feed.term if newest >= 0 else "0badbad0"
        known = Position(lineage, 1, term, abs(newest)) if newest else None
        client = b.connect()
        await client.say(Subscribe("vmapi", Start(position=position), "me", Filter(), whole=whole, newest=known))
        message = await client.hear()
        assert (message.code if isinstance(message, Fault) else "") == code
