"""The full stack under drawn faults: real websockets over torn bytes, the real SQLite store, hostile peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from changefeed.simulation.plan import Plan, Step
from changefeed.simulation.stack import TIER
from changefeed.simulation.stack.drawing import ANSWERS, KINDS, MANNERS
from changefeed.simulation.stack.faults import StackNemesis
from changefeed.simulation.tiers import Outcome, tier

SEEDS = 200
ROOT = Path(__file__).resolve().parents[2]
FOUND = [
    (path.stem, found)
    for path in sorted((ROOT / "simulations" / "found").glob("*.json"))
    if (found := json.loads(path.read_text()))["tier"] == "stack"
]
DIGESTS = """
import sys
from changefeed.simulation.tiers import tier
for seed in range(int(sys.argv[1])):
    print(tier("stack").run(seed).digest)
"""


def told(outcome: Outcome) -> str:
    return f"seed {outcome.seed}: {'; '.join(f'{one.promise}: {one.says}' for one in outcome.broken)[:600]}"


@cache
def outcome_of(seed: int) -> Outcome:
    return replace(TIER.run(seed), history=())


@pytest.mark.parametrize("first", range(0, SEEDS, 25))
def test_no_seed_breaks_a_promise(first: int) -> None:
    """`changefeed simulate --tier stack --seed N` shows one that does."""
    outcomes = map(outcome_of, range(first, first + 25))
    assert [told(outcome) for outcome in outcomes if outcome.broken] == []


def test_what_must_be_met_is_met() -> None:
    """Each at least once in 200 seeds; the long run demands one percent, and says what is met seldom."""
    seen = Counter(name for seed in range(SEEDS) for name in outcome_of(seed).sightings)
    assert [name for name in TIER.wanted if not seen[name]] == []


@pytest.mark.processes
def test_a_seed_is_the_same_in_any_process_and_under_any_hash_seed() -> None:
    """Digests of ten histories, in two processes beside each other."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", DIGESTS, "10"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            text=True,
        )
        for hash_seed in ("1", "12345")
    ]
    first, second = (process.communicate(timeout=120)[0].split() for process in started)
    assert len(first) == 10
    assert first == second
    assert len(set(first)) == 10


def test_a_seed_is_the_same_again_in_one_process() -> None:
    """What ran before leaves nothing behind, also where the disk is recorded."""
    seeds = [3, *[seed for seed in range(60) if TIER.draw(seed).option("disk")][:2]]
    first = [TIER.run(seed).digest for seed in seeds]
    TIER.run(11)
    assert [TIER.run(seed).digest for seed in seeds] == first


def test_a_plan_can_be_written_down_and_run_without_a_step() -> None:
    """As JSON, and with the other steps unharmed: shrinking rests on it."""
    plan = TIER.draw(5)
    assert Plan.from_json(plan.to_json()) == Plan.from_json(Plan.from_json(plan.to_json()).to_json())
    again = TIER.run(5, Plan.from_json(plan.to_json()))
    assert again.digest == TIER.run(5).digest
    assert TIER.run(5, replace(plan, steps=())).broken == ()


def test_every_kind_is_done_and_the_tier_is_registered() -> None:
    found: object = tier("stack")
    assert found is TIER
    for kind in KINDS:
        assert hasattr(StackNemesis, "_" + kind.replace("-", "_")), kind


def one_step(kind: str, how: str, target: str = "leader", at: float = 0.7, lasts: float = 0.5) -> Outcome:
    """A plain workload with one fault."""
    plan = TIER.draw(1)
    options = dict(plan.options) | {
        "instances": 3,
        "disk": kind in ("power-loss", "disk-error"),
        "chaos_s": 1.5,
        "groups": 12,
        "burst": 0.3,
        "pauses": [],
        "log_s": 0.0,
        "way_s": 0.002,
        "buffer_bytes": 4096,
        "pad": 2000,
        "keep": None,
        "readers": [{"who": "s0", "filter": {}}],
    }
    return TIER.run(1, Plan((Step(at, kind, target, lasts, how),), tuple(options.items())))


@pytest.mark.parametrize("manner", MANNERS)
def test_a_hostile_peer_harms_nobody(manner: str) -> None:
    outcome = one_step("garbage", manner)
    assert outcome.broken == (), told(outcome)
    assert outcome.sightings["fault: garbage"] == 1


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_stranger_at_an_instances_port_harms_nobody(answer: str) -> None:
    """Clients and peers go elsewhere and come back."""
    outcome = one_step("stranger", answer)
    assert outcome.broken == (), told(outcome)
    assert outcome.sightings["fault: stranger"] == 1


@pytest.mark.parametrize("calls", ["0", "1", "2", "4", "99"])
def test_a_power_loss_within_a_write_loses_nothing_acknowledged(calls: str) -> None:
    outcome = one_step("power-loss", calls, "")
    assert outcome.broken == (), told(outcome)
    assert outcome.sightings["power lost"] == 1


@pytest.mark.parametrize("what", ["sync 1", "sync 5", "write 1", "full 2"])
def test_a_disk_that_fails_loses_nothing_acknowledged(what: str) -> None:
    outcome = one_step("disk-error", what, "")
    assert outcome.broken == (), told(outcome)
    assert outcome.sightings[f"a failed {what.split()[0]}"] >= 1


def test_a_broken_product_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were frames written without regard to what the buffers took, the tier would see it at once."""
    from changefeed.simulation.stack.streams import SimulatedStream

    def write_now(self: SimulatedStream, head: bytes, payload: bytes) -> int:
        """Tells that all was taken."""
        self._write(memoryview(head + payload))
        return len(head) + len(payload)

    monkeypatch.setattr(SimulatedStream, "write_now", write_now)
    assert any(TIER.run(seed).broken for seed in range(SEEDS) if TIER.draw(seed).option("pad", 0) >= 2000)


@pytest.mark.parametrize(("name", "found"), FOUND, ids=[name for name, _ in FOUND])
def test_a_bug_that_was_found_stays_mended(name: str, found: dict[str, Any]) -> None:
    """The seed with the plan that showed it."""
    outcome = TIER.run(found["seed"], Plan.from_json(json.dumps(found["plan"])))
    assert outcome.broken == (), told(outcome)
