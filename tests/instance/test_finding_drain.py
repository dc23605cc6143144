"""How an instance starts, drains and ends when something around it is away (review findings 20, 25 and 38)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from changefeed import Change, open_publisher, open_subscription
from changefeed.coordination.memory import MemoryCoordination
from changefeed.errors import BadUrl, ChangefeedError, CoordinatorUnavailable, LogUnavailable
from changefeed.instance import Instance, open_instance
from changefeed.log.memory import Faults, MemoryLogStore, MemoryPlace
from changefeed.ports import SeededEntropy
from changefeed.settings import Settings
from changefeed.transport.memory import MemoryNetwork

FEEDS = ("vmapi", "napi")


class Site:
    """What instances share, and how one is started."""

    def __init__(self, **changed: Any) -> None:
        self.network = MemoryNetwork()
        self.place = MemoryPlace()
        self.coordination = MemoryCoordination(SeededEntropy("site"), session_s=4.0, answer_s=0.5)
        self.settings = Settings(**changed)
        self.faults: dict[str, Faults] = {}

    @asynccontextmanager
    async def instance(self, name: str, feeds: tuple[str, ...] = FEEDS, **more: Any) -> AsyncIterator[Instance]:
        store = MemoryLogStore(self.place, self.settings)
        store.hook = self.faults[name] = Faults()
        options: dict[str, Any] = {
            "log": store,
            "coordinator": self.coordination.coordinator(),
            "network": self.network.host(name),
            "listen": f"127.0.0.1:{self.port(name)}",
            "name": name,
            "settings": self.settings,
        }
        async with open_instance(feeds, **{**options, **more}) as instance:
            yield instance

    def port(self, name: str) -> int:
        return 7000 + ord(name[0])

    def url(self, name: str) -> str:
        return f"ws://127.0.0.1:{self.port(name)}"


async def test_what_is_wrong_with_a_url_is_told_before_a_port_is_taken(autojump_clock: Any) -> None:
    """A program that mends its configuration can listen again at once."""
    site = Site()
    for wrong in ({"coordinator": "zoo://h"}, {"log": "mysql:x"}):
        with pytest.raises(BadUrl):
            async with site.instance("a", **wrong):
                pass
    async with site.instance("a"):
        pass


async def test_an_instance_that_could_not_start_leaves_its_port(autojump_clock: Any) -> None:
    """Neither a coordinator nor a log that is away keeps the address."""
    site = Site()
    site.coordination.lose_quorum()
    with pytest.raises(CoordinatorUnavailable):
        async with site.instance("a"):
            pass
    site.coordination.regain_quorum()
    store = MemoryLogStore(site.place)
    store.hook = Faults()
    store.hook.outage = True
    with pytest.raises(LogUnavailable):
        async with site.instance("a", log=store):
            pass
    async with site.instance("a") as instance:
        await instance.wait_ready()


async def test_an_instance_ends_within_seconds_though_everything_is_away(autojump_clock: Any) -> None:
    """Neither the coordinator nor the log is waited for; publishers and subscribers are connected meanwhile."""
    site = Site()
    async with trio.open_nursery() as nursery:
        async with site.instance("a") as instance:
            await instance.wait_ready()

            async def publish() -> None:
                async with open_publisher("vmapi", site.url("a"), network=site.network.host("p")) as publisher:
                    await publisher.publish("vm", "1", "create")
                    site.coordination.lose_quorum()
                    site.faults["a"].outage = True
                    began.set()
                    await publisher.publish("vm", "2", "create")

            began = trio.Event()
            nursery.start_soon(publish)
            await began.wait()
            await trio.sleep(3)
            before = trio.current_time()
        assert trio.current_time() - before <= 5
        nursery.cancel_scope.cancel()


async def test_a_drain_hands_over_every_feed_and_ends_when_everybody_has_gone(autojump_clock: Any) -> None:
    """Publishers elsewhere see no error and no long gap, subscribers none, and the successor leads both feeds."""
    site = Site(redirect_spread_s=2.0)
    received: list[str] = []
    gaps: list[float] = []
    async with trio.open_nursery() as nursery, site.instance("a") as a:
        await a.wait_ready()
        async with site.instance("b") as b:
            await b.wait_ready()
            assert [a.leads(feed) for feed in FEEDS] == [True, True]
            subscribed, complete = trio.Event(), trio.Event()

            async def subscribe() -> None:
                servers = [site.url("a"), site.url("b")]
                network = site.network.host("s")
                async with open_subscription(
                    "napi", servers, start="beginning", network=network, settings=site.settings
                ) as events:
                    subscribed.set()
                    async for event in events:
                        received.append(event.id)
                        if len(received) == 200:
                            complete.set()

            async def publish(server: str, feed: str) -> None:
                servers = [site.url(server), site.url("b")]
                network = site.network.host(f"p-{server}-{feed}")
                async with open_publisher(feed, servers, network=network, settings=site.settings) as publisher:
                    for number in range(100):
                        before = trio.current_time()
                        await publisher.publish("nic", f"{server}-{number}", "create")
                        gaps.append(trio.current_time() - before)
                        await trio.sleep(0.03)

            nursery.start_soon(subscribe)
            await subscribed.wait()
            async with trio.open_nursery() as publishers:
                for server in ("a", "b"):
                    for feed in FEEDS:
                        publishers.start_soon(publish, server, feed)
                await trio.sleep(1)
                before = trio.current_time()
                await a.drain()
                drained = trio.current_time() - before
            assert drained < site.settings.drain_s
            assert [b.leads(feed) for feed in FEEDS] == [True, True]
            await trio.sleep(1)
            # Nobody challenged: the listener of the leaver stayed open until its successor had fenced (review 20).
            reasons = [b.status()["feeds"][feed]["log"]["epochs"][-1]["why"] for feed in FEEDS]
            assert reasons == ["handover", "handover"]
            await complete.wait()
            assert sorted(received) == sorted(f"{server}-{number}" for server in "ab" for number in range(100))
            assert max(gaps) < 0.3
            with pytest.raises(ChangefeedError):
                await site.network.connect(
                    site.url("a") + "/v1", subprotocols=("changefeed.v1.msgpack",), message_bytes_max=2**20, timeout_s=1
                )
            nursery.cancel_scope.cancel()


async def test_an_instances_own_clients_stay_while_it_drains(autojump_clock: Any) -> None:
    """What a web request of this very process publishes meanwhile is stored by the successor, and seen here."""
    site = Site()
    async with site.instance("a", ("vmapi",)) as a, site.instance("b", ("vmapi",)) as b:
        await a.wait_ready()
        await b.wait_ready()
        assert a.leads("vmapi")
        async with a.publisher("vmapi") as publisher, a.subscribe("vmapi", start="beginning") as events:
            await publisher.publish("vm", "before", "create")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.drain)
                await trio.sleep(0.5)
                assert b.leads("vmapi")
                receipt = await publisher.publish("vm", "meanwhile", "create")
            assert a.draining
            await publisher.publish_many([Change("vm", "after", "create")])
            seen = []
            async for event in events:
                seen.append(event.id)
                if event.id == "after":
                    break
        assert seen == ["before", "meanwhile", "after"]
        assert receipt.first.epoch > 1


@pytest.mark.parametrize("away", ["coordinator", "log", "both"])
async def test_a_drain_ends_in_time_though_something_is_away(autojump_clock: Any, away: str) -> None:
    """It cannot hand over then; clients are sent away all the same."""
    site = Site()
    async with site.instance("a") as a, site.instance("b") as b:
        await a.wait_ready()
        await b.wait_ready()
        async with a.publisher("vmapi") as publisher:
            await publisher.publish("vm", "1", "create")
            if away != "log":
                site.coordination.lose_quorum()
            if away != "coordinator":
                for faults in site.faults.values():
                    faults.outage = True
            pending = publisher.submit_nowait(Change("vm", "2", "update"))
            before = trio.current_time()
            await a.drain()
            assert trio.current_time() - before <= site.settings.drain_s
            site.coordination.regain_quorum()
            for faults in site.faults.values():
                faults.outage = False
            await pending.wait()


async def test_a_drain_that_was_cancelled_can_be_asked_for_again(autojump_clock: Any) -> None:
    site = Site(drain_s=4.0)
    async with site.instance("a") as a:
        await a.wait_ready()
        async with open_subscription("vmapi", site.url("a"), network=site.network.host("s"), settings=site.settings):
            with trio.CancelScope() as scope:
                scope.cancel()
                await a.drain()
            assert scope.cancelled_caught
            await a.drain()
        assert a.status()["draining"]
        assert not a.leads("vmapi")


async def test_status_shows_how_far_behind_a_subscriber_is(autojump_clock: Any) -> None:
    """lag: events between what it has handled and the head."""
    site = Site()
    async with site.instance("a", ("vmapi",)) as a:
        await a.wait_ready()
        async with a.publisher("vmapi") as publisher, a.subscribe("vmapi", start="beginning", name="dns") as events:
            await publisher.publish_many([Change("vm", str(number), "create") for number in range(5)])
            iterator = aiter(events)
            for _ in range(3):
                await anext(iterator)
            await trio.sleep(3)
            (shown,) = a.status()["feeds"]["vmapi"]["subscribers"]
            assert (shown["name"], shown["handled_seq"], shown["lag"]) == ("dns", 2, 3)


async def test_status_says_who_lets_the_write_ahead_log_grow(autojump_clock: Any) -> None:
    """Review 23: one frozen reader fills the disk; a person must see which process it is."""
    site = Site()
    async with site.instance("a", ("vmapi",)) as a:
        await a.wait_ready()
        node = a.node("vmapi")
        assert node is not None
        term = node.near_leader()
        term._kept = {"wal_bytes": site.settings.wal_bytes_shown + 1, "wal_holder_pid": 4711}  # type: ignore[union-attr]
        assert "process 4711" in a.status()["feeds"]["vmapi"]["election"]["notes"][0]
        term._kept = {"wal_bytes": site.settings.wal_bytes_shown}  # type: ignore[union-attr]
        assert not any("write-ahead" in note for note in a.status()["feeds"]["vmapi"]["election"]["notes"])


async def test_a_client_that_outlives_its_instance_is_told_that_it_is_closed(autojump_clock: Any) -> None:
    """And goes on trying, as with any server that is away; nothing of ours falls over."""
    site = Site()
    async with trio.open_nursery() as nursery:
        async with site.instance("a", ("vmapi",)) as a:
            await a.wait_ready()

            async def publish() -> None:
                async with a.publisher("vmapi") as publisher:
                    await publisher.publish("vm", "1", "create")
                    began.set()
                    await trio.sleep(5)
                    assert not publisher.status.connected
                    assert publisher.status.last_error is not None
                    done.set()
                    await trio.sleep_forever()

            began, done = trio.Event(), trio.Event()
            nursery.start_soon(publish)
            await began.wait()
        await done.wait()
        nursery.cancel_scope.cancel()


async def test_a_leader_does_not_go_on_from_a_history_that_the_log_does_not_hold(autojump_clock: Any) -> None:
    """Review 1: it had shown events up to a seq that the log holds too, but of another term: the log was replaced. It
    opens the log again and forgets what it had."""
    site = Site()
    async with site.instance("a", ("vmapi",)) as a:
        await a.wait_ready()
        async with a.publisher("vmapi") as publisher:
            await publisher.publish("vm", "1", "create")
        node = a.node("vmapi")
        assert node is not None and node.window.tail is not None
        node.window.begin(replace(node.window.tail, term="0badcafe"))
        site.coordination.expire(site.coordination.participant("a"))
        await trio.sleep(10)
        assert a.node("vmapi") is not node
        assert a.leads("vmapi")
        async with a.subscribe("vmapi", start="beginning") as events:
            assert (await anext(aiter(events))).id == "1"


async def test_a_leaver_can_be_reached_until_its_successor_has_fenced(autojump_clock: Any) -> None:
    """Review 20: a follower whose link breaks during the handover must not find a refused port, which is evidence of a
    dead process: it would challenge, and the leaver's last append would be of unknown outcome."""
    site = Site()
    async with site.instance("a", ("vmapi",)) as a, site.instance("b", ("vmapi",)) as b:
        await a.wait_ready()
        await b.wait_ready()
        assert a.leads("vmapi")
        async with a.publisher("vmapi") as publisher, trio.open_nursery() as nursery:
            await publisher.publish("vm", "1", "create")
            site.faults["a"].plan("append", None, delay_s=1.0)
            pending = publisher.submit_nowait(Change("vm", "2", "update"))
            await trio.sleep(0.1)
            nursery.start_soon(a.drain)
            await trio.sleep(0.2)
            site.network.drop("b", "a")
            receipt = await pending.wait()
            assert (receipt.first.epoch, receipt.repeated) == (1, False)
        await trio.sleep(1.5)
        assert b.leads("vmapi")
        assert b.status()["feeds"]["vmapi"]["log"]["epochs"][-1]["why"] == "handover"
