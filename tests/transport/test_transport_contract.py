"""The transport contract, on the transport in memory, on websockets over loopback and over simulated byte streams."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from changefeed.simulation.stack.flow import Weather
from changefeed.simulation.stack.streams import StreamNetwork
from changefeed.testing.transport_suite import CHECKS, Bench, Check, run_check
from changefeed.transport.memory import MemoryNetwork
from changefeed.transport.websocket import WebsocketNetwork


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_memory(check: Check) -> None:
    """In virtual time: nothing depends on the real clock."""
    network = MemoryNetwork()
    bench = Bench(server=network.host("server"), client=network.host("client"))
    trio.run(run_check, check, bench, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_websocket(check: Check) -> None:
    """Over real sockets."""
    await run_check(check, Bench(server=WebsocketNetwork(), client=WebsocketNetwork()))


WEATHERS = {
    "calm": Weather(latency_s=0.0, splits=0, short_reads=0.0, buffer_bytes=2**18),
    "small buffers, torn": Weather(latency_s=0.001, splits=3, short_reads=0.3, buffer_bytes=4096),
    "slow, torn": Weather(latency_s=0.03, bytes_s=1e6, splits=3, buffer_bytes=32768),
}


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_websocket_over_simulated_streams(check: Check, weather: str) -> None:
    """In virtual time, over bytes that are split, merged and held back; nothing is left open."""
    for seed in range(2):
        network = StreamNetwork(f"{seed}", WEATHERS[weather])
        server, client = WebsocketNetwork(streams=network.host("server")), WebsocketNetwork(streams=network.host("c"))
        trio.run(run_check, check, Bench(server=server, client=client), clock=MockClock(autojump_threshold=0))
        assert not network.links
        assert not network.listeners
