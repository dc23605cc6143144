r"""One term in office: a near `Leader`. Waits, looks things up in the log, appends, answers, trims; decides nothing.

publish --> Sequencer --> run(): append, one at a time --> answers --> visible
   ^            \-> look-ups, beside the appends        \-> folder.py: into the snapshot
   \-- mover.py: what waits in an outbox
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import trio

from changefeed.batch import ENTRY_OVERHEAD, Batch, Entry
from changefeed.change import FeedSettings
from changefeed.errors import ChangefeedError, LogUnavailable, NotCurrent, TrimmedAway
from changefeed.leader import Answered, retention
from changefeed.leader.effects import Admit, Append, Deny, Effect, End, Facts, Give, Hold, LookUp, Reply, Step, Visible
from changefeed.leader.folder import LATEST_MAX, Folder
from changefeed.leader.looks import FreshLooks
from changefeed.leader.machine import Sequencer
from changefeed.leader.mover import Mover
from changefeed.log import FeedLog, Fence, Latest, Look
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.signal import Changed
from changefeed.wire.messages import Limits, Open, Opened

T = TypeVar("T")
logger = logging.getLogger("changefeed.leader")

#: Look-ups for batches that run side by side. They share looks, so that more of them gain little.
LOOK_UPS: Final = 16
#: Housekeeping of the log (checkpoints) is due after so many appended bytes, or `log_look_s` after the last append.
MAINTAIN_BYTES: Final = 8 * 1024 * 1024


class Term:
    """Implements leader.Leader for one epoch. Serves from its construction on; appends while `run` runs.

    look: the one that `fence` returned. visible: called with entries that are durable, after their answers have left.
    declared: the feed's newest known settings.
    """

    def __init__(
        self,
        *,
        log: FeedLog,
        look: Look,
        fence: Fence,
        settings: Settings,
        world: World,
        visible: Callable[[Sequence[Entry]], None],
        declared: Callable[[], FeedSettings],
        instance: str,
        process: str,
    ) -> None:
        self.name = instance
        self.epoch = fence.epoch
        self.term = fence.term
        self.lost = trio.Event()
        self._log = log
        self._settings = settings
        self._world = world
        self._visible = visible
        self._declared = declared
        self._process = process
        self._machine = Sequencer(
            look,
            fence.epoch,
            fence.term,
            append_bytes_max=settings.append_bytes_max,
            queue_bytes_max=settings.leader_queue_bytes,
            snapshot=declared().snapshot,
        )
        self._folder = Folder(log, self._machine, settings, declared, self._go_on)
        self._looks = FreshLooks(log)
        # No more look-ups wait than batches, whose bytes are bounded.
        self._look_ups, self._look_ups_taken = trio.open_memory_channel[LookUp](math.inf)
        self._work = trio.Event()
        self._settled = Changed()
        self._upkeep = trio.Event()
        self._over = trio.Event()
        self._room: deque[tuple[int, trio.Event]] = deque()
        self._mover = None if log.outbox is None else Mover(log.feed, log.outbox, self, settings)
        self._opening: set[trio.CancelScope] = set()
        self._scope = trio.CancelScope()
        self._running = False
        self._append_began: float | None = None
        self._unkept_bytes = 0
        self._counts = {"appends": 0, "entries": 0, "events": 0, "append_retries": 0, "trimmed_to": look.floor.seq}
        self._append_s = 0.0
        self._failing = ""
        self._pressing = False
        self._kept: dict[str, int] = {}

    # ---- what callers see

    @property
    def waiting_s(self) -> float:
        """For how many seconds the append under way has been waiting for the log, all its tries together (0: none)."""
        return 0.0 if self._append_began is None else trio.current_time() - self._append_began

    def stats(self) -> dict[str, Any]:
        """Figures for status. append_s: duration of the last append. Bytes are of batches without an answer."""
        machine = self._machine
        return {
            "epoch": self.epoch,
            "term": self.term,
            **self._counts,
            "append_s": self._append_s,
            "waiting_s": self.waiting_s,
            "queue_bytes": machine.queue_bytes,
            "batches_waiting": machine.waiting,
            "publishers": machine.publishers,
            "connections": machine.channels,
            "repeated": machine.repeated,
            "refused": machine.refused,
            **self._folder.stats(),
            **self._kept,
        }

    async def open(self, request: Open, channel: str, *, own: bool = False) -> Opened:
        """See leader.Leader; own: see Sequencer.open. Also raises InvalidName for a reserved id, and BadMessage for an
        incarnation that this log never gave. Cancellation: the publisher may have got an incarnation that nobody uses;
        nothing else is left."""
        with trio.CancelScope() as scope:
            self._opening.add(scope)
            try:
                return self._opened(request, await self._admit(request, channel, own))
            finally:
                self._opening.discard(scope)
                self._end_if_ended()
        raise NotCurrent("this leader's term ended before it could answer; ask again")

    async def _admit(self, request: Open, channel: str, own: bool) -> Admit:
        """Do what the machine asks until it admits or denies."""
        machine = self._machine
        step = machine.open(request, channel, own=own)
        self._perform(machine.displaced())
        token: int | None = None
        try:
            while True:
                match step:
                    case LookUp(token):
                        step = await self._step_of(token, self._look_up(step), machine.open_found)
                    case Give(token, publisher, named):
                        give = self._log.open_publisher(self.epoch, self.term, publisher, named=named)
                        step = await self._step_of(token, give, machine.open_given)
                    case Hold(token):
                        await self._settled.wait()
                        step = machine.resume(token)
                    case Admit():
                        return step
                    case Deny(error):
                        raise error
        finally:
            if token is not None:
                machine.open_abandoned(token)

    async def _step_of(self, token: int, asked: Awaitable[T], told: Callable[[int, T], Step]) -> Step:
        try:
            answer = await asked
        except ChangefeedError as error:
            return self._machine.open_failed(token, error)
        return told(token, answer)

    def _opened(self, request: Open, admitted: Admit) -> Opened:
        settings = self._settings
        return Opened(
            feed=request.feed,
            instance=self.name,
            process=self._process,
            leader=self.name,
            epoch=self.epoch,
            incarnation=admitted.incarnation,
            last_number=admitted.last_number,
            limits=Limits(
                settings.change_bytes_max,
                settings.group_bytes_max,
                settings.frame_bytes_max,
                settings.in_flight_max,
                settings.heartbeat_s,
                settings.heartbeat_dead_s,
            ),
            resources=self._declared().resources,
            snapshot=self._declared().snapshot,
        )

    async def publish(self, channel: str, batch: Batch, answered: Answered) -> None:
        """See leader.Leader. Does not pass a checkpoint when there is room. Cancellation: the batch was not taken."""
        size = len(batch.payload) + ENTRY_OVERHEAD
        if not self.lost.is_set() and (self._room or not self._machine.room(size)):
            await self._wait_for_room(size)
        if self.lost.is_set() or self._machine.finishing:
            raise NotCurrent("this leader's term has ended or is ending; send it again")
        self._perform(self._machine.publish(channel, answered, batch))
        self._work.set()

    def close(self, channel: str) -> None:
        """See leader.Leader."""
        self._machine.close(channel)

    async def _wait_for_room(self, size: int) -> None:
        """In the order of arrival, so that a large batch is not overtaken for ever by small ones."""
        turn = (size, trio.Event())
        self._room.append(turn)
        got = False
        try:
            self._offer_room()
            await turn[1].wait()
            got = True
        finally:
            self._room.remove(turn)
            if not got:
                # Whoever gets in offers what is left once it has used its room; I do not get in.
                self._offer_room()

    def _offer_room(self) -> None:
        """Let the first one in who waits for room, if there is enough; send all away if the term takes no more."""
        if self._machine.finishing or self.lost.is_set():
            for _, event in self._room:
                event.set()
        elif self._room and self._machine.room(self._room[0][0]):
            self._room[0][1].set()

    # ---- the end

    async def finish(self) -> None:
        """Take no more, append what waits, answer; returns when `run` has. Cancellation: it still takes no more."""
        self._machine.finish()
        self._offer_room()
        self._work.set()
        if not self._running and self._machine.idle:
            self.end("handover")
        else:
            await self._over.wait()

    def end(self, why: str) -> None:
        """At once: `lost` is set, nothing more is answered. An append that has begun runs to its end in the log."""
        self._perform(self._machine.end(why))

    def _end_if_ended(self) -> None:
        if self._machine.ended is not None and not self.lost.is_set():
            self.lost.set()
            self._world.trace("term_ended", feed=self._log.feed, epoch=self.epoch, why=self._machine.ended)
            self._work.set()
            self._settled.notify()
            self._offer_room()
            for scope in self._opening:
                scope.cancel()
            self._scope.cancel()

    # ---- the term

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> str:
        """Append and trim until the term ends; returns why: "handover" after `finish`, what `end` was told, "fenced",
        "tail-moved", "outcome-unknown", or the code of what is wrong with the log. Cancellation ends the term; an
        append that has begun runs to its end in the log first."""
        self._running = True
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for _ in range(LOOK_UPS):
                        nursery.start_soon(self._run_look_ups)
                    nursery.start_soon(self._run_retention)
                    nursery.start_soon(self._run_upkeep)
                    nursery.start_soon(self._folder.run, self._beside)
                    if self._mover is not None:
                        nursery.start_soon(self._mover.run)
                    task_status.started()
                    await self._run_appends()
        finally:
            self.end("cancelled")
            self._append_began = None
            self._over.set()
        assert self._machine.ended is not None
        return self._machine.ended

    async def _run_appends(self) -> None:
        """One append after the other, at once when something waits."""
        machine = self._machine
        while machine.ended is None:
            append = machine.next_append(self._world.wall_ms())
            if append is not None:
                await self._append(append)
            elif machine.finishing and machine.idle:
                self.end("handover")
            else:
                self._work = trio.Event()
                await self._work.wait()

    async def _append(self, append: Append) -> None:
        if append.tries == 0:
            self._append_began = trio.current_time()
        else:
            self._counts["append_retries"] += 1
            await trio.sleep(append.delay_s)
        try:
            await self._store(append)
        except LogUnavailable as error:
            if append.tries == 0:
                logger.warning("feed %s: the log cannot take an append; trying again: %s", self._log.feed, error)
            self._perform(self._machine.append_failed(error))
            return
        except ChangefeedError as error:
            if error.code != self._failing:
                logger.warning("feed %s: append of epoch %d: %s", self._log.feed, self.epoch, error)
            self._failing = error.code
            effects = self._machine.append_failed(error)
            self._trace(append, error.code)
        else:
            effects = self._machine.appended()
            self._failing = ""
            self._count(append)
            self._trace(append, "stored")
        self._append_s, self._append_began = self.waiting_s, None
        self._perform(effects)
        self._settled.notify()

    async def _store(self, append: Append) -> None:
        moving = None if self._mover is None else self._mover.moving(append.entries)
        if moving is None:
            await self._log.append(self.epoch, self.term, append.expected_tail, append.entries)
        else:
            outbox, moved = moving
            await outbox.append(self.epoch, self.term, append.expected_tail, append.entries, moved)

    def _count(self, append: Append) -> None:
        counts = self._counts
        counts["appends"] += 1
        counts["entries"] += len(append.entries)
        counts["events"] += append.entries[-1].last_seq - append.expected_tail
        size = sum(entry.bytes for entry in append.entries)
        self._folder.appended(size)
        self._unkept_bytes += size
        if self._unkept_bytes >= MAINTAIN_BYTES:
            self._upkeep.set()

    def _trace(self, append: Append, outcome: str) -> None:
        self._world.trace(
            "append",
            feed=self._log.feed,
            epoch=self.epoch,
            first=append.entries[0].seq,
            last=append.entries[-1].last_seq,
            outcome=outcome,
        )

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Reply():
                    self._reply(effect)
                case Visible(entries):
                    self._visible(entries)
                case LookUp():
                    self._look_ups.send_nowait(effect)
                case End():
                    pass
        self._end_if_ended()
        if self._room:
            self._offer_room()

    def _go_on(self, effects: Sequence[Effect]) -> None:
        """Something may be accepted now, or have been the last one before a handover."""
        self._perform(effects)
        self._work.set()

    def _reply(self, reply: Reply) -> None:
        """What goes wrong with one publisher's connection is nobody else's trouble."""
        if reply.answer.repeated:
            self._world.trace("repeat", feed=self._log.feed, publisher=reply.publisher, number=reply.answer.number)
        try:
            reply.ticket(reply.answer)
        except Exception:
            logger.exception("feed %s: an answer could not be handed over", self._log.feed)

    # ---- look-ups

    async def _run_look_ups(self) -> None:
        async for wanted in self._look_ups_taken:
            try:
                facts = await self._look_up(wanted)
            except ChangefeedError as error:
                effects = self._machine.not_found(wanted.token, error)
            else:
                effects = self._machine.found(wanted.token, facts)
            self._go_on(effects)

    async def _look_up(self, wanted: LookUp) -> Facts:
        """Raises LogUnavailable, also when the log does not answer within log_timeout_s."""
        log, who, incarnation = self._log, wanted.publisher, wanted.incarnation
        state = last = entry = before = end = None
        behind: Sequence[Entry] = ()
        with trio.move_on_after(self._settings.log_timeout_s):
            if wanted.state:
                state = await log.publisher_state(who)
            if wanted.last:
                last = await log.last_number(who, incarnation)
            if wanted.number:
                entry = await log.find_batch(who, incarnation, wanted.number)
            if entry is None and wanted.after:
                before = await log.find_batch(who, incarnation, wanted.after)
            if entry is None and wanted.end:
                end = await log.find_batch(who, incarnation, wanted.end)
            if entry is not None and wanted.end >= entry.number + entry.count:
                with contextlib.suppress(TrimmedAway):  # trimmed meanwhile: then nothing of it was read
                    behind = await log.read(entry.last_seq, wanted.size)
            rows: list[Latest] = []
            for index in range(0, len(wanted.keys), LATEST_MAX):
                rows += await log.latest(wanted.keys[index : index + LATEST_MAX])
            return Facts(wanted, await self._looks.fresh(), state, last, entry, before, end, behind, rows)
        raise LogUnavailable(f"the log has not answered for {self._settings.log_timeout_s} s")

    # ---- beside the appends

    async def _run_upkeep(self) -> None:
        """Checkpoints, so that they do not fall into an append."""
        while True:
            self._upkeep = trio.Event()
            with trio.move_on_after(self._settings.log_look_s):
                await self._upkeep.wait()
            if self._unkept_bytes:
                self._unkept_bytes = 0
                await self._beside(self._keep_up)

    async def _keep_up(self) -> None:
        self._kept = await self._log.maintain()

    async def _run_retention(self) -> None:
        pause_s = self._settings.retention_every_s
        while True:
            await trio.sleep(pause_s / retention.HURRY if self._pressing else pause_s)
            self._pressing = False
            await self._beside(self._trim)

    async def _beside(self, work: Callable[[], Any]) -> None:
        """Housekeeping that fails waits for its next turn, unless the error ends the term."""
        try:
            await work()
        except ChangefeedError as error:
            logger.warning("feed %s: %s", self._log.feed, error)
            self._perform(self._machine.failed(error))

    async def _trim(self) -> None:
        """One pass; see retention.py."""
        look = await self._log.look()
        began, end = look.floor.seq, retention.pass_end(look)
        while True:
            settings = self._declared()
            before = retention.too_old_before(look, settings)
            aged = look.floor.seq if before is None else await self._log.read_time(before)
            if not retention.over(look, settings, aged):
                return
            sample = await self._log.read(look.floor.seq, retention.SAMPLE_BYTES)
            up_to = retention.step(look, settings, aged, sample, end)
            if up_to is None:
                # A pass that trimmed nothing has met an entry that reaches into the bound: that is no hurry.
                self._pressing = look.floor.seq > began and retention.pressing(look, settings)
                return
            floor = await self._log.trim(self.epoch, self.term, up_to)
            self._counts["trimmed_to"] = floor
            if floor <= look.floor.seq:
                return
            look = await self._log.look()
