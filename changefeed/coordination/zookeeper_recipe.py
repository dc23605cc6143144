"""A coordinator in ZooKeeper, for a fleet: our own recipe of candidacy, challenge and membership.

    CHROOT/id                            random id of this coordinator's data
    CHROOT/instances/NAME                ephemeral: who is here
    CHROOT/feeds/FEED/epoch              persistent, decimal; its node version is what compare-and-set compares
    CHROOT/feeds/FEED/epoch/BIRTH        random, made with its parent: an epoch node that was deleted and made anew
                                         begins its versions again, and must not match an old view
    CHROOT/feeds/FEED/candidates/c-…     ephemeral, sequential: a session that may lead
    CHROOT/feeds/FEED/leader             ephemeral: who leads, where, under which epoch

Taking the lead is one transaction: my candidate node exists, the epoch goes from n to n + 1 at the version read, the
leader node is created (a challenge deletes the old one in the same transaction). A new session is a new candidacy; a
node is mine only if its owner is my present session. kazoo's Lock and Election are not used: they take a node of an
older session for their own.

Every exchange has a limit, after which it raises CoordinatorUnavailable. A session counts as mine until the servers
say that it is lost, however long they are away: the log's fence is what makes that safe. A system task keeps the
membership, since a coordinator has no nursery and a session can be lost while nobody calls.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import trio

from changefeed.change import check_feed_name
from changefeed.coordination import Alive, Coordinator, CoordinatorState, LeaderRecord, Member, View
from changefeed.coordination.records import (
    dump,
    leader_from_json,
    leader_to_json,
    load,
    member_from_json,
    member_to_json,
    quoted_name,
)
from changefeed.coordination.urls import zookeeper_servers
from changefeed.coordination.zookeeper import NodeExists, NoNode, Op, ZookeeperClient, read_members
from changefeed.errors import CoordinatorUnavailable, NameTaken
from changefeed.ports import World
from changefeed.settings import Settings

T = TypeVar("T")
log = logging.getLogger(__name__)

#: One exchange with the servers; longer counts as no answer.
CALL_LIMIT_S: Final = 3.0
#: How long a call waits for a connection that is just being made again (a server died, another one takes over).
CONNECT_LIMIT_S: Final = 1.0
START_LIMIT_S: Final = 10.0
#: Watches can be lost with a server; every waiter looks again this often whatever it hears.
LOOK_AGAIN_S: Final = 5.0
RETRY_S: Final = 0.5
#: After so long without a connection a second client finds out whether it is the ensemble or the client.
DOUBT_S: Final = 2.0
#: A second client that has been connected for so long while the first could not proves that the first is stuck.
STUCK_S: Final = 5.0
#: How much longer than its time-out a dead session may be seen (a tick of ZooKeeper's clock, and some).
EXPIRY_SLACK_S: Final = 3.0
_ROUNDS_MAX: Final = 20
_ABSENT: Final = -1


@dataclass(frozen=True, slots=True)
class _Seen:
    """A view with what a transaction needs. leader_version: of the leader node, None where there is no such node."""

    view: View
    leader_version: int | None


class ZookeeperCoordinator:
    """A participant of the coordinator below a chroot. Nothing happens before the first call.

    alive: asked whether the process that holds my name still answers, where its session lives on; without it,
    `start` waits for that session to time out. Raises BadUrl."""

    def __init__(self, url: str, settings: Settings, *, world: World, alive: Alive | None = None) -> None:
        self.url = url
        self._hosts, self._root = zookeeper_servers(url)
        self._asked_s = settings.coordinator_session_s
        self._world = world
        self._alive = alive
        self._id = ""
        self._client: ZookeeperClient | None = None
        self._spare: ZookeeperClient | None = None
        self._member: Member | None = None
        self._started = False
        self._closed = False
        self._joined = ""
        self._last_joined = ""
        self._generation = 0
        self._told: dict[str, int] = {}
        self._candidates: dict[str, tuple[str, str]] = {}
        self._bell = trio.Event()
        self._joining = trio.Lock()
        self._keeping: trio.CancelScope | None = None

    # -- the contract

    async def start(self, member: Member) -> None:
        """Join as `member` and keep the membership until `aclose`. Raises NameTaken, CoordinatorUnavailable."""
        self._instance_path(member.name)
        self._member = member
        deadline = trio.current_time() + START_LIMIT_S
        while True:
            try:
                await self._connected(max(0.0, deadline - trio.current_time()))
                await self._join()
            except CoordinatorUnavailable:
                if trio.current_time() + RETRY_S > deadline:
                    raise
                await trio.sleep(RETRY_S)
            else:
                self._started = True
                return

    def state(self) -> CoordinatorState:
        client = self._client
        if client is None:
            return CoordinatorState(self._id, False, "", 0.0)
        return CoordinatorState(self._id, client.connected, client.session, client.session_s, client.read_only)

    async def read(self, feed: str) -> View:
        return (await self._ask("read", lambda client: self._look(client, feed))).view

    async def take(self, feed: str, seen: View) -> View | None:
        return await self._ask("take the lead", lambda client: self._win(client, feed, seen, challenge=False))

    async def challenge(self, feed: str, seen: View) -> View | None:
        return await self._ask("challenge", lambda client: self._win(client, feed, seen, challenge=True))

    async def raise_epoch(self, feed: str, seen: View, epoch: int) -> bool:
        if epoch <= seen.epoch:
            raise ValueError(f"an epoch is only raised: {epoch} is not above {seen.epoch}")

        async def act(client: ZookeeperClient) -> bool:
            ops = self._epoch_ops(feed, seen, epoch)
            failed = await client.transaction(ops)
            if failed is not None and failed[0].kind == "create" and isinstance(failed[1], NoNode):
                await self._make_feed(client, feed)
                failed = await client.transaction(ops)
            return failed is None

        return await self._ask("raise the epoch", act)

    async def mark_leaving(self, feed: str, epoch: int, successor: str) -> bool:
        return await self._ask("mark as leaving", lambda client: self._end_term(client, feed, epoch, successor))

    async def resign(self, feed: str, epoch: int) -> None:
        await self._ask("resign", lambda client: self._end_term(client, feed, epoch, None))

    def mine(self, view: View) -> bool:
        session = self._client.session if self._client is not None else ""
        return view.leader is not None and view.leader.session == session != ""

    async def members(self) -> Mapping[str, Member]:
        return await self._ask("list the members", lambda client: read_members(client, self._root))

    async def wait_change(self, feed: str, known: View | None) -> View:
        check_feed_name(feed)
        told = self._told.get(feed, min(1, self._generation))
        while True:
            bell, pause = self._bell, RETRY_S
            try:
                seen = await self._ask("watch", lambda client: self._look(client, feed, watch=True))
            except CoordinatorUnavailable:
                pass  # away: wait until it is back
            else:
                if seen.view != known or told != self._generation:
                    self._told[feed] = self._generation
                    return seen.view
                pause = LOOK_AGAIN_S
            with trio.move_on_after(pause):
                await bell.wait()

    async def aclose(self) -> None:
        """Leave: the session ends, and with it membership and leader records. At most a few seconds; if the servers
        cannot be reached the session is left to time out. Not cancelled midway."""
        if self._keeping is not None:
            self._keeping.cancel()
        clients = [client for client in (self._client, self._spare) if client is not None]
        self._client = self._spare = self._member = self._keeping = None
        self._started, self._closed = False, True
        self._ring()
        with trio.CancelScope(shield=True):
            for client in clients:
                await client.close()
            await trio.lowlevel.checkpoint()

    # -- exchanges

    def _ring(self) -> None:
        self._bell.set()
        self._bell = trio.Event()

    def _new_client(self) -> ZookeeperClient:
        return ZookeeperClient(self._hosts, self._asked_s, self._ring)

    async def _connected(self, limit_s: float) -> ZookeeperClient:
        """The client once it has a session; opens it at first use. Raises CoordinatorUnavailable."""
        if self._closed:
            raise CoordinatorUnavailable("this coordinator has been closed")
        if self._client is None:
            self._client = self._new_client()
            self._keeping = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._keep, self._keeping)
        with trio.move_on_after(limit_s):
            while self._client is not None and not self._client.connected:
                await self._bell.wait()
        if self._client is None or not self._client.connected:
            raise CoordinatorUnavailable(f"no connection to ZooKeeper at {self._hosts}: no quorum, or out of reach")
        return self._client

    async def _ask(self, what: str, action: Callable[[ZookeeperClient], Awaitable[T]]) -> T:
        """One exchange under the time limit. Raises CoordinatorUnavailable."""
        client = await self._connected(CONNECT_LIMIT_S)
        begun = trio.current_time()
        try:
            with trio.fail_after(CALL_LIMIT_S):
                return await action(client)
        except trio.TooSlowError:
            client.suspect(begun)
            raise CoordinatorUnavailable(f"ZooKeeper did not answer within {CALL_LIMIT_S:g} s ({what})") from None

    # -- paths

    def _feed_path(self, feed: str) -> str:
        return f"{self._root}/feeds/{check_feed_name(feed)}"

    def _instance_path(self, name: str) -> str:
        return f"{self._root}/instances/{quoted_name(name)}"

    async def _make_base(self, client: ZookeeperClient) -> None:
        """The nodes that all feeds share; learns the coordinator's id."""
        path = f"{self._root}/id"
        try:
            found = await client.get(path).get()
        except NoNode:
            parts = self._root.split("/")
            above = ["/".join(parts[: n + 1]) for n in range(1, len(parts))]
            await client.create_all([*above, f"{self._root}/feeds", f"{self._root}/instances"])
            await client.create_all([path], self._world.entropy.token(8).encode())
            found = await client.get(path).get()
        self._id = found.data.decode(errors="replace").strip()

    async def _make_feed(self, client: ZookeeperClient, feed: str) -> None:
        await self._make_base(client)
        base = self._feed_path(feed)
        await client.create_all([f"{self._root}/feeds", base, f"{base}/candidates"])

    # -- looking

    async def _look(self, client: ZookeeperClient, feed: str, *, watch: bool = False) -> _Seen:
        """What the ensemble holds of a feed, at least as new as the call; with watches on it if asked."""
        base = self._feed_path(feed)
        epoch_path, leader_path = f"{base}/epoch", f"{base}/leader"
        before: tuple[int, LeaderRecord | None] | None = None
        for _ in range(_ROUNDS_MAX):
            # One after another in one session: the sync makes the gets behind it current, and the watches, set
            # before the gets, tell of everything that these did not see.
            client.sync(base)
            if watch:
                client.watch(epoch_path, self._ring)
                client.watch(leader_path, self._ring)
            replies = client.get(epoch_path), client.children(epoch_path), client.get(leader_path)
            id_reply = client.get(f"{self._root}/id")
            epoch, version, birth = 0, _ABSENT, False
            try:
                node = await replies[0].get()
                epoch, birth = (int(node.data) if node.data.isdigit() else 0), True
                version = _pack(await replies[1].get(), node.version)
            except NoNode:
                if birth:
                    continue  # deleted between two of my requests
            leader, leader_version = None, None
            try:
                node = await replies[2].get()
                # A node that no session holds, or that is none of ours, leads nothing; whoever takes replaces it.
                leader = leader_from_json(load(node.data), node.owner) if node.owner else None
                leader_version = node.version
            except NoNode:
                pass
            try:
                self._id = (await id_reply.get()).data.decode(errors="replace").strip()
            except NoNode:
                pass
            if leader is None or leader.epoch <= epoch:
                return _Seen(View(feed, epoch, version, leader), leader_version)
            # The lead changed between the two gets: read both again. If nothing moves, somebody has edited the epoch
            # by hand, and the leader's epoch was never given by what is there now.
            if (version, leader) == before:
                return _Seen(View(feed, epoch, version, None), leader_version)
            before = (version, leader)
        raise CoordinatorUnavailable(f"the lead of {feed} changes faster than it can be read")

    # -- leading

    def _epoch_ops(self, feed: str, seen: View, epoch: int | None) -> list[Op]:
        """Steps that set the epoch (None: leave it) if the view still holds."""
        path = f"{self._feed_path(feed)}/epoch"
        data = b"" if epoch is None else b"%d" % epoch
        if seen.version == _ABSENT:
            return [Op("create", path, data), Op("create", f"{path}/{self._world.entropy.token(8)}")]
        birth, version = _unpack(seen.version)
        ops = [Op("check", f"{path}/{birth}", version=0)] if birth else []
        return [*ops, Op("check" if epoch is None else "set", path, data, version)]

    async def _candidate(self, client: ZookeeperClient, feed: str) -> str:
        """My candidate node of the present session, made where it is missing."""
        session, path = self._candidates.get(feed, ("", ""))
        if session == client.session != "":
            return path
        base = f"{self._feed_path(feed)}/candidates"
        name = self._member.name.encode() if self._member is not None else b""
        for _ in range(_ROUNDS_MAX):
            session = client.session
            try:
                path = await client.create(f"{base}/c-", name, ephemeral=True, sequence=True).get()
            except NoNode:
                await self._make_feed(client, feed)
                continue
            if session == client.session != "":
                self._candidates[feed] = (session, path)
                return path
        raise CoordinatorUnavailable("ZooKeeper's session changes again and again")

    async def _win(self, client: ZookeeperClient, feed: str, seen: View, *, challenge: bool) -> View | None:
        member = self._member
        if member is None:
            raise CoordinatorUnavailable("not joined: start this coordinator first")
        path = f"{self._feed_path(feed)}/leader"
        record = LeaderRecord(member.name, member.process, member.url, seen.epoch + 1, "")
        delete = Op("delete", path)
        create = Op("create", path, dump(leader_to_json(record)), ephemeral=True)
        replaces = challenge and seen.leader is not None
        for _ in range(_ROUNDS_MAX):
            candidacy = Op("check", await self._candidate(client, feed), version=0)
            epoch_ops = self._epoch_ops(feed, seen, record.epoch)
            failed = await client.transaction([candidacy, *epoch_ops, *([delete] if replaces else []), create])
            if failed is None:
                version = seen.version + 1
                if seen.version == _ABSENT:
                    version = _pack([epoch_ops[-1].path.rpartition("/")[2]], 0)
                session = await self._holder(client, path, create.data)
                return View(feed, record.epoch, version, replace(record, session=session))
            op, why = failed
            if op is candidacy:  # deleted by hand, or of a session that has ended
                self._candidates.pop(feed, None)
            elif op is delete:  # its session ended meanwhile; the term is still the one seen
                replaces = False
            elif op is create and isinstance(why, NodeExists):
                now = await self._look(client, feed)
                if not challenge and now.view.leader is not None:
                    return None
                replaces = True  # under this version only something that is no leader's node, or made by hand
            elif op.kind == "create" and isinstance(why, NoNode):
                await self._make_feed(client, feed)
            else:
                return None
        return None

    async def _holder(self, client: ZookeeperClient, path: str, data: bytes) -> str:
        """The session that holds the leader node which I have just created. It is read, not assumed: the client may
        have got a new session of which trio has not heard yet. (Where another leads already, my session of now.)"""
        try:
            node = await client.get(path).get()
        except NoNode:
            return client.session
        return node.owner if node.data == data else client.session

    async def _end_term(self, client: ZookeeperClient, feed: str, epoch: int, successor: str | None) -> bool:
        """Mark my record of that epoch as leaving, or delete it (no successor given at all: None)."""
        path = f"{self._feed_path(feed)}/leader"
        for _ in range(_ROUNDS_MAX):
            seen = await self._look(client, feed)
            leader, version = seen.view.leader, seen.leader_version
            if leader is None or version is None or not self.mine(seen.view) or leader.epoch != epoch:
                return False
            # The epoch's version stands for the term: a node of another leader may have the same node version.
            if successor is None:
                change = Op("delete", path, version=version)
            else:
                data = dump(leader_to_json(replace(leader, leaving=True, successor=successor)))
                change = Op("set", path, data, version)
            if await client.transaction([*self._epoch_ops(feed, seen.view, None), change]) is None:
                return True
        return False

    # -- membership

    async def _join(self) -> None:
        """Be listed in the present session. Raises NameTaken, CoordinatorUnavailable."""
        async with self._joining:
            member = self._member
            if member is None:
                return
            session = (await self._connected(CONNECT_LIMIT_S)).session
            await self._ask("join", self._make_base)
            await self._enlist(member)
            for feed in member.feeds if member.candidate else ():
                await self._ask("join", partial(self._candidate, feed=feed))
            client = self._client
            if client is None or client.session != session:
                raise CoordinatorUnavailable("ZooKeeper's session changed while joining")
            self._joined = session
            if self._last_joined != session:
                self._last_joined = session
                self._generation += 1
            self._ring()

    async def _enlist(self, member: Member) -> None:
        """Create my node; if it is there already, find out whether whoever made it still lives."""
        path, data = self._instance_path(member.name), dump(member_to_json(member))
        deadline = float("inf")
        while (holder := await self._ask("join", lambda client: self._try_enlist(client, path, data))) is not None:
            other, session, version = holder
            deadline = min(deadline, trio.current_time() + self.state().session_s + EXPIRY_SLACK_S)
            dead = other is None or other.process == member.process or session == ""
            if not dead and self._alive is not None and other is not None:
                dead = not await self._alive(other)
            if dead:
                ops = [Op("delete", path, version=version), Op("create", path, data, ephemeral=True)]
                await self._ask("join", partial(ZookeeperClient.transaction, ops=ops))
            elif self._alive is not None or trio.current_time() > deadline:
                where = other.url if other is not None else "an unknown address"
                raise NameTaken(
                    f"another live process (at {where}) takes part as {member.name!r}: give this one another name"
                )
            else:
                await trio.sleep(0.1)

    async def _try_enlist(
        self, client: ZookeeperClient, path: str, data: bytes
    ) -> tuple[Member | None, str, int] | None:
        """None: listed and watched. Else what is in the way: the member, its node's session and version."""
        made = client.create(path, data, ephemeral=True)
        client.watch(path, self._look_at_membership)
        there = client.get(path)
        try:
            await made.get()
        except NodeExists:
            pass
        except NoNode:
            await client.create_all([f"{self._root}/instances"])
        try:
            node = await there.get()
        except NoNode:  # whoever was there has just gone
            return (None, "", -1)
        if node.owner == client.session and node.data == data:
            return None
        return member_from_json(load(node.data)), node.owner, node.version

    def _look_at_membership(self) -> None:
        """Something happened to my node: join again, which changes nothing if it is still there and mine."""
        self._joined = ""
        self._ring()

    # -- keeping it up

    async def _keep(self, scope: trio.CancelScope) -> None:
        """A system task: join again under each new session, replace a client that does not come back."""
        with scope:
            while True:
                bell, pause = self._bell, RETRY_S
                try:
                    pause = await self._keep_once()
                except CoordinatorUnavailable as error:
                    log.info("cannot join ZooKeeper now: %s", error)
                except NameTaken as error:
                    log.warning("cannot join again: %s", error)
                    pause = LOOK_AGAIN_S
                except Exception:  # a system task that raises ends the whole program
                    log.exception("keeping the membership in ZooKeeper")
                with trio.move_on_after(pause):
                    await bell.wait()

    async def _keep_once(self) -> float:
        """One look; returns in how many seconds to look again if nothing happens."""
        client, spare = self._client, self._spare
        if client is None:
            return LOOK_AGAIN_S
        if client.connected:
            if spare is not None:
                self._spare = None
                await spare.close()
            if self._started and self._joined != client.session:
                await self._join()
            return LOOK_AGAIN_S
        client.check()
        now = trio.current_time()
        if client.ended:
            await self._adopt(spare if spare is not None else self._new_client())
        elif spare is None and now - client.changed_at > DOUBT_S:
            self._spare = self._new_client()
        elif spare is not None and not spare.connected and now - spare.changed_at > STUCK_S:
            # It may have been connected for a moment before the servers' data was wiped: then it has seen newer data
            # than theirs too, and is refused for ever like the first.
            self._spare = self._new_client()
            await spare.close()
        elif spare is not None and spare.connected and await self._hopeless(client, spare):
            log.warning("a ZooKeeper client cannot come back: replaced by a new one, with a new session")
            await self._adopt(spare)
        return RETRY_S

    async def _hopeless(self, client: ZookeeperClient, spare: ZookeeperClient) -> bool:
        """Whether `client` will not connect again although `spare` did. Servers refuse a client that has seen newer
        data than theirs: after their data was wiped or restored, it tries for ever."""
        with trio.move_on_after(CALL_LIMIT_S):
            await spare.sync(f"{self._root}/id").get()
            if spare.newest_seen < client.newest_seen:
                return not client.connected
        return not client.connected and trio.current_time() - spare.changed_at > STUCK_S

    async def _adopt(self, client: ZookeeperClient) -> None:
        old, self._client, self._spare = self._client, client, None
        self._ring()
        if old is not None:
            await old.close()

    # -- for tests

    async def expire_session(self) -> None:
        """End my session at the servers as its time-out would; the client then gets a new one by itself."""
        if self._client is not None:
            await self._client.expire()

    async def abandon(self) -> None:
        """As if this process had died and its session had timed out: nothing joins again. `aclose` is still due."""
        if self._keeping is not None:
            self._keeping.cancel()
        self._started = False
        await self.expire_session()


def _pack(births: list[str], version: int) -> int:
    """A view's version: which epoch node it is, and how often that was set."""
    named = [name for name in births if len(name) == 16 and all(digit in "0123456789abcdef" for digit in name)]
    return (int(named[0], 16) if named else 0) << 32 | version


def _unpack(version: int) -> tuple[str, int]:
    return (f"{version >> 32:016x}" if version >> 32 else "", version & 0xFFFF_FFFF)


def _conforms(coordinator: ZookeeperCoordinator) -> Coordinator:
    return coordinator  # mypy holds the class to the contract
