"""Starts at the snapshot through whole instances, in virtual time: lists while others write, trim and take over."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from changefeed.change import Change, Event, Position
from changefeed.coordination.memory import MemoryCoordination
from changefeed.errors import BodyMissing, NoSnapshot, PositionTooOld, VersionMissing
from changefeed.instance import Instance, open_instance
from changefeed.log.memory import MemoryLogStore, MemoryPlace
from changefeed.ports import SeededEntropy
from changefeed.publisher.driver import open_publisher
from changefeed.settings import Settings
from changefeed.subscriber.cursors import MemoryCursor
from changefeed.subscriber.driver import open_subscription
from changefeed.transport.memory import MemoryNetwork

FEED = "vmapi"
SETTINGS = Settings(retention_every_s=0.2, snapshot_every_s=0.2, snapshot_list_bytes=2048)
NAMES = ("a", "b")
SERVERS = "ws://127.0.0.1:7000,ws://127.0.0.1:7001"


@dataclass
class Table:
    """What whoever keeps state keeps: of two versions the higher one, also of a delete."""

    rows: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        assert event.seq > self.newest.get(event.id, 0), f"time goes back: {event!r}"
        self.newest[event.id] = event.seq
        version = event.version
        if version is not None:
            held = self.rows.get(event.id)
            highest = self.gone.get(event.id) if held is None else held[1]
            if highest is not None and version < highest:
                return
        if event.op == "delete":
            self.rows.pop(event.id, None)
            if version is not None:
                self.gone[event.id] = version
        else:
            self.rows[event.id] = (event.seq, version)


@dataclass
class World:
    """Some instances of one feed on one log in memory."""

    place: MemoryPlace = field(default_factory=MemoryPlace)
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    coordination: MemoryCoordination = field(default_factory=lambda: MemoryCoordination(SeededEntropy("snapshot")))

    async def set(self, **settings: Any) -> None:
        log = await MemoryLogStore(self.place).open(FEED)
        await log.set_settings(replace(await log.settings(), **settings))
        await log.aclose()

    def instance(self, name: str) -> Any:
        return open_instance(
            [FEED],
            log=MemoryLogStore(self.place),
            coordinator=self.coordination.coordinator(),
            network=self.network.host(name),
            listen=f"127.0.0.1:{7000 + NAMES.index(name)}",
            name=name,
            settings=SETTINGS,
        )

    def clients(self, name: str) -> dict[str, Any]:
        return {"servers": SERVERS, "network": self.network.host(name), "settings": SETTINGS}


async def listed(world: World, name: str) -> list[Event]:
    """The list as it is now, of whoever comes by, once the leader has had time to fold."""
    await trio.sleep(3)
    found = []
    async with open_subscription(FEED, start="snapshot", **world.clients(name)) as subscription:
        with trio.move_on_after(2):
            async for event in subscription:
                assert event.listed
                found.append(event)
    return found


async def opened(stack: AsyncExitStack, world: World, name: str) -> Instance:
    instance: Instance = await stack.enter_async_context(world.instance(name))
    await instance.wait_ready()
    return instance


class Rush:
    """Writers that overtake each other, readers that list again and again, instances that take turns."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world = world
        self.chance = chance
        self.history: list[Event] = []
        #: Where a reader ended, its table, and how many objects it had been listed.
        self.checks: list[tuple[int, Table, int]] = []
        self.versions: Counter[str] = Counter()
        self.stop = self.quiet = False
        self.ready = trio.Event()
        self.terms: set[int] = set()

    async def follow(self) -> None:
        async with open_subscription(FEED, start="beginning", **self.world.clients("first")) as subscription:
            async for event in subscription:
                self.history.append(event)

    async def write(self, name: str) -> None:
        async with open_publisher(FEED, **self.world.clients(name)) as publisher, trio.open_nursery() as nursery:
            while not self.quiet:
                id = f"{self.chance.randrange(10 if self.chance.random() < 0.5 else 200):03}"
                self.versions[id] += 1
                gone = self.chance.random() < 0.2
                body = None if gone else {"v": self.versions[id], "data": "x" * 50}
                change = Change("vm", id, "delete" if gone else "update", None, body, self.versions[id])

                async def tell(change: Change = change, later_s: float = self.chance.uniform(0, 0.3)) -> None:
                    await trio.sleep(later_s)
                    await publisher.submit(change)

                nursery.start_soon(tell)
                await trio.sleep(self.chance.uniform(0, 0.02))

    async def read(self, name: str) -> None:
        while not self.stop:
            table, count, until = Table(), 0, trio.current_time() + self.chance.uniform(0.1, 2)
            async with open_subscription(FEED, start="snapshot", **self.world.clients(name)) as subscription:
                async for event in subscription:
                    table.take(event)
                    count += event.listed
                    if event.listed and count % 50 == 49:
                        await trio.sleep(self.chance.uniform(0, 0.3))
                    if trio.current_time() >= until and not event.position.is_listing:
                        self.checks.append((event.seq, table, count))
                        break

    async def come_and_go(self, name: str, first_s: float) -> None:
        """The other one is there meanwhile, and takes over."""
        await trio.sleep(first_s)
        while True:
            async with self.world.instance(name) as instance:
                await instance.wait_ready()
                self.ready.set()
                self.terms.add(instance.status()["feeds"][FEED]["epoch"])
                await trio.sleep(6)


async def test_tables_from_lists_equal_what_the_feed_tells(autojump_clock: MockClock) -> None:
    """Two writers overtake each other, most of the log is trimmed, and instances come and go. Every table that was
    begun with a list equals, when it is looked at, what whoever followed from the beginning has at that seq; of no
    object does a reader see an older event behind a newer one."""
    rush = Rush(World(), random.Random(7))
    await rush.world.set(snapshot=True, retention_count=400)
    history, checks = rush.history, rush.checks
    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rush.come_and_go, "a", 0.0)
            nursery.start_soon(rush.come_and_go, "b", 3.0)
            await rush.ready.wait()
            nursery.start_soon(rush.follow)
            async with trio.open_nursery() as writers:
                for number in range(2):
                    writers.start_soon(rush.write, f"writer{number}")
                async with trio.open_nursery() as readers:
                    for number in range(3):
                        readers.start_soon(rush.read, f"reader{number}")
                    await trio.sleep(30)
                    rush.stop = True  # readers end with the table that they are at; writers write until then
                rush.quiet = True
            while not history or history[-1].seq < max(seq for seq, _, _ in checks):  # noqa: ASYNC110  # virtual time
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    assert len(checks) >= 15 and history[-1].seq >= 2000 and len(rush.terms) >= 3
    assert sum(count > 100 for _, _, count in checks) >= 10
    model, at = Table(), 0
    for seq, table, _ in sorted(checks, key=lambda check: check[0]):
        while at < len(history) and history[at].seq <= seq:
            model.take(history[at])
            at += 1
        assert table.rows == model.rows, seq


async def test_a_late_update_does_not_bring_a_deleted_object_back(autojump_clock: MockClock) -> None:
    """The list tells the delete with its version, until retention has passed it; a delete that never had a version is
    in no list."""
    world = World()
    await world.set(snapshot=True)
    async with AsyncExitStack() as stack:
        await opened(stack, world, "a")
        publisher = await stack.enter_async_context(open_publisher(FEED, **world.clients("p")))
        await publisher.publish("vm", "kept", "create", body=1, version=1)
        await publisher.publish("vm", "gone", "create", body=1, version=4)
        await publisher.publish("vm", "gone", "delete", version=6)
        await publisher.publish("vm", "plain", "create", body=1)
        await publisher.publish("vm", "plain", "delete")
        table = Table()
        for event in await listed(world, "one"):
            table.take(event)
        assert table.newest == {"gone": 3, "kept": 1} and table.gone == {"gone": 6}
        # A delete that is late changes nothing either.
        await publisher.publish("vm", "gone", "update", body=2, version=5)
        await publisher.publish("vm", "kept", "delete", version=0)
        rest = [(event.id, event.op, event.seq) for event in await listed(world, "two")]
        assert rest == [("gone", "delete", 3), ("kept", "create", 1)]
        async with open_subscription(FEED, start="beginning", **world.clients("all")) as subscription:
            async for event in subscription:
                if event.seq > 5:
                    table.take(event)
                if event.seq == 7:
                    break
        assert table.rows == {"kept": (1, 1)}
        await world.set(retention_count=1)
        for number in range(30):
            await publisher.publish("vm", "kept", "update", body=number, version=2 + number)
            await trio.sleep(1)
        assert [(event.id, event.op) for event in await listed(world, "three")] == [("kept", "update")]


async def test_a_list_outlives_what_was_trimmed(autojump_clock: MockClock) -> None:
    """Objects whose events were trimmed are listed; a position in what was trimmed is refused as ever; a cursor that
    was saved behind the list resumes, and one that was saved in it begins the list again."""
    world = World()
    await world.set(snapshot=True)
    async with AsyncExitStack() as stack:
        await opened(stack, world, "a")
        publisher = await stack.enter_async_context(open_publisher(FEED, **world.clients("p")))
        first = await publisher.publish("vm", "0", "create", body=0)
        for number in range(1, 10):
            await publisher.publish("vm", str(number), "create", body=number)
        await world.set(retention_count=1)
        for _ in range(30):
            await publisher.publish("vm", "9", "update", body=10)
            await trio.sleep(1)
        with pytest.raises(PositionTooOld):
            async with open_subscription(FEED, start=first.position, **world.clients("old")) as subscription:
                await anext(subscription)
        cursor = MemoryCursor()
        for begun in (None, Position.listing(first.position.lineage)):
            assert cursor.position == begun
            opening = open_subscription(FEED, start="snapshot", cursor=cursor, **world.clients("left"))
            async with opening as subscription:
                assert [(await anext(subscription)).id for _ in range(4)] == ["0", "1", "2", "3"]
        async with open_subscription(FEED, start="snapshot", cursor=cursor, **world.clients("whole")) as subscription:
            assert [(await anext(subscription)).id for _ in range(10)] == [str(number) for number in range(10)]
            await publisher.publish("vm", "10", "create", body=11)
            assert (await anext(subscription)).listed is False
        assert cursor.position is not None and cursor.position.seq == 41
        await publisher.publish("vm", "11", "create", body=12)
        async with open_subscription(FEED, start="snapshot", cursor=cursor, **world.clients("on")) as subscription:
            event = await anext(subscription)
            assert (event.id, event.listed) == ("11", False)


async def test_the_option_is_switched_on_and_off(autojump_clock: MockClock) -> None:
    """Without it starts are refused, and everything may be published; switched on later, the list holds what is still
    in the log, and what would make it lie is refused."""
    world = World()
    await world.set(snapshot=False)

    async def refused() -> None:
        with pytest.raises(NoSnapshot):
            async with open_subscription(FEED, start="snapshot", **world.clients("none")) as subscription:
                await anext(subscription)

    async with AsyncExitStack() as stack:
        await opened(stack, world, "a")
        publisher = await stack.enter_async_context(open_publisher(FEED, **world.clients("p")))
        await refused()
        await publisher.publish("vm", "bare", "update")
        await publisher.publish("vm", "a", "update", body=1, version=3)
        await world.set(snapshot=True)
        assert [(event.id, event.body) for event in await listed(world, "late")] == [("a", 1), ("bare", None)]
        with pytest.raises(VersionMissing):
            await publisher.publish("vm", "a", "update", body=2)
        async with open_publisher(FEED, **world.clients("q")) as another:
            with pytest.raises(BodyMissing):
                await another.publish("vm", "b", "create")
        await world.set(snapshot=False)
        await trio.sleep(3)
        await refused()
        await publisher.publish("vm", "a", "update", body=2)
