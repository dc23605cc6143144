"""What is explored, by number: small worlds, each looked at completely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from changefeed.simulation.explorer.electing import ElectBounds, Electing
from changefeed.simulation.explorer.publishing import Publishing
from changefeed.simulation.explorer.publishing_state import Bounds
from changefeed.simulation.explorer.reading import ReadBounds, Reading
from changefeed.simulation.explorer.search import World


@dataclass(frozen=True)
class Scenario:
    """name: what is in it. world: makes it. long: takes longer than a test may."""

    name: str
    world: Callable[[], World[Any]]
    long: bool = False


def _publishing(name: str, bounds: Bounds, *, long: bool = False) -> Scenario:
    return Scenario(f"publishing: {name}", lambda: Publishing(bounds), long)


def _reading(name: str, bounds: ReadBounds, *, long: bool = False) -> Scenario:
    return Scenario(f"reading: {name}", lambda: Reading(bounds), long)


def _electing(name: str, bounds: ElectBounds, *, long: bool = False) -> Scenario:
    return Scenario(f"electing: {name}", lambda: Electing(bounds), long)


SCENARIOS: Final = (
    _publishing(
        "2 leaders of 2 terms, 3 events, one append of unknown outcome",
        Bounds(((1, 1, 1),), terms=2, cuts=0, unknowns=1, deaths=0),
        long=True,
    ),
    _publishing("2 leaders, 3 events, one cut", Bounds(((1, 1, 1),), terms=1, cuts=1, unknowns=0, deaths=0)),
    _publishing(
        "2 leaders, a group of 2, one cut, one unknown outcome, look-ups in pieces",
        Bounds(((1, 2),), terms=1, cuts=1, unknowns=1, deaths=0, torn=True),
    ),
    _publishing(
        "2 leaders, 2 events, a log that cannot take an append, a leader that dies",
        Bounds(((1, 1),), terms=1, cuts=0, unknowns=0, deaths=1, unavailable=1, torn=True),
    ),
    _publishing("2 leaders, 2 publishers", Bounds(((1,), (1,)), terms=1, cuts=0, unknowns=1, deaths=0)),
    _reading("2 entries, one cut, a restarted instance", ReadBounds(2, cuts=1, deaths=0, restarts=1)),
    _reading("2 entries, a cut, a dead subscriber", ReadBounds(2, cuts=1, deaths=1, restarts=0)),
    _reading("a filter that selects some", ReadBounds(2, cuts=1, deaths=1, restarts=0, ops=("b",))),
    _reading("from now on", ReadBounds(2, cuts=1, deaths=0, restarts=0, start="now")),
    _reading("3 entries, one cut", ReadBounds(3, cuts=1, deaths=0, restarts=0)),
    _reading("3 entries, a cut, a dead subscriber", ReadBounds(3, cuts=1, deaths=1, restarts=0), long=True),
    _publishing(
        "2 leaders of 2 terms, 2 events, one cut, one unknown outcome",
        Bounds(((1, 1),), terms=2, cuts=1, unknowns=1, deaths=0),
        long=True,
    ),
    _publishing(
        "2 leaders, 2 publishers, one cut", Bounds(((1,), (1,)), terms=1, cuts=1, unknowns=0, deaths=0), long=True
    ),
    _publishing(
        "2 leaders of 2 terms, 3 events, one cut",
        Bounds(((1, 1, 1),), terms=2, cuts=1, unknowns=0, deaths=0),
        long=True,
    ),
    _electing("two candidates begin", ElectBounds(ticks=8)),
    _electing("a reply of the coordinator is lost", ElectBounds(ticks=6, lost=1)),
    _electing("a living leader is taken for dead", ElectBounds(ticks=6, refused=1)),
    _electing("somebody deletes the record", ElectBounds(ticks=8, deleted=1), long=True),
    _electing("a living leader is taken for dead, a reply is lost", ElectBounds(ticks=6, refused=1, lost=1), long=True),
)
