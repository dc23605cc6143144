"""One instance's part in one feed: wires election, term, link, window and sessions; decides nothing by itself.

coordinator --> Elector --start_term--> Term (near leader) --visible--> Window --> sessions, peers
                        --follow------> Link (far leader)  --visible--> Window --> sessions
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import trio

from changefeed.batch import Entry, Tail
from changefeed.change import FeedSettings, Position
from changefeed.coordination import Coordinator, LeaderRecord, Member
from changefeed.election.driver import Elector
from changefeed.errors import ChangefeedError, LogDamaged, LogFormatUnknown, LogReplaced, PositionTooOld
from changefeed.leader import Leader
from changefeed.leader.driver import Term
from changefeed.log import FeedLog, Fence, Look
from changefeed.peer.driver import Evidence, Link, ask_peer
from changefeed.ports import World
from changefeed.serving.registry import Registry
from changefeed.serving.window import Window
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.transport import Network
from changefeed.wire.messages import Ask, PeerBeat, Said

logger = logging.getLogger("changefeed.feed")


class FeedNode:
    """Implements serving.driver.Feed, peer.driver.Node and election.driver.ElectionHooks for one opened log."""

    def __init__(
        self,
        *,
        log: FeedLog,
        declared: FeedSettings,
        coordinator: Coordinator,
        network: Network,
        member: Member,
        settings: Settings,
        world: World,
        kill_frozen: bool,
    ) -> None:
        self.name = log.feed
        self.log = log
        self.window = Window(settings.window_bytes)
        self.settings = settings
        self.world = world
        self.instance = member.name
        self.process = member.process
        self.url = member.url
        self.network = network
        self.changed = Changed()
        self.draining = trio.Event()
        self.subscribers = Registry(settings, world)
        self.failed: ChangefeedError | None = None
        self._coordinator = coordinator
        self._declared = declared
        self._term: Term | None = None
        self._far: Leader | None = None
        self._link = Link(self)
        self._followed: LeaderRecord | None = None
        self._retarget = trio.Event()
        self._last_beat: tuple[str, float] = ("", float("-inf"))
        self._elsewhere: tuple[str, ...] = ()
        self._failed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._look: tuple[Look, float] | None = None
        self.elector = Elector(
            feed=self.name,
            coordinator=coordinator,
            log=log,
            member=member,
            hooks=self,
            settings=settings,
            world=world,
            candidate=member.candidate,
            kill_frozen=kill_frozen,
        )

    # ---- life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled; returns if the log is damaged or was replaced (`failed` says which)."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._run_link)
            nursery.start_soon(self._watch_log)
            nursery.start_soon(self._watch_freshness)
            await nursery.start(self.elector.run)
            task_status.started()
            await self._failed.wait()
            self.end_term("log-failed")
            nursery.cancel_scope.cancel()

    def fail(self, error: ChangefeedError) -> None:
        """The log cannot be trusted any more: stop serving this feed."""
        if self.failed is None:
            logger.error("feed %s: %s", self.name, error)
            self.failed = error
            self._failed.set()

    async def wait_failed(self) -> None:
        await self._failed.wait()

    async def _watch_log(self) -> None:
        """Each second: the newest settings, and whether the log is still the one that was opened."""
        while True:
            try:
                with trio.move_on_after(self.settings.log_timeout_s):
                    look = await self.log.look()
                    self._look = (look, trio.current_time())
                    if look.settings_version != self._declared.version:
                        self._declared = await self.log.settings()
            except (LogReplaced, LogDamaged, LogFormatUnknown) as error:
                self.fail(error)
            except ChangefeedError as error:
                logger.debug("feed %s: log: %s", self.name, error)
            await trio.sleep(self.settings.log_look_s)

    async def _watch_freshness(self) -> None:
        """While I have no proof of being current, look whether another instance has."""
        while True:
            await trio.sleep(self.settings.log_look_s)
            if self.draining.is_set():
                return
            self._elsewhere = ()
            record = self._followed
            if self.stale_s() < self.settings.stale_after_s or record is None:
                continue
            fresh = self.settings.stale_after_s
            found = await self._ask(record)
            self._elsewhere = tuple(url for url, said in found if said.heard_s is not None and said.heard_s < fresh)

    # ---- what sessions ask (serving.driver.Feed)

    def declared(self) -> FeedSettings:
        return self._declared

    def leading(self) -> tuple[str, int]:
        leader = self._current()
        return ("", 0) if leader is None else (leader.name, leader.epoch)

    def stale_s(self) -> float:
        if self._term is not None:
            return 0.0
        return trio.current_time() - self._link.heard

    def redirect(self) -> tuple[str, ...]:
        return self._elsewhere

    def drain_to(self, servers: tuple[str, ...]) -> None:
        """From now on sessions are sent to these servers, and publishers away."""
        self._elsewhere = servers
        self.draining.set()

    def look_seen(self) -> tuple[Look, float] | None:
        """The newest look into the log and the trio time at which it was taken; for status only."""
        return self._look

    async def wait_visible(self, seq: int) -> None:
        while self.window.tail is None or self.window.tail.seq <= seq:
            await self.changed.wait()

    async def leader(self) -> Leader:
        while True:
            leader = self._current()
            if leader is not None:
                return leader
            await self.changed.wait()

    def _current(self) -> Leader | None:
        if self._term is not None and not self._term.lost.is_set():
            return self._term
        if self._far is not None and not self._far.lost.is_set():
            return self._far
        return None

    def term_stats(self) -> dict[str, Any]:
        """Figures of the running term, for status; empty if none runs."""
        return {} if self._term is None else dict(self._term.stats())

    # ---- what links need (peer.driver.Node)

    @property
    def evidence(self) -> Evidence:
        return _Heard(self, self.elector)

    def heard(self, beat: PeerBeat) -> None:
        self._last_beat = (beat.process, trio.current_time())

    def near_leader(self) -> Leader | None:
        return self._term

    def far_leader(self, leader: Leader | None) -> None:
        self._far = leader
        self.changed.notify()

    def begin_window(self, at: Position) -> None:
        self.window.begin(Tail(at.seq, at.epoch, at.term, b""))
        self.changed.notify()

    def visible(self, entries: Sequence[Entry]) -> None:
        try:
            self.window.append(entries)
        except ValueError as error:
            self.fail(LogReplaced(f"feed {self.name}: what became durable does not follow what was visible: {error}"))
            return
        self.world.trace("visible", feed=self.name, instance=self.instance, seq=entries[-1].last_seq)
        self.changed.notify()

    def foreign_log(self, why: str) -> None:
        """A peer's log is not mine: look at once whether mine was replaced."""
        logger.error("feed %s: another instance uses another log: %s", self.name, why)
        self.fail(LogReplaced(f"feed {self.name}: {why}"))

    def serving(self) -> tuple[int, str]:
        """Epoch and term that this instance leads in, (0, "") if it does not; cheap, unlike `beat`."""
        return (0, "") if self._term is None else (self._term.epoch, self._term.term)

    def beat(self) -> PeerBeat:
        term, status, tail = self._term, self.elector.status, self.window.tail
        if term is not None:
            state, epoch, term_id = "leading", term.epoch, term.term
        elif status.role == "fencing":
            state, epoch, term_id = "fencing", status.epoch, status.term
        else:
            state, epoch, term_id = "following", 0, ""
        return PeerBeat(
            name=self.instance,
            process=self.process,
            state=state,
            epoch=epoch,
            term=term_id,
            tail=None if tail is None else tail.position(self.log.lineage),
            log_ok=status.log_ok,
            log_slow_s=status.log_slow_s if term is None else max(status.log_slow_s, term.waiting_s),
            leaving=status.leaving,
            successor=status.successor,
        )

    def said(self, ask: Ask) -> Said:
        process, heard = self._last_beat
        tail = self.window.tail
        known = process == ask.process
        return Said(trio.current_time() - heard if known else None, 0 if tail is None else tail.seq, self.process)

    # ---- what the election wants done (election.driver.ElectionHooks)

    def start_term(self, fence: Fence, look: Look, why: str) -> None:
        tail = self.window.tail
        refusal = None if tail is None else look.check(tail.position(self.log.lineage))
        if refusal is not None and not isinstance(refusal, PositionTooOld):
            # What I have shown was durable, and is not what the log holds now.
            self.fail(LogReplaced(f"feed {self.name}: {refusal}"))
            return
        if tail is None or tail.seq < look.tail.seq:
            self.window.begin(look.tail)
        term = Term(
            log=self.log,
            look=look,
            fence=fence,
            settings=self.settings,
            world=self.world,
            visible=self.visible,
            declared=self.declared,
            instance=self.instance,
            process=self.process,
        )
        self._term = term
        logger.info("feed %s: leading in epoch %d, term %s (%s)", self.name, fence.epoch, fence.term, why)
        self.world.trace("elected", feed=self.name, instance=self.instance, epoch=fence.epoch, term=fence.term, why=why)
        assert self._nursery is not None
        self._nursery.start_soon(self._run_term, term)
        self.changed.notify()

    async def _run_term(self, term: Term) -> None:
        why = await term.run()
        if self._term is term:
            self._term = None
        logger.info("feed %s: term of epoch %d ended: %s", self.name, term.epoch, why)
        self.world.trace("deposed", feed=self.name, instance=self.instance, epoch=term.epoch, why=why)
        self.changed.notify()
        self.elector.term_ended(term.epoch, why)

    def end_term(self, why: str) -> None:
        term, self._term = self._term, None
        if term is not None:
            term.end(why)
            self.changed.notify()

    async def finish_term(self) -> None:
        """Take no more, append what waits, answer."""
        if self._term is not None:
            await self._term.finish()

    def follow(self, record: LeaderRecord | None) -> None:
        if record != self._followed:
            if record is not None and record.process != self.process:
                logger.info("feed %s: following %s, the leader of epoch %d", self.name, record.name, record.epoch)
            self._followed = record
            self._retarget.set()

    async def ask_members(self, record: LeaderRecord) -> list[Said]:
        return [said for _, said in await self._ask(record)]

    async def _ask(self, record: LeaderRecord) -> list[tuple[str, Said]]:
        found: list[tuple[str, Said]] = []

        async def ask(url: str) -> None:
            said = await ask_peer(self.network, url, self.name, record.process, self.settings)
            if said is not None:
                found.append((url, said))

        try:
            members = await self._coordinator.members()
        except ChangefeedError:
            return []
        async with trio.open_nursery() as nursery:
            for member in members.values():
                if member.process not in (self.process, record.process):
                    nursery.start_soon(ask, member.url)
        return found

    async def _run_link(self) -> None:
        """Keep a link to whoever is followed."""
        while True:
            self._retarget = trio.Event()
            record = self._followed
            async with trio.open_nursery() as nursery:
                if record is not None and record.process != self.process:
                    nursery.start_soon(self._link.run, record)
                await self._retarget.wait()
                nursery.cancel_scope.cancel()

    async def hand_over(self) -> None:
        # A leader that is leaving too must not choose me. The heartbeat is made when it leaves, after the next line.
        self._link.announce()
        await self.elector.hand_over()


class OwnClients:
    """A feed as the instance's own publishers and subscriptions see it (serving.driver.Feed): nobody sends them away,
    neither while the instance drains nor while it is stale; it is where they are."""

    def __init__(self, node: FeedNode) -> None:
        self.name = node.name
        self.log = node.log
        self.window = node.window
        self.settings = node.settings
        self.world = node.world
        self.instance = node.instance
        self.process = node.process
        self.subscribers = node.subscribers
        self.draining = trio.Event()
        self.declared = node.declared
        self.leading = node.leading
        self.stale_s = node.stale_s
        self.wait_visible = node.wait_visible
        self.leader = node.leader

    def redirect(self) -> tuple[str, ...]:
        return ()


class _Heard:
    """Passes a link's evidence to the election, and remembers whom I heard for those who ask."""

    def __init__(self, node: FeedNode, elector: Elector) -> None:
        self.link_up: Callable[[str], None] = elector.link_up
        self.link_closed: Callable[[str], None] = elector.link_closed
        self.link_refused: Callable[[str], None] = elector.link_refused
        self.link_foreign: Callable[[str, str], None] = elector.link_foreign
        self.link_silent: Callable[[str], None] = elector.link_silent
        self.follower_beat: Callable[[PeerBeat], None] = elector.follower_beat
        self._node = node
        self._elector = elector

    def link_beat(self, beat: PeerBeat) -> None:
        self._node.heard(beat)
        self._elector.link_beat(beat)
