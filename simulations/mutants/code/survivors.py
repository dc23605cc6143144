"""What no test saw: results.json says what was tried last, equivalent.json why a survivor changes nothing that matters.

An entry of equivalent.json names a change by module, scope, the line's text and "old -> new": when that text changes,
the explanation no longer holds, and a test says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from simulations.mutants.code.points import Point, points
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
    for point in points(source):
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


def figures(results: dict[str, Any], *, machines: bool) -> Figures:
    """Of the machines, or of all other modules that were tried."""
    tried = killed = equivalent = 0
    left: list[Change] = []
    known = explained()
    for module, found in results.items():
        if module not in TARGETS or TARGETS[module].machine is not machines:
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


def summary(total: int, seed: int, tried: list[Tried]) -> dict[str, Any]:
    """What is kept of a module."""
    survived = [one for one in tried if one.outcome == "survived"]
    return {
        "places": total,
        "seed": seed,
        "tried": len(tried),
        "killed": sum(one.outcome in ("killed", "slow") for one in tried),
        "survived": [{"scope": one.point.scope, "text": one.text, "change": one.shown} for one in survived],
    }
