"""What every transport must do: `CHECKS` are the checks; a test runs each of them on a `Bench` of the transport.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_contract(check): await run_check(check, Bench(server=Net(), client=Net(), host="127.0.0.1"))

Checks raise AssertionError. They use no clock beyond a bound of 20 s, so that they run under a MockClock as well where
the transport does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import trio
import trio.testing

from changefeed.errors import (
    BadUrl,
    ConnectionLost,
    ConnectionRefused,
    FrameTooLarge,
    Moved,
    PortInUse,
    Unreachable,
    UnsupportedProtocol,
)
from changefeed.transport import Connection, HttpHandler, Listener, Message, Network, Request, Response

PROTOCOLS: Final = ("one.v1", "two.v1")
LIMIT: Final = 100_000
BOUND_S: Final = 20.0


@dataclass(frozen=True)
class Bench:
    """server, client: the networks of the two ends (they may be one). host: where to listen."""

    server: Network
    client: Network
    host: str = "127.0.0.1"

    async def connect(self, url: str, subprotocols: tuple[str, ...] = PROTOCOLS, limit: int = LIMIT) -> Connection:
        return await self.client.connect(url, subprotocols=subprotocols, message_bytes_max=limit, timeout_s=BOUND_S)

    async def listen(self, port: int = 0, limit: int = LIMIT) -> Listener:
        return await self.server.listen(self.host, port, subprotocols=PROTOCOLS, message_bytes_max=limit)


Check = Callable[[Bench], Awaitable[None]]


async def run_check(check: Check, bench: Bench) -> None:
    """Run one check; TooSlowError if it hangs."""
    with trio.fail_after(BOUND_S):
        await check(bench)


@dataclass
class Served:
    """A running listener that keeps the server's ends of its connections open until told to let go."""

    listener: Listener
    url: str
    connections: trio.MemoryReceiveChannel[tuple[Connection, Request]]

    async def accepted(self) -> Connection:
        return (await self.connections.receive())[0]


async def no_http(request: Request) -> Response:
    return Response(404, b"{}")


@asynccontextmanager
async def serving(
    bench: Bench,
    limit: int = LIMIT,
    http: HttpHandler = no_http,
    handle: Callable[[Connection], Awaitable[None]] | None = None,
) -> AsyncIterator[Served]:
    """A listener whose connections come out of `Served.connections`, or go to `handle` after that."""
    send, receive = trio.open_memory_channel[tuple[Connection, Request]](100)

    async def keep(connection: Connection, request: Request) -> None:
        await send.send((connection, request))
        if handle is not None:
            await handle(connection)
        else:
            await trio.sleep_forever()

    listener = await bench.listen(limit=limit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, keep, http)
        yield Served(listener, f"ws://{bench.host}:{listener.address[1]}", receive)
        nursery.cancel_scope.cancel()
    await listener.aclose()


@contextmanager
def raises(kind: type[Exception]) -> Iterator[list[Exception]]:
    """Like pytest.raises, without pytest; what was raised is in the list afterwards."""
    found: list[Exception] = []
    try:
        yield found
    except kind as error:
        found.append(error)
        return
    raise AssertionError(f"{kind.__name__} was not raised")


async def messages_arrive_whole_and_in_order_both_ways(bench: Bench) -> None:
    """Text stays text, bytes stay bytes, of any size up to the limit, each way, in order."""
    messages: list[Message] = [
        b"",
        b"a",
        "text",
        "grüße",
        b"x" * 125,
        b"y" * 126,
        b"z" * 65535,
        b"w" * 65536,
        b"\0" * LIMIT,
    ]
    async with serving(bench) as served:
        client = await bench.connect(served.url)
        server = await served.accepted()
        for source, target in ((client, server), (server, client)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_all, source, messages)
                for expected in messages:
                    assert await target.receive() == expected
        client.abort()


async def _send_all(connection: Connection, messages: list[Message]) -> None:
    for message in messages:
        await connection.send(message)


async def the_sub_protocol_is_the_clients_first_that_the_server_speaks(bench: Bench) -> None:
    """Both ends know what was agreed on."""
    async with serving(bench) as served:
        client = await bench.connect(served.url, ("other", "two.v1", "one.v1"))
        server = await served.accepted()
        assert client.subprotocol == server.subprotocol == "two.v1"
        client.abort()


async def no_common_sub_protocol_is_told(bench: Bench) -> None:
    """UnsupportedProtocol, naming what the server speaks; the server's handler is not called."""
    async with serving(bench) as served:
        with raises(UnsupportedProtocol) as found:
            await bench.connect(served.url, ("other.v9",))
        assert "one.v1" in str(found[0])
        client = await bench.connect(served.url)
        await served.accepted()
        client.abort()


async def a_close_code_and_reason_reach_the_client(bench: Bench) -> None:
    """What was sent before is still received; then ConnectionLost with code and reason, for receive and send."""
    async with serving(bench) as served:
        client = await bench.connect(served.url)
        server = await served.accepted()
        async with trio.open_nursery() as nursery:
            await server.send(b"last words")
            nursery.start_soon(server.aclose, 4410, "go elsewhere")
            assert await client.receive() == b"last words"
            with raises(ConnectionLost) as found:
                await client.receive()
            assert isinstance(found[0], ConnectionLost)
            assert (found[0].close_code_received, found[0].reason) == (4410, "go elsewhere")
            with raises(ConnectionLost) as found:
                await client.send(b"more")
            assert isinstance(found[0], ConnectionLost) and found[0].close_code_received == 4410
            await client.aclose()


async def a_close_code_and_reason_reach_the_server(bench: Bench) -> None:
    async with serving(bench) as served:
        client = await bench.connect(served.url)
        server = await served.accepted()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose, 4999, "never again")
            with raises(ConnectionLost) as found:
                await server.receive()
            assert isinstance(found[0], ConnectionLost)
            assert (found[0].close_code_received, found[0].reason) == (4999, "never again")


async def closing_is_idempotent_and_final(bench: Bench) -> None:
    """After aclose or abort nothing can be sent or received; both may be called again."""
    async with serving(bench) as served:
        for abort in (False, True):
            client = await bench.connect(served.url)
            server = await served.accepted()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_receive_until_lost, server)
                if abort:
                    client.abort()
                    client.abort()
                else:
                    await client.aclose(1000, "done")
                await client.aclose()
                client.abort()
                for use in (client.receive, lambda end=client: end.send(b"x")):
                    with raises(ConnectionLost):
                        await use()


async def _receive_until_lost(connection: Connection) -> None:
    try:
        while True:
            await connection.receive()
    except ConnectionLost:
        pass


async def an_abort_is_noticed_by_the_peer(bench: Bench) -> None:
    """Without a word means code 1006."""
    async with serving(bench) as served:
        for from_client in (True, False):
            client = await bench.connect(served.url)
            server = await served.accepted()
            one, other = (client, server) if from_client else (server, client)
            one.abort()
            with raises(ConnectionLost) as found:
                await other.receive()
            assert isinstance(found[0], ConnectionLost) and found[0].close_code_received == 1006
            other.abort()


async def a_message_above_the_limit_ends_the_connection(bench: Bench) -> None:
    """FrameTooLarge for who received it, close code 1009 for who sent it."""
    async with serving(bench) as served:
        for from_client in (True, False):
            client = await bench.connect(served.url)
            server = await served.accepted()
            one, other = (client, server) if from_client else (server, client)
            async with trio.open_nursery() as nursery:

                async def receive(end: Connection = other) -> None:
                    with raises(FrameTooLarge):
                        await end.receive()
                    await end.aclose(4542)

                nursery.start_soon(receive)
                with raises(ConnectionLost) as found:
                    await one.send(b"x" * (LIMIT + 1))
                    await one.receive()
                assert isinstance(found[0], ConnectionLost) and found[0].close_code_received == 1009
                await one.aclose()


async def a_cancelled_receive_loses_nothing(bench: Bench) -> None:
    async with serving(bench) as served:
        client = await bench.connect(served.url)
        server = await served.accepted()
        for _ in range(20):
            with trio.move_on_after(0):
                await client.receive()
        with trio.move_on_after(0.01):
            await client.receive()
        await server.send(b"1")
        await server.send(b"2")
        assert await client.receive() == b"1"
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.receive()
        assert await client.receive() == b"2"
        client.abort()


async def a_peer_that_reads_nothing_holds_the_sender_back(bench: Bench) -> None:
    """A bounded number of messages is on the way; a send that is given up breaks the connection."""
    async with serving(bench) as served:
        client = await bench.connect(served.url)
        server = await served.accepted()
        for one, other in ((server, client), (await bench.connect(served.url), await served.accepted())):
            sent = 0
            with trio.move_on_after(1):
                while True:
                    await one.send(b"m" * LIMIT)
                    sent += 1
            assert 0 < sent < 1000, "the sender was never held back"
            with raises(ConnectionLost):
                await one.send(b"after a send that was given up")
            got = 0
            with raises(ConnectionLost):
                while True:
                    assert await other.receive() == b"m" * LIMIT
                    got += 1
            assert got <= sent
            other.abort()


async def a_send_that_waits_ends_with_the_connection(bench: Bench) -> None:
    """Whether the peer drops it, or another task of this end closes or drops it: ConnectionLost, no hang."""
    async with serving(bench) as served:
        for end in ("peer aborts", "closed here", "aborted here"):
            client = await bench.connect(served.url)
            server = await served.accepted()
            lost = trio.Event()

            async def flood(connection: Connection = server, lost: trio.Event = lost) -> None:
                with raises(ConnectionLost):
                    while True:
                        await connection.send(b"m" * LIMIT)
                lost.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                await trio.testing.wait_all_tasks_blocked(0.05)
                if end == "peer aborts":
                    client.abort()
                elif end == "closed here":
                    await server.aclose(4400)
                else:
                    server.abort()
                await lost.wait()
            client.abort()


async def one_task_sends_and_one_receives(bench: Bench) -> None:
    """A second task gets BusyResourceError and harms nothing."""
    async with serving(bench) as served:
        client = await bench.connect(served.url)
        server = await served.accepted()
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                assert await client.receive() == b"for the first"

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with raises(trio.BusyResourceError):
                await client.receive()
            await server.send(b"for the first")
        client.abort()


async def nothing_listens_is_refused(bench: Bench) -> None:
    """ConnectionRefused: evidence that a process is gone; also after a listener was closed."""
    async with serving(bench) as served:
        url = served.url
        open_before = await bench.connect(url)
        await served.accepted()
        await served.listener.aclose()
        with raises(ConnectionRefused):
            await bench.connect(url)
        with raises(ConnectionRefused):
            await bench.client.get(url + "/healthz", timeout_s=5)
        server_lives = open_before
        await server_lives.send(b"connections that are open go on")
        server_lives.abort()


async def a_port_is_listened_on_once(bench: Bench) -> None:
    async with serving(bench) as served:
        with raises(PortInUse) as found:
            await bench.listen(served.listener.address[1])
        assert str(served.listener.address[1]) in str(found[0])


async def bad_urls_are_told(bench: Bench) -> None:
    for url in ("", "127.0.0.1:7557", "ftp://127.0.0.1:1", "wss://127.0.0.1:1", "ws://", "ws://h:99999", "ws://h/ü"):
        with raises(BadUrl):
            await bench.connect(url)
        with raises(BadUrl):
            await bench.client.get(url, timeout_s=1)


async def a_connection_may_end_before_the_server_takes_it(bench: Bench) -> None:
    """A listener that does not serve yet lets clients connect or wait, never crashes when it begins."""
    listener = await bench.listen()
    url = f"ws://{bench.host}:{listener.address[1]}"
    with trio.move_on_after(0.05):
        (await bench.connect(url)).abort()
    async with trio.open_nursery() as nursery:

        async def echo(connection: Connection, request: Request) -> None:
            await connection.send(await connection.receive())

        nursery.start_soon(listener.serve, echo, no_http)
        client = await bench.connect(url)
        await client.send(b"still there?")
        assert await client.receive() == b"still there?"
        client.abort()
        nursery.cancel_scope.cancel()
    await listener.aclose()


async def whatever_a_handler_raises_ends_that_connection_only(bench: Bench) -> None:
    """1011 for the unexpected, the error's own close code for a typed error, 1000 for a plain return."""
    outcomes = [ValueError("a bug"), Moved("elsewhere"), ExceptionGroup("many", [KeyError(1), ValueError(2)]), None]

    async def misbehave(connection: Connection) -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    async with serving(bench, handle=misbehave) as served:
        codes = []
        for _ in range(4):
            client = await bench.connect(served.url)
            with raises(ConnectionLost) as found:
                await client.receive()
            assert isinstance(found[0], ConnectionLost)
            codes.append(found[0].close_code_received)
            await client.aclose()
        assert codes == [1011, 4410, 1011, 1000]


async def plain_get_is_answered_on_the_same_port(bench: Bench) -> None:
    """Status, body and path; a handler that raises is a 500; http:// and ws:// mean the same."""

    async def http(request: Request) -> Response:
        if request.path == "/boom":
            raise ValueError("a bug")
        return Response(200 if request.path == "/status" else 404, b"x" * 300_000 if request.path == "/status" else b"")

    async with serving(bench, http=http) as served:
        response = await bench.client.get(served.url + "/status", timeout_s=10)
        assert (response.status, response.body) == (200, b"x" * 300_000)
        base = served.url.replace("ws://", "http://")
        assert (await bench.client.get(base + "/other", timeout_s=10)).status == 404
        assert (await bench.client.get(base + "/boom", timeout_s=10)).status == 500
        assert (await bench.client.get(base, timeout_s=10)).status == 404


async def another_path_is_not_the_protocol(bench: Bench) -> None:
    async with serving(bench) as served:
        with raises(Unreachable):
            await bench.connect(served.url + "/changefeeds")
        client = await bench.connect(served.url + "/v1")
        client.abort()


CHECKS: Final[tuple[Check, ...]] = (
    messages_arrive_whole_and_in_order_both_ways,
    the_sub_protocol_is_the_clients_first_that_the_server_speaks,
    no_common_sub_protocol_is_told,
    a_close_code_and_reason_reach_the_client,
    a_close_code_and_reason_reach_the_server,
    closing_is_idempotent_and_final,
    an_abort_is_noticed_by_the_peer,
    a_message_above_the_limit_ends_the_connection,
    a_cancelled_receive_loses_nothing,
    a_peer_that_reads_nothing_holds_the_sender_back,
    a_send_that_waits_ends_with_the_connection,
    one_task_sends_and_one_receives,
    nothing_listens_is_refused,
    a_port_is_listened_on_once,
    bad_urls_are_told,
    a_connection_may_end_before_the_server_takes_it,
    whatever_a_handler_raises_ends_that_connection_only,
    plain_get_is_answered_on_the_same_port,
    another_path_is_not_the_protocol,
)
