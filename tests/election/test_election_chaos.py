"""Everything that may go wrong, at random, many times; then the world heals, and one leader must be found.

Safety is checked all the time (election_world.py). Liveness: within `HEAL_S` after everything works again one node
leads in every respect, and then nothing changes any more.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from election_world import FEED, Cluster, Node, simulate

NAMES = "abc"
CHAOS_S = 60.0
#: A foreign fence may have to be seen standing still for 10 s, and a storm of elections rests for 10 s.
HEAL_S = 25.0
SEEDS = range(16)


class Chaos:
    """One run's misfortunes. Each is undone by `heal`."""

    def __init__(self, world: Cluster, nursery: trio.Nursery) -> None:
        self.world, self.nursery = world, nursery
        self.ills: list[tuple[int, Callable[[], None]]] = [
            (6, self.kill), (5, self.freeze), (2, self.lock), (3, self.cut), (2, self.lose_quorum), (1, self.wipe),
            (3, self.expire), (3, self.delete), (5, self.lose_reply), (2, self.deafen), (2, self.disconnect),
            (2, self.log_out), (2, self.stall), (1, self.break_disk), (3, self.hand_over),
        ]  # fmt: skip
        self.cures: list[tuple[int, Callable[[], None]]] = [
            (6, self.restart), (5, self.thaw), (2, world.heal), (3, self.regain_quorum), (2, self.undeafen),
            (2, self.reconnect), (3, self.log_in), (4, self.unstall),
        ]  # fmt: skip

    def dice(self, n: int) -> int:
        return int(self.world.entropy.random() * n)

    def node(self) -> Node | None:
        """Any node that runs."""
        live = [n for n in self.world.nodes.values() if n.started and not n.dead and not n.closed]
        return live[self.dice(len(live))] if live else None

    def step(self) -> None:
        """One misfortune, or the cure of one: more cures than ills, or all would soon be down for good."""
        kinds = self.ills if self.dice(5) < 2 else self.cures
        point = self.dice(sum(weight for weight, _ in kinds))
        for weight, do in kinds:
            point -= weight
            if point < 0:
                self.world.note("chaos", do.__name__)
                do()
                return

    def kill(self) -> None:
        node = self.node()
        if node is not None:
            node.kill()

    def restart(self) -> None:
        for name in NAMES:
            if self.world.nodes[name].dead:
                self.world.start(self.nursery, name, kill_frozen=self.dice(2) == 0)
                return

    def freeze(self) -> None:
        node = self.node()
        if node is not None and not node.frozen:
            node.freeze()

    def thaw(self) -> None:
        for node in self.world.nodes.values():
            if node.frozen and not node.dead:
                node.thaw()
                return

    def lock(self) -> None:
        node = self.node()
        if node is not None and node.term is not None and not node.frozen and self.world.lock is None:
            node.lock_and_freeze = True

    def cut(self) -> None:
        a = self.dice(3)
        self.world.partition(NAMES[a], NAMES[(a + 1) % 3])

    def lose_quorum(self) -> None:
        self.world.server.lose_quorum()

    def regain_quorum(self) -> None:
        self.world.server.regain_quorum()

    def wipe(self) -> None:
        if self.world.server.quorum:
            self.world.server.wipe()

    def expire(self) -> None:
        node = self.node()
        if node is not None and self.world.server.quorum:
            self.world.server.expire(node.coordinator)

    def delete(self) -> None:
        if self.world.server.quorum:
            self.world.server.delete_leader(FEED)

    def lose_reply(self) -> None:
        node = self.node()
        if node is not None:
            self.world.server.lose_reply(node.coordinator)

    def deafen(self) -> None:
        node = self.node()
        if node is not None:
            self.world.server.hold_watches(node.coordinator)

    def undeafen(self) -> None:
        for node in self.world.nodes.values():
            self.world.server.release_watches(node.coordinator)

    def disconnect(self) -> None:
        node = self.node()
        if node is not None and not node.frozen:
            self.world.server.disconnect(node.coordinator)

    def reconnect(self) -> None:
        for node in self.world.nodes.values():
            if not node.dead and not node.frozen:
                self.world.server.reconnect(node.coordinator)

    def log_out(self) -> None:
        node = self.node()
        if node is not None:
            node.log_out = True

    def log_in(self) -> None:
        for node in self.world.nodes.values():
            node.log_out = node.append_fails = False

    def stall(self) -> None:
        self.world.log_stalled = True

    def unstall(self) -> None:
        self.world.log_stalled = False
        self.world.ring_log()

    def break_disk(self) -> None:
        node = self.node()
        if node is not None:
            node.append_fails = True

    def hand_over(self) -> None:
        node = self.node()
        if node is not None and not node.frozen:
            self.nursery.start_soon(self._leave, node)

    async def _leave(self, node: Node) -> None:
        await node.elector.hand_over()
        if not node.dead and not node.closed:
            await node.close()

    def heal(self) -> None:
        world = self.world
        world.note("all heals")
        world.heal()
        self.unstall()
        self.log_in()
        self.undeafen()
        world.server.regain_quorum()
        for node in list(world.nodes.values()):
            node.lock_and_freeze = False
            if node.frozen and not node.dead:
                node.thaw()
        self.reconnect()


async def calm(world: Cluster, chaos: Chaos, nursery: trio.Nursery) -> None:
    """All heals, all that died or left comes back, and one leader is found that stays."""
    chaos.heal()
    for _ in range(300):  # those that are leaving leave first
        if not any(n.elector.status.leaving for n in world.nodes.values() if n.started and not n.dead):
            break
        await trio.sleep(0.1)
    for name in NAMES:
        if world.nodes[name].dead:
            world.start(nursery, name)
    leader = await world.settled(HEAL_S)
    await trio.sleep(3.0)
    changes = world.changes()
    await trio.sleep(10.0)
    assert world.changes() == changes, f"the leader changed although all is well: {world.history[-20:]}"
    assert (await world.settled(1.0)).name == leader.name or world.changes() == changes


@pytest.mark.parametrize("seed", SEEDS)
def test_after_any_misfortune_one_leader_is_found(seed: int) -> None:
    """Kills, freezes, partitions, lost replies, wipes, expiries, deaf watches, slow and failing logs, handovers."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        chaos = Chaos(world, nursery)
        for name in NAMES:
            world.start(nursery, name, kill_frozen=True)
        await world.settled(3.0)
        while trio.current_time() < CHAOS_S:
            chaos.step()
            await trio.sleep(0.1 + world.entropy.random())
            world.check()
        await calm(world, chaos, nursery)

    simulate(main, seed)


@pytest.mark.parametrize("seed", range(6))
def test_misfortunes_in_quick_succession(seed: int) -> None:
    """Many within milliseconds of each other: replies, views and evidence cross each other on the way."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        chaos = Chaos(world, nursery)
        for name in NAMES:
            world.start(nursery, name, kill_frozen=True)
        await world.settled(3.0)
        for _ in range(30):
            for _ in range(1 + chaos.dice(8)):
                chaos.step()
                await trio.sleep(world.entropy.random() * 0.02)
            await trio.sleep(world.entropy.random() * 1.5)
            world.check()
        await calm(world, chaos, nursery)

    simulate(main, seed)
