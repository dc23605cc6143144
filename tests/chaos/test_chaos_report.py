"""The report: figures per kind of fault, what was not reached, what is not available; table, JSON and chart agree."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from xml.dom import minidom

from simulations.chaos.report import Pauses, Report, round_line
from simulations.chaos.rounds import Result


def result(**more: Any) -> Result:
    made = Result(
        seed=7,
        coordinator="zk",
        counts=Counter({"acked-events": 1000, "leader-changes": 3, "faults": 4}),
        effects={
            "kill-leader": {"done": 3, "hit": 3, "leader-changed": 3},
            "garbage": {"done": 1, "hit": 0, "missed": 1},
        },
        pauses={
            "kill-leader": {"faults": 3, "receipts": [0.1, 0.2, 3.0], "deliveries": [0.2, 0.3, 3.5], "alone": [0.1]},
            "garbage": {"faults": 1, "receipts": [], "deliveries": [], "alone": []},
        },
    )
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_figures_of_pauses() -> None:
    """Median, p99 (the smallest value that 99 % do not exceed), worst; none without values."""
    hundred = Pauses(tuple(n / 100 for n in range(1, 101)))
    assert (hundred.median, hundred.p99, hundred.worst) == (0.505, 0.99, 1.0)
    assert str(Pauses(())).split() == ["-", "-", "-"]


def test_rounds_add_up() -> None:
    """Pauses of all rounds together, not figures of figures."""
    report = Report([result(), result()], {}, {})
    assert report.receipts["kill-leader"].values == (0.1, 0.2, 3.0) * 2
    assert report.effects["kill-leader"]["hit"] == 6
    assert report.total("acked-events") == 2000
    assert report.ok
    kinds = json.loads(report.json())["kinds"]
    assert kinds["kill-leader"]["receipts"] == {"median_s": 0.2, "p99_s": 3.0, "worst_s": 3.0}


def test_a_report_that_is_not_clean_says_why() -> None:
    """A checker's word, a process that ended by itself, a count that was not reached: each fails it, and is shown."""
    broken = result(broken=[{"promise": "C1", "says": "p1.3 was acknowledged and is gone", "about": {}}])
    assert not Report([result(), broken], {}, {}).ok
    assert "C1: p1.3 was acknowledged and is gone" in round_line(broken)
    crashed = result(wrong=["a (life 2) ended with status 1"])
    assert "NOT CLEAN" in round_line(crashed) and "ended with status 1" in round_line(crashed)
    missing = Report([result()], {}, {"kill-leader": 5})
    assert not missing.ok and "NOT REACHED: 5 more kill-leader" in missing.text()
    assert not Report([], {}, {}).ok, "nothing was shown"


def test_what_is_not_available_is_named_with_its_reason() -> None:
    text = Report([result()], {"partition": "no network namespaces of our own"}, {}).text()
    assert "not available: partition (F3): no network namespaces of our own" in text
    assert "not here: F16: power loss" in text


def test_the_chart_has_a_bar_for_each_kind_that_somebody_waited_after() -> None:
    document = minidom.parseString(Report([result()], {}, {}).svg())
    labels = [node.firstChild.data for node in document.getElementsByTagName("text")]  # type: ignore[union-attr]
    assert "kill-leader" in labels and "garbage" not in labels
