"""Edits that break a good history in one place, and the promise that is broken by each. For tests of the checkers.

    broken = apply("an event is dropped", records, random.Random(1))     None: there is no place for it in this history

Each edit looks for places where it must be noticed by the checker of its promise (others may notice it too).
"""

from __future__ import annotations

import random

from changefeed.history.records import Record
from changefeed.testing.history_edits import leading, publishing, reading, running
from changefeed.testing.history_edits.bench import EDITS, Bench

__all__ = ["EDITS", "apply", "leading", "publishing", "reading", "running"]


def apply(name: str, records: list[Record], chance: random.Random) -> list[Record] | None:
    """The broken copy of a history; None if it offers no place for that edit."""
    bench = Bench([dict(record) for record in records], chance)
    return bench.records if EDITS[name][1](bench) else None
