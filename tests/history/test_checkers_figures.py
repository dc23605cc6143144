"""Figures that the checkers give: pauses after faults, counts of a run. Mutants of the checkers are held to them."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from changefeed.history.checkers import fence, phantom, recovery, same_value, vacuous
from changefeed.history.view import View

Told = Callable[[str], list[dict[str, Any]]]

FOLDER = Path(__file__).parents[1] / "histories" / "by_hand"
PLAIN = "\n" + (FOLDER / "plain.txt").read_text()
TRIMMED = "\n" + (FOLDER / "trimmed.txt").read_text()


def _(text: str, *pairs: tuple[str, str]) -> str:
    """Lines replaced; "" removes one, and a replacement of two lines adds one."""
    for line, other in pairs:
        assert f"\n{line}\n" in text, line
        text = text.replace(f"\n{line}\n", f"\n{other}\n" if other else "\n", 1)
    return text


def without(text: str, *words: str) -> str:
    """Without the lines that hold any of the words."""
    return "\n".join(line for line in text.split("\n") if not any(word in line for word in words))


def figures_of_recovery(module: types.ModuleType, told: Told) -> None:
    """Pauses: from the fault on, only while somebody waits, up to the next fault, by kind."""
    text = PLAIN.replace("nemesis over 1", "nemesis over 1\n@2 nemesis fault 2 cut b\n@3 nemesis over 2")
    records = told(_(text, ("p1 acked o2 2.3-3", "@4 p1 acked o2 2.3-3"), ("s1 event 2.3 c", "@6 s1 event 2.3 c")))
    by_kind = {one.kind: one for one in module.recoveries(View(enumerate(records)))}
    assert set(by_kind) == {"freeze", "cut"}
    assert [by_kind[kind].faults for kind in ("freeze", "cut")] == [1, 1]
    # Of the receipts: the second fault came while everybody waited, and both pauses end with the receipt at 4 s.
    freeze = next(r["t"] for r in records if r["f"] == "fault") / 1e9
    assert by_kind["cut"].receipts == (2.0,)
    assert by_kind["freeze"].receipts == (pytest.approx(4 - freeze),)
    again = module.recoveries([View(enumerate(records)), View(enumerate(records))])
    assert {one.kind: one.faults for one in again} == {"freeze": 2, "cut": 2}
    twice = next(one for one in again if one.kind == "cut")
    assert twice.receipts == (2.0, 2.0)
    assert module.recoveries(View(enumerate(told(without(PLAIN, "nemesis fault", "effect 1", "over 1"))))) == []
    # Nobody waited any more: there is no pause.
    calm = _(PLAIN, ("nemesis heal 10", "nemesis fault 3 late x\nnemesis over 3\nnemesis heal 10"))
    late = next(one for one in module.recoveries(View(enumerate(told(calm)))) if one.kind == "late")
    assert (late.faults, late.receipts, late.deliveries) == (1, (), ())
    # A delivery counts when the first reader has it.
    first = list(by_kind["cut"].deliveries)
    event = next(r["t"] for r in records if r["f"] == "event" and r["key"] == "c") / 1e9
    assert first == [pytest.approx(event - 2)]


def far_from_the_fault(module: types.ModuleType, told: Told) -> None:
    """What begins long after a fault was over, or after the next one, is not its doing; a limit from outside counts."""
    text = _(
        PLAIN,
        ("nemesis heal 10", "@100 p0 submits o5: x\n@140 p0 acked o5 2.5-5\nnemesis heal 10"),
        ("end log 2.4 floor 0", "end log 2.5 floor 0"),
        ("end entry 2.4 importer/3/1: d", "end entry 2.4 importer/3/1: d\nend entry 2.5 p0-1/1/3: x"),
    )
    view = View(enumerate(told(text)))
    assert module.check(view, {"freeze": 3}) == []
    soon = View(enumerate(told(text.replace("@100 ", "@20 "))))
    found = module.check(soon, {"freeze": 3})
    assert [broken.promise for broken in found] == ["C15"]
    assert "120.00 s" in found[0].says
    assert module.check(soon, {"freeze": 120}) == []
    assert module.check(soon, {"other": 1}) == []
    assert module.check(soon) == []
    between = View(enumerate(told(text.replace("@100 ", "@10 nemesis fault 2 cut b\n@20 "))))
    assert module.check(between, {"freeze": 3}) == []
    assert len(module.check(between, {"cut": 3})) == 1


def counts_of_a_run(module: types.ModuleType, told: Told) -> None:
    """What a run had of everything that `want` knows."""
    had = module.counts(View(enumerate(told(PLAIN))))
    assert {
        name: had[name] for name in ("submits", "acks", "events", "trims", "faults", "repeats", "leader-changes")
    } == {"submits": 4, "acks": 3, "events": 5, "trims": 0, "faults": 1, "repeats": 1, "leader-changes": 1}
    assert {name: had[name] for name in ("fenced-appends", "unknown-appends", "resumes", "resets")} == {
        "fenced-appends": 1,
        "unknown-appends": 0,
        "resumes": 1,
        "resets": 0,
    }
    assert (had["fault:freeze"], had["effect:leader-changed"], had["fault:kill"]) == (1, 1, 0)
    had = module.counts(View(enumerate(told(TRIMMED))))
    assert (had["trims"], had["resets"], had["resumes"], had["leader-changes"]) == (1, 1, 0, 0)
    more = PLAIN.replace(
        "a append 1 3-3 fenced", "a append 1 3-3 append-outcome-unknown\nnemesis sighting x\nnemesis sighting x"
    )
    more = more.replace("b repeat importer 1", "b repeat importer 1\nb repeat importer 1\nb repeat importer 1")
    had = module.counts(View(enumerate(told(more))))
    assert (had["unknown-appends"], had["x"], had["repeats"], had["fenced-appends"]) == (1, 2, 3, 0)
    assert module.counts(View([]))["leader-changes"] == 0
    missed = _(
        PLAIN,
        ("nemesis fault 1 freeze a expects leader-changed", "nemesis fault 1 freeze a"),
        ("nemesis effect 1 leader-changed", "nemesis effect 1 missed"),
    )
    assert module.check(View(enumerate(told(missed)))) == []
    none_needed = _(
        PLAIN,
        ("nemesis fault 1 freeze a expects leader-changed", "nemesis fault 1 freeze a expects"),
        ("nemesis effect 1 leader-changed", ""),
    )
    assert module.check(View(enumerate(told(none_needed)))) == []


def least(module: types.ModuleType, told: Told) -> None:
    """One receipt and one delivery are something; none of either is nothing."""
    text = """
p0 submits o1: a
p0 acked o1 1.1-1
s0 reader from beginning
s0 event 1.1 a
end log 1.1 floor 0
end entry 1.1 p0-1/1/1: a
"""
    assert module.check(View(enumerate(told(text)))) == []
    for gone, says in (("p0 acked o1 1.1-1", "0 acks"), ("s0 event 1.1 a", "0 events")):
        assert [says in broken.says for broken in module.check(View(enumerate(told(_(text, (gone, ""))))))] == [True]


def fences_without_terms(module: types.ModuleType, told: Told) -> None:
    """A store that does not tell the term of its fence is judged by the epoch."""
    records = told(PLAIN)
    for record in records:
        record.pop("fence_term", None)
    assert module.check(View(enumerate(records))) == []
    commit = next(record for record in records if record["f"] == "commit")
    commit["fence"] += 1
    assert len(module.check(View(enumerate(records)))) == 1


def a_fault_that_lasts(module: types.ModuleType, told: Told) -> None:
    """What begins within half a minute after a fault was over is its doing, and not what begins later."""
    text = _(
        PLAIN,
        (
            "nemesis heal 10",
            "@10 nemesis fault 2 cut b\n@60 nemesis over 2\n@{} p0 submits o5: x\n@140 p0 acked o5 2.5-5\n"
            "nemesis heal 10",
        ),
        ("end log 2.4 floor 0", "end log 2.5 floor 0"),
        ("end entry 2.4 importer/3/1: d", "end entry 2.4 importer/3/1: d\nend entry 2.5 p0-1/1/3: x"),
    )
    for begins, broken in ((80, 1), (89.9, 1), (90, 0), (91, 0)):
        assert len(module.check(View(enumerate(told(text.replace("@{}", f"@{begins}")))), {"cut": 3})) == broken, begins


def events_without_digests(module: types.ModuleType, told: Told) -> None:
    """A reader that does not tell the bytes of its events is judged by the rest."""
    records = told(PLAIN)
    for record in records:
        if record["f"] == "event":
            record["digest"] = None
    assert module.check(View(enumerate(records))) == []
    event = next(record for record in records if record["f"] == "event")
    event["key"] = "nobody's"
    assert len(module.check(View(enumerate(records)))) == 1


#: Part of the checkers -> what must hold of it, and of no mutant.
FIGURES: dict[str, list[Callable[[types.ModuleType, Told], None]]] = {
    "checkers.recovery": [figures_of_recovery, far_from_the_fault, a_fault_that_lasts],
    "checkers.vacuous": [counts_of_a_run, least],
    "checkers.fence": [fences_without_terms],
    "checkers.phantom": [events_without_digests],
    "checkers.same_value": [events_without_digests],
}


MODULES = {"checkers.recovery": recovery, "checkers.vacuous": vacuous, "checkers.fence": fence}
MODULES |= {"checkers.phantom": phantom, "checkers.same_value": same_value}


@pytest.mark.parametrize(
    ("part", "figure"),
    [(part, figure) for part, figures in FIGURES.items() for figure in figures],
    ids=lambda one: one if isinstance(one, str) else one.__name__,
)
def test_figures(part: str, figure: Callable[[types.ModuleType, Told], None], told: Told) -> None:
    """See each."""
    figure(MODULES[part], told)


def test_medians_and_worst() -> None:
    """The figures of a table, None where nobody waited."""
    many = recovery.Recovery("kill", 200, tuple(n / 10 for n in range(1, 201)), ())
    assert many.figures() == {
        "faults": 200,
        "receipts_median_s": 10.05,
        "receipts_p99_s": 19.8,
        "receipts_worst_s": 20.0,
        "deliveries_median_s": None,
        "deliveries_p99_s": None,
        "deliveries_worst_s": None,
    }
    assert recovery.Recovery("kill", 1, (3.0,), ()).figures()["receipts_p99_s"] == 3.0
