"""What a run of postgres_hosts.py saw, cut by cut, and how it is said."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise


@dataclass
class Seen:
    """What one cut came to; times are seconds.

    cut, says: its name, and in words. host: cut off. before, after: who led. given_up_s: when the cut-off leader said
    that it leads no more (None: not before the healing); led_s: when another one led. elsewhere_s: the longest time for
    which no publisher of another host got a receipt; elsewhere_worst_s: for which one of them got none; there_s: the
    one on that host. healed_s: from the healing until all was well. packets: that the cut swallowed."""

    cut: str
    says: str
    host: str
    before: str
    after: str = ""
    epochs: int = 0
    given_up_s: float | None = None
    led_s: float | None = None
    elsewhere_s: float = 0.0
    elsewhere_worst_s: float = 0.0
    there_s: float = 0.0
    healed_s: float = 0.0
    packets: int = 0
    begun_ns: int = 0
    healed_ns: int = 0
    well_ns: int = 0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        lead = f"{self.before} leads on" if not self.epochs else f"{self.before} -> {self.after}"
        if self.led_s is not None:
            lead += f" after {self.led_s:.2f} s"
        if self.epochs:
            lead += "" if self.given_up_s is None else f" (given up after {self.given_up_s:.2f} s)"
        return (
            f"{self.says} ({self.host}): {lead}; no receipt elsewhere for {self.elsewhere_s:.2f} s (one "
            f"publisher: {self.elsewhere_worst_s:.2f} s), there for {self.there_s:.2f} s; well {self.healed_s:.2f} s "
            f"after healing" + "".join(f"\n      WRONG: {wrong}" for wrong in self.wrong)
        )


@dataclass
class Report:
    settings: dict[str, float]
    hold_s: float
    cuts: list[Seen] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    acked: int = 0
    delivered: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return bool(self.cuts) and not self.broken and not self.wrong and not any(cut.wrong for cut in self.cuts)

    def lines(self) -> list[str]:
        found = [f"CHECKER: {broken}" for broken in self.broken] + [f"WRONG: {wrong}" for wrong in self.wrong]
        verdict = "clean" if self.clean else "NOT CLEAN"
        return [
            *found,
            f"{len(self.cuts)} cuts, {self.acked} changes acknowledged, {self.delivered} deliveries, "
            f"{len(self.broken)} promises broken: {verdict} [{self.seconds:.0f} s]",
        ]

    def json(self) -> str:
        return json.dumps({**asdict(self), "clean": self.clean}, indent=1)


def longest(times: Sequence[int], begun: int, ended: int) -> float:
    """The longest time between two of these that touches the span, in seconds; before the first and behind the last
    one, from and to the span's ends."""
    first = max(0, bisect_left(times, begun) - 1)
    near = [t for t in times[first:] if t <= ended]
    marks = [*(near or [begun]), ended]
    if marks[0] > begun:
        marks.insert(0, begun)
    return max((later - earlier) / 1e9 for earlier, later in pairwise(marks))
