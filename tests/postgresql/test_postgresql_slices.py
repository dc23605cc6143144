"""Short slices of what `make proof-postgres` runs at length."""

from __future__ import annotations

import pytest

from simulations import pgbench, postgres_freezes
from simulations.proof import postgres_mirrors

pytestmark = [pytest.mark.postgresql, pytest.mark.processes]


def test_pgbench_on_captured_tables() -> None:
    """The tables rebuilt from the feed equal the source through a leader's kill, a restart and a crash; sums agree at
    every group boundary."""
    report = pgbench.run(pgbench.parser().parse_args(["--seconds", "6", "--clients", "4", "--kills", "1"]))
    assert report.clean, report.lines()
    assert report.transactions and report.kills and report.restarts and report.crashes
    assert report.mirrors.groups >= report.transactions


def test_a_deposed_leader_frozen_at_each_step() -> None:
    """Its commit came before the fence, or fails; with one defence out the other one holds."""
    for without in ("", "fence", "tail"):
        report = postgres_freezes.run(len(postgres_freezes.STEPS), without)
        assert not report.broken
        assert all(counter.total() == 1 for counter in report.outcomes.values())


def test_without_both_defences_the_log_breaks() -> None:
    """Or the freezes would prove nothing."""
    assert postgres_freezes.run(len(postgres_freezes.STEPS), "both").broken


def test_a_mirror_that_takes_the_last_word_needs_versions() -> None:
    """What the step of the proof compares: an older change that comes late overwrites, or is told by its version."""

    class Told:
        op, id = "update", "k"

        def __init__(self, version: int) -> None:
            self.version, self.body = version, {"version": version}

    plain, versioned = postgres_mirrors.Mirror(False), postgres_mirrors.Mirror(True)
    for version in (1, 3, 2):
        plain.apply(Told(version))
        versioned.apply(Told(version))
    assert (plain.rows, plain.backwards) == ({"k": {"version": 2}}, 1)
    assert versioned.rows == {"k": {"version": 3}}
