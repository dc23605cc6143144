"""A second Ctrl-C ends a drain that waits for somebody, as a process."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import trio

from changefeed.settings import Settings
from changefeed.testing.processes import ServeCluster
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import MSGPACK
from changefeed.wire.codec import decode, encode
from changefeed.wire.messages import Start, Subscribe, Subscribed

pytestmark = pytest.mark.processes


async def test_the_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    """A subscriber that does not go where it was sent is waited for; whoever asks twice does not want to wait. The
    exit status is that of the second signal, and the other instance goes on."""
    cluster = ServeCluster(["vmapi"], count=2, folder=tmp_path)
    try:
        await trio.to_thread.run_sync(cluster.start)
        leader = cluster.wait_leader()
        connection = await WebsocketNetwork(Settings()).connect(
            leader.url + "/v1", subprotocols=(MSGPACK,), message_bytes_max=2**22, timeout_s=10
        )
        await connection.send(encode(Subscribe("vmapi", Start(at="beginning"), "stays"), MSGPACK))
        assert isinstance(decode(await connection.receive(), MSGPACK), Subscribed)
        leader.send(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while '"draining"' not in leader.tail():
            assert time.monotonic() < deadline, leader.said()
            await trio.sleep(0.01)
        leader.send(signal.SIGINT)
        assert await trio.to_thread.run_sync(leader.wait, 30) == 130
        assert '"stopped"' not in leader.tail()
        connection.abort()
        assert cluster.wait_leader(but=leader).ready()
    finally:
        cluster.stop()
