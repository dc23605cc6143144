"""Small changes of any line: what is changed and what is left alone, how a run is judged, and what survived."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from simulations.mutants.code.points import points
from simulations.mutants.code.survivors import EQUIVALENT, Change, explained, figures, load, merged, standing
from simulations.mutants.code.targets import TARGETS
from simulations.mutants.patching import ROOT


def changes(text: str) -> set[str]:
    source = text.encode()
    return {f"{point.kind}: {point.shown(source)}" for point in points(source)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b", {"comparison: < -> <=", "comparison: < -> >="}),
        ("a == b", {"comparison: == -> !="}),
        ("a is not b", {"comparison: is not -> is"}),
        ("a not in b", {"comparison: not in -> in"}),
        ("a + 1", {"arithmetic: + -> -", "constant: 1 -> 2"}),
        ("x = True", {"constant: True -> False"}),
        ("not a", {"not removed: not a -> (a)"}),
        ("a or b", {"or for and: a or b -> ((a) and (b))", "one of 2 left out: a or b -> (a)",
                    "one of 2 left out: a or b -> (b)"}),
        ("a.b = c", {"statement removed: a.b = c -> pass"}),
        ("f()", {"statement removed: f() -> pass"}),
        ("del a[b]", {"statement removed: del a[b] -> pass"}),
        ("def f():\n    return a", {"returns None: return a -> return None"}),
        ("while f():\n    break", {"negated: f() -> (not f())", "break for continue: break -> continue"}),
        ("if f():\n    raise E", {"negated: f() -> (not f())", "statement removed: raise E -> pass"}),
    ],
)  # fmt: skip
def test_what_is_changed(text: str, expected: set[str]) -> None:
    """Comparisons, and/or, not, numbers, arithmetic, statements: each in every way that still compiles."""
    assert changes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x: int | None = None",
        "def f(a: int | str) -> bool | None: ...",
        "assert a == b",
        '"""A sentence."""',
        'f"{a + 1}"',
        '"a" + b',
        "if TYPE_CHECKING:\n    import a",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    """Annotations, sentences, assertions: no test of behaviour could see a change of them."""
    assert changes(text) == set()


def test_a_change_is_a_splice_of_the_text() -> None:
    """Only the place itself differs, and lines keep their numbers."""
    source = "# ä\nif a < b:\n    f(1)\n".encode()
    point = next(point for point in points(source) if point.new == ">=")
    assert point.apply(source).decode() == "# ä\nif a >= b:\n    f(1)\n"
    assert (point.line, point.scope) == (2, "")


@pytest.mark.processes
def test_changes_are_seen_and_survivors_told() -> None:
    """The command runs a module's tests on each change: some are killed, the rest is named."""
    done = subprocess.run(
        [sys.executable, "-m", "simulations.mutants.code", "--module", "changefeed.serving.window", "--most", "6"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 6 killed (" in done.stdout
    killed = int(done.stdout.split(" of 6 killed")[0].split()[-1])
    assert killed + done.stdout.count("    survived [") == 6 and killed >= 2


def test_explained_survivors_stand_in_the_source() -> None:
    """An explanation is of a text: where that has changed, it must be thought through again."""
    assert explained()
    for change, because in explained().items():
        assert change.module in TARGETS and len(because) > 10
        assert standing(change) is not None, f"{change.module} {change.scope}: {change.text}: write it anew"
    entries = json.loads(EQUIVALENT.read_text())
    assert len(entries) == len(explained()), "one explanation for each change"


def test_nine_of_ten_changes_are_seen() -> None:
    """Of the changes that were tried and could be seen, tests saw at least nine of ten."""
    said = figures(load())
    assert said.tried >= 300
    assert said.share >= 0.9, said


def test_what_is_tried_again_is_kept_apart_from_what_is_not() -> None:
    """A survivor that is killed the second time is counted as killed; an explained one stays what it is."""
    change = next(iter(explained()))
    known = {"scope": change.scope, "text": change.text, "change": change.shown}
    one, two = ({"scope": "f", "text": "a", "change": text} for text in ("1 -> 2", "2 -> 3"))
    before = {"module": change.module, "tried": 9, "killed": 6, "survived": [known, one, two]}
    after = merged(before, {"module": change.module, "survived": [two]})
    assert after["survived"] == [known, two] and after["killed"] == 7
    assert standing(Change(change.module, "nowhere", "x", "1 -> 2")) is None
