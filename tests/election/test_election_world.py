"""Several Electors together: who leads after which misfortune, how soon, and that nothing is ever led twice."""

from __future__ import annotations

import trio
from election_world import FEED, Cluster, Node, simulate

from changefeed.settings import Settings


async def three(world: Cluster, nursery: trio.Nursery, **options: object) -> Node:
    """Three instances, settled."""
    for name in "abc":
        world.start(nursery, name, **options)
    return await world.settled(3.0)


def test_the_first_leader_is_found_at_once() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        await three(world, nursery)
        assert trio.current_time() < 0.5
        assert world.changes() == 1

    simulate(main)


def test_a_killed_leader_is_replaced_within_milliseconds() -> None:
    """The link closes, the URL refuses, one compare-and-set, one fence: long before any session times out."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        gaps = []
        for round_ in range(10):
            leader = await (three(world, nursery) if not round_ else world.settled(3.0))
            await trio.sleep(1.0)
            at = trio.current_time()
            leader.kill()
            await world.settled(2.0, but=leader.name)
            gaps.append(world.gap_after(at))
            world.start(nursery, leader.name)
            await trio.sleep(1.0)
        assert max(gaps) < 0.1, gaps
        assert world.changes() == 11

    simulate(main)


def test_a_single_instance_that_is_killed_and_restarted_leads_at_once() -> None:
    """Its own URL is answered by itself: the record of the process before it is known to be gone."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        node = world.start(nursery, "a")
        await world.settled(2.0)
        node.kill()
        world.start(nursery, "a")
        await world.settled(0.5)

    simulate(main)


def test_everything_killed_and_restarted_elsewhere_is_evidence_without_a_link() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        await three(world, nursery)
        for node in list(world.nodes.values()):
            node.kill()
        del world.nodes["a"], world.nodes["b"], world.nodes["c"]
        for name in "def":
            world.start(nursery, name)
        await world.settled(1.0)

    simulate(main)


def test_a_frozen_leader_is_replaced_and_follows_when_it_thaws() -> None:
    """Silence, questions, a challenge: suspect_after and half a second; nothing of the thawed one becomes visible."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        for frozen_s in (3.0, 30.0):
            at = trio.current_time()
            leader.freeze()
            successor = await world.settled(2.5)
            assert world.gap_after(at) <= world.settings.suspect_after_s + 0.5
            await trio.sleep(frozen_s)
            changes = world.changes()
            leader.thaw()
            await trio.sleep(3.0)
            assert await world.settled(1.0) is successor
            assert world.changes() == changes, "thawing changed the leader"
            assert leader.elector.status.role == "following"
            leader = successor

    simulate(main)


def test_a_leader_that_is_frozen_for_less_than_suspect_after_keeps_the_lead() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        for _ in range(5):
            leader.freeze()
            await trio.sleep(1.0)
            leader.thaw()
            await trio.sleep(1.0)
        assert world.changes() == 1

    simulate(main)


def test_a_frozen_follower_that_thaws_does_not_depose_a_healthy_leader() -> None:
    """Two instances: nobody else could tell it that the leader is well."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        for name in "ab":
            world.start(nursery, name)
        leader = await world.settled(2.0)
        follower = next(n for n in world.nodes.values() if n is not leader)
        for frozen_s in (2.0, 8.0, 40.0):
            follower.freeze()
            await trio.sleep(frozen_s)
            follower.thaw()
            await trio.sleep(4.0)
        assert world.changes() == 1

    simulate(main)


def test_a_leader_frozen_inside_its_append_is_killed_by_whoever_won() -> None:
    """It keeps the log's lock; the fence says who it is."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery, kill_frozen=True)
        at = trio.current_time()
        leader.lock_and_freeze = True
        await world.settled(3.0, but=leader.name)
        assert (leader.dead, world.kills) == (True, 1)
        assert world.gap_after(at + 0.1) <= world.settings.suspect_after_s + 0.5
        assert sum(n.elector.status.kills for n in world.nodes.values() if not n.dead) == 1

    simulate(main)


def test_a_leader_frozen_inside_its_append_is_named_where_killing_is_off() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        leader.lock_and_freeze = True
        await trio.sleep(5.0)
        notes = [note for n in world.nodes.values() if n is not leader for note in n.elector.status.notes]
        assert any(f"{leader.name} (pid {leader.pid}" in note for note in notes), notes
        assert world.leader() is None and not leader.dead
        leader.thaw()
        await world.settled(3.0, but=leader.name)

    simulate(main)


def test_a_follower_that_alone_does_not_hear_the_leader_leaves_it_alone() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        follower = next(n for n in world.nodes.values() if n is not leader)
        world.partition(leader.name, follower.name)
        await trio.sleep(60.0)
        assert world.changes() == 1
        assert any("another instance hears it" in note for note in follower.elector.status.notes)

    simulate(main)


def test_two_that_cannot_see_each_other_take_turns_ever_more_rarely() -> None:
    """Mutual suspicion with nobody to ask, on an idle feed."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        for name in "ab":
            world.start(nursery, name)
        await world.settled(2.0)
        for node in world.nodes.values():
            node.append_every = 1e9  # idle: a log that moves would acquit the leader
        world.partition("a", "b")
        counts = []
        for _ in range(6):
            before = world.changes()
            await trio.sleep(60.0)
            counts.append(world.changes() - before)
        assert counts[0] <= 14 and max(counts[3:]) <= 3, counts

    simulate(main)


def test_the_coordinator_is_lost_and_publishing_goes_on() -> None:
    """Back again: the next death is replaced as before."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        world.server.lose_quorum()
        await trio.sleep(60.0)
        assert world.changes() == 1 and world.appends[-1][0] > trio.current_time() - 0.2
        world.server.regain_quorum()
        await trio.sleep(2.0)
        at = trio.current_time()
        leader.kill()
        await world.settled(2.0, but=leader.name)
        assert world.gap_after(at) < 0.2

    simulate(main)


def test_a_leader_that_dies_while_the_coordinator_is_away_is_replaced_when_it_is_back() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        world.server.lose_quorum()
        await trio.sleep(5.0)
        leader.kill()
        await trio.sleep(20.0)
        assert world.leader() is None
        notes = [note for n in world.nodes.values() if not n.dead for note in n.elector.status.notes]
        assert all("cannot be replaced meanwhile" in note for note in notes) and notes
        world.server.regain_quorum()
        await world.settled(2.0, but=leader.name)

    simulate(main)


def test_the_coordinators_data_is_wiped_and_the_epoch_still_grows() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        for _ in range(3):
            world.server.wipe()
            await trio.sleep(1.0)
            assert (await world.settled(2.0)) is leader, "the leader comes back by itself"
        leader.kill()
        await world.settled(2.0, but=leader.name)

    simulate(main)


def test_the_coordinators_data_is_wiped_together_with_the_leader() -> None:
    """Its fence is of an unknown coordinator: ten seconds later it counts as dead."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        await trio.sleep(2.0)  # everybody has seen its fence
        leader.kill()
        world.server.wipe()
        await trio.sleep(5.0)
        assert world.leader() is None
        await world.settled(8.0, but=leader.name)

    simulate(main)


def test_the_reply_of_the_first_take_is_lost() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        for name in "abc":
            node = world.start(nursery, name)
            world.server.lose_reply(node.coordinator)
        await world.settled(3.0)

    simulate(main)


def test_the_reply_of_a_challenge_is_lost() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        for node in world.nodes.values():
            world.server.lose_reply(node.coordinator)
        leader.kill()
        await world.settled(2.0, but=leader.name)

    simulate(main)


def test_the_leader_record_is_deleted_by_hand() -> None:
    """The leader takes it again itself, and serves meanwhile."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        for _ in range(5):
            at = trio.current_time()
            world.server.delete_leader(FEED)
            await trio.sleep(1.5)
            assert await world.settled(1.0) is leader
            assert world.gap_after(at) < 0.2

    simulate(main)


def test_the_leader_record_is_deleted_while_the_leaders_watch_is_deaf() -> None:
    """Proof of concept's hole (G7): an idle leader that never learns, and nobody contends."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        world.server.hold_watches(leader.coordinator)
        world.server.delete_leader(FEED)
        await world.settled(3.0, but=leader.name)
        assert leader.elector.status.role != "leading"
        world.server.release_watches(leader.coordinator)
        await world.settled(1.0, but=leader.name)

    simulate(main)


def test_the_leaders_session_expires_while_it_lives() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        world.server.expire(leader.coordinator)
        await trio.sleep(1.5)
        assert await world.settled(1.0) is leader

    simulate(main)


def test_the_leader_is_cut_off_from_the_coordinator_and_its_session_expires() -> None:
    """It serves until the log says otherwise; another takes the lead when the session has ended, and fences it."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        world.server.disconnect(leader.coordinator)
        await trio.sleep(8.0)
        assert world.changes() == 1
        successor = await world.settled_among([n for n in world.nodes.values() if n is not leader], 6.0)
        await trio.sleep(0.2)
        assert leader.term is None, "its next append tells it"
        world.server.reconnect(leader.coordinator)
        assert await world.settled(2.0) is successor

    simulate(main)


def test_two_coordinators_of_one_log_do_not_take_turns() -> None:
    """The second side refuses, loudly, whoever comes first."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        world.home["x"] = 1
        leader = await three(world, nursery)
        other = world.start(nursery, "x")
        await trio.sleep(60.0)
        assert world.changes() == 1 and leader.elector.status.role == "leading"
        assert other.elector.status.hindrance == "two-coordinators"
        assert any(note.startswith("two coordinators: ") for note in other.elector.status.notes)

    simulate(main, servers=2)


def test_the_log_stalls_for_all_and_nobody_moves() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        await three(world, nursery)
        for stall in (1.0, 10.0, 30.0):
            world.log_stalled = True
            await trio.sleep(stall)
            slow = [n.elector.status for n in world.nodes.values()]
            assert all(s.log_slow_s > stall - 1.5 for s in slow)
            world.log_stalled = False
            world.unlock()
            await trio.sleep(5.0)
        assert world.changes() == 1

    simulate(main)


def test_a_leader_that_alone_is_cut_off_from_the_log_resigns() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        for node in world.nodes.values():
            node.append_every = 1e9  # an idle leader has only its looks to notice by
        await trio.sleep(2.0)
        leader.log_out = True
        for node in world.nodes.values():
            node.append_every = 0.05
        successor = await world.settled(7.0, but=leader.name)
        await trio.sleep(20.0)
        assert await world.settled(1.0) is successor
        leader.log_out = False
        await trio.sleep(5.0)
        assert await world.settled(1.0) is successor

    simulate(main)


def test_a_disk_that_fails_every_append_of_one_instance_moves_the_lead() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        leader.append_fails = True
        successor = await world.settled(5.0, but=leader.name)
        await trio.sleep(20.0)
        assert await world.settled(1.0) is successor

    simulate(main)


def test_a_planned_handover_has_a_small_gap_and_one_change() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        await trio.sleep(1.0)
        at = trio.current_time()
        await leader.elector.hand_over()
        assert trio.current_time() - at < 0.3
        await leader.close()
        successor = await world.settled(1.0, but=leader.name)
        assert world.longest_gap() < 0.3
        assert world.changes() == 2
        assert world.place.feeds[FEED].epochs[-1].why == "handover"
        await trio.sleep(20.0)
        assert await world.settled(1.0) is successor and world.changes() == 2

    simulate(main)


def test_a_handover_whose_successor_dies_is_finished_by_another() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        await trio.sleep(1.0)
        async with trio.open_nursery() as inner:
            inner.start_soon(leader.elector.hand_over)
            for _ in range(1000):
                if leader.elector.status.successor:
                    break
                await trio.sleep(0.0005)
            world.nodes[leader.elector.status.successor].kill()
        await leader.close()
        await world.settled(3.0, but=leader.name)

    simulate(main)


def test_the_last_instance_hands_over_to_nobody() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        node = world.start(nursery, "a")
        await world.settled(2.0)
        await node.elector.hand_over()
        await node.close()
        assert world.server.view(FEED).leader is None
        world.start(nursery, "a")
        await world.settled(1.0)

    simulate(main)


def test_an_instance_that_is_no_candidate_follows_and_never_leads() -> None:
    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        world.start(nursery, "z", candidate=False)
        await trio.sleep(5.0)
        assert world.changes() == 0
        node = world.start(nursery, "a")
        assert await world.settled(2.0) is node
        node.kill()
        await trio.sleep(20.0)
        assert world.changes() == 1

    simulate(main)


def test_suspect_after_can_be_raised() -> None:
    """5 s where virtual machines migrate live."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        leader.freeze()
        await trio.sleep(4.5)
        assert world.changes() == 1
        await world.settled(1.5)

    simulate(main, settings=Settings(suspect_after_s=5.0))


def test_the_same_seed_gives_the_same_history() -> None:
    """The seams are real: nothing but the seed decides."""

    async def main(world: Cluster, nursery: trio.Nursery) -> None:
        leader = await three(world, nursery)
        leader.freeze()
        successor = await world.settled(3.0)
        successor.kill()
        await world.settled(3.0)
        leader.thaw()
        await trio.sleep(5.0)

    histories = [simulate(main, seed).history for seed in (1, 1, 2)]
    assert histories[0] == histories[1] != histories[2]
