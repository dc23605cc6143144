"""Two instances' elections, a coordinator and the log's fence: the production's machine, in all orders of answers.

What an instance asks for is answered in any order, each answer as late as anything else may happen; a reply of the
coordinator may be lost; a session may end; somebody may delete the record; a living leader may be taken for dead. Time
passes only when nobody waits for an answer: then both are ticked at the next deadline, and hear of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

from changefeed.batch import Tail
from changefeed.change import NO_TERM
from changefeed.coordination import LeaderRecord, Member, View
from changefeed.election import effects as fx
from changefeed.election.machine import Election
from changefeed.errors import CoordinatorUnavailable, Fenced
from changefeed.log import EpochRecord, Fence, Look
from changefeed.settings import Settings
from changefeed.simulation.explorer.cells import Cells, Values
from changefeed.simulation.explorer.log import FEED, LINEAGE, START
from changefeed.simulation.explorer.search import Violation
from changefeed.wire.messages import PeerBeat

Move = tuple[str, Callable[[], Hashable]]
SETTINGS: Final = Settings()
COORDINATOR: Final = "c0ffee00"
NAMES: Final = ("a", "b")
MEMBERS: Final = tuple(Member(name, f"process-{name}", f"ws://{name}:1", True, (FEED,)) for name in NAMES)


@dataclass(frozen=True)
class ElectBounds:
    """lost, expired, deleted, refused: how often a reply is lost, a session ends, the record is deleted, a living
    leader is taken for dead. ticks: how often time passes after the last of these until somebody must lead."""

    lost: int = 0
    expired: int = 0
    deleted: int = 0
    refused: int = 0
    ticks: int = 12


class Side(NamedTuple):
    """An instance. asked: numbers of requests without an answer. term: the epoch that it serves, 0 for none. told: the
    view that its watch brought last. session: how many it has had."""

    machine: int
    asked: tuple[int, ...] = ()
    term: int = 0
    told: int = -1
    session: int = 0


class ElectState(NamedTuple):
    """view: number of what the coordinator holds. fence: number of the log's."""

    now: float
    sides: tuple[Side, ...]
    view: int
    fence: int
    ticks: int
    lost: int
    expired: int
    deleted: int
    refused: int


class Electing:
    """The world of one search."""

    def __init__(self, bounds: ElectBounds) -> None:
        self.bounds = bounds
        self.values = Values()
        self.machines: Cells[Election] = Cells(SETTINGS)

    def begin(self) -> ElectState:
        bounds = self.bounds
        sides = tuple(
            Side(self.machines.add(Election(feed=FEED, member=member, settings=SETTINGS, pid=index + 1)))
            for index, member in enumerate(MEMBERS)
        )
        view = self.values.number(View(FEED, 0, 0, None))
        fence = self.values.number(Fence(0, NO_TERM))
        state = ElectState(
            100.0, sides, view, fence, bounds.ticks, bounds.lost, bounds.expired, bounds.deleted, bounds.refused
        )
        return self._tell(self._tell(state, 0, "tick"), 1, "tick")

    # ---- what may happen

    def steps(self, state: ElectState) -> Iterator[Move]:
        view: View = self.values[state.view]
        for index, side in enumerate(state.sides):
            name = NAMES[index]
            for number in side.asked:
                request = self.values[number]
                kind = type(request).__name__
                yield f"answer: {kind} of {name}", partial(self._answer, state, index, number, False)
                if state.lost and isinstance(request, fx.Write):
                    yield f"lost: the reply to {kind} of {name}", partial(self._answer, state, index, number, True)
            if side.told != state.view:
                yield f"watch: of {name}", partial(self._watch, state, index)
            if state.expired:
                yield f"expire: the session of {name}", partial(self._expire, state, index)
            if state.refused and view.leader is not None and view.leader.name != name:
                yield f"refused: {name} takes the leader for dead", partial(self._refuse, state, index)
        if state.deleted and view.leader is not None:
            yield "delete: the record", partial(self._delete, state)
        if state.ticks and not any(side.asked or side.told != state.view for side in state.sides):
            yield "time: passes", partial(self._pass, state)

    def at_rest(self, state: ElectState) -> None:
        view, fence = self.values[state.view], self.values[state.fence]
        leading = [index for index, side in enumerate(state.sides) if side.term]
        if len(leading) != 1:
            raise Violation("C14", f"{[NAMES[index] for index in leading]} lead, the record is {view.leader}")
        epoch, name = state.sides[leading[0]].term, NAMES[leading[0]]
        if fence.epoch != epoch or view.leader is None or (view.leader.name, view.leader.epoch) != (name, epoch):
            raise Violation("C14", f"{name} leads {epoch}, the fence is {fence.epoch}, the record {view.leader}")

    # ---- answers

    def _answer(self, state: ElectState, index: int, number: int, lost: bool) -> ElectState:
        request = self.values[number]
        side = state.sides[index]
        asked = tuple(one for one in side.asked if one != number)
        state = self._with(state, index, side._replace(asked=asked))
        if isinstance(request, fx.Write):
            state, outcome = self._written(state, index, request)
            if lost:
                state = state._replace(lost=state.lost - 1, ticks=self.bounds.ticks)
                return self._tell(
                    state, index, "failed", request.id, self.values.number(CoordinatorUnavailable("lost"))
                )
            return self._tell(state, index, "did_write", request.id, self.values.number(outcome), f"{number:08x}")
        match request:
            case fx.Read():
                return self._tell(state, index, "did_read", request.id, state.view)
            case fx.LookLog():
                return self._tell(state, index, "did_look", request.id, self._look(state))
            case fx.FenceLog(fence=fence):
                return self._fence(state, index, request.id, fence)
            case fx.AskMembers():
                return self._tell(state, index, "did_ask", request.id)
        raise Violation("crash", f"{NAMES[index]} asks for {request!r}, which nobody expected")

    def _look(self, state: ElectState) -> int:
        fence: Fence = self.values[state.fence]
        epochs = (EpochRecord(fence.epoch, fence.term, 1, 0, fence.instance, "start"),) if fence.epoch else ()
        tail = Tail(0, 0, NO_TERM, START.digest)
        return self.values.number(Look(LINEAGE, tail, tail, fence, epochs, 0, 0, 0))

    def _fence(self, state: ElectState, index: int, id: int, fence: Fence) -> ElectState:
        stands: Fence = self.values[state.fence]
        if fence.epoch <= stands.epoch:
            error = Fenced("refused", stands.epoch, stands.term, stands.coordinator)
            return self._tell(state, index, "failed", id, self.values.number(error))
        state = state._replace(fence=self.values.number(replace(fence, renewed=0)))
        return self._tell(state, index, "did_fence", id, self._look(state))

    def _written(self, state: ElectState, index: int, request: fx.Write) -> tuple[ElectState, Any]:
        view: View = self.values[state.view]
        me = LeaderRecord(NAMES[index], MEMBERS[index].process, MEMBERS[index].url, 0, self._session(state, index))
        after: View = view
        outcome: Any = None
        match request:
            case fx.Take(seen=seen) | fx.Challenge(seen=seen):
                challenge = isinstance(request, fx.Challenge)
                if seen.version == view.version and (challenge or view.leader is None):
                    if view.leader is not None and view.leader != seen.leader:
                        raise Violation("C8", f"{me.name} meant {seen.leader} and challenges {view.leader}")
                    epoch = seen.epoch + 1
                    after = outcome = View(FEED, epoch, view.version + 1, replace(me, epoch=epoch))
            case fx.RaiseEpoch(seen=seen, epoch=epoch):
                outcome = seen.version == view.version
                if outcome:
                    after = replace(view, epoch=epoch, version=view.version + 1)
            case fx.Resign(epoch=epoch):
                held = view.leader
                if held is not None and (held.session, held.epoch) == (me.session, epoch):
                    after = replace(view, leader=None)
        return state._replace(view=self.values.number(after)), outcome

    def _session(self, state: ElectState, index: int) -> str:
        return f"{NAMES[index]}{state.sides[index].session}"

    # ---- the world

    def _watch(self, state: ElectState, index: int) -> ElectState:
        state = self._with(state, index, state.sides[index]._replace(told=state.view))
        return self._tell(state, index, "view_changed", state.view)

    def _expire(self, state: ElectState, index: int) -> ElectState:
        view: View = self.values[state.view]
        if view.leader is not None and view.leader.session == self._session(state, index):
            state = state._replace(view=self.values.number(replace(view, leader=None)))
        side = state.sides[index]
        # A new session makes the watch tell the view again.
        side = side._replace(session=side.session + 1, told=-1)
        return self._with(state, index, side)._replace(expired=state.expired - 1, ticks=self.bounds.ticks)

    def _delete(self, state: ElectState) -> ElectState:
        view = replace(self.values[state.view], leader=None)
        return state._replace(view=self.values.number(view), deleted=state.deleted - 1, ticks=self.bounds.ticks)

    def _refuse(self, state: ElectState, index: int) -> ElectState:
        process = self.values[state.view].leader.process
        state = state._replace(refused=state.refused - 1, ticks=self.bounds.ticks)
        return self._tell(state, index, "link_refused", process)

    def _pass(self, state: ElectState) -> ElectState:
        deadlines = [self.machines.ask(side.machine, _deadline) for side in state.sides]
        state = state._replace(now=max(state.now, min(deadlines)), ticks=state.ticks - 1)
        for index, other in ((0, 1), (1, 0)):
            epoch = state.sides[other].term
            beat = PeerBeat(
                NAMES[other], MEMBERS[other].process, "leading" if epoch else "following", epoch, "", None, True
            )
            state = self._tell(state, index, "link_beat" if epoch else "follower_beat", self.values.number(beat))
        return self._tell(self._tell(state, 0, "tick"), 1, "tick")

    # ---- telling

    def _tell(self, state: ElectState, index: int, fact: str, *facts: Hashable) -> ElectState:
        side = state.sides[index]
        try:
            machine, effects = self.machines.do(
                side.machine, self._told, state.now, self._session(state, index), fact, *facts
            )
        except Exception as error:
            raise Violation("crash", f"{NAMES[index]}: {type(error).__name__}: {error}") from error
        side = side._replace(machine=machine)
        for number in effects:
            effect = self.values[number]
            if isinstance(effect, fx.Request):
                side = side._replace(asked=(*side.asked, number))
            elif isinstance(effect, fx.StartTerm):
                self._check_start(state, index, effect.fence)
                side = side._replace(term=effect.fence.epoch)
            elif isinstance(effect, fx.EndTerm):
                side = side._replace(term=0)
        return self._with(state, index, side)

    def _check_start(self, state: ElectState, index: int, fence: Fence) -> None:
        if any(side.term == fence.epoch for side in state.sides):
            raise Violation("C8", f"{NAMES[index]} leads epoch {fence.epoch}, which is led already")
        stands: Fence = self.values[state.fence]
        if (stands.epoch, stands.term) != (fence.epoch, fence.term) and stands.epoch <= fence.epoch:
            raise Violation("C9", f"{NAMES[index]} leads {fence.epoch} without its fence")

    def _told(self, machine: Election, now: float, session: str, fact: str, *facts: Any) -> tuple[int, ...]:
        view = machine.views.view
        machine.set_wall(now, 0)
        machine.coordinator_state(COORDINATOR, True, _mine(view, session))
        values = self.values
        match fact:
            case "tick":
                machine.tick(now)
            case "view_changed":
                machine.view_changed(now, values[facts[0]], _mine(values[facts[0]], session))
            case "did_read":
                machine.did_read(now, facts[0], values[facts[1]], _mine(values[facts[1]], session))
            case "did_write":
                outcome = values[facts[1]]
                mine = isinstance(outcome, View) and _mine(outcome, session)
                machine.did_write(now, facts[0], outcome, mine, facts[2])
            case "did_ask":
                machine.did_ask(now, facts[0], ())
            case "link_refused":
                machine.link_refused(now, facts[0])
            case _:
                getattr(machine, fact)(now, *facts[:-1], values[facts[-1]])
        return tuple(values.number(effect) for effect in machine.take_effects())

    def _with(self, state: ElectState, index: int, side: Side) -> ElectState:
        return state._replace(sides=tuple(side if i == index else one for i, one in enumerate(state.sides)))


def _mine(view: View | None, session: str) -> bool:
    return view is not None and view.leader is not None and view.leader.session == session


def _deadline(machine: Election) -> float:
    return machine.deadline
