"""What a checker says: one promise that a history breaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

#: A checker says so much in single sentences; what else it found is counted.
TOLD_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Broken:
    """One broken promise. promise: "C1" … "C16", or "crash" for an error that left the code. says: a sentence.
    about: facts for tools (keys, seqs; "record": an index into the history)."""

    promise: str
    says: str
    about: dict[str, Any] = field(default_factory=dict)


class Findings:
    """What one checker found: bounded, the first ones in words, the others as a number."""

    def __init__(self, promise: str) -> None:
        self.promise = promise
        self.count = 0
        self._told: list[Broken] = []

    def say(self, sentence: str, **about: Any) -> None:
        self.count += 1
        if self.count <= TOLD_MAX:
            self._told.append(Broken(self.promise, sentence, about))

    def result(self) -> list[Broken]:
        if self.count > TOLD_MAX:
            more = self.count - TOLD_MAX
            return [*self._told, Broken(self.promise, f"and {more} more of the same promise", {"more": more})]
        return self._told
