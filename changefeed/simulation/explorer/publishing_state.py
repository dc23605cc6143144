"""What a world of publishers and leaders consists of: its bounds, and its state as nested values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from changefeed.leader.effects import LookUp
from changefeed.simulation.explorer.acts import Outcome

INSTANCES: Final = 2


@dataclass(frozen=True)
class Bounds:
    """groups: sizes of the groups of each publisher. terms: of each instance. cuts: connections that break. unknowns:
    appends without an answer. deaths: terms that end by themselves. unavailable: appends that the log cannot take at
    first. torn: a look-up reads, and takes its look later."""

    groups: tuple[tuple[int, ...], ...] = ((1, 1, 1),)
    terms: int = 2
    cuts: int = 1
    unknowns: int = 1
    deaths: int = 1
    unavailable: int = 0
    torn: bool = False


class Opening(NamedTuple):
    """An Open that a leader is answering. back: its token, counted back. step: "read", "look", "hold", "give"."""

    back: int
    step: str
    wanted: Any = None
    facts: int = -1


class Conn(NamedTuple):
    """A connection. up, down: messages on their way. term: (instance, which term) that it is opened at."""

    name: str
    up: tuple[int, ...] = ()
    down: tuple[int, ...] = ()
    term: tuple[int, int] | None = None
    publisher: str = ""
    incarnation: int = 0
    opening: Opening | None = None
    opened: bool = False


class Pub(NamedTuple):
    """A publisher. old: the connection before, of which only what is on its way up matters."""

    machine: int
    submitted: int = 0
    conn: Conn | None = None
    old: Conn | None = None
    outcomes: tuple[Outcome, ...] = ()


class Looking(NamedTuple):
    back: int
    wanted: LookUp
    facts: int = -1


class Flight(NamedTuple):
    """An append. result: None while it is on its way; "" stored, else why not."""

    expected: int
    entries: int
    result: str | None = None


class Term(NamedTuple):
    """A leader in office. number: which of its terms it is."""

    machine: int
    epoch: int
    id: str
    number: int
    looking: tuple[Looking, ...] = ()
    flight: Flight | None = None


class Stray(NamedTuple):
    """An append whose leader is gone."""

    epoch: int
    id: str
    expected: int
    entries: int


class State(NamedTuple):
    pubs: tuple[Pub, ...]
    terms: tuple[Term | None, ...]
    used: tuple[int, ...]
    log: int
    strays: tuple[Stray, ...]
    cuts: int
    unknowns: int
    deaths: int
    unavailable: int
