"""What people and programs are told of a run."""

from __future__ import annotations

from collections import Counter

from fake_tier import Fake

from changefeed.history import Broken
from changefeed.simulation import report
from changefeed.simulation.diagram import WIDTH
from changefeed.simulation.plan import Plan, Step
from changefeed.simulation.runner import Order, Summary
from changefeed.simulation.workers import Result


def summary_of(seeds: int, reached: dict[str, int], wanted: tuple[str, ...]) -> Summary:
    summary = Summary(Order("cluster", first=5, seeds=seeds, jobs=2), wanted=wanted, took_s=90.0, virtual_s=7_384.0)
    summary.seeds, summary.last = seeds, 5 + seeds - 1
    summary.reached.update(reached)
    summary.met.update({name: 2 * count for name, count in reached.items()})
    return summary


def test_progress_is_one_line_with_the_rarest_of_what_must_be_met() -> None:
    summary = summary_of(3_000, {"often": 2_000, "seldom": 3}, ("often", "seldom"))
    assert report.progress_text(summary) == (
        "3,000 of 3,000 seeds; 2,000 a minute; 0 failed; met 2 of 2, least: seldom in 0.1%"
    )
    record = report.progress_record(summary)
    assert (record["event"], record["seeds_per_minute"], record["wanted"]["seldom"]) == ("progress", 2_000.0, 0.001)


def test_the_table_marks_what_was_met_too_seldom() -> None:
    """By how many seeds, in which share, how often; never and seldom where something must be met."""
    lines = report.summary_lines(
        summary_of(20_000, {"often": 19_000, "seldom": 3, "beside": 1}, ("often", "seldom", "n"))
    )
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert rows["often"] == ["often", "19,000", "95.00%", "38,000"]
    assert rows["seldom"][1:] == ["3", "0.01%", "6", "seldom"]
    assert rows["beside"][1:] == ["1", "0.01%", "2"]
    assert rows["n"][1:] == ["0", "0.00%", "0", "NEVER"]
    assert lines[1].startswith("tier cluster, 20,000 seeds (5 to 20004); ")
    assert "1:30 with 2 processes, 13,333 seeds a minute; 2:03:04 of virtual time" in lines[2]
    assert lines[-1] == "FAILED: met in too few seeds, so that little of it was tried: seldom, n"


def test_a_verdict_says_what_ended_a_run_early() -> None:
    summary = summary_of(40, {}, ())
    summary.stopped = "Ctrl-C"
    assert report.verdict(summary) == "40 seeds, 0 failed; ended early: Ctrl-C"
    assert report.summary_record(summary)["ok"] is False
    summary.stopped = "time was up"
    assert report.summary_record(summary)["ok"] is True


def test_a_failure_tells_all_within_120_columns() -> None:
    """Whatever its sentences, plan and history are; only a traceback keeps its own lines."""
    plan = Plan(
        tuple(Step(n + 0.5, "kill", "leader", 1.0, "how" * 5) for n in range(60)),
        tuple((f"option-{n}", ["x" * 9] * 5) for n in range(20)),
    )
    result = Result(
        7,
        "abcd",
        tuple(Broken(f"C{n}", "many words " * 40, {"keys": ["k2"]}) for n in range(1, 12)),
        Counter(),
        1.0,
        0.1,
        plan,
        list(Fake().run(3).history),
        reproduced=False,
        hash_seed=12,
    )
    lines = report.failure_lines(result, "cluster", "a file.json")
    assert max(len(line) for line in lines) <= WIDTH
    text = "\n".join(lines)
    assert "and 3 more" in text
    assert "and 20 more" in text
    assert "A SECOND PROCESS SAW SOMETHING ELSE" in text
    assert "replay it:  changefeed simulate --tier cluster --seed 7 --plan 'a file.json'" in text
    record = report.failure_record(result, "cluster")
    assert record["trio"] and record["python"]
    assert record["command"] == "changefeed simulate --tier cluster --seed 7"


def test_times_are_written_as_people_read_them() -> None:
    assert [report.minutes(seconds) for seconds in (8.34, 65, 7_325)] == ["8.3 s", "1:05", "2:02:05"]


def test_the_commit_is_named_where_there_is_one() -> None:
    """In a checkout; an installed package names its version."""
    facts = report.build()
    assert facts["trio"].split(".")[0].isdecimal()
    if "commit" in facts:
        assert f"commit {facts['commit']}" in report.build_text()
