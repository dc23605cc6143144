"""An instance's life: start, failure of one feed, restart of its node, end."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from changefeed.coordination.memory import MemoryCoordination
from changefeed.errors import InsecureListen, LogUnavailable, PortInUse
from changefeed.instance import Instance, open_instance
from changefeed.log.memory import Faults, MemoryLogStore, MemoryPlace
from changefeed.transport.memory import MemoryNetwork


def parts(network: MemoryNetwork, place: MemoryPlace, coordination: MemoryCoordination, name: str) -> dict[str, Any]:
    return {
        "log": MemoryLogStore(place),
        "coordinator": coordination.coordinator(),
        "network": network.host(name),
        "name": name,
        "listen": "127.0.0.1:7000",
    }


async def test_publish_and_subscribe_through_one_instance(autojump_clock: Any) -> None:
    """What is published through an instance's own publisher reaches its own subscription."""
    async with open_instance(["vmapi"], **parts(MemoryNetwork(), MemoryPlace(), MemoryCoordination(), "a")) as instance:
        await instance.wait_ready()
        async with instance.publisher("vmapi") as publisher:
            receipt = await publisher.publish("vm", "1", "create")
        async with instance.subscribe("vmapi", start="beginning") as subscription:
            event = await anext(aiter(subscription))

    assert (event.position, event.id) == (receipt.last, "1")
    assert instance.name == "a"


async def test_an_exception_of_the_block_leaves_as_itself(autojump_clock: Any) -> None:
    """The user's own error is not wrapped in a group because tasks of ours ran beside it."""
    with pytest.raises(ValueError, match="mine"):
        async with open_instance(["vmapi"], **parts(MemoryNetwork(), MemoryPlace(), MemoryCoordination(), "a")):
            raise ValueError("mine")


async def test_what_keeps_an_instance_from_starting_leaves_as_itself(autojump_clock: Any) -> None:
    """PortInUse, InsecureListen and a log that cannot be opened are raised by open_instance, typed."""
    network, place, coordination = MemoryNetwork(), MemoryPlace(), MemoryCoordination()
    async with open_instance(["vmapi"], **parts(network, place, coordination, "a")):
        with pytest.raises(PortInUse):
            async with open_instance(["vmapi"], **parts(network, place, coordination, "b")):
                pass
    with pytest.raises(InsecureListen):
        async with open_instance(["vmapi"], listen="0.0.0.0:7557"):
            pass
    away = parts(network, place, coordination, "c")
    away["log"].hook = Faults()
    away["log"].hook.plan("open", LogUnavailable("the log is away"))
    with pytest.raises(LogUnavailable):
        async with open_instance(["vmapi"], **away):
            pass


async def test_a_fault_of_ours_in_one_feed_ends_neither_the_instance_nor_its_other_feed(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug that ends one feed's node is said loudly; its sessions are cut and it starts again by itself."""
    from changefeed.feednode import FeedNode

    async def events_of(instance: Instance, feed: str, count: int) -> list[str]:
        found = []
        async with instance.subscribe(feed, start="beginning") as subscription:
            async for event in subscription:
                found.append(event.id)
                if len(found) == count:
                    break
        return found

    bug = trio.Event()

    async def watch(self: FeedNode) -> None:
        if self.name == "vmapi" and not bug.is_set():
            await bug.wait()
            raise RuntimeError("a bug")
        await trio.sleep_forever()

    monkeypatch.setattr(FeedNode, "_watch_freshness", watch)
    both = ["vmapi", "napi"]
    async with open_instance(both, **parts(MemoryNetwork(), MemoryPlace(), MemoryCoordination(), "a")) as instance:
        await instance.wait_ready()
        async with instance.publisher("vmapi") as vmapi, instance.publisher("napi") as napi:
            await vmapi.publish("vm", "before", "create")
            bug.set()
            await napi.publish("nic", "meanwhile", "create")
            await vmapi.publish("vm", "after", "create")
        assert await events_of(instance, "vmapi", 2) == ["before", "after"]
        assert await events_of(instance, "napi", 1) == ["meanwhile"]

    assert "a bug" in caplog.text


async def test_a_log_that_is_replaced_while_it_is_opened_is_opened_again(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Between its opening and the reading of its settings: that is the world's doing, told without a traceback."""
    place = MemoryPlace()
    given = parts(MemoryNetwork(), place, MemoryCoordination(), "a")
    replaced: list[str] = []

    async def replace_once(point: str, feed: str) -> None:
        if point == "settings" and not replaced:
            replaced.append(feed)
            place.put_back(place.copy())

    given["log"].hook = replace_once
    async with open_instance(["vmapi"], **given) as instance:
        with trio.fail_after(10):
            await instance.wait_ready()
        assert instance.leads("vmapi") and replaced == ["vmapi"]
    assert [record for record in caplog.records if record.exc_info] == []
