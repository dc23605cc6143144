"""Publishers over a memory network against a scripted server, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from model_leader import ModelLeader, change, position

from changefeed.change import Change, Resource
from changefeed.errors import (
    AcknowledgedLost,
    BadUrl,
    Draining,
    InvalidName,
    LogFull,
    OutcomeUnknown,
    PublisherInUse,
    Stalled,
    Superseded,
    UnknownFeed,
    UnknownResource,
    UsageError,
)
from changefeed.ports import SeededEntropy, World
from changefeed.publisher.driver import Pending, Publisher, open_publisher
from changefeed.settings import Settings
from changefeed.testing.scripted import Peer, ScriptedServer, open_scripted_server
from changefeed.transport.memory import MemoryNetwork
from changefeed.wire.messages import Answer, Beat, Open, Opened, Publish, Redirect, Reopen


@asynccontextmanager
async def opened(
    network: MemoryNetwork, servers: Any = "ws://127.0.0.1:7557", **options: Any
) -> AsyncIterator[Publisher]:
    async with open_publisher(
        "vmapi", servers, network=network, world=World(entropy=SeededEntropy(1)), **options
    ) as publisher:
        yield publisher


def stored(publish: Publish, seq: int, repeated: bool = False) -> Answer:
    return Answer(publish.number, sum(publish.sizes), position(seq), repeated)


async def lead(peer: Peer, leader: ModelLeader) -> None:
    """Serve a connection as the leader would, until it ends."""
    publisher, incarnation = "", 0
    try:
        while True:
            message = await peer.receive()
            if isinstance(message, Open):
                answer = leader.open(message)
                assert isinstance(answer, Opened)
                publisher, incarnation = message.publisher, answer.incarnation
                await peer.send(answer)
            elif isinstance(message, Publish):
                await peer.send(leader.publish(publisher, incarnation, message))
    except Exception:
        return


async def lead_all(server: ScriptedServer, leader: ModelLeader) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(lead, await server.accept(), leader)


@asynccontextmanager
async def cluster(*ports: int) -> AsyncIterator[tuple[MemoryNetwork, ModelLeader, list[ScriptedServer]]]:
    """Servers in front of one leader, each of which a host of its own."""
    network, leader = MemoryNetwork(), ModelLeader()
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(open_scripted_server(network.host(f"server-{port}"), port))
            for port in ports or (7557,)
        ]
        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(lead_all, server, leader)
            yield network, leader, servers
            nursery.cancel_scope.cancel()


# ---- receipts


async def test_publish_returns_the_receipt(autojump_clock: trio.abc.Clock) -> None:
    """One change, one group of several: each with the positions that it was given."""
    async with cluster() as (network, leader, _), opened(network) as publisher:
        receipt = await publisher.publish(
            "vm", "a", "create", fields=["state"], body={"n": 1}, version=3, meta={"t": "x"}
        )
        assert (receipt.first, receipt.last, receipt.repeated) == (position(1), position(1), False)
        assert leader.log == [Change("vm", "a", "create", ("state",), {"n": 1}, 3, {"t": "x"})]
        receipt = await publisher.publish_many([change("b"), change("c")])
        assert (receipt.first.seq, receipt.position.seq) == (2, 3)
        status = publisher.status
        assert (status.connected, status.incarnation, status.last_number, status.unacknowledged) == (True, 1, 3, 0)
        assert (status.buffered_bytes, status.last_error, status.server) == (0, None, "ws://127.0.0.1:7557")


async def test_thousands_of_changes_keep_their_order(autojump_clock: trio.abc.Clock) -> None:
    async with cluster() as (network, leader, _), opened(network) as publisher:
        pendings = [await publisher.submit(change(f"{n}")) for n in range(5000)]
        receipts = [await pending.wait() for pending in pendings]
        assert [receipt.first.seq for receipt in receipts] == list(range(1, 5001))
        assert [one.id for one in leader.log] == [f"{n}" for n in range(5000)]


async def test_leaving_the_block_waits_for_what_was_submitted(autojump_clock: trio.abc.Clock) -> None:
    async with cluster() as (network, leader, _):
        async with opened(network) as publisher:
            pending = publisher.submit_nowait([change("a"), change("b")])
            assert not pending.done
        assert pending.done
        assert len(leader.log) == 2


# ---- reconnecting


async def test_a_killed_server_costs_nothing_but_time(autojump_clock: trio.abc.Clock) -> None:
    """The next server is tried at once; what was unanswered is sent again under the same numbers, and stored once."""
    async with cluster(7557, 7558) as (network, leader, _):
        servers = "ws://127.0.0.1:7557,ws://127.0.0.1:7558"
        async with opened(network.host("app"), servers) as publisher:
            for n in range(20):
                pending = await publisher.submit(change(f"{n}"))
                port = publisher.status.server[-4:]
                if n % 3 == 2 and port:
                    network.drop("app", f"server-{port}")
                await trio.sleep(0.01)
                await pending.wait()
        assert [one.id for one in leader.log] == [f"{n}" for n in range(20)]


async def test_it_waits_for_a_server_for_as_long_as_it_takes(autojump_clock: trio.abc.Clock) -> None:
    """At first nobody listens; the change is kept, and tries back off."""
    network, leader = MemoryNetwork(), ModelLeader()
    async with opened(network) as publisher:
        pending = await publisher.submit(change("a"))
        await trio.sleep(100)
        assert not pending.done
        assert publisher.status.last_error is not None
        assert publisher.status.last_error.code == "connection-refused"
        async with open_scripted_server(network) as server, trio.open_nursery() as nursery:
            nursery.start_soon(lead_all, server, leader)
            began = trio.current_time()
            await pending.wait()
            assert trio.current_time() - began <= Settings().reconnect_max_s
            nursery.cancel_scope.cancel()


async def test_the_error_names_every_server_that_fails(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with opened(network, ["ws://127.0.0.1:1", "ws://127.0.0.1:2"]) as publisher:
        await trio.sleep(30)
        error = publisher.status.last_error
        assert error is not None and error.code == "unreachable"
        assert "127.0.0.1:1" in str(error) and "127.0.0.1:2" in str(error)


async def test_reopen_resends_on_the_same_connection(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network) as publisher:
        pending = await publisher.submit(change("a"))
        peer = await server.accept()
        await peer.opened()
        first = await peer.expect(Publish)
        await peer.send(Reopen("the leader changed"))
        asked = await peer.opened(last_number=1)
        assert asked.incarnation == 1
        assert await peer.expect(Publish) == first
        await peer.send(stored(first, 4, repeated=True))
        receipt = await pending.wait()
        assert (receipt.first.seq, receipt.repeated) == (4, True)


async def test_a_silent_server_is_left_after_its_heartbeats_stopped(autojump_clock: trio.abc.Clock) -> None:
    """Frozen or cut off: nothing comes for heartbeat_dead_s, so another connection is opened."""
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network) as publisher:
        pending = await publisher.submit(change("a"))
        frozen = await server.accept()
        await frozen.opened()
        began = trio.current_time()
        peer = await server.accept()
        assert 25 <= trio.current_time() - began < 26
        assert isinstance(publisher.status.last_error, Stalled)
        await peer.opened()
        await peer.send(stored(await peer.expect(Publish), 1))
        await pending.wait()


async def test_heartbeats_go_both_ways_when_idle(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network) as publisher:
        peer = await server.accept()
        await peer.opened()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.listen)
            for _ in range(10):
                await trio.sleep(10)
                await peer.send(Beat(1, 0, 0.0))
            nursery.cancel_scope.cancel()
        assert publisher.status.connected
        assert len([message for message in peer.heard if isinstance(message, Beat)]) >= 9


async def test_a_redirect_is_followed_after_its_delay(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with (
        open_scripted_server(network) as old,
        open_scripted_server(network, 7600) as new,
        opened(network) as publisher,
    ):
        peer = await old.accept()
        await peer.opened()
        await peer.send(Redirect(("ws://127.0.0.1:7600", "nonsense"), 5.0))
        began = trio.current_time()
        other = await new.accept()
        assert trio.current_time() - began == pytest.approx(5.0, abs=0.2)
        assert (await other.opened()).incarnation == 1
        await publisher.wait_ready()
        assert publisher.status.server == "ws://127.0.0.1:7600"


async def test_draining_sends_it_to_the_next_server(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network) as publisher:
        pending = await publisher.submit(change("a"))
        peer = await server.accept()
        await peer.opened()
        await peer.fail(Draining("shutting down"))
        peer = await server.accept()
        await peer.opened()
        await peer.send(stored(await peer.expect(Publish), 1))
        await pending.wait()


async def test_garbage_from_a_server_ends_that_connection_only(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network) as publisher:
        pending = await publisher.submit(change("a"))
        peer = await server.accept()
        await peer.opened()
        await peer.send_raw(b"\xc1 garbage")
        peer = await server.accept()
        await peer.opened()
        await peer.send(stored(await peer.expect(Publish), 1))
        await pending.wait()


# ---- refusals and stops


async def test_refusals_are_typed_and_hit_only_the_change_they_are_about(autojump_clock: trio.abc.Clock) -> None:
    async with cluster() as (network, leader, _), opened(network) as publisher:
        good = await publisher.submit(change("a"))
        bad = await publisher.submit(change("b", resource="bad"))
        other = await publisher.submit(change("c"))
        with pytest.raises(UnknownResource):
            await bad.wait()
        await good.wait()
        await other.wait()
        assert [one.id for one in leader.log] == ["a", "c"]
        leader.full = True
        with pytest.raises(LogFull) as caught:
            await publisher.publish("vm", "d", "create")
        assert (caught.value.retryable, caught.value.outcome) == (True, "refused")
        leader.full = False
        assert (await publisher.publish("vm", "d", "create")).first.seq == 3


async def test_declared_names_are_checked_before_anything_is_numbered(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network) as publisher:
        peer = await server.accept()
        await peer.opened(resources=(Resource("vm"),))
        await publisher.wait_ready()
        with pytest.raises(UnknownResource, match="did you mean 'vm'"):
            await publisher.publish("vms", "a", "create")
        assert publisher.status.last_number == 0


async def test_superseded_stops_it_and_the_next_publish_raises(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network) as publisher:
        peer = await server.accept()
        await peer.opened()
        pending = await publisher.submit(change("a"))
        await peer.expect(Publish)
        await peer.fail(Superseded("another process opened this publisher", 0))
        with pytest.raises(Superseded):
            await pending.wait()
        for _ in range(2):
            with pytest.raises(Superseded):
                await publisher.publish("vm", "b", "create")


async def test_acknowledged_lost_is_raised_once_then_it_goes_on(autojump_clock: trio.abc.Clock) -> None:
    """An older copy of the log was put back: the application learns it once, from whichever call comes first."""
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network) as publisher:
        pending = await publisher.submit(change("a"))
        peer = await server.accept()
        await peer.opened()
        await peer.send(stored(await peer.expect(Publish), 7))
        await pending.wait()
        peer.drop()
        peer = await server.accept()
        asked = await peer.expect(Open)
        assert asked.last_receipt == position(7)
        await peer.fail(AcknowledgedLost("an older copy", 0))
        peer = await server.accept()
        assert (await peer.opened(incarnation=2)).incarnation is None
        with pytest.raises(AcknowledgedLost):
            await publisher.publish("vm", "b", "create")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.publish, "vm", "b", "create")
            publish = await peer.expect(Publish)
            assert publish.number == 1
            await peer.send(stored(publish, 3))


async def test_acknowledged_lost_wakes_one_that_waits(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    raised: list[str] = []

    async def wait(pending: Pending) -> None:
        try:
            await pending.wait()
        except AcknowledgedLost:
            raised.append("lost")
            await pending.wait()
            raised.append("stored after all")

    async with open_scripted_server(network) as server, opened(network) as publisher:
        peer = await server.accept()
        await peer.opened()
        first = await publisher.submit(change("a"))
        await peer.send(stored(await peer.expect(Publish), 7))
        await first.wait()
        async with trio.open_nursery() as nursery:
            for id in "bc":
                nursery.start_soon(wait, await publisher.submit(change(id)))
            await peer.expect(Publish)
            peer.drop()
            peer = await server.accept()
            await peer.expect(Open)
            await peer.fail(AcknowledgedLost("an older copy", 0))
            peer = await server.accept()
            await peer.opened(incarnation=2)
            await peer.send(stored(await peer.expect(Publish), 1))
        assert raised == ["lost", "stored after all"]


async def test_an_unknown_feed_is_told_once_every_server_said_so(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    servers = "ws://127.0.0.1:7557,ws://127.0.0.1:7600"
    async with (
        open_scripted_server(network) as one,
        open_scripted_server(network, 7600) as two,
        opened(network, servers) as publisher,
    ):
        async with trio.open_nursery() as nursery:

            async def say_no(server: ScriptedServer) -> None:
                peer = await server.accept()
                await peer.expect(Open)
                await peer.fail(UnknownFeed("no feed 'vmapi'; did you mean 'napi'?"))

            nursery.start_soon(say_no, one)
            nursery.start_soon(say_no, two)
            with pytest.raises(UnknownFeed, match="napi"):
                await publisher.publish("vm", "a", "create")
        with pytest.raises(UnknownFeed):
            await publisher.wait_ready()


async def test_a_named_publisher_in_use_is_refused_at_once(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network, name="import") as publisher:
        async with trio.open_nursery() as nursery:

            async def refuse() -> None:
                peer = await server.accept()
                await peer.expect(Open)
                await peer.fail(PublisherInUse("another process publishes as 'import'"))

            nursery.start_soon(refuse)
            with pytest.raises(PublisherInUse):
                await publisher.publish("vm", "a", "create")
        peer = await server.accept()
        await peer.opened(last_number=41)
        await publisher.wait_ready()
        pending = await publisher.submit(change("a"))
        assert pending.number == 42
        await peer.send(stored(await peer.expect(Publish), 1))
        await pending.wait()


# ---- bounds, waiting, leaving


async def test_submit_waits_while_the_buffer_is_full_first_come_first_served(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    order: list[str] = []
    limits = Settings(publisher_buffer_bytes=5000, batch_bytes_aim=1)

    async with open_scripted_server(network) as server, opened(network, settings=limits) as publisher:
        peer = await server.accept()
        await peer.opened()

        async def submit(id: str, size: int) -> None:
            await publisher.submit(change(id, body="x" * size))
            order.append(id)

        await submit("first", 4000)
        with pytest.raises(trio.WouldBlock):
            publisher.submit_nowait(change("no room", body="x" * 4000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, "large", 4000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(submit, "small", 10)
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["first"], "the small one would fit, but does not overtake"
            with pytest.raises(trio.WouldBlock):
                publisher.submit_nowait(change("nor does this"))
            await peer.send(stored(await peer.expect(Publish), 1))
        assert order == ["first", "large", "small"]
        for seq in (2, 3):
            await peer.send(stored(await peer.expect(Publish), seq))


async def test_cancelling_a_publish_does_not_withdraw_the_change(autojump_clock: trio.abc.Clock) -> None:
    """A plain cancellation; the pending change still gets its outcome."""
    network = MemoryNetwork()
    async with open_scripted_server(network) as server, opened(network) as publisher:
        peer = await server.accept()
        await peer.opened()
        with trio.move_on_after(5) as scope:
            await publisher.publish("vm", "a", "create")
        assert scope.cancelled_caught
        assert publisher.status.unacknowledged == 1
        await peer.send(stored(await peer.expect(Publish), 1))
        await publisher.flush()
        assert publisher.status.unacknowledged == 0


async def test_a_cancelled_submit_submitted_nothing(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    with trio.CancelScope() as outer:
        async with opened(network, settings=Settings(publisher_buffer_bytes=2000)) as publisher:
            await publisher.submit(change("a", body="x" * 1500))
            with trio.move_on_after(1):
                await publisher.submit(change("b", body="x" * 1500))
            assert publisher.status.last_number == 1
            outer.cancel()


async def test_leaving_by_an_exception_ends_what_is_out_as_unknown(autojump_clock: trio.abc.Clock) -> None:
    """And the exception comes out as itself."""
    network = MemoryNetwork()
    pendings: list[Pending] = []
    with pytest.raises(ZeroDivisionError):
        async with opened(network) as publisher:
            pendings.append(await publisher.submit(change("a")))
            raise ZeroDivisionError
    assert pendings[0].done
    with pytest.raises(OutcomeUnknown) as caught:
        await pendings[0].wait()
    assert caught.value.pending is pendings[0]
    with pytest.raises(UsageError, match="closed"):
        await publisher.publish("vm", "b", "create")


async def test_leaving_by_a_cancellation_does_not_hang(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork()
    with trio.move_on_after(10) as scope:
        async with opened(network) as publisher:
            pending = await publisher.submit(change("a"))
    assert scope.cancelled_caught
    assert trio.current_time() < 11
    assert pending.done


async def test_many_tasks_publish_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with cluster() as (network, _, _), opened(network) as publisher:
        seen: list[int] = []

        async def one(n: int) -> None:
            seen.append((await publisher.publish("vm", f"{n}", "create")).first.seq)

        async with trio.open_nursery() as nursery:
            for n in range(200):
                nursery.start_soon(one, n)
        assert sorted(seen) == list(range(1, 201))


async def test_an_in_process_instance_needs_no_server(autojump_clock: trio.abc.Clock) -> None:
    """`connect=` opens connections itself; a redirect just means: connect again."""
    network = MemoryNetwork()
    async with open_scripted_server(network) as server:

        async def connect() -> Any:
            return await network.connect(
                server.url, subprotocols=("changefeed.v1.msgpack",), message_bytes_max=2**24, timeout_s=5
            )

        async with open_publisher("vmapi", connect=connect) as publisher:
            peer = await server.accept()
            await peer.opened()
            await peer.send(Redirect(("ws://127.0.0.1:9",), 0.0))
            peer = await server.accept()
            await peer.opened()
            pending = await publisher.submit(change("a"))
            await peer.send(stored(await peer.expect(Publish), 1))
            await pending.wait()
            assert publisher.status.server == "in-process"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"feed": "VMs"}, InvalidName),
        ({"name": "two words"}, InvalidName),
        ({"name": "outbox"}, InvalidName),
        ({"servers": "wsx://a:1"}, BadUrl),
        ({"servers": ""}, BadUrl),
    ],
)
async def test_what_cannot_be_opened_says_why(options: dict[str, Any], error: type[Exception]) -> None:
    options = {"feed": "vmapi", "servers": "ws://127.0.0.1:7557"} | options
    with pytest.raises(error):
        async with open_publisher(network=MemoryNetwork(), **options):
            raise AssertionError("it was opened")
