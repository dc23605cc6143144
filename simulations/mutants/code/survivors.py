"""What no test saw: results.json says what was tried last, equivalent.json why a survivor changes nothing that matters.

An entry of equivalent.json names a change by module, scope, the line's text and "old -> new": when that text changes,
the explanation no longer holds, and a test says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from simulations.mutants.code.points import Point, places
from simulations.mutants.code.run import Tried, source_of
from simulations.mutants.code.targets import TARGETS

RESULTS: Final = Path(__file__).with_name("results.json")
EQUIVALENT: Final = Path(__file__).with_name("equivalent.json")


@dataclass(frozen=True, slots=True)
class Change:
    """A change by its text."""

    module: str
    scope: str
    text: str
    shown: str

    @classmethod
    def of(cls, module: str, tried: Tried) -> Change:
        return cls(module, tried.point.scope, tried.text, tried.shown)


def explained() -> dict[Change, str]:
    """Each explained survivor and why."""
    if not EQUIVALENT.exists():
        return {}
    found = json.loads(EQUIVALENT.read_text())
    return {Change(one["module"], one["scope"], one["text"], one["change"]): one["because"] for one in found}


def standing(change: Change) -> Point | None:
    """The place of a change in the present source; None if there is none any more."""
    source = source_of(change.module)
    lines = source.decode().splitlines()
    for point in places(source):
        if (
            point.scope == change.scope
            and lines[point.line - 1].strip() == change.text
            and point.shown(source) == change.shown
        ):
            return point
    return None


@dataclass(frozen=True, slots=True)
class Figures:
    """killed: seen by a test. equivalent: not seen, and explained. open: neither."""

    tried: int
    killed: int
    equivalent: int
    open: tuple[Change, ...]

    @property
    def share(self) -> float:
        """Killed, of those that could be."""
        return self.killed / max(1, self.tried - self.equivalent)

    def __str__(self) -> str:
        return (
            f"{self.killed} of {self.tried} changes seen by a test, {self.equivalent} change nothing that matters, "
            f"{len(self.open)} open: {100 * self.share:.1f} %"
        )


def figures(results: dict[str, Any]) -> Figures:
    """Of all modules that were tried."""
    tried = killed = equivalent = 0
    left: list[Change] = []
    known = explained()
    for module, found in results.items():
        if module not in TARGETS:
            continue
        tried += found["tried"]
        killed += found["killed"]
        for one in found["survived"]:
            change = Change(module, one["scope"], one["text"], one["change"])
            if change in known:
                equivalent += 1
            else:
                left.append(change)
    return Figures(tried, killed, equivalent, tuple(left))


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def save(results: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False) + "\n")


def summary(module: str, total: int, seed: int, tried: list[Tried]) -> dict[str, Any]:
    """What is kept of a module."""
    survived = [one for one in tried if one.outcome == "survived"]
    return {
        "module": module,
        "places": total,
        "seed": seed,
        "tried": len(tried),
        "killed": sum(one.outcome in ("killed", "slow") for one in tried),
        "survived": [{"scope": one.point.scope, "text": one.text, "change": one.shown} for one in survived],
    }


def open_points(module: str) -> list[Point]:
    """The places of a module's survivors that nothing explains."""
    known = explained()
    changes = [
        Change(module, one["scope"], one["text"], one["change"]) for one in load().get(module, {}).get("survived", [])
    ]
    return [point for change in changes if change not in known and (point := standing(change)) is not None]


def merged(before: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """What is known of a module after its survivors were tried again."""
    names = [(one["scope"], one["text"], one["change"]) for one in again["survived"]]
    known = explained()
    left = []
    for one in before["survived"]:
        change = Change(again["module"], one["scope"], one["text"], one["change"])
        if change in known or (one["scope"], one["text"], one["change"]) in names:
            left.append(one)
    return {**before, "killed": before["tried"] - len(left), "survived": left}
