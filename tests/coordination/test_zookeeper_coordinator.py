"""What only ZooKeeper does: quorums lost, servers frozen, sessions expired, nodes edited by hand, replies lost."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from changefeed.coordination import Alive, Member, View, zookeeper_recipe
from changefeed.coordination.zookeeper import NoNode, Op, Refusal, ZookeeperClient, delete_tree, list_members
from changefeed.coordination.zookeeper_recipe import ZookeeperCoordinator
from changefeed.errors import CoordinatorUnavailable, NameTaken
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.testing.coordinator_place import change_after, eventually, insist, lead
from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble

pytestmark = pytest.mark.zookeeper

FEED = "vmapi"
LIMIT_S = 30.0
LEADER = f"/feeds/{FEED}/leader"


def coordinator(url: str, session_s: float = 10.0, alive: Alive | None = None) -> ZookeeperCoordinator:
    return ZookeeperCoordinator(url, Settings(coordinator_session_s=session_s), world=World(), alive=alive)


def member(name: str, process: str = "") -> Member:
    return Member(name, process or f"process-of-{name}", f"ws://{name}", True, (FEED,))


@asynccontextmanager
async def joined(url: str, *names: str, session_s: float = 10.0) -> AsyncIterator[list[ZookeeperCoordinator]]:
    opened = [coordinator(url, session_s) for _ in names]
    try:
        for name, each in zip(names, opened, strict=True):
            await each.start(member(name))
        yield opened
    finally:
        with trio.CancelScope(shield=True):
            for each in opened:
                await each.aclose()


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[ZookeeperClient]:
    """A client that does to nodes whatever it likes; paths are below no chroot."""
    connected = trio.Event()
    client = ZookeeperClient(url.removeprefix("zk://").partition("/")[0], 10.0, connected.set)
    try:
        with trio.fail_after(LIMIT_S):
            await connected.wait()
        yield client
    finally:
        await client.close()


def cut_off(who: ZookeeperCoordinator, away: bool) -> None:
    """Take the network away from one participant, or give it back."""
    assert who._client is not None
    who._client._handler.cut_off = away
    if away:
        who._client.cut()


async def in_thread(action: Callable[[], object]) -> None:
    """The ensemble's methods wait for servers."""
    await trio.to_thread.run_sync(action)


async def unavailable(call: Callable[[], Awaitable[object]]) -> str:
    with trio.fail_after(LIMIT_S), pytest.raises(CoordinatorUnavailable) as caught:
        await call()
    return str(caught.value)


async def until_unavailable(who: ZookeeperCoordinator) -> None:
    """Until reads raise: a server that led the ensemble answers for a moment after its followers have died."""
    with trio.fail_after(LIMIT_S):
        try:
            while True:
                await who.read(FEED)
                await trio.sleep(0.01)
        except CoordinatorUnavailable:
            pass


def kazoo_threads() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if "zk_loop" in thread.name or "_thread_worker" in thread.name
    ]


# ---- sessions


async def test_the_negotiated_session_time_out_is_shown(ensemble: ZookeeperEnsemble) -> None:
    """Not what was asked for, but what the servers grant (at least two of their ticks)."""
    async with joined(ensemble.url("/negotiated"), "a") as [a]:
        assert a.state().session_s == 10.0 and a.state().connected and not a.state().read_only
    async with joined(ensemble.url("/negotiated"), "a", session_s=0.2) as [a]:
        assert a.state().session_s == 1.0


async def test_an_expired_session_loses_everything_and_joins_anew(ensemble: ZookeeperEnsemble) -> None:
    """Cut off for longer than its session, a leader keeps its record for its own until it hears otherwise; the others
    see it go when the session times out; back again, it is a newcomer."""
    url = ensemble.url("/expiry")
    async with joined(url, "b") as [b], joined(url, "a", session_s=1.0) as [a]:
        taken, session = await lead(a), a.state().session
        cut_off(a, True)
        with trio.fail_after(LIMIT_S):
            view = await b.wait_change(FEED, taken)
        assert view == View(FEED, 1, taken.version, None)
        assert a.mine(taken), "nobody can tell it"
        assert "no connection" in await unavailable(lambda: a.read(FEED))
        second = await lead(b)
        cut_off(a, False)
        with trio.fail_after(LIMIT_S):
            assert await a.wait_change(FEED, taken) == second
        assert not a.mine(taken) and a.state().session not in ("", session)
        third = await insist(lambda: a.challenge(FEED, second))
        assert third is not None and third.epoch == 3 and a.mine(third)

        async def back() -> bool:
            return list(await b.members()) == ["a", "b"]

        await eventually("a is a member again", back)


async def test_a_broken_connection_keeps_session_and_lead(ensemble: ZookeeperEnsemble) -> None:
    """The client reconnects by itself; nothing is lost and nobody sees a change."""
    async with joined(ensemble.url("/reconnect"), "a", "b") as [a, b]:
        taken = await lead(a)
        session = a.state().session
        cut_off(a, True)

        async def lost() -> bool:
            assert a._client is not None
            return not a._client.connected

        await eventually("the client notices", lost)
        cut_off(a, False)
        assert await insist(lambda: a.read(FEED)) == taken
        assert a.state().session == session and a.mine(taken) and await b.read(FEED) == taken


async def test_a_node_of_an_older_session_of_mine_is_not_mine(ensemble: ZookeeperEnsemble) -> None:
    """Same name, same process, but another session (kazoo's own lock takes such a node for its own): it is replaced
    only by a challenge. The older session's membership is taken over at once."""
    url = ensemble.url("/older-session")
    async with joined(url, "a") as [old]:
        taken = await lead(old)
        new = coordinator(url)
        try:
            await new.start(member("a"))
            view = await new.read(FEED)
            assert view == taken and view.leader is not None and view.leader.process == "process-of-a"
            assert not new.mine(view) and old.mine(view)
            assert await new.take(FEED, view) is None
            assert not await new.mark_leaving(FEED, 1, "")
            await new.resign(FEED, 1)
            assert await new.read(FEED) == view
            second = await new.challenge(FEED, view)
            assert second is not None and new.mine(second) and not old.mine(await old.read(FEED))
        finally:
            await new.aclose()


# ---- quorums and servers


async def test_a_lost_quorum_ends_no_leadership(ensemble: ZookeeperEnsemble) -> None:
    """Calls raise in bounded time, a wait waits, the record stays mine; when the quorum is back all goes on, in the
    same session."""
    async with joined(ensemble.url("/quorum"), "a", "b", session_s=20.0) as [a, b]:
        taken, session = await lead(a), a.state().session
        woken: list[View] = []

        async def wait() -> None:
            woken.append(await b.wait_change(FEED, taken))

        with trio.fail_after(2 * LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                for index in (0, 1):
                    await in_thread(lambda index=index: ensemble.kill(index))  # type: ignore[misc]
                for who in (a, b):
                    await until_unavailable(who)
                await unavailable(lambda: b.challenge(FEED, taken))
                await unavailable(lambda: b.members())
                assert not b.state().connected and a.mine(taken) and woken == []
                await in_thread(ensemble.restart_all)
                assert await insist(lambda: a.read(FEED)) == taken
                assert a.state().session == session and a.mine(taken) and woken == []
                second = await insist(lambda: a.challenge(FEED, taken))
        assert woken == [second]


async def test_all_servers_killed_and_started_again(ensemble: ZookeeperEnsemble) -> None:
    """What was acknowledged is there; whoever started meanwhile waits, and says so if it waits too long."""
    url = ensemble.url("/all-killed")
    async with joined(url, "a", session_s=20.0) as [a]:
        taken = await lead(a)
        await in_thread(ensemble.kill_all)
        await unavailable(lambda: a.read(FEED))
        late = coordinator(url)
        try:
            with trio.fail_after(2 * LIMIT_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(late.start, member("late"))
                    await in_thread(ensemble.restart_all)
            view = await insist(lambda: late.read(FEED))
            assert view is not None and view.epoch == taken.epoch and view.version == taken.version
        finally:
            await late.aclose()


async def test_a_frozen_server_is_left_for_another(ensemble: ZookeeperEnsemble) -> None:
    """A server that takes requests and answers none: kazoo alone would wait for it as long as it is asked things."""
    async with joined(ensemble.url("/frozen"), "a") as [a]:
        taken = await lead(a)
        assert a._client is not None
        port = a._client._kazoo._connection._socket.getpeername()[1]
        index = [int(each.rpartition(":")[2]) for each in ensemble.connect_string.split(",")].index(port)
        ensemble.pause(index)
        try:
            assert await insist(lambda: a.read(FEED)) == taken
            assert a.mine(taken)
        finally:
            ensemble.resume(index)
        await in_thread(lambda: ensemble.restart(index))


async def test_wiped_servers_begin_at_epoch_0(ensemble: ZookeeperEnsemble) -> None:
    """All data and sessions are gone: another coordinator id, everybody joins again, and no old view matches, although
    ZooKeeper's own numbers come again."""
    async with joined(ensemble.url("/wiped"), "a", "b") as [a, b]:
        old_id = a.state().id
        views = [await lead(a)]
        for who in (b, a):
            view = await who.challenge(FEED, views[-1])
            assert view is not None
            views.append(view)
        await in_thread(ensemble.wipe)

        async def empty() -> bool:
            view = await a.read(FEED)
            return view.epoch == 0 and view.leader is None and a.state().id not in ("", old_id)

        await eventually("epoch 0 under another id", empty)

        async def back() -> bool:
            return list(await b.members()) == ["a", "b"]

        await eventually("all are members again", back)
        assert not any(a.mine(view) for view in views)
        for _ in views:  # node versions 0, 1, 2 come again
            fresh = await insist(lambda: a.read(FEED))
            assert fresh is not None
            assert await insist(lambda seen=fresh: a.challenge(FEED, seen)) is not None  # type: ignore[misc]
            for view in views:
                assert await b.challenge(FEED, view) is None and not await b.raise_epoch(FEED, view, 90)


async def test_read_only_servers_are_no_coordinator() -> None:
    """Servers without a quorum that answer readers: an instance neither joins nor reads there, and comes back."""
    with ZookeeperEnsemble(read_only=True) as servers:
        async with joined(servers.url("/ro"), "a", session_s=20.0) as [a]:
            taken = await lead(a)
            for index in (0, 1):
                await in_thread(lambda index=index: servers.kill(index))  # type: ignore[misc]
            await until_unavailable(a)

            async def in_read_only_mode() -> bool:
                return await trio.to_thread.run_sync(lambda: servers.mode(2)) == "read-only"

            await eventually("the last server serves readers", in_read_only_mode)
            await unavailable(lambda: a.read(FEED))
            await unavailable(lambda: a.challenge(FEED, taken))
            await unavailable(lambda: list_members(servers.url("/ro"), timeout_s=1.0))
            assert not a.state().connected and a.mine(taken)
            await in_thread(servers.restart_all)
            assert await insist(lambda: a.read(FEED)) == taken


async def test_nobody_there_is_said_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence with the addresses; closing does not hang either."""
    monkeypatch.setattr(zookeeper_recipe, "START_LIMIT_S", 0.6)
    nowhere = coordinator("zk://127.0.0.1:1/x")
    assert "127.0.0.1:1" in await unavailable(lambda: nowhere.start(member("a")))
    assert "127.0.0.1:1" in await unavailable(lambda: nowhere.read(FEED))
    assert "did not list" in await unavailable(lambda: list_members("zk://127.0.0.1:1/x", timeout_s=0.3))
    await nowhere.aclose()
    await nowhere.aclose()
    assert kazoo_threads() == []


# ---- nodes edited by hand


async def test_a_leader_node_deleted_by_hand_frees_the_lead(ensemble: ZookeeperEnsemble) -> None:
    """Everybody hears of it, the deposed leader too, whose session lives on."""
    url = ensemble.url("/by-hand")
    async with joined(url, "a", "b") as [a, b]:
        taken = await lead(a)
        for who in (a, b):
            view = await change_after(who, taken, lambda: delete_tree(url, LEADER)) if who is a else await b.read(FEED)
            assert view == View(FEED, 1, taken.version, None) and not who.mine(view)
        assert (await lead(b)).epoch == 2


async def test_foreign_content_leads_nothing(ensemble: ZookeeperEnsemble) -> None:
    """A leader node without an owner, or with content that is not ours, and an epoch that is no number."""
    url = ensemble.url("/foreign")
    async with joined(url, "a") as [a], raw(url) as hand:
        first = await lead(a)
        await a.resign(FEED, 1)
        await hand.create(f"/foreign{LEADER}", b'{"instance":"x","process":"p","url":"u","epoch":1}').get()
        view = await a.read(FEED)
        assert view == View(FEED, 1, first.version, None), "no session holds it"
        second = await a.take(FEED, view)
        assert second is not None and second.epoch == 2 and a.mine(second)
        assert await hand.transaction([Op("set", f"/foreign{LEADER}", b"nonsense")]) is None
        view = await a.read(FEED)
        assert view.leader is None and not a.mine(view)
        third = await a.take(FEED, view)
        assert third is not None and third.epoch == 3
        assert await hand.transaction([Op("set", f"/foreign/feeds/{FEED}/epoch", b"many")]) is None
        view = await a.read(FEED)
        assert (view.epoch, view.leader) == (0, None) and await a.raise_epoch(FEED, view, 8)
        view = await a.read(FEED)
        assert view.epoch == 8 and a.mine(view)


async def test_candidates_and_members_deleted_by_hand_come_back(ensemble: ZookeeperEnsemble) -> None:
    """A candidate node is made again for the next try, a member's node at once."""
    url = ensemble.url("/deleted")
    async with joined(url, "a", "b") as [a, b], raw(url) as hand:
        assert len(await hand.children(f"/deleted/feeds/{FEED}/candidates").get()) == 2
        await delete_tree(url, f"/feeds/{FEED}")
        with pytest.raises(NoNode):
            await hand.children(f"/deleted/feeds/{FEED}").get()
        assert (await lead(a)).epoch == 1
        assert len(await hand.children(f"/deleted/feeds/{FEED}/candidates").get()) == 1
        await delete_tree(url, "/instances/b")

        async def back() -> bool:
            return list(await a.members()) == ["a", "b"]

        await eventually("b is a member again", back)
        assert b.state().session != ""


async def test_a_lost_reply_is_found_out_by_reading(
    ensemble: ZookeeperEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction is done, its reply is lost: the call raises, the next read shows the record as mine."""
    async with joined(ensemble.url("/lost-reply"), "a", "b") as [a, b]:
        before = await a.read(FEED)
        real = ZookeeperClient.transaction

        async def lose(self: ZookeeperClient, ops: Sequence[Op]) -> tuple[Op, Refusal] | None:
            await real(self, ops)
            raise CoordinatorUnavailable("ZooKeeper: ConnectionLoss")

        monkeypatch.setattr(ZookeeperClient, "transaction", lose)
        await unavailable(lambda: a.take(FEED, before))
        monkeypatch.undo()
        view = await a.read(FEED)
        assert view.epoch == 1 and a.mine(view) and not b.mine(view)
        assert await a.take(FEED, before) is None
        again = await a.challenge(FEED, view)
        assert again is not None and again.epoch == 2


# ---- names


async def test_a_restarted_process_takes_its_name_over_at_once_if_its_old_self_is_dead(
    ensemble: ZookeeperEnsemble,
) -> None:
    """Its old session lives on for up to 10 s, but whoever is asked says that nobody answers there."""
    url = ensemble.url("/restarted")
    asked: list[Member] = []

    async def dead(other: Member) -> bool:
        asked.append(other)
        return False

    async def living(other: Member) -> bool:
        return True

    async with joined(url, "a") as [old]:
        taken = await lead(old)
        cut_off(old, True)
        refused = coordinator(url, alive=living)
        with pytest.raises(NameTaken, match="'a'"):
            await refused.start(member("a", "second"))
        await refused.aclose()
        new = coordinator(url, alive=dead)
        try:
            await new.start(member("a", "second"))
            assert asked == [member("a")]
            assert (await new.members())["a"].process == "second"
            view = await new.read(FEED)
            assert view == taken and not new.mine(view)
            second = await new.challenge(FEED, view)
            assert second is not None and new.mine(second)
            cut_off(old, False)

            async def off() -> bool:
                return not old.mine(await old.read(FEED))

            await eventually("the old one sees that it does not lead", off)
        finally:
            await new.aclose()


async def test_without_a_probe_a_name_is_waited_for(
    ensemble: ZookeeperEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the dead holder's session times out; if it does not, the name is taken."""
    url = ensemble.url("/waited")
    async with joined(url, "a", session_s=1.0) as [old]:
        cut_off(old, True)
        old_session = old.state().session
        new = coordinator(url, session_s=1.0)
        with trio.fail_after(LIMIT_S):
            await new.start(member("a", "second"))
        assert (await new.members())["a"].process == "second" and new.state().session != old_session
        monkeypatch.setattr(zookeeper_recipe, "EXPIRY_SLACK_S", 0.0)
        third = coordinator(url, session_s=1.0)
        with trio.fail_after(LIMIT_S), pytest.raises(NameTaken):
            await third.start(member("a", "third"))
        await third.aclose()
        await new.aclose()


# ---- clients


async def test_a_client_whose_thread_has_ended_is_replaced(ensemble: ZookeeperEnsemble) -> None:
    """kazoo's thread ends on errors that it does not know; the membership comes back under a new session."""
    async with joined(ensemble.url("/ended"), "a") as [a]:
        first = a._client
        assert first is not None
        view, session = await a.read(FEED), a.state().session
        await trio.to_thread.run_sync(first._kazoo.stop)
        with trio.fail_after(LIMIT_S):
            assert await a.wait_change(FEED, view) == view
        assert a._client is not first and a.state().session not in ("", session)
        assert list(await a.members()) == ["a"]
        assert (await lead(a)).epoch == 1


async def test_a_stuck_client_is_replaced_when_another_one_connects(
    ensemble: ZookeeperEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away while a second client connects: it is the client, not the ensemble."""
    monkeypatch.setattr(zookeeper_recipe, "DOUBT_S", 0.1)
    monkeypatch.setattr(zookeeper_recipe, "STUCK_S", 0.1)
    async with joined(ensemble.url("/stuck"), "a", session_s=1.0) as [a]:
        first, view = a._client, await a.read(FEED)
        cut_off(a, True)
        with trio.fail_after(LIMIT_S):
            await a.wait_change(FEED, view)
        assert a._client is not first
        assert (await lead(a)).epoch == 1


async def test_members_are_listed_for_clients(ensemble: ZookeeperEnsemble) -> None:
    """Over a connection of its own, which leaves nothing behind; an empty chroot has none."""
    url = ensemble.url("/listed/deep")
    assert await list_members(url) == {}
    async with joined(url, "a", "b"):
        found = await list_members(url)
        assert found == {"a": member("a"), "b": member("b")}
    assert await list_members(url) == {}
    assert kazoo_threads() == []


async def test_a_closed_coordinator_leaves_no_thread(ensemble: ZookeeperEnsemble) -> None:
    """A cancelled one neither, and one that somebody still asks does not open another connection."""
    async with joined(ensemble.url("/threads"), "a", "b") as [a, _]:
        await lead(a)
        assert kazoo_threads() != []
    assert "closed" in await unavailable(lambda: a.read(FEED))
    assert kazoo_threads() == []
    with trio.move_on_after(0.2):
        async with joined(ensemble.url("/threads"), "a") as [a]:
            await a.wait_change(FEED, await a.read(FEED))
    assert kazoo_threads() == []
