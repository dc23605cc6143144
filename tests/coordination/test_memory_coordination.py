"""What the memory coordinator adds to the suite: the hooks by which a test or a simulation hurts it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from changefeed.coordination import Coordinator, Member, View
from changefeed.coordination.memory import MemoryCoordination, MemoryCoordinator, named_coordination
from changefeed.errors import CoordinatorUnavailable, NameTaken
from changefeed.ports import SeededEntropy

FEED = "vmapi"


async def joined(server: MemoryCoordination, name: str) -> MemoryCoordinator:
    coordinator = server.coordinator()
    await coordinator.start(Member(name, f"process-of-{name}", f"ws://{name}", True, (FEED,)))
    return coordinator


async def leading(coordinator: Coordinator) -> View:
    view = await coordinator.take(FEED, await coordinator.read(FEED))
    assert view is not None
    return view


async def test_a_short_cut_keeps_the_session_and_the_lead(autojump_clock: MockClock) -> None:
    """Who is away for less than the session time-out comes back as if nothing had been."""
    server = MemoryCoordination(session_s=10.0)
    a, b = await joined(server, "a"), await joined(server, "b")
    view = await leading(a)
    server.disconnect(a)
    assert not a.state().connected
    with pytest.raises(CoordinatorUnavailable):
        await a.read(FEED)
    await trio.sleep(9.9)
    assert await b.read(FEED) == view and a.mine(view)
    server.reconnect(a)
    await trio.sleep(60)
    assert a.mine(await a.read(FEED)) and a.state().connected


async def test_a_long_cut_ends_the_session_in_time(autojump_clock: MockClock) -> None:
    """Others see the leader go when the session times out, without anybody asking; it comes back as a newcomer."""
    server = MemoryCoordination(session_s=10.0)
    a, b = await joined(server, "a"), await joined(server, "b")
    view = await leading(a)
    begun = trio.current_time()
    server.disconnect(a)
    assert (await b.wait_change(FEED, view)).leader is None
    assert trio.current_time() - begun == pytest.approx(10.0)
    assert list(await b.members()) == ["b"]
    server.reconnect(a)
    assert list(await b.members()) == ["a", "b"]
    assert not a.mine(view)
    assert await a.wait_change(FEED, await b.read(FEED)) == await b.read(FEED), "its session changed"


async def test_a_crashed_process_keeps_its_session_until_it_times_out(autojump_clock: MockClock) -> None:
    """A restarted process waits for its own dead session, or not at all if somebody can tell that it is dead."""
    server = MemoryCoordination(session_s=10.0)
    a = await joined(server, "a")
    await leading(a)
    server.crash(a)
    assert list(await (await joined(server, "b")).members()) == ["a", "b"]

    async def dead(member: Member) -> bool:
        assert member.process == "process-of-a"
        return False

    begun = trio.current_time()
    quick = server.coordinator(alive=dead)
    await quick.start(Member("a", "second", "ws://a"))
    assert trio.current_time() == begun
    view = await quick.read(FEED)
    assert view.leader is not None and view.leader.process == "process-of-a" and not quick.mine(view)
    await quick.aclose()

    slow = await joined(server, "c")
    server.crash(slow)
    again = server.coordinator()
    await again.start(Member("c", "second", "ws://c"))
    assert trio.current_time() - begun == pytest.approx(10.0)


async def test_a_name_in_use_is_refused() -> None:
    """By whoever is connected, or whoever the probe says is alive."""
    server = MemoryCoordination()
    await joined(server, "a")
    with pytest.raises(NameTaken, match="'a'"):
        await server.coordinator().start(Member("a", "other", "ws://x"))

    async def yes(member: Member) -> bool:
        return True

    with pytest.raises(NameTaken):
        await server.coordinator(alive=yes).start(Member("a", "other", "ws://x"))


async def test_without_quorum_nobody_gets_an_answer_and_no_session_ends(autojump_clock: MockClock) -> None:
    """Leaders keep what is theirs; the time-outs of those who are away begin anew when there is a quorum again."""
    server = MemoryCoordination(session_s=10.0, answer_s=1.0)
    a, b = await joined(server, "a"), await joined(server, "b")
    view = await leading(a)
    server.disconnect(a)
    await trio.sleep(9)
    server.lose_quorum()
    begun = trio.current_time()
    with pytest.raises(CoordinatorUnavailable):
        await b.read(FEED)
    assert trio.current_time() - begun == pytest.approx(1.0), "it waits for an answer as a real one would"
    seen: list[View] = []

    async def wait() -> None:
        seen.append(await b.wait_change(FEED, view))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(3600)
        assert seen == [] and a.mine(view)
        server.regain_quorum()
        await trio.sleep(9)
        assert await b.read(FEED) == view
        await trio.sleep(1.5)
        assert [each.leader for each in seen] == [None]


async def test_a_lost_reply_leaves_the_write_done() -> None:
    """The caller gets an error; its next read tells that it leads."""
    server = MemoryCoordination()
    a, b = await joined(server, "a"), await joined(server, "b")
    server.lose_reply(a)
    before = await a.read(FEED)
    with pytest.raises(CoordinatorUnavailable, match="may have happened"):
        await a.take(FEED, before)
    view = await a.read(FEED)
    assert view.epoch == 1 and a.mine(view)
    assert await b.take(FEED, before) is None
    await a.resign(FEED, 1)
    assert (await b.read(FEED)).leader is None


async def test_held_watches_hear_nothing_until_released() -> None:
    """A late watch shows an old world; reads do not."""
    server = MemoryCoordination()
    a, b = await joined(server, "a"), await joined(server, "b")
    known = await b.read(FEED)
    seen: list[View] = []

    async def wait() -> None:
        seen.append(await b.wait_change(FEED, known))

    server.hold_watches(b)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        view = await leading(a)
        await wait_all_tasks_blocked()
        assert seen == [] and await b.read(FEED) == view
        server.release_watches(b)
    assert seen == [view]


async def test_a_leader_record_deleted_by_hand_frees_the_lead() -> None:
    """Its session lives on, but it does not lead any more, and sees that."""
    server = MemoryCoordination()
    a = await joined(server, "a")
    view = await leading(a)
    session = a.state().session
    server.delete_leader(FEED)
    now = await a.wait_change(FEED, view)
    assert (now.epoch, now.leader, now.version) == (1, None, view.version)
    assert a.state().session == session
    assert (await leading(a)).epoch == 2


async def test_latency_is_taken_on_both_ways(autojump_clock: MockClock) -> None:
    """And a participant that is cut off between request and reply does not learn what it did."""
    server = MemoryCoordination(latency=lambda: 0.5)
    a = await joined(server, "a")
    begun = trio.current_time()
    before = await a.read(FEED)
    assert trio.current_time() - begun == pytest.approx(1.0)

    async def cut() -> None:
        await trio.sleep(0.75)
        server.disconnect(a)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        with pytest.raises(CoordinatorUnavailable):
            await a.take(FEED, before)
    server.reconnect(a)
    assert a.mine(await a.read(FEED))


async def test_the_same_seed_gives_the_same_ids() -> None:
    """A simulation replays."""

    async def run(seed: int) -> list[str]:
        server = MemoryCoordination(SeededEntropy(seed))
        a = await joined(server, "a")
        view = await leading(a)
        server.wipe()
        return [server.id, str(view), a.state().session, str(await leading(a))]

    assert await run(7) == await run(7)
    assert (await run(7))[0] != (await run(8))[0]


async def test_a_named_server_is_shared_while_somebody_uses_it() -> None:
    """`memory:NAME` in one process is one coordinator; `memory:` is private."""
    first = named_coordination("shared-by-this-test")
    assert named_coordination("shared-by-this-test") is first
    assert named_coordination("") is not named_coordination("")
    a = await joined(first, "a")
    assert first.participant("a") is a
    with pytest.raises(KeyError):
        first.participant("b")
