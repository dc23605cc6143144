"""Publishing on a feed that keeps a snapshot: what is refused, where, and what of a batch is stored all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from model_leader import LIMITS, change
from publisher_steps import make, opened, refused, sent, stored, submit
from trio.testing import MockClock

from changefeed.change import Change
from changefeed.coordination.memory import MemoryCoordination
from changefeed.errors import BodyMissing, VersionMissing
from changefeed.instance import Instance, open_instance
from changefeed.log.memory import MemoryLogStore, MemoryPlace
from changefeed.publisher.machine import PublisherMachine
from changefeed.transport.memory import MemoryNetwork
from changefeed.wire.messages import Opened

# ---- the publisher's machine


def welcomed(snapshot: bool) -> PublisherMachine:
    machine = make()
    machine.connected(0.0)
    machine.take(0.0)
    machine.received(Opened("vmapi", "a", "p", "a", 1, 1, 0, LIMITS, snapshot=snapshot))
    return machine


def test_a_change_without_body_is_refused_before_it_is_numbered() -> None:
    """Where the feed keeps a snapshot; deletes and other words need none, and an empty body is one."""
    machine = welcomed(snapshot=True)
    for op in ("create", "update"):
        with pytest.raises(BodyMissing, match=f"the {op} of vm 'a' has no body"):
            machine.encode([change("b", body=1), Change("vm", "a", op)])
    machine.encode([Change("vm", "a", "delete"), Change("vm", "a", "reboot"), change("a", body={})])
    assert machine.last_number == 0
    welcomed(snapshot=False).encode([change("a")])


def test_what_the_newest_opening_told_counts() -> None:
    """A feed whose option was switched off takes bare changes again."""
    machine = welcomed(snapshot=True)
    machine.disconnected()
    machine.connected(0.0)
    machine.take(0.0)
    opened(machine)
    machine.encode([change("a")])


@pytest.mark.parametrize(("code", "error"), [("version-missing", VersionMissing), ("body-missing", BodyMissing)])
def test_only_the_bad_group_of_a_batch_is_refused(code: str, error: type[Exception]) -> None:
    """It is sent again group by group; a refusal for its content is final."""
    machine = welcomed(snapshot=False)
    groups = [submit(machine, name) for name in ("a", "bad", "c")]
    (batch,) = sent(machine)
    machine.received(refused(batch, code))
    one, bad, other = sent(machine)
    machine.received(stored(one, 2))
    machine.received(refused(bad, code))
    machine.received(refused(other, "number-gap"))
    assert isinstance(groups[1].error, error)
    (other,) = sent(machine)
    machine.received(stored(other, 3))
    assert [group.receipt is not None for group in groups] == [True, False, True]
    assert machine.unacknowledged == 0


# ---- from a publisher to the log


class Site:
    """Instances of one feed."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.place = MemoryPlace()
        self.coordination = MemoryCoordination()

    async def keep_snapshot(self, snapshot: bool) -> None:
        log = await MemoryLogStore(self.place).open("vmapi")
        await log.set_settings(replace(await log.settings(), snapshot=snapshot))

    @asynccontextmanager
    async def instance(self, name: str, port: int) -> AsyncIterator[Instance]:
        async with open_instance(
            ["vmapi"],
            log=MemoryLogStore(self.place),
            coordinator=self.coordination.coordinator(),
            network=self.network.host(name),
            name=name,
            listen=f"127.0.0.1:{port}",
        ) as instance:
            await instance.wait_ready()
            yield instance


async def test_refusals_reach_the_caller_and_nobody_else(autojump_clock: MockClock) -> None:
    """Of many publishes at once, only those without a version fail."""
    site = Site()
    await site.keep_snapshot(True)
    async with site.instance("a", 7000) as instance, instance.publisher("vmapi") as publisher:
        await publisher.wait_ready()
        with pytest.raises(BodyMissing):
            await publisher.publish("vm", "a", "create")
        assert publisher.status.last_number == 0, "told at its opening"
        await publisher.publish("vm", "a", "create", body={"n": 0}, version=1)
        pending = [
            await publisher.submit(Change("vm", "a" if n % 5 == 3 else f"b{n}", "update", None, {"n": n}))
            for n in range(20)
        ]
        outcomes = []
        for each in pending:
            try:
                outcomes.append((await each.wait()).first.seq)
            except VersionMissing as error:
                assert "publish it with a `version`" in str(error)
                outcomes.append(0)
        assert [n for n, seq in enumerate(outcomes) if not seq] == [3, 8, 13, 18]
        assert [seq for seq in outcomes if seq] == list(range(2, 18))


async def test_an_open_publisher_meets_the_option_when_it_is_switched_on(autojump_clock: MockClock) -> None:
    """Through an instance that does not lead: refused batch by batch by the leader, from its next opening on by itself;
    the next leader refuses the same."""
    site = Site()
    async with site.instance("a", 7000) as leader, site.instance("b", 7001) as follower:
        assert leader.leads("vmapi")
        async with follower.publisher("vmapi") as publisher:
            await publisher.publish("vm", "x", "create", version=3)
            await publisher.publish("vm", "y", "create")
            await site.keep_snapshot(True)
            await trio.sleep(3)
            for _ in range(2):
                with pytest.raises(BodyMissing):
                    await publisher.publish("vm", "z", "create")
            with pytest.raises(VersionMissing):
                await publisher.publish("vm", "x", "delete")
            await publisher.publish("vm", "y", "delete")
            assert (await publisher.publish("vm", "z", "create", body=1)).first.seq == 4
            await leader.drain()
            assert follower.leads("vmapi")
            with pytest.raises(VersionMissing):
                await publisher.publish("vm", "x", "update", body=1)
            with pytest.raises(BodyMissing):
                await publisher.publish("vm", "z", "update")
            assert (await publisher.publish("vm", "x", "update", body=1, version=4)).first.seq == 5
