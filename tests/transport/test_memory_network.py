"""The hooks by which tests and simulations do harm to a network in memory."""

from __future__ import annotations

import pytest
import trio

from changefeed.errors import ConnectionLost, ConnectionRefused, Unreachable
from changefeed.transport import Connection, Request
from changefeed.transport.memory import MemoryHost, MemoryNetwork, connection_pair

PROTOCOLS = ("one.v1",)


async def connect(host: MemoryHost, url: str, timeout_s: float = 5) -> Connection:
    return await host.connect(url, subprotocols=PROTOCOLS, message_bytes_max=1000, timeout_s=timeout_s)


class Server:
    """Listens on a host and hands out the server's ends."""

    def __init__(self, host: MemoryHost, nursery: trio.Nursery) -> None:
        self.host = host
        self.nursery = nursery
        self.send, self.ends = trio.open_memory_channel[Connection](100)

    async def start(self, port: int = 0) -> str:
        self.listener = await self.host.listen("10.0.0.1", port, subprotocols=PROTOCOLS, message_bytes_max=1000)

        async def keep(connection: Connection, request: Request) -> None:
            await self.send.send(connection)
            await trio.sleep_forever()

        self.nursery.start_soon(self.listener.serve, keep, None)  # type: ignore[arg-type]
        return f"ws://10.0.0.1:{self.listener.address[1]}"


async def test_kill_breaks_connections_and_refuses_new_ones(autojump_clock: trio.abc.Clock) -> None:
    """As SIGKILL: what was on the way is lost, both ends see 1006, the port refuses, others live."""
    net = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        killed, other = Server(net.host("a"), nursery), Server(net.host("b"), nursery)
        url, other_url = await killed.start(), await other.start()
        client = await connect(net.host("c"), url)
        bystander = await connect(net.host("c"), other_url)
        end = await killed.ends.receive()
        await end.send(b"never seen")
        net.kill("a")
        with pytest.raises(ConnectionLost) as lost:
            await client.receive()
        assert lost.value.close_code_received == 1006
        with pytest.raises(ConnectionLost):
            await end.receive()
        with pytest.raises(ConnectionRefused):
            await connect(net.host("c"), url)
        await bystander.send(b"alive")
        assert await (await other.ends.receive()).receive() == b"alive"
        # The same port can be listened on again, as after a restart.
        await Server(net.host("a"), nursery).start(killed.listener.address[1])
        await connect(net.host("c"), url)
        nursery.cancel_scope.cancel()


async def test_cut_holds_messages_until_it_is_healed(autojump_clock: trio.abc.Clock) -> None:
    """Nothing arrives, nobody is told, connecting times out; healed, everything arrives in order."""
    net = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        server = Server(net.host("a"), nursery)
        url = await server.start()
        client = await connect(net.host("c"), url)
        end = await server.ends.receive()
        net.cut("a", "c")
        await client.send(b"1")
        await client.send(b"2")
        await end.aclose(4410, "bye")
        with trio.move_on_after(60) as scope:
            await client.receive()
        assert scope.cancelled_caught
        started = trio.current_time()
        with pytest.raises(Unreachable):
            await connect(net.host("c"), url, timeout_s=3)
        assert trio.current_time() == started + 3
        await connect(net.host("d"), url)
        net.heal("a", "c")
        with pytest.raises(ConnectionLost) as lost:
            await client.receive()
        assert lost.value.close_code_received == 4410
        await connect(net.host("c"), url)
        nursery.cancel_scope.cancel()


async def test_a_send_that_waits_for_room_across_a_cut_does_not_spin(autojump_clock: trio.abc.Clock) -> None:
    """The peer's end cannot be known through a cut: the sender waits for it, without using the processor."""
    net = MemoryNetwork(buffer_bytes=10)
    async with trio.open_nursery() as nursery:
        server = Server(net.host("a"), nursery)
        client = await connect(net.host("c"), await server.start())
        end = await server.ends.receive()
        net.cut("a", "c")
        await end.aclose(4410)
        await client.send(b"0123456789")
        with trio.move_on_after(1000) as scope:
            await client.send(b"0123456789")
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_delay_takes_virtual_time_and_keeps_order(autojump_clock: trio.abc.Clock) -> None:
    net = MemoryNetwork()
    delays = iter([5.0, 1.0, 0.0, 2.0])
    net.delay = lambda source, target: next(delays) if source == "a" else 0.0
    async with trio.open_nursery() as nursery:
        server = Server(net.host("a"), nursery)
        client = await connect(net.host("c"), await server.start())
        end = await server.ends.receive()
        for message in (b"1", b"2", b"3"):
            await end.send(message)
        await end.aclose(4400)
        for message in (b"1", b"2", b"3"):
            assert await client.receive() == message
            assert trio.current_time() == 5.0
        with pytest.raises(ConnectionLost):
            await client.receive()
        assert trio.current_time() == 5.0
        nursery.cancel_scope.cancel()


async def test_drop_breaks_connections_but_not_the_host(autojump_clock: trio.abc.Clock) -> None:
    net = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        server = Server(net.host("a"), nursery)
        url = await server.start()
        client, other = await connect(net.host("c"), url), await connect(net.host("d"), url)
        net.drop("c", "a")
        with pytest.raises(ConnectionLost):
            await client.receive()
        await other.send(b"x")
        await connect(net.host("c"), url)
        nursery.cancel_scope.cancel()


async def test_connection_pair_joins_two_ends() -> None:
    mine, served = connection_pair("one.v1")
    await mine.send(b"hello")
    assert await served.receive() == b"hello"
    await served.aclose(4400, "enough")
    with pytest.raises(ConnectionLost, match="enough"):
        await mine.receive()
