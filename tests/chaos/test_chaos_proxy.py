"""The proxy in user space: passes bytes on, late if told so; resets and half-closes its flows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from changefeed.testing.processes import free_port
from simulations.chaos.nodes.proxy import SWITCHES, Proxy
from simulations.chaos.shim import Numbers


@asynccontextmanager
async def proxied(folder: Path, *, serving: bool = True) -> AsyncIterator[tuple[trio.SocketStream, Numbers]]:
    """A connection through the proxy to a server that echoes."""
    page = Numbers(folder / "page", SWITCHES)
    port, target = free_port(), free_port()

    async def echo(stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        if serving:
            listeners = await trio.open_tcp_listeners(target, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, echo, listeners)
        nursery.start_soon(Proxy("127.0.0.1", {port: ("127.0.0.1", target)}, page).run)
        with trio.fail_after(10):
            while not page.get("ready"):
                await trio.lowlevel.checkpoint()
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                yield client, page
        nursery.cancel_scope.cancel()
    page.close()


async def exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = bytes(await stream.receive_some(count - len(data)))
        assert more, "it ended"
        data += more
    return data


async def test_bytes_pass_both_ways(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (client, page):
        payload = bytes(range(256)) * 2000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, payload)
            assert await exactly(client, len(payload)) == payload
        assert page.get("delayed") == 0
        assert page.get("flows") == 1


async def test_delayed_bytes_come_later_in_order_and_are_counted(tmp_path: Path) -> None:
    """Both ways: twice the delay at least."""
    async with proxied(tmp_path) as (client, page):
        page.set("delay_ms", 40)
        page.set("jitter_ms", 20)
        begun = trio.current_time()
        for number in range(20):
            await client.send_all(bytes([number]))
        assert await exactly(client, 20) == bytes(range(20))
        assert trio.current_time() - begun >= 0.08
        assert page.get("delayed") == 40


async def test_a_reset_is_a_reset(tmp_path: Path) -> None:
    """The client does not see an end, but an error; a new flow passes."""
    async with proxied(tmp_path) as (client, page):
        await client.send_all(b"x")
        await exactly(client, 1)
        page.add("reset")
        with pytest.raises(trio.BrokenResourceError):
            while True:
                assert await client.receive_some(1) != b"", "that would be an orderly end"
        assert page.get("cut") == 1


async def test_a_half_closed_flow_ends_for_the_client_and_swallows_what_it_sends(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (client, page):
        await client.send_all(b"x")
        await exactly(client, 1)
        page.add("half_close")
        assert await client.receive_some(1) == b""
        await client.send_all(b"nobody hears this")
        assert page.get("cut") == 1


async def test_where_nobody_listens_the_flow_is_reset(tmp_path: Path) -> None:
    async with proxied(tmp_path, serving=False) as (client, _):
        with pytest.raises(trio.BrokenResourceError):
            assert await client.receive_some(1) != b"", "that would be an orderly end"
