"""A whole cluster is stopped at once, as at the end of a working day: nobody waits for somebody who leaves too."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from changefeed import open_instance
from changefeed.coordination.memory import MemoryCoordination
from changefeed.instance import Instance
from changefeed.log.memory import MemoryLogStore, MemoryPlace
from changefeed.ports import SeededEntropy
from changefeed.settings import Settings
from changefeed.transport.memory import MemoryNetwork

NAMES = ("a", "b", "c")


@pytest.mark.parametrize("apart_s", [0.0, 0.01, 0.2])
async def test_all_instances_drain_at_the_same_time(autojump_clock: MockClock, apart_s: float) -> None:
    """Within a heartbeat, not after the time that a successor is given; signals may come a little apart."""
    network, place, coordination = MemoryNetwork(), MemoryPlace(), MemoryCoordination(SeededEntropy("seed"))
    took: dict[str, float] = {}
    instances: dict[str, Instance] = {}

    async def live(number: int, name: str) -> None:
        async with open_instance(
            ["vmapi"],
            log=MemoryLogStore(place),
            coordinator=coordination.coordinator(),
            network=network.host(name),
            listen=f"127.0.0.1:{7000 + number}",
            name=name,
            settings=Settings(),
        ) as instance:
            instances[name] = instance
            await instance.wait_ready()
            await trio.sleep(5 + number * apart_s)
            assert instance.status()["feeds"]["vmapi"]["leader"]
            began = trio.current_time()
            await instance.drain()
            took[name] = trio.current_time() - began

    async with trio.open_nursery() as nursery:
        for number, name in enumerate(NAMES):
            nursery.start_soon(live, number, name)

    assert sorted(took) == list(NAMES)
    assert max(took.values()) < 2 * Settings().peer_heartbeat_s + apart_s * len(NAMES), took
