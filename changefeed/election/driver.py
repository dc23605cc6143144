"""One task per feed that performs what the election machine asks for. It decides nothing.

Facts come in from the coordinator (a watch and answers), from the log (looks and fences), from the link and the term
(synchronous calls of instance.py) and from the clock. All go through `_tell`, which feeds the machine and performs its
effects in order: hooks at once, requests as tasks of their own, so that a slow one delays nothing else.

Whatever the outside world raises is told to the machine, or logged and tried again: this task ends only when it is
cancelled, or by a fault of our own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import trio

from changefeed.coordination import Coordinator, LeaderRecord, Member, View
from changefeed.election import effects as fx
from changefeed.election.frozen import kill_frozen as kill_frozen_process
from changefeed.election.frozen import process_started
from changefeed.election.machine import Election
from changefeed.election.notes import describe
from changefeed.election.status import ElectionStatus
from changefeed.errors import CoordinatorUnavailable, Fenced, LogUnavailable
from changefeed.log import FeedLog, Fence, Look
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.wire.messages import PeerBeat, Said

__all__ = ["ElectionHooks", "ElectionStatus", "Elector"]

logger = logging.getLogger(__name__)

#: A coordinator that takes longer counts as not answering. Whether a write happened is found out by reading.
COORDINATOR_S: Final = 5.0
#: Reasons not to stand for election that no instance gets over by itself.
LOUD: Final = frozenset({"two-coordinators", "log-format-unknown"})
#: The other members together may take so long; who has not answered by then was not reachable.
ASK_S: Final = 1.5
#: The watch is set up again after this when it failed.
WATCH_AGAIN_S: Final = 0.25
#: Beyond the machine's own bounds for each step of a handover.
HAND_OVER_SPARE_S: Final = 10.0


class ElectionHooks(Protocol):
    """What instance.py does for an election. The synchronous ones are called in the order of the machine's effects,
    must not block, and may call the Elector's facts."""

    def start_term(self, fence: Fence, look: Look, why: str) -> None:
        """Begin to serve under this fence; the look was taken after it."""

    def end_term(self, why: str) -> None:
        """Stop at once: nothing more is answered."""

    def follow(self, record: LeaderRecord | None) -> None:
        """(Re)target the link; None: nobody to follow."""

    async def finish_term(self) -> None:
        """Take no more publishes, append what waits, send the receipts; return when the term's queue is empty. The
        term's own task then reports `term_ended(epoch, "handover")`."""

    async def ask_members(self, record: LeaderRecord) -> list[Said]:
        """Ask the other members, not the leader itself, when they last heard it. Who does not answer is left out."""


class Elector:
    """One feed's election in this process.

    The instance must listen at `member.url` before `run`: a leader whose URL refuses is taken for dead.
    Facts may be told at any time, also before `run`; they are acted on once it runs.
    """

    def __init__(
        self,
        *,
        feed: str,
        coordinator: Coordinator,
        log: FeedLog,
        member: Member,
        hooks: ElectionHooks,
        settings: Settings,
        world: World,
        candidate: bool = True,
        kill_frozen: bool = False,
    ) -> None:
        self._feed = feed
        self._coordinator = coordinator
        self._log = log
        self._hooks = hooks
        self._settings = settings
        self._world = world
        self._machine = Election(
            feed=feed,
            member=member,
            settings=settings,
            candidate=candidate and member.candidate,
            kill_frozen=kill_frozen,
            pid=os.getpid(),
            pid_started=process_started(os.getpid()),
        )
        self._nursery: trio.Nursery | None = None
        self._performing = False
        self._hindrance = ""
        self._pause: trio.CancelScope | None = None
        self._handed_over = trio.Event()
        # A process that is frozen while it is asked to kill another must not block trio's shared threads.
        self._threads = trio.CapacityLimiter(1)

    # ---- life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the election until cancelled.

        Cancellation: a running term is ended at once (`end_term("stopped")`); the leader record stays until the
        coordinator is closed. For a planned end call `hand_over` first.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    nursery.start_soon(self._watch)
                    self._tell(self._machine.tick)
                    task_status.started()
                    while True:
                        await self._sleep()
                        self._tell(self._machine.tick)
                        self._complain()
                finally:
                    # From now on nothing is begun: links that end beside this still tell their facts.
                    self._nursery = None
        finally:
            self._machine.stop(trio.current_time())
            for effect in self._machine.take_effects():
                if isinstance(effect, fx.EndTerm):
                    self._hooks.end_term(effect.why)

    def _complain(self) -> None:
        """What only a person can mend must not wait until somebody asks for the status."""
        hindrance = self._machine.hindrance(trio.current_time())
        if hindrance != self._hindrance and hindrance in LOUD:
            for note in self.status.notes:
                logger.error("feed %s: %s", self._feed, note)
        self._hindrance = hindrance

    async def _sleep(self) -> None:
        """Until the machine's deadline, which any fact may move meanwhile."""
        with trio.CancelScope(deadline=self._machine.deadline) as self._pause:
            await trio.sleep_forever()
        self._pause = None

    async def hand_over(self) -> None:
        """Planned: finish the running term, mark this instance as leaving, and return once the successor's fence stands
        in the log, or nobody could be found, or the steps' bounds have passed. From now on this instance never
        contends; it goes on following until `run` is cancelled. Does nothing if `run` does not run. Cancellation:
        the handover goes on.
        """
        if self._nursery is None:
            return
        self._tell(self._machine.hand_over)
        spare = self._settings.drain_s / 2 + 3 * self._settings.suspect_after_s + HAND_OVER_SPARE_S
        with trio.move_on_after(spare):
            await self._handed_over.wait()

    @property
    def status(self) -> ElectionStatus:
        """What a person may ask; cheap, and safe at any time within trio."""
        return describe(self._machine, trio.current_time())

    # ---- facts, synchronous, from the link and the term

    def link_up(self, process: str) -> None:
        """The handshake with that process succeeded."""
        self._tell(self._machine.link_up, process)

    def link_beat(self, beat: PeerBeat) -> None:
        """The process at the leader's URL said so."""
        self._tell(self._machine.link_beat, beat)

    def link_closed(self, process: str) -> None:
        """An established link ended. By itself no evidence: the next attempt to connect tells."""
        self._tell(self._machine.link_closed, process)

    def link_refused(self, process: str) -> None:
        """Connecting to that leader's URL was refused."""
        self._tell(self._machine.link_refused, process)

    def link_foreign(self, process: str, found: str) -> None:
        """Another process answered at that leader's URL."""
        self._tell(self._machine.link_foreign, process, found)

    def link_silent(self, process: str) -> None:
        """It could not be reached for another reason (time-out …): no evidence, it only stays silent."""
        self._tell(self._machine.tick)

    def follower_beat(self, beat: PeerBeat) -> None:
        """A follower's heartbeat arrived at me."""
        self._tell(self._machine.follower_beat, beat)

    def term_ended(self, epoch: int, why: str) -> None:
        """The running term of that epoch ended by itself ("fenced", "outcome-unknown", "tail-moved", "handover" …)."""
        self._tell(self._machine.term_ended, epoch, why)

    # ---- the one way in

    def _tell(self, fact: Callable[..., None], *args: object) -> None:
        """Feed one fact to the machine and perform what it asks for. Re-entrant: hooks may tell facts."""
        now, machine = trio.current_time(), self._machine
        state, view = self._coordinator.state(), machine.views.view
        machine.set_wall(now, self._world.wall_ms())
        mine = view is not None and self._coordinator.mine(view)
        machine.coordinator_state(state.id, state.connected and not state.read_only, mine)
        fact(now, *args)
        self._perform()

    def _perform(self) -> None:
        if self._performing or self._nursery is None:
            return
        self._performing = True
        try:
            while effects := self._machine.take_effects():
                for effect in effects:
                    self._do(effect, self._nursery)
        finally:
            self._performing = False
        if self._pause is not None:
            self._pause.deadline = self._machine.deadline

    def _do(self, effect: fx.Effect, nursery: trio.Nursery) -> None:
        feed = self._feed
        match effect:
            case fx.StartTerm(fence, look, why):
                logger.debug("feed %s: leading epoch %d, term %s (%s)", feed, fence.epoch, fence.term, why)
                self._world.trace("term-start", feed=feed, epoch=fence.epoch, term=fence.term, why=why)
                self._hooks.start_term(fence, look, why)
            case fx.EndTerm(epoch, why):
                logger.debug("feed %s: the term of epoch %d ends: %s", feed, epoch, why)
                self._world.trace("term-end", feed=feed, epoch=epoch, why=why)
                self._hooks.end_term(why)
            case fx.Follow(record):
                self._hooks.follow(record)
            case fx.HandedOver(how):
                logger.info("feed %s: handover: %s", feed, how)
                self._handed_over.set()
            case fx.Request():
                nursery.start_soon(self._request, effect)

    # ---- requests

    async def _request(self, request: fx.Request) -> None:
        """Run one request to its answer. Errors of the outside world are answers too."""
        try:
            done = await self._answer(request)
        except Exception as error:  # whatever the outside world raises: the machine decides what it means
            quiet = isinstance(error, CoordinatorUnavailable | LogUnavailable | Fenced)
            logger.log(
                logging.DEBUG if quiet else logging.WARNING,
                "feed %s: %s failed: %s",
                self._feed,
                type(request).__name__,
                error or type(error).__name__,
                exc_info=not quiet and not hasattr(error, "code"),
            )
            self._tell(self._machine.failed, request.id, error)
        else:
            self._tell(*done)

    async def _answer(self, request: fx.Request) -> tuple[Any, ...]:
        """The fact that answers a request: the machine's method and its arguments."""
        machine, id = self._machine, request.id
        match request:
            case fx.Read():
                view = await self._bounded(self._coordinator.read, self._feed)
                return machine.did_read, id, view, self._coordinator.mine(view)
            case fx.Write():
                outcome = await self._write(request)
                mine = isinstance(outcome, View) and self._coordinator.mine(outcome)
                return machine.did_write, id, outcome, mine, self._world.entropy.token(4)
            case fx.ListMembers():
                return machine.did_list, id, await self._bounded(self._coordinator.members)
            case fx.LookLog(renew=renew):
                return machine.did_look, id, await self._look(renew)
            case fx.FenceLog(fence=fence, why=why, clean=clean):
                stamped = self._world.wall_ms()
                look = await self._log.fence(fence, why=why, time=stamped, clean=clean)
                self._world.trace("fence", feed=self._feed, epoch=fence.epoch, term=fence.term, tail=str(look.head))
                return machine.did_fence, id, look
            case fx.AskMembers(record=record):
                return machine.did_ask, id, await self._ask(record)
            case fx.KillHolder(holder=holder):
                return machine.did_kill, id, await self._kill(holder)
            case fx.FinishTerm():
                await self._hooks.finish_term()
                return machine.did_finish, id
            case _:
                raise AssertionError(f"the machine asked for {request!r}, which nobody performs")

    async def _bounded(self, call: Callable[..., Any], *args: object) -> Any:
        with trio.move_on_after(COORDINATOR_S):
            return await call(*args)
        raise CoordinatorUnavailable(f"the coordinator did not answer within {COORDINATOR_S:g} s")

    async def _write(self, request: fx.Write) -> View | bool | None:
        coordinator, feed = self._coordinator, self._feed
        result: View | bool | None
        match request:
            case fx.Take(seen=seen):
                result = await self._bounded(coordinator.take, feed, seen)
            case fx.Challenge(seen=seen):
                result = await self._bounded(coordinator.challenge, feed, seen)
            case fx.RaiseEpoch(seen=seen, epoch=epoch):
                result = await self._bounded(coordinator.raise_epoch, feed, seen, epoch)
            case fx.MarkLeaving(epoch=epoch, successor=successor):
                result = await self._bounded(coordinator.mark_leaving, feed, epoch, successor)
            case fx.Resign(epoch=epoch):
                result = await self._bounded(coordinator.resign, feed, epoch)
            case _:
                raise AssertionError(f"the machine asked to write {request!r}, which nobody performs")
        name = type(request).__name__.lower()
        self._world.trace("coordinator-write", feed=self._feed, what=name, outcome=repr(result))
        return result

    async def _look(self, renew: tuple[int, str] | None) -> Look:
        stamp = None if renew is None else (*renew, self._world.wall_ms())
        with trio.move_on_after(self._settings.log_timeout_s):
            return await self._log.look(stamp)
        raise LogUnavailable(f"the log did not answer a look within {self._settings.log_timeout_s:g} s")

    async def _ask(self, record: LeaderRecord) -> Sequence[Said]:
        with trio.move_on_after(ASK_S):
            return await self._hooks.ask_members(record)
        return ()

    async def _kill(self, holder: Fence) -> str:
        outcome = await trio.to_thread.run_sync(kill_frozen_process, holder, limiter=self._threads)
        level = logging.WARNING if outcome == "killed" else logging.DEBUG
        logger.log(
            level,
            "feed %s: %s (pid %d), frozen while it held the log's lock in epoch %d: %s",
            self._feed,
            holder.instance,
            holder.pid,
            holder.epoch,
            outcome,
        )
        self._world.trace("kill-holder", feed=self._feed, pid=holder.pid, outcome=outcome)
        return outcome

    # ---- the watch

    async def _watch(self) -> None:
        """Tell each new view; a watch that fails is set up again."""
        known: View | None = None
        while True:
            try:
                known = await self._coordinator.wait_change(self._feed, known)
            except Exception as error:
                logger.debug("feed %s: watching the coordinator failed: %s", self._feed, error)
                await trio.sleep(WATCH_AGAIN_S)
            else:
                self._tell(self._machine.view_changed, known, self._coordinator.mine(known))
