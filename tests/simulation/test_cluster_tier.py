"""The cluster tier: what it draws, what it does, what it sees; and that it can see something."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import Any

import pytest

from changefeed.instance import Instance
from changefeed.log import memory
from changefeed.publisher.machine import PublisherMachine
from changefeed.serving.machine import Session
from changefeed.simulation.cluster import drawing
from changefeed.simulation.cluster import tier as cluster_tier
from changefeed.simulation.cluster.faults import Nemesis
from changefeed.simulation.plan import Plan, Step
from changefeed.simulation.tiers import Outcome, tier

CLUSTER = tier("cluster")


def sees(promise: str, seeds: range) -> bool:
    """Whether one of these seeds breaks that promise."""
    return any(item.promise == promise for seed in seeds for item in CLUSTER.run(seed).broken)


def seen(outcome: Outcome, kind: str) -> list[str]:
    ids = {record["id"] for record in outcome.history if record["f"] == "fault" and record["kind"] == kind}
    return [record["what"] for record in outcome.history if record["f"] == "effect" and record["id"] in ids]


# ---- plans


def test_each_kind_of_fault_is_drawn_and_can_be_done() -> None:
    kinds = Counter(step.kind for seed in range(3000) for step in CLUSTER.draw(seed).steps)
    assert set(kinds) == set(drawing.KINDS)
    for kind in drawing.KINDS:
        assert callable(getattr(Nemesis, "_" + kind.replace("-", "_")))


def test_a_seed_switches_few_kinds_on() -> None:
    """So that rare pairs meet often."""
    for seed in range(300):
        plan = CLUSTER.draw(seed)
        assert 1 <= len({step.kind for step in plan.steps}) <= 5
        assert [step.at for step in plan.steps] == sorted(step.at for step in plan.steps)
        assert len(plan.steps) <= 6


@pytest.mark.parametrize("kind", drawing.KINDS)
def test_each_kind_of_fault_alone_is_survived(kind: str) -> None:
    """Once early, once late; and something of it is seen at least once."""
    effects = []
    for seed in (1, 2, 3):
        drawn = next(
            step for other in range(20_000) for step in CLUSTER.draw(other + 1000 * seed).steps if step.kind == kind
        )
        options = CLUSTER.draw(seed).options
        target = drawn.target
        clients = [*dict(options)["publishers"], *(reader["who"] for reader in dict(options)["readers"])]
        if kind in drawing.CLIENT_KINDS:
            target = clients[-1] if kind == "slow-reader" else clients[seed % len(clients)]
        elif target not in ("", "leader"):
            target = "a"
        steps = (dataclasses.replace(drawn, at=0.7 + seed / 3, target=target),)
        outcome = CLUSTER.run(seed, Plan(steps, options))
        assert outcome.broken == ()
        effects += seen(outcome, kind)
    assert len(effects) == 3
    assert set(effects) != {"missed"}


# ---- what a run is


def test_a_run_has_two_phases_and_ends_with_the_log_itself() -> None:
    outcome = CLUSTER.run(7)
    kinds = [record["f"] for record in outcome.history]
    assert kinds.index("heal") < kinds.index("converged") < kinds.index("log") < kinds.index("effects")
    assert [record["t"] for record in outcome.history] == sorted(record["t"] for record in outcome.history)
    submitted = {record["op"] for record in outcome.history if record["f"] == "submit"}
    healed = next(record["t"] for record in outcome.history if record["f"] == "heal")
    late = {record["op"] for record in outcome.history if record["f"] == "submit" and record["t"] >= healed}
    acked = {record["op"] for record in outcome.history if record["f"] == "acked"}
    assert late and late <= acked <= submitted
    assert outcome.broken == () and outcome.virtual_s > 1 and len(outcome.digest) == 16


def test_killed_processes_say_nothing_more_and_begin_again() -> None:
    plan = CLUSTER.draw(3)
    options = tuple({**dict(plan.options), "publishers": ["p0"], "named": "p1"}.items())
    steps = (Step(1.0, "kill", "leader"), Step(1.2, "kill-client", "p0", 0.3))
    outcome = CLUSTER.run(3, Plan(steps, options))
    assert outcome.broken == ()
    assert outcome.sightings["killed while leading"] == 1
    lives = {(record["node"], record["life"]) for record in outcome.history}
    assert ("p0", 2) in lives
    quits = [record for record in outcome.history if record["f"] == "quit" and record["node"] == "p0"]
    assert [record["life"] for record in quits] == [1]
    after = [record for record in outcome.history if record["node"] == "p0" and record["t"] > quits[0]["t"]]
    assert {record["life"] for record in after} == {2}


def test_a_run_that_does_not_converge_breaks_liveness(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends nothing: the run is given up after a bounded virtual time, and says which promise broke."""
    monkeypatch.setattr(cluster_tier, "BOUND_S", 5.0)
    monkeypatch.setattr(Session, "took", lambda session, runs, to, now: setattr(session, "scanned", to))
    monkeypatch.setattr(Session, "_unsaid", property(lambda session: False))
    outcome = CLUSTER.run(0)
    assert "C14" in {item.promise for item in outcome.broken}
    assert outcome.virtual_s < 20


def test_an_error_that_leaves_the_code_is_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(instance: Instance) -> bool:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(Instance, "readiness", fails)
    monkeypatch.setattr(Instance, "ready", lambda instance, feed: fails(instance))
    monkeypatch.setattr(Instance, "_relay_changes", lambda instance, node: fails(instance))
    outcome = CLUSTER.run(0)
    assert {item.promise for item in outcome.broken} >= {"crash"}
    assert "ZeroDivisionError" in outcome.broken[0].says


def test_an_error_that_the_code_only_logs_is_one_too(caplog: pytest.LogCaptureFixture) -> None:
    faults: list[Any] = []
    with cluster_tier.overheard(faults):
        try:
            raise ValueError("swallowed")
        except ValueError:
            logging.getLogger("changefeed.leader").exception("an answer could not be handed over")
        logging.getLogger("changefeed.leader").error("an error of the world, without a traceback")
    assert [item.promise for item in faults] == ["crash"]
    assert "swallowed" in faults[0].says


# ---- that it can see


def test_it_sees_a_publisher_that_forgets_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deliberate bug: after each lost leader all that is unanswered is numbered anew, so that it is stored twice."""

    def numbers_anew(machine: PublisherMachine) -> list[object]:
        machine.opened = False
        machine._dissolve()
        machine._sent = 0
        machine.incarnation = None
        machine.last_receipt = None
        machine._held = machine._chain = 0
        return []

    monkeypatch.setattr(PublisherMachine, "_unsend", numbers_anew)
    assert sees("C2", range(100))


def test_it_sees_a_log_that_ignores_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.MemoryFeedLog, "_check_fence", lambda *_: None)
    assert sees("C9", range(400))
