"""A bench for the election's machine: one call per fact, answers by hand, time by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from changefeed.batch import Tail
from changefeed.change import NO_TERM
from changefeed.coordination import LeaderRecord, Member, View
from changefeed.election import effects as fx
from changefeed.election.machine import Election
from changefeed.election.notes import describe
from changefeed.election.status import ElectionStatus
from changefeed.errors import CoordinatorUnavailable, Fenced, LogUnavailable
from changefeed.log import EpochRecord, Fence, Look
from changefeed.settings import Settings
from changefeed.wire.messages import PeerBeat, Said

FEED = "vmapi"
COORDINATOR = "c0ffee00"
E = TypeVar("E", bound=fx.Effect)
R = TypeVar("R", bound=fx.Request)


def member(name: str, *, candidate: bool = True) -> Member:
    return Member(name, f"process-{name}", f"ws://{name}:1", candidate, (FEED,))


def record(name: str, epoch: int, **changes: Any) -> LeaderRecord:
    made = LeaderRecord(name, f"process-{name}", f"ws://{name}:1", epoch, f"session-{name}")
    return replace(made, **changes)


def beat(name: str, state: str = "leading", epoch: int = 0, **changes: Any) -> PeerBeat:
    made = PeerBeat(name, f"process-{name}", state, epoch, "0a0a0a0a" if epoch else "", None, True)
    return replace(made, **changes)


def look(epoch: int = 0, term: str = NO_TERM, *, tail: int = 0, **fence: Any) -> Look:
    end = Tail(tail, epoch, term, b"")
    start = Tail(0, 0, NO_TERM, b"")
    fence = {"instance": "b", "process": "process-b", "coordinator": COORDINATOR, **fence}
    epochs = (EpochRecord(epoch, term, tail + 1, 0, "b", "start"),) if epoch else ()
    return Look("ab" * 8, end, start, Fence(epoch, term, **fence), epochs, 0, 0, 0)


class Bench:
    """One machine named "a". `effects` keeps everything it ever asked for; `only(kind)` takes the newest batch's."""

    def __init__(self, settings: Settings | None = None, **options: Any) -> None:
        self.now = 100.0
        self.settings = Settings() if settings is None else settings
        self.me = member("a")
        self.machine = Election(feed=FEED, member=self.me, settings=self.settings, pid=1000, pid_started=7, **options)
        self.new: list[fx.Effect] = []
        self.all: list[fx.Effect] = []
        self.connected = True
        self.coordinator = COORDINATOR
        self.session = "session-a"
        self.terms = 0

    # -- facts

    def mine(self, view: View | None) -> bool:
        return view is not None and view.leader is not None and view.leader.session == self.session

    def tell(self, name: str, *args: Any) -> Bench:
        machine = self.machine
        machine.set_wall(self.now, int(self.now * 1000))
        machine.coordinator_state(self.coordinator, self.connected, self.mine(machine.views.view))
        getattr(machine, name)(self.now, *args)
        self.new = machine.take_effects()
        self.all += self.new
        assert machine.deadline > self.now, "a deadline in the past would spin the driver"
        return self

    def wait(self, seconds: float) -> Bench:
        """Let time pass, ticking at every deadline on the way. Unanswered requests stay unanswered."""
        end, found = self.now + seconds, []
        while self.machine.deadline <= end:
            self.now = self.machine.deadline
            found += self.tell("tick").new
        self.now = end
        found += self.tell("tick").new
        self.new = found
        return self

    def view(self, view: View) -> Bench:
        return self.tell("view_changed", view, self.mine(view))

    # -- what it asked for

    def only(self, kind: type[E]) -> E:
        found = [effect for effect in self.new if isinstance(effect, kind)]
        assert len(found) == 1, f"wanted one {kind.__name__}, got {self.new}"
        return found[0]

    def none(self, *kinds: type[fx.Effect]) -> Bench:
        assert not [effect for effect in self.new if isinstance(effect, kinds)], self.new
        return self

    def flying(self, kind: type[R]) -> R:
        request = self.machine.requests.flying(kind.SLOT)
        assert isinstance(request, kind), f"no {kind.__name__} is in flight, but {request}"
        return request

    def idle(self, *kinds: type[fx.Request]) -> bool:
        return not any(isinstance(self.machine.requests.flying(kind.SLOT), kind) for kind in kinds)

    # -- answers

    def read(self, view: View) -> Bench:
        return self.tell("did_read", self.flying(fx.Read).id, view, self.mine(view))

    def wrote(self, outcome: View | bool | None) -> Bench:
        self.terms += 1
        mine = self.mine(outcome) if isinstance(outcome, View) else False
        return self.tell("did_write", self.flying(fx.Write).id, outcome, mine, f"{self.terms:08x}")

    def looked(self, found: Look) -> Bench:
        return self.tell("did_look", self.flying(fx.LookLog).id, found)

    def fenced(self, **changes: Any) -> Bench:
        request = self.flying(fx.FenceLog)
        done = look(request.fence.epoch, request.fence.term, **changes)
        return self.tell("did_fence", request.id, replace(done, fence=request.fence))

    def refused(self, epoch: int, term: str = "eeeeeeee", coordinator: str = COORDINATOR) -> Bench:
        return self.tell("failed", self.flying(fx.FenceLog).id, Fenced("refused", epoch, term, coordinator))

    def said(self, *heard: float | None) -> Bench:
        answers = [Said(each, 0, f"process-{n}") for n, each in enumerate(heard)]
        return self.tell("did_ask", self.flying(fx.AskMembers).id, answers)

    def failed(self, kind: type[fx.Request], error: BaseException | None = None) -> Bench:
        known: BaseException = CoordinatorUnavailable("away") if kind.SLOT in ("read", "write") else LogUnavailable("x")
        return self.tell("failed", self.flying(kind).id, known if error is None else error)

    # -- ways to a state

    def quiet(self, found: Look | None = None) -> Bench:
        """Answer a look that is in flight."""
        if not self.idle(fx.LookLog):
            self.looked(look() if found is None else found)
        return self

    def started(self, view: View | None = None, found: Look | None = None) -> Bench:
        """Running, with a first look and a first synced view."""
        self.tell("tick")
        self.quiet(found)
        return self.read(View(FEED, 0, 0, None) if view is None else view)

    def following(self, name: str = "b", epoch: int = 5, version: int = 50, found: Look | None = None) -> Bench:
        """Following a healthy leader."""
        known = look(epoch, "bbbbbbbb") if found is None else found
        self.started(View(FEED, epoch, version, record(name, epoch)), known)
        self.tell("link_up", f"process-{name}")
        return self.tell("link_beat", beat(name, epoch=epoch))

    def own(self, epoch: int, version: int) -> View:
        return View(FEED, epoch, version, record("a", epoch, session=self.session))

    def leading(self) -> Bench:
        """Leading epoch 1."""
        self.started()
        self.wrote(self.own(1, 1))
        return self.fenced()

    @property
    def status(self) -> ElectionStatus:
        return describe(self.machine, self.now)
