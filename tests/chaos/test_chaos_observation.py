"""What the harness sees of a run, and writes down: who leads, that a fault had its effect, who ended by itself."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from changefeed.history.records import read_file
from changefeed.simulation.plan import Plan, Step
from simulations.chaos.kinds import KINDS
from simulations.chaos.nemesis import FAULTS, Nemesis
from simulations.chaos.processes import Node
from simulations.chaos.sandbox import Network
from simulations.chaos.stage import Stage

pytestmark = pytest.mark.processes


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage whose programs are `sleep`: what they show is written by the test."""
    made = Stage(
        tmp_path, Network(False), frozenset(), 1, ensemble=None, chroot="/t", library=None, per_s=100
    )  # fmt: skip
    for node in made.nodes.values():
        node.process = subprocess.Popen(["sleep", "600"])
        node.life = 1
    try:
        yield made
    finally:
        made.end()


def show(node: Node, *, leading: int, epoch: int) -> None:
    node.gauge.set("leading", leading)
    node.gauge.set("epoch", epoch)


def told(stage: Stage, f: str) -> list[dict[str, object]]:
    return [record for record in read_file(stage.history / "nemesis.jsonl") if record["f"] == f]


def test_who_leads(stage: Stage) -> None:
    """Of those that run and say so the one of the highest epoch; nobody while a later epoch's leader is dead."""
    a, b, c = stage.instances.values()
    assert stage.leader() is None
    show(a, leading=1, epoch=3)
    assert stage.leader() is a
    show(b, leading=1, epoch=4)  # a does not know yet
    assert stage.leader() is b
    b.kill()
    assert stage.leader() is None, "the epoch of a is over"
    show(c, leading=1, epoch=5)
    assert stage.leader() is c


async def test_a_leader_change_is_an_effect_only_when_it_is_seen(stage: Stage, autojump_clock: MockClock) -> None:
    a, b, _ = stage.instances.values()
    show(a, leading=1, epoch=3)
    async with stage.fault("kill-leader", "a", ("leader-changed",)) as doing:
        assert not await stage.leader_changed(doing, 3)
    async with stage.fault("kill-leader", "a", ("leader-changed",)) as doing:
        show(b, leading=1, epoch=4)
        assert await stage.leader_changed(doing, 3)
    assert [(record["id"], record["what"]) for record in told(stage, "effect")] == [("f2", "leader-changed")]
    assert [record["id"] for record in told(stage, "over")] == ["f1", "f2"]
    assert [record["expects"] for record in told(stage, "fault")] == [["leader-changed"]] * 2


async def test_a_fault_that_may_meet_nothing_says_so(stage: Stage) -> None:
    async with stage.fault("slow-sync", "b", ("slowed",)) as doing:
        doing.effect("missed")
    assert told(stage, "fault")[0]["expects"] == ["slowed", "missed"]


async def test_what_ends_by_itself_is_noted_and_started_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end by SIGKILL is our doing; any other end is not. Publishers and readers that ended get their `quit`."""
    started: list[str] = []
    monkeypatch.setattr(Node, "start", lambda node: started.append(node.name))
    p1, s1, a, b = stage.publishers["p1"], stage.subscribers["s1"], stage.instances["a"], stage.instances["b"]
    for node, number in ((p1, signal.SIGKILL), (s1, signal.SIGKILL), (a, signal.SIGTERM), (b, signal.SIGKILL)):
        node.wanted = True
        node.send(number)
        assert node.process is not None
        node.process.wait()
    stage.held.add("b")
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.supervise)
            await stage.until(lambda: {"p1", "s1", "a"} <= set(started), 4)
            nursery.cancel_scope.cancel()
    assert "b" not in started, "a fault holds it"
    assert {one.split()[0] for one in stage.crashes} == {"a"}
    quits = {(record["node"], record["life"], record.get("abandoned", False)) for record in told(stage, "quit")}
    assert quits == {("p1", 1, True), ("s1", 1, False)}


async def test_a_fault_that_fails_does_not_end_the_round(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the round is not clean; the fault is over, and the rest of its lane goes on."""
    done: list[str] = []

    async def fails(stage: Stage, step: Step, chance: random.Random) -> None:
        async with stage.fault(step.kind, "", ()):
            raise KeyError("of the harness")

    async def works(stage: Stage, step: Step, chance: random.Random) -> None:
        done.append(step.kind)

    monkeypatch.setitem(FAULTS, "kill-leader", fails)
    monkeypatch.setitem(FAULTS, "kill-follower", works)
    plan = Plan((Step(0.0, "kill-leader", "", 0.0, "1"), Step(0.01, "kill-follower", "", 0.0, "2")))
    await Nemesis(stage, plan, KINDS, 60).run()
    assert done == ["kill-follower"]
    assert len(stage.wrong) == 1 and "kill-leader failed: KeyError" in stage.wrong[0]
    assert [record["id"] for record in told(stage, "over")] == ["f1"]
