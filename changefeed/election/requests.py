"""What the machine has asked for and not been told yet. Pure.

At most one request of a slot is in flight; an answer that matches none of them is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from changefeed.election.effects import Effect, Request

R = TypeVar("R", bound=Request)
FOR_EVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Flight:
    """A request, when it was begun, and how many coordinator writes had been answered and views taken by then."""

    request: Request
    began: float
    writes: int
    views: int


class Requests:
    """number: of the newest request. writes: how many writes to the coordinator have been answered.

    deadline: when the machine wants to be ticked; always in the future of the decision that set it.
    """

    def __init__(self) -> None:
        self.number = 0
        self.writes = 0
        self.deadline = FOR_EVER
        self._effects: list[Effect] = []
        self._flying: dict[str, Flight] = {}

    def do(self, effect: Effect) -> None:
        self._effects.append(effect)

    def take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def ask(self, now: float, make: type[R], *args: object, views: int = 0) -> None:
        assert make.SLOT not in self._flying, f"two requests of slot {make.SLOT} in flight"
        request = make(self.next_number(), *args)
        self._flying[make.SLOT] = Flight(request, now, self.writes, views)
        self._effects.append(request)

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def flying(self, slot: str) -> Request | None:
        flight = self._flying.get(slot)
        return None if flight is None else flight.request

    def landed(self, id: int, kind: type[R]) -> tuple[R, Flight] | None:
        """The request with that id, taken out of flight; None for an answer that matches nothing."""
        for slot, flight in self._flying.items():
            request = flight.request
            if request.id == id and isinstance(request, kind):
                del self._flying[slot]
                return request, flight
        return None

    def wake(self, now: float, at: float) -> None:
        if now < at < self.deadline:
            self.deadline = at
