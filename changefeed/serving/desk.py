"""A publisher's connection: which batches are under way, in which order answers leave, what a lost leader means. Pure.

A batch takes a slot when it comes in and frees it when its answer is sent. Answers leave in the order of the batches,
also those that this instance gives itself. When the leader is lost every slot that has no answer is forgotten: the
publisher says Open again and sends those batches again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from changefeed.errors import BadMessage
from changefeed.wire.messages import Answer, Publish


@dataclass(eq=False)
class Slot:
    """One batch under way."""

    number: int
    opening: int
    answer: Answer | None = None


class Desk:
    """opening: counts the Opens that were granted; answers and losses of an earlier one no longer count."""

    def __init__(self, in_flight_max: int) -> None:
        self.opening = 0
        self.is_open = False
        self._in_flight_max = in_flight_max
        self._slots: deque[Slot] = deque()

    @property
    def idle(self) -> bool:
        return not self._slots

    def opened(self) -> int:
        """An Open was granted: begin with nothing under way. Returns the opening's number."""
        self._slots.clear()
        self.opening += 1
        self.is_open = True
        return self.opening

    def closed(self) -> None:
        """An Open is being asked for again: what is under way will not be answered any more."""
        self._slots.clear()
        self.opening += 1
        self.is_open = False

    def take(self, number: int) -> Slot | None:
        """A slot for a batch; None while not open (the leader was lost: the batch will be sent again). Raises
        BadMessage for more batches under way than were allowed."""
        if not self.is_open:
            return None
        if len(self._slots) >= self._in_flight_max:
            raise BadMessage(
                f"more than {self._in_flight_max} batches without an answer (in_flight_max was announced): "
                "wait for answers before sending more"
            )
        slot = Slot(number, self.opening)
        self._slots.append(slot)
        return slot

    def forget(self, slot: Slot) -> None:
        """The batch will get no answer here."""
        if slot in self._slots:
            self._slots.remove(slot)

    def answered(self, slot: Slot, answer: Answer) -> bool:
        """The answer of a batch; False if its opening is over and the answer goes nowhere."""
        if slot.opening != self.opening or not self.is_open:
            return False
        slot.answer = answer
        return True

    def lost(self, opening: int) -> bool:
        """The leader of an opening is lost. True if the publisher must be told to open again."""
        if opening != self.opening or not self.is_open:
            return False
        self.is_open = False
        # What was answered in order before the first batch without an answer still leaves.
        kept = deque[Slot]()
        for slot in self._slots:
            if slot.answer is None:
                break
            kept.append(slot)
        self._slots = kept
        return True

    def next(self) -> Answer | None:
        """The next answer that may leave."""
        if self._slots and self._slots[0].answer is not None:
            return self._slots.popleft().answer
        return None


def refused(publish: Publish, code: str, message: str) -> Answer:
    """This instance's own refusal of a batch, of which nothing is stored."""
    return Answer(publish.number, sum(publish.sizes), code=code, message=message)
