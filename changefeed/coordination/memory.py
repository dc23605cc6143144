"""A coordinator in memory, for tests and simulations: it can lose sessions, replies, watches and all its data.

`MemoryCoordination` is the shared server, `MemoryCoordinator` one participant's face of it. Everything is
deterministic: no threads, only trio's clock and events, randomness passed in. It behaves like the ZooKeeper
coordinator in what matters to elections: a participant that cannot be reached keeps its session until the time-out
has passed; a participant whose session ended joins again under a new one as soon as it can reach the server.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import trio

from changefeed.change import check_feed_name
from changefeed.coordination import Alive, Coordinator, CoordinatorState, LeaderRecord, Member, View
from changefeed.coordination.records import quoted_name
from changefeed.errors import CoordinatorUnavailable, NameTaken
from changefeed.ports import Entropy, SystemEntropy

T = TypeVar("T")


@dataclass(slots=True)
class _Feed:
    epoch: int = 0
    version: int = -1
    leader: LeaderRecord | None = None


@dataclass(slots=True, eq=False)
class _Session:
    """token: its id. member: what it is listed as, None once another process replaced it. lost_at: since when its
    participant cannot be reached; it ends `session_s` later."""

    token: str
    holder: MemoryCoordinator
    member: Member | None
    lost_at: float | None = None


class MemoryCoordination:
    """The server that participants share, with hooks for what goes wrong in the world.

    session_s: how long a session outlives its last contact. answer_s: how long a call waits for a server that
    cannot be reached before it raises; above zero a loop that asks again and again cannot stop virtual time.
    latency: seconds for each way of each call, drawn anew each time.
    read_only: while it is set, reads are answered and writes are not. sleep: how latencies are waited for.
    """

    def __init__(
        self,
        entropy: Entropy | None = None,
        *,
        session_s: float = 10.0,
        answer_s: float = 0.0,
        latency: Callable[[], float] | None = None,
    ) -> None:
        self.entropy: Entropy = entropy if entropy is not None else SystemEntropy()
        self.session_s = session_s
        self.answer_s = answer_s
        self.latency = latency
        self.id = self.entropy.token(8)
        self.quorum = True
        self.read_only = False
        self.sleep: Callable[[float], Awaitable[None]] = trio.sleep
        self._feeds: dict[str, _Feed] = {}
        self._sessions: dict[str, _Session] = {}
        self._participants: list[MemoryCoordinator] = []
        self._versions = 0
        self._tokens = 0
        self._bell = trio.Event()

    def coordinator(self, *, alive: Alive | None = None, url: str = "memory:") -> MemoryCoordinator:
        """A new participant's face, not yet started."""
        return MemoryCoordinator(self, alive=alive, url=url)

    def participant(self, name: str) -> MemoryCoordinator:
        """The newest started participant of that instance name. Raises KeyError."""
        for each in reversed(self._participants):
            if each.member is not None and each.member.name == name:
                return each
        raise KeyError(name)

    # -- hooks: what goes wrong

    def expire(self, who: MemoryCoordinator) -> None:
        """The session of `who` ends now. If it can reach the server it joins again at once, under a new session."""
        if who.session in self._sessions:
            self._end(self._sessions[who.session])
        self._settle()

    def disconnect(self, who: MemoryCoordinator) -> None:
        """`who` cannot reach the server any more; its session ends `session_s` later."""
        who.reachable = False
        self._mark_lost()
        self._settle()

    def reconnect(self, who: MemoryCoordinator) -> None:
        who.reachable = True
        self._expire_due()
        session = self._sessions.get(who.session)
        if session is not None:
            session.lost_at = None
        self._settle()

    def crash(self, who: MemoryCoordinator) -> None:
        """The process of `who` dies without a word: its session lives on until it times out."""
        who.crashed = True
        self.disconnect(who)

    def lose_quorum(self) -> None:
        """Nobody gets an answer. Sessions do not end meanwhile, since nobody can end them."""
        self._expire_due()
        self.quorum = False
        self._settle()

    def regain_quorum(self) -> None:
        """Answers come again. Sessions of participants that are away begin their time-out anew."""
        self.quorum = True
        for session in self._sessions.values():
            if session.lost_at is not None:
                session.lost_at = trio.current_time()
        self._settle()

    def wipe(self) -> None:
        """All data is lost: epochs begin at 0 under a new coordinator id, every session has ended."""
        for session in list(self._sessions.values()):
            self._end(session)
        self._feeds.clear()
        self.id = self.entropy.token(8)
        self._settle()

    def put_epoch(self, feed: str, epoch: int) -> None:
        """A feed's epoch as an older copy of the data has it: epochs that were taken will be given again."""
        self._set_epoch(self._feed(feed), epoch)
        self._settle()

    def delete_leader(self, feed: str) -> None:
        """Somebody deletes the leader record by hand; the session of its holder lives on."""
        self._feed(feed).leader = None
        self._settle()

    def lose_reply(self, who: MemoryCoordinator) -> None:
        """The next write of `who` is done but its reply is lost: the call raises CoordinatorUnavailable."""
        who.reply_lost = True

    def hold_watches(self, who: MemoryCoordinator) -> None:
        """`wait_change` of `who` hears of nothing until `release_watches` (reads stay up to date)."""
        who.watches_held = True

    def release_watches(self, who: MemoryCoordinator) -> None:
        who.watches_held = False
        self._settle()

    # -- inside

    def _feed(self, name: str) -> _Feed:
        return self._feeds.setdefault(check_feed_name(name), _Feed())

    def view(self, name: str) -> View:
        """What the server holds of a feed now."""
        self._expire_due()
        feed = self._feeds.get(check_feed_name(name), _Feed())
        return View(name, feed.epoch, feed.version, feed.leader)

    def _set_epoch(self, feed: _Feed, epoch: int) -> None:
        # One counter for all feeds that also survives a wipe: no version is ever given twice.
        self._versions += 1
        feed.epoch, feed.version = epoch, self._versions

    def _new_session(self, who: MemoryCoordinator, member: Member | None) -> None:
        self._tokens += 1
        session = _Session(f"m{self._tokens}", who, member)
        self._sessions[session.token] = session
        who.session = session.token
        who.generation += 1

    def _end(self, session: _Session) -> None:
        self._sessions.pop(session.token, None)
        for feed in self._feeds.values():
            if feed.leader is not None and feed.leader.session == session.token:
                feed.leader = None
        if session.holder.session == session.token:
            session.holder.session = ""

    def _mark_lost(self) -> None:
        now = trio.current_time()
        for session in self._sessions.values():
            if not session.holder.reachable and session.lost_at is None:
                session.lost_at = now

    def next_expiry(self) -> float:
        """When the next session ends if nothing else happens; infinity if none will."""
        if not self.quorum:
            return float("inf")
        return min(
            (s.lost_at + self.session_s for s in self._sessions.values() if s.lost_at is not None), default=float("inf")
        )

    def _expire_due(self) -> None:
        if not self.quorum:
            return
        now = trio.current_time()
        due = [s for s in self._sessions.values() if s.lost_at is not None and s.lost_at + self.session_s <= now]
        for session in due:
            self._end(session)
        if due:
            self._settle()

    def holder(self, name: str) -> _Session | None:
        """The live session that is listed under an instance name."""
        self._expire_due()
        return next((s for s in self._sessions.values() if s.member is not None and s.member.name == name), None)

    def _settle(self) -> None:
        """After every change: whoever lost its session and can reach the server joins again; waiters look again."""
        for who in self._participants:
            member = who.member
            if member is None or who.session or not who.reachable or not self.quorum:
                continue
            if all(s.member is None or s.member.name != member.name for s in self._sessions.values()):
                self._new_session(who, member)
        self.ring()

    def ring(self) -> None:
        self._bell.set()
        self._bell = trio.Event()

    async def wait_bell(self) -> None:
        """Until something changes or a session is due to end."""
        bell = self._bell
        with trio.move_on_at(self.next_expiry()):
            await bell.wait()
        self._expire_due()


@dataclass(eq=False)
class MemoryCoordinator:
    """One participant. The flags are set by the hooks of MemoryCoordination; do not touch them."""

    server: MemoryCoordination
    alive: Alive | None = None
    url: str = "memory:"
    member: Member | None = None
    session: str = ""
    generation: int = 0
    reachable: bool = True
    crashed: bool = False
    reply_lost: bool = False
    watches_held: bool = False
    _told: dict[str, int] = field(default_factory=dict)

    async def start(self, member: Member) -> None:
        """Join as `member` and keep the membership until `aclose`. Raises NameTaken if another live process holds the
        name: a dead one's is replaced at once where `alive` was given and says no, else when its session ends."""
        quoted_name(member.name)
        await self._call(lambda: None)
        holder = self.server.holder(member.name)
        while holder is not None and holder.holder is not self:
            assert holder.member is not None
            if holder.member.process == member.process:
                holder.member = None
            elif self.alive is not None:
                if await self.alive(holder.member):
                    raise self._taken(holder.member)
                holder.member = None
            elif holder.lost_at is None:
                raise self._taken(holder.member)
            else:
                await self.server.wait_bell()
            holder = self.server.holder(member.name)
        self.member = member
        self.server._participants.append(self)
        self.server._settle()

    def _taken(self, member: Member) -> NameTaken:
        return NameTaken(
            f"another live process (at {member.url}) takes part as {member.name!r}: give this one another name"
        )

    def state(self) -> CoordinatorState:
        server = self.server
        return CoordinatorState(server.id, self._reached, self.session, server.session_s, server.read_only)

    @property
    def _reached(self) -> bool:
        return self.reachable and self.server.quorum and not self.crashed

    async def _call(self, action: Callable[[], T], *, write: bool = False) -> T:
        """One request and its reply: each may be late or lost."""
        await self._way("the request")
        self.server._expire_due()
        if write and self.server.read_only:
            raise CoordinatorUnavailable("the coordinator's server takes no writes now")
        result = action()
        if write and self.reply_lost:
            self.reply_lost = False
            raise CoordinatorUnavailable("the coordinator's reply was lost: the write may have happened")
        if self.server.latency is not None:
            await self._way("the reply")
        return result

    async def _way(self, what: str) -> None:
        if self.server.latency is None:
            await trio.lowlevel.checkpoint()
        else:
            await self.server.sleep(self.server.latency())
        if not self._reached:
            await self.server.sleep(self.server.answer_s)
            raise CoordinatorUnavailable(f"the coordinator cannot be reached: {what} did not arrive")

    async def read(self, feed: str) -> View:
        return await self._call(lambda: self.server.view(feed))

    async def take(self, feed: str, seen: View) -> View | None:
        return await self._call(lambda: self._win(feed, seen, challenge=False), write=True)

    async def challenge(self, feed: str, seen: View) -> View | None:
        return await self._call(lambda: self._win(feed, seen, challenge=True), write=True)

    def _win(self, name: str, seen: View, *, challenge: bool) -> View | None:
        if self.member is None or not self.session:
            raise CoordinatorUnavailable("not joined: this participant has no session now")
        feed = self.server._feed(name)
        if feed.version != seen.version or (feed.leader is not None and not challenge):
            return None
        self.server._set_epoch(feed, seen.epoch + 1)
        me = self.member
        feed.leader = LeaderRecord(me.name, me.process, me.url, feed.epoch, self.session)
        self.server._settle()
        return self.server.view(name)

    async def raise_epoch(self, feed: str, seen: View, epoch: int) -> bool:
        if epoch <= seen.epoch:
            raise ValueError(f"an epoch is only raised: {epoch} is not above {seen.epoch}")

        def apply() -> bool:
            data = self.server._feed(feed)
            if data.version != seen.version:
                return False
            self.server._set_epoch(data, epoch)
            self.server._settle()
            return True

        return await self._call(apply, write=True)

    async def mark_leaving(self, feed: str, epoch: int, successor: str) -> bool:
        def apply() -> bool:
            data = self.server._feed(feed)
            if not self._holds(data.leader, epoch):
                return False
            assert data.leader is not None
            data.leader = replace(data.leader, leaving=True, successor=successor)
            self.server._settle()
            return True

        return await self._call(apply, write=True)

    async def resign(self, feed: str, epoch: int) -> None:
        def apply() -> None:
            data = self.server._feed(feed)
            if self._holds(data.leader, epoch):
                data.leader = None
                self.server._settle()

        await self._call(apply, write=True)

    def _holds(self, leader: LeaderRecord | None, epoch: int) -> bool:
        return leader is not None and leader.epoch == epoch and leader.session == self.session != ""

    def mine(self, view: View) -> bool:
        return view.leader is not None and view.leader.session == self.session != ""

    async def members(self) -> Mapping[str, Member]:
        def look() -> dict[str, Member]:
            listed = [s.member for s in self.server._sessions.values() if s.member is not None]
            return {member.name: member for member in sorted(listed, key=lambda m: m.name)}

        return await self._call(look)

    async def wait_change(self, feed: str, known: View | None) -> View:
        told = self._told.get(feed, min(1, self.generation))
        await trio.lowlevel.checkpoint()
        while True:
            if self._reached and not self.watches_held and not (self.member is not None and not self.session):
                view = self.server.view(feed)
                if view != known or told != self.generation:
                    self._told[feed] = self.generation
                    return view
            await self.server.wait_bell()

    async def aclose(self) -> None:
        """Leave: membership and leader records of this session go at once, unless the server cannot be reached."""
        if self in self.server._participants:
            self.server._participants.remove(self)
        if self._reached and self.session in self.server._sessions:
            self.server._end(self.server._sessions[self.session])
        else:
            self.reachable = False
            self.server._mark_lost()
        self.member = None
        self.server._settle()
        await trio.lowlevel.checkpoint()


_NAMED: Final[weakref.WeakValueDictionary[str, MemoryCoordination]] = weakref.WeakValueDictionary()


def named_coordination(name: str) -> MemoryCoordination:
    """The server that all users of `memory:NAME` in this process share while one of them lives; a private one for
    the empty name."""
    if not name:
        return MemoryCoordination()
    server = _NAMED.get(name)
    if server is None:
        server = _NAMED[name] = MemoryCoordination()
    return server


def _conforms(coordinator: MemoryCoordinator) -> Coordinator:
    return coordinator  # mypy holds the class to the contract
