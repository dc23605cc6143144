"""The election's machine against a random world: any facts in any order, then a fair one in which it must lead.

A model coordinator and a model log hold the truth; others take the lead, fence, die and vanish; replies are lost, late
or failed; watches tell old news. Nothing that the machine asks for may ever be unsafe, and once everything answers and
everybody else is dead, it leads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from election_bench import FEED, Bench, beat, look, member, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from changefeed.change import NO_TERM
from changefeed.coordination import LeaderRecord, View
from changefeed.election import effects as fx
from changefeed.errors import AppendOutcomeUnknown, Fenced, LogUnavailable
from changefeed.log import Fence, Look
from changefeed.wire.messages import Said


@dataclass
class Truth:
    """Coordinator and log. views: everything that was ever true, for late watches."""

    epoch: int = 0
    version: int = 0
    leader: LeaderRecord | None = None
    fence: Fence = field(default_factory=lambda: Fence(0, NO_TERM))
    fenced: set[int] = field(default_factory=set)
    tail: int = 0
    views: list[View] = field(default_factory=list)

    def view(self) -> View:
        view = View(FEED, self.epoch, self.version, self.leader)
        if not self.views or self.views[-1] != view:
            self.views.append(view)
        return view

    def win(self, seen: View, who: LeaderRecord, *, challenge: bool) -> View | None:
        if seen.version != self.version or (self.leader is not None and not challenge):
            return None
        self.epoch, self.version = seen.epoch + 1, self.version + 1
        self.leader = replace(who, epoch=self.epoch)
        return self.view()

    def put_fence(self, fence: Fence) -> None:
        """Raises Fenced if it is not above the one that stands."""
        if fence.epoch <= self.fence.epoch:
            raise Fenced("refused", self.fence.epoch, self.fence.term, self.fence.coordinator)
        assert fence.epoch not in self.fenced, "an epoch was fenced twice"
        self.fenced.add(fence.epoch)
        self.fence = fence

    def look(self) -> Look:
        return replace(look(self.fence.epoch, self.fence.term, tail=self.tail), fence=self.fence)


class Random:
    """One run: a bench, the truth, and the rules that every effect is held to."""

    def __init__(self, candidate: bool) -> None:
        self.truth = Truth()
        self.bench = Bench(candidate=candidate, kill_frozen=True)
        self.told: list[View] = []
        self.synced: list[View] = []
        self.evidence: set[tuple[str, int]] = set()
        self.terms: dict[int, set[str]] = {}
        self.done: set[tuple[int, str]] = set()
        self.wipes = 0
        self.running: Fence | None = None
        self.granted: Fence | None = None
        self.candidate = candidate
        self.leaving = False
        self.started: set[int] = set()

    # -- telling, and checking what comes back

    def tell(self, name: str, *args: object) -> None:
        self.bench.tell(name, *args)
        for effect in self.bench.new:
            self.check(effect)

    def check(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Take(seen=seen):
                assert seen in self.synced and seen.leader is None
                assert self.candidate and not self.leaving
            case fx.Challenge(seen=seen, why=why):
                assert seen in self.told, "a challenge must name a view as it was told, epoch and leader together"
                assert self.candidate and not self.leaving
                if why == "process-gone":
                    assert seen.leader is not None
                    assert (seen.leader.process, seen.leader.epoch) in self.evidence
            case fx.RaiseEpoch(seen=seen, epoch=epoch):
                assert seen in self.told and seen.epoch < epoch <= self.truth.fence.epoch
            case fx.FenceLog(fence=fence):
                # A wiped coordinator gives an epoch again: that is another term, and the log will refuse it.
                terms = self.terms.setdefault(fence.epoch, set())
                terms.add(fence.term)
                assert len(terms) <= 1 + self.wipes, "one term to an epoch"
                assert (fence.epoch, fence.term) not in self.done, "fenced or unknown before: never again"
            case fx.StartTerm(fence=fence):
                assert self.running is None, "a term began beside another"
                assert fence == self.granted, "a term needs the log's word for exactly its fence"
                assert fence.epoch not in self.started
                self.started.add(fence.epoch)
                self.running, self.granted = fence, None
            case fx.EndTerm(epoch=epoch):
                assert self.running is not None and self.running.epoch == epoch
                self.running = None
            case fx.KillHolder(holder=holder):
                assert holder.process != "process-a" and holder.epoch < max(self.terms)

    # -- others

    def other(self, n: int) -> LeaderRecord:
        return record("bcd"[n % 3], 0)

    def other_takes(self, n: int) -> None:
        who = self.other(n)
        won = self.truth.win(self.truth.view(), who, challenge=True)
        assert won is not None

    def other_fences(self, n: int) -> None:
        """Whoever is named fences, if it is another."""
        leader = self.truth.leader
        if leader is not None and leader.process != "process-a" and leader.epoch > self.truth.fence.epoch:
            term = f"{leader.epoch:08x}"
            self.truth.put_fence(
                Fence(leader.epoch, term, leader.name, leader.process, 50 + n, 1, coordinator="c0ffee00")
            )

    def vanish(self, n: int) -> None:
        self.truth.leader = None
        self.truth.view()

    def wipe(self, n: int) -> None:
        self.wipes += 1
        self.truth.epoch, self.truth.leader = 0, None
        self.truth.version += 1
        self.truth.view()

    # -- news

    def watch(self, n: int) -> None:
        """News, possibly old."""
        self.truth.view()
        view = self.truth.views[-1 - n % min(4, len(self.truth.views))]
        self.told.append(view)
        self.tell("view_changed", view, self.bench.mine(view))

    def refused(self, n: int) -> None:
        known = self.bench.machine.views.record
        if known is not None and known.process != "process-a":
            self.evidence.add((known.process, known.epoch))
            self.tell("link_refused", known.process)

    def stranger(self, n: int) -> None:
        """Evidence about somebody whom no record names."""
        self.tell("link_foreign", "process-z", "process-y")

    def heard(self, n: int) -> None:
        known = self.bench.machine.views.record
        if known is not None and known.process != "process-a":
            state = ("leading", "fencing", "following")[n % 3]
            self.tell("link_beat", beat(known.name, state, known.epoch if n % 3 < 2 else 0))

    def follower(self, n: int) -> None:
        self.tell("follower_beat", beat("bcd"[n % 3], "following", log_ok=n % 2 == 0))

    def term_ends(self, n: int) -> None:
        if self.running is not None:
            epoch, self.running = self.running.epoch, None
            why = ("fenced", "outcome-unknown", "tail-moved", "handover")[n % 4]
            self.tell("term_ended", epoch, why)

    def hand_over(self, n: int) -> None:
        if n == 7:
            self.leaving = True
            self.tell("hand_over")

    def wait(self, n: int) -> None:
        end = self.bench.now + (0.01, 0.05, 0.3, 0.6, 1.0, 2.0, 5.0, 20.0)[n % 8]
        while self.bench.machine.deadline <= end:
            self.bench.now = self.bench.machine.deadline
            self.tell("tick")
        self.bench.now = end
        self.tell("tick")

    # -- answers

    def answer(self, n: int) -> None:
        """One request, chosen by n, answered truthfully, or failed before or after its effect."""
        slots = ("read", "write", "look", "fence", "ask", "members", "kill", "finish")
        flying = [self.bench.machine.requests.flying(slot) for slot in slots]
        requests = [request for request in flying if request is not None]
        if requests:
            request = requests[n % len(requests)]
            self.perform(request, lost=n % 8 == 7, failed=n % 8 == 6)

    def perform(self, request: fx.Request, *, lost: bool = False, failed: bool = False) -> None:
        """failed: nothing happened. lost: it happened, but its answer did not arrive."""
        bench, truth, id = self.bench, self.truth, request.id
        if failed:
            error = LogUnavailable("locked") if isinstance(request, fx.FenceLog) else OSError("away")
            self.tell("failed", id, error)
            return
        match request:
            case fx.Read():
                view = truth.view()
                self.told.append(view)
                self.synced.append(view)
                self.tell("did_read", id, view, bench.mine(view))
            case fx.Write():
                outcome = self.write(request)
                if lost:
                    self.tell("failed", id, OSError("reply lost"))
                    return
                if isinstance(outcome, View):
                    self.told.append(outcome)
                    self.synced.append(outcome)
                bench.terms += 1
                mine = isinstance(outcome, View) and bench.mine(outcome)
                self.tell("did_write", id, outcome, mine, f"{bench.terms:08x}")
            case fx.LookLog():
                self.tell("did_look", id, truth.look())
            case fx.FenceLog(fence=fence):
                self.fence(id, fence, lost=lost)
            case fx.AskMembers():
                self.tell("did_ask", id, [Said(None, 0, "process-c")])
            case fx.ListMembers():
                self.tell("did_list", id, {name: member(name) for name in "abc"})
            case fx.KillHolder():
                self.tell("did_kill", id, "not-frozen")
            case fx.FinishTerm():
                self.tell("did_finish", id)
                self.term_ends(3)

    def fence(self, id: int, fence: Fence, *, lost: bool) -> None:
        try:
            self.truth.put_fence(fence)
        except Fenced as error:
            self.tell("failed", id, error)
            return
        self.done.add((fence.epoch, fence.term))
        if lost:
            self.tell("failed", id, AppendOutcomeUnknown("i/o error"))
            return
        self.granted = fence
        self.tell("did_fence", id, self.truth.look())
        self.granted = None

    def write(self, request: fx.Write) -> View | bool | None:
        truth, me = self.truth, record("a", 0, session=self.bench.session)
        match request:
            case fx.Take(seen=seen):
                return truth.win(seen, me, challenge=False)
            case fx.Challenge(seen=seen):
                return truth.win(seen, me, challenge=True)
            case fx.RaiseEpoch(seen=seen, epoch=epoch):
                if seen.version != truth.version:
                    return False
                truth.epoch, truth.version = epoch, truth.version + 1
                truth.view()
                return True
        mine = truth.leader is not None and truth.leader.process == "process-a"
        if isinstance(request, fx.MarkLeaving) and mine and truth.leader is not None:
            held = truth.leader.epoch == request.epoch
            if held:
                truth.leader = replace(truth.leader, leaving=True, successor=request.successor)
            return held
        if isinstance(request, fx.Resign) and mine and truth.leader is not None and truth.leader.epoch == request.epoch:
            truth.leader = None
        truth.view()
        return False if isinstance(request, fx.MarkLeaving) else None

    # -- the fair world

    def fair(self) -> None:
        """Everything answers truthfully, every other process is dead: a candidate leads within a minute."""
        began = self.bench.now
        while self.bench.now < began + 60:
            self.watch(0)
            for slot in ("read", "write", "look", "fence", "ask", "members", "kill", "finish"):
                request = self.bench.machine.requests.flying(slot)
                if request is not None:
                    self.perform(request)
            self.refused(0)
            if self.leads() and not self.leaving:
                break
            self.wait(1)
        assert self.leads() == (self.candidate and not self.leaving), self.bench.status
        assert not self.leaving or any(isinstance(effect, fx.HandedOver) for effect in self.bench.all)

    def leads(self) -> bool:
        truth, leader = self.truth, self.truth.leader
        if self.running is None or leader is None:
            return False
        same = (truth.fence.epoch, truth.fence.term) == (self.running.epoch, self.running.term)
        return same and leader.process == "process-a" and leader.epoch == self.running.epoch


OPS = (
    "answer", "answer", "answer", "answer", "answer", "wait", "wait", "watch", "watch", "refused", "heard", "follower",
    "stranger", "other_takes", "other_fences", "vanish", "wipe", "term_ends", "hand_over",
)  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 7)), max_size=60)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.booleans())
def test_nothing_unsafe_is_ever_asked_for_and_in_a_fair_world_it_leads(
    steps: list[tuple[str, int]], cand: bool
) -> None:
    """A term only under its own fence, once per epoch; challenges name what was read; one request of a kind at a time
    (asserted by the machine); a deadline is never in the past (asserted by the bench)."""
    run = Random(cand)
    run.tell("tick")
    for op, n in steps:
        getattr(run, op)(n)
    run.fair()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=80))
def test_lost_and_failed_answers_alone_never_leave_it_stuck(numbers: list[int]) -> None:
    """Alone in the world: only its own calls go wrong."""
    run = Random(True)
    run.tell("tick")
    for n in numbers:
        run.answer(n)
        run.wait(n % 4)
    run.fair()
