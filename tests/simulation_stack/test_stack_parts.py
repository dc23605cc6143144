"""The parts of the stack tier beside its streams: frozen processes on sockets, a store without threads."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.lowlevel

from changefeed.batch import Entry, Tail, batch_digest, chain
from changefeed.change import Change
from changefeed.errors import AppendOutcomeUnknown, ConnectionLost, LogUnavailable
from changefeed.log import Fence, Look
from changefeed.log.sqlite import SqliteFeedLog, SqliteLogStore
from changefeed.settings import Settings
from changefeed.simulation.cluster.recording import FEED, Archive, Recorder
from changefeed.simulation.cluster.virtual import PROCESS, Freezer, run_virtually
from changefeed.simulation.stack.flow import Weather
from changefeed.simulation.stack.network import StackNetwork
from changefeed.simulation.stack.store import SqlitePlace, Threads, quiet_world
from changefeed.simulation.stack.streams import StreamNetwork
from changefeed.transport import Connection, Request, Response
from changefeed.wire import JSON, MSGPACK, SUBPROTOCOLS
from changefeed.wire.changes import encode_change

TERM = "c" * 8


async def no_http(request: Request) -> Response:
    return Response(404, b"")


def test_none_of_a_frozen_clients_tasks_runs_not_even_those_of_its_connections() -> None:
    """Its kernel takes what its buffers hold; pings, which a connection's own tasks answer, stay unanswered."""
    sent: list[int] = []
    answered: list[float] = []

    async def flood(connection: Connection, request: Request) -> None:
        while True:
            await connection.send(b"x" * 1000)
            sent.append(1)

    async def ping(connection: Any, request: Request) -> None:
        while True:
            await connection._ws.ping()
            answered.append(trio.current_time())
            await trio.sleep(0.1)

    async def main() -> None:
        weather = Weather(latency_s=0.0, buffer_bytes=8192, short_reads=0.0)
        network = StackNetwork(StreamNetwork("1", weather), Settings())
        freezer = Freezer()
        server = network.host("server")
        one = await server.listen("127.0.0.1", 7000, subprotocols=("p",), message_bytes_max=10**6)
        other = await server.listen("127.0.0.1", 7001, subprotocols=("p",), message_bytes_max=10**6)
        received: list[int] = []

        async def client() -> None:
            PROCESS.set("client")
            connect = partial(network.host("client").connect, subprotocols=("p",), message_bytes_max=10**6, timeout_s=5)
            connection = await connect("ws://127.0.0.1:7000")
            await connect("ws://127.0.0.1:7001")
            while True:
                received.append(len(await connection.receive()))
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.serve, flood, no_http)
            nursery.start_soon(other.serve, ping, no_http)
            nursery.start_soon(client)
            await trio.sleep(1)
            freezer.freeze("client")
            await trio.sleep(1)
            had, took, pongs = len(received), len(sent), len(answered)
            await trio.sleep(100)
            meanwhile = len(received) - had, len(sent) - took, len([at for at in answered if at > 1.1])
            freezer.thaw("client")
            assert meanwhile == (0, 0, 0)
            assert had > 10 and pongs > 5
            # What the buffers hold, and what the library had read of it.
            assert took <= had + 30
            await trio.sleep(1)
            assert len(received) > had + 50
            nursery.cancel_scope.cancel()
        await one.aclose()
        await other.aclose()

    run_virtually("1", main)


@pytest.mark.parametrize(("host", "spoken"), [("a", MSGPACK), ("b", JSON)])
def test_some_hosts_ask_for_json(host: str, spoken: str) -> None:
    async def main() -> None:
        network = StackNetwork(StreamNetwork("1"), Settings(), speaks_json=("b",))
        listener = await network.host("server").listen(
            "127.0.0.1", 7000, subprotocols=SUBPROTOCOLS, message_bytes_max=9
        )

        async def wait(connection: Connection, request: Request) -> None:
            with pytest.raises(ConnectionLost):
                await connection.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, wait, no_http)
            connection = await network.host(host).connect(
                "ws://127.0.0.1:7000", subprotocols=(MSGPACK,), message_bytes_max=9, timeout_s=5
            )
            assert connection.subprotocol == spoken
            await connection.aclose()
            nursery.cancel_scope.cancel()
        await listener.aclose()

    run_virtually("1", main)


def entry(look: Look, lineage: str, number: int) -> Entry:
    """The entry that follows a log's end."""
    payload = encode_change(Change("vm", f"{number}", "update"), 2**20)
    made = Entry(
        epoch=1,
        term=TERM,
        seq=look.tail.seq + 1,
        time=5,
        publisher="p",
        incarnation=1,
        after=number - 1,
        number=number,
        sizes=(1,),
        payload=payload,
        batch_digest=batch_digest((1,), payload),
    )
    return replace(made, digest=chain(look.tail.digest, lineage, made))


class Bench:
    """One process's store on one folder."""

    def __init__(self, place: SqlitePlace, passed: Callable[[str], None]) -> None:
        self.place = place
        self.recorder = Recorder()
        self.threads = Threads(place, Archive(self.recorder), random.Random(1), 0.0, (), passed)
        self.log: SqliteFeedLog

    async def open(self) -> Look:
        self.place.begin()
        store = SqliteLogStore("sqlite:", self.place.folder, run_sync=self.threads.run_sync)
        self.log = await store.open(FEED)
        return await self.log.fence(Fence(1, TERM), why="start", time=1, clean=True)


@contextmanager
def folder() -> Iterator[SqlitePlace]:
    place = SqlitePlace("1")
    try:
        with quiet_world(1, place):
            yield place
    finally:
        place.remove()
        assert not os.path.exists(place.folder)


def on_bench(body: Callable[[Bench, list[str], Look], Awaitable[None]], kill_at: str = "") -> list[str]:
    """Run `body`; the points that were passed. kill_at: the process is killed there."""
    points: list[str] = []

    async def main() -> None:
        def passed(point: str) -> None:
            points.append(point)
            if point == kill_at:
                bench.threads.kill()

        bench = Bench(place, passed)
        look = await bench.open()
        await body(bench, points, look)
        await bench.log.aclose()

    with folder() as place:
        run_virtually("1", main)
    return points


def test_calls_run_without_threads_and_are_seen_by_the_place_at_once() -> None:
    """The archive records each commit within the write, under the fence that stood then."""

    async def body(bench: Bench, points: list[str], look: Look) -> None:
        first = entry(look, bench.log.lineage, 1)
        await bench.log.append(1, TERM, 0, [first])
        assert bench.place.held.entries == [first]
        assert bench.place.held.tail.seq == (await bench.log.look()).tail.seq == 1
        (commit,) = [record for record in bench.recorder.records if record["f"] == "commit"]
        assert (commit["epoch"], commit["fence"], commit["first"], commit["last"]) == (1, 1, 1, 1)

    points = on_bench(body)
    assert points == ["log: open", "log: fence", "log: fence done", "log: append", "log: append done", "log: look"]


@pytest.mark.parametrize(("point", "stored"), [("log: append", 0), ("log: append done", 1)])
def test_a_killed_process_does_nothing_more_and_hears_nothing(point: str, stored: int) -> None:
    """Killed before the call, it is never done; killed after it, it is done and nobody is told."""

    async def body(bench: Bench, points: list[str], look: Look) -> None:
        with pytest.raises(LogUnavailable):
            await bench.log.append(1, TERM, 0, [entry(look, bench.log.lineage, 1)])
        with pytest.raises(LogUnavailable):
            await bench.log.look()
        bench.place.look()
        assert bench.place.held.tail.seq == stored

    on_bench(body, point)


def test_a_kill_ends_a_write_that_waits_although_it_is_shielded() -> None:
    async def body(bench: Bench, points: list[str], look: Look) -> None:
        bench.threads.plan("append", None, delay_s=1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.log.append, 1, TERM, 0, [entry(look, bench.log.lineage, 1)])
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
            bench.threads.kill()
        assert trio.current_time() < 10
        assert bench.place.held.tail.seq == 0

    on_bench(body)


@pytest.mark.parametrize(("point", "stored"), [("append", 0), ("append done", 1)])
def test_faults_before_and_after_the_effect(point: str, stored: int) -> None:
    async def body(bench: Bench, points: list[str], look: Look) -> None:
        bench.threads.plan(point, AppendOutcomeUnknown("lost"))
        with pytest.raises(AppendOutcomeUnknown):
            await bench.log.append(1, TERM, 0, [entry(look, bench.log.lineage, 1)])
        assert (await bench.log.look()).tail.seq == stored
        bench.threads.outage = True
        with pytest.raises(LogUnavailable):
            await bench.log.look()
        bench.threads.outage = False

    on_bench(body)


def test_what_is_still_there_after_a_loss_of_power_stays_the_same() -> None:
    """The archive knows an entry by itself: the same one is not recorded twice."""

    async def body(bench: Bench, points: list[str], look: Look) -> None:
        await bench.log.append(1, TERM, 0, [entry(look, bench.log.lineage, 1)])
        known = bench.place.held.entries[0]
        bench.place.end()
        bench.place.held.tail = Tail(9, 1, TERM, b"")
        bench.place.begin()
        assert bench.place.held.entries[0] is known
        assert bench.place.held.tail.seq == 1

    on_bench(body)
