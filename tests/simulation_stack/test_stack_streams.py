"""Simulated byte streams: what TCP and kernels do to bytes, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from changefeed.errors import ConnectionRefused, PortInUse
from changefeed.simulation.cluster.virtual import run_virtually
from changefeed.simulation.stack.flow import Weather
from changefeed.simulation.stack.streams import SimulatedListener, SimulatedStream, StreamNetwork
from changefeed.transport.urls import Address

ADDRESS = Address("127.0.0.1", 7000, "", "")
TORN = Weather(latency_s=0.01, splits=3, short_reads=0.3, buffer_bytes=8192)
CALM = Weather(latency_s=0.0, splits=0, short_reads=0.0)
Pair = tuple[SimulatedStream, SimulatedStream]


async def listen(network: StreamNetwork, host: str = "server") -> SimulatedListener:
    (listener,) = await network.host(host).listen("127.0.0.1", 7000)
    return listener


async def pair(network: StreamNetwork) -> Pair:
    """Both ends of a stream between the hosts client and server."""
    listener = await listen(network)
    near = await network.host("client").connect(ADDRESS)
    return near, await listener.accept()


async def read_all(stream: SimulatedStream) -> bytes:
    """To the end; what came before a reset, followed by a mark."""
    data = b""
    try:
        while more := await stream.receive_some(1000):
            data += more
    except trio.BrokenResourceError:
        data += b"<reset>"
    return data


def virtually(body: Callable[[StreamNetwork], Awaitable[None]], weather: Weather = CALM, seeds: int = 1) -> None:
    for seed in range(seeds):
        network = StreamNetwork(f"{seed}", weather)

        async def main(network: StreamNetwork = network) -> None:
            await body(network)

        run_virtually(f"{seed}", main)


@given(
    st.lists(st.binary(min_size=1, max_size=20_000), max_size=8),
    st.integers(0, 2**32),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.2, 0.9]),
    st.sampled_from([512, 4096, 100_000]),
)
@settings(max_examples=60, deadline=None)
def test_bytes_arrive_all_and_in_order(writes: list[bytes], seed: int, splits: int, short: float, size: int) -> None:
    """However they are split, merged, delayed and held back, both ways at once; the end comes after the last one."""
    network = StreamNetwork(f"{seed}", Weather(0.01, splits=splits, short_reads=short, buffer_bytes=size))
    got: list[bytes] = []

    async def write(stream: SimulatedStream) -> None:
        for data in writes:
            await stream.send_all(data)
        stream.finish()

    async def read(stream: SimulatedStream) -> None:
        got.append(await read_all(stream))

    async def main() -> None:
        near, far = await pair(network)
        async with trio.open_nursery() as nursery:
            for end in (near, far):
                nursery.start_soon(write, end)
                nursery.start_soon(read, end)

    run_virtually(f"{seed}", main)
    assert got == [b"".join(writes)] * 2


def test_writes_are_split_and_merged() -> None:
    """One write does not arrive as one read, nor two writes as two."""
    sizes: list[int] = []

    async def body(network: StreamNetwork) -> None:
        near, far = await pair(network)
        for _ in range(20):
            await near.send_all(b"x" * 100)
        near.finish()
        while data := await far.receive_some(1000):
            sizes.append(len(data))

    virtually(body, TORN, seeds=5)
    assert sum(sizes) == 5 * 2000
    assert min(sizes) < 100 < max(sizes)


def test_a_reader_that_does_not_read_holds_the_writer_back() -> None:
    """`write_now` takes what the buffer has room for, `send_all` waits; room comes back when enough was read."""

    async def body(network: StreamNetwork) -> None:
        near, far = await pair(network)
        size = network.weather.buffer_bytes
        assert near.write_now(b"h" * 10, b"p" * size) == size
        assert near.write_now(b"h", b"p") == 0
        with trio.move_on_after(100) as waited:
            await near.send_all(b"x")
        assert waited.cancelled_caught
        assert network.sightings["a write that waited for room"] == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, b"y" * size)
            left = 2 * size
            while left:
                left -= len(await far.receive_some(None))

    virtually(body)


def test_a_cut_loses_nothing_and_tells_nobody() -> None:
    """One way: what was sent meanwhile arrives after the heal, in order; the other way goes on."""

    async def body(network: StreamNetwork) -> None:
        near, far = await pair(network)
        await near.send_all(b"before ")
        await trio.sleep(1)
        network.cut("client", "server")
        await near.send_all(b"meanwhile")
        near.finish()
        await far.send_all(b"back")
        assert await near.receive_some() == b"back"
        assert await far.receive_some() == b"before "
        with trio.move_on_after(1000) as silence:
            await far.receive_some()
        assert silence.cancelled_caught
        with trio.move_on_after(1000) as silence:
            await network.host("client").connect(ADDRESS)
        assert silence.cancelled_caught
        network.heal("client", "server")
        assert await read_all(far) == b"meanwhile"

    virtually(body)


def test_what_was_read_is_not_told_across_a_cut() -> None:
    """The writer's buffer stays full while the reader's words do not arrive."""

    async def body(network: StreamNetwork) -> None:
        near, far = await pair(network)
        size = network.weather.buffer_bytes
        network.cut("server", "client")
        assert near.write_now(b"", b"p" * size) == size
        await trio.sleep(1)
        assert len(await far.receive_some()) == size
        assert near.write_now(b"", b"p") == 0
        network.heal("server", "client")
        assert near.write_now(b"", b"p") == 1

    virtually(body)


def test_a_killed_hosts_kernel_closes_what_it_had_open() -> None:
    """What it had sent arrives, then the end, or a reset over what it had not read; its port refuses; its own calls
    fail."""

    async def body(network: StreamNetwork) -> None:
        for unread in (False, True):
            near, far = await pair(network)
            if unread:
                await near.send_all(b"never read")
                await trio.sleep(1)
            await far.send_all(b"last words")
            await trio.sleep(1)
            network.kill("server")
            with pytest.raises(trio.ClosedResourceError):
                await far.send_all(b"more")
            with pytest.raises(trio.ClosedResourceError):
                await far.receive_some()
            got = await read_all(near)
            assert got == b"last words" if not unread else got in (b"last words<reset>", b"<reset>")
            with pytest.raises(ConnectionRefused):
                await network.host("client").connect(ADDRESS)

    virtually(body, seeds=4)


def test_a_machine_without_power_is_silent_and_resets_when_it_is_back() -> None:
    """Nobody is told; new connections wait; once it is back what is sent again is reset, and its port refuses."""

    async def body(network: StreamNetwork) -> None:
        near, _ = await pair(network)
        quiet, _ = near, None
        network.vanish("server")
        await near.send_all(b"anybody there?")
        with trio.move_on_after(1000) as silence:
            await quiet.receive_some()
        assert silence.cancelled_caught
        with trio.move_on_after(1000) as silence:
            await network.host("client").connect(ADDRESS)
        assert silence.cancelled_caught
        network.return_("server")
        assert await read_all(near) == b"<reset>"
        with pytest.raises(ConnectionRefused):
            await network.host("client").connect(ADDRESS)

    virtually(body)


@pytest.mark.parametrize(("then", "end"), [("reset", b"<reset>"), ("end", b""), ("silence", None)])
def test_a_stream_breaks_off_after_so_many_bytes(then: str, end: bytes | None) -> None:
    """Cut at any byte, also in the middle of what was written at once."""

    async def body(network: StreamNetwork) -> None:
        near, far = await pair(network)
        assert network.sever("client", "server", 7, then) == 1  # type: ignore[arg-type]
        await near.send_all(b"0123")
        await near.send_all(b"4567")
        await near.send_all(b"89")
        got: list[bytes] = []
        with trio.move_on_after(1000) as silence:
            got.append(await read_all(far))
        assert silence.cancelled_caught == (end is None)
        if end is not None:
            # A reset may take what had arrived and was not read yet with it.
            read = got[0].removesuffix(b"<reset>")
            assert b"0123456".startswith(read)
            assert got[0] == (read + end if then == "reset" else b"0123456")
        if then == "reset":
            with pytest.raises(trio.BrokenResourceError):
                await near.send_all(b"x")

    virtually(body, seeds=4)


def test_a_reset_between_two_hosts_meets_both_ends_and_only_these() -> None:
    """What was under way is cut at a drawn byte; new streams can be opened."""
    seen: set[int] = set()

    async def body(network: StreamNetwork) -> None:
        listener = await listen(network)
        client, other = network.host("client"), network.host("other")
        near, apart = await client.connect(ADDRESS), await other.connect(ADDRESS)
        far, beside = await listener.accept(), await listener.accept()
        await near.send_all(b"x" * 1000)
        assert network.reset("client", "server") == 2
        got = await read_all(far)
        assert got.endswith(b"<reset>")
        seen.add(len(got))
        assert await read_all(near) == b"<reset>"
        await apart.send_all(b"still there")
        apart.finish()
        assert await read_all(beside) == b"still there"
        again = await client.connect(ADDRESS)
        await again.send_all(b"anew")
        again.finish()
        assert await read_all(await listener.accept()) == b"anew"

    virtually(body, Weather(latency_s=0.01, splits=3, short_reads=0.0), seeds=20)
    assert len(seen) > 3


def test_a_close_over_unread_bytes_resets() -> None:
    """As kernels do: the peer may lose what was sent to it just before."""
    got: set[bytes] = set()

    async def body(network: StreamNetwork) -> None:
        near, far = await pair(network)
        await near.send_all(b"a request too many")
        await trio.sleep(1)
        await far.send_all(b"answer")
        far.close()
        got.add(await read_all(near))
        assert network.sightings["a close over unread bytes"] == 1

    virtually(body, Weather(latency_s=0.01, splits=2, short_reads=0.0), seeds=30)
    assert b"<reset>" in got
    assert any(b"a" in each for each in got), got


def test_a_write_to_an_end_that_is_closed_is_answered_with_a_reset() -> None:
    async def body(network: StreamNetwork) -> None:
        near, far = await pair(network)
        far.close()
        assert await near.receive_some() == b""
        await near.send_all(b"too late")
        await trio.sleep(1)
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"more")
        near.close()
        assert not network.links

    virtually(body)


def test_ports_and_backlogs() -> None:
    """A port is listened on once; a listener that accepts nobody makes clients wait; closing it resets who waits."""

    async def body(network: StreamNetwork) -> None:
        listener = await listen(network)
        with pytest.raises(PortInUse):
            await listen(network)
        client = network.host("client")
        waiting = [await client.connect(ADDRESS) for _ in range(128)]
        with trio.move_on_after(10) as full:
            await client.connect(ADDRESS)
        assert full.cancelled_caught
        listener.close()
        assert await read_all(waiting[0]) == b"<reset>"
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        await listen(network)

    virtually(body)


def test_a_connect_that_is_given_up_leaves_nothing_open() -> None:
    async def body(network: StreamNetwork) -> None:
        listener = await listen(network)
        client = network.host("client")
        for delay in (0.0, 0.001, 0.01, 0.02):
            with trio.move_on_after(delay):
                (await client.connect(ADDRESS)).abort()
        listener.close()
        await trio.sleep(1)
        assert not network.links

    virtually(body, TORN, seeds=10)


def test_the_same_seed_is_the_same_network() -> None:
    """Sizes and times of all reads."""

    def run(seed: str) -> list[tuple[float, int]]:
        reads: list[tuple[float, int]] = []
        network = StreamNetwork(seed, TORN)

        async def read(stream: SimulatedStream) -> None:
            while data := await stream.receive_some(500):
                reads.append((trio.current_time(), len(data)))

        async def main() -> None:
            near, far = await pair(network)
            chance = random.Random(seed)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, far)
                for _ in range(20):
                    await near.send_all(chance.randbytes(chance.randint(1, 3000)))
                near.finish()

        run_virtually(seed, main)
        return reads

    assert run("1") == run("1")
    assert run("1") != run("2")
