"""The transport contract, on the transport in memory and on websockets over loopback."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

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
